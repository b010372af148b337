"""The parts of the backup that work on the host: commands, the lock, what is read of others, the report."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from ansible.module_utils.shiftmaster.backup import files, report, restore, room
from ansible.module_utils.shiftmaster.backup import host as host_module
from ansible.module_utils.shiftmaster.backup import manifest as manifests
from ansible.module_utils.shiftmaster.backup.host import BackupError, Host, alone
from ansible.module_utils.shiftmaster.host import printable
from ansible.module_utils.shiftmaster.host.sql import SAFE_SEARCH_PATH, rows_of


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(host_module, "RUN", str(tmp_path / "run"))
    return Host(
        {
            "directory": str(tmp_path), "stanza": "s", "log_file": str(tmp_path / "log/backup.log"), "timeout_seconds":
            20, "database": {"version": "17", "host": "h", "port": 5432, "user": "backup", "name": "backup",
                         "sslmode": "require", "passfile": "/secret"},
            "parts": [{"name": "files", "paths": ["/a"], "exclude": []}],
            "sources": [{"name": "app1", "address": "192.0.2.1",
                         "parts": [{"name": "configuration", "paths": ["/etc/x"], "exclude": []},
                                   {"name": "files", "paths": ["/srv"], "exclude": []}]}],
        }
    )  # fmt: skip


# --- commands -------------------------------------------------------------------------------------------------------


def test_a_failed_command_reports_its_last_output(host):
    with pytest.raises(BackupError, match="the work ended with 3: two; three"):
        host.run("the work", "sh", "-c", "echo one; echo two >&2; echo three >&2; exit 3")
    assert host.run("the work", "sh", "-c", "exit 3", fine=(0, 3)).returncode == 3


def test_hints_do_not_hide_what_is_wrong(host):
    output = "ERROR: [082]: segment A was not archived\n  HINT: one\n  HINT: two\n  HINT: three"
    with pytest.raises(BackupError, match="the work ended with 82: ERROR: .*segment A was not archived$"):
        host.run("the work", "sh", "-c", "printf '%s' \"$0\" >&2; exit 82", output)


def test_attempts_that_fail_alike_are_reported_once(host):
    output = "".join(f"Stat(<config/>) returned error, retrying after 1m{n}.5s: Stat: EOF at {n}\n" for n in range(4))
    with pytest.raises(BackupError, match="the work ended with 1: opening; Stat: EOF at 3; given up$"):
        host.run("the work", "sh", "-c", "printf '%s' \"$0\" >&2; exit 1", f"opening\n{output}given up")


def test_consequences_of_a_damaged_pack_do_not_hide_it(host):
    """Two files of the same content: restic reports each as damaged, and then that it is not there."""
    output = "".join(
        f"ignoring error for /x/{name}: decrypting blob <data/d> from 51e94c3a failed: ciphertext verification failed\n"
        f"ignoring error for /x/{name}: lchown /scratch/x/{name}: no such file or directory\n"
        for name in ("a.js", "a.1.js")
    ) + "Fatal: There were 4 errors\n"  # fmt: skip
    with pytest.raises(BackupError, match="ended with 1: ignoring error for /x/a.js: .* from 51e94c3a failed") as error:
        host.run("restic restore", "sh", "-c", "cat >&2; exit 1", stdin=output)
    assert "lchown" not in str(error.value)
    with pytest.raises(BackupError, match="lchown"):
        host.run(
            "restic restore", "sh", "-c", "echo ignoring error for /x: lchown /x: no such file or directory >&2; exit 1"
        )


def test_a_command_that_was_killed_or_is_not_there_is_reported(host):
    with pytest.raises(BackupError, match="was killed by signal 9"):
        host.run("the work", "sh", "-c", "kill -9 $$")
    with pytest.raises(BackupError, match="No such file"):
        host.run("the work", "/nowhere/tool")


def test_a_command_that_hangs_is_ended_with_its_children(host, tmp_path):
    began = time.monotonic()
    with pytest.raises(BackupError, match=r"did not end within 1 s \(trying again\)"):
        command = f"sleep 30 & echo $! > {tmp_path}/child; echo trying again >&2; wait"
        host.run("the work", "sh", "-c", command, timeout=1)
    assert time.monotonic() - began < 10
    child = (tmp_path / "child").read_text().strip()
    query = ["ps", "-o", "stat=", "-p", child]
    deadline = time.monotonic() + 10
    while (state := subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()) not in ("", "Z"):
        assert time.monotonic() < deadline, state
        time.sleep(0.1)


def test_the_environment_contains_no_password_and_no_variable_of_the_caller(host, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "callers")
    monkeypatch.setenv("PGOPTIONS", "callers")
    environment = host.environment("app")
    assert (environment["PGDATABASE"], environment["PGPASSFILE"]) == ("app", "/secret")
    assert "PGPASSWORD" not in environment and "callers" not in environment.values()
    # No function of the application's runs with this login's rights.
    assert environment["PGOPTIONS"].startswith(SAFE_SEARCH_PATH + " ")
    # A lock on a table ends the run with a message, instead of a deploy that waits in silence.
    assert environment["PGOPTIONS"].endswith(" -c lock_timeout=30s")


def test_the_log_does_not_follow_a_link(host, tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log/backup.log").symlink_to(tmp_path / "elsewhere")
    host.log("a line")
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "log/backup.log").unlink()
    host.log("a line")
    assert "a line" in (tmp_path / "log/backup.log").read_text()


def test_a_command_that_writes_too_much_is_ended(host):
    began = time.monotonic()
    with pytest.raises(BackupError, match="the work was ended: it wrote more than 1000 bytes"):
        host.run("the work", "sh", "-c", "exec yes", limit=1000)
    with pytest.raises(BackupError, match="more than 1000 bytes"):
        host.run("the work", "sh", "-c", "exec yes >&2", limit=1000)
    # Also one that has ended before the first check.
    with pytest.raises(BackupError, match="more than 1000 bytes"):
        host.run("the work", "sh", "-c", "head -c 1001 /dev/zero", limit=1000)
    assert time.monotonic() - began < 15
    assert host.run("the work", "sh", "-c", "cat; head -c 900 /dev/zero", limit=1000, stdin="in").stdout[:2] == "in"


def test_a_command_is_ended_with_the_reason_of_its_watch(host):
    reasons = iter(["", "the disk is full"])
    with pytest.raises(BackupError, match="the work was ended: the disk is full"):
        host.run("the work", "sleep", "60", watch=lambda: next(reasons))


def test_the_unit_of_a_command_that_is_not_waited_for_is_stopped(host, monkeypatch):
    ended = []
    run = host.run

    def noted(what, *command, **more):
        if command[0] == "systemctl":
            ended.append(command)
            return subprocess.CompletedProcess(command, 0, "", "")
        return run(what, *command, **more)

    monkeypatch.setattr(host, "run", noted)
    with pytest.raises(BackupError):
        host.run_unit("the work", "the-unit", "sleep", "60", timeout=1)
    assert ended == [("systemctl", "stop", "the-unit")]


def test_output_of_tools_and_other_hosts_reaches_no_terminal_unescaped(host, tmp_path, capsys):
    with pytest.raises(BackupError) as error:
        host.run("the work", "sh", "-c", r"printf '\033[2Ja\tb\n' >&2; exit 1")
    assert str(error.value) == "the work ended with 1: ?[2Ja\tb"
    host.log("gone \x1b]0;x\x07 \udce9")
    for text in ((tmp_path / "log/backup.log").read_text(), capsys.readouterr().out):
        assert "gone ?]0;x? ?\n" in text


# --- the lock -------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import shiftmaster.backup.host as module
module.RUN = sys.argv[2]
host = module.Host({"directory": "", "stanza": "", "log_file": "/dev/null", "database": {"version": "17"}})
with module.alone(host, "backup X by somebody", 0):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    directory = os.path.dirname(os.path.dirname(os.path.dirname(host_module.__file__)))
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, directory, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.wait()


def test_a_waiting_run_reports_the_holder_of_the_lock(host, holder):
    with pytest.raises(BackupError, match=rf"backup X by somebody \(process {holder.pid}, since .*longer than 1 s"):
        with alone(host, "another", 1):
            pass


def test_a_holder_that_is_killed_leaves_no_lock(host, holder):
    holder.kill()
    holder.wait()
    with alone(host, "another", 0):
        pass


def test_a_deploy_is_detected_until_its_lock_expires(tmp_path):
    path = tmp_path / "lock.json"
    path.write_text(json.dumps({"operation": "deploy", "owner": "sato", "expires": time.time() + 60}))
    assert host_module.deploy_of(host_module.read_lock(str(path))) == "deploy by sato"
    path.write_text(json.dumps({"operation": "deploy", "owner": "sato", "expires": time.time() - 1}))
    assert host_module.deploy_of(host_module.read_lock(str(path))) == ""
    assert host_module.deploy_of(host_module.read_lock(str(tmp_path / "none"))) == ""


DEEP = "[" * 200000


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        '{"expires": ' + DEEP,
        '{"expires": 1' + "0" * 400 + "}",
        '{"expires": []}',
        "[]",
        "5",
        "null",
        '{"a": 1e999}',
    ],
)
def test_an_invalid_lock_is_no_deploy(text):
    assert host_module.deploy_of(text) == ""


# --- parts ----------------------------------------------------------------------------------------------------------


def test_a_path_that_is_missing_is_refused_unless_it_may_be():
    part = {"name": "files", "paths": ["/a", "/b"], "optional": ["/b"]}
    assert files.required(part, ["/a"]) == ["/a"]
    with pytest.raises(BackupError, match="is not there: /a"):
        files.required(part, ["/b"])


def test_parts_of_other_hosts_are_parts(host):
    assert files.names_of_parts(host) == ["configuration", "files"]
    assert files.part_of(host, "configuration")["paths"] == []
    assert [(source["name"], part["paths"]) for source, part in files.sources(host, "configuration")] == [
        ("app1", ["/etc/x"])
    ]


# --- the report -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_tokyo")
def test_the_report_has_the_form_of_the_guide():
    manifest = manifests.begin("r1", "h", ["database", "files"], 0)
    manifests.verified(manifest, "database", "restore_test", True, "", 5)
    manifests.end(manifest, "database", "succeeded", 5, kind="full", size_bytes=3 << 20)
    manifests.end(manifest, "files", "failed", 6, [("failed", "disk full", "")])
    manifests.finish(manifest, 7)
    assert report.lines(manifest, "/var/backups/shiftmaster") == [
        "Date: 1970-01-01 09:00:00 JST",
        "Database: SUCCESS (full, 3.0 MiB, restored and verified)",
        "Files: FAILED: disk full",
        "Total size: 3.0 MiB",
        "Location: /var/backups/shiftmaster",
    ]
    assert report.reasons(manifest) == ["disk full"]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_are_readable(number, text):
    assert printable.sized(number) == text


# --- the rollback -----------------------------------------------------------------------------------------------------


@pytest.fixture
def recording_host(host, monkeypatch):
    """Commands that the host would run; results by a word of the command."""
    host.calls, host.responses = [], {}

    def run(what, *command, fine=(0,), **_more):
        host.calls.append(command)
        code, out = next((host.responses[word] for word in command if word in host.responses), (0, ""))
        if code not in fine:
            raise BackupError("%s ended with %d" % (what, code))
        return subprocess.CompletedProcess(command, code, out, "")

    monkeypatch.setattr(host, "run", run)
    host.options.update(restic_password_file="/secret", state="/state", pull_key="/key", known_hosts="/known",
                        restore_config="/restore.conf", textfile_dir="/nowhere")  # fmt: skip
    return host


def test_a_snapshot_that_was_copied_is_found_by_its_run(recording_host):
    recording_host.responses["snapshots"] = (0, json.dumps([{"id": "copy-of-it"}]))
    assert files.Restic(recording_host).full_id("files", "run1") == "copy-of-it"
    assert "--tag=files,run=run1" in recording_host.calls[0]
    recording_host.responses["snapshots"] = (0, "[]")
    assert files.Restic(recording_host).full_id("files", "run1") == ""


def test_locks_of_a_repository_are_removed_by_restic_itself(recording_host):
    files.Restic(recording_host).unlock()
    (words,) = recording_host.calls
    assert words[0] == "restic" and words[-1] == "unlock"


def test_a_check_of_a_repository_fails_where_restic_finds_damage(recording_host, tmp_path):
    repository = tmp_path / "restic"
    repository.mkdir()
    (repository / "pack").write_bytes(b"x")
    recording_host.responses["check"] = (0, "read all data\nno errors were found\n")
    assert files.Restic(recording_host).check() == "all of the repository read"
    assert recording_host.calls[0][-2:] == ("check", "--read-data")
    recording_host.responses["check"] = (1, "")
    with pytest.raises(BackupError, match="restic check: "):
        files.Restic(recording_host).check()


def test_an_unreachable_host_counts_as_not_deploying(recording_host):
    source = {"name": "app1", "address": "192.0.2.1"}
    recording_host.responses["lock"] = (
        0,
        json.dumps({"operation": "deploy", "owner": "sato", "expires": time.time() + 60}),
    )
    assert host_module.deploy_of(files.check_lock(recording_host, source)) == "deploy by sato"
    assert recording_host.calls[0][-2:] == ("shiftmaster-backup@192.0.2.1", "lock")
    recording_host.responses["lock"] = (255, "")
    assert files.check_lock(recording_host, source) == ""


def test_received_segments_are_archived_and_fail_no_restore(recording_host, tmp_path):
    directory = tmp_path / "received"
    directory.mkdir()
    for name in ("000000010000000000000003", "000000010000000000000004", "000000010000000000000005.partial"):
        (directory / name).touch()
    restore._archive_received(recording_host, "/data", str(directory))
    assert [call[-1] for call in recording_host.calls] == [
        str(directory / f"00000001000000000000000{n}") for n in (3, 4)
    ]
    recording_host.responses["archive-push"] = (1, "")
    restore._archive_received(recording_host, "/data", str(directory))
    assert (tmp_path / "log/backup.log").read_text().count("was not archived") == 2
    restore._archive_received(recording_host, "/data", "")


# --- what other hosts send ------------------------------------------------------------------------------------------


@pytest.fixture
def sandboxed(recording_host, monkeypatch, tmp_path):
    """A host whose restic saves; what it is given is in `calls`."""
    monkeypatch.setattr(files.sandbox, "ROOT", str(tmp_path / "root"))
    monkeypatch.setattr(files, "RUN", str(tmp_path / "run"))
    password = tmp_path / "password"
    password.write_text("of the repository\n")
    recording_host.options.update(
        restic_password_file=str(password), state=str(tmp_path / "state"), host="backup_server", parts=[]
    )
    summary = {"message_type": "summary", "snapshot_id": "5" * 64, "total_files_processed": 3}
    recording_host.responses["restic"] = (0, json.dumps(summary))
    return recording_host


def test_restic_reads_in_a_file_system_of_its_own(sandboxed, tmp_path, monkeypatch):
    seen, run = {}, sandboxed.run

    def noted(what, *command, **more):
        if command[0] == "find":
            return subprocess.CompletedProcess(command, 0, "1\n", "")
        (path,) = [word.rpartition("=")[2] for word in command if "EnvironmentFile" in word]
        with open(path, encoding="utf-8") as stream:
            seen[path] = (stream.read(), os.fstat(stream.fileno()).st_mode & 0o777)
        return run(what, *command, **more)

    monkeypatch.setattr(sandboxed, "run", noted)
    part = {"name": "files", "paths": ["/usr/share", "/usr/absent"], "exclude": [], "optional": ["/usr/absent"]}
    sandboxed.options["sources"] = []
    files.Restic(sandboxed).backup(part, "run1")
    (words,) = sandboxed.calls
    given = [word.removeprefix("--property=") for word in words if word.startswith("--property=")]
    assert f"--unit=shiftmaster-backup-restic-{os.getpid()}" in words
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755
    assert f"RootDirectory={tmp_path}/root" in given and "MountAPIVFS=no" in given
    assert "CapabilityBoundingSet=CAP_DAC_READ_SEARCH" in given and "PrivateNetwork=yes" in given
    shown = [
        line.split("=", 1)[1].replace(chr(34), "")
        for line in given
        if line.startswith(("BindReadOnlyPaths", "BindPaths"))
    ]
    assert sorted(shown) == sorted(
        ["/usr", "/usr/lib:/lib", "-/usr/lib64:/lib64", "/usr/share", "/etc/passwd", "/etc/group", "-/etc/localtime",
         f"{tmp_path}/state/restic-cache", f"{tmp_path}/restic"]
    )  # fmt: skip
    # The snapshot's paths are those of the host.
    assert words[-2:] == ("--", "/usr/share")
    # The password is in no argument, and in no file that restic could be led to.
    ((path, (text, mode)),) = seen.items()
    assert 'RESTIC_PASSWORD="of the repository"\n' in text and mode == 0o600 and not os.path.exists(path)
    assert not [word for word in words if "of the repository" in word] and "PASSWORD_FILE" not in text


def test_restic_restores_where_it_can_write_to_nothing_else(sandboxed, tmp_path):
    files.Restic(sandboxed).restore("restic restore", "snapshot", str(tmp_path / "there"), "/srv/a$b")
    (words,) = sandboxed.calls
    given = [word.removeprefix("--property=") for word in words if word.startswith("--property=")]
    assert [line for line in given if line.startswith("BindPaths=")] == [f'BindPaths="{tmp_path}/there"']
    assert f'BindReadOnlyPaths="{tmp_path}/restic"' in given and "PrivateNetwork=yes" in given
    assert "CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID" in given
    assert words[-3:] == ("--target", f"{tmp_path}/there", "--include=/srv/a$$b")


def test_sparse_files_do_not_keep_restic_at_work_for_days(sandboxed, monkeypatch, tmp_path):
    """11,000 files of 2 GiB take a second to make, and no room; restic reads them for more than a step may take."""
    media = tmp_path / "media"
    media.mkdir()
    disk = os.statvfs(media)
    for number in range(1 + disk.f_blocks * disk.f_frsize // (1 << 43)):
        with open(media / str(number), "wb") as stream:
            stream.truncate(1 << 43)
    run = sandboxed.run

    def measure(what, *words, **more):
        return Host.run(sandboxed, what, *words, **more) if words[0] == "find" else run(what, *words, **more)

    monkeypatch.setattr(sandboxed, "run", measure)
    monkeypatch.setattr(files.sandbox, "existing", os.path.exists)
    sandboxed.options["sources"] = []
    with pytest.raises(BackupError, match="sparse"):
        files.Restic(sandboxed).backup({"name": "files", "paths": [str(media)], "exclude": []}, "run1")
    assert not sandboxed.calls
    for file in media.iterdir():
        file.unlink()
    (media / "photo").write_text("x")
    files.Restic(sandboxed).backup({"name": "files", "paths": [str(media)], "exclude": []}, "run1")
    assert "backup" in sandboxed.calls[-1]


@pytest.mark.parametrize(
    "response", [DEEP, "5", "{}", '["/srv"' + ', "x"' * 400000 + "]", '["/etc/shadow"]', "\x1b[2J"], ids=range(6)
)
def test_a_host_without_a_list_of_paths_does_not_prevent_the_backup_of_others(sandboxed, response, monkeypatch):
    sources = [{"name": name, "address": "192.0.2.%d" % number,
                "parts": [{"name": "files", "paths": ["/srv"], "exclude": []}]}
               for number, name in enumerate(("app1", "app2"), 1)]  # fmt: skip
    sandboxed.options["sources"] = sources
    run = sandboxed.run

    def query(what, *command, limit=0, **more):
        if command[-1] == "paths files":
            text = response if "@192.0.2.1" in command[-2] else '["/srv"]'
            assert 0 < limit <= 1 << 20
            if len(text) > limit:
                raise BackupError("%s was ended" % what)
            return subprocess.CompletedProcess(command, 0, text, "")
        return run(what, *command, **more)

    monkeypatch.setattr(sandboxed, "run", query)
    part = {"name": "files", "paths": [], "exclude": []}
    summary, problems = files.Restic(sandboxed).backup(part, "run1")
    assert summary["snapshot_id"] and [(code, where) for code, _what, where in problems] == [("source_failed", "app1")]
    saved = sandboxed.calls[-1]
    assert saved[saved.index("backup") :][-1] == files.pulled(sandboxed, "files", "app2")
    # Where there is a copy of the last run, it is saved once more.
    os.makedirs(files.pulled(sandboxed, "files", "app1"))
    files.Restic(sandboxed).backup(part, "run2")
    assert files.pulled(sandboxed, "files", "app1") in sandboxed.calls[-1]
    # Its key there runs what --rsync-path names, and nothing else.
    received = next(call for call in sandboxed.calls if "rsync" in call)
    assert received[received.index("--rsync-path") + 1] == "send files"


def test_a_part_without_data_of_any_host_has_failed(sandboxed, monkeypatch):
    source = {"name": "app1", "address": "192.0.2.1", "parts": [{"name": "files", "paths": ["/srv"], "exclude": []}]}
    sandboxed.options["sources"] = [source]
    sandboxed.responses["paths files"] = (0, "[]")
    with pytest.raises(BackupError, match="not there: /srv"):
        files.Restic(sandboxed).backup({"name": "files", "paths": [], "exclude": []}, "run1")
    assert not [call for call in sandboxed.calls if "backup" in call]


def after(words, name):
    return words[words.index(name) + 1]


def test_files_of_another_host_are_received_unchanged_and_deleted_ones_are_deleted(sandboxed, monkeypatch):
    monkeypatch.setattr(files, "room_for_others", lambda _directory: lambda: "")
    source = {"name": "app1", "address": "2001:db8::1", "parts": []}
    sandboxed.responses["paths files"] = (0, '["/srv", 5, "/etc/x"]')
    directory = files.pulled(sandboxed, "files", "app1")
    part = {"name": "files", "paths": ["/srv", "/etc/x", "/may/be"], "optional": ["/may/be"]}
    assert files.pull(sandboxed, source, part) == directory == sandboxed.directory + "/pulled/files/app1"
    assert os.stat(directory).st_mode & 0o777 == 0o700
    request, received = sandboxed.calls
    assert request[-2:] == ("shiftmaster-backup@2001:db8::1", "paths files")
    words = received[received.index("rsync") :]
    options = {"--archive", "--no-devices", "--no-specials", "--relative", "--numeric-ids", "--delete"}
    assert options | {"--rsync-path", "--rsh"} == {word for word in words if word.startswith("--")}
    assert words[-3:] == ("shiftmaster-backup@[2001:db8::1]:/srv", ":/etc/x", directory + "/")
    # It waits for no prompt and no unresponsive host, and verifies the host key.
    for ssh in (after(words, "--rsh").split(), request):
        chosen = {after(ssh[at:], "-o") for at, word in enumerate(ssh) if word == "-o"}
        assert ssh[0] == "ssh" and after(ssh, "-i") == "/key" and {
            "BatchMode=yes", "StrictHostKeyChecking=yes", "UserKnownHostsFile=/known", "LogLevel=ERROR",
        } < chosen  # fmt: skip
        assert {one.partition("=")[0] for one in chosen} >= {"ConnectTimeout", "ServerAliveInterval"}
    given = [word.removeprefix("--property=") for word in received if word.startswith("--property=")]
    assert "--unit=shiftmaster-backup-pull-files-app1" in received and "MemoryMax=50%" in given
    assert "CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID" in given
    assert "RuntimeMaxSec=%d" % sandboxed.options["timeout_seconds"] in given
    shown = " ".join(given).replace(chr(34), "")
    assert " BindPaths=" + directory in shown
    assert all("BindReadOnlyPaths=" + path in shown for path in ("/key", "/known", "/etc/passwd"))
    sandboxed.responses["paths files"] = (0, "[]")
    with pytest.raises(BackupError, match="files of app1: nothing of it exists"):
        files.pull(sandboxed, source, dict(part, optional=part["paths"]))


def test_snapshots_have_their_host_tags_and_exclusions(sandboxed, tmp_path):
    sandboxed.options["sources"] = []
    part = {"name": "files", "paths": ["/usr/share"], "exclude": ["*.tmp", "/usr/share/x"]}
    restic = files.Restic(sandboxed)
    restic.words = ["--repo2"]
    summary, problems = restic.backup(part, "run1")
    assert (summary["snapshot_id"], problems) == ("5" * 64, [])
    words = sandboxed.calls[-1]
    assert words[words.index("restic") :] == (
        "restic", "--repo2", "backup", "--json", "--host", "backup_server", "--tag", "files", "--tag", "run=run1",
        "--exclude=*.tmp", "--exclude=/usr/share/x", "--", "/usr/share",
    )  # fmt: skip
    restic.backup(part, "run1", tag="safety")
    words = sandboxed.calls[-1]
    assert after(words, "--tag") == "safety" and (tmp_path / "state/restic-cache").stat().st_mode & 0o777 == 0o700
    sandboxed.responses["restic"] = (1, "")
    with pytest.raises(BackupError, match="restic backup of files: "):
        restic.backup(part, "run1")


def test_a_repository_is_created_only_where_none_exists(recording_host):
    restic = files.Restic(recording_host)
    assert restic.init() and recording_host.calls == [("restic", "--quiet", "init")]
    assert os.stat(restic.repository).st_mode & 0o777 == 0o700
    open(restic.repository + "/data", "w").close()
    with pytest.raises(BackupError, match="not empty"):
        restic.init()
    open(restic.repository + "/config", "w").close()
    assert not restic.init() and len(recording_host.calls) == 1
    assert restic.env["RESTIC_REPOSITORY"] == recording_host.directory + "/restic"
    assert (restic.env["RESTIC_PASSWORD_FILE"], restic.env["RESTIC_CACHE_DIR"]) == ("/secret", "/state/restic-cache")


@pytest.mark.parametrize(
    ("day", "size", "how"),
    [
        (8, 101, "--read-data"),
        (9, 100, "--read-data"),
        (10, 101, "--read-data-subset=10/10"),
        (11, 101, "--read-data-subset=1/10"),
    ],
)
def test_a_tenth_of_a_large_repository_is_read_each_day_and_all_of_it_on_sundays(
    recording_host, monkeypatch, day, size, how
):
    class Now(files.datetime.datetime):
        @classmethod
        def now(cls, zone):
            return cls(2026, 3, day, tzinfo=zone)

    # A Sunday; the 9th is day 68 of the year.
    assert Now(2026, 3, 8).weekday() == 6
    monkeypatch.setattr(files, "READ_ALL_BYTES", 100)
    monkeypatch.setattr(files.datetime, "datetime", Now)
    os.makedirs(recording_host.directory + "/restic/data")
    for name, length in (("config", 1), ("data/pack", size - 1)):
        with open(os.path.join(recording_host.directory, "restic", name), "wb") as stream:
            stream.write(b"x" * length)
    recording_host.responses["check"] = (0, "read all data\nno errors were found\n")
    files.Restic(recording_host).check()
    assert recording_host.calls == [("restic", "check", how)]


def test_the_number_of_compared_files_is_the_size_of_the_sample(sandboxed, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "SAMPLE_FILES", 2)
    sandboxed.responses.pop("restic")
    lines = [{"time": "2026-11-01T00:00:00Z"}]
    lines += [{"type": "file", "path": f"/srv/{number}", "size": 1} for number in range(3)]
    sandboxed.responses.update(ls=(0, "\n".join(map(json.dumps, lines))), restore=(1, ""))
    with pytest.raises(BackupError):
        files.Restic(sandboxed).compare("snapshot", str(tmp_path / "scratch"))
    assert len([word for call in sandboxed.calls for word in call if word.startswith("--include=")]) == 2


@pytest.mark.parametrize("scarce", ["f_bavail", "f_favail"])
@pytest.mark.parametrize(
    # Of 1000: free before, and just enough after; what it sends is there twice, and a tenth stays free.
    ("before", "enough"),
    [(1000, 550), (300, 200), (100, 99), (50, 50), (0, 0)],
)
def test_a_host_that_fills_the_disk_is_ended_and_what_it_has_sent_is_removed(
    sandboxed, monkeypatch, before, enough, scarce
):
    source = {"name": "app1", "address": "192.0.2.1", "parts": []}
    free, run = [before], sandboxed.run
    directory = files.pulled(sandboxed, "files", "app1")

    def statvfs(_path):
        disk = {"f_bavail": 1000, "f_blocks": 1000, "f_frsize": 4, "f_favail": 1000, "f_files": 1000, scarce: free[0]}
        return SimpleNamespace(**disk)

    def query(what, *command, watch=None, **more):
        if command[-1] == "paths files":
            return subprocess.CompletedProcess(command, 0, '["/srv"]', "")
        if "rsync" in command:
            open(directory + "/large", "w").close()
            free[0] = enough
            assert watch() == ""
            free[0] -= 1
            raise BackupError("%s was ended: %s" % (what, watch()))
        return run(what, *command, **more)

    monkeypatch.setattr(room.os, "statvfs", statvfs)
    monkeypatch.setattr(sandboxed, "run", query)
    with pytest.raises(BackupError, match="reading files of app1 was ended: it sends more than leaves 10 %"):
        files.pull(sandboxed, source, {"name": "files", "paths": ["/srv"]})
    assert not os.path.exists(directory)
    assert any(call[:2] == ("systemctl", "stop") for call in sandboxed.calls)


@pytest.mark.parametrize(
    ("blocks", "names", "used", "other"),
    [
        # Half of what is free beyond a tenth of the file system.
        (500, 500, (200, 200), ""), (500, 500, (201, 0), "room"), (500, 500, (0, 201), "number of files"),
        # Where less is free: half of a fiftieth of it.
        (100, 1000, (1, 0), ""), (100, 1000, (2, 0), "room"), (1000, 100, (0, 1), ""),
        (1000, 100, (0, 2), "number of files"),
    ],
)  # fmt: skip
def test_another_host_sends_half_of_what_is_free_beyond_the_reserve(monkeypatch, blocks, names, used, other):
    free = [blocks, names]

    def statvfs(_path):
        return SimpleNamespace(f_bavail=free[0], f_blocks=1000, f_frsize=4, f_favail=free[1], f_files=1000)

    monkeypatch.setattr(room.os, "statvfs", statvfs)
    too_much = room.room_for_others("/b")
    free[:] = blocks - used[0], names - used[1]
    assert too_much() == (other and "it sends more than leaves 10 %% of the %s in /b free" % other)


def test_several_runs_of_a_host_leave_room_for_others(monkeypatch):
    free = [500_000]
    disk = {"f_blocks": 1_000_000, "f_frsize": 1, "f_favail": 0, "f_files": 0}
    monkeypatch.setattr(room.os, "statvfs", lambda _path: SimpleNamespace(f_bavail=free[0], **disk))
    for _run in range(30):
        too_much, before = room.room_for_others("/backups"), free[0]
        while free[0] > 0 and not too_much():
            free[0] -= 100
        # The repository has it, too.
        free[0] -= before - free[0]
    assert free[0] > 50_000


# --- a command that writes WAL while there is room -------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch):
    """A file system of 1000 bytes and files, of which so many are free; each sleep takes the next state."""
    disk, wait = SimpleNamespace(free=[(1000, 1000)]), time.sleep

    def statvfs(_path):
        room_, names = disk.free[0]
        return SimpleNamespace(f_bavail=room_, f_blocks=1000, f_frsize=4, f_favail=names, f_files=1000)

    def sleep(_seconds):
        wait(0.02)
        if len(disk.free) > 1:
            disk.free.pop(0)

    monkeypatch.setattr(room.os, "statvfs", statvfs)
    monkeypatch.setattr(room.time, "sleep", sleep)
    return disk


def guarded(tmp_path, readable, script):
    return room.guard("/archive", readable, ["sh", "-c", "cd %s; %s" % (tmp_path, script)])


WRITE = "head -c 100 /dev/zero > new && exit 7; exit 8"


def test_with_free_space_a_command_writes(disk, tmp_path):
    disk.free = [(50, 50)]
    assert guarded(tmp_path, True, WRITE) == 7


def test_without_free_space_a_command_reads_and_extends_no_file(disk, tmp_path):
    disk.free = [(49, 1000)]
    (tmp_path / "read").write_text("content")
    assert guarded(tmp_path, True, "cat read > /dev/null || exit 5; head -c 100 /dev/zero > new || exit 8") == 8
    assert (tmp_path / "new").stat().st_size == 0


@pytest.mark.parametrize(("readable", "free"), [(False, (49, 1000)), (True, (1000, 49)), (False, (1000, 49))])
def test_a_command_waits_for_room(disk, tmp_path, readable, free):
    disk.free = [free, free, (1000, 1000)]
    assert guarded(tmp_path, readable, WRITE) == 7
    disk.free = [free, (1000, 1000), free, free]
    assert guarded(tmp_path, readable, "exec sleep 5") == 1


@pytest.mark.parametrize(
    ("states", "why"),
    [
        ([(1000, 1000), (49, 1000)], "less room is free"),
        ([(1000, 1000), (1000, 49)], "less number of files is free"),
        ([(49, 1000), (1000, 1000)], "there is room"),
    ],
)
def test_a_command_is_started_again_where_the_room_changes(disk, tmp_path, capfd, states, why):
    disk.free = states
    assert guarded(tmp_path, True, "exec sleep 5") == 1
    assert capfd.readouterr().err == "starting again: %s\n" % why


@pytest.mark.parametrize(("free", "limited"), [((1000, 1000), False), ((49, 1000), True)])
@pytest.mark.parametrize(("ended", "code"), [(0, 0), (7, 7), (-9, 1)])
def test_a_command_has_its_signals_and_its_exit_code(disk, monkeypatch, capfd, free, limited, ended, code):
    started = []

    def popen(command, restore_signals):
        started.append((command, restore_signals))
        return SimpleNamespace(poll=lambda: ended, returncode=ended)

    disk.free = [free]
    monkeypatch.setattr(room.subprocess, "Popen", popen)
    assert room.guard("/archive", True, ["pgbackrest", "x"]) == code
    assert started == [([*(["prlimit", "--fsize=0"] if limited else []), "pgbackrest", "x"], not limited)]
    assert ("5 % of the room of /archive" in capfd.readouterr().out) == limited


# --- what a database host sends --------------------------------------------------------------------------------------


def test_endless_output_of_a_database_host_is_cut_off(host, tmp_path, monkeypatch):
    psql = tmp_path / "psql"
    psql.write_text("#!/bin/sh\nexec yes\n")
    psql.chmod(0o755)
    monkeypatch.setattr(host, "bin", str(tmp_path))
    monkeypatch.setattr(host_module, "ROWS_BYTES", 1000, raising=False)
    host.options["timeout_seconds"] = 15
    with pytest.raises(BackupError, match="more than 1000 bytes"):
        host.query("SELECT 1")
    psql.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(host_module, "QUERY_SECONDS", 1, raising=False)
    with pytest.raises(BackupError, match="within 1 s"):
        host.query("SELECT 1")


def began(seconds: float) -> str:
    """Restic's snapshot in `ls`, begun so many seconds from now."""
    at = datetime.datetime.fromtimestamp(time.time() + seconds, datetime.timezone.utc)
    return json.dumps({"struct_type": "snapshot", "time": at.isoformat()}) + "\n"


