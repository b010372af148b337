"""Metrics of several processes in one directory, so that counters go on whichever process ends.

Each process has one file there, `<pid>-<random>.db`, that it writes to through memory: what it has counted is kept also
when it is killed. It holds a lock of the kernel's on that file for as long as it lives; so neither a pid that is used
again nor processes that cannot see each other (the units have user namespaces of their own) are a question. Whoever
reads, or comes by, adds what ended processes have left to `ended.json` and removes their files: at a scrape, when
gunicorn's master sees a process end, and when a process begins where many files are.

Reading and adding up happen under one lock. ended.json names the files that it contains, and replaces its earlier self
by one rename: killed at any point, the next one counts nothing twice and loses nothing.

prometheus_client's own files are not used: it never adds up (its files grow without bound), its pid is no identity, and
on a full disk a process that writes to its memory is killed by SIGBUS. Here room is reserved before it is used.

This module needs the standard library only: gunicorn's master imports it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import re
import struct
import threading
import time
import weakref

from . import trouble

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
# One process' file, at its start and at the most; a series takes about 200 bytes.
START_BYTES = 1 << 16
MAX_BYTES = 1 << 23
# Where so many files are when a process begins, ended ones are added up first.
MANY_FILES = 48
# How often a process looks whether its file is still there, or can be made at last.
CHECK_SECONDS = 10.0
LOCK_SECONDS = 2.0
_MAGIC = b"shiftm1\n"
_HEADER = 64
_MINE = re.compile(r"^(\d+)-[0-9a-f]{8}\.db\Z")
_USED = struct.Struct("q")
_LENGTH = struct.Struct("i")
_PAIR = struct.Struct("dd")
_VALUE = struct.Struct("d")


class Busy(Exception):
    """Somebody else has held the directory's lock for too long."""


class Corrupt(Exception):
    """A file is not what it was written as."""


def directory():
    """Return the directory that processes share, None where there is none."""
    return os.environ.get(DIRECTORY) or None


# ---------------------------------------------------------------------------------------------------- writing


class Store:
    """This process' file. Everything is done under .lock; .generation changes when values must be placed again."""

    def __init__(self):
        self.values = weakref.WeakSet()
        self.reset()

    def reset(self) -> None:
        """Begin as a process that has counted nothing: at the start, and in the child after a fork."""
        # The parent's other threads do not exist in the child, and one of them may have held the lock.
        self.lock = threading.RLock()
        self.process = object()
        self.check_at = 0.0
        self._forget_file()

    def _forget_file(self) -> None:
        self.generation = object()
        self.memory, self.used, self.size, self.positions = None, 0, 0, {}
        self.file, self.held, self.path = None, None, None

    def after_fork(self) -> None:
        # The lock belongs to what was opened, not to a process: the child must let go of it.
        for descriptor in (self.file, self.held):
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self.reset()

    def place(self, key: bytes) -> int:
        """Return where in .memory a series has its value, 0 where it can have no place now."""
        try:
            if self.memory is None:
                if time.monotonic() < self.check_at:
                    return 0
                self.check_at = time.monotonic() + CHECK_SECONDS
                self._begin()
                # A histogram without its empty buckets is none.
                for value in list(self.values):
                    value.renew(self)
            if key not in self.positions:
                self._append(key)
            return self.positions[key]
        except (OSError, ValueError, Corrupt) as error:
            trouble.say("the directory of metrics %s" % directory(), error)
            return 0

    def _begin(self) -> None:
        where = directory()
        # The lock file and ended.json are none.
        if len(os.listdir(where)) > MANY_FILES:
            with trouble.contained("adding up ended processes' metrics"):
                merge()
        path = os.path.join(where, "%d-%s" % (os.getpid(), os.urandom(4).hex()))
        # Under its own name only once it is locked: nobody shall take it for an ended process'.
        held = os.open(path + ".new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its memory keeps this one open, also in a forked child until it has dropped it; so it holds no lock.
            self.file = os.open(path + ".new", os.O_RDWR | os.O_CLOEXEC)
            self._reserve(START_BYTES)
            self.memory[0 : len(_MAGIC)] = _MAGIC
            self._use(_HEADER)
            os.rename(path + ".new", path + ".db")
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path + ".new")
            os.close(held)
            if self.file is not None:
                os.close(self.file)
            self._forget_file()
            raise
        self.held, self.path = held, path + ".db"

    def _reserve(self, size: int) -> None:
        if size > MAX_BYTES:
            raise Corrupt("this process has more series than fit into %d bytes" % MAX_BYTES)
        # A hole that cannot be filled later would be a signal, not an error.
        os.posix_fallocate(self.file, 0, size)
        self.memory, self.size = mmap.mmap(self.file, size), size

    def _use(self, used: int) -> None:
        self.used = used
        self.memory[8:16] = _USED.pack(used)

    def _append(self, key: bytes) -> None:
        padded = key + b" " * (-(len(key) + _LENGTH.size) % 8)
        entry = _LENGTH.pack(len(key)) + padded + _PAIR.pack(0.0, 0.0)
        while self.used + len(entry) > self.size:
            self._reserve(self.size * 2)
        self.memory[self.used : self.used + len(entry)] = entry
        self.positions[key] = self.used + len(entry) - _PAIR.size
        # Last: readers stop at this position.
        self._use(self.used + len(entry))

    def check_file(self) -> None:
        """See that the file is there, now and then; otherwise write all that was counted into a new one."""
        now = time.monotonic()
        if now < self.check_at or directory() is None:
            return
        with self.lock:
            if now < self.check_at:
                return
            if self.memory is not None and os.fstat(self.file).st_nlink == 0:
                os.close(self.file)
                os.close(self.held)
                self._forget_file()
            self.check_at = 0.0  # The first one may open it.
            for value in [value for value in list(self.values) if not value.placed(self)]:
                value.renew(self)
            self.check_at = now + CHECK_SECONDS


