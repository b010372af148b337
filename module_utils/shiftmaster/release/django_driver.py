"""Look at and change the database of a release, from inside its own Django.

ReleaseCode feeds this file to the release's interpreter, in its source directory and with its environment. Lines of
JSON come in on standard input, for each one line that starts with ANSWER goes out; everything that the application
prints goes to standard error. Nothing but the standard library and Django may be imported here, and nothing of this
package: the file travels alone.

Requests: {"op": "plan" | "apply" | "reverse", "limit_seconds": 60, ...}; after the limit the process ends. Each
function below documents its other keys. Only the database `default` is used.

A failure that is understood comes back as {"failure": {...}} with a sentence in `message`, so that the caller keeps
what was applied before it; {"error": text} is for what could not even begin.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
import time
import traceback

RESPONSE = "@@shiftmaster-response@@ "
ALIAS = "default"
# The form of each response (releasecode.matches). A failure contains what was done before it, too.
_NAME = {"app": str, "name": str}
_OPERATION = {"operation": str, "describe": str, "reversible": bool}
_MIGRATION = dict(_NAME, atomic=bool, replaces=[[str]], operations=[_OPERATION])
_DONE = {"done": [_NAME], "repaired": [str], "applied?": [_NAME], "vendor": str}
_FAILURE = dict(_DONE, failure={"kind": str, "message": str, "hint?": (str, None), "half_applied?": bool})
_PLAN = {"vendor": str, "pending": [_MIGRATION], "applied": [_NAME], "known": [dict(_NAME, replaces=[[str]])]}
RESPONSES = {
    "plan": (_FAILURE, {**_PLAN, "half?": [_NAME], "sources?": {str: {str: str}}}),
    "apply": (_FAILURE, dict(_DONE, applied=[_NAME])),
    "reverse": (_FAILURE, dict(_DONE, **{"applied": [_NAME], "pending?": [_MIGRATION], "warning?": str})),
}
# Advisory locks count per database; this number is ours: "shiftmig" in ASCII.
LOCK_KEY = int.from_bytes(b"shiftmig", "big")
NAME = "shiftmaster-migrate"
LOCK_NAME = "shiftmaster-migration-lock"
# A row for each migration that is no transaction and is half done, in either direction; Progress keeps it.
PROGRESS = "shiftmaster_migration_progress"
# A server that notices within this time that a killed migration's client is gone (PostgreSQL 14 or newer).
CLIENT_CHECK_MS = 2000
HINTS = {
    "42701": "The database has this column already. If its definition is the same, mark the migration as applied"
    " (migrate --fake) in a before_migrate hook; otherwise correct the migration.",
    "42P07": "The database has this table or index already. If it is the same, mark the migration as applied"
    " (migrate --fake) in a before_migrate hook; otherwise remove it.",
    "42501": "The database user lacks a right that the migration needs.",
    "55P03": "Another session held a lock on the table for longer than lock_timeout. Nothing waits for it now; end"
    " that session or try again at a quieter time.",
    "57014": "The statement took longer than statement_timeout, or somebody cancelled it.",
}


class Failure(Exception):
    """Something that is understood: kind names it, str() is a sentence."""

    def __init__(self, kind, message, **details):
        super().__init__(message)
        self.details = dict(details, kind=kind, message=message)


def note(text):
    """Report the progress on standard error, where a timeout's message will quote it."""
    sys.stderr.write("migrations: %s\n" % text)
    sys.stderr.flush()


def reach(point):
    """As points.reach(), which cannot be imported inside a release."""
    hold = "/run/shiftmaster/points/" + point
    if os.path.exists(hold):
        with open(hold + ".reached", "w") as stream:
            stream.write(str(os.getpid()))
        deadline = time.monotonic() + 300
        while os.path.exists(hold) and time.monotonic() < deadline:
            time.sleep(0.05)


def setup():
    sys.path.insert(0, os.getcwd())
    import django

    django.setup()
    from django.db import connections

    return connections[ALIAS]


def first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def key(pair):
    return "%s.%s" % tuple(pair)


# ---------------------------------------------------------------------------------------------------------- looking


def rows_of(connection):
    """Return the rows of django_migrations in the order in which they were applied."""
    from django.db.migrations.recorder import MigrationRecorder

    recorder = MigrationRecorder(connection)
    if not recorder.has_table():
        return []
    rows = recorder.migration_qs.order_by("id").values_list("app", "name", "applied")
    return [{"app": app, "name": name, "applied": applied.isoformat()} for app, name, applied in rows]


