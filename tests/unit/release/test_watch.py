"""The watch after a cutover, with a real server and the access log that it writes."""

from __future__ import annotations

import http.server
import json
import os
import threading
import time

import pytest
from ansible.module_utils.shiftmaster.host.symptoms import Request
from ansible.module_utils.shiftmaster.release import watch

LIMITS = {"errors_min": 3, "error_percent": 1, "p95_ms": 2000, "requests_min": 20}


def line(status=200, seconds=0.01, path="/", at=None):
    at = time.time() if at is None else at
    return json.dumps({"msec": at, "status": status, "request_time": "%.3f" % seconds, "path": path}) + "\n"


# ----------------------------------------------------------------------------------------------------------- comparing


def requests(statuses, seconds=0.1, page="/"):
    seconds = seconds if isinstance(seconds, list) else [seconds] * len(statuses)
    return [Request(0.0, status, each, page) for status, each in zip(statuses, seconds)]


@pytest.mark.parametrize(
    "statuses, seconds, words",
    [
        ([200] * 300, 0.1, ""),
        ([200] * 300 + [500] * 2, 0.1, ""),  # Fewer errors than count.
        ([200] * 400 + [500] * 3, 0.1, ""),  # Enough of them, and a small share.
        ([200] * 200 + [502] * 3, 0.1, "3 of 203 requests got a 5xx response (1.5 %, shiftmaster_watch_error_p"),
        ([404] * 50, 0.1, ""),
        ([500] * 4 + [200] * 2, 0.1, ""),  # Too few requests for a share.
        ([500] * 10, 0.1, "10 of 10 requests"),
        ([200] * 19, 9.0, ""),  # Too few for a percentile.
        ([200] * 20, 9.0, "the 95th percentile of the response time is 9000 ms (shiftmaster_watch_p95_ms: 2000)"),
        ([200] * 100, [0.1] * 97 + [9.0] * 3, ""),
        ([], [], ""),
    ],
)  # fmt: skip
def test_conditions_of_a_breach(statuses, seconds, words):
    breach = watch.evaluate(requests(statuses, seconds), [], LIMITS)
    assert breach.startswith(words) and bool(breach) == bool(words)


GOOD = requests([200] * 40)


@pytest.mark.parametrize(
    ("before", "breach"),
    [
        (requests([500] * 9, page="/old/"), False),  # It failed as often.
        (requests([500] * 3 + [200] * 6, page="/old/"), False),
        (requests([500] + [200] * 8, page="/old/"), True),  # It failed once.
        (requests([500] * 9, page="/other/"), True),
        ([], True),
    ],
)
def test_pages_are_compared_with_the_version_before(before, breach):
    found = watch.evaluate(GOOD + requests([500] * 6 + [200] * 4, page="/old/"), before + GOOD, LIMITS)
    assert bool(found) == breach
    old = [one for one in before if one.page == "/old/"]
    assert not breach or "/old/: 6 of 10, in the version before %d of %d" % (
        sum(one.failed for one in old), len(old)
    ) in found  # fmt: skip


@pytest.mark.parametrize(("before", "breach"), [(5.0, False), (3.0, True), (0.1, True)])
def test_response_times_are_compared_with_the_version_before(before, breach):
    found = watch.evaluate(requests([200] * 30, 6.0), requests([200] * 30, before), LIMITS)
    assert bool(found) == breach and (not breach or "before %d ms" % (before * 1000) in found)


def test_no_traffic_is_no_breach_of_any_limit():
    assert watch.evaluate([], [], dict(LIMITS, errors_min=0, requests_min=0, p95_ms=0)) == ""


# ------------------------------------------------------------------------------------------------------------- reading


def statuses(log):
    return [one.status for one in log.requests()]


def test_only_new_lines_count(tmp_path):
    path = tmp_path / "access.log"
    path.write_text(line(500))
    log = watch.AccessLog(str(path))
    assert statuses(log) == []
    with open(path, "a") as stream:
        stream.write(line(201) + "not json\n" + line(202)[:20])
        stream.flush()
        assert statuses(log) == [201]
        stream.write(line(202)[20:] + line(203))
        stream.flush()
        assert statuses(log) == [202, 203]


def test_lines_on_both_sides_of_a_rotation_are_read(tmp_path):
    path = tmp_path / "access.log"
    path.write_text("")
    log = watch.AccessLog(str(path))
    path.write_text(line(201))
    path.rename(tmp_path / "access.log.1")
    assert statuses(log) == [201]
    with open(tmp_path / "access.log.1", "a") as old:  # nginx writes there until it gets a signal.
        old.write(line(202))
    path.write_text(line(203))
    assert statuses(log) == [202, 203]
    assert statuses(log) == []


