"""Removable backups: single cases, the commands against what pgBackRest really did, and simulated years with faults."""

from __future__ import annotations

import functools
import random
import re
import time
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.backup import catalogue, plan, retention
from ansible.module_utils.shiftmaster.backup.retention import DAY, Item, Policy

RECORDED = Path(__file__).resolve().parents[1] / "recorded/backup"
NOW = 1795707779.0


def item(name, days, needs=(), **more):
    """One that ended so many days ago."""
    return Item(name, NOW - days * DAY, tuple(needs), full=not needs, **more)


def weeks(count, first=0):
    """Weekly full backups with six incremental ones each, the newest one today."""
    items = []
    for week in range(count - 1, -1, -1):
        full = "F%d" % week
        items.append(item(full, first + week * 7 + 6))
        chain = [full]
        for day in range(5, -1, -1):
            items.append(item("%s_%d" % (full, day), first + week * 7 + day, chain))
            chain.append(items[-1].name)
    return items


def verifications(items, **more):
    return dict({one.name: True for one in items}, **more)


def decide(items, verified=None, now=NOW, policy=Policy(), **more):  # noqa: B008 - a tuple
    # Runs of every day are known, as their manifests are.
    more.setdefault("seen", [now - day * DAY for day in range(400)])
    return retention.plan(items, verifications(items) if verified is None else verified, now, policy, **more)


def codes(made):
    return [alert.code for alert in made.alerts]


def places(made):
    return [(alert.code, alert.where) for alert in made.alerts]


# --------------------------------------------------------------------------------------------------------------- rules


def test_the_month_and_what_its_first_day_is_restored_from_stay():
    items = weeks(8)
    made = decide(items)
    # The newest of 30 days and more is the one of day 30; it needs the four before it, back to F4 of day 34.
    assert [one.name for one in items if one.name in made.keep and one.ended <= NOW - 30 * DAY] == [
        "F4", "F4_5", "F4_4", "F4_3", "F4_2",
    ]  # fmt: skip
    assert set(made.remove) == {one.name for one in items if one.ended < NOW - 34.5 * DAY}
    assert made.alerts == ()
    assert made.keep["F4_2"] == "the oldest of the 30 days are restored from it"
    assert made.keep["F4"].endswith(" needs it")


def test_dependent_backups_are_removed_first():
    made = decide(weeks(8))
    assert len(made.remove) == 21
    seen = set()
    needs = {one.name: one.needs for one in weeks(8)}
    for name in made.remove:
        assert not seen & set(needs[name])
        seen.add(name)


def test_nothing_younger_than_the_limit_is_removed_in_any_state():
    items = [item("verified", 29.9), item("unverified", 20), item("failed", 10), item("damaged", 5, damaged=True)]
    items.append(item("new", 0))
    made = decide(items, {"verified": True, "failed": False, "new": True})
    assert made.remove == () and made.alerts == ()
    assert decide(items, policy=Policy(days=15, window=False)).remove == ("unverified", "verified")


@pytest.mark.parametrize("state", [{}, {"old": False}])
def test_an_old_one_that_is_not_verified_goes_when_a_newer_full_one_is(state):
    items = [item("old", 40), item("new", 0)]
    assert decide(items, dict(state, new=True)).remove == ("old",)
    assert decide(items, state).remove == ()


def test_the_last_verified_full_one_stays_for_ever_with_what_depends_on_it():
    items = [
        item("older", 90),
        item("last", 80),
        item("last_1", 79, ["last"]),
        item("failed", 40),
        item("new", 0, ["last"]),
    ]
    made = decide(items, {"older": True, "last": True, "last_1": True, "failed": False, "new": True})
    assert made.remove == ("older",)
    assert made.keep["last"] == "one of the last 1 verified full backups"
    assert made.keep["last_1"] == "depends on the last verified full backup"
    assert made.keep["failed"] == "no newer full backup is verified"


def test_the_policy_defines_the_number_of_full_backups():
    items = [item("F%d" % days, days) for days in (200, 150, 100, 50, 0)]
    assert decide(items, policy=Policy(window=False)).remove == ("F50", "F100", "F150", "F200")
    assert decide(items, policy=Policy(window=False, fulls=3)).remove == ("F150", "F200")
    assert decide(items).remove == ("F100", "F150", "F200")