store = Store()


class SharedValue:
    """What prometheus_client keeps a number in; install() sets it. No call raises anything."""

    _multiprocess = True

    def __init__(self, typ, metric_name, name, labelnames, labelvalues, help_text, multiprocess_mode="", **_more):
        labels = [[str(label), str(value)] for label, value in zip(labelnames, labelvalues)]
        # Not the help, which would be most of it: whoever reads knows it, too.
        self.key = json.dumps([typ, multiprocess_mode, metric_name, name, labels]).encode()
        self.family, self.help = metric_name, help_text
        self._value, self._time, self._position = 0.0, 0.0, 0
        self._generation, self._process = None, store.process
        with store.lock:
            store.values.add(self)
            if store.memory is not None:
                self.renew(store)

    def placed(self, where) -> bool:
        return self._generation is where.generation and self._position > 0

    def renew(self, where) -> None:
        if self._process is not where.process:
            # A fork: the parent goes on with what it has counted.
            self._process, self._value, self._time = where.process, 0.0, 0.0
        self._position = where.place(self.key)
        self._generation = where.generation
        self._write(where)

    def _write(self, where) -> None:
        if self._position:
            # One copy of aligned bytes: a reader sees the old number or the new one.
            where.memory[self._position : self._position + 16] = _PAIR.pack(self._value, self._time)

    def _change(self, value, adding, at=0.0) -> None:
        try:
            with store.lock:
                if self._generation is not store.generation:
                    self.renew(store)
                self._value = self._value + value if adding else float(value)
                self._time = at
                if self._position:
                    store.memory[self._position : self._position + 16] = _PAIR.pack(self._value, at)
        except Exception as error:
            trouble.say("a metric could not be counted", error)

    def inc(self, amount) -> None:
        self._change(amount, True)

    def set(self, value, timestamp=None) -> None:
        self._change(value, False, timestamp or 0.0)

    def get(self) -> float:
        return self._value if self._process is store.process else 0.0

    def set_exemplar(self, exemplar) -> None:
        return

    def get_exemplar(self) -> None:
        return None


def install() -> bool:
    """Let every metric that is made from now on count in the shared directory, where there is one."""
    if directory() is None:
        return False
    with trouble.contained("prometheus_client cannot be used"):
        from prometheus_client import values

        values.ValueClass = SharedValue
        return True
    return False


