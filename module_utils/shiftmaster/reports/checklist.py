"""The checklists that people filled in by hand, filled in by machine: each line with what it rests on.

Runs on the controller, with the expressions of findings.py. A line is data (checklists/<period>.yml):

    name, text {en, ja}
    needs      the parts of the evidence that it rests on: without one of them it is unknown, never ticked
    functions  the hosts that it is about; all where absent. Without such a host it is left out
    good       an expression: true ticks it, false fails it, none leaves it open
    bad        an expression that fails it also without what it needs: a part's reason may be the very fault
    evidence   a template, or {en, ja} where it has words: what was seen
    person     {en, ja} instead of `good`: what a person has to do
A line is failed where one host fails it, unknown where one host reports nothing, ticked where all hosts are good.
"""

from __future__ import annotations

import datetime

from ..host.texts import LANGUAGES, pick
from ..notify.text import CHECKLISTS
from .findings import names_of, the_engine, timezone, zone_of, zone_text

GOOD, BAD, PERSON, UNKNOWN = "good", "bad", "person", "unknown"
MARKS = {GOOD: "☑", BAD: "☒", PERSON: "☐", UNKNOWN: "？"}
PERIODS = tuple(CHECKLISTS)
SAYS = {
    "title": CHECKLISTS,
    "words": {
        GOOD: ("good", "良好"),
        BAD: ("not good", "要対応"),
        PERSON: ("for a person", "担当者が確認"),
        UNKNOWN: ("not known", "確認不可"),
    },
    "sum": (
        "{good} good, {bad} not good, {unknown} not known, {person} for a person",
        "良好 {good}、要対応 {bad}、確認不可 {unknown}、担当者が確認 {person}",
    ),
    "kpi": ("Metrics of the month against what was promised", "月次 KPI(サービスレベルとの比較)"),
    "columns": (("metric", "month", "promised", "result"), ("指標", "実績", "目標", "判定")),
    "result": {
        "met": ("met", "達成"),
        "missed": ("missed", "未達"),
        "tolerated": ("tolerated", "許容範囲"),
        "unknown": ("no data", "データなし"),
        "": ("", ""),
    },
    "missing": (
        "Not measured: {names}. Nothing is put in its place.",
        "測定データなし: {names}。推定値は用いていません。",
    ),
    "unknown_time": (
        "Of the month {hours} h were not measured; they count neither way.",
        "{hours} 時間分は測定されておらず、稼働・停止のどちらにも数えていません。",
    ),
    "cause": ("Outages and what fired first", "停止と、最初に発生したアラート"),
    "no_outage": ("No outage was measured.", "停止は測定されていません。"),
    "not_known": ("not known", "不明"),
    "no_metrics": ("There are no metrics of the month: {why}", "月次の KPI がありません: {why}"),
    "no_prometheus": ("no host of this run has a Prometheus", "対象のホストに Prometheus がありません"),
    "nothing_seen": ("not collected", "収集されていません"),
    "no_evidence": ("no evidence", "根拠がありません"),
    "names": {
        "up": ("availability", "可用性"),
        "requests": ("requests", "リクエスト数"),
        "response_times": ("response times", "応答時間"),
        "database_seconds": ("database response time", "データベース応答"),
        "availability_percent": ("Availability, %", "可用性(%)"),
    },
}


def both(value, **names) -> dict:
    """Return {en, ja} of a text in both languages, filled in."""
    return {
        language: value[number].format(**{name: text[language] for name, text in names.items()})
        for number, language in enumerate(LANGUAGES)
    }


def name_of(language: str, key: str) -> str:
    return pick(language, SAYS["names"].get(key, (key,) * len(LANGUAGES)))


# --- evaluation ------------------------------------------------------------------------------------------------------


def evaluate_line(line: dict, hosts: list, topology: dict) -> dict:
    """Return a line with its mark, and for each host what was seen."""
    if "person" in line:
        return {"name": line["name"], "text": line["text"], "mark": PERSON, "hosts": [], "person": line["person"]}
    seen = []
    for host in hosts:
        if line.get("functions") and not set(line["functions"]) & set(host.get("functions") or []):
            continue
        seen.append(dict(evaluate_host(line, host, topology), host=host["host"]))
    marks = {one["mark"] for one in seen}
    mark = BAD if BAD in marks else UNKNOWN if UNKNOWN in marks or not seen else GOOD
    return {"name": line["name"], "text": line["text"], "mark": mark, "hosts": seen}


