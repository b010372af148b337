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

import contextlib
import json
import os
import re
import subprocess
import time
from typing import Optional

from ..host import points, probe, safe_files, symptoms, units
from ..host.printable import printable
from ..host.units import UnitError, systemctl, unit
from ..logging.ecs import as_lines
from . import celery_driver, releases
from .layout import SLOTS, Layout
from .releasecode import Driver, ReleaseCode, ReleaseCodeError, tail
from .state import State, audit, write_json

PHASES = ("start", "gate", "quiesce", "switch", "drain", "handover", "watch", "finish", "revert")
RUN = "/run/shiftmaster"
# A unit that has not ended so long after its own limit (TimeoutStopSec=) is killed.
_KILL_SECONDS = 15
_BEAT_STOP_SECONDS = 20
# How often a driver is queried for more tasks that it has to quarantine or replay.
_PARK_ROUNDS = 20
# A release under verification yields to all other processes for this long; on a busy host no longer.
YIELD_SECONDS = 15


class CutoverError(Exception):
    """A cutover did not succeed. str() shows why and where the log is; .reverted shows whether traffic had moved."""

    def __init__(self, message: str, reverted: bool = False):
        # It quotes logs, health checks and hooks of a release.
        super().__init__(printable(message))
        self.reverted = reverted


def _canary_queue(slot: str) -> str:
    # Of this host alone: another one's worker would take the canary, too, and verify nothing here.
    return "shiftmaster.canary.%s.%s" % (os.uname().nodename, slot)


def _worker(slot: str) -> str:
    return "worker-%s@%s" % (slot, os.uname().nodename)


