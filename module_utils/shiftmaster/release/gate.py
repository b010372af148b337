"""The gate: a release responds on its private socket, runs a task and serves its pages before it gets traffic."""

from __future__ import annotations

import json
import os
import re
import time
from typing import Optional

from ..host import probe, safe_files, symptoms, units
from ..host.printable import printable
from ..logging.ecs import as_lines
from .releasecode import tail
from .slots import YIELD_SECONDS, CutoverError
from .workers import Workers, canary_queue, worker_name


class Gate(Workers):
    """The verification of a slot, and what the logs report where it fails."""

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
            units.yield_to_others(units.unit(kind, slot), False)

    def _gate_web(self, slot: str, target: str) -> None:
        problem = "no attempt was made"
        for attempt in range(self.options["gate_attempts"]):
            if attempt:
                self._wait_watching(slot, self.options["gate_delay_seconds"])
            result = self.deep_health(slot)
            if result.status == 200:
                found = _json(result.body).get("release")
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
            found = units.properties(units.unit("web", slot), "ActiveState", "NRestarts", "Result")
            if found["ActiveState"] not in ("active", "reloading") or found.get("NRestarts", "0") != "0":
                raise CutoverError(
                    "%s does not start: %s ended (%s)\n%s"
                    % (self.called(self._t("to")), units.unit("web", slot), found.get("Result"), self.evidence(slot))
                )
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(0.5, left))

    def _gate_worker(self, slot: str) -> None:
        worker, deadline = worker_name(slot), time.monotonic() + self.options["worker_gate_seconds"]
        called = self.called(self._t("to"))
        while not self._call({"op": "ping", "worker": worker, "seconds": 1})["alive"]:
            self._wait_watching(slot, 0)
            found = units.properties(units.unit("worker", slot), "ActiveState", "NRestarts", "Result")
            died = found["ActiveState"] not in ("active", "activating") or found.get("NRestarts", "0") != "0"
            if died or time.monotonic() > deadline:
                written = units.journal(units.unit("worker", slot), 60)
                lines = ["the Celery worker of %s does not %s" % (called, "start" if died else "respond")]
                lines += ["cause: %s" % tail(cause) for cause in causes(written)]
                raise CutoverError("\n".join([*lines, tail(written, 8), self._see(units.unit("worker", slot))]))
        left = max(5, int(deadline - time.monotonic()))
        result = self._call({"op": "canary", "worker": worker, "queue": canary_queue(slot), "seconds": left})
        problem = ""
        if not result["ran"]:
            problem = "responds, but runs no task: the canary did not run in %d s" % left
        elif not result["stored"]:
            problem = "runs tasks, but their results do not arrive: check the result backend (CELERY_RESULT_BACKEND)"
        if problem:
            raise CutoverError(
                "the Celery worker of %s %s\n%s" % (called, problem, units.journal(units.unit("worker", slot)))
            )

    # -- evidence ----------------------------------------------------------------------------------------------------

    def note_log(self) -> None:
        """Count the application's logs from here on as evidence."""
        self._log_offsets = {path: _size(path) for path in self._logs()}

    def _logs(self) -> list:
        """Return the application's logs with entries; the application owns their directories."""
        found = [one for pattern in self.options["logs"] for one in safe_files.find(pattern)]
        return [path for path, status in found if status.st_size]

    def evidence(self, slot: str) -> str:
        """Return what the application's logs and its unit report about this run, the causes first."""
        name = units.unit("web", slot)
        offsets = getattr(self, "_log_offsets", {})
        written = "".join(as_lines(_read_from(path, offsets.get(path))) for path in self._logs())
        parts = ["cause: %s" % tail(cause) for cause in causes(written)]
        parts += [tail(written, 8), tail(units.journal(name, 4)), self._see(name)]
        return printable("\n".join(part for part in parts if part))

    def _see(self, name: str) -> str:
        logs = ", ".join(self._logs() or self.options["logs"][:1])
        return "\nThe complete output: %s and `journalctl -u %s`." % (logs, name)


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


def _failed_checks(body) -> str:
    checks = _json(body).get("checks")
    if not isinstance(checks, dict):
        return ""
    return "; ".join(
        "%s: %s" % (name, check.get("error") or check.get("status"))
        for name, check in sorted(checks.items())
        if isinstance(check, dict) and check.get("status") != "healthy"
    )
