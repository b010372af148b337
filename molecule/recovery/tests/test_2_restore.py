"""The database is restored from another host; its dependants continue: the WAL, the standby, backups."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support import ROOT, wait_for

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
MODULE = "postgresql_standby"
ROWS = "SELECT count(*), md5(string_agg(text, ',' ORDER BY id)) FROM plans"


def test_a_restore_to_the_time_before_a_dropped_table(hosts):
    app, backup_server = hosts.app, hosts.backup_server
    app.sql("CREATE TABLE plans (id serial PRIMARY KEY, text text); ALTER TABLE plans OWNER TO shiftmaster")
    app.sql("INSERT INTO plans (text) SELECT md5(g::text) FROM generate_series(1, 3000) AS g")
    backup_server.backup(only="database", kind="full")
    # After the backup.
    app.sql("INSERT INTO plans (text) SELECT 'late' FROM generate_series(1, 50)")
    rows = app.sql(ROWS)
    timestamp = app.sql(
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')||'+00:00'"
    )
    app.sql("SELECT pg_sleep(1); DROP TABLE plans; SELECT pg_switch_wal()")
    run = app.run("playbooks/restore.yml", target=timestamp, confirm=app.host, timeout=3600)
    assert run.code == 0 and run.prints("The standby follows 172.30.79.10 again."), run.output[-6000:]
    assert app.sql(ROWS) == rows and app.live_version(60) == "2.0.0"
    # A standby that copies it must not recover to that time, too.
    assert app.sql("SELECT name FROM pg_file_settings WHERE name ~ '^(restore_command|recovery_target)'") == ""


def test_a_copy_that_failed_is_made_again(hosts):
    """By the command that the failure names, from a directory without anything in it."""

    def copy_again():
        command = ["ansible", hosts.standby.host, "--inventory", str(INVENTORY), "--become", "--module-name", MODULE]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        return done.returncode, done.stdout + done.stderr

    # It cannot be copied while the primary accepts no session, and there is no data any more.
    hosts.app.sql("ALTER ROLE replicator NOLOGIN")
    code, message = copy_again()
    assert code != 0 and "Nothing was changed" in message, message
    hosts.app.sql("ALTER ROLE replicator LOGIN")
    hosts.standby.shell(
        "install -d /root/real && cp /usr/lib/postgresql/17/bin/pg_basebackup /root/real/ && "
        "printf '#!/bin/sh\\necho no space >&2; exit 1\\n' > /usr/lib/postgresql/17/bin/pg_basebackup"
    )
    try:
        code, message = copy_again()
        assert code != 0 and "no space" in message and "--module-name postgresql_standby" in message, message
    finally:
        hosts.standby.shell("cp /root/real/pg_basebackup /usr/lib/postgresql/17/bin/")
    code, message = copy_again()
    assert code == 0 and "follows 172.30.79.10 again" in message, message
    assert hosts.standby.shell("ls /var/lib/postgresql/17").split() == ["main"]


def test_replication_and_archiving_continue(hosts):
    app, backup_server = hosts.app, hosts.backup_server
    # On the branch that the restore has begun.
    timeline = int(app.sql("SELECT timeline_id FROM pg_control_checkpoint()"))
    assert timeline > 1
    branch = f"{timeline:08X}"
    assert app.sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'shiftmaster_backup'") == "t"
    app.sql("INSERT INTO plans (text) VALUES ('now')")
    wait_for(lambda: branch in backup_server.shell("ls /var/backups/shiftmaster/wal | grep partial"), 30, "the segment")
    assert app.sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'standby'") == "t"
    wait_for(lambda: hosts.standby.sql(ROWS) == app.sql(ROWS), 30, "the standby")
    manifest = backup_server.backup(only="database")
    assert manifest["parts"]["database"]["wal"]["start"].startswith(branch)
    app.sql("DROP TABLE plans")
