"""Dashboards are those of monitoring/panels, follow the rules of this repository, and every query parses.

Whether a query returns series is checked on a real Prometheus by the scenario `monitoring`, by the same `queries()`.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dashboards
import panel_queries
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
DIRECTORY = ROOT / "monitoring" / "dashboards"
FILES = sorted((DIRECTORY / "ja").glob("*.json"))
NAMES = (
    "overview", "host", "application", "postgresql", "redis", "nginx", "celery", "containers", "backups", "deploys",
    "logs",
)  # fmt: skip
OVERVIEW = "shiftmaster-overview"


QUERIES = panel_queries.queries()


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def ids(values):
    return [path.stem for path in values]


def with_rows(model):
    """Rows, and panels also where their row is closed."""
    return [one for panel in model["panels"] for one in (panel, *panel.get("panels", []))]


def panels_of(model):
    return [panel for panel in with_rows(model) if panel["type"] != "row"]


def panel_named(model, title):
    return next(panel for panel in with_rows(model) if panel["title"] == title)


# --- the rules --------------------------------------------------------------------------------------------------------

TYPES = {"timeseries", "stat", "bargauge", "table", "state-timeline"}
# Grafana's own names; a unit that it does not know is shown as text after the metric.
UNITS = {
    "short", "percentunit", "s", "d", "bytes", "Bps", "bps", "pps", "reqps", "ops", "rowsps", "cps", "dateTimeFromNow",
}  # fmt: skip
BUILT_IN = {"__rate_interval", "__interval", "__range", "__url_time_range", "__field", "__value", "__all"}
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
# Words with one name in both languages.
PRODUCT = re.compile(r"^(ShiftMaster - )?(PostgreSQL|Redis|nginx|Celery|CPU|systemd|Elasticsearch|Logstash|Filebeat)$")
WORDS = {
    "sum", "avg", "min", "max", "count", "topk", "rate", "increase", "clamp_min", "histogram_quantile", "abs", "time",
    "vector", "predict_linear", "avg_over_time", "count_over_time", "and", "or", "unless", "bool", "offset",
}  # fmt: skip


def variables_in(text):
    return {(match[1] or match[2]).split(".")[0] for match in re.finditer(r"\$(?:\{([\w.]+)(?::\w+)?\}|(\w+))", text)}


def strings_in(value):
    if isinstance(value, dict):
        for inner in value.values():
            yield from strings_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings_in(inner)
    elif isinstance(value, str):
        yield value


def query_problems(expr):
    """Problems of one PromQL expression, beyond the errors of a parser."""
    found = []
    for selector in re.findall(r"[\w:]+\{[^{}]*\}", expr):
        if "env=~" not in selector:
            found.append(f"{selector} mixes environments")
        if selector.startswith("nginx_http_requests_total") and "job=" not in selector:
            found.append(f"{selector} has two exporters: say which job")
    if re.search(r"\birate\s*\(", expr):
        found.append("irate shows a moment, not the interval")
    for window in re.findall(r"\brate\([^()]*\[([^\]]+)\]\)", expr):
        if window != "$__rate_interval":
            found.append(f"rate over [{window}]")
    rest = re.sub(r"[\w:]+\{[^{}]*\}", "", expr)
    rest = re.sub(r"\b(by|on|ignoring|without|group_left)\s*\([^()]*\)", "", rest)
    rest = re.sub(r"\[[^\]]*\]|\boffset \w+", "", rest)
    found += [
        f"{word} has no selector" for word in re.findall(r"(?<![\w.$])[a-zA-Z_:][\w:]*", rest) if word not in WORDS
    ]
    return found


def panel_problems(panel):
    if panel["type"] not in TYPES:
        yield f"type {panel['type']} is deprecated or unknown here"
        return
    defaults = panel["fieldConfig"]["defaults"]
    if defaults.get("unit") not in UNITS:
        yield f"unit {defaults.get('unit')}"
    if not JAPANESE.search(panel.get("description", "")):
        yield "no description in Japanese"
    if not panel["targets"]:
        yield "no query"
    if [target["refId"] for target in panel["targets"]] != [chr(65 + n) for n in range(len(panel["targets"]))]:
        yield "refIds"
    for target in panel["targets"]:
        yield from query_problems(target["expr"])
        if panel["type"] not in ("table",) and target["legendFormat"] in ("", "__auto"):
            yield "a series without a name"
        if target["instant"] == target["range"]:
            yield "instant or range"
    steps = [step["value"] for step in defaults["thresholds"]["steps"]]
    if steps[0] is not None or steps[1:] != sorted(steps[1:]):
        yield "thresholds are not in order"
    if defaults.get("max") == 1 and defaults["unit"] != "percentunit":
        yield "a limit of 1 for what is no share"
    if panel["type"] == "timeseries" and panel["options"]["tooltip"]["mode"] != "multi":
        yield "a tooltip of one series"


def model_problems(model):
    found = []
    if "dashboard" in model or "id" in model:
        found.append("a wrapper or an id of some Grafana")
    if model["editable"] is not False:
        found.append("editable")
    if not 36 <= model["schemaVersion"] <= 41:
        found.append("schemaVersion")
    for value in [model, *with_rows(model)]:
        if not JAPANESE.search(value["title"]) and not PRODUCT.search(value["title"]):
            found.append(f"{value['title']}: title is not Japanese")
    numbers = [panel["id"] for panel in with_rows(model)]
    if len(set(numbers)) != len(numbers):
        found.append("panel ids")
    titles = [panel["title"] for panel in panels_of(model)]
    if len(set(titles)) != len(titles):
        found.append("panel titles")
    # Where it stands: inside the 24 columns, over no other that is shown with it.
    rows = {panel["id"]: row["id"] for row in model["panels"] for panel in row.get("panels", [])}
    taken = {}
    for panel in with_rows(model):
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            found.append(f"{panel['title']}: outside")
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                key = (rows.get(panel["id"]), x, y)
                if taken.setdefault(key, panel["id"]) != panel["id"]:
                    found.append(f"{panel['title']}: overlaps {taken[key]}")
    found += [f"{panel['title']}: {problem}" for panel in panels_of(model) for problem in panel_problems(panel)]
    # Every data source is the one that is chosen.
    annotations = [item for item in model["annotations"]["list"] if not item.get("builtIn")]
    for item in annotations:
        found += query_problems(item["expr"])
    targets = [target for panel in panels_of(model) for target in panel["targets"]]
    querying = [item for item in model["templating"]["list"] if item["type"] == "query"]
    for item in [*panels_of(model), *targets, *annotations, *querying]:
        if item.get("datasource") != {"type": "prometheus", "uid": "${datasource}"}:
            found.append(f"{item.get('title') or item.get('name') or item.get('expr')}: datasource")
    # Variables: what is used is defined, what is defined is used, those of a choice work for all and for several.
    defined = [item["name"] for item in model["templating"]["list"]]
    used = set().union(*(variables_in(text) for text in strings_in(model)))
    if unknown := used - set(defined) - BUILT_IN:
        found.append(f"undefined variables {sorted(unknown)}")
    requested = [target["expr"] for target in targets]
    for item in querying:
        if not any(item["name"] in variables_in(expr) for expr in requested):
            found.append(f"variable {item['name']} is not used")
        if not (item["multi"] and item["includeAll"] and item["allValue"] == ".*"):
            found.append(f"variable {item['name']} cannot show all")
        before = defined[: defined.index(item["name"])]
        if variables_in(item["definition"]) - set(before):
            found.append(f"variable {item['name']} depends on a later one")
    # A chosen value is a pattern: `=` would compare with "a|b".
    for expr in requested:
        found += [f'{text} is not matched by "=~"' for text in re.findall(r'\w+(?:=|!=)"\$\w+[^"]*"', expr)]
    # Links to dashboards and runbooks.
    if not [item for item in annotations if "shiftmaster_release_info{" in item["expr"]]:
        found.append("deploys are not shown")
    for text in strings_in(model):
        for name in re.findall(r"/d/([\w-]+)", text):
            if name.removeprefix("shiftmaster-") not in NAMES:
                found.append(f"a link to {name}")
    if [item["type"] for item in model["links"]] != ["dashboards", "link"]:
        found.append("links")
    return found


@pytest.fixture(scope="module")
def models():
    return {path.stem: load(path) for path in FILES}


def test_files_are_those_of_the_script():
    result = subprocess.run(
        [sys.executable, "scripts/dashboards.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def same_in_both(value, key=""):
    """The model without its texts; a runbook has an ending by language."""
    if isinstance(value, dict):
        return {
            name: same_in_both(item, name)
            for name, item in value.items()
            if name not in TEXTS and not (key == "renameByName" and isinstance(item, str))
        }
    if isinstance(value, list):
        return [same_in_both(item) for item in value]
    if isinstance(value, str) and JAPANESE.search(value):
        return f"{value} is Japanese"
    return value.replace(".ja.md", ".md") if isinstance(value, str) else value


# A name is that of an annotation or of a variable, options also are the title of a column.
TEXTS = {"title", "description", "label", "legendFormat", "noValue", "text", "tooltip", "displayName", "textFormat",
         "titleFormat", "name", "options"}  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_languages_differ_in_their_texts_only(path):
    ja, en = load(path), load(DIRECTORY / "en" / path.name)
    assert [text for text in strings_in(en) if JAPANESE.search(text)] == []
    assert same_in_both(ja) == same_in_both(en)
    assert [panel["options"].keys() for panel in panels_of(ja)] == [panel["options"].keys() for panel in panels_of(en)]
    runbooks = [text for text in strings_in(ja) if re.search("docs/runbooks/.", text)]
    assert runbooks and all(text.endswith(".ja.md") for text in runbooks) or path.stem == "shiftmaster-deploys"
    assert not [text for text in strings_in(en) if text.endswith(".ja.md")]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"widht": 4}, "widht"), ({"mappings": "nothing"}, "nothing"), ({"type": "graph"}, "graph")],
)
def test_an_unknown_key_is_an_error(change, message):
    item = {"id": 11, "type": "stat", "title": "a", "description": "b", "queries": [{"expr": "up{}"}]}
    common = dashboards.load("common", "ja")
    assert dashboards.panel(item, common)["id"] == 11
    with pytest.raises((KeyError, ValueError), match=message):
        dashboards.panel({**item, **change}, common)


def test_only_the_first_row_and_those_of_the_application_on_the_overview_are_open(models):
    for uid, model in models.items():
        rows = {panel["id"]: panel["collapsed"] for panel in model["panels"] if panel["type"] == "row"}
        first_row, *others = rows
        assert [row for row in others if not rows[row]] == ([30, 40, 50] if uid == OVERVIEW else []), uid
        assert not rows[first_row], uid


def by_row(model):
    """Lists of panels, one a row."""
    found = []
    for panel in model["panels"]:
        if panel["type"] == "row":
            found.append([*panel["panels"]])
        else:
            found[-1].append(panel)
    return found


def is_by_host(panel):
    return "instance" in panel["targets"][0]["legendFormat"]


def test_aggregates_come_before_series_by_host(models):
    """With 200 hosts a graph by host is a last resort. Stats of a service show its few hosts by name."""
    for uid, model in models.items():
        for panels in by_row(model):
            graphs = [panel for panel in panels if panel["type"] not in ("stat", "table")]
            assert [panel["id"] for panel in graphs] == [panel["id"] for panel in sorted(graphs, key=is_by_host)], uid
    first_row = by_row(models["shiftmaster-host"])[0]
    assert len(first_row) > 4 and not any(map(is_by_host, first_row))
    graphs = [panel for panel in panels_of(models[OVERVIEW]) if panel["type"] == "timeseries"]
    assert not any(map(is_by_host, graphs))


def test_each_model_has_its_pinned_name(models):
    assert set(models) == {f"shiftmaster-{name}" for name in NAMES}
    assert {stem: model["uid"] for stem, model in models.items()} == {stem: stem for stem in models}
    assert len({model["title"] for model in models.values()}) == len(NAMES)
    # A uid of more than 40 characters is refused by Grafana.
    assert max(map(len, models)) <= 40


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_dashboards_follow_the_rules(path):
    assert model_problems(load(path)) == []


def first(model, kind="timeseries"):
    return next(panel for panel in panels_of(model) if panel["type"] == kind)


def replaced(panel, old, new):
    for target in panel["targets"]:
        target["expr"] = target["expr"].replace(old, new)


# Each breaks one rule; a rule that has never failed verifies nothing.
BREAKS = {
    "editable": lambda m: m.update(editable=True),
    "a wrapper": lambda m: m.update(dashboard={}),
    "schemaVersion": lambda m: m.update(schemaVersion=16),
    "type graph": lambda m: first(m).update(type="graph"),
    "title is not Japanese": lambda m: first(m).update(title="Response time"),
    "panel ids": lambda m: first(m).update(id=m["panels"][0]["id"]),
    "panel titles": lambda m: first(m).update(title=first(m, "stat")["title"]),
    "overlaps": lambda m: first(m)["gridPos"].update(y=0),
    "outside": lambda m: first(m)["gridPos"].update(w=25),
    "no description": lambda m: first(m).update(description="p95"),
    "unit none": lambda m: first(m)["fieldConfig"]["defaults"].update(unit="none"),
    "thresholds are not": lambda m: first(m)["fieldConfig"]["defaults"]["thresholds"]["steps"].reverse(),
    "rate over [5m]": lambda m: replaced(first(m), "$__rate_interval", "5m"),
    "irate": lambda m: replaced(first(m), "rate(", "irate("),
    "mixes environments": lambda m: replaced(first(m), 'env=~"$env"', 'job="x"'),
    "has no selector": lambda m: first(m)["targets"][0].update(expr="sum (node_load1)"),
    "say which job": lambda m: first(m)["targets"][0].update(expr='nginx_http_requests_total{env=~"$env"}'),
    'is not matched by "=~"': lambda m: replaced(first(m), '=~"$env"', '="$env"'),
    "undefined variables ['wrong']": lambda m: replaced(first(m), "$env", "$wrong"),
    "variable instance is not used": lambda m: [replaced(p, "$instance", "$env") for p in panels_of(m)],
    "cannot show all": lambda m: m["templating"]["list"][-1].update(allValue=None),
    "depends on a later one": lambda m: m["templating"]["list"].reverse(),
    "a series without a name": lambda m: first(m)["targets"][0].update(legendFormat="__auto"),
    "refIds": lambda m: first(m)["targets"][0].update(refId="B"),
    "instant or range": lambda m: first(m)["targets"][0].update(instant=True),
    "tooltip": lambda m: first(m)["options"]["tooltip"].update(mode="single"),
    "datasource": lambda m: first(m)["targets"][0].update(datasource={"type": "prometheus", "uid": "prometheus"}),
    "deploys are not shown": lambda m: m["annotations"]["list"].pop(),
    "a link to nothing": lambda m: first(m)["links"].append({"url": "/d/nothing"}),
    "links": lambda m: m["links"].pop(),
}


@pytest.mark.parametrize("problem", BREAKS)
def test_the_rules_detect_faults(problem, models):
    model = copy.deepcopy(models[OVERVIEW])
    BREAKS[problem](model)
    assert [found for found in model_problems(model) if problem in found], model_problems(model)


# --- requirements of guide and contract -------------------------------------------------------------------------------


def test_the_guides_panels_are_on_the_overview(models):
    overview = models[OVERVIEW]
    assert overview["title"] == "ShiftMaster - システム概要"
    state, times, connections = (
        panel_named(overview, title) for title in ("アプリケーション状態", "レスポンス時間", "データベース接続")
    )
    assert state["type"] == "stat" and times["type"] == connections["type"] == "timeseries"
    assert state["targets"][0]["expr"] == 'up{job="shiftmaster",env=~"$env"}'
    assert re.sub(r"\s", "", times["targets"][0]["expr"]) == (
        'histogram_quantile(0.95,sumby(le)(rate(django_request_duration_seconds_bucket{env=~"$env"}[$__rate_interval])))'
    )
    assert "pg_stat_activity_count{" in connections["targets"][0]["expr"]


@pytest.mark.parametrize(
    ("title", "value"),
    [("CPU 使用率", 0.8), ("メモリ使用率", 0.85), ("ディスク使用率(最大)", 0.8), ("レスポンス時間", 2)],
)
def test_thresholds_are_the_guides(models, title, value):
    steps = panel_named(models[OVERVIEW], title)["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert value in [step["value"] for step in steps]


@pytest.fixture(scope="module")
def alerts():
    """{alert: dashboard} of the rules."""
    found = {}
    for path in (ROOT / "monitoring" / "rules").glob("*.yml"):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    found[rule["alert"]] = rule["annotations"]["dashboard"]
    assert found
    return found


def runbooks_of(model):
    return {name for text in strings_in(model) for name in re.findall(r"/docs/runbooks/(\w+)\.(?:ja\.)?md", text)}


def test_the_guides_alerts_can_be_followed(models):
    assert {
        "ShiftMasterDown", "HighResponseTime", "DatabaseConnectionError", "HighCPUUsage", "HighMemoryUsage",
        "DiskSpaceWarning",
    } <= runbooks_of(models[OVERVIEW])  # fmt: skip


def test_a_runbook_is_that_of_an_alert(models, alerts):
    assert set().union(*map(runbooks_of, models.values())) - set(alerts) == set()


def test_an_alert_is_visible_on_the_dashboard_that_it_names(models, alerts):
    # Watchdog always fires: there is nothing to see.
    blind = {alert for alert, uid in alerts.items() if alert not in runbooks_of(models[uid])} - {"Watchdog"}
    assert blind == set()


def test_recorded_series_are_those_of_the_rules(alerts):
    recorded = {
        rule["record"]
        for path in (ROOT / "monitoring" / "rules").glob("*.yml")
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    used = {selector.split("{")[0] for query in QUERIES for selector in query["selectors"]}
    assert {name for name in used if ":" in name} - recorded == set()


# --- queries ----------------------------------------------------------------------------------------------------------


def test_states_of_tasks_are_those_that_are_counted():
    source = (ROOT / "shiftmaster_monitoring/shiftmaster_monitoring/tasks.py").read_text(encoding="utf-8")
    known = set(re.findall(r'"(\w+)"', re.search(r"^STATES = \((.*)\)$", source, re.M)[1]))
    rules = [path.read_text(encoding="utf-8") for path in (ROOT / "monitoring" / "rules").glob("*.yml")]
    requested = "\n".join([one["expr"] for one in QUERIES] + rules)
    found = re.findall(r'shiftmaster_celery_tasks_total\{[^}]*?\bstate=~?"([^"]*)"', requested)
    assert found and {state for value in found for state in value.split("|")} <= known


def test_queries_name_their_panel_and_leave_no_variable(models):
    assert [query for query in QUERIES if "$" in query["expr"]] == []
    assert [query for query in QUERIES if not query["selectors"]] == []
    listed = {(query["dashboard"], query["panel"]) for query in QUERIES if isinstance(query["panel"], int)}
    assert listed == {(uid, panel["id"]) for uid, model in models.items() for panel in panels_of(model)}
    chosen = panel_queries.queries(env="production", instance="db1|db2", __rate_interval="5m")
    cpu = next(query for query in chosen if query["dashboard"] == "shiftmaster-host" and query["panel"] == 21)
    assert cpu["selectors"] == ['node_cpu_seconds_total{mode="idle",env=~"production",instance=~"db1|db2"}']
    assert "[5m]" in cpu["expr"]


def promtool():
    found = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if not found:
        pytest.skip("promtool is not installed")
    return found


def parsed(expressions, directory):
    """promtool's output on the expressions, each as a recording rule of its own."""
    rules = [{"record": f"query:{number}", "expr": expr} for number, expr in enumerate(expressions)]
    path = directory / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    return subprocess.run([promtool(), "check", "rules", str(path)], capture_output=True, text=True, check=False)


