"""A host moves to another one and back, as the guide describes it. Each test goes on from the one before."""

from __future__ import annotations

import subprocess

import pytest
from support import SCENARIO_HOME, PageTime, docker, kill_run, load

LOG = SCENARIO_HOME / "move.log"
# With both hosts on two cores that other steps use, too.
PAGE_SECONDS = 60
# A few users: both hosts have a third of a processor each.
LOAD = ("--clients", "2", "--rate", "3")
PLAN = "/var/www/shiftmaster/shared/media/a/plan.txt"


def serves(one, other, version="2.0.0"):
    """Check that one host serves this version, and nothing of the other one writes."""
    assert one.live_version(120) == version and not one.page()
    assert one.primary() and one.application() == ["3", "enabled"]
    assert not other.primary() and other.application() == ["0", "disabled"]


def test_what_cannot_be_done_is_one_list(old, new):
    run = old.move("switch", to=new.host, confirm=new.host)
    assert run.code == 2 and run.prints(
        "Nothing was changed", "has no replica", f"No move to {new.host} is prepared"
    ), run.output[-3000:]
    run = old.move("prepare", to="nosuch-host")
    assert run.code == 2 and run.prints("nosuch-host cannot be reached"), run.output[-3000:]
    run = old.move("prepare", to="move-bookworm")
    assert run.code == 2 and run.prints("has PostgreSQL 17, move-bookworm would get 15"), run.output[-3000:]


def test_the_plan_changes_nothing(old, new):
    run = old.move("prepare", to=new.host)
    assert (run.code, run.changed) == (0, 0) and run.prints("Nothing was changed. To do it"), run.output[-3000:]


def test_prepared_while_users_work(old, new):
    with load(old, *LOAD, seconds=5400) as current:
        run = old.move("prepare", to=new.host, confirm=new.host)
    assert run.code == 0, run.output[-6000:]
    current.assert_flawless()
    serves(old, new)
    assert new.shell(f"cat {PLAN}").strip() == "plan"
    again = old.move("prepare", confirm=new.host)
    assert again.code == 0, again.output[-4000:]


def test_users_of_the_new_host_reach_the_old_one(old, new):
    text = new.shell("curl -skS https://localhost/login/")
    assert "csrfmiddlewaretoken" in text
    assert new.shell("curl -skS https://localhost/media/a/plan.txt").strip() == "plan"


def test_switched_under_load(old, new, capsys):
    before = old.sql("SELECT count(*) FROM auth_user")
    with load(old, *LOAD, seconds=5400) as current, PageTime(old) as page:
        run = old.move("switch", confirm=new.host)
    assert run.code == 0, run.output[-6000:]
    with capsys.disabled():
        print(f"\npage: {page.seconds:.0f} s, run: {run.seconds:.0f} s, writes: {current.summary['writes']}")
    assert run.prints("sequences are the same"), run.output[-4000:]
    writes = current.summary["writes"]
    assert writes["acknowledged"] > 0 and writes["lost_count"] == writes["unread_count"] == 0, writes
    assert page.seconds <= PAGE_SECONDS
    serves(new, old)
    assert new.sql("SELECT count(*) FROM auth_user") == before
    again = old.move("switch", confirm=new.host)
    assert (again.code, again.changed) == (0, 0) and again.prints("Nothing is left to do"), again.output[-3000:]


def test_the_old_host_forwards_requests_and_is_not_changed_any_more(old, new):
    new.shell(f"echo newer > {PLAN}")
    assert old.shell("curl -skS https://localhost/media/a/plan.txt").strip() == "newer"
    assert "csrfmiddlewaretoken" in old.shell("curl -skS https://localhost/login/")
    run = old.run("deploy.yml", "--flush-cache", "--tags", "release")
    assert run.code == 2 and run.prints("does not serve", new.host), run.output[-3000:]


def test_the_backup_of_the_new_host_is_restorable(old, new):
    run = old.run("playbooks/restore.yml", "--flush-cache", timeout=3600, into="scratch", ansible_host=new.host)
    assert run.code == 0, run.output[-4000:]


@pytest.mark.parametrize(
    ("step", "point", "at", "ends"),
    [("back", "move_promoted", "old", "old"), ("switch", "move_stopped", "old", "new")],
)
def test_a_killed_step_is_completed_by_the_next_run(request, old, new, step, point, at, ends):
    source, target = (new, old) if step == "back" else (old, new)
    source.python("from django.contrib.auth import get_user_model as u; u().objects.create_user('%s')" % step)
    before, held = source.rows(), request.getfixturevalue(at)
    held.hold(point)
    process = old.start("playbooks/move.yml", LOG, step=step, confirm=new.host)
    try:
        held.wait_at(point, process, LOG)
    finally:
        kill_run(old, process, new)
        held.release_hold()
    assert [old.primary(), new.primary()].count(True) <= 1
    assert old.application()[0] == new.application()[0] == "0", "no host serves"
    run = old.move(step, confirm=new.host)
    assert run.code == 0, run.output[-6000:]
    serves(target, source)
    assert request.getfixturevalue(ends).rows() == before


