"""Restores: of the database in its place or next to it, of one table, of files. What they replace is kept.

What a restore is given is a dict (`request`): id, target, parts, paths, table. Each function returns a dict for people.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import re
import shutil
import stat
import tarfile
import time

from ..host import points, safe_files
from ..host.printable import lasting, sized
from . import archive, catalogue, verification
from . import manifest as manifests
from . import place as backup_place
from .files import Restic, part_of, pulled, sources
from .host import STATE, BackupError, Host, alone, make_dir, message_of, tail
from .target import LABEL, RUN, Plan, TargetError, choose, plan_of, snapshot
from .wal import SEGMENT_BYTES

# A standby that has restored no segment for so long is at the end of the archive: after its last segment, and
# before it, where one segment may take its time. It requests a segment every 5 s that the archive does not have.
STILL_SECONDS = 20
SLOW_SECONDS = 300
ATTEMPTS = 12
# With the maintenance page enabled nobody waits for a backup: who has the lock was queried before it went up.
PAGE_SECONDS = 60
BOOT_SECONDS = 300
# One segment of received WAL, on a slow line.
ARCHIVE_SECONDS = 300
# How far a restore has come: a database that came up was started.
FETCHING, STARTED, UNDOING = "fetching", "started", "undoing"
# Where a restore notes what it has quarantined: not next to the data, where postgres could name another directory.
MARKER = os.path.join(STATE, "restoring")
# What was received of the WAL, on the host of the database.
RECEIVED = os.path.join(STATE, "received")
SEGMENT = re.compile(r"[0-9A-F]{24}(\.partial)?")
# Of a directory in a layer of a container, and of a mount.
NOT_RENAMED = (errno.EXDEV, errno.EBUSY)
# Where a new file may be obeyed by the system.
SYSTEM_DIRECTORIES = tuple(
    "/" + name for name in "bin boot dev etc lib lib32 lib64 libx32 proc run sbin sys usr var/spool var/log".split()
)
FORGOTTEN_SQL = """
SELECT DISTINCT name FROM pg_file_settings
WHERE sourcefile ~ 'postgresql.auto.conf$' AND name ~ '^(restore_command|recovery_target.*)$' ORDER BY 1
"""
# A table by the name that was typed, or by that in quotes, and the tables that hold its rows: its partitions and heirs.
TREE_SQL = """
WITH RECURSIVE tree (oid, depth) AS (
    SELECT coalesce(to_regclass(%s), to_regclass(%s))::oid, 0
    UNION SELECT inhrelid, depth + 1 FROM pg_inherits JOIN tree ON inhparent = tree.oid
)
SELECT format('%%I.%%I', nspname, relname), relkind FROM tree JOIN pg_class USING (oid)
JOIN pg_namespace ON pg_namespace.oid = relnamespace GROUP BY 1, 2 ORDER BY min(depth), 1
"""


def plan(host: Host, request: dict) -> dict:
    """What a restore would do, from the manifests and the repository; changes nothing."""
    found, damaged = manifests.history(os.path.join(host.directory, "manifests"))
    result, parts, repository = {"parts": {}}, request["parts"], []
    try:
        if "database" in parts or request.get("table"):
            stanzas = [catalogue.stanza_of(host.info(name), name) for name in host.stanzas]
            repository = [
                one.what for stanza in stanzas for one in catalogue.stanza_result(stanza).problems if not one.where
            ]
            # The end of a backup is on the timeline that its manifest names.
            named = RUN.match(request["target"]) or LABEL.match(request["target"])
            archives = [] if named else archive.of(host, stanzas)
            chosen = choose(request["target"], found, stanzas, time.time(), archives)
            result["database"] = chosen._asdict()
            saved = next(one for one in stanzas if one.name == chosen.stanza).backup(chosen.label).version
            if saved != host.database["version"]:
                why = "backup %s is of PostgreSQL %s, and this host runs %s: it needs a cluster of that version"
                raise BackupError(why % (chosen.label, saved, host.database["version"]))
            # Where a segment is missing or damaged, recovery to the end of the archive opens all the same, before it.
            if not chosen.arguments:
                backup = next(one for one in stanzas if one.name == chosen.stanza).backup(chosen.label)
                result["last_segment"] = archive.last_segment(archives, backup, chosen.timeline)
            result["parts"]["database"] = "%s, from backup %s (%s%s)" % (
                chosen.text, chosen.label, sized(chosen.size_bytes),
                ", its test restore took %d s" % chosen.seconds if chosen.seconds else "",
            )  # fmt: skip
            # Beyond the archive there is what was received of the WAL, of a host that is lost.
            result["received"] = len(received(host))
            if chosen.until is not None:
                result["lost"] = "what was entered in the last %s" % lasting(time.time() - chosen.until)
            else:
                result["lost"] = "what has not reached the archive" if not chosen.arguments else "what came later"
        for part in ("files", "configuration"):
            if part in parts:
                run = snapshot(part, request["target"], found)
                result[part] = {"run": run["run_id"], "label": run["parts"][part]["label"]}
                result["parts"][part] = "as of %s (%s)" % (
                    run["parts"][part]["started"], sized(run["parts"][part]["size_bytes"]),
                )  # fmt: skip
        run = next((result[part]["run"] for part in ("database", "files", "configuration") if part in result), "")
        result["release"] = next((one["release"] for one in found if one["run_id"] == run), {})
    except (TargetError, catalogue.CatalogueError) as error:
        # It may be there, and only the repository or its manifest not be readable.
        raise BackupError("; ".join([str(error), *repository, *damaged[:3]]))
    return result


def _planned(request: dict) -> Plan:
    """What the backup server has planned. It may be another host, so nothing but a plan is taken from it."""
    try:
        if not re.fullmatch(r"([0-9A-F]{24})?", request.get("last_segment", "")):
            raise TargetError("the last segment of the archive is not the name of one")
        return plan_of(request["database"])
    except (TargetError, TypeError, KeyError) as error:
        raise BackupError("nothing was restored: %s" % error)


def free(host: Host, request: dict) -> dict:
    """Wait for whoever works on the backups, while users still work: the steps after the page must not wait."""
    try:
        with alone(host, "restore %s, about to begin" % request["id"], host.options["lock_wait_seconds"]):
            return {"restored": "nothing yet: the lock of the backups is free"}
    except BackupError as error:
        raise BackupError("nothing was changed: %s; repeat the restore when that has ended" % error)


def received(host: Host) -> list:
    """Segments that were received and that the archive lacks, the one that was being written among them."""
    directory = os.path.join(host.directory, "wal")
    stanza = catalogue.stanza_of(host.info(), host.stanza)
    there = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    return archive.lacking(host, stanza, [name for name in there if SEGMENT.fullmatch(name)])


def pack_received(host: Host, request: dict) -> dict:
    """Pack these segments for the host on which the database is restored."""
    names, path = received(host), os.path.join(host.directory, "outgoing", request["id"] + "-wal.tar")
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    place = os.path.join(host.directory, "wal")
    host.run("packing WAL", "tar", "--create", "--file", path, "--directory", place, *names)
    return {"restored": "%d segments" % len(names), "archive": path, "segments": len(names)}


def unpack_received(host: Host, path: str, count: int = 0) -> str:
    """Unpack the WAL that the backup server has sent, for PostgreSQL to read; returns the directory. The archive goes.

    count: how many segments it holds at least.

    That server may be an attacker's. Of the archive only names and contents of segments are used, and the first header
    that is none of a segment ends it: no owner, mode, link, sparse file or extended header is obeyed.
    """
    names, group = set(), pwd.getpwnam("postgres").pw_gid
    safe_files.remove_tree(RECEIVED)
    # Not postgres' own: root writes here.
    safe_files.make_directory(RECEIVED, 0o750, 0, group)
    try:
        with contextlib.ExitStack() as stack:
            directory = safe_files.open_directory(RECEIVED)
            stack.callback(os.close, directory)
            stream = stack.enter_context(os.fdopen(safe_files.open_file(path), "rb"))
            size, free = os.fstat(stream.fileno()).st_size, host.free_bytes(RECEIVED)
            if size > free:
                sizes = (STATE, sized(free), sized(size))
                raise BackupError("there is too little room in %s for the received WAL: %s free, %s needed" % sizes)
            while True:
                try:
                    member = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "ascii", "strict")
                except tarfile.EOFHeaderError:
                    break
                # A header that is missing, is cut off, is damaged or is of another encoding.
                except (tarfile.HeaderError, ValueError):
                    raise BackupError("the received WAL is no archive of segments: a header is damaged")
                regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
                if not regular or not SEGMENT.fullmatch(member.name) or member.name in names:
                    raise BackupError("the received WAL holds %.100r, which is not a segment" % member.name)
                if not 0 <= member.size <= SEGMENT_BYTES:
                    raise BackupError("the received segment %s has %d bytes" % (member.name, member.size))
                content = stream.read(member.size)
                if len(content) != member.size:
                    raise BackupError("the received WAL ends within segment %s" % member.name)
                stream.read(-member.size % tarfile.BLOCKSIZE)
                names.add(member.name)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(member.name, flags, 0o600, dir_fd=directory), "wb") as segment:
                    segment.write(content)
                    os.fchown(segment.fileno(), 0, group)
                    os.fchmod(segment.fileno(), 0o640)
            if len(names) < count:
                raise BackupError("the received WAL holds %d segments of %d" % (len(names), count))
    except BaseException:
        safe_files.remove_tree(RECEIVED)
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return RECEIVED


def wal_again(host: Host, request: dict) -> dict:
    """Quarantine WAL that was received before a restore, and receive from the beginning."""
    directory, unit = os.path.join(host.directory, "wal"), "shiftmaster-backup-wal.service"
    kept_data = os.path.join(host.directory, "wal.before-%s" % request["id"])
    host.run("stopping the receiver", "systemctl", "stop", unit, timeout=120)
    os.rename(directory, kept_data)
    os.mkdir(directory, 0o750)
    shutil.chown(directory, "postgres", "postgres")
    host.run("starting the receiver", "systemctl", "start", unit, timeout=120)
    return {"restored": "receiving again; what was received is kept in %s" % kept_data}


# --- the database in its place ---------------------------------------------------------------------------------------


def unit_of(host: Host) -> str:
    return "postgresql@%s-main.service" % host.database["version"]


def _log_of(host: Host) -> str:
    return "/var/log/postgresql/postgresql-%s-main.log" % host.database["version"]


def database_here(host: Host, request: dict) -> dict:
    """Put the database back in its own place; what was there stays next to it until somebody removes it."""
    chosen = _planned(request)
    data = host.database["data"]
    kept_data = "%s.before-%s" % (data, request["id"])
    began = time.monotonic()
    with alone(host, "restore %s" % request["id"], min(PAGE_SECONDS, host.options["lock_wait_seconds"])):
        _recover(host, data)
        free = host.free_bytes(os.path.dirname(data))
        if free < chosen.size_bytes * 1.1:
            raise BackupError(
                "there is too little room next to %s for the restored database: %s free, %s needed; what is there now "
                "is kept until you remove it" % (data, sized(free), sized(chosen.size_bytes * 1.1))
            )
        packed, count = request.get("received_archive"), request.get("received_segments", 0)
        received_dir = unpack_received(host, packed, count) if packed else ""
        host.run("stopping PostgreSQL", "systemctl", "stop", unit_of(host), timeout=600)
        _mark(kept_data, FETCHING)
        try:
            if os.path.exists(data):
                _move(host, data, kept_data)
            # A mount stays where it is. The directory above belongs to postgres, who could put a link in its place.
            entry = pwd.getpwnam("postgres")
            safe_files.make_directory(data, 0o700, entry.pw_uid, entry.pw_gid)
            with safe_files.closing(safe_files.open_directory(data)) as descriptor:
                os.fchown(descriptor, entry.pw_uid, entry.pw_gid)
                os.fchmod(descriptor, 0o700)
            points.reach("restore_database")
            log = _log_of(host)
            offset = os.path.getsize(log) if os.path.exists(log) else 0
            # As a standby it does not begin a branch of its own where the WAL ends too early: that would be archived,
            # and lead the next restore astray (tried).
            to_the_end = [] if chosen.arguments else ["--type=standby"]
            _fetch(host, chosen, data, *to_the_end, *_wal_of(host, chosen, data, received_dir))
            _mark(kept_data, STARTED)
            host.run("starting PostgreSQL", "systemctl", "start", unit_of(host), timeout=_limit(host))
            if to_the_end:
                _wait_for_end_of_archive(host, request, log, offset)
                promote = (os.path.join(host.bin, "pg_ctl"), "--pgdata", data, "--wait", "promote")
                host.as_postgres("promoting the database", *promote)
            _wait_for_end_of_recovery(host, data)
            _forget_the_recovery(host, data)
            _archive_received(host, data, received_dir)
        except BaseException:
            # What was there is worth more than half of what was to come; where it was not quarantined, it is still
            # there.
            host.run("stopping PostgreSQL", "systemctl", "stop", unit_of(host), timeout=600, fine=range(256))
            _undo_a_killed_one(host, data)
            host.run("starting PostgreSQL", "systemctl", "start", unit_of(host), timeout=600, fine=range(256))
            raise
        os.unlink(MARKER)
    kept = kept_data if os.path.exists(kept_data) else ""
    return {"restored": chosen.text, "seconds": round(time.monotonic() - began, 1), "kept": kept}


def _wait_for_end_of_archive(host: Host, request: dict, log: str, offset: int) -> None:
    """Wait until a standby has read all that there is; refuse an end that comes too early."""
    seen, since, deadline = None, time.monotonic(), time.monotonic() + _limit(host)
    last, attempts, limit = request.get("last_segment", ""), 0, STILL_SECONDS
    while attempts < ATTEMPTS and time.monotonic() - since < limit:
        if time.monotonic() > deadline:
            raise BackupError("the restored database did not end its recovery within %d s" % _limit(host))
        with os.fdopen(safe_files.open_file(log), encoding="utf-8", errors="replace") as stream:
            stream.seek(offset)
            text = stream.read()
        now = set(re.findall(r'restored log file "(\w+)"', text))
        # Those of sessions have their user before them, and are their own.
        own = [line for line in text.splitlines() if "[user=" not in line]
        if any(re.search(r"\b(FATAL|PANIC):  (?!the database system is)", line) for line in own):
            raise BackupError("the restored database does not come up: %s" % tail(text))
        attempts = text.rpartition("restored log file")[2].count("waiting for WAL to become available")
        if now != seen:
            seen, since = now, time.monotonic()
        limit = STILL_SECONDS if not last or last in seen else SLOW_SECONDS
        time.sleep(1)
    _require_the_end(request, text)


def _require_the_end(request: dict, log: str) -> None:
    """Refuse a database that came up before the end of the archive, unless that was requested."""
    last = request.get("last_segment", "")
    if last and not request.get("allow_gap") and 'restored log file "%s" from archive' % last not in log:
        raise BackupError(
            "the recovery did not come to the end of the archive (%s): a segment before it is missing or damaged. "
            "Restore to a time before that, or accept the gap with -e allow_gap=true" % last
        )


def _limit(host: Host) -> float:
    return host.options["recovery_timeout_seconds"]


def _mark(kept_data: str, phase: str) -> None:
    """Note where what was there is quarantined, before it is, and how far that went.

    A directory that is half removed, or half brought back, looks like a database that came up. It is on the disk at
    once: a host may lose its power.
    """
    safe_files.write(MARKER, ("%s\n%s" % (kept_data, phase)).encode(), 0o600)


def _marked() -> tuple:
    """Where what was there is quarantined, and the phase."""
    kept_data, _, phase = safe_files.read_text(MARKER).partition("\n")
    return kept_data, phase


def _move(host: Host, data: str, kept_data: str) -> None:
    """Quarantine a directory. Where it cannot be renamed (a layer of a container, a mount) it is copied completely."""
    try:
        safe_files.rename(data, os.path.basename(kept_data))
    except OSError as error:
        if error.errno not in NOT_RENAMED:
            raise
        # As postgres, who could put links in the way of root.
        copy = ("cp", "--archive", "--no-target-directory", data, kept_data + ".part")
        host.as_postgres("keeping the database of before", *copy)
        safe_files.rename(kept_data + ".part", os.path.basename(kept_data))
        _empty(host, data)


def _empty(host: Host, directory: str) -> None:
    """Remove what is in a directory of postgres, and not the directory itself, which may be a mount."""
    host.as_postgres("emptying %s" % directory, "find", directory, "-xdev", "-mindepth", "1", "-delete")


def _undo_a_killed_one(host: Host, data: str) -> None:
    """Bring back what a restore had quarantined that did not come to its end. PostgreSQL is stopped."""
    if not os.path.exists(MARKER):
        return
    kept_data, _phase = _marked()
    if os.path.exists(kept_data) and not os.path.exists(kept_data + ".part"):
        if os.path.lexists(data):
            # The disk may be full, and have no room for the marker. Half removed it must not count as one that came up.
            host.as_postgres("removing pg_control", "rm", "--force", os.path.join(data, "global", "pg_control"))
            os.sync()
            _empty(host, data)
        _mark(kept_data, UNDOING)
        try:
            # Onto the empty directory.
            safe_files.rename(kept_data, os.path.basename(data))
        except OSError as error:
            if error.errno not in NOT_RENAMED:
                raise
            # It is complete until the copy is: a second attempt begins again.
            host.as_postgres("bringing back the database of before", "cp", "--archive", kept_data + "/.", data)
            os.sync()
            os.unlink(MARKER)
            safe_files.remove_tree(kept_data)
            return
    if kept_data:
        safe_files.remove_tree(kept_data + ".part")
    os.unlink(MARKER)


def _recover(host: Host, data: str) -> None:
    """End what a restore has left that was killed, however long ago.

    A database that had come up may have been worked with since: then it stays, and so does what it has replaced.
    """
    if not os.path.exists(MARKER):
        return
    # Only where it runs: at boot its start waits for us, and would be called off.
    if _state(host) not in ("inactive", "failed"):
        host.run("stopping PostgreSQL", "systemctl", "stop", unit_of(host), timeout=600)
    kept_data, phase = _marked()
    if os.path.exists(kept_data) and phase == STARTED and _came_up(data):
        os.unlink(MARKER)
        why = "was ended after its database had come up: that is in its place, and what it has replaced is kept in %s"
        host.log("a restore " + why % kept_data)
    else:
        _undo_a_killed_one(host, data)
        host.log("a restore did not come to its end: the database that was there before is in its place")


def _state(host: Host) -> str:
    return host.run("systemctl", "systemctl", "is-active", unit_of(host), fine=range(256)).stdout.strip()


def _came_up(data: str) -> bool:
    """Whether recovery has ended: PostgreSQL then removes or renames each of these signs of it."""
    signs = ("backup_label", "recovery.signal", "standby.signal")
    left = any(os.path.exists(os.path.join(data, name)) for name in signs)
    return os.path.exists(os.path.join(data, "global", "pg_control")) and not left


def undo_at_boot(host: Host) -> None:
    """After a restore that was interrupted by a host failure, and before PostgreSQL comes up with half of it."""
    data = host.database["data"]
    if os.path.exists(MARKER):
        # Whoever reports a killed backup at boot has the lock briefly; a backup begins after PostgreSQL.
        with alone(host, "what is left of a restore", BOOT_SECONDS):
            runs = _state(host) == "active"
            _recover(host, data)
            if runs:
                host.run("starting PostgreSQL", "systemctl", "start", unit_of(host), timeout=600)


def undo(host: Host, request_id: str) -> None:
    """After a restore that was killed: restore the earlier state, and report it to a waiting caller."""
    data = host.database["data"]
    with alone(host, "what is left of restore %s" % request_id, host.options["lock_wait_seconds"]):
        try:
            ours = _marked()[0].endswith(".before-%s" % request_id)
        except FileNotFoundError:
            return  # It has ended by itself.
        if ours:
            host.run("stopping PostgreSQL", "systemctl", "stop", unit_of(host), timeout=600, fine=range(256))
            _undo_a_killed_one(host, data)
            host.run("starting PostgreSQL", "systemctl", "start", unit_of(host), timeout=600)
            why = "the restore was killed; what was there before is in its place again, and PostgreSQL runs"
            host.log("restore %s: %s" % (request_id, why))
            print(json.dumps({"failed": why}), flush=True)


def _wal_of(host: Host, chosen: Plan, data: str, directory: str) -> list:
    """Let recovery go on with the archive of today's stanza, and with what was received, where its own archive ends."""
    stanzas = host.stanzas_from(chosen.stanza)
    if not directory and len(stanzas) == 1:
        return []
    get = 'pgbackrest --config=%s --pg1-path=%s --stanza=%s archive-get %%f "%%p"'
    commands = [get % (host.options["restore_config"], data, stanza) for stanza in stanzas]
    commands += ['cp %s/%%f%s "%%p"' % (directory, suffix) for suffix in ("", ".partial") if directory]
    return ["--recovery-option=restore_command=%s" % " || ".join(commands)]


