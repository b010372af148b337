"""Releases: complete or absent, found and pruned with care; code that is run with a release's environment."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import os
import pwd
import re
import resource
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import types
import zipfile
from pathlib import Path

import pytest
import shiftmaster_release
from ansible.module_utils.shiftmaster.host import probe, units
from ansible.module_utils.shiftmaster.release import celery_driver, django_driver, releasecode, releases
from ansible.module_utils.shiftmaster.release import state as state_of
from ansible.module_utils.shiftmaster.release.layout import Layout
from ansible.module_utils.shiftmaster.release.state import State

ONE, TWO, THREE, FOUR, FIVE = ("2026010%dT000000Z-%s" % (day, str(day) * 10) for day in (1, 2, 3, 4, 5))


@contextlib.contextmanager
def limited(size):
    """Let this process write no file that is larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("runuser"),
    reason="a release is unpacked as another user, which only root can do",
)


@pytest.fixture
def layout(tmp_path):
    made = Layout(str(tmp_path / "app"))
    os.makedirs(made.state)
    os.makedirs(made.releases)
    os.makedirs(made.union)
    return made


@pytest.fixture
def state(layout):
    return State(layout)


@pytest.fixture
def add(layout, state):
    """Put a finished release in place, deployed after the one before."""
    served = []

    def add(name, status="live", migrations=(), **manifest):
        os.makedirs(layout.release(name))
        fields = {
            "version": "",
            "revision": name[-10:] * 4,
            "config_sha256": "c",
            "migrations": [dict(zip(("app", "name"), one.split("."))) for one in migrations],
        }
        with open(os.path.join(layout.release(name), "manifest.json"), "w", encoding="utf-8") as stream:
            json.dump(dict(fields, **manifest), stream)
        if status in ("live", "bad"):
            state.set_status(name, "live", previous=served[-1] if served else None)
            served.append(name)
        if status:
            state.set_status(name, status)

    return add


def serve(layout, name, slot="blue"):
    layout.point_slot(slot, name)
    layout.activate(slot)


# ------------------------------------------------------------------------------------------- whether anything is to do

WEB, WORKER, BEAT = ("shiftmaster-%s@blue.service" % kind for kind in ("web", "worker", "beat"))
CUTOVER = dict.fromkeys(("kind", "phase", "run_id"), "x") | {
    "from": ONE,
    "from_slot": "blue",
    "to": TWO,
    "to_slot": "green",
}
OLD_WORKER = "shiftmaster-worker@green.service"


@pytest.fixture
def pending_changes(layout, state, add, monkeypatch, run_module):
    """A function that shows why a run has something to do, on a host where by itself it has not."""
    digest = releases.config_hash(dict(default_build(), hooks=[], celery_application="shiftmaster"))
    add(ONE, version="2.0.0", revision="1" * 40, config_sha256=digest)
    serve(layout, ONE)
    running = {"shiftmaster.service", WEB, WORKER, BEAT}
    complete = {"ActiveState": "active", "UnitFileState": "enabled"}
    responses, body = [200], {"text": ""}
    monkeypatch.setattr(shiftmaster_release, "properties", lambda name, *_names: dict(complete))
    monkeypatch.setattr(
        units, "active_states", lambda names: {name: "active" if name in running else "inactive" for name in names}
    )

    def response(*_args, **_more):
        return probe.HttpResult(responses[-1], 0.0, body["text"], None)

    monkeypatch.setattr(probe, "http_get", response)

    def query(**parameters):
        requested = {"root": layout.root, "revision": "1" * 40, "celery_application": "shiftmaster", "keep": 1}
        return run_module(shiftmaster_release, **dict(requested, **parameters))

    def pending_changes(**parameters):
        return query(**parameters)["pending_changes"]

    pending_changes.running, pending_changes.complete, pending_changes.responses = running, complete, responses
    pending_changes.query, pending_changes.body = query, body
    return pending_changes


def default_build():
    options = shiftmaster_release.argument_spec()["build"]["options"]
    return {name: option["default"] for name, option in options.items()}


def test_a_host_with_the_requested_live_release_has_nothing_to_do(pending_changes):
    assert pending_changes() == []


@pytest.mark.parametrize(
    "body, migrated",
    [
        ('{"checks": {"migrations": {"status": "healthy"}}}', True),
        ('{"checks": {"migrations": {"status": "healthy", "pending": ["roster.0002_note"]}}}', False),
        ('{"checks": {"migrations": {"status": "unhealthy"}}}', False),
        ('{"checks": {"database": {"status": "healthy"}}}', False),
        ('{"checks": {"migrations": "healthy"}}', False),
        ('{"checks": ["migrations"]}', False),
        ('{"checks": {"migrations": {"status": "healthy", "pending": 0}}}', False),
        ("[" * 60000, False),
        ("OK", False),
        ("", False),
    ],
)
def test_the_health_response_reports_whether_a_migration_is_pending(pending_changes, body, migrated):
    pending_changes.body["text"] = body
    assert pending_changes.query()["migrated"] is migrated


def test_a_query_without_a_revision_evaluates_nothing(layout, pending_changes, run_module):
    assert "pending_changes" not in run_module(shiftmaster_release, root=layout.root)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda host, **_: host.running.discard(WORKER), "%s does not run" % WORKER),
        (lambda host, **_: host.running.add(OLD_WORKER), "%s runs although its slot is not live" % OLD_WORKER),
        (lambda host, **_: host.complete.update(ActiveState="inactive"), "shiftmaster.service is inactive, enabled"),
        (lambda host, **_: host.complete.update(UnitFileState="disabled"), "shiftmaster.service is active, disabled"),
        (lambda host, **_: host.responses.append(503), "its health is bad"),
        (lambda add, **_: add(TWO, "building"), "%s is unfinished" % TWO),
        (lambda layout, **_: os.makedirs(layout.release(TWO) + ".removing"), "%s.removing is unfinished" % TWO),
        (lambda add, **_: (add(TWO, "ready"), add(THREE, "ready")), "a release may go"),
        (lambda state, **_: state.set_status(ONE, "ready"), "release %s is ready" % ONE),
        (lambda state, **_: state.begin(**CUTOVER), "a cutover is under way"),
    ],
)
def test_the_work_of_a_run_is_reported(pending_changes, layout, state, add, change, message):
    change(host=pending_changes, layout=layout, state=state, add=add)
    assert message in pending_changes()


@pytest.mark.parametrize(
    "change, unfinished, enabled",
    [
        (lambda **_: None, False, True),
        (lambda host, **_: host.running.discard(WORKER), True, True),
        (lambda host, **_: host.running.add(OLD_WORKER), True, True),
        (lambda host, **_: host.complete.update(ActiveState="inactive"), False, False),
        (lambda host, **_: host.complete.update(UnitFileState="disabled"), False, False),
        (lambda add, **_: add(TWO, "building"), True, True),
        (lambda layout, **_: os.makedirs(layout.release(TWO) + ".removing"), True, True),
        (lambda state, **_: state.begin(**CUTOVER), True, True),
        (lambda layout, **_: os.unlink(layout.active), True, False),
    ],
)
def test_a_query_reports_what_a_run_can_skip(
    pending_changes, run_module, layout, state, add, change, unfinished, enabled
):
    """Without a revision, too: a rollback needs none."""
    change(host=pending_changes, layout=layout, state=state, add=add)
    result = run_module(shiftmaster_release, root=layout.root, celery_application="shiftmaster")
    assert (result["unfinished"], result["enabled"]) == (unfinished, enabled)


