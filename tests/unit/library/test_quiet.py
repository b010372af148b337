"""Lines that our modules write to the host's log when they are called."""

from __future__ import annotations

from pathlib import Path

import offenders
import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.shiftmaster.host.quiet import QuietModule
from ansible.module_utils.testing import patch_module_args

SPEC = {
    "users": {
        "type": "list",
        "elements": "dict",
        "options": {"name": {"type": "str"}, "password": {"type": "str", "no_log": True}},
    }
}
ROOT = Path(__file__).resolve().parents[3]
MODULES = sorted(ROOT.glob("library/*/*.py"))
SECRETS = ["plain-secret", "two\nlines-secret", 'a "quoted" \'secret', "back\\slash-secret"]


def logged(monkeypatch, kind, secret):
    lines = []
    monkeypatch.setattr(kind, "_log_to_syslog", lambda _self, message: lines.append(message))
    monkeypatch.setattr("ansible.module_utils.basic.has_journal", False)
    with patch_module_args({"users": [{"name": "prometheus", "password": secret}]}):
        kind(argument_spec=SPEC)
    return "".join(lines)


@pytest.mark.parametrize("secret", SECRETS)
def test_no_argument_is_logged(monkeypatch, secret):
    assert logged(monkeypatch, QuietModule, secret) == "Invoked"


def test_ansible_logs_secrets_without_it(monkeypatch):
    """When this fails, Ansible has fixed it, and QuietModule may go."""
    found = [secret for secret in SECRETS if "secret" in logged(monkeypatch, AnsibleModule, secret)]
    assert found == SECRETS[1:]


@offenders.each(MODULES, lambda path: path.stem)
def test_a_module_with_secrets_logs_nothing(path):
    text = path.read_text()
    assert ("no_log" in text) <= ("QuietModule(" in text and " AnsibleModule(" not in text)
