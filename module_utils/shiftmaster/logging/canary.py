"""Writes a line that nobody else writes, and looks for it where people search: how long does a log take to get there?

Used by the module logging_canary, and by the program that role log_canary installs on a host.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import time

from ..host import safe_files
from ..host.json_api import Api, Failed, quoted

LOGGER = "shiftmaster.canary"
SUCCESS, TIMESTAMP = "shiftmaster_log_canary_success", "shiftmaster_log_canary_timestamp_seconds"
SECONDS = "shiftmaster_log_canary_seconds"
HELP = {
    SUCCESS: "Whether the last line that was looked for was found in time, and once.",
    TIMESTAMP: "When it was looked for.",
    SECONDS: "How long the last line that was found took to be searchable.",
}
# Beyond it the file begins again; what was in it has long been read.
MAX_BYTES = 1048576


def line(number: str, now: float) -> str:
    """Return the line with this number, in the form of the application's own."""
    timestamp = datetime.datetime.fromtimestamp(now, datetime.timezone.utc)
    event = {
        "@timestamp": timestamp.strftime("%Y-%m-%dT%H:%M:%S.") + "%03dZ" % (timestamp.microsecond // 1000),
        "log": {"level": "INFO", "logger": LOGGER},
        "message": "canary " + number,
        "ecs": {"version": "8.11.0"},
        "http": {"request": {"id": number}},
        # As long as a file must be to be known by its beginning.
        "labels": {"extra": "." * 200},
    }
    return json.dumps(event, separators=(",", ":")) + "\n"


def write(path: str, text: str) -> None:
    """Append by one write; a file that has grown large is put aside first, as by a rotation."""
    with contextlib.suppress(FileNotFoundError):
        if safe_files.status(path).st_size > MAX_BYTES:
            safe_files.rename(path, os.path.basename(path) + "-0")
    safe_files.append(path, text.encode("ascii"))


def found(api, stream: str, number: str) -> int:
    """Return how many events with this number can be found."""
    body = {"size": 0, "track_total_hits": True, "query": {"term": {"http.request.id": number}}}
    response = api.call("/%s/_search" % quoted(stream), "POST", body)
    return response["hits"]["total"]["value"]


def measure(api, path: str, stream: str, number: str, timeout: float, pause: float = 1.0) -> dict:
    """Return {"seconds", "count"} of one line; seconds is None where it was not found in time."""
    began = time.time()
    write(path, line(number, began))
    deadline = time.monotonic() + timeout
    while True:
        count = found(api, stream, number)
        if count:
            return {"seconds": round(time.time() - began, 3), "count": count}
        if time.monotonic() >= deadline:
            return {"seconds": None, "count": 0}
        time.sleep(pause)


def metrics(result: dict, now: float) -> dict:
    """Return {(metric, labels): value} of what measure() returns."""
    values = {(SUCCESS, ""): int(result["count"] == 1), (TIMESTAMP, ""): int(now)}
    if result["seconds"] is not None:
        values[SECONDS, ""] = result["seconds"]
    return values


__all__ = ["Api", "Failed", "found", "line", "measure", "metrics", "write"]
