"""host.bounded: what a child writes is read up to a limit."""

from __future__ import annotations

import io
import time

import pytest
from ansible.module_utils.shiftmaster.host.bounded import Bounded


class Child:
    killed = False

    def kill(self):
        self.killed = True


class Stream(io.BytesIO):
    """A stream that gives a few bytes at a time, after a while."""

    def read1(self, size):
        time.sleep(0.05)
        return super().read1(min(size, 4))


@pytest.mark.parametrize(
    ("limit", "data", "full"), [(8, b"12345678", False), (9, b"12345678", False), (7, b"1234", True)]
)
def test_a_child_that_writes_more_than_the_limit_is_ended(limit, data, full):
    child = Child()
    reader = Bounded(child, Stream(b"12345678"), limit)
    assert (reader.end(), reader.full, child.killed, reader.daemon) == (data, full, full, True)
