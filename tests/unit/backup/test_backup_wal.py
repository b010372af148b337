"""Gaps in the archive of WAL: on one timeline, over several, at its end; and what can be restored because of them."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.backup import catalogue, results, wal
from ansible.module_utils.shiftmaster.backup.wal import Gap

RECORDED = Path(__file__).resolve().parents[1] / "recorded/backup"
HISTORY = {2: (RECORDED / "00000002.history").read_text()}
BACKUPS = catalogue.stanza_of((RECORDED / "info-timelines.json").read_bytes(), "shiftmaster").backups


def seg(number, timeline=1):
    return "%08X%08X%08X" % (timeline, number // 256, number % 256)


def listing(names, **more):
    files = {"archive.info": {"type": "file", "size": 1, "time": 1}, "17-1": {"type": "path"}}
    for count, name in enumerate(names):
        files["17-1/%s/%s-%040x.zst" % (name[:16], name, count)] = {"type": "file", "size": 1, "time": 1000 + count}
    return json.dumps(dict(files, **more))


def held(names, histories=(), **more):
    return wal.archive(listing(names, **more), dict(histories))


def backup(start, stop=None, timeline=1, label=None, stopped=0):
    stop = start if stop is None else stop
    return replace(
        BACKUPS[0],
        label=label or "B%d" % start,
        wal_start=seg(start, timeline),
        wal_stop=seg(stop, timeline),
        stopped=stopped,
    )


def reach(names, one, **more):
    histories = more.pop("histories", ())
    (found,) = wal.reaches(held(names, histories), [one], **more)
    return found


def recorded(without=()):
    data = json.loads((RECORDED / "ls-timelines.json").read_bytes())
    left = {name: entry for name, entry in data.items() if not any(part in name for part in without)}
    assert len(left) == len(data) - len(without)
    return wal.archive(json.dumps(left), HISTORY)


def by_label(found):
    return {one.label: one for one in found}


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("000000010000000000000001", (1, 1)),
        ("0000000A00000001000000FF", (10, 511)),
        ("0000001A000000FF0000001B", (0x1A, 0xFF1B)),
        ("FFFFFFFF00000010000000FF", (0xFFFFFFFF, 0x10FF)),
    ],
)
def test_a_name_is_three_hexadecimal_numbers(name, place):
    assert wal.place_of(name) == place and wal.name_of(wal.Place(*place)) == name


@pytest.mark.parametrize("name", ["0" * 23, "0" * 25, "0" * 21 + "100", "0" * 23 + "g", "00000002.history"])
def test_an_invalid_name_of_a_segment_is_rejected(name):
    with pytest.raises(wal.WalError):
        wal.place_of(name)


def test_a_place_in_the_wal_has_its_segment():
    assert wal.number_of_lsn("1F/1A003C30") == 0x1F1A and wal.number_of_lsn("0/1FFFFFF") == 1
    assert wal.number_of_lsn("1/0") == 256 and wal.number_of_lsn("1f/c0000000") == 0x1FC0
    for text in ("", "0", "0/", "/0", "0/0/0", "G/0", "0/123456789", " 0/0", "0/0\nx", "21003C30"):
        with pytest.raises(wal.WalError):
            wal.number_of_lsn(text)


def test_histories():
    assert wal.history_of(HISTORY[2]) == ((1, "0/21003C30"),)
    assert wal.history_of("1\t0/5000000\tno recovery target specified\n\n2\t0/9000000\tx\n") == (
        (1, "0/5000000"),
        (2, "0/9000000"),
    )
    for text in ("", "x", "1\t21003C30\tx", "2\t0/5\tx\n1\t0/6\tx"):
        with pytest.raises(wal.WalError):
            wal.history_of(text)


def test_an_archive_is_read_completely():
    found = recorded()
    assert sorted(found.segments)[0] == (1, 1) and sorted(found.segments)[-1] == (2, 0x23)
    assert len(found.segments) == 35 + 3 and found.known == {2} and found.odd == () and found.twice == ()
    assert found.segments[1, 1] == 1795707779 and wal.newest_time(found) == max(found.segments.values())
    assert wal.newest_time(held([])) is None


def test_two_contents_of_a_segment_are_reported():
    text = (RECORDED / "ls-history.json").read_bytes()
    assert wal.archive(text, HISTORY).twice  # Two directories, both with a first segment.


def test_partial_and_unknown_files_are_distinguished():
    partial = "17-1/0000000100000000/%s.partial-%040x.zst" % (seg(3), 5)
    entry = {"type": "file", "size": 1, "time": 5}
    # The last one is being written: no part of the archive yet.
    writing = "17-1/0000000100000000/%s-%040x.zst.pgbackrest.tmp" % (seg(4), 5)
    found = held([seg(1), seg(2)], **{partial: entry, "17-1/note.txt": entry, writing: entry})
    assert found.partial == (seg(3),) and found.odd == ("17-1/note.txt",)
    assert (1, 3) not in found.segments
    assert [problem.code for problem in wal.evaluate(found, [], "17-1").problems] == ["wal_odd"]


def test_two_contents_of_one_segment_are_found():
    other = "17-1/0000000100000000/%s-%040x.zst" % (seg(1), 77)
    found = held([seg(1)], **{other: {"type": "file", "size": 1, "time": 5}})
    assert [(one.code, one.where) for one in wal.evaluate(found, [], "17-1").problems] == [("wal_twice", "17-1")]


@pytest.mark.parametrize("response", ["", "[]", "{", '{"x": 1}', '{"x": {}}', "null"])
def test_an_invalid_list_raises(response):
    with pytest.raises(wal.WalError):
        wal.archive(response, {})


# --------------------------------------------------------------------------------------------------------- one timeline


def test_an_archive_without_gaps():
    found = reach([seg(number) for number in range(250, 270)], backup(252, 253))
    assert found == wal.Reach("B252", True, (), seg(269), 1019, True, "")


def test_a_gap_after_the_backup():
    found = reach([seg(number) for number in range(1, 20) if number not in (9, 10, 15)], backup(2, 4))
    assert found.gaps == (Gap(seg(9), seg(10), 2), Gap(seg(15), seg(15), 1))
    assert found.consistent and found.last == seg(8) and found.until == 1007


@pytest.mark.parametrize("number, consistent", [(2, False), (3, False), (4, False), (5, True), (1, True)])
def test_a_gap_within_the_backup(number, consistent):
    found = reach([seg(one) for one in range(1, 9) if one != number], backup(2, 4))
    assert found.consistent == consistent and bool(found.gaps) == (number != 1)


def test_an_empty_archive():
    found = reach([], backup(2, 4))
    assert found.gaps == (Gap(seg(2), seg(4), 3),) and not found.consistent
    assert (found.last, found.until) == (None, None)


def test_an_end_that_never_came():
    """A backup without its last segments, and without any after them."""
    found = reach([seg(number) for number in (1, 2, 3)], backup(2, 5))
    assert found.gaps == (Gap(seg(4), seg(5), 2),) and not found.consistent and found.last == seg(3)


def test_the_database_reports_the_end_of_the_archive():
    names = [seg(number) for number in range(1, 8)]
    assert reach(names, backup(2)).gaps == ()
    assert reach(names, backup(2), newest=seg(7)).gaps == ()
    assert reach(names, backup(2), newest=seg(9)).gaps == (Gap(seg(8), seg(9), 2),)
    # The name of the last thing that was archived may be that of a history.
    assert reach(names, backup(2), newest="00000002.history").gaps == ()


def test_a_damaged_segment_is_a_gap():
    _, _, stderr = (RECORDED / "verify-flipped-wal.txt").read_text().partition("--- stderr")
    damaged = results.damaged_wal(stderr)
    found = reach([seg(number) for number in range(1, 11)], backup(2), damaged=damaged)
    assert found.gaps == (Gap(seg(5), seg(5), 1),) and found.last == seg(4)
    # Also where it is the last one.
    assert reach([seg(number) for number in range(1, 6)], backup(2), damaged=damaged).gaps


def test_the_segment_after_4_gib():
    names = [wal.name_of(wal.Place(1, number)) for number in range(wal.PER_FILE - 2, wal.PER_FILE + 3)]
    one = replace(BACKUPS[0], wal_start=names[0], wal_stop=names[1])
    complete = wal.archive(listing(names), {})
    assert wal.reaches(complete, [one])[0].gaps == ()
    holed = wal.archive(listing(names[:2] + names[3:]), {})
    assert wal.reaches(holed, [one])[0].gaps == (Gap(names[2], names[2], 1),)


@pytest.mark.parametrize("seed", range(40))
def test_gaps_are_what_a_plain_walk_finds(seed):
    chance = random.Random(seed)
    there = [number for number in range(1, 60) if chance.random() > 0.1]
    start = chance.randrange(1, 50)
    found = reach([seg(number) for number in there], backup(start, start + 2))
    wanted = [number for number in range(start, max(max(there), start + 2) + 1) if number not in there]
    named = []
    for gap in found.gaps:
        first, last = wal.place_of(gap.first).number, wal.place_of(gap.last).number
        assert last - first + 1 == gap.count
        named += range(first, last + 1)
    assert named == wanted
    assert found.consistent == (not set(wanted) & set(range(start, start + 3)))
    before = wanted[0] - 1 if wanted else max(there)
    assert found.last == (seg(before) if before >= start else None)


# ----------------------------------------------------------------------------------------------------------- timelines


def test_the_recorded_archive_has_no_gap_over_its_timelines():
    found = by_label(wal.reaches(recorded(), BACKUPS))
    assert len(found) == len(BACKUPS)
    assert {one.gaps for one in found.values()} == {()}
    assert {one.last for one in found.values()} == {seg(0x23, 2)} and all(one.current for one in found.values())


def test_the_path_is_that_of_the_recovery():
    """PostgreSQL's own log, of a recovery over the change of the timeline that came to a missing segment."""
    log = (RECORDED / "recovery-missing-wal.log").read_text()
    read = re.findall(r'restored log file "([0-9A-F]{24})"', log)
    one = next(item for item in BACKUPS if item.label == "20261126-154631F")
    found = wal.reaches(recorded([seg(0x22, 2)]), [one])[0]
    assert found.gaps == (Gap(seg(0x22, 2), seg(0x22, 2), 1),)
    assert found.last == max(read) and found.last == seg(0x21, 2)
    assert one.wal_start == min(read)


