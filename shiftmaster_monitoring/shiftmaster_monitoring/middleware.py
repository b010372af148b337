"""Serves the two health paths before anything else of the application sees the request.

So neither ALLOWED_HOSTS nor a redirect to HTTPS nor a session touches them.
"""

from __future__ import annotations

import hmac
import ipaddress
import threading
import time

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpResponse, JsonResponse

from . import checks, conf
from .runner import Runner

# Requests of unknown clients get a result of this age at most, so that they cannot keep the database busy.
LIGHT_CACHE_SECONDS = 2.0


class HealthMiddleware:
    """Must be the first entry of MIDDLEWARE."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response):
        self.get_response = get_response
        self.paths = {}
        for setting, view in (("SHIFTMASTER_HEALTH_PATH", self.light), ("SHIFTMASTER_HEALTH_DEEP_PATH", self.deep)):
            path = conf.get(setting)
            if path:
                self.paths[path] = self.paths[path.rstrip("/") or "/"] = view
        self.runner = Runner()
        self._light, self._light_until, self._lock = None, 0.0, threading.Lock()
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request):
        view = self.paths.get(request.path_info)
        if view is None:
            return self.get_response(request)
        if self.is_async:
            return sync_to_async(self.respond, thread_sensitive=False)(view, request)
        return self.respond(view, request)

    def respond(self, view, request) -> HttpResponse:
        if request.method not in ("GET", "HEAD"):
            response = HttpResponse(status=405, headers={"Allow": "GET, HEAD"})
        else:
            response = view(request)
        response["Cache-Control"] = "no-store"
        response["X-Content-Type-Options"] = "nosniff"
        return response

    def light(self, request) -> HttpResponse:
        """Does the database respond?"""
        status = self._database() if trusted(request) else self._database_for_strangers()
        return JsonResponse({"status": status}, status=200 if status == "healthy" else 503)

    def deep(self, request) -> HttpResponse:
        """Everything that the application needs; ?checks= and ?skip= (with commas) choose."""
        if not trusted(request):
            return self.light(request)
        names = list(conf.get("SHIFTMASTER_HEALTH_CHECKS"))
        chosen, skipped = _names(request, "checks"), _names(request, "skip")
        unknown = [name for name in chosen + skipped if name not in names]
        if unknown:
            return JsonResponse(
                {"error": "there is no check %s" % ", ".join(unknown), "checks_known": names}, status=400
            )
        wanted = [name for name in names if (not chosen or name in chosen) and name not in skipped]
        results = self.runner.run({name: (checks.by_name(name), conf.timeout(name)) for name in wanted})
        healthy = all(result["status"] != "unhealthy" for result in results.values())
        return JsonResponse(
            {
                "status": "healthy" if healthy else "unhealthy",
                "version": conf.get("SHIFTMASTER_VERSION"),
                "release": conf.get("SHIFTMASTER_RELEASE"),
                "checks": results,
            },
            status=200 if healthy else 503,
        )

    def _database(self) -> str:
        return self.runner.run({"database": (checks.database, conf.timeout("database"))})["database"]["status"]

    def _database_for_strangers(self) -> str:
        with self._lock:
            if time.monotonic() >= self._light_until:
                self._light = self._database()
                self._light_until = time.monotonic() + LIGHT_CACHE_SECONDS
            return self._light


def _names(request, parameter: str) -> list:
    return [name for name in request.GET.get(parameter, "").split(",") if name]


def trusted(request) -> bool:
    """Return whether a caller may see details: one with the token, or one of this host.

    A request over a unix socket has no address of its own. Whoever came through a proxy is evaluated by every address
    that the proxies wrote down, so the reverse proxy must set X-Forwarded-For or X-Real-IP (ours does).
    """
    token = conf.get("SHIFTMASTER_HEALTH_TOKEN")
    if token:
        given = request.headers.get("X-Health-Token", "")
        if not given and request.headers.get("Authorization", "").startswith("Bearer "):
            given = request.headers["Authorization"][len("Bearer ") :]
        if given and hmac.compare_digest(given.encode(), str(token).encode()):
            return True
    if request.headers.get("Forwarded"):
        return False
    addresses = [request.META.get("REMOTE_ADDR") or ""]
    for header in ("X-Forwarded-For", "X-Real-IP"):
        addresses += request.headers.get(header, "").split(",")
    return all(is_loopback(address.strip()) for address in addresses if address.strip())


def is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
