"""What a keeper packs for another host. That restores work is seen on hosts (molecule/backup, molecule/recovery)."""

from __future__ import annotations

import contextlib
import subprocess
import tarfile

import pytest
from ansible.module_utils.shiftmaster import backup_restore
from ansible.module_utils.shiftmaster.backup_files import pulled
from ansible.module_utils.shiftmaster.backup_host import Host

PATHS = ["/srv/shiftmaster/shared/media"]


@pytest.fixture
def keeper(tmp_path, monkeypatch):
    part = {"name": "files", "paths": PATHS, "exclude": []}
    host = Host(
        {
            "folder": str(tmp_path), "state": str(tmp_path), "stanza": "shiftmaster", "host": "keeper",
            "lock_wait_seconds": 0, "timeout_seconds": 60, "parts": [],
            "sources": [{"name": "app1", "address": "192.0.2.1", "parts": [part]}],
            "database": {"version": "17", "databases": []},
        }
    )  # fmt: skip
    below = pulled(host, "files", "app1")

    def run(_what, *command, **_more):
        return subprocess.run(command, capture_output=True, text=True, check=True)

    class Restic:
        def __init__(self, _host):
            pass

        def unlock(self):
            pass

        def full_id(self, _part, _run):
            return "snapshot"

        def files(self, _label):
            return [(below + PATHS[0] + "/a.txt", 1)]

        def run(self, _what, _verb, _label, _option, into, *include):
            assert include == ("--include=" + below + PATHS[0],)
            folder = type(tmp_path)(into + below + PATHS[0])
            folder.mkdir(parents=True)
            (folder / "a.txt").write_text("a")

    host.run = run
    monkeypatch.setattr(backup_restore, "Restic", Restic)
    monkeypatch.setattr(backup_restore, "alone", lambda *_arguments: contextlib.nullcontext())
    return host


def test_what_is_packed_for_another_host_is_its_files_once_and_where_they_lay(keeper, tmp_path):
    request = {"id": "r1", "of": "app1", "files": {"run": "x", "label": "snapshot"}}
    answer = backup_restore.files(keeper, request, "files")
    with tarfile.open(answer["archive"]) as packed:
        names = [member.name for member in packed if not member.isdir()]
    assert names == ["./srv/shiftmaster/shared/media/a.txt"]
    assert not (tmp_path / "outgoing" / "r1").exists()
    answer = backup_restore.files(keeper, dict(request, into=str(tmp_path / "beside")), "files")
    assert "archive" not in answer
    assert (tmp_path / "beside" / pulled(keeper, "files", "app1")[1:] / PATHS[0][1:] / "a.txt").read_text() == "a"


def test_the_segment_that_is_waited_for_is_closed_and_holds_the_commit_of_its_message(keeper, monkeypatch):
    """In one statement the commit comes behind the switch, and the next segment was waited for, a minute long."""
    asked, waited = [], []

    def ask(sql, timeout=0):
        asked.append(sql)
        return [["000000010000000000000007"]]

    keeper.ask = ask
    keeper.options["archive_timeout_seconds"] = 9
    monkeypatch.setattr(backup_restore.proof, "wait_for_segment", lambda _host, *arguments: waited.append(arguments))
    backup_restore._archive_until_now(keeper)
    assert [("emit_message" in sql, "switch_wal" in sql) for sql in asked] == [(True, False), (False, True)]
    assert waited == [("000000010000000000000007", 9)]
