#!/usr/bin/python
# The pre-migration dump that is taken before migrations: plain, verified, and restorable completely or not at all.
from __future__ import annotations

DOCUMENTATION = r"""
---
module: shiftmaster_dump
short_description: Take, list and restore the pre-migration dump of the database before migrations
description:
  - O(state=present) dumps the database with C(pg_dump) in its custom format, reads the dump back completely with
    C(pg_restore), and only then gives it its name, next to a manifest with its checksum. What a killed run left is
    removed by the next one.
  - O(state=restored) checks the copy against its manifest, then replaces what the user owns in the database by it in
    one transaction. Where anything fails, nothing has changed.
  - It is refused with a sentence where the tools are missing or older than the server, or the disk has less room than
    the database has (a dump is compressed and has no indexes).
options:
  state:
    description:
      - V(present) takes a new copy and removes old ones beyond O(keep).
      - V(query) lists the copies, and does not query the database.
      - V(restored) puts O(file) into the database. The application must be in maintenance mode.
    type: str
    choices: [present, query, restored]
    default: query
  directory:
    description: Where the copies lie; made with mode 0700 where it is not there.
    type: path
    default: /var/backups/shiftmaster/pre-migration
  name:
    description: What the copy is named after its time, usually the release that was live.
    type: str
    default: before-migration
  release: {description: "The release that the database belongs to, for the manifest.", type: str, default: ""}
  database:
    description: Where the database is. Required for V(present) and V(restored).
    type: dict
    suboptions:
      host:
        description: Host name, address or directory of the socket; a list with commas, as libpq takes it.
        type: str
        default: localhost
      port: {description: "Port, or as many as there are hosts.", type: str, default: "5432"}
      name: {description: The database., type: str, required: true}
      user: {description: Its owner., type: str, required: true}
      sslmode: {description: As libpq takes it., type: str, default: prefer}
      sslrootcert:
        description: File of the authorities that the server's certificate is checked with, for C(verify-ca) and
          C(verify-full).
        type: str
        default: ""
  password: {description: The user's password. It reaches the tools by their environment., type: str, default: ""}
  keep:
    description: How many copies of this database stay. The newest complete one always does.
    type: int
    default: 5
  protect:
    description: Copies that stay besides, by path or name; for example the one that will be restored next.
    type: list
    elements: str
    default: []
  file:
    description: The copy to restore, by its path or its name in O(directory). Required for V(restored).
    type: str
  timeout_seconds: {description: How long all of it may take., type: int, default: 3600}
attributes:
  check_mode:
    support: full
    description: Reports the planned action. For V(present), a rejection is a warning, since a fresh host has no
      tools and no database yet.
  diff_mode:
    support: none
    description: A dump is too large to be shown.
requirements:
  - the client of PostgreSQL, not older than the server, on the host
notes:
  - What is in the database and belongs to another user, such as extensions, is left as it is by V(restored).
"""

EXAMPLES = r"""
- name: Create a dump before the migrations
  shiftmaster_dump:
    state: present
    name: "{{ release }}"
    database: {host: db.example.jp, name: shiftmaster, user: shiftmaster, sslmode: verify-full}
    password: "{{ vault_database_password }}"
  register: copy

- name: Put it back
  shiftmaster_dump:
    state: restored
    file: "{{ copy.file }}"
    database: {host: db.example.jp, name: shiftmaster, user: shiftmaster, sslmode: verify-full}
    password: "{{ vault_database_password }}"
"""

RETURN = r"""
file: {description: Path of the copy; empty in check mode., returned: for present and restored, type: str}
manifest:
  description: What is known of it (bytes, sha256, database, server, release, taken_at).
  returned: for present and restored
  type: dict
seconds: {description: How long it took., returned: for present and restored, type: float}
notes: {description: What a person should know., returned: for present and restored, type: list, elements: str}
removed: {description: "Old copies, and what killed runs left.", returned: for present, type: list, elements: str}
data_loss_seconds: {description: Time since the copy., returned: for restored, type: int}
data_loss: {description: The same as a sentence., returned: for restored, type: str}
copies:
  description: The copies, oldest first, each its manifest with file, age_seconds and complete (the manifest is there
    and its size fits).
  returned: for query
  type: list
  elements: dict
"""

