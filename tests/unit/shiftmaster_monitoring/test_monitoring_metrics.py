"""The metrics of shiftmaster_monitoring in real processes: Django under gunicorn, with the role's own settings of both.

Tests of one process are in tests/unit/shiftmaster_monitoring/test_monitoring_shared.py.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import http.cookies
import json
import os
import re
import signal
import subprocess
import time

import pytest

pytest.importorskip("django", reason="Django is not installed; the step `package` runs these tests")
pytest.importorskip("django_prometheus", reason="django-prometheus is not installed; see the step `package`")
pytest.importorskip("gunicorn", reason="gunicorn is not installed; see the step `package`")

from monitored import Project, count, parse, total, value  # noqa: E402


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def cookie(headers):
    jar = http.cookies.SimpleCookie()
    for text in headers.get_all("Set-Cookie") or ():
        jar.load(text)
    return "; ".join(f"{name}={item.value}" for name, item in jar.items())


# --- one process after the other -------------------------------------------------------------------------------------


def test_requests_are_counted_by_route_never_by_path(project):
    with project.serve() as server:
        for path in (
            "/items/1/",
            "/items/2/",
            "/items/2/?secret=1",
            "/nothing/here",
            "/nothing/there",
            "/",
            "/old/abc",
        ):
            server.request(path)
        assert server.request("/boom/")[0] == 500
        server.request("/items/1/", method="POST")
        server.request("/items/1/", method="INVENTED")
        metrics = server.metrics()
        text = server.request("/metrics")[1]
    assert count(metrics, "/items/<int:number>/") == 3
    assert count(metrics, "/items/<int:number>/", "POST") == 1
    assert count(metrics, "/items/<int:number>/", "OTHER") == 1
    assert count(metrics, "unresolved") == 2 and count(metrics, "/") == 1 and count(metrics, "/boom/") == 1
    assert count(metrics, "/^old/(?P<x>[a-z]+)$") == 1
    assert "secret" not in text and "nothing" not in text and "INVENTED" not in text
    bounds = {dict(have)["le"] for (name, have) in metrics if name == "django_request_duration_seconds_bucket"}
    assert {"0.2", "0.5", "1.0", "2.0", "+Inf"} <= bounds
    # django-prometheus' own, counted in all processes, too.
    assert value(metrics, "django_http_requests_before_middlewares_total") == 10
    assert value(metrics, "django_http_responses_total_by_status_total", status="404") == 2
    by = "django_http_responses_total_by_status_view_method_total"
    assert value(metrics, by, status="200", view="item", method="GET") == 3
    assert total(metrics, "django_http_exceptions_total_by_type_total", type="ValueError") == 1
    assert total(metrics, "django_http_requests_latency_seconds_by_view_method_count", view="item") == 5
    assert (
        value(metrics, "shiftmaster_release_info", version="2.0.0", release="20260101T000000Z-abcdef0", slot="blue")
        == 1
    )
    # From the start, so that the first increase is seen.
    assert value(metrics, "shiftmaster_slow_requests_total", level="warning") == 0
    assert value(metrics, "process_resident_memory_bytes") > 4 * 20e6
    # The sum of five processes, each of which has at least imported Django.
    assert value(metrics, "process_cpu_seconds_total") > 0.2
    assert value(metrics, "shiftmaster_metrics_shared_up") == 1


def test_access_to_the_metrics(project):
    with project.serve(SHIFTMASTER_HEALTH_TOKEN="a-token") as server:
        assert server.request("/metrics")[0] == 200
        assert server.request("/metrics/", method="HEAD")[:2] == (200, "")
        assert server.request("/metrics", method="POST")[0] == 405
        client = {"X-Forwarded-For": "203.0.113.9"}
        status, text, _headers = server.request("/metrics", **client)
        assert (status, text) == (404, "not found\n")
        assert server.request("/metrics", **client, Authorization="Bearer a-token")[0] == 200
        assert server.request("/metrics", **client, X_Health_Token="wrong")[0] == 404
        # Neither its own responses nor those of health are requests of users.
        assert total(server.metrics(), "django_request_duration_seconds_count") == 0


def test_a_self_request_at_the_start_is_not_counted(tmp_path):
    project = Project(tmp_path, shiftmaster_watch_paths=["/items/7/"])
    with project.serve() as server:
        metrics = server.metrics()
        assert total(metrics, "django_request_duration_seconds_count") == 0
        assert (value(metrics, "django_http_requests_before_middlewares_total") or 0) == 0
        assert total(metrics, "django_http_responses_total_by_status_view_method_total") == 0
        assert "warming up" not in server.output()


# --- several processes -----------------------------------------------------------------------------------------------


def send(server, number, path="/items/1/"):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return sum(pool.map(lambda _: server.sure(path), range(number)))


def reached(server, wanted, route="/items/<int:number>/"):
    """Return the count once it is wanted, or after a while: a process counts just after its response."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = count(server.metrics(), route)
        if found >= wanted:
            break
        time.sleep(0.2)
    return count(server.metrics(), route)


