"""The real output of the tools, good and damaged, and its evaluation. Most of it came with exit code 0."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.backup import catalogue, results

RECORDED = Path(__file__).resolve().parents[1] / "recorded/backup"
FULL = "20261126-154259F"
INCR, DIFF, LAST = (FULL + "_20261126-" + name for name in ("154316I", "154334D", "154338I"))
STANZA = catalogue.stanza_of((RECORDED / "info.json").read_bytes(), "shiftmaster")


def recorded(name):
    """Exit code, standard output and standard error."""
    text = (RECORDED / (name + ".txt")).read_bytes().decode("utf-8", "replace")
    code, rest = text.split("--- stdout\n", 1)
    stdout, stderr = rest.split("--- stderr\n", 1)
    return int(code.split(":")[1]), stdout, stderr


def verify(name, stanza=STANZA):
    code, stdout, _ = recorded("verify-" + name)
    assert code == 0
    return results.verify_text(stdout, stanza)


def found(result):
    return sorted((problem.code, problem.where) for problem in result.problems)


def codes(result):
    return [problem.code for problem in result.problems]


# ------------------------------------------------------------------------------------------------------------- results


def test_a_result_is_good_without_problems_only():
    problem = results.Problem("x", "it broke", "here")
    assert results.result([]).good and not results.result([problem]).good
    assert results.result([problem, problem]).problems == (problem,)
    assert str(results.result([problem])) == "it broke" and str(results.result([])) == "good"


def test_problems_of_other_places_can_be_left_out():
    complete, here = results.Problem("x", "all", ""), results.Problem("y", "this", "here")
    evaluated = results.result([here])
    assert evaluated.concerning(["there"]).good and not evaluated.concerning(["here"]).good
    assert not results.result([complete, here]).concerning(["there"]).good


# --------------------------------------------------------------------------------------------------------------- verify


def test_a_clean_repository():
    assert verify("clean").good
    code, stdout, stderr = recorded("verify-clean")
    assert results.verify_text(stdout + stderr, STANZA).good and results.verify_text(stderr, STANZA).good
    history = catalogue.stanza_of((RECORDED / "info-history.json").read_bytes(), "shiftmaster")
    assert verify("history", history).good


def test_without_verbose_a_clean_repository_writes_nothing_and_that_is_not_good():
    _, stdout, stderr = recorded("verify-clean-not-verbose")
    assert stdout == ""
    assert codes(results.verify_text(stdout)) == ["no_report"]
    assert codes(results.verify_text(stderr)) == ["no_report"]
    assert not results.verify_text(recorded("verify-flipped-bundle-not-verbose")[1]).good


def test_the_report_is_found_in_the_log_of_the_console_too():
    text = recorded("verify-clean")[2]
    console = re.sub(r"^INFO:", "2026-11-26 15:44:02.042 P00   INFO:", text, flags=re.M)
    assert console != text and results.verify_text(console, STANZA).good


@pytest.mark.parametrize("name", ["flipped-bundle", "flipped-manifest", "missing-bundle"])
def test_a_backup_that_depends_on_a_damaged_one_is_damaged_too(name):
    """verify calls the incremental ones valid."""
    assert recorded("verify-" + name)[1].count("status: valid") == 3
    evaluated = verify(name)
    assert found(evaluated) == [("backup_damaged", label) for label in (FULL, INCR, DIFF, LAST)]
    assert "backup %s needs %s" % (INCR, FULL) in str(evaluated)


def test_without_the_catalogue_backups_named_by_verify_are_damaged():
    assert found(verify("flipped-bundle", None)) == [("backup_damaged", FULL)]


def test_the_damaged_file_is_named_where_the_log_is_there():
    _, stdout, stderr = recorded("verify-flipped-bundle")
    evaluated = results.verify_text(stdout + stderr, STANZA)
    assert "invalid checksum '20261126-154259F/bundle/1'" in str(evaluated)
    _, stdout, stderr = recorded("verify-missing-bundle")
    assert "file missing '20261126-154259F/bundle/1'" in str(results.verify_text(stdout + stderr))


def test_a_second_copy_of_the_manifest_is_enough():
    assert verify("flipped-manifest-one-copy").good


def test_a_flipped_segment():
    evaluated = verify("flipped-wal")
    assert found(evaluated) == [("wal_damaged", "17-1")]
    assert not evaluated.concerning([FULL, "17-1"]).good
    assert "of 10 segments in archive 17-1 9 are complete" in str(evaluated)
    assert results.damaged_wal(recorded("verify-flipped-wal")[2]) == ["000000010000000000000005"]
    assert results.damaged_wal(recorded("verify-flipped-bundle")[2]) == []


def test_a_segment_that_cannot_be_decrypted():
    _, stdout, stderr = recorded("verify-undecryptable-wal")
    evaluated = results.verify_text(stdout + stderr)
    assert set(found(evaluated)) == {("wal_damaged", "17-1"), ("file_damaged", "17-1")}
    assert results.damaged_wal(stderr) == ["00000001000000000000005D"]


def test_verify_does_not_detect_a_missing_segment():
    """Why backup_wal is there."""
    assert verify("missing-wal").good


@pytest.mark.parametrize("name", ["wrong-key", "no-repository", "no-backup-info"])
def test_an_unreadable_repository(name):
    evaluated = verify(name)
    assert "unreadable" in codes(evaluated) and not evaluated.concerning([]).good


def test_an_unknown_stanza():
    evaluated = verify("unknown-stanza")
    assert "unreadable" in codes(evaluated) and "verify checked stanza nobody" in str(evaluated)
    assert "verify checked stanza shiftmaster" in str(
        results.verify_text(recorded("verify-clean")[1], catalogue.stanza_of("[]", "other"))
    )


def test_a_backup_that_is_not_in_the_report_was_not_verified():
    stdout = recorded("verify-clean")[1]
    less = re.sub(r"  backup: %s,.*\n.*\n" % INCR, "", stdout)
    assert less != stdout
    assert found(results.verify_text(less, STANZA)) == [("not_verified", INCR)]


@pytest.mark.parametrize(
    "old, new, code",
    [
        ("status: ok", "status: error", "unknown_text"),
        ("status: ok\n", "", "no_report"),
        ("stanza: shiftmaster\n", "", "no_report"),
        ("status: valid", "status: in progress", "backup_damaged"),
        ("status: valid", "status: valid-ish", "unknown_text"),
        ("total valid files: 1265", "total valid files: 1264", "backup_damaged"),
        (
            "total files checked: 1265, total valid files: 1265",
            "total files checked: 0, total valid files: 0",
            "backup_damaged",
        ),
        ("total WAL checked: 10, total valid WAL: 10", "total WAL checked: 0, total valid WAL: 0", "wal_damaged"),
        ("size invalid: 0", "size invalid: 1", "verify_counts"),
        ("  archiveId: 17-1, total WAL checked: 10, total valid WAL: 10\n", "", "no_report"),
        ("status: ok", "status: ok\n  no archives exist in the repo", "unknown_text"),
        ("status: ok", "status: ok\nWARN: something", "verify_message"),
    ],
)
def test_another_report_is_not_good(old, new, code):
    stdout = recorded("verify-clean")[1]
    changed = stdout.replace(old, new, 1)
    assert changed != stdout
    assert code in codes(results.verify_text(changed))


def test_a_truncated_report_is_not_good():
    stdout = recorded("verify-clean")[1]
    assert [cut for cut in range(len(stdout) - 1) if results.verify_text(stdout[:cut], STANZA).good] == []
    lines = stdout.splitlines(keepends=True)
    assert not results.verify_text("".join(lines[:-1])).good and results.verify_text("".join(lines)).good


# ------------------------------------------------------------------------------------------------------------- recovery


def log_of(name):
    return (RECORDED / ("recovery-%s.log" % name)).read_text()


def test_a_recovery_that_came_to_its_point():
    assert results.recovery(log_of("to-name"), target="proof-one").good


def test_a_point_that_does_not_exist_fails():
    assert codes(results.recovery(log_of("name-unknown"), target="nobody")) == [
        "recovery_failed",
        "recovery_failed",
        "target_missed",
    ]


@pytest.mark.parametrize("name", ["missing-wal", "flipped-wal"])
def test_a_recovery_that_ended_too_early_calls_itself_complete(name):
    log = log_of(name)
    assert "archive recovery complete" in log and "ready to accept connections" in log
    assert codes(results.recovery(log, target="proof-two")) == ["target_missed"]


def test_clients_that_came_too_early_or_were_rejected_do_not_matter():
    early = "2026-11-26 15:50:04.329 UTC [4402] FATAL:  the database system is starting up\n"
    late = "2026-11-26 15:51:04.329 UTC [4402] FATAL:  terminating connection due to administrator command\n"
    log = log_of("to-name")
    assert results.recovery(early + log + late, target="proof-one").good
    assert not results.recovery(late + log, target="proof-one").good
    assert not results.recovery(log.replace("LOG:  redo done", "PANIC:  redo done"), target="proof-one").good


def test_a_truncated_log_is_not_good():
    log = log_of("to-name")
    assert not results.recovery(log[: log.index("archive recovery complete")], target="proof-one").good
    assert not results.recovery("", target="x").good


# ----------------------------------------------------------------------------------------------------------- PostgreSQL


def test_amcheck_of_what_is_complete():
    assert results.amcheck(*recorded("amcheck-clean")).good


def test_amcheck_with_a_damaged_index():
    assert found(results.amcheck(*recorded("amcheck-index"))) == [("corrupt", "tiny.public.a_g_idx")]
    assert "unexpected zero page at block 1" in str(results.amcheck(*recorded("amcheck-index")))


def test_amcheck_with_a_damaged_page():
    evaluated = results.amcheck(*recorded("amcheck-page-checksum"))
    assert ("corrupt", "shiftmaster.public.broken") in found(evaluated)


def test_amcheck_that_skipped_databases_is_not_good():
    """With exit code 0, and all of the rest checked."""
    code, stdout, stderr = recorded("amcheck-skipped")
    assert code == 0 and "274/274" in stderr
    assert codes(results.amcheck(code, stdout, stderr)) == ["amcheck_message", "amcheck_message"]


def test_amcheck_that_could_not_check():
    assert not results.amcheck(*recorded("amcheck-no-server")).good
    assert codes(results.amcheck(0, "", "")) == ["not_ended"]
    assert codes(results.amcheck(0, "", "  5/818 relations (0%),  303/2485 pages (12%)\r")) == ["not_ended"]
    assert codes(results.amcheck(0, "", "0/0 relations (0%), 0/0 pages (0%)")) == ["not_ended"]
    assert results.amcheck(0, "", "  0/8 relations (0%),  0/9 pages (0%)\r8/8 relations (100%), 9/9 pages (100%)").good
    _, _, stderr = recorded("amcheck-clean")
    assert codes(results.amcheck(1, "", stderr)) == ["failed"]
    assert codes(results.amcheck(0, "something\n", stderr)) == ["unknown_text"]


# --------------------------------------------------------------------------------------------------------------- restic


def saved(*arguments):
    return results.restic_backup(*arguments)[1]


def test_restic_saved_everything():
    assert results.restic_backup(*recorded("restic-backup-good"))[0]["snapshot_id"]
    assert saved(*recorded("restic-backup-good")).good


@pytest.mark.parametrize(
    "name, expected",
    [
        ("missing", [("source_missing", "/srv/nothing")]),
        ("all-missing", [("failed", ""), ("source_missing", "/srv/nothing")]),
        ("unreadable", [("partial", ""), ("restic_error", "/srv/media/photo1.jpg")]),
        ("wrong-key", [("wrong_key", "")]),
        ("no-repository", [("repository_missing", "")]),
    ],
)
def test_restic_did_not_save_everything(name, expected):
    assert found(saved(*recorded("restic-backup-" + name))) == expected


def test_a_missing_path_came_with_code_0():
    assert recorded("restic-backup-missing")[0] == 0


def test_a_name_with_the_end_of_a_line_is_no_error_of_restic():
    status = '{"message_type":"status","current_files":["/media/a\x85b"]}\n'
    summary = '{"message_type":"summary","snapshot_id":"00","total_files_processed":1}\n'
    assert saved(0, status + summary, "").good


def test_restic_without_its_repository_is_not_good():
    assert not saved(*recorded("restic-backup-offsite-gone")).good


def test_restic_that_was_killed():
    _, stdout, _ = recorded("restic-backup-good")
    status = stdout[: stdout.index('{"message_type":"summary"')]
    assert codes(saved(0, status, "")) == ["not_ended"]
    assert codes(saved(-9, status, "")) == ["failed"]
    assert codes(saved(130, "", "")) == ["killed"]
    assert codes(saved(0, stdout[:-30], "")) == ["unknown_text"]


def test_restic_that_saved_no_file():
    _, stdout, _ = recorded("restic-backup-good")
    assert codes(saved(0, stdout.replace('processed":6', 'processed":0'), "")) == ["empty"]


@pytest.mark.parametrize("line", ["something", '{"message_type":"news"}', "[]", "1"])
def test_output_that_restic_never_wrote_is_not_good(line):
    code, stdout, stderr = recorded("restic-backup-good")
    assert codes(saved(code, stdout, line)) == ["unknown_text"]


def test_restic_check():
    assert results.restic_check(*recorded("restic-check-clean")).good
    assert results.restic_check(*recorded("restic-check-subset")).good
    assert results.restic_check(
        0, recorded("restic-check-clean")[1].replace("read all data", "read 10.0% of data packs"), ""
    ).good


def test_restic_check_with_a_flipped_pack():
    pack = "d8d66e13adb873d7f9f05b6377ce42a90119140969081a9b40927366c2fdb818"
    assert found(results.restic_check(*recorded("restic-check-flipped"))) == [("pack_damaged", pack)]


def test_restic_check_that_did_not_read_is_no_verification():
    code, stdout, stderr = recorded("restic-check-clean")
    plain = re.sub(r"read all data\n.*packs\n", "", stdout)
    assert plain != stdout
    assert codes(results.restic_check(code, plain, stderr)) == ["not_read"]


@pytest.mark.parametrize("name", ["flipped-plain", "flipped-json", "locked", "missing-pack", "wrong-key", "clean-json"])
def test_restic_check_without_a_definite_result(name):
    """The summary in JSON is the same for an intact repository and a damaged one whose data was not read."""
    assert not results.restic_check(*recorded("restic-check-" + name)).good


def test_restic_check_without_output():
    assert codes(results.restic_check(0, "read all data", "")) == ["not_ended"]
    assert codes(results.restic_check(11, "read all data\nno errors were found", "")) == ["locked"]
