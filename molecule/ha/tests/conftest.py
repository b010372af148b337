import shutil
from pathlib import Path

import pytest
import support
from database_cluster import Members
from support import ROOT, Operations, Vault

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"


@pytest.fixture(scope="session")
def prepared():
    """Three hosts that do everything."""
    hosts = [Operations(INVENTORY, f"ha-{name}") for name in "abc"]
    found = Members(hosts, [f"172.30.81.{number}" for number in (11, 12, 13)])
    vault = Vault(hosts[0])
    for host in hosts:
        host.vault = vault
    found.heal()
    found.prepare()
    return found


@pytest.fixture
def members(prepared):
    """Each test begins and ends with one primary that two standbys follow."""
    prepared.heal()
    yield prepared
    prepared.heal()


@pytest.fixture
def by_ssh(members):
    """The first host, whose playbooks reach all hosts by ssh."""
    directory = ROOT / ".cache/ha/inventory"
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(INVENTORY / "hosts.yml", directory)
    support.by_ssh(directory, members.hosts)
    found = Operations(directory, members.hosts[0].host)
    found.vault = members.hosts[0].vault
    return found
