"""The module, its evaluations, its engine and its report."""

from __future__ import annotations

import ast
import datetime
import json
import os
import threading
import time
from pathlib import Path
from unittest import mock

import offenders
import pytest
import shiftmaster_health
import shiftmaster_health_report
import yaml
from ansible.module_utils.shiftmaster.health import checks as health_checks
from ansible.module_utils.shiftmaster.health import engine
from ansible.module_utils.shiftmaster.health import text as health_text
from ansible.module_utils.shiftmaster.health.checks import Context, Outcome, message
from ansible.module_utils.shiftmaster.host import probe
from ansible.module_utils.shiftmaster.host.printable import printable_tree

ROOT = Path(__file__).resolve().parents[3]
NOW = datetime.datetime(2026, 1, 31, 8, 0, 0, tzinfo=datetime.timezone.utc)


def options(kind, **more):
    return engine.complete(dict({"name": kind, "kind": kind}, **more))


def test_no_parameter_accepts_a_password():
    assert not [name for name in shiftmaster_health.CHECK_OPTIONS if "password" in name or "token" in name]


def test_the_module_checks_in_check_mode_and_never_changes(run_module):
    result = run_module(
        shiftmaster_health,
        check_mode=True,
        checks=[
            {"name": "memory", "kind": "memory", "warning": 101, "critical": 102},
            {"name": "away", "kind": "disk", "paths": ["/no/such"]},
            {"name": "unwanted", "kind": "memory", "enabled": False},
        ],
    )
    assert (result["changed"], result["worst"], result["failing"]) == (False, "down", ["away"])
    assert [check["name"] for check in result["report"]["checks"]] == ["memory", "away"]
    assert "✅ MEMORY: healthy" in result["report_text"]
    assert "❌ AWAY: down" in result["report_text"]


@pytest.mark.parametrize(
    "checks,words",
    [
        ([{"name": "a", "kind": "nonsense"}], "value of kind must be one of"),
        ([{"name": "a", "kind": "http"}], "url"),
        ([{"name": "a", "kind": "tcp"}], "port, socket"),
        ([{"name": "a", "kind": "certificate"}], "file, url"),
        ([{"name": "a", "kind": "systemd", "units": []}], "a: units is empty"),
        ([{"name": "a", "kind": "memory"}, {"name": "a", "kind": "clock"}], "the name a is used twice"),
        ([{"name": "a", "kind": "memory", "timeout_seconds": 0}], "timeout_seconds must be at least 0.1"),
        ([{"name": "a", "kind": "memory", "timeout": 3}], "timeout"),
    ],
)
def test_errors_of_the_caller_are_one_sentence(run_module, checks, words):
    result = run_module(shiftmaster_health, check_mode=True, checks=checks)
    assert result["failed"] and words in result["msg"]


# --- the engine -------------------------------------------------------------------------------------------------------


@pytest.fixture
def kinds(monkeypatch):
    """Add kinds of the test's own."""

    def add(name, function, timeout=5):
        monkeypatch.setitem(health_checks.KINDS, name, health_checks.Kind(function, timeout))

    return add


def test_checks_run_at_the_same_time(kinds):
    barrier = threading.Barrier(5, timeout=3)

    def meet(_options, _context):
        barrier.wait()  # Passes only when all five are here.
        return Outcome("healthy")

    kinds("meet", meet)
    results = engine.run_checks([{"name": "m%d" % n, "kind": "meet"} for n in range(5)], Context())
    assert [outcome.status for _options, outcome, _attempts in results] == ["healthy"] * 5


def test_a_hung_check_delays_no_other(kinds):
    kinds("tcp", lambda _options, _context: time.sleep(30))
    kinds("fine", lambda _options, _context: Outcome("healthy"))
    started = time.monotonic()
    results = engine.run_checks(
        [{"name": "hung", "kind": "tcp", "timeout_seconds": 0.5}, {"name": "ok", "kind": "fine"}], Context()
    )
    assert time.monotonic() - started < 4
    assert [outcome.status for _options, outcome, _attempts in results] == ["down", "healthy"]
    described = engine.describe(*results[0], "en", Context())
    assert described["detail"] == "no response within 0.5 s"


def test_a_check_that_breaks_is_an_error_and_hides_no_other(kinds):
    def broken(_options, _context):
        raise KeyError("oops")

    kinds("broken", broken)
    kinds("fine", lambda _options, _context: Outcome("healthy"))
    results = engine.run_checks([{"name": "b", "kind": "broken"}, {"name": "ok", "kind": "fine"}], Context())
    assert [outcome.status for _options, outcome, _attempts in results] == ["error", "healthy"]
    assert "KeyError" in engine.describe(*results[0], "en", Context())["detail"]


def sequence(kinds, *statuses):
    left = list(statuses)
    kinds("turns", lambda _options, _context: Outcome(left.pop(0)))
    return left


@pytest.mark.parametrize(
    "statuses,retries,successes,status,attempts",
    [
        (["down"], 0, 1, "down", 1),
        (["down", "healthy"], 1, 1, "healthy", 2),
        (["down", "down", "down"], 2, 1, "down", 3),
        (["healthy", "healthy", "healthy"], 0, 3, "healthy", 3),
        (["healthy", "down", "healthy", "healthy"], 1, 2, "healthy", 4),
        (["healthy", "healthy", "down"], 0, 3, "down", 3),
        (["warning", "warning"], 0, 2, "warning", 2),
    ],
)
def test_retries_and_consecutive_successes(kinds, statuses, retries, successes, status, attempts):
    left = sequence(kinds, *statuses)
    wanted = options("turns", retries=retries, consecutive_successes=successes, delay_seconds=0.01)
    outcome, made = engine.run_check(wanted, Context())
    assert (outcome.status, made, left) == (status, attempts, [])
    assert engine.budget(wanted) >= made * 0.01


def test_delay_between_attempts(kinds):
    sequence(kinds, "down", "healthy")
    started = time.monotonic()
    engine.run_check(options("turns", retries=1, delay_seconds=0.3), Context())
    assert time.monotonic() - started >= 0.3


# --- evaluations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value,status",
    [(79.9, "healthy"), (80, "healthy"), (80.1, "warning"), (90, "warning"), (90.1, "critical"), (None, "healthy")],
)
def test_the_guides_thresholds_are_exceeded_not_reached(value, status):
    assert health_checks.above(value, 80, 90) == status


def test_worst():
    assert health_checks.worst(["healthy", "warning", "down", "critical"]) == "down"
    assert health_checks.worst([]) == "healthy"


def disk(path="/", space=10.0, inodes=10.0, **more):
    return dict(
        {
            "path": path,
            "kind": "ext4",
            "space_percent": space,
            "inodes_percent": inodes,
            "free_bytes": 1 << 30,
            "free_inodes": 5,
        },
        **more,
    )


def evaluated(mounts):
    outcome = health_checks.evaluate_disks(mounts, 80, 90)
    return engine.describe(options("disk"), outcome, 1, "en", Context())


def test_disks_by_space_and_by_inodes():
    assert evaluated([disk(), disk("/var", 50)])["usage_percent"] == 50
    result = evaluated([disk(), disk("/var", 85), disk("/srv", 20, 95)])
    assert result["status"] == "critical"
    assert result["detail"] == "/srv: 95% of its inodes used, 5 left; /var: 85% of its space used, 1 GiB free"
    assert "du --inodes -x --max-depth=2 /srv" in result["hint"]
    assert evaluated([disk(inodes=None)])["status"] == "healthy"


def test_disks_that_do_not_respond_or_became_read_only():
    assert (
        evaluated([disk(), {"path": "/nas", "kind": "nfs", "error": "stat did not end", "reason": "timeout"}])["status"]
        == "down"
    )
    result = evaluated([disk(), {"path": "/srv", "kind": "ext4", "error": "read-only", "reason": "readonly"}])
    assert result["status"] == "critical" and "dmesg" in result["hint"]


