"""The kinds of checks: each runs a probe and evaluates its result.

A check is a function (options, context) -> Outcome. Thresholds are exceeded, not reached: 80 warns above 80.
"""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import json
import os
import re
import time
import urllib.parse
from typing import NamedTuple, Optional

from ..host import database_cluster, envfile, probe, redundancy, safe_files, symptoms
from ..host.printable import printable
from ..host.probe import ProbeError
from ..release.layout import Layout

STATUSES = ("healthy", "warning", "critical", "unhealthy", "down", "error")
HEALTHY, WARNING, CRITICAL, UNHEALTHY, DOWN, ERROR = STATUSES
# From good to bad. A check that could not be made is worse than a warning: nothing is known.
SEVERITY = (HEALTHY, WARNING, ERROR, UNHEALTHY, CRITICAL, DOWN)


class Message(NamedTuple):
    """A key of text.CATALOG and its values."""

    key: str
    values: dict


class Outcome(NamedTuple):
    status: str
    detail: tuple = ()  # of Message
    reason: str = ""  # chooses the hint
    data: dict = {}  # noqa: RUF012 - never written to
    error: str = ""
    hint_values: dict = {}  # noqa: RUF012 - never written to


def message(key: str, **values) -> tuple:
    return (Message(key, values),)


class Context:
    """What all checks of one run share."""

    def __init__(
        self,
        environment_file: Optional[str] = None,
        environment_keys: Optional[dict] = None,
        app_root: str = "/var/www/shiftmaster",
        user: str = "shiftmaster",
        proc: str = "/proc",
    ):
        self.environment_file, self.user, self.proc = environment_file, user, proc
        self.keys = dict(ENVIRONMENT_KEYS, **(environment_keys or {}))
        self.layout = Layout(app_root)

    def environment(self) -> dict:
        """Return the release's environment; read for each check, since it is small and a deploy may move it."""
        if not self.environment_file:
            raise ProbeError(ERROR, "environment", "no environment file is given")
        try:
            return envfile.parse(safe_files.read_bytes(self.environment_file).decode("utf-8"))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise ProbeError(ERROR, "environment", "%s cannot be read: %s" % (self.environment_file, why))

    def slot(self) -> Optional[str]:
        return self.layout.active_slot()

    def fill(self, text: str) -> str:
        """Put the live slot, the application's directory and the host's address into a text of the options."""
        if "{slot}" in text:
            slot = self.slot()
            if slot is None:
                raise ProbeError(DOWN, "live", "no release is live, so there is no slot")
            text = text.replace("{slot}", slot)
        text = text.replace("{node}", os.uname().nodename)
        if "{address}" in text:
            text = text.replace("{address}", probe.own_address())
        return text.replace("{app_root}", self.layout.root)


ENVIRONMENT_KEYS = {
    "database_url": "DATABASE_URL",
    "database_name": "DB_NAME",
    "database_user": "DB_USER",
    "database_password": "DB_PASSWORD",
    "database_host": "DB_HOST",
    "database_port": "DB_PORT",
    "database_sslmode": "DB_SSLMODE",
    "database_sslrootcert": "PGSSLROOTCERT",
    "health_token": "SHIFTMASTER_HEALTH_TOKEN",
}


def above(value: Optional[float], warning: Optional[float], critical: Optional[float]) -> str:
    """Evaluate a value of which more is worse."""
    return HEALTHY if value is None else below(-value, *(limit and -limit for limit in (warning, critical)))


def below(value: float, warning: Optional[float], critical: Optional[float]) -> str:
    """Evaluate a value of which less is worse."""
    if critical is not None and value < critical:
        return CRITICAL
    if warning is not None and value < warning:
        return WARNING
    return HEALTHY


def worst(statuses) -> str:
    return max(statuses, key=SEVERITY.index, default=HEALTHY)


def size(count: float) -> str:
    """Return bytes in a person's unit."""
    count = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return "%.4g %s" % (count, unit)
        count /= 1024.0
    return "%.4g TiB" % count


# --- HTTP ------------------------------------------------------------------------------------------------------------


