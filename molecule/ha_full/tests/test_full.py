"""The topology of inventory/ha, each function on hosts of its own: the same groups, healthy, and patched."""

from pathlib import Path

import pytest
import yaml
from redundancy import Clients
from support import ROOT, Operations, docker

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
PREFIX, ADDRESS = "ha-full-", "172.30.89.100"


def groups(path: Path) -> dict:
    """{group: its hosts} of those groups that have some."""
    children = yaml.safe_load(path.read_text(encoding="utf-8"))["all"]["children"]
    return {
        group: [host.removeprefix(PREFIX) for host in content["hosts"]]
        for group, content in children.items()
        if content and group not in ("ha", "demo")
    }


@pytest.fixture(scope="session")
def hosts() -> dict:
    names = sorted({host for found in groups(INVENTORY / "hosts.yml").values() for host in found})
    return {name: Operations(INVENTORY, PREFIX + name) for name in names}


def test_the_groups_are_those_of_the_inventory():
    assert groups(INVENTORY / "hosts.yml") == groups(ROOT / "inventory/ha/hosts.yml")


def test_every_host_is_healthy(hosts):
    run = hosts["app1"].run("playbooks/health.yml", timeout=600)
    assert run.code == 0, run.output[-6000:]
    assert [hosts[name].live_version(60) for name in ("app1", "app2")] == ["2.0.0"] * 2


def test_check_mode_shows_a_change_and_makes_none(hosts):
    change = {"postgresql_log_min_duration_milliseconds": 900, "timeout": 1800}
    shown = hosts["app1"].run("deploy.yml", "--tags", "database", "--check", **change)
    assert shown.code == 0 and shown.changed > 0, shown.output[-6000:]
    after = hosts["app1"].run("deploy.yml", "--tags", "database", timeout=1800)
    assert (after.code, after.changed) == (0, 0), after.output[-6000:]


def test_every_host_is_patched_and_rebooted(hosts, capsys):
    """Primaries move and the address moves; no page fails, and no maintenance page is shown."""
    names, booted = [host.host for host in hosts.values()], "cut -d ' ' -f 22 /proc/1/stat"
    before = {name: host.shell(booted) for name, host in hosts.items()}
    docker("update", "--restart=always", *names)
    try:
        with Clients(8, address=ADDRESS) as clients:
            run = hosts["app1"].run("playbooks/patch.yml", timeout=3600, reboot="always")
    finally:
        docker("update", "--restart=no", *names)
    assert run.code == 0, run.output[-6000:]
    with capsys.disabled():
        print(f"\n  patch: {clients.requests} GETs, {len(clients.failed)} failed, the slowest {clients.slowest:.1f} s")
    # A page of maintenance has status 503.
    assert clients.failed == [] and clients.requests > 300
    assert [name for name, host in hosts.items() if host.shell(booted) == before[name]] == []
    again = hosts["app1"].run("deploy.yml", timeout=3600)
    assert (again.code, again.changed) == (0, 0), again.output[-6000:]
