"""Read-only probes of one thing each, every one with a hard limit on its total time.

A probe returns metrics, or raises ProbeError, whose `state` is the state of the probed thing:
    down       nobody responds
    unhealthy  it responds, but not as it must
    error      it could not be evaluated (a tool or a file is missing)
and whose `reason` is a short code from which the health checks choose their hint. Messages hold no secrets.
Nothing here needs more than the standard library.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import errno
import fnmatch
import hashlib
import http.client
import io
import ipaddress
import json
import os
import re
import signal
import socket
import ssl
import stat
import struct
import subprocess
import threading
import time
import urllib.parse
from typing import NamedTuple, Optional

from . import safe_files
from .sql import SAFE_SEARCH_PATH

BODY_LIMIT_BYTES = 64 * 1024
# Of what is read of one connection, headers included.
RESPONSE_LIMIT_BYTES = 16 << 20
_USER_AGENT = "shiftmaster-health"


class ProbeError(Exception):
    """The thing is unhealthy, or could not be evaluated."""

    def __init__(self, state: str, reason: str, message: str):
        super().__init__(message)
        self.state = state
        self.reason = reason


class HttpResult(NamedTuple):
    """status is None when no response came; then error shows why, and reason is refused, timeout, missing, permission,
    name, network, tls, certificate or protocol."""

    status: Optional[int]
    seconds: float
    body: str
    error: Optional[str]
    reason: str = ""
    headers: dict = {}  # noqa: RUF012 - never written to; names are in lower case.


# --- time ------------------------------------------------------------------------------------------------------------


class Deadline:
    """A point in time after which nothing is waited for any more."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left; raises ProbeError(down, timeout) when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise ProbeError("down", "timeout", "no response within %g s" % self.seconds)
        return left


def in_thread(function, seconds: float, what: str):
    """Return function(); gives up on it, without ending its thread, after some seconds (for calls with no limit)."""
    response = {}

    def call():
        try:
            response["value"] = function()
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread.
            response["error"] = error

    thread = threading.Thread(target=call, daemon=True, name=what)
    thread.start()
    thread.join(seconds)
    if "error" in response:
        raise response["error"]
    if "value" not in response:
        raise ProbeError("down", "timeout", "%s did not respond within %g s" % (what, seconds))
    return response["value"]