def _get(options: dict, url: str, path: str, headers: dict) -> tuple:
    """Return (HttpResult, its data, DOWN or UNHEALTHY where there is no response, which it means then)."""
    verify, ca_file = options.get("validate_certs", True), options.get("ca_file")
    result = probe.http_get(url, path, options.get("host_header"), options["timeout_seconds"], headers, verify, ca_file)
    data = {"latency_ms": None if result.error else round(result.seconds * 1000, 1), "http_status": result.status}
    return result, data, UNHEALTHY if result.reason in ("tls", "certificate", "protocol") else DOWN


def check_http(options: dict, context: Context) -> Outcome:
    url = context.fill(options["url"])
    result, data, state = _get(options, url, options.get("path") or "/", options.get("headers"))
    expected, milliseconds = options.get("expected_status") or [200], data["latency_ms"]
    if result.error:
        reason = "tls" if result.reason == "certificate" else result.reason
        return Outcome(state, (), reason, data, result.error, hint_values=_where(url))
    if result.status not in expected:
        return Outcome(UNHEALTHY, (), "status", data, "HTTP %d" % result.status)
    wanted = options.get("body_contains")
    if wanted and wanted not in result.body:
        return Outcome(UNHEALTHY, message("http.body", status=result.status, text=wanted), "status", data)
    for limit, status in ((options.get("critical"), CRITICAL), (options.get("warning"), WARNING)):
        if limit is not None and milliseconds > limit:
            return Outcome(status, message("http.slow", milliseconds=milliseconds, limit=limit), "slow", data)
    return Outcome(HEALTHY, message("http", status=result.status), data=data)


def check_pages(options: dict, context: Context) -> Outcome:
    """Pages as users get them, and the requests of the last minutes: components may be fine, and users served badly."""
    maintenance = check_maintenance(options, context)
    if maintenance.status != HEALTHY:
        return maintenance
    deadline = time.monotonic() + options["timeout_seconds"]
    for page in options.get("pages") or ["/"]:
        url, left = context.fill(options["url"]), max(0.1, deadline - time.monotonic())
        result = symptoms.get_page(url, page, options.get("host_header"), left, options.get("validate_certs", True))
        if result.status is None:
            why = "%s: %s" % (page, result.error)
            return Outcome(DOWN, (), result.reason, error=why, hint_values=_where(options["url"]))
        if result.status >= 500:
            data = {"http_status": result.status}
            return Outcome(UNHEALTHY, (), "status", data, "%s: HTTP %d" % (page, result.status))
        if options.get("access_log") and symptoms.SITE_HEADER not in result.headers:
            detail = message("pages.other", page=printable(page), status=result.status)
            return Outcome(UNHEALTHY, detail, "status", {"http_status": result.status})
    logged, since = symptoms.logged(options["access_log"]) if options.get("access_log") else [], time.time() - 300
    requests = [one for one in logged if one.at >= since]
    failed, failing = sum(one.failed for one in requests), symptoms.failing(requests)
    data = {"requests": len(requests), "errors": failed}
    if failing and len(requests) >= symptoms.REQUESTS_MIN and failed / len(requests) > symptoms.FAILING_SHARE:
        pages = ", ".join(one["page"] for one in failing[:3])
        detail = message("pages.failing", errors=failed, requests=len(requests), pages=printable(pages))
        return Outcome(UNHEALTHY, detail, "failing", data)
    refused = symptoms.refused(requests, [one for one in logged if one.at < since])
    if refused:
        pages = ", ".join("%s (HTTP %d)" % (one["page"], one["status"]) for one in refused[:3])
        return Outcome(WARNING, message("pages.refused", pages=printable(pages)), "failing", data)
    return Outcome(HEALTHY, message("pages", errors=failed, requests=len(requests)), data=data)


def _where(url: str) -> dict:
    host, port, path, _tls, _path = probe.split_target(url)
    return {"where": path or "%s:%s" % (host, port), "server_name": host or "localhost"}


def check_deep_health(options: dict, context: Context) -> Outcome:
    return _deep(options, context, options.get("parts") or [])


def check_migrations(options: dict, context: Context) -> Outcome:
    return _deep(options, context, ["migrations"])


