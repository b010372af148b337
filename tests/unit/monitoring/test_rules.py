"""The rules of roles (vars/preflight.yml) and their evaluation by action shiftmaster_variables."""

from __future__ import annotations

import offenders
import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from rendered import ROOT, action, problems, templar

# Lookups by their full names.
init_plugin_loader()
variables = action("shiftmaster_variables")
ROLES = sorted(path.parents[1].name for path in (ROOT / "roles").glob("*/vars/preflight.yml"))


def found_by(*rules, explained=False, **known):
    trusted = [
        {key: [*map(trust_as_template, value)] if isinstance(value, list) else trust_as_template(value)
         for key, value in rule.items()}
        for rule in rules
    ]  # fmt: skip
    return variables.rule_problems(trusted, Templar(DataLoader(), variables=known), known, explained)


@offenders.each(ROLES)
def test_every_rule_can_find_a_problem(role):
    rules = variables.rules_of(role)
    assert rules
    for rule in rules:
        assert set(rule) <= {"that", "msg", "when", "loop"} and "msg" in rule and {"that", "loop"} & set(rule), rule


@offenders.each(ROLES)
def test_a_role_evaluates_its_own_rules(role):
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "roles" / role / "tasks").glob("*.yml")]
    tasks = [task for text in texts for task in yaml.safe_load(text)]
    assert {"role": role} in [task.get("shiftmaster_variables") for task in tasks]


@pytest.mark.parametrize("playbook", ["deploy", "rotate"])
def test_a_run_evaluates_the_rules_of_its_roles_before_anything_changes(playbook):
    plays = yaml.safe_load((ROOT / f"playbooks/{playbook}.yml").read_text(encoding="utf-8"))
    given = [task["vars"] for task in plays[1]["tasks"] if "preflight_rules" in task.get("vars", {})]
    assert [(one["preflight_rules_of"], one["preflight_rules"][0]) for one in given] == [
        ("{{ preflight_roles_here }}", "topology_rules")
    ]


def test_each_item_that_violates_a_condition_has_a_message():
    rule = {"loop": "{{ names }}", "that": ["item != 'b'", "item != 'c'"], "msg": "{{ item }} is wrong"}
    assert found_by(rule, names=["a", "b", "c"]) == ["b is wrong", "c is wrong"]
    assert found_by({**rule, "when": ["names | length < 3"]}, names=["a", "b", "c"]) == []
    assert found_by({"loop": "{{ names }}", "msg": "{{ item }} is wrong"}, names=["a"]) == ["a is wrong"]


def test_a_rule_that_cannot_be_evaluated_is_a_problem_where_no_other_explains_it():
    broken, other = {"that": "size >= 1", "msg": "too small"}, {"that": "size is number", "msg": "no number"}
    (found,) = found_by(broken, size="many")
    assert "cannot be evaluated" in found
    assert found_by(broken, other, size="many") == ["no number"]
    assert found_by(broken, size="many", explained=True) == []


def test_a_role_fails_by_its_rules_unless_the_preflight_has_evaluated_them():
    given = templar("redis", redis_admin_password="")
    known = given.available_variables
    with pytest.raises(AnsibleActionFail, match="redis_admin_password is empty"):
        variables.check_role("redis", known, lambda _values: given)
    known["preflight_variables"] = {"rules_of": ["redis"]}
    assert variables.check_role("redis", known, lambda _values: given) == {"changed": False}


def test_a_missing_secret_is_one_problem_and_hides_no_other(tmp_path):
    given = {
        "redis_admin_password": trust_as_template("{{ vault_a }}"), "redis_instances": [{"name": "other"}],
        "redis_restart": "perhaps", "inventory_hostname": "host1", "ansible_facts": {}, "ansible_search_path": [],
    }  # fmt: skip
    arguments = {"roles": ["redis"], "rules_of": ["redis"], "required": [{"name": "vault_a", "hint": "make it"}]}

    def found(**more):
        return variables.check(
            arguments, {**given, **more}, lambda known: Templar(DataLoader(), variables=known), tmp_path
        )["problems"]

    missing, wrong_type, rule = found()
    assert missing == "variable vault_a is not set: make it" and "redis_restart" in wrong_type
    assert rule == "redis: the first of redis_instances is not called main"
    assert found(vault_a="") == [missing, wrong_type, rule] and found(vault_a="x") == [wrong_type, rule]


