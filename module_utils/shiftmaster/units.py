"""systemd as the cutover needs it."""

from __future__ import annotations

import subprocess

KINDS = ("web", "worker", "beat")


class UnitError(Exception):
    """systemctl refused; str() holds its words."""


def unit(kind: str, colour: str) -> str:
    return "shiftmaster-%s@%s.service" % (kind, colour)


def systemctl(*arguments, timeout: float = 90) -> str:
    """Run systemctl and return its output; raises UnitError with systemd's message."""
    try:
        done = subprocess.run(
            ("systemctl",) + arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnitError("systemctl %s did not end within %d s" % (" ".join(arguments), timeout)) from error
    if done.returncode != 0:
        raise UnitError("systemctl %s: %s" % (" ".join(arguments), done.stderr.decode(errors="replace").strip()))
    return done.stdout.decode(errors="replace")


def properties(name: str, *names) -> dict:
    """Return properties of a unit, e.g. ActiveState, MainPID, Result."""
    output = systemctl("show", "--property=" + ",".join(names), name)
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def active_state(name: str) -> str:
    """Return active, activating, deactivating, inactive or failed."""
    return properties(name, "ActiveState")["ActiveState"]


def journal(name: str, lines: int = 15) -> str:
    """Return the last lines that a unit wrote, for an error's message."""
    try:
        done = subprocess.run(
            ("journalctl", "--unit", name, "--lines", str(lines), "--no-pager", "--output", "cat"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip()