def test_memory(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 150 kB\n")
    outcome = health_checks.check_memory(options("memory"), Context(proc=str(tmp_path)))
    assert (outcome.status, outcome.data["usage_percent"]) == ("warning", 85.0)


@pytest.mark.parametrize(
    "unit,status",
    [
        ({"LoadState": "loaded", "ActiveState": "active", "SubState": "running"}, "healthy"),
        ({"LoadState": "loaded", "ActiveState": "active", "SubState": "exited"}, "healthy"),
        ({"LoadState": "loaded", "ActiveState": "activating", "SubState": "start"}, "warning"),
        ({"LoadState": "loaded", "ActiveState": "activating", "SubState": "auto-restart"}, "unhealthy"),
        ({"LoadState": "loaded", "ActiveState": "failed", "SubState": "failed"}, "down"),
        ({"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead"}, "down"),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, "down"),
        ({"LoadState": "masked", "ActiveState": "inactive"}, "down"),
    ],
)
def test_units_that_must_run(unit, status):
    assert health_checks.evaluate_unit(unit) == status


def units(monkeypatch, *found):
    monkeypatch.setattr(
        probe,
        "unit_states",
        lambda _names, _timeout: [
            dict({"LoadState": "loaded", "Result": "success", "SubState": "x"}, **unit) for unit in found
        ],
    )


def test_an_idle_slot_is_stopped_on_purpose(monkeypatch):
    units(
        monkeypatch,
        {"Id": "shiftmaster-web@green.service", "ActiveState": "inactive"},
        {"Id": "shiftmaster-web@blue.service", "ActiveState": "active"},
    )
    outcome = health_checks.check_systemd(options("systemd", units=["shiftmaster-*"]), Context())
    assert outcome.status == "healthy"


def test_a_failed_unit_of_a_pattern_and_a_stopped_named_one(monkeypatch):
    units(
        monkeypatch,
        {"Id": "nginx.service", "ActiveState": "inactive"},
        {"Id": "shiftmaster-web@green.service", "ActiveState": "failed", "Result": "exit-code"},
    )
    outcome = health_checks.check_systemd(options("systemd", units=["nginx", "shiftmaster-*"]), Context())
    assert outcome.status == "down"
    assert outcome.error == "nginx.service inactive (x); shiftmaster-web@green.service failed (x, exit-code)"
    described = engine.describe(options("systemd"), outcome, 1, "en", Context())
    assert described["hint"].startswith("systemctl status nginx.service shiftmaster-web@green.service; journalctl -u")


def certificate(days, start=-10):
    return probe.Certificate(NOW + datetime.timedelta(days=start), NOW + datetime.timedelta(days=days), "f%d" % days)


@pytest.mark.parametrize("days,status", [(31, "healthy"), (29, "warning"), (6, "critical"), (-1, "critical")])
def test_days_of_a_certificate(monkeypatch, days, status):
    monkeypatch.setattr(probe, "certificate_file", lambda _path: [certificate(days)])
    assert health_checks.check_certificate(options("certificate", file="x"), Context(), NOW).status == status


def test_the_first_certificate_of_a_chain_to_end_counts(monkeypatch):
    monkeypatch.setattr(probe, "certificate_file", lambda _path: [certificate(300), certificate(3)])
    assert health_checks.check_certificate(options("certificate", file="x"), Context(), NOW).status == "critical"


def test_a_certificate_of_the_future(monkeypatch):
    monkeypatch.setattr(probe, "certificate_file", lambda _path: [certificate(300, start=2)])
    outcome = health_checks.check_certificate(options("certificate", file="x"), Context(), NOW)
    assert (outcome.status, outcome.detail[0].key) == ("critical", "certificate.early")


def serve(monkeypatch, shown):
    """Have servers show a certificate; returns the stub, which takes the arguments that the function takes."""
    stub = mock.create_autospec(probe.certificate_served, return_value=shown)
    monkeypatch.setattr(probe, "certificate_served", stub)
    return stub


@pytest.mark.parametrize("served,status", [(200, "warning"), (-3, "critical")])
def test_a_renewed_certificate_that_the_server_has_not_read(monkeypatch, served, status):
    monkeypatch.setattr(probe, "certificate_file", lambda _path: [certificate(300)])
    serve(monkeypatch, certificate(served))
    wanted = options("certificate", file="/c.crt", url="localhost:443")
    outcome = health_checks.check_certificate(wanted, Context(), NOW)
    result = engine.describe(wanted, outcome, 1, "en", Context())
    assert result["status"] == status
    assert "the server still shows another certificate than /c.crt" in result["detail"]
    assert "systemctl reload nginx" in result["hint"]


def clock(**state):
    state = dict({"synchronised": True, "offset_seconds": 0.0, "source": "chrony", "container": False}, **state)
    return health_checks.evaluate_clock(state, 0.1, 1).status


def test_clock():
    assert clock() == "healthy"
    assert clock(offset_seconds=0.5) == "warning"
    assert clock(offset_seconds=2.0) == "critical"
    assert clock(synchronised=False) == "warning"
    assert clock(synchronised=None, container=True) == "healthy"
    assert clock(synchronised=None) == "error"


def http(monkeypatch, status, body="", seconds=0.1, error=None, reason=""):
    requested = []

    def get(*args, **_kwargs):
        requested.append(args)
        return probe.HttpResult(status, seconds, body, error, reason)

    monkeypatch.setattr(probe, "http_get", get)
    return requested


@pytest.mark.parametrize(
    "reply,more,status",
    [
        ((200,), {}, "healthy"),
        ((503,), {}, "unhealthy"),
        ((301,), {"expected_status": [301, 302]}, "healthy"),
        ((200, "all well"), {"body_contains": "well"}, "healthy"),
        ((200, "all ill"), {"body_contains": "well"}, "unhealthy"),
        ((200, "", 0.6), {"warning": 500}, "warning"),
        ((200, "", 2.5), {"warning": 500, "critical": 2000}, "critical"),
        ((None, "", 0, "refused", "refused"), {}, "down"),
        ((None, "", 0, "not HTTP", "protocol"), {}, "unhealthy"),
    ],
)
def test_http(monkeypatch, reply, more, status):
    http(monkeypatch, *reply)
    wanted = options("http", url="http://localhost:8000", path="/health/", **more)
    assert health_checks.check_http(wanted, Context()).status == status


def deep(monkeypatch, status, checks, parts=(), kind="deep_health", **more):
    requested = http(monkeypatch, status, json.dumps(dict({"status": "x", "checks": checks}, **more)))
    wanted = options(kind, url="unix:/x.sock", parts=list(parts))
    outcome = health_checks.KINDS[kind].function(wanted, Context())
    return outcome, requested[0][1], engine.describe(wanted, outcome, 1, "en", Context())["hint"]


def test_deep_health_evaluates_the_requested_parts(monkeypatch):
    parts = {
        "database": {"status": "healthy"},
        "worker": {"status": "unhealthy", "error": "no worker responded"},
        "cache": {"status": "skipped"},
    }
    outcome, path, _hint = deep(monkeypatch, 503, parts)
    assert (outcome.status, outcome.error, path) == ("unhealthy", "worker: no worker responded", "/health/deep/")
    outcome, path, _hint = deep(monkeypatch, 503, parts, ["database", "cache"])
    assert (outcome.status, path) == ("healthy", "/health/deep/?checks=database,cache")


def test_pending_migrations_and_unreadable_ones_have_different_hints(monkeypatch):
    pending = {"migrations": {"status": "unhealthy", "error": "1 pending: a.0002_x", "pending": ["a.0002_x"]}}
    outcome, _path, hint = deep(monkeypatch, 503, pending, kind="migrations")
    assert outcome.status == "unhealthy" and "deploy.yml" in hint
    unreadable = {"migrations": {"status": "unhealthy", "error": "OperationalError: refused"}}
    outcome, _path, hint = deep(monkeypatch, 503, unreadable, kind="migrations")
    assert outcome.status == "unhealthy" and "deploy.yml" not in hint


def test_deep_health_without_details(monkeypatch):
    http(monkeypatch, 200, '{"status": "healthy"}')
    assert health_checks.check_deep_health(options("deep_health", url="unix:/x"), Context()).status == "error"
    http(monkeypatch, 404, "<html>")
    assert health_checks.check_deep_health(options("deep_health", url="unix:/x"), Context()).status == "unhealthy"
    http(monkeypatch, 200, "<html>")
    assert health_checks.check_deep_health(options("deep_health", url="unix:/x"), Context()).status == "unhealthy"


# --- what comes from the environment file -----------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path):
    def write(text):
        (tmp_path / "env").write_text(text)
        return Context(str(tmp_path / "env"), app_root=str(tmp_path))

    return write


