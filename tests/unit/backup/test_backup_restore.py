"""Data that a backup server packs for another host. Restores run on hosts (molecule/backup, molecule/recovery)."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible.module_utils.shiftmaster.backup import init as backup_init
from ansible.module_utils.shiftmaster.backup import manifest as manifests
from ansible.module_utils.shiftmaster.backup import restore
from ansible.module_utils.shiftmaster.backup import run as backup_run
from ansible.module_utils.shiftmaster.backup.files import pulled
from ansible.module_utils.shiftmaster.backup.host import BackupError, Host
from ansible.module_utils.shiftmaster.host.safe_files import UnsafePathError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

THEIRS = 1234
GROUP = os.getegid() if os.geteuid() else 2345
PATHS = ["/srv/shiftmaster/shared/media"]


@pytest.fixture
def backup_server(tmp_path, monkeypatch):
    part = {"name": "files", "paths": PATHS, "exclude": []}
    host = Host(
        {
            "directory": str(tmp_path / "backups"), "state": str(tmp_path / "state"),
            "stanza": "shiftmaster", "host": "backup_server",
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

        def backup(self, part, run_id, tag):
            if host.options.get("lost"):
                raise BackupError("app1 cannot be read")
            assert (part["name"], run_id, tag) == ("files", "r1", "before-restore")
            return {"snapshot_id": "before"}, []

        def full_id(self, _part, _run):
            return "snapshot"

        def nodes(self, _label):
            return [{"type": "file", "path": below + PATHS[0] + "/a.txt", "size": 1}]

        def restore(self, _what, _label, into, *patterns):
            assert patterns == (below + PATHS[0],)
            directory = type(tmp_path)(into + below + PATHS[0])
            directory.mkdir(parents=True)
            (directory / "a.txt").write_text("a")

    host.run = run
    monkeypatch.setattr(restore, "Restic", Restic)
    for name in ("state", "backups"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(restore, "MARKER", str(tmp_path / "state/restoring"))
    monkeypatch.setattr(restore, "alone", lambda *_arguments: contextlib.nullcontext())
    return host


def test_files_are_packed_once_for_another_host_with_their_paths(backup_server, tmp_path):
    request = {"id": "r1", "of": "app1", "files": {"run": "x", "label": "snapshot"}}
    response = restore.files(backup_server, request, "files")
    with tarfile.open(response["archive"]) as packed:
        names = [member.name for member in packed if not member.isdir()]
    assert names == ["./srv/shiftmaster/shared/media/a.txt"]
    assert not (tmp_path / "backups/outgoing/r1").exists() and response["kept"] == "before"
    logged = []
    backup_server.options["lost"], backup_server.log = True, logged.append
    assert restore.files(backup_server, request, "files")["kept"] == ""
    assert "what app1 has now could not be saved" in logged[0]
    response = restore.files(backup_server, dict(request, into=str(tmp_path / "aside")), "files")
    assert "archive" not in response
    assert (tmp_path / "aside" / pulled(backup_server, "files", "app1")[1:] / PATHS[0][1:] / "a.txt").read_text() == "a"


@pytest.mark.parametrize(("free", "refused"), [(1, True), (2, False)])
def test_packing_for_another_host_needs_twice_the_space(backup_server, free, refused):
    backup_server.free_bytes = lambda: free
    request = {"id": "r1", "of": "app1", "files": {"run": "x", "label": "snapshot"}}
    with pytest.raises(BackupError, match="too little room") if refused else contextlib.nullcontext():
        restore.files(backup_server, request, "files")


def test_the_awaited_segment_is_closed_and_contains_the_commit_of_its_message(backup_server, monkeypatch):
    """In one statement the commit comes after the switch, and the next segment was waited for, a minute long."""
    requested, waited = [], []

    def query(sql, timeout=0):
        requested.append(sql)
        return [["000000010000000000000007"]]

    backup_server.query = query
    backup_server.options["archive_timeout_seconds"] = 9
    monkeypatch.setattr(restore.verification, "wait_for_segment", lambda _host, *arguments: waited.append(arguments))
    restore._archive_until_now(backup_server)
    assert [("emit_message" in sql, "switch_wal" in sql) for sql in requested] == [(True, False), (False, True)]
    assert waited == [("000000010000000000000007", 9)]


def test_requested_names_must_be_in_the_backup(backup_server):
    request = {"id": "r1", "of": "app1", "files": {"run": "x", "label": "snapshot"}, "parts": {"files": "as of today"}}
    with pytest.raises(BackupError, match="the backup holds nothing of /srv/nonsense$"):
        restore.files(backup_server, dict(request, paths=[PATHS[0], "/srv/nonsense"]), "files")


@pytest.mark.parametrize(
    "into",
    [
        "/", "//", "/etc/..", "/etc", "/etc/cron.d", "/etc/systemd/system/x.service.d", "/usr/local/new", "//etc/new",
        "/tmp/../etc/new", "relative", "{tmp}", "{tmp}/backups/x", "{tmp}/link/new", "{tmp}/full", "{tmp}/theirs",
        "{tmp}/theirs/new", "{tmp}/theirs/link/new",
    ],
)  # fmt: skip
def test_a_restore_goes_into_no_directory_of_the_system_nor_of_another_user(backup_server, tmp_path, into):
    os.chmod(tmp_path, 0o755)
    for name in ("full/x", "theirs", "real"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "theirs/link").symlink_to(tmp_path / "real")
    os.chown(tmp_path / "theirs", 1234, 1234)
    request = {"id": "r1", "of": "app1", "files": {"run": "x", "label": "snapshot"}}
    before = sorted(os.listdir("/etc"))
    with pytest.raises(BackupError, match="into="):
        restore.files(backup_server, dict(request, into=into.format(tmp=tmp_path)), "files")
    assert sorted(os.listdir("/etc")) == before and os.listdir(tmp_path / "theirs") == ["link"]
    assert os.listdir(tmp_path / "real") == []


class Place:
    """A directory of data, and what a killed restore has left next to it."""

    def __init__(self, backup_server, tmp_path):
        self.data, self.aside = tmp_path / "main", tmp_path / "main.before-r1"
        self.marker = Path(restore.MARKER)
        for directory, text in ((self.data, "new"), (self.aside, "old")):
            (directory / "global").mkdir(parents=True)
            (directory / "global" / "pg_control").write_text(text)
        self.marker.write_text("%s\n%s" % (self.aside, restore.STARTED))
        backup_server.database["data"] = str(self.data)
        backup_server.options["log_file"] = str(tmp_path / "log")
        self.words, self.state = [], "active\n"
        run = backup_server.run

        def noted(what, *command, **more):
            self.words.append(command)
            if command[0] == "systemctl":
                return subprocess.CompletedProcess(command, 0, self.state if command[1] == "is-active" else "", "")
            return run(what, *command, **more)

        backup_server.run = noted
        backup_server.as_postgres = noted

    def content(self):
        return (self.data / "global" / "pg_control").read_text()


@pytest.fixture
def place(backup_server, tmp_path):
    return Place(backup_server, tmp_path)


@pytest.mark.parametrize("sign", ["backup_label", "recovery.signal", "standby.signal"])
def test_an_unfinished_killed_restore_is_replaced_by_the_previous_data(backup_server, place, sign):
    (place.data / sign).touch()
    restore._recover(backup_server, str(place.data))
    assert place.content() == "old" and not place.marker.exists() and not place.aside.exists()
    assert place.words[1][:2] == ("systemctl", "stop")


def test_a_database_that_came_up_after_a_killed_restore_is_kept(backup_server, place):
    restore._recover(backup_server, str(place.data))
    assert place.content() == "new" and place.aside.exists() and not place.marker.exists()


@pytest.mark.parametrize(("state", "verbs"), [("inactive", []), ("active", ["stop", "start"])])
def test_at_boot_the_data_before_a_restore_is_restored_before_postgresql_starts(
    backup_server, place, monkeypatch, state, verbs
):
    """A stop would call off the start that waits for it."""
    place.state = state + "\n"
    (place.data / "standby.signal").touch()
    waits = []

    def alone(*arguments):
        waits.append(arguments[-1])
        return contextlib.nullcontext()

    monkeypatch.setattr(restore, "alone", alone)
    restore.undo_at_boot(backup_server)
    # The report of a killed backup has the lock at boot, too.
    assert waits and waits[0] >= 60
    assert place.content() == "old" and not place.marker.exists() and not place.aside.exists()
    assert [words[1] for words in place.words if words[0] == "systemctl" and words[1] != "is-active"] == verbs
    assert "the database that was there before is in its place" in (place.data.parent / "log").read_text()
    place.words.clear()
    restore.undo_at_boot(backup_server)
    assert place.words == []


def test_a_killed_revert_continues(backup_server, place, monkeypatch):
    """Half removed, or half brought back, a directory has pg_control and no sign of a recovery."""
    (place.data / "recovery.signal").touch()

    class Killed(BaseException):
        pass

    def killed(_host, _path):
        (place.data / "recovery.signal").unlink()
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(restore, "_empty", killed)
        with pytest.raises(Killed):
            restore.undo(backup_server, "r1")
    assert os.listdir(place.data) == ["global"]
    restore.undo_at_boot(backup_server)
    assert place.content() == "old" and not place.marker.exists() and not place.aside.exists()


def test_a_restore_that_filled_the_disk_is_reverted(backup_server, place, monkeypatch):
    write = restore.safe_files.write

    def full(path, *arguments):
        if any(files for _path, _names, files in os.walk(place.data)):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *arguments)

    monkeypatch.setattr(restore.safe_files, "write", full)
    restore._undo_a_killed_one(backup_server, str(place.data))
    assert place.content() == "old" and not place.marker.exists() and not place.aside.exists()


@pytest.mark.parametrize(("phase", "there"), [("fetching", "old"), ("started", "new"), ("undoing", "old")])
def test_only_a_database_that_was_started_counts_as_restored(backup_server, place, phase, there):
    """Where it cannot be renamed, the previous directory is half copied when it is quarantined by copying."""
    restore._mark(str(place.aside), phase)
    restore._recover(backup_server, str(place.data))
    assert place.content() == there and not place.marker.exists()


def test_at_boot_a_database_that_was_never_quarantined_stays(backup_server, place):
    place.aside.rename(str(place.aside) + ".part")
    place.state = "inactive"
    restore.undo_at_boot(backup_server)
    assert place.content() == "new" and not place.marker.exists() and os.listdir(place.data.parent).count("main") == 1
    assert not Path(str(place.aside) + ".part").exists()


def test_a_marker_emptied_by_a_power_failure_names_nothing(backup_server, place):
    place.aside.rename(place.data.parent / "other")
    place.marker.write_text("")
    restore._recover(backup_server, str(place.data))
    assert place.content() == "new" and not place.marker.exists()


def test_a_mount_is_emptied_and_filled_where_it_is(backup_server, place, monkeypatch):
    not_renamed(monkeypatch, place.data)
    inode = place.data.stat().st_ino
    restore._move(backup_server, str(place.data), str(place.data) + ".before-r2")
    assert os.listdir(place.data) == [] and place.data.stat().st_ino == inode
    restore._undo_a_killed_one(backup_server, str(place.data))
    assert place.content() == "old" and not place.aside.exists() and not place.marker.exists()
    assert place.data.stat().st_ino == inode


def test_existing_data_is_not_overwritten_after_another_error(backup_server, place, monkeypatch):
    not_renamed(monkeypatch, place.data, errno.EACCES)
    with pytest.raises(PermissionError):
        restore._move(backup_server, str(place.data), str(place.data) + ".before-r2")
    assert place.content() == "new"
    with pytest.raises(PermissionError):
        restore._undo_a_killed_one(backup_server, str(place.data))
    assert os.listdir(place.data) == [] and (place.aside / "global/pg_control").read_text() == "old"
    assert place.marker.exists()


def not_renamed(monkeypatch, path, error=errno.EBUSY):
    """As a mount: it prevents each renaming."""
    rename = os.rename

    def busy(source, target, **directories):
        if path.name in (os.path.basename(source), os.path.basename(target)):
            raise OSError(error, "not renamed")
        rename(source, target, **directories)

    monkeypatch.setattr(os, "rename", busy)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_root_empties_and_copies_no_directory_that_postgres_names(backup_server, place, monkeypatch):
    """postgres has put a link to a directory of root in the place of its own."""
    victim = place.data.parent / "victim"
    victim.mkdir(mode=0o700)
    (victim / "precious").write_text("root's")
    os.chown(place.data.parent, THEIRS, THEIRS)
    place.data.rename(place.data.parent / "moved")
    place.data.symlink_to(victim)
    not_renamed(monkeypatch, place.data)

    def as_postgres(what, *command, **_more):
        become = ["setpriv", "--reuid", str(THEIRS), "--regid", str(THEIRS), "--clear-groups"]
        done = subprocess.run([*become, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BackupError(what)

    backup_server.as_postgres = as_postgres
    with contextlib.suppress(BackupError):
        restore._move(backup_server, str(place.data), str(place.data) + ".before-r2")
    assert (victim / "precious").read_text() == "root's"
    assert not (place.data.parent / "main.before-r2" / "precious").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user")
def test_root_renames_nothing_through_a_link_of_postgres(backup_server, place, tmp_path):
    (tmp_path / "victim/main").mkdir(parents=True)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/17").symlink_to(tmp_path / "victim")
    os.chown(tmp_path / "theirs", THEIRS, THEIRS)
    data = str(tmp_path / "theirs/17/main")
    with pytest.raises(UnsafePathError):
        restore._move(backup_server, data, data + ".before-r2")
    assert os.listdir(tmp_path / "victim") == ["main"]


# --- WAL of the backup server -----------------------------------------------------------------------------------------

SEGMENT = "00000001000000000000000A"


def packed(path, *members) -> str:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for member in members:
            archive.addfile(*member)
    return str(path)


def member(name, content=b"wal", kind=tarfile.REGTYPE, **more):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, io.BytesIO(content)


@pytest.fixture
def received(backup_server, tmp_path, monkeypatch):
    """Where it is unpacked; postgres has a group of its own, where this process can give a file to it."""
    monkeypatch.setattr(restore, "RECEIVED", str(tmp_path / "state/received"))
    monkeypatch.setattr(restore.pwd, "getpwnam", lambda _name: SimpleNamespace(pw_gid=GROUP))
    return tmp_path / "state/received"


def test_segments_that_were_received_are_unpacked_for_postgres(backup_server, received, tmp_path):
    path = packed(
        tmp_path / "wal.tar", member(SEGMENT, b"a" * 1000, mode=0o777, uid=THEIRS), member(SEGMENT + ".partial")
    )
    assert restore.unpack_received(backup_server, path) == str(received)
    assert (received / SEGMENT).read_bytes() == b"a" * 1000 and (
        received / (SEGMENT + ".partial")
    ).read_bytes() == b"wal"
    statuses = [one.stat() for one in received.iterdir()]
    assert {(one.st_mode & 0o7777, one.st_uid, one.st_gid) for one in statuses} == {(0o640, os.geteuid(), GROUP)}
    assert not os.path.exists(path)


@pytest.mark.parametrize(("lacking", "refused"), [(1, True), (0, False)])
def test_received_wal_that_does_not_fit_is_refused_and_removed(backup_server, received, tmp_path, lacking, refused):
    path = packed(tmp_path / "wal.tar", member(SEGMENT))
    free = {str(received): os.path.getsize(path) - lacking}
    backup_server.free_bytes = free.__getitem__
    with pytest.raises(BackupError, match="too little room") if refused else contextlib.nullcontext():
        restore.unpack_received(backup_server, path)
    assert not os.path.exists(path) and received.exists() != refused


def test_packed_files_can_be_unpacked(backup_server, received, tmp_path):
    (tmp_path / "wal").mkdir()
    (tmp_path / "wal" / SEGMENT).write_bytes(b"b" * 70000)
    words = ["tar", "--create", "--file", tmp_path / "wal.tar", "--directory", tmp_path / "wal", SEGMENT]
    subprocess.run(words, check=True)
    restore.unpack_received(backup_server, str(tmp_path / "wal.tar"))
    assert (received / SEGMENT).read_bytes() == b"b" * 70000


HOSTILE = {
    "absolute": member("/etc/cron.d/x"),
    "above": member("../../" + SEGMENT),
    "other": member("authorized_keys"),
    "newline": member(SEGMENT + "\n"),
    "small": member(SEGMENT.lower()),
    "label": member("/etc/shadow", b"", b"V", mode=0o666, uid=THEIRS),
    "directory": member(SEGMENT, b"", tarfile.DIRTYPE, mode=0o777),
    "link": member(SEGMENT, b"", tarfile.SYMTYPE, linkname="/etc/shadow"),
    "hard link": member(SEGMENT, b"", tarfile.LNKTYPE, linkname="/etc/shadow"),
    "device": member(SEGMENT, b"", tarfile.CHRTYPE),
    "fifo": member(SEGMENT, b"", tarfile.FIFOTYPE),
    "sparse": member(SEGMENT, b"", tarfile.GNUTYPE_SPARSE),
    "long name": member(SEGMENT * 20),
    "extended header": member(SEGMENT, b"19 path=/etc/passwd\n", tarfile.XHDTYPE),
    "large": member(SEGMENT, bytes((16 << 20) + 1)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_only_segments_are_unpacked(backup_server, received, tmp_path, kind):
    info, content = HOSTILE[kind]
    content.seek(0)
    path = packed(tmp_path / "wal.tar", member(SEGMENT.replace("A", "9")), (info, content))
    with pytest.raises(BackupError):
        restore.unpack_received(backup_server, path)
    assert not received.exists()


def test_an_archive_that_is_cut_off_or_names_a_segment_twice_is_not_used(backup_server, received, tmp_path):
    path = packed(tmp_path / "wal.tar", member(SEGMENT, b"c" * 5000))
    with open(path, "r+b") as stream:
        stream.truncate(3000)
    with pytest.raises(BackupError, match=SEGMENT):
        restore.unpack_received(backup_server, path)
    with pytest.raises(BackupError, match=SEGMENT):
        restore.unpack_received(backup_server, packed(tmp_path / "wal.tar", member(SEGMENT), member(SEGMENT)))
    (tmp_path / "wal.tar").write_bytes(b"x" * 512)
    with pytest.raises(BackupError):
        restore.unpack_received(backup_server, str(tmp_path / "wal.tar"))
    assert not received.exists()


def test_an_archive_that_ends_between_segments_is_not_used(backup_server, received, tmp_path):
    path = packed(tmp_path / "wal.tar", member(SEGMENT), member(SEGMENT + ".partial"))
    with open(path, "rb") as stream:
        content = stream.read()
    # Without the end; without the second segment and the end.
    for size in (2048, 1024):
        (tmp_path / "wal.tar").write_bytes(content[:size])
        with pytest.raises(BackupError):
            restore.unpack_received(backup_server, path)
        assert not received.exists()
    (tmp_path / "wal.tar").write_bytes(content)
    with pytest.raises(BackupError, match="2 segments of 3"):
        restore.unpack_received(backup_server, path, 3)
    assert not received.exists()
    (tmp_path / "wal.tar").write_bytes(content)
    restore.unpack_received(backup_server, path, 2)
    assert len(os.listdir(received)) == 2


def test_wal_that_cannot_be_used_stops_no_database(backup_server, received, tmp_path, place):
    plan = restore.Plan("run", "20261127-000000F", [], "everything", None, False, 1, 1)._asdict()
    path = packed(tmp_path / "wal.tar", member("authorized_keys"))
    request = {"id": "r1", "database": plan, "received_archive": path}
    place.marker.unlink()
    backup_server.options["lock_wait_seconds"] = 60
    with pytest.raises(BackupError, match="authorized_keys"):
        restore.database_here(backup_server, request)
    assert place.words == [] and not place.marker.exists()


@pytest.mark.parametrize("change", [{"label": "--repo1-path=/x"}, {"label": ["F1"]}, {"size_bytes": "1"}])
def test_a_plan_that_names_no_backup_is_not_carried_out(backup_server, place, change):
    plan = restore.Plan("run", "20261127-000000F", [], "everything", None, False, 1, 1)._asdict()
    with pytest.raises(BackupError, match="nothing was restored"):
        restore.database_here(backup_server, {"id": "r1", "database": {**plan, **change}})
    assert place.words == []


def test_a_killed_restore_is_reverted_and_reported(backup_server, place, capsys):
    restore.undo(backup_server, "another")
    assert place.content() == "new" and place.marker.exists()
    restore.undo(backup_server, "r1")
    assert place.content() == "old" and '"failed": "the restore was killed' in capsys.readouterr().out
    assert [words[1] for words in place.words if words[0] == "systemctl"] == ["stop", "start"]
    assert "restore r1: the restore was killed" in (place.data.parent / "log").read_text()
    restore.undo(backup_server, "r1")
    assert capsys.readouterr().out == ""


def test_a_repository_that_cannot_be_read_is_not_called_empty(backup_server, monkeypatch):
    there = (
        '[{"name": "shiftmaster", "db": [], "backup": [], "archive": [], "status": {"code": 99, "message": "other"}, '
    )
    there += '"repo": [{"key": 1, "cipher": "none", "status": {"code": 99, "message": "[PathOpenError] denied"}}]}]'
    monkeypatch.setattr(backup_server, "info", lambda _stanza: there)
    with pytest.raises(BackupError, match="no verified backup.*the repository cannot be read"):
        restore.plan(backup_server, {"target": "latest", "parts": ["database"]})


def recorded_plan(backup_server, monkeypatch, version):
    """Plan a restore of the recorded backup, which is of PostgreSQL 17, on a host of that version."""
    recorded = Path(__file__).resolve().parents[1] / "recorded/backup/info.json"
    chosen = restore.Plan("r1", "20261126-154259F", [], "its end", None, True, 1000, 1, "shiftmaster")
    monkeypatch.setattr(backup_server, "info", lambda *_stanza: recorded.read_text())
    monkeypatch.setattr(restore, "choose", lambda *_arguments: chosen)
    monkeypatch.setattr(restore, "received", lambda _host: [])
    monkeypatch.setattr(restore.archive, "last_segment", lambda *_arguments: "")
    monkeypatch.setattr(restore.archive, "of", lambda *_arguments: [])
    backup_server.database["version"] = version
    return restore.plan(backup_server, {"target": "latest", "parts": ["database"]})


def test_a_backup_of_another_major_version_is_refused_before_anything_stops(backup_server, monkeypatch):
    assert recorded_plan(backup_server, monkeypatch, "17")["database"]["label"] == "20261126-154259F"
    with pytest.raises(BackupError, match="is of PostgreSQL 17, and this host runs 18"):
        recorded_plan(backup_server, monkeypatch, "18")


@pytest.mark.parametrize(("version", "calls"), [("17", []), ("18", ["stanza-upgrade"])])
def test_the_stanza_follows_the_major_version(backup_server, monkeypatch, version, calls):
    recorded = Path(__file__).resolve().parents[1] / "recorded/backup/info.json"
    called = []
    monkeypatch.setattr(backup_server, "info", lambda *_stanza: recorded.read_text())
    monkeypatch.setattr(backup_server, "pgbackrest", lambda _what, *words: called.extend(words))
    monkeypatch.setattr(backup_init, "names_of_parts", lambda _host: [])
    backup_server.options["wal_receive"] = True
    backup_server.database.update(version=version, databases=["shiftmaster"])
    backup_init.init(backup_server)
    assert called == calls


def test_a_manifest_that_cannot_be_read_is_named_where_no_backup_is_found(backup_server, tmp_path):
    (tmp_path / "backups/manifests").mkdir()
    (tmp_path / "backups/manifests" / "20261127T000000Z-aaaaaa.json").write_text("{")
    with pytest.raises(BackupError, match="no good backup of files.*20261127T000000Z-aaaaaa.json is damaged"):
        restore.plan(backup_server, {"target": "latest", "parts": ["files"]})


def test_a_run_does_not_take_the_name_of_one_that_has_been(backup_server, tmp_path):
    run = backup_run.Run.__new__(backup_run.Run)
    run.host, run.run_id = backup_server, "20261127T000000Z-aaaaaa"
    run.directory, run.path = str(tmp_path), str(tmp_path / "one.json")
    (tmp_path / "one.json").write_text("what proves it")
    with pytest.raises(BackupError, match="there has been a run 20261127T000000Z-aaaaaa"):
        run.execute()
    assert (tmp_path / "one.json").read_text() == "what proves it"


@pytest.fixture
def run_of_two(backup_server, tmp_path, monkeypatch):
    monkeypatch.setattr(backup_run.report, "conclude", lambda _host, manifest: manifests.exit_code(manifest))
    backup_server.options.update(application_root="", offsite={}, log_file=str(tmp_path / "log"), deploy_lock="")
    backup_server.options["sources"] = []
    run = backup_run.Run.__new__(backup_run.Run)
    run.host, run.run_id, run.request, run.parts = backup_server, "r1", {}, ["files", "configuration"]
    run.directory = str(tmp_path / "backups/manifests")
    run.path, run.history = run.directory + "/r1.json", manifests.history(run.directory)
    run.damaged, run.damaged_labels = False, set()
    return run


def test_the_release_of_another_host_is_read_as_what_an_attacker_may_have_sent(run_of_two, tmp_path):
    root = tmp_path / "sent"
    (root / "releases/r1").mkdir(parents=True)
    (root / "slots/blue").mkdir(parents=True)
    (root / "active").symlink_to("slots/blue")
    (root / "slots/blue/release").symlink_to("/elsewhere/releases/r1")
    manifest = root / "releases/r1/manifest.json"
    run_of_two.host.options["application_root"] = str(root)
    run_of_two.migrations = lambda: 5
    manifest.write_text('{"version": "2.0.0\\n2026-01-01 FAILED", "revision": "abc"}')
    assert run_of_two.release() == {
        "name": "r1", "version": "2.0.0?2026-01-01 FAILED", "revision": "abc", "migrations": 5,
    }  # fmt: skip
    for text in ("[]", "5", "null", "{", "[" * 200000):
        manifest.write_text(text)
        assert run_of_two.release() == {}
    (tmp_path / "secret").write_text('{"version": "of another file"}')
    for make in (lambda: manifest.symlink_to(tmp_path / "secret"), lambda: os.mkfifo(manifest)):
        manifest.unlink()
        make()
        assert run_of_two.release() == {}
    manifest.unlink()
    # Its directory leads elsewhere.
    (root / "releases/r1").rmdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.json").write_text('{"version": "of another directory"}')
    (root / "releases/r1").symlink_to(tmp_path / "other")
    assert run_of_two.release() == {}


@pytest.mark.parametrize("odd", [IndexError("list index out of range"), TypeError("x"), AttributeError("y")])
def test_an_invalid_response_of_a_tool_fails_only_its_part(run_of_two, monkeypatch, odd):
    def save(part):
        if part == "files":
            raise odd
        run_of_two.seen(part, "compared", "all of it")
        return {"label": "l", "location": "/b", "size_bytes": 1, "added_bytes": 1}

    def invalid_too(*_arguments):
        raise odd

    run_of_two.save_files = save
    monkeypatch.setattr(backup_run, "prune", invalid_too)
    assert run_of_two.execute() == 1
    found = manifests.read(run_of_two.path)
    assert {name: part["result"] for name, part in found["parts"].items()} == {
        "files": "failed",
        "configuration": "succeeded",
    }
    output = f"a response was not understood ({type(odd).__name__}: {odd})"
    assert found["parts"]["files"]["problems"] == [{"code": "failed", "what": output, "where": ""}]
    assert [one["code"] for one in found["problems"]] == ["not_pruned"]


def test_a_host_that_sends_nothing_fails_the_run_and_not_what_others_have_sent(run_of_two, monkeypatch):
    def save(part):
        run_of_two.seen(part, "compared", "all of it")
        problems = [("source_failed", "reading files of app1: it sent no list of paths", "app1")] * (part == "files")
        run_of_two.damaged = run_of_two.damaged or bool(problems)
        return {"problems": problems, "label": "l", "location": "/b", "size_bytes": 1, "added_bytes": 1}

    run_of_two.save_files = save
    monkeypatch.setattr(backup_run, "prune", lambda *_arguments: ([], []))
    assert run_of_two.execute() == 1
    found = manifests.read(run_of_two.path)
    assert {name: part["result"] for name, part in found["parts"].items()} == {
        "files": "warning",
        "configuration": "succeeded",
    }
    assert found["result"] == "failed" and found["parts"]["files"]["problems"][0]["where"] == "app1"


LOCK = '{"operation": "deploy", "owner": "x", "expires": 1e12}'


def test_a_lock_of_another_host_does_not_block_the_backup_for_ever(run_of_two, monkeypatch, tmp_path):
    run = run_of_two
    run.manifest = manifests.begin("r1", "backup_server", ["files"], time.time())
    run.host.options["sources"] = [{"name": "app1", "parts": [{"name": "files", "paths": []}]}]
    monkeypatch.setattr(backup_run, "check_lock", lambda _host, _source: LOCK)
    run.wait_for_deploy()
    assert run.damaged and [one["code"] for one in run.manifest["problems"]] == ["deploy_runs"]
    # A backup of this host itself is waited for.
    (tmp_path / "lock.json").write_text(LOCK)
    run.host.options["deploy_lock"] = str(tmp_path / "lock.json")
    with pytest.raises(BackupError, match="deploy by x runs for longer than 0 s"):
        run.wait_for_deploy()
    # The run that holds the lock is the one that has begun this backup: an uninstall.
    (tmp_path / "lock.json").write_text(LOCK.replace('"owner"', f'"run_id": "{run.run_id}", "owner"'))
    run.host.options["sources"] = []
    run.wait_for_deploy()


def test_the_report_of_a_killed_run_waits_for_a_restore(backup_server, tmp_path, monkeypatch):
    waits, reported = [], []

    @contextlib.contextmanager
    def alone(_host, _operation, seconds):
        waits.append(seconds)
        yield

    monkeypatch.setattr(backup_run, "alone", alone)
    monkeypatch.setattr(backup_run.report, "conclude", lambda _host, manifest: reported.append(manifest["run_id"]))
    monkeypatch.setattr(backup_run.report, "not_begun", lambda _host, unit, *_more: reported.append(unit))
    (tmp_path / "backups/manifests").mkdir()
    manifests.write(
        str(tmp_path / "backups/manifests" / "r1.json"),
        manifests.begin("r1", "backup_server", ["files"], time.time() - 60),
    )
    backup_run.after_a_killed_one(backup_server, "shiftmaster-backup.service", False)
    assert reported == ["r1"] and waits == [float("inf")]
    # Another run has ended it while the lock was waited for: it is no second one.
    backup_run.after_a_killed_one(backup_server, "shiftmaster-backup.service", False)
    assert reported == ["r1"]
    monkeypatch.setattr(backup_run, "JUST_NOW_SECONDS", -5)
    backup_run.after_a_killed_one(backup_server, "shiftmaster-backup@x.service", False)
    assert reported == ["r1", "shiftmaster-backup@x.service"]
    backup_run.after_a_killed_one(backup_server, "", True)
    assert waits[-1] == 0


# --- the lock of the backups, and the maintenance page --------------------------------------------------------------


def test_a_running_backup_is_waited_for_before_the_maintenance_page():
    tasks = yaml.safe_load((Path(__file__).parents[3] / "roles/restore/tasks/in_place.yml").read_text())
    names = [task["name"] for task in tasks]
    wait = names.index("Restore | Wait for a running backup, while users still work")
    assert tasks[wait]["vars"]["backup_restore_step"] == "free" and "backup_server_host" in tasks[wait]["when"]
    assert names[wait + 1] == "Restore | Acquire the lock of deploys"
    assert "Enable the maintenance page" in tasks[wait + 2]["block"][0]["name"]


@pytest.mark.parametrize(
    ("schema", "held"),
    [
        ({"safe_to_rollback": True, "unapplied": []}, False),
        ({"safe_to_rollback": True, "unapplied": ["a.0002_x"]}, True),
        ({"safe_to_rollback": False, "unapplied": []}, True),
        ({"skipped": True}, False),
    ],
)
def test_a_boot_starts_no_background_work_on_a_restored_schema_that_does_not_fit(schema, held):
    tasks = yaml.safe_load((Path(__file__).parents[3] / "roles/restore/tasks/in_place.yml").read_text())
    block = next(task["block"] for task in tasks if "block" in task)
    names = [task["name"] for task in block]
    hold, fail, free, start = (
        next(number for number, name in enumerate(names) if words in name)
        for words in ("Disable background", "Fail with the page enabled", "Enable background", "Start the application")
    )
    assert hold + 1 == fail < free < start
    known = {
        "inventory_hostname": "a", "groups": {"app": ["a"]}, "shiftmaster_lock_host": "a",
        "hostvars": {"a": {"restore_schema": schema}},
        **{key: trust_as_template(value) for key, value in block[hold]["vars"].items()},
    }  # fmt: skip
    templar = Templar(DataLoader(), known)
    assert held == all(templar.evaluate_conditional(trust_as_template(one)) for one in block[hold]["when"])


@pytest.mark.parametrize("given", ["", "r1; id", "r1 -e shiftmaster_git_url=x", "r1\nid", "$(id)", "-e"])
def test_a_command_for_operators_contains_nothing_else_of_another_host(given):
    tasks = yaml.safe_load((Path(__file__).parents[3] / "roles/restore/tasks/in_place.yml").read_text())
    (task,) = [one for task in tasks for one in task.get("block", ()) if "Fail with the page enabled" in one["name"]]

    def message(version, name):
        known = {
            "restore_schema": {"unapplied": ["x"]}, "restore_releases": {"current_version": version},
            "restore_decided": {"release": {"version": "1", "name": name}},
            **{key: trust_as_template(value) for key, value in task.get("vars", {}).items()},
        }  # fmt: skip
        return Templar(DataLoader(), known).template(trust_as_template(task["ansible.builtin.fail"]["msg"]))

    output = message("v1.2", "20261126T000000Z-0123456")
    assert "shiftmaster_version=v1.2;" in output and output.endswith("rollback.yml -e to=20261126T000000Z-0123456")
    output = message(given, given)
    assert "shiftmaster_version=<version>;" in output and output.endswith("rollback.yml -e to=<release>")


def test_the_holder_of_the_lock_is_reported_before_anything_changes(backup_server, monkeypatch):
    backup_server.options["lock_wait_seconds"] = 1800
    waits = []

    def held(_host, _operation, seconds):
        waits.append(seconds)
        raise BackupError("backup X holds the lock of the backups for longer than %d s" % seconds)

    monkeypatch.setattr(restore, "alone", held)
    with pytest.raises(BackupError, match="^nothing was changed: backup X holds the lock .* 1800 s; repeat"):
        restore.free(backup_server, {"id": "r1"})
    # With the page enabled for a minute at most.
    backup_server.database["data"] = "/nowhere"
    plan = restore.Plan("run", "20261127-000000F", [], "everything", None, False, 1, 1)._asdict()
    with pytest.raises(BackupError, match="for longer than 60 s"):
        restore.database_here(backup_server, {"id": "r1", "database": plan})
    assert waits == [1800, 60]


@pytest.mark.parametrize("local", [True, False])
def test_a_backup_of_another_host_changes_no_backup_that_is_there(tmp_path, monkeypatch, local):
    """The other host names the files; a name with `..` led out of the backup that was being made (tried)."""
    monkeypatch.setattr(backup_run.sandbox, "ROOT", str(tmp_path / "root"))
    calls = []
    options = {"archive_timeout_seconds": 60,
        "directory": "/b", "stanza": "s", "tls_directories": ["/tls"], "timeout_seconds": 9,
        "database": {"version": "17", "local": local},
    }  # fmt: skip
    run = backup_run.Run.__new__(backup_run.Run)
    run.host = Host(options)
    run.host.run = lambda what, *command, **more: calls.append(command)
    run.back_up("full", ["20261101-000000F"])
    (words,) = calls
    assert words[-4:] == ("--stanza=s", "--type=full", "--archive-timeout=60", "backup")
    if local:
        assert words[0] == "setpriv"
        return
    given = [word.partition("=")[2] for word in words if word.startswith("--property=")]
    assert 'BindReadOnlyPaths=-"/b/pgbackrest/backup/s/20261101-000000F"' in given
    assert {'BindPaths="/b/pgbackrest/backup"', 'BindPaths="/b/pgbackrest/archive"', "User=postgres"} <= set(given)
    assert {"CapabilityBoundingSet=", "RootDirectory=" + backup_run.sandbox.ROOT} <= set(given)
    # In another zone, a label would not come after the one before it.
    assert 'BindReadOnlyPaths=-"/etc/localtime"' in given


def test_a_backup_server_that_does_not_respond_delays_only_one_segment(backup_server, tmp_path, monkeypatch):
    """Users see the maintenance page meanwhile."""
    for number in range(3):
        (tmp_path / ("0000000100000000000000%02X" % number)).touch()
    requested, passed = [], [0]

    def pgbackrest(what, *_arguments, timeout=0, **_more):
        requested.append(timeout)
        passed[0] += timeout
        raise BackupError("%s did not end" % what)

    monkeypatch.setattr(backup_server, "pgbackrest", pgbackrest)
    monkeypatch.setattr(backup_server, "log", lambda _text: None)
    monkeypatch.setattr(restore.time, "monotonic", lambda: float(passed[0]))
    restore._archive_received(backup_server, "/data", str(tmp_path))
    assert requested == [300]


def test_nothing_old_is_removed_while_a_manifest_cannot_be_read(run_of_two, monkeypatch):
    run_of_two.history = manifests.History([], ["x.json is no manifest"])
    monkeypatch.setattr(backup_run, "prune", lambda *_arguments: pytest.fail("it may have verified a snapshot"))
    run_of_two.manifest = manifests.begin("r1", "h", ["files"], 1000.0)
    run_of_two.prune()
    (problem,) = run_of_two.manifest["problems"]
    assert problem["code"] == "not_pruned" and run_of_two.directory in problem["what"]
