"""What waits at Celery's broker, by looking at it at a scrape: length of each queue and age of its oldest task.

kombu keeps a queue of Redis as one list for each priority. It puts tasks in at the left and takes them at the right, so
the last entry is the oldest. Reading removes nothing. Other brokers return only the length.
"""

from __future__ import annotations

import importlib
import json
import time

from . import checks, conf, tasks

# What kombu takes where the application reports nothing else.
SEPARATOR, PRIORITIES = "\x06\x16", (0, 3, 6, 9)
_clients = {}
_met = {}  # list: (the oldest task, when it was first seen there)


def names(application) -> list:
    found = set(conf.get("SHIFTMASTER_CELERY_QUEUES") or ())
    if application is not None:
        found.update(application.amqp.queues)
    return sorted(str(name) for name in found if not str(name).startswith(tasks.CANARY))


def measure(limit: float) -> dict:
    """Return {"queues": {name: (length, age in seconds)}}; an age of None is not known."""
    url, application = checks._broker_url(), checks._celery()
    if not url or application is None:
        raise checks.Skipped("there is no Celery broker")
    wanted = names(application)
    if url.startswith(("redis://", "rediss://", "unix://")):
        return {"queues": _in_redis(url, limit, wanted, dict(application.conf.broker_transport_options or {}))}
    kombu = importlib.import_module("kombu")
    with kombu.Connection(url, connect_timeout=limit) as connection:
        connection.ensure_connection(max_retries=1, timeout=limit)
        channel = connection.default_channel
        found = {name: channel.queue_declare(name, passive=True).message_count for name in wanted}
    return {"queues": {name: (length, 0.0 if not length else None) for name, length in found.items()}}


def _in_redis(url: str, limit: float, wanted: list, options: dict) -> dict:
    redis = importlib.import_module("redis")
    client = _clients.get(url)
    if client is None:
        _clients.clear()
        client = _clients[url] = redis.Redis.from_url(url, socket_timeout=limit, socket_connect_timeout=limit)
    separator, prefix = options.get("sep", SEPARATOR), options.get("global_keyprefix", "")
    lists = {
        name: [
            prefix + (name if not step else "%s%s%s" % (name, separator, step))
            for step in options.get("priority_steps", PRIORITIES)
        ]
        for name in wanted
    }
    pipeline = client.pipeline(transaction=False)
    for keys in lists.values():
        for key in keys:
            pipeline.llen(key)
            pipeline.lindex(key, -1)
    responses = iter(pipeline.execute())
    now, found = time.time(), {}
    for name, keys in lists.items():
        length, ages = 0, []
        for key in keys:
            waiting, oldest = next(responses), next(responses)
            length += waiting
            if oldest is None:
                _met.pop(key, None)
            else:
                ages.append(_age(key, oldest, now))
        found[name] = (length, max(ages, default=0.0))
    return found


def _age(key: str, raw: bytes, now: float) -> float:
    try:
        headers = json.loads(raw).get("headers") or {}
        if headers.get(tasks.PUBLISHED) is not None:
            return max(0.0, now - float(headers[tasks.PUBLISHED]))
        sign = headers.get("id") or hash(raw)
    except (ValueError, TypeError, AttributeError):
        sign = hash(raw)
    # Who has sent it notes no time: it is at least as old as we know it.
    if _met.get(key, (None,))[0] != sign:
        _met[key] = (sign, now)
    return now - _met[key][1]
