"""Saved data is verified, and each fault is FAILED: in the manifest, in the log and in the metrics."""

from __future__ import annotations

import json
import time

import pytest
from support import kill_here, wait_for


@pytest.mark.sample
def test_everything_is_saved_and_verified(backups, first):
    assert set(first["parts"]) == {"database", "logical", "files", "configuration"}
    database = first["parts"]["database"]
    assert database["kind"] == "full" and database["rows"]["shiftmaster.public.django_migrations"] > 5
    assert {"verify", "restore_test"} <= {one["how"] for one in database["verified"]}
    for kind, hows in {
        "logical": {"restore_test"}, "files": {"compared", "read"}, "configuration": {"compared", "read"},
    }.items():  # fmt: skip
        assert hows <= {one["how"] for one in first["parts"][kind]["verified"]}
    listed = json.loads(backups.pgbackrest("--output=json", "info"))[0]["backup"]
    (own,) = [one for one in listed if one["label"] == database["label"]]
    assert (database["size_bytes"], database["wal"]["start"]) == (own["info"]["size"], own["archive"]["start"])
    assert database["rows"]["shiftmaster.public.django_migrations"] == int(
        backups.sql("SELECT count(*) FROM django_migrations")
    )
    assert first["release"]["version"] == "2.0.0" and first["release"]["migrations"] > 5
    for kind in ("database", "files", "config"):
        assert 0 < time.time() - backups.metric("shiftmaster_backup_last_success_timestamp_seconds")[kind] < 86400
    assert backups.metric("shiftmaster_restore_test_last_success_timestamp_seconds")[""]
    assert "Database: SUCCESS (full" in backups.shell("cat /var/log/shiftmaster/backup.log")


def test_the_next_one_is_incremental_and_small(backups, first):
    manifest = backups.run(only="database")
    assert manifest["parts"]["database"]["kind"] == "incr"
    assert manifest["parts"]["database"]["added_bytes"] < first["parts"]["database"]["added_bytes"] / 2


def test_a_verification_leaves_nothing(backups, first):
    assert backups.shell("ls /var/backups/shiftmaster/scratch; pgrep -f shiftmaster/scratch", check=False) == ""


def test_the_configuration_backup_contains_the_key_of_the_certificate(backups, first):
    listed = backups.shell(
        "restic -r /var/backups/shiftmaster/restic -p /etc/shiftmaster-backup/restic.password ls "
        + first["parts"]["configuration"]["label"]
    )
    for path in ("/etc/ssl/private/shiftmaster.key", "/etc/nginx/sites-available/shiftmaster", "/etc/systemd/system"):
        assert path in listed


def test_no_secret_is_readable_by_others(backups, operations, first):
    backups.shell("systemctl start --no-block shiftmaster-backup.service")
    # With and without the backslashes that pgpass wants.
    password = "cut -d: -f5- /etc/shiftmaster-backup/pgpass"
    backups.shell(
        f"umask 077; {{ {password}; {password} | tr -d '\\\\'; cat /etc/shiftmaster-backup/restic.password; "
        "sed -n 's/^repo1-cipher-pass=//p' /etc/pgbackrest.conf; } > /root/secrets"
    )
    secrets = backups.shell("cat /root/secrets").split()
    assert len(secrets) == 4
    seen = ""
    while backups.shell("systemctl is-active shiftmaster-backup.service", check=False).strip() == "activating":
        seen += backups.shell("for i in 1 2 3 4 5; do ps axww -o args= | grep -v 'ps axww'; sleep 1; done; true")
    assert "pgbackrest" in seen and "restic" in seen
    assert [line for line in seen.splitlines() if any(secret in line for secret in secrets)] == []
    # The environment of processes, and these files, are root's own to read.
    places = "/var/log/shiftmaster /var/backups/shiftmaster/manifests /var/log/journal /run/log/journal"
    assert backups.shell(f"grep -rlaFf /root/secrets {places} 2>/dev/null; true").strip() == ""
    readable = "find / -xdev -type f -perm -o=r -not -path '/proc/*' -not -path '/sys/*' -not -path '/usr/*'"
    assert backups.shell(f"{readable} -exec grep -laFf /root/secrets {{}} + ; true", timeout=600).strip() == ""


