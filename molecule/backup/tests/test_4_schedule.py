"""The schedulers that start backups."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from support import ROOT

SCHEDULE = "playbooks/schedule.yml"


def test_the_hosts_own_timer_starts_the_real_work(operations, backups, first):
    at = backups.shell("TZ=Asia/Tokyo date -d '+4 minutes' +%H:%M").strip()
    run = operations.run(SCHEDULE, by="timer", at=at, backup_schedule_jitter_seconds=0)
    assert run.code == 0 and run.prints("shiftmaster-backup.timer"), run.output[-3000:]
    before = len(backups.manifests())
    due = backups.metric("shiftmaster_backup_next_run_timestamp_seconds")
    deadline = time.monotonic() + 1500
    while len(backups.manifests()) == before:
        assert time.monotonic() < deadline, backups.shell("systemctl list-timers --no-pager shiftmaster-backup.timer")
        time.sleep(5)
    backups.shell("while systemctl is-active shiftmaster-backup | grep -q activating; do sleep 2; done", timeout=1200)
    new = backups.manifests()[-1]
    assert new["result"] == "succeeded" and new["started_by"] == "schedule"
    assert due != backups.metric("shiftmaster_backup_next_run_timestamp_seconds")


def test_a_start_that_was_missed_is_caught_up(operations, backups, first):
    """As after a night in which the host was off."""
    assert operations.run(SCHEDULE, by="timer", backup_schedule_jitter_seconds=0).code == 0
    time.sleep(5)
    backups.wait_until_idle()
    before = len(backups.manifests())
    backups.shell(
        "systemctl stop shiftmaster-backup.timer; "
        "touch -d '2 days ago' /var/lib/systemd/timers/stamp-shiftmaster-backup.timer; "
        "systemctl start shiftmaster-backup.timer; sleep 5; "
        "while systemctl is-active shiftmaster-backup | grep -q activating; do sleep 2; done",
        timeout=1200,
    )
    assert len(backups.manifests()) == before + 1


def zone_of_this_machine() -> str:
    return Path("/etc/localtime").resolve().as_posix().partition("zoneinfo/")[2]


def as_cron_does(path: Path) -> int:
    """Run the only line of one of cron's files as cron would; returns its exit code."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    variables = [line for line in lines if re.match(r"\w+=", line)]
    (line,) = [line for line in lines if line not in variables]
    assert line.split(" root ")[0].count(" ") == 4
    clean = ["env", "-i", "HOME=/root", "LOGNAME=root", "SHELL=/bin/sh", "PATH=/usr/bin:/bin", *variables]
    command = line.split(" root ", 1)[1]
    return subprocess.run([*clean, "/bin/sh", "-c", command], cwd="/root", timeout=1200, check=False).returncode


def test_cron_starts_the_real_work(operations, backups, first, tmp_path):
    options = {"schedule_cron_dir": str(tmp_path), "base_timezone": zone_of_this_machine(), "at": "03:15"}
    for changed in (True, False):
        run = operations.run(SCHEDULE, by="cron", reports="cron", **options)
        assert run.code == 0 and bool(run.changed) == changed, run.output[-3000:]
    assert backups.shell("systemctl is-enabled shiftmaster-backup.timer", check=False).strip() == "disabled"
    (path,) = tmp_path.glob("shiftmaster-backup-*")
    assert "\n15 3 * * * root cd" in path.read_text()
    before = len(backups.manifests())
    assert as_cron_does(path) == 0
    new = backups.manifests()[before:]
    assert [one["result"] for one in new] == ["succeeded"] and new[0]["started_by"] != "schedule"
    # One that is under way is not doubled.
    with open(re.search(r"flock --nonblock (\S+)", path.read_text())[1], "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert as_cron_does(path) == 1
    assert len(backups.manifests()) == before + 1
    reports = next(tmp_path.glob("shiftmaster-reports-*")).read_text()
    assert "*/5 * * * * root cd" in reports and "health_notify=true" in reports
    assert "15 8 * * 1 root" in reports and "-e period=weekly" in reports and "-e language=ja" in reports
    # Removed by the new scheduler.
    assert operations.run(SCHEDULE, by="awx", reports="nobody", **options).code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    any(os.path.exists(path) for path in ("/usr/sbin/cron", "/usr/sbin/crond", "/usr/bin/crond")),
    reason="this machine has a cron",
)
def test_a_schedule_by_cron_is_rejected_without_cron(operations, backups):
    """Its file would lie there, and nothing would read it; the timer was stopped all the same."""
    assert operations.run(SCHEDULE, by="timer").code == 0
    run = operations.run(SCHEDULE, by="cron", base_timezone=zone_of_this_machine())
    assert run.code == 2 and "This machine has no cron" in run.output
    assert backups.shell("systemctl is-enabled shiftmaster-backup.timer").strip() == "enabled"


RUNNER = """
import json, sys, ansible_runner
print(ansible_runner.run(quiet=True, **json.loads(sys.argv[1])).status)
"""


def test_a_job_of_awx_does_the_real_work(operations, backups, first, tmp_path):
    """Started by the ansible-runner by which AWX starts its jobs."""
    subprocess.run([ROOT / "scripts/test_awx", "--collect-only"], cwd=ROOT, check=True, capture_output=True)
    (tmp_path / "env").mkdir()
    values = {"awx_job_id": 7, "awx_user_name": "tanaka", "awx_job_template_name": "backup", "kind": "incr"}
    (tmp_path / "env/extravars").write_text(json.dumps(values))
    known = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    (tmp_path / "env/envvars").write_text(json.dumps(known))
    job = {
        "private_data_dir": str(tmp_path), "project_dir": str(ROOT), "playbook": "playbooks/backup.yml",
        "inventory": operations.inventory,
    }  # fmt: skip
    before = len(backups.manifests())
    command = [ROOT / ".cache/runner/bin/python", "-c", RUNNER, json.dumps(job)]
    done = subprocess.run(command, env=known, capture_output=True, text=True, timeout=1200, check=False)
    assert done.stdout.splitlines()[-1:] == ["successful"], done
    (new,) = backups.manifests()[before:]
    assert new["result"] == "succeeded" and "tanaka" in new["started_by"]


def test_invalid_options_are_rejected(operations, backups):
    zone = zone_of_this_machine()
    other = "Asia/Tokyo" if zone != "Asia/Tokyo" else "Europe/Berlin"
    run = operations.run(SCHEDULE, "--check", by="cron", base_timezone=other)
    assert run.code != 0 and run.prints("Nothing was changed.", "timedatectl set-timezone"), run.output[-3000:]
    run = operations.run(SCHEDULE, by="cron", base_timezone=zone, awx_job_id=7)
    assert run.code != 0 and run.prints("has no machine with a cron of its own"), run.output[-3000:]
    assert operations.run(SCHEDULE, by="nobody").code != 0
    assert operations.run(SCHEDULE, by="timer", at="25:00").code != 0
