"""The diagnosis in words: a summary for the terminal, data for programs, one page that opens anywhere.

The page is one file: no script, nothing from elsewhere, charts as SVG, every colour doubled by a word or a sign.
"""

from __future__ import annotations

import datetime
import hashlib
import html
import io
import json
import tarfile
import unicodedata
from typing import Optional

from ..host.texts import Texts
from . import findings
from .findings import duration, size, timestamp, timezone, zone_of, zone_text

SCHEMA = 1
SIGNS = {"critical": "❌", "warning": "⚠️", "info": "ℹ️", "healthy": "✅"}
SAYS = Texts({
    "title": ("ShiftMaster Diagnosis", "ShiftMaster 診断結果"),
    "made": ("Made", "作成日時"),
    "times": ("All times", "時刻の表記"),
    "other_zone": ("log lines of {host}: {zone}", "{host} のログ行は {zone}"),
    "area": ("Area", "範囲"),
    "hosts": ("Hosts", "ホスト"),
    "critical": ("critical", "重大"),
    "warning": ("warning", "警告"),
    "info": ("note", "情報"),
    "healthy": ("healthy", "正常"),
    "result": (
        "Result: {worst}. Causes: {roots}; consequences: {rest}",
        "結果: {worst}。原因 {roots} 件、そこから生じた事象 {rest} 件",
    ),
    "nothing": ("Nothing is wrong that this diagnosis can see.", "この診断で確認できる異常はありません。"),
    "nothing_but": (
        "Nothing is wrong in what was inspected, but not everything could be inspected: {parts}.",
        "確認できた範囲に異常はありませんが、確認できなかった項目があります: {parts}。",
    ),
    "result_but": (". Not everything could be inspected: {parts}.", "。確認できなかった項目があります: {parts}。"),
    "cause": ("Cause", "原因"),
    "evidence": ("Evidence", "根拠"),
    "fix": ("Do", "対処"),
    "on": ("on {host}", "{host} で実行"),
    "controller": ("on your machine, in this repository", "手元のマシンのこのリポジトリで実行"),
    "runbook": ("Runbook", "手順書"),
    "follows": ("Follows from it", "ここから生じている事象"),
    "unseen": ("Not inspected", "確認できなかった項目"),
    "firing": ("Alerts that fire", "発報中のアラート"),
    "since": ("since {time}", "{time} から"),
    "since_before": ("since before these hours", "表示期間より前から"),
    "findings": ("Findings", "検出事項"),
    "timeline": ("Timeline", "時系列"),
    "charts": ("The last hours", "直近の推移"),
    "requests": ("Requests", "リクエスト数"),
    "errors": ("5xx responses", "5xx 応答数"),
    "p95": ("95th percentile, seconds", "95 パーセンタイル(秒)"),
    "usage": ("Use now", "現在の使用率"),
    "cpu_percent": ("Processor, %", "CPU(%)"),
    "memory_percent": ("Memory, %", "メモリ(%)"),
    "cpu": ("Processor", "CPU"),
    "memory": ("Memory", "メモリ"),
    "disk": ("Disk {path}", "ディスク {path}"),
    "connections": ("Database connections", "データベース接続"),
    "database": ("Database report", "データベースレポート"),
    "details": ("Evidence of {host}", "{host} の全データ"),
    "deploy": ("deploy", "デプロイ"),
    "unit": ("unit", "ユニット"),
    "package": ("package", "パッケージ"),
    "error": ("error", "エラー"),
    "kill": ("memory", "メモリ"),
    "alert": ("alert", "アラート"),
    "began": ("{name} ({severity}) began", "{name}({severity})が発報"),
    "fired_before": (
        "{name} ({severity}) was firing already; when it began is not known",
        "{name}({severity})はこれ以前から発報中(開始時刻は不明)",
    ),
    "ended": ("{name} ended after {time}", "{name} が解消({time} 継続)"),
    "ended_only": ("{name} ended", "{name} が解消"),
    "more": ("… and {count} more (in the page)", "ほか {count} 件(HTML を参照)"),
    "yes": ("yes", "はい"),
    "no": ("no", "いいえ"),
    "when": ("when", "日時"),
    "what": ("what", "種類"),
    "text": ("text", "内容"),
    "none": ("none", "なし"),
    "unknown": ("not known", "不明"),
    "slowest_on_average": (
        "Statements that take longest on average (over 100 ms)",
        "平均実行時間の長い文(100 ミリ秒超)",
    ),
    "most_time_together": ("Statements that take most time together", "合計実行時間の長い文"),
    "activity": ("Active sessions", "アクティブなセッション"),
    "blockers": ("Who holds others up (roots of the lock trees)", "ロック待ちの原因セッション"),
    "tables": ("Largest tables, dead rows, vacuum", "大きな表・不要行・バキューム"),
    "bloat": ("Estimated bloat of tables over 1 MiB", "表の肥大化(推定、1 MiB 超)"),
    "rarely_used_indexes": ("Indexes with fewer than 100 scans", "使用回数が 100 未満のインデックス"),
    "duplicate_indexes": ("Duplicate indexes", "重複インデックス"),
    "invalid_indexes": ("Broken indexes", "無効なインデックス"),
    "unindexed_keys": ("Foreign keys without an index", "インデックスのない外部キー"),
    "replication": ("Replication", "レプリケーション"),
    "databases": ("Databases: size and age of transaction ids", "データベースのサイズとトランザクション ID の経過"),
    "vacuum": ("Tables that wait longest to be frozen", "凍結待ちの長い表"),
})  # fmt: skip
say = SAYS.say
# Headings of tables.
COLUMNS = Texts({
    "host": ("host", "ホスト"),
    "part": ("part", "項目"),
    "status": ("status", "状態"),
    "error": ("error", "エラー"),
    "pid": ("process", "プロセス"),
    "role": ("role", "ロール"),
    "database": ("database", "データベース"),
    "application": ("application", "アプリケーション"),
    "client": ("client", "接続元"),
    "state": ("state", "状態"),
    "waits_for": ("waits for", "待機種別"),
    "wait_event": ("wait event", "待機イベント"),
    "blocked_by": ("blocked by", "ブロック元"),
    "transaction_seconds": ("transaction", "トランザクション"),
    "query_seconds": ("statement for", "文の経過"),
    "state_seconds": ("in this state", "状態の継続"),
    "query": ("statement", "文"),
    "holds_up": ("holds up", "待たせている相手"),
    "calls": ("calls", "実行回数"),
    "mean_ms": ("mean, ms", "平均(ms)"),
    "total_ms": ("total, ms", "合計(ms)"),
    "rows": ("rows", "行数"),
    "schema": ("schema", "スキーマ"),
    "table": ("table", "表"),
    "bytes": ("size", "サイズ"),
    "index_bytes": ("indexes", "インデックス"),
    "dead_rows": ("dead rows", "不要行"),
    "scans": ("scans", "走査回数"),
    "scanned_rows": ("rows by scans", "走査行数"),
    "index_scans": ("index scans", "インデックス走査"),
    "index_rows": ("rows by index", "インデックス取得行"),
    "entries_read": ("entries read", "読取エントリ"),
    "rows_fetched": ("rows fetched", "取得行"),
    "vacuumed_seconds_ago": ("vacuumed ago", "VACUUM からの経過"),
    "analysed_seconds_ago": ("analysed ago", "ANALYZE からの経過"),
    "bloat_bytes": ("bloat", "肥大化"),
    "index": ("index", "インデックス"),
    "indexes": ("indexes", "インデックス"),
    "constraint": ("constraint", "制約"),
    "standby": ("standby", "スタンバイ"),
    "sync_state": ("kind", "同期方式"),
    "lag_bytes": ("lag", "遅延量"),
    "lag_seconds": ("lag, time", "遅延時間"),
    "name": ("name", "名前"),
    "age": ("age, transactions", "経過トランザクション"),
    "allowed": ("takes connections", "接続可"),
    "connection_limit": ("connection limit", "接続上限"),
    "deadlocks": ("deadlocks", "デッドロック"),
    "conflicts": ("conflicts", "競合"),
    "temp_bytes": ("temporary files", "一時ファイル"),
    "blks_hit": ("blocks from memory", "ヒットブロック"),
    "blks_read": ("blocks from disk", "読込ブロック"),
})  # fmt: skip
DATABASE_TABLES = (
    "blockers", "activity", "slowest_on_average", "most_time_together", "tables", "bloat", "rarely_used_indexes",
    "duplicate_indexes", "invalid_indexes", "unindexed_keys", "databases", "vacuum", "replication",
)  # fmt: skip
# What of them has room in a terminal.
TERMINAL_COLUMNS = {
    "blockers": ("pid", "role", "state", "state_seconds", "holds_up", "query"),
    "activity": ("pid", "role", "state", "waits_for", "transaction_seconds", "blocked_by", "query"),
    "slowest_on_average": ("mean_ms", "calls", "total_ms", "query"),
    "most_time_together": ("total_ms", "calls", "mean_ms", "query"),
    "tables": ("table", "bytes", "index_bytes", "rows", "dead_rows", "scans", "index_scans", "vacuumed_seconds_ago"),
    "rarely_used_indexes": ("table", "index", "scans", "rows_fetched", "bytes"),
    "databases": ("name", "bytes", "age", "deadlocks", "temp_bytes"),
}
STATEMENT_TABLES = ("slowest_on_average", "most_time_together")
TERMINAL_WIDTH = 118
TERMINAL_ROWS = 10


