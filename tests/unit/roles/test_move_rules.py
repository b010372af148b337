"""What a move and a growth reject, by the rules of role move."""

from __future__ import annotations

import pytest
from ansible.template import trust_as_template
from rendered import templar


def host(system: str = "1", **database) -> dict:
    """A host as roles/move/tasks/query.yml leaves it."""
    found = {
        "version": 17, "system_id": system, "standby": False, "running": True, "streaming": True, "lag_bytes": 0,
        "size_bytes": 1, "free_bytes": 1 << 40, "problems": [], **database,
    }  # fmt: skip
    return {
        "reached": True, "noted": {}, "page": "", "database": found, "release": "a", "running": True, "files_bytes": 1,
        "architecture": "x86_64", "address": "192.0.2.1", "postgresql": found["version"],
    }  # fmt: skip


def rules(name: str, old: dict, new: dict, **variables) -> list:
    known = {
        "move_old": "old", "move_new": "new", "move_here": "old", "move_peer": "new", "move_noted": {},
        "move_to": "new",
        "__move_here_state": old, "__move_peer_state": new, "groups": {"app": ["old"], "all": ["old", "new"]},
        "__move_forwards": {"stdout_lines": []},
    }  # fmt: skip
    return templar("move", **{**known, **variables}).template(trust_as_template("{{ %s }}" % name))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (17, 17, None),
        # From Debian 12 to 13.
        (15, 17, "upgrade old in place first"),
        # From Debian 13 to 12.
        (17, 15, "install the release of Debian that old has"),
    ],
)
def test_a_replica_is_of_the_same_version(old, new, problem):
    found = rules("__move_found_of_copy", host(version=old), host("2", version=new))
    assert [text for text in found if problem and problem in text] == found and len(found) == (problem is not None)


def test_database_and_cache_leave_one_application_host():
    hosts = host(), {**host("2"), "release": ""}
    assert rules("__move_found_of_growth + __move_found_of_growth_hosts", *hosts) == []
    (found,) = rules("__move_found_of_growth", *hosts, groups={"app": ["old", "app2"], "all": ["old", "app2", "new"]})
    assert "old, app2" in found
    (found,) = rules("__move_found_of_growth", *hosts, move_parts=[])
    assert "neither group database nor group cache" in found
    (found,) = rules("__move_found_of_growth_hosts", host(), host("2"))
    assert "has an application" in found
    both = rules("__move_found_of_growth_hosts", *hosts, __move_peer_state={**host(), "release": ""})
    assert len(both) == 1 and "Both hosts have a primary" in both[0]


def test_a_growth_has_ended_when_both_functions_are_forwarded():
    grown = host(standby=True), {**host(), "release": ""}
    active = {"stdout_lines": ["active", "active"]}
    assert rules("__move_grown", *grown, __move_forwards=active) is True
    assert rules("__move_grown", *grown, __move_forwards={"stdout_lines": ["active", "inactive"]}) is False
    # Killed between the last row and the promotion.
    assert rules("__move_grown", grown[0], host(standby=True), __move_forwards=active) is False
