"""The rules of roles and group variables: what comes last in a run is evaluated before anything changes."""

import re
from pathlib import Path

import inventories
import offenders
import pytest
import rendered
import yaml
from rendered import trusted

ROOT = Path(__file__).resolve().parents[3]
SECRETS = {
    "shiftmaster_repository": "https://git.example.test/shiftmaster.git",
    "vault_shiftmaster_secret_key": "d" * 32,
    **{f"vault_{name}_password": name * 6 for name in ("shiftmaster_database", "shiftmaster_redis", "redis_admin")},
    "elastic_repository_url": "https://elastic.example.test/apt",
    "elastic_repository_key": "key",
    "vault_monitoring_admin_password": "m" * 32,
    "vault_monitoring_scrape_password": "s" * 32,
    "vault_postgres_exporter_password": "p" * 32,
    "vault_redis_exporter_password": "r" * 32,
    "logging_version": "9.2.1",
    **{f"vault_elasticsearch_{name}_password": name * 6 for name in ("admin", "writer", "kibana", "canary")},
    **{f"vault_kibana_{name}_key": (name * 6)[:32] for name in ("saved_objects", "session", "reporting")},
    "vault_shiftmaster_log_key": "k" * 32,
}
GOOD = {"vault_alertmanager_pagerduty_key": "0" * 32}
# A variable, its value, and what has to be in one of the problems that are found.
WRONG = [
    ("vault_alertmanager_slack_url", "hooks.slack.com", "(vault_alertmanager_slack_url) is no URL"),
    (
        "vault_alertmanager_pagerduty_key",
        "short",
        "(vault_alertmanager_pagerduty_key) has not 32 letters and digits",
    ),
    ("alertmanager_smtp_auth_username", "alone", "is set without a password (vault_alertmanager_smtp_password)"),
    ("prometheus_retention_days", 0, "prometheus_retention_days"),
    ("monitoring_scrape_users_previous", [{"name": "prometheus", "password": "old"}], "names a user twice"),
    (
        "grafana_apt_url",
        "https://mirror.example.net/grafana",
        "(vault_grafana_secret_key) has less than 20 characters",
    ),
    ("elasticsearch_keep_days", 0, "is less than 1"),
    ("elasticsearch_heap_mb", 100, "it needs 256 at least"),
    ("elasticsearch_settings", {"node.rolls": ["data"]}, "elasticsearch.yml: there is no option node.rolls"),
    ("elasticsearch_datasets", ["shiftmaster.app"], "shiftmaster.redis is sent here, and is neither in"),
    ("logging_version", "latest", 'logging_version is three numbers such as 9.2.1, not "latest"'),
    ("logstash_settings", {"pipeline.batchsize": 3}, "logstash.yml: there is no option pipeline.batchsize"),
    ("kibana_settings", {"server.pot": 3}, "kibana.yml: there is no option server.pot"),
    ("filebeat_settings", {"filebeat.prospectors": []}, "filebeat.inputs"),
    ("alertmanager_smtp_smarthost", "mail.example.jp", "is not host:port"),
    ("vault_elasticsearch_canary_password", "short", "elasticsearch_canary_password has less than 12 characters"),
    ("vault_elasticsearch_writer_password", "admin" * 6, "two users of Elasticsearch have the same password"),
    ("vault_kibana_session_key", SECRETS["vault_kibana_reporting_key"], "are not three different ones"),
    ("log_masks_site", [{"name": "x", "pattern": 'a"b', "replace": "y"}], "has a double quote"),
]
MISSING = {"vault_kibana_session_key": "", "vault_elasticsearch_admin_password": ""}
# One is too small, one of another type.
WRONG_TOO = {"kibana_memory_max_mb": 64, "logstash_heap_mb": "many"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Problems of a host with every role: with good values, with missing ones, with every mistake."""
    names = "web app database cache monitoring elasticsearch logstash kibana filebeat"
    groups = {name: {"hosts": {"alone": {}}} for name in names.split()}
    host = {"ansible_connection": "local", "shiftmaster_domain": "shift.example.test", "tls_site_mode": "selfsigned"}
    source = tmp_path_factory.mktemp("inputs") / "hosts.yml"
    source.write_text(yaml.safe_dump({"all": {"hosts": {"alone": {**host, **SECRETS}}, "children": groups}}))
    facts = {"alone": {"distribution_major_version": "13"}}
    wrong = {name: value for name, value, _words in WRONG}
    cases = {"good": GOOD, "missing": {**MISSING, **WRONG_TOO}, "wrong": wrong}
    return {case: problems(source, facts, values) for case, values in cases.items()}


def problems(source, facts, values):
    """Problems that the first task of role preflight finds, as deploy.yml calls it."""
    task = yaml.safe_load((ROOT / "roles/preflight/tasks/main.yml").read_text(encoding="utf-8"))[0]
    plays = yaml.safe_load((ROOT / "playbooks/deploy.yml").read_text(encoding="utf-8"))
    given = next(task["vars"] for task in plays[1]["tasks"] if "preflight_rules" in task.get("vars", {}))
    extra = {"ansible_run_tags": ["all"], **values, **trusted(given)}
    action = rendered.action("shiftmaster_variables")
    ((_host, known, templar_of),) = inventories.hosts_variables(source, facts=facts, **extra)
    known = {**action.load("preflight", "defaults/main.yml"), **known}
    arguments = templar_of(known).template(trusted(task["shiftmaster_variables"]))
    return action.check(arguments, known, templar_of, ROOT)["problems"]


def test_valid_values_are_not_reported(found):
    assert found["good"] == []


def test_each_wrong_value_is_reported(found):
    def check(mistake):
        assert [one for one in found["wrong"] if mistake[2] in one]

    assert len({name for name, _value, _words in WRONG}) == len(WRONG), "a host has one value of each"
    offenders.check_each(WRONG, check, lambda mistake: f"{mistake[0]}={mistake[1]}")


def test_a_missing_value_hides_no_other_problem_and_is_not_reported_as_too_short(found):
    names = {one: re.match(r"variable (\w+) is not set: ", one) for one in found["missing"]}
    assert {name[1] for name in names.values() if name} == set(MISSING)
    more = [one for one, name in names.items() if not name]
    assert len(more) == 2 and all(any(name in one for one in more) for name in WRONG_TOO), more


def test_roles_of_each_tag_are_those_of_its_plays():
    plays = yaml.safe_load((ROOT / "playbooks/deploy.yml").read_text(encoding="utf-8"))
    wanted: dict = {}
    for play in plays:
        for task in play["tasks"]:
            included = task.get("ansible.builtin.import_role") or task.get("ansible.builtin.include_role") or {}
            # A line of the audit log needs no values of the role.
            role = included.get("name") if included.get("tasks_from") != "audit" else None
            tags = {*play.get("tags", []), *task.get("tags", [])} - {"always"}
            for tag in tags if role else ():
                # One of two by the inventory: '{{ 'a' if … else 'b' }}'.
                wanted.setdefault(tag, set()).update(re.findall(r"'(\w+)'", role) or [role])
    for roles in wanted.values():
        # Of the play "Add the Elastic apt repository", which runs by its conditions.
        roles |= {"elastic_repository"} if roles & {"elasticsearch", "logstash", "kibana", "filebeat"} else set()
    values = yaml.safe_load((ROOT / "group_vars/all/preflight.yml").read_text(encoding="utf-8"))
    assert {tag: set(roles) for tag, roles in values["preflight_roles_of_tags"].items()} == wanted
