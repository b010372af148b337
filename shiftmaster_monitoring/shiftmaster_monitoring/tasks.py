"""Celery's tasks, counted by its signals in the worker's processes."""

from __future__ import annotations

import contextlib
import datetime
import os
import time

from . import shared, trouble

try:
    from . import metrics
except ImportError:
    # Celery imports the module of this name of each application, also where nothing is measured.
    metrics = None

# A deploy verifies a new worker by a task in a queue of this name; it does nothing else.
CANARY = "shiftmaster.canary."
PUBLISHED = "shiftmaster_published_at"
OTHER = "(other)"
STATES = ("SUCCESS", "FAILURE", "RETRY", "REVOKED", "REJECTED", "IGNORED")
# A worker's main process logs this for a task whose process is gone; no process of the pool logs it.
_LOST = ("WorkerLostError", "TimeLimitExceeded", "Terminated")
_MANY = 10000
_started = {}
_beats = None


def connect() -> None:
    from celery import signals

    for name, receiver in (
        ("before_task_publish", published),
        ("task_prerun", started),
        ("task_postrun", ended),
        ("task_failure", lost),
        ("task_revoked", revoked),
        ("task_unknown", unknown),
        ("worker_ready", ready),
        ("heartbeat_sent", alive),
        ("worker_shutdown", stopped),
        ("beat_init", scheduling),
    ):
        getattr(signals, name).connect(receiver, weak=False, dispatch_uid="shiftmaster_monitoring." + name)


def published(headers=None, **_more) -> None:
    """Write into a task's message when it was sent, or when it is to start."""
    with trouble.contained("when a task was sent cannot be noted"):
        if isinstance(headers, dict):
            headers[PUBLISHED] = max(time.time(), _timestamp(headers.get("eta")))


def _timestamp(text) -> float:
    if not text:
        return 0.0
    # Python 3.9 and 3.10 do not know the Z.
    found = datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    return (found if found.tzinfo else found.replace(tzinfo=datetime.timezone.utc)).timestamp()


def queue_of(task) -> str:
    """Return the queue that a task came from; only names that the application knows become labels."""
    key = (task.request.delivery_info or {}).get("routing_key")
    queues = task.app.amqp.queues
    if key in queues:
        return key
    return next((queue.name for queue in queues.values() if key and queue.routing_key == key), OTHER)


def _is_canary(request) -> bool:
    return str((getattr(request, "delivery_info", None) or {}).get("routing_key", "")).startswith(CANARY)


def started(task_id=None, task=None, **_more) -> None:
    with trouble.contained("a task's start cannot be counted"):
        shared.store.check_file()
        if _is_canary(task.request):
            return
        if len(_started) >= _MANY:
            _started.clear()
        _started[task_id] = time.perf_counter()
        sent = task.request.get(PUBLISHED)
        if sent is not None and not task.request.called_directly:
            metrics.task_wait.labels(queue_of(task)).observe(max(0.0, time.time() - float(sent)))


def ended(task_id=None, task=None, state=None, **_more) -> None:
    with trouble.contained("a task's end cannot be counted"):
        began = _started.pop(task_id, None)
        if began is None:
            return
        metrics.task_seconds.labels(task.name).observe(time.perf_counter() - began)
        metrics.tasks.labels(task.name, state if state in STATES else "OTHER").inc()


def lost(sender=None, exception=None, **_more) -> None:
    with trouble.contained("a lost task cannot be counted"):
        if type(exception).__name__ in _LOST:
            metrics.tasks.labels(sender.name, "FAILURE").inc()


def revoked(sender=None, request=None, **_more) -> None:
    with trouble.contained("a revoked task cannot be counted"):
        if not _is_canary(request):
            metrics.tasks.labels(sender.name, "REVOKED").inc()


def unknown(**_more) -> None:
    # Its name is whatever somebody has sent.
    with trouble.contained("an unknown task cannot be counted"):
        metrics.tasks.labels(OTHER, "REJECTED").inc()


def ready(sender=None, **_more) -> None:
    """Let the series of all tasks begin with zero: an increase is only seen from something."""
    with trouble.contained("the tasks cannot be listed"):
        for name in sender.app.tasks:
            if not name.startswith("celery."):
                for state in ("SUCCESS", "FAILURE", "RETRY"):
                    metrics.tasks.labels(name, state).inc(0)
                metrics.task_seconds.labels(name)
    alive()


def alive(**_more) -> None:
    """Note that this worker's main process has just sent its heartbeat to the broker."""
    global _beats
    with trouble.contained("a worker's sign of life cannot be noted"):
        if shared.directory() is None:
            return
        shared.store.check_file()
        if _beats is None:
            _beats = os.path.join(shared.directory(), "workers", "%d-%s" % (os.getpid(), os.urandom(4).hex()))
        os.makedirs(os.path.dirname(_beats), mode=0o750, exist_ok=True)
        os.close(os.open(_beats, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640))
        os.utime(_beats)


def stopped(**_more) -> None:
    if _beats is not None:
        with contextlib.suppress(OSError):
            os.unlink(_beats)


def scheduling(sender=None, **_more) -> None:
    """Let the scheduler note when it is to read its schedule next, as long as all that was due has been sent."""
    with trouble.contained("the scheduler cannot be watched"):
        scheduler, unsent = sender.scheduler, set()
        tick, send = scheduler.tick, scheduler.apply_async
        metrics.beat_due.set(time.time())

        def sent(entry, *args, **more):
            # Celery logs an error here and continues with the next entry.
            unsent.add(entry.name)
            result = send(entry, *args, **more)
            unsent.discard(entry.name)
            return result

        def ticked(*args, **more):
            seconds = tick(*args, **more)
            with trouble.contained("a round of the scheduler cannot be noted"):
                shared.store.check_file()
                if not unsent:
                    metrics.beat_due.set(time.time() + (seconds or 0))
            return seconds

        scheduler.apply_async, scheduler.tick = sent, ticked
