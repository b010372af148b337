"""Pruning and restores, phase by phase, on a fake host: its commands (Host.run), its clock, files in a directory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.module_utils.shiftmaster.backup import manifest as manifests
from ansible.module_utils.shiftmaster.backup import prune as backup_prune
from ansible.module_utils.shiftmaster.backup import restore as backup_restore
from ansible.module_utils.shiftmaster.backup import run as backup_run
from ansible.module_utils.shiftmaster.backup import verification as backup_verification
from ansible.module_utils.shiftmaster.backup.host import BackupError, Host
from ansible.module_utils.shiftmaster.host.safe_files import UnsafePathError

DAY = 86400
NOW = 1795700000.0
UNIT = "postgresql@17-main.service"
LABEL = "20261101-000000F"
THEIRS = 1234 if os.geteuid() == 0 else os.getuid()
BECOME = ("setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups")


def wal(number):
    return "00000001%016X" % number


class FakeHost(Host):
    """A host whose commands respond from attributes; each command is recorded as (program, words...).

    fails: the beginnings of commands that end with an error.
    """

    def __init__(self, directory):
        super().__init__(
            {
                "directory": str(directory / "backups"), "state": str(directory / "state"), "scratch": str(directory /
                "scratch"), "stanza": "shiftmaster", "host": "db1", "keep_days": 30,
            "keep_months": 0, "keep_years": 0, "limit_bytes": 0,
                "lock_wait_seconds": 1800, "recovery_timeout_seconds": 100, "archive_timeout_seconds": 9, "process_max":
                2, "restic_password_file": "/key", "restore_config": "/restore.conf", "log_file": str(directory /
                "log/log"), "parts": [{"name": "files", "paths": [str(directory / "media")], "exclude": []}], "sources":
                [], "database": {
                    "version": "17", "databases": ["shiftmaster"], "data": str(directory / "data/main"),
                    "name": "shiftmaster", "host": "", "port": 5432, "user": "backup",
                    "sslmode": "disable", "passfile": "/passfile",
                },
            }
        )  # fmt: skip
        self.words, self.fails, self.backups = [], [], []
        self.last_wal, self.earlier_wal = wal(9), wal(7)
        self.more_wal, self.histories = [], {}
        self.snapshots, self.stay, self.state, self.free, self.in_recovery = [], set(), "active", 1 << 40, ["f"]
        self.settings, self.options_of, self.log_lines = "", [], []
        self.react = lambda words: None
        for name in ("backups/pgbackrest/archive", "state", "data/main/global"):
            (directory / name).mkdir(parents=True)

    def free_bytes(self, directory=""):
        self.requested_room = directory or self.directory
        return self.free

    def log(self, text):
        self.log_lines.append(text)

    def run(self, what, *command, fine=(0,), **more):
        self.options_of.append(more)
        if command[: len(BECOME)] == BECOME:
            command = command[len(BECOME) :]
            who = "postgres"
        else:
            who = "root"
        self.words.append((os.path.basename(command[0]), *command[1:]))
        failed = any(self.words[-1][: len(one)] == one for one in self.fails)
        if failed and 1 not in fine:
            raise BackupError("%s ended with 1: broken" % what)
        self.react(self.words[-1])
        out = getattr(self, "_" + self.words[-1][0].replace("-", "_"), lambda _who, *_words: "")(who, *command[1:])
        return subprocess.CompletedProcess(command, int(failed), out or "", "")

    def called(self, program):
        return [words[1:] for words in self.words if words[0] == program]

    def _systemctl(self, who, verb, *_words):
        assert who == "root"
        return self.state + "\n" if verb == "is-active" else ""

    def _pgbackrest(self, who, *words):
        assert who == "postgres" and "--stanza=shiftmaster" in words
        if "repo-ls" in words:
            return self.listed(words[words.index("repo-ls") + 1].rsplit("/", 1)[-1])
        if "repo-get" in words:
            return self.histories[words[-1].rsplit("/", 1)[-1]]
        return self.catalogue() if words[-1] == "info" else ""

    def listed(self, directory):
        """`pgbackrest repo-ls` of an archive: every segment up to the last one, and what else is there."""
        last = {"16-1": self.earlier_wal, "17-1": self.last_wal}[directory]
        names = [wal(number) for number in range(1, int(last[8:], 16) + 1)]
        names += self.more_wal if directory == "17-1" else []
        paths = ["%s/%s-%s.zst" % (name[:16], name, "a" * 40) for name in names] + list(self.histories)
        return json.dumps({path: {"type": "file", "time": int(NOW)} for path in paths})

    def _restic(self, who, *words):
        assert who == "root" and words[0] == "--quiet"
        if words[1] == "snapshots":
            return json.dumps(self.snapshots)
        if words[1] == "forget":
            self.snapshots = [one for one in self.snapshots if one["id"] not in words or one["id"] in self.stay]
        return ""

    def _psql(self, who, *words):
        if who == "root":
            return wal(10)  # Processes of the login `backup`.
        if "pg_is_in_recovery" in words[-1]:
            return (self.in_recovery.pop(0) if len(self.in_recovery) > 1 else self.in_recovery[0]) + "\n"
        return self.settings if "pg_file_settings" in words[-1] else ""

    # Root changes nothing below a directory of postgres by its name.

    def _cp(self, who, *words):
        assert who == "postgres"
        subprocess.run(["cp", *words], check=True)

    def _find(self, who, *words):
        assert who == "postgres"
        return subprocess.run(["find", *words], check=True, stdout=subprocess.PIPE, text=True).stdout

    def _tar(self, who, *words):
        assert who == "root"
        subprocess.run(["tar", *words], check=True)

    def catalogue(self):
        """`pgbackrest info` of full backups: [(label, seconds when it ended)]."""
        return json.dumps(
            [
                {
                    "name": "shiftmaster",
                    "db": [{"id": 1, "repo-key": 1, "system-id": 7, "version": "17"}],
                    "status": {"code": 0, "message": "ok"},
                    "repo": [{"key": 1, "cipher": "aes", "status": {"code": 0, "message": "ok"}}],
                    "archive": [
                        {
                            "id": name, "database": {"id": 1, "repo-key": 1}, "min": last and wal(1),
                            "max": last and max([last, *(self.more_wal if name == "17-1" else [])]),
                        }
                        for name, last in (("16-1", self.earlier_wal), ("17-1", self.last_wal), ("18-2", None))
                    ],
                    "backup": [
                        {
                            "label": label, "type": "full", "prior": None, "reference": None, "error": False,
                            "database": {"id": 1, "repo-key": 1}, "timestamp": {"start": int(at) - 9, "stop": int(at)},
                            "archive": {"start": wal(2), "stop": wal(2)}, "lsn": {"start": "0/2", "stop": "0/3"},
                            "info": {"size": 1000, "repository": {"delta": 100}},
                        }
                        for label, at in self.backups
                    ],
                }
            ]
        )  # fmt: skip


DATABASE = {
    "kind": "full", "wal": {"start": wal(2), "stop": wal(2), "verified": wal(3)}, "restore_point": "p", "system_id": 7,
}  # fmt: skip


def run_of(run_id, days, result="succeeded", labels=None, **parts):
    """A manifest of a run that ended so many days ago, with a label of each part that was saved."""
    at = NOW - days * DAY
    manifest = manifests.begin(run_id, "db1", parts or labels, at - 60)
    for part, label in (labels or parts).items():
        manifests.start(manifest, part, at - 50)
        manifests.verified(manifest, part, manifests.RESTORED, result != "failed", "x", at - 20)
        more = DATABASE if part == "database" else {}
        manifests.end(manifest, part, result, at, label=label, size_bytes=1000, added_bytes=1, location="/b", **more)
    manifests.finish(manifest, at)
    return manifest


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOW)
    return FakeHost(tmp_path)


# --- pruning ---------------------------------------------------------------------------------------------------------


class Past:
    """Daily runs of 40 days that saved all parts."""

    DAYS = range(40, -1, -1)

    def __init__(self, host):
        self.runs = []
        for day in self.DAYS:
            labels = {
                "database": "F%02d" % day, "logical": "r%02d" % day, "files": "f%02d" % day,
                "configuration": "c%02d" % day,
            }  # fmt: skip
            self.runs.append(run_of("r%02d" % day, day, labels=labels))
            host.backups.append((labels["database"], NOW - day * DAY))
            (Path(host.directory) / "logical" / labels["logical"]).mkdir(parents=True)
            for part in ("files", "configuration"):
                host.snapshots.append(snapshot(labels[part], day, tags=[part, "run=x"]))

    def prune(self, host, **more):
        return backup_prune.prune(host, self.runs[-1], self.runs[:-1], **more)


def snapshot(name, days, host="db1", tags=("files",)):
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - days * DAY))
    return {"id": name, "time": at, "hostname": host, "tags": list(tags)}


@pytest.fixture
def past(host):
    return Past(host)


OLD = ["%02d" % day for day in range(40, 30, -1)]  # The 30 days are restored from the day before them, r30.


def test_backups_older_than_their_days_are_removed_for_each_part(host, past):
    removed, problems = past.prune(host)
    assert problems == []
    expired = [word[len("--set=") :] for words in host.called("pgbackrest") for word in words if "--set=" in word]
    assert sorted(expired) == sorted("F" + day for day in OLD)
    # The last call removes the WAL that no full backup needs any more.
    assert host.called("pgbackrest")[-1] == (
        "--stanza=shiftmaster", "--repo=1", "--repo1-retention-archive-type=full", "--repo1-retention-archive=31",
        "expire",
    )  # fmt: skip
    (forget,) = [words for words in host.called("restic") if "forget" in words]
    assert forget[:3] == ("--quiet", "forget", "--prune")
    assert sorted(forget[3:]) == sorted(part + day for part in "cf" for day in OLD)
    assert sorted(os.listdir(Path(host.directory) / "logical")) == ["r%02d" % day for day in range(31)]
    assert sorted(removed) == sorted(part + day for part in "Fcfr" for day in OLD)


def test_fetched_snapshots_are_kept_as_those_are_that_were_saved_here(host, past):
    """restic copy gives a snapshot another id, and names the one of before."""
    for one in host.snapshots:
        one.update(original=one["id"], id="copy-" + one["id"])
    removed, problems = past.prune(host)
    assert problems == []
    assert sorted(removed) == sorted(
        [part + day for part in "Fr" for day in OLD] + ["copy-%s%s" % (part, day) for part in "cf" for day in OLD]
    )


@pytest.fixture
def earlier(host, past, monkeypatch):
    """A stanza of an earlier passphrase; its directories, and how many days ago its last backup ended."""
    place = Path(host.directory) / "pgbackrest"
    for kind in ("archive", "backup"):
        for name in ("shiftmaster", "shiftmaster-1"):
            (place / kind / name).mkdir(parents=True)
    found = SimpleNamespace(days=40, code=0, place=place)
    host.stanzas = ("shiftmaster", "shiftmaster-1")
    today = FakeHost._pgbackrest

    def pgbackrest(who, *words):
        if "--stanza=shiftmaster-1" not in words:
            return today(host, who, *words)
        there = (place / "backup/shiftmaster-1").exists() and not found.code
        data = json.loads(host.catalogue())[0]
        status = {"code": 0 if there else found.code or 1, "message": ""}
        one = dict(data["backup"][0], timestamp={"start": 1, "stop": int(NOW - found.days * DAY)})
        data.update(name="shiftmaster-1", status=status, backup=[one] if there else [])
        data["repo"][0]["status"] = status
        return json.dumps([data])

    monkeypatch.setattr(host, "_pgbackrest", pgbackrest)
    return found


def test_a_stanza_of_an_earlier_passphrase_goes_when_the_days_are_restored_without_it(host, past, earlier):
    host.backups = [one for one in host.backups if one[0] <= "F35"]
    removed, problems = past.prune(host)
    assert "shiftmaster-1" in removed and problems == []
    for kind in ("archive", "backup"):
        assert os.listdir(earlier.place / kind) == ["shiftmaster"]
    assert not [words for words in host.called("pgbackrest") if "--set=shiftmaster-1" in words]


def test_a_stanza_of_an_earlier_passphrase_stays_while_it_is_needed(host, past, earlier):
    # The first backup of today's is 20 days old: the ten days before it are restored from the earlier one.
    host.backups = [one for one in host.backups if one[0] <= "F20"]
    for earlier.days in (21, 29, 36):
        removed, problems = past.prune(host)
        assert "shiftmaster-1" not in removed and problems == []
    # No backup of today's is verified.
    earlier.days = 40
    assert "shiftmaster-1" not in past.prune(host, damaged={one[0] for one in host.backups})[0]
    # Its passphrase is wrong.
    earlier.code = 99
    removed, problems = past.prune(host)
    assert "shiftmaster-1" not in removed and [one[0] for one in problems] == ["unreadable"]
    assert (earlier.place / "archive/shiftmaster-1").is_dir() and (earlier.place / "backup/shiftmaster-1").is_dir()


@pytest.mark.parametrize("left", ["archive/shiftmaster-1", "backup/shiftmaster-1.removed"])
def test_a_removal_of_a_stanza_that_was_killed_is_completed(host, past, earlier, left):
    for kind in ("archive", "backup"):
        (earlier.place / kind / "shiftmaster-1").rmdir()
    (earlier.place / left).mkdir()
    past.prune(host)
    assert not (earlier.place / left).exists() and (earlier.place / "archive/shiftmaster").is_dir()


def test_a_snapshot_that_another_host_or_another_kind_has_saved_stays(host, past):
    host.snapshots += [snapshot("theirs", 90, host="app1"), snapshot("kept", 90, tags=("before-restore",))]
    removed, problems = past.prune(host)
    assert {"theirs", "kept"} <= {one["id"] for one in host.snapshots} and not {"theirs", "kept"} & set(removed)
    # They are not planned either: without verifications of this host's runs each would be a problem.
    assert problems == []


def test_doubt_about_the_snapshots_of_a_kind_is_reported_and_removes_none_of_it(host, past):
    """The newest one is of no known run: somebody else may have saved it, or the manifests are lost."""
    host.snapshots.append(snapshot("unknown", 0))
    removed, problems = past.prune(host)
    assert [(one[0], one[2]) for one in problems] == [("newest_not_verified", "unknown")]
    assert not [one for one in removed if one[0] == "f"] and "c40" in removed


@pytest.mark.parametrize(
    ("failed", "stay", "program"),
    [("database", "F", "pgbackrest"), ("files", "f", ""), ("configuration", "c", ""), ("logical", "r", "")],
)
def test_a_part_that_this_run_has_not_saved_is_left_alone(host, past, failed, stay, program):
    past.runs[-1]["parts"][failed]["result"] = "failed"
    removed, problems = past.prune(host)
    assert sorted(removed) == sorted(part + day for part in "Fcfr" if part != stay for day in OLD)
    assert problems == [] and (not program or host.called(program) == [])


def test_without_files_restic_is_not_queried(host, past):
    for part in ("files", "configuration"):
        past.runs[-1]["parts"][part]["result"] = "failed"
    past.prune(host)
    assert host.called("restic") == []


def test_the_run_that_prunes_counts_as_one_that_has_ended(host, past):
    """Its manifest has no end yet, and may be among those that are read."""
    past.runs[-1]["ended"] = None
    removed, problems = backup_prune.prune(host, past.runs[-1], past.runs)
    assert problems == [] and "F40" in removed and "F00" not in removed


def test_damaged_backups_are_no_reason_to_remove_others(host, past):
    labels = {"F%02d" % day for day in past.DAYS} | {"r%02d" % day for day in past.DAYS}
    removed, problems = past.prune(host, damaged=labels)
    assert sorted({one.code for one in problems}) == ["no_verified"] and len(problems) == 2
    assert not [one for one in removed if one[0] in "Fr"]


def test_a_clock_that_jumped_removes_nothing(host, past, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOW + 400 * DAY)
    removed, problems = past.prune(host)
    assert removed == [] and {one.code for one in problems} >= {"gap"} and len(problems) >= 4
    assert [words for words in host.called("pgbackrest") if words[-1] == "expire"] == []


@pytest.mark.parametrize("make", ["link", "pipe", "unreadable"])
def test_the_archive_of_a_hostile_database_host_does_not_mislead_expire(host, past, make):
    """pgbackrest expire follows a link with a segment's name and empties what it leads to: all backups (tried)."""
    directory = Path(host.directory) / "pgbackrest/archive/shiftmaster/17-1"
    directory.mkdir(parents=True)
    if make == "link":
        (directory / "0000000000000000").symlink_to("../../../backup/shiftmaster")
    elif make == "pipe":
        os.mkfifo(directory / "00000002.history")
    else:
        host.fails = [("find",)]
    removed, problems = past.prune(host)
    assert [one.code for one in problems] == ["archive_links"]
    assert not [words for words in host.called("pgbackrest") if words[-1] == "expire"]
    assert sorted(removed) == sorted(part + day for part in "cfr" for day in OLD)


