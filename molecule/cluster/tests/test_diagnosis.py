"""Two faults at once on two hosts: both roots come before what follows from them; a healthy installation has none."""

from __future__ import annotations

import contextlib
import subprocess

import pytest
from diagnosing import diagnose, diagnose_directly, forget_the_requests, processors_first, recorded
from support import APP, wait_for

CERTIFICATE = "/etc/ssl/certs/shiftmaster.crt"
SMALL = "mkdir -p {0}; mountpoint -q {0} || mount -t tmpfs -o {1} tmpfs {0}; "
HOLD = (
    "runuser -u postgres -- psql -qAtd shiftmaster -c 'CREATE TABLE IF NOT EXISTS held (id int)';"
    " systemd-run --quiet --unit=holder --property=User=postgres"
    " bash -c '(echo \"BEGIN; LOCK TABLE held;\"; sleep 300) | psql -d shiftmaster'; sleep 2;"
    " systemd-run --quiet --unit=waiter --property=User=postgres psql -d shiftmaster -c 'SELECT * FROM held'; sleep 3"
)
SCHEDULER_STAYS = (
    f"since=$(systemctl show -P ActiveEnterTimestampMonotonic shiftmaster-beat@$(basename $(readlink {APP}/active)));"
    " read -r uptime _ < /proc/uptime; [ $((${uptime%.*} - since / 1000000)) -lt 22 ] || echo yes"
)
# Faults: (the rule that names it, what breaks it, what fixes it). {slot} is the live slot.
FAULTS = {
    "database stopped": ("DatabaseStopped", "systemctl stop postgresql", "systemctl start postgresql; sleep 3"),
    "locks": (
        "DatabaseLockHeldByIdle", HOLD,
        "systemctl stop holder waiter; runuser -u postgres -- psql -qAtd shiftmaster -c 'DROP TABLE held'",
    ),
    "database behind a rule": (
        "FirewallRefuses",
        "nft 'add table inet other; add chain inet other input { type filter hook input priority -10; };"
        " add rule inet other input tcp dport 5432 counter drop'",
        "nft delete table inet other",
    ),
    "cache stopped": ("RedisDown", "systemctl stop redis-server", "systemctl start redis-server"),
    "cache frozen": (
        "RedisHangs", "systemctl kill --signal=STOP redis-server", "systemctl kill --signal=CONT redis-server",
    ),
    "log full": (
        "DiskFullByLog",
        SMALL.format("/var/log/small", "size=40m") + "dd if=/dev/zero of=/var/log/small/x.log bs=1M 2>/dev/null; true",
        "umount /var/log/small; rmdir /var/log/small",
    ),
    "disk full": (
        "DiskFull",
        SMALL.format("/mnt/small", "size=40m") + "dd if=/dev/zero of=/mnt/small/data bs=1M 2>/dev/null; true",
        "umount /mnt/small",
    ),
    "inodes gone": (
        "InodesGone",
        SMALL.format("/mnt/inodes", "size=8m,nr_inodes=200")
        + "cd /mnt/inodes; for i in $(seq 300); do touch $i 2>/dev/null; done; true",
        "umount /mnt/inodes",
    ),
    "certificate expired": (
        "CertificateExpired",
        f"cp -p {CERTIFICATE} /root/crt; openssl req -x509 -key /etc/ssl/private/shiftmaster.key -subj /CN=localhost"
        f" -not_before 20250101000000Z -not_after 20250601000000Z -out {CERTIFICATE} 2>/dev/null;"
        " systemctl reload nginx; sleep 1",
        f"cp -p /root/crt {CERTIFICATE}; systemctl reload nginx; sleep 1",
    ),
    "nginx stopped": ("NginxDown", "systemctl stop nginx", "systemctl start nginx"),
    "web processes down": (
        "WebUnitDown", "systemctl stop shiftmaster-web@{slot}", "systemctl start shiftmaster-web@{slot}",
    ),
    "worker dead": (
        "WorkerDown", "systemctl stop shiftmaster-worker@{slot}", "systemctl start shiftmaster-worker@{slot}",
    ),
    "worker frozen": (
        "WorkerFrozen", "systemctl kill --signal=STOP shiftmaster-worker@{slot}",
        "systemctl kill --signal=CONT shiftmaster-worker@{slot}",
    ),
    "static missing": (
        "StaticMissing", f"mv $(readlink -f {APP}/active/release)/static /root/static",
        f"mv /root/static $(readlink -f {APP}/active/release)/static",
    ),
}  # fmt: skip
PAIRS = [
    (("db", "database stopped"), ("app1", "log full")),
    (("cache", "cache stopped"), ("edge", "certificate expired")),
    (("app2", "web processes down"), ("db", "locks")),
    (("app1", "worker dead"), ("edge", "nginx stopped")),
    (("db", "database behind a rule"), ("app2", "worker dead")),
    (("cache", "cache frozen"), ("app1", "static missing")),
    (("db", "database stopped"), ("cache", "disk full")),
    (("app1", "worker frozen"), ("app2", "inodes gone")),
    (("app1", "web processes down"), ("cache", "log full")),
]


