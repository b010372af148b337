"""Names that versions before 1.0.0 left on hosts, and today's. To be removed with version 2."""

from __future__ import annotations

import contextlib
import os

from .layout import replace_link, sync

EVENTS = {
    "put_back": "reverted",
    "not_put_back": "not_reverted",
    "withdrawn": "traffic_reverted",
    "doubted": "suspect",  # codespell:ignore doubted
    "task_parked": "task_quarantined",
    "tasks_set_aside": "tasks_quarantined",
}
_TRANSITION = {"from_colour": "from_slot", "to_colour": "to_slot"}
DIRECTORIES = {"parked": "unknown-tasks", "set-aside": "quarantine"}


def event(entry):
    """Rename an entry of the audit log, in place; returns it."""
    if isinstance(entry, dict) and isinstance(entry.get("event"), str):
        entry["event"] = EVENTS.get(entry["event"], entry["event"])
    return entry


def old_directories(layout):
    """Return the directories of an installation that have an old name."""
    paths = [os.path.join(layout.root, "colours")] + [os.path.join(layout.shared, name) for name in DIRECTORIES]
    return [path for path in paths if os.path.isdir(path)]


def state(data):
    """Rename what state.json holds, in place; returns it. Its form is checked afterwards."""
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        for entry in data["releases"].values():
            if "doubtful" in entry:
                entry["suspect"] = entry.pop("doubtful")
        step = data["transition"] or {}
        for old, new in _TRANSITION.items():
            if old in step:
                step[new] = step.pop(old)
        if step.get("phase") == "put_back":
            step["phase"] = "revert"
    return data


def slots(root: str) -> bool:
    """Make `slots/` of `colours/`, let `active` name it; returns whether `colours/` is there, which the caller removes.

    No request sees it: one rename() moves `active`, to the same socket and release. A run that is killed in between
    begins again; as long as `active` names `colours/`, what is there counts.
    """
    old, new = os.path.join(root, "colours"), os.path.join(root, "slots")
    if not os.path.isdir(old):
        return False
    directory, active = os.path.split(_link(os.path.join(root, "active")))
    if directory != "slots":
        for slot in ("blue", "green"):
            os.makedirs(os.path.join(new, slot), exist_ok=True)
            # The web server passes through, whatever root's umask is.
            os.chmod(new, 0o755)
            os.chmod(os.path.join(new, slot), 0o755)
            for name in ("release", "socket"):
                target = _link(os.path.join(old, slot, name))
                if target:
                    replace_link(target, os.path.join(new, slot, name))
        sync(root)
    if directory == "colours":
        replace_link(os.path.join("slots", active), os.path.join(root, "active"))
    return True


def directories(shared: str) -> bool:
    """Rename directories below `shared/`, which is root's; returns whether any was."""
    renamed = False
    for old, new in DIRECTORIES.items():
        path = os.path.join(shared, old)
        if os.path.isdir(path) and not os.path.islink(path) and not os.path.lexists(os.path.join(shared, new)):
            os.rename(path, os.path.join(shared, new))
            renamed = True
    return renamed


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