def test_a_query_finds_what_present_would_find(pending_changes, layout, state, add, run_module):
    def found(revision):
        requested = {"revision": revision * 40, "celery_application": "shiftmaster"}
        return run_module(shiftmaster_release, root=layout.root, **requested)["found"]

    config = releases.manifest(layout, ONE)["config_sha256"]
    add(TWO, "ready", revision="2" * 40, config_sha256=config)
    add(THREE, "bad", revision="3" * 40, config_sha256=config)
    assert [found("1"), found("2"), found("3"), found("4")] == [ONE, TWO, "", ""]


@pytest.mark.parametrize("keep, prunable", [(1, True), (5, False)])
def test_the_state_finished_reports_whether_a_release_can_be_pruned(
    layout, state, add, run_module, keep, prunable, monkeypatch
):
    for name in (ONE, TWO, THREE):
        add(name)
    serve(layout, THREE)
    monkeypatch.setattr(shiftmaster_release.Operation, "ensure_running", lambda *_: [])
    result = run_module(shiftmaster_release, root=layout.root, state="finished", keep=keep)
    assert result["prunable"] is prunable
    assert bool(run_module(shiftmaster_release, root=layout.root, state="pruned", keep=keep)["removed"]) is prunable


@pytest.mark.parametrize(
    "requested", [{"revision": "2" * 40}, {"build": {"salt": "other"}}, {"celery_application": "x"}]
)
def test_another_revision_or_configuration_is_another_release(pending_changes, requested):
    assert "another release was requested" in pending_changes(**requested)


def test_a_host_with_a_running_operation_is_not_up_to_date(layout, pending_changes):
    with state_of.exclusive(layout):
        assert [message for message in pending_changes() if "another operation is still at work" in message]


@pytest.mark.parametrize(
    "message, hint", [("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed", True), ("no package", False)]
)
def test_an_authority_that_is_not_trusted_is_hinted_at(layout, state, tmp_path, message, hint):
    spec = {"version": "2.0.0", "stamp": "", "revision": "1" * 40, "log_dir": str(tmp_path)}
    build = releases.Build(layout, state, spec)
    build.log = str(tmp_path / "log")
    with pytest.raises(releases.BuildError) as caught:
        build._check("pip", releasecode.Completed(1, "", message))
    assert message in str(caught.value) and ("base_extra_ca_certificates" in str(caught.value)) is hint


def test_repeated_attempts_of_pip_are_one_line_of_the_message(layout, state, tmp_path):
    spec = {"version": "2.0.0", "stamp": "", "revision": "1" * 40, "log_dir": str(tmp_path)}
    build = releases.Build(layout, state, spec)
    build.log = str(tmp_path / "log")
    retry = "WARNING: Retrying (Retry(total=%d, connect=None)) after connection broken by 'SSLError(1)': /simple/x/\n"
    output = "Looking in indexes\n%sERROR: No matching distribution found for x\n" % "".join(
        retry % left for left in (4, 3, 2, 1, 0)
    )
    with pytest.raises(releases.BuildError) as caught:
        build._check("pip", releasecode.Completed(1, "", output))
    expected = ["Looking in indexes", retry.strip() % 0, "ERROR: No matching distribution found for x"]
    assert str(caught.value).splitlines()[1:] == expected
    assert (tmp_path / "log").read_text().count("Retrying") == 5


# ------------------------------------------------------------------------------------------------------------- finding


def test_the_release_of_a_revision_and_configuration_is_found(layout, state, add):
    for name, status in ((ONE, "live"), (TWO, "ready"), (THREE, "bad"), (FOUR, "building")):
        add(name, status, revision="r")
    add(FIVE, "ready", revision="r", config_sha256="other")
    assert releases.find(layout, state, "r", "c") == TWO
    assert releases.find(layout, state, "r", "nothing") is None
    serve(layout, ONE)
    assert releases.find(layout, state, "r", "c") == ONE


