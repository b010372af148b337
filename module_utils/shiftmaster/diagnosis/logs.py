"""Read the ends of logs: errors, their number, the last time; and the responses of the web server."""

from __future__ import annotations

import calendar
import collections
import datetime
import glob
import gzip
import os
import re
import time
import zlib
from typing import Optional

from ..host import probe, safe_files, symptoms
from ..host.percentile import percentile
from ..logging.ecs import as_lines
from ..release.layout import Layout
from ..release.state import last_switch
from .engine import Absent
from .redact import redact_sql

_TAIL = 256 * 1024
# How much of a log is read where it was rotated since, and how much of a packed file.
_MOST = 1 << 20
_MOST_UNPACKED = 8 << 20


def tail(path: str, limit: int = _TAIL) -> str:
    """Return the last bytes of a file, from the beginning of a line."""
    content = safe_files.read_tail(path, limit + 1)
    if len(content) > limit:
        content = content.partition(b"\n")[2]
    return content.decode("utf-8", "replace")


def unpacked(path: str, limit: int) -> bytes:
    """Return the first bytes of a file that gzip has packed."""
    try:
        with os.fdopen(safe_files.open_file(path), "rb") as packed, gzip.GzipFile(fileobj=packed) as stream:
            return stream.read(limit)
    except (EOFError, zlib.error) as error:
        raise OSError("%s is damaged: %s" % (path, error)) from error


# When a line was written. An epoch's zone is known; of the others it is the host's, unless they name UTC.
# In brackets as gunicorn and Celery write it, after the level as the published application does.
_TIME = re.compile(
    r"^(?:\[|[A-Z]{4,8} )?(\d{4})[-/](\d\d)[-/](\d\d)[T ](\d\d):(\d\d):(\d\d)"
    r"(?:[.,](\d{1,9}))?(?: ?(Z|UTC|[+-]\d\d:?\d\d))?"
)
_REDIS_TIME = re.compile(r"^\d+:\w (\d\d) (\w{3}) (\d{4}) (\d\d):(\d\d):(\d\d)")
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


def timestamp(line: str) -> Optional[float]:
    """Return when a line was written, as an epoch; None where it does not begin with a time."""
    match = _TIME.match(line)
    if match:
        at = _epoch(tuple(int(word) for word in match.groups()[:6]), match[8])
        return at if at is None or not match[7] else at + float("0." + match[7])
    match = _REDIS_TIME.match(line)
    if match and match[2] in _MONTHS:
        parts = (int(match[3]), _MONTHS.index(match[2]) + 1, int(match[1]), int(match[4]), int(match[5]), int(match[6]))
        return _epoch(parts, None)
    return None


def _epoch(parts: tuple, zone: Optional[str]) -> Optional[float]:
    try:
        if zone in ("Z", "UTC"):
            return float(calendar.timegm(parts + (0, 0, 0)))
        if zone:
            hours, minutes = int(zone[1:3]), int(zone[-2:])
            offset = (hours * 3600 + minutes * 60) * (-1 if zone[0] == "-" else 1)
            return float(calendar.timegm(parts + (0, 0, 0)) - offset)
        # mktime() takes a 99th month for a later year.
        return time.mktime(datetime.datetime(*parts).timetuple()[:8] + (-1,))
    except (ValueError, OverflowError):
        return None


_BAD = re.compile(
    r"\b(ERROR|CRITICAL|FATAL|PANIC|emerg|alert|crit|error)\b|^[\w.]+(?:Error|Exception|Warning)?: |Traceback|\[error\]"
    r"|was terminated by signal|Too many open files"
    # What Redis warns of, without what each start and stop says.
    r"|^\d+:\w \d\d \w{3} \d{4} [\d:.]+ # (?!WARNING|oO0|Redis |Configuration|Server|User req|Received SIG|Connection)"
    r"|No space left|Permission denied"
)
# The level as gunicorn and Django, Celery, nginx and PostgreSQL write it; where there is one, it alone decides.
_LEVEL = re.compile(
    r"^(debug|info|warning|error|critical) \d{4}-\d\d-\d\d "
    r"|\[(debug|info|notice|warn|warning|error|crit|critical|alert|emerg)\]"
    r"|: (debug|info|warning|error|critical)/"
    r"|\] +(?:\S+ )?(log|statement|detail|hint|context|notice|warning|error|fatal|panic):  ",
    re.I,
)
_BAD_LEVELS = frozenset(("error", "crit", "critical", "alert", "emerg", "fatal", "panic"))
_EXCEPTION = re.compile(
    r"^((?:[A-Za-z_][\w]*\.)*[A-Z]\w*(?:Error|Exception|Configured|Exist|Refused|Timeout|Warning|Denied|NotFound|Interrupt|Exit|Full))(?::\s*(.*))?$"
)


