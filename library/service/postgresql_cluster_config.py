#!/usr/bin/python
"""Apply the configuration of a Debian PostgreSQL cluster, proven, or leave the old one."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time

from ansible.module_utils.shiftmaster.host.quiet import QuietModule

DOCUMENTATION = r"""
---
module: postgresql_cluster_config
short_description: Apply a PostgreSQL cluster's configuration and prove that it took effect
description:
  - Writes C(conf.d/shiftmaster.conf) and C(pg_hba.conf) of a cluster in Debian's layout.
  - The candidate is read by C(postgres -C) first; then the files are swapped, the running server is asked
    for errors in them, told to reload, and restarted only when it reports C(pending_restart).
  - What cannot be applied is put back, and the module fails with the server's own words.
  - A certificate that was renewed under the same path is noticed by comparing it with the one that is served.
  - The clusters are enabled to start at boot.
  - Runs as root and talks to the server as the system user C(postgres) over the local socket.
options:
  version:
    description: Major version of the cluster.
    type: int
    required: true
  cluster:
    description: Name of the cluster.
    type: str
    default: main
  config:
    description: Whole text of C(conf.d/shiftmaster.conf).
    type: str
    required: true
  hba:
    description: Whole text of C(pg_hba.conf).
    type: str
    required: true
  tls_certificate_file:
    description: Certificate that the server shall present; empty when TLS is off.
    type: path
    default: ""
  tls_key_file:
    description: Private key of the certificate.
    type: path
    default: ""
  restart:
    description: Whether a change that needs a restart may restart the server; otherwise it is only reported.
    type: bool
    default: true
  start_timeout_seconds:
    description: How long a start or restart may take until the server answers.
    type: int
    default: 120
author:
  - ShiftMaster operations
attributes:
  check_mode:
    description: The candidate is validated, nothing is written.
    support: full
  diff_mode:
    description: Shows both files.
    support: full
"""

EXAMPLES = r"""
- name: Apply the configuration
  postgresql_cluster_config:
    version: 17
    config: "{{ lookup('ansible.builtin.template', 'shiftmaster.conf.j2') }}"
    hba: "{{ lookup('ansible.builtin.template', 'pg_hba.conf.j2') }}"
"""

RETURN = r"""
present:
  description: Whether the server's program and the cluster exist on the host.
  type: bool
  returned: always
reloaded:
  description: Whether the server was told to reload.
  type: bool
  returned: always
restarted:
  description: Whether the server was started or restarted.
  type: bool
  returned: always
restart_for:
  description: Parameters because of which the server was, or in check mode would be, restarted.
  type: list
  elements: str
  returned: always
enabled:
  description: Whether C(postgresql.service) was, or would be, enabled to start at boot.
  type: bool
  returned: always
data_checksums:
  description: Whether the cluster has data checksums; null when the server could not be asked.
  type: bool
  returned: always
server_version:
  description: Version that the running server reports.
  type: str
  returned: always
"""

OUR_FILE = "shiftmaster.conf"
RELOAD_TIMEOUT_SECONDS = 15
PG_SSL_REQUEST = struct.pack("!II", 8, 80877103)

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


class ConfigError(Exception):
    """What the operator must be told; nothing was changed, or it was put back."""


def parse_postmaster_pid(text):
    """Read a data directory's postmaster.pid; None when it does not describe a ready server."""
    lines = text.splitlines()
    if len(lines) < 8 or lines[7].strip() != "ready":
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
    """data_directory as Debian's postgresql.conf names it."""
    match = re.search(r"^\s*data_directory\s*=\s*'([^']+)'", postgresql_conf, re.M)
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


def first_certificate_sha256(pem):
    """Fingerprint of the first certificate of a PEM text."""
    match = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, re.S)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(match.group(0))).hexdigest() if match else None


