"""Files as states: what a path is, and many of them swapped at once.

A state is ("none",), ("link", target), ("file", bytes, mode[, gid | , uid, gid]) or ("other",) for what is neither.
"""

from __future__ import annotations

import os
import stat


def read_state(path):
    """What a path is now; a file with its owner."""
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ("none",)
    if stat.S_ISLNK(info.st_mode):
        return ("link", os.readlink(path))
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as handle:
            return ("file", handle.read(), stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
    return ("other",)


def prepare(path, state):
    """Write a state under a hidden name beside its path and return that name (None for an absence)."""
    if state[0] == "none":
        return None
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    temporary = os.path.join(folder, ".%s.new" % os.path.basename(path))
    if os.path.lexists(temporary):
        os.unlink(temporary)
    if state[0] == "link":
        os.symlink(state[1], temporary)
        return temporary
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(state[1])
        handle.flush()
        if len(state) > 3:
            uid, gid = (-1, *state[3:])[-2:]
            os.fchown(handle.fileno(), uid, gid)
        os.fchmod(handle.fileno(), state[2])
        os.fsync(handle.fileno())
    return temporary


def place_all(states):
    """All temporary files first, then nothing but renames: the mixed moment is as short as it can be."""
    prepared = [(path, prepare(path, state)) for path, state in states.items()]
    for path, temporary in prepared:
        if temporary is not None:
            os.rename(temporary, path)
        elif os.path.lexists(path):
            os.unlink(path)
