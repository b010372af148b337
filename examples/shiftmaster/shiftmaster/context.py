"""What every template knows."""

from . import __version__


def version(request):
    return {"version": __version__}
