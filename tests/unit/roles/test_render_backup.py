"""The templates of role backup, rendered by Ansible."""

from __future__ import annotations

import base64
import configparser
import datetime
import json
import re
import subprocess
from pathlib import Path

import pytest
import rendered

FACTS = {"distribution_major_version": "13", "distribution_release": "trixie"}


def render(role, template, **variables):
    return rendered.render(role, template, ansible_facts=FACTS, **variables)


REMOTE = {
    "backup_tls_peer": "db1",
    "backup_database_local": False,
    "backup_database_endpoint": {"host": "db1", "port": 5432, "sslmode": "verify-full"},
}


def configuration(for_restore=False, **variables):
    text = render("backup", "pgbackrest.conf.j2", __backup_for_restore=for_restore, inventory_hostname="h", **variables)
    found = configparser.ConfigParser()
    found.read_string(text)
    return found


def config(for_restore=False, **variables):
    found = configuration(for_restore, **variables)
    return found["global"], found["shiftmaster"]


def test_on_one_host_everything_is_local_and_encrypted():
    common, stanza = config(backup_cipher_passphrase="p" * 20, backup_databases=["shiftmaster"])
    assert common["repo1-path"] == "/var/backups/shiftmaster/pgbackrest"
    assert (common["repo1-cipher-type"], stanza["repo1-cipher-pass"]) == ("aes-256-cbc", "p" * 20)
    # Its own expiry never comes.
    assert (common["expire-auto"], common["repo1-retention-full"]) == ("n", "9999999")
    assert "tls-server-address" not in common and "pg1-host" not in stanza


CHANGED = {
    "backup_stanza": "shiftmaster-2", "backup_cipher_passphrase": "n" * 20, "backup_databases": ["shiftmaster"],
    "backup_cipher_passphrase_previous": {"shiftmaster": "p" * 20},
}  # fmt: skip


def test_each_stanza_has_its_own_passphrase():
    for more in ({}, {"for_restore": True}, REMOTE):
        text = configuration(**CHANGED, **more)
        found = {name: dict(text[name]) for name in ("shiftmaster", "shiftmaster-2")}
        assert "repo1-cipher-pass" not in text["global"]
        assert found["shiftmaster"] == {"repo1-cipher-pass": "p" * 20}
        assert found["shiftmaster-2"]["repo1-cipher-pass"] == "n" * 20 and "pg1-path" in found["shiftmaster-2"]
    assert text["global"]["tls-server-auth"] == "db1=shiftmaster-2,shiftmaster"
    text = configuration(backup_repository_host="b", backup_tls_peer="b", backup_server=False, **CHANGED)
    assert "cipher" not in str({name: dict(text[name]) for name in text})
    assert text["global"]["tls-server-auth"] == "b=shiftmaster-2,shiftmaster"


@pytest.mark.parametrize(
    ("conf", "there", "variables", "rejected"),
    [
        ("p", ["shiftmaster"], {}, False),
        ("p", ["shiftmaster"], CHANGED, False),
        ("pn", ["shiftmaster", "shiftmaster-2"], CHANGED, False),
        ("pn", ["shiftmaster-2"], {**CHANGED, "backup_cipher_passphrase_previous": {}}, False),
        ("n", [], {}, False),
        # Another passphrase for the same stanza; a new stanza without the passphrase of the one that is there.
        ("o", ["shiftmaster"], {}, True),
        ("p", ["shiftmaster"], {**CHANGED, "backup_cipher_passphrase_previous": {}}, True),
        ("pn", ["shiftmaster", "shiftmaster-2"], {**CHANGED, "backup_cipher_passphrase": "x" * 20}, True),
    ],
)
def test_a_passphrase_that_would_lose_backups_is_rejected(conf, there, variables, rejected):
    text = "[global]\n" + "".join(f"[x]\nrepo1-cipher-pass={one * 20}\n" for one in conf)
    known = {"backup_cipher_passphrase": "p" * 20, "backup_databases": ["shiftmaster"], "backup_database_password": "d"}
    known["__backup_stanzas"] = {"files": [{"path": f"/var/backups/x/backup/{name}"} for name in there]}
    known["__backup_conf"] = {"content": base64.b64encode(text.encode()).decode()}
    found = rendered.problems("backup", rendered.templar("backup", **{**known, **variables}, ansible_facts=FACTS))
    assert len(found) == rejected and all("vault_backup_cipher_passphrase_previous" in one for one in found), found


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 0),
        ({"backup_cipher_passphrase_previous": {"shiftmaster-2": "p" * 20}}, 1),
        ({"backup_cipher_passphrase": "p" * 20}, 1),
        ({"backup_cipher_passphrase_previous": {"shiftmaster": "p p"}}, 1),
        ({"backup_cipher_passphrase_previous": {"../x": "p" * 20}}, 1),
        ({"backup_stanza": "a b"}, 1),
        ({"backup_restic_password": "r" * 20, "backup_restic_password_previous": ["r" * 20]}, 1),
        ({"backup_restic_password": "r" * 20, "backup_restic_password_previous": ["s" * 20]}, 0),
        ({"backup_offsite_password": "r" * 20, "backup_offsite_password_previous": ["r" * 20]}, 1),
    ],
)
def test_secrets_of_before_are_checked_before_anything_changes(changes, count):
    variables = {**CHANGED, "backup_database_password": "d", **changes}
    found = rendered.problems("backup", rendered.templar("backup", **variables, ansible_facts=FACTS))
    assert len(found) == count, found


