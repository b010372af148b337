"""Clusters of PostgreSQL in Debian's layout, and what their rows and sequences are compared by."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
import time

from . import safe_files, units
from .sql import SAFE_SEARCH_PATH

ROOT = "/var/lib/postgresql"
# Tables only: the application could put a view in the place of one (backup/verification.py).
COUNTS_SQL = """
SELECT json_build_object(
  'tables', (SELECT coalesce(json_object_agg(format('%I.%I', nspname, relname),
      (xpath('/row/c/text()', query_to_xml(format('SELECT count(*) AS c FROM ONLY %I.%I TABLESAMPLE SYSTEM (100)',
        nspname, relname), false, true, '')))[1]::text::bigint), '{}')
    FROM (SELECT nspname, relname, sum(greatest(relpages, 0)::bigint) OVER (ORDER BY relpages, c.oid) AS pages
          FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind IN ('r', 'm')
            AND nspname !~ '^pg_' AND nspname <> 'information_schema') AS found WHERE pages <= MOST_PAGES),
  'sequences', (SELECT coalesce(json_object_agg(format('%I.%I', schemaname, sequencename), last_value), '{}')
    FROM pg_sequences))
"""


class Failed(Exception):
    """It cannot be done; str() shows why."""


def last_lines(text):
    return "; ".join(line.strip() for line in text.strip().splitlines()[-6:] if line.strip())


def differences(before, after):
    """Return what of the tables and sequences of each database differs, as texts."""
    found = []
    for name in sorted(set(before) | set(after)):
        for kind in ("tables", "sequences"):
            one, other = (side.get(name, {}).get(kind, {}) for side in (before, after))
            found += [
                "%s of %s: %s instead of %s" % (item, name, other.get(item, "nothing"), one.get(item, "nothing"))
                for item in sorted(set(one) | set(other))
                if one.get(item, "-") != other.get(item, "-")
            ]
    return found


class Cluster:
    """Cluster main of one version, in Debian's layout."""

    def __init__(self, version, timeout, data=""):
        self.version, self.timeout = version, timeout
        self.data = data or "%s/%d/main" % (ROOT, version)
        self.configuration = "/etc/postgresql/%d/main" % version
        self.unit = "postgresql@%d-main.service" % version
        self.start_file = self.configuration + "/start.conf"

    def program(self, name):
        return "/usr/lib/postgresql/%d/bin/%s" % (self.version, name)

    @property
    def present(self):
        return os.path.lexists(self.configuration + "/postgresql.conf")

    @property
    def start_mode(self):
        """Return auto, manual or disabled; "" where there is none."""
        try:
            lines = safe_files.read_text(self.start_file, 4096).splitlines()
        except FileNotFoundError:
            return ""
        return next((line.strip() for line in lines if line.strip() in ("auto", "manual", "disabled")), "")

    @property
    def automatic(self):
        """Return whether it starts at boot: it is the live one."""
        return self.start_mode == "auto"

    def set_start(self, mode):
        text = "# Written by module postgresql_upgrade: auto, manual or disabled.\n%s\n" % mode
        safe_files.write(self.start_file, text.encode(), 0o644)

    def start(self):
        # Debian's generator reads start.conf.
        units.systemctl("daemon-reload")
        units.systemctl("start", self.unit, timeout=self.timeout)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(Failed):
                if self.query("SELECT 1") == "1":
                    return
            time.sleep(0.2)
        raise Failed("%s does not respond; see /var/log/postgresql/postgresql-%d-main.log" % (self.unit, self.version))

    def stop(self):
        units.systemctl("stop", self.unit, timeout=self.timeout)
        # Debian's unit hides a failure (ExecStop=-).
        if os.path.lexists(self.data + "/postmaster.pid"):
            as_postgres(self.timeout, self.program("pg_ctl"), "stop", "--mode=fast", "--pgdata", self.data)

    def settings(self, **more):
        """Return the words of a server for this data. A copy leaves the cluster's own file of its process alone."""
        values = {"config_file": self.configuration + "/postgresql.conf", "data_directory": self.data, **more}
        if self.data != "%s/%d/main" % (ROOT, self.version):
            values.update({"external_pid_file": "", "archive_mode": "off"})
        return " ".join("-c %s='%s'" % item for item in values.items())

    def start_private(self, work, port, **more):
        """Start a server for whoever can read this directory of postgres; it waits for the end of a recovery."""
        user = pwd.getpwnam("postgres")
        # The address is that of the application's checks; each of its logins has its password.
        rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        safe_files.write(work + "/pg_hba.conf", rules.encode(), 0o600, user.pw_uid, user.pw_gid)
        settings = self.settings(
            hba_file=work + "/pg_hba.conf", unix_socket_directories=work, port=port,
            # What is not archived now is when it serves again.
            **{"listen_addresses": "", "archive_command": "", "synchronous_standby_names": "", **more},
        )  # fmt: skip
        words = ["start", "--wait", "--timeout", str(self.timeout), "--pgdata", self.data, "--log", work + "/log"]
        as_postgres(self.timeout, self.program("pg_ctl"), *words, "--options", settings)

    def stop_private(self):
        if os.path.lexists(self.data + "/postmaster.pid"):
            with contextlib.suppress(Failed):  # It was killed, too.
                as_postgres(self.timeout, self.program("pg_ctl"), "stop", "--mode=fast", "--pgdata", self.data)

    def socket(self):
        lines = safe_files.read_text(self.data + "/postmaster.pid", 4096).splitlines()
        if len(lines) < 8 or not lines[3].isdecimal() or not lines[4].startswith("/"):
            raise Failed("%s is starting or stopping" % self.unit)
        return ["--host", lines[4], "--port", lines[3]]

    def query(self, sql, database="postgres", program=None):
        try:
            where = self.socket()
        except FileNotFoundError:
            raise Failed("%s is not running" % self.unit)
        words = [program or self.program("psql"), "-XAtqw", "-v", "ON_ERROR_STOP=1", *where, "-d", database, "-f", "-"]
        return as_postgres(self.timeout, *words, stdin=sql).strip()

    def databases(self):
        return json.loads(self.query("SELECT json_agg(datname ORDER BY datname) FROM pg_database WHERE datallowconn"))

    def counted(self, most_pages=1 << 62):
        """Return rows and sequences by database; most_pages: of how many pages, the smallest tables first."""
        sql = COUNTS_SQL.replace("MOST_PAGES", str(most_pages))
        return {name: json.loads(self.query(sql, name)) for name in self.databases()}


def as_postgres(timeout, *words, stdin="", cwd="/", env=None):
    environment = dict(
        os.environ, LC_ALL="C.UTF-8", PGOPTIONS="-c lc_messages=C " + SAFE_SEARCH_PATH, PGCONNECT_TIMEOUT="10"
    )
    environment.update(env or {})
    try:
        done = subprocess.run(
            ["runuser", "-u", "postgres", "--", *words], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            universal_newlines=True, errors="replace", timeout=timeout, cwd=cwd, check=False, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Failed("%s did not end within %d s" % (os.path.basename(words[0]), timeout))
    if done.returncode:
        raise Failed("%s: %s" % (os.path.basename(words[0]), last_lines(done.stderr + "\n" + done.stdout)))
    return done.stdout


def running(cluster):
    return units.active_state(cluster.unit) == "active"


def totals(counts):
    tables = [rows for database in counts.values() for rows in database["tables"].values()]
    sequences = sum(len(database["sequences"]) for database in counts.values())
    return {"rows": sum(tables), "tables": len(tables), "sequences": sequences}