def together(calls, seconds: float) -> None:
    """Make calls, (function, arguments...), at the same time; returns after some seconds, whatever still runs."""
    threads = [threading.Thread(target=call[0], args=call[1:], daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


# --- commands --------------------------------------------------------------------------------------------------------

_children = set()
_children_lock = threading.Lock()


def run(argv, timeout: float, env: Optional[dict] = None, **process) -> tuple:
    """Run a command in a process group of its own; return (rc, stdout, stderr).

    process: user, group and extra_groups of subprocess.Popen, as service_user.process_of() returns them.

    Raises ProbeError: error/missing when there is no such command, down/timeout when it had to be killed.
    """
    environment = dict(os.environ, LC_ALL="C.UTF-8", **(env or {}))
    environment["PATH"] = environment.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin"
    try:
        child = subprocess.Popen(
            list(argv),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **process,
        )
    except FileNotFoundError:
        raise ProbeError("error", "missing", "the command %s is not installed" % argv[0])
    except OSError as error:
        raise ProbeError("error", "missing", "%s could not be started: %s" % (argv[0], error.strerror))
    with _children_lock:
        _children.add(child)
    try:
        stdout, stderr = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill(child)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=0.5)  # A process in uninterruptible sleep is left to the kernel.
        raise ProbeError("down", "timeout", "%s did not end within %g s" % (argv[0], timeout))
    finally:
        with _children_lock:
            _children.discard(child)
    return child.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace")


def _kill(child) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def kill_children() -> None:
    """Kill every command that a given-up probe left running."""
    with _children_lock:
        left, _ = list(_children), _children.clear()
    for child in left:
        _kill(child)


# --- connections -----------------------------------------------------------------------------------------------------


def _resolve(host: str, port: int, deadline: Deadline) -> list:
    """Return address tuples of a name; the resolver knows no time limit, so it gets a thread of its own."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)

    def look_up():
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)

    try:
        return in_thread(look_up, deadline.left(), "the name service")
    except socket.gaierror as error:
        raise ProbeError("down", "name", "the name %s has no address: %s" % (host, error.strerror))


def _connect_unix(path: str, deadline: Deadline) -> socket.socket:
    # A service owns the directory of its socket and could put a link there: root would speak to another service.
    with safe_files.target(path) as (directory, name):
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOTSOCK, "it is not a socket", path)
        while True:
            connection.settimeout(deadline.left())
            try:
                connection.connect("/proc/self/fd/%d" % descriptor)
                return connection
            except BlockingIOError:  # Its accept queue is full: a unix socket never waits by itself.
                time.sleep(min(0.02, deadline.left()))
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(descriptor)


def _connect_tcp(host: str, port: int, deadline: Deadline) -> socket.socket:
    addresses = _resolve(host, port, deadline)
    failure = None
    for position, (family, kind, protocol, _name, address) in enumerate(addresses):
        connection = socket.socket(family, kind, protocol)
        try:
            # A dead first address must not use up the time of the second.
            connection.settimeout(deadline.left() / (len(addresses) - position))
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            failure = failure or error
    raise failure or OSError("no address")


@contextlib.contextmanager
def connected(host: Optional[str], port: Optional[int], path: Optional[str], deadline: Deadline, tls=None, name=None):
    """Yield a socket to host:port, or to the unix socket at path; errors become ProbeError. name: for TLS."""
    where = "unix:%s" % path if path else "%s:%s" % (host, port)
    connection = None
    try:
        try:
            connection = _connect_unix(path, deadline) if path else _connect_tcp(host, port, deadline)
            if tls is not None:
                connection.settimeout(deadline.left())
                connection = tls.wrap_socket(connection, server_hostname=name or host)
            yield connection
        except ssl.SSLCertVerificationError as error:
            why = "%s: the certificate is not accepted: %s" % (where, error.verify_message)
            raise ProbeError("unhealthy", "certificate", why)
        except socket.timeout:
            raise ProbeError("down", "timeout", "%s: no response within %g s" % (where, deadline.seconds))
        except ssl.SSLError as error:
            raise ProbeError("unhealthy", "tls", "%s: TLS failed: %s" % (where, error.reason or error))
        except FileNotFoundError:
            raise ProbeError("down", "missing", "%s: there is no such socket" % where)
        except ConnectionRefusedError:
            raise ProbeError("down", "refused", "%s: connection refused" % where)
        except PermissionError:
            raise ProbeError("error", "permission", "%s: permission denied" % where)
        except OSError as error:
            raise ProbeError("down", "network", "%s: %s" % (where, error.strerror or error))
        except ProbeError as error:
            if error.reason == "timeout" and where not in str(error):
                raise ProbeError(error.state, error.reason, "%s: %s" % (where, error))
            raise
    finally:
        if connection is not None:
            connection.close()


class _Reader(io.RawIOBase):
    """Reads from a socket; every read waits for the rest of the total time, so that a slow sender cannot extend it.

    Nor does it fill the memory: http.client reads a chunk of -1 bytes to the end of the connection.
    """

    def __init__(self, connection, deadline: Deadline):
        super().__init__()
        self._connection, self._deadline, self._left = connection, deadline, RESPONSE_LIMIT_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self._connection.settimeout(self._deadline.left())
        count = self._connection.recv_into(buffer)
        self._left -= count
        if self._left < 0:
            why = "the response is larger than %d MiB" % (RESPONSE_LIMIT_BYTES >> 20)
            raise ProbeError("unhealthy", "protocol", why)
        return count


class _Wire:
    """What http.client and the Redis probe need of a socket."""

    def __init__(self, connection, deadline: Deadline):
        self._connection, self._deadline = connection, deadline

    def makefile(self, _mode="rb", *_args, **_kwargs):
        return io.BufferedReader(_Reader(self._connection, self._deadline))

    def sendall(self, data) -> None:
        self._connection.settimeout(self._deadline.left())
        self._connection.sendall(data)

    def close(self) -> None:
        """The owner of the connection closes it."""


def tls_context(verify: bool = True, ca_file: Optional[str] = None) -> ssl.SSLContext:
    """Return a client's TLS context; raises ProbeError when the CA file cannot be read."""
    if not verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ProbeError("error", "missing", "the CA file %s cannot be read: %s" % (ca_file, error))
    # Python 3.13 refuses authorities without a key usage, which the services themselves and older Pythons accept.
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    return context


# --- HTTP ------------------------------------------------------------------------------------------------------------


def split_target(target: str) -> tuple:
    """Return (host, port, socket path, TLS?, URL path) of `unix:/path` or `http(s)://host[:port][/path]`."""
    if target.startswith("unix:"):
        path = target[len("unix:") :]
        if not path.startswith("/"):
            raise ValueError("%r names no absolute path of a socket" % target)
        return None, None, path, False, ""
    parts = urllib.parse.urlsplit(target)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("%r is neither unix:/path nor http(s)://host:port" % target)
    tls = parts.scheme == "https"
    path = parts.path + ("?" + parts.query if parts.query else "")
    return parts.hostname, parts.port or (443 if tls else 80), None, tls, path


def http_get(
    target: str,
    path: str = "/",
    host: Optional[str] = None,
    timeout: float = 10.0,
    headers: Optional[dict] = None,
    verify: bool = True,
    ca_file: Optional[str] = None,
    limit: int = BODY_LIMIT_BYTES,
) -> HttpResult:
    """GET path from `unix:/path/of/socket` or `http(s)://host:port` within timeout seconds in total.

    host is the Host header (and the server name of TLS). Redirects are not followed; at most limit bytes of the body
    are kept. Raises nothing but ValueError for a target that cannot be read: what went wrong is in the result.
    """
    server, port, unix, use_tls, own_path = split_target(target)
    path = own_path if own_path and path == "/" else path
    started = time.monotonic()
    deadline = Deadline(timeout)
    sent = {"Host": host or server or "localhost", "User-Agent": _USER_AGENT, "Connection": "close", "Accept": "*/*"}
    if not host and server and port not in (80, 443):
        sent["Host"] = "%s:%d" % ("[%s]" % server if ":" in server else server, port)
    sent.update(headers or {})
    try:
        tls = tls_context(verify, ca_file) if use_tls else None
        name = host.rsplit(":", 1)[0] if host and not host.endswith("]") else host
        with connected(server, port, unix, deadline, tls, name) as connection:
            exchange = http.client.HTTPConnection(server or "localhost")
            exchange.sock = _Wire(connection, deadline)
            try:
                exchange.request("GET", path, headers=sent)
                response = exchange.getresponse()
                body = response.read(limit)
            # A redirect may lead to a path that is none.
            except (http.client.HTTPException, UnicodeEncodeError) as error:
                reason = str(error) or type(error).__name__
                raise ProbeError("unhealthy", "protocol", "the response is not HTTP: %s" % reason[:100])
            found = {key.lower(): value for key, value in response.getheaders()}
            text = body.decode("utf-8", "replace")
            return HttpResult(response.status, time.monotonic() - started, text, None, headers=found)
    except ProbeError as error:
        return HttpResult(None, time.monotonic() - started, "", str(error), error.reason)


# --- TCP -------------------------------------------------------------------------------------------------------------


def tcp_connect(host: Optional[str], port: Optional[int], path: Optional[str] = None, timeout: float = 5.0) -> dict:
    """Open and close a connection."""
    started = time.monotonic()
    with connected(host, port, path, Deadline(timeout)):
        return {"latency_ms": _since(started)}


def _since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)


