"""Connects to the signals of Django and Celery, in every process that loads the application."""

from __future__ import annotations

import sys

from django.apps import AppConfig, apps
from django.conf import settings

from . import attach, conf, trouble


class MonitoringConfig(AppConfig):
    name = "shiftmaster_monitoring"

    def ready(self) -> None:
        if attach.FIRST in (settings.MIDDLEWARE or ()):
            self.measure()
        if attach.CONTEXT in (settings.MIDDLEWARE or ()):
            self.log()

    def measure(self) -> None:
        with trouble.contained("sessions cannot be measured"):
            from django.contrib.auth.signals import user_logged_out

            from . import people

            user_logged_out.connect(people.logged_out, dispatch_uid="shiftmaster_monitoring")
        if conf.get("SHIFTMASTER_METRICS_DATABASE"):
            with trouble.contained("queries cannot be counted"):
                from django.db.backends.signals import connection_created

                from . import database

                connection_created.connect(database.connected, dispatch_uid="shiftmaster_monitoring")
        if _has_celery():
            with trouble.contained("tasks cannot be measured"):
                from . import tasks

                tasks.connect()

    def log(self) -> None:
        with trouble.contained("statements cannot be given the request id"):
            from django.db.backends.signals import connection_created

            from . import carry

            connection_created.connect(carry.connected, dispatch_uid="shiftmaster_monitoring.carry")
        if conf.get("SHIFTMASTER_AUDIT_LOG") and apps.is_installed("django.contrib.auth"):
            with trouble.contained("audit events cannot be written"):
                from . import audit

                audit.connect()
        if _has_celery():
            with trouble.contained("tasks cannot be given the request id"):
                from . import carry, logs

                carry.connect()
                logs.connect()


def _has_celery() -> bool:
    return bool("celery" in sys.modules or conf.get("SHIFTMASTER_CELERY_APPLICATION"))
