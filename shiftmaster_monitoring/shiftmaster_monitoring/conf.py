"""The settings: from Django's settings, or from the environment where they differ from release to release.

SHIFTMASTER_HEALTH_PATH         "/health/"; None leaves the path to the application
SHIFTMASTER_HEALTH_DEEP_PATH    "/health/deep/"; None leaves the path to the application
SHIFTMASTER_HEALTH_CHECKS       the checks of the deep endpoint, in order; a site may name its own by dotted path
SHIFTMASTER_HEALTH_TIMEOUTS     seconds by check, {"worker": 8.0}; 5.0 for those not named
SHIFTMASTER_HEALTH_DATABASE     "default"; alias of the database to ask
SHIFTMASTER_HEALTH_CACHE        "default"; alias of the cache to ask
SHIFTMASTER_HEALTH_TOKEN        (or environment) lets a caller of another host see the details; unset: nobody
SHIFTMASTER_HEALTH_BROKER_URL   the broker's address where neither CELERY_BROKER_URL (settings, environment) nor the
                                Celery application says it
SHIFTMASTER_CELERY_APPLICATION  (or environment) "package.module:name" or "package", as celery -A takes it; by default
                                the application that Celery calls current
SHIFTMASTER_HEALTH_DEFERRED_MIGRATIONS
                                (or environment, with commas) "app.0002_name" that may be pending: contract migrations,
                                which a deploy runs after its switch
SHIFTMASTER_VERSION, SHIFTMASTER_RELEASE
                                (or environment) what the endpoint reports
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
}
TIMEOUTS = {"worker": 8.0}
TIMEOUT_SECONDS = 5.0
_FROM_ENVIRONMENT = (
    "SHIFTMASTER_HEALTH_TOKEN",
    "SHIFTMASTER_CELERY_APPLICATION",
    "SHIFTMASTER_HEALTH_DEFERRED_MIGRATIONS",
    "SHIFTMASTER_HEALTH_BROKER_URL",
    "SHIFTMASTER_VERSION",
    "SHIFTMASTER_RELEASE",
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
