"""The entire process tree of a run dies, or the host reboots, at any point: old or new is live, the next run converges.

The playbook itself is killed at a point of each kind (BY_PLAYBOOK). At the others the run is one on the host alone,
which makes the same module calls in the same order (files/replay.py) and takes a third of the time.
"""

import contextlib
import hashlib
import importlib.util
import json
import subprocess
import time

import pytest
from support import APP, ROOT, SCENARIO_HOME, Operations, kill_here, kill_on_host, kill_run, load, wait_for

AUDIT, LOCK = f"{APP}/shared/state/audit.jsonl", f"{APP}/shared/state/lock.json"
ACTIVE_UNITS = "systemctl list-units --plain --no-legend --state=active 'shiftmaster-*@*' | awk '{print $1}' | sort"
# Remains of a killed run: half a removal, half a copy of the database, a link that was not renamed, the lock.
LEFT_OVER = (
    f"ls -d {APP}/releases/*.removing /var/backups/shiftmaster/pre-migration/.*.part {APP}/*.new {LOCK} 2>/dev/null;"
    " systemctl list-units --plain --no-legend 'shiftmaster-code-*' 'shiftmaster-build-*' 'shiftmaster-hook-*'"
)
# Runs that a test has started and not waited for.
STARTED = []
LOG, NEXT = SCENARIO_HOME / "killed.log", SCENARIO_HOME / "next.log"


def kill_tree(operations, process: subprocess.Popen, point: str) -> None:
    """SIGKILL everything of a run that waits at a point, on this machine and on the host."""
    waiting = operations.shell(f"cat {DIRECTORY}/{point}.reached").strip()
    kill_run(operations, process)
    # A driver, the first process of its own PID namespace, continues in its unit until the next run ends it.
    assert waiting == "1" or operations.shell(f"test -e /proc/{waiting} || echo ended").strip() == "ended"