def test_four_workers_that_are_recycled_count_exactly(project):
    with project.serve(more="max_requests = 20\nmax_requests_jitter = 10") as server:
        first = set(server.workers())
        assert send(server, 400) == 400
        assert reached(server, 400) == 400
        metrics = server.metrics()
        assert value(metrics, "django_http_requests_before_middlewares_total") == 400
        assert not first & set(server.workers()), "nobody was recycled"
        assert len(list(project.metrics.glob("*.db"))) <= 10
        assert value(metrics, "shiftmaster_metrics_processes") <= 9


def test_killed_workers_take_nothing_with_them(project):
    with project.serve() as server:
        sent = send(server, 100)
        for round_ in range(3):
            for pid in server.workers()[: 1 + round_]:
                os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 20
            while len(server.workers()) < 4 and time.monotonic() < deadline:
                time.sleep(0.1)
            sent += send(server, 50)
        assert reached(server, sent) == sent == 250


def test_scrapes_during_load_and_recycling_never_fall(project):
    with project.serve(more="max_requests = 15\nmax_requests_jitter = 5") as server:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            load = pool.submit(send, server, 500)
            seen = []
            while not load.done():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    seen.append(count(server.metrics(), "/items/<int:number>/"))
        assert seen == sorted(seen) and len(seen) > 5
        assert load.result() == 500 == reached(server, 500)


def test_counting_continues_across_slots(project):
    with project.serve("blue") as blue:
        send(blue, 60)
        assert reached(blue, 60) == 60
        with project.serve("green", SHIFTMASTER_VERSION="2.1.0") as green:
            assert reached(green, 60) == 60
            send(green, 40)
            assert reached(blue, 100) == reached(green, 100) == 100
            versions = {dict(have)["version"] for name, have in green.metrics() if name == "shiftmaster_release_info"}
            assert versions == {"2.1.0"}
    with project.serve("blue") as blue:
        send(blue, 10)
        assert reached(blue, 110) == 110
        assert len(list(project.metrics.glob("*.db"))) <= 5


@pytest.mark.parametrize("damage", ["no directory", "nobody may write", "a file in its place", "damaged"])
def test_problems_of_the_directory_fail_no_request(project, damage):
    if damage == "nobody may write" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    if damage == "no directory":
        project.metrics.rmdir()
    elif damage == "nobody may write":
        project.metrics.chmod(0o500)
    elif damage == "a file in its place":
        project.metrics.rmdir()
        project.metrics.write_text("")
    else:
        (project.metrics / "ended.json").write_text("{")
        (project.metrics / "1-00000000.db").write_bytes(b"\0" * 100)
    with project.serve() as server:
        for _ in range(20):
            assert server.request("/items/1/")[0] == 200
        metrics = server.metrics()
        output = [line for line in server.output().splitlines() if "requests and tasks go on without it" in line]
        if damage == "damaged":
            assert reached(server, 20) == 20
        else:
            assert value(metrics, "shiftmaster_metrics_shared_up") == 0
            assert value(metrics, "shiftmaster_release_info", version="2.0.0", slot="blue",
                         release="20260101T000000Z-abcdef0") == 1  # fmt: skip
            # No counter decreases.
            assert count(metrics, "/items/<int:number>/") == 0
        assert output and len(output) <= 4 * 6
        if damage == "no directory":
            project.metrics.mkdir()
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and count(server.metrics(), "/items/<int:number>/") < 20:
                send(server, 8, "/")
                time.sleep(1)
            assert count(server.metrics(), "/items/<int:number>/") == 20


