"""Processes of root read no file of root for a less privileged user, wait for no FIFO and fill no memory."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat
import tracemalloc
import types
from pathlib import Path

import pytest
import shiftmaster_dump
import shiftmaster_migrations
from ansible.module_utils.shiftmaster.diagnosis import application, database, disk, host, logs, network
from ansible.module_utils.shiftmaster.health import checks, engine
from ansible.module_utils.shiftmaster.host import configuration, units
from ansible.module_utils.shiftmaster.logging import canary
from ansible.module_utils.shiftmaster.monitoring import metrics
from ansible.module_utils.shiftmaster.notify import text as notify_text
from ansible.module_utils.shiftmaster.release import cutover, releasecode, releases, slots, state, watch, workers
from ansible.module_utils.shiftmaster.release.layout import Layout
from ansible.module_utils.shiftmaster.reports import findings
from support import in_time

SECRET = "SECRET_KEY=only-for-root"
# Each reader searches for something else: a traceback, a task of Celery, an assignment, a name server.
CONTENT = (
    "ValueError: %s\n" % SECRET
    + "%s\n" % SECRET
    + '{"status": 500, "secret": "%s"}\n' % SECRET
    + "nameserver 192.0.2.66\nport = 6666\n"
)
TRACES = (SECRET, "only-for-root", "192.0.2.66", "6666")


@pytest.fixture
def place(tmp_path):
    """A directory that the application can write to, and files of root's that it may not read."""
    root, theirs = tmp_path / "root", tmp_path / "theirs"
    root.mkdir(mode=0o700)
    theirs.mkdir()
    theirs.chmod(0o777)
    return types.SimpleNamespace(root=root, theirs=theirs, tmp=tmp_path)


def symbolic_link(place, name):
    (place.root / name).write_text(CONTENT)
    (place.theirs / name).symlink_to(place.root / name)
    return str(place.theirs / name)


def hard_link(place, name):
    (place.root / name).write_text(CONTENT)
    os.link(place.root / name, place.theirs / name)
    return str(place.theirs / name)


def linked_directory(place, name):
    (place.root / name).write_text(CONTENT)
    (place.theirs / "logs").symlink_to(place.root)
    return str(place.theirs / "logs" / name)


def fifo(place, name):
    os.mkfifo(place.theirs / name)
    return str(place.theirs / name)


ATTACKS = [symbolic_link, hard_link, linked_directory, fifo]


def evidence(path, tmp, monkeypatch):
    monkeypatch.setattr(units, "journal", lambda *_arguments: "")
    made = cutover.Cutover(Layout(str(tmp / "app")), None, {"logs": [path, path[:-1] + "*"]})
    # As it is: what was there before the start is evidence of nothing.
    return made.evidence("blue")


def setting(tmp, **more):
    return types.SimpleNamespace(
        app_root=str(tmp), path=str, required_names=(), expected_values={}, proc="/proc", **more
    )


READERS = {
    "the deploy's evidence": lambda path, tmp, patch: evidence(path, tmp, patch),
    "the watch": lambda path, tmp, patch: list(watch.AccessLog(path).requests()),
    "the watch after a rotation": lambda path, tmp, patch: rotated(path),
    "the end of a log": lambda path, tmp, patch: logs.tail(path),
    "complaints of a log": lambda path, tmp, patch: logs.complaints(path, 0),
    "the newest log": lambda path, tmp, patch: logs.newest(os.path.dirname(path) + "/*"),
    "the access log": lambda path, tmp, patch: logs.requests(types.SimpleNamespace(access_log=path, hours=1e6)),
    "the worker's log": lambda path, tmp, patch: application.worker_log(path),
    "the environment": lambda path, tmp, patch: application.environment(setting(tmp, environment_file=path)),
    "health's environment": lambda path, tmp, patch: context_environment(path),
    "any file": lambda path, tmp, patch: host.read_file(path),
    "nginx's configuration": lambda path, tmp, patch: network.nginx_text(os.path.dirname(path)),
}


def rotated(path):
    log = watch.AccessLog(path + ".missing")
    log.path = path
    return list(log.requests())


