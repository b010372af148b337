"""Whether the archive holds every WAL segment that a backup needs: to be consistent, up to a verified point, up to now.

Nothing else reports it. `pgbackrest verify` checks the segments that are there, and a recovery that meets a missing or
damaged one opens the database with what it has, reports success, and returns 0.

A segment's name is its timeline, then its number in two halves of which the second counts to 4 GiB: with 16 MiB each,
000000010000000A000000FF is followed by 000000010000000B00000000. A timeline's history contains where it left
which other one; the segment of that place is on the new timeline too, and is read from there.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import re
from typing import Iterable, Mapping, NamedTuple, Optional

from .catalogue import Backup
from .results import Problem, Result, result

SEGMENT_BYTES = 16 * 1024 * 1024
PER_FILE = 0x100000000 // SEGMENT_BYTES
_SEGMENT = re.compile(r"^[0-9A-F]{24}$")
_FILE = re.compile(r"^([0-9A-F]{24})(\.partial)?-[0-9a-f]{40}(?:\.\w+)?$")
_HISTORY = re.compile(r"^([0-9A-F]{8})\.history(?:\.\w+)?$")
# What else lies there: the backup's own marks, and pgBackRest's list of the archive.
_ELSE = re.compile(r"^[0-9A-F]{24}\.[0-9A-F]{8}\.backup(?:-[0-9a-f]{40})?(?:\.\w+)?$|^archive\.info(?:\.copy)?$")


class WalError(Exception):
    """A name or a list is not one of the archive's; str() is the reason."""


class Place(NamedTuple):
    timeline: int
    number: int


class Gap(NamedTuple):
    first: str
    last: str
    count: int


class Archive(NamedTuple):
    """The segments of one database: an archive's directory as 17-1."""

    segments: dict  # Place to the time at which it came, in seconds since 1970.
    histories: dict  # Timeline to what it descends from: ((timeline, LSN), ...), oldest first.
    partial: tuple  # Names of segments that were not full when their timeline was left. Nothing needs them.
    known: set  # Timelines of which a history lies in the archive.
    twice: tuple  # Names of which there are two contents.
    odd: tuple  # Names that are not understood.
    began: Mapping = {}  # Timeline to the time at which its history came.


class Reach(NamedTuple):
    """How far a restore of a backup can come."""

    label: str
    consistent: bool  # What it needs to be opened at all is there.
    gaps: tuple  # From its beginning to the end of its way.
    last: Optional[str]  # The last segment before the first gap.
    until: Optional[float]  # When that came into the archive; what was committed before it can be restored.
    current: bool  # Its way leads to the timeline of today.
    problem: str  # Why its way is not known; "" where it is.


# --------------------------------------------------------------------------------------------------------------- names


def place_of(name: str) -> Place:
    if not _SEGMENT.match(name):
        raise WalError("%r is not the name of a segment" % (name,))
    low = int(name[16:], 16)
    if low >= PER_FILE:
        raise WalError("%s is not the name of a segment of %d bytes" % (name, SEGMENT_BYTES))
    return Place(int(name[:8], 16), int(name[8:16], 16) * PER_FILE + low)