def describe(operation):
    try:
        text = operation.describe()
    except Exception:  # A custom operation's own describe may fail on anything.
        text = ""
    return {
        "operation": type(operation).__name__,
        "describe": text or type(operation).__name__,
        "reversible": bool(getattr(operation, "reversible", False)),
    }


def describe_migration(migration):
    return {
        "app": migration.app_label,
        "name": migration.name,
        "atomic": bool(migration.atomic),
        "replaces": [list(pair) for pair in migration.replaces or ()],
        "operations": [describe(operation) for operation in migration.operations],
    }


def source_of(migration):
    path = getattr(sys.modules.get(type(migration).__module__), "__file__", None) or ""
    try:
        import tokenize

        with tokenize.open(path) as stream:
            return stream.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        return ""


def import_management():
    """Let the apps register their signal handlers, as `migrate` does."""
    from importlib import import_module

    from django.apps import apps
    from django.utils.module_loading import module_has_submodule

    for config in apps.get_app_configs():
        if module_has_submodule(config.module, "management"):
            import_module(".management", config.name)


def executor_of(connection):
    """Return Django's executor, after the checks that `migrate` makes."""
    from django.db.migrations import exceptions
    from django.db.migrations.executor import MigrationExecutor

    unreadable = (exceptions.NodeNotFoundError, exceptions.BadMigrationError, exceptions.CircularDependencyError)
    try:
        executor = MigrationExecutor(connection)
        executor.loader.check_consistent_history(connection)
    except exceptions.InconsistentMigrationHistory as error:
        raise Failure("inconsistent", "The rows of django_migrations contradict the release: %s" % error) from error
    except (*unreadable, ImportError, SyntaxError) as error:
        raise Failure("unreadable", "The release's migrations cannot be loaded: %s" % first_line(error)) from error
    conflicts = sorted(executor.loader.detect_conflicts().items())
    if conflicts:
        why = "The release has migrations that nobody merged: %s. It needs makemigrations --merge."
        names = ("%s in %s" % (", ".join(sorted(names)), app) for app, names in conflicts)
        raise Failure("conflict", why % "; ".join(names))
    return executor


def pending_of(executor):
    return [migration for migration, _ in executor.migration_plan(executor.loader.graph.leaf_nodes())]


def read_state(connection, request):
    """Return the applied, contained and pending migrations.

    Request: sources: true to get the text of all files of the apps with a pending migration.
    """
    executor = executor_of(connection)
    loader = executor.loader
    half = half_done(connection, loader)
    for pair in half:
        for row in rows_after(loader, pair):
            loader.applied_migrations.pop(row, None)
    pending = pending_of(executor)
    response = {
        "vendor": connection.vendor,
        "pending": [describe_migration(migration) for migration in pending],
        "applied": rows_of(connection),
        "half": [{"app": app, "name": name} for app, name in half],
        "known": [
            {"app": app, "name": name, "replaces": [list(pair) for pair in migration.replaces or ()]}
            for (app, name), migration in sorted(loader.disk_migrations.items())
        ],
    }
    if request.get("sources"):
        apps = {migration.app_label for migration in pending}
        response["sources"] = {}
        for (app, name), migration in loader.disk_migrations.items():
            if app in apps:
                response["sources"].setdefault(app, {})[name] = source_of(migration)
    return response


# ---------------------------------------------------------------------------------------------------------- the lock


def query(connection, sql, parameters=()):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall()


def prepare(connection, request):
    """Make every connection of this run carry its timeouts, also one that the application opens again.

    Returns a twin of the connection without them, for the lock: a pooler that refuses start-up options must be
    recognised as one.
    """
    if connection.vendor != "postgresql":
        return None
    from django.db.backends.signals import connection_created

    options = connection.settings_dict.setdefault("OPTIONS", {})
    options.pop("pool", None)  # A pool hands out and resets sessions as it likes.
    twin = connection.copy()
    given = options.get("options") or os.environ.get("PGOPTIONS", "")
    ours = ["-c lock_timeout=%d" % (float(request.get("lock_timeout_seconds", 5)) * 1000)]
    options["options"] = " ".join(filter(None, [given] + ours))
    options["application_name"] = NAME

    def created(sender, connection, **_):
        if connection.alias == ALIAS and connection.pg_version >= 140000:
            setting = "SELECT set_config('client_connection_check_interval', %s, false)"
            query(connection, setting, [str(CLIENT_CHECK_MS)])

    connection_created.connect(created, weak=False, dispatch_uid="shiftmaster-migrations")
    connection.close()
    return twin


