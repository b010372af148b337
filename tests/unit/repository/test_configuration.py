"""host.configuration: one set of files, and what roots' modules do where a service owns the directory of its files."""

from __future__ import annotations

import functools
import json
import os
import stat
import subprocess
import types

import postgresql_cluster_config as pg
import pytest
import redis_instance_config as rd
import support
from ansible.module_utils.shiftmaster.host import configuration, safe_files, service_user, units
from ansible.module_utils.shiftmaster.host.configuration import Failed, FileSet, Rejected

SECRET = "root:$y$only-for-root"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
NOBODY, NOGROUP = 65534, 65534
in_time = functools.partial(support.in_time, errors=BaseException)


@pytest.fixture
def place(public_dir, monkeypatch):
    """A directory of root's with a secret, and one that belongs to a service."""
    root, theirs = public_dir / "root", public_dir / "theirs"
    root.mkdir(mode=0o700)
    (root / "secret").write_text(SECRET)
    (root / "secret").chmod(0o600)
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOGROUP)
    (public_dir / "run").mkdir()
    monkeypatch.setattr(configuration, "NOTES", str(public_dir / "run"))
    return types.SimpleNamespace(root=root, theirs=theirs, secret=root / "secret", top=public_dir)


def untouched(place):
    status = place.secret.stat()
    return place.secret.read_text() == SECRET and (status.st_mode & 0o777, status.st_uid, status.st_gid) == (
        0o600,
        0,
        0,
    )


def as_service(script, *arguments):
    """Run a shell as the service's user and return what it prints."""
    done = subprocess.run(["sh", "-c", script, "sh", *arguments], user=NOBODY, group=NOGROUP, capture_output=True)
    return done.stdout.decode()


# --- attacks on the two modules -------------------------------------------------------------------------------------

HBA = "local all all peer\n"


class Services:
    """PostgreSQL and Redis as the modules find them: nothing runs, and the user of both is nobody."""

    def __init__(self, place, monkeypatch, run_module):
        self.place, self.run_module, self.seen = place, run_module, []
        self.confdir = place.theirs / "17/main"
        (self.confdir / "conf.d").mkdir(parents=True)
        (self.confdir / "postgresql.conf").write_text("data_directory = '%s'\n" % place.theirs)
        (self.confdir / "pg_hba.conf").write_text("old\n")
        (place.theirs / "redis.conf").write_text("port 6379\n")
        (place.theirs / "users.acl").write_text("user default on\n")
        for directory, _directories, names in os.walk(place.theirs):
            for path in [directory, *(os.path.join(directory, name) for name in names)]:
                os.chown(path, NOBODY, NOGROUP)
        (place.top / "bin").mkdir()
        (place.top / "bin/postgres").touch()
        nobody = types.SimpleNamespace(pw_uid=NOBODY, pw_gid=NOGROUP, pw_name="nobody")
        ids = {"postgres": nobody, "redis": nobody}
        for module in (pg, rd, configuration, service_user):
            if hasattr(module, "pwd"):
                real = module.pwd.getpwnam
                fake = types.SimpleNamespace(getpwnam=lambda name, real=real: ids.get(name) or real(name))
                monkeypatch.setattr(module, "pwd", fake)
        group = types.SimpleNamespace(getgrnam=lambda name: (name, "x", NOGROUP if name in ids else 0, []))
        monkeypatch.setattr(configuration, "grp", group)
        process = {"user": NOBODY, "group": NOGROUP, "extra_groups": [NOGROUP]}
        monkeypatch.setattr(service_user, "process_of", lambda user, extra: process)
        monkeypatch.setattr(units, "properties", lambda name, *names: dict.fromkeys(names, "enabled"))
        init = pg.Cluster.__init__

        def here(cluster, params):
            init(cluster, params)
            cluster.bindir, cluster.confdir = str(place.top / "bin"), str(self.confdir)
            cluster.config_path, cluster.hba_path = (
                str(self.confdir / name) for name in ("conf.d/shiftmaster.conf", "pg_hba.conf")
            )

        monkeypatch.setattr(pg.Cluster, "__init__", here)
        monkeypatch.setattr(pg.Cluster, "as_postgres", self.as_postgres)
        monkeypatch.setattr(rd, "SERVER", str(place.top / "bin/postgres"))
        monkeypatch.setattr(rd, "Scratch", self.scratch)

    def as_postgres(self, argv, **_more):
        tree = argv[argv.index("-D") + 1]
        self.seen.append(as_service('cd "$1" && grep -r "" . 2>/dev/null; touch "$1/new" && echo writable', tree))
        return subprocess.CompletedProcess(argv, 1, "", "FATAL: stops here")

    def scratch(self, *_arguments):
        raise Rejected("stops here")

    def postgresql(self, check_mode=False):
        return in_time(
            lambda: self.run_module(pg, check_mode=check_mode, version=17, config="work_mem = 1MB\n", hba=HBA)
        )

    def redis(self, check_mode=False):
        files = {"config_file": str(self.place.theirs / "redis.conf"), "acl_file": str(self.place.theirs / "users.acl")}
        password = {"admin_user": "admin", "admin_password": "password"}
        texts = {"config": "port 6380\n", "acl": "user admin on\n"}
        return in_time(
            lambda: self.run_module(rd, check_mode=check_mode, unit="redis.service", **files, **texts, **password)
        )


