"""Who starts it by the clock."""

from __future__ import annotations

import time
from pathlib import Path

SCHEDULE = "playbooks/schedule.yml"


def test_the_hosts_own_timer_starts_the_real_work(operations, backups, first):
    at = backups.shell("TZ=Asia/Tokyo date -d '+10 minutes' +%H:%M").strip()
    run = operations.run(SCHEDULE, by="timer", at=at, backup_schedule_jitter_seconds=0)
    assert run.code == 0 and run.says("shiftmaster-backup.timer"), run.output[-3000:]
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
    before = len(backups.manifests())
    backups.shell(
        "systemctl stop shiftmaster-backup.timer; "
        "touch -d '2 days ago' /var/lib/systemd/timers/stamp-shiftmaster-backup.timer; "
        "systemctl start shiftmaster-backup.timer; sleep 5; "
        "while systemctl is-active shiftmaster-backup | grep -q activating; do sleep 2; done",
        timeout=1200,
    )
    assert len(backups.manifests()) == before + 1


def test_cron_and_awx_take_the_timer_away(operations, backups):
    zone = Path("/etc/localtime").resolve().as_posix().partition("zoneinfo/")[2]
    run = operations.run(SCHEDULE, "--check", "--diff", by="cron", at="03:15", reports="cron", base_timezone=zone)
    assert run.code == 0 and run.says("15 3 * * * root cd", "flock --nonblock", "playbooks/backup.yml"), run.output[
        -3000:
    ]
    assert run.says("*/5 * * * * root cd", "health_tell=true", "15 8 * * 1 root", "-e period=weekly")
    other = "Asia/Tokyo" if zone != "Asia/Tokyo" else "Europe/Berlin"
    run = operations.run(SCHEDULE, "--check", by="cron", base_timezone=other)
    assert run.code != 0 and run.says("Nothing was changed.", "timedatectl set-timezone"), run.output[-3000:]
    run = operations.run(SCHEDULE, by="cron", base_timezone=zone, awx_job_id=7)
    assert run.code != 0 and run.says("has no machine with a cron of its own"), run.output[-3000:]
    assert operations.run(SCHEDULE, by="awx").code == 0
    assert backups.shell("systemctl is-enabled shiftmaster-backup.timer", check=False).strip() == "disabled"
    assert operations.run(SCHEDULE, by="nobody").code != 0
    assert operations.run(SCHEDULE, by="timer", at="25:00").code != 0