def test_options_of_a_rollback_are_validated():
    plays = yaml.safe_load((ROOT / "playbooks/rollback.yml").read_text(encoding="utf-8"))
    rules = plays[0]["vars"]["rollback_rules"]
    assert found_by(*rules) == found_by(*rules, to="2.0.0", dump="x", schema="restore") == []
    assert [len(found_by(*rules, **given)) for given in ({"to": " "}, {"dump": "x"})] == [1, 1]


RELEASES = {"releases": [{"current": True, "revision": "a" * 40}]}
ROTATION = {
    "groups": {"app": ["host1", "host2"]}, "shiftmaster_lock_host": "host1", "rotation_use": {"problems": []},
    "hostvars": {"host1": {"rotation_releases": RELEASES}}, "rotation_releases": RELEASES,
    "shiftmaster_database_user": "new", "rotation_database_logins": ["old"], "rotation_selected": ["django"],
    "rotation_admin": {"accepted": [True, False]}, "rotation_certificates_before": "20251125120000Z",
}  # fmt: skip


@offenders.each(
    [
        ({}, None),
        ({"rotation_use": {"problems": ["vault_x is no list"]}}, "vault_x is no list"),
        ({"hostvars": {"host1": {"rotation_releases": {"releases": []}}}}, "no release is live"),
        ({"rotation_releases": {"releases": []}}, "another live revision"),
        ({"shiftmaster_database_user": "old"}, "same name of a login"),
        ({"rotation_admin": {"accepted": [False]}}, "does not hold that either"),
        ({"rotation_admin": {"accepted": [False, True]}}, "name redis in secrets"),
        ({"rotation_admin": {"accepted": [False, True]}, "rotation_selected": ["redis"]}, None),
        ({"rotation_admin": {"skipped": True}}, None),
        ({"rotation_certificates_before": "20991231000000Z"}, "no timestamp of the past"),
        ({"rotation_certificates_before": "yesterday"}, "no timestamp of the past"),
    ]
)
def test_problems_of_a_rotation_are_found(case):
    given, words = case
    made = templar("rotation", **{**ROTATION, **given})
    known = made.available_variables
    found = variables.rule_problems(known["rotation_rules"], made, known)
    assert (found == []) if words is None else (len(found) == 1 and words in found[0]), found