def _archive_received(host: Host, data: str, directory: str) -> None:
    """Bring received segments into the archive. Raises nothing: the data are there, the next run reports the gaps.

    PostgreSQL takes what it has restored for archived, and the archive would keep a gap.
    """
    for name in sorted(os.listdir(directory)) if directory else ():
        if re.fullmatch(r"[0-9A-F]{24}", name):
            path, began = os.path.join(directory, name), time.monotonic()
            try:
                words = ("--pg1-path=%s" % data, "archive-push", path)
                host.pgbackrest("archiving %s" % name, *words, timeout=ARCHIVE_SECONDS)
            except BackupError as error:
                host.log("received WAL was not archived: %s" % error)
                # Users wait: a backup server that does not respond must not hold each segment.
                if time.monotonic() - began >= ARCHIVE_SECONDS:
                    break


def _fetch(host: Host, chosen: Plan, data: str, *more: str) -> None:
    host.pgbackrest(
        "pgbackrest restore",
        "--pg1-path=%s" % data, "--set=%s" % chosen.label, "--process-max=%d" % host.options["process_max"],
        *more, *chosen.recovery(), "restore", restore=True, stanza=chosen.stanza,
    )  # fmt: skip


def _wait_for_end_of_recovery(host: Host, data: str) -> None:
    """Query the local server as postgres until it accepts writes."""
    deadline = time.monotonic() + _limit(host)
    while True:
        if _query_local(host, "SELECT pg_is_in_recovery()", fine=(0, 1, 2), timeout=60).strip() == "f":
            return
        if _state(host) not in ("active", "activating"):
            fatal = []
            with contextlib.suppress(OSError):
                text = safe_files.read_tail(_log_of(host), 8192).decode("utf-8", "replace")
                fatal = [line for line in text.splitlines() if re.search("FATAL|PANIC", line)]
            why = tail(fatal[-1]) if fatal else "see its log"
            raise BackupError("the restored database does not come up: %s" % why)
        if time.monotonic() > deadline:
            raise BackupError("the restored database did not end its recovery within %d s" % _limit(host))
        time.sleep(0.5)