PSQL = "cd /; runuser -u postgres -- psql -qXc"
BROKEN = "/etc/systemd/system/shiftmaster-web@.service.d/broken.conf"
FAULTS = {
    # The end of the WAL is not replayed: the server of before starts again as it was.
    "replay": (f"{PSQL} 'SELECT pg_wal_replay_pause()'", f"{PSQL} 'SELECT pg_wal_replay_resume()'"),
    # The application does not start on the new host, which has the primary by then: back with every row.
    "application": (
        f"install -D /dev/stdin {BROKEN} <<< $'[Service]\\nExecStartPre=/bin/false' && systemctl daemon-reload",
        f"rm -r {BROKEN.rpartition('/')[0]} && systemctl daemon-reload",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_failure_the_old_host_serves(old, new, fault):
    if new.primary():
        assert old.move("back", confirm=new.host).code == 0
    before = old.rows()
    new.shell(FAULTS[fault][0])
    run = old.move("switch", confirm=new.host, move_wait_seconds=20)
    new.shell(FAULTS[fault][1])
    assert run.code == 2 and run.prints(f"{old.host} serves with all rows"), run.output[-4000:]
    serves(old, new)
    assert old.rows() == before


def test_the_old_host_serves_where_the_new_one_is_lost_as_a_primary(old, new):
    if new.primary():
        assert old.move("back", confirm=new.host).code == 0
    before = old.rows()
    new.hold("move_promoted")
    process = old.start("playbooks/move.yml", LOG, step="switch", confirm=new.host)
    new.wait_at("move_promoted", process, LOG)
    docker("pause", new.host)
    try:
        # A connection of Docker does not notice it, as ssh does.
        subprocess.run(["pkill", "-KILL", "-f", f"docker exec .*{new.host}"], check=False)
        assert process.wait(900) == 2, LOG.read_text()[-5000:]
        assert f"{old.host} serves with all rows" in LOG.read_text().replace("\n", " "), LOG.read_text()[-5000:]
        assert old.primary() and not old.page() and old.live_version(120) == "2.0.0" and old.rows() == before
        # It does not come back: the move is ended without it.
        run = old.move("back", confirm=new.host)
        assert run.code == 2 and run.changed == 0 and run.prints("-e step=commit"), run.output[-4000:]
        run = old.move("commit", confirm=new.host)
        assert run.code == 0 and run.prints("serves alone"), run.output[-4000:]
        assert old.sql("SELECT count(*) FROM pg_replication_slots") == "0"
        assert old.application() == ["3", "enabled"] and old.live_version(120) == "2.0.0"
    finally:
        docker("unpause", new.host)
        new.release_hold()
    # No user has worked with its primary: without its data it is prepared again.
    new.shell("pg_dropcluster --stop 17 main && pg_createcluster --start 17 main")


def test_prepared_again_after_a_deploy_and_a_rollback(old, new):
    for playbook, extra, version in (
        ("deploy.yml", {"shiftmaster_version": "2.1.0"}, "2.1.0"),
        ("rollback.yml", {}, "2.0.0"),
    ):
        run = old.run(playbook, timeout=3600, **extra)
        assert run.code == 0, run.output[-4000:]
        run = old.move("prepare", to=new.host, confirm=new.host)
        assert run.code == 0, run.output[-6000:]
        serves(old, new, version)


def test_a_reboot_changes_nothing(old, new):
    assert old.move("switch", confirm=new.host).code == 0
    for host in (old, new):
        host.reboot()
    serves(new, old)


def test_committed_one_host_serves_alone(old, new):
    before = new.rows()
    run = old.move("commit", confirm=new.host)
    assert run.code == 0, run.output[-4000:]
    assert old.shell("systemctl is-active nginx postgresql@17-main redis-server || true").split() == ["inactive"] * 3
    assert new.live_version(60) == "2.0.0" and new.rows() == before
    assert new.sql("SELECT count(*) FROM pg_replication_slots") == "0"
    run = old.run("deploy.yml", "--flush-cache", timeout=3600, ansible_host=new.host)
    assert run.code == 0, run.output[-4000:]
    again = old.run("deploy.yml", timeout=3600, ansible_host=new.host)
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]