def entries(text: str) -> list:
    """Return [(time, lines)]: a line that begins with a time, with those below it that do not (a traceback)."""
    found = []
    for line in text.splitlines():
        at = timestamp(line)
        if at is not None or not found:
            found.append((at, [line]))
        elif len(found[-1][1]) < 400:
            found[-1][1].append(line)
    return found


def is_bad(line: str) -> bool:
    """Return whether a line complains: a logger named error may only report that it started.

    Celery notes a task that fails and is tried again as information.
    """
    if " retry: Retry in " in line:
        return True
    level = _LEVEL.search(line)
    # PostgreSQL only notes the death of one of its processes.
    if level and "was terminated by signal" not in line:
        return next(filter(None, level.groups())).lower() in _BAD_LEVELS
    return bool(_BAD.search(line))


def _pattern_of(line: str) -> str:
    """Return a line without what differs from one event to the next."""
    # A line of a megabyte would be looked at for minutes, in which no other part gets a word in.
    line = re.sub(r"^[\[\d/:TZ.,+ -]+\]?\s*", "", line[:1000])
    return re.sub(r"\b(?=(?:0x)?[a-f]*\d)(?:0x)?[0-9a-f]+\b", "#", line)[:160]


def without_close_sockets(lines: list) -> list:
    """Return the lines of an entry without a traceback of gunicorn's close_sockets.

    Its socket is in a directory of root's while it runs. Where it ends by itself it cannot remove it, and this error
    would hide the one for which it ended.
    """
    parts: list = [[]]
    for line in lines:
        if line.startswith("Traceback (most recent call last)"):
            parts.append([])
        parts[-1].append(line)
    return [line for part in parts if not any(", in close_sockets" in one for one in part) for line in part]


def problems(text: str, since: float, limit: int = 8) -> list:
    """Return the errors since a time, the most recent first: {text, exception, count, first, last}."""
    groups = {}
    latest = since
    for at, lines in entries(text):
        # A log whose lines bear no time is evaluated as one: its end is the newest.
        latest = at if at is not None else latest
        lines = without_close_sockets(lines)
        if latest < since or not lines:
            continue
        raised = [line for line in lines if _EXCEPTION.match(line.strip())]
        if not raised and not is_bad(lines[0]):
            continue
        # The last exception is the one that ended it; the first line shows where.
        exception = raised[-1].strip() if raised else ""
        key = _pattern_of(exception or lines[0])
        group = groups.setdefault(key, {"count": 0, "first": latest, "exception": "", "text": ""})
        where = [line.strip() for line in lines if line.strip().startswith('File "')]
        group.update(
            count=group["count"] + 1, last=latest, exception=exception[:300], text=lines[0].strip()[:300],
            where=where[-1][:200] if where else "",
        )  # fmt: skip
    return sorted(groups.values(), key=lambda group: -group["last"])[:limit]


def newest(pattern: str) -> Optional[str]:
    """Return the file of a pattern that was written last."""
    return max(((status.st_mtime, path) for path, status in safe_files.find(pattern)), default=(0, None))[1]


def first_timestamp(text: str) -> Optional[float]:
    """Return when the first line with a time was written."""
    return next(filter(None, map(timestamp, text.splitlines())), None)


