#!/usr/bin/env python3
"""Runs the steps of scripts/steps.yml, two or three at a time, the longest first, and reports how each ended.

  scripts/run_tests.py test               what `make test` runs
  scripts/run_tests.py affected [COMMIT]  the steps that cover what has changed since a commit, uncommitted changes
                                          included; without one since the branch left its upstream, origin/main or main
                                          (the first that differs from HEAD), else since HEAD~1
  scripts/run_tests.py rest               the steps that have not passed on what they cover now
  scripts/run_tests.py all                all of these steps
  scripts/run_tests.py bench              the measurements
  scripts/run_tests.py NAME...            these steps; a scenario that the file does not list is run too
  scripts/run_tests.py page               write docs/verification.md again

`affected` leaves out what has passed already on what it covers now: the same command continues an interrupted run.
Every step that ran completely is noted in docs/verification.json (scripts/verification.py), with how long it took.
Each step's output is in .cache/logs/<name>.log. Where a scenario fails, the journal, the failed units and the logs
of its hosts are kept in .cache/failures/<name>/. Hosts are removed in every case; KEEP=1 leaves those of a failed one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import verification
import yaml

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
LOGS = CACHE / "logs"
FAILURES = CACHE / "failures"
AT_ONCE = 2
# A further one where those have left a processor idle for a minute: they often wait for a service or a clock.
MOST_AT_ONCE = 4
STABLE_SECONDS = 60
POLL_SECONDS = 0.3
LABEL = "shiftmaster-ops.scenario"
TAIL_LINES = 60
SHOW_RUNNING_EVERY_SECONDS = 60
# Tests named below the table, of each step that failed.
FAILED_SHOWN = 5
# The closing lines of pytest, with or without its rule of equal signs, and of unittest; an image that is outdated.
CLOSING_LINE = re.compile(
    r"^Ran \d+ tests? in [\d.]+s$"
    r"|^==> Image .* \(DEPLOYED_IMAGE=keep\)\.$"
    r"|^(=+ )?\d+ (passed|failed|error|errors|skipped|deselected|xfailed)\b.* in [\d.]+s.*$"
)
# pytest's last lines about a failed test; molecule has lines that begin so, too.
BROKEN_LINE = re.compile(r"^(FAILED|ERROR) \S+\.py\b")

NOT_RUN, RUNNING, PASSED, FAILED = "not run", "running", "passed", "failed"


@dataclass
class Step:
    name: str
    proves: str = ""
    label: str = "executed on the real package"
    run: str = ""
    suites: list[str] = field(default_factory=lambda: ["all"])
    covers: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    needs: str = ""
    alone: bool = False
    commit: bool = False
    minutes: float = 20
    # How long it takes, as far as that is known.
    expected: float | None = None
    result: str = NOT_RUN
    seconds: float = 0.0
    note: str = ""
    closing: list[str] = field(default_factory=list)
    # The commit and the changes that it began with.
    state: tuple = ()

    @property
    def broken(self) -> list[str]:
        """What pytest reports about the tests that failed, where some did."""
        if self.result != FAILED or not self.log.exists():
            return []
        lines = self.log.read_text(errors="replace").splitlines()
        return [line[:300] for line in lines if BROKEN_LINE.match(line)]

    @property
    def is_scenario(self) -> bool:
        return not self.run

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name}.log"

    def script(self, alone: bool) -> str:
        """The step as a line of shell; alone where the step that it needs does not run with it."""
        if self.run:
            return self.run
        first = "scripts/images deployed && " if self.needs == "default" and alone else ""
        name = shlex.quote(self.name)
        if not self.commit:
            # Not destroyed by molecule: a failed host is looked at first.
            return f"{first}molecule destroy -s {name} && molecule test -s {name} --destroy=never"
        return " && ".join(
            [
                f"molecule destroy -s {name}",
                f"molecule converge -s {name}",
                f"molecule idempotence -s {name}",
                f"scripts/images commit-scenario {name}",
                f"molecule verify -s {name}",
            ]
        )


def flat(patterns: list) -> list[str]:
    """Patterns, of which some are lists of an area."""
    return [one for item in patterns for one in (flat(item) if isinstance(item, list) else [item])]


def load_steps() -> list[Step]:
    steps = []
    for item in yaml.safe_load((ROOT / "scripts/steps.yml").read_text())["steps"]:
        step = Step(**{**item, "covers": flat(item.get("covers", []))})
        if step.is_scenario:
            step.covers.append(f"molecule/{step.name}/*")
            step.needs = needs_of(step.name)
        steps.append(step)
    return steps


def needs_of(scenario: str) -> str:
    """The step that a scenario waits for: `default`, where a host begins with the state that this one leaves."""
    inventory = (ROOT / "molecule" / scenario / "inventory").rglob("*.yml")
    return "default" if any("deployed:trixie" in path.read_text(encoding="utf-8") for path in inventory) else ""


def default_since() -> str:
    head = (verification.git("rev-parse", "HEAD") or "").strip()
    for name in ("@{upstream}", "origin/main", "main"):
        base = (verification.git("merge-base", "HEAD", name) or "").strip()
        if base and base != head:
            return base
    return "HEAD~1"


def affected(steps: list[Step], since: str) -> list[Step]:
    """The steps that cover what has changed; those of them that have passed on it already are named and left out."""
    if verification.changed_since(since) is None:
        sys.exit(f"ERROR: There is no commit {since!r} here.")
    record, found = verification.load(), [step for step in steps if verification.has_changed(step, since)]
    passed = [step.name for step in found if verification.is_verified(step, record)]
    names = ", ".join(step.name for step in found)
    say(f"{len(verification.changed_since(since))} files differ from {since[:12]}; they touch {names}")
    if passed:
        say(f"passed already on what is here: {', '.join(passed)}")
    return [step for step in found if step.name not in passed]


def select(steps: list[Step], words: list[str]) -> list[Step]:
    every = [step for step in steps if "all" in step.suites]
    if words == ["all"]:
        return every
    if words == ["rest"]:
        record = verification.load()
        return [step for step in every if not verification.is_verified(step, record)]
    if words[0] == "affected":
        return affected(every, words[1] if words[1:] else default_since())
    if words == ["test"]:
        # It measures nothing; what has to be alone elsewhere runs next to another one here, with less load.
        return [replace(step, alone=False) for step in steps if "test" in step.suites]
    if words == ["bench"]:
        return [step for step in steps if "bench" in step.suites]
    known = {step.name: step for step in steps}
    chosen = []
    for word in words:
        if word in known:
            chosen.append(known[word])
        elif (ROOT / "molecule" / word / "molecule.yml").exists():
            # It is not listed (yet), and may take its time.
            chosen.append(Step(word, suites=[], needs=needs_of(word), minutes=150))
        else:
            sys.exit(f"ERROR: There is no step or scenario {word!r}: {', '.join(known)}.")
    return chosen


def longest_first(steps: list[Step]) -> list[Step]:
    """The order of the file up to the last step that others wait for; then those that take longest."""
    begin = max((number for number, step in enumerate(steps, 1) if step.alone or step.commit), default=0)
    return steps[:begin] + sorted(steps[begin:], key=lambda step: -(step.expected or 60 * step.minutes))


def time_left(steps: list[Step], running: dict) -> tuple[float, list[str]]:
    """Seconds until the last step ends, at the pace of those that have ended, and the steps of unknown duration.

    As two run at a time. running: {name: seconds since its start}.
    """
    ended = [step for step in steps if step.result == PASSED and step.expected]
    expected = sum(step.expected for step in ended)
    pace = sum(step.seconds for step in ended) / expected if expected > STABLE_SECONDS else 1
    unknown = [step.name for step in steps if step.result in (NOT_RUN, RUNNING) and not step.note and not step.expected]
    free, end = [0.0] * AT_ONCE, {}
    # Those that run first: they have their places already.
    for step in sorted(steps, key=lambda step: step.name not in running):
        if step.name in running:
            begin = 0.0
        elif step.result == NOT_RUN and not step.note:
            begin = max(max(free) if step.alone else min(free), end.get(step.needs, 0.0))
        else:
            continue
        free.sort()
        end[step.name] = begin + max(0.0, (step.expected or 0) * pace - running.get(step.name, 0))
        free = [end[step.name]] * AT_ONCE if step.alone else [*free[1:], end[step.name]]
    return max(free), unknown


def idle_seconds() -> float:
    """Return how long the processors have been idle since the machine started, all together (proc_stat(5))."""
    return int(Path("/proc/stat").read_text().split()[4]) / os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def environment(step: Step) -> dict[str, str]:
    return {
        **os.environ,
        "SHIFTMASTER_STEP": step.name,
        "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
        "SHIFTMASTER_SELECTION": "sample" if sys.argv[1:2] == ["test"] else "all",
        "MOLECULE_COMMAND_BORDERS": "false",
        "ANSIBLE_NOCOLOR": "1",
        # The log of a step is complete.
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
        "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks,loaded_plugins",
        "NO_COLOR": "1",
        "PY_COLORS": "0",
        "PYTHONUNBUFFERED": "1",
        # Lines of output are as long as they are.
        "COLUMNS": "160",
    }


def docker(*arguments: str, seconds: int = 60, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["docker", *arguments], capture_output=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL, **options
    )


def hosts_of(scenario: str) -> list[str]:
    if not shutil.which("docker"):
        return []
    found = docker("ps", "--all", "--filter", f"label={LABEL}={scenario}", "--format", "{{.Names}}", text=True)
    return found.stdout.split()


def keep_evidence(step: Step) -> None:
    directory = FAILURES / step.name
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(step.log, directory / "output.log")
    for host in hosts_of(step.name):
        for file, command in {
            "journal.log": "journalctl --boot --no-pager --output=short-precise",
            "failed-units.log": "systemctl --failed --no-pager; systemctl list-jobs --no-pager",
            "processes.log": "cat /proc/loadavg; for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done; df -h",
            "logs.tar": "tar --create --directory=/var/log --exclude=journal --exclude=lastlog . ",
        }.items():
            try:
                (directory / f"{host}-{file}").write_bytes(docker("exec", host, "sh", "-c", command).stdout)
            except subprocess.TimeoutExpired:
                (directory / f"{host}-{file}").write_text("The host did not respond within a minute.\n")
    say(f"    the logs of its hosts are in {directory.relative_to(ROOT)}/")


def remove_hosts(scenario: str) -> None:
    if hosts := hosts_of(scenario):
        docker("rm", "--force", "--volumes", *hosts, seconds=180)
    if not shutil.which("docker"):
        return
    networks = docker("network", "ls", "--quiet", "--filter", f"label={LABEL}={scenario}", text=True).stdout.split()
    if networks:
        docker("network", "rm", *networks)


class Runner:
    def __init__(self, steps: list[Step], keep=lambda step: None) -> None:
        """keep is called with each step that has ended, so that a run that dies leaves what it had."""
        self.steps, self.keep = steps, keep
        self.running: dict[str, tuple[Step, subprocess.Popen, float]] = {}
        # When it was looked at, and how long all processors together had been idle by then.
        self.idle_before = (0.0, 0.0)
        self.interrupted = False

    def run(self) -> bool:
        signal.signal(signal.SIGTERM, self.interrupt)
        signal.signal(signal.SIGINT, self.interrupt)
        # The end of its terminal; nohup has it ignored.
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self.interrupt)
        LOGS.mkdir(parents=True, exist_ok=True)
        last_shown = time.monotonic()
        say(f"{len(self.steps)} step{'s' * (len(self.steps) > 1)}; {self.left()}")
        try:
            while not self.interrupted:
                self.start_what_can_start()
                if not self.running:
                    break
                time.sleep(POLL_SECONDS)
                self.collect()
                if time.monotonic() - last_shown > SHOW_RUNNING_EVERY_SECONDS:
                    last_shown = time.monotonic()
                    running = ", ".join(f"{s.name} {last_shown - t:.0f} s" for s, _, t in self.running.values())
                    say(f"...      {running}; {self.left()}")
        finally:
            for step, process, began in list(self.running.values()):
                self.end(process)
                step.result, step.seconds, step.note = FAILED, time.monotonic() - began, "interrupted"
                remove_hosts(step.name)
            self.summary()
        return all(step.result == PASSED for step in self.steps)

    def left(self) -> str:
        now = time.monotonic()
        seconds, unknown = time_left(self.steps, {name: now - began for name, (_, _, began) in self.running.items()})
        without = f", without {', '.join(unknown)}: not known" if unknown else ""
        return f"about {seconds / 60:.0f} minutes left{without}"

    def interrupt(self, number, frame) -> None:
        self.interrupted = True

    def start_what_can_start(self) -> None:
        by_name = {step.name: step for step in self.steps}
        for step in self.steps:
            if step.result != NOT_RUN or step.note:
                continue
            if not self.has_room() or any(other.alone for other, _, _ in self.running.values()):
                return
            needed = by_name.get(step.needs)
            if needed and needed.result == FAILED or needed and needed.note and needed.result == NOT_RUN:
                step.note = f"needs {step.needs}"
                say(f"not run  {step.name}: it needs {step.needs}")
                continue
            # What has to be alone comes next: nothing long is begun that it would have to wait for.
            if step.alone and self.running:
                return
            if needed and needed.result != PASSED:
                continue
            self.start(step)

    def has_room(self) -> bool:
        if len(self.running) < AT_ONCE:
            return True
        now, idle = time.monotonic(), idle_seconds()
        if self.idle_before[0] < max(began for _, _, began in self.running.values()):
            self.idle_before = (now, idle)
        since, before = self.idle_before
        if now - since < STABLE_SECONDS:
            return False
        self.idle_before = (now, idle)
        return len(self.running) < MOST_AT_ONCE and idle - before >= now - since

    def start(self, step: Step) -> None:
        say(f"start    {step.name}")
        shutil.rmtree(FAILURES / step.name, ignore_errors=True)
        remove_hosts(step.name)
        step.result, step.state = RUNNING, verification.present()
        with step.log.open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-o", "pipefail", "-c", step.script(alone=step.needs not in {s.name for s in self.steps})],
                cwd=ROOT,
                env=environment(step),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running[step.name] = (step, process, time.monotonic())

    def collect(self) -> None:
        for step, process, began in list(self.running.values()):
            step.seconds = time.monotonic() - began
            if process.poll() is None:
                if step.seconds < step.minutes * 60:
                    continue
                self.end(process)
                step.note = f"ended after {step.minutes:g} minutes"
            del self.running[step.name]
            lines = step.log.read_text(errors="replace").splitlines()
            step.closing = [line.strip("= ") for line in lines if CLOSING_LINE.match(line)]
            step.result = PASSED if process.returncode == 0 and not step.note else FAILED
            say(f"{step.result:8} {step.name} in {step.seconds:.0f} s")
            for line in step.closing:
                say(f"         {step.name}: {line}")
            kept = False
            if step.result == FAILED:
                tail = "\n".join(lines[-TAIL_LINES:])
                print(f"----- the end of {step.log.relative_to(ROOT)}\n{tail}\n-----", flush=True)
                if step.is_scenario:
                    kept = bool(os.environ.get("KEEP"))
                    try:
                        keep_evidence(step)
                    except OSError as error:
                        say(f"    not all logs of its hosts are kept: {error}")
            if not kept:
                remove_hosts(step.name)
            self.keep(step)

    @staticmethod
    def end(process: subprocess.Popen) -> None:
        # pytest reports its failures at an interrupt, and is lost with them at any other signal.
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(timeout=30)
                break
        # Its shell may end before others of its group, and some of its session are in other groups.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getsid(int(path.name)) == process.pid:
                    os.kill(int(path.name), signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)

    def summary(self) -> None:
        width = max(len(step.name) for step in self.steps)
        print(f"\n{'step':{width}}  {'label':28}  {'result':8}  seconds")
        for step in self.steps:
            print(f"{step.name:{width}}  {step.label:28}  {step.result:8}  {step.seconds:7.1f}  {step.note}".rstrip())
        for step in self.steps:
            for line in step.broken[:FAILED_SHOWN]:
                print(f"{step.name}: {line}")
        count = {result: sum(step.result == result for step in self.steps) for result in (PASSED, FAILED, NOT_RUN)}
        print(
            f"\n{len(self.steps)} step{'s' * (len(self.steps) > 1)}: "
            + ", ".join(f"{n} {result}" for result, n in count.items()),
            flush=True,
        )


def not_covered(steps: list[Step], chosen: list[Step]) -> str:
    """What `make test` leaves to the complete runs."""
    part = {name for step in chosen for name in step.samples}
    rest = [step.name for step in steps if "all" in step.suites and (step.name in part or "test" not in step.suites)]
    return (
        "\nNot covered (`make test-affected` runs what a change touches completely, `make test-all` everything):\n"
        f"  of these one or a few tests ran: {', '.join(name for name in rest if name in part)}\n"
        f"  of these none ran: {', '.join(name for name in rest if name not in part)}"
    )


def main() -> int:
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        print(__doc__)
        return 0 if words else 2
    every = load_steps()
    try:
        record = verification.load()
        if words == ["page"]:
            verification.save([step for step in every if "all" in step.suites], record)
            return 0
    except (OSError, ValueError) as error:
        sys.exit(f"ERROR: {error}")
    (ROOT / ".cache").mkdir(exist_ok=True)
    # Kept as long as this process: steps do not inherit it.
    with (ROOT / ".cache/run_tests.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("ERROR: Steps are running in this clone already; their hosts and logs have the same names.")
        return run(every, words, record)


def run(every: list[Step], words: list[str], record: dict) -> int:
    complete = [step for step in every if "all" in step.suites]
    steps = select(every, words)
    if not steps:
        say("there is nothing to run")
        return 0
    for step in steps:
        # `make test` has no durations but those of steps.yml: there a step may be a part of itself.
        if words != ["test"]:
            step.expected = record.get(step.name, {}).get("seconds", step.expected)
    if words[0] in ("all", "rest", "affected"):
        steps = longest_first(steps)

    def keep(step: Step) -> None:
        if words == ["test"] or "all" not in step.suites:
            return
        try:
            # Read again: a merge may have changed it.
            record = verification.load()
            reason = verification.note(record, step, step.result == PASSED, step.state)
            if not reason:
                verification.save(complete, record)
        except (OSError, ValueError) as error:
            reason = str(error)
        if reason:
            say(f"         {step.name}: not noted in {verification.RECORD}: {reason}")

    good = Runner(steps, keep).run()
    if words == ["test"]:
        print(not_covered(every, steps), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