def _deep(options: dict, context: Context, parts: list) -> Outcome:
    """Query the application itself; the status of its parts is its own."""
    url = context.fill(options.get("url") or "unix:{app_root}/active/socket")
    path = options.get("path") or "/health/deep/"
    headers = dict(options.get("headers") or {})
    token = _token(context)
    if token:
        headers["X-Health-Token"] = token
    queried = path + ("?checks=" + ",".join(parts) if parts and "?" not in path else "")
    result, data, state = _get(options, url, queried, headers)
    hint = {"socket": url.replace("unix:", ""), "path": queried, "release": context.layout.active + "/release"}
    if result.error:
        return Outcome(state, (), "http", data, result.error, hint_values=hint)
    if result.status not in (200, 503):
        return Outcome(UNHEALTHY, message("deep.absent", status=result.status), "absent", data, hint_values=hint)
    try:
        response = json.loads(result.body)
        checks = response.get("checks")
    except (ValueError, AttributeError, RecursionError):
        return Outcome(UNHEALTHY, message("deep.not_json", status=result.status), "absent", data, hint_values=hint)
    if not isinstance(checks, dict):
        return Outcome(ERROR, message("deep.closed"), "closed", data, hint_values=hint)
    missing = [part for part in parts if part not in checks]
    if missing:
        return Outcome(ERROR, message("deep.part_absent", parts=", ".join(missing)), "absent", data, hint_values=hint)
    found = {part: _plain(check) for part, check in sorted(checks.items()) if not parts or part in parts}
    response = _plain(response)
    data.update(version=response.get("version"), release=response.get("release"), parts=found)
    broken = {part: check for part, check in found.items() if check.get("status") not in (HEALTHY, "skipped")}
    if broken:
        # Migrations that cannot be read are not migrations that wait.
        pending = all("pending" in check or "pending" in str(check.get("error")) for check in broken.values())
        why = "; ".join("%s: %s" % (part, one.get("error") or one.get("status")) for part, one in broken.items())
        return Outcome(UNHEALTHY, (), "parts" if pending else "http", data, why, hint_values=hint)
    shown = ", ".join("%s %s" % (part, check.get("status")) for part, check in found.items())
    return Outcome(HEALTHY, message("deep", version=response.get("version") or "?", parts=shown), data=data)


def _plain(response) -> dict:
    """Return a response of the application without structures: deeply nested ones would end the complete report."""
    return {
        name: value
        if value is None or isinstance(value, (str, int, float))
        else ", ".join(one for one in value if isinstance(one, str))
        for name, value in (response.items() if isinstance(response, dict) else ())
    }


def _token(context: Context) -> Optional[str]:
    """Return the token for the details, where the environment has one; the private socket needs none."""
    try:
        return context.environment().get(context.keys["health_token"]) or None
    except ProbeError:
        return None


def check_tcp(options: dict, context: Context) -> Outcome:
    metrics = probe.tcp_connect(
        options.get("host") or "localhost", options.get("port"), options.get("socket"), options["timeout_seconds"]
    )
    return Outcome(HEALTHY, message("tcp"), data=metrics)


# --- database and Redis ----------------------------------------------------------------------------------------------


def postgres_target(options: dict, context: Context) -> probe.PostgresTarget:
    """Take the options that are given, and of the release's environment what is not."""
    found = {}
    if context.environment_file and not options.get("run_as"):
        environment, keys = context.environment(), context.keys
        url = environment.get(keys["database_url"])
        if url:
            try:
                found = probe.parse_postgres_url(url)._asdict()
            except ValueError as error:
                raise ProbeError(ERROR, "address", str(error))
        else:
            for field in ("host", "port", "database", "user", "password", "sslmode", "sslrootcert"):
                value = environment.get(keys["database_" + ("name" if field == "database" else field)])
                found.update({field: value} if value else {})
    for field in ("host", "port", "database", "user", "sslmode", "run_as"):
        if options.get(field) is not None:
            found[field] = str(options[field])
    target = probe.PostgresTarget(**found)
    try:
        probe.postgres_addresses(target)
    except ValueError:
        raise ProbeError(ERROR, "address", "the database's port is not a number")
    return target


def check_postgres(options: dict, context: Context) -> Outcome:
    metrics = probe.postgres_ping(postgres_target(options, context), options["timeout_seconds"])
    status = above(metrics["connections_percent"], options.get("warning"), options.get("critical"))
    if metrics["waiting"]:
        # Pages that need the locked rows or tables hang, whatever else responds.
        return Outcome(CRITICAL, message("postgres.locked", waiting=metrics["waiting"]), "locked", metrics)
    values = {"version": metrics["version"], "connections": metrics["connections"]}
    values["percent"] = metrics["connections_percent"]
    detail = message("postgres.standby" if metrics["recovery"] else "postgres", **values)
    return Outcome(status, detail, "connections", metrics)


