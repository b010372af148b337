from pathlib import Path

import pytest
from database_cluster import Members
from support import Operations

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"


@pytest.fixture(scope="session")
def members():
    """A deployed host, and two empty ones that the inventory has in the group `database`, too."""
    hosts = [Operations(INVENTORY, f"ha-convert-{name}") for name in ("trixie", "b", "c")]
    found = Members(hosts, [f"172.30.83.{number}" for number in (11, 12, 13)])
    assert hosts[0].live_version(60), "the host does not serve"
    hosts[0].manage("seed_demo")
    return found