import contextlib
import datetime
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

from ansible.module_utils.shiftmaster.host import points
from ansible.module_utils.shiftmaster.host.bounded import Bounded, die_with_parent
from ansible.module_utils.shiftmaster.host.printable import lasting, printable, sized
from ansible.module_utils.shiftmaster.host.quiet import TEXT, QuietModule, dict_of, given
from ansible.module_utils.shiftmaster.host.safe_files import sha256
from ansible.module_utils.shiftmaster.host.system_paths import nearest
from ansible.module_utils.shiftmaster.release.layout import sync
from ansible.module_utils.shiftmaster.release.releasecode import Output
from ansible.module_utils.shiftmaster.release.state import held, write_json

COPY_NAME = re.compile(r"^\d{8}T\d{6}Z-[A-Za-z0-9._-]+\.dump\Z")
PLAIN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
TOOLS = ("pg_dump", "pg_restore", "psql")
LOCK_WAIT_SECONDS = 30  # For locks on tables; a migration or a person may hold one.
INSTALL = "install the package postgresql-client on this host"
OUTPUT_BYTES = 64 << 20  # Of a dump's list of contents.
HEAD_LINES = 60  # The settings of a script stand before its first object.

FACTS_SQL = """
SELECT current_setting('server_version_num') || ' ' || pg_database_size(current_database()) || ' '
       || current_setting('server_version')
"""
# Schemas that stay: those of others, and public.
KEPT_SCHEMAS_SQL = """
SELECT n.nspname FROM pg_namespace n JOIN pg_roles r ON r.rolname = current_user
WHERE n.nspowner <> r.oid OR n.nspname = 'public'
"""
# Objects of the user are removed in every schema: objects of newer code would conflict with the old tables, and with
# the migrations that add it again. DROP OWNED would take the user's right to connect, too. The statements are made
# before the first of them runs, since a dropped thing has no name any more.
CLEAR_SQL = """
DO $clear$
DECLARE
  me oid := (SELECT oid FROM pg_roles WHERE rolname = current_user);
  statement text;
BEGIN
  FOREACH statement IN ARRAY ARRAY(
    WITH mine (class, id, schema, place, statement) AS (
      SELECT 'pg_namespace'::regclass, oid, nspname, 1, format('DROP SCHEMA IF EXISTS %I CASCADE', nspname)
      FROM pg_namespace WHERE nspowner = me AND nspname <> 'public'
      UNION ALL
      SELECT 'pg_class'::regclass, c.oid, nspname, CASE relkind WHEN 'S' THEN 3 ELSE 2 END,
        format('DROP %s IF EXISTS %I.%I CASCADE', CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
          WHEN 'S' THEN 'SEQUENCE' WHEN 'f' THEN 'FOREIGN TABLE' WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END, nspname,
          relname)
      FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
      WHERE relowner = me AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c')
      UNION ALL
      SELECT 'pg_proc'::regclass, p.oid, nspname, 4, format('DROP ROUTINE IF EXISTS %I.%I(%s) CASCADE', nspname,
        proname, pg_get_function_identity_arguments(p.oid))
      FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE proowner = me
      UNION ALL
      SELECT 'pg_type'::regclass, t.oid, nspname, 5, format('DROP TYPE IF EXISTS %I.%I CASCADE', nspname, typname)
      FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace WHERE typowner = me AND typtype IN ('e', 'd', 'r')
      UNION ALL
      SELECT 'pg_collation'::regclass, c.oid, nspname, 6, format('DROP COLLATION IF EXISTS %I.%I CASCADE', nspname,
        collname)
      FROM pg_collation c JOIN pg_namespace n ON n.oid = collnamespace WHERE collowner = me
    )
    SELECT m.statement FROM mine m WHERE schema NOT LIKE 'pg\\_%' AND schema <> 'information_schema'
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = m.class AND d.objid = m.id AND d.deptype = 'e')
    ORDER BY place, id DESC
  ) LOOP
    EXECUTE statement;
  END LOOP;
  PERFORM lo_unlink(oid) FROM pg_largeobject_metadata WHERE lomowner = me;
END
$clear$;
"""