# --- Redis -----------------------------------------------------------------------------------------------------------


class RedisTarget(NamedTuple):
    host: Optional[str] = "localhost"
    port: Optional[int] = 6379
    path: Optional[str] = None
    database: int = 0
    username: Optional[str] = None
    password: Optional[str] = None
    tls: bool = False
    verify: bool = True
    ca_file: Optional[str] = None


def parse_redis_url(url: str) -> RedisTarget:
    """Return the parts of redis://, rediss:// or unix:// (also redis+socket://), as redis-py reads it.

    Raises ValueError without repeating the URL, which holds a password.
    """
    parts = urllib.parse.urlsplit(url)
    query = urllib.parse.parse_qs(parts.query)
    user = urllib.parse.unquote(parts.username) if parts.username else None
    password = urllib.parse.unquote(parts.password) if parts.password else None
    if parts.scheme in ("unix", "redis+socket", "socket"):
        database = query.get("db", query.get("virtual_host", ["0"]))[0]
        return RedisTarget(None, None, urllib.parse.unquote(parts.path), int(database), user, password)
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError("a Redis address starts with redis://, rediss:// or unix://, not %r" % (parts.scheme,))
    database = parts.path.strip("/") or query.get("db", ["0"])[0]
    if not database.isdigit():
        raise ValueError("the database of the Redis address is not a number")
    try:
        port = parts.port or 6379
    except ValueError:
        raise ValueError("the port of the Redis address is not a number")
    verify = query.get("ssl_cert_reqs", ["required"])[0].lower() not in ("none", "cert_none")
    tls = (parts.scheme == "rediss", verify, query.get("ssl_ca_certs", [None])[0])
    return RedisTarget(parts.hostname or "localhost", port, None, int(database), user, password, *tls)


class RedisError(Exception):
    """An error response of Redis; str() is its text."""


def redis_command(wire, stream, *words: str):
    """Return the reply to a command as text, None or a list of such; raises RedisError for an error reply."""
    encoded = [word.encode() for word in words]
    wire.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
    return _redis_reply(stream)


def _redis_reply(stream):
    line = stream.readline(BODY_LIMIT_BYTES)
    if not line.endswith(b"\r\n"):
        raise ProbeError("unhealthy", "protocol", "the connection was closed without a Redis response")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise RedisError(rest.decode("utf-8", "replace"))
    if kind in (b"$", b"*") and rest.lstrip(b"-").isdigit():
        length = int(rest)
        if length < 0:
            return None
        if kind == b"*":
            return [_redis_reply(stream) for _ in range(length)]
        return stream.read(min(length, BODY_LIMIT_BYTES) + 2)[:-2].decode("utf-8", "replace")
    if kind in (b"+", b":"):
        return rest.decode("utf-8", "replace")
    raise ProbeError("unhealthy", "protocol", "the response is not Redis")


_REDIS_REASONS = (
    ("NOAUTH", "noauth"),
    ("WRONGPASS", "auth"),
    ("ERR AUTH", "auth"),
    ("ERR invalid password", "auth"),
    ("LOADING", "loading"),
    ("MISCONF", "disk"),
    ("NOPERM", "permission"),
    ("MASTERDOWN", "replication"),
)