def test_database_from_the_environment_file(environment):
    context = environment(
        'DB_HOST="db"\nDB_PORT="5433"\nDB_USER="me"\nDB_PASSWORD="p\\"q"\nDB_NAME="app"\nDB_SSLMODE="require"\n'
    )
    assert health_checks.postgres_target(options("postgres"), context) == probe.PostgresTarget(
        "db", "5433", "app", "me", 'p"q', "require"
    )
    assert health_checks.postgres_target(options("postgres", host="other"), context).host == "other"
    peer = health_checks.postgres_target(options("postgres", run_as="postgres", host="/run"), context)
    assert (peer.password, peer.run_as) == (None, "postgres")


def test_other_names_of_variables(environment):
    context = environment("DATABASE_URL=postgres://me:pw@db/app\nDB_HOST=ignored\n")
    assert health_checks.postgres_target(options("postgres"), context).host == "db"
    context = environment("PGHOST=db\n")
    context.keys["database_host"] = "PGHOST"
    assert health_checks.postgres_target(options("postgres"), context).host == "db"


@pytest.mark.parametrize(
    "kind,text,hint",
    [
        ("postgres", None, "deploy first"),
        ("redis", None, "deploy first"),
        ("redis", "X=1", "must hold a valid address"),
        ("redis", "CACHE_URL=http://u:hunter2@x", "must hold a valid address"),
        ("postgres", "DATABASE_URL=mysql://u:hunter2@x", "must hold the database's address"),
        ("postgres", "DB_PORT=hunter2", "must hold the database's address"),
    ],
)
def test_an_environment_that_does_not_help_is_an_error_with_its_hint(environment, tmp_path, kind, text, hint):
    context = environment(text) if text else Context(str(tmp_path / "none"))
    wanted = options(kind, environment_key="CACHE_URL")
    outcome = engine.attempt(wanted, context)
    described = engine.describe(wanted, outcome, 1, "en", context)
    assert described["status"] == "error" and hint in described["hint"]
    assert "hunter2" not in json.dumps(described)


def redis(monkeypatch, metrics):
    def ping(_target, _timeout):
        if isinstance(metrics, Exception):
            raise metrics
        return metrics

    monkeypatch.setattr(probe, "redis_ping", ping)


@pytest.mark.parametrize(
    "metrics,status",
    [
        ({"latency_ms": 1}, "healthy"),
        ({"version": "8", "used_memory_percent": 85, "evicts": False}, "warning"),
        ({"version": "8", "used_memory_percent": 99, "evicts": True}, "healthy"),
        ({"version": "8", "persistence_error": "aof_last_write_status"}, "critical"),
        ({"version": "8", "replication_error": "down"}, "warning"),
        ({"version": "8", "write_error": "NOPERM no"}, "critical"),
        ({"version": "8", "write_error": ""}, "healthy"),
    ],
)
def test_redis(monkeypatch, metrics, status):
    redis(monkeypatch, metrics)
    assert health_checks.check_redis(options("redis"), Context()).status == status


def test_a_redis_that_requires_a_password_is_alive(monkeypatch):
    redis(monkeypatch, probe.ProbeError("unhealthy", "noauth", "NOAUTH"))
    assert health_checks.check_redis(options("redis", allow_noauth=True), Context()).status == "healthy"
    assert engine.attempt(options("redis"), Context()).status == "unhealthy"


# --- Celery and the release ------------------------------------------------------------------------------------------


@pytest.fixture
def release(tmp_path):
    """A release whose celery is a script of the test's own, live on blue."""
    name = "20260101T000000Z-abcdef0"
    directory = tmp_path / "releases" / name
    for path in ("venv/bin", "source"):
        (directory / path).mkdir(parents=True)
    (directory / "env").write_text("CELERY_BROKER_URL=redis://u:hunter2@x/0\n")
    (tmp_path / "slots" / "blue").mkdir(parents=True)
    (tmp_path / "slots" / "blue" / "release").symlink_to(directory)
    (tmp_path / "active").symlink_to("slots/blue")
    (tmp_path / "shared" / "state").mkdir(parents=True)

    def celery(script):
        command = directory / "venv" / "bin" / "celery"
        command.write_text("#!/bin/sh\n" + script)
        command.chmod(0o755)

    return tmp_path, celery, name


def celery_check(tmp_path, **more):
    context = Context(app_root=str(tmp_path), user=None)
    return engine.attempt(options("celery", **more), context)


def test_celery_pings_by_the_releases_own_command(release):
    tmp_path, celery, _name = release
    queues = '{"worker-blue@h": [{"name": "celery"}], "worker-green@h": [{"name": "celery"}, {"name": "mail"}]}'
    celery(f"echo \"$@\" > ../argv; echo '{queues}'")
    assert celery_check(tmp_path, application="shifts").status == "healthy"
    argv = next(tmp_path.glob("releases/*/argv")).read_text()
    assert argv.startswith("-A shifts inspect active_queues --json --timeout") and "--destination" not in argv
    assert celery_check(tmp_path, worker_pattern="worker-{slot}@h").data["workers"] == ["worker-blue@h"]
    assert "--destination worker-blue@h" in next(tmp_path.glob("releases/*/argv")).read_text()
    assert celery_check(tmp_path, worker_pattern="worker-{slot}@*", min_workers=2).status == "unhealthy"
    assert celery_check(tmp_path, worker_pattern="other@*").status == "down"
    assert celery_check(tmp_path, queues=["celery", "mail"]).status == "healthy"


def test_a_worker_that_responds_and_takes_no_tasks(release):
    tmp_path, celery, _name = release
    celery('echo \'{"worker-blue@h": [{"name": "celery"}]}\'')
    outcome = celery_check(tmp_path, queues=["celery", "mail"])
    assert (outcome.status, outcome.reason, outcome.data["not_taken"]) == ("unhealthy", "idle", ["mail"])
    # It was instructed to consume from none.
    celery("echo '{\"worker-blue@h\": []}'")
    assert celery_check(tmp_path).status == "unhealthy"


def test_celery_that_fails_or_hangs(release):
    tmp_path, celery, _name = release
    celery("echo 'Traceback' >&2; echo 'Error: cannot connect to redis://u:hunter2@x/0' >&2; exit 69")
    outcome = celery_check(tmp_path)
    assert (outcome.status, outcome.error) == ("down", "Error: cannot connect to redis://***@x/0")
    celery("sleep 60")
    started = time.monotonic()
    assert celery_check(tmp_path, timeout_seconds=0.5).reason == "timeout"
    assert time.monotonic() - started < 4


def test_celery_without_a_release_or_without_celery(release, tmp_path_factory):
    assert celery_check(tmp_path_factory.mktemp("empty")).reason == "live"
    assert celery_check(release[0]).status == "error"


def test_the_maintenance_page_is_detected_where_no_release_is(tmp_path):
    wanted, context = options("maintenance"), Context(app_root=str(tmp_path))
    assert health_checks.check_maintenance(wanted, context).status == "healthy"
    (tmp_path / "shared" / "maintenance").mkdir(parents=True)
    (tmp_path / "shared" / "maintenance" / "on").touch()
    outcome = health_checks.check_maintenance(wanted, context)
    assert (outcome.status, outcome.reason) == ("warning", "maintenance")
    assert "state=off" in engine.describe(wanted, outcome, 1, "en", context)["hint"]


def release_check(tmp_path):
    return health_checks.check_release(options("release"), Context(app_root=str(tmp_path)))


def test_release(release, tmp_path_factory):
    tmp_path, _celery, name = release
    assert release_check(tmp_path_factory.mktemp("empty")).status == "down"
    assert release_check(tmp_path).status == "healthy"
    state = tmp_path / "shared" / "state" / "state.json"
    state.write_text(
        json.dumps({"format": 1, "releases": {name: {"status": "bad", "reason": "5xx"}}, "transition": None})
    )
    assert release_check(tmp_path).status == "critical"
    step = dict.fromkeys(("kind", "from", "to", "from_slot", "to_slot", "phase", "run_id", "since"), "x")
    state.write_text(json.dumps({"format": 1, "releases": {}, "transition": step}))
    assert (release_check(tmp_path).status, release_check(tmp_path).reason) == ("warning", "transition")
    state.write_text("{")
    assert engine.attempt(options("release"), Context(app_root=str(tmp_path))).status == "error"
    state.unlink()
    (tmp_path / "shared" / "maintenance").mkdir()
    (tmp_path / "shared" / "maintenance" / "on").touch()
    assert (release_check(tmp_path).status, release_check(tmp_path).reason) == ("warning", "maintenance")
    assert release_check(tmp_path).data["maintenance"] and release_check(tmp_path).data["release"] == name
    os.rename(tmp_path / "releases" / name, tmp_path / "elsewhere")
    assert release_check(tmp_path).status == "critical"


