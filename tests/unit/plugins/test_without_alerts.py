"""Alerts that a site does not want."""

from __future__ import annotations

from pathlib import Path

import yaml
from without_alerts import without_alerts

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "monitoring/rules/celery.yml").read_text(encoding="utf-8")


def test_a_file_that_has_none_of_them_stays_as_it_is():
    assert without_alerts(TEXT, ["BackupMissing"]) == TEXT and without_alerts(TEXT, []) == TEXT


def test_all_others_stay_as_they_were():
    groups = yaml.safe_load(without_alerts(TEXT, ["CeleryBeatMissing"]))["groups"]
    expected = yaml.safe_load(TEXT)["groups"]
    for group in expected:
        group["rules"] = [rule for rule in group["rules"] if rule["alert"] != "CeleryBeatMissing"]
    assert groups == expected


def test_a_group_without_a_rule_is_omitted():
    text = "groups: [{name: a, rules: [{alert: A, expr: up}]}, {name: b, rules: [{record: r, expr: up}]}]"
    assert yaml.safe_load(without_alerts(text, ["A"]))["groups"] == [
        {"name": "b", "rules": [{"record": "r", "expr": "up"}]}
    ]
