"""Files as states: what a path is, and many of them swapped at once.

A state is ("none",), ("link", target), ("file", bytes, mode[, gid | , uid, gid]) or ("other",) for what is neither.
Services own the directories of their configuration on Debian (postgres, redis): paths are resolved by safe_files.
"""

from __future__ import annotations

import contextlib
import os
import stat

from . import safe_files


def read_state(path):
    """What a path is now; a file with its owner."""
    try:
        with safe_files.entry(path) as (parent, name):
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                return ("link", os.readlink(name, dir_fd=parent))
            if not stat.S_ISREG(info.st_mode):
                return ("other",)
            with os.fdopen(safe_files.open_in(parent, name, path=path), "rb") as handle:
                info = os.fstat(handle.fileno())
                return ("file", handle.read(), stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
    except (FileNotFoundError, NotADirectoryError):
        return ("none",)


def prepare(parent, name, state):
    """Write a state under a hidden name in the directory of this descriptor; return that name (None for an absence)."""
    if state[0] == "none":
        return None
    temporary = ".%s.new" % name
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=parent)
    if state[0] == "link":
        os.symlink(state[1], temporary, dir_fd=parent)
        return temporary
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=parent), "wb") as handle:
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
    with contextlib.ExitStack() as held:
        prepared = []
        for path, state in states.items():
            try:
                parent, name = held.enter_context(safe_files.entry(path, None if state[0] == "none" else 0o755))
            except (FileNotFoundError, NotADirectoryError):
                if state[0] != "none":
                    raise
                continue
            prepared.append((parent, name, prepare(parent, name, state)))
        for parent, name, temporary in prepared:
            if temporary is not None:
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=parent)