# --- report -----------------------------------------------------------------------------------------------------------


def results():
    outcomes = [
        ("web", "http", Outcome("healthy", message("http", status=200), data={"latency_ms": 12.3})),
        ("database", "postgres", Outcome("down", (), "refused", error="localhost:5432: connection refused")),
        (
            "memory",
            "memory",
            Outcome("warning", message("memory", available="1 GiB", total="8 GiB"), "use", {"usage_percent": 85.0}),
        ),
        ("clock", "clock", Outcome("error", message("clock.unknown"), "unknown")),
    ]
    return lambda language: [
        engine.describe(options(kind, name=name), outcome, 1, language, Context()) for name, kind, outcome in outcomes
    ]


def report(language="en", host="app1"):
    return engine.make_report(results()(language), host, NOW)


def test_the_report_has_the_guides_form():
    lines = engine.report_lines(report(), "en")
    when = datetime.datetime.fromisoformat(NOW.astimezone().isoformat()).strftime("%Y-%m-%d %H:%M:%S %Z")
    assert lines == [
        "=== ShiftMaster System Health Report ===",
        "Report generated: " + when,
        "Host: app1",
        "",
        "✅ WEB: healthy",
        "   Detail: HTTP 200",
        "   Response time: 0.012s",
        "❌ DATABASE: down",
        "   Error: localhost:5432: connection refused",
        "   Hint: PostgreSQL does not run or listens elsewhere: systemctl start postgresql; pg_lsclusters; tail -n 50 "
        "/var/log/postgresql/*.log",
        "⚠️ MEMORY: warning",
        "   Detail: 1 GiB of 8 GiB available",
        "   Usage: 85.0%",
        "   Hint: ps aux --sort=-%mem | head; systemd-cgtop -m; journalctl -k | grep -i oom",
        "❓ CLOCK: error",
        "   Detail: neither chrony nor timedatectl knows it",
        "   Hint: systemctl status chrony; chronyc tracking; chronyc sources -v",
        "",
        "Overall health: 1/4 services healthy",
    ]


def test_the_report_in_japanese():
    text = "\n".join(engine.report_lines(report("ja"), "ja"))
    assert "✅ WEB: 正常" in text and "❌ DATABASE: 停止" in text and "総合判定: 4 項目中 1 項目が正常" in text
    assert "systemctl start postgresql" in text


def test_report_as_data_is_json():
    data = json.loads(json.dumps(report()))
    assert (data["host"], data["healthy"], data["total"], data["worst"]) == ("app1", 1, 4, "down")
    assert data["generated"].startswith("2026-01-31T") and len(data["checks"]) == 4


@pytest.mark.parametrize(
    "fail_on,names",
    [
        ("critical", ["database", "clock"]),
        ("warning", ["database", "memory", "clock"]),
        ("never", []),
    ],
)
def test_results_that_fail_a_run(fail_on, names):
    assert [result["name"] for result in engine.failing(results()("en"), fail_on)] == names


def test_a_hint_of_the_site_replaces_ours():
    wanted = options("http", url="http://x", hint="call 4711")
    assert engine.describe(wanted, Outcome("down", (), "refused"), 1, "en", Context())["hint"] == "call 4711"


def test_several_hosts_in_one_report(run_module):
    healthy = engine.make_report([results()("en")[0]], "web1", NOW)
    reply = run_module(
        shiftmaster_health_report,
        check_mode=True,
        results=[
            {"host": "app1", "result": {"report": report(), "changed": False}},
            {"host": "web1", "result": {"report": healthy}},
            {"host": "gone", "result": {"unreachable": True, "msg": "no route\nto host"}},
            {"host": "odd", "result": {"failed": True, "msg": "MODULE FAILURE"}},
            {"host": "new", "result": {}},
        ],
        timezone="Asia/Tokyo",
    )
    text = reply["report_text"]
    assert reply["report_lines"][1].endswith(" JST")
    assert text.count("=== ShiftMaster System Health Report ===") == 1
    assert "Host: gone\n\n❌ unreachable\n   Error: no route to host\n   Hint: the host did not respond" in text
    assert "Host: odd\n\n❌ could not be checked\n   Error: MODULE FAILURE" in text
    assert text.endswith("Hosts: 1/5 healthy, 1 unreachable\nOverall health: 2/5 services healthy")
    assert reply["failing"] == ["app1: database", "app1: clock"]
    assert reply["report"]["unreachable"] == ["gone"] and reply["report"]["worst"] == "down"


@pytest.mark.parametrize(
    "theirs",
    [
        {}, {"checks": 5}, {"checks": [5]}, {"checks": [{}]}, {"checks": [], "healthy": "x"},
        {"checks": [{"name": "web", "status": "fine"}], "generated": "x"},
    ],
)  # fmt: skip
def test_a_host_whose_report_is_not_valid_hides_no_other(run_module, theirs):
    given = [{"host": "backup1", "result": {"report": theirs}}, {"host": "app1", "result": {"report": report()}}]
    reply = run_module(shiftmaster_health_report, check_mode=True, results=given)
    assert "app1: database" in reply["failing"] and "backup1: unchecked" in reply["notification"]["notified"]["unwell"]


def test_a_host_cannot_set_the_severity_of_its_checks(run_module):
    given = [{"host": "app1", "result": {"report": dict(report(), worst="healthy", healthy=99)}}]
    reply = run_module(shiftmaster_health_report, check_mode=True, results=given)
    assert (reply["worst"], reply["report"]["healthy"]) == (report()["worst"], report()["healthy"])


@pytest.mark.parametrize("name", ["health", "diagnose", "checklist"])
def test_a_host_that_hangs_ends_its_task(name):
    """Else a host whose Python never ends keeps the report of all others from being shown."""
    plays = yaml.safe_load((ROOT / "playbooks" / f"{name}.yml").read_text(encoding="utf-8"))
    assert plays and all(0 < play["timeout"] <= 300 for play in plays)


# --- recipients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "hint"),
    [
        ("Task failed: Missing sudo password", "hint.sudo"), ("Traceback: x", "hint.crash"),
        ("/bin/sh: 1: /usr/bin/python3.13: not found", "hint.python"),
    ],
)  # fmt: skip
def test_a_missing_password_or_python_is_no_crash(problem, hint):
    lines = engine.report_lines({"host": "app1", "problem": problem, "unreachable": False}, "en", title=False)
    assert health_text.say("en", hint, name="app1") in lines[-1]


def test_a_host_adds_no_line_to_the_report_of_another_one():
    check = dict(report()["checks"][0], status="down", detail="no\n\nHost: app1\n✅ WEB: Healthy")
    merged = engine.report_of("backup1", {"report": dict(report(), checks=[check])})
    lines = engine.merged_lines(engine.merge_reports([merged], NOW), "en")
    assert "problem" not in merged and not [line for line in lines if "\n" in line]
    assert not [text for text in engine.unwell([merged], "critical", "en").values() if "\n" in text]


def test_each_unhealthy_part_is_one_line():
    reports = [report(), engine.report_of("gone", {"unreachable": True, "msg": "no route"})]
    assert engine.unwell(reports, "critical", "en") == {
        "app1: database": "❌ app1: DATABASE: down, localhost:5432: connection refused",
        "app1: clock": "❓ app1: CLOCK: error, neither chrony nor timedatectl knows it",
        "gone: unreachable": "❌ gone: unreachable",
    }
    assert set(engine.unwell(reports, "never", "en")) == {"gone: unreachable"}


