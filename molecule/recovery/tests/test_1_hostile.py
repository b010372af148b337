"""A compromised backup server, and a compromised source host, attack each other by what a backup needs of both."""

from __future__ import annotations

import json
import time

import pytest
from support import wait_for

SERVER_SSH = (
    "ssh -i /etc/shiftmaster-backup/pull.key -o BatchMode=yes -o StrictHostKeyChecking=yes "
    "-o UserKnownHostsFile=/etc/shiftmaster-backup/known_hosts"
)
USER = "shiftmaster-backup@172.30.79.10"
MEDIA = "/var/www/shiftmaster/shared/media"
# --rsh of an rsync that requests any path, and hands in its arguments as -s does: before anything else.
SECLUDED = f"""#!/bin/sh
{{ printf 'rsync\\0--server\\0--sender\\0'; for word in $SECRET; do printf '%s\\0' "$word"; done; printf '\\0'
cat; }} |
{{ {SERVER_SSH} {USER} "$SENT"; kill $$; }}
"""


@pytest.fixture(scope="module")
def attack(hosts):
    """Run rsync on the backup server as an attacker does, by a remote command of his own; returns the output."""
    hosts.backup_server.shell("cat > /root/rsh; chmod 700 /root/rsh", stdin=SECLUDED)

    def run(sent: str, secret: str, path: str = "/etc/shadow") -> str:
        hosts.backup_server.shell("rm -rf /root/loot; mkdir /root/loot")
        return hosts.backup_server.shell(
            f"SENT='{sent}' SECRET='{secret}' timeout 30 rsync -rlt --rsh /root/rsh x@host:{path} /root/loot/ 2>&1; "
            "echo code $?",
            check=False,
        )

    yield run
    hosts.backup_server.shell("rm -rf /root/loot /root/rsh")


FLAGS = "-ltre.iLsfxCIvu"


@pytest.mark.parametrize(
    "requested",
    [
        # The attack of old: -s lets rsync read its arguments from the connection.
        "rsync --server --sender -s . /etc/nginx",
        "send configuration --server --sender -s . /etc/nginx",
        "send configuration -s",
        "send files --server --sender -slogDtpr . /var/www/shiftmaster",
    ],
)
def test_only_files_of_a_set_are_read_removed_or_written(hosts, attack, requested):
    hosts.app.shell("echo precious > /root/precious; rm -f /root/written")
    message = attack(requested, f"{FLAGS} . /etc/shadow")
    assert "root:" not in hosts.backup_server.shell("cat /root/loot/shadow 2>/dev/null", check=False), message
    message = attack(requested, f"{FLAGS} --remove-source-files . /root/precious", "/root/precious")
    assert hosts.app.shell("cat /root/precious").strip() == "precious", message
    assert "precious" not in hosts.backup_server.shell("find /root/loot", check=False)
    message = attack(requested, f"{FLAGS} --log-file=/root/written --log-file-format=x . /etc/nginx", "/etc/nginx")
    assert hosts.app.shell("ls /root/written 2>/dev/null", check=False) == "", message


def test_a_filter_rule_opens_no_file_outside_the_set(hosts):
    """rsync takes rules from the receiver, and a rule can name a file of rules."""
    message = hosts.backup_server.shell(
        "rm -rf /root/loot; mkdir /root/loot; rsync -aR --no-D --numeric-ids --trust-sender --filter=': /etc/shadow' "
        f"--rsync-path 'send configuration' --rsh '{SERVER_SSH}' {USER}:/etc/nginx /root/loot/ 2>&1; echo code $?",
        check=False,
    )
    # For a file that it could read, rsync reports that a line is no rule.
    assert "shadow" not in message and "code 0" in message, message
    assert "nginx.conf" in hosts.backup_server.shell("find /root/loot -name nginx.conf")


@pytest.mark.parametrize(
    "command",
    [
        "id", "cat /etc/shadow", "rsync --server --sender -logDtpr . /etc/shadow",
        "rsync --server -logDtpr . /etc/nginx", "send /etc/shadow", "send", "paths /etc", "lock /etc/shadow",
        "send files;id",
    ],
)  # fmt: skip
def test_only_the_name_of_a_set_is_accepted(hosts, command):
    done = hosts.backup_server.shell(f"{SERVER_SSH} {USER} '{command}' 2>&1; echo code $?", check=False)
    assert "allowed" in done and "code 0" not in done and "uid=" not in done, done