def compared(recording_host, monkeypatch, tmp_path, here: bytes, there: bytes, seconds=10):
    """Let a file whose name is not UTF-8 be compared: what the host has, and what restic restores of it."""
    recording_host.responses.pop("restic")
    path = os.fsencode(tmp_path) + b"/h\xe9\xff.txt"
    with open(path, "wb") as stream:
        stream.write(here)
    written = str(tmp_path) + "/h\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.txt"
    node = {"type": "file", "path": written, "size": len(here)}
    recording_host.responses["ls"] = (0, began(seconds) + json.dumps(node))
    run, patterns = recording_host.run, []

    def restore(what, *command, **more):
        if "restore" in command:
            target = command[command.index("--target") + 1]
            patterns.extend(word for word in command if word.startswith("--include"))
            os.makedirs(target + str(tmp_path))
            with open(os.fsencode(target) + path, "wb") as stream:
                stream.write(there)
            os.utime(os.fsencode(target) + path, ns=(0, os.lstat(path).st_mtime_ns))
        return run(what, *command, **more)

    monkeypatch.setattr(recording_host, "run", restore)
    result = files.Restic(recording_host).compare("snapshot", str(tmp_path / "scratch"))
    assert patterns == [f"--include={tmp_path}/h??.txt"]
    return result


