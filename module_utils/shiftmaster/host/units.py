"""systemd as the cutover needs it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time

from .printable import printable

KINDS = ("web", "worker", "beat")
SYSTEMD_RUN = ("/usr/bin/systemd-run",)


class UnitError(Exception):
    """systemctl refused; str() holds its words."""


class UnitTimeoutError(UnitError):
    """systemctl did not end in time."""


def unit(kind: str, slot: str) -> str:
    return "shiftmaster-%s@%s.service" % (kind, slot)


def systemctl(*arguments, timeout: float = 90) -> str:
    """Run systemctl and return its output; raises UnitError with systemd's message."""
    try:
        done = subprocess.run(
            ("systemctl",) + arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnitTimeoutError("systemctl %s did not end within %d s" % (" ".join(arguments), timeout)) from error
    if done.returncode != 0:
        raise UnitError("systemctl %s: %s" % (" ".join(arguments), done.stderr.decode(errors="replace").strip()))
    return done.stdout.decode(errors="replace")


def transient(name: str, description: str, properties, terminal: bool = False) -> list:
    """Return the words that run a command, to be appended, in a transient unit, and wait for its end.

    terminal: the command gets a terminal of its own, which is connected to that of this process.
    """
    # By default the description is the command, which may hold a secret.
    words = [
        "--quiet",
        "--pty" if terminal else "--pipe",
        "--wait",
        "--collect",
        "--service-type=exec",
        "--unit=" + name,
    ]
    return [*SYSTEMD_RUN, *words, "--description=" + description, *("--property=" + line for line in properties), "--"]


def stop(*names, seconds: float) -> None:
    """Stop units, and kill what still runs after so many seconds.

    systemd's own limit is none for hostile code: a service that notifies it may extend that limit again and again.
    """
    try:
        systemctl("stop", *names, timeout=seconds)
    except UnitTimeoutError:
        with contextlib.suppress(UnitError):  # Some of them have ended.
            systemctl("kill", "--signal=KILL", *names)
        systemctl("stop", *names, timeout=60)


def properties(name: str, *names) -> dict:
    """Return properties of a unit, e.g. ActiveState, MainPID, Result; times to the microsecond."""
    output = systemctl("show", "--timestamp=us+utc", "--property=" + ",".join(names), name)
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def is_enabled(found: dict) -> bool:
    """Return, from a unit's properties, whether it starts at boot, or needs nothing for that."""
    return found.get("UnitFileState") in ("enabled", "enabled-runtime", "static", "indirect", "alias")


def active_state(name: str) -> str:
    """Return active, activating, deactivating, inactive or failed."""
    return active_states([name])[name]


def active_states(names) -> dict:
    """Return the state of each unit, by one call."""
    return dict(zip(names, systemctl("show", "--property=ActiveState", "--value", *names).split()))


def processes(name: str) -> list:
    """Return the processes of a unit, by their control group."""
    found = []
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                with open("/proc/%s/cgroup" % pid, encoding="utf-8", errors="replace") as stream:
                    if any(line.rstrip("\n").endswith("/" + name) for line in stream):
                        found.append(int(pid))
            except OSError:
                continue
    return found


def resume(*names) -> None:
    """Let processes of units go on that another process of their user has stopped (SIGSTOP)."""
    for pid in [pid for name in names for pid in processes(name)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def yield_to_others(name: str, yielding: bool) -> None:
    """Let the processes of a unit, with their threads, run only when nobody else wants to, or as usual again.

    By the scheduler's idle class: by its nice value alone a process would still end its slice before others are let in.
    Who ends meanwhile needs nothing; what they start from now on inherits it.
    """
    policy = os.SCHED_IDLE if yielding else os.SCHED_OTHER
    for pid in processes(name):
        try:
            for thread in os.listdir("/proc/%d/task" % pid):
                os.sched_setscheduler(int(thread), policy, os.sched_param(0))
        except OSError:
            continue


@contextlib.contextmanager
def yielding(name: str, seconds: float):
    """Keep a unit that starts or ends inside the block out of everybody's way, for so many seconds at the longest.

    A unit that starts needs some time before its processes can be queried, so they are searched continuously.
    """
    over = threading.Event()

    def keep():
        # Ahead of the one that it holds back.
        os.setpriority(os.PRIO_PROCESS, 0, -15)
        began = time.monotonic()
        while True:
            passed = time.monotonic() - began
            yield_to_others(name, passed < seconds)
            if passed >= seconds or over.wait(0.02 if passed < 1 else 0.5):
                return

    watcher = threading.Thread(target=keep, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def journal(name: str, lines: int = 15, since: float = 0) -> str:
    """Return the last lines that a unit wrote, of those since a time, for an error's message."""
    words = ("journalctl", "--unit", name, "--lines", str(lines), "--no-pager", "--output", "cat")
    try:
        done = subprocess.run(
            words + (("--since", "@%d" % since) if since else ()),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return printable(done.stdout.decode(errors="replace")).strip()
