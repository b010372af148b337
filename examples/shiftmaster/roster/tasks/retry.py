"""What a task does when the database goes away under it: it comes back later instead of being lost."""

from django.db import InterfaceError, OperationalError

ON_LOST_DATABASE = {"autoretry_for": (OperationalError, InterfaceError), "retry_backoff": 2, "max_retries": 6}
