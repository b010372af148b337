#!/usr/bin/env python3
"""Writes docs/verification.md from what `scripts/run_tests.py all` did (.cache/results.json), and reads it back."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".cache/results.json"
PAGE = ROOT / "docs/verification.md"
LAST = "It was gone on with on "
CHANGED = "What does not say so below passed before these changed: "
MARKS = {"passed": "✅ passed", "failed": "❌ failed", "not run": "not run"}


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def changed(results: dict) -> list[str]:
    """What a run that was gone on with on other code says of it."""
    files = ", ".join(f"`{name}`" for name in results.get("changed") or [])
    return [f"{LAST}`{results['last'][:12]}`. {CHANGED}{files}."] if files else []


def render(results: dict) -> str:
    lines = [
        "# Verification",
        "",
        "Written by `make test-all`: what was proven, on which commit, and how. *Executed on the real package*: the",
        "service itself ran in a Debian container with systemd. *Executed on a stand-in*: a minimal package of",
        "the same name, users, paths and unit took its place. *Schema-checked*: nothing was started.",
        "",
        f"Commit `{results['commit'][:12]}`{' with changes not committed' if results['dirty'] else ''},"
        f" begun {results['started']}.",
        *changed(results),
        "",
        "| proof | what it shows | label | result | seconds | tests |",
        "|---|---|---|---|---:|---|",
    ]
    for step in results["steps"]:
        tests = "; ".join(step["closing"])
        note = f" ({step['note']})" if step["note"] else ""
        lines.append(
            f"| {step['name']} | {cell(step['proves'])} | {step['label']} | {MARKS[step['result']]}{cell(note)} "
            f"| {step['seconds']:.0f} | {cell(tests)} |"
        )
    return "\n".join(lines) + "\n"


def read(page: str) -> dict:
    """What render() was given, as far as the page says it: enough to go on with the run, on another machine too."""
    head = re.search(r"^Commit `(\w+)`( with changes not committed)?, begun (.*)\.$", page, re.M)
    results = {"commit": head[1], "dirty": bool(head[2]), "started": head[3], "steps": []}
    if CHANGED in page:
        results["last"] = re.search(rf"^{LAST}`(\w+)`", page, re.M)[1]
        results["changed"] = re.findall(r"`([^`]+)`", page.partition(CHANGED)[2].partition("\n")[0])
    for line in page.splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != 6 or cells[0] == "proof" or set(line) <= set("|-:"):
            continue
        name, proves, label, said, seconds, closing = cells
        result, mark = next((result, mark) for result, mark in MARKS.items() if said.startswith(mark))
        results["steps"].append(
            {
                "name": name,
                "proves": proves,
                "label": label,
                "result": result,
                "note": said[len(mark) :].strip(" ()"),
                "seconds": float(seconds),
                "closing": closing.split("; ") if closing else [],
            }
        )
    return results


def main() -> int:
    if not RESULTS.exists():
        sys.exit("ERROR: .cache/results.json is missing: run `make test-all`.")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(json.loads(RESULTS.read_text())), encoding="utf-8")
    print(f"==> {PAGE.relative_to(ROOT)} written.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
