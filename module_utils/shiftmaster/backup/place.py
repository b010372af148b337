"""Put restored files in their place, below directories that the application can write to while it runs.

restic and tar write by name: a link that appears in their way leads them, as root, out of the directory. Here every
file is written through safe_files. What is packed may come from an attacker, too: nothing is written outside of the
paths that were requested, and no link below them is followed, whoever has made it.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import tarfile
from typing import Callable, Iterable, Iterator, Mapping, NamedTuple, Optional

from ..host import safe_files


class PlaceError(Exception):
    """Nothing more is written; str() shows why."""


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
    """Yield what lies below a directory of root, each as if that were /.

    Files, directories and links: one FIFO of the application must not keep all of its files from being restored.
    """
    for directory, directories, files in os.walk(top):
        directories.sort()
        for name in ["."] * (directory == top) + sorted(files) + directories:
            source = os.path.normpath(os.path.join(directory, name))
            status = os.lstat(source)
            if stat.S_IFMT(status.st_mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                continue
            yield Entry(
                os.path.normpath("/" + os.path.relpath(source, top)),
                status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns,
                os.readlink(source) if stat.S_ISLNK(status.st_mode) else "",
                lambda source=source: open(source, "rb"), status.st_size,
            )  # fmt: skip


def of_archive(archive: tarfile.TarFile) -> Iterator[Entry]:
    """Yield what an archive holds, with each path from /."""
    kinds = {tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK}
    files = {}
    for member in archive:
        if ".." in member.name.split("/") or "\0" in member.name:
            raise PlaceError("the archive names %r" % member.name)
        # A few bytes that claim to be terabytes.
        if member.issparse():
            raise PlaceError("the archive holds a sparse file, %r" % member.name)
        if not (0 <= member.uid < 2**32 - 1 and 0 <= member.gid < 2**32 - 1 and 0 <= member.mtime < 2**33):
            raise PlaceError("the archive gives %r an owner or a time that cannot be" % member.name)
        if member.size < 0:
            raise PlaceError("the archive gives %r a negative size" % member.name)
        content = member
        if member.islnk():
            kind = stat.S_IFREG  # A further name of a file, with the content of the first one.
            # tarfile would follow links among the members, without an end where they form a loop.
            content = files.get(_from_root(member.linkname))
            if content is None:
                raise PlaceError("the archive links %r to no file before it" % member.name)
        else:
            kind = kinds.get(member.type, stat.S_IFREG if member.isreg() else stat.S_IFIFO)
        if member.isreg():
            files[_from_root(member.name)] = member
        yield Entry(
            _from_root(member.name), kind | stat.S_IMODE(member.mode), member.uid, member.gid,
            int(member.mtime * 10**9), member.linkname, lambda content=content: archive.extractfile(content),
            content.size,
        )  # fmt: skip
    # tarfile takes the end of a file that was cut off, and a damaged header, for the end of the archive.
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE):
        raise PlaceError("the archive has no end: it was cut off, or is damaged")


def _from_root(name: str) -> str:
    # normpath() keeps two slashes at the beginning.
    return os.path.normpath("/" + name.lstrip("/"))


def is_below(path: str, tops: Iterable[str]) -> bool:
    return any(path == top or path.startswith(top.rstrip("/") + "/") for top in tops)


def _is_above(path: str, tops: Iterable[str]) -> bool:
    return any(is_below(top, [path]) for top in tops)


def _is_same_link(path: str, target: str) -> bool:
    try:
        return os.readlink(path) == target
    except OSError:
        return False


def check(
    entries: Iterable[Entry],
    paths: Iterable[str],
    free: float = float("inf"),
    tops: Iterable[str] = (),
    count: int = 0,
) -> None:
    """Reject all of it where something of it was not requested, or is neither file, directory nor link.

    A path that appears twice, and one below a file or a link, are rejected, too.
    free: how many bytes there is room for. tops: paths that a later restore follows where they are links, so none of
    them becomes one. count: how many files and links there are at least.
    """
    found = []
    for entry in entries:
        free -= entry.size
        if free < 0:
            raise PlaceError("there is too little room for the restored files")
        if not is_below(entry.path, paths) and not (stat.S_ISDIR(entry.mode) and _is_above(entry.path, paths)):
            raise PlaceError("%s was not requested" % entry.path)
        if not (stat.S_ISREG(entry.mode) or stat.S_ISDIR(entry.mode) or stat.S_ISLNK(entry.mode)):
            raise PlaceError("%s is no file, directory or link" % entry.path)
        if stat.S_ISLNK(entry.mode) and entry.path in tops and not _is_same_link(entry.path, entry.target):
            raise PlaceError("%s is a link in the backup, and none on this host" % entry.path)
        if is_below(entry.path, paths):
            found.append((entry.path, stat.S_ISDIR(entry.mode)))
    there = sum(not is_directory for _path, is_directory in found)
    if there < count:
        raise PlaceError("there are %d files and links of %d" % (there, count))
    # Sorted by components, what is below a path follows it.
    found.sort(key=lambda one: one[0].replace("/", "\0"))
    for (path, is_directory), (following, _) in itertools.pairwise(found):
        if path == following:
            raise PlaceError("%s appears twice" % path)
        if not is_directory and is_below(following, [path]):
            raise PlaceError("%s is below %s, which is no directory" % (following, path))


def place(entries: Iterable[Entry], tops: Iterable[str], owners: Mapping[str, tuple]) -> int:
    """Write what check() has accepted: directories, files, then links. Returns how many files and links.

    tops: no link is followed below the first of them that a path is below; one that leads to it is an administrator's.
    owners: {directory: (uid, gid)}; what is below belongs to them and nobody else, whatever owner the backup names.
    """
    count = 0
    ordered = sorted(entries, key=lambda entry: (stat.S_ISLNK(entry.mode), not stat.S_ISDIR(entry.mode)))
    for entry in ordered:
        # The next restore would take a link for an administrator's.
        if entry.path in owners and not stat.S_ISDIR(entry.mode):
            raise PlaceError("%s is no directory in the backup" % entry.path)
    for entry in ordered:
        beneath = next((top for top in tops if is_below(entry.path, [top])), "")
        uid, gid, mode = entry.uid, entry.gid, stat.S_IMODE(entry.mode)
        owner = next((owners[top] for top in owners if is_below(entry.path, [top])), None)
        if owner:
            (uid, gid), mode = owner, mode & 0o777
        if entry.path != "/":
            safe_files.make_way(entry.path, stat.S_ISDIR(entry.mode), beneath)
        if stat.S_ISDIR(entry.mode):
            if entry.path != "/":
                safe_files.make_directory(entry.path, mode, uid, gid, beneath)
        elif stat.S_ISLNK(entry.mode):
            safe_files.replace_link(entry.path, entry.target, uid, gid, beneath)
            count += 1
        else:
            with (
                entry.open() as content,
                safe_files.replacing(entry.path, mode & 0o777, uid, gid, entry.mtime_ns, beneath) as stream,
            ):
                shutil.copyfileobj(content, stream, 1 << 20)
            count += 1
    return count
