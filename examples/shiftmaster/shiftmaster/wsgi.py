"""The web application: gunicorn shiftmaster.wsgi."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shiftmaster.settings")

application = get_wsgi_application()