def holder_of(lock):
    rows = query(
        lock,
        "SELECT a.pid, coalesce(nullif(a.application_name, ''), 'no name'), coalesce(a.usename, '?'),"
        " coalesce(host(a.client_addr), 'this host'), extract(epoch FROM now() - a.backend_start)::int"
        " FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND l.classid = %s::bigint::oid AND l.objid = %s::bigint::oid",
        [LOCK_KEY >> 32, LOCK_KEY & 0xFFFFFFFF],
    )
    return rows[0] if rows else None


def leftovers_of(lock, own_pid):
    """Find sessions of an earlier run whose process was killed: the server may still be working for them."""
    return query(
        lock,
        "SELECT pid, state, extract(epoch FROM now() - state_change)::int FROM pg_stat_activity"
        " WHERE application_name = %s AND datname = current_database() AND pid <> %s",
        [NAME, own_pid],
    )


def client_pid(connection):
    """The backend's number as the server reported it at the connection's start."""
    raw = connection.connection
    info = getattr(raw, "info", None)
    return getattr(info, "backend_pid", None) or raw.get_backend_pid()


class Lock:
    """The advisory lock that lets only one process migrate.

    It lives on a connection of its own, in autocommit and without a transaction: the migrating connection may be
    closed by the application, a lock inside a transaction would block CREATE INDEX CONCURRENTLY for ever, and the
    server gives it back when this process dies. It is tried repeatedly rather than waited
    for, because a waiting SELECT keeps a snapshot, for which the holder's CREATE INDEX CONCURRENTLY would wait.
    """

    def __init__(self, connection, twin, wait_seconds):
        self.migrating = connection
        self.twin = twin
        self.wait_seconds = float(wait_seconds)
        self.connection = None

    def __enter__(self):
        if self.migrating.vendor != "postgresql":
            return self
        self.connection = lock = self.twin
        lock.settings_dict["OPTIONS"]["application_name"] = LOCK_NAME
        lock.settings_dict["AUTOCOMMIT"] = True
        lock.ensure_connection()
        if client_pid(lock) != query(lock, "SELECT pg_backend_pid()")[0][0]:
            raise Failure(
                "pooler",
                "The connection to the database goes through a pooler (pgbouncer or alike), which "
                "may give the migration lock to somebody else. Let migrations connect to PostgreSQL itself: "
                "name its own host and port in the settings of the application's database.",
            )
        if lock.pg_version >= 140000:
            query(lock, "SELECT set_config('idle_session_timeout', '0', false)")
        deadline = time.monotonic() + self.wait_seconds
        self._wait(deadline)
        self._wait_for_leftovers(deadline)
        return self

    def _wait(self, deadline):
        reported = False
        while not query(self.connection, "SELECT pg_try_advisory_lock(%s)", [LOCK_KEY])[0][0]:
            holder = holder_of(self.connection)
            if time.monotonic() >= deadline:
                who = "session %d (%s, user %s, from %s, connected for %d s)" % holder if holder else "another session"
                raise Failure(
                    "locked",
                    "Another process holds the migration lock: %s still had it after %g seconds. "
                    "Nothing was changed. Wait for it, or end that session if it is stuck." % (who, self.wait_seconds),
                    pid=holder[0] if holder else None,
                )
            if not reported:
                note("waiting for the migration lock that session %s holds" % (holder[0] if holder else "?"))
                reported = True
            time.sleep(0.25)

    def _wait_for_leftovers(self, deadline):
        own = client_pid(self.migrating) if self.migrating.connection is not None else 0
        while True:
            left = leftovers_of(self.connection, own)
            if not left:
                return
            if time.monotonic() >= deadline:
                raise Failure(
                    "leftover",
                    "A migration whose process is gone is still running in the database: session "
                    "%d, for %d seconds, was still there after %g seconds. Nothing was changed. Wait for it, "
                    "or end it: SELECT pg_terminate_backend(%d)."
                    % (left[0][0], left[0][2] or 0, self.wait_seconds, left[0][0]),
                    pid=left[0][0],
                )
            time.sleep(0.25)

    def check(self):
        """Raise when the lock is lost (its connection broke): somebody else may be migrating."""
        if self.connection is None:
            return
        try:
            query(self.connection, "SELECT 1")
        except Exception as error:
            why = (
                "The connection that held the migration lock broke (%s), so the run stopped before the next migration."
            )
            raise Failure("lock_lost", why % first_line(error)) from error

    def __exit__(self, *_):
        if self.connection is not None:
            with contextlib.suppress(Exception):  # First, or the next run would take it for a leftover.
                self.migrating.close()
            with contextlib.suppress(Exception):  # The server gives it back anyway when the connection ends.
                query(self.connection, "SELECT pg_advisory_unlock(%s)", [LOCK_KEY])
            with contextlib.suppress(Exception):
                self.connection.close()