def test_there_is_no_shell_no_forwarding_and_no_terminal(hosts):
    assert "uid=" not in hosts.backup_server.shell(f"echo id | {SERVER_SSH} {USER} 2>&1", check=False)
    message = hosts.backup_server.shell(
        f"timeout 20 {SERVER_SSH} -N -o ExitOnForwardFailure=yes -R 12345:localhost:22 {USER} 2>&1; echo code $?",
        check=False,
    )
    assert "code 0" not in message and "code 124" not in message, message
    # To a service of the host that listens on loopback alone.
    message = hosts.backup_server.shell(
        f"timeout 20 {SERVER_SSH} -W localhost:5432 {USER} 2>&1 < /dev/null; echo code $?", check=False
    )
    assert "code 0" not in message, message


def test_the_sender_is_not_root_and_has_no_other_file_nor_network(hosts):
    """As of the code that runs in it, should rsync have a hole."""
    program = """
import json, os, runpy, subprocess, types
read = types.SimpleNamespace(**runpy.run_path("/usr/local/sbin/shiftmaster-backup-read"))
part = json.load(open(read.CONFIG))["sets"]["configuration"]
paths = [path for path in part["paths"] if read.backup_sandbox.existing(path)]
script = '''
id -u; ls /etc; cat /etc/shadow /proc/1/environ; ls -A /home /proc/1/root/; touch /etc/nginx/x /usr/x;
cat /etc/ssl/private/shiftmaster.key > /dev/null && echo read; cat < /dev/tcp/127.0.0.1/22
'''
words = read.backup_sandbox.words("shiftmaster-backup-test.service", read.identity(paths) + read.PROPERTIES, paths)
print(subprocess.run([*words, "/usr/bin/bash", "-c", script], capture_output=True, text=True).stdout)
"""
    message = hosts.app.shell("python3 -B -", stdin=program)
    lines = message.split()
    # Another user than root, that reads what root alone may read of the set.
    assert lines[0] != "0" and "nginx" in lines and "read" in lines, message
    assert not {"shadow", "passwd"} & set(lines) and "root:" not in message, message
    assert "PATH=" not in message and "SSH-2" not in message, message
    assert hosts.app.shell("ls /etc/nginx/x /usr/x 2>/dev/null", check=False) == ""


def test_a_link_in_place_of_the_lock_sends_no_file(hosts):
    """The application user and the backup server together."""
    state = "/var/www/shiftmaster/shared/state"
    hosts.app.shell(f"test ! -e {state}/lock.json && ln -s /etc/shadow {state}/lock.json")
    try:
        message = hosts.backup_server.shell(f"{SERVER_SSH} {USER} lock 2>&1", check=False)
        assert "root:" not in message, message
    finally:
        hosts.app.shell(f"rm -f {state}/lock.json")


# ------------------------------------------------------------------------------------------------ a hostile source host


@pytest.fixture
def hostile(hosts):
    """Let the source host send what it likes, while the block runs."""
    program = "/usr/local/sbin/shiftmaster-backup-read"
    hosts.app.shell(f"cp -p {program} /root/read")

    def send(script: str) -> None:
        hosts.app.shell(f"cat > {program}", stdin="#!/bin/sh\n" + script)

    yield send
    hosts.app.shell(f"cp -p /root/read {program}")


def pulled(hosts) -> dict:
    """Let the backup server read the configuration of the host; {"failed": why} or {"directory": where}."""
    program = """
import json, sys
sys.path.insert(0, "/usr/local/sbin/shiftmaster-backup")
from shiftmaster.backup import files
from shiftmaster.backup.host import BackupError, Host, load_options
host = Host(load_options())
source, part = next((s, p) for s, p in files.sources(host, "configuration") if s["name"] == "recovery-trixie")
try:
    print(json.dumps({"directory": files.pull(host, source, part)}))
except BackupError as error:
    print(json.dumps({"failed": str(error)}))
"""
    return json.loads(hosts.backup_server.shell("python3 -B -", stdin=program, timeout=300).splitlines()[-1])


