"""Settings for the application's own tests: SQLite and memory, or the database of the environment if DB_NAME is set."""

import os
import secrets

USE_SQLITE = not os.environ.get("DB_NAME")

os.environ.setdefault("DJANGO_SECRET_KEY", secrets.token_urlsafe(50))
os.environ.setdefault("DJANGO_ALLOWED_HOSTS", "testserver")
os.environ.setdefault("CACHE_URL", "redis://unused.invalid/1")
os.environ.setdefault("CELERY_BROKER_URL", "memory://")
for _name in ("DB_NAME", "DB_USER", "DB_PASSWORD"):
    os.environ.setdefault(_name, "unused")

from .settings import *  # noqa: E402, F403
from .settings import STORAGES  # noqa: E402

if USE_SQLITE:
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
STORAGES = {**STORAGES, "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}}
CELERY_RESULT_BACKEND = "cache+memory://"
EMAIL_HOST = "mail.invalid"
# The real hasher takes half a second for each login.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SECURE_SSL_REDIRECT = False
# The tests provoke warnings; only their own output is wanted.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"none": {"class": "logging.NullHandler"}},
    "root": {"handlers": ["none"]},
}
