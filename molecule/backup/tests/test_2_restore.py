"""Restores by playbooks/restore.yml, as an administrator types them."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess

import pytest
from support import ROOT

RESTORE = "playbooks/restore.yml"
MEDIA = "/var/www/shiftmaster/shared/media"
SEALED = "/var/www/shiftmaster/shared/state/audit"
KEY = "/etc/ssl/private/shiftmaster.key"
HOST = "backup-trixie"


@pytest.fixture(scope="module")
def data(operations, backups):
    """Rows and an uploaded file, saved and verified."""
    backups.sql("CREATE TABLE precious AS SELECT g AS id, md5(g::text) AS text FROM generate_series(1, 5000) AS g")
    backups.sql("ALTER TABLE precious OWNER TO shiftmaster")
    backups.shell(f"head -c 300000 /dev/urandom > {MEDIA}/plan.pdf && chown shiftmaster: {MEDIA}/plan.pdf")
    return backups.run()


def now(backups) -> str:
    return backups.sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')||'+00:00'")


def test_backups_are_listed(operations, backups, data):
    run = operations.run(RESTORE, list="true")
    assert run.code == 0 and run.changed == 0
    assert run.prints(data["run_id"], "verified by a restore", "2.0.0")


def test_nothing_is_changed_without_confirmation(operations, backups, data):
    before = operations.fingerprint(), backups.sql("SELECT count(*) FROM precious")
    run = operations.run(RESTORE)
    assert run.code == 0 and run.prints("Nothing was changed", f"-e confirm={HOST}", "Lost:", "its test restore took")
    run = operations.run(RESTORE, "--check", confirm=HOST)
    assert run.code == 0 and run.prints("everything in the archive")
    run = operations.run(RESTORE, confirm="another")
    assert run.code != 0 and run.prints("what would be replaced is on backup-trixie")
    assert (operations.fingerprint(), backups.sql("SELECT count(*) FROM precious")) == before


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"target": "2026-11-26T10:00:00"}, "has no zone"),
        ({"target": "2000-01-01T00:00:00Z"}, "every verified backup is younger"),
        ({"parts": "everything"}, "parts=everything is none of"),
        ({"into": "elsewhere"}, "into is here or scratch"),
        ({"target": "20200101T000000Z-aaaaaa"}, "there is no verified backup"),
    ],
)
def test_invalid_options_are_rejected(operations, data, extra, text):
    run = operations.run(RESTORE, confirm=HOST, **extra)
    assert run.code != 0 and run.prints(text), run.output[-2000:]


def test_one_table(operations, backups, data):
    timestamp = now(backups)
    backups.sql("DROP TABLE precious")
    run = operations.run(RESTORE, target=timestamp, table="precious")
    assert run.code == 0, run.output[-3000:]
    path = backups.shell("ls /var/backups/shiftmaster/tables/*/precious.dump | tail -n 1").strip()
    backups.shell(f"runuser -u postgres -- pg_restore --dbname shiftmaster {path}")
    assert backups.sql("SELECT count(*), sum(id) FROM precious") == "5000|12502500"
    assert operations.live_version(30) == "2.0.0"


def test_rows_come_back_with_those_that_refer_to_them(operations, backups, data):
    """By the lines of the guide, with other names."""
    guide = (ROOT / "docs/operations-guide.md").read_text(encoding="utf-8")
    block = re.search(r"^```\n(sudo -u postgres createdb look\n.*?)^```$", guide, re.M | re.S)[1]
    query = re.search(r"^sudo -u postgres psql -d shiftmaster .*contype = 'f'.*$", guide, re.M)[0]
    backups.sql("CREATE TABLE roster_shift_2 (id int PRIMARY KEY, name text)")
    backups.sql(
        "CREATE TABLE roster_assignment_2"
        " (id int PRIMARY KEY, shift_id int REFERENCES roster_shift_2 INITIALLY DEFERRED)"
    )
    backups.sql("ALTER TABLE roster_shift_2 OWNER TO shiftmaster; ALTER TABLE roster_assignment_2 OWNER TO shiftmaster")
    backups.sql("INSERT INTO roster_shift_2 SELECT g, 'it''s ' || g FROM generate_series(40, 49) g")
    backups.sql("INSERT INTO roster_assignment_2 SELECT g, g / 10 FROM generate_series(400, 499) g")

    def renamed(text):
        return re.sub(r"\broster_(shift|assignment)\b", r"roster_\1_2", text)

    assert "public.roster_assignment_2" in backups.shell(renamed(query))
    moment = now(backups)
    backups.sql("DELETE FROM roster_assignment_2; DELETE FROM roster_shift_2 WHERE id <> 42")
    backups.sql("UPDATE roster_shift_2 SET name = 'newer'")
    run = operations.run(RESTORE, target=moment, table="roster_shift_2,roster_assignment_2")
    assert run.code == 0, run.output[-3000:]
    backups.shell("cp /var/backups/shiftmaster/tables/*/roster_shift_2.dump /var/lib/postgresql/rows.dump")
    backups.shell("chown postgres /var/lib/postgresql/rows.dump")
    backups.shell(renamed("set -e\n" + block))
    assert backups.sql("SELECT string_agg(id || name, ',' ORDER BY id) FROM roster_shift_2") == "42newer,43it's 43"
    assert backups.sql("SELECT count(*), min(shift_id), max(shift_id) FROM roster_assignment_2") == "20|42|43"
    backups.sql("DROP TABLE roster_assignment_2, roster_shift_2")
    assert operations.live_version(30) == "2.0.0"


def test_a_killed_restore_keeps_the_previous_data(operations, backups, data, tmp_path):
    backups.sql("CREATE TABLE since AS SELECT 1 AS one")
    log = tmp_path / "log"
    operations.hold("restore_database")
    process = operations.start(RESTORE, log, target=data["run_id"], confirm=HOST)
    victim = operations.wait_at("restore_database", process, log)
    confined = backups.shell(
        "systemd-analyze security --no-pager $(systemctl list-units --plain --no-legend 'shiftmaster-restore-here-*' "
        "| cut -d' ' -f1) | tail -n 1"
    )
    assert float(confined.split(": ")[1].split()[0]) <= 2.7, confined
    backups.shell(f"kill -KILL {victim}")
    operations.release_hold()
    assert process.wait(300) != 0
    assert "what was there before is in its place again" in log.read_text()
    assert operations.live_version(60) == "2.0.0"
    assert backups.sql("SELECT one FROM since; DROP TABLE since") == "1"
    assert backups.shell("ls /var/lib/postgresql/17 | grep restoring || true") == ""


def test_a_host_that_crashes_during_a_restore_boots_with_the_previous_data(operations, backups, data, tmp_path):
    backups.sql("CREATE TABLE since AS SELECT 1 AS one")
    log = tmp_path / "log"
    operations.hold("restore_database")
    process = operations.start(RESTORE, log, target=data["run_id"], confirm=HOST)
    operations.wait_at("restore_database", process, log)
    subprocess.run(["docker", "kill", HOST], check=True, capture_output=True)
    subprocess.run(["docker", "start", HOST], check=True, capture_output=True)
    operations.wait_for_boot()
    assert process.wait(300) != 0
    assert backups.sql("INSERT INTO since VALUES (2); SELECT count(*) FROM since; DROP TABLE since") == "2"
    assert "the database that was there before is in its place" in backups.shell(
        "journalctl --boot --unit shiftmaster-backup-undo --output cat"
    )
    assert backups.shell("ls /var/lib/postgresql/17").split() == ["main"]
    # Where that run could not take its page down.
    backups.shell("rm -f /var/www/shiftmaster/shared/maintenance/on")
    assert operations.live_version(60) == "2.0.0"


def test_one_table_with_its_partitions_and_by_the_name_that_was_typed(operations, backups, data):
    backups.sql('CREATE TABLE "Visits" (id int, day date) PARTITION BY RANGE (day)')
    backups.sql("CREATE TABLE visits_2026 PARTITION OF \"Visits\" FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')")
    backups.sql("INSERT INTO \"Visits\" SELECT g, '2026-05-01' FROM generate_series(1, 300) AS g")
    run = operations.run(RESTORE, table="Visits")
    backups.sql('DROP TABLE "Visits"')
    assert run.code == 0, run.output[-3000:]
    path = backups.shell("ls /var/backups/shiftmaster/tables/*/Visits.dump | tail -n 1").strip()
    assert backups.shell(f"pg_restore --data-only --file=- {path} | grep -c 2026-05-01").strip() == "300"


@pytest.mark.parametrize("into", ["/etc", "/usr/local/new", "/etc/systemd/system/x.d", "/root/../etc", "/", "//"])
def test_a_system_directory_is_rejected_as_the_target_of_a_restore(operations, data, into):
    run = operations.run(RESTORE, parts="files", into=into)
    assert run.code != 0 and run.changed == 0 and run.prints(f"into={into}"), run.output[-2000:]


def test_files_are_restored_into_a_new_directory_of_root(operations, backups, data):
    run = operations.run(RESTORE, parts="files", into="/root/restored")
    assert run.code == 0, run.output[-3000:]
    assert (
        backups.shell(f"cmp /root/restored{MEDIA}/plan.pdf {MEDIA}/plan.pdf && stat -c '%U %a' /root/restored").strip()
        == "root 700"
    )
    # Existing files are not mixed with restored ones.
    run = operations.run(RESTORE, parts="files", into="/root/restored")
    assert run.code != 0 and run.prints("is not empty"), run.output[-2000:]
    backups.shell("rm -r /root/restored; install -d -o shiftmaster /srv/theirs")
    run = operations.run(RESTORE, parts="files", into="/srv/theirs/new")
    assert run.code != 0 and run.prints("another user"), run.output[-2000:]
    backups.shell("rm -r /srv/theirs")


def test_a_month_of_audit_events_comes_back_and_is_complete(operations, backups, data):
    def write(text, redirect=">>"):
        backups.shell(f"runuser -u shiftmaster -- sh -c 'echo {text} {redirect} /var/log/shiftmaster/audit.log'")

    write("first-of-the-test")
    backups.shell("systemctl start logrotate.service; logrotate --force /etc/logrotate.d/shiftmaster")
    write("second-of-the-test")
    backups.shell("systemctl start logrotate.service")
    count = f"cat {SEALED}/*.jsonl | grep -o {{}}-of-the-test | wc -l"
    assert [backups.shell(count.format(word)).strip() for word in ("first", "second")] == ["1", "1"]
    assert "live" in backups.shell(f"cat {SEALED}/*.jsonl"), "events of deploys are sealed, too"
    backups.run(only="files")
    run = operations.run(RESTORE, parts="files", of=HOST, paths=SEALED, into="/root/events")
    assert run.code == 0, run.output[-3000:]
    place = backups.shell("find /root/events -type d -name audit").strip()
    assert backups.shell(f"shiftmaster-backup verify {place}; shiftmasterctl verify").count("complete") == 2
    month = backups.shell(f"ls {place} | tail -n 1").strip()
    assert "second-of-the-test" in backups.shell(f"cd {place} && python3 -m json.tool --json-lines < {month}")
    backups.shell(f"sed -i s/first-of/other-of/ {place}/*.jsonl")
    assert "record" in backups.shell(f"shiftmaster-backup verify {place} 2>&1; true")
    backups.shell("rm -r /root/events")
    # The application rewrites its log: what was sealed stays, and the unit fails.
    write("forged", ">")
    backups.shell("systemctl start logrotate.service")
    assert backups.shell("systemctl is-failed shiftmaster-seal.service logrotate.service; true").split()[0] == "failed"
    assert backups.shell(count.format("first")).strip() != "0" and "complete" in backups.shell("shiftmasterctl verify")
    backups.shell("systemctl start shiftmaster-seal.service")


def test_a_restore_of_files_follows_no_link_of_the_application(operations, backups, data):
    backups.shell(
        f"install -d -o shiftmaster {MEDIA}/plans && echo plan > {MEDIA}/plans/plan.pdf && "
        f"chown shiftmaster: {MEDIA}/plans/plan.pdf"
    )
    backups.run(only="files")
    backups.shell("mkdir -m 777 /srv/victim && echo secret > /srv/victim/secret && chmod 600 /srv/victim/secret")
    backups.shell(
        f"cd {MEDIA} && runuser -u shiftmaster -- sh -c "
        "'rm -r plans && ln -s /srv/victim plans && ln -s /srv/victim/secret file'"
    )
    run = operations.run(RESTORE, parts="files", confirm=HOST)
    assert run.code == 0, run.output[-4000:]
    assert backups.shell("find /srv/victim -printf '%u %m %P\\n' | sort").splitlines() == [
        "root 600 secret",
        "root 777 ",
    ]
    assert backups.shell(f"stat -c '%F %U' {MEDIA}/plans {MEDIA}/plans/plan.pdf").splitlines() == [
        "directory shiftmaster", "regular file shiftmaster",
    ]  # fmt: skip
    backups.shell(f"rm -r {MEDIA}/plans {MEDIA}/file /srv/victim")


def test_scratch(operations, backups, data):
    run = operations.run(RESTORE, into="scratch", target=data["run_id"])
    assert run.code == 0 and run.prints("pg_amcheck", "rows"), run.output[-3000:]
    assert backups.shell("ls /var/backups/shiftmaster/scratch").strip() == ""


def test_files_and_configuration(operations, backups, data):
    before = backups.shell(f"sha256sum {MEDIA}/plan.pdf {KEY}; stat -c '%U:%G %a' {MEDIA}/plan.pdf {KEY}")
    backups.shell(f"rm {MEDIA}/plan.pdf {KEY}")
    run = operations.run(RESTORE, parts="files", confirm=HOST)
    assert run.code == 0, run.output[-3000:]
    run = operations.run(RESTORE, parts="configuration", paths=KEY, confirm=HOST)
    assert run.code == 0, run.output[-3000:]
    assert backups.shell(f"sha256sum {MEDIA}/plan.pdf {KEY}; stat -c '%U:%G %a' {MEDIA}/plan.pdf {KEY}") == before


@pytest.mark.sample
def test_a_restore_to_the_time_before_a_dropped_table(operations, backups, data):
    """Exact to the transaction: the last row before it is there, what came later is not."""
    for number in range(20):
        backups.sql(f"INSERT INTO precious VALUES ({9000 + number}, 'before')")
    timestamp = now(backups)
    backups.sql("INSERT INTO precious VALUES (9999, 'later'); DROP TABLE precious")
    # A task that would come to data that is not there any more.
    operations.shell("systemctl stop 'shiftmaster-worker@*'")
    operations.python("from roster import tasks\ntasks.record_run.delay('of-the-future', 0)")
    run = operations.run(RESTORE, target=timestamp, confirm=operations.host, timeout=3000)
    assert run.code == 0, run.output[-6000:]
    assert backups.sql("SELECT count(*), max(id) FROM precious") == "5020|9019"
    assert operations.live_version(60) == "2.0.0"
    assert "1 task(s) quarantined" in run.output
    assert json.loads(backups.shell("cat /var/www/shiftmaster/shared/quarantine/*/*.json"))["queue"]
    # The earlier data is kept, and reported.
    assert run.prints("What was there is kept in /var/lib/postgresql/17/main.before-")
    last = backups.manifests()[-1]
    assert last["result"] == "succeeded" and last["parts"]["database"]["kind"] == "full"
    assert last["parts"]["database"]["wal"]["verified"].startswith("00000002")
    assert "restored" in backups.shell("tail -n 5 /var/www/shiftmaster/shared/state/audit.jsonl")


def test_a_gap_in_the_archive_is_not_its_end(operations, backups, data):
    """The previous data is restored, and no branch of the WAL is left that a later restore would follow."""
    backups.sql("INSERT INTO precious VALUES (10000, 'last'); SELECT pg_switch_wal()")
    archive = "/var/backups/shiftmaster/pgbackrest/archive/shiftmaster"
    backups.shell(f"sleep 5; find {archive} -name '0000*-*.zst' | sort | tail -2 | head -1 > /root/gap")
    backups.shell("mv $(cat /root/gap) /root/segment")
    histories = backups.shell(f"find {archive} -name '*.history' | sort")
    try:
        run = operations.run(RESTORE, confirm=HOST, timeout=3000)
        assert run.code != 0 and run.prints("did not come to the end of the archive"), run.output[-4000:]
        assert backups.sql("SELECT max(id) FROM precious") == "10000"
        assert backups.shell(f"find {archive} -name '*.history' | sort") == histories
    finally:
        backups.shell("mv /root/segment $(cat /root/gap)")
    assert operations.live_version(60) == "2.0.0"


def test_latest(operations, backups, data):
    backups.sql("INSERT INTO precious VALUES (10001, 'last')")
    run = operations.run(RESTORE, confirm=HOST, timeout=3000)
    assert run.code == 0, run.output[-6000:]
    assert backups.sql("SELECT max(id) FROM precious") == "10001"
    assert operations.live_version(60) == "2.0.0"


def test_a_backup_by_playbook_and_a_second_run_of_the_roles_changes_nothing(operations, backups, data):
    run = operations.run("playbooks/backup.yml", only="database")
    assert run.code == 0 and run.prints("Database: SUCCESS"), run.output[-3000:]
    backups.shell("cd /etc/shiftmaster-backup && cp -p pgpass pgpass.kept && echo '*:*:*:*:wrong' > pgpass")
    try:
        run = operations.run("playbooks/backup.yml", only="database")
        assert run.code != 0 and run.prints("Database: FAILED", "password authentication failed")
    finally:
        backups.shell("cd /etc/shiftmaster-backup && mv pgpass.kept pgpass")
    run = operations.run("deploy.yml", "--tags", "database,backup")
    assert (run.code, run.changed) == (0, 0), run.output[-5000:]
    run = operations.run("deploy.yml", "--tags", "database,backup", "--check", "--diff")
    assert (run.code, run.changed) == (0, 0), run.output[-5000:]


def test_a_deploy_makes_a_verified_backup_before_it_migrates(operations, backups, data):
    before = len(backups.manifests())
    run = operations.deploy("2.1.0")
    assert run.code == 0, run.output[-5000:]
    new = backups.manifests()[before:]
    assert [one["result"] for one in new] == ["succeeded"] and "before migrations" in new[0]["started_by"]


def test_checksums_are_those_of_the_files(backups, data):
    """The manifest describes the dump that is there."""
    part = next(one for one in backups.manifests() if one["parts"].get("logical", {}).get("result") == "succeeded")
    part = part["parts"]["logical"]
    for name, digest in part["checksums"].items():
        text = backups.shell(f"sha256sum {part['location']}/{name}").split()[0]
        assert text == digest and len(digest) == len(hashlib.sha256().hexdigest())
