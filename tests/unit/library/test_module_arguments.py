"""Each module takes the arguments that its documentation names, of the same type, and with the same default."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import offenders
import yaml
from ansible.module_utils.basic import AnsibleModule

ROOT = Path(__file__).resolve().parents[3]
UNSET = {"type": "str", "required": False, "elements": None, "choices": None, "default": None, "aliases": []}


class Taken(Exception):
    """The arguments that a module would take."""


def arguments_of(path, monkeypatch):
    def take(_self, argument_spec, **_more):
        raise Taken(argument_spec)

    monkeypatch.setattr(AnsibleModule, "__init__", take)
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    try:
        module.main()
    except Taken as taken:
        assert yaml.safe_load(module.EXAMPLES) and yaml.safe_load(module.RETURN)
        return taken.args[0], yaml.safe_load(module.DOCUMENTATION).get("options") or {}
    raise AssertionError("main() makes no AnsibleModule")


def differences(taken, documented, where=""):
    for name in sorted({*taken, *documented}):
        if name not in taken or name not in documented:
            yield f"{where}{name} is {'not documented' if name in taken else 'not taken'}"
            continue
        for key, default in UNSET.items():
            values = taken[name].get(key, default), documented[name].get(key, default)
            ours, theirs = (list(one) if key == "choices" and one is not None else one for one in values)
            if ours != theirs:
                yield f"{where}{name}: {key} is {ours!r}, and {theirs!r} in the documentation"
        options = taken[name].get("options") or {}, documented[name].get("suboptions") or {}
        yield from differences(*options, f"{where}{name}.")


@offenders.each(sorted(ROOT.glob("library/*/*.py")), lambda path: path.stem)
def test_arguments_are_those_of_the_documentation(path, monkeypatch):
    assert list(differences(*arguments_of(path, monkeypatch))) == []
