"""Faults of hosts: each a context manager that causes it, and fixes it after its block in every case.

All of it is real but what is called a stub. The hosts are Operations of tests/support.py.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from support import SCENARIO_HOME, wait_for

# A table that every page of the example reads.
TABLE = "roster_ward"
TEXTFILES = "/var/lib/prometheus/node-exporter"
BACKUPS = f"{TEXTFILES}/backup.prom"
CERTIFICATE = "/etc/ssl/certs/shiftmaster.crt"


def psql(name: str = "fault") -> str:
    # As the superuser: what it does is no connection of the application's.
    return f"runuser -u postgres -- env PGAPPNAME={name} psql -XAtq -v ON_ERROR_STOP=1 -d shiftmaster"


def sql(host, text: str, check: bool = True) -> str:
    return host.shell(psql(), stdin=text, check=check)


@contextlib.contextmanager
def session(host, name: str, text: str, again: bool = False):
    """A session of the database that does this in the background, once or again and again."""
    host.shell(f"install -m 0644 /dev/stdin /run/{name}.sql", stdin=text)
    once = f"{psql(name)} -f /run/{name}.sql"
    loop = shlex.quote(f"while :; do {once}; done" if again else once)
    host.shell(f"systemd-run --quiet --no-block --collect --unit={name} bash -c {loop}")
    try:
        yield
    finally:
        host.shell(f"systemctl stop {name}; rm -f /run/{name}.sql", check=False)
        # The server would continue its query.
        sql(host, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{name}'")


def table_held(host, seconds: float = 4):
    """Every page waits for a table, up to so many seconds, again and again."""
    held = f"BEGIN; LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep({seconds}); COMMIT;"
    return session(host, "held", held, again=True)


@contextlib.contextmanager
def table_missing(host):
    """Every page raises, since a query fails."""
    sql(host, f"ALTER TABLE {TABLE} RENAME TO {TABLE}_gone")
    try:
        yield
    finally:
        sql(host, f"ALTER TABLE {TABLE}_gone RENAME TO {TABLE}")


@contextlib.contextmanager
def lock_wait(host):
    """One session waits for another."""
    with session(host, "holds", "BEGIN; SELECT pg_advisory_xact_lock(41); SELECT pg_sleep(3600);"):
        wait_for(lambda: sql(host, "SELECT pid FROM pg_locks WHERE objid = 41"), 30, "the lock")
        with session(host, "waits", "SELECT pg_advisory_lock(41);"):
            yield


@contextlib.contextmanager
def commits_wait(host):
    """A commit waits for a synchronous standby that is not there."""
    sql(host, "ALTER SYSTEM SET synchronous_standby_names = 'none'")
    sql(host, "SELECT pg_reload_conf()")
    try:
        with session(host, "commits", "CREATE TABLE waits_for_a_standby ()"):
            yield
    finally:
        sql(host, "ALTER SYSTEM RESET synchronous_standby_names")
        sql(host, "SELECT pg_reload_conf()")
        sql(host, "DROP TABLE IF EXISTS waits_for_a_standby")


@contextlib.contextmanager
def deadlock(host):
    """Two sessions wait for each other, until PostgreSQL ends one of them; nothing is left to be fixed."""
    text = """DO $$ BEGIN
      PERFORM pg_advisory_xact_lock({own});
      WHILE NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = {other} AND granted) LOOP
        PERFORM pg_sleep(0.1);
      END LOOP;
      PERFORM pg_advisory_xact_lock({other});
    END $$;"""
    count = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = sql(host, count)
    with session(host, "one", text.format(own=1, other=2)), session(host, "other", text.format(own=2, other=1)):
        wait_for(lambda: sql(host, count) != before, 60, "a deadlock")
    yield


@contextlib.contextmanager
def standby_refused(primary):
    """The primary lets its standby in no more."""
    sql(primary, "ALTER ROLE replicator NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_replication;")
    try:
        yield
    finally:
        sql(primary, "ALTER ROLE replicator LOGIN")


@contextlib.contextmanager
def redis_full(host):
    """No write finds room; one is tried."""

    password = (SCENARIO_HOME / "secrets" / "redis_admin").read_text().split()[0]
    login = "read -r REDISCLI_AUTH; export REDISCLI_AUTH; redis-cli --no-auth-warning --user admin "

    def query(*words: str) -> str:
        return host.shell(login + shlex.join(words), stdin=password + "\n")

    before = query("CONFIG", "GET", "maxmemory").split()[1]
    query("CONFIG", "SET", "maxmemory", "1")
    try:
        assert "OOM" in query("SET", "fault", "1"), "the write was not refused"
        yield
    finally:
        query("CONFIG", "SET", "maxmemory", before)


@contextlib.contextmanager
def unit_failed(host):
    host.shell("systemd-run --quiet --no-block --unit=broken false")
    try:
        yield
    finally:
        host.shell("systemctl reset-failed broken")


@contextlib.contextmanager
def units_stopped(host, pattern: str):
    found = host.shell(f"systemctl list-units --plain --no-legend --state=active '{pattern}'").split("\n")
    names = " ".join(line.split()[0] for line in found if line)
    assert names, f"no unit {pattern} runs"
    host.shell(f"systemctl stop {names}")
    try:
        yield
    finally:
        host.shell(f"systemctl start {names}")


@contextlib.contextmanager
def workers_stopped(host, age_seconds: int = 0):
    """No worker of Celery runs, and a task waits for one; its message has a time of so many seconds ago."""
    with units_stopped(host, "shiftmaster-worker@*"):
        host.python(
            "import time; from celery.signals import before_task_publish; from roster.tasks import record_run\n"
            "before_task_publish.disconnect(dispatch_uid='shiftmaster_monitoring.before_task_publish')\n"
            "record_run.apply_async(('late', 0), headers={'shiftmaster_published_at': time.time() - %d})" % age_seconds
        )
        yield


@contextlib.contextmanager
def container_failing(host, name: str):
    """Its own health check fails (molecule/monitoring/prepare.yml)."""
    host.shell(f"docker exec {name} /bin/busybox touch /ill")
    try:
        yield
    finally:
        host.shell(f"docker exec {name} /bin/busybox rm /ill")


@contextlib.contextmanager
def disk_filled(host, directory: str, percent: int):
    size = f"$(( $(stat --file-system --format='%b * %S' {directory}) * {percent} / 100 ))"
    host.shell(f"fallocate --length {size} {directory}/fault")
    try:
        yield
    finally:
        host.shell(f"rm {directory}/fault")


@contextlib.contextmanager
def metric(host, name: str, percent: int):
    """A stub: /proc reports this use of the host's processors (`cpu`) or memory, in percent."""
    host.shell(f"mkdir -p /var/lib/own-metrics && echo {percent} >/var/lib/own-metrics/{name}")
    try:
        yield
    finally:
        host.shell(f"rm /var/lib/own-metrics/{name}")


