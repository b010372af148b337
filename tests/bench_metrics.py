"""The cost of the metrics for a request and a scrape; ends with 1 where a request costs more than LIMIT times as much.

    scripts/with_services {python} tests/bench_metrics.py

One process has the same application twice, with and without the metrics, and gets requests in turn. A request takes
about ten milliseconds, Django's own part and ten queries with it, for a user who is logged in. The medians of the
processor's time are compared: it includes no waiting, so other load of the machine counts for neither. Then a scrape
is timed with as many series and processes as a large host has.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "shiftmaster_monitoring"))
ROUNDS, QUERIES, MILLISECONDS = 600, 10, 7.0
PROCESSES, ROUTES = 16, 60
LIMIT = 1.05


def row(what: str, value: str, wanted: str = "") -> None:
    print(f"  {what:58} {value:>12}  {wanted}", flush=True)


def database(directory: str) -> dict:
    """Return settings of the PostgreSQL of scripts/with_services, or of a file where there is none."""
    found = urllib.parse.urlsplit(os.environ.get("SHIFTMASTER_TEST_DSN", ""))
    if not found.hostname:
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": directory + "/db", "CONN_MAX_AGE": None}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": found.path[1:],
        "USER": found.username,
        "PASSWORD": found.password,
        "HOST": found.hostname,
        "PORT": found.port,
        "CONN_MAX_AGE": None,
    }


def prepare(directory: str):
    """Return {with or without: handler}, and a cookie of a logged-in user."""
    import django
    from django.conf import settings
    from django.http import HttpResponse
    from django.urls import path

    from shiftmaster_monitoring import attach

    attach.begin()
    given = {
        "SECRET_KEY": "a-key",
        "ALLOWED_HOSTS": ["*"],
        "ROOT_URLCONF": __name__,
        "INSTALLED_APPS": ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
        "MIDDLEWARE": [
            "django.middleware.security.SecurityMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        "SESSION_ENGINE": "django.contrib.sessions.backends.cache",
        # One database twice; queries of the second one are counted.
        "DATABASES": {"default": database(directory), "counted": database(directory)},
        "LOGGING_CONFIG": None,
    }
    without = list(given["MIDDLEWARE"])
    attach.finish(given)
    settings.configure(**given)
    django.setup()
    from django.contrib.auth import login
    from django.contrib.auth.models import User
    from django.contrib.sessions.backends.cache import SessionStore
    from django.core.handlers.wsgi import WSGIHandler
    from django.core.management import call_command
    from django.db import connections
    from django.test import RequestFactory, override_settings

    work = calibrate()

    def view(request, number):
        assert request.user.is_authenticated
        with connections["counted" if number else "default"].cursor() as cursor:
            for _ in range(QUERIES):
                cursor.execute("SELECT 1")
                cursor.fetchone()
        work()
        return HttpResponse("x" * 5000)

    globals()["urlpatterns"] = [path("items/<int:number>/", view)]
    call_command("migrate", verbosity=0)
    user = User.objects.get_or_create(username="somebody")[0]
    request = RequestFactory().get("/")
    request.session = SessionStore()
    login(request, user)
    request.session.save()
    connections["default"].execute_wrappers.clear()
    handlers = {}
    for name, middleware in (("without", without), ("with", given["MIDDLEWARE"])):
        with override_settings(MIDDLEWARE=middleware):
            handlers[name] = WSGIHandler()
    return handlers, "sessionid=" + request.session.session_key


def calibrate():
    """Return a function that works for about MILLISECONDS here."""

    def work(count):
        for _ in range(count):
            hashlib.sha256(b"x" * 1000).digest()

    best = min(timed(lambda: work(2000)) for _ in range(7))
    count = int(2000 * MILLISECONDS / 1000 / best)
    return lambda: work(count)


def timed(function) -> float:
    began = time.thread_time()
    function()
    return time.thread_time() - began


def query(handlers, session) -> dict:
    from django.test import RequestFactory

    times = {name: [] for name in handlers}
    for turn in range(ROUNDS):
        for name in sorted(handlers, reverse=turn % 2 == 0):
            environ = RequestFactory().get(f"/items/{int(name == 'with')}/", HTTP_COOKIE=session).environ
            handler = handlers[name]

            def one(handler=handler, environ=environ):
                response = handler(environ, lambda *_: None)
                assert response.status_code == 200
                response.close()

            times[name].append(timed(one))
    return {name: statistics.median(found[20:]) for name, found in times.items()}


def scrape(directory: str) -> None:
    """As many processes as two slots with their workers have, each with all routes."""
    from shiftmaster_monitoring import exposition, shared

    children = []
    for _ in range(PROCESSES):
        ready, notify = os.pipe()
        pid = os.fork()
        if pid == 0:
            from django_prometheus.middleware import Metrics

            from shiftmaster_monitoring import metrics

            own = Metrics.get_instance()
            for number in range(ROUTES):
                for method in ("GET", "POST"):
                    metrics.requests.labels(f"/route/<int:number>/{number}/", method).observe(0.1)
                    own.requests_latency_by_view_method.labels(view=f"v{number}", method=method).observe(0.1)
                    own.responses_by_status_view_method.labels(status="200", view=f"v{number}", method=method).inc()
            os.write(notify, b"x")
            time.sleep(600)
            os._exit(0)
        os.read(ready, 1)
        children.append(pid)
    try:
        one = exposition.Exposition()
        one.text()
        found = []
        for _ in range(15):
            began = time.process_time()
            text = one.text()
            found.append(time.process_time() - began)
        spent = statistics.median(found)
        row(f"a scrape of {PROCESSES} processes, {text.count(chr(10).encode())} lines", f"{spent * 1000:.0f} ms")
        row("  every 5 s, of two processors", f"{spent / 5 / 2 * 100:.2f} %", "<= 2 %")
        row(
            "the directory",
            f"{sum(path.stat().st_blocks * 512 for path in Path(directory).glob('*.db')) / 2**20:.1f} MiB",
        )
        assert shared.read()[2] >= PROCESSES
    finally:
        for pid in children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def main() -> int:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        os.environ["SHIFTMASTER_SLOT"] = "blue"
        handlers, session = prepare(directory)
        found = query(handlers, session)
        print("\nThe metrics' cost:")
        more = found["with"] - found["without"]
        row("queries", "of PostgreSQL" if os.environ.get("SHIFTMASTER_TEST_DSN") else "of SQLite")
        row("a request without / with them", f"{found['without'] * 1000:.2f} / {found['with'] * 1000:.2f} ms")
        row(f"  more, with {QUERIES} queries", f"{more * 1e6:.0f} us")
        ratio = found["with"] / found["without"]
        row("  ratio", f"{ratio:.3f}", f"<= {LIMIT}")
        scrape(directory)
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
