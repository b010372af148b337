"""The manifest of a run: its form, its file, the exit code and the metrics that come of it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import re
from pathlib import Path

import jsonschema
import pytest
from ansible.module_utils.shiftmaster.backup import manifest as manifests
from ansible.module_utils.shiftmaster.backup import report

ROOT = Path(__file__).resolve().parents[3]
NOW = 1795707779  # 2026-11-26T15:42:59Z
DATABASE = {
    "kind": "full",
    "label": "20261126-154259F",
    "location": "/var/backups/shiftmaster/pgbackrest",
    "size_bytes": 32852909,
    "added_bytes": 4324408,
    "tools": {"pgbackrest": "2.55.1"},
    "wal": {"start": "000000010000000000000002", "stop": "000000010000000000000002"},
    "restore_point": "shiftmaster-20261126T154259Z",
    "system_id": 7712506137836862694,
    "rows": {"public.shifts": 20000},
}
FILES = {"label": "85dc1805", "location": "/var/backups/shiftmaster/restic", "size_bytes": 1200000}


def run(parts=("database", "files", "configuration"), now=NOW, run_id="20261126T154259Z"):
    return manifests.begin(run_id, "backup1", parts, now, {"name": "20261126T090000Z-abcdef1", "migrations": 42})


def save(manifest, part, now, took=100, good=True, **more):
    manifests.start(manifest, part, now)
    manifests.verified(manifest, part, manifests.RESTORED, good, "restored and read", now + took)
    manifests.end(manifest, part, "succeeded", now + took, **dict(DATABASE if part == "database" else FILES, **more))


def good_run(now=NOW, run_id="20261126T154259Z", parts=("database", "files", "configuration"), **more):
    manifest = run(parts, now, run_id)
    for number, part in enumerate(manifest["parts"]):
        save(manifest, part, now + 100 * number, **more)
    manifests.finish(manifest, now + 100 * len(manifest["parts"]))
    return manifest


# ------------------------------------------------------------------------------------------------------------- the run


def test_a_successful_run():
    manifest = good_run()
    assert manifests.validate(manifest) == []
    assert (manifest["started"], manifest["ended"]) == ("2026-11-26T15:42:59Z", "2026-11-26T15:47:59Z")
    assert manifest["result"] == "succeeded" and manifests.exit_code(manifest) == 0
    assert list(manifest["parts"]) == ["database", "files", "configuration"]
    assert manifest["release"]["migrations"] == 42


def test_every_intermediate_state_can_be_written():
    """The unit writes it after each step, so that a killed run leaves what it had done."""
    manifest = run()
    assert manifests.validate(manifest) == [] and manifests.exit_code(manifest) == 1
    manifests.start(manifest, "database", NOW)
    assert manifests.validate(manifest) == [] and manifest["parts"]["database"]["result"] == "running"
    manifests.verified(manifest, "database", "restore_test", True, "restored", NOW + 5)
    assert manifests.validate(manifest) == []
    manifests.end(manifest, "database", "succeeded", NOW + 6, **DATABASE)
    assert manifests.validate(manifest) == []
    manifests.start(manifest, "files", NOW + 7)
    manifests.end(manifest, "files", "succeeded", NOW + 8, **FILES)
    assert manifests.validate(manifest) == []  # Its restore test comes later.


def test_a_failed_part_makes_the_run_fail_and_spares_the_others():
    manifest = run()
    save(manifest, "database", NOW)
    manifests.start(manifest, "files", NOW + 100)
    manifests.end(manifest, "files", "failed", NOW + 101, [("source_missing", "/srv/media is not there", "/srv/media")])
    save(manifest, "configuration", NOW + 101)
    manifests.finish(manifest, NOW + 300)
    assert manifests.validate(manifest) == []
    assert manifest["result"] == "failed" and manifests.exit_code(manifest) == 1
    assert [part["result"] for part in manifest["parts"].values()] == ["succeeded", "failed", "succeeded"]
    assert manifest["parts"]["files"]["problems"] == [
        {"code": "source_missing", "what": "/srv/media is not there", "where": "/srv/media"}
    ]


def test_a_part_that_has_not_ended_has_failed():
    manifest = run()
    save(manifest, "database", NOW)
    manifests.start(manifest, "files", NOW + 100)
    manifests.stopped(manifest, NOW + 150, "the unit was killed (signal 9)")
    assert manifests.validate(manifest) == []
    assert [part["result"] for part in manifest["parts"].values()] == ["succeeded", "failed", "failed"]
    assert manifest["parts"]["configuration"]["problems"][0]["code"] == "not_ended"
    assert manifest["parts"]["configuration"]["started"] == manifest["parts"]["configuration"]["ended"]
    assert manifest["problems"] == [{"code": "stopped", "what": "the unit was killed (signal 9)", "where": ""}]
    assert manifest["result"] == "failed"


def test_a_killed_run_has_failed_although_all_its_parts_have_succeeded():
    manifest = run(["files"])
    save(manifest, "files", NOW)
    manifests.stopped(manifest, NOW + 150, "killed")
    assert manifest["parts"]["files"]["result"] == "succeeded" and manifests.exit_code(manifest) == 1


def test_a_run_ends_although_the_clock_was_set_back_after_its_begin(tmp_path):
    """Each run ends what was killed before it: left so, none would begin until that time has come again."""
    manifest = run()
    save(manifest, "database", NOW)
    manifests.start(manifest, "files", NOW + 100)
    manifests.stopped(manifest, NOW - 3600, "killed")
    manifests.write(str(tmp_path / "r.json"), manifest)
    assert manifest["ended"] == manifest["started"]
    assert manifest["parts"]["files"]["ended"] == manifest["parts"]["files"]["started"]


def test_only_verified_parts_succeed():
    manifest = run(["files"])
    manifests.start(manifest, "files", NOW)
    manifests.end(manifest, "files", "succeeded", NOW + 1, **FILES)
    manifests.finish(manifest, NOW + 2)
    assert manifest["parts"]["files"]["problems"][0]["code"] == "not_verified"
    assert manifest["result"] == "failed" and manifests.validate(manifest) == []


@pytest.mark.parametrize("order", ["verified first", "ended first"])
def test_a_verification_that_fails_makes_the_part_fail(order):
    manifest = run(["files"])
    manifests.start(manifest, "files", NOW)
    manifests.verified(manifest, "files", "read_data", True, "all packs read", NOW)
    if order == "ended first":
        manifests.end(manifest, "files", "succeeded", NOW + 1, **FILES)
    manifests.verified(manifest, "files", "restore_test", False, "photo4.jpg differs", NOW + 2)
    if order == "verified first":
        manifests.end(manifest, "files", "succeeded", NOW + 3, **FILES)
    manifests.finish(manifest, NOW + 4)
    assert manifest["parts"]["files"]["result"] == "failed" and manifests.validate(manifest) == []
    assert manifest["parts"]["files"]["problems"] == [
        {"code": "restore_test_failed", "what": "photo4.jpg differs", "where": ""}
    ]


def test_a_problem_of_the_run_is_a_warning():
    manifest = run(["files"])
    save(manifest, "files", NOW)
    manifests.note(manifest, [("over_limit", "the backups take more than they may", "")])
    manifests.finish(manifest, NOW + 200)
    assert (manifest["result"], manifests.exit_code(manifest)) == ("warning", 0)
    assert manifests.validate(manifest) == []


def test_the_worst_part_decides():
    assert manifests.worst(["succeeded", "warning", "skipped"]) == "warning"
    assert manifests.worst(["running", "failed", "succeeded"]) == "failed"
    assert manifests.worst(["succeeded", "skipped"]) == "succeeded"
    assert manifests.worst([]) == "failed"
    assert set(manifests.EXIT_CODES) == set(manifests.RESULTS)


# ---------------------------------------------------------------------------------------------------------- validation


def test_the_schema_is_a_valid_json_schema():
    jsonschema.Draft202012Validator.check_schema(manifests.SCHEMA)


def places(value, path=()):
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], path + (key,))


def test_our_reading_of_the_schema_is_that_of_the_library():
    """Both validate manifests in which one thing at a random place was changed."""
    library = jsonschema.Draft202012Validator(manifests.SCHEMA)
    complete = good_run(parts=manifests.PARTS)
    manifests.note(complete, [("over_limit", "x", "y")])
    other = [None, True, 0, -1, 1.5, "", "x", "2026-11-26T15:42:59Z", [], {}, ["x"], {"x": "y"}]
    seen = set()
    for seed in range(600):
        chance = random.Random(seed)
        manifest = copy.deepcopy(complete)
        path = chance.choice(list(places(manifest))[1:])
        parent = manifest
        for key in path[:-1]:
            parent = parent[key]
        action = chance.choice(["change", "remove", "add"])
        if action == "remove":
            del parent[path[-1]]
        elif action == "add" and isinstance(parent, dict):
            parent["surplus"] = chance.choice(other)
        else:
            parent[path[-1]] = chance.choice(other)
        valid = library.is_valid(manifest)
        assert (manifests.differences(manifest, manifests.SCHEMA) == []) == valid, (seed, path, action)
        seen.add((action, valid))
    assert len(seen) >= 5


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda one: one.update(ended="2026-11-26T15:42:58Z"), "the run ended before it began"),
        (lambda one: one["parts"]["files"].update(ended="2026-11-26T15:00:00Z"), "files ended before it began"),
        (lambda one: one["parts"]["files"].update(result="running"), "files has not ended, but the run has"),
        (lambda one: one["parts"]["files"].update(result="failed"), "files failed without a reason"),
        (lambda one: one["parts"]["files"].pop("label"), "files succeeded without label"),
        (
            lambda one: one["parts"]["files"].update(label=""),
            "manifest.parts.files.label is '', which has not its form",
        ),
        (lambda one: one["parts"]["files"].pop("size_bytes"), "files succeeded without size_bytes"),
        (lambda one: one["parts"]["database"].pop("wal"), "database succeeded without wal"),
        (lambda one: one["parts"]["database"].pop("restore_point"), "database succeeded without restore_point"),
        (lambda one: one["parts"]["files"].update(verified=[]), "files succeeded, but nothing was verified of it"),
        (
            lambda one: one["parts"]["files"]["verified"].append(
                {"how": "x", "at": one["ended"], "good": False, "what": ""}
            ),
            "files succeeded, but a verification failed",
        ),
        (
            lambda one: one["parts"]["files"].update(
                result="failed", problems=[{"code": "x", "what": "", "where": ""}]
            ),
            "the run has result succeeded, but a part is failed",
        ),
        (lambda one: one.update(format=2), "manifest.format is 2, not one of [1]"),
        (lambda one: one["parts"].update(media={}), "manifest.parts has media, which is not known"),
        (lambda one: one["parts"].clear(), "manifest.parts is empty"),
        (lambda one: one.pop("host"), "manifest has no host"),
    ],
)
def test_problems_are_reported(change, complaint):
    manifest = good_run()
    change(manifest)
    assert complaint in manifests.validate(manifest)


@pytest.mark.parametrize("value", [None, [], "text", 1])
def test_values_of_another_type_are_no_manifest(value):
    assert manifests.validate(value) == ["manifest is %r, not object" % (value,)]


# ------------------------------------------------------------------------------------------------------------ the file


def test_a_manifest_is_written_completely_and_for_its_owner_only(tmp_path):
    path = str(tmp_path / "run.json")
    os.umask(0)
    try:
        manifests.write(path, good_run())
    finally:
        os.umask(0o022)
    assert os.stat(path).st_mode & 0o777 == 0o600 and os.listdir(tmp_path) == ["run.json"]
    read = manifests.read(path)
    assert read.pop("sha256") == manifests.checksum(good_run())
    assert read == good_run()


def test_a_manifest_that_is_not_valid_is_not_written(tmp_path):
    manifest = good_run()
    del manifest["host"]
    with pytest.raises(manifests.ManifestError, match="manifest has no host"):
        manifests.write(str(tmp_path / "run.json"), manifest)
    assert os.listdir(tmp_path) == []


def test_it_can_be_written_again_after_it_was_read(tmp_path):
    path = str(tmp_path / "run.json")
    manifests.write(path, good_run())
    manifest = manifests.read(path)
    manifests.verified(manifest, "files", "restore_test", False, "lost", NOW + 500)
    manifests.finish(manifest, NOW + 600)
    manifests.write(path, manifest)
    assert manifests.read(path)["result"] == "failed"


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_is_found(tmp_path, seed):
    path = tmp_path / "run.json"
    manifests.write(str(path), good_run())
    content = bytearray(path.read_bytes())
    # Between two tokens a blank may stand for a line feed; everything else counts.
    chance = random.Random(seed)
    place = chance.choice([number for number, byte in enumerate(content) if byte not in b" \n"])
    content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(content))
    with pytest.raises(manifests.ManifestError, match="is damaged"):
        manifests.read(str(path))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 1}'])
def test_an_invalid_manifest_is_not_read(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(manifests.ManifestError, match="is damaged"):
        manifests.read(str(tmp_path / "run.json"))


def test_a_manifest_of_another_version_is_not_read(tmp_path):
    manifest = dict(good_run(), format=2)
    (tmp_path / "run.json").write_text(json.dumps(dict(manifest, sha256=manifests.checksum(manifest))))
    with pytest.raises(manifests.ManifestError, match="not a manifest of this version"):
        manifests.read(str(tmp_path / "run.json"))


def test_the_history_continues_after_a_damaged_manifest(tmp_path):
    for day in (2, 0, 1):
        manifests.write(str(tmp_path / ("%d.json" % (9 - day))), good_run(NOW + day * 86400, "day%d" % day))
    (tmp_path / "8.json").write_text("{")
    (tmp_path / "9.json.new").write_text("of a killed writer")
    found = manifests.history(str(tmp_path))
    assert [one["run_id"] for one in found.manifests] == ["day0", "day2"]
    assert len(found.problems) == 1 and "8.json is damaged" in found.problems[0]
    assert manifests.history(str(tmp_path / "none")) == ([], [])


def test_problems_of_the_history_are_in_the_order_of_their_files(tmp_path, monkeypatch):
    names = ["b.json", "c.json", "a.json"]
    for name in names:
        (tmp_path / name).write_text("{")
    monkeypatch.setattr(manifests.os, "listdir", lambda _directory: names)
    assert [one.split(" ")[0].rsplit("/", 1)[1] for one in manifests.history(str(tmp_path)).problems] == sorted(names)


def test_the_last_restore_test_of_a_backup_is_its_verification():
    first, second = good_run(), good_run(NOW + 86400, "next", label="later")
    assert manifests.verifications([first]) == {DATABASE["label"]: True}
    manifests.verified(second, "database", "restore_test", False, "rotten", NOW + 86500, label=DATABASE["label"])
    manifests.verified(second, "database", "checksums", False, "no restore", NOW + 86500)
    assert manifests.verifications([second, first]) == {DATABASE["label"]: False, "later": True}
    assert (
        manifests.verifications([first], "files") == {FILES["label"]: True}
        and manifests.verifications([first], "logical") == {}
    )
    nameless = run()
    manifests.verified(nameless, "database", "restore_test", False, "of what has no name yet", NOW)
    assert manifests.verifications([nameless]) == {}


# ------------------------------------------------------------------------------------------------------------- metrics


def series(text):
    """The values by series; every line is one that the text format allows."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.match(r"# (HELP \w+ \S.*|TYPE \w+ gauge)$", line), line
            continue
        match = re.match(r'(shiftmaster_[a-z_]+(?:\{kind="[a-z]+"\})?) (-?\d+)$', line)
        assert match, line
        assert match.group(1) not in found
        found[match.group(1)] = int(match.group(2))
    assert text == "" or text.endswith("\n")
    return found


