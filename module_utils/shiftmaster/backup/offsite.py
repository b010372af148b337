"""An off-site copy: one repository of restic, on a rest-server, by SFTP or in an S3-compatible store.

After each good run it gets the snapshots of files and configuration, and next to them pgBackRest's repository, the
logical dumps and the manifests. Then it is read back. docs/decisions/0014-offsite.md explains why it is no
second repository of pgBackRest. fetch() is the rollback to an empty host.
"""

from __future__ import annotations

import copy
import json
import os
import pwd
import re
import shutil
import stat
import time

from ..host import safe_files
from ..monitoring.metrics import timestamp_of
from . import catalogue, sandbox
from . import manifest as manifests
from .files import Restic
from .host import POSTGRES, BackupError, Host, tail

# What lies in the directory of the backups and is saved as it is. Its parts are encrypted already, but for the dumps.
TREES = ("pgbackrest", "logical")
SFTP = re.compile(r"sftp:(?P<who>[^:/@]+@[^:/]+):(?P<path>/.*)")
NONE_THERE = re.compile(r"unable to open config file: .*(does not exist|no such file)")
# Each day so much of it is read; all of it within a month.
SLICES = 30
# A slow line has its time.
FETCH_SECONDS = 7 * 86400


def ssh_command(offsite: dict) -> str:
    """The command by which restic reaches SFTP: never a question, never an unknown host. Raises BackupError."""
    found = SFTP.fullmatch(offsite["repository"])
    if not found:
        raise BackupError("%s is not of the form sftp:user@host:/directory" % offsite["repository"])
    return " ".join(
        [
            "ssh", "-i", offsite["ssh_key_file"], "-p", str(offsite["ssh_port"]), "-o BatchMode=yes",
            "-o ConnectTimeout=20 -o ServerAliveInterval=15 -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes",
            # Restic passes on its output, a banner too.
            "-o LogLevel=ERROR",
            "-o UserKnownHostsFile=%s" % offsite["known_hosts_file"], found["who"], "-s sftp",
        ]
    )  # fmt: skip


def fetched_at(host: Host) -> float:
    """When the backups of this host were fetched from outside, 0 where they were not."""
    try:
        return os.path.getmtime(os.path.join(host.options["state"], "offsite", "fetched"))
    except OSError:
        return 0.0


def require_plain(path: str) -> None:
    """Reject a fetched tree with what no backup server has there: it may be of one that was taken over.

    Roles and units would follow a link. pgBackRest makes one, from `latest` to the directory next to it.
    """
    for place, directories, names, descriptor in safe_files.walk(path):
        for name in [*directories, *names]:
            mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode) and name == "latest" and os.readlink(name, dir_fd=descriptor) in directories:
                continue
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or mode & (stat.S_ISUID | stat.S_ISGID):
                raise BackupError("what was fetched holds %r, which no backup has" % os.path.join(path, place, name))


