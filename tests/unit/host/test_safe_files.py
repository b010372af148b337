"""Files below directories that others can write to: no link is followed, no FIFO blocks, no other file is changed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading

import pytest
from ansible.module_utils.shiftmaster.host import safe_files
from ansible.module_utils.shiftmaster.host.safe_files import UnsafePathError


@pytest.fixture
def theirs(tmp_path):
    """A directory that a less privileged user can write to, with a secret next to it."""
    (tmp_path / "secret").write_text("root's")
    path = tmp_path / "theirs"
    path.mkdir()
    path.chmod(0o777)
    return path


def secret(theirs):
    return theirs.parent / "secret"


READ_AND_WRITE = {
    "read": safe_files.read_bytes,
    "append": lambda path, **more: safe_files.append(path, b"x", **more),
    "truncate": lambda path, **more: os.close(safe_files.open_file(path, os.O_WRONLY | os.O_TRUNC, **more)),
}


@pytest.mark.parametrize("use", READ_AND_WRITE.values(), ids=READ_AND_WRITE)
def test_a_link_a_hard_link_and_a_fifo_are_rejected(theirs, use):
    os.symlink(secret(theirs), theirs / "link")
    os.mkfifo(theirs / "fifo")
    (theirs / "directory").symlink_to(theirs.parent)
    for name in ("link", "fifo", "directory/secret"):
        with pytest.raises(UnsafePathError):
            use(str(theirs / name))
    os.link(secret(theirs), theirs / "hard")
    with pytest.raises(UnsafePathError):
        use(str(theirs / "hard"))
    assert secret(theirs).read_text() == "root's"


def test_regular_files_are_read_appended_and_replaced(theirs):
    path = str(theirs / "log")
    safe_files.append(path, b"one\n")
    safe_files.append(path, b"two\n")
    assert safe_files.read_text(path) == "one\ntwo\n"
    assert safe_files.read_tail(path, 4) == b"two\n"
    safe_files.write(path, b"three", 0o604)
    assert safe_files.read_text(path, 3) == "thr"
    assert os.stat(path).st_mode & 0o777 == 0o604
    assert os.listdir(theirs) == ["log"]


def test_replacing_never_writes_through_a_link(theirs):
    os.symlink(secret(theirs), theirs / "file")
    os.symlink(secret(theirs), theirs / ".file.new")
    safe_files.write(str(theirs / "file"), b"mine", 0o600)
    assert secret(theirs).read_text() == "root's"
    assert not (theirs / "file").is_symlink()


def test_a_link_in_a_directory_of_our_own_is_followed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("here")
    (tmp_path / "alias").symlink_to("data")
    (tmp_path / "absolute").symlink_to(tmp_path / "data" / "file")
    assert safe_files.read_text(str(tmp_path / "alias" / "file")) == "here"
    assert safe_files.read_text(str(tmp_path / "absolute")) == "here"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UnsafePathError):
        safe_files.read_text(str(tmp_path / "loop"))


@pytest.mark.parametrize("use", READ_AND_WRITE.values(), ids=READ_AND_WRITE)
def test_below_a_directory_of_hostile_content_no_link_is_followed(tmp_path, use):
    """Files of a build belong to root once the release is complete; its links stay the build's."""
    (tmp_path / "secret").write_text("root's")
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    top = tmp_path / "alias"
    (top / "file").write_text("")
    (top / "link").symlink_to(tmp_path / "secret")
    (top / "directory").symlink_to(tmp_path)
    safe_files.append(str(top / "file"), b"x", beneath=str(top))
    for name in ("link", "directory/secret"):
        with pytest.raises(UnsafePathError):
            use(str(top / name), beneath=str(top))
    with pytest.raises(UnsafePathError):
        safe_files.open_directory(str(top / "directory" / "new"), 0o755, beneath=str(top))
    with pytest.raises(ValueError, match="not below"):
        use(str(tmp_path / "secret"), beneath=str(top))
    assert (tmp_path / "secret").read_text() == "root's" and not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_link_that_others_left_in_what_is_ours_by_now_is_rejected(tmp_path):
    (tmp_path / "secret").write_text("root's")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.lchown(tmp_path / "link", 65534, 65534)
    with pytest.raises(UnsafePathError):
        safe_files.read_text(str(tmp_path / "link"))


