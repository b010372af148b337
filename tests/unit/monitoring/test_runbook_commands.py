"""Each command of alerts, rules and findings is shell, of known programs, and either reads or is known to change."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
from pathlib import Path

import offenders
import pytest
import runbooks
import yaml

ROOT = Path(__file__).resolve().parents[3]
commands = functools.cache(runbooks.every)
each = offenders.each(commands, lambda command: f"{command.source}: {command.text[:60]}")

# Hosts that findings of the cases name.
OF_CASES = {"one", "db1"}
# Next to those of the alerts.
KNOWN = {
    "apt-get",
    "chmod",
    "chown",
    "cut",
    "dpkg",
    "echo",
    "getent",
    "gzip",
    "id",
    "kill",
    "logrotate",
    "mv",
    "namei",
    "pgbackrest",
    "psql",
    "renice",
    "sort",
    "sysctl",
    "tc",
    "timedatectl",
    "vacuumdb",
    "sed",
    "usermod",
}


@functools.cache
def hosts():
    groups = yaml.safe_load((ROOT / "inventory/production/hosts.yml").read_text())["all"]["children"]
    return {"all", "monitoring", "standby", *groups, *OF_CASES}


def test_there_are_commands_of_alerts_and_of_rules():
    assert {one.where == "rule" for one in commands()} == {True, False}


@each
def test_command_is_shell(command):
    done = subprocess.run(["bash", "-n"], input=command.text, text=True, capture_output=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "{{" not in command.text.replace("{{.", "").replace("{{json .", "") and "  " not in command.text.strip()


@each
def test_programs_are_known(command):
    programs = {words[0] for words in runbooks.simple_commands(command.text)}
    assert programs <= runbooks.unit_tests("test_alerts").KNOWN | KNOWN, command.text


@each
def test_command_is_known_to_read_or_to_change(command):
    """The operator can see which, and test_runbooks.py executes those that read."""
    assert runbooks.reads_only(command.text) != bool(runbooks.CHANGERS.search(command.text)), command.text


@each
def test_calls_of_ansible_are_right(command):
    for words in runbooks.simple_commands(command.text):
        if words[0] == "ansible-playbook":
            assert runbooks.unit_tests("test_docs").playbook_faults(words) == []
        if words[0] == "ansible":
            assert set(words[1].split(":")) <= hosts(), words
            options = [word for word in words[2:] if word.startswith("-")]
            assert set(options) <= {"-m", "-a", "--become", "--become-user"}, words
            assert words[words.index("-m") + 1] in {
                f"ansible.builtin.{name}" for name in ("ping", "command", "shell", "raw")
            }
            if "-a" in words:
                inner = words[words.index("-a") + 1]
                shell = subprocess.run(["bash", "-n"], input=inner, text=True, capture_output=True, check=False)
                assert shell.returncode == 0, inner
                # Module `command` knows no pipes.
                assert "ansible.builtin.command" not in words or not re.search(r"[|;<>&]", inner), inner


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("systemctl status nginx", True),
        ("systemctl restart nginx", False),
        ("cat /etc/fstab; systemctl restart nginx", False),
        ("df -h | head -n 3", True),
        ("df -h | rm -rf /", False),
        ("journalctl --vacuum-size=200M", False),
        ('sudo -u postgres psql -c "SELECT pg_terminate_backend(7)"', False),
        ('sudo -u postgres psql -c "DELETE FROM roster"', False),
        ('sudo -u postgres psql -c "SELECT 1"', True),
        ("docker ps --quiet | xargs -r -n 1 docker logs", True),
        ("docker ps --quiet | xargs -r docker rm", False),
        ("ansible all --become -m ansible.builtin.command -a 'systemctl start postgresql'", False),
        ("ansible all -m ansible.builtin.ping", True),
        ("nft delete rule inet x y handle 3", False),
        ("redis-cli FLUSHALL", False),
    ],
)
def test_commands_that_only_read(text, reads):
    assert runbooks.reads_only(text) is reads


def test_names_of_units_keep_what_a_shell_would_take_off():
    """systemd writes a dash of a path as \\x2d."""
    unit = r"system-foo\x2dbar.service"
    patch = {
        "parts": {
            "units": {
                "units": [
                    {"unit": unit, "required": False, "active": "failed", "result": "exit-code", "last_words": []}
                ]
            }
        }
    }
    host = runbooks.changed(runbooks.load(runbooks.HEALTHY), patch)
    found = runbooks.findings.find(runbooks.rules(), [host], "all", {})
    fix = next(one["fix"] for one in found if one["rule"] == "UnitFailed")
    assert fix and all(unit in shlex.split(line) for line in fix)
