"""Expressions without their thresholds, as the scenario `monitoring` queries them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import fireable


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a > 26 * 3600", "a >= -Inf * 3600"),
        ('up{job!="x"} == 0 and on (b) c <= 0.5', 'up{job!="x"} >= -Inf and on (b) c >= -Inf'),
        ("a != 0 != 137", "a >= -Inf >= -Inf"),
        ("count(a == 1) > count(b)", "count(a >= -Inf) >= bool count(b)"),
        ("a / (b > 0) > 1 unless on () (c == 0)", "a / (b >= -Inf) >= -Inf unless on () (c == 0)"),
        ("(a unless on (b, c) d offset 5m) > 0", "(a unless on (b, c) d offset 5m) >= -Inf"),
        ('absent(a{b="c",d=~"e.+"} == 1) and on () f', 'group by (b) (a{b="c",d=~"e.+"} >= -Inf) and on () f'),
        ("absent(a)", "group by () (a)"),
        ("a unless on (b, c) group by (b, c) (d)", "a and on (b, c) group by (b, c) (d)"),
        ("predict_linear(a[6h], 24 * 3600) < 0", "predict_linear(a[6h], 24 * 3600) >= -Inf"),
    ],
)
def test_thresholds_are_removed(expression, expected):
    assert fireable.without_thresholds(expression) == expected


def test_each_branch_is_queried_by_itself():
    assert fireable.branches('a{b="c (or d"} > 1 or (e or f) == 0 or g') == ['a{b="c (or d"} > 1', "(e or f) == 0", "g"]


def test_labels_are_those_that_texts_use_and_the_rule_does_not_set():
    rule = {
        "expr": "a == 0 or b == 0",
        "labels": {"severity": "warning"},
        "annotations": {"summary": "{{ $labels.instance }} {{ $labels.severity }}", "summary_ja": "{{ $labels.err }}"},
    }
    assert fireable.queries_of(rule) == {"a >= -Inf": {"instance", "err"}, "b >= -Inf": {"instance", "err"}}
