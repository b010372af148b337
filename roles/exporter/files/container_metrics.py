#!/usr/bin/python3
# Managed by Ansible. Owner: role exporter.
"""Write a container engine's data about its containers, for node exporter's textfile collector.

Docker's own metrics say nothing of a single container. This asks the engine's API (Docker, or Podman's that is like it)
over its socket, for a bounded time, and replaces one file atomically.
"""

import argparse
import http.client
import json
import os
import re
import socket
import sys
import tempfile
import time
from urllib.parse import quote

# As old as the oldest engine that supports all of this (Docker 20.10).
API = "/v1.41"
LARGEST_RESPONSE_BYTES = 32 * 1024 * 1024
STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
HEALTH = ("healthy", "unhealthy", "starting", "none")
LAST = "shiftmaster_containers_last_collected_timestamp_seconds"
UP = "shiftmaster_container_engine_up"
METRICS = {
    UP: ("gauge", "Whether the container engine responded the last time it was queried"),
    LAST: ("gauge", "When the engine's containers were last read completely"),
    "shiftmaster_containers_collect_duration_seconds": ("gauge", "How long that took"),
    "shiftmaster_containers": ("gauge", "Containers by state"),
    "shiftmaster_container_info": ("gauge", "A container and its image; always 1"),
    "shiftmaster_container_running": ("gauge", "Whether the container runs"),
    "shiftmaster_container_health": ("gauge", "1 for the state of the container's own health check, else 0"),
    "shiftmaster_container_restarts_total": ("counter", "Restarts by the engine's restart policy"),
    "shiftmaster_container_oom_killed": ("gauge", "Whether its last end was for want of memory"),
    "shiftmaster_container_exit_code": ("gauge", "Exit code of its last end; 0 while it runs"),
    "shiftmaster_container_cpu_seconds_total": ("counter", "CPU time that it has used since its start"),
    "shiftmaster_container_memory_bytes": ("gauge", "Memory in use, without the page cache that can be given back"),
}


class EngineError(Exception):
    """The engine gave no usable response."""


class Engine:
    """GET requests to an engine's socket, all of them before one deadline."""

    def __init__(self, path, deadline):
        self.path = path
        self.deadline = deadline

    def get(self, target):
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise EngineError("no time is left for %s" % target)
        connection = http.client.HTTPConnection("localhost", timeout=left)
        try:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(left)
            connection.sock.connect(self.path)
            connection.request("GET", API + target)
            response = connection.getresponse()
            data = self.body(connection, response)
            if response.status == 404:
                return None
            if response.status != 200:
                raise EngineError("%s returns %d" % (target, response.status))
            return json.loads(data)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EngineError("%s: %s" % (target, error or type(error).__name__))
        finally:
            connection.close()

    def body(self, connection, response):
        """The response's body. A timeout applies to each read, so the remaining time is set before each."""
        parts, size = [], 0
        while True:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise EngineError("the response did not end in time")
            if connection.sock is not None:
                connection.sock.settimeout(left)
            part = response.read1(65536)
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
            if size > LARGEST_RESPONSE_BYTES:
                raise EngineError("the response is larger than %d bytes" % LARGEST_RESPONSE_BYTES)


