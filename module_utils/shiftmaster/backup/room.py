"""Room for others: neither a source host nor the database host fills the file system of the backups.

Source hosts leave a larger share of it than the WAL does, and the WAL leaves what the backup server needs to save its
own part and to expire old backups.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

SOURCE_RESERVE, WAL_RESERVE = 0.10, 0.05
# Of what is free: so much a source host may send also where the reserve is touched, for another one may have done that.
SMALL = 0.02
CHECK_SECONDS = 2


def _free(directory: str) -> tuple:
    """Return ((free, all), ...) of the bytes and of the files of a file system, as root or not."""
    disk = os.statvfs(directory)
    return (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize), (disk.f_favail, disk.f_files)


def room_for_others(directory: str):
    """Return a function that shows why another host sends too much; "" where it does not.

    What it sends is there twice: as the copy of its files, and in the repository.
    """
    at_first = _free(directory)

    def too_much() -> str:
        for (now, _), (before, size), what in zip(_free(directory), at_first, ("room", "number of files")):
            if before - now > max(before - size * SOURCE_RESERVE, before * SMALL) / 2:
                return "it sends more than leaves %d %% of the %s in %s free" % (100 * SOURCE_RESERVE, what, directory)
        return ""

    return too_much


def scarce(directory: str) -> str:
    """Return what the WAL leaves too little of: "room", "number of files" or ""."""
    for (free, size), what in zip(_free(directory), ("room", "number of files")):
        if free < size * WAL_RESERVE:
            return what
    return ""


def guard(directory: str, readable: bool, command: list) -> int:
    """Run a command that writes WAL to a directory; returns its exit code, 1 where it has to be started again.

    Without room it is not run or, readable, can make no file longer: restores still read. Its unit ends what it leaves.
    """
    found = scarce(directory)
    limited = readable and found == "room"
    if found:
        what = "nothing more is written" if limited else "waiting"
        print("less than %d %% of the %s of %s is free: %s" % (100 * WAL_RESERVE, found, directory, what), flush=True)
    while not limited and scarce(directory):
        time.sleep(CHECK_SECONDS)
    # Python ignores SIGXFSZ. So does the command then: it gets an error that the file is too large, and is not killed.
    limit = ["prlimit", "--fsize=0"] if limited else []
    child = subprocess.Popen([*limit, *command], restore_signals=not limited)
    while child.poll() is None:
        time.sleep(CHECK_SECONDS)
        found = scarce(directory)
        if (found == "room") != limited or found == "number of files":
            print("starting again: %s" % (found and "less %s is free" % found or "there is room"), file=sys.stderr)
            return 1
    return child.returncode if child.returncode >= 0 else 1
