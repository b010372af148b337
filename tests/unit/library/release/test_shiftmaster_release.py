"""shiftmaster_release: what each state requires of a cutover, rejects and returns; the cutover itself is a fake."""

from __future__ import annotations

import json
import os
import time
from collections import namedtuple
from pathlib import Path

import pytest
import shiftmaster_release as module
from ansible.module_utils.shiftmaster.host.probe import HttpResult
from ansible.module_utils.shiftmaster.release.layout import Layout
from ansible.module_utils.shiftmaster.release.slots import CutoverError
from ansible.module_utils.shiftmaster.release.state import State

ONE, TWO, OLD = "20260101T000000Z-aaaaaaa", "20260202T000000Z-bbbbbbb", "20250101T000000Z-0000000"
Result = namedtuple("Result", "breach requests errors p95_ms")
STEP = {"kind": "deploy", "from": ONE, "to": TWO, "from_slot": "blue", "to_slot": "green", "phase": "watch"}


class FakeCutover:
    """Notes each call; fails where it shall."""

    timings, notes = {"gate": 1.5}, ["a note"]

    def __init__(self, site):
        self.site = site

    def __call__(self, layout, state, options):
        self.site.options, self.state = options, state
        return self

    def __getattr__(self, name):
        def call(*words, **more):
            self.site.calls.append((name, *words, *sorted(more.items())))
            if name in self.site.fails:
                raise CutoverError("%s failed" % name, reverted=True)
            if name in ("finish", "revert", "go_back"):
                self.state.end()
            return self.site.responses.get(name)

        return call

    def deep_health(self, _slot):
        return HttpResult(self.site.status, 0.1, "{}", None)

    def log(self):
        return {"timings": self.timings, "notes": self.notes}

    def called(self, release):
        return "version of %s" % release


class Site:
    def __init__(self, tmp_path, monkeypatch, run_module):
        self.layout = Layout(str(tmp_path / "root"))
        os.makedirs(self.layout.state)
        for name, version in ((OLD, "0.9"), (ONE, "1.0"), (TWO, "2.0")):
            directory = Path(self.layout.release(name))
            directory.mkdir(parents=True)
            manifest = {"version": version, "revision": name[-7:] * 6, "config_sha256": "c" * 64}
            (directory / "manifest.json").write_text(json.dumps(manifest))
        self.layout.point_slot("blue", ONE)
        self.layout.activate("blue")
        state = State(self.layout)
        state.set_status(OLD, "live")
        state.set_status(ONE, "live", previous=OLD)
        state.set_status(TWO, "ready")
        self.calls, self.fails, self.options, self.result = [], set(), None, Result("", 100, 0, 50.0)
        self.responses = {
            "old_tasks": ["b"], "stop_others": [], "ensure_running": [], "recover": None, "worker_problem": "",
            "evidence": "evidence", "missing": [], "others": [],
        }  # fmt: skip
        self.status, self.umbrella, self.watched = 200, "active", []
        monkeypatch.setattr(module, "Cutover", FakeCutover(self))
        monkeypatch.setattr(module, "active_state", lambda _name: self.umbrella)
        monkeypatch.setattr(module, "properties", lambda *_: {"ActiveState": self.umbrella, "UnitFileState": "enabled"})
        monkeypatch.setattr(module, "watch", lambda options: self.watched.append(options) or self.result)
        self.run_module = run_module

    def run(self, state, check_mode=False, **more):
        given = {"root": self.layout.root, "run_id": "run-1", "who": "me", "state": state}
        return self.run_module(module, check_mode=check_mode, **dict(given, **more))

    def begin(self, **more):
        State(self.layout).begin(**dict(STEP, run_id="run-1", **more))
        return self

    def status_of(self, name):
        return State(self.layout).status(name)

    def names(self):
        return [call[0] for call in self.calls]

    def events(self, name):
        path = Path(self.layout.state, "audit.jsonl")
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [one for one in found if one["event"] == name]


@pytest.fixture
def site(tmp_path, monkeypatch, run_module):
    return Site(tmp_path, monkeypatch, run_module)


