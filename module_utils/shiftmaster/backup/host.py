"""What every part of the backup does on a host: options, commands, SQL, the lock, the log.

Options come from one file that role backup writes; passwords only from files that it names. Whoever calls decides what
a failure means: each function raises BackupError with a sentence for the one who reads the report.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time

from ..host import safe_files
from ..host.printable import printable
from ..host.sql import SAFE_SEARCH_PATH, rows_of
from .catalogue import CatalogueError

OPTIONS = "/etc/shiftmaster-backup/options.json"
STATE = "/var/lib/shiftmaster-backup"
RUN = "/run/shiftmaster-backup"
POSTGRES = "postgres"
# Of what another host sends at a request for paths or for its lock, and of rows of the database that is saved.
RESPONSE_BYTES, ROWS_BYTES = 1 << 20, 64 << 20
# How long a query of it may take; the longest counts every row.
QUERY_SECONDS = 3600
# A deploy waits for a backup before migrations: a table that somebody has locked must not hold it up for long.
LOCK_WAIT_SECONDS = 30
# Messages of restic about a repository that it queries repeatedly.
_ATTEMPT = re.compile(r"^.* returned error, retrying after \S+: ")
# For a file that it could not write, restic also reports that it has no owner and no times.
_FOLLOWS = re.compile(r"^ignoring error for .*: no such file or directory$")


class BackupError(Exception):
    """It cannot be done; str() shows why in a sentence."""


def message_of(error: Exception) -> str:
    """Why something failed, for the report. A response of a tool that nobody has foreseen is in the journal, too."""
    if isinstance(error, (BackupError, CatalogueError, OSError)):
        return str(error)
    # Module traceback fails where a deploy has replaced the program.
    sys.excepthook(*sys.exc_info())
    return "a response was not understood (%s: %s)" % (type(error).__name__, error)


class OptionsError(BackupError):
    """The parts to save and the recipients are unknown."""


def load_options(path: str = OPTIONS) -> dict:
    try:
        with open(path, encoding="utf-8") as stream:
            options = json.load(stream)
        Host(options)
        return options
    except (OSError, ValueError) as error:
        what = "cannot be read: %s" % error
    except (KeyError, TypeError, AttributeError):
        what = "are not complete: %s" % path
    raise OptionsError("the options of the backup %s. Nothing is saved until deploy.yml has written them again" % what)


def utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def tail(text: str, lines: int = 3) -> str:
    """The last output of a tool, as one line: restic's attempts once, without hints and what only follows."""
    found = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("HINT:")]
    attempts = [line for line in found if _ATTEMPT.match(line)]
    reported = [_ATTEMPT.sub("", line) for line in found if line not in attempts[:-1] and not _FOLLOWS.match(line)]
    return printable("; ".join((reported or found)[-lines:]))[:600] or "no reason given"


class _EndedError(Exception):
    """A command is not waited for any longer; str() shows why."""