def test_notifications_are_sent_once_then_after_hours_for_more_problems_and_for_the_end():
    def at(minutes, *names):
        nonlocal notified
        timestamp = NOW + datetime.timedelta(minutes=minutes)
        reply = engine.notification(dict.fromkeys(names, ""), notified, timestamp, 4 * 3600)
        notified = json.loads(json.dumps(reply["notified"]))
        return reply["status"]

    notified = {}
    assert at(0) == ""
    assert at(5, "a") == "failed"
    assert at(10, "a") == ""
    assert at(15, "a", "b") == "failed"
    # Less of it is no news, and what comes back within is none either.
    assert at(20, "b") == "" and at(25, "a", "b") == ""
    assert at(15 + 239, "b") == ""
    assert at(15 + 240, "b") == "failed"
    assert at(260, "a", "b") == "failed"
    assert at(300) == "succeeded"
    assert at(305) == ""
    assert at(310, "a") == "failed"


def test_the_module_returns_what_to_notify(run_module):
    def notification(result, **more):
        given = [{"host": "app1", "result": {"report": result}}]
        return run_module(shiftmaster_health_report, check_mode=True, results=given, **more)["notification"]

    first = notification(report())
    assert (first["status"], first["hosts"]) == ("failed", ["app1"]) and len(first["lines"]) == 2
    again = notification(report(), notified=first["notified"])
    assert (again["status"], again["notified"]) == ("", first["notified"])
    healthy = engine.make_report([results()("en")[0]], "app1", NOW)
    assert notification(healthy, notified=first["notified"])["status"] == "succeeded"


# --- texts ------------------------------------------------------------------------------------------------------------


def test_each_text_of_a_check_is_in_the_catalogue():
    output_keys = {
        node.args[0].value
        for module in (health_checks, engine)
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("message", "Message")
        if node.args and isinstance(node.args[0], ast.Constant)
    }
    assert "redis.plain" in output_keys and output_keys - set(health_text.CATALOG) == set()


@offenders.each(health_checks.KINDS)
def test_every_kind_has_a_hint_of_its_own(kind):
    assert health_text.hint_key(kind, "anything") in ("hint." + kind, "hint.deep_health")


# --- what the play checks ---------------------------------------------------------------------------------------------

WIRED = yaml.safe_load((ROOT / "group_vars" / "all" / "health.yml").read_text())["shiftmaster_health_checks"]


def test_the_play_runs_the_seven_checks_of_the_guide():
    names = [check["name"] for checks in WIRED.values() for check in checks]
    assert {"web", "database", "redis", "celery", "nginx", "disk_space", "memory"} <= set(names)
    assert len(names) == len(set(names)), "one host may be in all groups"


@offenders.each([check for checks in WIRED.values() for check in checks], lambda check: check["name"])
def test_checks_of_the_group_variables_use_options_that_exist(check):
    assert set(check) <= set(shiftmaster_health.CHECK_OPTIONS)
    assert check["kind"] in health_checks.KINDS


@pytest.mark.parametrize(
    "text,token",
    [
        ("SHIFTMASTER_HEALTH_TOKEN=secret\n", "secret"),
        ("SHIFTMASTER_HEALTH_TOKEN=\n", None),
        ("OTHER=secret\n", None),
        (None, None),
    ],
)
def test_deep_health_is_queried_with_the_token_of_the_environment(environment, monkeypatch, tmp_path, text, token):
    """Without it the application hides its parts from all but the private socket."""
    requested = http(monkeypatch, 200, '{"status": "healthy", "checks": {}}')
    context = environment(text) if text else Context(str(tmp_path / "none"), app_root=str(tmp_path))
    wanted = options("deep_health", url="https://shift.example", headers={"X-Other": "1"})
    assert health_checks.check_deep_health(wanted, context).status == "healthy"
    assert requested[0][4] == ({"X-Other": "1", "X-Health-Token": token} if token else {"X-Other": "1"})
    # The options of the check stay as they are.
    assert wanted["headers"] == {"X-Other": "1"}


# --- what is queried, and the codes of what is found ------------------------------------------------------------------


def test_every_option_of_an_http_check_reaches_the_request(monkeypatch):
    requested = http(monkeypatch, 200, '{"status": "healthy", "checks": {}}')
    more = {"host_header": "h", "timeout_seconds": 3, "headers": {"A": "1"}, "ca_file": "/ca"}
    health_checks.check_http(options("http", url="http://x", path="/p", validate_certs=False, **more), Context())
    health_checks.check_http(options("http", url="http://x", timeout_seconds=3), Context())
    health_checks.check_deep_health(options("deep_health", url="http://x", validate_certs=False, **more), Context())
    health_checks.check_deep_health(options("deep_health", timeout_seconds=3), Context(app_root="/app"))
    health_checks.check_deep_health(
        options("deep_health", path="/d?checks=a", parts=["b"], timeout_seconds=3), Context()
    )
    assert requested[:4] == [
        ("http://x", "/p", "h", 3, {"A": "1"}, False, "/ca"), ("http://x", "/", None, 3, None, True, None),
        ("http://x", "/health/deep/", "h", 3, {"A": "1"}, False, "/ca"),
        ("unix:/app/active/socket", "/health/deep/", None, 3, {}, True, None),
    ]  # fmt: skip
    assert requested[4][1] == "/d?checks=a"


@pytest.mark.parametrize(
    "reason,status",
    [("tls", "unhealthy"), ("certificate", "unhealthy"), ("protocol", "unhealthy"), ("refused", "down")],
)
def test_a_missing_response_has_its_status(monkeypatch, reason, status):
    http(monkeypatch, None, "", 0.2, "it failed", reason)
    outcome = health_checks.check_http(options("http", url="http://x:81/"), Context())
    assert (outcome.status, outcome.reason, outcome.error) == (
        status, "tls" if reason == "certificate" else reason, "it failed",
    )  # fmt: skip
    assert outcome.hint_values["where"] == "x:81" and outcome.hint_values["server_name"] == "x"
    assert outcome.data == {"latency_ms": None, "http_status": None}
    outcome = health_checks.check_deep_health(options("deep_health", url="unix:/s"), Context())
    assert (outcome.status, outcome.reason, outcome.error) == (status, "http", "it failed")
    assert outcome.hint_values["socket"] == "/s" and outcome.data["latency_ms"] is None


def test_reasons_of_http_responses(monkeypatch):
    http(monkeypatch, 500, "x", 0.2)
    outcome = health_checks.check_http(options("http", url="http://x"), Context())
    assert (outcome.reason, outcome.error, outcome.data) == (
        "status",
        "HTTP 500",
        {"latency_ms": 200, "http_status": 500},
    )
    http(monkeypatch, 200, "x", 0.2)
    assert health_checks.check_http(options("http", url="http://x", body_contains="y"), Context()).reason == "status"
    # A limit is exceeded, not reached.
    assert health_checks.check_http(options("http", url="http://x", warning=200), Context()).status == "healthy"
    outcome = health_checks.check_http(options("http", url="http://x", warning=100, critical=199), Context())
    assert (outcome.status, outcome.reason) == ("critical", "slow")
    for body, reason in (("<html>", "absent"), ("[]", "absent"), ("{}", "closed")):
        http(monkeypatch, 200, body)
        assert health_checks.check_deep_health(options("deep_health", url="unix:/x"), Context()).reason == reason


def test_parts_of_deep_health_have_their_codes(monkeypatch):
    parts = {"a": {"status": "healthy"}, "b": {"status": "unhealthy", "pending": ["x"]}, "c": {"status": "skipped"}}
    outcome, _path, _hint = deep(monkeypatch, 200, parts, ["a", "missing"])
    assert (outcome.status, outcome.reason) == ("error", "absent") and "missing" in str(outcome.detail)
    outcome, _path, _hint = deep(monkeypatch, 503, parts, version="2", release="r")
    assert (outcome.status, outcome.reason, outcome.error) == ("unhealthy", "parts", "b: unhealthy")
    assert (outcome.data["version"], outcome.data["release"], set(outcome.data["parts"])) == ("2", "r", {"a", "b", "c"})
    parts["d"] = {"status": "down", "error": "refused"}
    assert deep(monkeypatch, 503, parts)[0].reason == "http"
    outcome = deep(monkeypatch, 200, parts, ["c", "a"])[0]
    assert outcome.status == "healthy" and set(outcome.data["parts"]) == {"a", "c"}
    assert "a healthy, c skipped" in str(outcome.detail)


