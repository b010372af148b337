"""Action `shiftmaster_health_report`: reports the health of all hosts and selects notifications. Options:

    results             [{host, result}]: what the task with module shiftmaster_health has registered on each host
    language            of the report: en, ja
    timezone            that the time of the report is in
    fail_on             what counts as failing: critical, warning, never
    notified            notification.notified of the last run
    repeat_seconds      after how long people are notified again of what is still unhealthy

Returns worst, failing ("host: check"), report, report_lines and report_text as shiftmaster_health does, for all hosts;
and notification: status (failed where something is unhealthy of which no message was sent within repeat_seconds;
succeeded where all is healthy again; empty where no message is due), notified, hosts (the unhealthy ones) and lines
(what is unhealthy by fail_on, hosts that could not be reached included).
"""

from __future__ import annotations

import datetime
import zoneinfo
from pathlib import Path

import ansible.module_utils

# Ansible finds module_utils for modules alone.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
from ansible.module_utils.shiftmaster.health import engine
from ansible.module_utils.shiftmaster.host.action import ControllerAction, runnable
from ansible.module_utils.shiftmaster.host.quiet import TEXT, list_of
from ansible.module_utils.shiftmaster.host.texts import LANGUAGES

ARGUMENTS = {
    "results": list_of(True, host=TEXT, result={"type": "dict", "required": True}),
    "language": {"type": "str", "choices": list(LANGUAGES), "default": "en"},
    "timezone": {"type": "str", "default": "UTC"},
    "fail_on": {"type": "str", "choices": ["critical", "warning", "never"], "default": "critical"},
    "notified": {"type": "dict", "default": {}},
    "repeat_seconds": {"type": "float", "default": 14400},
}


class ActionModule(ControllerAction):
    ARGUMENTS = ARGUMENTS

    def perform(self, parameters):
        now = datetime.datetime.now(datetime.timezone.utc)
        fail_on, language = parameters["fail_on"], parameters["language"]
        zone = zoneinfo.ZoneInfo(parameters["timezone"])
        reports = [engine.report_of(entry["host"], entry["result"]) for entry in parameters["results"]]
        merged = engine.merge_reports(reports, now)
        failing = {report["host"]: engine.failing(report["checks"], fail_on) for report in reports}
        failing = ["%s: %s" % (host, result["name"]) for host, found in failing.items() for result in found]
        unwell = engine.unwell(reports, fail_on, language)
        notification = engine.notification(unwell, parameters["notified"], now, parameters["repeat_seconds"])
        notification.update(lines=list(unwell.values()), hosts=sorted({name.split(": ")[0] for name in unwell}))
        lines = [runnable(line) for line in engine.merged_lines(merged, language, zone)]
        return dict(engine.result_of(merged, lines, failing), notification=notification)
