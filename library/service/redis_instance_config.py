#!/usr/bin/python
"""Apply the configuration and ACL file of a Redis instance, proven, or leave the old ones."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import re
import resource
import shlex
import shutil
import socket
import ssl
import subprocess
import tempfile
import time

from ansible.module_utils.shiftmaster.host.quiet import QuietModule

DOCUMENTATION = r"""
---
module: redis_instance_config
short_description: Apply a Redis instance's configuration and ACL file and prove that they took effect
description:
  - Starts a scratch server from the candidate files on a private socket. What it refuses never reaches the instance,
    and what it reports by C(CONFIG GET) and C(ACL LIST) is what the instance must report afterwards.
  - Whatever differs in the running instance is set by C(CONFIG SET) and C(ACL LOAD); what cannot be changed while it
    runs leads to a restart. So a change made by hand, an interrupted run and a renewed certificate are put right, too.
  - Turning the append-only file on is done while the instance runs, for a restart alone would begin with an empty one.
  - What cannot be applied is put back, and the module fails with the server's own words.
  - The unit is enabled to start at boot.
options:
  unit:
    description: systemd unit of the instance.
    type: str
    required: true
  config_file:
    description: Path of the instance's configuration.
    type: path
    required: true
  config:
    description: Whole text of the configuration.
    type: str
    required: true
  acl_file:
    description: Path of the instance's ACL file, the one that O(config) names.
    type: path
    required: true
  acl:
    description: Whole text of the ACL file.
    type: str
    required: true
  admin_user:
    description: User of the ACL file that may do everything; this module logs in as it.
    type: str
    required: true
  admin_password:
    description: Password of that user.
    type: str
    required: true
  admin_previous_passwords:
    description: Passwords that the running instance may still have. Without the right one a rotation needs a restart.
    type: list
    elements: str
    default: []
  previous_passwords:
    description:
      - Passwords of before by the user's name. One that O(acl_file) on the host has stays beside what O(acl) says, so
        that a new password comes into use without shutting the old one's users out. None is added again.
    type: dict
    default: {}
  supplementary_group:
    description: Group that the unit gives the server besides its own, so that it can read a private key.
    type: str
    default: ""
  unit_changed:
    description: Whether the unit or a drop-in of it was changed before, so that the instance must be restarted.
    type: bool
    default: false
  restart:
    description: Whether a change that needs a restart may restart the instance; otherwise it is only reported.
    type: bool
    default: true
  start_timeout_seconds:
    description: How long a start may take until the instance has loaded its data.
    type: int
    default: 120
author:
  - ShiftMaster operations
attributes:
  check_mode:
    description: The candidate is tried on the scratch server, nothing is written.
    support: full
  diff_mode:
    description: Shows both files; hashes of passwords are left out.
    support: full
"""

EXAMPLES = r"""
- name: Apply the configuration
  redis_instance_config:
    unit: redis-server.service
    config_file: /etc/redis/redis.conf
    config: "{{ lookup('ansible.builtin.template', 'redis.conf.j2') }}"
    acl_file: /etc/redis/users.acl
    acl: "{{ lookup('ansible.builtin.template', 'users.acl.j2') }}"
    admin_user: admin
    admin_password: "{{ redis_admin_password }}"
"""

RETURN = r"""
present:
  description: Whether the server's program is installed.
  type: bool
  returned: always
set:
  description: Parameters that were, or in check mode would be, set in the running instance.
  type: list
  elements: str
  returned: always
acl_loaded:
  description: Whether the users were, or would be, loaded anew.
  type: bool
  returned: always
restarted:
  description: Whether the instance was started or restarted.
  type: bool
  returned: always
enabled:
  description: Whether the unit was, or would be, enabled to start at boot.
  type: bool
  returned: always
restart_for:
  description: Why the instance was, or would be, restarted.
  type: list
  elements: str
  returned: always