def test_two_damaged_ones_do_not_expire_the_last_clean_one():
    """The result of pgBackRest's own retention."""
    items = [item("clean", 50), item("damaged1", 40, damaged=True), item("damaged2", 0, damaged=True)]
    made = decide(items, {"clean": True})
    assert made.remove == () and places(made) == [("newest_not_verified", "damaged2")]
    healed = decide([*items, item("good", 0)], {"clean": True, "good": True})
    assert healed.remove == ("damaged1",)


def test_a_backup_with_a_damaged_or_missing_chain_is_not_verified():
    items = [item("F", 50), item("F_1", 0, ["F"])]
    assert codes(decide(items, {"F_1": True, "F": True}, damaged=["F"])) == ["no_verified"]
    items = [item("old", 60), item("G", 50), item("G_1", 0, ["G"])]
    assert codes(decide(items, damaged=["G"])) == ["newest_not_verified"]
    items = [item("old", 60), item("G", 50), item("G_1", 0, ["G", "gone"])]
    assert codes(decide(items)) == ["newest_not_verified"]
    items = [item("old", 60), item("G", 50), item("G_1", 1, ["G", "gone"]), item("G_2", 0, ["G_1"])]
    assert codes(decide(items)) == ["newest_not_verified"]


def test_a_verification_is_true_and_nothing_else():
    assert codes(decide([item("F", 0)], {"F": "yes"})) == ["no_verified"]


def test_a_run_of_failures_removes_nothing():
    items = weeks(8, first=3)
    made = decide(items)
    assert made.remove == () and places(made) == [("not_fresh", items[-1].name)]
    assert len(made.keep) == len(items)
    assert decide(items, policy=Policy(fresh_days=4)).remove


def test_without_a_verified_backup_nothing_is_removed():
    made = decide(weeks(8), {})
    assert made.remove == () and codes(made) == ["no_verified"]
    assert codes(decide([], {})) == ["no_verified"]


def test_without_a_window_only_the_month_is_kept():
    made = decide([item("S%d" % day, day) for day in range(60)], policy=Policy(window=False))
    assert set(made.keep) == {"S%d" % day for day in range(30)}


@pytest.mark.parametrize("days", [0.1, 1, 400])
def test_a_slow_clock_removes_nothing(days):
    items = weeks(8)
    made = decide(items, now=NOW - days * DAY)
    assert made.remove == () and "clock" in codes(made)
    assert len(made.keep) == len(items)
    assert "F0_0" in made.alerts[0].what and made.alerts[0].where == max(items, key=lambda one: one.ended).name


def test_two_hosts_clocks_may_differ_a_little():
    assert decide(weeks(8), now=NOW - 200).remove == decide(weeks(8)).remove


def test_a_run_in_the_future_reports_the_clock_too():
    made = decide(weeks(8), seen=[NOW - day * DAY for day in range(-2, 60)])
    assert places(made) == [("clock", "")] and made.remove == ()


@pytest.mark.parametrize("jump", [10, 40, 4000])
def test_a_clock_that_jumped_ages_nothing(jump):
    """Also after new backups were made under it: what was made before is not suddenly a month old."""
    items = [one._replace(ended=one.ended - jump * DAY) for one in weeks(4, first=1)]
    seen = [one.ended for one in items]
    assert decide(items, now=NOW, seen=seen).remove == ()
    for days in range(1, 8):
        made = decide([*items, item("new", 0)], seen=seen + [NOW - day * DAY for day in range(days)])
        assert made.remove == (), days
        assert ("gap" in codes(made)) == (days <= 4)


def test_after_an_outage_pruning_continues_eventually():
    items = [one._replace(ended=one.ended - 50 * DAY) for one in weeks(8)]
    seen = [NOW - day * DAY for day in [*range(50, 120), *range(6)]]
    made = decide([*items, item("new", 0)], seen=seen)
    # Five days have passed since, so 25 are left of the month, and the chain that their first day is restored from.
    assert made.alerts == () and len(made.remove) == 56 - 25 - 3


