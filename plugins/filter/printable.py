"""Filter `printable`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCUMENTATION = r"""
---
name: printable
short_description: Replace the control characters in data of another host
description:
  - Every text in the data, keys too, gets a question mark for each control character, so that it can be shown on a
    terminal. Line feeds and tabs stay.
author: ShiftMaster operations (@shiftmaster-operations)
options:
  _input:
    description: The data, of texts, numbers, lists and dicts.
    type: raw
    required: true
"""

EXAMPLES = r"""
- name: Show what a host has sent
  ansible.builtin.debug:
    msg: "{{ answer.stdout | from_json | printable }}"
"""

RETURN = r"""
_value:
  description: The same data.
  type: raw
"""


# Ansible finds module_utils for modules alone.
_spec = importlib.util.spec_from_file_location(
    "shiftmaster_printable", Path(__file__).resolve().parents[2] / "module_utils/shiftmaster/host/printable.py"
)
_printable = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_printable)


class FilterModule:
    def filters(self):
        return {"printable": _printable.printable_tree}