def test_a_snapshot_that_was_not_removed_is_a_problem_and_not_reported_as_removed(host, past):
    host.stay = {"f40"}
    removed, problems = past.prune(host)
    assert [(one[0], one[2]) for one in problems] == [("not_removed", "f40")]
    assert "f40" not in removed and "f39" in removed


def test_a_dump_without_its_directory_is_no_dump(host, past):
    for day in range(31):
        (Path(host.directory) / "logical" / ("r%02d" % day)).rmdir()
    removed, problems = past.prune(host)
    assert not [one for one in removed if one[0] == "r"] and problems
    assert len(os.listdir(Path(host.directory) / "logical")) == 10


def test_a_dump_that_failed_is_not_counted(host, past):
    past.runs[-2]["parts"]["logical"]["result"] = "failed"
    removed, problems = past.prune(host)
    # Its directory is not this program's to remove either.
    assert problems == [] and "r40" in removed and (Path(host.directory) / "logical/r01").exists()


def test_backups_above_the_size_limit_are_reported_and_kept(host, past):
    (Path(host.directory) / "logical/r00/dump").write_bytes(b"x" * 1000)
    (Path(host.directory) / "logical/r01/dump").write_bytes(b"x" * 500)
    host.options["limit_bytes"] = 1500
    assert past.prune(host)[1] == []
    host.options["limit_bytes"] = 1499
    removed, problems = past.prune(host)
    assert [one.code for one in problems] == ["over_limit"] and "r00" not in removed


