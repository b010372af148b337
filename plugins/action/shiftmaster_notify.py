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
from ansible.module_utils.shiftmaster.notify import text
from ansible.module_utils.shiftmaster.notify.send import compose, deliver, wrong_channels

ARGUMENTS = {
    "event": {"type": "str", "choices": list(text.EVENTS), "required": True},
    "status": {"type": "str", "choices": list(text.STATUSES), "required": True},
    "environment": {"type": "str", "required": True},
    "details": {"type": "dict", "default": {}},
    "links": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"text": {"type": "str", "required": True}, "href": {"type": "str", "required": True}},
    },
    "attachments": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"name": {"type": "str", "required": True}, "content": {"type": "str", "required": True}},
    },
    "language": {"type": "str", "choices": ["ja", "en", "both"], "default": "both"},
    "slack": {
        "type": "dict",
        "options": {
            "url": {"type": "str", "required": True, "no_log": True},
            "channel": {"type": "str", "default": ""},
        },
    },
    "email": {
        "type": "dict",
        "options": {
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "default": 587},
            "security": {"type": "str", "choices": ["starttls", "tls", "none"], "default": "starttls"},
            "user": {"type": "str", "default": ""},
            "password": {"type": "str", "default": "", "no_log": True},
            "sender": {"type": "str", "required": True},
            "recipients": {"type": "list", "elements": "str", "required": True},
        },
    },
    "pagerduty": {
        "type": "dict",
        "options": {
            "routing_key": {"type": "str", "required": True, "no_log": True},
            "url": {"type": "str", "default": "https://events.pagerduty.com/v2/enqueue"},
            "change_url": {"type": "str", "default": "https://events.pagerduty.com/v2/change/enqueue"},
        },
    },
    "ca_file": {"type": "path"},
    "proxy": {"type": "str", "default": ""},
    "timeout_seconds": {"type": "int", "default": 10},
}


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
        messages = {
            channel: with_commands(message)
            for channel, message in compose(parameters, now).items()
            if channel not in problems
        }
        if self._task.check_mode:
            return {"sent": [], "problems": problems, "seconds": 0.0, "messages": messages}
        started = time.monotonic()
        sent, failed = deliver(parameters, messages)
        # A notification changes nothing on a host.
        return {
            "sent": sent,
            "problems": {**failed, **problems},
            "seconds": round(time.monotonic() - started, 2),
        }
