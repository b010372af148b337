"""One fault, one message, at the right time: the messages of tests/faults.yml, by day and by night."""

from __future__ import annotations

import datetime
import functools
import importlib.util
import math
import sys
import zoneinfo
from pathlib import Path

import messages
import offenders
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
import alerts as catalogue_of

ROOT = catalogue_of.ROOT
FAULTS = yaml.safe_load((ROOT / "tests/faults.yml").read_text(encoding="utf-8"))["faults"]
JAPAN = zoneinfo.ZoneInfo("Asia/Tokyo")
DAY = datetime.datetime(2026, 11, 30, 10, 0, tzinfo=JAPAN)
NIGHT = datetime.datetime(2026, 11, 28, 2, 0, tzinfo=JAPAN)
LASTING = 3600
OTHER_RECEIVERS = ("critical", "warning", "info")
CATALOGUE = {alert["name"]: alert for alert in catalogue_of.catalogue()}


@functools.cache
def config():
    """The files of role alertmanager, as its own test renders them."""
    spec = importlib.util.spec_from_file_location("role", ROOT / "tests/unit/roles/test_render_alertmanager.py")
    role = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(role)
    role.init_plugin_loader()
    inhibitions = catalogue_of.load(ROOT / "monitoring/inhibitions.yml")["inhibitions"]
    given = {"alertmanager_timezone": "Asia/Tokyo", "alertmanager_inhibit_rules": inhibitions}
    return role.config(**role.SECRETS, **given)


def alert(text, env="production"):
    """An alert as tests/faults.yml names it."""
    name, *words = text.split()
    rule = catalogue_of.rule(CATALOGUE[name])
    labels, onset, end = {"alertname": name, **rule["labels"], "env": env}, 15, math.inf
    for word in words:
        key, equal, value = word.partition("=")
        if word.startswith("+"):
            onset = int(word[1:])
        elif word.startswith("-"):
            end = int(word[1:]) + catalogue_of.seconds(rule.get("keep_firing_for", "0s"))
        elif key == "env":
            labels["env"] = f"{env}-{value}" if value else ""
        else:
            labels["instance" if not equal else key] = value if equal else word
    assert "{{" not in labels.get("notify", ""), f"{text}: notify"
    return messages.Alert(labels, onset + catalogue_of.seconds(rule.get("for", "0s")), end)


def incidents_and_messages(found):
    """(incidents of PagerDuty, messages to Slack and email, number of incidents that stay open) in their order."""
    incidents, of_group, site = [], {}, []
    for one in found:
        if one.receiver == "critical-pagerduty":
            # A resolved incident stays closed: the next message of its group opens another one.
            if one.group not in of_group:
                of_group[one.group] = len(incidents)
                incidents.append("")
            if one.alerts:
                incidents[of_group[one.group]] = " + ".join(one.alerts)
            else:
                del of_group[one.group]
        elif one.receiver in OTHER_RECEIVERS and one.alerts:
            site.append(" + ".join(one.alerts))
    return incidents, site, len(of_group)


def expected(fault, timestamp):
    return fault["pages"] if "pages" in fault else fault["day" if timestamp is DAY else "night"]


@offenders.each(FAULTS, lambda fault: fault["fault"])
def test_messages_of_a_fault(fault):
    assert set(fault) <= {"fault", "env", "independent", "alerts", "pages", "day", "night", "messages"}
    most = fault.get("independent", 1)
    assert max(len(fault.get(when, [])) for when in ("pages", "day", "night")) <= most, "more than one page"
    alerts = [alert(text) for text in fault["alerts"]]
    for timestamp in (DAY, NIGHT):
        pages, site, unresolved = incidents_and_messages(messages.sent(config(), alerts, timestamp, LASTING))
        assert (pages, site) == (expected(fault, timestamp), fault["messages"]), timestamp
        assert not unresolved or max(one.end for one in alerts) > LASTING, f"{unresolved} incidents stay open"


def test_an_alert_outlasts_the_pages_that_it_silences():
    """By two evaluations; else the end of a fault is another page. What one host reports is one incident."""

    def named(matchers, alert):
        labels = {"alertname": alert["name"], "depends_on": ",".join(sorted(alert.get("depends_on", [])))}
        return messages.fits([one for one in matchers if one.startswith(tuple(labels))], labels)

    def lasts(alert):
        # What counts over five minutes lasts as long.
        window = 300 if "increase(" in alert["expr"] and "[5m]" in alert["expr"] else 0
        return window + catalogue_of.seconds(alert.get("keep_firing_for", "0s"))

    pairs = [
        (source, target)
        for rule in catalogue_of.load(ROOT / "monitoring/inhibitions.yml")["inhibitions"]
        for source in CATALOGUE.values()
        for target in CATALOGUE.values()
        if named(rule["source_matchers"], source)
        and named(rule["target_matchers"], target)
        and any(one.startswith("alertname") for one in rule["source_matchers"])
        # Those of a host or a site take along everything: their rows of tests/faults.yml show it.
        and not any(one.startswith("alertname!") for one in rule["target_matchers"])
        and target["severity"] == "critical"
        and target["service"] != "host"
        # Ends earlier by itself: a page needs the address, and an outage that was reported does not count.
        and not target["name"].startswith("VirtualAddress")
        and "shiftmaster:outage" not in target["expr"]
        and source is not target
    ]
    assert len(pairs) > 10
    assert [
        f"{source['name']} silences {target['name']}"
        for source, target in pairs
        if lasts(source) < lasts(target) + 2 * catalogue_of.SECONDS
    ] == []


def test_a_failed_backup_notifies_without_a_page():
    """Its own notification comes at the hour of the backup."""
    of_runs = catalogue_of.load(ROOT / "roles/notify/defaults/main.yml")["notify_routes"]["backup"]
    of_the_host = catalogue_of.load(ROOT / "group_vars/all/backup.yml")["backup_notify"]["routes"]
    for routes in (of_runs, of_the_host):
        assert routes["failed"] == routes["warning"] == ["slack", "email"]
        assert "pagerduty" not in str(routes)


REPEATED = [
    # an alert, the days that it lasts, messages to Slack and email, messages to PagerDuty
    ("HostCertificateExpiresSoon db1", 21, 3, 0),
    ("DiskSpaceWarning db1 mountpoint=/", 7, 7, 0),
    # Six of these days are those of weekends.
    ("CertificateNearlyExpired web1 notify=business_hours", 21, 21, 15),
    ("RedisDown cache1 notify=page", 1, 24, 24),
]


@offenders.each(REPEATED, lambda case: case[0])
def test_an_alert_that_lasts_is_repeated_by_its_urgency(case):
    text, days, site, pages = case
    found = messages.sent(config(), [alert(text)], NIGHT, days * 86400)
    sent = [one.receiver == "critical-pagerduty" for one in found]
    assert (sent.count(False), sent.count(True)) == (site, pages)