def test_bytes_of_what_goes_meanwhile_are_not_counted(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"12345")
    monkeypatch.setattr(os, "walk", lambda directory: [(directory, [], ["gone", "a"])])
    assert backup_prune.used_bytes(str(tmp_path)) == 5


def test_received_wal_goes_once_the_archive_has_it(host, past):
    """Not segments missing from the archive, not the newest, where the receiver continues, and only segments."""
    directory = Path(host.directory) / "wal"
    directory.mkdir()
    gone = [wal(7), wal(8), wal(9), wal(8) + ".partial"]
    left = [wal(10), "00000002.history", wal(11), wal(12) + ".partial"]
    for name in gone + left:
        (directory / name).touch()
    past.prune(host)
    assert sorted(os.listdir(directory)) == sorted(left)


def test_wal_received_before_a_restore_goes_once_no_backup_needs_it(host, past):
    for request, names in (("r1", [wal(7), wal(10)]), ("r2", [wal(7), wal(8) + ".partial", "00000002.history"])):
        (Path(host.directory) / ("wal.before-" + request)).mkdir()
        for name in names:
            (Path(host.directory) / ("wal.before-" + request) / name).touch()
    assert "wal.before-r2" in past.prune(host)[0]
    assert [path.name for path in Path(host.directory).glob("wal.before-*")] == ["wal.before-r1"]


def test_a_segment_of_another_timeline_makes_no_received_wal_look_archived(host, past):
    """The database host writes the archive: it can add any name."""
    directory = Path(host.directory) / "wal"
    directory.mkdir()
    host.more_wal = ["000000FF00000000000000FF", wal(14)]
    names = [wal(9), wal(10), wal(11), wal(14), wal(12) + ".partial", wal(13), "000000FE0000000000000001"]
    for name in names:
        (directory / name).touch()
    left = [wal(10), wal(11), wal(12) + ".partial", wal(13)]
    assert backup_restore.received(host) == left
    past.prune(host)
    # The newest one by its number: the receiver goes by it.
    assert sorted(os.listdir(directory)) == [*left, wal(14)]


def test_the_newest_received_segment_stays_though_the_archive_has_it(host, past):
    directory = Path(host.directory) / "wal"
    directory.mkdir()
    for name in (wal(7), wal(8)):
        (directory / name).touch()
    past.prune(host)
    assert os.listdir(directory) == [wal(8)]


def test_the_newest_received_segment_is_that_of_the_newest_timeline(host, past):
    directory = Path(host.directory) / "wal"
    directory.mkdir()
    host.more_wal = ["%08X%016X" % (2, 14)]
    for name in (wal(14) + ".partial", *host.more_wal):
        (directory / name).touch()
    past.prune(host)
    assert sorted(os.listdir(directory)) == [wal(14) + ".partial", *host.more_wal]


def test_without_an_archive_all_received_wal_stays(host, past):
    directory = Path(host.directory) / "wal"
    directory.mkdir()
    for name in (wal(7), wal(8)):
        (directory / name).touch()
    host.last_wal = host.earlier_wal = None
    past.prune(host)
    assert len(os.listdir(directory)) == 2


def test_verified_labels_are_those_of_runs_that_have_ended():
    good, bad, warned, begun = (
        run_of("r%d" % number, number, result, files="f%d" % number)
        for number, result in enumerate(("succeeded", "failed", "warning", "succeeded"))
    )
    begun["ended"] = None
    nothing = run_of("r9", 9, files="")
    assert backup_prune.verifications([good, bad, warned, begun, nothing], "files") == {
        "f0": True,
        "f1": False,
        "f2": True,
    }
    assert backup_prune.verifications([good], "database") == {}


def test_extracted_tables_are_kept_for_their_days(host):
    tables = Path(host.directory) / "tables"
    for name, days in (("old", 30.1), ("young", 29.9)):
        (tables / name).mkdir(parents=True)
        (tables / name / "t.dump").touch()
        os.utime(tables / name, (NOW - days * DAY,) * 2)
    assert backup_prune.forget_tables(host) == ["tables/old"] and os.listdir(tables) == ["young"]


# --- restores: the plan ----------------------------------------------------------------------------------------------


class Clock:
    """The module `time` of an engine: a sleep only moves it, and calls what is to happen meanwhile."""

    def __init__(self):
        self.passed, self.meanwhile = 0.0, lambda: None

    def time(self):
        return NOW

    def monotonic(self):
        return self.passed

    def sleep(self, seconds):
        assert seconds > 0 and self.passed < 10000
        self.passed += seconds
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(backup_restore, "time", clock)
    return clock


class Site:
    """A database host with data, whose lock is noted instead of taken."""

    def __init__(self, host, tmp_path, monkeypatch):
        self.host, self.data = host, tmp_path / "data/main"
        self.aside, self.marker = tmp_path / "data/main.before-r1", tmp_path / "state/restoring"
        (self.data / "global/pg_control").write_text("old")
        self.log, self.received = tmp_path / "postgresql-17-main.log", tmp_path / "state/received"
        self.log.write_text("LOG:  of the run before\n")
        self.waits, owner = [], SimpleNamespace(pw_uid=os.getuid(), pw_gid=os.getgid())
        monkeypatch.setattr(backup_restore, "_log_of", lambda _host: str(self.log))
        monkeypatch.setattr(backup_restore, "RECEIVED", str(self.received))
        monkeypatch.setattr(backup_restore.pwd, "getpwnam", {"postgres": owner}.__getitem__)
        monkeypatch.setattr(backup_restore, "MARKER", str(self.marker))
        monkeypatch.setattr(backup_restore, "alone", self.alone)
        monkeypatch.setattr(backup_restore.shutil, "chown", lambda *_arguments: None)
        host.react = self.react
        self.phases, self.modes = [], []

    @contextlib.contextmanager
    def alone(self, _host, operation, seconds):
        self.waits.append((operation, seconds))
        yield

    def react(self, words):
        if words[0] == "pgbackrest" and words[-1] == "restore":
            self.modes.append(self.data.stat().st_mode & 0o7777)
            (self.data / "global").mkdir(parents=True, exist_ok=True)
            (self.data / "global/pg_control").write_text("new")
        if self.marker.exists():
            self.phases.append((words[0], words[1], self.marker.read_text().splitlines()[-1]))

    def restore(self, arguments=(), size=1000, **request):
        plan = backup_restore.Plan("run", LABEL, list(arguments), "so far", None, False, size, 1)._asdict()
        return backup_restore.database_here(self.host, dict(request, id="r1", database=plan))

    def holds(self):
        return (self.data / "global/pg_control").read_text()


@pytest.fixture
def site(host, tmp_path, monkeypatch, clock):
    return Site(host, tmp_path, monkeypatch)


@pytest.fixture
def saved(host):
    """Three runs with all parts, of 3, 2 and 1 days ago."""
    directory = Path(host.directory) / "manifests"
    directory.mkdir()
    for day in (3, 2, 1):
        labels = {"database": "F%d" % day, "files": "f%d" % day, "configuration": "c%d" % day}
        run = run_of("r%d" % day, day, labels=labels)
        run["release"].update(name="release-%d" % day)
        manifests.verified(run, "database", manifests.RESTORED, True, "x", NOW - day * DAY + 70)
        manifests.write(str(directory / ("r%d.json" % day)), run)
        host.backups.append(("F%d" % day, NOW - day * DAY - 30))
    return host


def ago(days):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - days * DAY))


def test_a_plan_of_the_latest_goes_to_the_archives_last_segment_and_beyond(saved, clock):
    wal_dir = Path(saved.directory) / "wal"
    wal_dir.mkdir()
    for name in (wal(9), wal(10), wal(11) + ".partial"):
        (wal_dir / name).touch()
    made = backup_restore.plan(saved, {"target": "latest", "parts": ["database", "files", "configuration"]})
    assert made["database"]["label"] == "F1" and made["database"]["arguments"] == [] and made["database"]["run"] == "r1"
    assert made["last_segment"] == wal(9) and made["received"] == 2
    saved.more_wal = ["000000FF00000000000000FF"]
    again = backup_restore.plan(saved, {"target": "latest", "parts": ["database"]})
    assert again["last_segment"] == wal(9) and again["received"] == 2
    assert made["files"] == {"run": "r1", "label": "f1"} and made["configuration"] == {"run": "r1", "label": "c1"}
    assert sorted(made["parts"]) == ["configuration", "database", "files"]
    assert "F1" in made["parts"]["database"] and "took 90 s" in made["parts"]["database"]
    assert made["parts"]["files"].startswith("as of %s" % time.strftime("%Y-%m-%dT%H:%M", time.gmtime(NOW - DAY - 50)))
    assert made["release"]["name"] == "release-1" and "not reached the archive" in made["lost"]


