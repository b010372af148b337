"""The application's log: a line of JSON for each event, in the Elastic Common Schema, masked.

attach.logs() makes `configure` what Django configures logging with. The application's own LOGGING is applied first, so
that its levels and filters stay; then whatever writes to a file or to standard error is replaced by one handler on the
root, so that each event is one line in one file. Handlers of another kind (mail to admins, NullHandler) stay.

An event is appended by one write, so that processes can share the file; it is opened again when it was rotated.
The schema's own library for Python is not used: it writes no chained causes and no exception groups, a field that an
application calls `log` or `error` makes it fail, and every release would need one more package.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import logging.handlers
import os
import sys
import time

from django.utils.module_loading import import_string

from . import carry, conf, trouble
from .masks import Masks, PlainFormatter

ECS_VERSION = "8.11.0"
LEVELS = {"WARN": "WARNING", "FATAL": "CRITICAL"}
# Beyond it a text is cut: a line must fit into what follows files, and one event must not fill a disk.
MAX_MESSAGE, MAX_TRACE = 32768, 65536
# What goes with it at the place of the cut, where half of a secret may stand that no pattern knows: a private key's
# length. A space is no better place: Japanese and JSON have none, and a secret in quotes may have one.
_EDGE = 4096
_OWN = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName", "request"}
# gunicorn's own log has its own file, which it opens again by a signal.
_LEFT_ALONE = ("gunicorn",)


def pseudonym(user) -> str:
    """Return what the log calls a user: the same one everywhere, and nobody's without the key."""
    key = str(conf.get("SHIFTMASTER_LOG_KEY") or "")
    if not key:
        return ""
    return hmac.new(key.encode(), ("user:%s" % user).encode(), hashlib.sha256).hexdigest()[:20]


def _user(request) -> str:
    """Return the pseudonym of who is logged in, where the application has read the session itself."""
    session = getattr(request, "session", None)
    content = getattr(session, "_session_cache", None)
    user = content.get("_auth_user_id") if isinstance(content, dict) else None
    return pseudonym(user) if user else ""


