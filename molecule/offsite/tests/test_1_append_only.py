"""The off-site host accepts additions only: an attacker on the backup server deletes and replaces nothing there."""

from __future__ import annotations

import time

REPOSITORY = "/srv/shiftmaster-offsite/shiftmaster"
URL = "https://172.30.83.20:8000/shiftmaster"
PRUNE = "playbooks/prune_offsite.yml"
# The backup server's own settings, as root reads them there.
SETTINGS = (
    'set -a; eval $(python3 -c \'import json; print("RESTIC_REPOSITORY=" + json.load(open('
    '"/etc/shiftmaster-backup/offsite.json"))["RESTIC_REPOSITORY"])\'); '
    "RESTIC_PASSWORD_FILE=/etc/shiftmaster-backup/offsite.password; set +a; "
    'restic() { command restic --cacert /etc/ssl/shiftmaster/ca.crt --no-cache "$@"; }; '
    "login=$(echo $RESTIC_REPOSITORY | sed 's#.*://##; s#@.*##'); "
    "request() { curl -s --cacert /etc/ssl/shiftmaster/ca.crt -o /dev/null -w '%{http_code} ' -u $login \"$@\"; }; "
)
FILES = f"cd {REPOSITORY} && find config data index keys snapshots -type f -exec sha256sum {{}} + | sort -k2"


def test_a_run_is_copied_and_a_second_deploy_changes_nothing(operations, backups, store, first):
    manifest = backups.run()
    assert all("restored and compared" in part["offsite"] for part in manifest["parts"].values())
    assert store.shell(f"ls {REPOSITORY}").split() == ["config", "data", "index", "keys", "locks", "snapshots"]
    run = operations.run("deploy.yml", "--tags", "backup,firewall")
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]


def test_the_server_is_confined_and_open_to_the_backup_server_alone(store):
    found = store.shell("systemd-analyze security --no-pager restic-rest-server.service | tail -n 1")
    assert float(found.split(":")[1].split()[0]) <= 2.5, found
    assert "172.30.83.10" in store.shell("nft list ruleset | grep 8000")
    code = "curl -sk -o /dev/null -w '%{http_code}' https://localhost:8000"
    assert store.shell(f"{code}/shiftmaster/config") == "401"
    assert store.shell("stat -c '%a %U' /etc/restic-rest-server/users.htpasswd /srv/shiftmaster-offsite").split() == [
        "640", "root", "700", "restic-rest-server",
    ]  # fmt: skip


def test_the_backup_server_has_no_access_to_the_off_site_host(backups, store):
    assert "offsite-store" not in backups.shell("cat /etc/shiftmaster-backup/options.json")
    assert store.shell("test ! -e /usr/local/sbin/shiftmaster-backup-read && echo none").strip() == "none"
    assert store.shell("cat /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys 2>/dev/null; true") == ""


def test_root_of_the_backup_server_deletes_and_replaces_nothing(backups, store):
    """With its password, its login and its network: restic's own commands, and each request of the protocol."""
    before = store.shell(FILES)
    pack = store.shell(f"cd {REPOSITORY}/data && find . -type f | head -n 1 | xargs basename").strip()
    key = store.shell(f"ls {REPOSITORY}/keys").strip()
    snapshot = store.shell(f"ls {REPOSITORY}/snapshots | head -n 1").strip()
    index = store.shell(f"ls {REPOSITORY}/index | head -n 1").strip()
    backups.shell(
        SETTINGS + "restic forget --keep-last 1 --prune; "
        "restic forget --unsafe-allow-remove-all --tag '' --keep-last 0; "
        "restic prune --max-unused 0; restic repair index; restic repair snapshots --forget; restic key remove " + key
        + "; true",
        timeout=600,
    )  # fmt: skip
    codes = backups.shell(
        SETTINGS + f"for path in data/{pack} keys/{key} snapshots/{snapshot} index/{index} config; do "
        f"request -X DELETE {URL}/$path; "
        f"request --data-binary x {URL}/$path; "
        f"request -X PUT --data-binary x {URL}/$path; done; "
        f"request -X DELETE {URL}/; request -X POST '{URL}/?create=true'; request -X DELETE {URL}/data/; "
        f"request --path-as-is -X POST '{URL}/../other/?create=true'; "
        f"request -X DELETE --path-as-is {URL}/data/../config"
    ).split()
    assert {"403", "405"} >= set(codes[:15]), codes
    assert store.shell("ls /srv/shiftmaster-offsite").split() == ["shiftmaster"]
    gone = set(before.splitlines()) - set(store.shell(FILES).splitlines())
    assert gone == set()


def test_a_snapshot_that_restic_cannot_read_is_quarantined_and_the_copy_is_restored(operations, backups, store):
    """An attacker cannot replace files, but can add some at which restic itself stops: a key, a snapshot, an index."""
    backups.run()
    count = len(store.shell(f"ls {REPOSITORY}/snapshots").split())
    time.sleep(2)
    before = store.shell("date -u +%Y%m%d%H%M%SZ").strip()
    time.sleep(2)
    sent = backups.shell(
        SETTINGS + "for kind in keys snapshots index locks data; do printf xx$kind > /root/x; "
        f"request --data-binary @/root/x {URL}/$kind/$(sha256sum < /root/x | cut -c-64); done"
    ).split()
    assert sent == ["200"] * 5
    assert backups.run(check=False, only="files")["parts"]["files"]["result"] == "succeeded"
    run = operations.run(PRUNE)
    assert run.code == 2 and run.prints("failed, and nothing was removed", "received_after"), run.output[-3000:]
    assert store.shell("systemctl is-active restic-rest-server").strip() == "active"
    run = operations.run(PRUNE, received_after=before)
    assert run.code == 0, run.output[-3000:]
    assert len(store.shell(f"ls {REPOSITORY}/snapshots").split()) == count
    assert len(store.shell(f"find {REPOSITORY}.after-* -type f").split()) >= 4
    manifest = backups.run()
    assert all("restored and compared" in part["offsite"] for part in manifest["parts"].values())


