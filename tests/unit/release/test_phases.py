"""A run as one line for each phase (plugins/callback/phases.py): real small playbooks on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.module_utils.shiftmaster.reports import run_texts
from support import ROOT

SECRET = "not-for-the-log"
UNREADABLE = "Module result deserialization failed"
# Needs no start of Python for each host, as a module does.
TASK = {"ansible.builtin.group_by": {"key": "done"}, "changed_when": False}
DEPLOY = """
- name: Preflight
  hosts: all
  gather_facts: false
  tasks:
    - {name: Change, ansible.builtin.set_fact: {done: true}, changed_when: true}
    - block:
        - {name: Probe, ansible.builtin.fail: {msg: rescued is no failure}}
      rescue:
        - {name: Go on, ansible.builtin.debug: {msg: "WARNING: read this"}}
- name: Nobody
  hosts: nobody
- name: What a role renamed belongs to
  hosts: all
  gather_facts: false
  tasks:
    - name: Name of the role
      ansible.builtin.include_role: {name: renamed}
- name: Release
  hosts: all
  gather_facts: false
  tasks:
    - name: Release
      ansible.builtin.include_role: {name: release}
"""
RELEASE = """
- {name: Lock, ansible.builtin.include_tasks: lock.yml}
- block:
    - {name: Build, ansible.builtin.include_tasks: build.yml}
  rescue:
    - {name: Revert, ansible.builtin.include_tasks: abort.yml}
  always:
    - {name: End, ansible.builtin.import_tasks: end.yml}
