import os

SECRET_KEY = os.environ["APP_SECRET"]
ALLOWED_HOSTS = os.environ["APP_HOSTS"].split()
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
ROOT_URLCONF = "config.urls"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["APP_DATABASE"],
        "USER": os.environ["APP_DATABASE_USER"],
        "PASSWORD": os.environ["APP_DATABASE_PASSWORD"],
        "HOST": os.environ["APP_DATABASE_HOST"],
        "OPTIONS": {"sslmode": "require"},
    }
}
USE_TZ = True
