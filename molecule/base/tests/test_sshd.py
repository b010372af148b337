"""sshd as role base configures it, tried by real logins, and settings that lock this machine out."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

INVENTORY = Path(__file__).parents[1] / "inventory"
DROP_IN = "/etc/ssh/sshd_config.d/00-shiftmaster.conf"
KEY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "id"
PASSWORD = "Correct-horse-7-battery"


@pytest.fixture
def harden(host, over_ssh):
    """Runs role base over ssh; afterwards sshd is as before."""

    def run(*arguments, **variables):
        # Longer than by default: what is slow here is the machine that runs the tests.
        return over_ssh("sshd.yml", INVENTORY, *arguments, **{"base_hardening_sshd_confirm_seconds": 300, **variables})

    yield run
    host.run(f"rm -f {DROP_IN} /etc/ssh/sshd_config.d/00-a.conf; systemctl reload ssh")


@pytest.fixture
def login(host, address, tmp_path):
    """Tries to log in as root, by the key or by a password; shows whether it worked."""
    host.check_output(f"echo 'root:{PASSWORD}' | chpasswd")
    askpass = tmp_path / "askpass"
    askpass.write_text(f"#!/bin/sh\necho '{PASSWORD}'\n")
    askpass.chmod(0o700)

    def by(method):
        options = (
            *("UserKnownHostsFile=/dev/null", "StrictHostKeyChecking=no", "ControlPath=none", "IdentitiesOnly=yes"),
            *(f"PreferredAuthentications={method}", "NumberOfPasswordPrompts=1"),
            # While sshd reloads, nothing listens on its port.
            "ConnectionAttempts=10",
        )
        done = subprocess.run(
            [
                *["ssh", "-F", "none", "-i", str(KEY), *(word for option in options for word in ("-o", option))],
                *[f"root@{address}", "true"],
            ],
            env={**os.environ, "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force"},
            capture_output=True,
            timeout=60,
        )
        return done.returncode == 0

    yield by
    host.run("passwd --lock root")


def effective(host):
    return dict(line.split(" ", 1) for line in host.check_output("sshd -T").splitlines() if " " in line)


def test_keys_log_in_and_passwords_do_not(host, harden, login):
    host.check_output("echo 'PermitRootLogin yes' >/etc/ssh/sshd_config.d/50-cloud-init.conf && systemctl reload ssh")
    assert login("publickey") and login("password"), "the test itself cannot work"
    try:
        code, output = harden()
        assert code == 0, output
        assert login("publickey") and not login("password")
        found = effective(host)
        wanted = {
            "permitrootlogin": "without-password", "passwordauthentication": "no", "kbdinteractiveauthentication": "no",
            "x11forwarding": "no", "allowagentforwarding": "no", "allowtcpforwarding": "local", "maxauthtries": "3",
            "loglevel": "VERBOSE",
        }  # fmt: skip
        assert {name: found[name] for name in wanted} == wanted
        offered = found["kexalgorithms"] + found["ciphers"] + found["macs"]
        assert not [weak for weak in ("sha1", "cbc", "group14", "ecdh-sha2", "umac-64") if weak in offered]
        assert "curve25519-sha256" in found["kexalgorithms"] and "aes256-gcm@openssh.com" in found["ciphers"]
        assert host.run("systemctl is-active shiftmaster-sshd-rollback.timer").rc != 0
        again = harden()
        assert again[0] == 0 and "changed=0" in again[1], again[1][-3000:]
    finally:
        host.run("rm -f /etc/ssh/sshd_config.d/50-cloud-init.conf")


def revoking(public):
    return {
        "test_administrators": True,
        "base_admin_users": [{"name": "leaver", "state": "absent", "authorized_keys": [public.strip()]}],
        "base_hardening_sshd_confirm_seconds": 20,
    }


def test_a_key_of_somebody_who_left_opens_no_login(host, harden, login):
    host.check_output(
        "ssh-keygen -q -t ed25519 -N '' -f /root/leaver && cat /root/leaver.pub >>/root/.ssh/authorized_keys"
    )
    attempt = (
        "ssh -i /root/leaver -o BatchMode=yes -o StrictHostKeyChecking=no -o IdentitiesOnly=yes root@127.0.0.1 true"
    )
    try:
        host.check_output(attempt)
        host.check_output("useradd -m leaver && echo data >/home/leaver/file")
        code, output = harden(**revoking(host.check_output("cat /root/leaver.pub")))
        assert code == 0, output
        assert host.run(attempt).rc == 255 and login("publickey")
        assert not host.user("leaver").exists
        assert host.check_output("stat -c %U:%a /home/leaver") == "root:700", "the number of a user is given again"
    finally:
        host.run("rm -rf /root/leaver* /home/leaver /etc/ssh/shiftmaster-revoked-*; userdel leaver")


def test_the_key_of_the_run_itself_is_not_revoked(host, harden, login):
    code, output = harden(**revoking(KEY.with_suffix(".pub").read_text()))
    assert code != 0 and "The old settings are restored" in output, output
    assert login("publickey") and effective(host).get("revokedkeys", "none") == "none"
    host.run("rm -f /etc/ssh/shiftmaster-revoked-*")


def test_settings_that_lock_this_run_out_are_reverted_and_the_run_fails(host, harden, login):
    code, output = harden(base_hardening_sshd_settings={"AllowUsers": "sato"}, base_hardening_sshd_confirm_seconds=20)
    assert code != 0
    assert "Reject settings that lock this run out" in output and "The old settings are restored" in output, output
    assert not host.file(DROP_IN).exists
    assert login("publickey")
    assert "allowusers" not in effective(host)
    assert host.run("systemctl is-active shiftmaster-sshd-rollback.timer").rc != 0


def test_the_host_reverts_them_without_a_controller(host, over_ssh, login):
    """The controller died between the new settings and the second login. Until then they do lock out."""
    assert login("publickey")
    host.check_output("printf 'AllowUsers sato\\n' | shiftmaster-sshd try 6")
    time.sleep(1)
    assert not login("publickey")
    time.sleep(7)
    assert login("publickey")
    assert not host.file(DROP_IN).exists
    assert host.run("shiftmaster-sshd confirm").rc == 1


def test_settings_that_sshd_rejects_change_nothing(host, harden, login):
    before = effective(host)
    code, output = harden(base_hardening_sshd_settings={"Ciphers": "rot13"})
    assert code != 0 and "sshd rejects the new settings" in output, output
    assert effective(host) == before and not host.file(DROP_IN).exists
    assert login("publickey")


def test_a_file_that_wins_over_the_role_is_reported(host, harden, login):
    host.check_output("echo 'PasswordAuthentication yes' >/etc/ssh/sshd_config.d/00-a.conf && systemctl reload ssh")
    code, output = harden()
    assert code != 0 and "passwordauthentication yes" in output, output
    assert not host.file(DROP_IN).exists
    assert login("publickey")
