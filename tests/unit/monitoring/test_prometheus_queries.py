"""A month queried from a Prometheus, which here is a server that keeps a synthetic month."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.parse

import pytest
import shiftmaster_kpi
from ansible.module_utils.shiftmaster.monitoring import kpi, prometheus

STEP = 60.0
START, END = kpi.month_of("2026-11", __import__("zoneinfo").ZoneInfo("Asia/Tokyo"))


def up(at):
    # Ten minutes on the 3rd.
    begin = START + 2 * 86400
    return 0.0 if begin <= at < begin + 600 else 1.0


class Server(http.server.BaseHTTPRequestHandler):
    requested, refuse = [], False

    def do_GET(self):
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        type(self).requested.append((parts.path, query, self.headers.get("Authorization")))
        if type(self).refuse:
            self.send_response(401)
            self.end_headers()
            return
        result = []
        if parts.path.endswith("query_range"):
            since, until, step = float(query["start"]), float(query["end"]), float(query["step"])
            assert (until - since) / step < 11000, "Prometheus refuses that many points"
            timestamps = [since + step * number for number in range(int((until - since) / step) + 1)]
            if "probe_success" in query["query"]:
                result = [{"metric": {}, "values": [[at, str(up(at))] for at in timestamps]}]
            elif "5.." in query["query"]:
                result = []
            elif "nginx_http_requests_total" in query["query"]:
                result = [{"metric": {}, "values": [[at, "60"] for at in timestamps]}]
            elif "ALERTS" in query["query"]:
                firing = [[at, "1"] for at in timestamps if START + 2 * 86400 - 60 <= at < START + 2 * 86400 + 600]
                result = (
                    [{"metric": {"alertname": "RedisDown", "service": "cache"}, "values": firing}] if firing else []
                )
        elif "request_duration" in query["query"]:
            assert query["query"].startswith("histogram_quantile(0.95, sum by (le) (increase(")
            result = [{"metric": {}, "value": [END, "0.15"]}]
        elif "pg_stat_statements_seconds_total" in query["query"]:
            result = [{"metric": {}, "value": [END, "NaN"]}]
        body = json.dumps({"status": "success", "data": {"resultType": "x", "result": result}}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments):
        """Nothing."""


@pytest.fixture
def server():
    Server.requested, Server.refuse = [], False
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=instance.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{instance.server_port}"
    instance.shutdown()
    thread.join()
    instance.server_close()


def test_a_month_is_queried_in_parts_and_computed(server):
    given = {"month": "2026-11", "timezone": "Asia/Tokyo", "targets": {}}
    response = shiftmaster_kpi.compute(given, prometheus.Prometheus(server, "prometheus", "secret"), END + 5, STEP)
    month = response["metrics"]
    assert month["down_seconds"] == 600 and month["unknown_seconds"] == 0
    assert month["availability_percent"] == round(100 * (30 * 86400 - 600) / (30 * 86400), 4)
    assert month["outages"][0]["cause"] == "RedisDown"
    assert month["requests_per_second"] == 1.0 and month["error_percent"] == 0.0
    assert month["p95_seconds"] == 0.15
    # Values that Prometheus does not have are no metrics.
    assert month["database_seconds"] is None and month["missing"] == ["database_seconds"]
    assert len(response["series"]["availability_percent"]) in (30, 31)
    ranges = [
        query
        for path, query, _login in Server.requested
        if path.endswith("query_range") and "probe_success" in query["query"]
    ]
    assert len(ranges) == 5
    assert all(login and login.startswith("Basic ") for _path, _query, login in Server.requested)


def test_without_a_month_it_is_the_previous_one_in_the_sites_zone(server):
    """AWX starts the monthly checklist at 08:30 in Tokyo, when it is still the day before in UTC."""
    given = {"month": None, "timezone": "Asia/Tokyo", "targets": {}}
    response = shiftmaster_kpi.compute(given, prometheus.Prometheus(server), END + 8.5 * 3600, STEP)
    assert response["metrics"]["month"] == "2026-11" and response["metrics"]["start"] == START
    assert response["metrics"]["outages"][0]["began"] == "11-03 00:00"


def test_a_gap_is_no_availability(server):
    """An instant selector would read five minutes back."""
    assert "min_over_time" in prometheus.QUERIES["up"] and "[1m]" in prometheus.QUERIES["up"]


def test_the_running_month_ends_now(server):
    given = {"month": "2026-11", "timezone": "Asia/Tokyo", "targets": {}}
    response = shiftmaster_kpi.compute(given, prometheus.Prometheus(server), START + 86400, STEP)
    assert response["metrics"]["known_seconds"] == 86400


def test_parts_query_every_step_once():
    for length in (1, 2, 9999, 10000, 10001, 43200):
        timestamps = []
        for since, until in prometheus.parts(0.0, length * STEP, STEP):
            timestamps += [since + STEP * number for number in range(int((until - since) / STEP) + 1)]
        assert timestamps == [STEP * number for number in range(length)]


def test_an_error_and_a_missing_response_are_reported(server, run_module):
    Server.refuse = True
    with pytest.raises(prometheus.PrometheusError, match="returns 401"):
        prometheus.Prometheus(server).now("up")
    with pytest.raises(prometheus.PrometheusError, match="does not respond"):
        prometheus.Prometheus("http://127.0.0.1:1").now("up")
    response = run_module(shiftmaster_kpi, url=server, month="2026-11")
    assert response["failed"] and "returns 401" in response["msg"]
    assert "2026-10" in run_module(shiftmaster_kpi, url=server, month="november")["msg"]
