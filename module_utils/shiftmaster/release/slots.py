"""The two slots of an installation: their units, the transition between them, and what both need of a run.

The classes of a cutover build on one another: Slots, then Workers (Celery), Gate (verification), Revert and Cutover.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from typing import Optional

from ..host import points, units
from ..host.printable import printable
from . import releases
from .layout import SLOTS, Layout
from .state import State, audit

# A unit that has not ended so long after its own limit (TimeoutStopSec=) is killed.
_KILL_SECONDS = 15
_BEAT_STOP_SECONDS = 20
# A release under verification yields to all other processes for this long; on a busy host no longer.
YIELD_SECONDS = 15


class CutoverError(Exception):
    """A cutover did not succeed. str() shows why and where the log is; .reverted shows whether traffic had moved."""

    def __init__(self, message: str, reverted: bool = False):
        # It quotes logs, health checks and hooks of a release.
        super().__init__(printable(message))
        self.reverted = reverted


class Slots:
    """One host's slots and the transition of its state. options: those of Cutover."""

    def __init__(self, layout: Layout, state: State, options: dict):
        self.layout, self.state, self.options = layout, state, options
        self.timings, self.notes, self._driver, self._clock = {}, [], None, time.monotonic()
        self._yields_until = None

    # -- the transition ----------------------------------------------------------------------------------------------

    def _t(self, key: str):
        return self.state.transition[key]

    def _phase(self, name: str, work) -> None:
        self.state.phase(name)
        points.reach(name)
        started = time.monotonic()
        work()
        self.timings[name] = round(time.monotonic() - started, 2)
        if name == "switch":
            self.timings["until_switched"] = round(time.monotonic() - self._clock, 2)

    def _audit(self, event: str, **fields) -> None:
        fields.update(kind=self._t("kind"), source=self._t("from"), target=self._t("to"))
        audit(self.layout, event, run_id=self.options["run_id"], who=self.options["who"], **fields)

    def _hooks(self, phase: str, release: Optional[str] = None) -> None:
        path = self.layout.release(release or self._t("to"))
        for done in releases.run_hooks(path, self.options["hooks"], phase, self.options["user"]):
            self.notes.append("hook %s (%s): %s" % (done["name"], phase, done["output"] or "done"))

    def called(self, release: Optional[str]) -> str:
        """Name a release as people know it."""
        version = releases.manifest(self.layout, release).get("version", "") if release else ""
        return "version %s (release %s)" % (version, release) if version else "release %s" % release

    def log(self) -> dict:
        """What a caller reports of a cutover."""
        return {"timings": self.timings, "notes": self.notes}

    # -- units -------------------------------------------------------------------------------------------------------

    def _stop(self, slot: str, kinds) -> None:
        """Stop units of a slot and wait; a worker ends warm, within its unit's own time limit.

        What they have stopped of the other slot, whose user they share, goes on.
        """
        for kind in kinds:
            name = units.unit(kind, slot)
            if units.active_state(name) not in ("inactive", "failed"):
                # Web processes that are stopped have no traffic any more, but much to clean up.
                with units.yielding(name, YIELD_SECONDS) if kind == "web" else contextlib.nullcontext():
                    units.stop(name, seconds=stop_seconds(self.options, kind))
            units.systemctl("reset-failed", name) if units.active_state(name) == "failed" else None
        units.resume(*(units.unit(kind, other) for other in SLOTS if other != slot for kind in units.KINDS))

    def stop_others(self) -> list:
        """Stop what runs in the slot that does not serve; returns the units. A worker that is ending may end."""
        if self.state.transition is not None:
            return []
        running = self.others()
        if running:
            units.stop(*running, seconds=max(stop_seconds(self.options, kind) for kind in units.KINDS))
        return running

    def others(self) -> list:
        """Return the units that run in the idle slot, where a slot is live."""
        if self.layout.active_slot() is None:
            return []
        states = units.active_states([units.unit(kind, self.layout.idle_slot()) for kind in ("beat", "worker", "web")])
        return [name for name, state in states.items() if state in ("active", "activating")]

    def missing(self) -> list:
        """Return the units of the live release which do not run."""
        states = units.active_states(wanted_units(self.options, self.layout.active_slot()))
        return [name for name, state in states.items() if state != "active"]

    def _drain(self, slot: Optional[str]) -> None:
        """Wait until what was sent to a slot's socket before the rename has been taken from its accept queue."""
        if slot is None:
            return
        deadline, since = time.monotonic() + self.options["drain_limit_seconds"], None
        while (now := time.monotonic()) < deadline:
            if accept_queue(self.layout.socket(slot)):
                since = None
            elif since is None:
                since = now
            # A request that was being sent during the rename may come later.
            if since is not None and now - since >= self.options["drain_grace_seconds"]:
                return
            time.sleep(0.05)


def accept_queue(path: str) -> int:
    """Return how many connections wait on a unix socket to be accepted; 0 where nobody listens."""
    done = subprocess.run(
        ("ss", "-xlHn", "src", path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10, check=False
    )
    waiting = 0
    for line in done.stdout.decode(errors="replace").splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2].isdigit():
            waiting += int(fields[2])
    return waiting


def stop_seconds(options: dict, kind: str) -> int:
    """Return how long a unit of a kind may take to stop, before it is killed."""
    limits = {"web": options["web_stop_seconds"], "worker": options["worker_stop_seconds"], "beat": _BEAT_STOP_SECONDS}
    return limits[kind] + _KILL_SECONDS


def wanted_units(options: dict, slot: str) -> list:
    """Return the units of a slot that run while it is live."""
    kinds = ["web"]
    if options["celery_application"]:
        kinds.append("worker")
        if options["beat"]:
            kinds.append("beat")
    return [units.unit(kind, slot) for kind in kinds]