"""


class Site:
    def __init__(self, path: Path):
        self.path = path
        self.config = path / "ansible.cfg"
        self.config.write_text(
            f"[defaults]\nstdout_callback=phases\ncallback_plugins={ROOT}/plugins/callback\ncallback_result_format=yaml\n"
            "[inventory]\nhost_pattern_mismatch=ignore\n[connection]\npipelining=true\n"
        )
        (path / "hosts.yml").write_text(
            json.dumps(
                {
                    "all": {
                        "hosts": {"a": {}, "b": {}},
                        "vars": {"base_timezone": "Asia/Tokyo", "ansible_python_interpreter": sys.executable},
                    }
                }
            )  # fmt: skip
        )
        for role, files in {
            "renamed": {"main": "- {name: Run, ansible.builtin.group_by: {key: done}, changed_when: false}"},
            "release": {
                "main": RELEASE,
                "lock": "- {name: Lock, ansible.builtin.group_by: {key: done}, changed_when: false}",
                "build": "- {name: Compile, ansible.builtin.fail: {msg: no compiler}}",
                "end": "- {name: Unlock, ansible.builtin.set_fact: {done: true}}",
                "abort": "- ansible.builtin.fail: {msg: [no compiler, Version 2.0.0 is live.]}",
            },
        }.items():
            directory = path / "roles" / role / "tasks"
            directory.mkdir(parents=True)
            for name, text in files.items():
                (directory / f"{name}.yml").write_text(text)

    def command(self, text, name="deploy.yml", *options):
        (self.path / name).write_text(text)
        return [Path(sys.executable).with_name("ansible-playbook"), "-i", "hosts.yml", "-c", "local", name, *options]

    def environment(self, **more):
        hidden = ("ANSIBLE_STDOUT_CALLBACK", "ANSIBLE_CALLBACKS_ENABLED", "LC_ALL", "LC_MESSAGES")
        return {**{k: v for k, v in os.environ.items() if k not in hidden}, "ANSIBLE_CONFIG": str(self.config),
                "LANG": "C.UTF-8", **more}  # fmt: skip

    def run(self, text, name="deploy.yml", *options, **more):
        done = subprocess.run(
            self.command(text, name, *options), cwd=self.path, env=self.environment(**more), text=True, timeout=600,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines()

    def log(self) -> Path:
        (log,) = (self.path / "logs").glob("*.log")
        return log


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@pytest.fixture(scope="module")
def callback():
    spec = importlib.util.spec_from_file_location("phases", ROOT / "plugins/callback/phases.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_phases_are_those_of_roles_files_and_plays_that_exist(callback):
    names = re.findall(r"(?m)^- name: (.*)$", "".join(path.read_text() for path in (ROOT / "playbooks").glob("*.yml")))
    assert set(run_texts.ROLES) <= {path.name for path in (ROOT / "roles").iterdir()}
    assert set(callback.RELEASE_FILES) <= {path.stem for path in (ROOT / "roles/release/tasks").glob("*.yml")}
    assert set(callback.PLAYS) <= set(names)
    assert {*run_texts.ROLES.values(), *callback.RELEASE_FILES.values(), *callback.PLAYS.values()} <= set(
        callback.TEXTS
    )


def play(*tasks):
    return json.dumps([{"name": "Play", "hosts": "all", "gather_facts": False, "tasks": list(tasks)}])


def phases(lines):
    return [line.split("  ")[0] for line in lines if line.startswith(("✔", "✘"))]


def test_a_failed_deploy_is_its_phases_and_the_failure_once_at_the_end(site):
    code, lines = site.run(DEPLOY)
    assert code == 2
    assert phases(lines) == [
        "✔ Preflight, 2 changes", "✔ What a role renamed belongs to, nothing changed",
        "✔ Lock and plan, nothing changed", "✘ Build, FAILED",
    ]  # fmt: skip
    text = "\n".join(lines)
    assert len(lines) <= 20 and text.count("WARNING: read this") == 1 and "rescued is no failure" not in text
    assert text.count("no compiler") == 1 and "a, b: no compiler" in text
    end = lines[-10:]
    assert any("Version 2.0.0 is live." in line for line in end)
    assert any(re.search(r"Compile \(roles/release/tasks/build\.yml:1\)", line) for line in end)
    assert any(line.startswith("Failed requests: 0") for line in end)
    assert any(line == f"Log:       {site.log().relative_to(site.path)}" for line in end)
    assert end[-1].endswith("  ansible-playbook -i hosts.yml playbooks/diagnose.yml")
    log = site.log().read_text()
    assert "PLAY RECAP" in log and log.count("TASK [") >= 6 and stat.S_IMODE(site.log().stat().st_mode) == 0o600
    assert stat.S_IMODE(site.log().parent.stat().st_mode) == 0o700
    # In the zone of the site, nine hours east of UTC.
    hour = int(re.search(r"^(\d\d):\d\d:\d\d PLAY", log, re.M)[1])
    assert (hour - time.gmtime(site.log().stat().st_mtime).tm_hour) % 24 in (8, 9)


def test_a_revert_that_reports_the_failure_is_not_shown_as_failed(site):
    assert "{{ 'The revert is not finished, " in (ROOT / "roles/release/tasks/abort.yml").read_text(encoding="utf-8")
    abort = site.path / "roles/release/tasks/abort.yml"
    release = DEPLOY[DEPLOY.index("- name: Release\n") :]
    change = "- {name: Switch back, ansible.builtin.group_by: {key: done}, changed_when: %s}\n"
    end = "- ansible.builtin.fail: {msg: [no compiler, '%s']}"
    for changed, last, shown in (
        ("false", "Version 2.0.0 is live.", "✘ Build, FAILED"),
        ("true", "Version 2.0.0 is live.", "✔ End of the run, 1 change"),
        ("true", "Version 2.0.0 is live. The revert is not finished, deploy.yml finishes it: x", "✘ Revert, FAILED"),
    ):
        abort.write_text(change % changed + end % last)
        _, lines = site.run(release, "deploy.yml", "--limit", "a")
        assert phases(lines)[-1] == shown and any(last in line for line in lines), lines
    # A task of it that fails is a failure of its own.
    abort.write_text("- {name: Switch back, ansible.builtin.command: 'false'}")
    _, lines = site.run(release, "deploy.yml", "--limit", "a")
    assert phases(lines)[-1] == "✘ Revert, FAILED", lines


def test_the_cause_is_in_the_last_lines_and_a_preflight_is_complete(site):
    text = play({"ansible.builtin.fail": {"msg": ["the cause", *(f"evidence {number}" for number in range(20))]}})
    code, lines = site.run(text, "deploy.yml", "--limit", "a")
    assert code == 2 and "a: the cause" in lines[-15:], lines
    # Hints are at the end of a message.
    assert [line for line in lines if "evidence" in line or "more lines" in line] == [
        "  evidence 0", "  evidence 1", "  (13 more lines or failures in the log)",
        *(f"  evidence {number}" for number in range(15, 20)),
    ]  # fmt: skip
    code, lines = site.run(text.replace('"Play"', '"Preflight"'), "deploy.yml", "--limit", "a")
    assert code == 2 and {"a: the cause", "  evidence 19"} <= set(lines), lines


def test_no_log_applies_to_the_screen_and_the_file(site):
    hidden = {"no_log": True}
    code, lines = site.run(
        play(
            {"name": "A", "ansible.builtin.command": f"echo {SECRET}", **hidden},
            {"name": "B", "ansible.builtin.debug": {"msg": SECRET}, **hidden},
            {"name": "C", "ansible.builtin.copy": {"content": SECRET, "dest": f"{site.path}/x"}, **hidden},
            {"name": "D", "ansible.builtin.fail": {"msg": "{{ item }}"}, "loop": [SECRET], **hidden},
        ),
        "deploy.yml", "--diff", "--limit", "a",
    )  # fmt: skip
    assert code == 2 and SECRET not in "\n".join(lines) and SECRET not in site.log().read_text()
    assert any("no_log" in line for line in lines)


def test_verbose_is_ansibles_own_output(site):
    text = play({"name": "One", **TASK})
    _, lines = site.run(text, "deploy.yml", "-v", "--limit", "a")
    assert any(line.startswith("TASK [One]") for line in lines) and any("PLAY RECAP" in line for line in lines)
    assert not phases(lines) and not (site.path / "logs").exists()


def test_check_and_diff_show_what_would_change_and_old_logs_are_removed(site):
    site.config.write_text(site.config.read_text() + "[callback_phases]\nlog_count=2\n")
    (site.path / "logs").mkdir()
    for day in (1, 2, 3):
        (site.path / f"logs/2020010{day}T000000-deploy-1.log").touch()
    target = site.path / "file"
    # Its host may have been taken over: what a difference shows is obeyed by no terminal, now or when the log is read.
    target.write_text("old \x1b]0;owned\x07\n")
    code, lines = site.run(
        play({"name": "Write", "ansible.builtin.copy": {"content": "new line\n", "dest": str(target)}}),
        "deploy.yml", "--check", "--diff", "--limit", "a",
    )  # fmt: skip
    assert code == 0 and target.read_text().startswith("old") and phases(lines) == ["✔ Play, 1 change to make"]
    assert {"+new line", "-old ?]0;owned?", "a: Write"} <= set(lines)
    names = sorted(path.name for path in (site.path / "logs").iterdir())
    assert "\x1b" not in (site.path / "logs" / names[-1]).read_text()
    assert len(names) == 2 and names[0].startswith("20200103")
    # A new file is named; its content is in the log.
    target.unlink()
    code, lines = site.run(
        play({"name": "Write", "ansible.builtin.copy": {"content": "new line\n", "dest": str(target)}}),
        "deploy.yml", "--check", "--diff", "--limit", "a",
    )  # fmt: skip
    assert code == 0 and f"new: {target}" in lines and "+new line" not in lines
    names = sorted(path.name for path in (site.path / "logs").iterdir())
    assert "+new line" in (site.path / "logs" / names[-1]).read_text()


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ({"dest": "/etc/x\x1b[2J\n✔ Backups", "diff": {"before": "", "after": "x"}}, ["new: /etc/x?[2J"]),
        ({"dest": "/x", "diff": {"before": "", "before_header": "/x", "after": "1\n"}}, ["+1"]),
        ({"path": "/x", "diff": [{"dst_larger": 9, "after": "1"}, "text"]}, ["/x: diff skipped"]),
        ({"path": "/x", "diff": {"before": {"path": "/x", "state": "absent"}, "after": {"path": "/x"}}}, ["new: /x"]),
        ({"diff": {"prepared": "NEW packages:\n a b\n2 newly installed"}}, ["2 newly installed"]),
    ],
)
def test_a_difference_of_any_shape_is_shown_or_named(callback, result, shown):
    part = callback.CallbackModule()
    lines = []
    part.screen = SimpleNamespace(line=lambda text="", color=None: lines.extend(text.split("\n")))
    task = SimpleNamespace(args={}, get_name=lambda: "Write")
    part._show_diff(SimpleNamespace(task=task, host=SimpleNamespace(get_name=lambda: "a")), result)
    assert lines[0] == "a: Write" and all(any(line.startswith(one) for line in lines) for one in shown), lines
    assert "\x1b" not in "".join(lines) and not any(line.startswith("✔") for line in lines)
    assert any(line.startswith("new: ") for line in lines) == any(one.startswith("new: ") for one in shown)


@pytest.mark.parametrize("result", [{"failed_modules": ["a"]}, {"results": 5}, {"failed_modules": {"a": 1}}])
def test_a_failure_of_any_shape_keeps_its_message(callback, result):
    assert callback.message_lines({"failed": True, "msg": "the cause", **result}) == ["the cause"]


def test_a_full_disk_ends_the_log_and_not_the_report(site):
    text = play({"name": "Read", "ansible.builtin.fail": {"msg": "the real cause"}})
    (site.path / "logs").mkdir()
    opened = "o('/dev/full', os.O_WRONLY) if 'logs/' in str(a[0]) else o(*a, **k)"
    full = f"import os; os.open = lambda *a, o=os.open, **k: {opened}"
    (site.path / "sitecustomize.py").write_text(full)
    _, lines = site.run(text, "deploy.yml", "--limit", "a", PYTHONPATH=str(site.path))
    assert any("the real cause" in line for line in lines) and any("log ends here" in line for line in lines), lines


def test_a_report_with_findings_does_not_look_like_a_crash_and_continues_without_its_log(site):
    (site.path / "logs").touch()
    tasks = ({"ansible.builtin.debug": {"msg": ["the report"]}},
             {"ansible.builtin.assert": {"that": "false", "fail_msg": "critical: disk", "quiet": True}})  # fmt: skip
    code, lines = site.run(play(*tasks), "health.yml", "--limit", "a")
    assert code == 2 and phases(lines) == ["✔ Play, nothing changed"] and "the report" in lines
    assert "Result:    critical: disk" in lines
    assert not re.search("FAILED|fatal|assert", "\n".join(lines), re.I)
    assert any("No log file is written" in line for line in lines)
    # A task of it that fails is a failure.
    code, lines = site.run(play({"name": "Read", "ansible.builtin.command": "false"}), "health.yml", "--limit", "a")
    assert code == 2 and phases(lines) == ["✘ Play, FAILED"]


def test_the_live_release_and_the_failed_requests_are_shown(site):
    """Numbers of the module that watches the traffic, recorded from a version that broke under it."""
    library = site.path / "library"
    library.mkdir()
    (library / "shiftmaster_release.py").write_text(
        "#!/usr/bin/python3\nimport json\n"
        "print(json.dumps(dict(failed=True, msg='broke', reverted=True, requests=340, errors=12,"
        " current_version='2.0.0')))"
    )
    (site.path / "roles/release/tasks/build.yml").write_text(
        "- {name: Watch, ansible.builtin.include_tasks: batch.yml}"
    )
    (site.path / "roles/release/tasks/batch.yml").write_text("- {name: Watch, shiftmaster_release: }")
    code, lines = site.run(DEPLOY, "deploy.yml", "--limit", "a")
    assert code == 2 and "✘ Cutover, FAILED" in phases(lines), lines
    assert "Live:      version 2.0.0" in lines and "Failed requests: 12 of 340" in lines, lines


def test_the_phases_of_roles_in_the_preflight_and_in_a_play_of_their_name(site):
    """A role begins no phase in the preflight; a play and its role of one name are one phase."""
    for name in ("base", "postgresql"):
        shutil.copytree(site.path / "roles/renamed", site.path / "roles" / name)
    preflight = play({"ansible.builtin.include_role": {"name": "base"}}, TASK).replace('"Play"', '"Preflight"')
    database = play(TASK, {"ansible.builtin.include_role": {"name": "postgresql"}}).replace('"Play"', '"Database"')
    code, lines = site.run(json.dumps(json.loads(preflight) + json.loads(database)), SHIFTMASTER_LANGUAGE="ja")
    assert code == 0 and phases(lines) == ["✔ 事前チェック、変更なし", "✔ データベース、変更なし"], lines


def test_a_role_that_takes_the_lock_stays_in_its_phase(site):
    """A restore that fails is no failure of the phase in which a release takes the lock."""
    (site.path / "roles/restore/tasks").mkdir(parents=True)
    lock = {"ansible.builtin.include_role": {"name": "release", "tasks_from": "lock"}}
    (site.path / "roles/restore/tasks/main.yml").write_text(json.dumps([TASK, lock, TASK]))
    code, lines = site.run(play({"ansible.builtin.import_role": {"name": "restore"}}))
    assert code == 0 and phases(lines) == ["✔ Restore, nothing changed"], lines


def test_a_role_that_is_skipped_divides_no_phase(site):
    """PostgreSQL's role imports one of base, for a repository that most sites do not use."""
    (site.path / "roles/base/tasks").mkdir(parents=True)
    (site.path / "roles/postgresql/tasks").mkdir(parents=True)
    (site.path / "roles/base/tasks/main.yml").write_text(json.dumps([TASK]))
    skipped = {"ansible.builtin.import_role": {"name": "base"}, "when": False}
    (site.path / "roles/postgresql/tasks/main.yml").write_text(json.dumps([TASK, skipped, TASK]))
    code, lines = site.run(play({"ansible.builtin.import_role": {"name": "postgresql"}}))
    assert code == 0 and phases(lines) == ["✔ Database, nothing changed"], lines


