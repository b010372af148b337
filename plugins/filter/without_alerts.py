"""Filter `without_alerts`."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: without_alerts
short_description: A file of Prometheus' rules without some of its alerts
description:
  - The rules of this repository are written for a complete site. An alert about an absent part always fires where what
    it asks for is not wanted; there it is left out.
positional: names
options:
  _input:
    description: The file's text.
    type: str
    required: true
  names:
    description: The alerts that are left out. What the file does not have is no error.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show them
  ansible.builtin.debug:
    msg: "{{ lookup('ansible.builtin.file', 'rules/backup.yml') | without_alerts(['BackupMissing']) }}"
"""

RETURN = r"""
_value:
  description: The text; as it was where it has none of them.
  type: str
"""

import yaml


def without_alerts(text, names):
    content = yaml.safe_load(text)
    rules = [rule for group in content["groups"] for rule in group["rules"]]
    if not any(rule.get("alert") in names for rule in rules):
        return text
    for group in content["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule.get("alert") not in names]
    content["groups"] = [group for group in content["groups"] if group["rules"]]
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=1000)


class FilterModule:
    def filters(self):
        return {"without_alerts": without_alerts}
