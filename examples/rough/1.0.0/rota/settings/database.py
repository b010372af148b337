from .base import BASE_DIR

# As on the computer of its author; 1.1.0 reads the environment.
DEBUG = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}
