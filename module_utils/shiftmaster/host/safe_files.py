"""Open, write and remove files below directories that a less privileged user can write to.

A path is resolved one component at a time, each relative to the descriptor of its parent and without following symbolic
links, so nobody can redirect it between two calls. A link is followed only where it and its directory belong to root
(or to this process) and nobody else can write to the directory: an administrator's link is obeyed, a link of the
application is not. Below `beneath` no link is followed at all: what a build left there is hostile also when it belongs
to root by now. Only regular files are opened; a FIFO or a device is rejected and never waited for.

Source: openat(2), symlink(7), systemd's CHASE_SAFE.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import os
import secrets
import stat
import subprocess
from typing import Iterator, Optional

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS = 40
_MAX_DEPTH = 200
_NAME_BYTES = 255


class UnsafePathError(OSError):
    """A path leads through a link of a less privileged user, or to something that is no regular file."""


def _reject(path: str, why: str) -> UnsafePathError:
    return UnsafePathError(errno.ELOOP, why, path)


def is_trusted(status: os.stat_result) -> bool:
    """Return whether only root and this process can change the entries of a directory."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@contextlib.contextmanager
def _parent(path: str, follow: bool, make_mode: Optional[int] = None, beneath: str = "") -> Iterator[tuple]:
    """Yield (descriptor of the directory, name) of an absolute path.

    follow: whether the last component may be a trusted link. make_mode: missing directories are made with this mode.
    beneath: a directory that leads to path; its own components may be trusted links, none after them.
    """
    if not os.path.isabs(path) or ".." in path.split("/"):
        raise ValueError("%r is not an absolute path without '..'" % (path,))
    left = _components(path)
    if beneath and left[: len(_components(beneath))] != _components(beneath):
        raise ValueError("%r is not below %r" % (path, beneath))
    strict = len(left) - len(_components(beneath)) if beneath else 0
    current, links = os.open("/", _DIRECTORY), 0
    try:
        while left:
            name = left.pop(0)
            if not left and not follow:
                break
            try:
                status = os.stat(name, dir_fd=current, follow_symlinks=False)
                is_link = stat.S_ISLNK(status.st_mode)
            except FileNotFoundError:
                if not left:
                    break
                if make_mode is None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
                _make(name, make_mode, current)
                is_link = False
            if is_link:
                links += 1
                trusted = status.st_uid in (0, os.geteuid()) and is_trusted(os.fstat(current))
                if not trusted or len(left) < strict:
                    raise _reject(path, "it leads through a symbolic link in a directory that others can write to")
                if links > _MAX_LINKS:
                    raise _reject(path, "too many symbolic links")
                target = os.readlink(name, dir_fd=current)
                left = _components(target) + left
                if target.startswith("/"):
                    current = _replace(current, os.open("/", _DIRECTORY))
                if not left:
                    name = "."
                continue
            if not left:
                break
            try:
                current = _replace(current, os.open(name, _DIRECTORY, dir_fd=current))
            except OSError as error:
                raise type(error)(error.errno, error.strerror, path) from None
        else:
            name = "."
        yield current, name
    finally:
        os.close(current)


def _make(name: str, mode: int, parent: int) -> None:
    """Make a directory with exactly this mode, whatever the umask is, where there is none."""
    # A chmod() afterwards could meet another directory that was given its name meanwhile.
    umask = os.umask(0)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=parent)
    finally:
        os.umask(umask)


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Yield a descriptor, and close it."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _components(path: str) -> list:
    return [part for part in path.split("/") if part not in ("", ".")]


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


@contextlib.contextmanager
def entry(path: str, make_mode: Optional[int] = None) -> Iterator[tuple]:
    """Yield (descriptor of the directory, name) of a path whose last component is not followed."""
    with _parent(path, False, make_mode) as found:
        yield found


@contextlib.contextmanager
def target(path: str) -> Iterator[tuple]:
    """Yield (descriptor of the directory, name) of what a path leads to, through links of root alone."""
    with _parent(path, True) as found:
        yield found


