"""managed_files: files that it installs and leaves; check mode reports the same and does nothing."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import stat

import managed_files as tree
import pytest
from ansible.module_utils.shiftmaster.host import configuration
from ansible.module_utils.shiftmaster.host.configuration import Rejected

ME, MINE = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name


@pytest.fixture
def install(tmp_path):
    def install(check_mode=False, **params):
        complete = {"directories": [], "files": [], "absent": [], "purge": []}
        complete.update(params)
        changed, diffs = tree.apply(complete, check_mode)
        assert len(changed) == len(diffs)
        return [os.path.relpath(path, tmp_path) for path in changed]

    return install


@pytest.fixture
def entry(tmp_path):
    def entry(path, **more):
        return dict({"path": str(tmp_path / path), "owner": ME, "group": MINE, "mode": "0755"}, **more)

    return entry


def mode(path):
    return "%04o" % stat.S_IMODE(os.lstat(path).st_mode)


def test_directories_and_files_are_made_once(install, entry, tmp_path):
    params = {
        "directories": [entry("a"), entry("a/b", mode="0750")],
        "files": [entry("a/b/unit", content="[Unit]\n日本語\n", mode="0640")],
    }
    assert install(**params) == ["a", "a/b", "a/b/unit"]
    assert (tmp_path / "a/b/unit").read_text(encoding="utf-8") == "[Unit]\n日本語\n"
    assert (mode(tmp_path / "a/b"), mode(tmp_path / "a/b/unit")) == ("0750", "0640")
    assert install(**params) == []


def test_a_difference_names_its_file_and_shows_both_texts(entry, tmp_path):
    (tmp_path / "unit").write_text("before\n")
    os.chmod(tmp_path / "unit", 0o755)
    complete = {"directories": [], "files": [entry("unit", content="after\n")], "absent": [], "purge": []}
    _changed, (diff,) = tree.apply(complete, True)
    path = str(tmp_path / "unit")
    assert diff == {"before_header": path, "after_header": path, "before": "before\n", "after": "after\n"}


@pytest.mark.parametrize("given", ["0780", "rwxr-x---", ""])
def test_a_mode_that_is_not_octal_is_refused_before_anything_changes(install, entry, tmp_path, given):
    with pytest.raises(Rejected):
        install(directories=[entry("a")], files=[entry("a/unit", content="x", mode=given)])
    assert not (tmp_path / "a").exists()


def test_check_mode_reports_the_same_and_changes_nothing(install, entry, tmp_path):
    (tmp_path / "old").write_text("before\n")
    (tmp_path / "gone").write_text("")
    params = {
        "directories": [entry("a")],
        "files": [entry("a/x", content="1"), entry("old", content="after\n")],
        "absent": [str(tmp_path / "gone")],
    }
    wanted = ["a", "a/x", "old", "gone"]
    assert install(check_mode=True, **params) == wanted
    assert sorted(os.listdir(tmp_path)) == ["gone", "old"] and (tmp_path / "old").read_text() == "before\n"
    assert install(**params) == wanted


def test_check_mode_passes_a_user_that_is_not_there_yet(install, entry, tmp_path):
    absent = entry("x", content="", owner="nobody-made-me")
    assert install(check_mode=True, files=[absent]) == ["x"]
    with pytest.raises(Rejected, match="x: there is no user nobody-made-me"):
        install(directories=[entry("a")], files=[absent])
    assert os.listdir(tmp_path) == [], "the directory was made before the file's owner was looked up"


def test_a_changed_mode_alone_is_fixed(install, entry, tmp_path):
    params = {"directories": [entry("a")], "files": [entry("x", content="1", mode="0600")]}
    install(**params)
    os.chmod(tmp_path / "a", 0o777)
    os.chmod(tmp_path / "x", 0o644)
    assert install(**params) == ["a", "x"]
    assert (mode(tmp_path / "a"), mode(tmp_path / "x")) == ("0755", "0600")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_changed_owner_alone_is_fixed(install, entry, tmp_path):
    install(files=[entry("x", content="1")])
    os.chown(tmp_path / "x", 65534, 65534)
    assert install(files=[entry("x", content="1")]) == ["x"]
    assert os.lstat(tmp_path / "x").st_uid == os.geteuid()


def test_a_file_is_replaced_completely(install, entry, tmp_path):
    install(files=[entry("x", content="1")])
    with open(tmp_path / "x", encoding="utf-8") as reader:
        install(files=[entry("x", content="2")])
        assert reader.read() == "1", "who had it open saw it change"
    assert os.listdir(tmp_path) == ["x"]


def test_a_link_in_the_files_place_is_replaced_and_its_target_is_not_written(install, entry, tmp_path):
    (tmp_path / "target").write_text("1")
    os.chmod(tmp_path / "target", 0o755)
    (tmp_path / "x").symlink_to("target")
    assert install(files=[entry("x", content="1")]) == ["x"], "the content behind the link is the same"
    (tmp_path / "x").unlink()
    (tmp_path / "x").symlink_to("target")
    assert install(files=[entry("x", content="2")]) == ["x"]
    assert (tmp_path / "target").read_text() == "1" and not (tmp_path / "x").is_symlink()


def test_purge_removes_what_is_not_named(install, entry, tmp_path):
    for name in ("d/keep.conf", "d/stray.conf", "d/sub/stray", "elsewhere"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    params = {"files": [entry("d/keep.conf", content="1", mode="0644")], "purge": [str(tmp_path / "d")]}
    os.chmod(tmp_path / "d/keep.conf", 0o644)
    assert sorted(install(check_mode=True, **params)) == ["d/stray.conf", "d/sub/stray"]
    assert sorted(install(**params)) == ["d/stray.conf", "d/sub/stray"]
    assert (tmp_path / "elsewhere").exists() and os.listdir(tmp_path / "d/sub") == [] and install(**params) == []


def test_paths_that_must_be_absent(install, tmp_path):
    (tmp_path / "x").symlink_to("nowhere")
    absent = [str(tmp_path / "x"), str(tmp_path / "never")]
    assert install(absent=absent) == ["x"] and install(absent=absent) == []


@pytest.mark.parametrize("bad", [{"mode": "rw-r--r--"}, {"path": "relative"}, {"group": "nobody-made-me"}])
def test_bad_input_changes_nothing(install, entry, tmp_path, bad):
    with pytest.raises(Rejected):
        install(directories=[entry("a")], files=[dict(entry("x", content=""), **bad)])
    assert os.listdir(tmp_path) == []


def test_a_directory_that_shall_be_absent_is_removed_after_the_files_are_written(install, entry, tmp_path, monkeypatch):
    (tmp_path / "old/sub").mkdir(parents=True)
    (tmp_path / "old/sub/module.py").write_text("1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "old/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to("elsewhere")
    params = {"files": [entry("new", content="1")], "absent": [str(tmp_path / "old"), str(tmp_path / "link")]}
    assert install(check_mode=True, **params) == ["new", "old", "link"] and (tmp_path / "old/sub/module.py").exists()
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(configuration, "place_all", lambda _states: (_ for _ in ()).throw(OSError("disk full")))
        install(**params)
    assert (tmp_path / "old/sub/module.py").exists()
    assert install(**params) == ["new", "old", "link"] and install(**params) == []
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "new"]


def test_missing_requirements_of_the_host_are_named():
    needs = {
        "packages": ["dpkg", "no-such-package"],
        "users": [
            {"name": "root", "group": "root", "home": "/root", "shell": pwd.getpwnam("root").pw_shell},
            {"name": "root", "group": "root", "home": "/elsewhere", "shell": pwd.getpwnam("root").pw_shell},
            {"name": "nobody-here", "group": "root", "home": "/", "shell": "/bin/sh"},
        ],
        "programs": [],
    }
    assert tree.lacking(needs) == ["no-such-package", "root", "nobody-here"]
    assert tree.lacking({"packages": [], "users": [], "programs": []}) == []


@pytest.mark.parametrize("change", [None, "content", "mode", "owner", "link", "gone"])
def test_a_program_that_is_not_as_wanted_is_lacking(change, tmp_path, monkeypatch):
    program = tmp_path / "program"
    program.write_text("changed" if change == "content" else "x")
    program.chmod(0o775 if change == "mode" else 0o755)
    if change == "link":
        program.rename(tmp_path / "other")
        program.symlink_to("other")
    if change == "gone":
        program.unlink()
    owner = os.geteuid() + (change == "owner")
    status = os.lstat
    monkeypatch.setattr(
        tree.os, "lstat", lambda path: os.stat_result([*status(path)[:4], owner, os.getegid(), *status(path)[6:]])
    )
    needs = {"path": str(program), "sha256": hashlib.sha256(b"x").hexdigest()}
    lacked = tree.lacking({"packages": [], "users": [], "programs": [needs]})
    assert lacked == ([str(program)] if change else [])


def test_nothing_is_installed_where_a_requirement_is_missing(run_module, tmp_path):
    params = {"files": [{"path": str(tmp_path / "a"), "content": "x", "owner": ME, "group": MINE}]}
    lacked = run_module(tree, needs={"packages": ["no-such-package"]}, **params)
    assert (lacked["lacking"], lacked["changed"], os.listdir(tmp_path)) == (["no-such-package"], False, [])
    assert run_module(tree, needs={"packages": []}, **params)["changed"]
    assert os.listdir(tmp_path) == ["a"]
