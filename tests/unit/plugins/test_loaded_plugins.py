"""Jinja's filters are loaded once for a run, not in each process of a task (plugins/callback/loaded_plugins.py)."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, lookup_loader
from ansible.template import Templar, trust_as_template
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


def test_a_template_copies_no_variable(tmp_path, monkeypatch):
    class Variable:
        def __deepcopy__(self, memo):
            raise AssertionError("a variable is copied")

    if not lookup_loader.get("ansible.builtin.template"):
        init_plugin_loader()
    lookup = lookup_loader.get("ansible.builtin.template", class_only=True)
    monkeypatch.setitem(lookup.run.__globals__, "deepcopy", copy.deepcopy)
    spec = importlib.util.spec_from_file_location("loaded_plugins", ROOT / "plugins/callback/loaded_plugins.py")
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    plugin.CallbackModule().v2_playbook_on_start(None)
    (tmp_path / "x.j2").write_text("{{ a }} {{ b }}\n")
    variables = {"a": "theirs", "b": trust_as_template("{{ a }}!"), "other": [Variable()]}
    text = "{{ lookup('ansible.builtin.template', '%s', template_vars={'a': 'ours'}) }}" % (tmp_path / "x.j2")
    templar = Templar(DataLoader(), variables=variables)
    assert templar.template(trust_as_template(text)) == "ours ours!\n"
    assert templar.template(trust_as_template("{{ a }}")) == "theirs"
