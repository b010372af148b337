"""Put restored files in their place, below directories that the application can write to while it runs.

restic and tar write by name: a link that appears in their way leads them, as root, out of the directory. Here every
file is written through safe_files. What is packed may come from an attacker, too: nothing is written outside of the
paths that were asked for.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from typing import Callable, Iterable, Iterator, Mapping, NamedTuple, Optional

from ..host import safe_files


class PlaceError(Exception):
    """Nothing more is written; str() says why."""


class Entry(NamedTuple):
    path: str  # Where it belongs.
    mode: int  # With its type.
    uid: int
    gid: int
    mtime_ns: int
    target: str  # Of a link.
    open: Optional[Callable]  # Returns the content as a stream.
    size: int = 0


def of_directory(top: str) -> Iterator[Entry]:
    """Yield what lies below a directory of root, each as if that were /."""
    for folder, folders, files in os.walk(top):
        folders.sort()
        for name in ["."] * (folder == top) + sorted(files) + folders:
            source = os.path.normpath(os.path.join(folder, name))
            status = os.lstat(source)
            yield Entry(
                os.path.normpath("/" + os.path.relpath(source, top)),
                status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns,
                os.readlink(source) if stat.S_ISLNK(status.st_mode) else "",
                lambda source=source: open(source, "rb"), status.st_size,
            )  # fmt: skip


def of_archive(archive: tarfile.TarFile) -> Iterator[Entry]:
    """Yield what an archive holds, with each path from /."""
    kinds = {tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK}
    for member in archive:
        if ".." in member.name.split("/") or "\0" in member.name:
            raise PlaceError("the archive names %r" % member.name)
        # A few bytes that say of themselves that they are terabytes.
        if member.issparse():
            raise PlaceError("the archive holds a sparse file, %r" % member.name)
        if not (0 <= member.uid < 2**32 - 1 and 0 <= member.gid < 2**32 - 1 and 0 <= member.mtime < 2**33):
            raise PlaceError("the archive gives %r an owner or a time that cannot be" % member.name)
        if member.islnk():
            kind = stat.S_IFREG  # A further name of a file, with the content of the first one.
        else:
            kind = kinds.get(member.type, stat.S_IFREG if member.isreg() else stat.S_IFIFO)
        yield Entry(
            os.path.normpath("/" + member.name), kind | stat.S_IMODE(member.mode), member.uid, member.gid,
            int(member.mtime * 10**9), member.linkname, lambda member=member: archive.extractfile(member),
            member.size,
        )  # fmt: skip


def is_below(path: str, tops: Iterable[str]) -> bool:
    return any(path == top or path.startswith(top.rstrip("/") + "/") for top in tops)


def _is_above(path: str, tops: Iterable[str]) -> bool:
    return any(is_below(top, [path]) for top in tops)


def check(entries: Iterable[Entry], paths: Iterable[str], free: float = float("inf")) -> None:
    """Reject all of it where something of it was not asked for, or is neither file, directory nor link.

    free: how many bytes there is room for.
    """
    for entry in entries:
        free -= entry.size
        if free < 0:
            raise PlaceError("there is too little room for the restored files")
        if not is_below(entry.path, paths) and not (stat.S_ISDIR(entry.mode) and _is_above(entry.path, paths)):
            raise PlaceError("%s was not asked for" % entry.path)
        if not (stat.S_ISREG(entry.mode) or stat.S_ISDIR(entry.mode) or stat.S_ISLNK(entry.mode)):
            raise PlaceError("%s is no file, directory or link" % entry.path)


def place(entries: Iterable[Entry], owners: Mapping[str, tuple]) -> int:
    """Write what check() has accepted; returns how many files and links.

    owners: {directory: (uid, gid)}; what is below belongs to them and nobody else, whatever the backup says.
    """
    count = 0
    for entry in entries:
        uid, gid, mode = entry.uid, entry.gid, stat.S_IMODE(entry.mode)
        owner = next((owners[top] for top in owners if is_below(entry.path, [top])), None)
        if owner:
            (uid, gid), mode = owner, mode & 0o777
        if stat.S_ISDIR(entry.mode):
            if entry.path != "/":
                safe_files.make_directory(entry.path, mode, uid, gid)
        elif stat.S_ISLNK(entry.mode):
            safe_files.replace_link(entry.path, entry.target, uid, gid)
            count += 1
        else:
            with (
                entry.open() as content,
                safe_files.replacing(entry.path, mode & 0o777, uid, gid, entry.mtime_ns) as stream,
            ):
                shutil.copyfileobj(content, stream, 1 << 20)
            count += 1
    return count