def context_environment(path):
    try:
        return checks.Context(path).environment()
    except checks.ProbeError as error:
        return error


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_no_reader_follows_a_link_or_blocks(place, monkeypatch, reader, attack):
    path = attack(place, "nginx.conf")
    response = str(in_time(lambda: reader(path, place.tmp, monkeypatch)))
    assert not [trace for trace in TRACES if trace in response]


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_configuration_of_a_cluster_is_not_followed(place, attack):
    # PostgreSQL owns the directories of its configuration on Debian.
    directory = place.theirs / "17" / "main"
    directory.mkdir(parents=True)
    directory.chmod(0o777)
    attack(types.SimpleNamespace(root=place.root, theirs=directory), "postgresql.conf")
    found = in_time(lambda: database.clusters(types.SimpleNamespace(path=redirect(place), proc="/proc")))
    assert found["clusters"][0]["port"] == 5432


def redirect(place):
    return lambda path: path.replace("/etc/postgresql", str(place.theirs))


def test_a_log_that_the_application_writes_is_still_evidence(place, monkeypatch):
    (place.theirs / "error.log").write_text("ValueError: of the application\n")
    assert "cause: ValueError: of the application" in evidence(str(place.theirs / "error.log"), place.tmp, monkeypatch)


def test_a_log_that_an_administrator_links_elsewhere_is_still_read(place):
    (place.root / "error.log").write_text("x\n")
    trusted = place.tmp / "trusted"
    trusted.mkdir(mode=0o755)
    (trusted / "error.log").symlink_to(place.root / "error.log")
    assert logs.tail(str(trusted / "error.log")) == "x\n"


# -------------------------------------------------------------------------------------------------------------- writers


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_canary_appends_to_nothing_of_root(place, attack):
    path = attack(place, "canary.log")
    assert isinstance(in_time(lambda: canary.write(path, "line\n")), OSError)
    assert attack is fifo or (place.root / "canary.log").read_text() == CONTENT


@pytest.mark.parametrize("attack", ATTACKS)
def test_metrics_and_the_queue_of_a_cutover_overwrite_nothing_of_root(place, monkeypatch, attack):
    monkeypatch.setattr(workers, "RUN", str(place.theirs))
    made = cutover.Cutover(Layout(str(place.tmp / "app")), None, {"logs": []})
    for name, write in (
        ("worker-blue.env", lambda path: made._hold_worker("blue")),
        ("shiftmaster.prom", lambda path: metrics.write(path, {"up": "Up"}, {("up", ""): 1})),
    ):
        path = attack(place, name)
        in_time(lambda write=write, path=path: write(path))
        assert attack is fifo or (place.root / name).read_text() == CONTENT
        if attack is linked_directory:
            os.unlink(place.theirs / "logs")


def test_metrics_overwrite_nothing_through_the_name_of_their_temporary_file(place):
    (place.root / "victim").write_text(CONTENT)
    for name in (".x.prom.new", "x.prom.%d.new" % os.getpid()):
        (place.theirs / name).symlink_to(place.root / "victim")
    metrics.write(str(place.theirs / "x.prom"), {"up": "Up"}, {("up", ""): 1})
    assert (place.root / "victim").read_text() == CONTENT
    assert stat.S_IMODE(os.stat(place.theirs / "x.prom").st_mode) == 0o644


# ----------------------------------------------------------------------------------------------------- size, and damage


def test_a_log_of_ten_gigabytes_is_read_from_its_end(place):
    path = place.theirs / "error.log"
    with open(path, "wb") as stream:
        stream.truncate(10 << 30)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\nValueError: the last\n")
    assert logs.complaints(str(path), 0)["problems"][0]["exception"] == "ValueError: the last"


def test_an_access_log_that_grows_without_a_line_fills_no_memory(place):
    path = place.theirs / "access.log"
    path.write_bytes(b"")
    log = watch.AccessLog(str(path))
    with open(path, "wb") as stream:
        stream.truncate(256 << 20)
        stream.seek(0, os.SEEK_END)
        stream.write(b'\n{"time": 1, "status": 200}\n')
    tracemalloc.start()
    try:
        assert [request.status for request in log.requests()] == [200]
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_fills_no_memory_and_a_damaged_one_ends_nothing(place):
    path = place.theirs / "error.log.2.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _count in range(64):
            stream.write(bytes(1 << 20))
    assert len(logs.end_of(str(path), 1 << 20)[0]) == 1 << 20
    content = bytearray(path.read_bytes())
    content[20:200] = b"\xff" * 180
    path.write_bytes(content)
    assert "error" in logs.complaints(str(path), 0)
    path.write_bytes(bytes(content[:15]))
    assert "error" in logs.complaints(str(path), 0)


