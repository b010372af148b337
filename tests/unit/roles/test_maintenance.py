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


CASES = [
    # (the page before, the tasks, whether a run begins its maintenance, the page after, the calls of systemctl)
    (OWN, "main", False, None, "start"),
    (None, "main", False, None, "start"),
    # The page of a deploy stays, whose schema may not fit.
    (DEPLOY, "main", False, DEPLOY, ""),
    ("begun by run r1 for restore\n", "main", False, "begun by run r1 for restore\n", ""),
    (DEPLOY, "migration", False, None, "start"),
    (PEOPLE, "migration", False, PEOPLE, "start"),
    (None, "main", True, "begun by run r2 for patch\n", "stop"),
]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """One run with a play for each case; returns their directories."""
    directory = tmp_path_factory.mktemp("pages")
    found, plays = [directory / str(number) for number in range(len(CASES))], []
    for number, (page, tasks, on, _left, _done) in enumerate(CASES):
        home = found[number]
        (home / "shared/maintenance").mkdir(parents=True)
        if page:
            (home / "shared/maintenance/on").write_text(page)
        (home / "systemctl").write_text(f"#!/bin/sh\necho $1 >>{home}/called\n")
        (home / "systemctl").chmod(0o755)
        role = {"name": "maintenance", "tasks_from": tasks, "rolespec_validate": False}
        plays.append({
            "hosts": f"a{number}", "gather_facts": False, "environment": {"PATH": f"{home}:{os.environ['PATH']}"},
            "vars": {
                "shiftmaster_root": str(home), "shiftmaster_lb_hosts": [f"w{number}"],
                "shiftmaster_coordinator": f"a{number}", "shiftmaster_run": {"id": "r2", "operation": "patch"},
            },
            "tasks": [{"ansible.builtin.include_role": role, "vars": {"maintenance_state": on}}],
        })  # fmt: skip
    (directory / "play.yml").write_text(json.dumps(plays))
    hosts = {group: [f"{group[0]}{number} ansible_connection=local" for number in range(len(CASES))]
             for group in ("web", "app")}  # fmt: skip
    (directory / "hosts").write_text("".join(f"[{group}]\n" + "\n".join(hosts[group]) + "\n" for group in hosts))
    run = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", directory / "hosts",
         "-e", f"ansible_python_interpreter={sys.executable}", directory / "play.yml"],
        cwd=ROOT, env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "SHIFTMASTER_LOG_DIR": ""}, text=True,
        capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return found


@pytest.mark.parametrize("number", range(len(CASES)))
def test_timers_start_only_where_no_page_of_a_run_is_left(directories, number):
    page, called = directories[number] / "shared/maintenance/on", directories[number] / "called"
    assert (page.read_text() if page.exists() else None) == CASES[number][3]
    assert (called.read_text().strip() if called.exists() else "") == CASES[number][4]