def test_the_backup_server_connects_to_the_database_for_backups_and_not_for_restores():
    common, stanza = config(**REMOTE)
    assert stanza["pg1-host"] == "db1" and stanza["pg1-host-type"] == "tls"
    assert common["tls-server-auth"] == "db1=shiftmaster"
    _common, stanza = config(for_restore=True, **REMOTE)
    assert "pg1-host" not in stanza


def test_the_database_host_has_no_passphrase_where_another_host_stores_the_backups():
    common, stanza = config(
        backup_repository_host="backup_server",
        backup_tls_peer="backup_server",
        backup_server=False,
        backup_cipher_passphrase="secret",
    )
    assert common["repo1-host"] == "backup_server" and "repo1-path" not in common
    assert "repo1-cipher-pass" not in common and "repo1-cipher-pass" not in stanza


def server(**variables):
    """The settings of the unit of pgBackRest's server, as lists of values."""
    text = render("backup", "server.service.j2", inventory_hostname="h", **variables)
    found = {}
    for line in text.splitlines():
        name, separator, words = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(name, []).extend(words.split())
    return found


def test_pgbackrests_server_writes_nothing_of_the_database_and_is_not_postgres():
    unit = server(backup_server=False, backup_tls_peer="backup_server", backup_tablespace_dirs=["/srv/postgresql"])
    assert unit["User"] == unit["Group"] == ["pgbackrest"] and "BindPaths" not in unit
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == ["CAP_DAC_READ_SEARCH"]
    assert {"/var/lib/postgresql", "/run/postgresql", "/srv/postgresql"} < set(unit["BindReadOnlyPaths"])
    assert not [path for path in unit["BindReadOnlyPaths"] if "backups" in path]


def test_pgbackrests_server_writes_the_archive_of_the_repository_alone():
    unit = server(backup_tls_peer_address="192.0.2.7", backup_dir="/backups", **REMOTE)
    assert unit["User"] == ["postgres"] and unit["CapabilityBoundingSet"] == [] and "AmbientCapabilities" not in unit
    assert unit["BindPaths"] == ["/backups/pgbackrest/archive"]
    assert "/backups/pgbackrest/backup" in unit["BindReadOnlyPaths"]
    assert not [path for path in unit["BindReadOnlyPaths"] if "postgresql" in path]
    assert (unit["IPAddressDeny"], unit["IPAddressAllow"]) == (["any"], ["192.0.2.7"])


def test_pgbackrests_server_cannot_escape_by_proc():
    """Each of these settings would mount /proc, where another process of postgres leads to the host."""
    for unit in (server(**REMOTE), server(backup_server=False, backup_tls_peer="backup_server")):
        assert unit["MountAPIVFS"] == ["no"] and "PrivateUsers" not in unit
        # The last one counts.
        last = {name: unit[name][-1] for name in ("ProtectProc", "ProcSubset")}
        assert last == {"ProtectProc": "default", "ProcSubset": "all"}
        for name in ("ProtectKernelTunables", "ProtectControlGroups", "ProtectHostname"):
            assert unit[name][-1] == "no"
        # IPC objects of postgres outside of the unit would be removed with its end.
        assert "RemoveIPC" not in unit


