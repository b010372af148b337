"""Files of a version before 1.0.0 are renamed, and read until then."""

from __future__ import annotations

import json
import os

import pytest
from ansible.module_utils.shiftmaster.backup import manifest
from ansible.module_utils.shiftmaster.release import legacy, state
from ansible.module_utils.shiftmaster.release.layout import Layout

ONE, TWO = "20260101T000000Z-aaaaaaaaaa", "20260202T000000Z-bbbbbbbbbb"


@pytest.fixture
def old(tmp_path):
    """A host in the middle of a rollback by the version before."""
    for slot, release in (("blue", ONE), ("green", TWO)):
        (tmp_path / "releases" / release).mkdir(parents=True)
        (tmp_path / "colours" / slot).mkdir(parents=True)
        (tmp_path / "colours" / slot / "release").symlink_to(tmp_path / "releases" / release)
        (tmp_path / "colours" / slot / "socket").symlink_to(f"/run/shiftmaster-web-{slot}/web.sock")
    (tmp_path / "active").symlink_to("colours/blue")
    (tmp_path / "shared/state").mkdir(parents=True)
    (tmp_path / "shared/parked").mkdir()
    (tmp_path / "shared/parked/1.json").write_text("{}")
    step = {
        "kind": "deploy",
        "from": ONE,
        "to": TWO,
        "from_colour": "blue",
        "to_colour": "green",
        "phase": "put_back",
        "since": "2026-01-01T00:00:00Z",
        "run_id": "x",
    }
    releases = {ONE: {"status": "live", "doubtful": True}, TWO: {"status": "ready"}}
    (tmp_path / "shared/state/state.json").write_text(json.dumps({"releases": releases, "transition": step}))
    return tmp_path


def test_a_host_that_is_not_renamed_is_read_and_switched(old):
    layout = Layout(str(old))
    assert (layout.active_slot(), layout.current(), layout.release_of("green")) == ("blue", ONE, TWO)
    layout.activate("green")
    assert os.readlink(old / "active") == "colours/green" and layout.current() == TWO
    assert os.listdir(layout.unknown_tasks) == ["1.json"]


def test_slots_are_created_from_colours_and_active_points_to_them(old):
    before = os.readlink(old / "active/socket")
    assert legacy.slots(str(old)) and os.readlink(old / "active") == "slots/blue"
    assert os.readlink(old / "active/socket") == before
    layout = Layout(str(old))
    assert (layout.active_slot(), layout.current(), layout.release_of("green")) == ("blue", ONE, TWO)


def test_a_run_that_was_killed_in_between_is_repeated(old):
    """With what a restart by the version before has made of its links meanwhile."""
    legacy.slots(str(old))
    (old / "active").unlink()
    (old / "active").symlink_to("colours/green")
    (old / "colours/green/release").unlink()
    (old / "colours/green/release").symlink_to(old / "releases" / ONE)
    assert Layout(str(old)).current() == ONE
    assert legacy.slots(str(old)) and os.readlink(old / "active") == "slots/green"
    assert Layout(str(old)).current() == ONE


def test_the_web_server_can_enter_directories_under_any_umask(old):
    before = os.umask(0o077)
    try:
        legacy.slots(str(old))
    finally:
        os.umask(before)
    assert {(old / name).stat().st_mode & 0o777 for name in ("slots", "slots/blue", "slots/green")} == {0o755}


def test_a_host_of_today_is_left_alone(old):
    legacy.slots(str(old))
    (old / "colours").rename(old / "gone")
    assert not legacy.slots(str(old))


def test_directories_keep_their_content(old):
    assert legacy.directories(str(old / "shared")) and (old / "shared/unknown-tasks/1.json").exists()
    assert not legacy.directories(str(old / "shared")) and not (old / "shared/parked").exists()


def test_state_and_audit_log_have_todays_names(old):
    read = state.State(Layout(str(old)))
    assert read.transition["from_slot"] == "blue" and read.transition["to_slot"] == "green"
    assert read.transition["phase"] == "revert" and read.is_suspect(ONE)
    assert legacy.event({"event": "put_back"}) == {"event": "reverted"} and legacy.event([1]) == [1]


def test_an_old_manifest_is_read(tmp_path):
    segment = "000000010000000000000002"
    made = manifest.begin("20260101T000000Z-full", "db1", ["database"], 0.0)
    wal = {"start": segment, "stop": segment, "verified": segment}
    made["parts"]["database"].update(wal=wal)
    manifest.write(str(tmp_path / "new.json"), made)
    wal["proven"] = wal.pop("verified")
    made["sha256"] = manifest.checksum(made)
    (tmp_path / "old.json").write_text(json.dumps(made))
    assert manifest.read(str(tmp_path / "old.json"))["parts"]["database"]["wal"]["verified"] == segment
