import pytest
from support import operations_of

operations = operations_of(__file__)


@pytest.fixture
def well(operations):
    """For files in which every test begins with a host that serves."""
    assert operations.serves(90), "the host does not serve"
