"""Make module_utils/ importable as ansible.module_utils, as on a host."""

from __future__ import annotations

import json
from pathlib import Path

import ansible.module_utils
import pytest

ROOT = Path(__file__).resolve().parents[2]
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))


@pytest.fixture
def run_module(capsys):
    """A function that runs a module as Ansible does, and returns what it answers."""
    from ansible.module_utils.testing import patch_module_args

    def run_module(module, check_mode=False, **parameters):
        with patch_module_args(dict(parameters, _ansible_check_mode=check_mode)), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return run_module