# --------------------------------------------------------------------------------------------------------- half done


def marks_of(connection):
    """Return {(app, name): {number of an operation that is in the database: its fingerprint}}."""
    if connection.vendor != "postgresql" or query(connection, "SELECT to_regclass(%s)", [PROGRESS])[0][0] is None:
        return {}
    rows = query(connection, "SELECT app, name, done FROM %s ORDER BY app, name" % PROGRESS)
    return {(app, name): json.loads(done) for app, name, done in rows}


def half_done(connection, loader):
    """The migrations that are neither applied nor not: [(app, name)].

    Not those whose run died between their last operation and the end of their marks.
    """
    half = []
    for pair, done in marks_of(connection).items():
        migration = loader.disk_migrations.get(pair)
        complete = len(leaves_of(migration.operations)) if migration else None
        if len(done) != (complete if pair in loader.applied_migrations else 0):
            half.append(pair)
    return half


def rows_after(loader, pair):
    """The rows that stand for a migration; for a squashed one also those that it replaces."""
    migration = loader.disk_migrations.get(pair)
    return [pair] + [tuple(replaced) for replaced in (migration and migration.replaces) or ()]


def leaves_of(operations, prefix=""):
    """The operations that change the database, those inside SeparateDatabaseAndState too, as {"2.1": operation}."""
    leaves = {}
    for index, operation in enumerate(operations):
        number = "%s%d" % (prefix, index + 1)
        inner = getattr(operation, "database_operations", None)
        leaves.update({number: operation} if inner is None else leaves_of(inner, number + "."))
    return leaves


def fingerprint(operation):
    """What makes an operation another one; of a RunPython its function's name, not what is in it."""
    from django.db.migrations.writer import OperationWriter

    try:
        text = OperationWriter(operation).serialize()[0]
    except Exception:  # A lambda, or an argument that cannot be written down.
        text = describe(operation)["describe"]
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def statements_of(operation, backwards):
    """The SQL of a RunSQL in one direction, as one text."""
    sql = operation.reverse_sql if backwards else operation.sql
    parts = sql if isinstance(sql, (list, tuple)) else [sql]
    return ";\n".join(str(part[0] if isinstance(part, (list, tuple)) else part) for part in parts)


def fits_transaction(operation, backwards):
    """Whether an operation may share a transaction with the mark that it is done.

    Django's own may, except those that are marked. A RunPython and several statements of SQL may not: the caller
    for no transaction may mean to commit in between, and has to bear being run again.
    """
    kind = type(operation)
    if kind.__name__ == "RunSQL":
        import sqlparse  # Which Django needs, too.

        text = statements_of(operation, backwards)
        return len(sqlparse.split(text)) == 1 and not re.search(
            r"\b(concurrently|vacuum|reindex|cluster|begin|start\s+transaction|commit|rollback|call|tablespace|database"
            r"|alter\s+(system|subscription|type))\b",
            text,
            re.I,
        )
    return (
        kind.__module__.startswith(("django.db.migrations.operations.", "django.contrib.postgres.operations"))
        and kind.__name__ != "RunPython"
        and not hasattr(operation, "_ensure_not_in_transaction")
    )


