"""Newer packages are installed while users work; replaced files are no longer in use."""

import subprocess

from patches import offered, outdated, publish, version
from support import APP, BROWSER, SCENARIO_HOME, kill_run, load, wait_for

LOG = SCENARIO_HOME / "patch.log"
CLIENTS = ("--clients", "16", "--think-seconds", "0.5", BROWSER)


def patch(operations, vault, *arguments, **extra):
    return operations.run("playbooks/patch.yml", *arguments, timeout=1800, **vault.variables, **extra)


def test_patched_under_load_without_an_interruption(operations, vault, capsys):
    before = version(operations)
    publish(operations)
    nginx = operations.shell("cat /run/nginx.pid")
    check = patch(operations, vault, "--check", reboot="never")
    assert check.code == 0 and version(operations) == before, check.output[-4000:]
    # As a run leaves it that was killed while apt ran.
    operations.shell(r"printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 0755 /usr/sbin/policy-rc.d")
    with load(operations, *CLIENTS, seconds=1800) as traffic:
        run = patch(operations, vault, reboot="never")
    assert run.code == 0, run.output[-6000:]
    summary = traffic.summary
    with capsys.disabled():
        print(f"\npatch: {summary['requests']} requests, {summary['failed']} failed, {run.seconds:.0f} s")
    traffic.assert_flawless()
    assert version(operations) == offered(operations) != before
    # Services that need an interruption are not restarted, and the run reports them. Nothing else is left.
    assert outdated(operations, "postgres", "redis-server") == {"postgres", "redis-server"}
    assert run.prints("wait for a restart, which interrupts: postgresql@", "redis-server.service"), run.output[-4000:]
    assert operations.shell("cat /run/nginx.pid") != nginx
    assert operations.shell("systemctl show --property=MainPID --value nginx") == operations.shell("cat /run/nginx.pid")
    assert operations.shell("ls /usr/sbin/policy-rc.d 2>/dev/null || true") == ""
    again = patch(operations, vault, reboot="never")
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]


def test_patches_that_need_an_interruption_run_during_maintenance(operations, vault):
    run = patch(operations, vault)
    assert run.code == 0, run.output[-6000:]
    assert run.prints("the application is interrupted while postgresql@"), run.output[-4000:]
    assert outdated(operations) == set()
    assert operations.live_version(10) and operations.shell(f"ls {APP}/shared/maintenance/on 2>/dev/null || true") == ""
    again = patch(operations, vault)
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]


def test_an_unhealthy_host_is_not_changed(operations, vault):
    before = version(operations)
    publish(operations)
    operations.shell("systemctl stop redis-server")
    try:
        run = patch(operations, vault)
    finally:
        operations.shell("systemctl start redis-server")
    # Also by its last message, which is all that an operator at the bottom of a screen reads.
    host = operations.host
    assert run.code == 2 and run.prints(f"{host}: {host} is unhealthy before it was touched", "redis"), run.output[
        -4000:
    ]
    assert version(operations) == before
    # The lock was given back.
    assert operations.shell(f"ls {APP}/shared/state/lock.json 2>/dev/null || true") == ""
    assert operations.live_version(60)


def test_killed_while_the_application_is_stopped_and_run_again(operations, vault):
    """The package of the test before is still to come."""
    process = operations.start("playbooks/patch.yml", LOG, **vault.variables)
    wait_for(
        lambda: process.poll() is not None or "TASK [patch : Restart | " in LOG.read_text(), 900, "the restart"
    )  # fmt: skip
    assert process.poll() is None, LOG.read_text()[-3000:]
    kill_run(operations, process)
    assert operations.shell("systemctl is-active shiftmaster", check=False).strip() == "inactive"
    assert operations.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/") == "503"
    run = patch(operations, vault)
    assert run.code == 0, run.output[-6000:]
    assert version(operations) == offered(operations) and outdated(operations) == set()
    assert operations.live_version(10) and operations.shell(f"ls {APP}/shared/maintenance/on 2>/dev/null || true") == ""


def test_a_reboot(operations, vault):
    began = operations.shell("cut -d ' ' -f 22 /proc/1/stat")
    subprocess.run(["docker", "update", "--restart=always", operations.host], check=True, capture_output=True)
    try:
        run = patch(operations, vault, reboot="always")
    finally:
        subprocess.run(["docker", "update", "--restart=no", operations.host], check=True, capture_output=True)
    assert run.code == 0, run.output[-6000:]
    assert run.prints("the application is interrupted while it reboots"), run.output[-4000:]
    assert operations.shell("cut -d ' ' -f 22 /proc/1/stat") != began
    assert operations.live_version(10) and operations.shell(f"ls {APP}/shared/maintenance/on 2>/dev/null || true") == ""


def test_bad_input(operations, vault):
    run = patch(operations, vault, reboot="maybe")
    assert run.code == 2 and run.prints("Nothing was changed", "reboot=maybe is none of: needed, never, always")
