"""Switches the metrics on from a settings module that imports the application's:

from shiftmaster_monitoring import attach

attach.begin()
from application.settings import *
...
attach.finish(globals())
"""

from __future__ import annotations

import importlib.util

from . import shared

HEALTH = "shiftmaster_monitoring.middleware.HealthMiddleware"
FIRST = ("shiftmaster_monitoring.measure.MetricsMiddleware", "shiftmaster_monitoring.around.Before")
LAST = "shiftmaster_monitoring.around.After"
APPLICATION = "shiftmaster_monitoring"
# Nothing but cursors and connections that count; an ENGINE that is anything else is left as it is. django-prometheus'
# caches are left alone: the one for Django's own Redis cache needs django_redis, the one for that copies its insides.
ENGINES = {"django.db.backends.postgresql": "django_prometheus.db.backends.postgresql"}


def begin() -> None:
    """Before anything of the application's is imported: whatever makes a metric shares it."""
    shared.install()


def finish(settings: dict) -> None:
    """Add applications, middlewares and engines to a module's settings, each once."""
    names = [name for name in settings.get("MIDDLEWARE") or () if name not in (*FIRST, LAST)]
    place = names.index(HEALTH) + 1 if HEALTH in names else 0
    settings["MIDDLEWARE"] = [*names[:place], *FIRST, *names[place:], LAST]
    applications = [name for name in settings.get("INSTALLED_APPS") or () if name != APPLICATION]
    settings["INSTALLED_APPS"] = [*applications, APPLICATION]
    if settings.get("SHIFTMASTER_METRICS_DATABASE", True) and importlib.util.find_spec("django_prometheus"):
        settings["DATABASES"] = {
            alias: dict(database, ENGINE=ENGINES.get(database.get("ENGINE"), database.get("ENGINE")))
            for alias, database in (settings.get("DATABASES") or {}).items()
        }