def redis_ping(target: RedisTarget, timeout: float = 5.0) -> dict:
    """Log in, PING, and take the metrics of INFO where the user may.

    Returns latency_ms (the PING), connect_ms, and of INFO version, role, used_memory_percent, persistence_error; of a
    user with a password also write_error: why a write of this user is refused or waits, "" where it is not.
    """
    started = time.monotonic()
    deadline = Deadline(timeout)
    tls = tls_context(target.verify, target.ca_file) if target.tls else None
    with connected(target.host, target.port, target.path, deadline, tls) as connection:
        wire = _Wire(connection, deadline)
        stream = wire.makefile()
        try:
            if target.password is not None:
                login = [target.username, target.password] if target.username else [target.password]
                redis_command(wire, stream, "AUTH", *login)
            if target.database:
                redis_command(wire, stream, "SELECT", str(target.database))
            metrics = {"connect_ms": _since(started)}
            sent_at = time.monotonic()
            if redis_command(wire, stream, "PING") != "PONG":
                raise ProbeError("unhealthy", "protocol", "the reply to PING is not PONG")
            metrics["latency_ms"] = _since(sent_at)
            with contextlib.suppress(RedisError):
                metrics.update(redis_metrics(redis_command(wire, stream, "INFO") or ""))
            if target.password is not None:
                # Read where the last response ended: it waits for less long than all others together.
                wire = _Wire(connection, Deadline(min(_WRITE_SECONDS, deadline.left())))
                metrics["write_error"] = _redis_write_error(wire, wire.makefile())
            return metrics
        except RedisError as refusal:
            text = str(refusal)
            reason = next((code for start, code in _REDIS_REASONS if text.startswith(start)), "refusal")
            raise ProbeError("unhealthy", reason, "Redis responds: %s" % _without(text, target.password)[:200])


_WRITE_SECONDS = 2.0


def _redis_write_error(wire, stream) -> str:
    """Return why Redis refuses a write. It changes nothing: LPUSHX adds to a list that is there, and there is none."""
    try:
        redis_command(wire, stream, "LPUSHX", "shiftmaster-no-list", "0")
    except RedisError as refusal:
        # A login of the site's own may be limited to other keys.
        return "" if re.match("(?i)NOPERM .*access one of the keys", str(refusal)) else str(refusal)[:200]
    except (socket.timeout, ProbeError) as error:
        if isinstance(error, ProbeError) and error.reason != "timeout":
            raise
        return "no response to a write, while reads get one"
    return ""


def redis_metrics(info: str) -> dict:
    """Return what the health check wants of INFO's text."""
    values = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    metrics = {}
    if "redis_version" in values:
        metrics["version"] = values["redis_version"]
    if "role" in values:
        metrics["role"] = values["role"]
    used, limit = int(values.get("used_memory", 0) or 0), int(values.get("maxmemory", 0) or 0)
    if limit:
        metrics["used_memory_percent"] = round(100.0 * used / limit, 1)
        metrics["evicts"] = values.get("maxmemory_policy", "noeviction") != "noeviction"
    saves = ("rdb_last_bgsave_status", "aof_last_bgrewrite_status", "aof_last_write_status")
    broken = [name for name in saves if values.get(name, "ok") != "ok"]
    if broken:
        metrics["persistence_error"] = ", ".join(broken)
    if values.get("role") == "slave" and values.get("master_link_status", "up") != "up":
        metrics["replication_error"] = "master_link_status:" + values["master_link_status"]
    return metrics


def _without(text: str, *secrets: Optional[str]) -> str:
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


class PostgresTarget(NamedTuple):
    host: str = "localhost"  # A directory means the unix socket in it; several, with commas, are tried in order.
    port: str = "5432"
    database: str = "shiftmaster"
    user: str = "shiftmaster"
    password: Optional[str] = None
    sslmode: Optional[str] = None
    sslrootcert: Optional[str] = None
    run_as: Optional[str] = None  # A system user, for peer authentication.


# Everyone may read these; pg_stat_activity hides other users' rows, so a login counts its own sessions that wait.
POSTGRES_QUERY = (
    "SELECT current_setting('server_version'), pg_is_in_recovery(), "
    "(SELECT coalesce(sum(numbackends), 0) FROM pg_stat_database), "
    "current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int, "
    "(SELECT count(*) FROM pg_catalog.pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND now() - query_start > interval '5 s')"
)
_POSTGRES_REASONS = {
    "auth": "password authentication failed|no password supplied|SCRAM|Peer authentication failed",
    "hba": "no pg_hba.conf entry",
    "connections": "too many clients|remaining connection slots|too many connections",
    "starting": "is starting up|not yet accepting connections|is shutting down|in recovery mode",
    "absent": "does not exist",
    "tls": "SSL|certificate",
    "timeout": "statement timeout|timeout expired",
    "name": "could not translate host name",
    "protocol": "server closed the connection",
    "disk": "No space left",
}


def postgres_ping(target: PostgresTarget, timeout: float = 5.0) -> dict:
    """Log in and run a small query by psql.

    Returns latency_ms, version, recovery (a standby), connections, connections_percent, waiting (for a lock, 5 s).
    """
    started = time.monotonic()
    metrics = postgres_metrics(_postgres_row(target, timeout))
    metrics["latency_ms"] = _since(started)
    return metrics


def postgres_metrics(row) -> dict:
    """Return the metrics of a row of POSTGRES_QUERY, whose values are text."""
    version, recovery, connections, limit, waiting = row
    connections, limit = int(connections), int(limit)
    return {
        "version": version.split(" ")[0],
        "recovery": recovery == "t",
        "connections": connections,
        "connections_percent": round(100.0 * connections / limit, 1) if limit > 0 else 0.0,
        "waiting": int(waiting),
    }


