"""Evidence of PostgreSQL, queried as its own user over its own socket, in one connection and read-only.

The same queries run on PostgreSQL 15, 16 and 17. They are also the database report.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import time

from ..health import checks
from ..host import database_cluster, probe, safe_files
from ..host.sql import SAFE_SEARCH_PATH
from . import logs
from .engine import Absent
from .host import read_file
from .redact import redact_sql

# Each is a SELECT whose rows become a list of objects. Times are in seconds.
# (refuses_writes: this session reads only by itself; whether others do is written where their settings come from.)
QUERIES = {
    "server": """
        SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS number,
               pg_is_in_recovery() AS standby, extract(epoch FROM now() - pg_postmaster_start_time())::bigint AS uptime,
               current_setting('max_connections')::int AS max_connections,
               current_setting('superuser_reserved_connections')::int AS reserved,
               current_setting('data_directory') AS data_directory,
               current_setting('synchronous_standby_names') AS synchronous_standby_names,
               current_setting('transaction_read_only') AS read_only,
               EXISTS (SELECT FROM pg_db_role_setting, unnest(setconfig) AS one WHERE setrole = 0 AND setdatabase IN
                       (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
                       AND one ~* '^default_transaction_read_only=(on|true|yes|1)$')
               OR EXISTS (SELECT FROM pg_file_settings WHERE name = 'default_transaction_read_only' AND applied
                          AND setting ~* '^(on|true|yes|1)$') AS refuses_writes""",
    "connections": """
        SELECT coalesce(usename, '') AS role, coalesce(datname, '') AS database, coalesce(state, '') AS state,
               coalesce(application_name, '') AS application, count(*) AS count
        FROM pg_stat_activity WHERE backend_type = 'client backend' GROUP BY 1, 2, 3, 4 ORDER BY count DESC LIMIT 30""",
    "databases": """
        SELECT d.datname AS name, pg_database_size(d.oid) AS bytes, age(d.datfrozenxid) AS age, d.datallowconn AS allowed,
               d.datconnlimit AS connection_limit, s.deadlocks, s.conflicts, s.temp_bytes, s.blks_hit, s.blks_read
        FROM pg_database d LEFT JOIN pg_stat_database s ON s.datid = d.oid WHERE NOT d.datistemplate""",
    # What runs, and for how long.
    "activity": """
        SELECT pid, usename AS role, datname AS database, coalesce(application_name, '') AS application,
               coalesce(host(client_addr), 'socket') AS client, state, coalesce(wait_event_type, '') AS waits_for,
               coalesce(wait_event, '') AS wait_event, pg_blocking_pids(pid) AS blocked_by,
               extract(epoch FROM now() - xact_start)::int AS transaction_seconds,
               extract(epoch FROM now() - query_start)::numeric(12, 1) AS query_seconds,
               extract(epoch FROM now() - state_change)::int AS state_seconds, left(query, 1000) AS query
        FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND state IS DISTINCT FROM 'idle'
        ORDER BY xact_start NULLS LAST LIMIT 30""",
    "replication": """
        SELECT application_name AS standby, host(client_addr) AS client, state, sync_state,
               pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
                               replay_lsn)::bigint AS lag_bytes,
               extract(epoch FROM replay_lag)::int AS lag_seconds FROM pg_stat_replication""",
    "receiver": """
        SELECT status, sender_host, extract(epoch FROM now() - latest_end_time)::int AS silent_seconds
        FROM pg_stat_wal_receiver""",
    "standby": """
        SELECT extract(epoch FROM now() - pg_last_xact_replay_timestamp())::int AS lag_seconds
        WHERE pg_is_in_recovery()""",
    "slots": """
        SELECT slot_name AS name, active, coalesce(wal_status, '') AS wal_status,
               pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
                               restart_lsn)::bigint AS kept_bytes
        FROM pg_replication_slots""",
    "archiver": "SELECT archived_count, failed_count, last_failed_wal, last_failed_time > coalesce(last_archived_time, '-infinity') AS failing FROM pg_stat_archiver",
    "hba": "SELECT line_number AS line, type, database, user_name AS users, address, auth_method AS method, error FROM pg_hba_file_rules ORDER BY line",
    "settings": "SELECT name, setting, error FROM pg_file_settings WHERE error IS NOT NULL",
    "prepared": "SELECT count(*) AS count, coalesce(max(extract(epoch FROM now() - prepared))::int, 0) AS oldest FROM pg_prepared_xacts",
    "extensions": "SELECT extname AS name, extversion AS version FROM pg_extension",
    # After a restore or a crash nothing has been counted yet; what the last ANALYZE has found is still there.
    "tables": """
        SELECT schemaname AS schema, s.relname AS table, pg_total_relation_size(relid) AS bytes,
               pg_indexes_size(relid) AS index_bytes,
               CASE WHEN n_live_tup + n_tup_ins + n_tup_del = 0 THEN greatest(c.reltuples, 0)::bigint ELSE n_live_tup END AS rows,
               n_dead_tup AS dead_rows,
               seq_scan AS scans, seq_tup_read AS scanned_rows, coalesce(idx_scan, 0) AS index_scans,
               coalesce(idx_tup_fetch, 0) AS index_rows,
               extract(epoch FROM now() - greatest(last_autovacuum, last_vacuum))::bigint AS vacuumed_seconds_ago,
               extract(epoch FROM now() - greatest(last_autoanalyze, last_analyze))::bigint AS analysed_seconds_ago,
               ARRAY(SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                     WHERE i.indrelid = relid AND i.indisvalid) AS indexed
        FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = relid ORDER BY bytes DESC LIMIT 20""",
    # By the statistics, not by reading the tables: a row is its columns and some 32 bytes of header, pointer and padding.
    "bloat": """
        SELECT n.nspname AS schema, c.relname AS table, pg_relation_size(c.oid) AS bytes,
               greatest(0, pg_relation_size(c.oid) - ceil(c.reltuples * (32 + w.width) / 8168) * 8192)::bigint AS bloat_bytes
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN LATERAL (SELECT sum((1 - null_frac) * avg_width) AS width FROM pg_stats s
                            WHERE s.schemaname = n.nspname AND s.tablename = c.relname) w
        WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
          AND c.reltuples >= 0 AND w.width IS NOT NULL AND pg_relation_size(c.oid) > 1048576
        ORDER BY bloat_bytes DESC LIMIT 10""",
    "rarely_used_indexes": """
        SELECT s.schemaname AS schema, s.relname AS table, s.indexrelname AS index, s.idx_scan AS scans,
               s.idx_tup_read AS entries_read, s.idx_tup_fetch AS rows_fetched, pg_relation_size(s.indexrelid) AS bytes
        FROM pg_stat_user_indexes s JOIN pg_index i USING (indexrelid)
        WHERE s.idx_scan < 100 AND NOT i.indisunique AND NOT i.indisprimary ORDER BY bytes DESC LIMIT 20""",
    "duplicate_indexes": """
        SELECT regexp_replace(indrelid::regclass::text, '^public[.]', '') AS table,
               array_agg(regexp_replace(indexrelid::regclass::text, '^public[.]', '')) AS indexes,
               sum(pg_relation_size(indexrelid))::bigint AS bytes
        FROM pg_index
        WHERE indrelid IN (SELECT relid FROM pg_stat_user_tables)
        GROUP BY indrelid, indkey::text, indclass::text, indcollation::text, indoption::text,
                 coalesce(pg_get_expr(indexprs, indrelid), ''), coalesce(pg_get_expr(indpred, indrelid), '')
        HAVING count(*) > 1""",
    "invalid_indexes": """
        SELECT regexp_replace(indexrelid::regclass::text, '^public[.]', '') AS index,
               regexp_replace(indrelid::regclass::text, '^public[.]', '') AS table FROM pg_index WHERE NOT indisvalid""",
    "unindexed_keys": """
        SELECT regexp_replace(c.conrelid::regclass::text, '^public[.]', '') AS table, c.conname AS constraint, pg_relation_size(c.conrelid) AS bytes
        FROM pg_constraint c
        WHERE c.contype = 'f' AND NOT EXISTS (
          SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indpred IS NULL
            AND (i.indkey::smallint[])[0:cardinality(c.conkey) - 1] @> c.conkey)
        ORDER BY bytes DESC LIMIT 10""",
    # What was set for a role or a database alone, which no file shows.
    "own_settings": """
        SELECT coalesce(rolname, '') AS role, coalesce(datname, '') AS database, one AS setting
        FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase,
             unnest(s.setconfig) AS one""",
    # Of the application's tables; Django itself makes none.
    "triggers": """
        SELECT n.nspname AS schema, c.relname AS table, t.tgname AS trigger, p.proname AS function FROM pg_trigger t
        JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND c.relowner = (SELECT relowner FROM pg_class WHERE oid = to_regclass('public.django_migrations'))
        ORDER BY 1, 2, 3 LIMIT 20""",
    # Of the application's tables, from whose owner policies keep rows where that is forced; Django makes no policies.
    "row_security": """
        SELECT n.nspname AS schema, c.relname AS table,
               ARRAY(SELECT polname::text FROM pg_policy WHERE polrelid = c.oid ORDER BY 1) AS policies
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner
        WHERE c.relrowsecurity AND c.relforcerowsecurity AND NOT r.rolbypassrls AND NOT r.rolsuper
              AND c.relowner = (SELECT relowner FROM pg_class WHERE oid = to_regclass('public.django_migrations')) ORDER BY 1, 2 LIMIT 20""",
    "expired_roles": """
        SELECT rolname AS role, extract(epoch FROM rolvaliduntil)::bigint AS until FROM pg_roles
        WHERE isfinite(rolvaliduntil) AND rolvaliduntil < now()""",
    "sequences": """
        SELECT schemaname AS schema, sequencename AS name, last_value, max_value FROM pg_sequences
        WHERE last_value > 0.9 * max_value AND NOT cycle ORDER BY last_value::numeric / max_value DESC LIMIT 10""",
    "vacuum": """
        SELECT relname AS table, age(relfrozenxid) AS age, pg_table_size(oid) AS bytes FROM pg_class
        WHERE relkind IN ('r', 'm', 't') AND age(relfrozenxid) > 100000000 ORDER BY age DESC LIMIT 10""",
}
# Queried in the database postgres, which knows the statements of all: in the application's, whose schemas are its own, the
# extension's name could lead to a view of the application at any time. These queries themselves are left out of the result. A statement's text holds no literals of its own; utility statements do.
STATEMENTS = {
    "slowest_on_average": """
        SELECT left(query, 600) AS query, calls, round(mean_exec_time::numeric, 1) AS mean_ms,
               round(total_exec_time::numeric, 0) AS total_ms, rows
        FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
        WHERE d.datname = current_database() AND mean_exec_time > 100 AND query NOT LIKE '%row_to_json(t)%' ORDER BY mean_exec_time DESC LIMIT 10""",
    "most_time_together": """
        SELECT left(query, 600) AS query, calls, round(mean_exec_time::numeric, 1) AS mean_ms,
               round(total_exec_time::numeric, 0) AS total_ms, rows
        FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
        WHERE d.datname = current_database() AND query NOT LIKE '%row_to_json(t)%' ORDER BY total_exec_time DESC LIMIT 10""",
    # What ended within a second.
    "just_now": """
        WITH before AS MATERIALIZED (SELECT * FROM public.pg_stat_statements(false)),
             later AS MATERIALIZED (SELECT pg_sleep(1)::text = '' AS slept FROM (SELECT count(*) FROM before) AS read)
        SELECT left(s.query, 600) AS query, s.calls - coalesce(b.calls, 0) AS calls,
               round(((s.total_exec_time - coalesce(b.total_exec_time, 0)) / (s.calls - coalesce(b.calls, 0)))::numeric, 1) AS mean_ms
        FROM later CROSS JOIN LATERAL public.pg_stat_statements(later.slept) s JOIN pg_database d ON d.oid = s.dbid
        LEFT JOIN before b USING (userid, dbid, queryid, toplevel)
        WHERE d.datname = current_database() AND s.calls > coalesce(b.calls, 0) AND s.query NOT LIKE '%row_to_json(t)%'
        ORDER BY mean_ms DESC LIMIT 10""",
}


def statements_of(database: str) -> dict:
    """Return STATEMENTS as they are queried in another database."""
    literal = "'%s'" % database.replace("'", "''")
    queries = {name: query.replace("current_database()", literal) for name, query in STATEMENTS.items()}
    return {
        name: query.replace(" pg_stat_statements s", " public.pg_stat_statements s") for name, query in queries.items()
    }


# No white space at which a text is taken apart into lines.
_MARK = "\t@@\t"


def script(queries: dict) -> list:
    """Return psql's arguments: each result is one line, its name before it."""
    arguments = []
    for name, query in queries.items():
        wrapped = "SELECT '%s' || '%s' || coalesce(json_agg(row_to_json(t)), '[]')::text FROM (%s) t" % (
            name, _MARK, " ".join(query.split()),
        )  # fmt: skip
        arguments.append("--command=" + wrapped)
    return arguments


