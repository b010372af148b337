"""Templates of roles, with Ansible's own templating, the role's defaults and variables, and no host."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.collection_loader import AnsibleCollectionConfig

ROOT = Path(__file__).resolve().parents[1]


def trusted(value):
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, list):
        return [trusted(item) for item in value]
    if isinstance(value, dict):
        return {key: trusted(item) for key, item in value.items()}
    return value


def templar(role: str, **variables) -> Templar:
    """Return what templates as a play with this role would."""
    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader()
    known = {"ansible_managed": "Ansible managed", "ansible_facts": {}, "inventory_hostname": "host1"}
    for part in ("defaults", "vars"):
        path = ROOT / "roles" / role / part / "main.yml"
        known |= trusted(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.exists() else {}
    return Templar(DataLoader(), variables=known | variables)


def render(role: str, template: str, **variables) -> str:
    """Return a template of a role as ansible.builtin.template would write it."""
    text = (ROOT / "roles" / role / "templates" / template).read_text(encoding="utf-8")
    # Backslashes of a file are literal, as for the lookup that reads it.
    return templar(role, **variables).template(trust_as_template(text), escape_backslashes=False)


def masks() -> list:
    return yaml.safe_load((ROOT / "group_vars/all/masking.yml").read_text(encoding="utf-8"))["log_masks"]


@functools.cache
def action(name: str):
    """Return the module of an action plugin."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"plugins/action/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def problems(role: str, templar: Templar, rules: list | None = None) -> list[str]:
    """Return what the role's own rules find, or these, without its name before each."""
    variables = action("shiftmaster_variables")
    place = {"ansible_search_path": [str(ROOT / "roles" / role)]}
    rules = variables.rules_of(role) if rules is None else rules
    return variables.rule_problems(rules, templar, {**templar.available_variables, **place})
