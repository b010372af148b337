#!/usr/bin/env python3
"""Writes monitoring/dashboards/{ja,en}/*.json from monitoring/panels/; with --check, lists outdated ones.

monitoring/panels/<name>.yml is the source of the dashboard shiftmaster-<name>; common.yml holds what all share. Every
text is {ja, en}, or a string that is the same in both. A dashboard has a title, a description, variables, and rows of
panels; the first row is open, another one where marked. FIELDS lists the fields of a panel; any other is an error.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import generated
import yaml
from generated import ROOT

SOURCES = ROOT / "monitoring" / "panels"
DASHBOARDS = ROOT / "monitoring" / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
PLUGIN_VERSION = "11.0.0"
LANGUAGES = ("ja", "en")

FIELDS = {
    "id": "stays with the panel: links and screenshots name it; a row has the tens, its panels the numbers after it",
    "type": "a key of common.yml's `types`",
    "title": "unique on the dashboard",
    "description": "what it shows, and what to think of it",
    "queries": "PromQL, each metric with its selector in braces, each selector with the environment; legend; "
    "empty_when_healthy: why there are no series while all is healthy",
    "alerts": "alerts that can be seen here: links to their runbooks",
    "unit": "as Grafana names it",
    "width": "of 24 columns",
    "height": "in rows of the grid",
    "min": "of the axis",
    "max": "of the axis",
    "decimals": "digits after the point",
    "no_value": "shown in place of `No data`",
    "thresholds": "{base: color, value: color, …}; base is green by default",
    "mappings": "a key of common.yml's `mappings`, or {value: [text, color]}",
    "links": "{dashboard: title}",
    "link_to_host": "whether a series leads to the dashboard of its host",
    "overrides": "a key of common.yml's `overrides`, or {letter of a query, or a pattern of series: {property: value}}",
    "stacked": "whether series are stacked",
    "legend_table": "whether the legend is a table with values",
    "sparkline": "whether a value is shown with its history",
    "mirrored": "letter of the query whose series point down",
    "columns": "of a table: label, title, properties of the column; runbook_link: title of a link to a runbook",
    "sort": "label by which a table is sorted",
}


NAMES = sorted(path.stem for path in SOURCES.glob("*.yml") if path.stem != "common")


def localized(value: Any, language: str) -> Any:
    if isinstance(value, dict):
        if value.keys() == set(LANGUAGES):
            return value[language]
        return {name: localized(item, language) for name, item in value.items()}
    return [localized(item, language) for item in value] if isinstance(value, list) else value


def load(name: str, language: str) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return localized(yaml.load((SOURCES / f"{name}.yml").read_text(encoding="utf-8"), loader), language)


def merged(base: Any, more: Any) -> Any:
    if isinstance(base, dict) and isinstance(more, dict):
        return {**base, **{key: merged(base.get(key), value) for key, value in more.items()}}
    return more


def mapped(values: dict[Any, list[str]]) -> list[dict[str, Any]]:
    options = {
        str(value): {"color": color, "index": index, "text": text}
        for index, (value, (text, color)) in enumerate(values.items())
    }
    return [{"options": options, "type": "value"}]


def named(value: Any, known: dict[str, Any]) -> Any:
    return known[value] if isinstance(value, str) else value


def override(matcher: str, options: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "matcher": {"id": matcher, "options": options},
        "properties": [{"id": name, "value": value} for name, value in properties.items()],
    }


def to(name: str, title: str, more: str = "") -> dict[str, Any]:
    """A link to another of the dashboards, with the environment and the time that are shown."""
    url = f"/d/shiftmaster-{name}?${{env:queryparam}}{more}&${{__url_time_range}}"
    return {"title": title, "url": url, "targetBlank": False}


def runbook(title: str, alert: str, common: dict[str, Any]) -> dict[str, Any]:
    url = "${runbook_url_base}/docs/runbooks/" + alert + common["texts"]["runbook_ending"]
    return {"title": title, "url": url, "targetBlank": True}


def column(item: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """How one column of a table looks."""
    properties = {name: value for name, value in item.items() if name not in ("label", "title")}
    if "mappings" in item:
        properties["mappings"] = mapped(named(item["mappings"], common["mappings"]))
    if "runbook_link" in item:
        properties = {"links": [runbook(item["runbook_link"], "${__value.text}", common)]}
    names = {"cell": "custom.cellOptions", "width": "custom.width"}
    return override("byName", item["title"], {names.get(name, name): value for name, value in properties.items()})


def panel(item: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    if unknown := item.keys() - FIELDS:
        raise ValueError(f"panel {item['id']}: unknown fields {sorted(unknown)}")
    kind = item["type"]
    settings = common["types"][kind]
    for flag, change in common["flags"].items():
        if item.get(flag) and (flag != "thresholds" or kind == "timeseries"):
            settings = merged(settings, change)
    settings = {**settings, **item}
    columns = {one["label"]: one["title"] for one in item.get("columns", [])}
    options = merged(
        settings["options"],
        {"sortBy": [{"desc": False, "displayName": columns[item["sort"]]}]} if "sort" in item else {},
    )
    overrides = [
        override("byFrameRefID" if len(match) == 1 else "byRegexp", match, properties)
        for match, properties in named(item.get("overrides", {}), common["overrides"]).items()
    ]
    overrides += [column(one, common) for one in item.get("columns", []) if len(one) > 2]
    if "mirrored" in item:
        overrides.append(override("byFrameRefID", item["mirrored"], {"custom.transform": "negative-Y"}))
    steps = {"base": "green", **item.get("thresholds", {})}
    defaults = {
        "color": {"mode": settings["color"]},
        "custom": settings["custom"],
        "decimals": settings.get("decimals"),
        "links": [to("host", common["texts"]["host"], "&var-instance=${__field.labels.instance}")]
        if "link_to_host" in item
        else [],
        "mappings": mapped(named(item["mappings"], common["mappings"])) if "mappings" in item else [],
        "max": settings.get("max"),
        "min": settings["min"],
        "noValue": settings.get("no_value"),
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": color, "value": None if value == "base" else value} for value, color in steps.items()],
        },
        "unit": settings["unit"],
    }
    return {
        "id": item["id"],
        "type": kind,
        "title": item["title"],
        "description": item["description"],
        "pluginVersion": PLUGIN_VERSION,
        "datasource": DATASOURCE,
        # place() fills in where it stands.
        "gridPos": {"h": settings["height"], "w": settings["width"], "x": 0, "y": 0},
        "links": [runbook(f"{common['texts']['runbook']}: {alert}", alert, common) for alert in item.get("alerts", [])]
        + [to(*link) for link in item.get("links", {}).items()],
        "fieldConfig": {
            "defaults": {name: value for name, value in defaults.items() if value is not None},
            "overrides": overrides,
        },
        "options": options,
        "targets": [
            {
                "datasource": DATASOURCE,
                "editorMode": "code",
                "expr": query["expr"],
                "format": "table" if kind == "table" else "time_series",
                "instant": settings["instant"],
                "legendFormat": query.get("legend", "__auto"),
                "range": not settings["instant"],
                "refId": chr(ord("A") + index),
            }
            for index, query in enumerate(item["queries"])
        ],
        "transformations": [
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
        ]
        if columns
        else [],
    }


def place(panels: list[dict[str, Any]], top: int) -> int:
    """Set each panel where it stands highest, then furthest left; return where the next row begins."""
    floor = [top] * 24
    for item in panels:
        width, height = item["gridPos"]["w"], item["gridPos"]["h"]
        y, x = min((max(floor[x : x + width]), x) for x in range(25 - width))
        floor[x : x + width] = [y + height] * width
        item["gridPos"] = {"h": height, "w": width, "x": x, "y": y}
    return max(floor)


def rows(board: dict[str, Any], common: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows; those that are closed have their panels inside, as Grafana saves them."""
    found, y = [], 0
    for number, row in enumerate(board["rows"]):
        closed = number > 0 and not row.get("open")
        panels = [panel(item, common) for item in row["panels"]]
        end = place(panels, y + 1)
        found.append(
            {
                "id": row["id"],
                "type": "row",
                "title": row["title"],
                "collapsed": closed,
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
                "panels": panels if closed else [],
            }
        )
        found += [] if closed else panels
        y = y + 1 if closed else end
    return found