def test_a_host_sends_nothing_that_was_not_requested(hosts, hostile):
    hostile(
        'case "$1" in paths*) echo \'["/etc/nginx", "/etc/passwd", "/../x", 5]\';; '
        "*) exec rsync --server --sender -logDtpRre.iLsfxCIvu --numeric-ids . /etc/nginx /etc/shadow /root;; esac\n"
    )
    found = pulled(hosts)
    assert "failed" in found, found
    directory = "/var/backups/shiftmaster/pulled/configuration/recovery-trixie"
    assert "shadow" not in hosts.backup_server.shell(f"find {directory}")


@pytest.mark.parametrize("response", ["", "null", "{}", "not json", '["/etc/shadow"]'])
def test_an_invalid_response_fails_the_part(hosts, hostile, response):
    hostile(f"echo '{response}'\n")
    assert "failed" in pulled(hosts)


@pytest.mark.parametrize("script", ["head -c 300000 /dev/zero | tr '\\0' '['", "exec yes", "exec yes >&2"])
def test_a_response_without_end_or_depth_fails_the_part(hosts, hostile, script):
    hostile(script + "\n")
    assert "failed" in pulled(hosts)


def test_a_host_cannot_fill_the_disk_of_the_backup_server(hosts):
    """A file of a terabyte that is empty on the host that sends it."""
    place = "/var/backups/shiftmaster/pulled"
    hosts.app.shell("truncate -s 1T /etc/nginx/sparse")
    hosts.backup_server.shell(f"mkdir -p {place} && mount -t tmpfs -o size=400m tmpfs {place}")
    try:
        found = pulled(hosts)
        assert "failed" in found and "more than leaves 10 %" in found["failed"], found
        assert int(hosts.backup_server.shell(f"du -sm {place} | cut -f1")) < 200
        assert "sparse" not in hosts.backup_server.shell(f"find {place} -type f")
    finally:
        hosts.app.shell("rm /etc/nginx/sparse")
        hosts.backup_server.shell(f"umount {place}")


def test_devices_and_fifos_are_not_received_and_links_not_followed(hosts):
    hosts.app.shell("mkfifo /etc/nginx/fifo; mknod /etc/nginx/null c 1 3; ln -s /etc/shadow /etc/nginx/link")
    try:
        directory = pulled(hosts)["directory"]
        kinds = hosts.backup_server.shell(f"find {directory}/etc/nginx -printf '%y '").split()
        assert set(kinds) <= {"d", "f", "l"}
        assert hosts.backup_server.shell(f"readlink {directory}/etc/nginx/link").strip() == "/etc/shadow"
    finally:
        hosts.app.shell("rm /etc/nginx/fifo /etc/nginx/null /etc/nginx/link")


def test_the_receiver_writes_below_its_directory_only(hosts):
    """As of the code that runs in it, should rsync have a hole."""
    program = """
import os, subprocess, sys
sys.path.insert(0, "/usr/local/sbin/shiftmaster-backup")
from shiftmaster.backup import files
from shiftmaster.backup.host import Host, load_options
host = Host(load_options())
directory = files.pulled(host, "configuration", "recovery-trixie")
script = "touch %s/mine /etc/x /usr/x /root/x %s/x %s/../x; cat /etc/shadow %s" % (
    directory, host.directory, directory, host.options["restic_password_file"])
words = files.receiver_words(host, "shiftmaster-backup-pull-test", directory) + ["/usr/bin/sh", "-c", script]
print(subprocess.run(words, capture_output=True, text=True).stdout)
print(os.path.exists(directory + "/mine"))
os.unlink(directory + "/mine")
"""
    message = hosts.backup_server.shell("python3 -B -", stdin=program)
    assert message.split() == ["True"], message
    there = "/etc/x /usr/x /root/x /var/backups/shiftmaster/x /var/backups/shiftmaster/pulled/configuration/x"
    assert hosts.backup_server.shell(f"ls {there} 2>/dev/null", check=False) == ""