def test_a_plan_for_a_time_reports_what_is_lost(saved, clock):
    made = backup_restore.plan(saved, {"target": ago(1.5), "parts": ["database", "files"]})
    assert made["database"]["label"] == "F2" and made["files"]["label"] == "f2" and "last_segment" not in made
    assert made["lost"].endswith("the last 1 day 12 hours") and made["release"]["name"] == "release-2"
    assert "configuration" not in made and made["received"] == 0


def test_a_plan_for_a_position_reports_that_later_data_is_lost(saved, clock):
    made = backup_restore.plan(saved, {"target": "0/9", "parts": ["database"]})
    assert made["lost"] == "what came later" and made["database"]["arguments"] and "last_segment" not in made


def test_a_plan_of_a_table_needs_the_database_and_one_of_files_does_not(saved, clock):
    made = backup_restore.plan(saved, {"target": "latest", "parts": [], "table": "roster"})
    assert made["database"]["label"] == "F1" and made["release"]["name"] == "release-1"
    saved.words.clear()
    made = backup_restore.plan(saved, {"target": "latest", "parts": ["files"]})
    assert saved.words == [] and "database" not in made and made["release"]["name"] == "release-1"
    assert backup_restore.plan(saved, {"target": "latest", "parts": []}) == {"parts": {}, "release": {}}


def test_a_plan_without_an_archive_knows_no_last_segment(saved, clock):
    saved.last_wal = saved.earlier_wal = None
    assert backup_restore.plan(saved, {"target": "latest", "parts": ["database"]})["last_segment"] == ""


def test_problems_of_one_backup_are_not_reported_for_the_repository(saved, clock):
    saved.backups = []
    with pytest.raises(BackupError, match="no verified backup.*; repository 1 holds no backup"):
        backup_restore.plan(saved, {"target": "latest", "parts": ["database"]})
    with pytest.raises(BackupError) as caught:
        backup_restore.plan(saved, {"target": "nonsense", "parts": ["files"]})
    assert ";" not in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.5, "second"), (1, "1 second"), (61, "1 minute 1 second"), (7200, "2 hours"), (90061, "1 day 1 hour"),
        (86400 * 2 + 5, "2 days 5 seconds"),
    ],
)  # fmt: skip
def test_a_length_of_time_has_two_parts_at_most(seconds, words):
    assert backup_restore.lasting(seconds) == words


# --- what was received -----------------------------------------------------------------------------------------------


@pytest.fixture
def received(host):
    directory = Path(host.directory) / "wal"
    directory.mkdir()
    for name in (wal(8), wal(9), wal(11), wal(10), wal(12) + ".partial", wal(13) + ".tmp", "00000002.history", "x"):
        (directory / name).touch()
    return directory


def test_received_is_what_the_archive_lacks(host, received):
    assert backup_restore.received(host) == [wal(10), wal(11), wal(12) + ".partial"]
    host.last_wal = host.earlier_wal = None
    assert backup_restore.received(host)[0] == wal(8)


def test_an_invalid_name_does_not_prevent_the_restore_of_received_wal(host, received):
    """One that is none of a segment, and a history that is none."""
    host.more_wal, host.histories = ["0000000100000000FFFFFFFF"], {"00000002.history": "x"}
    (received / "0000000100000000FFFFFFFF").touch()
    assert backup_restore.received(host) == [wal(10), wal(11), wal(12) + ".partial"]


def test_without_received_wal_the_list_is_empty(host):
    assert backup_restore.received(host) == []


def test_received_segments_are_packed_in_a_closed_directory(host, received):
    response = backup_restore.pack_received(host, {"id": "r1"})
    (words,) = host.called("tar")
    assert words == (
        "--create", "--file", response["archive"], "--directory", str(received), wal(10), wal(11), wal(12) + ".partial",
    )  # fmt: skip
    assert response["archive"] == host.directory + "/outgoing/r1-wal.tar" and response["restored"] == "3 segments"
    assert os.stat(host.directory + "/outgoing").st_mode & 0o777 == 0o700
    backup_restore.pack_received(host, {"id": "r2"})


def test_receiving_begins_again_and_what_was_received_is_kept(host, received, site):
    there = []
    host.react = lambda words: there.append((*words[1:], len(os.listdir(received))))
    response = backup_restore.wal_again(host, {"id": "r1"})
    unit = "shiftmaster-backup-wal.service"
    assert there == [("stop", unit, 8), ("start", unit, 0)]
    kept = Path(host.directory) / "wal.before-r1"
    assert len(os.listdir(kept)) == 8 and str(kept) in response["restored"]


def test_a_free_lock_is_released(host, site):
    assert backup_restore.free(host, {"id": "r1"})["restored"]
    assert [seconds for _operation, seconds in site.waits] == [1800]


# --- the database in its place ---------------------------------------------------------------------------------------


def words_of(host):
    """The commands of a restore, shortened."""
    return [words[:2] if words[0] == "systemctl" else (words[0], words[-1]) for words in host.words]


FETCH = ("--stanza=shiftmaster", "--config=/restore.conf", "--pg1-path={data}", "--set=" + LABEL, "--process-max=2")


def fetched(host, site):
    (words,) = [words for words in host.called("pgbackrest") if words[-1] == "restore"]
    head = tuple(one.format(data=site.data) for one in FETCH)
    assert words[: len(head)] == head
    return words[len(head) : -1]


def test_everything_in_the_archive_is_restored_by_a_standby_that_is_promoted(host, site, clock, monkeypatch):
    waited = []

    def wait(_host, *more):
        waited.append(more)
        clock.sleep(0.26)

    monkeypatch.setattr(backup_restore, "_wait_for_end_of_archive", wait)
    clock.passed = 5.0
    host.in_recovery = ["t", "t", "f"]
    response = site.restore()
    assert words_of(host) == [
        ("systemctl", "stop"), ("pgbackrest", "restore"), ("systemctl", "start"), ("pg_ctl", "promote"),
        *[("psql", "SELECT pg_is_in_recovery()"), ("systemctl", "is-active")] * 2,
        ("psql", "SELECT pg_is_in_recovery()"), ("psql", backup_restore.FORGOTTEN_SQL),
    ]  # fmt: skip
    assert [words[1] for words in host.called("systemctl")] == [UNIT] * 4
    assert fetched(host, site) == ("--type=standby",)
    assert host.called("pg_ctl") == [("--pgdata", str(site.data), "--wait", "promote")]
    # Lines of the earlier run in its log are not of this one.
    assert waited[0][1:] == (str(site.log), site.log.stat().st_size)
    assert site.holds() == "new" and (site.aside / "global/pg_control").read_text() == "old"
    assert response == {"restored": "so far", "seconds": 1.3, "kept": str(site.aside)} and not site.marker.exists()
    assert site.modes == [0o700] and host.requested_room == str(site.data.parent)
    # Users see the maintenance page: not half an hour for another run.
    assert site.waits == [("restore r1", 60)]
    # A host that loses its power knows how far it came.
    assert site.phases[0] == ("pgbackrest", site.phases[0][1], "fetching")
    assert {phase for program, verb, phase in site.phases[1:]} == {"started"}


def test_a_shorter_wait_for_the_lock_is_kept(host, site):
    host.options["lock_wait_seconds"] = 5
    site.restore(["--type=time"])
    assert site.waits == [("restore r1", 5)]


def test_a_restore_to_a_time_is_no_standby_and_is_not_promoted(host, site):
    site.restore(["--type=time", "--target=x"])
    assert fetched(host, site) == ("--type=time", "--target=x") and host.called("pg_ctl") == []


def test_a_restore_without_a_previous_database_quarantines_nothing(host, site):
    backup_restore.shutil.rmtree(site.data)
    assert site.restore(["--type=time"])["kept"] == "" and site.holds() == "new"


def test_recovery_continues_with_received_wal_and_archives_it(host, site, received):
    archive = backup_restore.pack_received(host, {"id": "r1"})["archive"]
    received = site.received
    host.words.clear()
    host.fails = [
        ("pgbackrest", "--stanza=shiftmaster", "--pg1-path=%s" % site.data, "archive-push", str(received / wal(10)))
    ]
    site.restore(["--type=time"], received_archive=archive)
    option, *others = fetched(host, site)
    assert others == ["--type=time"] and option == (
        f"--recovery-option=restore_command=pgbackrest --config=/restore.conf --pg1-path={site.data} "
        f'--stanza=shiftmaster archive-get %f "%p" || cp {received}/%f "%p" || cp {received}/%f.partial "%p"'
    )
    pushed = [words for words in host.called("pgbackrest") if "archive-push" in words]
    # A failed one is reported and affects neither the restore nor the others.
    assert [words[-1] for words in pushed] == [str(received / wal(number)) for number in (10, 11)]
    assert len(host.log_lines) == 1 and wal(10) in host.log_lines[0]
    assert sorted(os.listdir(received)) == [wal(10), wal(11), wal(12) + ".partial"]


def test_recovery_goes_on_with_the_archive_of_today(host):
    host.stanza, host.stanzas = "today", ("today", "shiftmaster", "oldest")
    plan = backup_restore.Plan("run", LABEL, [], "", None, False, 1, 1, "shiftmaster")
    (option,) = backup_restore._wal_of(host, plan, "/data", "")
    assert [word for word in option.split() if "--stanza" in word] == ["--stanza=shiftmaster", "--stanza=today"]
    backup_restore._fetch(host, plan, "/data")
    assert "--stanza=shiftmaster" in host.words[-1]
    assert backup_restore._wal_of(host, plan._replace(stanza=""), "/data", "") == []
    with pytest.raises(BackupError, match="other"):
        backup_restore._wal_of(host, plan._replace(stanza="other"), "/data", "")


