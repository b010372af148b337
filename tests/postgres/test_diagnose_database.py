"""The diagnosis' questions to a real PostgreSQL: all are answered, and the lock tree, duplicates and scans are seen."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.parse

import pytest
from ansible.module_utils.shiftmaster import diagnose_database as database

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


def asked(env, queries):
    done = psql(env, *database.script(queries))
    return database.summary(database.parse(done.stdout)), done.stderr


def test_every_question_is_answered(server):
    # Three are for superusers, as whom the diagnosis asks.
    queries = {name: query for name, query in database.QUERIES.items() if name not in ("hba", "server", "settings")}
    found, errors = asked(server, queries)
    assert errors == "" and set(queries) <= set(found)


def test_indexes_and_keys_are_judged(server):
    found, _errors = asked(server, database.QUERIES)
    assert [sorted(row["indexes"]) for row in found["duplicate_indexes"]] == [["roster_note", "roster_note_again"]]
    assert [(row["table"], row["constraint"]) for row in found["unindexed_keys"]] == [("wish", "wish_roster_fkey")]
    assert {row["index"] for row in found["rarely_used_indexes"]} == {"roster_note", "roster_note_again"}


def test_empty_room_in_tables_is_estimated(server):
    fill = (
        "CREATE TABLE {} AS SELECT g AS id, repeat('x', g % 300) AS text, now() AS at FROM generate_series(1, 40000) g"
    )
    for command in (
        fill.format("holes"), fill.format("whole"), "DELETE FROM holes WHERE id % 10 > 0", "ANALYZE holes, whole",
    ):  # fmt: skip
        psql(server, "--command=" + command)
    try:
        found, _errors = asked(server, database.QUERIES)
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
    time.sleep(1)
    waiting = [
        subprocess.Popen(["psql", "--command=UPDATE roster SET note = 'Suzuki' WHERE id = 1"], env=server, text=True)
        for _number in range(2)
    ]
    try:
        deadline = time.monotonic() + 20
        while True:
            found, _errors = asked(server, database.QUERIES)
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


def test_a_statement_that_reads_a_whole_table_is_named(server):
    for _number in range(12):
        psql(server, "--command=SELECT count(*) FROM roster WHERE staff = 7")
    slow = [{"query": "SELECT count(*) FROM roster WHERE staff = $1", "mean_ms": 2000.0, "calls": 12}]
    deadline = time.monotonic() + 20
    while True:
        answers = database.parse(psql(server, *database.script(database.QUERIES)).stdout)
        found = database.scanning(dict(answers, slowest_on_average=slow))
        if found or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    # Right behind ANALYZE the statistics may count the rows twice.
    assert [(one["table"], one["rows"] >= 40000) for one in found] == [("roster", True)]
    # One that ran a few times (a migration) is long past.
    assert database.scanning(dict(answers, slowest_on_average=[dict(slow[0], calls=9)])) == []


def test_nothing_of_use_is_counted(server):
    """Asking changes no statistics of the application's tables and indexes."""
    question = (
        "--command=SELECT (SELECT sum(seq_scan + coalesce(idx_scan, 0)) FROM pg_stat_user_tables),"
        " (SELECT sum(idx_scan) FROM pg_stat_user_indexes)"
    )
    time.sleep(1.5)
    before = psql(server, question).stdout
    for _number in range(3):
        asked(server, database.QUERIES)
    time.sleep(1.5)
    assert psql(server, question).stdout == before