def test_the_metrics_of_a_successful_run():
    found = series(manifests.metrics([good_run()], wal_gaps=0, wal_newest=NOW - 30, next_run=NOW + 86400))
    assert found == {
        'shiftmaster_backup_last_success_timestamp_seconds{kind="database"}': NOW + 100,
        'shiftmaster_backup_last_success_timestamp_seconds{kind="files"}': NOW + 200,
        'shiftmaster_backup_last_success_timestamp_seconds{kind="config"}': NOW + 300,
        'shiftmaster_backup_size_bytes{kind="database"}': 32852909,
        'shiftmaster_backup_size_bytes{kind="files"}': 1200000,
        'shiftmaster_backup_size_bytes{kind="config"}': 1200000,
        'shiftmaster_backup_duration_seconds{kind="database"}': 100,
        'shiftmaster_backup_duration_seconds{kind="files"}': 100,
        'shiftmaster_backup_duration_seconds{kind="config"}': 100,
        'shiftmaster_backup_failed{kind="database"}': 0,
        'shiftmaster_backup_failed{kind="files"}': 0,
        'shiftmaster_backup_failed{kind="config"}': 0,
        'shiftmaster_backup_failed{kind="run"}': 0,
        "shiftmaster_restore_test_last_success_timestamp_seconds": NOW + 100,
        "shiftmaster_backup_wal_gaps": 0,
        "shiftmaster_backup_wal_newest_timestamp_seconds": NOW - 30,
        "shiftmaster_backup_next_run_timestamp_seconds": NOW + 86400,
    }


