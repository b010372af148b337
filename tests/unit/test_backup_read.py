"""What the keeper's key may do on another host: read what is listed, and nothing else."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import shlex
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "roles/backup/files/shiftmaster-backup-read"
LISTED = ["/etc/nginx", "/var/www/shiftmaster"]


@pytest.fixture(scope="module")
def read():
    loader = importlib.machinery.SourceFileLoader("shiftmaster_backup_read", str(PATH))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


# As rsync 3.2 and 3.4 ask for it.
GOOD = "rsync --server --sender -logDtpRre.iLsfxCIvu --numeric-ids . /etc/nginx /var/www/shiftmaster"


def test_what_rsync_asks_for_is_done(read):
    assert read.refusal(shlex.split(GOOD), LISTED) == ""


@pytest.mark.parametrize(
    "command",
    [
        "",
        "sh",
        "rsync --server -logDtpRre.iLsfxCIvu . /etc/nginx",
        GOOD + " /etc/shadow",
        GOOD.replace("/etc/nginx", "/etc/nginx/../shadow"),
        GOOD.replace("/etc/nginx", "/etc/nginx/"),
        GOOD.replace("--numeric-ids", "--remove-source-files"),
        GOOD.replace("--numeric-ids", "--log-file=/etc/cron.d/x"),
        GOOD.replace("--numeric-ids", "--config=/tmp/x --daemon"),
        "rsync --server --sender -logDtpRre.iLsfxCIvu .",
        "rsync --server --sender -logDtpRre.iLsfxCIvu",
    ],
)
def test_nothing_else_is(read, command):
    assert read.refusal(shlex.split(command), LISTED)


def test_the_lock_of_deploys_may_be_read(read, monkeypatch, tmp_path, capsys):
    lock = tmp_path / "shiftmaster/shared/state/lock.json"
    lock.parent.mkdir(parents=True)
    listed = tmp_path / "read.json"
    listed.write_text(json.dumps(["/etc/nginx", str(tmp_path / "shiftmaster")]))
    monkeypatch.setattr(read, "LIST", str(listed))
    monkeypatch.setattr(read.sys, "argv", ["read", "lock"])
    assert read.main() == 0 and capsys.readouterr().out == ""
    lock.write_text('{"operation": "deploy"}')
    assert read.main() == 0 and json.loads(capsys.readouterr().out) == {"operation": "deploy"}