def column_name(column: str, language: str) -> str:
    return COLUMNS.say(language, column) if column in COLUMNS else column


# --- data ------------------------------------------------------------------------------------------------------------


def report(hosts: list, found: list, area: str, made: datetime.datetime) -> dict:
    """Return everything as data; docs/diagnosis.schema.json describes it."""
    zone = zone_of(hosts)
    return {
        "schema": SCHEMA,
        "made": made.astimezone(timezone(zone)).isoformat(timespec="seconds"),
        "zone": zone,
        "area": area,
        "worst": findings.worst(found),
        "findings": found,
        "unseen": unseen(hosts),
        "hosts": hosts,
    }


def unseen(hosts: list) -> list:
    """Return what could not be inspected: a report that is silent about it would be taken for a good one."""
    return [
        {"host": host["host"], "part": name, "status": part["status"], "error": part.get("error", "")}
        for host in hosts
        for name, part in (host.get("parts") or {}).items()
        if isinstance(part, dict) and part.get("status") in ("failed", "hung")
    ] + [
        {"host": host["host"], "part": "all", "status": "failed", "error": (host.get("reach") or {}).get("message", "")}
        for host in hosts
        if not host.get("parts")
    ]


def unseen_parts(data: dict, count: int = 4) -> str:
    """Return which parts could not be inspected, for a headline: of several hosts with the host."""
    several = len(data["hosts"]) > 1
    parts = ["%s: %s" % (one["host"], one["part"]) if several else one["part"] for one in data["unseen"]]
    return ", ".join(parts[:count]) + (" …" if len(parts) > count else "")


