"""Attacks on root by what a build runs: the source, a dependency's build backend, manage.py, hooks.

The build's user and the application's are real users here, so what they try is what they could do on a host.
"""

from __future__ import annotations

import hashlib
import io
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.release import releases
from ansible.module_utils.shiftmaster.release.layout import Layout
from ansible.module_utils.shiftmaster.release.state import State

BUILD_USER, USER = "games", "nobody"
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("runuser"), reason="only root builds a release as other users"
)


@pytest.fixture
def place():
    """A directory that every user can reach; pytest's own is closed."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


@pytest.fixture
def secret(place):
    """A directory of root with a key that only root can read, and one with files that only root can remove."""
    (place / "root").mkdir()
    (place / "root" / "key").write_text("PRIVATE")
    (place / "root" / "key").chmod(0o600)
    (place / "root" / "data").mkdir()
    for number in range(40):
        (place / "root" / "data" / ("2026010%dT000000Z-x.log" % number)).write_text("kept")
    return place / "root"


def untouched(secret):
    return (
        (secret / "key").read_text() == "PRIVATE"
        and stat.S_IMODE((secret / "key").stat().st_mode) == 0o600
        and (secret / "key").stat().st_uid == 0
        and len(os.listdir(secret / "data")) == 40
        and sorted(os.listdir(secret)) == ["data", "key"]
    )


@pytest.fixture
def build(place):
    """A function that builds a release of an archive with these entries; returns (layout, release's path)."""
    layout = Layout(str(place / "app"))
    for path in (layout.state, layout.releases, layout.union):
        os.makedirs(path)
    (place / "log").mkdir()
    state = State(layout)

    def build(entries=(), hook="", **more):
        archive = place / "source.tar"
        with tarfile.open(archive, "w") as tar:
            for name, target in dict({"manage.py": b""}, **dict(entries)).items():
                info = tarfile.TarInfo(name)
                if isinstance(target, bytes):
                    info.size = len(target)
                    tar.addfile(info, io.BytesIO(target))
                else:
                    info.type, info.linkname = tarfile.SYMTYPE, str(target)
                    tar.addfile(info)
        spec = {
            "revision": "0a1b2c3d" * 5,
            "stamp": "20260106T000000Z",
            "version": "2.0.0",
            "archive": str(archive),
            "environment": {},
            "files": {"site/gunicorn.conf.py": "bind = 1\n"},
            "requirements_file": "",
            "extra_requirements": [],
            "linked_directories": [],
            "python": "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable,
            "pip_environment": {},
            "wheels_dir": "",
            "build_user": BUILD_USER,
            "user": USER,
            "collectstatic": False,
            "check": False,
            "celery_application": "",
            "config_sha256": "c",
            "classify": lambda source: [],
            "hooks": [{"name": "attack", "phase": "after_build", "command": hook}] if hook else [],
            "timeout_seconds": 300,
            "run_id": "r",
            "who": "w",
            "log_dir": str(place / "log"),
        }
        name = releases.Build(layout, state, dict(spec, **more)).run()
        return Path(layout.release(name))

    build.layout = layout
    return build


def left_nothing(build):
    return os.listdir(build.layout.releases) == []


def test_files_of_a_build_belong_to_root_and_none_is_setuid(build, secret):
    path = build(hook="mkdir -m 0777 open; echo x >open/file; chmod 6777 open/file; ln open/file open/other")
    for directory, directories, files in os.walk(path):
        for one in [Path(directory)] + [Path(directory) / name for name in directories + files]:
            status = one.lstat()
            assert (status.st_uid, status.st_gid) == (0, 0), one
            assert stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o7022, one
    assert not (path / "env").stat().st_mode & 0o077


@pytest.mark.parametrize(
    "hook",
    ["mkfifo pipe", "ln {key} hard", "p=.; i=0; while [ $i -lt 400 ]; do mkdir d && cd d; i=$((i+1)); done"],
    ids=["FIFO", "hard link to a file of root", "nested deeper than can be walked"],
)
def test_a_tree_that_cannot_be_sealed_fails_the_build_and_is_removed(build, secret, hook):
    # Where the kernel itself refuses to make the link, the hook fails: the same for root.
    with pytest.raises(releases.BuildError):
        build(hook=hook.format(key=secret / "key"))
    assert left_nothing(build) and untouched(secret)


def test_a_process_that_the_build_left_running_is_ended(build, place):
    path = build(
        hook="setsid sh -c 'exec 3>>late; while :; do echo x >&3; sleep 0.01; done' >/dev/null 2>&1 &"
        " until [ -s late ]; do sleep 0.01; done"
    )
    size = (path / "source" / "late").stat().st_size
    time.sleep(0.2)
    assert (path / "source" / "late").stat().st_size == size
    listed = subprocess.run(["ps", "-o", "stat=", "-u", BUILD_USER], capture_output=True, text=True, check=False)
    assert [state for state in listed.stdout.split() if not state.startswith("Z")] == []


def test_a_build_publishes_no_static_file(build, monkeypatch):
    """Its release has not passed its gate yet."""
    monkeypatch.setattr(
        releases.Build, "_code", lambda self, *_words: Path(self.path, "static", "site.js").write_text("x")
    )
    assert (build(collectstatic=True) / "static" / "site.js").is_file()
    assert os.listdir(build.layout.union) == []


def test_requirements_that_fill_the_memory_fail_the_build(build):
    """pip has read them by then, and the build may change them."""
    with pytest.raises(releases.BuildError, match="requirements.txt"):
        build(
            {"requirements.txt": b""}, hook="truncate -s 8M requirements.txt", requirements_file="requirements.txt",
            pip_environment={"PIP_NO_INDEX": "1"},
        )  # fmt: skip
    assert left_nothing(build)


def test_the_build_cannot_change_what_root_writes(build, secret):
    """The directory of gunicorn.conf.py belonged to the build's user, who could put a link or a FIFO in its place."""
    script = "rm -rf ../site/gunicorn.conf.py; ln -sf {key} ../site/gunicorn.conf.py; mkfifo ../site/x; true"
    path = build(hook=script.format(key=secret / "key"))
    assert (path / "site" / "gunicorn.conf.py").read_text() == "bind = 1\n"
    assert untouched(secret)


def test_a_build_backend_that_prepares_links_for_root_gains_nothing(build, secret, place):
    """pip runs the build backend of a dependency before root writes gunicorn.conf.py."""
    package = place / "package"
    package.mkdir()
    (package / "setup.py").write_text(
        "import os, pathlib\n"
        "release = pathlib.Path(os.environ['RELEASE'])\n"
        "for name in ('site/gunicorn.conf.py', 'site/.gunicorn.conf.py.new', 'env', 'manifest.json.new'):\n"
        "    try:\n"
        "        os.symlink(%r, release / name)\n"
        "    except OSError:\n"
        "        pass\n"
        "raise SystemExit('attacked')\n" % str(secret / "key")
    )
    release = os.path.join(build.layout.releases, "20260106T000000Z-0a1b2c3d0a")
    env = {"RELEASE": release, "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "1"}
    with pytest.raises(releases.BuildError):
        build(extra_requirements=[str(package)], pip_environment=env)
    assert left_nothing(build) and untouched(secret)


@pytest.mark.parametrize(
    "entries, linked",
    [({"a": "{root}"}, ["a/data"]), ({"a": "{root}"}, ["a"]), ({"a/b": "{root}"}, ["a/b/data", "a/b/key"])],
)
def test_a_linked_directory_below_a_link_removes_nothing_elsewhere(build, secret, entries, linked):
    entries = {name: target.format(root=secret) for name, target in entries.items()}
    try:
        path = build(entries, linked_directories=linked)
    except releases.BuildError:
        assert left_nothing(build)
    else:
        assert (path / "source" / linked[0]).readlink() == Path(build.layout.shared) / linked[0]
    assert untouched(secret)


@pytest.mark.parametrize("where", ["file", "directory"])
def test_a_link_among_the_static_files_is_not_published(build, secret, where, place):
    (place / "collected").mkdir()
    static = place / "collected"
    (static / "css").mkdir()
    (static / "css" / "site.css").write_text("a{}")
    (static / "css" / "key").symlink_to(secret / ("key" if where == "file" else ""))
    with pytest.raises(releases.BuildError):
        releases.take_static(str(static))
    assert untouched(secret)


def test_a_static_file_that_the_application_keeps_open_is_copied(build, place):
    static = place / "collected"
    static.mkdir()
    with open(static / "site.js", "w", buffering=1) as kept:
        kept.write("good\n")
        releases.take_static(str(static))
        kept.write("bad\n")
    assert (static / "site.js").read_text() == "good\n"


def test_a_fifo_among_the_static_files_does_not_block(build, place):
    (place / "collected").mkdir()
    os.mkfifo(place / "collected" / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        releases.take_static(str(place / "collected"))


@pytest.mark.parametrize("name", ["builds", "builds/20260106T000000Z-0a1b2c3d0a.log"])
def test_a_log_replaced_by_a_link_is_not_written_and_its_target_is_not_removed(build, secret, place, name):
    """/var/log/shiftmaster belonged to the application, who could put a link in place of what root writes below it."""
    entry = pwd.getpwnam(USER)
    os.chown(place / "log", entry.pw_uid, entry.pw_gid)
    if "/" in name:
        (place / "log" / "builds").mkdir()
        os.chown(place / "log" / "builds", entry.pw_uid, entry.pw_gid)
    (place / "log" / name).symlink_to(secret / ("key" if "/" in name else "data"))
    os.lchown(place / "log" / name, entry.pw_uid, entry.pw_gid)
    try:
        build()
    except OSError:
        assert left_nothing(build)
    assert untouched(secret)


def test_an_environment_shared_by_releases_takes_nothing_from_the_source(build, place):
    """pip imports no module of it and reads no setup.cfg of it, and its bytecode goes nowhere else."""
    wheel = place / "wheels" / "mine-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mine/__init__.py", "x = 1\n")
        archive.writestr("mine-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        archive.writestr("mine-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("mine-1.0.dist-info/RECORD", "")
    site = "lib/python%s/site-packages" % subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    path = build(
        {
            "requirements.txt": f"mine==1.0 --hash=sha256:{digest}\n".encode(),
            "pip/__init__.py": b"raise SystemExit(9)\n",
            "setup.cfg": b"[install]\nprefix=/tmp/elsewhere\n",
            "code/__init__.py": b"x = 2\n",
            "code/__pycache__": f"../../venv/{site}/mine/__pycache__",
        },
        requirements_file="requirements.txt", wheels_dir=str(place / "wheels"),
    )  # fmt: skip
    compiled = sorted(os.listdir(path / "venv" / site / "mine" / "__pycache__"))
    assert (
        len(compiled) == 1 and b"code" not in (path / "venv" / site / "mine" / "__pycache__" / compiled[0]).read_bytes()
    )
    done = subprocess.run(
        [path / "venv/bin/python", "-c", "import mine; print(mine.x)"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


def test_the_requirements_file_may_be_a_link_to_nothing_of_root(build, secret):
    with pytest.raises((releases.BuildError, OSError)) as raised:
        build({"requirements.txt": secret / "key"}, requirements_file="requirements.txt")
    assert "PRIVATE" not in str(raised.value) and left_nothing(build)