def _postgres_row(target: PostgresTarget, timeout: float):
    # Of several hosts the primary, as the application finds it; one that is lost must leave time for the others.
    several = "," in str(target.host)
    connect = max(1, min(2, int(timeout / 2)) if several else int(timeout))
    environment = {
        "PGHOST": target.host, "PGPORT": str(target.port), "PGDATABASE": target.database, "PGUSER": target.user,
        "PGPASSWORD": target.password, "PGSSLMODE": target.sslmode, "PGSSLROOTCERT": target.sslrootcert,
        "PGAPPNAME": _USER_AGENT, "PGCONNECT_TIMEOUT": str(connect), "PGPASSFILE": "/dev/null",
        "PGTARGETSESSIONATTRS": "read-write" if several else None,
        "PGOPTIONS": "%s -c jit=off -c statement_timeout=%d" % (SAFE_SEARCH_PATH, timeout * 1000),
    }  # fmt: skip
    argv = ["psql", "--no-psqlrc", "--no-password", "--no-align", "--tuples-only", "--field-separator=\t"]
    if target.run_as:
        argv = ["runuser", "-u", target.run_as, "--"] + argv
    env = {name: value for name, value in environment.items() if value is not None}
    try:
        code, stdout, stderr = run([*argv, "--command=" + POSTGRES_QUERY], timeout, env)
    except ProbeError as error:
        if error.reason != "timeout":
            raise
        why = "PostgreSQL at %s:%s did not respond within %g s" % (target.host, target.port, timeout)
        raise ProbeError("down", "timeout", why)
    if code != 0:
        if code == 127 or "failed to execute psql" in stderr or "psql: No such file" in stderr:
            raise ProbeError("error", "missing", "the command psql is not installed")
        raise _postgres_error(stderr, target, timeout)
    return stdout.strip("\n").split("\t")


def _postgres_error(text: str, target: PostgresTarget, timeout: float) -> ProbeError:
    """Distinguish a server that rejects from an absent one; its message may be in any language."""
    message = _without(" ".join(text.split()), target.password)
    message = re.sub(r"^psql: (error: )?", "", message)[:300]
    reason = next((code for code, words in _POSTGRES_REASONS.items() if re.search(words, text)), None)
    if reason in ("timeout", "name"):
        return ProbeError("down", reason, message)
    if reason is None or reason == "absent":
        silent = None
        for host, port in postgres_addresses(target):
            path = "%s/.s.PGSQL.%d" % (host, port) if host.startswith("/") else None
            try:
                tcp_connect(host, port, path, min(timeout, 2.0))
                break
            except ProbeError as error:
                silent = error
        else:
            # No socket of PostgreSQL's means the same as a refusal by TCP.
            return ProbeError("down", "refused" if silent.reason == "missing" else silent.reason, str(silent))
    return ProbeError("unhealthy", reason or "refusal", message)


def postgres_addresses(target: PostgresTarget) -> list:
    """Return the (host, port) pairs of libpq's comma lists."""
    hosts = str(target.host).split(",")
    ports = [int(port or 5432) for port in str(target.port).split(",")]
    return list(zip(hosts, ports if len(ports) == len(hosts) else ports[:1] * len(hosts)))


