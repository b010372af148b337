"""The proof of a backup: it is restored into a scratch folder, started and read.

What marks the end is a restore point by name: recovery ends with an error where the WAL does not reach it. A row that
was written before it must be there, every page and index must be well, and every table must have the rows that it had.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import NamedTuple

from ..host import points, safe_files
from ..host.sql import SAFE_SEARCH_PATH, quoted, rows_of
from . import verdicts
from .host import BackupError, Host, scratch, tail

# Recovery refuses to run with less of these than the primary had.
SETTINGS = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}
CANARY_SQL = """
CREATE TABLE IF NOT EXISTS public.canary (run text PRIMARY KEY, written timestamptz NOT NULL DEFAULT now());
DELETE FROM public.canary WHERE written < now() - interval '90 days';
INSERT INTO public.canary (run) VALUES ('%s');
"""
FOUND_SQL = "SELECT 1 FROM ONLY public.canary TABLESAMPLE SYSTEM (100) WHERE format('%%s', run) = '%s'"
# Rows of an unlogged table are in no backup: PostgreSQL itself empties it behind a crash.
# Tables alone are read: the application could put a view in the place of one, and its functions would run with the
# rights of this login. PostgreSQL samples no view and, by ONLY, no foreign table that inherits; a sample of 100 % holds
# every row.
COUNTS_SQL = """
SELECT format('%I.%I', schemaname, pg_class.relname) AS name, n_tup_ins, n_tup_del,
       (xpath('/row/c/text()', query_to_xml(format('SELECT count(*) AS c FROM ONLY %I.%I TABLESAMPLE SYSTEM (100)',
        schemaname, pg_class.relname), false, true, '')))[1]::text
