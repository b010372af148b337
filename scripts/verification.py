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
users, paths and unit took its place. *Schema-checked*: nothing was started.
"""


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
    """The commit, and the files that differ from it."""
    changed_since.cache_clear()
    commit = (git("rev-parse", "HEAD") or "").strip()
    return commit, changed_since(commit) or frozenset()


def covered(step, files) -> bool:
    return any(fnmatchcase(name, pattern) for name in files for pattern in step.covers)


def load() -> dict:
    path = ROOT / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def has_changed(step, commit: str) -> bool | None:
    """Whether anything that the step covers differs from a commit; None where there is no such commit."""
    changed = changed_since(commit)
    return None if changed is None else covered(step, changed)


def is_verified(step, record: dict) -> bool:
    entry = record.get(step.name, {})
    return "commit" in entry and "failed" not in entry and has_changed(step, entry["commit"]) is False


def note(record: dict, step, passed: bool, state: tuple) -> bool:
    """Note how a complete run of a step ended that began in this state; not where it covers uncommitted changes."""
    commit, changed = state[0][:12], state[1]
    # A choice of tests that passed says nothing of the others; one that fails fails the step.
    if not commit or covered(step, changed) or (passed and os.environ.get("PYTEST_ADDOPTS")):
        return False
    before = record.get(step.name, {})
    if not passed:
        record[step.name] = {**before, "failed": commit}
        return True
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
    return True


def render(steps: list, record: dict) -> str:
    lines = [
        HEAD,
        f"As of commit `{present()[0][:12]}`.",
        "",
        "| step | what it shows | label | passed on | date | changed since | retry |",
        "|---|---|---|---|---|---|---|",
    ]
    for step in steps:
        entry = record.get(step.name, {})
        if "commit" in entry:
            since = {True: "yes", False: "no", None: "unknown"}[has_changed(step, entry["commit"])]
            cells = [f"`{entry['commit']}`", entry["date"], since]
        else:
            cells = ["never", "", ""]
        retry = f"❌ failed on `{entry['failed']}`" if "failed" in entry else entry.get("retry", "")
        cells = [step.name, step.proves, step.label, *cells, retry]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|").strip() for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def save(steps: list, record: dict) -> None:
    """Write the record, a line for each step, and the page."""
    lines = [f'"{step.name}": {json.dumps(record[step.name])}' for step in steps if step.name in record]
    (ROOT / RECORD).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    (ROOT / PAGE).write_text(render(steps, record), encoding="utf-8")
