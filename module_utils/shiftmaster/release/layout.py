"""Where everything of an installation lies, and what its links say.

`active` is the one link that decides: it names the colour whose release serves, whose static files nginx reads and
which a reboot starts. `current` only leads through it, for people.
"""

from __future__ import annotations

import os
import re
from typing import Callable, Optional

from ..host import points

COLOURS = ("blue", "green")
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
    sync_folder(os.path.dirname(link))


def sync_folder(path: str) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Layout:
    """The folders below the application's root."""

    def __init__(self, root: str = "/var/www/shiftmaster"):
        self.root = root.rstrip("/")
        self.releases = os.path.join(self.root, "releases")
        self.colours = os.path.join(self.root, "colours")
        self.shared = os.path.join(self.root, "shared")
        self.state = os.path.join(self.shared, "state")
        self.active = os.path.join(self.root, "active")
        self.union = os.path.join(self.shared, "static")

    def release(self, name: str) -> str:
        if not RELEASE_NAME.match(name):
            raise ValueError("%r is not the name of a release" % (name,))
        return os.path.join(self.releases, name)

    def colour(self, colour: str) -> str:
        return os.path.join(self.colours, colour)

    def socket(self, colour: str) -> str:
        """The colour's private socket, which no traffic reaches unless `active` names the colour."""
        return "/run/shiftmaster-web-%s/web.sock" % colour

    def names(self) -> list:
        """Return the release folders, oldest first; folders with other names are not ours and are left alone."""
        try:
            return sorted(entry for entry in os.listdir(self.releases) if RELEASE_NAME.match(entry))
        except FileNotFoundError:
            return []

    def active_colour(self) -> Optional[str]:
        try:
            colour = os.path.basename(os.readlink(self.active))
        except OSError:
            return None
        return colour if colour in COLOURS else None

    def idle_colour(self) -> str:
        return "green" if self.active_colour() == "blue" else "blue"

    def release_of(self, colour: Optional[str]) -> Optional[str]:
        """Return the name of the release that a colour is linked to."""
        if colour is None:
            return None
        try:
            return os.path.basename(os.readlink(os.path.join(self.colour(colour), "release")))
        except OSError:
            return None

    def current(self) -> Optional[str]:
        return self.release_of(self.active_colour())

    def point_colour(self, colour: str, release: str) -> None:
        """Link an idle colour to a release; the colour's units must be stopped."""
        os.makedirs(self.colour(colour), mode=0o755, exist_ok=True)
        replace_link(self.release(release), os.path.join(self.colour(colour), "release"))
        replace_link(self.socket(colour), os.path.join(self.colour(colour), "socket"))

    def activate(self, colour: str) -> None:
        """Move the traffic: one rename()."""
        replace_link(os.path.join("colours", colour), self.active, lambda: points.reach("rename"))
        current = os.path.join(self.root, "current")
        if not os.path.islink(current):
            os.symlink(os.path.join("active", "release"), current)  # For people; it never changes.
