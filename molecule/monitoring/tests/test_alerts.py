"""Real faults, as the messages in which they arrive at receivers that check what Slack and PagerDuty document."""

from __future__ import annotations

import subprocess
import time

import alerting as proofs
import pytest
from support import wait_for

EVERYBODY = ("pagerduty", "slack", "smtp")
TOLD = ("slack", "smtp")


@pytest.fixture(scope="module")
def alerting(watch):
    """The receivers run, and what is healthy has come to rest."""
    found = proofs.Alerting(watch.shell, password=watch.secret("admin"))
    found.start_receivers("alerts", "mail-of-the-test")
    return found


def names(alert: str):
    return lambda message: alert in proofs.about(message)


def comes_and_goes(alerting, alert: str, receivers, seconds: float, break_it, mend_it, capsys, mended_within=420):
    """A fault arrives at each receiver, and its end with the same key; prints how long it took."""
    since, began = alerting.now(), time.monotonic()
    break_it()
    try:
        came = {one: alerting.arrive(one, 1, since, seconds, names(alert))[0] for one in receivers}
        took = time.monotonic() - began
    finally:
        mended = alerting.now()
        mend_it()
    if "pagerduty" in receivers:
        key = came["pagerduty"]["body"]["dedup_key"]
        alerting.arrive(
            "pagerduty", 1, mended, mended_within,
            lambda one: one["body"].get("event_action") == "resolve" and one["body"]["dedup_key"] == key,
        )  # fmt: skip
    with capsys.disabled():
        print(f"\n  {alert}: {took:.0f} s from the fault to its message")
    return took, came


def test_the_application_is_down(hosts, alerting, capsys):
    took, _came = comes_and_goes(
        alerting, "ShiftMasterDown", EVERYBODY, 180,
        lambda: hosts.app.shell("systemctl stop shiftmaster"), lambda: hosts.app.shell("systemctl start shiftmaster"),
        capsys,
    )  # fmt: skip
    assert took <= 60


def test_the_database_is_down(hosts, alerting, capsys):
    comes_and_goes(
        alerting, "DatabaseConnectionError", EVERYBODY, 180,
        lambda: hosts.app.shell("systemctl stop postgresql@17-main"),
        lambda: hosts.app.shell("systemctl start postgresql@17-main"), capsys,
    )  # fmt: skip


def test_the_standby_stops(hosts, alerting, capsys):
    comes_and_goes(
        alerting, "DatabaseConnectionError", EVERYBODY, 180,
        lambda: hosts.standby.shell("systemctl stop postgresql@17-main"),
        lambda: hosts.standby.shell("systemctl start postgresql@17-main"), capsys,
    )  # fmt: skip


def test_an_exporter_is_down(hosts, alerting, capsys):
    unit = "prometheus-redis-exporter"
    comes_and_goes(
        alerting, "ExporterDown", TOLD, 420,
        lambda: hosts.app.shell(f"systemctl stop {unit}"), lambda: hosts.app.shell(f"systemctl start {unit}"), capsys,
    )  # fmt: skip


def test_a_host_that_is_down_is_one_message(hosts, alerting, watch):
    """Everything on it is silent beside the one; the standby is a host on which much is asked."""
    since = alerting.now()
    # Switched off: one that is only paused still answers pings, which the kernel does.
    subprocess.run(["docker", "stop", hosts.standby.host], check=True, capture_output=True)
    try:
        alerting.arrive("smtp", 1, since, 420, names("HostDown"))
        time.sleep(60)
        told = [one for one in alerting.messages("smtp", since) if hosts.standby.host in proofs.about(one)]
        assert len(told) == 1, [one["headers"]["subject"] for one in told]
    finally:
        subprocess.run(["docker", "start", hosts.standby.host], check=True, capture_output=True)
    wait_for(lambda: not watch.query("up == 0"), 120, "all up again")
