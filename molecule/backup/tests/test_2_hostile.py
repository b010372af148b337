"""The application attacks the backup of its host: by links that it exchanges, by views, by names that are no text.

And an attacker on the database host attacks the test restore on the backup server; an attacker on an
earlier backup server, the one that restores its snapshots.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import wait_for

MEDIA = "/var/www/shiftmaster/shared/media"
RESTIC = "restic -r /var/backups/shiftmaster/restic -p /etc/shiftmaster-backup/restic.password"
# Directories and links to /etc change places without end, as often as the kernel lets them.
EXCHANGE = f"""
import ctypes, os
libc, pairs = ctypes.CDLL(None), []
os.mkdir("{MEDIA}/swap")
for number in range(150):
    directory, link = ("{MEDIA}/swap/%s%d" % (name, number) for name in "ab")
    os.mkdir(directory)
    open(directory + "/shadow", "w").write("mine")
    os.symlink("/etc", link)
    pairs.append((directory.encode(), link.encode()))
while True:
    for directory, link in pairs:
        libc.renameat2(-100, directory, -100, link, 2)
"""


@pytest.fixture
def exchanging(backups):
    backups.shell("cat > /srv/exchange.py", stdin=EXCHANGE)
    backups.shell("systemd-run --quiet --unit=exchange --uid=shiftmaster python3 /srv/exchange.py; sleep 2")
    yield
    backups.shell(f"systemctl stop exchange; rm -rf {MEDIA}/swap /srv/exchange.py /root/loot")


def test_directories_exchanged_while_restic_reads_expose_no_file_of_root(backups, first, exchanging):
    for _attempt in range(3):
        before = backups.shell("ls /var/backups/shiftmaster/restic/snapshots").split()
        # Files that vanish while they are read may fail the part.
        backups.run(check=None, only="files")
        (new,) = set(backups.shell("ls /var/backups/shiftmaster/restic/snapshots").split()) - set(before)
        backups.shell(f"{RESTIC} restore {new} --target /root/loot --include {MEDIA}/swap >/dev/null 2>&1; true")
        # The attack was under way: some of the directories were read as such.
        assert backups.shell("grep -rl mine /root/loot | wc -l").strip() != "0"
        assert backups.shell("grep -rl '^root:' /root/loot; true") == ""
        backups.shell("rm -r /root/loot")


def test_the_reader_can_access_only_the_set_and_its_repository(backups, first):
    """As of the code that runs in it, should restic have a hole."""
    program = """
import subprocess, sys
sys.path.insert(0, "/usr/local/sbin/shiftmaster-backup")
from shiftmaster.backup import files
from shiftmaster.backup.host import Host, load_options
restic = files.Restic(Host(load_options()))
script = '''
id -u; cat /etc/shadow /etc/nginx/nginx.conf /etc/shiftmaster-backup/restic.password /proc/1/environ;
find /proc /run /home /root -type f -size +0; touch /usr/x /var/www/shiftmaster/x %s/x; cat < /dev/tcp/127.0.0.1/5432
test -s /etc/ssl/private/shiftmaster.key && echo read; rm %s/x && echo written
''' % (restic.repository, restic.repository)
paths = ["/var/www/shiftmaster", "/etc/ssl/private/shiftmaster.key"]
written = [restic.settings["RESTIC_CACHE_DIR"], *restic.written]
words = ("/usr/bin/bash", "-c", script)
done = restic.confined("the test", words, files.sandbox.READER, paths, written, fine=range(256))
print(done.stdout)
"""
    output = backups.shell("python3 -B -", stdin=program).split()
    assert output == ["0", "read", "written"]


def test_a_snapshot_with_a_link_in_the_place_of_a_directory_is_written_nowhere_else(backups, first):
    """Debian 13's restic creates files through the link."""
    script = (Path(__file__).parent.parent / "files/hostile_snapshot.py").read_text()
    backups.shell("apt-get -qy install --no-install-recommends python3-cryptography >/dev/null", timeout=600)
    where = f"{MEDIA} /etc/profile.d hostile.sh"
    password = '"$(cat /etc/shiftmaster-backup/restic.password)"'
    backups.shell("mkdir -p /etc/profile.d")
    label = backups.shell(f"python3 - /var/backups/shiftmaster/restic {password} files {where}", stdin=script).strip()
    files = {"run": "hostile", "label": label}
    request = {"id": "hostile", "files": files, "parts": ["files"], "into": "/root/hostile", "paths": [MEDIA]}
    try:
        backups.shell("shiftmaster-backup restore files; true", stdin=json.dumps(request))
        assert backups.shell("ls -d /root/hostile") and backups.shell("ls /etc/profile.d/hostile.sh; true") == ""
    finally:
        backups.shell(f"rm -rf /root/hostile /etc/profile.d/hostile.sh; {RESTIC} forget --prune {label}", timeout=600)