def test_a_query_names_the_live_release_and_the_target_of_a_rollback(site):
    found = site.run("query", release="1.0")
    assert (found["current"], found["current_version"], found["previous"]) == (ONE, "1.0", OLD)
    assert found["current_is_complete"] and found["active_slot"] == "blue" and found["transition"] == {}
    assert found["release"] == ONE and found["running"] and not found["switched"] and len(found["releases"]) == 3
    site.umbrella = "failed"
    assert not site.run("query")["running"]
    site.begin(to_slot="blue")
    assert site.run("query")["switched"] and site.run("query")["transition"]["to"] == TWO
    os.unlink(site.layout.active)
    found = site.run("query")
    assert found["current"] == "" and not found["running"] and not found["current_is_complete"]
    assert set(site.names()) <= {"missing", "others"}
    assert site.run("query", revision="1" * 40)["pending_changes"] == ["no release is live"]


def test_a_release_that_is_not_there_is_refused_with_those_that_are(site):
    result = site.run("active", release="9.9")
    assert result["failed"] and "no release 9.9" in result["msg"] and "%s (1.0, live)" % ONE in result["msg"]


@pytest.mark.parametrize(
    ("its", "differs"),
    [("DB_PASSWORD=a\nPYTHONPATH=/old\n", False), ("DB_PASSWORD=b\n", True), ("", True), ("DB_PASSWORD=a\nX=\n", True)],
)
def test_an_environment_with_the_same_secrets_needs_no_login(site, its, differs):
    for name, text in ((OLD, its), (ONE, "DB_PASSWORD=a\nPYTHONPATH=/new\n")):
        Path(site.layout.release(name), "env").write_text(text)
    assert site.run("query")["environment_differs"] is differs
    assert site.run("target", release="0.9")["environment_differs"] is differs


# --- rollback's target -----------------------------------------------------------------------------------------------


def test_a_rollback_to_a_release_whose_python_is_gone_is_refused(site):
    directory = Path(site.layout.release(OLD), "venv/bin")
    directory.mkdir(parents=True)
    (directory / "python").symlink_to("/usr/bin/python3.1")
    assert site.run("query")["previous"] == ""
    assert "-e shiftmaster_version=0.9" in site.run("target")["msg"]


def test_a_rollback_selects_the_previous_or_the_named_release(site):
    found = site.run("target")
    assert not found["changed"] and (found["release"], found["version"], found["revision"]) == (
        OLD,
        "0.9",
        "0000000" * 6,
    )
    assert site.run("target", release="0.9")["release"] == OLD


def test_a_rollback_to_what_is_bad_or_was_never_live_is_refused(site):
    assert "never live" in site.run("target", release="2.0")["msg"]
    State(site.layout).set_status(OLD, "bad", "5xx")
    assert "marked bad: 5xx" in site.run("target", release="0.9")["msg"]
    assert "no older release to go back to" in site.run("target")["msg"]
    os.unlink(site.layout.active)
    assert "no release is live" in site.run("target")["msg"]


# --- active ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "calls", "switched"),
    [
        ("complete", [("prepare", TWO, "deploy"), ("old_tasks",), ("move", ("with_tasks", True))], True),
        ("prepare", [("prepare", TWO, "deploy"), ("old_tasks",)], False),
        ("move", [("old_tasks",), ("move", ("with_tasks", True))], True),
        ("traffic", [("old_tasks",), ("move", ("with_tasks", False))], True),
        ("end_tasks", [("old_tasks",), ("end_tasks",)], False),
        ("tasks", [("old_tasks",), ("take_tasks",)], True),
    ],
)
def test_each_part_of_a_cutover_runs_its_own_steps(site, part, calls, switched):
    if part not in ("complete", "prepare"):
        site.begin()
    result = site.run("active", release="2.0", part=part)
    assert site.calls == calls and result["changed"] and result["switched"] == switched
    assert result["release"] == TWO and result["old_tasks"] == ["b"] and result["timings"] == {"gate": 1.5}
    assert result["notes"] == ["a note"] and result["diff"]["after"] == "%s 2.0\n" % TWO


