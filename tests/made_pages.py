"""The pages that operators open, of evidence as on a bad day: two roots, what follows from them, and a warning."""

from __future__ import annotations

import datetime
import math
from pathlib import Path

import runbooks
from ansible.module_utils.shiftmaster.monitoring import kpi
from ansible.module_utils.shiftmaster.reports import checklist, findings, findings_report

ROOT = Path(__file__).resolve().parents[1]
MADE = datetime.datetime(2026, 11, 26, 3, 10, tzinfo=datetime.timezone.utc)
NOW = MADE.timestamp()
JAPAN = {"name": "JST", "offset_seconds": 32400}
HOURS = 6


FINDINGS, CHECKLIST, KPI = (runbooks.unit_tests(name) for name in ("test_findings", "test_checklist", "test_kpi"))


def hours_ago(hours: float) -> float:
    return NOW - 3600 * hours


def wave(base: float, swing: float, rise: float = 0.0) -> list:
    """72 points of the last hours; `rise` is added in the last half hour."""
    return [
        [int(hours_ago(HOURS) + number * 300), round(base + swing * math.sin(number / 5.0) + (rise if number > 66 else 0), 1)]
        for number in range(73)
    ]  # fmt: skip


def requests() -> list:
    return [
        {"at": int(hours_ago(HOURS) + (number + 1) * 450), "requests": int(420 + 200 * math.sin(number / 7.0)),
         "errors": 0 if number < 44 else 60 + number, "p95_seconds": 0.18 if number < 44 else 9.5}
        for number in range(48)
    ]  # fmt: skip


TABLES = [
    {"schema": "public", "table": name, "bytes": size << 20, "index_bytes": size << 18, "rows": rows, "dead_rows": dead, "scans": 12,
     "scanned_rows": 12 * rows, "index_scans": 40 * rows, "index_rows": 41 * rows, "vacuumed_seconds_ago": ago, "analysed_seconds_ago": ago}
    for name, size, rows, dead, ago in (
        ("roster_shift", 310, 1204331, 30211, 5400), ("roster_wish", 88, 402113, 1907, 9000), ("auth_user", 1, 412, 3, None),
        ("django_session", 24, 90112, 44120, 172800), ("roster_taskrun", 12, 55120, 120, 21600),
    )
]  # fmt: skip
QUERY = "SELECT s.id, s.day, s.kind FROM roster_shift s JOIN auth_user u ON u.id = s.staff_id WHERE s.ward_id = $1 AND s.day BETWEEN $2 AND $3 ORDER BY s.day"
DATABASE = {
    "tables": TABLES,
    "slowest_on_average": [{"query": QUERY, "calls": 3120, "mean_ms": 412.6, "total_ms": 1287312, "rows": 93600}],
    "most_time_together": [{"query": QUERY, "calls": 3120, "mean_ms": 412.6, "total_ms": 1287312, "rows": 93600}],
    "rarely_used_indexes": [
        {"schema": "public", "table": "roster_wish", "index": "roster_wish_note_idx", "scans": 2, "entries_read": 9, "rows_fetched": 7,
         "bytes": 9 << 20}],
    "duplicate_indexes": [], "invalid_indexes": [], "bloat": [], "vacuum": [],
    "unindexed_keys": [{"table": "roster_wish", "constraint": "roster_wish_shift_id_fkey", "bytes": 88 << 20}],
}  # fmt: skip


CERTIFICATE = {
    "name": "site", "file": "/etc/ssl/certs/shiftmaster.crt", "days_left": 6.0, "not_after": "2026-12-02 12:00 JST",
    "shown": {"days_left": 6.0, "not_after": "2026-12-02 12:00 JST"},
}  # fmt: skip


