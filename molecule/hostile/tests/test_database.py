"""The application owns what is in its database: what it makes there does not run with a superuser's rights.

Obstacles of queries: functions that match better than PostgreSQL's, a view of an extension's name, a search_path that
is set for the database. Each would start a program as postgres, to whom the cluster and its backups belong.
"""

from __future__ import annotations

import pytest

OWNED = "/var/lib/postgresql/owned-by"
HOSTILE = r'''
from django.db import connection

def function(schema, name, arguments, result, volatility="VOLATILE"):
    return f"""
        CREATE OR REPLACE FUNCTION {schema}.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql {volatility} AS $body$
        BEGIN
          EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'touch OWNED-{name}');
          RETURN NULL;
        EXCEPTION WHEN OTHERS THEN RETURN NULL;
        END $body$"""

with connection.cursor() as cursor:
    cursor.execute("CREATE SCHEMA IF NOT EXISTS evil")
    for schema in ("evil", "public"):
        cursor.execute(function(schema, "format", "a text, b name, c name", "text"))
    cursor.execute(function("evil", "statements", "", "text"))
    cursor.execute("CREATE OR REPLACE VIEW evil.pg_stat_statements AS SELECT evil.statements() AS query,"
                   " 1::bigint AS calls, 1e9::float8 AS mean_exec_time, 1e9::float8 AS total_exec_time,"
                   " 1::bigint AS rows, (SELECT oid FROM pg_database WHERE datname = current_database()) AS dbid")
    for table, columns in {
        "pg_roles": "evil.statements()::name AS rolname, false AS rolsuper, 0::oid AS oid",
        "pg_extension": "evil.statements()::name AS extname, '1'::text AS extversion, 0::oid AS oid",
        "pg_namespace": "evil.statements()::name AS nspname, 0::oid AS nspowner, 0::oid AS oid",
        "pg_stat_database": "length(evil.statements()) AS numbackends, 'x'::name AS datname",
        "pg_database": "evil.statements()::name AS datname, 0::oid AS oid",
        "pg_stat_user_tables": "evil.statements()::name AS relname, 'public'::name AS schemaname, 0::oid AS relid",
    }.items():
        cursor.execute(f"CREATE OR REPLACE VIEW evil.{table} AS SELECT {columns}")
print("ready")
'''
# Each would keep other logins from the database, or change what they read there.
CLOSE = """
from django.db import connection
for words in ("CONNECTION LIMIT 0", "IS_TEMPLATE true", "SET statement_timeout = 1", "SET search_path = evil",
              "SET default_transaction_read_only = on", "SET session_authorization = shiftmaster", "RENAME TO x"):
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER DATABASE {connection.settings_dict['NAME']} {words}")
        print("gained:", words)
    except Exception as error:
        assert "must be owner" in str(error), error
print("tried")
"""
# Rights are only set again where they differ: the role has set something for itself.
HOLD = """
runuser -u postgres -- psql -q -d shiftmaster -c "ALTER ROLE shiftmaster IN DATABASE shiftmaster SET work_mem = '5MB'"
setsid runuser -u postgres -- psql -q -d shiftmaster -c 'SET ROLE shiftmaster' -c BEGIN \\
  -c 'GRANT USAGE ON SCHEMA public TO shiftmaster' -c 'SELECT pg_sleep(900)' >/dev/null 2>&1 </dev/null &
sleep 2
"""
CLEAN = """
from django.db import connection
with connection.cursor() as cursor:
    cursor.execute("DROP SCHEMA evil CASCADE")
    cursor.execute("DROP FUNCTION public.format(text, name, name)")
"""


@pytest.fixture(scope="module")
def hostile(operations):
    assert "ready" in operations.python(HOSTILE.replace("OWNED", OWNED))
    # The owner of a database could set it until 1.0.
    alter = "runuser -u postgres -- psql -q -d postgres -c 'ALTER DATABASE shiftmaster %s'"
    operations.shell(alter % "SET search_path = evil, public, pg_catalog")
    yield
    operations.shell(alter % "RESET search_path")
    operations.python(CLEAN)


def owned(operations) -> str:
    return operations.shell(f"ls {OWNED}* 2>/dev/null || true")


def test_the_application_cannot_lock_others_out_of_its_database(operations):
    output = operations.python(CLOSE)
    assert "tried" in output and "gained" not in output


def test_a_transaction_that_never_ends_does_not_block_a_deploy_for_ever(operations):
    operations.shell(HOLD)
    try:
        run = operations.run("deploy.yml", "--tags", "database", timeout=600)
    finally:
        operations.shell(
            'runuser -u postgres -- psql -qAt -c "SELECT pg_terminate_backend(pid) FROM pg_stat_activity'
            " WHERE query LIKE '%pg_sleep(900)%' AND pid <> pg_backend_pid()\""
        )
    assert run.code != 0 and "lock timeout" in run.output, run.output[-4000:]


def test_the_attack_succeeds_against_an_unprotected_query(operations, hostile):
    operations.shell("runuser -u postgres -- psql -qAt -d shiftmaster -c 'SELECT query FROM pg_stat_statements'")
    assert owned(operations) != ""
    operations.shell(f"rm -f {OWNED}*")


def test_roles_and_rights_are_set_without_the_applications_code(operations, hostile):
    run = operations.run("deploy.yml", "--tags", "database")
    assert run.code == 0, run.output[-4000:]
    assert owned(operations) == ""


@pytest.mark.parametrize("playbook", ["health.yml", "diagnose.yml"])
def test_reports_query_without_the_applications_code(operations, hostile, playbook):
    run = operations.run(f"playbooks/{playbook}", timeout=300)
    assert run.code in (0, 1, 2), run.output[-3000:]
    assert owned(operations) == ""
