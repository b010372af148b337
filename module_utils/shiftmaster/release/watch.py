"""Compare real traffic after a cutover with the version before, by nginx's own log and a few requests of our own."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from ..host import safe_files, symptoms
from ..host.percentile import percentile

# So much of the log is read at once.
_PART = 1 << 20
# No number of requests ends a watch before.
_LEAST_SECONDS = 10
# A 95th percentile that is slower than before by more is new.
_SLOWER = 1.5


class Result(NamedTuple):
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

    def requests(self):
        """Yield the new requests; lines that are none are left out."""
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
                request = symptoms.parse(line)
                if request:
                    yield request


def evaluate(requests: list, before: list, limits: dict) -> str:
    """Return the sentence of a breach, "" where there is none.

    limits: errors_min (so many 5xx at least), error_percent, p95_ms, requests_min (for the percentile). Pages that
    failed in the version before do not count.
    """
    old, total = symptoms.counts(before), len(requests)
    pages = {
        page: (errors, count)
        for page, (count, errors) in symptoms.counts(requests).items()
        if errors and not symptoms.failed_before(page, errors, count, old)
    }
    errors = sum(count for count, _requests in pages.values())
    percent = 100.0 * errors / total if total >= symptoms.REQUESTS_MIN else 0.0
    if errors >= limits["errors_min"] and percent > limits["error_percent"]:
        page = max(pages, key=pages.get)
        return (
            "%d of %d requests got a 5xx response (%.1f %%, shiftmaster_watch_error_percent: %s);"
            " %s: %d of %d, in the version before %d of %d"
        ) % (errors, total, percent, limits["error_percent"], page, *pages[page], *reversed(old.get(page, (0, 0))))
    p95 = _p95_ms(requests)
    p95_before = _p95_ms(before) if len(before) >= limits["requests_min"] else 0.0
    if total and total >= limits["requests_min"] and p95 > max(limits["p95_ms"], _SLOWER * p95_before):
        return (
            "the 95th percentile of the response time is %.0f ms (shiftmaster_watch_p95_ms: %s), in the version before"
            " %.0f ms" % (p95, limits["p95_ms"], p95_before)
        )
    return ""


def _p95_ms(requests: list) -> float:
    return percentile([one.seconds for one in requests], 0.95) * 1000


def watch(options: dict) -> Result:
    """Watch for a while; end early at a breach, and where enough requests were seen.

    options: seconds, enough (so many requests, but not before _LEAST_SECONDS), before (since when and until when the
    version before served alone), access_log, target ("http://localhost:8000"), host, paths, plus the limits of
    evaluate(). Our own requests count as traffic, too: a quiet night must not let a broken page pass.
    """
    log = AccessLog(options["access_log"])
    before, requests, breach = symptoms.logged(options["access_log"], *options["before"]), [], ""
    began, failed = time.monotonic(), False
    deadline, least = began + options["seconds"], began + _LEAST_SECONDS
    # A page that fails for us is requested until there are enough requests to compare.
    while not breach and (time.monotonic() < deadline or (failed and len(requests) < symptoms.REQUESTS_MIN)):
        if len(requests) >= options["enough"] and time.monotonic() >= least:
            break
        failed = False
        for path in options["paths"]:
            result = symptoms.get_page(options["target"], path, options["host"], 10.0)
            failed = failed or result.status is None or result.status >= 500
            if result.status is None:
                # nginx may not have logged it: count it here.
                requests.append(symptoms.Request(time.time(), 599, result.seconds, path))
        time.sleep(0.1 if failed else min(1.0, max(0.0, deadline - time.monotonic())))
        requests += log.requests()
        breach = evaluate(requests, before, options)
    return Result(breach, len(requests), sum(one.failed for one in requests), round(_p95_ms(requests), 1))
