"""The units of role backup are confined, by what systemd reports about each."""

from __future__ import annotations

# The backup is root, becomes postgres and may make setgid files (its unit shows why).
ALLOWED = {"shiftmaster-backup.service": 2.7, "shiftmaster-backup@x.service": 2.7}


def test_units_are_confined(backups, first):
    listed = backups.shell("systemctl list-unit-files --no-legend 'shiftmaster-backup*.service'").splitlines()
    units = [line.split()[0].replace("@.", "@x.") for line in listed]
    assert len(units) >= 6
    for unit in units:
        output = backups.shell(f"systemd-analyze security --no-pager {unit} | tail -n 1")
        assert float(output.split(": ")[1].split()[0]) <= ALLOWED.get(unit, 2.5), output


def test_the_heartbeat_works_confined(backups, first):
    before = backups.sql("SELECT at FROM heartbeat", database="backup")
    backups.shell("systemctl start shiftmaster-backup-heartbeat.service")
    assert backups.sql("SELECT at FROM heartbeat", database="backup") > before


def test_the_units_of_a_boot_work_confined(backups, first):
    for unit in ("shiftmaster-backup-boot.service", "shiftmaster-backup-undo.service"):
        backups.shell(f"systemctl restart {unit}")
        assert backups.shell(f"systemctl show --value --property=Result {unit}").strip() == "success"
