"""The alert catalogue, its output, and its inhibitions."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import generated
import messages
import offenders
import pytest
import rendered
import yaml

ROOT = Path(__file__).resolve().parents[3]
MONITORING = ROOT / "monitoring"
DASHBOARDS = {
    f"shiftmaster-{name}"
    for name in "overview host application postgresql redis nginx celery containers backups deploys logs".split()
}
JAPANESE = re.compile(r"[぀-ヿ一-鿿]")


def module(path, monkeypatch=None):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        loaded = importlib.util.module_from_spec(spec)
        # alert_tests imports alerts.
        sys.modules[path.stem] = loaded
        spec.loader.exec_module(loaded)
        return loaded
    finally:
        sys.path.remove(str(ROOT / "scripts"))


alerts_script = module(ROOT / "scripts/alerts.py")
tests_script = module(ROOT / "tests/alert_tests.py")
CATALOGUE = alerts_script.catalogue()
BY_NAME = {alert["name"]: alert for alert in CATALOGUE}
needs_promtool = pytest.mark.skipif(
    tests_script.promtool() is None, reason="promtool is neither in $PROMTOOL nor on PATH"
)


def each_alert(alerts=CATALOGUE):
    return offenders.each(alerts, lambda alert: alert["name"])


# --- what is committed is what is made ------------------------------------------------------------------------------


def test_rules_and_runbooks_are_up_to_date():
    done = subprocess.run(
        [sys.executable, "scripts/alerts.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_a_file_that_nothing_makes_any_more_is_removed(tmp_path):
    one, two, old = (tmp_path / "rules" / f"{name}.yml" for name in ("one", "two", "old"))
    made = {one: "1\n", two: "2\n"}
    assert generated.refresh(made, [], check=False) == [one, two]
    assert generated.refresh(made, [], check=True) == []
    old.write_text("0\n")
    one.write_text("changed\n")
    assert generated.refresh(made, [one, old], check=True) == [old, one]
    assert old.exists()
    generated.refresh(made, [one, old], check=False)
    assert not old.exists() and one.read_text() == "1\n"


# --- the catalogue --------------------------------------------------------------------------------------------------


def test_names_are_unique():
    assert len(BY_NAME) == len(CATALOGUE)


@each_alert()
def test_entry_is_complete(alert):
    fields = set(alerts_script.FIELDS)
    assert fields - set(alert) - alerts_script.OPTIONAL == set()
    assert set(alert) - fields - {"source"} == set()
    assert re.fullmatch(r"[A-Z][A-Za-z]+", alert["name"])
    assert re.fullmatch(r"\d+[smhd]", alert["for"])
    assert alert["severity"] in alerts_script.SEVERITIES
    assert alert["service"] in alerts_script.SERVICES
    assert alert["where"] in alerts_script.WHERE
    assert alert["dashboard"] in DASHBOARDS
    assert alert["inspect"] and alert["causes"]


def texts(alert):
    """[(where, {en, ja})]"""
    found = [(field, alert[field]) for field in ("summary", "description", "meaning")]
    for number, cause in enumerate(alert["causes"], 1):
        found.append((f"cause {number}", cause["cause"]))
        if "advice" in cause:
            found.append((f"advice {number}", cause["advice"]))
    return found


@each_alert()
def test_texts_of_both_languages_have_the_same_fields(alert):
    for where, text in texts(alert):
        assert set(text) == {"en", "ja"}, where
        assert not JAPANESE.search(text["en"]), where
        assert JAPANESE.search(text["ja"]), where
        placeholders = {language: sorted(set(re.findall(r"{{.*?}}", text[language]))) for language in text}
        # A label may be in the summary of one language and in its description only in the other.
        if where != "description":
            assert placeholders["en"] == placeholders["ja"], where
        names = {language: set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text[language])) for language in text}
        assert names["en"] == names["ja"], where
    for language in ("en", "ja"):
        assert len(alert["summary"][language]) <= 160
        assert "\n" not in alert["summary"][language] + alert["description"][language]


@each_alert()
def test_description_shows_the_same_values_in_both_languages(alert):
    def shown(language):
        return set(re.findall(r"{{.*?}}", alert["summary"][language] + alert["description"][language]))

    assert shown("en") == shown("ja")


@each_alert()
def test_each_cause_has_a_check_and_what_to_do(alert):
    for cause in alert["causes"]:
        assert set(cause) <= {"cause", "check", "fix", "advice"}
        assert cause["check"] and (cause.get("fix") or cause.get("advice")), cause["cause"]["en"]


def test_alerts_that_are_never_sent():
    """NoApplicationServes silences others: ShiftMasterDown or HostDown of each host is sent."""
    unsent = [alert["name"] for alert in CATALOGUE if alert["severity"] == "none"]
    assert unsent == ["NoApplicationServes", "Watchdog"]


def test_japanese_lines_are_joined_without_a_space():
    assert alerts_script.joined({"ja": "通信が 途絶えて いる PostgreSQL の 行", "en": "a b"}) == {
        "ja": "通信が途絶えている PostgreSQL の行",
        "en": "a b",
    }


# --- the six of the operations guide --------------------------------------------------------------------------------

GUIDE = {
    # name: (severity, for, a part of its expression)
    "ShiftMasterDown": ("critical", "30s", ['up{job="shiftmaster"} == 0']),
    "HighResponseTime": (
        "warning",
        "2m",
        ["histogram_quantile(0.95, sum by (env, le) (rate(django_request_duration_seconds_bucket[5m]))) > 2"],
    ),
    "DatabaseConnectionError": ("critical", "10s", ["pg_up == 0"]),
    "HighCPUUsage": (
        "warning",
        "2m",
        ['(100 - (avg by (env, instance) (rate(node_cpu_seconds_total{mode="idle"}[2m])) * 100)) > 80'],
    ),
    "HighMemoryUsage": (
        "warning",
        "2m",
        [
            "((node_memory_MemTotal_bytes - node_memory_MemAvailable_bytes) / node_memory_MemTotal_bytes) * 100 > 85",
        ],
    ),
    "DiskSpaceWarning": ("warning", "2m", ["node_filesystem_free_bytes", 'fstype!~"tmpfs|', ") * 100 > 80"]),
}


def test_the_six_alerts_of_the_guide_are_as_in_the_guide():
    groups = alerts_script.groups(CATALOGUE)["shiftmaster.yml"]
    assert [group["name"] for group in groups] == ["shiftmaster.alerts"]
    rules = {rule["alert"]: rule for rule in groups[0]["rules"]}
    assert set(rules) == set(GUIDE)
    for name, (severity, duration, parts) in GUIDE.items():
        assert rules[name]["labels"]["severity"] == severity, name
        assert rules[name]["for"] == duration, name
        assert [part for part in parts if part not in rules[name]["expr"]] == [], name


def test_shiftmaster_down_can_arrive_within_60_seconds():
    """Scrape 5 s, evaluation, duration, and 10 s in which Alertmanager collects a group."""
    groups = yaml.safe_load((MONITORING / "rules/shiftmaster.yml").read_text(encoding="utf-8"))["groups"]
    evaluation = alerts_script.seconds(groups[0]["interval"])
    assert 5 + 5 + evaluation + alerts_script.seconds(BY_NAME["ShiftMasterDown"]["for"]) + 10 <= 60


AGGREGATION = re.compile(
    r"\b(?:sum|min|max|avg|count|group|stddev|stdvar|topk|bottomk|quantile|count_values|limitk|limit_ratio)\s*(?:(by|without)\s*\(([^)]*)\))?\s*\("
    r"|\b(on|ignoring)\s*\(([^)]*)\)"
)
# All that this Prometheus measures, whichever environment it is of.
OF_PROMETHEUS = {"Watchdog", "MonitoringIsolated"}
UNLESS_ISOLATED = 'unless on () ALERTS{alertname="MonitoringIsolated"}'


def put_together(expr):
    """The parts of an expression in which series of two environments meet."""
    found = []
    for match in AGGREGATION.finditer(expr):
        word, labels = match[1] or match[3] or "by", re.findall(r"\w+", match[2] or match[4] or "")
        if ("env" in labels) is (word in ("without", "ignoring")):
            found.append(match[0])
    return found


@pytest.mark.parametrize(
    ("expr", "part"),
    [("sum(a)", "sum("), ("sum (a) by (env)", "sum ("), ("max by (job) (a)", "max by (job) ("),
     ("max without (env, b) (a)", "max without (env, b) ("), ("topk(1, a)", "topk("),
     ("a and on (instance) b", "on (instance)"),
     ("a and on () b", "on ()"), ("a / ignoring (env) b", "ignoring (env)"), ("quantile by (env) (0.5, a)", None),
     ("a and on (env, b) max without (c) (d)", None), ("max_over_time(a[1h]) / ignoring (b) c", None)],
)  # fmt: skip
def test_an_expression_in_which_environments_meet_is_found(expr, part):
    assert put_together(expr) == ([part] if part else [])


@each_alert([alert for alert in CATALOGUE if alert["name"] not in OF_PROMETHEUS])
def test_environments_are_never_put_together(alert):
    assert put_together(alert["expr"].replace(UNLESS_ISOLATED, "")) == []
    # Queries of a template, with the label that its text names or shows.
    for query in re.findall(r'printf "([^"]*)"', alerts_script.notify(alert)):
        selectors = re.findall(r"\b\w+{[^}]*}", query)
        assert selectors and [one for one in selectors if not re.search(r"\benv='%(\[1\])?s'", one)] == [], query
        assert "$labels.env" in alerts_script.notify(alert)


def test_recordings_never_put_environments_together():
    rules = [rule for group in alerts_script.groups(CATALOGUE)["recordings.yml"] for rule in group["rules"]]
    assert [(rule["record"], put_together(rule["expr"])) for rule in rules if put_together(rule["expr"])] == []


# --- rules ----------------------------------------------------------------------------------------------------------


@each_alert()
def test_rule_has_the_labels_and_annotations_that_notifications_need(alert):
    made = alerts_script.rule(alert)
    assert set(made["labels"]) <= {"severity", "service", "notify", "depends_on"}
    # Alerts that are not critical page no one; a template gives one of two words.
    words = set(re.findall(r"\b(?:page|business_hours|report)\b", made["labels"].get("notify", "")))
    allowed = {"critical": [{"page"}, {"business_hours"}, {"page", "business_hours"}], "none": [set()]}
    assert words in allowed.get(alert["severity"], [{"report"}])
    assert {"severity", "service"} <= set(made["labels"])
    assert set(made["annotations"]) == {
        "summary",
        "summary_ja",
        "description",
        "description_ja",
        "runbook_url",
        "dashboard",
    }
    for suffix in (".md", ".ja.md"):
        assert (ROOT / made["annotations"]["runbook_url"].replace(".md", suffix)).is_file()


def test_recorded_series_are_those_that_are_used():
    """A recording without a reader is unused, and an alert on a missing recording never fires."""
    content = yaml.safe_load((MONITORING / "rules/recordings.yml").read_text(encoding="utf-8"))
    rules = [rule for group in content["groups"] for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules}
    name = re.compile(r"\b(?:shiftmaster|slo)(?::\w+)+")
    used = {found for alert in CATALOGUE for found in name.findall(alert["expr"])}
    used |= {found for rule in rules for found in name.findall(rule["expr"])}
    assert used - recorded == set()
    # Recordings for dashboards are used there.
    assert {found for found in recorded - used if not found.startswith("slo:")} == set()


def test_outages_are_defined_by_alerts_that_exist():
    text = (MONITORING / "recordings.yml").read_text(encoding="utf-8")
    names = re.search(r'alertname=~"([^"]+)"', text)[1].split("|")
    assert [name for name in names if BY_NAME[name]["severity"] not in ("critical", "none")] == []


def test_windows_become_rules():
    group = {
        "interval_seconds": 15,
        "rules": [
            {"record": "a:rate<window>", "expr": "sum_over_time(b[<window>])", "windows": ["5m", "1h"]},
            {"record": "c", "expr": "d", "labels": {"slo": "errors"}},
        ],
    }
    assert alerts_script.recordings(group) == [
        {"record": "a:rate5m", "expr": "sum_over_time(b[5m])"},
        {"record": "a:rate1h", "expr": "sum_over_time(b[1h])"},
        {"record": "c", "expr": "d", "labels": {"slo": "errors"}},
    ]


@needs_promtool
def test_promtool_accepts_the_rules_and_passes_their_tests(capsys):
    assert tests_script.run([]) == 0, capsys.readouterr().out[-5000:]


# --- commands -------------------------------------------------------------------------------------------------------

# On every host, by Debian's base system, this repository's packages, or the service that the alert is about.
KNOWN = set(
    """ansible ansible-playbook apt-get awk cat certbot chronyc curl date df docker du filebeat find findmnt free getent
    grep head ip journalctl ls mount nft nginx openssl patronictl pg_lsclusters pgrep promtool ps redis-cli
    shiftmasterctl sort ss sudo systemctl systemd-cgtop systemd-tmpfiles tail top uniq uptime xargs""".split()
)
UNITS = re.compile(
    r"^(shiftmaster(-\*|-(web|worker|beat)@\*)?|nginx|postgresql|etcd|patroni@\d+-main|redis-server|redis-sentinel|haproxy|keepalived"
    r"|docker|chrony|certbot|logrotate|networking"
    r"|apt-daily(-upgrade)?|mtail(\.service)?|elasticsearch|logstash|kibana|filebeat|shiftmaster-(log-watch|host-metrics)(\.timer)?"
    r"|grafana-server\.service|prometheus(-\*|-alertmanager)?"
    r"|prometheus-(\*|node|postgres|redis|nginx|blackbox)-exporter(\.service)?)$"
)


def commands(alert):
    found = list(alert["inspect"])
    for cause in alert["causes"]:
        found += [cause[part] for part in ("check", "fix") if part in cause]
    return found


def programs(command):
    """The first word of each part of a pipe."""
    words, first = [], True
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    for word in lexer:
        if first:
            words.append(word)
        first = word in ("|", ";", "&&", "||")
    return words


@functools.cache
def documents():
    """The rules that hold for commands in the guides hold here."""
    return module(ROOT / "tests/unit/repository/test_docs.py")


@functools.cache
def hosts():
    groups = yaml.safe_load((ROOT / "inventory/production/hosts.yml").read_text())["all"]["children"]
    # Group monitoring comes with its roles.
    return {"all", "monitoring", *groups}


@each_alert()
def test_commands_are_those_of_this_repository_or_of_a_host(alert):
    for command in commands(alert):
        assert set(programs(command)) <= KNOWN, command
        words = shlex.split(command)
        if words[0] == "ansible-playbook":
            assert documents().playbook_faults(words) == [], command
        if words[0] == "ansible":
            assert words[1] in hosts(), command
        units = re.findall(r"(?:-u|--unit) (\S+)", command)
        if words[0] == "systemctl" and words[1] in ("status", "start", "stop", "restart", "reload", "cat"):
            units += [word for word in words[2:] if not word.startswith("-")]
        units = [unit for unit in (unit.strip("'") for unit in units) if unit not in ("postgres", "|")]
        assert [unit for unit in units if not UNITS.match(unit)] == [], command


def test_commands_are_shell():
    text = "\n".join(command for alert in CATALOGUE for command in commands(alert))
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@each_alert()
def test_variables_that_are_named_exist(alert):
    known = documents().variables() | {path.stem for path in (ROOT / "library").rglob("*.py")}
    output = " ".join([*commands(alert), *(text["en"] for _, text in texts(alert))])
    # Logs and metrics are files, not variables.
    roles = "shiftmaster|postgresql|redis|base|nginx|firewall|tls"
    named = set(re.findall(rf"\b(?:{roles})_[a-z_]+\b(?!\.(?:log|prom))", output))
    assert named - known == set()


# --- cases and mutants ----------------------------------------------------------------------------------------------


def test_every_alert_has_a_case_in_which_it_fires_and_a_near_one_in_which_it_does_not():
    cases = tests_script.cases()
    assert set(cases) == set(BY_NAME)
    assert [name for name, case in cases.items() if not case["fires"]] == []
    assert [name for name, case in cases.items() if not case["silent"]] == []


def test_mutants_change_each_number_comparison_duration_and_label():
    alert = {**BY_NAME["HighMemoryUsage"], "expr": 'a{b="5",d!~"e|f"}[5m] / c5{d!~"e|f"} * 100 > 85 and d >= 0.5'}
    alert["depends_on"] = ["web"]
    made = {
        what.split("[")[-1].rstrip("]") if what[0] in "…{" else what: rule for what, rule in tests_script.mutants(alert)
    }
    assert set(made) == {
        *("100 → 110", "100 → 90", "85 → 93.5", "85 → 76.5", "0.5 → 0.55", "0.5 → 0.45"),
        *("> → >=", "> → <", ">= → >", ">= → <", "5 → other", "e|f → other"),
        *("5m → 600s", "5m → 150s", "for [2m → 135s]", "for [2m → 105s]"),
        *("label severity [warning → other]", "label service [host → other]", "label depends_on [web → other]"),
        "label notify [report → other]",
    }
    assert made["5m → 600s"]["expr"] == 'a{b="5",d!~"e|f"}[600s] / c5{d!~"e|f"} * 100 > 85 and d >= 0.5'
    assert made["85 → 93.5"]["expr"] == 'a{b="5",d!~"e|f"}[5m] / c5{d!~"e|f"} * 100 > 93.5 and d >= 0.5'
    assert made["e|f → other"]["expr"] == 'a{b="5",d!~"other"}[5m] / c5{d!~"other"} * 100 > 85 and d >= 0.5'


def test_mutants_change_offsets_and_the_labels_by_which_series_meet():
    made = [expr for _what, expr in tests_script.changed_expressions("x", "sum by (a, b) (x offset 1h) and on (c) y")]
    assert made == [
        "sum by (b) (x offset 1h) and on (c) y",
        "sum by (a) (x offset 1h) and on (c) y",
        "sum by (a, b) (x offset 1h) and on () y",
        "sum by (a, b) (x offset 7200s) and on (c) y",
        "sum by (a, b) (x offset 1800s) and on (c) y",
    ]


def test_mutants_of_recordings_change_one_rule_of_all():
    complete = yaml.safe_load((tests_script.RULES / "recordings.yml").read_text(encoding="utf-8"))
    made = list(tests_script.recorded_mutants())
    assert len(made) > 200
    reported = " ".join(what for what, _record, _rules in made)
    for part in ("0.001 → 0.0011", "0.05 → 0.045", 'le="0.2"', "5m → 600s", "label slo", "by (env) [env → nothing]"):
        assert part in reported, part

    def rules(content):
        return [rule for group in content["groups"] for rule in group["rules"]]

    for what, record, changed in made:
        differ = [one for one, other in zip(rules(complete), rules(changed)) if one != other]
        assert len(differ) == 1 and what.startswith(record) and differ[0]["record"] == record, what


@needs_promtool
def test_a_mutant_that_no_test_notices_is_named(monkeypatch):
    number, left = tests_script.survivors(["WebsiteDown"])
    assert (number, left) == (10, [])
    # Without the near cases no test detects that it fires too early.
    test = tests_script.tests_of(BY_NAME["WebsiteDown"], tests_script.cases()["WebsiteDown"])
    test["tests"] = [{**test["tests"][0], "alert_rule_test": test["tests"][0]["alert_rule_test"][1:]}]
    monkeypatch.setattr(tests_script, "tests_of", lambda alert, case: test)
    assert tests_script.survivors(["WebsiteDown"]) == (10, ["WebsiteDown: for [1m → 45s]"])


RECORDINGS = """
groups:
  - name: fast
    rules:
      - {record: a:sum, expr: sum(a)}
      - {record: a:double, expr: 'a:sum * 2'}
      - {record: b:sum, expr: 'sum by (env) (b) + 3'}
  - name: slow
    rules:
      - {record: both, expr: 'a:double + 1 - on () b:sum'}
      - {record: 'c:max', expr: 'max(c) * 10'}