SUCCESS = "shiftmaster_backup_last_success_timestamp_seconds"
KIND = {"database": "database", "logical": "logical", "files": "files", "configuration": "config"}


def failed(backups, *words: str, only: str = "database", otherwise: bool = False, **request) -> dict:
    """A run that must fail and report it in its manifest, in the log and as a metric; nothing existing is removed.

    otherwise: what was to be saved is good, and something else is not.
    """
    before, kept = backups.metric(SUCCESS), backups.kept()
    manifest = backups.run(check=False, only=only, **request)
    for word in words:
        assert word in backups.why(manifest), manifest
    output = backups.shell(f"grep {manifest['run_id']} /var/log/shiftmaster/backup.log")
    assert f"backup {manifest['run_id']}: FAILED" in output and all(word in output for word in words), output
    metrics = backups.metric("shiftmaster_backup_failed")
    if otherwise:
        assert manifest["parts"][only]["result"] == "succeeded"
        assert (metrics["run"], metrics[KIND[only]]) == (1, 0)
    else:
        assert metrics[KIND[only]] == 1 and backups.metric(SUCCESS) == before
    assert kept <= backups.kept(), "something that was good is gone"
    return manifest


def test_a_wrong_password(backups, first):
    backups.shell("cd /etc/shiftmaster-backup && cp -p pgpass pgpass.kept && echo '*:*:*:*:wrong' > pgpass")
    try:
        failed(backups, "password authentication failed")
    finally:
        backups.shell("cd /etc/shiftmaster-backup && mv pgpass.kept pgpass")


def test_rare_database_objects_are_saved_too(backups, first):
    """Rows that row level security hides, large objects, an unlogged table, whose rows no backup can hold."""
    backups.sql(
        "CREATE TABLE hidden AS SELECT g AS id FROM generate_series(1, 20) g; ALTER TABLE hidden OWNER TO shiftmaster;"
        "ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; ALTER TABLE hidden FORCE ROW LEVEL SECURITY;"
        "CREATE UNLOGGED TABLE fleeting AS SELECT g AS id FROM generate_series(1, 50) g;"
        "SELECT lo_from_bytea(4711, 'large')"
    )
    try:
        manifest = backups.run(only="database,logical")
        assert manifest["parts"]["database"]["rows"]["shiftmaster.public.hidden"] == 20
        assert "shiftmaster.public.fleeting" not in manifest["parts"]["database"]["rows"]
    finally:
        backups.sql("DROP TABLE hidden, fleeting; SELECT lo_unlink(4711)")


def test_a_tablespace_is_reported(backups, first):
    """It is saved and verified, but a restore in place has no directory to quarantined."""
    backups.shell("install -d -o postgres -m 700 /srv/fast")
    backups.sql("CREATE TABLESPACE fast LOCATION '/srv/fast'")
    backups.sql("CREATE TABLE quick TABLESPACE fast AS SELECT g AS id FROM generate_series(1, 9) g")
    try:
        manifest = backups.run(check=None, only="database,logical")
        assert manifest["result"] == "warning" and "fast in /srv/fast" in backups.why(manifest), manifest
        assert {part["result"] for part in manifest["parts"].values()} == {"succeeded"}
    finally:
        backups.sql("DROP TABLE quick")
        backups.sql("DROP TABLESPACE fast")


def test_a_missing_database(backups, first):
    database = backups.configured()["database"]
    with backups.options(database=dict(database, databases=["nowhere"])):
        failed(backups, 'database "nowhere" does not exist')