def end_of(path: str, limit: int) -> tuple:
    """Return the last bytes of a file, which may be packed, and whether that is all of it."""
    if not path.endswith(".gz"):
        return tail(path, limit), safe_files.status(path).st_size <= limit
    content = unpacked(path, _MOST_UNPACKED + 1)
    return content[-limit:].decode("utf-8", "replace"), len(content) <= min(limit, _MOST_UNPACKED)


def since_then(path: str, since: float) -> tuple:
    """Return a log's text since a time, from the rotated files too, and whether it was read back to that time."""
    text, complete = end_of(path, _TAIL)
    began = first_timestamp(text)
    if not complete and (began is None or began > since):
        text, complete = end_of(path, _MOST)
        began = first_timestamp(text)
    rotated = os.path.join(os.path.dirname(path), glob.escape(os.path.basename(path)) + "[.-]*")
    # The last text before that time is no evidence for the time after it.
    older = sorted((status.st_mtime, one) for one, status in safe_files.find(rotated))
    older = [one for at, one in older if at >= since]
    while complete and older and (began is None or began > since) and len(text) < _MOST:
        more, complete = end_of(older.pop(), _MOST - len(text))
        text = more + text
        began = first_timestamp(text)
    return text, (began is not None and began <= since) or (complete and not older)


def complaints(path: str, since: float) -> dict:
    """Return what one log complains about."""
    try:
        status = safe_files.status(path)
        text, reached = since_then(path, since)
    except OSError as error:
        return {"path": path, "error": str(error), "reached": False, "problems": []}
    found = {"path": path, "bytes": status.st_size, "changed": status.st_mtime, "reached": reached}
    return dict(found, problems=problems(as_lines(text), since))


def of_journal(unit: str, since: float) -> dict:
    """Return what a unit complains about in the journal."""
    options = ["--output=cat", "--lines=2000", "--since=@%d" % since, "--unit=" + unit]
    try:
        text = probe.run(["journalctl", "--no-pager", "--quiet", *options], 3.0)[1]
    except probe.ProbeError as error:
        return {"path": "journalctl -u " + unit, "error": str(error), "reached": False, "problems": []}
    # Its lines bear their own times; what systemd says between them does not.
    lines = [line for line in text.splitlines() if not re.match(r"\S+[.]service: |(Start|Stopp)(ed|ing) ", line)]
    found = {"path": "journalctl -u " + unit, "bytes": len(text), "reached": True}
    return dict(found, problems=problems(as_lines("\n".join(lines)), since))


def together(found: list, limit: int = 8) -> dict:
    """Return several logs of one part as one, called by that which complained last."""
    ordered = sorted(found, key=lambda one: -max((problem["last"] for problem in one["problems"]), default=0))
    merged = sorted((problem for one in found for problem in one["problems"]), key=lambda problem: -problem["last"])
    joined = dict(ordered[0], reached=all(one["reached"] for one in found), problems=merged[:limit])
    errors = [one["error"] for one in found if "error" in one]
    return dict(joined, error=errors[0]) if errors else joined


_FUNCTION = re.compile(r"\] CONTEXT:  (?:PL/pgSQL function|SQL function) \"?([A-Za-z_][\w.]{0,62})", re.I)


def failing_functions(path: str, since: float) -> list:
    """Return the functions in which statements of late have failed, by the context of PostgreSQL's errors."""
    try:
        lines = tail(path, _TAIL).splitlines()
    except OSError:
        return []
    found = [match[1] for match in map(_FUNCTION.search, lines) if match and (timestamp(match.string) or 0) > since]
    return sorted(set(found))[:10]