def unhealthy_hosts() -> list:
    """A session holds the database's locks, and on an application host a log has filled the disk."""
    slow = {
        "requests": {"recent": {"p95_seconds": 20.0}},
        "http": {"local": {"status": 504, "where": "http://localhost:8000"}},
    }
    hosts = FINDINGS.unhealthy(
        db1=dict(FINDINGS.parts_of("DatabaseLockHeldByIdle"), database={**FINDINGS.parts_of("DatabaseLockHeldByIdle")["database"], **DATABASE}),
        app1=dict(slow, **FINDINGS.parts_of("DiskFullByLog")), app2=slow,
        edge1=dict(FINDINGS.NO_SITE, certificates={"certificates": [CERTIFICATE]}, requests={"series": requests()}),
    )  # fmt: skip
    usage = {
        name: {"cpu": wave(32, 9, 20), "memory": wave(58, 4)} for name in ("edge1", "app1", "app2", "db1", "cache1")
    }
    alerts = [
        {"name": "HighResponseTime", "severity": "warning", "instance": "edge1", "start": hours_ago(0.3), "end": None},
        {"name": "DiskSpaceCritical", "severity": "critical", "instance": "app1", "start": hours_ago(0.5), "end": None},
        {
            "name": "HighCPUUsage",
            "severity": "warning",
            "instance": "app2",
            "start": hours_ago(4),
            "end": hours_ago(3.6),
        },
    ]
    watcher = FINDINGS.of("mon1", "monitoring")
    watcher["parts"]["history"] = {"status": "ok", "source": "prometheus", "alerts": alerts, "usage": usage}
    hosts = [*hosts, watcher]
    for host in hosts:
        host.update(zone=JAPAN, at=NOW)
        if "release" in host["parts"]:
            deploy = {"time": "2026-11-26T00:05:00Z", "event": "live", "kind": "deploy", "version": "2.1.0"}
            host["parts"]["release"] = dict(host["parts"]["release"], deploys=[deploy])
    app1 = next(host for host in hosts if host["host"] == "app1")["parts"]
    app1["changes"] = {
        "status": "ok",
        "events": [{"at": hours_ago(3.05), "kind": "unit", "text": "Started shiftmaster-web@green.service"}],
    }
    error = {
        "first": hours_ago(0.45),
        "last": NOW,
        "count": 318,
        "text": "x",
        "exception": "OSError: [Errno 28] No space left on device",
    }
    app1["logs"]["files"]["application"]["problems"] = [error]
    app1["containers"] = {"status": "failed", "error": "permission denied"}
    return hosts


def report(hosts: list, language: str) -> str:
    data = findings_report.report(hosts, findings.find(runbooks.rules(), hosts, "all", {}), "all", MADE)
    return findings_report.page(data, language)


def filled(period: str, language: str, patch: dict) -> str:
    host = dict(CHECKLIST.host(patch), zone=JAPAN)
    data = checklist.evaluate(period, CHECKLIST.LINES[period], [host], findings.topology_of([host]), MADE)
    if period != "monthly":
        return checklist.page(data, language)
    # The month whose metrics test_kpi.py computes by hand.
    samples = KPI.synthetic()
    month = kpi.month(samples, KPI.START, KPI.END, KPI.STEP)
    for outage in month["outages"]:
        outage["began"] = findings.clock(outage["start"], JAPAN)[5:16]
    series = {
        "availability_percent": [(at, 100.0 * value) for at, value in checklist.daily(samples["up"], KPI.START)],
        "requests": checklist.daily(samples["requests"], KPI.START, mean=False),
    }
    return checklist.page(data, language, month, series)


SEVEN = ("services", "disk", "certificate", "backups", "security_updates", "errors", "alerts")


def pages() -> dict:
    """Return {file name: HTML}."""
    faults = {}
    for name in SEVEN:
        faults = CHECKLIST.changed(faults, CHECKLIST.FAULTS[name])
    found, healthy = {}, [dict(host, zone=JAPAN, at=NOW) for host in FINDINGS.topology().values()]
    for language in findings.LANGUAGES:
        found[f"diagnosis-{language}"] = report(unhealthy_hosts(), language)
        found[f"diagnosis-healthy-{language}"] = report(healthy, language)
        for period in checklist.PERIODS:
            found[f"checklist-{period}-{language}"] = filled(period, language, faults if period == "morning" else {})
    return found
