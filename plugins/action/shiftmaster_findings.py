"""Action `shiftmaster_findings`: evaluates the evidence of all hosts and writes the report.

Evaluates every rule against the evidence that module shiftmaster_diagnose has collected on each host, and puts the
findings in order over all hosts, causes before effects. A host without evidence is a finding. Options:

    results       [{host, functions, result}]: what the task with shiftmaster_diagnose has registered on each host
    rules         the rules of diagnosis/*.yml
    area          whose rules are evaluated (all)
    language      of text and page: en, ja; data holds both
    expectations  what only the inventory knows: standbys (a number), beat_expected, beat_hosts
    fail_on       what counts as failing: critical, warning, never
    directory        where diagnosis.txt, .json and .html are written; without it nowhere
    bundle        whether diagnosis-bundle.tar.gz for a supporter is written there, too: the three, and their sizes and
                  SHA-256 sums. Secrets were removed on the hosts.

Returns worst (critical, warning, info, healthy), failing ("host: rule"), first (a sentence), report
(docs/diagnosis.schema.json), report_text, files, not_written (why there are none) and bundle_list.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import ansible.module_utils

# Ansible finds module_utils for modules alone.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
from ansible.module_utils.shiftmaster.diagnosis.setting import AREAS
from ansible.module_utils.shiftmaster.host.action import ControllerAction, runnable
from ansible.module_utils.shiftmaster.host.texts import LANGUAGES
from ansible.module_utils.shiftmaster.reports import findings, findings_report

ARGUMENTS = {
    "results": findings.RESULTS_OPTION,
    "rules": {"type": "list", "elements": "dict", "required": True},
    "area": {"type": "str", "choices": [*AREAS, "all"], "default": "all"},
    "language": {"type": "str", "choices": list(LANGUAGES), "default": "en"},
    "expectations": {"type": "dict", "default": {}},
    "fail_on": {"type": "str", "choices": ["critical", "warning", "never"], "default": "critical"},
    "directory": {"type": "path"},
    "bundle": {"type": "bool", "default": False},
}


def evaluate(parameters: dict, made: datetime.datetime) -> tuple:
    """Return (what the action returns, {file name: content})."""
    return findings.of_hosts(parameters["results"], lambda hosts: _evaluate(parameters, hosts, made))


def _evaluate(parameters: dict, hosts: list, made: datetime.datetime) -> tuple:
    found = findings.find(parameters["rules"], hosts, parameters["area"], parameters["expectations"])
    data = findings_report.report(hosts, found, parameters["area"], made)
    text = runnable("\n".join(findings_report.lines(data, parameters["language"])))
    output = {
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
            "diagnosis.html": runnable(findings_report.page(data, parameters["language"])),
        }
    return output, files


class ActionModule(ControllerAction):
    ARGUMENTS = ARGUMENTS

    def perform(self, parameters):
        made = datetime.datetime.now(datetime.timezone.utc)
        result, files = evaluate(parameters, made)
        if parameters["bundle"] and files:
            content, result["bundle_list"] = findings_report.bundle(files, made)
            files["diagnosis-bundle.tar.gz"] = content
        if files and not self._task.check_mode:
            try:
                result["files"] = findings.write(parameters["directory"], files)
            except OSError as error:
                result["not_written"] = "The report could not be written: %s" % error
                self._display.warning(result["not_written"])
        return result
