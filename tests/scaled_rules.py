"""Prometheus' configuration and rules with every duration divided by one factor; nothing else is changed.

With scrapes, evaluations, `for` and ranges divided alike, a range holds as many samples as before, and an alert fires
and ends after the same number of evaluations: a scenario waits a part of the time for the same steps. Thresholds are
left as they are, ages in seconds, too. What alerts do after their real durations is tested by promtool
(tests/alert_tests.py).
"""

from __future__ import annotations

import re

import alert_tests
import yaml

DURATION = re.compile(r"(?:\d+(?:ms|[smhdwy]))+")
MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000, "y": 31_536_000_000}


def milliseconds(text: str) -> int:
    assert DURATION.fullmatch(text), text
    return sum(int(number) * MILLISECONDS[unit] for number, unit in re.findall(r"(\d+)(ms|[smhdwy])", text))


def duration(text: str, factor: int) -> str:
    scaled, rest = divmod(milliseconds(text), factor)
    if rest:
        raise ValueError(f"{text} is no multiple of {factor} ms")
    return f"{scaled}ms" if scaled % 1000 else f"{scaled // 1000}s"


def expression(text: str, factor: int) -> str:
    """Its ranges and offsets; a number that is compared with an age is none of them."""

    def replace(match: re.Match[str]) -> str:
        if match.lastgroup not in ("range", "offset"):
            return match[0]
        return DURATION.sub(lambda found: duration(found[0], factor), match[0])

    return alert_tests.TOKENS.sub(replace, text)


def scaled(mapping: dict, keys: tuple[str, ...], factor: int) -> dict:
    return {key: duration(value, factor) if key in keys else value for key, value in mapping.items()}


def rules(text: str, factor: int) -> str:
    """A file of rules."""
    content = yaml.safe_load(text)
    groups = []
    for group in content["groups"]:
        made = [
            {**scaled(rule, ("for", "keep_firing_for"), factor), "expr": expression(str(rule["expr"]), factor)}
            for rule in group["rules"]
        ]
        groups.append({**scaled(group, ("interval",), factor), "rules": made})
    return yaml.safe_dump({**content, "groups": groups}, allow_unicode=True, sort_keys=False, width=1000)


def configuration(text: str, factor: int) -> str:
    """prometheus.yml"""
    content, keys = yaml.safe_load(text), ("scrape_interval", "scrape_timeout", "evaluation_interval")
    content["global"] = scaled(content["global"], keys, factor)
    content["scrape_configs"] = [scaled(job, keys, factor) for job in content["scrape_configs"]]
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=1000)
