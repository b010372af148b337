"""state.json, the audit log and the host's own mutual exclusion.

state.json holds what no link can say: each release's status, and the transition that is under way, phase by phase,
so that the next run can finish or revert what a killed one left.

    {"releases": {name: {"status", "since", "reason", "live_at"}},
     "transition": null | {"kind", "from", "to", "from_colour", "to_colour", "phase", "since", "run_id"}}
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import time
from typing import Optional

from .layout import Layout, sync_folder

STATUSES = ("building", "ready", "live", "bad")


class StateError(Exception):
    """state.json cannot be read, or another operation holds the host; str() says which."""


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_json(path: str, data, mode: int = 0o600) -> None:
    """Replace a file as a whole: write, fsync, rename."""
    fresh = "%s.%d.new" % (path, os.getpid())
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(data, stream, indent=1, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(fresh, path)
    sync_folder(os.path.dirname(path))


class State:
    """state.json of one installation; every setter writes it at once."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.path = os.path.join(layout.state, "state.json")
        try:
            with open(self.path, encoding="utf-8") as stream:
                data = json.load(stream)
        except FileNotFoundError:
            data = {}
        except ValueError as error:
            raise StateError("%s is not JSON (%s); restore it from a backup or move it away" % (self.path, error))
        self.releases = data.get("releases", {})
        self.transition = data.get("transition")

    def _save(self) -> None:
        write_json(self.path, {"releases": self.releases, "transition": self.transition})

    def status(self, name: str) -> Optional[str]:
        return self.releases.get(name, {}).get("status")

    def was_live(self, name: str) -> bool:
        return bool(self.releases.get(name, {}).get("live_at"))

    def set_status(self, name: str, status: str, reason: str = "") -> None:
        entry = self.releases.setdefault(name, {})
        entry.update(status=status, since=now(), reason=reason)
        if status == "live":
            entry["live_at"] = now()
        self._save()

    def forget(self, name: str) -> None:
        if self.releases.pop(name, None) is not None:
            self._save()

    def begin(self, **transition) -> None:
        self.transition = dict(transition, since=now())
        self._save()

    def phase(self, name: str, **more) -> None:
        self.transition = dict(self.transition, phase=name, **more)
        self._save()

    def end(self) -> None:
        self.transition = None
        self._save()

    def rollback_target(self, current: Optional[str]) -> Optional[str]:
        """Return the newest retained release older than current that was live and is not bad."""
        candidates = [
            name
            for name in self.layout.names()
            if self.was_live(name) and self.status(name) != "bad" and (current is None or name < current)
        ]
        return candidates[-1] if candidates else None


def audit(layout: Layout, event: str, **fields) -> None:
    """Append one line to the audit log; nothing of this repository ever rewrites it."""
    line = json.dumps(dict(fields, time=now(), event=event), ensure_ascii=False, sort_keys=True) + "\n"
    path = os.path.join(layout.state, "audit.jsonl")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(layout: Layout, wait_seconds: float = 60):
    """Hold the host's own lock while something is changed on it; the kernel drops it when the process dies.

    The deploy lock (lock.py) keeps two runs apart; this one keeps a new run from a module that outlived its own.
    Raises StateError when another operation still holds it after wait_seconds.
    """
    descriptor = os.open(os.path.join(layout.state, "operation.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StateError(
                        "another operation is still at work on this host (%s is held after %d s)"
                        % (os.path.join(layout.state, "operation.lock"), wait_seconds)
                    )
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)
