"""The paths of an installation, and the targets of its links.

`active` is the link that decides: it names the slot whose release is live, whose static files nginx reads and
which a reboot starts. `current` only leads through it, for people.
"""

from __future__ import annotations

import os
import re
from typing import Callable, Optional

from ..host import points, safe_files

SLOTS = ("blue", "green")
RELEASE_NAME = re.compile(r"^\d{8}T\d{6}Z-[0-9a-f]{7,40}\Z")


def replace_link(target: str, link: str, before_rename: Optional[Callable] = None) -> None:
    """Point link at target by one rename(), so that it is never absent."""
    fresh = link + ".new"
    if os.path.lexists(fresh):
        os.unlink(fresh)
    os.symlink(target, fresh)
    if before_rename:
        before_rename()
    os.rename(fresh, link)
    sync(os.path.dirname(link))


def sync(path: str) -> None:
    """Make a file, or renames in a directory, survive a power cut."""
    with safe_files.closing(os.open(path, os.O_RDONLY)) as descriptor:
        os.fsync(descriptor)


class Layout:
    """The directories below the application's root."""

    def __init__(self, root: str = "/var/www/shiftmaster"):
        self.root = root.rstrip("/")
        self.releases = os.path.join(self.root, "releases")
        self.shared = os.path.join(self.root, "shared")
        self.active = os.path.join(self.root, "active")
        self.slots = os.path.join(self.root, "slots")
        # Tasks that the live release does not know, and those that waited for data that a restore has replaced.
        self.unknown_tasks = os.path.join(self.shared, "unknown-tasks")
        self.quarantine = os.path.join(self.shared, "quarantine")
        self.state = os.path.join(self.shared, "state")
        # While it is there, the schema may not be that of the live release: a boot starts no background work of it.
        self.held = os.path.join(self.state, "background-held")
        self.union = os.path.join(self.shared, "static")

    def release(self, name: str) -> str:
        if not RELEASE_NAME.match(name):
            raise ValueError("%r is not the name of a release" % (name,))
        return os.path.join(self.releases, name)

    def slot(self, slot: str) -> str:
        return os.path.join(self.slots, slot)

    def socket(self, slot: str) -> str:
        """The slot's private socket, which no traffic reaches unless `active` names the slot."""
        return "/run/shiftmaster-web-%s/web.sock" % slot

    def names(self) -> list:
        """Return the release directories, oldest first; directories with other names are left alone."""
        try:
            return sorted(entry for entry in os.listdir(self.releases) if RELEASE_NAME.match(entry))
        except FileNotFoundError:
            return []

    def active_slot(self) -> Optional[str]:
        try:
            slot = os.path.basename(os.readlink(self.active))
        except OSError:
            return None
        return slot if slot in SLOTS else None

    def idle_slot(self) -> str:
        return "green" if self.active_slot() == "blue" else "blue"

    def release_of(self, slot: Optional[str]) -> Optional[str]:
        """Return the name of the release that a slot is linked to."""
        if slot is None:
            return None
        try:
            return os.path.basename(os.readlink(os.path.join(self.slot(slot), "release")))
        except OSError:
            return None

    def current(self) -> Optional[str]:
        return self.release_of(self.active_slot())

    def point_slot(self, slot: str, release: str) -> None:
        """Link an idle slot to a release; the slot's units must be stopped."""
        os.makedirs(self.slot(slot), mode=0o755, exist_ok=True)
        replace_link(self.release(release), os.path.join(self.slot(slot), "release"))
        self.lead_to_application(slot)

    def lead_to_application(self, slot: str) -> None:
        """Link the socket of a slot to that of its web processes."""
        replace_link(self.socket(slot), os.path.join(self.slot(slot), "socket"))

    def activate(self, slot: str) -> None:
        """Move the traffic: one rename()."""
        replace_link(os.path.join(os.path.basename(self.slots), slot), self.active, lambda: points.reach("rename"))
        current = os.path.join(self.root, "current")
        if not os.path.islink(current):
            os.symlink(os.path.join("active", "release"), current)  # For people; it never changes.