def test_every_query_parses(tmp_path):
    result = parsed([query["expr"] for query in QUERIES], tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(QUERIES)} rules found" in result.stdout
    assert parsed(["sum by (le (up{})"], tmp_path).returncode != 0


# --- shape ------------------------------------------------------------------------------------------------------------


def lost(before, after, path=""):
    """Fields that Grafana's own types drop or change; added defaults do not count."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key not in after:
                # Their encoder leaves out what is null.
                if value is not None and not NOT_TYPED.fullmatch(f"{path}.{key}"):
                    yield f"{path}.{key}"
            else:
                yield from lost(value, after[key], f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after)):
            yield from lost(one, other, f"{path}[{number}]")
    elif before != after:
        yield f"{path}: {before!r} is {after!r}"


# Grafana writes and reads these; its types leave them out.
NOT_TYPED = re.compile(
    r"\.annotations\.list\[\d+\]\.(step|tagKeys|textFormat|titleFormat|target\.\w+)|\.templating\.list\[\d+\]\.definition"
)


def through_grafanas_types(model):
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    return json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(copy.deepcopy(model))))


def test_grafanas_own_types_contain_every_field():
    found = {path: load(path) for path in DIRECTORY.glob("*/*.json")}
    assert len(found) == 2 * len(NAMES)
    problems = {str(path): list(lost(model, through_grafanas_types(model))) for path, model in found.items()}
    assert {path: lines for path, lines in problems.items() if lines} == {}


def test_grafanas_own_types_detect_a_wrong_name(models):
    model = copy.deepcopy(models[OVERVIEW])
    first(model)["options"]["tooltip"]["moode"] = "multi"
    first(model)["fieldConfig"]["defaults"]["custom"]["lineWith"] = 2
    assert len(list(lost(model, through_grafanas_types(model)))) == 2