def test_a_failed_run_keeps_the_age_of_the_last_successful_one():
    failed = run(now=NOW + 86400, run_id="next")
    save(failed, "database", NOW + 86400, good=False)
    save(failed, "files", NOW + 86500, size_bytes=7)
    manifests.finish(failed, NOW + 86700)
    found = series(manifests.metrics([failed, good_run()]))
    assert found['shiftmaster_backup_last_success_timestamp_seconds{kind="database"}'] == NOW + 100
    assert found['shiftmaster_backup_failed{kind="database"}'] == 1
    assert found["shiftmaster_restore_test_last_success_timestamp_seconds"] == NOW + 100
    assert found['shiftmaster_backup_last_success_timestamp_seconds{kind="files"}'] == NOW + 86600
    assert found['shiftmaster_backup_size_bytes{kind="files"}'] == 7
    assert found['shiftmaster_backup_failed{kind="config"}'] == 1


def test_a_run_that_failed_without_a_failed_part_is_reported():
    outside = run(now=NOW + 86400, run_id="next")
    for part in outside["parts"]:
        save(outside, part, NOW + 86400)
    manifests.note(outside, [("offsite_failed", "not copied off-site", "")])
    manifests.finish(outside, NOW + 86700, failed=True)
    found = series(manifests.metrics([good_run(), outside]))
    assert found['shiftmaster_backup_failed{kind="run"}'] == 1
    assert found['shiftmaster_backup_failed{kind="database"}'] == 0
    # A failed part is reported separately.
    failed = run(now=NOW + 2 * 86400, run_id="after")
    save(failed, "database", NOW + 2 * 86400, good=False)
    manifests.finish(failed, NOW + 2 * 86400 + 300)
    assert series(manifests.metrics([outside, failed]))['shiftmaster_backup_failed{kind="run"}'] == 0