def test_pgbackrests_server_makes_no_links_that_others_follow():
    """pgbackrest expire, outside of the unit, would empty a directory that the archive leads to."""
    for unit in (server(**REMOTE), server(backup_server=False, backup_tls_peer="backup_server")):
        assert {"~symlink", "symlinkat", "mknod", "mknodat", "io_uring_setup"} <= set(unit["SystemCallFilter"])


def test_pgbackrests_server_fills_nothing_of_its_host():
    for unit in (server(**REMOTE), server(backup_server=False, backup_tls_peer="backup_server")):
        mounted = {value.split(":")[0]: value.split(":")[1].split(",") for value in unit["TemporaryFileSystem"]}
        assert set(mounted) == {"/run", "/run/shiftmaster-pgbackrest", "/tmp", "/dev/shm"} and "ro" in mounted["/run"]
        assert all({"size=1M", "nr_inodes=64"} < set(options) for options in mounted.values())
        # One of the host would be mounted in its place.
        assert unit["PrivateTmp"][-1] == "no" and "RuntimeDirectory" not in unit
        assert {"MemoryMax", "TasksMax", "LimitFSIZE", "TimeoutStopSec"} < set(unit)
    guard = ["/usr/local/sbin/shiftmaster-backup", "guard", "read", "/backups/pgbackrest/archive"]
    assert server(backup_dir="/backups", **REMOTE)["ExecStart"] == [*guard, "/usr/bin/pgbackrest", "server"]


def test_the_receiver_of_wal_leaves_room():
    text = render("backup", "wal.service.j2", inventory_hostname="h", backup_dir="/backups", **REMOTE)
    (command,) = re.findall(r"^ExecStart=(.*\n.*)$", text, re.MULTILINE)
    words = command.replace("\\\n", "").split()
    assert words[:4] == ["/usr/local/sbin/shiftmaster-backup", "guard", "wait", "/backups/wal"]
    assert words[4].endswith("/pg_receivewal") and "--directory=/backups/wal" in words
    assert {"MemoryMax=1G", "TasksMax=16", "LimitFSIZE=32M"} < set(text.splitlines())


def test_data_of_another_host_does_not_use_up_the_memory():
    text = render("backup", "backup.service.j2", __backup_instance="", inventory_hostname="h")
    assert {"MemoryMax=50%", "OOMPolicy=continue"} < set(text.splitlines())


def test_a_unit_for_each_run_reports_a_kill():
    text = render("backup", "backup.service.j2", __backup_instance=" %i", inventory_hostname="h")
    assert "ExecStart=/usr/local/sbin/shiftmaster-backup run %i" in text
    assert "OnFailure=shiftmaster-backup-killed@%n.service" in text


def test_the_unit_that_ends_a_restore_at_boot_starts_before_postgresql_and_is_not_pulled_in_by_it():
    text = render("backup", "undo.service.j2", inventory_hostname="h", backup_postgresql_version=17)
    assert "\nBefore=postgresql.service postgresql@17-main.service\n" in text
    assert "\nWantedBy=multi-user.target\n" in text and "RequiredBy" not in text
    assert text.count("shiftmaster-backup undo\n") == 1


def test_the_backup_server_writes_little_to_the_journal_of_its_sources(tmp_path):
    """sudo logs the complete argument. With 120 kB at a time the journal held nothing else within minutes (tried)."""
    template = tmp_path / "limits.j2"
    template.write_text("{{ __backup_source_limits }}")
    line = render("backup", template, backup_source_from="192.0.2.9")
    command = re.fullmatch(r'restrict,from="192.0.2.9",command="(.*)"\s*', line).group(1).replace('\\"', '"')
    (tmp_path / "sudo").write_text('#!/bin/sh\nprintf %s "$3"\n')
    (tmp_path / "sudo").chmod(0o755)

    def passed(request):
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SSH_ORIGINAL_COMMAND": request}
        return subprocess.run(["sh", "-c", command], env=env, text=True, capture_output=True, check=True).stdout

    assert passed("send configuration --server . /etc").split()[:2] == ["send", "configuration"]
    assert passed("$(id)`id`%s\"' " + "x" * 120000) == "$(id)`id`%s\"' " + "x" * 50
    assert passed("-n %d lock") == "-n %d lock"


