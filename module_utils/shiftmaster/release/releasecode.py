"""Run something with a release's own interpreter, environment and user.

The code of a release, of its dependencies and of their build backends is hostile. Root starts it in a transient unit of
systemd, by user and purpose: shiftmaster-code-*, shiftmaster-build-*, shiftmaster-hook-*. The units' sandbox is in
drop-ins of these names (role shiftmaster). Whatever a unit's main process leaves running ends with it; of its output
only the beginning and the end are kept; a driver's response has the expected form and size.

Secrets reach a process through its environment only, which is a file in memory: neither its arguments nor the unit's
properties, which everybody may read, hold one.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import itertools
import json
import os
import pwd
import re
import select
import signal
import subprocess
import threading
import time
from typing import NamedTuple, Optional

from ..host import envfile, units
from ..host.printable import printable

RESPONSE = "@@shiftmaster-response@@ "
RESPONSE_BYTES = 8 * 1024 * 1024  # The texts of all migrations are the largest response.
KEPT_BYTES = 1024 * 1024  # Of each stream, half of it from the beginning and half from the end.
_LINE = 1000  # Of a line in a message: people and the audit log get it.
# How much longer than its caller waits a unit may run: the caller may have been killed.
_GRACE_SECONDS = 30
_NICE = ("Nice=19", "CPUSchedulingPolicy=idle")
# The driver's source is the first line, as JSON.
_BOOTSTRAP = (
    "import json, sys;"
    " exec(compile(json.loads(sys.stdin.readline()), 'shiftmaster-driver', 'exec'), {'__name__': '__main__'})"
)
# The command itself is in the environment.
_SHELL = ("/bin/sh", "-c", 'command=$SHIFTMASTER_COMMAND; unset SHIFTMASTER_COMMAND; eval "$command"')
_MANAGE = """
import json, sys
from django.core.management import ManagementUtility
for words in json.loads(sys.argv[1]):
    ManagementUtility(["manage.py", *words]).execute()
"""
# The main process of a unit prints the status of its command. With PrivatePIDs=, systemd 257 reports 0 for a
# process that ends within some milliseconds: the status of the one that has made the namespace.
_STATUS = "@@shiftmaster-status@@ "
_REPORTING = ("/bin/sh", "-c", '"$@"; code=$?; printf "\\n%s%d" "$0" $code >&2; exit $code', _STATUS)
# The same for a command on a terminal: it does not end within milliseconds.
_LASTING = ("/bin/sh", "-c", '"$@"; code=$?; sleep 0.1; exit $code', "sh")
# Before a command of manage.py. PGOPTIONS has no effect where the application's settings have options.
_READ_ONLY = """
from django.db.backends.signals import connection_created
def read_only(connection, **_more):
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
connection_created.connect(read_only, weak=False)
"""
_OF_SYSTEMD_RUN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_ENDS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
# How long a person may work in one session.
_SESSION_SECONDS = 24 * 3600
# The code of systemd-run for a unit that a signal has ended.
_SIGNALLED = 255
_SIGNALLED_HINT = (
    "a signal ended it: the kernel kills what takes more memory than shiftmaster_build_memory_max, and the version that"
    " is live can kill processes of its user (SECURITY.md, known gaps)"
)
_counter = itertools.count(1)
_KINDS = ("code", "build", "hook")


class ReleaseCodeError(Exception):
    """The release's code could not be run, ran too long, or did not respond; str() quotes its output."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class Completed(NamedTuple):
    rc: int
    stdout: str
    stderr: str


def tail(text: str, lines: int = 20) -> str:
    """Return the last lines of a child's output, for a message. What is left out of a long line is in the log."""
    found = text.strip().splitlines()[-lines:]
    return "\n".join(line if len(line) <= _LINE else line[:_LINE] + "…" for line in found)


class Output(threading.Thread):
    """Reads a stream to its end and keeps its beginning and its end."""

    def __init__(self, stream, most: int = KEPT_BYTES):
        super().__init__(daemon=True)
        self._stream, self._half = stream, most // 2
        self._head, self._tail, self._held, self._dropped = b"", collections.deque(), 0, 0
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for chunk in iter(lambda: os.read(self._stream.fileno(), 65536), b""):
                self.add(chunk)

    def add(self, chunk: bytes) -> None:
        missing = self._half - len(self._head)
        if missing > 0:
            self._head += chunk[:missing]
            chunk = chunk[missing:]
        self._tail.append(chunk)
        self._held += len(chunk)
        while self._held - len(self._tail[0]) >= self._half:
            self._held -= len(self._tail[0])
            self._dropped += len(self._tail.popleft())

    def text(self) -> str:
        gap = b"\n[%d bytes left out]\n" % self._dropped if self._dropped else b""
        return (self._head + gap + b"".join(self._tail)).decode(errors="replace")


