"""The verification of a backup: it is restored into a scratch directory, started and read.

What marks the end is a restore point by name: recovery ends with an error where the WAL does not reach it. A row that
was written before it must be there, every page and index must be well, and every table must have the rows that it had.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import re
import shlex
import stat
import subprocess
import time
from typing import NamedTuple

from ..host import points, safe_files
from ..host.sql import SAFE_SEARCH_PATH, quoted, rows_of
from . import results, sandbox
from .host import BackupError, Host, make_dir, tail

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
# Rows of an unlogged table are in no backup: PostgreSQL itself empties it after a crash.
# Tables alone are read: the application could put a view in the place of one, and its functions would run with the
# rights of this login. PostgreSQL samples no view and, by ONLY, no foreign table that inherits; a sample of 100 % holds
# every row. In a name, backslash, end of line and the separator are escaped.
NAME_SQL = """
replace(replace(replace(format('%I.%I', schemaname, relname),
    chr(92), repeat(chr(92), 2)), chr(10), chr(92) || 'n'), chr(31), chr(92) || 's')
"""
COUNTS_SQL = (
    """
SELECT """
    + NAME_SQL.replace("relname", "pg_class.relname")
    + """ AS name, n_tup_ins, n_tup_del,
       (xpath('/row/c/text()', query_to_xml(format('SELECT count(*) AS c FROM ONLY %I.%I TABLESAMPLE SYSTEM (100)',
        schemaname, pg_class.relname), false, true, '')))[1]::text
