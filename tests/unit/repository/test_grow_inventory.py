"""`./shiftmaster grow` writes an inventory that Ansible reads as it was meant."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import inventories
import pytest

ROOT = Path(__file__).resolve().parents[3]
APP, DATA = "shift.example.jp", "db1.example.jp"


@pytest.fixture
def hosts(tmp_path):
    (tmp_path / "single").mkdir()
    return Path(shutil.copy(ROOT / "inventory/single/hosts.yml", tmp_path / "single"))


def grow(hosts, *words):
    return subprocess.run(
        [sys.executable, ROOT / "scripts/grow_inventory.py", hosts, *words], capture_output=True, text=True, check=False
    )


def groups(hosts):
    found = inventories.parsed(hosts.parent).get_groups_dict()
    return {name: found[name] for name in ("single", "web", "app", "database", "cache")}


def test_database_and_cache_get_the_host_and_nothing_else_does(hosts):
    before = hosts.read_text()
    run = grow(hosts, "database,cache", DATA, "192.0.2.21")
    assert run.returncode == 0, run.stderr
    assert groups(hosts) == {"single": [APP, DATA], "web": [APP], "app": [APP], "database": [DATA], "cache": [DATA]}
    assert inventories.parsed(hosts.parent).get_host(DATA).vars["ansible_host"] == "192.0.2.21"
    assert hosts.with_name("hosts.yml.orig").read_text() == before
    assert hosts.read_text().startswith("".join(line for line in before.splitlines(True) if line[0] in "-#"))
    # The plan and the move are two commands.
    assert "already" in grow(hosts, "database,cache", DATA).stdout
    assert grow(hosts, "app", "app2.example.jp").returncode == 0
    assert groups(hosts)["app"] == [APP, "app2.example.jp"] and groups(hosts)["web"] == [APP]


def test_the_file_of_before_comes_back_unless_something_else_has_changed(hosts):
    before = hosts.read_text()
    assert grow(hosts, "database", DATA).returncode == 0
    # An address that was forgotten.
    assert grow(hosts, "database", DATA, "192.0.2.21").returncode == 0
    grown = hosts.read_text()
    hosts.write_text(grown.replace("192.0.2.21", "192.0.2.21\n          private_address: 10.0.0.1"))
    run = grow("--back", hosts, "database", DATA)
    assert run.returncode == 1 and "private_address" in hosts.read_text()
    hosts.write_text(grown)
    assert grow("--back", hosts, "database", DATA).returncode == 0
    assert hosts.read_text() == before and not hosts.with_name("hosts.yml.orig").exists()


def test_what_is_on_another_host_does_not_move(hosts):
    assert grow(hosts, "database", DATA).returncode == 0
    run = grow(hosts, "database", "db2")
    assert run.returncode == 1 and "from the application host alone" in run.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("app", "app2"), "first ./shiftmaster grow database,cache HOST"),
        (("database", APP), "a host of their own"),
        (("database,app", "db1"), "a host of their own"),
        (("web", "edge1"), "there are app, database and cache"),
        (("cache", "-e"), "is no name of a host"),
    ],
)
def test_what_a_deploy_could_not_do_is_not_written(hosts, words, problem):
    before = hosts.read_text()
    run = grow(hosts, *words)
    assert run.returncode == 1 and problem in run.stderr and hosts.read_text() == before


def test_data_move_while_there_is_one_application_host(tmp_path):
    hosts = Path(shutil.copy(ROOT / "inventory/production/hosts.yml", tmp_path))
    assert "app1, app2" in grow(hosts, "database", "db2").stderr
    assert grow(hosts, "app", "app3").returncode == 0
    assert inventories.parsed(hosts).get_groups_dict()["app"] == ["app1", "app2", "app3"]