def test_failed_runs_count_as_time_passed():
    items = [item("old", 100), item("new", 0)]
    assert decide(items).remove == () and decide([item("older", 120), *items]).remove == ("older",)
    assert decide([item("older", 120), *items], seen=[]).remove == ()


def test_a_repository_above_the_limit_is_reported():
    assert retention.over_limit(280, 280) == retention.over_limit(280, 0) == ()
    (alert,) = retention.over_limit(281, 280)
    assert alert.code == "over_limit" and "take 281 bytes, 1 more than they may" in alert.what


# ---------------------------------------------------------------------------------------------------------- pgBackRest


def stanza(name):
    return catalogue.stanza_of(
        (RECORDED / ("info-%s.json" % name if name else "info.json")).read_bytes(), "shiftmaster"
    )


def database_plan(name, days=40, policy=Policy(window=False, days=20), **more):  # noqa: B008 - a tuple
    """The recorded repository, seen so many days later, with a recent time of its newest backup."""
    read = stanza(name)
    backups = read.backups
    newest = read.of(1)[-1]
    now = newest.stopped + 60.0
    moved = [
        one if one.label.startswith(newest.label[:16]) and one.repo == 1 else _older(one, days * DAY) for one in backups
    ]
    read = read.__class__(**dict(read.__dict__, backups=tuple(sorted(moved, key=lambda one: one.started))))
    seen = [now - day * DAY for day in range(100)]
    return retention.database_plan(read, {one.label: True for one in backups}, now, policy, seen=seen, **more)


def _older(backup, seconds):
    return backup.__class__(**dict(backup.__dict__, started=backup.started - seconds, stopped=backup.stopped - seconds))


def left_in(name, part):
    text = (RECORDED / name).read_text()
    return text.split("--- %s\n" % part)[1].split("---")[0].split()


def test_the_commands_are_those_that_were_recorded():
    made = database_plan("three-fulls")
    first = [
        "20261126-154259F_20261126-154338I",
        "20261126-154259F_20261126-154334D",
        "20261126-154259F_20261126-154316I",
    ]
    second = ["20261126-154605F_20261126-154627I"]
    assert set(made.remove) == {*first, *second, "20261126-154259F", "20261126-154605F"}
    called = retention.commands("shiftmaster", made)
    assert called[0][:2] == ["--stanza=shiftmaster", "--repo=1"] and called[0][3] == "expire"
    assert [call[2] for call in called[:-1]] == ["--set=%s" % label for label in made.remove]
    assert called[-1][2:] == ["--repo1-retention-archive-type=full", "--repo1-retention-archive=1", "expire"]


def test_the_kept_wal_begins_where_pgbackrest_reports():
    # The oldest is what the first of the days is restored from.
    made = database_plan("three-fulls", policy=Policy(window=True, days=20))
    assert made.fulls_left == 2
    assert sorted(set(made.keep)) == left_in("expire-2-archive.txt", "backups")
    assert made.wal_from == {"17-1": "00000001000000000000000D"}
    segments = sorted(name[:24] for name in left_in("expire-2-archive.txt", "wal"))
    assert segments[0] == made.wal_from["17-1"]
    output = (RECORDED / "expire-2-archive.txt").read_text()
    assert "remove archive, start = 000000010000000000000001, stop = 00000001000000000000000C" in output


def test_the_number_for_the_archive_is_that_of_all_full_backups_that_are_left():
    """One less, and the WAL between the kept ones goes; one more, and none does: both were recorded."""
    made = database_plan("three-fulls", policy=Policy(days=1000))
    assert made.fulls_left == 3 and made.remove == ()
    below = {name[:24] for name in left_in("expire-archive-below.txt", "wal")}
    assert "000000010000000000000003" not in below and "000000010000000000000001" not in below
    assert len(left_in("expire-archive-more.txt", "wal")) > len(left_in("expire-archive-below.txt", "wal"))
    assert "000000010000000000000001-8ab1ebf" in left_in("expire-archive-more.txt", "wal")


