"""Background work: the Celery workers of both slots, their queues, and the tasks that one release does not know."""

from __future__ import annotations

import contextlib
import os
from typing import Optional

from ..host import safe_files, units
from . import celery_driver, releases
from .releasecode import Driver, ReleaseCode, ReleaseCodeError
from .slots import Slots, stop_seconds
from .state import audit, write_json

RUN = "/run/shiftmaster"
# How often a driver is queried for more tasks that it has to quarantine or replay.
_QUARANTINE_ROUNDS = 20


def canary_queue(slot: str) -> str:
    # Of this host alone: another one's worker would take the canary, too, and verify nothing here.
    return "shiftmaster.canary.%s.%s" % (os.uname().nodename, slot)


def worker_name(slot: str) -> str:
    return "worker-%s@%s" % (slot, os.uname().nodename)


class Workers(Slots):
    """Which tasks each slot's worker takes, and how they pass from one release to the other."""

    # -- the driver: the release's own code responds ------------------------------------------------------------------

    def _driver_of(self, release: str) -> Driver:
        if self._driver is None:
            self._driver = Driver(
                ReleaseCode(self.layout.release(release), self.options["user"]),
                celery_driver,
                {"SHIFTMASTER_CELERY_APPLICATION": self.options["celery_application"]},
            )
        return self._driver

    def _call(self, request: dict) -> dict:
        driver = self._driver_of(self._t("to"))
        # The first response comes once the release's code is loaded, which takes the worker about as long.
        loading = max(60, self.options["worker_gate_seconds"])
        try:
            return driver.call(request, timeout=request.get("seconds", 0) + loading)
        except ReleaseCodeError as error:
            raise ReleaseCodeError(
                "querying the Celery application %s of %s (%s) failed: %s"
                % (self.options["celery_application"], self.called(self._t("to")), request["op"], error)
            ) from error

    def close(self) -> None:
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _queues(self, release: Optional[str]) -> list:
        if self.options.get("celery_queues"):
            return list(self.options["celery_queues"])
        return releases.manifest(self.layout, release).get("queues", []) if release else []

    def _ping(self, slot: str) -> bool:
        """Whether a slot's worker responds."""
        request = {"op": "ping", "worker": worker_name(slot), "seconds": self.options["worker_gate_seconds"]}
        return self._call(request)["alive"]

    def worker_problem(self) -> str:
        """Return the sentence of a worker that does not respond to a ping during the watch, "" where all is healthy."""
        if not self.options["celery_application"]:
            return ""
        try:
            alive = self._ping(self._t("to_slot"))
        finally:
            self.close()
        return "" if alive else "the worker %s does not respond to a ping" % worker_name(self._t("to_slot"))

    # -- a worker on a queue of its own ------------------------------------------------------------------------------

    def _queue_file(self, slot: str) -> str:
        return os.path.join(RUN, "worker-%s.env" % slot)

    def _hold_worker(self, slot: str) -> None:
        """Let the worker that starts next take tasks from its private queue only (until a reboot at the longest)."""
        os.close(safe_files.open_directory(RUN, 0o755))
        queues = 'SHIFTMASTER_QUEUES_OPTION="-Q %s"\n' % canary_queue(slot)
        safe_files.write(self._queue_file(slot), queues.encode(), 0o644)

    def _free_file(self, slot: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._queue_file(slot))

    def _free_worker(self, slot: str, queues) -> None:
        """Let a worker take the application's tasks, now and after its next start."""
        self._free_file(slot)
        response = self._call({"op": "consume", "worker": worker_name(slot), "queues": queues})
        if not response["confirmed"]:
            self.notes.append("worker %s did not confirm its queues and was restarted" % worker_name(slot))
            units.stop(units.unit("worker", slot), seconds=stop_seconds(self.options, "worker"))
            units.systemctl("start", units.unit("worker", slot))
        self._call({"op": "cancel", "worker": worker_name(slot), "queues": [canary_queue(slot)]})

    # -- tasks pass from one release to the other --------------------------------------------------------------------

    def old_tasks(self) -> list:
        """Return the tasks of the live release that the target does not know."""
        return sorted(self._unknown_tasks(self._t("from"), self._t("to")))

    def _unknown_tasks(self, source: Optional[str], target: str) -> set:
        known = set(releases.manifest(self.layout, target).get("tasks", []))
        return set(releases.manifest(self.layout, source).get("tasks", [])) - known if source else set()

    def _pass_tasks(self, source, source_slot, target, target_slot) -> None:
        """End one slot's background work and begin the other's."""
        if not self.options["celery_application"]:
            return
        unknown = self._unknown_tasks(source, target)
        if source_slot is not None:
            self._stop(source_slot, ("beat",))
            state = units.active_state(units.unit("worker", source_slot))
            if state == "failed" or (unknown and state != "inactive"):
                # What it returns to the queue must be looked through before the target's worker may take it. One that
                # has failed has ended already; its failure is over, and health would still report it.
                self._stop(source_slot, ("worker",))
            else:
                units.systemctl("stop", "--no-block", units.unit("worker", source_slot))
        queues = self._queues(target)
        directory = self.layout.unknown_tasks
        if unknown:
            quarantined = quarantine(self._call, sorted(set(queues) | set(self._queues(source))), directory)
            for task in quarantined:
                audit(self.layout, "task_quarantined", task=task["task"], id=task["id"], queue=task["queue"])
            if quarantined:
                self.notes.append(
                    "%d task(s) that %s does not know were quarantined in %s; the next release that knows"
                    " them runs them" % (len(quarantined), target, directory)
                )
        if os.listdir(directory):
            replayed, unreadable = replay(self._call, directory)
            for task in replayed:
                audit(self.layout, "task_replayed", task=task["task"], id=task["id"], queue=task["queue"])
            if unreadable:
                self.notes.append("%d file(s) in %s hold no task and were left there" % (unreadable, directory))
        self._free_worker(target_slot, queues)
        if self.options["beat"]:
            units.systemctl("start", units.unit("beat", target_slot))

    # -- a schema that may not be that of the live release -----------------------------------------------------------

    def hold_background(self) -> None:
        """Stop worker and beat of the live release: its tasks would meet a schema that is not its own.

        A boot does not start them either, nor scheduled tasks, until a run has ended well.
        """
        write_json(self.layout.held, {"run_id": self.options["run_id"]}, 0o644)
        slot = self.layout.active_slot()
        if slot is not None:
            self._stop(slot, ("beat", "worker"))

    def _free_background(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.layout.held)

    def ensure_running(self, background: bool = True) -> list:
        """Start what should run next to the live release and does not; returns the units.

        A run that died in maintenance mode leaves its worker and beat stopped; without background they stay so. An
        application that an operator has stopped completely stays stopped.
        """
        if background:
            self._free_background()
        slot = self.layout.active_slot()
        if slot is None or units.active_state("shiftmaster.service") != "active":
            return []
        missing = self.missing() if background else [name for name in self.missing() if name == units.unit("web", slot)]
        if missing:
            units.systemctl("start", *missing, timeout=180)
        return missing


def quarantine(call, queues: list, directory: str, **more) -> list:
    """Have a driver take tasks out of queues; returns them. A version that floods them holds nobody up for good."""
    quarantined = []
    for _round in range(_QUARANTINE_ROUNDS):
        found = call(dict(more, op="quarantine", queues=queues, directory=directory))
        quarantined += found["quarantined"]
        if not found.get("more"):
            break
    return quarantined


def replay(call, directory: str) -> tuple:
    """Have a driver put quarantined tasks back; returns them, and the number of files that hold none."""
    replayed, unreadable, request = [], 0, {"op": "replay", "directory": directory}
    for _round in range(_QUARANTINE_ROUNDS):
        found = call(request)
        replayed += found["replayed"]
        unreadable += found.get("unreadable", 0)
        if not found.get("next"):
            break
        request = dict(request, after=found["next"])
    return replayed, unreadable
