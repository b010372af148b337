"""The Celery application: celery -A shiftmaster worker."""

import logging.config
import os
import sys

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


# Broken on purpose: only a worker fails, the web application imports this module without harm.
if "worker" in sys.argv[1:]:
    raise RuntimeError("the queue's settings are incomplete: CELERY_ROUTES_FILE is not set")
