"""What pgBackRest's repositories hold, read from `pgbackrest info --output=json` (2.55).

The command returns 0 for a wrong key, a stanza that is not there and a backup with damaged pages; all of it is in the
JSON. It trusts its own list: a backup whose directory is gone is still in it; only `verify` reports that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Optional

from .results import Problem, Result, result

# Status of a stanza and of each of its repositories: pgBackRest's src/command/info/info.c.
OK, MISSING_STANZA, NO_BACKUP, MISSING_DATA, MIXED, OTHER_DATABASE, NO_SUCH_BACKUP, OTHER = 0, 1, 2, 3, 4, 5, 6, 99
STATUSES = {
    OK: ("ok", "ok"),
    MISSING_STANZA: ("stanza_missing", "the repository has no such stanza"),
    NO_BACKUP: ("no_backup", "the repository holds no backup"),
    MISSING_DATA: ("stanza_missing", "the repository's list of backups is gone"),
    MIXED: ("mixed", "the repositories are in different states"),
    OTHER_DATABASE: ("other_database", "the repositories are of different databases"),
    NO_SUCH_BACKUP: ("no_backup", "the backup is in no repository"),
    OTHER: ("unreadable", "the repository cannot be read; most often its key is wrong, or its list is damaged"),
}
KINDS = ("full", "diff", "incr")


class CatalogueError(Exception):
    """The response is not one of pgBackRest's, or the catalogue lacks what was requested; str() is the reason."""


@dataclass(frozen=True)
class Backup:
    label: str
    kind: str
    prior: Optional[str]  # The backup that it was compared with; None for a full one.
    references: tuple  # All the backups that hold files of it.
    started: int  # Seconds since 1970, as stopped is.
    stopped: int
    wal_start: str
    wal_stop: str
    lsn_stop: str
    size: int  # Of the database, in bytes.
    repo_size: int  # What it added to the repository.
    error: bool  # Pages with a wrong checksum were saved.
    repo: int
    database_id: int  # Within the repository; grows with stanza-upgrade.
    system_id: int  # PostgreSQL's own name of the cluster.
    version: str  # PostgreSQL's major version.


@dataclass(frozen=True)
class Database:
    id: int
    repo: int
    system_id: int
    version: str


@dataclass(frozen=True)
class Archive:
    id: str  # The directory of the segments: 17-1.
    database_id: int
    repo: int
    first: Optional[str]
    last: Optional[str]


@dataclass(frozen=True)
class Repo:
    key: int
    code: int
    message: str
    encrypted: bool


@dataclass(frozen=True)
class Stanza:
    name: str
    code: int
    message: str
    busy: bool  # A backup or an expire holds its lock.
    repos: tuple
    databases: tuple
    archives: tuple
    backups: tuple  # Oldest first.

    def backup(self, label: str, repo: Optional[int] = None) -> Backup:
        for backup in self.backups:
            if backup.label == label and repo in (None, backup.repo):
                return backup
        raise CatalogueError("stanza %s has no backup %s" % (self.name, label))

    def of(self, repo: int) -> tuple:
        """Return the backups of one repository, oldest first."""
        return tuple(backup for backup in self.backups if backup.repo == repo)

    def chain(self, label: str, repo: Optional[int] = None) -> tuple:
        """Return what a restore of a backup reads, from its full backup to itself."""
        last = self.backup(label, repo)
        there = {backup.label: backup for backup in self.of(last.repo)}
        needed, open_ends = {}, [last]
        while open_ends:
            backup = open_ends.pop()
            needed[backup.label] = backup
            for name in {backup.prior, *backup.references} - {None} - set(needed):
                if name not in there:
                    raise CatalogueError("backup %s needs %s, which is gone" % (label, name))
                open_ends.append(there[name])
        return tuple(sorted(needed.values(), key=lambda backup: (backup.started, backup.label)))

    def current_database(self, repo: int) -> Optional[Database]:
        """Return the database that the repository takes backups of today."""
        return max((one for one in self.databases if one.repo == repo), key=lambda one: one.id, default=None)