def test_a_failure_of_the_run_ends_with_a_good_run_of_as_many_parts():
    outside = good_run(now=NOW + 86400, run_id="next", parts=manifests.PARTS)
    manifests.note(outside, [("offsite_failed", "not copied off-site", "")])
    manifests.finish(outside, NOW + 86700, failed=True)
    database = good_run(now=NOW + 90000, run_id="of-deploy", parts=["database"])
    full = good_run(now=NOW + 2 * 86400, run_id="after")
    failed = 'shiftmaster_backup_failed{kind="run"}'
    assert series(manifests.metrics([outside, database]))[failed] == 1
    assert series(manifests.metrics([outside, database, full]))[failed] == 0


def test_what_the_options_no_longer_have_is_left_out():
    one = run(now=NOW, parts=["database", "logical"])
    save(one, "database", NOW)
    save(one, "logical", NOW, good=False)
    one["parts"]["database"]["offsite"] = "abcdef12"
    manifests.finish(one, NOW + 300)
    text = manifests.metrics([one])
    assert 'shiftmaster_backup_failed{kind="logical"} 1' in text and "offsite_last_success" in text
    text = manifests.metrics([one], without=["logical", "offsite"])
    assert "logical" not in text and "offsite_last_success" not in text
    assert 'shiftmaster_backup_failed{kind="database"} 0' in text


