"""Switches the metrics on from a settings module that imports the application's:

    from shiftmaster_monitoring import attach

    attach.begin()
    from application.settings import *
    ...
    attach.finish(globals())

Databases and caches stay as the application has them. Queries are counted by a wrapper of each connection
(database.py). Caches are not counted: django-prometheus' classes would replace the application's, the one for Django's
own Redis cache needs django_redis, and the one for that copies a version of its insides.
"""

from __future__ import annotations

from . import shared

HEALTH = "shiftmaster_monitoring.middleware.HealthMiddleware"
FIRST = "shiftmaster_monitoring.measure.MetricsMiddleware"
LAST = "shiftmaster_monitoring.around.After"
APPLICATION = "shiftmaster_monitoring"


def begin() -> None:
    """Before anything of the application's is imported: whatever makes a metric shares it."""
    shared.install()


def finish(settings: dict) -> None:
    """Add application and middlewares to a module's settings, each once."""
    names = [name for name in settings.get("MIDDLEWARE") or () if name not in (FIRST, LAST)]
    place = names.index(HEALTH) + 1 if HEALTH in names else 0
    settings["MIDDLEWARE"] = [*names[:place], FIRST, *names[place:], LAST]
    applications = [name for name in settings.get("INSTALLED_APPS") or () if name != APPLICATION]
    settings["INSTALLED_APPS"] = [*applications, APPLICATION]
