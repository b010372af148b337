#!/usr/bin/python
"""Apply the configuration of a Debian PostgreSQL cluster and verify it, or roll back."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import subprocess
import sys
import time

from ansible.module_utils.shiftmaster.host import configuration, probe, safe_files, service_user, units
from ansible.module_utils.shiftmaster.host.configuration import Failed, Rejected
from ansible.module_utils.shiftmaster.host.quiet import QuietModule
from ansible.module_utils.shiftmaster.host.sql import SAFE_SEARCH_PATH

DOCUMENTATION = r"""
module: postgresql_cluster_config
short_description: Apply a PostgreSQL cluster's configuration and verify that it took effect
description:
  - Writes C(conf.d/shiftmaster.conf) and C(pg_hba.conf) of a cluster in Debian's layout. The directories above them
    become root's, so that the server can read its configuration and not exchange it.
  - The candidate is read by C(postgres -C) first; then the files are swapped, the running server is queried for errors
    in them, reloads them, and is restarted only when it reports C(pending_restart).
  - Where that fails, the earlier files are placed, loaded and verified, and the module fails with the server's message.
  - A certificate that was renewed under the same path is noticed by comparing it with the one that is served.
  - The clusters are enabled to start at boot.
  - Runs as root and talks to the server as the system user C(postgres) over the local socket.
options:
  version: {description: Major version of the cluster., type: int, required: true}
  cluster: {description: Name of the cluster., type: str, default: main}
  config: {description: Complete text of C(conf.d/shiftmaster.conf)., type: str, required: true}
  hba: {description: Complete text of C(pg_hba.conf)., type: str, required: true}
  tls_certificate_file: {type: path, default: "", description: Certificate that the server shall present; empty when TLS
    is off.}
  tls_key_file: {description: Private key of the certificate., type: path, default: ""}
  restart: {type: bool, default: true, description: Whether a change that needs a restart may restart the server;
    otherwise it is only reported.}
  start_timeout_seconds: {type: int, default: 120, description: How long a start or restart may take until the server
    responds.}
attributes:
  check_mode: {description: "The candidate is validated, nothing is written.", support: full}
  diff_mode: {description: Shows both files., support: full}
"""

EXAMPLES = r"""
- name: Apply the configuration
  postgresql_cluster_config:
    version: 17
    config: "{{ lookup('ansible.builtin.template', 'shiftmaster.conf.j2') }}"
    hba: "{{ lookup('ansible.builtin.template', 'pg_hba.conf.j2') }}"
