"""Backups on another host, and the rollback when the one that they are of is gone."""

from __future__ import annotations

import subprocess
import time

import pytest
from support import AUTHORITIES, SCENARIO_HOME, wait_for

MEDIA = "/var/www/shiftmaster/shared/media"


@pytest.fixture(scope="module")
def saved(hosts):
    """Rows and a file of the host, saved and verified on the other one."""
    hosts.app.sql("CREATE TABLE IF NOT EXISTS precious (id serial PRIMARY KEY, text text)")
    hosts.app.sql("INSERT INTO precious (text) SELECT md5(g::text) FROM generate_series(1, 5000) AS g")
    hosts.app.sql("ALTER TABLE precious OWNER TO shiftmaster")
    hosts.app.shell(f"head -c 300000 /dev/urandom > {MEDIA}/plan.pdf && chown shiftmaster: {MEDIA}/plan.pdf")
    hosts.app.shell("echo sealed-before-the-fire >> /var/log/shiftmaster/audit.log; systemctl start shiftmaster-seal")
    return hosts.backup_server.backup(only="database,logical,files,configuration")


def test_everything_is_saved_on_the_other_host(hosts, saved):
    assert set(saved["parts"]) == {"database", "logical", "files", "configuration"}
    assert saved["parts"]["database"]["rows"]["shiftmaster.public.precious"] >= 5000
    listed = hosts.backup_server.shell(
        "restic -r /var/backups/shiftmaster/restic -p /etc/shiftmaster-backup/restic.password ls "
        + saved["parts"]["configuration"]["label"]
    )
    assert "pulled/configuration/recovery-trixie/etc/ssl/private/shiftmaster.key" in listed
    # The database's host can neither read nor remove what is kept.
    assert hosts.app.shell("ls -A /var/backups/shiftmaster | grep -v pre-migration", check=False).strip() == ""


@pytest.fixture(scope="module")
def authorities(hosts, saved, tmp_path_factory):
    """The keys of the authorities as they come back where this machine is lost: from the backup server, decrypted."""
    directory = tmp_path_factory.mktemp("authorities")
    password = directory / "password"
    password.write_text("of-the-vault\n")
    run = hosts.app.run("deploy.yml", "--tags", "backup", "--vault-password-file", str(password), timeout=1800)
    assert run.code == 0, run.output[-4000:]
    kept = "/etc/shiftmaster-backup/controller"
    assert hosts.backup_server.shell(f"grep -rl '^-----BEGIN.*PRIVATE KEY' {kept} || true") == ""
    subprocess.run(["docker", "cp", f"{hosts.backup_server.host}:{kept}/authorities", str(directory)], check=True)
    # As in the guide.
    decrypt = f"grep -rl ANSIBLE_VAULT . | xargs ansible-vault decrypt --vault-password-file {password}"
    subprocess.run(["sh", "-c", decrypt], cwd=directory / "authorities", check=True)
    keys = [path.relative_to(SCENARIO_HOME / "ca") for path in (SCENARIO_HOME / "ca").rglob("*.key")]
    assert keys and all(
        (directory / "authorities" / key).read_bytes() == (SCENARIO_HOME / "ca" / key).read_bytes() for key in keys
    )
    return directory / "authorities"


def test_the_keys_of_the_authorities_are_restored_with_only_the_vault_password(authorities):
    assert b"PRIVATE KEY" in (authorities / "site/ca.key").read_bytes()


def test_wal_is_received_as_it_is_written(hosts, saved):
    assert hosts.app.sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'shiftmaster_backup'") == "t"
    hosts.app.sql("INSERT INTO precious (text) VALUES ('now')")
    wait_for(lambda: ".partial" in hosts.backup_server.shell("ls /var/backups/shiftmaster/wal"), 30, "the segment")


def test_a_destroyed_host_is_recovered_from_backups_and_keys(hosts, saved, authorities, capsys):
    # After the backup, and much later than the last segment that was archived.
    hosts.app.sql("SELECT pg_switch_wal()")
    time.sleep(5)
    hosts.app.sql("INSERT INTO precious (text) SELECT 'late' FROM generate_series(1, 100)")
    rows = hosts.app.sql("SELECT count(*), md5(string_agg(text, ',' ORDER BY id)) FROM precious")
    everything = hosts.app.everything()
    # Asynchronous: what was acknowledged in the last seconds may be lost.
    time.sleep(2)
    hosts.app.replace()
    began = time.monotonic()
    run = hosts.app.run("playbooks/recover.yml", timeout=3600)
    assert run.code != 0 and run.prints("Nothing was changed", "-e confirm=recovery-trixie"), run.output[-3000:]
    run = hosts.app.run(
        "playbooks/recover.yml", *AUTHORITIES, timeout=5400, confirm="recovery-trixie", tls_ca_root=str(authorities)
    )
    assert run.code == 0, run.output[-8000:]
    with capsys.disabled():
        print(f"\n  recovered in {time.monotonic() - began:.0f} s")
    assert hosts.app.live_version(60) == "2.0.0"
    assert hosts.app.sql("SELECT count(*), md5(string_agg(text, ',' ORDER BY id)) FROM precious") == rows
    assert hosts.app.everything() == everything
    assert hosts.app.shell(f"stat -c %U {MEDIA}/plan.pdf").strip() == "shiftmaster"
    assert hosts.app.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/health/") == "200"
    # The sealed audit events go on where they ended.
    hosts.app.shell(
        "echo sealed-after-it >> /var/log/shiftmaster/audit.log; systemctl start shiftmaster-seal", check=False
    )
    assert "complete" in hosts.app.shell("shiftmasterctl verify")
    sealed = hosts.app.shell("cat /var/www/shiftmaster/shared/state/audit/*.jsonl")
    assert "sealed-before-the-fire" in sealed and "sealed-after-it" in sealed
    # Backups continue.
    assert hosts.backup_server.backup()["result"] == "succeeded"