def parse(text: str) -> dict:
    """Return {name: rows} of what psql has written."""
    found = {}
    for line in text.split("\n"):
        name, mark, rows = line.partition(_MARK)
        if mark:
            with contextlib.suppress(ValueError):
                found[name] = [
                    dict(row, query=redact_sql(row["query"])) if row.get("query") else row for row in json.loads(rows)
                ]
    return found


def run_queries(setting, database: str, queries: dict, seconds: float) -> tuple:
    """Query everything in one connection; returns ({name: rows}, errors). Raises ProbeError where there is no server."""
    limits = " -c statement_timeout=3s -c lock_timeout=500ms -c default_transaction_read_only=on -c jit=off"
    environment = {
        "PGOPTIONS": SAFE_SEARCH_PATH + limits,
        "PGAPPNAME": "shiftmaster-diagnose",
        "PGCONNECT_TIMEOUT": "3",
        "PGPASSFILE": "/nonexistent",
        "PGHOST": setting.postgres_socket,
        "PGPORT": str(setting.postgres_port),
        "PGUSER": "postgres",
    }
    command = ["psql", "--no-psqlrc", "--no-password", "--no-align", "--tuples-only", "--dbname=" + database]
    # As another user it does not see a directory that only root may enter.
    become = ["runuser", "-u", "postgres", "--", "env", "--chdir=/"]
    code, stdout, stderr = probe.run([*become, *command, *script(queries)], seconds, environment)
    results = parse(stdout)
    if not results:
        if code == 127:
            raise probe.ProbeError("error", "missing", "psql is not installed")
        message = " ".join(stderr.split())[:400]
        if not message:
            printed = " ".join(stdout.split())[:100] or "nothing"
            why = "psql ended with %d and gave no response that can be read: %s" % (code, printed)
            raise probe.ProbeError("error", "garbage", why)
        raise probe.ProbeError("down", refusal(message), re.sub(r"^psql: (error: )?", "", message))
    return results, [line[:300] for line in stderr.splitlines() if "ERROR" in line][:10]


