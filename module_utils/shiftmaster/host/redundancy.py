"""What a host sees of services that several hosts provide together: the virtual address, and Redis with Sentinel."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time

from . import probe, safe_files

SENTINEL_FILE = "/etc/redis/sentinel/sentinel.conf"
_ARP = 0x0806


# --- virtual address -------------------------------------------------------------------------------------------------


def holds(address: str) -> bool:
    """Return whether this host has the address: only then a socket can have it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True


def interface_of(address: str, routes: str) -> str:
    """Return the interface in whose network the address is, by the text of /proc/net/route; "" where there is none."""
    wanted, best = struct.unpack("<I", socket.inet_aton(address))[0], (-1, "")
    for line in routes.splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and words[2] == "00000000":
            network, mask = int(words[1], 16), int(words[7], 16)
            if wanted & mask == network:
                best = max(best, (bin(mask).count("1"), words[0]))
    return best[1]


def others_with(address: str, interface: str, seconds: float = 0.8) -> list:
    """Return the hardware addresses of other hosts that have the address; OSError where it cannot be queried.

    By an ARP probe (RFC 5227), which changes no neighbour's table.
    """
    found, end = set(), time.monotonic() + seconds
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ARP)) as sock:
        sock.bind((interface, _ARP))
        mine = sock.getsockname()[4]
        for _attempt in range(2):
            head = b"\xff" * 6 + mine + struct.pack("!HHHBBH", _ARP, 1, 0x0800, 6, 4, 1)
            sock.send(head + mine + bytes(4) + bytes(6) + socket.inet_aton(address))
            until = min(end, time.monotonic() + seconds / 2)
            while time.monotonic() < until:
                sock.settimeout(max(0.01, until - time.monotonic()))
                with contextlib.suppress(socket.timeout):
                    frame = sock.recv(128)
                    sender, owner = frame[22:28], frame[28:32]
                    if frame[20:22] == b"\x00\x02" and owner == socket.inet_aton(address) and sender != mine:
                        found.add(sender.hex(":"))
    return sorted(found)


def virtual_address(address: str, routes: str = "/proc/net/route") -> dict:
    """Return whether this host holds the address, and which others do; others is None where not known."""
    found = {"address": address, "held": holds(address), "others": None}
    with contextlib.suppress(OSError):
        interface = interface_of(address, safe_files.read_text(routes, 65536))
        if interface:
            found["others"] = others_with(address, interface)
    return found


# --- Redis with Sentinel ---------------------------------------------------------------------------------------------


def _calls(port: int, ca_file: str, login: list, commands: list, seconds: float) -> list:
    """Return the replies, errors as text, of a server of this host."""
    deadline = probe.Deadline(seconds)
    with probe.connected("localhost", port, None, deadline, probe.tls_context(True, ca_file)) as connection:
        wire = probe._Wire(connection, deadline)
        stream, replies = wire.makefile(), []
        for words in ([["AUTH", *login]] if login else []) + commands:
            try:
                replies.append(probe.redis_command(wire, stream, *words))
            except probe.RedisError as error:
                replies.append(str(error))
        return replies[1:] if login else replies


def sentinel(port: int, ca_file: str, name: str, seconds: float = 3.0) -> dict:
    """Return whether a majority of the Sentinels can act, and which primary this one names; else ProbeError."""
    majority, primary = _calls(
        port, ca_file, [], [["SENTINEL", "CKQUORUM", name], ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", name]], seconds
    )
    found = {"majority": str(majority).startswith("OK"), "message": str(majority)[:200], "primary": ""}
    if isinstance(primary, list) and len(primary) == 2:
        found["primary"] = ":".join(map(str, primary))
    return found


def member(port: int, ca_file: str, config: str = SENTINEL_FILE, seconds: float = 3.0) -> dict:
    """Return the role of this host's Redis in the set, and how many replicas follow it, by Sentinel's own login."""
    text = safe_files.read_text(config, 65536)
    login = re.findall(r"(?m)^sentinel sentinel-(?:user|pass) (\S+)$", text)
    (info,) = _calls(port, ca_file, login, [["INFO", "replication"]], seconds)
    values = dict(line.split(":", 1) for line in str(info).splitlines() if ":" in line)
    return {
        "role": {"master": "primary", "slave": "replica"}.get(values.get("role", ""), ""),
        "followers": int(values.get("min_slaves_good_slaves", 0) or 0),
        "link": values.get("master_link_status", ""),
    }
