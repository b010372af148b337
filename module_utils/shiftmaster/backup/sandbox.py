"""Run a command in a file system of its own, for what a less privileged user or another host can change meanwhile.

rsync and restic open files by name. Whoever can write to a directory can replace it by a symbolic link at any time, so
these programs see nothing but the programs of the system and the paths that they are given: a link leads nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Iterable

from ..host import safe_files, units

# An empty directory; systemd makes the mount points below it.
ROOT = "/run/shiftmaster-backup-root"
PROGRAMS = ("/usr", "/usr/lib:/lib", "-/usr/lib64:/lib64")
PROPERTIES = [
    # No /proc: its links lead a process of root into the file systems of others. ProtectProc=, ProcSubset=,
    # ProtectKernelTunables=, ProtectControlGroups= and ProtectHostname= mount it or need it, and protect nothing else.
    "MountAPIVFS=no",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "NoNewPrivileges=yes",
    "PrivateDevices=yes",
    "PrivateIPC=yes",
    "PrivateTmp=yes",
    "ProtectClock=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectSystem=strict",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    # io_uring passes by every filter of system calls.
    "SystemCallFilter=~@resources io_uring_setup",
    "SystemCallErrorNumber=EPERM",
    # Not the host's: PrivateDevices= leaves that.
    "TemporaryFileSystem=/dev/shm",
    "UMask=0077",
    # As the unit of a backup: what responds to users goes first.
    "Nice=10",
    "IOSchedulingPriority=7",
    "IOWeight=20",
]
# What a command that reads files needs, beyond these.
READER = [
    "CapabilityBoundingSet=CAP_DAC_READ_SEARCH",
    "RestrictSUIDSGID=yes",
    "SystemCallFilter=~@privileged",
]
NO_NETWORK = ["IPAddressDeny=any", "PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX"]
NETWORK = ["RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"]
# What ssh and name resolution read; none of it is secret.
NETWORK_FILES = (
    "-/etc/hosts",
    "-/etc/nsswitch.conf",
    "-/etc/resolv.conf",
    "-/etc/ssh/ssh_config",
    "-/etc/ssh/ssh_config.d",
)


def existing(path: str) -> bool:
    """Whether a path exists. Raises UnsafePathError where a user other than root can replace it."""
    above = safe_files.untrusted_parent(path)
    if above:
        raise safe_files.UnsafePathError(errno.EPERM, "a user other than root can write to %s" % above, path)
    return os.path.exists(path)


def own_unit() -> str:
    """The service that this process belongs to; "" in a session."""
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as stream:
        for line in stream:
            _number, controllers, path = line.rstrip("\n").split(":", 2)
            if controllers in ("", "name=systemd"):
                return next((name for name in path.split("/") if name.endswith(".service")), "")
    return ""


def words(unit: str, more: Iterable[str], read: Iterable[str] = (), write: Iterable[str] = ()) -> list:
    """Return the words that run a command, to be appended, with these paths as its file system.

    more: properties of systemd. read, write: absolute paths; one that begins with `-` need not exist.
    """
    os.makedirs(ROOT, exist_ok=True)
    # Whatever the umask is: one command runs as a user of its own.
    os.chmod(ROOT, 0o755)
    lines = ["RootDirectory=" + ROOT, *PROPERTIES, *more]
    lines += ["BindReadOnlyPaths=" + path for path in PROGRAMS]
    lines += ["BindReadOnlyPaths=" + _path(path) for path in read]
    lines += ["BindPaths=" + _path(path) for path in write]
    parent = own_unit()
    if parent:
        # The command ends with the one that waits for it, however that ends.
        lines.append("BindsTo=" + parent)
    return units.transient(unit, "Command of shiftmaster-backup", lines)


def _path(path: str) -> str:
    optional = path.startswith("-")
    return "-" * optional + quoted(path[optional:])


def quoted(text: str) -> str:
    """Return a text as one word of a property."""
    return '"%s"' % text.replace("\\", "\\\\").replace('"', '\\"')