# ------------------------------------------------------------------------------------------- a hostile backup server

PROGRAM = "/usr/local/sbin/shiftmaster-backup"


@pytest.fixture
def impostor(hosts):
    """Let the backup server respond to steps of a restore as it likes: {step: lines of a shell}."""
    hosts.backup_server.shell(f"cp -p {PROGRAM} /root/shiftmaster-backup")

    def respond(**steps: str) -> None:
        cases = "".join(f'"restore {step}")\n{script}\n;;\n' for step, script in steps.items())
        text = f'#!/bin/sh\ncase "$1 $2" in\n{cases}*) exec /root/shiftmaster-backup "$@";;\nesac\n'
        hosts.backup_server.shell(f"cat > {PROGRAM}", stdin=text)

    yield respond
    hosts.backup_server.shell(f"cp -p /root/shiftmaster-backup {PROGRAM}; rm -f /root/wal.py")


# A label of a volume (type V) has no content; tar changes the mode of what has its name.
HOSTILE_WAL = """
import tarfile
with tarfile.open("/var/backups/shiftmaster/outgoing/wal.tar", "w", format=tarfile.GNU_FORMAT) as archive:
    for name, kind in (("00000001000000000000000A", tarfile.REGTYPE), ("../../../../etc/shadow", b"V")):
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.uid = kind, 0o666, 33
        archive.addfile(member)
"""
WATCHED = "stat -c '%n %U %G %a' /etc/shadow /etc/nginx /etc /"


def test_an_archive_of_wal_changes_nothing_outside_its_directory(hosts, impostor):
    hosts.backup_server.shell("cat > /root/wal.py", stdin=HOSTILE_WAL)
    hosts.backup_server.backup()
    # One segment is announced that the archive lacks.
    impostor(
        plan="""/root/shiftmaster-backup "$@" | sed 's/"received": [0-9]*/"received": 1/'""",
        received="mkdir -p /var/backups/shiftmaster/outgoing; cat > /dev/null; python3 /root/wal.py; "
        """echo '{"restored": "1", "segments": 1, "archive": "/var/backups/shiftmaster/outgoing/wal.tar"}'""",
    )
    app = hosts.app
    before, rows = app.shell(WATCHED), app.everything()
    run = app.run("playbooks/restore.yml", confirm=app.host, timeout=1800)
    assert app.shell(WATCHED) == before
    assert run.code != 0 and run.prints("'../../../../etc/shadow', which is not a segment"), run.output[-4000:]
    assert app.shell("ls /var/lib/shiftmaster-backup/received 2>/dev/null; true") == ""
    assert app.live_version(120) and app.everything() == rows


def test_a_release_is_named_by_a_commit_id_and_no_text_reaches_the_terminal_unescaped(hosts, impostor):
    impostor(
        plan=r"""/root/shiftmaster-backup "$@" | python3 -c '
import json, sys
plan = json.load(sys.stdin)
plan["release"].update(version="2.0.0\x1b[2J", revision="main")
print(json.dumps(plan))'"""
    )
    run = hosts.app.run("playbooks/recover.yml", timeout=600)
    assert run.code != 0 and run.prints("main as the revision of the release, which is no commit id"), run.output[
        -3000:
    ]
    assert "\x1b[2J" not in run.output


def test_a_reason_of_the_backup_server_reaches_no_terminal_unescaped(hosts, impostor):
    impostor(plan=r"""printf '{"failed": "gone \\u001b[2J\\u009b2J"}\n'; exit 1""")
    run = hosts.app.run("playbooks/restore.yml", timeout=600)
    assert run.code != 0 and run.prints("gone ?[2J?2J"), run.output[-3000:]


# ------------------------------------------------------------------------------------------------- restoring of files