def test_the_reason_why_a_module_did_not_start_is_shown_where_facts_are_gathered(site):
    """The messages of the modules that gather facts are in results of their own."""
    facts = play(TASK).replace('"gather_facts": false', '"gather_facts": true')
    for fault, options in {
        "make demo": ("-c", "community.docker.docker", "-e", "ansible_host=no-such-container"),
        "apt-get -y install python3": ("-e", "ansible_python_interpreter=/usr/bin/nopython"),
    }.items():
        code, lines = site.run(facts, "deploy.yml", "--limit", "a", *options)
        assert code and lines[-1].startswith("Next:") and fault in lines[-1], lines
        assert not any("deserialization" in line for line in lines), lines


def test_a_lock_of_another_run_is_waited_for_and_usual_warnings_are_not_counted(site):
    text = play(
        {"ansible.builtin.find": {"paths": ["/nonexistent"]}},
        {"ansible.builtin.fail": {"msg": "sato@vm holds the lock for its deploy since 10:00"}},
    )
    code, lines = site.run(text, "deploy.yml", "--limit", "a")
    assert code and lines[-1] == "Next:      wait until that run has ended, then the same command again", lines
    assert "Skipped '/nonexistent'" in site.log().read_text()
    assert not [line for line in lines if line.startswith("Warnings:")], site.log().read_text()


