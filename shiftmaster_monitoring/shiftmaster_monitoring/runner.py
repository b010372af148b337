"""Run checks at the same time, each within its own limit, whatever hangs.

Requests that come together share one run of a check, so that many callers make no more work than one. A check that
outlives its limit is left to end by itself, and the next request starts a fresh one; when MAX_ABANDONED of them
are still at it, no more are started.
"""

from __future__ import annotations

import threading
import time

from django.db import connections

from . import checks

MAX_ABANDONED = 4


class _Run:
    """One run of one check in a thread of its own."""

    def __init__(self, name: str, function, limit: float):
        self.name, self.function, self.limit = name, function, limit
        self.started = time.monotonic()
        self.done = threading.Event()
        self.result = None

    def work(self) -> None:
        try:
            more = self.function(self.limit)
            self.result = dict({"status": "healthy", "latency_ms": self._milliseconds()}, **(more or {}))
        except checks.Skipped as reason:
            self.result = {"status": "skipped", "reason": str(reason)}
        except BaseException as error:  # noqa: BLE001 - it has no other way out of this thread.
            self.result = {
                "status": "unhealthy",
                "latency_ms": self._milliseconds(),
                "error": checks.describe(error),
                **getattr(error, "more", {}),
            }
        finally:
            connections.close_all()  # This thread's own ones.
            self.done.set()

    def _milliseconds(self) -> float:
        return round((time.monotonic() - self.started) * 1000, 1)


class Runner:
    def __init__(self):
        self._lock = threading.Lock()
        self._runs = {}  # name: runs that have not ended, oldest first

    def run(self, wanted: dict) -> dict:
        """Return the result of each check of {name: (function, limit in seconds)}, in that order."""
        runs = {name: self._join_or_start(name, function, limit) for name, (function, limit) in wanted.items()}
        started = time.monotonic()
        results = {}
        for name, (_function, limit) in wanted.items():
            run = runs[name]
            if run is None:
                results[name] = {"status": "unhealthy", "error": "%d earlier checks have not ended yet" % MAX_ABANDONED}
            elif run.done.wait(max(0.0, started + limit - time.monotonic())):
                results[name] = run.result
            else:
                results[name] = {
                    "status": "unhealthy",
                    "latency_ms": round(limit * 1000, 1),
                    "error": "Timeout: no response within %g s" % limit,
                }
        return results

    def _join_or_start(self, name: str, function, limit: float):
        with self._lock:
            running = [run for run in self._runs.get(name, ()) if not run.done.is_set()]
            self._runs[name] = running
            if running and time.monotonic() - running[-1].started < limit:
                return running[-1]
            if len(running) >= MAX_ABANDONED:
                return None
            run = _Run(name, function, limit)
            running.append(run)
            threading.Thread(target=run.work, daemon=True, name="health-" + name).start()
            return run