@pytest.mark.parametrize("depth", [500, 3000, 30_000])
def test_a_deeply_nested_response_ends_no_report(monkeypatch, depth):
    """Ansible goes through results by recursion: the report of all checks would be lost."""
    nested = "[" * depth + "]" * depth
    for body in (
        '{"checks": {"a": {"status": "healthy", "x": %s}}, "version": "1"}',
        '{"checks": {"a": {"status": "healthy"}}, "version": %s}',
        '{"checks": {"a": %s}}',
    ):
        http(monkeypatch, 200, body % nested)
        outcome = health_checks.check_deep_health(options("deep_health", url="unix:/x"), Context())
        printable_tree(outcome.data)
        assert len(json.dumps(outcome.data)) < 200


def test_a_tcp_check_sends_its_options(monkeypatch):
    requested = []
    monkeypatch.setattr(probe, "tcp_connect", lambda *words: requested.append(words) or {"latency_ms": 1})
    outcome = health_checks.check_tcp(options("tcp", port=25, timeout_seconds=3), Context())
    assert (outcome.status, outcome.data) == ("healthy", {"latency_ms": 1})
    health_checks.check_tcp(options("tcp", host="h", socket="/s", timeout_seconds=3), Context())
    assert requested == [("localhost", 25, None, 3), ("h", None, "/s", 3)]


@pytest.mark.parametrize("percent,status", [(80, "healthy"), (85, "warning"), (95, "critical")])
@pytest.mark.parametrize("standby", [True, False])
def test_connections_of_postgresql(monkeypatch, percent, status, standby):
    metrics = {"version": "17", "connections": 9, "connections_percent": percent, "recovery": standby, "waiting": 0}
    monkeypatch.setattr(probe, "postgres_ping", lambda target, seconds: dict(metrics, host=target.host))
    # By the limits that hold where the inventory names none.
    outcome = health_checks.check_postgres(options("postgres", host="db"), Context())
    assert (outcome.status, outcome.reason, outcome.data["host"]) == (status, "connections", "db")
    assert outcome.detail[0].key == ("postgres.standby" if standby else "postgres")


def access_log(tmp_path, statuses):
    path = tmp_path / "access.log"
    now = time.time()
    lines = [{"msec": now - 99 + at, "status": status, "path": "/roster/"} for at, status in enumerate(statuses)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize(
    ("status", "error", "statuses", "expected"),
    [
        (200, None, [200] * 50, ("healthy", "")),
        (403, None, [], ("healthy", "")),
        (500, None, [200] * 50, ("unhealthy", "status")),
        (None, "no response", [200] * 50, ("down", "timeout")),
        (200, None, [200, 500, 500] * 10, ("unhealthy", "failing")),
        (200, None, [500] * 10 + [200] * 50, ("healthy", "")),  # It is over.
        (200, None, [500] * 4, ("healthy", "")),  # Too few for a result.
    ],
)
def test_pages_as_users_receive_them(monkeypatch, tmp_path, status, error, statuses, expected):
    """Each component may respond while pages hang or fail."""
    result = probe.HttpResult(status, 0.1, "", error, "timeout" if error else "", {"x-request-id": "5f9e"})
    monkeypatch.setattr(probe, "http_get", lambda *_words, **_more: result)
    wanted = options("pages", url="https://localhost", pages=["/"], access_log=access_log(tmp_path, statuses))
    outcome = health_checks.check_pages(wanted, Context(app_root=str(tmp_path)))
    assert (outcome.status, outcome.reason) == expected
    if outcome.status == "healthy":
        # Another site of the web server responds.
        result = result._replace(headers={})
        assert health_checks.check_pages(wanted, Context(app_root=str(tmp_path))).status == "unhealthy"


def test_during_maintenance_pages_are_not_requested(monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "http_get", lambda *_words, **_more: pytest.fail("requested"))
    (tmp_path / "shared/maintenance").mkdir(parents=True)
    (tmp_path / "shared/maintenance/on").touch()
    outcome = health_checks.check_pages(options("pages", url="https://localhost"), Context(app_root=str(tmp_path)))
    assert (outcome.status, outcome.reason) == ("warning", "maintenance")


def test_sessions_that_wait_for_a_lock_are_critical(monkeypatch):
    """Pages hang, and the connection, the deep health and every unit are fine."""
    metrics = {"version": "17", "connections": 9, "connections_percent": 9.0, "recovery": False, "waiting": 3}
    monkeypatch.setattr(probe, "postgres_ping", lambda _target, _seconds: metrics)
    outcome = health_checks.check_postgres(options("postgres", host="db", warning=80, critical=90), Context())
    assert (outcome.status, outcome.reason) == ("critical", "locked")


def test_a_redis_check_sends_its_options(monkeypatch, environment):
    requested = []
    monkeypatch.setattr(probe, "redis_ping", lambda target, seconds: requested.append((target, seconds)) or {})
    health_checks.check_redis(options("redis", timeout_seconds=3), Context())
    more = {"host": "h", "port": 1, "socket": "/s", "tls": True, "validate_certs": False, "ca_file": "/ca"}
    health_checks.check_redis(options("redis", timeout_seconds=3, **more), Context())
    health_checks.check_redis(
        options("redis", timeout_seconds=3, environment_key="U"), environment("U=redis://:pw@cache:6390/1\n")
    )
    assert requested[0] == (probe.RedisTarget("localhost", 6379, None, tls=False, verify=True, ca_file=None), 3)
    assert requested[1] == (probe.RedisTarget("h", 1, "/s", tls=True, verify=False, ca_file="/ca"), 3)
    assert (requested[2][0].host, requested[2][0].port) == ("cache", 6390)


def test_reasons_of_redis(monkeypatch):
    for metrics, reason in (
        ({"version": "8", "used_memory_percent": 85}, "memory"), ({"version": "8", "persistence_error": "x"}, "disk"),
        ({"version": "8", "replication_error": "x"}, "replication"),
    ):  # fmt: skip
        redis(monkeypatch, metrics)
        outcome = health_checks.check_redis(options("redis"), Context())
        assert (outcome.reason, outcome.data) == (reason, metrics)


def test_reasons_of_a_release(release, tmp_path_factory):
    tmp_path, _celery, name = release
    assert release_check(tmp_path_factory.mktemp("empty")).reason == "none"
    found = release_check(tmp_path)
    assert (found.data["release"], found.data["slot"]) == (name, "blue")
    state = tmp_path / "shared" / "state" / "state.json"
    state.write_text(
        json.dumps({"format": 1, "releases": {name: {"status": "bad", "reason": "5xx"}}, "transition": None})
    )
    found = release_check(tmp_path)
    assert (found.reason, found.data["status"]) == ("bad", "bad") and "5xx" in str(found.detail)
    step = {key: key for key in ("kind", "from", "to", "from_slot", "to_slot", "phase", "run_id", "since")}
    state.write_text(json.dumps({"format": 1, "releases": {}, "transition": step}))
    found = release_check(tmp_path)
    assert found.data["transition"] == {key: key for key in ("kind", "from", "to", "phase", "since")}
    state.write_text(json.dumps({"format": 1, "releases": {}, "transition": None}))
    (tmp_path / "shared/maintenance").mkdir()
    (tmp_path / "shared/maintenance/on").touch()
    found = release_check(tmp_path)
    assert (found.status, found.reason, found.data["maintenance"]) == ("warning", "maintenance", True)
    (tmp_path / "releases" / name).rename(tmp_path / "releases/gone")
    assert (release_check(tmp_path).status, release_check(tmp_path).reason) == ("critical", "gone")


def test_a_certificate_counts_from_its_first_second_and_what_is_served_is_requested(monkeypatch):
    monkeypatch.setattr(probe, "certificate_file", lambda _path: [certificate(300, start=0)])
    query = serve(monkeypatch, certificate(300, start=0))
    wanted = options("certificate", file="/c", url="shift.example", timeout_seconds=3)
    outcome = health_checks.check_certificate(wanted, Context(), NOW)
    assert (outcome.status, outcome.reason) == ("healthy", "expiry") and outcome.data["days_left"] == 300
    assert 0 <= outcome.data["latency_ms"] < 60000 and not outcome.data["served_differs"]
    assert outcome.data["not_after"] == "2026-11-27T08:00:00Z"
    more = {"server_name": "n", "verify_chain": True, "ca_file": "/ca"}
    health_checks.check_certificate(
        options("certificate", url="https://h:8443", timeout_seconds=3, **more), Context(), NOW
    )
    assert query.call_args_list == [
        mock.call("shift.example", 443, None, 3, False, None), mock.call("h", 8443, "n", 3, True, "/ca")
    ]  # fmt: skip
    only_file = health_checks.check_certificate(options("certificate", file="/c"), Context(), NOW)
    assert "latency_ms" not in only_file.data


def test_reasons_of_the_clock_and_of_units(monkeypatch):
    def evaluated_clock(**state):
        state = dict({"synchronised": True, "offset_seconds": 0.0, "source": "s", "container": False}, **state)
        return health_checks.evaluate_clock(state, 0.1, 1)

    assert (
        evaluated_clock(offset_seconds=0.5).reason == "offset"
        and evaluated_clock(synchronised=None).reason == "unknown"
    )
    assert evaluated_clock(synchronised=False).reason == "not"
    assert evaluated_clock(offset_seconds=None).detail[0].key == "clock"
    units(
        monkeypatch,
        {"Id": "nginx.service", "ActiveState": "active", "NRestarts": "3"},
        {"Id": "gone.service", "LoadState": "not-found", "ActiveState": "inactive"},
        {"Id": "x@1.service", "ActiveState": "inactive"},
    )
    outcome = health_checks.check_systemd(options("systemd", units=["nginx", "gone.service", "x@*"]), Context())
    assert outcome.reason == "absent" and outcome.hint_values == {"units": "gone.service", "first": "gone.service"}
    assert outcome.error == "gone.service not-found"
    assert [(one["name"], one["restarts"]) for one in outcome.data["units"]] == [
        ("nginx.service", 3),
        ("gone.service", 0),
    ]
    assert health_checks.check_systemd(options("systemd"), Context()).status == "healthy"


def test_sizes_have_readable_units_and_patterns_contain_names():
    sizes = [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1 << 20, "1 MiB"), (3 << 30, "3 GiB"), (1 << 41, "2 TiB")]
    assert [health_checks.size(count) for count, _text in sizes] == [text for _count, text in sizes]
    assert Context(app_root="/a").fill("{app_root}/{node}") == "/a/" + os.uname().nodename
    # Of the interface that leads to others, and not the loopback where there is one.
    address = Context().fill("https://{address}:443").split("/")[2]
    assert address == probe.own_address() + ":443" and address != "127.0.0.1:443"