def refusal(message: str) -> str:
    """Return a short reason for what psql shows when it cannot connect."""
    for reason, words in (
        # Of the socket: a server that runs may lack a file, too.
        ("stopped", "failed: No such file or directory|Connection refused"),
        ("hba", "pg_hba.conf|Peer authentication failed"),
        ("connections", "too many clients|remaining connection slots"),
        ("starting", "starting up"),
        ("stopping", "shutting down"),
        ("recovering", "in recovery mode"),
        ("absent", "does not exist"),
        ("wraparound", "not accepting commands"),
        ("disk", "No space left"),
        ("timeout", "timeout"),
    ):
        if re.search(words, message):
            return reason
    return "refused"


def database(setting) -> dict:
    """Everything that PostgreSQL knows of itself and of the application's database."""
    if not glob.glob(setting.path("/etc/postgresql/*/*")) and not glob.glob(setting.path("/usr/lib/postgresql/*/bin")):
        raise Absent("PostgreSQL is not installed")
    try:
        results, errors = run_queries(setting, setting.database, QUERIES, 8.0)
        slow, more = run_queries(setting, "postgres", statements_of(setting.database), 4.0)
        results.update(slow)
        errors += more
    except probe.ProbeError as error:
        if error.reason != "absent":
            raise
        # The server is there, the database is not.
        results, errors = run_queries(setting, "postgres", QUERIES, 6.0)
        results["missing_database"] = [{"name": setting.database}]
    path = logs.newest(setting.logs.get("postgresql", ""))
    results["logged"] = logs.slow_statements(path, setting.database, time.time() - 120) if path else []
    found = dict(summary(results), errors=errors, name=setting.database)
    files = damaged_files(setting)
    if files:
        with contextlib.suppress(probe.ProbeError):
            found["damaged"] = run_queries(
                setting, setting.database, {"damaged": _DAMAGED % ", ".join("'%s'" % one for one in files)}, 2.0
            )[0]["damaged"]
    return found


