"""Lines of JSON in the Elastic Common Schema, as shiftmaster_monitoring writes them, as a person reads a log."""

from __future__ import annotations

import json


def as_lines(text: str) -> str:
    """Return a log: a line of the schema as `time [LEVEL] logger: message`, its traceback below; others as they are."""
    # Not splitlines(): a text may hold what Unicode calls the end of a line.
    return "\n".join(_as_line(line) for line in text.split("\n"))


def _as_line(line: str) -> str:
    if not line.startswith('{"@timestamp":'):
        return line
    try:
        event = json.loads(line)
        log, trace = event["log"], event.get("error", {}).get("stack_trace", "")
        head = "%s [%s] %s: %s" % (event["@timestamp"], log["level"], log["logger"], event["message"])
        # A release may write anything.
        return "%s\n%s" % (head, trace) if trace else head
    # Binary garbage may look like it, and a line may be cut off.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return line
