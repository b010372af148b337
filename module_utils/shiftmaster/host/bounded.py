"""Read what a child writes, up to a limit: what it works on may be another's, and unpack to any size."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import threading


def die_with_parent() -> None:
    """For a child, before it runs: let the kernel end it together with this process, where that is Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Bounded(threading.Thread):
    """Reads a stream of a child to its end. Beyond the limit, in bytes, the child is ended and .full is true."""

    def __init__(self, child: subprocess.Popen, stream, limit: int):
        super().__init__(daemon=True)
        self._child, self._stream, self._limit = child, stream, limit
        self._data, self.full = bytearray(), False
        self.start()

    def run(self) -> None:
        for chunk in iter(lambda: self._stream.read1(1 << 16), b""):
            if len(self._data) + len(chunk) > self._limit:
                self.full = True
                self._child.kill()
                return
            self._data += chunk

    def end(self) -> bytes:
        """Return what was written, once the child has ended."""
        self.join(10)  # A process that it has left may hold the stream open.
        return bytes(self._data)