# The number of a table's or an index's file.
_DAMAGED = """
    SELECT c.relname AS name, c.relkind AS kind, coalesce(i.indrelid::regclass::text, '') AS table
    FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_database d ON d.datname = current_database()
    WHERE d.oid::text || '/' || pg_relation_filenode(c.oid) IN (%s) LIMIT 5"""


def damaged_files(setting) -> list:
    """Return the files with damaged pages that PostgreSQL has reported in the last minutes, as database/number."""
    paths = setting.logs.get("postgresql") or []
    path = logs.newest(paths) if isinstance(paths, str) else None
    with contextlib.suppress(OSError):
        lines = logs.tail(path, 64 * 1024).splitlines() if path else []
        # Of the server's own message, which holds no text of a statement.
        words = re.compile(
            r"\d.{20,400}?\] (?:ERROR|PANIC|FATAL|WARNING):  (?:invalid page|page verif|could not read bl)[^'\"]{0,80}[\"']?base/(\d{1,10}/\d{1,10})\b"
        )
        found = [
            match[1]
            for match in (words.match(line[:1000]) for line in lines)
            if match and (logs.timestamp(match.string) or 0) > time.time() - 900
        ]
        return sorted(set(found))[:5]
    return []


def summary(results: dict) -> dict:
    """Return the output of the queries with what follows from them."""
    found = dict(results)
    server = (results.get("server") or [{}])[0]
    rows = results.get("connections") or []
    # Where that one query failed, 14 connections are not 1400 % of nothing.
    usable = max(1, server["max_connections"] - server.get("reserved", 0)) if "max_connections" in server else None
    count = sum(row["count"] for row in rows)
    found["server"] = server
    found["use"] = {
        "connections": count,
        "usable": usable,
        "percent": round(100.0 * count / usable, 1) if usable else None,
        "idle_in_transaction": sum(row["count"] for row in rows if row["state"].startswith("idle in transaction")),
        "active": sum(row["count"] for row in rows if row["state"] == "active"),
    }
    activity = results.get("activity") or []
    found["blocked"] = [row for row in activity if row["blocked_by"]]
    found["blockers"] = blockers(activity)
    # Without a response nothing is known, which is not nothing.
    found["oldest_age"] = max([row["age"] for row in results.get("databases") or []], default=None)
    found["statements_known"] = "most_time_together" in results
    found["scanning_statements"] = scanning(results)
    found["slow_triggers"] = slow_triggers(results)
    large = [row for row in results.get("tables") or [] if row["rows"] > 10000]
    found["worst_dead_percent"] = max(
        [round(100.0 * row["dead_rows"] / (row["rows"] + row["dead_rows"]), 1) for row in large],
        default=0.0 if "tables" in results else None,
    )
    return found


