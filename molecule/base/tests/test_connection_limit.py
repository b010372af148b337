"""One address can open so many connections, no more, and takes nothing from the others. The limit here is 40."""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
import time

import pytest

LIMIT = 40


def address_of(name):
    command = ["docker", "inspect", "--format", "{{ .NetworkSettings.IPAddress }}", name]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


@pytest.fixture
def address(host):
    return address_of(host.backend.get_hostname())


@pytest.fixture
def listeners(host):
    code = (
        "import socketserver, threading\n"
        "class Reads(socketserver.BaseRequestHandler):\n"
        "    def handle(self):\n        while self.request.recv(99): pass\n"
        "socketserver.TCPServer.request_queue_size = 128\n"
        "for port in (80, 5432):\n    server = socketserver.ThreadingTCPServer(('0.0.0.0', port), Reads)\n"
        "    threading.Thread(target=server.serve_forever).start()"
    )
    host.check_output(f"systemd-run --collect --unit=acceptor python3 -c {shlex.quote(code)}")
    host.check_output("timeout 30 bash -c 'until (: </dev/tcp/127.0.0.1/5432) 2>/dev/null; do sleep 0.1; done'")
    yield
    host.run("systemctl stop acceptor")


def opened(address, port, count):
    """How many of so many connections at once are accepted, and whether another address is accepted meanwhile."""
    other = "base-bookworm" if address == address_of("base-trixie") else "base-trixie"
    with contextlib.ExitStack() as kept:
        found = 0
        for _ in range(count):
            with contextlib.suppress(OSError):
                kept.enter_context(socket.create_connection((address, port), timeout=2))
                found += 1
        command = ["docker", "exec", other, "timeout", "3", "bash", "-c", f"</dev/tcp/{address}/{port}"]
        return found, subprocess.run(command, check=False, capture_output=True, timeout=20).returncode == 0


def test_connections_are_limited_by_address(address, listeners):
    assert opened(address, 80, 2 * LIMIT) == (LIMIT, True)
    time.sleep(2)
    assert opened(address, 80, LIMIT // 2)[0] == LIMIT // 2, "it ends with the connections"


def test_ports_for_known_addresses_have_no_limit(address, listeners):
    assert opened(address, 5432, 2 * LIMIT)[0] == 2 * LIMIT


def test_open_connections_do_not_change_what_the_role_compares(host, address, listeners):
    """The addresses that are counted are in the rules as the kernel shows them."""
    with contextlib.ExitStack() as kept:
        kept.enter_context(socket.create_connection((address, 80), timeout=2))
        now = host.check_output("nft --stateless --terse list table inet shiftmaster")
        wanted = host.check_output(
            "unshare --net sh -c 'nft -f /etc/nftables.conf && nft --stateless --terse list table inet shiftmaster'"
        )
    assert now == wanted and "ct count over" in now
