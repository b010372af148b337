"""What is counted next to django-prometheus' own metrics. Imported only where metrics are switched on."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

# 0.2, 0.5, 1 and 2 are limits of alerts; around them it is fine enough to show the distance.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
MINUTES = (60, 300, 900, 1800, 3600, 2 * 3600, 4 * 3600, 8 * 3600, 12 * 3600, 24 * 3600)
TASK_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)

requests = Histogram(
    "django_request_duration_seconds",
    "How long requests took, from the first middleware to the response, by the route that matched.",
    ["route", "method"],
    buckets=SECONDS,
)
slow_requests = Counter(
    "shiftmaster_slow_requests_total", "Requests that took longer than the limits of the slow-request log.", ["level"]
)
sessions = Histogram(
    "shiftmaster_session_duration_seconds",
    "How long people worked, from logging in to logging out or to the last request before a long silence.",
    buckets=MINUTES,
)
tasks = Counter("shiftmaster_celery_tasks_total", "Tasks by how they ended.", ["task", "state"])
task_seconds = Histogram(
    "shiftmaster_celery_task_duration_seconds", "How long tasks ran.", ["task"], buckets=TASK_SECONDS
)
task_wait = Histogram(
    "shiftmaster_celery_task_wait_seconds",
    "How long tasks waited, from being sent (or from the time that they were to start at) to their start.",
    ["queue"],
    buckets=TASK_SECONDS,
)
beat_due = Gauge(
    "shiftmaster_celery_beat_due_timestamp_seconds",
    "When the scheduler is to read its schedule next; it stays where a due task could not be sent. 0: none runs.",
    multiprocess_mode="max",
)
