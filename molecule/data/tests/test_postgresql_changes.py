"""Values that PostgreSQL rejects or that are reverted, detected faults; the same code on both releases, so on one."""

from __future__ import annotations

import pytest

testinfra_hosts = ["ansible://data-trixie"]

DATABASE_PASSWORD = "database-Hx5Mb1"


def as_application(sql, statement, password=DATABASE_PASSWORD, **more):
    return sql(statement, user="shiftmaster", password=password, **more)


def test_a_check_before_a_change_shows_it_and_changes_nothing(apply, config, started, unit):
    before = config(), started(unit)
    done = apply("postgresql", "--check", "--diff", postgresql_max_connections=120)
    assert "+max_connections = 120" in done.text
    assert (config(), started(unit)) == before


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"postgresql_settings": {"work_mem": "lots"}}, 'invalid value for parameter "work_mem"'),
        ({"postgresql_settings": {"no_such_thing": 1}}, 'unrecognized configuration parameter "no_such_thing"'),
        ({"postgresql_tls_key_file": "/etc/ssl/private/absent.key"}, "/etc/ssl/private/absent.key: No such file"),
        ({"postgresql_tls_key_file": "/etc/ssl/private/internal-ca.key"}, "postgres cannot use"),
        (
            {
                "postgresql_hba_rules": [
                    {"type": "hostssl", "database": "all", "user": "all", "address": "192.0.2.1/99"}
                ]
            },
            "pg_hba.conf line",
        ),
    ],
    ids=["value", "name", "key", "other-key", "hba"],
)
def test_a_value_that_postgresql_rejects_is_named_and_the_old_one_stays(
    attempt, config, started, unit, sql, variables, words
):
    before = config(), started(unit), sql("SELECT pg_conf_load_time()").stdout
    done = attempt("postgresql", **variables)
    assert done.rc != 0 and words in done.line
    assert (config(), started(unit), sql("SELECT pg_conf_load_time()").stdout) == before


def test_a_value_with_which_it_does_not_start_is_reverted(attempt, apply, config, sql):
    before = config()
    done = attempt("postgresql", postgresql_settings={"shared_preload_libraries": "no_such_library"})
    assert done.rc != 0
    assert "no_such_library" in done.line and "back in place and in use" in done.line
    assert config() == before
    assert as_application(sql, "SELECT 1").rc == 0
    assert apply("postgresql").changed == 0


def test_a_value_set_elsewhere_is_reported(apply, sql):
    sql("ALTER SYSTEM SET work_mem = '5MB'")
    sql("SELECT pg_reload_conf()")
    try:
        assert "work_mem" in apply("postgresql").line
    finally:
        sql("ALTER SYSTEM RESET work_mem")
        sql("SELECT pg_reload_conf()")


def test_a_setting_of_a_role_that_is_not_requested_is_removed(converged, sql):
    sql("ALTER ROLE shiftmaster SET synchronous_commit = 'remote_apply'")
    assert converged("postgresql").changed == 1
    settings = "SELECT setconfig FROM pg_db_role_setting WHERE setrole = 'shiftmaster'::regrole"
    assert sql(settings).stdout.strip() == "{statement_timeout=60s}"
    assert converged("postgresql").changed == 0


def test_a_renewed_certificate_is_served_without_a_restart(host, apply, started, unit):
    served = (
        "echo | openssl s_client -starttls postgres -connect localhost:5432 2>/dev/null | openssl x509 -noout -serial"
    )
    old, before = host.check_output(served), started(unit)
    host.check_output("/root/make_certificate")
    assert apply("postgresql").changed == 1
    assert (
        host.check_output(served) == host.check_output("openssl x509 -noout -serial -in /etc/ssl/certs/host.crt") != old
    )
    assert started(unit) == before
    assert apply("postgresql").changed == 0


def test_an_empty_password_is_refused_before_anything_changes(converge, config):
    before = config()
    done = converge("postgresql", database_password="")
    assert done.rc != 0 and "password is empty" in done.line
    assert config() == before


def test_another_version_than_debians_is_refused(converge):
    done = converge("postgresql", postgresql_version=16)
    assert done.rc != 0 and "set postgresql_repository to pgdg" in done.line


def test_a_cluster_without_checksums_is_reported_and_can_enable_them(host, apply, sql, unit, version):
    binary = f"/usr/lib/postgresql/{version}/bin/pg_checksums"
    host.check_output(f"systemctl stop {unit}")
    # It reports it and fails where an interrupted test has switched them off already.
    host.run(f"runuser -u postgres -- {binary} -D /var/lib/postgresql/{version}/main --disable")
    done = apply("postgresql")
    assert "has no data checksums" in done.line
    assert sql("SHOW data_checksums").stdout.strip() == "off"
    apply("postgresql", postgresql_enable_checksums=True)
    assert sql("SHOW data_checksums").stdout.strip() == "on"
    assert apply("postgresql", postgresql_enable_checksums=True).changed == 0


def test_a_check_before_the_certificate_exists_reports_it(apply, config):
    before = config()
    done = apply("postgresql", "--check", postgresql_tls_key_file="/etc/ssl/private/later.key")
    assert "/etc/ssl/private/later.key is not there yet" in done.line
    assert config() == before
