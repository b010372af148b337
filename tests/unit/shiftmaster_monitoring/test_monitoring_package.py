"""The health endpoints of shiftmaster_monitoring, in a real Django with a database of its own."""

from __future__ import annotations

import contextlib
import email
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import yaml

django = pytest.importorskip("django", reason="Django is not installed; the step `package` runs these tests")

PACKAGE = Path(__file__).resolve().parents[3] / "shiftmaster_monitoring"


@pytest.fixture(scope="session", autouse=True)
def project(tmp_path_factory):
    """A project that redirects everything to HTTPS and accepts one host name."""
    from django.conf import settings

    directory = tmp_path_factory.mktemp("project")
    (directory / "roster" / "migrations").mkdir(parents=True)
    (directory / "roster" / "__init__.py").touch()
    (directory / "roster" / "migrations" / "__init__.py").touch()
    (directory / "roster" / "migrations" / "0001_initial.py").write_text(
        "from django.db import migrations\nclass Migration(migrations.Migration):\n    initial = True\n"
    )
    (directory / "project_urls.py").write_text(
        "from django.http import HttpResponse\nfrom django.urls import path\n"
        "urlpatterns = [path('', lambda request: HttpResponse('the application'))]\n"
    )
    sys.path.insert(0, str(directory))
    settings.configure(
        SECRET_KEY="a-key-that-must-not-be-seen",
        ALLOWED_HOSTS=["shift.example"],
        SECURE_SSL_REDIRECT=True,
        ROOT_URLCONF="project_urls",
        INSTALLED_APPS=["roster"],
        MIDDLEWARE=[
            "shiftmaster_monitoring.middleware.HealthMiddleware",
            "django.middleware.security.SecurityMiddleware",
            "django.middleware.common.CommonMiddleware",
        ],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(directory / "db.sqlite3")}},
        CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    )
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    return directory


