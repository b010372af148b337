"""Tasks that are counted.

Each execution that reaches its end adds one TaskRun row: none is a lost task, two are a task that ran twice. A task
that is cut off by a stop leaves no row and is delivered again. The one case in which a message can run to its end
twice (the worker dies between the row's commit and the acknowledgement) shows as a second row with the same task_id;
its `effective` is false: that is how a task with a real effect would be guarded against it.
"""

import time

from celery import shared_task
from django.db import IntegrityError, transaction
from django.utils import timezone

from roster.models import TaskRun
from shiftmaster import __version__

from .retry import ON_LOST_DATABASE


def count(task, key, started_at):
    """Store one execution. Returns whether it is the first of its message."""
    run = {
        "key": key,
        "task": task.name,
        "task_id": task.request.id or f"direct-{time.time_ns()}",
        "started_at": started_at,
        "version": __version__,
        "redelivered": bool((task.request.delivery_info or {}).get("redelivered")),
    }
    try:
        with transaction.atomic():
            TaskRun.objects.create(**run, effective=True)
    except IntegrityError:
        TaskRun.objects.create(**run, effective=False)
        return False
    return True


@shared_task(bind=True, name="roster.tasks.record_run", **ON_LOST_DATABASE)
def record_run(self, key, seconds=0):
    """Sleep, then count this execution."""
    started_at = timezone.now()
    time.sleep(float(seconds))
    return count(self, key, started_at)
