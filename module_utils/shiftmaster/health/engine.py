"""Run checks at the same time, each within its own limit, and put the results into words.

How long a check may take: timeout_seconds an attempt, (retries + 1) * consecutive_successes attempts at most, with
delay_seconds between them. The total time is that of the slowest check; a check that hangs is given up.
"""

from __future__ import annotations

import datetime
import re
import threading
import time
from collections import defaultdict

from ..host import probe
from ..host.printable import printable_tree
from ..host.texts import LANGUAGES, pick
from . import text
from .checks import DOWN, ERROR, HEALTHY, KINDS, SEVERITY, WARNING, Context, Outcome, message, worst

ICONS = {"healthy": "✅", "warning": "⚠️", "critical": "❌", "unhealthy": "❌", "down": "❌"}
UNKNOWN_ICON = "❓"
# A probe's own message ("connection refused by ...") is more precise than ours, so it gets more than its limit.
_GRACE_SECONDS = 0.3


def complete(options: dict) -> dict:
    """Return the options of a check with its kind's defaults; keys that are None count as absent."""
    kind = KINDS[options["kind"]]._asdict()
    del kind["function"]
    kind.update(log_file=kind.pop("log"), retries=0, delay_seconds=1.0, consecutive_successes=1)
    return {**kind, **{name: value for name, value in options.items() if value is not None}}


def budget(options: dict) -> float:
    """Return the most seconds that a (completed) check may take."""
    attempts = (options["retries"] + 1) * options["consecutive_successes"]
    return attempts * (options["timeout_seconds"] + _GRACE_SECONDS) + (attempts - 1) * options["delay_seconds"]


def attempt(options: dict, context: Context) -> Outcome:
    """Try once; whatever happens becomes an Outcome."""
    started = time.monotonic()
    check, limit = KINDS[options["kind"]].function, options["timeout_seconds"] + _GRACE_SECONDS
    try:
        outcome = probe.in_thread(lambda: check(options, context), limit, options["name"])
    except probe.ProbeError as error:
        if error.reason == "timeout" and str(error).startswith(options["name"] + " did not respond"):
            outcome = Outcome(DOWN, message("timeout", seconds=options["timeout_seconds"]), "timeout")
        else:
            outcome = Outcome(error.state, (), error.reason, error=str(error))
    except Exception as error:  # noqa: BLE001 - one check's fault must not hide the others.
        outcome = Outcome(ERROR, message("crash", error="%s: %s" % (type(error).__name__, error)), "crash")
    return outcome._replace(data=dict(outcome.data, seconds=round(time.monotonic() - started, 3)))


def run_check(options: dict, context: Context) -> tuple:
    """Return (Outcome, attempts): the last attempt, after as many as the options require."""
    failures = successes = attempts = 0
    while True:
        outcome = attempt(options, context)
        attempts += 1
        if outcome.status in (HEALTHY, WARNING):
            successes += 1
            if successes >= options["consecutive_successes"]:
                return outcome, attempts
        else:
            successes = 0
            failures += 1
            if failures > options["retries"]:
                return outcome, attempts
        time.sleep(options["delay_seconds"])


def run_checks(checks, context: Context) -> list:
    """Run all checks at once; return (options, Outcome, attempts) of each in their order."""
    completed = [complete(options) for options in checks]
    responses = [None] * len(completed)

    def work(position):
        responses[position] = run_check(completed[position], context)

    threads = [threading.Thread(target=work, args=(position,), daemon=True) for position in range(len(completed))]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread, options in zip(threads, completed):
        thread.join(max(0.0, started + budget(options) + 0.3 - time.monotonic()))
    late = Outcome(DOWN, (), "timeout")
    result = []
    for options, response in zip(completed, responses):
        outcome, attempts = response or (late._replace(detail=message("timeout", seconds=budget(options))), 1)
        result.append((options, outcome, attempts))
    probe.kill_children()
    return result


class _Blank(defaultdict):
    """Values of a hint; what is not known stays a word in capitals rather than breaking the report."""

    def __missing__(self, key):
        return key.upper()