def headline(data: dict, language: str) -> str:
    """Return the result in a sentence, with its sign. Who reads nothing else must not take what nobody saw for well."""
    parts, roots = unseen_parts(data), [one for one in data["findings"] if one["root"]]
    if not roots:
        sign, key = ("warning", "nothing_but") if parts else ("healthy", "nothing")
        return "%s %s" % (SIGNS[sign], say(language, key, parts=parts))
    values = {"worst": say(language, data["worst"]), "roots": len(roots), "rest": len(data["findings"]) - len(roots)}
    return say(language, "result", **values) + (say(language, "result_but", parts=parts) if parts else "")


def evidence_of(finding: dict, language: str) -> list:
    return finding["evidence_ja" if language == "ja" else "evidence"]


def first_sentence(data: dict, language: str) -> str:
    """Return what to put into a message: the first finding, or that there is none."""
    found = data["findings"]
    if not found:
        return headline(data, language).partition(" ")[2]
    first = found[0]
    title, cause = first["title"][language], first["cause"].get(language, "")
    stop = "" if not cause else "。" if language == "ja" else ". "
    return "%s: %s%s%s" % (first["host"], title, stop, cause)


def times(data: dict, language: str) -> str:
    """Return in which zone all times are; log lines are as their host wrote them."""
    others = [
        say(language, "other_zone", host=host["host"], zone=zone_text(host["zone"]))
        for host in data["hosts"]
        if host.get("zone") and host["zone"]["offset_seconds"] != data["zone"]["offset_seconds"]
    ]
    return "; ".join([zone_text(data["zone"]), *others])


def where(command: str, host: str, language: str) -> str:
    return say(language, "controller") if command.startswith("ansible") else say(language, "on", host=host)


# --- the terminal ----------------------------------------------------------------------------------------------------