def _query_local(host: Host, *statements: str, **more) -> str:
    words = [os.path.join(host.bin, "psql"), "-XqAt", "-w", "-d", "postgres"]
    words += [word for statement in statements for word in ("-c", statement)]
    return host.as_postgres("querying the restored database", *words, **more).stdout


def _forget_the_recovery(host: Host, data: str) -> None:
    """Take pgBackRest's settings of the recovery away: each copy of this database would follow them."""
    names = _query_local(host, FORGOTTEN_SQL).split()
    if names:
        _query_local(host, *["ALTER SYSTEM RESET %s" % name for name in names])
        host.run("restarting PostgreSQL", "systemctl", "restart", unit_of(host), timeout=600)
        _wait_for_end_of_recovery(host, data)


# --- next to it -------------------------------------------------------------------------------------------------------


def _scratch_server(host: Host, chosen: Plan):
    """The server of a restore next to the database, which goes also through what is not in the archive yet."""
    _archive_until_now(host)
    directory = os.path.join(host.directory, "wal") if received(host) else ""
    more = {"label": chosen.label, "received": directory, "stanzas": host.stanzas_from(chosen.stanza)}
    return verification.restored(host, "restore", *chosen.recovery(), **more)


def _require_room(host: Host, chosen: Plan) -> None:
    """Refuse what would fill the scratch directory: pgBackRest reports a full disk as a missing file."""
    place = host.options["scratch"]
    free, needed = host.free_bytes(place), chosen.size_bytes * 1.1
    if free < needed:
        sizes = (place, sized(free), sized(needed))
        raise BackupError("there is too little room in %s for the restored database: %s free, %s needed" % sizes)