class Progress:
    """Remembers, in the database, which operations of a migration that is no transaction are done.

    Django does not: where the process dies between two operations, the next run begins with the first one and fails at
    what it finds. Here each operation and the mark that it is done are one transaction, where PostgreSQL allows it.
    The migration's row is there from its first operation on, until django_migrations has (or has no longer) its own.
    """

    def __init__(self, connection, migration, backwards):
        self.connection, self.backwards = connection, backwards
        self.pair = (migration.app_label, migration.name)
        self.leaves = leaves_of(migration.operations)
        self.prints = {number: fingerprint(operation) for number, operation in self.leaves.items()}
        self.done = marks_of(connection).get(self.pair, self.prints if backwards else {})
        if others := [number for number, known in self.done.items() if self.prints.get(number) != known]:
            raise Failure(
                "changed",
                "An earlier run left %s half done, and this release's file differs in what is in the database already "
                "(operation %s). Nothing was changed. Take the release with the file of that run, or restore the "
                "dump from before it." % (key(self.pair), ", ".join(others)),
            )

    def save(self, done):
        table = "CREATE TABLE IF NOT EXISTS %s (app text, name text, done text NOT NULL, PRIMARY KEY (app, name))"
        row = "INSERT INTO %s VALUES (%%s, %%s, %%s) ON CONFLICT (app, name) DO UPDATE SET done = EXCLUDED.done"
        with self.connection.cursor() as cursor:
            cursor.execute(table % PROGRESS)
            cursor.execute(row % PROGRESS, [*self.pair, json.dumps(done)])
        self.done = done

    def forget(self):
        if self.pair not in marks_of(self.connection):
            return
        with self.connection.cursor() as cursor:
            cursor.execute("DELETE FROM %s WHERE app = %%s AND name = %%s" % PROGRESS, self.pair)
            cursor.execute("SELECT count(*) FROM %s" % PROGRESS)
            if not cursor.fetchone()[0]:
                cursor.execute("DROP TABLE %s" % PROGRESS)

    def step(self, number, schema_editor, change):
        """Make one operation's change, unless it is made."""
        from django.db.transaction import atomic

        if (number in self.done) != self.backwards:
            note("operation %s was %s by an earlier run" % (number, "undone" if self.backwards else "done"))
            return
        done = {other: mark for other, mark in self.done.items() if other != number}
        if not self.backwards:
            done[number] = self.prints[number]
        together = fits_transaction(self.leaves[number], self.backwards)
        with atomic(ALIAS) if together else contextlib.nullcontext():
            if together:  # Checks of foreign keys that wait for the end would block an ALTER TABLE.
                schema_editor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            change()
            # What Django keeps for the migration's end (foreign keys, indexes) belongs to this operation.
            while schema_editor.deferred_sql:
                schema_editor.execute(schema_editor.deferred_sql.pop(0), None)
            self.save(done)


# ---------------------------------------------------------------------------------------------------------- changing


class Tracker:
    """Follows Django through the migrations of a run, operation by operation."""

    def __init__(self, migrations, lock, backwards=False):
        self.lock, self.backwards = lock, backwards
        self.wanted, self.total = {key((m.app_label, m.name)) for m in migrations}, len(migrations)
        self.finished, self.repaired, self._undo = [], [], []
        self.current, self.operation, self.done, self.progress = None, None, [], None

    def __enter__(self):
        from django.db.migrations.executor import MigrationExecutor

        verb = "unapply_migration" if self.backwards else "apply_migration"
        original = getattr(MigrationExecutor, verb)
        tracker = self

        def tracked(executor, state, migration, *args, **kwargs):
            tracker.begin(migration, executor.connection)
            result = original(executor, state, migration, *args, **kwargs)
            tracker.finish(migration)
            return result

        setattr(MigrationExecutor, verb, tracked)
        self._undo.append(lambda: setattr(MigrationExecutor, verb, original))
        return self

    def __exit__(self, *_):
        while self._undo:
            self._undo.pop()()

    def begin(self, migration, connection):
        name = key((migration.app_label, migration.name))
        self.current, self.operation, self.done = migration, None, []
        self.lock.check()
        if name not in self.wanted:
            why = "%s would be applied, but it was not in the plan that was checked. Run again."
            raise Failure("unexpected", why % name)
        verb = "unapplying" if self.backwards else "applying"
        note("%s %s (%d of %d)" % (verb, name, len(self.finished) + 1, self.total))
        if not migration.atomic and connection.vendor == "postgresql":
            self.progress = Progress(connection, migration, self.backwards)
            for number, operation in self.progress.leaves.items():
                self._wrap(operation, self._stepwise(self.progress, number, operation))
        for index, operation in enumerate(migration.operations):
            self._wrap(operation, self._tracked(index, operation))

    def _wrap(self, operation, around):
        """Let around(original, app_label, schema_editor, from_state, *others) replace the change."""
        verb = "database_backwards" if self.backwards else "database_forwards"
        original = getattr(operation, verb)
        setattr(operation, verb, lambda *arguments: around(original, *arguments))
        self._undo.append(lambda: operation.__dict__.pop(verb, None))

    def _stepwise(self, progress, number, operation):
        def around(original, app_label, schema_editor, from_state, *others):
            def change():
                self.repair(operation, app_label, schema_editor, from_state)
                original(app_label, schema_editor, from_state, *others)

            progress.step(number, schema_editor, change)

        return around

    def _tracked(self, index, operation):
        facts = dict(describe(operation), number=index + 1)

        def around(original, *arguments):
            self.operation = facts
            original(*arguments)
            self.operation = None
            self.done.append(facts)
            if not self.current.atomic and index + 1 < len(self.current.operations):
                reach("migrate")

        return around

    def repair(self, operation, app_label, schema_editor, state):
        """Drop what a killed run's CREATE INDEX CONCURRENTLY left, complete or not: it is built again."""
        kind = type(operation).__name__
        if kind == "RunSQL":
            self.repair_sql(statements_of(operation, self.backwards), schema_editor)
        if kind != ("RemoveIndexConcurrently" if self.backwards else "AddIndexConcurrently"):
            return
        name = operation.name if self.backwards else operation.index.name
        table = state.apps.get_model(app_label, operation.model_name)._meta.db_table
        left = query(
            schema_editor.connection,
            "SELECT indexrelid::regclass::text FROM pg_index i JOIN pg_class c"
            " ON c.oid = i.indexrelid WHERE c.relname = %s AND i.indrelid = %s::regclass"
            " AND pg_table_is_visible(c.oid)",
            [name, schema_editor.quote_name(table)],
        )
        for (index,) in left:
            self.drop(index, schema_editor)

    def repair_sql(self, sql, schema_editor):
        """The same for an index that SQL names; with IF NOT EXISTS a complete one is left, and would be kept."""
        name = r"((?:\"[^\"]+\"|\w+)(?:\.(?:\"[^\"]+\"|\w+))?)"
        for sure, index, table in re.findall(
            r"\bcreate\s+(?:unique\s+)?index\s+concurrently\s+(if\s+not\s+exists\s+)?%s\s+on\s+(?:only\s+)?%s"
            % (name, name),
            sql,
            re.I,
        ):
            # Its index is in its table's schema, whatever search_path is.
            left = query(
                schema_editor.connection,
                "SELECT indexrelid::regclass::text, indisvalid FROM pg_index JOIN pg_class i ON i.oid = indexrelid"
                " WHERE indrelid = to_regclass(%s) AND i.relname = (parse_ident(%s))[1]",
                [table, index],
            )
            for index, valid in left:
                if not (sure and valid):
                    self.drop(index, schema_editor)

    def drop(self, index, schema_editor):
        note("dropping the index %s of an earlier run" % index)
        schema_editor.execute("DROP INDEX CONCURRENTLY IF EXISTS %s" % index)
        self.repaired.append("dropped the index %s of an earlier run" % index)

    def finish(self, migration):
        if self.progress:
            self.progress.forget()
        self.finished.append({"app": migration.app_label, "name": migration.name})
        self.current, self.operation, self.done, self.progress = None, None, [], None