def test_a_dump_that_is_killed(backups, first):
    # Without a pause: a small database is dumped within the blink of one.
    backups.shell("systemd-run --quiet --unit=killer sh -c 'until pkill -KILL -x pg_dump; do :; done'")
    try:
        failed(backups, "pg_dump of shiftmaster was killed by signal 9", only="logical")
        assert ".part" not in backups.shell("ls /var/backups/shiftmaster/logical")
    finally:
        backups.shell("systemctl stop killer; true", check=False)


@pytest.mark.parametrize("victims", ['-f "pgbackrest.*backup$"', "-x pgbackrest"], ids=["main", "all"])
def test_pgbackrest_is_killed(backups, first, victims):
    backups.shell(f"systemd-run --quiet --unit=killer sh -c 'until pkill -KILL {victims}; do sleep 0.1; done'")
    try:
        failed(backups, "was killed by signal 9", kind="full")
    finally:
        backups.shell("systemctl stop killer; true", check=False)
    assert backups.run(only="database")["parts"]["database"]["result"] == "succeeded"


def test_the_controller_is_killed(operations, backups, first, tmp_path):
    """The run is a unit of the host: it continues."""
    log = tmp_path / "log"
    operations.hold("backup_verification")
    process = operations.start("playbooks/backup.yml", log, only="database")
    try:
        operations.wait_at("backup_verification", process, log)
        kill_here(process)
    finally:
        operations.release_hold()
    last = wait_for(lambda: backups.manifests()[-1]["ended"] and backups.manifests()[-1], 300, "the run's end")
    assert last["result"] == "succeeded" and last["started_by"] != "schedule"


def test_the_host_is_rebooted_in_the_middle(operations, backups, first):
    operations.hold("backup_verification")
    backups.shell("systemctl start --no-block shiftmaster-backup.service")
    reached = "cat /run/shiftmaster/points/backup_verification.reached 2>/dev/null"
    wait_for(lambda: backups.shell(reached, check=False), 600, "the verification")
    kept = backups.kept()
    operations.reboot()
    last = wait_for(lambda: backups.manifests()[-1]["ended"] and backups.manifests()[-1], 120, "its report")
    assert last["result"] == "failed" and "its host went down" in backups.why(last)
    assert f"backup {last['run_id']}: FAILED" in backups.log()
    assert backups.metric("shiftmaster_backup_failed")["database"] == 1 and kept <= backups.kept()
    assert operations.live_version(120)
    backups.run(only="database")


def test_the_entire_run_is_killed(backups, first):
    """By a signal that it cannot see: the unit after it reports it, and the next run works."""
    backups.operations.hold("backup_verification")
    backups.shell("systemctl start --no-block shiftmaster-backup.service")
    try:
        deadline = time.monotonic() + 600
        while not backups.shell("cat /run/shiftmaster/points/backup_verification.reached 2>/dev/null", check=False):
            assert time.monotonic() < deadline
            time.sleep(1)
        backups.shell("systemctl kill --kill-whom=main --signal=KILL shiftmaster-backup.service")
        backups.shell(
            "sleep 3; while systemctl is-active shiftmaster-backup-killed | grep -q activating; do sleep 1; done"
        )
    finally:
        backups.operations.release_hold()
    last = backups.manifests()[-1]
    assert last["result"] == "failed" and "was killed" in json.dumps(last["problems"])
    assert "FAILED" in backups.log()
    assert backups.shell("pgrep -f shiftmaster/scratch", check=False) == ""
    backups.run(only="database")


def test_a_second_run_waits_and_reports_the_holder_of_the_lock(backups, first):
    backups.operations.hold("backup_verification")
    backups.shell("systemctl start --no-block shiftmaster-backup.service")
    try:
        deadline = time.monotonic() + 600
        while not backups.shell("cat /run/shiftmaster/points/backup_verification.reached 2>/dev/null", check=False):
            assert time.monotonic() < deadline
            time.sleep(1)
        assert backups.run(check=False, only="files") == {}
        assert backups.metric("shiftmaster_backup_failed")["run"] == 1
        assert "by schedule (process" in backups.log() and "holds the lock of the backups for longer" in backups.log()
    finally:
        backups.operations.release_hold()
    backups.wait_until_idle()
    assert backups.manifests()[-1]["result"] == "succeeded"
    backups.run(only="files")
    assert backups.metric("shiftmaster_backup_failed")["run"] == 0