def test_each_database_of_a_repository_has_its_own_beginning():
    made = database_plan("history", policy=Policy(days=1000))
    assert made.fulls_left == 4
    assert made.wal_from == {"17-1": "000000010000000000000002", "17-2": "000000010000000000000002"}
    output = (RECORDED / "expire-history-archive.txt").read_text()
    for name, segment in made.wal_from.items():
        (stop,) = re.findall(r"%s remove archive, start = \w+, stop = (\w+)" % name, output)
        assert int(stop[8:], 16) + 1 == int(segment[8:], 16)


def test_a_database_without_backups_keeps_no_wal():
    made = database_plan("history")
    assert made.fulls_left == 1 and made.wal_from == {"17-2": "000000010000000000000002"}


def test_an_empty_repository_is_left_alone():
    made = retention.database_plan(stanza("no-backup"), {}, NOW)
    assert made.remove == () and made.fulls_left == 0 and retention.commands("shiftmaster", made) == []


def test_without_a_full_backup_there_is_no_number_for_the_archive():
    made = retention.DatabasePlan((), {}, (), False, 0, {})
    assert retention.commands("shiftmaster", made) == []


def test_with_doubtful_evidence_not_even_old_wal_is_removed():
    made = database_plan("three-fulls", policy=Policy(fresh_days=-1))
    assert made.uncertain and made.fulls_left == 3 and retention.commands("shiftmaster", made) == []


def test_damaged_pages_count_as_damage():
    made = database_plan("page-checksum")
    assert [alert.code for alert in made.alerts] == ["newest_not_verified"] or made.alerts[0].code == "no_verified"
    assert made.remove == ()


# -------------------------------------------------------------------------------------------------------------- restic


def recorded_stdout(name):
    return (RECORDED / name).read_text().split("--- stdout\n")[1].split("--- stderr")[0]


def test_snapshots_are_read_by_host_and_tag():
    found = retention.snapshots(recorded_stdout("restic-snapshots.txt"))
    assert set(found) == {("app1", "files")}
    first = found["app1", "files"][0]
    assert first.name == "85dc1805ada58c2d77e70c2e6cab089eb9c0b03f1423aa5263131243ef0d95a0"
    assert first.ended == pytest.approx(1795708386.83, abs=0.01) and first.needs == ()
    assert len(found["app1", "files"]) == 3


def test_snapshots_without_a_tag_are_a_group_too():
    text = '[{"time": "2026-11-26T15:53:06Z", "hostname": "h", "id": "x", "tags": null}]'
    assert retention.snapshots(text) == {("h", ""): [Item("x", 1795708386.0)]}
    assert retention.snapshots("[]") == {}


@pytest.mark.parametrize(
    "response", ["", "{", '{"x": 1}', '[{"id": "x"}]', '[{"time": "soon", "hostname": "h", "id": "x"}]', "null", "[1]"]
)
def test_an_invalid_list_of_snapshots_raises(response):
    with pytest.raises(ValueError):
        retention.snapshots(response)


# ----------------------------------------------------------------------------------------------------- simulated years


class Repository:
    """pgBackRest's repository as the recordings show it: expire takes dependants too, WAL by the number of fulls."""

    def __init__(self):
        self.backups = []
        self.wal = []

    def fulls(self):
        return [one for one in self.backups if one.kind == "full"]

    def expire(self, label):
        gone = {label}
        for one in self.backups:
            if one.label in gone and one.kind == "full" and len(self.fulls()) == 1:
                raise AssertionError("pgBackRest refuses to expire its only full backup")
            if gone & {one.prior, *one.references}:
                gone.add(one.label)
        self.backups = [one for one in self.backups if one.label not in gone]

    def expire_archive(self, number):
        fulls = self.fulls()
        if len(fulls) < number:
            return
        boundary = fulls[-number].wal_start
        spans = [(one.wal_start, one.wal_stop) for one in self.backups]
        self.wal = [one for one in self.wal if one >= boundary or any(start <= one <= stop for start, stop in spans)]


