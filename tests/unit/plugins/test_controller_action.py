"""Action plugins of the controller: options are validated, every failure is a result, and secrets are in none."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace

import pytest
from ansible import context
from ansible.module_utils.shiftmaster.host.action import ControllerAction, Failed, runnable


class Plugin(ControllerAction):
    ARGUMENTS = {
        "count": {"type": "int", "default": 3},
        "channel": {"type": "dict", "options": {"password": {"type": "str", "no_log": True}}},
    }

    def perform(self, parameters):
        if parameters["count"] == 0:
            raise Failed("nothing to count for %s" % parameters["channel"]["password"])
        return {"each": 6 // (parameters["count"] - 1), "output": parameters["channel"] and "hunter2 was sent"}


@pytest.fixture
def run(run_module):
    return lambda **options: run_module(SimpleNamespace(ActionModule=Plugin), **options)


def test_defaults_and_types_are_those_of_the_specification(run):
    assert run() == {"changed": False, "each": 3, "output": None}
    assert run(count="4")["each"] == 2


@pytest.mark.parametrize(
    "options, word", [({"counts": 1}, "counts"), ({"count": "x"}, "count"), ({"count": 1}, "Zero")]
)
def test_a_failure_is_a_result_so_that_failed_when_applies(run, options, word):
    """Ansible ends a task whose action raises, regardless of failed_when."""
    result = run(**options)
    assert result["failed"] is True and word in result["msg"]


def test_a_secret_is_in_no_result(run):
    channel = {"password": "hunter2"}
    assert "hunter2" not in str(run(channel=channel)) + str(run(count=0, channel=channel))
    assert run(count=0, channel=channel)["failed"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ansible-playbook deploy.yml --tags tls", "./shiftmaster -E demo deploy --tags tls"),
        ("back: ansible-playbook -i inventory/demo rollback.yml", "back: ./shiftmaster -E demo rollback"),
        ("ansible-playbook playbooks/maintenance.yml -e state=off", "./shiftmaster -E demo maintenance -e state=off"),
        ("ansible cache --become -m ping", "./shiftmaster -E demo ansible cache --become -m ping"),
        ("/usr/bin/ansible-playbook x.yml; the ansible user", "/usr/bin/ansible-playbook x.yml; the ansible user"),
    ],
)  # fmt: skip
def test_a_command_is_named_as_the_run_was_started(monkeypatch, text, expected):
    monkeypatch.setenv("SHIFTMASTER_CALLED_AS", "./shiftmaster -E demo")
    assert runnable(text) == expected
    # Both are the same text in a report that is processed again.
    assert runnable(runnable(text)) == expected
    monkeypatch.setattr(context, "CLIARGS", {"inventory": (os.path.abspath("inventory/x"),)})
    expected = re.sub(r"(-E demo (?:deploy|rollback|maintenance|ansible))", r"\1 -i inventory/x", expected)
    assert runnable(text) == runnable(runnable(text)) == expected
