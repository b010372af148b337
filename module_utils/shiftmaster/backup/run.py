"""One run of the backup: every part saved, verified and verified by a restore, then one manifest and one report.

A part that fails does not keep the others from being saved. What a killed run leaves is a manifest that has not ended:
report_killed() ends it as failed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid

from ..host import points, safe_files
from ..host.printable import sized
from ..host.safe_files import sha256
from ..host.sql import COUNT_MIGRATIONS
from . import archive, catalogue, plan, report, results, sandbox, verification
from . import manifest as manifests
from .files import Restic, check_lock, names_of_parts, part_of, pulled, sources
from .host import (
    LOCK_WAIT_SECONDS,
    POSTGRES,
    RUN,
    BackupError,
    Host,
    alone,
    deploy_of,
    make_dir,
    message_of,
    parsed,
    plain,
    read_lock,
)
from .offsite import Offsite, fetched_at
from .prune import prune

SIZE_SQL = """
SELECT sum(pg_database_size(oid))::bigint, (SELECT system_identifier FROM pg_control_system()),
       (SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int) FROM pg_database
"""
# A killed pgBackRest leaves a worker that holds the stanza's lock for about 25 s.
LOCKED_SECONDS = 60
# With so little a repository is full.
FULL_BYTES = 16 * 1024 * 1024
# From the death of a run to the start of the unit after it.
JUST_NOW_SECONDS = 60
DAY = 86400
# Of a release's manifest.
MANIFEST_BYTES = 1 << 20


def new_run_id() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + uuid.uuid4().hex[:6]


def request_of(run_id: str) -> dict:
    """The request of a person or a playbook for this run; a schedule requests nothing."""
    path = os.path.join(RUN, "requests", run_id + ".json")
    try:
        with open(path, encoding="utf-8") as stream:
            request = json.load(stream)
        os.unlink(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BackupError("the request %s cannot be read: %s" % (path, error))
    return request


class Run:
    def __init__(self, host: Host, run_id: str, request: dict):
        self.host, self.request, self.run_id = host, request, run_id
        self.directory = os.path.join(host.directory, "manifests")
        self.path = os.path.join(self.directory, run_id + ".json")
        self.history = manifests.history(self.directory)
        self.damaged = False
        self.damaged_labels = set()  # Of backups and dumps that no restore would bring back.
        self.restic = Restic(host)
        only = [name for name in request.get("only", "").split(",") if name]
        unknown = sorted(set(only) - set(manifests.PARTS))
        if unknown:
            raise BackupError("there is no part %s; there are: %s" % (", ".join(unknown), ", ".join(manifests.PARTS)))
        wanted = names_of_parts(host)
        wanted += ["database"] if host.database["databases"] else []
        wanted += ["logical"] if host.database["databases"] and ("logical" in only or self.logical_due()) else []
        self.parts = [name for name in manifests.PARTS if name in wanted and (not only or name in only)]
        if not self.parts:
            raise BackupError("nothing of what was requested is set up to be saved on this host")

    # -- the past ----------------------------------------------------------------------------------------------------

    def last(self, part: str, **wanted) -> dict:
        """The newest good result of a part, {} where there is none."""
        for manifest in reversed(self.history.manifests):
            found = manifest["parts"].get(part, {})
            if found.get("result") in manifests.GOOD and all(found.get(key) == value for key, value in wanted.items()):
                return found
        return {}

    def older_than(self, part: dict, days: float) -> bool:
        """Half a day earlier: a schedule with jitter must not wait for a day more."""
        return not part or time.time() - manifests.seconds_of(part["ended"]) > (days - 0.5) * DAY

    def logical_due(self) -> bool:
        """Also where the last attempt failed: it is not left so for a week."""
        days = self.host.options["logical_interval_days"]
        tried = [one["parts"]["logical"] for one in self.history.manifests if "logical" in one["parts"]]
        failed = bool(tried) and tried[-1]["result"] not in manifests.GOOD
        return days > 0 and (failed or self.older_than(self.last("logical"), days))

    # -- the run -----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        manifests.write(self.path, self.manifest)

    def execute(self) -> int:
        """Do all of it; returns the exit code."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        if os.path.lexists(self.path):
            # Its manifest is the verification of that backup.
            raise BackupError("there has been a run %s: a new one needs another name, or none" % self.run_id)
        self.manifest = manifests.begin(
            self.run_id, self.host.options["host"], self.parts, time.time(), release=self.release(),
            started_by=self.request.get("by", "schedule"),
        )  # fmt: skip
        self.save()
        self.host.log("backup %s of %s begins" % (self.run_id, ", ".join(self.parts)))
        try:
            self.wait_for_deploy()
            for part in self.parts:
                self.one(part)
            # Of another host it is known by now.
            self.manifest["release"].update(self.release())
            self.check_dumps()
            self.prune()
            self.copy_offsite()
        except Exception as error:
            manifests.note(self.manifest, [("not_done", message_of(error), "")])
            self.damaged = self.damaged or not isinstance(error, BackupError)
        for problem in self.history.problems:
            manifests.note(self.manifest, [("manifest_damaged", problem, "")])
        manifests.finish(self.manifest, time.time(), failed=self.damaged)
        self.save()
        return report.conclude(self.host, self.manifest)

    def wait_for_deploy(self) -> None:
        """A deploy changes code and schema: what is saved shall be one of the two, not both."""
        if self.request.get("within_deploy"):
            return
        deadline, reported = time.monotonic() + self.host.options["lock_wait_seconds"], ""
        while True:
            own, holder = self.deploy_that_runs()
            if not holder:
                return
            if time.monotonic() >= deadline:
                why = "%s runs for longer than %d s" % (holder, self.host.options["lock_wait_seconds"])
                if own:
                    raise BackupError(why)
                # Another host may be an attacker's: with its lock alone it would keep everything from being saved.
                manifests.note(self.manifest, [("deploy_runs", why + "; what was saved may be of two releases", "")])
                self.damaged = True
                return
            if not reported:
                reported = holder
                self.host.log("waiting for %s" % holder)
            time.sleep(1)

    def deploy_that_runs(self) -> tuple:
        """(whether it runs on this host, who deploys, on this host or on one that is read; "" where nobody does)."""
        path = self.host.options["deploy_lock"]
        holder = deploy_of(read_lock(path), self.run_id) if path else ""
        if holder:
            return True, holder
        texts = [check_lock(self.host, source) for source, _part in sources(self.host, "files")]
        return False, next(filter(None, (deploy_of(text, self.run_id) for text in texts)), "")

    def one(self, part: str) -> None:
        manifests.start(self.manifest, part, time.time())
        self.save()
        points.reach("backup_%s" % part)
        try:
            if part == "database":
                found = self.save_database()
            elif part == "logical":
                found = self.save_logical()
            else:
                found = self.save_files(part)
            result = "warning" if found.get("problems") else "succeeded"
            manifests.end(self.manifest, part, result, time.time(), **found)
        # A part that cannot be saved is reported; the others are saved in any case.
        except Exception as error:
            text = message_of(error)
            manifests.end(self.manifest, part, "failed", time.time(), [("failed", text, "")])
            self.host.log("%s failed: %s" % (part, text))
        self.save()

    def check_dumps(self) -> None:
        """Read every dump that is kept once more: a disk that loses a byte reports nothing by itself.

        One that is damaged fails the runs until it has expired, or somebody has removed it.
        """
        if self.request.get("within_deploy"):
            return
        for part in [one["parts"].get("logical", {}) for one in self.history.manifests]:
            directory = os.path.join(self.host.directory, "logical", part.get("label", ""))
            if part.get("result") in manifests.GOOD and os.path.isdir(directory):
                damaged = [name for name, wanted in part["checksums"].items() if not holds(directory, name, wanted)]
                if damaged:
                    what = "dump %s is damaged: %s" % (part["label"], ", ".join(sorted(damaged)[:3]))
                    manifests.note(self.manifest, [("dump_damaged", what, part["label"])])
                    self.damaged_labels.add(part["label"])
                    self.damaged = True

    def prune(self) -> None:
        """A backup that is good stays good where something old could not be removed: that is a warning."""
        try:
            if self.history.problems:
                raise BackupError(
                    "what a damaged manifest has verified is not known; move it out of %s, when what it saved may go"
                    % self.directory
                )
            removed, problems = prune(self.host, self.manifest, self.history.manifests, self.damaged_labels)
        except Exception as error:
            removed, problems = [], [("not_pruned", "what is old could not be removed: %s" % message_of(error), "")]
        manifests.note(self.manifest, problems)
        if removed:
            self.manifest["removed"] = list(removed)
            self.host.log("removed: %s" % ", ".join(removed))

    def copy_offsite(self) -> None:
        """What could not be copied off-site is good here, and the run has failed. A deploy does not wait for it."""
        good = [part for part in self.manifest["parts"].values() if part["result"] in manifests.GOOD]
        if not self.host.options["offsite"] or not good or self.request.get("within_deploy"):
            return
        points.reach("backup_offsite")
        try:
            remote = Offsite(self.host)
            if remote.init():
                self.host.log("made the off-site repository")
            seen = remote.save(self.manifest)
            for part in good:
                part["offsite"] = seen
            self.host.log("off-site: %s" % seen)
            # What keeps the backups here from going, such as a clock that was moved, keeps those outside.
            suspicions = {"clock", "gap", "not_pruned"} & {one["code"] for one in self.manifest["problems"]}
            if len(good) == len(self.parts) and not suspicions:
                remote.prune()
        except Exception as error:
            manifests.note(self.manifest, [("offsite_failed", "not copied off-site: %s" % message_of(error), "")])
            self.damaged = True

    def release(self) -> dict:
        """Which release is live: according to role shiftmaster's files, here or in the copy of another host's."""
        roots = [self.host.options["application_root"]]
        for source, part in sources(self.host, "files"):
            roots += [pulled(self.host, "files", source["name"]) + path for path in part["paths"]]
        for root in filter(None, roots):
            try:
                # Not by the links themselves: in a copy they lead elsewhere, and an attacker may have sent them.
                root = os.path.realpath(root)
                slot = os.readlink(os.path.join(root, "active"))
                name = os.path.basename(os.readlink(os.path.join(root, slot, "release")))
                path = os.path.join(root, "releases", name, "manifest.json")
                if os.path.realpath(path) != path:
                    continue
                found = parsed(safe_files.read_bytes(path, MANIFEST_BYTES))
                version, revision = (str(found.get(key, "")) for key in ("version", "revision"))
            except (OSError, ValueError, AttributeError):
                continue
            texts = {"name": plain(name), "version": plain(version), "revision": plain(revision)}
            return dict(texts, migrations=self.migrations())
        return {}

    def migrations(self):
        try:
            return int(self.host.query(COUNT_MIGRATIONS, self.host.database["databases"][0])[0][0])
        except (BackupError, IndexError, ValueError):
            return None

    def seen(self, part: str, how: str, what: str) -> None:
        manifests.verified(self.manifest, part, how, True, what, time.time())

    # -- the database ------------------------------------------------------------------------------------------------

    def save_database(self) -> dict:
        size, system_id, timeline = (int(value) for value in self.host.query(SIZE_SQL)[0])
        for name in self.host.database["databases"]:
            self.host.query("SELECT 1", name)  # A missing or inaccessible one is reported before anything begins.
        stanza = catalogue.stanza_of(self.host.info(), self.host.stanza)
        # One that holds no backup yet is well. One that cannot be read, or is of another database, is left alone.
        problems = catalogue.stanza_result(stanza, system_id).problems
        blocking = [one.what for one in problems if not one.where and one.code != "no_backup"]
        if blocking:
            raise BackupError("; ".join(blocking))
        wish = "full" if self.fetched_since() else self.request.get("kind", "auto")
        verified, days = manifests.verifications(self.history.manifests), self.host.options["full_interval_days"]
        state = {"damaged": self.failed_backups(), "gapped": archive.gapped(self.host, stanza, timeline)}
        wish = "" if wish == "auto" else wish
        kind, why = plan.kind_today(stanza, verified, time.time(), days, system_id, timeline, wish=wish, **state)
        self.host.log("database: %s backup, %s" % ({"full": "full"}.get(kind, "incremental"), why))
        self.require_room(plan.database_bytes(stanza, kind, size), size, "the backup")
        self.back_up(kind, [backup.label for backup in stanza.backups])
        stanza = catalogue.stanza_of(self.host.info(), self.host.stanza)
        backup = stanza.of(1)[-1]
        if backup.stopped < manifests.seconds_of(self.manifest["parts"]["database"]["started"]):
            raise BackupError("pgBackRest reports that it is done, but the repository has no new backup")
        # Known even where it is not verified in the end: nothing is built upon such a one.
        self.manifest["parts"]["database"].update(kind=backup.kind, label=backup.label)
        chain = stanza.chain(backup.label, 1)
        result = catalogue.stanza_result(stanza, system_id).concerning([one.label for one in chain])
        if not result.good:
            raise BackupError(str(result))
        end = verification.mark(self.host, self.run_id)
        verification.wait_for_segment(self.host, end.segment, self.host.options["archive_timeout_seconds"])
        self.verify_repository(stanza, chain, timeline, end.segment)
        try:
            verified = verification.prove(self.host, backup.label, end)
        except BackupError as error:
            manifests.verified(self.manifest, "database", manifests.RESTORED, False, str(error), time.time())
            raise
        self.seen("database", manifests.RESTORED, ", ".join(verified["how"]) + " (%s s)" % verified["seconds"])
        manifests.note(self.manifest, verification.elsewhere(self.host))
        rows = {"%s.%s" % (base, name): one.rows for base, tables in end.tables.items() for name, one in tables.items()}
        return {
            "kind": backup.kind,
            "label": backup.label,
            "location": os.path.join(self.host.directory, "pgbackrest"),
            "size_bytes": backup.size,
            "added_bytes": backup.repo_size,
            "wal": {"start": backup.wal_start, "stop": backup.wal_stop, "verified": end.segment},
            "restore_point": end.name,
            "system_id": system_id,
            "rows": rows,
            "tools": self.versions(),
        }

    def fetched_since(self) -> bool:
        """Whether the backups came from outside since the last good one: then WAL of between is missing."""
        last = self.last("database")
        return fetched_at(self.host) > (manifests.seconds_of(last["ended"]) if last else 0)

    def failed_backups(self) -> list:
        """Labels of runs that failed after their backup: nothing is built upon an unverified one."""
        parts = [one["parts"].get("database", {}) for one in self.history.manifests]
        return [part["label"] for part in parts if part.get("label") and part["result"] == "failed"]

    def require_room(self, needed: int, size: int, what: str) -> None:
        """Refuse beforehand what would fill a disk: so many bytes, and a test restore of that size."""
        needs = {self.host.directory: needed}
        scratch = self.host.options["scratch"]
        make_dir(scratch, 0o711)
        same = os.stat(scratch).st_dev == os.stat(self.host.directory).st_dev
        place = self.host.directory if same else scratch
        needs[place] = needs.get(place, 0) + plan.restore_bytes(size)
        for directory, bytes_ in needs.items():
            disk = os.statvfs(directory)
            found = plan.room(
                bytes_, disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize, directory,
                what + " with its test restore" if directory == place else what,
            )  # fmt: skip
            if not found.good:
                raise BackupError(str(found))

    def back_up(self, kind: str, labels: list) -> None:
        """Have pgBackRest make a backup. labels: of those that are there, which stay as they are."""
        deadline = time.monotonic() + LOCKED_SECONDS
        # After three failures PostgreSQL waits a minute before it archives again, as long as pgBackRest by default.
        words = (
            "--type=%s" % kind, "--archive-timeout=%d" % self.host.options["archive_timeout_seconds"], "backup",
        )  # fmt: skip
        while True:
            try:
                if self.host.database["local"]:
                    self.host.pgbackrest("pgbackrest backup", *words)
                else:
                    unit = "shiftmaster-backup-pgbackrest-%d" % os.getpid()
                    self.host.run_unit("pgbackrest backup", unit, *backup_words(self.host, unit, labels), *words)
                return
            except BackupError as error:
                free = self.host.free_bytes(os.path.join(self.host.directory, "pgbackrest"))
                if free < FULL_BYTES:
                    raise BackupError("%s; the repository has %s left" % (error, sized(free)))
                # 050: another process of pgBackRest holds the stanza.
                if "[050]" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(3)

    def verify_repository(self, stanza, chain: list, timeline: int, verified: str) -> None:
        """Read the repository and look for gaps in its WAL. A fault of this chain, or of the WAL after it,
        fails this run; other faults are reported: older backups may be needed for an older point in time."""
        # The log, which alone names each file, goes where the report does not.
        words = ("--log-level-console=off", "--log-level-stderr=info", "--output=text", "--verbose", "verify")
        done = self.host.pgbackrest("pgbackrest verify", *words, restore=True)
        damaged = results.damaged_wal(done.stderr)
        found = results.verify_text(done.stdout + done.stderr, stanza)
        gaps = archive.inspect(self.host, stanza, timeline, verified, damaged)
        labels, others = {one.label for one in chain}, {one.label for one in stanza.backups}
        first = min(one.wal_start[8:] for one in chain)
        older = bool(damaged) and all(name[8:] < first for name in damaged)
        problems = [*found.problems, *gaps.problems, *archive.manifests(self.host, stanza)]
        ours = [
            one for one in problems if not one.where or one.where in labels or one.where not in others and not older
        ]
        # A gap after a backup removes later points in time, and not the backup.
        gap_codes = ("wal_missing", "history_missing")
        self.damaged_labels |= {one.where for one in problems if one.code not in gap_codes} & (labels | others)
        if ours:
            raise BackupError("; ".join(problem.what for problem in ours))
        # An older backup that is damaged fails the runs until it has expired, but no deploy: today's is good. A gap of
        # the past is a warning, and has an alert of its own: a host that moved away and back has one in between.
        past = [problem for problem in problems if problem.code not in gap_codes]
        self.damaged = self.damaged or bool(past) and not self.request.get("within_deploy")
        manifests.note(self.manifest, problems)
        self.seen("database", "verify", "checksums of this backup and of what it needs, and its WAL without a gap")

    def versions(self) -> dict:
        commands = {"pgbackrest": ("pgbackrest", "version"), "restic": ("restic", "version")}
        commands["postgresql"] = (os.path.join(self.host.bin, "postgres"), "--version")
        outputs = {name: self.host.run(name, *command).stdout for name, command in commands.items()}
        return {name: re.search(r"\d+(\.\d+)+", text).group() for name, text in outputs.items()}

    # -- logical dumps -----------------------------------------------------------------------------------------------

    def save_logical(self) -> dict:
        """Dump each database into a directory, load it into a new server, and note the checksum of each file."""
        size = int(self.host.query(SIZE_SQL)[0][0])
        self.require_room(self.last("logical").get("size_bytes", size), size, "the dump")
        place = os.path.join(self.host.directory, "logical", self.run_id)
        shutil.rmtree(place + ".part", ignore_errors=True)
        os.makedirs(place + ".part", mode=0o700)
        # Before 16 there is gzip alone.
        compression = "zstd:3" if int(self.host.database["version"]) >= 16 else "6"
        jobs, checksums, size = "--jobs=%d" % self.host.options["process_max"], {}, 0
        try:
            tables = verification.counted(self.host)
            for name in self.host.database["databases"]:
                dump = os.path.join(place + ".part", name)
                self.host.run(
                    "pg_dump of %s" % name,
                    os.path.join(self.host.bin, "pg_dump"), "--no-password", "--format=directory",
                    "--compress=%s" % compression, jobs, "--lock-wait-timeout=%ds" % LOCK_WAIT_SECONDS,
                    "--file", dump, name,
                    env=self.host.environment(name),
                )  # fmt: skip
                for directory, _directories, files in os.walk(dump):
                    for file in files:
                        path = os.path.join(directory, file)
                        checksums[os.path.relpath(path, place + ".part")] = sha256(path)
                        size += os.path.getsize(path)
            self.seen("logical", manifests.RESTORED, verification.prove_dumps(self.host, place + ".part", tables))
            with open(os.path.join(place + ".part", "SHA256SUMS"), "w", encoding="utf-8") as stream:
                stream.writelines("%s  %s\n" % (checksums[path], path) for path in sorted(checksums))
            os.rename(place + ".part", place)
        except BaseException:
            shutil.rmtree(place + ".part", ignore_errors=True)
            raise
        return {
            "label": self.run_id,
            "location": place,
            "size_bytes": size,
            "added_bytes": size,
            "checksums": checksums,
            "tools": {"pg_dump": self.versions()["postgresql"]},
        }

    # -- files -------------------------------------------------------------------------------------------------------

    def save_files(self, name: str) -> dict:
        part = part_of(self.host, name)
        self.restic.unlock()
        summary, problems = self.restic.backup(part, self.run_id)
        # What the other hosts have sent is good; the run has failed, and names the one that sent nothing.
        self.damaged = self.damaged or bool(problems)
        snapshot = self.restic.full_id(name, self.run_id) or summary["snapshot_id"]
        self.seen(name, "compared", self.restic.compare(snapshot, os.path.join(self.host.options["scratch"], name)))
        self.seen(name, "read", self.restic.check())
        return {
            "problems": problems,
            "label": snapshot,
            "location": self.restic.repository,
            "size_bytes": int(summary["total_bytes_processed"]),
            "added_bytes": int(summary.get("data_added_packed", summary["data_added"])),
            "tools": {"restic": self.versions()["restic"]},
        }


