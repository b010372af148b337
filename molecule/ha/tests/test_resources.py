"""A member's disk is full, or its clock is moved: no acknowledged row is lost, and writes go on elsewhere."""

from __future__ import annotations

import contextlib
import subprocess
import time

import pytest
from database_cluster import CTL, ETCD, Writer
from support import wait_for

WAL, ETCD_DATA = "/var/lib/postgresql/17/main/pg_wal", "/var/lib/etcd"
PATRONI_UNIT = "patroni@17-main.service"
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
# Values of 1 MB make the database of etcd grow; each member stores them.
GROW = f"""
import base64, json, ssl, urllib.request as u
context = ssl.create_default_context(cafile='{ETCD}/ca.crt')
context.load_cert_chain('{ETCD}/host.crt', '{ETCD}/host.key')
def call(path, **body):
    u.urlopen(u.Request('https://localhost:2379/v3/kv/' + path, json.dumps(body).encode()), timeout=10, context=context)
key = lambda text: base64.b64encode(text.encode()).decode()
try:
    for number in range(150):
        call('put', key=key('/test/%d' % number), value=base64.b64encode(bytes(1000000)).decode())
finally:
    call('deleterange', key=key('/test/'), range_end=key('/test0'))
"""


@contextlib.contextmanager
def own_disk(host, directory: str, unit: str, megabytes: int):
    """The directory is on a file system of its own meanwhile, with some megabytes left; what is written is kept."""
    used = int(host.shell(f"du -sm {directory}").split()[0])
    owner = host.shell(f"stat -c %U:%G {directory}").strip()
    host.shell(
        f"systemctl stop {unit}; rm -rf /root/kept; cp -a {directory} /root/kept;"
        f" mount -t tmpfs -o size={used + megabytes}m,mode=700 tmpfs {directory}; chown {owner} {directory};"
        f" cp -a /root/kept/. {directory}/; systemctl start {unit}"
    )
    try:
        yield
    finally:
        host.shell(
            f"rm -f {directory}/filler; systemctl stop {unit}; rm -rf /root/kept; cp -a {directory} /root/kept;"
            f" umount {directory}; rm -rf {directory}; cp -a /root/kept {directory}; systemctl start {unit}"
        )


def fill(host, directory: str) -> None:
    """Leave nothing of the file system of the directory."""
    host.shell(f"dd if=/dev/zero of={directory}/filler bs=1M 2>/dev/null; df {directory}", check=False)


def confirm(members, host) -> None:
    """Make the host the synchronous standby: Patroni keeps the one that it has as long as that follows."""
    if not members.state(host).get("sync_standby"):
        other = next(one for one in members.standbys() if one is not host)
        other.shell(f"systemctl stop {PATRONI_UNIT}")
        wait_for(lambda: members.state(host).get("sync_standby"), 60, "the host as the synchronous standby")
        other.shell(f"systemctl start {PATRONI_UNIT}")
        wait_for(members.complete, 240, "a primary that two standbys follow")


def lead(members, host) -> None:
    """Make the host the primary, which only a synchronous standby can become."""
    if members.primary() is not host:
        confirm(members, host)
        host.shell(f"{CTL} switchover --force --leader {members.primary().host} --candidate {host.host}")
        wait_for(members.complete, 240, "a primary that two standbys follow")
    assert members.primary() is host


def outcome(capsys, what: str, members, writer, heal: str = "") -> dict:
    """The primary at the end of the writer's time; then the hosts are healed and the rows counted."""
    result = writer.result()
    (primary,) = members.primaries()
    if heal:
        for host in members.hosts:
            host.shell(heal)
    members.heal()
    lost = writer.lost(result)
    with capsys.disabled():
        print(f"\n  {what}: {result['gap']:.1f} s without writes, {len(lost)} of {len(result['acknowledged'])} lost")
    assert lost == [] and len(result["acknowledged"]) > 100, result["errors"]
    return {**result, "primary": primary}