def test_segments_of_the_old_timeline_after_the_branch_are_not_needed():
    """Its own 21 to 23 belong to what was given up."""
    found = wal.reaches(recorded([seg(0x21), seg(0x22), seg(0x23)]), BACKUPS)
    assert {one.gaps for one in found} == {()}
    found = wal.reaches(recorded([seg(0x20) + "-"]), BACKUPS[-3:])
    assert [bool(one.gaps) for one in found] == [True, True, False]


def test_a_gap_on_the_new_timeline_is_one_of_the_old_backups_too():
    found = by_label(wal.reaches(recorded([seg(0x21, 2)]), BACKUPS))
    assert found[BACKUPS[0].label].last == seg(0x20)
    assert found[BACKUPS[-1].label].gaps == ()  # It began after it.


def test_a_backup_of_an_abandoned_timeline_reaches_the_end_of_its_own_timeline():
    late = backup(0x22, 0x23)
    found = wal.reaches(recorded(), [late])[0]
    assert (found.current, found.gaps, found.last, found.problem) == (False, (), seg(0x23), "")


def test_a_backup_that_ended_where_the_timeline_was_left():
    histories = {2: "1\t0/5000100\tx\n"}
    names = [seg(number) for number in (3, 4)] + [seg(number, 2) for number in (5, 6)]
    found = reach(names, backup(3, 5), histories=histories)
    assert found.consistent and found.current and found.last == seg(6, 2)
    assert not reach(names[:2] + names[3:], backup(3, 5), histories=histories).consistent


