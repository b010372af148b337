"""The preflight's messages about variables: run as the playbooks run it, by ansible-playbook against no host."""

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

ROOT = Path(__file__).resolve().parents[3]
TASKS = [
    {
        "shiftmaster_variables": {
            "roles": ["shiftmaster", "base", "firewall", "backup", "nginx", "redis"],
            "roles_here": "{{ here | default(['shiftmaster']) }}",
            "known": ["shiftmaster_known"],
            "group_variables": ["monitoring"],
            "required": "{{ needed | default([]) }}",
            "ranges": "{{ ranges | default({}) }}",
            "rules_of": "{{ here | default([]) }}",
            "rules": "{{ ['site_rules'] if site_rules is defined else [] }}",
        },
        "register": "found",
    },
    {"ansible.builtin.debug": {"msg": "FOUND {{ found.problems | to_json }}"}},
]
# Required variables, to which its defaults refer.
RANGES = yaml.safe_load((ROOT / "group_vars/all/ranges.yml").read_text())["preflight_ranges"]
GIVEN = {
    "ranges": RANGES,
    "shiftmaster_database_password": "x",
    "shiftmaster_lock_host": "a",
    "shiftmaster_lb_hosts": ["a"],
}
BAD_NUMBERS = {
    "firewall_connections_per_address": -1,
    "base_hardening_shell_timeout_seconds": 1,
    "backup_wal_limit_mb": 0,
    "nginx_requests_per_address": "-5",
    "nginx_https_port": 70000,
    "shiftmaster_web_threads": 0,
    "firewall_public_ports": [80, 0],
    "redis_instances": [{"name": "main", "port": -1}],
    "base_remote_syslog": {"host": "syslog.example.jp", "port": 99999},
}
BAD_SYSLOG = [
    {"port": 514},
    {"server": "syslog.example.jp"},
    {"host": "a", "port": "many"},
    "syslog.example.jp",
    ["a"],
]
GOOD_SYSLOG = [{}, {"host": "syslog.example.jp"}, {"host": "syslog.example.jp", "port": 6514}]
WIRED = {"monitoring_container_hosts": ["a"], "logging_own": 1, "shiftmaster_git": "y"}
# Each case is a host; those of `wired` have a group_vars/all next to their roles.
CASES = {
    "right": dict(GIVEN, shiftmaster_known=1, shiftmaster_web_threads=2),
    "wrong": dict(
        GIVEN,
        shiftmaster_web_worker=3,
        shiftmaster_web_threads="many",
        shiftmaster_log_dir="{{ nowhere }}",
        needed=[{"name": "vault_x", "hint": "openssl rand -hex 24"}],
        schema="drop",
        site_rules=[{"that": "schema in ['keep', 'reverse']", "msg": "schema={{ schema }} is none of: keep, reverse"}],
    ),
    "empty": dict(GIVEN, vault_x="", needed=[{"name": "vault_x"}]),
    "bare": {},
    "letters": dict(GIVEN, shiftmaster_watch_paths="/"),
    "elsewhere": dict(GIVEN, here=[], shiftmaster_web_threads="many", shiftmaster_web_worker=3),
    "numbers": dict(GIVEN, here=["shiftmaster", "base", "firewall", "backup", "nginx", "redis"], **BAD_NUMBERS),
    **{
        f"{kind}{number}": dict(GIVEN, here=["base"], base_remote_syslog=syslog)
        for kind, values in (("bad-syslog", BAD_SYSLOG), ("good-syslog", GOOD_SYSLOG))
        for number, syslog in enumerate(values)
    },
}
WIRED_CASES = {
    "wired": {**GIVEN, **WIRED},
    "misnamed": {**GIVEN, **WIRED, "monitoring_container_host": ["a"]},
    "text": {
        **GIVEN,
        "monitoring_container_hosts": "abc",
        "shiftmaster_log_files": "{{ monitoring_container_hosts }}",
        "site_rules": [{"loop": "{{ monitoring_container_hosts }}", "msg": "no host is called {{ item }}"}],
    },
    "mapping": {**GIVEN, "monitoring_container_hosts": {"a": 1}},
    "nothing": {**GIVEN, "monitoring_container_hosts": None},
}


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """{case: list of problems}, of one run on a host for each case."""
    directory = tmp_path_factory.mktemp("variables")
    configured = directory / "wired"
    (configured / "group_vars/all").mkdir(parents=True)
    (configured / "group_vars/all/monitoring.yml").write_text(
        "---\nmonitoring_container_hosts: []\nshiftmaster_git: x\n"
    )
    for place, cases in ((directory, CASES), (configured, WIRED_CASES)):
        # Next to the roles and not next to group_vars.
        (place / "roles").symlink_to(ROOT / "roles")
        (place / "play.yml").write_text(
            json.dumps([{"hosts": ":".join(cases), "gather_facts": False, "tasks": TASKS}]), encoding="utf-8"
        )
    (directory / "hosts.yml").write_text(json.dumps({"all": {"hosts": {**CASES, **WIRED_CASES}}}), encoding="utf-8")
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "--inventory", directory / "hosts.yml",
         directory / "play.yml", configured / "play.yml"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
             "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # A report for each playbook.
    reports = [json.loads(text) for text in re.findall(r"^\{$.*?^\}$", done.stdout, re.MULTILINE | re.DOTALL)]
    return {
        host: json.loads(result["msg"][len("FOUND ") :])
        for report in reports
        for play in report["plays"]
        for host, result in play["tasks"][-1]["hosts"].items()
    }


