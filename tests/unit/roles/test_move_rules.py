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
        "move_to": "new", "move_back": False,
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
    state = {**host(), "release": ""}
    served = {"stdout_lines": ["database", "cache", "open"]}
    both = rules("__move_found_of_growth_hosts", *hosts, __move_peer_state=state, __move_forwards=served)
    assert len(both) == 1 and "Both hosts have a primary" in both[0]
    # The new host was lost when it had become a primary, and the first one went on.
    both = rules("__move_found_of_growth_hosts", *hosts, __move_peer_state=state)
    assert len(both) == 1 and "pg_dropcluster --stop 17 main && pg_createcluster --start 17 main" in both[0]


def test_a_function_that_was_moved_earlier_stays_where_it_is():
    hosts = host(standby=True), {**host(), "release": ""}
    earlier = {"stdout_lines": ["database", "open"]}
    assert rules("__move_left", *hosts, __move_forwards=earlier) == ["cache"]
    assert (
        rules(
            "__move_found_of_growth + __move_found_of_growth_hosts + __move_found_of_back",
            *hosts,
            __move_forwards=earlier,
        )
        == []
    )
    # Also where its server has been removed since.
    gone = host("", version=0)
    assert rules("__move_found_of_growth_hosts", gone, hosts[1], __move_forwards=earlier) == []
    # Two primaries, of which users have worked with the new one: it is not to be removed.
    both = rules("__move_found_of_growth_hosts", host(), hosts[1], __move_forwards=earlier)
    assert len(both) == 1 and "pg_dropcluster" not in both[0]


def test_a_growth_has_ended_when_both_functions_are_forwarded():
    grown = host(standby=True), {**host(), "release": ""}
    served = {"stdout_lines": ["database", "cache", "open"]}
    assert rules("__move_grown", *grown, __move_forwards=served) is True
    assert rules("__move_grown", *grown, __move_forwards={"stdout_lines": ["database", "open"]}) is False
    # Killed while requests waited.
    assert rules("__move_grown", *grown, __move_forwards={"stdout_lines": ["database", "cache"]}) is False


def test_the_way_back_of_a_growth_ends_when_users_have_worked_with_the_new_host():
    lost = {**host("2"), "reached": False}
    served = {"stdout_lines": ["database", "cache"]}
    found = rules("__move_found_of_growth", host(), lost)
    assert len(found) == 2 and "-e back=true" in found[1]
    assert len(rules("__move_found_of_growth", host(), lost, __move_forwards=served)) == 1
    assert rules("__move_found_of_growth + __move_found_of_back", host(), lost, move_back=True) == []
    (found,) = rules("__move_found_of_back", host(), lost, move_back=True, __move_forwards=served)
    assert "rows are there that old lacks" in found


def test_a_move_is_ended_alone_where_the_other_host_is_lost():
    def lost(name, step, **more):
        known = {"move_problems": [], "move_confirm": "", "move_step": step, "move_noted": {"role": "source"}, **more}
        return rules(name, host(), rules("__move_unknown", host(), host()), **known)

    assert lost("__move_found", "commit") == lost("__move_found_of_both", "commit") == []
    for step in ("prepare", "switch", "back"):
        (found,) = lost("__move_found", step, move_noted={"role": "source", "address": "new"})
        assert "old serves alone by: -e step=commit -e confirm=new" in found
    # Nothing was prepared: there is no move that could be ended.
    assert lost("__move_found", "commit", move_noted={}) != []


def test_a_host_whose_move_has_ended_is_deployed_again():
    new = host(standby=True)
    assert rules("move_deploy_needed", host(), new, move_step="prepare") is False
    assert rules("move_deploy_needed", host(), {**new, "noted": {"ended": True}}, move_step="prepare") is True
