#!/usr/bin/python
"""Fill in a checklist from the evidence of all hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: shiftmaster_checklist
short_description: Fill in a checklist from the evidence of all hosts
version_added: "1.0.0"
description:
  - Judges each line of a checklist by what M(shiftmaster_diagnose) has collected with its area V(checklist), and says
    what it rests on. Without evidence nothing is ticked. What only a person can do is left to a person.
  - Runs on the controller, with the Python that runs Ansible (it needs Jinja).
options:
  results:
    description: What the task with M(shiftmaster_diagnose) has registered on each host.
    type: list
    elements: dict
    required: true
    suboptions:
      host:
        description: The host's name.
        type: str
        required: true
      functions:
        description: What it is for.
        type: list
        elements: str
        default: []
      result:
        description: What was registered.
        type: dict
        required: true
  lines:
    description: The lines, as checklists/*.yml holds them.
    type: list
    elements: dict
    required: true
  period:
    description: Which checklist it is.
    type: str
    choices: [morning, evening, weekly, monthly]
    required: true
  language:
    description: The language of text and page.
    type: str
    choices: [en, ja]
    default: ja
  metrics:
    description: The month's metrics of M(shiftmaster_kpi).
    type: dict
  series:
    description: Its series, for small charts.
    type: dict
    default: {}
  metrics_problem:
    description: Why there are no metrics of the month; it is said in their place. Empty where nobody was asked.
    type: str
    default: ""
  directory:
    description: Where C(checklist.txt), C(checklist.json) and C(checklist.html) are written; nowhere if empty.
    type: path
attributes:
  check_mode:
    description: Reads only; with O(directory) it says that it would write.
    support: full
  diff_mode:
    description: A checklist is new each time.
    support: none
seealso:
  - module: shiftmaster_diagnose
  - module: shiftmaster_kpi
author:
  - ShiftMaster operations
"""

EXAMPLES = r"""
- name: Fill in the morning's
  shiftmaster_checklist:
    results: "{{ evidence_of_all }}"
    lines: "{{ (lookup('ansible.builtin.file', 'checklists/morning.yml') | from_yaml).lines }}"
    period: morning
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
checklist:
  description: The filled-in checklist, each line with its mark (good, bad, unknown, person) and what was seen.
  returned: always
  type: dict
text:
  description: The same in words.
  returned: always
  type: str
page:
  description: The same as one HTML document.
  returned: always
  type: str
bad:
  description: The names of the lines that are not good.
  returned: always
  type: list
  elements: str
unknown:
  description: The names of the lines of which nothing is known.
  returned: always
  type: list
  elements: str
files:
  description: What was written.
  returned: always
  type: list
  elements: str
"""

import datetime
import json

from ansible.module_utils.shiftmaster.host.quiet import QuietModule
from ansible.module_utils.shiftmaster.reports import checklist, findings


def argument_spec() -> dict:
    """Return what the module takes."""
    return {
        "results": findings.RESULTS_OPTION,
        "lines": {"type": "list", "elements": "dict", "required": True},
        "period": {"type": "str", "choices": list(checklist.PERIODS), "required": True},
        "language": {"type": "str", "choices": list(findings.LANGUAGES), "default": "ja"},
        "metrics": {"type": "dict"},
        "series": {"type": "dict", "default": {}},
        "metrics_problem": {"type": "str", "default": ""},
        "directory": {"type": "path"},
    }


def fill_in(parameters: dict, made: datetime.datetime) -> dict:
    """Return what the module returns, but for the files."""
    hosts = []
    for one in parameters["results"]:
        host = findings.host_of(one["host"], one["functions"], one["result"])
        # A group that is no function of the diagnosis counts too (backup).
        hosts.append(dict(host, functions=sorted(set(host["functions"]) | set(one["functions"]))))
    language, metrics = parameters["language"], parameters["metrics"]
    data = checklist.judge(parameters["period"], parameters["lines"], hosts, findings.topology_of(hosts), made)
    if parameters["period"] == "monthly" and not metrics:
        said = parameters["metrics_problem"]
        why = dict.fromkeys(findings.LANGUAGES, said) if said else checklist.both(checklist.SAYS["no_prometheus"])
        data["metrics_problem"] = checklist.both(checklist.SAYS["no_metrics"], why=why)
    text = checklist.text_lines(data, language, metrics)
    return {
        "checklist": dict(data, metrics=metrics),
        "text": "\n".join(text),
        "page": checklist.page(data, language, metrics, parameters["series"]),
        "bad": [line["name"] for line in data["lines"] if line["mark"] == checklist.BAD],
        "unknown": [line["name"] for line in data["lines"] if line["mark"] == checklist.UNKNOWN],
    }


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    answer = fill_in(module.params, datetime.datetime.now(datetime.timezone.utc))
    files, directory = [], module.params["directory"]
    if directory and not module.check_mode:
        try:
            files = findings.write(
                directory,
                {
                    "checklist.txt": answer["text"] + "\n",
                    "checklist.json": json.dumps(answer["checklist"], ensure_ascii=False, indent=1) + "\n",
                    "checklist.html": answer["page"],
                },
            )
        except OSError as error:
            module.warn("The checklist could not be written: %s" % error)
    module.exit_json(changed=bool(directory), files=files, **answer)


if __name__ == "__main__":
    main()
