"""Evidence of the hours before now: which alerts fired, and how busy each host was.

Prometheus knows both, of every host. Without it a host's own sysstat knows the second, where the site has it.
"""

from __future__ import annotations

import calendar
import glob
import json
import os
import time

from ..host import probe, safe_files
from ..monitoring import kpi
from ..monitoring.prometheus import Prometheus, PrometheusError
from .engine import Absent

# A chart is some 300 pixels wide.
_POINTS = 72
_MOST_ALERTS = 60
_ALERT_STEP = 60.0
# Of each host (the label `instance`), in percent.
QUERIES = {
    "cpu": 'clamp_min(100 * (1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[5m]))), 0)',
    "memory": "100 * (1 - max by (instance) (node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes))",
}


def prometheus_of(setting, seconds: float) -> Prometheus:
    """Return the Prometheus of this host; Absent where it has none."""
    place = setting.prometheus
    if not place:
        raise Absent("this host has no Prometheus")
    password = safe_files.read_text(place["password_file"]).strip()
    return Prometheus(place["url"], place["user"], password, place.get("ca_file"), seconds)


def history(setting) -> dict:
    """Alerts with their beginning and end, and the processors and the memory of each host, of the last hours."""
    now = time.time()
    if not setting.prometheus:
        return of_sysstat(setting, now)
    server = prometheus_of(setting, 5.0)
    try:
        return of_prometheus(server, now, setting.hours)
    except PrometheusError as error:
        raise probe.ProbeError("down", "prometheus", str(error))


def of_prometheus(server: Prometheus, now: float, hours: float) -> dict:
    """Return {source, alerts, usage: {host: {cpu, memory: [[at, percent]]}}}."""
    end = now - now % _ALERT_STEP
    start, step = end - hours * 3600.0, max(15.0, hours * 3600.0 / _POINTS)
    series = server.over('ALERTS{alertstate="firing",severity!="none"}', start, end + _ALERT_STEP, _ALERT_STEP)
    usage = {}
    for name, query in QUERIES.items():
        for labels, samples in server.over(query, start, end + step, step):
            points = [[int(at), round(value, 1)] for at, value in samples if value == value]
            usage.setdefault(labels.get("instance", ""), {})[name] = points
    return {"source": "prometheus", "alerts": alerts(series, start, end), "usage": usage}


def alerts(series: list, start: float, end: float) -> list:
    """Return [{name, severity, instance, start, end}], the latest first; None is what lies outside of [start, end]."""
    found = {}
    for labels, samples in series:
        for one in kpi.alerts_of([(labels, samples)], _ALERT_STEP):
            began = None if one["start"] < start + _ALERT_STEP else one["start"]
            ended = None if one["end"] > end - _ALERT_STEP else one["end"] + _ALERT_STEP
            # Of several filesystems of a host each is an alert of its own, under one name.
            found[(one["name"], labels.get("instance", ""), began, ended)] = labels.get("severity", "")
    rows = [
        {"name": name, "severity": severity, "instance": instance, "start": began, "end": ended}
        for (name, instance, began, ended), severity in found.items()
    ]
    return sorted(rows, key=lambda row: (row["start"] or start, row["name"]), reverse=True)[:_MOST_ALERTS]


# --- sysstat ---------------------------------------------------------------------------------------------------------


def of_sysstat(setting, now: float) -> dict:
    """Return the same without alerts, of what sysstat has kept of this host (under the name "")."""
    since = now - setting.hours * 3600.0
    # One file a day.
    files = sorted(
        path
        for directory in ("/var/log/sysstat", "/var/log/sa")
        for path in glob.glob(setting.path(directory) + "/sa[0-9]*")
        if os.stat(path).st_mtime >= since
    )[-2:]
    if not files:
        raise Absent("this host has neither Prometheus nor sysstat's metrics")
    points = {"cpu": [], "memory": []}
    for path in files:
        code, text, error = probe.run(["sadf", "-j", path, "--", "-u", "-r"], 4.0)
        if code != 0:
            raise probe.ProbeError("error", "sysstat", error.strip()[:200] or "sadf ended with %d" % code)
        for name, found in parse_sysstat(text).items():
            points[name] += found
    usage = {name: sorted(point for point in found if point[0] >= since) for name, found in points.items()}
    return {"source": "sysstat", "alerts": [], "usage": {"": usage}}


def parse_sysstat(text: str) -> dict:
    """Return {cpu, memory: [[at, percent]]} of `sadf -j`."""
    found = {"cpu": [], "memory": []}
    for host in json.loads(text)["sysstat"]["hosts"]:
        for one in host["statistics"]:
            at = _timestamp(one.get("timestamp") or {})
            for load in one.get("cpu-load") or []:
                if at and load.get("cpu") == "all":
                    found["cpu"].append([at, round(100.0 - load["idle"], 1)])
            memory = one.get("memory") or {}
            if at and memory.get("memused-percent") and "avail" in memory:
                total = 100.0 * memory["memused"] / memory["memused-percent"]
                found["memory"].append([at, round(100.0 * (1 - memory["avail"] / total), 1)])
    return found


def _timestamp(stamp: dict):
    """Return the epoch of sadf's timestamp, which is UTC."""
    try:
        return calendar.timegm(time.strptime("%(date)s %(time)s" % stamp, "%Y-%m-%d %H:%M:%S"))
    except (KeyError, ValueError):
        return None