# ---------------------------------------------------------------------------------------------------------- directories


def large(place):
    options = types.SimpleNamespace(large_dirs=[str(place.theirs)], proc="/proc")
    return disk.largest(options)


def test_the_search_for_the_largest_files_skips_a_directory_that_became_a_link(place, monkeypatch):
    (place.root / "secret-name").write_bytes(b"x" * 100_000)
    victim = place.theirs / "below"
    victim.mkdir()
    (victim / "own").write_bytes(b"x" * 5000)
    scandir = os.scandir

    def swap(where):
        """The application replaces the directory after it was seen and before it is read."""
        entries = list(scandir(where))
        if any(entry.name == "below" for entry in entries) and not victim.is_symlink():
            [entry.stat(follow_symlinks=False) for entry in entries]
            shutil.rmtree(victim)
            victim.symlink_to(place.root)
        return Entries(entries)

    monkeypatch.setattr(os, "scandir", swap)
    assert "secret-name" not in str(large(place))


class Entries(list):
    def __enter__(self):
        return iter(self)

    def __exit__(self, *_exception):
        pass


def test_endlessly_nested_directories_are_skipped(place):
    here = os.open(place.theirs, os.O_RDONLY)
    for _level in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert large(place)["complete"] is False
    remove_deep(place.theirs)


def remove_deep(top):
    """Each level is moved to the top: pytest removes trees by recursion."""
    count = 0
    while (top / "d").is_dir():
        os.rename(top / "d", top / ("level-%d" % count))
        if (top / ("level-%d" % count) / "d").is_dir():
            os.rename(top / ("level-%d" % count) / "d", top / "d")
        count += 1


# ------------------------------------------------------------------------------------- programs of a release, and texts


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_diagnosis_runs_the_interpreter_of_a_release_in_the_sandbox_of_its_code(place):
    for path in (place.tmp, place.theirs):
        path.chmod(0o777)
    program = place.theirs / "python"
    program.write_text("#!/bin/sh\nid -un >%s/whoami; setsid sleep 61.25 >&- 2>&- & echo 3.13.5\n" % place.theirs)
    program.chmod(0o755)
    parents = [parent for parent in program.parents if not os.stat(parent).st_mode & 0o001]
    modes = {parent: os.stat(parent).st_mode for parent in parents}
    for parent in parents:
        parent.chmod(modes[parent] | 0o001)
    try:
        found = application._interpreter(str(program), "nobody")
        program.chmod(0o600)
        unreadable = application._interpreter(str(program), "nobody")
    finally:
        for parent in parents:
            parent.chmod(modes[parent])
    assert found["works"] and found["version"] == "3.13.5"
    # rights() reports it.
    assert unreadable["works"] is None
    assert (place.theirs / "whoami").read_text().strip() == "nobody"
    # With the unit everything ends that the interpreter has started.
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"61.25" in read_or_nothing(path)]


