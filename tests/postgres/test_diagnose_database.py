"""The diagnosis' queries on a real PostgreSQL: all return the prepared state."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.parse

import pytest
from ansible.module_utils.shiftmaster.backup import verification
from ansible.module_utils.shiftmaster.diagnosis import database, upkeep
from ansible.module_utils.shiftmaster.host.postgresql import COUNTS_SQL
from ansible.module_utils.shiftmaster.host.sql import COUNT_MIGRATIONS, SAFE_SEARCH_PATH, rows_of

SETUP = """
CREATE TABLE roster (id int PRIMARY KEY, staff int, note text);
INSERT INTO roster SELECT g, g % 500, 'x' FROM generate_series(1, 40000) g;
CREATE TABLE wish (id int PRIMARY KEY, roster int REFERENCES roster);
CREATE INDEX roster_note ON roster (note);
CREATE INDEX roster_note_again ON roster (note);
ANALYZE;
"""


def environment(dsn, name):
    parts = urllib.parse.urlsplit(dsn)
    return dict(
        os.environ, PGHOST=parts.hostname, PGPORT=str(parts.port), PGUSER=parts.username,
        PGPASSWORD=urllib.parse.unquote(parts.password), PGDATABASE=name, PGAPPNAME="diagnosed",
    )  # fmt: skip


def psql(env, *arguments, **more):
    command = ["psql", "--no-psqlrc", "--no-align", "--tuples-only", "--quiet", *arguments]
    return subprocess.run(command, env=env, text=True, capture_output=True, timeout=60, check=False, **more)


@pytest.fixture(scope="module")
def server(dsn):
    """The environment of a database of its own."""
    psql(environment(dsn, "postgres"), "--command=DROP DATABASE IF EXISTS diagnosed")
    assert psql(environment(dsn, "postgres"), "--command=CREATE DATABASE diagnosed").returncode == 0
    env = environment(dsn, "diagnosed")
    assert psql(env, "--set=ON_ERROR_STOP=1", input=SETUP).returncode == 0
    yield env
    psql(environment(dsn, "postgres"), "--command=DROP DATABASE diagnosed WITH (FORCE)")


def run_queries(env, queries):
    done = psql(env, *database.script(queries))
    return database.summary(database.parse(done.stdout)), done.stderr


def test_the_smallest_tables_are_counted_up_to_a_size(server):
    def tables(most_pages):
        sql = COUNTS_SQL.replace("MOST_PAGES", str(most_pages))
        return json.loads(psql(server, "--command", sql).stdout)["tables"]

    assert tables(1 << 62) == {"public.roster": 40000, "public.wish": 0}
    assert tables(10) == {"public.wish": 0}


def test_every_query_returns_a_result(server):
    # Three are for superusers, which the diagnosis uses.
    queries = {name: query for name, query in database.QUERIES.items() if name not in ("hba", "server", "settings")}
    found, errors = run_queries(server, queries)
    assert errors == "" and set(queries) <= set(found)


def test_indexes_and_keys_are_evaluated(server):
    found, _errors = run_queries(server, database.QUERIES)
    assert [sorted(row["indexes"]) for row in found["duplicate_indexes"]] == [["roster_note", "roster_note_again"]]
    assert [(row["table"], row["constraint"]) for row in found["unindexed_keys"]] == [("wish", "wish_roster_fkey")]
    assert {row["index"] for row in found["rarely_used_indexes"]} == {"roster_note", "roster_note_again"}


def test_large_indexes_come_first_regardless_of_the_number_of_small_ones(server):
    psql(server, input="".join(
        f"CREATE TABLE small{n} AS SELECT generate_series(1, 9) AS id; CREATE INDEX small{n}_id ON small{n} (id);"
        f" SET enable_seqscan = off; SELECT count(id) FROM small{n} WHERE id > 0;" for n in range(25)
    ))  # fmt: skip
    try:
        time.sleep(1.1)  # Use is counted when a session is idle, or ends.
        found, _errors = run_queries(server, database.QUERIES)
        rarely = found["rarely_used_indexes"]
        assert sum(row["scans"] > 0 for row in rarely) == 18 and len(rarely) == 20
        assert {row["index"] for row in rarely[:2]} == {"roster_note", "roster_note_again"}
    finally:
        psql(server, input="".join(f"DROP TABLE small{n};" for n in range(25)))


def test_empty_room_in_tables_is_estimated(server):
    fill = (
        "CREATE TABLE {} AS SELECT g AS id, repeat('x', g % 300) AS text, now() AS at FROM generate_series(1, 40000) g"
    )
    for command in (
        fill.format("holes"), fill.format("whole"), "DELETE FROM holes WHERE id % 10 > 0", "ANALYZE holes, whole",
    ):  # fmt: skip
        psql(server, "--command=" + command)
    try:
        found, _errors = run_queries(server, database.QUERIES)
        share = {row["table"]: row["bloat_bytes"] / row["bytes"] for row in found["bloat"]}
        assert 0.8 < share["holes"] < 0.95 and share["whole"] < 0.1, share
    finally:
        psql(server, "--command=DROP TABLE holes, whole")


def test_the_root_of_a_lock_tree_is_found_and_literals_are_hidden(server):
    holder = subprocess.Popen(
        ["psql", "--no-psqlrc", "--quiet"], env=server, text=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    holder.stdin.write("BEGIN; UPDATE roster SET note = 'Yamada' WHERE id = 1;\n")
    holder.stdin.flush()
    held = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'UPDATE roster%' AND state = 'idle in transaction'"
    assert reached(lambda: psql(server, f"--command={held}").stdout.strip(), "1") == "1"
    waiting = [
        subprocess.Popen(["psql", "--command=UPDATE roster SET note = 'Suzuki' WHERE id = 1"], env=server, text=True)
        for _number in range(2)
    ]
    try:
        deadline = time.monotonic() + 20
        while True:
            found, _errors = run_queries(server, database.QUERIES)
            if len(found["blocked"]) == 2 or time.monotonic() > deadline:
                break
            time.sleep(0.3)
        assert len(found["blocked"]) == 2
        assert [row["state"] for row in found["blockers"]] == ["idle in transaction"]
        assert len(found["blockers"][0]["holds_up"]) == 2
        assert found["blockers"][0]["query"].startswith("UPDATE roster SET note = '?'")
    finally:
        holder.communicate("ROLLBACK;\n", timeout=30)
        for process in waiting:
            process.wait(30)


def test_a_statement_that_reads_a_complete_table_is_named(server):
    for _number in range(12):
        psql(server, "--command=SELECT count(*) FROM roster WHERE staff = 7")
    slow = [{"query": "SELECT count(*) FROM roster WHERE staff = $1", "mean_ms": 2000.0, "calls": 12}]
    deadline = time.monotonic() + 20
    while True:
        responses = database.parse(psql(server, *database.script(database.QUERIES)).stdout)
        found = database.scanning(dict(responses, slowest_on_average=slow))
        if found or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    # Directly after ANALYZE the statistics may count the rows twice.
    assert [(one["table"], one["column"], one["rows"] >= 40000) for one in found] == [("roster", "staff", True)]
    # One that ran a few times (a migration) is long past.
    assert database.scanning(dict(responses, slowest_on_average=[dict(slow[0], calls=9)])) == []
    psql(server, "--command=CREATE INDEX roster_staff ON roster (staff)")
    responses = database.parse(psql(server, *database.script(database.QUERIES)).stdout)
    psql(server, "--command=DROP INDEX roster_staff")
    assert database.scanning(dict(responses, slowest_on_average=slow)) == []


def test_queries_change_no_statistics_of_the_application(server):
    """The queries change no statistics of the application's tables and indexes."""
    statement = (
        "--command=SELECT (SELECT sum(seq_scan + coalesce(idx_scan, 0)) FROM pg_stat_user_tables),"
        " (SELECT sum(idx_scan) FROM pg_stat_user_indexes)"
    )
    time.sleep(1.5)
    before = psql(server, statement).stdout
    for _number in range(3):
        run_queries(server, database.QUERIES)
    time.sleep(1.5)
    assert psql(server, statement).stdout == before