def cpu_seconds(stats):
    used = ((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage")
    return used / 1e9 if used is not None else None


def memory_bytes(stats):
    """As `docker stats` has it: without inactive pages of files, which the kernel gives back when it needs them."""
    memory = stats.get("memory_stats") or {}
    if memory.get("usage") is None:
        return None
    detail = memory.get("stats") or {}
    # The first is cgroup v1's name.
    cache = detail.get("total_inactive_file", detail.get("inactive_file", 0))
    return max(0, memory["usage"] - cache) if cache <= memory["usage"] else memory["usage"]


def samples_of(container, stats):
    """(metric, labels, value) of one container, from the engine's data."""
    name = {"name": container["Name"].lstrip("/")}
    state = container["State"]
    yield "shiftmaster_container_info", dict(name, image=(container.get("Config") or {}).get("Image") or ""), 1
    yield "shiftmaster_container_running", name, int(bool(state.get("Running")))
    health = (state.get("Health") or {}).get("Status") or "none"
    for known in HEALTH:
        yield "shiftmaster_container_health", dict(name, state=known), int(health == known)
    yield "shiftmaster_container_restarts_total", name, container.get("RestartCount") or 0
    yield "shiftmaster_container_oom_killed", name, int(bool(state.get("OOMKilled")))
    yield "shiftmaster_container_exit_code", name, state.get("ExitCode") or 0
    for metric, value in (
        ("shiftmaster_container_cpu_seconds_total", cpu_seconds(stats)),
        ("shiftmaster_container_memory_bytes", memory_bytes(stats)),
    ):
        if value is not None:
            yield metric, name, value


def collect(engine):
    """All samples. A container that goes away meanwhile is left out; EngineError where the engine does not respond."""
    listed = engine.get("/containers/json?all=1")
    if not isinstance(listed, list):
        raise EngineError("the engine has no list of containers")
    counts = dict.fromkeys(STATES, 0)
    samples = []
    try:
        for entry in listed:
            state = entry.get("State") or "dead"
            counts[state] = counts.get(state, 0) + 1
            where = "/containers/" + quote(entry["Id"], safe="")
            container = engine.get(where + "/json")
            if container is None:
                continue
            running = container["State"].get("Running")
            # One look; without one-shot the engine takes two, a second apart.
            stats = (engine.get(where + "/stats?stream=false&one-shot=true") if running else None) or {}
            samples.extend(samples_of(container, stats))
    except (KeyError, TypeError, AttributeError) as error:
        raise EngineError("the engine's response lacks %s" % error)
    samples.extend(("shiftmaster_containers", {"state": state}, count) for state, count in counts.items())
    return samples


def escaped(text):
    return str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render(samples):
    """The text format, metric by metric."""
    lines = []
    for metric, (kind, text) in METRICS.items():
        mine = [(labels, value) for name, labels, value in samples if name == metric]
        if not mine:
            continue
        lines.append("# HELP %s %s" % (metric, text))
        lines.append("# TYPE %s %s" % (metric, kind))
        for labels, value in mine:
            inner = ",".join('%s="%s"' % (name, escaped(labels[name])) for name in sorted(labels))
            lines.append("%s%s %s" % (metric, "{%s}" % inner if inner else "", repr(value)))
    return "\n".join(lines) + "\n"


def previous_result(path):
    """(time of the last complete read, whether the engine responded the last time) from the file; (0, None)."""
    try:
        with open(path, encoding="utf-8") as handle:
            text = handle.read()
    except (OSError, ValueError):
        return 0.0, None
    found = [re.search(r"^%s ([0-9.]+)$" % metric, text, re.M) for metric in (LAST, UP)]
    return float(found[0].group(1)) if found[0] else 0.0, float(found[1].group(1)) if found[1] else None


def replace(path, text):
    """Put the text at a path at once: node exporter reads the old file or the new one."""
    # Without the ending that the collector looks for.
    descriptor, temporary = tempfile.mkstemp(prefix="." + os.path.basename(path), dir=os.path.dirname(path))
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            os.fchmod(handle.fileno(), 0o644)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def run(socket_path, output, timeout):
    """Read and write once. (None or why the engine could not be read, whether that is new)."""
    began = time.monotonic()
    last, responded = previous_result(output)
    problem = None
    try:
        samples = collect(Engine(socket_path, began + timeout))
        samples.append((LAST, {}, round(time.time(), 3)))
    except EngineError as error:
        # Old metrics would look healthy, so they are removed. The time of the last read is kept.
        problem = str(error)
        samples = [(LAST, {}, last)]
    samples.append((UP, {}, int(problem is None)))
    samples.append(("shiftmaster_containers_collect_duration_seconds", {}, round(time.monotonic() - began, 4)))
    replace(output, render(samples))
    return problem, responded != (problem is None)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", default="/run/docker.sock")
    parser.add_argument("--output", required=True)
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for everything that the engine is queried")
    options = parser.parse_args(arguments)
    problem, new = run(options.socket, options.output, options.timeout)
    if problem and new:
        # With the journal's level of a warning. Once, not every time; and no failure of the unit: the file reports it.
        sys.stderr.write("<4>%s: %s\n" % (options.socket, problem))
    return 0


if __name__ == "__main__":
    sys.exit(main())