def test_a_run_that_did_not_begin_is_reported_until_one_has():
    assert series(manifests.metrics([], not_begun=NOW)) == {'shiftmaster_backup_failed{kind="run"}': 1}
    assert series(manifests.metrics([good_run()], not_begun=NOW + 9))['shiftmaster_backup_failed{kind="run"}'] == 1
    assert series(manifests.metrics([good_run()], not_begun=NOW - 9))['shiftmaster_backup_failed{kind="run"}'] == 0


def test_a_run_that_has_not_ended_changes_no_metric():
    under_way = run(now=NOW + 86400, run_id="next")
    save(under_way, "database", NOW + 86400)
    assert manifests.metrics([good_run(), under_way]) == manifests.metrics([good_run()])


def test_a_part_that_was_not_requested_has_not_failed():
    manifest = good_run()
    manifest["parts"]["configuration"] = dict(manifest["parts"]["configuration"], result="skipped")
    assert 'shiftmaster_backup_failed{kind="config"}' not in series(manifests.metrics([manifest]))


def test_the_weekly_dump_has_no_age_that_a_daily_alert_would_take_for_old():
    found = series(manifests.metrics([good_run(parts=manifests.PARTS)]))
    assert 'shiftmaster_backup_size_bytes{kind="logical"}' in found
    assert 'shiftmaster_backup_last_success_timestamp_seconds{kind="logical"}' not in found