def describe(options: dict, outcome: Outcome, attempts: int, language: str, context: Context) -> dict:
    """Return the result of one check as the module returns it."""
    result = {
        "name": options["name"],
        "kind": options["kind"],
        "status": outcome.status,
        "icon": ICONS.get(outcome.status, UNKNOWN_ICON),
        "latency_ms": outcome.data.get("latency_ms"),
        "seconds": outcome.data.get("seconds", budget(options)),
        "attempts": attempts,
        "detail": "; ".join(text.say(language, entry.key, **entry.values) for entry in outcome.detail),
        "error": outcome.error,
        "hint": "",
        "data": {key: value for key, value in outcome.data.items() if key not in ("latency_ms", "seconds")},
    }
    if "usage_percent" in outcome.data:
        result["usage_percent"] = outcome.data["usage_percent"]
    if outcome.status != HEALTHY:
        result["hint"] = options.get("hint") or _hint(options, outcome, language, context)
    return result


def _hint(options: dict, outcome: Outcome, language: str, context: Context) -> str:
    values = _Blank(
        None,
        unit=options["unit"] or options["name"],
        log=options["log_file"] or "/var/log/syslog",
        environment=context.environment_file or "the environment file",
        units=options["name"],
        first=options["name"],
        where=options.get("url") or "",
        server_name=options.get("server_name") or "",
        path="/",
        release=context.layout.active + "/release",
        socket=context.layout.active + "/socket",
    )
    values.update(outcome.hint_values)
    key = text.hint_key(options["kind"], outcome.reason)
    return pick(language, text.CATALOG[key]).format_map(values)


def make_report(results: list, host: str, generated: datetime.datetime) -> dict:
    """Return the report of one host as data."""
    return {
        "host": host,
        "generated": generated.astimezone().isoformat(timespec="seconds"),
        "healthy": sum(result["status"] == HEALTHY for result in results),
        "total": len(results),
        "worst": worst(result["status"] for result in results),
        "checks": results,
    }


def report_lines(report: dict, language: str, title: bool = True) -> list:
    """Return the report of one host in the form of the operations guide."""
    say = text.say
    lines = []
    if title:
        generated = datetime.datetime.fromisoformat(report["generated"])
        lines += [say(language, "title"), say(language, "generated", time=generated.strftime("%Y-%m-%d %H:%M:%S %Z"))]
    lines += [say(language, "host", host=report["host"]), ""]
    if "problem" in report:
        reached = not report["unreachable"] and not re.search(text.CONTAINER, report["problem"])
        lines.append("❌ " + say(language, "unchecked" if reached else "unreachable"))
        if report["problem"]:
            lines.append("   " + say(language, "error", text=" ".join(report["problem"].split())[:500]))
        hint = "hint.crash" if reached else "unreachable_hint"
        if re.search(text.SUDO, report["problem"]):
            hint = "hint.sudo"
        elif re.search(text.PYTHON, report["problem"]):
            hint = "hint.python"
        lines.append("   " + say(language, "hint", text=say(language, hint, name=report["host"])))
        return lines
    if not report["checks"]:
        return lines + [say(language, "no_checks")]
    for check in report["checks"]:
        lines.append("%s %s: %s" % (check["icon"], check["name"].upper(), say(language, "status." + check["status"])))
        if check["error"]:
            lines.append("   " + say(language, "error", text=check["error"]))
        if check["detail"]:
            lines.append("   " + say(language, "detail", text=check["detail"]))
        if "usage_percent" in check:
            lines.append("   " + say(language, "usage", percent=check["usage_percent"]))
        if check["latency_ms"] is not None:
            lines.append("   " + say(language, "response_time", seconds=check["latency_ms"] / 1000.0))
        if check["hint"]:
            lines.append("   " + say(language, "hint", text=check["hint"]))
    lines += ["", say(language, "overall", healthy=report["healthy"], total=report["total"])]
    return lines


def report_of(host: str, result: dict) -> dict:
    """Return the report in a host's registered result, or one that shows why there is none."""
    # A host that somebody has taken over speaks for itself alone, and nothing that a terminal obeys.
    result = printable_tree(result)
    problem = str(result.get("msg") or "")
    if isinstance(result.get("report"), dict):
        try:
            # Nor does it add lines, which could be another host's.
            checks = [
                {key: " ".join(value.split()) if isinstance(value, str) else value for key, value in check.items()}
                for check in result["report"]["checks"]
            ]
            report = dict(result["report"], host=host, checks=checks)
            now = datetime.datetime.now(datetime.timezone.utc)
            report.update(make_report(report["checks"], host, now), generated=report["generated"])
            for language in LANGUAGES:
                merged_lines(merge_reports([report], now), language)
                unwell([report], "warning", language)
            return report
        except Exception as error:  # noqa: BLE001 - in whatever form it is, it must not keep the others from being shown
            problem = "its report is not valid (%s: %s)" % (type(error).__name__, error)
    counts = {"healthy": 0, "total": 0, "worst": DOWN, "checks": []}
    return {"host": host, "unreachable": bool(result.get("unreachable")), "problem": problem, **counts}