"""

SERVER = "/usr/bin/redis-server"
SCRATCH_TIMEOUT_SECONDS = 10
FILE_LIMIT = 65535
# What the scratch server must have otherwise; compared with the text of the file instead.
FROM_FILE = (
    "port",
    "tls-port",
    "bind",
    "unixsocket",
    "unixsocketperm",
    "dir",
    "pidfile",
    "logfile",
    "aclfile",
    "replicaof",
)
# Differ between two servers started from one file.
IGNORED = ("daemonize", "supervised")
# Directives that are no parameters.
NO_PARAMETERS = {"include", "loadmodule", "rename-command", "user"}
TLS_FILES = ("tls-cert-file", "tls-key-file", "tls-ca-cert-file")


class ConfigError(Exception):
    """What the operator must be told; nothing was changed, or it was put back."""


class ServerError(Exception):
    """An error reply of Redis."""


class Connection:
    """As much of the Redis protocol as this module needs."""

    def __init__(self, address, timeout=10.0):
        if isinstance(address, tuple):
            self.sock = socket.create_connection(address, timeout=timeout)
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(address)
        self.file = self.sock.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    def close(self):
        self.file.close()
        self.sock.close()

    def call(self, *words):
        self.sock.sendall(encode(words))
        return self.read()

    def read(self):
        line = self.file.readline()
        if not line:
            raise OSError("Redis closed the connection")
        kind, rest = line[:1], line[1:].strip().decode("utf-8", "replace")
        if kind == b"+":
            return rest
        if kind == b"-":
            raise ServerError(rest)
        if kind == b":":
            return int(rest)
        if kind == b"$":
            if int(rest) < 0:
                return None
            data = self.file.read(int(rest) + 2)
            return data[:-2].decode("utf-8", "replace")
        if kind == b"*":
            return None if int(rest) < 0 else [self.read() for _ in range(int(rest))]
        raise OSError("unknown reply of Redis")

    def users(self):
        """The users in a form that is the same for two servers with the same ACL file."""
        lines = sorted(self.call("ACL", "LIST"))
        version = re.search(r"redis_version:(\d+)\.(\d+)", self.call("INFO", "server"))
        # Before 7.2 a server lists the commands of a category one by one, in an order of its own.
        if tuple(map(int, version.groups())) < (7, 2):
            return [sorted(line.split()) for line in lines]
        return [with_sorted_hashes(line) for line in lines]

    def parameters(self):
        flat = self.call("CONFIG", "GET", "*")
        return dict(zip(flat[::2], flat[1::2]))


def encode(words):
    """One command in the Redis protocol."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = str(word).encode("utf-8")
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


def directive(config, name):
    """Value of the last such line of a configuration text, as CONFIG GET would print it; None when absent."""
    value = None
    for line in config.splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0].lower() == name:
            value = " ".join(words[1:])
    return value


def tls_files(config):
    """Certificates and keys that a configuration text names."""
    return [path for path in (directive(config, name) for name in TLS_FILES) if path]


def directives(config):
    """Names that a configuration text sets."""
    lines = [shlex.split(line, comments=True) for line in config.splitlines()]
    return {words[0].lower() for words in lines if words}


def with_sorted_hashes(line):
    """A user's line; which of its passwords was set first is no difference."""
    words = line.split()
    hashes = iter(sorted(word for word in words if re.fullmatch(r"#[0-9a-f]{64}", word)))
    return " ".join(next(hashes) if re.fullmatch(r"#[0-9a-f]{64}", word) else word for word in words)


def without_hashes(acl):
    """An ACL file as a diff may show it."""
    return re.sub(r"([#!])[0-9a-f]{64}\b", r"\1(hash of a password)", acl)


def changed_passwords(before, after):
    """Names of users in both ACL texts whose password hashes differ."""

    def hashes(text):
        found = {}
        for line in text.splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == "user":
                found[words[1]] = sorted(word for word in words if re.fullmatch(r"#[0-9a-f]{64}", word))
        return found

    old, new = hashes(before), hashes(after)
    return sorted(name for name in old if name in new and old[name] != new[name])


def hash_of(password):
    return "#" + hashlib.sha256(str(password).encode()).hexdigest()