def test_a_view_in_the_place_of_a_table_runs_nothing_with_the_rights_of_the_backup(backups, first):
    """As of an exchange between the list of tables and the counting of one."""
    program = """
import re, sys
sys.path.insert(0, "/usr/local/sbin/shiftmaster-backup")
from shiftmaster.backup import verification
from shiftmaster.backup.host import BackupError, Host, load_options
statement = re.search(r"format\\('(SELECT count.*?)',", verification.COUNTS_SQL, re.S)[1]
for name in ("django_migrations", "impostor"):
    try:
        print(name, Host(load_options()).query(statement.replace("%I.%I", "public." + name), "shiftmaster")[0][0])
    except BackupError as error:
        print(name, "failed")
"""
    backups.sql(
        "CREATE TABLE ran (who text); GRANT INSERT ON ran TO PUBLIC; CREATE FUNCTION run() RETURNS int LANGUAGE sql AS "
        "$$ INSERT INTO public.ran VALUES (current_user) RETURNING 1 $$; CREATE VIEW impostor AS SELECT run() AS id"
    )
    try:
        output = backups.shell("python3 -B -", stdin=program).split()
        count = backups.sql("SELECT count(*) FROM django_migrations")
        assert output == ["django_migrations", count, "impostor", "failed"]
        assert backups.sql("SELECT count(*) FROM ran") == "0"
    finally:
        backups.sql("DROP VIEW impostor; DROP FUNCTION run(); DROP TABLE ran")


def test_a_file_whose_name_is_no_text_is_compared(backups, first):
    path = f"{MEDIA}/$(printf 'h\\351\\377.txt')"
    backups.shell(f'echo plan > "{path}"')
    try:
        manifest = backups.run(only="files")
        (what,) = [one["what"] for one in manifest["parts"]["files"]["verified"] if one["how"] == "compared"]
        compared, _of, total = what.split()[:3]
        assert compared == total or int(total) > 200, json.dumps(what)
    finally:
        backups.shell(f'rm "{path}"')


# ------------------------------------------------------------------------------------------- a hostile database host

# An index whose function runs programs as a superuser, where pg_amcheck computes it in the restored database.
TRAP = r"""
CREATE TABLE output (line text);
CREATE FUNCTION run() RETURNS void LANGUAGE plpgsql AS $$
DECLARE found text;
BEGIN
    IF current_setting('data_directory') LIKE '%/scratch/%' THEN
        COPY public.output FROM PROGRAM 'exec 2> /dev/null; id -un; setsid sleep 1000 > /dev/null < /dev/null &
for place in PLACES; do touch $place/gained && echo wrote $place; done;
cat /etc/shiftmaster-backup/restore.conf /etc/pgbackrest.conf | grep -o cipher-pass=;
ls -d /proc/1 /run/systemd/private /run/dbus /run/postgresql; ls /var/backups/shiftmaster/pgbackrest; true';
        SELECT string_agg(line, ' ') FROM public.output INTO found;
        RAISE EXCEPTION 'attack: % :end', found;
    END IF;
END $$;
CREATE FUNCTION trap(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM public.run(); RETURN $1; END $$;
CREATE TABLE trapped AS SELECT 1 AS id;
CREATE INDEX ON trapped (trap(id));
"""
UNTRAP = "DROP TABLE trapped, output; DROP FUNCTION trap; DROP FUNCTION run"
DIRECTORY = "/var/backups/shiftmaster"
CLOSED = [
    DIRECTORY, f"{DIRECTORY}/pgbackrest", f"{DIRECTORY}/pgbackrest/archive", f"{DIRECTORY}/pgbackrest/backup",
    f"{DIRECTORY}/scratch", f"{DIRECTORY}/scratch/verification", f"{DIRECTORY}/scratch/verification/config",
    f"{DIRECTORY}/scratch/verification/wal", "/dev/shm", "/run", "/etc", "/var/lib/postgresql",
]  # fmt: skip


