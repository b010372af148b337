"""The checks of the deep endpoint. A check takes its time limit in seconds, and returns more data (a dict, or None).

It raises Skipped where there is nothing to check, and anything else where something is wrong.
"""

from __future__ import annotations

import importlib
import os
import re
import secrets
import sys

from django.conf import settings
from django.core.cache import caches
from django.db import connections
from django.utils.module_loading import import_string

from . import conf


class Skipped(Exception):
    """The application has no such part."""


class Unhealthy(Exception):
    """A part responds, but not as it must; str() holds no secrets. more is reported next to it."""

    def __init__(self, message: str, **more):
        super().__init__(message)
        self.more = more


def by_name(name: str):
    """Return a check: one of ours, or a site's own by its dotted path."""
    return CHECKS[name] if name in CHECKS else import_string(name)


def _connection(limit: float):
    """Return a database connection of this thread whose waiting is limited on the wire, too.

    A thread that is given up must end by itself; it may not wait on a dead connection for hours.
    """
    connection = connections.create_connection(conf.get("SHIFTMASTER_HEALTH_DATABASE"))
    seconds = max(1, int(limit))
    known = dict(connection.settings_dict)
    options = dict(known.get("OPTIONS") or {})
    if connection.vendor == "postgresql":
        options.pop("pool", None)
        options["connect_timeout"] = seconds
        options["tcp_user_timeout"] = seconds * 1000
        options["options"] = (options.get("options", "") + " -c statement_timeout=%d" % (limit * 1000)).strip()
    elif connection.vendor == "mysql":
        options.update(connect_timeout=seconds, read_timeout=seconds, write_timeout=seconds)
    elif connection.vendor == "sqlite":
        options["timeout"] = limit
    known["OPTIONS"] = options
    connection.settings_dict = known
    return connection


def database(limit: float):
    connection = _connection(limit)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
    finally:
        connection.close()


def cache(limit: float):
    alias = conf.get("SHIFTMASTER_HEALTH_CACHE")
    backend = settings.CACHES.get(alias, {}).get("BACKEND", "")
    if not backend or backend.endswith("DummyCache"):
        raise Skipped("there is no cache %r" % alias)
    key, value = "shiftmaster-health-" + secrets.token_hex(8), secrets.token_hex(8)
    store = caches[alias]
    try:
        store.set(key, value, 30)
        if store.get(key) != value:
            raise Unhealthy("a value that was written could not be read")
        store.delete(key)
    finally:
        store.close()


def _celery():
    """Return the application's Celery application, or None."""
    name = conf.get("SHIFTMASTER_CELERY_APPLICATION")
    if name:
        from celery.app.utils import find_app

        return find_app(name)
    if "celery" not in sys.modules:
        return None  # A Django application with Celery imports it.
    from celery import _state

    return _state.get_current_app() if _state.default_app or _state._get_active_apps() else None


def _broker_url():
    for value in (
        conf.get("SHIFTMASTER_HEALTH_BROKER_URL"),
        getattr(settings, "CELERY_BROKER_URL", None),
        os.environ.get("CELERY_BROKER_URL"),
    ):
        if value:
            return value if isinstance(value, str) else value[0]
    application = _celery()
    url = application.conf.broker_url if application is not None else None
    return url[0] if isinstance(url, (list, tuple)) and url else url


def broker(limit: float):
    url = _broker_url()
    if not url:
        raise Skipped("there is no Celery broker")
    if url.startswith(("redis://", "rediss://", "unix://")):
        redis = importlib.import_module("redis")
        client = redis.Redis.from_url(url, socket_timeout=limit, socket_connect_timeout=limit)
        try:
            client.ping()
        finally:
            client.close()
        return
    kombu = importlib.import_module("kombu")
    with kombu.Connection(url, connect_timeout=limit) as connection:
        connection.ensure_connection(max_retries=1, timeout=limit)


def worker(limit: float):
    application = _celery()
    if application is None:
        raise Skipped("there is no Celery application")
    # A separate connection, so that a broken one of the application's pool is not evaluated.
    with application.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=limit / 2)
        # limit=1: the first worker's response is enough, nobody waits for the rest.
        responses = application.control.ping(timeout=limit / 2, limit=1, connection=connection)
    if not responses:
        raise Unhealthy("no worker responded")
    return {"worker": next(iter(responses[0]))}


def migrations(limit: float):
    from django.db.migrations.executor import MigrationExecutor

    connection = _connection(limit)
    try:
        executor = MigrationExecutor(connection)
        loader = executor.loader
        plan = executor.migration_plan(loader.graph.leaf_nodes())
    finally:
        connection.close()
    pending = ["%s.%s" % (migration.app_label, migration.name) for migration, _backwards in plan]
    deferred = conf.deferred_migrations()
    if any(name not in deferred for name in pending):
        raise Unhealthy("%d pending: %s" % (len(pending), ", ".join(pending[:10])), pending=pending)
    found = {"pending": pending} if pending else {}
    # A later version may have applied it, or a person; the rows that a squashed migration replaces are no such ones.
    known = {*loader.disk_migrations, *(name for one in loader.disk_migrations.values() for name in one.replaces)}
    unknown = [
        "%s.%s" % row for row in loader.applied_migrations if row not in known and row[0] in loader.migrated_apps
    ]
    if unknown:
        found["unknown"] = sorted(unknown)[:10]
    return found


CHECKS = {"database": database, "cache": cache, "broker": broker, "worker": worker, "migrations": migrations}

_ADDRESS_PASSWORD = re.compile(r"://[^@/\s]*@")


def describe(error: BaseException) -> str:
    """Return an error's class and a short text on one line without secrets."""
    # psycopg lists every address that it tried; the first is enough.
    text = " ".join(str(error).split()).split(" Multiple connection attempts failed")[0]
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = _ADDRESS_PASSWORD.sub("://***@", text)[:200]
    name = type(error).__name__
    return text if isinstance(error, Unhealthy) else "%s: %s" % (name, text) if text else name


def _secrets():
    found = {settings.SECRET_KEY, conf.get("SHIFTMASTER_HEALTH_TOKEN")}
    found.update(database.get("PASSWORD") for database in settings.DATABASES.values())
    for name, value in os.environ.items():
        if re.search("PASSWORD|SECRET|TOKEN", name):
            found.add(value)
        password = re.search(r"://[^:@/\s]*:([^@/\s]+)@", value)
        if password:
            found.add(password.group(1))
    # A short one would turn every text into stars, and is no secret.
    return sorted((str(secret) for secret in found if secret and len(str(secret)) >= 4), key=len, reverse=True)
