"""Connects to the signals of Django and Celery, in every process that loads the application."""

from __future__ import annotations

import sys

from django.apps import AppConfig

from . import conf, trouble


class MonitoringConfig(AppConfig):
    name = "shiftmaster_monitoring"

    def ready(self) -> None:
        with trouble.contained("sessions cannot be measured"):
            from django.contrib.auth.signals import user_logged_out

            from . import people

            user_logged_out.connect(people.logged_out, dispatch_uid="shiftmaster_monitoring")
        if conf.get("SHIFTMASTER_METRICS_DATABASE"):
            with trouble.contained("queries cannot be counted"):
                from django.db.backends.signals import connection_created

                from . import database

                connection_created.connect(database.connected, dispatch_uid="shiftmaster_monitoring")
        if "celery" in sys.modules or conf.get("SHIFTMASTER_CELERY_APPLICATION"):
            with trouble.contained("tasks cannot be measured"):
                from . import tasks

                tasks.connect()
