from pathlib import Path

import pytest
from support import Operations, pytest_collection_modifyitems

__all__ = ["pytest_collection_modifyitems"]


@pytest.fixture(scope="session")
def operations():
    operations = Operations(Path(__file__).parent.parent / "inventory", "kills-trixie")
    assert operations.serves(60), "the host does not serve"
    operations.manage("seed_demo")
    return operations