"""
RECORDINGS_TEST = """
rule_files: [recordings.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'a{env="x"}', values: "1x9"}
      - {series: 'b{env="x"}', values: "2x9"}
      - {series: 'c{env="x"}', values: "3x9"}
    promql_expr_test:
      - {expr: 'round({__name__="a:double"})', eval_time: 5m, exp_samples: [{labels: '{}', value: 2}]}
      - {expr: both, eval_time: 5m, exp_samples: [{labels: both, value: -2}]}
"""


def test_only_recordings_and_tests_that_the_change_can_reach_are_kept():
    content, test = yaml.safe_load(RECORDINGS), yaml.safe_load(RECORDINGS_TEST)

    def left(record):
        rules, part = tests_script.part_for(record, content, test)
        return (
            {rule["record"] for group in rules["groups"] for rule in group["rules"]},
            {one["series"][0] for case in part["tests"] for one in case["input_series"]},
            [one["expr"] for case in part["tests"] for one in case["promql_expr_test"]],
        )

    double, both = (one["expr"] for one in test["tests"][0]["promql_expr_test"])
    everything = {"a:sum", "a:double", "b:sum", "both"}
    assert left("a:sum") == left("a:double") == (everything, {"a", "b"}, [double, both])
    assert left("b:sum") == left("both") == (everything, {"a", "b"}, [both])
    assert left("c:max") == (set(), set(), [])


@needs_promtool
def test_mutants_of_recordings_that_a_fast_or_a_slow_test_notices_and_those_of_neither(monkeypatch, tmp_path):
    (tmp_path / "recordings.yml").write_text(RECORDINGS, encoding="utf-8")
    monkeypatch.setattr(tests_script, "RULES", tmp_path)
    monkeypatch.setattr(tests_script, "TESTS", tmp_path / "tests")
    (tmp_path / "tests").mkdir()
    fast, slow = yaml.safe_load(RECORDINGS_TEST), yaml.safe_load(RECORDINGS_TEST)
    fast["tests"][0]["promql_expr_test"].pop()
    for name, content in (("recordings.yml", fast), ("recordings_days.yml", slow)):
        (tmp_path / "tests" / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    number, survived = tests_script.survivors(["recordings"])
    # One environment is the same with and without the label; no rule reads c:max.
    assert number == 9 and survived == [
        "b:sum: by (env) [env → nothing]", "c:max: …max(c) * [10 → 11]", "c:max: …max(c) * [10 → 9]",
    ], survived  # fmt: skip


# --- inhibitions ----------------------------------------------------------------------------------------------------

INHIBITIONS = yaml.safe_load((MONITORING / "inhibitions.yml").read_text(encoding="utf-8"))["inhibitions"]


def sent(firing):
    """Names of what Alertmanager sends of these."""
    left = [one for one in firing if not messages.inhibited(one, firing, INHIBITIONS)]
    return sorted((alert["alertname"], alert.get("instance", "")) for alert in left)


def fired(name, **labels):
    """The alert with the labels that its rule gives it."""
    return {"alertname": name, **alerts_script.rule(BY_NAME[name])["labels"], **labels}


@functools.cache
def labels_of(name):
    """The labels that an alert has in its tests."""
    found = set(alerts_script.rule(BY_NAME[name])["labels"]) | {"alertname", "env"}
    for fires in tests_script.cases()[name]["fires"]:
        for labels in fires["labels"] if isinstance(fires["labels"], list) else [fires["labels"]]:
            found |= set(labels)
    return found


@offenders.each(INHIBITIONS, lambda rule: " ".join(rule["source_matchers"]))
def test_inhibition_names_alerts_and_labels_that_exist(rule):
    assert set(rule) <= {"source_matchers", "target_matchers", "equal"}
    # Two environments never silence each other; a monitoring host without a network knows of none.
    assert "env" in rule.get("equal", []) or 'alertname="MonitoringIsolated"' in rule["source_matchers"]

    def templated(labels, matcher):
        return "{{" in labels.get(messages.MATCHER.match(matcher)[1], "")

    def chosen(matchers):
        return [
            name
            for name in BY_NAME
            if all(
                messages.matches(m, fired(name))
                for m in matchers
                if (messages.MATCHER.match(m)[1] in fired(name) and not templated(fired(name), m)) or "depends" in m
            )
        ]

    sources, targets = chosen(rule["source_matchers"]), chosen(rule["target_matchers"])
    assert sources and targets
    for matcher in rule["source_matchers"] + rule["target_matchers"]:
        name, operator, value = messages.MATCHER.match(matcher).groups()
        if name == "alertname":
            assert set(value.split("|")) <= set(BY_NAME), matcher
        else:
            assert any(name in labels_of(alert) for alert in [*sources, *targets]), matcher
    # The urgent form of an alert silences the other one; an alert of the entire site has no instance in either.
    for label in rule.get("equal", []) if "alertname" not in rule.get("equal", []) else ["env"]:
        assert all(label in labels_of(source) for source in sources), label
        named = [target for target in targets if "alertname=" in " ".join(rule["target_matchers"])]
        assert all(label in labels_of(target) for target in named), label


def test_dependencies_of_an_alert_are_declared_by_an_inhibition():
    named = {part for alert in CATALOGUE for part in alert.get("depends_on", [])}
    assert named == {"application", "cache", "database"}
    for part in named:
        for declared in (part, f"a,{part}", f"{part},z", f"a,{part},z"):
            assert [
                rule
                for rule in INHIBITIONS
                if any(
                    m.startswith("depends_on") and messages.matches(m, {"depends_on": declared})
                    for m in rule["target_matchers"]
                )
            ], declared
    for alert in CATALOGUE:
        assert alert.get("depends_on", []) == sorted(alert.get("depends_on", []))


@pytest.mark.parametrize("role", ["database", "backup", "database,backup"])
def test_a_host_that_reads_a_slot_and_is_down_is_one_message(role):
    firing = [
        fired("HostDown", instance="db2", job="blackbox-icmp", role=role),
        fired("DatabaseConnectionError", instance="db2"),
        fired("ReplicationSlotInactive", instance="db1", slot_name="standby"),
    ]
    assert sent(firing) == [("HostDown", "db2")]


def test_a_slot_without_a_reader_is_reported_while_a_host_is_down_that_reads_none():
    firing = [
        fired("HostDown", instance="app1", job="blackbox-icmp", role="web,app"),
        fired("ReplicationSlotInactive", instance="db1", slot_name="standby"),
    ]
    assert sent(firing) == [("HostDown", "app1"), ("ReplicationSlotInactive", "db1")]


def test_a_standby_that_is_down_silences_no_alert():
    firing = [fired("DatabaseConnectionError", instance="db2"), fired("WebsiteDown", instance="edge1")]
    assert sent(firing) == [("DatabaseConnectionError", "db2"), ("WebsiteDown", "edge1")]


def test_one_application_host_of_two_silences_only_itself():
    firing = [
        fired("HostDown", instance="app1"),
        fired("ShiftMasterDown", instance="app1"),
        fired("HighErrorRate"),
        fired("WebsiteDown", instance="edge1"),
    ]
    assert sent(firing) == [("HighErrorRate", ""), ("HostDown", "app1"), ("WebsiteDown", "edge1")]


def test_the_web_server_of_an_application_host_silences_nothing_of_the_site():
    firing = [
        fired("NginxDown", instance="app2"),
        fired("AvailabilityBudgetBurnFast"),
        fired("WebsiteDown", instance="edge1"),
    ]
    assert ("WebsiteDown", "edge1") in sent(firing)
    firing.pop()
    assert sent(firing) == [("AvailabilityBudgetBurnFast", ""), ("NginxDown", "app2")]


def tasks(items):
    """Every task of a file, in its order."""
    for task in items:
        yield task
        yield from tasks(task.get("block", []) + task.get("rescue", []))


def test_a_planned_reboot_is_silenced_on_its_host_alone():
    """The matchers of role notify, with the values that role patch gives it."""
    found = list(tasks(yaml.safe_load((ROOT / "roles/patch/tasks/main.yml").read_text(encoding="utf-8"))))
    (reboot,) = [number for number, task in enumerate(found) if "ansible.builtin.reboot" in task]
    silence = found[reboot - 1]
    assert (
        silence["ansible.builtin.include_role"]["tasks_from"] == "silence" and silence["when"] == found[reboot]["when"]
    )
    templar = rendered.templar("notify", **rendered.trusted(silence["vars"]), inventory_hostname="db1")
    matchers = templar.template(rendered.trust_as_template("{{ __notify_matchers }}"))
    matchers = [f'{one["name"]}{one["operator"]}"{one["value"]}"' for one in matchers]
    silent = {
        (name, instance)
        for name in ("HostDown", "HostRebooted", "ShiftMasterDown", "DatabaseConnectionError")
        for instance in ("db1", "db10")
        if messages.fits(matchers, fired(name, instance=instance, env="production"))
    }
    assert silent == {("HostDown", "db1"), ("HostRebooted", "db1")}
    assert not messages.fits(matchers, fired("HostDown", instance="db1", env="staging"))
    assert templar.template(rendered.trust_as_template("{{ notify_silence_site_alerts }}")) == []


def test_watchdog_always_fires():
    firing = [fired(name, instance="monitor1") for name in BY_NAME if name != "Watchdog"] + [fired("Watchdog")]
    assert ("Watchdog", "") in sent(firing)


def test_the_worse_of_two_is_sent():
    assert sent(
        [
            fired("DiskSpaceCritical", instance="a", mountpoint="/"),
            fired("DiskSpaceWarning", instance="a", mountpoint="/"),
        ]
    ) == [("DiskSpaceCritical", "a")]
    # Another disk of the same host is another matter.
    assert (
        len(
            sent(
                [
                    fired("DiskSpaceCritical", instance="a", mountpoint="/"),
                    fired("DiskSpaceWarning", instance="a", mountpoint="/srv"),
                ]
            )
        )
        == 2
    )


def test_alerts_that_silence_others_fire_no_later_than_those():
    """Alertmanager collects for 10 seconds; the silencing alert must fire by then."""

    def latest(name):
        alert = BY_NAME[name]
        evaluation = alerts_script.FAST_SECONDS if alert["group"] in alerts_script.FAST else alerts_script.SECONDS
        return alerts_script.seconds(alert["for"]) + evaluation

    assert latest("HostDown") <= alerts_script.seconds(BY_NAME["ShiftMasterDown"]["for"])
    for source, part in {"DatabasePrimaryLost": "database", "RedisDown": "cache"}.items():
        early = [
            alert["name"]
            for alert in CATALOGUE
            if part in alert.get("depends_on", []) and alerts_script.seconds(alert["for"]) + 10 < latest(source)
        ]
        assert early == [], source
