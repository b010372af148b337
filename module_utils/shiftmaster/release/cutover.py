"""Move an installation from one release to another on one host, without a failed request, and back.

The phases, in order; each is written to state.json before it begins, so that recover() can finish or revert whatever
a killed run or a reboot left:

    start     the idle slot's web and worker start; its worker takes tasks from a private queue only
    gate      deep health and the watched pages on the private socket, worker ping, one canary task with its result;
              failing here touches no traffic
    quiesce   beat stops and the old workers cancel their consumers, before new code may send tasks they do not know
    switch    one rename() of the `active` link
    drain     requests that wait on the old socket are served
    handover  the old workers end warm, tasks unknown to the target are quarantined, the new workers and beat take over
    watch     real traffic through nginx is evaluated; the old slot still runs
    finish    the old slot stops; the release is live
    revert    the rollback from any phase after the gate
"""

from __future__ import annotations

from ..host import points, units
from . import releases
from .revert import Revert
from .slots import YIELD_SECONDS, CutoverError
from .workers import worker_name

PHASES = ("start", "gate", "quiesce", "switch", "drain", "handover", "watch", "finish", "revert")


class Cutover(Revert):
    """One host's cutover. options:

    user, celery_application ("" without Celery), beat (whether this host runs beat), several_hosts (whether other hosts
    work on the same queues: then what fails here gives only its traffic back, and revert() follows), health_path,
    health_host, watch_paths, gate_attempts, gate_delay_seconds, gate_timeout_seconds, worker_gate_seconds,
    drain_grace_seconds, drain_limit_seconds, web_stop_seconds, worker_stop_seconds (the units' limits), hooks, logs
    (patterns of the application's), run_id, who.
    """

    def switch(self, target: str, kind: str) -> None:
        """Make target live, up to the phase watch. Raises CutoverError; then the old release stays live."""
        self.prepare(target, kind)
        self.move()

    def prepare(self, target: str, kind: str) -> None:
        """Start target next to the live release, verify it, and stop the intake of the old workers. Traffic stays."""
        slots = {"from_slot": self.layout.active_slot(), "to_slot": self.layout.idle_slot()}
        way = {"from": self.layout.current(), "to": target, **slots}
        self.state.begin(kind=kind, phase="start", run_id=self.options["run_id"], **way)
        self._audit("cutover_started")
        try:
            self._phase("start", self._start)
            self._phase("gate", self._gate)
        except Exception as error:
            self._abandon(error)
            raise CutoverError(str(error)) from error
        finally:
            if self.state.transition is None:
                self.close()
        self._or_back(lambda: self._phase("quiesce", self._quiesce))

    def move(self, with_tasks: bool = True) -> None:
        """Move the traffic to what was prepared; without its tasks where another host may still send old ones."""

        def work():
            self._phase("switch", self._switch)
            self._phase("drain", lambda: self._drain(self._t("from_slot")))
            if with_tasks:
                self._take_tasks()

        self._or_back(work)

    def end_tasks(self) -> None:
        """End the old release's background work, once old code is live on no host any more."""
        if self._t("from_slot") is not None:
            self._or_back(lambda: self._stop(self._t("from_slot"), ("beat", "worker")))

    def take_tasks(self) -> None:
        """Hand the background work over, once no host does old work any more."""
        self._or_back(self._take_tasks)

    def _take_tasks(self) -> None:
        self._phase("handover", self._handover)
        self._hooks("after_rollback" if self._t("kind") == "rollback" else "after_cutover")
        self._phase("watch", lambda: None)

    def finish(self) -> None:
        """Let go of the old slot; from here on the target is live."""
        self._phase("finish", self._finish)
        self.close()

    # -- the phases; the gate is in gate.py --------------------------------------------------------------------------

    def _start(self) -> None:
        slot, target = self._t("to_slot"), self._t("to")
        self._stop(slot, ("beat", "worker", "web"))
        self._hooks("before_cutover", target)
        self.layout.point_slot(slot, target)
        self.note_log()
        if self.options["celery_application"]:
            self._hold_worker(slot)
            units.systemctl("start", units.unit("worker", slot))
            units.yield_to_others(units.unit("worker", slot), True)
            self._driver_of(target)
        try:
            # It loads the application next to the traffic of the old one: that goes first.
            with units.yielding(units.unit("web", slot), YIELD_SECONDS):
                units.systemctl("start", units.unit("web", slot), timeout=self.options["gate_timeout_seconds"] + 90)
        except units.UnitError as error:
            raise CutoverError(
                "%s does not start: %s\n%s" % (self.called(target), error, self.evidence(slot))
            ) from error

    def _quiesce(self) -> None:
        # On every host before the traffic of any moves: a page of one host requests static files from another one.
        releases.publish_static(self.layout, self.state, self._t("to"))
        slot = self._t("from_slot")
        if slot is None or not self.options["celery_application"]:
            return
        if self.options["beat"]:
            self._stop(slot, ("beat",))
        if units.active_state(units.unit("worker", slot)) != "active":
            return
        response = self._call({"op": "cancel", "worker": worker_name(slot), "queues": self._queues(self._t("from"))})
        if not response["confirmed"]:
            # It would discard tasks of the new code that it does not know: then rather no worker briefly.
            self.notes.append("the old worker did not confirm that it takes no more tasks, so it was stopped first")
            self._stop(slot, ("worker",))

    def _switch(self) -> None:
        self.layout.activate(self._t("to_slot"))
        points.reach("switched")
        self._audit("switched")

    def _handover(self) -> None:
        self._pass_tasks(self._t("from"), self._t("from_slot"), self._t("to"), self._t("to_slot"))

    def _finish(self) -> None:
        old, target = self._t("from_slot"), self._t("to")
        if old is not None:
            self._stop(old, ("beat", "web"))
        # The rollback from a deploy leads to what it replaced; a rollback and a restart leave it as it is.
        way_back = {"previous": self._t("from")} if self._t("kind") == "deploy" and self._t("from") != target else {}
        self.state.set_status(target, "live", **way_back)
        points.reach("live")
        self._free_background()
        self._audit("live", previous=self._t("from"))
        self.state.end()
        if units.active_state("shiftmaster.service") == "failed":
            # Somebody's `systemctl restart shiftmaster` was refused meanwhile; left so, its stop would stop nothing.
            units.systemctl("start", "shiftmaster.service", timeout=180)
