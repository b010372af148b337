"""Lookup `source_tree`."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: source_tree
short_description: The text files of a directory of the controller, as one dict
description:
  - Lets one module call install a whole package of small files.
options:
  _terms:
    description: Directories of the controller.
    required: true
  suffix:
    description: Only files whose name ends so.
    default: .py
  prefix:
    description: Put before each path, e.g. the directory they go to.
    default: ""
  imports_of:
    description:
      - A Python program of the controller. Of the directory, which it knows as the package O(package), only those
        modules are taken that it imports, and those that they import by relative names.
  package:
    description: The name of the directory in O(imports_of).
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
  description: For each directory a dict of relative path to text.
  type: list
  elements: dict
"""

import ast
from pathlib import Path

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase


def files_of(path, text, package, texts):
    """Return those of the files that one of them imports: `from . import x`, `from ..host.x import y`.

    path "" is a program outside of the package, which imports it by its name.
    """
    found = set()
    here = path.split("/")[:-1]
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom):
            continue
        names = node.module.split(".") if node.module else []
        if node.level:
            base = here[: len(here) + 1 - node.level] + names
        elif names[0] == package:
            base = names[1:]
        else:
            continue
        for parts in [base, *(base + [alias.name] for alias in node.names)]:
            found |= {"/".join(parts) + ".py"} | {
                "/".join([*parts[:depth], "__init__.py"]) for depth in range(len(parts) + 1)
            }
    return found & set(texts)


def needed(program, package, texts):
    """Of {relative path: text} what a program imports, also by way of others; the package's __init__ in any case."""
    found = {"__init__.py"} & set(texts)
    left = files_of("", program, package, texts)
    while left:
        path = left.pop()
        found.add(path)
        left |= files_of(path, texts[path], package, texts) - found
    return {path: texts[path] for path in sorted(found)}


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        trees = []
        for term in terms:
            directory = Path(term)
            if not directory.is_dir():
                raise AnsibleError(f"source_tree: {directory} is not a directory of the controller")
            texts = {
                str(path.relative_to(directory)): path.read_text(encoding="utf-8")
                for path in sorted(directory.rglob(f"*{self.get_option('suffix')}"))
                if "__pycache__" not in path.parts
            }
            program = self.get_option("imports_of")
            if program:
                texts = needed(Path(program).read_text(encoding="utf-8"), self.get_option("package"), texts)
            trees.append({self.get_option("prefix") + path: text for path, text in texts.items()})
        return trees
