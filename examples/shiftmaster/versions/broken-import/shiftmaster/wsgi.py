"""The web application: gunicorn shiftmaster.wsgi."""

import os

from django.core.wsgi import get_wsgi_application

# Broken on purpose: no such module. gunicorn's workers die when they import this, after its own READY.
from .telemetry import instrument

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shiftmaster.settings")

application = instrument(get_wsgi_application())
