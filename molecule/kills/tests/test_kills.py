"""The whole ansible process tree dies, or the host reboots, at any point: old or new serves, the next run converges."""

import importlib.util
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support import ROOT, SCENARIO_HOME, load, wait_for

# In a container, what came in by `docker exec` has no parent there. The load generator came in the same way.
KILL_MODULES = r"""
for pid in $(ps -eo pid=,ppid= | awk '$2 == 0 && $1 != 1 {print $1}'); do
  [ "$pid" = "$$" ] && continue
  tr '\0' ' ' < /proc/$pid/cmdline | grep -q loadgen && continue
  pkill -KILL -P "$pid"; kill -KILL "$pid" 2>/dev/null
done; true
"""
LOG = SCENARIO_HOME / "killed.log"


def descendants(pid: int) -> list:
    children = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        current = todo.pop()
        found.append(current)
        todo.extend(children.get(current, []))
    return found


def kill_tree(operations, process: subprocess.Popen) -> None:
    for pid in descendants(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    operations.shell(KILL_MODULES)
    process.wait(30)


def points():
    """module_utils/shiftmaster/points.py, where the points of a run have their names."""
    spec = importlib.util.spec_from_file_location("points", ROOT / "module_utils/shiftmaster/points.py")
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
CHANGES_THE_SCHEMA = ("dump", "migrate", "migrated")
REBOOTS = {"gate": "2.0.0", "rename": "2.0.0", "switched": "2.1.1", "watch": "2.1.1"}
SAMPLE, SAMPLE_OF_REBOOTS = "handover", "watch"


def sample(names, always: str) -> list:
    return [pytest.param(name, marks=() if name == always else pytest.mark.whole) for name in names]


@pytest.fixture(autouse=True)
def at_2_0_0(operations):
    """A test that failed leaves what it left; the next one still begins where it means to."""
    let_go(operations)
    if operations.serves(10) != "2.0.0":
        run = operations.deploy("2.0.0", shiftmaster_watch_seconds=1)
        assert run.code == 0, run.output[-4000:]


def audited(operations, event: str) -> int:
    return int(operations.shell(f"grep -c '\"{event}\"' /var/www/shiftmaster/shared/state/audit.jsonl || true"))


def let_go(operations) -> None:
    operations.shell(f"rm -rf {FOLDER}")


def start_and_reach(operations, point: str, watch: int = 8, **extra) -> subprocess.Popen:
    """Start a deploy of 2.1.1 that waits at the point, once it is there."""
    operations.shell(f"install -d -m 1777 {FOLDER} && touch {FOLDER}/{point}")
    process = operations.start(
        "deploy.yml", LOG, shiftmaster_version="2.1.1", shiftmaster_watch_seconds=watch, **extra,
    )  # fmt: skip
    wait_for(
        lambda: process.poll() is not None or operations.shell(f"ls {FOLDER}/{point}.reached", check=False),
        240, f"the point {point}",
    )  # fmt: skip
    assert process.poll() is None, f"ended before {point}: {LOG.read_text()[-3000:]}"
    return process


@pytest.mark.parametrize("point", sample(POINTS, SAMPLE))
def test_kill_at_point(operations, point):
    settings = NEEDS.get(point, {})
    if point in CHANGES_THE_SCHEMA:
        operations.deploy("2.1.1", shiftmaster_watch_seconds=1)
        run = operations.rollback(to="2.0.0", schema="reverse")
        assert run.code == 0, run.output[-4000:]
    if point == "prune":  # There is one that may go.
        operations.deploy("2.1.1", shiftmaster_web_threads=14, shiftmaster_watch_seconds=1)
        assert operations.rollback(to="2.0.0").code == 0
    # The run that follows is the one that was asked for, without what made it fail.
    settings_again = {} if settings is FAILS else settings
    taken_over = audited(operations, "lock_taken_over")
    with load(operations, "--clients", "8", "--think-seconds", "0.3", seconds=500) as traffic:
        process = start_and_reach(operations, point, **settings)
        kill_tree(operations, process)
        let_go(operations)
        assert operations.serves(5) in ("2.0.0", "2.1.1")
        run = operations.deploy("2.1.1", shiftmaster_watch_seconds=3, **settings_again)
        assert run.code == 0, run.output[-6000:]
    assert operations.serves() == "2.1.1"
    assert operations.state()["transition"] is None
    traffic.assert_flawless()
    assert operations.shell("ls /var/www/shiftmaster/releases | grep -c removing || true").strip() == "0"
    assert audited(operations, "lock_taken_over") == taken_over + 1
    again = operations.deploy("2.1.1", **settings_again)
    assert (again.code, again.changed) == (0, 0), again.output[-3000:]
    assert operations.rollback(to="2.0.0").code == 0


@pytest.mark.parametrize("point", sample(REBOOTS, SAMPLE_OF_REBOOTS))
def test_reboot_at_point(operations, point):
    process = start_and_reach(operations, point)
    kill_tree(operations, process)
    operations.reboot()
    assert operations.serves(60) == REBOOTS[point]
    run = operations.deploy("2.1.1", shiftmaster_watch_seconds=3)
    assert run.code == 0, run.output[-6000:]
    assert operations.serves() == "2.1.1"
    assert operations.rollback(to="2.0.0").code == 0


def test_two_at_once(operations):
    """The second one says who holds the lock, and changes nothing."""
    process = start_and_reach(operations, "watch")
    try:
        second = operations.deploy("2.0.0", shiftmaster_lock_wait_seconds=0)
        assert second.code == 2 and second.says("holds the lock"), second.output[-3000:]
        back = operations.rollback(shiftmaster_lock_wait_seconds=0)
        assert back.code == 2 and back.says("holds the lock"), back.output[-3000:]
    finally:
        let_go(operations)
        assert process.wait(120) == 0, LOG.read_text()[-3000:]
    assert operations.serves() == "2.1.1"
    assert operations.rollback(to="2.0.0").code == 0


@pytest.mark.whole
def test_restart_by_hand_during_the_watch(operations):
    """Refused; behind the deploy the unit is well, and its stop stops everything."""
    process = start_and_reach(operations, "watch")
    let_go(operations)
    operations.shell("systemctl restart shiftmaster", check=False)
    assert process.wait(120) == 0, LOG.read_text()[-3000:]
    assert operations.shell("systemctl is-active shiftmaster").strip() == "active"
    assert operations.serves() == "2.1.1"
    operations.shell("systemctl stop shiftmaster", timeout=180)
    assert operations.shell("systemctl list-units --plain --no-legend --state=active 'shiftmaster-*@*'").strip() == ""
    operations.shell("systemctl start shiftmaster", timeout=180)
    assert operations.serves(30) == "2.1.1"
    assert operations.rollback(to="2.0.0").code == 0


@pytest.mark.whole
def test_stop_by_hand_during_the_watch(operations):
    """It stays stopped, and the release is not blamed."""
    process = start_and_reach(operations, "watch", watch=40)
    let_go(operations)
    # The run first makes sure that the whole unit is started, which would undo the stop.
    time.sleep(6)
    operations.shell("systemctl stop shiftmaster", timeout=180)
    assert process.wait(120) == 2, LOG.read_text()[-3000:]
    assert "somebody has stopped ShiftMaster" in " ".join(LOG.read_text().split())
    assert operations.shell("systemctl list-units --plain --no-legend --state=active 'shiftmaster-*@*'").strip() == ""
    assert "bad" not in [entry["status"] for entry in operations.state()["releases"].values()]
    operations.shell("systemctl start shiftmaster", timeout=180)
    assert operations.serves(30) == "2.1.1"
    assert operations.rollback(to="2.0.0").code == 0
