"""The parser of pgBackRest's catalogue: real output of 2.55, and invalid output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.backup import catalogue

RECORDED = Path(__file__).resolve().parents[1] / "recorded/backup"
FULL = "20261126-154259F"
INCR, DIFF, LAST = (FULL + "_20261126-" + name for name in ("154316I", "154334D", "154338I"))
FIRST_SYSTEM, SECOND_SYSTEM = 7712506137836862694, 7712508581903979874


def recorded(name):
    return (RECORDED / ("info-%s.json" % name if name else "info.json")).read_bytes()


def stanza(name, stanza="shiftmaster"):
    return catalogue.stanza_of(recorded(name), stanza)


def codes(result):
    return [problem.code for problem in result.problems]


def changed(change, name=""):
    """A recorded response with something in it changed."""
    data = json.loads(recorded(name))
    change(data[0])
    return json.dumps(data)


def test_a_backup_is_read_completely():
    backups = stanza("").backups
    assert [backup.label for backup in backups] == [FULL, INCR, DIFF, LAST]
    assert backups[0] == catalogue.Backup(
        label=FULL,
        kind="full",
        prior=None,
        references=(),
        started=1795707779,
        stopped=1795707793,
        wal_start="000000010000000000000002",
        wal_stop="000000010000000000000002",
        lsn_stop="0/2000158",
        size=32852909,
        repo_size=4324408,
        error=False,
        repo=1,
        database_id=1,
        system_id=FIRST_SYSTEM,
        version="17",
    )
    assert (backups[3].kind, backups[3].prior, backups[3].references) == ("incr", DIFF, (FULL, DIFF))


def test_a_stanza_is_read_completely():
    read = stanza("")
    assert (read.name, read.code, read.message, read.busy) == ("shiftmaster", 0, "ok", False)
    assert read.repos == (catalogue.Repo(1, 0, "ok", True),)
    assert read.databases == (catalogue.Database(1, 1, FIRST_SYSTEM, "17"),)
    assert read.archives == (catalogue.Archive("17-1", 1, 1, "000000010000000000000001", "000000010000000000000009"),)
    assert stanza("locked").busy


def test_a_chain_is_what_a_restore_reads():
    read = stanza("")
    assert [backup.label for backup in read.chain(FULL)] == [FULL]
    assert [backup.label for backup in read.chain(INCR)] == [FULL, INCR]
    # A diff does not need the incremental one before it.
    assert [backup.label for backup in read.chain(LAST)] == [FULL, DIFF, LAST]


def test_a_chain_with_a_missing_link_is_no_chain():
    def drop(data):
        del data["backup"][2]

    broken = catalogue.stanza_of(changed(drop), "shiftmaster")
    with pytest.raises(catalogue.CatalogueError, match="%s needs %s, which is gone" % (LAST, DIFF)):
        broken.chain(LAST)
    result = catalogue.stanza_result(broken)
    assert [(problem.code, problem.where) for problem in result.problems] == [("chain_broken", LAST)]
    assert result.concerning([FULL, INCR]).good


def test_a_missing_reference_breaks_a_chain_too():
    """Files of a backup may lie in one that it was not compared with."""
    changed_response = changed(lambda data: data["backup"][3].update(reference=[FULL, DIFF, "20260101-000000F"]))
    broken = catalogue.stanza_of(changed_response, "shiftmaster")
    assert codes(catalogue.stanza_result(broken)) == ["chain_broken"]


def test_an_unknown_backup_is_reported():
    with pytest.raises(catalogue.CatalogueError, match="stanza shiftmaster has no backup 20200101-000000F"):
        stanza("").chain("20200101-000000F")


def test_a_healthy_stanza_is_good():
    assert catalogue.stanza_result(stanza(""), FIRST_SYSTEM).good
    assert catalogue.stanza_result(stanza("history"), SECOND_SYSTEM).good
    assert catalogue.stanza_result(stanza("two-repositories"), SECOND_SYSTEM).good


@pytest.mark.parametrize(
    "name, expected",
    [
        ("no-stanza", "stanza_missing"),
        ("no-repository", "stanza_missing"),
        ("no-backup", "no_backup"),
        ("no-backup-info", "stanza_missing"),
        ("wrong-key", "unreadable"),
        ("two-repositories-one-missing", "stanza_missing"),
    ],
)
def test_problems_are_found_although_the_exit_code_is_0(name, expected):
    """Every one of these came with exit code 0."""
    result = catalogue.stanza_result(stanza(name))
    assert not result.good
    assert codes(result) == [expected]
    assert "\n" not in str(result)


def test_another_stanza_is_not_ours():
    assert codes(catalogue.stanza_result(stanza("", "other"))) == ["stanza_missing"]


def test_an_unknown_status_is_not_good():
    def change(data):
        data["repo"][0]["status"] = {"code": 42, "message": "something new"}

    result = catalogue.stanza_result(catalogue.stanza_of(changed(change), "shiftmaster"))
    assert codes(result) == ["unknown_status"] and "something new" in str(result)


def test_an_unhealthy_stanza_with_healthy_repositories_is_not_good():
    def change(data):
        data["status"].update(code=5, message="database mismatch across repos")

    assert codes(catalogue.stanza_result(catalogue.stanza_of(changed(change), "shiftmaster"))) == ["other_database"]


def test_damaged_pages_are_a_problem_of_their_backup_only():
    read = stanza("page-checksum")
    result = catalogue.stanza_result(read)
    damaged = [backup.label for backup in read.backups if backup.error]
    assert len(damaged) == 1
    assert [(problem.code, problem.where) for problem in result.problems] == [("page_checksums", damaged[0])]
    assert result.concerning([FULL]).good and not result.concerning(damaged).good


def test_a_repository_of_another_cluster_is_found():
    result = catalogue.stanza_result(stanza(""), SECOND_SYSTEM)
    assert codes(result) == ["other_system"]
    assert codes(catalogue.stanza_result(stanza("history"), FIRST_SYSTEM)) == ["other_system"]


def test_backups_of_a_former_cluster_do_not_belong_to_the_current_one():
    """pgBackRest reports ok, because it has valid backups; of the cluster that runs it has none."""
    assert stanza("upgraded").code == catalogue.OK
    assert codes(catalogue.stanza_result(stanza("upgraded"), SECOND_SYSTEM)) == ["no_backup"]


def test_backups_of_each_repository_are_distinguished():
    read = stanza("two-repositories")
    (offsite,) = read.of(2)
    assert offsite.system_id == SECOND_SYSTEM and offsite.database_id == 1
    assert offsite.label not in {backup.label for backup in read.of(1)}
    assert read.current_database(1).id == 2 and read.current_database(2).system_id == SECOND_SYSTEM
    with pytest.raises(catalogue.CatalogueError):
        read.backup(offsite.label, 1)


def test_the_same_label_in_two_repositories_is_two_backups():
    def twice(data):
        copies = [json.loads(json.dumps(item)) for item in data["backup"]]
        for item in copies:
            item["database"]["repo-key"] = 2
        data["backup"] += copies[:1] + copies[2:]
        data["db"].append(dict(data["db"][0], **{"repo-key": 2}))
        data["repo"].append(dict(data["repo"][0], key=2))

    read = catalogue.stanza_of(changed(twice), "shiftmaster")
    assert [(one.label, one.repo) for one in read.chain(LAST, 2)] == [(FULL, 2), (DIFF, 2), (LAST, 2)]
    assert [(one.label, one.repo) for one in read.chain(LAST, 1)] == [(FULL, 1), (DIFF, 1), (LAST, 1)]


@pytest.mark.parametrize(
    "response, why",
    [
        ("", "wrote no JSON"),
        ("ERROR: [055]: something", "wrote no JSON"),
        (recorded("")[:2000], "wrote no JSON"),
        ("{}", "no list"),
        ("[1]", "not understood"),
        ('[{"name": "shiftmaster"}]', "not understood"),
    ],
)
def test_an_invalid_response_raises(response, why):
    with pytest.raises(catalogue.CatalogueError, match=why):
        catalogue.parse(response)


@pytest.mark.parametrize(
    "change",
    [
        lambda backup: backup.pop("error"),
        lambda backup: backup.update(error=None),
        lambda backup: backup.update(type="partial"),
        lambda backup: backup["archive"].update(stop=None),
        lambda backup: backup["timestamp"].update(stop="now"),
        lambda backup: backup["info"]["repository"].pop("delta"),
        lambda backup: backup["database"].update(id=7),
    ],
)
def test_a_backup_that_is_not_understood_raises(change):
    with pytest.raises(catalogue.CatalogueError, match="not understood"):
        catalogue.parse(changed(lambda data: change(data["backup"][1])))


def test_bytes_that_are_no_text_are_read_too():
    """The message about a wrong key quotes what it decrypted."""
    with pytest.raises(UnicodeDecodeError):
        recorded("wrong-key").decode("utf-8")
    assert stanza("wrong-key").repos[0].code == catalogue.OTHER