EDITS = {
    "edited": lambda release: (release / "source/settings.py").write_text("DEBUG = True\n"),
    "emptied": lambda release: (release / "source/settings.py").write_text(""),
    "removed": lambda release: (release / "source/settings.py").unlink(),
    "added": lambda release: (release / "source/new.py").touch(),
    "link": lambda release: (release / "source/link").symlink_to("/etc/passwd"),
    "mode": lambda release: (release / "source").chmod(0o700),
    "gone": lambda release: (release / "source").rename(release.parent / "elsewhere"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_release_that_was_edited_is_built_again(layout, state, add, edit):
    add(ONE, "live", revision="r")
    release = Path(layout.release(ONE))
    (release / "source").mkdir()
    (release / "source/settings.py").write_text("DEBUG = False\n")
    os.utime(release / "source/settings.py", (1e9, 1e9))
    releases.amend_manifest(layout, ONE, files_sha256=releases.fingerprint(str(release)), environment_sha256="key")
    serve(layout, ONE)
    assert releases.find(layout, state, "r", "c") == releases.find_environment(layout, state, "key") == ONE
    # Another link of a file, and a copy of the release, are no edit.
    os.link(release / "source/settings.py", release.parent / "link")
    assert releases.find(layout, state, "r", "c") == ONE
    EDITS[edit](release)
    assert releases.find(layout, state, "r", "c") is None and releases.find_environment(layout, state, "key") is None


def test_a_suspect_release_is_not_deployed_again_and_stays_the_target_of_a_rollback(layout, state, add):
    for name in (ONE, TWO):
        add(name, revision=name)
    serve(layout, TWO)
    state.set_suspect(ONE, True)
    assert releases.find(layout, state, ONE, "c") is None and state.rollback_target(TWO) == ONE
    assert State(layout).is_suspect(ONE) and not state.is_suspect(None)
    state.set_status(ONE, "live")
    assert releases.find(layout, state, ONE, "c") == ONE


def test_the_order_of_a_configuration_does_not_matter():
    assert releases.config_hash({"a": 1, "b": [1, 2]}) == releases.config_hash({"b": [1, 2], "a": 1})
    assert releases.config_hash({"a": 1}) != releases.config_hash({"a": 2})


def test_releases_are_found_by_name_version_or_revision(layout, add):
    add(ONE, version="2.0.0")
    add(TWO, version="2.1.0")
    add(THREE, version="2.1.0")
    assert releases.resolve(layout, ONE) == [ONE]
    assert releases.resolve(layout, "2.1.0") == [TWO, THREE]
    assert releases.resolve(layout, "2" * 7) == [TWO]
    assert releases.resolve(layout, "2" * 6) == [] and releases.resolve(layout, "") == []


def test_a_list_shows_the_state_of_each_release(layout, state, add):
    add(ONE, version="2.0.0")
    add(TWO, "bad", version="2.1.0")
    os.makedirs(layout.release(THREE))
    os.makedirs(os.path.join(layout.releases, "mine"))
    serve(layout, ONE)
    listed = releases.describe(layout, state)
    assert listed[1] == {
        "name": TWO, "version": "2.1.0", "revision": "2" * 40, "config_sha256": "c", "created": "", "status": "bad",
        "was_live": True, "reason": "", "since": state.releases[TWO]["since"], "current": False,
    }  # fmt: skip
    assert {**listed[2], "name": ""} == {
        **dict.fromkeys(listed[2], ""),
        "status": "building",
        "was_live": False,
        "current": False,
    }
    assert [(one["name"], one["version"], one["status"], one["was_live"], one["current"]) for one in listed] == [
        (ONE, "2.0.0", "live", True, True),
        (TWO, "2.1.0", "bad", True, False),
        (THREE, "", "building", False, False),
    ]


def test_secrets_are_shown_by_their_hash_only():
    shown = releases.masked(
        {
            "DB_PASSWORD": "geheim",
            "CACHE_URL": "redis://u:geheim@h",
            "DJANGO_SECRET_KEY": "",
            "MINE": "geheim",
            "TZ": "Asia/Tokyo",
        },
        secret=("MINE",),
    )
    assert "geheim" not in json.dumps(shown)
    assert shown["TZ"] == "Asia/Tokyo" and shown["DJANGO_SECRET_KEY"] == "(empty)"
    assert shown["MINE"] == "(secret, %s)" % hashlib.sha256(b"geheim").hexdigest()[:8]
    assert shown["DB_PASSWORD"] == shown["MINE"] != releases.masked({"DB_PASSWORD": "other"})["DB_PASSWORD"]


def test_a_release_is_read_as_far_as_it_exists(layout, add):
    add(ONE, version="2.0.0")
    write(layout.release(ONE), "site/x", "夜勤")
    assert releases.read_files(layout, ONE, ["site/x", "absent"]) == {"site/x": "夜勤"}
    assert releases.read_files(layout, None, ["site/x"]) == releases.environment(layout, None) == {}
    assert releases.environment(layout, ONE) == releases.manifest(layout, TWO) == {}
    write(layout.release(ONE), "env", 'A="1"\n')
    assert releases.environment(layout, ONE) == {"A": "1"}
    releases.amend_manifest(layout, ONE, applied_when_live=["a.1"])
    amended = releases.manifest(layout, ONE)
    assert (amended["version"], amended["applied_when_live"]) == ("2.0.0", ["a.1"])
    assert stat.S_IMODE(os.stat(os.path.join(layout.release(ONE), "manifest.json")).st_mode) == 0o644


# ------------------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize(("number", "removed"), [(0, True), (errno.EXDEV, True), (errno.EACCES, False)])
def test_a_release_is_invalid_from_the_start_of_its_removal(layout, state, add, monkeypatch, number, removed):
    """Where an overlay file system cannot rename it, its manifest goes first."""
    add(ONE)
    rename, remove, seen = os.rename, releases.safe_files.remove_tree, []

    def renamed(source, target):
        if number and target.endswith(".removing"):
            raise OSError(number, "x")
        rename(source, target)

    def removing(path):
        seen.append(os.path.exists(os.path.join(layout.release(ONE), "manifest.json")))
        remove(path)

    monkeypatch.setattr(releases.os, "rename", renamed)
    monkeypatch.setattr(releases.safe_files, "remove_tree", removing)
    with contextlib.nullcontext() if removed else pytest.raises(OSError):
        releases.discard(layout, state, ONE)
    assert (os.listdir(layout.releases) == []) is removed and (ONE not in state.releases) is removed
    assert not any(seen)
    releases.discard(layout, state, TWO)


def test_pruning_keeps_the_newest_the_current_and_the_target_of_a_rollback(layout, state, add):
    for name in (ONE, TWO, THREE, FOUR, FIVE):
        add(name)
    serve(layout, THREE)
    assert releases.prune_plan(layout, state, 1, []) == [ONE, FOUR]  # TWO is the rollback.
    assert releases.prune_plan(layout, state, 2, []) == [ONE]
    assert releases.prune_plan(layout, state, 9, []) == []
    assert releases.prune_plan(layout, state, 0, []) == [ONE, FOUR, FIVE]


def test_pruning_keeps_a_slot_whose_worker_may_still_run(layout, state, add):
    for name in (ONE, TWO, THREE, FOUR):
        add(name)
    layout.point_slot("green", ONE)
    serve(layout, FOUR)
    assert releases.prune_plan(layout, state, 1, []) == [TWO]


def test_pruning_counts_live_releases_and_keeps_the_next_one(layout, state, add):
    """A build that failed on another host and an unusable directory do not count as rollback targets."""
    add(ONE)
    add(TWO)
    add(THREE, "ready")
    add(FOUR, "ready")
    os.makedirs(layout.release(FIVE))
    serve(layout, TWO)
    assert releases.prune_plan(layout, state, 2, []) == [THREE, FIVE]


def test_pruning_keeps_the_only_file_of_an_applied_migration(layout, state, add):
    add(ONE, migrations=["roster.0001", "roster.0002_gone"])
    add(TWO, migrations=["roster.0001", "roster.0002_gone"])
    for name in (THREE, FOUR, FIVE):
        add(name, migrations=["roster.0001", "roster.0003"])
    serve(layout, FIVE)
    assert releases.prune_plan(layout, state, 1, ["roster.0001", "roster.0002_gone"]) == [ONE, THREE]
    assert releases.prune_plan(layout, state, 1, ["roster.0001"]) == [ONE, TWO, THREE]


def test_without_the_database_no_release_with_migrations_is_pruned(layout, state, add):
    add(ONE, migrations=["roster.0002_gone"])
    for name in (TWO, THREE, FOUR):
        add(name, migrations=["roster.0001"])
    serve(layout, FOUR)
    assert releases.prune_plan(layout, state, 1, None) == [TWO]


def test_an_unknown_directory_is_never_pruned(layout, state, add):
    os.makedirs(os.path.join(layout.releases, "20200101-mine"))
    add(ONE)
    add(TWO)
    serve(layout, TWO)
    state.set_status(ONE, "bad", "x")
    assert releases.prune_plan(layout, state, 1, []) == [ONE]


def test_unfinished_builds_and_removals_go_and_finished_ones_stay(layout, state, add):
    add(ONE)
    add(TWO, "building")  # Killed between its manifest and its status.
    os.makedirs(os.path.join(layout.release(THREE), "source"))
    state.set_status(THREE, "building")
    os.makedirs(layout.release(FOUR))  # Killed before its status.
    add(FIVE)
    os.rename(layout.release(FIVE), layout.release(FIVE) + ".removing")  # Killed in a prune.
    assert releases.remove_unfinished(layout, state) == [THREE, FOUR, FIVE + ".removing"]
    assert sorted(os.listdir(layout.releases)) == [ONE, TWO]
    assert state.status(TWO) == "ready" and sorted(state.releases) == [ONE, TWO]
    assert releases.remove_unfinished(layout, state) == []


# -------------------------------------------------------------------------------------------------------------- static


def write(directory, path, text):
    os.makedirs(os.path.dirname(os.path.join(directory, path)), exist_ok=True)
    with open(os.path.join(directory, path), "w", encoding="utf-8") as stream:
        stream.write(text)


def below(directory):
    return sorted(
        os.path.relpath(os.path.join(parent, name), directory)
        for parent, _directories, names in os.walk(directory)
        for name in names
    )


@pytest.fixture
def publish(layout, state, add):
    """A function that adds a release with static files and, where it is live, publishes them."""

    def publish(name, files, status="live"):
        add(name, status)
        for path, text in files.items():
            write(os.path.join(layout.release(name), "static"), path, text)
        releases.publish_static(layout, state)

    return publish


def content(layout, path):
    return Path(layout.union, path).read_text(encoding="utf-8")


def test_static_files_of_releases_that_have_served_stay_published(layout, publish):
    publish(ONE, {"css/site.aaa.css": "1", "css/site.css": "1", "staticfiles.json": "1"})
    publish(TWO, {"css/site.bbb.css": "2", "css/site.css": "22", "staticfiles.json": "2"})
    assert below(layout.union) == ["css/site.aaa.css", "css/site.bbb.css", "css/site.css"]
    assert content(layout, "css/site.css") == "22"


def test_a_file_that_is_the_same_is_not_written_again(layout, state, publish):
    publish(ONE, {"a.css": "1"})
    publish(TWO, {"a.css": "1"})
    node = os.stat(os.path.join(layout.union, "a.css")).st_ino
    releases.publish_static(layout, state)
    assert os.stat(os.path.join(layout.union, "a.css")).st_ino == node


def test_a_release_that_did_not_pass_leaves_nothing_published(layout, state, add, publish):
    """Its hashed names may be those of an earlier release, with other content."""
    publish(ONE, {"site.aaa.js": "good", "css": "file"})
    add(TWO, "ready")
    for path, text in {"site.aaa.js": "evil", "site.bbb.js": "evil", "css/new.css": "evil"}.items():
        write(os.path.join(layout.release(TWO), "static"), path, text)
    releases.publish_static(layout, state)
    assert below(layout.union) == ["css", "site.aaa.js"] and content(layout, "site.aaa.js") == "good"
    releases.publish_static(layout, state, TWO)
    assert below(layout.union) == ["css/new.css", "site.aaa.js", "site.bbb.js"]
    state.set_status(TWO, "bad", "its gate")
    releases.publish_static(layout, state)
    assert below(layout.union) == ["css", "site.aaa.js"] and content(layout, "site.aaa.js") == "good"


def test_static_files_are_readable_for_the_web_server_under_any_umask(layout, state, publish):
    before = os.umask(0o077)
    try:
        publish(ONE, {"css/a.css": "1"})
        static = os.path.join(layout.release(ONE), "static")
        releases.take_static(static)
    finally:
        os.umask(before)
    for top in (layout.union, static):
        assert os.stat(os.path.join(top, "css/a.css")).st_mode & 0o777 == 0o644
    assert os.stat(os.path.join(layout.union, "css")).st_mode & 0o777 == 0o755


def test_static_files_of_no_retained_release_are_removed(layout, state, publish):
    publish(ONE, {"css/a.css": "1"})
    for path in ("css/gone.css", "css/.a.css.new", "old/gone.css"):
        write(layout.union, path, "1")
    releases.publish_static(layout, state)
    assert below(layout.union) == ["css/a.css"] and os.listdir(layout.union) == ["css"]


@pytest.mark.parametrize("limit", ["STATIC_BYTES", "STATIC_FILES"])
def test_static_files_are_bounded_before_root_copies_them(tmp_path, monkeypatch, limit):
    """A sparse file costs the application nothing."""
    for name in ("a.js", "b.js"):
        write(str(tmp_path), name, "x")
    os.truncate(tmp_path / "b.js", (2 << 30) + 1 if limit == "STATIC_BYTES" else 1)
    monkeypatch.setattr(releases, "STATIC_FILES", 1 if limit == "STATIC_FILES" else 2)
    with limited(256 << 20), pytest.raises(releases.BuildError, match="b.js|a.js"):
        releases.take_static(str(tmp_path))
    assert sum(os.stat(tmp_path / name).st_blocks for name in os.listdir(tmp_path)) < 64


# ------------------------------------------------------------------------------------------------------------ building


@pytest.fixture
def spec(tmp_path):
    archive = tmp_path / "source.tar"
    with tarfile.open(archive, "w") as stream:
        for path, text in (
            ("manage.py", "x = 1\n"),
            ("病棟/表.txt", "夜勤\n"),
            ("media/old.txt", "1\n"),
            ("requirements.txt", ""),
        ):
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(text.encode()), 0o666
            stream.addfile(info, io.BytesIO(text.encode()))
    return {
        "revision": "0a1b2c3d" * 5,
        "stamp": "20260106T000000Z",
        "version": "2.0.0",
        "archive": str(archive),
        "environment": {"DB_PASSWORD": 'a"b ', "TZ": "Asia/Tokyo"},
        "files": {"site/extra.py": "y = 2\n"},
        "requirements_file": "",
        "extra_requirements": [],
        "linked_directories": ["media"],
        "python": sys.executable,
        "pip_environment": {},
        "wheels_dir": "",
        "build_user": "root",
        "user": "root",
        "collectstatic": False,
        "check": False,
        "celery_application": "",
        "config_sha256": "c",
        "classify": lambda source: [dict(app="roster", name=one) for one in os.listdir(source) if "." in one[-3:]],
        "hooks": [],
        "timeout_seconds": 120,
        "run_id": "r",
        "who": "w",
        "log_dir": str(tmp_path / "log"),
    }


@needs_root
def test_a_build_is_complete_and_may_only_be_read(layout, state, spec):
    spec["hooks"] = [
        {"name": "note", "phase": "after_build", "command": "chmod 666 manage.py; env > ../hooked"},
        {"name": "later", "phase": "after_cutover", "command": "exit 1"},
    ]
    build = releases.Build(layout, state, spec)
    name = build.run()
    path = layout.release(name)
    assert name == "20260106T000000Z-0a1b2c3d0a" and state.status(name) == "ready"
    assert sorted(os.listdir(path)) == ["env", "hooked", "manifest.json", "site", "source", "static", "venv"]
    # Those who run the code cannot write its bytecode.
    for directory in ("site", "source"):
        assert list(Path(path, directory, "__pycache__").glob("*.pyc")), directory
    with open(os.path.join(path, "source/病棟/表.txt"), encoding="utf-8") as stream:
        assert stream.read() == "夜勤\n"
    assert os.readlink(os.path.join(path, "source/media")) == os.path.join(layout.shared, "media")
    assert stat.S_IMODE(os.stat(os.path.join(path, "env")).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.join(path, "source/manage.py")).st_mode) == 0o644
    assert releases.environment(layout, name) == {
        "DB_PASSWORD": 'a"b ',
        "TZ": "Asia/Tokyo",
        "SHIFTMASTER_RELEASE": name,
        "SHIFTMASTER_VERSION": "2.0.0",
        "PYTHONPATH": os.path.join(path, "site"),
        "STATIC_ROOT": os.path.join(path, "static"),
    }
    assert set(releases.OWN_ENVIRONMENT) == set(releases.environment(layout, name)) - set(spec["environment"])
    manifest = releases.manifest(layout, name)
    assert (manifest["version"], manifest["revision"], manifest["migrations"], manifest["who"]) == (
        "2.0.0",
        spec["revision"],
        [{"app": "roster", "name": "manage.py"}],
        "w",
    )
    assert releases.find(layout, state, spec["revision"], "c") == name
    releases.amend_manifest(layout, name, applied_when_live=[])
    assert not releases.is_edited(layout, name)
    out = releasecode.ReleaseCode(path, None).run(["python", "-c", "import extra, sys; print(extra.y, sys.prefix)"])
    assert out.stdout.split() == ["2", os.path.join(path, "venv")]
    assert "unpack" in build.timings


def test_a_release_of_another_python_is_built_again(layout, state, add, tmp_path):
    add(ONE, "live", revision="r")
    venv = Path(layout.release(ONE), "venv")
    for name in ("bin", "lib/python3.11"):
        (venv / name).mkdir(parents=True)
    (venv / "bin/python").symlink_to(tmp_path / "python3")
    (tmp_path / "python3").symlink_to("python3.11")
    found = []
    for interpreter in ("python3.11", "", "python3.13"):
        if interpreter:
            (tmp_path / interpreter).touch()
            (tmp_path / "python3").unlink()
            (tmp_path / "python3").symlink_to(interpreter)
        else:
            (tmp_path / "python3.11").unlink()
        found.append((releases.lacks_interpreter(layout, ONE), releases.find(layout, state, "r", "c")))
    assert found == [(False, ONE), (True, None), (True, None)]


@pytest.fixture
def recorded(monkeypatch):
    """Commands of a build, recorded instead of run: {"commands", "code", "hooks"}, and the responses of its code."""
    found = types.SimpleNamespace(commands=[], code=[], files={}, response={"tasks": ["t"], "queues": ["q"]}, rc=0)

    def run_as(user, argv, env, cwd=None, stdin=None, timeout=60, nice=False, kind="code", writable=()):
        found.commands.append((user, argv, env, cwd, timeout, nice, kind, list(writable)))
        if argv[0] == "tar":
            top = os.path.dirname(argv[5])
            found.owners = {name: os.stat(os.path.join(top, name)) for name in os.listdir(top)}
            for name, text in found.files.items():
                write(argv[5], name, text)
        return releasecode.Completed(0, "", "")

    class Code:
        def __init__(self, path, user):
            self.user = user

        def manage(self, *arguments, **options):
            found.code.append((self.user, *arguments, options))
            return releasecode.Completed(0, "", "")

        def driver(self, *arguments):
            found.code.append((self.user, *arguments))
            return found.response

        def shell(self, command, **options):
            found.code.append((self.user, command, options))
            if command == "hang":
                raise releasecode.ReleaseCodeError("did not end")
            return releasecode.Completed(found.rc, "out\n", "err\n")

    monkeypatch.setattr(releases, "run_as", run_as)
    monkeypatch.setattr(releases, "ReleaseCode", Code)
    return found


@needs_root
@pytest.mark.parametrize("directory", ["", "/wheels"])
def test_the_commands_of_a_build_and_what_they_leave(layout, state, spec, recorded, tmp_path, monkeypatch, directory):
    spec.update(
        python="/usr/bin/python3", build_user="nobody", user="daemon", requirements_file="requirements.txt",
        extra_requirements=["x==1"], wheels_dir=directory, pip_environment={"PIP_INDEX_URL": "u"}, check=True,
        collectstatic=True, celery_application="app",
    )  # fmt: skip
    recorded.files["requirements.txt"] = "django\n"
    logs = tmp_path / "log/builds"
    logs.mkdir(parents=True)
    for number in range(35):
        (logs / ("2025%04d.log" % number)).touch()
    synced = []
    monkeypatch.setattr(os, "sync", lambda: synced.append(os.path.exists(os.path.join(build.path, "manifest.json"))))
    build = releases.Build(layout, state, spec)
    name, path = build.run(), build.path
    source, static, python = os.path.join(path, "source"), os.path.join(path, "static"), "/usr/bin/python3"

    def built(*argv, cwd=None, **env):
        base = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}
        return "nobody", list(argv), {**base, **env}, cwd, 120, True, "build", [source, os.path.join(path, "venv")]

    interpreter = os.path.join(path, "venv/bin/python")
    pip = [python, "-I", "-m", "pip", "--python", interpreter, "install", "--quiet", "--no-compile"]
    env = {
        "PIP_NO_CACHE_DIR": "1", "PIP_CERT": "/etc/ssl/certs/ca-certificates.crt", "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_PYTHON_VERSION_WARNING": "1",
    }  # fmt: skip
    if directory:
        pip += ["--no-index", "--find-links", "/wheels", "--only-binary", ":all:"]
        env["PIP_CONFIG_FILE"] = "/dev/null"
    else:
        env["PIP_INDEX_URL"] = "u"
    media = [os.path.join(source, "media"), os.path.join(layout.shared, "media")]
    compiled = [python, "-I", "-m", "compileall", "-q"]
    assert recorded.commands == [
        built("tar", "-x", "-f", "-", "-C", source, "--no-same-owner", "--no-same-permissions"),
        built(python, "-m", "venv", "--without-pip", os.path.join(path, "venv")),
        built(*pip, "--requirement", os.path.join(source, "requirements.txt"), cwd=source, **env),
        built(*pip, "x==1", cwd=source, **env),
        built(*compiled, "-j", "0", os.path.join(path, "venv/lib")),
        built(python, "-I", "-c", releases._LINK_DIRECTORIES, *media),
        built(*compiled, "source", cwd=path),
        (None, [*compiled, "site"], {"PATH": "/usr/bin:/bin"}, path, 120, False, "code", []),
    ]
    options = {"timeout": 120, "nice": True, "writable": (static,)}
    assert recorded.code == [
        ("daemon", [["check"], ["collectstatic", "--no-input", "-v", "0"]], options),
        ("daemon", celery_driver, {"op": "tasks"}, 120, {"SHIFTMASTER_CELERY_APPLICATION": "app"}),
    ]
    owners = {"source": "nobody", "venv": "root", "site": "root", "static": "daemon"}
    assert {one: pwd.getpwuid(entry.st_uid).pw_name for one, entry in recorded.owners.items()} == owners
    assert {stat.S_IMODE(entry.st_mode) for entry in recorded.owners.values()} == {0o755}
    assert {os.stat(os.path.join(path, one)).st_uid for one in owners} == {0}
    assert stat.S_IMODE(os.stat(os.path.join(path, "site/extra.py")).st_mode) == 0o644
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755
    manifest = releases.manifest(layout, name)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", manifest.pop("created"))
    assert manifest.pop("files_sha256") == releases.fingerprint(path)
    assert manifest == {
        "format": 1, "release": name, "version": "2.0.0", "revision": spec["revision"], "config_sha256": "c",
        "requirements_sha256": hashlib.sha256(b"django\n").hexdigest(), "environment_sha256": "",
        "migrations": [], "celery_application": "app",
        "tasks": ["t"], "queues": ["q"], "who": "w", "run_id": "r",
    }  # fmt: skip
    assert stat.S_IMODE(os.stat(os.path.join(path, "manifest.json")).st_mode) == 0o644 and synced == [False]
    with open(os.path.join(layout.state, "audit.jsonl"), encoding="utf-8") as stream:
        event = json.loads(stream.read())
    assert event.pop("time") and event == {
        "event": "built", "release": name, "version": "2.0.0", "revision": spec["revision"], "run_id": "r", "who": "w"
    }  # fmt: skip
    # The newest logs are kept.
    assert sorted(os.listdir(logs)) == [*("2025%04d.log" % number for number in range(6, 35)), name + ".log"]
    assert stat.S_IMODE(os.stat(build.log).st_mode) == 0o640
    assert "== install the requirements (requirements.txt)\n" in Path(build.log).read_text()


