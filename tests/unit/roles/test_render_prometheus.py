"""Role prometheus, rendered by Ansible: what is scraped and how, the command line, and which inputs are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import rendered
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from rendered import trusted

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "prometheus"
USERS = [{"name": "admin", "password": "for-people"}, {"name": "prometheus", "password": "for-scrapes"}]
NODE = {
    "name": "node",
    "user": "prometheus",
    "password_file": "/etc/prometheus/secrets/scrape",
    "targets": [{"address": "192.0.2.11:9100", "labels": {"env": "production", "role": "app", "instance": "app1"}}],
}
PROBE = {
    "name": "blackbox-http",
    "probe": {"address": "127.0.0.1:9115", "module": "http"},
    "targets": [{"address": "https://example.org/", "labels": {"instance": "web1"}}],
}


def variables_of(**given):
    known = {"ansible_managed": "Ansible managed"}
    for part in ("defaults", "vars"):
        known.update(yaml.safe_load((ROLE / part / "main.yml").read_text(encoding="utf-8")))
    known.update({"prometheus_web_users": USERS}, **given)
    return Templar(DataLoader(), variables=trusted(known))


def render(template, **given):
    text = (ROLE / "templates" / template).read_text(encoding="utf-8")
    return variables_of(**given).template(trust_as_template(text))


def value(name, **given):
    return variables_of(**given).template(trust_as_template("{{ %s }}" % name))


def config(**given):
    return yaml.safe_load(render("prometheus.yml.j2", **given))


# --- the configuration ----------------------------------------------------------------------------------------------


def test_without_inputs_it_is_a_complete_configuration():
    assert config() == {
        "global": {"scrape_interval": "15s", "scrape_timeout": "10s", "evaluation_interval": "15s"},
        "rule_files": ["/etc/prometheus/alerts/*.yml"],
        "scrape_configs": [],
    }


def test_a_job_is_queried_with_tls_and_a_password_from_a_file():
    (job,) = config(prometheus_jobs=[NODE])["scrape_configs"]
    assert job == {
        "job_name": "node",
        "scheme": "https",
        "metrics_path": "/metrics",
        "scrape_interval": "15s",
        "scrape_timeout": "10s",
        "honor_labels": False,
        "basic_auth": {"username": "prometheus", "password_file": "/etc/prometheus/secrets/scrape"},
        "tls_config": {"ca_file": "/etc/ssl/shiftmaster/ca.crt", "min_version": "TLS12"},
        "file_sd_configs": [{"files": ["/etc/prometheus/targets/node.json"]}],
    }


def test_settings_of_a_job_take_precedence():
    given = {
        "name": "shiftmaster",
        "scheme": "https",
        "metrics_path": "/shiftmaster/metrics",
        "params": {"a": ["1"]},
        "scrape_interval_seconds": 5,
        "ca_file": "/etc/ssl/other.crt",
        "server_name": "app.example",
        "honor_labels": True,
        "sample_limit": 50000,
        "metric_relabel_configs": [{"action": "labeldrop", "regex": "pid"}],
    }
    (job,) = config(prometheus_jobs=[given])["scrape_configs"]
    assert (job["scrape_interval"], job["scrape_timeout"]) == ("5s", "5s")
    assert job["tls_config"] == {"ca_file": "/etc/ssl/other.crt", "min_version": "TLS12", "server_name": "app.example"}
    assert job["params"] == {"a": ["1"]} and job["honor_labels"] is True and job["sample_limit"] == 50000
    assert job["metric_relabel_configs"] == [{"action": "labeldrop", "regex": "pid"}]
    assert "basic_auth" not in job


def application_job():
    group_variables = yaml.safe_load((ROOT / "group_vars/all/monitoring.yml").read_text(encoding="utf-8"))
    (job,) = (job for job in group_variables["__monitoring_jobs"] if job["name"] == "shiftmaster")
    return config(
        prometheus_jobs=[dict(job, targets=[])],
        monitoring_application_metrics=group_variables["monitoring_application_metrics"],
    )["scrape_configs"][0]


def test_scrapes_of_every_job_are_limited():
    """For every job: with 32MB, or none, one host used up the memory that the role gives Prometheus (400 MB)."""
    group_variables = yaml.safe_load((ROOT / "group_vars/all/monitoring.yml").read_text(encoding="utf-8"))
    given = {
        name: trusted(group_variables[name])
        for name in ("prometheus_jobs", "__monitoring_limits")
        if name in group_variables
    }
    given["__monitoring_jobs"] = [{"name": "node", "targets": []}, {"name": "shiftmaster", "targets": []}]
    given["monitoring_scrape_user"] = "prometheus"
    limits = {"sample_limit", "label_limit", "label_name_length_limit", "label_value_length_limit", "body_size_limit"}
    for job in config(**given)["scrape_configs"]:
        assert job["honor_labels"] is False
        assert limits <= job.keys() and (job["sample_limit"], job["body_size_limit"]) == (50000, "8MB")


def test_the_application_cannot_impersonate_a_host_or_another_job():
    """Every series of rules and dashboards that it may show is its own, or is selected by its job."""
    (rule,) = application_job()["metric_relabel_configs"]
    assert (rule["action"], rule["source_labels"]) == ("keep", ["__name__"])
    kept = re.compile(rule["regex"])
    package = "".join(
        path.read_text() for path in (ROOT / "shiftmaster_monitoring/shiftmaster_monitoring").glob("*.py")
    )
    own = {name for name in re.findall(r'"(shiftmaster_[a-z_]+)"', package) if kept.fullmatch(name)}
    queries = [path.read_text(encoding="utf-8") for path in (ROOT / "monitoring/rules").glob("*.yml")]
    for path in (ROOT / "monitoring/dashboards/ja").glob("*.json"):
        queries += re.findall(r'"expr": ("(?:[^"\\]|\\.)*")', path.read_text(encoding="utf-8"))
    used = re.findall(r"\b([a-z][a-z0-9]*_[a-z0-9_]+)(\{[^}]*\})?", "\n".join(queries))
    assert {"pg_up", "shiftmaster_release_info", "shiftmaster_backup_failed"} <= {name for name, _labels in used}
    foreign = {
        name
        for name, labels in used
        if kept.fullmatch(name)
        and re.sub("_(bucket|sum|count)$", "", name) not in own
        and not re.search('job!?="shiftmaster"', labels.replace("\\", ""))
        and not name.startswith("django_")
    }
    assert foreign == set()
    for name in ("up", "probe_success", "node_load1", "shiftmaster_backup_failed", "shiftmaster:slo", "ALERTS"):
        assert not kept.fullmatch(name)


def test_no_host_can_impersonate_another_job():
    """Most rules select by name, not by job. A backup server that was taken over could show that a primary and a
    worker run (pg_replication_is_replica 0, shiftmaster_celery_workers 1), and no alert reported that they are down.
    """
    group_variables = yaml.safe_load((ROOT / "group_vars/all/monitoring.yml").read_text(encoding="utf-8"))
    of_hosts = ("shiftmaster", "postgres", "node", "redis", "nginx", "mtail")
    jobs = [dict(job, targets=[]) for job in group_variables["__monitoring_jobs"] if job["name"] in of_hosts]
    names = {name: value for name, value in group_variables.items() if name.endswith("_metrics")}
    kept = {
        job["job_name"]: re.compile(rule["regex"])
        for job in config(prometheus_jobs=trusted(jobs), **names)["scrape_configs"]
        for rule in job.get("metric_relabel_configs", [])
    }
    assert set(kept) == set(of_hosts)
    queries = [path.read_text(encoding="utf-8") for path in (ROOT / "monitoring/rules").glob("*.yml")]
    queries = re.findall(r"expr: (?:\|-\n((?: {10}.*\n)+)|(.*))", "".join(queries))
    queries = re.sub(r"\{[^}]*\}|(by|on|without|ignoring|group_left) \([^)]*\)", "{", "\n".join(map("".join, queries)))
    used = set(re.findall(r"(?<![\w:])([a-z]+_[a-z0-9_]+)(?=[\[{ )]|$)", queries, re.M))
    shown = {name: [job for job in of_hosts if kept[job].fullmatch(name)] for name in used}
    monitoring = re.compile("(probe|prometheus|alertmanager|blackbox|scrape)_.+")
    assert {name for name, found in shown.items() if not found and not monitoring.fullmatch(name)} == set()
    # From the same web server, or queried on each host alone.
    twice = {name for name, found in shown.items() if len(found) > 1 and found != ["nginx", "mtail"]}
    assert twice == {"process_open_fds", "process_max_fds"}
    assert shown["pg_replication_is_replica"] == ["postgres"] and shown["shiftmaster_celery_workers"] == ["shiftmaster"]
    for job in of_hosts:
        for name in ("up", "probe_success", "shiftmaster:outage:last10m", "ALERTS", "prometheus_build_info"):
            assert not kept[job].fullmatch(name)


def test_without_tls_no_authority_is_named():
    (job,) = config(prometheus_jobs=[dict(NODE, scheme="http")])["scrape_configs"]
    assert "tls_config" not in job


def test_a_probe_requests_the_target_from_the_prober():
    given = dict(PROBE, relabel_configs=[{"target_label": "x", "replacement": "y"}], params={"debug": ["true"]})
    (job,) = config(prometheus_jobs=[given])["scrape_configs"]
    assert job["metrics_path"] == "/probe" and job["params"] == {"debug": ["true"], "module": ["http"]}
    assert job["relabel_configs"] == [
        {"source_labels": ["__address__"], "target_label": "__param_target"},
        {"source_labels": ["__param_target"], "target_label": "target"},
        {"target_label": "__address__", "replacement": "127.0.0.1:9115"},
        {"target_label": "x", "replacement": "y"},
    ]


def test_targets_are_a_file_for_each_job():
    files = {item["path"]: item["content"] for item in value("__prometheus_targets", prometheus_jobs=[NODE, PROBE])}
    assert set(files) == {"/etc/prometheus/targets/node.json", "/etc/prometheus/targets/blackbox-http.json"}
    assert json.loads(files["/etc/prometheus/targets/node.json"]) == [
        {"targets": ["192.0.2.11:9100"], "labels": {"env": "production", "role": "app", "instance": "app1"}}
    ]


def test_two_hundred_targets_are_one_file():
    targets = [{"address": "192.0.2.%d:9100" % n, "labels": {"instance": "host%d" % n}} for n in range(200)]
    (item,) = value("__prometheus_targets", prometheus_jobs=[dict(NODE, targets=targets)])
    assert len(json.loads(item["content"])) == 200


def test_alertmanagers_and_external_labels():
    alertmanager = {
        "targets": ["192.0.2.20:9093"],
        "user": "prometheus",
        "password_file": "/etc/prometheus/secrets/scrape",
    }
    complete = config(prometheus_alertmanagers=[alertmanager], prometheus_external_labels={"site": 7})
    assert complete["global"]["external_labels"] == {"site": "7"}
    assert complete["alerting"]["alertmanagers"] == [
        {
            "scheme": "https",
            "timeout": "10s",
            "static_configs": [{"targets": ["192.0.2.20:9093"]}],
            "basic_auth": {"username": "prometheus", "password_file": "/etc/prometheus/secrets/scrape"},
            "tls_config": {"ca_file": "/etc/ssl/shiftmaster/ca.crt", "min_version": "TLS12"},
        }
    ]


def test_every_path_is_absolute():
    """A relative one would lead out of the copy that is checked."""
    text = render("prometheus.yml.j2", prometheus_jobs=[NODE, PROBE])
    assert [line for line in text.splitlines() if re.search(r"_file: \"?[^\"/]|- [\w.]+/", line)] == []


def test_rules_are_files_and_each_is_linted():
    rules = {"shiftmaster": "groups: []\n", "slo": "groups: []\n"}
    found = value("__prometheus_rules", prometheus_rule_files=rules)
    assert [item["path"] for item in found] == [
        "/etc/prometheus/alerts/shiftmaster.yml",
        "/etc/prometheus/alerts/slo.yml",
    ]
    check = value("__prometheus_checks", prometheus_rule_files=rules)[0]
    assert check == [
        "promtool",
        "check",
        "rules",
        "--lint=all",
        "--lint-fatal",
        "{root}/alerts/shiftmaster.yml",
        "{root}/alerts/slo.yml",
    ]
    # With no file, promtool would wait for its standard input.
    assert not [check for check in value("__prometheus_checks") if "rules" in check]


def test_passwords_are_in_no_file_that_is_shown():
    secrets = [{"name": "scrape", "content": "for-scrapes"}]
    given = {"prometheus_jobs": [NODE], "prometheus_secrets": secrets}
    shown = render("prometheus.yml.j2", **given) + render("drop-in.conf.j2", **given)
    assert "for-scrapes" not in shown and "for-people" not in shown
    assert value("__prometheus_secret_files", **given) == [
        {"path": "/etc/prometheus/secrets/scrape", "content": "for-scrapes", "group": "prometheus"}
    ]


# --- the unit -------------------------------------------------------------------------------------------------------


def command(**given):
    text = render("drop-in.conf.j2", **given).replace("\\\n", " ")
    return re.findall(r"^ExecStart=(.+)$", text, re.M)[-1].split()


def test_the_command_line_is_complete_and_debians_is_emptied():
    words = command()
    for word in (
        "--web.listen-address=127.0.0.1:9090",
        "--storage.tsdb.retention.time=62d",
        "--storage.tsdb.retention.size=10240MB",
        "--web.config.file=/etc/prometheus/web.yml",
    ):
        assert word in words
    text = render("drop-in.conf.j2")
    assert "\nExecStart=\n" in text and "\nEnvironmentFile=\n" in text
    assert not [word for word in words if "lifecycle" in word or "admin-api" in word or "external-url" in word]


def test_an_address_of_version_6_is_in_brackets():
    assert "--web.listen-address=[2001:db8::1]:9090" in command(prometheus_listen_address="2001:db8::1")
    assert value("__prometheus_own_url", prometheus_listen_address="2001:db8::1") == "https://[2001:db8::1]:9090"
    assert value("__prometheus_own_url", prometheus_listen_address="::") == "https://127.0.0.1:9090"


def test_without_an_address_it_listens_on_all():
    assert "--web.listen-address=:9090" in command(prometheus_listen_address="")
    assert value("__prometheus_own_url", prometheus_listen_address="") == "https://127.0.0.1:9090"


def test_without_a_size_limit_there_is_no_flag():
    assert not [word for word in command(prometheus_retention_size_mb=0) if "retention.size" in word]


@pytest.mark.parametrize(("targets", "given", "expected"), [(0, 0, 400), (40, 0, 400), (200, 0, 1200), (200, 600, 600)])
def test_memory_follows_the_targets_or_the_variable(targets, given, expected):
    job = dict(NODE, targets=[{"address": "192.0.2.1:%d" % n} for n in range(1, targets + 1)])
    text = render("drop-in.conf.j2", prometheus_jobs=[job], prometheus_memory_max_mb=given)
    assert "MemoryMax=%dM" % expected in text
    assert "GOMEMLIMIT=%dMiB" % (expected * 0.9) in text


@pytest.mark.parametrize(
    ("days", "mb", "expected"),
    [
        (62, 10240, ["62d", "10GiB"]),
        (63, 512, ["9w", "512MiB"]),
        (365, 0, ["1y", "0B"]),
        (400, 1537, ["400d", "1GiB513MiB"]),
    ],
)
def test_retention_is_requested_as_prometheus_writes_it(days, mb, expected):
    responses = value("__prometheus_responses", prometheus_retention_days=days, prometheus_retention_size_mb=mb)
    assert [response["value"] for response in responses] == expected


# --- inputs ---------------------------------------------------------------------------------------------------------


def test_valid_inputs_have_no_problem():
    given = {
        "prometheus_jobs": [NODE, PROBE],
        "prometheus_secrets": [{"name": "scrape", "content": "x"}],
        "prometheus_rule_files": {"shiftmaster": "groups: []\n"},
        "prometheus_alertmanagers": [{"targets": ["a:1"]}],
    }
    assert rendered.problems("prometheus", variables_of(**given)) == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"prometheus_web_users": []}, "anybody could read it"),
        ({"prometheus_web_users": [USERS[0], USERS[0]]}, "a user twice"),
        ({"prometheus_web_users": [{"name": "a", "password": ""}]}, "a password of prometheus_web_users is empty"),
        ({"prometheus_external_url": "mon1:9090"}, "prometheus_external_url is no URL"),
        ({"prometheus_external_url": "https://mon1 example"}, "prometheus_external_url is no URL"),
        ({"prometheus_retention_days": 0}, "prometheus_retention_days"),
        ({"prometheus_retention_size_mb": 10}, "prometheus_retention_size_mb"),
        ({"prometheus_memory_max_mb": 16}, "prometheus_memory_max_mb"),
        ({"prometheus_scrape_timeout_seconds": 20}, "longer than the interval"),
        ({"prometheus_jobs": [NODE, NODE]}, "job node is there twice"),
        ({"prometheus_jobs": [{"name": "a/b"}]}, '"a/b" is no name'),
        ({"prometheus_rule_files": {"../x": "groups: []"}}, '"../x" is no name'),
        ({"prometheus_secrets": [{"name": ".x", "content": "y"}]}, '".x" is no name'),
        ({"prometheus_jobs": [{"name": "a", "scrape_timeout_seconds": 16}]}, "job a: its timeout is longer"),
        ({"prometheus_jobs": [{"name": "a", "targets": [{"address": "https://x:1"}]}]}, "is not host:port"),
        (
            {"prometheus_jobs": [{"name": "a", "targets": [{"address": "x:1"}, {"address": "x:1"}]}]},
            "x:1 is there twice",
        ),
        ({"prometheus_jobs": [dict(PROBE, targets=PROBE["targets"] * 2)]}, "is there twice"),
        ({"prometheus_jobs": [{"name": "a", "user": "x"}]}, "a: user and password_file belong together"),
        (
            {"prometheus_jobs": [{"name": "a", "ca_file": "ca.crt"}]},
            "a: user and password_file belong together, and files",
        ),
        ({"prometheus_alertmanagers": [{"targets": [], "password_file": "/x"}]}, "an alertmanager: user and"),
        ({"prometheus_rule_files": {"x": "\n"}}, "rule file x is empty"),
    ],
)
def test_bad_inputs_are_named(given, problem):
    found = rendered.problems("prometheus", variables_of(**given))
    assert len(found) == 1 and problem in found[0], found
