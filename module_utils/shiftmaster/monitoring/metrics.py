"""Metrics as text, and what a service responds over HTTP: its metrics, and Prometheus' targets."""

from __future__ import annotations

import datetime
import json
import re

from ..host import safe_files


def labels(**values: str) -> str:
    """Return labels as the text format wants them."""
    escaped = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
    return ",".join(
        '%s="%s"' % (name, "".join(escaped.get(character, character) for character in value))
        for name, value in values.items()
    )


def exposition(described: dict, values: dict) -> str:
    """Return the text format of {(metric, labels): value}; described has the help of each metric, in their order.

    Counters are those whose name ends with _total.
    """
    lines = []
    for name, words in described.items():
        mine = sorted((labels, value) for (metric, labels), value in values.items() if metric == name)
        if mine:
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += ["# HELP %s %s" % (name, words), "# TYPE %s %s" % (name, kind)]
        lines += ["%s%s %s" % (name, "{%s}" % labels if labels else "", value) for labels, value in mine]
    return "".join(line + "\n" for line in lines)


def write(path: str, described: dict, values: dict) -> None:
    """Replace a file of node exporter's textfile collector."""
    safe_files.write(path, exposition(described, values).encode(), 0o644)


def value_of(text: str, metric: str):
    """Return the value of a metric in the text format, or None.

    A bare name is its first series; with labels, exactly as the service writes them, that very one.
    """
    name = re.escape(metric) + ("" if metric.endswith("}") else r"(?:\{[^\n]*\})?")
    match = re.search(r"^%s\s+(\S+)" % name, text, re.M)
    try:
        return float(match.group(1)) if match else None
    except ValueError:
        return None


def at_path(text: str, path):
    """Return the value of a JSON response at a path of keys; None where there is no such place."""
    try:
        value = json.loads(text)
        for key in path:
            value = value[int(key)] if isinstance(value, list) else value[key]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return value


def seconds_of(text, default=0.0) -> float:
    """Return the seconds of one of Prometheus' durations: 15s, 1m30s, 500ms."""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
    parts = re.findall(r"(\d+)(ms|[smhdwy])", text or "")
    return sum(int(number) * units[unit] for number, unit in parts) if parts else default


def timestamp_of(text) -> float:
    """Return the seconds since 1970 of Go's times: 2026-11-26T13:20:05.491234567+09:00; 0 where there is none."""
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)$", text or "")
    if not match:
        return 0.0
    whole = datetime.datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00")).timestamp()
    return max(0.0, whole + float(match[2] or 0))


def targets_of(text: str) -> dict:
    """Return {(job, instance): {health, error, interval, scraped}} of the response of /api/v1/targets.

    Where several targets have the same two labels, one that is up speaks for them.
    """
    found = {}
    for target in at_path(text, ["data", "activeTargets"]) or []:
        labels = target.get("labels") or {}
        key = (labels.get("job") or target.get("scrapePool", ""), labels.get("instance", ""))
        known = {
            "health": target.get("health", "unknown"),
            "error": target.get("lastError", ""),
            "interval": seconds_of(target.get("scrapeInterval"), 15.0),
            "scraped": timestamp_of(target.get("lastScrape")),
        }
        if key not in found or known["health"] == "up":
            found[key] = known
    return found


def lost(before: dict, now: dict, since: float) -> dict:
    """Return the targets that were up before, are still scraped and have not been up since, with their data.

    One that is no longer a target was taken out on purpose. A reload leaves a target's health as it was until it is
    scraped again.
    """
    return {
        key: now[key]
        for key, known in before.items()
        if known["health"] == "up" and key in now and (now[key]["health"] != "up" or now[key]["scraped"] < since)
    }