def test_a_name_that_is_not_utf8_is_compared_too(sandboxed, monkeypatch, tmp_path):
    assert compared(sandboxed, monkeypatch, tmp_path, b"plan", b"plan") == "1 of 1 files restored and compared"


def test_a_damaged_file_whose_name_is_not_utf8_is_found(sandboxed, monkeypatch, tmp_path):
    with pytest.raises(BackupError, match=r"h\?\?.txt|h\ufffd\ufffd.txt was restored with another content"):
        compared(sandboxed, monkeypatch, tmp_path, b"plan", b"flan")


def test_a_file_that_was_exchanged_since_is_not_damaged(sandboxed, monkeypatch, tmp_path):
    """With the size and the time that it had, which its owner can set."""
    result = compared(sandboxed, monkeypatch, tmp_path, b"plan", b"flan", seconds=-1)
    assert result == "0 of 1 files restored and compared, 1 have changed since"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user")
def test_a_file_that_was_exchanged_with_its_directory_is_not_damaged(sandboxed, monkeypatch, tmp_path):
    os.chown(tmp_path, 1234, 1234)
    # The file is older than the snapshot, its directory is not.
    monkeypatch.setattr(files, "unchanged", lambda *_arguments: True)
    result = compared(sandboxed, monkeypatch, tmp_path, b"plan", b"flan", seconds=-1)
    assert result == "0 of 1 files restored and compared, 1 have changed since"