def _archive_until_now(host: Host) -> None:
    """Close the segment that is being written, where the database responds: a recent time can be reached then."""
    with contextlib.suppress(BackupError):
        # In a statement of its own: its commit, the time that a restore can stop at, has to be in the segment that is
        # closed. In one with the switch it began the next segment, which was waited for until archive_timeout.
        host.query("SELECT pg_logical_emit_message(true, 'shiftmaster-backup', '')", timeout=30)
        segment = host.query("SELECT pg_walfile_name(pg_switch_wal() - 1)", timeout=30)[0][0]
        verification.wait_for_segment(host, segment, host.options["archive_timeout_seconds"])


def database_scratch(host: Host, request: dict) -> dict:
    """Restore it into a scratch directory, read all of it, and throw it away."""
    chosen = _planned(request)
    began = time.monotonic()
    with alone(host, "restore %s" % request["id"], host.options["lock_wait_seconds"]):
        _require_room(host, chosen)
        with _scratch_server(host, chosen) as server:
            _require_the_end(request, server.log_text())
            done = [verification.check_pages(host, server)]
            for name in host.database["databases"]:
                rows = server.query(verification.COUNTS_SQL, name)
                done.append("%s: %d tables, %d rows" % (name, len(rows), sum(int(row[3]) for row in rows)))
    return {"restored": chosen.text, "found": done, "seconds": round(time.monotonic() - began, 1)}