# --- statements ------------------------------------------------------------------------------------------------------


@pytest.fixture
def statements(dsn):
    """A database with pg_stat_statements (scripts/with_services), which has seen nothing yet."""
    env = environment(dsn, "statements")
    reset = psql(env, "--command=SELECT pg_stat_statements_reset()")
    assert reset.returncode == 0, reset.stderr
    yield env
    psql(env, "--command=DROP ROLE IF EXISTS seeded")


def test_slow_statements_are_those_that_ran_and_in_their_order(statements):
    run = ["--command=SELECT pg_sleep(0.3)"]
    run += 5 * ["--command=SELECT pg_sleep(0.12), now()"] + 40 * ["--command=SELECT 7"]
    run += ["--command=CREATE ROLE seeded PASSWORD 'seeded-secret'"]
    assert psql(statements, *run).returncode == 0
    # The diagnosis' own queries are no finding.
    run_queries(statements, dict(database.QUERIES, **database.STATEMENTS))
    found, errors = run_queries(statements, database.STATEMENTS)
    assert errors == "" and found["statements_known"]
    slowest = found["slowest_on_average"]
    assert [(row["query"], row["calls"]) for row in slowest] == [
        ("SELECT pg_sleep($1)", 1), ("SELECT pg_sleep($1), now()", 5),
    ]  # fmt: skip
    # No sleep is shorter than requested; this machine may be busy.
    assert 300 <= slowest[0]["mean_ms"] < 10_000 and 120 <= slowest[1]["mean_ms"] < 10_000
    together = found["most_time_together"]
    assert [row["query"] for row in together[:2]] == ["SELECT pg_sleep($1), now()", "SELECT pg_sleep($1)"]
    assert together[0]["total_ms"] == pytest.approx(5 * slowest[1]["mean_ms"], rel=0.02)
    assert together[0]["rows"] == 5
    assert [row["calls"] for row in together if row["query"] == "SELECT $1"] == [40]
    text = str(found)
    assert "CREATE ROLE seeded PASSWORD '?'" in text and "seeded-secret" not in text and "row_to_json" not in text


