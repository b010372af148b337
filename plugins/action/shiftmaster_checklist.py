"""Action `shiftmaster_checklist`: fills in a checklist from the evidence of all hosts.

Evaluates each line by what module shiftmaster_diagnose has collected with its area "checklist", and names the evidence.
Without evidence no line is good. Options:

    results          as of shiftmaster_findings
    lines            the lines of checklists/*.yml
    period           which checklist it is
    language         of text and page: ja, en
    metrics, series  what shiftmaster_kpi has returned
    metrics_problem  why there are none
    directory           where checklist.txt, .json and .html are written; without it nowhere

Returns checklist (each line with its mark: good, bad, unknown, person), text, page (HTML), bad and unknown (names of
lines), and files.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import ansible.module_utils

# Ansible finds module_utils for modules alone.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
from ansible.module_utils.shiftmaster.host.action import ControllerAction
from ansible.module_utils.shiftmaster.host.texts import LANGUAGES
from ansible.module_utils.shiftmaster.reports import checklist, findings

ARGUMENTS = {
    "results": findings.RESULTS_OPTION,
    "lines": {"type": "list", "elements": "dict", "required": True},
    "period": {"type": "str", "choices": list(checklist.PERIODS), "required": True},
    "language": {"type": "str", "choices": list(LANGUAGES), "default": "ja"},
    "metrics": {"type": "dict"},
    "series": {"type": "dict", "default": {}},
    "metrics_problem": {"type": "str", "default": ""},
    "directory": {"type": "path"},
}


def fill_in(parameters: dict, made: datetime.datetime) -> dict:
    """Return what the action returns, but for the files."""
    return findings.of_hosts(parameters["results"], lambda hosts: _fill_in(parameters, hosts, made))


def _fill_in(parameters: dict, hosts: list, made: datetime.datetime) -> dict:
    language, metrics = parameters["language"], parameters["metrics"]
    data = checklist.evaluate(parameters["period"], parameters["lines"], hosts, findings.topology_of(hosts), made)
    if parameters["period"] == "monthly" and not metrics:
        problem = parameters["metrics_problem"]
        why = dict.fromkeys(LANGUAGES, problem) if problem else checklist.both(checklist.SAYS["no_prometheus"])
        data["metrics_problem"] = checklist.both(checklist.SAYS["no_metrics"], why=why)
    text = checklist.text_lines(data, language, metrics)
    return {
        "checklist": dict(data, metrics=metrics),
        "text": "\n".join(text),
        "page": checklist.page(data, language, metrics, parameters["series"]),
        "bad": [line["name"] for line in data["lines"] if line["mark"] == checklist.BAD],
        "unknown": [line["name"] for line in data["lines"] if line["mark"] == checklist.UNKNOWN],
    }


class ActionModule(ControllerAction):
    ARGUMENTS = ARGUMENTS

    def perform(self, parameters):
        result = fill_in(parameters, datetime.datetime.now(datetime.timezone.utc))
        files = []
        if parameters["directory"] and not self._task.check_mode:
            try:
                files = findings.write(
                    parameters["directory"],
                    {
                        "checklist.txt": result["text"] + "\n",
                        "checklist.json": json.dumps(result["checklist"], ensure_ascii=False, indent=1) + "\n",
                        "checklist.html": result["page"],
                    },
                )
            except OSError as error:
                self._display.warning("The checklist could not be written: %s" % error)
        return dict(result, files=files)
