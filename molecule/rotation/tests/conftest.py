import pytest
from support import Vault, operations_of, pytest_collection_modifyitems

__all__ = ["pytest_collection_modifyitems"]

operations = operations_of(__file__)


@pytest.fixture(scope="session")
def vault(operations):
    return Vault(operations)
