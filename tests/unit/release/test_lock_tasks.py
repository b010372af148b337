"""A deploy that another run's lock rejects ends before it changes anything (roles/release/tasks/lock.yml)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support import ROOT

HOLDER = {"owner": "nurse@elsewhere", "operation": "deploy", "run_id": "r1", "since": 0, "controller": {}}
TASK = {"ansible.builtin.import_role": {"name": "release", "tasks_from": "lock", "rolespec_validate": False}}


def given(root, expires):
    """Variables of a run at a directory where another run's lock ends in so many seconds; None for no lock."""
    path = root / "shared/state/lock.json"
    path.parent.mkdir(parents=True)
    if expires is not None:
        path.write_text(json.dumps({**HOLDER, "expires": time.time() + expires, "ttl_seconds": 3600}))
    return {
        "shiftmaster_root": str(root), "shiftmaster_lock_wait_seconds": 1, "shiftmaster_lock_host": "localhost",
        "notify_alertmanager_host": "",
        "shiftmaster_run": {"id": "r2", "who": "me", "operation": "deploy"},
        "__release_options": {"root": str(root), "run_id": "r2", "who": "me"},
    }  # fmt: skip


def owner_of(root):
    path = root / "shared/state/lock.json"
    return json.loads(path.read_text()) if path.exists() else {}


def play(tmp_path, plays, words=()):
    path = tmp_path / "play.yml"
    path.write_text(json.dumps(plays))
    return subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-c", "local",
         "-e", f"ansible_python_interpreter={sys.executable}", path, *words],
        cwd=ROOT, env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "SHIFTMASTER_LOG_DIR": "",
                       "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"},
        text=True, capture_output=True, timeout=600, check=False,
    )  # fmt: skip


def run(tmp_path, expires, tasks):
    words = ["-e", json.dumps(given(tmp_path, expires))]
    return play(tmp_path, [{"hosts": "localhost", "gather_facts": False, "tasks": tasks}], words), owner_of(tmp_path)


@pytest.mark.parametrize(
    ("words", "cases"),
    [
        # (when the other run's lock ends, options, the owner afterwards); the last one ends the run.
        ([], [(3600, {"shiftmaster_lock_take_over": "r1"}, "r2"), (None, {}, "r2"), (3600, {}, "r1")]),
        (["--check"], [(-1, {}, "r1"), (None, {}, None), (3600, {}, "r1")]),
    ],
    ids=["taken over, no lock, held", "check: expired, no lock, held"],
)
def test_a_running_operation_is_named(tmp_path, words, cases):
    roots = [tmp_path / str(number) for number in range(len(cases))]
    plays = [
        {"hosts": "localhost", "gather_facts": False, "tasks": [{**TASK, "vars": {**given(root, expires), **options}}]}
        for root, (expires, options, _owner) in zip(roots, cases)
    ]
    done = play(tmp_path, plays, words=words)
    assert done.returncode == 2, done.stdout + done.stderr
    parts = done.stdout.split("PLAY [localhost]")[1:]
    assert len(parts) == len(cases)
    for part, root, (_expires, options, owner) in zip(parts, roots, cases):
        last = part is parts[-1]
        assert ("nurse@elsewhere holds the lock" in part) == (last or "shiftmaster_lock_take_over" in options)
        assert ("shiftmaster_lock_take_over=r1" in part) == last
        assert owner_of(root).get("run_id") == owner


def test_the_phase_of_the_release_extends_what_the_preflight_has_acquired(tmp_path):
    """It forgets neither that another run held the lock nor whose it was, and records that once."""
    role, seconds = TASK["ansible.builtin.import_role"], {"shiftmaster_lock_ttl_seconds": 60}
    first = {"ansible.builtin.include_role": role, "vars": seconds}
    content = "{{ [__release_taken_over.run_id, __release_other_run, __release_lock.holder.expires] | to_json }}"
    facts = {"ansible.builtin.copy": {"dest": str(tmp_path / "facts"), "content": content}}
    done, holder = run(tmp_path, -1, tasks=[first, TASK, facts])
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "facts").read_text()) == ["r1", True, holder["expires"]] and holder["run_id"] == "r2"
    assert 14000 < holder["expires"] - time.time() <= 14400
    events = [json.loads(line) for line in (tmp_path / "shared/state/audit.jsonl").read_text().splitlines()]
    assert [(one["event"], "nurse@elsewhere" in one["reason"]) for one in events] == [("lock_taken_over", True)]


def test_each_host_of_a_patch_extends_the_lock():
    (role,) = yaml.safe_load((ROOT / "roles/patch/tasks/main.yml").read_text(encoding="utf-8"))
    first = role["block"][0]["ansible.builtin.include_role"]
    assert (first["name"], first["tasks_from"]) == ("release", "lock")
    # What a run finds that has lost it, and ends with.
    assert role["rescue"][-1]["ansible.builtin.fail"]


def test_a_deploy_takes_the_lock_before_it_changes_hosts_and_keeps_it_for_minutes_if_it_fails(tmp_path):
    plays = yaml.safe_load((ROOT / "playbooks/deploy.yml").read_text(encoding="utf-8"))
    first = next(play for play in plays if play["name"] == "Preflight")
    task = first["tasks"][-1]
    assert task["ansible.builtin.include_role"]["tasks_from"] == "lock"
    assert plays.index(first) < min(n for n, play in enumerate(plays) if play["tags"] != ["always"])
    assert 60 < task["vars"]["shiftmaster_lock_ttl_seconds"] <= 900
    # Where there is a directory for it: in a run that changes the host before the release, or where there is one.
    cases = {
        (True, False, True): True, (True, True, False): True, (False, False, True): False, (True, False, False): False,
    }  # fmt: skip
    values = [
        {"preflight_found": {"facts": {"lockable": lockable, "locked": locked}},
         "preflight_roles_here": ["preflight", "shiftmaster", *["base"] * base], "run_needs_release": True,
         "shiftmaster_lock_host": "localhost"}
        for lockable, locked, base in cases
    ]  # fmt: skip
    tasks = [{"ansible.builtin.debug": {"msg": f"case-{n}"}, "when": task["when"], "vars": one}
             for n, one in enumerate(values)]  # fmt: skip
    done, _ = run(tmp_path, None, tasks=tasks)
    assert [f"case-{n}" in done.stdout for n in range(len(cases))] == list(cases.values()), done.stdout
