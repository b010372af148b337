#!/usr/bin/env python3
"""Writes monitoring/dashboards/*.json from the data below; with --check, says which are not up to date.

With --queries, prints each query as one JSON line, its variables substituted, so that a real Prometheus can be asked
whether the panel is alive. `queries()` is the same for tests that import this file.

Rules of the data, held by tests/unit/test_dashboards.py:
- The number before a title is the panel's id. It stays with the panel: links and screenshots name it. A row has the
  tens, its panels the numbers behind it.
- Each metric is written with its selector in braces, and each selector says which environment it asks for, so that
  two environments in one Prometheus never mix and `queries()` can take a query apart.
- Titles and descriptions are for operators in Japan. The English behind a slash is for whoever helps them.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "monitoring" / "dashboards"

# Grafana 11 writes this version of the schema; Grafana 12 reads it.
SCHEMA_VERSION = 39
PLUGIN_VERSION = "11.0.0"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Role grafana puts the site's address in its place: a dashboard on disk does not know where runbooks are read.
RUNBOOK_URL_BASE = "@RUNBOOK_URL_BASE@"
TAG = "shiftmaster"
GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "yellow", "orange", "red", "blue", "text"

ENV = 'env=~"$env"'
# Alerts about all of an environment may lack the label; they are shown whichever environment is chosen.
ALERT_ENV = 'env=~"$env|"'
HOST = f'{ENV},instance=~"$instance"'
DISKS = 'fstype!~"tmpfs|ramfs|squashfs"'
NETWORKS = 'device!~"lo|veth.*|docker.*|br-.*"'


class Query(NamedTuple):
    """One target: PromQL and how its series are called."""

    expr: str
    legend: str = ""
    # Why no series come while all is well; the scenario then asks for them under the fault.
    empty_when_healthy: str = ""


# --- what a panel is made of ------------------------------------------------------------------------------------------


def thresholds(*steps: tuple[float, str], base: str = GREEN) -> dict[str, Any]:
    return {
        "mode": "absolute",
        "steps": [{"color": base, "value": None}, *({"color": color, "value": value} for value, color in steps)],
    }


def mapped(**values: tuple[str, str]) -> list[dict[str, Any]]:
    """Values that are words: mapped(_0=("停止", RED), _1=("稼働中", GREEN))."""
    options = {
        value.lstrip("_"): {"color": color, "index": index, "text": text}
        for index, (value, (text, color)) in enumerate(values.items())
    }
    return [{"options": options, "type": "value"}]


UP = mapped(_0=("停止", RED), _1=("稼働中", GREEN))
YES_IS_GOOD = mapped(_0=("異常", RED), _1=("正常", GREEN))
YES_IS_BAD = mapped(_0=("なし", GREEN), _1=("あり", RED))


def runbook(alert: str) -> dict[str, Any]:
    return {
        "title": f"手順書: {alert}",
        "url": "${runbook_url_base}/docs/runbooks/" + alert + ".md",
        "targetBlank": True,
    }


def to(name: str, title: str, more: str = "") -> dict[str, Any]:
    """A link to another of the dashboards, with the environment and the time that are shown."""
    return {
        "title": title,
        "url": f"/d/shiftmaster-{name}?${{env:queryparam}}{more}&${{__url_time_range}}",
        "targetBlank": False,
    }


TO_HOST = to("host", "このホストの詳細", "&var-instance=${__field.labels.instance}")


def panel(
    kind: str,
    number: int,
    title: str,
    text: str,
    unit: str,
    queries: tuple[Query, ...],
    *,
    options: dict[str, Any],
    custom: dict[str, Any] | None = None,
    width: int = 12,
    height: int = 8,
    steps: dict[str, Any] | None = None,
    mappings: list[dict[str, Any]] | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    decimals: int | None = None,
    none: str | None = None,
    color: str = "palette-classic",
    links: tuple[dict[str, Any], ...] = (),
    data_links: tuple[dict[str, Any], ...] = (),
    overrides: list[dict[str, Any]] | None = None,
    transformations: list[dict[str, Any]] | None = None,
    instant: bool = False,
) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "color": {"mode": color},
        "custom": custom,
        "decimals": decimals,
        "links": list(data_links),
        "mappings": mappings or [],
        "max": limits[1],
        "min": limits[0],
        "noValue": none,
        "thresholds": steps or thresholds(),
        "unit": unit,
    }
    targets = [
        {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "format": "table" if kind == "table" else "time_series",
            "instant": instant,
            "legendFormat": query.legend or "__auto",
            "range": not instant,
            "refId": chr(ord("A") + index),
        }
        for index, query in enumerate(queries)
    ]
    return {
        "id": number,
        "type": kind,
        "title": title,
        "description": text,
        "pluginVersion": PLUGIN_VERSION,
        "datasource": DATASOURCE,
        # place() fills in where it stands.
        "gridPos": {"h": height, "w": width, "x": 0, "y": 0},
        "links": list(links),
        "fieldConfig": {
            "defaults": {name: value for name, value in defaults.items() if value is not None},
            "overrides": overrides or [],
        },
        "options": options,
        "targets": targets,
        "transformations": transformations or [],
        "_empty": {query.expr: query.empty_when_healthy for query in queries if query.empty_when_healthy},
    }


def graph(
    number: int,
    title: str,
    text: str,
    unit: str,
    *queries: Query,
    stacked: bool = False,
    bars: bool = False,
    wide_legend: bool = False,
    mirrored: str = "",
    **more: Any,
) -> dict[str, Any]:
    """Values over time. Thresholds are drawn as dashed lines where there are any."""
    custom = {
        "axisBorderShow": False,
        "axisCenteredZero": False,
        "axisColorMode": "text",
        "axisLabel": "",
        "axisPlacement": "auto",
        "barAlignment": 0,
        "drawStyle": "bars" if bars else "line",
        "fillOpacity": 60 if bars else 25 if stacked else 8,
        "gradientMode": "none",
        "hideFrom": {"legend": False, "tooltip": False, "viz": False},
        "insertNulls": False,
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "pointSize": 5,
        "scaleDistribution": {"type": "linear"},
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        "thresholdsStyle": {"mode": "dashed" if more.get("steps") else "off"},
    }
    # A whole table of metrics where many series share a panel; otherwise the names are enough.
    legend = {
        "calcs": ["lastNotNull", "max"] if wide_legend else [],
        "displayMode": "table" if wide_legend else "list",
        "placement": "right" if wide_legend else "bottom",
        "showLegend": True,
    }
    if mirrored:
        more["overrides"] = [
            {
                "matcher": {"id": "byRegexp", "options": mirrored},
                "properties": [{"id": "custom.transform", "value": "negative-Y"}],
            }
        ]
    more.setdefault("limits", (None, None) if mirrored else (0, None))
    return panel(
        "timeseries",
        number,
        title,
        text,
        unit,
        queries,
        custom=custom,
        options={"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}},
        **more,
    )


def stat(number: int, title: str, text: str, unit: str, *queries: Query, sparkline: bool = False, **more: Any):
    """Metrics as of now."""
    more.setdefault("width", 4)
    more.setdefault("height", 4)
    return panel(
        "stat",
        number,
        title,
        text,
        unit,
        queries,
        color="thresholds",
        instant=not sparkline,
        options={
            "colorMode": "background",
            "graphMode": "area" if sparkline else "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showPercentChange": False,
            "textMode": "auto",
            "wideLayout": True,
        },
        **more,
    )


def bars(number: int, title: str, text: str, unit: str, *queries: Query, **more: Any) -> dict[str, Any]:
    """Metrics as of now, one bar a series."""
    return panel(
        "bargauge",
        number,
        title,
        text,
        unit,
        queries,
        color="thresholds",
        instant=True,
        options={
            "displayMode": "basic",
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
            "maxVizHeight": 300,
            "minVizHeight": 16,
            "minVizWidth": 8,
            "namePlacement": "auto",
            "orientation": "horizontal",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showUnfilled": True,
            "sizing": "auto",
            "valueMode": "color",
        },
        **more,
    )


def timeline(number: int, title: str, text: str, *queries: Query, **more: Any) -> dict[str, Any]:
    """States over time, one lane a series."""
    return panel(
        "state-timeline",
        number,
        title,
        text,
        "short",
        queries,
        color="thresholds",
        custom={
            "fillOpacity": 80,
            "hideFrom": {"legend": False, "tooltip": False, "viz": False},
            "lineWidth": 0,
        },
        options={
            "alignValue": "left",
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
            "mergeValues": True,
            "rowHeight": 0.85,
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
        },
        **more,
    )


def table(
    number: int,
    title: str,
    text: str,
    query: Query,
    columns: dict[str, str],
    *,
    value_unit: str = "short",
    sort: str = "",
    column_overrides: list[dict[str, Any]] | None = None,
    descending: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """The labels of the series as columns, as of now. columns: {label or "Value": heading}, in this order."""
    return panel(
        "table",
        number,
        title,
        text,
        value_unit,
        (query,),
        color="thresholds",
        instant=True,
        custom={"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True, "inspect": False},
        options={
            "cellHeight": "sm",
            "footer": {"countRows": False, "fields": "", "reducer": ["sum"], "show": False},
            "showHeader": True,
            "sortBy": [{"desc": descending, "displayName": sort}] if sort else [],
        },
        overrides=column_overrides,
        transformations=[
            {"id": "filterFieldsByName", "options": {"include": {"names": list(columns)}}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {},
                    "includeByName": {},
                    "indexByName": {name: index for index, name in enumerate(columns)},
                    "renameByName": columns,
                },
            },
        ],
        **more,
    )


def column(heading: str, **properties: Any) -> dict[str, Any]:
    """How one column of a table looks: column("重大度", mappings=…)."""
    names = {"cell": "custom.cellOptions", "width": "custom.width"}
    return {
        "matcher": {"id": "byName", "options": heading},
        "properties": [{"id": names.get(name, name), "value": value} for name, value in properties.items()],
    }


def row(number: int, title: str) -> dict[str, Any]:
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"h": 1, "w": 24, "x": 0, "y": 0},
        "panels": [],
    }


def place(panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Set each panel where it stands highest, then furthest left; nothing goes above the row it belongs to."""
    floor = [0] * 24
    placed = []
    for item in panels:
        width, height = item["gridPos"]["w"], item["gridPos"]["h"]
        y, x = min((max(floor[x : x + width]), x) for x in range(25 - width))
        if item["type"] == "row":
            x, y = 0, max(floor)
        floor[x : x + width] = [y + height] * width
        placed.append({**item, "gridPos": {"h": height, "w": width, "x": x, "y": y}})
    return placed


