"""The record of complete runs (docs/verification.json), and the page that shows it (docs/verification.md).

A step is verified where it passed on a commit and nothing that it covers (scripts/steps.yml) has changed since.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import time
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD, PAGE = Path("docs/verification.json"), Path("docs/verification.md")
HEAD = """# Verification

Written by `make test-all`, `make test-affected` and each other complete run of a step: the last commit on which the
step passed, and whether anything that it covers (`scripts/steps.yml`) differs from it. *Executed on the real package*:
the service itself ran in a Debian container with systemd. *Executed on a stub*: a minimal package of the same name,
users, paths and unit took its place. *Schema-checked*: nothing was started. Remarks: retries, and how many tests were
skipped.
"""
# A line of pytest or unittest on at least one test.
TESTS = re.compile(r"\b[1-9]\d* passed\b|^Ran [1-9]")


def git(*arguments: str) -> str | None:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", errors="surrogateescape", check=False
    )
    return done.stdout if done.returncode == 0 else None


@functools.cache
def changed_since(commit: str) -> frozenset | None:
    """The files that differ from a commit, uncommitted ones included; None where there is no such commit."""
    found = (git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}") or "").strip()
    changed = git("diff", "--name-only", "--no-renames", "-z", found, "--") if found else None
    if changed is None:
        return None
    new = git("ls-files", "--others", "--exclude-standard", "-z") or ""
    return frozenset(name for name in (changed + new).split("\0") if name) - {str(RECORD), str(PAGE)}


def present() -> tuple:
    """The commit, the files that differ from it, and the time."""
    changed_since.cache_clear()
    now, commit = time.time(), (git("rev-parse", "HEAD") or "").strip()
    return commit, changed_since(commit) or frozenset(), now


def covered(step, files) -> bool:
    return any(fnmatchcase(name, pattern) for name in files for pattern in step.covers)


def has_moved(step, state: tuple) -> bool:
    """Whether the commit or a file that the step covers has changed since a state, also where it is as before again."""
    commit, changed, _now = present()
    files = set((git("ls-files", "-z") or "").split("\0")) - {"", str(RECORD), str(PAGE)} - changed
    written = [name for name in files if (ROOT / name).lstat().st_ctime > state[2]]
    return commit != state[0] or covered(step, changed) or covered(step, written)


def load() -> dict:
    """The record; ValueError where it cannot be read."""
    path = ROOT / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if all(isinstance(entry, dict) for entry in record.values()):
            return record
        error = "an entry is no mapping"
    except (ValueError, AttributeError) as problem:
        error = problem
    raise ValueError(f"{RECORD} cannot be read: {error}")


def has_changed(step, commit: str) -> bool | None:
    """Whether anything that the step covers differs from a commit; None where there is no such commit."""
    changed = changed_since(commit)
    return None if changed is None else covered(step, changed)


def is_verified(step, record: dict) -> bool:
    entry = record.get(step.name, {})
    return "commit" in entry and "failed" not in entry and has_changed(step, entry["commit"]) is False


def why_not(step, passed: bool, state: tuple) -> str:
    """Why the result of a step that began in this state says nothing of a commit; "" where it does."""
    commit, changed, _began = state
    if not commit or covered(step, changed):
        return "it covers uncommitted changes"
    if has_moved(step, state):
        return "the commit, or a file that it covers, changed while it ran"
    # A choice of tests that passed says nothing of the others; one that fails fails the step.
    if passed and os.environ.get("PYTEST_ADDOPTS"):
        return "PYTEST_ADDOPTS chose what ran"
    if passed and any("DEPLOYED_IMAGE=keep" in line for line in step.closing):
        return "the deployed image was outdated"
    if passed and (step.closing or step.is_scenario) and not any(TESTS.search(line) for line in step.closing):
        return "no test passed"
    return ""


def note(record: dict, step, passed: bool, state: tuple) -> str:
    """Note how a complete run of a step ended that began in this state; returns why not, where it is not noted."""
    if reason := why_not(step, passed, state):
        return reason
    commit = state[0][:12]
    before = record.get(step.name, {})
    if not passed:
        record[step.name] = {**before, "failed": commit}
        return ""
    retries = [found[0] for line in step.closing if (found := re.search(r"\d+ reruns?", line))]
    if "failed" in before and has_changed(step, before["failed"]) is False:
        retries.append(f"failed on `{before['failed']}`")
    record[step.name] = {
        "commit": commit,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(step.seconds),
        "tests": "; ".join(step.closing),
        **({"retry": ", ".join(retries)} if retries else {}),
    }
    return ""


def render(steps: list, record: dict) -> str:
    lines = [
        HEAD,
        f"As of commit `{present()[0][:12]}`.",
        "",
        "| step | what it shows | label | passed on | date | changed since | remarks |",
        "|---|---|---|---|---|---|---|",
    ]
    for step in steps:
        entry = record.get(step.name, {})
        if "commit" in entry:
            since = {True: "yes", False: "no", None: "unknown"}[has_changed(step, entry["commit"])]
            cells = [f"`{entry['commit']}`", entry["date"], since]
        else:
            cells = ["never", "", ""]
        remarks = [f"❌ failed on `{entry['failed']}`" if "failed" in entry else entry.get("retry", "")]
        if " skipped" in entry.get("tests", ""):
            remarks += re.findall(r"\d+ (?:passed|skipped)", entry["tests"])
        cells = [step.name, step.proves, step.label, *cells, ", ".join(filter(None, remarks))]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|").strip() for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def save(steps: list, record: dict) -> None:
    """Write the record, a line for each step, and the page; OSError or ValueError where that is not possible."""
    if (git("rev-parse", "--is-shallow-repository") or "").strip() == "true":
        raise ValueError("this clone is shallow and lacks commits of the record: `git fetch --unshallow` gets them")
    lines = [f'"{step.name}": {json.dumps(record[step.name])}' for step in steps if step.name in record]
    for path, text in ((RECORD, "{\n" + ",\n".join(lines) + "\n}\n"), (PAGE, render(steps, record))):
        new = ROOT / path.with_suffix(".new")
        try:
            new.write_text(text, encoding="utf-8")
            new.replace(ROOT / path)
        finally:
            new.unlink(missing_ok=True)
