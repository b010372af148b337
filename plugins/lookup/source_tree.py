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
"""

EXAMPLES = r"""
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

from pathlib import Path

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        trees = []
        for term in terms:
            folder = Path(term)
            if not folder.is_dir():
                raise AnsibleError(f"source_tree: {folder} is not a folder of the controller")
            trees.append(
                {
                    self.get_option("prefix") + str(path.relative_to(folder)): path.read_text(encoding="utf-8")
                    for path in sorted(folder.rglob(f"*{self.get_option('suffix')}"))
                    if "__pycache__" not in path.parts
                }
            )
        return trees