def _in_memory(env: dict) -> int:
    """Return the descriptor of a file in memory that holds an environment."""
    descriptor = os.memfd_create("environment", os.MFD_CLOEXEC)
    os.write(descriptor, envfile.render(env).encode())
    return descriptor


def _in_unit(user, argv, descriptor, cwd, kind, seconds, nice=False, writable=(), terminal=False) -> tuple:
    """Return the name of a transient unit and the command that runs argv there; see Process.

    Raises KeyError where there is no such user.
    """
    pwd.getpwnam(user)
    name = "shiftmaster-%s-%d-%d.service" % (kind, os.getpid(), next(_counter))
    properties = [
        "User=" + user,
        # systemd's manager reads it before it starts the command.
        "EnvironmentFile=/proc/%d/fd/%d" % (os.getpid(), descriptor),
        "WorkingDirectory=" + (cwd or "/"),
        # With the main process everything else of the unit ends, at once.
        "KillSignal=SIGKILL",
        "RuntimeMaxSec=%d" % (seconds + _GRACE_SECONDS),
        *(_NICE if nice else ()),
        *("ReadWritePaths=" + path for path in writable),
    ]
    words = units.transient(name, "ShiftMaster: " + kind, properties, terminal)
    # systemd would fill in variables.
    return name, words + [word.replace("$", "$$") for word in argv]