def test_a_backup_of_another_host_changes_no_stanza_of_an_earlier_passphrase(host, monkeypatch, tmp_path):
    monkeypatch.setattr(backup_run.sandbox, "ROOT", str(tmp_path / "root"))
    host.stanzas = ("shiftmaster", "shiftmaster-1")
    host.options["tls_directories"] = []
    text = " ".join(backup_run.backup_words(host, "unit", ["F1"]))
    for kind in ("archive", "backup"):
        path = "%s/pgbackrest/%s" % (host.directory, kind)
        # A mount below that of the directory, which the backup writes to.
        assert 'BindReadOnlyPaths=-"%s/shiftmaster-1"' % path in text and 'BindPaths="%s"' % path in text


def test_settings_of_the_recovery_are_removed_and_the_server_is_restarted(host, site):
    host.settings, host.in_recovery = "recovery_target_time\nrestore_command\n", ["t", "f", "t", "f"]
    site.restore(["--type=time"])
    resets = [words for words in host.called("psql") if "RESET" in words[-1]]
    assert resets == [
        ("-XqAt", "-w", "-d", "postgres", "-c", "ALTER SYSTEM RESET recovery_target_time", "-c",
         "ALTER SYSTEM RESET restore_command")
    ]  # fmt: skip
    assert host.called("systemctl")[-2] == ("restart", UNIT)
    # It is waited for once more.
    assert host.in_recovery == ["f"]


@pytest.mark.parametrize(("free", "refused"), [(1099, True), (1100, False)])
def test_without_free_space_next_to_it_the_database_is_not_stopped(host, site, free, refused):
    host.free = free
    with pytest.raises(BackupError, match="too little room") if refused else contextlib.nullcontext():
        site.restore(["--type=time"])
    assert (host.words == []) == refused and site.holds() == ("old" if refused else "new")