@pytest.mark.parametrize(
    "step", ["plan", "here", "scratch", "table", "received", "wal_again", "files", "configuration"]
)
def test_the_unit_of_each_step_of_a_restore_is_confined(tmp_path, step):
    template = tmp_path / "properties.j2"
    template.write_text("{{ __backup_restore_properties | join('|') }}")
    lines = render("backup", template, backup_restore_step=step, backup_dir="/backups").strip().split("|")
    for line in (
        "MemoryMax=50%",
        "OOMPolicy=continue",
        "NoNewPrivileges=true",
        "SystemCallFilter=@system-service",
        "RestrictNamespaces=true",
        "UMask=0077",
    ):
        assert line in lines
    (bound,) = [line for line in lines if line.startswith("CapabilityBoundingSet=")]
    assert not {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"} & set(bound.split("=")[1].split())
    # Files are restored wherever they belong.
    anywhere = step in ("files", "configuration")
    assert ("ProtectSystem=strict" in lines, "PrivateTmp=true" in lines) == (not anywhere, not anywhere)
    assert "ReadWritePaths=-/backups" in lines


@pytest.mark.parametrize(
    ("variables", "users"),
    [
        ({}, ["shiftmaster-verify"]),
        ({"backup_databases": []}, []),
        (REMOTE, ["shiftmaster-verify"]),
        (
            {"backup_server": False, "backup_tls_peer": "backup_server", "backup_repository_host": "backup_server"},
            ["pgbackrest"],
        ),
    ],
)
def test_a_restored_server_has_a_user_of_its_own_where_backups_are_verified(tmp_path, variables, users):
    template = tmp_path / "users.j2"
    template.write_text("{{ __backup_needs.users | to_json }}")
    found = json.loads(render("backup", template, **{"backup_databases": ["shiftmaster"], **variables}))
    assert [user["name"] for user in found] == users
    assert all(user["group"] == user["name"] and user["shell"] == "/usr/sbin/nologin" for user in found)


def test_units_of_runs_know_where_metrics_go_and_do_not_pile_up():
    for name in ("backup.service.j2", "killed@.service.j2"):
        text = render("backup", name, __backup_instance=" %i", inventory_hostname="h", backup_textfile_dir="/metrics")
        assert "\nEnvironment=SHIFTMASTER_BACKUP_TEXTFILE_DIR=/metrics\n" in text
        assert "\nCollectMode=inactive-or-failed\n" in text


def test_the_key_of_a_host_that_a_run_leaves_out_stays(tmp_path):
    template = tmp_path / "known_hosts.j2"
    template.write_text("{{ __backup_known_hosts }}")
    sources = [{"address": f"192.0.2.{number}", "host_key": key} for number, key in ((1, "ssh-ed25519 NEW"), (2, ""))]
    before = ["ssh-ed25519 AAAA shiftmaster-backup", "known 192.0.2.1 ssh-ed25519 OLD", "known 192.0.2.2 ssh-ed25519 B"]
    text = render("backup", template, backup_sources=sources, __backup_keys={"stdout_lines": before})
    assert text.split("\n")[:2] == ["192.0.2.1 ssh-ed25519 NEW", "192.0.2.2 ssh-ed25519 B"]
    assert render("backup", template, backup_sources=sources).split() == ["192.0.2.1", "ssh-ed25519", "NEW"]


def test_the_off_site_host_is_identified_with_its_port(tmp_path):
    template = tmp_path / "known_hosts.j2"
    template.write_text("{{ __backup_offsite_known_hosts_text }}")
    outside = {
        "backup_offsite_repository": "sftp:copies@offsite.example.jp:/srv/x",
        "backup_offsite_host_key": "ssh-ed25519 AAAA",
    }
    assert render("backup", template, **outside).strip() == "offsite.example.jp ssh-ed25519 AAAA"
    text = render("backup", template, backup_offsite_ssh_port=2222, **outside)
    assert text.strip() == "[offsite.example.jp]:2222 ssh-ed25519 AAAA"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {
                "backup_offsite_repository": "rest:https://10.0.0.9:8000/one/",
                "backup_offsite_rest_password": "a/b@c:d%",
            },
            {"RESTIC_REPOSITORY": "rest:https://one:a%2Fb%40c%3Ad%25@10.0.0.9:8000/one/"},
        ),
        ({"backup_offsite_repository": "sftp:one@store:/srv"}, {}),
        (
            {"backup_offsite_repository": "s3:https://store/one", "backup_offsite_access_key": "key"},
            {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": ""},
        ),
    ],
)
def test_secrets_of_the_off_site_copy_are_in_the_environment_of_restic(options, expected):
    templar = rendered.templar("backup", ansible_facts=FACTS, backup_offsite_rest_user="one", **options)
    text = templar.template(rendered.trusted("{{ __backup_offsite_environment_text }}"))
    assert (json.loads(text) if isinstance(text, str) else text) == expected


