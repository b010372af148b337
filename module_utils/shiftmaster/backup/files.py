"""Files, media and configuration: saved with restic, read back and compared.

restic returns 0 where one of its paths is missing and where a pack has a flipped byte. So paths are looked at before,
its responses are read, and what was saved is restored and compared with what is on the host.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import json
import os
import random
import re
import shutil
import stat

from ..host import envfile, safe_files
from ..host.printable import printable
from ..host.safe_files import sha256
from ..monitoring.metrics import timestamp_of
from . import results, sandbox
from .host import RESPONSE_BYTES, RUN, BackupError, Host, make_dir, parsed
from .room import room_for_others

# So much of a snapshot is restored as a test when it is larger: a share of its files, chosen again each time.
SAMPLE_FILES = 200
SAMPLE_BYTES = 256 << 20
# Of a path with its end; a file whose path is longer where it would be restored is not in that share.
PATH_BYTES = 4096
# The time of a file may lag the clock by this much.
TICK_SECONDS = 0.02
# A repository up to this size is read completely each day.
READ_ALL_BYTES = 1 << 30
# What writes files of another host, or of a snapshot, keeps their owners.
WRITER = ["CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID", "MemoryMax=50%"]
RECEIVER = [*WRITER, *sandbox.NETWORK]


class Restic:
    def __init__(self, host: Host):
        self.host = host
        self.repository = os.path.join(host.directory, "restic")
        # Options of restic itself, before its command.
        self.words = []
        self.kind, self.append_only = "restic", False
        self.settings = {
            "RESTIC_REPOSITORY": self.repository,
            "RESTIC_PASSWORD_FILE": host.options["restic_password_file"],
            "RESTIC_CACHE_DIR": os.path.join(host.options["state"], "restic-cache"),
            "RESTIC_PROGRESS_FPS": "0.01",
        }
        # What it can open while it saves, beyond what is saved: names of owners, and the time zone of its snapshots.
        self.needed, self.written = ["/etc/passwd", "/etc/group", "-/etc/localtime"], [self.repository]
        self.network = sandbox.NO_NETWORK

    @property
    def env(self) -> dict:
        return dict(os.environ, **self.settings)

    def run(self, what: str, *arguments: str, **more):
        return self.host.run(what, "restic", "--quiet", *self.words, *arguments, env=self.env, **more)

    def init(self) -> bool:
        """Make the repository where there is none; never next to one that cannot be read."""
        if os.path.exists(os.path.join(self.repository, "config")):
            return False
        os.makedirs(self.repository, mode=0o700, exist_ok=True)
        if os.listdir(self.repository):
            raise BackupError("%s is no repository of restic, but not empty either" % self.repository)
        self.run("restic init", "init")
        return True

    def change_password(self) -> bool:
        """Let today's password open the repository, and earlier ones no longer; returns whether something was changed.

        What was saved stays as it is: each password encrypts the same key. Where only additions are accepted, the host
        of the repository removes the earlier ones.
        """
        path, changed = self.host.options.get("previous_passwords_file"), False
        if not path:
            return False
        with open(path, encoding="utf-8") as stream:
            previous = json.load(stream)[self.kind]
        for password in previous:
            env = {name: value for name, value in self.env.items() if name != "RESTIC_PASSWORD_FILE"}
            env["RESTIC_PASSWORD"] = password
            words = ("restic", "--quiet", *self.words, "key")
            done = self.host.run("restic key list", *words, "list", "--json", env=env, fine=range(256), timeout=300)
            if done.returncode:
                continue  # It opens nothing any more.
            if self.run("restic cat", "cat", "config", fine=range(256)).returncode:
                new = "--new-password-file=" + self.settings["RESTIC_PASSWORD_FILE"]
                self.host.run("restic key add", *words, "add", new, env=env)
                changed = True
            if not self.append_only:
                old = next(one["id"] for one in json.loads(done.stdout) if one["current"])
                self.run("restic key remove", "key", "remove", old)
                changed = True
        return changed

    def unlock(self) -> None:
        """Remove locks whose process is gone; restic itself evaluates that, on this host alone."""
        self.change_password()
        self.run("restic unlock", "unlock")

    def snapshots(self, *tags: str) -> list:
        done = self.run("restic snapshots", "snapshots", "--json", *["--tag=%s" % tag for tag in tags])
        return json.loads(done.stdout or "[]")

    def full_id(self, part: str, run_id: str) -> str:
        """The full id of the snapshot of a part in a run, "" where it is not there.

        A snapshot that was copied has another id than in the manifest, and restic 0.14 prints the short one.
        """
        found = self.snapshots("%s,run=%s" % (part, run_id))
        return found[-1]["id"] if found else ""

    def backup(self, part: dict, run_id: str, tag: str = "") -> tuple:
        """Save a part's paths; returns (restic's summary, problems of other hosts).

        Raises BackupError where a path of this host is missing.
        """
        there = required(part, [path for path in part["paths"] if sandbox.existing(path)])
        check_size(self.host, there)
        paths, problems = list(there), []
        for source, one in sources(self.host, part["name"]):
            try:
                paths.append(pull(self.host, source, one))
            except BackupError as error:
                problems.append(("source_failed", str(error), source["name"]))
                # Its copy of the last run; what other hosts have is saved in any case.
                copy = pulled(self.host, part["name"], source["name"])
                paths += [copy] if os.path.isdir(copy) else []
        if problems and not paths:
            raise BackupError("; ".join(what for _code, what, _where in problems))
        command = (
            "restic", *self.words, "backup", "--json", "--host", self.host.options["host"],
            "--tag", tag or part["name"], "--tag", "run=%s" % run_id,
            *["--exclude=%s" % pattern for pattern in part["exclude"]], "--", *paths,
        )  # fmt: skip
        what = "restic backup of %s" % part["name"]
        written = [self.settings["RESTIC_CACHE_DIR"], *self.written]
        done = self.confined(what, command, sandbox.READER, paths, written, fine=range(256))
        summary, found = results.restic_backup(done.returncode, done.stdout, done.stderr)
        if not found.good:
            raise BackupError("restic backup of %s: %s" % (part["name"], found))
        return summary, problems

    def restore(self, what: str, snapshot: str, target: str, *patterns: str, **more) -> None:
        """Restore into a directory, where restic can write to nothing else.

        A snapshot may be of a backup server that was taken over. Where a link and a directory in it have the same name,
        restic writes through the link (tried).
        """
        os.makedirs(target, mode=0o700, exist_ok=True)
        words = ("restore", snapshot, "--no-cache", "--no-lock", "--target", target)
        command = ("restic", "--quiet", *self.words, *words, *["--include=" + pattern for pattern in patterns])
        self.confined(what, command, WRITER, self.written, [target], **more)

    def confined(self, what: str, command: tuple, properties: list, read: list, write: list, **more):
        """Run restic where it can open these paths, and no other file."""
        unit = "shiftmaster-backup-restic-%d" % os.getpid()
        os.makedirs(self.settings["RESTIC_CACHE_DIR"], mode=0o700, exist_ok=True)
        with open(self.settings["RESTIC_PASSWORD_FILE"], encoding="utf-8") as stream:
            secret = {"RESTIC_PASSWORD": stream.read().strip()}
        values = {name: value for name, value in self.settings.items() if not name.endswith("PASSWORD_FILE")}
        # Not in the file system of restic, and not in its arguments.
        path = os.path.join(RUN, "restic.env")
        make_dir(RUN, 0o755)
        safe_files.write(path, envfile.render({**values, **secret}).encode(), 0o600)
        try:
            lines = [*properties, *self.network, "EnvironmentFile=" + path]
            words = sandbox.words(unit, lines, [*read, *self.needed], write)
            # systemd would fill in variables.
            return self.host.run_unit(what, unit, *words, *(word.replace("$", "$$") for word in command), **more)
        finally:
            os.unlink(path)

    def check(self) -> str:
        """Read the repository; of a large one a tenth each day, and all of it on Sundays."""
        size = sum(
            os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(self.repository) for name in names
        )
        today = datetime.datetime.now(datetime.timezone.utc).timetuple()
        if size <= READ_ALL_BYTES or today.tm_wday == 6:
            self.evaluated_check("--read-data")
            return "all of the repository read"
        tenth = today.tm_yday % 10 + 1
        self.evaluated_check("--read-data-subset=%d/10" % tenth)
        return "tenth %d of the repository read" % tenth

    def evaluated_check(self, how: str) -> None:
        done = self.host.run("restic check", "restic", *self.words, "check", how, env=self.env, fine=range(256))
        found = results.restic_check(done.returncode, done.stdout, done.stderr)
        if not found.good:
            raise BackupError("restic check: %s" % found)

    def listed(self, snapshot: str) -> list:
        """Return what restic reports about a snapshot: itself, then its nodes, which have a type."""
        done = self.run("restic ls", "ls", "--json", snapshot)
        # A name may hold what splitlines() takes for the end of a line.
        return [json.loads(line) for line in done.stdout.split("\n") if line]

    def nodes(self, snapshot: str) -> list:
        """What a snapshot holds: files, directories, links."""
        return [one for one in self.listed(snapshot) if "type" in one]

    def compare(self, snapshot: str, directory: str) -> str:
        """Restore files into a directory and compare each with what is on the host; all of a small snapshot."""
        target = os.path.join(directory, "files")
        entries = self.listed(snapshot)
        there = [(one["path"], one["size"]) for one in entries if one.get("type") == "file"]
        if not there:
            raise BackupError("the snapshot holds no file")
        began = timestamp_of(next(one["time"] for one in entries if "type" not in one))
        random.shuffle(there)
        chosen, size = [], 0
        for path, length in there:
            fits = len(os.fsencode(target + path)) < PATH_BYTES
            if fits and len(chosen) < SAMPLE_FILES and size + length <= SAMPLE_BYTES:
                chosen.append(path)
                size += length
        # What a killed run has left.
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory, mode=0o700)
        try:
            # Restic 0.14 reads no file of patterns.
            if chosen:
                self.restore("restic restore", snapshot, target, *map(pattern_of, chosen))
            restored = by_written_name(target)
            same = changed = 0
            for written, count in collections.Counter(chosen).items():
                paths = restored.get(written, [])
                if len(paths) < count:
                    raise BackupError("%s is in the snapshot, but was not restored" % printable(written))
                for path in paths[:count]:
                    now = live_sha256(path) if unchanged(path, target + path, began) else ""
                    if now and now != sha256(target + path):
                        if not exchangeable(path, began):
                            raise BackupError("%s was restored with another content than it has" % printable(written))
                        now = ""
                    same += bool(now)
                    changed += not now
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return "%d of %d files restored and compared%s" % (
            same, len(there), ", %d have changed since" % changed if changed else "",
        )  # fmt: skip


def written_name(path: str) -> str:
    """A path as restic's JSON has it: one replacement character for each byte that is not UTF-8."""
    return re.sub("[\udc80-\udcff]", "\N{REPLACEMENT CHARACTER}", path)