@contextlib.contextmanager
def certificate_near_its_end(host, days: int):
    """The site's certificate, from the same authority, for so many days more."""
    key, authority = "/etc/ssl/private/shiftmaster.key", SCENARIO_HOME / "ca" / "site"
    names = host.shell(f"openssl x509 -in {CERTIFICATE} -noout -ext subjectAltName").split("\n", 1)[1].strip()
    names = names.replace("IP Address:", "IP:")
    request = host.shell(f"openssl req -new -key {key} -subj /CN=short -addext 'subjectAltName={names}'")
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "request").write_text(request)
        made = subprocess.run(
            ["openssl", "x509", "-req", "-in", f"{directory}/request", "-CA", str(authority / "ca.crt"), "-CAkey",
             str(authority / "ca.key"), "-CAserial", f"{directory}/serial", "-CAcreateserial", "-days", str(days),
             "-copy_extensions", "copy"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    host.shell(f"cp -p {CERTIFICATE} /root/before.crt && cat >{CERTIFICATE} && systemctl reload nginx", stdin=made)
    try:
        yield
    finally:
        host.shell(f"cat /root/before.crt >{CERTIFICATE} && systemctl reload nginx")


# --- backups, which have scenarios of their own -----------------------------------------------------------------------

KINDS = ("database", "files", "config")


def backups_as_if(host, age_seconds: float = 3600) -> None:
    """A stub for the backups' metrics: a file as they are to write it, for node exporter's textfile collector."""
    when = time.time() - age_seconds
    lines = []
    for metric, value in (
        ("backup_last_success_timestamp_seconds", round(when)), ("backup_duration_seconds", 42),
        ("backup_size_bytes", 10_000_000), ("backup_failed", 0),
    ):  # fmt: skip
        lines.append(f"# TYPE shiftmaster_{metric} gauge")
        lines += [f'shiftmaster_{metric}{{kind="{kind}"}} {value}' for kind in KINDS]
    for metric, value in (
        ("restore_test_last_success_timestamp_seconds", round(when)), ("backup_wal_gaps", 0),
        ("backup_offsite_last_success_timestamp_seconds", round(when)), ("wal_limit_bytes", 2**32),
    ):  # fmt: skip
        lines += [f"# TYPE shiftmaster_{metric} gauge", f"shiftmaster_{metric} {value}"]
    host.shell(f"install -m 0644 /dev/stdin {BACKUPS}.new && mv {BACKUPS}.new {BACKUPS}", stdin="\n".join(lines) + "\n")


@contextlib.contextmanager
def backups_missing(host):
    """No metric of any backup exists."""
    host.shell(f"rm -f {BACKUPS}")
    try:
        yield
    finally:
        backups_as_if(host)
