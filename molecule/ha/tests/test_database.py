"""A cluster of PostgreSQL: its members are lost, crash and are cut off; what is acknowledged and what is not."""

import json
import os
import subprocess
import time
from statistics import median

import pytest
from database_cluster import CTL, ETCD, Writer
from support import BROWSER, docker, load, wait_for

# `make bench` has 50.
ROUNDS = int(os.environ.get("ROUNDS", "3"))


@pytest.fixture(scope="module")
def gaps() -> list:
    """Seconds without writes, of each round."""
    return []


def report(capsys, text: str) -> None:
    with capsys.disabled():
        print(f"\n  {text}")


def outcome(capsys, what, writer) -> dict:
    result = writer.result()
    writer.members.heal()
    lost = writer.lost(result)
    report(capsys, f"{what}: {result['gap']:.1f} s without writes, {len(lost)} of {len(result['acknowledged'])} lost")
    assert lost == [] and len(result["acknowledged"]) > 100, result["errors"]
    return result


def test_only_members_with_a_certificate_change_something(members):
    primary, standby = members.primary(), members.standbys()[0]
    status, body = members.api(standby, "/config")
    assert status == 200 and json.loads(body)["synchronous_mode_strict"] is True
    status, body = members.api(primary, "/switchover", "POST")
    assert status == 403, (status, body)
    for port in (2379, 2380):
        program = (
            f"import ssl, urllib.request as u; c = ssl.create_default_context(cafile='{ETCD}/ca.crt')\n"
            f"try: print(u.urlopen('https://localhost:{port}/version', timeout=5, context=c).status)\n"
            "except OSError as e: print(e)\n"
        )
        found = standby.shell("python3 -", stdin=program)
        assert "certificate" in found or "alert" in found.lower(), found


def test_the_leader_of_etcd_is_not_on_the_host_of_the_primary(members):
    def apart():
        return members.etcd_leader() not in (None, members.primary())

    wait_for(apart, 90, "the leader of etcd elsewhere")


def test_a_switchover(members, capsys):
    primary, standby = members.primary(), members.standbys()[0]
    writer = Writer(members, standby, "switchover", 30)
    time.sleep(3)
    primary.shell(f"{CTL} switchover --force --leader {primary.host} --candidate {wanted(members)}")
    outcome(capsys, "switchover", writer)
    assert members.primary() is not primary


def wanted(members) -> str:
    """The synchronous standby."""
    return next(host.host for host in members.hosts if members.state(host).get("sync_standby"))


def test_postgresql_crashes_on_the_primary(members, capsys):
    primary = members.primary()
    writer = Writer(members, members.standbys()[0], "crash", 40)
    time.sleep(3)
    primary.shell("kill -9 $(head -n 1 /var/lib/postgresql/17/main/postmaster.pid)")
    outcome(capsys, "PostgreSQL killed", writer)


def test_the_synchronous_standby_is_lost(members, capsys):
    lost = next(host for host in members.hosts if host.host == wanted(members))
    writer = Writer(members, members.primary(), "standby", 40)
    time.sleep(3)
    docker("kill", lost.host)
    outcome(capsys, "synchronous standby lost", writer)


@pytest.mark.parametrize("attempt", range(1, 1 + ROUNDS))
def test_the_host_of_the_primary_is_lost(members, capsys, gaps, attempt):
    primary = members.primary()
    wait_for(lambda: members.etcd_leader() not in (None, primary), 90, "the leader of etcd elsewhere")
    writer = Writer(members, members.standbys()[0], f"host{attempt}", 120)
    time.sleep(5)
    docker("kill", primary.host)
    others = [host for host in members.hosts if host is not primary]
    wait_for(lambda: members.primaries(*others), 60, "another primary")
    (host,) = members.primaries(*others)
    rows = f"SELECT count(*) FROM public.ha_rows WHERE writer = '{writer.name}'"
    before = int(members.sql(rows, host, "shiftmaster"))
    wait_for(lambda: int(members.sql(rows, host, "shiftmaster")) > before, 60, "writes")
    writer.end()
    result = outcome(capsys, f"host of the primary lost ({attempt})", writer)
    assert members.primary() is not primary
    gaps.append(result["gap"])
    if attempt == ROUNDS:
        report(capsys, f"{len(gaps)} of {ROUNDS} rounds: {min(gaps):.1f}, {median(gaps):.1f}, {max(gaps):.1f} s")


def test_the_primary_is_cut_off(members, capsys):
    """A client that reaches the former primary alone is acknowledged nothing once there is another primary."""
    primary, standbys = members.primary(), members.standbys()
    pinned = Writer(members, primary, "pinned", 90, pinned=True)
    writer = Writer(members, standbys[0], "cut", 80)
    time.sleep(5)
    members.cut(primary, *standbys)
    cut = time.time()
    result, alone = writer.result(), pinned.result()
    members.heal()
    first = min(at for _number, at in result["acknowledged"] if at > result["gap_at"] + 0.001)
    late = [number for number, at in alone["acknowledged"] if at > first]
    lost = writer.lost(result) + pinned.lost(alone)
    last = max(at for _number, at in alone["acknowledged"]) - cut
    report(
        capsys,
        f"primary cut off: {result['gap']:.1f} s without writes, {len(lost)} lost; by the former primary"
        f" {len(late)} acknowledged after the new one wrote, the last one {last:.1f} s after the cut",
    )
    assert lost == [] and late == [] and first > cut
    assert members.primary() is not primary


