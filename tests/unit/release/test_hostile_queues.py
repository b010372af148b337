"""Data of a hostile version in the broker and among quarantined tasks prevents no other version from running."""

from __future__ import annotations

import contextlib
import json
import os
import types

import pytest
from ansible.module_utils.shiftmaster.release import celery_driver, releases, workers
from ansible.module_utils.shiftmaster.release.releasecode import matches

KNOWN = {"headers": {"task": "known", "id": "k"}}


class Redis:
    """Lists and strings of a Redis; a string in the place of a list is an error, as there."""

    def __init__(self, **keys):
        self.keys = keys

    def type(self, key):
        return {list: b"list", bytes: b"string"}.get(type(self.keys.get(key)), b"none")

    def _list(self, key):
        if not isinstance(self.keys.setdefault(key, []), list):
            raise RuntimeError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return self.keys[key]

    def lrange(self, key, _first, _last):
        return list(self._list(key))

    def lrem(self, key, _count, raw):
        self._list(key).remove(raw)

    def lpush(self, key, raw):
        self._list(key).insert(0, raw.encode())


def operations(client, **control):
    channel = types.SimpleNamespace(client=client, priority_steps=[0])
    connection = types.SimpleNamespace(default_channel=channel, transport=types.SimpleNamespace(driver_type="redis"))
    app = types.SimpleNamespace(
        tasks={"known": None},
        connection_for_write=lambda: contextlib.nullcontext(connection),
        control=types.SimpleNamespace(**control),
    )
    return celery_driver.Operations(app)


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b'"text"',
        b'{"headers": []}',
        b'{"headers": {"task": ["known"], "id": {}}}',
        b'{"headers": {"task": "x", "id": "%s"}}' % (b"a" * 300),
        b'{"headers": {"task": "x", "id": "../../x"}}',
        b'{"headers": {"task": "x", "id": "\\u0000"}}',
        b'{"headers": {"task": {"a": 1}, "id": 5}}',
    ],
)
def test_invalid_tasks_are_quarantined(tmp_path, raw):
    known = json.dumps(KNOWN).encode()
    redis = Redis(celery=[raw, known], mail=b"a string")
    response = operations(redis).quarantine({"queues": ["mail", "celery"], "directory": str(tmp_path)})
    assert len(response["quarantined"]) == 1 and redis.keys["celery"] == [known]
    assert matches(response, celery_driver.RESPONSES["quarantine"])
    (quarantined,) = tmp_path.iterdir()
    assert json.loads(quarantined.read_text())["queue"] == "celery"
    # Nor does it stop the next handover.
    again = operations(redis).replay({"directory": str(tmp_path)})
    assert again["replayed"] == [] and matches(again, celery_driver.RESPONSES["replay"])


def test_a_flood_of_tasks_is_quarantined_in_parts_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(celery_driver, "MOST_TASKS", 3)
    driver = operations(Redis(celery=[b"%d" % number for number in range(8)]))
    assert len(workers.quarantine(driver.quarantine, ["celery"], str(tmp_path))) == 8
    endless = {"quarantined": [{"task": None, "id": None, "queue": "celery"}], "more": True}
    assert len(workers.quarantine(lambda request: endless, ["celery"], str(tmp_path))) < 100


def test_more_quarantined_tasks_than_one_request_takes_are_replayed(tmp_path, monkeypatch):
    """Also after files that hold no task, and tasks that this release does not know."""
    monkeypatch.setattr(celery_driver, "MOST_TASKS", 3)
    for number in range(4):
        (tmp_path / f"a{number}.json").write_text("{")
        (tmp_path / f"b{number}.json").write_text(
            json.dumps({"message": {"headers": {"task": "other"}}, "key": "celery", "queue": "celery"})
        )
    for number in range(8):
        entry = {"message": KNOWN, "key": "celery", "queue": "celery"}
        (tmp_path / f"c{number}.json").write_text(json.dumps(entry))
    redis = Redis()
    driver = operations(redis)

    def call(request):
        response = driver.replay(request)
        assert matches(response, celery_driver.RESPONSES["replay"])
        return response

    replayed, unreadable = workers.replay(call, str(tmp_path))
    assert (len(replayed), unreadable, len(redis.keys["celery"])) == (8, 4, 8)
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["a"] * 4 + ["b"] * 4
    endless = {"replayed": [], "unreadable": 1, "next": "x"}
    assert workers.replay(lambda request: endless, str(tmp_path))[1] < 100


def test_a_file_without_a_task_stops_no_handover(tmp_path):
    """Code of every release can write to this directory, also where its build fails."""
    (tmp_path / "a.json").write_text("{")
    os.mkfifo(tmp_path / "b.json")
    (tmp_path / "c.json").mkdir()
    (tmp_path / "d.json").symlink_to("/dev/zero")
    (tmp_path / "e.json").write_text("[" * 100_000)
    (tmp_path / "f.json").write_text("[]")
    (tmp_path / "g.json").write_text(json.dumps({"message": KNOWN, "key": "mail", "queue": "mail"}))
    with open(tmp_path / "h.json", "wb") as stream:
        stream.truncate(1 << 40)
    (tmp_path / "i.json").write_text(json.dumps({"message": KNOWN, "key": "celery", "queue": ["celery"]}))
    redis = Redis(mail=b"a string")
    response = operations(redis).replay({"directory": str(tmp_path)})
    assert [one["task"] for one in response["replayed"]] == ["known"] and response["unreadable"] == 8
    assert len(redis.keys["celery"]) == 1 and matches(response, celery_driver.RESPONSES["replay"])


@pytest.mark.parametrize("reply", ["text", [], {"other": {"ok": ""}}, {"worker": "ok"}, {"worker": None}, None])
def test_a_worker_that_replies_anything_has_confirmed_nothing(reply):
    requested = []

    def cancel(queue, **_options):
        requested.append(queue)
        return [reply]

    found = operations(None, cancel_consumer=cancel).cancel({"worker": "worker", "queues": ["a", "b"]})
    # It is stopped then; waiting for each of its queues would take the time of the complete request.
    assert found == {"confirmed": False} and requested == ["a"]


@pytest.mark.parametrize("stats", [{"worker": {"total": []}}, {"worker": {"total": {"a": "b"}}}, {"worker": "x"}, []])
def test_statistics_of_another_form_count_nothing(stats):
    inspect = types.SimpleNamespace(stats=lambda: stats)
    assert operations(None, inspect=lambda **_options: inspect)._count("worker") == 0


@pytest.mark.parametrize("names", [{"queues": 101, "tasks": 1}, {"queues": 1, "tasks": 10_001}])
def test_a_release_has_no_endless_names(names, monkeypatch):
    response = {kind: ["x"] * count for kind, count in names.items()}
    monkeypatch.setattr(releases.ReleaseCode, "driver", lambda *_arguments: response)
    spec = {"celery_application": "app", "user": "nobody", "version": "1"}
    build = types.SimpleNamespace(spec=spec, path="/nonexistent")
    with pytest.raises(releases.BuildError, match="queues"):
        releases.Build.background(build)
