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
from typing import Optional

from . import findings
from .findings import LANGUAGES, duration, size

SCHEMA = 1
SIGNS = {"critical": "❌", "warning": "⚠️", "info": "🛈", "healthy": "✅"}
SAYS = {
    "title": ("ShiftMaster Diagnosis", "ShiftMaster 診断結果"),
    "made": ("Made", "作成日時"),
    "area": ("Area", "範囲"),
    "hosts": ("Hosts", "ホスト"),
    "critical": ("critical", "重大"),
    "warning": ("warning", "警告"),
    "info": ("note", "情報"),
    "healthy": ("healthy", "正常"),
    "result": (
        "Result: {worst}. {roots} causes, {rest} that follow from them",
        "結果: {worst}。原因 {roots} 件、そこから生じた事象 {rest} 件",
    ),
    "nothing": ("Nothing is wrong that this diagnosis can see.", "この診断で確認できる異常はありません。"),
    "cause": ("Cause", "原因"),
    "evidence": ("Evidence", "根拠"),
    "fix": ("Do", "対処"),
    "on": ("on {host}", "{host} で実行"),
    "controller": ("on your machine, in this repository", "手元のマシンのこのリポジトリで実行"),
    "runbook": ("Runbook", "ランブック"),
    "follows": ("Follows from it", "ここから生じている事象"),
    "unseen": ("Not looked at", "確認できなかった項目"),
    "findings": ("Findings", "検出事項"),
    "timeline": ("Timeline", "時系列"),
    "charts": ("The last hours", "直近の推移"),
    "requests": ("Requests", "リクエスト数"),
    "errors": ("Answers 5xx", "5xx 応答数"),
    "p95": ("95th percentile, seconds", "95 パーセンタイル(秒)"),
    "usage": ("Use now", "現在の使用率"),
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
}
DATABASE_TABLES = (
    "blockers", "activity", "slowest_on_average", "most_time_together", "tables", "bloat", "rarely_used_indexes",
    "duplicate_indexes", "invalid_indexes", "unindexed_keys", "databases", "vacuum", "replication",
)  # fmt: skip


def say(language: str, key: str, **values) -> str:
    return SAYS[key][LANGUAGES.index(language)].format(**values)


# --- data ------------------------------------------------------------------------------------------------------------


def report(hosts: list, found: list, area: str, made: datetime.datetime) -> dict:
    """Return the whole as data; docs/diagnosis.schema.json describes it."""
    return {
        "schema": SCHEMA,
        "made": made.astimezone().isoformat(timespec="seconds"),
        "area": area,
        "worst": findings.worst(found),
        "findings": found,
        "unseen": unseen(hosts),
        "hosts": hosts,
    }


def unseen(hosts: list) -> list:
    """Return what could not be looked at: a report that is silent about it would be taken for a good one."""
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


def first_sentence(found: list, language: str) -> str:
    """Return what to put into a message: the first finding, or that there is none."""
    if not found:
        return say(language, "nothing")
    first = found[0]
    return "%s: %s %s" % (first["host"], first["title"][language], first["cause"].get(language, ""))


def where(command: str, host: str, language: str) -> str:
    return say(language, "controller") if command.startswith("ansible") else say(language, "on", host=host)


# --- the terminal ----------------------------------------------------------------------------------------------------


def lines(data: dict, language: str) -> list:
    """Return the summary: roots with cause, evidence and what to do; what follows from each in one line."""
    made = datetime.datetime.fromisoformat(data["made"])
    result = ["=== %s ===" % say(language, "title")]
    result.append(
        "%s: %s   %s: %s   %s: %d"
        % (
            say(language, "made"), made.strftime("%Y-%m-%d %H:%M:%S %Z"), say(language, "area"), data["area"],
            say(language, "hosts"), len(data["hosts"]),
        )
    )  # fmt: skip
    roots = [one for one in data["findings"] if one["root"]]
    if not roots:
        result += ["", "%s %s" % (SIGNS["healthy"], say(language, "nothing"))]
    else:
        result.append(
            say(
                language,
                "result",
                worst=say(language, data["worst"]),
                roots=len(roots),
                rest=len(data["findings"]) - len(roots),
            )
        )
    for number, root in enumerate(roots, 1):
        result += ["", "%s %d. [%s] %s: %s" % (
            SIGNS[root["severity_of_all"]], number, say(language, root["severity_of_all"]), root["host"], root["title"][language],
        )]  # fmt: skip
        if root["cause"].get(language):
            result.append("   %s: %s" % (say(language, "cause"), root["cause"][language]))
        result += ["   %s: %s" % (say(language, "evidence"), line) for line in root["evidence"]]
        result += [
            "   %s (%s): %s" % (say(language, "fix"), where(command, root["host"], language), command)
            for command in root["fix"]
        ]
        if root["advice"].get(language):
            result.append("   %s" % root["advice"][language])
        result.append("   %s: %s" % (say(language, "runbook"), runbook(root, language)))
        following = [
            one for one in data["findings"] if one["follows_from"] == "%s on %s" % (root["rule"], root["host"])
        ]
        result += [
            "   └ %s: %s: %s" % (say(language, "follows"), one["host"], one["title"][language]) for one in following
        ]
    if data["unseen"]:
        result += ["", say(language, "unseen") + ":"]
        result += ["   %s: %s (%s)" % (one["host"], one["part"], one["error"][:160]) for one in data["unseen"]]
    return result


