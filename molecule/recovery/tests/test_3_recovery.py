"""Backups on another host, and the way back when the one that they are of is gone."""

from __future__ import annotations

import time

import pytest
from support import ROOT, wait_for

MEDIA = "/var/www/shiftmaster/shared/media"
# Name and content of each table that people write.
EVERY_TABLE = """
SELECT string_agg(relname || ' ' || (xpath('/row/c/text()', query_to_xml(format(
         'SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text)) AS c FROM %I AS t', relname),
       false, true, '')))[1]::text, ', ' ORDER BY relname)
FROM pg_stat_user_tables WHERE relname !~ '^(django_session|django_celery_|monitoring_)'
"""


@pytest.fixture(scope="module")
def saved(hosts):
    """Rows and a file of the host, saved and proven on the other one."""
    hosts.app.sql("CREATE TABLE IF NOT EXISTS precious (id serial PRIMARY KEY, text text)")
    hosts.app.sql("INSERT INTO precious (text) SELECT md5(g::text) FROM generate_series(1, 5000) AS g")
    hosts.app.sql("ALTER TABLE precious OWNER TO shiftmaster")
    hosts.app.shell(f"head -c 300000 /dev/urandom > {MEDIA}/plan.pdf && chown shiftmaster: {MEDIA}/plan.pdf")
    return hosts.keeper.backup(only="database,logical,files,configuration")


def test_everything_is_saved_on_the_other_host(hosts, saved):
    assert set(saved["parts"]) == {"database", "logical", "files", "configuration"}
    assert saved["parts"]["database"]["rows"]["shiftmaster.public.precious"] >= 5000
    listed = hosts.keeper.shell(
        "restic -r /var/backups/shiftmaster/restic -p /etc/shiftmaster-backup/restic.password ls "
        + saved["parts"]["configuration"]["label"]
    )
    assert "pulled/configuration/recovery-trixie/etc/ssl/private/shiftmaster.key" in listed
    # The database's host can neither read nor remove what is kept.
    assert hosts.app.shell("ls -A /var/backups/shiftmaster | grep -v pre-migration", check=False).strip() == ""


def test_the_keeper_may_read_what_is_listed_and_nothing_else(hosts, saved):
    ssh = (
        "ssh -i /etc/shiftmaster-backup/pull.key -o BatchMode=yes -o StrictHostKeyChecking=yes "
        "-o UserKnownHostsFile=/etc/shiftmaster-backup/known_hosts shiftmaster-backup@172.30.79.10"
    )
    assert "/etc/nginx" in hosts.keeper.shell(f"{ssh} paths")
    for command in (
        "id",
        "cat /etc/shadow",
        "rsync --server --sender -logDtpr . /etc/shadow",
        "rsync --server -logDtpr . /etc/nginx",
    ):
        done = hosts.keeper.shell(f"{ssh} {command} 2>&1; echo code $?", check=False)
        assert "allowed" in done and "code 0" not in done, done
    assert "uid=" not in hosts.keeper.shell(f"{ssh} 2>&1", check=False)


def test_wal_is_received_as_it_is_written(hosts, saved):
    assert hosts.app.sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'shiftmaster_backup'") == "t"
    hosts.app.sql("INSERT INTO precious (text) VALUES ('now')")
    wait_for(lambda: ".partial" in hosts.keeper.shell("ls /var/backups/shiftmaster/wal"), 30, "the segment")


def test_a_host_that_burned_comes_back_from_the_backups_and_the_keys(hosts, saved, capsys):
    every_file = f"cd {MEDIA} && find . -type f -exec sha256sum {{}} + | sort -k2"
    checksums = hosts.app.shell(every_file)
    # Behind the backup, and much later than the last segment that was archived.
    hosts.app.sql("SELECT pg_switch_wal()")
    time.sleep(5)
    hosts.app.sql("INSERT INTO precious (text) SELECT 'late' FROM generate_series(1, 100)")
    rows = hosts.app.sql("SELECT count(*), md5(string_agg(text, ',' ORDER BY id)) FROM precious")
    tables = hosts.app.sql(EVERY_TABLE)
    # Asynchronous: what was acknowledged in the last moment may be lost.
    time.sleep(2)
    hosts.app.destroy()
    hosts.app.install_anew("172.30.79.10")
    began = time.monotonic()
    run = hosts.app.run("playbooks/recover.yml", timeout=3600)
    assert run.code != 0 and run.says("Nothing was changed", "-e confirm=recovery-trixie"), run.output[-3000:]
    # The new host asks for Python's packages by way of this machine's authorities.
    authorities = ("--inventory", str(ROOT / "inventory/demo/controller.py"))
    run = hosts.app.run("playbooks/recover.yml", *authorities, timeout=5400, confirm="recovery-trixie")
    assert run.code == 0, run.output[-8000:]
    with capsys.disabled():
        print(f"\n  recovered in {time.monotonic() - began:.0f} s")
    assert hosts.app.serves(60) == "2.0.0"
    assert hosts.app.sql("SELECT count(*), md5(string_agg(text, ',' ORDER BY id)) FROM precious") == rows
    # The run itself, and the application since, write in the tables of sessions and tasks alone.
    assert hosts.app.sql(EVERY_TABLE) == tables
    assert hosts.app.shell(every_file) == checksums
    assert hosts.app.shell(f"stat -c %U {MEDIA}/plan.pdf").strip() == "shiftmaster"
    assert hosts.app.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/health/") == "200"
    # Backups go on.
    assert hosts.keeper.backup()["result"] == "succeeded"
