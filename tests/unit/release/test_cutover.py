"""The parts of the cutover that evaluate texts; its phases run in the scenarios release and faults."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.host import units
from ansible.module_utils.shiftmaster.release import cutover, gate, releasecode, releases, slots, workers
from ansible.module_utils.shiftmaster.release.layout import SLOTS, Layout
from ansible.module_utils.shiftmaster.release.state import State

LOG = """\
2026-01-01 12:00:00,123 [ERROR] gunicorn.error: Exception in worker process
Traceback (most recent call last):
  File "/x/wsgi.py", line 1, in <module>
    import nothing_like_it
ModuleNotFoundError: No module named 'nothing_like_it'
2026-01-01 12:00:01,123 [ERROR] django.request: Internal Server Error: /
django.core.exceptions.ImproperlyConfigured: DJANGO_SECRET_KEY is not set
ModuleNotFoundError: No module named 'nothing_like_it'
"""


def test_causes_are_the_last_lines_of_tracebacks_each_once():
    assert gate.causes(LOG) == [
        "ModuleNotFoundError: No module named 'nothing_like_it'",
        "django.core.exceptions.ImproperlyConfigured: DJANGO_SECRET_KEY is not set",
    ]


def test_causes_are_the_newest_ones():
    text = "".join(f"ValueError: {number}\n" for number in range(9))
    assert gate.causes(text) == ["ValueError: 6", "ValueError: 7", "ValueError: 8"]


def test_failed_checks_name_part_and_error():
    body = json.dumps(
        {
            "checks": {
                "worker": {"status": "down"},
                "cache": {"status": "healthy"},
                "database": {"status": "unhealthy", "error": "OperationalError: refused"},
            }
        }
    ).encode()
    assert gate._failed_checks(body) == "database: OperationalError: refused; worker: down"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"checks": 3}', b"[" * 60_000])
def test_a_response_in_another_form_is_ignored(body):
    assert gate._failed_checks(body) == "" and gate._json(body).get("release") is None


@pytest.mark.parametrize(
    "celery, beat, kinds",
    [("", True, ["web"]), ("app", False, ["web", "worker"]), ("app", True, ["web", "worker", "beat"])],
)
def test_wanted_units(celery, beat, kinds):
    found = slots.wanted_units({"celery_application": celery, "beat": beat}, "blue")
    assert found == [f"shiftmaster-{kind}@blue.service" for kind in kinds]


@pytest.mark.parametrize("gate, seconds", [(40, 61), (240, 241)])
def test_the_releases_code_may_take_as_long_to_load_as_its_worker(tmp_path, monkeypatch, gate, seconds):
    """A host that needs longer sets shiftmaster_worker_gate_seconds."""
    requested = []

    class Code:
        def call(self, request, timeout):
            requested.append(timeout)
            return {"alive": True}

    layout = Layout(str(tmp_path))
    os.makedirs(layout.state)
    state = State(layout)
    state.begin(**dict.fromkeys(("kind", "from", "from_slot", "to_slot", "phase", "run_id")), to="x")
    run = cutover.Cutover(layout, state, {"worker_gate_seconds": gate, "celery_application": "app"})
    monkeypatch.setattr(run, "_driver_of", lambda release: Code())
    assert run._call({"op": "ping", "seconds": 1}) == {"alive": True} and requested == [seconds]


def test_accept_queue_counts_connections_that_are_not_accepted(tmp_path):
    if subprocess.run(["ss", "-V"], capture_output=True, check=False).returncode:
        pytest.fail("ss (iproute2) is needed")
    path = str(tmp_path / "web.sock")
    assert slots.accept_queue(path) == 0
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(8)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in clients:
            client.connect(path)
        assert slots.accept_queue(path) == 3
        server.accept()[0].close()
        assert slots.accept_queue(path) == 2
        for client in clients:
            client.close()


def test_the_processes_of_a_unit_are_those_of_its_control_group():
    mine = Path("/proc/self/cgroup").read_text().splitlines()[0].rsplit("/", 1)[1]
    assert os.getpid() in units.processes(mine)
    assert units.processes("shiftmaster-web@red.service") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a priority above the usual one needs root")
def test_a_unit_yields_at_once_and_not_for_ever(monkeypatch):
    with subprocess.Popen(["sleep", "30"]) as child:
        monkeypatch.setattr(units, "processes", lambda _name: [child.pid])
        try:
            with units.yielding("x.service", 60):
                deadline = time.monotonic() + 20
                while os.sched_getscheduler(child.pid) != os.SCHED_IDLE and time.monotonic() < deadline:
                    time.sleep(0.01)
                assert os.sched_getscheduler(child.pid) == os.SCHED_IDLE
            assert os.sched_getscheduler(child.pid) == os.SCHED_IDLE
            with units.yielding("x.service", 0):
                pass
            assert os.sched_getscheduler(child.pid) == os.SCHED_OTHER
        finally:
            child.kill()


def test_the_canary_is_of_one_host_and_slot(monkeypatch):
    """Workers of several hosts share their broker: another host's worker took it from a queue of the slot alone."""
    names = set()
    for node in ("app1", "app2"):
        monkeypatch.setattr(workers.os, "uname", lambda node=node: os.uname_result(("Linux", node, "", "", "")))
        names |= {workers.canary_queue(slot) for slot in ("blue", "green")}
    assert len(names) == 4