def slow_statements(results: dict) -> list:
    """Return what may be slow now, {query, mean_ms, calls}, the slowest first.

    Statements that run, those that ended within the second of the diagnosis, those of the last two minutes in the log
    (a second or more), and those that are slow on average. One that ran a few times (a migration) is long past: its
    average stays until somebody resets it. One that has become slow after a million calls has a short average.
    """
    running = [
        {"query": row["query"], "mean_ms": 1000.0 * row["query_seconds"], "calls": 1}
        for row in results.get("activity") or []
        if row["state"] == "active"
        and row["query_seconds"]
        and not row["blocked_by"]
        # What holds others up is a fault of its own.
        and not any(row.get("pid") in other["blocked_by"] for other in results["activity"])
    ]
    often = [row for row in results.get("slowest_on_average") or [] if row["calls"] >= 10]
    # The time of a statement that has just begun is less useful than its average.
    lately = [*(results.get("just_now") or []), *(results.get("logged") or [])]
    return sorted([*running, *lately, *often], key=lambda one: -one["mean_ms"])


def slow_triggers(results: dict) -> list:
    """Return the triggers of tables to which writes are slow, with the slowest such statement."""
    found = []
    for trigger in results.get("triggers") or []:
        names = tuple(re.escape(trigger[name]) for name in ("schema", "table"))
        writes = r'(?i)\s*(?:insert\s+into|update(?:\s+only)?|delete\s+from)\s+(?:"?%s"?\.)?"?%s"?(?!\w)' % names
        of_table = [row for row in slow_statements(results) if row["mean_ms"] > 500 and re.match(writes, row["query"])]
        if of_table:
            slowest = max(of_table, key=lambda row: row["mean_ms"])
            found.append(dict(trigger, **{name: slowest[name] for name in ("query", "mean_ms", "calls")}))
    return sorted(found, key=lambda row: -row["mean_ms"])[:5]