def database_copy(host: Host, request: dict) -> dict:
    """Restore the database into a new directory of postgres, for a rehearsal. It is not started."""
    chosen, directory, entry = _planned(request), request["directory"], pwd.getpwnam("postgres")
    with alone(host, "restore %s" % request["id"], host.options["lock_wait_seconds"]):
        if host.free_bytes(os.path.dirname(os.path.dirname(directory))) < chosen.size_bytes * 1.1:
            raise BackupError("there is too little room for a copy of %s" % sized(chosen.size_bytes))
        for path in (os.path.dirname(directory), directory):
            safe_files.make_directory(path, 0o700, entry.pw_uid, entry.pw_gid)
        _fetch(host, chosen, directory, *_wal_of(host, chosen, directory, ""))
    return {"restored": chosen.text}


def _text(name: str) -> str:
    return "'%s'" % name.replace("'", "''")


@contextlib.contextmanager
def _dir_of_tables(host: Host, request_id: str):
    """A directory for extracted files, owned by postgres in the end; it is removed after a failure."""
    directory = os.path.join(host.directory, "tables", request_id)
    make_dir(os.path.dirname(directory), 0o711)
    user, owner = pwd.getpwnam(verification.USER), pwd.getpwnam("postgres")
    safe_files.make_directory(directory, 0o700, user.pw_uid, user.pw_gid)
    try:
        yield directory
        safe_files.change_owner(directory, owner.pw_uid, owner.pw_gid)
    except BaseException:
        safe_files.remove_tree(directory)
        raise