def with_kept_passwords(before, after, previous):
    """The new ACL text, with those of the previous passwords beside the new ones that the old text has."""
    had = {}
    for line in before.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "user":
            had[words[1]] = set(words)
    lines = []
    for line in after.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "user":
            kept = [hash_of(password) for password in previous.get(words[1], [])]
            kept = [word for word in kept if word in had.get(words[1], ()) and word not in words]
            if kept:
                place = max(number for number, word in enumerate(words) if word == "on" or word.startswith("#")) + 1
                line = " ".join(words[:place] + kept + words[place:])
        lines.append(line)
    return "\n".join(lines) + ("\n" if after.endswith("\n") else "")


def password_rules(live, wanted):
    """What to tell ACL SETUSER, {user: [rules]}, where nothing but passwords differs; None where more does."""

    def parsed(lines):
        users = {}
        for line in lines:
            words = line.split()
            hashes = {word for word in words if re.fullmatch(r"#[0-9a-f]{64}", word)}
            users[words[1]] = (hashes, sorted(word for word in words if word not in hashes))
        return users

    old, new = parsed(live), parsed(wanted)
    if {name: rest for name, (_, rest) in old.items()} != {name: rest for name, (_, rest) in new.items()}:
        return None
    rules = {}
    for name, (hashes, _) in new.items():
        had = old[name][0]
        if had != hashes:
            rules[name] = sorted(hashes - had) + sorted("!" + word[1:] for word in had - hashes)
    return rules


def load_users(connection, wanted):
    """Bring the users of the ACL file into use; who is logged in stays so where only passwords change."""
    rules = password_rules(connection.call("ACL", "LIST"), wanted)
    if rules is None:
        # Ends the connections of users that changed, before 7.2 of all.
        connection.call("ACL", "LOAD")
        return
    for name, words in rules.items():
        connection.call("ACL", "SETUSER", name, *words)


def differences(live, reference, config):
    """Parameters of the live server that are not what the file means: {name: wanted value}."""
    wanted = {}
    for name, value in reference.items():
        if name in IGNORED or name in FROM_FILE or name not in live:
            continue
        if live[name] != value:
            wanted[name] = value
    for name in FROM_FILE:
        value = directive(config, name)
        if value is not None and name in live and live[name] != value:
            wanted[name] = value
    return wanted


def first_certificate(pem):
    """The first certificate of a PEM text in DER; None when there is none."""
    match = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, re.S)
    return ssl.PEM_cert_to_DER_cert(match.group(0)) if match else None


def served_certificate(address, port, timeout=5.0):
    """Certificate that a TLS server presents, in DER; None when it refuses the handshake before that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only compared with the file; nothing is trusted or sent
    with socket.create_connection((address, port), timeout=timeout) as raw:
        with context.wrap_socket(raw) as wrapped:
            return wrapped.getpeercert(binary_form=True)


def startup_errors(output):
    """What a server that did not start says, on one line."""
    lines = [re.sub(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ [*#.-] ", "", line).strip() for line in output.splitlines()]
    wanted = []
    for number, line in enumerate(lines):
        if "FATAL CONFIG FILE ERROR" in line:
            wanted += [text for text in lines[number + 1 :] if text]
            break
        if re.search(r"(?i)error|fail|can't|cannot|abort|wrong|invalid|no such|warning", line):
            wanted.append(line)
    return "; ".join(wanted[:6]) or "; ".join(line for line in lines[-3:] if line)


def raise_file_limit():
    """As many open files as the hard limit of a unit."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILE_LIMIT, FILE_LIMIT))


