"""The health pages: a light one for balancers and probes, a deep one for deploys and monitoring."""

from django.conf import settings
from django.http import JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from shiftmaster import __version__

from .checks import ALL, LIGHT, run


def answer(checks, skip=()):
    results = run(checks, skip)
    healthy = all(result["status"] == "healthy" for result in results.values())
    body = {
        "status": "healthy" if healthy else "unhealthy",
        "version": __version__,
        "release": settings.RELEASE,
        "checks": results,
    }
    return JsonResponse(body, status=200 if healthy else 503)


@never_cache
@require_safe
def light(request):
    return answer(LIGHT)


@never_cache
@require_safe
def deep(request):
    """All checks. `?skip=worker` leaves some out: before the first workers run, none can answer."""
    skip = {name for name in request.GET.get("skip", "").split(",") if name}
    unknown = sorted(skip - ALL.keys())
    if unknown:
        return JsonResponse({"error": f"There is no check named {', '.join(unknown)}."}, status=400)
    return answer(ALL, skip)
