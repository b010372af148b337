"""The templates of role backup, rendered by Ansible."""

from __future__ import annotations

import configparser
import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("rendering", Path(__file__).with_name("test_render_postgresql_redis.py"))
_rendering = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_rendering)
render = _rendering.render

REMOTE = {
    "backup_tls_peer": "db1",
    "backup_database_local": False,
    "backup_database_endpoint": {"host": "db1", "port": 5432, "sslmode": "verify-full"},
}


def config(for_restore=False, **variables):
    text = render("backup", "pgbackrest.conf.j2", __backup_for_restore=for_restore, inventory_hostname="h", **variables)
    found = configparser.ConfigParser()
    found.read_string(text)
    return found["global"], found["shiftmaster"]


def test_on_one_host_everything_is_local_and_encrypted():
    common, stanza = config(backup_cipher_passphrase="p" * 20, backup_databases=["shiftmaster"])
    assert common["repo1-path"] == "/var/backups/shiftmaster/pgbackrest"
    assert (common["repo1-cipher-type"], common["repo1-cipher-pass"]) == ("aes-256-cbc", "p" * 20)
    # Its own expiry never comes.
    assert (common["expire-auto"], common["repo1-retention-full"]) == ("n", "9999999")
    assert "tls-server-address" not in common and "pg1-host" not in stanza


def test_the_keeper_reaches_the_database_for_backups_and_not_for_restores():
    common, stanza = config(**REMOTE)
    assert stanza["pg1-host"] == "db1" and stanza["pg1-host-type"] == "tls"
    assert common["tls-server-auth"] == "db1=shiftmaster"
    _common, stanza = config(for_restore=True, **REMOTE)
    assert "pg1-host" not in stanza


def test_the_database_host_knows_no_passphrase_where_another_one_keeps_the_backups():
    common, _stanza = config(
        backup_repository_host="keeper",
        backup_tls_peer="keeper",
        backup_keeper=False,
        backup_cipher_passphrase="secret",
    )
    assert common["repo1-host"] == "keeper" and "repo1-cipher-pass" not in common and "repo1-path" not in common


def test_a_unit_for_each_run_tells_of_being_killed():
    text = render("backup", "backup.service.j2", __backup_instance=" %i", inventory_hostname="h")
    assert "ExecStart=/usr/local/sbin/shiftmaster-backup run %i" in text
    assert "OnFailure=shiftmaster-backup-killed@%n.service" in text