@needs_root
@pytest.mark.parametrize(
    ("queues", "tasks", "requirements", "fits"),
    [(100, 10_000, 4 << 20, True), (101, 1, 1, False), (1, 10_001, 1, False), (1, 1, (4 << 20) + 1, False)],
)
def test_metadata_of_a_release_is_bounded(layout, state, spec, recorded, queues, tasks, requirements, fits):
    spec.update(requirements_file="requirements.txt", celery_application="app")
    recorded.files["requirements.txt"] = "#" * requirements
    recorded.response = {"queues": ["q"] * queues, "tasks": ["t"] * tasks}
    build = releases.Build(layout, state, spec)
    with contextlib.nullcontext() if fits else pytest.raises(releases.BuildError):
        build.run()
    assert bool(layout.names()) is fits and {call[1] for call in recorded.code} == {celery_driver}


def test_hooks_run_in_order_each_as_its_user_in_its_sandbox(recorded):
    hooks = [
        {"name": "one", "phase": "p", "command": "a"},
        {"name": "other", "phase": "q", "command": "b"},
        {"name": "root's", "phase": "p", "command": "c", "user": "root", "timeout_seconds": 7},
    ]
    outputs = releases.run_hooks("/r", hooks, "p", "app", "build", ["/w"])
    path = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    assert outputs == [{"name": "one", "output": "out\nerr"}, {"name": "root's", "output": "out\nerr"}]
    assert recorded.code == [
        ("app", "a", {"timeout": 300, "extra_env": {}, "kind": "build", "writable": ["/w"]}),
        ("root", "c", {"timeout": 7, "extra_env": path, "kind": "hook", "writable": ()}),
    ]
    releases.run_hooks("/r", hooks[:1], "p", "app")
    assert recorded.code[2][2] == {"timeout": 300, "extra_env": {}, "kind": "code", "writable": ()}
    hooks[0]["command"] = "hang"
    with pytest.raises(releases.BuildError, match=r"hook one \(p\): did not end"):
        releases.run_hooks("/r", hooks, "p", "app")
    recorded.rc = 1
    with pytest.raises(releases.BuildError, match=r"hook other \(q\) ended with code 1:\nerr"):
        releases.run_hooks("/r", hooks, "q", "app")


