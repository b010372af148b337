"""The state of the application hosts (roles/shiftmaster/tasks/report.yml), on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support import ROOT

END = "ansible-playbook playbooks/maintenance.yml -e state=off"
ON = f"users see the maintenance page (edge1); to end it: {END}"
ON_JA = f"利用者にはメンテナンス画面が表示されています(edge1)。解除: {END}"


CASES = [
    # (report, language, whether the page is shown, what is printed of it)
    ("status", "en", True, ON),
    ("status", "ja", True, ON_JA),
    ("status", "en", False, ""),
    ("history", "en", True, ""),
]


def test_status_shows_which_web_hosts_show_the_maintenance_page(tmp_path):
    """One of the web hosts does not respond."""
    (tmp_path / "ansible.cfg").write_text(f"[defaults]\nroles_path={ROOT}/roles\ncallback_result_format=yaml\n")
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    lost = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    hosts = {"app": dict.fromkeys(("app1", "app2"), local), "web": {"edge1": local, "edge2": lost}}
    (tmp_path / "hosts.yml").write_text(json.dumps({name: {"hosts": found} for name, found in hosts.items()}))
    role = {"name": "shiftmaster", "tasks_from": "report", "rolespec_validate": False}
    tasks = []
    for report, language, shown, _expected in CASES:
        root = tmp_path / str(shown)
        page = root / "shared/maintenance/on"
        page.parent.mkdir(parents=True, exist_ok=True)
        if shown:
            page.touch()
        values = {"shiftmaster_report": report, "run_display_language": language, "shiftmaster_coordinator": "app1",
                  "shiftmaster_root": str(root), "shiftmaster_lb_hosts": ["edge1", "edge2"]}  # fmt: skip
        tasks += [{"ansible.builtin.debug": {"msg": "next case"}, "run_once": True},
                  {"ansible.builtin.import_role": role, "vars": values}]  # fmt: skip
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "app", "gather_facts": False, "tasks": tasks}]))
    environment = {**os.environ, "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"), "LC_ALL": "C.UTF-8"}
    for name in ("ANSIBLE_STDOUT_CALLBACK", "ANSIBLE_CALLBACKS_ENABLED"):
        environment.pop(name, None)
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "hosts.yml", "play.yml"], cwd=tmp_path, timeout=600,
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    parts = done.stdout.split("next case")[1:]
    assert len(parts) == len(CASES)
    for output, (*_case, expected) in zip(parts, CASES):
        assert output.count("state=off") == bool(expected) and expected in " ".join(output.split()), output