def test_valid_values_have_no_problem(problems):
    assert problems["right"] == []


def test_everything_wrong_is_reported_at_once(problems):
    found = problems["wrong"]
    text = "\n".join(found)
    assert "there is no variable shiftmaster_web_worker (did you mean shiftmaster_web_workers?)" in text
    assert "shiftmaster_web_threads" in text and "int" in text
    assert "variable shiftmaster_log_dir cannot be read" in text
    assert "variable vault_x is not set: openssl rand -hex 24" in text
    assert "schema=drop is none of: keep, reverse" in text
    assert len(found) == 5, found


def test_names_of_the_group_variables_are_those_of_group_vars_all(problems):
    assert problems["wired"] == []
    assert problems["misnamed"] == [
        "there is no variable monitoring_container_host (did you mean monitoring_container_hosts?)"
    ]


@pytest.mark.parametrize("given", ["text", "mapping", "nothing"])
def test_another_type_than_a_list_is_one_problem_by_the_name_of_its_variable(problems, given):
    (problem,) = problems[given]
    assert (
        problem.startswith("monitoring_container_hosts must be a list: ")
        and '{"monitoring_container_hosts": [' in problem
    )


def test_text_for_a_list_of_a_role_is_not_read_letter_by_letter(problems):
    (problem,) = problems["letters"]
    assert problem.startswith("shiftmaster_watch_paths must be a list: ") and '{"shiftmaster_watch_paths": [' in problem


def test_an_empty_secret_is_not_set(problems):
    assert problems["empty"] == ["variable vault_x is not set"]


def test_a_required_option_is_missed(problems):
    assert "shiftmaster_lock_host" in "\n".join(problems["bare"])


def test_values_count_only_where_the_role_runs_and_names_everywhere(problems):
    found = problems["elsewhere"]
    assert len(found) == 1 and "shiftmaster_web_worker " in found[0], found


def test_numbers_out_of_their_range_are_named_in_the_one_list(problems):
    found = [one for one in problems["numbers"] if "out of its range" in one]
    assert {re.split("[=.]", one)[0] for one in found} == set(BAD_NUMBERS)
    assert len(found) == len(BAD_NUMBERS), found


def test_the_form_of_the_syslog_server_is_evaluated(problems):
    def check(number):
        assert any("base_remote_syslog" in one for one in problems[f"bad-syslog{number}"])

    offenders.check_each(range(len(BAD_SYSLOG)), check, lambda number: str(BAD_SYSLOG[number]))
    assert [problems[f"good-syslog{number}"] for number in range(len(GOOD_SYSLOG))] == [[], [], []]


def numbers(options, prefix=""):
    """(name, option) of each option that holds numbers."""
    for name, option in options.items():
        if {option.get("type"), option.get("elements")} & {"int", "float"}:
            yield prefix + name, option
        yield from numbers(option.get("options") or {}, f"{prefix}{name}.")


def test_every_number_of_every_role_has_a_range_and_its_default_is_in_it():
    specification = importlib.util.spec_from_file_location(
        "variables", ROOT / "plugins/action/shiftmaster_variables.py"
    )
    plugin = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(plugin)
    without, outside, names = [], [], set()
    for path in sorted((ROOT / "roles").glob("*/meta/argument_specs.yml")):
        defaults_file = path.parents[1] / "defaults/main.yml"
        defaults = yaml.safe_load(defaults_file.read_text()) if defaults_file.exists() else {}
        for spec in yaml.safe_load(path.read_text())["argument_specs"].values():
            for name, option in numbers(spec.get("options") or {}):
                names.add(name)
                if plugin.range_of(name, RANGES) is None:
                    without.append(name)
                default = defaults.get(name)
                if isinstance(default, (int, float, list)):
                    outside += plugin.range_problems(name, option, default, RANGES)
    assert (without, outside) == ([], [])
    # A range of a name that is gone would be no range of anything.
    ends = {name[found:] for name in names for found in [0, *(m.end() for m in re.finditer("[_.]", name))]}
    assert set(RANGES) <= ends
    assert all(low < high for low, high, *_more in RANGES.values())