def check_redis(options: dict, context: Context) -> Outcome:
    key = options.get("environment_key")
    if key:
        url = context.environment().get(key)
        if not url:
            raise ProbeError(ERROR, "address", "%s has no %s" % (context.environment_file, key))
        try:
            target = probe.parse_redis_url(url)
        except ValueError as error:
            raise ProbeError(ERROR, "address", "%s: %s" % (key, error))
    else:
        target = probe.RedisTarget(
            options.get("host") or "localhost",
            options.get("port") or 6379,
            options.get("socket"),
            tls=bool(options.get("tls")),
            verify=options.get("validate_certs", True),
            ca_file=options.get("ca_file"),
        )
    try:
        metrics = probe.redis_ping(target, options["timeout_seconds"])
    except ProbeError as error:
        if error.reason == "noauth" and options.get("allow_noauth"):
            return Outcome(HEALTHY, message("redis.noauth"))
        raise
    detail = message("redis.plain")
    if "version" in metrics:
        detail = message("redis", version=metrics["version"], role=metrics.get("role", "?"))
    for what, status, reason in (("persistence", CRITICAL, "disk"), ("replication", WARNING, "replication")):
        error = metrics.get(what + "_error")
        if error is not None:
            return Outcome(status, detail + message("redis." + what, fields=error), reason, metrics)
    if metrics.get("write_error"):
        return Outcome(CRITICAL, detail + message("redis.write", error=metrics["write_error"]), "write", metrics)
    # A cache that evicts is full by design.
    percent = None if metrics.get("evicts") else metrics.get("used_memory_percent")
    status = above(percent, options.get("warning"), options.get("critical"))
    if status != HEALTHY:
        return Outcome(status, detail + message("redis.memory", percent=percent), "memory", metrics)
    return Outcome(HEALTHY, detail, data=metrics)


# --- a database cluster ----------------------------------------------------------------------------------------------


def check_database_cluster(options: dict, context: Context) -> Outcome:
    """Whether the cluster has one primary and a standby that takes over, and whether this member is one of them."""
    found = database_cluster.state(options.get("ca_file"), options["timeout_seconds"])
    values = {"primary": found["primary"], "role": found["role"] or "?", "state": found["state"] or "?"}
    if not found["etcd"]:
        return Outcome(CRITICAL, message("cluster.etcd", seconds=int(found["etcd_seconds"])), "etcd", found)
    if not found["primary"]:
        return Outcome(CRITICAL, message("cluster.primary"), "primary", found)
    if not found["synchronous"]:
        return Outcome(CRITICAL, message("cluster.synchronous", **values), "synchronous", found)
    if found["state"] != "running":
        return Outcome(CRITICAL, message("cluster.member", **values), "member", found)
    if found["paused"]:
        return Outcome(WARNING, message("cluster.paused", **values), "paused", found)
    # Patroni calls a standby that does not follow running, too; the standby leader of another cluster is none of ours.
    missing = [
        one["name"]
        for one in found["members"]
        if one["state"] != ("running" if one.get("role") == "leader" else "streaming")
    ]
    if missing:
        return Outcome(WARNING, message("cluster.missing", names=", ".join(missing)), "member", found)
    return Outcome(HEALTHY, message("cluster", names=", ".join(found["synchronous"]), **values), data=found)


# --- services of several hosts ---------------------------------------------------------------------------------------


def check_sentinel(options: dict, context: Context) -> Outcome:
    """Whether the Sentinels can replace the primary of Redis, and whether there is one that accepts writes."""
    ca_file = options.get("ca_file")
    found = redundancy.sentinel(options.get("port") or 26379, ca_file, options["set"], options["timeout_seconds"])
    if options.get("redis_port"):
        with_member = redundancy.member(options["redis_port"], ca_file, seconds=options["timeout_seconds"])
        found.update(with_member)
        if with_member["role"] == "primary" and not with_member["followers"]:
            return Outcome(CRITICAL, message("sentinel.alone"), "alone", found)
        if with_member["role"] == "replica" and with_member["link"] != "up":
            return Outcome(WARNING, message("sentinel.link", primary=found["primary"]), "link", found)
    if not found["majority"]:
        return Outcome(CRITICAL, message("sentinel.majority", why=found["message"]), "majority", found)
    return Outcome(HEALTHY, message("sentinel", primary=found["primary"], role=found.get("role", "?")), data=found)


