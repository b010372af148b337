"""Do the cache, the queue and a worker answer?"""

import secrets

from django.core.cache import cache

from shiftmaster.celery import app


def cache_responds():
    key, value = f"health:{secrets.token_hex(4)}", secrets.token_hex(4)
    cache.set(key, value, timeout=10)
    found = cache.get(key)
    cache.delete(key)
    if found != value:
        raise LookupError("a value that was written could not be read")


def broker():
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, timeout=2)
        connection.default_channel.client.ping()


def worker():
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, timeout=2)
        # limit=1: the first worker's answer is enough, nobody waits for the rest.
        if not app.control.inspect(timeout=2.0, limit=1, connection=connection).ping():
            raise LookupError("no worker answered within 2 s")