STEPS = {
    "stop": ("systemctl", "stop"),
    "fetch": ("pgbackrest",),
    "start": ("systemctl", "start"),
    "promote": ("pg_ctl",),
    "query": ("psql",),
    "restart": ("systemctl", "restart"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_restores_the_previous_data(host, site, monkeypatch, step):
    monkeypatch.setattr(backup_restore, "_wait_for_end_of_archive", lambda *_arguments: None)
    host.settings = "restore_command\n"
    host.fails = [STEPS[step]]
    if step == "query":
        monkeypatch.setattr(backup_restore, "_wait_for_end_of_recovery", lambda *_arguments: None)
    with pytest.raises(BackupError, match="broken"):
        site.restore()
    assert site.holds() == "old" and not site.aside.exists() and not site.marker.exists()
    if step != "stop":
        # Stopped with the new data, started with the old.
        words = [one for one in words_of(host) if one[0] != "rm"]
        assert words[-3:] == [("systemctl", "stop"), ("find", "-delete"), ("systemctl", "start")]


def test_an_early_end_of_the_archive_restores_the_previous_data(host, site, monkeypatch):
    def refuse(*_arguments):
        raise BackupError("too early")

    monkeypatch.setattr(backup_restore, "_wait_for_end_of_archive", refuse)
    with pytest.raises(BackupError, match="too early"):
        site.restore()
    assert site.holds() == "old" and host.called("pg_ctl") == []


def test_a_restore_ended_by_a_signal_restores_the_previous_data(host, site):
    def interrupted(words):
        if words[0] == "pgbackrest":
            raise KeyboardInterrupt

    host.react = interrupted
    with pytest.raises(KeyboardInterrupt):
        site.restore()
    assert site.holds() == "old" and words_of(host)[-1] == ("systemctl", "start")


def test_processes_of_a_killed_restore_are_ended_before_the_next_one(host, site):
    """The data before the first one is kept."""
    first = site.data.parent / "main.before-r0"
    site.data.rename(first)
    (site.data / "global").mkdir(parents=True)
    (site.data / "global/pg_control").write_text("half")
    site.marker.write_text("%s\nfetching" % first)
    site.restore(["--type=time"])
    assert (site.aside / "global/pg_control").read_text() == "old" and not first.exists()


def test_without_a_marker_nothing_is_reverted(host, site):
    backup_restore._undo_a_killed_one(host, str(site.data))
    assert (site.data / "global/pg_control").read_text() == "old" and host.words == []


# --- waiting ---------------------------------------------------------------------------------------------------------


class Log:
    """PostgreSQL's log of a recovery that restores a segment at each of these seconds."""

    def __init__(self, path, clock, at, lines=()):
        self.path, self.clock, self.at, self.lines = path, clock, dict(at), dict(lines)
        path.write_text('LOG:  restored log file "%s" from archive\nFATAL:  of the run before\n' % wal(99))
        self.behind = path.stat().st_size
        clock.meanwhile = self.write

    def write(self):
        with self.path.open("a") as stream:
            for second in [one for one in self.at if one <= self.clock.passed]:
                stream.write('LOG:  restored log file "%s" from archive\n' % wal(self.at.pop(second)))
            for second in [one for one in self.lines if one <= self.clock.passed]:
                stream.write(self.lines.pop(second) + "\n")

    def wait(self, host, **request):
        backup_restore._wait_for_end_of_archive(host, request, str(self.path), self.behind)
        return self.clock.passed


@pytest.fixture
def make_log(tmp_path, clock, host):
    host.options["recovery_timeout_seconds"] = 1000
    return lambda *arguments: Log(tmp_path / "postgresql.log", clock, *arguments)


def test_a_segment_that_the_archive_does_not_have_is_not_waited_for_long(host, make_log):
    waiting = "LOG:  waiting for WAL to become available at 0/8000018"
    log = make_log({2: 8, 31: 9}, dict.fromkeys([*range(5, 30, 5), *range(35, 300, 5)], waiting))
    with pytest.raises(BackupError):
        log.wait(host, last_segment=wal(10))
    assert 85 <= log.clock.passed <= 95


def test_the_archive_ends_when_no_segment_is_requested_after_its_last_one(host, make_log):
    log = make_log({2: 8, 15: 9, 30: 10})
    assert 49 <= log.wait(host, last_segment=wal(9)) <= 52


def test_one_segment_may_take_its_time_before_the_last(host, make_log):
    assert 317 <= make_log({2: 8, 298: 9}).wait(host, last_segment=wal(9)) <= 322


def test_without_a_last_segment_the_archive_ends_when_no_segment_is_requested(host, make_log):
    assert 24 <= make_log({2: 8, 5: 9}).wait(host) <= 27


def test_a_recovery_that_ends_before_the_last_segment_is_refused(host, make_log, clock):
    with pytest.raises(BackupError, match="did not come to the end of the archive .%s." % wal(9)):
        make_log({2: 8}).wait(host, last_segment=wal(9))
    assert 300 <= clock.passed < 310


def test_a_gap_that_is_allowed_is_no_failure(host, make_log):
    assert make_log({2: 8}).wait(host, last_segment=wal(9), allow_gap=True) >= 300


def test_a_segment_of_an_earlier_run_is_ignored(host, make_log):
    with pytest.raises(BackupError, match="end of the archive"):
        make_log({}).wait(host, last_segment=wal(99))


@pytest.mark.parametrize("line", ["FATAL:  requested timeline 2 is not a child", "2026 [1] PANIC:  could not read"])
def test_a_server_that_exits_is_reported_at_once(host, make_log, clock, line):
    with pytest.raises(BackupError, match="does not come up.*(timeline 2|could not read)"):
        make_log({}, {3: line}).wait(host, last_segment=wal(9))
    assert clock.passed < 5


@pytest.mark.parametrize(
    "line", ["FATAL:  the database system is starting up", "[user=x] FATAL:  no pg_hba.conf entry"]
)
def test_errors_of_a_session_are_no_failure(host, make_log, line):
    assert make_log({5: 9}, {3: line}).wait(host, last_segment=wal(9)) < 30


def test_a_recovery_that_does_not_end_is_stopped(host, make_log, clock):
    host.options["recovery_timeout_seconds"] = 60
    with pytest.raises(BackupError, match="within 60 s"):
        make_log({number: number for number in range(1, 200)}).wait(host, last_segment=wal(500))
    assert 60 <= clock.passed < 63


def test_a_database_that_accepts_writes_is_waited_for(host, clock):
    host.in_recovery = ["t", "", "f"]
    backup_restore._wait_for_end_of_recovery(host, "/data")
    assert len(host.called("psql")) == 3 and host.called("systemctl") == [("is-active", UNIT)] * 2


@pytest.mark.parametrize("state", ["failed", "inactive"])
def test_a_database_that_does_not_start_is_reported_with_its_last_error(host, site, state):
    host.in_recovery, host.state = ["t"], state
    site.log.write_text("LOG:  starting\nFATAL:  could not locate a valid checkpoint\nLOG:  shut down\n")
    with pytest.raises(BackupError, match="does not come up: FATAL:  could not locate"):
        backup_restore._wait_for_end_of_recovery(host, "/data")


def test_a_log_that_postgres_has_made_a_link_is_not_read(host, site, tmp_path):
    (tmp_path / "secret").write_text("FATAL:  a secret of root\n")
    site.log.unlink()
    site.log.symlink_to(tmp_path / "secret")
    tmp_path.chmod(0o777)
    host.in_recovery, host.state = ["t"], "failed"
    with pytest.raises(BackupError, match="does not come up: see its log"):
        backup_restore._wait_for_end_of_recovery(host, "/data")
    with pytest.raises(UnsafePathError):
        backup_restore._wait_for_end_of_archive(host, {}, str(site.log), 0)


def test_the_log_is_that_of_the_databases_version(host):
    assert backup_restore._log_of(host) == "/var/log/postgresql/postgresql-17-main.log"


def test_a_recovery_without_an_end_is_stopped(host, clock):
    host.in_recovery, host.state = ["t"], "activating"
    with pytest.raises(BackupError, match="within 100 s"):
        backup_restore._wait_for_end_of_recovery(host, "/data")
    assert 100 < clock.passed < 102


# --- next to the database --------------------------------------------------------------------------------------------


class Scratch:
    """verification.restored() and its server."""

    def __init__(self, host):
        self.host = host
        self.log, self.tables = 'restored log file "%s" from archive' % wal(9), [("public.roster", "r")]
        self.requested, self.arguments, self.received, self.waited = [], None, None, []

    @contextlib.contextmanager
    def restored(self, _host, name, *arguments, label, received, stanzas):
        assert name == "restore" and label == LABEL and stanzas == ("shiftmaster",)
        self.arguments, self.received = arguments, received
        yield self

    def client(self, what, program, *arguments, write):
        self.host.run(what, program, *arguments)
        assert write == [os.path.dirname(arguments[arguments.index("--file") + 1])]

    def log_text(self):
        return self.log

    def query(self, sql, database):
        self.requested.append((sql, database))
        if "pg_inherits" in sql:
            return self.tables
        return [["3"]] if sql.startswith("SELECT count") else [["s", "t", "x", "2"], ["s", "u", "x", "5"]]


@pytest.fixture
def scratch(host, monkeypatch, site):
    scratch = Scratch(host)
    monkeypatch.setattr(backup_restore.pwd, "getpwnam", lambda _name: SimpleNamespace(pw_uid=THEIRS, pw_gid=THEIRS))
    monkeypatch.setattr(
        backup_restore.verification, "restored", lambda *words, **more: scratch.restored(*words, **more)
    )
    monkeypatch.setattr(
        backup_restore.verification, "wait_for_segment", lambda *words: scratch.waited.append(words[1:])
    )
    monkeypatch.setattr(backup_restore.verification, "check_pages", lambda _host, _server: "pages")
    return scratch


def plan_of(arguments=(), size=1000):
    return backup_restore.Plan("run", LABEL, list(arguments), "so far", None, False, size, 1)._asdict()


def test_a_restore_next_to_the_database_is_read_and_counted(host, site, scratch):
    response = backup_restore.database_scratch(host, {"id": "r1", "database": plan_of(["--type=time"])})
    assert response == {"restored": "so far", "found": ["pages", "shiftmaster: 2 tables, 7 rows"], "seconds": 0.0}
    assert scratch.arguments == ("--type=time",) and scratch.received == "" and site.waits == [("restore r1", 1800)]
    assert scratch.requested[-1][1] == "shiftmaster" and site.holds() == "old"
    # Data entered just now can be restored, too.
    assert scratch.waited == [(wal(10), 9)]


def test_a_restore_next_to_the_database_continues_with_received_wal(host, site, scratch, received):
    backup_restore.database_scratch(host, {"id": "r1", "database": plan_of(["--type=time"])})
    assert scratch.arguments == ("--type=time",) and scratch.received == host.directory + "/wal"


def test_a_restore_next_to_the_database_that_ends_too_early_is_refused(host, site, scratch):
    scratch.log = ""
    request = {"id": "r1", "database": plan_of(), "last_segment": wal(9)}
    with pytest.raises(BackupError, match="end of the archive"):
        backup_restore.database_scratch(host, request)
    backup_restore.database_scratch(host, dict(request, allow_gap=True))


@pytest.mark.parametrize("work", ["database_scratch", "table"])
def test_a_scratch_directory_without_room_is_not_filled(host, site, scratch, work):
    request = {"id": "r1", "database": plan_of(size=1000), "table": "roster"}
    host.free = 1099
    with pytest.raises(BackupError, match="too little room in %s" % host.options["scratch"]):
        getattr(backup_restore, work)(host, request)
    assert scratch.arguments is None and host.requested_room == host.options["scratch"]
    host.free = 1100
    getattr(backup_restore, work)(host, request)


@pytest.mark.parametrize(
    ("requested", "database", "complete"),
    [
        ("roster", "shiftmaster", ("public.roster", 'public"."roster')),
        ("other/hr.staff", "other", ("hr.staff", 'hr"."staff')),
        ("it's", "shiftmaster", ("public.it''s", "public\".\"it''s")),
    ],
)
def test_a_table_is_extracted_with_its_partitions(host, site, scratch, requested, database, complete):
    scratch.tables = [("public.roster", "p"), ("public.roster_2026", "r")]
    response = backup_restore.table(host, {"id": "r1", "database": plan_of(), "table": requested})
    name = requested.rpartition("/")[2]
    assert (response["rows"], response["database"]) == ({name: 3}, database)
    sql, of = scratch.requested[0]
    assert of == database and "to_regclass('%s')" % complete[0] in sql and "to_regclass('\"%s\"')" % complete[1] in sql
    assert scratch.requested[1] == ("SELECT count(*) FROM public.roster", database)
    (dump,) = host.called("pg_dump")
    path = host.directory + "/tables/r1/%s.dump" % name.replace("'", "_")
    assert response["file"] == path and os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    assert dump == (
        "--no-password", "--format=custom", "--file", path, "--table=public.roster", "--table=public.roster_2026",
        database,
    )  # fmt: skip
    assert os.stat(host.directory + "/tables").st_mode & 0o777 == 0o711


def test_tables_that_refer_to_one_another_come_in_one_dump(host, site, scratch):
    scratch.tables = [("public.roster", "r")]
    restored_table = backup_restore.table(host, {"id": "r1", "database": plan_of(), "table": "roster,assignment"})
    assert restored_table["rows"] == {"roster": 3, "assignment": 3}
    assert ["to_regclass('public.assignment')" in sql for sql, _ in scratch.requested] == [False, False, True, False]
    (dump,) = host.called("pg_dump")
    assert dump.count("--table=public.roster") == 2 and dump[-1] == "shiftmaster"


@pytest.mark.parametrize(("tables", "message"), [([], "no table roster in"), ([("public.roster", "v")], "is no table")])
def test_a_missing_or_ambiguous_table_is_not_extracted(host, site, scratch, tables, message):
    scratch.tables = tables
    with pytest.raises(BackupError, match=message):
        backup_restore.table(host, {"id": "r1", "database": plan_of(), "table": "roster"})
    assert os.listdir(host.directory + "/tables") == [] and host.called("pg_dump") == []


def test_a_database_that_does_not_respond_closes_no_segment(host, monkeypatch):
    waited = []
    monkeypatch.setattr(backup_restore.verification, "wait_for_segment", lambda *arguments: waited.append(arguments))
    host.fails = [("psql",)]
    backup_restore._archive_until_now(host)
    assert waited == []


# --- the server of a verification ------------------------------------------------------------------------------------

CONTROL = "".join("%s: %17s\n" % (text, 8) for text in backup_verification.SETTINGS.values())
NAMED = ("--type=name", "--target=p", "--target-action=promote", "--target-timeline=current")


class Unit:
    """A transient unit: its properties, the paths that it has, its command."""

    def __init__(self, words):
        split = words.index("--")
        lines = [word.removeprefix("--property=") for word in words[:split] if word.startswith("--property=")]
        self.properties, self.command = lines, list(words[split + 1 :])
        self.name = next(word for word in words if word.startswith("--unit=")).removeprefix("--unit=")
        paths = [line.partition("=") for line in lines if line.startswith("Bind") and '"' in line]
        self.read, self.write = (
            {path.strip('"') for name, _, path in paths if name == kind} for kind in ("BindReadOnlyPaths", "BindPaths")
        )

    @property
    def program(self):
        return "pgbackrest restore" if self.command[-1] == "restore" else os.path.basename(self.command[0])


class Verification:
    """The units of a verification; what each of them would do is a function of its program."""

    def __init__(self, host, monkeypatch):
        self.host, self.units, self.acts, self.log = host, [], {}, backup_verification.READY
        host._systemd_run = lambda _who, *words: self.act(Unit(words))
        host.options.update(scratch_port=6543, timeout_seconds=20, recovery_timeout_seconds=1)
        self.acts["pg_controldata"] = lambda: CONTROL
        monkeypatch.setattr(backup_verification, "subprocess", SimpleNamespace(Popen=self.launch))
        monkeypatch.setattr(
            backup_verification.pwd, "getpwnam", lambda _name: SimpleNamespace(pw_uid=THEIRS, pw_gid=THEIRS)
        )
        monkeypatch.setattr(backup_verification.sandbox, "ROOT", host.directory + "/root")
        monkeypatch.setattr(backup_verification.sandbox.units, "SYSTEMD_RUN", ("/usr/bin/systemd-run",))
        self.directory = Path(host.options["scratch"]) / "verification"
        self.data = self.directory / "data"

    def act(self, unit):
        self.units.append(unit)
        return self.acts.get(unit.program, lambda: "")()

    def launch(self, words, stderr, **_more):
        unit = Unit(words)
        self.act(unit)
        if unit.program == "postgres":
            os.write(stderr.fileno(), self.log.encode())
        return SimpleNamespace(poll=lambda: None, kill=lambda: None, wait=lambda: 0)

    def restored(self, *arguments, **more):
        return backup_verification.restored(self.host, "verification", *(arguments or NAMED), label=LABEL, **more)


@pytest.fixture
def verification(host, monkeypatch):
    return Verification(host, monkeypatch)


def test_a_restored_server_has_no_rights_no_network_and_no_repository(verification, host):
    repository = {host.directory + "/pgbackrest", "/restore.conf"}
    with verification.restored(received="/received") as server:
        server.query("SELECT 1")
    programs = [unit.program for unit in verification.units]
    assert programs == ["pgbackrest restore", "pg_controldata", "postgres", "sh", "psql"]
    for unit in verification.units:
        assert {"User=shiftmaster-verify", "PrivateNetwork=yes", "TasksMax=512", "KillSignal=SIGKILL"} <= set(
            unit.properties
        )
        assert [line for line in unit.properties if line.startswith("RootDirectory=")]
        assert unit.write <= {str(verification.directory / name) for name in ("data", "tablespaces", "sockets", "wal")}
        # The reader of the repository runs no code of the database, and the runner of that code has no capability.
        reads = unit.program in ("pgbackrest restore", "sh")
        assert (repository <= unit.read) == reads and (reads or not repository & unit.read)
        assert ("CapabilityBoundingSet=" in unit.properties) != reads
    assert verification.units[2].read == {str(verification.directory / name) for name in ("config", "wal")}
    # It ends with all that it has started, and nothing of it is left.
    stopped = [words[1] for words in host.called("systemctl") if words[0] == "stop"]
    assert stopped == [unit.name for unit in verification.units if unit.program in ("postgres", "sh")]
    assert not verification.directory.exists()


def test_settings_of_the_backup_are_not_those_of_the_server(verification, tmp_path):
    (tmp_path / "secret").write_text("root's own")

    def restore():
        (verification.data / "postgresql.auto.conf").symlink_to(tmp_path / "secret")
        (verification.data / "postgresql.conf").write_text("recovery_end_command = 'id'\n")

    # pgBackRest restores no link there; the server that runs could make one.
    verification.acts["pg_controldata"] = lambda: restore() or CONTROL
    with verification.restored():
        path = verification.data / "postgresql.auto.conf"
        assert not path.is_symlink() and path.read_text() == "" and path.stat().st_uid == THEIRS
        assert (tmp_path / "secret").read_text() == "root's own"
        (server,) = [unit for unit in verification.units if unit.program == "postgres"]
        config = verification.directory / "config"
        assert f"config_file={config}/postgresql.conf" in server.command
        assert config.stat().st_uid == 0 and (config / "postgresql.conf").read_text() == ""
    for line in ("shared_preload_libraries=", "session_preload_libraries=", "archive_mode=off", "max_connections=8"):
        assert line in server.command
    assert "recovery_target_name=p" in server.command and "listen_addresses=" in server.command


@pytest.mark.parametrize(
    ("name", "target", "good"),
    [
        ("pg_tblspc/16400", "{scratch}/tablespaces/extra", True),
        ("pg_tblspc/16400", "{scratch}/tablespaces/../../x", False),
        ("pg_tblspc/16400", "/var/lib/postgresql", False),
        ("pg_tblspc/16400", "{scratch}/sockets/x", False),
        ("pg_wal", "{scratch}/tablespaces/extra", False),
        ("base/evil", "/etc", False),
        ("base/fifo", "", False),
    ],
)
def test_a_backup_with_links_or_special_files_is_rejected(verification, name, target, good):
    def restore():
        path = verification.data / name
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path) if not target else path.symlink_to(target.format(scratch=verification.directory))

    verification.acts["pgbackrest restore"] = restore
    with pytest.raises(BackupError, match=name) if not good else contextlib.nullcontext(), verification.restored():
        pass
    assert ("postgres" in [unit.program for unit in verification.units]) == good
    assert not verification.directory.exists()


@pytest.mark.parametrize("value", ["8; id", "9999999999", "-1", ""])
def test_an_invalid_control_file_is_rejected(verification, value):
    verification.acts["pg_controldata"] = lambda: CONTROL.replace("8\n", value + "\n")
    with pytest.raises(BackupError, match="does not print max_connections"), verification.restored():
        pass


def test_a_server_that_does_not_start_is_stopped(verification, host):
    verification.log = "LOG:  starting\nFATAL:  recovery ended before configured recovery target was reached\n"
    with pytest.raises(BackupError, match="within 1 s .*FATAL:  recovery ended before"), verification.restored():
        pass
    assert len([words for words in host.called("systemctl") if words[0] == "stop"]) == 2
    assert not verification.directory.exists()


def test_files_of_a_killed_verification_are_removed_without_following_links(verification, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    verification.data.mkdir(parents=True)
    (verification.data / "link").symlink_to(tmp_path / "precious")
    # Deeper than Python's stack.
    place = os.open(verification.data, os.O_RDONLY)
    for _level in range(1500):
        os.mkdir("x", dir_fd=place)
        deeper = os.open("x", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = deeper
    os.close(place)
    with verification.restored():
        assert not (verification.data / "link").is_symlink()
    assert (tmp_path / "precious/file").exists()


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ((), {}),
        (
            NAMED,
            {"recovery_target_name": "p", "recovery_target_action": "promote", "recovery_target_timeline": "current"},
        ),
        (
            ("--type=xid", "--target=7", "--target-exclusive", "--target-action=promote"),
            {"recovery_target_xid": "7", "recovery_target_inclusive": "off", "recovery_target_action": "promote"},
        ),
        (
            ("--type=lsn", "--target=0/5", "--target-timeline=2"),
            {"recovery_target_lsn": "0/5", "recovery_target_timeline": "2"},
        ),
        (("--type=immediate",), {"recovery_target": "immediate"}),
    ],
)
def test_a_recovery_goes_as_far_as_pgbackrest_would(arguments, settings):
    assert backup_verification.recovery_settings(arguments) == settings


@pytest.fixture
def wal_files(tmp_path):
    """Run GET_WAL with an archive that is a directory, and a function that calls it as the server does."""
    for name in ("archive", "archive/-2", "wal", "received", "data"):
        (tmp_path / name).mkdir()
    tool = tmp_path / "pgbackrest"
    tool.write_text('#!/bin/sh\ncp "%s/archive/${1#--stanza=shiftmaster}/$3" "$4" 2> /dev/null\n' % tmp_path)
    tool.chmod(0o755)
    stanzas = "shiftmaster shiftmaster-2"
    words = ["sh", "-c", backup_verification.GET_WAL, "sh", tmp_path / "wal", tmp_path / "received", stanzas, tool]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as getter:

        def get(name):
            command = (
                backup_verification.restore_command(str(tmp_path / "wal")).replace("%f", name).replace("%p", "got")
            )
            done = subprocess.run(
                ["sh", "-c", command], cwd=tmp_path / "data", stdin=getter.stdout, stdout=getter.stdin, check=False
            )
            return done.returncode == 0 and (tmp_path / "data/got").read_text()

        yield SimpleNamespace(get=get, getter=getter, directory=tmp_path)
        getter.stdin.close()


def test_the_server_receives_wal_of_the_archive_and_then_the_received_wal(wal_files):
    directory = wal_files.directory
    for place, name, text in (
        ("archive", wal(1), "one"), ("archive", "00000002.history", "branch"), ("received", wal(1), "not this"),
        ("received", wal(2), "two"), ("received", wal(3) + ".partial", "three"),
        # Of the stanza of today: what came after a backup by an earlier passphrase.
        ("archive/-2", wal(5), "five"),
    ):  # fmt: skip
        (directory / place / name).write_text(text)
    got = [wal_files.get(name) for name in ("00000002.history", wal(1), wal(2), wal(3), wal(4), wal(5), wal(1))]
    assert got == ["branch", "one", "two", "three", False, "five", "one"]
    # One at a time.
    assert os.listdir(directory / "wal") == [wal(1)]


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "--config=/etc/shadow-24-char",
        "$(touch x)",
        wal(10).lower(),
        "0000000G.history",
        "",
        "x" * 99999,
    ],
)
def test_the_server_receives_only_wal(wal_files, name):
    wal_files.getter.stdin.write(name.encode() + b"\n")
    wal_files.getter.stdin.flush()
    assert wal_files.getter.stdout.read() == b"" and wal_files.getter.wait(10) == 1
    assert not (wal_files.directory / "calls").exists() and os.listdir(wal_files.directory / "wal") == []