def test_a_failed_state_of_a_worker_is_reset_when_the_other_slot_takes_over(tmp_path, monkeypatch):
    """`systemctl restart shiftmaster` fixes it; its failed unit would stay in the health report for ever."""
    done = []
    monkeypatch.setattr(units, "systemctl", lambda *words, **_more: done.append(words))
    monkeypatch.setattr(units, "active_state", lambda name: "failed" if "worker" in name else "inactive")
    monkeypatch.setattr(releases, "manifest", lambda _layout, _release: {"tasks": ["mail"]})
    layout = Layout(str(tmp_path))
    (Path(layout.shared) / "unknown-tasks").mkdir(parents=True)
    engine = cutover.Cutover.__new__(cutover.Cutover)
    engine.layout, engine.options = layout, {"celery_application": "x", "beat": False, "worker_stop_seconds": 1}
    engine.options["web_stop_seconds"] = 1
    engine._queues, engine._free_worker = (lambda _release: []), (lambda *_arguments: None)
    engine._pass_tasks("one", "blue", "one", "green")
    assert ("reset-failed", "shiftmaster-worker@blue.service") in done
    assert not any("--no-block" in words for words in done)


def test_the_cause_is_found_where_the_application_writes_json(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "journal", lambda *_arguments: "")
    error, own = tmp_path / "error.log", tmp_path / "app.log"
    engine = cutover.Cutover.__new__(cutover.Cutover)
    engine.options = {"logs": [str(error), str(own)]}
    error.write_text("[INFO] before\n")
    engine.note_log()
    event = {
        "@timestamp": "2026-01-01T12:00:00.000Z", "log": {"level": "ERROR", "logger": "django.request"},
        "message": "Internal Server Error: /", "error": {"stack_trace": "Traceback:\nValueError: no such shift"},
    }  # fmt: skip
    own.write_text(json.dumps(event, separators=(",", ":")) + "\n")
    output = engine.evidence("blue")
    assert output.startswith("cause: ValueError: no such shift\n") and "before" not in output
    assert f"{error}, {own} and `journalctl" in output
    own.unlink()
    assert "app.log" not in engine.evidence("blue")


def test_a_long_line_does_not_fill_messages_and_the_audit_log(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "journal", lambda *_arguments: "y" * 40_000)
    log = tmp_path / "error.log"
    log.write_text("ValueError: %s\nlast\n" % ("x" * 60_000))
    engine = cutover.Cutover.__new__(cutover.Cutover)
    engine.options = {"logs": [str(log)]}
    output = engine.evidence("blue")
    assert len(output) < 4000 and "last" in output
    assert len(releasecode.tail("x" * 1_000_000 + "\nlast")) < 2000


ONE, TWO = "20260101T000000Z-0a1b2c3d01", "20260102T000000Z-0a1b2c3d02"


@pytest.fixture
def switched(tmp_path, monkeypatch):
    """An engine whose traffic has moved from one (blue) to two (green), with systemd as a dictionary of states."""
    layout = Layout(str(tmp_path))
    for path in (layout.state, Path(layout.shared) / "unknown-tasks", layout.release(ONE), layout.release(TWO)):
        Path(path).mkdir(parents=True, exist_ok=True)
    for slot, release in (("blue", ONE), ("green", TWO)):
        layout.point_slot(slot, release)
    layout.activate("green")
    engine = cutover.Cutover(
        layout,
        State(layout),
        {"celery_application": "x", "beat": False, "several_hosts": False, "worker_gate_seconds": 1}
        | {"worker_stop_seconds": 1, "web_stop_seconds": 1}
        | {"drain_grace_seconds": 0, "drain_limit_seconds": 0, "hooks": [], "run_id": "r", "who": "w", "user": "u"},
    )
    transition = {"kind": "deploy", "from": ONE, "to": TWO, "from_slot": "blue", "to_slot": "green"}
    engine.state.begin(**transition, phase="handover", run_id="r")
    engine.units = {f"shiftmaster-{kind}@{slot}.service": "active" for kind in units.KINDS for slot in SLOTS}

    def systemctl(verb, *words, **_more):
        for name in words:
            if name in engine.units:
                engine.units[name] = {"start": "active", "restart": "active"}.get(verb, "inactive")

    monkeypatch.setattr(units, "systemctl", systemctl)
    monkeypatch.setattr(units, "active_state", lambda name: engine.units.get(name, "inactive"))
    monkeypatch.setattr(units, "yielding", lambda *_arguments: contextlib.nullcontext())
    monkeypatch.setattr(slots, "accept_queue", lambda _path: 0)
    engine._driver_of = lambda _release: None
    return engine


@pytest.mark.parametrize("error", [KeyError("alive"), TypeError("no list"), RecursionError(), ValueError("x")])
def test_traffic_is_reverted_and_the_failed_release_is_stopped_on_any_error(switched, error):
    def query(_request):
        raise error

    def fail():
        raise error

    switched._call = query
    with pytest.raises(slots.CutoverError):
        switched._or_back(fail)
    assert switched.layout.current() == ONE
    assert switched.units["shiftmaster-web@blue.service"] == "active"
    assert {switched.units[f"shiftmaster-{kind}@green.service"] for kind in units.KINDS} == {"inactive"}
    # The next run finishes it.
    assert switched.state.transition["phase"] == "revert"
    switched._call = lambda request: {"alive": True, "confirmed": True, "quarantined": [], "replayed": []}
    switched.recover()
    assert switched.state.transition is None and switched.layout.current() == ONE


def test_a_response_that_breaks_the_recovery_reverts(switched, monkeypatch):
    def gate(_slot, _target):
        raise KeyError("release")

    switched._gate_web = gate
    switched._call = lambda request: {"alive": True, "confirmed": True, "quarantined": [], "replayed": []}
    switched.recover()
    assert switched.state.transition is None and switched.layout.current() == ONE
