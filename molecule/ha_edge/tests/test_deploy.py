"""Deploys to an installation whose primary and address are elsewhere than at first."""

import time

from redundancy import Clients
from support import docker, wait_for


def test_a_run_after_a_failover_changes_nothing(topology, members):
    """The primary and the address are where the engines left them; the run agrees, in check mode, too."""
    primary = members.primary()
    primary.shell("systemctl stop redis-server")
    wait_for(lambda: members.primaries() and members.primary() is not primary, 60, "another primary")
    primary.shell("systemctl start redis-server")
    wait_for(members.complete, 60)
    # The workers find the new primary within seconds; until then a run would replace them.
    assert topology.b.live_version(90) and topology.c.live_version(90)
    now = members.primary()
    for mode in (["--check"], []):
        run = topology.b.run("deploy.yml", *mode, timeout=1800)
        assert (run.code, run.changed) == (0, 0), run.output[-6000:]
    assert members.primary() is now


def test_the_host_of_the_primary_is_patched(topology, members, capsys):
    """An application host with the primary of Redis is rebooted: requests wait for the next primary, and none fails."""
    host = topology.c
    if members.primary() is not host:
        other = next(one for one in topology.all if one not in (host, members.primary()))
        other.shell("systemctl stop redis-server")
        time.sleep(6)
        topology.a.shell("shiftmaster-redis-failover")
        other.shell("systemctl start redis-server")
        wait_for(members.complete, 60)
    assert members.primary() is host
    docker("update", "--restart=always", host.host)
    try:
        with Clients(8) as clients:
            run = topology.b.run("playbooks/patch.yml", "--limit", host.host, timeout=1200, reboot="always")
    finally:
        docker("update", "--restart=no", host.host)
    assert run.code == 0, run.output[-6000:]
    assert members.primary() is not host
    with capsys.disabled():
        print(
            f"\n  patched: {clients.requests} GETs, {len(clients.failed)} failed, the slowest {clients.slowest:.1f} s"
        )
    assert clients.failed == [] and clients.requests > 300
