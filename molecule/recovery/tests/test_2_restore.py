"""The database is put back from another host; what hangs on it goes on: the WAL, the standby, backups."""

from __future__ import annotations

from support import wait_for

ROWS = "SELECT count(*), md5(string_agg(text, ',' ORDER BY id)) FROM plans"


def test_the_moment_before_a_dropped_table(hosts):
    app, keeper = hosts.app, hosts.keeper
    app.sql("CREATE TABLE plans (id serial PRIMARY KEY, text text); ALTER TABLE plans OWNER TO shiftmaster")
    app.sql("INSERT INTO plans (text) SELECT md5(g::text) FROM generate_series(1, 3000) AS g")
    keeper.backup(only="database", kind="full")
    # Behind the backup.
    app.sql("INSERT INTO plans (text) SELECT 'late' FROM generate_series(1, 50)")
    rows = app.sql(ROWS)
    moment = app.sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')||'+00:00'")
    app.sql("SELECT pg_sleep(1); DROP TABLE plans; SELECT pg_switch_wal()")
    run = app.run("playbooks/restore.yml", target=moment, confirm=app.host, timeout=3600)
    assert run.code == 0 and run.says("The standby follows 172.30.79.10 again."), run.output[-6000:]
    assert app.sql(ROWS) == rows and app.serves(60) == "2.0.0"


def test_what_hangs_on_it_goes_on(hosts):
    app, keeper = hosts.app, hosts.keeper
    # On the branch that the restore has begun.
    assert app.sql("SELECT timeline_id FROM pg_control_checkpoint()") == "2"
    assert app.sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'shiftmaster_backup'") == "t"
    app.sql("INSERT INTO plans (text) VALUES ('now')")
    wait_for(lambda: "00000002" in keeper.shell("ls /var/backups/shiftmaster/wal | grep partial"), 30, "the segment")
    assert app.sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'standby'") == "t"
    wait_for(lambda: hosts.standby.sql(ROWS) == app.sql(ROWS), 30, "the standby")
    manifest = keeper.backup(only="database")
    assert manifest["parts"]["database"]["wal"]["start"].startswith("00000002")
    app.sql("DROP TABLE plans")