@pytest.fixture
def services(place, monkeypatch, run_module):
    return Services(place, monkeypatch, run_module)


POSTGRESQL = ["pg_hba.conf", "conf.d/shiftmaster.conf", "postgresql.conf", "conf.d/more.conf", "conf.d"]
REDIS = ["redis.conf", "users.acl"]
MANAGED = [("postgresql", "17/main/" + name) for name in POSTGRESQL] + [("redis", name) for name in REDIS]


def attack(place, name, kind):
    path = place.theirs / name
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(place.root if path.name == "conf.d" else place.secret)
    elif kind == "hard link":
        os.link(place.secret, path)
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["link", "hard link", "FIFO"])
@pytest.mark.parametrize(("service", "name"), MANAGED, ids=[name for _service, name in MANAGED])
def test_a_service_gets_nothing_of_root_by_its_configuration(services, place, service, name, kind):
    if name.endswith("conf.d") and kind == "hard link":
        pytest.skip("directories have no hard links")
    attack(place, name, kind)
    result = getattr(services, service)()
    assert isinstance(result, dict), result
    assert result.get("failed") and SECRET not in json.dumps(result) and untouched(place)
    assert not [text for text in services.seen if SECRET in text or "writable" in text]


# --- swap and rollback ----------------------------------------------------------------------------------------------


@pytest.fixture
def files(place):
    path = str(place.theirs / "conf")
    safe_files.write(path, b"old", 0o640, NOBODY, NOGROUP)
    os.utime(path, (5, 5))
    files = FileSet()
    files.add({"path": path, "content": "new", "owner": "root", "group": "root"})
    files.add({"path": str(place.theirs / "more"), "content": "more", "owner": "root", "group": "root"})
    files.compare()
    return files


def state(place):
    status = (place.theirs / "conf").stat()
    return (place.theirs / "conf").read_text(), status.st_mode & 0o777, status.st_uid, status.st_mtime


@pytest.mark.parametrize("name", ["conf", ".conf.new"])
@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_obstacles_of_a_service_during_a_swap_are_replaced(files, place, name, kind):
    (place.theirs / name).unlink(missing_ok=True)
    attack(place, name, kind)
    in_time(lambda: files.apply(lambda: None, lambda: None))
    assert untouched(place) and state(place)[:3] == ("new", 0o644, 0)
    assert sorted(path.name for path in place.theirs.iterdir()) == ["conf", "more"]


@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_obstacles_of_a_service_during_a_rollback_are_replaced(files, place, kind):
    def load():
        for name in ("conf", ".conf.new", "more"):
            attack(place, name, kind)
        raise Failed("it does not start")

    with pytest.raises(Failed, match="it does not start. The earlier files are back in place and in use"):
        files.apply(load, lambda: None)
    assert untouched(place) and state(place) == ("old", 0o640, NOBODY, 5) and not (place.theirs / "more").exists()