class DumpError(Exception):
    """It cannot be done, and nothing has changed; str() shows why in a sentence."""

    def __init__(self, message):
        # It quotes names of the application's tables.
        super().__init__(printable(message))


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def major(number):
    """Return the major version in "170005", "pg_dump (PostgreSQL) 15.8" or a directory's name; 0 for none."""
    found = re.search(r"(\d+)(?:\.|beta|rc|devel|\s|$)", str(number))
    value = int(found.group(1)) if found else 0
    return value // 10000 if value >= 10000 else value


def choose_tools(installed, server):
    """Return the directory of the tools for a server's major version. installed: {directory: major}.

    Those of the server's own version come first, then the oldest that is newer: a newer pg_restore writes settings that
    an older server does not know. Raises DumpError.
    """
    if not installed:
        raise DumpError("pg_dump, pg_restore and psql are not on this host; " + INSTALL)
    fitting = sorted((version, directory) for directory, version in installed.items() if version >= server)
    if not fitting:
        raise DumpError(
            "pg_dump %d on this host is older than the server (%d) and cannot dump it; install the package "
            "postgresql-client-%d" % (max(installed.values()), server, server)
        )
    return fitting[0][1]


def installed_tools():
    """Return {directory: major version} of the clients on this host; Debian's wrappers are passed by."""
    directories = {}
    for pattern in ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"):
        for directory in glob.glob(pattern):
            if all(os.access(os.path.join(directory, tool), os.X_OK) for tool in TOOLS):
                directories[directory] = major(re.search(r"(\d+)/bin$", directory).group(1))
    found = shutil.which("pg_dump")
    if not directories and found and all(shutil.which(tool) for tool in TOOLS):
        version = subprocess.run((found, "--version"), stdout=subprocess.PIPE, check=False, timeout=20).stdout.decode()
        directories[os.path.dirname(found)] = major(version)
    return directories


def environment(database, password, base):
    """Return the tools' environment: the connection and the password, and nothing of libpq's that was set before."""
    env = {name: value for name, value in base.items() if not name.startswith("PG")}
    names = {"PGHOST": "host", "PGPORT": "port", "PGDATABASE": "name", "PGUSER": "user", "PGSSLMODE": "sslmode"}
    env.update((name, str(database[key])) for name, key in names.items())
    env.update(
        PGCONNECT_TIMEOUT="10", PGAPPNAME="shiftmaster-dump", PGPASSFILE="/dev/null", LC_ALL="C.UTF-8", LANGUAGE="C"
    )
    several = "read-write" if "," in database["host"] else ""
    more = {"PGTARGETSESSIONATTRS": several, "PGSSLROOTCERT": database.get("sslrootcert"), "PGPASSWORD": password}
    env.update((name, value) for name, value in more.items() if value)
    return env


def error_line(stderr):
    """Return the last output of a tool as one line; the same words for each address of a host once."""
    lines = [
        re.sub(r"^(pg_dump|pg_restore|psql): (error: |warning: )?", "", line.strip()) for line in stderr.splitlines()
    ]
    lines = [line for line in lines if line]
    chosen = {}
    for line in [line for line in lines if "ERROR" in line or "FATAL" in line] or lines:
        chosen.setdefault(line.rsplit(" failed: ", 1)[-1], line)
    text = "; ".join(list(chosen.values())[:3]) or "no reason given"
    if "lock timeout" in text or "lock-wait-timeout" in text:
        text += " (another session holds a table for longer than %d s)" % LOCK_WAIT_SECONDS
    return text


