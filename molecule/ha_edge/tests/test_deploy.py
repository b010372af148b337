"""Deploys to an installation whose primary and address are elsewhere than at first."""

from support import wait_for


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