def read_or_nothing(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_control_characters_in_a_log_are_not_printed(place, monkeypatch):
    path = place.theirs / "error.log"
    path.write_text("ValueError: \x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\n")
    message = evidence(str(path), place.tmp, monkeypatch)
    assert "ValueError: ?]0;owned??[2J?31m?gnp.exe" in message
    assert str(slots.CutoverError("line\n\ttab \x1b[2J\rover")) == "line\n\ttab ?[2J?over"


ESCAPE = "x\x1b]52;c;b3duZWQ=\x07\x9b2J\u202ey"


def test_output_of_a_compromised_host_reaches_no_terminal_mail_or_chat_unescaped():
    found = [
        findings.host_of("app1", [], {"evidence": {"parts": {"logs": {"files": {ESCAPE: [ESCAPE]}}}}}),
        findings.host_of("app1", [], {"msg": ESCAPE}),
        engine.report_of("app1", {"report": {"checks": [{"message": ESCAPE}], "host": "another"}}),
        engine.report_of("app1", {"msg": ESCAPE}),
        notify_text.email("deploy", "failed", "production", {"version": ESCAPE, "reason": ESCAPE}, "both", []),
        notify_text.slack("deploy", "failed", "production", {"version": ESCAPE, "reason": ESCAPE}, "both", []),
        notify_text.pagerduty(
            "deploy", "failed", "production", {"version": ESCAPE, "hosts": [ESCAPE]}, "en", [], "now"
        ),
    ]
    for one in found:
        assert not set("".join(texts_of(one))) & set("\x1b\x07\x9b\u202e"), one
    assert found[2]["host"] == "app1" and "not valid" in found[2]["problem"]


def test_output_and_names_of_a_release_reach_no_terminal_unescaped(monkeypatch, run_module, tmp_path):
    done = releasecode.Completed(0, ESCAPE, "")
    monkeypatch.setattr(releasecode.ReleaseCode, "shell", lambda *_arguments, **_options: done)
    hook = {"name": "warm", "phase": "after_build", "command": "true"}
    (output,) = releases.run_hooks(str(tmp_path), [hook], "after_build", "nobody")
    migration = {"app": ESCAPE, "name": ESCAPE, "describe": [ESCAPE]}
    result = {"changed": False, "pending": [migration], "reason": ESCAPE, "warnings": [ESCAPE]}
    monkeypatch.setattr(shiftmaster_migrations.Runner, "run", lambda _runner: result)
    response = run_module(shiftmaster_migrations, mode="plan", release=str(tmp_path))
    for one in (output, response, str(shiftmaster_dump.DumpError("could not lock " + ESCAPE))):
        assert not set("".join(texts_of(one))) & set("\x1b\x07\x9b\u202e"), one


def texts_of(value):
    """Every text in a tree, keys too."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return (
        [value]
        if isinstance(value, str)
        else [text for one in value for text in texts_of(one)]
        if isinstance(value, (list, tuple))
        else []
    )


def test_the_audit_log_contains_no_control_characters(tmp_path):
    layout = Layout(str(tmp_path))
    os.makedirs(layout.state)
    state.audit(layout, "gate_failed", reason=ESCAPE)
    text = (tmp_path / "shared/state/audit.jsonl").read_text()
    assert not set(text) & set("\x1b\x07\x9b\u202e") and json.loads(text)["event"] == "gate_failed"


# ------------------------------------------------------------------------------------------- configuration of a service


@pytest.fixture
def cluster(place):
    """/etc/postgresql belongs to postgres on Debian: here 17 was replaced by a link to a directory of root's."""
    (place.root / "main").mkdir()
    (place.root / "main" / "postgresql.conf").write_text("root's\n")
    (place.theirs / "17").symlink_to(place.root)
    return place.theirs / "17" / "main" / "postgresql.conf"


def test_configuration_is_neither_read_nor_written_where_a_service_put_a_link(place, cluster):
    with pytest.raises(OSError):
        configuration.read_state(str(cluster))
    for wanted in (("file", b"x", 0o640, None, None), ("link", "x"), ("none",)):
        with pytest.raises(OSError):
            configuration.place_all({str(cluster): wanted})
    assert [path.name for path in (place.root / "main").iterdir()] == ["postgresql.conf"]
    assert (place.root / "main" / "postgresql.conf").read_text() == "root's\n"


def test_a_link_in_place_of_a_file_of_a_service_is_replaced(place):
    path = symbolic_link(place, "redis.conf")
    assert configuration.read_state(path) == ("link", str(place.root / "redis.conf"))
    configuration.place_all({path: ("file", b"new", 0o640, None, None)})
    assert configuration.read_state(path)[:3] == ("file", b"new", 0o640)
    assert (place.root / "redis.conf").read_text() == CONTENT
    configuration.place_all({path: ("none",), str(place.theirs / "gone" / "x"): ("none",)})
    assert configuration.read_state(path) == ("none",)


def test_a_fifo_in_place_of_a_file_of_a_service_is_not_waited_for(place):
    assert in_time(lambda: configuration.read_state(fifo(place, "redis.conf"))) == ("other",)


def test_no_directory_of_root_is_changed_to_belong_to_a_service(place):
    (place.theirs / "conf.d").symlink_to(place.root)
    uid = os.stat(place.root).st_uid
    with pytest.raises(OSError):
        files = configuration.FileSet()
        files.directories[str(place.theirs / "conf.d")] = (0o777, 12345, 12345)
        files.directory_changes[str(place.theirs / "conf.d")] = None
        files.make_directories()
    assert os.stat(place.root).st_uid == uid and stat.S_IMODE(os.stat(place.root).st_mode) == 0o700