def small_wheel(directory, name, version):
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = f"{name}-{version}.dist-info"
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@needs_root
def test_pip_uses_only_the_directory_of_wheels(layout, state, spec, tmp_path):
    """Neither the site's environment of pip nor the host's own configuration adds a place."""
    small_wheel(tmp_path / "wheels", "mine", "1.0")
    small_wheel(tmp_path / "elsewhere", "mine", "2.0")
    (tmp_path / "pip.conf").write_text(f"[global]\nfind-links = {tmp_path / 'elsewhere'}\n")
    places = {"PIP_FIND_LINKS": str(tmp_path / "elsewhere"), "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    spec.update(extra_requirements=["mine"], wheels_dir=str(tmp_path / "wheels"), pip_environment=places)
    name = releases.Build(layout, state, spec).run()
    code = releasecode.ReleaseCode(layout.release(name), None)
    assert code.run(["python", "-c", "import mine; print(mine.version)"]).stdout.strip() == "1.0"

    spec.update(stamp="20260107T000000Z", wheels_dir="")
    spec["pip_environment"]["PIP_NO_INDEX"] = "1"
    name = releases.Build(layout, state, spec).run()
    code = releasecode.ReleaseCode(layout.release(name), None)
    assert code.run(["python", "-c", "import mine; print(mine.version)"]).stdout.strip() == "2.0"


REQUIREMENT = "mine==1.0 --hash=sha256:" + "0" * 64


@pytest.mark.parametrize(
    "text, hashed",
    [
        (REQUIREMENT, True),
        (f"# by a tool\n--index-url https://packages.example/simple\nmine[a,b]==1.0 ; python_version < '4' \\\n"
         f"    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{'1' * 64}  # via x\n", True),
        ("", False),
        ("mine==1.0", False),
        ("mine>=1.0 --hash=sha256:00", False),
        (f"{REQUIREMENT}\n./mine", False),
        (f"{REQUIREMENT}\n-e .", False),
        (f"{REQUIREMENT}\n-r other.txt", False),
        (f"{REQUIREMENT}\n--find-links wheels", False),
        (f"mine @ file:mine.whl --hash=sha256:{'0' * 64}", False),
        (f"mine==1.0 ; a == 'b' --config-settings=x=source {REQUIREMENT[9:]}", False),
        # A comment here that is a requirement to pip.
        (f"{REQUIREMENT}\n# comment \\\n./mine", False),
        (f"{REQUIREMENT}\n# comment\u2028./mine", False),
        (f"# coding: utf-7\n{REQUIREMENT} # +AAo-./mine", False),
        # Not in quadratic time.
        (f"mine==1.0 ;{' ' * 4_000_000}x", False),
    ],
)  # fmt: skip
def test_requirements_that_name_distributions_by_their_hashes_alone(text, hashed):
    assert releases.is_hashed(text) is hashed


def built_with_hashes(layout, state, spec, tmp_path):
    """A release that has served, with a wheel that the requirements name by its hash; returns its path."""
    wheel = small_wheel(tmp_path / "wheels", "mine", "1.0")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("mine-1.0.dist-info/entry_points.txt", "[console_scripts]\nmine = mine:main\n")
        archive.writestr("main.py", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    text = f"mine==1.0 --hash=sha256:{digest}\n".encode()
    with tarfile.open(spec["archive"], "a") as stream:
        for name, content in (("requirements.txt", text), ("pip/__init__.py", b"raise SystemExit(9)\n")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            stream.addfile(info, io.BytesIO(content))
    spec.update(requirements_file="requirements.txt", wheels_dir=str(tmp_path / "wheels"))
    name = releases.Build(layout, state, spec).run()
    state.set_status(name, "live")
    return layout.release(name)


@needs_root
def test_a_release_with_the_same_requirements_has_the_files_of_the_last_ones_environment(
    layout, state, spec, tmp_path, monkeypatch
):
    first = built_with_hashes(layout, state, spec, tmp_path)
    monkeypatch.setattr(releases.Build, "_install", lambda self: pytest.fail("pip runs"))
    second = layout.release(releases.Build(layout, state, dict(spec, stamp="20260107T000000Z")).run())
    inside = os.path.relpath(next(Path(first, "venv").rglob("mine.py")), first)
    assert os.path.samefile(os.path.join(first, inside), os.path.join(second, inside))
    shutil.rmtree(first)
    done = releasecode.ReleaseCode(second, None).run(
        ["python", "-c", "import mine, sys; print(mine.__file__, sys.prefix)"]
    )
    assert done.stdout.split() == [os.path.join(second, inside), os.path.join(second, "venv")]
    # In its first line, or after "exec" where the path is longer than the kernel reads.
    assert f"{second}/venv/bin/python" in Path(second, "venv/bin/mine").read_text()
    found = subprocess.run(["grep", "-rlI", first, second + "/venv"], capture_output=True, text=True, check=False)
    assert found.stdout == ""


@pytest.mark.parametrize(
    "change, same",
    [
        ({"version": "2.1.0", "environment": {}}, True),
        ({"extra_requirements": ["mine[a]>=1,<2"]}, False),
        ({"pip_environment": {"PIP_INDEX_URL": "https://packages.example/simple", "https_proxy": "x"}}, False),
        ({"wheels_dir": "/wheels"}, False),
        ({"python": "/bin/sh"}, False),
        ({"requirements_file": "more.txt"}, False),
        # Something of the source, or of a hook, may be in it.
        ({"hooks": [{"name": "h", "phase": "after_build", "command": "true"}]}, None),
        ({"requirements_file": ""}, None),
        ({"requirements_file": "unhashed.txt"}, None),
        ({"requirements_file": "absent.txt"}, None),
        ({"extra_requirements": ["./dependency"]}, None),
        ({"extra_requirements": ["mine @ file:dependency"]}, None),
        ({"extra_requirements": ["--editable=."]}, None),
        ({"extra_requirements": ["mine.tar.gz"]}, None),
        ({"pip_environment": {"PIP_FIND_LINKS": "vendor"}}, None),
        ({"pip_environment": {"PIP_REQUIREMENT": "other.txt"}}, None),
    ],
)
def test_an_environment_is_known_by_all_that_it_depends_on(layout, state, spec, change, same):
    source = Path(layout.release(ONE), "source")
    source.mkdir(parents=True)
    for name, text in (("", REQUIREMENT), ("more", REQUIREMENT + "\n" + REQUIREMENT), ("unhashed", "mine")):
        (source / f"{name or 'requirements'}.txt").write_text(text)

    def key(**change):
        build = releases.Build(layout, state, dict(spec, **dict({"requirements_file": "requirements.txt"}, **change)))
        build.path = layout.release(ONE)
        return build._environment_key()

    assert len(key()) == 64 and (key(**change) == key() if key(**change) else None) is same
    assert same is not None or key(**change) == ""


@pytest.mark.parametrize(
    "statuses, found",
    [
        (["live"], ONE),
        (["live", "live"], TWO),
        (["live", "ready"], ONE),
        (["ready"], None),
        (["live", "bad"], None),
        (["live", "suspect"], None),
        (["bad", "live"], TWO),
    ],
)
def test_an_environment_is_reused_from_a_release_that_was_live_and_is_not_suspect(layout, state, add, statuses, found):
    for name, status in zip((ONE, TWO), statuses):
        add(name, "live" if status == "suspect" else status, environment_sha256="key")
        if status == "suspect":
            state.set_suspect(name, True)
    add(THREE, environment_sha256="another")
    add(FOUR, environment_sha256="")
    assert releases.find_environment(layout, state, "key") == found
    assert releases.find_environment(layout, state, "") is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda venv: (venv / "link").symlink_to(venv.parent / "source"),
        lambda venv: (venv / "relative").symlink_to("../../%s/source" % venv.parent.name),
        lambda venv: [(venv / f"script{number}").write_text(str(venv)) for number in range(1001)],
        lambda venv: (venv / "large").write_text(str(venv) + " " * (1 << 20)),
    ],
    ids=["link", "relative link", "scripts", "size"],
)
def test_an_environment_that_would_point_to_another_release_is_not_linked(layout, spoil):
    venv = Path(layout.release(ONE), "venv")
    venv.mkdir(parents=True)
    (venv / "code.py").write_text("x = 1\n")
    os.makedirs(layout.release(TWO))
    releases.link_environment(layout.release(ONE), layout.release(TWO))
    assert os.path.samefile(venv / "code.py", os.path.join(layout.release(TWO), "venv", "code.py"))
    spoil(venv)
    os.makedirs(layout.release(THREE))
    with pytest.raises(ValueError):
        releases.link_environment(layout.release(ONE), layout.release(THREE))


@needs_root
def test_a_build_is_marked_complete_last(layout, state, spec, monkeypatch):
    """A run killed while it removes the rights must not leave a directory that the next one accepts as a release."""
    build, seen = releases.Build(layout, state, spec), []
    change_owner = releases.safe_files.change_owner

    def watched(path, *arguments, **options):
        seen.append((os.path.basename(path), os.path.exists(os.path.join(build.path, "manifest.json"))))
        return change_owner(path, *arguments, **options)

    monkeypatch.setattr(releases.safe_files, "change_owner", watched)
    build.run()
    assert seen == [("source", False), ("venv", False), ("static", False)]
    assert os.stat(os.path.join(build.path, "manifest.json")).st_uid == 0


@needs_root
@pytest.mark.parametrize(
    "change, words",
    [
        ({"archive": "junk"}, "the source archive cannot be unpacked"),
        (
            {"python": "/bin/false"},
            "create the virtual environment failed for version 2.0.0 \\(the complete output is in ",
        ),
        (
            {"hooks": [{"name": "h", "phase": "after_build", "command": "echo why >&2; exit 3"}]},
            "hook h \\(after_build\\) ended with code 3:\nwhy",
        ),
        ({"environment": {"A B": "x"}}, "'A B' is not a valid name"),
    ],
)
def test_a_build_that_fails_leaves_its_log_and_nothing_else(layout, state, spec, tmp_path, change, words):
    (tmp_path / "junk").write_text("no tar")
    if change.get("archive"):
        change = {"archive": str(tmp_path / "junk")}
    with pytest.raises((releases.BuildError, ValueError), match=words):
        releases.Build(layout, state, dict(spec, **change)).run()
    assert os.listdir(layout.releases) == [] and state.releases == {}
    assert os.listdir(os.path.join(spec["log_dir"], "builds")) == ["20260106T000000Z-0a1b2c3d0a.log"]
    with open(os.path.join(layout.state, "audit.jsonl"), encoding="utf-8") as stream:
        assert json.loads(stream.readline())["event"] == "build_failed"


# ------------------------------------------------------------------------------------------------- a release's own code


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "release"
    (path / "venv/bin").mkdir(parents=True)
    (path / "source").mkdir()
    (path / "venv/bin/python").symlink_to(sys.executable)
    (path / "env").write_text('DB_PASSWORD="gehe\\"im"\nTZ="Asia/Tokyo"\n')
    return releasecode.ReleaseCode(path, None)


def test_code_has_the_releases_environment_and_nothing_of_ours(code, monkeypatch):
    monkeypatch.setenv("OURS", "x")
    done = code.run(
        ["python", "-c", "import json, os; print(json.dumps([os.getcwd(), dict(os.environ)]))"],
        extra_env={"EXTRA": "1", "TZ": "UTC"},
    )
    directory, environ = json.loads(done.stdout)
    assert directory == os.path.join(code.path, "source")
    assert (environ["DB_PASSWORD"], environ["TZ"], environ["EXTRA"]) == ('gehe"im', "UTC", "1")
    assert "OURS" not in environ and environ["PATH"].startswith(os.path.join(code.path, "venv/bin"))


def test_code_and_output_of_a_command(code):
    with open(os.path.join(code.path, "env")) as stream:
        done = code.run(["/bin/sh", "-c", "head -c 3; echo err >&2; exit 7"], stdin=stream, nice=True)
    assert done == (7, "DB_", "err\n")


def test_the_beginning_and_the_end_of_long_output_are_kept(code):
    """It would otherwise be in root's memory, twice."""
    script = "echo first; head -c 134217728 /dev/zero; echo last; echo last >&2"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = code.run(["/bin/sh", "-c", script], timeout=300)
    assert done.stdout.startswith("first\n") and done.stdout.endswith("last\n") and done.stderr == "last\n"
    assert len(done.stdout) < 2 * releasecode.KEPT_BYTES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


@pytest.mark.parametrize(
    "text",
    [
        "'{'",
        "'[1]'",
        "'null'",
        "'{}'",
        "'{\"alive\": 1}'",
        "'{\"alive\": null}'",
        "'{\"error\": 5}'",
        "'[' * 200000",
        "'{\"alive\": true, \"x\": \"' + 'x' * 9000000 + '\"}'",
    ],
)
def test_a_response_of_another_form_or_size_is_an_error(code, driver, text):
    with pytest.raises(releasecode.ReleaseCodeError):
        code.driver(driver, {"op": "raw", "text": text})


def test_endless_output_does_not_block_a_driver(code, driver):
    noise = "exec('while True: print(1)')"
    with pytest.raises(releasecode.ReleaseCodeError, match="did not respond within 1 seconds"):
        code.driver(driver, {"op": "raw", "text": noise}, timeout=1)


@pytest.mark.parametrize(
    ("value", "shape", "fits"),
    [
        ({"a": "x", "more": 1}, {"a": str}, True),
        ({"a": None}, {"a": (str, None)}, True),
        ({"a": [["x"], []]}, {"a": [[str]], "b?": int}, True),
        ({"a": [], "b": True}, {"a": [str], "b?": int}, False),
        ({"k": {"x": "y"}}, {str: {str: str}}, True),
        ({"k": {"x": 1}}, {str: {str: str}}, False),
        ("a", [str], False),
    ],
)
def test_forms_of_responses(value, shape, fits):
    assert releasecode.matches(value, shape) is fits


@pytest.mark.parametrize("driver", [celery_driver, django_driver], ids=["celery", "django"])
def test_every_operation_of_a_driver_has_a_form(driver):
    operations = getattr(driver, "OPERATIONS", None) or [
        name for name in vars(driver.Operations) if not name.startswith("_")
    ]
    assert set(operations) == set(driver.RESPONSES)


def test_a_command_that_hangs_is_killed_with_its_children(code, tmp_path):
    started = time.monotonic()
    with pytest.raises(releasecode.ReleaseCodeError, match="did not end within 3 seconds; its last output: begun"):
        code.run(["/bin/sh", "-c", "echo begun; sleep 97 & echo $! > %s; wait" % (tmp_path / "pid")], timeout=3)
    assert time.monotonic() - started < 20
    pid = int((tmp_path / "pid").read_text())
    for _number in range(50):
        try:
            words = Path("/proc/%d/cmdline" % pid).read_bytes()
        except OSError:
            return
        if b"sleep" not in words:
            return
        time.sleep(0.1)
    raise AssertionError("the child lives")


def test_a_process_that_left_the_group_does_not_keep_a_command_from_ending(code, monkeypatch):
    """It holds the pipes open for longer than the command may take."""
    join = releasecode.Output.join
    monkeypatch.setattr(releasecode.Output, "join", lambda output, seconds: join(output, seconds / 20))
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(30)\nelse:\n    time.sleep(30)"
    began = time.monotonic()
    with pytest.raises(releasecode.ReleaseCodeError, match="did not end within 1 seconds"):
        code.run([sys.executable, "-c", daemon], timeout=1)
    assert time.monotonic() - began < 25


def test_a_command_that_is_not_there_and_an_environment_that_is_not_there(code):
    with pytest.raises(releasecode.ReleaseCodeError, match="could not be started"):
        code.run(["absent"])
    os.unlink(os.path.join(code.path, "env"))
    with pytest.raises(releasecode.ReleaseCodeError, match="the environment of release .* cannot be read"):
        code.run(["python", "-c", ""])


@needs_root
def test_the_command_of_a_hook_is_in_no_argument_of_its_unit(code, public_dir, monkeypatch):
    """Every user can read them, and the journal has the description."""
    shutil.copytree(code.path, public_dir / "release", symlinks=True)
    subprocess.run(("chmod", "-R", "a+rX", str(public_dir)), check=True)
    words = []
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda argv, **more: words.append(argv) or start(argv, **more))
    command = 'read -r line; echo "$line: a\'b $(id -un) $((6 * 7))"\nenv | grep -c COMMAND; exit 3'
    with open(os.path.join(code.path, "env")) as stream:
        done = releasecode.ReleaseCode(str(public_dir / "release"), "nobody").shell(command, stdin=stream)
    assert done == (3, 'DB_PASSWORD="gehe\\"im": a\'b nobody 42\n0\n', "")
    assert "id -un" not in " ".join(words[0])
    assert [word for word in words[0] if word.startswith("--description=")] == ["--description=ShiftMaster: code"]