@pytest.mark.parametrize("role", ["primary", "synchronous standby"])
def test_the_disk_of_the_wal_is_full(members, capsys, role):
    """The primary gives up its role; the place of a synchronous standby is taken by the other one."""
    host, other = members.standbys()
    # What the standbys may still need is kept there (wal_keep_size), and grows for a while.
    with own_disk(host, WAL, PATRONI_UNIT, 1500):
        wait_for(members.complete, 240, "a primary that two standbys follow")
        if role == "primary":
            lead(members, host)
        else:
            confirm(members, host)
        writer = Writer(members, other, f"wal-{role.split()[0]}", 90)
        time.sleep(3)
        fill(host, WAL)
        # More segments than those that are used again; the session fails with its server.
        segment = "SELECT pg_logical_emit_message(false, 'fill', repeat('x', 4000000)); SELECT pg_switch_wal();"
        with contextlib.suppress(AssertionError, ValueError, subprocess.TimeoutExpired):
            members.sql(150 * segment, timeout=60)
        result = outcome(capsys, f"no space for the WAL of the {role}", members, writer, f"rm -f {WAL}/filler")
        assert (result["primary"] is host) is False
        assert result["gap"] <= 30


@pytest.mark.parametrize("leader", [True, False], ids=["leader", "follower"])
def test_the_disk_of_etcd_is_full(members, capsys, leader):
    """The other two are a majority; the member returns when there is space."""
    host = members.etcd_leader() if leader else members.primary()
    if not leader:
        assert members.etcd_leader() is not host
    with own_disk(host, ETCD_DATA, "etcd", 40):
        wait_for(members.complete, 120, "a primary that two standbys follow")
        if leader:
            wait_for(lambda: members.etcd_leader() is not None, 60, "a leader of etcd")
        writer = Writer(members, members.standbys()[0], f"etcd-{leader}", 90)
        time.sleep(3)
        fill(host, ETCD_DATA)
        grow = next(one for one in members.hosts if one is not host)
        grow.shell("python3 -", stdin=GROW, check=False, timeout=80)
        ended = host.shell("journalctl -u etcd --since -90s | grep -c 'no space left'; true").strip()
        assert int(ended) > 0, "etcd has not noticed it"
        result = outcome(capsys, "no space for etcd", members, writer, f"rm -f {ETCD_DATA}/filler")
        assert result["gap"] <= 5


def test_the_clock_of_the_primary_is_moved(members, capsys):
    """By an hour, there and back: Patroni's lease counts seconds of etcd. The clock of etcd itself is the machine's."""
    primary, standby = members.primary(), members.standbys()[0]
    drop_in = f"/run/systemd/system/{PATRONI_UNIT}.d"
    primary.shell("apt-get -qy install --no-install-recommends faketime >/dev/null", timeout=300)
    primary.shell(
        f"echo +0 > /etc/clock; mkdir -p {drop_in}; printf '[Service]\nEnvironment=LD_PRELOAD={FAKETIME}"
        f" FAKETIME_TIMESTAMP_FILE=/etc/clock FAKETIME_NO_CACHE=1 DONT_FAKE_MONOTONIC=1\n' > {drop_in}/clock.conf;"
        f" systemctl daemon-reload; systemctl restart {PATRONI_UNIT}"
    )
    try:
        wait_for(members.complete, 240, "a primary that two standbys follow")
        lead(members, primary)
        writer = Writer(members, standby, "clock", 75)
        time.sleep(5)
        primary.shell("echo +3600 > /etc/clock")
        time.sleep(35)
        moved = primary.shell("date -d '+1 hour' '+%Y-%m-%d %H:'").strip()
        ahead = primary.shell(f"journalctl -o cat -u {PATRONI_UNIT} -n 20")
        primary.shell("echo +0 > /etc/clock")
        result = outcome(capsys, "clock moved by an hour and back", members, writer)
    finally:
        primary.shell(f"rm -rf {drop_in}; systemctl daemon-reload; systemctl restart {PATRONI_UNIT}")
    assert moved in ahead, ahead
    assert result["gap"] <= 5
