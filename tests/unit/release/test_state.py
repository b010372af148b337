"""state.json, the audit log, the host's own lock, and the links of an installation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
from ansible.module_utils.shiftmaster.release import layout as layouts
from ansible.module_utils.shiftmaster.release import state as states

TRANSITION = dict.fromkeys(("from", "from_slot"), None) | {
    key: key for key in ("kind", "to", "to_slot", "phase", "run_id")
}
ONE, TWO, THREE = ("2026010%dT000000Z-%s" % (day, str(day) * 10) for day in (1, 2, 3))


@pytest.fixture
def layout(tmp_path):
    made = layouts.Layout(str(tmp_path) + "/")
    for name in (ONE, TWO, THREE):
        os.makedirs(made.release(name))
    os.makedirs(made.state)
    return made


def stored(layout):
    with open(os.path.join(layout.state, "state.json"), encoding="utf-8") as stream:
        return json.load(stream)


# -------------------------------------------------------------------------------------------------------------- state


def test_every_change_is_on_disk_at_once(layout):
    state = states.State(layout)
    assert (state.releases, state.transition) == ({}, None)
    state.set_status(ONE, "bad", "it broke")
    assert stored(layout)["releases"][ONE]["status"] == "bad"
    state.begin(**TRANSITION)
    assert stored(layout)["transition"]["phase"] == "phase"
    state.phase("switch", to_slot="green")
    assert {key: stored(layout)["transition"][key] for key in ("kind", "to", "phase", "to_slot")} == {
        "kind": "kind",
        "to": "to",
        "phase": "switch",
        "to_slot": "green",
    }
    assert states.State(layout).transition == state.transition
    state.end()
    assert stored(layout)["transition"] is None
    state.set_suspect(ONE, True)
    assert stored(layout)["releases"][ONE]["suspect"]
    state.forget(ONE)
    with open(os.path.join(layout.state, "state.json"), encoding="utf-8") as stream:
        assert stream.read() == '{\n "format": 1,\n "releases": {},\n "transition": null\n}\n'
    assert os.listdir(layout.state) == ["state.json"]
    assert os.stat(os.path.join(layout.state, "state.json")).st_mode & 0o777 == 0o600


def test_a_release_that_was_live_stays_known_as_such(layout):
    state = states.State(layout)
    state.set_status(ONE, "ready")
    assert not state.was_live(ONE)
    state.set_status(ONE, "live")
    state.set_status(ONE, "bad", "x")
    assert state.was_live(ONE) and state.status(ONE) == "bad" and state.status(TWO) is None


def test_a_release_that_is_not_known_is_forgotten_without_a_write(layout):
    states.State(layout).forget(ONE)
    assert os.listdir(layout.state) == []


def test_a_write_that_fails_leaves_the_old_file(layout, monkeypatch):
    state = states.State(layout)
    state.set_status(ONE, "ready")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states.os, "fsync", full)
    with pytest.raises(OSError) as caught:
        state.set_status(ONE, "live")
    monkeypatch.undo()
    assert (caught.value.errno, caught.value.filename) == (28, state.path)
    assert os.listdir(layout.state) == ["state.json"] and states.State(layout).status(ONE) == "ready"


def test_a_new_file_is_on_disk_before_it_replaces_the_old_one(layout, monkeypatch):
    steps, rename = [], os.rename
    monkeypatch.setattr(states.os, "fsync", lambda descriptor: steps.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(states.os, "rename", lambda *paths: (steps.append("rename"), rename(*paths)))
    monkeypatch.setattr(states, "sync", steps.append)
    path = os.path.join(layout.state, "x.json")
    states.write_json(path, {}, 0o640)
    assert steps == [len("{}\n"), "rename", layout.state]
    assert os.stat(path).st_mode & 0o777 == 0o640
    states.audit(layout, "note")
    assert steps[3:] == [os.stat(os.path.join(layout.state, "audit.jsonl")).st_size]


DAMAGED = [
    "",
    "{",
    "\xff",
    "[]",
    "null",
    '{"releases": {}, "transition": null}',
    '{"format": 1, "releases": {}}',
    '{"format": 1, "releases": null, "transition": null}',
    '{"format": 1, "releases": {}, "transition": {}}',
    '{"format": 1, "releases": {"x": "live"}, "transition": null}',
    '{"format": 1, "releases": {"x": {}}, "transition": null}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_an_unreadable_state_is_not_an_empty_one(layout, content):
    with open(os.path.join(layout.state, "state.json"), "w", encoding="latin-1") as stream:
        stream.write(content)
    with pytest.raises(states.StateError, match="state.json is damaged .* Move it away"):
        states.State(layout)


def test_a_state_of_a_newer_version_is_rejected_and_stays(layout):
    path = os.path.join(layout.state, "state.json")
    states.write_json(path, {"format": states.FORMAT + 1, "releases": {"x": {"status": "parked"}}, "transition": None})
    before = open(path, encoding="utf-8").read()
    with pytest.raises(states.StateError, match=f"format {states.FORMAT + 1}, .* use the version that wrote it"):
        states.State(layout)
    assert open(path, encoding="utf-8").read() == before


def test_a_missing_state_is_rebuilt_from_the_audit_log(layout):
    with open(os.path.join(layout.state, "audit.jsonl"), "wb") as stream:
        stream.write(b"\xff\n123\n[]\n")
    states.audit(layout, "live", kind="deploy", target=ONE, source=None, previous=None)
    states.audit(layout, "live", kind="deploy", target=TWO, source=ONE, previous=ONE)
    states.audit(layout, "live", kind="rollback", target=ONE, source=TWO, previous=TWO)
    states.audit(layout, "marked_bad", release=THREE, reason="it broke")
    states.audit(layout, "live", kind="deploy", target="20200101T000000Z-0000000", previous=ONE)
    states.audit(layout, "built", release=TWO)
    state = states.State(layout)
    assert {name: state.status(name) for name in state.releases} == {ONE: "live", TWO: "live", THREE: "bad"}
    assert state.rollback_target(TWO) == ONE and state.rollback_target(ONE) is None
    with open(os.path.join(layout.state, "audit.jsonl"), errors="replace") as stream:
        times = [json.loads(line)["time"] for line in stream.readlines()[3:]]
    live = {"status": "live", "reason": ""}
    assert state.releases == {
        ONE: {**live, "since": times[2], "live_at": times[2], "previous": None},
        TWO: {**live, "since": times[1], "live_at": times[1], "previous": ONE},
        THREE: {"status": "bad", "since": times[3], "reason": "it broke"},
    }


def test_rollback_goes_to_what_served_before(layout):
    """By the order of the deploys, not of the names: TWO was deployed last."""
    state = states.State(layout)
    state.set_status(ONE, "live", previous=None)
    state.set_status(THREE, "live", previous=ONE)
    state.set_status(TWO, "live", previous=THREE)
    assert state.rollback_target(TWO) == THREE
    assert state.rollback_target(THREE) == ONE
    assert state.rollback_target(ONE) is None and state.rollback_target(None) is None
    state.set_status(THREE, "bad")
    assert state.rollback_target(TWO) == ONE
    state.forget(THREE)
    assert state.rollback_target(TWO) == ONE
    assert stored(layout)["releases"][ONE]["previous"] is None
    os.rmdir(layout.release(ONE))
    assert state.rollback_target(TWO) is None


def test_two_alternating_releases_are_the_rollback_targets_of_each_other(layout):
    state = states.State(layout)
    state.set_status(ONE, "live", previous=TWO)
    state.set_status(TWO, "live", previous=ONE)
    assert state.rollback_target(ONE) == TWO and state.rollback_target(TWO) == ONE
    state.set_status(THREE, "live", previous=TWO)
    for name in (ONE, TWO):
        state.set_status(name, "bad")
    assert state.rollback_target(THREE) is None


def test_a_release_that_was_never_live_is_no_target(layout):
    state = states.State(layout)
    state.set_status(ONE, "ready")
    state.set_status(TWO, "live", previous=ONE)
    assert state.rollback_target(TWO) is None


# -------------------------------------------------------------------------------------------------------------- audit


def test_the_audit_log_only_grows_and_each_event_is_one_line(layout):
    def write(number):
        for count in range(20):
            states.audit(layout, "note", who="利用者", text="a\nb", number=number * 100 + count)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = os.path.join(layout.state, "audit.jsonl")
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    assert text.count("利用者") == 80
    lines = [json.loads(line) for line in text.splitlines()]
    assert sorted(line["number"] for line in lines) == sorted(
        number * 100 + count for number in range(4) for count in range(20)
    )
    assert lines[0]["event"] == "note" and lines[0]["who"] == "利用者" and lines[0]["time"].endswith("Z")
    assert os.stat(path).st_mode & 0o137 == 0


def test_the_last_switch_is_the_one_to_the_release_that_is_active(layout):
    assert states.last_switch(layout) is None
    layout.point_slot("blue", TWO)
    layout.activate("blue")
    events = [
        b"\xff", b"[]", b'{"time": "yesterday", "event": "live"}',
        *(
            json.dumps({"time": "2026-01-01T00:00:%02dZ" % second, "event": event, "target": target}).encode()
            for second, event, target in (
                (1, "live", ONE), (2, "switched", TWO), (3, "reverted", TWO), (4, "switched", TWO),
                (5, "switched", ONE), (6, "note", TWO), (7, "live", ONE),
            )
        ),
    ]  # fmt: skip
    path = os.path.join(layout.state, "audit.jsonl")
    with open(path, "wb") as stream:
        stream.write(b"\n".join(events) + b"\n")
    assert states.last_switch(layout) == (1767225603, 1767225604)
    # By what is at its end.
    with open(path, "ab") as stream:
        stream.write(b"x" * 128 * 1024)
    assert states.last_switch(layout) is None


# ---------------------------------------------------------------------------------------------------- the host's lock


def test_the_hosts_lock_is_waited_for(layout, monkeypatch):
    """And once it is held, what a killed module has left running is ended."""
    done = []
    monkeypatch.setattr(states.releasecode, "end_abandoned", lambda: done.append("ended"))
    path, before = os.path.join(layout.state, "operation.lock"), len(os.listdir("/proc/self/fd"))
    holder = states.held(path, 0, ValueError())
    holder.__enter__()
    monkeypatch.setattr(states.time, "sleep", lambda _seconds: holder.__exit__(None, None, None))
    with states.exclusive(layout, wait_seconds=9):
        assert done == ["ended"]
    assert os.stat(path).st_mode & 0o777 == 0o600 and len(os.listdir("/proc/self/fd")) == before


def test_the_hosts_lock_excludes_others_and_ends_with_its_owner(layout):
    code = (
        "import sys; sys.path.insert(0, %r)\nfrom module_utils.shiftmaster.release import state, layout\n"
        "with state.exclusive(layout.Layout(%r)):\n    print('held', flush=True)\n    input()\n"
    ) % (os.path.abspath(os.path.join(os.path.dirname(states.__file__), "..", "..", "..")), layout.root)
    with subprocess.Popen((sys.executable, "-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(states.StateError, match="another operation is still at work"),
            states.exclusive(layout, wait_seconds=0.1),
        ):
            pass
        holder.kill()
    with states.exclusive(layout, wait_seconds=0.1):
        pass


# -------------------------------------------------------------------------------------------------------------- links


def test_only_directories_with_a_releases_name_are_releases(layout):
    for name in ("old", THREE + ".removing", ".x", "20260101-1234567"):
        os.makedirs(os.path.join(layout.releases, name))
    assert layout.names() == [ONE, TWO, THREE]
    assert layouts.Layout("/nowhere").names() == []


@pytest.mark.parametrize("name", ["../x", "20260101T000000Z-", "20260101T000000Z-123456", ONE + "/..", ONE + "\n", ""])
def test_an_invalid_name_of_a_release_is_not_followed(layout, name):
    with pytest.raises(ValueError, match="is not the name of a release"):
        layout.release(name)


def test_one_link_defines_the_live_release(layout):
    assert (layout.active_slot(), layout.current(), layout.idle_slot()) == (None, None, "blue")
    layout.point_slot("blue", ONE)
    layout.point_slot("green", TWO)
    assert layout.current() is None
    layout.activate("blue")
    assert (layout.active_slot(), layout.current(), layout.idle_slot()) == ("blue", ONE, "green")
    layout.activate("green")
    assert (layout.active_slot(), layout.current(), layout.idle_slot()) == ("green", TWO, "blue")
    assert os.path.realpath(os.path.join(layout.active, "release")) == layout.release(TWO)
    assert os.readlink(os.path.join(layout.active, "socket")) == "/run/shiftmaster-web-green/web.sock"


def test_an_active_link_to_something_else_is_no_slot(layout):
    os.symlink("slots/red", layout.active)
    assert layout.active_slot() is None and layout.current() is None


def test_a_link_is_never_absent_while_it_is_replaced(layout):
    layout.point_slot("blue", ONE)
    layout.point_slot("green", TWO)
    layout.activate("blue")
    missed, stop = [], threading.Event()

    def watch_link():
        while not stop.is_set():
            if layout.current() not in (ONE, TWO):
                missed.append(1)

    thread = threading.Thread(target=watch_link)
    thread.start()
    for number in range(200):
        layout.activate(("green", "blue")[number % 2])
    stop.set()
    thread.join()
    assert missed == []


def test_files_of_a_killed_replacement_do_not_disturb(layout):
    layout.point_slot("blue", ONE)
    os.symlink("somewhere", layout.active + ".new")
    layout.activate("blue")
    assert layout.current() == ONE and not os.path.lexists(layout.active + ".new")
