"""What is measured is there: every target, every series that a rule, a recording or a panel names."""

from __future__ import annotations

import json
import re
import sys

import pytest
import yaml
from support import ROOT, load, wait_for

sys.path.insert(0, str(ROOT / "scripts"))
import dashboards

RULES = sorted((ROOT / "monitoring/rules").glob("*.yml"))
# A name, with its matchers, that is no function, keyword, label list or duration.
LABELS = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
SELECTOR = re.compile(r"(?<![\w:\"])([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^{}]*\})?(?!\s*\(|[\w:\"])")
KEYWORDS = {
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "inf",
    "nan",
}


def selectors(expression: str) -> set:
    text = LABELS.sub("", re.sub(r"\[[^\]]*\]", "", expression))
    # Values of matchers hold words, too.
    found = set()
    for match in SELECTOR.finditer(re.sub(r'"[^"]*"', lambda value: value[0].replace("(", "\x01"), text)):
        name, matchers = match[1], (match[2] or "").replace("\x01", "(")
        inside = text.rfind("{", 0, match.start()) > text.rfind("}", 0, match.start())
        if name not in KEYWORDS and not inside:
            found.add(name + matchers)
    return found


@pytest.fixture(scope="module")
def used(hosts, watch):
    """Some minutes of use: pages, tasks, transactions."""
    with load(hosts.app, "--clients", "4", "--think-seconds", "0.5", seconds=900):
        wait_for(lambda: watch.query("rate(django_request_duration_seconds_count[1m]) > 0"), 120, "requests")
        hosts.app.python("from roster.tasks import record_run; [record_run.delay('seen', 0) for _ in range(5)]")
        wait_for(lambda: watch.query("increase(shiftmaster_celery_tasks_total[2m]) > 0"), 180, "tasks")
        yield watch


def test_every_target_is_up(watch):
    jobs = {one["metric"]["job"] for one in watch.query("up")}
    assert jobs >= {
        "shiftmaster", "postgres", "node", "redis", "nginx", "mtail", "blackbox-http", "blackbox-icmp", "blackbox",
        "prometheus", "alertmanager",
    }  # fmt: skip
    assert watch.query("up == 0") == [] and watch.query("probe_success == 0") == []
    assert {one["metric"]["instance"] for one in watch.query("up{job='node'}")} == {
        "monitoring-trixie", "monitoring-watch", "monitoring-standby",
    }  # fmt: skip


def test_every_series_of_every_rule_is_there(used):
    absent = {}
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                name = rule.get("alert") or rule["record"]
                for selector in selectors(rule["expr"]):
                    if not used.query(selector):
                        absent.setdefault(name, []).append(selector)
    assert absent == {}


def test_every_query_of_every_panel_has_series(used):
    absent = {}
    for one in dashboards.queries(__rate_interval="2m"):
        if one["empty_when_healthy"]:
            used.query(one["expr"])
            continue
        missing = [selector for selector in one["selectors"] if not used.query(selector)]
        if missing or not used.query(one["expr"]):
            absent[f"{one['dashboard']}: {one['title']}"] = missing or one["expr"]
    assert absent == {}


def test_rules_are_evaluated(watch):
    groups = json.loads(watch.ask("https://localhost:9090/api/v1/rules"))["data"]["groups"]
    assert {rule["name"] for group in groups for rule in group["rules"] if rule["health"] != "ok"} == set()


@pytest.mark.parametrize("path", ["/metrics", "/shiftmaster/metrics", "/mtail/metrics", "/metrics/"])
def test_the_public_site_shows_no_figures(hosts, watch, path):
    code = watch.shell(f"curl -skS -o /dev/null -w '%{{http_code}}' https://shift.example.test{path}")
    assert code == "404"


@pytest.mark.parametrize(
    "address",
    ["9100/metrics", "9187/metrics", "9121/metrics", "9113/metrics", "9443/mtail/metrics", "9443/shiftmaster/metrics"],
)
def test_nothing_is_read_without_a_password(hosts, watch, address):
    url = f"https://172.30.78.10:{address}"
    assert watch.shell(f"curl -skS -m 10 -o /dev/null -w '%{{http_code}}' {url}") == "401"
    # Others do not even come to the door.
    assert hosts.standby.shell(f"curl -skS -m 4 {url}", check=False) == ""


@pytest.mark.parametrize("port", [9090, 9093, 9100, 9115])
def test_nobody_else_reaches_what_watches(hosts, watch, port):
    assert hosts.app.shell(f"curl -skS -m 4 https://172.30.78.20:{port}/", check=False) == ""
    assert watch.shell(f"curl -skS -m 4 -o /dev/null -w '%{{http_code}}' https://localhost:{port}/metrics") == "401"


def test_a_second_run_changes_nothing(hosts, watch):
    run = hosts.app.run("deploy.yml", "--tags", "monitoring", shiftmaster_version="2.0.0")
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]
    run = hosts.app.run("deploy.yml", "--tags", "monitoring", "--check", shiftmaster_version="2.0.0")
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]
