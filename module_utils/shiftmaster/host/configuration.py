"""A service's configuration as one set of files: compared, checked in a copy, swapped, loaded, verified or rolled back.

A state is ("none",), ("link", target), ("file", bytes, mode, uid, gid[, mtime_ns]) or ("other",) for what is neither.
None as uid or gid is not compared and not set. Services own the directories of their configuration on Debian (postgres,
redis): paths are resolved by safe_files, and a copy is made in a directory of root's.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import pwd
import re
import shutil
import stat
import subprocess

from . import safe_files, units

# Lost by a reboot, as the processes are whose state the notes describe.
NOTES = "/run/shiftmaster-services"
# Its time is that of the last change by a run. What is younger was edited by hand (diagnosis).
STAMP = "/var/lib/shiftmaster-ops/configured"
# Limits of one file and of a directory with all that is in it; both may be a service's.
FILE_LIMIT_BYTES = 16 * 1024 * 1024
COPY_LIMIT_BYTES = 128 * 1024 * 1024


class Rejected(Exception):
    """Nothing was changed; str() shows why."""


class Failed(Exception):
    """A change did not take effect; str() shows why, and that the earlier files are back."""


# --- states ---------------------------------------------------------------------------------------------------------


def _read(parent, name, path):
    with os.fdopen(safe_files.open_in(parent, name, path=path), "rb") as stream:
        content = stream.read(FILE_LIMIT_BYTES + 1)
        if len(content) > FILE_LIMIT_BYTES:
            raise Rejected("%s is larger than %d bytes" % (path, FILE_LIMIT_BYTES))
        info = os.fstat(stream.fileno())
        return ("file", content, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns)


def read_state(path):
    """Return what a path is now; a file with its owner and time."""
    try:
        with safe_files.entry(path) as (parent, name):
            kind = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
            if stat.S_ISLNK(kind):
                return ("link", os.readlink(name, dir_fd=parent))
            return _read(parent, name, path) if stat.S_ISREG(kind) else ("other",)
    except (FileNotFoundError, NotADirectoryError):
        return ("none",)


def read_text(path):
    """Return the text of a file, "" where there is none or a link."""
    try:
        state = read_state(path)
    except OSError as error:
        raise Rejected("%s: %s" % (path, error.strerror))
    return state[1].decode("utf-8", "replace") if state[0] == "file" else ""


def _prepare(parent, name, state):
    """Write a state under a hidden name in the directory of this descriptor; return that name (None for an absence)."""
    if state[0] == "none":
        return None
    temporary = ".%s.new" % name
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=parent)
    if state[0] == "link":
        os.symlink(state[1], temporary, dir_fd=parent)
        return temporary
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=parent), "wb") as stream:
        stream.write(state[1])
        stream.flush()
        os.fchown(stream.fileno(), *(-1 if number is None else number for number in state[3:5]))
        os.fchmod(stream.fileno(), state[2])
        if len(state) > 5:
            # As before, so that the next run does not take it for a change.
            os.utime(stream.fileno(), ns=(state[5], state[5]))
        os.fsync(stream.fileno())
    return temporary


def place_all(states):
    """Write all temporary files first, then only rename, so that both sets are mixed as briefly as possible."""
    with contextlib.ExitStack() as held:
        prepared = []
        for path, state in states.items():
            try:
                parent, name = held.enter_context(safe_files.entry(path, None if state[0] == "none" else 0o755))
            except (FileNotFoundError, NotADirectoryError):
                if state[0] != "none":
                    raise
                continue
            prepared.append((parent, name, _prepare(parent, name, state)))
        for parent, name, temporary in prepared:
            if temporary is not None:
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=parent)


def _same(now, wanted):
    return now[:3] == wanted[:3] and all(want in (None, have) for have, want in zip(now[3:], wanted[3:]))


def check_path(path):
    if not os.path.isabs(path) or ".." in path.split("/"):
        raise Rejected("%s is not an absolute path" % path)


def identity(path, owner, group, missing_ok):
    """Return (uid, gid); None for a name that is None, or that does not exist and may be missing (check mode)."""
    found = []
    for kind, table, name in (("user", pwd.getpwnam, owner), ("group", grp.getgrnam, group)):
        try:
            found.append(None if name is None else table(name)[2])
        except KeyError:
            if not missing_ok:
                raise Rejected("%s: there is no %s %s" % (path, kind, name))
            found.append(None)
    return tuple(found)


def lets_read(state, reader):
    """Return whether the mode of a file lets a process (service_user.process_of) read it."""
    mode, uid, gid = state[2:5]
    if uid == reader["user"]:
        return bool(mode & 0o400)
    return bool(mode & (0o040 if gid in reader["extra_groups"] else 0o004))


def hide(before, after):
    """Show a secret in a diff as what it is."""
    shown = "(a secret)\n" if before is not None else ""
    return shown, "" if after is None else "(another secret)\n" if before not in (None, after) else "(a secret)\n"


def describe(path, before, after, mask=None):
    """Return one entry of Ansible's diff. mask(text or None, text or None) returns both as they may be shown."""
    texts = [state[1].decode("utf-8", "replace") if state[0] == "file" else None for state in (before, after)]
    shown = list(mask(*texts) if mask else (text or "" for text in texts))
    for number, state in enumerate((before, after)):
        if state[0] == "link":
            shown[number] = "link to %s\n" % state[1]
    details = []
    if before[0] == after[0] == "file":
        if before[2] != after[2]:
            details.append("mode %04o -> %04o" % (before[2], after[2]))
        owner = tuple(have if want is None else want for have, want in zip(before[3:5], after[3:5]))
        if owner != before[3:5]:
            details.append("owner %s:%s -> %s:%s" % (before[3:5] + owner))
    return {
        "before": shown[0],
        "after": shown[1],
        "before_header": path if before[0] != "none" else "%s (absent)" % path,
        "after_header": "%s (absent)" % path
        if after[0] == "none"
        else path + (" (%s)" % ", ".join(details) if details else ""),
    }


