"""The exchange of primary and standby: no two primaries, and no lost row, wherever a run is killed."""

from __future__ import annotations

import itertools

import postgresql_move as move
import pytest
from ansible.module_utils.shiftmaster.host import points

SYSTEM, START = "7301", 0x1000


class Killed(BaseException):
    """Nothing of the run's own cleans up after that."""


class Server:
    """A cluster as the module uses one; what it knows outlives a killed run."""

    def __init__(self, wal, standby=False):
        self.wal, self.marked, self.promoted, self.other = wal, standby, False, None
        self.running, self.start_mode, self.version, self.checkpoint = True, "auto", 17, wal
        self.unit, self.data, self.configuration, self.signal = "unit", "/nonexistent", "/nonexistent", "/nonexistent/s"
        self.state, self.system, self.rows = "in production", SYSTEM, {}

    @property
    def standby(self):
        return self.marked

    @property
    def primary(self):
        return self.running and not self.marked

    def write(self, count=1):
        assert self.primary
        self.wal += count
        # It follows while it runs and is connected.
        if self.other and self.other.running and self.other.marked:
            self.other.wal = self.wal

    def control(self):
        if not self.system:
            return {}
        place = "0/%X" % self.checkpoint
        names = ("Database system identifier", "Database cluster state", "Latest checkpoint location")
        return dict(zip(names, (self.system, self.state, place), strict=True))

    def stop(self):
        if self.primary:
            self.checkpoint = self.wal
            self.write()
        self.running, self.state = False, "shut down in recovery" if self.marked else "shut down"

    def mark(self):
        self.marked = True

    def set_start(self, mode):
        self.start_mode = mode

    @property
    def automatic(self):
        return self.start_mode == "auto"

    def start(self):
        self.start_server()

    def start_server(self):
        self.running, self.state = True, "in archive recovery" if self.marked else "in production"

    def recovering(self):
        return self.marked

    def query(self, sql, _database="postgres"):
        assert self.running, sql
        if "pg_promote" in sql:
            assert not self.other.primary, "two primaries"
            self.marked = False
            return "t"
        if "pg_create_physical_replication_slot" in sql:
            assert self.primary
            return ""
        if "pg_last_wal_replay_lsn" in sql:
            wanted = move.position(sql.split("'")[1])
            reached = self.wal > wanted or (self.wal == wanted and ">=" in sql)
            return "t" if not self.marked or reached else "f"
        if "pg_stat_wal_receiver" in sql:
            if not (self.other and self.other.primary):
                return "f"
            self.wal = self.other.wal
            return "t"
        return ""

    def counted(self):
        return {"shiftmaster": {"tables": {"public.shift": self.wal}, "sequences": {}}}


@pytest.fixture
def pair(monkeypatch):
    """The host that serves and the one that follows."""
    old, new = Server(START), Server(START, standby=True)
    old.other, new.other = new, old
    monkeypatch.setattr(move.safe_files, "remove_tree", lambda path: None)
    return old, new


@pytest.fixture
def step(monkeypatch):
    """Request a state on a server, as the playbook does."""
    defaults = {
        "system_id": SYSTEM, "lsn": "", "counts": {}, "port": 15432, "user": "shiftmaster_move", "password": "x",
        "timeout_seconds": 5, "wait_seconds": 0.3, "followed": False,
    }  # fmt: skip

    def requested(server, state, **params):
        monkeypatch.setattr(move, "live_version", lambda: 17)
        monkeypatch.setattr(move, "Server", lambda version, timeout: server)
        monkeypatch.setattr(move.safe_files, "remove_tree", lambda path: setattr(server, "marked", False))
        return move.work({**defaults, **params, "state": state}, False)

    return requested


def switch(step, source, target):
    """The part of roles/move/tasks/switch.yml that concerns the servers."""
    if not target.primary:
        lsn = step(source, "demoted")["lsn"]
        step(target, "replayed", lsn=lsn)
        step(target, "promoted")
    step(source, "following")


def test_a_switch_and_the_way_back_lose_nothing(pair, step):
    old, new = pair
    for source, target in ((old, new), (new, old)):
        source.write(7)
        switch(step, source, target)
        assert target.primary and source.standby and source.running
        assert target.wal == source.wal
        target.write()
    assert old.wal > START + 14


@pytest.mark.parametrize("point", points.MOVE_POINTS)
def test_killed_it_is_completed_or_reverted(pair, step, monkeypatch, point):
    def reach(reached):
        assert not (pair[0].primary and pair[1].primary)
        if reached == point:
            raise Killed

    for completes in (True, False):
        old, new = pair[0], pair[1]
        old.write(3)
        monkeypatch.setattr(points, "reach", reach)
        with pytest.raises(Killed):
            switch(step, old, new)
        monkeypatch.setattr(points, "reach", lambda reached: None)
        wal = max(old.wal, new.wal)
        if completes or point == "move_promoted":
            switch(step, old, new)
            assert new.primary and new.wal >= wal
            switch(step, new, old)
        else:
            step(old, "reverted")
        assert old.primary and not new.primary and old.wal >= wal