FROM pg_stat_user_tables JOIN pg_class ON pg_class.oid = relid
WHERE relkind = 'r' AND relpersistence = 'p' AND schemaname !~ '^pg_temp_' ORDER BY 1
"""
TABLESPACES_SQL = """
SELECT spcname || ' in ' || pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname !~ '^pg_' ORDER BY 1
"""
WRITES_SQL = """
SELECT format('%I.%I', schemaname, relname), n_tup_ins, n_tup_del FROM pg_stat_user_tables
"""
SHORT_SQL = """
SELECT n.nspname || '.' || c.relname || ': a page is torn' FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE relkind IN ('r', 'm', 't') AND pg_relation_size(c.oid) % current_setting('block_size')::int <> 0
"""


# Of a server's log.
LOG_BYTES = 64 << 20


class Table(NamedTuple):
    rows: int
    inserted: int
    deleted: int


class Mark(NamedTuple):
    """The end that a proof must reach, and what is known of the data there."""

    name: str
    run: str
    lsn: str
    segment: str
    timeline: int
    written: float
    tables: dict  # Of each database, name of the table to Table.


def mark(host: Host, run: str) -> Mark:
    """Write the row, name the point behind it and close the segment."""
    tables = counted(host)
    host.ask(CANARY_SQL % run)
    written = time.time()
    name = "shiftmaster-%s" % run
    lsn, segment = host.ask(
        "SELECT lsn, pg_walfile_name(lsn) FROM pg_create_restore_point('%s') AS point (lsn); "
        "SELECT pg_switch_wal()" % name
    )[0]
    points.reach("backup_marked")
    return Mark(name, run, lsn, segment, int(segment[:8], 16), written, tables)


def elsewhere(host: Host) -> list:
    """What keeps a restore from being made in place, as problems: data outside of the folder that it sets aside."""
    found = [row[0] for row in host.ask(TABLESPACES_SQL)]
    what = (
        "the database has tablespaces, which a restore does not put back where they are (into=scratch and table= do): "
        "ALTER TABLE ... SET TABLESPACE pg_default, then DROP TABLESPACE: " + ", ".join(found)
    )
    return [("tablespaces", what, "")] if found else []


def wait_until_archived(host: Host, end: Mark, seconds: float) -> None:
    """Wait until the segment of the restore point is in the archive."""
    wait_for_segment(host, end.segment, seconds)


def wait_for_segment(host: Host, segment: str, seconds: float) -> None:
    """Wait until a segment is in the archive; raises BackupError where it does not come."""
    deadline = time.monotonic() + seconds
    while True:
        done, failed, said = host.ask(
            "SELECT coalesce(last_archived_wal, ''), coalesce(last_failed_wal, ''), coalesce(last_failed_time > "
            "coalesce(last_archived_time, '-infinity'), false) FROM pg_stat_archiver"
        )[0]
        # Timelines only grow, and so do the names of segments; a file of history is none.
        if re.match(r"[0-9A-F]{24}$", done) and done >= segment:
            return
        if time.monotonic() >= deadline:
            raise BackupError(
                "the WAL segment %s was not archived within %d s (last one: %s%s)"
                % (segment, seconds, done or "none", ", failing: " + failed if said == "t" else "")
            )
        time.sleep(0.5)


def bounds(before: Table, after: tuple) -> tuple:
    """How many rows a table may have at a moment between two looks at it. after: (inserted, deleted) then."""
    inserted, deleted = after
    if inserted < before.inserted or deleted < before.deleted:
        return (0, float("inf"))  # The statistics were reset.
    return (before.rows - (deleted - before.deleted), before.rows + (inserted - before.inserted))


class Server:
    """A PostgreSQL of postgres alone, in a scratch folder, that nobody reaches by network."""

    def __init__(self, host: Host, data: str, port: int):
        self.host, self.data, self.port = host, data, port
        self.sockets = os.path.dirname(data)

    def control(self, name: str) -> str:
        done = self.host.as_postgres("pg_controldata", os.path.join(self.host.bin, "pg_controldata"), self.data)
        found = re.search(r"^%s:\s+(.*)$" % re.escape(name), done.stdout, re.M)
        if not found:
            raise BackupError("pg_controldata does not say %s" % name)
        return found.group(1).strip()

    def start(self, seconds: float) -> None:
        """Start it and wait until it has recovered."""
        for name, text in (
            ("postgresql.conf", ""),
            # root too: it alone may read what it loads.
            ("pg_hba.conf", "local all postgres,loader peer map=own\n"),
            ("pg_ident.conf", "own postgres postgres\nown root postgres\nown root loader\n"),
        ):
            # In a directory of postgres, who could put links in their place.
            safe_files.write(os.path.join(self.data, name), text.encode(), 0o600, *_owner(self.sockets))
        values = {name: self.control(text) for name, text in SETTINGS.items()}
        values.update(
            port=str(self.port),
            listen_addresses="",
            unix_socket_directories=self.sockets,
            config_file=os.path.join(self.data, "postgresql.conf"),
            hba_file=os.path.join(self.data, "pg_hba.conf"),
            ident_file=os.path.join(self.data, "pg_ident.conf"),
            shared_preload_libraries="",
            # The unit of a run allows no memory that is written and executed.
            jit="off",
            shared_buffers="64MB",
            ssl="off",
            fsync="off",
            archive_mode="off",
            logging_collector="off",
            log_destination="stderr",
            lc_messages="C",
            synchronous_standby_names="",
        )
        if int(self.host.database["version"]) >= 17:
            # One on login would run in each session of a superuser.
            values["event_triggers"] = "off"
        # On the command line: there they win over what ALTER SYSTEM has set on the primary.
        words = " ".join("-c %s='%s'" % item for item in sorted(values.items()))
        log = os.path.join(self.sockets, "server.log")
        try:
            self.host.as_postgres(
                "starting the restored database",
                os.path.join(self.host.bin, "pg_ctl"), "--pgdata", self.data, "--log", log, "--wait",
                "--timeout", str(int(seconds)), "--options", words, "start",
                timeout=seconds + 30,
            )  # fmt: skip
            deadline = time.monotonic() + seconds
            # It accepts connections before it has reached the end.
            while self.ask("SELECT pg_is_in_recovery()") != [["f"]]:
                if time.monotonic() > deadline:
                    raise BackupError("the restored database did not end its recovery within %d s" % seconds)
                time.sleep(0.3)
        except BackupError as error:
            raise BackupError("%s (%s)" % (error, self.said(log)))

    def log_text(self) -> str:
        # In a directory of postgres, who could put a link in its place.
        return safe_files.read_tail(os.path.join(self.sockets, "server.log"), LOG_BYTES).decode("utf-8", "replace")

    @staticmethod
    def said(log: str) -> str:
        """What the server gave as its reason."""
        with contextlib.suppress(OSError):
            telling = re.compile(r"FATAL|PANIC|ERROR|invalid|unrecognized|could not")
            text = safe_files.read_tail(log, LOG_BYTES).decode("utf-8", "replace")
            return tail("\n".join(line for line in text.splitlines() if telling.search(line)), 3)
        return "it has no log"

    def ask(self, sql: str, name: str = "postgres", timeout: float = 0) -> list:
        done = self.host.as_postgres(
            "asking the restored database",
            os.path.join(self.host.bin, "psql"), "-XqAt", "-w", "-v", "ON_ERROR_STOP=1", "-F", "\x1f",
            "-h", self.sockets, "-p", str(self.port), "-d", name,
            stdin=sql, timeout=timeout, env=dict(os.environ, PGOPTIONS=SAFE_SEARCH_PATH),
        )  # fmt: skip
        return rows_of(done.stdout)

    def stop(self) -> None:
        with contextlib.suppress(BackupError):
            self.host.as_postgres(
                "stopping the restored database",
                os.path.join(self.host.bin, "pg_ctl"), "--pgdata", self.data, "--mode", "immediate", "stop",
                timeout=60,
            )  # fmt: skip


@contextlib.contextmanager
def running(host: Host, data: str):
    """The server of a folder of data, started, recovered, and stopped at the end."""
    server = Server(host, data, host.options["scratch_port"])
    try:
        server.start(host.options["recovery_timeout_seconds"])
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def restored(host: Host, name: str, *arguments: str, label: str = ""):
    """A backup in a scratch folder, recovered as the arguments say and running; all of it is removed at the end."""
    with scratch(host, name) as folder:
        data = os.path.join(folder, "data")
        os.mkdir(data, 0o700)
        os.chown(data, *_owner(folder))
        host.pgbackrest(
            "restoring into a scratch folder",
            "--pg1-path=%s" % data,
            *(["--set=%s" % label] if label else []),
            "--archive-mode=off",
            "--tablespace-map-all=%s" % os.path.join(folder, "tablespaces"),
            "--process-max=%d" % host.options["process_max"],
            *arguments,
            "restore",
            restore=True,
        )
        with running(host, data) as server:
            yield server


@contextlib.contextmanager
def empty(host: Host, name: str):
    """A new server in a scratch folder; all of it is removed at the end."""
    with scratch(host, name) as folder:
        data = os.path.join(folder, "data")
        made = (os.path.join(host.bin, "initdb"), "--pgdata", data, "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
        host.as_postgres("making a scratch server", *made)
        with running(host, data) as server:
            yield server


def _owner(path: str) -> tuple:
    found = os.stat(path)
    return found.st_uid, found.st_gid


def check_pages(host: Host, server: Server) -> str:
    """Read every page of every table and index. Returns what was done."""
    torn = server.ask(SHORT_SQL)
    if torn:
        raise BackupError("the restored database is damaged: %s" % torn[0][0])
    done = host.as_postgres(
        "pg_amcheck",
        os.path.join(host.bin, "pg_amcheck"), "--all", "--heapallindexed", "--install-missing", "--no-password",
        "--progress", "--jobs", str(host.options["process_max"]), "--host", server.sockets, "--port", str(server.port),
        fine=range(256),
    )  # fmt: skip
    found = verdicts.amcheck(done.returncode, done.stdout, done.stderr)
    if not found.good:
        raise BackupError("pg_amcheck: %s" % found)
    return "pg_amcheck --heapallindexed of all databases"


def counted(host: Host) -> dict:
    """Of each database that is saved, name of each table to its Table."""
    tables = {}
    for database in host.database["databases"]:
        rows = host.ask(COUNTS_SQL, database)
        tables[database] = {row[0]: Table(int(row[3]), int(row[1]), int(row[2])) for row in rows}
    return tables


def compare_rows(host: Host, server: Server, tables: dict) -> int:
    """Compare every table with what the primary had between then and now; returns how many were compared."""
    now = {
        database: {row[0]: (int(row[1]), int(row[2])) for row in host.ask(WRITES_SQL, database)} for database in tables
    }
    count = 0
    for database, before in tables.items():
        there = {row[0]: int(row[3]) for row in server.ask(COUNTS_SQL, database)}
        for name, table in before.items():
            if name not in there:
                if name in now[database]:
                    raise BackupError("table %s of database %s is not in the backup" % (name, database))
                continue  # It was dropped meanwhile.
            low, high = bounds(table, now[database].get(name, (-1, -1)))
            if not low <= there[name] <= high:
                raise BackupError(
                    "table %s of database %s has %d rows in the backup, but had %s"
                    % (name, database, there[name], low if low == high else "%d to %s" % (low, high))
                )
            count += 1
    return count


def prove(host: Host, label: str, end: Mark) -> dict:
    """Restore a backup up to its mark and read it. Returns what was verified; raises BackupError."""
    began = time.monotonic()
    with restored(
        host, "proof", "--type=name", "--target=%s" % end.name, "--target-action=promote",
        "--target-timeline=current", label=label,
    ) as server:  # fmt: skip
        recovered = time.monotonic()
        found = verdicts.recovery(server.log_text(), target=end.name)
        if not found.good:
            raise BackupError("the recovery of the restored database: %s" % found)
        if server.ask(FOUND_SQL % end.run, host.database["name"]) != [["1"]]:
            raise BackupError("the row that was written before the restore point is not in the restored database")
        how = [check_pages(host, server)]
        points.reach("backup_proof")
        how.append("rows of %d tables" % compare_rows(host, server, end.tables))
    return {
        "restore_point": end.name,
        "recovered_seconds": round(recovered - began, 1),
        "seconds": round(time.monotonic() - began, 1),
        "how": ["restored to the restore point", "row of this run found", *how],
    }


def prove_dumps(host: Host, folder: str, tables: dict) -> str:
    """Load the dump of each database into a new server and count its rows; tables is what counted() said before them.

    Returns what was verified; raises BackupError.
    """
    with empty(host, "dump") as server:
        server.ask("CREATE ROLE loader LOGIN")
        for database in tables:
            dump = os.path.join(folder, database)
            listed = host.run("reading the dump", os.path.join(host.bin, "pg_restore"), "--list", dump).stdout
            # What the application has written into its database (an index's function, a materialized view) runs while
            # it is loaded: as a login without rights. Only a superuser makes some extensions, so they come first.
            server.ask("CREATE DATABASE %s TEMPLATE template0 OWNER loader" % quoted(database))
            for extension in re.findall(r"^\d+; \d+ \d+ EXTENSION - (\S+)", listed, re.M):
                server.ask("CREATE EXTENSION IF NOT EXISTS %s SCHEMA public" % quoted(extension), database)
            # As root, who alone may read it.
            host.run(
                "loading the dump of %s" % database,
                os.path.join(host.bin, "pg_restore"), "--no-owner", "--no-privileges", "--no-tablespaces",
                "--no-comments", "--exit-on-error", "--jobs=%d" % host.options["process_max"], "--host", server.sockets,
                "--port", str(server.port), "--username=loader", "--no-password", "--dbname", database, dump,
            )  # fmt: skip
        return "loaded into a new server, rows of %d tables" % compare_rows(host, server, tables)
