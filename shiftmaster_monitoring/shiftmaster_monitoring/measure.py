"""Measures each request, and serves the scrape of metrics.

After HealthMiddleware where there is one, and before everything else of the application. It also does what
django-prometheus' PrometheusBeforeMiddleware does.
"""

from __future__ import annotations

import time

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpResponse

from . import conf, shared, slow, trouble
from .middleware import trusted

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"))
UNRESOLVED = "unresolved"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsMiddleware:
    sync_capable = True
    async_capable = True

    def __init__(self, get_response):
        self.get_response = get_response
        path = conf.get("SHIFTMASTER_METRICS_PATH")
        self.paths = {path, path.rstrip("/"), path.rstrip("/") + "/"} if path else ()
        self.metrics = self.people = self.exposition = self.before = None
        self._children, self.limits = {}, []
        with trouble.contained("metrics cannot be counted"):
            from . import exposition, metrics, people

            self.metrics, self.people, self.exposition = metrics, people, exposition.Exposition()
            for level in ("info", "warning"):
                metrics.slow_requests.labels(level)
        with trouble.contained("django-prometheus cannot be used"):
            from django_prometheus.middleware import Metrics

            self.before = Metrics.get_instance()
        with trouble.contained("the log of slow requests cannot be prepared"):
            slow.prepare()
            self.limits = slow.limits()
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request):
        if request.path_info in self.paths:
            return (
                sync_to_async(self.respond, thread_sensitive=False)(request) if self.is_async else self.respond(request)
            )
        if conf.WARMING in request.META:
            # A process sends itself requests before users do; its first responses are slow and not representative.
            return self.get_response(request)
        if self.before is not None:
            self.before.requests_total.inc()
        if self.is_async:
            return self.measured(request)
        began = time.perf_counter()
        response = self.get_response(request)
        self.note(request, response, time.perf_counter() - began)
        return response

    async def measured(self, request):
        began = time.perf_counter()
        response = await self.get_response(request)
        self.note(request, response, time.perf_counter() - began)
        return response

    def note(self, request, response, seconds: float) -> None:
        """Count one completed request. Raises nothing."""
        try:
            match = getattr(request, "resolver_match", None)
            route = "/" + match.route if match is not None else UNRESOLVED
            method = request.method if request.method in METHODS else "OTHER"
            severity = next((level for limit, level in self.limits if seconds >= limit), None)
            if severity is not None:
                slow.write(request, response, route, method, seconds, severity)
            if self.metrics is None:
                return
            child = self._children.get((route, method))
            if child is None:
                child = self._children[route, method] = self.metrics.requests.labels(route, method)
            child.observe(seconds)
            if self.before is not None:
                self.before.responses_total.inc()
                self.before.requests_latency_before.observe(seconds)
            if severity is not None:
                self.metrics.slow_requests.labels("warning" if severity > slow.logging.INFO else "info").inc()
            self.people.seen(request)
            shared.store.check_file()
        except Exception as error:
            trouble.say("a request cannot be counted", error)

    def respond(self, request) -> HttpResponse:
        if not trusted(request) or self.exposition is None:
            response = HttpResponse("not found\n", status=404, content_type="text/plain")
        elif request.method not in ("GET", "HEAD"):
            response = HttpResponse(status=405, headers={"Allow": "GET, HEAD"})
        else:
            shared.store.check_file()
            response = HttpResponse(self.exposition.text(conf.WARMING in request.META), content_type=CONTENT_TYPE)
        response["Cache-Control"] = "no-store"
        response["X-Content-Type-Options"] = "nosniff"
        return response