def lines(data: dict, language: str) -> list:
    """Return the summary: roots with cause, evidence and actions; what follows from each in one line."""
    made = datetime.datetime.fromisoformat(data["made"]).strftime("%Y-%m-%d %H:%M:%S")
    head = (("made", made), ("area", data["area"]), ("hosts", len(data["hosts"])))
    result = ["=== %s ===" % say(language, "title")]
    result.append("   ".join("%s: %s" % (say(language, key), value) for key, value in head))
    result.append("%s: %s" % (say(language, "times"), times(data, language)))
    roots = [one for one in data["findings"] if one["root"]]
    result += [headline(data, language)] if roots else ["", headline(data, language)]
    for number, root in enumerate(roots, 1):
        result += ["", "%s %d. [%s] %s: %s" % (
            SIGNS[root["severity_of_all"]], number, say(language, root["severity_of_all"]), root["host"], root["title"][language],
        )]  # fmt: skip
        if root["cause"].get(language):
            result.append("   %s: %s" % (say(language, "cause"), root["cause"][language]))
        result += ["   %s: %s" % (say(language, "evidence"), line) for line in evidence_of(root, language)]
        result += [
            "   %s (%s): %s" % (say(language, "fix"), where(command, root["host"], language), command)
            for command in root["fix"]
        ]
        if root["advice"].get(language):
            result.append("   %s" % root["advice"][language])
        result.append("   %s: %s" % (say(language, "runbook"), runbook(root, language)))
        for one in following(root, data["findings"]):
            result.append("   └ %s: %s: %s" % (say(language, "follows"), one["host"], one["title"][language]))
    if firing_now := firing(data["hosts"]):
        result += ["", say(language, "firing") + ":"]
        result += ["   " + firing_line(one, language, data["zone"]) for one in firing_now]
    if data["unseen"]:
        result += ["", say(language, "unseen") + ":"]
        result += ["   %s: %s (%s)" % (one["host"], one["part"], one["error"][:160]) for one in data["unseen"]]
    if data["area"] == "db":
        for host in data["hosts"]:
            result += database_lines(host, language)
    return result


def following(root: dict, found: list) -> list:
    return [one for one in found if one["follows_from"] == "%s on %s" % (root["rule"], root["host"])]


