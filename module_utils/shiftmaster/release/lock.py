"""The deploy lock: one file on one designated host, always complete, never without an owner.

The file is written aside and put in place by link(), which fails where another one is. An expired lock, or one whose
controller process is known to be dead, is taken over; the caller recovers what its owner left and audits it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from typing import NamedTuple, Optional

from ..host import safe_files


class Outcome(NamedTuple):
    acquired: bool
    holder: Optional[dict]  # Who holds it now (ourselves, when acquired).
    taken_over: Optional[dict]  # The owner whose lock was stale.


def read(path: str) -> Optional[dict]:
    try:
        with open(path, encoding="utf-8") as stream:
            holder = json.load(stream)
    except FileNotFoundError:
        return None
    except ValueError:
        holder = None
    if not isinstance(holder, dict):
        return {"owner": "unknown", "run_id": "", "operation": "unknown", "expires": 0, "controller": {}}
    return holder


@contextlib.contextmanager
def _alone(path: str):
    """Let one process at a time look and act: while a stale lock is taken away, nobody else may put one there.

    The kernel drops this when the process dies; it is held briefly only.
    """
    with safe_files.closing(os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def expired(holder: dict) -> bool:
    return float(holder.get("expires", 0)) <= time.time()


def _write(path: str, content: dict, place) -> None:
    """Write a lock with its content aside, and put it in its place by link() or rename()."""
    fresh = "%s.%s.new" % (path, content["run_id"])
    try:
        with open(fresh, "w", encoding="utf-8") as stream:
            json.dump(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        place(fresh, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)


def acquire(
    path: str,
    owner: str,
    run_id: str,
    operation: str,
    controller: dict,
    ttl_seconds: float = 1800,
    wait_seconds: float = 0,
    interrupted_run_id: str = "",
    poll_seconds: float = 1.0,
) -> Outcome:
    """Take the lock, waiting up to wait_seconds; interrupted_run_id names an owner that is known to be dead."""
    deadline = time.monotonic() + wait_seconds
    while True:
        with _alone(path):
            holder = read(path)
            if holder is not None and holder.get("run_id") == run_id:
                return _renew(path, holder, ttl_seconds)
            stale = holder is not None and (
                expired(holder) or (interrupted_run_id and holder.get("run_id") == interrupted_run_id)
            )
            if stale:
                os.unlink(path)
            if holder is None or stale:
                content = dict(owner=owner, run_id=run_id, operation=operation, controller=controller)
                content.update(since=time.time(), expires=time.time() + ttl_seconds)
                with contextlib.suppress(FileExistsError):
                    _write(path, content, os.link)
                    return Outcome(True, content, holder)
        if time.monotonic() >= deadline:
            return Outcome(False, read(path), None)
        time.sleep(poll_seconds)


def _renew(path: str, holder: dict, ttl_seconds: float) -> Outcome:
    holder["expires"] = time.time() + ttl_seconds
    _write(path, holder, os.rename)
    return Outcome(True, holder, None)


def release(path: str, run_id: str) -> bool:
    """Give our own lock back; another owner's is left alone. Returns whether there was one of ours."""
    if read(path) is None:
        return False  # Its directory may not be there yet, either.
    with _alone(path):
        holder = read(path)
        if holder is None or holder.get("run_id") != run_id:
            return False
        os.unlink(path)
        return True


def _process(pid: int) -> Optional[dict]:
    try:
        with open("/proc/%d/stat" % pid, encoding="utf-8", errors="replace") as stream:
            fields = stream.read().rsplit(")", 1)[1].split()
        with open("/proc/%d/cmdline" % pid, "rb") as stream:
            words = [word.decode(errors="replace") for word in stream.read().split(b"\0")]
    except (OSError, IndexError):
        return None
    if fields[0] in ("Z", "X"):
        return None  # It is dead; only whoever started it (a job scheduler) has not read its exit code yet.
    return {"parent": int(fields[1]), "start": int(fields[19]), "words": words}


def _machine() -> str:
    """Name this boot of this machine: a pid means nothing elsewhere, or after a reboot."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            boot = stream.read().strip()
    except OSError:
        boot = ""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return "%s %s %s" % (os.uname().nodename, boot, space)


def controller_identity() -> dict:
    """Describe the ansible process that we run under: machine, pid, start time in clock ticks."""
    pid, found = os.getpid(), os.getpid()
    while pid > 1:
        process = _process(pid)
        if process is None:
            break
        if any(os.path.basename(word) == "ansible-playbook" for word in process["words"][:2]):
            found = pid  # The outermost one: its workers are forks with the same words.
        pid = process["parent"]
    process = _process(found)
    return {"machine": _machine(), "pid": found, "start": process["start"] if process else 0}


def controller_alive(identity: dict) -> Optional[bool]:
    """Return whether a lock's controller process still lives; None where this machine cannot know."""
    if not identity.get("pid") or identity.get("machine") != _machine():
        return None
    process = _process(int(identity["pid"]))
    return process is not None and process["start"] == identity.get("start")