def test_options_of_the_module_reach_the_cutover(site):
    site.run(
        "active", release="2.0", celery_application="app", celery_queues=["q"], beat=False, several_hosts=True,
        user="u", health={"path": "/h", "host": "h", "attempts": 2, "delay_seconds": 3, "timeout_seconds": 4,
        "worker_seconds": 5},
        drain_grace_seconds=6, drain_limit_seconds=7, worker_stop_seconds=8, web_stop_seconds=9, log_dir="/logs",
    )  # fmt: skip
    wanted = {
        "user": "u", "celery_application": "app", "celery_queues": ["q"], "beat": False, "several_hosts": True,
        "health_path": "/h", "health_host": "h", "watch_paths": ["/"], "gate_attempts": 2, "gate_delay_seconds": 3.0,
        "gate_timeout_seconds": 4.0, "worker_gate_seconds": 5, "drain_grace_seconds": 6.0, "drain_limit_seconds": 7.0,
        "worker_stop_seconds": 8, "web_stop_seconds": 9, "hooks": [], "run_id": "run-1", "who": "me",
        "logs": ["/logs/error.log", "/logs/app.log", site.layout.shared + "/logs/*.log"],
    }  # fmt: skip
    assert {key: site.options[key] for key in wanted} == wanted


def test_a_healthy_live_release_is_unchanged_unless_a_restart_is_requested(site):
    assert not site.run("active", release="1.0")["changed"] and site.calls == []
    assert site.run("active", release="1.0", kind="restart")["changed"] and site.calls[0] == ("prepare", ONE, "restart")
    site.calls.clear()
    site.status = 503
    assert site.run("active", release="1.0")["changed"] and site.calls


def test_check_mode_of_a_cutover_touches_nothing(site):
    assert site.run("active", check_mode=True, release="2.0")["changed"]
    site.begin()
    assert not site.run("active", check_mode=True, release="2.0", part="move")["changed"]
    assert site.calls == []


def test_a_part_of_a_cutover_belongs_to_the_run_that_prepared_it(site):
    assert not site.run("active", release="2.0", part="move")["changed"]
    State(site.layout).begin(**dict(STEP, run_id="other"))
    assert "of run other is under way" in site.run("active", release="2.0", part="move")["msg"]
    State(site.layout).begin(**dict(STEP, run_id="run-1", to=OLD))
    assert "is under way" in site.run("active", release="2.0", part="move")["msg"] and site.calls == []


def test_a_bad_release_is_not_switched_to(site):
    State(site.layout).set_status(TWO, "bad", "broke")
    assert "marked bad: broke" in site.run("active", release="2.0")["msg"] and site.calls == []


def test_a_cutover_that_fails_shows_whether_the_old_release_is_back(site):
    site.fails = {"move"}
    result = site.run("active", release="2.0")
    assert result["failed"] and result["reverted"] and result["release"] == TWO and result["notes"] == ["a note"]


# --- recovered -------------------------------------------------------------------------------------------------------


def test_a_killed_run_is_recovered_and_reported(site):
    assert site.run("recovered") == dict(site.run("recovered"), changed=False, notes=[])
    site.responses.update(recover="printed", stop_others=["web@green"], ensure_running=["web@blue"])
    result = site.run("recovered", background=False)
    assert result["changed"] and [note.split()[0] for note in result["notes"]] == ["printed", "stopped", "started"]
    assert ("ensure_running", False) in site.calls
    site.calls.clear()
    assert not site.run("recovered", check_mode=True)["changed"]
    site.begin()
    assert site.run("recovered", check_mode=True)["changed"] and site.calls == []


@pytest.mark.parametrize(("live", "held"), [(ONE, True), (TWO, False)])
def test_old_background_work_is_held_while_a_page_is_up(site, live, held):
    """After migrations that the old code does not survive. A new version that is finished fits them."""
    site.begin()
    site.layout.point_slot(site.layout.active_slot(), live)
    site.run("recovered", background=False)
    assert (("hold_background",) in site.calls) == held
    site.calls.clear()
    site.run("recovered")
    assert ("hold_background",) not in site.calls


def test_old_background_work_stays_held_behind_an_operators_page(site):
    """The run that changes the schema leaves such a page up: then no page of a run shows that it did not end."""
    site.run("held", check_mode=True)
    assert site.calls == []
    assert site.run("held")["changed"] and site.names() == ["hold_background"]
    assert not site.run("query")["background_held"]
    Path(site.layout.held).touch()
    assert site.run("query")["background_held"]
    site.calls.clear()
    site.begin()
    site.run("recovered")
    assert ("hold_background",) in site.calls and ("ensure_running", False) in site.calls


def test_an_edited_release_is_not_started_again(site):
    """It may be unable to start, and the next step builds it again."""
    site.responses["ensure_running"] = ["web@blue"]
    module.releases.amend_manifest(site.layout, ONE, files_sha256="of the build")
    assert site.run("recovered")["notes"] == [] and ("ensure_running", True) not in site.calls