def variable(choice: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": choice["name"],
        "label": choice["title"],
        "description": choice["description"],
        "definition": choice["query"],
        "query": {"qryType": 1, "query": choice["query"], "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        **common["variable"],
    }


def model(name: str, language: str) -> dict[str, Any]:
    """The plain model, as Grafana's own export has it."""
    board, common = load(name, language), load("common", language)
    found = {
        "uid": f"shiftmaster-{name}",
        "title": board["title"],
        "description": board["description"],
        **common["dashboard"],
    }
    found["refresh"] = board.get("refresh", found["refresh"])
    found["time"] = merged(found["time"], {"from": board["time"]} if "time" in board else {})
    choices = [common["environment"], *board.get("variables", [])]
    found["templating"]["list"] += [variable(choice, common) for choice in choices]
    return {**found, "panels": rows(board, common)}


def text_of(board: dict[str, Any]) -> str:
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

    return "{\n " + ",\n ".join(entry(*item) for item in board.items()) + "\n}\n"


if __name__ == "__main__":
    wanted = {
        DASHBOARDS / language / f"shiftmaster-{name}.json": text_of(model(name, language))
        for language in LANGUAGES
        for name in NAMES
    }
    # Others are the site's.
    sys.exit(generated.main(wanted, DASHBOARDS.glob("**/shiftmaster-*.json"), "scripts/dashboards.py"))