def test_only_the_off_site_host_prunes_and_by_the_time_of_arrival(operations, backups, store):
    """The copy's newest snapshots claim to be of the year 2099: restic would let all the others go."""
    backups.shell(
        SETTINGS + "restic backup /etc/hostname --time '2099-01-01 00:00:00' --host offsite-trixie --tag files"
    )
    run = operations.run(PRUNE)
    assert (run.code, run.changed) == (0, 0), run.output[-3000:]
    old = store.shell(f"ls -tr {REPOSITORY}/snapshots").split()[:2]
    for name in old:
        store.shell(f"touch -d '400 days ago' {REPOSITORY}/snapshots/{name}")
    options = {"offsite_keep_months": 0, "offsite_keep_years": 0}
    for _ in range(8):
        backups.shell(SETTINGS + "for part in files configuration database; do "
                      "restic backup /etc/hostname --host offsite-trixie --tag $part; done")  # fmt: skip
    run = operations.run(PRUNE, "--check", **options)
    assert run.code == 0 and run.changed == 1 and run.prints("2 of"), run.output[-3000:]
    # Packs that do not hold what an index names could be those of an attacker, for which prune removes good ones.
    pack = store.shell(f"find {REPOSITORY}/data -type f -size +4k | head -n 1").strip()
    store.shell(f"cp -p {pack} /root/pack; chmod u+w {pack}; printf XXXX | dd of={pack} bs=1 seek=1000 conv=notrunc")
    run = operations.run(PRUNE, **options)
    assert run.code == 2 and run.prints("restic check failed, and nothing was removed"), run.output[-3000:]
    assert set(old) <= set(store.shell(f"ls {REPOSITORY}/snapshots").split())
    store.shell(f"cp -p /root/pack {pack}")
    run = operations.run(PRUNE, **options)
    assert run.code == 0 and run.prints("2 of"), run.output[-3000:]
    assert not set(old) & set(store.shell(f"ls {REPOSITORY}/snapshots").split())
    assert "no errors were found" in backups.shell(SETTINGS + "restic check 2>&1")
    manifest = backups.run(only="files")
    assert "restored and compared" in manifest["parts"]["files"]["offsite"]


def test_a_changed_password_ends_the_earlier_one_at_the_off_site_host_alone(operations, backups, store):
    old, new = (
        backups.shell("cat /etc/shiftmaster-backup/offsite.password").strip(),
        "of-the-copy-from-now-on-9876543210",
    )
    opens = (
        SETTINGS + "unset RESTIC_PASSWORD_FILE; RESTIC_PASSWORD=$password restic cat config >/dev/null 2>&1; echo $?"
    )
    for ones in ((old, new), (new, old)):
        options = {"vault_backup_offsite_password": ones[1], "vault_backup_offsite_password_previous": [ones[0]]}
        run = operations.run("deploy.yml", "--tags", "backup", **options)
        assert run.code == 0, run.output[-3000:]
        manifest = backups.run(only="files")
        assert "restored and compared" in manifest["parts"]["files"]["offsite"]
        # The backup server adds a password and removes none.
        assert len(store.shell(f"ls {REPOSITORY}/keys").split()) == 2
        assert [backups.shell(f"password={one}; {opens}").strip() for one in ones] == ["0", "0"]
        run = operations.run(PRUNE, "--check", **options)
        assert run.code == 0 and run.changed == 1 and len(store.shell(f"ls {REPOSITORY}/keys").split()) == 2
        run = operations.run(PRUNE, **options)
        assert run.code == 0 and run.changed == 1, run.output[-3000:]
        assert [backups.shell(f"password={one}; {opens}").strip() == "0" for one in ones] == [False, True]
        run = operations.run(PRUNE, **options)
        assert (run.code, run.changed) == (0, 0), run.output[-3000:]
    run = operations.run("deploy.yml", "--tags", "backup")
    assert run.code == 0, run.output[-3000:]


def test_a_host_without_its_backups_fetches_them_from_the_off_site_host(operations, backups, store):
    last = backups.run()
    directory, names = "/var/backups/shiftmaster", "pgbackrest restic logical manifests"
    # Segments wait meanwhile: archived into the other directories they would be lost, and missing in later tests.
    for statement in ("ALTER SYSTEM SET archive_command = 'false'", "SELECT pg_reload_conf()"):
        backups.sql(statement)
    backups.shell(f"mkdir /root/lost && cd {directory} && mv {names} /root/lost/")
    assert operations.run("deploy.yml", "--tags", "backup").code == 0
    fetched = backups.shell("shiftmaster-backup fetch", timeout=1200)
    assert fetched.strip() == "fetched: pgbackrest, logical, manifests, files and configuration"
    assert backups.manifest(last["run_id"])["result"] == "succeeded"
    backups.shell(
        f"cd {directory} && rm -rf {names} && mv /root/lost/* . && rmdir /root/lost; "
        "rm -rf /var/lib/shiftmaster-backup/offsite"
    )
    for statement in ("ALTER SYSTEM RESET archive_command", "SELECT pg_reload_conf()"):
        backups.sql(statement)


def test_a_missing_off_site_host_is_reported(operations, tmp_path):
    run = operations.run(PRUNE, backup_offsite_hosts=[])
    assert run.code == 2 and run.prints("No host is in group offsite"), run.output[-2000:]
