"""Which backup a restore begins from, and how far it goes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from ansible.module_utils.shiftmaster.backup import target, verification

NOW = 1_000_000.0


def run(name, label, ended, good=True, verified=True, timeline=1):
    at = target.manifests.timestamp(ended)
    return {
        "run_id": name,
        "started": target.manifests.timestamp(ended - 100),
        "release": {},
        "parts": {
            "database": {
                "result": "succeeded" if good else "failed",
                "label": label,
                "ended": at,
                "restore_point": f"shiftmaster-{name}",
                "size_bytes": 1000,
                "wal": {"start": "0" * 24, "stop": "0" * 24, "verified": "%08X%016X" % (timeline, 5)},
                "verified": [
                    {"how": "verify", "at": target.manifests.timestamp(ended - 8), "good": True, "what": ""},
                    {"how": "restore_test", "at": at, "good": verified, "what": ""},
                ],
            },
            "files": {
                "result": "succeeded",
                "started": target.manifests.timestamp(ended - 50),
                "label": f"snap-{name}",
            },
        },
    }


def backup(label, stopped, lsn="0/3000000", system_id=1):
    return SimpleNamespace(label=label, stopped=stopped, lsn_stop=lsn, system_id=system_id, version="17")


def stanza_of(*backups, name="shiftmaster"):
    return SimpleNamespace(name=name, backups=backups)


OLD, NEW = "20260101T000000Z-aaaaaa", "20260102T000000Z-bbbbbb"
RUNS = [run(OLD, "F1", NOW - 9000), run(NEW, "F1_I1", NOW - 3000)]
STANZA = stanza_of(backup("F1", NOW - 9050), backup("F1_I1", NOW - 3050, "0/9000000"))


def choose(wanted, runs=RUNS, stanza=STANZA, *earlier):
    return target.choose(wanted, runs, [stanza, *earlier], NOW)


def at(seconds):
    return target.manifests.timestamp(seconds)


def test_latest_reads_everything_from_the_newest_verified_one():
    plan = choose("latest")
    assert (plan.label, plan.arguments, plan.until) == ("F1_I1", [], None)


@pytest.mark.parametrize("wanted", [OLD, "F1"])
def test_a_run_ends_at_its_verified_point_on_its_own_branch(wanted):
    plan = choose(wanted)
    assert plan.label == "F1" and plan.verified
    assert plan.recovery() == [
        "--type=name",
        f"--target=shiftmaster-{OLD}",
        "--target-action=promote",
        "--target-timeline=1",
    ]
    assert plan.until == NOW - 9000 and plan.seconds == 8


# A restore to the first backup has begun timeline 2 at NOW - 5000. Segments 1 to 5 are of the time before.
FORKED = {2: "1\t0/3000080\tno recovery target specified\n"}
SEGMENTS = {(1, 1): 9100, (1, 2): 9040, (1, 3): 8000, (1, 4): 6000, (1, 5): 5100}


def archive(*later, began=5000):
    """One whose segments came so many seconds ago: {(timeline, number): seconds}."""
    files = {
        "17-1/%08X%08X/%08X%08X%08X-%040x.zst" % (line, 0, line, 0, number, number): NOW - ago
        for (line, number), ago in {**SEGMENTS, **dict(later)}.items()
    }
    files["00000002.history"] = NOW - began
    listed = {name: {"type": "file", "size": 1, "time": int(seconds)} for name, seconds in files.items()}
    return target.wal.archive(json.dumps(listed), FORKED)


def saved(label, stopped, timeline, first, last):
    found = backup(label, stopped)
    found.wal_start, found.wal_stop = ("%08X%016X" % (timeline, number) for number in (first, last))
    return found


RESTORED = archive(((2, 3), 4900), ((2, 4), 100))
# The restore came up, and was undone.
UNDONE = archive(((2, 3), 4950), ((1, 6), 4000), ((1, 7), 100))


@pytest.mark.parametrize(
    ("held", "wanted", "timeline"),
    [
        (RESTORED, "latest", 2), (RESTORED, 1000, 2), (RESTORED, 4800, 2),
        # "It went back too far": what was there before the restore.
        (RESTORED, 5050, 1), (RESTORED, 7000, 1),
        (UNDONE, "latest", 1), (UNDONE, 1000, 1), (UNDONE, 7000, 1), (UNDONE, "xid:7", 1),
    ],
)  # fmt: skip
def test_a_restore_follows_the_timeline_on_which_the_database_wrote(held, wanted, timeline):
    stanza = stanza_of(saved("F1", NOW - 9050, 1, 1, 2))
    wanted = wanted if isinstance(wanted, str) else at(NOW - wanted)
    plan = target.choose(wanted, RUNS[:1], [stanza], NOW, [held])
    assert plan.timeline == timeline and f"--target-timeline={timeline}" in plan.recovery()
    values = {**plan._asdict(), "label": "20260101-000000F"}
    assert target.plan_of(json.loads(json.dumps(values))).recovery() == plan.recovery()
    with pytest.raises(target.TargetError):
        target.plan_of({**values, "timeline": "1"})


def test_a_backup_of_a_timeline_that_was_given_up_is_not_taken():
    given_up = stanza_of(saved("F1", NOW - 9050, 1, 1, 2), saved("F1_I1", NOW - 3050, 2, 4, 4))
    held = archive(((2, 3), 4950), ((2, 4), 3050), ((1, 6), 2000))
    assert target.choose("latest", RUNS, [given_up], NOW, [held]).label == "F1"
    # Timeline 2 left before this backup ended.
    late = stanza_of(saved("F1", NOW - 9050, 1, 1, 2), saved("F1_I1", NOW - 3050, 1, 4, 5))
    assert target.choose("latest", RUNS, [late], NOW, [RESTORED]).label == "F1"
    with pytest.raises(target.TargetError, match=f"leads to timeline 2.*target={NEW}"):
        only = stanza_of(saved("F1_I1", NOW - 3050, 1, 4, 5), saved("F1", NOW, 2, 4, 4))
        target.choose(at(NOW - 50), RUNS, [only], NOW, [RESTORED])


def test_a_timeline_of_others_leads_no_restore_astray():
    stanza = stanza_of(saved("F1", NOW - 9050, 1, 1, 2))
    assert target.choose("latest", RUNS[:1], [stanza], NOW, [archive(((255, 255), 1))]).timeline == 1


def test_a_time_begins_from_the_last_backup_before_it_and_leaves_it_out():
    plan = choose(at(NOW - 5000))
    assert plan.label == "F1" and "--target-exclusive" in plan.arguments and "--type=time" in plan.arguments
    assert choose(at(NOW - 100)).label == "F1_I1"


def test_a_backup_running_at_that_time_is_too_young():
    assert choose(at(NOW - 3060)).label == "F1"


def test_a_time_in_another_zone_is_the_same_timestamp():
    assert target.timestamp_of("2026-11-26T14:59:30+09:00") == target.timestamp_of("2026-11-26 05:59:30Z")


def test_a_position_begins_from_the_last_backup_that_ends_before_it():
    assert choose("0/8FFFFFF").label == "F1" and choose("0/9000001").label == "F1_I1"


def test_a_transaction_is_left_out():
    assert choose("xid:1234").arguments[:3] == ["--type=xid", "--target=1234", "--target-exclusive"]


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("2026-11-26T14:59:30", "has no zone"),
        ("yesterday", "is no time"),
        (at(NOW + 60), "still to come"),
        (at(NOW - 90_000), "every verified backup is younger"),
        ("0/1", "every verified backup is younger"),
        ("20250101T000000Z-cccccc", "there is no verified backup"),
    ],
)
def test_unreachable_targets_are_reported(wanted, text):
    with pytest.raises(target.TargetError, match=text):
        choose(wanted)


def test_a_backup_of_an_earlier_passphrase_is_restored_from_its_own_stanza():
    today = stanza_of(backup("F2", NOW - 1050, "0/B000000"), name="shiftmaster-2")
    runs = [*RUNS, run("20260103T000000Z-cccccc", "F2", NOW - 1000)]
    # Between the last backup of the earlier stanza and the first one of today's, too.
    for wanted, label, name in (
        ("latest", "F2", "shiftmaster-2"), (at(NOW - 100), "F2", "shiftmaster-2"), (OLD, "F1", "shiftmaster"),
        (at(NOW - 2000), "F1_I1", "shiftmaster"), (at(NOW - 5000), "F1", "shiftmaster"),
        ("0/A000000", "F1_I1", "shiftmaster"),
    ):  # fmt: skip
        plan = choose(wanted, runs, today, STANZA)
        assert (plan.label, plan.stanza) == (label, name)
    plan = choose("latest", RUNS, stanza_of(name="shiftmaster-2"), STANZA)
    assert (plan.label, plan.stanza) == ("F1_I1", "shiftmaster")


def test_unverified_and_missing_backups_are_never_selected():
    runs = [
        *RUNS,
        run("20260103T000000Z-cccccc", "F2", NOW - 1000, verified=False),
        run("x", "F3", NOW - 500, good=False),
    ]
    stanza = stanza_of(*STANZA.backups, backup("F2", NOW - 1050), backup("F3", NOW - 550))
    assert choose("latest", runs, stanza).label == "F1_I1"
    with pytest.raises(target.TargetError, match="no verified backup"):
        choose("latest", RUNS, stanza_of())


def test_files_are_those_of_the_last_run_until_then():
    assert target.snapshot("files", "latest", RUNS)["run_id"] == NEW
    assert target.snapshot("files", at(NOW - 5000), RUNS)["run_id"] == OLD
    assert target.snapshot("files", OLD, RUNS)["run_id"] == OLD
    assert target.snapshot("files", "F1", RUNS)["run_id"] == OLD
    with pytest.raises(target.TargetError):
        target.snapshot("files", at(NOW - 90_000), RUNS)


@pytest.mark.parametrize("wanted", ["0/5A001D8", "xid:1234"])
def test_files_have_no_position_of_the_wal(wanted):
    with pytest.raises(target.TargetError, match="nothing of files: a target of these is latest, a time or a run"):
        target.snapshot("files", wanted, RUNS)


def test_files_of_a_missing_backup_are_not_selected_by_time():
    with pytest.raises(target.TargetError, match="there is no good backup of files for 20260101-000000F$"):
        target.snapshot("files", "20260101-000000F", RUNS)


# --- the verification's own evaluation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "low", "high"),
    [((100, 10), 50, 50), ((130, 10), 50, 80), ((100, 25), 35, 50), ((3, 0), 0, float("inf"))],
)
def test_rows_may_differ_by_what_was_written_meanwhile(after, low, high):
    assert verification.bounds(verification.Table(50, 100, 10), after) == (low, high)


class Responses:
    def __init__(self, rows):
        self.rows = rows

    def query(self, _sql, _database):
        return self.rows


def compare(rows, now=None):
    now = {"a": (100, 10)} if now is None else now
    primary = Responses([[name, str(inserted), str(deleted)] for name, (inserted, deleted) in now.items()])
    restored = Responses([[name, "0", "0", str(count)] for name, count in rows.items()])
    return verification.compare_rows(primary, restored, {"app": {"a": verification.Table(50, 100, 10)}})


def test_tables_are_compared():
    assert compare({"a": 50}) == 1
    with pytest.raises(verification.BackupError, match="has 49 rows in the backup, but had 50"):
        compare({"a": 49})
    with pytest.raises(verification.BackupError, match="is not in the backup"):
        compare({})


def test_a_table_that_was_dropped_meanwhile_is_not_missed():
    assert compare({}, now={}) == 0


def test_every_generated_plan_is_accepted_from_the_backup_server():
    label = "20260101-000000F_20260102-000000I"
    runs, stanza = [run(NEW, label, NOW - 3000)], stanza_of(backup(label, NOW - 3050))
    for wanted in ("latest", NEW, "0/5A001D8", "xid:1234", at(NOW - 10)):
        plan = choose(wanted, runs, stanza)
        assert target.plan_of(plan._asdict()) == plan


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": ["--recovery-option=restore_command=id"]},
        {"arguments": ["--type=name", "--target=x'\nrestore_command = 'id"]},
        {"arguments": ["--pg1-path=/var/lib/postgresql"]},
        {"arguments": ["--target=x", "--config=/tmp/x"]},
        {"arguments": ["--link-map=pg_wal=/tmp"]},
        {"arguments": "--type=name"},
        {"arguments": [["--type=name"]]},
        {"label": "latest --config=/tmp/x"},
        {"label": "20260101-000000F\n"},
        {"label": None},
        {"text": {}},
        {"size_bytes": "1"},
        {"size_bytes": -1},
        {"size_bytes": float("inf")},
        {"another": 1},
    ],
)
def test_nothing_else_of_the_backup_server_becomes_an_option_of_pgbackrest(change):
    plan = target.Plan("run", "20260101-000000F", [], "everything", None, False, 1, 1)._asdict()
    assert target.plan_of(plan)
    with pytest.raises(target.TargetError):
        target.plan_of({**plan, **change})


@pytest.mark.parametrize("response", [None, [], "x", {}])
def test_an_invalid_plan_is_rejected(response):
    with pytest.raises(target.TargetError):
        target.plan_of(response)