def test_the_model_does_what_the_recordings_show():
    for name, numbers, removed in (
        ("expire-2-archive.txt", [2], ["20261126-154259F"]),
        ("expire-archive-below.txt", [1], []),
        ("expire-archive-more.txt", [9], []),
        ("expire-middle-archive.txt", [2], ["20261126-154605F"]),
    ):
        model = Repository()
        model.backups = list(stanza("three-fulls").backups)
        model.wal = ["%024X" % (number + (1 << 64)) for number in range(1, 0x19)]
        for label in removed:
            model.expire(label)
        for number in numbers:
            model.expire_archive(number)
        assert [one.label for one in model.backups] == left_in(name, "backups"), name
        recorded = [part[:24] for part in left_in(name, "wal") if "." not in part]
        assert model.wal == recorded, name
    model.backups = model.fulls()[:1]
    with pytest.raises(AssertionError):
        model.expire(model.backups[0].label)
    assert "cannot be expired until another full backup" in (RECORDED / "expire-only-full.txt").read_text()


class Year:
    """A host with its clock, its backups and its faults; every step is checked against what must never happen."""

    SEGMENTS_A_DAY = 3

    def __init__(self, seed, faults=True):
        self.chance = random.Random(seed)
        self.faults = faults
        self.true = NOW
        self.offset = 0.0
        self.repository = Repository()
        self.true_time = {}
        self.verifications, self.damaged, self.rotten, self.seen = {}, set(), set(), []
        self.segment = 1
        self.outage = self.season = 0
        self.removed = 0
        self.alerted = set()

    def clock(self):
        return self.true + self.offset

    def happens(self, probability):
        return self.faults and self.chance.random() < probability

    def stanza(self):
        backups = tuple(self.repository.backups)
        return catalogue.Stanza(
            "s",
            0,
            "ok",
            False,
            (catalogue.Repo(1, 0, "ok", True),),
            (catalogue.Database(1, 1, 7, "17"),),
            (catalogue.Archive("17-1", 1, 1, None, None),),
            backups,
        )

    def day(self):
        self.true += DAY + self.chance.uniform(-600, 600)
        if not self.offset and self.happens(0.015):
            # A clock that is put on by less than the gap of the policy is trusted: it cannot be detected.
            self.offset = self.chance.choice([-400, -40, -3, 4, 40, 400, 4000]) * DAY
        elif self.offset and self.happens(0.3):
            self.offset = 0.0
            self.admin()
        if self.happens(0.01):
            self.outage = self.chance.choice([1, 2, 5, 20, 70])
        if self.outage:
            self.outage -= 1
            return
        if self.happens(0.005):
            self.season = self.chance.choice([10, 45])  # In which no restore test is good, or pages are damaged.
        self.season = max(0, self.season - 1)
        for _ in range(self.SEGMENTS_A_DAY):
            self.write_wal()
        self.seen.append(self.clock())
        for one in self.repository.backups:
            if self.happens(0.001):
                self.rotten.add(one.label)
        saved = None if self.happens(0.08) else self.save()
        if self.chance.random() < 1 / 7:
            self.damaged |= self.rotten  # The weekly verify.
        if saved or self.happens(0.5):  # The program need not call it after a failure; if it does, nothing bad comes.
            self.retain()

    def write_wal(self):
        self.repository.wal.append("%024X" % (self.segment + (1 << 64)))
        self.segment += 1

    def save(self):
        labels = [one.label for one in self.repository.backups]
        stopped = int(self.clock()) + 60
        if labels and stopped <= max(one.stopped for one in self.repository.backups):
            return None  # pgBackRest refuses a label that is not later than the last.
        kind = plan.kind_today(self.stanza(), self.verifications, self.clock(), damaged=self.damaged).kind
        chain = self.stanza().chain(labels[-1]) if kind == "incr" else ()
        full = chain[0].label if chain else ""
        label = "%d%s" % (stopped, "F" if kind == "full" else "I")
        start = self.repository.wal[-1]
        self.write_wal()
        self.repository.backups.append(
            catalogue.Backup(
                label=label,
                kind=kind,
                prior=chain[-1].label if chain else None,
                references=tuple({full, *(one.label for one in chain)}) if chain else (),
                started=stopped - 60,
                stopped=stopped,
                wal_start=start,
                wal_stop=self.repository.wal[-1],
                lsn_stop="",
                size=1000,
                repo_size=1000 if kind == "full" else 100,
                error=self.happens(0.6 if self.season else 0.03),
                repo=1,
                database_id=1,
                system_id=7,
                version="17",
            )
        )
        self.true_time[label] = self.true
        if self.happens(0.04):
            self.rotten.add(label)
        complete = {label, *(one.label for one in chain)}
        # Sometimes it is not tested.
        if not self.happens(0.05):
            errors = any(one.error for one in self.repository.backups if one.label in complete)
            self.verifications[label] = not errors and not complete & self.rotten and not self.season
        return label

    def verified(self):
        errors = {one.label for one in self.repository.backups if one.error}
        bad = errors | self.damaged
        return [
            one
            for one in self.repository.backups
            if self.verifications.get(one.label) is True and not bad & {one.label, *one.references}
        ]

    def retain(self):
        before = self.verified()
        made = retention.database_plan(
            self.stanza(),
            self.verifications,
            self.clock(),
            Policy(),
            damaged=self.damaged,
            seen=self.seen,
        )
        self.alerted |= {alert.code for alert in made.alerts}
        killed_at = self.chance.randrange(30) if self.happens(0.05) else None
        called = retention.commands("s", made)
        newest = self.repository.backups[-1] if self.repository.backups else None
        if newest not in before or newest.stopped > self.clock() + 300:
            assert called == [], "something goes while the newest backup is not verified, or the clock is behind"
        for number, call in enumerate(called):
            if number == killed_at:
                break
            if call[2].startswith("--set="):
                label = call[2][len("--set=") :]
                count = len(self.repository.backups)
                self.repository.expire(label)
                assert len(self.repository.backups) == count - 1, "a dependent backup was removed without a decision"
                self.removed += 1
            else:
                self.repository.expire_archive(int(call[3].rsplit("=", 1)[1]))
                oldest = min(one.wal_start for one in self.repository.fulls())
                assert min(self.repository.wal) >= oldest, "WAL before the oldest backup is left"
            self.check(before)
        for one in self.repository.backups:
            if self.true - self.true_time[one.label] > 31 * DAY and one.label not in made.remove:
                assert one.label in made.keep
        self.window()

    def check(self, before):
        there = {one.label for one in self.repository.backups}
        for one in self.repository.backups:
            assert there >= {*one.references} | {one.prior or one.label}, "a chain is broken"
        if [one for one in before if one.kind == "full"]:
            assert [one for one in self.verified() if one.kind == "full"], "no verified full backup is left"
        for one in before:
            if self.true - self.true_time[one.label] < 30 * DAY:
                assert one.label in there, "a verified backup of less than 30 days went"
        for label in self.true_time:
            if self.true - self.true_time[label] < 30 * DAY and label not in self.by_hand:
                assert label in there, "a backup of less than 30 days went"
        oldest = min((one.wal_start for one in self.repository.fulls()), default=None)
        if oldest:
            kept = [one for one in self.repository.wal if one >= oldest]
            assert len(kept) == self.segment - int(oldest[8:], 16), "WAL after the oldest backup is gone"

    def window(self):
        """The first of the 30 days can be restored, where anything was verified before it."""
        begin, was_verified = self.true - 30 * DAY, self.was_verified
        if any(when <= begin and self.verifications.get(label) for label, when in was_verified.items()):
            candidates = [one for one in self.verified() if self.true_time[one.label] <= begin]
            lost = [label for label, when in was_verified.items() if when <= begin and label in self.damaged]
            assert candidates or lost or self.by_hand, "the first of the 30 days cannot be restored"

    @property
    def was_verified(self):
        return {label: when for label, when in self.true_time.items() if self.verifications.get(label)}

    by_hand = frozenset()

    def admin(self):
        """An operator corrects the clock and expires backups that were made in the future."""
        late = [one for one in self.repository.backups if one.stopped > self.clock() + 300]
        for one in reversed(late):
            self.by_hand |= {one.label}
            if len(self.repository.fulls()) > 1 or one.kind != "full":
                self.repository.expire(one.label)
                self.by_hand |= {label for label in self.true_time if label not in self.labels()}
        self.seen = [timestamp for timestamp in self.seen if timestamp <= self.clock()]

    def labels(self):
        return {one.label for one in self.repository.backups}