def failpoints():
    """module_utils/shiftmaster/host/points.py, where the points of a run have their names."""
    spec = importlib.util.spec_from_file_location("points", ROOT / "module_utils/shiftmaster/host/points.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


POINTS, DIRECTORY = failpoints().POINTS, failpoints().DIRECTORY
# Conditions under which a run reaches a fault-injection point, besides being a deploy of 2.1.1.
FAILS = {"shiftmaster_hooks": [{"name": "fail", "phase": "after_cutover", "command": "exit 1"}]}
NEEDS = {
    # With another setting a release is built; with fewer that are kept, one is removed.
    "build": {"shiftmaster_web_threads": 11},
    "built": {"shiftmaster_web_threads": 12},
    "prune": {"shiftmaster_web_threads": 13, "shiftmaster_keep_releases": 1},
    "revert": FAILS,
}
# From here on a run that died has moved the traffic.
SWITCHED = POINTS[POINTS.index("switched") :]
CHANGES_THE_SCHEMA = ("dump", "migrate", "migrated")
# A build, the schema, the cutover's work on both slots, the time after it.
BY_PLAYBOOK = ("build", "migrate", "handover", "watch")
REBOOTS = {"gate": "2.0.0", "rename": "2.0.0", "switched": "2.1.1", "watch": "2.1.1"}
REBOOT_BY_PLAYBOOK = "switched"


class Playbooks:
    """Runs as an administrator types them."""

    def __init__(self, operations: Operations):
        self.operations = operations

    def start(self, **settings) -> subprocess.Popen:
        return start(self.operations, "deploy.yml", LOG, "--tags", "release", shiftmaster_version="2.1.1", **settings)

    def deploy(self, **settings) -> None:
        run = self.operations.deploy("2.1.1", **settings)
        assert run.code == 0, run.output[-6000:]

    def assert_nothing_to_do(self, **settings) -> None:
        again = self.operations.deploy("2.1.1", **settings)
        assert (again.code, again.changed) == (0, 0), again.output[-3000:]

    def back(self, reverse: bool = False) -> None:
        run = self.operations.rollback(to="2.0.0", schema="reverse" if reverse else "keep")
        assert run.code == 0, run.output[-4000:]


class Replay:
    """The module calls of a real run, on the host alone."""

    DIRECTORY = "/root/replay"
    # The preflight, which queries the lock, too, and the role's own files.
    NOT_OF_A_RELEASE = ("shiftmaster_preflight.", "shiftmaster_lock.", "managed_files.")
    # Settings of a run as the options of its calls. Another salt is another configuration, as another setting is.
    OPTIONS = {
        "shiftmaster_web_threads": "salt", "shiftmaster_keep_releases": "keep", "shiftmaster_hooks": "hooks",
        "shiftmaster_watch_seconds": "watch_seconds",
    }  # fmt: skip

    def __init__(self, operations: Operations):
        self.operations, self.session = operations, time.time_ns()

    def record(self) -> None:
        """Keep the calls of a deploy of 2.1.1 by the playbook, which builds it and changes the schema."""
        self.operations.shell(f"mkdir -p {self.DIRECTORY} && rm -rf /root/.ansible/tmp/*")
        subprocess.run(
            ["docker", "cp", "--quiet", str(ROOT / "molecule/kills/files/replay.py"),
             f"{self.operations.host}:{self.DIRECTORY}/ansible-playbook"], check=True, capture_output=True,
        )  # fmt: skip
        if self.operations.shell(f"cat {self.DIRECTORY}/of 2>/dev/null", check=False) == self.source():
            return  # Tests run again on an existing host.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ANSIBLE_KEEP_REMOTE_FILES", "1")
            run = self.operations.deploy("2.1.1", shiftmaster_watch_seconds=1)
        assert run.code == 0, run.output[-6000:]
        kept = self.operations.shell(f"python3 {self.DIRECTORY}/ansible-playbook keep; rm -rf /root/.ansible/tmp/*")
        calls = [name for name in kept.split() if name not in self.NOT_OF_A_RELEASE]
        new = {"shiftmaster_release.present.build", "shiftmaster_migrations.apply"}
        assert new <= set(calls), f"2.1.1 was on this host before (molecule destroy -s kills): {calls}"
        # A run on the host makes the calls that the playbook has made, where there is as much to do.
        self.back(reverse=True)
        made = [line.split()[0] for line in self.run("deploy", salt="record").splitlines() if "." in line]
        assert made == calls, f"made: {made}, recorded: {calls}"
        self.operations.shell(f"cat > {self.DIRECTORY}/of", stdin=self.source())

    @staticmethod
    def source() -> str:
        """The parts of a record."""
        digest = hashlib.sha256()
        for part in ("group_vars", "library", "module_utils", "playbooks", "roles", "molecule/kills/inventory"):
            for path in sorted((ROOT / part).rglob("*.[jyp]*")):
                if path.is_file() and path.suffix != ".pyc":
                    digest.update(path.read_bytes())
        return digest.hexdigest()

    def command(self, operation: str, **settings) -> list:
        options = {self.OPTIONS.get(name, name): value for name, value in settings.items()}
        if "salt" in options:
            options["salt"] = f"{options['salt']} of {self.session}"
        return [
            "docker", "exec", self.operations.host, "python3", f"{self.DIRECTORY}/ansible-playbook", operation,
            json.dumps(options),
        ]  # fmt: skip

    def run(self, operation: str, **settings) -> str:
        done = subprocess.run(
            self.command(operation, **settings),
            text=True,
            timeout=900,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def start(self, **settings) -> subprocess.Popen:
        with LOG.open("w") as stream:
            STARTED.append(
                subprocess.Popen(
                    self.command("deploy", **settings), start_new_session=True, stdin=subprocess.DEVNULL, stdout=stream,
                    stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
        return STARTED[-1]

    def deploy(self, **settings) -> None:
        self.run("deploy", **settings)

    def assert_nothing_to_do(self, **settings) -> None:
        """By what makes a playbook change nothing."""
        settings.pop("shiftmaster_hooks", None)
        assert json.loads(self.run("look", **settings).splitlines()[-1]) == []

    def back(self, reverse: bool = False) -> None:
        self.run("rollback", to="2.0.0", reverse=reverse, watch_seconds=1)


@pytest.fixture
def playbooks(operations):
    return Playbooks(operations)


@pytest.fixture(scope="session")
def replay(operations):
    replay = Replay(operations)
    replay.record()
    if operations.live_version(10) != "2.0.0":
        replay.back()
    return replay


@pytest.fixture(autouse=True)
def at_2_0_0(operations):
    """A test that failed leaves what it left; the next one still begins where it means to."""
    for process in STARTED:
        if process.poll() is None:
            kill_here(process)
    STARTED.clear()
    kill_on_host(operations)
    release_hold(operations)
    # The playbook cannot know that a run on the host is dead.
    operations.shell(f"rm -f {LOCK}")
    if operations.live_version(10) != "2.0.0":
        run = operations.deploy("2.0.0", shiftmaster_watch_seconds=1)
        assert run.code == 0, run.output[-4000:]


def events(operations) -> list:
    return [json.loads(line) for line in operations.shell(f"cat {AUDIT}").splitlines()]


def audited(operations, event: str) -> int:
    return sum(one["event"] == event for one in events(operations))


def release_hold(operations) -> None:
    operations.shell(f"rm -rf {DIRECTORY}")


def start(operations, *arguments, **extra) -> subprocess.Popen:
    STARTED.append(operations.start(*arguments, **extra))
    return STARTED[-1]


def start_and_reach(runs, point: str, watch: int = 8, **settings) -> subprocess.Popen:
    """Start a deploy of 2.1.1 that waits at the point, once it is there."""
    runs.operations.hold(point)
    process = runs.start(shiftmaster_watch_seconds=watch, **settings)
    wait_for_point(runs.operations, process, point)
    return process


def wait_for_point(operations, process: subprocess.Popen, point: str) -> None:
    # Waits on the host: a call from here costs the run that is waited for a good part of a processor.
    reached = f"timeout 5 sh -c 'until cat {DIRECTORY}/{point}.reached 2>/dev/null; do sleep 0.2; done'"
    wait_for(
        lambda: process.poll() is not None or operations.shell(reached, check=False), 600, f"the point {point}"
    )  # fmt: skip
    assert process.poll() is None, f"ended before {point}: {LOG.read_text()[-3000:]}"


def sql(operations, query: str) -> str:
    return operations.shell(f'runuser -u postgres -- psql -qtAd shiftmaster -c "{query}"')


def send_tasks(operations) -> str:
    """Background work that is requested between the kill and the next run."""
    prefix = f"killed{time.time_ns()}"
    operations.manage("task_runs", "send", prefix, "--count", "10")
    return prefix


def assert_tasks_ran(operations, prefix: str) -> None:
    """None is lost, and none ran twice."""

    def runs() -> list:
        return sql(operations, f"SELECT key FROM roster_taskrun WHERE key LIKE '{prefix}-%'").split()

    wait_for(lambda: len(set(runs())) == 10, 60, "the end of all tasks")
    assert len(runs()) == 10


@contextlib.contextmanager
def under_load(operations):
    """Users work all the time: none of their requests fails, and they see either the old or the new version."""
    with load(operations, "--clients", "4", "--think-seconds", "0.3", seconds=900) as traffic:
        yield
    traffic.assert_flawless()
    assert set(traffic.summary["versions"]) == {"2.0.0", "2.1.1"}


def assert_clean(operations) -> None:
    """The requested version is live, and nothing of a killed run is left."""
    assert operations.live_version(10) == "2.1.1"
    state = operations.state()
    assert state["transition"] is None
    assert "building" not in [entry["status"] for entry in state["releases"].values()]
    assert operations.shell(LEFT_OVER).split() == []
    slot = operations.shell(f"basename $(readlink {APP}/active)").strip()
    kinds = ("beat", "web", "worker")
    wait_for(  # An earlier worker may still be ending.
        lambda: operations.shell(ACTIVE_UNITS).split() == [f"shiftmaster-{kind}@{slot}.service" for kind in kinds],
        60, "one slot's units alone",
    )  # fmt: skip


def assert_converged(runs, reverse: bool = False, **settings) -> None:
    """It is as after any deploy: there is nothing left to do, and a rollback."""
    assert_clean(runs.operations)
    runs.assert_nothing_to_do(**settings)
    runs.back(reverse)
    assert runs.operations.live_version(10) == "2.0.0"


def schema_is_ahead(operations) -> bool:
    return "0003_" in sql(operations, "SELECT name FROM django_migrations WHERE app = 'roster'")


@pytest.mark.sample("handover")
@pytest.mark.parametrize("point", POINTS)
def test_kill_at_fault_injection_point(operations, point, request):
    runs = request.getfixturevalue("playbooks" if point in BY_PLAYBOOK else "replay")
    # Phases before and after: by the playbook in the sample, and where a release has a setting that no record has.
    others = runs if point in ("build", "handover") else request.getfixturevalue("replay")
    settings = NEEDS.get(point, {})
    # It takes the schema back at its end, for the next one of them.
    reverse = point in CHANGES_THE_SCHEMA
    if reverse and schema_is_ahead(operations):
        others.deploy(shiftmaster_watch_seconds=1)
        others.back(reverse=True)
    if point == "prune":  # There is one that may go.
        others.deploy(shiftmaster_web_threads=14, shiftmaster_watch_seconds=1)
        others.back()
    # The run that follows is the one that was requested, without what made it fail.
    settings_again = {} if settings is FAILS else settings
    with under_load(operations):
        process = start_and_reach(runs, point, **settings)
        # Not before: an interrupted run may have left its lock, which this one has replaced.
        taken_over = audited(operations, "lock_taken_over")
        kill_tree(operations, process, point)
        release_hold(operations)
        assert operations.live_version(5) == ("2.1.1" if point in SWITCHED else "2.0.0")
        tasks = send_tasks(operations)
        runs.deploy(shiftmaster_watch_seconds=3, **settings_again)
        assert_tasks_ran(operations, tasks)
    assert audited(operations, "lock_taken_over") == taken_over + 1
    assert_converged(others, reverse, **settings_again)


def test_kill_in_the_rename_of_the_rollback(operations, replay):
    """The link leads to the new version, which is being left; the next run completes the rollback first."""
    with under_load(operations):
        process = start_and_reach(replay, "revert", **FAILS)
        operations.shell(f"touch {DIRECTORY}/rename && rm {DIRECTORY}/revert")
        wait_for_point(operations, process, "rename")
        kill_tree(operations, process, "rename")
        release_hold(operations)
        assert operations.live_version(5) == "2.1.1"
        tasks = send_tasks(operations)
        back = audited(operations, "reverted")
        replay.deploy(shiftmaster_watch_seconds=3)
        assert_tasks_ran(operations, tasks)
    assert audited(operations, "reverted") == back + 1
    assert_converged(replay)


def test_kill_while_recovering(operations, replay):
    """The run that finishes what a dead one left dies, too; the third one finishes it."""
    with under_load(operations):
        kill_tree(operations, start_and_reach(replay, "drain"), "drain")
        release_hold(operations)
        kill_tree(operations, start_and_reach(replay, "live"), "live")
        release_hold(operations)
        assert operations.live_version(5) == "2.1.1"
        replay.deploy(shiftmaster_watch_seconds=3)
    assert_converged(replay)


def test_the_module_outlives_its_run(operations, playbooks, replay):
    """The administrator's machine alone dies: the next run takes the lock over, and waits for what is still at work."""
    with under_load(operations):
        process = start_and_reach(playbooks, "drain")
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
        release_hold(operations)
        assert second.wait(600) == 0, NEXT.read_text()[-6000:]
    assert audited(operations, "lock_taken_over") == taken_over + 1
    assert_converged(replay)


@pytest.mark.parametrize("point", REBOOTS)
def test_reboot_at_fault_injection_point(operations, playbooks, replay, point):
    """A run on the host cannot know that the one before the reboot is dead, so the operator's option names it."""
    runs = playbooks if point == REBOOT_BY_PLAYBOOK else replay
    process = start_and_reach(runs, point)
    kill_tree(operations, process, point)
    operations.reboot()
    assert operations.live_version(180) == REBOOTS[point]
    if runs is replay:
        replay.deploy(take_over=json.loads(operations.shell(f"cat {LOCK}"))["run_id"])
    else:
        playbooks.deploy(shiftmaster_watch_seconds=3)
    assert_converged(replay)


def test_two_runs_at_once(operations, playbooks):
    """The second one shows who holds the lock, and changes nothing; or it waits, and has its turn."""
    process = start_and_reach(playbooks, "watch")
    try:
        second = operations.deploy("2.0.0", shiftmaster_lock_wait_seconds=0)
        assert second.code == 2 and second.prints("holds the lock"), second.output[-3000:]
        waiting = start(operations, "rollback.yml", NEXT, to="2.0.0", shiftmaster_lock_wait_seconds=300)
        wait_for(lambda: "holds the lock" in NEXT.read_text(), 300, "the rollback at the lock")
        assert waiting.poll() is None and operations.live_version(10) == "2.1.1"
    finally:
        release_hold(operations)
        assert process.wait(600) == 0, LOG.read_text()[-3000:]
    assert waiting.wait(600) == 0, NEXT.read_text()[-3000:]
    assert operations.live_version(10) == "2.0.0"
    assert [one["kind"] for one in events(operations) if one["event"] == "live"][-2:] == ["deploy", "rollback"]


def test_restart_by_hand_during_the_watch(operations, replay):
    """Rejected; after the deploy the unit is healthy, and its stop stops everything."""
    process = start_and_reach(replay, "watch", watch=20)
    release_hold(operations)
    # After the run's own start of the unit, which would be one job with the restart.
    wait_for(lambda: "watch\n" in LOG.read_text(), 300, "the watch")
    operations.shell("systemctl restart shiftmaster", check=False)
    assert process.wait(600) == 0, LOG.read_text()[-3000:]
    assert operations.shell("systemctl is-active shiftmaster").strip() == "active"
    assert operations.live_version(10) == "2.1.1"
    operations.shell("systemctl stop shiftmaster", timeout=180)
    assert operations.shell(ACTIVE_UNITS).split() == []
    operations.shell("systemctl start shiftmaster", timeout=180)
    assert operations.live_version(30) == "2.1.1"
    replay.back()


def test_stop_by_hand_during_the_watch(operations, replay):
    """It stays stopped, and the release is not blamed."""
    process = start_and_reach(replay, "watch", watch=40)
    release_hold(operations)
    # The run first makes sure that the complete unit is started, which would undo the stop.
    wait_for(lambda: "watch\n" in LOG.read_text(), 300, "the watch")
    operations.shell("systemctl stop shiftmaster", timeout=180)
    assert process.wait(600) == 1, LOG.read_text()[-3000:]
    assert "somebody has stopped ShiftMaster" in " ".join(LOG.read_text().split())
    assert operations.shell(ACTIVE_UNITS).split() == []
    assert "bad" not in [entry["status"] for entry in operations.state()["releases"].values()]
    operations.shell("systemctl start shiftmaster", timeout=180)
    assert operations.live_version(30) == "2.1.1"
    replay.back()