def evaluate_host(line: dict, host: dict, topology: dict) -> dict:
    """Return mark and evidence, in both languages, of one line on one host."""
    parts = host.get("parts") or {}
    engine, names = the_engine(), names_of(host, topology)
    lacking = [part for part in line.get("needs", []) if parts.get(part, {}).get("status") != "ok"]
    if lacking:
        why = parts.get(lacking[0], {}).get("error") or (host.get("reach") or {}).get("message")
        why = " ".join(str(why or "").split())[:400]
        why = dict.fromkeys(LANGUAGES, why) if why else both(SAYS["nothing_seen"])
        evidence = {language: "%s: %s" % (lacking[0], why[language]) for language in LANGUAGES}
        return {"mark": BAD if engine.value(line.get("bad", "false"), names) else UNKNOWN, "evidence": evidence}
    good = engine.value(line["good"], names)
    templates = line["evidence"]
    templates = templates if isinstance(templates, dict) else dict.fromkeys(LANGUAGES, templates)
    evidence = {language: engine.text(templates[language], names) for language in LANGUAGES}
    # Nothing is ticked without evidence.
    if good is None or not all(evidence.values()):
        evidence = {language: text or both(SAYS["no_evidence"])[language] for language, text in evidence.items()}
        return {"mark": UNKNOWN, "evidence": evidence}
    return {"mark": GOOD if good else BAD, "evidence": evidence}


def evaluate(period: str, lines: list, hosts: list, topology: dict, made: datetime.datetime) -> dict:
    """Return a filled-in checklist as data. Lines about functions that no host has are left out."""
    there = {function for host in hosts for function in host.get("functions") or []}
    filled = [
        evaluate_line(line, hosts, topology)
        for line in lines
        if "person" in line or not line.get("functions") or set(line["functions"]) & there
    ]
    zone = zone_of(hosts)
    return {
        "period": period,
        "made": made.astimezone(timezone(zone)).isoformat(timespec="seconds"),
        "zone": zone,
        "lines": filled,
        "count": {mark: sum(line["mark"] == mark for line in filled) for mark in (GOOD, BAD, UNKNOWN, PERSON)},
        "hosts": [host["host"] for host in hosts],
    }


# --- text ------------------------------------------------------------------------------------------------------------


def when_made(data: dict) -> str:
    """Return when it was made, and so in which zone all times are."""
    made = datetime.datetime.fromisoformat(data["made"])
    return "%s %s" % (made.strftime("%Y-%m-%d %H:%M"), zone_text(data["zone"]))


def text_lines(data: dict, language: str, metrics: dict = None) -> list:
    """Return the checklist in words."""
    result = ["=== ShiftMaster: %s ===" % pick(language, SAYS["title"][data["period"]]), when_made(data)]
    result += [pick(language, SAYS["sum"]).format(**data["count"]), ""]
    for line in data["lines"]:
        word = pick(language, SAYS["words"][line["mark"]])
        result.append("%s %s [%s]" % (MARKS[line["mark"]], line["text"][language], word))
        if line["mark"] == PERSON:
            result.append("     %s" % line["person"][language])
        result += [
            "     %s %s: %s" % (MARKS[one["mark"]], one["host"], one["evidence"][language]) for one in line["hosts"]
        ]
    if data.get("metrics_problem"):
        result += ["", data["metrics_problem"][language]]
    if metrics:
        result += ["", "--- %s ---" % pick(language, SAYS["kpi"])]
        result += ["%s: %s (%s) %s" % row for row in metric_rows(metrics, language)]
        result += metric_notes(metrics, language)
    return result


_METRICS = (
    ("availability_percent", ("Availability", "可用性"), "%.3f %%"),
    ("p95_seconds", ("Response time, 95th percentile", "応答時間 p95"), "%.3f s"),
    ("error_percent", ("Errors (5xx)", "エラー率(5xx)"), "%.3f %%"),
    ("requests_per_second", ("Throughput", "スループット"), "%.2f /s"),
    ("mttr_seconds", ("Mean time to repair", "平均復旧時間(MTTR)"), "%.0f s"),
    ("mtbf_seconds", ("Mean time between failures", "平均故障間隔(MTBF)"), "%.0f s"),
    ("database_seconds", ("Database response time, mean", "データベース応答(平均)"), "%.4f s"),
)