# --- watched ---------------------------------------------------------------------------------------------------------


def test_healthy_traffic_is_reported(site):
    site.begin()
    result = site.run("watched", health={"host": "h"})
    assert not result.get("failed") and (result["requests"], result["errors"], result["p95_ms"]) == (100, 0, 50.0)
    assert site.watched[0]["host"] == "h" and time.time() - site.watched[0]["before"][1] < 60
    assert site.names() == ["note_log", "worker_problem"]
    assert result["release"] == TWO


def test_failing_traffic_is_reverted(site):
    site.begin()
    site.result = Result("5 errors", 100, 5, 50.0)
    result = site.run("watched")
    assert result["failed"] and result["reverted"] and result["errors"] == 5 and "evidence" in result["msg"]
    assert "version of %s is live again" % ONE in result["msg"]
    assert site.names() == ["note_log", "evidence", "go_back"]
    assert site.calls[-1] == ("go_back", "after the switch 5 errors", ("bad", True))


def test_a_failing_first_release_has_no_rollback_target(site):
    State(site.layout).begin(**dict(STEP, run_id="run-1", **{"from": None}))
    site.result = Result("5 errors", 100, 5, 50.0)
    assert "no earlier release" in site.run("watched")["msg"]


def test_a_missing_worker_breaks_the_release(site):
    site.begin()
    site.responses["worker_problem"] = "no ping"
    result = site.run("watched")
    assert result["failed"] and "no ping" in result["msg"] and "go_back" in site.names()


def test_an_operator_who_stops_the_application_does_not_break_the_release(site):
    site.begin()
    site.result, site.umbrella = Result("5 errors", 100, 5, 50.0), "inactive"
    result = site.run("watched")
    assert result["failed"] and "somebody has stopped" in result["msg"] and site.names()[-1] == "finish"
    assert "go_back" not in site.names()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_during_maintenance_traffic_is_not_evaluated(site, monkeypatch, when):
    site.begin()
    page = Path(site.layout.shared, "maintenance/on")
    page.parent.mkdir()
    site.result = Result("5 errors", 100, 5, 50.0)
    if when == "before":
        page.touch()
    else:
        monkeypatch.setattr(module, "watch", lambda _options: page.touch() or site.result)
    result = site.run("watched")
    assert not result.get("failed") and len(result["notes"]) == 1 and result["requests"] == 0
    assert "go_back" not in site.names()


def test_without_a_cutover_nothing_is_watched(site):
    assert site.run("watched")["release"] == ONE
    site.begin()
    assert site.run("watched", check_mode=True)["requests"] == 0
    assert site.calls == [] and site.watched == []


# --- finished, traffic_reverted, restored -----------------------------------------------------------------------------


def test_a_finished_cutover_records_its_migrations_once(site):
    site.begin()
    result = site.run("finished", applied_migrations=["a.0001"])
    assert result["changed"] and result["release"] == TWO and site.names() == ["finish"]
    manifest = Path(site.layout.release(TWO), "manifest.json")
    assert json.loads(manifest.read_text())["applied_when_live"] == ["a.0001"]
    site.begin()
    site.run("finished", applied_migrations=["a.0002"])
    assert json.loads(manifest.read_text())["applied_when_live"] == ["a.0001"]


def test_without_known_migrations_a_finished_cutover_records_none(site):
    site.begin()
    site.run("finished")
    assert "applied_when_live" not in json.loads(Path(site.layout.release(TWO), "manifest.json").read_text())
    site.begin()
    site.calls.clear()
    assert site.run("finished", check_mode=True)["changed"] and site.calls == []


def test_an_active_release_gets_the_status_live(site):
    assert not site.run("finished")["changed"]
    State(site.layout).set_status(ONE, "ready")
    assert not site.run("finished", check_mode=True)["changed"] and site.status_of(ONE) == "ready"
    assert site.run("finished")["changed"] and site.status_of(ONE) == "live"
    site.responses["ensure_running"] = ["web"]
    assert site.run("finished")["changed"]


@pytest.mark.parametrize("state", ["traffic_reverted", "restored"])
def test_a_cutover_of_another_run_is_not_reverted(site, state):
    State(site.layout).begin(**dict(STEP, run_id="other"))
    result = site.run(state, reason="x")
    assert not result["changed"] and result["release"] == ONE
    assert not {"revert_traffic", "revert", "finish"} & set(site.names())