FROM pg_stat_user_tables JOIN pg_class ON pg_class.oid = relid
WHERE relkind = 'r' AND relpersistence = 'p' AND schemaname !~ '^pg_temp_' ORDER BY 1
"""
)
TABLESPACES_SQL = """
SELECT spcname || ' in ' || pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname !~ '^pg_' ORDER BY 1
"""
WRITES_SQL = "SELECT %s, n_tup_ins, n_tup_del FROM pg_stat_user_tables" % NAME_SQL
SHORT_SQL = """
SELECT n.nspname || '.' || c.relname || ': a page is torn' FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE relkind IN ('r', 'm', 't') AND pg_relation_size(c.oid) % current_setting('block_size')::int <> 0
"""


# Of a server's log, and of what a client of it writes.
LOG_BYTES = 64 << 20
READY = "database system is ready to accept connections"
# The database host chooses settings, libraries and SQL of the server that is started here; for a dump the application
# does. What they run has the rights of this user, in a file system with the scratch directory alone.
USER = "shiftmaster-verify"
CONFINED = [
    "User=" + USER,
    "BindReadOnlyPaths=/usr/bin:/bin",
    "BindReadOnlyPaths=/etc/passwd /etc/group",
    "KillSignal=SIGKILL",
    "MemoryMax=25%",
    "PrivateTmp=no",
    "TasksMax=512",
    "TemporaryFileSystem=/tmp:mode=1777,size=64M",
    *sandbox.NO_NETWORK,
]
# The server and its clients. Those that read the repository have a capability, so the server cannot read their memory.
WITHOUT_RIGHTS = [
    "CapabilityBoundingSet=",
    "RestrictSUIDSGID=yes",
    "SystemCallFilter=~@privileged process_vm_readv process_vm_writev",
]
READING = [*sandbox.READER, "AmbientCapabilities=CAP_DAC_READ_SEARCH"]
PGBACKREST = "Environment=PGBACKREST_LOCK_PATH=/tmp PGBACKREST_LOG_LEVEL_FILE=off"
# Gets WAL for the server, which has neither the repository nor its passphrase: it writes the name of a file of WAL and
# reads 0 where that is in the directory. Arguments: that directory, the one of received WAL, the stanzas, the words of
# pgBackRest.
GET_WAL = """
to=$1 received=$2 stanzas=$3
shift 3
while read -r name; do
    case $name in
        ????????.history | ????????????????????????) ;;
        *) exit 1 ;;
    esac
    case ${name%.history} in
        *[!0-9A-F]*) exit 1 ;;
    esac
    rm -f "$to"/*
    for stanza in $stanzas; do
        "$@" --stanza="$stanza" archive-get "$name" "$to/$name" >&2 && break
    done || cp "$received/$name" "$to/$name" 2> /dev/null || cp "$received/$name.partial" "$to/$name" 2> /dev/null
    echo $?
done
"""
_counter = itertools.count(1)


class Table(NamedTuple):
    rows: int
    inserted: int
    deleted: int


class Mark(NamedTuple):
    """The end that a verification must reach, and what is known of the data there."""

    name: str
    run: str
    lsn: str
    segment: str
    timeline: int
    written: float
    tables: dict  # Of each database, name of the table to Table.


def mark(host: Host, run: str) -> Mark:
    """Write the row, name the point after it and close the segment."""
    tables = counted(host)
    host.query(CANARY_SQL % run)
    written = time.time()
    name = "shiftmaster-%s" % run
    lsn, segment = host.query(
        "SELECT lsn, pg_walfile_name(lsn) FROM pg_create_restore_point('%s') AS point (lsn); "
        "SELECT pg_switch_wal()" % name
    )[0]
    points.reach("backup_marked")
    return Mark(name, run, lsn, segment, int(segment[:8], 16), written, tables)


def elsewhere(host: Host) -> list:
    """What keeps a restore from being made in place, as problems: data outside of the directory that it sets aside."""
    found = [row[0] for row in host.query(TABLESPACES_SQL)]
    what = (
        "the database has tablespaces, which a restore does not restore in place (into=scratch and table= do): "
        "ALTER TABLE ... SET TABLESPACE pg_default, then DROP TABLESPACE: " + ", ".join(found)
    )
    return [("tablespaces", what, "")] if found else []


def wait_for_segment(host: Host, segment: str, seconds: float) -> None:
    """Wait until a segment is in the archive; raises BackupError where it does not come."""
    deadline = time.monotonic() + seconds
    while True:
        done, failed, failing = host.query(
            "SELECT coalesce(last_archived_wal, ''), coalesce(last_failed_wal, ''), coalesce(last_failed_time > "
            "coalesce(last_archived_time, '-infinity'), false) FROM pg_stat_archiver"
        )[0]
        # Timelines only grow, and so do the names of segments; a file of history is none.
        if re.match(r"[0-9A-F]{24}$", done) and done >= segment:
            return
        if time.monotonic() >= deadline:
            raise BackupError(
                "the WAL segment %s was not archived within %d s (last one: %s%s)"
                % (segment, seconds, done or "none", ", failing: " + failed if failing == "t" else "")
            )
        time.sleep(0.5)


def bounds(before: Table, after: tuple) -> tuple:
    """How many rows a table may have at a time between two counts of it. after: (inserted, deleted) then."""
    inserted, deleted = after
    if inserted < before.inserted or deleted < before.deleted:
        return (0, float("inf"))  # The statistics were reset.
    return (before.rows - (deleted - before.deleted), before.rows + (inserted - before.inserted))


def recovery_settings(arguments) -> dict:
    """PostgreSQL's settings for pgBackRest's arguments of the recovery (target.choose())."""
    given = dict(word[2:].partition("=")[::2] for word in arguments)
    settings = {}
    if "target" in given:
        settings["recovery_target_" + given["type"]] = given["target"]
    elif "type" in given:
        settings["recovery_target"] = given["type"]
    if "target-exclusive" in given:
        settings["recovery_target_inclusive"] = "off"
    for name in ("target-action", "target-timeline"):
        if name in given:
            settings["recovery_" + name.replace("-", "_")] = given[name]
    return settings


def restore_command(directory: str) -> str:
    """How the server gets WAL; see GET_WAL."""
    return 'echo %%f; read -r code; [ "$code" = 0 ] && cp %s/%%f "%%p"' % shlex.quote(directory.replace("%", "%%"))


class Server:
    """A PostgreSQL in a scratch directory. Whatever it runs has no rights and reaches nothing else (USER)."""

    def __init__(self, host: Host, directory: str):
        self.host, self.directory, self.port = host, directory, host.options["scratch_port"]
        # That of the backup, then those with the WAL after it.
        self.stanzas = (host.stanza,)
        entry = pwd.getpwnam(USER)
        self._owner = entry.pw_uid, entry.pw_gid
        self.data, self.tablespaces, self.sockets, self.wal = (
            os.path.join(directory, name) for name in ("data", "tablespaces", "sockets", "wal")
        )
        for path in (self.data, self.tablespaces, self.sockets, self.wal):
            safe_files.make_directory(path, 0o700, *self._owner)
        # Root's: the server reads the one and writes to the other by a descriptor.
        self.config, self._log = os.path.join(directory, "config"), os.path.join(directory, "server.log")
        make_dir(self.config, 0o755)
        self._children = []

    # -- commands ----------------------------------------------------------------------------------------------------

    def _words(self, unit: str, command, read=(), write=(), more=()) -> list:
        # systemd would fill in variables.
        return [
            *sandbox.words(unit, [*CONFINED, *more], read, write),
            *(word.replace("$", "$$") for word in command),
        ]  # fmt: skip

    def run(self, what: str, *command: str, read=(), write=(), more=WITHOUT_RIGHTS, **options):
        """Run a command to its end where it has these paths of the host alone."""
        unit = _unit_name()
        words = self._words(unit, command, read, write, more)
        return self.host.run_unit(what, unit, *words, limit=LOG_BYTES, **options)

    def client(self, what, program, *arguments, user="postgres", write=(), more=WITHOUT_RIGHTS, **options):
        """Run a program of PostgreSQL that connects to the server; see run()."""
        values = {"PGHOST": self.sockets, "PGPORT": self.port, "PGUSER": user, "PGOPTIONS": SAFE_SEARCH_PATH}
        env = ["Environment=%s" % sandbox.quoted("%s=%s" % item) for item in values.items()]
        command = (os.path.join(self.host.bin, program), *arguments)
        return self.run(what, *command, write=[self.sockets, *write], more=[*more, *env], **options)

    def query(self, sql: str, name: str = "postgres", timeout: float = 0) -> list:
        words = ("-XqAt", "-w", "-v", "ON_ERROR_STOP=1", "-F", "\x1f", "-d", name)
        return rows_of(self.client("querying the restored database", "psql", *words, stdin=sql, timeout=timeout).stdout)

    def _pgbackrest(self) -> list:
        return ["/usr/bin/pgbackrest", "--config=%s" % self.host.options["restore_config"], "--pg1-path=%s" % self.data]

    def _repository(self) -> list:
        return [os.path.join(self.host.directory, "pgbackrest"), self.host.options["restore_config"]]

    # -- its data ----------------------------------------------------------------------------------------------------

    def fetch(self, label: str, *arguments: str) -> None:
        """Restore a backup into the directory of data."""
        self.run(
            "restoring into a scratch directory",
            *self._pgbackrest(), "--stanza=%s" % self.stanzas[0], *(["--set=%s" % label] if label else []),
            "--tablespace-map-all=%s" % self.tablespaces, "--process-max=%d" % self.host.options["process_max"],
            # It warns that the files belong to another user than in the backup.
            "--log-level-console=error", *arguments, "restore",
            read=self._repository(), write=[self.data, self.tablespaces],
            # pgBackRest 2.45 gives a file to the owner that it has.
            more=[*READING, PGBACKREST, "SystemCallFilter=@chown"],
        )  # fmt: skip
        try:
            self._check_tree()
        except (OSError, RecursionError) as error:
            raise BackupError("the restored directory cannot be read: %s" % error)

    def _check_tree(self) -> None:
        """Reject links that lead elsewhere, and what is no file."""
        for place, directories, names, descriptor in safe_files.walk(self.data):
            for name in [*directories, *names]:
                kind = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
                if stat.S_ISLNK(kind) and os.path.basename(place) == "pg_tblspc":
                    target = os.readlink(name, dir_fd=descriptor)
                    if os.path.normpath(target) == target and os.path.dirname(target) == self.tablespaces:
                        continue
                elif stat.S_ISREG(kind) or stat.S_ISDIR(kind):
                    continue
                raise BackupError(
                    "the backup holds %r, which is no file, directory or tablespace" % os.path.join(place, name)
                )

    def create(self) -> None:
        """Make an empty cluster."""
        self.run(
            "making a scratch server", os.path.join(self.host.bin, "initdb"), "--pgdata", self.data, "--encoding=UTF8",
            "--username=postgres", "--locale=C.UTF-8", "--no-sync", write=[self.data],
        )  # fmt: skip

    def _control(self) -> dict:
        """The settings without which recovery refuses to run."""
        done = self.run("pg_controldata", os.path.join(self.host.bin, "pg_controldata"), self.data, read=[self.data])
        found = {name: re.search(r"^%s: +(\d{1,9})$" % text, done.stdout, re.M) for name, text in SETTINGS.items()}
        if not all(found.values()):
            raise BackupError("pg_controldata does not print %s" % ", ".join(n for n, one in found.items() if not one))
        return {name: one.group(1) for name, one in found.items()}

    # -- its run -----------------------------------------------------------------------------------------------------

    def start(self, seconds: float, settings=None, received: str = "") -> None:
        """Start it and wait until it has recovered. settings: of the recovery; None where there is none."""
        paths = {name: os.path.join(self.config, name) for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf")}
        for name, text in (
            ("postgresql.conf", ""),
            ("pg_hba.conf", "local all postgres,loader peer map=own\n"),
            ("pg_ident.conf", "own {0} postgres\nown {0} loader\n".format(USER)),
        ):
            safe_files.write(paths[name], text.encode(), 0o644)
        values = self._control()
        # What ALTER SYSTEM has set on the primary, and pgBackRest for the recovery.
        safe_files.write(os.path.join(self.data, "postgresql.auto.conf"), b"", 0o600, *self._owner)
        values.update(
            port=str(self.port),
            listen_addresses="",
            unix_socket_directories=self.sockets,
            config_file=paths["postgresql.conf"],
            hba_file=paths["pg_hba.conf"],
            ident_file=paths["pg_ident.conf"],
            dynamic_shared_memory_type="mmap",
            shared_buffers="64MB",
            log_destination="stderr",
            lc_messages="C",
            # hot_standby: it accepts connections once it has recovered. jit: the sandbox allows no memory that is
            # written and executed.
            **dict.fromkeys(("hot_standby", "jit", "ssl", "fsync", "archive_mode", "logging_collector"), "off"),
            **dict.fromkeys(("shared_preload_libraries", "session_preload_libraries", "synchronous_standby_names"), ""),
        )
        if int(self.host.database["version"]) >= 17:
            # One on login would run in each session of a superuser.
            values["event_triggers"] = "off"
        if settings is not None:
            values.update(settings, restore_command=restore_command(self.wal))
        command = [os.path.join(self.host.bin, "postgres"), "-D", self.data]
        command += [word for item in sorted(values.items()) for word in ("-c", "%s=%s" % item)]
        self._launch(command, received if settings is not None else None)
        try:
            self._wait(seconds)
        except BackupError as error:
            raise BackupError("%s (%s)" % (error, self._reason()))

    def _launch(self, command: list, received) -> None:
        """Start the server, and next to it what gets WAL (received is not None); each ends with the other's pipes."""
        runtime = "RuntimeMaxSec=%d" % (4 * self.host.options["timeout_seconds"])
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(open(self._log, "xb", opener=lambda *words: os.open(*words, 0o600)))
            requests, responses = (os.pipe() for _ in range(2))
            for descriptor in (*requests, *responses):
                stack.callback(os.close, descriptor)

            def launch(words, read, write, more, stdin, stdout):
                unit = _unit_name()
                words = self._words(unit, words, read, write, [*more, runtime])
                child = subprocess.Popen(
                    words, cwd="/", stdin=stdin, stdout=stdout, stderr=log, start_new_session=True
                )  # fmt: skip
                self._children.append((unit, child))

            launch(
                command, [self.config, self.wal], [self.data, self.tablespaces, self.sockets],
                [*WITHOUT_RIGHTS, "LimitFSIZE=2G", "MemoryMax=50%"],
                responses[0], requests[1],
            )  # fmt: skip
            if received is not None:
                stanzas = " ".join(self.stanzas)
                launch(
                    ["/usr/bin/sh", "-c", GET_WAL, "sh", self.wal, received, stanzas, *self._pgbackrest()],
                    [self.data, *self._repository(), *([received] if received else [])], [self.wal],
                    [*READING, PGBACKREST], requests[0], responses[1],
                )  # fmt: skip

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while READY not in self.log_text():
            if any(child.poll() is not None for _unit, child in self._children):
                raise BackupError("the restored database does not come up")
            if time.monotonic() > deadline:
                raise BackupError("the restored database did not end its recovery within %d s" % seconds)
            time.sleep(0.2)

    def log_text(self) -> str:
        return safe_files.read_tail(self._log, LOG_BYTES).decode("utf-8", "replace")

    def _reason(self) -> str:
        """What the server gave as its reason."""
        relevant = re.compile(r"FATAL|PANIC|ERROR|invalid|unrecognized|could not|[Ff]ailed")
        return tail("\n".join(line for line in self.log_text().splitlines() if relevant.search(line)), 3)

    def stop(self) -> None:
        """End it with everything that it has started."""
        for unit, child in self._children:
            child.kill()
            child.wait()
            with contextlib.suppress(BackupError):
                self.host.run("stopping the restored database", "systemctl", "stop", unit, timeout=60, fine=range(256))


def _unit_name() -> str:
    return "shiftmaster-backup-verify-%d-%d.service" % (os.getpid(), next(_counter))


@contextlib.contextmanager
def scratch(host: Host, name: str):
    """A server that is yet to be made in a scratch directory. What a killed run has left is removed first."""
    directory = os.path.join(host.options["scratch"], name)
    safe_files.remove_tree(directory)
    make_dir(host.options["scratch"], 0o711)
    os.mkdir(directory)
    os.chmod(directory, 0o711)
    try:
        server = Server(host, directory)
        try:
            yield server
        finally:
            server.stop()
    finally:
        safe_files.remove_tree(directory)


@contextlib.contextmanager
def restored(host: Host, name: str, *arguments: str, label: str = "", received: str = "", stanzas: tuple = ()):
    """A backup in a scratch directory, recovered as the arguments require and running; all of it is removed at the end.

    received: a directory of WAL that the archive lacks.
    """
    with scratch(host, name) as server:
        server.stanzas = stanzas or server.stanzas
        server.fetch(label, *arguments)
        server.start(host.options["recovery_timeout_seconds"], recovery_settings(arguments), received)
        yield server


@contextlib.contextmanager
def empty(host: Host, name: str):
    """A new server in a scratch directory; all of it is removed at the end."""
    with scratch(host, name) as server:
        server.create()
        server.start(host.options["recovery_timeout_seconds"])
        yield server


def check_pages(host: Host, server: Server) -> str:
    """Read every page of every table and index. Returns what was done."""
    torn = server.query(SHORT_SQL)
    if torn:
        raise BackupError("the restored database is damaged: %s" % torn[0][0])
    done = server.client(
        "pg_amcheck", "pg_amcheck", "--all", "--heapallindexed", "--install-missing", "--no-password",
        "--progress", "--jobs", str(host.options["process_max"]), fine=range(256),
    )  # fmt: skip
    found = results.amcheck(done.returncode, done.stdout, done.stderr)
    if not found.good:
        raise BackupError("pg_amcheck: %s" % found)
    return "pg_amcheck --heapallindexed of all databases"


def counted(host: Host) -> dict:
    """Of each database that is saved, name of each table to its Table."""
    tables = {}
    for database in host.database["databases"]:
        rows = host.query(COUNTS_SQL, database)
        tables[database] = {row[0]: Table(int(row[3]), int(row[1]), int(row[2])) for row in rows}
    return tables


def compare_rows(host: Host, server: Server, tables: dict) -> int:
    """Compare every table with what the primary had between then and now; returns how many were compared."""
    now = {
        database: {row[0]: (int(row[1]), int(row[2])) for row in host.query(WRITES_SQL, database)}
        for database in tables
    }
    count = 0
    for database, before in tables.items():
        there = {row[0]: int(row[3]) for row in server.query(COUNTS_SQL, database)}
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
        host, "verification", "--type=name", "--target=%s" % end.name, "--target-action=promote",
        "--target-timeline=current", label=label,
    ) as server:  # fmt: skip
        recovered = time.monotonic()
        found = results.recovery(server.log_text(), target=end.name)
        if not found.good:
            raise BackupError("the recovery of the restored database: %s" % found)
        if server.query(FOUND_SQL % end.run, host.database["name"]) != [["1"]]:
            raise BackupError("the row that was written before the restore point is not in the restored database")
        how = [check_pages(host, server)]
        points.reach("backup_verification")
        how.append("rows of %d tables" % compare_rows(host, server, end.tables))
    return {
        "restore_point": end.name,
        "recovered_seconds": round(recovered - began, 1),
        "seconds": round(time.monotonic() - began, 1),
        "how": ["restored to the restore point", "row of this run found", *how],
    }


def prove_dumps(host: Host, directory: str, tables: dict) -> str:
    """Load the dump of each database into a new server and count its rows; tables is the earlier result of counted().

    Returns what was verified; raises BackupError.
    """
    with empty(host, "dump") as server:
        server.query("CREATE ROLE loader LOGIN")
        for database in tables:
            dump = os.path.join(directory, database)
            # Root alone may read it. pg_restore looks for compressed files by access(2), which ignores capabilities.
            options = {"read": [dump], "more": [*READING, "SecureBits=no-setuid-fixup"]}
            listed = server.client("reading the dump", "pg_restore", "--list", dump, **options).stdout
            # What the application has written into its database (an index's function, a materialized view) runs while
            # it is loaded: as a login without rights. Only a superuser makes some extensions, so they come first.
            server.query("CREATE DATABASE %s TEMPLATE template0 OWNER loader" % quoted(database))
            for extension in re.findall(r"^\d+; \d+ \d+ EXTENSION - (\S+)", listed, re.M):
                server.query("CREATE EXTENSION IF NOT EXISTS %s SCHEMA public" % quoted(extension), database)
            server.client(
                "loading the dump of %s" % database, "pg_restore", "--no-owner", "--no-privileges", "--no-tablespaces",
                "--no-comments", "--exit-on-error", "--jobs=%d" % host.options["process_max"],
                "--no-password", "--dbname", database, dump, user="loader", **options,
            )  # fmt: skip
        return "loaded into a new server, rows of %d tables" % compare_rows(host, server, tables)