def metric_rows(metrics: dict, language: str) -> list:
    """Return (name, value, promised, result) of the month."""
    rows = []
    for key, names, form in _METRICS:
        value, target = metrics.get(key), metrics["targets"].get(key)
        promised = "" if target is None else ("≥ " if key == "availability_percent" else "≤ ") + form % target
        result = metrics["results"].get(key, "" if value is not None else "unknown")
        if key == "mttr_seconds" and value is None and result == "met":
            shown = "–"
        else:
            shown = pick(language, SAYS["result"]["unknown"]) if value is None else form % value
        rows.append((pick(language, names), shown, promised or "–", pick(language, SAYS["result"][result])))
    return rows


def metric_notes(metrics: dict, language: str) -> list:
    """Return what else has to be known of the metrics: what was not measured, and each outage."""
    notes = []
    if metrics["missing"]:
        names = ", ".join(name_of(language, name) for name in metrics["missing"])
        notes.append(pick(language, SAYS["missing"]).format(names=names))
    if metrics.get("unknown_seconds"):
        notes.append(pick(language, SAYS["unknown_time"]).format(hours="%.1f" % (metrics["unknown_seconds"] / 3600.0)))
    if "up" not in metrics["missing"]:
        notes.append(pick(language, SAYS["cause"]) + ":" if metrics["outages"] else pick(language, SAYS["no_outage"]))
    for outage in metrics["outages"]:
        cause = outage["cause"] or pick(language, SAYS["not_known"])
        notes.append("  %s  %.0f min  %s" % (outage["began"], outage["seconds"] / 60.0, cause))
    return notes


# --- page ------------------------------------------------------------------------------------------------------------


def page(data: dict, language: str, metrics: dict = None, series: dict = None) -> str:
    """Return the checklist as one self-contained HTML document."""
    from .findings_report import document, e, line_chart, table

    title = pick(language, SAYS["title"][data["period"]])
    sums = pick(language, SAYS["sum"]).format(**data["count"])
    parts = ["<h1>ShiftMaster: %s</h1><p>%s · %s</p>" % (e(title), e(when_made(data)), e(sums))]
    for line in data["lines"]:
        word = pick(language, SAYS["words"][line["mark"]])
        seen = [e("%s %s: %s" % (MARKS[one["mark"]], one["host"], one["evidence"][language])) for one in line["hosts"]]
        if line["mark"] == PERSON:
            seen = [e(line["person"][language])]
        values = ("critical" if line["mark"] == BAD else "", MARKS[line["mark"]], e(line["text"][language]), e(word))
        head = '<section class="finding %s"><h3>%s %s <span class="word">%s</span></h3>' % values
        parts.append("%s%s</section>" % (head, "<br>".join(seen)))
    if data.get("metrics_problem"):
        parts.append("<p>%s</p>" % e(data["metrics_problem"][language]))
    if metrics:
        columns = list(pick(language, SAYS["columns"]))
        rows = [dict(zip(columns, row)) for row in metric_rows(metrics, language)]
        parts.append("<h2>%s</h2>%s" % (e(pick(language, SAYS["kpi"])), table(columns, rows)))
        parts += ["<p>%s</p>" % e(note) for note in metric_notes(metrics, language)]
        drawn = {name_of(language, name): points for name, points in (series or {}).items() if points}
        charts = [line_chart(name, points, data["zone"]) for name, points in drawn.items()]
        parts.append('<div class="charts">%s</div>' % "".join(charts) if charts else "")
    return document(language, title, parts)


def daily(samples: list, start: float, mean: bool = True) -> list:
    """Return one point a day, counted from a month's beginning, of its samples: for a small chart."""
    days = {}
    for at, value in samples:
        days.setdefault(int((at - start) // 86400), []).append(value)
    return [(start + day * 86400, sum(values) / (len(values) if mean else 1)) for day, values in sorted(days.items())]
