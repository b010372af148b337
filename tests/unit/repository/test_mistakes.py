"""Mistakes that users make with the commands, and which test shows that each names its cause and the next command.

Where a mistake is found before this repository is read (the locale, a file or an inventory that does not exist), the
message is Ansible's own; ./shiftmaster avoids it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

LAST = 15
COVERED = {
    "the demo is not running and no inventory is named": "release/test_phases.py::test_the_reason_why_a_module_did",
    "wrong password of the vault": "repository/test_mistakes.py::test_a_wrong_password_of_the_vault",
    "no password of the vault": "release/test_phases.py::test_a_vault_without_its_password_is_named",
    "host that cannot be reached": "release/test_phases.py::test_an_unreachable_host_is_named",
    "unknown host key": "release/test_phases.py::test_a_known_cause_names_the_next_command",
    "key that the host does not accept": "release/test_phases.py::test_a_known_cause_names_the_next_command",
    "password of sudo": "release/test_phases.py::test_a_known_cause_names_the_next_command",
    "another working directory": "repository/test_mistakes.py::test_another_working_directory",
    "old ansible-core": "repository/test_mistakes.py::test_an_old_ansible_is_named",
    "no Ansible": "repository/test_wrapper.py::test_without_the_virtual_environment_it_names",
    "no Python on the host": "release/test_phases.py::test_the_reason_why_a_module_did",
    "another locale than UTF-8": "repository/test_wrapper.py::test_the_vault_password_and_the_locale_are_set",
    "another type than a list": "plugins/test_shiftmaster_variables.py::test_another_type_than_a_list_is_one_problem",
    "another type of a role's variable": "plugins/test_shiftmaster_variables.py::test_everything_wrong_is_reported",
    "a second deploy at the same time": "release/test_lock_tasks.py::test_a_running_operation_is_named",
    "verify.yml without a logging pipeline": "repository/test_mistakes.py::test_a_verification_that_checked_nothing",
    "sources of people on a single host": "roles/test_group_variables.py::test_the_monitoring_of_a_single_host",
    "misspelt variable": "plugins/test_shiftmaster_options.py::test_tags_and_limits_do_not_skip_it",
    "misspelt tag": "plugins/test_shiftmaster_options.py::test_a_misspelt_tag_is_found",
    "misspelt command or option": "repository/test_wrapper.py::test_an_unknown_option_or_command_is_named",
    "misspelt environment": "repository/test_wrapper.py::test_the_environment_is_a_choice",
    "version that does not exist": "plugins/test_shiftmaster_source.py::test_an_unknown_version_is_one_sentence",
    "secret that is not set": "plugins/test_shiftmaster_variables.py::test_an_empty_secret_is_not_set",
}


def run(*words, cwd=ROOT, **environment):
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), *words], cwd=cwd, text=True, timeout=600, check=False,
        env={**os.environ, "LANG": "C.UTF-8", **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, "\n".join(done.stdout.splitlines()[-LAST:])


@pytest.fixture
def here():
    return {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "phases", "SHIFTMASTER_LOG_DIR": ""}


@pytest.mark.parametrize("mistake", COVERED)
def test_each_mistake_has_a_test(mistake):
    path, name = COVERED[mistake].split("::")
    assert re.search(rf"(?m)^def {name}", (ROOT / "tests/unit" / path).read_text(encoding="utf-8"))


def test_another_working_directory(tmp_path):
    """Without ansible.cfg nothing of this repository is loaded but the playbook: Ansible's error shows its lines."""
    for playbook in ("deploy.yml", "playbooks/backup.yml"):
        code, end = run("-i", "localhost,", ROOT / playbook, cwd=tmp_path, ANSIBLE_CONFIG="")
        assert code and "was not found" in end and "cd to the repository" in end, end
    for path in (ROOT / "playbooks").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        first = re.search(r"_role:\n +name: .*", text)
        assert "import_playbook" in text if first is None else "# Not found? cd to the repository" in first[0], (
            path.name
        )


def test_an_old_ansible_is_named_before_it_reads_a_playbook(tmp_path, here):
    """ansible-core alone does not know the modules of collections, which it reports as a misspelling."""
    (tmp_path / "sitecustomize.py").write_text("import ansible.release\nansible.release.__version__ = '2.16.9'\n")
    (tmp_path / "play.yml").write_text("- {hosts: all, tasks: [{community.none.module: }]}\n")
    code, end = run("-i", "localhost,", tmp_path / "play.yml", PYTHONPATH=str(tmp_path), **here)
    assert code == 1 and re.search(r"2\.16\.9; .*make bootstrap", end) and "resolve" not in end, end


def test_the_status_of_a_host_that_nothing_was_deployed_to(tmp_path, here):
    (tmp_path / "hosts").write_text("[app]\nnone ansible_connection=local ansible_become=false\n")
    for playbook in ("status", "history"):
        code, end = run("-i", tmp_path / "hosts", f"playbooks/{playbook}.yml", **here)
        assert code == 0 and "nothing is deployed yet" in end, end


def test_a_wrong_password_of_the_vault(tmp_path, here):
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(name)
    command = [Path(sys.executable).with_name("ansible-vault"), "encrypt", "--vault-password-file", tmp_path / "right"]
    vault = subprocess.run(command, input="x: 1\n", capture_output=True, text=True, timeout=300, check=True).stdout
    (tmp_path / "group_vars/all").mkdir(parents=True)
    (tmp_path / "group_vars/all/vault.yml").write_text(vault)
    (tmp_path / "hosts").write_text("a ansible_connection=local\n")
    code, end = run("-i", tmp_path / "hosts", "--vault-password-file", tmp_path / "wrong", "deploy.yml", **here)
    assert code and "Decryption failed" in end and re.search(r"Next: .*--vault-password-file", end), end


def test_a_verification_that_checked_nothing(tmp_path, here):
    task = {"ansible.builtin.import_role": {"name": "verify", "tasks_from": "report"}}
    path = tmp_path / "verify.yml"
    path.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]))
    code, end = run("-i", "localhost,", "-c", "local", path, **here)
    assert code == 2 and re.search(r"Result: .*elasticsearch, logstash, kibana", end) and "FAILED" not in end, end
