"""The user of a service, with the groups that its unit adds (`SupplementaryGroups`)."""

from __future__ import annotations

import grp
import os
import pwd


def groups_of(user, extra):
    """The numbers of the groups that a service of this user has; of the extra ones, those that exist.

    Raises KeyError where there is no such user.
    """
    found = set(os.getgrouplist(user, pwd.getpwnam(user).pw_gid))
    for name in extra:
        try:
            found.add(grp.getgrnam(name).gr_gid)
        except KeyError:
            continue
    return found


def process_of(user, extra):
    """What makes of a process (subprocess.run) one of this service. Raises KeyError where there is no such user."""
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": sorted(groups_of(user, extra))}