def table(host: Host, request: dict) -> dict:
    """Take tables (a,b; of another database: other/a) out of a backup, into one dump."""
    chosen = _planned(request)
    database, _, given = request["table"].rpartition("/")
    database, names = database or host.database["databases"][0], given.split(",")
    with (
        alone(host, "restore %s" % request["id"], host.options["lock_wait_seconds"]),
        _dir_of_tables(host, request["id"]) as directory,
    ):
        path = os.path.join(directory, "%s.dump" % re.sub(r"[^A-Za-z0-9_.-]", "_", names[0]))
        _require_room(host, chosen)
        with _scratch_server(host, chosen) as server:
            words, rows = ["--no-password", "--format=custom", "--file", path], {}
            for name in names:
                # Without a schema it is of public, which search_path does not name (sql.SAFE_SEARCH_PATH).
                qualified = name if "." in name else "public.%s" % name
                as_written = ".".join('"%s"' % one for one in qualified.split("."))
                found = server.query(TREE_SQL % (_text(qualified), _text(as_written)), database)
                if not found:
                    why = "there is no table %s in database %s; it was looked for in this: %s"
                    raise BackupError(why % (name, database, chosen.text))
                if found[0][1] not in ("r", "p"):
                    raise BackupError("%s of database %s is no table, and has no rows of its own" % (name, database))
                rows[name] = int(server.query("SELECT count(*) FROM %s" % found[0][0], database)[0][0])
                words += ["--table=%s" % one[0] for one in found]
            server.client("pg_dump of %s" % given, "pg_dump", *words, database, write=[directory])
    return {"restored": chosen.text, "file": path, "rows": rows, "database": database}


