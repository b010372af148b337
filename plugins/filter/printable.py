"""Filter `printable`."""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils

DOCUMENTATION = r"""
---
name: printable
short_description: Replace the control characters in data of another host
description:
  - Every text in the data, keys too, gets a question mark for each control character, so that it can be shown on a
    terminal. Line feeds and tabs stay.
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
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
from ansible.module_utils.shiftmaster.host.printable import printable_tree


class FilterModule:
    def filters(self):
        return {"printable": printable_tree}