def check_virtual_address(options: dict, context: Context) -> Outcome:
    """Whether exactly one host has the address that users reach."""
    found = redundancy.virtual_address(options["address"])
    values, others = {"address": found["address"]}, found["others"]
    if found["held"] and others:
        return Outcome(CRITICAL, message("address.twice", others=", ".join(others), **values), "twice", found)
    if found["held"]:
        return Outcome(HEALTHY, message("address.held", **values), data=found)
    if others is None:
        raise ProbeError(ERROR, "network", "no network of this host holds %s" % found["address"])
    if len(others) > 1:
        return Outcome(CRITICAL, message("address.twice", others=", ".join(others), **values), "twice", found)
    if not others:
        return Outcome(CRITICAL, message("address.none", **values), "none", found)
    return Outcome(HEALTHY, message("address.other", **values), data=found)


# --- Celery ----------------------------------------------------------------------------------------------------------


def check_celery(options: dict, context: Context) -> Outcome:
    from ..release.releasecode import ReleaseCode, ReleaseCodeError  # It needs pwd; the other kinds do without.

    release = context.fill(options.get("release_dir") or "{app_root}/active/release")
    application = options.get("application") or "shiftmaster"
    pattern = context.fill(options.get("worker_pattern") or "*")
    wanted = options.get("min_workers") or 1
    timeout = options["timeout_seconds"]
    if not os.path.isdir(release):
        raise ProbeError(DOWN, "live", "there is no release at %s" % release)
    started = time.monotonic()
    # The wait for responses is part of the total; the rest is for the application's import.
    wait = max(1.0, min(3.0, timeout / 5.0))
    # A worker that responds may still take tasks from no queue.
    argv = ["celery", "-A", application, "inspect", "active_queues", "--json", "--timeout", "%g" % wait]
    if not probe.is_pattern(pattern):
        argv += ["--destination", pattern]  # Then its response is enough; otherwise the complete wait passes.
    try:
        done = ReleaseCode(release, user=context.user).run(argv, timeout=timeout)
    except KeyError:
        raise ProbeError(ERROR, "missing", "there is no user %s" % context.user)
    except ReleaseCodeError as error:
        text = str(error)
        if "did not end" in text:
            raise ProbeError(DOWN, "timeout", "celery inspect did not end within %g s" % timeout)
        raise ProbeError(ERROR, "missing", text[:300])
    data = {"latency_ms": round((time.monotonic() - started) * 1000, 1)}
    responded = probe.parse_celery_queues(done.stdout)
    taken = {name: one for name, one in responded.items() if fnmatch.fnmatchcase(name, pattern)}
    names = sorted(taken)
    data["workers"] = names
    idle = sorted(set(options.get("queues") or ()) - {queue for queues in taken.values() for queue in queues})
    if names and (idle or not all(taken.values())):
        data["not_taken"] = idle
        without = message("celery.idle", queues=", ".join(idle) or "-", names=", ".join(names))
        return Outcome(UNHEALTHY, without, "idle", data)
    if len(names) >= wanted:
        return Outcome(HEALTHY, message("celery", count=len(names), names=", ".join(names)), data=data)
    if not names:
        return Outcome(DOWN, (), "workers", data, celery_failure(done.stderr + "\n" + done.stdout))
    few = message("celery.few", count=len(names), wanted=wanted, names=": " + ", ".join(names))
    return Outcome(UNHEALTHY, few, "workers", data)