def sqlstate_of(error):
    """Find the database's code in an exception or what caused it."""
    while error is not None:
        state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if state:
            return state
        error = error.__cause__ or error.__context__
    return ""


def invalid_indexes(lock):
    if lock.connection is None:
        return []
    sql = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid ORDER BY 1"
    return [row[0] for row in query(lock.connection, sql)]


def open_transactions(lock):
    """Name the sessions that had been in a transaction for the longest time, when a lock was not to be had."""
    if lock.connection is None:
        return []
    rows = query(
        lock.connection,
        "SELECT a.pid, coalesce(nullif(a.application_name, ''), 'no name'), coalesce(a.state, '?'),"
        " extract(epoch FROM now() - a.xact_start)::int FROM pg_stat_activity a"
        " WHERE a.datname = current_database() AND a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid()"
        " AND a.application_name <> %s ORDER BY a.xact_start LIMIT 5",
        [NAME],
    )
    return ["session %d (%s, %s, for %d s)" % row for row in rows]


def numbered(operation):
    return "%(number)d (%(describe)s)" % operation


def explain(error, tracker, connection, lock):
    """Turn an exception inside a run into a failure that shows where it happened and what stays."""
    if isinstance(error, Failure):
        details = dict(error.details)
    else:
        state = sqlstate_of(error)
        migration, operation = tracker.current, tracker.operation
        details = {"sqlstate": state, "type": type(error).__name__, "database_message": first_line(error)}
        if migration is None:
            when = "after them (a post_migrate handler)" if len(tracker.finished) == tracker.total else "around them"
            words = (when, type(error).__name__, first_line(error))
            details["kind"] = "around"
            details["message"] = "The migrations ran, but what the application does %s failed: %s: %s" % words
        else:
            name = key((migration.app_label, migration.name))
            where = "after its operations" if tracker.done else "before its first operation"
            if operation:
                where = "in operation " + numbered(operation)
            transactional = migration.atomic and connection.features.can_rollback_ddl
            half = not transactional and bool(tracker.done or operation)
            words = (name, where, type(error).__name__, first_line(error).rstrip("."))
            sentences = ["Migration %s failed %s: %s: %s." % words]
            if half:
                left = "its first operation may have left something"
                if tracker.done:
                    left = "done before were " + ", ".join(map(numbered, tracker.done))
                more = " The next run continues after them." if tracker.progress and tracker.done else ""
                words = ("unapplied" if tracker.backwards else "applied", left, more)
                sentences.append("It does not run in a transaction, so it may be half %s: %s.%s" % words)
            else:
                sentences.append("It was rolled back completely.")
            details.update(kind="migration_failed", app=migration.app_label, name=migration.name, half_applied=half)
            details.update(operation=operation, operations_done=list(tracker.done))
            blockers, broken = [], []
            with contextlib.suppress(Exception):
                blockers = open_transactions(lock) if state == "55P03" else []
                broken = invalid_indexes(lock) if half else []
            if state in HINTS:
                details["hint"] = HINTS[state]
            if blockers:
                details["blockers"] = blockers
                sentences.append("In a transaction at that time: %s." % ", ".join(blockers))
            if broken:
                details["invalid_indexes"] = broken
                sentences.append("Unfinished indexes in the database: %s." % ", ".join(broken))
            details["message"] = " ".join(sentences)
    if tracker.finished:
        names = ", ".join(key((m["app"], m["name"])) for m in tracker.finished)
        words = ("unapplied" if tracker.backwards else "applied", names, "" if len(tracker.finished) > 1 else "s")
        details["message"] += " Before it, this run %s %s, which stay%s." % words
    return details


