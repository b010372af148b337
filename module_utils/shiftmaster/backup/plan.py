"""What the backup of today is to be: full or incremental, and whether there is room for it before anything starts."""

from __future__ import annotations

import math
from typing import Iterable, Mapping, NamedTuple, Optional

from ..host.printable import sized
from .catalogue import CatalogueError, Stanza
from .results import Problem, Result, result

# A run that is a little early, by a timer with jitter, is still the one of its day.
EARLY_SECONDS = 12 * 3600
DAY = 86400
# How much larger than the last one a backup may be before the disk is called too small for it.
GROWTH = 0.2
# An incremental one after a day of imports is much larger than the one before.
INCREMENTAL_GROWTH = 1.0
# What must be left over: the archive goes on while the backup is under way, and a full disk stops it.
SPARE_BYTES = 256 * 1024 * 1024
SPARE_SHARE = 0.03


class Decision(NamedTuple):
    kind: str
    why: str  # A sentence for the report.


def kind_today(
    stanza: Stanza,
    verifications: Mapping,
    now: float,
    full_days: float = 7,
    system_id: Optional[int] = None,
    timeline: Optional[int] = None,
    damaged: Iterable = (),
    wish: str = "",
    gapped: Iterable = (),
) -> Decision:
    """Decide for one repository. An incremental backup is worth no more than what it is built upon.

    verifications holds for a label whether its restore test was good; damaged are labels that verify or the continuity
    of the WAL reported as bad, gapped those after which segments are missing: there a new chain begins. system_id and
    timeline are those of the database that runs, where they are known. wish is the requested kind: a full one is
    always right, an incremental one only where it can be trusted.
    """
    damaged, gapped = set(damaged), set(gapped)
    if wish == "full":
        return Decision("full", "a full backup was requested")
    database = stanza.current_database(1)
    if database is None:
        return Decision("full", "the repository holds nothing yet")
    if system_id is not None and database.system_id != system_id:
        return Decision("full", "the database is another one than that of the repository")
    backups = [backup for backup in stanza.of(1) if backup.database_id == database.id]
    fulls = [backup for backup in backups if backup.kind == "full"]
    if not fulls:
        return Decision("full", "the repository holds no full backup of this database")
    last = backups[-1]
    try:
        chain = stanza.chain(last.label)
    except CatalogueError as error:
        return Decision("full", "the last chain is broken: %s" % error)
    for backup in chain:
        if backup.error:
            return Decision("full", "backup %s holds pages with wrong checksums" % backup.label)
        if backup.label in damaged:
            return Decision("full", "backup %s is damaged" % backup.label)
        if verifications.get(backup.label) is False:
            return Decision("full", "the restore test of backup %s failed" % backup.label)
    if not verifications.get(chain[0].label):
        return Decision("full", "the last full backup, %s, was never verified by a restore" % chain[0].label)
    if timeline is not None and int(last.wal_stop[:8], 16) != timeline:
        return Decision("full", "the database is on timeline %d since the last backup" % timeline)
    if last.label in gapped:
        return Decision("full", "WAL is missing after backup %s, so a new chain begins" % last.label)
    age = now - chain[0].started
    if age < 0 or now < last.stopped:
        return Decision("full", "the clock is before the last backup, so its age is not known")
    if wish == "incr":
        return Decision("incr", "an incremental backup was requested")
    if age >= full_days * DAY - EARLY_SECONDS:
        return Decision("full", "the last full backup is %.1f days old" % (age / DAY))
    return Decision("incr", "full backup %s is verified and %.1f days old" % (chain[0].label, age / DAY))


# --------------------------------------------------------------------------------------------------------------- space


def foreseen(sizes: Iterable, growth: float = GROWTH) -> Optional[int]:
    """Return the bytes of the next one of a row of sizes, oldest first; None where there is none to go by.

    It is at least as large as the last one, with room for growth; where the row grows faster, it goes on so.
    """
    sizes = list(sizes)[-8:]
    if not sizes:
        return None
    steps = [later - earlier for earlier, later in zip(sizes, sizes[1:])]
    return math.ceil(sizes[-1] + max([sizes[-1] * growth, *steps]))


def database_bytes(stanza: Stanza, kind: str, database_size: int) -> int:
    """Return what the next backup adds to its repository.

    Without one to go by, a full backup is as large as the database: how well it can be compressed is not known.
    """
    backups = [backup for backup in stanza.of(1) if (backup.kind == "full") == (kind == "full")]
    if kind == "full":
        # The database may have grown since: by as much the backup.
        sizes = [math.ceil(one.repo_size * database_size / one.size) for one in backups if one.size]
        needed = foreseen(sizes[-1:])
    else:
        # The largest of the last week, since a quiet day does not predict the next.
        needed = foreseen([max(one.repo_size for one in backups[-7:])] if backups else [], INCREMENTAL_GROWTH)
        if needed is None:
            fulls = [one.repo_size for one in stanza.of(1) if one.kind == "full"]
            needed = fulls[-1] if fulls else None
    return min(database_size if needed is None else needed, database_size)


def restore_bytes(size: int) -> int:
    """Return what a scratch restore needs: the database itself and what its recovery writes."""
    return math.ceil(size * 1.05) + 64 * 1024 * 1024


def room(needed: int, free: int, total: int, where: str, what: str = "the backup") -> Result:
    """Refuse what would fill a disk, before it has begun."""
    spare = max(SPARE_BYTES, math.ceil(total * SPARE_SHARE))
    if needed + spare <= free:
        return result(())
    text = "%s needs about %s in %s, where %s are free and %s must stay so"
    values = (what, sized(needed), where, sized(free), sized(spare))
    return result([Problem("no_room", text % values, where)])
