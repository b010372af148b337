"""One host becomes three, as the guide describes it. Each test goes on from the one before."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest
from support import ROOT, SCENARIO_HOME, address_of, all_ran_once, docker, enqueue, kill_run, load, wait_for

LOG = SCENARIO_HOME / "grow.log"
# A few users, who wait longer than requests are held: the hosts share two cores with other steps.
LOAD = ("--clients", "2", "--rate", "3", "--timeout", "60")
MEDIA = "/var/www/shiftmaster/shared/media"
ENVIRONMENT = "/var/www/shiftmaster/active/release/env"


def run_until(site, task: str, **extra) -> None:
    """Start a run, and kill it when it has reached a task."""
    process = site.app1.start("playbooks/grow.yml", LOG, **extra)
    try:
        reached = f"TASK [move : {task}]"
        wait_for(lambda: process.poll() is not None or reached in LOG.read_text(), 1500, task)
        assert process.poll() is None, LOG.read_text()[-5000:]
    finally:
        kill_run(site.app1, process, site.data)


def test_an_empty_database_gets_no_release(site):
    site.app1.sql("CREATE DATABASE other OWNER shiftmaster", "postgres")
    run = site.app1.run("deploy.yml", "--tags", "release", shiftmaster_database_name="other")
    assert run.code == 2 and run.prints("is empty, and version 2.0.0 is live with another one"), run.output[-4000:]
    assert site.app1.live_version() == "2.0.0" and site.app1.sql("SELECT count(*) FROM auth_user") != "0"
    assert site.app1.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", "other") == "0"


def test_what_cannot_be_done_is_named(site, grow):
    run = site.app1.run("playbooks/grow.yml", to="nosuch")
    assert run.code == 2 and run.prints("Nothing was changed", "The inventory has no host nosuch"), run.output[-3000:]
    grow("database", "grow-data")
    run = site.app1.run("playbooks/grow.yml", to="grow-data", confirm="grow-trixie")
    assert run.code == 2 and run.prints("confirm is grow-trixie, but the new host is grow-data"), run.output[-3000:]


def test_the_plan_changes_nothing(site):
    run = site.app1.run("playbooks/grow.yml", to="grow-data")
    assert (run.code, run.changed) == (0, 0) and run.prints("Nothing was changed. To do it"), run.output[-3000:]


@contextlib.contextmanager
def paused(host):
    """As if its machine had lost its power: nothing there answers, and no connection ends."""
    docker("pause", host.host)
    try:
        yield
    finally:
        docker("unpause", host.host)


def test_an_inventory_whose_data_have_not_moved_is_rejected_before_anything_changes(site):
    run = site.app1.run("deploy.yml")
    assert run.code == 2 and run.changed == 0, run.output[-3000:]
    assert run.prints("Nothing was changed", "./shiftmaster grow database grow-data"), run.output[-3000:]


def test_the_first_host_serves_where_the_new_one_is_lost_as_a_primary(site):
    users = site.app1.sql("SELECT count(*) FROM auth_user")
    site.data.hold("move_promoted")
    process = site.app1.start("playbooks/grow.yml", LOG, to="grow-data", confirm="grow-data")
    site.data.wait_at("move_promoted", process, LOG)
    with paused(site.data):
        assert process.wait(900) == 2, LOG.read_text()[-5000:]
        assert site.app1.primary() and site.app1.live_version(60) == "2.0.0"
        assert site.app1.sql("SELECT count(*) FROM auth_user") == users
        assert site.app1.active("shiftmaster-worker@blue", "shiftmaster-worker@green").count("active") == 1
    site.data.release_hold()
    # Both are primaries now, and one of them was of use.
    assert site.data.primary()
    run = site.app1.run("playbooks/grow.yml", to="grow-data", confirm="grow-data")
    command = "pg_dropcluster --stop 17 main && pg_createcluster --start 17 main"
    assert run.code == 2 and run.changed == 0 and run.prints(command), run.output[-4000:]
    site.data.shell(command)


def test_a_growth_that_was_killed_is_given_up_without_the_new_host(site):
    users = site.app1.sql("SELECT count(*) FROM auth_user")
    site.data.hold("move_replayed")
    process = site.app1.start("playbooks/grow.yml", LOG, to="grow-data", confirm="grow-data")
    try:
        site.data.wait_at("move_replayed", process, LOG)
    finally:
        kill_run(site.app1, process, site.data)
        site.data.release_hold()
    assert not site.app1.primary(), "no host has a primary"
    # As at a reboot of the first host.
    site.app1.shell("systemctl start postgresql@17-main")
    assert not site.app1.primary()
    assert site.app1.shell("systemctl is-enabled shiftmaster.service || true").strip() == "disabled"
    with paused(site.data):
        run = site.app1.run("playbooks/grow.yml", to="grow-data", confirm="grow-data")
        assert run.code == 2 and run.prints("grow-data cannot be reached", "-e back=true"), run.output[-4000:]
        run = site.app1.run("playbooks/grow.yml", to="grow-data", back=True)
        assert (run.code, run.changed) == (0, 0) and run.prints("database stays on"), run.output[-4000:]
        run = site.app1.run("playbooks/grow.yml", to="grow-data", back=True, confirm="grow-data")
        assert run.code == 0, run.output[-5000:]
        assert site.app1.primary() and site.app1.live_version(60) == "2.0.0"
        assert site.app1.sql("SELECT count(*) FROM auth_user") == users
        assert site.app1.sql("SELECT count(*) FROM pg_replication_slots") == "0"


def test_the_database_moves_while_users_work_also_after_a_killed_run(site, capsys):
    users = site.app1.sql("SELECT count(*) FROM auth_user")
    with load(site.app1, *LOAD, seconds=5400) as current:
        run_until(site, "Ahead | Stop the scheduler and the workers", to="grow-data", confirm="grow-data")
        run = site.app1.run("playbooks/grow.yml", timeout=3600, to="grow-data", confirm="grow-data")
    assert run.code == 0, run.output[-6000:]
    with capsys.disabled():
        waited = [line.strip() for line in run.output.splitlines() if "requests waited" in line]
        print(f"\n{waited}, {current.summary['requests']} requests")
    current.assert_flawless()
    assert site.data.primary() and not site.app1.primary()
    assert site.data.sql("SELECT count(*) FROM auth_user") == users
    assert site.data.sql("SELECT count(*) FROM pg_replication_slots") == "0"
    back = site.app1.run("playbooks/grow.yml", to="grow-data", back=True, confirm="grow-data")
    assert back.code == 2 and back.changed == 0 and back.prints("rows are there that"), back.output[-4000:]
    environment = site.app1.shell(f"cat {ENVIRONMENT}")
    assert "verify-full" in environment and address_of("grow-data") in environment
    again = site.app1.run("playbooks/grow.yml", timeout=1800, to="grow-data", confirm="grow-data")
    assert (again.code, again.changed) == (0, 0) and again.prints("Nothing is left to move"), again.output[-4000:]


def test_the_database_is_open_to_the_named_hosts_only(site):
    address = address_of("grow-data")
    reach = f"timeout 3 bash -c '</dev/tcp/{address}/5432' && echo yes || true"
    assert site.app1.shell(reach).strip() == "yes" and site.app2.shell(reach).strip() == ""
    with pytest.raises(OSError):
        socket.create_connection((address, 5432), 3)


def test_the_cache_moves_and_no_task_is_lost_where_a_run_is_killed(site, grow):
    grow("cache", "grow-data")
    site.app1.shell("systemctl stop 'shiftmaster-worker@*'")
    enqueue(site.app1, "waiting", 0, 20)
    run_until(site, "Switch | Promote Redis of the new host", to="grow-data", confirm="grow-data")
    # The database, which was moved before, would stay where it is.
    run = site.app1.run("playbooks/grow.yml", to="grow-data", back=True)
    assert run.code == 0 and run.prints("cache stays on") and not run.prints("database and cache"), run.output[-4000:]
    run = site.app1.run("playbooks/grow.yml", timeout=3600, to="grow-data", confirm="grow-data")
    assert run.code == 0, run.output[-6000:]
    assert site.app1.live_version(60) == "2.0.0" and site.app1.active("redis-server") == ["inactive"]
    assert "rediss://" in site.app1.shell(f"cat {ENVIRONMENT}")
    all_ran_once(site.app1, "waiting", 20)


def test_both_hosts_are_healthy_and_the_first_one_makes_no_backups(site):
    timers = "systemctl list-unit-files --no-legend --state=enabled 'shiftmaster-backup*.timer' || true"
    assert site.app1.shell(timers).strip() == "" and "shiftmaster-backup.timer" in site.data.shell(timers)
    run = site.app1.run("playbooks/health.yml")
    assert run.code == 0, run.output[-4000:]


def test_the_backup_of_the_new_host_is_restorable(site):
    run = site.app1.run("playbooks/restore.yml", timeout=3600, into="scratch")
    assert run.code == 0, run.output[-4000:]


def test_an_application_host_without_the_files_is_rejected(site, grow):
    grow("app", "grow-app2")
    run = site.app1.run("deploy.yml")
    assert run.code == 2 and run.prints("what a user uploads to one must be there on all"), run.output[-3000:]
    run = site.app1.run("deploy.yml", topology_media_shared=True)
    assert run.code == 2 and run.prints(
        "grow-app2: the directory of uploaded files is empty, and grow-trixie has files"
    ), run.output[-3000:]


def test_a_further_application_host_under_load(site, capsys):
    guide = (ROOT / "docs/guide/16-several-hosts.md").read_text().split("## A further application host\n")[1]
    blocks = [block for block in guide.split("\n## ")[0].split("```\n")[1::2] if "mount" in block]
    storage = "mount -t nfs4 nas.example.jp:/shiftmaster"
    assert len(blocks) == 2 and all(storage in block for block in blocks)
    first, second = (block.replace(storage, "mount --bind /srv/storage") for block in blocks)
    with load(site.app1, *LOAD, seconds=5400) as current:
        site.app1.shell("set -e\n" + first, timeout=300)
        user = site.app1.shell("id -u shiftmaster").strip()
        site.app2.shell("set -e\n" + second.replace("NUMBER", user), timeout=300)
        run = site.app1.run("deploy.yml", timeout=3600, topology_media_shared=True)
    assert run.code == 0, run.output[-6000:]
    with capsys.disabled():
        print(f"\n{current.summary['requests']} requests, {current.summary['failed']} failed")
    current.assert_flawless()
    for _ in range(8):
        assert site.app1.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/login/") == "200"
    log = "tail -n 12 /var/log/nginx/shiftmaster_access.log"
    requested = {json.loads(line).get("upstream_addr") for line in site.app1.shell(log).splitlines()}
    assert {f"{address_of(name)}:8443" for name in ("grow-trixie", "grow-app2")} <= requested
    assert site.app2.live_version(60) == "2.0.0"
    site.app2.shell(f"runuser -u shiftmaster -- sh -c 'echo new > {MEDIA}/new.txt'")
    assert site.app1.shell(f"cat {MEDIA}/plan.txt {MEDIA}/new.txt").split() == ["plan", "new"]
    again = site.app1.run("deploy.yml", timeout=1800, topology_media_shared=True)
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]


def test_the_database_is_open_to_both_application_hosts(site):
    reach = f"timeout 3 bash -c '</dev/tcp/{address_of('grow-data')}/5432' && echo yes || true"
    assert [host.shell(reach).strip() for host in (site.app1, site.app2)] == ["yes", "yes"]