@pytest.mark.parametrize("path", ["relative", "/a/../b", ""])
def test_only_plain_absolute_paths_are_accepted(path):
    with pytest.raises(ValueError, match="absolute"):
        safe_files.read_text(path)


def test_missing_files_and_directories_are_named(tmp_path):
    for path in (str(tmp_path / "no"), str(tmp_path / "no" / "file")):
        with pytest.raises(FileNotFoundError) as raised:
            safe_files.read_text(path)
        assert raised.value.filename == path


def test_directories_are_made_and_a_link_in_their_place_is_rejected(theirs):
    os.close(safe_files.open_directory(str(theirs / "a" / "b"), 0o750))
    assert (theirs / "a" / "b").stat().st_mode & 0o777 == 0o750
    (theirs / "c").symlink_to(theirs.parent)
    with pytest.raises(UnsafePathError):
        safe_files.open_directory(str(theirs / "c"), 0o750)


def test_removing_a_tree_stays_inside_it(theirs):
    tree = theirs / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "link").symlink_to(theirs.parent)
    safe_files.remove_tree(str(tree))
    safe_files.remove_tree(str(tree))
    assert not tree.exists() and secret(theirs).exists()
    (theirs / "alias").symlink_to(theirs.parent)
    safe_files.remove_tree(str(theirs / "alias"))
    assert secret(theirs).exists() and os.listdir(theirs) == []
    with pytest.raises(FileNotFoundError):
        safe_files.remove_tree(str(tree), missing_ok=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_owner_is_changed_of_the_tree_alone(theirs):
    tree = theirs / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below" / "file").write_text("")
    (tree / "link").symlink_to(secret(theirs))
    (tree / "directory").symlink_to(theirs.parent)
    safe_files.change_owner(str(tree), 65534, 65534)
    assert {os.lstat(tree / one).st_uid for one in ("", "below", "below/file", "link", "directory")} == {65534}
    assert os.stat(secret(theirs)).st_uid == 0 and os.stat(theirs.parent).st_uid == 0
    os.link(secret(theirs), tree / "hard")
    with pytest.raises(UnsafePathError):
        safe_files.change_owner(str(tree), 65534, 65534)
    assert os.stat(secret(theirs)).st_uid == 0
    # One that belongs to the user whose tree it is, is theirs.
    os.unlink(tree / "hard")
    os.link(tree / "below" / "file", tree / "hard")
    safe_files.change_owner(str(tree), 0, 0, of=65534)
    assert os.stat(tree / "hard").st_uid == 0


def test_a_path_that_is_exchanged_all_the_time_never_leads_outside(theirs):
    (theirs / "real").mkdir()
    (theirs / "real" / "secret").write_text("theirs")
    (theirs / "link").symlink_to(theirs.parent)
    os.rename(theirs / "real", theirs / "here")
    done = threading.Event()

    def swap():
        while not done.is_set():
            os.rename(theirs / "here", theirs / "real")
            os.rename(theirs / "link", theirs / "here")
            os.rename(theirs / "here", theirs / "link")
            os.rename(theirs / "real", theirs / "here")

    thread = threading.Thread(target=swap)
    thread.start()
    found = set()
    try:
        for _ in range(2000):
            try:
                found.add(safe_files.read_text(str(theirs / "here" / "secret")))
            except OSError:
                continue
    finally:
        done.set()
        thread.join()
    assert found == {"theirs"}


def test_directories_are_created_with_their_mode_under_any_umask(tmp_path):
    (tmp_path / "there").mkdir(mode=0o700)
    before = os.umask(0o027)
    try:
        os.close(safe_files.open_directory(str(tmp_path / "a/b"), 0o755))
        os.close(safe_files.open_directory(str(tmp_path / "there"), 0o755))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b", "there")] == [0o755, 0o755, 0o700]


def test_files_of_a_pattern_are_found_by_name_without_what_is_rejected(theirs):
    for name in ("b.log", "a.log", ".hidden.log", "c.txt"):
        (theirs / name).write_text(name)
    (theirs / "link.log").symlink_to(secret(theirs))
    os.mkfifo(theirs / "fifo.log")
    (theirs / "directory.log").mkdir()
    found = safe_files.find(str(theirs / "*.log"))
    assert [(path, status.st_size) for path, status in found] == [
        (str(theirs / name), 5) for name in ("a.log", "b.log")
    ]
    assert [path for path, _status in safe_files.find(str(theirs / ".*.log"))] == [str(theirs / ".hidden.log")]
    assert safe_files.find(str(theirs / "none/*.log")) == []
    assert safe_files.status(str(theirs / "a.log")).st_size == 5


def test_a_replacement_that_fails_leaves_the_file_and_nothing_next_to_it(theirs):
    path = theirs / "file"
    path.write_text("before")

    class Broken(Exception):
        pass

    for error in (Broken("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)), safe_files.replacing(str(path), 0o600) as stream:
            stream.write(b"half")
            raise error
    with pytest.raises(OSError) as caught, safe_files.replacing(str(path), 0o600):
        raise OSError(28, "No space left on device")
    assert (caught.value.errno, caught.value.filename) == (28, str(path))
    assert path.read_text() == "before" and os.listdir(theirs) == ["file"]
    (theirs / "full").mkdir()
    (theirs / "full/x").touch()
    with pytest.raises(OSError):
        safe_files.replace_link(str(theirs / "full"), "target")
    assert sorted(os.listdir(theirs)) == ["file", "full"]


def test_a_replacement_has_its_mode_owner_and_time(theirs):
    path = theirs / "file"
    (theirs / ".file.new").write_text("of a killed run")
    before = os.umask(0o077)
    try:
        with safe_files.replacing(str(path), 0o644, 1234, 1235, mtime_ns=5_000_000_007) as stream:
            stream.write(b"text")
    finally:
        os.umask(before)
    status = path.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns) == (
        0o644,
        1234,
        1235,
        5_000_000_007,
    )
    assert path.read_text() == "text" and os.listdir(theirs) == ["file"]


def test_parts_of_a_file_are_its_first_and_its_last_bytes(theirs):
    path = theirs / "file"
    path.write_bytes(b"0123456789")
    assert safe_files.read_bytes(str(path), 3) == b"012" and safe_files.read_bytes(str(path)) == b"0123456789"
    assert safe_files.read_tail(str(path), 3) == b"789" and safe_files.read_tail(str(path), 30) == b"0123456789"
    os.close(safe_files.open_file(str(path), os.O_WRONLY | os.O_TRUNC))
    assert path.read_bytes() == b""


def test_a_file_is_renamed_in_its_own_directory(theirs):
    (theirs / "a").write_text("a")
    safe_files.rename(str(theirs / "a"), "b")
    assert os.listdir(theirs) == ["b"]
    (theirs / "link").symlink_to(secret(theirs))
    safe_files.rename(str(theirs / "link"), "c")
    assert (theirs / "c").is_symlink() and secret(theirs).exists()


def test_a_walk_follows_no_link(theirs):
    (theirs / "below").mkdir()
    (theirs / "below/file").write_text("x")
    (theirs / "below/link").symlink_to(theirs.parent)
    seen = {}
    for relative, directories, files, descriptor in safe_files.walk(str(theirs)):
        seen[relative] = (sorted(directories), sorted(files), os.path.samestat(os.fstat(descriptor), os.stat(theirs)))
    assert seen == {".": (["below"], [], True), "./below": (["link"], ["file"], False)}


def test_a_sealed_tree_has_plain_modes_and_contains_only_regular_files(theirs):
    tree = theirs / "tree"
    (tree / "below").mkdir(parents=True, mode=0o777)
    for name, mode in (("setuid", 0o4755), ("plain", 0o666), ("program", 0o701)):
        (tree / name).touch()
        os.chmod(tree / name, mode)
    safe_files.change_owner(str(tree), 0, 0, seal=True)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in tree.rglob("*")}
    assert modes == {"below": 0o755, "setuid": 0o755, "plain": 0o644, "program": 0o755}
    os.mkfifo(tree / "below/fifo")
    with pytest.raises(UnsafePathError):
        safe_files.change_owner(str(tree), 0, 0, seal=True)


def test_the_first_directory_that_others_can_change_is_named(public_dir, monkeypatch):
    # But for /tmp, below which the test has its directory.
    monkeypatch.setattr(safe_files, "is_trusted", lambda status: status.st_mode & 0o1002 != 0o002)
    root, ours = str(public_dir), public_dir / "ours"
    ours.mkdir(mode=0o755)
    (public_dir / "theirs").mkdir()
    os.chmod(public_dir / "theirs", 0o777)
    (ours / "relative").symlink_to("../theirs")
    (ours / "absolute").symlink_to(root + "/theirs")
    (ours / "loop").symlink_to("loop")
    (ours / "0").symlink_to("../ours")
    for number in range(1, safe_files._MAX_LINKS + 1):
        (ours / str(number)).symlink_to(str(number - 1))
    found = {
        name: safe_files.untrusted_parent("%s/%s" % (root, name))
        for name in ("theirs/x", "ours/relative/x", "ours/absolute/x", "ours/loop/x", "ours/none/x", "ours/x")
    }
    assert found == {
        "theirs/x": root + "/theirs", "ours/relative/x": root + "/theirs", "ours/absolute/x": root + "/theirs",
        "ours/loop/x": root + "/ours/loop", "ours/none/x": "", "ours/x": "",
    }  # fmt: skip
    most = safe_files._MAX_LINKS - 1
    assert safe_files.untrusted_parent("%s/ours/%d/x" % (root, most)) == ""
    assert safe_files.untrusted_parent("%s/ours/%d/x" % (root, most + 1)) == root + "/ours/0"


def test_temporary_links_of_a_killed_run_are_removed(theirs):
    (theirs / ".link.new").write_text("x")
    safe_files.replace_link(str(theirs / "link"), "target", 1234, 1235)
    assert os.listdir(theirs) == ["link"] and os.readlink(theirs / "link") == "target"
    status = os.lstat(theirs / "link")
    assert (status.st_uid, status.st_gid) == (1234, 1235)


def test_a_tree_that_cannot_be_removed_is_an_error_and_a_log_is_not_world_readable(theirs, monkeypatch):
    umask = os.umask(0o077)
    try:
        safe_files.append(str(theirs / "log"), b"x")
    finally:
        os.umask(umask)
    # Its group counts what is in it, and retries several times a second where it may not.
    assert (theirs / "log").stat().st_mode & 0o777 == 0o640
    failed = subprocess.CompletedProcess([], 1, b"", b"rm: busy")
    monkeypatch.setattr(safe_files.subprocess, "run", lambda *_words, **_more: failed)
    with pytest.raises(OSError, match="busy"):
        safe_files.remove_tree(str(theirs / "log"))


def test_a_tree_is_removed_by_rm_and_nothing_that_is_mounted_in_it(tmp_path, monkeypatch):
    (tmp_path / "-tree").mkdir()
    seen = []

    def run(command, cwd, **more):
        seen.append((command, os.path.realpath(cwd)))
        return subprocess.CompletedProcess(command, len(seen) - 1, b"", b"x" * 600 + b" rm: cannot remove\n")

    monkeypatch.setattr(safe_files.subprocess, "run", run)
    safe_files.remove_tree(str(tmp_path / "-tree"))
    assert seen == [(["rm", "-rf", "--one-file-system", "--", "./-tree"], str(tmp_path))]
    with pytest.raises(OSError, match="rm: cannot remove") as caught:
        safe_files.remove_tree(str(tmp_path / "-tree"))
    assert (caught.value.filename, len(caught.value.strerror)) == (str(tmp_path / "-tree"), 500)
    safe_files.remove_tree(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        safe_files.remove_tree(str(tmp_path / "none"), missing_ok=False)


def test_a_checksum_is_that_of_the_content(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert safe_files.sha256(str(tmp_path / "file")) == hashlib.sha256(b"content").hexdigest()


def test_a_directory_that_is_made_is_reported(tmp_path):
    made = str(tmp_path / "made")
    assert [safe_files.make_directory(made, 0o750) for _ in range(2)] == [True, False]


def test_a_walk_leaves_no_descriptor_open(tmp_path):
    before = os.listdir("/proc/self/fd")
    list(safe_files.walk(str(tmp_path)))
    assert len(os.listdir("/proc/self/fd")) == len(before)
