"""What of the backups may go: one planner for pgBackRest's backups, restic's snapshots and logical dumps.

The tools' own retention counts what it has, good or not: two damaged backups expired the last clean one. Here only a
restore that succeeded counts. In doubt nothing is removed, and an alert reports it. A full disk is met by a
person; a backup that is gone comes back for nobody.

Nothing goes that is younger than the limit, whatever its state; that a newer verified full backup does not stand for;
that the last verified full backup or the window of the restorable past needs. And nothing at all goes while
the newest backup is not verified, while none was verified lately, or while the clock is suspect.
"""

from __future__ import annotations

import bisect
import json
import time
from typing import Iterable, Mapping, NamedTuple

from ..monitoring.metrics import timestamp_of
from .catalogue import Stanza
from .results import Problem

DAY = 86400
# The clocks of two hosts may differ by that much.
SKEW_SECONDS = 300


class Policy(NamedTuple):
    days: float = 30
    fulls: int = 1  # So many verified full backups stay, however old.
    # The newest verified backup must be younger, or nothing goes. A kind that is saved weekly needs 8.
    fresh_days: float = 2
    # Longer than this without any run is an outage or a moved clock, and no time that ages a backup.
    gap_days: float = 3
    window: bool = (
        True  # The newest verified backup beyond the limit stays too: the days after it are restored from it.
    )
    months: int = 0  # Of each of so many months the first verified backup stays,
    years: int = 0  # and of each of so many years.


class Item(NamedTuple):
    """One backup, snapshot or dump."""

    name: str
    ended: float
    needs: tuple = ()  # Names of those without which it cannot be restored.
    full: bool = True
    damaged: bool = False  # According to its own tool.


class Plan(NamedTuple):
    remove: tuple  # In this order: what needs others goes before them, so that a killed run breaks no chain.
    keep: dict  # Name to the reason.
    alerts: tuple
    uncertain: bool  # Nothing may go, whatever it is.


def plan(
    items: Iterable,
    verifications: Mapping,
    now: float,
    policy: Policy = Policy(),  # noqa: B008 - a tuple
    damaged: Iterable = (),
    seen: Iterable = (),
) -> Plan:
    """Decide what goes.

    verifications holds for a name whether its restore test was good; damaged are names that something else reported as
    damaged. seen are times of runs, good or not: they are evidence of the passing of time.
    """
    items = sorted(items, key=lambda item: (item.ended, item.name))
    there = {item.name: item for item in items}
    needs = _closures(there)
    bad = {item.name for item in items if item.damaged} | set(damaged)
    verified = {
        item.name
        for item in items
        if verifications.get(item.name) is True
        and needs[item.name] <= set(there)
        and not bad & (needs[item.name] | {item.name})
    }
    fulls = [item for item in items if item.full and item.name in verified]
    timestamps = sorted({item.ended for item in items} | set(seen))
    alerts = _suspicions(items, verified, fulls, timestamps, now, policy)
    suspect = bool(alerts)

    age = _ages(timestamps, now, policy)
    last = {item.name for item in fulls[-policy.fulls :]} if policy.fulls else set()
    keep = {}
    for item in items:
        if age(item.ended) < policy.days * DAY:
            keep[item.name] = "younger than %g days" % policy.days
        elif item.name in last:
            keep[item.name] = "one of the last %d verified full backups" % policy.fulls
        elif needs[item.name] & last:
            keep[item.name] = "depends on the last verified full backup"
        elif not fulls or fulls[-1].ended <= item.ended:
            keep[item.name] = "no newer full backup is verified"
    firsts = first_of_each([(item.ended, item.name) for item in fulls], now, policy.months, policy.years)
    for name, period in firsts.items():
        keep.setdefault(name, "the first verified one of %s" % period)
    if policy.window:
        beyond = [item.name for item in items if item.name in verified and age(item.ended) >= policy.days * DAY]
        if beyond:
            keep.setdefault(beyond[-1], "the oldest of the %g days are restored from it" % policy.days)
    for name in list(keep):
        for needed in needs[name] & set(there):
            keep.setdefault(needed, "%s needs it" % name)

    going = [item.name for item in reversed(items) if item.name not in keep]
    if suspect:
        keep.update(dict.fromkeys(going, "nothing is removed in doubt"))
        going = []
    # What needs another goes first, also where a clock was moved and the order of time is not that of the chain.
    going.sort(key=lambda name: len(needs[name]), reverse=True)
    return Plan(tuple(going), keep, tuple(alerts), suspect)


def first_of_each(found: Iterable, now: float, months: int, years: int) -> dict:
    """Return {name: period} of the first of each calendar month and year (UTC), of the newest so many periods.

    found is [(timestamp, name)]. A period without any of them does not count.
    """
    firsts = {}
    for format_, count in (("%Y-%m", months), ("%Y", years)):
        periods = {}
        for timestamp, name in sorted(found):
            if timestamp <= now:
                periods.setdefault(time.strftime(format_, time.gmtime(timestamp)), name)
        for period in list(periods)[-count:] if count else ():
            firsts.setdefault(periods[period], period)
    return firsts


def over_limit(used: int, limit: int) -> tuple:
    """Return the alert of backups that take more bytes than they may (0: as many as there are). Nothing goes for it."""
    if not limit or used <= limit:
        return ()
    what = "the backups take %d bytes, %d more than they may, and nothing of it may go" % (used, used - limit)
    return (Problem("over_limit", what),)