def test_statements_are_queried_in_another_database(statements):
    """Not in the application's own, where its name could lead to a view of the application."""
    queries = database.statements_of("it's")
    assert all("= 'it''s'" in one and "public.pg_stat_statements" in one for one in queries.values())
    assert not any(" pg_stat_statements" in one for one in queries.values())
    name = statements["PGDATABASE"]
    assert psql(statements, "--command=SELECT 77").returncode == 0
    found, errors = run_queries(statements, database.statements_of(name))
    assert errors == "" and found["most_time_together"]


def test_without_the_extension_statements_are_unknown(server):
    found, errors = run_queries(server, dict(database.QUERIES, **database.STATEMENTS))
    assert "pg_stat_statements" in errors and not found["statements_known"]
    assert "slowest_on_average" not in found and "tables" in found


# --- vacuum, transaction ids, replication -----------------------------------------------------------------------------


def reached(read, wanted, seconds=20):
    """The metrics of tables appear shortly after the change."""
    deadline = time.monotonic() + seconds
    while (found := read()) != wanted and time.monotonic() < deadline:
        time.sleep(0.3)
    return found


def test_dead_rows_are_deleted_rows_until_vacuum_removes_them(server):
    table = "CREATE TABLE holes (id int) WITH (autovacuum_enabled = off)"
    fill = "INSERT INTO holes SELECT generate_series(1, 20000)"
    try:
        for command in (table, fill, "ANALYZE holes", "DELETE FROM holes WHERE id <= 5000"):
            assert psql(server, "--command=" + command).returncode == 0

        def metrics():
            found, _errors = run_queries(server, {"tables": database.QUERIES["tables"]})
            row = next(row for row in found["tables"] if row["table"] == "holes")
            return row["rows"], row["dead_rows"], found["worst_dead_percent"], row["vacuumed_seconds_ago"] is None

        # 5 000 of 20 000, a quarter.
        assert reached(metrics, (15000, 5000, 25.0, True)) == (15000, 5000, 25.0, True)
        psql(server, "--command=VACUUM holes")
        assert reached(metrics, (15000, 0, 0.0, False)) == (15000, 0, 0.0, False)
    finally:
        psql(server, "--command=DROP TABLE holes")


