"""Judge real traffic after a cutover by nginx's own log, and a few requests of our own."""

from __future__ import annotations

import json
import os
import time
from typing import NamedTuple

from ..host import probe, safe_files
from ..host.percentile import percentile

# So much of the log is read at once.
_PART = 1 << 20


class Verdict(NamedTuple):
    breach: str  # "" where the watch passed.
    requests: int
    errors: int
    p95_ms: float


class AccessLog:
    """The JSON lines that nginx appends from now on, across a rotation of the file."""

    def __init__(self, path: str):
        self.path = path
        self._open(at_end=True)
        self._rest = b""

    def _open(self, at_end: bool) -> None:
        try:
            self.stream = os.fdopen(safe_files.open_file(self.path), "rb")
        except OSError:
            self.stream = None
            return
        if at_end:
            self.stream.seek(0, os.SEEK_END)

    def lines(self):
        """Yield the new entries as dicts; lines that are not JSON are passed over."""
        if self.stream is None:
            self._open(at_end=False)
            if self.stream is None:
                return
        yield from self._read()
        try:
            rotated = safe_files.status(self.path).st_ino != os.fstat(self.stream.fileno()).st_ino
        except OSError:
            rotated = False
        if rotated:
            self.stream.close()
            self._open(at_end=False)
            if self.stream is not None:
                yield from self._read()

    def _read(self):
        while True:
            part = self.stream.read(_PART)
            if not part:
                return
            *lines, rest = (self._rest + part).split(b"\n")
            # A line without an end is no entry; it must not fill the memory.
            self._rest = rest[:_PART]
            for line in lines:
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    continue


def judge(statuses, seconds, limits: dict) -> str:
    """Return the sentence of a breach, "" where there is none.

    limits: errors_min (so many 5xx at least), error_percent, p95_ms, requests_min (for the percentile).
    """
    errors = sum(1 for status in statuses if status >= 500)
    if statuses and errors >= limits["errors_min"] and 100.0 * errors / len(statuses) > limits["error_percent"]:
        return "%d of %d requests were answered with 5xx (%.1f %%, limit %s %%)" % (
            errors,
            len(statuses),
            100.0 * errors / len(statuses),
            limits["error_percent"],
        )
    p95 = percentile(seconds, 0.95) * 1000
    if len(seconds) >= limits["requests_min"] and p95 > limits["p95_ms"]:
        return "the 95th percentile of the response time is %.0f ms (limit %s ms)" % (p95, limits["p95_ms"])
    return ""


def watch(options: dict) -> Verdict:
    """Watch for a while and end early at a breach.

    options: seconds, access_log, target ("http://localhost:8000"), host, paths, plus the limits of judge().
    Our own requests count as traffic, too: a quiet night must not let a broken page pass.
    """
    log = AccessLog(options["access_log"])
    statuses, seconds, breach, last_bad = [], [], "", ""
    deadline = time.monotonic() + options["seconds"]
    while not breach and time.monotonic() < deadline:
        for path in options["paths"]:
            result = probe.http_get(options["target"], path=path, host=options["host"], timeout=10.0)
            if result.status is None:
                # nginx may not have logged it: count it here.
                statuses.append(599)
                last_bad = "%s: %s" % (path, result.error)
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
        for entry in log.lines():
            try:
                statuses.append(int(entry["status"]))
                seconds.append(float(entry["request_time"]))
            except (KeyError, TypeError, ValueError, OverflowError):
                continue
            if statuses[-1] >= 500:
                last_bad = "%s %s answered %d" % (
                    entry.get("method", ""),
                    entry.get("path") or entry.get("uri", ""),
                    statuses[-1],
                )
        breach = judge(statuses, seconds, options)
    if breach and last_bad:
        breach += "; the last one: " + last_bad
    return Verdict(
        breach,
        len(statuses),
        sum(1 for status in statuses if status >= 500),
        round(percentile(seconds, 0.95) * 1000, 1),
    )
