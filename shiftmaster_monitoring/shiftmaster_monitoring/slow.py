"""The log of slow requests: one JSON object a line, appended by one write, so that processes can share the file.

The file is opened for each line: there are few, and whatever rotates it needs no signal.
"""

from __future__ import annotations

import datetime
import json
import logging
import os

from . import conf, trouble
from .masks import Masks
from .middleware import is_loopback

logger = logging.getLogger("shiftmaster_monitoring.slow")
_LIMIT = 512
_masks = None
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Appender(logging.Handler):
    """Appends each message to a file. Failed ones go to the application's log; the error is logged once."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def emit(self, record) -> None:
        try:
            line = record.getMessage() + "\n"
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                os.write(descriptor, line.encode("utf-8", "backslashreplace"))
            finally:
                os.close(descriptor)
        except Exception as error:
            trouble.say("the log of slow requests cannot be written", error)
            trouble.logger.log(record.levelno, "%s", record.getMessage())


def prepare() -> None:
    """Give the logger its file, unless the site's LOGGING has given it handlers of its own."""
    # A logging configuration that disables the loggers that it does not name was applied before this.
    logger.disabled = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    path = conf.get("SHIFTMASTER_SLOW_LOG")
    if path and not logger.handlers:
        logger.addHandler(Appender(path))
        logger.propagate = False


def masked(text: str) -> str:
    global _masks
    if _masks is None:
        _masks = Masks(conf.get("SHIFTMASTER_LOG_MASKS") or ())
    return _masks(text)


def limits() -> list:
    """Return [(seconds, level)] that requests are logged from, the longest first."""
    return [
        (float(conf.get("SHIFTMASTER_SLOW_REQUEST_WARNING_SECONDS")), logging.WARNING),
        (float(conf.get("SHIFTMASTER_SLOW_REQUEST_INFO_SECONDS")), logging.INFO),
    ]


def resident_bytes(pid="self") -> int:
    with open("/proc/%s/statm" % pid, encoding="ascii") as stream:
        return int(stream.read().split()[1]) * _PAGE


def remote_address(request) -> str:
    """Return the client: the address from the proxy, where the request came from a proxy of this host."""
    address = request.META.get("REMOTE_ADDR") or ""
    if address and not is_loopback(address):
        return address
    return (
        request.headers.get("X-Real-IP")
        or request.headers.get("X-Forwarded-For", "").split(",")[-1].strip()
        or (address)
    )


def write(request, response, route: str, method: str, seconds: float, severity: int) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    entry = {
        "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": logging.getLevelName(severity),
        "logger": logger.name,
        "message": "slow request",
        "method": method,
        "path": masked(request.path[:_LIMIT]),
        "route": route,
        "status": response.status_code,
        "duration_ms": round(seconds * 1000, 1),
        "memory_rss_bytes": resident_bytes(),
        "user_agent": masked(request.headers.get("User-Agent", "")[:_LIMIT]),
        "remote_addr": remote_address(request)[:64],
        "request_id": request.headers.get("X-Request-ID", "")[:128],
        "pid": os.getpid(),
    }
    logger.log(severity, "%s", json.dumps(entry, ensure_ascii=False))