def test_an_unreachable_host_is_named_and_lines_are_japanese_on_request(site):
    options = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1, "run_language": "ja"}
    code, lines = site.run(
        play({"ansible.builtin.ping": None}), "deploy.yml", "--limit", "a", "-e", json.dumps(options)
    )
    assert code == 4 and phases(lines) == ["✘ Play、失敗"]
    assert any("a: 接続できません" in line for line in lines) and any(line.startswith("ログ:") for line in lines)
    assert lines[-1].startswith("次の操作:") and lines[-1].endswith("ssh -p 1 127.0.0.1 true")


def test_a_known_cause_is_japanese_and_a_play_without_hosts_has_the_zone_of_the_site(site):
    shown, failed = "x: NOT RUN: no host has it", "Nothing was changed. Version 2.0.0 is still live."
    text = json.loads(play({"ansible.builtin.debug": {"msg": shown}}, {"ansible.builtin.fail": {"msg": failed}}))
    empty = {"name": "Empty", "hosts": "absent", "gather_facts": False, "tasks": [TASK]}
    code, lines = site.run(json.dumps([empty, *text]), "deploy.yml", "--limit", "a", SHIFTMASTER_LANGUAGE="ja")
    assert code == 2 and "a: 何も変更していません。 バージョン 2.0.0 が引き続き稼働しています。" in lines, lines
    assert "  x: 未実行: このグループのホストがありません" in lines, lines
    hour = int(re.match(r"\d{8}T(\d\d)", site.log().name)[1])
    assert (hour - time.gmtime(site.log().stat().st_mtime).tm_hour) % 24 in (8, 9), site.log().name


