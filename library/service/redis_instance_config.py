#!/usr/bin/python
"""Apply the configuration and ACL file of a Redis instance and verify them, or roll back."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import re
import resource
import shlex
import socket
import struct
import subprocess
import tempfile
import time

from ansible.module_utils.shiftmaster.host import configuration, probe, safe_files, service_user, units
from ansible.module_utils.shiftmaster.host.configuration import Failed, Rejected
from ansible.module_utils.shiftmaster.host.quiet import QuietModule

DOCUMENTATION = r"""
module: redis_instance_config
short_description: Apply a Redis instance's configuration and ACL file and verify that they took effect
description:
  - Compares first. Where the files or the running instance are not as the last verified run left them (noted in /run),
    it starts a scratch server from the candidate files on a private socket. A rejected configuration never reaches the
    instance, and what the scratch server reports (C(CONFIG GET), C(ACL LIST)) the instance must report afterwards.
  - Whatever differs in the running instance is set by C(CONFIG SET) and C(ACL LOAD); what cannot be changed while it
    runs leads to a restart. So a change made by hand, an interrupted run and a renewed certificate are put right, too.
  - Turning the append-only file on is done while the instance runs, for a restart alone would begin with an empty one.
  - Where that fails, the earlier files are placed, loaded and verified, and the module fails with the server's message.
  - The directory of O(config_file) becomes root's, so that the server can read it and exchange nothing.
  - The unit is enabled to start at boot.
