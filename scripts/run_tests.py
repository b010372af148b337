#!/usr/bin/env python3
"""Runs the steps of scripts/steps.yml, two or three at a time, and says how each ended.

  scripts/run_tests.py test           the sample
  scripts/run_tests.py all            everything; what happened is kept in .cache/results.json
  scripts/run_tests.py rest [NAME...] what did not pass in that run (it may have been ended); of a run on another
                                      machine docs/verification.md says it. Where the code has changed since, the
                                      passed steps that this touches have to be named, and are run again
  scripts/run_tests.py bench          the measurements
  scripts/run_tests.py NAME...        these steps; a scenario that the file does not list is run too

Each step's output is in .cache/logs/<name>.log. Where a scenario fails, the journal, the failed units and the logs
of its hosts are kept in .cache/failures/<name>/. Hosts are removed in every case; KEEP=1 leaves those of a failed one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import verification
import yaml

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
LOGS = CACHE / "logs"
FAILURES = CACHE / "failures"
RESULTS = verification.RESULTS
AT_ONCE = 2
# A third one while two leave a processor idle: they often wait for a service or a clock. As the load average has it,
# which knows of what began a minute ago.
MOST_AT_ONCE = 3
SETTLED_SECONDS = 60
LABEL = "shiftmaster-ops.scenario"
TAIL_LINES = 60
SHOW_RUNNING_EVERY_SECONDS = 60
# Tests named below the table, of each step that failed.
FAILED_SHOWN = 5
# The closing lines of pytest, with or without its rule of equal signs, and of unittest.
CLOSING_LINE = re.compile(
    r"^Ran \d+ tests? in [\d.]+s$"
    r"|^(=+ )?\d+ (passed|failed|error|errors|skipped|deselected|xfailed)\b.* in [\d.]+s.*$"
)
# What pytest says at the end of a test that failed; molecule has lines that begin so, too.
BROKEN_LINE = re.compile(r"^(FAILED|ERROR) \S+\.py\b")

# Where the tests of a step are that is no scenario.
TESTS = {"rules": ["monitoring/cases", "monitoring/rule_tests"], "package": ["tests/unit"], "unit": ["tests/unit"]}
# What a changed line may break whatever it is in.
ALWAYS_AGAIN = ("lint", "unit")
NOT_RUN, RUNNING, PASSED, FAILED = "not run", "running", "passed", "failed"


@dataclass
class Step:
    name: str
    proves: str = ""
    label: str = "executed on the real package"
    run: str = ""
    sample: bool = False
    bench: bool = False
    needs: str = ""
    alone: bool = False
    commit: bool = False
    minutes: float = 20
    result: str = NOT_RUN
    seconds: float = 0.0
    note: str = ""
    closing: list[str] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        """What pytest says of the tests that failed, where some did."""
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


def load_steps() -> list[Step]:
    return [Step(**item) for item in yaml.safe_load((ROOT / "scripts/steps.yml").read_text())["steps"]]


def unlisted(name: str) -> Step:
    """A scenario that the file does not list (yet): it may begin with the deployed host, and take its time."""
    hosts = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "molecule" / name / "inventory").rglob("*.yml")
    )
    return Step(name, needs="default" if "deployed:trixie" in hosts else "", minutes=150)


def select(steps: list[Step], words: list[str]) -> list[Step]:
    if words == ["all"]:
        return [step for step in steps if not step.bench]
    if words == ["test"]:
        # The sample measures nothing; what has to be alone elsewhere runs beside another here, with less load.
        return [replace(step, alone=False) for step in steps if step.sample and not step.bench]
    if words == ["bench"]:
        return [step for step in steps if step.bench]
    known = {step.name: step for step in steps}
    chosen = []
    for word in words:
        if word in known:
            chosen.append(known[word])
        elif (ROOT / "molecule" / word / "molecule.yml").exists():
            chosen.append(unlisted(word))
        else:
            sys.exit(f"ERROR: There is no step or scenario {word!r}: {', '.join(known)}.")
    return chosen


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def environment(step: Step) -> dict[str, str]:
    return {
        **os.environ,
        "SHIFTMASTER_STEP": step.name,
        "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
        "SHIFTMASTER_PROOFS": "sample" if sys.argv[1:2] == ["test"] else "all",
        "MOLECULE_COMMAND_BORDERS": "false",
        "ANSIBLE_NOCOLOR": "1",
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
    folder = FAILURES / step.name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(step.log, folder / "output.log")
    for host in hosts_of(step.name):
        for file, command in {
            "journal.log": "journalctl --boot --no-pager --output=short-precise",
            "failed-units.log": "systemctl --failed --no-pager; systemctl list-jobs --no-pager",
            "processes.log": "cat /proc/loadavg; for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done; df -h",
            "logs.tar": "tar --create --directory=/var/log --exclude=journal --exclude=lastlog . ",
        }.items():
            try:
                (folder / f"{host}-{file}").write_bytes(docker("exec", host, "sh", "-c", command).stdout)
            except subprocess.TimeoutExpired:
                (folder / f"{host}-{file}").write_text("The host did not answer within a minute.\n")
    say(f"    what its hosts said is in {folder.relative_to(ROOT)}/")


def remove_hosts(scenario: str) -> None:
    if hosts := hosts_of(scenario):
        docker("rm", "--force", "--volumes", *hosts, seconds=180)
    if not shutil.which("docker"):
        return
    networks = docker("network", "ls", "--quiet", "--filter", f"label={LABEL}={scenario}", text=True).stdout.split()
    if networks:
        docker("network", "rm", *networks)


class Runner:
    def __init__(self, steps: list[Step], keep=lambda: None) -> None:
        """keep is called behind each step, so that a run that dies leaves what it had."""
        self.steps, self.keep = steps, keep
        self.running: dict[str, tuple[Step, subprocess.Popen, float]] = {}
        self.interrupted = False

    def run(self) -> bool:
        signal.signal(signal.SIGTERM, self.interrupt)
        signal.signal(signal.SIGINT, self.interrupt)
        LOGS.mkdir(parents=True, exist_ok=True)
        last_shown = time.monotonic()
        try:
            while not self.interrupted:
                self.start_what_can_start()
                if not self.running:
                    break
                time.sleep(0.3)
                self.collect()
                if time.monotonic() - last_shown > SHOW_RUNNING_EVERY_SECONDS:
                    last_shown = time.monotonic()
                    say(
                        "...      " + ", ".join(f"{s.name} {last_shown - t:.0f} s" for s, _, t in self.running.values())
                    )
        finally:
            for step, process, began in list(self.running.values()):
                self.end(process)
                step.result, step.seconds, step.note = FAILED, time.monotonic() - began, "interrupted"
                remove_hosts(step.name)
            self.summary()
        return all(step.result == PASSED for step in self.steps)

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
        settled = time.monotonic() - max(began for _, _, began in self.running.values()) > SETTLED_SECONDS
        return len(self.running) < MOST_AT_ONCE and settled and os.getloadavg()[0] < (os.cpu_count() or 1)

    def start(self, step: Step) -> None:
        say(f"start    {step.name}")
        shutil.rmtree(FAILURES / step.name, ignore_errors=True)
        remove_hosts(step.name)
        step.result = RUNNING
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
                    keep_evidence(step)
                    kept = bool(os.environ.get("KEEP"))
            if not kept:
                remove_hosts(step.name)
            self.keep()

    @staticmethod
    def end(process: subprocess.Popen) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(timeout=15)
                return
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue

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


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def main() -> int:
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        print(__doc__)
        return 0 if words else 2
    results = {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", ".", ":(exclude)docs/verification.md")),
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    if words[0] == "rest":
        return rest(results, words[1:])
    steps = select(load_steps(), words)
    if not steps:
        sys.exit(f"ERROR: scripts/steps.yml has no steps for {' '.join(words)}.")

    def keep() -> None:
        if words == ["all"]:
            entries = [dict(asdict(step), result=step.result.replace(RUNNING, NOT_RUN)) for step in steps]
            RESULTS.write_text(json.dumps(dict(results, steps=entries), indent=2))

    good = Runner(steps, keep).run()
    keep()
    return 0 if good else 1


def changed_since(commit: str, missing: list[str]) -> list[str] | None:
    """The files that have changed since a commit, but the page of results and tests of steps that have not passed.

    A test that was wrong may be mended. None where the commit is not here.
    """
    own = [f":(exclude){folder}" for name in missing for folder in TESTS.get(name, [f"molecule/{name}/tests"])]
    compared = ["git", "diff", "--name-only", commit, "HEAD", "--", ".", ":(exclude)docs/verification.md", *own]
    done = subprocess.run(compared, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else None


def rest(now: dict, again: list[str]) -> int:
    """Run what did not pass in the last whole run, and what is named; the results say that it was not the first."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else verification.read(verification.PAGE.read_text())
    missing = [entry["name"] for entry in results["steps"] if entry["result"] != PASSED]
    before = {entry["name"]: entry["result"] for entry in results["steps"]}
    if unknown := set(again) - set(before):
        sys.exit(f"ERROR: The last whole run had no {', '.join(sorted(unknown))}.")
    changed = changed_since(results["commit"], missing)
    # What a rest before this one was told of is not asked for again.
    new = changed_since(results.get("last") or results["commit"], missing)
    if results["dirty"] or now["dirty"] or changed is None or new is None:
        sys.exit("ERROR: The last whole run was of other code: run `make test-all`.")
    if new and not again:
        sys.exit(
            "ERROR: The last whole run was of other code. Since then have changed:\n  "
            + "\n  ".join(new)
            + "\nName the passed steps that this touches (`make test-rest AGAIN='...'`), or run `make test-all`."
        )
    wanted = {*missing, *again, *(ALWAYS_AGAIN if new else ())}
    steps = [step for step in load_steps() if step.name in wanted]
    if not steps:
        say("all of the last whole run passed")
        return 0

    def keep() -> None:
        ran = {step.name: asdict(step) for step in steps if step.result in (PASSED, FAILED)}
        for name, entry in ran.items():
            again_at = f"run again {now['started']} on {now['commit'][:12]}, before: {before[name]}"
            entry["note"] = "; ".join(filter(None, [entry["note"], again_at]))
        kept = dict(
            results,
            changed=changed,
            last=now["commit"],
            steps=[ran.get(entry["name"], entry) for entry in results["steps"]],
        )
        RESULTS.write_text(json.dumps(kept, indent=2))

    good = Runner(steps, keep).run()
    keep()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
