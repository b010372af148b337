"""The scenario `monitoring` divides durations of rules: what it divides, and that nothing else changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import scaled_rules
import yaml

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "monitoring/rules").glob("*.yml"))
FACTOR = 5
# As PromQL has them: in brackets, and after `offset`.
SPANS = re.compile(r"(?<=\[)[0-9a-z:]+(?=\])|(?<=\boffset )\w+")


def spans(expression: str) -> list[str]:
    return [one for found in SPANS.findall(expression) for one in found.split(":") if one]


def without(expression: str) -> str:
    return SPANS.sub("", expression)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_durations_of_rules_are_divided_and_nothing_else_is_changed(path):
    text = path.read_text(encoding="utf-8")
    before, after = yaml.safe_load(text), yaml.safe_load(scaled_rules.rules(text, FACTOR))
    count = 0
    for group, fast in zip(before["groups"], after["groups"], strict=True):
        pairs = [(group.pop("interval"), fast.pop("interval"))]
        for rule, other in zip(group["rules"], fast["rules"], strict=True):
            assert set(rule) == set(other)
            pairs += [(rule.pop(key), other.pop(key)) for key in ("for", "keep_firing_for") if key in rule]
            expressions = str(rule.pop("expr")), other.pop("expr")
            pairs += list(zip(*map(spans, expressions), strict=True))
            assert without(expressions[0]) == without(expressions[1])
        for one, other in pairs:
            assert scaled_rules.milliseconds(one) == FACTOR * scaled_rules.milliseconds(other)
        count += len(pairs)
    assert before == after and count > len(before["groups"])


def test_numbers_labels_and_names_are_no_durations():
    for text in (
        "time() - a_timestamp_seconds > 26 * 3600",
        'up{job="5m",instance=~"[5m] offset 1h"} == 0',
        'label_replace(up, "x", "offset 1h [5m]", "y", "") > 10',
        "predict_linear(node_avail_bytes5m[5s], 4 * 3600) < 0",
    ):
        assert scaled_rules.expression(text, FACTOR) == text.replace("[5s]", "[1s]")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("rate(a[5m])", "rate(a[60s])"),
        ('rate(a{b="c"}[1h30m])', 'rate(a{b="c"}[1080s])'),
        ("max_over_time(a[1h:30s])", "max_over_time(a[720s:6s])"),
        ("a offset 1h unless a", "a offset 720s unless a"),
        ("a[6s]", "a[1200ms]"),
    ],
)
def test_ranges_subqueries_and_offsets_are(before, after):
    assert scaled_rules.expression(before, FACTOR) == after


def test_a_duration_that_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match="1ms"):
        scaled_rules.duration("1ms", FACTOR)


def test_intervals_and_timeouts_of_scrapes_are_divided():
    made = {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s", "external_labels": {"env": "15s"}},
        "rule_files": ["/etc/prometheus/alerts/*.yml"],
        "scrape_configs": [
            {"job_name": "15s", "scrape_interval": "5s", "scrape_timeout": "5s", "params": {"a": ["5s"]}}
        ],
    }
    found = yaml.safe_load(scaled_rules.configuration(yaml.safe_dump(made), FACTOR))
    made["global"].update(scrape_interval="3s", evaluation_interval="3s")
    made["scrape_configs"][0].update(scrape_interval="1s", scrape_timeout="1s")
    assert found == made