class Cutover:
    """One host's cutover. options:

    user, celery_application ("" without Celery), beat (whether this host runs beat), several_hosts (whether other hosts
    work on the same queues: then what fails here gives only its traffic back, and revert() follows), health_path,
    health_host, watch_paths, gate_attempts, gate_delay_seconds, gate_timeout_seconds, worker_gate_seconds,
    drain_grace_seconds, drain_limit_seconds, web_stop_seconds, worker_stop_seconds (the units' limits), hooks, logs
    (patterns of the application's), run_id, who.
    """

    def __init__(self, layout: Layout, state: State, options: dict):
        self.layout, self.state, self.options = layout, state, options
        self.timings, self.notes, self._driver, self._clock = {}, [], None, time.monotonic()
        self._yields_until = None

    # -- the way forward ---------------------------------------------------------------------------------------------

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

    def old_tasks(self) -> list:
        """Return the tasks of the live release that the target does not know."""
        source, target = self._t("from"), self._t("to")
        known = set(releases.manifest(self.layout, target).get("tasks", []))
        return sorted(set(releases.manifest(self.layout, source).get("tasks", [])) - known) if source else []

    def _take_tasks(self) -> None:
        self._phase("handover", self._handover)
        self._hooks("after_rollback" if self._t("kind") == "rollback" else "after_cutover")
        self._phase("watch", lambda: None)

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

    def finish(self) -> None:
        """Let go of the old slot; from here on the target is live."""
        self._phase("finish", self._finish)
        self.close()

    # -- the phases --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        slot, target = self._t("to_slot"), self._t("to")
        self._stop(slot, ("beat", "worker", "web"))
        self._hooks("before_cutover", target)
        self.layout.point_slot(slot, target)
        self.note_log()
        if self.options["celery_application"]:
            self._hold_worker(slot)
            systemctl("start", unit("worker", slot))
            units.yield_to_others(unit("worker", slot), True)
            self._driver_of(target)
        try:
            # It loads the application next to the traffic of the old one: that goes first.
            with units.yielding(unit("web", slot), YIELD_SECONDS):
                systemctl("start", unit("web", slot), timeout=self.options["gate_timeout_seconds"] + 90)
        except UnitError as error:
            raise CutoverError(
                "%s does not start: %s\n%s" % (self.called(target), error, self.evidence(slot))
            ) from error

    def _gate(self) -> None:
        slot, target = self._t("to_slot"), self._t("to")
        self._yields_until = time.monotonic() + YIELD_SECONDS
        # The worker first: deep health needs one, and a failed attempt costs the complete pause between two.
        if self.options["celery_application"]:
            self._gate_worker(slot)
        self._gate_web(slot, target)
        self._yield_no_longer(slot)

    def _yield_no_longer(self, slot: str) -> None:
        self._yields_until = None
        for kind in ("web", "worker"):
            units.yield_to_others(unit(kind, slot), False)

    def _gate_web(self, slot: str, target: str) -> None:
        problem = "no attempt was made"
        for attempt in range(self.options["gate_attempts"]):
            if attempt:
                self._wait_watching(slot, self.options["gate_delay_seconds"])
            result = self.deep_health(slot)
            if result.status == 200:
                found = _release_in(result.body)
                if found not in (None, "", target):
                    problem = "release %s responds on the socket of %s" % (found, target)
                else:
                    # The health path reports nothing of the pages: it may be a middleware in front of them.
                    problem = self._page_problem(slot)
                    if not problem:
                        return
            elif result.status is None:
                problem = result.error or "no response"
            else:
                problem = "HTTP %d %s" % (result.status, _failed_checks(result.body))
            self._wait_watching(slot, 0)
        words = (self.options["health_path"], self.called(target), self.options["gate_attempts"])
        problems = (tail(problem), self.evidence(slot))
        raise CutoverError("the health check %s of %s failed %d times: %s\n%s" % (*words, *problems))

    def deep_health(self, slot: str):
        """Query the health path on a slot's private socket."""
        return probe.http_get(
            "unix:" + self.layout.socket(slot),
            path=self.options["health_path"],
            host=self.options["health_host"],
            timeout=self.options["gate_timeout_seconds"],
            headers={"X-Forwarded-Proto": "https"},
        )

    def _page_problem(self, slot: str) -> str:
        """Return the sentence of the first of shiftmaster_watch_paths that the private socket does not serve."""
        address, timeout = "unix:" + self.layout.socket(slot), self.options["gate_timeout_seconds"]
        for path in self.options["watch_paths"]:
            problem = symptoms.page_problem(address, path, self.options["health_host"], timeout)
            if problem:
                return "a page of shiftmaster_watch_paths is not served: %s" % problem
        return ""

    def _wait_watching(self, slot: str, seconds: float) -> None:
        """Wait, but not for a unit that has died: its end is the result."""
        deadline = time.monotonic() + seconds
        while True:
            if self._yields_until is not None and time.monotonic() > self._yields_until:
                self._yield_no_longer(slot)
            found = units.properties(unit("web", slot), "ActiveState", "NRestarts", "Result")
            if found["ActiveState"] not in ("active", "reloading") or found.get("NRestarts", "0") != "0":
                raise CutoverError(
                    "%s does not start: %s ended (%s)\n%s"
                    % (self.called(self._t("to")), unit("web", slot), found.get("Result"), self.evidence(slot))
                )
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(0.5, left))

    def _gate_worker(self, slot: str) -> None:
        worker, deadline = _worker(slot), time.monotonic() + self.options["worker_gate_seconds"]
        called = self.called(self._t("to"))
        while not self._call({"op": "ping", "worker": worker, "seconds": 1})["alive"]:
            self._wait_watching(slot, 0)
            found = units.properties(unit("worker", slot), "ActiveState", "NRestarts", "Result")
            died = found["ActiveState"] not in ("active", "activating") or found.get("NRestarts", "0") != "0"
            if died or time.monotonic() > deadline:
                written = units.journal(unit("worker", slot), 60)
                lines = ["the Celery worker of %s does not %s" % (called, "start" if died else "respond")]
                lines += ["cause: %s" % tail(cause) for cause in causes(written)]
                raise CutoverError("\n".join([*lines, tail(written, 8), self._see(unit("worker", slot))]))
        left = max(5, int(deadline - time.monotonic()))
        result = self._call({"op": "canary", "worker": worker, "queue": _canary_queue(slot), "seconds": left})
        problem = ""
        if not result["ran"]:
            problem = "responds, but runs no task: the canary did not run in %d s" % left
        elif not result["stored"]:
            problem = "runs tasks, but their results do not arrive: check the result backend (CELERY_RESULT_BACKEND)"
        if problem:
            raise CutoverError(
                "the Celery worker of %s %s\n%s" % (called, problem, units.journal(unit("worker", slot)))
            )

    def _quiesce(self) -> None:
        # On every host before the traffic of any moves: a page of one host requests static files from another one.
        releases.publish_static(self.layout, self.state, self._t("to"))
        slot = self._t("from_slot")
        if slot is None or not self.options["celery_application"]:
            return
        if self.options["beat"]:
            self._stop(slot, ("beat",))
        if units.active_state(unit("worker", slot)) != "active":
            return
        response = self._call({"op": "cancel", "worker": _worker(slot), "queues": self._queues(self._t("from"))})
        if not response["confirmed"]:
            # It would discard tasks of the new code that it does not know: then rather no worker briefly.
            self.notes.append("the old worker did not confirm that it takes no more tasks, so it was stopped first")
            self._stop(slot, ("worker",))

    def _switch(self) -> None:
        self.layout.activate(self._t("to_slot"))
        points.reach("switched")
        self._audit("switched")

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

    def _handover(self) -> None:
        self._pass_tasks(self._t("from"), self._t("from_slot"), self._t("to"), self._t("to_slot"))

    def _pass_tasks(self, source, source_slot, target, target_slot) -> None:
        """End one slot's background work and begin the other's."""
        if not self.options["celery_application"]:
            return
        known = set(releases.manifest(self.layout, target).get("tasks", []))
        unknown = set(releases.manifest(self.layout, source).get("tasks", [])) - known if source else set()
        if source_slot is not None:
            self._stop(source_slot, ("beat",))
            state = units.active_state(unit("worker", source_slot))
            if state == "failed" or (unknown and state != "inactive"):
                # What it returns to the queue must be looked through before the target's worker may take it. One that
                # has failed has ended already; its failure is over, and health would still report it.
                self._stop(source_slot, ("worker",))
            else:
                systemctl("stop", "--no-block", unit("worker", source_slot))
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
            systemctl("start", unit("beat", target_slot))

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
            systemctl("start", "shiftmaster.service", timeout=180)

    # -- the rollback ------------------------------------------------------------------------------------------------

    def _abandon(self, error: Exception) -> None:
        """Leave a target that did not pass its gate; nothing else had been touched."""
        target = self._t("to")
        self._stop(self._t("to_slot"), ("beat", "worker", "web"))
        self._free_file(self._t("to_slot"))
        if not self.state.was_live(target):
            self.state.set_status(target, "bad", _first_line(error))
        self._audit("gate_failed", reason=str(error))
        self.state.end()

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

    def _tasks_back(self, source: str, target: str) -> None:
        slot = self._t("from_slot")
        self.close()
        self._driver_of(source)
        if units.active_state(unit("worker", slot)) != "active":
            self._stop(slot, ("worker",))
            self._hold_worker(slot)
            systemctl("start", unit("worker", slot))
            self._ping(slot)
        self._pass_tasks(target, self._t("to_slot"), source, slot)

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
        systemctl("start", unit("web", self._t("from_slot")))
        # Requests may have begun to wait while it was live (shiftmaster-hold).
        self.layout.lead_to_application(self._t("from_slot"))
        if self.layout.active_slot() != self._t("from_slot"):
            self.layout.activate(self._t("from_slot"))
            self._drain(self._t("to_slot"))
        return True

    def recover(self) -> Optional[str]:
        """Finish or revert what a killed run or a reboot left; returns a sentence about it, None where nothing was."""
        if self.state.transition is None:
            return self._find_active()
        phase, source, target, slot = (self._t(key) for key in ("phase", "from", "to", "to_slot"))
        if phase != "revert" and self.layout.active_slot() == slot:
            try:
                if units.active_state(unit("web", slot)) != "active":
                    systemctl("start", unit("web", slot))
                self._gate_web(slot, target)
                if phase in ("switch", "drain", "handover", "quiesce"):
                    if self.options["celery_application"]:
                        systemctl("start", unit("worker", slot))
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
        running = [slot for slot in linked if units.active_state(unit("web", slot)) == "active"]
        if linked:
            slot = max(running or linked, key=lambda one: live[self.layout.release_of(one)])
        else:
            slot = SLOTS[0]
            self._stop(slot, ("beat", "worker", "web"))
            self.layout.point_slot(slot, max(live, key=live.get))
        self.layout.activate(slot)
        words = (self.layout.active, self.layout.current())
        return self._recovered("the link %s was gone; it leads to %s again, which served" % words)

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
        states = units.active_states([unit(kind, self.layout.idle_slot()) for kind in ("beat", "worker", "web")])
        return [name for name, state in states.items() if state in ("active", "activating")]

    def hold_background(self) -> None:
        """Stop worker and beat of the live release: its tasks would meet a schema that is not its own.

        A boot does not start them either, nor scheduled tasks, until a run has ended well.
        """
        write_json(self.layout.held, {"run_id": self.options["run_id"]}, 0o644)
        slot = self.layout.active_slot()
        if slot is not None:
            self._stop(slot, ("beat", "worker"))

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
        missing = self.missing() if background else [name for name in self.missing() if name == unit("web", slot)]
        if missing:
            systemctl("start", *missing, timeout=180)
        return missing

    def _free_background(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.layout.held)

    def missing(self) -> list:
        """Return the units of the live release which do not run."""
        states = units.active_states(wanted_units(self.options, self.layout.active_slot()))
        return [name for name, state in states.items() if state != "active"]

    def called(self, release: Optional[str]) -> str:
        """Name a release as people know it."""
        version = releases.manifest(self.layout, release).get("version", "") if release else ""
        return "version %s (release %s)" % (version, release) if version else "release %s" % release

    # -- tools -------------------------------------------------------------------------------------------------------

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

    def _stop(self, slot: str, kinds) -> None:
        """Stop units of a slot and wait; a worker ends warm, within its unit's own time limit.

        What they have stopped of the other slot, whose user they share, goes on.
        """
        for kind in kinds:
            name = unit(kind, slot)
            if units.active_state(name) not in ("inactive", "failed"):
                # Web processes that are stopped have no traffic any more, but much to clean up.
                with units.yielding(name, YIELD_SECONDS) if kind == "web" else contextlib.nullcontext():
                    units.stop(name, seconds=stop_seconds(self.options, kind))
            systemctl("reset-failed", name) if units.active_state(name) == "failed" else None
        units.resume(*(unit(kind, other) for other in SLOTS if other != slot for kind in units.KINDS))

    def _queue_file(self, slot: str) -> str:
        return os.path.join(RUN, "worker-%s.env" % slot)

    def _hold_worker(self, slot: str) -> None:
        """Let the worker that starts next take tasks from its private queue only (until a reboot at the longest)."""
        os.close(safe_files.open_directory(RUN, 0o755))
        queues = 'SHIFTMASTER_QUEUES_OPTION="-Q %s"\n' % _canary_queue(slot)
        safe_files.write(self._queue_file(slot), queues.encode(), 0o644)

    def _free_file(self, slot: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._queue_file(slot))

    def _free_worker(self, slot: str, queues) -> None:
        """Let a worker take the application's tasks, now and after its next start."""
        self._free_file(slot)
        response = self._call({"op": "consume", "worker": _worker(slot), "queues": queues})
        if not response["confirmed"]:
            self.notes.append("worker %s did not confirm its queues and was restarted" % _worker(slot))
            units.stop(unit("worker", slot), seconds=stop_seconds(self.options, "worker"))
            systemctl("start", unit("worker", slot))
        self._call({"op": "cancel", "worker": _worker(slot), "queues": [_canary_queue(slot)]})

    def _queues(self, release: Optional[str]) -> list:
        if self.options.get("celery_queues"):
            return list(self.options["celery_queues"])
        return releases.manifest(self.layout, release).get("queues", []) if release else []

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

    def _ping(self, slot: str) -> bool:
        """Whether a slot's worker responds."""
        request = {"op": "ping", "worker": _worker(slot), "seconds": self.options["worker_gate_seconds"]}
        return self._call(request)["alive"]

    def close(self) -> None:
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def log(self) -> dict:
        """What a caller reports of a cutover."""
        return {"timings": self.timings, "notes": self.notes}

    def note_log(self) -> None:
        """Count the application's logs from here on as evidence."""
        self._log_offsets = {path: _size(path) for path in self._logs()}

    def _logs(self) -> list:
        """Return the application's logs with entries; the application owns their directories."""
        found = [one for pattern in self.options["logs"] for one in safe_files.find(pattern)]
        return [path for path, status in found if status.st_size]

    def worker_problem(self) -> str:
        """Return the sentence of a worker that does not respond to a ping during the watch, "" where all is healthy."""
        if not self.options["celery_application"]:
            return ""
        try:
            alive = self._ping(self._t("to_slot"))
        finally:
            self.close()
        return "" if alive else "the worker %s does not respond to a ping" % _worker(self._t("to_slot"))

    def evidence(self, slot: str) -> str:
        """Return what the application's logs and its unit report about this run, the causes first."""
        name = unit("web", slot)
        offsets = getattr(self, "_log_offsets", {})
        written = "".join(as_lines(_read_from(path, offsets.get(path))) for path in self._logs())
        parts = ["cause: %s" % tail(cause) for cause in causes(written)]
        parts += [tail(written, 8), tail(units.journal(name, 4)), self._see(name)]
        return printable("\n".join(part for part in parts if part))

    def _see(self, name: str) -> str:
        logs = ", ".join(self._logs() or self.options["logs"][:1])
        return "\nThe complete output: %s and `journalctl -u %s`." % (logs, name)


