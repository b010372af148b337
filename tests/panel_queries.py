"""The queries of the dashboards, for a real Prometheus: each panel must have series."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import dashboards

SELECTOR = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\{[^{}]*\}")
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")
# Variables that Grafana sets itself, for a range of six hours at a scrape interval of 15 s.
BUILT_IN = {"__rate_interval": "1m", "__interval": "15s", "__range": "1h"}


def queries(**values: str) -> list[dict]:
    """Every query of every panel, annotation and variable, to be executed as it is.

    values: variables by name, where `.*` is not wanted, or `__rate_interval="5m"`.
    Each has: dashboard, panel (id, or what it is), title, expr, selectors (each vector in it: all of them must have
    series, since `or vector(0)` and a sum hide that a metric is gone), empty_when_healthy (a reason, mostly empty).
    """
    found = []
    common = dashboards.load("common", "ja")
    deploy = common["dashboard"]["annotations"]["list"][1]
    for name in dashboards.NAMES:
        board = dashboards.load(name, "ja")
        choices = [common["environment"], *board.get("variables", [])]
        requested = [
            (item["id"], item["title"], query["expr"], query.get("empty_when_healthy", ""))
            for row in board["rows"]
            for item in row["panels"]
            for query in item["queries"]
        ]
        requested.append(("annotation", deploy["name"], deploy["expr"], "only in the five minutes after a deploy"))
        for choice in choices:
            series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", choice["query"]).groups()
            expr = f"count by ({label}) ({series if '{' in series else series + '{}'})"
            requested.append((f"variable {choice['name']}", choice["title"], expr, ""))
        known = {**BUILT_IN, **{choice["name"]: ".*" for choice in choices}, **values}
        for panel_id, title, expr, empty in requested:
            final = VARIABLE.sub(lambda match, known=known: known[match[1] or match[2]], expr)
            found.append(
                {
                    "dashboard": f"shiftmaster-{name}",
                    "panel": panel_id,
                    "title": title,
                    "expr": final,
                    "selectors": sorted(set(SELECTOR.findall(final))),
                    "empty_when_healthy": empty,
                }
            )
    return found
