"""Full or incremental, and is there room: decided before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.backup import catalogue, plan

RECORDED = Path(__file__).resolve().parents[1] / "recorded/backup"
FULL = "20261126-154259F"
INCR, DIFF, LAST = (FULL + "_20261126-" + name for name in ("154316I", "154334D", "154338I"))
FIRST_SYSTEM, SECOND_SYSTEM = 7712506137836862694, 7712508581903979874
STOPPED = 1795707822  # The last of these four.
MIB, GIB = 1024 * 1024, 1024**3


def stanza(name=""):
    return catalogue.stanza_of(
        (RECORDED / ("info-%s.json" % name if name else "info.json")).read_bytes(), "shiftmaster"
    )


def kind(read=None, verifications=None, now=STOPPED + plan.DAY, **more):
    read = stanza() if read is None else read
    return plan.kind_today(read, {FULL: True, LAST: True} if verifications is None else verifications, now, **more)


def with_backup(label, **changes):
    read = stanza()
    changed = [replace(one, **changes) if one.label == label else one for one in read.backups]
    return replace(read, backups=tuple(changed))


# ---------------------------------------------------------------------------------------------------------------- kind


def test_a_day_after_a_verified_full_one_it_is_incremental():
    decision = kind(system_id=FIRST_SYSTEM, timeline=1)
    assert decision == ("incr", "full backup %s is verified and 1.0 days old" % FULL)


@pytest.mark.parametrize(
    "hours, expected", [(6 * 24, "incr"), (6.5 * 24 - 0.1, "incr"), (6.5 * 24, "full"), (169, "full")]
)
def test_it_is_full_each_week_and_a_timer_may_be_early(hours, expected):
    assert kind(now=1795707779 + hours * 3600).kind == expected


def test_the_week_may_be_another():
    assert kind(full_days=1).kind == "full" and kind(full_days=2).kind == "incr"


@pytest.mark.parametrize("name", ["no-stanza", "no-backup", "no-repository"])
def test_the_first_one_is_full(name):
    assert kind(stanza(name)).kind == kind(stanza(name), system_id=FIRST_SYSTEM).kind == "full"


def test_a_full_backup_that_was_never_verified_is_no_base():
    assert kind(verifications={}) == ("full", "the last full backup, %s, was never verified by a restore" % FULL)
    assert kind(verifications={FULL: True}).kind == "incr"
    assert kind(verifications={LAST: True}).kind == "full"


@pytest.mark.parametrize("label", [FULL, DIFF, LAST])
def test_a_backup_that_failed_its_restore_test_is_no_base(label):
    decision = kind(verifications={FULL: True, DIFF: True, LAST: True, label: False})
    assert decision == ("full", "the restore test of backup %s failed" % label)


@pytest.mark.parametrize("label", [FULL, DIFF, LAST])
def test_a_damaged_backup_is_no_base(label):
    assert kind(damaged=[label]) == ("full", "backup %s is damaged" % label)
    assert kind(with_backup(label, error=True)) == ("full", "backup %s holds pages with wrong checksums" % label)


def test_a_new_chain_begins_after_a_gap_in_the_archive():
    """Where the archive could not be reached for longer than the limit of the WAL allows, segments were dropped."""
    assert kind(gapped=[FULL, LAST]) == ("full", "WAL is missing after backup %s, so a new chain begins" % LAST)
    assert kind(gapped=[FULL, LAST], wish="incr").kind == "full"
    # It has begun already.
    assert kind(gapped=[FULL]).kind == "incr"


def test_damage_outside_the_last_chain_does_not_matter():
    assert kind(verifications={FULL: True, INCR: False}, damaged=[INCR]).kind == "incr"
    assert kind(with_backup(INCR, error=True)).kind == "incr"


def test_a_chain_with_a_missing_link_is_no_base():
    read = stanza()
    broken = replace(read, backups=tuple(one for one in read.backups if one.label != DIFF))
    assert kind(broken).kind == "full" and "needs %s, which is gone" % DIFF in kind(broken).why


def test_another_database_begins_again():
    assert kind(system_id=SECOND_SYSTEM) == ("full", "the database is another one than that of the repository")
    read = stanza("upgraded")
    verifications = {one.label: True for one in read.backups}
    assert "no full backup of this database" in kind(read, verifications, read.backups[-1].stopped + 60).why
    label = stanza("history").backups[-1].label
    now = stanza("history").backups[-1].stopped + 60
    assert kind(stanza("history"), {label: True}, now, system_id=SECOND_SYSTEM).kind == "incr"


def test_another_timeline_begins_again():
    assert kind(timeline=2) == ("full", "the database is on timeline 2 since the last backup")


def test_the_first_repository_alone_has_the_chain():
    read = stanza("two-repositories")
    (offsite,) = read.of(2)
    assert kind(read, {offsite.label: True}, offsite.stopped + 60).kind == "full"
    # The numbers of the databases are each repository's own, and may be the same.
    twin = replace(read, backups=(*read.of(1), replace(offsite, database_id=2)))
    assert "never verified" in kind(twin, {offsite.label: True}, offsite.stopped + 60).why


@pytest.mark.parametrize("now", [STOPPED - 1, 0])
def test_a_clock_before_the_last_backup_gives_no_age(now):
    assert kind(now=now).kind == "full" and "clock" in kind(now=now).why


def test_a_requested_kind_is_used_where_it_is_safe():
    assert kind(wish="full") == ("full", "a full backup was requested")
    assert kind(wish="incr", now=STOPPED + 30 * plan.DAY) == ("incr", "an incremental backup was requested")
    assert kind(wish="incr", verifications={}).kind == "full"


# --------------------------------------------------------------------------------------------------------------- space


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ([], None),
        ([100], 120),
        ([100, 100, 100], 120),
        ([100, 150], 200),
        ([200, 100], 120),
        ([0], 0),
        ([10, 500, 500], 990),
    ],
)
def test_the_estimated_size_of_the_next_backup(sizes, expected):
    assert plan.foreseen(sizes) == expected


def test_a_full_one_grows_with_the_database():
    size, added = 32852909, 4324408
    assert plan.database_bytes(stanza(), "full", size) == pytest.approx(added * 1.2, abs=2)
    assert plan.database_bytes(stanza(), "full", 3 * size) == pytest.approx(3 * added * 1.2, abs=2)


def test_an_incremental_one_is_as_large_as_the_largest_of_a_week_twice():
    largest = max(backup.repo_size for backup in stanza().backups if backup.kind != "full")
    assert plan.database_bytes(stanza(), "incr", GIB) == 2 * largest


def test_the_first_backup_is_estimated_as_large_as_the_database():
    assert plan.database_bytes(stanza("no-backup"), "full", GIB) == GIB
    assert plan.database_bytes(stanza("no-backup"), "incr", GIB) == GIB


def test_the_first_incremental_backup_is_estimated_as_large_as_the_full_one():
    read = stanza()
    assert plan.database_bytes(replace(read, backups=read.backups[:1]), "incr", GIB) == 4324408


def test_no_backup_is_larger_than_the_database():
    assert plan.database_bytes(stanza(), "incr", 1000) == 1000


def test_a_restore_needs_more_than_the_database():
    assert plan.restore_bytes(GIB) > GIB + 64 * MIB


@pytest.mark.parametrize(
    "needed, free, total, good",
    [
        (1 * GIB, 2 * GIB, 10 * GIB, True),
        (1 * GIB, 1 * GIB + 308 * MIB, 10 * GIB, True),
        (1 * GIB, 1 * GIB + 307 * MIB, 10 * GIB, False),
        (1 * GIB, 1 * GIB + 256 * MIB, 2 * GIB, True),
        (1 * GIB, 1 * GIB + 255 * MIB, 2 * GIB, False),
        (1 * GIB, 10 * GIB, 1000 * GIB, False),
        (0, 0, 10 * GIB, False),
    ],
)
def test_a_disk_that_would_be_full_is_refused_before(needed, free, total, good):
    assert plan.room(needed, free, total, "/var/backups").good == good


def test_the_refusal_shows_how_much_is_missing():
    (problem,) = plan.room(3 * GIB, 1 * GIB, 10 * GIB, "/var/backups", "the restore test").problems
    assert problem == (
        "no_room",
        "the restore test needs about 3.0 GiB in /var/backups, where 1.0 GiB are free and 307.2 MiB must stay so",
        "/var/backups",
    )
    (problem,) = plan.room(5000 * GIB, 500, 10 * GIB, "/x").problems
    assert "needs about 4.9 TiB in /x, where 500 bytes are free" in problem.what