def test_a_log_that_appears_later_is_read_from_its_start(tmp_path):
    log = watch.AccessLog(str(tmp_path / "access.log"))
    assert statuses(log) == []
    (tmp_path / "access.log").write_text(line(201))
    assert statuses(log) == [201]


# ------------------------------------------------------------------------------------------------------------ watching


@pytest.fixture
def site(tmp_path):
    """A server that responds with prepared status codes and logs as nginx does."""
    log = tmp_path / "access.log"
    log.write_text(line(200, at=1.0) * 50)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status = site.responses.get(self.path, 200)
            site.hosts.append(self.headers["Host"])
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            with open(log, "a") as stream:
                stream.write(line(status, path=self.path))

        def log_message(self, *_arguments):
            pass

    class Site:
        responses, hosts = {}, []

    site = Site()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        site.options = dict(
            LIMITS,
            seconds=2.2,
            enough=1000,
            before=(0.0, time.time()),
            access_log=str(log),
            host="shift.example.jp",
            paths=["/", "/roster/"],
            target="http://127.0.0.1:%d" % server.server_port,
        )
        site.log = log
        yield site
        server.shutdown()
        thread.join()


def test_without_traffic_the_watch_sends_its_own_requests(site):
    started = time.monotonic()
    result = watch.watch(site.options)
    assert result.breach == "" and result.errors == 0
    assert 2 <= result.requests <= 8 and set(site.hosts) == {"shift.example.jp"}
    assert time.monotonic() - started > 2


def test_a_watch_of_no_seconds_requests_nothing(site):
    assert watch.watch(dict(site.options, seconds=0)) == ("", 0, 0, 0.0) and site.hosts == []


def test_a_page_that_fails_ends_the_watch_early_and_is_named(site):
    site.responses["/roster/"] = 500
    site.options.update(seconds=30, errors_min=2)
    started = time.monotonic()
    result = watch.watch(site.options)
    assert time.monotonic() - started < 10
    assert "/roster/: %d of %d, in the version before 0 of 0" % ((result.errors,) * 2) in result.breach
    assert result.errors >= 2 and result.requests >= 10


def test_a_page_that_failed_in_the_version_before_breaks_nothing(site):
    site.responses["/roster/"] = 500
    site.log.write_text(line(500, path="/roster/", at=1.0) * 10)
    result = watch.watch(dict(site.options, errors_min=1))
    assert result.breach == "" and result.errors >= 2


@pytest.mark.parametrize("status", [500, 503])
def test_a_page_that_fails_is_watched_until_there_is_enough_to_compare(site, status):
    site.responses["/"] = status
    result = watch.watch(dict(site.options, paths=["/"], seconds=0.5))
    assert "10 of 10 requests" in result.breach


def test_traffic_of_others_counts(site):
    with open(site.log, "a") as stream:
        threading.Timer(0.3, lambda: (stream.write(line(503, path="/api/") * 15), stream.flush())).start()
        result = watch.watch(dict(site.options, paths=[]))
    assert "15 of 15 requests" in result.breach and "/api/: 15 of 15" in result.breach


def test_enough_requests_end_the_watch_early(site, monkeypatch):
    monkeypatch.setattr(watch, "_LEAST_SECONDS", 1.5)
    with open(site.log, "a") as stream:
        threading.Timer(0.3, lambda: (stream.write(line(200, path="/api/") * 50), stream.flush())).start()
        started = time.monotonic()
        result = watch.watch(dict(site.options, seconds=30, enough=50))
    assert 1.5 <= time.monotonic() - started < 10 and result.breach == "" and result.requests >= 50


def test_slow_responses_are_a_breach(site):
    with open(site.log, "a") as stream:
        threading.Timer(0.3, lambda: (stream.write(line(200, seconds=5) * 30), stream.flush())).start()
        result = watch.watch(site.options)
    assert "95th percentile" in result.breach and result.p95_ms == 5000


def test_a_server_that_does_not_respond_is_an_error_though_nothing_is_logged(site):
    result = watch.watch(dict(site.options, target="unix:/nowhere/web.sock", seconds=20))
    assert "got a 5xx response" in result.breach and "/: 5 of 5, in the version before 0 of 50" in result.breach
    assert result.errors == result.requests >= 10


def test_lines_without_the_fields_are_passed_over(site):
    site.log.write_text("")
    with open(site.log, "a") as stream:
        threading.Timer(0.2, lambda: (stream.write('{"x": 1}\n[]\n{"status": "-"}\n'), stream.flush())).start()
        result = watch.watch(dict(site.options, paths=[], seconds=1.5))
    assert result == ("", 0, 0, 0.0)
    assert os.path.getsize(site.log) > 0
