"""The Celery application: celery -A shiftmaster worker."""

import logging.config
import os

from celery import Celery
from celery.signals import setup_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shiftmaster.settings")

app = Celery("shiftmaster")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def use_django_logging(**_):
    """Keep one log format for web and worker: without this, Celery sets up its own."""
    from django.conf import settings

    logging.config.dictConfig(settings.LOGGING)