def pattern_of(written: str) -> str:
    """The pattern of restic that matches a path by its written name."""
    escaped = "".join("\\" + sign if sign in "\\*?[]" else sign for sign in written)
    return escaped.replace("\N{REPLACEMENT CHARACTER}", "?")


def by_written_name(target: str) -> dict:
    """{written name: [path, ...]} of the regular files below a directory, each path as if that were /."""
    found: dict = {}
    for directory, _directories, names in os.walk(target):
        for name in sorted(names):
            full = os.path.join(directory, name)
            if stat.S_ISREG(os.lstat(full).st_mode):
                path = full[len(target) :]
                found.setdefault(written_name(path), []).append(path)
    return found


def required(part: dict, there: list) -> list:
    """The paths of a part that are there. Raises BackupError where one is missing that has to be."""
    missing = sorted(set(part["paths"]) - set(there) - set(part.get("optional", [])))
    if missing:
        raise BackupError("what shall be saved is not there: %s" % ", ".join(missing))
    return [path for path in part["paths"] if path in there]


def check_size(host: Host, paths: list) -> None:
    """Reject what claims to be larger than its file system: restic reads each zero of sparse files, for days.

    Raises BackupError.
    """
    for path in paths:
        # Not du, which aborts where directories change places. 1: the application has removed something meanwhile.
        words = ("find", path, "-type", "f", "-printf", "%s\\n")
        size = sum(map(int, host.run("measuring what shall be saved", *words, fine=(0, 1)).stdout.split()))
        disk = os.statvfs(path)
        if size > disk.f_blocks * disk.f_frsize:
            raise BackupError(
                "the files in %s claim to be larger than their file system (%d bytes): some are sparse. The largest:"
                " find %s -type f -printf '%%s %%b %%p\\n' | sort -n | tail" % (path, size, path)
            )


