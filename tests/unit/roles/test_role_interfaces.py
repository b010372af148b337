"""The interface of a role: values in defaults/main.yml, types and texts in the argument specs, both in the README."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import offenders
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted(path.name for path in (ROOT / "roles").glob("*") if (path / "tasks").is_dir())
assert ROLES


@functools.cache
def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def defaults_of(role):
    path = ROOT / "roles" / role / "defaults/main.yml"
    return load(path) if path.exists() else {}


def options_of(role):
    """Every entry point's options: a role's defaults serve all of them."""
    specs = load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"]
    # The first entry point is the role's; one without tasks/main.yml has another.
    assert (ROOT / "roles" / role / "tasks" / f"{next(iter(specs))}.yml").exists()
    return {name: option for spec in specs.values() for name, option in (spec.get("options") or {}).items()}


@offenders.each(ROLES)
def test_every_default_belongs_to_an_option_and_is_defined_once(role):
    """Ansible applies defaults/main.yml alone: a default in the specification could only differ from it."""
    assert set(defaults_of(role)) <= set(options_of(role))
    assert [name for name, option in options_of(role).items() if "default" in option] == []


@offenders.each(ROLES)
def test_every_default_has_the_type_of_its_option(role):
    options = {name: dict(options_of(role)[name], required=False) for name in defaults_of(role)}
    # A template has its type when it is evaluated.
    values = {name: value for name, value in defaults_of(role).items() if "{{" not in str(value)}
    assert ArgumentSpecValidator(options).validate(values).error_messages == []


@offenders.each(ROLES)
def test_an_option_without_default_is_required_or_documented_as_optional(role):
    neither = [
        name for name, option in options_of(role).items() if "required" not in option and name not in defaults_of(role)
    ]
    assert neither == [], "say `required: true`, or `required: false` where absence has a meaning"


@offenders.each(ROLES)
def test_every_option_is_described_and_typed(role):
    def walk(options, prefix=""):
        for name, option in options.items():
            if not option.get("description") or "type" not in option:
                yield prefix + name
            if option.get("type") == "list" and "elements" not in option:
                yield f"{prefix}{name} (elements)"
            yield from walk(option.get("options") or {}, f"{prefix}{name}.")

    assert list(walk(options_of(role))) == []


@offenders.each(ROLES)
def test_names_belong_to_the_role(role):
    # The application's own settings are called shiftmaster_* in every role.
    wrong = [name for name in options_of(role) if not name.startswith((f"{role}_", "shiftmaster_"))]
    assert wrong == []
    internal = ROOT / "roles" / role / "vars/main.yml"
    if internal.exists():
        assert [name for name in load(internal) if not name.startswith((f"__{role}_", f"{role}_"))] == []


def test_readmes_are_those_of_the_argument_specs():
    result = subprocess.run(
        [sys.executable, "scripts/role_readme.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_hooks_are_described_as_the_module_accepts_them():
    """Preflight evaluates them by the role's specification, the release module by its own documentation."""
    text = (ROOT / "library/release/shiftmaster_release.py").read_text(encoding="utf-8")
    module = yaml.safe_load(text.split('DOCUMENTATION = r"""')[1].split('"""')[0])["options"]["hooks"]["suboptions"]
    assert options_of("shiftmaster")["shiftmaster_hooks"]["options"] == module
