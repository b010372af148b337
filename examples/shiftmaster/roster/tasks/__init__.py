"""The Celery tasks. Each may be delivered more than once and is written for it. Their names are explicit."""

from .counted import record_run
from .draft import build_draft
from .mail import mail_roster
from .tidy import tidy

__all__ = ["build_draft", "mail_roster", "record_run", "tidy"]