@pytest.fixture
def get(monkeypatch):
    """Send a request to the project as a WSGI server would."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import RequestFactory

    for name in [name for name in os.environ if name.startswith(("SHIFTMASTER", "CELERY"))]:
        monkeypatch.delenv(name)
    handlers = {}

    def query(path, method="get", **headers):
        handler = handlers.setdefault("one", WSGIHandler()) if headers.pop("keep", False) else WSGIHandler()
        request = getattr(RequestFactory(), method)(path, **{"HTTP_HOST": "localhost", "REMOTE_ADDR": "", **headers})
        request.environ["REMOTE_ADDR"] = headers.get("REMOTE_ADDR", "")
        response = handler.get_response(handler.request_class(request.environ))
        body = response.content.decode()
        response.data = json.loads(body) if response.headers.get("Content-Type") == "application/json" else body
        return response

    return query


@contextlib.contextmanager
def changed(**settings):
    from django.test import override_settings

    with override_settings(**settings):
        yield


def sleeper(seconds):
    def check(_limit):
        time.sleep(seconds)

    return check


@pytest.fixture
def check(monkeypatch):
    from shiftmaster_monitoring import checks

    return lambda name, function: monkeypatch.setitem(checks.CHECKS, name, function)


# --- in front of everything ------------------------------------------------------------------------------------------


def test_health_responds_for_any_host_name_and_protocol(get):
    response = get("/health/")
    assert (response.status_code, response.data) == (200, {"status": "healthy"})
    assert response["Cache-Control"] == "no-store"
    assert get("/health").status_code == 200
    assert get("/health/", method="head").status_code == 200


def test_the_application_is_unchanged(get):
    assert get("/", HTTP_HOST="shift.example").status_code == 301  # its own redirect
    response = get("/", HTTP_HOST="shift.example", **{"wsgi.url_scheme": "https"})
    assert (response.status_code, response.data) == (200, "the application")
    assert get("/health/other", HTTP_HOST="shift.example").status_code == 301


def test_only_read_methods_are_accepted(get):
    response = get("/health/", method="post")
    assert (response.status_code, response["Allow"]) == (405, "GET, HEAD")


def test_paths_can_be_moved_or_left_to_the_application(get):
    with changed(SHIFTMASTER_HEALTH_PATH="/alive/", SHIFTMASTER_HEALTH_DEEP_PATH=None):
        assert get("/alive/").status_code == 200
        assert get("/health/").status_code == 400  # the application's ALLOWED_HOSTS
        assert get("/health/deep/").status_code == 400


def test_health_is_503_without_a_database(get, monkeypatch):
    from shiftmaster_monitoring import checks

    def broken(_limit):
        raise OSError("gone")

    monkeypatch.setattr(checks, "database", broken)
    response = get("/health/")
    assert (response.status_code, response.data) == (503, {"status": "unhealthy"})


# --- the deep endpoint -----------------------------------------------------------------------------------------------


def test_deep_health(get, monkeypatch):
    monkeypatch.setattr("shiftmaster_monitoring.checks._celery", lambda: None)
    monkeypatch.setenv("SHIFTMASTER_VERSION", "2.0.0")
    monkeypatch.setenv("SHIFTMASTER_RELEASE", "20260101T000000Z-abcdef0")
    response = get("/health/deep/")
    assert response.status_code == 200
    assert list(response.data) == ["status", "version", "release", "checks"]
    assert (response.data["status"], response.data["version"]) == ("healthy", "2.0.0")
    assert response.data["release"] == "20260101T000000Z-abcdef0"
    states = {name: found["status"] for name, found in response.data["checks"].items()}
    assert states == {
        "database": "healthy",
        "cache": "healthy",
        "broker": "skipped",
        "worker": "skipped",
        "migrations": "healthy",
    }
    assert response.data["checks"]["database"]["latency_ms"] >= 0


def test_some_checks_can_be_chosen_or_skipped(get):
    assert list(get("/health/deep/?checks=cache,database").data["checks"]) == ["database", "cache"]
    assert list(get("/health/deep/?skip=worker,broker,migrations").data["checks"]) == ["database", "cache"]
    response = get("/health/deep/?checks=databse")
    assert response.status_code == 400 and "databse" in response.data["error"]


def test_a_pending_migration_is_named(get, project):
    late = project / "roster" / "migrations" / "0002_late.py"
    late.write_text(
        "from django.db import migrations\nclass Migration(migrations.Migration):\n"
        "    dependencies = [('roster', '0001_initial')]\n"
    )
    try:
        response = get("/health/deep/")
        assert response.status_code == 503
        found = response.data["checks"]["migrations"]
        assert (found["status"], found["pending"]) == ("unhealthy", ["roster.0002_late"])
        assert found["error"] == "1 pending: roster.0002_late"
        with changed(SHIFTMASTER_HEALTH_DEFERRED_MIGRATIONS="roster.0002_late"):
            found = get("/health/deep/").data["checks"]["migrations"]
        assert (found["status"], found["pending"]) == ("healthy", ["roster.0002_late"])
    finally:
        late.unlink()
        sys.modules.pop("roster.migrations.0002_late", None)


def test_a_migration_that_the_code_does_not_have_is_named(get, project):
    from django.db import connection
    from django.db.migrations.recorder import MigrationRecorder

    recorder = MigrationRecorder(connection)
    # The second is of no application that is installed.
    recorder.record_applied("roster", "0099_later")
    recorder.record_applied("removed", "0001_initial")
    try:
        found = get("/health/deep/").data["checks"]["migrations"]
        assert (found["status"], found["unknown"]) == ("healthy", ["roster.0099_later"])
    finally:
        recorder.record_unapplied("roster", "0099_later")
        recorder.record_unapplied("removed", "0001_initial")
    assert "unknown" not in get("/health/deep/").data["checks"]["migrations"]


def test_a_check_of_the_site(get):
    with changed(SHIFTMASTER_HEALTH_CHECKS=["database", "site_checks.storage"]):
        module = type(sys)("site_checks")
        module.storage = lambda _limit: {"free": 5}
        sys.modules["site_checks"] = module
        assert get("/health/deep/").data["checks"]["site_checks.storage"]["free"] == 5


def test_a_cache_that_forgets(get):
    with changed(CACHES={"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}):
        assert get("/health/deep/?checks=cache").data["checks"]["cache"]["status"] == "skipped"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_an_unreachable_broker_reveals_no_password(get):
    pytest.importorskip("redis")
    with changed(CELERY_BROKER_URL="redis://app:hunter2x@127.0.0.1:%d/0" % free_port()):
        response = get("/health/deep/?checks=broker")
    assert response.status_code == 503 and "hunter2x" not in response.content.decode()
    assert response.data["checks"]["broker"]["error"].startswith("ConnectionError: ")


def test_a_worker_is_requested_through_the_broker(get):
    celery = pytest.importorskip("celery")
    module = type(sys)("my_celery")
    module.app = celery.Celery("my", broker="memory://")
    sys.modules["my_celery"] = module
    with changed(SHIFTMASTER_CELERY_APPLICATION="my_celery:app", SHIFTMASTER_HEALTH_TIMEOUTS={"worker": 1.0}):
        found = get("/health/deep/?checks=worker").data["checks"]["worker"]
    assert (found["status"], found["error"]) == ("unhealthy", "no worker responded")


# --- time ------------------------------------------------------------------------------------------------------------


def test_checks_run_at_the_same_time_each_within_its_limit(get, check):
    check("cache", sleeper(20))
    check("broker", sleeper(1.5))
    check("worker", sleeper(1.5))
    with changed(SHIFTMASTER_HEALTH_TIMEOUTS={"cache": 2.0}):
        started = time.monotonic()
        response = get("/health/deep/")
    assert time.monotonic() - started < 4.5  # One after the other they take 5.
    assert response.data["checks"]["cache"]["error"] == "Timeout: no response within 2 s"
    assert response.data["checks"]["worker"]["status"] == "healthy"


def test_simultaneous_requests_share_a_check(get, check):
    calls = []

    def slow(_limit):
        calls.append(1)
        time.sleep(0.5)

    check("cache", slow)
    get("/health/deep/?checks=database", keep=True)
    threads = [
        threading.Thread(target=get, args=("/health/deep/?checks=cache",), kwargs={"keep": True}) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_hung_checks_do_not_pile_up_and_recovery_is_detected(get, check):
    release, calls = threading.Event(), []

    def hung(_limit):
        calls.append(1)
        release.wait(20)

    check("cache", hung)
    with changed(SHIFTMASTER_HEALTH_TIMEOUTS={"cache": 0.1}):
        for _ in range(7):
            found = get("/health/deep/?checks=cache", keep=True).data["checks"]["cache"]
            assert found["status"] == "unhealthy"
            time.sleep(0.02)
        assert len(calls) == 4 and "4 earlier checks" in found["error"]
        release.set()
    check("cache", lambda _limit: None)
    deadline = time.monotonic() + 20
    while get("/health/deep/?checks=cache", keep=True).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- who may see what ------------------------------------------------------------------------------------------------

# A small question: what it is about does not matter here.
DEEP = "/health/deep/?checks=database"
CLIENT = {"REMOTE_ADDR": "", "HTTP_X_FORWARDED_FOR": "203.0.113.9"}


@pytest.mark.parametrize(
    "headers,details",
    [
        ({}, True),  # over the private socket
        ({"REMOTE_ADDR": "127.0.0.1"}, True),
        ({"REMOTE_ADDR": "::1"}, True),
        ({"HTTP_X_FORWARDED_FOR": "127.0.0.1"}, True),  # the local listener
        ({"HTTP_X_FORWARDED_FOR": "::ffff:127.0.0.1"}, True),
        (CLIENT, False),
        ({"REMOTE_ADDR": "10.0.0.5"}, False),
        ({"HTTP_X_FORWARDED_FOR": "127.0.0.1, 203.0.113.9"}, False),  # a client with a false header, a proxy that adds
        ({"HTTP_X_FORWARDED_FOR": "203.0.113.9, 127.0.0.1"}, False),  # two proxies
        ({"HTTP_X_REAL_IP": "203.0.113.9"}, False),
        ({"HTTP_FORWARDED": "for=127.0.0.1"}, False),
        ({"HTTP_X_FORWARDED_FOR": "unknown"}, False),
    ],
)
def test_details_are_for_this_host(get, headers, details):
    assert ("checks" in get(DEEP, **headers).data) is details


def test_details_by_token(get, monkeypatch):
    monkeypatch.setenv("SHIFTMASTER_HEALTH_TOKEN", "tokén")
    with_token = dict(CLIENT, HTTP_X_HEALTH_TOKEN="tokén".encode().decode("latin-1"))
    assert "checks" not in get(DEEP, **CLIENT, HTTP_X_HEALTH_TOKEN="wrong").data
    assert "checks" not in get(DEEP, **CLIENT, HTTP_AUTHORIZATION="Bearer ").data
    monkeypatch.setenv("SHIFTMASTER_HEALTH_TOKEN", "right")
    assert "checks" in get(DEEP, **CLIENT, HTTP_X_HEALTH_TOKEN="right").data
    assert "checks" in get(DEEP, **CLIENT, HTTP_AUTHORIZATION="Bearer right").data
    assert "checks" not in get(DEEP, **with_token).data


def test_unauthorized_clients_cannot_keep_the_database_busy(get, monkeypatch):
    from shiftmaster_monitoring import checks

    calls, original = [], checks.database

    def counted(limit):
        calls.append(1)
        return original(limit)

    monkeypatch.setattr(checks, "database", counted)
    # Generous, so that a slow machine does not see the second question.
    monkeypatch.setattr("shiftmaster_monitoring.middleware.LIGHT_CACHE_SECONDS", 60)
    for _ in range(5):
        assert get("/health/", **CLIENT, keep=True).status_code == 200
        assert get(DEEP, **CLIENT, keep=True).data == {"status": "healthy"}
    assert len(calls) == 1
    get("/health/", keep=True)
    assert len(calls) == 2  # this host's own question is queried again


def test_errors_reveal_no_secrets(get, check, monkeypatch):
    monkeypatch.setenv("EMAIL_HOST_PASSWORD", "mail-hunter2")

    def talkative(_limit):
        raise ValueError("a-key-that-must-not-be-seen, mail-hunter2 and amqp://me:pw@host/\nsecond line" + "x" * 500)

    check("cache", talkative)
    response = get("/health/deep/?checks=cache")
    error = response.data["checks"]["cache"]["error"]
    assert error.startswith("ValueError: ***, *** and amqp://***@host/ second line")
    assert len(error) < 250 and "\n" not in error


def test_an_error_that_the_database_makes_of_its_password(get, monkeypatch):
    from django.conf import settings

    from shiftmaster_monitoring import checks

    monkeypatch.setitem(settings.DATABASES["default"], "PASSWORD", "hunter2x")
    assert checks.describe(ValueError("login hunter2x failed")) == "ValueError: login *** failed"


def test_asgi(get):
    import asyncio

    from django.test import AsyncRequestFactory

    from shiftmaster_monitoring.middleware import HealthMiddleware

    async def application(_request):
        return "the application"

    async def query():
        middleware = HealthMiddleware(application)
        assert await middleware(AsyncRequestFactory().get("/x")) == "the application"
        return await middleware(AsyncRequestFactory().get(DEEP))

    response = asyncio.run(query())
    assert response.status_code == 200 and b'"database"' in response.content


# --- the package -----------------------------------------------------------------------------------------------------


def test_the_wheel_is_built_without_a_network_and_twice_the_same(tmp_path):
    for directory in ("a", "b"):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "--quiet",
                "--no-index",
                "--no-deps",
                "--wheel-dir",
                str(tmp_path / directory),
                str(PACKAGE),
            ],
            check=True,
        )
    first, second = (next((tmp_path / directory).iterdir()) for directory in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as wheel:
        names = set(wheel.namelist())
        info = "shiftmaster_monitoring-1.2.0.dist-info/"
        metadata = email.message_from_bytes(wheel.read(info + "METADATA"))
        recorded = {line.split(",")[0] for line in wheel.read(info + "RECORD").decode().splitlines()}
    assert metadata["Name"] == "shiftmaster_monitoring"
    assert metadata.get_all("Requires-Dist") == [
        "Django>=4.2", "django-prometheus>=2.3.1,<3", "prometheus-client>=0.20,<1",
    ]  # fmt: skip
    modules = {"shiftmaster_monitoring/" + path.name for path in (PACKAGE / "shiftmaster_monitoring").glob("*.py")}
    assert modules < names and recorded == names
    assert all(name.startswith(("shiftmaster_monitoring/", info)) for name in names)


def test_a_release_gets_the_requirements_of_the_package():
    from packaging.requirements import Requirement

    role = PACKAGE.parent / "roles" / "shiftmaster" / "defaults" / "main.yml"
    given = yaml.safe_load(role.read_text(encoding="utf-8"))["shiftmaster_metrics_requirements"]
    pins = dict(line.split("==") for line in given)
    text = re.search(r"(?m)^dependencies = (.*)$", (PACKAGE / "pyproject.toml").read_text()).group(1)
    requested = {found.name: found for found in map(Requirement, json.loads(text)) if found.name != "Django"}
    assert set(requested) == set(pins)
    assert all(requested[name].specifier.contains(version) for name, version in pins.items())


def test_the_package_and_its_project_file_name_one_version():
    import shiftmaster_monitoring

    assert 'version = "%s"' % shiftmaster_monitoring.__version__ in (PACKAGE / "pyproject.toml").read_text()
