"""The health of a database cluster, by what Patroni of one member reports."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.shiftmaster.health import checks
from ansible.module_utils.shiftmaster.host import database_cluster, probe

NOW = 1_800_000_000
OWN = {
    "state": "running",
    "role": "replica",
    "replication_state": "streaming",
    "sync_standby": True,
    "dcs_last_seen": NOW - 1,
}
MEMBERS = [
    {"name": "db1", "role": "leader", "state": "running", "timeline": 3},
    {"name": "db2", "role": "sync_standby", "state": "streaming", "timeline": 3},
    {"name": "db3", "role": "replica", "state": "streaming", "timeline": 3},
]


def outcome(monkeypatch, own=OWN, members=MEMBERS, **cluster):
    bodies = {"/patroni": own, "/cluster": {"members": members, "scope": "17-main", **cluster}}

    def get(target, path, **_options):
        body = bodies[path]
        return probe.HttpResult(
            503 if body is None else 200, 0.1, body if isinstance(body, str) else json.dumps(body), None
        )

    monkeypatch.setattr(database_cluster.probe, "http_get", get)
    monkeypatch.setattr(database_cluster.time, "time", lambda: NOW)
    return checks.check_database_cluster({"timeout_seconds": 5}, None)


def changed(number, **values):
    return [one | values if place == number else one for place, one in enumerate(MEMBERS)]


@pytest.mark.parametrize(
    "status, reason, arguments",
    [
        ("healthy", "", {}),
        ("critical", "primary", {"members": changed(0, role="replica", state="starting")}),
        ("critical", "primary", {"members": changed(0, state="stopped")}),
        ("critical", "synchronous", {"members": changed(1, role="replica", state="stopped")}),
        ("critical", "etcd", {"own": OWN | {"dcs_last_seen": NOW - 60}}),
        ("critical", "member", {"own": OWN | {"state": "start failed"}}),
        ("warning", "member", {"members": changed(2, state="stopped")}),
        # It runs, and does not follow.
        ("warning", "member", {"members": changed(2, state="running")}),
        ("warning", "paused", {"pause": True}),
    ],
)
def test_status(monkeypatch, status, reason, arguments):
    found = outcome(monkeypatch, **arguments)
    assert (found.status, found.reason) == (status, reason)


def test_near_misses_are_healthy(monkeypatch):
    assert outcome(monkeypatch, own=OWN | {"dcs_last_seen": NOW - 15}).status == "healthy"
    # Before the first contact there is none.
    assert outcome(monkeypatch, own=OWN | {"dcs_last_seen": 0}).status == "healthy"


@pytest.mark.parametrize("body", ["<html>", "[]", '"x"', "null"])
def test_a_response_that_is_no_object_is_an_error(monkeypatch, body):
    with pytest.raises(probe.ProbeError):
        outcome(monkeypatch, own=body)


def test_values_of_another_type_do_no_harm(monkeypatch):
    hostile = [
        {"name": ["x"], "role": "leader", "state": "running"},
        "text",
        {"name": "y" * 5000, "role": {}, "state": None},
    ]
    found = outcome(monkeypatch, own={"role": {}, "state": [], "dcs_last_seen": "x"}, members=hostile)
    assert found.status == "critical"
