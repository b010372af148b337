"""Writes generated files; with --check on the command line, lists those that are not up to date."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterable

ROOT = Path(__file__).resolve().parent.parent


def refresh(wanted: dict[Path, str], there: Iterable[Path], check: bool) -> list[Path]:
    """Write what differs and remove those of the files there that are not wanted; returns their paths."""
    found = {path: path.read_text(encoding="utf-8") for path in {*wanted, *there} if path.exists()}
    outdated = sorted(path for path in {*wanted, *found} if wanted.get(path) != found.get(path))
    for path in () if check else outdated:
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
        else:
            path.unlink()
    return outdated


def main(wanted: dict[Path, str], there: Iterable[Path], command: str) -> int:
    """Do what the command line says; returns the exit code."""
    check = "--check" in sys.argv[1:]
    outdated = refresh(wanted, there, check)
    if outdated:
        names = ", ".join(str(path.relative_to(ROOT)) for path in outdated)
        print((f"Not up to date (run {command}): " if check else "Written: ") + names)
    return 1 if check and outdated else 0
