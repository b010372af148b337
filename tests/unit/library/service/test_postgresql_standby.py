"""Where a standby's primary is, from its own configuration."""

from __future__ import annotations

import postgresql_standby as standby
import pytest


def test_files_of_pg_basebackup_are_read():
    """-R writes every value in quotes; the password is one of them."""
    text = (
        r"user=replicator password='it\'s \\ so' channel_binding=prefer host='db1.example.jp' port=5432"
        " sslmode='verify-full' sslrootcert=/etc/ssl/shiftmaster/ca.crt dbname=replication"
    )
    assert standby.environment(text) == {
        "PGUSER": "replicator", "PGPASSWORD": r"it's \ so", "PGCHANNELBINDING": "prefer", "PGHOST": "db1.example.jp",
        "PGPORT": "5432", "PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/etc/ssl/shiftmaster/ca.crt",
    }  # fmt: skip
    assert standby.environment("") == {}


@pytest.mark.parametrize("text", ["postgresql://replicator@db1/x", "host=db1 user='open", "host"])
def test_another_form_is_refused(text):
    with pytest.raises(ValueError, match="not of the form"):
        standby.environment(text)


def test_a_keyword_that_would_be_dropped_is_rejected():
    with pytest.raises(ValueError, match="has service, which is not known here"):
        standby.environment("service=primary user=replicator")


def test_tablespaces_and_wal_in_other_directories_are_detected(tmp_path):
    cluster = standby.Cluster.__new__(standby.Cluster)
    cluster.data = str(tmp_path)
    (tmp_path / "pg_tblspc").mkdir()
    (tmp_path / "pg_wal").mkdir()
    assert cluster.apart() == []
    (tmp_path / "pg_tblspc/16400").symlink_to("/srv/fast")
    (tmp_path / "pg_wal").rmdir()
    (tmp_path / "pg_wal").symlink_to("/srv/wal")
    assert cluster.apart() == [str(tmp_path / "pg_wal"), str(tmp_path / "pg_tblspc/16400")]


def test_a_member_of_a_cluster_is_left_to_patroni(monkeypatch):
    """Its data would be removed while Patroni's server goes on with it."""
    listed = "17 main 5432 online,recovery postgres /var/lib/postgresql/17/main /var/log/postgresql/x.log"
    monkeypatch.setattr(standby, "run", lambda *_command, **_more: listed)
    monkeypatch.setattr(standby.os.path, "exists", lambda path: path == "/etc/patroni/17-main.yml")
    with pytest.raises(standby.Failed, match="reinit 17-main"):
        standby.Cluster()