def _communicate(child, stdin: str, seconds: float, limit: int, watch) -> tuple:
    """As communicate(), with a limit of bytes and somebody who watches."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            out, err = child.communicate(stdin, timeout=min(left, 0.2 if limit else 1) if limit or watch else left)
            size, why = len(out) + len(err), ""
        except subprocess.TimeoutExpired as late:
            if time.monotonic() >= deadline:
                raise
            out, err, stdin = None, None, None
            size, why = len(late.output or b"") + len(late.stderr or b""), watch() if watch else ""
        if limit and size > limit:
            why = "it wrote more than %d bytes" % limit
        if why:
            raise _EndedError(why)
        if out is not None:
            return out, err


class Host:
    """This host and its options."""

    def __init__(self, options: dict):
        self.options = options
        self.directory = options["directory"]
        self.stanza = options["stanza"]
        # Today's, then those of earlier passphrases.
        self.stanzas = (self.stanza, *options.get("previous_stanzas", ()))
        self.database = options["database"]
        self.bin = "/usr/lib/postgresql/%s/bin" % self.database["version"]

    # -- words -------------------------------------------------------------------------------------------------------

    def log(self, text: str) -> None:
        """One line for people: the unit's journal, and the log file that the guide names."""
        line = "%s %s" % (utc(time.time()), printable(text))
        print(line, flush=True)
        path = self.options["log_file"]
        with contextlib.suppress(OSError):
            # Its directory may be the application's.
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            safe_files.append(path, (line + "\n").encode(), 0o640)

    # -- commands ----------------------------------------------------------------------------------------------------

    def run_unit(self, what: str, unit: str, *command: str, **more):
        """Run a command of systemd-run; where it is not waited for to its end, its unit is stopped."""
        try:
            return self.run(what, *command, **more)
        except BaseException:
            self.run("ending %s" % unit, "systemctl", "stop", unit, timeout=60, fine=range(256))
            raise

    def run(self, what: str, *command: str, env=None, timeout=0.0, stdin="", fine=(0,), limit: int = 0, watch=None):
        """Run a command to its end; returns what subprocess.run does. Raises BackupError where its code is not fine.

        limit: how many bytes it may write. watch: called each second; what it returns is why the command is ended.
        """
        seconds = timeout or self.options["timeout_seconds"]
        try:
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            text = {"text": True, "errors": "replace"}
            child = subprocess.Popen(command, env=env, cwd="/", start_new_session=True, **text, **pipes)
        except OSError as error:
            raise BackupError("%s: %s" % (what, error))
        try:
            out, err = _communicate(child, stdin, seconds, limit, watch)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            printed = child.communicate()[1]
            if isinstance(error, subprocess.TimeoutExpired):
                raise BackupError("%s did not end within %d s (%s)" % (what, seconds, tail(printed)))
            if isinstance(error, _EndedError):
                raise BackupError("%s was ended: %s" % (what, error))
            raise
        if child.returncode not in fine:
            # As itself, and as a shell reports it of its child.
            number = -child.returncode if child.returncode < 0 else child.returncode - 128
            killed = "was killed by signal %d" % number if number in (signal.SIGKILL, signal.SIGTERM) else ""
            raise BackupError("%s %s: %s" % (what, killed or "ended with %d" % child.returncode, tail(err or out)))
        return subprocess.CompletedProcess(command, child.returncode, out, err)

    def as_postgres(self, what: str, *command: str, **more):
        # Not runuser, whose PAM session raises the priority that the unit has lowered, and fails where it may not.
        become = ("setpriv", "--reuid", POSTGRES, "--regid", POSTGRES, "--init-groups")
        return self.run(what, *become, *command, **more)

    def pgbackrest(self, what: str, *arguments: str, restore: bool = False, stanza: str = "", **more):
        """pgBackRest as postgres. restore: with the configuration that knows the repository alone."""
        words = ["--stanza=%s" % (stanza or self.stanza)]
        words += ["--config=%s" % self.options["restore_config"]] if restore else []
        return self.as_postgres(what, "pgbackrest", *words, *arguments, **more)

    def info(self, stanza: str = "") -> str:
        """The output of `pgbackrest info`, for catalogue.stanza_of()."""
        words = ("--output=json", "info")
        return self.pgbackrest("pgbackrest info", *words, restore=True, stanza=stanza, timeout=300).stdout

    def stanzas_from(self, stanza: str) -> tuple:
        """The stanzas with the WAL after a backup of this one: from its own to today's."""
        if stanza and stanza not in self.stanzas:
            raise BackupError("the passphrase of stanza %s is not known here" % plain(stanza))
        return self.stanzas[self.stanzas.index(stanza or self.stanza) :: -1]

    # -- the database ------------------------------------------------------------------------------------------------

    def environment(self, name: str = "") -> dict:
        """libpq's environment for the login `backup`; its password stays in a file."""
        base = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        base.update(
            PGHOST=self.database["host"],
            PGPORT=str(self.database["port"]),
            PGUSER=self.database["user"],
            PGDATABASE=name or self.database["name"],
            PGSSLMODE=self.database["sslmode"],
            PGPASSFILE=self.database["passfile"],
            PGCONNECT_TIMEOUT="10",
            PGAPPNAME="shiftmaster-backup",
            # pg_dump has an option of its own for it.
            PGOPTIONS="%s -c lock_timeout=%ds" % (SAFE_SEARCH_PATH, LOCK_WAIT_SECONDS),
            LC_ALL="C.UTF-8",
        )
        if self.database.get("sslrootcert"):
            base["PGSSLROOTCERT"] = self.database["sslrootcert"]
        if "," in self.database["host"]:
            # Members of a cluster: marks and rows are the primary's.
            base["PGTARGETSESSIONATTRS"] = "read-write"
        return base

    def query(self, sql: str, name: str = "", timeout: float = 0) -> list:
        """Query the database that is saved, whose host may be an attacker's; returns rows of texts.

        psql holds what it is sent: the unit's MemoryMax bounds that, and only then are bytes counted here.
        """
        what = "querying database %s" % (name or self.database["name"])
        command = (os.path.join(self.bin, "psql"), "-XqAt", "-w", "-v", "ON_ERROR_STOP=1", "-F", "\x1f")
        options = {"stdin": sql, "timeout": timeout or QUERY_SECONDS, "limit": ROWS_BYTES}
        return rows_of(self.run(what, *command, env=self.environment(name), **options).stdout)

    # -- room --------------------------------------------------------------------------------------------------------

    def free_bytes(self, directory: str = "") -> int:
        disk = os.statvfs(directory or self.directory)
        return disk.f_bavail * disk.f_frsize


