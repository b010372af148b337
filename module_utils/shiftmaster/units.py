"""systemd as the cutover needs it."""

from __future__ import annotations

import os
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


def yield_to_others(name: str, yielding: bool) -> None:
    """Let the processes of a unit, with their threads, run only when nobody else wants to, or as usual again.

    By the scheduler's idle class: by its nice value alone a process would still end its slice before others are let in.
    Who ends meanwhile needs nothing; what they start from now on inherits it.
    """
    policy = os.SCHED_IDLE if yielding else os.SCHED_OTHER
    todo = [int(properties(name, "MainPID")["MainPID"])]
    children = {}
    for pid in os.listdir("/proc") if todo[0] else []:
        if pid.isdigit():
            try:
                with open("/proc/%s/stat" % pid, encoding="utf-8", errors="replace") as stream:
                    children.setdefault(int(stream.read().rsplit(")", 1)[1].split()[1]), []).append(int(pid))
            except (OSError, IndexError):
                continue
    while todo and todo[0]:
        pid = todo.pop()
        todo += children.get(pid, [])
        try:
            for thread in os.listdir("/proc/%d/task" % pid):
                os.sched_setscheduler(int(thread), policy, os.sched_param(0))
        except OSError:
            continue


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