def test_the_columns_of_a_report_are_not_taken_for_one_sentence(callback):
    shown, end = [], callback.CallbackModule()
    end.screen, end.language = SimpleNamespace(line=lambda text, *_: shown.append(text)), "ja"
    row = "10:00:00 JST r2 requirements failed for version 2 (the complete output is in /b.log)"
    translated = callback.japanese(row)
    assert translated != row
    for end.playbook, expected in (("history.yml", row), ("verify.yml", translated)):
        end.closed = [{"key": "status", "begin": 0, "end": 0, "changed": 0, "results": 0, "messages": [row],
                       "stopped": False, "reported": False}]  # fmt: skip
        shown.clear()
        end._show_closed()
        assert shown[-1] == expected


def test_commands_that_a_run_shows_reach_its_hosts_and_a_diagnosis_does_not_advise_itself(site):
    text = play(
        {"ansible.builtin.debug": {"msg": "Fix it: ansible-playbook deploy.yml --tags tls, or\n"
                                          "ansible cache --become -m ansible.builtin.ping"}},
        {"ansible.builtin.command": "false"},
    )  # fmt: skip
    _, lines = site.run(text, "diagnose.yml", "--limit", "a")
    assert "Fix it: ansible-playbook -i hosts.yml deploy.yml --tags tls, or" in lines
    assert "ansible -i hosts.yml cache --become -m ansible.builtin.ping" in lines
    assert not any(line.startswith("Diagnose:") for line in lines)
    _, lines = site.run(text, "health.yml", "--limit", "a", SHIFTMASTER_CALLED_AS="./shiftmaster -E demo")
    assert "Fix it: ./shiftmaster -E demo deploy -i hosts.yml --tags tls, or" in lines
    assert "./shiftmaster -E demo ansible -i hosts.yml cache --become -m ansible.builtin.ping" in lines
    assert lines[-1].endswith(" ./shiftmaster -E demo diagnose -i hosts.yml")