def open_directory(path: str, make_mode: Optional[int] = None, beneath: str = "") -> int:
    """Return a descriptor of a directory; with make_mode it and its parents are made where they are missing."""
    with _parent(path, True, make_mode, beneath) as (parent, name):
        if make_mode is not None and name != ".":
            _make(name, make_mode, parent)
        try:
            return os.open(name, _DIRECTORY, dir_fd=parent)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _reject(path, "it was replaced by a symbolic link") from None
            raise type(error)(error.errno, error.strerror, path) from None


def open_file(path: str, flags: int = os.O_RDONLY, mode: int = 0o600, beneath: str = "") -> int:
    """Return a descriptor of a regular file, opened or made by flags. Raises UnsafePathError for anything else.

    Links in trusted directories are followed for reading only.
    """
    writes = flags & (os.O_WRONLY | os.O_RDWR) != 0
    with _parent(path, not writes, None, beneath) as (parent, name):
        descriptor = open_in(parent, name, flags, mode, path)
    return descriptor


def sha256(path: str) -> str:
    """Return the checksum of a regular file, which others may replace meanwhile."""
    with os.fdopen(open_file(path), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_in(parent: int, name: str, flags: int = os.O_RDONLY, mode: int = 0o600, path: str = "") -> int:
    """Return a descriptor of a regular file directly below a directory's descriptor; no link is followed."""
    path = path or name
    # Truncated only once it is known to be a regular file of one name.
    safe = (flags & ~os.O_TRUNC) | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(name, safe, mode, dir_fd=parent)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _reject(path, "it is a symbolic link in a directory that others can write to") from None
        if error.errno == errno.ENXIO:
            raise _reject(path, "it is not a regular file") from None
        raise type(error)(error.errno, error.strerror, path) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _reject(path, "it is not a regular file")
        if status.st_nlink > 1 and not is_trusted(os.fstat(parent)):
            raise _reject(path, "it has another name (a hard link), and others can write to its directory")
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_bytes(path: str, limit: int = -1, beneath: str = "") -> bytes:
    """Return the content of a regular file, at most its first `limit` bytes (-1: all of it)."""
    with os.fdopen(open_file(path, beneath=beneath), "rb") as stream:
        return stream.read(limit)


def read_text(path: str, limit: int = -1, beneath: str = "") -> str:
    """Return the content of a regular file as UTF-8; undecodable bytes are replaced."""
    return read_bytes(path, limit, beneath).decode("utf-8", "replace")


def read_tail(path: str, limit: int) -> bytes:
    """Return the last `limit` bytes of a regular file."""
    with os.fdopen(open_file(path), "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - limit))
        return stream.read(limit)


def status(path: str) -> os.stat_result:
    """Return the status of a regular file."""
    with closing(open_file(path)) as descriptor:
        return os.fstat(descriptor)


def find(pattern: str) -> list:
    """Return [(path, status)] of the regular files that a pattern matches, by name; it has wildcards in the name only.

    What open_file() would reject is left out.
    """
    directory, wanted = os.path.split(pattern)
    try:
        descriptor = open_directory(directory)
    except OSError:
        return []
    try:
        names = sorted(fnmatch.filter(os.listdir(descriptor), wanted))
    finally:
        os.close(descriptor)
    found = []
    for name in names:
        if not name.startswith(".") or wanted.startswith("."):
            with contextlib.suppress(OSError):
                found.append((os.path.join(directory, name), status(os.path.join(directory, name))))
    return found


def append(path: str, data: bytes, mode: int = 0o640, beneath: str = "") -> None:
    """Append to a regular file by one write; a file of our own has this mode, whatever the umask is."""
    with closing(open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode, beneath)) as descriptor:
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != mode:
            os.fchmod(descriptor, mode)
        os.write(descriptor, data)


def _fresh(parent: int, name: str) -> str:
    """Return the name next to a file under which its replacement is made. What has that name is removed.

    It is the same in each run, so that what a killed one left is found. A directory, which only a less privileged user
    can have put there, is renamed.
    """
    fresh = ".%s.new" % name
    if len(os.fsencode(fresh)) > _NAME_BYTES:
        fresh = ".%s.new" % hashlib.sha256(os.fsencode(name)).hexdigest()
    with contextlib.suppress(FileNotFoundError):
        try:
            os.unlink(fresh, dir_fd=parent)
        except IsADirectoryError:
            _rename_away(parent, fresh)
    return fresh


def _rename_away(parent: int, name: str) -> None:
    os.rename(name, "replaced-" + secrets.token_hex(8), src_dir_fd=parent, dst_dir_fd=parent)


def make_way(path: str, directory: bool, beneath: str = "") -> None:
    """Rename what is of another kind: a file where a directory is to be, or a directory where none is to be."""
    with _parent(path, False, None, beneath) as (parent, name), contextlib.suppress(FileNotFoundError):
        kind = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if not stat.S_ISLNK(kind) and stat.S_ISDIR(kind) != directory:
            _rename_away(parent, name)


@contextlib.contextmanager
def replacing(
    path: str,
    mode: int,
    uid: int = -1,
    gid: int = -1,
    mtime_ns: Optional[int] = None,
    beneath: str = "",
    sync: bool = True,
) -> Iterator:
    """Replace a file as a unit by what is written to the stream: a new file next to it, fsync, rename.

    The mode is exact, whatever the umask is. A link under that name is replaced itself. sync: whether it is on disk at
    the end; a caller that writes many files does that once.
    """
    with _parent(path, False, None, beneath) as (parent, name):
        fresh = _fresh(parent, name)
        descriptor = os.open(
            fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent
        )
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fchown(stream.fileno(), uid, gid)
                os.fchmod(stream.fileno(), mode)
                if mtime_ns is not None:
                    os.utime(stream.fileno(), ns=(mtime_ns, mtime_ns))
                if sync:
                    os.fsync(stream.fileno())
            os.rename(fresh, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(fresh, dir_fd=parent)
            if isinstance(error, OSError):
                raise type(error)(error.errno, error.strerror, path) from None
            raise
        if sync:
            os.fsync(parent)


def write(path: str, data: bytes, mode: int, uid: int = -1, gid: int = -1, beneath: str = "") -> None:
    """Replace a file as a unit, as replacing() does."""
    with replacing(path, mode, uid, gid, beneath=beneath) as stream:
        stream.write(data)


def replace_link(path: str, target: str, uid: int = -1, gid: int = -1, beneath: str = "") -> None:
    """Put a symbolic link in the place of a file or a link."""
    with _parent(path, False, None, beneath) as (parent, name):
        fresh = _fresh(parent, name)
        os.symlink(target, fresh, dir_fd=parent)
        try:
            os.chown(fresh, uid, gid, dir_fd=parent, follow_symlinks=False)
            os.rename(fresh, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError as error:
            os.unlink(fresh, dir_fd=parent)
            raise type(error)(error.errno, error.strerror, path) from None


def make_directory(path: str, mode: int, uid: int = -1, gid: int = -1, beneath: str = "") -> bool:
    """Have a directory; an existing one is left as it is. Returns whether it was made.

    A link in a trusted directory is accepted, or rejected below `beneath`; elsewhere a directory takes its place.
    """
    with _parent(path, False, None, beneath) as (parent, name):
        with contextlib.suppress(FileNotFoundError):
            kind = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
            if stat.S_ISDIR(kind) or stat.S_ISLNK(kind) and is_trusted(os.fstat(parent)):
                if stat.S_ISLNK(kind) and beneath and _components(path) != _components(beneath):
                    raise _reject(path, "it is a symbolic link, and a directory is needed")
                return False
            if stat.S_ISLNK(kind):
                os.unlink(name, dir_fd=parent)
        os.mkdir(name, 0o700, dir_fd=parent)
        with closing(os.open(name, _DIRECTORY, dir_fd=parent)) as descriptor:
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
        return True


def rename(path: str, name: str) -> None:
    """Give a file another name in the same directory."""
    with _parent(path, follow=False) as (parent, old):
        os.rename(old, name, src_dir_fd=parent, dst_dir_fd=parent)


def walk(path: str, beneath: str = "") -> Iterator[tuple]:
    """Yield (path relative to the top, directories, files, descriptor) of a tree like os.fwalk(), never through a link.

    The descriptor is valid until the next step. "." is the top itself.
    """
    top = open_directory(path, beneath=beneath)
    try:
        yield from os.fwalk(".", dir_fd=top, follow_symlinks=False)
    finally:
        os.close(top)


def change_owner(
    path: str, uid: int, gid: int, of: Optional[int] = None, beneath: str = "", seal: bool = False
) -> None:
    """Give a tree to an owner; links themselves, not what they lead to.

    A file that has another name (a hard link) is given away only where it belongs to the user `of`, else rejected.
    seal: directories become 0755, files 0644 or 0755, so that the new owner alone can write and nothing is setuid; what
    is no regular file, directory or link is rejected.
    """
    top = open_directory(path, beneath=beneath)
    try:
        _change_owner(top, path, uid, gid, of, seal, 0)
    finally:
        os.close(top)


def _change_owner(directory: int, path: str, uid: int, gid: int, of: Optional[int], seal: bool, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _reject(path, "its directories are nested too deeply")
    # Before its entries are read: from here on the former owner neither adds nor renames one.
    os.fchown(directory, uid, gid)
    if seal:
        os.fchmod(directory, 0o755)
    for name in os.listdir(directory):
        # By its own descriptor: the name may be another file's immediately after.
        entry = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            status, own_path, there = os.fstat(entry), "/proc/self/fd/%d" % entry, os.path.join(path, name)
            if stat.S_ISDIR(status.st_mode):
                below = os.open(own_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    _change_owner(below, there, uid, gid, of, seal, depth + 1)
                finally:
                    os.close(below)
            elif stat.S_ISLNK(status.st_mode):
                os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
            elif seal and not stat.S_ISREG(status.st_mode):
                raise _reject(there, "it is not a regular file")
            elif status.st_nlink > 1 and status.st_uid not in (uid, of):
                raise _reject(there, "it has another name (a hard link)")
            else:
                os.chown(own_path, uid, gid)
                if seal:
                    os.chmod(own_path, 0o755 if status.st_mode & 0o111 else 0o644)
        finally:
            os.close(entry)


def remove_tree(path: str, missing_ok: bool = True, beneath: str = "") -> None:
    """Remove a directory with all that it holds; a link is removed itself."""
    with contextlib.suppress(*((FileNotFoundError,) if missing_ok else ())):
        with _parent(path, False, None, beneath) as (parent, name):
            os.stat(name, dir_fd=parent, follow_symlinks=False)
            # rm follows no link, and takes trees that are deeper than Python's stack or a process' descriptors.
            done = subprocess.run(
                ["rm", "-rf", "--one-file-system", "--", "./" + name],
                cwd="/proc/self/fd/%d" % parent,
                stderr=subprocess.PIPE,
                check=False,
            )
            if done.returncode != 0:
                raise OSError(errno.EIO, done.stderr.decode(errors="replace").strip()[-500:], path)


def untrusted_parent(path: str) -> str:
    """Return the first directory above path in which a user other than root could exchange an entry, or an empty text.

    A link is followed: it is in a directory that only root can change. What is not there yet ends the search.
    """
    current, left, links = "/", [part for part in path.split("/") if part], 0
    while left:
        status = os.lstat(current)
        if not stat.S_ISDIR(status.st_mode) or not is_trusted(status):
            return current
        entry = os.path.join(current, left.pop(0))
        try:
            is_link = stat.S_ISLNK(os.lstat(entry).st_mode)
        except FileNotFoundError:
            return ""
        if not is_link:
            current = entry
            continue
        links += 1
        if links > _MAX_LINKS:
            return entry
        target = os.readlink(entry)
        if target.startswith("/"):
            current = "/"
        left = [part for part in target.split("/") if part not in ("", ".")] + left
        while left and left[0] == "..":
            left.pop(0)
            current = os.path.dirname(current)
    return ""