def test_a_restore_of_files_follows_no_link_of_the_application(hosts):
    """The directory that was saved is a link meanwhile, and another one leads to files of root."""
    app = hosts.app
    app.shell(
        f"install -d -o shiftmaster {MEDIA}/plans && echo plan > {MEDIA}/plans/plan.pdf && "
        f"chown shiftmaster: {MEDIA}/plans/plan.pdf"
    )
    hosts.backup_server.backup(only="files")
    app.shell("mkdir -m 755 /root/victim && cd /root/victim && echo secret > secret && chmod 600 secret")
    app.shell(
        f"cd {MEDIA} && runuser -u shiftmaster -- sh -c 'rm -r plans && ln -s /root/victim plans && "
        "ln -s /root/victim out && ln -s /root/victim/secret file'"
    )
    try:
        run = app.run("playbooks/restore.yml", parts="files", confirm=app.host, timeout=1200)
        assert run.code == 0, run.output[-4000:]
        assert app.shell("find /root/victim -printf '%u %m %P\\n' | sort").splitlines() == [
            "root 600 secret",
            "root 755 ",
        ]
        assert app.shell(f"stat -c '%F %U' {MEDIA}/plans {MEDIA}/plans/plan.pdf").splitlines() == [
            "directory shiftmaster", "regular file shiftmaster",
        ]  # fmt: skip
    finally:
        app.shell(f"rm -rf {MEDIA}/plans {MEDIA}/out {MEDIA}/file /root/victim")


# ------------------------------------------------------------------------------------------------- pgBackRest's server


def client(host, peer: str, command: str, key: str = "", stdin: str | None = None) -> str:
    """Have pgBackRest of one host do at the other one what the attacker likes; returns its output and its code."""
    words = "pgbackrest --config=/dev/null --no-log-timestamp --log-level-console=off --log-level-stderr=error "
    words += f"--log-level-file=off --stanza=shiftmaster --repo1-host={peer} --repo1-host-type=tls "
    copied = "umask 077; "
    for name in ("cert", "key", "ca"):
        file = f"{key}.{name.replace('cert', 'crt')}" if key and name != "ca" else ""
        file = file or f"$(sed -n 's/^tls-server-{name}-file=//p' /etc/pgbackrest.conf)"
        # pgBackRest uses no key that others may read, too.
        copied += f"cat {file} > /root/attack.{name}; "
        words += f"--repo1-host-{name}-file=/root/attack.{name} "
    # The files that it reads may be encrypted.
    shown = "code=$?; tr -cd '[:print:]\\n' < /root/attack.out; rm /root/attack.*; echo; echo code $code"
    return host.shell(f"{copied} {words} {command} > /root/attack.out 2>&1; {shown}", stdin=stdin, timeout=120)


def taken(host, peer: str, path: str) -> str:
    directory, _, name = path.rpartition("/")
    return client(host, peer, f"--repo1-path={directory} repo-get --raw {name}")


def test_the_backup_server_reads_the_database_and_no_other_file_of_its_host(hosts):
    control = "/var/lib/postgresql/17/main/PG_VERSION"
    assert "code 0" in taken(hosts.backup_server, "recovery-trixie", control), "the attack itself does not work"
    for path in (
        "/etc/shiftmaster-backup/restore.conf", "/etc/shadow", "/etc/hostname", "/etc/ssl/shiftmaster/host.key",
        "/var/log/postgresql/postgresql-17-main.log", "/proc/self/environ", "/proc/1/root/etc/shadow",
        "/etc/postgresql/17/main/pg_hba.conf", "/var/www/shiftmaster/shared/.env",
    ):  # fmt: skip
        message = taken(hosts.backup_server, "recovery-trixie", path)
        assert "code 0" not in message and "unable to" in message, (path, message)
    # A link of postgres leads to nothing either.
    hosts.app.shell("runuser -u postgres -- ln -sfn /etc/shadow /var/lib/postgresql/17/out")
    try:
        message = taken(hosts.backup_server, "recovery-trixie", "/var/lib/postgresql/17/out")
        assert "code 0" not in message and "root:" not in message, message
    finally:
        hosts.app.shell("rm /var/lib/postgresql/17/out")