# --- files -----------------------------------------------------------------------------------------------------------


def _require_target(host: Host, into: str) -> str:
    """Have the directory that a restore goes into: a new or empty one that belongs to root alone. Returns its path."""
    path = os.path.normpath(into)
    ours = [host.directory, host.options["state"], *[one for part in host.options["parts"] for one in part["paths"]]]
    if not os.path.isabs(path) or ".." in into.split("/") or path == "/":
        raise BackupError("into=%s is no directory to restore into" % into)
    # By its own name, and by the one that links make of it.
    for name in (path, os.path.realpath(path)):
        if backup_place.is_below(name, [*SYSTEM_DIRECTORIES, *ours]):
            raise BackupError(
                "into=%s belongs to the system or to what is saved: name a new directory elsewhere" % into
            )
    above = os.path.realpath(path)
    while above != "/":
        above = os.path.dirname(above)
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(above)
            # In /tmp nobody removes or renames what is root's.
            if not safe_files.is_trusted(status) and not (status.st_uid == 0 and status.st_mode & stat.S_ISVTX):
                raise BackupError("into=%s lies in a directory of another user, %s" % (into, above))
    try:
        descriptor = safe_files.open_directory(path, make_mode=0o700)
    except OSError as error:
        raise BackupError("into=%s cannot be used: %s" % (into, error))
    try:
        if os.listdir(descriptor):
            raise BackupError("into=%s is not empty: name a new or an empty directory" % into)
        if not safe_files.is_trusted(os.fstat(descriptor)):
            raise BackupError("into=%s belongs to another user, or others can write to it" % into)
    finally:
        os.close(descriptor)
    return path


def _owners(request: dict) -> dict:
    """{directory: (uid, gid)} of paths that belong to a user whatever owner the backup names."""
    try:
        return {path: tuple(pwd.getpwnam(user)[2:4]) for path, user in request.get("owners", {}).items()}
    except KeyError as error:
        raise BackupError("this host has no such user: %s" % error)


def _put_in_place(staged: str, paths: list, tops: list, owners: dict, count: int) -> None:
    try:
        backup_place.check(backup_place.of_directory(staged), paths, tops=tops, count=count)
        backup_place.place(backup_place.of_directory(staged), tops, owners)
    except (backup_place.PlaceError, OSError, RecursionError) as error:
        raise BackupError("the files were not restored: %s" % error)


