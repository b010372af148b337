"""Jobs as AWX prepares them, started by the ansible-runner that AWX starts them by.

A directory for the job; the project in it can only be read; extra variables, environment, passwords and injected files
are files; the inventory is a script that prints what the project's own one holds; there is no terminal.

SHIFTMASTER_RUNNER_PYTHON  an interpreter that has ansible-runner (scripts/test_awx makes one)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
RUNNER = """
import json, sys, ansible_runner
done = ansible_runner.run(quiet=True, **json.loads(sys.argv[1]))
print(json.dumps({"status": done.status, "code": done.rc}))
"""
# The project is read-only: root may write everywhere, so for root it is mounted read-only.
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
VAULT_PASSWORD = "password of the vault"
VAULT = {
    "vault_shiftmaster_secret_key": "a" * 40,
    "vault_shiftmaster_database_password": "b" * 40,
    "vault_shiftmaster_redis_password": "c" * 40,
    "vault_redis_admin_password": "d" * 40,
}


class Unsafe(str):
    """Survey values: AWX marks them, so that no template in them is evaluated."""


yaml.SafeDumper.add_representer(Unsafe, lambda dumper, value: dumper.represent_scalar("!unsafe", str(value)))


def copy_of_the_repository(target):
    """The files of AWX after it fetched the project."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        source = ROOT / name
        if source.is_symlink() or source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """The project with an encrypted vault, as a site commits it."""
    directory = tmp_path_factory.mktemp("project")
    copy_of_the_repository(directory)
    password = tmp_path_factory.mktemp("password") / "vault"
    password.write_text(VAULT_PASSWORD)
    vault = directory / "group_vars/single/vault.yml"
    vault.write_text(yaml.safe_dump(VAULT))
    encrypt = [BIN / "ansible-vault", "encrypt", "--vault-password-file", password, vault]
    subprocess.run(encrypt, capture_output=True, check=True)
    return directory


@pytest.fixture(scope="session")
def inventory(project):
    """AWX's copy of the project's inventory, from ansible-inventory."""
    command = [BIN / "ansible-inventory", "--list", "--export", "-i", "inventory/single/hosts.yml"]
    done = subprocess.run(
        [*command, "--playbook-dir", "inventory/single"], cwd=project, capture_output=True, text=True, check=True
    )
    kept = json.loads(done.stdout)
    assert kept["app"]["hosts"] == kept["single"]["hosts"] == ["shift.example.jp"]
    # A host that is never there (RFC 5737).
    kept["_meta"]["hostvars"] = {"shift.example.jp": {"ansible_host": "192.0.2.1"}}
    return kept