@pytest.mark.parametrize("state", ["traffic_reverted", "restored"])
def test_a_cutover_that_had_begun_to_finish_is_finished(site, state):
    site.begin()
    State(site.layout).phase("finish")
    result = site.run(state)
    assert result["changed"] and result["release"] == TWO and site.names() == ["finish"]


def test_traffic_of_a_cutover_is_reverted_with_its_reason(site):
    site.begin()
    assert site.run("traffic_reverted", check_mode=True)["changed"] and site.calls == []
    result = site.run("traffic_reverted", reason="another host failed")
    assert result["changed"] and result["release"] == ONE and site.calls == [("revert_traffic", "another host failed")]
    site.calls.clear()
    site.run("traffic_reverted")
    assert site.calls == [("revert_traffic", "requested")]


def test_a_cutover_is_restored_and_its_release_is_not_bad(site):
    site.begin()
    assert site.run("restored", check_mode=True)["changed"] and site.calls == []
    result = site.run("restored", reason="why")
    assert result["changed"] and result["release"] == ONE and result["timings"] == {"gate": 1.5}
    assert site.calls == [("revert", "why", ("bad", False))]
    site.calls.clear()
    site.begin()
    site.run("restored", background=False)
    assert site.calls == [("revert", "requested", ("bad", False)), ("hold_background",)]


def test_without_a_cutover_stopped_units_are_started(site):
    assert not site.run("restored")["changed"]
    assert not site.run("restored", check_mode=True)["changed"]
    site.responses["ensure_running"] = ["web"]
    result = site.run("restored")
    assert result["changed"] and result["notes"] == ["started web again"]


# --- marks, hooks and what goes --------------------------------------------------------------------------------------


def test_a_live_release_that_is_not_healthy_is_suspect(site):
    assert not site.run("suspect", release="1.0")["changed"]
    assert site.run("suspect", release="0.9", check_mode=True)["changed"]
    assert not State(site.layout).is_suspect(OLD)
    assert site.run("suspect", release="0.9")["changed"] and State(site.layout).is_suspect(OLD)
    assert not site.run("suspect", release="0.9")["changed"] and not site.run("suspect", release="2.0")["changed"]
    site.status = 503
    assert site.run("suspect", release="1.0")["changed"] and State(site.layout).is_suspect(ONE)


def test_a_bad_release_is_marked_once_with_its_reason(site):
    assert site.run("bad", release="2.0", check_mode=True)["changed"] and site.status_of(TWO) == "ready"
    assert site.run("bad", release="2.0", reason="5xx")["changed"]
    assert State(site.layout).releases[TWO]["reason"] == "5xx"
    (event,) = site.events("marked_bad")
    assert (event["release"], event["reason"], event["run_id"], event["who"]) == (TWO, "5xx", "run-1", "me")
    assert not site.run("bad", release="2.0")["changed"]


def test_hooks_of_a_phase_run_in_their_release(site, monkeypatch):
    ran = []
    monkeypatch.setattr(
        module.releases, "run_hooks",
        lambda path, hooks, phase, user: ran.append((path, [one["name"] for one in hooks], phase, user))
        or [{"name": "one", "output": "x"}, {"name": "two", "output": ""}],
    )  # fmt: skip
    hooks = [
        {"name": "one", "phase": "before_migrate", "command": "true"},
        {"name": "other", "phase": "after_migrate", "command": "true"},
    ]
    more = {"release": "2.0", "hooks": hooks, "user": "u"}
    assert site.run("hook", check_mode=True, phase="before_migrate", **more)["notes"] == ["hook one would run"]
    assert ran == [] and not site.run("hook", phase="after_build", **more)["changed"]
    result = site.run("hook", phase="before_migrate", **more)
    assert result["changed"] and result["notes"] == ["hook one: x", "hook two: done"]
    assert ran == [(site.layout.release(TWO), ["one"], "before_migrate", "u")]


def test_a_live_or_linked_release_is_not_removed(site):
    site.layout.point_slot("green", TWO)
    for version in ("1.0", "2.0"):
        assert "is live" in site.run("absent", release=version)["msg"]
    assert site.run("absent", release="0.9", check_mode=True)["changed"] and os.path.isdir(site.layout.release(OLD))
    assert site.run("absent", release="0.9")["changed"] and not os.path.exists(site.layout.release(OLD))
    assert site.events("removed")[0]["release"] == OLD
    assert not site.run("absent", release="0.9")["changed"]


