"""Lines of JSON in the Elastic Common Schema, as shiftmaster_monitoring writes them, as a person reads a log."""

from __future__ import annotations

import json


def as_lines(text: str) -> str:
    """Return a log: a line of the schema as `time [LEVEL] logger: message`, its traceback below; others as they are."""
    return "".join(_as_line(line) for line in text.splitlines(keepends=True))


def _as_line(line: str) -> str:
    if not line.startswith('{"@timestamp":'):
        return line
    try:
        event = json.loads(line)
        head = "%s [%s] %s: %s" % (
            event["@timestamp"],
            event["log"]["level"],
            event["log"]["logger"],
            event["message"],
        )
        trace = event.get("error", {}).get("stack_trace", "")
    # Binary garbage may look like it, and a line may be cut off.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return line
    return "\n".join([head] + ([trace] if trace else [])) + "\n"
