"""The upgrade of PostgreSQL: one cluster is live, with all rows, wherever a run is killed."""

from __future__ import annotations

import json

import postgresql_upgrade as upgrade
import pytest
from ansible.module_utils.shiftmaster.host import points

OLD, NEW = 15, 17


class Killed(BaseException):
    """Nothing of the run's own cleans up after that."""


class Server:
    """A cluster as the module uses one; what it knows outlives a killed run."""

    def __init__(self, version, rows=None):
        self.version, self.rows = version, rows
        self.automatic = self.running = self.private = False
        self.port = "5432"
        self.unit, self.configuration, self.data = f"postgresql@{version}", "/nonexistent", "/nonexistent"

    @property
    def present(self):
        return self.rows is not None

    def program(self, name):
        return f"/nonexistent/{self.version}/{name}"

    def socket(self):
        return ["--host", "/run/postgresql", "--port", self.port]

    def set_start(self, mode):
        self.automatic = mode == "auto"

    def start(self):
        assert self.present and not self.private
        self.running = True

    def stop(self):
        self.running = False

    def start_private(self, _work, _port, **_settings):
        assert not self.running
        self.private = True

    def stop_private(self):
        self.private = False

    def counted(self):
        assert self.running or self.private
        return {"shiftmaster": {"tables": {"public.shift": self.rows}, "sequences": {"public.shift_id_seq": self.rows}}}

    def databases(self):
        return ["shiftmaster"]


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Both clusters, of which the old one is live with 100 rows."""
    servers = {OLD: Server(OLD, 100), NEW: Server(NEW)}
    servers[OLD].automatic = servers[OLD].running = True
    monkeypatch.setattr(upgrade, "STATE", str(tmp_path / "state.json"))
    monkeypatch.setattr(upgrade, "Cluster", lambda version, _timeout: servers[version])
    monkeypatch.setattr(upgrade, "running", lambda cluster: cluster.running)
    monkeypatch.setattr(upgrade, "statistics", lambda cluster, first: None)
    monkeypatch.setattr(upgrade.units, "systemctl", lambda *words, **more: "")
    kinds = upgrade.Upgrade

    def drop(self, cluster):
        assert not cluster.automatic
        cluster.rows, cluster.running, cluster.private = None, False, False

    def prepare(self):
        self.note(upgrade.PREPARED)
        points.reach("postgresql_prepared")
        servers[NEW].rows = 0

    def pg_upgrade(self, old, new, work, port):
        assert not old.running and not new.running
        new.rows = old.rows

    def copy_back(self, _name):
        assert servers[OLD].private
        servers[OLD].rows = servers[NEW].rows

    monkeypatch.setattr(kinds, "drop", drop)
    monkeypatch.setattr(kinds, "prepare", prepare)
    monkeypatch.setattr(kinds, "pg_upgrade", pg_upgrade)
    monkeypatch.setattr(kinds, "copy_back", copy_back)
    monkeypatch.setattr(kinds, "make_work", lambda self: None)
    monkeypatch.setattr(kinds, "found_version", lambda self: OLD if servers[OLD].present else NEW)
    return servers


def begin():
    return upgrade.Upgrade(NEW, 5432, 60)


def move(servers):
    """Run the steps of an upgrade, each as a call of its own."""
    begin().prepare()
    begin().upgrade()
    servers[NEW].start()
    begin().compare()
    begin().make_live()


def live(servers):
    """Settle as the next run does; returns the live cluster after checking that there is one."""
    begin().recover()
    (one,) = [server for server in servers.values() if server.automatic]
    assert [server.version for server in servers.values() if server.running] == [one.version]
    assert not any(server.private for server in servers.values())
    return one


def test_every_row_comes_over_and_back(host):
    move(host)
    assert live(host).version == NEW
    host[NEW].rows += 5
    begin().go_back()
    one = live(host)
    assert (one.version, one.rows) == (OLD, 105)
    # A run that ends before its backup is repeated.
    assert begin().read()["phase"] == upgrade.RETURNED and begin().recover() is False
    begin().complete()
    assert begin().read() == {}
    move(host)
    assert live(host).version == NEW


@pytest.mark.parametrize("point", points.UPGRADE_POINTS)
def test_a_killed_run_leaves_one_live_cluster_with_all_rows(host, monkeypatch, point):
    def reach(reached):
        if reached == point:
            raise Killed

    returning = point in points.UPGRADE_POINTS[-2:]
    if returning:
        move(host)
        host[NEW].rows = 105
    monkeypatch.setattr(points, "reach", reach)
    with pytest.raises(Killed):
        begin().go_back() if returning else move(host)
    monkeypatch.setattr(points, "reach", lambda reached: None)
    one = live(host)
    assert (one.version, one.rows) == ((NEW, 105) if returning else (OLD, 100))
    # The next run comes to its end.
    if returning:
        begin().go_back()
        assert live(host).rows == 105
    else:
        move(host)
        assert (live(host).version, live(host).rows) == (NEW, 100)


def test_a_power_failure_before_users_return_brings_up_the_old_cluster(host):
    begin().prepare()
    begin().upgrade()
    host[NEW].start()
    begin().compare()
    assert [server.version for server in host.values() if server.automatic] == [OLD]


def test_a_cluster_that_differs_does_not_become_the_live_one(host):
    begin().prepare()
    begin().upgrade()
    host[NEW].start()
    host[NEW].rows -= 1
    with pytest.raises(upgrade.Failed, match="99 instead of 100"):
        begin().compare()
    assert (live(host).version, live(host).rows) == (OLD, 100)


def test_a_cluster_that_the_application_does_not_find_does_not_become_the_live_one(host):
    begin().prepare()
    begin().upgrade()
    host[NEW].start()
    host[NEW].port = "5433"
    with pytest.raises(upgrade.Failed, match="listens on port 5433"):
        begin().compare()
    assert live(host).version == OLD


def test_rows_that_did_not_come_back_leave_the_new_cluster_live(host, monkeypatch):
    move(host)
    host[NEW].rows = 105
    monkeypatch.setattr(upgrade.Upgrade, "copy_back", lambda self, name: None)
    with pytest.raises(upgrade.Failed, match="100 instead of 105"):
        begin().go_back()
    assert (live(host).version, live(host).rows) == (NEW, 105)


def test_only_a_live_cluster_is_committed(host):
    assert begin().commit() is False
    begin().prepare()
    with pytest.raises(upgrade.Failed):
        begin().commit()
    assert host[OLD].present


def test_commit_removes_the_old_cluster(host):
    move(host)
    assert begin().commit() is True
    assert not host[OLD].present
    assert begin().commit() is False


def test_steps_out_of_order_are_refused(host):
    for step in ("upgrade", "compare", "go_back"):
        with pytest.raises(upgrade.Failed):
            getattr(begin(), step)()


def test_an_uncommitted_upgrade_to_another_version_is_refused(host, tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"old": OLD, "new": 16, "phase": "live"}), encoding="utf-8")
    with pytest.raises(upgrade.Failed, match="not committed"):
        begin()


def test_tables_and_sequences_of_one_side_are_differences():
    one = {"a": {"tables": {"t": 1}, "sequences": {"s": None}}}
    assert upgrade.differences(one, one) == []
    assert len(upgrade.differences(one, {})) == 2
    assert len(upgrade.differences({}, one)) == 2
    assert len(upgrade.differences(one, {"a": {"tables": {"t": 1}, "sequences": {"s": 1}}})) == 1


@pytest.mark.parametrize(("provider", "words"), [("c", 6), ("i", 9)])
def test_a_cluster_is_created_like_the_old_one(provider, words):
    template = {"datcollate": "C.UTF-8", "datctype": "C.UTF-8", "datlocprovider": provider, "daticulocale": "ja"}
    facts = {"template": template, "encoding": "UTF8", "checksums": False}
    assert len(upgrade.initdb_words(facts)) == words
    assert upgrade.initdb_words({**facts, "checksums": True})[-1] == "--data-checksums"