def test_a_directory_that_becomes_a_link_meanwhile_is_not_followed(files, place):
    place.theirs.rename(place.top / "moved")
    place.theirs.symlink_to(place.root)
    os.chown(place.theirs, NOBODY, NOGROUP, follow_symlinks=False)
    with pytest.raises((Failed, OSError)):
        files.apply(lambda: None, lambda: None)
    assert untouched(place) and [path.name for path in place.root.iterdir()] == ["secret"]


def test_a_failed_rollback_is_reported_and_an_interrupt_rolls_back_too(files, place):
    def interrupted():
        assert state(place)[0] == "new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.apply(interrupted, lambda: None)
    assert state(place)[0] == "old"

    def broken():
        raise units.UnitError("systemctl restart failed")

    with pytest.raises(Failed, match="one. The earlier files are back in place, but: systemctl restart failed."):
        files.apply(lambda: exec("raise Failed('one')", {"Failed": Failed}), broken)


def test_nothing_differs_after_a_swap_and_only_differences_are_shown(files, place):
    assert [entry["before"] for entry in files.diff()] == ["old", ""]
    assert "(mode 0640 -> 0644, owner 65534:65534 -> 0:0)" in files.diff()[0]["after_header"]
    assert not os.path.exists(configuration.STAMP)
    files.apply(lambda: None, lambda: None)
    # The diagnosis reports younger files as edited by hand.
    assert os.stat(configuration.STAMP).st_mtime >= os.stat(place.theirs / "conf").st_ctime - 1
    files.changes.clear()
    files.compare()
    assert files.changes == {} and files.diff() == []


# --- copies ---------------------------------------------------------------------------------------------------------


def test_a_copy_contains_the_set_and_the_service_can_read_the_same_files(place):
    tree = place.theirs
    (tree / "open").write_text("open\n")
    (tree / "closed").write_text("closed\n")
    (tree / "closed").chmod(0o600)
    (tree / "sub").mkdir()
    (tree / "sub/inside").symlink_to("../open")
    (tree / "absolute").symlink_to(tree / "open")
    (tree / "outside").symlink_to("/usr/share")
    os.mkfifo(tree / "fifo")
    files = FileSet()
    for name, mode in (("sub/new", "0640"), ("private", "0600")):
        files.add({"path": str(tree / name), "content": "%s/x" % tree, "group": "nogroup", "mode": mode})
    files.want(str(tree / "open"), ("none",))
    reader = {"user": NOBODY, "group": NOGROUP, "extra_groups": [NOGROUP]}
    with files.staged(str(tree), "x.service", reader, lambda path: path.endswith("new")) as (copy, work):
        assert sorted(os.listdir(copy)) == ["absolute", "closed", "outside", "private", "sub"]
        assert os.readlink(copy + "/sub/inside") == "../open" and os.readlink(copy + "/absolute") == copy + "/open"
        script = 'cd "$1"; cat sub/new; cat closed private; touch x sub/x ../x; touch "$2/y" && echo work'
        assert as_service(script, copy, work) == "%s/xwork\n" % copy
    assert not os.path.exists(os.path.dirname(copy))


@pytest.mark.parametrize("what", ["hard link", "link out"])
def test_a_copy_that_would_point_to_files_of_root_is_rejected(place, what):
    files = FileSet()
    if what == "hard link":
        os.link(place.secret, place.theirs / "x")
    else:
        (place.theirs / "sub").symlink_to(place.root)
        files.wanted = {str(place.theirs / "sub/new"): ("file", b"x", 0o640, 0, 0)}
    with pytest.raises(Rejected), files.staged(str(place.theirs), "x.service"):
        pass
    assert untouched(place) and len(os.listdir(place.root)) == 1


