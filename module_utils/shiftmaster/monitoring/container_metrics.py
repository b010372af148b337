"""Data of a container engine about its containers, for node exporter's textfile collector.

Docker's own metrics say nothing of a single container. The engine's API (Docker, or Podman's that is like it) is
queried over its socket, for a bounded time.
"""

from __future__ import annotations

import json
import re
import sys
import time
from urllib.parse import quote

from ..host import probe, safe_files
from . import metrics
from .metrics import labels

# As old as the oldest engine that supports all of this (Docker 20.10).
API = "/v1.41"
LARGEST_RESPONSE_BYTES = 32 * 1024 * 1024
TIMEOUT_SECONDS = 10.0
STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
HEALTH = ("healthy", "unhealthy", "starting", "none")
LAST = "shiftmaster_containers_last_collected_timestamp_seconds"
UP = "shiftmaster_container_engine_up"
DURATION = "shiftmaster_containers_collect_duration_seconds"
HELP = {
    UP: "Whether the container engine responded the last time it was queried",
    LAST: "When the engine's containers were last read completely",
    DURATION: "How long that took",
    "shiftmaster_containers": "Containers by state",
    "shiftmaster_container_info": "A container and its image; always 1",
    "shiftmaster_container_running": "Whether the container runs",
    "shiftmaster_container_health": "1 for the state of the container's own health check, else 0",
    "shiftmaster_container_restarts_total": "Restarts by the engine's restart policy",
    "shiftmaster_container_oom_killed": "Whether its last end was for want of memory",
    "shiftmaster_container_exit_code": "Exit code of its last end; 0 while it runs",
    "shiftmaster_container_cpu_seconds_total": "CPU time that it has used since its start",
    "shiftmaster_container_memory_bytes": "Memory in use, without the page cache that can be given back",
}


class EngineError(Exception):
    """The engine gave no usable response."""


def get(engine: str, target: str, deadline: probe.Deadline):
    """Return the response of the engine at a socket; None where there is no such thing."""
    try:
        result = probe.http_get("unix:" + engine, API + target, timeout=deadline.left(), limit=LARGEST_RESPONSE_BYTES)
        if result.status == 404:
            return None
        if result.status != 200:
            raise EngineError("%s: %s" % (target, result.error or "it returns %d" % result.status))
        return json.loads(result.body)
    except (probe.ProbeError, ValueError) as error:
        raise EngineError("%s: %s" % (target, error))


def cpu_seconds(stats: dict):
    used = ((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage")
    return used / 1e9 if used is not None else None


def memory_bytes(stats: dict):
    """As `docker stats` has it: without inactive pages of files, which the kernel gives back when it needs them."""
    memory = stats.get("memory_stats") or {}
    if memory.get("usage") is None:
        return None
    detail = memory.get("stats") or {}
    # The first is cgroup v1's name.
    cache = detail.get("total_inactive_file", detail.get("inactive_file", 0))
    return memory["usage"] - cache if cache <= memory["usage"] else memory["usage"]


def metrics_of(container: dict, stats: dict) -> dict:
    """Return {(metric, labels): value} of one container, from the engine's data."""
    name = container["Name"].lstrip("/")
    state = container["State"]
    image = (container.get("Config") or {}).get("Image") or ""
    health = (state.get("Health") or {}).get("Status") or "none"
    values = {
        "running": int(bool(state.get("Running"))),
        "restarts_total": container.get("RestartCount") or 0,
        "oom_killed": int(bool(state.get("OOMKilled"))),
        "exit_code": state.get("ExitCode") or 0,
        "cpu_seconds_total": cpu_seconds(stats),
        "memory_bytes": memory_bytes(stats),
    }
    found = {
        ("shiftmaster_container_" + metric, labels(name=name)): value
        for metric, value in values.items()
        if value is not None
    }
    found["shiftmaster_container_info", labels(image=image, name=name)] = 1
    for known in HEALTH:
        found["shiftmaster_container_health", labels(name=name, state=known)] = int(health == known)
    return found


def collect(engine: str, deadline: probe.Deadline) -> dict:
    """Return {(metric, labels): value}. A container that goes away meanwhile is left out.

    EngineError where the engine does not respond.
    """
    listed = get(engine, "/containers/json?all=1", deadline)
    if not isinstance(listed, list):
        raise EngineError("the engine has no list of containers")
    counts, found = dict.fromkeys(STATES, 0), {}
    try:
        for entry in listed:
            state = entry.get("State") or "dead"
            counts[state] = counts.get(state, 0) + 1
            where = "/containers/" + quote(entry["Id"], safe="")
            container = get(engine, where + "/json", deadline)
            if container is None:
                continue
            running = container["State"].get("Running")
            # One look; without one-shot the engine takes two, a second apart.
            stats = get(engine, where + "/stats?stream=false&one-shot=true", deadline) if running else None
            found.update(metrics_of(container, stats or {}))
    except (KeyError, TypeError, AttributeError) as error:
        raise EngineError("the engine's response lacks %s" % error)
    found.update((("shiftmaster_containers", labels(state=state)), count) for state, count in counts.items())
    return found


def previous_result(path: str) -> tuple:
    """Return (time of the last complete read, whether the engine responded the last time); (0, None) without a file."""
    try:
        text = safe_files.read_text(path)
    except OSError:
        return 0.0, None
    found = [re.search(r"^%s ([0-9.]+)$" % metric, text, re.M) for metric in (LAST, UP)]
    return float(found[0][1]) if found[0] else 0.0, float(found[1][1]) if found[1] else None


def main(engine: str, output: str, timeout_seconds: float = TIMEOUT_SECONDS) -> int:
    """Read and write once."""
    began = time.monotonic()
    last, responded = previous_result(output)
    problem = None
    try:
        found = collect(engine, probe.Deadline(timeout_seconds))
        found[LAST, ""] = round(time.time(), 3)
    except EngineError as error:
        # Old metrics would look healthy, so they are removed. The time of the last read is kept.
        problem = error
        found = {(LAST, ""): last}
    found[UP, ""] = int(problem is None)
    found[DURATION, ""] = round(time.monotonic() - began, 4)
    metrics.write(output, HELP, found)
    if problem and responded != 0:
        # With the journal's level of a warning. Once, not every time; and no failure of the unit: the file reports it.
        sys.stderr.write("<4>%s: %s\n" % (engine, problem))
    return 0
