"""django-prometheus' middleware, after all others, which never fails a request here.

The one for before all others is part of MetricsMiddleware: it counts in the same metrics, without a layer of its own.
"""

from __future__ import annotations

import functools

from django.core.exceptions import MiddlewareNotUsed

from . import conf, trouble

try:
    from django_prometheus.middleware import PrometheusAfterMiddleware
except Exception as error:  # Not there, or it does not fit this Django.
    trouble.say("django-prometheus cannot be used", error)

    class PrometheusAfterMiddleware:
        def __init__(self, *_arguments):
            raise MiddlewareNotUsed("django-prometheus cannot be used")


def _contained(original):
    """Return one of its methods that only logs errors, and leaves out optional metrics."""

    @functools.wraps(original)
    def method(self, request, *arguments, **more):
        # What comes back is of no use to Django, but for the response, which is what came in.
        if conf.WARMING not in request.META:
            try:
                original(self, request, *arguments, **more)
            except Exception as error:
                trouble.say("django-prometheus", error)
        return arguments[0] if original.__name__ in ("process_response", "process_template_response") else None

    return method


def _all_contained(middleware):
    names = [name for name in vars(middleware) if name.startswith("process_")]
    return {name: _contained(getattr(middleware, name)) for name in names}


class After(type("After", (PrometheusAfterMiddleware,), _all_contained(PrometheusAfterMiddleware))):
    """And which take no label from a client, and look each series up once."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self._children = {}

    def label_metric(self, metric, request, response=None, **labels):
        if not labels:
            return metric
        # In one place it takes the method as the client has sent it; each invented one would be a series for ever.
        if "method" in labels:
            labels["method"] = self._method(request)
        key = (metric, *labels.values())
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = super().label_metric(metric, request, response, **labels)
        return child