def test_large_files_of_a_service_are_not_read_into_memory(place, monkeypatch):
    monkeypatch.setattr(configuration, "FILE_LIMIT_BYTES", 1000)
    monkeypatch.setattr(configuration, "COPY_LIMIT_BYTES", 2500)
    (place.theirs / "large").write_bytes(b"x" * 1001)
    with pytest.raises(Rejected, match="larger than 1000 bytes"):
        configuration.read_state(str(place.theirs / "large"))
    for name in ("large", "b", "c"):
        (place.theirs / name).write_bytes(b"x" * 900)
    with pytest.raises(Rejected, match="more than 2500 bytes"), FileSet().staged(str(place.theirs), "x.service"):
        pass


# --- redis: compare first -------------------------------------------------------------------------------------------


class Redis:
    """An instance that reports its parameters and users, and a scratch server that counts its starts."""

    def __init__(self):
        self.reported, self.lines, self.invocation, self.starts = {"hz": "10"}, ["user admin on"], "one", 0

    def connect(self, *_configs):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def parameters(self):
        return dict(self.reported)

    def users(self):
        return list(self.lines)

    def call(self, *words):
        if words[:2] == ("CONFIG", "SET"):
            self.reported[words[2]] = words[3]
        return self.lines

    def scratch(self, _instance, config, *_more, **_names):
        self.starts += 1
        reported = {"hz": rd.directive(config, "hz") or "10"}
        server = types.SimpleNamespace(parameters=reported, users=["user admin on"], user_lines=["user admin on"])
        return types.SimpleNamespace(__enter__=lambda: server)


@pytest.fixture
def redis(services, monkeypatch):
    redis = Redis()

    class Scratch:
        def __init__(self, *arguments, **names):
            self.server = redis.scratch(*arguments, **names).__enter__()

        def __enter__(self):
            return self.server

        def __exit__(self, *_error):
            pass

    facts = {"ActiveState": "active", "NeedDaemonReload": "no", "UnitFileState": "enabled"}
    monkeypatch.setattr(units, "properties", lambda *_names: dict(facts, InvocationID=redis.invocation))
    monkeypatch.setattr(rd.Instance, "connect", redis.connect)
    monkeypatch.setattr(rd, "Scratch", Scratch)
    return redis


def test_a_scratch_redis_is_started_only_where_something_differs(services, redis):
    assert services.redis()["changed"] and redis.starts == 1
    assert not services.redis()["changed"] and redis.starts == 1
    # A change by hand, and one of the files.
    redis.reported["hz"] = "99"
    result = services.redis(check_mode=True)
    assert result["changed"] and result["set"] == ["hz"] and redis.starts == 2
    assert services.redis()["set"] == ["hz"] and redis.reported["hz"] == "10" and redis.starts == 3
    assert not services.redis()["changed"] and redis.starts == 3
    # Another process, of which nothing is known.
    redis.invocation = "two"
    assert not services.redis()["changed"] and redis.starts == 4
    (services.place.theirs / "redis.conf").write_text("hz 20\n")
    assert services.redis()["changed"] and redis.starts == 5


def test_a_redis_that_rejects_a_value_gets_its_earlier_files_back(services, redis, monkeypatch):
    path = services.place.theirs / "redis.conf"
    before = path.read_text()
    monkeypatch.setattr(redis, "call", lambda *_words: redis.lines)
    redis.reported["hz"] = "11"
    result = services.redis()
    assert result["failed"] and "does not have the new values of hz" in result["msg"]
    assert "back in place" in result["msg"] and path.read_text() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644 and path.stat().st_uid == NOBODY


@pytest.mark.parametrize("name", ["redis.conf", "users.acl"])
@pytest.mark.usefixtures("redis")
def test_a_diff_shows_nothing_of_root(services, place, name):
    attack(place, name, "link")
    result = services.redis(check_mode=True)
    assert "link to" in json.dumps(result["diff"]) and SECRET not in json.dumps(result)
    assert services.redis()["changed"] and untouched(place) and (place.theirs / name).stat().st_uid == 0


@pytest.mark.usefixtures("redis")
def test_the_directory_of_its_configuration_becomes_root_owned(services, place):
    assert place.theirs.stat().st_uid == NOBODY
    services.redis()
    status = place.theirs.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, NOGROUP, 0o750)
    assert not services.redis()["changed"]