def wanted_entries(listing, user, superuser, kept_schemas):
    """Return the lines of `pg_restore --list` that are to be restored.

    Schemas that stay need not be made. Rights, comments and settings of what belongs to others (an extension, above
    all) are not the user's to give, and have not been taken away.
    """
    chosen = []
    for line in listing.splitlines():
        entry = re.match(r"^\d+; \d+ \d+ (.*)$", line)
        if not entry:
            continue
        text = entry.group(1)
        schema = re.match(r"^(?:(?:ACL|COMMENT) - )?SCHEMA (?:- )?(.*?)(?: \S*)?$", text)
        rights = text.startswith(("ACL ", "DEFAULT ACL ", "COMMENT ", "SECURITY LABEL ")) and not text.endswith(
            " " + user
        )
        foreign = rights or text.startswith(("PUBLICATION", "SUBSCRIPTION", "EVENT TRIGGER"))
        kept = schema and schema.group(1) in kept_schemas or text.startswith("COMMENT - EXTENSION ")
        if not kept and (superuser or not foreign):
            chosen.append(line)
    return chosen


def copies(directory, at=None):
    """Return the copies in a directory, oldest first."""
    at = at or now()
    found = []
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        if not COPY_NAME.match(name):
            continue
        path = os.path.join(directory, name)
        entry = {"file": path, "bytes_on_disk": os.path.getsize(path), "complete": False}
        with contextlib.suppress(OSError, ValueError):
            with open(path + ".json", encoding="utf-8") as stream:
                entry.update(json.load(stream))
            entry["complete"] = entry["bytes"] == entry["bytes_on_disk"]
        taken = datetime.datetime.strptime(name[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
        entry["age_seconds"] = max(0, int((at - taken).total_seconds()))
        found.append(entry)
    return found


def prune_plan(found, keep, database, protect=()):
    """Return the paths of the copies of one database that may go.

    The newest `keep` complete ones stay, at least one, everything newer, what has no manifest, what is protected, and
    the newest one that belongs to a release: failed runs leave others.
    """
    mine = [entry for entry in found if entry.get("database") == database]
    complete = [entry["file"] for entry in mine if entry["complete"]]
    protect = [*protect, *[entry["file"] for entry in mine if entry["complete"] and entry.get("release")][-1:]]
    if not complete:
        return []
    oldest_kept = complete[-max(1, keep) :][0]
    protected = {os.path.basename(path) for path in protect}
    return [
        entry["file"]
        for entry in mine
        if os.path.basename(entry["file"]) < os.path.basename(oldest_kept)
        and os.path.basename(entry["file"]) not in protected
    ]


def _low_priority():
    """For children: give way to the application, and die with us."""
    os.nice(10)
    die_with_parent()


class Database:
    """One database and the tools for it."""

    def __init__(self, database, password, deadline):
        self.database, self.deadline = database, deadline
        self.env = environment(database, password, os.environ)
        self.directory = choose_tools(installed_tools(), 0)  # Any psql can query the server's version.
        number, size, self.version = self.query(FACTS_SQL).strip().split(" ", 2)
        self.size = int(size)
        self.directory = choose_tools(installed_tools(), major(number))

    def where(self):
        return "%(name)s on %(host)s:%(port)s" % self.database

    def start(self, tool, *arguments, **more):
        return subprocess.Popen(
            (os.path.join(self.directory, tool),) + arguments,
            env=self.env,
            cwd="/",
            start_new_session=True,
            preexec_fn=_low_priority,
            **more,
        )

    def left(self):
        return max(1, self.deadline - time.monotonic())

    def run(self, what, tool, *arguments):
        """Return a tool's output as bytes. Raises DumpError."""
        child = self.start(tool, *arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = Bounded(child, child.stdout, OUTPUT_BYTES), Output(child.stderr)
        try:
            child.wait(timeout=self.left())
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            errors.join(10)  # Until its own children have ended.
            raise DumpError("%s did not end in time; raise timeout_seconds" % what)
        text = output.end()
        if output.full:
            raise DumpError("%s wrote more than %d MiB; nobody restores that many objects" % (what, OUTPUT_BYTES >> 20))
        if child.returncode != 0:
            errors.join(10)
            raise DumpError("%s failed: %s" % (what, error_line(errors.text())))
        return text

    def query(self, sql):
        words = ("psql", "-X", "--no-password", "--no-align", "--tuples-only", "--command", sql)
        return self.run("a question to the database %s" % self.where(), *words).decode(errors="replace")

    def dump(self, path):
        """Write a dump to a path that only root may read."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        words = ("--no-password", "--format=custom", "--lock-wait-timeout=%ds" % LOCK_WAIT_SECONDS, "--file=" + path)
        self.run("the dump of the database %s" % self.where(), "pg_dump", *words)

    def verify(self, path):
        """Read a complete dump, as a restore would. Raises DumpError. Returns the number of its entries."""
        listed = self.run("reading the dump's contents", "pg_restore", "--list", path).decode(errors="replace")
        self.run("reading the dump back", "pg_restore", "--file=/dev/null", path)
        entries = [line for line in listed.splitlines() if re.match(r"^\d+; ", line)]
        return len(entries)

    def restore(self, path, work):
        """Replace what the user owns by what is in a dump, in one transaction. Raises DumpError."""
        # A login of its own acts as the owner of the objects.
        response = self.query("SELECT rolsuper, rolname FROM pg_roles WHERE rolname = current_user")
        superuser, _, user = response.strip().partition("|")
        superuser = superuser == "t"
        kept = set(self.query(KEPT_SCHEMAS_SQL).splitlines())
        listing = self.run("reading the dump's contents", "pg_restore", "--list", path).decode(errors="replace")
        chosen = os.path.join(work, "list")
        with open(chosen, "w", encoding="utf-8") as stream:
            stream.write("\n".join(wanted_entries(listing, user, superuser, kept)) + "\n")
        arguments = ["--use-list=" + chosen, "--file=-"] + ([] if superuser else ["--no-owner"]) + [path]
        pipe, words = subprocess.PIPE, ("-X", "--no-password", "--quiet", "--output=/dev/null", "--set=ON_ERROR_STOP=1")
        reader = self.start("pg_restore", *arguments, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
        writer = self.start("psql", *words, stdin=pipe, stderr=pipe)
        # Functions of the dump can write notices without end.
        reader_errors, writer_errors = Output(reader.stderr), Output(writer.stderr)
        try:
            errors = reader_errors if self._feed(reader, writer) else writer_errors
        except BaseException:
            # Without COMMIT the server takes everything back.
            for child in (writer, reader):
                child.kill()
                child.wait()
            raise
        if writer.returncode or reader.returncode:
            errors.join(10)
            raise DumpError("the restore failed, and the database is as it was: %s" % error_line(errors.text()))

    def _feed(self, reader, writer):
        """Let psql run what pg_restore writes; COMMIT comes only after a dump that was read to its end.

        Returns whether it was pg_restore that failed.
        """
        timer = _Timer(self.left(), (reader, writer))
        reader_failed = committing = False
        try:
            with contextlib.suppress(BrokenPipeError):  # psql ended at an error; its own words follow.
                writer.stdin.write(
                    b"BEGIN;\nSET statement_timeout = 0;\nSET lock_timeout = '%ds';\n" % LOCK_WAIT_SECONDS
                )
                writer.stdin.write(CLEAR_SQL.encode())
                for _number in range(HEAD_LINES):
                    line = reader.stdout.readline()
                    if not line.startswith(b"SET transaction_timeout"):  # Servers before 17 do not know it.
                        writer.stdin.write(line)
                shutil.copyfileobj(reader.stdout, writer.stdin, 1 << 18)
                if reader.wait() != 0:
                    reader_failed = True
                    writer.kill()
                elif not timer.fired:
                    committing = True
                    writer.stdin.write(b"\nCOMMIT;\n")
            reader.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                writer.stdin.close()
            writer.wait()
            reader.wait()
        finally:
            timer.stop()
        if timer.fired and not (committing and writer.returncode == 0):
            raise DumpError(
                "the restore did not end in time, and the database is %s; raise timeout_seconds"
                % ("as it was, or as the copy has it: restore it again" if committing else "as it was")
            )
        return reader_failed


class _Timer:
    """Kills children when the time is over, so that reading from them ends."""

    def __init__(self, seconds, children):
        self.fired, self.children = False, children
        signal.signal(signal.SIGALRM, self._fire)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _fire(self, _number, _frame):
        self.fired = True
        for child in self.children:
            child.kill()

    def stop(self):
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def exclusive(directory, wait_seconds=60):
    """Keep other runs out of the directory; the kernel lets go when we die, and our children die with us."""
    busy = DumpError("another pre-migration dump is being taken or restored in %s" % directory)
    with held(os.path.join(directory, ".lock"), time.monotonic() + wait_seconds, busy):
        yield


def remove_unfinished(directory):
    """Remove what killed runs left; returns the paths."""
    names = set(os.listdir(directory))
    going = [
        name
        for name in sorted(names)
        if name.endswith(".part")
        or (name.endswith(".dump.json.new") and COPY_NAME.match(name[: -len(".json.new")]))
        or (name.endswith(".dump.json") and COPY_NAME.match(name[:-5]) and name[:-5] not in names)
    ]
    for name in going:
        os.unlink(os.path.join(directory, name))
    return [os.path.join(directory, name) for name in going]


def open_source(params, deadline):
    """Open the database that is dumped, where the disk has room for it."""
    source, directory = Database(params["database"], params["password"], deadline), params["directory"]
    disk = os.statvfs(nearest(directory))
    free = disk.f_bavail * disk.f_frsize
    if free < source.size:
        raise DumpError(
            "there is too little room for the pre-migration dump in %s: %s free, %s needed; free some, or name another "
            "directory" % (directory, sized(free), sized(source.size))
        )
    return source


def present(params, deadline):
    """Take a copy; returns the module's result."""
    directory = params["directory"]
    if not PLAIN_NAME.match(params["name"]):
        raise DumpError("%r cannot be part of a file's name; letters, digits, points and dashes can" % params["name"])
    started = time.monotonic()
    os.makedirs(directory, mode=0o700, exist_ok=True)
    os.chmod(directory, 0o700)
    with exclusive(directory):
        removed = remove_unfinished(directory)
        source, path = open_source(params, deadline), ""
        while not path or os.path.exists(path):
            time.sleep(0.2 if path else 0)
            taken = now()
            path = os.path.join(directory, "%s-%s.dump" % (taken.strftime("%Y%m%dT%H%M%SZ"), params["name"]))
        part = os.path.join(directory, "." + os.path.basename(path) + ".part")
        try:
            source.dump(part)
            points.reach("dump")
            entries = source.verify(part)
            manifest = {
                "format": 1,
                "bytes": os.path.getsize(part),
                "sha256": sha256(part),
                "entries": entries,
                "database": params["database"]["name"],
                "host": params["database"]["host"],
                "server_version": source.version,
                "database_bytes": source.size,
                "name": params["name"],
                "release": params["release"],
                "taken_at": taken.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
            sync(part)
            write_json(path + ".json", manifest)
            os.rename(part, path)
            sync(directory)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            raise
        for old in prune_plan(copies(directory), params["keep"], params["database"]["name"], params["protect"]):
            os.unlink(old)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(old + ".json")
            removed.append(old)
    return {
        "changed": True,
        "file": path,
        "manifest": manifest,
        "removed": removed,
        "notes": [],
        "seconds": round(time.monotonic() - started, 2),
    }


def find_copy(directory, wanted, database):
    """Return the manifest of a complete copy of this database. Raises DumpError."""
    path = os.path.join(directory, wanted)  # A path that begins with / stays as it is.
    if not os.path.isfile(path):
        there = [os.path.basename(entry["file"]) for entry in copies(directory) if entry["complete"]]
        raise DumpError("there is no pre-migration dump %s; there are: %s" % (path, ", ".join(there) or "none"))
    try:
        with open(path + ".json", encoding="utf-8") as stream:
            manifest = json.load(stream)
        promised = (manifest["bytes"], manifest["sha256"], manifest["database"], manifest["taken_at"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DumpError(
            "the pre-migration dump %s has no usable manifest next to it (%s), so nobody knows whether it is "
            "complete; it is not restored" % (path, error)
        )
    if os.path.getsize(path) != promised[0] or sha256(path) != promised[1]:
        raise DumpError(
            "the pre-migration dump %s is damaged (%s, %s in its manifest, and the checksum differs); it is not "
            "restored" % (path, sized(os.path.getsize(path)), sized(promised[0]))
        )
    if promised[2] != database:
        raise DumpError("the pre-migration dump %s is of the database %s, not of %s" % (path, promised[2], database))
    return path, manifest


def restored(params, deadline, check_mode):
    """Put a copy into the database; returns the module's result."""
    started = time.monotonic()
    path, manifest = find_copy(params["directory"], params["file"], params["database"]["name"])
    target = Database(params["database"], params["password"], deadline)
    notes = []
    if not check_mode:
        with exclusive(os.path.dirname(path)), tempfile.TemporaryDirectory(prefix="shiftmaster-restore-") as work:
            target.verify(path)
            target.restore(path, work)
        try:
            target.query("SET statement_timeout = 0; ANALYZE")
        except DumpError as error:
            notes.append("the statistics of the planner could not be renewed, so queries may be slow: %s" % error)
    taken = datetime.datetime.strptime(manifest["taken_at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.timezone.utc)
    window = max(0, int((now() - taken).total_seconds()))
    return {
        "changed": True,
        "file": path,
        "manifest": manifest,
        "notes": notes,
        "data_loss_seconds": window,
        "data_loss": "what was written in the %s since %s %s lost"
        % (lasting(window), manifest["taken_at"], "would be" if check_mode else "is"),
        "seconds": round(time.monotonic() - started, 2),
    }


def would_take(params, deadline, warn):
    """Return the result of check mode; an obstacle is a warning."""
    try:
        open_source(params, deadline)
    except DumpError as error:
        warn("no pre-migration dump could be taken now: %s" % error)
    return {"changed": True, "file": "", "manifest": {}, "removed": [], "notes": [], "seconds": 0.0}


def main():
    module = QuietModule(
        argument_spec={
            "state": given("query", choices=["present", "query", "restored"]),
            "directory": given("/var/backups/shiftmaster/pre-migration", type="path"),
            "name": given("before-migration"),
            "release": given(""),
            "database": dict_of(
                host=given("localhost"),
                port=given("5432"),
                name=TEXT,
                user=TEXT,
                sslmode=given("prefer"),
                sslrootcert=given(""),
            ),
            "password": given("", no_log=True),
            "keep": given(5),
            "protect": given([], elements="str"),
            "file": {"type": "str"},
            "timeout_seconds": given(3600),
        },
        required_if=[("state", "present", ("database",)), ("state", "restored", ("database", "file"))],
        supports_check_mode=True,
    )
    params = module.params
    deadline = time.monotonic() + params["timeout_seconds"]
    try:
        if params["state"] == "query":
            module.exit_json(changed=False, copies=copies(params["directory"]))
        if params["state"] == "restored":
            module.exit_json(**restored(params, deadline, module.check_mode))
        if module.check_mode:
            module.exit_json(**would_take(params, deadline, module.warn))
        module.exit_json(**present(params, deadline))
    except DumpError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg="the pre-migration dump cannot be handled in %s: %s" % (params["directory"], error))


if __name__ == "__main__":
    main()