# A column of a statement with a value, as Django writes it ("table"."column" = $1) or as people do.
_COMPARED = (
    r"(?i)(?:\b%s\"?\.|\b(?:where|and|or)\s+\(*)\"?([a-z_][a-z0-9_]*)\"?\s*"
    r"(?:(=|[<>]=?|in\b|between\b)|is\b|i?like\b|~)\s*[(]*(?:[$'?\d]|any\b)"
)


def scanning(results: dict) -> list:
    """Return the slow statements that name a large table which is mostly read completely: an index is missing."""
    broken = {row["table"].split(".")[-1].strip('"'): row["index"] for row in results.get("invalid_indexes") or []}
    # Each process of a parallel scan counts as one, and reads its part: 0.15. A table that is mostly read by its indexes is
    # read completely now and then, by reports and dumps.
    scanned = [
        row
        for row in results.get("tables") or []
        if row["rows"] > 10000 and row["scans"] > 5 and row["scanned_rows"] > 0.15 * row["rows"] * row["scans"]
        and row["scans"] > 0.1 * row["index_scans"]
    ]  # fmt: skip
    found = {}
    for statement in slow_statements(results):
        if not re.match(r"(?i)\s*(select|update|delete|with)\b", statement["query"]):
            continue
        for row in scanned:
            if row["table"] not in found and re.search(r"\b%s\b" % re.escape(row["table"]), statement["query"]):
                compared = re.findall(_COMPARED % re.escape(row["table"]), statement["query"])
                # Statistics of the time before an index was created: the table is read by it now.
                missing = [column for column in compared if column[0] not in row["indexed"]]
                if compared and not missing:
                    continue
                found[row["table"]] = {
                    "table": row["table"],
                    "rows": row["rows"],
                    "scans": row["scans"],
                    "scanned_rows": row["scanned_rows"],
                    "invalid_index": broken.get(row["table"], ""),
                    "column": next((name for name, operator in missing if operator), ""),
                    **{name: statement[name] for name in ("query", "mean_ms", "calls")},
                }
    return sorted(found.values(), key=lambda one: -one["mean_ms"])[:5]