def test_a_redis_that_never_ran_is_started(services, redis, monkeypatch):
    """systemctl reset-failed fails for a unit that was never loaded."""
    done = []

    def systemctl(*words, **_more):
        done.append(words[0])
        if words[0] == "reset-failed":
            raise units.UnitError("not loaded")

    monkeypatch.setattr(units, "systemctl", systemctl)
    facts = {"ActiveState": "inactive", "NeedDaemonReload": "no", "UnitFileState": "disabled", "InvocationID": ""}
    monkeypatch.setattr(units, "properties", lambda *_names: facts)
    redis.lines = "loading:0"
    monkeypatch.setattr(redis, "users", lambda: ["user admin on"])
    result = services.redis()
    assert result["restarted"] and result["enabled"] and done == ["reset-failed", "daemon-reload", "restart", "enable"]


def test_a_redis_that_does_not_start_is_reported_with_its_journal(services, redis, monkeypatch):
    monkeypatch.setattr(units, "systemctl", lambda *_words, **_more: None)
    monkeypatch.setattr(units, "active_state", lambda _unit: "failed")
    monkeypatch.setattr(units, "journal", lambda *_arguments: "# Warning: could not bind")
    monkeypatch.setattr(rd.Instance, "connect", lambda *_arguments: None)
    result = services.redis()
    assert result["failed"] and "could not bind" in result["msg"] and "back in place, but: " in result["msg"]
    assert (services.place.theirs / "redis.conf").read_text() == "port 6379\n"


# --- states, attributes and diffs -----------------------------------------------------------------------------------


def test_a_state_is_what_a_path_is(tmp_path):
    (tmp_path / "file").write_bytes(b"\xff")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    info = (tmp_path / "file").stat()
    read = {name: configuration.read_state(str(tmp_path / name)) for name in ("file", "link", "none", "file/x", "")}
    assert read == {
        "file": ("file", b"\xff", 0o640, info.st_uid, info.st_gid, info.st_mtime_ns), "link": ("link", "file"),
        "none": ("none",), "file/x": ("none",), "": ("other",),
    }  # fmt: skip
    assert [configuration.read_text(str(tmp_path / name)) for name in ("file", "link", "none")] == ["�", "", ""]
    os.mkfifo(tmp_path / "fifo")
    os.chown(tmp_path, NOBODY, NOGROUP)
    with pytest.raises(Rejected, match=str(tmp_path / "link")):
        configuration.read_text(str(tmp_path / "link/x"))


def test_states_are_placed_and_a_set_is_made_of_them(tmp_path):
    path = {name: str(tmp_path / name) for name in ("sub/file", "link", "gone", "missing/x", "kept")}
    (tmp_path / "gone").write_text("x")
    configuration.place_all(
        {
            path["sub/file"]: ("file", b"content", 0o604, NOBODY, None, 7_000_000_000),
            path["link"]: ("link", "target"), path["gone"]: ("none",), path["missing/x"]: ("none",),
            path["kept"]: ("file", b"", 0o640, None, NOGROUP),
        }
    )  # fmt: skip
    status = os.stat(path["sub/file"])
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime) == (0o604, NOBODY, 0, 7)
    assert stat.S_IMODE(os.stat(tmp_path / "sub").st_mode) == 0o755
    assert os.readlink(path["link"]) == "target"
    assert (os.stat(path["kept"]).st_uid, os.stat(path["kept"]).st_gid) == (0, NOGROUP)
    assert sorted(os.listdir(tmp_path)) == ["kept", "link", "sub"] and os.listdir(tmp_path / "sub") == ["file"]
    with pytest.raises(NotADirectoryError):
        configuration.place_all({path["kept"] + "/x": ("file", b"", 0o644, None, None)})


