"""Traffic and tasks go back to the release that was live before, and an interrupted run is finished or reverted."""

from __future__ import annotations

import os
import time
from typing import Optional

from ..host import points, units
from . import releases
from .gate import Gate
from .layout import SLOTS
from .slots import CutoverError
from .state import audit


class Revert(Gate):
    """The way back from each phase. The schema is never touched."""

    def _abandon(self, error: Exception) -> None:
        """Leave a target that did not pass its gate; nothing else had been touched."""
        target = self._t("to")
        self._stop(self._t("to_slot"), ("beat", "worker", "web"))
        self._free_file(self._t("to_slot"))
        if not self.state.was_live(target):
            self.state.set_status(target, "bad", _first_line(error))
        self._audit("gate_failed", reason=str(error))
        self.state.end()

    def _or_back(self, work) -> None:
        """Do a part of the way forward; where it fails, go back."""
        target = self._t("to")
        try:
            work()
        except Exception as error:
            bad = not self.state.was_live(target)
            try:
                self.go_back(str(error), bad)
            except Exception as second:  # The release's own code may return anything.
                raise CutoverError(
                    "%s\nThe revert is not finished: %s. %s is live for users, background tasks wait. When that is"
                    " fixed, the next deploy.yml or rollback.yml finishes it"
                    % (error, second, self.called(self.layout.current()))
                ) from second
            raise CutoverError(str(error), reverted=True) from error
        finally:
            self.close()

    def go_back(self, reason: str, bad: bool) -> None:
        """Give traffic and tasks back; next to other hosts the traffic alone, and revert() follows."""
        (self.revert_traffic if self.options.get("several_hosts") else self.revert)(reason, bad)

    def revert(self, reason: str, bad: bool = True) -> None:
        """Give traffic and tasks back to the release that served before; the schema is never touched."""
        source, target = self._t("from"), self._t("to")
        started = time.monotonic()
        if not self._traffic_back(reason, bad):
            return
        try:
            if self.options["celery_application"]:
                self._tasks_back(source, target)
        finally:
            # Also where the tasks are not back: the failed release does not continue next to the live one.
            self._stop(self._t("to_slot"), ("beat", "worker", "web"))
        releases.publish_static(self.layout, self.state)
        self._hooks("after_rollback", source)
        self.timings["revert"] = round(time.monotonic() - started, 2)
        self._audit("reverted", reason=reason)
        self.state.end()
        self.close()

    def revert_traffic(self, reason: str, bad: bool = False) -> None:
        """Give the traffic back and end the new release's background work; the old one's waits for revert().

        In an installation with several hosts it waits until new code is live on no host: the old workers would discard
        tasks that they do not know.
        """
        if self._traffic_back(reason, bad):
            self._stop(self._t("to_slot"), ("beat", "worker"))

    def _traffic_back(self, reason: str, bad: bool) -> bool:
        """Whether there is a release to go back to, to which the traffic goes now."""
        target = self._t("to")
        self.state.phase("revert")
        points.reach("revert")
        if bad and self._t("from") != target:
            self.state.set_status(target, "bad", reason.splitlines()[0] if reason else "")
        if self._t("from_slot") is None:
            kept = self.layout.active_slot() == self._t("to_slot")
            if not kept:
                self._stop(self._t("to_slot"), ("beat", "worker", "web"))
            words = "keeps running" if kept else "was stopped before it served"
            self.notes.append("there is no earlier release to go back to: %s %s" % (target, words))
            self._audit("not_reverted", reason=reason)
            self.state.end()
            return False
        units.systemctl("start", units.unit("web", self._t("from_slot")))
        # Requests may have begun to wait while it was live (shiftmaster-hold).
        self.layout.lead_to_application(self._t("from_slot"))
        if self.layout.active_slot() != self._t("from_slot"):
            self.layout.activate(self._t("from_slot"))
            self._drain(self._t("to_slot"))
        return True

    def _tasks_back(self, source: str, target: str) -> None:
        slot = self._t("from_slot")
        self.close()
        self._driver_of(source)
        if units.active_state(units.unit("worker", slot)) != "active":
            self._stop(slot, ("worker",))
            self._hold_worker(slot)
            units.systemctl("start", units.unit("worker", slot))
            self._ping(slot)
        self._pass_tasks(target, self._t("to_slot"), source, slot)

    # -- what a killed run or a reboot left --------------------------------------------------------------------------

    def recover(self) -> Optional[str]:
        """Finish or revert what a killed run or a reboot left; returns a sentence about it, None where nothing was."""
        if self.state.transition is None:
            return self._find_active()
        phase, source, target, slot = (self._t(key) for key in ("phase", "from", "to", "to_slot"))
        if phase != "revert" and self.layout.active_slot() == slot:
            try:
                if units.active_state(units.unit("web", slot)) != "active":
                    units.systemctl("start", units.unit("web", slot))
                self._gate_web(slot, target)
                if phase in ("switch", "drain", "handover", "quiesce"):
                    if self.options["celery_application"]:
                        units.systemctl("start", units.unit("worker", slot))
                        self._ping(slot)
                    self._handover()
                self._finish()
                outcome = "had already switched to %s, which is healthy: finished" % target
            except Exception as error:
                # One that has served users before is not the fault: the database may be down.
                self.revert(str(error), bad=not self.state.was_live(target))
                outcome = "had switched to %s, which is not healthy: reverted to %s" % (target, source)
        elif phase in ("start", "gate"):
            self._stop(slot, ("beat", "worker", "web"))
            self._free_file(slot)
            self.state.end()
            outcome = "left %s started next to the traffic: stopped" % target
        else:
            # A release that is bad stays so, for the reason that was noted.
            self.revert("the run died in its phase %s" % phase, bad=False)
            outcome = "was reverted: %s is live" % source
        self.close()
        return self._recovered("a run that died in its phase %s %s" % (phase, outcome))

    def _recovered(self, message: str) -> str:
        audit(self.layout, "recovered", what=message, run_id=self.options["run_id"], who=self.options["who"])
        return message

    def _find_active(self) -> Optional[str]:
        """Point the link `active` again where somebody has removed it; returns a sentence, None where nothing was.

        A host that has served before is never taken for a new one: a first deploy may run any migration.
        """
        if self.layout.current() is not None:
            return None
        live = {
            name: entry["live_at"]
            for name, entry in self.state.releases.items()
            if entry.get("live_at") and entry["status"] == "live" and os.path.isdir(self.layout.release(name))
        }
        if not live:
            return None
        linked = [slot for slot in SLOTS if self.layout.release_of(slot) in live]
        running = [slot for slot in linked if units.active_state(units.unit("web", slot)) == "active"]
        if linked:
            slot = max(running or linked, key=lambda one: live[self.layout.release_of(one)])
        else:
            slot = SLOTS[0]
            self._stop(slot, ("beat", "worker", "web"))
            self.layout.point_slot(slot, max(live, key=live.get))
        self.layout.activate(slot)
        words = (self.layout.active, self.layout.current())
        return self._recovered("the link %s was gone; it leads to %s again, which served" % words)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