def blockers(activity: list) -> list:
    """Return the sessions at the roots of the lock trees: who blocks and is not blocked, with whom he holds up."""
    waiting = {row["pid"]: row["blocked_by"] for row in activity if row["blocked_by"]}
    known = {row["pid"]: row for row in activity}
    roots = {}
    for pid, holders in waiting.items():
        # Along the chain to its beginning; two that wait for each other end in the deadlock detector.
        seen, todo = {pid}, list(holders)
        while todo:
            holder = todo.pop()
            if holder in seen:
                continue
            seen.add(holder)
            if holder in waiting:
                todo += waiting[holder]
            else:
                roots.setdefault(holder, set()).add(pid)
    return sorted(
        (
            dict(known.get(pid) or {"pid": pid, "state": "", "query": "", "state_seconds": None}, holds_up=sorted(held))
            for pid, held in roots.items()
        ),
        key=lambda row: -len(row["holds_up"]),
    )


def clusters(setting) -> dict:
    """The servers of this host as Debian keeps them, whether or not they run; and where their data lies."""
    found = []
    for directory in sorted(glob.glob(setting.path("/etc/postgresql/*/*"))):
        version, name = directory.split("/")[-2:]
        configuration = read_file(directory, "postgresql.conf") + "".join(
            read_file(path) for path in sorted(glob.glob(os.path.join(directory, "conf.d", "*.conf")))
        )
        # The files are postgres': a pattern that crosses lines takes a day for a megabyte of empty ones.
        port = re.findall(r"^[ \t]*port[ \t]*=[ \t]*'?(\d{1,5})", configuration, re.M)
        data = re.findall(r"^[ \t]*data_directory[ \t]*=[ \t]*'([^'\n]+)'", configuration, re.M)
        place = data[-1] if data else "/var/lib/postgresql/%s/%s" % (version, name)
        pid = (read_file(setting.path(place), "postmaster.pid").split() or [""])[0]
        found.append(
            {
                "version": version,
                "name": name,
                "port": int(port[-1]) if port else 5432,
                "data": place,
                "data_exists": os.path.isdir(setting.path(place)),
                "standby": os.path.exists(os.path.join(setting.path(place), "standby.signal")),
                "altered": altered(setting.path(place)),
                "runs": bool(pid) and os.path.isdir(os.path.join(setting.proc, pid)),
                "start": (read_file(directory, "start.conf").split("\n#")[-1].split() or ["auto"])[-1],
            }
        )
    if not found:
        raise Absent("this host has no PostgreSQL")
    return {"clusters": found}


def altered(data: str) -> list:
    """Return [{name, value, at}]: what ALTER SYSTEM has set, which no role uses; also while the server is down."""
    path = os.path.join(data, "postgresql.auto.conf")
    text = read_file(path, limit=65536)
    rows = re.findall(r"^[ \t]*([a-z_][a-z0-9_.]{0,80})[ \t]*=[ \t]*'((?:[^'\n]|''){0,200})'", text, re.M)
    # Of its own recovery, which standbys and restores write, and of connections with their passwords.
    own = re.compile(r"^(primary_|recovery_|restore_command|archive_cleanup|hot_standby|standby_)|passw|conninfo")
    try:
        at = round(safe_files.status(path).st_mtime, 1) if rows else None
    except OSError:
        at = None
    return [{"name": name, "value": value[:80], "at": at} for name, value in rows if not own.search(name)][:20]


def cluster(setting) -> dict:
    """What Patroni of this host reports: its role, the primary, synchronous standbys, and whether etcd has a majority."""
    if not setting.cluster_ca_file:
        raise Absent("the database of this host is no cluster")
    try:
        return dict(database_cluster.state(setting.cluster_ca_file, 2.5), works=True)
    except probe.ProbeError as error:
        return {"works": False, "message": str(error)}


def login(setting) -> dict:
    """Whether the application's own login works, with the values of its environment."""
    context = checks.Context(setting.environment_file, setting.environment_keys, setting.app_root, setting.user)
    target = checks.postgres_target({}, context)
    where = {"host": target.host, "port": target.port, "database": target.database, "role": target.user}
    try:
        return dict(where, works=True, **probe.postgres_ping(target, 4.0))
    except probe.ProbeError as error:
        # "pg_hba.conf rejects connection" is a line there; "no pg_hba.conf entry" is the lack of one.
        reason = "hba" if "pg_hba.conf" in str(error) else error.reason
        return dict(where, works=False, reason=reason, message=str(error))