def test_an_owner_that_does_not_exist_is_rejected_unless_it_may_be_missing():
    assert configuration.identity("/x", "nobody", "nogroup", False) == (NOBODY, NOGROUP)
    assert configuration.identity("/x", None, None, False) == (None, None)
    assert configuration.identity("/x", "no-such-user", "nogroup", True) == (None, NOGROUP)
    for owner, group, words in (("no-such", "nogroup", "no user no-such"), ("nobody", "no-such", "no group no-such")):
        with pytest.raises(Rejected, match="/x: there is " + words):
            configuration.identity("/x", owner, group, False)


def test_a_secret_is_hidden_in_a_diff():
    shown = [configuration.hide(*one) for one in ((None, "a"), ("a", None), ("a", "a"), ("a", "b"))]
    secret = "(a secret)\n"
    assert shown == [("", secret), (secret, ""), (secret, secret), (secret, "(another secret)\n")]


def test_an_entry_of_a_diff_describes_the_change_of_a_path():
    none, link, old = ("none",), ("link", "/t"), ("file", b"old", 0o640, 1, 2, 9)
    new = ("file", b"new", 0o600, None, 3)
    describe = functools.partial(configuration.describe, "/p")
    assert describe(old, new) == {
        "before": "old", "after": "new", "before_header": "/p",
        "after_header": "/p (mode 0640 -> 0600, owner 1:2 -> 1:3)",
    }  # fmt: skip
    assert describe(old, ("file", b"new", 0o640, None, None))["after_header"] == "/p"
    assert describe(none, link) == {
        "before": "", "after": "link to /t\n", "before_header": "/p (absent)", "after_header": "/p",
    }  # fmt: skip
    assert describe(old, none)["after_header"] == "/p (absent)" and describe(link, new)["before"] == "link to /t\n"
    assert describe(old, new, configuration.hide)["after"] == "(another secret)\n"


@pytest.mark.parametrize("path", ["relative", "/a/../b"])
def test_a_set_names_absolute_paths_once(path):
    files = FileSet()
    with pytest.raises(Rejected, match="absolute"):
        files.want(path, ("none",))
    files.want("/a..b", ("none",))
    with pytest.raises(Rejected, match="twice"):
        files.want("/a..b", ("none",))


def test_attributes_of_a_file_are_those_given():
    files = FileSet()
    files.add({"path": "/a", "content": "é"})
    files.add({"path": "/b", "content": "", "mode": "0600", "owner": "nobody"})
    assert files.wanted["/a"] == ("file", "é".encode(), 0o644, None, None)
    assert files.wanted["/b"] == ("file", b"", 0o600, NOBODY, None)
    with pytest.raises(Rejected, match="/c: 0999 is no mode"):
        files.add({"path": "/c", "content": "", "mode": "0999"})
    FileSet(check_mode=True).add({"path": "/a", "content": "", "owner": "no-such-user"})
    with pytest.raises(Rejected):
        files.add({"path": "/d", "content": "", "owner": "no-such-user"})


def test_directories_are_compared_shown_and_made(tmp_path):
    names = ("new/sub", "mode", "fine", "group")
    for name in names[1:]:
        (tmp_path / name).mkdir(mode=0o750)
    os.chown(tmp_path / "group", 0, NOGROUP)
    files = FileSet()
    for name in names[:3]:
        mode = "0750" if name == "fine" else "0700"
        files.add_directory({"path": str(tmp_path / name), "mode": mode})
    files.add_directory({"path": str(tmp_path / "group"), "mode": "0750", "owner": "nobody"})
    files.compare()
    assert files.directory_changes == {
        str(tmp_path / "new/sub"): None, str(tmp_path / "mode"): (0o750, 0, 0),
        str(tmp_path / "group"): (0o750, 0, NOGROUP),
    }  # fmt: skip
    assert [(one["before"], one["after"]) for one in files.diff()] == [
        ("", "directory, mode 0700, owner None:None\n"),
        ("directory, mode 0750, owner 0:0\n", "directory, mode 0700, owner 0:0\n"),
        ("directory, mode 0750, owner 0:%d\n" % NOGROUP, "directory, mode 0750, owner %d:%d\n" % (NOBODY, NOGROUP)),
    ]
    files.make_directories()
    found = [
        (stat.S_IMODE(one.st_mode), one.st_uid, one.st_gid) for one in (os.stat(tmp_path / name) for name in names)
    ]
    assert found == [(0o700, 0, 0), (0o700, 0, 0), (0o750, 0, 0), (0o750, NOBODY, NOGROUP)]
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o755