@functools.lru_cache(maxsize=None)
def simulated(seed, faults=True):
    year = Year(seed, faults)
    sizes = []
    for _ in range(365):
        year.day()
        sizes.append(len(year.repository.backups))
    return year, sizes


@pytest.mark.parametrize("seed", range(8))
def test_a_year_with_faults(seed):
    year, _ = simulated(seed)
    assert len(year.true_time) > 60


def test_the_faults_of_the_years_happen():
    """A simulation in which nothing fails, or nothing is ever removed, verifies nothing."""
    years = [simulated(seed)[0] for seed in range(8)]
    alerted = set().union(*(year.alerted for year in years))
    assert alerted >= {"clock", "gap", "no_verified", "newest_not_verified"}
    assert sum(year.removed for year in years) > 500
    assert any(year.damaged for year in years) and any(year.by_hand for year in years)


def test_a_year_without_faults():
    year, sizes = simulated(0, faults=False)
    assert year.alerted == set() and year.removed > 320
    assert max(sizes[60:]) <= 38 and min(sizes[60:]) >= 31
    assert len(year.repository.wal) <= 38 * (Year.SEGMENTS_A_DAY + 1)


def test_a_gap_is_longer_than_its_limit_and_not_as_long():
    items = [item("old", 40), item("F", 0)]
    before = [NOW - 4 * DAY - day * DAY for day in range(37)]
    assert codes(decide(items, seen=[NOW - DAY, *before])) == []
    assert codes(decide(items, seen=[NOW - DAY + 1, *before])) == ["gap"]