class EcsFormatter(logging.Formatter):
    def __init__(self, masks: Masks = None, dataset: str = "shiftmaster.app"):
        super().__init__()
        self._masks = masks or Masks()
        self._seconds = (0, "")
        self._fixed = {
            "ecs": {"version": ECS_VERSION},
            "event": {"dataset": dataset},
            "service": _without_empty(
                {
                    "name": conf.get("SHIFTMASTER_LOG_SERVICE"),
                    "version": conf.get("SHIFTMASTER_VERSION"),
                    "environment": conf.get("SHIFTMASTER_LOG_ENVIRONMENT"),
                }
            ),
        }
        self._labels = _without_empty(
            {"release": conf.get("SHIFTMASTER_RELEASE"), "slot": os.environ.get("SHIFTMASTER_SLOT")}
        )

    def format(self, record) -> str:
        return json.dumps(self.event(record), ensure_ascii=False, separators=(",", ":"), default=_text)

    def event(self, record) -> dict:
        """Return one record as the schema has it."""
        found = {
            "@timestamp": self._time(record.created),
            "log": {
                "level": LEVELS.get(record.levelname, record.levelname),
                "logger": record.name,
                "origin": {
                    "file": {"name": record.filename, "line": record.lineno},
                    "function": record.funcName,
                },
            },
            "message": self._masked(_message(record), MAX_MESSAGE),
            **self._fixed,
            "process": {"pid": record.process, "thread": {"name": record.threadName}},
        }
        labels = dict(self._labels)
        origin = carry.current() or getattr(getattr(record, "request", None), "shiftmaster_origin", None)
        if origin is not None:
            self._add_origin(found, labels, origin)
        if record.exc_info and record.exc_info[0] is not None:
            found["error"] = self._error(record)
        elif record.stack_info:
            found["error"] = {"stack_trace": self._masked(str(record.stack_info), MAX_TRACE)}
        labels.update(self._extras(record))
        if labels:
            found["labels"] = labels
        return found

    def _time(self, created: float) -> str:
        seconds = int(created)
        if self._seconds[0] != seconds:
            self._seconds = (seconds, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)))
        return "%s.%03dZ" % (self._seconds[1], int((created - seconds) * 1000))

    def _masked(self, text: str, limit: int) -> str:
        # The cause is at the end of a traceback, and at the beginning of a message. Cut before it is masked: that is
        # what bounds the cost.
        if len(text) <= limit:
            return self._masks(text)
        edge = min(_EDGE, limit // 2)
        if limit == MAX_TRACE:
            return "[cut] " + self._masks(text[-limit:])[edge:]
        return self._masks(text[:limit])[:-edge] + " [cut]"

    def _add_origin(self, found: dict, labels: dict, origin) -> None:
        http = found["http"] = {"request": {"id": origin.request_id}}
        if origin.task:
            labels["task"] = origin.task
            labels["task_id"] = str(origin.task_id)
        request = origin.request
        if request is None:
            return
        http["request"]["method"] = str(request.method)[:16]
        found["url"] = {"path": self._masked(request.path, 2048)}
        match = getattr(request, "resolver_match", None)
        if match is not None:
            labels["route"] = "/" + match.route
        user = _user(request)
        if user:
            found["user"] = {"hash": user}

    def _error(self, record) -> dict:
        kind, error, _trace = record.exc_info
        return {
            "type": kind.__name__,
            "message": self._masked(_text(error), MAX_MESSAGE),
            # With causes, contexts and groups, as Python prints it.
            "stack_trace": self._masked(record.exc_text or self.formatException(record.exc_info), MAX_TRACE),
        }

    def _extras(self, record) -> dict:
        """Return the application's simple fields of `extra` as one label.

        A label for each would be a field for each name that somebody invents; and what a pattern knows may be the name.
        """
        parts = [
            "%s=%s" % (name, _text(value))
            for name, value in record.__dict__.items()
            if isinstance(name, str) and name not in _OWN and name[:1] != "_" and isinstance(value, (str, int, float))
        ]
        return {"extra": self._masked(" ".join(parts), MAX_MESSAGE)} if parts else {}


def _message(record) -> str:
    try:
        return record.getMessage()
    except Exception as error:
        # Its arguments do not fit: the text itself is better than no line.
        return "%s [%s: %s]" % (_text(record.msg), type(error).__name__, _text(error))


def _text(value) -> str:
    try:
        return str(value)
    except Exception as error:
        return "<%s that cannot be printed: %s>" % (type(value).__name__, type(error).__name__)


def _without_empty(found: dict) -> dict:
    return {name: value for name, value in found.items() if value}


class Appender(logging.handlers.WatchedFileHandler):
    """Appends each event by one write. Failed events go to standard error; the error is logged once."""

    def __init__(self, path: str):
        super().__init__(path, delay=True)
        # Whether the last line of the file is one of ours that the disk had no place for the end of.
        self._torn = False

    def _open(self):
        def opener(path, flags):
            return os.open(path, flags | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

        return open(self.baseFilename, "ab", buffering=0, opener=opener)

    def emit(self, record) -> None:
        try:
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        except Exception as error:
            trouble.say("an event cannot be formatted", error)
            return
        try:
            self.reopenIfNeeded()
            if self.stream is None:
                self.stream = self._open()
                self._statstream()
            begun = b"\n" + line if self._torn else line
            written = self.stream.write(begun)
            self._torn = written != len(begun)
            if self._torn:
                raise OSError("the disk is full")
        except Exception as error:
            # gunicorn's standard error is a file of the same disk: who logs must not fail for that.
            with contextlib.suppress(Exception):
                sys.stderr.write(line.decode("utf-8", "replace"))
            trouble.say("the log cannot be written", error)


def formatter(dataset: str = "shiftmaster.app"):
    """Return the form that the settings select: the guide's lines or JSON."""
    masks = Masks(conf.get("SHIFTMASTER_LOG_MASKS") or ())
    return EcsFormatter(masks, dataset) if conf.get("SHIFTMASTER_LOG_FORMAT") == "ecs" else PlainFormatter(masks)


def handler(path: str, dataset: str = "shiftmaster.app") -> Appender:
    found = Appender(path)
    found.setFormatter(formatter(dataset))
    return found


def configure(settings: dict) -> None:
    """What Django calls with the application's LOGGING."""
    import_string(conf.get("SHIFTMASTER_LOG_CONFIGURED_BY") or "logging.config.dictConfig")(settings)
    with trouble.contained("the log keeps the application's own form"):
        path = conf.get("SHIFTMASTER_LOG_FILE")
        # Commands that people run talk to people. The processes of the units have a slot.
        if path and os.environ.get("SHIFTMASTER_SLOT"):
            take_over(handler(path))


def take_over(new: logging.Handler) -> None:
    """Replace by one handler on the root whatever writes to files and streams."""
    root = logging.getLogger()
    for logger in [found for found in root.manager.loggerDict.values() if isinstance(found, logging.Logger)]:
        if logger.name.partition(".")[0] in _LEFT_ALONE:
            continue
        if _remove_streams(logger):
            # Now it is the root that writes its lines. That a filter of a handler would have dropped some is lost.
            logger.propagate = True
    _remove_streams(root)
    root.addHandler(new)


def _remove_streams(logger: logging.Logger) -> bool:
    streams = [found for found in logger.handlers if isinstance(found, logging.StreamHandler)]
    for found in streams:
        logger.removeHandler(found)
        if isinstance(found, logging.FileHandler):
            found.close()
    return bool(streams)


def of_celery(logger=None, **_more) -> None:
    """Let a worker's own log, and that of its tasks, be of the same form; called by Celery when it has made them."""
    with trouble.contained("the worker's log keeps its own form"):
        for found in list(logger.handlers):
            if isinstance(found, logging.FileHandler):
                logger.removeHandler(found)
                found.close()
                logger.addHandler(handler(found.baseFilename))
            elif isinstance(found, logging.StreamHandler):
                found.setFormatter(formatter())


def of_own_setup(logfile=None, **_more) -> None:
    """The same where the application has set the worker's log up itself, of which Celery then makes nothing."""
    with trouble.contained("the worker's log keeps the application's own form"):
        if logfile:
            take_over(handler(str(logfile)))
        else:
            of_celery(logging.getLogger())


def after_own_setup(**_more) -> None:
    """Connect after the application's own receiver; with no other, Celery would set no log up."""
    from celery import signals

    if signals.setup_logging.receivers:
        signals.setup_logging.connect(of_own_setup, weak=False, dispatch_uid="shiftmaster_monitoring.logs.own")


def connect() -> None:
    from celery import signals

    for name in ("after_setup_logger", "after_setup_task_logger"):
        getattr(signals, name).connect(of_celery, weak=False, dispatch_uid="shiftmaster_monitoring.logs." + name)
    after_own_setup()
    # One that was connected later, too.
    signals.celeryd_init.connect(after_own_setup, weak=False, dispatch_uid="shiftmaster_monitoring.logs.behind")