def served_certificate_sha256(address, port, timeout=5.0):
    """Fingerprint of the certificate that a PostgreSQL server presents; None without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only compared with the file; nothing is trusted or sent
    with socket.create_connection((address, port), timeout=timeout) as raw:
        raw.sendall(PG_SSL_REQUEST)
        if raw.recv(1) != b"S":
            return None
        with context.wrap_socket(raw) as wrapped:
            return hashlib.sha256(wrapped.getpeercert(binary_form=True)).hexdigest()


class Cluster:
    """A cluster in Debian's layout and what can be asked of it."""

    def __init__(self, version, cluster, start_timeout):
        self.bindir = "/usr/lib/postgresql/%d/bin" % version
        self.confdir = "/etc/postgresql/%d/%s" % (version, cluster)
        self.config_path = os.path.join(self.confdir, "conf.d", OUR_FILE)
        self.hba_path = os.path.join(self.confdir, "pg_hba.conf")
        self.unit = "postgresql@%d-%s.service" % (version, cluster)
        self.log = "/var/log/postgresql/postgresql-%d-%s.log" % (version, cluster)
        self.default_data = "/var/lib/postgresql/%d/%s" % (version, cluster)
        self.start_timeout = start_timeout

    def present(self):
        return os.path.isfile(os.path.join(self.bindir, "postgres")) and os.path.isfile(
            os.path.join(self.confdir, "postgresql.conf")
        )

    def read(self, path):
        try:
            with open(path, encoding="utf-8") as handle:
                return handle.read()
        except FileNotFoundError:
            return None

    def write(self, path, text, mode):
        if text is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".shiftmaster-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            os.chown(temporary, 0, grp.getgrnam("postgres").gr_gid)
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def write_both(self, config, hba):
        self.write(self.config_path, config, 0o644)
        self.write(self.hba_path, hba, 0o640)

    def put_back(self, old, times):
        """The old files with their old times, so that the next run does not take them for news."""
        self.write_both(*old)
        for path, stamp in times.items():
            os.utime(path, (stamp, stamp))

    def times(self):
        return {path: os.path.getmtime(path) for path in (self.config_path, self.hba_path) if os.path.exists(path)}

    def server(self):
        """The running server's address, or None."""
        data = data_directory_of(self.read(os.path.join(self.confdir, "postgresql.conf")) or "", self.default_data)
        text = self.read(os.path.join(data, "postmaster.pid"))
        found = parse_postmaster_pid(text) if text else None
        return found if found and os.path.exists("/proc/%d" % found["pid"]) else None

    def as_postgres(self, argv, stdin=None, timeout=60, env=None):
        return subprocess.run(
            ["runuser", "-u", "postgres", "--"] + argv,
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
            raise ConfigError("%s is not running" % self.unit)
        argv = [os.path.join(self.bindir, "psql"), "-XAtqw", "-v", "ON_ERROR_STOP=1", "-v", "ours=" + self.config_path]
        argv += ["-h", server["socket_dir"], "-p", str(server["port"]), "-d", "postgres", "-f", "-"]
        done = self.as_postgres(argv, stdin=sql, env={"PGOPTIONS": "-c lc_messages=C", "PGCONNECT_TIMEOUT": "10"})
        if done.returncode:
            raise ConfigError("PostgreSQL refused a question of this module: %s" % done.stderr.strip())
        return done.stdout.strip()

    def state(self):
        return json.loads(self.psql(STATE_SQL))

    def postgres_c(self, staging, name):
        argv = [os.path.join(self.bindir, "postgres"), "-D", staging, "-C", name]
        return self.as_postgres(argv)

    def stage(self, directory, config):
        """A readable copy of the whole configuration with the candidate in it."""
        for entry in os.listdir(self.confdir):
            source = os.path.join(self.confdir, entry)
            if entry == "conf.d":
                shutil.copytree(source, os.path.join(directory, entry))
            elif os.path.isfile(source):
                shutil.copy(source, os.path.join(directory, entry))
        os.makedirs(os.path.join(directory, "conf.d"), exist_ok=True)
        with open(os.path.join(directory, "conf.d", OUR_FILE), "w", encoding="utf-8") as out:
            out.write(config)
        postgres = pwd.getpwnam("postgres")
        for root, folders, files in os.walk(directory):
            for entry in [root] + [os.path.join(root, name) for name in folders + files]:
                os.chown(entry, postgres.pw_uid, postgres.pw_gid)

    def validate(self, config, postmaster_values):
        """Let postgres read the candidate; answer which running parameters need a restart for it."""
        directory = tempfile.mkdtemp(prefix="postgresql-candidate-")
        try:
            self.stage(directory, config)
            done = self.postgres_c(directory, "data_directory")
            if done.returncode:
                raise ConfigError(
                    "PostgreSQL refuses the new configuration, the old one stays: "
                    + readable_errors(done.stderr, directory, self.confdir)
                )
            restart_for = []
            for name in parameter_names(config):
                if name in postmaster_values:
                    done = self.postgres_c(directory, name)
                    if done.returncode == 0 and done.stdout.strip() != postmaster_values[name]:
                        restart_for.append(name)
            return restart_for
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def tls_problem(self, certificate, key):
        """Why the server could not use this certificate and key; None when it can."""
        try:
            status = os.stat(key)
        except OSError as error:
            return "%s: %s" % (key, error.strerror)
        problem = key_permission_problem(status.st_mode, status.st_uid, pwd.getpwnam("postgres").pw_uid)
        if problem:
            return "%s %s" % (key, problem)
        code = "import ssl, sys; ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(sys.argv[1], sys.argv[2])"
        done = self.as_postgres([sys.executable, "-I", "-c", code, certificate, key])
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "unknown error"
            return "user postgres cannot use %s with %s: %s" % (certificate, key, last)
        return None

    def serves_old_certificate(self, certificate):
        """Whether the running server presents another certificate than the file holds."""
        server = self.server()
        if server is None or not server["listen"]:
            return False
        address = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(server["listen"], server["listen"])
        try:
            served = served_certificate_sha256(address, server["port"])
        except OSError:
            return False
        return served is not None and served != first_certificate_sha256(self.read(certificate) or "")

    @staticmethod
    def enabled():
        # Debian's postgresql.service starts every cluster whose start.conf says auto.
        argv = ["systemctl", "is-enabled", "--quiet", "postgresql.service"]
        return subprocess.run(argv, capture_output=True, check=False, timeout=30).returncode == 0

    @staticmethod
    def enable():
        argv = ["systemctl", "enable", "--now", "postgresql.service"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise ConfigError("%s: %s" % (" ".join(argv), done.stderr.strip()))

    def wait_ready(self, deadline):
        while time.monotonic() < deadline:
            if self.server() is not None:
                with contextlib.suppress(ConfigError, subprocess.TimeoutExpired):
                    self.psql("SELECT 1")
                    return True
            time.sleep(0.2)
        return False

    def restart(self):
        """Restart (or start) the unit; True when the server answers afterwards."""
        deadline = time.monotonic() + self.start_timeout
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["systemctl", "restart", self.unit], capture_output=True, check=False, timeout=self.start_timeout
            )
        # Debian's unit hides a failed start (ExecStart=-): one that is down now has failed.
        if self.server() is None:
            active = subprocess.run(["systemctl", "is-active", self.unit], capture_output=True, text=True, check=False)
            if active.stdout.strip() not in ("active", "activating"):
                return False
        return self.wait_ready(deadline)

    def log_tail(self):
        text = self.read(self.log) or ""
        lines = [line for line in text.splitlines()[-40:] if re.search(r"\b(FATAL|ERROR|PANIC|HINT)\b", line)]
        return readable_errors("\n".join(lines[-4:]), self.confdir, self.confdir) or "see " + self.log

    def reload(self, load_time):
        """Tell the server to read its files and wait until it says that it has."""
        self.psql("SELECT pg_reload_conf()")
        deadline = time.monotonic() + RELOAD_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            state = self.state()
            if state["load_time"] > load_time:
                return state
            time.sleep(0.1)
        raise ConfigError("PostgreSQL did not read its configuration again within %d s" % RELOAD_TIMEOUT_SECONDS)


def needs_reload(cluster, state, tls_certificate):
    """Whether a file is newer than what the server has read, or the certificate another."""
    for path in (cluster.config_path, cluster.hba_path):
        if os.path.exists(path) and min(os.path.getmtime(path), time.time()) > state["load_time"]:
            return True
    return bool(tls_certificate) and cluster.serves_old_certificate(tls_certificate)


def apply_files(cluster, config, hba, old, tls_certificate):
    """Swap the files and make the running server read them; put the old ones back when it will not."""
    before, times = cluster.state(), cluster.times()
    told = False
    cluster.write_both(config, hba)
    try:
        # Both views read the files as they are now, before the server is told to.
        read = cluster.state()
        problems = read["file_errors"] + read["hba_errors"]
        if problems:
            raise ConfigError("PostgreSQL refuses the new configuration, the old one stays: " + "; ".join(problems))
        told = True
        state = cluster.reload(before["load_time"])
        if tls_certificate and cluster.serves_old_certificate(tls_certificate) and "ssl" not in state["pending"]:
            raise ConfigError("after the reload PostgreSQL does not present %s" % tls_certificate)
    except BaseException:
        cluster.put_back(old, times)
        if told:
            with contextlib.suppress(ConfigError):
                cluster.psql("SELECT pg_reload_conf()")
        raise
    return state


def restart_proven(cluster, old, files_changed, reasons):
    """Restart; a server that does not come back gets its old configuration and is started with it."""
    if cluster.restart():
        state = cluster.state()
        if not state["pending"]:
            return state
        raise ConfigError("still pending after a restart: " + ", ".join(state["pending"]))
    said = cluster.log_tail()
    what = "PostgreSQL did not start (%s): %s" % (", ".join(reasons), said)
    if not files_changed or old[0] is None and old[1] is None:
        raise ConfigError(what)
    cluster.write_both(*old)
    back = "the old configuration was put back and the server runs with it" if cluster.restart() else "nor with the old"
    raise ConfigError("%s; %s" % (what, back))


def run(module, cluster):
    params = module.params
    result = {
        "changed": False,
        "present": cluster.present(),
        "reloaded": False,
        "restarted": False,
        "restart_for": [],
        "enabled": False,
        "data_checksums": None,
        "server_version": "",
    }
    old = (cluster.read(cluster.config_path), cluster.read(cluster.hba_path))
    new = (params["config"], params["hba"])
    files_changed = old != new
    result["diff"] = [
        {"before_header": path, "after_header": path, "before": before or "", "after": after}
        for path, before, after in zip((cluster.config_path, cluster.hba_path), old, new)
        if before != after
    ]
    if not result["present"]:
        if module.check_mode:
            return dict(result, changed=True)
        raise ConfigError("there is no PostgreSQL cluster at %s; install it first" % cluster.confdir)

    if not cluster.enabled():
        result.update(changed=True, enabled=True)
        if not module.check_mode:
            cluster.enable()
    running = cluster.server() is not None
    state = cluster.state() if running else None
    certificate = params["tls_certificate_file"]
    if files_changed:
        if certificate and module.check_mode and not os.path.exists(params["tls_key_file"]):
            module.warn("%s is not there yet; what makes it must come first" % params["tls_key_file"])
        elif certificate:
            problem = cluster.tls_problem(certificate, params["tls_key_file"])
            if problem:
                raise ConfigError("TLS of PostgreSQL: %s" % problem)
        result["restart_for"] = cluster.validate(new[0], state["postmaster"] if state else {})

    if not running:
        result["changed"] = True
        if not module.check_mode:
            cluster.write_both(*new)
            state = restart_proven(cluster, old, files_changed, ["it was not running"])
            result["restarted"] = True
    elif files_changed:
        result.update(changed=True, reloaded=True)
        if not module.check_mode:
            state = apply_files(cluster, new[0], new[1], old, certificate)
    elif needs_reload(cluster, state, certificate):
        result.update(changed=True, reloaded=True)
        if not module.check_mode:
            problem = certificate and cluster.tls_problem(certificate, params["tls_key_file"])
            if problem:
                raise ConfigError("TLS of PostgreSQL: %s" % problem)
            state = cluster.reload(state["load_time"])
            if certificate and cluster.serves_old_certificate(certificate):
                raise ConfigError("after a reload PostgreSQL does not present %s" % certificate)

    if state and state["pending"]:
        result["restart_for"] = sorted(set(result["restart_for"]) | set(state["pending"]))
        if not params["restart"]:
            module.warn("PostgreSQL must be restarted for: " + ", ".join(state["pending"]))
        else:
            result["changed"] = True
            if not module.check_mode:
                state = restart_proven(cluster, old, files_changed, state["pending"])
                result["restarted"] = True
    if state:
        if not module.check_mode and state["overridden"]:
            module.warn("set elsewhere, so that the role's value has no effect: " + ", ".join(state["overridden"]))
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
    cluster = Cluster(module.params["version"], module.params["cluster"], module.params["start_timeout_seconds"])
    try:
        result = run(module, cluster)
    except ConfigError as error:
        module.fail_json(msg=str(error))
    except subprocess.TimeoutExpired as error:
        module.fail_json(msg="%s did not answer within %d s" % (error.cmd[0], error.timeout))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