def files(host: Host, request: dict, part: str) -> dict:
    """Put files back in their place, or into a directory; what they replace is saved before.

    restic writes by name, so it restores into a directory of root, and from there they are put in their place. What was
    read of another host (`of`) is packed for it instead: this host may only read there.
    """
    restic = Restic(host)
    of = request.get("of", "")
    options = part_of(host, part)
    below = pulled(host, part, of) if of else ""
    if of:
        options = next(one for source, one in sources(host, part) if source["name"] == of)
    requested = [os.path.normpath(path) for path in request.get("paths") or ()]
    foreign = [path for path in requested if not backup_place.is_below(path, options["paths"])]
    # Of several parts, each holds some of it.
    requested = [path for path in requested if path not in foreign]
    if foreign and (not requested or list(request.get("parts", ())) == [part]):
        raise BackupError("the backup holds nothing of %s" % ", ".join(foreign))
    paths = requested or options.get("restore_paths") or options["paths"]
    owners = {} if of or request.get("into") else _owners(request)
    target = _require_target(host, request["into"]) if request.get("into") else ""
    with alone(host, "restore %s" % request["id"], host.options["lock_wait_seconds"]):
        restic.unlock()
        label = restic.full_id(part, request[part]["run"]) or request[part]["label"]
        there = restic.nodes(label)

        def of_it(one: str) -> list:
            """What the snapshot holds of a path: itself, and what is below it."""
            place = below + one
            return [node for node in there if node["path"] == place or node["path"].startswith(place.rstrip("/") + "/")]

        lacking = [one for one in paths if not of_it(one)]
        # What was typed has to be there; of several parts, each holds some of it.
        if lacking and (requested and list(request.get("parts", ())) == [part] or len(lacking) == len(paths)):
            raise BackupError("the backup holds nothing of %s" % ", ".join(lacking))
        chosen = {node["path"]: node for one in paths for node in of_it(one) if node["type"] != "dir"}
        count = sum(node["type"] in ("file", "symlink") for node in chosen.values())
        kept, staged = "", os.path.join(host.directory, "outgoing", request["id"])
        into = target or staged
        if not target:
            # Packed for another host, it is there twice.
            needed, free = sum(node.get("size", 0) for node in chosen.values()) * (2 if of else 1), host.free_bytes()
            if free < needed:
                sizes = (host.directory, sized(free), sized(needed))
                raise BackupError("there is too little room in %s for the restored files: %s free, %s needed" % sizes)
            try:
                kept = restic.backup(part_of(host, part), request["id"], "before-restore")[0]["snapshot_id"]
            except BackupError as error:
                # A host that was lost sends nothing.
                if not of:
                    raise
                host.log("restore %s: what %s has now could not be saved: %s" % (request["id"], of, error))
            make_dir(os.path.dirname(staged), 0o711)
            shutil.rmtree(staged, ignore_errors=True)
            os.mkdir(staged, 0o700)
        patterns = [re.sub(r"([\\*?\[\]])", r"\\\1", below + path) for path in paths]
        where = target + below if target else "" if of else "/"
        response = {"restored": "%d files" % len(chosen), "count": count, "into": where, "kept": kept, "paths": paths}
        try:
            # What is of another host lies below its copy's directory, in the snapshot and where it is restored.
            restic.restore("restic restore", label, into, *patterns)
            if of and not target:
                # By numbers: this host may have other names for them.
                response["archive"] = staged + ".tar"
                words = ("--numeric-owner", "--file", response["archive"], "--directory", staged + below, ".")
                host.run("packing files", "tar", "--create", *words)
            elif not target:
                tops = [*(options.get("restore_paths") or ()), *options["paths"]]
                _put_in_place(staged, paths, tops, owners, count)
        finally:
            if not target:
                shutil.rmtree(staged, ignore_errors=True)
    return response


COMMANDS = {
    "plan": plan,
    "free": free,
    "here": database_here,
    "scratch": database_scratch,
    "copy": database_copy,
    "table": table,
    "received": pack_received,
    "wal_again": wal_again,
    "files": lambda host, request: files(host, request, "files"),
    "configuration": lambda host, request: files(host, request, "configuration"),
}


def main(host: Host, what: str, stream) -> int:
    """One step of a restore: the request is read as JSON, and the response printed as JSON."""
    if what not in COMMANDS:
        raise BackupError("there is no %s; there are: %s" % (what, ", ".join(COMMANDS)))
    try:
        request = json.load(stream)
        request["id"]
    except (ValueError, KeyError, TypeError) as error:
        why = "the request has to be on standard input, as JSON with an id (%s: %s), as restore.yml sends it"
        raise BackupError(why % (type(error).__name__, error))
    response, code = {}, 0
    try:
        response = COMMANDS[what](host, request)
    except Exception as error:
        response, code = {"failed": message_of(error)}, 1
    if what != "plan" and (what != "free" or code):
        host.log("restore %s, %s: %s" % (request["id"], what, response.get("failed") or response.get("restored")))
    # The caller may be gone.
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(response), flush=True)
    return code
