"""A run whose lock another one holds ends before it changes anything (roles/release/tasks/held.yml)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT

HOLDER = {"owner": "nurse@elsewhere", "operation": "deploy", "run_id": "r1", "since": 0, "controller": {}}


@pytest.mark.parametrize(
    ("expires", "options", "code"),
    [(3600, {}, 2), (-1, {}, 0), (3600, {"shiftmaster_lock_take_over": "r1"}, 0), (None, {}, 0)],
    ids=["held", "expired", "taken over", "no lock"],
)
def test_a_running_operation_is_named(tmp_path, expires, options, code):
    path = tmp_path / "state/lock.json"
    if expires is not None:
        path.parent.mkdir()
        path.write_text(json.dumps({**HOLDER, "expires": time.time() + expires, "ttl_seconds": 3600}))
    task = {"ansible.builtin.import_role": {"name": "release", "tasks_from": "held", "rolespec_validate": False}}
    play = tmp_path / "play.yml"
    play.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]))
    given = {"__release_lock_path": str(path), "shiftmaster_lock_wait_seconds": 1, **options}
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-c", "local", play,
         "-e", json.dumps(given)],
        cwd=ROOT, env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}, text=True, capture_output=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert ("nurse@elsewhere holds the lock" in done.stdout) == (code == 2)
