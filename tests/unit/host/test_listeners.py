"""Which programs listen on ports: the table of the kernel, and a socket of this process."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.host import listeners


def test_listeners_are_read_by_their_port():
    line = "   %d: %s:%s 00000000:0000 %s 00000000:00000000 00:00000000 00000000     0        0 %s"
    lines = [
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
        line % (0, "00000000", "0050", "0A", "11"),
        line % (1, "0" * 32, "0050", "0A", "12") + " 1 0000000000000000 100 0 0 10 0",
        line % (2, "0100007F", "0050", "01", "13"),
        line % (3, "0100007F", "01BB", "0A", "14"),
        line % (4, "0100007F", "1F90", "0A", "15"),
        "   5: 00000000:0050 00000000:0000 0A",
    ]
    assert listeners.listening("\n".join(lines)) == {80: {"11", "12"}, 443: {"14"}, 8080: {"15"}}


@pytest.mark.parametrize("family, address", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_holder_of_a_port_is_found(family, address):
    with socket.socket(family) as server, socket.socket() as idle:
        server.bind((address, 0))
        server.listen()
        idle.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        mine = (Path("/proc/self/comm").read_text().strip(), os.getpid())
        assert listeners.holders({port, idle.getsockname()[1]}) == {port: {mine}}
    assert listeners.owners({"x"}) == {}


def test_of_a_socket_that_may_not_be_seen_there_is_no_holder(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr(listeners, "owners", lambda _inodes: {})
        port = server.getsockname()[1]
        assert listeners.holders({port}) == {port: set()}
    monkeypatch.setattr(listeners, "owners", lambda _inodes: pytest.fail("nothing listens there"))
    assert listeners.holders({port}) == {}