def fold(panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row open, the others closed with their panels inside, as Grafana saves them."""
    starts = [number for number, item in enumerate(panels) if item["type"] == "row"]
    if len(starts) < 2:
        return panels
    found = panels[: starts[1]]
    y = max(item["gridPos"]["y"] + item["gridPos"]["h"] for item in found)
    for start, end in zip(starts[1:], [*starts[2:], len(panels)]):
        shift = y - panels[start]["gridPos"]["y"]
        head, *inner = (
            {**item, "gridPos": {**item["gridPos"], "y": item["gridPos"]["y"] + shift}} for item in panels[start:end]
        )
        found.append({**head, "collapsed": True, "panels": inner})
        y += 1
    return found


# --- what a dashboard is made of --------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """A variable whose values come from a label."""

    name: str
    title: str
    text: str
    series: str
    label: str
    # What it is when the queries are run against a Prometheus by hand.
    example: str = ".*"


CHOOSE_ENV = Choice("env", "環境", "表示する環境 / environment", "up", "env")
NODES = Choice("instance", "ホスト", "表示するホスト / hosts", f'up{{job="node",{ENV}}}', "instance")


def choose_instance(job: str, title: str = "ホスト") -> Choice:
    return Choice("instance", title, "表示するホスト / hosts", f'up{{job="{job}",{ENV}}}', "instance")


def variable(choice: Choice) -> dict[str, Any]:
    query = f"label_values({choice.series}, {choice.label})"
    return {
        "name": choice.name,
        "label": choice.title,
        "description": choice.text,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        # When the time range changes: a host that is gone is still found in the past.
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "multi": True,
        "includeAll": True,
        # All is not a list of every name: with 200 hosts that would make a query too long to send.
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "regex": "",
        "skipUrlSync": False,
    }


def fixed_variables() -> tuple[dict[str, Any], dict[str, Any]]:
    datasource = {
        "name": "datasource",
        "label": "データソース",
        "description": "Prometheus のデータソース / data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {"selected": True, "text": "Prometheus", "value": "prometheus"},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }
    runbooks = {
        "name": "runbook_url_base",
        "label": "手順書の場所",
        "description": "手順書の URL の前半 / where runbooks are read; set by role grafana",
        "type": "constant",
        "query": RUNBOOK_URL_BASE,
        "hide": 2,
        "skipUrlSync": True,
    }
    return datasource, runbooks


# A release that runs now and did not five minutes ago. Also after an outage that was longer than that: then the
# line says which release came back. Grafana makes it one event, as long as its samples follow each other.
DEPLOY_SERIES = "count by (env, version, release, colour) (shiftmaster_release_info{%s})" % ENV
DEPLOYS = f"{DEPLOY_SERIES} unless {DEPLOY_SERIES.replace('})', '} offset 5m)')}"


def annotations() -> list[dict[str, Any]]:
    return [
        {
            "builtIn": 1,
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "enable": True,
            "hide": True,
            "iconColor": "rgba(0, 211, 255, 1)",
            "name": "Annotations & Alerts",
            "type": "dashboard",
        },
        {
            "datasource": DATASOURCE,
            "enable": True,
            "expr": DEPLOYS,
            "hide": False,
            "iconColor": "purple",
            "name": "デプロイ",
            "step": "60s",
            "tagKeys": "env,colour",
            # Grafana reads the query above or this one, by its version.
            "target": {
                "datasource": DATASOURCE,
                "expr": DEPLOYS,
                "instant": False,
                "interval": "60s",
                "range": True,
                "refId": "Deploys",
            },
            "textFormat": "リリース {{release}} ({{colour}}, {{env}})",
            "titleFormat": "デプロイ {{version}}",
        },
    ]


class Dashboard(NamedTuple):
    name: str
    title: str
    text: str
    choices: tuple[Choice, ...]
    panels: tuple[dict[str, Any], ...]
    time: str = "now-6h"
    refresh: str = "30s"

    @property
    def uid(self) -> str:
        return f"shiftmaster-{self.name}"

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.uid}.json"


def model(board: Dashboard) -> dict[str, Any]:
    """The plain model, as Grafana's own export has it."""
    watched = WATCHED.get(board.name, {})
    panels = []
    for item in place(list(board.panels)):
        links = [runbook(alert) for alert in watched.get(item["id"], "").split()] + item.get("links", [])
        panels.append({name: value for name, value in {**item, "links": links}.items() if name != "_empty"})
        if item["type"] == "row":
            del panels[-1]["links"]
    # The overview shows everything at once.
    if board.name != "overview":
        panels = fold(panels)
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.text,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "refresh": board.refresh,
        "time": {"from": board.time, "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "weekStart": "",
        "annotations": {"list": annotations()},
        "links": [
            {
                "asDropdown": True,
                "icon": "external link",
                "includeVars": True,
                "keepTime": True,
                "tags": [TAG],
                "targetBlank": False,
                "title": "ShiftMaster のダッシュボード",
                "tooltip": "",
                "type": "dashboards",
                "url": "",
            },
            {
                "asDropdown": False,
                "icon": "doc",
                "includeVars": False,
                "keepTime": False,
                "tags": [],
                "targetBlank": True,
                "title": "手順書",
                "tooltip": "アラートごとの手順書 / runbooks",
                "type": "link",
                "url": "${runbook_url_base}/docs/runbooks/",
            },
        ],
        "templating": {"list": [*fixed_variables(), *(variable(choice) for choice in board.choices)]},
        "panels": panels,
    }


def text_of(board: Dashboard) -> str:
    """A panel a line: what changes is seen in a diff, and what does not is short."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    def one(item: dict[str, Any]) -> str:
        if not item.get("panels"):
            return line(item)
        head = line({name: value for name, value in item.items() if name != "panels"})
        return head[:-1] + ', "panels": [\n   ' + ",\n   ".join(map(line, item["panels"])) + "\n  ]}"

    def entry(key: str, value: Any) -> str:
        items = ",\n  ".join(map(one, value)) if key == "panels" else ""
        return f"{line(key)}: " + (f"[\n  {items}\n ]" if items else line(value))

    return "{\n " + ",\n ".join(entry(*item) for item in model(board).items()) + "\n}\n"


# --- the queries, for whoever runs them -------------------------------------------------------------------------------

SELECTOR = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\{[^{}]*\}")
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")
# What Grafana fills in itself, for a range of six hours at a scrape interval of 15 s.
BUILT_IN = {"__rate_interval": "1m", "__interval": "15s", "__range": "1h"}


def substituted(expr: str, board: Dashboard, **values: str) -> str:
    known = {**BUILT_IN, **{choice.name: choice.example for choice in board.choices}, **values}
    return VARIABLE.sub(lambda match: known[match[1] or match[2]], expr)


def queries(**values: str) -> list[dict[str, Any]]:
    """Every query of every panel, annotation and variable, to be executed as it is.

    values: variables by name, where the whole (`.*`) is not wanted, or `__rate_interval="5m"`.
    Each has: dashboard, panel (id, or what it is), title, expr, selectors (each vector in it: all of them must have
    series, since `or vector(0)` and a sum hide that a metric is gone), empty_when_healthy (a reason, mostly empty).
    """
    found = []

    def add(board: Dashboard, where: Any, title: str, expr: str, empty: str = "") -> None:
        final = substituted(expr, board, **values)
        found.append(
            {
                "dashboard": board.uid,
                "panel": where,
                "title": title,
                "expr": final,
                "selectors": sorted(set(SELECTOR.findall(final))),
                "empty_when_healthy": empty,
            }
        )

    for board in DASHBOARDS:
        for item in board.panels:
            for target in item.get("targets", []):
                add(board, item["id"], item["title"], target["expr"], item["_empty"].get(target["expr"], ""))
        for item in annotations()[1:]:
            add(board, "annotation", item["name"], item["expr"], "only in the five minutes behind a deploy")
        for choice in board.choices:
            series = choice.series if "{" in choice.series else choice.series + "{}"
            add(board, f"variable {choice.name}", choice.title, f"count by ({choice.label}) ({series})")
    return found


# --- queries that more than one dashboard asks ------------------------------------------------------------------------


def rate(metric: str, selector: str) -> str:
    return f"rate({metric}{{{selector}}}[$__rate_interval])"


def quantile(share: float, metric: str, selector: str, *by: str) -> str:
    return f"histogram_quantile({share}, sum by ({', '.join(('le', *by))}) ({rate(metric + '_bucket', selector)}))"


def mean(metric: str, selector: str, *by: str) -> str:
    group = f" by ({', '.join(by)})" if by else ""
    return f"sum{group} ({rate(metric + '_sum', selector)}) / sum{group} ({rate(metric + '_count', selector)})"


CPU = f'1 - avg by (env, instance) (rate(node_cpu_seconds_total{{mode="idle",{HOST}}}[$__rate_interval]))'
MEMORY = f"1 - node_memory_MemAvailable_bytes{{{HOST}}} / node_memory_MemTotal_bytes{{{HOST}}}"
DISK = f"1 - node_filesystem_avail_bytes{{{DISKS},{HOST}}} / node_filesystem_size_bytes{{{DISKS},{HOST}}}"
RESPONSES = "django_http_responses_total_by_status_view_method_total"
# What users get is what nginx answers: with the application down it counts the 502, the application nothing.
EDGE = f'job="mtail",site="edge",{ENV}'
QUEUE_LENGTH = f"max by (env, queue) (shiftmaster_celery_queue_length{{{ENV}}})"
CERTIFICATE_DAYS = (
    f'(min by (env, instance) (probe_ssl_earliest_cert_expiry{{job="blackbox-http",{ENV}}}) - time()) / 86400'
)
RESTORE_AGE = f"time() - max by (env) (shiftmaster_restore_test_last_success_timestamp_seconds{{{ENV}}})"
# Nobody needs to know of a share of nothing: without a request it is 0, not "no data".
NOT_ZERO = "clamp_min({}, 0.000001)"


def share(part: str, whole: str) -> str:
    """A share of rates. A status that was never seen has no series: it counts as none."""
    return f"({part} or vector(0)) / {NOT_ZERO.format(whole)}"


ERROR_SHARE = share(
    f'sum (rate(nginx_http_requests_total{{status=~"5..",{EDGE}}}[$__rate_interval]))',
    f"sum (rate(nginx_http_requests_total{{{EDGE}}}[$__rate_interval]))",
)
# 2xx green, 5xx red, as everywhere.
BY_STATUS = [
    {
        "matcher": {"id": "byRegexp", "options": f"/^{digit}/"},
        "properties": [{"id": "color", "value": {"fixedColor": color, "mode": "fixed"}}],
    }
    for digit, color in ((2, GREEN), (3, BLUE), (4, YELLOW), (5, RED))
]
# Objectives, on recording rules of five minutes and of an hour: (name, failures, all, their ratio in an hour, allowed).
# They are of everything that this Prometheus watches, so the label may be absent.
OBJECTIVES = (
    ("可用性", "shiftmaster:probe_failures:ratio_rate5m", "", "shiftmaster:probe_failures:ratio_rate1h", 0.001),
    (
        "エラー",
        "shiftmaster:http_errors:rate5m",
        "shiftmaster:http_requests:rate5m",
        "shiftmaster:http_errors:ratio_rate1h",
        0.001,
    ),
    (
        "レスポンス時間",
        "shiftmaster:slow_requests:rate5m",
        "shiftmaster:application_requests:rate5m",
        "shiftmaster:slow_requests:ratio_rate1h",
        0.05,
    ),
)


def budgets() -> list[Query]:
    """What is left of each budget of thirty days: 1 is all of it, 0 none."""
    found = []
    for name, failures, requests, _ratio, allowed in OBJECTIVES:
        spent = f"avg_over_time({failures}{{{ALERT_ENV}}}[30d])"
        if requests:
            spent += f" / {NOT_ZERO.format(f'avg_over_time({requests}{{{ALERT_ENV}}}[30d])')}"
        found.append(Query(f"1 - {spent} / {allowed}", name))
    return found


def burn_rates() -> list[Query]:
    """How fast: at 1 the budget lasts exactly thirty days."""
    return [
        Query(f"{ratio}{{{ALERT_ENV}}} / {allowed}", name) for name, _failures, _requests, ratio, allowed in OBJECTIVES
    ]


NEVER_FAILED = "a healthy site has answered no 5xx yet"

# --- the dashboards ---------------------------------------------------------------------------------------------------

FIRING = f'ALERTS{{alertstate="firing",severity="%s",{ALERT_ENV}}}'
SEVERITIES = {
    "critical": {"color": RED, "index": 0, "text": "重大"},
    "warning": {"color": ORANGE, "index": 1, "text": "警告"},
}
# Those whose metrics the dashboards and the alerts use; others fail on hosts that lack the thing.
COLLECTORS = "cpu|diskstats|filesystem|loadavg|meminfo|netdev|netstat|stat|systemd|textfile|time|timex|vmstat"
ALL_IS_WELL = "alerts fire under a fault only"

OVERVIEW = Dashboard(
    "overview",
    "ShiftMaster - システム概要",
    "呼び出されたときに最初に見る画面。上から順に、いま何が起きているか、利用者への影響、原因の手がかり。 / "
    "The first page to look at when paged: what is wrong, what users notice, where to look next.",
    (CHOOSE_ENV, NODES),
    (
        row(10, "いまの状態"),
        stat(
            11,
            "アプリケーション状態",
            "Prometheus がアプリケーションの指標を読めるか。停止が 30 秒続くと ShiftMasterDown が発火する。 / "
            "Whether each application host answers its scrape.",
            "short",
            Query(f'up{{job="shiftmaster",{ENV}}}', "{{instance}}"),
            mappings=UP,
            steps=thresholds((1, GREEN), base=RED),
            none="監視対象なし",
            links=(to("application", "アプリケーション"),),
        ),
        stat(
            12,
            "発火中のアラート(重大)",
            "重大なアラートの数。0 以外なら下の一覧の手順書へ。 / Firing critical alerts.",
            "short",
            Query(f"count ({FIRING % 'critical'}) or vector(0)", "重大", ALL_IS_WELL),
            steps=thresholds((1, RED)),
        ),
        stat(
            13,
            "発火中のアラート(警告)",
            "警告のアラートの数。 / Firing warnings.",
            "short",
            Query(f"count ({FIRING % 'warning'}) or vector(0)", "警告", ALL_IS_WELL),
            steps=thresholds((1, ORANGE)),
        ),
        stat(
            14,
            "エラー率(5xx)",
            "利用者が受け取った応答のうちサーバーエラーの割合。約束は 0.1 % 以下。 / "
            "Share of answers that were 5xx, counted by nginx, so that a dead application counts too.",
            "percentunit",
            Query(ERROR_SHARE, "5xx", NEVER_FAILED),
            sparkline=True,
            decimals=2,
            steps=thresholds((0.001, YELLOW), (0.01, RED)),
            links=(to("nginx", "nginx"),),
        ),
        stat(
            15,
            "スループット",
            "利用者からの 1 秒あたりのリクエスト数。急に 0 なら入口の手前を疑う。 / Requests a second at nginx.",
            "reqps",
            Query(f"sum (rate(nginx_http_requests_total{{{EDGE}}}[$__rate_interval]))", "リクエスト"),
            sparkline=True,
            steps=thresholds(base=BLUE),
            links=(to("nginx", "nginx"),),
        ),
        stat(
            16,
            "止まっている監視対象",
            "指標を読めない監視対象の数。エクスポーターの停止かホストの停止。 / Targets that do not answer.",
            "short",
            Query(f"sum (1 - up{{{ENV}}})", "停止"),
            steps=thresholds((1, RED)),
        ),
        stat(
            22,
            "外からの確認",
            "監視ホストからページを開けるか。 / Whether the page opens from the monitoring host.",
            "short",
            Query(f'min (probe_success{{job="blackbox-http",{ENV}}})', "ページ"),
            mappings=UP,
            steps=thresholds((1, GREEN), base=RED),
            links=(to("nginx", "nginx"),),
            width=8,
            height=3,
        ),
        table(
            17,
            "発火中のアラートの一覧",
            "アラート名を押すと手順書が開く。 / What fires, since when. The name leads to its runbook.",
            Query(
                f'1000 * ALERTS_FOR_STATE{{severity=~"critical|warning",{ALERT_ENV}}} and ignoring (alertstate) '
                f'ALERTS{{alertstate="firing",severity=~"critical|warning",{ALERT_ENV}}}',
                empty_when_healthy=ALL_IS_WELL,
            ),
            {
                "severity": "重大度",
                "alertname": "アラート",
                "service": "対象",
                "env": "環境",
                "instance": "ホスト",
                "Value": "発生",
            },
            value_unit="dateTimeFromNow",
            none="発火中のアラートはありません",
            sort="重大度",
            column_overrides=[
                column(
                    "重大度",
                    mappings=[{"options": SEVERITIES, "type": "value"}],
                    cell={"type": "color-background", "mode": "basic"},
                    width=110,
                ),
                column(
                    "アラート",
                    links=[
                        {
                            "title": "手順書を開く",
                            "url": "${runbook_url_base}/docs/runbooks/${__value.text}.md",
                            "targetBlank": True,
                        }
                    ],
                ),
            ],
            width=16,
            height=10,
        ),
        stat(
            18,
            "証明書の残り日数",
            "外から見える証明書のうち最も早く切れるもの。 / Days until the first certificate that users see ends.",
            "d",
            Query(f"min ({CERTIFICATE_DAYS})", "残り"),
            decimals=0,
            steps=thresholds((7, ORANGE), (28, GREEN), base=RED),
            links=(to("nginx", "nginx"),),
            height=3,
        ),
        stat(
            19,
            "最後のデータベースバックアップから",
            "成功した最後のバックアップからの時間。 / Time since the last good database backup.",
            "s",
            Query(f'time() - max (shiftmaster_backup_last_success_timestamp_seconds{{kind="database",{ENV}}})', "経過"),
            steps=thresholds((26 * 3600, ORANGE), (50 * 3600, RED)),
            none="記録なし",
            links=(to("backups", "バックアップ"),),
            height=3,
        ),
        stat(
            20,
            "待っている処理",
            "Celery のキューで待っている処理の数。 / Tasks that wait in all queues.",
            "short",
            Query(f"sum ({QUEUE_LENGTH})", "待ち"),
            sparkline=True,
            steps=thresholds((100, YELLOW), (1000, RED)),
            links=(to("celery", "Celery"),),
            height=4,
        ),
        stat(
            21,
            "残りのエラー予算(30 日)",
            "可用性 99.9 % の約束に対して残っている割合。0 を下回ると約束を破っている。 / "
            "What is left of the availability budget of 30 days.",
            "percentunit",
            budgets()[0],
            decimals=0,
            steps=thresholds((0, ORANGE), (0.25, GREEN), base=RED),
            links=(to("application", "SLO の内訳"),),
            height=4,
        ),
        row(30, "利用者への影響"),
        graph(
            31,
            "レスポンス時間",
            "95 パーセンタイル。約束は 200 ミリ秒、2 秒を 2 分超えると HighResponseTime が発火する。縦線はデプロイ。 / "
            "p95 of all requests; vertical lines are deploys.",
            "s",
            Query(quantile(0.95, "django_request_duration_seconds", ENV), "p95"),
            Query(quantile(0.5, "django_request_duration_seconds", ENV), "p50"),
            steps=thresholds((0.2, YELLOW), (2, RED)),
            links=(to("application", "アプリケーション"),),
        ),
        graph(
            32,
            "応答の数(状態コード別)",
            "nginx が利用者へ返した応答。5 で始まるものがサーバーエラー。 / Answers of nginx by status.",
            "reqps",
            Query(f"sum by (status) (rate(nginx_http_requests_total{{{EDGE}}}[$__rate_interval]))", "{{status}}"),
            overrides=BY_STATUS,
            stacked=True,
            links=(to("nginx", "nginx"),),
        ),
        row(40, "データベースとキュー"),
        graph(
            41,
            "データベース接続",
            "状態ごとの接続数と上限。上限に近いと新しい接続が断られる。 / "
            "Client connections by state, and how many the server takes.",
            "short",
            Query(f'sum by (state) (pg_stat_activity_count{{backend_type="client backend",{ENV}}})', "{{state}}"),
            Query(f"min (pg_settings_max_connections{{{ENV}}})", "上限"),
            links=(to("postgresql", "PostgreSQL"),),
        ),
        graph(
            42,
            "キューの長さ",
            "キューごとの待ち。増え続けるならワーカーが足りないか止まっている。 / Waiting tasks by queue.",
            "short",
            Query(QUEUE_LENGTH, "{{queue}}"),
            links=(to("celery", "Celery"),),
        ),
        row(50, "ホスト"),
        graph(
            51,
            "CPU 使用率",
            "80 % が 2 分続くと HighCPUUsage が発火する。 / CPU in use by host.",
            "percentunit",
            Query(CPU, "{{instance}}"),
            limits=(0, 1),
            steps=thresholds((0.8, RED)),
            width=8,
            data_links=(TO_HOST,),
        ),
        graph(
            52,
            "メモリ使用率",
            "85 % が 2 分続くと HighMemoryUsage が発火する。 / Memory in use by host.",
            "percentunit",
            Query(MEMORY, "{{instance}}"),
            limits=(0, 1),
            steps=thresholds((0.85, YELLOW), (0.9, RED)),
            width=8,
            data_links=(TO_HOST,),
        ),
        graph(
            53,
            "ディスク使用率(最大)",
            "ホストごとに最も埋まっているファイルシステム。80 % で DiskSpaceWarning が発火する。 / "
            "The fullest file system of each host.",
            "percentunit",
            Query(f"max by (env, instance) ({DISK})", "{{instance}}"),
            limits=(0, 1),
            steps=thresholds((0.8, YELLOW), (0.9, RED)),
            width=8,
            data_links=(TO_HOST,),
        ),
        timeline(
            54,
            "サービスの死活",
            "種類ごとに、すべての監視対象が答えているか。 / By job: whether every target answers.",
            Query(f"min by (job) (up{{{ENV}}})", "{{job}}"),
            mappings=UP,
            steps=thresholds((1, GREEN), base=RED),
            width=16,
            height=8,
        ),
        stat(
            55,
            "監視自身",
            "最後の設定を読めたか。 / Whether each runs with the configuration that was written.",
            "short",
            Query(f"min (prometheus_config_last_reload_successful{{{ENV}}})", "Prometheus"),
            Query(f"min (alertmanager_config_last_reload_successful{{{ENV}}})", "Alertmanager"),
            Query(f"min (blackbox_exporter_config_last_reload_successful{{{ENV}}})", "blackbox"),
            mappings=YES_IS_GOOD,
            steps=thresholds((1, GREEN), base=RED),
            width=8,
            height=4,
        ),
        stat(
            56,
            "届かなかった通知(1 時間)",
            "Alertmanager が送れなかった通知。0 以外なら通知先の設定を見る。 / "
            "Messages that no receiver took in an hour.",
            "short",
            Query(
                f"sum by (integration) (increase(alertmanager_notifications_failed_total{{{ENV}}}[1h])) > 0 "
                f"or sum (increase(alertmanager_notifications_failed_total{{{ENV}}}[1h]))",
                "{{integration}}",
            ),
            decimals=0,
            steps=thresholds((1, RED)),
            width=8,
            height=4,
        ),
        stat(
            57,
            "ルールの評価の失敗(1 時間)",
            "評価できなかった、または間に合わなかったアラートのルール。 / Rules that failed or were missed in an hour.",
            "short",
            Query(
                f"sum (increase(prometheus_rule_evaluation_failures_total{{{ENV}}}[1h])) + "
                f"sum (increase(prometheus_rule_group_iterations_missed_total{{{ENV}}}[1h]))",
                "失敗",
            ),
            decimals=0,
            steps=thresholds((1, RED)),
            width=8,
            height=4,
        ),
        stat(
            58,
            "収集の失敗",
            "node のコレクターとテキストファイルで読めなかったもの。 / Collectors and textfiles that failed.",
            "short",
            Query(
                f'sum (1 - node_scrape_collector_success{{collector=~"{COLLECTORS}",{ENV}}}) + '
                f"sum (node_textfile_scrape_error{{{ENV}}})",
                "失敗",
            ),
            steps=thresholds((1, ORANGE)),
            width=8,
            height=4,
        ),
        graph(
            59,
            "収集にかかった時間(種類別の最大)",
            "間隔(5 秒または 15 秒)に近づくと、値が抜ける。 / The slowest scrape of each job.",
            "s",
            Query(f"max by (job) (scrape_duration_seconds{{{ENV}}})", "{{job}}"),
            width=8,
            height=12,
        ),
        graph(
            60,
            "Prometheus の系列と保存量",
            "系列が急に増えたら、値の多いラベルを疑う。 / Series in memory, and bytes on disk.",
            "short",
            Query(f"sum (prometheus_tsdb_head_series{{{ENV}}})", "系列"),
            Query(f"sum (prometheus_tsdb_storage_blocks_bytes{{{ENV}}})", "保存量"),
            overrides=[
                {
                    "matcher": {"id": "byName", "options": "保存量"},
                    "properties": [
                        {"id": "unit", "value": "bytes"},
                        {"id": "custom.axisPlacement", "value": "right"},
                    ],
                }
            ],
            width=8,
        ),
        graph(
            61,
            "通知の送信",
            "Prometheus から Alertmanager へ、Alertmanager から通知先へ。 / Notifications, and their failures.",
            "ops",
            Query(f"sum ({rate('alertmanager_notifications_total', ENV)})", "通知先へ"),
            Query(f"sum ({rate('alertmanager_notifications_failed_total', ENV)})", "通知先で失敗"),
            Query(f"sum ({rate('prometheus_notifications_errors_total', ENV)})", "Alertmanager で失敗"),
            width=8,
        ),
    ),
    time="now-3h",
)

HOST_BOARD = Dashboard(
    "host",
    "ShiftMaster - ホスト",
    "CPU、メモリ、ディスク、ネットワーク、systemd。 / Hosts: CPU, memory, disks, network, units.",
    (CHOOSE_ENV, NODES),
    (
        row(10, "概要"),
        stat(
            11,
            "稼働時間",
            "最後の起動から。短ければ再起動があった。 / Time since boot.",
            "s",
            Query(f"time() - node_boot_time_seconds{{{HOST}}}", "{{instance}}"),
            steps=thresholds((0, YELLOW), (3600, GREEN)),
            width=6,
        ),
        stat(
            12,
            "失敗したユニット",
            "systemd で失敗しているユニットの数。 / Units in state failed.",
            "short",
            Query(f'sum by (instance) (node_systemd_unit_state{{state="failed",{HOST}}})', "{{instance}}"),
            steps=thresholds((1, RED)),
            width=6,
        ),
        stat(
            13,
            "時計のずれ",
            "NTP から見たずれ。大きいとログインや証明書の検査が失敗する。 / Offset of the clock.",
            "s",
            Query(f"abs (node_timex_offset_seconds{{{HOST}}})", "{{instance}}"),
            steps=thresholds((0.1, YELLOW), (1, RED)),
            decimals=3,
            width=6,
        ),
        stat(
            14,
            "メモリ不足による強制終了(表示期間)",
            "カーネルがプロセスを殺した回数。 / Kills for lack of memory in the time that is shown.",
            "short",
            Query(f"increase(node_vmstat_oom_kill{{{HOST}}}[$__range])", "{{instance}}"),
            decimals=0,
            steps=thresholds((1, RED)),
            width=6,
        ),
        row(20, "CPU"),
        graph(
            21,
            "CPU 使用率",
            "80 % が 2 分続くと HighCPUUsage が発火する。 / CPU in use.",
            "percentunit",
            Query(CPU, "{{instance}}"),
            limits=(0, 1),
            steps=thresholds((0.8, RED)),
        ),
        graph(
            22,
            "CPU の内訳",
            "iowait が多ければディスク、steal が多ければ仮想化基盤を疑う。 / By mode, idle left out.",
            "percentunit",
            Query(f'avg by (mode) (rate(node_cpu_seconds_total{{mode!="idle",{HOST}}}[$__rate_interval]))', "{{mode}}"),
            stacked=True,
        ),
        graph(
            23,
            "ロードアベレージ(コアあたり)",
            "1 を超えると CPU の待ちがある。 / Load of 5 minutes by core.",
            "short",
            Query(
                f"node_load5{{{HOST}}} / on (env, instance) "
                f'count by (env, instance) (node_cpu_seconds_total{{mode="idle",{HOST}}})',
                "{{instance}}",
            ),
            steps=thresholds((1, YELLOW), (2, RED)),
        ),
        graph(
            24,
            "資源待ちの割合(PSI)",
            "処理が CPU、メモリ、I/O を待っていた時間の割合。使用率より早く困りごとを示す。 / Pressure stall.",
            "percentunit",
            Query(f"rate(node_pressure_cpu_waiting_seconds_total{{{HOST}}}[$__rate_interval])", "{{instance}} CPU"),
            Query(
                f"rate(node_pressure_memory_waiting_seconds_total{{{HOST}}}[$__rate_interval])", "{{instance}} メモリ"
            ),
            Query(f"rate(node_pressure_io_waiting_seconds_total{{{HOST}}}[$__rate_interval])", "{{instance}} I/O"),
        ),
        row(30, "メモリ"),
        graph(
            31,
            "メモリ使用率",
            "85 % が 2 分続くと HighMemoryUsage が発火する。 / Memory in use.",
            "percentunit",
            Query(MEMORY, "{{instance}}"),
            limits=(0, 1),
            steps=thresholds((0.85, YELLOW), (0.9, RED)),
        ),
        graph(
            32,
            "メモリの内訳",
            "選んだホストの合計。キャッシュは必要になれば空く。 / Sum of the chosen hosts.",
            "bytes",
            Query(f"sum (node_memory_MemTotal_bytes{{{HOST}}} - node_memory_MemAvailable_bytes{{{HOST}}})", "使用中"),
            Query(f"sum (node_memory_MemAvailable_bytes{{{HOST}}})", "利用可能"),
            stacked=True,
        ),
        graph(
            33,
            "スワップの出入り",
            "続くならメモリが足りない。 / Pages swapped in and out.",
            "ops",
            Query(f"rate(node_vmstat_pswpin{{{HOST}}}[$__rate_interval])", "{{instance}} 読み込み"),
            Query(f"rate(node_vmstat_pswpout{{{HOST}}}[$__rate_interval])", "{{instance}} 書き出し"),
            mirrored="/書き出し/",
        ),
        graph(
            34,
            "開いているファイル",
            "上限に対する割合。 / File handles against the kernel's limit.",
            "percentunit",
            Query(f"node_filefd_allocated{{{HOST}}} / node_filefd_maximum{{{HOST}}}", "{{instance}}"),
            steps=thresholds((0.8, RED)),
        ),
        row(40, "ディスク"),
        bars(
            41,
            "ディスク使用率",
            "80 % で DiskSpaceWarning が発火する。 / Space in use by file system.",
            "percentunit",
            Query(DISK, "{{instance}} {{mountpoint}}"),
            limits=(0, 1),
            steps=thresholds((0.8, YELLOW), (0.9, RED)),
        ),
        bars(
            42,
            "inode 使用率",
            "容量が残っていても inode が尽きるとファイルを作れない。 / Inodes in use.",
            "percentunit",
            Query(
                f"1 - node_filesystem_files_free{{{DISKS},{HOST}}} / (node_filesystem_files{{{DISKS},{HOST}}} > 0)",
                "{{instance}} {{mountpoint}}",
            ),
            limits=(0, 1),
            steps=thresholds((0.8, YELLOW), (0.9, RED)),
        ),
        graph(
            43,
            "空き容量の予測(24 時間後)",
            "過去 6 時間の傾きが続いた場合の空き。0 を下回れば満杯になる。 / "
            "Free space in a day if the last six hours go on.",
            "bytes",
            Query(
                f"predict_linear(node_filesystem_avail_bytes{{{DISKS},{HOST}}}[6h], 86400)",
                "{{instance}} {{mountpoint}}",
            ),
            limits=(None, None),
            steps=thresholds((0, GREEN), base=RED),
        ),
        graph(
            44,
            "ディスクの稼働率",
            "I/O をしていた時間の割合。1 に近ければ飽和。 / Share of the time with I/O under way.",
            "percentunit",
            Query(f"rate(node_disk_io_time_seconds_total{{{HOST}}}[$__rate_interval])", "{{instance}} {{device}}"),
            steps=thresholds((0.8, YELLOW), (0.95, RED)),
        ),
        graph(
            45,
            "ディスクの読み書き",
            "下向きが書き込み。 / Throughput; writes point down.",
            "Bps",
            Query(f"rate(node_disk_read_bytes_total{{{HOST}}}[$__rate_interval])", "{{instance}} {{device}} 読み込み"),
            Query(
                f"rate(node_disk_written_bytes_total{{{HOST}}}[$__rate_interval])", "{{instance}} {{device}} 書き込み"
            ),
            mirrored="/書き込み/",
        ),
        graph(
            46,
            "I/O の待ち時間",
            "1 回の読み書きにかかった平均。 / Mean time of a read and of a write.",
            "s",
            *(
                Query(
                    f"rate(node_disk_{verb}_time_seconds_total{{{HOST}}}[$__rate_interval]) / "
                    f"clamp_min(rate(node_disk_{verb}s_completed_total{{{HOST}}}[$__rate_interval]), 0.001)",
                    f"{{{{instance}}}} {{{{device}}}} {name}",
                )
                for verb, name in (("read", "読み込み"), ("write", "書き込み"))
            ),
        ),
        stat(
            47,
            "読み取り専用になったファイルシステム",
            "ディスクの故障で起きる。 / File systems that the kernel has made read-only.",
            "short",
            Query(f"sum by (instance) (node_filesystem_readonly{{{DISKS},{HOST}}})", "{{instance}}"),
            steps=thresholds((1, RED)),
            width=12,
        ),
        stat(
            48,
            "ファイルシステムを読めないエラー",
            "エクスポーターが大きさを読めなかったもの。 / File systems whose size could not be read.",
            "short",
            Query(f"sum by (instance) (node_filesystem_device_error{{{DISKS},{HOST}}})", "{{instance}}"),
            steps=thresholds((1, ORANGE)),
            width=12,
        ),
        row(50, "ネットワーク"),
        graph(
            51,
            "通信量",
            "下向きが送信。 / Traffic; sent points down.",
            "bps",
            Query(
                f"8 * rate(node_network_receive_bytes_total{{{NETWORKS},{HOST}}}[$__rate_interval])",
                "{{instance}} {{device}} 受信",
            ),
            Query(
                f"8 * rate(node_network_transmit_bytes_total{{{NETWORKS},{HOST}}}[$__rate_interval])",
                "{{instance}} {{device}} 送信",
            ),
            mirrored="/送信/",
        ),
        graph(
            52,
            "TCP の再送",
            "送った区間のうち再送の割合。1 % を超えるとパケットが失われている。 / Share of segments sent again.",
            "percentunit",
            Query(
                f"rate(node_netstat_Tcp_RetransSegs{{{HOST}}}[$__rate_interval]) / "
                f"clamp_min(rate(node_netstat_Tcp_OutSegs{{{HOST}}}[$__rate_interval]), 0.001)",
                "{{instance}}",
            ),
            steps=thresholds((0.01, YELLOW), (0.05, RED)),
        ),
        graph(
            53,
            "捨てられたパケットとエラー",
            "ネットワークカードで失われたもの。 / Drops and errors at the cards.",
            "pps",
            Query(
                f"sum by (instance) (rate(node_network_receive_drop_total{{{NETWORKS},{HOST}}}[$__rate_interval]) + "
                f"rate(node_network_transmit_drop_total{{{NETWORKS},{HOST}}}[$__rate_interval]))",
                "{{instance}} 破棄",
            ),
            Query(
                f"sum by (instance) (rate(node_network_receive_errs_total{{{NETWORKS},{HOST}}}[$__rate_interval]) + "
                f"rate(node_network_transmit_errs_total{{{NETWORKS},{HOST}}}[$__rate_interval]))",
                "{{instance}} エラー",
            ),
        ),
        graph(
            54,
            "ping の往復時間と損失",
            "監視ホストから。損失は 1 なら届いていない。 / From the monitoring host: round trip, and losses.",
            "s",
            Query(
                f'sum by (instance) (probe_icmp_duration_seconds{{job="blackbox-icmp",phase="rtt",{HOST}}})',
                "{{instance}} 往復",
            ),
            Query(
                f'1 - avg by (instance) (avg_over_time(probe_success{{job="blackbox-icmp",{HOST}}}[5m]))',
                "{{instance}} 損失率",
            ),
            overrides=[
                {
                    "matcher": {"id": "byRegexp", "options": "/損失率/"},
                    "properties": [
                        {"id": "unit", "value": "percentunit"},
                        {"id": "max", "value": 1},
                        {"id": "custom.axisPlacement", "value": "right"},
                    ],
                }
            ],
        ),
        graph(
            55,
            "TCP 接続",
            "確立している接続と、閉じるのを待っている接続。 / Established, and in time-wait.",
            "short",
            Query(f"node_netstat_Tcp_CurrEstab{{{HOST}}}", "{{instance}} 確立"),
            Query(f"node_sockstat_TCP_tw{{{HOST}}}", "{{instance}} 終了待ち"),
        ),
        stat(
            56,
            "内部証明書の残り日数",
            "ホスト間の通信に使う証明書。残り 30 日を切ると deploy.yml の実行で更新される。 / "
            "Days until the certificate by which hosts speak with one another ends; runs renew it.",
            "d",
            Query(
                f'(min by (instance) (probe_ssl_earliest_cert_expiry{{job="blackbox-tls",{HOST}}}) - time()) / 86400',
                "{{instance}}",
            ),
            decimals=0,
            steps=thresholds((7, ORANGE), (28, GREEN), base=RED),
            width=12,
        ),
        row(60, "systemd"),
        table(
            61,
            "失敗したユニットの一覧",
            "`systemctl status` と `journalctl -u` で理由を見る。 / Failed units.",
            Query(f'node_systemd_unit_state{{state="failed",{HOST}}} == 1', empty_when_healthy="no unit has failed"),
            {"instance": "ホスト", "name": "ユニット", "type": "種類"},
            none="失敗したユニットはありません",
            width=12,
        ),
        graph(
            62,
            "テキストファイルの古さ",
            "バックアップやコンテナの指標を書くファイルが更新されてからの時間。 / Age of the textfiles.",
            "s",
            Query(f"time() - node_textfile_mtime_seconds{{{HOST}}}", "{{instance}} {{file}}"),
        ),
    ),
)

APP = f'{ENV},instance=~"$instance"'
ROUTE = f'route=~"$route",{APP}'

APPLICATION = Dashboard(
    "application",
    "ShiftMaster - アプリケーション",
    "応答、エラー、遅いリクエスト、利用者、SLO。 / Answers, errors, slow requests, people, objectives.",
    (
        CHOOSE_ENV,
        choose_instance("shiftmaster"),
        Choice("route", "経路", "URL の経路 / route", f"django_request_duration_seconds_count{{{APP}}}", "route"),
    ),
    (
        row(10, "概要"),
        stat(
            11,
            "アプリケーション状態",
            "Prometheus がアプリケーションの指標を読めるか。 / Whether the application answers its scrape.",
            "short",
            Query(f'up{{job="shiftmaster",{APP}}}', "{{instance}}"),
            mappings=UP,
            steps=thresholds((1, GREEN), base=RED),
        ),
        stat(
            12,
            "レスポンス時間 p95",
            "選んだ経路の 95 パーセンタイル。 / p95 of the chosen routes.",
            "s",
            Query(quantile(0.95, "django_request_duration_seconds", ROUTE), "p95"),
            sparkline=True,
            steps=thresholds((0.2, YELLOW), (2, RED)),
        ),
        stat(
            13,
            "スループット",
            "アプリケーションが処理した 1 秒あたりのリクエスト数。 / Requests a second.",
            "reqps",
            Query(f"sum ({rate('django_request_duration_seconds_count', ROUTE)})", "リクエスト"),
            sparkline=True,
            steps=thresholds(base=BLUE),
        ),
        stat(
            14,
            "エラー率(5xx)",
            "アプリケーションが返したサーバーエラーの割合。 / Share of 5xx of the application.",
            "percentunit",
            Query(
                share(
                    f'sum (rate({RESPONSES}{{status=~"5..",{APP}}}[$__rate_interval]))',
                    f"sum (rate({RESPONSES}{{{APP}}}[$__rate_interval]))",
                ),
                "5xx",
                NEVER_FAILED,
            ),
            sparkline=True,
            decimals=2,
            steps=thresholds((0.001, YELLOW), (0.01, RED)),
        ),
        stat(
            15,
            "利用者(5 分)",
            "直近 5 分に操作した利用者。 / People active in five minutes.",
            "short",
            Query(f'max by (env) (shiftmaster_active_users{{window="5m",{APP}}})', "{{env}}"),
            sparkline=True,
            steps=thresholds(base=BLUE),
        ),
        stat(
            16,
            "データベースの問い合わせ p95",
            "アプリケーションが測った、1 回の問い合わせの時間。 / p95 of a query, as the application has it.",
            "s",
            Query(quantile(0.95, "django_db_query_duration_seconds", APP), "p95"),
            sparkline=True,
            steps=thresholds((0.1, YELLOW), (1, RED)),
            links=(to("postgresql", "PostgreSQL"),),
        ),
        row(20, "応答"),
        graph(
            21,
            "レスポンス時間",
            "選んだ経路全体。 / All chosen routes.",
            "s",
            *(
                Query(quantile(part, "django_request_duration_seconds", ROUTE), f"p{int(part * 100)}")
                for part in (0.5, 0.95, 0.99)
            ),
            steps=thresholds((0.2, YELLOW), (2, RED)),
        ),
        graph(
            22,
            "レスポンス時間 p95(経路別、遅い順に 10)",
            "どの画面が遅いか。 / The ten slowest routes.",
            "s",
            Query(f"topk (10, {quantile(0.95, 'django_request_duration_seconds', ROUTE, 'route')})", "{{route}}"),
            wide_legend=True,
        ),
        graph(
            23,
            "リクエスト(経路別、多い順に 10)",
            "どの画面が使われているか。 / The ten busiest routes.",
            "reqps",
            Query(f"topk (10, sum by (route) ({rate('django_request_duration_seconds_count', ROUTE)}))", "{{route}}"),
            stacked=True,
            wide_legend=True,
        ),
        graph(
            24,
            "応答の数(状態コード別)",
            "アプリケーションが返した応答。 / Answers of the application by status.",
            "reqps",
            Query(f"sum by (status) (rate({RESPONSES}{{{APP}}}[$__rate_interval]))", "{{status}}"),
            stacked=True,
            overrides=BY_STATUS,
        ),
        graph(
            25,
            "遅いリクエスト",
            "1 秒を超えたもの(info)と 2 秒を超えたもの(warning)。詳細は遅いリクエストのログに。 / "
            "Above one and two seconds; each has its line in the slow-request log.",
            "reqps",
            Query(f"sum by (level) ({rate('shiftmaster_slow_requests_total', APP)})", "{{level}}"),
        ),
        graph(
            26,
            "例外",
            "処理されなかった例外の種類。 / Exceptions by type.",
            "ops",
            Query(
                f"sum by (type) ({rate('django_http_exceptions_total_by_type_total', APP)})",
                "{{type}}",
                "no view has raised yet",
            ),
            none="例外はありません",
        ),
        row(30, "利用者"),
        graph(
            31,
            "利用者の数",
            "直近 5 分と 1 時間に操作した利用者。 / People active in five minutes and in an hour.",
            "short",
            Query(f"max by (env, window) (shiftmaster_active_users{{{APP}}})", "{{env}} {{window}}"),
        ),
        graph(
            32,
            "セッションの長さ",
            "終わったセッションの長さ。 / Length of sessions that ended.",
            "s",
            *(
                Query(
                    f"histogram_quantile({part}, sum by (le) "
                    f"(increase(shiftmaster_session_duration_seconds_bucket{{{APP}}}[1h])))",
                    f"p{int(part * 100)}",
                )
                for part in (0.5, 0.95)
            ),
        ),
        row(40, "約束(SLO)"),
        bars(
            41,
            "残りのエラー予算(30 日)",
            "可用性 99.9 %、エラー 0.1 % 以下、p95 200 ミリ秒未満という約束に対して残っている割合。 / "
            "What is left of each budget.",
            "percentunit",
            *budgets(),
            limits=(0, 1),
            steps=thresholds((0, ORANGE), (0.25, GREEN), base=RED),
            width=8,
        ),
        graph(
            42,
            "予算を使う速さ",
            "1 なら 30 日でちょうど使い切る速さ。14.4 を超えると呼び出しになる。 / Burn rate over an hour.",
            "short",
            *burn_rates(),
            steps=thresholds((1, YELLOW), (14.4, RED)),
            width=8,
        ),
        graph(
            43,
            "外から見た可用性",
            "監視ホストから 15 秒ごとに確かめた結果の 1 時間平均。 / Probes that succeeded in an hour.",
            "percentunit",
            Query(f'avg by (env) (avg_over_time(probe_success{{job="blackbox-http",{ENV}}}[1h]))', "{{env}}"),
            limits=(None, 1),
            steps=thresholds((0.999, GREEN), base=RED),
            width=8,
        ),
        row(50, "アプリケーションの資源"),
        graph(
            51,
            "CPU",
            "gunicorn のプロセスの合計。1 は 1 コア。 / CPU of the web processes; 1 is a core.",
            "short",
            Query(rate("process_cpu_seconds_total", f'job="shiftmaster",{APP}'), "{{instance}}"),
            width=8,
        ),
        graph(
            52,
            "メモリ",
            "gunicorn のプロセスの合計。 / Memory of the web processes.",
            "bytes",
            Query(f'process_resident_memory_bytes{{job="shiftmaster",{APP}}}', "{{instance}}"),
            width=8,
        ),
        timeline(
            53,
            "指標の収集",
            "キューと利用者の数を数えられたか。異常ならその値は出ない。 / "
            "Whether the queue and the people could be counted.",
            Query(f"shiftmaster_metrics_collector_up{{{APP}}}", "{{instance}} {{collector}}"),
            mappings=YES_IS_GOOD,
            steps=thresholds((1, GREEN), base=RED),
            width=8,
        ),
        graph(
            54,
            "データベースの問い合わせ",
            "1 秒あたりの回数。リクエストより速く増えるなら、画面が問い合わせすぎている。 / Queries a second.",
            "ops",
            Query(f"sum by (instance) ({rate('django_db_execute_total', APP)})", "{{instance}}"),
        ),
        graph(
            55,
            "データベースのエラー",
            "種類ごと。つながらないときは OperationalError。 / Errors by type.",
            "ops",
            Query(
                f"sum by (type) ({rate('django_db_errors_total', APP)})",
                "{{type}}",
                "no query has failed yet",
            ),
            none="エラーはありません",
        ),
    ),
)

DATNAME = f'datname=~"$datname",{HOST}'

POSTGRESQL = Dashboard(
    "postgresql",
    "ShiftMaster - PostgreSQL",
    "接続、クエリ、ロック、レプリケーション。 / Connections, statements, locks, replication.",
    (
        CHOOSE_ENV,
        choose_instance("postgres"),
        Choice(
            "datname", "データベース", "データベース / database", f"pg_stat_database_numbackends{{{HOST}}}", "datname"
        ),
    ),
    (
        row(10, "概要"),
        stat(
            11,
            "PostgreSQL の状態",
            "停止が 10 秒続くと DatabaseConnectionError が発火する。 / Whether the exporter can log in.",
            "short",
            Query(f"pg_up{{{HOST}}}", "{{instance}}"),
            mappings=UP,
            steps=thresholds((1, GREEN), base=RED),
        ),
        stat(
            12,
            "役割",
            "主系か待機系か。 / Primary or standby.",
            "short",
            Query(f"pg_replication_is_replica{{{HOST}}}", "{{instance}}"),
            mappings=mapped(_0=("主系", GREEN), _1=("待機系", BLUE)),
            steps=thresholds(base=BLUE),
        ),
        stat(
            13,
            "接続の使用率",
            "上限に対するクライアント接続の割合。 / Connections of clients against max_connections.",
            "percentunit",
            Query(
                f'sum by (env, instance) (pg_stat_activity_count{{{HOST},backend_type="client backend"}}) '
                f"/ on (env, instance) pg_settings_max_connections{{{HOST}}}",
                "{{instance}}",
            ),
            sparkline=True,
            steps=thresholds((0.8, YELLOW), (0.9, RED)),
        ),
        stat(
            14,
            "レプリケーションの遅れ",
            "待機系で、再生がどれだけ遅れているか。 / On the standby: age of the last replayed transaction.",
            "s",
            Query(
                f"pg_replication_lag_seconds{{{HOST}}} and on (env, instance) pg_replication_is_replica{{{HOST}}} == 1",
                "{{instance}}",
            ),
            sparkline=True,
            none="待機系なし",
            steps=thresholds((30, YELLOW), (300, RED)),
        ),
        stat(
            15,
            "デッドロック(表示期間)",
            "互いに待ち合って打ち切られたトランザクション。 / Deadlocks in the time that is shown.",
            "short",
            Query(f"sum (increase(pg_stat_database_deadlocks{{{DATNAME}}}[$__range]))", "デッドロック"),
            decimals=0,
            steps=thresholds((1, ORANGE)),
        ),
        stat(
            16,
            "最も長いロック待ち",
            "いまロックを最も長く待っている時間。 / The longest wait for a lock right now.",
            "s",
            Query(f"max by (instance) (pg_lock_longest_wait_seconds{{{HOST}}})", "{{instance}}"),
            sparkline=True,
            steps=thresholds((5, YELLOW), (30, RED)),
        ),
        row(20, "接続とトランザクション"),
        graph(
            21,
            "データベース接続",
            "状態ごと。idle in transaction が続くとロックと掃除の妨げになる。 / Client connections by state.",
            "short",
            Query(f'sum by (state) (pg_stat_activity_count{{backend_type="client backend",{DATNAME}}})', "{{state}}"),
            Query(f"min (pg_settings_max_connections{{{HOST}}})", "上限"),
        ),
        graph(
            22,
            "トランザクション",
            "コミットとロールバック。 / Commits and rollbacks.",
            "ops",
            Query(f"sum by (datname) ({rate('pg_stat_database_xact_commit', DATNAME)})", "{{datname}} コミット"),
            Query(f"sum by (datname) ({rate('pg_stat_database_xact_rollback', DATNAME)})", "{{datname}} ロールバック"),
        ),
        graph(
            23,
            "最も長いトランザクション",
            "状態ごと。長いものは掃除(VACUUM)とマイグレーションを妨げる。 / Age of the oldest transaction by state.",
            "s",
            Query(f"max by (datname, state) (pg_stat_activity_max_tx_duration{{{DATNAME}}})", "{{datname}} {{state}}"),
        ),
        graph(
            24,
            "キャッシュのヒット率",
            "共有メモリで足りた割合。 / Share of blocks found in shared buffers.",
            "percentunit",
            Query(
                f"sum by (datname) ({rate('pg_stat_database_blks_hit', DATNAME)}) / "
                f"clamp_min(sum by (datname) ({rate('pg_stat_database_blks_hit', DATNAME)} + "
                f"{rate('pg_stat_database_blks_read', DATNAME)}), 0.001)",
                "{{datname}}",
            ),
            limits=(None, 1),
        ),
        row(30, "クエリ"),
        graph(
            31,
            "クエリの平均時間(遅い順に 10)",
            "queryid の本文は pg_stat_statements で分かる。 / Mean time of the ten slowest statements; "
            "pg_stat_statements has their text.",
            "s",
            Query(
                f"topk (10, sum by (datname, queryid) ({rate('pg_stat_statements_seconds_total', DATNAME)}) / "
                f"clamp_min(sum by (datname, queryid) ({rate('pg_stat_statements_calls_total', DATNAME)}), 0.000001))",
                "{{datname}} {{queryid}}",
            ),
            wide_legend=True,
        ),
        graph(
            32,
            "クエリの合計時間(多い順に 10)",
            "データベースの時間を使っているもの。1 は 1 コアを使い切る量。 / Where the database's time goes.",
            "short",
            Query(
                f"topk (10, sum by (datname, queryid) ({rate('pg_stat_statements_seconds_total', DATNAME)}))",
                "{{datname}} {{queryid}}",
            ),
            stacked=True,
            wide_legend=True,
        ),
        graph(
            33,
            "行の読み書き",
            "下向きが書き込み。 / Rows fetched; written point down.",
            "rowsps",
            Query(f"sum by (datname) ({rate('pg_stat_database_tup_fetched', DATNAME)})", "{{datname}} 読み込み"),
            Query(
                "sum by (datname) ("
                + " + ".join(
                    rate(f"pg_stat_database_tup_{verb}", DATNAME) for verb in ("inserted", "updated", "deleted")
                )
                + ")",
                "{{datname}} 書き込み",
            ),
            mirrored="/書き込み/",
        ),
        graph(
            34,
            "一時ファイル",
            "work_mem に収まらなかった並べ替えや結合。 / What did not fit into work_mem.",
            "Bps",
            Query(f"sum by (datname) ({rate('pg_stat_database_temp_bytes', DATNAME)})", "{{datname}}"),
        ),
        row(40, "ロック"),
        graph(
            41,
            "ロックの数(種類別)",
            "AccessExclusiveLock は表全体を止める。 / Locks by mode.",
            "short",
            Query(f"sum by (mode) (pg_locks_count{{{DATNAME}}})", "{{mode}}"),
            wide_legend=True,
        ),
        graph(
            42,
            "ロック待ち",
            "待っている接続の数と、最も長い待ち。 / Sessions that wait, and the longest wait.",
            "short",
            Query(
                f'sum (pg_stat_activity_count{{wait_event_type="Lock",{DATNAME}}}) or vector(0)',
                "待っている接続",
                "nobody waits for a lock",
            ),
            Query(f"max (pg_lock_longest_wait_seconds{{{HOST}}})", "最も長い待ち"),
            overrides=[
                {
                    "matcher": {"id": "byName", "options": "最も長い待ち"},
                    "properties": [{"id": "unit", "value": "s"}, {"id": "custom.axisPlacement", "value": "right"}],
                }
            ],
        ),
        row(50, "レプリケーションと容量"),
        graph(
            51,
            "レプリケーションの遅れ(時間)",
            "待機系で測ったもの。 / As the standby measures it.",
            "s",
            Query(
                f"pg_replication_lag_seconds{{{HOST}}} and on (env, instance) pg_replication_is_replica{{{HOST}}} == 1",
                "{{instance}}",
            ),
            steps=thresholds((30, YELLOW), (300, RED)),
            none="待機系なし",
            width=8,
        ),
        graph(
            52,
            "レプリケーションの遅れ(バイト)",
            "主系で測ったもの。待機系が消えると線も消える。 / As the primary measures it, for each standby.",
            "bytes",
            Query(
                f"max by (instance, application_name, client_addr) (pg_stat_replication_pg_wal_lsn_diff{{{HOST}}})",
                "{{instance}} → {{application_name}} {{client_addr}}",
            ),
            none="待機系なし",
            width=8,
        ),
        graph(
            53,
            "データベースの大きさ",
            "増え方を見る。 / Size by database.",
            "bytes",
            Query(f"pg_database_size_bytes{{{DATNAME}}}", "{{datname}}"),
            width=8,
        ),
        graph(
            54,
            "WAL の大きさ",
            "増え続けるならアーカイブかスロットが止まっている。 / It grows when archiving or a slot stands.",
            "bytes",
            Query(f"pg_wal_size_bytes{{{HOST}}}", "{{instance}}"),
            width=8,
        ),
        graph(
            55,
            "不要になった行(多い順に 10)",
            "掃除(autovacuum)が追いついているか。 / Dead rows by table.",
            "short",
            Query(f"topk (10, pg_stat_user_tables_n_dead_tup{{{DATNAME}}})", "{{schemaname}}.{{relname}}"),
            wide_legend=True,
            width=8,
        ),
        graph(
            56,
            "WAL アーカイブの失敗",
            "失敗が続くと、その時点への復元ができなくなり、ディスクも埋まる。 / Failures of archiving.",
            "ops",
            Query(f"{rate('pg_stat_archiver_failed_count', HOST)}", "{{instance}}"),
            width=8,
        ),
        graph(
            57,
            "スロットが残している WAL",
            "待機系やバックアップが止まると増え、ディスクを埋める。 / WAL that a slot keeps for who does not fetch it.",
            "bytes",
            Query(
                f"max by (instance, slot_name) (pg_replication_slots_pg_wal_lsn_diff{{{HOST}}})",
                "{{instance}} {{slot_name}}",
                "only with a replication slot",
            ),
            none="スロットなし",
        ),
        timeline(
            58,
            "エクスポーター",
            "指標を読めているか。 / Whether the exporter could read everything.",
            Query(f"min by (instance) (pg_scrape_collector_success{{{HOST}}})", "{{instance}}"),
            mappings=YES_IS_GOOD,
            steps=thresholds((1, GREEN), base=RED),
        ),
    ),
)

REDIS = Dashboard(
    "redis",
    "ShiftMaster - Redis",
    "メモリ、接続、命令、永続化。 / Memory, clients, commands, persistence.",
    (CHOOSE_ENV, choose_instance("redis")),
    (
        row(10, "概要"),
        stat(
            11,
            "Redis の状態",
            "エクスポーターがログインできるか。 / Whether the exporter can log in.",
            "short",
            Query(f"redis_up{{{HOST}}}", "{{instance}}"),
            mappings=UP,
            steps=thresholds((1, GREEN), base=RED),
            width=6,
        ),
        stat(
            12,
            "メモリの使用率",
            "上限(maxmemory)に対する割合。上限がなければ表示されない。 / Against maxmemory, where there is one.",
            "percentunit",
            Query(f"redis_memory_used_bytes{{{HOST}}} / (redis_memory_max_bytes{{{HOST}}} > 0)", "{{instance}}"),
            sparkline=True,
            none="上限なし",
            steps=thresholds((0.8, YELLOW), (0.9, RED)),
            width=6,
        ),
        stat(
            13,
            "接続の使用率",
            "上限(maxclients)に対する割合。 / Clients against maxclients.",
            "percentunit",
            Query(f"redis_connected_clients{{{HOST}}} / redis_max_clients{{{HOST}}}", "{{instance}}"),
            sparkline=True,
            steps=thresholds((0.8, YELLOW), (0.9, RED)),
            width=6,
        ),
        stat(
            14,
            "最後の保存",
            "最後のスナップショットと追記ファイルの書き込みが成功したか。 / Last snapshot, and the append-only file.",
            "short",
            Query(f"redis_rdb_last_bgsave_status{{{HOST}}}", "{{instance}} スナップショット"),
            Query(f"redis_aof_last_write_status{{{HOST}}}", "{{instance}} 追記ファイル"),
            mappings=YES_IS_GOOD,
            steps=thresholds((1, GREEN), base=RED),
            width=6,
        ),
        row(20, "メモリと鍵"),
        graph(
            21,
            "メモリ",
            "使用量、OS から見た量、上限。 / Used, resident, limit.",
            "bytes",
            Query(f"redis_memory_used_bytes{{{HOST}}}", "{{instance}} 使用"),
            Query(f"redis_memory_used_rss_bytes{{{HOST}}}", "{{instance}} 常駐"),
            Query(f"redis_memory_max_bytes{{{HOST}}}", "{{instance}} 上限"),
        ),
        graph(
            22,
            "追い出しと期限切れ",
            "追い出しは、メモリが足りずに消された鍵。キューの Redis では 0 であること。 / "
            "Evicted keys went for lack of memory.",
            "ops",
            Query(f"{rate('redis_evicted_keys_total', HOST)}", "{{instance}} 追い出し"),
            Query(f"{rate('redis_expired_keys_total', HOST)}", "{{instance}} 期限切れ"),
        ),
        graph(
            23,
            "鍵の数",
            "データベース番号ごと。 / Keys by database.",
            "short",
            Query(f"sum by (instance, db) (redis_db_keys{{{HOST}}})", "{{instance}} {{db}}"),
        ),
        graph(
            24,
            "キャッシュのヒット率",
            "探した鍵があった割合。 / Share of look-ups that found a key.",
            "percentunit",
            Query(
                f"{rate('redis_keyspace_hits_total', HOST)} / clamp_min({rate('redis_keyspace_hits_total', HOST)} + "
                f"{rate('redis_keyspace_misses_total', HOST)}, 0.001)",
                "{{instance}}",
            ),
            limits=(0, 1),
        ),
        row(30, "接続と命令"),
        graph(
            31,
            "接続",
            "つないでいるもの、待たされているもの(Celery のワーカーは待つのが普通)。 / Connected, and blocked: "
            "Celery's workers are.",
            "short",
            Query(f"redis_connected_clients{{{HOST}}}", "{{instance}} 接続"),
            Query(f"redis_blocked_clients{{{HOST}}}", "{{instance}} 待ち"),
        ),
        graph(
            32,
            "断られた接続",
            "0 以外なら maxclients に達している。 / Rejected: maxclients was reached.",
            "ops",
            Query(f"{rate('redis_rejected_connections_total', HOST)}", "{{instance}}"),
        ),
        graph(
            33,
            "命令(多い順に 10)",
            "1 秒あたりの命令。 / The ten most frequent commands.",
            "ops",
            Query(f"topk (10, sum by (cmd) ({rate('redis_commands_total', HOST)}))", "{{cmd}}"),
            stacked=True,
            wide_legend=True,
        ),
        graph(
            34,
            "命令の平均時間(遅い順に 10)",
            "1 ミリ秒を超えるものは、ほかの命令をすべて待たせる。 / Redis does one at a time: a slow one delays all.",
            "s",
            Query(
                f"topk (10, sum by (cmd) ({rate('redis_commands_duration_seconds_total', HOST)}) / "
                f"clamp_min(sum by (cmd) ({rate('redis_commands_total', HOST)}), 0.000001))",
                "{{cmd}}",
            ),
            wide_legend=True,
        ),
        graph(
            35,
            "通信量",
            "下向きが送信。 / Network; sent points down.",
            "Bps",
            Query(f"{rate('redis_net_input_bytes_total', HOST)}", "{{instance}} 受信"),
            Query(f"{rate('redis_net_output_bytes_total', HOST)}", "{{instance}} 送信"),
            mirrored="/送信/",
        ),
        graph(
            36,
            "最後のスナップショットから",
            "保存されていない変更は、再起動で失われうる(追記ファイルがあれば別)。 / Age of the last snapshot.",
            "s",
            Query(f"time() - redis_rdb_last_save_timestamp_seconds{{{HOST}}}", "{{instance}}"),
        ),
        graph(
            37,
            "断られた命令(理由別)",
            "OOM はメモリ不足、MISCONF は保存の失敗、NOPERM は権限。 / Commands that were refused, by reason.",
            "ops",
            Query(
                f"sum by (instance, err) ({rate('redis_errors_total', HOST)})",
                "{{instance}} {{err}}",
                "no command was refused yet",
            ),
            none="ありません",
        ),
        timeline(
            38,
            "エクスポーター",
            "指標を読めているか。 / Whether the exporter could read everything.",
            Query(f"1 - max by (instance) (redis_exporter_last_scrape_error{{{HOST}}})", "{{instance}}"),
            mappings=YES_IS_GOOD,
            steps=thresholds((1, GREEN), base=RED),
        ),
    ),
)

SITE = f'site=~"$site",{HOST}'

NGINX = Dashboard(
    "nginx",
    "ShiftMaster - nginx",
    "入口: 接続、応答、時間、証明書。 / The edge: connections, answers, times, certificates.",
    (
        CHOOSE_ENV,
        choose_instance("nginx"),
        Choice("site", "サイト", "サイト / site", f'nginx_http_requests_total{{job="mtail",{HOST}}}', "site"),
    ),
    (
        row(10, "概要"),
        stat(
            11,
            "nginx の状態",
            "エクスポーターが nginx の状態を読めるか。 / Whether nginx answers its exporter.",
            "short",
            Query(f"nginx_up{{{HOST}}}", "{{instance}}"),
            mappings=UP,
            steps=thresholds((1, GREEN), base=RED),
            width=6,
        ),
        stat(
            12,
            "外からの確認",
            "監視ホストがページを開けるか。 / Whether the page opens from the monitoring host.",
            "short",
            Query(f'probe_success{{job="blackbox-http",{ENV}}}', "{{instance}}"),
            mappings=UP,
            steps=thresholds((1, GREEN), base=RED),
            width=6,
        ),
        stat(
            13,
            "証明書の残り日数",
            "最も早く切れる証明書まで。 / Days until the certificate ends.",
            "d",
            Query(CERTIFICATE_DAYS, "{{instance}}"),
            decimals=0,
            steps=thresholds((7, ORANGE), (28, GREEN), base=RED),
            width=6,
        ),
        stat(
            14,
            "断られた接続(表示期間)",
            "受け付けたが処理できなかった接続。0 以外なら worker_connections が足りない。 / "
            "Accepted but not handled: worker_connections is too low.",
            "short",
            Query(
                f"increase(nginx_connections_accepted{{{HOST}}}[$__range]) - "
                f"increase(nginx_connections_handled{{{HOST}}}[$__range])",
                "{{instance}}",
            ),
            decimals=0,
            steps=thresholds((1, RED)),
            width=6,
        ),
        row(20, "応答"),
        graph(
            21,
            "応答の数(状態コード別)",
            "502 と 504 はアプリケーションが答えなかったもの、429 は制限にかかったもの。 / "
            "502 and 504: no answer of the application; 429: a limit.",
            "reqps",
            Query(
                f'sum by (status) (rate(nginx_http_requests_total{{job="mtail",{SITE}}}[$__rate_interval]))',
                "{{status}}",
            ),
            stacked=True,
            overrides=BY_STATUS,
        ),
        graph(
            22,
            "リクエスト(メソッド別)",
            "サイトとメソッドごと。 / By site and method.",
            "reqps",
            Query(
                f'sum by (site, method) (rate(nginx_http_requests_total{{job="mtail",{SITE}}}[$__rate_interval]))',
                "{{site}} {{method}}",
            ),
            stacked=True,
        ),
        graph(
            23,
            "応答までの時間",
            "利用者から見た時間(回線を含む)。 / As users have it, with their line.",
            "s",
            Query(quantile(0.95, "nginx_http_request_duration_seconds", SITE, "site"), "{{site}} p95"),
            Query(quantile(0.5, "nginx_http_request_duration_seconds", SITE, "site"), "{{site}} p50"),
            steps=thresholds((0.2, YELLOW), (2, RED)),
        ),
        graph(
            24,
            "アプリケーションを待った時間",
            "上との差は回線か nginx 自身。 / Time of the upstream; the rest is the line or nginx.",
            "s",
            Query(quantile(0.95, "nginx_http_upstream_duration_seconds", SITE, "site"), "{{site}} p95"),
            Query(quantile(0.5, "nginx_http_upstream_duration_seconds", SITE, "site"), "{{site}} p50"),
        ),
        graph(
            25,
            "送った量",
            "応答の大きさの合計。 / Bytes of answers.",
            "Bps",
            Query(f"sum by (site) ({rate('nginx_http_response_bytes_total', SITE)})", "{{site}}"),
        ),
        row(30, "接続"),
        graph(
            31,
            "接続",
            "同時接続数とその内訳。 / Concurrent connections.",
            "short",
            Query(f"nginx_connections_active{{{HOST}}}", "{{instance}} 全体"),
            Query(f"nginx_connections_reading{{{HOST}}}", "{{instance}} 受信中"),
            Query(f"nginx_connections_writing{{{HOST}}}", "{{instance}} 送信中"),
            Query(f"nginx_connections_waiting{{{HOST}}}", "{{instance}} 待機"),
        ),
        graph(
            32,
            "新しい接続",
            "1 秒あたり。急な増加は攻撃かもしれない。 / New connections a second.",
            "cps",
            Query(f"{rate('nginx_connections_accepted', HOST)}", "{{instance}}"),
        ),
        graph(
            33,
            "外からの確認にかかった時間(段階別)",
            "名前解決、接続、TLS、処理、転送。 / A probe's time by phase.",
            "s",
            Query(f'avg by (phase) (probe_http_duration_seconds{{job="blackbox-http",{ENV}}})', "{{phase}}"),
            stacked=True,
        ),
        graph(
            34,
            "読めなかったログの行",
            "アクセスログの形式が変わると増え、状態コードと時間の値が欠ける。 / Lines that mtail cannot read.",
            "ops",
            Query(rate("nginx_access_log_unknown_lines_total", HOST), "{{instance}}"),
        ),
    ),
)

QUEUE = f'queue=~"$queue",{HOST}'
TASK = f'task=~"$task",{HOST}'
TASKS = "shiftmaster_celery_tasks_total"

CELERY = Dashboard(
    "celery",
    "ShiftMaster - Celery",
    "裏で動く処理: 待ち、実行、失敗、ワーカー。 / Background tasks: waiting, running, failing, workers.",
    (
        CHOOSE_ENV,
        choose_instance("shiftmaster"),
        Choice("queue", "キュー", "キュー / queue", f"shiftmaster_celery_queue_length{{{HOST}}}", "queue"),
        Choice("task", "処理", "処理の名前 / task", f"{TASKS}{{{HOST}}}", "task"),
    ),
    (
        row(10, "概要"),
        stat(
            11,
            "待っている処理",
            "キューの長さ。 / Tasks that wait.",
            "short",
            Query(f"max by (env, queue) (shiftmaster_celery_queue_length{{{QUEUE}}})", "{{queue}}"),
            sparkline=True,
            steps=thresholds((100, YELLOW), (1000, RED)),
            width=6,
        ),
        stat(
            12,
            "最も古い処理",
            "キューの先頭が待っている時間。増え続けるならワーカーが止まっている。 / Age of the oldest waiting task.",
            "s",
            Query(
                f"max by (env, queue) (shiftmaster_celery_queue_oldest_task_age_seconds{{{QUEUE}}})",
                "{{queue}}",
            ),
            sparkline=True,
            steps=thresholds((60, YELLOW), (600, RED)),
            width=6,
        ),
        stat(
            13,
            "ワーカー",
            "直近に返事をしたワーカーのプロセス。 / Worker processes that answered lately.",
            "short",
            Query(f"sum by (env) (shiftmaster_celery_workers{{{HOST}}})", "{{env}}"),
            sparkline=True,
            steps=thresholds((1, GREEN), base=RED),
            width=6,
        ),
        stat(
            14,
            "失敗の割合",
            "終わった処理のうち失敗した割合。 / Share of tasks that failed.",
            "percentunit",
            Query(
                share(
                    f'sum (rate({TASKS}{{state="FAILURE",{TASK}}}[$__rate_interval]))',
                    f'sum (rate({TASKS}{{state=~"SUCCESS|FAILURE",{TASK}}}[$__rate_interval]))',
                ),
                "失敗",
            ),
            sparkline=True,
            decimals=1,
            steps=thresholds((0.01, YELLOW), (0.1, RED)),
            width=6,
        ),
        stat(
            15,
            "定期実行(beat)",
            "予定された処理を送るもの。ちょうど 1 つであること。 / The scheduler: exactly one.",
            "short",
            Query(
                f'sum by (env) (node_systemd_unit_state{{name=~"shiftmaster-beat@.+",state="active",{ENV}}})', "{{env}}"
            ),
            steps=thresholds((1, GREEN), (2, ORANGE), base=RED),
            width=24,
            height=3,
        ),
        row(20, "キュー"),
        graph(
            21,
            "キューの長さ",
            "キューごと。 / By queue.",
            "short",
            Query(f"max by (env, queue) (shiftmaster_celery_queue_length{{{QUEUE}}})", "{{queue}}"),
        ),
        graph(
            22,
            "最も古い処理の待ち時間",
            "キューごと。 / By queue.",
            "s",
            Query(
                f"max by (env, queue) (shiftmaster_celery_queue_oldest_task_age_seconds{{{QUEUE}}})",
                "{{queue}}",
            ),
            steps=thresholds((60, YELLOW), (600, RED)),
        ),
        graph(
            23,
            "始まるまでの時間",
            "送られてから実行が始まるまで。 / From publishing to the start.",
            "s",
            Query(quantile(0.95, "shiftmaster_celery_task_wait_seconds", QUEUE, "queue"), "{{queue}} p95"),
            Query(quantile(0.5, "shiftmaster_celery_task_wait_seconds", QUEUE, "queue"), "{{queue}} p50"),
        ),
        graph(
            24,
            "ワーカーの数",
            "デプロイの間は新旧が並ぶ。 / Two generations stand side by side during a deploy.",
            "short",
            Query(f"sum by (env) (shiftmaster_celery_workers{{{HOST}}})", "{{env}}"),
        ),
        row(30, "処理"),
        graph(
            31,
            "処理の数(結果別)",
            "1 秒あたり。 / Tasks a second by outcome.",
            "ops",
            Query(f"sum by (state) ({rate(TASKS, TASK)})", "{{state}}"),
            stacked=True,
        ),
        graph(
            32,
            "失敗(処理別)",
            "どの処理が失敗しているか。 / Failures by task.",
            "ops",
            Query(
                f'sum by (task) (rate({TASKS}{{state="FAILURE",{TASK}}}[$__rate_interval]))',
                "{{task}}",
            ),
            none="失敗はありません",
        ),
        graph(
            33,
            "実行時間 p95(遅い順に 10)",
            "どの処理が長いか。 / The ten slowest tasks.",
            "s",
            Query(f"topk (10, {quantile(0.95, 'shiftmaster_celery_task_duration_seconds', TASK, 'task')})", "{{task}}"),
            wide_legend=True,
        ),
        graph(
            34,
            "実行時間の合計(多い順に 10)",
            "ワーカーの時間を使っているもの。 / Where the workers' time goes.",
            "short",
            Query(
                f"topk (10, sum by (task) ({rate('shiftmaster_celery_task_duration_seconds_sum', TASK)}))", "{{task}}"
            ),
            stacked=True,
            wide_legend=True,
        ),
    ),
)

CONTAINER = f'name=~"$name",{HOST}'

CONTAINERS = Dashboard(
    "containers",
    "ShiftMaster - コンテナ",
    "Docker のコンテナ: 状態、健康、再起動、資源。 / Containers: state, health, restarts, resources.",
    (
        CHOOSE_ENV,
        Choice("instance", "ホスト", "表示するホスト / hosts", f"shiftmaster_containers{{{ENV}}}", "instance"),
        Choice("name", "コンテナ", "コンテナの名前 / container", f"shiftmaster_container_info{{{HOST}}}", "name"),
    ),
    (
        row(10, "概要"),
        stat(
            11,
            "コンテナの数",
            "状態ごと。 / By state.",
            "short",
            Query(f"sum by (state) (shiftmaster_containers{{{HOST}}})", "{{state}}"),
            steps=thresholds(base=BLUE),
            width=8,
        ),
        stat(
            12,
            "健康でないコンテナ",
            "ヘルスチェックに失敗しているもの。 / Containers whose health check fails.",
            "short",
            Query(f'sum (shiftmaster_container_health{{state="unhealthy",{CONTAINER}}})', "異常"),
            steps=thresholds((1, RED)),
            width=8,
        ),
        stat(
            13,
            "情報の古さ",
            "最後に集めてから。増え続けるなら収集が止まっている。 / Since the metrics were last collected.",
            "s",
            Query(f"time() - shiftmaster_containers_last_collected_timestamp_seconds{{{HOST}}}", "{{instance}}"),
            steps=thresholds((120, YELLOW), (600, RED)),
            width=8,
        ),
        row(20, "状態"),
        timeline(
            21,
            "稼働",
            "動いているか。 / Whether it runs.",
            Query(f"shiftmaster_container_running{{{CONTAINER}}}", "{{instance}} {{name}}"),
            mappings=UP,
            steps=thresholds((1, GREEN), base=RED),
        ),
        timeline(
            22,
            "ヘルスチェックの失敗",
            "異常と判定されているか。 / Whether its health check fails.",
            Query(f'shiftmaster_container_health{{state="unhealthy",{CONTAINER}}}', "{{instance}} {{name}}"),
            mappings=YES_IS_BAD,
            steps=thresholds((1, RED)),
        ),
        graph(
            23,
            "再起動",
            "1 時間あたりの回数。 / Restarts in an hour.",
            "short",
            Query(f"increase(shiftmaster_container_restarts_total{{{CONTAINER}}}[1h])", "{{instance}} {{name}}"),
            steps=thresholds((3, RED)),
        ),
        table(
            24,
            "コンテナの一覧",
            "名前とイメージ。値は動いていれば 1。 / Names and images.",
            Query(
                f"shiftmaster_container_running{{{CONTAINER}}} * on (env, instance, name) group_left (image) "
                f"shiftmaster_container_info{{{CONTAINER}}}"
            ),
            {"instance": "ホスト", "name": "コンテナ", "image": "イメージ", "Value": "状態"},
            sort="コンテナ",
            column_overrides=[column("状態", mappings=UP, cell={"type": "color-text"})],
        ),
        stat(
            25,
            "メモリ不足で終わったコンテナ",
            "最後の終了が OOM だったもの。 / Containers whose last end was out of memory.",
            "short",
            Query(f"sum by (instance) (shiftmaster_container_oom_killed{{{CONTAINER}}})", "{{instance}}"),
            steps=thresholds((1, RED)),
            width=12,
        ),
        stat(
            26,
            "異常な終了コードのコンテナ",
            "最後の終了コードが 0 でないもの。 / Containers whose last exit code is not 0.",
            "short",
            Query(f"sum by (instance) (shiftmaster_container_exit_code{{{CONTAINER}}} != bool 0)", "{{instance}}"),
            steps=thresholds((1, ORANGE)),
            width=12,
        ),
        row(30, "資源"),
        graph(
            31,
            "CPU",
            "1 は 1 コア。 / 1 is a core.",
            "short",
            Query(f"{rate('shiftmaster_container_cpu_seconds_total', CONTAINER)}", "{{instance}} {{name}}"),
            stacked=True,
            wide_legend=True,
        ),
        graph(
            32,
            "メモリ",
            "使用量。 / Memory in use.",
            "bytes",
            Query(f"shiftmaster_container_memory_bytes{{{CONTAINER}}}", "{{instance}} {{name}}"),
            stacked=True,
            wide_legend=True,
        ),
    ),
)

KINDS = {"database": "データベース", "files": "ファイル", "config": "設定"}

BACKUPS = Dashboard(
    "backups",
    "ShiftMaster - バックアップ",
    "最後の成功、かかった時間、大きさ、復元テスト。 / Last success, duration, size, restore test.",
    (
        CHOOSE_ENV,
        Choice(
            "kind",
            "種類",
            "バックアップの種類 / kind of backup",
            f"shiftmaster_backup_last_success_timestamp_seconds{{{ENV}}}",
            "kind",
        ),
    ),
    (
        row(10, "概要"),
        stat(
            11,
            "最後の成功から",
            "26 時間を超えたら、今日の分が取れていない。 / Time since the last good backup of each kind.",
            "s",
            Query(
                "time() - max by (env, kind) "
                f'(shiftmaster_backup_last_success_timestamp_seconds{{kind=~"$kind",{ENV}}})',
                "{{kind}}",
            ),
            none="記録なし",
            steps=thresholds((26 * 3600, ORANGE), (50 * 3600, RED)),
            width=12,
            height=5,
        ),
        stat(
            12,
            "最後の復元テストから",
            "復元できると確かめてからの時間。確かめていないバックアップは数えない。 / "
            "Time since a backup was restored, started and read.",
            "s",
            Query(RESTORE_AGE, "{{env}}"),
            none="記録なし",
            steps=thresholds((8 * 86400, ORANGE), (31 * 86400, RED)),
            width=6,
            height=5,
        ),
        stat(
            13,
            "最後の大きさの合計",
            "種類の合計。 / Sum of the last of each kind.",
            "bytes",
            Query(f'sum (shiftmaster_backup_size_bytes{{kind=~"$kind",{ENV}}})', "合計"),
            none="記録なし",
            steps=thresholds(base=BLUE),
            width=6,
            height=5,
        ),
        stat(
            14,
            "失敗した最後の実行",
            "1 は失敗。以前のバックアップは残っている。 / 1: the last run failed; what was saved before stays.",
            "short",
            Query(f'max by (env, kind) (shiftmaster_backup_failed{{kind=~"$kind",{ENV}}})', "{{kind}}"),
            none="記録なし",
            steps=thresholds((1, RED)),
            width=8,
            height=5,
        ),
        stat(
            15,
            "WAL の欠落",
            "欠落があると、その時点を含む復元ができない。 / Gaps in the archive: no restore to a moment behind one.",
            "short",
            Query(f"max by (env) (shiftmaster_backup_wal_gaps{{{ENV}}})", "{{env}}"),
            none="記録なし",
            steps=thresholds((1, RED)),
            width=8,
            height=5,
        ),
        stat(
            16,
            "院外への複製から",
            "院外の保管先へ複製し、読み戻してからの時間。 / Time since a run was brought outside and read there.",
            "s",
            Query(
                f"time() - max by (env) (shiftmaster_backup_offsite_last_success_timestamp_seconds{{{ENV}}})",
                "{{env}}",
                "needs a store outside",
            ),
            none="設定なし",
            steps=thresholds((50 * 3600, ORANGE)),
            width=8,
            height=5,
        ),
        row(20, "推移"),
        graph(
            21,
            "最後の成功からの時間",
            "のこぎりの形が正しい。上がり続けるなら失敗している。 / A saw is right; a slope is a failure.",
            "s",
            Query(
                "time() - max by (env, kind) "
                f'(shiftmaster_backup_last_success_timestamp_seconds{{kind=~"$kind",{ENV}}})',
                "{{kind}}",
            ),
            steps=thresholds((26 * 3600, ORANGE), (50 * 3600, RED)),
        ),
        graph(
            22,
            "かかった時間",
            "伸び続けるなら、時間帯や方式を見直す。 / Duration by kind.",
            "s",
            Query(f'max by (env, kind) (shiftmaster_backup_duration_seconds{{kind=~"$kind",{ENV}}})', "{{kind}}"),
        ),
        graph(
            23,
            "大きさ",
            "急に小さくなったら中身を疑う。 / Size by kind; a sudden drop is suspicious.",
            "bytes",
            Query(f'max by (env, kind) (shiftmaster_backup_size_bytes{{kind=~"$kind",{ENV}}})', "{{kind}}"),
        ),
        graph(
            24,
            "前の日との大きさの比",
            "1 が同じ大きさ。 / Size against that of a day before.",
            "percentunit",
            Query(
                f'max by (env, kind) (shiftmaster_backup_size_bytes{{kind=~"$kind",{ENV}}}) / '
                f'max by (env, kind) (shiftmaster_backup_size_bytes{{kind=~"$kind",{ENV}}} offset 1d)',
                "{{kind}}",
                "needs metrics of the day before",
            ),
            steps=thresholds((0.5, GREEN), base=RED),
        ),
    ),
    time="now-30d",
    refresh="5m",
)

RELEASES = f"count by (env, instance, version, release, colour) (shiftmaster_release_info{{{APP}}})"

DEPLOYS_BOARD = Dashboard(
    "deploys",
    "ShiftMaster - デプロイ",
    "どのリリースが動いているか、入れ替えの前後で何が変わったか。縦の線がデプロイ。 / "
    "What runs where, and what changed when it was swapped. Vertical lines are deploys.",
    (CHOOSE_ENV, choose_instance("shiftmaster")),
    (
        row(10, "いま動いているもの"),
        table(
            11,
            "ホストごとのリリース",
            "デプロイの間のほかは、すべてのホストで同じであること。 / The same on each host, but during a deploy.",
            Query(RELEASES),
            {"env": "環境", "instance": "ホスト", "version": "版", "release": "リリース", "colour": "色"},
            sort="ホスト",
            width=12,
            height=6,
        ),
        stat(
            12,
            "同時に動いている版の数",
            "1 であること。2 が続くなら、途中で止まったデプロイがある。 / "
            "Versions that run at the same time; two for long is a deploy that got stuck.",
            "short",
            Query(f"count by (env) (count by (env, version) (shiftmaster_release_info{{{APP}}}))", "{{env}}"),
            steps=thresholds((1, GREEN), (2, ORANGE), base=RED),
            width=4,
            height=6,
        ),
        stat(
            13,
            "リリースの数(表示期間)",
            "この期間に動いたリリース。 / Releases that have run in the time that is shown.",
            "short",
            Query(
                "count by (env) (count by (env, release) "
                f"(count_over_time(shiftmaster_release_info{{{APP}}}[$__range])))",
                "{{env}}",
            ),
            steps=thresholds(base=BLUE),
            width=4,
            height=6,
        ),
        stat(
            14,
            "抑止中のアラート",
            "有効なサイレンス。デプロイが終われば消える。 / Silences in force; a deploy lifts its own.",
            "short",
            Query(f'sum (alertmanager_silences{{state="active",{ENV}}})', "サイレンス"),
            steps=thresholds((1, YELLOW)),
            width=4,
            height=6,
        ),
        row(20, "前後の変化"),
        timeline(
            21,
            "リリースの移り変わり",
            "どのリリースがいつ動いていたか。 / Which release ran when.",
            Query(f"count by (env, version, release) (shiftmaster_release_info{{{APP}}})", "{{version}} ({{release}})"),
            steps=thresholds(base=BLUE),
            width=24,
            height=6,
        ),
        graph(
            22,
            "レスポンス時間",
            "入れ替えの前後で変わったか。 / Before and after.",
            "s",
            Query(quantile(0.95, "django_request_duration_seconds", APP), "p95"),
            Query(quantile(0.5, "django_request_duration_seconds", APP), "p50"),
            steps=thresholds((0.2, YELLOW), (2, RED)),
        ),
        graph(
            23,
            "エラー率(5xx)",
            "nginx から見たもの。 / As nginx counts it.",
            "percentunit",
            Query(ERROR_SHARE, "5xx", NEVER_FAILED),
            steps=thresholds((0.001, YELLOW), (0.01, RED)),
        ),
        graph(
            24,
            "応答の数(状態コード別)",
            "入れ替えの間に失われたリクエストがないこと。 / No request may be lost during a swap.",
            "reqps",
            Query(f"sum by (status) (rate({RESPONSES}{{{APP}}}[$__rate_interval]))", "{{status}}"),
            stacked=True,
            overrides=BY_STATUS,
        ),
        graph(
            25,
            "処理の失敗",
            "裏で動く処理の結果。 / Background tasks by outcome.",
            "ops",
            Query(f"sum by (state) ({rate(TASKS, APP)})", "{{state}}"),
            stacked=True,
        ),
        graph(
            26,
            "ワーカーの数",
            "入れ替えの間は新旧が並び、0 にはならない。 / Workers: both generations during a swap, never none.",
            "short",
            Query(f"sum by (instance) (shiftmaster_celery_workers{{{APP}}})", "{{instance}}"),
        ),
        graph(
            27,
            "ホストのメモリ使用率",
            "新旧が並ぶ間は増える。 / More while two generations stand side by side.",
            "percentunit",
            Query(MEMORY, "{{instance}}"),
            limits=(0, 1),
            steps=thresholds((0.85, YELLOW), (0.9, RED)),
        ),
    ),
    time="now-24h",
)

LOG_EVENTS = "shiftmaster_log_events_total"
NO_PIPELINE = "no host collects logs"
LOGS = Dashboard(
    "logs",
    "ShiftMaster - ログ",
    "ログの件数(mtail)と、収集の状態。本文は Kibana で検索する。 / Counts of events, and how their collection is.",
    (CHOOSE_ENV, choose_instance("node")),
    (
        row(10, "エラー"),
        stat(
            11,
            "CRITICAL(5 分)",
            "直近 5 分に記録された CRITICAL。 / Events of level CRITICAL in 5 minutes.",
            "short",
            Query(f'sum by (env) (increase({LOG_EVENTS}{{level="CRITICAL",{HOST}}}[5m]))', "{{env}}"),
            sparkline=True,
            decimals=0,
            steps=thresholds((0.5, RED)),
            width=6,
        ),
        stat(
            12,
            "ERROR(5 分)",
            "直近 5 分に記録された ERROR。 / Events of level ERROR in 5 minutes.",
            "short",
            Query(f'sum by (env) (increase({LOG_EVENTS}{{level="ERROR",{HOST}}}[5m]))', "{{env}}"),
            sparkline=True,
            decimals=0,
            steps=thresholds((1, YELLOW), (10, RED)),
            width=6,
        ),
        stat(
            13,
            "検索できるまでの時間",
            "書き込んだログが検索に現れるまで。 / How long a line takes to be found by search.",
            "s",
            Query(f"max by (env, instance) (shiftmaster_log_canary_seconds{{{HOST}}})", "{{instance}}", NO_PIPELINE),
            sparkline=True,
            steps=thresholds((15, YELLOW), (30, RED)),
            width=6,
        ),
        stat(
            14,
            "ログの到達",
            "確認用のログが一度だけ検索に現れたか。 / Whether the last line was found, once.",
            "short",
            Query(f"min by (env, instance) (shiftmaster_log_canary_success{{{HOST}}})", "{{instance}}", NO_PIPELINE),
            mappings=YES_IS_GOOD,
            steps=thresholds((1, GREEN), base=RED),
            width=6,
        ),
        graph(
            15,
            "ログの件数(レベル別)",
            "アプリケーションのログ。 / The application's events by level.",
            "short",
            Query(f"sum by (level) (rate({LOG_EVENTS}{{{HOST}}}[$__rate_interval]))", "{{level}}"),
            stacked=True,
        ),
        graph(
            16,
            "エラーの件数(ホスト別)",
            "ERROR と CRITICAL。 / ERROR and CRITICAL by host.",
            "short",
            Query(
                f'sum by (instance) (rate({LOG_EVENTS}{{level=~"ERROR|CRITICAL",{HOST}}}[$__rate_interval]))',
                "{{instance}}",
            ),
            stacked=True,
        ),
        row(20, "収集"),
        timeline(
            21,
            "各部の応答",
            "Filebeat、Logstash、Elasticsearch が応答するか。 / Whether the parts answer.",
            Query(f"min by (instance) (shiftmaster_filebeat_up{{{HOST}}})", "Filebeat {{instance}}", NO_PIPELINE),
            Query(f"min by (instance) (shiftmaster_logstash_up{{{HOST}}})", "Logstash {{instance}}", NO_PIPELINE),
            Query(
                f"min by (instance) (shiftmaster_elasticsearch_up{{{HOST}}})", "Elasticsearch {{instance}}", NO_PIPELINE
            ),
            mappings=UP,
            steps=thresholds((1, GREEN), base=RED),
            width=24,
            height=6,
        ),
        graph(
            22,
            "Logstash のキュー",
            "増え続けるなら Elasticsearch が受け付けていない。 / What waits for Elasticsearch.",
            "bytes",
            Query(f"shiftmaster_logstash_queue_bytes{{{HOST}}}", "{{instance}}", NO_PIPELINE),
            Query(f"shiftmaster_logstash_queue_max_bytes{{{HOST}}}", "{{instance}} 上限", NO_PIPELINE),
        ),
        graph(
            23,
            "送られたログ",
            "Filebeat が渡した件数と Logstash が書き込んだ件数。 / Handed over by Filebeat, written by Logstash.",
            "short",
            Query(
                f"sum (rate(shiftmaster_filebeat_events_acknowledged_total{{{HOST}}}[$__rate_interval]))",
                "Filebeat",
                NO_PIPELINE,
            ),
            Query(
                f"sum (rate(shiftmaster_logstash_events_out_total{{{HOST}}}[$__rate_interval]))",
                "Logstash",
                NO_PIPELINE,
            ),
        ),
        graph(
            24,
            "受け付けられなかったログ",
            "型が合わず退避されたもの。 / What Elasticsearch has refused for good.",
            "bytes",
            Query(f"shiftmaster_logstash_dead_letter_bytes{{{HOST}}}", "{{instance}}", NO_PIPELINE),
        ),
        graph(
            25,
            "最後の確認からの時間",
            "増え続けるなら確認が止まっている。 / Since a line was looked for.",
            "s",
            Query(f"time() - shiftmaster_log_canary_timestamp_seconds{{{HOST}}}", "{{instance}}", NO_PIPELINE),
            Query(
                f'time() - node_textfile_mtime_seconds{{{HOST},file=~"(.*/)?shiftmaster_logging[.]prom"}}',
                "{{instance}} (指標)",
                NO_PIPELINE,
            ),
        ),
        row(30, "Elasticsearch"),
        stat(
            31,
            "状態",
            "0 は green、1 は yellow、2 は red。 / Health of the cluster.",
            "short",
            Query(f"max by (env) (shiftmaster_elasticsearch_status{{{HOST}}})", "{{env}}", NO_PIPELINE),
            mappings=mapped(_0=("green", GREEN), _1=("yellow", YELLOW), _2=("red", RED)),
            steps=thresholds((1, YELLOW), (2, RED)),
            width=6,
        ),
        stat(
            32,
            "ディスク",
            "最も使われているノード。92 % で書き込みが止まる。 / The fullest node's disk.",
            "percentunit",
            Query(f"max by (env) (shiftmaster_elasticsearch_disk_used_ratio{{{HOST}}})", "{{env}}", NO_PIPELINE),
            sparkline=True,
            steps=thresholds((0.8, YELLOW), (0.85, RED)),
            width=6,
        ),
        stat(
            33,
            "シャード",
            "上限に対する割合。 / Share of the shards that it may have.",
            "percentunit",
            Query(f"max by (env) (shiftmaster_elasticsearch_shards_ratio{{{HOST}}})", "{{env}}", NO_PIPELINE),
            sparkline=True,
            steps=thresholds((0.6, YELLOW), (0.8, RED)),
            width=6,
        ),
        stat(
            34,
            "ライフサイクルの停止",
            "切り替えも削除もされないインデックス。 / Indexes whose lifecycle does not go on.",
            "short",
            Query(f"max by (env) (shiftmaster_elasticsearch_lifecycle_errors{{{HOST}}})", "{{env}}", NO_PIPELINE),
            steps=thresholds((1, RED)),
            width=6,
        ),
    ),
)

DASHBOARDS = (
    OVERVIEW,
    HOST_BOARD,
    APPLICATION,
    POSTGRESQL,
    REDIS,
    NGINX,
    CELERY,
    CONTAINERS,
    BACKUPS,
    DEPLOYS_BOARD,
    LOGS,
)


# Where each alert can be seen: these panels link to its runbook. Every alert stands on the dashboard that it names.
WATCHED: dict[str, dict[int, str]] = {
    "overview": {
        11: "ShiftMasterDown NoApplicationServes",
        16: "ExporterDown TargetMissing ProbesNotMade SiteUnreachable MonitoringIsolated",
        18: "CertificateExpiresSoon CertificateNearlyExpired",
        21: "AvailabilityBudgetBurnFast AvailabilityBudgetBurnSlow",
        22: "WebsiteDown OtherSiteDown",
        31: "HighResponseTime",
        41: "DatabaseConnectionError",
        51: "HighCPUUsage",
        52: "HighMemoryUsage",
        53: "DiskSpaceWarning",
        55: "ConfigReloadFailed",
        56: "AlertmanagerNotificationsFailing",
        57: "RuleEvaluationFailing RuleGroupTooSlow",
        58: "NodeCollectorFailing TextfileBroken",
        59: "ScrapeSlow",
        60: "PrometheusStorageFailing",
        61: "PrometheusNotificationsFailing AlertmanagerClusterDegraded",
    },
    "host": {
        12: "UnitFailed HostDown HostsDown HostRebooted",
        13: "ClockNotSynchronised ClockSkew",
        14: "OOMKill",
        21: "HighCPUUsage",
        24: "CPUPressure MemoryPressure IOPressure",
        31: "HighMemoryUsage",
        41: "DiskSpaceWarning DiskSpaceCritical",
        42: "DiskInodesWarning DiskInodesCritical InodesExhaustedPredicted",
        43: "DiskFullPredicted DiskFullSoon",
        44: "DiskSaturated",
        47: "FilesystemReadOnly DiskArrayDegraded DeviceErrors",
        51: "NetworkSaturated",
        52: "TCPRetransmits",
        53: "NetworkDrops ConntrackNearlyFull",
        54: "PacketLoss HostDown",
        56: "HostCertificateExpiresSoon HostCertificateNearlyExpired",
        61: "UnitFailed FileHandlesNearlyExhausted",
    },
    "application": {
        11: "ShiftMasterDown",
        12: "HighResponseTime",
        14: "HighErrorRate",
        21: "HighResponseTime",
        25: "SlowRequestsFrequent",
        42: "ErrorBudgetBurnFast ErrorBudgetBurnSlow LatencyBudgetBurnFast LatencyBudgetBurnSlow",
    },
    "postgresql": {
        11: "DatabaseConnectionError DatabasePrimaryLost DatabaseTwoPrimaries DatabaseChecksumFailures",
        13: "DatabaseConnectionsHigh DatabaseConnectionsExhausted",
        14: "ReplicationLag",
        15: "DatabaseDeadlocks",
        16: "DatabaseLockWait",
        23: "DatabaseLongTransaction DatabaseWraparoundNear",
        31: "DatabaseSlowQueries",
        42: "DatabaseLockQueue",
        52: "ReplicationStopped",
        54: "WalLimitNear",
        56: "WalArchivingFailing",
        57: "ReplicationSlotInactive ReplicationSlotRetainsWal",
        58: "PostgresExporterErrors",
    },
    "redis": {
        11: "RedisDown",
        12: "RedisMemoryHigh",
        13: "RedisConnectionsHigh",
        14: "RedisPersistenceFailing",
        22: "RedisEvictions",
        32: "RedisRejectedConnections",
        37: "RedisRefusesWrites",
        38: "RedisExporterErrors",
    },
    "nginx": {
        11: "NginxDown",
        12: "WebsiteDown",
        13: "CertificateExpiresSoon CertificateNearlyExpired",
        14: "NginxConnectionsDropped",
        21: "HighClientErrorRate HighErrorRate",
        34: "AccessLogUnreadable",
    },
    "celery": {
        13: "CeleryWorkersDown",
        15: "CeleryBeatMissing",
        21: "CeleryQueueGrowing",
        22: "CeleryQueueOld",
        32: "CeleryTaskFailures",
    },
    "containers": {
        13: "ContainerMetricsStale",
        21: "ContainerStopped",
        22: "ContainerUnhealthy",
        23: "ContainerRestarting",
        25: "ContainerOOMKilled",
    },
    "backups": {
        11: "BackupTooOld BackupDatabaseOverdue BackupMissing",
        12: "RestoreTestTooOld",
        14: "BackupFailed",
        15: "BackupWalGap",
        16: "OffsiteCopyTooOld",
    },
    "deploys": {},
    "logs": {
        11: "CriticalInLogs",
        12: "ErrorsInLogs",
        13: "LogCanarySlow",
        14: "LogCanaryLost",
        21: "FilebeatDown LogstashDown ElasticsearchDown",
        22: "LogQueueGrowing",
        24: "LogDeadLetters",
        25: "LogWatchStale LogMetricsStale",
        31: "ElasticsearchNotGreen",
        32: "ElasticsearchDiskWatermark",
        33: "ElasticsearchShardsNearLimit",
        34: "LogLifecycleErrors",
    },
}


def main() -> int:
    if "--queries" in sys.argv[1:]:
        for query in queries():
            print(json.dumps(query, ensure_ascii=False))
        return 0
    check = "--check" in sys.argv[1:]
    wanted = {board.path: text_of(board) for board in DASHBOARDS}
    # Others are the site's.
    found = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("shiftmaster-*.json")}
    outdated = sorted(path for path in {*wanted, *found} if wanted.get(path) != found.get(path))
    if not check:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for path in outdated:
            if path in wanted:
                path.write_text(wanted[path], encoding="utf-8")
            else:
                path.unlink()
    if outdated:
        names = ", ".join(str(path.relative_to(ROOT)) for path in outdated)
        print(("Not up to date (run scripts/dashboards.py): " if check else "Written: ") + names)
    return 1 if check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