@pytest.mark.parametrize(
    "directory",
    [
        "/var/lib/postgresql", "/var/lib/postgresql/17/main", "/var/lib/pgbackrest", "/var/log/pgbackrest",
        "/var/log/postgresql", "/run/postgresql", "/var/lib/shiftmaster-backup/server", "/etc", "/usr",
    ],
)  # fmt: skip
def test_the_backup_server_writes_no_file_of_the_database_host(hosts, directory):
    hosts.app.shell(f"rm -f {directory}/planted")
    message = client(
        hosts.backup_server, "recovery-trixie", f"--repo1-path={directory} repo-put planted", stdin="planted\n"
    )
    assert "code 0" not in message and hosts.app.shell(f"ls {directory}/planted 2>&1", check=False).startswith(
        "ls: "
    ), message
    hosts.app.shell(f"mkdir -p {directory} && install -m 666 /dev/null {directory}/kept")
    client(hosts.backup_server, "recovery-trixie", f"--repo1-path={directory} repo-rm kept")
    hosts.app.shell(f"rm {directory}/kept")


def test_the_server_of_the_database_host_is_no_superuser_of_the_database(hosts):
    """It runs the SQL that the backup server sends: as its own user, which is all that it can be."""
    user = hosts.app.shell("systemctl show --property=User --value pgbackrest.service").strip()

    def sql(statement: str, login: str, database: str = "postgres") -> str:
        become = f"setpriv --reuid {user} --regid {user} --clear-groups"
        return hosts.app.shell(
            f"cd /; {become} psql -XAtw -h /run/postgresql -U {login} -v ON_ERROR_STOP=1 {database} 2>&1; echo code $?",
            check=False, stdin=statement,
        )  # fmt: skip

    assert "code 0" in sql("SELECT 1", user)
    hosts.app.shell("rm -f /tmp/by-sql /var/lib/postgresql/by-sql")
    for statement in (
        "COPY (SELECT 1) TO PROGRAM 'touch /var/lib/postgresql/by-sql'",
        "COPY (SELECT 1) TO '/var/lib/postgresql/by-sql'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT lo_import('/etc/passwd')",
        "ALTER SYSTEM SET archive_command = 'id'",
        "CREATE TABLE public.mine (id int)",
        "CREATE ROLE mine SUPERUSER",
        "SET ROLE postgres",
        "SELECT rolpassword FROM pg_authid",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
    ):
        assert "code 0" not in sql(statement, user), statement
    assert hosts.app.shell("ls /var/lib/postgresql/by-sql 2>/dev/null", check=False) == ""
    for login, database in (("postgres", "postgres"), (user, "shiftmaster"), (user, "backup"), ("backup", "backup")):
        assert "code 0" not in sql("SELECT 1", login, database), (login, database)


def test_the_database_host_reads_the_repository_and_no_other_file_of_the_backup_server(hosts):
    repository = "/var/backups/shiftmaster/pgbackrest"
    control = taken(hosts.app, "recovery-repository", f"{repository}/archive/shiftmaster/archive.info")
    assert "code 0" in control, "the attack itself does not work"
    receiver = hosts.backup_server.shell("systemctl show --property=MainPID --value shiftmaster-backup-wal").strip()
    for path in (
        "/etc/shiftmaster-backup/pgpass.postgres", "/etc/shiftmaster-backup/restore.conf", "/etc/hostname",
        "/etc/ssl/shiftmaster/host.key", f"/proc/{receiver}/environ", f"/proc/{receiver}/root/etc/hostname",
    ):  # fmt: skip
        message = taken(hosts.app, "recovery-repository", path)
        assert "code 0" not in message and "unable to" in message, (path, message)


def test_the_database_host_adds_to_the_archive_and_changes_no_backup(hosts):
    repository, backup_server = "/var/backups/shiftmaster/pgbackrest", hosts.backup_server
    closed = [
        f"{repository}/backup",
        repository,
        "/var/backups/shiftmaster/wal",
        "/var/lib/postgresql",
        "/var/lib/pgbackrest",
    ]
    backup_server.shell(f"rm -f {' '.join(directory + '/planted' for directory in closed)}")

    def planted(directory: str) -> bool:
        client(hosts.app, "recovery-repository", f"--repo1-path={directory} repo-put planted", stdin="planted\n")
        return backup_server.shell(f"ls {directory}/planted 2>/dev/null", check=False) != ""

    assert planted(f"{repository}/archive"), "the attack itself does not work"
    backup_server.shell(f"rm {repository}/archive/planted")
    assert [directory for directory in closed if planted(directory)] == []
    backup_server.shell(
        f"runuser -u postgres -- touch {repository}/backup/precious /var/backups/shiftmaster/wal/precious"
    )
    try:
        for directory in (f"{repository}/backup", "/var/backups/shiftmaster/wal"):
            client(hosts.app, "recovery-repository", f"--repo1-path={directory} repo-rm precious")
            backup_server.shell(f"ls {directory}/precious")
    finally:
        backup_server.shell(f"rm -f {repository}/backup/precious /var/backups/shiftmaster/wal/precious")


