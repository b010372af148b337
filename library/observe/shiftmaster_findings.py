#!/usr/bin/python
"""Say what the evidence of all hosts means, and write it down."""

from __future__ import annotations

DOCUMENTATION = r"""
module: shiftmaster_findings
short_description: Say what the evidence of all hosts means
version_added: "1.0.0"
description:
  - Asks every rule of O(rules) of the evidence that M(shiftmaster_diagnose) has collected on each host, and puts the
    findings in order, roots before what follows from them, over all hosts. A host that could not be reached or
    diagnosed is a finding.
  - Runs on the controller, with the Python that runs Ansible (it needs Jinja).
  - Returns the report as text, as data and as one self-contained HTML page; writes it where O(directory) says so.
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
  rules:
    description: The rules, as diagnosis/*.yml holds them.
    type: list
    elements: dict
    required: true
  area:
    description: Which rules are asked.
    type: str
    choices: [app, db, cpu, memory, disk, network, all]
    default: all
  language:
    description: The language of text and page. Data holds both.
    type: str
    choices: [en, ja]
    default: en
  expectations:
    description: What only the inventory knows, C(standbys) (how many), C(beat_expected) and C(beat_hosts).
    type: dict
    default: {}
  fail_on:
    description: What counts as failing in RV(failing).
    type: str
    choices: [critical, warning, never]
    default: critical
  directory:
    description: Where C(diagnosis.txt), C(diagnosis.json) and C(diagnosis.html) are written; nowhere if empty.
    type: path
  bundle:
    description:
      - Whether C(diagnosis-bundle.tar.gz) for a supporter is written to O(directory) too. It holds the three, and a
        list with sizes and SHA-256 sums; secrets were taken out on the hosts. It is cut to 5 MiB before compression.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reads only; with O(directory) it says that it would write.
    support: full
  diff_mode:
    description: A report is new each time.
    support: none
seealso:
  - module: shiftmaster_diagnose
author:
  - ShiftMaster operations
"""

EXAMPLES = r"""
- name: Say what it means
  shiftmaster_findings:
    results: "{{ evidence_of_all }}"
    rules: "{{ query('ansible.builtin.fileglob', 'diagnosis/*.yml') | map('ansible.builtin.file') | list }}"
    language: ja
  delegate_to: localhost
  run_once: true
  register: diagnosis
"""

RETURN = r"""
worst:
  description: The worst severity, critical, warning, info or healthy.
  returned: always
  type: str
failing:
  description: The findings that fail by O(fail_on), as host and rule.
  returned: always
  type: list
  elements: str
first:
  description: The first finding in a sentence, for a message.
  returned: always
  type: str
report:
  description: The report as data; docs/diagnosis.schema.json describes it.
  returned: always
  type: dict
report_text:
  description: The summary for a terminal.
  returned: always
  type: str
not_written:
  description: Why there are no files.
  type: str
  returned: when they could not be written
files:
  description: What was written.
  returned: always
  type: list
  elements: str
bundle_list:
  description: What the bundle holds, with sums and sizes.
  returned: with O(bundle)
  type: list
  elements: str
"""

import datetime
import json

from ansible.module_utils.shiftmaster.diagnosis.setting import AREAS
from ansible.module_utils.shiftmaster.host.quiet import QuietModule
from ansible.module_utils.shiftmaster.reports import findings, findings_report


def argument_spec() -> dict:
    """Return what the module takes."""
    return {
        "results": findings.RESULTS_OPTION,
        "rules": {"type": "list", "elements": "dict", "required": True},
        "area": {"type": "str", "choices": [*AREAS, "all"], "default": "all"},
        "language": {"type": "str", "choices": list(findings.LANGUAGES), "default": "en"},
        "expectations": {"type": "dict", "default": {}},
        "fail_on": {"type": "str", "choices": ["critical", "warning", "never"], "default": "critical"},
        "directory": {"type": "path"},
        "bundle": {"type": "bool", "default": False},
    }


def judge(parameters: dict, made: datetime.datetime) -> tuple:
    """Return (what the module returns, {file name: content})."""
    hosts = [findings.host_of(one["host"], one["functions"], one["result"]) for one in parameters["results"]]
    found = findings.find(parameters["rules"], hosts, parameters["area"], parameters["expectations"])
    data = findings_report.report(hosts, found, parameters["area"], made)
    text = "\n".join(findings_report.lines(data, parameters["language"]))
    answer = {
        "worst": data["worst"],
        "failing": ["%s: %s" % (one["host"], one["rule"]) for one in findings.failing(found, parameters["fail_on"])],
        "first": findings_report.first_sentence(data, parameters["language"]),
        "report": data,
        "report_text": text,
        "files": [],
    }
    files = {}
    if parameters["directory"]:
        files = {
            "diagnosis.txt": text + "\n",
            "diagnosis.json": json.dumps(data, ensure_ascii=False, indent=1) + "\n",
            "diagnosis.html": findings_report.page(data, parameters["language"]),
        }
    return answer, files


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    made = datetime.datetime.now(datetime.timezone.utc)
    answer, files = judge(module.params, made)
    if module.params["bundle"] and files:
        content, answer["bundle_list"] = findings_report.bundle(files, made)
        files["diagnosis-bundle.tar.gz"] = content
    if files and not module.check_mode:
        try:
            answer["files"] = findings.write(module.params["directory"], files)
        except OSError as error:
            answer["not_written"] = "The report could not be written: %s" % error
            module.warn(answer["not_written"])
    module.exit_json(changed=bool(files), **answer)


if __name__ == "__main__":
    main()
