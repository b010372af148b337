"""Redis as the application, the health checks and the next run of the role meet it."""

from __future__ import annotations

import shlex
import time

import pytest

testinfra_hosts = ["ansible://converged"]

PASSWORD = "redis-Lc9Yt3"
ADMIN = "admin-Qk7Wd2"
HEALTH = "health-Zp4Rn6"
MAIN, CACHE = "redis-server.service", "redis-server@cache.service"

CELERY = """
cd /srv/app
venv/bin/celery -A tasks worker -c 2 -Q shiftmaster >/run/worker.log 2>&1 & worker=$!
trap 'kill $worker; wait $worker' EXIT
timeout 120 venv/bin/python -c 'import tasks; tasks.round_trip()' || { cat /run/worker.log; exit 1; }
"""


def as_application(redis, *words, **more):
    return redis(*words, user="shiftmaster", **{"password": PASSWORD, **more})


def test_both_instances_run_and_start_at_boot(host):
    for unit in (MAIN, CACHE):
        assert host.service(unit).is_running and host.service(unit).is_enabled
    assert "redis-server 127.0.0.1:6379" in host.check_output("systemctl status redis-server")


def test_access_requires_a_user(redis):
    for port in (6379, 6380):
        assert redis("PING", user=None, password=None, port=port).startswith("NOAUTH")
        assert redis("AUTH", "anything", user=None, password=None, port=port).startswith("WRONGPASS")
        assert as_application(redis, "PING", port=port) == "PONG"
    assert "NOAUTH" in as_application(redis, "PING", password="wrong")


def test_no_password_is_on_the_host(host):
    found = host.run(f"grep -rlE '{PASSWORD}|{ADMIN}|{HEALTH}' /etc /var/lib/redis /var/log /root/.ansible")
    assert found.stdout == ""


def test_each_instance_has_its_own_policy_memory_and_persistence(redis):
    def values(port):
        names = ("maxmemory", "maxmemory-policy", "appendonly", "dir")
        return [redis("CONFIG", "GET", name, port=port).splitlines()[1] for name in names]

    assert values(6379) == [str(256 << 20), "volatile-lru", "yes", "/var/lib/redis"]
    assert values(6380) == [str(16 << 20), "allkeys-lru", "no", "/var/lib/redis/cache"]


def test_a_full_cache_evicts_and_the_queue_of_the_other_instance_stays(host, redis):
    as_application(redis, "LPUSH", "waiting", "task")
    # Celery writes in transactions; so are two writes of a script kept.
    script = "redis.call('LPUSH', 'waiting', 'second') return redis.call('LPUSH', 'waiting', 'third')"
    assert as_application(redis, "EVAL", script, "0") == "3"
    fill = "for i in $(seq 30); do echo \"SET filler:$i $(head -c 800000 /dev/zero | tr '\\0' x)\"; done"
    command = (
        f"({fill}) | REDISCLI_AUTH={PASSWORD} redis-cli --no-auth-warning -p 6380 --user shiftmaster | sort | uniq -c"
    )
    assert host.check_output(command).split() == ["30", "OK"]
    evicted = redis("INFO", "stats", port=6380)
    assert int(evicted.split("evicted_keys:")[1].split()[0]) > 0
    assert as_application(redis, "LRANGE", "waiting", "0", "-1").split() == ["third", "second", "task"]
    as_application(redis, "DEL", "waiting")
    as_application(redis, "FLUSHDB", port=6380)