@pytest.fixture(scope="module")
def outside(hosts, saved):
    """An account of SFTP alone on the host that no test destroys, and the options for it."""
    third = hosts.standby
    third.shell(
        "useradd --create-home --shell /bin/sh --password '*' copies; install -d -o copies -m 700 /home/copies/store; "
        "printf 'Match User copies\\nForceCommand internal-sftp\\n' > /etc/ssh/sshd_config.d/copies.conf; "
        "ssh-keygen -q -t ed25519 -N '' -f /root/copies; install -d -o copies -m 700 /home/copies/.ssh; "
        "install -o copies -m 600 /root/copies.pub /home/copies/.ssh/authorized_keys; systemctl restart ssh"
    )
    options = {
        "backup_offsite_repository": "sftp:copies@172.30.79.30:/home/copies/store",
        "vault_backup_offsite_password": "of-the-copy-outside-0123456789",
        "vault_backup_offsite_ssh_key": third.shell("cat /root/copies"),
        "backup_offsite_host_key": " ".join(third.shell("cat /etc/ssh/ssh_host_ed25519_key.pub").split()[:2]),
    }
    run = hosts.app.run("deploy.yml", "--tags", "backup", **options)
    assert run.code == 0, run.output[-4000:]
    return options


def test_a_destroyed_site_is_recovered_from_the_off_site_copy_and_keys(hosts, outside, capsys):
    """The host that keeps the backups is lost with the other."""
    manifest = hosts.backup_server.backup()
    assert all("restored and compared" in part["offsite"] for part in manifest["parts"].values())
    everything = hosts.app.everything()
    for host in (hosts.app, hosts.backup_server):
        host.replace()
    began = time.monotonic()
    run = hosts.app.run(
        "playbooks/recover.yml", *AUTHORITIES, timeout=5400, backups="offsite", confirm="recovery-trixie", **outside
    )
    assert run.code == 0, run.output[-8000:]
    with capsys.disabled():
        print(f"\n  recovered from outside in {time.monotonic() - began:.0f} s")
    assert hosts.app.live_version(60) == "2.0.0" and hosts.app.everything() == everything
    # Those from before are here again, and the new ones are copied off-site, too.
    listed = hosts.backup_server.shell("ls /var/backups/shiftmaster/manifests")
    assert manifest["run_id"] in listed
    manifest = hosts.backup_server.backup()
    assert all("restored and compared" in part["offsite"] for part in manifest["parts"].values())


def test_the_only_host_is_destroyed_and_recovered_from_an_older_off_site_copy(hosts, outside, alone, capsys):
    """One host that is everything, its own backups too; the last copy already has what went wrong."""
    alone.replace("deployed")
    options = outside | {"backup_offsite_repository": outside["backup_offsite_repository"] + "-alone"}
    run = alone.run("deploy.yml", *AUTHORITIES, timeout=3600, **options)
    assert run.code == 0, run.output[-8000:]
    alone.manage("seed_demo")
    alone.shell(f"head -c 300000 /dev/urandom > {MEDIA}/plan.pdf && chown shiftmaster: {MEDIA}/plan.pdf")
    good = alone.backup()
    assert all("restored and compared" in part["offsite"] for part in good["parts"].values())
    everything = alone.everything()
    alone.manage("flush", "--no-input")
    alone.shell(f"rm {MEDIA}/plan.pdf")
    bad = alone.backup()
    assert alone.everything() != everything

    alone.replace()
    recover = ("playbooks/recover.yml", *AUTHORITIES)
    run = alone.run(*recover, timeout=3600, confirm="recovery-trixie", **options)
    assert run.code != 0 and run.prints("Nothing was changed", "-e backups=offsite"), run.output[-3000:]
    began = time.monotonic()
    run = alone.run(
        *recover, timeout=5400, backups="offsite", fetch=good["run_id"], confirm="recovery-trixie", **options
    )
    assert run.code == 0, run.output[-8000:]
    with capsys.disabled():
        print(f"\n  one host recovered from outside in {time.monotonic() - began:.0f} s")
    assert alone.live_version(60) == "2.0.0" and alone.everything() == everything
    listed = alone.shell("ls /var/backups/shiftmaster/manifests")
    assert good["run_id"] in listed and bad["run_id"] not in listed
    manifest = alone.backup()
    assert all("restored and compared" in part["offsite"] for part in manifest["parts"].values())
