"""Output of recover.yml about the backup server has no control characters, written or escaped."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
STUB = r"""#!/bin/sh
printf 'no \033[2J\302\233\r network\n' >&2
exit 1
"""


def test_the_reason_of_a_failed_fetch_is_printed_without_control_characters(tmp_path):
    tasks = yaml.safe_load((ROOT / "roles/restore/tasks/recovery_data.yml").read_text())
    names = [task["name"] for task in tasks]
    tasks = tasks[names.index("Recover | Fetch the off-site backups") : names.index("Recover | Plan the recovery")]
    variables = {"restore_backups": "offsite", "restore_fetch": "", "backup_server_host": "localhost"}
    variables["shiftmaster_run"] = {"id": "r1"}
    play = {"hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": tasks}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    (tmp_path / "systemd-run").write_text(STUB)
    (tmp_path / "systemd-run").chmod(0o755)
    done = subprocess.run(
        ["ansible-playbook", "-i", "localhost,", "-c", "local", tmp_path / "play.yml"],
        cwd=ROOT,
        env=dict(os.environ, PATH="%s:%s" % (tmp_path, os.environ["PATH"])),
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 2 and "network" in done.stdout
    assert not set("\x1b\r\x9b") & set(done.stdout + done.stderr)
    assert not [escaped for escaped in ("\\e", "\\x", "\\u", "\\r") if escaped in done.stdout]
