"""django-prometheus' two middlewares, which never fail a request here."""

from __future__ import annotations

from django.core.exceptions import MiddlewareNotUsed

from . import conf, trouble

try:
    from django_prometheus.middleware import PrometheusAfterMiddleware, PrometheusBeforeMiddleware
except Exception as error:  # Not there, or it does not fit this Django.
    trouble.say("django-prometheus cannot be used", error)

    class PrometheusBeforeMiddleware:
        def __init__(self, *_arguments):
            raise MiddlewareNotUsed("django-prometheus cannot be used")

    PrometheusAfterMiddleware = PrometheusBeforeMiddleware


def _contained(name):
    """Return a middleware's method that only says what goes wrong, and leaves out what nobody has asked for."""

    def method(self, request, *arguments, **more):
        given = arguments[0] if name in ("process_response", "process_template_response") else None
        if conf.WARMING not in request.META:
            with trouble.contained("django-prometheus"):
                getattr(super(type(self), self), name)(request, *arguments, **more)
        return given

    method.__name__ = name
    return method


class Before(PrometheusBeforeMiddleware):
    process_request = _contained("process_request")
    process_response = _contained("process_response")


class After(PrometheusAfterMiddleware):
    process_request = _contained("process_request")
    process_view = _contained("process_view")
    process_template_response = _contained("process_template_response")
    process_response = _contained("process_response")
    process_exception = _contained("process_exception")

    def label_metric(self, metric, request, response=None, **labels):
        # In one place it takes the method as the client has sent it; each invented one would be a series for ever.
        if "method" in labels:
            labels["method"] = self._method(request)
        return super().label_metric(metric, request, response, **labels)
