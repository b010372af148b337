"""The results of role base, checked on the host."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from support import Operations


def reboot(host):
    name = host.backend.get_hostname()
    subprocess.run(["docker", "restart", name], check=True, capture_output=True, timeout=60)
    for _ in range(60):
        if host.run("systemctl is-system-running").stdout.strip() in ("running", "degraded"):
            return
        time.sleep(0.5)
    pytest.fail(f"{name} did not boot")


def test_the_time_zone_is_that_of_the_site(host):
    assert host.check_output("date +%Z") == "JST"


def test_chrony_runs_and_leaves_the_machines_clock_alone(host):
    assert "Reference ID" in host.check_output("chronyc tracking")
    assert " -x " in host.check_output("tr '\\0' ' ' </proc/$(pgrep -o chronyd)/cmdline")


def test_kernel_settings_are_in_force(host):
    assert host.check_output("sysctl -n net.core.somaxconn net.ipv4.tcp_max_syn_backlog").split() == ["4096", "4096"]


def test_the_added_authority_and_the_public_ones_are_trusted(host):
    host.check_output("openssl verify -CApath /etc/ssl/certs /usr/local/share/ca-certificates/test-authority.crt")
    assert int(host.check_output("grep -c BEGIN /etc/ssl/certs/ca-certificates.crt")) > 100


def test_unattended_upgrades_install_security_updates_only_and_do_not_reboot(host):
    log = host.check_output("unattended-upgrade --dry-run --debug 2>&1")
    allowed = next(line for line in log.splitlines() if line.startswith("Allowed origins"))
    assert allowed.count("origin=") == 1 and "-security" in allowed
    assert "Initial blacklist: ^postgresql-" in log
    value = host.check_output("apt-config dump Unattended-Upgrade::Automatic-Reboot --format %v")
    assert value == "false"


def test_hardening_is_in_force(host):
    assert host.check_output("bash -lic umask 2>/dev/null") == "0027"
    # Programs that log in keep their umask: Ansible, backups and cron make files for other users.
    assert host.check_output("bash -lc umask") == "0022"
    assert host.check_output("bash -lc 'ulimit -Hc'") == "0"
    assert "DefaultLimitCORE=0" in host.check_output("systemctl show --property=DefaultLimitCORE")
    assert host.check_output("sysctl -n net.ipv4.conf.all.rp_filter net.ipv4.conf.all.log_martians").split() == [
        "1",
        "1",
    ]
    # A container has no modprobe.
    assert "install usb-storage /bin/false" in host.file("/etc/modprobe.d/50-shiftmaster.conf").content_string
    assert host.check_output("stat -c %a /etc/cron.daily /etc/sudoers.d /etc/ssh/sshd_config").split() == [
        "700",
        "750",
        "600",
    ]
    assert "prohibited" in host.check_output("cat /etc/issue")
    # A container has no audit; elsewhere its package comes.
    assert not host.package("auditd").is_installed
    refused = host.run("printf 'new-person:password1\\n' | { useradd -M new-person; chpasswd; }")
    assert refused.rc != 0, "a password of the dictionary was accepted"
    host.run("userdel new-person")


def test_needrestart_lists_and_restarts_nothing(host):
    assert host.check_output("perl -e 'our %nrconf; require \"/etc/needrestart/conf.d/50-shiftmaster.conf\"; "
                             "print \"$nrconf{restart} $nrconf{interpscan}\"'") == "l 0"  # fmt: skip


def test_an_administrator_logs_in_by_key_and_becomes_root(host):
    assert host.check_output("su - sato -c 'sudo -n id -un'") == "root"
    assert host.check_output("stat -c %U:%a /home/sato/.ssh/authorized_keys") == "sato:600"
    assert not host.user("gone").exists


def test_the_journal_survives_a_reboot_and_nothing_fails(host):
    host.check_output("echo before-the-reboot | systemd-cat -t marker && journalctl --sync")
    reboot(host)
    # /run, where it would be without a journal on disk, is new. All containers share the machine's boot id: no `-b -1`.
    assert "before-the-reboot" in host.check_output("journalctl -t marker -o cat")
    assert host.run("systemctl is-system-running").stdout.strip() == "running", host.run("systemctl --failed").stdout
    assert "table inet shiftmaster" in host.check_output("nft list tables")


WRITER = """#!/usr/bin/python3
import signal, time
file = open("/var/log/shiftmaster/error.log", "a")
def reopen(*_):
    global file
    file = open("/var/log/shiftmaster/error.log", "a")
