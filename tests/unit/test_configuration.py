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
def test_a_service_gets_nothing_of_roots_by_its_configuration(services, place, service, name, kind):
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
def test_what_a_service_puts_in_the_way_of_a_swap_is_replaced(files, place, name, kind):
    (place.theirs / name).unlink(missing_ok=True)
    attack(place, name, kind)
    in_time(lambda: files.apply(lambda: None, lambda: None))
    assert untouched(place) and state(place)[:3] == ("new", 0o644, 0)
    assert sorted(path.name for path in place.theirs.iterdir()) == ["conf", "more"]


@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_what_a_service_puts_in_the_way_of_a_rollback_is_replaced(files, place, kind):
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


def test_a_rollback_that_fails_says_so_and_an_interrupt_rolls_back_too(files, place):
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


def test_nothing_differs_after_a_swap_and_only_what_differs_is_shown(files, place):
    assert [entry["before"] for entry in files.diff()] == ["old", ""]
    assert "(mode 0640 -> 0644, owner 65534:65534 -> 0:0)" in files.diff()[0]["after_header"]
    files.apply(lambda: None, lambda: None)
    files.changes.clear()
    files.compare()
    assert files.changes == {} and files.diff() == []


# --- copies ---------------------------------------------------------------------------------------------------------


def test_a_copy_holds_the_set_and_lets_the_service_read_what_it_could(place):
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
def test_a_copy_that_would_lead_to_roots_files_is_rejected(place, what):
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


def test_a_redis_that_does_not_take_a_value_gets_its_earlier_files_back(services, redis, monkeypatch):
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
def test_a_diff_shows_nothing_of_roots(services, place, name):
    attack(place, name, "link")
    result = services.redis(check_mode=True)
    assert "link to" in json.dumps(result["diff"]) and SECRET not in json.dumps(result)
    assert services.redis()["changed"] and untouched(place) and (place.theirs / name).stat().st_uid == 0


@pytest.mark.usefixtures("redis")
def test_the_directory_of_its_configuration_becomes_roots(services, place):
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