def test_a_restore_of_files_is_no_restore_of_the_database():
    assert "shiftmaster_restore_test" not in manifests.metrics([good_run(parts=["files"])])


def test_unknown_values_are_omitted():
    assert manifests.metrics([]) == ""


def test_the_names_are_those_that_monitoring_queries():
    wanted = set()
    for path in [*(ROOT / "monitoring/alerts").glob("*.yml"), *(ROOT / "monitoring/dashboards/ja").glob("*.json")]:
        wanted |= set(re.findall(r"shiftmaster_(?:backup|restore_test)_\w+", path.read_text(encoding="utf-8")))
    assert len(wanted) >= 4 and wanted <= set(manifests.HELP)
    kinds = set(
        re.findall(r'kind"?(?:=|, )"(\w+)"', (ROOT / "monitoring/alerts/backup.yml").read_text(encoding="utf-8"))
    )
    assert kinds and kinds == {kind for kind in manifests.KINDS.values() if kind not in manifests.WITHOUT_AGE}


def test_the_same_problem_of_many_backups_is_one_line():
    manifest = good_run()
    rest = "can be restored up to segment A only: 1 are missing or damaged: B"
    problems = [("wal_missing", "backup %s %s" % (label, rest), label) for label in ("1F", "2I", "3I")]
    manifests.note(manifest, [*problems, ("clock", "the clock is behind", "9F")])
    reported = ["3 backups, 1F to 3I, %s" % rest, "the clock is behind"]
    assert report.of_run(manifest) == reported and report.reasons(manifest) == reported
    assert set(reported) <= set(report.lines(manifest, "/backups"))


