"""Deploys, as monitoring sees them: no message of a successful one, one of a failed one; metrics continue."""

from __future__ import annotations

import json
import shlex
import time

import alerting as verifications
import pytest
from alerting import about
from receivers import Receivers
from support import kill_run, wait_for

ROUTE = "/requests/"
# At least so long, since increase() takes the rise between the first and the last scrape in it for one of the whole
# time: with a scrape each 1.25 s that is up to 0.8 % too much.
WINDOW_SECONDS = 300
COUNTED = f'django_request_duration_seconds_count{{route="{ROUTE}"}}'
QUERY = (
    'while [ ! -e /run/enough ]; do curl -skS -o /dev/null -w "%{http_code}\\n" '
    '"https://shift.example.test/requests/?n=[1-20]" 2>/dev/null; sleep 0.1; done >/root/asked'
)
WORKERS = (
    "pgrep -P $(systemctl show --value --property=MainPID "
    "$(systemctl list-units --plain --no-legend --state=active 'shiftmaster-web@*' | cut -d' ' -f1))"
)


def notifications(alerting, since: float, known=frozenset()) -> list:
    """Messages except those of alerts that fire since before (of the budget of a complete day after other tests)."""
    found = [one for one in alerting.messages("", since) if one["receiver"] != "deadman"]
    return [
        one
        for one in found
        if not any(alert in about(one) for alert in {*known, *verifications.MACHINE, *verifications.BUDGETS})
    ]


def silences(watch) -> list:
    """Those that hold."""
    found = json.loads(watch.request("https://localhost:9093/api/v2/silences"))
    return [one for one in found if one["status"]["state"] == "active"]


@pytest.fixture
def quiet(watch, alerting, scaled):
    """(alerting, what fires all the same), after a quarter of a minute without a message."""
    wait_for(
        lambda: watch.quiet() and not notifications(alerting, alerting.now() - 60 / scaled),
        900,
        "the end of all messages",
    )
    return alerting, watch.firing()


def test_a_new_password_for_scrapes_sends_no_notification(hosts, watch, alerting, observed):
    """Targets accept both until Prometheus has the new one, at the end of a run."""
    since = alerting.now()
    old = {"name": "prometheus", "password": watch.secret("scrape")}
    new = {"name": "prometheus-2", "password": "n" * 32}
    for use, previous in ((new, [old]), (old, [new]), (old, [])):
        # All that knows the password.
        run = hosts.app.run(
            "deploy.yml", "--tags", "nginx,monitoring", shiftmaster_version="2.0.0",
            monitoring_scrape_user=use["name"], vault_monitoring_scrape_password=use["password"],
            monitoring_scrape_users_previous=previous,
        )  # fmt: skip
        assert run.code == 0, run.output[-4000:]
        for one in (old, new):
            message = watch.shell(
                "curl -skS -m 10 -o /dev/null -w '%{http_code}' -K - https://172.30.84.10:9100/metrics",
                stdin=f'user = "{one["name"]}:{one["password"]}"\n',
            )
            assert message == ("200" if one in [use, *previous] else "401"), (use, previous, one)
    # Two scrapes after the last.
    time.sleep(30)
    # One scrape may come between Prometheus' new password and its new name, but no second one.
    assert watch.query("max_over_time(up[35s]) == 0", since) == []
    assert notifications(alerting, since, observed.known) == []


# With and without users who meet it: the first is noticed by its health check, the second when pages are requested.
@pytest.mark.parametrize(
    ("version", "message"), [("broken-health", "failed"), ("broken-template", "broke under traffic")]
)
def test_a_deploy_that_fails_is_reported_once(hosts, watch, alerting, observed, version, message):
    """By the run itself, from the controller; the earlier version is live, so no alert fires."""
    since, receivers = alerting.now(), Receivers().start()
    if not observed.last:
        observed.work()
    try:
        run = hosts.app.deploy(
            version,
            notify_slack_url=f"http://127.0.0.1:{receivers.ports['slack']}/services/T00000000/B00000000/abcdefghij",
            notify_pagerduty_routing_key="0123456789abcdef0123456789abcdef",
            notify_pagerduty_url=f"http://127.0.0.1:{receivers.ports['pagerduty']}/v2/enqueue",
            notify_pagerduty_change_url=f"http://127.0.0.1:{receivers.ports['pagerduty']}/v2/change/enqueue",
            notify_smtp_host="127.0.0.1", notify_smtp_port=receivers.ports["smtp"], notify_smtp_security="none",
            shiftmaster_watch_seconds=20,
        )  # fmt: skip
    finally:
        receivers.stop()
        observed.last = alerting.now()
    assert run.code == 2 and run.prints(message), run.output[-4000:]
    messages = receivers.record.of()
    assert sorted(one["receiver"] for one in messages) == ["pagerduty", "slack", "smtp"], messages
    assert all(one["ok"] for one in messages), messages
    assert hosts.app.live_version() == "2.0.0"
    # Later messages are checked by test_alerts.py, after the windows of the rules.
    assert notifications(alerting, since, observed.known) == []
    assert silences(watch) == [], "a silence is left"