def runbook(finding: dict, language: str) -> str:
    return finding["runbook"] if language == "en" else finding["runbook"].replace(".md", ".ja.md")


# --- the page --------------------------------------------------------------------------------------------------------

STYLE = """
:root{color-scheme:light dark;--edge:#8888;--soft:#8882}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem;border-bottom:1px solid var(--edge)}h3{font-size:1.05rem;margin:.2rem 0}
.finding{border:1px solid var(--edge);border-left-width:.6rem;padding:.6rem 1rem;margin:.8rem 0;border-radius:.3rem}
.critical{border-left-style:double;border-left-color:#c00}.warning{border-left-style:dashed;border-left-color:#b80}
.word{border:1px solid;border-radius:.3rem;padding:0 .4rem;font-weight:bold}
code,pre{font-family:ui-monospace,monospace;font-size:.9em;background:var(--soft);border-radius:.2rem;overflow-wrap:anywhere}
pre{padding:.5rem;white-space:pre-wrap}dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem .8rem;margin:.4rem 0}
dt{font-weight:bold}dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}td,th{border:1px solid var(--edge);padding:.2rem .5rem;text-align:left;vertical-align:top}
td.number{text-align:right;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:1rem}figure{margin:0}figcaption{font-size:.9rem}
svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:currentColor}
.bar{display:grid;grid-template-columns:minmax(8rem,1fr) 2fr 4rem;gap:.5rem;align-items:center;font-size:.9rem}
@media(max-width:40rem){dl{grid-template-columns:1fr}.bar{grid-template-columns:1fr 4rem}.bar svg{grid-column:1/-1;grid-row:2}body{padding:.5rem}}
@media print{details{display:none}}
"""


def e(value) -> str:
    return html.escape(str(value))


def page(data: dict, language: str) -> str:
    """Return the report as one HTML document."""
    made = datetime.datetime.fromisoformat(data["made"])
    roots = [one for one in data["findings"] if one["root"]]
    parts = [
        "<!doctype html>",
        '<html lang="%s"><head><meta charset="utf-8">' % language,
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Nothing may be fetched or run, whatever a log line holds.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        '<link rel="icon" href="data:,">',
        "<title>%s %s</title><style>%s</style></head><body>" % (e(say(language, "title")), e(made.strftime("%Y-%m-%d %H:%M")), STYLE),
        "<h1>%s</h1>" % e(say(language, "title")),
        "<p>%s: <time datetime=\"%s\">%s</time> · %s: %s · %s: %s</p>"
        % (
            e(say(language, "made")), e(data["made"]), e(made.strftime("%Y-%m-%d %H:%M:%S %Z")), e(say(language, "area")),
            e(data["area"]), e(say(language, "hosts")), e(", ".join(host["host"] for host in data["hosts"])),
        ),
    ]  # fmt: skip
    parts.append("<h2>%s</h2>" % e(say(language, "findings")))
    if roots:
        rest = len(data["findings"]) - len(roots)
        worst = say(language, data["worst"])
        parts.append(
            "<p><strong>%s %s</strong></p>"
            % (SIGNS[data["worst"]], e(say(language, "result", worst=worst, roots=len(roots), rest=rest)))
        )
    else:
        parts.append("<p><strong>%s %s</strong></p>" % (SIGNS["healthy"], e(say(language, "nothing"))))
    for root in roots:
        parts.append(card(root, data["findings"], language))
    if data["unseen"]:
        parts.append("<h2>%s</h2>" % e(say(language, "unseen")))
        parts.append(table(["host", "part", "status", "error"], data["unseen"]))
    parts.append("<h2>%s</h2>" % e(say(language, "charts")))
    for host in data["hosts"]:
        parts.append(charts(host, language))
    events = timeline(data["hosts"])
    parts.append("<h2>%s</h2>" % e(say(language, "timeline")))
    parts.append(timeline_table(events, language))
    for host in data["hosts"]:
        parts.append(database_report(host, language))
    for host in data["hosts"]:
        parts.append("<details><summary>%s</summary><pre>%s</pre></details>" % (
            e(say(language, "details", host=host["host"])), e(json.dumps(host, ensure_ascii=False, indent=1)),
        ))  # fmt: skip
    return "\n".join(part for part in parts if part) + "\n</body></html>\n"


