"""Mails of scheduled playbooks: changes, once; and the checklist with its page."""

from __future__ import annotations

import pytest
from receivers import Receivers
from support import wait_for

MAIL = {
    "notify_smtp_host": "localhost",
    "notify_smtp_security": "none",
    "notify_email_to": ["admin@hospital.local"],
    "notify_language": "ja",
}


@pytest.fixture
def mails(monkeypatch, tmp_path):
    """A function that returns the mails since the last call; the playbooks' options that lead there."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    receivers = Receivers(str(tmp_path / "messages.jsonl"))
    receivers.smtp.require_tls = False
    receivers.start()
    seen = 0

    def since():
        nonlocal seen
        every = receivers.record.of("smtp")
        new, seen = every[seen:], len(every)
        assert [one for one in new if not one["ok"]] == []
        return new

    since.options = {**MAIL, "notify_smtp_port": receivers.ports["smtp"]}
    yield since
    receivers.stop()


def test_health_notifies_of_changes_only(operations, mails):
    def health():
        return operations.run("playbooks/health.yml", health_notify=True, health_language="ja", **mails.options)

    assert health().code == 0 and mails() == []
    operations.shell("systemctl stop redis-server")
    try:
        run = health()
        assert run.code == 2, run.output[-3000:]
        (mail,) = mails()
        assert "システム異常を検知しました" in mail["headers"]["subject"] and operations.host in mail["plain"]
        assert "REDIS" in mail["plain"] and mail["headers"]["from"] == "system@shiftmaster.local"
        assert health().code == 2 and mails() == []
    finally:
        operations.shell("systemctl start redis-server")
    wait_for(lambda: operations.run("playbooks/health.yml").code == 0, 120, "a healthy host")
    assert health().code == 0
    (mail,) = mails()
    assert "システムは正常です" in mail["headers"]["subject"]
    assert health().code == 0 and mails() == []


def test_a_report_that_no_server_accepted_is_sent_the_next_time(operations, mails):
    no_server = {**mails.options, "notify_smtp_port": 1}
    operations.shell("systemctl stop redis-server")
    try:
        run = operations.run("playbooks/health.yml", health_notify=True, **no_server)
        assert run.code == 2 and run.prints("email was not notified"), run.output[-3000:]
        operations.run("playbooks/health.yml", health_notify=True, **mails.options)
        assert len(mails()) == 1
    finally:
        operations.shell("systemctl start redis-server")


def test_a_report_that_cannot_be_written_is_printed_and_sent(operations, mails):
    operations.shell("systemctl stop redis-server")
    try:
        run = operations.run(
            "playbooks/health.yml", health_notify=True, health_report_file="/nowhere/x", **mails.options
        )
        assert run.code == 2 and run.prints("Overall health", "/nowhere"), run.output[-3000:]
        assert len(mails()) == 1
    finally:
        operations.shell("systemctl start redis-server")
    wait_for(lambda: operations.run("playbooks/health.yml").code == 0, 120, "a healthy host")


def test_a_checklist_is_mailed_with_its_page(operations, mails):
    run = operations.run(
        "playbooks/checklist.yml", period="morning", language="ja", checklist_mail=True, **mails.options
    )
    assert run.code == 0, run.output[-3000:]
    (mail,) = mails()
    # No backups are set up here, and the checklist reports it.
    assert "朝のチェックリスト: 要対応の項目があります" in mail["headers"]["subject"]
    assert "バックアップ" in mail["plain"] and "バックアップなし" in mail["attached"]["morning.html"]
    assert operations.run("playbooks/checklist.yml").prints("Which checklist?", "period=")