def test_disks_without_a_response_are_an_error_and_full_inodes_are_named():
    with pytest.raises(probe.ProbeError):
        health_checks.evaluate_disks([], 80, 90)
    assert health_checks.evaluate_disks([disk(space=10, inodes=20)], 80, 90).detail[0].key == "disk.inodes"
    assert health_checks.evaluate_disks([disk(space=20, inodes=10)], 80, 90).detail[0].key == "disk"
    outcome = health_checks.evaluate_disks([disk("/a", 85), disk("/b", 10, 95)], 80, 90)
    assert (outcome.reason, outcome.hint_values, outcome.data["usage_percent"]) == ("inodes", {"path": "/b"}, 95)
    assert health_checks.evaluate_disks([disk("/a", 85)], 80, 90).reason == "space"
    missing = {"path": "/n", "kind": "", "error": "gone", "reason": "missing"}
    assert health_checks.evaluate_disks([missing], 80, 90).status == "down"
    assert health_checks.evaluate_disks([dict(missing, reason="other")], 80, 90).status == "error"


@pytest.mark.parametrize(
    ("days", "status"), [(30, "healthy"), (29.9, "warning"), (7, "warning"), (6.9, "critical"), (0, "critical")]
)
def test_days_are_fallen_short_of_not_reached(days, status):
    assert health_checks.below(days, 30, 7) == status
    assert health_checks.below(days, None, None) == "healthy"


def test_a_text_with_a_slot_needs_a_live_release(tmp_path):
    with pytest.raises(probe.ProbeError) as caught:
        Context(app_root=str(tmp_path)).fill("worker-{slot}@h")
    assert (caught.value.state, caught.value.reason) == ("down", "live")


def test_an_environment_names_the_authority_of_the_database(environment):
    context = environment("DB_HOST=db\nDB_USER=me\nPGSSLROOTCERT=/ca\n")
    assert health_checks.postgres_target(options("postgres", port=5), context) == probe.PostgresTarget(
        host="db", port="5", user="me", sslrootcert="/ca"
    )
    # The environment of the application has nothing of another user's database.
    assert health_checks.postgres_target(options("postgres", run_as="postgres"), context) == probe.PostgresTarget(
        run_as="postgres"
    )


def test_every_page_is_requested_with_the_options_of_its_check(monkeypatch, tmp_path):
    requested = []

    def get(target, **more):
        requested.append((target, more["path"], more["host"], more["verify"]))
        assert 0 < more["timeout"] <= 9
        return probe.HttpResult(200, 0.1, "", None)

    monkeypatch.setattr(probe, "http_get", get)
    context = Context(app_root=str(tmp_path))
    wanted = options("pages", url="unix:{app_root}/s", pages=["/a", "/b"], host_header="h", timeout_seconds=9)
    assert health_checks.check_pages(dict(wanted, validate_certs=False), context).status == "healthy"
    health_checks.check_pages(dict(wanted, pages=[]), context)
    target = "unix:%s/s" % tmp_path
    assert requested == [(target, "/a", "h", False), (target, "/b", "h", False), (target, "/", "h", True)]


@pytest.mark.parametrize(
    ("ago", "good", "bad", "expected"),
    [
        (299, 0, 10, ("unhealthy", 10, 10)),
        (310, 0, 10, ("healthy", 0, 0)),
        (100, 0, 9, ("healthy", 9, 9)),
        (100, 95, 5, ("healthy", 100, 5)),  # A share is exceeded, not reached.
        (100, 94, 6, ("unhealthy", 100, 6)),
    ],
)
def test_requests_of_five_minutes_are_counted(monkeypatch, tmp_path, ago, good, bad, expected):
    result = probe.HttpResult(200, 0.1, "", None, headers={"x-request-id": "5f9e"})
    monkeypatch.setattr(probe, "http_get", lambda *_words, **_more: result)
    line = '{"msec": %f, "status": %d, "path": "/\\u001b%d/"}\n'
    statuses = [200] * good + [500] * bad
    (tmp_path / "log").write_text("".join(line % (time.time() - ago, one, at) for at, one in enumerate(statuses)))
    wanted = options("pages", url="http://x", access_log=str(tmp_path / "log"))
    outcome = health_checks.check_pages(wanted, Context(app_root=str(tmp_path)))
    assert (outcome.status, outcome.data["requests"], outcome.data["errors"]) == expected
    assert "\x1b" not in str(outcome.detail[0].values)


class Celery:
    """ReleaseCode, which notes its command and responds with an output or error."""

    def __init__(self, monkeypatch):
        from ansible.module_utils.shiftmaster.release import releasecode

        self.commands, self.made, self.response = [], [], "{}"
        monkeypatch.setattr(releasecode, "ReleaseCode", self.make)

    def make(self, release, user):
        self.made.append((release, user))
        return self

    def run(self, argv, timeout):
        self.commands.append((argv, timeout))
        if isinstance(self.response, Exception):
            raise self.response
        return mock.Mock(stdout=self.response, stderr="")


@pytest.mark.parametrize(("timeout", "wait"), [(30, "3"), (10, "2"), (1, "1")])
def test_workers_are_waited_for_within_the_time_of_the_check(monkeypatch, tmp_path, timeout, wait):
    celery = Celery(monkeypatch)
    celery.response = '{"a@h": [{"name": "celery"}], "b@x": [{"name": "celery"}]}'
    wanted = options("celery", release_dir=str(tmp_path), timeout_seconds=timeout, worker_pattern="*@h")
    outcome = health_checks.check_celery(wanted, Context(user="me"))
    assert (outcome.status, outcome.data["workers"]) == ("healthy", ["a@h"]) and outcome.data["latency_ms"] >= 0
    assert outcome.detail[0].values == {"count": 1, "names": "a@h"}
    argv = ["celery", "-A", "shiftmaster", "inspect", "active_queues", "--json", "--timeout", wait]
    assert celery.commands == [(argv, timeout)] and celery.made == [(str(tmp_path), "me")]
    outcome = health_checks.check_celery(dict(wanted, min_workers=2), Context(user="me"))
    assert (outcome.status, outcome.reason, outcome.detail[0].values["wanted"]) == ("unhealthy", "workers", 2)
    celery.response = "{}"
    outcome = health_checks.check_celery(wanted, Context(user="me"))
    assert (outcome.status, outcome.reason, outcome.error) == ("down", "workers", "{}")


