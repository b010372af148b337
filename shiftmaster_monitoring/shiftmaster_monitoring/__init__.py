"""Health endpoints for a Django application that has none, attached without touching its source.

Put the middleware first, in a settings module of yours that imports the application's:

    MIDDLEWARE = ["shiftmaster_monitoring.middleware.HealthMiddleware", *MIDDLEWARE]

`/health/` answers 200 or 503 (does the database answer?) to everybody. `/health/deep/` tells about database, cache,
broker, worker and migrations, but to callers of the same host or with the token only; others get what `/health/` says.
The settings are described in conf.py.
"""

__version__ = "1.0.0"
