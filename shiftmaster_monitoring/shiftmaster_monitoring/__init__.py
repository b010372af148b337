"""Health endpoints, metrics and logs for a Django application that has none, attached without touching its source.

In a settings module of yours that imports the application's:

    MIDDLEWARE = ["shiftmaster_monitoring.middleware.HealthMiddleware", *MIDDLEWARE]

`/health/` returns 200 or 503 (does the database respond?) to everybody. `/health/deep/` covers database, cache,
broker, worker and migrations, but to callers of the same host or with the token only; others get that of `/health/`.

attach.py switches the metrics on. `/metrics` has those of all processes of the host, for the same callers; others get
404. Requests, queries and tasks are counted on top of django-prometheus, slow requests logged, users and sessions
counted without a name. Nothing of that fails a request: what goes wrong is logged once.

It can also write the log: JSON with the request id that nginx makes, masked, and a log of logins and changed rights.

The settings are described in conf.py.
"""

__version__ = "1.2.0"