def wide(text: str) -> int:
    """Return how many places a text takes in a terminal: Japanese letters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def fitted(text: str, places: int, right: bool = False) -> str:
    """Return a text in so many places, cut or filled up."""
    text = " ".join(text.split())
    if wide(text) > places:
        while text and wide(text) > places - 1:
            text = text[:-1]
        text += "…"
    blank = " " * (places - wide(text))
    return blank + text if right else text + blank


def terminal_table(columns: list, rows: list, language: str) -> list:
    """Return the first rows as lines of TERMINAL_WIDTH places at most."""
    shown = [[cell(column, row.get(column), language) for column in columns] for row in rows[:TERMINAL_ROWS]]
    heads = [column_name(column, language) for column in columns]
    widths = [max([wide(head), *(wide(row[number]) for row in shown)]) for number, head in enumerate(heads)]
    # The widest gives way first.
    while sum(widths) + 2 * (len(widths) - 1) > TERMINAL_WIDTH - 3 and max(widths) > 6:
        widths[widths.index(max(widths))] -= 1
    numbers = [all(isinstance(row.get(column), (int, float, type(None))) for row in rows) for column in columns]

    def line(cells):
        parts = [fitted(text, width, right) for text, width, right in zip(cells, widths, numbers)]
        return ("   " + "  ".join(parts)).rstrip()

    left = len(rows) - TERMINAL_ROWS
    return [line(heads), *map(line, shown)] + (["   " + say(language, "more", count=left)] if left > 0 else [])


def database_lines(host: dict, language: str) -> list:
    """Return the tables of a database host for a terminal."""
    database = (host.get("parts") or {}).get("database") or {}
    if database.get("status") != "ok":
        return []
    result = ["", "=== %s: %s ===" % (say(language, "database"), host["host"]), database_sums(database)]
    for name in DATABASE_TABLES:
        rows, title = database.get(name), say(language, name)
        if rows:
            columns = [column for column in TERMINAL_COLUMNS.get(name, rows[0]) if column in rows[0]]
            result += ["", "%s:" % title, *terminal_table(columns, rows, language)]
        elif rows is not None:
            result.append("%s: %s" % (title, say(language, "none")))
        elif name in STATEMENT_TABLES:
            result.append("%s: %s (pg_stat_statements)" % (title, say(language, "unknown")))
    return result


def database_sums(database: dict) -> str:
    """Return version, connections of those that can be used, and since when it runs."""
    server, use = database.get("server") or {}, database.get("use") or {}
    return "PostgreSQL %s · %s / %s · %s" % (
        server.get("version", "?"), use.get("connections", "?"), use.get("usable", "?"), duration(server.get("uptime") or 0),
    )  # fmt: skip


def runbook(finding: dict, language: str) -> str:
    return finding["runbook"] if language == "en" else finding["runbook"].replace(".md", ".ja.md")


def firing(hosts: list) -> list:
    """Return the alerts that Prometheus has not seen end, as in `history` and with their host, the worst first.

    They are no findings: what an alert reports has a cause, and it may fire for a while when that is fixed. But who was
    paged must not read that nothing is wrong.
    """
    found = {}
    for host in hosts:
        for alert in _history(host).get("alerts") or []:
            if alert["end"] is None:
                about = alert["instance"] or host["host"]
                found.setdefault((about, alert["name"], alert["severity"]), dict(alert, host=about))

    def order(one):
        severity = [*findings.SEVERITIES, one["severity"]].index(one["severity"])
        return severity, one["start"] or 0.0, one["name"], one["host"]

    return sorted(found.values(), key=order)


def firing_line(alert: dict, language: str, zone: dict) -> str:
    began = say(language, "since_before")
    if alert["start"]:
        began = say(language, "since", time=findings.clock(alert["start"], zone))
    severity = severity_word(alert["severity"], language)
    where_to = runbook({"runbook": "docs/runbooks/%s.md" % alert["name"]}, language)
    return "%s: %s (%s), %s  %s" % (alert["host"], alert["name"], severity, began, where_to)


# --- the page --------------------------------------------------------------------------------------------------------

STYLE = """
:root{color-scheme:light dark;--edge:#8888;--soft:#8882}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem;border-bottom:1px solid var(--edge)}h3{font-size:1.05rem;margin:.2rem 0}
.finding{border:1px solid var(--edge);border-left-width:.6rem;padding:.6rem 1rem;margin:.8rem 0;border-radius:.3rem;overflow-wrap:anywhere}
.critical{border-left-style:double;border-left-color:#c00}.warning{border-left-style:dashed;border-left-color:#b80}
.word{border:1px solid;border-radius:.3rem;padding:0 .4rem;font-weight:bold}
code,pre{font-family:ui-monospace,monospace;font-size:.9em;background:var(--soft);border-radius:.2rem;overflow-wrap:anywhere}
pre{padding:.5rem;white-space:pre-wrap}dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem .8rem;margin:.4rem 0}
dt{font-weight:bold}dd{margin:0}dd,li{overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}td,th{border:1px solid var(--edge);padding:.2rem .5rem;text-align:left;vertical-align:top}
td.number{text-align:right;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(16rem,1fr));gap:1rem}figure{margin:0}figcaption{font-size:.9rem}
svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:currentColor}
.bar{display:grid;grid-template-columns:minmax(8rem,1fr) 2fr 4rem;gap:.5rem;align-items:center;font-size:.9rem}
@media(max-width:40rem){dl{grid-template-columns:1fr}.bar{grid-template-columns:1fr 4rem}.bar svg{grid-column:1/-1;grid-row:2}body{padding:.5rem}}
@media print{details{display:none}}
"""


def e(value) -> str:
    return html.escape(str(value))


def document(language: str, title: str, parts: list) -> str:
    """Return one HTML document of these parts; empty ones are left out."""
    head = [
        "<!doctype html>",
        '<html lang="%s"><head><meta charset="utf-8">' % language,
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Nothing may be fetched or run, whatever a log line holds.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        '<link rel="icon" href="data:,"><title>%s</title><style>%s</style></head><body>' % (e(title), STYLE),
    ]
    return "\n".join([*head, *filter(None, parts)]) + "\n</body></html>\n"


def page(data: dict, language: str) -> str:
    """Return the report as one HTML document."""
    made = datetime.datetime.fromisoformat(data["made"])
    roots = [one for one in data["findings"] if one["root"]]
    parts = [
        "<h1>%s</h1>" % e(say(language, "title")),
        "<p>%s: <time datetime=\"%s\">%s</time> · %s: %s · %s: %s</p>"
        % (
            e(say(language, "made")), e(data["made"]), e(made.strftime("%Y-%m-%d %H:%M:%S")), e(say(language, "area")),
            e(data["area"]), e(say(language, "hosts")), e(", ".join(host["host"] for host in data["hosts"])),
        ),
        "<p>%s: %s</p>" % (e(say(language, "times")), e(times(data, language))),
    ]  # fmt: skip
    parts.append("<h2>%s</h2>" % e(say(language, "findings")))
    sign = SIGNS[data["worst"]] + " " if roots else ""
    parts.append("<p><strong>%s%s</strong></p>" % (sign, e(headline(data, language))))
    for root in roots:
        parts.append(card(root, data["findings"], language))
    if firing_now := firing(data["hosts"]):
        parts.append("<h2>%s</h2>" % e(say(language, "firing")))
        items = "".join("<li>%s</li>" % e(firing_line(one, language, data["zone"])) for one in firing_now)
        parts.append("<ul>%s</ul>" % items)
    if data["unseen"]:
        parts.append("<h2>%s</h2>" % e(say(language, "unseen")))
        parts.append(table(["host", "part", "status", "error"], data["unseen"], language))
    zone, usage = data["zone"], usage_of(data["hosts"])
    parts.append("<h2>%s · %s</h2>" % (e(say(language, "charts")), e(zone_text(zone))))
    for host in data["hosts"]:
        parts.append(charts(host, language, usage.get(host["host"]), zone))
    events = timeline(data["hosts"], language)
    parts.append("<h2>%s · %s</h2>" % (e(say(language, "timeline")), e(zone_text(zone))))
    parts.append(timeline_table(events, language, zone))
    for host in data["hosts"]:
        parts.append(database_report(host, language))
    for host in data["hosts"]:
        parts.append("<details><summary>%s</summary><pre>%s</pre></details>" % (
            e(say(language, "details", host=host["host"])), e(json.dumps(host, ensure_ascii=False, indent=1)),
        ))  # fmt: skip
    return document(language, "%s %s" % (say(language, "title"), made.strftime("%Y-%m-%d %H:%M")), parts)


def card(root: dict, found: list, language: str) -> str:
    """Return a cause with actions and consequences."""
    severity = root["severity_of_all"]
    rows = []
    if root["cause"].get(language):
        rows.append((say(language, "cause"), e(root["cause"][language])))
    if evidence := evidence_of(root, language):
        rows.append((say(language, "evidence"), "<br>".join("<code>%s</code>" % e(line) for line in evidence)))
    if root["fix"] or root["advice"].get(language):
        steps = ["%s<pre>%s</pre>" % (e(where(command, root["host"], language)), e(command)) for command in root["fix"]]
        rows.append((say(language, "fix"), "".join(steps) + e(root["advice"].get(language, ""))))
    rows.append((say(language, "runbook"), "<code>%s</code>" % e(runbook(root, language))))
    items = ["<li>%s: %s</li>" % (e(one["host"]), e(one["title"][language])) for one in following(root, found)]
    if items:
        rows.append((say(language, "follows"), "<ul>%s</ul>" % "".join(items)))
    return '<section class="finding %s"><h3>%s <span class="word">%s</span> %s: %s</h3><dl>%s</dl></section>' % (
        severity, SIGNS[severity], e(say(language, severity)), e(root["host"]), e(root["title"][language]),
        "".join("<dt>%s</dt><dd>%s</dd>" % (e(name), value) for name, value in rows),
    )  # fmt: skip


def table(columns: list, rows: list, language: Optional[str] = None) -> str:
    """Return rows of dictionaries as a table; wide ones scroll by themselves. Without a language the columns are headings."""

    def shown(column, value):
        return "<td%s>%s</td>" % (' class="number"' if _is_number(value) else "", e(cell(column, value, language)))

    body = ["<tr>%s</tr>" % "".join(shown(column, row.get(column)) for column in columns) for row in rows]
    head = "".join("<th>%s</th>" % e(column_name(column, language) if language else column) for column in columns)
    return '<div class="wide" tabindex="0"><table><tr>%s</tr>%s</table></div>' % (head, "".join(body))


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def cell(column: str, value, language: Optional[str] = None) -> str:
    """Return a value as people read it: sizes and times with their unit."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return say(language or "en", "yes" if value else "no")
    if _is_number(value) and column.endswith("bytes"):
        return size(value)
    if _is_number(value) and "_seconds" in column:
        return duration(value)
    return ", ".join(str(one) for one in value) if isinstance(value, list) else str(value)


