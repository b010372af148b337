#!/usr/bin/python
"""Send a test alert through Alertmanager, and see which channels took it."""

DOCUMENTATION = r"""
module: alertmanager_channels
short_description: Send a test alert through Alertmanager, and see which channels took it
description:
  - Gives Alertmanager the alert C(ChannelTest), waits until every channel has been tried, ends it, and reports which
    channels took it. Alertmanager's own count of requests to each channel is the evidence, not the absence of an error.
  - Another alert that is sent at the same time counts, too.
options:
  url: {description: Alertmanager's address., type: str, required: true}
  user: {description: User of its page; without one it is queried without authentication., type: str, default: ""}
  password: {description: The user's password., type: str, default: ""}
  ca_file: {description: "Authority of its certificate; without one, those that the host knows.", type: path}
  channels: {type: list, elements: str, required: true, choices: [email, pagerduty, slack, webhook], description: "The
    channels that have to take it, as Alertmanager calls them."}
  instance: {description: Name of the host that the alert names as its source., type: str, required: true}
  environment: {description: The alert's label C(env)., type: str, required: true}
  wait_seconds: {type: int, default: 60, description: How long to wait for the channels. It has to be longer than the
    routes' group_wait.}
  watchdog_channel:
    description:
      - The channel under which messages of a watchdog are counted as well, for example V(slack). Then the test begins
        just after one of them, which takes up to O(watchdog_seconds), and those that are due meanwhile are taken off.
      - Without one, nothing is.
    type: str
    default: ""
  watchdog_seconds: {description: How long it is from one message of the watchdog to the next., type: int, default: 0}
  timeout_seconds: {description: How long one question may take., type: int, default: 5}
attributes:
  check_mode: {description: "Alertmanager is queried, and nothing is sent.", support: full}
  diff_mode: {description: A message changes nothing that could be compared., support: none}
"""

EXAMPLES = r"""
- name: Test the channels of critical alerts
  alertmanager_channels:
    url: https://127.0.0.1:9093
    user: admin
    password: "{{ vault_monitoring_admin_password }}"
    ca_file: /etc/ssl/shiftmaster/ca.crt
    channels: [email, slack, pagerduty]
    instance: mon1
    environment: production
"""

RETURN = r"""
taken: {description: The channels that took it., returned: success, type: list, elements: str}
refused: {description: The channels that were tried and did not take it., returned: success, type: list, elements: str}
silent: {description: The channels that were not tried in time., returned: success, type: list, elements: str}
"""

import re
import time

from ansible.module_utils.shiftmaster.host.quiet import QuietModule
from ansible.module_utils.shiftmaster.monitoring.alertmanager import ARGUMENTS, Api, Failed, format_time

SAMPLE = re.compile(r'alertmanager_notification_requests(_failed)?_total\{[^}]*\bintegration="(\w+)"[^}]*\} (\S+)')


def requests(text):
    """{channel: (requests, those that failed)} of Alertmanager's own metrics (Prometheus' text format)."""
    found = {}
    for failed, channel, value in SAMPLE.findall(text):
        good, bad = found.get(channel, (0.0, 0.0))
        found[channel] = (good, bad + float(value)) if failed else (good + float(value), bad)
    return found


def evaluate(before, after, channels, others=None):
    """(taken, refused, silent): the channels by what happened to them between two readings.

    others: {channel: how many requests were not for this test}
    """
    result = ([], [], [])
    for channel in sorted(set(channels)):
        attempted, failed = (
            after.get(channel, (0, 0))[number] - before.get(channel, (0, 0))[number] for number in (0, 1)
        )
        good = attempted - failed - (others or {}).get(channel, 0)
        result[0 if good > 0 else 1 if failed > 0 else 2].append(channel)
    return result


def alert(params, now, ends):
    labels = {"alertname": "ChannelTest", "severity": "critical", "service": "monitoring"}
    return {
        "labels": dict(labels, instance=params["instance"], env=params["environment"]),
        "annotations": {
            "summary": "A test: nothing is wrong",
            "summary_ja": "テストです。異常はありません",
            "description": "Somebody tries whether messages arrive. There is nothing to do.",
            "description_ja": "通知が届くかどうかを確認しています。対応は不要です。",
        },
        "startsAt": format_time(now),
        "endsAt": format_time(ends),
    }


def run(api, params, sleep=time.sleep, clock=time.monotonic):
    """Send it, watch, end it. (taken, refused, silent)"""

    before, others = requests(api.metrics()), {}
    interval = params["watchdog_seconds"]
    shared = params["watchdog_channel"] if interval and params["watchdog_channel"] in params["channels"] else ""
    if shared:
        # Messages of the watchdog are counted, too. Just after one of them the next is an interval away;
        # where none comes, nothing has to be taken off.
        first, given_up = before, clock() + interval + 15
        while sum(before.get(shared, (0, 0))) <= sum(first.get(shared, (0, 0))) and clock() < given_up:
            sleep(1)
            before = requests(api.metrics())
    began = clock()
    started, deadline = api.now(), began + params["wait_seconds"]
    # Should this process die, the alert ends by itself soon after.
    api.call("/alerts", "POST", [alert(params, started, started + params["wait_seconds"] + 60)])
    try:
        while True:
            if shared:
                # A little early, since messages are some seconds apart from their beat.
                others[shared] = int((clock() - began + 5) // interval)
            result = evaluate(before, requests(api.metrics()), params["channels"], others)
            # A channel that refused is tried again by Alertmanager as long as there is time.
            if not result[1] and not result[2] or clock() >= deadline:
                return result
            sleep(1)
    finally:
        api.call("/alerts", "POST", [alert(params, started, max(api.now(), started + 1))])


def main():
    module = QuietModule(
        argument_spec={
            **ARGUMENTS,
            "channels": {
                "type": "list",
                "elements": "str",
                "choices": ["email", "pagerduty", "slack", "webhook"],
                "required": True,
            },
            "instance": {"type": "str", "required": True},
            "environment": {"type": "str", "required": True},
            "wait_seconds": {"type": "int", "default": 60},
            "watchdog_channel": {"type": "str", "default": ""},
            "watchdog_seconds": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    try:
        api = Api(module.params)
        if module.check_mode:
            api.call("/status")
            module.exit_json(changed=False, taken=[], refused=[], silent=[])
        taken, refused, silent = run(api, module.params)
    except Failed as error:
        module.fail_json(msg="Alertmanager: %s" % error)
    module.exit_json(changed=False, taken=taken, refused=refused, silent=silent)


if __name__ == "__main__":
    main()