def test_without_a_majority_of_etcd_nothing_is_lost(members, capsys):
    """Failsafe mode: the primary goes on while it reaches every member."""
    stopped = members.standbys()
    writer = Writer(members, members.primary(), "etcd", 45)
    time.sleep(3)
    for host in stopped:
        host.shell("systemctl stop etcd")
    time.sleep(20)
    for host in stopped:
        host.shell("systemctl start --no-block etcd")
    outcome(capsys, "etcd without a majority", writer)


def test_two_of_three_are_lost_and_nothing_is_acknowledged(members, capsys):
    primary, standbys = members.primary(), members.standbys()
    for host in standbys:
        docker("kill", host.host)
    time.sleep(5)
    alone = Writer(members, primary, "minority", 40, pinned=True).result()
    members.heal()
    report(capsys, f"two of three lost: {len(alone['acknowledged'])} acknowledged")
    assert alone["acknowledged"] == [], alone["errors"]


def test_the_application_goes_on_when_the_host_of_the_primary_is_lost(members, capsys):
    """Its pages query the database, which libpq finds on another host."""
    first = members.hosts[0]
    # The first host has the only Redis of this scenario.
    while members.primary() is first:
        first.shell(f"{CTL} switchover --force --leader {first.host}")
        members.heal()
    primary = members.primary()
    witness = next(host for host in members.standbys() if host is not first)
    program = (
        "import json, ssl, time, urllib.request as u\n"
        "context, begin, good, longest, now = ssl._create_unverified_context(), time.time(), time.time(), 0, 0\n"
        "while time.time() < begin + 75:\n"
        "    try:\n"
        "        request = u.Request('https://localhost/health/', headers={'Host': 'localhost'})\n"
        "        body = json.load(u.urlopen(request, timeout=5, context=context))\n"
        "        if body['checks']['database']['status'] == 'healthy':\n"
        "            longest, good = max(longest, time.time() - good), time.time()\n"
        "    except (OSError, ValueError, KeyError):\n"
        "        pass\n"
        "    time.sleep(0.3)\n"
        "print(json.dumps([longest, time.time() - good]))\n"
    )
    process = subprocess.Popen(
        ["docker", "exec", "-i", witness.host, "python3", "-c", program], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    time.sleep(5)
    docker("kill", primary.host)
    longest, since = json.loads(process.communicate(timeout=200)[0])
    report(capsys, f"application without its database: {longest:.1f} s")
    assert since < 10, "it has not come back"


def test_the_data_of_etcd_are_lost_on_every_host(members, capsys):
    """As the guide has it. Patroni rejects an etcd that has begun again until it is restarted: the primary's first."""
    first, primary, standbys = members.hosts[0], members.primary(), members.standbys()
    writer = Writer(members, first, "etcd-data", 1500)
    for host in members.hosts:
        host.shell("systemctl stop etcd; rm -r /var/lib/etcd/shiftmaster /etc/ansible/facts.d/shiftmaster_etcd.fact")
    run = first.run("deploy.yml", "--tags", "etcd", timeout=1200)
    assert run.code == 0, run.output[-6000:]
    responses = [host.shell("runuser -u postgres -- psql -XAtc 'SELECT pg_is_in_recovery()'") for host in members.hosts]
    assert responses[members.hosts.index(primary)].strip() == "f" and "".join(responses).count("f") == 1
    primary.shell("systemctl restart patroni@17-main")
    wait_for(lambda: members.state(primary).get("role") == "primary", 120, "the primary with its lease")
    for host in standbys:
        host.shell("systemctl restart patroni@17-main")
    wait_for(members.complete, 240, "a primary that two standbys follow")
    writer.end()
    outcome(capsys, "etcd without its data", writer)
    assert members.primary() is primary
    run = first.run("deploy.yml", "--tags", "base,tls,database", timeout=1200)
    assert run.code == 0, run.output[-6000:]
    again = first.run("deploy.yml", "--tags", "base,tls,database", timeout=900)
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]


def test_the_password_of_the_standbys_is_changed(members, capsys):
    """While the cluster is paused, which the run does not end; a standby that starts again uses the new one."""
    first, standby = members.hosts[0], members.standbys()[0]
    first.shell(f"{CTL} pause --wait")
    try:
        writer = Writer(members, first, "password", 900)
        changed = {"vault_postgres_replication_password": "another" * 5}
        run = first.run("deploy.yml", "--tags", "database", timeout=1200, **changed)
        writer.end()
        assert run.code == 0, run.output[-5000:]
        again = first.run("deploy.yml", "--tags", "database", timeout=900, **changed)
        assert (again.code, again.changed) == (0, 0), again.output[-4000:]
        assert "Maintenance mode: on" in first.shell(f"{CTL} list")
    finally:
        first.shell(f"{CTL} resume --wait")
    result = writer.result()
    report(capsys, f"a new password of the standbys: {result['gap']:.1f} s without writes")
    assert writer.lost(result) == [] and result["gap"] < 5
    standby.shell("systemctl restart patroni@17-main")
    wait_for(members.complete, 240, "a primary that two standbys follow")
    assert first.run("deploy.yml", "--tags", "database", timeout=1200).code == 0