def test_a_version_of_several_releases_is_not_removed(site):
    Path(site.layout.release(TWO), "manifest.json").write_text('{"version": "0.9", "revision": "x"}')
    assert "several releases" in site.run("absent", release="0.9")["msg"] and os.path.isdir(site.layout.release(OLD))


def test_pruning_removes_planned_releases_and_then_updates_static_files(site, monkeypatch):
    plans, unions = [], []
    monkeypatch.setattr(
        module.releases, "prune_plan", lambda _layout, _state, keep, applied: plans.append((keep, applied)) or [OLD]
    )
    monkeypatch.setattr(module.releases, "publish_static", lambda *words: unions.append(words))
    assert site.run("pruned", check_mode=True, keep=2)["removed"] == [OLD] and os.path.isdir(site.layout.release(OLD))
    result = site.run("pruned", keep=2, applied_migrations=["a.0001"])
    assert result["changed"] and plans[-1] == (2, ["a.0001"]) and not os.path.exists(site.layout.release(OLD))
    assert len(unions) == 1 and site.events("pruned")[0]["release"] == OLD
    monkeypatch.setattr(module.releases, "prune_plan", lambda *_words: [])
    assert not site.run("pruned")["changed"] and len(unions) == 1


def test_an_event_is_audited_while_another_run_holds_the_host(site):
    with module.exclusive(site.layout):
        site.run("audited", event="migrated", reason="r", release="2.0")
    (event,) = site.events("migrated")
    assert (event["reason"], event["release"], event["run_id"], event["who"]) == ("r", "2.0", "run-1", "me")
    site.run("audited", check_mode=True, event="other")
    assert site.events("other") == []


@pytest.mark.parametrize(("number", "advised"), [(28, True), (122, True), (13, False)])
def test_a_full_disk_is_reported_with_advice(site, monkeypatch, number, advised):
    def full(*_words):
        raise OSError(number, "x")

    monkeypatch.setattr(module.releases, "run_hooks", full)
    hooks = [{"name": "one", "phase": "after_build", "command": "true"}]
    result = site.run("hook", release="2.0", phase="after_build", hooks=hooks)
    assert result["failed"] and ("Make room" in result["msg"]) == advised and result["reverted"] is False


# --- present ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def builds(site, monkeypatch):
    made = []

    class Build:
        timings = {"pip": 3.0}

        def __init__(self, layout, state, options):
            made.append(options)

        def run(self):
            return TWO

    monkeypatch.setattr(module.releases, "Build", Build)
    return made


def test_a_release_that_is_there_is_not_built_again(site, builds, monkeypatch):
    monkeypatch.setattr(module.releases, "find", lambda *_words: TWO)
    result = site.run("present", revision="b" * 40, archive="/a.tar")
    assert not result["changed"] and result["release"] == TWO and builds == []


def test_a_new_release_is_built_from_its_archive(site, builds, monkeypatch):
    monkeypatch.setattr(module.releases, "find", lambda *_words: None)
    planned = site.run("present", check_mode=True, revision="b" * 40, archive="/a.tar")
    assert planned["changed"] and planned["active_slot"] == "blue" and builds == []
    result = site.run("present", revision="b" * 40)
    assert not result["changed"] and result["release"] == "" and builds == []
    result = site.run(
        "present", revision="b" * 40, archive="/a.tar", build={"environment": {"A": "1", "N": 2}}, user="u",
        build_user="v", log_dir="/logs", build_timeout_seconds=7, celery_application="app", wheels_dir="/w",
    )  # fmt: skip
    assert result["changed"] and result["release"] == TWO and result["timings"] == {"pip": 3.0}
    (options,) = builds
    assert options["environment"] == {"A": "1", "N": "2"} and options["archive"] == "/a.tar"
    assert options["version"] == "b" * 10 and options["revision"] == "b" * 40 and len(options["config_sha256"]) == 64
    wanted = {
        "user": "u", "build_user": "v", "log_dir": "/logs", "timeout_seconds": 7, "celery_application": "app",
        "wheels_dir": "/w", "run_id": "run-1", "who": "me", "classify": module.classify_tree,
    }  # fmt: skip
    assert {key: options[key] for key in wanted} == wanted
    assert "A=1" in result["diff"]["after"] and "version: 1.0" not in result["diff"]["after"]
    site.run("present", revision="b" * 40, archive="/a.tar", version="2.1")
    assert builds[-1]["version"] == "2.1"


