"""Filter `mask_problems`."""

from __future__ import annotations

from ansible.module_utils.shiftmaster.mask_cost import mask_problems

DOCUMENTATION = r"""
---
name: mask_problems
short_description: What is wrong with masks of personal data
description:
  - A mask runs in each process of the application and in Logstash, on every line. One that means something else there,
    or that can be led to run for ever, is told before anything changes.
author: ShiftMaster operations (@shiftmaster-operations)
options:
  _input:
    description: The masks, as group_vars/all/masking.yml has them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show what is wrong
  ansible.builtin.debug:
    msg: "{{ [{'name': 'own', 'pattern': '(a+)+b', 'replace': '[x]'}] | mask_problems }}"
"""

RETURN = r"""
_value:
  description: A sentence for each problem.
  type: list
  elements: str
"""


class FilterModule:
    def filters(self):
        return {"mask_problems": mask_problems}
