"""Evidence of the disks: space, inodes, who holds files that are deleted, what is large, and whether logs rotate."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import stat
import time

from ..host import probe, safe_files
from .host import describe, processes, read

_TOP = 10
# Each level costs a descriptor; the application may nest directories without end.
_DEEPEST = 60
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def disk(setting) -> dict:
    """Space and inodes of every real filesystem, and the disks of each array."""
    mounts = probe.disk_usage(setting.proc, timeout=4.0)
    _name_what_lies_there(mounts, setting)
    return {"mounts": mounts, "arrays": parse_mdstat(read(setting.proc, "mdstat"))}


def parse_mdstat(text: str) -> list:
    """Return of each redundant array of /proc/mdstat how many disks it has, and of how many it is made."""
    found = re.findall(r"^(md\S*) : (.*)\n.* \[(\d+)/(\d+)\] \[[U_]+\]", text, re.M)
    return [
        {"device": device, "disks": int(active), "of": int(total), "members": members[:200]}
        for device, members, total, active in found
    ]


def _name_what_lies_there(mounts: list, setting) -> None:
    """Return for each filesystem which parts of ShiftMaster write to it."""
    paths = sorted((mount["path"] for mount in mounts), key=len, reverse=True)
    for mount in mounts:
        mount["holds"] = sorted(
            name
            for name, path in setting.writers.items()
            if next((one for one in paths if (path + "/").startswith(one.rstrip("/") + "/")), None) == mount["path"]
            # A cluster's directory, or its write-ahead log, may be a filesystem of its own.
            or (name in ("postgresql", "redis") and mount["path"].startswith(path + "/"))
        )


_MEMORY = ("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV")


def deleted(setting) -> dict:
    """Files that are deleted but still open: their room comes back when their process closes them."""
    proc, found = setting.proc, {}
    for pid, process in processes(proc).items():
        directory = os.path.join(proc, str(pid), "fd")
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                target = os.readlink(path)
                # Memory that is only called a file has no room on a disk.
                if not target.endswith(" (deleted)") or target.startswith(_MEMORY):
                    continue
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode) and status.st_blocks:
                    key = (status.st_dev, status.st_ino)
                    found.setdefault(key, (status.st_blocks * 512, target[: -len(" (deleted)")], pid, process))
    largest = sorted(found.items(), key=lambda one: one[1][0], reverse=True)
    paths, by_mount = devices(proc), {}
    for (device, _inode), (size, _path, _pid, _process) in largest:
        where = paths.get(device, "")
        by_mount[where] = by_mount.get(where, 0) + size
    return {
        "bytes": sum(by_mount.values()),
        "by_mount": by_mount,
        "files": [
            dict(describe(pid, process, proc), path=path, bytes=size, mount=paths.get(device, ""))
            for (device, _inode), (size, path, pid, process) in largest[:_TOP]
        ],
    }


def devices(proc: str) -> dict:
    """Return {device: path} of the local filesystems; a dead remote one would hold whoever looks at it."""
    found = {}
    for mount in probe.real_mounts(probe.parse_mountinfo(read(proc, "self", "mountinfo"))):
        if mount.kind not in probe._REMOTE and not mount.kind.startswith("fuse."):
            with contextlib.suppress(OSError):
                found[os.stat(mount.path).st_dev] = mount.path
    return found


def largest(setting) -> dict:
    """The largest files and directories of logs and data; files that are not seen within two seconds are counted."""
    end, files, directories, complete = time.monotonic() + 2.0, [], {}, True
    counted, seen, local, least, lies_on = {}, set(), devices(setting.proc), 0, {}

    def visit(descriptor, directory, top, depth):
        """Count one directory and what lies below it, by its descriptor: a name may be a link immediately after."""
        nonlocal files, complete, least
        entries, below, used = 0, [], 0
        with os.scandir(descriptor) as found:
            for entry in found:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    # What lies below is inspected wherever it is mounted from, if that is local.
                    if status.st_dev in local:
                        entries += 1
                        below.append(entry.name)
                    continue
                entries += 1
                if not entries % 1000 and time.monotonic() > end:
                    complete = False
                    break
                if status.st_nlink > 1:
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    seen.add((status.st_dev, status.st_ino))
                size = status.st_blocks * 512
                used += size
                if size >= least:
                    files.append((size, "%s/%s" % (directory, entry.name), local.get(status.st_dev, "")))
                    if len(files) > 4 * _TOP:
                        files = sorted(files, reverse=True)[:_TOP]
                        least = files[-1][0]
        counted[directory] = entries
        if used:
            directories[top or directory] = directories.get(top or directory, 0) + used
            lies_on.setdefault(top or directory, local.get(os.fstat(descriptor).st_dev, ""))
        for name in below:
            if time.monotonic() > end or depth == _DEEPEST:
                complete = False
                return
            try:
                inner = os.open(name, _DIRECTORY, dir_fd=descriptor)
            except OSError:
                continue
            try:
                path = "%s/%s" % (directory, name)
                # Counted for the directory directly below the root, as `du -s /var/log/*` has it.
                visit(inner, path, top or path, depth + 1)
            finally:
                os.close(inner)

    for root in setting.large_dirs:
        try:
            descriptor = safe_files.open_directory(root)
        except OSError:
            continue
        try:
            local.setdefault(os.fstat(descriptor).st_dev, root)
            if time.monotonic() > end:
                complete = False
            else:
                visit(descriptor, root, "", 0)
        finally:
            os.close(descriptor)
    heaviest = sorted(directories.items(), key=lambda one: -one[1])[:_TOP]
    crowded = sorted(((count, path) for path, count in counted.items() if count > 1000), reverse=True)[:3]
    files = sorted(files, reverse=True)[:_TOP]
    return {
        "complete": complete,
        "files": [{"path": path, "bytes": size, "mount": mount} for size, path, mount in files],
        "directories": [{"path": path, "bytes": size, "mount": lies_on[path]} for path, size in heaviest],
        "crowded": [{"path": path, "entries": count} for count, path in crowded],
    }


def rotation(setting) -> dict:
    """The application's logs, when logs were last rotated, and which ones logrotate knows."""
    logs = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(setting.log_dir):
            if entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                owner, group = _name(pwd.getpwuid, status.st_uid), _name(grp.getgrgid, status.st_gid)
                log = {"name": entry.name, "bytes": status.st_size, "changed": int(status.st_mtime)}
                logs.append(dict(log, mode=stat.filemode(status.st_mode), owner=owner, group=group))
    age, known = None, []
    with contextlib.suppress(OSError), open(setting.path("/var/lib/logrotate/status"), errors="replace") as stream:
        age = round((time.time() - os.fstat(stream.fileno()).st_mtime) / 86400.0, 1)
        known = re.findall(r'(?m)^"(/var/log/[^"\n]+)" ', stream.read(1 << 20))[:500]
    return {"logs": sorted(logs, key=lambda one: -one["bytes"])[:30], "rotated_days_ago": age, "known": known}