def card(root: dict, found: list, language: str) -> str:
    """Return a cause with what to do and what follows from it."""
    severity = root["severity_of_all"]
    following = [one for one in found if one["follows_from"] == "%s on %s" % (root["rule"], root["host"])]
    rows = []
    if root["cause"].get(language):
        rows.append((say(language, "cause"), e(root["cause"][language])))
    if root["evidence"]:
        rows.append((say(language, "evidence"), "<br>".join("<code>%s</code>" % e(line) for line in root["evidence"])))
    if root["fix"] or root["advice"].get(language):
        steps = ["%s<pre>%s</pre>" % (e(where(command, root["host"], language)), e(command)) for command in root["fix"]]
        rows.append((say(language, "fix"), "".join(steps) + e(root["advice"].get(language, ""))))
    rows.append((say(language, "runbook"), "<code>%s</code>" % e(runbook(root, language))))
    if following:
        rows.append(
            (
                say(language, "follows"),
                "<ul>%s</ul>"
                % "".join("<li>%s: %s</li>" % (e(one["host"]), e(one["title"][language])) for one in following),
            )
        )
    return '<section class="finding %s"><h3>%s <span class="word">%s</span> %s: %s</h3><dl>%s</dl></section>' % (
        severity, SIGNS[severity], e(say(language, severity)), e(root["host"]), e(root["title"][language]),
        "".join("<dt>%s</dt><dd>%s</dd>" % (e(name), value) for name, value in rows),
    )  # fmt: skip


def table(columns: list, rows: list, language: Optional[str] = None) -> str:
    """Return rows of dictionaries as a table; wide ones scroll by themselves."""
    body = []
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(column)
            shown = size(value) if column.endswith("bytes") and isinstance(value, (int, float)) else _shown(value)
            cells.append("<td%s>%s</td>" % (' class="number"' if isinstance(value, (int, float)) else "", e(shown)))
        body.append("<tr>%s</tr>" % "".join(cells))
    head = "".join("<th>%s</th>" % e(column) for column in columns)
    return '<div class="wide" tabindex="0"><table><tr>%s</tr>%s</table></div>' % (head, "".join(body))


def _shown(value) -> str:
    if value is None:
        return "–"
    return ", ".join(str(one) for one in value) if isinstance(value, list) else str(value)


# --- charts ----------------------------------------------------------------------------------------------------------


def charts(host: dict, language: str) -> str:
    """Return what a host's figures look like: bars of now, lines of the last hours."""
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
    if not bars and not series:
        return ""
    lines_ = ["<h3>%s</h3>" % e(host["host"])]
    lines_ += [
        '<div class="bar"><span>%s</span>%s<span>%.0f %%</span></div>' % (e(name), bar(name, percent), percent)
        for name, percent in bars
    ]
    if series:
        lines_.append('<div class="charts">%s</div>' % "".join(
            line_chart(say(language, key), [(slot["at"], slot[field]) for slot in series])
            for key, field in (("requests", "requests"), ("errors", "errors"), ("p95", "p95_seconds"))
        ))  # fmt: skip
    return "\n".join(lines_)


def bar(name: str, percent: float) -> str:
    """Return a bar; from 80 it is hatched, so that nobody needs its colour."""
    width = max(0.0, min(100.0, percent))
    hatch = (
        "".join('<path d="M%g 0l-6 10" stroke="currentColor"/>' % x for x in range(4, int(width) + 1, 4))
        if percent > 80
        else ""
    )
    return (
        '<svg viewBox="0 0 100 10" role="img" aria-label="%s %.0f %%" preserveAspectRatio="none" style="height:.8rem">'
        '<rect width="100" height="10" fill="none" stroke="currentColor" stroke-width=".5"/>'
        '<rect width="%.1f" height="10" fill="currentColor" fill-opacity=".4"/>%s</svg>' % (e(name), percent, width, hatch)
    )  # fmt: skip