def test_the_server_puts_no_link_into_the_archive(hosts):
    """As code that runs in it: pgbackrest expire, outside of the unit, follows a link and empties all backups."""
    archive = "/var/backups/shiftmaster/pgbackrest/archive"
    words = f"touch {archive}/planted; ln -s ../backup {archive}/link; mkfifo {archive}/pipe; true"
    try:
        hosts.backup_server.shell(
            "sed -e 's#^ExecStart=.*#ExecStart=/usr/bin/sh /usr/local/attack#; s/^Type=.*/Type=oneshot/; "
            "s/^Restart=.*/Restart=no/' /etc/systemd/system/pgbackrest.service > /run/systemd/system/attack.service; "
            "cat > /usr/local/attack; systemctl daemon-reload; systemctl start attack.service",
            stdin=words,
        )
        hosts.backup_server.shell(f"ls {archive}/planted")
        assert hosts.backup_server.shell(f"find {archive} ! -type f ! -type d") == ""
    finally:
        hosts.backup_server.shell(
            f"cd {archive}; rm -f planted link pipe /usr/local/attack /run/systemd/system/attack.service; "
            "systemctl daemon-reload"
        )


@pytest.mark.parametrize("directory", ["/run", "/run/shiftmaster-pgbackrest", "/tmp", "/var/tmp", "/dev/shm"])
def test_the_server_does_not_use_up_the_memory_of_its_host(hosts, directory):
    for attacker, host, peer in (
        (hosts.backup_server, hosts.app, "recovery-trixie"),
        (hosts.app, hosts.backup_server, "recovery-repository"),
    ):
        try:
            message = client(attacker, peer, f"--repo1-path={directory} repo-put planted", stdin="x" * (3 << 20))
            assert "code 0" not in message, message
            process = host.shell("systemctl show --property=MainPID --value pgbackrest.service").strip()
            # Processes of the host, and of the unit.
            for view in ("", f"nsenter --target {process} --mount --root --wd "):
                found = host.shell(f"{view}find {directory} -maxdepth 1 -name 'planted*' -size +1M", check=False)
                assert not found, found
            assert host.shell(f"find {directory} -maxdepth 1 -name 'planted*'", check=False) == ""
        finally:
            host.shell("systemctl restart pgbackrest.service")


def test_a_segment_of_another_timeline_removes_no_received_wal(hosts):
    """The database host adds it to the archive, where its name comes after all others."""
    directory = "archive/shiftmaster/17-1/000000FF00000000"
    name = "000000FF00000000000000FF"
    put = f"--repo1-path=/var/backups/shiftmaster/pgbackrest repo-put {directory}/{name}-{'0' * 40}.zst"
    count = "ls /var/backups/shiftmaster/wal | grep -cE '^[0-9A-F]{24}'"
    try:
        assert "code 0" in client(hosts.app, "recovery-repository", put, stdin="x"), "the attack itself does not work"
        assert int(hosts.backup_server.shell(count)) > 0
        request = '{"id": "hostile", "target": "latest", "parts": ["database"]}'
        plan = json.loads(hosts.backup_server.shell("shiftmaster-backup restore plan", stdin=request).splitlines()[-1])
        assert plan["received"] > 0 and plan["last_segment"] < name
    finally:
        hosts.backup_server.shell(f"rm -rf /var/backups/shiftmaster/pgbackrest/{directory}")


