"""playbooks/configure_awx.yml, run on a stub for the modules of awx.awx (stub.py)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import awx_objects
import pytest
import yaml
from awx.table import TABLE, table_faults

ROOT = Path(__file__).resolve().parents[2]
STUB = (ROOT / "tests/awx/stub.py").read_text(encoding="utf-8")
# The settings of a site.
SITE = {
    "awx_url": "https://awx.example.jp",
    "awx_token": "token-of-awx",
    "awx_project_url": "https://git.example.jp/operations.git",
    "awx_image": "registry.example.jp/shiftmaster-ops:1",
    "awx_dir": "/srv/shiftmaster",
    "awx_known_hosts": "shift.example.jp ssh-ed25519 AAAA",
    "awx_job_channels": ["Slack"],
    "awx_mail_host": "mail.example.jp",
    "awx_slack_channels": ["#shiftmaster-alerts"],
    "awx_pagerduty_subdomain": "hospital",
    "vault_awx_vault_password": "password-of-the-vault",
    "vault_awx_ssh_key": "key-of-ssh",
    "vault_alertmanager_slack_url": "https://hooks.slack.com/services/secret-of-slack",
    "vault_awx_mail_password": "password-of-mail",
    "vault_awx_slack_token": "token-of-slack",
    "vault_awx_pagerduty_token": "token-of-pagerduty",
    "vault_awx_pagerduty_service_key": "key-of-pagerduty",
}
SECRETS = [value for name, value in SITE.items() if name.startswith("vault_") or name == "awx_token"]


class Awx:
    """A directory with the stub's modules, what they keep, and what they were called with."""

    def __init__(self, directory):
        self.directory = directory
        self.collection = directory / "collections/ansible_collections/awx/awx"

    def install(self):
        modules = self.collection / "plugins/action"
        modules.mkdir(parents=True)
        (self.collection / "galaxy.yml").write_text("namespace: awx\nname: awx\nversion: 0.0.0\n")
        for kind, options in TABLE.items():
            text = STUB.replace('KIND = ""', f"KIND = {kind!r}").replace("OPTIONS = {}", f"OPTIONS = {options!r}")
            (modules / f"{kind}.py").write_text(text, encoding="utf-8")
        return self

    def run(self, *arguments, **extra):
        (self.directory / "calls.jsonl").write_text("")
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_COLLECTIONS_PATH": str(self.directory / "collections"),
            "AWX_STUB": str(self.directory),
        }
        command = [Path(sys.executable).parent / "ansible-playbook", "-i", ROOT / "inventory/single"]
        command.append(ROOT / "playbooks/configure_awx.yml")
        done = subprocess.run(
            [*command, *arguments, "--extra-vars", json.dumps({**SITE, **extra})],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        done.changed = (
            int(re.search(r"awx_data .*changed=(\d+)", done.stdout)[1]) if "awx_data " in done.stdout else None
        )
        done.calls = [json.loads(line) for line in (self.directory / "calls.jsonl").read_text().splitlines()]
        return done


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    """AWX after a first application, with its output."""
    awx = Awx(tmp_path_factory.mktemp("awx")).install()
    awx.first = awx.run("-vvv")
    assert awx.first.returncode == 0, awx.first.stdout[-5000:] + awx.first.stderr[-2000:]
    return awx


def test_the_repositorys_own_data_fit_the_recorded_options(applied):
    """Each call passed the stub, which has the recorded options; the calls are compared here."""
    kinds = [call["kind"] for call in applied.first.calls]
    # The new inventory is filled before a template uses it; a second run leaves that to the jobs.
    assert kinds[kinds.index("inventory_source_update") - 1] == "inventory_source"
    kinds.remove("inventory_source_update")
    assert [kind for kind in awx_objects.KINDS if kind not in kinds and not kind.startswith("workflow")] == []
    assert sorted(kinds, key=awx_objects.KINDS.index) == kinds
    assert [fault for call in applied.first.calls for fault in table_faults(call["kind"], call["options"])] == []
    # Revoked rights did not exist.
    assert {call["changed"] for call in applied.first.calls if call["kind"] != "role"} == {True}
    logins = {json.dumps(call["login"]["controller_host"]) for call in applied.first.calls}
    assert logins == {'"https://awx.example.jp"'}


def test_a_second_application_plans_and_does_nothing(applied):
    planned = applied.run("--check")
    assert (planned.returncode, planned.changed) == (0, 0), planned.stdout[-3000:]
    again = applied.run()
    assert (again.returncode, again.changed) == (0, 0), again.stdout[-3000:]
    # Channels are created, and configured where they are there.
    others = ("notification_template", "inventory_source_update")
    calls = [[call["options"] for call in run.calls if call["kind"] not in others] for run in (applied.first, again)]
    assert calls[0] == calls[1]
    assert {call["changed"] for call in again.calls} == {False}
    assert "inventory_source_update" not in {call["kind"] for call in planned.calls + again.calls}


def test_a_registry_instance_groups_and_success_are_settings(applied):
    given = {"awx_registry_credential": "registry", "awx_instance_groups": ["dmz"], "awx_success_channels": ["mail"]}
    changed = [(call["kind"], call["options"]) for call in applied.run("--check", **given).calls if call["changed"]]
    templates = [options for kind, options in changed if kind == "job_template"]
    assert [options["credential"] for kind, options in changed if kind == "execution_environment"] == ["registry"]
    assert len(templates) == len(data()["awx_jobs"]) and all(one["instance_groups"] == ["dmz"] for one in templates)
    informed = {one["name"] for one in templates if one.get("notification_templates_success")}
    names = ("deploy", "deploy everything", "roll back", "roll back to")
    assert informed == {f"ShiftMaster single: {name}" for name in names}


def data():
    text = (ROOT / "group_vars/awx/objects.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text.replace("!unsafe ", ""))


def copy_of(applied, directory):
    """Another AWX that holds the same."""
    awx = Awx(directory).install()
    (directory / "world.json").write_text((applied.directory / "world.json").read_text())
    return awx


def test_new_objects_are_planned_and_omitted_ones_are_revoked_and_removed(applied, tmp_path):
    """In check mode a template that is still to be created has no number, and references to it are not checked."""
    job = {"name": "new", "description": "d", "playbook": "playbooks/backup.yml"}
    workflow = {"name": "later", "description": "d", "nodes": [{"id": "x", "job": "new"}]}
    extra = {
        "awx_jobs": [*data()["awx_jobs"], job], "awx_workflows": [*data()["awx_workflows"], workflow],
        "awx_schedules": [{"name": "soon", "job": "new", "frequency": "daily", "at": "02:30"}],
        "awx_teams": [*data()["awx_teams"], {"name": "night", "jobs": ["new"]}],
    }  # fmt: skip
    awx = copy_of(applied, tmp_path)
    planned = awx.run("--check", **extra)
    assert planned.returncode == 0, planned.stdout[-3000:]
    changed = {call["options"].get("name") for call in planned.calls if call["changed"]}
    assert {"ShiftMaster single: new", "ShiftMaster single: later", "ShiftMaster single: night"} <= changed
    assert awx.run(**extra).returncode == 0
    right = "['ShiftMaster single: night'] / execute / job_templates / ShiftMaster single: "
    assert right + "new" in json.loads((tmp_path / "world.json").read_text())["role"]
    left = {"awx_teams": [{"name": "night", "jobs": ["health"]}], "awx_schedules": [], "awx_workflows": []}
    done = awx.run(**left, awx_removed={"job_template": ["new"], "workflow_job_template": ["later"]})
    assert done.returncode == 0, done.stdout[-3000:]
    world = json.loads((tmp_path / "world.json").read_text())
    assert "ShiftMaster single: new" not in world["job_template"]
    assert [name for name in world["role"] if "night" in name and name.endswith("health")] == [right + "health"]


def test_recipients_change_without_the_secrets(applied, tmp_path):
    done = copy_of(applied, tmp_path).run(awx_mail_to=["new@example.jp"])
    assert (done.returncode, done.changed) == (0, 1), done.stdout[-3000:]
    mail = json.loads((tmp_path / "world.json").read_text())["notification_template"]["ShiftMaster single: mail"]
    assert mail["notification_configuration"]["recipients"] == ["new@example.jp"]
    assert mail["notification_configuration"]["password"] == SITE["vault_awx_mail_password"]


def test_a_workflow_fails_where_a_node_fails():
    """AWX takes a failed node with a path for it as handled, and the workflow as successful."""
    nodes = [node for workflow in data()["awx_workflows"] for node in workflow["nodes"]]
    assert [node["id"] for node in nodes if node.get("failure") or node.get("always")] == []
    (approval,) = [node for node in nodes if node.get("approval")]
    assert approval["success"] == ["deploy"]


def test_every_field_that_a_user_can_change_is_set(applied):
    fields = {name for name in TABLE["job_template"] if name.startswith("ask_")}
    fields |= {"limit", "forks", "timeout", "verbosity", "job_tags", "skip_tags"}
    for call in applied.first.calls:
        if call["kind"] == "job_template":
            assert fields <= set(call["options"])
            watch = call["options"]["name"] == "ShiftMaster single: health watch"
            assert (call["options"]["notification_templates_error"] == []) is watch


def test_a_change_of_the_data_changes_that_alone(applied):
    changed = applied.run("--check", awx_health_at="08:15")
    assert [(call["kind"], call["options"]["rrule"]) for call in changed.calls if call["changed"]] == [
        ("schedule", "DTSTART;TZID=Asia/Tokyo:20260101T081500 RRULE:FREQ=DAILY;INTERVAL=1")
    ]


def test_secrets_are_written_on_request_and_never_shown(applied):
    again = applied.run("--check", awx_update_secrets=True)
    written = {call["kind"] for call in again.calls if call["changed"]}
    assert written == {"credential", "notification_template"}
    shown = applied.first.stdout + applied.first.stderr
    assert [secret for secret in SECRETS if secret in shown] == []
    # The stub got them.
    assert [secret for secret in SECRETS if secret not in json.dumps(applied.first.calls)] == []


def test_an_omitted_secret_is_left_unchanged(applied):
    done = applied.run("--check", vault_awx_vault_password="", awx_update_secrets=True)
    vault = [call for call in done.calls if call["options"].get("name") == "ShiftMaster single: vault"]
    assert len(vault) == 1 and "inputs" not in vault[0]["options"] and not vault[0]["changed"]


def enter(awx, kind, name, option, **values):
    """Values entered in AWX's own pages."""
    path = awx.directory / "world.json"
    world = json.loads(path.read_text())
    world[kind]["ShiftMaster single: " + name][option].update(values)
    path.write_text(json.dumps(world))
    return lambda: json.loads(path.read_text())[kind]["ShiftMaster single: " + name][option]


def test_secrets_that_were_entered_in_awx_stay(tmp_path):
    """The documented way: the key of ssh and the token of Slack are not in the vault."""
    awx, empty = Awx(tmp_path).install(), {"vault_awx_ssh_key": "", "vault_awx_slack_token": ""}
    assert awx.run(**empty).returncode == 0
    inputs = enter(awx, "credential", "ssh", "inputs", ssh_key_data="entered", ssh_key_unlock="entered too")
    channel = enter(awx, "notification_template", "Slack", "notification_configuration", token="entered")
    again = awx.run(**empty)
    assert (again.returncode, again.changed) == (0, 0), again.stdout[-3000:]
    written = awx.run(awx_update_secrets=True, **empty)
    assert written.returncode == 0, written.stdout[-3000:]
    assert inputs() == {"username": "root", "ssh_key_data": "entered", "ssh_key_unlock": "entered too"}
    assert channel()["token"] == "entered"
    # Complete objects were written.
    changed = [call["options"]["name"].partition(": ")[2] for call in written.calls if call["changed"]]
    assert sorted(changed) == ["PagerDuty", "Slack", "mail", "vault"], changed


def test_a_mail_server_without_a_login_needs_no_secret(tmp_path):
    awx, values = Awx(tmp_path).install(), {"awx_mail_user": "", "vault_awx_mail_password": ""}
    assert awx.run(**values).returncode == 0
    assert awx.run(awx_update_secrets=True, awx_mail_to=["new@example.jp"], **values).returncode == 0
    world = json.loads((awx.directory / "world.json").read_text())["notification_template"]
    assert world["ShiftMaster single: mail"]["notification_configuration"]["recipients"] == ["new@example.jp"]


def test_every_template_has_a_survey_or_takes_no_option(applied):
    """For each option of a playbook, a template has it in the survey, sets it, or leaves the default."""
    run_options = yaml.safe_load((ROOT / "group_vars/all/options.yml").read_text(encoding="utf-8"))["run_options"]
    for call in applied.first.calls:
        if call["kind"] == "job_template":
            options = call["options"]
            assert [name for name, value in options.items() if name.startswith("ask_") and value] == []
            assert options["survey_enabled"] == ("survey_spec" in options)
            for query in options.get("survey_spec", {"spec": []})["spec"]:
                option = run_options[Path(options["playbook"]).stem][query["variable"]]
                offered = query.get("choices", "").splitlines()
                if isinstance(option.get("choices"), list):
                    assert offered == awx_objects.choices_of(option), query
                assert offered or query["max"] <= 500
            assert options["extra_vars"]["tls_ca_root"] == "/srv/shiftmaster/single"


def test_unknown_hosts_are_rejected_in_every_job(applied):
    types = {
        call["options"]["name"]: call["options"] for call in applied.first.calls if call["kind"] == "credential_type"
    }
    extra = types["ShiftMaster single: known hosts"]["injectors"]["extra_vars"]
    assert (
        extra["ansible_ssh_host_key_checking"] == "true"
        and "StrictHostKeyChecking=yes" in extra["ansible_ssh_common_args"]
    )
    for call in applied.first.calls:
        if call["kind"] == "job_template":
            assert "ShiftMaster single: known hosts" in call["options"]["credentials"]


def test_settings_that_the_site_has_not_set_are_named(tmp_path):
    done = Awx(tmp_path).install().run(awx_url="", awx_dir="")
    assert done.returncode == 2 and "Not set: awx_url, awx_dir" in " ".join(done.stdout.split()) and done.calls == []


def test_a_value_that_a_playbook_refuses_is_refused(tmp_path):
    done = Awx(tmp_path).install().run(awx_language="de")
    assert done.returncode == 2 and done.calls == []
    schedule = {"name": "x", "job": "patch", "frequency": "daily", "at": "02:30", "values": {"reboot": "maybe"}}
    done = Awx(tmp_path).run(awx_schedules=[schedule])
    assert done.returncode == 2 and "reboot=maybe is none of: needed, never, always" in " ".join(done.stdout.split())
    assert done.calls == []


def test_a_missing_collection_is_reported_with_the_command_that_installs_it(tmp_path):
    done = Awx(tmp_path).run()
    output = " ".join(done.stdout.split())
    assert done.returncode == 2 and "ansible-galaxy collection install -r requirements.yml" in output