def names_of_parts(host: Host) -> list:
    """The parts that are saved, of this host and of others."""
    return sorted({part["name"] for one in [host.options, *host.options["sources"]] for part in one["parts"]})


def part_of(host: Host, name: str) -> dict:
    """What of this host itself belongs to a part."""
    for part in host.options["parts"]:
        if part["name"] == name:
            return part
    return {"name": name, "paths": [], "exclude": []}


def sources(host: Host, name: str) -> list:
    """The other hosts with something of this part: (source, its part)."""
    return [(source, part) for source in host.options["sources"] for part in source["parts"] if part["name"] == name]


def pulled(host: Host, name: str, source: str) -> str:
    """Where the copy of another host's files lies; nothing is read from it but what restic saves."""
    return os.path.join(host.directory, "pulled", name, source)


def ssh_words(host: Host) -> list:
    """How other hosts are reached: never a question, never an unknown host."""
    return [
        "ssh", "-i", host.options["pull_key"], "-o", "BatchMode=yes", "-o", "ConnectTimeout=20",
        "-o", "ServerAliveInterval=15", "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR",
        "-o", "UserKnownHostsFile=%s" % host.options["known_hosts"],
    ]  # fmt: skip


def request_words(host: Host, source: dict, request: str) -> tuple:
    return (*ssh_words(host), "shiftmaster-backup@%s" % source["address"], request)