def test_three_timelines():
    histories = {3: "1\t0/5000100\tx\n2\t0/8000100\ty\n", 2: "1\t0/5000100\tx\n"}
    names = [seg(number) for number in range(1, 5)]
    names += [seg(number, 2) for number in range(5, 8)] + [seg(number, 3) for number in range(8, 11)]
    for one in (backup(2), backup(6, 7, 2), backup(9, 9, 3)):
        found = reach(names, one, histories=histories)
        assert found.gaps == () and found.last == seg(10, 3), one
    assert reach(names, backup(2), histories=histories, timeline=2).last == seg(7, 2)
    for missing, timeline in ((4, 1), (6, 2), (9, 3)):
        left = [name for name in names if name != seg(missing, timeline)]
        found = reach(left, backup(2), histories=histories)
        assert found.gaps == (Gap(seg(missing, timeline), seg(missing, timeline), 1),)
        assert found.last == seg(missing - 1, timeline)


def test_a_timeline_of_another_branch():
    """Restored twice to a time of timeline 1: timeline 3 does not come of timeline 2."""
    histories = {3: "1\t0/4000100\tx\n"}
    names = [seg(number) for number in range(1, 8)] + [seg(5, 2), seg(6, 2), seg(4, 3), seg(5, 3)]
    given_up = reach(names, backup(5, 5, 2), histories=histories)
    assert not given_up.current and given_up.last == seg(6, 2)
    assert reach(names, backup(2), histories=histories).last == seg(5, 3)


