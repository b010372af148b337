"""Queries, counted in django-prometheus' metrics of databases, but not by its engines.

Those would have to be in DATABASES in place of the application's, make a class for each cursor, and look each series
up for each query. Here every connection, whatever its engine, gets a wrapper of Django's own kind when it is made.
"""

from __future__ import annotations

import time

from django_prometheus.db import metrics

from . import trouble


class Queries:
    """One connection's wrapper; what Django calls around each statement."""

    def __init__(self, alias: str, vendor: str):
        self.labels = (alias, vendor)
        self.executed = metrics.execute_total.labels(*self.labels)
        self.many = metrics.execute_many_total.labels(*self.labels)
        self.seconds = metrics.query_duration_seconds.labels(*self.labels)

    def __call__(self, execute, sql, params, many, context):
        began = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        except Exception as error:
            with trouble.contained("a query cannot be counted"):
                metrics.errors_total.labels(*self.labels, type(error).__name__).inc()
            raise
        finally:
            try:
                self.seconds.observe(time.perf_counter() - began)
                count = len(params) if many and hasattr(params, "__len__") else 1
                self.executed.inc(count)
                if many:
                    self.many.inc(count)
            except Exception as error:
                trouble.say("a query cannot be counted", error)


def connected(connection=None, **_more) -> None:
    """Count a new connection, and what it is queried from now on."""
    with trouble.contained("queries cannot be counted"):
        metrics.connections_total.labels(connection.alias, connection.vendor).inc()
        if not any(isinstance(wrapper, Queries) for wrapper in connection.execute_wrappers):
            # The first: Django takes the last one off again where somebody has put one on for a while.
            connection.execute_wrappers.insert(0, Queries(connection.alias, connection.vendor))