@pytest.fixture(scope="module", autouse=True)
def processors_for_all_hosts(topology):
    """Load of other tests on this machine must not be the finding."""
    with contextlib.ExitStack() as stack:
        for host in topology.all:
            stack.enter_context(processors_first(host))
        recorded(topology.app1)
        yield


def findings(topology, look=diagnose_directly) -> tuple:
    """Return (the exit code, the findings, the report)."""
    seen = look(topology.app1)
    assert len(seen.report["hosts"]) == 5
    return seen.code, seen.report["findings"], seen.output


def healthy(topology):
    for host in topology.apps:
        assert host.live_version(120), f"{host.host} does not serve"
        # One that the last fault has ended looks for 20 s as if it ended again and again.
        wait_for(lambda host=host: host.shell(SCHEDULER_STAYS, check=False) == "yes\n", 90, "the scheduler")
    for host in (topology.edge, *topology.apps):
        forget_the_requests(host)
    requested = "curl -sk -o /dev/null -w '%{http_code}' https://localhost/login/"
    wait_for(lambda: topology.edge.shell(requested, check=False) == "200", 60, "the site")


@contextlib.contextmanager
def broken(topology, name: str, fault: str):
    host, (_rule, injure, fix) = getattr(topology, name), FAULTS[fault]
    slot = host.shell(f"basename $(readlink {APP}/active)", check=False).strip() if name.startswith("app") else ""
    host.shell(injure.replace("{slot}", slot), check=False)
    try:
        yield
    finally:
        host.shell(fix.replace("{slot}", slot), check=False)
        host.shell("systemctl reset-failed; true")


@pytest.mark.parametrize("look", [diagnose, diagnose_directly, diagnose_directly])
def test_a_healthy_site_has_no_finding(topology, look):
    healthy(topology)
    code, found, output = findings(topology, look)
    assert (code, [(one["rule"], one["host"]) for one in found]) == (0, []), output[-4000:]


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda fault: f"{fault[1].replace(' ', '-')}-on-{fault[0]}")
def test_both_causes_come_before_their_symptoms(topology, first, second):
    healthy(topology)
    with broken(topology, *first), broken(topology, *second):
        _code, found, output = findings(topology, diagnose if (first, second) == PAIRS[0] else diagnose_directly)
    wanted = {(FAULTS[fault][0], getattr(topology, name).host) for name, fault in (first, second)}
    assert {(one["rule"], one["host"]) for one in found[:2]} == wanted, (
        [(one["rule"], one["host"], one["root"]) for one in found], output[-4000:],
    )  # fmt: skip
    # No other finding is reported next to them.
    # A fault makes a table, which stays a note.
    roots = {(one["rule"], one["host"]) for one in found if one["root"]}
    assert roots - {("DatabaseSchemaChanged", topology.db.host)} == wanted


def test_an_unreachable_host_and_a_full_disk(topology):
    healthy(topology)
    with broken(topology, "app1", "inodes gone"):
        subprocess.run(["docker", "pause", topology.db.host], check=True, capture_output=True, timeout=60)
        try:
            code, found, output = findings(topology, diagnose)
        finally:
            subprocess.run(["docker", "unpause", topology.db.host], check=True, capture_output=True, timeout=60)
    wanted = {("HostUnreachable", topology.db.host), ("InodesGone", topology.app1.host)}
    assert {(one["rule"], one["host"]) for one in found[:2]} == wanted, output[-4000:]
    # ansible-playbook itself reports that a host could not be reached.
    assert code == 4
