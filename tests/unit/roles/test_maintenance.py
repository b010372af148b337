"""Pages of runs and the timers of scheduled tasks, with a web host and an application host (role maintenance)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

OWN, DEPLOY = "begun by run r1 for patch\n", "begun by run r1\n"
PEOPLE = '{"reason": "power"}\n'


@pytest.mark.parametrize(
    ("page", "tasks", "on", "left", "done"),
    [
        (OWN, "main", False, None, "start"),
        (None, "main", False, None, "start"),
        # The page of a deploy stays, whose schema may not fit.
        (DEPLOY, "main", False, DEPLOY, ""),
        ("begun by run r1 for restore\n", "main", False, "begun by run r1 for restore\n", ""),
        (DEPLOY, "migration", False, None, "start"),
        (PEOPLE, "migration", False, PEOPLE, "start"),
        (None, "main", True, "begun by run r2 for patch\n", "stop"),
    ],
)
def test_timers_start_only_where_no_page_of_a_run_is_left(tmp_path, page, tasks, on, left, done):
    path, called = tmp_path / "shared/maintenance/on", tmp_path / "called"
    path.parent.mkdir(parents=True)
    if page:
        path.write_text(page)
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\necho $1 >>{called}\n")
    (tmp_path / "systemctl").chmod(0o755)
    (tmp_path / "hosts").write_text("[web]\nw ansible_connection=local\n[app]\na ansible_connection=local\n")
    role = {"name": "maintenance", "tasks_from": tasks, "rolespec_validate": False}
    play = [{
        "hosts": "app", "gather_facts": False, "environment": {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        "tasks": [{"ansible.builtin.include_role": role, "vars": {"maintenance_state": on}}],
    }]  # fmt: skip
    (tmp_path / "play.yml").write_text(json.dumps(play))
    given = {
        "shiftmaster_root": str(tmp_path), "shiftmaster_lb_hosts": ["w"], "shiftmaster_coordinator": "a",
        "shiftmaster_run": {"id": "r2", "operation": "patch"},
    }  # fmt: skip
    run = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", tmp_path / "hosts", tmp_path / "play.yml",
         "-e", json.dumps(given)],
        cwd=ROOT, env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "SHIFTMASTER_LOG_DIR": ""}, text=True,
        capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert (path.read_text() if path.exists() else None) == left
    assert (called.read_text().strip() if called.exists() else "") == done