signal.signal(signal.SIGUSR1, reopen)
while True:
    print("line", file=file, flush=True)
    time.sleep(0.1)
"""


@pytest.fixture
def writer(host):
    """A service under the application's name that writes a log and opens it again at USR1, as gunicorn does."""
    host.check_output("id shiftmaster 2>/dev/null || useradd --system --no-create-home shiftmaster")
    host.check_output("install -d -g adm -m 2751 /var/log/shiftmaster")
    host.check_output("install -o shiftmaster -g adm -m 0640 /dev/null /var/log/shiftmaster/error.log")
    host.check_output(f"cat >/usr/local/bin/writer <<'END'\n{WRITER}\nEND")
    host.check_output("chmod 755 /usr/local/bin/writer")
    host.check_output(
        "systemd-run --unit=shiftmaster-web@blue --uid=shiftmaster --gid=shiftmaster /usr/local/bin/writer"
    )
    host.check_output("timeout 30 sh -c 'until test -s /var/log/shiftmaster/error.log; do sleep 0.1; done'")
    yield
    host.run("systemctl stop shiftmaster-web@blue; rm -rf /var/log/shiftmaster /usr/local/bin/writer")


def test_logs_are_rotated_and_the_service_writes_to_the_new_file(host, writer):
    host.check_output("logrotate --force /etc/logrotate.d/shiftmaster")
    time.sleep(1)
    first = host.check_output("wc -l </var/log/shiftmaster/error.log")
    time.sleep(1)
    assert int(host.check_output("wc -l </var/log/shiftmaster/error.log")) > int(first)
    assert host.check_output("stat -c %U:%G:%a /var/log/shiftmaster/error.log") == "shiftmaster:adm:640"
    host.check_output("logrotate --force /etc/logrotate.d/shiftmaster")
    kept = host.check_output("ls /var/log/shiftmaster").split()
    assert len([name for name in kept if name.endswith(".gz")]) == 1, kept
    assert len(kept) == 3, kept


def test_rotation_follows_no_link_and_its_user_can_plant_none(host, writer):
    host.check_output("echo secret >/root/canary && chmod 0600 /root/canary")
    tried = "mv error.log x.log; ln -s /root/canary a.log; ln error.log hard.log; rm -f error.log; : >new.log"
    host.run(
        f"cd /var/log/shiftmaster && setpriv --reuid=shiftmaster --regid=shiftmaster --clear-groups sh -c '{tried}'"
    )
    assert host.check_output("ls /var/log/shiftmaster") == "error.log"
    # Were they there nevertheless:
    host.check_output("cd /var/log/shiftmaster && ln -s /root/canary a.log && ln /root/canary b.log")
    host.run("logrotate --force /etc/logrotate.d/shiftmaster")
    found = host.check_output("cd /var/log/shiftmaster && ls").split()
    assert [name for name in found if name.startswith("a.")] == ["a.log"]
    # A hard link is rotated under its own name, like any log: the file itself stays as it is.
    assert host.check_output("stat -c '%U %a' /root/canary; cat /root/canary").split() == ["root", "600", "secret"]
    host.check_output("rm /root/canary")


def test_logrotate_runs_with_the_complete_configuration(host, writer):
    host.check_output("systemctl start logrotate.service")
    assert host.check_output("systemctl show --property TimeoutStartUSec --value logrotate.service") == "30min"


def test_a_host_that_has_the_application_no_more_rotates_nothing_of_it(host, tmp_path):
    operations = Operations(Path(__file__).parents[1] / "inventory", host.backend.get_hostname())
    play = tmp_path / "base.yml"
    play.write_text(json.dumps([{"hosts": operations.host, "roles": ["base"]}]))
    for enabled in (False, True):
        run = operations.run(str(play), base_logrotate_enabled=enabled)
        assert run.code == 0, run.output[-3000:]
        assert host.file("/etc/logrotate.d/shiftmaster").exists == enabled
