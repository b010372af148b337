"""Runs the checks: those of the database in the request's thread, the others beside it."""

import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor

from . import database, services

logger = logging.getLogger(__name__)

LIGHT = {"database": database.ping}
ALL = {
    "database": database.ping,
    "cache": services.cache_responds,
    "broker": services.broker,
    "worker": services.worker,
    "migrations": database.migrations,
}
# Those that use no database connection, which belongs to its thread.
BESIDE = {"cache", "broker", "worker"}
# Passwords of addresses such as redis://user:password@host.
CREDENTIALS = re.compile(r"//[^/@\s]*@")


def one(name, check):
    start = time.perf_counter()
    error = None
    try:
        check()
    except Exception as exc:  # whatever a driver raises is the finding
        lines = str(exc).strip().splitlines()
        text = CREDENTIALS.sub("//…@", lines[0] if lines else "")[:200]
        error = f"{type(exc).__name__}: {text}"
        logger.warning("health check %s failed: %s", name, error)
    result = {
        "status": "unhealthy" if error else "healthy",
        "latency_ms": round((time.perf_counter() - start) * 1000, 1),
    }
    if error:
        result["error"] = error
    return result


def run(checks, skip=()):
    """The result of each check by name, in the order of `checks`."""
    wanted = {name: check for name, check in checks.items() if name not in skip}
    beside = {name: check for name, check in wanted.items() if name in BESIDE}
    if not beside:
        return {name: one(name, check) for name, check in wanted.items()}
    with ThreadPoolExecutor(max_workers=len(beside)) as pool:
        futures = {name: pool.submit(one, name, check) for name, check in beside.items()}
        results = {name: one(name, check) for name, check in wanted.items() if name not in beside}
        results.update({name: future.result() for name, future in futures.items()})
    return {name: results[name] for name in wanted}