# --- the lock --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(host: Host, operation: str, wait_seconds: float):
    """Let one run work on the backups at a time. The kernel lets go when a run dies, however it dies."""
    make_dir(RUN, 0o755)
    path = os.path.join(RUN, "lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline, reported = time.monotonic() + wait_seconds, False
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(descriptor, 500, 0).decode("utf-8", "replace").strip() or "another run"
                if time.monotonic() >= deadline:
                    raise BackupError("%s holds the lock of the backups for longer than %d s" % (holder, wait_seconds))
                if not reported:
                    host.log("waiting for %s" % holder)
                    reported = True
                time.sleep(0.5)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, ("%s (process %d, since %s)" % (operation, os.getpid(), utc(time.time()))).encode(), 0)
        # Children must not keep it when we are killed.
        os.set_inheritable(descriptor, False)
        yield
    finally:
        os.close(descriptor)


def read_lock(path: str) -> str:
    """The lock of deploys as role shiftmaster keeps it; "" where there is none."""
    try:
        return safe_files.read_text(path)
    except OSError:
        return ""


def plain(text: str) -> str:
    """Text from another host, fit for one line of a log or a message."""
    return re.sub(r"[^\w .,:;@/+=-]", "?", text)[:200]


def parsed(text):
    """Return JSON of another host. Raises ValueError also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply")


def deploy_of(text: str, run_id: str = "") -> str:
    """The holder of a lock of deploys, by its content; "" where it is expired or invalid, or this run's own."""
    try:
        holder = parsed(text)
        if float(holder.get("expires", 0)) > time.time() and (not run_id or holder.get("run_id") != run_id):
            return plain("%s by %s" % (holder.get("operation", "a deploy"), holder.get("owner", "somebody")))
    except (ValueError, AttributeError, TypeError, ArithmeticError, RecursionError):
        pass
    return ""


# --- directories ------------------------------------------------------------------------------------------------------


def make_dir(path: str, mode: int) -> None:
    """Have a directory with exactly this mode, whatever the umask is."""
    os.makedirs(path, exist_ok=True)
    os.chmod(path, mode)
