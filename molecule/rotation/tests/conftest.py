import pytest
from support import Vault, operations_of

operations = operations_of(__file__)


@pytest.fixture(scope="session")
def vault(operations):
    return Vault(operations)