options:
  unit: {description: systemd unit of the instance., type: str, required: true}
  config_file: {description: Path of the instance's configuration., type: path, required: true}
  config: {description: Complete text of the configuration., type: str, required: true}
  acl_file: {description: "Path of the instance's ACL file, the one that O(config) names.", type: path, required: true}
  acl: {description: Complete text of the ACL file., type: str, required: true}
  admin_user: {type: str, required: true, description: User of the ACL file that may do everything; this module logs in
    as it.}
  admin_password: {description: Password of that user., type: str, required: true}
  admin_previous_passwords: {type: list, elements: str, default: [], description: Passwords that the running instance
    may still have. Without the right one a rotation needs a restart.}
  primary_password: {type: str, default: "", description: "Password with which a replica logs in to its primary
    (C(masterauth)); it is added to O(config), and never shown."}
  previous_passwords: {type: dict, default: {}, description: "Passwords of before by the user's name. One that
    O(acl_file) on the host has stays next to what O(acl) says, so that a new password comes into use without shutting
    the old one's users out. None is added again."}
  supplementary_group: {type: str, default: "", description: "Group that the unit gives the server besides its own, so
    that it can read a private key."}
  unit_changed: {type: bool, default: false, description: "Whether the unit or a drop-in of it was changed before, so
    that the instance must be restarted."}
  restart: {type: bool, default: true, description: Whether a change that needs a restart may restart the instance;
    otherwise it is only reported.}
  start_timeout_seconds: {type: int, default: 120, description: How long a start may take until the instance has loaded
    its data.}
attributes:
  check_mode: {description: "The candidate is tried on the scratch server, nothing is written.", support: full}
  diff_mode: {description: Shows both files; hashes of passwords are left out., support: full}
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
present: {description: Whether the server's program is installed., type: bool, returned: always}
set: {description: "Parameters that were, or in check mode would be, set.", type: list, elements: str, returned: always}
acl_loaded: {description: Whether the users were (would be) loaded again., type: bool, returned: always}
restarted: {description: Whether the instance was started or restarted., type: bool, returned: always}
enabled: {description: Whether the unit was (would be) enabled to start at boot., type: bool, returned: always}
restart_for: {description: Why the instance was (would be) restarted., type: list, elements: str, returned: always}
"""

SERVER = "/usr/bin/redis-server"
SCRATCH_TIMEOUT_SECONDS = 10
FILE_LIMIT = 65535
OUTPUT_LIMIT_BYTES = 65536
# The scratch server must have these otherwise; they are compared with the text of the file instead.
FROM_FILE = tuple("port tls-port bind unixsocket unixsocketperm dir pidfile logfile aclfile replicaof".split())
# Differ between two servers started from one file.
IGNORED = ("daemonize", "supervised")
SENTINELS = ("replicaof", "slaveof")
# Directives that are no parameters.
NO_PARAMETERS = {"include", "loadmodule", "rename-command", "user"}
HASH = re.compile(r"#[0-9a-f]{64}")
TLS_FILES = ("tls-cert-file", "tls-key-file", "tls-ca-cert-file")


class ServerError(Failed):
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
            # The socket is in a directory of the server's; another user's would be given the password.
            peer = struct.unpack("3i", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if peer not in (0, pwd.getpwnam("redis").pw_uid):
                self.sock.close()
                raise OSError("the server at %s runs as user %d" % (address, peer))
        self.file = self.sock.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    def close(self):
        self.file.close()
        self.sock.close()

    def call(self, *words):
        try:
            return probe.redis_command(self.sock, self.file, *words)
        except probe.RedisError as error:
            raise ServerError(str(error))
        except probe.ProbeError as error:
            raise OSError(str(error))

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


def directives(config):
    """Return {name: value of its last line, as CONFIG GET would print it} of a configuration text."""
    found = {}
    for line in config.splitlines():
        # Redis rejects a line that cannot be read so.
        with contextlib.suppress(ValueError):
            words = shlex.split(line, comments=True)
            if words:
                found[words[0].lower()] = " ".join(words[1:])
    return found


def directive(config, name):
    return directives(config).get(name)


def acl_users(lines):
    """Return {name: (hashes of its passwords, its other words)} of the lines of an ACL."""
    found = {}
    for words in map(str.split, lines):
        if len(words) > 1 and words[0] == "user":
            hashes = set(filter(HASH.fullmatch, words))
            found[words[1]] = (hashes, sorted(word for word in words if word not in hashes))
    return found


def with_sorted_hashes(line):
    """Return a user's line; which of its passwords was set first is no difference."""
    words = line.split()
    hashes = iter(sorted(filter(HASH.fullmatch, words)))
    return " ".join(next(hashes) if HASH.fullmatch(word) else word for word in words)


def without_hashes(acl):
    """An ACL file as a diff may show it."""
    return re.sub(r"([#!])[0-9a-f]{64}\b", r"\1(hash of a password)", acl)


def changed_passwords(before, after):
    """Return the names of users in both ACL texts whose password hashes differ."""
    old, new = acl_users(before.splitlines()), acl_users(after.splitlines())
    return sorted(name for name in old if name in new and old[name][0] != new[name][0])


def hash_of(password):
    return "#" + hashlib.sha256(str(password).encode()).hexdigest()


def with_kept_passwords(before, after, previous):
    """Return the new ACL text, with those of the previous passwords next to the new ones that the old text has."""
    had, lines = acl_users(before.splitlines()), []
    for line in after.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "user":
            kept = [hash_of(password) for password in previous.get(words[1], [])]
            kept = [word for word in kept if word in had.get(words[1], ((),))[0] and word not in words]
            if kept:
                place = max(number for number, word in enumerate(words) if word == "on" or word.startswith("#")) + 1
                line = " ".join(words[:place] + kept + words[place:])
        lines.append(line)
    return "\n".join(lines) + ("\n" if after.endswith("\n") else "")


def password_rules(live, wanted):
    """Return what ACL SETUSER needs, {user: [rules]}, where nothing but passwords differs; None where more does."""
    old, new = acl_users(live), acl_users(wanted)
    if {name: rest for name, (_, rest) in old.items()} != {name: rest for name, (_, rest) in new.items()}:
        return None
    return {
        name: sorted(hashes - old[name][0]) + sorted("!" + word[1:] for word in old[name][0] - hashes)
        for name, (hashes, _) in new.items()
        if hashes != old[name][0]
    }


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
    # Of a replicated instance Sentinel decides which primary it follows.
    ignored = IGNORED + (SENTINELS if directive(config, "masterauth") else ())
    wanted = {}
    for name, value in reference.items():
        if name in ignored or name in FROM_FILE or name not in live:
            continue
        if live[name] != value:
            wanted[name] = value
    for name in FROM_FILE:
        value = directive(config, name)
        if value is not None and name in live and live[name] != value:
            wanted[name] = value
    return wanted


def startup_errors(output):
    """Return the message of a server that did not start, on one line."""
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
    """A server started from candidate files, out of everybody's reach."""

    def __init__(self, instance, config, acl, name="", passwords=None):
        self.instance, self.config, self.acl = instance, config, acl
        self.stage = instance.unit + name
        self.passwords = passwords or instance.passwords[:1]
        self.process = None
        self.held = contextlib.ExitStack()

    def __enter__(self):
        root = os.path.dirname(self.instance.config_file)
        config, acl = (
            os.path.join(root, os.path.basename(path)) for path in (self.instance.config_file, self.instance.acl_file)
        )
        reader = service_user.process_of("redis", [])
        files = configuration.FileSet()
        files.want(config, ("file", self.config.encode(), 0o640, 0, reader["group"]))
        files.want(acl, ("file", self.acl.encode(), 0o640, 0, reader["group"]))
        tree, work = self.held.enter_context(files.staged(root, self.stage, reader))
        try:
            self.start(*(os.path.join(tree, os.path.basename(path)) for path in (config, acl)), work)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start(self, config_file, acl_file, work):
        self.socket = work + "/socket"
        options = ["--port", "0", "--unixsocket", self.socket, "--unixsocketperm", "700", "--dir", work]
        options += ["--pidfile", work + "/pid", "--logfile", "", "--aclfile", acl_file]
        options += ["--daemonize", "no", "--supervised", "no", "--replicaof", "no", "one"]
        if (directive(self.config, "tls-port") or "0") != "0":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                options += ["--tls-port", str(free.getsockname()[1]), "--bind", "127.0.0.1"]
        # Without a name: the working directory is the server's, and root writes to no file in it.
        output = self.held.enter_context(tempfile.TemporaryFile())
        self.process = subprocess.Popen(
            self.instance.as_redis([SERVER, config_file, *options]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=work,
            # With fewer files than the unit allows it would lower maxclients.
            preexec_fn=raise_file_limit,
        )
        deadline = time.monotonic() + SCRATCH_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                output.seek(0)
                text = output.read(OUTPUT_LIMIT_BYTES).decode("utf-8", "replace")
                text = text.replace(acl_file, self.instance.acl_file).replace(config_file, self.instance.config_file)
                raise Rejected("Redis rejects it: " + self.unknown() + startup_errors(without_hashes(text)))
            try:
                with self.connect() as connection:
                    self.parameters = connection.parameters()
                    self.users = connection.users()
                    self.user_lines = connection.call("ACL", "LIST")
                return
            except OSError:
                time.sleep(0.02)
            except ServerError as error:
                raise Rejected("the new ACL file shuts user %s out: %s" % (self.instance.admin_user, error))
        raise Rejected("a server with the new configuration did not respond in %d s" % SCRATCH_TIMEOUT_SECONDS)

    def unknown(self):
        """Redis 8 takes what it does not know for a module's directive and does not name it: find it."""
        used = set(directives(self.config))
        if not used:
            return ""
        with Scratch(self.instance, "", self.acl, "-bare") as bare:
            names = sorted(used - set(bare.parameters) - NO_PARAMETERS)
        return "unknown directive %s; " % ", ".join(names) if names else ""

    def connect(self):
        connection = Connection(self.socket)
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
        with self.held:
            if self.process is not None and self.process.poll() is None:
                # The one below runuser is the server; both are ours, and it has nothing to save.
                with contextlib.suppress(OSError, ServerError), self.connect() as connection:
                    connection.call("SHUTDOWN", "NOSAVE", "NOW")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(3)
                if self.process.poll() is None:
                    self.process.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self.process.wait(3)


class Instance:
    """The real instance."""

    def __init__(self, params):
        self.unit = params["unit"]
        self.config_file, self.acl_file = params["config_file"], params["acl_file"]
        self.admin_user = params["admin_user"]
        self.passwords = [params["admin_password"]] + params["admin_previous_passwords"]
        self.start_timeout = params["start_timeout_seconds"]
        self.group = params["supplementary_group"]

    def as_redis(self, argv):
        groups = ["-g", "redis", "-G", self.group] if self.group else []
        return ["runuser", "-u", "redis", *groups, "--", *argv]

    def properties(self):
        return units.properties(self.unit, "ActiveState", "NeedDaemonReload", "UnitFileState", "InvocationID")

    def connect(self, *configs):
        """Return a connection that may do everything, or None. The texts contain the addresses of the instance."""
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

    def restart(self, config, reasons):
        """Restart (or start) until the instance has loaded its data and lets the administrator in."""
        deadline = time.monotonic() + self.start_timeout
        # A unit that failed too often in a row refuses to start until it is reset; one that never ran cannot be.
        for words in (("reset-failed", self.unit), ("daemon-reload",), ("restart", self.unit)):
            with contextlib.suppress(units.UnitError):
                units.systemctl(*words, timeout=self.start_timeout)
        while time.monotonic() < deadline:
            connection = self.connect(config)
            if connection is not None:
                with connection:
                    if "loading:0" in connection.call("INFO", "persistence"):
                        return
            elif units.active_state(self.unit) == "failed":
                break
            time.sleep(0.1)
        raise Failed("%s did not start (%s): %s" % (self.unit, ", ".join(reasons), self.log_tail(config)))

    def log_tail(self, config):
        own = ""
        # Without an absolute path it logs to the journal.
        with contextlib.suppress(OSError, ValueError):
            own = safe_files.read_tail(directive(config, "logfile") or "", 65536).decode("utf-8", "replace")
        return startup_errors("\n".join(own.splitlines()[-15:])) or startup_errors(units.journal(self.unit, 20))

    def verify(self, scratch, config):
        """The instance must now report what the scratch server reports."""
        connection = self.connect(config)
        if connection is None:
            raise Failed("the administrator cannot log in with the new password")
        with connection:
            wanted, users = inspect(connection, scratch, config)
        if wanted or users:
            what = sorted(wanted) + (["the users of the ACL file"] if users else [])
            raise Failed("the running instance does not have the new values of " + ", ".join(what))

    def fingerprint(self, connection, config, acl):
        """Return what is noted of a verified instance: a hash of its files, and of what it reports."""
        parts = [self.properties()["InvocationID"], config, acl, connection.parameters(), connection.users()]
        return {"hash": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}


def addresses(configs):
    """Return where instances with these configurations can be reached from their own host.

    One that has a socket is reached by it alone: while the instance is down, any user can listen on its port.
    """
    found = []
    for config in filter(None, configs):
        path, port = directive(config, "unixsocket"), directive(config, "port") or ""
        found += [path] if path else [("127.0.0.1", int(port))] if port.isdecimal() and int(port) else []
    return list(dict.fromkeys(found))


def serves_another(live, config):
    """Return whether the running instance presents another certificate than the file holds."""
    port, path = int(live.get("tls-port") or 0), directive(config, "tls-cert-file")
    if not port or not path:
        return False
    address = next((word for word in live.get("bind", "").split() if not word.startswith("-")), "127.0.0.1")
    address = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return probe.serves_another(path, address, port) is True


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
    raise Failed("Redis could not write its append-only file; nothing was restarted")


def set_parameters(connection, wanted, timeout):
    """Set what can be set while running; return the rest, which needs a restart."""
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


def inspect(connection, scratch, config):
    """Return the differences of instance and files: (parameters with their wanted value, whether users)."""
    live = connection.parameters()
    wanted = differences(live, scratch.parameters, config)
    if serves_another(live, config):
        wanted.update({name: scratch.parameters[name] for name in TLS_FILES if scratch.parameters.get(name)})
    return wanted, connection.users() != scratch.users


def mask_config(before, after):
    """Show the configuration in a diff without the password of replicas."""
    texts = [re.sub(r"(?m)^masterauth .*$", "masterauth (password)", text or "") for text in (before, after)]
    if texts[0] == texts[1] and before != after:
        texts[1] += "# (the password of replicas changes)\n"
    return tuple(texts)


def mask_acl(before, after):
    """Show the ACL file in a diff without hashes."""
    changes = ["# (the password of %s changes)\n" % name for name in changed_passwords(before or "", after or "")]
    return without_hashes(before or ""), without_hashes(after or "") + "".join(changes)


class Change:
    """The swap of the files: what brings them into use, and what brings the earlier ones into use again."""

    def __init__(self, instance, files, texts, scratch, connection, restart_for, may_restart):
        self.instance, self.files, self.texts, self.scratch = instance, files, texts, scratch
        self.connection, self.restart_for, self.may_restart = connection, restart_for, may_restart
        self.wanted, self.users = inspect(connection, scratch, texts[0]) if connection else ({}, False)
        self.set, self.restarted = [], False

    def needed(self):
        return bool(self.files.changes or self.files.directory_changes or self.wanted or self.users or self.restart_for)

    def load(self):
        config = self.texts[0]
        if self.connection is not None:
            rest = set_parameters(self.connection, self.wanted, self.instance.start_timeout)
            self.set = sorted(set(self.wanted) - set(rest))
            if self.users and "aclfile" not in rest:
                load_users(self.connection, self.scratch.user_lines)
            self.restart_for += [name for name in rest if name not in self.restart_for]
        if not self.restart_for:
            # A connection of its own: loading users may have ended the other one.
            self.instance.verify(self.scratch, config)
        elif self.may_restart:
            self.restarted = True
            if self.connection is None:
                self.keep_snapshot(config)
            self.instance.restart(config, self.restart_for)
            self.instance.verify(self.scratch, config)

    def restore(self):
        instance = self.instance
        before = tuple(self.files.before(path) for path in (instance.config_file, instance.acl_file))
        if self.restarted or not all(before):
            return instance.restart(before[0], ["with the earlier files"])
        connection = instance.connect(before[0], self.texts[0])
        if connection is None:
            raise Failed("no known password lets the administrator in")
        # The old users let the administrator in with an old password.
        with connection, Scratch(instance, *before, name="-before", passwords=instance.passwords) as scratch:
            wanted, users = inspect(connection, scratch, before[0])
            set_parameters(connection, wanted, instance.start_timeout)
            if users:
                connection.call("ACL", "LOAD")
            instance.verify(scratch, before[0])

    def keep_snapshot(self, config):
        """Load the snapshot before a first start with an append-only file, which alone would begin empty."""
        instance, directory = self.instance, directive(config, "dir") or "/var/lib/redis"
        if directive(config, "appendonly") != "yes" or os.path.exists(os.path.join(directory, "appendonlydir")):
            return
        # A running instance writes its snapshot when it stops.
        with contextlib.suppress(units.UnitError):
            units.systemctl("stop", instance.unit, timeout=instance.start_timeout)
        if not os.path.exists(os.path.join(directory, directive(config, "dbfilename") or "dump.rdb")):
            return
        state = self.files.wanted[instance.config_file]
        snapshot = ("file", state[1] + b"\nappendonly no\n", *state[2:])
        configuration.place_all({instance.config_file: snapshot})
        try:
            instance.restart(config, ["with its snapshot"])
            with instance.connect(config) as connection:
                connection.call("CONFIG", "SET", "appendonly", "yes")
                wait_for_append_only_file(connection, instance.start_timeout)
        finally:
            configuration.place_all({instance.config_file: state})


def run(module):
    params, instance = module.params, Instance(module.params)
    before = configuration.read_text(instance.acl_file)
    config = params["config"] + (
        "masterauth %s\n" % json.dumps(params["primary_password"]) if params["primary_password"] else ""
    )
    texts = (config, with_kept_passwords(before, params["acl"], params["previous_passwords"]))
    files = configuration.FileSet(module.check_mode)
    # Root owns them: the server may read its users and settings, not write or exchange them.
    common = {"owner": "root", "group": "redis", "mode": "0640"}
    files.add({"path": instance.config_file, "content": texts[0], **common}, mask_config)
    files.add({"path": instance.acl_file, "content": texts[1], **common}, mask_acl)
    files.add_directory({**common, "path": os.path.dirname(instance.config_file), "mode": "0750"})
    files.compare()
    result = {
        "changed": bool(files.changes or files.directory_changes), "present": os.path.isfile(SERVER), "set": [],
        "acl_loaded": False, "restarted": False, "restart_for": [], "enabled": False, "diff": files.diff(),
    }  # fmt: skip
    if not result["present"]:
        if module.check_mode:
            return dict(result, changed=True)
        raise Rejected("there is no %s; install redis-server first" % SERVER)
    absent = [path for path in map(directives(texts[0]).get, TLS_FILES) if path and not os.path.exists(path)]
    if absent and module.check_mode:
        module.warn("%s is not there yet; what makes it must come first" % ", ".join(absent))
        return result
    unit = instance.properties()
    active = unit["ActiveState"] in ("active", "reloading")
    result["enabled"] = not units.is_enabled(unit)
    connection = instance.connect(texts[0], files.before(instance.config_file)) if active else None
    restart_for = (
        [] if connection else ["no known password lets the administrator in" if active else "it was not running"]
    )
    # A reload of systemd that is still due is left by an interrupted run.
    if active and (params["unit_changed"] or unit["NeedDaemonReload"] == "yes"):
        restart_for.append("its unit changed")
    with connection or contextlib.nullcontext():
        if not files.changes and not restart_for and is_up_to_date(instance, connection, texts):
            result["changed"] = bool(files.directory_changes or result["enabled"])
        else:
            with Scratch(instance, *texts) as scratch:
                change = Change(
                    instance, files, texts, scratch, connection, restart_for, params["restart"] or not active
                )
                result.update(changed=change.needed() or result["enabled"], acl_loaded=change.users)
                if module.check_mode:
                    return dict(result, set=sorted(change.wanted), restart_for=restart_for)
                apply(module, instance, files, change, result)
    if not module.check_mode:
        files.make_directories()
        if result["enabled"]:
            units.systemctl("enable", instance.unit)
    return result


def is_up_to_date(instance, connection, texts):
    """Return whether the instance is as the last verified run left it, so that no scratch server is needed."""
    note = configuration.read_note(instance.unit)
    return bool(
        note
        and note == instance.fingerprint(connection, *texts)
        and not serves_another(connection.parameters(), texts[0])
    )


def apply(module, instance, files, change, result):
    configuration.write_note(instance.unit, None)
    files.make_directories()
    files.apply(change.load, change.restore)
    result.update(set=change.set, restarted=change.restarted, restart_for=change.restart_for)
    if change.restart_for and not change.restarted:
        module.warn("%s must be restarted for: %s" % (instance.unit, ", ".join(change.restart_for)))
        result["changed"] = bool(files.changes or change.set or change.users or result["enabled"])
        return
    with instance.connect(change.texts[0]) as connection:
        configuration.write_note(instance.unit, instance.fingerprint(connection, *change.texts))


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
            "primary_password": {"type": "str", "default": "", "no_log": True},
            "previous_passwords": {"type": "dict", "no_log": True, "default": {}},
            "supplementary_group": {"type": "str", "default": ""},
            "unit_changed": {"type": "bool", "default": False},
            "restart": {"type": "bool", "default": True},
            "start_timeout_seconds": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    configuration.run(module, module.params["unit"], lambda: run(module))


if __name__ == "__main__":
    main()