def test_files_with_paths_too_long_to_be_restored_are_not_compared(recording_host, monkeypatch, tmp_path):
    long = ["/srv/" + "/".join(["x" * 200] * 20) + "/%d" % number for number in range(1500)]
    nodes = [{"type": "file", "path": path, "size": 1} for path in long]
    recording_host.responses["ls"] = (0, began(10) + "\n".join(json.dumps(node) for node in nodes))
    run = recording_host.run

    def restore(what, *command, **more):
        if "restore" in command:
            raise BackupError("%s: file name too long" % what)
        return run(what, *command, **more)

    monkeypatch.setattr(recording_host, "run", restore)
    result = files.Restic(recording_host).compare("snapshot", str(tmp_path / "scratch"))
    assert result == "0 of 1500 files restored and compared"


def test_only_regular_files_are_compared(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below/plan.txt").touch()
    (tmp_path / "below/link.txt").symlink_to("plan.txt")
    os.mkfifo(tmp_path / "below/fifo")
    assert files.by_written_name(str(tmp_path)) == {"/below/plan.txt": ["/below/plan.txt"]}


SHOWN = "TimersCalendar={ OnCalendar=*-*-* 02:30:00 Asia/Tokyo ; next_elapse=n/a }\n"
CALENDAR_OUTPUT = """  Original form: *-*-* 02:30:00 Asia/Tokyo
Normalized form: *-*-* 02:30:00 Asia/Tokyo
    Next elapse: Thu 2026-11-26 17:30:00 UTC
       From now: 8h left
"""


def test_the_next_run_is_known_while_one_runs(recording_host):
    """The timer shows `n/a` then; its calendar does not."""
    recording_host.responses.update({"show": (0, SHOWN), "systemd-analyze": (0, CALENDAR_OUTPUT)})
    assert report.next_run(recording_host) == 1795714200
    recording_host.responses["is-enabled"] = (1, "")
    assert report.next_run(recording_host) is None


def test_a_row_ends_with_a_line_feed_and_nothing_else():
    """A table or a file may have a name with another end of a line."""
    assert rows_of("public.a\u0085b\x1f1\npublic.c\u2028\r\x0b\x1f2\n") == [
        ["public.a\u0085b", "1"], ["public.c\u2028\r\x0b", "2"],
    ]  # fmt: skip
    assert rows_of("") == [] and rows_of("\n") == [[""]] and rows_of("t") == [["t"]]
