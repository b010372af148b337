"""Jinja's filters are loaded once for a run, not in each process of a task (plugins/callback/loaded_plugins.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import ROOT

PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: "{{ 'x' | upper }}"}
    - ansible.builtin.debug: {msg: "{{ 'x' | b64encode }}"}
"""


def test_the_filters_are_loaded_once_for_all_tasks(tmp_path):
    playbook = tmp_path / "play.yml"
    playbook.write_text(PLAY)
    command = [Path(sys.executable).with_name("ansible-playbook"), "--inventory", "localhost,", playbook]
    done = subprocess.run(
        command, cwd=ROOT, text=True, timeout=120, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
        env=dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), ANSIBLE_DEBUG="1"),
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stdout, done.stdout[-2000:]
    assert done.stdout.count("Loading FilterModule 'installed_package'") == 1