# --- charts ----------------------------------------------------------------------------------------------------------


def usage_of(hosts: list) -> dict:
    """Return {host: {cpu, memory: [[at, percent]]}} of the last hours, of whoever kept them; Prometheus knows all hosts."""
    found = {}
    for host in sorted(hosts, key=lambda one: _history(one).get("source") == "prometheus"):
        for name, usage in (_history(host).get("usage") or {}).items():
            found[name or host["host"]] = usage
    return found


def _history(host: dict) -> dict:
    return (host.get("parts") or {}).get("history") or {}


def charts(host: dict, language: str, usage: Optional[dict], zone: dict) -> str:
    """Return what a host's metrics look like: bars of now, lines of the last hours."""
    parts = host.get("parts") or {}
    bars = []
    if "busy_percent" in parts.get("cpu", {}):
        bars.append((say(language, "cpu"), parts["cpu"]["busy_percent"]))
    if "usage_percent" in parts.get("memory", {}):
        bars.append((say(language, "memory"), parts["memory"]["usage_percent"]))
    for mount in parts.get("disk", {}).get("mounts") or []:
        if mount.get("space_percent") is not None:
            bars.append((say(language, "disk", path=mount["path"]), mount["space_percent"]))
    if (parts.get("database", {}).get("use") or {}).get("percent") is not None:
        bars.append((say(language, "connections"), parts["database"]["use"]["percent"]))
    series = parts.get("requests", {}).get("series") or []
    drawn = [
        line_chart(say(language, key + "_percent"), points, zone, 100.0)
        for key, points in (usage or {}).items()
        if len(points) > 1
    ]
    if series:
        drawn += [
            line_chart(say(language, key), [(slot["at"], slot[field]) for slot in series], zone)
            for key, field in (("requests", "requests"), ("errors", "errors"), ("p95", "p95_seconds"))
        ]
    if not bars and not drawn:
        return ""
    lines_ = ["<h3>%s</h3>" % e(host["host"])]
    lines_ += [
        '<div class="bar"><span>%s</span>%s<span>%.0f %%</span></div>' % (e(name), bar(name, percent), percent)
        for name, percent in bars
    ]
    if drawn:
        lines_.append('<div class="charts">%s</div>' % "".join(drawn))
    return "\n".join(lines_)