REDIS = {"redis_admin_password": "x"}
BACKUP = {
    "backup_databases": ["shiftmaster"], "backup_cipher_passphrase": "c" * 16, "backup_restic_password": "r" * 16,
    "backup_database_password": "d", "backup_parts": [{"name": "files", "paths": ["/srv"]}],
}  # fmt: skip
EXPORTER = {"exporter_users": [{"name": "prometheus", "password": "x"}]}
NGINX = {"nginx_upstream_servers": ["127.0.0.1:8001"], "nginx_local_upstream_servers": ["127.0.0.1:8001"]}
DEBIAN = {"ansible_facts": {"distribution_major_version": "12"}}
# A role, what it is given, and what has to be in its only problem.
BAD = [
    ("redis", {**REDIS, "redis_admin_password": ""}, "redis_admin_password is empty"),
    ("redis", {**REDIS, "redis_users": [{"name": "a", "password": "", "rules": ""}]}, "a password of redis_users"),
    ("redis", {**REDIS, "redis_users": [{"name": "admin", "password": "x", "rules": ""}]}, "holds default or admin"),
    ("redis", {**REDIS, "redis_instances": [{"name": "other"}]}, "is not called main"),
    ("redis", {**REDIS, "redis_instances": [{"name": "main"}] * 2}, "the same name"),
    ("redis", {**REDIS, "redis_tls_port": 6380, "redis_tls_key_file": ""}, "a TLS port needs"),
    ("postgresql", {"postgresql_version": 16}, "set postgresql_repository to pgdg"),
    ("postgresql", {"postgresql_repository": "pgdg"}, "postgresql_pgdg_key"),
    ("postgresql", {"postgresql_roles": [{"name": "a", "password": ""}]}, "whose password is empty"),
    ("exporter", {"exporter_users": []}, "exporter_users is empty"),
    ("exporter", {"exporter_users": [{"name": "a", "password": ""}]}, "a password of exporter_users"),
    ("exporter", {**EXPORTER, "exporter_instances": [{"name": "node"}] * 2}, "twice"),
    ("exporter", {**EXPORTER, **DEBIAN, "exporter_instances": [{"name": "nginx"}]}, "nginx of this Debian"),
    ("exporter", {**EXPORTER, "exporter_listen_addresses": []}, "exporter_listen_addresses is empty"),
    ("exporter", {**EXPORTER, "exporter_instances": [{"name": "postgres"}]}, "exporter_postgres_password is empty"),
    ("exporter", {**EXPORTER, "exporter_instances": [{"name": "redis"}]}, "exporter_redis_password is empty"),
    ("exporter", {**EXPORTER, "exporter_mail_servers": ["mail:25", "mail; reboot"]}, "mail; reboot is not host:port"),
    ("backup", {**BACKUP, "backup_cipher_passphrase": "short"}, "less than 16 characters"),
    ("backup", {**BACKUP, "backup_cipher_passphrase": "with space " * 2}, "has a space"),
    ("backup", {**BACKUP, "backup_restic_password": "short"}, "backup_restic_password"),
    ("backup", {**BACKUP, "backup_database_password": ""}, "backup_database_password is empty"),
    ("backup", {**BACKUP, "backup_wal_limit_mb": 1}, "backup_wal_limit_mb"),
    ("backup", {**BACKUP, "backup_tls_peer": "backup_server"}, "backup_tls_peer"),
    ("backup", {**BACKUP, "backup_tablespace_dirs": ["/srv/pg", "/srv/../etc"]}, '"/srv/../etc" is no absolute path'),
    ("backup", {**BACKUP, "backup_parts": [{"name": "x", "paths": []}]}, "backup_parts"),
    ("backup", {**BACKUP, "backup_offsite_repository": "/usb", "backup_offsite_password": "p" * 16}, "none of rest:"),
    ("backup", {**BACKUP, "backup_offsite_repository": "s3:https://s/b", "backup_offsite_password": "p" * 16},
     "needs backup_offsite_access_key"),
    ("backup", {**BACKUP, "backup_offsite_repository": "sftp:a@b:/c", "backup_offsite_password": "p" * 16},
     "needs backup_offsite_ssh_key"),
    ("backup", {**BACKUP, "backup_offsite_repository": "sftp:a@b:/c", "backup_offsite_password": "r" * 16,
                "backup_offsite_ssh_key": "k", "backup_offsite_host_key": "h"}, "or is backup_restic_password"),
    ("nginx", {**NGINX, "nginx_public": False, "nginx_local_listener": False}, "would serve nothing"),
    ("nginx", {**NGINX, "nginx_upstream_servers": []}, "nginx_upstream_servers is empty"),
    ("nginx", {**NGINX, "nginx_local_listener": True, "nginx_local_upstream_servers": []}, "nginx_local_upstream"),
    ("nginx", {**NGINX, "nginx_open_files_limit": 4096, "nginx_worker_connections": 4096}, "nginx_open_files_limit"),
    ("nginx", {**NGINX, "nginx_requests_per_address": -1}, "nginx_requests_per_address"),
    ("nginx", {**NGINX, "nginx_requests_per_address": 512, "nginx_worker_connections": 1024}, "to half of"),
    ("nginx", {**NGINX, "nginx_metrics_listen": [9145]}, "nginx_metrics_users is empty"),
    ("elastic_repository", {}, "not part of Debian"),
    ("firewall", {"firewall_rules": [{"name": "a", "port": "http"}]}, "http is no port"),
    ("firewall", {"firewall_rules": [{"name": "a", "port": 80, "sources": ["db.example.jp"]}]}, "is no address"),
]  # fmt: skip
GOOD = [
    ("redis", REDIS), ("postgresql", {"postgresql_version": 17}), ("backup", BACKUP), ("nginx", NGINX),
    ("exporter", {**EXPORTER, "exporter_mail_servers": ["mail.x.jp:25", "[::1]:465"]}),
    ("firewall", {"firewall_rules": [{"name": "a", "ports": ["80-90"], "sources": ["192.0.2.0/24"]}]}),
]  # fmt: skip
FACTS = {"ansible_facts": {"distribution_major_version": "13"}}


@offenders.each(GOOD, lambda case: case[0])
def test_valid_values_break_no_rule(case):
    assert problems(case[0], templar(case[0], **{**FACTS, **case[1]})) == []


@offenders.each(BAD, lambda case: f"{case[0]}: {case[2]}")
def test_each_bad_value_breaks_one_rule(case):
    role, given, words = case
    found = problems(role, templar(role, **{**FACTS, **given}))
    assert len(found) == 1 and words in found[0], found


def test_a_rule_that_cannot_be_evaluated_shows_its_text_and_no_value():
    (found,) = found_by(
        {"that": "password | to_datetime is none", "msg": "the password is no date"}, password="Secret-Kw8"
    )
    assert "the password is no date" in found and "Secret-Kw8" not in found