def test_two_timelines_left_in_one_segment():
    histories = {3: "1\t0/5000100\tx\n2\t0/5000900\ty\n"}
    names = [seg(number) for number in range(1, 6)] + [seg(5, 2), seg(5, 3), seg(6, 3)]
    assert reach(names, backup(2), histories=histories).gaps == ()
    assert reach([name for name in names if name != seg(5, 2)], backup(2), histories=histories).gaps == ()


@pytest.mark.parametrize(
    ("names", "histories", "expected"),
    [
        ([seg(1), seg(2), seg(5)], {}, seg(5)),
        # The database host can add any name, and a history that does not lead to the backup.
        ([seg(1), seg(2), seg(9, 255)], {}, seg(2)),
        ([seg(1), seg(2), seg(9, 255)], {255: "7\t0/1000000\tno\n"}, seg(2)),
        ([seg(1), seg(2), seg(9, 255)], {255: "none\n"}, seg(2)),
        # A promotion; later segments of the old primary are not read.
        ([seg(1), seg(2), seg(3), seg(2, 2), seg(4, 2)], {2: "1\t0/2000080\tno\n"}, seg(4, 2)),
        ([seg(1), seg(2), seg(3)], {2: "1\t0/2000080\tno\n"}, seg(1)),
        # Promoted twice, and named in any order.
        (
            [seg(1), seg(2), seg(4, 2), seg(5, 3)],
            {3: "1\t0/2000080\tno\n2\t0/4000080\tno\n", 2: "1\t0/2000080\tno\n"},
            seg(5, 3),
        ),
        # It ended before the backup did.
        ([seg(1), seg(2), seg(4, 2)], {2: "1\t0/800080\tno\n"}, seg(2)),
        ([], {}, ""),
        ([seg(9, 255)], {}, ""),
    ],
)
def test_the_last_segment_is_found_by_the_histories(names, histories, expected):
    assert wal.last_of(held(names, histories), backup(1)) == expected


def test_an_invalid_name_or_history_is_reported_and_the_others_are_read():
    found = held([seg(1), "0000000100000000FFFFFFFF"], {2: "x"}, **{"00000002.history": {"type": "file"}})
    assert len(found.segments) == len(found.odd) == 1 and found.histories == {}
    codes = [problem.code for problem in wal.evaluate(found, [], "17-1").problems]
    assert codes == ["wal_odd", "history_unread"]