def outcome(connection, tracker, failure=None):
    response = {"done": tracker.finished, "repaired": tracker.repaired, "vendor": connection.vendor, "applied": []}
    if failure is None:
        response["applied"] = rows_of(connection)
        return response
    response["failure"] = failure
    try:
        connection.close()  # Whatever state the failed statement left it in.
        response["applied"] = rows_of(connection)
    except Exception as error:
        note("the applied migrations cannot be read any more: %s" % first_line(error))
    return response


def apply(connection, request):
    """Apply what is pending.

    Request: expected: [[app, name]] that may be applied (others stop the run; null: anything), handlers: true to run
    `migrate` although nothing is pending, for its signal handlers; lock_wait_seconds, lock_timeout_seconds.
    """
    from django.core.management import call_command

    twin = prepare(connection, request)
    with Lock(connection, twin, request.get("lock_wait_seconds", 60)) as lock:
        executor = executor_of(connection)
        if half := half_done(connection, executor.loader):  # In either direction; it is done completely.
            for pair in half:
                for row in rows_after(executor.loader, pair) if pair in executor.loader.disk_migrations else ():
                    executor.recorder.record_unapplied(*row)
            executor = executor_of(connection)
        pending = pending_of(executor)
        if request.get("expected") is not None:
            allowed = {tuple(pair) for pair in request["expected"]}
            others = [key((m.app_label, m.name)) for m in pending if (m.app_label, m.name) not in allowed]
            if others:
                why = "The pending migrations are not those that were checked: %s came to it. Nothing was changed."
                raise Failure("unexpected", (why % ", ".join(others)) + " Run again.")
        tracker = Tracker(pending, lock)
        if not pending and not request.get("handlers"):
            return outcome(connection, tracker)
        try:
            with tracker:
                call_command("migrate", database=ALIAS, interactive=False, verbosity=1, no_color=True)
        except Exception as error:
            traceback.print_exc()
            return outcome(connection, tracker, explain(error, tracker, connection, lock))
        reach("migrated")
        return outcome(connection, tracker)


def backwards_plan(executor, keep):
    """Return the migrations to unapply, in order, so that only `keep` stays; refuse what cannot be done."""
    loader = executor.loader
    graph = loader.graph
    applied = set(loader.applied_migrations)
    there = {squashed: one for squashed, one in loader.replacements.items() if squashed in graph.nodes}
    owner = {tuple(replaced): squashed for squashed, one in there.items() for replaced in one.replaces}
    covered = set(keep)
    for node in keep:
        if node in loader.replacements:
            covered |= {tuple(pair) for pair in loader.replacements[node].replaces}
    nodes, lost, partly = [], [], []
    for row in sorted(applied):
        if row in covered:
            continue
        node = row if row in graph.nodes else owner.get(row)
        if node is None:
            lost.append(key(row))
            continue
        replaced = {tuple(pair) for pair in graph.nodes[node].replaces or ()}
        if replaced and replaced <= covered:
            continue
        if replaced & covered:
            partly.append(key(node))
        nodes.append(node)
    if lost:
        raise Failure("lost", "The release that should unapply them does not hold the files of %s." % ", ".join(lost))
    if partly:
        why = "%s can only be unapplied completely, and the older release needs a part of it."
        raise Failure("squashed", why % ", ".join(sorted(set(partly))))
    order = list(dict.fromkeys(one for node in nodes for one in graph.backwards_plan(node) if one in applied))
    more = [key(node) for node in order if node not in set(nodes)]
    if more:
        why = "%s depend on what would be unapplied, and the older release holds them."
        raise Failure("needed", why % ", ".join(more))
    # backwards_plan gives each one after those that depend on it; keep that over all of them.
    forwards = [(one.app_label, one.name) for one, _ in executor.migration_plan(graph.leaf_nodes(), clean_start=True)]
    plan = [graph.nodes[node] for node in sorted(order, key=forwards.index, reverse=True)]
    stuck = []
    for migration in plan:
        kept = ", ".join(describe(one)["describe"] for one in migration.operations if not one.reversible)
        stuck += ["%s (%s)" % (key((migration.app_label, migration.name)), kept)] if kept else []
    if stuck:
        why = "These have no reverse code: %s. Nothing was changed; only restoring the backup from before goes back."
        raise Failure("irreversible", why % "; ".join(stuck))
    return plan