HOSTILE_NAMES = ["../../../etc", "..", "/etc/shadow", "a/../../b", "a\nb", "a\x1b[2J", ""]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_in_a_manifest_cannot_select_another_directory(name):
    part = manifests.SCHEMA["properties"]["parts"]["properties"]["logical"]["properties"]
    assert manifests.differences(name, part["label"])
    assert manifests.differences({name: "a" * 64}, part["checksums"])
    assert manifests.differences(name + "\n", manifests.SCHEMA["properties"]["run_id"])
    assert manifests.differences("20261127T000000Z-aaaaaa\n", manifests.SCHEMA["properties"]["run_id"])


def test_names_of_today_are_names():
    part = manifests.SCHEMA["properties"]["parts"]["properties"]["logical"]["properties"]
    for label in ("20261128-023000F_20261129-023000I", "5" * 64, "20261127T000000Z-aaaaaa"):
        assert manifests.differences(label, part["label"]) == []
    assert manifests.differences({"shiftmaster/toc.dat": "a" * 64, "a b/..x/c..": "b" * 64}, part["checksums"]) == []


@pytest.mark.parametrize("text", ["[" * 200000, "{" + " " * (33 << 20)], ids=["deep", "large"])
def test_a_manifest_that_is_too_deep_or_too_large_is_damaged(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    found = manifests.history(str(tmp_path))
    assert found.manifests == [] and len(found.problems) == 1


def test_the_checksum_of_a_manifest_is_the_same_for_every_version_of_the_program():
    """Those that are on disks were written by earlier ones, with names in Japanese."""
    content = {"b": ["シフト", 1], "a": None, "sha256": "left out"}
    text = rb'{"a":null,"b":["\u30b7\u30d5\u30c8",1]}'
    assert manifests.checksum(content) == hashlib.sha256(text).hexdigest()


def test_the_metrics_contain_the_time_of_the_last_off_site_copy():
    name = "shiftmaster_backup_offsite_last_success_timestamp_seconds"
    first, second = good_run(), good_run(now=NOW + 86400, run_id="20261127T154259Z")
    assert name not in manifests.metrics([first, second])
    first["parts"]["files"]["offsite"] = "read there"
    at = manifests.seconds_of(first["ended"])
    assert "%s %d\n" % (name, at) in manifests.metrics([second, first])


# ----------------------------------------------------------------------------------------- what a manifest cannot hold

HASH = "a" * 64
PROBLEM = {"code": "a_1", "what": "", "where": ""}
LOOK = {"how": "a_1", "at": "2026-11-26T15:42:59Z", "good": True, "what": "", "label": ""}
OF_A_PART = {
    "result": ["good", None], "started": ["today", 5], "ended": ["today", 5], "kind": ["half"],
    "label": ["../x", "", ".x", "a" * 201, 5], "location": ["", 5], "offsite": [5, None],
    "size_bytes": [-1, True, "1", 1.5, 10**400], "added_bytes": [-1, "1", 2**64],
    "checksums": [{"/a": HASH}, {"../a": HASH}, {"a/..": HASH}, {"a\n": HASH}, {"": HASH}, {"a": "x"},
                  {"a": HASH + "a"}, []],
    "tools": [{"a": 5}, []], "restore_point": ["", 5], "system_id": [0, "1"], "rows": [{"a": -1}, {"a": "1"}, []],
    "wal": [{"start": "x"}, {"start": "0" * 24, "stop": "x"}, {"start": "x", "stop": "0" * 24}, {"stop": "0" * 24},
            {"start": "0" * 24}, {"start": "0" * 24, "stop": "0" * 24, "verified": "x"},
            {"start": "0" * 24, "stop": "0" * 24, "more": "x"}, []],
    "problems": [[{}], [dict(PROBLEM, code="A b")], [dict(PROBLEM, what=5)], [dict(PROBLEM, where=5)],
                 [dict(PROBLEM, more="")], [5], {}],
    "verified": [[{}], [dict(LOOK, how="A b")], [dict(LOOK, at="today")], [dict(LOOK, at="2026-02-30T00:00:00Z")],
                 [dict(LOOK, good=1)], [dict(LOOK, what=5)], [dict(LOOK, label=5)], [dict(LOOK, more="")], [5], {}],
    "surplus": ["x"],
}  # fmt: skip
OF_A_RUN = {
    "format": [2, "1"], "run_id": ["../x", "", "-x", "a" * 201, 5], "host": ["", 5], "started_by": [5],
    "started": ["today", None, "2026-13-01T00:00:00Z"], "ended": ["today", 5, "0000-01-01T00:00:00Z"],
    "result": ["good"],
    "parts": [{}, [], {"media": {}}, {"files": 5}], "removed": [[5], "x"],
    "problems": OF_A_PART["problems"], "sha256": ["x", "A" * 64], "surplus": ["x"],
}  # fmt: skip
OF_A_RELEASE = {
    "name": ["\x1b[2J", "a\nb", "\x9b", "a" * 301, 5], "version": ["\x1b", 5], "revision": ["\x1b", 5],
    "migrations": [-1, "5", 1.5, True], "surplus": ["x"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "values"),
    [((), OF_A_RUN), (("release",), OF_A_RELEASE), (("parts", "files"), OF_A_PART), (("parts", "database"), OF_A_PART)],
    ids=["run", "release", "files", "database"],
)
def test_each_value_has_its_form(place, values):
    for name, bad in values.items():
        for value in bad:
            manifest = good_run()
            inner = manifest
            for key in place:
                inner = inner[key]
            inner[name] = value
            assert manifests.differences(manifest, manifests.SCHEMA), (name, value)


def test_required_fields_are_required():
    fine = good_run()
    fine["parts"]["files"]["problems"] = [dict(PROBLEM)]
    fine["parts"]["files"].update(verified=[dict(LOOK)], checksums={"a/b": HASH}, offsite="x")
    fine["parts"]["database"]["wal"]["verified"] = "0" * 24
    fine["release"] = {"name": "", "version": "", "revision": "", "migrations": None}
    fine.update(started_by="x", removed=["x"], sha256=HASH, ended=None)
    assert manifests.differences(fine, manifests.SCHEMA) == []
    for place, names in (
        ((), "format run_id host started ended result release parts problems"),
        (("release",), "name migrations"),
        (("parts", "files"), "result started ended problems verified"),
        (("parts", "files", "problems", 0), "code what where"),
        (("parts", "files", "verified", 0), "how at good what"),
        (("parts", "database", "wal"), "start stop"),
    ):
        for name in names.split():
            manifest = copy.deepcopy(fine)
            inner = manifest
            for key in place:
                inner = inner[key]
            del inner[name]
            assert any("has no %s" % name in one for one in manifests.differences(manifest, manifests.SCHEMA))


def test_a_line_feed_at_the_end_is_no_part_of_a_name():
    manifest = good_run()
    for name in ("run_id", "started"):
        assert manifests.differences(dict(manifest, **{name: manifest[name] + "\n"}), manifests.SCHEMA)


def test_each_metric_has_its_help_and_type_once_before_its_series():
    text = manifests.metrics([good_run()], wal_gaps=1, wal_newest=2, next_run=3)
    found = re.findall(r"(?m)^# HELP (\w+) .+\n# TYPE (\w+) gauge\n((?:[^#\n].*\n)+)", text)
    assert (
        "".join("# HELP %s %s\n# TYPE %s gauge\n%s" % (one, manifests.HELP[one], two, rest) for one, two, rest in found)
        == text
    )
    assert len({name for name, _type, _series in found}) == len(found) >= 7
    assert all(name == kind and line.startswith(name) for name, kind, rest in found for line in rest.splitlines())
    failed = manifests.with_failed_run(text)
    assert failed.count("# TYPE shiftmaster_backup_failed gauge\n") == 1 and failed.count('{kind="run"} 1\n') == 1
    assert sorted(set(text.splitlines()) - set(failed.splitlines())) == ['shiftmaster_backup_failed{kind="run"} 0']
    assert manifests.metrics([], not_begun=5).endswith('\nshiftmaster_backup_failed{kind="run"} 1\n')
    assert manifests.metrics([]) == ""
