"""The points of a run at which it can be held, for the tests that kill it there.

A point costs nothing where nobody has made DIRECTORY, which a reboot removes. Where it holds a file of the point's
name, the run writes its process id into `<point>.reached` next to it and waits until the file is gone, five minutes at
the longest.
"""

from __future__ import annotations

import os
import time

DIRECTORY = "/run/shiftmaster/points"
HOLD_SECONDS = 300
# In the order of a run. Each phase of the cutover is one by its own name (cutover.PHASES), before its work begins.
POINTS = (
    "lock",  # taken, and nothing else done
    "build",  # the requirements are installed
    "built",  # the release is complete, but not yet called ready
    "dump",  # the pre-migration dump is written, but neither verified nor named
    "migrate",  # between two operations of a migration that is no transaction (django_driver)
    "migrated",  # the last migration is applied (django_driver)
    "start",
    "gate",
    "quiesce",
    "switch",
    "rename",  # the new link is there, under another name
    "switched",
    "drain",
    "handover",
    "watch",
    "finish",
    "live",  # recorded as live, the transition not ended
    "prune",  # a release has its other name, and is not yet removed
    "revert",
)
# Of a backup and a restore, on the host that does it. Each part is one, too: backup_database, backup_files, …
BACKUP_POINTS = (
    "backup_marked",  # the restore point is written, and not yet archived
    "backup_verification",  # the backup is restored and runs in the scratch directory
    "backup_offsite",  # everything is good here, and not yet outside
    "restore_database",  # what was there is quarantined, and nothing is restored
)
# Of an upgrade of PostgreSQL, in the order of a run, and of the way back.
UPGRADE_POINTS = (
    "postgresql_prepared",  # noted, and the new cluster not yet created
    "postgresql_stopped",  # no server runs
    "postgresql_copied",  # copied, and not yet noted
    "postgresql_switch",  # neither cluster starts at boot
    "postgresql_returning",  # both servers run, the old one without clients
    "postgresql_switch_back",  # the rows are in both, and no server runs
)
# Of a move to another host, in the order of a switch.
MOVE_POINTS = (
    "move_stopped",  # the server of the host that served is stopped, and still a primary
    "move_replayed",  # everything is replayed on the other one, and no host has a primary that runs
    "move_promoted",  # the other one has the primary, and its application does not run yet
)


def reach(point: str) -> None:
    """Report that the run is at a point, and wait where it is to be held there."""
    hold = os.path.join(DIRECTORY, point)
    if not os.path.exists(hold):
        return
    with open(hold + ".reached", "w", encoding="ascii") as stream:
        stream.write(str(os.getpid()))
    deadline = time.monotonic() + HOLD_SECONDS
    while os.path.exists(hold) and time.monotonic() < deadline:
        time.sleep(0.05)
