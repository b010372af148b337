"""The archive cannot be reached for longer than the limit of the WAL allows. The last of the tests: the gap stays."""

from __future__ import annotations

import json

from support import wait_for

ARCHIVE = "/var/backups/shiftmaster/pgbackrest/archive/shiftmaster"
READY = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name ~ 'ready$'"
LIMIT = 4


def test_the_limit_is_set_and_reported(backups, first):
    limit = int(backups.shell("sed -n 's/^archive-push-queue-max=\\([0-9]*\\)MiB$/\\1/p' /etc/pgbackrest.conf"))
    assert limit >= 1024
    output = backups.shell("cat /var/lib/prometheus/node-exporter/shiftmaster_wal.prom")
    assert f"shiftmaster_wal_limit_bytes {limit * 1024 * 1024}\n" in output
    assert backups.sql("SHOW max_slot_wal_keep_size") == f"{limit}MB" or limit % 1024 == 0


def test_beyond_the_limit_wal_is_dropped_and_the_next_backup_begins_a_new_chain(backups, first):
    backups.run(only="database", kind="full")
    backups.run(only="database")
    backups.shell("cp -p /etc/pgbackrest.conf /root/pgbackrest.conf")
    backups.shell(f"sed -i 's/^archive-push-queue-max=.*/archive-push-queue-max={LIMIT * 16}MiB/' /etc/pgbackrest.conf")
    directory = backups.shell(f"ls -d {ARCHIVE}/*/* | tail -n 1").strip()
    backups.shell(f"chmod 500 {directory}")
    try:
        for _number in range(LIMIT * 3):
            backups.sql("CREATE TABLE filling AS SELECT 1; DROP TABLE filling; SELECT pg_switch_wal()")
        # It continues, and keeps no more than the limit.
        wait_for(lambda: int(backups.sql(READY)) <= LIMIT, 120, "the queue")
        assert "dropped WAL file" in backups.shell("cat /var/log/postgresql/postgresql-17-main.log")
        assert backups.sql("SELECT 1") == "1"
    finally:
        backups.shell(f"chmod 750 {directory}; cp -p /root/pgbackrest.conf /etc/pgbackrest.conf")
    wait_for(lambda: int(backups.sql(READY)) == 0, 120, "the archive")
    # The run names what is missing, and is a full one.
    manifest = backups.run(check=None, only="database")
    # Older backups reach less far; today's is good.
    assert manifest["result"] == "warning"
    part = manifest["parts"]["database"]
    assert (part["result"], part["kind"]) == ("succeeded", "full")
    assert "wal_missing" in {problem["code"] for problem in manifest["problems"]}
    assert backups.metric("shiftmaster_backup_wal_gaps")[""] > 0
    # The chain has begun: what comes next builds upon it.
    following = backups.run(check=None, only="database")["parts"]["database"]
    assert (following["result"], following["kind"]) == ("succeeded", "incr")
    assert following["label"].startswith(part["label"]), json.dumps(following)