def _name(lookup, number: int) -> str:
    """Return the name of a user or group; one that was removed has only its number."""
    try:
        return lookup(number)[0]
    except KeyError:
        return str(number)


def parse_diskstats(text: str) -> dict:
    """Return {device: (milliseconds busy, requests, milliseconds of requests)} of complete disks."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 14 and not re.match(r"(loop|ram|zram|sr)\d|.*\dp\d+$|[shv]d[a-z]+\d+$|xvd[a-z]\d+$", words[2]):
            found[words[2]] = (int(words[12]), int(words[3]) + int(words[7]), int(words[6]) + int(words[10]))
    return found


def traffic(setting) -> dict:
    """How busy each disk is, and how long a request takes."""
    before = parse_diskstats(read(setting.proc, "diskstats"))
    began = time.monotonic()
    time.sleep(1.0)
    passed = (time.monotonic() - began) * 1000.0
    disks = []
    for device, (busy, requests, waited) in parse_diskstats(read(setting.proc, "diskstats")).items():
        old_busy, old_requests, old_waited = before.get(device, (busy, requests, waited))
        count = requests - old_requests
        percent = round(min(100.0, 100.0 * (busy - old_busy) / passed), 1)
        each = round((waited - old_waited) / count, 1) if count else 0.0
        disks.append({"device": device, "busy_percent": percent, "requests": count, "milliseconds": each})
    return {"disks": sorted(disks, key=lambda one: -one["busy_percent"])[:_TOP]}