def test_health_results_become_metrics():
    checks = [{"name": name, "status": name} for name in ("healthy", "warning", "critical", "unknown")]
    text = render("health", "health.prom.j2", __health_host={"report": {"checks": checks}}, now=datetime.datetime.now)
    metrics = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert metrics.pop("shiftmaster_health_check_last_run_timestamp_seconds").isdigit()
    assert metrics == {
        'shiftmaster_health_check_status{check="%s"}' % name: value
        for name, value in {"healthy": "0", "warning": "1", "critical": "2", "unknown": "2"}.items()
    }


CRON = Path(__file__).resolve().parents[3] / "roles/schedule/templates"


def test_environments_on_one_machine_do_not_lock_each_other_out():
    common = {
        "base_timezone": "Asia/Tokyo", "schedule_vault_file": "/etc/vault", "schedule_at": "02:05",
        "schedule_playbook": "ansible-playbook -i hosts", "playbook_dir": "/srv/playbooks",
        "schedule_report_host": "m1", "schedule_language": "ja",
        "schedule_reports": [
            {"name": "health watch", "job": "health watch", "frequency": "minutes", "every": 5},
            {"name": "weekly", "job": "checklist", "frequency": "weekly", "days": ["MO"], "at": "08:15",
             "values": {"period": "weekly"}},
        ],
    }  # fmt: skip

    def lines(template, environment):
        text = render("backup", CRON / template, schedule_environment=environment, **common)
        assert "ANSIBLE_VAULT_PASSWORD_FILE=/etc/vault\n" in text
        return [line for line in text.splitlines() if " root cd " in line]

    (backup,) = lines("backup.cron.j2", "production")
    assert backup.startswith("5 2 * * * root cd /srv && flock --nonblock /run/shiftmaster-backup-production.lock ")
    watch, weekly = lines("reports.cron.j2", "production")
    assert watch.startswith("*/5 * * * * root ") and "playbooks/health.yml -e health_notify=true >" in watch
    assert weekly.startswith("15 8 * * 1 root ") and "-e report_host=m1 -e period=weekly >" in weekly
    found = [backup, watch, weekly, *lines("backup.cron.j2", "test"), *lines("reports.cron.j2", "test")]
    for pattern in (r"--nonblock (\S+)", r">(\S+)"):
        assert len({re.search(pattern, line)[1] for line in found}) == len(found)


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        ({}, []), ({"backup_keep_days": 30, "backup_keep_months": 12, "backup_keep_years": 7}, []),
        ({"backup_keep_days": 60}, ["days"]), ({"backup_keep_years": 8, "backup_keep_months": 13}, ["months", "years"]),
        ({"backup_keep_days": 60, "offsite_keep_days": 60}, []),
    ],
)  # fmt: skip
def test_a_copy_off_site_is_kept_as_long_as_the_backup(kept, found):
    users = [{"name": "shiftmaster", "password": "x" * 32}]
    known = rendered.templar("offsite", offsite_users=users, ansible_facts={"distribution_major_version": "13"}, **kept)
    shown = rendered.problems("offsite", known)
    assert [one.partition(" (")[0] for one in shown] == [f"offsite_keep_{part}" for part in found], shown
