"""Run something with a release's own interpreter, environment and user.

Secrets reach the child through its environment only, never through its arguments.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import signal
import subprocess
import tempfile
import time
from typing import NamedTuple, Optional

from . import envfile
from .printable import printable

ANSWER = "@@shiftmaster-answer@@ "
_BOOTSTRAP = (
    "import os; s = os.fdopen(int(os.environ.pop('SHIFTMASTER_DRIVER_FD'))).read();"
    " exec(compile(s, 'shiftmaster-driver', 'exec'), {'__name__': '__main__'})"
)


class ReleaseCodeError(Exception):
    """The release's code could not be run, ran too long, or did not answer; str() says which and quotes its output."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class Completed(NamedTuple):
    rc: int
    stdout: str
    stderr: str


def lower_priority() -> None:
    """Give this process only the processor time that nobody else wants (for builds beside live traffic)."""
    os.nice(19)
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, PermissionError, OSError):
        pass  # The nice value stays.


def tail(text: str, lines: int = 20) -> str:
    """Return the last lines of a child's output, for a message."""
    return "\n".join(text.strip().splitlines()[-lines:])


def _start(user, argv, env, cwd, stderr=subprocess.PIPE, nice=False, pass_fds=()):
    demote = {}
    if user is not None and os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        demote = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [entry.pw_gid]}
    try:
        return subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=lower_priority if nice else None,
            pass_fds=pass_fds,
            **demote,
        )
    except OSError as error:
        raise ReleaseCodeError("%s could not be started: %s" % (argv[0], error)) from error


def run_as(user, argv, env, cwd=None, stdin=None, timeout=60, nice=False, pass_fds=()) -> Completed:
    """Run argv as user (None: as who we are) with exactly this environment.

    timeout is in seconds; the whole process group is killed behind it.
    Raises ReleaseCodeError when the command cannot be started or takes too long.
    """
    child = _start(user, argv, env, cwd, nice=nice, pass_fds=pass_fds)
    try:
        stdout, stderr = child.communicate(None if stdin is None else stdin.encode(), timeout=timeout)
    except subprocess.TimeoutExpired as error:
        os.killpg(child.pid, signal.SIGKILL)
        try:
            stdout, stderr = child.communicate(timeout=5)
        except subprocess.TimeoutExpired as left:
            # A process that has left the group holds the pipes open.
            stdout, stderr = left.stdout or b"", left.stderr or b""
            for stream in (child.stdout, child.stderr):
                stream.close()
        raise ReleaseCodeError(
            "%s did not end within %d seconds; its last output: %s"
            % (" ".join(argv[:3]), timeout, tail((stdout + stderr).decode(errors="replace")) or "none")
        ) from error
    return Completed(child.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))


class ReleaseCode:
    """The code of one release folder, run as the application's user."""

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
        base = {
            "PATH": os.path.join(self.path, "venv", "bin") + ":/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": "/nonexistent",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        base.update(environment)
        base.update(extra_env or {})
        return base

    def run(self, argv, stdin=None, timeout=60, nice=False, extra_env=None, pass_fds=()) -> Completed:
        """Run argv in the release's source folder; a relative argv[0] is looked up in its virtual environment."""
        argv = list(argv)
        if "/" not in argv[0]:
            argv[0] = os.path.join(self.path, "venv", "bin", argv[0])
        return run_as(
            self.user, argv, self.environ(extra_env), os.path.join(self.path, "source"), stdin, timeout, nice, pass_fds
        )

    def manage(self, arguments, timeout=60, nice=False, extra_env=None) -> Completed:
        """Run Django's command line; works also where the source has no manage.py."""
        return self.run(["python", "-m", "django"] + list(arguments), timeout=timeout, nice=nice, extra_env=extra_env)

    def driver(self, module, request: dict, timeout=60, extra_env=None) -> dict:
        """Ask a driver one thing; see Driver."""
        with Driver(self, module, extra_env) as driver:
            return driver.ask(request, timeout)


class Driver:
    """The source of a driver module (a module of this package) at work inside a release.

    The driver reads each request as one line of JSON from standard input and writes its answer as one line that starts
    with ANSWER; whatever else the application prints is left alone. An answer {"error": text} and an answer that does
    not come both raise ReleaseCodeError.
    """

    def __init__(self, code: ReleaseCode, module, extra_env=None):
        source = module.__loader__.get_source(module.__name__).encode()
        descriptor = os.memfd_create("shiftmaster-driver")
        try:
            os.write(descriptor, source)
            os.lseek(descriptor, 0, os.SEEK_SET)
            self._stderr = tempfile.TemporaryFile()
            environment = code.environ(dict(extra_env or {}, SHIFTMASTER_DRIVER_FD=str(descriptor)))
            self._child = _start(
                code.user,
                [code.python, "-c", _BOOTSTRAP],
                environment,
                os.path.join(code.path, "source"),
                stderr=self._stderr,
                pass_fds=(descriptor,),
            )
        finally:
            os.close(descriptor)
        self._buffer = b""
        self._noise = []

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    def ask(self, request: dict, timeout=60) -> dict:
        """Send one request and return its answer; timeout is in seconds."""
        deadline = time.monotonic() + timeout
        try:
            self._child.stdin.write((json.dumps(request) + "\n").encode())
            self._child.stdin.flush()
        except OSError:
            pass  # It ended: its output below says why.
        for line in self._lines(deadline):
            if line.startswith(ANSWER):
                answer = json.loads(line[len(ANSWER) :])
                if "error" in answer:
                    raise ReleaseCodeError(answer["error"])
                return answer
            self._noise.append(line)
        raise ReleaseCodeError(
            "the release's code %s; its last output: %s"
            % (
                "did not answer within %d seconds" % timeout
                if self._child.poll() is None
                else "ended with code %d and without an answer" % self._child.wait(),
                self._output() or "none",
            )
        )

    def _lines(self, deadline):
        stream = self._child.stdout
        while True:
            while b"\n" in self._buffer:
                line, self._buffer = self._buffer.split(b"\n", 1)
                yield line.decode(errors="replace")
            ready, _write, _error = select.select([stream], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                return
            chunk = os.read(stream.fileno(), 65536)
            if not chunk:
                self._child.wait()
                return
            self._buffer += chunk

    def _output(self) -> str:
        self._stderr.seek(0)
        return tail("\n".join(self._noise) + "\n" + self._stderr.read().decode(errors="replace"))

    def close(self) -> None:
        """End the driver; it gets a moment to end by itself."""
        try:
            self._child.stdin.close()
        except OSError:
            pass
        try:
            self._child.wait(2)
        except subprocess.TimeoutExpired:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        self._child.stdout.close()
        self._stderr.close()