def test_a_vault_without_its_password_is_named(site):
    (site.path / "group_vars/all").mkdir(parents=True)
    (site.path / "group_vars/all/vault.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n" + "61" * 40 + "\n")
    code, lines = site.run(play(TASK), "deploy.yml")
    end = "\n".join(lines[-15:])
    assert code and "no vault secrets" in end and "finishes or reverts" not in end
    (line,) = [line for line in lines[-3:] if line.startswith("Next:")]
    assert "group_vars/all/vault.yml" in line and "--vault-password-file" in line


def test_a_file_that_is_no_yaml_is_named_with_its_line(site):
    (site.path / "group_vars/all").mkdir(parents=True)
    (site.path / "group_vars/all/vars.yml").write_text("a: 1\n  b: [secret\n")
    code, lines = site.run(play(TASK), "deploy.yml", "--limit", "a")
    assert code != 0 and "File:      group_vars/all/vars.yml:2:4" in lines
    assert not any("secret" in line for line in lines)


def test_a_phase_that_only_decides_has_no_line(site):
    decide = play({"ansible.builtin.set_fact": {"x": 1}}, {"ansible.builtin.assert": {"that": "true", "quiet": True}})
    _, lines = site.run(decide, "deploy.yml", "--limit", "a")
    assert phases(lines) == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Failed to connect to the host via ssh: Host key verification failed.", "ssh root@10.0.0.1 true"),
        ("cannot be reached: WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!", "ssh-keygen -R 10.0.0.1"),
        ("root@h: Permission denied (publickey,password).", "ssh-copy-id root@10.0.0.1"),
        ('Load key "/root/.ssh/k": bad permissions', "chmod 600 '/root/.ssh/k'"),
        ("ERROR: Decryption failed (no vault secrets were found that could decrypt)", "vault-password"),
        ("The code alone cannot go back: x. Nothing was changed.", ""),
        ("ssh: Could not resolve hostname h: Name or service not known", "ansible_host"),
        ("ssh: connect to host h port 22: Connection timed out", "ssh root@10.0.0.1 true"),
        ("Missing sudo password", "--ask-become-pass"),
        ("Premature end of stream waiting for become success. sudo: a password is required", "--ask-become-pass"),
        ("/bin/sh: 1: /usr/bin/python3: not found", "apt-get -y install python3"),
        ("docker: Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", "Docker"),
        ("Error response from daemon: No such container: shiftmaster-demo", "make demo"),
        ("there is no tag, branch or commit 9.9 in the repository (3 tags, 1 branch)", "git ls-remote --tags"),
        ("nothing was deployed here yet: there is no directory for /x/lock.json", "deploy.yml"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "df -h"),
        ("there is no release 9.9 on this host; there are: 2.0.0", "status.yml"),
        ("no release is live on this host, so there is nothing to roll back", "deploy.yml -e shiftmaster_version="),
        ("release 2.0.0 is marked bad: reverted", "deploy.yml -e shiftmaster_version="),
    ],
)  # fmt: skip
def test_a_known_cause_names_the_next_command(callback, message, expected):
    end = callback.CallbackModule()
    shown = []
    end.started, end.screen = True, SimpleNamespace(line=lambda text="", color=None: shown.append(text))
    for end.language in ("en", "ja"):
        shown.clear()
        end.failures = [
            {"hosts": ["h"], "lines": [message], "address": "root@10.0.0.1", "preflight": False, "unreachable": True}
        ]
        end._report_next()
        assert len(shown) == 1 and expected in shown[0], shown
    # Output of a program of a host is no connection of ssh.
    shown.clear()
    end.failures[0].update(unreachable=False, lines=["localhost:5432: Connection refused", "Permission denied (13)"])
    end._report_next()
    assert not any("ssh" in line for line in shown)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"msg": "a\nb"}, ["a", "b"]),
        ({"msg": ["a", "b"]}, ["a", "b"]),
        ({"censored": "x", "msg": "secret"}, []),
        ({"msg": "a\x1b]0;title\x07b\r\x9bc"}, ["a?]0;title?b??c"]),
        ({"results": [{"failed": True, "msg": "a"}, {"msg": "fine"}, {"failed": True, "msg": "a"}], "msg": "m"}, ["a"]),
        ({"msg": "Module result deserialization failed: x", "module_stderr": "sudo: no\n"}, ["sudo: no"]),
        (
            {"msg": "Module result deserialization failed: x", "module_stderr": ""},
            ["Module result deserialization failed: x"],
        ),
        ({"msg": "non-zero return code", "rc": 1, "cmd": ["x"], "stderr": "why"}, ["non-zero return code", "why"]),
    ],
)
def test_the_lines_of_a_failure(callback, result, expected):
    assert callback.message_lines(result) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("a\nb", ["a", "b"]),
        (["a", "b"], ["a", "b"]),
        ({"restored": "all", "found": ["x", "2 rows"], "seconds": 4.8},
         ["restored: all", "found: x; 2 rows", "seconds: 4.8"]),
        ({"a": {"b": 1}}, ["{", '  "a": {', '    "b": 1', "  }", "}"]),
    ],
)  # fmt: skip
def test_the_lines_of_a_message(callback, message, expected):
    assert callback.text_lines(message) == expected


