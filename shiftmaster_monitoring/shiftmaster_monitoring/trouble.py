"""Errors of the measurement are logged once and never reach the application."""

from __future__ import annotations

import contextlib
import logging

logger = logging.getLogger("shiftmaster_monitoring")
_reported = set()
_MANY = 100


def say(what: str, error: BaseException) -> None:
    """Log one kind of trouble once in each process. Raises nothing."""
    # BaseException's own text may fail, and so may a handler of the application's.
    with contextlib.suppress(Exception):
        kind = (what, type(error).__name__)
        if kind in _reported or len(_reported) >= _MANY:
            return
        _reported.add(kind)
        # A logging configuration may have disabled the loggers that were there before it.
        logger.disabled = False
        logger.warning("%s: %s: %s; requests and tasks go on without it", what, kind[1], str(error)[:300])


@contextlib.contextmanager
def contained(what: str):
    """Run a block whose failure is only logged."""
    try:
        yield
    except Exception as error:
        say(what, error)