def test_code_in_the_database_has_no_rights_in_its_test_restore(backups, first):
    backups.sql(TRAP.replace("PLACES", " ".join([*CLOSED, DIRECTORY + "/scratch/verification/data"])))
    try:
        why = backups.why(backups.run(check=False, only="database", kind="full"))
    finally:
        backups.sql(UNTRAP)
    # The attack was under way; the only thing that it could do was to write to the directory of data.
    assert f"attack: shiftmaster-verify wrote {DIRECTORY}/scratch/verification/data :end" in " ".join(why.split()), why
    assert backups.shell(f"find {' '.join(CLOSED)} -maxdepth 1 -name gained 2>/dev/null", check=False) == ""
    assert backups.shell("pgrep -u shiftmaster-verify; ls /var/backups/shiftmaster/scratch", check=False) == ""


def test_programs_in_the_settings_of_the_database_do_not_run_in_its_test_restore(backups, first):
    attack = f"ALTER SYSTEM SET recovery_end_command = 'id > {DIRECTORY}/pgbackrest/backup/gained'"
    backups.sql(attack)
    try:
        backups.run(only="database", kind="full")
    finally:
        backups.sql("ALTER SYSTEM RESET recovery_end_command")
    assert backups.shell(f"ls {DIRECTORY}/pgbackrest/backup/gained 2>/dev/null", check=False) == ""


def test_a_path_outside_the_scratch_directory_is_not_written(backups, first):
    """The hostile name of a tablespace, of which pgBackRest makes a directory."""
    place = "/var/lib/postgresql/evil-location"
    backups.shell(f"install -d -o postgres -m 700 {place}")
    backups.sql(f"CREATE TABLESPACE \"../../evil\" LOCATION '{place}'")
    try:
        why = backups.why(backups.run(check=False, only="database", kind="full"))
    finally:
        backups.sql('DROP TABLESPACE "../../evil"')
        backups.shell(f"rmdir {place}")
    assert "unable to create path" in why and "Read-only file system" in why, why
    assert backups.shell(f"find {DIRECTORY} -name evil") == ""


def test_the_server_of_a_test_restore_is_confined(backups, first):
    backups.operations.hold("backup_verification")
    backups.shell("systemctl start --no-block shiftmaster-backup.service")
    try:
        reached = "cat /run/shiftmaster/points/backup_verification.reached 2>/dev/null"
        wait_for(lambda: backups.shell(reached, check=False), 600, "the test restore")
        listed = backups.shell("systemctl list-units --no-legend --plain 'shiftmaster-backup-verify-*'").splitlines()
        assert len(listed) == 2
        for line in listed:
            message = backups.shell(f"systemd-analyze security --no-pager {line.split()[0]} | tail -n 1")
            assert float(message.split(": ")[1].split()[0]) <= 1.5, message
        backups.shell("systemctl kill --kill-whom=main --signal=KILL shiftmaster-backup.service")
    finally:
        backups.operations.release_hold()
    wait_for(lambda: backups.shell("pgrep -u shiftmaster-verify", check=False) == "", 30, "the end of the server")
    backups.wait_until_idle()
    backups.run(only="database")
