"""The off-site copy, by SFTP: copied, read back, fetched to a host that has lost its backups."""

from __future__ import annotations

import pytest

DIRECTORY = "/var/backups/shiftmaster"
PASSWORD = "of-the-copy-outside-0123456789"
ROLE = ("--tags", "backup")


@pytest.fixture(scope="module")
def outside(operations, backups, first):
    """An account of SFTP alone, and the role's options that lead there; the host is set up with them."""
    backups.shell(
        "apt-get -qy install --no-install-recommends openssh-server >/dev/null; "
        "useradd --create-home --shell /bin/sh --password '*' copies; install -d -o copies -m 700 /home/copies/store; "
        "printf 'Match User copies\\nForceCommand internal-sftp\\n' > /etc/ssh/sshd_config.d/copies.conf; "
        "ssh-keygen -q -t ed25519 -N '' -f /root/copies; install -d -o copies -m 700 /home/copies/.ssh; "
        "install -o copies -m 600 /root/copies.pub /home/copies/.ssh/authorized_keys; systemctl restart ssh",
        timeout=600,
    )
    options = {
        "backup_offsite_repository": "sftp:copies@localhost:/home/copies/store",
        "vault_backup_offsite_password": PASSWORD,
        "vault_backup_offsite_ssh_key": backups.shell("cat /root/copies"),
        "backup_offsite_host_key": " ".join(backups.shell("cat /etc/ssh/ssh_host_ed25519_key.pub").split()[:2]),
    }
    run = operations.run("deploy.yml", *ROLE, **options)
    assert run.code == 0, run.output[-4000:]
    run = operations.run("deploy.yml", *ROLE, **options)
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]
    return options


def test_an_invalid_store_is_rejected(operations, first):
    for repository, sentence in (
        ("/srv/usb", "backup_offsite_repository is none of rest:https://host:8000/name/"),
        ("sftp:copies@localhost:/x", "an sftp repository needs backup_offsite_ssh_key"),
    ):
        run = operations.run("deploy.yml", *ROLE, backup_offsite_repository=repository)
        assert run.code == 2 and run.prints("Nothing was changed. What is wrong:", sentence), run.output[-3000:]


def test_a_run_is_copied_off_site_and_read_there(backups, outside):
    manifest = backups.run()
    assert all("restored and compared" in part["offsite"] for part in manifest["parts"].values())
    assert backups.metric("shiftmaster_backup_offsite_last_success_timestamp_seconds")[""]
    assert backups.shell("ls /home/copies/store").split() == ["config", "data", "index", "keys", "locks", "snapshots"]


def test_an_unreachable_store_fails_the_run_and_no_local_backup(backups, outside):
    before = backups.metric("shiftmaster_backup_offsite_last_success_timestamp_seconds")
    backups.shell("systemctl stop ssh.socket ssh; true")
    try:
        manifest = backups.run(check=False, only="files")
    finally:
        backups.shell("systemctl start ssh")
    assert manifest["parts"]["files"]["result"] == "succeeded" and manifest["result"] == "failed"
    assert "not copied off-site" in backups.why(manifest) and "FAILED" in backups.log()
    assert backups.metric("shiftmaster_backup_failed")["run"] == 1
    assert backups.metric("shiftmaster_backup_offsite_last_success_timestamp_seconds") == before
    backups.run(only="files")


def test_a_flipped_bit_off_site_is_found(backups, outside):
    path = backups.shell("find /home/copies/store/data -type f -size +100k | head -n 1").strip()
    backups.shell(f"cp -p {path} /root/kept")
    try:
        backups.shell(
            f"python3 -c \"f = open('{path}', 'r+b'); f.seek(5000); b = f.read(1); "
            'f.seek(5000); f.write(bytes([b[0] ^ 1]))"'
        )
        found = backups.shell(
            "RESTIC_PASSWORD_FILE=/etc/shiftmaster-backup/offsite.password "
            "restic -r /home/copies/store check --read-data 2>&1; echo $?"
        )
        assert found.strip().endswith("1")
    finally:
        backups.shell(f"cp -p /root/kept {path}")


def test_no_secret_of_the_store_is_readable_by_others(backups, outside):
    for name in ("offsite.password", "offsite.key", "offsite.json"):
        assert backups.shell(f"stat -c '%a %U' /etc/shiftmaster-backup/{name}").strip() == "600 root"
    assert PASSWORD not in backups.log()


