"""Which directories root may create, change the owner of, and remove from, when a variable names them.

One rule for every variable of a role and every option of a run that names such a directory.
safe_files.untrusted_parent is the half that needs the host.
"""

from __future__ import annotations

import os

# Directories of the system that hold one directory for each program: they are none themselves.
SHARED = frozenset(
    "/etc/ssl /home /media /mnt /opt /root /run /srv /usr/local/share /var /var/backups /var/cache /var/lib /var/lock "
    "/var/log /var/opt /var/run /var/spool /var/www".split()
)
# Nothing below them either: the system's own, and directories that everybody writes to or a unit's sandbox hides.
CLOSED = tuple(
    "/bin /boot /dev /etc /home /lib /lib32 /lib64 /libx32 /lost+found /proc /sbin /sys /tmp /usr /var/lib/apt "
    "/var/lib/dpkg /var/lib/pam /var/lib/postgresql /var/lib/redis /var/lib/sudo /var/lib/systemd /var/local "
    "/var/log/apt /var/log/journal /var/mail /var/spool/cron /var/tmp /run/lock /run/systemd /run/user "
    "/etc/ssl/certs /etc/ssl/private".split()
)
# Below a closed one, and open nevertheless.
OPEN = ("/etc/ssl", "/usr/local/share")


def _below(path, roots):
    return any(path == root or path.startswith(root + "/") for root in roots)


def refusal(path):
    """Return why root may not manage this directory, or an empty text; looks at the text alone."""
    if not path.startswith("/"):
        return "is no absolute path"
    parts = path.split("/")
    if "." in parts or ".." in parts:
        return "has . or .. in it"
    path = "/" + "/".join(part for part in parts if part)
    if path == "/" or path in SHARED:
        return "is a directory of the system; name one below it"
    closed = max((root for root in CLOSED if _below(path, (root,))), key=len, default="")
    if closed and len(max((root for root in OPEN if _below(path, (root,))), key=len, default="")) <= len(closed):
        return "is or is below %s, which belongs to the system" % closed
    return ""


def nearest(path: str) -> str:
    """Return the nearest directory at or above a path that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
