"""The whole ansible process tree dies, or the host reboots, at any point: old or new serves, the next run converges."""

import contextlib
import importlib.util
import json
import subprocess
import time

import pytest
from support import APP, ROOT, SCENARIO_HOME, kill_here, kill_on_host, kill_run, load, wait_for

AUDIT, LOCK = f"{APP}/shared/state/audit.jsonl", f"{APP}/shared/state/lock.json"
ACTIVE_UNITS = "systemctl list-units --plain --no-legend --state=active 'shiftmaster-*@*' | awk '{print $1}' | sort"
# What a killed run leaves: half a removal, half a copy of the database, a link that was not renamed, the lock.
LEFT_OVER = (
    f"ls -d {APP}/releases/*.removing /var/backups/shiftmaster/pre-migration/.*.part {APP}/*.new {LOCK} 2>/dev/null;"
    " true"
)
# Runs that a test has started and not waited for.
STARTED = []
LOG, NEXT = SCENARIO_HOME / "killed.log", SCENARIO_HOME / "next.log"


def kill_tree(operations, process: subprocess.Popen, point: str) -> None:
    """SIGKILL everything of a run that waits at a point, on this machine and on the host."""
    waiting = operations.shell(f"cat {FOLDER}/{point}.reached").strip()
    kill_run(operations, process)
    # Who waited at the point did not merely lose its parents: it would go on as soon as it is let go.
    assert operations.shell(f"test -e /proc/{waiting} && echo lives || true").strip() == "", "the run still waits"


