"""The running database of a single host becomes a cluster and the only one again: no acknowledged row is lost."""

from __future__ import annotations

from pathlib import Path

from database_cluster import CTL, Writer
from support import Operations, docker, wait_for

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"

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
    rows = "SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM public.roster_assignment AS t"
    members.prepare(first)
    before = members.sql(rows, first, "shiftmaster")
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
    assert members.sql(rows, first, "shiftmaster") == before
    # Debian's unit has let go of it.
    assert first.shell("systemctl is-active postgresql@17-main; true").strip() == "inactive"
    assert first.shell("systemctl --failed --no-legend; true") == ""


def test_a_second_run_changes_nothing(members):
    run = members.hosts[0].run("deploy.yml", *DATABASE, timeout=900)
    assert (run.code, run.changed) == (0, 0), run.output[-6000:]


def test_the_application_follows_a_failover(members):
    """Its next deploy names all members."""
    first = members.hosts[0]
    run = first.run("deploy.yml", "--tags", "app,release", timeout=900)
    assert run.code == 0, run.output[-6000:]
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


def single(members):
    """The inventory in which the first host alone is in the group `database`."""
    return Operations(INVENTORY.parent / "single", members.hosts[0].host)


def test_the_plan_of_the_way_back_changes_nothing(members):
    first = members.hosts[0]
    run = first.run("playbooks/single_database.yml", host=first.host)
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]
    assert members.complete()
    run = first.run("playbooks/single_database.yml", host="elsewhere", confirm="elsewhere")
    assert run.code == 2 and run.prints("Nothing was changed", "-e host= names one of"), run.output[-3000:]


def test_one_member_becomes_the_only_database(members, capsys):
    """It is not the primary before."""
    first, others = members.hosts[0], members.hosts[1:]
    assert members.primary() is not first
    writer = Writer(members, first, "back", 1200)
    run = first.run("playbooks/single_database.yml", host=first.host, confirm=first.host)
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
    assert members.sql("SELECT count(*) FROM pg_replication_slots", first).strip() == "0"
    again = single(members).run("deploy.yml", timeout=1200)
    assert again.code == 0, again.output[-6000:]
    assert first.live_version(60) == "2.0.0"
    second = single(members).run("deploy.yml", timeout=1200)
    assert (second.code, second.changed) == (0, 0), second.output[-6000:]