def _ended(number: int, _frame) -> None:
    # A terminal that goes away sends several.
    for one in _ENDS:
        signal.signal(one, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _wait(child) -> int:
    """Return the code of a process, which is killed where nobody reads the output of this one any more."""
    reader = select.poll()
    # Without events, poll() reports an error or a hang-up.
    reader.register(1, 0)
    try:
        while not any(event & (select.POLLERR | select.POLLHUP) for _, event in reader.poll(0)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(0.5)
        return 128 + signal.SIGHUP
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


class Process:
    """A command at work as a user (None: as this process), with exactly this environment.

    kind: "code" for what a release runs as the application's user, "build" for what makes it, "hook" for a command of
    the site under another user's name; it selects the sandbox. writable: directories that the command may write to
    beyond those of its sandbox. seconds: when systemd ends it in any case. reports: whether result() is called.
    """

    def __init__(self, user, argv, env, cwd, kind, seconds, stdin, nice=False, writable=(), reports=False):
        self.unit, descriptor = "", None
        try:
            if user is not None and os.geteuid() == 0:
                os.stat(argv[0] if os.path.isabs(argv[0]) else "/")  # systemd would report it as any other end.
                descriptor = _in_memory(env)
                command = (*(_REPORTING if reports else ()), *argv)
                self.unit, argv = _in_unit(user, command, descriptor, cwd, kind, seconds, nice, writable)
                env, cwd = _OF_SYSTEMD_RUN, "/"
            pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            self.child = subprocess.Popen(argv, env=env, cwd=cwd, start_new_session=True, **pipes)
        except (OSError, ValueError) as error:
            if descriptor is not None:
                os.close(descriptor)
            raise ReleaseCodeError("%s could not be started: %s" % (argv[0], error)) from error
        self._environment = descriptor
        self.stderr = Output(self.child.stderr)

    def result(self) -> tuple:
        """Return the status of the command, which has ended, and what it has printed to standard error.

        The status is never 0 where the command has not reported one.
        """
        code, text = self.child.returncode, self.stderr.text()
        if not self.unit:
            return code, text
        reported = list(re.finditer(r"\n%s(\d{1,3})" % _STATUS, text))
        code, signalled = code or _SIGNALLED, code in (0, _SIGNALLED)
        if reported:
            code = int(reported[-1][1])
            text = text[: reported[-1].start()] + text[reported[-1].end() :]
            signalled = 128 < code < 160  # The shell adds 128 to the number of the signal.
        return code, text + ("\n%s\n" % _SIGNALLED_HINT if signalled else "")

    def kill(self) -> None:
        """End it with everything that it has started."""
        if self.unit:
            command = ("systemctl", "kill", "--signal=KILL", self.unit)
            subprocess.run(command, capture_output=True, check=False, timeout=30)
            with contextlib.suppress(subprocess.TimeoutExpired):  # systemd does not respond.
                self.child.wait(10)
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()

    def close(self) -> None:
        if self._environment is not None:
            os.close(self._environment)
            self._environment = None


def end_abandoned() -> None:
    """End units whose module was killed. A unit ends with its module only where that one could end it.

    Raises UnitError where systemd does not end one.
    """
    if not os.path.isdir("/run/systemd/system"):
        return
    patterns = ["shiftmaster-%s-*" % kind for kind in _KINDS]
    listed = units.systemctl("list-units", "--plain", "--no-legend", "--full", *patterns)
    names = re.findall(r"^(shiftmaster-[a-z]+-(\d+)-\d+\.service) ", listed, re.MULTILINE)
    abandoned = [name for name, owner in names if not os.path.exists("/proc/" + owner)]
    if abandoned:
        units.systemctl("stop", *abandoned)


def run_as(
    user, argv, env, cwd=None, stdin=subprocess.DEVNULL, timeout=60, nice=False, kind="code", writable=()
) -> Completed:
    """Run a command to its end; see Process. stdin: an open file.

    Raises ReleaseCodeError when the command cannot be started or takes longer than timeout, in seconds.
    """
    process = Process(user, argv, env, cwd, kind, timeout, stdin, nice, writable, reports=True)
    deadline, stdout = time.monotonic() + timeout, Output(process.child.stdout)
    try:
        process.child.wait(timeout)
        for output in (stdout, process.stderr):
            output.join(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        process.kill()
        for output in (stdout, process.stderr):
            # Without a unit, a process that has left the group may hold the pipes open.
            output.join(5)
        words = (" ".join(argv[:3]), timeout, tail(stdout.text() + process.stderr.text()) or "none")
        raise ReleaseCodeError("%s did not end within %d seconds; its last output: %s" % words) from error
    except BaseException:
        process.kill()
        raise
    finally:
        process.close()
    code, stderr = process.result()
    return Completed(code, stdout.text(), stderr)


def matches(value, shape) -> bool:
    """Whether a value has a form: a type, [form of each], {key: form}, {str: form} for any keys, or a tuple of forms.

    A key that ends with "?" may be absent.
    """
    if isinstance(shape, tuple):
        return any(matches(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(matches(one, shape[0]) for one in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if str in shape:
            return all(matches(one, shape[str]) for one in value.values())
        needed = {key for key in shape if not key.endswith("?")}
        return needed <= set(value) and all(
            matches(one, shape.get(key, shape.get(key + "?", object))) for key, one in value.items()
        )
    if shape is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if shape is None else isinstance(value, shape)


class ReleaseCode:
    """The code of one release directory, run as the application's user."""

    def __init__(self, release_dir, user: Optional[str] = "shiftmaster"):
        self.path = os.path.realpath(str(release_dir))
        self.user = user

    @property
    def python(self) -> str:
        return os.path.join(self.path, "venv", "bin", "python")

    def environ(self, extra_env=None) -> dict:
        """Return the environment that the release's units have, and extra_env on top."""
        try:
            with open(os.path.join(self.path, "env"), encoding="utf-8") as stream:
                environment = envfile.parse(stream.read())
        except OSError as error:
            raise ReleaseCodeError("the environment of release %s cannot be read: %s" % (self.path, error)) from error
        path = os.path.join(self.path, "venv", "bin") + ":/usr/local/bin:/usr/bin:/bin"
        base = {"PATH": path, "LANG": "C.UTF-8", "HOME": "/nonexistent"}
        base.update(PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1")
        return {**base, **environment, **(extra_env or {})}

    def run(self, argv, timeout=60, extra_env=None, **process) -> Completed:
        """Run argv in the release's source directory; a relative argv[0] is looked up in its virtual environment.

        process: options of run_as().
        """
        argv = list(argv)
        if "/" not in argv[0]:
            argv[0] = os.path.join(self.path, "venv", "bin", argv[0])
        source = os.path.join(self.path, "source")
        return run_as(self.user, argv, self.environ(extra_env), source, timeout=timeout, **process)

    def shell(self, command: str, extra_env=None, **options) -> Completed:
        """Run a command of the site, which may hold a secret."""
        return self.run(_SHELL, extra_env=dict(extra_env or {}, SHIFTMASTER_COMMAND=command), **options)

    def attach(self, words, extra_env=None, read_only=False) -> int:
        """Run a command of manage.py on the terminal, or the streams, of this process; returns its status.

        In the sandbox of other code of the release. It ends with this process, when the terminal or the reader of the
        output goes away, and after a day. read_only: transactions on connections of Django reject writes.
        """
        terminal = os.isatty(0) and os.isatty(1)
        environ = self.environ({"TERM": os.environ.get("TERM", "dumb"), **(extra_env or {})})
        command = (*_LASTING, self.python, "-c", _READ_ONLY * read_only + _MANAGE, json.dumps([words]))
        descriptor = _in_memory(environ)
        source = os.path.join(self.path, "source")
        try:
            name, argv = _in_unit(self.user, command, descriptor, source, "code", _SESSION_SECONDS, terminal=terminal)
            ends = {number: signal.signal(number, _ended) for number in _ENDS}
            try:
                code = _wait(subprocess.Popen(argv, env={**_OF_SYSTEMD_RUN, "TERM": environ["TERM"]}, cwd="/"))
            finally:
                # It may still run: what has ended systemd-run does not end the unit.
                command = ("systemctl", "kill", "--signal=KILL", name)
                subprocess.run(command, capture_output=True, check=False, timeout=30)
                for number, before in ends.items():
                    signal.signal(number, before)
            # 255 is ssh's code for a connection that broke.
            return 128 + signal.SIGKILL if code == _SIGNALLED else 128 - code if code < 0 else code
        except (OSError, KeyError) as error:
            raise ReleaseCodeError("%s could not be started: %s" % (words[0], error)) from error
        finally:
            os.close(descriptor)

    def manage(self, commands, **options) -> Completed:
        """Run commands of manage.py (lists of words) in one process, until one fails; no manage.py is needed."""
        return self.run(["python", "-c", _MANAGE, json.dumps(commands)], **options)

    def driver(self, module, request: dict, timeout=60, extra_env=None) -> dict:
        """Send one request to a driver; see Driver."""
        with Driver(self, module, extra_env, timeout) as driver:
            return driver.call(request, timeout)


class Driver:
    """The source of a driver module (a module of this package) at work inside a release.

    The driver reads each request as one line of JSON from standard input and writes its response as a line that starts
    with ANSWER; other output of the application is ignored. A response {"error": text}, one that has not the
    form that the module's ANSWERS names for the request's op, and one that does not come raise ReleaseCodeError.
    """

    def __init__(self, code: ReleaseCode, module, extra_env=None, seconds=24 * 3600):
        self._shapes = module.RESPONSES
        source, command = os.path.join(code.path, "source"), [code.python, "-c", _BOOTSTRAP]
        self._process = Process(code.user, command, code.environ(extra_env), source, "code", seconds, subprocess.PIPE)
        self._child = self._process.child
        self._buffer, self._noise = bytearray(), collections.deque(maxlen=20)
        # The source and a request have room in it also where nobody reads: a write never waits.
        fcntl.fcntl(self._child.stdin, fcntl.F_SETPIPE_SZ, 1024 * 1024)
        self._send(module.SOURCE)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    def _send(self, value) -> None:
        with contextlib.suppress(OSError):  # It ended: its output shows why.
            self._child.stdin.write((json.dumps(value) + "\n").encode())
            self._child.stdin.flush()

    def call(self, request: dict, timeout=60) -> dict:
        """Send one request and return its response; timeout is in seconds."""
        deadline = time.monotonic() + timeout
        self._send(request)
        for line in self._lines(deadline):
            if line.startswith(RESPONSE):
                return self._checked(line[len(RESPONSE) :], request["op"])
            self._noise.append(line[:1000])
        code = self._child.poll()
        why = _SIGNALLED_HINT if code == _SIGNALLED else "ended with code %s and without a response" % code
        if code is None:
            why = "did not respond within %d seconds" % timeout
        raise ReleaseCodeError("the release's code %s; its last output: %s" % (why, self._output() or "none"))

    def _checked(self, text: str, operation: str) -> dict:
        try:
            response = json.loads(text)
        except (ValueError, RecursionError):
            response = None
        if matches(response, {"error": str}):
            raise ReleaseCodeError(response["error"][:10000])
        if not matches(response, self._shapes[operation]):
            raise ReleaseCodeError("the release's code responded to %s in an unknown form" % operation)
        return response

    def _lines(self, deadline):
        stream = self._child.stdout
        searched = 0
        while True:
            while (end := self._buffer.find(b"\n", searched)) >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                searched = 0
                yield line.decode(errors="replace")
            searched = len(self._buffer)
            if searched > RESPONSE_BYTES:
                raise ReleaseCodeError("the release's code wrote a line of more than %d bytes" % RESPONSE_BYTES)
            left = deadline - time.monotonic()
            ready, _write, _error = select.select([stream], [], [], max(0, left))
            if not ready or left <= 0:
                return
            chunk = os.read(stream.fileno(), 65536)
            if not chunk:
                self._child.wait()
                return
            self._buffer += chunk

    def _output(self) -> str:
        if self._child.poll() is not None:
            self._process.stderr.join(1)
        return tail("\n".join(self._noise) + "\n" + self._process.stderr.text())

    def close(self) -> None:
        """End the driver; it gets some time to end by itself."""
        with contextlib.suppress(OSError):
            self._child.stdin.close()
        try:
            self._child.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._child.stdout.close()
        self._process.close()