# From the beginning of a line: what follows may be anybody's words.
_SESSION = (
    r"\d{4}-\d\d-\d\d [\d:.]{8,16} \S{1,8} \[(?P<pid>\d+)\] "
    r"\[user=(?P<role>[^,\]]{0,63}),db=(?P<database>[^,\]]{0,63}),app=(?P<program>[^,\]]{0,64}),client=[^\s,]{1,60}\] "
    r"LOG:  "
)
_STATEMENT = re.compile(
    _SESSION + r"(?:duration: (?P<milliseconds>\d{1,12}(?:\.\d{1,3})?) ms  )?"
    r"(?:statement|execute [^:]{1,80}): (?P<text>.{1,1500})"
)
_WAITED = re.compile(_SESSION + r"process \d+ still waiting for ")
# A name that a client sends may look like the beginning of such a line: its real end follows then.
_FORGED = re.compile(r",client=[^\s,]{1,60}\] [A-Z]{3,7}:  ")
# What is no change of the application's tables: of a session, of what is derived, of roles and the server.
_NO_CHANGE = re.compile(
    r"(?i)(?:create\s+(?:or\s+replace\s+)?(?:local\s+|global\s+)?temp|select\b.*\binto\s+temp|refresh\b|comment\b|security\b"
    r"|(?:create|alter|drop)\s+(?:role|user|group|system|tablespace|database)\b(?!.*\bset\b))"
)
# Programs that create what they restore, and runs of this repository.
_OWN_PROGRAMS = re.compile(r"shiftmaster|pg_|pgbackrest|patroni", re.I)


def schema_changes(path: str, database: str, since: float) -> list:
    """Return the changes of a database's definitions that people have typed, the latest last.

    Each: {at, role, application, statement}. PostgreSQL logs them (log_statement). Those of the application,
    its migrations, name no program.
    """
    found = []
    for at, lines in _entries_since(path, since):
        match = _STATEMENT.match(lines[0][:2000])
        if not match or match["milliseconds"] or _FORGED.search(match["text"]) or _OWN_PROGRAMS.match(match["program"]):
            continue
        statement = _statement(match, lines)
        # A setting of the database itself is typed in any.
        of_database = match["database"] == database or re.match(
            r'(?i)alter\s+database\s+"?%s\b' % re.escape(database), statement
        )
        role, program = match["role"], match["program"]
        if of_database and (program or role == "postgres") and not _NO_CHANGE.match(statement):
            found.append({"at": at, "role": role, "application": program, "statement": statement[:200]})
    return found[-20:]


def slow_statements(path: str, database: str, since: float) -> list:
    """Return the statements that PostgreSQL has logged as slow three times or more: [{query, mean_ms, calls}].

    log_min_duration_statement says which are slow. Those that waited for a lock are left out.
    """
    durations, waited = collections.defaultdict(list), set()
    for _at, lines in _entries_since(path, since):
        waits, match = _WAITED.match(lines[0][:2000]), _STATEMENT.match(lines[0][:2000])
        if waits:
            waited.add(waits["pid"])
        elif match and match["milliseconds"]:
            if match["database"] == database and match["pid"] not in waited and not _FORGED.search(match["text"]):
                # Django's driver puts the values into the statement.
                query = re.sub(r"(?<![\w$])\d[\d.]*", "?", _statement(match, lines))[:600]
                durations[query].append(float(match["milliseconds"]))
            waited.discard(match["pid"])
    return [
        {"query": query, "mean_ms": round(sum(times) / len(times), 1), "calls": len(times)}
        for query, times in durations.items()
        if len(times) >= 3
    ]


def _entries_since(path: str, since: float) -> list:
    """Return entries() of the end of a log, later than `since`; none where it cannot be read."""
    try:
        text = tail(path, _TAIL)
    except OSError:
        return []
    return [(at, lines) for at, lines in entries(text) if at and at > since]


def _statement(match, lines: list) -> str:
    """Return a statement without its literals. It is cut at its end alone: elsewhere, a literal could lose its end."""
    return redact_sql("\n".join([lines[0][match.start("text") :], *lines[1:]])[:6000])


def logs(setting) -> dict:
    """What the logs of the last hours complain about."""
    since, found = time.time() - setting.hours * 3600, {}
    for name, patterns in setting.logs.items():
        paths = [newest(pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns)]
        if any(paths):
            found[name] = together([complaints(path, since) for path in paths if path])
    if "postgresql" in found:
        found["postgresql"]["functions"] = failing_functions(found["postgresql"]["path"], time.time() - 900)
    # Where the application sets up Celery's logging by itself, nothing is in the files.
    for name, kind in (("celery", "worker"), ("beat", "beat")):
        if setting.slot and not (found.get(name) or {}).get("bytes"):
            found[name] = of_journal("shiftmaster-%s@%s.service" % (kind, setting.slot), since)
    return {"files": found, "hours": setting.hours}