def parse_postgres_url(url: str) -> PostgresTarget:
    """Return the parts of postgres(ql)://; raises ValueError without repeating the URL, which holds a password."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("postgres", "postgresql", "pgsql", "postgis"):
        raise ValueError("a PostgreSQL address starts with postgresql://, not %r" % (parts.scheme,))
    query = urllib.parse.parse_qs(parts.query)
    try:
        port = str(parts.port or 5432)
    except ValueError:
        raise ValueError("the port of the PostgreSQL address is not a number")
    user, password, host = (
        part and urllib.parse.unquote(part) for part in (parts.username, parts.password, parts.hostname)
    )
    host, name = host or query.get("host", ["localhost"])[0], parts.path.strip("/") or "shiftmaster"
    tls = [query.get(key, [None])[0] for key in ("sslmode", "sslrootcert")]
    return PostgresTarget(host, port, name, user or "shiftmaster", password, *tls)


# --- systemd ---------------------------------------------------------------------------------------------------------

_UNIT_PROPERTIES = tuple(
    "Id LoadState ActiveState SubState Result UnitFileState NRestarts ActiveEnterTimestamp ExecMainStatus Type"
    " MainPID".split()
)


def unit_states(names, timeout: float = 10.0) -> list:
    """Return one dict of properties a unit; a pattern (with * or ?) stands for the loaded units that match."""
    deadline = Deadline(timeout)
    plain = [name for name in names if not is_pattern(name)]
    patterns = [name for name in names if is_pattern(name)]
    units = []
    if plain:
        show = ["show", "--property=" + ",".join(_UNIT_PROPERTIES), "--", *plain]
        units = parse_units(systemctl(show, deadline.left()))
    if patterns:
        # One call to systemd, whatever their number; `show` makes one for each unit.
        known = {unit["Id"] for unit in units}
        listed = ["list-units", "--all", "--plain", "--no-legend", "--full", "--", *patterns]
        rows = parse_unit_list(systemctl(listed, deadline.left()))
        units += [unit for unit in rows if unit["Id"] not in known]
    return units


def is_pattern(name: str) -> bool:
    return bool(set("*?[") & set(name))


def systemctl(arguments, seconds: float) -> str:
    """Return what systemctl prints; raises ProbeError where it fails."""
    code, stdout, stderr = run(["systemctl", "--no-pager", *arguments], seconds)
    if code != 0:
        raise ProbeError("error", "systemd", "systemctl: %s" % stderr.strip()[:200])
    return stdout


def parse_unit_list(text: str) -> list:
    """Return the rows of `systemctl list-units --plain --no-legend` as parse_units() would."""
    rows = [line.split(None, 4) for line in text.splitlines()]
    return [dict(zip(("Id", "LoadState", "ActiveState", "SubState"), row)) for row in rows if len(row) >= 4]


def parse_units(text: str) -> list:
    """Return the blocks of `systemctl show` as dicts."""
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n")]
    return [block for block in blocks if block.get("Id")]


# --- disks -----------------------------------------------------------------------------------------------------------


class Mount(NamedTuple):
    device: str  # major:minor
    path: str
    kind: str
    options: frozenset
    root: str


# Filesystems that hold no files of ours, cannot fill, or are images that nobody writes.
PSEUDO = frozenset(
    "autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fuse.gvfsd-fuse fuse.lxcfs "
    "fuse.portal fusectl hugetlbfs mqueue nsfs proc pstore ramfs rpc_pipefs securityfs selinuxfs sysfs tracefs cramfs "
    "erofs iso9660 romfs squashfs udf".split()
)
_REMOTE = frozenset(("nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "9p", "afs"))
_JOURNALLED = frozenset(("ext3", "ext4", "xfs", "btrfs", "f2fs"))
# A container engine's and systemd's own mounts: parts of another filesystem, or a page in size.
_UNINTERESTING = tuple(
    "/dev /dev/* /proc/* /sys/* /run/credentials/* /run/user/* /run/lock /run/docker/* /run/containerd/* "
    "/var/lib/docker/overlay2/* /var/lib/docker/rootfs/* /var/lib/containers/storage/overlay* /run/netns/* /snap/* "
    "/boot/efi".split()
)


def parse_mountinfo(text: str) -> list:
    """Return the mounts of /proc/self/mountinfo (proc_pid_mountinfo(5))."""
    mounts = []
    for line in text.splitlines():
        head, separator, tail = line.partition(" - ")
        fields, rest = head.split(" "), tail.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 3:
            continue
        root, path = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field) for field in fields[3:5])
        # Either the mount or the filesystem behind it may be read-only.
        options = frozenset(fields[5].split(",")) | frozenset(rest[2].split(",")) & {"ro"}
        mounts.append(Mount(fields[2], path, rest[0], options, root))
    return mounts


def real_mounts(mounts, exclude=()) -> list:
    """Return the mounts worth watching, each filesystem once at its shortest path."""
    chosen = {}
    visible = {mount.path: mount for mount in mounts}  # A later mount hides an earlier one at the same path.
    for mount in visible.values():
        if mount.kind in PSEUDO or any(fnmatch.fnmatchcase(mount.path, glob) for glob in (*_UNINTERESTING, *exclude)):
            continue
        other = chosen.get(mount.device)
        if other is None or (len(mount.path), mount.path) < (len(other.path), other.path):
            chosen[mount.device] = mount
    return sorted(chosen.values(), key=lambda mount: mount.path)


def disk_usage(proc: str = "/proc", paths=(), exclude=(), timeout: float = 5.0, fstab: str = "/etc/fstab") -> list:
    """Return for each real mount (or for each filesystem of some paths) its use of space and of inodes.

    Each entry: path, kind, space_percent, inodes_percent (None where the filesystem has no fixed number), free_bytes,
    free_inodes, and error where it could not be queried or is read-only although it should not be.
    """
    try:
        with open(os.path.join(proc, "self", "mountinfo"), encoding="utf-8", errors="surrogateescape") as stream:
            mounts = parse_mountinfo(stream.read())
    except OSError as error:
        raise ProbeError("error", "missing", "%s/self/mountinfo cannot be read: %s" % (proc, error.strerror))
    if paths:
        wanted = [Mount("", path, _kind_of(path, mounts), frozenset(), "/") for path in paths]
    else:
        wanted = [mount for mount in real_mounts(mounts, exclude) if os.path.isdir(mount.path) or mount.kind in _REMOTE]
    expected_writable = _writable_by_fstab(fstab)
    result = []
    deadline = Deadline(timeout)
    for mount in wanted:
        if "ro" in mount.options:
            if mount.kind in _JOURNALLED and mount.path in expected_writable:
                result.append({"path": mount.path, "kind": mount.kind, "error": "read-only", "reason": "readonly"})
            continue
        entry = {"path": mount.path, "kind": mount.kind}
        try:
            entry.update(usage_metrics(_statvfs(mount, deadline)))
        except ProbeError as error:
            entry.update(error=str(error), reason=error.reason)
        except FileNotFoundError:
            entry.update(error="there is no such directory", reason="missing")
        except OSError as error:
            entry.update(error=error.strerror or str(error), reason="io")
        if not entry.get("empty"):
            result.append(entry)
    return result


def _kind_of(path: str, mounts) -> str:
    above = [mount for mount in mounts if (path + "/").startswith(mount.path.rstrip("/") + "/")]
    return max(above, key=lambda mount: len(mount.path)).kind if above else ""


def _writable_by_fstab(path: str) -> set:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            rows = [line.split() for line in stream if line.strip() and not line.lstrip().startswith("#")]
    except OSError:
        return set()
    return {row[1] for row in rows if len(row) > 3 and "ro" not in row[3].split(",")}


def _statvfs(mount: Mount, deadline: Deadline):
    if mount.kind not in _REMOTE and not mount.kind.startswith("fuse."):
        return os.statvfs(mount.path)
    # A dead server would hold this process beyond any signal, so another process queries it.
    command = ["stat", "--file-system", "--format=%S %b %f %a %c %d", mount.path]
    code, stdout, stderr = run(command, min(deadline.left(), 3.0))
    if code != 0:
        raise ProbeError("error", "io", stderr.strip()[:200])
    return _Usage(*map(int, stdout.split()))


_Usage = collections.namedtuple("_Usage", "f_frsize f_blocks f_bfree f_bavail f_files f_ffree")


def usage_metrics(status) -> dict:
    """Return percentages as df(1) has them: what root keeps for itself counts as not there."""
    if not status.f_blocks:
        return {"empty": True}
    used = status.f_blocks - status.f_bfree
    usable = used + status.f_bavail
    inodes_used = status.f_files - status.f_ffree
    return {
        "space_percent": round(100.0 * used / usable, 1) if usable else 100.0,
        # btrfs has no inodes to run out of, and reports 0.
        "inodes_percent": round(100.0 * inodes_used / status.f_files, 1) if status.f_files > 0 else None,
        "free_bytes": status.f_bavail * status.f_frsize,
        "free_inodes": status.f_ffree,
    }


# --- memory ----------------------------------------------------------------------------------------------------------


def memory_usage(proc: str = "/proc") -> dict:
    """Return usage_percent by MemAvailable (the page cache is not use), total, available and swap in bytes."""
    try:
        with open(os.path.join(proc, "meminfo"), encoding="utf-8") as stream:
            rows = [line.replace(":", " ").split() for line in stream]
        values = {row[0]: int(row[1]) * 1024 for row in rows if len(row) > 1}
        total, available = values["MemTotal"], values["MemAvailable"]
    except (OSError, ValueError, KeyError) as error:
        raise ProbeError("error", "missing", "%s/meminfo cannot be read: %s" % (proc, error))
    if total <= 0:
        raise ProbeError("error", "missing", "%s/meminfo reports no memory" % proc)
    swap, swap_free = values.get("SwapTotal", 0), values.get("SwapFree", 0)
    return {
        "usage_percent": round(100.0 * (total - available) / total, 2),
        "total_bytes": total,
        "available_bytes": available,
        "swap_used_percent": round(100.0 * (swap - swap_free) / swap, 1) if swap else 0.0,
    }


# --- certificates ----------------------------------------------------------------------------------------------------


class Certificate(NamedTuple):
    not_before: datetime.datetime
    not_after: datetime.datetime
    fingerprint: str  # SHA-256 of the DER form
    names: tuple = ()  # for which it is valid, in lower case; addresses in hexadecimal


def _der(data: bytes, position: int = 0) -> tuple:
    """Return (tag, start, end) of the DER element at position (X.690)."""
    tag, length = data[position], data[position + 1]
    start = position + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(data[start : start + count], "big")
        start += count
    if start + length > len(data):
        raise ValueError("a DER element is cut off")
    return tag, start, start + length


def _der_time(data: bytes, position: int) -> tuple:
    tag, start, end = _der(data, position)
    text = data[start:end].decode("ascii")
    if tag == 0x17:  # UTCTime: two digits of the year, RFC 5280 4.1.2.5.1
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.timezone.utc), end


def parse_certificate(der: bytes) -> Certificate:
    """Return the validity of a certificate; the standard library reads it only after verifying, and an expired one
    does not verify. Raises ValueError when this is no certificate."""
    try:
        _tag, start, _end = _der(der)  # Certificate
        _tag, position, _end = _der(der, start)  # tbsCertificate
        tag, _start, end = _der(der, position)
        if tag == 0xA0:  # version
            position = end
        for _skipped in ("serialNumber", "signature", "issuer"):
            position = _der(der, position)[2]
        position = _der(der, position)[1]  # validity
        not_before, position = _der_time(der, position)
        not_after, _position = _der_time(der, position)
    except (IndexError, ValueError) as error:
        raise ValueError("not a certificate: %s" % error)
    return Certificate(not_before, not_after, hashlib.sha256(der).hexdigest(), _names(der))


def _names(der: bytes) -> tuple:
    """Return the names of the extension subjectAltName (2.5.29.17), by which alone clients evaluate."""
    found, position = [], der.find(b"\x06\x03\x55\x1d\x11")
    try:
        if position >= 0:
            position += 5
            if der[position] == 0x01:  # critical
                position = _der(der, position)[2]
            _tag, position, end = _der(der, _der(der, position)[1])
            while position < end:
                tag, start, position = _der(der, position)
                if tag in (0x82, 0x87):  # dNSName, iPAddress
                    value = der[start:position]
                    found.append(value.decode("ascii", "replace").lower() if tag == 0x82 else value.hex())
    except (IndexError, ValueError):
        pass
    return tuple(found)


def certified(certificate: Certificate, name: str) -> bool:
    """Tell whether a certificate is valid for a name; one without names is evaluated by clients alone."""
    try:
        wanted = {ipaddress.ip_address(name).packed.hex()}
    except ValueError:
        wanted = {name.lower(), "*." + name.lower().partition(".")[2]}
    return not certificate.names or bool(wanted & set(certificate.names))


# SSLRequest of PostgreSQL's protocol.
_POSTGRES_TLS = struct.pack("!II", 8, 80877103)
_PEM = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def pem_certificates(path: str) -> list:
    """Return the certificates of a PEM file as they are encoded (DER), the host's own first."""
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            found = [ssl.PEM_cert_to_DER_cert(text) for text in _PEM.findall(stream.read())]
    except FileNotFoundError:
        raise ProbeError("down", "missing", "there is no file %s" % path)
    except OSError as error:
        raise ProbeError("error", "permission", "%s cannot be read: %s" % (path, error.strerror))
    except ValueError as error:
        raise ProbeError("unhealthy", "invalid", "%s holds %s" % (path, error))
    if not found:
        raise ProbeError("unhealthy", "invalid", "%s holds no certificate" % path)
    return found


