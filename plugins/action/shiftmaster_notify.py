"""Action `shiftmaster_notify`: sends one event of the playbooks to Slack, email and PagerDuty.

All channels at once, within a bounded time. A channel that is down or set up wrongly does not fail the task. A deploy
is a change event at PagerDuty, a failure an alert with a stable key; a later success resolves it under the same key.
Options:

    event, status    what happened (test tries the channels) and its result
    environment      production, for example; part of PagerDuty's key
    details          version, previous, hosts (a list), user, started, duration, reason, notes (a list) are shown with
                     their names; checklist is in the title of that event; others only in PagerDuty's details
    links            [{text, href}], five at most; what is no URL is left out
    attachments      [{name, content}] of the mail
    language         ja, en, both
    slack, email, pagerduty  the channels; without one nothing is sent there. email.security none is for a server on the
                     same host; starttls and tls verify the server's certificate.
    ca_file          authority of the servers' certificates; without it those that the controller knows
    proxy            of Slack and PagerDuty; without it the environment's
    timeout_seconds  when the action returns at the latest

Returns sent (channels), problems ({channel: why}) and seconds; in check mode, where nothing is sent, messages.
"""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import ansible.module_utils

# Ansible finds module_utils for modules alone.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
from ansible.module_utils.shiftmaster.host.action import ControllerAction, runnable
from ansible.module_utils.shiftmaster.host.quiet import SECRET, TEXT, dict_of, given, list_of
from ansible.module_utils.shiftmaster.notify import text
from ansible.module_utils.shiftmaster.notify.send import compose, deliver, wrong_channels

ARGUMENTS = {
    "event": dict(TEXT, choices=list(text.EVENTS)),
    "status": dict(TEXT, choices=list(text.STATUSES)),
    "environment": TEXT,
    "details": given({}),
    "links": list_of(text=TEXT, href=TEXT),
    "attachments": list_of(name=TEXT, content=TEXT),
    "language": given("both", choices=["ja", "en", "both"]),
    "slack": dict_of(url=SECRET, channel=given("")),
    "email": dict_of(
        host=TEXT, port=given(587), security=given("starttls", choices=["starttls", "tls", "none"]), user=given(""),
        password=given("", no_log=True), sender=TEXT,
        recipients={"type": "list", "elements": "str", "required": True},
    ),
    "pagerduty": dict_of(
        routing_key=SECRET, url=given("https://events.pagerduty.com/v2/enqueue"),
        change_url=given("https://events.pagerduty.com/v2/change/enqueue"),
    ),
    "ca_file": {"type": "path"},
    "proxy": given(""),
    "timeout_seconds": given(10),
}  # fmt: skip


def with_commands(value):
    """A message in which commands reach this run's hosts: its readers have set no inventory."""
    if isinstance(value, dict):
        return {key: with_commands(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(with_commands, value))
    return runnable(value) if isinstance(value, str) else value


class ActionModule(ControllerAction):
    ARGUMENTS = ARGUMENTS

    def perform(self, parameters):
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        problems = wrong_channels(parameters)
        messages = compose(parameters, now).items()
        messages = {channel: with_commands(one) for channel, one in messages if channel not in problems}
        if self._task.check_mode:
            return {"sent": [], "problems": problems, "seconds": 0.0, "messages": messages}
        started = time.monotonic()
        sent, failed = deliver(parameters, messages)
        # A notification changes nothing on a host.
        return {"sent": sent, "problems": {**failed, **problems}, "seconds": round(time.monotonic() - started, 2)}