def test_differences_of_a_set_are_found_hidden_and_swapped_in_parts(tmp_path):
    for name in ("same", "other", "link"):
        (tmp_path / name).write_text("old")
    files = FileSet()
    for name in ("same", "other", "third"):
        files.add({"path": str(tmp_path / name), "content": "old" if name == "same" else "new"})
    files.want(str(tmp_path / "link"), ("link", "same"))
    files.want(str(tmp_path / "none"), ("none",))
    files.compare()
    assert [os.path.basename(path) for path in files.changes] == ["other", "third", "link"]
    assert [files.before(str(tmp_path / name)) for name in ("same", "other", "third", "none")] == ["old", "old", "", ""]
    files.changes[str(tmp_path / "other")] = ("file", b"\xff", 0o644, 0, 0)
    assert files.before(str(tmp_path / "other")) == "\N{REPLACEMENT CHARACTER}"
    shown = files.diff(hidden=[str(tmp_path / "third")])
    assert [os.path.basename(one["before_header"]) for one in shown] == ["link", "other"]
    files.swap(only=lambda path: path.endswith("other"))
    assert (tmp_path / "other").read_text() == "new" and not (tmp_path / "third").exists()
    files.swap()
    assert (tmp_path / "third").read_text() == "new" and os.readlink(tmp_path / "link") == "same"


def test_unreadable_paths_and_special_files_are_rejected(place):
    files = FileSet()
    files.want(str(place.root), ("none",))
    with pytest.raises(Rejected, match="neither a file nor a link"):
        files.compare()
    os.symlink(place.root, place.theirs / "sub")
    for add in (
        lambda files, path: files.add({"path": path, "content": ""}),
        lambda files, path: files.add_directory({"path": path, "mode": "0755"}),
    ):
        files = FileSet()
        add(files, str(place.theirs / "sub/x"))
        with pytest.raises(Rejected, match=str(place.theirs / "sub/x")):
            files.compare()


# --- one run --------------------------------------------------------------------------------------------------------


def test_a_note_is_kept_until_it_is_removed(place):
    assert configuration.read_note("x") == {}
    configuration.write_note("x", {"a": 1})
    path = place.top / "run/x.json"
    assert configuration.read_note("x") == {"a": 1} and stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("[1]")
    assert configuration.read_note("x") == {}
    path.write_text("{")
    assert configuration.read_note("x") == {}
    for _time in range(2):
        configuration.write_note("x", None)
        assert not path.exists()


class Module:
    def fail_json(self, msg):
        raise AssertionError("failed: " + msg)

    def exit_json(self, **result):
        self.result = result


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Rejected("r"), "n: nothing was changed: r"),
        (Failed("f"), "n: f"),
        (units.UnitError("u"), "n: u"),
        (OSError("o"), "n: o"),
        (subprocess.TimeoutExpired(["nginx", "-t"], 5), "n: nginx did not end within 5 s"),
    ],
)
@pytest.mark.usefixtures("place")
def test_exceptions_of_a_run_are_reported_with_their_module(error, words):
    def work():
        raise error

    with pytest.raises(AssertionError) as caught:
        configuration.run(Module(), "n", work)
    assert str(caught.value) == "failed: " + words