def test_a_missing_source_path(backups, first):
    parts = backups.configured()["parts"]
    gone = [dict(part, paths=["/var/www/gone"]) if part["name"] == "files" else part for part in parts]
    with backups.options(parts=gone):
        failed(backups, "what shall be saved is not there: /var/www/gone", only="files")


FLIP = r"""
import os, sys
path = sys.argv[1]
with open(path, "r+b") as stream:
    stream.seek(os.path.getsize(path) // 2)
    byte = stream.read(1)
    stream.seek(-1, 1)
    stream.write(bytes([byte[0] ^ 1]))
"""


@pytest.fixture
def flip(backups):
    """Flip a bit in the middle of the first file that a command names; the file is restored after the test."""
    flipped = []

    def flip(find: str) -> str:
        path = backups.shell(find).splitlines()[0]
        backups.shell(f"cp -p '{path}' /root/kept")
        flipped.append(path)
        backups.shell(f"python3 - '{path}'", stdin=FLIP)
        return path

    yield flip
    for path in flipped:
        backups.shell(f"cp -p /root/kept '{path}'")


PGBACKREST = "/var/backups/shiftmaster/pgbackrest"
# Its unit has a mount namespace, which may have been made before a mount of a test.
RESTART = "systemctl restart postgresql@17-main; until pg_isready -q; do sleep 0.5; done"


@pytest.mark.parametrize(
    ("find", "words"),
    [
        (f"ls -td {PGBACKREST}/backup/shiftmaster/*F/bundle/1", ["{label}", "are complete"]),
        (f"ls -td {PGBACKREST}/backup/shiftmaster/*F/backup.manifest", ["the manifest of backup {label}"]),
        (f"find {PGBACKREST}/archive -name '0000*-*.zst' | sort -r", ["{name}"]),
    ],
    ids=["bundle", "manifest", "wal"],
)
def test_a_flipped_bit_in_the_repository_of_the_database(backups, first, flip, find, words):
    label = backups.run(only="database", kind="full")["parts"]["database"]["label"]
    name = flip(find).rsplit("/", 1)[1][:24]
    failed(backups, *[word.format(label=label, name=name) for word in words], kind="incr")


def test_a_flipped_byte_in_a_dump(backups, first, flip):
    """Read again by each run: the disk reports nothing."""
    path = flip("find /var/backups/shiftmaster/logical -type f -path '*/shiftmaster/*' -size +0")
    failed(backups, "is damaged", "/".join(path.split("/")[-2:]), only="files", otherwise=True)


def test_a_page_that_is_damaged_on_the_primary(backups, first):
    assert backups.sql("SHOW data_checksums") == "on"
    backups.sql("CREATE TABLE torn AS SELECT g AS id FROM generate_series(1, 5000) AS g; CHECKPOINT")
    place = backups.sql("SELECT current_setting('data_directory') || '/' || pg_relation_filepath('torn')")
    backups.shell("systemctl stop postgresql")
    backups.shell(f"python3 - '{place}'", stdin=FLIP)
    backups.shell("systemctl start postgresql; until pg_isready -q; do sleep 0.5; done")
    try:
        failed(backups, "wrong checksums", kind="full")
    finally:
        backups.sql("DROP TABLE torn")
    assert backups.operations.live_version(60)
    assert backups.run(only="database")["parts"]["database"]["kind"] == "full"