def backup_words(host: Host, unit: str, labels: list) -> list:
    """Return the words that run pgBackRest for a backup of another host, which can change no other backup.

    That host names the files. pgBackRest takes a name with `..`, and writes out of the backup that it makes (tried).
    """
    repository = os.path.join(host.directory, "pgbackrest")
    more = ["User=" + POSTGRES, "CapabilityBoundingSet=", "MemoryMax=50%", "RestrictSUIDSGID=yes", *sandbox.NETWORK]
    # Labels are times of the host's zone, and have to grow.
    read = ["/etc/pgbackrest.conf", "/etc/passwd", "/etc/group", "-/etc/localtime", *sandbox.NETWORK_FILES]
    read += host.options["tls_directories"]
    # The list may name one that is gone.
    read += ["-" + os.path.join(repository, "backup", host.stanza, label) for label in labels]
    read += [
        "-" + os.path.join(repository, name, stanza) for name in ("archive", "backup") for stanza in host.stanzas[1:]
    ]
    write = [os.path.join(repository, name) for name in ("archive", "backup")]
    write += ["/var/lib/pgbackrest", "/var/log/pgbackrest"]
    command = ["/usr/bin/pgbackrest", "--stanza=%s" % host.stanza]
    return [*sandbox.words(unit, more, read, write), *command]


