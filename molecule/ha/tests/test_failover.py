"""The primary is lost while a run is at work: one version is live, the next run completes it, no row is lost."""

from __future__ import annotations

import time

import ansible.module_utils
from database_cluster import CTL, Writer
from support import POINTS, ROOT, SCENARIO_HOME, docker, wait_for

ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from ansible.module_utils.shiftmaster.host import points  # noqa: E402 - found where the line above leads.

LOG = SCENARIO_HOME / "failover.log"
# Of a deploy that changes the schema; a run reaches the two others where it goes back, or has a release to remove.
OF_A_DEPLOY = [point for point in points.POINTS if point not in ("revert", "prune")]
# A run ends at a point where the loss of the primary ends it, and the next one goes on with those after it.
RUNS = 8


def lose_primary(members) -> None:
    """Cut the database of the primary off until another member is the primary; its application goes on."""
    primary = wait_for(members.primaries, 90, "a primary")[0]
    others = [host for host in members.hosts if host is not primary]
    members.cut(primary, *others, ports="2379, 2380, 5432, 8008")
    wait_for(lambda: members.primaries(*others), 90, "another primary")
    members.heal()


def reached(host) -> str:
    """The point at which a run waits, or nothing."""
    names = host.shell(f"ls {POINTS} 2>/dev/null", check=False).split()
    return next((name.removesuffix(".reached") for name in names if name.endswith(".reached")), "")


def live(members) -> set:
    return {host.live_version(90) for host in members.hosts}


def test_the_primary_is_lost_at_each_point_of_a_deploy(members, by_ssh, capsys):
    first, left, ended = members.hosts[0], list(OF_A_DEPLOY), []
    before = live(members)
    assert len(before) == 1 and before != {"2.1.1"}
    writer = Writer(members, first, "points", 7200)
    try:
        while left and len(ended) < RUNS:
            for point in left:
                first.hold(point)
            process = by_ssh.start("deploy.yml", LOG, "--tags", "release", shiftmaster_version="2.1.1")
            here = []
            while process.poll() is None:
                point = wait_for(lambda run=process: reached(first) or run.poll() is not None, 900)
                if point is not True:
                    here.append(point)
                    left.remove(point)
                    lose_primary(members)
                    first.shell(f"rm -f {POINTS}/{point} {POINTS}/{point}.reached")
            code = process.wait(900)
            first.release_hold()
            versions = live(members)
            ended.append((code, here, versions))
            with capsys.disabled():
                print(f"\n  {', '.join(here)}: {code}, {versions}")
            assert here, LOG.read_text()[-6000:]
            # One version, on all hosts; the new one where the run has ended well.
            assert versions == ({"2.1.1"} if code == 0 else before), LOG.read_text()[-6000:]
    finally:
        first.release_hold()
        writer.end()
    result = writer.result()
    lost = writer.lost(result)
    with capsys.disabled():
        print(f"\n  {len(OF_A_DEPLOY) - len(left)} points, {len(lost)} of {len(result['acknowledged'])} lost")
    assert lost == [] and left == []
    run = by_ssh.deploy("2.1.1")
    assert run.code == 0, run.output[-6000:]
    again = by_ssh.deploy("2.1.1")
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]
    assert live(members) == {"2.1.1"}
    indexes = members.sql("SELECT count(*) FROM pg_index WHERE NOT indisvalid", database="shiftmaster")
    assert indexes.strip() == "0"


def test_the_primary_is_lost_while_secrets_are_rotated(members, capsys):
    """Three times; the next run completes what the first one has not, and the application has the new secrets."""
    first = members.hosts[0]
    first.vault.renew()
    settings = {"shiftmaster_watch_seconds": 3}
    writer = Writer(members, first, "rotated", 3600)
    process = first.start("playbooks/rotate.yml", LOG, **settings)
    for _loss in range(3):
        time.sleep(60)
        if process.poll() is None:
            lose_primary(members)
    code = process.wait(1800)
    versions = live(members)
    writer.end()
    result = writer.result()
    lost = writer.lost(result)
    with capsys.disabled():
        print(f"\n  rotation: {code}, {versions}, {len(lost)} of {len(result['acknowledged'])} lost")
    assert lost == [] and len(versions) == 1, LOG.read_text()[-6000:]
    run = first.run("playbooks/rotate.yml", timeout=2400, **settings)
    assert run.code == 0, run.output[-6000:]
    again = first.run("playbooks/rotate.yml", timeout=2400, **settings)
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]
    assert live(members) == versions


def test_a_paused_cluster_is_not_patched(members):
    primary, standby = members.primary(), members.standbys()[0]
    primary.shell(f"{CTL} pause --wait")
    try:
        run = primary.run("playbooks/patch.yml", "--limit", standby.host, timeout=900)
    finally:
        primary.shell(f"{CTL} resume --wait")
    assert run.code == 2 and run.prints(f"{CTL} resume"), run.output[-4000:]
    # No package was upgraded.
    assert "Patch | Upgrade the packages" not in run.output


def test_the_primary_is_lost_while_hosts_are_patched(members, capsys):
    """Each time one of two hosts reboots; where that ends the run, the next one patches both."""
    stays, *others = members.hosts
    names = [host.host for host in others]

    def boots() -> list:
        return [docker("inspect", "--format", "{{.State.StartedAt}}", name) for name in names]

    docker("update", "--restart=always", *names)
    writer = Writer(members, stays, "patched", 3600)
    try:
        process = stays.start("playbooks/patch.yml", LOG, "--limit", ",".join(names), reboot="always")
        losses = 0
        for _host in names:
            before = boots()
            wait_for(lambda seen=before: process.poll() is not None or boots() != seen, 900, "a reboot")
            if process.poll() is None:
                lose_primary(members)
                losses += 1
        code = process.wait(1800)
        output = LOG.read_text()
        members.heal()
        run = stays.run("playbooks/patch.yml", "--limit", ",".join(names), timeout=1800, reboot="always")
    finally:
        docker("update", "--restart=no", *names)
        writer.end()
    result = writer.result()
    members.heal()
    lost = writer.lost(result)
    with capsys.disabled():
        print(f"\n  patch: {losses} losses, {code}, {len(lost)} of {len(result['acknowledged'])} lost")
    assert losses and lost == [] and len(result["acknowledged"]) > 100, output[-6000:]
    assert run.code == 0, run.output[-6000:]
    assert live(members) == {stays.live_version(60)}
    again = stays.run("playbooks/patch.yml", timeout=1800, reboot="needed")
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]