def bar(name: str, percent: float) -> str:
    """Return a bar; from 80 it is hatched, so that nobody needs its colour."""
    width = max(0.0, min(100.0, percent))
    lines_ = range(4, int(width) + 1, 4) if percent > 80 else ()
    hatch = "".join('<path d="M%g 0l-6 10" stroke="currentColor"/>' % x for x in lines_)
    return (
        '<svg viewBox="0 0 100 10" role="img" aria-label="%s %.0f %%" preserveAspectRatio="none" style="height:.8rem">'
        '<rect width="100" height="10" fill="none" stroke="currentColor" stroke-width=".5"/>'
        '<rect width="%.1f" height="10" fill="currentColor" fill-opacity=".4"/>%s</svg>' % (e(name), percent, width, hatch)
    )  # fmt: skip


def short(value: float) -> str:
    """Return a number that has room next to an axis: 173k."""
    for unit, size_ in (("M", 1e6), ("k", 1e3)):
        if value >= 10 * size_ or value >= 1e6:
            return "%.3g%s" % (value / size_, unit)
    return "%.4g" % value if value >= 100 else "%.3g" % value


def line_chart(title: str, points: list, zone: dict, top: Optional[float] = None) -> str:
    """Return a line with its top (its largest value, where none is given) and its first and last time written next to it."""
    largest = max([value for _at, value in points] + [0])
    top = largest if top is None else top
    scale = top or 1
    first, last = points[0][0], points[-1][0]
    width, form = max(1, last - first), "%m-%d" if last - first > 2 * 86400 else "%H:%M"
    places = [(45 + 250.0 * (at - first) / width, 80 - 65.0 * value / scale) for at, value in points]
    coordinates = " ".join("%.1f,%.1f" % place for place in places)

    def clock(at):
        return datetime.datetime.fromtimestamp(at, timezone(zone)).strftime(form)

    return (
        '<figure><figcaption>%s</figcaption><svg viewBox="0 0 300 100" role="img" aria-label="%s: max %g">'
        '<path d="M45 10V80H295" fill="none" stroke="currentColor" stroke-width=".7"/>'
        '<polyline points="%s" fill="none" stroke="currentColor" stroke-width="1.5"/>'
        '<text x="41" y="18" text-anchor="end">%s</text><text x="41" y="82" text-anchor="end">0</text>'
        '<text x="45" y="95">%s</text><text x="295" y="95" text-anchor="end">%s</text></svg></figure>'
        % (e(title), e(title), largest, coordinates, e(short(top)), clock(first), clock(last))
    )  # fmt: skip


# --- timeline, database ----------------------------------------------------------------------------------------------


