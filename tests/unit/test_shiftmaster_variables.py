"""What the preflight says of variables: run as the playbooks run it, by ansible-playbook against no host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - shiftmaster_variables:
        roles: [shiftmaster]
        roles_here: "{{ here | default(['shiftmaster']) }}"
        known: [shiftmaster_known]
        wiring: [monitoring]
        required: "{{ needed | default([]) }}"
        choices: "{{ chosen | default([]) }}"
      register: found
    - ansible.builtin.copy:
        dest: "{{ answer }}"
        mode: "0600"
        content: "{{ found.problems | to_json }}"
"""
# What the role cannot do without, and its defaults refer to.
GIVEN = {"shiftmaster_database_password": "x", "shiftmaster_lock_host": "a", "shiftmaster_edge_hosts": ["a"]}


@pytest.fixture
def problems(tmp_path):
    """A function of variables that returns the list of problems."""
    # Beside the roles and not beside group_vars.
    (tmp_path / "roles").symlink_to(ROOT / "roles")
    play = tmp_path / "play.yml"
    play.write_text(PLAY)

    def ask(given=True, **variables):
        answer = tmp_path / "answer.json"
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), "--inventory", "localhost,", str(play),
             "--extra-vars", json.dumps({"answer": str(answer), **(GIVEN if given else {}), **variables})],
            cwd=ROOT, env=dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg")), capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(answer.read_text())

    return ask


def test_nothing_is_wrong_with_what_is_right(problems):
    assert problems(shiftmaster_known=1, shiftmaster_web_threads=2) == []


def test_everything_wrong_is_said_at_once(problems):
    found = problems(
        shiftmaster_web_worker=3,
        shiftmaster_web_threads="many",
        shiftmaster_log_dir="{{ nowhere }}",
        needed=[{"name": "vault_x", "hint": "openssl rand -hex 24"}],
        chosen=[{"name": "schema", "value": "drop", "choices": ["keep", "reverse"]}],
    )
    text = "\n".join(found)
    assert "there is no variable shiftmaster_web_worker (did you mean shiftmaster_web_workers?)" in text
    assert "shiftmaster_web_threads" in text and "int" in text
    assert "variable shiftmaster_log_dir cannot be read" in text
    assert "variable vault_x is not set: openssl rand -hex 24" in text
    assert "schema=drop is none of: keep, reverse" in text
    assert len(found) == 5, found


def test_names_of_the_wiring_are_those_of_group_vars_all(problems, tmp_path):
    (tmp_path / "group_vars/all").mkdir(parents=True)
    (tmp_path / "group_vars/all/monitoring.yml").write_text("---\nmonitoring_container_hosts: []\nshiftmaster_git: x\n")
    given = {"monitoring_container_hosts": ["a"], "logging_own": 1, "shiftmaster_git": "y"}
    assert problems(**given) == []
    assert problems(**given, monitoring_container_host=["a"]) == [
        "there is no variable monitoring_container_host (did you mean monitoring_container_hosts?)"
    ]


def test_an_empty_secret_is_not_set(problems):
    assert problems(vault_x="", needed=[{"name": "vault_x"}]) == ["variable vault_x is not set"]


def test_a_required_option_is_missed(problems):
    assert "shiftmaster_lock_host" in "\n".join(problems(given=False))


def test_values_count_only_where_the_role_runs_and_names_everywhere(problems):
    found = problems(here=[], shiftmaster_web_threads="many", shiftmaster_web_worker=3)
    assert len(found) == 1 and "shiftmaster_web_worker " in found[0], found
