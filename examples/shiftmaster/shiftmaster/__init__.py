"""ShiftMaster plans the shifts of a hospital's wards."""

from pathlib import Path

# The code's own version; SHIFTMASTER_VERSION of the environment is only what a deploy asked for.
__version__ = (Path(__file__).resolve().parent.parent / "VERSION").read_text(encoding="utf-8").strip()

# `celery -A shiftmaster` and every enqueueing view find the application here.
from .celery import app as celery_app  # noqa: E402

__all__ = ["__version__", "celery_app"]