@pytest.mark.parametrize("rows", [5, 0])
def test_what_the_standby_has_not_received_keeps_it_from_being_promoted(pair, step, rows):
    """Without rows it is the record of the shutdown alone."""
    old, new = pair
    old.other = None
    old.write(rows)
    lsn = step(old, "demoted")["lsn"]
    with pytest.raises(move.Failed, match="has not received"):
        step(new, "replayed", lsn=lsn)
    step(old, "reverted")
    assert old.primary and new.standby


def test_a_server_that_has_followed_is_not_reverted(pair, step):
    old, new = pair
    switch(step, old, new)
    with pytest.raises(move.Failed, match="has followed the other one"):
        step(old, "reverted")
    assert not old.primary


def test_a_server_that_a_reboot_has_started_is_demoted_and_reverted(pair, step):
    """The new host became a primary and was lost; the first one has rebooted, and is a standby that runs."""
    old, new = pair
    switch(step, old, new)
    assert old.running and old.standby
    step(old, "demoted")
    assert not old.running and old.standby
    old.start_server()
    new.running = False
    step(old, "reverted", followed=True)
    assert old.primary


def test_a_server_that_crashed_is_not_demoted(pair, step):
    old, _new = pair
    old.running, old.state = False, "in production"
    old.stop = lambda: None
    with pytest.raises(move.Failed, match="did not stop cleanly"):
        step(old, "demoted")
    assert not old.standby


@pytest.mark.parametrize("mode", ["auto", "disabled"])
def test_a_primary_with_the_same_data_is_not_replaced(pair, step, mode):
    _old, new = pair
    new.marked, new.start_mode = False, mode
    with pytest.raises(move.Failed, match="is a primary with the data"):
        step(new, "copied")
    assert new.running


def test_nothing_is_replaced_by_a_cluster_that_is_not_known(pair, step):
    _old, new = pair
    new.marked = False
    with pytest.raises(move.Failed, match="has no cluster that could be copied"):
        step(new, "copied", system_id="")
    assert new.running and new.start_mode == "auto"


def test_a_copy_that_was_killed_is_begun_again(pair, step, monkeypatch):
    old, new = pair
    new.marked, new.system = False, "another"
    new.program = lambda name: name
    monkeypatch.setattr(move.Move, "empty", lambda self: None)
    words = []

    def copied(_timeout, *command, env):
        words.append(command)
        assert not new.automatic, "a reboot would start what is not complete"
        if len(words) == 1:
            raise Killed
        new.system, new.wal = SYSTEM, old.wal

    monkeypatch.setattr(move, "as_postgres", copied)
    with pytest.raises(Killed):
        step(new, "copied")
    # The identifier is there before the rest is.
    new.system = SYSTEM
    assert step(new, "copied")["changed"]
    assert new.standby and new.automatic and len(words) == 2
    assert not step(new, "copied")["changed"] and len(words) == 2


def test_rows_that_differ_are_reported(pair, step):
    old, new = pair
    before = step(old, "counted")["counts"]
    assert step(new, "counted", counts=before)["rows"] == old.wal
    new.wal -= 1
    with pytest.raises(move.Failed, match="rows differ: public.shift of shiftmaster"):
        step(new, "counted", counts=before)


@pytest.mark.parametrize(
    ("before", "after", "fits"),
    [
        ([5, 1, 1], [5, 1, 1], True),
        ([5, 1, 1], [38, 1, 1], True),
        ([5, 1, 1], [39, 1, 1], False),
        ([33, 1, 1], [2, 1, 1], True),
        ([39, 1, 1], [5, 1, 1], False),
        ([-5, -2, 1], [-69, -2, 1], True),
        ([-5, -2, 1], [-73, -2, 1], False),
        ([5, 1, 20], [55, 1, 20], True),
        ([5, 1, 1], [5, 2, 1], False),
        ([None, 1, 1], [None, 1, 1], True),
        ([None, 1, 1], [1, 1, 1], False),
    ],
)
def test_sequences_of_a_standby_are_some_values_apart(before, after, fits):
    assert move.advanced(before, after) is fits


def test_positions_of_the_wal_are_compared_as_numbers():
    places = ["0/9FFFFFFF", "0/A0000000", "1/0", "10/0"]
    assert all(move.position(one) < move.position(other) for one, other in itertools.pairwise(places))
    with pytest.raises(move.Failed):
        move.position("0/1'; SELECT 1")
