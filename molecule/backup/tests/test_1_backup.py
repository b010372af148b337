"""What is saved is proven, and what goes wrong is FAILED: in the manifest, in the log and in the metrics."""

from __future__ import annotations

import json
import time

import pytest


def test_everything_is_saved_and_proven(backups, first):
    assert set(first["parts"]) == {"database", "logical", "files", "configuration"}
    database = first["parts"]["database"]
    assert database["kind"] == "full" and database["rows"]["shiftmaster.public.django_migrations"] > 5
    assert {"verify", "restore_test"} <= {one["how"] for one in database["verified"]}
    assert first["release"]["version"] == "2.0.0" and first["release"]["migrations"] > 5
    for kind in ("database", "files", "config"):
        assert 0 < time.time() - backups.metric("shiftmaster_backup_last_success_timestamp_seconds")[kind] < 86400
    assert backups.metric("shiftmaster_restore_test_last_success_timestamp_seconds")[""]
    assert "Database: SUCCESS (full" in backups.shell("cat /var/log/shiftmaster/backup.log")


def test_the_next_one_is_incremental_and_small(backups, first):
    manifest = backups.run(only="database")
    assert manifest["parts"]["database"]["kind"] == "incr"
    assert manifest["parts"]["database"]["added_bytes"] < first["parts"]["database"]["added_bytes"] / 2


def test_nothing_of_a_proof_is_left(backups, first):
    assert backups.shell("ls /var/backups/shiftmaster/scratch; pgrep -f shiftmaster/scratch", check=False) == ""


def test_the_configuration_holds_the_key_of_the_certificate(backups, first):
    listed = backups.shell(
        "restic -r /var/backups/shiftmaster/restic -p /etc/shiftmaster-backup/restic.password ls "
        + first["parts"]["configuration"]["label"]
    )
    for path in ("/etc/ssl/private/shiftmaster.key", "/etc/nginx/sites-available/shiftmaster", "/etc/systemd/system"):
        assert path in listed


def test_no_secret_is_where_others_read(backups, operations, first):
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


def failed(backups, *words: str, only: str = "database", **request) -> dict:
    """A run that must fail, say why, and leave the metrics' times of the last good one alone."""
    before = backups.metric("shiftmaster_backup_last_success_timestamp_seconds")
    manifest = backups.run(check=False, only=only, **request)
    text = (backups.why(manifest) if manifest else "") + backups.log()
    for word in words:
        assert word in text, text
    assert "FAILED" in backups.log()
    after = backups.metric("shiftmaster_backup_last_success_timestamp_seconds")
    assert after == before
    return manifest


def test_a_wrong_password(backups, first):
    backups.shell("cd /etc/shiftmaster-backup && cp -p pgpass pgpass.kept && echo '*:*:*:*:wrong' > pgpass")
    try:
        failed(backups, "password authentication failed")
        assert backups.metric("shiftmaster_backup_failed")["database"] == 1
    finally:
        backups.shell("cd /etc/shiftmaster-backup && mv pgpass.kept pgpass")


def test_a_missing_database(backups, first):
    options = "/etc/shiftmaster-backup/options.json"
    backups.shell(f'cp -p {options} {options}.kept && sed -i \'s/"shiftmaster"$/"nowhere"/\' {options}')
    try:
        failed(backups, 'database "nowhere" does not exist')
    finally:
        backups.shell(f"mv {options}.kept {options}")


def test_a_dump_that_is_killed(backups, first):
    # Held at a table lock, so that it is there to be killed.
    backups.shell(
        "systemd-run --quiet --unit=holder -p User=postgres psql -d shiftmaster -c "
        "'BEGIN; LOCK TABLE django_migrations; SELECT pg_sleep(60)'"
    )
    backups.shell("systemd-run --quiet --unit=killer sh -c 'until pkill -KILL -x pg_dump; do sleep 0.2; done'")
    try:
        failed(backups, "pg_dump of shiftmaster was killed by signal 9", only="logical")
        assert ".part" not in backups.shell("ls /var/backups/shiftmaster/logical")
    finally:
        backups.shell("systemctl stop holder killer; true", check=False)


def test_pgbackrest_is_killed(backups, first):
    backups.shell(
        "systemd-run --quiet --unit=killer sh -c 'until pkill -KILL -f \"pgbackrest.*backup$\"; do sleep 0.1; done'"
    )
    try:
        failed(backups, "was killed by signal 9", kind="full")
    finally:
        backups.shell("systemctl stop killer; true", check=False)
    assert backups.run(only="database")["parts"]["database"]["result"] == "succeeded"


