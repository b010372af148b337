"""Rights of the backup server's key on another host: it names a set that the host itself defines, and nothing else."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.backup import sandbox
from ansible.module_utils.shiftmaster.host import safe_files

ROOT = Path(__file__).resolve().parents[3]
PATH = ROOT / "roles/backup/files/shiftmaster-backup-read"
PACKAGE = "ansible.module_utils.shiftmaster"


@pytest.fixture
def read(monkeypatch, tmp_path):
    for name in ("", ".backup", ".host"):
        monkeypatch.setitem(sys.modules, "shiftmaster" + name, importlib.import_module(PACKAGE + name))
    loader = importlib.machinery.SourceFileLoader("shiftmaster_backup_read", str(PATH))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    config = tmp_path / "read.json"
    config.write_text(
        json.dumps(
            {
                "lock": "/var/www/shiftmaster/shared/state/lock.json",
                "sets": {"files": {"paths": ["/usr/share", "/usr/absent"], "exclude": ["*.pyc"]}},
            }
        )
    )
    monkeypatch.setattr(module, "CONFIG", str(config))
    monkeypatch.setattr(sandbox, "ROOT", str(tmp_path / "root"))
    return module


@pytest.fixture
def run(read, monkeypatch):
    """Carry out a caller's command; returns the words that would be executed, None where there are none."""

    def carry_out(command):
        started, read.stopped = [], []
        monkeypatch.setattr(read.subprocess, "run", lambda words, **_options: read.stopped.append(words[-1]))
        monkeypatch.setattr(sys, "argv", ["shiftmaster-backup-read", command])
        monkeypatch.setattr(os, "execve", lambda _path, words, _environment: started.append(words))
        read.main()
        return started[0] if started else None

    return carry_out


# Commands of rsync 3.2 and 3.4 after `--rsync-path "send files"`, and variations by a caller.
@pytest.mark.parametrize(
    "command",
    [
        "send files",
        "send files --server --sender -logtprRe.iLsfxCIvu --numeric-ids . /usr/share",
        "send files --server --sender -slogtprRe.iLsfxCIvu",
        "send files --server --sender -logtpr --log-file=/etc/cron.d/x --remove-source-files . /etc/shadow",
        "send files --server --daemon --config=/tmp/x .",
    ],
)
def test_the_name_of_a_set_alone_decides_what_is_sent(run, read, command):
    words = run(command)
    assert words == run("send files")
    assert words[-8:] == [
        "/usr/bin/rsync", "--server", "--sender", "-logtpRre.iLsfxCIvu", "--numeric-ids", "--exclude=*.pyc", ".",
        "/usr/share",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        "", "sh", "id", "send", "send /etc/shadow", "send configuration", "paths", "paths /etc", "lock /etc/shadow",
        "rsync --server --sender -s", "rsync --server --sender -logDtpRre.iLsfxCIvu . /usr/share", "send files; id",
        "sets files", "send ../files",
    ],
)  # fmt: skip
def test_no_other_command_is_executed(run, read, command):
    with pytest.raises(read.Rejected):
        run(command)


def test_the_sender_runs_without_root_and_sees_nothing_but_its_set(run, read):
    words = run("send files")
    given = [word.removeprefix("--property=") for word in words if word.startswith("--property=")]
    assert "DynamicUser=yes" in given and "CapabilityBoundingSet=CAP_DAC_READ_SEARCH" in given
    assert "RootDirectory=" + sandbox.ROOT in given
    shown = {path for line in given if line.startswith("BindReadOnlyPaths=") for path in line.split("=", 1)[1].split()}
    assert shown == {"/usr", "/usr/lib:/lib", "-/usr/lib64:/lib64", '"/usr/share"'}
    # By way of /proc a process reaches the file systems of others.
    assert "MountAPIVFS=no" in given and "PrivateNetwork=yes" in given
    assert not [
        line for line in given if re.match("ProtectProc|ProcSubset|ProtectKernelTunables|ProtectControlGroups", line)
    ]
    assert not [line for line in given if line.startswith(("BindPaths", "ReadWritePaths"))]


def test_a_backup_does_not_use_up_the_resources_of_the_host(run, read):
    """rsync keeps the filter rules of its caller in memory, and each connection was one more sender."""
    words = run("send files")
    given = {word.removeprefix("--property=").split("=")[0] for word in words if word.startswith("--property=")}
    assert {"MemoryMax", "TasksMax", "RuntimeMaxSec"} <= given
    (unit,) = read.stopped
    assert "--unit=" + unit in words and unit == "shiftmaster-backup-send-files.service"


def test_the_paths_of_a_set_that_exist_are_listed(run, capsys):
    assert run("paths files") is None
    assert json.loads(capsys.readouterr().out) == ["/usr/share"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_a_path_that_another_user_can_replace_is_rejected(read, tmp_path):
    os.chmod(tmp_path, 0o755)
    (tmp_path / "application").mkdir()
    (tmp_path / "application/media").symlink_to("/etc")
    os.chown(tmp_path / "application", 1234, 1234)
    with pytest.raises(safe_files.UnsafePathError):
        sandbox.existing(str(tmp_path / "application/media"))
    # Also where root's own link leads there.
    (tmp_path / "link").symlink_to(tmp_path / "application/media")
    with pytest.raises(safe_files.UnsafePathError):
        sandbox.existing(str(tmp_path / "link"))


def test_a_path_is_one_path_in_every_spelling(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "ROOT", str(tmp_path / "root"))
    words = sandbox.words("x", [], ['/srv/a b:c"d\\e', "-/srv/none"])
    assert '--property=BindReadOnlyPaths="/srv/a b:c\\"d\\\\e"' in words
    assert '--property=BindReadOnlyPaths=-"/srv/none"' in words


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_the_lock_of_another_user_is_not_followed(read, tmp_path, kind):
    """The application user cannot have root send a file to the backup server, nor wait for ever."""
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"owner": "root's own"}))
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 1234, 1234)
    if kind == "link":
        (state / "lock.json").symlink_to(secret)
    else:
        os.mkfifo(state / "lock.json")
    assert read.read_lock(str(state / "lock.json")) == {}


def test_only_the_required_fields_of_the_lock_are_sent(read, tmp_path):
    lock = tmp_path / "lock.json"
    assert read.read_lock(str(lock)) == {}
    lock.write_text('{"operation": "deploy", "owner": "me", "expires": 5, "token": "secret"}')
    assert read.read_lock(str(lock)) == {"operation": "deploy", "owner": "me", "expires": 5}
    lock.write_text("root:x:0:0")
    assert read.read_lock(str(lock)) == {}


def test_files_on_another_host_are_read_as_their_owner(read, tmp_path):
    """No capability of this host counts there, and a directory of mode 0750 would be in no backup."""
    media, mounts = tmp_path / "shared/uploaded files", tmp_path / "mounts"
    media.mkdir(parents=True)
    os.chown(media, 899, 898)
    place = str(media).replace(" ", r"\040")

    def of(kind, paths):
        mounts.write_text(f"/dev/vda1 / ext4 rw 0 0\nnas:/x {place} {kind} rw 0 0\n")
        return read.identity(paths, str(mounts))

    assert of("nfs4", [str(tmp_path)]) == ["User=899", "Group=898"] == of("nfs4", [str(media)])
    assert (
        of("ext4", [str(tmp_path)])
        == of("nfs4", ["/etc"])
        == of("nfs4", [str(tmp_path / "share")])
        == ["DynamicUser=yes"]
    )
    os.chown(media, 0, 0)
    assert of("nfs4", [str(tmp_path)]) == ["DynamicUser=yes"]