def celery_failure(text: str) -> str:
    """Return the line with the error, without an address that may hold a password."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    begins = ("Error:", "kombu.", "redis.", "ModuleNotFoundError", "ImportError", "AttributeError", "Unable to load")
    relevant = [line for line in lines if line.startswith(begins)]
    line = (relevant or lines or ["no worker responded"])[-1]
    return re.sub(r"://[^@/\s]*@", "://***@", line)[:300]


# --- systemd ---------------------------------------------------------------------------------------------------------


UNIT_FACTS = {"name": "Id", "active": "ActiveState", "sub": "SubState", "result": "Result"}


def evaluate_unit(unit: dict) -> str:
    """Return what the state of a unit that should run means."""
    if unit.get("LoadState") not in ("loaded", None):
        return DOWN
    state = unit.get("ActiveState")
    # Of the active ones, a oneshot or an umbrella may be "exited" and well.
    if state in ("active", "reloading"):
        return HEALTHY
    if state == "activating":
        return UNHEALTHY if unit.get("SubState") == "auto-restart" else WARNING
    return DOWN


def stopped(proc: str, pid) -> bool:
    """Return whether a unit's main process does nothing, since a signal stopped it: its unit stays active."""
    if not pid or str(pid) == "0":
        return False
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(os.path.join(proc, str(pid), "stat"), encoding="utf-8", errors="replace") as stream:
            return stream.read(4096).rpartition(")")[2].split()[0] == "T"
    return False


def check_systemd(options: dict, context: Context) -> Outcome:
    names = [context.fill(name) for name in options.get("units") or []]
    plain = [name for name in names if not probe.is_pattern(name)]
    units = probe.unit_states(names, options["timeout_seconds"]) if names else []
    states, problems, reason = [], [], "state"
    for unit in units:
        # Of a pattern's units only those that failed are wrong: an idle slot is stopped on purpose.
        required = any(_same_unit(unit["Id"], name) for name in plain)
        status = evaluate_unit(unit) if required else (DOWN if unit.get("ActiveState") == "failed" else HEALTHY)
        if status == HEALTHY and stopped(context.proc, unit.get("MainPID")):
            status, unit["SubState"] = DOWN, "stopped by a signal"
        states.append(status)
        if status != HEALTHY:
            problems.append(unit["Id"])
            if unit.get("LoadState") == "not-found":
                reason = "absent"
    data = {"units": []}
    for unit, status in zip(units, states):
        if status != HEALTHY or any(_same_unit(unit["Id"], name) for name in plain):
            facts = {key: unit.get(name) for key, name in UNIT_FACTS.items()}
            data["units"].append(dict(facts, restarts=int(unit.get("NRestarts") or 0)))
    if problems:
        why = "; ".join("%s %s" % (unit["Id"], _unit_words(unit)) for unit in units if unit["Id"] in problems)
        hint = {"units": " ".join(problems), "first": problems[0]}
        return Outcome(worst(states), (), reason, data, why, hint_values=hint)
    return Outcome(
        HEALTHY, message("units", count=sum(unit.get("ActiveState") == "active" for unit in units)), data=data
    )


def _same_unit(identifier: str, name: str) -> bool:
    return identifier == name or identifier == name + ".service"


def _unit_words(unit: dict) -> str:
    if unit.get("LoadState") not in ("loaded", None):
        return unit.get("LoadState", "")
    result = unit.get("Result", "success")
    return "%s (%s%s)" % (unit.get("ActiveState"), unit.get("SubState"), "" if result == "success" else ", " + result)


# --- the host --------------------------------------------------------------------------------------------------------


def check_disk(options: dict, context: Context) -> Outcome:
    paths, exclude = options.get("paths") or (), options.get("exclude") or ()
    mounts = probe.disk_usage(context.proc, paths, exclude, options["timeout_seconds"])
    return evaluate_disks(mounts, options.get("warning"), options.get("critical"))