"""

RETURN = r"""
present: {description: Whether the server's program and the cluster exist., returned: always, type: bool}
reloaded: {description: Whether the server was (would be) reloaded., returned: always, type: bool}
restarted: {description: Whether the server was started or restarted., returned: always, type: bool}
restart_for: {returned: always, type: list, elements: str, description: "Parameters because of which the server was, or
  in check mode would be, restarted."}
enabled: {description: Whether C(postgresql.service) was (would be) enabled., returned: always, type: bool}
data_checksums: {description: Whether it has data checksums; null while it is down., returned: always, type: bool}
server_version: {description: Version that the running server reports., returned: always, type: str}
"""

RELOAD_TIMEOUT_SECONDS = 15

STATE_SQL = """
SELECT json_build_object(
  'load_time', extract(epoch FROM pg_conf_load_time()),
  'server_version', current_setting('server_version'),
  'data_checksums', current_setting('data_checksums') = 'on',
  'pending', (SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM pg_settings WHERE pending_restart),
  'file_errors', (
    SELECT coalesce(json_agg(concat_ws(': ', f.sourcefile || ' line ' || f.sourceline, f.name, f.error)), '[]')
    FROM pg_file_settings f LEFT JOIN pg_settings s ON lower(s.name) = lower(f.name)
    WHERE f.error IS NOT NULL
      AND NOT (f.error = 'setting could not be applied' AND s.context IS NOT DISTINCT FROM 'postmaster')),
  'hba_errors', (
    SELECT coalesce(json_agg('pg_hba.conf line ' || line_number || ': ' || error), '[]')
    FROM pg_hba_file_rules WHERE error IS NOT NULL),
  'overridden', (
    SELECT coalesce(json_agg(DISTINCT f.name || ' (' || coalesce(s.sourcefile, s.source) || ')'), '[]')
    FROM pg_file_settings f JOIN pg_settings s ON lower(s.name) = lower(f.name)
    WHERE f.sourcefile = :'ours' AND f.error IS NULL AND NOT s.pending_restart
      AND s.sourcefile IS DISTINCT FROM f.sourcefile AND s.source NOT IN ('client', 'session')),
  'postmaster', (
    SELECT coalesce(json_object_agg(lower(name), current_setting(name)), '{}')
    FROM pg_settings WHERE context = 'postmaster'))
"""


def parse_postmaster_pid(text):
    """Read a data directory's postmaster.pid; None when it does not describe a ready server."""
    lines = text.splitlines()
    if len(lines) < 8 or lines[7].strip() != "ready" or not (lines[0].isdecimal() and lines[3].isdecimal()):
        return None
    return {"pid": int(lines[0]), "port": int(lines[3]), "socket_dir": lines[4], "listen": lines[5].strip()}


def parameter_names(config):
    """Names set by a configuration text, lower case, in order, once each."""
    names = []
    for line in config.splitlines():
        match = re.match(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*(=|\s)", line)
        if match and match.group(1).lower() not in names:
            names.append(match.group(1).lower())
    return names


def data_directory_of(postgresql_conf, default):
    """data_directory as Debian's postgresql.conf names it; the file is postgres', so nothing here crosses lines."""
    match = re.search(r"^[ \t]*data_directory[ \t]*=[ \t]*'([^'\n]+)'", postgresql_conf, re.M)
    return match.group(1) if match else default


def readable_errors(stderr, staging, confdir):
    """The server's complaints without log noise, with the real file names."""
    keep = []
    for line in stderr.replace(staging, confdir).splitlines():
        line = re.sub(r"^.*?(LOG|FATAL|ERROR|HINT|DETAIL|WARNING):\s*", r"", line).strip()
        if line and line not in keep:
            keep.append(line)
    return "; ".join(keep)


def key_permission_problem(mode, owner_uid, postgres_uid):
    """PostgreSQL's own rule for a private key's owner and mode; None when it is kept."""
    bits = mode & 0o777
    if owner_uid == postgres_uid:
        return None if not bits & 0o077 else "belongs to postgres and must then be 0600"
    if owner_uid == 0:
        return None if not bits & 0o027 else "belongs to root and must then be 0640 or tighter"
    return "must belong to root or postgres"


def server_address(listen):
    """Return the address at which a server with this listen address can be reached."""
    return {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)


class Cluster:
    """A cluster in Debian's layout and what can be queried of it.

    Its directories belong to postgres: nothing in them is opened by name.
    """

    def __init__(self, params):
        version, name = params["version"], params["cluster"]
        self.bindir = "/usr/lib/postgresql/%d/bin" % version
        self.confdir = "/etc/postgresql/%d/%s" % (version, name)
        self.config_path = os.path.join(self.confdir, "conf.d", "shiftmaster.conf")
        self.hba_path = os.path.join(self.confdir, "pg_hba.conf")
        self.unit = "postgresql@%d-%s.service" % (version, name)
        self.log = "/var/log/postgresql/postgresql-%d-%s.log" % (version, name)
        self.default_data = "/var/lib/postgresql/%d/%s" % (version, name)
        self.start_timeout = params["start_timeout_seconds"]
        self.restarts = params["restart"]
        self.certificate, self.key = params["tls_certificate_file"], params["tls_key_file"]

    def present(self):
        with contextlib.suppress(OSError):
            return os.path.isfile(self.bindir + "/postgres") and bool(
                safe_files.status(self.confdir + "/postgresql.conf")
            )
        return False

    def files(self, params, check_mode):
        """Return the set: the two files, and the directories above them, in which postgres then cannot exchange one."""
        files = configuration.FileSet(check_mode)
        common = {"owner": "root", "group": "postgres"}
        files.add({"path": self.config_path, "content": params["config"], **common})
        files.add({"path": self.hba_path, "content": params["hba"], "mode": "0640", **common})
        parts = self.confdir.split("/")
        for path in ["/".join(parts[:count]) for count in range(3, len(parts) + 1)] + [self.confdir + "/conf.d"]:
            files.add_directory({"path": path, "owner": "root", "mode": "0755"})
        return files

    def server(self):
        """Return the running server's address, or None."""
        text = configuration.read_text(os.path.join(self.confdir, "postgresql.conf"))
        try:
            path = os.path.join(data_directory_of(text, self.default_data), "postmaster.pid")
            found = parse_postmaster_pid(safe_files.read_text(path, 4096))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found if found and os.path.exists("/proc/%d" % found["pid"]) else None

    def as_postgres(self, argv, stdin=None, timeout=60, env=None):
        return subprocess.run(
            ["runuser", "-u", "postgres", "--", *argv],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd="/",
            check=False,
            env=dict(os.environ, LC_ALL="C.UTF-8", **(env or {})),
        )

    def psql(self, sql):
        server = self.server()
        if server is None:
            raise Failed("%s is not running" % self.unit)
        argv = [os.path.join(self.bindir, "psql"), "-XAtqw", "-v", "ON_ERROR_STOP=1", "-v", "ours=" + self.config_path]
        argv += ["-h", server["socket_dir"], "-p", str(server["port"]), "-d", "postgres", "-f", "-"]
        options = {"PGOPTIONS": "-c lc_messages=C " + SAFE_SEARCH_PATH, "PGCONNECT_TIMEOUT": "10"}
        done = self.as_postgres(argv, stdin=sql, env=options)
        if done.returncode:
            raise Failed("PostgreSQL rejected a query of this module: %s" % done.stderr.strip())
        return done.stdout.strip()

    def state(self):
        return json.loads(self.psql(STATE_SQL))

    def validate(self, files, config, postmaster_values):
        """Let postgres read the candidate; return which running parameters need a restart for it."""
        reader = service_user.process_of("postgres", [])
        with files.staged(self.confdir, self.unit, reader) as (tree, _work):
            binary = [os.path.join(self.bindir, "postgres"), "-D", tree, "-C"]
            done = self.as_postgres([*binary, "data_directory"])
            if done.returncode:
                raise Rejected("PostgreSQL rejects it: " + readable_errors(done.stderr, tree, self.confdir))
            restart_for = []
            for name in parameter_names(config):
                if name in postmaster_values:
                    done = self.as_postgres([*binary, name])
                    if done.returncode == 0 and done.stdout.strip() != postmaster_values[name]:
                        restart_for.append(name)
            return restart_for

    def check_tls(self):
        """Reject a certificate and a key that the server could not use."""
        if not self.certificate:
            return
        try:
            status = os.stat(self.key)
        except OSError as error:
            raise Rejected("TLS of PostgreSQL: %s: %s" % (self.key, error.strerror))
        problem = key_permission_problem(status.st_mode, status.st_uid, pwd.getpwnam("postgres").pw_uid)
        if problem:
            raise Rejected("TLS of PostgreSQL: %s %s" % (self.key, problem))
        code = "import ssl, sys; ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(sys.argv[1], sys.argv[2])"
        done = self.as_postgres([sys.executable, "-I", "-c", code, self.certificate, self.key])
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "unknown error"
            raise Rejected("TLS: user postgres cannot use %s with %s: %s" % (self.certificate, self.key, last))

    def serves_another(self):
        """Return whether the running server presents another certificate than the file holds."""
        server = self.server()
        if not self.certificate or server is None or not server["listen"]:
            return False
        address = server_address(server["listen"])
        return probe.serves_another(self.certificate, address, server["port"], postgres=True) is True

    def needs_reload(self, files, state):
        """Return whether a file is newer than what the server has read, or the certificate another."""
        for path in files.wanted:
            with contextlib.suppress(FileNotFoundError):
                if min(safe_files.status(path).st_mtime, time.time()) > state["load_time"]:
                    return True
        return self.serves_another()

    def restart(self, reasons):
        """Restart (or start) the unit; return the state once the server responds and nothing is pending."""
        deadline = time.monotonic() + self.start_timeout
        with contextlib.suppress(units.UnitError):
            units.systemctl("restart", self.unit, timeout=self.start_timeout)
        # Debian's unit hides a failed start (ExecStart=-): one that is down now has failed.
        active = self.server() or units.active_state(self.unit) in ("active", "activating")
        while active and time.monotonic() < deadline:
            state = None
            with contextlib.suppress(Failed, subprocess.TimeoutExpired):
                state = self.state()
            if state and state["pending"]:
                raise Failed("still pending after a restart: " + ", ".join(state["pending"]))
            if state:
                return state
            time.sleep(0.2)
        raise Failed("PostgreSQL did not start (%s): %s" % (", ".join(reasons), self.log_tail()))

    def log_tail(self):
        try:
            lines = safe_files.read_tail(self.log, 65536).decode("utf-8", "replace").splitlines()[-40:]
        except OSError as error:
            return "%s: %s" % (self.log, error.strerror)
        lines = [line for line in lines if re.search(r"\b(FATAL|ERROR|PANIC|HINT)\b", line)]
        return readable_errors("\n".join(lines[-4:]), self.confdir, self.confdir) or "see " + self.log

    def reload(self, load_time):
        """Let the server read its files; return its state once it has and presents the certificate."""
        self.psql("SELECT pg_reload_conf()")
        deadline = time.monotonic() + RELOAD_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            state = self.state()
            if state["load_time"] > load_time:
                if self.serves_another() and "ssl" not in state["pending"]:
                    raise Failed("after the reload PostgreSQL does not present %s" % self.certificate)
                return state
            time.sleep(0.1)
        raise Failed("PostgreSQL did not read its configuration again within %d s" % RELOAD_TIMEOUT_SECONDS)


class Change:
    """The swap of a set: what loads it, and what loads the earlier files again."""

    def __init__(self, cluster, files, before, stale):
        self.cluster, self.files, self.before, self.stale = cluster, files, before, stale
        self.reloaded = self.restarted = False

    def load(self):
        cluster, state = self.cluster, self.before
        if state is None:
            return self.restart(["it was not running"])
        if self.files.changes:
            # Both views read the files as they are now, before the server reloads.
            read = cluster.state()
            problems = read["file_errors"] + read["hba_errors"]
            if problems:
                raise Failed("PostgreSQL rejects the new configuration: " + "; ".join(problems))
        if self.files.changes or self.stale:
            self.reloaded = True
            state = cluster.reload(state["load_time"])
        return self.restart(state["pending"]) if state["pending"] and cluster.restarts else state

    def restart(self, reasons):
        self.restarted = True
        return self.cluster.restart(reasons)

    def restore(self):
        if self.restarted:
            self.cluster.restart(["with the earlier files"])
        elif self.reloaded:
            self.cluster.reload(self.cluster.state()["load_time"])


def run(module):
    params, cluster = module.params, Cluster(module.params)
    result = {
        "changed": False, "present": cluster.present(), "reloaded": False, "restarted": False, "restart_for": [],
        "enabled": False, "data_checksums": None, "server_version": "",
    }  # fmt: skip
    files = cluster.files(params, module.check_mode)
    files.compare()
    result["diff"] = files.diff()
    if not result["present"]:
        if module.check_mode:
            return dict(result, changed=True)
        raise Rejected("there is no PostgreSQL cluster at %s; install it first" % cluster.confdir)
    # Debian's postgresql.service starts every cluster whose start.conf is auto.
    result["enabled"] = not units.is_enabled(units.properties("postgresql.service", "UnitFileState"))
    state = cluster.state() if cluster.server() else None
    stale = state is not None and cluster.needs_reload(files, state)
    if module.check_mode and cluster.certificate and not os.path.exists(cluster.key):
        module.warn("%s is not there yet; what makes it must come first" % cluster.key)
    elif files.changes or stale:
        cluster.check_tls()
    if files.changes:
        result["restart_for"] = cluster.validate(files, params["config"], state["postmaster"] if state else {})
    pending = state["pending"] if state else []
    result["reloaded"] = bool(state and (files.changes or stale))
    result["changed"] = bool(
        files.changes or files.directory_changes or stale or state is None or result["enabled"]
        or pending and cluster.restarts
    )  # fmt: skip
    if not module.check_mode:
        if result["enabled"]:
            units.systemctl("enable", "--now", "postgresql.service", timeout=120)
        files.make_directories()
        change = Change(cluster, files, state, stale)
        state = files.apply(change.load, change.restore)
        result["restarted"] = change.restarted
        pending = pending if change.restarted else state["pending"]
        if state["overridden"]:
            module.warn("set elsewhere, so that the role's value has no effect: " + ", ".join(state["overridden"]))
    if pending and not cluster.restarts:
        module.warn("PostgreSQL must be restarted for: " + ", ".join(pending))
    result["restart_for"] = sorted({*result["restart_for"], *pending})
    if state:
        result.update(data_checksums=state["data_checksums"], server_version=state["server_version"])
    return result


def main():
    module = QuietModule(
        argument_spec={
            "version": {"type": "int", "required": True},
            "cluster": {"type": "str", "default": "main"},
            "config": {"type": "str", "required": True},
            "hba": {"type": "str", "required": True},
            "tls_certificate_file": {"type": "path", "default": ""},
            "tls_key_file": {"type": "path", "default": "", "no_log": False},
            "restart": {"type": "bool", "default": True},
            "start_timeout_seconds": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    configuration.run(module, "PostgreSQL", lambda: run(module))


if __name__ == "__main__":
    main()
