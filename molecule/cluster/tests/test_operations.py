"""Secrets of the entire installation are rotated, and its hosts patched and rebooted, while users work."""

import hashlib
import re
import subprocess
import time

from patches import offered, outdated, publish, version
from support import BROWSER, SCENARIO_HOME, Operations, load

LOG = SCENARIO_HOME / "operations.log"
SERVERS = "/etc/nginx/shiftmaster-servers.conf"
TRAFFIC = ("--clients", "16", "--think-seconds", "0.5", BROWSER)
DATABASE, REDIS = "vault_shiftmaster_database_password", "vault_shiftmaster_redis_password"


def certificates(topology) -> list:
    """The serial numbers of the certificates of load balancer, application hosts, database and cache."""
    return [
        host.shell(f"openssl s_client {how} </dev/null 2>/dev/null | openssl x509 -noout -serial")
        for host, how in (
            (topology.edge, "-connect 127.0.0.1:443"),
            (topology.edge, "-connect 172.30.77.11:8443"),
            (topology.edge, "-connect 172.30.77.12:8443"),
            (topology.app1, "-starttls postgres -connect 172.30.77.21:5432"),
            (topology.app1, "-connect 172.30.77.22:6379"),
        )
    ]


def database_accepts(topology, password: str) -> bool:
    user = "shiftmaster_" + hashlib.sha256(password.encode()).hexdigest()[:3]
    response = topology.app1.shell(
        "read -r PGPASSWORD; export PGPASSWORD; psql -qtA -w 'host=172.30.77.21 sslmode=verify-full "
        f"sslrootcert=/etc/ssl/shiftmaster/ca.crt dbname=shiftmaster user={user}' -c 'SELECT current_user' 2>&1",
        check=False, stdin=password + "\n",
    )  # fmt: skip
    # pg_hba.conf names the logins: an earlier one does not even get as far as its password.
    assert response == "shiftmaster\n" or re.search("password authentication failed|no pg_hba.conf entry", response), (
        response
    )
    return response == "shiftmaster\n"


def redis_accepts(topology, password: str) -> bool:
    response = topology.cache.shell(
        "read -r REDISCLI_AUTH; export REDISCLI_AUTH; redis-cli --no-auth-warning --tls --cacert "
        "/etc/ssl/shiftmaster/ca.crt --user shiftmaster PING 2>&1", check=False, stdin=password + "\n",
    )  # fmt: skip
    assert "PONG" in response or "WRONGPASS" in response or "NOAUTH" in response, response
    return "PONG" in response


def report(capsys, what: str, traffic) -> None:
    with capsys.disabled():
        print(f"\n  {what}: {traffic.summary['requests']} requests, {traffic.summary['failed']} failed")


def test_every_secret_is_rotated(topology, capsys):
    old, before = certificates(topology), time.strftime("%Y%m%d%H%M%SZ", time.gmtime())
    topology.vault.renew()
    time.sleep(1)
    settings = {"certificates_before": before, "shiftmaster_watch_seconds": 3}
    with load(topology.edge, *TRAFFIC, seconds=1800) as traffic:
        run = topology.app1.run("playbooks/rotate.yml", timeout=1800, **settings)
    assert run.code == 0, run.output[-6000:]
    report(capsys, "rotation", traffic)
    traffic.assert_flawless()
    assert not [one for one, other in zip(old, certificates(topology), strict=True) if one == other]
    for name, accepts in ((DATABASE, database_accepts), (REDIS, redis_accepts)):
        assert accepts(topology, topology.vault.current[name])
        assert not any(accepts(topology, password) for password in topology.vault.previous[name])
    again = topology.app1.run("playbooks/rotate.yml", timeout=1800, **settings)
    assert (again.code, again.changed) == (0, 0), again.output[-6000:]


def still_outdated(topology) -> list:
    """Without the controller's own connections, which end by themselves."""
    return [outdated(host, "sshd-session", "postgres", "redis-server") - {"sshd-session"} for host in topology.all]


def test_patched_without_an_interruption(topology, capsys):
    for host in topology.all:
        publish(host)
    with load(topology.edge, *TRAFFIC, seconds=1800) as traffic:
        run = topology.app1.run("playbooks/patch.yml", timeout=1800, reboot="never")
    assert run.code == 0, run.output[-6000:]
    report(capsys, "patch", traffic)
    traffic.assert_flawless()
    assert [version(host) for host in topology.all] == [offered(host) for host in topology.all]
    # Services that need an interruption are not restarted, and the run reports them. Nothing else is left.
    assert still_outdated(topology) == [set(), set(), set(), {"postgres"}, {"redis-server"}]
    assert run.prints("wait for a restart, which interrupts: postgresql@", "redis-server.service"), run.output[-4000:]


def restarting(topology, policy: str) -> None:
    """Whether a container that reboots comes again."""
    names = [host.host for host in topology.all]
    subprocess.run(["docker", "update", f"--restart={policy}", *names], check=True, capture_output=True)


def test_a_host_drained_by_an_operator_stays_drained(topology):
    run = topology.app1.run("playbooks/drain.yml", host="cluster-app2", state="out", reason="new memory")
    assert run.code == 0, run.output[-3000:]
    try:
        publish(topology.app2)
        run = topology.app1.run("playbooks/patch.yml", timeout=1800, reboot="never")
        assert run.code == 0, run.output[-6000:]
        assert version(topology.app2) == offered(topology.app2)
        line = topology.edge.shell(f"grep 172.30.77.12 {SERVERS}")
        assert " down; # " in line and "new memory" in line, line
    finally:
        run = topology.app1.run("playbooks/drain.yml", host="cluster-app2", state="in")
    assert run.code == 0 and " down;" not in topology.edge.shell(f"cat {SERVERS}"), run.output[-3000:]


def started(host: Operations) -> str:
    return host.shell("cut -d ' ' -f 22 /proc/1/stat")


def test_application_hosts_reboot_one_after_the_other(topology, capsys):
    """Each is drained meanwhile, and no request fails."""
    before, seen = [started(host) for host in topology.apps], []
    restarting(topology, "always")
    try:
        with load(topology.edge, *TRAFFIC, seconds=1800) as traffic:
            process = topology.app1.start("playbooks/patch.yml", LOG, "--limit", "app", reboot="always")
            running = True
            while running:
                # The last action of the run is seen after its end.
                running = process.poll() is None
                out = re.findall(r"^server (\S+):8443 .* down;", topology.edge.shell(f"cat {SERVERS}"), re.M)
                if seen[-1:] != [out]:
                    seen.append(out)
                time.sleep(0.5)
    finally:
        restarting(topology, "no")
    assert process.returncode == 0, LOG.read_text()[-6000:]
    report(capsys, "reboots", traffic)
    traffic.assert_flawless()
    assert seen == [[], ["172.30.77.11"], [], ["172.30.77.12"], []]
    assert not [
        one for one, other in zip(before, [started(host) for host in topology.apps], strict=True) if one == other
    ]


def test_patches_that_need_an_interruption_run_during_maintenance(topology):
    run = topology.app1.run("playbooks/patch.yml", timeout=1800)
    assert run.code == 0, run.output[-6000:]
    assert run.prints("cluster-db is the only one of its kind", "cluster-cache is the only one of its kind")
    assert not any(still_outdated(topology))
    assert all(host.live_version(10) for host in topology.apps)
    assert topology.edge.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/login/") == "200"
    again = topology.app1.run("playbooks/patch.yml", timeout=1800)
    assert (again.code, again.changed) == (0, 0), again.output[-6000:]