def test_the_repository_is_full(backups, first):
    """Half a backup is none; what there is stays."""
    small = "/root/small"
    backups.shell(
        # Segments archived in the meantime would be in one of both only; a stop of postgresql.service does not wait.
        f"systemctl stop postgresql@17-main; mkdir -p {small} && "
        f"mount -t tmpfs -o size=$(( $(du -sm {PGBACKREST} | cut -f1) + 3 ))m tmpfs {small} && "
        f"chmod 750 {small} && chown postgres: {small} && cp -a {PGBACKREST}/. {small} && "
        f"mount --bind {small} {PGBACKREST}; {RESTART}"
    )
    try:
        with backups.options(archive_timeout_seconds=20):
            failed(backups, "the repository has", "left", kind="full")
        backups.shell(f"mount -o remount,size=4g {small}")
        # PostgreSQL tries again after up to a minute.
        ready = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
        wait_for(lambda: backups.sql(ready) == "0", 120)
        backups.run(only="database")
    finally:
        # Segments archived meanwhile are copied too.
        move = f"umount {PGBACKREST} && cp -a {small}/. {PGBACKREST} && umount {small}"
        backups.shell(f"systemctl stop postgresql@17-main; {move}; {RESTART}")
    backups.run(only="database")


def test_wal_that_is_not_archived_fills_the_databases_disk(backups, first):
    count = "SELECT count(*) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'"
    directory = backups.shell(f"ls -d {PGBACKREST}/archive/shiftmaster/*/* | tail -n 1").strip()
    backups.shell(f"chmod 500 {directory}")
    try:
        before, attempts = int(backups.sql(count)), int(backups.sql("SELECT failed_count FROM pg_stat_archiver"))
        for _number in range(6):
            backups.sql("CREATE TABLE filling AS SELECT 1; DROP TABLE filling; SELECT pg_switch_wal()")
        with backups.options(archive_timeout_seconds=20):
            failed(backups, "WAL segment", "archived")
        assert int(backups.sql(count)) > before
        assert int(backups.sql("SELECT failed_count FROM pg_stat_archiver")) > attempts
    finally:
        backups.shell(f"chmod 750 {directory}")
    backups.run(only="database")


def test_a_missing_segment_within_a_backup(backups, first):
    """Without it the backup itself is worth nothing, and so is what would be built upon it."""
    made = backups.run(only="database", kind="full")["parts"]["database"]
    path = backups.shell(f"find {PGBACKREST}/archive -name '{made['wal']['start']}-*.zst'").strip()
    backups.shell(f"mv {path} /root/segment")
    try:
        # Nothing is built upon it: a gap of the archive makes the next backup a full one.
        manifest = failed(backups, made["label"], made["wal"]["start"], kind="incr", otherwise=True)
        assert manifest["parts"]["database"]["kind"] == "full"
    finally:
        backups.shell(f"mv /root/segment {path}")
    backups.run(only="database")


def test_a_missing_segment(backups, first):
    """After an older backup: today's is good, and the run reports each day the range that can no longer be restored."""
    path = backups.shell(f"find {PGBACKREST}/archive -name '0000*-*.zst' | sort -r | sed -n 2p").strip()
    backups.run(only="database")
    backups.shell(f"mv {path} /root/segment")
    try:
        manifest = backups.run(check=False, only="database", kind="full")
        assert manifest["parts"]["database"]["result"] == "succeeded"
        assert path.rsplit("/", 1)[1][:24] in json.dumps(manifest["problems"])
        assert backups.metric("shiftmaster_backup_wal_gaps")[""] == 1
        # Without it the incremental backup of before cannot be restored at all.
        assert "wal_own_missing" in {problem["code"] for problem in manifest["problems"]}
    finally:
        backups.shell(f"mv /root/segment {path}")
    backups.run(only="database")
    assert backups.metric("shiftmaster_backup_wal_gaps")[""] == 0


def test_a_flipped_bit_in_a_pack(backups, first, flip):
    path = flip("find /var/backups/shiftmaster/restic/data -type f -printf '%s %p\\n' | sort -rn | cut -d' ' -f2")
    failed(backups, path.rsplit("/", 1)[1][:8], only="files")