class Scratch:
    """A server started from the candidate files, out of everybody's reach."""

    def __init__(self, instance, config, acl, passwords=None):
        self.instance = instance
        self.passwords = passwords or instance.passwords[:1]
        self.config = config
        self.acl = acl
        self.user_lines = []
        self.process = None
        self.directory = None

    def __enter__(self):
        user = pwd.getpwnam("redis")
        self.directory = tempfile.mkdtemp(prefix="redis-candidate-")
        path = self.directory
        try:
            for name, text in (("redis.conf", self.config), ("users.acl", self.acl)):
                with open(os.path.join(path, name), "w", encoding="utf-8") as out:
                    out.write(text)
                os.chmod(os.path.join(path, name), 0o640)
                os.chown(os.path.join(path, name), 0, user.pw_gid)
            os.chown(path, user.pw_uid, user.pw_gid)
            self.start(path)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start(self, path):
        options = ["--port", "0", "--unixsocket", path + "/socket", "--unixsocketperm", "700", "--dir", path]
        options += ["--pidfile", path + "/pid", "--logfile", "", "--aclfile", path + "/users.acl"]
        options += ["--daemonize", "no", "--supervised", "no", "--replicaof", "no", "one"]
        if (directive(self.config, "tls-port") or "0") != "0":
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                options += ["--tls-port", str(probe.getsockname()[1]), "--bind", "127.0.0.1"]
        log = os.path.join(path, "output")
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                self.instance.as_redis([SERVER, path + "/redis.conf"] + options),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=path,
                # With fewer files than the unit allows it would lower maxclients.
                preexec_fn=raise_file_limit,
            )
        deadline = time.monotonic() + SCRATCH_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                with open(log, encoding="utf-8", errors="replace") as output:
                    said = output.read().replace(path + "/users.acl", self.instance.acl_file)
                said = without_hashes(said.replace(path + "/redis.conf", self.instance.config_file))
                raise ConfigError(
                    "Redis refuses the new configuration, the old one stays: " + self.unknown() + startup_errors(said)
                )
            try:
                with self.connect() as connection:
                    self.parameters = connection.parameters()
                    self.users = connection.users()
                    self.user_lines = connection.call("ACL", "LIST")
                return
            except OSError:
                time.sleep(0.02)
            except ServerError as error:
                raise ConfigError("the new ACL file shuts user %s out: %s" % (self.instance.admin_user, error))
        raise ConfigError("a server with the new configuration did not answer in %d s" % SCRATCH_TIMEOUT_SECONDS)

    def unknown(self):
        """Redis 8 takes what it does not know for a module's directive and does not name it: find it."""
        used = directives(self.config)
        if not used:
            return ""
        with Scratch(self.instance, "", self.acl) as bare:
            names = sorted(used - set(bare.parameters) - NO_PARAMETERS)
        return "unknown directive %s; " % ", ".join(names) if names else ""

    def connect(self):
        connection = Connection(self.directory + "/socket")
        try:
            for password in self.passwords[:-1]:
                with contextlib.suppress(ServerError):
                    connection.call("AUTH", self.instance.admin_user, password)
                    return connection
            connection.call("AUTH", self.instance.admin_user, self.passwords[-1])
        except BaseException:
            connection.close()
            raise
        return connection

    def __exit__(self, *_exception):
        if self.process is not None and self.process.poll() is None:
            # The one below runuser is the server; both are ours, and it has nothing to save.
            with contextlib.suppress(OSError, ServerError):
                with self.connect() as connection:
                    connection.call("SHUTDOWN", "NOSAVE", "NOW")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
            if self.process.poll() is None:
                self.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(3)
        if self.directory:
            shutil.rmtree(self.directory, ignore_errors=True)