def check_lock(host: Host, source: dict) -> str:
    """The lock of deploys of another host; "" where there is none, or the host cannot be queried."""
    try:
        words = request_words(host, source, "lock")
        return host.run("querying %s for a deploy" % source["name"], *words, timeout=60, limit=RESPONSE_BYTES).stdout
    except BackupError:
        return ""


def receiver_words(host: Host, unit: str, directory: str) -> list:
    """How a command runs that reads what another host sends: it can write below one directory only.

    That host may be an attacker's, and rsync receives as root, since owners are kept.
    """
    more = [*RECEIVER, "RuntimeMaxSec=%d" % host.options["timeout_seconds"]]
    readable = [host.options["pull_key"], host.options["known_hosts"], "/etc/passwd", *sandbox.NETWORK_FILES]
    return sandbox.words(unit, more, readable, [directory])


def pull(host: Host, source: dict, part: dict) -> str:
    """Copy a part of another host here; returns the directory.

    That host itself selects the files that it sends (shiftmaster-backup-read). rsync takes no name from it that was
    not requested, and no device, FIFO or socket.
    """
    what = "reading %s of %s" % (part["name"], source["name"])
    request = request_words(host, source, "paths " + part["name"])
    output = host.run(what, *request, timeout=120, limit=RESPONSE_BYTES).stdout
    try:
        there = required(part, [path for path in parsed(output) if isinstance(path, str)])
    except (ValueError, TypeError):
        raise BackupError("%s: it sent no list of paths" % what)
    if not there:
        raise BackupError("%s: nothing of it exists there" % what)
    directory = pulled(host, part["name"], source["name"])
    os.makedirs(directory, mode=0o700, exist_ok=True)
    unit = "shiftmaster-backup-pull-%s-%s" % (part["name"], source["name"])
    place = source["address"] if ":" not in source["address"] else "[%s]" % source["address"]
    too_much = room_for_others(directory)
    try:
        host.run_unit(
            what, unit, *receiver_words(host, unit, directory),
            "rsync", "--archive", "--no-devices", "--no-specials", "--relative", "--numeric-ids", "--delete",
            "--rsync-path", "send " + part["name"], "--rsh", " ".join(ssh_words(host)),
            "shiftmaster-backup@%s:%s" % (place, there[0]), *[":" + path for path in there[1:]],
            directory + "/", watch=too_much, limit=RESPONSE_BYTES,
        )  # fmt: skip
    except BackupError:
        # rsync has removed the file that it was receiving. Where many files take the room, other hosts need it; what
        # was saved before is in the repository.
        if too_much():
            safe_files.remove_tree(directory)
        raise
    return directory


def live_sha256(path: str) -> str:
    """The checksum of a file of the host; "" where the application has put something else in its place."""
    try:
        return sha256(path)
    except OSError:
        return ""


def unchanged(path: str, copy: str, began: float) -> bool:
    """Whether a file of the host still is what was saved since then, by its size and times.

    Its owner sets the time of its content as he likes; that of its inode is the kernel's.
    """
    try:
        now, then = os.lstat(path), os.lstat(copy)
    except OSError:
        return False
    same = stat.S_ISREG(now.st_mode) and (now.st_mtime_ns, now.st_size) == (then.st_mtime_ns, then.st_size)
    return same and now.st_ctime < began - TICK_SECONDS


def exchangeable(path: str, began: float) -> bool:
    """Whether a less privileged user may have put another directory, with a file of these times, above it since."""
    while path != "/":
        path = os.path.dirname(path)
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            if not safe_files.is_trusted(status) and status.st_ctime >= began - TICK_SECONDS:
                return True
    return False