# ---------------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def exclusive(where: str, seconds: float = LOCK_SECONDS):
    """Hold the directory's lock; raises Busy. The kernel lets go of it for whoever dies."""
    descriptor = os.open(os.path.join(where, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Busy("another process has held %s/lock for %g s" % (where, seconds))
                time.sleep(0.002)
        yield
    finally:
        os.close(descriptor)


class _Layout:
    """Where the series of one file are; it only grows, so that each key is looked at once."""

    def __init__(self):
        self.until, self.counters, self.gauges = _HEADER, [], []

    def read(self, data: bytes, used: int) -> None:
        position = self.until
        while position < used:
            (length,) = _LENGTH.unpack_from(data, position)
            start = position + _LENGTH.size
            value = start + length + (-(length + _LENGTH.size) % 8)
            if length <= 0 or value + _PAIR.size > used:
                raise Corrupt("a series ends after the end of the file")
            key = data[start : start + length]
            (self.gauges if key.startswith(b'["gauge"') else self.counters).append((key, value))
            position = self.until = value + _PAIR.size


_layouts = {}


def _entries(descriptor: int, name: str) -> tuple:
    """Return (content, [(key, place)] of counters, [(key, place)] of gauges) of one file, as far as it can be read."""
    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    if len(data) < _HEADER or not data.startswith(_MAGIC):
        raise Corrupt("it has no head")
    (used,) = _USED.unpack_from(data, 8)
    layout = _layouts.setdefault(name, _Layout())
    if layout.until > len(data):
        raise Corrupt("it has become shorter")
    try:
        if not layout.until <= used <= len(data):
            raise Corrupt("its length differs from its header")
        layout.read(data, used)
    except (Corrupt, struct.error) as error:
        trouble.say("a file of metrics is damaged, the rest of it counts", error)
    return data, layout.counters, layout.gauges


class _Ended:
    """What ended processes have left: ended.json, read again only where it has changed."""

    def __init__(self):
        self.sign, self.totals, self.files = None, {}, []

    def load(self, where: str) -> None:
        path = os.path.join(where, "ended.json")
        try:
            found = os.stat(path)
            sign = (where, found.st_ino, found.st_mtime_ns, found.st_size)
            if sign == self.sign:
                return
            with open(path, encoding="ascii") as stream:
                content = json.load(stream)
            self.totals = {key.encode("ascii"): float(value) for key, value in content["totals"]}
            self.files = [str(name) for name in content["files"]]
            self.sign = sign
        except FileNotFoundError:
            self.sign, self.totals, self.files = None, {}, []
        except (ValueError, KeyError, TypeError) as error:
            trouble.say("%s is damaged and begins again" % path, error)
            os.replace(path, path + ".damaged")
            self.sign, self.totals, self.files = None, {}, []

    def save(self, where: str, totals: dict, files: list) -> None:
        path = os.path.join(where, "ended.json")
        text = json.dumps({"files": files, "totals": [[key.decode("ascii"), value] for key, value in totals.items()]})
        try:
            with open(path + ".new", "w", encoding="ascii") as stream:
                stream.write(text)
            os.rename(path + ".new", path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path + ".new")
            raise
        self.sign = None


_ended = _Ended()
_reading = threading.Lock()


def _after_fork() -> None:
    global _reading
    _reading = threading.Lock()
    store.after_fork()


os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def _alone(seconds: float):
    """Let one thread of this process read; raises Busy.

    gunicorn's master may call merge() in a signal's handler, in the middle of another merge(): it must not wait at all.
    """
    lock = _reading
    if not lock.acquire(timeout=seconds) if seconds else not lock.acquire(blocking=False):
        raise Busy("another thread of this process reads")
    try:
        yield
    finally:
        lock.release()


def read(seconds: float = LOCK_SECONDS, merging_only: bool = False):
    """Return ({key: number} of counters, [(pid, key, value, time)] of living processes' gauges, how many live).

    What ended processes have left is added up on the way. Raises Busy and OSError.
    """
    where = directory()
    counted, gauges, living, gone = {}, [], 0, []
    with _alone(0 if merging_only else seconds), exclusive(where, seconds):
        _ended.load(where)
        ended = dict(_ended.totals)
        names = set(os.listdir(where))
        for name in names:
            path = os.path.join(where, name)
            if name.endswith(".new"):
                _remove_left(path)
            if not _MINE.match(name):
                continue
            if name in _ended.files:
                os.unlink(path)  # Counted; whoever did was killed before this.
                continue
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                trouble.say("a file of metrics cannot be read", error)
                continue
            try:
                alive = not _lockable(descriptor)
                if alive and merging_only:
                    continue
                living += alive
                gone += [] if alive else [name]
                data, counters, own = _entries(descriptor, name)
            except Corrupt as error:
                trouble.say("a file of metrics is damaged", error)
                continue
            finally:
                os.close(descriptor)
            into, value_at = counted if alive else ended, _VALUE.unpack_from
            for key, place in counters:
                into[key] = into.get(key, 0.0) + value_at(data, place)[0]
            if alive:
                gauges += [(name.partition("-")[0], key, *_PAIR.unpack_from(data, place)) for key, place in own]
        if gone:
            _put_away(where, ended, gone)
        for name in [name for name in _layouts if name not in names or name in gone]:
            del _layouts[name]
    for key, value in ended.items():
        counted[key] = counted.get(key, 0.0) + value
    return counted, gauges, living


def _put_away(where: str, totals: dict, gone: list) -> None:
    try:
        _ended.save(where, totals, gone)
    except OSError as error:
        # Their files stay, and are read by the next one as by this.
        trouble.say("what ended processes have counted cannot be added up in %s" % where, error)
        return
    for name in gone:
        os.unlink(os.path.join(where, name))


def _lockable(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_left(path: str) -> None:
    """Remove what somebody was killed in the middle of."""
    with contextlib.suppress(OSError):
        if time.time() - os.stat(path).st_mtime > 60:
            os.unlink(path)


def merge(seconds: float = LOCK_SECONDS) -> None:
    """Add up what ended processes have left, unless somebody else is at it. Raises OSError."""
    if directory() is not None:
        with contextlib.suppress(Busy):
            read(seconds, merging_only=True)