def merge_reports(reports: list, generated: datetime.datetime) -> dict:
    """Return one report of several hosts."""
    return {
        "generated": generated.astimezone().isoformat(timespec="seconds"),
        "healthy": sum(report["healthy"] for report in reports),
        "total": sum(report["total"] for report in reports),
        "worst": worst([report["worst"] for report in reports]),
        "unreachable": sorted(report["host"] for report in reports if report.get("unreachable")),
        "hosts": reports,
    }


def merged_lines(merged: dict, language: str, zone=None) -> list:
    """Return the report of several hosts: each in turn, then the total. Without a zone, times are this machine's."""
    say = text.say
    generated = datetime.datetime.fromisoformat(merged["generated"]).astimezone(zone)
    lines = [say(language, "title"), say(language, "generated", time=generated.strftime("%Y-%m-%d %H:%M:%S %Z")), ""]
    for report in merged["hosts"]:
        lines += report_lines(report, language, title=False) + [""]
    if len(merged["hosts"]) == 1:
        return lines[:-1]
    good = sum(report["worst"] == HEALTHY for report in merged["hosts"])
    lines.append(
        say(language, "overall_hosts", healthy=good, total=len(merged["hosts"]), unreachable=len(merged["unreachable"]))
    )
    lines.append(say(language, "overall", healthy=merged["healthy"], total=merged["total"]))
    return lines


def failing(results: list, fail_on: str) -> list:
    """Return the results that make a run fail: fail_on is critical (also unhealthy, down, error), warning or never."""
    if fail_on == "never":
        return []
    limit = SEVERITY.index(WARNING if fail_on == "warning" else ERROR)
    return [result for result in results if SEVERITY.index(result["status"]) >= limit]


def unwell(reports: list, fail_on: str, language: str) -> dict:
    """Return what people are notified of, by host and check: {"app1: web": "❌ app1: WEB: Down, no response"}."""
    say, found = text.say, {}
    for report in reports:
        if "problem" in report:
            name = "unreachable" if report["unreachable"] else "unchecked"
            found["%s: %s" % (report["host"], name)] = "❌ %s: %s" % (report["host"], say(language, name))
        for check in failing(report["checks"], fail_on):
            status = say(language, "status." + check["status"])
            line = "%s %s: %s: %s" % (check["icon"], report["host"], check["name"].upper(), status)
            why = check["detail"] or check["error"]
            found["%s: %s" % (report["host"], check["name"])] = "%s, %s" % (line, why) if why else line
    return found


def notification(unwell_now: dict, notified: dict, now: datetime.datetime, again_seconds: float) -> dict:
    """Return whether people are notified, and of what: {"status": failed|succeeded|"", "notified": {...}}.

    They are when something becomes unhealthy, when more does, again after again_seconds while it lasts, and once when
    all is healthy. `notified` is the previous result of this function, {} at first: {"unwell": [names], "at": seconds}.
    """
    before, seconds = set(notified.get("unwell") or []), now.timestamp()
    if not unwell_now:
        return {"status": "succeeded" if before else "", "notified": {}}
    if seconds - float(notified.get("at") or 0) >= again_seconds:
        # What has been fixed since the last time is news again when it comes back.
        return {"status": "failed", "notified": {"unwell": sorted(unwell_now), "at": int(seconds)}}
    if set(unwell_now) - before:
        return {"status": "failed", "notified": {"unwell": sorted(before | set(unwell_now)), "at": int(seconds)}}
    return {"status": "", "notified": notified}


def result_of(report: dict, lines: list, failing: list) -> dict:
    """Return the result of a task that makes a report."""
    return {
        "changed": False,
        "worst": report["worst"],
        "failing": failing,
        "report": report,
        "report_lines": lines,
        "report_text": "\n".join(lines),
    }
