"""./shiftmaster: which command it runs and what it sets, against a stub of Ansible that writes both down."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support import ROOT

STUB = """#!{python}
import json, os, sys, time
if "--help" in sys.argv:
    # As Ansible, which needs a locale that this machine has.
    if os.environ["LC_ALL"] != "C.UTF-8":
        sys.exit(1)
    sys.exit(print("--check --diff --forks --ask-become-pass"))
with open("{out}", "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]) + "\\n")
if os.environ.get("WAIT") and "deploy.yml" in sys.argv:
    print("waiting", flush=True)
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        sys.exit(99)
sys.exit(int(os.environ.get("CODE", "0")))
"""


JAPANESE = re.compile("[ぁ-んァ-ヶ一-龠]")


class Copy:
    """The wrapper in a repository of its own, with a stub in its virtual environment."""

    def __init__(self, path: Path):
        self.root, self.out, self.home = path / "repository", path / "calls", path / "home"
        for directory in (
            self.root / ".venv/bin",
            *(self.root / f"group_vars/{x}" for x in ("all", "single")),
            self.home,
        ):
            directory.mkdir(parents=True)
        for name in ("shiftmaster", "CHANGELOG.md"):
            shutil.copy(ROOT / name, self.root)
        for name in ("cli", "inventory", "module_utils", "playbooks"):
            shutil.copytree(ROOT / name, self.root / name)
        for name in ("deploy.yml", "rollback.yml"):
            shutil.copy(ROOT / name, self.root)
        for name in ("single/vars.yml", "all/options.yml"):
            shutil.copy(ROOT / "group_vars" / name, self.root / "group_vars" / name)
        (self.root / "ansible.cfg").write_text("[defaults]\n")
        python = self.root / ".venv/bin/python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        for name in ("ansible", "ansible-playbook"):
            stub = self.root / ".venv/bin" / name
            stub.write_text(STUB.format(python=sys.executable, out=self.out))
            stub.chmod(0o755)

    def environment(self, **more):
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "LC_ALL": "C.UTF-8", **more}

    def run(self, *words, responses="", **more):
        return subprocess.run(
            [self.root / "shiftmaster", *words], cwd="/", env=self.environment(**more), input=responses,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def calls(self):
        return [json.loads(line) for line in self.out.read_text().splitlines()] if self.out.exists() else []


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["deploy", "2.1.0"], ["deploy.yml", "-e", {"shiftmaster_version": "2.1.0"}]),
        (["deploy"], ["deploy.yml"]),
        (["deploy", "--check", "--tags", "release"], ["deploy.yml", "--check", "--tags", "release", "--diff"]),
        (["deploy", "2.10", "--check"], ["deploy.yml", "-e", {"shiftmaster_version": "2.10"}, "--check", "--diff"]),
        (["rollback"], ["rollback.yml"]),
        (
            ["rollback", "2.0.0", "-e", "schema=restore"],
            ["rollback.yml", "-e", {"to": "2.0.0"}, "-e", "schema=restore"],
        ),
        (["health"], ["playbooks/health.yml"]),
        (["diagnose", "-e", "language=ja"], ["playbooks/diagnose.yml", "-e", "language=ja"]),
        (["checklist", "morning"], ["playbooks/checklist.yml", "-e", {"period": "morning"}]),
        (["backup"], ["playbooks/backup.yml"]),
        (["restore", "-e", "list=true"], ["playbooks/restore.yml", "-e", "list=true"]),
        (["maintenance", "-e", "state=off"], ["playbooks/maintenance.yml", "-e", "state=off"]),
        (["verify"], ["playbooks/verify.yml"]),
        (["status"], ["playbooks/status.yml"]),
        (["history", "--limit", "app1"], ["playbooks/history.yml", "--limit", "app1"]),
        (["maintenance", "on"], ["playbooks/maintenance.yml", "-e", {"state": "on"}]),
        (["maintenance", "off"], ["playbooks/maintenance.yml", "-e", {"state": "off"}]),
    ],
)
def test_a_command_is_one_playbook_that_exists(copy, words, expected):
    assert copy.run("-E", "production", *words).returncode == 0
    ((program, arguments, cwd, environment),) = copy.calls()
    arguments = [json.loads(word) if word.startswith("{") else word for word in arguments]
    assert (program, arguments) == ("ansible-playbook", expected) and (ROOT / arguments[0]).exists()
    assert cwd == str(copy.root) and environment["ANSIBLE_CONFIG"] == str(copy.root / "ansible.cfg")
    assert environment["ANSIBLE_INVENTORY"] == str(copy.root / "inventory/production")
    assert environment["PATH"].startswith(str(copy.root / ".venv/bin"))
    assert environment["SHIFTMASTER_CALLED_AS"] == f"{copy.root}/shiftmaster -E production"


@pytest.mark.parametrize("command", ["status", "history"])
def test_status_and_history_query_the_hosts_for_what_shiftmasterctl_knows(command):
    (play,) = yaml.safe_load((ROOT / f"playbooks/{command}.yml").read_text())
    assert play["hosts"] == "app" and play["tasks"][0]["vars"] == {"shiftmaster_report": command}
    assert f'"{command}"' in (ROOT / "roles/shiftmaster/files/shiftmasterctl").read_text()


def test_the_exit_code_is_ansibles(copy):
    assert [copy.run("health", CODE=code).returncode for code in ("2", "4")] == [2, 4]


def test_the_environment_is_a_choice_and_never_production_by_itself(copy):
    copy.run("health")
    copy.run("health", ANSIBLE_INVENTORY="elsewhere")
    copy.run("health", SHIFTMASTER_ENVIRONMENT="single")
    found = [environment.get("ANSIBLE_INVENTORY") for _, _, _, environment in copy.calls()]
    assert found == [None, "elsewhere", str(copy.root / "inventory/single")]
    done = copy.run("-E", "producton", "health")
    assert done.returncode == 2 and "Did you mean production?" in done.stderr and len(copy.calls()) == 3


def test_the_vault_password_and_the_locale_are_set_where_they_are_missing(copy):
    (copy.home / ".shiftmaster.vault-password").write_text("x")
    copy.run("health")
    copy.run("health", ANSIBLE_VAULT_PASSWORD_FILE="own")
    copy.run("health", LC_ALL="ja_JP.eucJP")
    first, second, third = (environment for _, _, _, environment in copy.calls())
    assert first["ANSIBLE_VAULT_PASSWORD_FILE"] == str(copy.home / ".shiftmaster.vault-password")
    assert second["ANSIBLE_VAULT_PASSWORD_FILE"] == "own"
    assert (third["LC_ALL"], third["SHIFTMASTER_LANGUAGE"]) == ("C.UTF-8", "ja")


def test_after_ctrl_c_the_status_is_that_of_the_same_hosts(copy):
    words = ["-i", "inventory/x", "-u", "root", "-K", "--tags", "release", "-e", "a=-i"]
    assert copy.run("deploy", *words, CODE="99").returncode == 99
    assert [one[1] for one in copy.calls()] == [
        ["deploy.yml", *words], ["playbooks/status.yml", "-i", "inventory/x", "-u", "root", "-K"],
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["backup", "offsite", "no", "all", "web"])
def test_an_environment_is_not_named_as_a_group_or_a_value_of_yaml(copy, name):
    assert copy.run("-E", name, "init").returncode == copy.run("init", name).returncode == 2


def test_an_empty_name_of_an_environment_is_no_other_one(copy):
    done = copy.run("-E", "", "deploy", ANSIBLE_INVENTORY="inventory/production")
    assert (done.returncode, copy.calls()) == (2, [])


# An executable one is run, and prints it.
@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True), (0o755, False)])
def test_a_password_of_the_vault_that_others_can_read_is_reported(copy, mode, warned):
    path = copy.home / ".shiftmaster.vault-password"
    path.write_text("x\n")
    path.chmod(mode)
    assert (f"chmod 600 {path}" in copy.run("health").stderr) == warned


def test_an_unknown_option_or_command_is_named_with_the_nearest_one(copy):
    cases = (
        (["deploy", "--chek"], "--check"),
        (["rollback", "--schema"], "-e schema=keep|reverse|restore"),
        (["diagnoze"], "diagnose"),
    )
    for words, near in cases:
        done = copy.run(*words)
        assert (done.returncode, copy.calls(), done.stdout) == (2, [], "") and near in done.stderr
    done = copy.run("deploy", "--chek", LC_ALL="ja_JP.eucJP")
    assert (done.returncode, copy.calls()) == (2, []) and "--check" in done.stderr
    assert copy.run("deploy", "--forks", "5", "--ask-become").returncode == 0


def test_a_command_of_ansible_runs_in_the_environment(copy):
    assert copy.run("-E", "production", "ansible", "cache", "-m", "ping").returncode == 0
    ((program, arguments, _, environment),) = copy.calls()
    assert (program, arguments) == ("ansible", ["cache", "-m", "ping"])
    assert environment["ANSIBLE_INVENTORY"] == str(copy.root / "inventory/production")


def test_grow_shows_the_plan_and_writes_the_inventory_with_confirm(copy):
    (copy.root / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/grow_inventory.py", copy.root / "scripts")
    hosts = copy.root / "inventory/single/hosts.yml"
    before, words = hosts.read_text(), ("-E", "single", "grow", "database", "db1", "192.0.2.21")
    for more, code in (((), 0), (("--check", "-e", "confirm=db1"), 0), (("-i", "inventory/x"), 2)):
        assert copy.run(*words, *more).returncode == code
        assert hosts.read_text() == before and not hosts.with_name("hosts.yml.orig").exists()
    (copy.out).unlink()
    assert copy.run(*words).returncode == copy.run(*words, "-e", "confirm=db1").returncode == 0
    assert hosts.with_name("hosts.yml.orig").read_text() == before
    children = yaml.safe_load(hosts.read_text())["all"]["children"]
    assert list(children["database"]["hosts"]) == ["db1"]
    assert children["single"]["hosts"]["db1"] == {"ansible_host": "192.0.2.21"}
    expected = ["playbooks/grow.yml", "-e", "to=db1"]
    assert [one[1] for one in copy.calls()] == [expected, [*expected, "-e", "confirm=db1"]]
    # A growth that is given up has the inventory of before.
    assert copy.run(*words, "-e", "back=true").returncode == 0 and hosts.read_text() != before
    assert copy.run(*words, "-e", "back=true", "-e", "confirm=db1").returncode == 0
    assert hosts.read_text() == before and not hosts.with_name("hosts.yml.orig").exists()
    # What cannot be written is not run.
    assert copy.run("-E", "single", "grow", "app", "app2").returncode == 1 and len(copy.calls()) == 4


@pytest.mark.parametrize(
    "words", [["checklist"], ["maintenance"], ["deploi"], ["-E"], [], ["grow"], ["grow", "-e", "to=db1"]]
)
def test_wrong_usage_runs_nothing(copy, words):
    """And the reason is in the language of the person."""
    english, japanese = copy.run(*words), copy.run(*words, LC_ALL="ja_JP.UTF-8")
    assert (english.returncode, japanese.returncode, copy.calls()) == (2, 2, [])
    assert not JAPANESE.search(english.stdout + english.stderr)
    assert JAPANESE.search(japanese.stdout + japanese.stderr)


def test_the_usage_lists_the_same_commands_in_both_languages(copy):
    commands = [
        re.findall(r"(?m)^  ([a-zA-Z-]\S*(?: [A-Z\[][^ ]*)*)", copy.run("--help", LC_ALL=locale).stdout)
        for locale in ("C.UTF-8", "ja_JP.UTF-8")
    ]
    assert commands[0] == commands[1] and len(commands[0]) > 15


def test_without_the_virtual_environment_it_names_the_command_that_creates_it(copy):
    shutil.rmtree(copy.root / ".venv")
    done = copy.run("health")
    assert done.returncode == 1 and "make bootstrap" in done.stderr and "Traceback" not in done.stderr


def test_a_verb_is_one_file_with_its_texts_in_the_catalogue(copy):
    (copy.root / "cli/verbs/logs.py").write_text(
        "from ..environment import run\nfrom ..verb import verb\n\n\n"
        '@verb("keys")\ndef logs(site, words):\n    return run(["ansible", *words], site.environment())\n\n\n'
        'logs.name = "logs"\nCOMMANDS = [logs]\n'
    )
    assert copy.run("logs", "-x", "--since", "15m", "--", "-n").returncode == 0
    assert copy.calls()[0][1] == ["-x", "--since", "15m", "-n"]


@pytest.mark.parametrize(("language", "word"), [("en", "usage: "), ("ja", "使い方: ")])
def test_a_command_has_its_help(copy, language, word):
    done = copy.run("maintenance", "--help", SHIFTMASTER_LANGUAGE=language)
    assert (done.returncode, copy.calls()) == (0, []) and done.stdout.startswith(word)
    assert "maintenance on|off" in done.stdout


def test_the_version_is_that_of_the_changelog(copy):
    (copy.root / "CHANGELOG.md").write_text("# Changelog\n\n## [7.8.9] - 2027-01-01\n\n## [1.0.0] - 2026-12-06\n")
    done = copy.run("--version")
    assert (done.returncode, done.stdout) == (0, "ShiftMaster operations 7.8.9\n")


@pytest.mark.parametrize(("language", "words"), [("", "finishes or reverts"), ("ja", "完了するか元に戻します")])
def test_ctrl_c_ends_the_playbook_and_then_shows_what_is_live(copy, language, words):
    run = subprocess.Popen(
        [copy.root / "shiftmaster", "deploy", "2.1.0"],
        env=copy.environment(WAIT="1", SHIFTMASTER_LANGUAGE=language),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert run.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 99 and "Traceback" not in err and words in err
    assert [call[1][0] for call in copy.calls()] == ["deploy.yml", "playbooks/status.yml"]


def test_init_writes_inventory_variables_and_an_encrypted_vault(copy):
    (copy.root / ".venv/bin/ansible-vault").symlink_to(Path(sys.executable).with_name("ansible-vault"))
    responses = "bad host!\napp1.example.jp\nshift.example.org\nhttps://git.example.org/s.git\n2.1.0\n"
    done = copy.run("-E", "hospital", "init", responses=responses)
    assert done.returncode == 0, done.stderr
    # Reasons why an input is rejected.
    assert "without user and port" in done.stdout
    hosts = yaml.safe_load((copy.root / "inventory/hospital/hosts.yml").read_text())["all"]["children"]
    assert list(hosts["hospital"]["hosts"]) == list(hosts["web"]["hosts"]) == ["app1.example.jp"]
    values = yaml.safe_load((copy.root / "group_vars/hospital/vars.yml").read_text())
    assert values["shiftmaster_domain"] == "shift.example.org"
    assert values["shiftmaster_repository"] == "https://git.example.org/s.git"
    assert values["shiftmaster_version"] == "2.1.0"
    assert ".secrets/hospital/" in values["tls_provided_key_src"]
    # The remaining commands can be typed as they are printed.
    assert stat.S_IMODE((copy.root / ".secrets/hospital").stat().st_mode) == 0o700
    assert all(f".secrets/hospital/shiftmaster.{end}" in done.stdout for end in ("crt", "key"))
    vault, password = copy.root / "group_vars/hospital/vault.yml", copy.home / ".shiftmaster.vault-password"
    assert vault.read_text().startswith("$ANSIBLE_VAULT;") and stat.S_IMODE(password.stat().st_mode) == 0o600
    view = [Path(sys.executable).with_name("ansible-vault"), "view", "--vault-password-file", password, vault]
    made = yaml.safe_load(subprocess.run(view, capture_output=True, text=True, check=True, timeout=300).stdout)
    example = set(yaml.safe_load((ROOT / "group_vars/single/vault.yml.example").read_text()))
    assert set(made) <= example and len(set(made.values())) == len(made) >= 4
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in made.values())
    assert not any(value in done.stdout + done.stderr for value in made.values())
    # A second time nothing is overwritten.
    again = copy.run("-E", "hospital", "init", responses=responses)
    assert again.returncode == 1 and vault.read_text().startswith("$ANSIBLE_VAULT;")
    assert copy.run("-E", "web", "init", responses=responses).returncode == 2


def test_init_asks_in_the_language_of_the_person(copy):
    (copy.root / ".venv/bin/ansible-vault").symlink_to(Path(sys.executable).with_name("ansible-vault"))
    responses = "bad host!\n\napp1.example.jp\nshift.example.org\nhttps://git.example.org/s.git\n2.1.0\n"
    # With a locale that the machine lacks, too.
    done = copy.run("-E", "hospital", "init", responses=responses, LANG="ja_JP.UTF-8", LC_ALL="")
    assert done.returncode == 0, done.stderr
    expected = ("ssh で接続するホスト", "使用できません。", "入力してください。", "vault のパスワード: ", "次の手順:")
    assert [text for text in expected if text not in done.stdout] == []
    assert not re.search(r"Written|Next:|Domain|needed", done.stdout), done.stdout
    assert all(f".secrets/hospital/shiftmaster.{end}" in done.stdout for end in ("crt", "key"))


def test_init_ends_without_input_and_writes_nothing(copy):
    (copy.root / ".venv/bin/ansible-vault").symlink_to(Path(sys.executable).with_name("ansible-vault"))
    assert copy.run("-E", "hospital", "init").returncode == 1
    assert not (copy.root / "inventory/hospital").exists() and not (copy.home / ".shiftmaster.vault-password").exists()


def test_ctrl_c_ends_init_and_writes_nothing(copy):
    (copy.root / ".venv/bin/ansible-vault").symlink_to(Path(sys.executable).with_name("ansible-vault"))
    run = subprocess.Popen(
        [copy.root / "shiftmaster", "init"], env=copy.environment(PYTHONUNBUFFERED="1"), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        # A shell that runs the tests in the background ignores it, and they inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert run.stdout.read(4) == b"Host"
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and b"Traceback" not in err and b"Nothing was written" in err
    assert not (copy.root / "inventory/site").exists()


def test_keys_are_compared_as_they_are_typed_and_never_shown(copy):
    key = {"vault_backup_cipher_passphrase": "c" * 64, "vault_backup_restic_password": "r" * 64}
    inventory = {"_meta": {"hostvars": {"app1": {}, "backup1": key}}}
    stub = copy.root / ".venv/bin/ansible-inventory"
    stub.write_text(f"#!{sys.executable}\nprint({json.dumps(inventory)!r})\n")
    stub.chmod(0o755)
    sheet = copy.run("-E", "single", "keys")
    fingerprints = dict(reversed(line.split()[:2]) for line in sheet.stdout.splitlines() if "vault_" in line)
    assert sheet.returncode == 0 and set(fingerprints) == set(key)
    # The same key for two purposes is no secret that the sheet shows.
    assert len(set(fingerprints.values())) == 2
    good = copy.run("-E", "single", "keys", responses="c" * 64 + "\n" + "r" * 64 + "\n")
    assert good.returncode == 0 and good.stdout.count("the same") == 2
    bad = copy.run("-E", "single", "keys", responses="\n" + "r" * 63 + "x\n")
    assert bad.returncode == 1 and "the same" not in bad.stdout
    for run in (sheet, good, bad):
        assert "c" * 60 not in run.stdout + run.stderr and "r" * 60 not in run.stdout + run.stderr


def test_without_keys_there_is_no_list(copy):
    stub = copy.root / ".venv/bin/ansible-inventory"
    for output, code in (('{"_meta": {"hostvars": {"app1": {}}}}', 0), ("", 1)):
        stub.write_text(f"#!{sys.executable}\nprint({output!r})\nraise SystemExit({code})\n")
        stub.chmod(0o755)
        assert copy.run("-E", "single", "keys").returncode == 1