# --- files in their place --------------------------------------------------------------------------------------------


class Files:
    """A directory of media on the host, and a snapshot that holds other content of it."""

    def __init__(self, host, tmp_path):
        self.host, self.media = host, tmp_path / "media"
        self.media.mkdir(mode=0o755)
        (self.media / "a.txt").write_text("today")
        self.staged, self.within = Path(host.directory) / "outgoing/r1", []
        self.nodes = [
            {"type": "dir", "path": str(self.media)},
            {"type": "file", "path": str(self.media / "a.txt"), "size": 600},
            {"type": "file", "path": str(self.media / "b[1].txt"), "size": 400},
            {"type": "file", "path": str(self.media) + "-else/c.txt", "size": 5000},
        ]
        host.snapshots = [dict(snapshot("whole-id", 1), tags=["files"])]
        host._restic = self.restic

    def restic(self, _who, *words):
        verb = words[1]
        if verb == "snapshots":
            return json.dumps(self.host.snapshots)
        if verb == "ls":
            assert words[-1] == "whole-id"
            return "\n".join(json.dumps(one) for one in [{"struct_type": "snapshot"}, *self.nodes])
        if verb == "restore":
            target = Path(words[words.index("--target") + 1])
            self.within.append((words[2], target.stat().st_mode & 0o777, *words[words.index("--target") + 2 :]))
            place = target / str(self.media)[1:]
            place.mkdir(parents=True)
            for node in self.nodes:
                if node["path"].startswith(str(self.media) + "/"):
                    (target / node["path"][1:]).parent.mkdir(exist_ok=True)
                    (target / node["path"][1:]).write_text("yesterday")
        return ""

    def restore(self, **request):
        files = {"run": "r0", "label": "short"}
        return backup_restore.files(
            self.host, dict(request, id="r1", files=files, parts=request.get("parts", ["files"])), "files"
        )

    def content(self):
        return {path.name: path.read_text() for path in self.media.iterdir()}


