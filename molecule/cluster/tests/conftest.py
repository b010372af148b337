from pathlib import Path
from types import SimpleNamespace

import pytest
from support import Operations

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"


@pytest.fixture(scope="session")
def fleet():
    """The hosts: edge, app1, app2, db and cache; playbooks run for all of them, whichever is asked."""
    names = ("edge", "app1", "app2", "db", "cache")
    hosts = SimpleNamespace(**{name: Operations(INVENTORY, f"cluster-{name}") for name in names})
    hosts.apps = (hosts.app1, hosts.app2)
    for host in hosts.apps:
        assert host.serves(60), f"{host.host} does not serve"
    hosts.app1.manage("seed_demo")
    return hosts