@needs_root
def test_a_signal_that_ended_a_command_is_named(public_dir):
    """The kernel's for memory, for example: the command itself has printed nothing."""
    done = releasecode.run_as("nobody", ["/bin/sh", "-c", "kill -KILL $$"], {}, str(public_dir))
    assert done.rc == 128 + 9 and "shiftmaster_build_memory_max" in done.stderr
    assert releasecode.run_as("nobody", ["/bin/sh", "-c", "exit 3"], {}, str(public_dir)).stderr == ""


@needs_root
def test_the_status_of_a_command_is_its_own_report(public_dir, tmp_path, monkeypatch):
    """systemd 257 reported 0 for each tenth command that failed at once, and a hook that failed had succeeded."""
    zero = tmp_path / "systemd-run"
    zero.write_text(f'#!/bin/sh\n{" ".join(map(str, units.SYSTEMD_RUN))} "$@"\nexit 0\n')
    zero.chmod(0o755)
    monkeypatch.setattr(units, "SYSTEMD_RUN", (str(zero),))

    def run(command):
        return releasecode.run_as("nobody", ["/bin/sh", "-c", command], {}, str(public_dir))

    assert run("echo out; printf err >&2; exit 7") == (7, "out\n", "err")
    assert run("echo err >&2") == (0, "", "err\n")
    # No report is no success.
    done = run("kill -KILL $PPID")
    assert done.rc != 0 and "shiftmaster_build_memory_max" in done.stderr


