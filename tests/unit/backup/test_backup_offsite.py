"""The off-site copy: its connection, and what it rejects. That it works is seen on hosts (molecule/backup)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from ansible.module_utils.shiftmaster.backup import files, offsite
from ansible.module_utils.shiftmaster.backup import manifest as manifests
from ansible.module_utils.shiftmaster.backup import run as runs
from ansible.module_utils.shiftmaster.backup.host import BackupError, Host

SFTP = "sftp:copies@offsite.example.jp:/srv/shiftmaster"
NOW = 1795737600


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(files.sandbox, "ROOT", str(tmp_path / "root"))
    environment, password = tmp_path / "offsite.json", tmp_path / "offsite.password"
    environment.write_text(json.dumps({"AWS_ACCESS_KEY_ID": "key"}))
    password.write_text("of the copy")
    (tmp_path / "backups").mkdir()
    host = Host(
        {
            "directory": str(tmp_path / "backups"), "state": str(tmp_path / "state"), "stanza": "shiftmaster",
            "host": "one", "scratch": str(tmp_path / "scratch"), "keep_days": 30, "keep_months": 12,
            "keep_years": 7, "timeout_seconds": 60,
            "parts": [], "sources": [], "restic_password_file": "/etc/restic.password",
            "database": {"version": "17", "databases": []},
            "offsite": {
                "repository": SFTP, "password_file": str(password), "environment_file": str(environment),
                "ssh_key_file": "/etc/offsite.key", "ssh_port": 2222, "known_hosts_file": "/etc/known", "ca_file": "",
                "append_only": False,
            },
        }
    )  # fmt: skip
    host.calls, host.responses = [], {}

    def run(what, *command, env=None, fine=(0,), **_more):
        host.calls.append((command, env))
        code, out, err = next((host.responses[word] for word in command if word in host.responses), (0, "", ""))
        if code not in fine:
            raise BackupError("%s ended with %d: %s" % (what, code, err))
        return subprocess.CompletedProcess(command, code, out, err)

    host.run = run
    return host


def test_there_is_no_prompt_and_no_unknown_host_is_trusted(host):
    command = offsite.ssh_command(host.options["offsite"])
    assert command.endswith(" copies@offsite.example.jp -s sftp") and " -p 2222 " in command
    for word in ("BatchMode=yes", "StrictHostKeyChecking=yes", "UserKnownHostsFile=/etc/known", "-i /etc/offsite.key"):
        assert word in command
    with pytest.raises(BackupError, match="not of the form"):
        offsite.ssh_command({**host.options["offsite"], "repository": "sftp:offsite.example.jp"})


def test_no_secret_is_in_a_command(host, tmp_path):
    outside = offsite.Offsite(host)
    outside.prune()
    ((command, env),) = host.calls
    assert env["RESTIC_REPOSITORY"] == SFTP and env["RESTIC_PASSWORD_FILE"] == str(tmp_path / "offsite.password")
    assert env["RESTIC_FROM_PASSWORD_FILE"] == "/etc/restic.password" and env["AWS_ACCESS_KEY_ID"] == "key"
    assert "key" not in command and "--keep-within" in command and "30d" in command


def test_an_append_only_store_is_not_pruned_from_here(host):
    host.options["offsite"].update(append_only=True)
    offsite.Offsite(host).prune()
    assert host.calls == []


@pytest.fixture
def keys(host, tmp_path, monkeypatch):
    """A repository of restic with passwords: {id: password}, and after how many of its calls the program is killed."""
    found = SimpleNamespace(there={"1": "oldest", "2": "earlier"}, left=None)
    (tmp_path / "previous").write_text(json.dumps({"restic": [], "offsite": ["earlier", "oldest", "never valid"]}))
    host.options["previous_passwords_file"] = str(tmp_path / "previous")

    def run(what, *command, env=None, fine=(0,), **_more):
        host.calls.append((command, env))
        if found.left is not None:
            found.left -= 1
            if found.left < 0:
                raise KeyboardInterrupt
        assert ("RESTIC_PASSWORD" in env) != ("RESTIC_PASSWORD_FILE" in env)
        given = env.get("RESTIC_PASSWORD") or open(env["RESTIC_PASSWORD_FILE"], encoding="utf-8").read()
        opened = [name for name, password in found.there.items() if password == given]
        code, out = (0 if opened else 12), ""
        if opened and "list" in command:
            out = json.dumps([{"id": name, "current": name == opened[0]} for name in found.there])
        elif opened and "add" in command:
            path = next(word for word in command if word.startswith("--new-password-file=")).partition("=")[2]
            found.there[str(len(host.calls) + 9)] = open(path, encoding="utf-8").read()
        elif opened and "remove" in command:
            assert command[-1] != opened[0] and not host.options["offsite"]["append_only"]
            del found.there[command[-1]]
        if code not in fine:
            raise BackupError(what)
        return subprocess.CompletedProcess(command, code, out, "")

    host.run = run
    return found


@pytest.mark.parametrize("left", range(12))
def test_a_changed_password_takes_the_place_of_earlier_ones_wherever_it_is_killed(host, keys, left):
    keys.left = left
    with contextlib.suppress(KeyboardInterrupt):
        offsite.Offsite(host).change_password()
    assert keys.there, "nothing opens it"
    keys.left = None
    offsite.Offsite(host).change_password()
    assert list(keys.there.values()) == ["of the copy"]
    assert offsite.Offsite(host).change_password() is False
    assert not [word for command, _env in host.calls for word in command if word in ("earlier", "oldest")]


def test_a_store_that_takes_additions_only_keeps_earlier_passwords(host, keys):
    host.options["offsite"].update(append_only=True)
    for changed in (True, False):
        assert offsite.Offsite(host).change_password() is changed
    assert sorted(keys.there.values()) == ["earlier", "of the copy", "oldest"]


def test_a_password_that_was_never_valid_changes_nothing(host, keys):
    keys.there = {"1": "another"}
    with pytest.raises(BackupError, match="cannot be read"):
        offsite.Offsite(host).init()
    assert keys.there == {"1": "another"}


def test_the_password_of_a_rest_server_is_in_the_environment_alone(host):
    with open(host.options["offsite"]["environment_file"], "w", encoding="utf-8") as stream:
        json.dump({"RESTIC_REPOSITORY": "rest:https://one:secret@10.0.0.9:8000/one/"}, stream)
    host.options["offsite"].update(repository="rest:https://10.0.0.9:8000/one/", ca_file="/etc/ca.crt")
    outside = offsite.Offsite(host)
    outside.run("checking", "check")
    ((command, env),) = host.calls
    assert env["RESTIC_REPOSITORY"] == "rest:https://one:secret@10.0.0.9:8000/one/" and "secret" not in str(command)
    assert command[command.index("--cacert") + 1] == "/etc/ca.crt" and "secret" not in outside.repository


@pytest.mark.parametrize(
    ("code", "output", "made"),
    [
        (0, "", False),
        (10, "Fatal: repository does not exist", True),
        (
            1,
            "Fatal: unable to open config file: Lstat: file does not exist\nIs there a repository at the following",
            True,
        ),
        (
            1,
            "Fatal: unable to open config file: Stat: dial tcp: connection refused\nIs there a repository at the",
            None,
        ),
        (12, "Fatal: wrong password or no key found", None),
    ],
    ids=["there", "none", "none, reported by an older one", "not reached", "wrong password"],
)
def test_an_unreadable_store_is_not_created_again(host, code, output, made):
    host.responses["cat"] = (code, "", output)
    outside = offsite.Offsite(host)
    if made is None:
        with pytest.raises(BackupError, match="cannot be read"):
            outside.init()
    else:
        assert outside.init() is made
    assert (["init" in command for command, _env in host.calls].count(True) == 1) is bool(made)


def run_of(name="20261126T000000Z"):
    manifest = manifests.begin(name, "one", ["files"], NOW)
    manifests.start(manifest, "files", NOW)
    manifests.verified(manifest, "files", "compared", True, "all", NOW + 1)
    more = {"label": "a" * 64, "location": "/x", "size_bytes": 5, "added_bytes": 5}
    manifests.end(manifest, "files", "succeeded", NOW + 2, **more)
    return manifest


def test_the_off_site_manifest_is_of_a_run_that_has_ended(host, tmp_path):
    """Else it would count as killed where it is fetched."""
    directory = tmp_path / "backups" / "manifests"
    directory.mkdir()
    manifest = run_of()
    manifests.write(str(directory / "20261126T000000Z.json"), manifest)
    staged = offsite.Offsite(host).stage(manifest)
    found = manifests.history(staged)
    assert [one["result"] for one in found.manifests] == ["succeeded"] and found.problems == []
    assert manifest["ended"] is None


def test_existing_files_are_not_replaced(host, tmp_path):
    directory = tmp_path / "backups" / "manifests"
    directory.mkdir()
    manifests.write(str(directory / "20261126T000000Z.json"), run_of())
    with pytest.raises(BackupError, match="backups here already"):
        offsite.Offsite(host).fetch("latest")
    assert host.calls == [] and len(list(directory.iterdir())) == 1


def test_missing_files_are_reported(host):
    host.responses["snapshots"] = (0, "[]", "")
    with pytest.raises(BackupError, match="no off-site backup of run x"):
        offsite.Offsite(host).fetch("x")


def test_fetched_files_have_their_original_paths(host, tmp_path):
    """Also where an earlier attempt was killed after the first of them."""
    outside, directory, state = offsite.Offsite(host), tmp_path / "backups", tmp_path / "state" / "offsite"
    host.responses["snapshots"] = (
        0,
        json.dumps([{"id": "b", "time": "2026-11-26"}, {"id": "a", "time": "2026-11-25"}]),
        "",
    )
    (directory / "logical" / "old").mkdir(parents=True)
    state.mkdir(parents=True)
    (state / "fetching").write_text("b")
    kept, run = host.run, []

    def restore(what, *command, **more):
        if "restore" in command:
            run.append(command[command.index("restore") + 1])
            # Through a link in the snapshot restic writes wherever it can.
            assert [word for word in command if word.startswith("--property=BindPaths=")] == [
                '--property=BindPaths="%s"' % (directory / "fetched")
            ]
            staging = command[-1]
            for path in (directory / "logical" / "new", state / "manifests"):
                (tmp_path / (staging + str(path))).mkdir(parents=True)
        return kept(what, *command, **more)

    host.run = restore
    assert outside.fetch("latest") == ["logical", "manifests", "files and configuration"]
    assert run == ["b"] and [one.name for one in (directory / "logical").iterdir()] == ["new"]
    assert not (directory / "fetched").exists() and not (state / "fetching").exists()


def test_another_run_than_the_fetched_one_is_rejected(host, tmp_path):
    outside, state = offsite.Offsite(host), tmp_path / "state" / "offsite"
    tags = ["database", "run=first"]
    host.responses["snapshots"] = (0, json.dumps([{"id": "a", "time": "2026-11-25", "tags": tags}]), "")
    kept = host.run

    def restore(what, *command, **more):
        if "restore" in command:
            directory = tmp_path / (command[-1] + str(state / "manifests"))
            directory.mkdir(parents=True)
            manifests.write(str(directory / "first.json"), run_of())
        return kept(what, *command, **more)

    host.run = restore
    assert outside.fetch("first") != []
    assert outside.fetch("first") == [] and outside.fetch("latest") == []
    with pytest.raises(BackupError, match="as of run first already"):
        outside.fetch("second")
    # As an earlier version has written it.
    (state / "fetched").write_text("a")
    assert outside.fetch("second") == []
    # What was fetched is lost, too.
    shutil.rmtree(tmp_path / "backups/manifests")
    assert outside.fetch("second") != []


def test_a_fetch_that_was_killed_before_new_backups_were_made_replaces_none(host, tmp_path):
    state, directory = tmp_path / "state" / "offsite", tmp_path / "backups" / "manifests"
    state.mkdir(parents=True)
    directory.mkdir()
    (state / "fetching").write_text("a")
    manifest = run_of()
    manifests.finish(manifest, NOW + 3)
    manifests.write(str(directory / "20261126T000000Z.json"), manifest)
    os.utime(state / "fetching", (NOW - 5, NOW - 5))
    with pytest.raises(BackupError, match="backups here already"):
        offsite.Offsite(host).fetch("latest")


def test_a_snapshot_of_the_future_is_not_the_latest(host, tmp_path):
    listed = [{"id": "past", "time": "2026-11-25T00:00:00Z"}, {"id": "wrong", "time": "2099-01-01T00:00:00Z"}]
    host.responses["snapshots"], fetched = (0, json.dumps(listed), ""), []
    outside = offsite.Offsite(host)
    outside.restore = lambda _what, snapshot, *_more, **_others: fetched.append(snapshot)
    outside.fetch("latest")
    assert fetched[0] == "past"


@pytest.mark.parametrize("kind", ["link", "latest elsewhere", "latest above", "fifo", "setuid"])
def test_only_files_and_directories_are_fetched(host, tmp_path, kind):
    """The copy may be of a backup server that was taken over: roles and units would follow what it has put there."""
    staging, directory = tmp_path / "backups/fetched", tmp_path / "backups"
    place = staging / str(directory / "logical")[1:]
    place.mkdir(parents=True)
    (place / "20261126-023000F").mkdir()
    (place / "latest").symlink_to({"latest elsewhere": "/etc", "latest above": ".."}.get(kind, "20261126-023000F"))
    if kind == "link":
        (place / "archive").symlink_to("/etc")
    elif kind == "fifo":
        os.mkfifo(place / "fifo")
    elif kind == "setuid":
        (place / "shell").touch()
        (place / "shell").chmod(0o4755)
    with pytest.raises(BackupError, match="which no backup has"):
        offsite.Offsite(host).put_in_place(str(staging), str(tmp_path / "state/offsite/manifests"))
    assert not (directory / "logical").exists()


@pytest.mark.parametrize(("code", "pruned"), [("clock", []), ("gap", []), ("wal_missing", [1])])
def test_nothing_is_removed_outside_while_the_clock_is_in_doubt(monkeypatch, code, pruned):
    calls = []
    outside = SimpleNamespace(init=lambda: False, save=lambda _manifest: "snapshot 1", prune=lambda: calls.append(1))
    monkeypatch.setattr(runs, "Offsite", lambda _host: outside)
    part = {"result": "succeeded"}
    run = SimpleNamespace(
        manifest={"parts": {"database": part}, "problems": [{"code": code, "what": "x", "where": ""}]},
        parts=["database"], request={},
        host=SimpleNamespace(options={"offsite": {"repository": SFTP}}, log=lambda _text: None),
    )  # fmt: skip
    runs.Run.copy_offsite(run)
    assert calls == pruned and part["offsite"] == "snapshot 1"
