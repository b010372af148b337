"""Output of shiftmasterctl, in the time zone of the host."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import unicodedata
from types import SimpleNamespace
from unittest import mock

import pytest
from support import ROOT


@pytest.fixture
def program(monkeypatch, in_tokyo):
    monkeypatch.syspath_prepend(str(ROOT / "module_utils"))
    loader = importlib.machinery.SourceFileLoader(
        "shiftmasterctl", str(ROOT / "roles/shiftmaster/files/shiftmasterctl")
    )
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("shiftmasterctl", loader))
    loader.exec_module(module)
    return module


def test_history_has_a_header_and_the_version_of_each_release(program, tmp_path, capsys):
    built = {"event": "built", "release": "r1", "version": "2.1.0", "time": "2026-11-29T06:45:39Z"}
    live = {"event": "live", "kind": "deploy", "target": "r1", "who": "root@vm", "time": "2026-11-29T20:46:00Z"}
    (tmp_path / "audit.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (built, "damaged", live)))
    program.history(SimpleNamespace(state=str(tmp_path)), {})
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["time", "event", "kind", "version", "release", "by", "reason"]
    assert line.split() == ["2026-11-30", "05:46:00", "JST", "live", "deploy", "2.1.0", "r1", "root@vm"]
    assert line.index("2.1.0") == header.index("version")


def test_columns_are_below_one_another_in_japanese(program, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SHIFTMASTER_LANGUAGE", "ja")
    live = {"event": "live", "kind": "deploy", "target": "r1", "who": "root@vm", "time": "2026-11-29T20:46:00Z"}
    failed = dict(live, event="gate_failed", kind="rollback", target="r2")
    (tmp_path / "audit.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (live, failed)))
    program.history(SimpleNamespace(state=str(tmp_path)), {})
    ends = [
        sum(2 if unicodedata.east_asian_width(one) in "FW" else 1 for one in line[: line.index(word)])
        for line, word in zip(capsys.readouterr().out.splitlines(), ("リリース", "r1", "r2"), strict=True)
    ]
    assert len(set(ends)) == 1


@pytest.mark.parametrize("language", ["en", "ja"])
def test_history_has_a_reason_in_its_column_alone(program, tmp_path, capsys, monkeypatch, language):
    monkeypatch.setenv("SHIFTMASTER_LANGUAGE", language)
    what = "a run that died in its phase watch had already switched to r2, which is healthy: finished"
    failed = "requirements failed for version 2.1.0 (the complete output is in /b.log):\nERROR: x"
    entries = [{"event": "build_failed", "release": "r3", "version": "2.1.0", "reason": failed},
               {"event": "recovered", "what": what, "who": "root@vm"}]  # fmt: skip
    entries = [dict(one, time="2026-11-29T20:46:00Z") for one in entries]
    (tmp_path / "audit.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    program.history(SimpleNamespace(state=str(tmp_path)), {})
    _, build, recovered = capsys.readouterr().out.splitlines()
    assert build.startswith("2026-11-30 05:46:00 JST") and recovered.startswith("2026-11-30 05:46:00 JST")
    before, _, reason = build.partition(" r3 ")
    assert "2.1.0" in before
    sentences = [failed.split(":\n")[0], what]
    if language == "ja":
        sentences = [program.japanese(one) for one in sentences]
    assert reason.strip() == sentences[0] and recovered.split("root@vm")[1].strip() == sentences[1]


def test_history_shows_whose_access_was_changed(program, tmp_path, capsys):
    access = {"event": "access", "reason": "app1: revoked kato", "who": "sato@vm", "time": "2026-11-29T20:46:00Z"}
    (tmp_path / "audit.jsonl").write_text(json.dumps(access) + "\n")
    program.history(SimpleNamespace(state=str(tmp_path)), {})
    assert capsys.readouterr().out.splitlines()[1].split("sato@vm")[1].strip() == "app1: revoked kato"


@pytest.mark.parametrize("change", [["grant"], ["remove", "sato"], ["grant", "sato", "kato"]])
def test_a_change_of_administrators_that_nobody_can_mean_runs_no_code(program, change):
    with pytest.raises(program.StateError):
        program.administrators(None, {}, *change)


@pytest.mark.parametrize("code", [0, 1])
def test_only_a_change_of_administrators_that_was_made_is_in_the_audit_log(
    program, monkeypatch, tmp_path, capsys, code
):
    printed = SimpleNamespace(rc=code, stdout="sato\x1b[2J\n", stderr="there is no user kato\n")
    monkeypatch.setattr(program, "ReleaseCode", lambda *_: SimpleNamespace(run=lambda argv: printed))
    layout = SimpleNamespace(state=str(tmp_path), current=lambda: "r1", release=lambda name: name)
    if code:
        with pytest.raises(program.StateError, match="no user kato"):
            program.administrators(layout, {"user": "u", "who": "abe"}, "disable", "kato")
        assert not (tmp_path / "audit.jsonl").exists()
    else:
        program.administrators(layout, {"user": "u", "who": "abe"}, "disable", "kato")
        assert capsys.readouterr().out == "sato?[2J\n", "what the application prints is not the terminal's to obey"
        entry = json.loads((tmp_path / "audit.jsonl").read_text())
        assert (entry["event"], entry["who"], entry["reason"]) == ("access", "abe", "application: disable kato")


def test_status_shows_times_of_the_host(program, monkeypatch, capsys):
    monkeypatch.setattr(program, "State", lambda layout: SimpleNamespace(transition=None))
    releases = [
        {"name": name, "version": version, "status": "live", "current": version == "2.1.0", "reason": ""}
        for name, version in (("r1", "2.0.0"), ("r2", "2.1.0"))
    ]
    monkeypatch.setattr(program.releases, "describe", lambda layout, state: releases)
    when = "Sun 2026-11-29 10:41:38.425485 UTC"
    found = {"ActiveState": "active", "SubState": "running", "ActiveEnterTimestamp": when, "StateChangeTimestamp": ""}
    monkeypatch.setattr(program.units, "properties", lambda *_: found)
    program.status(None, {})
    out = capsys.readouterr().out
    assert "since 2026-11-29 19:41:38 JST" in out
    # One of them is live.
    before, now = out.splitlines()[:2]
    assert before.split() == ["r1", "2.0.0", "was", "live"] and now.split() == ["*", "r2", "2.1.0", "live"]


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        (
            "",
            ["* r2 2.1.0 live", "a deploy from r1 to r2 is not finished (phase watch, since 2026-11-30 09:54:25 JST)"],
        ),
        ("ja", ["* r2 2.1.0 稼働中", "未完了のデプロイ: r1 から r2(段階 watch、開始 2026-11-30 09:54:25 JST)"]),
    ],
)
def test_status_in_an_unfinished_deploy_names_the_release_that_serves(program, monkeypatch, capsys, language, expected):
    monkeypatch.setenv("SHIFTMASTER_LANGUAGE", language)
    transition = {"kind": "deploy", "from": "r1", "to": "r2", "phase": "watch", "since": "2026-11-30T00:54:25Z"}
    monkeypatch.setattr(program, "State", lambda layout: SimpleNamespace(transition=transition))
    one = {"name": "r2", "version": "2.1.0", "status": "ready", "current": True, "reason": ""}
    monkeypatch.setattr(program.releases, "describe", lambda layout, state: [one])
    monkeypatch.setattr(program.units, "properties", lambda *_: {"ActiveState": "inactive"})
    program.status(None, {})
    first, last = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert first == expected[0] and last.startswith(expected[1])


def test_a_boot_starts_no_background_work_while_it_is_held(program, monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(program, "RESTART", str(tmp_path / "restart"))
    monkeypatch.setattr(program.units, "systemctl", lambda *words, **_: started.append(words))
    monkeypatch.setattr(program.Layout, "active_slot", lambda self: "blue")
    layout, options = program.Layout(str(tmp_path)), {"celery_application": "app", "beat": True}
    (tmp_path / "shared/state").mkdir(parents=True)
    (tmp_path / "slots/blue").mkdir(parents=True)
    # Requests waited when the host went down.
    (tmp_path / "slots/blue/socket").symlink_to("/run/shiftmaster-hold/socket")
    web, worker, beat = (f"shiftmaster-{kind}@blue.service" for kind in ("web", "worker", "beat"))
    program.unit_start(layout, options)
    (tmp_path / "shared/state/background-held").touch()
    program.unit_start(layout, options)
    assert started == [("start", web, worker, beat), ("start", web)]
    assert str((tmp_path / "slots/blue/socket").readlink()) == "/run/shiftmaster-web-blue/web.sock"
    with pytest.raises(program.StateError, match="has changed the schema"):
        program.restart(layout, options)


def test_events_are_sealed_and_verified_by_the_program(program, monkeypatch, tmp_path, capsys):
    state, log = tmp_path / "shared/state", tmp_path / "audit.log"
    state.mkdir(parents=True)
    (state / "audit.jsonl").write_text('{"event": "live"}\n')
    log.write_text("three\n")
    (tmp_path / "audit.log-20261129-9").write_text("two\n")
    (tmp_path / "audit.log-20261128-8").write_text("one\n")
    (tmp_path / "audit.log-20261127-7.gz").write_bytes(b"sealed before")
    (tmp_path / "options").write_text(json.dumps({"root": str(tmp_path), "audit_log": str(log)}))
    monkeypatch.setattr(program, "OPTIONS", str(tmp_path / "options"))

    def run(*words):
        monkeypatch.setattr(program.sys, "argv", ["shiftmasterctl", *words])
        return program.main(), capsys.readouterr()

    assert run("verify")[0] == 1
    assert run("seal")[0] == 0
    sealed = next((state / "audit").iterdir())
    lines = json.loads(sealed.read_text())["lines"]
    assert lines == {"application": ["one", "two", "three"], "operations": ['{"event": "live"}']}
    code, output = run("verify")
    assert code == 0 and "4 lines" in output.out
    sealed.write_text(sealed.read_text().replace("previous", "before"))
    code, output = run("verify")
    assert code == 1 and sealed.name in output.err


@pytest.mark.parametrize("waited", [[], ["task-1"]])
def test_waiting_tasks_are_quarantined_by_the_code_of_the_live_release(program, monkeypatch, tmp_path, capsys, waited):
    driver = mock.create_autospec(program.Driver, instance=True)
    driver.__enter__.return_value = driver
    driver.call.return_value = {"moved": waited}
    monkeypatch.setattr(program, "Driver", lambda *_arguments: driver)
    monkeypatch.setattr(program, "ReleaseCode", lambda *_arguments: None)
    monkeypatch.setattr(program, "quarantine", lambda call, *_arguments, **_more: call({"op": "x"})["moved"])
    monkeypatch.setattr(program, "audit", lambda *_arguments, **_more: None)
    monkeypatch.setattr(program.shutil, "chown", lambda *_arguments: None)
    layout = SimpleNamespace(current=lambda: "r1", quarantine=str(tmp_path), release=lambda name: name)
    options = {"celery_application": "shifts", "celery_queues": ["celery"], "user": "shiftmaster"}
    program.quarantine_waiting(layout, options)
    assert capsys.readouterr().out.split()[0] == str(len(waited)) and len(list(tmp_path.iterdir())) == len(waited)


def test_the_version_is_that_of_the_last_complete_run(program, tmp_path, capsys, monkeypatch):
    fact = tmp_path / "shiftmaster.fact"
    monkeypatch.setattr(program, "FACT", str(fact))
    assert program.version() == 1
    fact.write_text(json.dumps({"version": "1.0.0", "revision": "abc", "actions": []}))
    assert program.version() == 0 and capsys.readouterr().out == "ShiftMaster operations 1.0.0 (abc)\n"


@pytest.fixture
def people(program, monkeypatch, tmp_path, capsys):
    """Runs the program with two releases; returns its code, what was attached, the audit log and standard error."""
    attached = []

    class Code:
        def __init__(self, path, user):
            self.start = [path.rpartition("/")[2], user]

        def attach(self, words, extra_env=None, read_only=False):
            attached.append((*self.start, words, extra_env or {}, read_only))
            return 7

    for name, version in (("20261201T000000Z-aaaaaaaaaa", "2.0.0"), ("20261202T000000Z-bbbbbbbbbb", "2.1.0")):
        (tmp_path / "releases" / name).mkdir(parents=True)
        (tmp_path / "releases" / name / "manifest.json").write_text(json.dumps({"version": version}))
    (tmp_path / "shared/state").mkdir(parents=True)
    (tmp_path / "options").write_text(json.dumps({"root": str(tmp_path), "user": "shiftmaster"}))
    monkeypatch.setattr(program, "OPTIONS", str(tmp_path / "options"))
    monkeypatch.setattr(program, "ReleaseCode", Code)
    monkeypatch.setattr(program.Layout, "current", lambda self: "20261202T000000Z-bbbbbbbbbb")

    def run(*words):
        attached.clear()
        monkeypatch.setattr(program.sys, "argv", ["shiftmasterctl", *words])
        code, log = program.main(), tmp_path / "shared/state/audit.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return code, list(attached), lines, capsys.readouterr().err

    return run


def test_each_verb_of_a_person_starts_its_command_in_a_release(people):
    live, before = "20261202T000000Z-bbbbbbbbbb", "20261201T000000Z-aaaaaaaaaa"
    cases = {
        ("manage", "check"): (live, ["check"], False),
        ("manage", "--release", "2.0.0", "check", "--deploy"): (before, ["check", "--deploy"], False),
        ("manage", "--release", before, "check"): (before, ["check"], False),
        ("shell",): (live, ["shell"], False),
        ("shell", "--read-only"): (live, ["shell"], True),
        ("db",): (live, ["dbshell"], False),
    }
    for words, (release, expected, read_only) in cases.items():
        code, ((name, user, found, _, reads),), _, _ = people(*words)
        assert (code, name, user, found, reads) == (7, release, "shiftmaster", expected, read_only), words


def test_db_has_the_timeout_of_a_person_and_keeps_no_history(people):
    found = {words: people(*words)[1][0][3] for words in (("db",), ("db", "--write"))}
    for words, env in found.items():
        assert "statement_timeout=300s" in env["PGOPTIONS"] and env["PSQL_HISTORY"] == "/dev/null"
        assert ("default_transaction_read_only=on" in env["PGOPTIONS"]) == (words == ("db",))


def test_the_audit_log_has_who_and_the_command_without_its_arguments(people):
    _, _, (entry,), err = people("--by", "sato@vm", "manage", "changepassword", "SECRET")
    assert (entry["event"], entry["who"], entry["reason"]) == ("access", "sato@vm", "manage: changepassword")
    assert "SECRET" not in json.dumps(entry) + err


def test_bad_words_are_one_sentence_and_start_nothing(people):
    cases = {
        ("manage",): "showmigrations",
        ("manage", "--release", "2.0.O", "check"): "did you mean 2.0.0?",
        ("manage", "--release"): "needs a command",
        ("shell", "--write"): "--read-only",
        ("db", "--read-only"): "--write",
    }
    for words, expected in cases.items():
        code, attached, audited, err = people(*words)
        assert (code, attached, audited, len(err.splitlines())) == (2, [], [], 1) and expected in err, words
