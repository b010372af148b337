"""Settings. Everything that differs between places comes from the environment; no secret has a default."""

from pathlib import Path

from django.utils.translation import gettext_lazy as _

from .environment import flag, number, require, text, words

BASE_DIR = Path(__file__).resolve().parent.parent

(SECRET_KEY, _allowed_hosts, _db_name, _db_user, _db_password, _cache_url, CELERY_BROKER_URL) = require(
    "DJANGO_SECRET_KEY",
    "DJANGO_ALLOWED_HOSTS",
    "DB_NAME",
    "DB_USER",
    "DB_PASSWORD",
    "CACHE_URL",
    "CELERY_BROKER_URL",
)
# Earlier keys: sessions and links signed with them stay good while a key is being changed.
SECRET_KEY_FALLBACKS = words("DJANGO_SECRET_KEY_FALLBACKS")
ALLOWED_HOSTS = [host.strip() for host in _allowed_hosts.split(",") if host.strip()]
CSRF_TRUSTED_ORIGINS = words("DJANGO_CSRF_TRUSTED_ORIGINS")
DEBUG = False

RELEASE = text("SHIFTMASTER_RELEASE")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "health",
    "roster",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "shiftmaster.urls"
WSGI_APPLICATION = "shiftmaster.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "shiftmaster.context.version",
            ],
        },
    }
]

# --- Database and cache ---------------------------------------------------------------------------------------------
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _db_name,
        "USER": _db_user,
        "PASSWORD": _db_password,
        "HOST": text("DB_HOST", "localhost"),
        "PORT": text("DB_PORT", "5432"),
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            "sslmode": text("DB_SSLMODE", "prefer"),
            # A database that does not answer is an error within seconds, not a worker that waits for minutes.
            "connect_timeout": 5,
            "tcp_user_timeout": 10000,
            "application_name": "shiftmaster",
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": _cache_url,
        "KEY_PREFIX": "shiftmaster",
        "OPTIONS": {"socket_connect_timeout": 2, "socket_timeout": 2},
    }
}
# Read from the cache, kept in the database: a page costs no query, and a flushed cache logs nobody out.
SESSION_ENGINE = "shiftmaster.sessions"

# --- Celery ---------------------------------------------------------------------------------------------------------
# A task is acknowledged when it is done: one that was cut off by a stop or a crash is delivered again. So every task
# is written to be run again without harm (roster/tasks/).
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = True
CELERY_TASK_TIME_LIMIT = 300
CELERY_TASK_SOFT_TIME_LIMIT = 270
# A task whose worker was killed is given out again after this time: more than the longest task, or it would run twice.
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 360, "socket_connect_timeout": 5, "socket_keepalive": True}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 2, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5}
# No task's result is read; whoever wants one (a canary after a deploy) asks with ignore_result=False.
CELERY_RESULT_BACKEND = CELERY_BROKER_URL
CELERY_TASK_IGNORE_RESULT = True
CELERY_RESULT_EXPIRES = 3600
CELERY_TIMEZONE = text("TZ", "Asia/Tokyo")
CELERY_BEAT_SCHEDULE = {
    "tidy": {"task": "roster.tasks.tidy", "schedule": 24 * 3600.0, "options": {"expires": 12 * 3600}},
}

# --- Mail -----------------------------------------------------------------------------------------------------------
EMAIL_HOST = text("EMAIL_HOST")
EMAIL_PORT = number("EMAIL_PORT", 25)
EMAIL_HOST_USER = text("EMAIL_HOST_USER")
EMAIL_HOST_PASSWORD = text("EMAIL_HOST_PASSWORD")
EMAIL_USE_TLS = flag("EMAIL_USE_TLS")
EMAIL_TIMEOUT = 15
DEFAULT_FROM_EMAIL = text("DEFAULT_FROM_EMAIL", "shiftmaster@localhost")
# Without a mail server the application works and says so on the page.
EMAIL_BACKEND = f"django.core.mail.backends.{'smtp' if EMAIL_HOST else 'dummy'}.EmailBackend"

# --- Users ----------------------------------------------------------------------------------------------------------
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "roster:home"
LOGOUT_REDIRECT_URL = "login"
SESSION_COOKIE_AGE = 12 * 3600

# --- Language and time ----------------------------------------------------------------------------------------------
LANGUAGE_CODE = "ja"
LANGUAGES = [("ja", _("Japanese")), ("en", _("English"))]
LOCALE_PATHS = [BASE_DIR / "locale"]
LANGUAGE_COOKIE_AGE = 365 * 24 * 3600
LANGUAGE_COOKIE_SAMESITE = "Lax"
TIME_ZONE = text("TZ", "Asia/Tokyo")
USE_I18N = True
USE_TZ = True

# --- Files ----------------------------------------------------------------------------------------------------------
STATIC_URL = "/static/"
STATIC_ROOT = text("STATIC_ROOT", str(BASE_DIR.parent / "static"))
STATICFILES_DIRS = [BASE_DIR / "static"]
MEDIA_URL = "/media/"
MEDIA_ROOT = text("MEDIA_ROOT", str(BASE_DIR.parent / "media"))
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
}

# --- TLS ends at the proxy in front ---------------------------------------------------------------------------------
HTTPS_ENABLED = flag("HTTPS_ENABLED")
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_SSL_REDIRECT = HTTPS_ENABLED
# The health pages are asked on the host itself, over plain HTTP or the socket.
SECURE_REDIRECT_EXEMPT = [r"^health/"]
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if HTTPS_ENABLED else 0
SECURE_REFERRER_POLICY = "same-origin"
SESSION_COOKIE_SECURE = HTTPS_ENABLED
SESSION_COOKIE_HTTPONLY = True
CSRF_COOKIE_SECURE = HTTPS_ENABLED
LANGUAGE_COOKIE_SECURE = HTTPS_ENABLED
X_FRAME_OPTIONS = "DENY"
# W005 and W021 ask for HSTS on every subdomain and in the browsers' list: that is for the domain's owner to decide,
# a hospital's name has other hosts below it.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

# --- Log ------------------------------------------------------------------------------------------------------------
# To stderr: `2026-01-01 12:00:00,123 [LEVEL] logger: message`. The host decides where that goes.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s [%(levelname)s] %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": text("LOG_LEVEL", "INFO").upper()},
    "loggers": {
        # Django's own handlers are replaced by the root's.
        "django": {"handlers": [], "level": "INFO", "propagate": True},
        "django.server": {"handlers": [], "level": "INFO", "propagate": True},
    },
}