def holds(directory: str, name: str, wanted: str) -> bool:
    """Whether a file is there with this SHA-256."""
    try:
        return sha256(os.path.join(directory, name)) == wanted
    except OSError:
        return False


def run(host: Host, run_id: str) -> int:
    """The unit's complete work; returns its exit code."""
    request, waits = {}, host.options["lock_wait_seconds"]
    try:
        request = request_of(run_id)
        with alone(host, "backup %s by %s" % (run_id, request.get("by", "schedule")), waits):
            report_killed(host)
            return Run(host, run_id, request).execute()
    except (BackupError, OSError) as error:
        return report.not_begun(host, run_id, request, str(error))


def report_killed(host: Host) -> int:
    """End what killed runs have left, as failed, and report it; returns how many there were."""
    directory, count = os.path.join(host.directory, "manifests"), 0
    for manifest in manifests.history(directory).manifests:
        if manifest["ended"] is None:
            manifests.stopped(manifest, time.time(), "the run was killed, or its host went down")
            manifests.write(os.path.join(directory, manifest["run_id"] + ".json"), manifest)
            report.conclude(host, manifest)
            count += 1
    return count


def after_a_killed_one(host: Host, unit: str, reported: bool) -> None:
    """For the unit that follows a failed one: end and report what it could not report itself.

    A restore that has the lock looks for nobody, so its end is waited for; not at boot, where all else would wait, too.
    """
    began = time.time()
    try:
        with alone(host, "report of a killed backup", float("inf") if unit else 0):
            if not report_killed(host) and not reported and not reported_meanwhile(host, began):
                report.not_begun(host, unit, {}, "it ended before it began: journalctl -u %s" % unit)
    except BackupError:
        pass  # The next run looks for killed ones before anything else.


def reported_meanwhile(host: Host, began: float) -> bool:
    """Whether another run, which came by the lock before us, has ended a killed one since that was killed."""
    since = manifests.timestamp(began - JUST_NOW_SECONDS)
    found = manifests.history(os.path.join(host.directory, "manifests")).manifests
    lately = [one for one in found if one["ended"] and one["ended"] >= since]
    return any(problem["code"] == "stopped" for one in lately for problem in one["problems"])