def test_celery_that_cannot_be_run_is_an_error(monkeypatch, tmp_path):
    from ansible.module_utils.shiftmaster.release.releasecode import ReleaseCodeError

    celery = Celery(monkeypatch)
    for error, found in (
        (KeyError("me"), ("error", "missing")),
        (ReleaseCodeError("celery did not end"), ("down", "timeout")),
        (ReleaseCodeError("x" * 500), ("error", "missing")),
    ):
        celery.response = error
        with pytest.raises(probe.ProbeError) as caught:
            health_checks.check_celery(options("celery", release_dir=str(tmp_path)), Context())
        assert (caught.value.state, caught.value.reason) == found
    assert str(caught.value) == "x" * 300


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Traceback\nkombu.exceptions.X: redis://u:p@h\n  later", "kombu.exceptions.X: redis://***@h"),
        ("ImportError: a\nredis.exceptions.Y", "redis.exceptions.Y"),
        ("ModuleNotFoundError: a\nb", "ModuleNotFoundError: a"),
        ("AttributeError: a\nb", "AttributeError: a"),
        ("Unable to load x\nb", "Unable to load x"),
        ("Error: a\nb", "Error: a"),
        ("a\n b \n\n", "b"),
        ("", "no worker responded"),
        ("x" * 301, "x" * 300),
    ],
)
def test_the_line_with_the_reason_why_celery_failed(text, line):
    assert health_checks.celery_failure(text) == line


def test_states_of_units_that_are_not_plain():
    assert health_checks.evaluate_unit({"ActiveState": "reloading"}) == "healthy"
    assert health_checks.evaluate_unit({"LoadState": "error", "ActiveState": "active"}) == "down"


@pytest.mark.parametrize(("state", "status"), [("T", "down"), ("S", "healthy")])
def test_a_unit_whose_main_process_a_signal_has_stopped_is_down(monkeypatch, tmp_path, state, status):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(f"7 (a) b) {state} 1 7 7")
    unit = {"Id": "beat.service", "LoadState": "loaded", "ActiveState": "active", "SubState": "running", "MainPID": "7"}
    monkeypatch.setattr(probe, "unit_states", lambda _names, _timeout: [dict(unit)])
    outcome = health_checks.check_systemd(options("systemd", units=["beat"]), Context(proc=str(tmp_path)))
    assert outcome.status == status and ("stopped by a signal" in outcome.error) == (status == "down")


def test_units_are_described_where_they_are_named_or_wrong(monkeypatch):
    units(
        monkeypatch,
        {"Id": "nginx.service", "ActiveState": "active", "SubState": "running", "Result": "success"},
        {"Id": "a@1.service", "ActiveState": "failed", "SubState": "failed", "Result": "oom", "NRestarts": ""},
        {"Id": "a@2.service", "ActiveState": "active"},
    )
    outcome = health_checks.check_systemd(options("systemd", units=["nginx.service", "a@*"]), Context())
    assert (outcome.status, outcome.reason, outcome.error) == ("down", "state", "a@1.service failed (failed, oom)")
    assert outcome.data["units"] == [
        {"name": "nginx.service", "active": "active", "sub": "running", "result": "success", "restarts": 0},
        {"name": "a@1.service", "active": "failed", "sub": "failed", "result": "oom", "restarts": 0},
    ]
    units(monkeypatch, {"Id": "a@1.service", "ActiveState": "inactive"}, {"Id": "a@2.service", "ActiveState": "active"})
    outcome = health_checks.check_systemd(options("systemd", units=["a@*"]), Context())
    assert outcome.detail[0].values == {"count": 1} and outcome.data["units"] == []


def test_disks_are_checked_as_configured_and_the_worst_comes_first(monkeypatch):
    query = mock.create_autospec(probe.disk_usage, return_value=[disk("/a", 85), disk("/b", 91, 50), disk("/c", 5, 85)])
    monkeypatch.setattr(probe, "disk_usage", query)
    wanted = options("disk", paths=["/a"], exclude=["/x"], timeout_seconds=3, warning=80, critical=90)
    outcome = health_checks.check_disk(wanted, Context(proc="/p"))
    assert query.call_args == mock.call("/p", ["/a"], ["/x"], 3)
    assert [(one.key, one.values["path"]) for one in outcome.detail] == [
        ("disk.space_high", "/b"), ("disk.space_high", "/a"), ("disk.inodes_high", "/c"),
    ]  # fmt: skip
    assert (outcome.status, outcome.hint_values) == ("critical", {"path": "/b"})
    broken = [
        {"path": "/r", "error": "read-only", "reason": "readonly"},
        {"path": "/t", "error": "x", "reason": "timeout"},
    ]
    outcome = health_checks.evaluate_disks([disk(), *broken], 80, 90)
    assert (outcome.status, outcome.reason) == ("down", "problem")
    assert [one.key for one in outcome.detail] == ["disk.problem", "disk.readonly"]
    assert health_checks.evaluate_disks([disk(), broken[0]], 80, 90).reason == "readonly"
    fine = health_checks.evaluate_disks([disk("/a", 30, None), disk("/b", 20, 10)], 80, 90)
    assert fine.detail[0].key == "disk" and fine.data["usage_percent"] == 30
    assert fine.detail[0].values == {"path": "/a", "percent": 30, "count": 2, "free": "1 GiB"}


def test_dates_of_certificates(monkeypatch):
    def evaluate_at(days, served=None, start=-10, **more):
        monkeypatch.setattr(probe, "certificate_file", lambda _path: [certificate(days, start)])
        monkeypatch.setattr(probe, "certificate_served", lambda *_words: served)
        return health_checks.check_certificate(options("certificate", file="/c", **more), Context(), NOW)

    outcome = evaluate_at(-2.5)
    assert (outcome.detail[0].key, outcome.detail[0].values["days"]) == ("certificate.expired", 2)
    # It begins and ends at this second.
    assert evaluate_at(0).detail[0].key == "certificate" and evaluate_at(9, start=0).detail[0].key == "certificate"
    assert evaluate_at(50).detail[0].values == {"date": "2026-03-22", "days": 50}
    # Another certificate is served: the one that ends first counts, and determines the action.
    newer = evaluate_at(300, served=certificate(200), url="localhost")
    assert (newer.status, newer.reason, newer.data["served_differs"]) == ("warning", "differs", True)
    served = certificate(200)._replace(names=("www.example.org",))
    other = evaluate_at(300, served=served, url="localhost", server_name="shift.test")
    assert (other.status, other.reason, other.detail[0].key) == ("critical", "differs", "certificate.name")
    other = evaluate_at(200, served=served, url="localhost", server_name="shift.test")
    assert (other.status, other.reason, other.detail[0].key) == ("critical", "certificate", "certificate.name")
    right = evaluate_at(300, served=served, url="localhost", server_name="www.example.org")
    assert "certificate.name" not in [one.key for one in right.detail]
    older = evaluate_at(3, served=certificate(200), url="localhost")
    assert (older.status, older.reason) == ("critical", "expiry")
    assert [one.key for one in older.detail] == ["certificate", "certificate.differs"]


def test_the_clock_of_a_container_is_its_machines_and_a_state_is_shown_as_it_is(monkeypatch):
    state = {"synchronised": False, "offset_seconds": 0.25, "source": "s", "container": True}
    query = mock.Mock(return_value=state)
    monkeypatch.setattr(probe, "clock_state", query)
    outcome = health_checks.check_clock(options("clock", timeout_seconds=3), Context())
    assert (outcome.status, outcome.data, query.call_args) == ("warning", state, mock.call(3))
    outcome = health_checks.evaluate_clock(dict(state, synchronised=True), 0.1, 1)
    assert outcome.detail[0].values == {"source": "s", "milliseconds": 250}
    assert health_checks.evaluate_clock(dict(state, synchronised=None), 0.1, 1).detail[0].key == "clock.container"