def quarantine(call, queues: list, directory: str, **more) -> list:
    """Have a driver take tasks out of queues; returns them. A version that floods them holds nobody up for good."""
    quarantined = []
    for _round in range(_PARK_ROUNDS):
        found = call(dict(more, op="quarantine", queues=queues, directory=directory))
        quarantined += found["quarantined"]
        if not found.get("more"):
            break
    return quarantined


def replay(call, directory: str) -> tuple:
    """Have a driver put quarantined tasks back; returns them, and the number of files that hold none."""
    replayed, unreadable, request = [], 0, {"op": "replay", "directory": directory}
    for _round in range(_PARK_ROUNDS):
        found = call(request)
        replayed += found["replayed"]
        unreadable += found.get("unreadable", 0)
        if not found.get("next"):
            break
        request = dict(request, after=found["next"])
    return replayed, unreadable


def causes(text: str, most: int = 3) -> list:
    """Return the last lines of the tracebacks in a log (class and message), each once, the newest last."""
    found = []
    for line in text.splitlines():
        # Step by step: one pattern for all takes quadratic time for a long word.
        match = re.match(r"[A-Za-z_]([\w.]*)(: |$)", line)
        name = match[1] if match else ""
        known = name.endswith(("Error", "Exception", "DoesNotExist"))
        if (known or re.search(r"Improperly\w", name.rpartition(".")[2])) and line not in found:
            found.append(line)
    return found[-most:]


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
    return [unit(kind, slot) for kind in kinds]


def _size(path: str) -> int:
    try:
        return safe_files.status(path).st_size
    except OSError:
        return 0


def _read_from(path: str, offset: Optional[int]) -> str:
    try:
        with os.fdopen(safe_files.open_file(path), "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(offset if offset is not None and offset <= size else 0, size - 65536))
            return stream.read(65536).decode(errors="replace")
    except OSError:
        return ""


def _json(body) -> dict:
    try:
        data = json.loads(body)
    except (ValueError, TypeError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _release_in(body) -> Optional[str]:
    return _json(body).get("release")


def _failed_checks(body) -> str:
    checks = _json(body).get("checks")
    if not isinstance(checks, dict):
        return ""
    return "; ".join(
        "%s: %s" % (name, check.get("error") or check.get("status"))
        for name, check in sorted(checks.items())
        if isinstance(check, dict) and check.get("status") != "healthy"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
