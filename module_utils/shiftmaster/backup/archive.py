"""The archive of the WAL as it is: read with pgBackRest, evaluated by wal."""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import Iterator

from ..release.state import write_json
from . import wal
from .host import STATE, BackupError, Host
from .results import Problem, Result, result


def inspect(host: Host, stanza, timeline: int, verified: str, damaged: list) -> Result:
    """Return where WAL is missing after the backups of the current database; records it for the metrics, too."""
    found, gaps, newest = _found(host, stanza, timeline, verified, damaged)
    write_json(os.path.join(STATE, "archive.json"), {"gaps": gaps, "newest": newest})
    return result(found)


def gapped(host: Host, stanza, timeline: int) -> list:
    """Labels of backups after which WAL is missing, as where the archive could not be reached for too long."""
    found = _found(host, stanza, timeline, "", [])[0] if stanza.of(1) else []
    return [problem.where for problem in found if problem.code in ("wal_missing", "wal_own_missing")]


def _found(host: Host, stanza, timeline: int, verified: str, damaged: list) -> tuple:
    """Return (problems, number of missing segments, when the newest one came)."""
    found, gaps, newest = [], 0, None
    for directory, held in _held(host, stanza):
        backups = _backups(stanza)
        reaches = wal.reaches(held, backups, timeline, verified, damaged)
        found += wal.evaluate(held, reaches, directory, verified).problems
        gaps += wal.gap_count(reaches)
        newest = max(filter(None, [newest, wal.newest_time(held)]), default=None)
    return found, gaps, newest


def _held(host: Host, stanza) -> Iterator[tuple]:
    """Yield (directory, what it holds) of each archive of today's database."""
    database = stanza.current_database(1)

    def query(*words: str) -> str:
        return host.pgbackrest("pgbackrest %s" % words[0], *words, restore=True, stanza=stanza.name).stdout

    for one in stanza.archives:
        if one.repo == 1 and database and one.database_id == database.id and one.last:
            place = "archive/%s/%s" % (stanza.name, one.id)
            listed = query("repo-ls", place, "--recurse", "--output=json")
            histories = {
                int(name[:8], 16): query("repo-get", "%s/%s" % (place, name))
                for name in json.loads(listed)
                if re.match(r"[0-9A-F]{8}\.history$", name)
            }
            yield one.id, wal.archive(listed, histories)


def _backups(stanza) -> list:
    database = stanza.current_database(1)
    return [one for one in stanza.of(1) if database and one.database_id == database.id]


def of(host: Host, stanzas) -> list:
    """Return the archives of today's database."""
    return [one for stanza in stanzas for _directory, one in _held(host, stanza)]


def last_segment(archives: list, backup, timeline: int) -> str:
    """Return the last segment of the WAL after a backup on a timeline, "" where there is none."""
    return max((wal.last_of(one, backup, timeline) for one in archives), default="")


def lacking(host: Host, stanza, names: list) -> list:
    """Return those of these segments that the archive lacks and a backup may need.

    Each is looked for by its name: the database host can add a segment of another timeline, whose name comes after all.
    """
    held = {place for _directory, found in (_held(host, stanza) if names else ()) for place in found.segments}
    first = min((wal.place_of(one.wal_start).number for one in _backups(stanza)), default=0)
    found = []
    for name in names:
        with contextlib.suppress(wal.WalError):
            place = wal.place_of(name[:24])
            if place not in held and place.number >= first:
                found.append(name)
    return found


def links(host: Host) -> list:
    """Return the problem that keeps `pgbackrest expire` from being run: it follows links and empties what they lead to.

    The database host writes to the archive. Its server makes no links any more, but may have made some.
    """
    words = ("-ignore_readdir_race", "!", "-type", "f", "!", "-type", "d", "-print", "-quit")
    place = os.path.join(host.directory, "pgbackrest", "archive")
    done = host.as_postgres("looking for links in the archive", "find", place, *words, fine=range(256))
    if done.returncode == 0 and not done.stdout:
        return []
    what = "nothing old of the database was removed, for the archive of WAL holds what is no file or directory: %r"
    return [Problem("archive_links", what % (done.stdout.strip() or done.stderr.strip())[:300], "")]


def manifests(host: Host, stanza) -> list:
    """Compare the manifest of each backup with its copy: pgBackRest uses the other one where one is damaged, and says
    nothing. Returns problems."""
    problems = []
    for backup in stanza.of(1):
        contents = set()
        for name in ("backup.manifest", "backup.manifest.copy"):
            path = "backup/%s/%s/%s" % (host.stanza, backup.label, name)
            try:
                contents.add(host.pgbackrest("pgbackrest repo-get", "repo-get", path, restore=True).stdout)
            except BackupError as error:
                contents.add(str(error))
        if len(contents) != 1:
            what = "the manifest of backup %s or its copy is damaged; the other one may be complete" % backup.label
            problems.append(Problem("manifest_damaged", what, backup.label))
    return problems


def noted() -> dict:
    """What the last look has found, for the metrics; {} where there was none."""
    try:
        with open(os.path.join(STATE, "archive.json"), encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return {}