@pytest.mark.usefixtures("place")
def test_one_run_at_a_time_changes_a_host():
    import fcntl

    module = Module()

    def work():
        other = os.open(configuration.NOTES, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(other)
        return {"changed": True}

    configuration.run(module, "n", work)
    assert module.result == {"changed": True}
    with configuration.lock():  # It was released.
        pass


def test_a_failed_swap_restores_the_files_and_reports_the_state_of_the_service(files, place):
    def broken():
        raise OSError("it broke.")

    with pytest.raises(Failed) as caught:
        files.apply(broken, lambda: ", and the service is stopped")
    assert str(caught.value) == "it broke. The earlier files are back in place, and the service is stopped."
    assert files.apply(lambda: "loaded", broken) == "loaded" and state(place)[0] == "new"
    order = []
    files.apply(lambda: order.append(state(place)[0]), broken, first=lambda: order.append("first"))
    assert order == ["first", "new"]
    # Without a change there is nothing to restore.
    files.changes.clear()
    with pytest.raises(OSError, match="it broke"):
        files.apply(broken, lambda: pytest.fail("nothing is restored"))


# --- copies ---------------------------------------------------------------------------------------------------------


def test_paths_below_the_root_point_into_the_copy():
    text = (
        b"include /etc/nginx/x; a=/etc/nginx/y /srv/etc/nginx/z ./etc/nginx/v -/etc/nginx/w /etc/nginx2/x /etc/nginx;"
    )
    assert configuration._rewritten(text, "/etc/nginx", r"/c\1") == text.replace(
        b"include /etc/nginx/x", rb"include /c\1/x"
    ).replace(b"a=/etc/nginx/y", rb"a=/c\1/y")


def test_without_a_reader_a_copy_has_the_modes_of_its_files(place):
    (place.theirs / "x").write_text("x")
    (place.theirs / "x").chmod(0o604)
    files = FileSet()
    files.add({"path": str(place.theirs / "new"), "content": "at %s/x" % place.theirs, "mode": "0600"})
    files.add({"path": str(place.top / "elsewhere"), "content": "x"})
    os.makedirs(place.top / "run/stage-x.service/root/left")
    with files.staged(str(place.theirs), "x.service") as (copy, work):
        assert copy == str(place.top / "run/stage-x.service/root") and os.listdir(work) == []
        modes = {name: stat.S_IMODE(os.stat(os.path.join(copy, name)).st_mode) for name in os.listdir(copy)}
        assert modes == {"x": 0o604, "new": 0o600}
        modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (copy, work, os.path.dirname(copy))]
        assert modes == [0o755, 0o700, 0o700]
        # No path was rewritten.
        assert open(copy + "/new").read() == "at %s/x" % place.theirs
    assert not os.path.exists(os.path.dirname(copy)) and not (place.top / "elsewhere").exists()


def test_without_root_a_copy_contains_only_the_set(place):
    files = FileSet()
    files.add({"path": str(place.top / "new/sub/x"), "content": "x"})
    with files.staged(str(place.top / "new"), "x.service") as (copy, _work):
        assert os.listdir(copy) == ["sub"] and os.listdir(copy + "/sub") == ["x"]


def test_a_reader_gets_the_copy_and_its_own_directory(place):
    reader = {"user": NOBODY, "group": NOGROUP, "extra_groups": [NOGROUP]}
    (place.theirs / "x").write_text("x")
    (place.theirs / "x").chmod(0o600)
    files = FileSet()
    files.add({"path": str(place.theirs / "new"), "content": "x", "owner": "nobody", "mode": "0400"})
    with files.staged(str(place.theirs), "x.service", reader) as (copy, work):
        of = {path: os.stat(path) for path in (copy + "/x", copy + "/new", work, os.path.dirname(copy))}
        assert [(stat.S_IMODE(one.st_mode), one.st_uid, one.st_gid) for one in of.values()] == [
            (0o600, 0, NOGROUP), (0o640, 0, NOGROUP), (0o700, NOBODY, NOGROUP), (0o710, 0, NOGROUP),
        ]  # fmt: skip


def test_a_directory_that_changes_while_it_is_copied_is_rejected(place, monkeypatch):
    def walk(root):
        raise FileNotFoundError(2, "gone", root + "/x")

    monkeypatch.setattr(safe_files, "walk", walk)
    with pytest.raises(Rejected, match="changes while it is read"), FileSet().staged(str(place.theirs), "x.service"):
        pass
    monkeypatch.setattr(safe_files, "walk", lambda root: (_ for _ in ()).throw(PermissionError(13, "denied", root)))
    with pytest.raises(Rejected, match="cannot be copied: denied"), FileSet().staged(str(place.theirs), "x.service"):
        pass
