import pytest
from diagnosing import processors_first
from support import operations_of

operations = operations_of(__file__)


@pytest.fixture
def healthy(operations):
    """For files in which every test begins with a host with a live release."""
    assert operations.live_version(90), "the host does not serve"
    # A part of the diagnosis that comes late on a busy machine is a finding, too.
    with processors_first(operations):
        yield
