"""PostgreSQL as the application, the exporter and the next run of the role meet it."""

from __future__ import annotations

import re

testinfra_hosts = ["ansible://converged"]

DATABASE_PASSWORD = "database-Hx5Mb1"


def as_application(sql, statement, password=DATABASE_PASSWORD, **more):
    return sql(statement, user="shiftmaster", password=password, **more)


def test_it_runs_in_debians_version_and_starts_at_boot(host, sql, unit, version):
    assert host.service(unit).is_running
    assert host.service("postgresql").is_enabled
    assert sql("SHOW server_version").stdout.startswith(f"{version}.")


def test_the_application_connects_by_verified_tls_and_scram(sql):
    done = as_application(sql, "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    assert done.stdout.strip() == "t|TLSv1.3", done.stderr
    assert (
        sql("SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'shiftmaster'").stdout.strip()
        == "t"
    )


def test_wrong_password_no_tls_and_the_superuser_are_refused(sql):
    assert "password authentication failed" in as_application(sql, "SELECT 1", password="wrong").stderr
    assert "no encryption" in as_application(sql, "SELECT 1", sslmode="disable").stderr
    assert "pg_hba.conf rejects" in sql("SELECT 1", user="postgres", password="x", database="postgres").stderr


def test_old_tls_is_refused(host):
    command = "echo | openssl s_client -starttls postgres -connect localhost:5432 -tls1_1 -cipher ALL:@SECLEVEL=0"
    assert "Cipher is (NONE)" in host.run(command).stdout
    assert "Cipher is (NONE)" not in host.run(command.replace("-tls1_1", "-tls1_2")).stdout


def test_pages_have_checksums(sql):
    assert sql("SHOW data_checksums").stdout.strip() == "on"


def test_memory_is_that_of_the_variable_and_not_of_the_machine(sql):
    names = ("shared_buffers", "effective_cache_size", "maintenance_work_mem", "work_mem")
    values = [sql(f"SHOW {name}").stdout.strip() for name in names]
    assert values == ["512MB", "1536MB", "128MB", "7MB"]


def test_the_server_is_sandboxed_and_keeps_its_functions(host, sql, unit):
    host.check_output(f"systemctl restart {unit}")
    report = host.check_output(f"systemd-analyze security --no-pager {unit}")
    assert float(re.search(r"exposure level for \S+: ([\d.]+)", report)[1]) <= 2.5, report
    status = host.check_output(f"cat /proc/$(systemctl show --property=MainPID --value {unit})/status")
    found = dict(re.findall(r"^(\w+):\s+(.*)$", status, re.M))
    assert (found["NoNewPrivs"], found["Seccomp"], int(found["CapBnd"], 16)) == ("1", "2", 0)
    # Peer logins, and what the server executes: compiled queries, data elsewhere, programs (archive_command).
    assert sql("SELECT current_user", database="postgres").stdout.strip() == "postgres"
    assert host.run("psql -XAtqw -d postgres -c 'SELECT 1'").rc != 0, "root became postgres by peer"
    compiled = sql("SET jit_above_cost = 0; SELECT pg_jit_available(), sum(g) FROM generate_series(1, 1000) g")
    assert compiled.stdout.strip() == "t|500500", compiled.stderr
    host.check_output("install -d -o postgres -m 0700 /srv/elsewhere")
    moved = "CREATE TABLESPACE elsewhere LOCATION '/srv/elsewhere'"
    assert sql(moved).rc == 0 and sql("CREATE TABLE moved () TABLESPACE elsewhere").rc == 0
    assert sql("DROP TABLE moved").rc == 0 and sql("DROP TABLESPACE elsewhere").rc == 0
    assert sql("COPY (SELECT 1) TO PROGRAM 'cat >/var/lib/postgresql/program'").rc == 0
    # And what it does not need.
    assert sql("COPY (SELECT 1) TO PROGRAM 'cat >/home/x'").rc != 0
    host.check_output("rm -rf /srv/elsewhere /var/lib/postgresql/program")


def test_roles_have_least_rights(sql):
    flags = "rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, rolconnlimit"
    assert sql(f"SELECT {flags} FROM pg_roles WHERE rolname = 'shiftmaster'").stdout.strip() == "f|f|f|f|f|60"
    assert sql("SHOW statement_timeout", user="shiftmaster", password=DATABASE_PASSWORD).stdout.strip() == "1min"
    sql("CREATE ROLE stranger LOGIN PASSWORD 'stranger'")
    try:
        done = sql("SELECT 1", user="stranger", password="stranger")
        assert "permission denied for database" in done.stderr
    finally:
        sql("DROP ROLE stranger")
    done = sql("CREATE TABLE t (i int)", user="monitor", password="monitor-Fj3Vt8")
    assert "permission denied for schema public" in done.stderr
    assert as_application(sql, "CREATE TABLE t (i int); DROP TABLE t").rc == 0


def test_statistics_of_statements_are_read_by_a_role_with_pg_monitor(sql):
    as_application(sql, "SELECT 20251105 AS find_me")
    found = sql(
        "SELECT count(*) FROM pg_stat_statements WHERE query ~ 'AS find_me'",
        user="monitor",
        password="monitor-Fj3Vt8",
    )
    assert int(found.stdout) >= 1, found.stderr


def test_slow_statements_and_lock_waits_are_logged(host, sql, version):
    as_application(sql, "SELECT pg_sleep(1.1) AS slow_one")
    log = host.file(f"/var/log/postgresql/postgresql-{version}-main.log").content_string
    assert "slow_one" in log and "user=shiftmaster,db=shiftmaster" in log
    assert sql("SHOW log_lock_waits").stdout.strip() == "on"


def test_a_forgotten_transaction_is_ended(sql):
    assert sql("SHOW idle_in_transaction_session_timeout").stdout.strip() == "5min"


def test_a_change_that_a_reload_can_apply_does_not_restart(apply, sql, started, unit):
    before = started(unit)
    done = apply("postgresql", postgresql_log_min_duration_milliseconds=700)
    assert done.changed == 1
    assert sql("SHOW log_min_duration_statement").stdout.strip() == "700ms"
    assert started(unit) == before
    assert apply("postgresql").changed == 1
    assert sql("SHOW log_min_duration_statement").stdout.strip() == "1s"


def test_a_change_that_needs_a_restart_restarts_once_and_can_wait(apply, sql, started, unit):
    before = started(unit)
    waits = apply("postgresql", postgresql_max_connections=110, postgresql_restart=False)
    assert "must be restarted for: max_connections" in waits.line
    assert started(unit) == before
    assert apply("postgresql", postgresql_max_connections=110).changed == 1
    assert started(unit) != before
    assert sql("SHOW max_connections").stdout.strip() == "110"
    assert apply("postgresql", postgresql_max_connections=110).changed == 0
    apply("postgresql")


def test_a_new_password_works_at_once_and_leaks_nowhere(host, apply, sql, version):
    new = "database-rotated-Kw8Pz3"
    try:
        done = apply("postgresql", "-vvv", part="access.yml", database_password=new)
        assert done.changed == 1
        assert as_application(sql, "SELECT 1", password=new).rc == 0
        assert as_application(sql, "SELECT 1").rc != 0
        assert apply("postgresql", part="access.yml", database_password=new).changed == 0
        log = host.file(f"/var/log/postgresql/postgresql-{version}-main.log").content_string
        journal = host.check_output("journalctl --no-pager --output=cat")
        statements = sql("SELECT query FROM pg_stat_statements").stdout
        for place in (done.text, log, journal, statements):
            assert new not in place and DATABASE_PASSWORD not in place
            assert "SCRAM-SHA-256$4096" not in place
        assert "ALTER USER" not in statements
    finally:
        apply("postgresql", part="access.yml")
