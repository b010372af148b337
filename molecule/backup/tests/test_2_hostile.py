"""The application attacks the backup of its host: by links that it exchanges, by views, by names that are no text."""

from __future__ import annotations

import json

import pytest

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


def test_directories_that_are_exchanged_while_restic_reads_lead_to_no_file_of_root(backups, first, exchanging):
    for _attempt in range(3):
        before = backups.shell("ls /var/backups/shiftmaster/restic/snapshots").split()
        # What vanishes while it is read may fail the part.
        backups.run(check=None, only="files")
        (new,) = set(backups.shell("ls /var/backups/shiftmaster/restic/snapshots").split()) - set(before)
        backups.shell(f"{RESTIC} restore {new} --target /root/loot --include {MEDIA}/swap >/dev/null 2>&1; true")
        # The attack was under way: some of the directories were read as such.
        assert backups.shell("grep -rl mine /root/loot | wc -l").strip() != "0"
        assert backups.shell("grep -rl '^root:' /root/loot; true") == ""
        backups.shell("rm -r /root/loot")


def test_what_reads_has_the_set_and_its_repository_and_no_other_file(backups, first):
    """As of the code that runs in it, should restic have a hole."""
    program = """
import subprocess, sys
sys.path.insert(0, "/usr/local/lib/shiftmaster-backup")
from engine.backup import files
from engine.backup.host import Host, load_options
restic = files.Restic(Host(load_options()))
script = '''
id -u; cat /etc/shadow /etc/nginx/nginx.conf /etc/shiftmaster-backup/restic.password /proc/1/environ;
find /proc /run /home /root -type f -size +0; touch /usr/x /var/www/shiftmaster/x %s/x; cat < /dev/tcp/127.0.0.1/5432
test -s /etc/ssl/private/shiftmaster.key && echo read; rm %s/x && echo written
''' % (restic.repository, restic.repository)
paths = ["/var/www/shiftmaster", "/etc/ssl/private/shiftmaster.key"]
done = restic.confined("the test", paths, ("/usr/bin/bash", "-c", script))
print(done.stdout)
"""
    output = backups.shell("python3 -", stdin=program).split()
    assert output == ["0", "read", "written"]


def test_a_view_in_the_place_of_a_table_runs_nothing_with_the_rights_of_the_backup(backups, first):
    """As of an exchange between the list of tables and the counting of one."""
    program = """
import re, sys
sys.path.insert(0, "/usr/local/lib/shiftmaster-backup")
from engine.backup import proof
from engine.backup.host import BackupError, Host, load_options
statement = re.search(r"format\\('(SELECT count.*?)',", proof.COUNTS_SQL, re.S)[1]
for name in ("django_migrations", "impostor"):
    try:
        print(name, Host(load_options()).ask(statement.replace("%I.%I", "public." + name), "shiftmaster")[0][0])
    except BackupError as error:
        print(name, "failed")
"""
    backups.sql(
        "CREATE TABLE ran (who text); GRANT INSERT ON ran TO PUBLIC; CREATE FUNCTION run() RETURNS int LANGUAGE sql AS "
        "$$ INSERT INTO public.ran VALUES (current_user) RETURNING 1 $$; CREATE VIEW impostor AS SELECT run() AS id"
    )
    try:
        output = backups.shell("python3 -", stdin=program).split()
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