def test_other_keys_of_the_hosts_cannot_log_in(hosts):
    """Exporters, PostgreSQL and Redis read host.key."""
    for host, peer in ((hosts.backup_server, "recovery-trixie"), (hosts.app, "recovery-repository")):
        message = client(host, peer, "--repo1-path=/usr/share repo-ls", key="/etc/ssl/shiftmaster/host")
        assert "code 0" not in message, message
        key = host.shell("sed -n 's/^tls-server-key-file=//p' /etc/pgbackrest.conf").strip()
        assert host.shell(f"stat -c '%U %G %a' {key}").strip() == "root postgres 640"


def test_the_server_finds_nothing_else_of_its_host(hosts):
    """As of the code that runs in it, should pgBackRest have a hole."""
    allowed = {
        hosts.app: {"/var", "/var/lib"},
        hosts.backup_server: {
            "/var",
            "/var/backups",
            "/var/backups/shiftmaster",
            "/var/backups/shiftmaster/pgbackrest",
        },
    }
    mounted = [
        "/etc/passwd", "/etc/group", "/etc/pgbackrest.conf", "/etc/ssl/shiftmaster/pgbackrest", "/usr", "/dev",
        "/run/shiftmaster-pgbackrest", "/run/postgresql", "/run/systemd", "/var/lib/postgresql",
        "/var/backups/shiftmaster/pgbackrest/archive", "/var/backups/shiftmaster/pgbackrest/backup",
    ]  # fmt: skip
    prune = " -o ".join(f"-path {path}" for path in mounted)
    for host, above in allowed.items():
        process = host.shell("systemctl show --property=MainPID --value pgbackrest.service").strip()
        enter = f"nsenter --target {process} --mount --root --wd /usr/bin/find"
        found = host.shell(f"{enter} / \\( {prune} \\) -prune -o -print 2>/dev/null", check=False).split()
        assert "/etc/ssl/shiftmaster" in found
        empty = {"/", "/etc", "/etc/ssl", "/etc/ssl/shiftmaster", "/run", "/lib", "/lib64", "/proc", "/sys", "/home"}
        empty |= {"/root", "/tmp", "/var/tmp"}
        found = {path for path in found if not path.startswith(("/lib/", "/lib64/"))}
        assert found <= above | empty, found - above - empty
        assert host.shell(f"sed -n 's/^Seccomp:\\t//p' /proc/{process}/status").strip() == "2"


# ---------------------------------------------------------------------------------------------------- the units


def test_units_are_confined(hosts):
    """By what systemd reports about each. The backup itself is root and may make setgid files; its unit shows why."""
    allowed = {"shiftmaster-backup.service": 2.7, "shiftmaster-backup@x.service": 2.7}
    for host in (hosts.backup_server, hosts.app):
        listed = host.shell("systemctl list-unit-files --no-legend 'shiftmaster-backup*.service'").splitlines()
        units = [line.split()[0].replace("@.", "@x.") for line in listed] + ["pgbackrest.service"]
        assert units
        for unit in units:
            message = host.shell(f"systemd-analyze security --no-pager {unit} | tail -n 1")
            assert float(message.split(": ")[1].split()[0]) <= allowed.get(unit, 2.5), message


def test_the_reader_of_the_backup_server_is_sandboxed(hosts):
    hosts.backup_server.shell(f"(sleep 20 | {SERVER_SSH} {USER} send files > /dev/null 2>&1 &) ")
    find = "systemctl list-units --no-legend --plain 'shiftmaster-backup-send-*.service' | cut -d' ' -f1"
    wait_for(lambda: hosts.app.shell(find).strip() != "", 15, "the sender")
    unit = hosts.app.shell(find).split()[0]
    message = hosts.app.shell(f"systemd-analyze security --no-pager {unit} | tail -n 1")
    assert float(message.split(": ")[1].split()[0]) <= 2.5, message


def test_the_receiver_of_wal_works_confined(hosts):
    active = "SELECT active FROM pg_replication_slots WHERE slot_name = 'shiftmaster_backup'"
    hosts.backup_server.shell("systemctl restart shiftmaster-backup-wal")
    time.sleep(1)
    wait_for(lambda: hosts.app.sql(active) == "t", 60, "the receiver")