@pytest.mark.parametrize(
    "words",
    [
        ("CONFIG", "GET", "dir"),
        ("CONFIG", "SET", "dir", "/tmp"),
        ("KEYS", "*"),
        ("FLUSHALL",),
        ("SHUTDOWN", "NOSAVE"),
        ("ACL", "LIST"),
        ("SAVE",),
        ("MONITOR",),
        ("SLAVEOF", "192.0.2.1", "6379"),
        ("MODULE", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
    ],
    ids=lambda words: "-".join(words[:2]).replace("*", ""),
)
def test_the_application_may_not_administer(redis, words):
    assert "NOPERM" in as_application(redis, *words)


def test_the_health_user_can_run_only_ping_and_info(redis):
    assert redis("PING", user="health", password=HEALTH) == "PONG"
    assert "redis_version" in redis("INFO", "server", user="health", password=HEALTH)
    for words in (("GET", "x"), ("SET", "x", "1"), ("PUBLISH", "c", "x"), ("CONFIG", "GET", "dir"), ("LLEN", "celery")):
        assert "NOPERM" in redis(*words, user="health", password=HEALTH)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_celery_and_the_cache_find_nothing_forbidden(host, redis, tls):
    for port in (6379, 6380):
        redis("ACL", "LOG", "RESET", port=port)
    broker = f"redis://shiftmaster:{PASSWORD}@localhost:6379/0"
    cache, more = f"redis://shiftmaster:{PASSWORD}@localhost:6380/1", ""
    if tls:
        authority = "/etc/ssl/certs/internal-ca.crt"
        broker = f"rediss://shiftmaster:{PASSWORD}@localhost:6390/0?ssl_cert_reqs=required&ssl_ca_certs={authority}"
        cache, more = f"rediss://shiftmaster:{PASSWORD}@localhost:6390/1", f"export CA_FILE={authority}; "
    script = f"export BROKER_URL={shlex.quote(broker)} CACHE_URL={shlex.quote(cache)}; {more}" + CELERY
    assert "round trip done" in host.check_output("bash -c %s", script)
    trip = host.run("bash -c %s", f"export CACHE_URL={cache}; {more}/srv/app/venv/bin/python /srv/app/cache_trip.py")
    assert "cache trip done" in trip.stdout, trip.stderr
    for port in (6379, 6380):
        assert redis("ACL", "LOG", port=port) == ""
    redis("FLUSHALL")


def test_tasks_survive_a_killed_server(host, redis):
    as_application(redis, "LPUSH", "waiting", "task")
    # The file is synchronized once a second.
    host.check_output(f"sleep 1.5; systemctl kill --signal=KILL {MAIN}")
    deadline = time.monotonic() + 30
    while as_application(redis, "PING") != "PONG" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert as_application(redis, "LRANGE", "waiting", "0", "-1") == "task"
    as_application(redis, "DEL", "waiting")


def test_the_server_cannot_rewrite_its_configuration_or_its_users(redis, files):
    before = files()
    assert "ERR" in redis("CONFIG", "REWRITE")
    assert "ERR" in redis("ACL", "SAVE")
    assert files() == before


def test_limits_and_kernel(host):
    assert host.check_output(f"systemctl show --property=LimitNOFILE --value {MAIN}") == "16384"
    assert host.check_output("cat /proc/sys/vm/overcommit_memory") == "1"


def test_runtime_settings_need_no_restart(apply, redis, started):
    before = started(MAIN)
    instances = [{"name": "main", "tls_port": 6390, "maxmemory_mb": 300}]
    assert apply("redis", redis_instances=instances).changed == 1
    assert redis("CONFIG", "GET", "maxmemory").splitlines()[1] == str(300 << 20)
    assert started(MAIN) == before
    assert apply("redis").changed == 1
    assert redis("CONFIG", "GET", "maxmemory").splitlines()[1] == str(256 << 20)


def test_manual_changes_are_reverted(apply, redis, started):
    before = started(MAIN)
    redis("CONFIG", "SET", "maxmemory", "1gb")
    redis("ACL", "SETUSER", "intruder", "on", ">x", "~*", "+@all")
    assert apply("redis").changed == 1
    assert redis("CONFIG", "GET", "maxmemory").splitlines()[1] == str(256 << 20)
    assert "intruder" not in redis("ACL", "USERS").split()
    assert started(MAIN) == before


def test_a_new_password_of_the_application_needs_no_restart_and_leaks_nowhere(host, apply, redis, started):
    before, new = started(MAIN), "redis-rotated-Tg6Xs1"
    try:
        done = apply("redis", "-vvv", "--diff", redis_password=new)
        assert done.changed == 1
        assert as_application(redis, "PING", password=new) == "PONG"
        assert "NOAUTH" in as_application(redis, "PING")
        assert started(MAIN) == before
        assert apply("redis", redis_password=new).changed == 0
        for secret in (new, PASSWORD, ADMIN, HEALTH):
            assert secret not in done.text
        assert new not in host.check_output("journalctl --no-pager --output=cat")
    finally:
        apply("redis")


def test_a_script_that_never_ends_does_not_prevent_a_stop(host):
    for unit in (MAIN, CACHE):
        assert host.check_output("systemctl show -P TimeoutStopUSec %s", unit) == "1min 30s"