def test_a_wrong_key(backups, first):
    backups.shell(
        "cp -p /etc/pgbackrest.conf /root/conf; cp -p /etc/shiftmaster-backup/restore.conf /root/restore.conf"
    )
    backups.shell("sed -i 's/^repo1-cipher-pass=.*/repo1-cipher-pass=wrong-wrong-wrong/' /etc/pgbackrest.conf "
                  "/etc/shiftmaster-backup/restore.conf")  # fmt: skip
    try:
        failed(backups, "key is wrong")
    finally:
        backups.shell(
            "cp -p /root/conf /etc/pgbackrest.conf; cp -p /root/restore.conf /etc/shiftmaster-backup/restore.conf"
        )


def test_no_free_space(backups, first):
    backups.shell("mount -t tmpfs -o size=20m tmpfs /var/backups/shiftmaster/scratch")
    try:
        failed(backups, "needs about")
    finally:
        backups.shell("umount /var/backups/shiftmaster/scratch")


def test_a_deploy_is_waited_for(backups, first):
    lock = "/var/www/shiftmaster/shared/state/lock.json"
    holder = {"owner": "somebody", "operation": "deploy", "run_id": "x", "expires": time.time() + 600}
    backups.shell(f"cat > {lock}", stdin=json.dumps(holder))
    try:
        failed(backups, "deploy by somebody runs for longer than 20 s", only="files")
        assert backups.run(only="files", within_deploy=True)["result"] == "succeeded"
        backups.shell(f"systemd-run --quiet --on-active=6 rm {lock}")
        assert backups.run(only="files")["result"] == "succeeded"
        assert "waiting for deploy by somebody" in backups.log()
    finally:
        backups.shell(f"rm -f {lock}")


@pytest.fixture
def ahead(backups):
    """The name of a run under a clock that is moved; its manifest is removed afterwards, also after a failure."""
    name = "20990101T000000Z-ahead0"
    backups.shell("apt-get -qy install --no-install-recommends faketime >/dev/null", timeout=300)
    # The event loop of systemd-run does not work under faketime; restic, which it starts, has never gone by it.
    wrapper = '#!/bin/sh\nunset LD_PRELOAD\nexec /root/systemd-run "$@"\n'
    backups.shell(
        "cp /usr/bin/systemd-run /root/systemd-run; cat > /root/wrapper; chmod 755 /root/wrapper", stdin=wrapper
    )
    backups.shell("mount --bind /root/wrapper /usr/bin/systemd-run")
    yield name
    backups.shell(f"umount /usr/bin/systemd-run; rm -f /var/backups/shiftmaster/manifests/{name}.json")


def test_a_clock_that_was_moved_removes_nothing(backups, first, ahead):
    """Forty days ahead everything is old; whether so much time has passed is unknown."""
    kept = backups.kept()
    backups.note_request(ahead, only="files")
    backups.shell(f"faketime '+40 days' shiftmaster-backup run {ahead}", timeout=600)
    manifest = backups.manifest(ahead)
    assert "no run is known of the" in backups.why(manifest) and "removed" not in manifest
    assert kept < backups.kept()
    # Set right again, it is known that it was wrong; nothing is removed until an operator has checked.
    later = backups.shell("date -u +%Y%m%dT%H%M%SZ-later0").strip()
    backups.note_request(later, only="files")
    backups.shell(f"shiftmaster-backup run {later}", timeout=600)
    manifest = backups.manifest(later)
    assert manifest["result"] == "warning" and "the clock is 40" in backups.why(manifest)
    (label,) = backups.kept() - kept - {manifest["parts"]["files"]["label"]}
    backups.shell(
        "restic -r /var/backups/shiftmaster/restic -p /etc/shiftmaster-backup/restic.password forget "
        f"{label} && rm /var/backups/shiftmaster/manifests/{ahead}.json"
    )
    backups.run(only="files")


def test_everything_is_healthy_again(backups, first):
    manifest = backups.run()
    assert manifest["result"] == "succeeded"
    assert set(backups.metric("shiftmaster_backup_failed").values()) == {0}
