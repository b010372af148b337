"""The running database of a single host becomes a cluster and the only one again: no acknowledged row is lost."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
from database_cluster import CTL, Writer
from support import APP, AUTHORITIES, POINTS, SCENARIO_HOME, Operations, docker, wait_for

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"

LOG = SCENARIO_HOME / "convert.log"
ROWS = "SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM public.roster_assignment AS t"
DATABASE = ("--tags", "base,firewall,tls,etcd,database")


def test_a_cluster_of_a_part_of_the_hosts_is_rejected(members):
    """Before anything is changed: the database goes on."""
    first = members.hosts[0]
    run = first.run("deploy.yml", *DATABASE, "--limit", first.host)
    assert run.code == 2, run.output[-3000:]
    assert run.prints("Nothing was changed", "the first run with it needs all members"), run.output[-3000:]
    assert first.shell("systemctl is-active postgresql@17-main").strip() == "active"


def test_a_running_database_becomes_a_cluster(members, capsys):
    first = members.hosts[0]
    members.prepare(first)
    before = members.sql(ROWS, first, "shiftmaster")
    # As the application of the single host does it.
    writer = Writer(members, first, "convert", 1800, pinned=True)
    run = first.run("deploy.yml", *DATABASE, timeout=1700)
    writer.end()
    assert run.code == 0, run.output[-6000:]
    wait_for(members.complete, 240, "a primary that two standbys follow")
    result = writer.result()
    lost = writer.lost(result)
    with capsys.disabled():
        print(f"\n  {result['gap']:.1f} s without writes, {len(lost)} of {len(result['acknowledged'])} lost")
    assert lost == [] and len(result["acknowledged"]) > 100, result["errors"]
    assert members.primary() is first
    assert members.sql(ROWS, first, "shiftmaster") == before
    # Debian's unit has let go of it.
    assert first.shell("systemctl is-active postgresql@17-main; true").strip() == "inactive"
    assert first.shell("systemctl --failed --no-legend; true") == ""


def test_a_second_run_changes_nothing(members):
    run = members.hosts[0].run("deploy.yml", *DATABASE, timeout=900)
    assert (run.code, run.changed) == (0, 0), run.output[-6000:]


def test_the_application_follows_a_failover(members):
    """Its next deploy names all members, and sets the backups up; the first one is made."""
    first = members.hosts[0]
    run = first.run("deploy.yml", timeout=3600)
    assert run.code == 0, run.output[-6000:]
    run = first.run("playbooks/backup.yml", only="database", timeout=1800)
    assert run.code == 0, run.output[-4000:]
    environment = first.shell("cat /var/www/shiftmaster/active/release/env")
    assert all(address in environment for address in members.address.values())
    first.shell(f"{CTL} switchover --force --leader {first.host}")
    wait_for(members.complete, 240, "a primary that two standbys follow")
    assert members.primary() is not first
    assert first.live_version(60) == "2.0.0"


def test_the_first_member_is_rebuilt_by_pg_rewind_when_it_was_lost(members):
    """Its rights were granted by the takeover: Patroni does it in a cluster that it makes alone."""
    first, primary = members.hosts[0], members.primary()
    first.shell(f"{CTL} switchover --force --leader {primary.host} --candidate {first.host}")
    wait_for(members.complete, 240, "a primary that two standbys follow")
    docker("kill", first.host)
    wait_for(lambda: members.primaries(*members.hosts[1:]), 120, "another primary")
    members.heal()
    assert members.primary() is not first


def test_a_failover_during_a_backup(members):
    """Before, in and after the copy of the database; the next backup is complete, whatever has become of this one."""
    first, server = members.hosts[0], Operations(INVENTORY, "ha-convert-backup")
    points = ("backup_database", "backup_marked", "backup_verification")
    for point in points:
        server.hold(point)
    process = first.start("playbooks/backup.yml", LOG, only="database")
    try:
        for point in points:
            server.wait_at(point, process, LOG)
            primary = members.primary()
            primary.shell(f"{CTL} switchover --force --leader {primary.host}")
            wait_for(members.complete, 240, "a primary that two standbys follow")
            server.shell(f"rm -f {POINTS}/{point} {POINTS}/{point}.reached")
    finally:
        server.release_hold()
    code = process.wait(1800)
    assert code in (0, 2), LOG.read_text()[-4000:]
    run = first.run("playbooks/backup.yml", only="database", timeout=1800)
    assert run.code == 0, run.output[-4000:]


@pytest.fixture(scope="session")
def timestamp(members):
    """A time between two rows, of the cluster after its failovers."""
    primary = members.primary()
    sql = partial(members.sql, host=primary, database="shiftmaster")
    sql("CREATE TABLE kept (id int); ALTER TABLE kept OWNER TO shiftmaster; INSERT INTO kept VALUES (1)")
    time.sleep(2)
    found = sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS+00:00')").strip()
    time.sleep(2)
    sql("INSERT INTO kept VALUES (2)")
    sql("SELECT pg_switch_wal()")
    return found


def single(members):
    """The inventory in which the first host alone is in the group `database`."""
    return Operations(INVENTORY.parent / "single", members.hosts[0].host)


def test_a_failover_keeps_the_backups(members, timestamp):
    """The moment to which the database is restored later: the newest backup is of before the failovers."""
    run = members.hosts[0].run("playbooks/restore.yml", into="scratch", target=timestamp, timeout=1800)
    assert run.code == 0, run.output[-4000:]


def test_the_plan_of_the_way_back_changes_nothing(members):
    first = members.hosts[0]
    run = first.run("playbooks/leave_cluster.yml", host=first.host)
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]
    assert members.complete()
    run = first.run("playbooks/leave_cluster.yml", host="elsewhere", confirm="elsewhere")
    assert run.code == 2 and run.prints("Nothing was changed", "-e host= names one of"), run.output[-3000:]


def test_one_member_becomes_the_only_database(members, capsys):
    """It is not the primary before."""
    first, others = members.hosts[0], members.hosts[1:]
    assert members.primary() is not first
    writer = Writer(members, first, "back", 1200)
    run = first.run("playbooks/leave_cluster.yml", host=first.host, confirm=first.host)
    writer.end()
    assert run.code == 0, run.output[-6000:]
    result = writer.result()
    lost = writer.lost(result, first)
    with capsys.disabled():
        print(f"\n  {result['gap']:.1f} s without writes, {len(lost)} of {len(result['acknowledged'])} lost")
    assert lost == [] and len(result["acknowledged"]) > 100, result["errors"]
    active = first.shell("systemctl is-active postgresql@17-main patroni@17-main etcd; true").split()
    assert active == ["active", "inactive", "inactive"]
    for host in others:
        assert host.shell("pgrep -c -u postgres postgres; true").strip() == "0"
    # That of the backup server's receiver.
    assert members.sql("SELECT slot_name FROM pg_replication_slots", first).split() == ["shiftmaster_backup"]
    again = single(members).run("deploy.yml", timeout=1200)
    assert again.code == 0, again.output[-6000:]
    assert first.live_version(60) == "2.0.0"
    second = single(members).run("deploy.yml", timeout=1200)
    assert (second.code, second.changed) == (0, 0), second.output[-6000:]


def test_the_database_of_a_cluster_is_restored(members, timestamp):
    """As the guide has it: one member is left, restored, and the others copy it."""
    first, rows = members.hosts[0], "SELECT string_agg(id::text, ',') FROM kept"
    assert members.sql(rows, first, "shiftmaster").strip() == "1,2"
    run = single(members).run("playbooks/restore.yml", target=timestamp, confirm=first.host, timeout=1800)
    assert run.code == 0, run.output[-6000:]
    assert members.sql(rows, first, "shiftmaster").strip() == "1"
    run = first.run("deploy.yml", "--tags", "base,tls,database", timeout=1700)
    assert run.code == 0, run.output[-6000:]
    wait_for(members.complete, 240, "a primary that two standbys follow")
    for host in members.hosts:
        assert members.sql(rows, host, "shiftmaster").strip() == "1"
    run = first.run("deploy.yml", timeout=3600)
    assert run.code == 0, run.output[-6000:]
    assert first.live_version(60) == "2.0.0"
    run = first.run("playbooks/backup.yml", only="database", timeout=1800)
    assert run.code == 0, run.output[-4000:]


def test_a_cluster_whose_hosts_are_all_lost_is_recovered_from_the_off_site_copy(members, capsys):
    """The backup server is lost with them: one host comes back, and the others copy it."""
    first, server = members.hosts[0], Operations(INVENTORY, "ha-convert-backup")
    plan = f"{APP}/shared/media/plan.pdf"
    first.shell(f"head -c 300000 /dev/urandom > {plan} && chown shiftmaster: {plan}")
    run = first.run("playbooks/backup.yml", timeout=1800)
    assert run.code == 0, run.output[-4000:]
    before = members.sql(ROWS, database="shiftmaster"), first.shell(f"sha256sum {plan}")
    for host in (*members.hosts, server):
        host.replace()
    recover = {"backups": "offsite", "confirm": first.host, "timeout": 5400}
    run = first.run("playbooks/recover.yml", *AUTHORITIES, **recover)
    assert run.code == 2, run.output[-3000:]
    assert run.prints("Nothing was changed", "leave one host in the group database"), run.output[-3000:]
    began = time.monotonic()
    run = single(members).run("playbooks/recover.yml", *AUTHORITIES, **recover)
    assert run.code == 0, run.output[-8000:]
    served = time.monotonic() - began
    assert first.live_version(60) == "2.0.0"
    assert (members.sql(ROWS, first, "shiftmaster"), first.shell(f"sha256sum {plan}")) == before
    run = first.run("deploy.yml", *DATABASE, *AUTHORITIES, timeout=1800)
    assert run.code == 0, run.output[-6000:]
    wait_for(members.complete, 240, "a primary that two standbys follow")
    run = first.run("deploy.yml", *AUTHORITIES, timeout=3600)
    assert run.code == 0, run.output[-6000:]
    with capsys.disabled():
        print(f"\n  served after {served:.0f} s, a cluster again after {time.monotonic() - began:.0f} s")
    for host in members.hosts:
        assert members.sql(ROWS, host, "shiftmaster") == before[0]
    assert first.live_version(60) == "2.0.0"
    run = first.run("playbooks/backup.yml", timeout=1800)
    assert run.code == 0, run.output[-4000:]