def test_the_oldest_segment_that_stays_is_reported_by_all_of_its_number():
    read = stanza("three-fulls")
    fulls = [one for one in read.backups if one.kind == "full"]
    starts = dict(zip((one.label for one in fulls), ("0000000110000000000000FE", "000000020F00000000000001")))
    backups = tuple(
        one.__class__(**dict(one.__dict__, wal_start=starts.get(one.label, "00000001F000000000000001")))
        for one in read.backups
    )
    read = read.__class__(**dict(read.__dict__, backups=backups))
    newest = max(one.stopped for one in backups)
    made = retention.database_plan(read, {one.label: True for one in backups}, newest + 60.0, Policy(days=1000))
    # As pgBackRest compares them: without the timeline.
    assert made.wal_from == {"17-1": "000000020F00000000000001"}


def test_the_time_since_the_last_run_counts_too():
    items = [item("old", 30.5), item("F", 1)]
    runs = [NOW - day * DAY for day in range(1, 31)]
    assert decide(items, policy=Policy(window=False), seen=runs).remove == ("old",)
    assert decide(items, policy=Policy(window=False, days=31), seen=runs).remove == ()


def test_the_first_verified_one_of_each_month_and_of_each_year_stays():
    # NOW is 2026-11-26; one a week for three years.
    items = [item("w%d" % week, week * 7) for week in range(156, -1, -1)]
    seen = [NOW - day * DAY for day in range(1100)]
    bad = {"w8": False}  # 2026-10-01 is the first one of October.
    made = decide(items, verifications(items, **bad), policy=Policy(months=3, years=2, window=False), seen=seen)
    dates = {name: time.strftime("%Y-%m-%d", time.gmtime(NOW - int(name[1:]) * 7 * DAY)) for name in made.keep}
    old = sorted(dates[name] for name in made.keep if int(name[1:]) > 5)
    assert old == ["2025-01-02", "2026-01-01", "2026-09-03", "2026-10-08"]
    assert decide(items, policy=Policy(window=False), seen=seen).keep.keys() == {"w%d" % week for week in range(5)}
    assert retention.first_of_each([(NOW + DAY, "of tomorrow")], NOW, 12, 7) == {}
