"""A month's metrics of service, from samples that Prometheus has kept, against what was promised.

Pure functions. A sample is (epoch, value); a series has one each `step` seconds where something was measured. What was
not measured is not invented: it counts neither as up nor as down, and is reported.
"""

from __future__ import annotations

import datetime
from typing import NamedTuple, Optional

# What ShiftMaster promises its users.
TARGETS = {
    "availability_percent": 99.9,
    "p95_seconds": 0.2,
    "p95_tolerated_seconds": 0.5,
    "error_percent": 0.1,
    "mttr_seconds": 900.0,
    "database_seconds": 0.05,
}


class Outage(NamedTuple):
    start: float
    end: float  # the first sample that was well again, or the end of what is known
    ended: bool  # whether that was seen

    @property
    def seconds(self) -> float:
        return self.end - self.start


def month_of(text: str, zone: datetime.tzinfo) -> tuple:
    """Return (start, end) of a month `2026-10` in a zone, as epochs."""
    year, month = (int(part) for part in text.split("-"))
    start = datetime.datetime(year, month, 1, tzinfo=zone)
    following = datetime.datetime(year + month // 12, month % 12 + 1, 1, tzinfo=zone)
    return start.timestamp(), following.timestamp()


def within(samples: list, start: float, end: float) -> list:
    """Return the samples of [start, end) in their order, one for each time."""
    return sorted(dict(sample for sample in samples if start <= sample[0] < end).items())


def gaps(samples: list, start: float, end: float, step: float) -> list:
    """Return the (start, end) in which nothing was measured, where that is longer than two steps."""
    found, last = [], start - step
    for at, _value in samples + [(end, 0.0)]:
        if at - last > 2 * step:
            found.append((last + step, at))
        last = at
    return found


def outages(up: list, step: float) -> list:
    """Return the outages of samples that are 1 (up) or 0: from the first 0 to the next 1, or to where the samples end.

    A gap ends an outage: nobody knows what came then.
    """
    found, began, last = [], None, None
    for at, value in up:
        if began is not None and at - last > 2 * step:
            found.append(Outage(began, last + step, False))
            began = None
        if value < 0.5 and began is None:
            began = at
        elif value >= 0.5 and began is not None:
            found.append(Outage(began, at, True))
            began = None
        last = at
    if began is not None:
        found.append(Outage(began, last + step, False))
    return found


def availability(up: list, start: float, end: float, step: float) -> dict:
    """Return what was up, what was down and what is not known of a time, and mean times to repair and between failures.

    MTTR: the mean length of the outages that were seen to end. MTBF: the time up for each outage.
    """
    samples = within(up, start, end)
    unknown = sum(until - since for since, until in gaps(samples, start, end, step))
    found = outages(samples, step)
    down = sum(outage.seconds for outage in found)
    known = max(0.0, end - start - unknown)
    repaired = [outage.seconds for outage in found if outage.ended]
    return {
        "availability_percent": round(100.0 * (known - down) / known, 4) if known else None,
        "down_seconds": down,
        "unknown_seconds": unknown,
        "known_seconds": known,
        "outages": [dict(outage._asdict(), seconds=outage.seconds) for outage in found],
        "mttr_seconds": round(sum(repaired) / len(repaired), 1) if repaired else None,
        "mtbf_seconds": round((known - down) / len(found), 1) if found else None,
    }


def causes(found: list, alerts: list, margin: float = 300.0) -> list:
    """Return each outage with the alerts that fired around it, the first one first: what it was, as far as it was seen.

    alerts: [{name, component, start, end}]. An alert that only reports the site as down is no cause.
    """
    result = []
    for outage in found:
        near = [one for one in alerts if one["start"] <= outage["end"] and one["end"] >= outage["start"] - margin]
        near.sort(key=lambda alert: alert["start"])
        names = [alert["name"] for alert in near if alert["name"] not in _SYMPTOMS]
        result.append(dict(outage, cause=names[0] if names else None, alerts=names))
    return result


_SYMPTOMS = frozenset(
    (
        "WebsiteDown", "ShiftMasterDown", "NoApplicationServes", "HighErrorRate", "HighResponseTime", "Watchdog",
        "AvailabilityBudgetBurnFast", "AvailabilityBudgetBurnSlow", "ErrorBudgetBurnFast", "ErrorBudgetBurnSlow",
        "LatencyBudgetBurnFast", "LatencyBudgetBurnSlow", "SlowRequestsFrequent", "HighClientErrorRate",
    )
)  # fmt: skip


def downtime_by_cause(found: list) -> dict:
    """Return {cause: seconds}; None stands for what is not known."""
    result = {}
    for outage in found:
        result[outage["cause"]] = result.get(outage["cause"], 0.0) + outage["seconds"]
    return result


def alerts_of(series: list, step: float) -> list:
    """Return [{name, component, start, end}] of series of ALERTS{alertstate="firing"}: [(labels, samples)]."""
    found = []
    for labels, samples in series:
        began = last = None
        for at, value in sorted(samples):
            if value < 0.5:
                continue
            if began is not None and at - last > 2 * step:
                found.append((labels, began, last))
                began = None
            began = at if began is None else began
            last = at
        if began is not None:
            found.append((labels, began, last))
    return [
        {"name": labels.get("alertname", ""), "component": labels.get("service", ""), "start": start, "end": end}
        for labels, start, end in sorted(found, key=lambda one: one[1])
    ]


def month(data: dict, start: float, end: float, step: float, targets: Optional[dict] = None) -> dict:
    """Return the report of a month.

    data: up (samples of 0 and 1), requests and errors (samples of increases a step), p95_seconds,
    database_seconds (sum of time), database_statements (count), alerts ([{name, component, start, end}]). Each may be
    absent: its metric is None then, and named in `missing`.
    """
    targets = dict(TARGETS, **(targets or {}))
    metrics, missing = {}, []
    up = within(data.get("up") or [], start, end)
    if up:
        served = availability(up, start, end, step)
        served["outages"] = causes(served["outages"], data.get("alerts") or [])
        metrics.update(served)
    else:
        missing.append("up")
        metrics.update(dict.fromkeys(("availability_percent", "mttr_seconds", "mtbf_seconds")), outages=[])
        metrics["unknown_seconds"] = end - start
    requests = within(data.get("requests") or [], start, end)
    errors = within(data.get("errors") or [], start, end)
    total = sum(value for _at, value in requests)
    if requests:
        metrics["requests"] = round(total)
        # By the time in which it was measured.
        metrics["requests_per_second"] = round(total / (len(requests) * step), 4)
        metrics["error_percent"] = round(100.0 * sum(value for _at, value in errors) / total, 4) if total else 0.0
    else:
        missing.append("requests")
        metrics.update(requests=None, requests_per_second=None, error_percent=None)
    p95 = data.get("p95_seconds")
    metrics["p95_seconds"] = None if p95 is None else round(p95, 4)
    if p95 is None:
        missing.append("response_times")
    statements = data.get("database_statements")
    metrics["database_seconds"] = round(data["database_seconds"] / statements, 5) if statements else None
    if not statements:
        missing.append("database_seconds")
    metrics["downtime_by_cause"] = downtime_by_cause(metrics["outages"])
    metrics["missing"] = missing
    metrics["results"] = results(metrics, targets)
    metrics["targets"] = targets
    metrics["start"], metrics["end"] = start, end
    return metrics


def results(metrics: dict, targets: dict) -> dict:
    """Return met, missed, tolerated or unknown for each promise."""

    def at_most(value, limit, tolerated=None):
        if value is None:
            return "unknown"
        return "met" if value <= limit else "tolerated" if tolerated is not None and value <= tolerated else "missed"

    served = metrics["availability_percent"]
    # Without an outage there was nothing to repair.
    mttr = 0.0 if served is not None and not metrics["outages"] else metrics["mttr_seconds"]
    return {
        "availability_percent": at_most(served and -served, -targets["availability_percent"]),
        "p95_seconds": at_most(metrics["p95_seconds"], targets["p95_seconds"], targets["p95_tolerated_seconds"]),
        "error_percent": at_most(metrics["error_percent"], targets["error_percent"]),
        "mttr_seconds": at_most(mttr, targets["mttr_seconds"]),
        "database_seconds": at_most(metrics["database_seconds"], targets["database_seconds"]),
    }