def test_the_whole_run_is_killed(backups, first):
    """By a signal that it cannot see: the unit behind it tells, and the next run works."""
    backups.operations.hold("backup_proof")
    backups.shell("systemctl start --no-block shiftmaster-backup.service")
    try:
        deadline = time.monotonic() + 600
        while not backups.shell("cat /run/shiftmaster/points/backup_proof.reached 2>/dev/null", check=False):
            assert time.monotonic() < deadline
            time.sleep(1)
        backups.shell("systemctl kill --kill-whom=main --signal=KILL shiftmaster-backup.service")
        backups.shell(
            "sleep 3; while systemctl is-active shiftmaster-backup-killed | grep -q activating; do sleep 1; done"
        )
    finally:
        backups.operations.let_go()
    last = backups.manifests()[-1]
    assert last["result"] == "failed" and "was killed" in json.dumps(last["problems"])
    assert "FAILED" in backups.log()
    assert backups.shell("pgrep -f shiftmaster/scratch", check=False) == ""
    backups.run(only="database")


def test_a_second_run_waits_and_then_says_who_holds_it(backups, first):
    backups.operations.hold("backup_proof")
    backups.shell("systemctl start --no-block shiftmaster-backup.service")
    try:
        deadline = time.monotonic() + 600
        while not backups.shell("cat /run/shiftmaster/points/backup_proof.reached 2>/dev/null", check=False):
            assert time.monotonic() < deadline
            time.sleep(1)
        assert backups.run(check=False, only="files") == {}
        assert "by schedule (process" in backups.log() and "holds the lock of the backups for longer" in backups.log()
    finally:
        backups.operations.let_go()
    backups.shell("while systemctl is-active shiftmaster-backup | grep -q activating; do sleep 1; done", timeout=600)
    assert backups.manifests()[-1]["result"] == "succeeded"


def test_a_missing_source_path(backups, first):
    options = "/etc/shiftmaster-backup/options.json"
    backups.shell(f'cp -p {options} {options}.kept && sed -i \'s#"/var/www/shiftmaster"#"/var/www/gone"#\' {options}')
    try:
        failed(backups, "what shall be saved is not there: /var/www/gone", only="files")
    finally:
        backups.shell(f"mv {options}.kept {options}")


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
    """Flip a bit in the middle of the first file that a command names; the file is put back behind the test."""
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


@pytest.mark.parametrize(
    "find",
    [
        f"ls -t {PGBACKREST}/backup/shiftmaster/*F/bundle/1",
        f"ls -t {PGBACKREST}/backup/shiftmaster/*F/backup.manifest",
        f"find {PGBACKREST}/archive -name '0000*-*.zst' | sort -r",
    ],
    ids=["bundle", "manifest", "wal"],
)
def test_a_flipped_bit_in_the_repository_of_the_database(backups, first, flip, find):
    flip(find)
    failed(backups, "database failed", kind="incr")


def test_a_missing_segment(backups, first):
    """Behind an older backup: today's is good, and the run says each day what can no more be restored."""
    path = backups.shell(f"find {PGBACKREST}/archive -name '0000*-*.zst' | sort -r | sed -n 2p").strip()
    backups.run(only="database")
    backups.shell(f"mv {path} /root/segment")
    try:
        manifest = backups.run(check=False, only="database", kind="full")
        assert manifest["parts"]["database"]["result"] == "succeeded"
        assert path.rsplit("/", 1)[1][:24] in json.dumps(manifest["problems"])
        assert backups.metric("shiftmaster_backup_wal_gaps")[""] == 1
        assert "FAILED" in backups.log()
    finally:
        backups.shell(f"mv /root/segment {path}")
    backups.run(only="database")
    assert backups.metric("shiftmaster_backup_wal_gaps")[""] == 0


def test_a_flipped_bit_in_a_pack(backups, first, flip):
    flip("find /var/backups/shiftmaster/restic/data -type f -printf '%s %p\\n' | sort -rn | cut -d' ' -f2")
    failed(backups, "restic", only="files")


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


def test_no_room(backups, first):
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
    finally:
        backups.shell(f"rm {lock}")


def test_all_is_well_again(backups, first):
    manifest = backups.run()
    assert manifest["result"] == "succeeded"
    assert set(backups.metric("shiftmaster_backup_failed").values()) == {0}