def test_a_full_directory_fails_no_request(project):
    """A tmpfs of its own that is full: no signal, no error; what was counted is seen when there is room again."""
    small = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(project.metrics)], capture_output=True
    )
    if small.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        filler = project.metrics / "filler"
        with open(filler, "wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(b"\0" * 4096)
        with project.serve() as server:
            for number in range(40):
                assert server.request(f"/items/{number}/")[0] == 200
            assert server.request("/metrics")[0] == 200
            filler.unlink()
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and count(server.metrics(), "/items/<int:number>/") < 40:
                send(server, 8, "/")
                time.sleep(1)
            assert count(server.metrics(), "/items/<int:number>/") == 40
            assert "SIGBUS" not in server.output() and "signal" not in server.output().lower().replace(
                "handling signal", ""
            )
    finally:
        subprocess.run(["umount", str(project.metrics)], check=True)


# --- slow requests ---------------------------------------------------------------------------------------------------


def test_slow_requests_are_lines_of_json(tmp_path):
    project = Project(tmp_path, shiftmaster_slow_request_info_seconds=0.5, shiftmaster_slow_request_warning_seconds=3)
    proxy = {"X-Real-IP": "203.0.113.9", "X-Forwarded-For": "203.0.113.9", "X-Request-ID": "abc123"}
    with project.serve() as server:
        server.request("/sleep/600/?token=secret", **proxy, User_Agent='Fire"fox\\ \u00fc')
        server.request("/sleep/3200/", **proxy, User_Agent="x" * 5000)
        server.request("/items/1/")
        project.log.rename(project.log.with_suffix(".1"))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: server.request("/sleep/550/"), range(24)))
        metrics = server.metrics()
    first, second = (json.loads(line) for line in project.log.with_suffix(".1").read_text().splitlines())
    assert first.pop("duration_ms") > 600 and first.pop("memory_rss_bytes") > 10e6 and first.pop("pid") > 1
    assert re.match(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$", first.pop("time"))
    assert first == {
        "level": "INFO", "logger": "shiftmaster_monitoring.slow", "message": "slow request", "method": "GET",
        "path": "/sleep/600/", "route": "/sleep/<int:ms>/", "status": 200, "user_agent": 'Fire"fox\\ \u00fc',
        "remote_addr": "203.0.113.9", "request_id": "abc123",
    }  # fmt: skip
    assert second["level"] == "WARNING" and len(second["user_agent"]) == 512
    # After a rotation, from several processes and threads: each is one complete line.
    lines = [json.loads(line) for line in project.log.read_text().splitlines()]
    assert len(lines) == 24 and len({line["pid"] for line in lines}) > 1
    assert oct(project.log.stat().st_mode & 0o777) == "0o640"
    assert value(metrics, "shiftmaster_slow_requests_total", level="warning") == 1
    assert value(metrics, "shiftmaster_slow_requests_total", level="info") == 25


def test_a_log_that_cannot_be_written_fails_no_request(tmp_path):
    project = Project(tmp_path, shiftmaster_slow_request_info_seconds=0.01, shiftmaster_slow_request_warning_seconds=9)
    project.log.mkdir()
    with project.serve() as server:
        assert server.request("/sleep/50/")[0] == 200
        assert "the log of slow requests cannot be written" in server.output()


# --- users -----------------------------------------------------------------------------------------------------------


def test_users_and_sessions_of_all_processes(project):
    with project.serve() as server:
        jars = [cookie(server.request(f"/enter/user{number}/")[2]) for number in range(3)]
        jars.append(cookie(server.request("/enter/user0/")[2]))  # the same one at another browser
        for _ in range(8):
            for jar in jars:
                assert server.request("/me/", Cookie=jar)[1].startswith("user")
        server.request("/me/")
        metrics = server.metrics()
        assert value(metrics, "shiftmaster_active_users", window="5m") == 3
        assert value(metrics, "shiftmaster_active_users", window="1h") == 3
        assert value(metrics, "shiftmaster_session_duration_seconds_count") == 0
        # One was last seen ten minutes ago, one two hours ago; his session began three hours ago.
        files = sorted((project.metrics / "users").iterdir())
        assert len(files) == 3 and not any("user0" in path.name for path in files)
        now = time.time()
        os.utime(files[0], (now, now - 600))
        os.utime(files[1], (now, now - 7200))
        metrics = server.metrics()
        assert value(metrics, "shiftmaster_active_users", window="5m") == 1
        assert value(metrics, "shiftmaster_active_users", window="1h") == 2
        sessions = sorted((project.metrics / "sessions").iterdir())
        assert len(sessions) == 4
        os.utime(sessions[0], (now - 10800, now - 7200))
        metrics = server.metrics()
        assert value(metrics, "shiftmaster_session_duration_seconds_count") == 1
        assert value(metrics, "shiftmaster_session_duration_seconds_sum") == pytest.approx(3600, abs=2)
        metrics = server.metrics()
        assert value(metrics, "shiftmaster_session_duration_seconds_count") == 1
        left = len(list((project.metrics / "sessions").iterdir()))
        for jar in jars:
            server.request("/leave/", Cookie=jar)
        metrics = server.metrics()
        assert value(metrics, "shiftmaster_session_duration_seconds_count") == 1 + left
        assert list((project.metrics / "sessions").iterdir()) == []
        assert "user0" not in server.request("/metrics")[1]


def test_a_session_that_the_application_does_not_read_stays_unread(project):
    with project.serve() as server:
        jar = cookie(server.request("/enter/somebody/")[2])
        _status, _text, headers = server.request("/items/1/", Cookie=jar)
        assert "Cookie" not in (headers.get("Vary") or "") and not headers.get("Set-Cookie")
        assert "Cookie" in server.request("/me/", Cookie=jar)[2]["Vary"]


# --- how it is attached ----------------------------------------------------------------------------------------------


def test_settings(project):
    found = json.loads(project.python("""
        import json, django
        from django.conf import settings
        django.setup()
        print(json.dumps([settings.MIDDLEWARE, settings.INSTALLED_APPS]))
    """))  # fmt: skip
    session = "django.contrib.sessions.middleware.SessionMiddleware"
    assert found[0] == [
        "shiftmaster_monitoring.middleware.HealthMiddleware",
        "shiftmaster_monitoring.measure.MetricsMiddleware",
        session,
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "shiftmaster_monitoring.around.After",
    ]
    assert found[1][-1] == "shiftmaster_monitoring"


def test_attaching_twice_is_attaching_once():
    from shiftmaster_monitoring import attach

    settings = {"MIDDLEWARE": ["a"], "INSTALLED_APPS": ["b"], "DATABASES": {"default": {}}}
    attach.finish(settings)
    once = json.dumps(settings)
    attach.finish(settings)
    assert json.dumps(settings) == once
    assert settings["MIDDLEWARE"] == [attach.FIRST, "a", attach.LAST]
    assert settings["INSTALLED_APPS"] == ["b", "shiftmaster_monitoring"] and settings["DATABASES"] == {"default": {}}


QUERIES = """
    import django; django.setup()
    from django.db import connection, connections
    from shiftmaster_monitoring import database
    def wrapper(execute, *arguments):
        seen.append(arguments[0]); return execute(*arguments)
    seen = []
    with connection.execute_wrapper(wrapper):  # the connection is made inside
        with connection.cursor() as cursor: cursor.execute("SELECT 1")
    with connection.cursor() as cursor:
        cursor.execute("SELECT 2")
        cursor.execute("CREATE TEMPORARY TABLE t (x int)")
        cursor.executemany("INSERT INTO t VALUES (%s)", [(1,), (2,), (3,)])
        try: cursor.execute("SELEC")
        except Exception as error: print(type(error).__name__)
    connection.close()
    with connection.cursor() as cursor: cursor.execute("SELECT 3")
    print(seen, len(connection.execute_wrappers))
"""


def test_queries_are_counted_for_every_engine(project):
    out = project.python(QUERIES, **project.shared())
    assert out.split("\n")[:2] == ["OperationalError", "['SELECT 1'] 1"]
    metrics = project.scrape()
    labels = {"alias": "default", "vendor": "sqlite"}
    assert value(metrics, "django_db_execute_total", **labels) == 5 + 3
    assert value(metrics, "django_db_execute_many_total", **labels) == 3
    assert value(metrics, "django_db_query_duration_seconds_count", **labels) == 6
    assert value(metrics, "django_db_errors_total", **labels, type="OperationalError") == 1
    assert value(metrics, "django_db_new_connections_total", **labels) == 2


def test_queries_can_be_left_uncounted(tmp_path):
    project = Project(tmp_path, shiftmaster_metrics_database=False)
    out = project.python(QUERIES, **project.shared())
    assert out.split("\n")[1] == "['SELECT 1'] 0"
    assert total(project.scrape(), "django_db_execute_total") == 0


def test_without_django_prometheus_the_application_serves(project):
    broken = project.directory / "django_prometheus"
    broken.mkdir()
    (broken / "__init__.py").write_text("")
    (broken / "middleware.py").write_text("raise RuntimeError('does not fit')")
    with project.serve() as server:
        assert server.request("/items/1/")[0] == 200
        assert count(server.metrics(), "/items/<int:number>/") == 1


def test_without_prometheus_client_the_application_serves_and_logs(tmp_path):
    project = Project(tmp_path, shiftmaster_slow_request_info_seconds=0.01, shiftmaster_slow_request_warning_seconds=9)
    broken = project.directory / "prometheus_client"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('gone')")
    with project.serve() as server:
        assert server.request("/sleep/50/")[0] == 200
        assert server.request("/metrics")[0] == 404
    assert json.loads(project.log.read_text().splitlines()[0])["route"] == "/sleep/<int:ms>/"


def test_failures_of_the_measuring_are_reported_once(project):
    out = project.python("""
        import django; django.setup()
        from django.core.handlers.wsgi import WSGIHandler
        from django.test import RequestFactory
        from shiftmaster_monitoring import people, metrics, trouble
        from django_prometheus.middleware import Metrics
        import logging
        printed = []
        trouble.logger.warning = lambda *a: printed.append(a)
        def broken(*_a, **_k): raise RuntimeError("broken")
        people.seen = broken
        Metrics.get_instance().requests_by_method.labels = broken
        handler = WSGIHandler()
        for _ in range(5):
            request = RequestFactory().get("/items/1/", HTTP_HOST="localhost")
            assert handler.get_response(handler.request_class(request.environ)).status_code == 200
        assert len(printed) == 2, printed
        print("ok")
    """)
    assert out.strip() == "ok"


def test_asgi(project):
    out = project.python("""
        import asyncio, django; django.setup()
        from django.core.handlers.asgi import ASGIHandler
        from django.test import AsyncRequestFactory
        from shiftmaster_monitoring import measure

        async def main():
            handler = ASGIHandler()
            for path in ("/items/1/", "/me/", "/metrics"):
                request = AsyncRequestFactory().get(path, headers={"host": "localhost"})
                request.META["REMOTE_ADDR"] = "127.0.0.1"
                response = await handler.get_response_async(request)
                assert response.status_code == 200, (path, response.status_code)
            return response.content.decode()
        print(asyncio.run(main()))
    """)
    metrics = parse(out)
    assert count(metrics, "/items/<int:number>/") == 1 and count(metrics, "/me/") == 1
    assert value(metrics, "django_http_requests_before_middlewares_total") == 2