class Offsite(Restic):
    def __init__(self, host: Host):
        super().__init__(host)
        self.here, offsite = self.repository, host.options["offsite"]
        self.repository = offsite["repository"]
        if self.repository.startswith("sftp:"):
            self.words += ["-o", "sftp.command=" + ssh_command(offsite)]
        if offsite["ca_file"]:
            self.words += ["--cacert", offsite["ca_file"]]
        self.settings.update(
            RESTIC_REPOSITORY=self.repository,
            RESTIC_PASSWORD_FILE=offsite["password_file"],
            RESTIC_FROM_REPOSITORY=self.here,
            RESTIC_FROM_PASSWORD_FILE=host.options["restic_password_file"],
        )
        with open(offsite["environment_file"], encoding="utf-8") as stream:
            self.settings.update(json.load(stream))
        self.kind, self.append_only = "offsite", offsite["append_only"]
        self.written, self.network = [], sandbox.NETWORK
        self.needed += [*sandbox.NETWORK_FILES, "-/etc/ssl/certs", "-" + offsite["ssh_key_file"]]
        self.needed += ["-" + offsite["known_hosts_file"], *([offsite["ca_file"]] if offsite["ca_file"] else [])]

    def init(self) -> bool:
        """Make it where there is none. What cannot be reached, or has another password, is never made again."""
        self.change_password()
        done = self.run("looking for the off-site repository", "cat", "config", fine=range(256), timeout=300)
        if done.returncode == 0:
            return False
        # 0.17 and later return 10 where there is none; older ones print a message.
        if done.returncode != 10 and not NONE_THERE.search(done.stderr):
            raise BackupError("the off-site repository cannot be read: %s" % tail(done.stderr))
        # With its way of cutting files, so that what is copied is found again.
        how = ["--copy-chunker-params", "--from-repo", self.here] if os.path.exists(self.here + "/config") else []
        self.run("making the off-site repository", "init", *how)
        return True

    def save(self, manifest: dict) -> str:
        """Bring what is here there and read it back; returns what was seen. Raises BackupError."""
        self.run("unlocking the off-site repository", "unlock")
        if os.path.exists(self.here + "/config"):
            # All that is not there yet: also of the runs that did not come as far.
            self.run("copying snapshots off-site", "copy")
        staged = self.stage(manifest)
        trees = [path for path in (os.path.join(self.host.directory, name) for name in TREES) if os.path.isdir(path)]
        part = {
            "name": "the repository of the database",
            "paths": [*trees, staged],
            "exclude": ["*.part", "*.lock", "*.tmp"],
        }
        summary, _problems = self.backup(part, manifest["run_id"], "database")
        seen = self.compare(summary["snapshot_id"], os.path.join(self.host.options["scratch"], "offsite"))
        slice_ = manifests.seconds_of(manifest["started"]) // 86400 % SLICES + 1
        self.evaluated_check("--read-data-subset=%d/%d" % (slice_, SLICES))
        return "snapshot %s: %s, slice %d of %d read" % (summary["snapshot_id"][:8], seen, slice_, SLICES)

    def stage(self, manifest: dict) -> str:
        """Lay the manifests down as they will be: this run has not ended yet, and there it would count as killed."""
        directory = os.path.join(self.host.options["state"], "offsite", "manifests")
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(os.path.join(self.host.directory, "manifests"), directory)
        ended = copy.deepcopy(manifest)
        manifests.finish(ended, max(manifests.seconds_of(p["ended"]) for p in ended["parts"].values() if p["ended"]))
        manifests.write(os.path.join(directory, manifest["run_id"] + ".json"), ended)
        return directory

    def prune(self) -> None:
        """Remove what is older than it is kept, by the newest one's date: nothing goes while nothing comes.

        A repository that takes additions only is pruned by its own host.
        """
        if self.append_only:
            return
        kept = [("", "%(keep_days)dd"), ("-monthly", "%(keep_months)dm"), ("-yearly", "%(keep_years)dy")]
        words = [word for name, limit in kept for word in ("--keep-within" + name, limit % self.host.options)]
        self.run("pruning the off-site repository", "forget", "--group-by", "host,paths", *words, "--prune")

    def fetch(self, run_id: str) -> list:
        """Bring everything back to a host that has no backups; returns what was brought. Raises BackupError."""
        state = os.path.join(self.host.options["state"], "offsite")
        begun, ended = os.path.join(state, "fetching"), os.path.join(state, "fetched")
        there = manifests.history(os.path.join(self.host.directory, "manifests")).manifests
        # Not where what was fetched once has been lost since.
        if os.path.exists(ended) and there:
            return self.fetched_before(ended, run_id)
        newest = max((manifests.seconds_of(one["ended"]) for one in there if one["ended"]), default=0)
        if not os.path.exists(begun) or newest > os.path.getmtime(begun):
            self.require_nothing()
        self.change_password()
        tags = "database" if run_id == "latest" else "database,run=%s" % run_id
        listed = json.loads(
            self.run("listing the off-site repository", "snapshots", "--json", "--tag", tags).stdout or "[]"
        )
        if not listed:
            raise BackupError("there is no off-site backup%s" % ("" if run_id == "latest" else " of run %s" % run_id))
        # A snapshot of a later time was made while the clock was wrong: it counts only where there is no other.
        past = [one for one in listed if (timestamp_of(one["time"]) or 0) < time.time() + 86400]
        newest = max(past or listed, key=lambda one: one["time"])
        staging = os.path.join(self.host.directory, "fetched")
        shutil.rmtree(staging, ignore_errors=True)
        os.mkdir(staging, mode=0o700)
        os.makedirs(state, mode=0o700, exist_ok=True)
        with open(begun, "w", encoding="utf-8") as stream:
            stream.write(" ".join([newest["id"], *(newest.get("tags") or [])]))
        try:
            self.restore("fetching", newest["id"], staging, timeout=FETCH_SECONDS)
            brought = self.put_in_place(staging, os.path.join(state, "manifests"))
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self.bring_snapshots()
        os.rename(begun, ended)
        return brought + ["files and configuration"]

    def fetched_before(self, path: str, run_id: str) -> list:
        """Nothing is fetched twice. Raises BackupError where another run is asked for than the one that was."""
        with open(path, encoding="utf-8") as stream:
            tags = stream.read().split()[1:]
        if run_id != "latest" and tags and "run=" + run_id not in tags:
            runs = [tag.removeprefix("run=") for tag in tags if tag.startswith("run=")]
            raise BackupError(
                "the backups were fetched as of run %s already, not as of %s: without fetch=, a target of that time "
                "restores what they hold" % (" ".join(runs), run_id)
            )
        return []

    def require_nothing(self) -> None:
        """What is here already is not replaced. Raises BackupError."""
        there = bool(manifests.history(os.path.join(self.host.directory, "manifests")).manifests)
        if self.host.database["databases"]:
            there = there or bool(catalogue.stanza_of(self.host.info(), self.host.stanza).backups)
        if there:
            raise BackupError("there are backups here already; nothing was fetched")

    def put_in_place(self, staging: str, staged: str) -> list:
        """Move what was fetched to where it lay; returns the names."""
        places = {name: os.path.join(self.host.directory, name) for name in TREES}
        brought = []
        for name, path in {**places, "manifests": staged}.items():
            if not os.path.isdir(staging + path):
                continue
            if os.path.realpath(staging + path) != staging + path:
                raise BackupError("what was fetched has a link in place of %s" % path)
            require_plain(staging + path)
            target = os.path.join(self.host.directory, name)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(staging + path, target)
            if name == "pgbackrest":
                # By name: numbers are those of the host that is gone.
                entry = pwd.getpwnam(POSTGRES)
                safe_files.change_owner(target, entry.pw_uid, entry.pw_gid, beneath=target)
                # As role backup has it: the server's unit mounts directories below it.
                os.chown(target, 0, entry.pw_gid)
                self.host.run(
                    "restarting pgBackRest's server", "systemctl", "try-restart", "pgbackrest.service", fine=(0, 5)
                )
            brought.append(name)
        return brought

    def bring_snapshots(self) -> None:
        """Copy the snapshots of files back into the repository of this host."""
        own = Restic(self.host)
        own.init()
        wanted = json.loads(self.run("listing the off-site repository", "snapshots", "--json").stdout or "[]")
        ids = [one["id"] for one in wanted if {"files", "configuration"} & set(one.get("tags") or [])]
        env = dict(
            self.env,
            RESTIC_REPOSITORY=self.here,
            RESTIC_PASSWORD_FILE=self.env["RESTIC_FROM_PASSWORD_FILE"],
            RESTIC_FROM_REPOSITORY=self.env["RESTIC_REPOSITORY"],
            RESTIC_FROM_PASSWORD_FILE=self.env["RESTIC_PASSWORD_FILE"],
        )
        if ids:
            words = ("restic", "--quiet", *self.words, "copy", *ids)
            self.host.run("copying snapshots back", *words, env=env, timeout=FETCH_SECONDS)