def test_on_a_terminal_the_phase_counts_and_ctrl_c_drops_no_output(site):
    first, second = pty.openpty()
    run = subprocess.Popen(
        site.command(play({"name": "Say", "ansible.builtin.debug": {"msg": "output before"}},
                          {"name": "Wait", "ansible.builtin.command": "sleep 600"}), "deploy.yml", "--limit", "a"),
        cwd=site.path, env=site.environment(TERM="xterm"), stdin=subprocess.DEVNULL, stdout=second, stderr=second,
        start_new_session=True,
    )  # fmt: skip
    os.close(second)
    out, deadline = "", time.monotonic() + 600
    # Two counts of the task that waits: how many seconds they are depends on the machine's other work.
    while time.monotonic() < deadline and len({*re.findall(r"… Play  (\d+) s  Wait", out)}) < 2:
        out += os.read(first, 65536).decode(errors="replace")
    assert "\x1b[?25l" in out, out
    os.killpg(run.pid, signal.SIGINT)
    try:
        while part := os.read(first, 65536):
            out += part.decode(errors="replace")
    except OSError:
        pass
    assert run.wait(timeout=300) != 0
    assert "This run did not finish" in out and "output before" in out
    assert re.search(r"✘ Play, INTERRUPTED  \d", out) and "✔ Play" not in out
    # The cursor is back.
    assert out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l")
    log = site.log().read_text()
    assert "output before" in log and "NOT FINISHED" in log and "TASK [Wait]" in log