# --- one run --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock():
    """Let one run at a time compare and change configurations on this host; the kernel releases it for who dies."""
    with safe_files.closing(safe_files.open_directory(NOTES, 0o755)) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def read_note(unit):
    """Return what the last verified run noted about the process of a unit."""
    try:
        return dict(json.loads(safe_files.read_text(os.path.join(NOTES, "%s.json" % unit))))
    except (OSError, ValueError, TypeError):
        return {}


def write_note(unit, content):
    """Note it; None removes the note: from now on it is unknown what the process has loaded."""
    path = os.path.join(NOTES, "%s.json" % unit)
    if content is not None:
        safe_files.write(path, json.dumps(content).encode(), 0o600)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def run(module, name, work):
    """Be main() of a module: lock, let work() return the result, and report what it raises."""
    try:
        with lock():
            result = work()
    except Rejected as error:
        module.fail_json(msg="%s: nothing was changed: %s" % (name, error))
    except subprocess.TimeoutExpired as error:
        module.fail_json(msg="%s: %s did not end within %d s" % (name, error.cmd[0], error.timeout))
    except (Failed, units.UnitError, OSError) as error:
        module.fail_json(msg="%s: %s" % (name, error))
    module.exit_json(**result)


class FileSet:
    """Files, links, absences and directories as they shall be, and what differs on the host (compare)."""

    def __init__(self, check_mode=False):
        self.check_mode = check_mode
        self.wanted, self.masks, self.directories = {}, {}, {}
        # The earlier state by path; of a directory (mode, uid, gid), None where there is none.
        self.changes, self.directory_changes = {}, {}

    def want(self, path, state, mask=None):
        check_path(path)
        if path in self.wanted:
            raise Rejected("%s is named twice" % path)
        self.wanted[path], self.masks[path] = state, mask

    def _attributes(self, item):
        try:
            mode = int(item.get("mode", "0644"), 8)
        except ValueError:
            raise Rejected("%s: %s is no mode" % (item["path"], item["mode"]))
        return (mode, *identity(item["path"], item.get("owner"), item.get("group"), self.check_mode))

    def add(self, item, mask=None):
        """Want a file: path and content; mode, owner and group where given."""
        self.want(item["path"], ("file", item["content"].encode("utf-8"), *self._attributes(item)), mask)

    def add_directory(self, item):
        check_path(item["path"])
        self.directories[item["path"]] = self._attributes(item)

    def compare(self):
        """Find what differs. Rejected where a path leads through somebody else's link or is no regular file."""
        for path, wanted in self.directories.items():
            try:
                descriptor = safe_files.open_directory(path)
            except FileNotFoundError:
                self.directory_changes[path] = None
                continue
            except OSError as error:
                raise Rejected("%s cannot be used: %s" % (path, error.strerror))
            info = os.fstat(descriptor)
            os.close(descriptor)
            now = (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
            if any(want not in (None, have) for have, want in zip(now, wanted)):
                self.directory_changes[path] = now
        for path, wanted in self.wanted.items():
            try:
                now = read_state(path)
            except OSError as error:
                raise Rejected("%s: %s" % (path, error.strerror))
            if now[0] == "other":
                raise Rejected("%s is neither a file nor a link" % path)
            if not _same(now, wanted):
                self.changes[path] = now

    def before(self, path):
        """Return the text of a file of the set before this run, "" where there was none."""
        state = self.changes.get(path, self.wanted[path])
        return state[1].decode("utf-8", "replace") if state[0] == "file" else ""

    def diff(self, hidden=()):
        """Return Ansible's diff, without the paths that interest nobody."""
        found = [
            describe(path, before, self.wanted[path], self.masks[path])
            for path, before in sorted(self.changes.items())
            if path not in hidden
        ]
        text = "directory, mode %04o, owner %s:%s\n"
        for path, before in self.directory_changes.items():
            after = tuple(
                (before or (None,) * 3)[at] if n is None else n for at, n in enumerate(self.directories[path])
            )
            shown = {"before": text % before if before else "", "after": text % after}
            found.append(dict(shown, before_header=path, after_header=path))
        return found

    @contextlib.contextmanager
    def staged(self, root, unit, reader=None, rewrite=lambda path: False):
        """Yield (copy of a directory with the set in it, empty directory for a check); both go afterwards.

        reader: a process (service_user.process_of) that can read of the copy what it can of the live files, and write
        to the empty directory alone. rewrite: names the files in which paths below root become paths of the copy.
        """
        place = os.path.join(NOTES, "stage-%s" % unit)
        tree, work = os.path.join(place, "root"), os.path.join(place, "work")
        try:
            # An interrupted run left it.
            shutil.rmtree(place, ignore_errors=True)
            safe_files.make_directory(place, 0o700)
            os.mkdir(tree, 0o755)
            os.mkdir(work, 0o700)
            _copy(root, tree, reader)
            for path, state in self.wanted.items():
                if not path.startswith(root + "/"):
                    continue
                staged = tree + path[len(root) :]
                # A link that was copied as it is.
                if not (os.path.realpath(os.path.dirname(staged)) + "/").startswith(os.path.realpath(tree) + "/"):
                    raise Rejected("%s leads out of %s" % (path, root))
                if state[0] == "file":
                    data = _rewritten(state[1], root, tree) if rewrite(path) else state[1]
                    state = ("file", data, *_copied_attributes(state, reader))
                place_all({staged: state})
            if reader:
                os.chown(work, reader["user"], reader["group"])
                os.chown(place, 0, reader["group"])
                os.chmod(place, 0o710)
            yield tree, work
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def make_directories(self):
        for path in self.directory_changes:
            mode, uid, gid = self.directories[path]
            with safe_files.closing(safe_files.open_directory(path, 0o755)) as descriptor:
                os.fchown(descriptor, -1 if uid is None else uid, -1 if gid is None else gid)
                os.fchmod(descriptor, mode)

    def swap(self, only=lambda path: True):
        self._place({path: self.wanted[path] for path in self.changes if only(path)})

    @staticmethod
    def _place(states):
        place_all(states)
        if states:
            os.makedirs(os.path.dirname(STAMP), 0o755, exist_ok=True)
            with open(STAMP, "w"):
                os.utime(STAMP)

    def apply(self, load, restore, first=lambda: None):
        """Swap the set in and load() it, which raises where that has no effect; its result is returned.

        first() comes before the swap and may place a part of the set. Where one of them raises, the earlier files are
        placed, and restore() loads and verifies them; it may return the state of the service. Failed contains both.
        """
        try:
            first()
            self.swap()
            return load()
        except BaseException as error:
            if not self.changes:
                raise
            self._place(self.changes)
            problem = ""
            try:
                end = restore() or " and in use"
            except (Failed, Rejected, units.UnitError, OSError, subprocess.TimeoutExpired) as again:
                end, problem = "", ", but: %s" % again
            if not isinstance(error, Exception):
                raise
            raise Failed("%s. The earlier files are back in place%s%s." % (str(error).rstrip("."), end, problem))


# --- copies ---------------------------------------------------------------------------------------------------------


def _rewritten(data, root, copy):
    """Return a content in which every path below root leads to the copy."""
    return re.sub(rb"(?<![\w./-])" + re.escape(root.encode()) + rb"(?=/)", lambda _match: copy.encode(), data)


def _copied_attributes(state, reader):
    if reader is None:
        return state[2], None, None
    readable = lets_read((*state[:3], *(number or 0 for number in state[3:5])), reader)
    return 0o640 if readable else 0o600, None, reader["group"]


def _copy(root, tree, reader):
    """Copy regular files, directories and links into a directory that only root can write to.

    A link inside of root leads to the copy, one out of it to where it led. Anything else is left out.
    """
    left = COPY_LIMIT_BYTES
    try:
        for directory, directories, names, descriptor in safe_files.walk(root):
            for name in directories + names:
                relative = os.path.normpath(os.path.join(directory, name))
                source, target = os.path.join(root, relative), os.path.join(tree, relative)
                kind = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
                if stat.S_ISDIR(kind):
                    os.mkdir(target, 0o755)
                elif stat.S_ISLNK(kind):
                    link = os.readlink(name, dir_fd=descriptor)
                    leads = os.path.normpath(os.path.join(os.path.dirname(source), link))
                    if leads.startswith(root + "/"):
                        link = tree + leads[len(root) :] if os.path.isabs(link) else link
                    else:
                        link = leads
                    os.symlink(link, target)
                elif stat.S_ISREG(kind):
                    state = _read(descriptor, name, source)
                    left -= len(state[1])
                    if left < 0:
                        raise Rejected("%s holds more than %d bytes" % (root, COPY_LIMIT_BYTES))
                    place_all({target: ("file", state[1], *_copied_attributes(state, reader))})
    except FileNotFoundError:
        if os.path.lexists(root):
            raise Rejected("%s changes while it is read" % root)
    except OSError as error:
        raise Rejected("%s cannot be copied: %s" % (error.filename or root, error.strerror))