def parse(output) -> tuple:
    """Return the stanzas of a response of `pgbackrest info --output=json`, given as text or bytes."""
    if isinstance(output, bytes):
        # The message about a wrong key quotes what it decrypted, which is no text, and has control characters.
        output = output.decode("utf-8", "replace")
    try:
        data = json.loads(output, strict=False)
    except ValueError as error:
        raise CatalogueError("pgbackrest info wrote no JSON: %s" % error) from error
    if not isinstance(data, list):
        raise CatalogueError("pgbackrest info wrote no list of stanzas")
    try:
        return tuple(_stanza(item) for item in data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CatalogueError(
            "pgbackrest info wrote something that is not understood (%s: %s); is it another version than 2.55?"
            % (type(error).__name__, error)
        ) from error


def stanza_of(output, name: str) -> Stanza:
    """Return one stanza. Where pgBackRest knows none of that name, the result has a status for that."""
    for stanza in parse(output):
        if stanza.name == name:
            return stanza
    return Stanza(name, MISSING_STANZA, STATUSES[MISSING_STANZA][1], False, (), (), (), ())


def _stanza(item: dict) -> Stanza:
    databases = tuple(
        Database(_integer(one["id"]), _integer(one["repo-key"]), _integer(one["system-id"]), _text(one["version"]))
        for one in item["db"]
    )
    known = {(one.repo, one.id): one for one in databases}
    backups = [_backup(one, known) for one in item["backup"]]
    return Stanza(
        name=_text(item["name"]),
        code=_integer(item["status"]["code"]),
        message=_text(item["status"]["message"]),
        busy=any(lock["held"] for lock in item["status"].get("lock", {}).values()),
        repos=tuple(map(_repo, item["repo"])),
        databases=databases,
        archives=tuple(map(_archive, item["archive"])),
        backups=tuple(sorted(backups, key=lambda backup: (backup.started, backup.label, backup.repo))),
    )


def _repo(item: dict) -> Repo:
    status = item["status"]
    return Repo(_integer(item["key"]), _integer(status["code"]), _text(status["message"]), item["cipher"] != "none")


def _archive(item: dict) -> Archive:
    database = item["database"]
    return Archive(item["id"], _integer(database["id"]), _integer(database["repo-key"]), item["min"], item["max"])


def _backup(item: dict, databases: dict) -> Backup:
    if item["type"] not in KINDS:
        raise ValueError("%r is not the type of a backup" % (item["type"],))
    if not isinstance(item["error"], bool):
        raise ValueError("the error state of backup %s is missing" % item["label"])
    database = databases[(_integer(item["database"]["repo-key"]), _integer(item["database"]["id"]))]
    repository = item["info"]["repository"]
    return Backup(
        label=_text(item["label"]),
        kind=item["type"],
        prior=item["prior"],
        references=tuple(item["reference"] or ()),
        started=_integer(item["timestamp"]["start"]),
        stopped=_integer(item["timestamp"]["stop"]),
        wal_start=_text(item["archive"]["start"]),
        wal_stop=_text(item["archive"]["stop"]),
        lsn_stop=_text(item["lsn"]["stop"]),
        size=_integer(item["info"]["size"]),
        repo_size=_integer(repository["delta"]),
        error=item["error"],
        repo=database.repo,
        database_id=database.id,
        system_id=database.system_id,
        version=database.version,
    )


def _integer(value) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("%r is not an integer" % (value,))
    return value


def _text(value) -> str:
    if not isinstance(value, str):
        raise ValueError("%r is no text" % (value,))
    return value


def stanza_result(stanza: Stanza, system_id: Optional[int] = None) -> Result:
    """Evaluate the catalogue itself. system_id is that of the database that runs, where it is known.

    A problem of one backup has its label as its place: result.concerning(labels) leaves the others out.
    """
    problems = []
    for repo in stanza.repos or (Repo(0, stanza.code, stanza.message, False),):
        if repo.code != OK:
            code, what = STATUSES.get(repo.code, ("unknown_status", "the repository has a status that is not known"))
            problems.append(Problem(code, "%s (repository %d, %s)" % (what, repo.key, _first_line(repo.message))))
    if stanza.code != OK and not problems:
        code, what = STATUSES.get(stanza.code, ("unknown_status", "the stanza has a status that is not known"))
        problems.append(Problem(code, "%s (%s)" % (what, _first_line(stanza.message))))
    for repo in stanza.repos:
        database = stanza.current_database(repo.key)
        own = [backup for backup in stanza.of(repo.key) if backup.database_id == getattr(database, "id", None)]
        if system_id is not None and database is not None and database.system_id != system_id:
            what = "repository %d is of the cluster %d, but the one that runs is %d: stanza-upgrade and a full backup"
            problems.append(Problem("other_system", what % (repo.key, database.system_id, system_id)))
        elif repo.code == OK and not own:
            problems.append(Problem("no_backup", "repository %d holds no backup of the cluster of today" % repo.key))
    for backup in stanza.backups:
        if backup.error:
            what = "backup %s holds pages with wrong checksums" % backup.label
            problems.append(Problem("page_checksums", what, backup.label))
        try:
            stanza.chain(backup.label, backup.repo)
        except CatalogueError as error:
            problems.append(Problem("chain_broken", str(error), backup.label))
    return result(problems)


def _first_line(text: str) -> str:
    return text.splitlines()[0][:200] if text else ""
