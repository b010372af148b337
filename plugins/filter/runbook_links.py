"""Filter `runbook_links`."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: runbook_links
short_description: A dashboard whose links to runbooks have an address
description:
  - Puts the address in the place of C(@RUNBOOK_URL_BASE@). Without an address, removes each link to a runbook, which
    would lead to a page of Grafana that does not exist.
author: ShiftMaster operations (@shiftmaster-operations)
positional: url_base
options:
  _input:
    description: The dashboard's model as JSON.
    type: str
    required: true
  url_base:
    description: What C(/docs/runbooks/) is put behind, or an empty text.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show a dashboard
  ansible.builtin.debug:
    msg: "{{ lookup('ansible.builtin.file', 'shiftmaster-host.json') | runbook_links('https://git.example.com/ops') }}"
"""

RETURN = r"""
_value:
  description: The model as JSON; as it was but for the links.
  type: str
"""

import json


def without_runbooks(value):
    """An object of the model whose lists of links lead nowhere else."""
    for key, item in value.items():
        if isinstance(item, list):
            value[key] = [
                one for one in item if not (isinstance(one, dict) and "${runbook_url_base}" in str(one.get("url")))
            ]
    return value


def runbook_links(text, url_base):
    if url_base:
        return text.replace("@RUNBOOK_URL_BASE@", json.dumps(url_base.rstrip("/"))[1:-1])
    return json.dumps(json.loads(text, object_hook=without_runbooks), ensure_ascii=False, indent=1) + "\n"


class FilterModule:
    def filters(self):
        return {"runbook_links": runbook_links}