def certificate_file(path: str) -> list:
    """Return the certificates of a PEM file, the host's own first."""
    try:
        return [parse_certificate(der) for der in pem_certificates(path)]
    except ValueError as error:
        raise ProbeError("unhealthy", "invalid", "%s holds %s" % (path, error))


def certificate_der(
    host: str, port: int, server_name=None, timeout=5.0, verify=False, ca_file=None, postgres=False
) -> bytes:
    """Return the encoded certificate that a server shows for a name; of PostgreSQL after its request for TLS."""
    deadline, context = Deadline(timeout), tls_context(verify, ca_file)
    with connected(host, port, None, deadline, None if postgres else context, server_name) as connection:
        if postgres:
            connection.settimeout(deadline.left())
            connection.sendall(_POSTGRES_TLS)
            if connection.recv(1) != b"S":
                raise ProbeError("unhealthy", "tls", "%s:%s does not speak TLS" % (host, port))
            connection = context.wrap_socket(connection, server_hostname=server_name or host)
        with connection:
            return connection.getpeercert(binary_form=True) or b""


def certificate_served(host: str, port: int, *options, **more) -> Certificate:
    """Return the certificate that a server shows, by certificate_der(); verify checks its chain and names as well."""
    try:
        return parse_certificate(certificate_der(host, port, *options, **more))
    except ValueError as error:
        raise ProbeError("unhealthy", "invalid", "%s:%s shows %s" % (host, port, error))