def test_metrics_continue_across_deploys_without_a_notification(hosts, watch, quiet, scaled, capsys):
    """Four workers of which one is killed, a release switch under requests, and the switch back."""
    alerting, known = quiet
    app, since = hosts.app, alerting.now()
    # The series is there since one was requested; it has to be as old as the window.
    watch.seen_once(app)
    offset = f"{COUNTED} offset {WINDOW_SECONDS}s"
    wait_for(lambda: watch.query(offset), 600, f"a scrape of {WINDOW_SECONDS} s ago")
    began = time.monotonic()
    before = float(watch.query(f"sum({COUNTED})")[0]["value"][1])
    app.shell(f"rm -f /run/enough; systemd-run --quiet --collect --unit=requester bash -c {shlex.quote(QUERY)}")
    try:
        run = app.deploy("2.1.0", shiftmaster_web_workers=4)
        assert run.code == 0, run.output[-4000:]
        workers = app.shell(WORKERS).split()
        assert len(workers) == 4
        app.shell(f"kill -KILL {workers[0]}")
        run = app.rollback(to="2.0.0", shiftmaster_web_workers=4)
        assert run.code == 0, run.output[-4000:]
    finally:
        app.shell("touch /run/enough")
        wait_for(lambda: "inactive" in app.shell("systemctl is-active requester", check=False), 60, "the last request")
    codes = app.shell("sort /root/asked | uniq -c")
    requested = int(app.shell("grep -c 302 /root/asked"))
    ended, scraped = alerting.now(), f"max(timestamp({COUNTED}))"
    wait_for(lambda: float(watch.query(scraped)[0]["value"][1]) > ended, 60, "the scrape after the last request")
    counted = float(watch.query(f"sum({COUNTED})")[0]["value"][1]) - before
    # From before the first request, also where other steps run next to this one and runs take longer.
    window = max(WINDOW_SECONDS, round(time.monotonic() - began) + 30)
    increase = float(watch.query(f"sum(increase({COUNTED}[{window}s]))")[0]["value"][1])
    with capsys.disabled():
        print(f"\n  {requested} requests, {counted:.0f} counted, increase() says {increase:.1f}")
    assert requested > 500, codes
    assert abs(increase - requested) <= 0.01 * requested and abs(counted - requested) <= 0.01 * requested, codes
    time.sleep(60 / scaled)
    assert notifications(alerting, since, known) == []
    assert silences(watch) == [], "a silence is left"


def test_the_silence_of_a_killed_run_expires(hosts, watch, alerting, scaled, tmp_path):
    """With the next run, and by itself: two runs are killed, the second with a silence that is short."""
    app, silenced = hosts.app, []
    try:
        # The second run finishes what the first has switched, and deploys another version.
        for version, seconds in (("2.1.0", 1200), ("2.0.0", 90)):
            log = tmp_path / f"log{version}"
            app.hold("watch")
            process = app.start(
                "deploy.yml", log, "--tags", "release", shiftmaster_version=version, notify_silence_seconds=seconds
            )
            app.wait_at("watch", process, log)
            kill_run(app, process)
            app.release_hold()
            active = {one["id"]: one["endsAt"] for one in silences(watch)}
            assert active, "the run has silenced nothing"
            assert not set(active) & set(silenced), "the run has left the silences of the killed one before it"
            until = verifications.iso(time.time() + seconds)
            assert all(verifications.iso(time.time()) < end <= until for end in active.values()), active
            silenced += active
        wait_for(lambda: not silences(watch), seconds + 10, "the end of the silence")
    finally:
        app.release_hold()
        run = app.deploy("2.0.0")
    assert run.code == 0 and app.live_version(60) == "2.0.0", run.output[-4000:]
    assert silences(watch) == []
