"""Lookup `source_tree`."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: source_tree
short_description: The text files of a folder of the controller, as one dict
description:
  - Lets one module call install a whole package of small files.
author: ShiftMaster operations (@shiftmaster-operations)
options:
  _terms:
    description: Folders of the controller.
    required: true
  suffix:
    description: Only files whose name ends so.
    default: .py
  prefix:
    description: Put before each path, e.g. the folder they go to.
    default: ""
  imports_of:
    description:
      - A Python program of the controller. Of the folder, which it knows as the package O(package), only those
        modules are taken that it imports, and those that they import by relative names.
  package:
    description: The name of the folder in O(imports_of).
    default: engine
"""

EXAMPLES = r"""
- name: Show what a program needs of a package
  ansible.builtin.debug:
    var: lookup('source_tree', '/srv/package', imports_of='/srv/program')
- name: Show a package
  ansible.builtin.debug:
    var: lookup('source_tree', '/srv/package')
"""

RETURN = r"""
_raw:
  description: For each folder a dict of relative path to text.
  type: list
  elements: dict
"""

import ast
from pathlib import Path

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase


def modules_of(text, package, names):
    """Those of the names that a text imports of a package, or beside itself (`from . import x`, `from .x import y`)."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            beside = node.level == 1
            of = (node.module or "").split(".")
            if beside and node.module:
                found.add(of[0])
            elif beside or of == [package]:
                found |= {alias.name for alias in node.names}
            elif of[0] == package:
                found.add(of[1])
    return found & set(names)


def needed(program, package, texts):
    """Of {relative path: text} what a program imports, also by way of others; the package's __init__ in any case."""
    names = {path[: -len(".py")]: path for path in texts if "/" not in path}
    left, found = modules_of(program, package, names), {"__init__"} & set(names)
    while left:
        name = left.pop()
        found.add(name)
        left |= modules_of(texts[names[name]], package, names) - found
    return {names[name]: texts[names[name]] for name in sorted(found)}


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        trees = []
        for term in terms:
            folder = Path(term)
            if not folder.is_dir():
                raise AnsibleError(f"source_tree: {folder} is not a folder of the controller")
            texts = {
                str(path.relative_to(folder)): path.read_text(encoding="utf-8")
                for path in sorted(folder.rglob(f"*{self.get_option('suffix')}"))
                if "__pycache__" not in path.parts
            }
            program = self.get_option("imports_of")
            if program:
                texts = needed(Path(program).read_text(encoding="utf-8"), self.get_option("package"), texts)
            trees.append({self.get_option("prefix") + path: text for path, text in texts.items()})
        return trees
