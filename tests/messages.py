"""The messages that leave Alertmanager for alerts over time: its routes, groups, inhibitions and time intervals.

Compared with Alertmanager 0.28.1 itself on 2026-11-30: the same messages for the 50 faults that tests/faults.yml had
then, within 34 minutes, by day and by night.
"""

from __future__ import annotations

import datetime
import math
import re
import zoneinfo
from collections.abc import Iterator
from typing import Any, NamedTuple

MATCHER = re.compile(r'^(\w+)(=~|!~|!=|=)"(.*)"$')
INHERITED = {"receiver": "", "group_by": [], "group_wait": "30s", "group_interval": "5m", "repeat_interval": "4h"}
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()


class Message(NamedTuple):
    receiver: str
    # Group: PagerDuty's incident, and what Slack and email put into one message.
    group: tuple
    seconds: float
    # Those that fire; none: all have ended.
    alerts: tuple[str, ...]


class Alert(NamedTuple):
    labels: dict[str, str]
    # Seconds from the fault, `for` and `keep_firing_for` included.
    start: float
    end: float = math.inf

    def fires(self, at: float) -> bool:
        return self.start <= at < self.end


def matches(matcher: str, labels: dict[str, str]) -> bool:
    name, operator, value = MATCHER.match(matcher).groups()
    present = labels.get(name, "")
    equal = re.fullmatch(value, present) is not None if "~" in operator else value == present
    return equal is not operator.startswith("!")


def fits(matchers: list[str], labels: dict[str, str]) -> bool:
    return all(matches(matcher, labels) for matcher in matchers)


