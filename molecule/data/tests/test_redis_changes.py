"""Values that Redis rejects or that are reverted, and detected faults; the same code on both releases, so on one."""

from __future__ import annotations

import pytest

testinfra_hosts = ["ansible://data-trixie"]

PASSWORD = "redis-Lc9Yt3"
ADMIN = "admin-Qk7Wd2"
MAIN = "redis-server.service"


def as_application(redis, *words, **more):
    return redis(*words, user="shiftmaster", **{"password": PASSWORD, **more})


def test_startup_settings_restart_redis_with_its_data(apply, redis, started):
    before = started(MAIN)
    as_application(redis, "LPUSH", "waiting", "task")
    instances = [{"name": "main", "tls_port": 6390, "databases": 20}]
    waits = apply("redis", redis_instances=instances, redis_restart=False)
    assert "must be restarted for: databases" in waits.line
    assert started(MAIN) == before
    assert apply("redis", redis_instances=instances).changed == 1
    assert started(MAIN) != before
    assert redis("CONFIG", "GET", "databases").splitlines()[1] == "20"
    assert as_application(redis, "LRANGE", "waiting", "0", "-1") == "task"
    as_application(redis, "DEL", "waiting")
    apply("redis")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"redis_settings": {"no-such-thing": "1"}}, "unknown directive no-such-thing"),
        ({"redis_settings": {"maxmemory-samples": "many"}}, "maxmemory-samples"),
        ({"redis_rules_application": "~* +@nothing"}, "Unknown command or category name in ACL"),
        ({"redis_tls_key_file": "/etc/ssl/private/absent.key"}, "absent.key"),
        ({"redis_tls_key_file": "/etc/ssl/private/internal-ca.key"}, "internal-ca.key"),
    ],
    ids=["name", "value", "rules", "key", "other-key"],
)
def test_a_value_that_redis_rejects_is_named_and_the_old_one_stays(attempt, files, started, redis, variables, words):
    before = files(), started(MAIN)
    done = attempt("redis", **variables)
    assert done.rc != 0 and words in done.line and "nothing was changed" in done.line
    assert (files(), started(MAIN)) == before
    assert as_application(redis, "PING") == "PONG"


def test_an_address_missing_on_the_host_is_reverted(attempt, apply, files, redis):
    before = files()
    instances = [{"name": "main", "tls_port": 6390, "bind": ["192.0.2.77"]}]
    done = attempt("redis", redis_instances=instances, redis_start_timeout_seconds=20)
    assert done.rc != 0 and "back in place and in use" in done.line
    assert files() == before
    assert as_application(redis, "PING") == "PONG"
    assert apply("redis").changed == 0


def test_a_check_before_a_change_shows_it_without_hashes_and_changes_nothing(apply, files, started):
    before = files(), started(MAIN)
    done = apply("redis", "--check", "--diff", redis_maxmemory_mb=128, redis_password="other")
    assert "+maxmemory 128mb" in done.text and "the password of shiftmaster changes" in done.line
    assert not any(len(word) == 65 and word.startswith("#") for word in done.text.split())
    assert (files(), started(MAIN)) == before


def test_a_new_password_of_the_administrator(apply, redis, started):
    before = started(MAIN)
    known = apply("redis", redis_admin_password="admin-second", redis_admin_previous_passwords=[ADMIN])
    assert known.changed == 1
    assert redis("PING", password="admin-second") == "PONG"
    assert started(MAIN) == before
    # Back to the first one, as if the second had not been kept: the instance is restarted.
    assert apply("redis").changed == 1
    assert redis("PING") == "PONG"
    assert started(MAIN) != before


def test_a_renewed_certificate_is_served_without_a_restart(host, apply, started):
    served = "echo | openssl s_client -connect localhost:6390 2>/dev/null | openssl x509 -noout -serial"
    old, before = host.check_output(served), started(MAIN)
    host.check_output("/root/make_certificate")
    assert apply("redis").changed == 1
    assert (
        host.check_output(served) == host.check_output("openssl x509 -noout -serial -in /etc/ssl/certs/host.crt") != old
    )
    assert started(MAIN) == before
    assert apply("redis").changed == 0


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"redis_admin_password": ""}, "redis_admin_password is empty"),
        ({"redis_password": ""}, "a password of redis_users is empty"),
        ({"redis_users": [{"name": "default", "password": "x", "rules": "+@all"}]}, "redis_users holds default"),
        ({"redis_tls_ca_file": ""}, "a TLS port needs"),
    ],
    ids=["administrator", "user", "default", "authority"],
)
def test_bad_input_is_refused_in_a_sentence(converge, files, variables, sentence):
    before = files()
    done = converge("redis", **variables)
    assert done.rc != 0 and sentence in done.line
    assert files() == before


def test_a_check_before_the_certificate_exists_reports_it(apply, files):
    before = files()
    done = apply("redis", "--check", redis_tls_key_file="/etc/ssl/private/later.key")
    assert "/etc/ssl/private/later.key is not there yet" in done.line
    assert files() == before