def reverse(connection, request):
    """Unapply everything that is applied and not in keep; to be run by the newer release's code.

    Request: keep: [[app, name]] that the older release knows, dry_run, and the timeouts of apply.
    """
    from django.core.management.sql import emit_post_migrate_signal, emit_pre_migrate_signal

    keep = {tuple(pair) for pair in request["keep"]}

    def to_undo(executor):
        half = [pair for pair in half_done(connection, executor.loader) if pair not in keep]
        if lost := [key(pair) for pair in half if pair not in executor.loader.graph.nodes]:
            raise Failure("lost", "The release that should undo them does not hold the files of %s." % ", ".join(lost))
        return half

    if request.get("dry_run"):
        executor = executor_of(connection)
        executor.loader.applied_migrations.update((pair, None) for pair in to_undo(executor))
        plan = backwards_plan(executor, keep)
        pending = [describe_migration(migration) for migration in plan]
        return {"pending": pending, "applied": rows_of(connection), **NOTHING, "vendor": connection.vendor}
    twin = prepare(connection, request)
    import_management()
    with Lock(connection, twin, request.get("lock_wait_seconds", 60)) as lock:
        executor = executor_of(connection)
        if half := to_undo(executor):
            for pair in half:
                executor.record_migration(executor.loader.graph.nodes[pair])
            executor = executor_of(connection)
        migrations = backwards_plan(executor, keep)
        tracker = Tracker(migrations, lock, backwards=True)
        if not migrations:
            return outcome(connection, tracker)
        plan = [(migration, True) for migration in migrations]
        try:
            with tracker:
                before = executor._create_project_state(with_applied_migrations=True).apps
                emit_pre_migrate_signal(1, False, ALIAS, stdout=sys.stderr, apps=before, plan=plan)
                state = executor.migrate(None, plan=plan)
        except Exception as error:
            traceback.print_exc()
            return outcome(connection, tracker, explain(error, tracker, connection, lock))
        response = outcome(connection, tracker)
        try:
            emit_post_migrate_signal(1, False, ALIAS, stdout=sys.stderr, apps=state.apps, plan=plan)
        except Exception as error:  # The schema is back; a handler written for the new one must not undo that.
            note("a post_migrate handler failed: %s: %s" % (type(error).__name__, first_line(error)))
            response["warning"] = "A post_migrate handler failed after the reversal: %s" % first_line(error)
        return response


def limit(seconds):
    """End this process by itself: whoever waits for it may have been killed."""
    # No signal: the first process of a PID namespace gets none from itself.
    timer = threading.Timer(float(seconds), os._exit, (1,))
    timer.daemon = True
    timer.start()
    return timer


NOTHING = {"done": [], "repaired": []}
OPERATIONS = {"plan": read_state, "apply": apply, "reverse": reverse}


def main():
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # From here on every print of the application, also of its children, goes to standard error.
    connection = None
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        timer = limit(request.get("limit_seconds", 86400))
        try:
            connection = connection or setup()
            try:
                response = OPERATIONS[request["op"]](connection, request)
            except Failure as failure:
                response = {"failure": failure.details, **NOTHING, "vendor": connection.vendor}
        except Exception as error:
            traceback.print_exc()
            response = {"error": "%s: %s" % (type(error).__name__, first_line(error))}
        channel.write("\n" + RESPONSE + json.dumps(response) + "\n")
        channel.flush()
        timer.cancel()


if __name__ == "__main__":
    main()
else:
    # Read at once: the program that contains this module may be replaced while it runs.
    SOURCE = __spec__.loader.get_source(__name__)