def _closures(there: Mapping) -> dict:
    """Return for each name all that it needs, directly or not."""
    found = {}
    for name, item in there.items():
        needed, open_ends = set(), list(item.needs)
        while open_ends:
            one = open_ends.pop()
            if one not in needed:
                needed.add(one)
                open_ends += there[one].needs if one in there else ()
        found[name] = needed
    return found


def _suspicions(items: list, verified: set, fulls: list, timestamps: list, now: float, policy: Policy) -> list:
    """Return why nothing may go; nothing where all is clear."""
    found = []
    late = [timestamp for timestamp in timestamps if timestamp > now + SKEW_SECONDS]
    if late:
        future = [item.name for item in items if item.ended > now + SKEW_SECONDS]
        what = "the clock is %.1f days before the last run: set it right, and expire %s by hand if they are of no use"
        values = ((late[-1] - now) / DAY, ", ".join(future) or "nothing")
        found.append(Problem("clock", what % values, future[-1] if future else ""))
    recent = [timestamp for timestamp in timestamps if now - timestamp <= policy.gap_days * DAY]
    before = [timestamp for timestamp in timestamps if now - timestamp > policy.gap_days * DAY]
    gap = (recent[0] if recent else now) - before[-1] if before else 0
    if gap > policy.gap_days * DAY:
        what = "no run is known of the %.1f days before: after an outage or a moved clock nothing goes at first"
        found.append(Problem("gap", what % (gap / DAY)))
    if not fulls:
        found.append(Problem("no_verified", "no full backup is verified by a restore"))
    elif items[-1].name not in verified:
        what = "the newest backup, %s, is not verified" % items[-1].name
        found.append(Problem("newest_not_verified", what, items[-1].name))
    elif now - items[-1].ended > policy.fresh_days * DAY:
        what = "the newest verified backup, %s, is %.1f days old" % (items[-1].name, (now - items[-1].ended) / DAY)
        found.append(Problem("not_fresh", what, items[-1].name))
    return found


def _ages(timestamps: list, now: float, policy: Policy):
    """Return a function that shows the age of a time in seconds, as far as runs are evidence of it.

    The time of a gap is left out: whether it was an outage, or the clock jumped, nobody knows. A clock that is put on
    by less than a gap is trusted.
    """
    past = [timestamp for timestamp in timestamps if timestamp <= now] + [now]
    ages = [0.0] * len(past)
    for number in range(len(past) - 2, -1, -1):
        step = past[number + 1] - past[number]
        ages[number] = ages[number + 1] + (step if step <= policy.gap_days * DAY else 0)
    return lambda timestamp: ages[min(bisect.bisect_left(past, timestamp), len(past) - 1)]


# ---------------------------------------------------------------------------------------------------------- pgBackRest


class DatabasePlan(NamedTuple):
    remove: tuple
    keep: dict
    alerts: tuple
    uncertain: bool
    fulls_left: int
    # By the directory of an archive (17-1): the first segment that stays. What is before it goes.
    wal_from: dict


def database_plan(
    stanza: Stanza,
    verifications: Mapping,
    now: float,
    policy: Policy = Policy(),  # noqa: B008 - a tuple
    earlier: Iterable = (),
    **more,
) -> DatabasePlan:
    """Decide for one of pgBackRest's repositories; more is what plan() takes.

    earlier are items of the stanzas of earlier passphrases, each with the time of its last backup. Each goes as a unit.
    """
    backups, items = stanza.of(1), list(earlier)
    verifications = {**verifications, **{item.name: True for item in items}}
    for backup in backups:
        needs = tuple(sorted({backup.prior, *backup.references} - {None}))
        items.append(Item(backup.label, backup.stopped, needs, backup.kind == "full", backup.error))
    made = plan(items, verifications, now, policy, **more)
    left = [backup for backup in backups if backup.label not in made.remove and backup.kind == "full"]
    wal_from = {}
    for archive in stanza.archives:
        starts = [backup.wal_start for backup in left if backup.database_id == archive.database_id]
        if archive.repo == 1 and starts:
            # As pgBackRest compares them: without the timeline.
            wal_from[archive.id] = min(starts, key=lambda name: name[8:])
    return DatabasePlan(*made, len(left), wal_from)


def commands(stanza: str, made: DatabasePlan) -> list:
    """Return the arguments of each call of pgbackrest, in order, to be made while no backup can start.

    `--set` frees no WAL. The last call does, and its number must be that of all the full backups that are left,
    verified or not: with a smaller one the WAL between older backups is gone, with a larger one nothing is. If unknown
    there is no call at all.
    """
    if made.uncertain:
        return []
    common = ["--stanza=%s" % stanza, "--repo=1"]
    called = [[*common, "--set=%s" % label, "expire"] for label in made.remove]
    if made.fulls_left:
        kept = "--repo1-retention-archive=%d" % made.fulls_left
        called.append([*common, "--repo1-retention-archive-type=full", kept, "expire"])
    return called


# -------------------------------------------------------------------------------------------------------------- restic


def snapshots(output) -> dict:
    """Return {(host, tag): [Item]} of a response of `restic snapshots --json`; each group is planned for itself.

    A snapshot needs no other one. ValueError where the response is none of restic's.
    """
    found = {}
    try:
        for snapshot in json.loads(output):
            timestamp = timestamp_of(snapshot["time"])
            if not timestamp:
                raise ValueError("%r is no time" % (snapshot["time"],))
            for tag in snapshot.get("tags") or [""]:
                found.setdefault((snapshot["hostname"], tag), []).append(Item(snapshot["id"], timestamp))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError("restic snapshots wrote something that is not understood: %s" % error) from error
    return found
