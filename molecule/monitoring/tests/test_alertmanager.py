"""Alertmanager and its receivers, with alerts of the tests' own: what arrives, what is kept, what is refused."""

from __future__ import annotations

import json
import time

import alerting as verifications
import pytest

SILENCE = "molecule/monitoring/silence.yml"


@pytest.fixture(scope="module", autouse=True)
def alone(alerting):
    """Alerts of Prometheus itself meanwhile, such as messages refused on purpose, send no notification."""
    matchers = [
        {"name": "env", "value": "test", "isRegex": False, "isEqual": False},
        {"name": "alertname", "value": "Watchdog", "isRegex": False, "isEqual": False},
        # One of them must be a label that is there.
        {"name": "severity", "value": ".+", "isRegex": True, "isEqual": True},
    ]
    silence = {"matchers": matchers, "createdBy": "verifications", "comment": "only the verifications' own"}
    silence.update(startsAt=verifications.iso(time.time()), endsAt=verifications.iso(time.time() + 4 * 3600))
    made = json.loads(alerting.api("POST", "/api/v2/silences", silence))
    yield
    alerting.api("DELETE", f"/api/v2/silence/{made['silenceID']}")


@pytest.fixture(scope="module")
def apply(hosts):
    def run(**variables):
        return hosts.watch.run("deploy.yml", "--tags", "alertmanager", shiftmaster_version="2.0.0", **variables)

    return run


def test_a_critical_alert_reaches_every_receiver_and_is_resolved(alerting, capsys):
    took = verifications.critical_reaches_every_receiver_and_is_resolved(alerting)
    with capsys.disabled():
        print(f"\n  from Prometheus to a message: {took}")


def test_a_warning_pages_no_one(alerting):
    verifications.a_warning_pages_no_one(alerting)


def test_information_goes_to_one_channel(alerting):
    verifications.information_goes_to_one_channel(alerting, 12)


def test_the_watchdog_notifies_regularly(alerting):
    # Prometheus sends it itself, too.
    verifications.the_watchdog_notifies_regularly(alerting, 5)


def test_a_host_that_is_down_is_one_message_for_each_receiver(alerting):
    verifications.a_host_that_is_down_is_one_message_for_each_receiver(alerting)


@pytest.mark.parametrize(("receiver", "how"), [("slack", "500"), ("pagerduty", "refuse"), ("smtp", "hang")])
def test_a_receiver_that_was_down_gets_the_alert_afterwards(alerting, receiver, how):
    verifications.a_receiver_that_was_down_gets_the_alert_afterwards(alerting, receiver, how)


@pytest.mark.parametrize("signal", ["", "KILL"])
def test_a_restart_drops_no_alert(alerting, signal):
    verifications.a_restart_drops_no_alert(alerting, 10, signal)


def test_a_run_silences_what_it_causes_and_nothing_else(watch, alerting):
    def run(tasks):
        secret = watch.secret("admin")
        done = watch.run(SILENCE, silence_tasks=tasks, notify_alertmanager_password=secret, notify_environment="test")
        assert done.code == 0, done.output[-4000:]
        return done

    verifications.a_run_silences_what_it_causes_and_nothing_else(
        alerting, lambda: run("silence"), lambda: run("unsilence")
    )


@pytest.mark.parametrize("case", verifications.REFUSED)
def test_a_rejected_configuration_is_reported_and_the_old_one_keeps_running(alerting, apply, case):
    verifications.a_rejected_configuration_keeps_the_old_one_running(alerting, apply, case)


def test_reading_requires_a_password(alerting):
    verifications.reading_requires_a_password(alerting)


def test_no_secret_is_visible(alerting, watch):
    secrets = [watch.secret("admin"), watch.secret("scrape"), "mail-of-the-test", "token-of-the-test",
               "abcdefghijklmnopqrstuvwx", "0123456789abcdef0123456789abcdef"]  # fmt: skip
    verifications.no_secret_is_visible(alerting, secrets)
