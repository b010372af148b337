"""Switches the metrics and the log on from a settings module that imports the application's:

    from shiftmaster_monitoring import attach

    attach.begin()
    from application.settings import *
    ...
    attach.finish(globals())
    attach.logs(globals())

Databases and caches stay as the application has them. Queries are counted by a wrapper of each connection
(database.py). Caches are not counted: django-prometheus' classes would replace the application's, the one for Django's
own Redis cache needs django_redis, and the one for that copies a version of its insides.
"""

from __future__ import annotations

HEALTH = "shiftmaster_monitoring.middleware.HealthMiddleware"
FIRST = "shiftmaster_monitoring.measure.MetricsMiddleware"
CONTEXT = "shiftmaster_monitoring.carry.RequestContext"
CONFIGURE = "shiftmaster_monitoring.logs.configure"
DICT_CONFIG = "logging.config.dictConfig"
LAST = "shiftmaster_monitoring.around.After"
APPLICATION = "shiftmaster_monitoring"


def begin() -> None:
    """Before anything of the application's is imported: whatever makes a metric shares it."""
    from . import shared

    shared.install()


def finish(settings: dict) -> None:
    """Add application and middlewares to a module's settings, each once."""
    names = [name for name in settings.get("MIDDLEWARE") or () if name not in (FIRST, LAST)]
    place = names.index(HEALTH) + 1 if HEALTH in names else 0
    settings["MIDDLEWARE"] = [*names[:place], FIRST, *names[place:], LAST]
    _install(settings)


def logs(settings: dict) -> None:
    """Let the log be written by logs.py, and carry the request id; after finish() where both are used."""
    names = [name for name in settings.get("MIDDLEWARE") or () if name != CONTEXT]
    place = names.index(HEALTH) + 1 if HEALTH in names else 0
    settings["MIDDLEWARE"] = [*names[:place], CONTEXT, *names[place:]]
    # None is an application that configures logging itself, at a time that nobody knows.
    given = settings.get("LOGGING_CONFIG", DICT_CONFIG)
    if given is not None:
        if given != CONFIGURE:
            settings["SHIFTMASTER_LOG_CONFIGURED_BY"] = given
        settings["LOGGING_CONFIG"] = CONFIGURE
        # Django calls no hook where there is nothing to configure.
        settings["LOGGING"] = settings.get("LOGGING") or {"version": 1, "disable_existing_loggers": False}
    _install(settings)


def _install(settings: dict) -> None:
    applications = [name for name in settings.get("INSTALLED_APPS") or () if name != APPLICATION]
    settings["INSTALLED_APPS"] = [*applications, APPLICATION]
