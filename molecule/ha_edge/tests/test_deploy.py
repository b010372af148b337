"""Deploys to an installation whose primary and address are elsewhere than at first."""

import shutil
import time
from pathlib import Path

import pytest
import support
from redundancy import Clients
from support import ROOT, Operations, docker, wait_for

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"


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


@pytest.fixture
def by_ssh(topology, members):
    """The application host c, whose playbooks reach all hosts by ssh."""
    directory = ROOT / ".cache/ha_edge/inventory"
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(INVENTORY / "hosts.yml", directory)
    support.by_ssh(directory, topology.all)
    return Operations(directory, topology.c.host)


def test_a_version_is_deployed_while_the_first_application_host_is_lost(topology, by_ssh):
    """The other one holds the lock, runs the migrations and the scheduler; the first one follows on its return."""
    beats = "pgrep -fc '^[^ ]+ [^ ]+/[c]elery .* beat ' || true"
    docker("kill", topology.b.host)
    run = by_ssh.deploy("2.1.0", "--limit", f"!{topology.b.host}", timeout=1800)
    assert run.code == 0, run.output[-6000:]
    assert topology.c.live_version(60) == "2.1.0"
    wait_for(lambda: int(topology.c.shell(beats)) == 1, 120, "the scheduler of the other host")
    support.started(topology.b)
    run = by_ssh.run("deploy.yml", timeout=2400, shiftmaster_version="2.1.0")
    assert run.code == 0, run.output[-6000:]
    assert [host.live_version(60) for host in topology.apps] == ["2.1.0"] * 2
    assert sum(int(host.shell(beats)) for host in topology.apps) == 1
    again = by_ssh.run("deploy.yml", timeout=1800, shiftmaster_version="2.1.0")
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]
