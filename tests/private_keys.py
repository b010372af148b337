"""Readers of each private key of a host: every user, and every process with the groups that its unit gives it.

Runs on the host, as root: Operations.shell("python3 -", stdin=Path(private_keys.__file__).read_text()). Prints JSON,
{path: [names of users and units]}.
"""

from __future__ import annotations

import json
import os
import pwd
import re
from pathlib import Path

PLACES = ("/etc", "/home", "/opt", "/root", "/run", "/srv", "/usr/local", "/var")
# Unused keys of Debian's packages: a certificate that signs itself, which no service of ours presents.
OTHERS = ("/etc/ssl/private/ssl-cert-snakeoil.key",)


def private_keys():
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    kernel = {mount[1] for mount in mounts if mount[2] in ("proc", "sysfs", "cgroup2")}
    for place in PLACES:
        for directory, directories, names in os.walk(place):
            # Reading one of the kernel's files can wait for an event.
            directories[:] = [name for name in directories if os.path.join(directory, name) not in kernel]
            for name in names:
                path = os.path.join(directory, name)
                try:
                    if os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path) > 100_000:
                        continue
                    with open(path, "rb") as file:
                        content = file.read()
                except OSError:
                    continue
                if re.match(rb"\s*-----BEGIN [A-Z ]*PRIVATE KEY-----", content) and path not in OTHERS:
                    yield path


def identities():
    """{(uid, gid, groups): name}."""
    found = {}
    for user in pwd.getpwall():
        groups = frozenset(os.getgrouplist(user.pw_name, user.pw_gid))
        found[(user.pw_uid, user.pw_gid, groups)] = user.pw_name
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = (process / "status").read_text()
            unit = (process / "cgroup").read_text().strip().rpartition("/")[2]
        except OSError:
            continue
        uid = int(re.search(r"^Uid:\s+\d+\s+(\d+)", status, re.M)[1])
        gid = int(re.search(r"^Gid:\s+\d+\s+(\d+)", status, re.M)[1])
        groups = frozenset(map(int, re.search(r"^Groups:(.*)$", status, re.M)[1].split())) | {gid}
        found.setdefault((uid, gid, groups), unit)
    return {identity: name for identity, name in found.items() if identity[0] != 0}


def reads(identity, path):
    """Try it, as a process of that user with these groups."""
    uid, gid, groups = identity
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(sorted(groups))
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.close(os.open(path, os.O_RDONLY))
            os._exit(0)
        except OSError:
            os._exit(1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main():
    everybody = identities()
    print(
        json.dumps(
            {
                path: sorted({name for identity, name in everybody.items() if reads(identity, path)})
                for path in private_keys()
            }
        )
    )


if __name__ == "__main__":
    main()