@needs_root
def test_code_runs_as_the_releases_user(code, public_dir):
    shutil.copytree(code.path, public_dir / "release", symlinks=True)
    subprocess.run(("chmod", "-R", "a+rX", str(public_dir)), check=True)
    done = releasecode.ReleaseCode(str(public_dir / "release"), "nobody").run(["/bin/sh", "-c", "id -un; id -Gn"])
    assert done.stdout.split()[0] == "nobody" and "root" not in done.stdout


DRIVER = """
import json, os, sys
print("noise of the application", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["op"] == "die":
        sys.stderr.write("Traceback: broken settings\\n")
        sys.exit(3)
    if request["op"] == "hang":
        import time
        time.sleep(60)
    if request["op"] == "raw":
        print("@@shiftmaster-response@@ " + eval(request["text"]), flush=True)
        continue
    answer = {"error": "no such thing"} if request["op"] == "error" else {
        "echo": request, "words": open("/proc/self/cmdline").read(), "name": __name__}
    print("@@shiftmaster-response@@ " + json.dumps(answer), flush=True)
"""


@pytest.fixture
def driver(tmp_path):
    (tmp_path / "toy_driver.py").write_text(DRIVER)
    specification = importlib.util.spec_from_file_location("toy_driver", tmp_path / "toy_driver.py")
    module = importlib.util.module_from_spec(specification)
    shape = {"echo": {"number?": int}, "words": str, "name": str}
    module.SOURCE = DRIVER
    module.RESPONSES = dict.fromkeys(("echo", "die", "hang", "error"), shape) | {"raw": {"alive": bool}}
    return module


def test_a_driver_responds_to_several_requests_despite_other_output(code, driver):
    with releasecode.Driver(code, driver) as open_driver:
        for number in range(3):
            response = open_driver.call({"op": "echo", "secret": "geheim", "number": number})
            assert response["echo"]["number"] == number and response["name"] == "__main__"
            assert "geheim" not in response["words"] and "noise" not in response["words"]


def test_a_drivers_error_is_ours(code, driver):
    with pytest.raises(releasecode.ReleaseCodeError, match="^no such thing$"):
        code.driver(driver, {"op": "error"})


def test_a_driver_that_exits_is_quoted(code, driver):
    with pytest.raises(releasecode.ReleaseCodeError, match="ended with code 3 and without a response") as error:
        code.driver(driver, {"op": "die"})
    assert "broken settings" in str(error.value) and "noise of the application" in str(error.value)


def test_a_driver_that_hangs_is_ended(code, driver):
    started = time.monotonic()
    with pytest.raises(releasecode.ReleaseCodeError, match="did not respond within 1 seconds"):
        code.driver(driver, {"op": "hang"}, timeout=1)
    assert time.monotonic() - started < 15
