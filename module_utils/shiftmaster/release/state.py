"""state.json, the audit log and the host's own mutual exclusion.

state.json holds what no link can express: each release's status, and the transition that is under way, phase by phase,
so that the next run can finish or revert what a killed one left.

    {"format": 1, "releases": {name: {"status", "since", "reason", "live_at", "previous", "suspect"}},
     "transition": null | {"kind", "from", "to", "from_slot", "to_slot", "phase", "since", "run_id"}}

previous is the release that served when this one was deployed: the rollback. suspect is one that was live and
of which a later deploy failed: a rollback may still lead to it, a deploy builds it again. Where the file is gone, the
audit log shows what was live.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import time
from typing import Optional

from ..host import safe_files
from ..host.printable import printable
from . import releasecode
from .layout import Layout, sync

# Of state.json. A change of its meaning increments it, so that an older version of this repository rejects the file.
FORMAT = 1
STATUSES = ("building", "ready", "live", "bad")


class StateError(Exception):
    """state.json cannot be read, or another operation holds the host; str() is the reason."""


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def epoch(timestamp: str) -> float:
    """Return the epoch of a timestamp as now() writes it."""
    return datetime.datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def write_json(path: str, data, mode: int = 0o600) -> None:
    """Replace a file atomically: write, fsync, rename. What a killed writer left is overwritten by the next one.

    The caller lets one process write at a time (exclusive()).
    """
    fresh = path + ".new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(data, stream, indent=1, sort_keys=True)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(fresh, path)
    except OSError as error:
        os.unlink(fresh)
        # What write() and fsync() raise names no file.
        raise OSError(error.errno, os.strerror(error.errno), path) from error
    sync(os.path.dirname(path))


class State:
    """state.json of one installation; every setter writes it at once."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.path = os.path.join(layout.state, "state.json")
        try:
            with open(self.path, encoding="utf-8") as stream:
                data = json.load(stream)
            if isinstance(data, dict) and data.get("format", FORMAT) != FORMAT:
                raise StateError(
                    "%s has the format %s, and this version of the repository reads format %d: use the version that "
                    "wrote it (/etc/ansible/facts.d/shiftmaster.fact on the host names it)"
                    % (self.path, data["format"], FORMAT)
                )
            problem = _problem(data)
        except FileNotFoundError:
            data, problem = {"releases": from_audit(layout), "transition": None}, ""
        except ValueError as error:
            problem = "it is not JSON: %s" % error
        if problem:
            raise StateError(
                "%s is damaged (%s). Move it away: the next run makes it again from the audit log"
                % (self.path, problem)
            )
        self.releases = data["releases"]
        self.transition = data["transition"]

    def _save(self) -> None:
        write_json(self.path, {"format": FORMAT, "releases": self.releases, "transition": self.transition})

    def status(self, name: str) -> Optional[str]:
        return self.releases.get(name, {}).get("status")

    def was_live(self, name: str) -> bool:
        return bool(self.releases.get(name, {}).get("live_at"))

    def set_status(self, name: str, status: str, reason: str = "", **more) -> None:
        entry = self.releases.setdefault(name, {})
        entry.update(status=status, since=now(), reason=reason, **more)
        if status == "live":
            entry["live_at"] = now()
            entry.pop("suspect", None)
        self._save()

    def is_suspect(self, name: Optional[str]) -> bool:
        return bool(self.releases.get(name, {}).get("suspect"))

    def set_suspect(self, name: str, suspect: bool) -> None:
        self.releases[name]["suspect"] = suspect
        self._save()

    def forget(self, name: str) -> None:
        gone = self.releases.pop(name, None)
        if gone is not None:
            for entry in self.releases.values():
                if entry.get("previous") == name:
                    entry["previous"] = gone.get("previous")
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
        """Return the release that served before current was deployed, or the one before where that is bad or gone."""
        there, seen, name = self.layout.names(), {current}, current
        while name:
            name = self.releases.get(name, {}).get("previous")
            if name in seen:
                break
            seen.add(name)
            if name in there and self.was_live(name) and self.status(name) != "bad":
                return name
        return None