class Job:
    """A job's directory, and what became of it."""

    def __init__(self, directory, project, inventory):
        self.directory, self.project = directory, directory / "project"
        shutil.copytree(project, self.project, symlinks=True)
        (directory / "inventory").mkdir()
        hosts = directory / "inventory/hosts"
        hosts.write_text(f"#! /usr/bin/env python3\nprint({json.dumps(json.dumps(inventory))})\n")
        hosts.chmod(0o700)
        (directory / "env").mkdir()
        (directory / "cp").mkdir()
        (directory / "home").mkdir()
        self.passwords = {r"Vault password:\s*?$": VAULT_PASSWORD}
        self.environment = {
            "HOME": str(directory / "home"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            # As AWX sets them for each job.
            "ANSIBLE_FORCE_COLOR": "True",
            "ANSIBLE_HOST_KEY_CHECKING": "False",
            "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
            "ANSIBLE_PARAMIKO_RECORD_HOST_KEYS": "False",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(directory / "cp"),
            "AWX_PRIVATE_DATA_DIR": str(directory),
            "JOB_ID": "12",
            "INVENTORY_ID": "2",
            "PROJECT_REVISION": "0" * 40,
            "MAX_EVENT_RES": "700000",
        }
        # Variables of AWX, of the job template, and of the survey.
        self.variables = {
            "awx_job_id": 12,
            "awx_user_name": Unsafe("tanaka"),
            "awx_job_template_name": Unsafe("ShiftMaster single: deploy"),
            "tls_ca_root": str(directory / "outliving/single"),
            "shiftmaster_source_cache": str(directory / "outliving/cache"),
        }

    def inject(self, name, content, variable):
        """A file of a credential; its path goes into the environment."""
        path = self.directory / "env" / name
        path.write_text(content)
        path.chmod(0o600)
        self.environment[variable] = str(path)
        return path

    def run(self, **wish):
        env = self.directory / "env"
        (env / "extravars").write_text(yaml.safe_dump(self.variables, allow_unicode=True))
        (env / "envvars").write_text(yaml.safe_dump(self.environment))
        (env / "passwords").write_text(yaml.safe_dump(self.passwords))
        (env / "settings").write_text(yaml.safe_dump({"idle_timeout": 300, "job_timeout": 300, "pexpect_timeout": 5}))
        (env / "cmdline").write_text("--ask-vault-pass -u root")
        before = listing(self.project)
        assert "SHIFTMASTER_RUNNER_PYTHON" in os.environ, "SHIFTMASTER_RUNNER_PYTHON is not set: scripts/test_awx"
        options = {"private_data_dir": str(self.directory), "ident": "12", **wish}
        command = [os.environ["SHIFTMASTER_RUNNER_PYTHON"], "-c", RUNNER, json.dumps(options)]
        if os.geteuid() == 0:
            command = ["unshare", "--mount", "sh", "-c", READ_ONLY, self.project, *command]
        else:
            for path in [self.project, *self.project.rglob("*")]:
                path.is_symlink() or path.chmod(path.stat().st_mode & 0o555)
        done = subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400, check=False,
            start_new_session=True,
            env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        response = json.loads(done.stdout.splitlines()[-1])
        self.status, self.code = response["status"], response["code"]
        artifacts = self.directory / "artifacts/12"
        raw = (artifacts / "stdout").read_text(errors="replace")
        self.output = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", raw).split())
        self.events = [json.loads(path.read_text()) for path in sorted((artifacts / "job_events").glob("*.json"))]
        # It could not be written to, and was not.
        assert listing(self.project) == before
        return self


def listing(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.fixture
def job(tmp_path, project, inventory):
    return Job(tmp_path, project, inventory)


def test_the_health_check_runs_and_shows_which_host_is_unreachable(job):
    job.variables |= {"health_language": Unsafe("ja"), "health_fail_on": Unsafe("critical"), "health_format": "json"}
    job.run(playbook="playbooks/health.yml")
    assert (job.status, job.code) == ("failed", 4), job.output[-3000:]
    assert "shift.example.jp" in job.output and "UNREACHABLE" in job.output
    # AWX reads events, not the output.
    tasks = {event["event_data"].get("task") for event in job.events if "event_data" in event}
    assert {"Health | Run all checks of the host", "Health | Show the report"} <= tasks


@pytest.mark.parametrize(
    "playbook, name, value, sentence",
    [
        ("deploy.yml", "shiftmaster_version", "2.1.0; reboot", "shiftmaster_version=2.1.0; reboot is not of the form"),
        ("deploy.yml", "shiftmaster_allow_contract", "perhaps", "shiftmaster_allow_contract=perhaps is none of"),
        ("rollback.yml", "schema", "drop", "schema=drop is none of: keep, reverse, restore"),
        ("rollback.yml", "to", "--help", "to=--help is not of the form"),
        ("deploy.yml", "shiftmaster_version", "2.10", "shiftmaster_version=2.1 was read as a number"),
        ("playbooks/health.yml", "health_fail_on", "rarely", "health_fail_on=rarely is none of"),
        ("playbooks/backup.yml", "kind", "fulll", "kind=fulll is none of: auto, full, incr"),
        ("playbooks/restore.yml", "parts", "everything", "parts=everything is none of"),
        ("playbooks/restore.yml", "target", "; reboot", "target=; reboot is not of the form"),
    ],
)
def test_values_outside_the_survey_are_rejected_before_a_host_is_queried(job, playbook, name, value, sentence):
    """By AWX's API a job can be started with other values than the page offers, where a survey is switched off."""
    job.variables[name] = Unsafe(value)
    job.run(playbook=playbook)
    assert (job.status, job.code) == ("failed", 2), job.output[-3000:]
    assert sentence in job.output and "Nothing was changed" in job.output and "UNREACHABLE" not in job.output


def test_a_template_in_a_survey_value_is_text(job):
    mark = job.directory / "evaluated"
    job.variables["shiftmaster_version"] = Unsafe("{{ lookup('ansible.builtin.pipe', 'touch %s') }}" % mark)
    job.run(playbook="deploy.yml")
    assert job.code == 2 and "is not of the form" in job.output and not mark.exists()


def test_valid_survey_values_are_passed_to_the_hosts(job):
    """So the refusals above are for the values."""
    job.variables |= {"schema": Unsafe("keep"), "to": Unsafe("2.0.0")}
    job.run(playbook="rollback.yml")
    assert job.code == 4 and "UNREACHABLE" in job.output, job.output[-3000:]


def test_the_vault_is_opened_with_the_password_from_awx(job):
    job.passwords = {r"Vault password:\s*?$": "another password"}
    job.run(playbook="rollback.yml")
    assert job.status == "failed" and "Decryption failed" in job.output, job.output[-3000:]
    assert "UNREACHABLE" not in job.output and "Preflight |" not in job.output


def test_injected_files_are_read_and_the_audit_names_the_user(job):
    """Secrets of credentials come as files; the user who started the job replaces the container's user."""
    job.inject("slack", "https://hooks.slack.com/services/T/B/X\n", "SHIFTMASTER_SLACK_URL_FILE")
    job.inject("pagerduty", "0123456789abcdef\n", "SHIFTMASTER_PAGERDUTY_KEY_FILE")
    (job.project / "playbooks/look.yml").write_text(LOOK)
    job.run(playbook="playbooks/look.yml")
    assert (job.status, job.code) == ("successful", 0), job.output[-3000:]
    found = [
        event["event_data"]["res"]["msg"]
        for event in job.events
        if event.get("event") == "runner_on_ok" and event["event_data"]["task"] == "Look"
    ]
    assert found == [
        {
            "slack": "https://hooks.slack.com/services/T/B/X",
            "pagerduty": "0123456789abcdef",
            "who": "tanaka@AWX job 12",
            "environment": "single",
        }
    ]


LOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {name: preflight, tasks_from: begin}
      vars: {preflight_operation: deploy, topology_addresses: {}}
    - name: Look
      ansible.builtin.debug:
        msg:
          slack: "{{ notify_slack_url }}"
          pagerduty: "{{ notify_pagerduty_routing_key }}"
          who: "{{ shiftmaster_run.who }}"
          environment: "{{ monitoring_environment }}"
"""
