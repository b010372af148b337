from pathlib import Path
from types import SimpleNamespace

import pytest
from support import Operations, Vault

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"


@pytest.fixture(scope="session")
def topology():
    """The hosts: edge, app1, app2, db and cache; playbooks run for all of them, whichever is queried."""
    names = ("edge", "app1", "app2", "db", "cache")
    hosts = SimpleNamespace(**{name: Operations(INVENTORY, f"cluster-{name}") for name in names})
    hosts.apps, hosts.all = (hosts.app1, hosts.app2), [getattr(hosts, name) for name in names]
    for host in hosts.apps:
        assert host.live_version(60), f"{host.host} does not serve"
    hosts.app1.manage("seed_demo")
    # A test rotates them; every run after it needs the new ones.
    hosts.vault = Vault(hosts.edge)
    for host in hosts.all:
        host.vault = hosts.vault
    return hosts
