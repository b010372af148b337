from pathlib import Path
from types import SimpleNamespace

import pytest
from redundancy import Members
from support import Operations

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"


@pytest.fixture(scope="session")
def topology():
    """The hosts a (web, database), b (web, application) and c (application); each has a Redis and a Sentinel."""
    hosts = SimpleNamespace(**{name: Operations(INVENTORY, f"ha-edge-{name}") for name in "abc"})
    hosts.all, hosts.webs, hosts.apps = [hosts.a, hosts.b, hosts.c], [hosts.a, hosts.b], [hosts.b, hosts.c]
    for host in hosts.apps:
        assert host.live_version(120), f"{host.host} does not serve"
    hosts.b.manage("seed_demo")
    return hosts


@pytest.fixture(autouse=True)
def members(topology):
    """Each test begins and ends with all hosts running, one primary, two replicas, and one holder of the address,
    and the application serves."""
    members = Members(topology.all, topology.webs)
    members.heal()
    yield members
    members.heal()
    # With its worker, which connects to the primary of now; a boot takes up to a minute.
    assert [host.host for host in topology.apps if not host.live_version(90)] == []