def test_a_host_without_its_backups_fetches_them(operations, backups, outside):
    path = "/var/www/shiftmaster/shared/media/brought.txt"
    backups.shell(f"echo outside > {path} && chown shiftmaster: {path}")
    last = backups.run()
    refused = backups.shell("shiftmaster-backup fetch 2>&1; echo $?").split("\n")
    assert "backups here already" in refused[0] and refused[1] == "1"
    # Segments archived from here on are lost.
    backups.sql("CREATE TABLE meanwhile AS SELECT 1; DROP TABLE meanwhile; SELECT pg_switch_wal(); SELECT pg_sleep(5)")
    backups.shell(f"mkdir /root/lost && cd {DIRECTORY} && mv pgbackrest restic logical manifests /root/lost/")
    run = operations.run("deploy.yml", *ROLE, **outside)
    assert run.code == 0, run.output[-4000:]
    message = backups.shell("shiftmaster-backup fetch", timeout=1200)
    assert message.strip() == "fetched: pgbackrest, logical, manifests, files and configuration"
    found = {one["run_id"]: one["result"] for one in backups.manifests()}
    assert found[last["run_id"]] == "succeeded"
    run = operations.run("playbooks/restore.yml", into="scratch", target=last["run_id"], timeout=1800)
    assert run.code == 0 and run.prints("pg_amcheck", "rows"), run.output[-3000:]
    # Files, too: a copied snapshot has another id than in the manifest.
    backups.shell(f"rm {path}")
    run = operations.run("playbooks/restore.yml", parts="files", target=last["run_id"], confirm=operations.host)
    assert run.code == 0 and backups.shell(f"cat {path}") == "outside\n", run.output[-3000:]
    # A second time nothing is done.
    assert backups.shell("shiftmaster-backup fetch") == ""
    # Segments archived between copy and loss are lost, and each run warns of it; the new backup is a full one.
    manifest = backups.run(check=None)
    assert (manifest["result"], {one["code"] for one in manifest["problems"]}) == ("warning", {"wal_missing"})
    assert manifest["parts"]["database"]["kind"] == "full"
    backups.shell("rm -r /root/lost")


def store(backups, *dates: str) -> None:
    """Start a stub for a store of S3 (moto) with a certificate of these dates; it keeps what it has in memory."""
    backups.shell(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout /root/store.key -out /etc/ssl/store.crt -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost {' '.join(dates)} 2>/dev/null; systemctl stop store 2>/dev/null; "
        "systemctl reset-failed store 2>/dev/null; "
        "systemd-run --quiet --unit=store python3 -m moto.server -H 127.0.0.1 -p 5005 -c /etc/ssl/store.crt "
        "-k /root/store.key; until curl -sk https://localhost:5005/ -o /dev/null; do sleep 1; done",
        timeout=120,
    )


def test_a_store_of_s3(operations, backups, outside):
    """The last one: the host has another store after it."""
    needed = "python3-moto python3-flask python3-flask-cors"
    backups.shell(f"apt-get -qy install --no-install-recommends {needed} >/dev/null", timeout=900)
    store(backups, "-days 30")
    backups.shell("curl -sSk -X PUT https://localhost:5005/shiftmaster")
    options = {
        "backup_offsite_repository": "s3:https://localhost:5005/shiftmaster",
        "backup_offsite_ca_file": "/etc/ssl/store.crt",
        "vault_backup_offsite_password": PASSWORD,
        "vault_backup_offsite_access_key": "key-of-the-store",
        "vault_backup_offsite_secret_key": "secret-of-the-store",
    }
    try:
        run = operations.run("deploy.yml", *ROLE, **options)
        assert run.code == 0, run.output[-4000:]
        manifest = backups.run(only="files")
        assert "restored and compared" in manifest["parts"]["files"]["offsite"]
        assert "secret-of-the-store" not in backups.log()
        # Its certificate runs out: nothing is sent any more, and what is here is good.
        store(backups, "-not_before 20250101000000Z -not_after 20250601000000Z")
        kept = backups.kept()
        manifest = backups.run(check=False, only="files")
        assert manifest["parts"]["files"]["result"] == "succeeded" and kept < backups.kept()
        assert "not copied off-site" in backups.why(manifest) and "expired" in backups.why(manifest), manifest
        assert backups.metric("shiftmaster_backup_failed")["run"] == 1
    finally:
        backups.shell("systemctl stop store")