def serves_another(path: str, host: str, port: int, server_name: Optional[str] = None, **more) -> Optional[bool]:
    """Return whether a server shows another certificate than the file's first; None where it shows none."""
    try:
        served = certificate_der(host, port, server_name, **more)
    except (ProbeError, ValueError):
        return None
    try:
        return served != pem_certificates(path)[0]
    except ProbeError:
        return True


def own_address() -> str:
    """Return the address from which this host reaches others; localhost where there is no way out."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
            # Nothing is sent.
            connection.connect(("192.0.2.1", 9))
            return connection.getsockname()[0]
    except OSError:
        return "localhost"


# --- clock -----------------------------------------------------------------------------------------------------------


def in_container(root: str = "/") -> bool:
    """Return whether the clock is somebody else's."""
    marks = ("run/systemd/container", ".dockerenv", "run/.containerenv")
    return any(os.path.exists(os.path.join(root, mark)) for mark in marks)


def clock_state(timeout: float = 5.0, container: Optional[bool] = None) -> dict:
    """Return synchronised (True, False, None: not known), offset_seconds (None: not known) and source."""
    if container is None:
        container = in_container()
    state = {"synchronised": None, "offset_seconds": None, "source": None, "container": container}
    with contextlib.suppress(ProbeError):
        code, stdout, _stderr = run(["chronyc", "-n", "-c", "tracking"], timeout / 2)
        if code == 0:
            state.update(parse_chrony(stdout), source="chrony")
    if state["synchronised"] is None:
        with contextlib.suppress(ProbeError):
            show = ["timedatectl", "show", "--property=NTPSynchronized", "--property=NTP"]
            code, stdout, _stderr = run(show, timeout / 2)
            values = dict(line.split("=", 1) for line in stdout.splitlines() if "=" in line)
            if code == 0 and "NTPSynchronized" in values:
                state.update(synchronised=values["NTPSynchronized"] == "yes", source="timedatectl")
    if container and not state["synchronised"]:
        state["synchronised"] = None
    return state


def parse_chrony(text: str) -> dict:
    """Return synchronised and offset_seconds of `chronyc -c tracking`."""
    fields = text.strip().split(",")
    if len(fields) < 14:
        return {}
    return {"synchronised": fields[13] != "Not synchronised", "offset_seconds": abs(float(fields[4]))}


# --- Celery ----------------------------------------------------------------------------------------------------------


def parse_celery_queues(text: str) -> dict:
    """Return {worker: [queue]} of `celery inspect active_queues --json`."""
    for line in reversed(text.splitlines()):
        line = line.strip()
        if line.startswith("{"):
            try:
                responses = json.loads(line)
                rows = {name: one for name, one in responses.items() if isinstance(one, list)}
                return {name: [str(queue["name"]) for queue in one] for name, one in sorted(rows.items())}
            except (ValueError, TypeError, KeyError):
                continue
    return {}
