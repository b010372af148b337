"""Reading of the settings' environment: what is missing is said in one sentence, all names at once."""

import os

from django.core.exceptions import ImproperlyConfigured

TRUE = {"1", "true", "yes", "on"}
FALSE = {"0", "false", "no", "off", ""}


def require(*names):
    """Values of names that have no default. An empty value counts as missing."""
    missing = [name for name in names if not os.environ.get(name, "").strip()]
    if missing:
        raise ImproperlyConfigured(
            f"ShiftMaster cannot start: the environment does not set {', '.join(missing)}. None of them has a default."
        )
    return [os.environ[name] for name in names]


def text(name, default=""):
    return os.environ.get(name, "").strip() or default


def flag(name, default=False):
    value = os.environ.get(name)
    if value is None:
        return default
    if value.strip().lower() in TRUE:
        return True
    if value.strip().lower() in FALSE:
        return False
    raise ImproperlyConfigured(f"{name} must be true or false, not {value!r}.")


def number(name, default):
    value = text(name, str(default))
    try:
        return int(value)
    except ValueError:
        raise ImproperlyConfigured(f"{name} must be a whole number, not {value!r}.") from None


def words(name, default=""):
    """A list, separated by commas."""
    return [word.strip() for word in text(name, default).split(",") if word.strip()]
