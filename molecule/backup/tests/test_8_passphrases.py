"""The passphrases change, and no backup is lost. The last of the tests: from here on the host has other ones."""

from __future__ import annotations

import pytest

RESTORE = "playbooks/restore.yml"
DEPLOY = ("deploy.yml", "--tags", "database,backup")
CHANGED = {
    "backup_stanza": "shiftmaster-2",
    "vault_backup_cipher_passphrase": "n" * 24,
    "vault_backup_restic_password": "m" * 24,
}
REPOSITORY = "/var/backups/shiftmaster/pgbackrest"
RESTIC = "restic -r /var/backups/shiftmaster/restic --no-lock --no-cache"
OPENS = "RESTIC_PASSWORD={} " + RESTIC + " cat config >/dev/null 2>&1; echo $?"


@pytest.fixture(scope="module")
def before(backups, first):
    """A backup by the passphrase of before, and a row and a time after it."""
    manifest = backups.run(check=None, only="database,files", kind="full")
    assert {part["result"] for part in manifest["parts"].values()} <= {"succeeded", "warning"}, manifest
    backups.sql("CREATE TABLE IF NOT EXISTS changing (id int)")
    backups.sql("TRUNCATE changing; INSERT INTO changing VALUES (1)")
    return manifest


@pytest.fixture(scope="module")
def secrets(backups):
    return {
        "vault_backup_cipher_passphrase_previous": {
            "shiftmaster": backups.shell("sed -n 's/^repo1-cipher-pass=//p' /etc/pgbackrest.conf").strip()
        },
        "vault_backup_restic_password_previous": [backups.shell("cat /etc/shiftmaster-backup/restic.password").strip()],
    }


@pytest.mark.parametrize(
    "names", [["vault_backup_cipher_passphrase"], ["vault_backup_cipher_passphrase", "backup_stanza"]]
)
def test_a_change_that_would_lose_backups_changes_nothing(operations, backups, secrets, before, names):
    state = "sha256sum /etc/pgbackrest.conf /etc/shiftmaster-backup/*; ls " + REPOSITORY + "/backup"
    seen = backups.shell(state), backups.sql("SHOW archive_command")
    run = operations.run(*DEPLOY, **{name: CHANGED[name] for name in names})
    assert run.code != 0 and run.changed == 0, run.output[-3000:]
    assert run.prints("vault_backup_cipher_passphrase_previous"), run.output[-3000:]
    assert (backups.shell(state), backups.sql("SHOW archive_command")) == seen


def test_the_new_ones_open_the_repositories_and_the_old_ones_no_longer(operations, backups, secrets, before):
    (old,) = secrets["vault_backup_restic_password_previous"]
    snapshots = backups.shell("ls /var/backups/shiftmaster/restic/snapshots")
    run = operations.run(*DEPLOY, **CHANGED, **secrets)
    assert run.code == 0, run.output[-4000:]
    run = operations.run(*DEPLOY, **CHANGED, **secrets)
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]
    assert backups.shell(OPENS.format(CHANGED["vault_backup_restic_password"])).strip() == "0"
    assert backups.shell(OPENS.format(old)).strip() != "0"
    assert backups.shell("ls /var/backups/shiftmaster/restic/keys").count("\n") == 1
    assert backups.shell("ls /var/backups/shiftmaster/restic/snapshots") == snapshots
    assert sorted(backups.shell(f"ls {REPOSITORY}/backup").split()) == ["shiftmaster", "shiftmaster-2"]


def test_each_time_is_restored_also_between_the_two(operations, backups, secrets, before):
    """The last backup of the earlier stanza, and WAL that is in today's archive alone; in place, too."""
    backups.sql("INSERT INTO changing VALUES (2); SELECT pg_switch_wal()")
    timestamp = backups.sql(
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')||'+00:00'"
    )
    backups.sql("INSERT INTO changing VALUES (3)")
    options = {**CHANGED, **secrets, "target": timestamp}
    run = operations.run(RESTORE, into="scratch", **options)
    assert run.code == 0 and run.prints("rows"), run.output[-4000:]
    run = operations.run(RESTORE, confirm=operations.host, timeout=3000, **options)
    assert run.code == 0, run.output[-6000:]
    assert backups.sql("SELECT string_agg(id::text, ',' ORDER BY id) FROM changing") == "1,2"


def test_new_backups_need_the_new_ones_and_older_ones_are_still_restored(operations, backups, secrets, before):
    manifest = backups.run(only="database,files", kind="full")
    assert backups.shell(f"ls -d {REPOSITORY}/backup/shiftmaster-2/{manifest['parts']['database']['label']}")
    for target in (before["run_id"], manifest["run_id"], "latest"):
        run = operations.run(RESTORE, into="scratch", target=target, **CHANGED, **secrets)
        assert run.code == 0 and run.prints("rows"), run.output[-4000:]
    run = operations.run(RESTORE, parts="files", into="/root/of-before", target=before["run_id"], **CHANGED, **secrets)
    assert run.code == 0, run.output[-4000:]
    backups.shell("rm -r /root/of-before")


def test_the_stanza_of_before_goes_with_its_last_days(operations, backups, secrets, before):
    """Today's has a verified full backup, so what is older than the kept days is of no use any more."""
    with backups.options(keep_days=0):
        manifest = backups.run(check=None, only="database", kind="full")
    assert "shiftmaster" in manifest.get("removed", []), manifest
    for kind in ("archive", "backup"):
        assert backups.shell(f"ls {REPOSITORY}/{kind}").split() == ["shiftmaster-2"]
    run = operations.run(*DEPLOY, **CHANGED)
    assert run.code == 0, run.output[-4000:]
    assert "repo1-cipher-pass" in backups.shell("cat /etc/pgbackrest.conf")
    assert backups.shell("grep -c cipher-pass /etc/pgbackrest.conf").strip() == "1"
    assert backups.run(only="database,files")["result"] == "succeeded"