def points():
    """module_utils/shiftmaster/host/points.py, where the points of a run have their names."""
    spec = importlib.util.spec_from_file_location("points", ROOT / "module_utils/shiftmaster/host/points.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


POINTS, FOLDER = points().POINTS, points().FOLDER
# What a run needs to come by a point, besides being a deploy of 2.1.1.
FAILS = {"shiftmaster_hooks": [{"name": "fail", "phase": "after_cutover", "command": "exit 1"}]}
NEEDS = {
    # With another setting a release is built; with fewer that are kept, one is removed.
    "build": {"shiftmaster_web_threads": 11},
    "built": {"shiftmaster_web_threads": 12},
    "prune": {"shiftmaster_web_threads": 13, "shiftmaster_keep_releases": 1},
    "put_back": FAILS,
}
# From here on a run that died has moved the traffic.
SWITCHED = POINTS[POINTS.index("switched") :]
CHANGES_THE_SCHEMA = ("dump", "migrate", "migrated")
REBOOTS = {"gate": "2.0.0", "rename": "2.0.0", "switched": "2.1.1", "watch": "2.1.1"}


@pytest.fixture(autouse=True)
def at_2_0_0(operations):
    """A test that failed leaves what it left; the next one still begins where it means to."""
    for process in STARTED:
        if process.poll() is None:
            kill_here(process)
    STARTED.clear()
    kill_on_host(operations)
    let_go(operations)
    if operations.serves(10) != "2.0.0":
        run = operations.deploy("2.0.0", shiftmaster_watch_seconds=1)
        assert run.code == 0, run.output[-4000:]


def events(operations) -> list:
    return [json.loads(line) for line in operations.shell(f"cat {AUDIT}").splitlines()]


def audited(operations, event: str) -> int:
    return sum(one["event"] == event for one in events(operations))


def let_go(operations) -> None:
    operations.shell(f"rm -rf {FOLDER}")


def start(operations, *arguments, **extra) -> subprocess.Popen:
    STARTED.append(operations.start(*arguments, **extra))
    return STARTED[-1]


def start_and_reach(operations, point: str, watch: int = 8, **extra) -> subprocess.Popen:
    """Start a deploy of 2.1.1 that waits at the point, once it is there."""
    operations.shell(f"install -d -m 1777 {FOLDER} && touch {FOLDER}/{point}")
    process = start(
        operations, "deploy.yml", LOG, "--tags", "release", shiftmaster_version="2.1.1",
        shiftmaster_watch_seconds=watch, **extra,
    )  # fmt: skip
    wait_for_point(operations, process, point)
    return process


def wait_for_point(operations, process: subprocess.Popen, point: str) -> None:
    # Waits on the host: a call from here costs the run that is waited for a good part of a processor.
    look = f"timeout 5 sh -c 'until cat {FOLDER}/{point}.reached 2>/dev/null; do sleep 0.2; done'"
    wait_for(
        lambda: process.poll() is not None or operations.shell(look, check=False), 600, f"the point {point}"
    )  # fmt: skip
    assert process.poll() is None, f"ended before {point}: {LOG.read_text()[-3000:]}"


def send_tasks(operations) -> str:
    """Background work that is asked for between the kill and the next run."""
    prefix = f"killed{time.time_ns()}"
    operations.manage("task_runs", "send", prefix, "--count", "10")
    return prefix


def assert_tasks_ran(operations, prefix: str) -> None:
    """None is lost, and none ran twice."""

    def report():
        return json.loads(operations.manage("task_runs", "report", prefix))

    wait_for(lambda: len(report()["runs"]) == 10, 60, "the end of all tasks")
    assert report()["twice"] == []


@contextlib.contextmanager
def under_load(operations):
    """People work all the time: none of their requests fails, and they see the old or the new version alone."""
    with load(operations, "--clients", "4", "--think-seconds", "0.3", seconds=900) as traffic:
        yield
    traffic.assert_flawless()
    assert set(traffic.summary["versions"]) == {"2.0.0", "2.1.1"}


def assert_clean(operations) -> None:
    """What was asked for serves, and nothing of a killed run is left."""
    assert operations.serves(10) == "2.1.1"
    state = operations.state()
    assert state["transition"] is None
    assert "building" not in [entry["status"] for entry in state["releases"].values()]
    assert operations.shell(LEFT_OVER).split() == []
    colour = operations.shell(f"basename $(readlink {APP}/active)").strip()
    kinds = ("beat", "web", "worker")
    wait_for(  # A worker of before may still be ending.
        lambda: operations.shell(ACTIVE_UNITS).split() == [f"shiftmaster-{kind}@{colour}.service" for kind in kinds],
        60, "one colour's units alone",
    )  # fmt: skip


def assert_converged(operations, schema: str = "keep", **settings) -> None:
    """It is as after any deploy: there is nothing left to do, and a way back."""
    assert_clean(operations)
    again = operations.deploy("2.1.1", **settings)
    assert (again.code, again.changed) == (0, 0), again.output[-3000:]
    back = operations.rollback(to="2.0.0", schema=schema)
    assert back.code == 0, back.output[-3000:]


def schema_is_ahead(operations) -> bool:
    migrations = "SELECT name FROM django_migrations WHERE app = 'roster'"
    return "0003_" in operations.shell(f'runuser -u postgres -- psql -qtAd shiftmaster -c "{migrations}"')


@pytest.mark.sample("handover")
@pytest.mark.parametrize("point", POINTS)
def test_kill_at_point(operations, point):
    settings = NEEDS.get(point, {})
    # It takes the schema back at its end, for the next one of them.
    schema = "reverse" if point in CHANGES_THE_SCHEMA else "keep"
    if schema == "reverse" and schema_is_ahead(operations):
        operations.deploy("2.1.1", shiftmaster_watch_seconds=1)
        run = operations.rollback(to="2.0.0", schema="reverse")
        assert run.code == 0, run.output[-4000:]
    if point == "prune":  # There is one that may go.
        operations.deploy("2.1.1", shiftmaster_web_threads=14, shiftmaster_watch_seconds=1)
        assert operations.rollback(to="2.0.0").code == 0
    # The run that follows is the one that was asked for, without what made it fail.
    settings_again = {} if settings is FAILS else settings
    with under_load(operations):
        process = start_and_reach(operations, point, **settings)
        # Not before: a run that somebody has broken off may have left its lock, which this one has taken over.
        taken_over = audited(operations, "lock_taken_over")
        kill_tree(operations, process, point)
        let_go(operations)
        assert operations.serves(5) == ("2.1.1" if point in SWITCHED else "2.0.0")
        tasks = send_tasks(operations)
        run = operations.deploy("2.1.1", shiftmaster_watch_seconds=3, **settings_again)
        assert run.code == 0, run.output[-6000:]
        assert_tasks_ran(operations, tasks)
    assert audited(operations, "lock_taken_over") == taken_over + 1
    assert_converged(operations, schema, **settings_again)


def test_kill_in_the_rename_of_the_way_back(operations):
    """The link leads to the new version, which is being left; the next run goes the whole way back first."""
    with under_load(operations):
        process = start_and_reach(operations, "put_back", **FAILS)
        operations.shell(f"touch {FOLDER}/rename && rm {FOLDER}/put_back")
        wait_for_point(operations, process, "rename")
        kill_tree(operations, process, "rename")
        let_go(operations)
        assert operations.serves(5) == "2.1.1"
        tasks = send_tasks(operations)
        back = audited(operations, "put_back")
        run = operations.deploy("2.1.1", shiftmaster_watch_seconds=3)
        assert run.code == 0, run.output[-6000:]
        assert_tasks_ran(operations, tasks)
    assert audited(operations, "put_back") == back + 1
    assert_converged(operations)


def test_kill_while_recovering(operations):
    """The run that finishes what a dead one left dies, too; the third one finishes it."""
    with under_load(operations):
        kill_tree(operations, start_and_reach(operations, "drain"), "drain")
        let_go(operations)
        kill_tree(operations, start_and_reach(operations, "live"), "live")
        let_go(operations)
        assert operations.serves(5) == "2.1.1"
        run = operations.deploy("2.1.1", shiftmaster_watch_seconds=3)
        assert run.code == 0, run.output[-6000:]
    assert_converged(operations)


def test_the_module_outlives_its_run(operations):
    """The administrator's machine alone dies: the next run takes the lock over, and waits for what is still at work."""
    with under_load(operations):
        process = start_and_reach(operations, "drain")
        taken_over = audited(operations, "lock_taken_over")
        first = operations.state()["transition"]
        kill_here(process)
        second = start(operations, "deploy.yml", NEXT, "--tags", "release", shiftmaster_version="2.1.1")
        wait_for(
            lambda: second.poll() is not None or audited(operations, "lock_taken_over") > taken_over,
            600, "the takeover of the lock",
        )  # fmt: skip
        time.sleep(5)
        assert second.poll() is None and operations.state()["transition"] == first
        let_go(operations)
        assert second.wait(600) == 0, NEXT.read_text()[-6000:]
    assert audited(operations, "lock_taken_over") == taken_over + 1
    assert_converged(operations)


@pytest.mark.parametrize("point", REBOOTS)
def test_reboot_at_point(operations, point):
    process = start_and_reach(operations, point)
    kill_tree(operations, process, point)
    operations.reboot()
    assert operations.serves(180) == REBOOTS[point]
    run = operations.deploy("2.1.1", shiftmaster_watch_seconds=3)
    assert run.code == 0, run.output[-6000:]
    assert_converged(operations)


def test_two_at_once(operations):
    """The second one says who holds the lock, and changes nothing; or it waits, and has its turn."""
    process = start_and_reach(operations, "watch")
    try:
        second = operations.deploy("2.0.0", shiftmaster_lock_wait_seconds=0)
        assert second.code == 2 and second.says("holds the lock"), second.output[-3000:]
        back = operations.rollback(shiftmaster_lock_wait_seconds=0)
        assert back.code == 2 and back.says("holds the lock"), back.output[-3000:]
        waiting = start(operations, "rollback.yml", NEXT, to="2.0.0", shiftmaster_lock_wait_seconds=300)
        wait_for(lambda: "holds the lock" in NEXT.read_text(), 300, "the rollback at the lock")
        assert waiting.poll() is None and operations.serves() == "2.1.1"
    finally:
        let_go(operations)
        assert process.wait(600) == 0, LOG.read_text()[-3000:]
    assert waiting.wait(600) == 0, NEXT.read_text()[-3000:]
    assert operations.serves() == "2.0.0"
    assert [one["kind"] for one in events(operations) if one["event"] == "live"][-2:] == ["deploy", "rollback"]


def test_restart_by_hand_during_the_watch(operations):
    """Refused; behind the deploy the unit is well, and its stop stops everything."""
    process = start_and_reach(operations, "watch")
    let_go(operations)
    operations.shell("systemctl restart shiftmaster", check=False)
    assert process.wait(600) == 0, LOG.read_text()[-3000:]
    assert operations.shell("systemctl is-active shiftmaster").strip() == "active"
    assert operations.serves() == "2.1.1"
    operations.shell("systemctl stop shiftmaster", timeout=180)
    assert operations.shell(ACTIVE_UNITS).split() == []
    operations.shell("systemctl start shiftmaster", timeout=180)
    assert operations.serves(30) == "2.1.1"
    assert operations.rollback(to="2.0.0").code == 0


def test_stop_by_hand_during_the_watch(operations):
    """It stays stopped, and the release is not blamed."""
    process = start_and_reach(operations, "watch", watch=40)
    let_go(operations)
    # The run first makes sure that the whole unit is started, which would undo the stop. (It says a task's name once
    # that has a result.)
    wait_for(lambda: "Start the unit of the whole application" in LOG.read_text(), 300, "the watch")
    operations.shell("systemctl stop shiftmaster", timeout=180)
    assert process.wait(600) == 2, LOG.read_text()[-3000:]
    assert "somebody has stopped ShiftMaster" in " ".join(LOG.read_text().split())
    assert operations.shell(ACTIVE_UNITS).split() == []
    assert "bad" not in [entry["status"] for entry in operations.state()["releases"].values()]
    operations.shell("systemctl start shiftmaster", timeout=180)
    assert operations.serves(30) == "2.1.1"
    assert operations.rollback(to="2.0.0").code == 0
