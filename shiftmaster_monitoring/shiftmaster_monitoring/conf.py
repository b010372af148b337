"""The settings: from Django's settings, or from the environment where they differ from release to release.

SHIFTMASTER_HEALTH_PATH         "/health/"; None leaves the path to the application
SHIFTMASTER_HEALTH_DEEP_PATH    "/health/deep/"; None leaves the path to the application
SHIFTMASTER_HEALTH_CHECKS       the checks of the deep endpoint, in order; a site may name its own by dotted path
SHIFTMASTER_HEALTH_TIMEOUTS     seconds by check, {"worker": 8.0}; 5.0 for those not named
SHIFTMASTER_HEALTH_DATABASE     "default"; alias of the database to query
SHIFTMASTER_HEALTH_CACHE        "default"; alias of the cache to query
SHIFTMASTER_HEALTH_TOKEN        (or environment) lets a caller of another host see the details; unset: nobody
SHIFTMASTER_HEALTH_BROKER_URL   the broker's address where neither CELERY_BROKER_URL (settings, environment) nor the
                                Celery application names it
SHIFTMASTER_CELERY_APPLICATION  (or environment) "package.module:name" or "package", as celery -A takes it; by default
                                the application that Celery calls current
SHIFTMASTER_HEALTH_DEFERRED_MIGRATIONS
                                (or environment, with commas) "app.0002_name" that may be pending: contract migrations,
                                which a deploy runs after its switch
SHIFTMASTER_VERSION, SHIFTMASTER_RELEASE
                                (or environment) what the endpoint reports

The metrics (attach.py) have:

SHIFTMASTER_METRICS_PATH        "/metrics"; None leaves the path to the application
SHIFTMASTER_METRICS_DATABASE    True; whether queries are counted
SHIFTMASTER_METRICS_BROKER_SECONDS
                                2.0; how long a scrape looks at the broker
SHIFTMASTER_CELERY_QUEUES       (); queues to look at next to those that the Celery application knows
SHIFTMASTER_SLOW_REQUEST_INFO_SECONDS, SHIFTMASTER_SLOW_REQUEST_WARNING_SECONDS
                                1.0 and 2.0; requests that take so long are logged as info and as warning
SHIFTMASTER_SLOW_LOG            file of their own for those lines; unset: they go where the logger
                                shiftmaster_monitoring.slow sends them
SHIFTMASTER_SESSION_IDLE_SECONDS
                                3600; a session without a request for so long has ended with its last one
PROMETHEUS_MULTIPROC_DIR        (environment alone) the directory that all processes of the host share; without it each
                                process has its own metrics, and neither users nor sessions nor workers are counted

The log (attach.py) has:

SHIFTMASTER_LOG_FORMAT          "ecs": a line of JSON for each event; "plain": the guide's lines
SHIFTMASTER_LOG_FILE            file of the processes that have a slot; unset: the application's LOGGING stays
SHIFTMASTER_LOG_MASKS           (); [{"pattern":, "replace":, "only_with": [texts]}], what must not be logged
SHIFTMASTER_LOG_KEY             (or environment) makes the pseudonyms of users; unset: the log names nobody
SHIFTMASTER_LOG_SQL             True; whether statements to PostgreSQL begin with the request id, as a comment
SHIFTMASTER_LOG_SERVICE, SHIFTMASTER_LOG_ENVIRONMENT
                                "shiftmaster" and unset; service.name and service.environment of each event
SHIFTMASTER_LOG_CONFIGURED_BY   the application's LOGGING_CONFIG; attach.py sets it
SHIFTMASTER_AUDIT_LOG           file of logins, failed logins and changed rights; unset: they are not written
"""

from __future__ import annotations

import os

from django.conf import settings

DEFAULTS = {
    "SHIFTMASTER_HEALTH_PATH": "/health/",
    "SHIFTMASTER_HEALTH_DEEP_PATH": "/health/deep/",
    "SHIFTMASTER_HEALTH_CHECKS": ("database", "cache", "broker", "worker", "migrations"),
    "SHIFTMASTER_HEALTH_DATABASE": "default",
    "SHIFTMASTER_HEALTH_CACHE": "default",
    "SHIFTMASTER_METRICS_PATH": "/metrics",
    "SHIFTMASTER_METRICS_DATABASE": True,
    "SHIFTMASTER_METRICS_BROKER_SECONDS": 2.0,
    "SHIFTMASTER_SLOW_REQUEST_INFO_SECONDS": 1.0,
    "SHIFTMASTER_SLOW_REQUEST_WARNING_SECONDS": 2.0,
    "SHIFTMASTER_SESSION_IDLE_SECONDS": 3600,
    "SHIFTMASTER_LOG_FORMAT": "plain",
    "SHIFTMASTER_LOG_SQL": True,
    "SHIFTMASTER_LOG_SERVICE": "shiftmaster",
}
# In the WSGI environment of a request that a process sends to itself before people do.
WARMING = "shiftmaster.warming"
TIMEOUTS = {"worker": 8.0}
TIMEOUT_SECONDS = 5.0
_FROM_ENVIRONMENT = (
    "SHIFTMASTER_HEALTH_TOKEN",
    "SHIFTMASTER_CELERY_APPLICATION",
    "SHIFTMASTER_HEALTH_DEFERRED_MIGRATIONS",
    "SHIFTMASTER_HEALTH_BROKER_URL",
    "SHIFTMASTER_VERSION",
    "SHIFTMASTER_RELEASE",
    "SHIFTMASTER_LOG_KEY",
)


def get(name: str):
    """Return a setting: Django's, else the environment's, else the default."""
    if hasattr(settings, name):
        return getattr(settings, name)
    if name in _FROM_ENVIRONMENT and os.environ.get(name):
        return os.environ[name]
    return DEFAULTS.get(name)


def timeout(check: str) -> float:
    """Return how long a check may take, in seconds."""
    return float(dict(TIMEOUTS, **getattr(settings, "SHIFTMASTER_HEALTH_TIMEOUTS", {})).get(check, TIMEOUT_SECONDS))


def deferred_migrations() -> set:
    value = get("SHIFTMASTER_HEALTH_DEFERRED_MIGRATIONS") or ()
    return {name.strip() for name in (value.split(",") if isinstance(value, str) else value) if name.strip()}