def test_a_version_is_deployed_while_a_host_is_lost(members, by_ssh):
    """Not the first one, which holds the lock; it gets the version when it is back."""
    lost = next(host for host in members.standbys() if host is not members.hosts[0])
    docker("kill", lost.host)
    run = by_ssh.deploy("2.1.0")
    # The option is a hint of the callback `phases`, which tests do not use.
    assert run.code == 4 and run.changed == 0, run.output[-4000:]
    assert by_ssh.live_version(60) == "2.0.0"
    run = by_ssh.deploy("2.1.0", "--limit", f"!{lost.host}", timeout=1800)
    assert run.code == 0, run.output[-6000:]
    assert [host.live_version(60) for host in members.hosts if host is not lost] == ["2.1.0"] * 2
    members.heal()
    run = by_ssh.run("deploy.yml", timeout=2400, shiftmaster_version="2.1.0")
    assert run.code == 0, run.output[-6000:]
    assert lost.live_version(60) == "2.1.0"
    again = by_ssh.run("deploy.yml", timeout=1800, shiftmaster_version="2.1.0")
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]


def test_hosts_are_patched_and_rebooted_one_after_the_other(members, capsys):
    """The primary and a standby; the first host, which has the only Redis, writes and serves meanwhile."""
    stays, *others = members.hosts
    if members.primary() is stays:
        stays.shell(f"{CTL} switchover --force --leader {stays.host} --candidate {wanted(members)}")
        wait_for(members.complete, 120, "a primary that two standbys follow")
    before = [host.shell("cut -d ' ' -f 22 /proc/1/stat") for host in others]
    names = [host.host for host in members.hosts]
    docker("update", "--restart=always", *names)
    try:
        stays.manage("seed_demo")
        writer = Writer(members, stays, "patch", 1500)
        # Requests wait for 40 s at most, which no user takes for an error; on a busy machine they do.
        waits = ("--timeout", "45")
        with load(stays, "--clients", "4", "--think-seconds", "0.5", *waits, BROWSER, seconds=1500) as traffic:
            run = members.hosts[0].run(
                "playbooks/patch.yml", "--limit", ",".join(host.host for host in others), timeout=1800, reboot="always"
            )
    finally:
        docker("update", "--restart=no", *names)
        writer.end()
    result = outcome(capsys, "patch with reboots", writer)
    report(capsys, f"{traffic.summary['requests']} requests, {traffic.summary['failed']} failed")
    assert run.code == 0, run.output[-6000:]
    after = [host.shell("cut -d ' ' -f 22 /proc/1/stat") for host in others]
    assert not [one for one, other in zip(before, after, strict=True) if one == other]
    assert result["gap"] <= 5
    # Requests wait while there is no primary.
    assert traffic.summary["failed"] == 0, traffic.summary
    assert traffic.summary["writes"]["lost_count"] == 0


def test_every_secret_is_rotated(members, capsys):
    """Passwords, the key of the sessions, and the certificates, which etcd and Patroni use, too."""
    first, shown = members.hosts[0], "</dev/null 2>/dev/null | openssl x509 -noout -serial"
    client = "-CAfile /etc/ssl/shiftmaster/etcd/ca.crt"
    services = [f"-connect 127.0.0.1:{port} {client}" for port in (2379, 2380, 8008)] + ["-connect 127.0.0.1:443"]

    def serials() -> list:
        return [host.shell(f"openssl s_client {service} {shown}") for host in members.hosts for service in services]

    old, before = serials(), time.strftime("%Y%m%d%H%M%SZ", time.gmtime())
    first.vault.renew()
    time.sleep(1)
    settings = {"certificates_before": before, "shiftmaster_watch_seconds": 3, "timeout": 2400}
    writer = Writer(members, first, "rotation", 2400)
    with load(first, "--clients", "4", "--think-seconds", "0.5", BROWSER, seconds=2400) as traffic:
        run = first.run("playbooks/rotate.yml", **settings)
    writer.end()
    result = outcome(capsys, "rotation", writer)
    assert run.code == 0, run.output[-6000:]
    report(capsys, f"rotation: {traffic.summary['requests']} requests, {traffic.summary['failed']} failed")
    traffic.assert_flawless()
    assert result["gap"] <= 5
    assert not [one for one, other in zip(old, serials(), strict=True) if one == other]
    again = first.run("playbooks/rotate.yml", **settings)
    assert (again.code, again.changed) == (0, 0), again.output[-6000:]
    # Each member restarts with what it has now.
    for host in members.hosts:
        host.shell("systemctl restart etcd")
        members.heal()