# --- the web server's access log -------------------------------------------------------------------------------------


def parsed_requests(lines, since: float) -> list:
    """Return the requests of lines of JSON as role nginx writes them."""
    return [one for one in map(symptoms.parse, lines) if one and one.at >= since]


def summary(found: list, now: float, hours: float, slots: int = 48, switch: Optional[tuple] = None) -> dict:
    """Return counts by class, p95, the pages that fail, and a series for a chart; switch: as last_switch() has it."""
    width = hours * 3600.0 / slots
    series = [{"requests": 0, "errors": 0, "seconds": []} for _slot in range(slots)]
    for at, status, seconds, *_more in found:
        slot = series[max(0, min(slots - 1, int((at - (now - hours * 3600.0)) / width)))]
        slot["requests"] += 1
        slot["errors"] += status >= 500
        slot["seconds"].append(seconds)
    # A clock that was set back leaves requests of the future.
    found = [one for one in found if one.at <= now + 60]
    recent = [one for one in found if one[0] >= now - 300]
    earlier = [one for one in found if one[0] < now - 300]
    p95, usual = (round(percentile([one[2] for one in requests], 0.95), 3) for requests in (recent, earlier))
    # Of those that the application responded to: where they are slow and it is not, nginx or the clients' network is.
    own = [one.own_seconds for one in recent if one.own_seconds is not None]
    own_p95 = round(percentile(own, 0.95), 3) if own else None
    failing = symptoms.failing(
        [one for one in recent if one.at >= switch[1]] if switch else recent,
        symptoms.counts(one for one in found if switch[0] <= one.at < switch[1]) if switch else None,
    )
    # A page that this release has served for a while fails for another reason.
    served = symptoms.counts(one for one in earlier if switch and one.at >= switch[1])
    for page in failing:
        total, errors = served.get(page["page"], (0, 0))
        page["new"] = page["new"] and not (total >= symptoms.REQUESTS_MIN and errors < total / 2)

    def by_status(requests):
        return {str(code): count for code, count in sorted(collections.Counter(one[1] for one in requests).items())}

    for number, slot in enumerate(series):
        slot["at"] = int(now - hours * 3600.0 + (number + 1) * width)
        slot["p95_seconds"] = round(percentile(slot.pop("seconds"), 0.95), 3)
    return {
        "requests": len(found),
        "by_status": by_status(found),
        "recent": {
            "requests": len(recent),
            "errors": sum(one.failed for one in recent),
            "p95_seconds": p95,
            "usual_p95_seconds": usual,
            # Several times as slow as in the hours before, and so that people notice it.
            "slower": len(earlier) >= 100 and p95 > max(0.5, 4 * usual),
            "slow_pages": symptoms.slow(recent, earlier),
            "rising": symptoms.rising(recent, earlier, now),
            "own_p95_seconds": own_p95,
            "sent_slowly": len(recent) > 20 and p95 > 2 and own_p95 is not None and 4 * own_p95 < p95,
            "by_status": by_status(recent),
            "failing": failing,
            "refused": symptoms.refused(recent, earlier),
        },
        "series": series,
    }


def requests(setting) -> dict:
    """The web server's responses in the last hours."""
    now, path = time.time(), setting.access_log
    since = now - setting.hours * 3600
    if not os.path.exists(path):
        raise Absent("there is no %s" % path)
    text = tail(path, 4 << 20)
    if len(text) < 1 << 20 and os.path.exists(path + ".1"):
        # Rotated just now.
        text = tail(path + ".1", 1 << 20) + text
    elif len(text) < 1 << 16 and os.path.exists(path + ".2.gz"):
        text = unpacked(path + ".2.gz", 1 << 20).decode("utf-8", "replace") + text
    switch = last_switch(Layout(setting.app_root))
    return summary(parsed_requests(text.splitlines(), since), now, setting.hours, switch=switch)
