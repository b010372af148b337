"""Collect evidence: all parts at the same time, each within its own limit, everything within another.

A part is a function (Setting) -> data that reads one thing. What fails or hangs is evidence itself:
    {"status": "ok|failed|hung|absent", "seconds": 0.1, "error": "...", ...data}
absent: the host does not have what the part looks at (no PostgreSQL, no container engine).
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from ..host import probe
from .redact import redact_tree

OK, FAILED, HUNG, ABSENT = "ok", "failed", "hung", "absent"
# Names of the engine itself; a part's own data may not use these names.
RESERVED = ("status", "seconds", "error")


class Part(NamedTuple):
    """What is collected, for whom and how long it may take."""

    function: object
    areas: tuple
    seconds: float = 5.0
    functions: tuple = ()  # only on hosts with one of these; empty: on all


class Absent(Exception):
    """The host does not have this; str() is the reason."""


def chosen(parts: dict, area: str, functions) -> dict:
    """Return the parts of an area that a host with these functions has; `all` is all of the diagnosis.

    The checklists want more, which is no part of it: it takes long, or is about what goes wrong slowly.
    """
    return {
        name: part
        for name, part in parts.items()
        if (area in part.areas or area == "checklist" or area == "all" and part.areas != ("checklist",))
        and (not part.functions or set(part.functions) & set(functions))
    }


def run_part(part: Part, setting) -> dict:
    """Run one part; whatever happens becomes data."""
    started = time.monotonic()
    try:
        result = dict(part.function(setting), status=OK)
    except Absent as nothing:
        result = {"status": ABSENT, "error": str(nothing)}
    except probe.ProbeError as error:
        result = {"status": HUNG if error.reason == "timeout" else FAILED, "error": str(error), "reason": error.reason}
    except Exception as error:  # noqa: BLE001 - one part's fault must not hide the others.
        result = {"status": FAILED, "error": "%s: %s" % (type(error).__name__, error)}
    if result["status"] != OK and not result["error"].strip():
        # Without a reason nobody can put it right.
        result["error"] = "it ended without a reason"
    result["seconds"] = round(time.monotonic() - started, 3)
    return result


def collect(parts: dict, setting, limit: float = 15.0) -> dict:
    """Return {name: data} of all parts, redacted, after `limit` seconds at the latest."""
    results = {}

    def work(name, part):
        results[name] = run_part(part, setting)

    began = time.monotonic()
    threads = {
        name: threading.Thread(target=work, args=(name, part), daemon=True, name=name) for name, part in parts.items()
    }
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        allowed = min(parts[name].seconds, limit)
        thread.join(max(0.0, began + allowed - time.monotonic()))
    # The late ones continue; their results are ignored from now on.
    heard = dict(results)
    for name, part in parts.items():
        if name not in heard:
            seconds = min(part.seconds, limit)
            heard[name] = {"status": HUNG, "seconds": seconds, "error": "no response within %g s" % seconds}
    probe.kill_children()
    return redact_tree({name: heard[name] for name in parts}, setting.secrets())