@pytest.fixture
def media(site, host, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        backup_restore.Restic, "backup",
        lambda _restic, part, *more: saved.append((part["name"], *more)) or ({"snapshot_id": "kept-id"}, []),
    )  # fmt: skip
    monkeypatch.setattr(
        backup_restore.Restic, "confined",
        lambda restic, what, command, *_places, **more: restic.host.run(what, *command, **more),
    )  # fmt: skip
    media = Files(host, tmp_path)
    media.saved = saved
    return media


def test_links_below_the_saved_paths_are_not_followed_in_a_partial_restore(media, tmp_path):
    """An earlier restore put it there, so root is its owner."""
    (tmp_path / "outside").mkdir()
    (media.media / "sub").symlink_to(tmp_path / "outside")
    media.nodes = [{"type": "file", "path": str(media.media / "sub/evil"), "size": 1}]
    with pytest.raises(BackupError, match="not restored"):
        media.restore(paths=[str(media.media / "sub")])
    assert os.listdir(tmp_path / "outside") == [] and not media.staged.exists()


def test_files_are_restored_and_replaced_files_are_saved_first(media, site):
    response = media.restore()
    assert media.content() == {"a.txt": "yesterday", "b[1].txt": "yesterday"}
    assert response["restored"] == "2 files" and response["into"] == "/" and response["kept"] == "kept-id"
    assert response["paths"] == [str(media.media)] and "archive" not in response
    assert media.saved == [("files", "r1", "before-restore")] and site.waits == [("restore r1", 1800)]
    assert media.within == [("whole-id", 0o700, "--include=%s" % media.media)]
    assert not media.staged.exists() and os.stat(media.staged.parent).st_mode & 0o777 == 0o711


def test_one_path_is_restored_and_no_other(media):
    path = str(media.media / "b[1].txt")
    media.nodes = [one for one in media.nodes if one["path"] != str(media.media / "a.txt")]
    assert media.restore(paths=[path + "/"])["paths"] == [path]
    assert media.within[0][2:] == ("--include=%s/b\\[1\\].txt" % media.media,)


def test_a_snapshot_without_the_tag_of_the_run_is_selected_by_its_label(media, host):
    host.snapshots = []
    with pytest.raises(AssertionError):
        media.restore()
    assert host.called("restic")[-1][-1] == "short"


@pytest.mark.parametrize(("free", "refused"), [(999, True), (1000, False)])
def test_without_free_space_no_file_is_changed(media, host, free, refused):
    host.free = free
    with pytest.raises(BackupError, match="too little room") if refused else contextlib.nullcontext():
        media.restore()
    assert media.saved == ([] if refused else media.saved) and (media.content()["a.txt"] == "today") == refused


def test_files_that_cannot_be_read_from_the_backup_keep_the_existing_ones(media, host):
    host.fails = [("restic", "--quiet", "restore")]
    with pytest.raises(BackupError, match="broken"):
        media.restore()
    assert media.content() == {"a.txt": "today"} and not media.staged.exists()


def test_a_restore_into_a_directory_replaces_nothing_and_saves_nothing(media, tmp_path):
    os.chmod(tmp_path, 0o755)
    target = tmp_path / "target"
    response = media.restore(into=str(target))
    assert response["into"] == str(target) and response["kept"] == "" and media.saved == []
    assert (target / str(media.media)[1:] / "a.txt").read_text() == "yesterday"
    assert media.content() == {"a.txt": "today"}


def test_a_path_missing_from_the_part_is_rejected_first(media, host):
    for request in ({"paths": ["/etc/passwd"]}, {"paths": [str(media.media), "/etc/passwd"]}):
        with pytest.raises(BackupError, match="holds nothing of /etc/passwd"):
            media.restore(**request)
    assert host.words == []
    # Another of several parts holds it.
    response = media.restore(paths=[str(media.media), "/etc/passwd"], parts=["files", "configuration"])
    assert response["paths"] == [str(media.media)]


def test_a_path_missing_from_the_snapshot_is_rejected(media, host):
    lost = str(media.media / "lost")
    with pytest.raises(BackupError, match="holds nothing of %s$" % lost):
        media.restore(paths=[str(media.media), lost])
    with pytest.raises(BackupError, match="holds nothing of %s$" % lost):
        media.restore(paths=[lost], parts=["files", "configuration"])
    assert media.restore(paths=[str(media.media), lost], parts=["files", "configuration"])["restored"] == "2 files"


def test_an_owner_that_does_not_exist_is_reported_before_anything(media, host):
    with pytest.raises(BackupError, match="no such user.*nobody-here"):
        media.restore(owners={str(media.media): "nobody-here"})
    assert host.words == [] and media.content() == {"a.txt": "today"}


# --- the program -----------------------------------------------------------------------------------------------------


def step(host, what, request):
    return backup_restore.main(host, what, io.StringIO(json.dumps(request)))


def test_a_response_of_a_step_is_json_and_logged(host, received, capsys):
    assert step(host, "received", {"id": "r1"}) == 0
    assert json.loads(capsys.readouterr().out)["restored"] == "3 segments"
    assert host.log_lines == ["restore r1, received: 3 segments"]


@pytest.mark.parametrize("what", ["received", "plan", "free"])
def test_a_failed_step_is_reported_in_response_and_exit_code(host, saved, site, monkeypatch, capsys, what):
    host.fails = [("tar",), ("pgbackrest",)]

    def held(*_arguments):
        raise BackupError("held")

    monkeypatch.setattr(backup_restore, "alone", held)
    assert step(host, what, {"id": "r1", "target": "latest", "parts": ["database"]}) == 1
    assert json.loads(capsys.readouterr().out)["failed"] and len(host.log_lines) == (what != "plan")


def test_queries_are_not_logged(host, saved, site, capsys):
    assert step(host, "plan", {"id": "r1", "target": "latest", "parts": ["files"]}) == 0
    assert step(host, "free", {"id": "r1"}) == 0
    assert host.log_lines == []


def test_a_disconnected_client_fails_no_step(host, received, monkeypatch):
    def gone(*_arguments, **_more):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    assert step(host, "received", {"id": "r1"}) == 0


@pytest.mark.parametrize("request_", [[], {}, "x", 5])
def test_a_request_without_an_id_is_refused(host, request_):
    with pytest.raises(BackupError, match="JSON with an id"):
        step(host, "received", request_)
    with pytest.raises(BackupError, match="there is no nonsense"):
        step(host, "nonsense", {"id": "r1"})
    assert host.words == []


@pytest.mark.parametrize(
    ("what", "function"),
    [
        ("plan", "plan"), ("free", "free"), ("here", "database_here"), ("scratch", "database_scratch"),
        ("table", "table"), ("received", "pack_received"), ("wal_again", "wal_again"),
    ],
)  # fmt: skip
def test_each_step_has_its_name(what, function):
    assert backup_restore.COMMANDS[what] is getattr(backup_restore, function)


def test_files_and_configuration_are_steps_of_their_own(host, monkeypatch):
    monkeypatch.setattr(backup_restore, "files", lambda _host, _request, part: {"restored": part})
    for part in ("files", "configuration"):
        assert backup_restore.COMMANDS[part](host, {}) == {"restored": part}