def evaluate_disks(mounts: list, warning: Optional[float], critical: Optional[float]) -> Outcome:
    """Evaluate space and inodes of all mounts; the worst one gives the hint."""
    findings = []  # (status, Message, reason, path)
    for mount in mounts:
        path = mount["path"]
        if "error" in mount:
            if mount["reason"] == "readonly":
                findings.append((CRITICAL, Message("disk.readonly", {"path": path}), "readonly", path))
            else:
                status = DOWN if mount["reason"] in ("timeout", "missing") else ERROR
                problem = Message("disk.problem", {"path": path, "error": mount["error"]})
                findings.append((status, problem, "problem", path))
            continue
        for what, free in (("space", size(mount["free_bytes"])), ("inodes", mount["free_inodes"])):
            percent = mount[what + "_percent"]
            status = above(percent, warning, critical)
            if status != HEALTHY:
                high = Message("disk.%s_high" % what, {"path": path, "percent": percent, "free": free})
                findings.append((status, high, what, path))
    data = {"mounts": mounts}
    queried = [mount for mount in mounts if "error" not in mount]
    fullest = max(queried, key=_fullness, default=None)
    if fullest is not None:
        data["usage_percent"] = _fullness(fullest)
    if findings:
        findings.sort(key=lambda finding: SEVERITY.index(finding[0]), reverse=True)
        status, _detail, reason, path = findings[0]
        return Outcome(status, tuple(finding[1] for finding in findings), reason, data, hint_values={"path": path})
    if fullest is None:
        raise ProbeError(ERROR, "missing", "no filesystem was found")
    values = {"path": fullest["path"], "percent": _fullness(fullest), "count": len(mounts)}
    if fullest["inodes_percent"] is not None and fullest["inodes_percent"] > fullest["space_percent"]:
        return Outcome(HEALTHY, message("disk.inodes", **values), data=data)
    return Outcome(HEALTHY, message("disk", free=size(fullest["free_bytes"]), **values), data=data)


def _fullness(mount: dict) -> float:
    return max(mount["space_percent"], mount["inodes_percent"] or 0.0)


def check_memory(options: dict, context: Context) -> Outcome:
    metrics = probe.memory_usage(context.proc)
    status = above(metrics["usage_percent"], options.get("warning"), options.get("critical"))
    detail = message("memory", available=size(metrics["available_bytes"]), total=size(metrics["total_bytes"]))
    return Outcome(status, detail, "use", metrics)


