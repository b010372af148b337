"""PostgreSQL 15 becomes 17 on one host and 15 again, with every row; then 17. Each test goes on from the one before."""

from __future__ import annotations

import ansible.module_utils
import pytest
from support import ROOT, SCENARIO_HOME, PageTime, kill_run

ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from ansible.module_utils.shiftmaster.host import points  # noqa: E402 - found where the line above leads.

LOG = SCENARIO_HOME / "postgresql_upgrade.log"
# For 2 GB, of which the demo has a part; on two cores next to another scenario.
PAGE_SECONDS = 60


@pytest.fixture
def host(host_of_all):
    return host_of_all


def test_a_deploy_refuses_a_live_cluster_of_another_version(host):
    run = host.run("deploy.yml", "--tags", "database", major=17)
    assert run.code == 2 and run.prints("The live cluster is of PostgreSQL 15"), run.output[-4000:]
    assert host.clusters() == [["15", "online"]]


def test_an_upgrade_needs_a_verified_backup(host):
    run = host.upgrade(confirm=host.host)
    assert run.code == 2 and run.prints("The last verified backup of the database is of never"), run.output[-4000:]
    assert host.run("playbooks/backup.yml", timeout=1800, kind="full", only="database").code == 0


@pytest.mark.parametrize("arguments", [(), ("--check",)])
def test_the_plan_changes_nothing(host, arguments):
    run = host.upgrade(*arguments, **({"confirm": host.host} if arguments else {}))
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]
    assert host.clusters() == [["15", "online"]]


@pytest.mark.parametrize("point", points.UPGRADE_POINTS[:4])
def test_a_killed_upgrade_is_reverted_by_the_next_run(host, point):
    before = host.rows()
    host.hold(point)
    process = host.start("playbooks/upgrade_postgresql.yml", LOG, major=17, confirm=host.host)
    try:
        host.wait_at(point, process, LOG)
    finally:
        kill_run(host, process)
        host.release_hold()
    # What was left is reverted first. Then the rehearsal fails, for the application does not find its database.
    run = host.upgrade(confirm=host.host, database_upgrade_port_variable="DB_HOST")
    assert run.code == 2, run.output[-4000:]
    assert (host.major(), host.page(), host.rows()) == (15, False, before)
    assert host.live_version(60)


def test_upgraded_with_every_row(host, capsys):
    before = host.rows()
    with PageTime(host) as page:
        run = host.upgrade(confirm=host.host)
    assert run.code == 0, run.output[-6000:]
    with capsys.disabled():
        print(f"\npage: {page.seconds:.0f} s, run: {run.seconds:.0f} s")
    assert run.prints("The rehearsal took", "sequences are the same"), run.output[-6000:]
    assert (host.major(), host.rows(), host.live_version(60)) == (17, before, "2.0.0")
    assert host.clusters() == [["15", "down"], ["17", "online"]]
    assert page.seconds <= PAGE_SECONDS
    again = host.upgrade(confirm=host.host)
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]


def test_the_backup_is_of_the_new_version_and_restorable(host):
    run = host.run("playbooks/restore.yml", timeout=1800, major=17, into="scratch")
    assert run.code == 0, run.output[-4000:]


def test_a_reboot_brings_up_the_new_cluster(host):
    host.reboot()
    host.wait_for_boot()
    assert host.live_version(120) and host.major() == 17


def test_back_with_the_rows_of_since_then(host):
    host.manage("seed_demo")
    host.sql("INSERT INTO django_content_type (app_label, model) VALUES ('since', 'then')")
    before = host.rows()
    run = host.upgrade(confirm=host.host, back="true")
    assert run.code == 0, run.output[-6000:]
    assert (host.major(), host.rows(), host.clusters()) == (15, before, [["15", "online"]])
    assert host.live_version(60) and not host.page()


def test_committed_there_is_one_cluster(host):
    before = host.rows()
    assert host.upgrade(confirm=host.host).code == 0
    assert host.upgrade(confirm=host.host, commit="true").code == 0
    assert (host.clusters(), host.rows()) == ([["17", "online"]], before)
    deploy = host.run("deploy.yml", timeout=1800, major=17)
    assert deploy.code == 0, deploy.output[-4000:]
