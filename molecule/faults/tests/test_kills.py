"""The whole ansible process tree dies, or the host reboots, in any phase: old or new serves, the next run converges."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support import SCENARIO_HOME, load

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


def phase(operations) -> str:
    text = operations.shell("cat /var/www/shiftmaster/shared/state/state.json", check=False)
    try:
        state = json.loads(text)
    except ValueError:
        return ""
    if any(entry["status"] == "building" for entry in state["releases"].values()):
        return "build"
    return (state["transition"] or {}).get("phase", "")


# Another setting: a release is built.
BUILD = {"build": {"shiftmaster_web_threads": 9}}


@pytest.fixture(autouse=True)
def at_2_0_0(operations):
    """A test that failed leaves what it left; the next one still begins where it means to."""
    if operations.serves(10) != "2.0.0":
        run = operations.deploy("2.0.0", shiftmaster_watch_seconds=1)
        assert run.code == 0, run.output[-4000:]


def start_and_reach(operations, wanted: str, watch: int = 8) -> subprocess.Popen:
    process = operations.start(
        "deploy.yml", LOG, shiftmaster_version="2.1.0", shiftmaster_watch_seconds=watch,
        shiftmaster_drain_grace_seconds=2,
        **BUILD.get(wanted, {}),
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while phase(operations) != wanted:
        assert process.poll() is None, f"ended before {wanted}: {LOG.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"never came to {wanted}"
    return process


WHOLE_ONLY = pytest.mark.whole


@pytest.mark.parametrize(
    "wanted",
    [pytest.param(name, marks=WHOLE_ONLY) for name in ("build", "gate", "drain", "watch")] + ["handover"],
)
def test_kill_in_phase(operations, wanted):
    with load(operations, "--clients", "8", "--think-seconds", "0.3", seconds=500) as traffic:
        process = start_and_reach(operations, wanted)
        kill_tree(operations, process)
        assert operations.serves(5) in ("2.0.0", "2.1.0")
        run = operations.deploy("2.1.0", shiftmaster_watch_seconds=3, **BUILD.get(wanted, {}))
        assert run.code == 0, run.output[-6000:]
    assert operations.serves() == "2.1.0"
    assert operations.state()["transition"] is None
    assert traffic.summary["failed"] == 0, traffic.summary
    again = operations.deploy("2.1.0", **BUILD.get(wanted, {}))
    assert (again.code, again.changed) == (0, 0), again.output[-3000:]
    assert operations.rollback(to="2.0.0").code == 0


@pytest.mark.parametrize("wanted", [pytest.param(name, marks=WHOLE_ONLY) for name in ("gate", "drain")] + ["watch"])
def test_reboot_in_cutover(operations, wanted):
    process = start_and_reach(operations, wanted)
    kill_tree(operations, process)
    operations.reboot()
    assert operations.serves(60) == ("2.0.0" if wanted == "gate" else "2.1.0")
    run = operations.deploy("2.1.0", shiftmaster_watch_seconds=3)
    assert run.code == 0, run.output[-6000:]
    assert operations.serves() == "2.1.0"
    assert operations.rollback(to="2.0.0").code == 0


def test_two_at_once(operations):
    """The second one says who holds the lock, and changes nothing."""
    process = start_and_reach(operations, "watch")
    try:
        second = operations.deploy("2.0.0", shiftmaster_lock_wait_seconds=0)
        assert second.code == 2 and second.says("holds the lock"), second.output[-3000:]
    finally:
        assert process.wait(120) == 0, LOG.read_text()[-3000:]
    assert operations.serves() == "2.1.0"
    assert operations.rollback(to="2.0.0").code == 0


@pytest.mark.whole
def test_restart_by_hand_during_the_watch(operations):
    """Refused; behind the deploy the unit is well, and its stop stops everything."""
    process = start_and_reach(operations, "watch")
    operations.shell("systemctl restart shiftmaster", check=False)
    assert process.wait(120) == 0, LOG.read_text()[-3000:]
    assert operations.shell("systemctl is-active shiftmaster").strip() == "active"
    assert operations.serves() == "2.1.0"
    operations.shell("systemctl stop shiftmaster", timeout=180)
    assert operations.shell("systemctl list-units --plain --no-legend --state=active 'shiftmaster-*@*'").strip() == ""
    operations.shell("systemctl start shiftmaster", timeout=180)
    assert operations.serves(30) == "2.1.0"
    assert operations.rollback(to="2.0.0").code == 0


@pytest.mark.whole
def test_stop_by_hand_during_the_watch(operations):
    """It stays stopped, and the release is not blamed."""
    process = start_and_reach(operations, "watch", watch=40)
    # The run first makes sure that the whole unit is started, which would undo the stop.
    time.sleep(6)
    operations.shell("systemctl stop shiftmaster", timeout=180)
    assert process.wait(120) == 2, LOG.read_text()[-3000:]
    assert "somebody has stopped ShiftMaster" in " ".join(LOG.read_text().split())
    assert operations.shell("systemctl list-units --plain --no-legend --state=active 'shiftmaster-*@*'").strip() == ""
    assert "bad" not in [entry["status"] for entry in operations.state()["releases"].values()]
    operations.shell("systemctl start shiftmaster", timeout=180)
    assert operations.serves(30) == "2.1.0"
    assert operations.rollback(to="2.0.0").code == 0
