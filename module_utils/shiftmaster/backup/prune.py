"""Removal after a good run: the plans of retention, carried out with each tool.

Only kinds that were saved in this run are looked at. Nothing is removed by age alone: see retention.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from typing import Iterable

from ..host import safe_files
from . import archive, catalogue, retention
from . import manifest as manifests
from .files import Restic
from .host import Host


def verifications(found: list, part: str) -> dict:
    """Whether each label of a part was verified, according to the manifests."""
    return {
        manifest["parts"][part]["label"]: manifest["parts"][part]["result"] in manifests.GOOD
        for manifest in found
        if manifest["parts"].get(part, {}).get("label") and manifest["ended"]
    }


def forget_received(host: Host, stanza) -> list:
    """Remove received WAL that the archive has or that no backup needs; returns the directories that went.

    The receiver goes by its newest, which is never removed. One that was not full when its timeline was left stays
    without this, and so does what was received before a restore (restore.wal_again).
    """
    directory = os.path.join(host.directory, "wal")
    # By number: the name of one on a new timeline comes after all of the old one.
    names = sorted(_segments(directory), key=lambda name: (name[8:24], name))[:-1]
    for name in set(names) - set(archive.lacking(host, stanza, names)):
        os.unlink(os.path.join(directory, name))
    removed = []
    for name in sorted(os.listdir(host.directory)):
        path = os.path.join(host.directory, name)
        if name.startswith("wal.before-") and not archive.lacking(host, stanza, _segments(path)):
            safe_files.remove_tree(path)
            removed.append(name)
    return removed


def _segments(directory: str) -> list:
    there = os.listdir(directory) if os.path.isdir(directory) else []
    return [name for name in there if re.fullmatch(r"[0-9A-F]{24}(\.partial)?", name)]


def forget_tables(host: Host) -> list:
    """Remove what was taken out of backups for people, which nobody fetches any more: it is data of patients.

    By age alone, for it is no backup. An empty directory is what a killed restore has left.
    """
    directory, removed = os.path.join(host.directory, "tables"), []
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        path = os.path.join(directory, name)
        old = time.time() - os.lstat(path).st_mtime > host.options["keep_days"] * 86400
        if old or os.path.isdir(path) and not os.listdir(path):
            shutil.rmtree(path)
            removed.append(os.path.join("tables", name))
    return removed


def earlier_stanzas(host: Host) -> tuple:
    """Return (items, names of those that hold no backup, problems) of the stanzas of earlier passphrases."""
    items, gone, problems = [], [], []
    for name in host.stanzas[1:]:
        stanza = catalogue.stanza_of(host.info(name), name)
        if stanza.backups:
            items.append(retention.Item(name, max(backup.stopped for backup in stanza.backups)))
        elif stanza.code in (catalogue.NO_BACKUP, catalogue.MISSING_STANZA):
            gone.append(name)
        else:
            problems.append(("unreadable", "stanza %s: %s" % (name, catalogue.stanza_result(stanza)), name))
    return items, gone, problems


def remove_stanzas(host: Host, names: list) -> None:
    """Remove all of these stanzas. By the first step pgBackRest has none of that name any more."""
    archives, backups = (os.path.join(host.directory, "pgbackrest", name) for name in ("archive", "backup"))
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            safe_files.rename(os.path.join(backups, name), name + ".removed")
        safe_files.remove_tree(os.path.join(archives, name))
        safe_files.remove_tree(os.path.join(backups, name + ".removed"))


def used_bytes(directory: str) -> int:
    """Bytes of all files below a directory; what goes meanwhile is not counted."""
    used = 0
    for place, _directories, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(OSError):
                used += os.lstat(os.path.join(place, name)).st_size
    return used


def prune(host: Host, manifest: dict, found: list, damaged: Iterable = ()) -> tuple:
    """Remove what may go; returns (removed names, problems to report).

    damaged are labels of backups and dumps that cannot be restored, as their verification has found.
    """
    good = [name for name, part in manifest["parts"].items() if part["result"] in manifests.GOOD]
    found = [one for one in found if one["run_id"] != manifest["run_id"]] + [dict(manifest, ended=manifest["started"])]
    seen = [manifests.seconds_of(one["started"]) for one in found]
    policy = retention.Policy(days=host.options["keep_days"])
    # Dumps and files can be read years later; a copy of the cluster needs its version of PostgreSQL, and all WAL since.
    generations = policy._replace(months=host.options["keep_months"], years=host.options["keep_years"])
    removed, problems = [], []
    if "database" in good:
        stanza = catalogue.stanza_of(host.info(), host.stanza)
        earlier, gone, unreadable = earlier_stanzas(host)
        problems += unreadable
        made = retention.database_plan(
            stanza, manifests.verifications(found), time.time(), policy, damaged=damaged, seen=seen, earlier=earlier
        )
        names = [item.name for item in earlier if item.name in made.remove]
        made = made._replace(remove=tuple(name for name in made.remove if name not in names))
        remove_stanzas(host, [*names, *gone])
        removed += names
        found_links = archive.links(host)
        # The last call also makes good what a run that was killed between them has left.
        for arguments in () if found_links else retention.commands(host.stanza, made):
            host.as_postgres("pgbackrest expire", "pgbackrest", *arguments)
        removed += () if found_links else made.remove
        problems += [*made.alerts, *found_links]
        removed += forget_received(host, stanza)
    restic = Restic(host)
    going = []
    if {"files", "configuration"} & set(good):
        text = restic.run("restic snapshots", "snapshots", "--json").stdout
        listed = retention.snapshots(text)
        # One that was fetched from the off-site copy has another id than in the manifest.
        copies = {one["id"]: one["original"] for one in json.loads(text) if one.get("original")}
        for (name, tag), items in listed.items():
            if tag in good and name == host.options["host"]:
                verified = verifications(found, tag)
                verified.update({one: verified[before] for one, before in copies.items() if before in verified})
                made = retention.plan(items, verified, time.time(), generations, seen=seen)
                going += made.remove
                problems += made.alerts
    if going:
        restic.run("restic forget", "forget", "--prune", *going)
        left = {one["id"] for one in restic.snapshots()}
        problems += [("not_removed", "snapshot %s did not go" % one, one) for one in going if one in left]
        removed += [one for one in going if one not in left]
    if "logical" in good:
        dumps = os.path.join(host.directory, "logical")
        items = [
            retention.Item(part["label"], manifests.seconds_of(part["ended"]))
            for part in (one["parts"].get("logical", {}) for one in found)
            if part.get("result") in manifests.GOOD and os.path.isdir(os.path.join(dumps, part["label"]))
        ]
        verified = verifications(found, "logical")
        made = retention.plan(items, verified, time.time(), generations, damaged=damaged, seen=seen)
        for name in made.remove:
            shutil.rmtree(os.path.join(dumps, name))
        removed += made.remove
        problems += made.alerts
    removed += forget_tables(host)
    problems += retention.over_limit(used_bytes(host.directory), host.options["limit_bytes"])
    return removed, problems