def timeline(hosts: list, language: str = "en") -> list:
    """Return what happened on all hosts, the latest first: {at, host, kind, text}."""
    events = []
    for host in hosts:
        parts = host.get("parts") or {}
        for deploy in parts.get("release", {}).get("deploys") or []:
            at = timestamp(deploy.get("time"))
            words = [deploy.get(key) for key in ("kind", "event", "target", "version", "reason")]
            text = " ".join(str(word) for word in words if word)
            events.append((at, host["host"], "deploy", text))
        for event in parts.get("changes", {}).get("events") or []:
            events.append((event["at"], host["host"], event["kind"], event["text"]))
        for kill in parts.get("kills", {}).get("kills") or []:
            events.append((kill["at"], host["host"], "kill", "%s %s" % (kill["name"], kill["unit"])))
        for name, log in (parts.get("logs", {}).get("files") or {}).items():
            for problem in log.get("problems") or []:
                text = "%s: %s (%d x)" % (name, problem.get("exception") or problem["text"], problem["count"])
                events.append((problem["first"], host["host"], "error", text))
    events += alert_events(hosts, language)
    known = [event for event in events if event[0] and isinstance(event[0], (int, float))]
    return [dict(zip(("at", "host", "kind", "text"), event)) for event in sorted(known, reverse=True)[:120]]


def alert_events(hosts: list, language: str) -> list:
    """Return [(at, host, "alert", text)]: when each alert began and ended. Two Prometheus report one alert once."""
    events, reported = [], []
    for host in hosts:
        news = []
        for alert in _history(host).get("alerts") or []:
            name, about, first, last = alert["name"], alert["instance"] or host["host"], alert["start"], alert["end"]
            since, until = span = (float(first or 0), float(last or "inf"))
            if any(
                who == (name, about) and since <= end + 60 and begin - 60 <= until for who, (begin, end) in reported
            ):
                continue
            news.append(((name, about), span))
            values = {"name": name, "severity": severity_word(alert["severity"], language)}
            if first:
                events.append((first, about, "alert", say(language, "began", **values)))
            if last and first:
                text = say(language, "ended", time=duration(last - first), **values)
                events.append((last, about, "alert", text))
            elif last:
                events.append((last, about, "alert", say(language, "ended_only", **values)))
            elif not first and host.get("at"):
                events.append((host["at"], about, "alert", say(language, "fired_before", **values)))
        reported += news
    return events


def severity_word(severity: str, language: str) -> str:
    return say(language, severity) if severity in findings.SEVERITIES else severity


def timeline_table(events: list, language: str, zone: dict) -> str:
    if not events:
        return "<p>%s</p>" % e(say(language, "none"))
    columns, rows = [say(language, key) for key in ("when", "hosts", "what", "text")], []
    for event in events:
        when = datetime.datetime.fromtimestamp(event["at"], timezone(zone)).strftime("%m-%d %H:%M:%S")
        cells = (when, event["host"], say(language, event["kind"]), event["text"][:300])
        rows.append(dict(zip(columns, cells)))
    return table(columns, rows)


def database_report(host: dict, language: str) -> str:
    """Return the tables of a database host."""
    database = (host.get("parts") or {}).get("database") or {}
    if database.get("status") != "ok":
        return ""
    result = ["<h2>%s: %s</h2>" % (e(say(language, "database")), e(host["host"]))]
    result.append("<p>%s</p>" % e(database_sums(database)))
    for name in DATABASE_TABLES:
        if name not in database:
            if name in STATEMENT_TABLES:
                words = e(say(language, name)), e(say(language, "unknown"))
                result.append("<h3>%s</h3><p>%s (pg_stat_statements)</p>" % words)
            continue
        rows = database[name]
        result.append("<h3>%s</h3>" % e(say(language, name)))
        result.append(table(list(rows[0]), rows, language) if rows else "<p>%s</p>" % e(say(language, "none")))
    return "\n".join(result)


# --- the bundle ------------------------------------------------------------------------------------------------------

BUNDLE_LIMIT = 5 << 20


def bundle(files: dict, made: datetime.datetime, limit: int = BUNDLE_LIMIT) -> tuple:
    """Return (a .tar.gz for a supporter, what is in it): redacted already, listed with sizes and sums, and bounded.

    Where it would grow too large, the largest files are cut, and the list reports it.
    """
    contents = {name: text.encode() for name, text in files.items()}
    cut = set()
    while sum(len(content) for content in contents.values()) > limit:
        name = max(contents, key=lambda one: len(contents[one]))
        keep = max(0, len(contents[name]) - (sum(len(content) for content in contents.values()) - limit))
        contents[name] = contents[name][:keep]
        cut.add(name)
        if keep == 0:
            break
    listed = [
        "%s  %8d  %s%s" % (hashlib.sha256(content).hexdigest(), len(content), name, "  (cut)" if name in cut else "")
        for name, content in sorted(contents.items())
    ]
    contents["LIST"] = ("\n".join(listed) + "\n").encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in sorted(contents.items()):
            entry = tarfile.TarInfo("shiftmaster-diagnosis/" + name)
            entry.size, entry.mtime, entry.mode = len(content), int(made.timestamp()), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue(), listed