def line_chart(title: str, points: list) -> str:
    """Return a line with its largest value and its first and last time written beside it."""
    top = max([value for _at, value in points] + [0])
    scale = top or 1
    first, last = points[0][0], points[-1][0]
    coordinates = " ".join(
        "%.1f,%.1f" % (45 + 250.0 * (at - first) / max(1, last - first), 80 - 65.0 * value / scale)
        for at, value in points
    )

    def clock(at):
        return datetime.datetime.fromtimestamp(at).strftime("%m-%d" if last - first > 2 * 86400 else "%H:%M")

    return (
        '<figure><figcaption>%s</figcaption><svg viewBox="0 0 300 100" role="img" aria-label="%s: max %g">'
        '<path d="M45 10V80H295" fill="none" stroke="currentColor" stroke-width=".7"/>'
        '<polyline points="%s" fill="none" stroke="currentColor" stroke-width="1.5"/>'
        '<text x="41" y="18" text-anchor="end">%s</text><text x="41" y="82" text-anchor="end">0</text>'
        '<text x="45" y="95">%s</text><text x="295" y="95" text-anchor="end">%s</text></svg></figure>'
        % (e(title), e(title), top, coordinates, e("%.3g" % top), clock(first), clock(last))
    )  # fmt: skip


# --- timeline, database ----------------------------------------------------------------------------------------------


def timeline(hosts: list) -> list:
    """Return what happened on all hosts, the latest first: {at, host, kind, text}."""
    events = []
    for host in hosts:
        parts = host.get("parts") or {}
        for deploy in parts.get("release", {}).get("deploys") or []:
            at = _moment(deploy.get("time"))
            text = " ".join(
                str(deploy[key]) for key in ("kind", "event", "target", "version", "reason") if deploy.get(key)
            )
            events.append((at, host["host"], "deploy", text))
        for event in parts.get("changes", {}).get("events") or []:
            events.append((event["at"], host["host"], event["kind"], event["text"]))
        for kill in parts.get("kills", {}).get("kills") or []:
            events.append((kill["at"], host["host"], "kill", "%s %s" % (kill["name"], kill["unit"])))
        for name, log in (parts.get("logs", {}).get("files") or {}).items():
            for problem in log.get("problems") or []:
                text = "%s: %s (%d x)" % (name, problem.get("exception") or problem["text"], problem["count"])
                events.append((problem["first"], host["host"], "error", text))
    known = [event for event in events if event[0]]
    return [dict(zip(("at", "host", "kind", "text"), event)) for event in sorted(known, reverse=True)[:120]]


def _moment(text) -> Optional[float]:
    try:
        return datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def timeline_table(events: list, language: str) -> str:
    if not events:
        return "<p>%s</p>" % e(say(language, "none"))
    rows = [
        {
            say(language, "when"): datetime.datetime.fromtimestamp(event["at"]).strftime("%m-%d %H:%M:%S"),
            say(language, "hosts"): event["host"],
            say(language, "what"): say(language, event["kind"]),
            say(language, "text"): event["text"][:300],
        }
        for event in events
    ]
    return table(list(rows[0]), rows)


def database_report(host: dict, language: str) -> str:
    """Return the tables of a database host."""
    database = (host.get("parts") or {}).get("database") or {}
    if database.get("status") != "ok":
        return ""
    server = database.get("server") or {}
    result = ["<h2>%s: %s</h2>" % (e(say(language, "database")), e(host["host"]))]
    result.append("<p>PostgreSQL %s · %s / %s · %s</p>" % (
        e(server.get("version", "?")), e((database.get("use") or {}).get("connections", "?")),
        e((database.get("use") or {}).get("usable", "?")), e(duration(server.get("uptime") or 0)),
    ))  # fmt: skip
    for name in DATABASE_TABLES:
        if name not in database:
            if name in ("slowest_on_average", "most_time_together"):
                result.append(
                    "<h3>%s</h3><p>%s (pg_stat_statements)</p>" % (e(say(language, name)), e(say(language, "unknown")))
                )
            continue
        rows = database[name]
        result.append("<h3>%s</h3>" % e(say(language, name)))
        result.append(table(list(rows[0]), rows) if rows else "<p>%s</p>" % e(say(language, "none")))
    return "\n".join(result)


# --- the bundle ------------------------------------------------------------------------------------------------------

BUNDLE_LIMIT = 5 << 20


def bundle(files: dict, made: datetime.datetime, limit: int = BUNDLE_LIMIT) -> tuple:
    """Return (a .tar.gz for a supporter, what is in it): redacted already, listed with sizes and sums, and bounded.

    Where it would grow too large, the largest files are cut, and the list says so.
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