def test_the_age_of_transaction_ids_is_how_many_were_used(server):
    def age():
        found, _errors = run_queries(server, {"databases": database.QUERIES["databases"]})
        ages = {row["name"]: row["age"] for row in found["databases"]}
        assert found["oldest_age"] == max(ages.values())
        return ages["diagnosed"]

    def waiting():
        # Nothing here is 100 million old.
        query = database.QUERIES["vacuum"].replace("100000000", "3000")
        return {row["table"]: row["age"] for row in run_queries(server, {"vacuum": query})[0]["vacuum"]}

    psql(server, "--command=VACUUM (FREEZE) roster, wish")
    before = age()
    used = "DO $$BEGIN FOR i IN 1..5000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END$$"
    assert psql(server, "--command=" + used).returncode == 0
    # Others may have used a few.
    assert 5000 <= age() - before < 5100
    assert run_queries(server, {"vacuum": database.QUERIES["vacuum"]})[0]["vacuum"] == []
    psql(server, "--command=CREATE TABLE young (id int)")
    old = waiting()
    assert 5000 <= max(old.values()) and "young" not in old
    psql(server, "--command=DROP TABLE young")


def test_wal_retained_for_a_replica_and_a_slot_is_the_wal_written(server):
    slot, container = "diagnosed_slot", os.environ["SHIFTMASTER_TEST_CONTAINER"]
    assert psql(server, f"--command=SELECT pg_create_physical_replication_slot('{slot}', true)").returncode == 0
    replica = None
    try:
        kept = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots"
        psql(server, "--command=CREATE TABLE written AS SELECT repeat('x', 500) FROM generate_series(1, 20000)")
        found, _errors = run_queries(server, database.QUERIES)
        row = next(row for row in found["slots"] if row["name"] == slot)
        assert (row["active"], row["wal_status"]) == (False, "reserved") and found["replication"] == []
        assert row["kept_bytes"] >= 20000 * 500
        now = int(psql(server, f"--command={kept} WHERE slot_name = '{slot}'").stdout)
        assert row["kept_bytes"] <= now < row["kept_bytes"] + 1000000
        receive = f"cd /tmp && mkdir wal && exec pg_receivewal --no-loop --directory wal --slot {slot} --synchronous"
        # By the server's own programs: this machine's may be older.
        replica = subprocess.Popen(
            ["docker", "exec", "--user", "postgres", "--env", "PGAPPNAME=replica", container, "bash", "-c", receive],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

        def state():
            found, _errors = run_queries(server, database.QUERIES)
            slots = [one["active"] for one in found["slots"] if one["name"] == slot]
            return [(one["standby"], one["state"], one["sync_state"]) for one in found["replication"]], slots

        # It takes what was kept.
        wanted = ([("replica", "streaming", "async")], [True])
        assert reached(state, wanted) == wanted, replica.poll() and replica.stderr.read()

        def held():
            row = next(one for one in run_queries(server, database.QUERIES)[0]["slots"] if one["name"] == slot)
            return row["kept_bytes"] < 100000

        assert reached(held, True)
    finally:
        if replica:
            subprocess.run(["docker", "exec", container, "pkill", "-x", "pg_receivewal"], check=False)
            replica.wait(30)
        psql(server, "--command=DROP TABLE IF EXISTS written")
        time.sleep(0.5)
        psql(server, f"--command=SELECT pg_drop_replication_slot('{slot}')")


# --- the application owns its database: no query of a superuser or of login `backup` runs its code ---

QUERIES = {**upkeep.ACCOUNTS_SQL, "migrations": COUNT_MIGRATIONS}
TABLES = """
CREATE TABLE auth_user (is_active bool, last_login timestamptz, date_joined timestamptz);
INSERT INTO auth_user VALUES (true, NULL, now() - interval '100 days'), (true, now(), now() - interval '100 days'),
  (false, NULL, now() - interval '100 days');
CREATE TABLE django_content_type (id int, app_label text);
INSERT INTO django_content_type VALUES (1, 'auth'), (2, 'roster');
CREATE TABLE django_admin_log (content_type_id int, action_time timestamptz);
INSERT INTO django_admin_log VALUES (1, now()), (1, now() - interval '2 days'), (2, now());
CREATE TABLE django_migrations (id int);
INSERT INTO django_migrations VALUES (1), (2);
"""
TRAP = "CREATE FUNCTION trap() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;"
VIEWS = (
    TRAP
    + """
CREATE VIEW auth_user AS SELECT true AS is_active, now() AS last_login, now() AS date_joined WHERE trap() = 1;
CREATE VIEW django_admin_log AS SELECT 1 AS content_type_id, now() AS action_time WHERE trap() = 1;
CREATE VIEW django_content_type AS SELECT 1 AS id, 'auth' AS app_label WHERE trap() = 1;
CREATE VIEW django_migrations AS SELECT 1 AS id WHERE trap() = 1;
"""
)
# A type of the application's own, which becomes a time by a function of its own.
CASTS = """
CREATE TYPE moment AS (at text);
CREATE FUNCTION trap(moment) RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE CAST (moment AS timestamptz) WITH FUNCTION trap(moment) AS IMPLICIT;
CREATE TABLE auth_user (is_active bool, last_login moment, date_joined moment);
INSERT INTO auth_user VALUES (true, ROW('x'), ROW('x'));
CREATE TABLE django_content_type (id int, app_label text);
INSERT INTO django_content_type VALUES (1, 'auth');
CREATE TABLE django_admin_log (content_type_id int, action_time moment);
INSERT INTO django_admin_log VALUES (1, ROW('x'));
CREATE TABLE django_migrations (id int);
"""


@pytest.fixture
def hostile(dsn):
    """A function that makes a database with these objects; its value is the environment of a query's session."""
    admin = environment(dsn, "postgres")

    def create(setup):
        assert psql(admin, "--command=CREATE DATABASE hostile").returncode == 0
        env = environment(dsn, "hostile")
        done = psql(env, "--set=ON_ERROR_STOP=1", input=setup)
        assert done.returncode == 0, done.stderr
        return dict(env, PGOPTIONS=SAFE_SEARCH_PATH)

    psql(admin, "--command=DROP DATABASE IF EXISTS hostile WITH (FORCE)")
    yield create
    psql(admin, "--command=DROP DATABASE IF EXISTS hostile WITH (FORCE)")


def test_the_rows_of_real_tables_are_counted(hostile):
    env = hostile(TABLES)
    found = {name: psql(env, "--command=" + query) for name, query in QUERIES.items()}
    assert {name: done.stdout.strip() for name, done in found.items()} == {
        "inactive": "2|1", "changed": "1", "migrations": "2",
    }, found  # fmt: skip


@pytest.mark.parametrize("setup", [VIEWS, CASTS], ids=["views", "casts"])
def test_no_function_of_the_application_is_called(hostile, setup):
    env = hostile(setup)
    found = {name: psql(env, "--command=" + query).stderr for name, query in QUERIES.items()}
    assert not {name: text for name, text in found.items() if "trapped" in text}


def test_settings_of_a_database_have_no_effect(hostile, dsn):
    env = hostile("CREATE TABLE hidden (id int); INSERT INTO hidden VALUES (1)")
    admin = environment(dsn, "postgres")
    for setting in ("search_path = public", "role = pg_monitor", "local_preload_libraries = 'absent'"):
        assert psql(admin, "--command=ALTER DATABASE hostile SET " + setting).returncode == 0
    done = psql(env, "--command=SELECT current_user = session_user, current_setting('search_path')")
    assert done.stdout.strip() == "t|pg_catalog,pg_temp", done


def test_a_name_with_the_end_of_a_line_is_one_row(hostile):
    env = hostile('CREATE TABLE "a\nb\x1f9" (id int); INSERT INTO "a\nb\x1f9" VALUES (1)')
    for query, columns in ((verification.COUNTS_SQL, 4), (verification.WRITES_SQL, 3)):
        done = psql(env, "--field-separator=\x1f", "--command=" + query)
        assert [len(row) for row in rows_of(done.stdout)] == [columns], done
        assert rows_of(done.stdout)[0][0] == 'public."a\\nb\\s9"'