def test_a_suspect_release_that_is_healthy_again_is_suspect_no_longer(site, builds, monkeypatch):
    monkeypatch.setattr(module.releases, "find", lambda *_words: ONE)
    for check_mode, status, suspect in ((True, 200, True), (False, 503, True), (False, 200, False)):
        State(site.layout).set_suspect(ONE, True)
        site.status = status
        site.run("present", check_mode=check_mode, revision="a" * 40)
        assert State(site.layout).is_suspect(ONE) == suspect


def test_the_newest_live_release_of_a_version_is_selected(site):
    Path(site.layout.release(TWO), "manifest.json").write_text('{"version": "0.9", "revision": "x"}')
    assert site.run("query", release="0.9")["release"] == OLD
    State(site.layout).set_status(OLD, "bad", "5xx")
    assert site.run("query", release="0.9")["release"] == TWO
    State(site.layout).set_status(TWO, "live")
    assert site.run("query", release="0.9")["release"] == TWO


def test_the_difference_to_a_new_release_shows_no_secret(site, builds, monkeypatch):
    monkeypatch.setattr(module.releases, "find", lambda *_words: None)
    Path(site.layout.release(ONE), "env").write_text('A="old"\nB_KEY="old"\nPYTHONPATH="/x"\nSTATIC_ROOT="/y"\n')
    Path(site.layout.release(ONE), "conf").write_text("one\ntwo\n")
    build = {
        "environment": {"A": "new"}, "secret_environment": {"PLAIN": "hidden"}, "files": {"conf": "one\nthree\n"},
    }  # fmt: skip
    diff = site.run("present", check_mode=True, revision="b" * 40, version="2.0", build=build)["diff"]
    assert (diff["before_header"], diff["after_header"]) == ("release " + ONE, "release to serve")
    before, after = diff["before"].splitlines(), diff["after"].splitlines()
    assert before[:2] == ["version: 1.0", "revision: " + "aaaaaaa" * 6] and before[2] == "configuration: " + "c" * 12
    assert before[3] == "A=old" and before[4].startswith("B_KEY=(secret, ") and before[5:] == [
        "", "== conf", "one", "two",
    ]  # fmt: skip
    assert after[:2] == ["version: 2.0", "revision: " + "b" * 40] and len(after[2]) == len("configuration: ") + 12
    assert after[3] == "A=new" and after[4].startswith("PLAIN=(secret, ") and "hidden" not in diff["after"]
    assert after[5:] == ["", "== conf", "one", "three"] and diff["after"].endswith("three\n")
    os.unlink(site.layout.active)
    diff = site.run("present", check_mode=True, revision="b" * 40, version="2.0", build=build)["diff"]
    assert (diff["before_header"], diff["before"]) == ("release (none)", "")


def test_traffic_is_compared_with_the_time_in_which_the_version_before_was_alone(site, monkeypatch):
    site.begin()
    since = module.epoch(State(site.layout).transition["since"])
    for switch, before in (
        (None, (0.0, since)),
        ((5.0, since - 9), (5.0, since - 9)),
        ((5.0, since + 9), (5.0, since)),
    ):
        monkeypatch.setattr(module, "last_switch", lambda _layout, switch=switch: switch)
        site.run("watched", watch={"seconds": 7, "errors_min": 4})
        assert site.watched[-1]["before"] == before
    assert (site.watched[-1]["seconds"], site.watched[-1]["errors_min"]) == (7, 4)


def test_a_stop_in_progress_is_waited_for(site, monkeypatch):
    states, naps = ["deactivating"] * 3 + ["inactive"], []
    clock = type("Clock", (), {"monotonic": staticmethod(lambda: sum(naps)), "sleep": staticmethod(naps.append)})
    monkeypatch.setattr(module, "time", clock)

    def state(name):
        assert name == "shiftmaster.service"
        return states.pop(0) if len(states) > 1 else states[0]

    monkeypatch.setattr(module, "active_state", state)
    operation = module.Operation.__new__(module.Operation)
    operation.params = {"worker_stop_seconds": 20, "web_stop_seconds": 10}
    assert operation.stopped_by_hand() and naps == [0.5] * 3
    states[:] = ["deactivating"]
    del naps[:]
    assert not operation.stopped_by_hand() and sum(naps) == 120
    states[:] = ["active"]
    assert not operation.stopped_by_hand()