def seconds(text: str) -> int:
    return sum(
        int(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
        for number, unit in re.findall(r"(\d+)([smhd])", text)
    )


def routes(route: dict[str, Any], labels: dict[str, str], above: dict[str, Any], path=()) -> list[dict[str, Any]]:
    """The routes that take an alert, with what they inherit; time intervals are not inherited."""
    if not fits(route.get("matchers", []), labels):
        return []
    own = {name: route.get(name, above[name]) for name in INHERITED}
    own.update(path=path, active=route.get("active_time_intervals", []), mute=route.get("mute_time_intervals", []))
    found: list[dict[str, Any]] = []
    for number, child in enumerate(route.get("routes", [])):
        taken = routes(child, labels, own, (*path, number))
        found += taken
        if taken and not child.get("continue"):
            break
    return found or [own]


def inhibited(target: dict[str, str], firing: list[dict[str, str]], rules: list[dict[str, Any]]) -> bool:
    for rule in rules:
        if not fits(rule["target_matchers"], target):
            continue
        both = fits(rule["source_matchers"], target)
        for source in firing:
            if (
                fits(rule["source_matchers"], source)
                and all(source.get(name, "") == target.get(name, "") for name in rule.get("equal", []))
                # An alert on both sides is not inhibited by another one of both sides.
                and not (both and fits(rule["target_matchers"], source))
            ):
                return True
    return False


def weekdays(text: str) -> list[int]:
    first, _, last = text.partition(":")
    return list(range(DAYS.index(first), DAYS.index(last or first) + 1))


def within(name: str, timestamp: datetime.datetime, intervals: list[dict[str, Any]]) -> bool:
    for one in next(found["time_intervals"] for found in intervals if found["name"] == name):
        local = timestamp.astimezone(zoneinfo.ZoneInfo(one["location"]))
        clock = local.strftime("%H:%M")
        if (
            ("weekdays" not in one or any(local.weekday() in weekdays(text) for text in one["weekdays"]))
            and ("times" not in one or any(part["start_time"] <= clock < part["end_time"] for part in one["times"]))
            and local.year in [int(year) for year in one.get("years", [local.year])]
            and local.month in [int(month) for month in one.get("months", [local.month])]
            and local.day in [int(day) for day in one.get("days_of_month", [local.day])]
        ):
            return True
    return False


def sent(config: dict[str, Any], alerts: list[Alert], began: datetime.datetime, lasting: float = 3600) -> list[Message]:
    """The messages of the first seconds after `began`."""
    found: list[Message] = []
    groups: dict[tuple, tuple[dict[str, Any], list[Alert]]] = {}
    for alert in alerts:
        for route in routes(config["route"], alert.labels, INHERITED):
            key = (route["path"], *((name, alert.labels.get(name, "")) for name in sorted(route["group_by"])))
            groups.setdefault(key, (route, []))[1].append(alert)
    for key, (route, members) in groups.items():
        found += sent_by(config, key, route, members, alerts, began, lasting)
    return sorted(found, key=lambda one: (one.seconds, one.receiver, one.alerts))


def sent_by(
    config: dict[str, Any],
    key: tuple,
    route: dict[str, Any],
    members: list[Alert],
    alerts: list[Alert],
    began: datetime.datetime,
    lasting: float,
) -> Iterator[Message]:
    """The messages of one group. It exists from its first alert until a flush after the end of the last one."""
    intervals = config.get("time_intervals", [])
    wait = seconds(route["group_wait"])
    # (when Prometheus sends it, alert): with each repeated end the group has the alert once more.
    waiting = sorted(((at, alert) for alert in members for at in sendings(alert, members)), key=lambda one: one[0])
    group: list[Alert] = []
    # Those of the last message, as Alertmanager notes them.
    noted: tuple[list[Alert], list[Alert]] | None = None
    last, seen, at = None, None, 0.0
    while waiting or group:
        if not group:
            # An old alert does not wait again. An empty group would remain for up to 30 seconds.
            at = min(max(timestamp, alert.start + wait) for timestamp, alert in waiting)
        if at > lasting:
            return
        for timestamp, alert in waiting:
            if timestamp <= at and alert not in group:
                group.append(alert)
        waiting = [one for one in waiting if one[0] > at]
        timestamp = began + datetime.timedelta(seconds=at)
        open_now = all(within(name, timestamp, intervals) for name in route["active"])
        open_now &= not any(within(name, timestamp, intervals) for name in route["mute"])
        repeat = last is not None and at - last >= seconds(route["repeat_interval"])
        begun, ended = sum(alert.start <= at for alert in alerts), sum(alert.end <= at for alert in alerts)
        changes = (begun, ended, open_now, len(waiting))
        if repeat or seen != changes:
            seen = changes
            active = [alert.labels for alert in alerts if alert.fires(at)]
            left = [one for one in group if not inhibited(one.labels, active, config.get("inhibit_rules", []))]
            now = [one for one in left if one.fires(at)], [one for one in left if not one.fires(at)]
            if left and open_now and changed(now, noted, repeat):
                yield Message(route["receiver"], key, at, tuple(sorted({describe(one.labels) for one in now[0]})))
                noted, last = now, at
            group = [alert for alert in group if alert.fires(at)]
        at += seconds(route["group_interval"])


# How often Prometheus sends an alert again, and for how long its end (--rules.alert.resend-delay is a minute).
RESENT, RETAINED = 65, 900


def sendings(alert: Alert, members: list[Alert]) -> list[float]:
    """When Prometheus sends it: its end for 15 minutes, unless it fires again."""
    if alert.end == math.inf:
        return [alert.start]
    again = [one.start for one in members if one.labels == alert.labels and one.start > alert.start]
    ends = [alert.end + RESENT * number for number in range(1, RETAINED // RESENT + 1)]
    return [alert.start, *(at for at in ends if at < min(again, default=math.inf))]


def changed(now: tuple[list[Alert], list[Alert]], noted: tuple[list[Alert], list[Alert]] | None, repeat: bool) -> bool:
    """Whether Alertmanager sends: (firing, ended) now, and in the last message."""
    firing, ended = now
    if noted is None:
        return bool(firing)
    if not firing:
        return bool(noted[0])

    def missing(some: list[Alert], known: list[Alert]) -> bool:
        return any(one.labels not in [each.labels for each in known] for one in some)

    return repeat or missing(firing, noted[0]) or missing(ended, noted[1])


def describe(labels: dict[str, str]) -> str:
    return " ".join(filter(None, (labels["alertname"], labels.get("instance", ""))))
