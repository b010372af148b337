"""Options of a run: validated by pure functions, and rejected by the playbooks before a host is queried."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import offenders
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = yaml.safe_load((ROOT / "group_vars/all/options.yml").read_text(encoding="utf-8"))["run_options"]
spec = importlib.util.spec_from_file_location("options_action", ROOT / "plugins/action/shiftmaster_options.py")
action = importlib.util.module_from_spec(spec)
spec.loader.exec_module(action)
# A host that is never there (RFC 5737): a connection is UNREACHABLE.
INVENTORY = """
all:
  children:
    single:
      vars: {ansible_group_priority: 10, ansible_ssh_common_args: -o ConnectTimeout=1}
      hosts: &host {absent: {ansible_host: 192.0.2.1}}
    web: {hosts: *host}
    app: {hosts: *host}
    database: {hosts: *host}
    cache: {hosts: *host}
"""
# Values that a shell, git, a template or ssh would make something of.
EVIL = [
    "--upload-pack=x",
    "2.1.0; reboot",
    "$(id)",
    "`id`",
    "{{ 1 + 1 }}",
    "2.1.0\nx",
    "../../etc/passwd",
    "a b",
    "x" * 201,
]


@pytest.mark.parametrize(
    "value", ["2.1.0", "main", "feature/夜勤+1", "v1.0@x", "1234567", 1234567, "release#5", "x" * 200]
)
def test_valid_versions_are_accepted(value):
    assert action.refusals(OPTIONS["deploy"], {"shiftmaster_version": value}) == []
    assert action.refusals(OPTIONS["rollback"], {"to": value}) == []


@pytest.mark.parametrize("value", EVIL)
def test_an_invalid_version_is_rejected(value):
    for playbook, name in (("deploy", "shiftmaster_version"), ("rollback", "to")):
        found = action.refusals(OPTIONS[playbook], {name: value})
        assert len(found) == 1 and found[0].startswith(f"{name}=") and "is not of the form of" in found[0]
        # The message is one line for any input.
        assert "\n" not in found[0]


def test_every_wrong_value_is_named_and_right_ones_are_not():
    values = {"health_format": "xml", "health_language": "ja", "health_fail_on": "sometimes"}
    assert action.refusals(OPTIONS["health"], values) == [
        "health_format=xml is none of: text, json",
        "health_fail_on=sometimes is none of: critical, warning, never",
    ]


def test_booleans_are_the_usual_words():
    for value in (True, False, "true", "false"):
        assert action.refusals(OPTIONS["deploy"], {"shiftmaster_allow_contract": value}) == []
    assert action.refusals(OPTIONS["deploy"], {"shiftmaster_allow_contract": "perhaps"}) != []


@pytest.mark.parametrize("value", [2.1, True])
def test_a_version_that_was_read_as_something_else_is_refused(value):
    """2.10 in YAML without quotes is 2.1, another version."""
    assert "refs/tags/" in action.refusals(OPTIONS["deploy"], {"shiftmaster_version": value})[0]
    assert "refs/tags/" in action.refusals(OPTIONS["rollback"], {"to": value})[0]
    assert action.refusals(OPTIONS["deploy"], {"shiftmaster_version": "refs/tags/2.10"}) == []


def test_values_from_awx_are_the_chosen_ones():
    """AWX marks each value as text (!unsafe 'false'); Ansible reads it like one without quotes all the same."""
    for options in OPTIONS.values():
        for option in options.values():
            choices = option.get("choices", [])
            for output in [option["like"]] if "like" in option else [] if isinstance(choices, str) else choices:
                read = DataLoader().load(f"answer: !unsafe '{output}'\n")["answer"]
                assert action.text_of(read) == output or output in ("on", "off")
                assert "pattern" not in option or isinstance(read, str)


def test_each_of_several_values_is_evaluated():
    options = {"secrets": {"choices": ["database", "redis"], "several": True}}
    assert action.refusals(options, {"secrets": "database, redis"}) == []
    assert action.refusals(options, {"secrets": "database,kerberos"}) == [
        "secrets=kerberos is none of: database, redis"
    ]
    # One is one where no several are meant.
    assert action.refusals({"schema": {"choices": ["keep", "reverse"]}}, {"schema": "keep,reverse"}) != []


def test_an_empty_value_is_left_to_the_playbook():
    assert action.refusals(OPTIONS["rollback"], {"to": "", "schema": " "}) == []


def test_an_empty_value_is_refused_where_the_playbook_has_none_of_its_own():
    assert action.refusals(OPTIONS["diagnose"], {"area": "", "language": " "}) == [
        "area is empty: omit it, or use one of: all, app, db, cpu, memory, disk, network",
        "language is empty: omit it, or use one of: en, ja",
    ]
    assert action.refusals(OPTIONS["diagnose"], {"report_host": ""}) == []
    assert all("choices" in option for options in OPTIONS.values() for option in options.values() if "needed" in option)


def test_a_month_that_has_not_begun_is_refused():
    assert action.refusals(OPTIONS["checklist"], {"month": "2099-01"}) == [
        "month=2099-01 has not begun, so there is nothing of it"
    ]
    # The running month has its past days.
    assert action.refusals(OPTIONS["checklist"], {"month": action.latest_month()}) == []
    assert action.refusals(OPTIONS["checklist"], {"month": "2026-10"}) == []


def test_a_name_near_that_of_an_option_is_refused():
    assert action.misnamed(OPTIONS["diagnose"], ["fail_on", "hours", "diagnose_area", "area"], "diagnose") == [
        "fail_on is no option of this playbook: diagnose_fail_on is",
        "hours is no option of this playbook: diagnose_hours is",
        "diagnose_area is no option of this playbook: area is",
    ]
    assert action.misnamed(OPTIONS["deploy"], ["version"], "deploy") == [
        "version is no option of this playbook: shiftmaster_version is"
    ]
    assert action.misnamed(OPTIONS["rollback"], ["shema"], "rollback") == [
        "shema is no option of this playbook: schema is"
    ]
    assert action.misnamed(OPTIONS["move"], ["too", "stpe"], "move") == [
        "too is no option of this playbook: to is",
        "stpe is no option of this playbook: step is",
    ]
    # Names of roles and sites are not checked, nor are options of other playbooks.
    for name in ("nginx_state", "health_fail_on", "host", "app_language", "report_dir", "target"):
        for playbook, options in OPTIONS.items():
            if playbook != "health":
                assert action.misnamed(options, [name], playbook) == [], playbook


def test_every_option_is_bounded_and_shows_an_example():
    for playbook, options in OPTIONS.items():
        for name, option in options.items():
            assert ("choices" in option) != ("pattern" in option), f"{playbook}: {name}"
            if "pattern" in option:
                assert re.fullmatch(option["pattern"], option["like"]), f"{playbook}: {name}"


def play(playbook, directory, *arguments, **extra):
    inventory = directory / "hosts.yml"
    inventory.write_text(INVENTORY)
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    command = [Path(sys.executable).parent / "ansible-playbook", "--inventory", inventory, ROOT / playbook]
    return subprocess.run(
        [*command, *arguments, "--extra-vars", json.dumps(extra)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


@offenders.each(lambda: [name for name in OPTIONS if name != "maintenance"])
def test_playbooks_begin_with_the_check_of_their_options(name):
    """Before facts, roles and other tasks, of all hosts at once, with any tags."""
    plays = yaml.safe_load((ROOT / f"playbooks/{name}.yml").read_text(encoding="utf-8"))
    first, task = plays[0], plays[0]["tasks"][0]
    assert first["hosts"] == "all" and first["gather_facts"] is False
    assert not {"pre_tasks", "roles", "serial", "strategy"} & set(first)
    begin = task["ansible.builtin.import_role"].pop("tasks_from")
    assert begin in ("options", "start") and task["ansible.builtin.import_role"] == {"name": "preflight"}
    assert task["vars"] == {"preflight_playbook": name}
    assert set(task) == {"name", "ansible.builtin.import_role", "vars"}
    start = yaml.safe_load((ROOT / "roles/preflight/tasks/start.yml").read_text(encoding="utf-8"))
    assert start[0]["ansible.builtin.import_tasks"] == "options.yml" and len(start[0]) == 2
    names, check = yaml.safe_load((ROOT / "roles/preflight/tasks/options.yml").read_text(encoding="utf-8"))
    assert names["run_once"] is check["run_once"] is True and names["shiftmaster_variables"]["extra_only"] is True
    assert check["shiftmaster_options"] == {
        "options": "{{ run_options[preflight_playbook] }}", "playbook": "{{ preflight_playbook }}",
        "problems": "{{ preflight_extra.problems + preflight_option_problems }}",
    }  # fmt: skip
    tagged = [play for play in plays if "tags" in play or any("tags" in task for task in play.get("tasks", []))]
    assert "always" in first.get("tags", []) if tagged else "tags" not in first


def test_playbooks_reject_before_they_query_a_host(tmp_path):
    # The playbook's name is that of its file; the choices are a template.
    done = play("playbooks/rotate.yml", tmp_path, secrets="django,x", rotate_secrets="tls")
    output = " ".join(done.stdout.split())
    assert done.returncode == 2, done.stdout + done.stderr
    assert "rotate_secrets is no option of this playbook: secrets is" in output
    assert "secrets=x is none of: database, redis, django, tls" in output and "Nothing was changed" in output
    assert "UNREACHABLE" not in output


@offenders.each(
    [
        ("deploy", {"shiftmaster_version": "2.1.0; reboot"}, "version=2.1.0; reboot is not of the form"),
        ("rollback", {"schema": "drop"}, "schema=drop is none of: keep, reverse, restore"),
        ("health", {"health_fail_on": "no"}, "health_fail_on=no is none of: critical, warning, never"),
        ("health", {"health_language": ""}, "health_language is empty"),
        ("diagnose", {"area": ""}, "area is empty: omit it, or use one of: all, app"),
        ("checklist", {"period": "monthly", "month": "2099-01"}, "month=2099-01 has not begun"),
        ("patch", {"reboot": "maybe"}, "reboot=maybe is none of: needed, never, always"),
    ]
)
def test_values_that_each_playbook_rejects(case):
    playbook, values, sentence = case
    assert [sentence in found for found in action.refusals(OPTIONS[playbook], values)] == [True]


def test_tags_and_limits_do_not_skip_it(tmp_path):
    # A variable of a role that does not exist is found before a host is contacted, too.
    options = {"shiftmaster_version": "-x", "shiftmaster_vershun": "1"}
    done = play("deploy.yml", tmp_path, "--tags", "release", "--limit", "absent", **options)
    assert done.returncode == 2 and "is not of the form of" in done.stdout and "UNREACHABLE" not in done.stdout
    assert "shiftmaster_vershun (did you mean shiftmaster_version?)" in done.stdout


def test_a_misspelt_tag_is_found_before_a_host_is_reached(tmp_path):
    done = play("deploy.yml", tmp_path, "--tags", "relase,nginx")
    assert done.returncode == 2 and "There is no tag relase; there are base, " in done.stdout, done.stdout
    assert "UNREACHABLE" not in done.stdout and "no tag nginx" not in done.stdout


def test_a_valid_value_is_passed_to_the_hosts(tmp_path):
    """The verification that the tests above would notice a host that is queried."""
    done = play("rollback.yml", tmp_path, schema="keep")
    assert done.returncode == 4 and "UNREACHABLE" in done.stdout, done.stdout + done.stderr
