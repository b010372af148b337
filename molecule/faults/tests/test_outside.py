"""Changes that other people make to the host: missing links, directories and files, a page, a unit, a disk."""

from support import APP

PAGE = f"{APP}/shared/maintenance/on"
FAST = {"shiftmaster_watch_seconds": 2}


def units(operations) -> list:
    found = operations.shell("systemctl list-units --plain --no-legend --state=active 'shiftmaster-*@*'")
    return sorted(line.split()[0] for line in found.splitlines())


def one_slot(operations) -> bool:
    names = units(operations)
    return len(names) == 3 and len({name.split("@")[1] for name in names}) == 1


def login(operations) -> str:
    return operations.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/login/")


def bad(operations) -> list:
    """Releases that are blamed; one whose migration is half done stays until it is undone (test_broken_versions.py)."""
    return sorted(name for name, entry in operations.state()["releases"].items() if entry["status"] == "bad")


def at(operations, version: str) -> None:
    if operations.live_version(10) != version:
        run = operations.deploy(version, **FAST)
        assert run.code == 0, run.output[-4000:]


def test_a_maintenance_page_of_an_operator_does_not_make_a_release_bad(operations):
    at(operations, "2.0.0")
    before = bad(operations)
    on = operations.run("playbooks/maintenance.yml", state="on", reason="Passwords", end="23:59")
    assert on.code == 0, on.output[-3000:]
    run = operations.deploy("2.1.0", **FAST)
    assert run.code == 0 and run.prints("users still see the page"), run.output[-4000:]
    assert login(operations) == "503"
    assert operations.run("playbooks/maintenance.yml", state="off").code == 0
    assert login(operations) == "200" and operations.live_version(10) == "2.1.0"
    assert bad(operations) == before


def test_no_space_for_the_pre_migration_dump_does_not_make_a_release_bad(operations):
    at(operations, "2.1.0")
    before = bad(operations)
    operations.shell("mount -t tmpfs -o size=64k tmpfs /var/backups/shiftmaster/pre-migration")
    try:
        run = operations.deploy("2.2.0", shiftmaster_allow_contract=True, **FAST)
    finally:
        operations.shell("umount /var/backups/shiftmaster/pre-migration")
    assert run.code == 2 and run.prints("too little room", "Version 2.1.0 is still live."), run.output[-4000:]
    assert login(operations) == "200" and one_slot(operations)
    assert bad(operations) == before


def test_wrong_options_of_a_rollback_change_nothing(operations):
    at(operations, "2.1.0")
    before = operations.shell("ls /var/backups/shiftmaster/pre-migration")
    run = operations.rollback(to="", dump="x.dump")
    assert run.code == 2 and run.prints("dump is for -e schema=restore", "to is empty"), run.output[-3000:]
    assert run.changed == 0
    assert operations.shell("ls /var/backups/shiftmaster/pre-migration") == before
    assert operations.live_version(10) == "2.1.0"


def test_the_state_file_is_missing_or_damaged(operations):
    """The audit log knows what was live: the rollback stays open, also while apt is at work."""
    at(operations, "2.1.0")
    state = f"{APP}/shared/state/state.json"
    operations.shell(f"cp {state} /root/state; echo '[]' > {state}")
    run = operations.deploy("2.1.0", **FAST)
    assert run.code == 2, run.output[-4000:]
    assert run.prints("state.json is damaged", "Move it away", "The live release is unknown"), run.output[-4000:]
    assert operations.live_version(10) == "2.1.0"
    operations.shell(f"rm {state}")
    # A rollback does not wait for apt either.
    hold = "import fcntl, time; f = open('/var/lib/dpkg/lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); time.sleep(300)"
    operations.shell(f'systemd-run --quiet --unit=apt-at-work /usr/bin/python3 -c "{hold}"')
    try:
        run = operations.rollback()
    finally:
        operations.shell("systemctl stop apt-at-work")
    assert run.code == 0, run.output[-4000:]
    assert operations.live_version(10) == "2.0.0"


def test_the_active_link_is_missing(operations):
    """The host is no new one: a contract migration stays refused, and no second beat starts."""
    at(operations, "2.1.0")
    operations.shell(f"rm {APP}/active")
    refused = operations.deploy("2.2.0", **FAST)
    assert refused.code == 2 and refused.prints("0003_remove_is_night"), refused.output[-4000:]
    assert operations.live_version(10) == "2.1.0" and one_slot(operations)
    operations.shell(f"rm {APP}/active")
    run = operations.deploy("2.1.0", **FAST)
    assert run.code == 0, run.output[-4000:]
    assert operations.live_version(10) == "2.1.0" and one_slot(operations)


def test_the_directory_of_the_live_release_is_missing(operations):
    version = operations.live_version(10)
    operations.shell(f"mv $(readlink -f {APP}/current) /root/gone")
    run = operations.deploy(version, **FAST)
    assert run.code == 0, run.output[-6000:]
    assert operations.live_version(10) == version and one_slot(operations)
    operations.shell("rm -rf /root/gone")
