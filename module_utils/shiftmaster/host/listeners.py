"""Which programs listen on TCP ports of this host."""

from __future__ import annotations

import contextlib
import os
import re


def listening(text: str) -> dict:
    """Return {port: {inode}} of the listening sockets in a /proc/net/tcp."""
    found = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == "0A":
            found.setdefault(int(fields[1].rsplit(":", 1)[1], 16), set()).add(fields[9])
    return found


def owners(inodes) -> dict:
    """Return {inode: {(name, pid)}} of these sockets, as far as we may look."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for descriptor in os.listdir("/proc/%s/fd" % pid):
                with contextlib.suppress(OSError):
                    match = re.match(r"socket:\[(\d+)\]$", os.readlink("/proc/%s/fd/%s" % (pid, descriptor)))
                    if match and match.group(1) in inodes:
                        with open("/proc/%s/comm" % pid, encoding="utf-8", errors="replace") as stream:
                            found.setdefault(match.group(1), set()).add((stream.read().strip(), int(pid)))
    return found


def holders(ports) -> dict:
    """Return {port: {(name, pid)}} of those ports that are in use; empty sets where we may not look."""
    sockets = {}
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(name, encoding="ascii") as stream:
            for port, inodes in listening(stream.read()).items():
                if port in ports:
                    sockets.setdefault(port, set()).update(inodes)
    held = owners(set().union(*sockets.values())) if sockets else {}
    return {port: set().union(*(held.get(inode, ()) for inode in inodes)) for port, inodes in sockets.items()}