def check_certificate(options: dict, context: Context, now: Optional[datetime.datetime] = None) -> Outcome:
    """Evaluate the file, what the server shows, or both."""
    now = now or datetime.datetime.now(datetime.timezone.utc)
    path, url = options.get("file"), options.get("url")
    on_disk = probe.certificate_file(path) if path else []
    certificates, differs, hint, latency = list(on_disk), False, {}, None
    if url:
        parts = urllib.parse.urlsplit(url if "://" in url else "https://" + url)
        host, port = parts.hostname or "localhost", parts.port or 443
        name = options.get("server_name")
        hint = {"where": "%s:%d" % (host, port), "server_name": name or host}
        started = time.monotonic()
        verify, ca_file = bool(options.get("verify_chain")), options.get("ca_file")
        served = probe.certificate_served(host, port, name, options["timeout_seconds"], verify, ca_file)
        latency = round((time.monotonic() - started) * 1000, 1)
        differs = bool(on_disk) and served.fingerprint != on_disk[0].fingerprint
        certificates.append(served)
    # Of a chain the part that ends first counts.
    first = min(certificates, key=lambda certificate: certificate.not_after)
    days = (first.not_after - now).total_seconds() / 86400.0
    date = first.not_after.strftime("%Y-%m-%d")
    until = first.not_after.strftime("%Y-%m-%dT%H:%M:%SZ")
    data = {"days_left": round(days, 1), "not_after": until, "served_differs": differs}
    if latency is not None:
        data["latency_ms"] = latency
    late = max(certificate.not_before for certificate in certificates)
    if days < 0:
        status, detail = CRITICAL, message("certificate.expired", date=date, days=int(-days))
    elif late > now:
        status, detail = CRITICAL, message("certificate.early", date=late.astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    else:
        status = below(days, options.get("warning"), options.get("critical"))
        detail = message("certificate", date=date, days=int(days))
    reason = "expiry"
    if url and name and not probe.certified(served, name):
        names = printable(", ".join(served.names[:3]))
        status, detail, reason = CRITICAL, message("certificate.name", name=printable(name), names=names), "certificate"
    if differs:
        detail += message("certificate.differs", file=path)
        status = worst((status, WARNING))
        if first is certificates[-1]:
            reason = "differs"  # The new one is there already, and only needs to be read.
    return Outcome(status, detail, reason, data, hint_values=hint)


def check_clock(options: dict, context: Context) -> Outcome:
    return evaluate_clock(
        probe.clock_state(options["timeout_seconds"]), options.get("warning"), options.get("critical")
    )


def evaluate_clock(state: dict, warning: Optional[float], critical: Optional[float]) -> Outcome:
    offset = state["offset_seconds"]
    if state["synchronised"]:
        status = above(offset, warning, critical)
        if offset is None:
            return Outcome(status, message("clock", source=state["source"]), data=state)
        detail = message("clock.offset", source=state["source"], milliseconds=offset * 1000)
        return Outcome(status, detail, "offset", state)
    if state["synchronised"] is None:
        # Not a failure: a container cannot set its clock, and has its machine's.
        if state["container"]:
            return Outcome(HEALTHY, message("clock.container"), data=state)
        return Outcome(ERROR, message("clock.unknown"), "unknown", state)
    return Outcome(WARNING, message("clock.not", source=state["source"]), "not", state)


# --- the release -----------------------------------------------------------------------------------------------------


def check_release(options: dict, context: Context) -> Outcome:
    from ..release.state import State, StateError

    layout = context.layout
    slot, release = layout.active_slot(), layout.current()
    if slot is None or release is None:
        return Outcome(DOWN, message("release.none"), "none")
    data = {"release": release, "slot": slot}
    if not os.path.isdir(os.path.join(layout.releases, release)):
        return Outcome(CRITICAL, message("release.gone", slot=slot, release=release), "gone", data)
    try:
        state = State(layout)
    except (StateError, OSError) as error:
        raise ProbeError(ERROR, "state", str(error))
    data["status"] = state.status(release)
    if data["status"] == "bad":
        why = message("release.bad", release=release, reason=state.releases[release].get("reason") or "?")
        return Outcome(CRITICAL, why, "bad", data)
    if state.transition:
        step = state.transition
        data["transition"] = {key: step.get(key) for key in ("kind", "from", "to", "phase", "since")}
        what = message("release.transition", **{key: step.get(key, "?") for key in ("kind", "to", "phase", "since")})
        return Outcome(WARNING, what, "transition", data)
    shown = check_maintenance(options, context)
    if shown.status != HEALTHY:
        return shown._replace(data=dict(data, maintenance=True))
    return Outcome(HEALTHY, message("release", release=release, slot=slot), data=data)


def check_maintenance(options: dict, context: Context) -> Outcome:
    """The switch of the maintenance page, which may be on a web host without a release."""
    switch = os.path.join(context.layout.shared, "maintenance", "on")
    if not os.path.exists(switch):
        return Outcome(HEALTHY, message("maintenance"))
    since = datetime.datetime.fromtimestamp(os.path.getmtime(switch)).astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return Outcome(WARNING, message("release.maintenance", since=since), "maintenance", {"maintenance": True})


class Kind(NamedTuple):
    function: object
    timeout_seconds: float
    warning: Optional[float] = None
    critical: Optional[float] = None
    unit: str = ""  # for hints
    log: str = ""


# The server's own log, and, where the application writes JSON, its own lines.
_APP_LOG = "/var/log/shiftmaster/*.log"
KINDS = {
    "http": Kind(check_http, 10, None, None, "shiftmaster", _APP_LOG),
    "pages": Kind(check_pages, 10, None, None, "shiftmaster", _APP_LOG),
    "deep_health": Kind(check_deep_health, 10, None, None, "shiftmaster", _APP_LOG),
    "migrations": Kind(check_migrations, 10, None, None, "shiftmaster", _APP_LOG),
    "tcp": Kind(check_tcp, 10),
    "postgres": Kind(check_postgres, 10, 80, 90, "postgresql", "/var/log/postgresql/*.log"),
    "database_cluster": Kind(check_database_cluster, 10, None, None, "patroni@17-main"),
    "redis": Kind(check_redis, 10, 80, 90, "redis-server", "/var/log/redis/redis-server.log"),
    "sentinel": Kind(check_sentinel, 10, None, None, "redis-sentinel", "/var/log/redis/redis-sentinel.log"),
    "virtual_address": Kind(check_virtual_address, 10, None, None, "keepalived"),
    "celery": Kind(check_celery, 30, None, None, "'shiftmaster-worker@*'", _APP_LOG),
    "systemd": Kind(check_systemd, 10),
    "disk": Kind(check_disk, 10, 80, 90),
    "memory": Kind(check_memory, 10, 80, 90),
    "certificate": Kind(check_certificate, 10, 30, 7, "nginx", "/var/log/nginx/error.log"),
    "clock": Kind(check_clock, 10, 0.1, 1),
    "release": Kind(check_release, 10),
    "maintenance": Kind(check_maintenance, 10),
}