class Instance:
    """The real instance."""

    def __init__(self, params):
        self.unit = params["unit"]
        self.config_file = params["config_file"]
        self.acl_file = params["acl_file"]
        self.admin_user = params["admin_user"]
        self.passwords = [params["admin_password"]] + params["admin_previous_passwords"]
        self.start_timeout = params["start_timeout_seconds"]
        self.group = params["supplementary_group"]

    def as_redis(self, argv):
        groups = ["-g", "redis", "-G", self.group] if self.group else []
        return ["runuser", "-u", "redis"] + groups + ["--"] + argv

    @staticmethod
    def read(path):
        try:
            with open(path, encoding="utf-8") as handle:
                return handle.read()
        except FileNotFoundError:
            return None

    @staticmethod
    def write(path, text):
        if text is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".shiftmaster-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            # Of root: the server may read its users and settings, not write them.
            os.chown(temporary, 0, grp.getgrnam("redis").gr_gid)
            os.chmod(temporary, 0o640)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def write_both(self, files):
        self.write(self.config_file, files[0])
        self.write(self.acl_file, files[1])

    def properties(self):
        argv = ["systemctl", "show", self.unit, "--property=ActiveState,NeedDaemonReload,UnitFileState"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
        return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)

    def enable(self):
        argv = ["systemctl", "enable", self.unit]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise ConfigError("%s: %s" % (" ".join(argv), done.stderr.strip()))

    def connect(self, *configs):
        """A connection that may do everything, or None. The given texts say where the instance may listen."""
        for address in addresses(configs):
            for credentials in [(self.admin_user, word) for word in self.passwords] + [None]:
                try:
                    connection = Connection(address)
                except OSError:
                    break
                try:
                    if credentials:
                        connection.call("AUTH", *credentials)
                    connection.call("CONFIG", "GET", "port")
                    return connection
                except (ServerError, OSError):
                    connection.close()
        return None

    def restart(self, config):
        """Restart (or start); True when the instance has loaded its data and lets the administrator in."""
        deadline = time.monotonic() + self.start_timeout
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A unit that failed too often in a row refuses to start until it is reset.
            subprocess.run(["systemctl", "reset-failed", self.unit], capture_output=True, check=False, timeout=30)
            subprocess.run(["systemctl", "daemon-reload"], capture_output=True, check=False, timeout=60)
            subprocess.run(
                ["systemctl", "restart", self.unit], capture_output=True, check=False, timeout=self.start_timeout
            )
        while time.monotonic() < deadline:
            connection = self.connect(config)
            if connection is not None:
                with connection:
                    if "loading:0" in connection.call("INFO", "persistence"):
                        return True
            elif self.properties().get("ActiveState") == "failed":
                return False
            time.sleep(0.1)
        return False

    def log_tail(self):
        done = subprocess.run(
            ["journalctl", "--unit", self.unit, "--lines", "20", "--output", "cat", "--no-pager"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        logfile = directive(self.read(self.config_file) or "", "logfile")
        own = "\n".join((self.read(logfile) or "").splitlines()[-15:]) if logfile else ""
        return startup_errors(own) or startup_errors(done.stdout)


def addresses(configs):
    """Where instances with these configurations can be reached from their own host, the socket first."""
    found = []
    for config in configs:
        if not config:
            continue
        path = directive(config, "unixsocket")
        if path and path not in found:
            found.append(path)
    for config in configs:
        port = int(directive(config or "", "port") or 0)
        if port and ("127.0.0.1", port) not in found:
            found.append(("127.0.0.1", port))
    return found


def serves_old_certificate(live, config):
    """Whether the running instance presents another certificate than the file holds."""
    port = int(live.get("tls-port") or 0)
    path = directive(config, "tls-cert-file")
    if not port or not path:
        return False
    address = next((word for word in live.get("bind", "").split() if not word.startswith("-")), "127.0.0.1")
    address = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    try:
        return served_certificate(address, port) != first_certificate(Instance.read(path) or "")
    except OSError:
        return False


def wait_for_append_only_file(connection, seconds):
    """Until the append-only file that was just turned on holds all data."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        info = connection.call("INFO", "persistence")
        if "aof_rewrite_in_progress:0" in info and "aof_rewrite_scheduled:0" in info:
            if "aof_last_bgrewrite_status:ok" in info:
                return
            break
        time.sleep(0.1)
    raise ConfigError("Redis could not write its append-only file; nothing was restarted")


def set_parameters(connection, wanted, timeout):
    """Set what can be set while running; answer the rest, which needs a restart."""
    rest = []
    if wanted.get("appendonly") == "yes":
        connection.call("CONFIG", "SET", "appendonly", "yes")
        wait_for_append_only_file(connection, timeout)
    grouped = [name for name in wanted if name in TLS_FILES]
    for names in [grouped] + [[name] for name in wanted if name not in TLS_FILES and name != "appendonly"]:
        if not names:
            continue
        try:
            connection.call("CONFIG", "SET", *[word for name in names for word in (name, wanted[name])])
        except ServerError:
            rest += names
    if wanted.get("appendonly") == "no":
        connection.call("CONFIG", "SET", "appendonly", "no")
    return rest


def look(connection, scratch, config):
    """What of the running instance is not as the files say: (parameters, whether users, live parameters)."""
    live = connection.parameters()
    wanted = differences(live, scratch.parameters, config)
    if serves_old_certificate(live, config):
        wanted.update({name: scratch.parameters[name] for name in TLS_FILES if scratch.parameters.get(name)})
    return wanted, connection.users() != scratch.users


def run(module, instance):
    params = module.params
    old = (instance.read(instance.config_file), instance.read(instance.acl_file))
    new = (params["config"], with_kept_passwords(old[1] or "", params["acl"], params["previous_passwords"]))
    files_changed = old != new
    result = {
        "changed": files_changed,
        "present": os.path.isfile(SERVER),
        "set": [],
        "acl_loaded": False,
        "restarted": False,
        "restart_for": [],
        "enabled": False,
        "diff": diff(instance, old, new),
    }
    if not result["present"]:
        if module.check_mode:
            return dict(result, changed=True)
        raise ConfigError("there is no %s; install redis-server first" % SERVER)

    absent = [path for path in tls_files(new[0]) if not os.path.exists(path)]
    if absent and module.check_mode:
        module.warn("%s is not there yet; what makes it must come first" % ", ".join(absent))
        return result
    unit = instance.properties()
    if unit.get("UnitFileState") != "enabled":
        result.update(changed=True, enabled=True)
    with Scratch(instance, *new) as scratch:
        connection = instance.connect(new[0], old[0]) if unit.get("ActiveState") in ("active", "reloading") else None
        try:
            apply(module, instance, scratch, connection, old, new, unit, result)
        finally:
            if connection is not None:
                connection.close()
    return result


def diff(instance, old, new):
    shown = []
    for path, before, after, mask in (
        (instance.config_file, old[0], new[0], lambda text: text),
        (instance.acl_file, old[1], new[1], without_hashes),
    ):
        if before != after:
            left, right = mask(before or ""), mask(after)
            for name in changed_passwords(before or "", after):
                right += "# (the password of %s changes)\n" % name
            shown.append({"before_header": path, "after_header": path, "before": left, "after": right})
    return shown


def apply(module, instance, scratch, connection, old, new, unit, result):
    active = unit.get("ActiveState") in ("active", "reloading")
    restart_for = []
    wanted, users = {}, False
    if not active:
        restart_for.append("it was not running")
    elif connection is None:
        restart_for.append("no known password lets the administrator in")
    else:
        wanted, users = look(connection, scratch, new[0])
    # A reload of systemd that is still due is what an interrupted run leaves behind.
    if active and (module.params["unit_changed"] or unit.get("NeedDaemonReload") == "yes"):
        restart_for.append("its unit changed")
    result["changed"] = bool(old != new or wanted or users or restart_for or result["enabled"])
    result["acl_loaded"] = users
    if module.check_mode:
        result.update(set=sorted(wanted), restart_for=restart_for)
        return

    if result["enabled"]:
        instance.enable()
    if old != new:
        instance.write_both(new)
    try:
        if connection is not None:
            rest = set_parameters(connection, wanted, instance.start_timeout)
            result["set"] = sorted(set(wanted) - set(rest))
            if users and "aclfile" not in rest:
                load_users(connection, scratch.user_lines)
            restart_for += [name for name in rest if name not in restart_for]
            if not restart_for:
                # A connection of its own: loading users may have ended this one.
                prove(instance, scratch, new[0])
    except (ConfigError, ServerError, OSError) as error:
        put_back(instance, old, new)
        raise ConfigError("Redis refused the change, the old configuration was put back: %s" % error)
    result["restart_for"] = restart_for
    if not restart_for:
        return
    if active and not module.params["restart"]:
        module.warn("%s must be restarted for: %s" % (instance.unit, ", ".join(restart_for)))
        result["changed"] = bool(old != new or result["set"] or users or result["enabled"])
        return
    if connection is None:
        keep_snapshot(instance, new[0])
    if not instance.restart(new[0]):
        restart_failed(instance, old, new, restart_for)
    result["restarted"] = True
    prove(instance, scratch, new[0])


def keep_snapshot(instance, config):
    """Before a first start with an append-only file: without this Redis would begin empty beside a full snapshot."""
    folder = directive(config, "dir") or "/var/lib/redis"
    if directive(config, "appendonly") != "yes" or os.path.exists(os.path.join(folder, "appendonlydir")):
        return
    # A running instance writes its snapshot when it stops.
    stop = ["systemctl", "stop", instance.unit]
    subprocess.run(stop, capture_output=True, check=False, timeout=instance.start_timeout)
    if not os.path.exists(os.path.join(folder, directive(config, "dbfilename") or "dump.rdb")):
        return
    instance.write(instance.config_file, config + "\nappendonly no\n")
    try:
        if not instance.restart(config):
            raise ConfigError("%s did not start with its snapshot: %s" % (instance.unit, instance.log_tail()))
        with instance.connect(config) as connection:
            connection.call("CONFIG", "SET", "appendonly", "yes")
            wait_for_append_only_file(connection, instance.start_timeout)
    finally:
        instance.write(instance.config_file, config)


def prove(instance, scratch, config):
    """The instance must now report what the scratch server reports."""
    connection = instance.connect(config)
    if connection is None:
        raise ConfigError("the administrator cannot log in with the new password")
    with connection:
        wanted, users = look(connection, scratch, config)
    if wanted or users:
        what = sorted(wanted) + (["the users of the ACL file"] if users else [])
        raise ConfigError("the running instance does not have the new values of " + ", ".join(what))


def put_back(instance, old, new):
    """The old files, and as far as possible the old values in the running instance."""
    if old == new or None in old:
        return
    instance.write_both(old)
    with contextlib.suppress(ConfigError, ServerError, OSError):
        connection = instance.connect(old[0], new[0])
        if connection is not None:
            # The old users let the administrator in with an old password.
            with connection, Scratch(instance, *old, passwords=instance.passwords) as before:
                wanted, users = look(connection, before, old[0])
                set_parameters(connection, wanted, instance.start_timeout)
                if users:
                    connection.call("ACL", "LOAD")


def restart_failed(instance, old, new, restart_for):
    what = "%s did not start (%s): %s" % (instance.unit, ", ".join(restart_for), instance.log_tail())
    if old == new or None in old:
        raise ConfigError(what)
    instance.write_both(old)
    back = "the old configuration was put back and runs" if instance.restart(old[0]) else "nor with the old one"
    raise ConfigError("%s; %s" % (what, back))


def main():
    module = QuietModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "config_file": {"type": "path", "required": True},
            "config": {"type": "str", "required": True},
            "acl_file": {"type": "path", "required": True},
            "acl": {"type": "str", "required": True, "no_log": True},
            "admin_user": {"type": "str", "required": True},
            "admin_password": {"type": "str", "required": True, "no_log": True},
            "admin_previous_passwords": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "previous_passwords": {"type": "dict", "no_log": True, "default": {}},
            "supplementary_group": {"type": "str", "default": ""},
            "unit_changed": {"type": "bool", "default": False},
            "restart": {"type": "bool", "default": True},
            "start_timeout_seconds": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module, Instance(module.params))
    except (ConfigError, ServerError) as error:
        module.fail_json(msg=str(error))
    except (subprocess.TimeoutExpired, OSError) as error:
        module.fail_json(msg="%s: %s" % (module.params["unit"], error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