def name_of(place: Place) -> str:
    return "%08X%08X%08X" % (place.timeline, place.number // PER_FILE, place.number % PER_FILE)


def number_of_lsn(lsn: str) -> int:
    """Return the number of the segment that holds a place such as 0/21003C30."""
    if not re.match(r"^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$", lsn):
        raise WalError("%r is no place in the WAL" % (lsn,))
    high, low = lsn.split("/")
    return (int(high, 16) * 0x100000000 + int(low, 16)) // SEGMENT_BYTES


def history_of(text: str) -> tuple:
    """Return ((timeline, LSN), ...) of the content of a .history file."""
    found = []
    for line in text.splitlines():
        line = line.split("#", 1)[0].strip()
        if line:
            match = re.match(r"^(\d{1,10})\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(?:\s|$)", line)
            if not match:
                raise WalError("%r is no line of a history" % line)
            found.append((int(match.group(1)), match.group(2)))
    if not found or [one for one, _ in found] != sorted({one for one, _ in found}):
        raise WalError("a history names no timelines, or not in their order")
    return tuple(found)


def archive(output, histories: Mapping) -> Archive:
    """Read `pgbackrest repo-ls --recurse --output=json` of an archive (17-1).

    histories are the contents of the .history files by their timelines, as `repo-get` writes them.
    """
    try:
        entries = json.loads(output)
        files = {name: entry.get("time", 0) for name, entry in entries.items() if entry["type"] == "file"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WalError("pgbackrest repo-ls wrote no list of files: %s" % error) from error
    segments, known, partial, twice, odd, began = {}, set(), [], [], [], {}
    for path, time in sorted(files.items()):
        name = path.rsplit("/", 1)[-1]
        segment, history = _FILE.match(name), _HISTORY.match(name)
        if segment and segment.group(2):
            partial.append(segment.group(1))
        elif segment:
            # The database host writes here: one name that is none must not keep everything from being restored.
            try:
                place = place_of(segment.group(1))
            except WalError:
                odd.append(path)
                continue
            if place in segments:
                twice.append(segment.group(1))
            segments[place] = time
        elif history:
            known.add(int(history.group(1), 16))
            began[int(history.group(1), 16)] = time
        # What is being written, or was when a host died.
        elif not _ELSE.match(name) and not name.endswith(".pgbackrest.tmp"):
            odd.append(path)
    read = {}
    for timeline, text in histories.items():
        with contextlib.suppress(WalError):  # Reported as one that was not read (evaluate).
            read[timeline] = history_of(text)
    return Archive(segments, read, tuple(partial), known, tuple(twice), tuple(odd), began)


# ----------------------------------------------------------------------------------------------------------- continuity


class _Way(NamedTuple):
    parts: list  # (timeline, first number, last number or None), in the order of recovery.
    current: bool
    problem: str


def _way(held: Archive, begin: Place, stop: Place, timeline: int) -> _Way:
    """Return the way from a backup to the timeline of today, or to the end of its own where that was given up."""
    own = [(begin.timeline, begin.number, None)]
    if timeline == begin.timeline:
        return _Way(own, True, "")
    if timeline not in held.histories:
        return _Way(own, False, "the history of timeline %d is not in the archive" % timeline)
    ancestors = list(held.histories[timeline])
    names = [one for one, _ in ancestors]
    if begin.timeline not in names:
        return _Way(own, False, "")
    parts, first = [], begin.number
    descent = ancestors[names.index(begin.timeline) :]
    for number, (one, lsn) in enumerate(descent):
        left = number_of_lsn(lsn)
        if number == 0 and stop.number > left:
            # It ended after the place at which its timeline was left, so it belongs to what was given up.
            return _Way(own, False, "")
        parts.append((one, first, left - 1))
        first = max(first, left)
    return _Way([*parts, (timeline, first, None)], True, "")


def leads_to(archives: Iterable, backup: Backup, timeline: int) -> bool:
    """Return whether a recovery of a backup can follow a timeline."""

    def way(held):
        begin, stop = (place_of(name) for name in (backup.wal_start, backup.wal_stop))
        return _way(held, begin, stop, timeline)

    return any(way(held).current for held in archives)


def timeline_at(archives: Iterable, backups: Iterable, timestamp: Optional[float] = None) -> int:
    """Return the timeline on which the database wrote at a time, today without one; 0 where nothing shows it.

    The newest one need not be it: a restore that was undone leaves one that was given up. One to which no backup leads
    is another database's, or an attacker's.
    """
    archives, backups = list(archives), list(backups)
    there = {place.timeline for held in archives for place in held.segments}
    led = {one for one in there if any(leads_to(archives, backup, one) for backup in backups)}
    arrivals = sorted(
        (time, place.timeline) for held in archives for place, time in held.segments.items() if place.timeline in led
    )
    if timestamp is None:
        return arrivals[-1][1] if arrivals else 0
    before = [timeline for time, timeline in arrivals if time <= timestamp]
    after = [timeline for time, timeline in arrivals if time > timestamp]
    if not before or not after:
        return (before or after or [0])[-1 if before else 0]
    # What was committed at a time comes with the segment after it, unless another timeline begins with that one.
    began = [held.began[after[0]] for held in archives if after[0] in held.began]
    return before[-1] if began and min(began) > timestamp else after[0]


def last_of(held: Archive, backup: Backup, timeline: int = 0) -> str:
    """Return the last segment after a backup on the way to a timeline, "" for none.

    Without timeline it is its own, or the newest that descends from it. A timeline whose history does not lead to that
    of the backup is another database's, or an attacker's.
    """
    begin, stop = (place_of(name) for name in (backup.wal_start, backup.wal_stop))
    wanted = [timeline] if timeline else [one for one in sorted(held.histories) if one > begin.timeline]
    ways = [_way(held, begin, stop, one) for one in wanted]
    parts = next((way.parts for way in reversed(ways) if way.current), [(begin.timeline, begin.number, None)])
    there = [
        (place.number, place.timeline)
        for place in held.segments
        for timeline, first, last in parts
        if place.timeline == timeline and first <= place.number <= (place.number if last is None else last)
    ]
    return name_of(Place(*max(there)[::-1])) if there else ""


def _missing(numbers: list, first: int, last: int) -> list:
    """Return the ranges that are not in a sorted list of numbers."""
    found, expected = [], first
    for number in numbers[bisect.bisect_left(numbers, first) : bisect.bisect_right(numbers, last)]:
        if number > expected:
            found.append((expected, number - 1))
        expected = number + 1
    if expected <= last:
        found.append((expected, last))
    return found


def reaches(
    held: Archive, backups: Iterable, timeline: Optional[int] = None, newest="", damaged: Iterable = ()
) -> list:
    """Return the Reach of each backup, in their order.

    timeline is that of the database today, else the highest in the archive. newest is the last segment that the
    database reports as archived (pg_stat_archiver.last_archived_wal): without it, one that is missing at the end is
    not seen. damaged are segments that are there and cannot be read (results.damaged_wal).
    """
    there = dict(held.segments)
    for name in damaged:
        there.pop(place_of(name), None)
    by_timeline: dict = {}
    for place in sorted(there):
        by_timeline.setdefault(place.timeline, []).append(place.number)
    ends = {one: max(number for line, number in held.segments if line == one) for one in {p[0] for p in held.segments}}
    if _SEGMENT.match(newest or ""):
        last = place_of(newest)
        ends[last.timeline] = max(last.number, ends.get(last.timeline, 0))
    if timeline is None:
        timeline = max(ends, default=0)
    found = []
    for backup in backups:
        begin, stop = place_of(backup.wal_start), place_of(backup.wal_stop)
        way = _way(held, begin, stop, timeline)
        gaps = []
        for one, first, end in way.parts:
            numbers = by_timeline.get(one, [])
            if end is None:
                end = max(ends.get(one, first - 1), stop.number if one == begin.timeline else 0)
            gaps += [(one, *gap) for gap in _missing(numbers, first, end)]
        reached = _reached(way.parts, gaps, by_timeline)
        consistent = not [gap for gap in gaps if gap[1] <= stop.number]
        ranges = [(Place(one, first), Place(one, last)) for one, first, last in gaps]
        named = tuple(Gap(name_of(first), name_of(last), last.number - first.number + 1) for first, last in ranges)
        last, until = (name_of(reached), there[reached]) if reached else (None, None)
        found.append(Reach(backup.label, consistent, named, last, until, way.current, way.problem))
    return found


def _reached(parts: list, gaps: list, by_timeline: Mapping) -> Optional[Place]:
    """Return the last segment on a way before its first gap."""
    reached = None
    for one, first, end in parts:
        stops = [gap[1] for gap in gaps if gap[0] == one and gap[1] >= first]
        numbers = by_timeline.get(one, [])
        limit = stops[0] - 1 if stops else numbers[-1] if numbers else first - 1
        limit = limit if end is None else min(limit, end)
        if limit >= first:
            reached = Place(one, limit)
        if stops:
            break
    return reached


def evaluate(held: Archive, found: Iterable, directory: str, verified: str = "") -> Result:
    """Return the gaps. The place of a problem is a backup's label, or the archive's directory.

    verified is the segment of the restore point that the newest backup was verified up to: it must be reached by it.
    """
    found = list(found)
    problems = [Problem("wal_twice", "there are two segments %s" % name, directory) for name in held.twice]
    problems += [Problem("wal_odd", "%s is not a name of the archive" % name, directory) for name in held.odd]
    for timeline in sorted(held.known - set(held.histories)):
        problems.append(Problem("history_unread", "the history of timeline %d was not read" % timeline, directory))
    for reach in found:
        if reach.problem:
            problems.append(Problem("history_missing", reach.problem, reach.label))
        if not reach.gaps:
            continue
        count = sum(gap.count for gap in reach.gaps)
        which = ", ".join(gap.first if gap.count == 1 else "%s to %s" % gap[:2] for gap in reach.gaps[:3])
        if len(reach.gaps) > 3:
            which += " and others"
        if not reach.consistent:
            what = "backup %s cannot be restored: %d segments are missing or damaged: %s"
            problems.append(Problem("wal_own_missing", what % (reach.label, count, which), reach.label))
        else:
            what = "backup %s can be restored up to segment %s only: %d are missing or damaged: %s"
            problems.append(Problem("wal_missing", what % (reach.label, reach.last, count, which), reach.label))
    if verified and found:
        newest = found[-1]
        place = place_of(verified)
        last = place_of(newest.last) if newest.last else Place(0, -1)
        if place.number > last.number or place.timeline > last.timeline:
            what = "backup %s does not reach segment %s of its restore point" % (newest.label, verified)
            problems.append(Problem("verification_not_reached", what, newest.label))
    return result(problems)


def newest_time(held: Archive) -> Optional[float]:
    """Return when the newest segment came into the archive."""
    return max(held.segments.values(), default=None)


def gap_count(found: Iterable) -> int:
    """Return how many segments are missing after the oldest backup, each counted once."""
    counts: dict = {}
    for reach in found:
        for gap in reach.gaps:
            counts[gap.last] = max(gap.count, counts.get(gap.last, 0))
    return sum(counts.values())
