"""The program `shiftmaster-backup`: what it shows where it cannot do what was requested."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import json
import os
import pwd
import re
import sys
import time
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.backup import host as backup_host
from ansible.module_utils.shiftmaster.backup import manifest as backup_manifest
from ansible.module_utils.shiftmaster.backup import prune, report, restore, room
from ansible.module_utils.shiftmaster.release import seal

_spec = importlib.util.spec_from_file_location(
    "rendering", Path(__file__).resolve().parents[1] / "roles/test_render_postgresql_redis.py"
)
rendering = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rendering)

MODULES = ("init", "manifest", "offsite", "report", "restore", "room", "run", "host")
PATH = Path(__file__).resolve().parents[3] / "roles/backup/files/shiftmaster-backup"
GOOD = 'shiftmaster_backup_last_success_timestamp_seconds{kind="database"} 1795714200'
BEFORE = f"""# TYPE shiftmaster_backup_last_success_timestamp_seconds gauge
{GOOD}
# HELP shiftmaster_backup_failed Whether the last run failed to save this kind; run: otherwise
# TYPE shiftmaster_backup_failed gauge
shiftmaster_backup_failed{{kind="database"}} 0
shiftmaster_backup_failed{{kind="run"}} 0
"""


@pytest.fixture
def program(monkeypatch, tmp_path):
    for name in ("", ".backup", *(f".backup.{name}" for name in MODULES)):
        module = importlib.import_module("ansible.module_utils.shiftmaster" + name)
        monkeypatch.setitem(sys.modules, "shiftmaster" + name, module)
    loader = importlib.machinery.SourceFileLoader("shiftmaster_backup", str(PATH))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    monkeypatch.setattr(module.signal, "signal", lambda *_arguments: None)
    options = tmp_path / "options.json"
    monkeypatch.setattr(module, "load_options", lambda: backup_host.load_options(str(options)))
    monkeypatch.setattr(report, "NOT_BEGUN", str(tmp_path / "not_begun.json"))
    known = dict(report.UNKNOWN, log_file=str(tmp_path / "log"), notify_file=str(tmp_path / "notify.json"))
    monkeypatch.setattr(report, "UNKNOWN", known)
    monkeypatch.setenv("SHIFTMASTER_BACKUP_TEXTFILE_DIR", str(tmp_path))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["shiftmaster-backup", *words])
        return module.main()

    call.directory, call.options = tmp_path, options
    return call


def metrics(program):
    return (program.directory / "shiftmaster_backup.prom").read_text().splitlines()


@pytest.mark.parametrize("options", [None, '{"directory": "/var/ba', "[]", '{"directory": "/b", "stanza": "s"}'])
def test_a_run_that_cannot_read_its_options_leaves_a_metric_and_a_sentence(program, options, capsys):
    if options is not None:
        program.options.write_text(options)
    (program.directory / "shiftmaster_backup.prom").write_text(BEFORE)
    (program.directory / "notify.json").write_text("{}")
    assert program("run") == 1
    found = metrics(program)
    assert 'shiftmaster_backup_failed{kind="run"} 1' in found and GOOD in found
    assert [line for line in found if line.startswith("# TYPE shiftmaster_backup_failed")] == found[-3:-2]
    assert 'shiftmaster_backup_failed{kind="run"} 0' not in found
    # The metric stays with the next run that has a result: until one is good.
    assert json.loads((program.directory / "not_begun.json").read_text())["at"] > 0
    output = capsys.readouterr()
    assert (
        "shiftmaster-backup: the options of the backup" in output.err
        and "Nothing is saved until deploy.yml" in output.err
    )
    assert "Traceback" not in output.err and "nobody was notified" in output.out
    assert " backup FAILED: the options" in output.out


def test_a_killed_run_is_reported_without_options_and_without_its_own_report(program, monkeypatch):
    monkeypatch.setenv("MONITOR_EXIT_CODE", "exited")
    monkeypatch.setenv("MONITOR_EXIT_STATUS", "1")
    assert program("killed", "shiftmaster-backup.service") == 0
    assert not (program.directory / "shiftmaster_backup.prom").exists()
    monkeypatch.setenv("MONITOR_EXIT_CODE", "killed")
    assert program("killed", "shiftmaster-backup.service") == 0
    assert metrics(program)[-1] == 'shiftmaster_backup_failed{kind="run"} 1'


def with_options(program):
    options = dict(report.UNKNOWN, directory=str(program.directory), log_file=str(program.directory / "log"))
    program.options.write_text(json.dumps(dict(options, keep_days=30, keep_months=0, keep_years=0)))


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense"])
def test_a_step_of_a_restore_reports_its_required_input(program, capsys, monkeypatch, text):
    with_options(program)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert program("restore", "plan") == 1
    assert "has to be on standard input, as JSON with an id" in capsys.readouterr().err


def test_an_unknown_run_is_reported(program, capsys):
    with_options(program)
    assert program("show", "yesterday") == 1
    assert "there is no run yesterday; see shiftmaster-backup list" in capsys.readouterr().err


def test_the_report_of_a_run_is_made_of_its_manifest(program, capsys):
    with_options(program)
    (program.directory / "manifests").mkdir()
    manifest = backup_manifest.begin("r1", "h", ["files"], 0)
    backup_manifest.finish(manifest, 5)
    backup_manifest.write(str(program.directory / "manifests/r1.json"), manifest)
    assert program("report", "r1") == 0
    assert json.loads(capsys.readouterr().out) == report.lines(manifest, str(program.directory))
    # It holds what was written of it, and a damaged one is ignored.
    (program.directory / "manifests/r1.json").write_text(json.dumps(dict(manifest, host="other")))
    assert program("report", "r1") == 1
    assert program("report", "r2") == 1
    assert capsys.readouterr().out == ""


def test_the_list_names_what_is_damaged_and_a_copy_once(program, capsys):
    with_options(program)
    directory = program.directory / "manifests"
    directory.mkdir()
    manifest = backup_manifest.begin("r1", "h", ["files"], 0)
    backup_manifest.finish(manifest, 5)
    for name in ("a-copy.json", "r1.json"):
        backup_manifest.write(str(directory / name), manifest)
    (directory / "r2.json").write_text("{")
    assert program("list") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one.get("run", "damaged") for one in listed] == ["r1", "damaged"]
    assert "r2.json is damaged" in listed[1]["damaged"]
    shown = Path(__file__).resolve().parents[3] / "roles/restore/templates/backups.txt.j2"
    lines = rendering.render("backup", shown, restore_runs=listed).splitlines()
    assert re.match(r"1970-01-01 \d\d:\d\d:\d\d \S+  r1$", lines[0].rstrip())
    assert lines[-1] == f"DAMAGED: {listed[1]['damaged']}"


def test_extracted_tables_expire_and_an_empty_directory_is_removed_at_once(program, monkeypatch):
    with_options(program)
    host = backup_host.Host(backup_host.load_options(str(program.options)))
    assert prune.forget_tables(host) == []
    tables = program.directory / "tables"
    for name in ("old", "young", "empty"):
        (tables / name).mkdir(parents=True)
    for name in ("old", "young"):
        (tables / name / "t.dump").write_text("x")
    os.utime(tables / "old", (time.time() - 31 * 86400,) * 2)
    # With every run, regardless of its parts.
    monkeypatch.setattr(prune, "Restic", lambda _host: None)
    host.options["limit_bytes"] = 0
    run = {"run_id": "r1", "started": "2026-11-27T00:00:00Z", "parts": {}}
    assert prune.prune(host, run, []) == (["tables/empty", "tables/old"], [])
    assert os.listdir(tables) == ["young"]


def test_a_table_that_could_not_be_extracted_leaves_no_directory(program, monkeypatch):
    with_options(program)
    host = backup_host.Host(backup_host.load_options(str(program.options)))
    # Neither postgres nor the user of restored databases is one of this machine.
    me = pwd.getpwuid(os.geteuid())
    monkeypatch.setattr(restore.pwd, "getpwnam", lambda _name: me)
    with pytest.raises(backup_host.BackupError), restore._dir_of_tables(host, "r1") as directory:
        assert os.path.isdir(directory)
        raise backup_host.BackupError("no such table")
    assert os.listdir(program.directory / "tables") == []


def test_the_guard_needs_no_options_and_returns_the_exit_code_of_its_command(program, tmp_path, monkeypatch):
    """It runs as postgres, who may not read them."""
    monkeypatch.setattr(room, "scarce", lambda _directory: "")
    monkeypatch.setattr(room, "CHECK_SECONDS", 0.05)
    assert not program.options.exists()
    assert program("guard", "wait", str(tmp_path), "sh", "-c", "exit 5") == 5
    assert program("guard", "wait", str(tmp_path)) == 2


def test_restored_audit_events_are_checked(program, tmp_path, capsys):
    with_options(program)
    log, directory = tmp_path / "audit.log", tmp_path / "events"
    log.write_text("one\n")
    seal.seal(str(directory), {"application": [str(log)]}, 0)
    assert program("verify", str(directory)) == 0 and "1 lines" in capsys.readouterr().out
    (directory / "1970-01.jsonl").write_text("{}\n")
    assert program("verify", str(directory)) == 1 and "record 1" in capsys.readouterr().err
