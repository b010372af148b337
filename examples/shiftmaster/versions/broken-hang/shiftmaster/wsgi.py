"""The web application: gunicorn shiftmaster.wsgi."""

import os
import time

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shiftmaster.settings")

application = get_wsgi_application()
# Broken on purpose: the import never ends, so no worker ever accepts a request.
while True:
    time.sleep(3600)
