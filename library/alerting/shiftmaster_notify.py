#!/usr/bin/python
"""Tell people about an event of the playbooks: Slack, email, PagerDuty."""

DOCUMENTATION = r"""
---
module: shiftmaster_notify
short_description: Tell people about a deploy, a rollback, a backup, a restore, a checklist or the health of the system
description:
  - Sends one event to several channels at once, within a bounded time, and says which it did not reach. A channel that
    is down, or set up wrongly, is never a failure of the task, and keeps no other from being told.
  - To PagerDuty a deploy is a change event, and a failure an alert with a stable key. What succeeds later resolves it
    under the same key.
  - Runs on the controller (C(delegate_to=localhost)).
options:
  event:
    description: What happened. V(test) tries the channels.
    type: str
    choices: [deploy, rollback, backup, restore, health, checklist, test]
    required: true
  status:
    description: How it went.
    type: str
    choices: [started, succeeded, warning, failed]
    required: true
  environment:
    description: Where, for example V(production). It is part of PagerDuty's key.
    type: str
    required: true
  details:
    description:
      - What is known about it, all of it optional. C(version), C(previous), C(hosts) (a list), C(user), C(started),
        C(duration), C(reason), C(notes) (a list) are shown with their names; C(checklist) (C(morning), C(evening),
        C(weekly), C(monthly)) is in the title of that event; others only in PagerDuty's details.
    type: dict
    default: {}
  links:
    description: Where to look, five at the most. What is no URL is left out.
    type: list
    elements: dict
    default: []
    suboptions:
      text:
        description: What the link is called.
        type: str
        required: true
      href:
        description: The URL.
        type: str
        required: true
  attachments:
    description: Texts that a mail brings along; what ends in C(.html) opens as a page.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The file's name.
        type: str
        required: true
      content:
        description: What is in it.
        type: str
        required: true
  language:
    description: In which language; V(both) writes Japanese first.
    type: str
    choices: [ja, en, both]
    default: both
  slack:
    description: An incoming webhook, or what accepts the same. Absent, nothing is sent there.
    type: dict
    suboptions:
      url:
        description: Its address, a secret.
        type: str
        required: true
      channel:
        description: The channel, for webhooks that let the sender choose it; others use their own.
        type: str
        default: ""
  email:
    description: A mail. Absent, none is sent.
    type: dict
    suboptions:
      host:
        description: The server that takes it.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        default: 587
      security:
        description:
          - V(starttls) and V(tls) verify the server's certificate, and send nothing without encryption.
          - V(none) is for a server on the same host. A password is then sent to the loopback only.
        type: str
        choices: [starttls, tls, none]
        default: starttls
      user:
        description: User of the server; without one there is no authentication.
        type: str
        default: ""
      password:
        description: Its password.
        type: str
        default: ""
      sender:
        description: From whom.
        type: str
        required: true
      recipients:
        description: To whom.
        type: list
        elements: str
        required: true
  pagerduty:
    description: PagerDuty's Events API v2. Absent, nothing is sent there.
    type: dict
    suboptions:
      routing_key:
        description: The integration key, a secret.
        type: str
        required: true
      url:
        description: Where alerts are sent.
        type: str
        default: https://events.pagerduty.com/v2/enqueue
      change_url:
        description: Where change events are sent.
        type: str
        default: https://events.pagerduty.com/v2/change/enqueue
  ca_file:
    description: Authority of the servers' certificates; without one, those that the controller knows.
    type: path
  proxy:
    description: Proxy for Slack and PagerDuty; without one the environment's (C(https_proxy), C(no_proxy)).
    type: str
    default: ""
  timeout_seconds:
    description: When the module returns at the latest, whatever the channels do.
    type: int
    default: 10
author: ShiftMaster operations
attributes:
  check_mode:
    support: full
    description: Nothing is sent; RV(messages) says what would be.
  diff_mode:
    support: none
    description: A message changes nothing that could be compared.
"""

EXAMPLES = r"""
- name: Tell about the deploy
  shiftmaster_notify:
    event: deploy
    status: succeeded
    environment: production
    details: {version: 2.4.1, previous: 2.4.0, hosts: [app1, app2], duration: 74 s}
    slack: {url: "{{ vault_notify_slack_url }}"}
    pagerduty: {routing_key: "{{ vault_notify_pagerduty_key }}"}
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
sent:
  description: The channels that took the message.
  type: list
  elements: str
  returned: always
problems:
  description: Why the others did not, by channel.
  type: dict
  returned: always
seconds:
  description: How long it took.
  type: float
  returned: always
messages:
  description: What would be sent, by channel, without secrets.
  type: dict
  returned: in check mode
"""

import datetime
import time

from ansible.module_utils.shiftmaster.host.quiet import QuietModule
from ansible.module_utils.shiftmaster.notify import text
from ansible.module_utils.shiftmaster.notify.send import compose, deliver, wrong_channels


def argument_spec():
    return {
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


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    params = module.params
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    wrong = wrong_channels(params)
    messages = {channel: message for channel, message in compose(params, now).items() if channel not in wrong}
    if module.check_mode:
        module.exit_json(changed=False, sent=[], problems=wrong, seconds=0.0, messages=messages)
    started = time.monotonic()
    sent, problems = deliver(params, messages)
    problems.update(wrong)
    for channel, problem in sorted(problems.items()):
        module.warn("%s was not told about the %s: %s" % (channel, params["event"], problem))
    # To tell of something changes nothing.
    module.exit_json(changed=False, sent=sent, problems=problems, seconds=round(time.monotonic() - started, 2))


if __name__ == "__main__":
    main()