@pytest.mark.parametrize("line", ["1\t123456789/0\tx", "1" * 5000 + "\t0/1\tx", "1\t0/" + "F" * 9 + "\tx"])
def test_a_history_of_a_hostile_database_host_prevents_no_restore(line):
    found = held([seg(1), seg(2)], {2: line})
    assert found.histories == {}
    assert wal.last_of(found, backup(1)) == seg(2)
    wal.reaches(found, [backup(1)], timeline=2)


def test_without_the_history_the_path_is_unknown():
    text = (RECORDED / "ls-timelines.json").read_bytes()
    unread = wal.archive(text, {})
    found = wal.reaches(unread, BACKUPS)
    assert not found[0].current and "history of timeline 2" in found[0].problem
    assert found[-1].current and found[-1].problem == ""
    codes = {problem.code for problem in wal.evaluate(unread, found, "17-1").problems}
    assert codes == {"history_missing", "history_unread"}


# ------------------------------------------------------------------------------------------------------------- results


def evaluate(names, backups, **more):
    verified = more.pop("verified", "")
    archive = held(names)
    return wal.evaluate(archive, wal.reaches(archive, backups, **more), "17-1", verified)


def test_backups_without_gaps_are_good():
    names = [seg(number) for number in range(1, 20)]
    assert evaluate(names, [backup(2), backup(9)], verified=seg(12), newest=seg(19)).good
    assert wal.evaluate(recorded(), wal.reaches(recorded(), BACKUPS), "17-1").good


def test_a_gap_is_a_problem_of_the_backups_before_it():
    names = [seg(number) for number in range(1, 20) if number not in (7, 8)]
    evaluated = evaluate(names, [backup(2), backup(9)])
    assert [(one.code, one.where) for one in evaluated.problems] == [("wal_missing", "B2")]
    assert evaluated.concerning(["B9", "17-1"]).good
    assert str(evaluated) == "backup B2 can be restored up to segment %s only: 2 are missing or damaged: %s to %s" % (
        seg(6), seg(7), seg(8),
    )  # fmt: skip


def test_a_backup_that_cannot_be_opened():
    evaluated = evaluate([seg(number) for number in (1, 2, 4)], [backup(2, 3)])
    assert [(one.code, one.where) for one in evaluated.problems] == [("wal_own_missing", "B2")]


def test_many_gaps_are_not_all_named():
    evaluated = evaluate([seg(number) for number in range(1, 40, 2)], [backup(1)])
    assert "19 are missing" in str(evaluated) and str(evaluated).endswith(" and others") and len(str(evaluated)) < 300
    assert [name for name in map(seg, range(2, 40, 2)) if name in str(evaluated)] == [seg(2), seg(4), seg(6)]


def test_the_verified_point_must_be_reached():
    names = [seg(number) for number in range(1, 10)]
    assert evaluate(names, [backup(2)], verified=seg(9)).good
    evaluated = evaluate(names, [backup(2)], verified=seg(10))
    assert [(one.code, one.where) for one in evaluated.problems] == [("verification_not_reached", "B2")]
    assert "verification_not_reached" in [
        one.code for one in evaluate(names[:4] + names[5:], [backup(2)], verified=seg(8)).problems
    ]
    assert not evaluate(names, [backup(2)], verified=seg(3, 2)).good
    assert not evaluate([], [backup(2)], verified=seg(3)).good


def test_gaps_are_counted_once():
    names = [seg(number) for number in range(20) if number not in (6, 7, 12)]
    found = wal.reaches(held(names), [backup(2), backup(4), backup(7), backup(9)])
    assert wal.gap_count(found) == 3
    assert wal.gap_count([]) == 0


def test_the_order_in_which_segments_are_listed_does_not_count():
    names = [seg(number) for number in (7, 3, 9, 2, 4, 10)]
    found = reach(names, backup(2))
    assert [(gap.first, gap.last) for gap in found.gaps] == [(seg(5), seg(6)), (seg(8), seg(8))]
    assert found.last == seg(4)
