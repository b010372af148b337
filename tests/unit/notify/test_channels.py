"""playbooks/test_channels.yml where one host is everything, and none of its channels takes a message."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]


def test_a_channel_that_alertmanager_cannot_reach_does_not_stop_the_others(tmp_path):
    values = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "shiftmaster_domain": "shift.example.test",
        # There is no listener.
        "vault_alertmanager_slack_url": "http://127.0.0.1:9/services/T0/B0/x",
        "vault_monitoring_admin_password": "of-the-test",
        "notify_timeout_seconds": 1,
        "monitoring_ports": {"prometheus": 9, "alertmanager": 9, "grafana": 9},
    }
    groups = {name: {"hosts": {"alone": {}}} for name in ("web", "app", "database", "cache", "monitoring")}
    (tmp_path / "hosts.yml").write_text(
        yaml.safe_dump({"all": {"hosts": {"alone": values}, "children": groups}}), encoding="utf-8"
    )
    run = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", tmp_path, ROOT / "playbooks/test_channels.yml"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CACHE_PLUGIN": "memory"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 2, run.stdout + run.stderr
    last = run.stdout.partition("PLAY [Report undelivered messages]")[2]
    assert "Alertmanager was not tried: " in last, run.stdout
    assert "Not delivered by this machine: slack" in last
