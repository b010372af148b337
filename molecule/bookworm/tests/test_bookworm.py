"""Debian 12 with its own PostgreSQL 15 and Python 3.11: the same application, healthy and sandboxed."""

import re
from pathlib import Path

import pytest
from support import Operations


@pytest.fixture(scope="module")
def operations():
    return Operations(Path(__file__).parent.parent / "inventory", "bookworm-host")


def test_page_and_health(operations):
    assert "ShiftMaster" in operations.shell("curl -skS https://localhost/login/")
    assert operations.serves(30) == "2.0.0"


def test_versions_are_debian_12s(operations):
    assert operations.shell("runuser -u postgres -- psql -Atc 'show server_version'").startswith("15.")
    assert "3.11" in operations.shell("/var/www/shiftmaster/active/release/venv/bin/python --version")


@pytest.mark.parametrize("kind", ["web", "worker", "beat"])
def test_units_are_sandboxed(operations, kind):
    colour = operations.shell("basename $(readlink /var/www/shiftmaster/active)").strip()
    report = operations.shell(f"systemd-analyze security --no-pager shiftmaster-{kind}@{colour}")
    assert float(re.search(r"Overall exposure level for \S+: ([\d.]+)", report)[1]) <= 2.5, report


def test_no_unit_failed(operations):
    assert operations.shell("systemctl --failed --no-legend").strip() == ""
