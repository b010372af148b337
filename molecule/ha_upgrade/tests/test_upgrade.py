"""A cluster of PostgreSQL 15 becomes one of 17: one host is left, upgraded, and the other members copy it."""

from __future__ import annotations

from pathlib import Path

import pytest
from database_cluster import Members
from support import SCENARIO_HOME, Operations, PageTime, kill_run, wait_for

SCENARIO = Path(__file__).resolve().parents[1]
ROWS = "SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM public.roster_assignment AS t"
LOG = SCENARIO_HOME / "ha_upgrade.log"
DATABASE = ("--tags", "base,tls,etcd,database")


class Host(Operations):
    def page(self) -> bool:
        return self.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/") == "503"


@pytest.fixture(scope="session")
def members():
    hosts = [Host(SCENARIO / "inventory", f"ha-upgrade-{name}") for name in "abc"]
    found = Members(hosts, [f"172.30.87.{number}" for number in (11, 12, 13)])
    assert all(host.live_version(60) for host in hosts[:2]), "the hosts do not serve"
    hosts[0].manage("seed_demo")
    return found


@pytest.fixture(scope="session")
def single(members):
    """The inventory in which the first host alone has the database."""
    return Host(SCENARIO / "single", members.hosts[0].host)


def upgrade(host, *arguments, **extra):
    return host.run("playbooks/upgrade_postgresql.yml", *arguments, timeout=1800, **{"major": 17, **extra})


def major(members, host) -> int:
    return int(members.sql("SHOW server_version_num", host)) // 10000


def test_a_cluster_is_not_upgraded_in_place(members):
    first = members.hosts[0]
    run = upgrade(first, confirm=first.host)
    assert run.code == 2 and run.prints("Nothing was changed", "This is a cluster of"), run.output[-3000:]
    assert members.complete() and major(members, first) == 15


def test_one_member_is_left(members, single):
    first = members.hosts[0]
    before = members.sql(ROWS, members.primary(), "shiftmaster")
    run = first.run("playbooks/leave_cluster.yml", host=first.host, confirm=first.host)
    assert run.code == 0, run.output[-6000:]
    run = single.run("deploy.yml", timeout=1800)
    assert run.code == 0, run.output[-6000:]
    assert members.sql(ROWS, first, "shiftmaster") == before
    run = single.run("playbooks/backup.yml", timeout=1800, kind="full", only="database")
    assert run.code == 0, run.output[-4000:]


def test_each_application_host_has_to_be_part_of_the_run(members, single):
    """One that is left out would go on with its requests while the database is copied."""
    run = upgrade(single, "--limit", "ha-upgrade-a:ha-upgrade-backup", confirm=single.host)
    assert run.code == 2 and run.prints("Nothing was changed", "ha-upgrade-b"), run.output[-3000:]
    assert major(members, single) == 15


def test_a_killed_upgrade_is_reverted_on_each_host(members, single):
    """The next run starts the application on all hosts, although it fails itself: a rehearsal without a database."""
    before = members.sql(ROWS, single, "shiftmaster")
    single.hold("postgresql_stopped")
    process = single.start("playbooks/upgrade_postgresql.yml", LOG, major=17, confirm=single.host)
    try:
        single.wait_at("postgresql_stopped", process, LOG)
        assert single.page()
    finally:
        kill_run(single, process)
        single.release_hold()
    run = upgrade(single, confirm=single.host, database_upgrade_port_variable="DB_HOST")
    assert run.code == 2, run.output[-4000:]
    assert (major(members, single), single.page(), members.sql(ROWS, single, "shiftmaster")) == (15, False, before)
    assert [host.live_version(60) for host in members.hosts[:2]] == ["2.0.0"] * 2


def test_the_one_host_is_upgraded(members, single, capsys):
    before = members.sql(ROWS, single, "shiftmaster")
    with PageTime(single) as page:
        run = upgrade(single, confirm=single.host)
    assert run.code == 0, run.output[-6000:]
    with capsys.disabled():
        print(f"\n  page: {page.seconds:.0f} s, run: {run.seconds:.0f} s")
    assert page.seconds > 0 and not single.page()
    assert (major(members, single), members.sql(ROWS, single, "shiftmaster")) == (17, before)
    assert [host.live_version(60) for host in members.hosts[:2]] == ["2.0.0"] * 2
    again = upgrade(single, confirm=single.host)
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]
    run = single.run("playbooks/restore.yml", timeout=1800, major=17, into="scratch")
    assert run.code == 0, run.output[-4000:]


def test_the_other_members_copy_it(members, single):
    first = members.hosts[0]
    before = members.sql(ROWS, first, "shiftmaster")
    run = upgrade(single, confirm=single.host, commit="true")
    assert run.code == 0, run.output[-4000:]
    run = first.run("deploy.yml", *DATABASE, timeout=1800, major=17)
    assert run.code == 0, run.output[-6000:]
    wait_for(members.complete, 240, "a primary that two standbys follow")
    run = first.run("deploy.yml", timeout=2400, major=17)
    assert run.code == 0, run.output[-6000:]
    for host in members.hosts:
        assert (major(members, host), members.sql(ROWS, host, "shiftmaster")) == (17, before)
        clusters = host.shell("pg_lsclusters --no-header").splitlines()
        assert [line.split()[0] for line in clusters if "online" in line] == ["17"], clusters
        assert host.shell("systemctl --failed --no-legend; true") == ""
    again = first.run("deploy.yml", timeout=1800, major=17)
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]
    run = first.run("playbooks/backup.yml", timeout=1800, major=17, only="database")
    assert run.code == 0, run.output[-4000:]