def _problem(data) -> str:
    """Return the errors of the form of state.json's content; "" where nothing is."""
    if (
        not isinstance(data, dict)
        or not {"format", "transition"} <= set(data)
        or not isinstance(data.get("releases"), dict)
    ):
        return "it holds no format, releases and transition"
    for name, entry in data["releases"].items():
        if not isinstance(entry, dict) or entry.get("status") not in STATUSES:
            return "release %s has no status" % name
    step = data["transition"]
    if step is not None and not (
        isinstance(step, dict) and {"kind", "from", "to", "from_slot", "to_slot", "phase", "run_id"} <= set(step)
    ):
        return "its transition is incomplete"
    return ""


def from_audit(layout: Layout) -> dict:
    """Return the releases of state.json as the audit log knows them, those whose directory is there."""
    found = {}
    try:
        with open(os.path.join(layout.state, "audit.jsonl"), encoding="utf-8", errors="replace") as stream:
            lines = stream.readlines()
    except OSError:
        lines = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict):
            continue
        if event.get("event") == "live":
            entry = found.setdefault(event.get("target"), {})
            entry.update(status="live", since=event.get("time"), reason="", live_at=event.get("time"))
            if event.get("kind") == "deploy":
                entry["previous"] = event.get("previous")
        elif event.get("event") == "marked_bad":
            found.setdefault(event.get("release"), {}).update(
                status="bad", since=event.get("time"), reason=event.get("reason", "")
            )
    return {name: entry for name, entry in found.items() if name in layout.names()}


def last_switch(layout: Layout) -> Optional[tuple]:
    """Return (since when the version before served alone, when the traffic moved to the active release), as epochs.

    By the end of the audit log; None where it lacks the switch. What another version failed with in between is no
    baseline.
    """
    try:
        text = safe_files.read_tail(os.path.join(layout.state, "audit.jsonl"), 128 * 1024).decode("utf-8", "replace")
        current = layout.current()
    except OSError:
        return None
    found, alone_since = None, 0.0
    for line in text.splitlines():
        try:
            event = json.loads(line)
            at = epoch(event["time"])
            if event["event"] in ("live", "reverted"):
                alone_since = at
            elif event["event"] == "switched" and event["target"] == current:
                found = (alone_since, at)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def audit(layout: Layout, event: str, **fields) -> None:
    """Append one line to the audit log; nothing of this repository ever rewrites it."""
    line = printable(json.dumps(dict(fields, time=now(), event=event), ensure_ascii=False, sort_keys=True)) + "\n"
    path = os.path.join(layout.state, "audit.jsonl")
    with safe_files.closing(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)) as descriptor:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)


@contextlib.contextmanager
def held(path: str, deadline: float, busy: Exception):
    """Hold a file's lock, which the kernel drops when the process dies; yields its descriptor.

    Raises busy where another process holds it until deadline, a time of time.monotonic().
    """
    with safe_files.closing(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)) as descriptor:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise busy from None
                time.sleep(0.1)
        yield descriptor


@contextlib.contextmanager
def exclusive(layout: Layout, wait_seconds: float = 60):
    """Hold the host's own lock while something is changed on it; the kernel drops it when the process dies.

    The deploy lock (lock.py) keeps two runs apart; this one keeps a new run from a module that outlived its own.
    What a killed module has left running is ended.
    Raises StateError when another operation still holds it after wait_seconds.
    """
    path = os.path.join(layout.state, "operation.lock")
    busy = "another operation is still at work on this host (%s is held after %d s)" % (path, wait_seconds)
    with held(path, time.monotonic() + wait_seconds, StateError(busy)):
        releasecode.end_abandoned()
        yield
