"""The request id that the web server has made, carried through everything that a request sets off.

It is in each line that is logged meanwhile (logs.py), in the messages of the tasks that are sent, in the lines of those
tasks and of the tasks that they send, and as a comment before each statement, so that PostgreSQL's log has it. It is
not in application_name: there each request would be a new series of the metrics of connections.
"""

from __future__ import annotations

import contextvars
import re
import uuid

from asgiref.sync import iscoroutinefunction, markcoroutinefunction

from . import conf, trouble

HEADER = "shiftmaster_request_id"
# Characters that may be in a comment of SQL; anything else that a client sends is replaced.
_ID = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_current = contextvars.ContextVar("shiftmaster_request", default=None)


class Origin:
    """What has set off what runs now: a request, a task, or a task that a request has sent."""

    __slots__ = ("request_id", "request", "task", "task_id", "comment")

    def __init__(self, request_id: str, request=None, task: str = None, task_id: str = None):
        self.request_id, self.request, self.task, self.task_id = request_id, request, task, task_id
        self.comment = "/* request_id=%s */ " % request_id


def current():
    """Return the Origin of what runs now, or None."""
    return _current.get()


def valid(request_id) -> bool:
    return isinstance(request_id, str) and _ID.match(request_id) is not None


class RequestContext:
    """A middleware; after HealthMiddleware, and before all others."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response):
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request):
        if self.is_async:
            return self.carried(request)
        token = _current.set(self.origin(request))
        try:
            return self.get_response(request)
        finally:
            _current.reset(token)

    async def carried(self, request):
        token = _current.set(self.origin(request))
        try:
            return await self.get_response(request)
        finally:
            _current.reset(token)

    def origin(self, request) -> Origin:
        given = request.META.get("HTTP_X_REQUEST_ID")
        found = Origin(given if valid(given) else uuid.uuid4().hex, request)
        # Django reports responses such as 404 when all middlewares have ended, and names the request.
        request.shiftmaster_origin = found
        return found


# --- Celery ----------------------------------------------------------------------------------------------------------

_tokens = {}
_MANY = 10000


def connect() -> None:
    from celery import signals

    for name, receiver in (("before_task_publish", published), ("task_prerun", started), ("task_postrun", ended)):
        getattr(signals, name).connect(receiver, weak=False, dispatch_uid="shiftmaster_monitoring.carry." + name)


def published(headers=None, **_more) -> None:
    """Write into a task's message what has set it off."""
    with trouble.contained("a task cannot be given the request id"):
        origin = current()
        if origin is not None and isinstance(headers, dict):
            headers.setdefault(HEADER, origin.request_id)


def started(task_id=None, task=None, **_more) -> None:
    with trouble.contained("a task's request id cannot be read"):
        given = task.request.get(HEADER)
        if task.request.called_directly and not given:
            return  # As a part of what runs already.
        if len(_tokens) >= _MANY:
            _tokens.clear()
        _tokens[task_id] = current()
        # A task that nobody's request has set off, as the scheduler's, is called by its own number.
        _current.set(Origin(given if valid(given) else str(task_id)[:64], None, task.name, task_id))


def ended(task_id=None, **_more) -> None:
    with trouble.contained("a task's request id cannot be forgotten"):
        if task_id in _tokens:
            # No token of contextvars: a pool may end a task in another context than it has begun it in.
            _current.set(_tokens.pop(task_id))


# --- SQL -------------------------------------------------------------------------------------------------------------


def comment(execute, sql, params, many, context):
    """What Django calls around each statement."""
    origin = _current.get()
    if origin is not None and type(sql) is str:
        sql = origin.comment + sql
    return execute(sql, params, many, context)


def connected(connection=None, **_more) -> None:
    """Let each statement of a new connection begin with the comment."""
    with trouble.contained("statements cannot be given the request id"):
        if connection.vendor == "postgresql" and conf.get("SHIFTMASTER_LOG_SQL"):
            if comment not in connection.execute_wrappers:
                # The first: Django takes the last one off again where somebody has put one on for a while.
                connection.execute_wrappers.insert(0, comment)
