"""The module that tries the channels: who took a test alert, by Alertmanager's own count."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import alertmanager_channels as module
import pytest

# As Alertmanager 0.28 writes it.
METRICS = """# TYPE alertmanager_notification_requests_failed_total counter
alertmanager_notification_requests_failed_total{integration="email"} %(email_bad)d
alertmanager_notification_requests_failed_total{integration="slack"} %(slack_bad)d
# TYPE alertmanager_notification_requests_total counter
alertmanager_notification_requests_total{integration="email"} %(email)d
alertmanager_notification_requests_total{integration="slack"} %(slack)d
alertmanager_notifications_total{integration="email"} 99
"""


class Alertmanager(BaseHTTPRequestHandler):
    """Counts a request to each channel once a firing alert has come; `broken` ones count a failure, too."""

    def log_message(self, *_arguments):
        pass

    def respond(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        if self.path != "/metrics":
            return self.respond("{}")
        server = self.server
        server.requested += 1
        if server.watchdog and server.requested % server.watchdog == 0:
            server.count["slack"] += 1
        if server.alerts:
            for channel in server.tried:
                server.count[channel] += 1
                server.count[f"{channel}_bad"] += channel in server.broken
            server.broken -= server.fixed
        return self.respond(METRICS % server.count)

    def do_POST(self):
        self.server.alerts += json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.respond("")


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Alertmanager)
    server.alerts, server.tried, server.broken, server.fixed = [], {"email", "slack"}, set(), set()
    server.requested = server.watchdog = 0
    server.count = {"email": 7, "email_bad": 3, "slack": 5, "slack_bad": 0}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def tried(server, **options):
    params = {
        "url": f"http://127.0.0.1:{server.server_port}",
        "user": "",
        "password": "",
        "ca_file": None,
        "channels": ["slack", "email"],
        "instance": "mon1",
        "environment": "test",
        "wait_seconds": 3,
        "watchdog_channel": "",
        "watchdog_seconds": 0,
        "timeout_seconds": 2,
        **options,
    }
    clock = iter(range(1000))
    return module.run(module.Api(params), params, sleep=lambda _seconds: None, clock=lambda: next(clock))


def test_every_channel_accepted_the_alert_which_is_then_resolved(server):
    assert tried(server) == (["email", "slack"], [], [])
    fired, ended = server.alerts
    assert fired["labels"] == ended["labels"] and fired["labels"]["severity"] == "critical"
    assert fired["startsAt"] == ended["startsAt"] < ended["endsAt"] < fired["endsAt"]


def test_a_channel_that_rejects_is_named_and_the_alert_is_resolved(server):
    server.broken = {"slack"}
    assert tried(server) == (["email"], ["slack"], [])
    assert len(server.alerts) == 2


def test_a_channel_that_accepts_the_second_attempt_succeeds(server):
    server.broken, server.fixed = {"slack"}, {"slack"}
    assert tried(server) == (["email", "slack"], [], [])


def test_a_channel_without_an_attempt_is_silent(server):
    """It is not routed there: no error shows it."""
    server.tried = {"email"}
    assert tried(server) == (["email"], [], ["slack"])


@pytest.mark.parametrize("slack", [False, True])
def test_notifications_of_the_watchdog_do_not_count(server, slack):
    """Debian 12: it is queried as if it were Slack; here once in so many readings, each of which takes seconds."""
    server.watchdog = 15
    server.tried = {"email", "slack"} if slack else {"email"}
    expected = (["email", "slack"], [], []) if slack else (["email"], [], ["slack"])
    assert tried(server, wait_seconds=90, watchdog_channel="slack", watchdog_seconds=20) == expected
    # As if it were not known, the watchdog's own would be taken for the test's.
    if not slack:
        assert tried(server, wait_seconds=90) == (["email", "slack"], [], [])


def test_a_channel_without_metrics_is_silent(server):
    assert tried(server, channels=["pagerduty"]) == ([], [], ["pagerduty"])


def test_earlier_notifications_do_not_count():
    count = module.requests(METRICS % {"email": 7, "email_bad": 3, "slack": 5, "slack_bad": 0})
    assert count == {"email": (7, 3), "slack": (5, 0)}
    assert module.evaluate(count, count, ["email", "slack"]) == ([], [], ["email", "slack"])


def test_an_unreachable_alertmanager_is_reported():
    params = {"url": "http://127.0.0.1:9", "user": "", "password": "", "timeout_seconds": 1, "ca_file": None}
    with pytest.raises(module.Failed):
        tried_api = module.Api(params)
        module.run(tried_api, dict(params, wait_seconds=1, channels=["email"]))
