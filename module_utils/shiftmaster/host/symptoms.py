"""The symptoms that users notice, measured in one way by the gate, the watch, health and diagnosis.

Requests are lines of nginx's JSON access log. Pages are distinguished by their path without numbers.
"""

from __future__ import annotations

import collections
import datetime
import itertools
import json
import re
import statistics
from typing import NamedTuple, Optional
from urllib.parse import urlsplit

from . import probe, safe_files

# A share of fewer requests is no evidence.
REQUESTS_MIN = 10
# A larger share of failed requests is a fault of its own.
FAILING_SHARE = 0.05
# A user who leaves after so long has got no page (nginx logs 499).
HANGS_SECONDS = 5
# Of a page that was served before they say that something has changed.
REFUSALS = (400, 403, 404, 405, 410, 411, 413, 414, 415, 421, 431)
# Every response of the site has it (role nginx), an error's as well.
SITE_HEADER = "x-request-id"
_MOST_PAGES = 2000
_TAIL = 4 << 20


class Request(NamedTuple):
    at: float
    status: int
    seconds: float
    page: str = ""
    # Whether the application itself responded with an error: a 502 is nginx's, and so is the maintenance page.
    by_application: bool = False
    # How long the application took; the rest is nginx and the way to the client. None where it was not requested.
    own_seconds: Optional[float] = None
    method: str = ""
    client: str = ""

    @property
    def failed(self) -> bool:
        return self.status >= 500 or (self.status == 499 and self.seconds >= HANGS_SECONDS)


def parse(line) -> Optional[Request]:
    """Return the request of a line of the access log; None where the line is none."""
    try:
        entry = json.loads(line)
        at, seconds, status = _time(entry), entry.get("request_time"), int(entry["status"])
        if at is None or not at < float("inf"):
            return None
        seconds = float(seconds) if seconds not in (None, "", "-") else 0.0
        page = re.sub(r"\d+", "#", str(entry.get("path") or entry.get("uri") or "").partition("?")[0][:200])
        upstream = re.findall(r"\d+", str(entry.get("upstream_status", status)))[-1:]
        own = bool(upstream) and 500 <= int(upstream[0]) < 600 and int(upstream[0]) not in (502, 504)
        times = re.findall(r"\d+(?:\.\d+)?", str(entry.get("upstream_response_time", "")))
        own_seconds = float(times[-1]) if times else None
        method, client = (str(entry.get(name) or "")[:45] for name in ("method", "remote_addr"))
        return Request(at, status, seconds, page, own and status >= 500, own_seconds, method, client)
    # Binary garbage has lines that are JSON: a number, or too many brackets.
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _time(entry: dict) -> Optional[float]:
    # msec first: the others of nginx are rounded down to seconds.
    for name in ("msec", "time", "@timestamp", "time_iso8601", "time_local"):
        value = entry.get(name)
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, str) and value:
            if re.fullmatch(r"\d+(\.\d+)?", value):
                return float(value)
            try:
                return datetime.datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
            except ValueError:
                continue
    return None


def logged(path: str, since: float = 0.0, until: float = float("inf")) -> list:
    """Return the requests at the end of an access log; none where it cannot be read."""
    try:
        lines = safe_files.read_tail(path, _TAIL).splitlines()
    except OSError:
        return []
    return [one for one in map(parse, lines) if one and since <= one.at < until]


def counts(requests) -> dict:
    """Return {page: (requests, errors)}."""
    found = collections.defaultdict(lambda: (0, 0))
    for one in requests:
        if one.page in found or len(found) < _MOST_PAGES:
            total, errors = found[one.page]
            found[one.page] = (total + 1, errors + one.failed)
    return dict(found)


def failed_before(page: str, errors: int, total: int, before: dict) -> bool:
    """Return whether a page failed before, too: at least half as often as now."""
    old_total, old_errors = before.get(page, (0, 0))
    return bool(old_errors) and old_errors / old_total >= errors / total / 2


def goes_on(failed: list) -> bool:
    """Return, from the requests in order, whether errors still occur.

    They have ended where so many requests have succeeded since the last error that at the rate of before, three or
    more of them would have failed. Errors that came back twice or more, each time after a while, may come again.
    """
    if True not in failed:
        return False
    first, last = failed.index(True), len(failed) - 1 - failed[::-1].index(True)
    rate, since = sum(failed) / (last - first + 1), len(failed) - 1 - last
    pauses = [len(list(run)) for bad, run in itertools.groupby(failed[first:last]) if not bad]
    returns = [length for length in pauses if length >= REQUESTS_MIN]
    return since * rate < 3 or (len(returns) >= 2 and since < 1.5 * max(returns))


def _alone(page: str, errors: list, ordered: list) -> bool:
    """Tell whether a page fails by itself: the others, which succeed, say nothing of whether it still does."""
    own = any(one.by_application for one in errors)
    began, ended = errors[0].at - 10, errors[-1].at + 10
    elsewhere = [one for one in ordered if one.page != page and one.failed and began <= one.at <= ended]
    return len(errors) >= 3 and 3 * sum(one.by_application or not own for one in elsewhere) < len(errors)


def of_one_address(requests) -> bool:
    """Return whether all requests come from one address, such as a proxy's, which identifies no user."""
    return len({one.client for one in requests}) < 2


def _accepted_forms(requests) -> set:
    """Return the pages whose forms, REQUESTS_MIN or more of them, led to another page in seven of ten cases."""
    sent = collections.defaultdict(lambda: [0, 0])
    for one in requests:
        if one.method == "POST" and (one.page in sent or len(sent) < _MOST_PAGES):
            sent[one.page][0] += 1
            sent[one.page][1] += one.status in (302, 303)
    return {page for page, (total, led) in sent.items() if total >= REQUESTS_MIN and led >= 0.7 * total}


def refused(requests: list, before: list) -> list:
    """Return the pages whose requests are rejected now and were served before, the worst first.

    Each: {page, status, errors, requests, first, last}.

    requests: those of the last minutes; before: earlier ones. A page counts where five or more of its requests and a
    quarter of them are rejected, four times the share of before or more, and it goes on. 401 and 429 are left out: they
    are meant for one client. A form that led to another page before, and is shown again now (200), is rejected too.
    """
    then, now, found = collections.defaultdict(lambda: [0, 0]), collections.defaultdict(list), []
    accepted = _accepted_forms(before)

    def rejected(one):
        return one.status in REFUSALS or (one.status == 200 and one.method == "POST" and one.page in accepted)

    for one in before:
        if one.page in then or len(then) < _MOST_PAGES:
            then[one.page][0] += 1
            then[one.page][1] += rejected(one)
    for one in sorted(requests, key=lambda one: one.at):
        now[one.page].append(one)
    alone = of_one_address(before)
    for page, ours in now.items():
        errors = [one for one in ours if rejected(one)]
        # One user's forgotten password is no fault of the site.
        if len({one.client for one in errors}) < 2 and not alone:
            continue
        total, earlier = then.get(page, (0, 0))
        if len(errors) < 5 or total < REQUESTS_MIN or not goes_on([rejected(one) for one in ours]):
            continue
        share = len(errors) / len(ours)
        if share >= 0.25 and share >= 4 * earlier / total:
            entry = {"page": page, "status": errors[-1].status, "errors": len(errors), "requests": len(ours)}
            found.append(dict(entry, first=errors[0].at, last=errors[-1].at))
    return sorted(found, key=lambda entry: (-entry["errors"], entry["page"]))


def slow(requests: list, before: list) -> list:
    """Return the pages that are slow now and were not before, the slowest first.

    Each: {page, seconds, usual_seconds, requests}; seconds: the median, above 1 and four times the usual one.
    requests: those of the last minutes, five or more of a page; before: earlier ones, REQUESTS_MIN or more of it.
    """
    then, now, found = collections.defaultdict(list), collections.defaultdict(list), []
    clients, alone = collections.defaultdict(set), of_one_address(before)
    # Without what a client's own network adds.
    for one in before:
        if one.page in then or len(then) < _MOST_PAGES:
            then[one.page].append(one.seconds if one.own_seconds is None else one.own_seconds)
    for one in requests:
        now[one.page].append(one.seconds if one.own_seconds is None else one.own_seconds)
        clients[one.page].add(one.client)
    for page, seconds in now.items():
        if len(seconds) < 5 or len(then.get(page, ())) < REQUESTS_MIN or (len(clients[page]) < 2 and not alone):
            continue
        median, usual = statistics.median(seconds), statistics.median(then[page])
        if median > max(1, 4 * usual):
            entry = {"page": page, "seconds": round(median, 2), "usual_seconds": round(usual, 2)}
            found.append(dict(entry, requests=len(seconds)))
    return sorted(found, key=lambda entry: (-entry["seconds"], entry["page"]))[:20]


def rising(requests: list, before: list, now: float) -> list:
    """Return the pages that are requested far more often than before, the most first: {page, per_second, usual}.

    Of the last minute: 3 per second or more, and ten times the rate of `before`, which has to span five minutes. Health
    pages are requested by monitors: there 3 per second are too many without a comparison. usual is None then.
    """
    span = max((one.at for one in before), default=0) - min((one.at for one in before), default=0)
    then, last_minute = counts(before), counts(one for one in requests if one.at > now - 60)
    found = []
    for page, (total, _errors) in last_minute.items():
        usual = then.get(page, (0, 0))[0] / span if span >= 300 else None
        health = page.startswith("/health")
        if total >= 180 and (health if usual is None else total / 60 > 10 * usual):
            entry = {"page": page, "per_second": round(total / 60, 1)}
            found.append(dict(entry, usual=None if usual is None else round(usual, 2)))
    return sorted(found, key=lambda entry: -entry["per_second"])[:5]


def failing(requests: list, before: Optional[dict] = None) -> list:
    """Return the pages that fail now, the worst first.

    Each: {page, status, errors, requests, often, own_errors, first, last, seconds, new}.

    requests: those of the last minutes. before: counts() of the release before, None where they are not known.
    often: half of its requests or more. own_errors: those of the application itself. seconds: the longest failed one.
    new: the page did not fail so in the release before.
    """
    ordered = sorted(requests, key=lambda one: one.at)
    everywhere = goes_on([one.failed for one in ordered])
    known = before is not None and sum(total for total, _errors in before.values()) >= REQUESTS_MIN
    by_page, found = collections.defaultdict(list), []
    for one in ordered:
        by_page[one.page].append(one)
    for page, ours in by_page.items():
        errors = [one for one in ours if one.failed]
        if goes_on([one.failed for one in ours]) and (everywhere or _alone(page, errors, ordered)):
            failed, total, first, last = len(errors), len(ours), errors[0], errors[-1]
            entry = {"page": page, "status": last.status, "errors": failed, "requests": total}
            entry.update(often=2 * failed >= total, own_errors=sum(one.by_application for one in errors))
            entry.update(first=first.at, last=last.at, seconds=max(one.seconds for one in errors))
            found.append(dict(entry, new=known and not failed_before(page, failed, total, before)))
    return sorted(found, key=lambda one: -one["errors"])[:20]


def page_problem(target: str, path: str, host: str, timeout: float, verify: bool = True) -> str:
    """Return why a user does not get a page: no response, or 5xx; "" where it is served."""
    result = get_page(target, path, host, timeout, verify)
    if result.status is None:
        return "%s: %s" % (path, result.error or "no response")
    return "%s: HTTP %d" % (path, result.status) if result.status >= 500 else ""


def get_page(target: str, path: str, host: str, timeout: float, verify: bool = True) -> probe.HttpResult:
    """GET a page as a user does: with TLS before nginx, and the page of this site that it leads to.

    A page that leads back to itself has no status, as one that does not respond.
    """
    deadline, seen = probe.Deadline(timeout), {path}
    for hops in range(3):
        try:
            left = max(0.1, round(deadline.left(), 1))
        except probe.ProbeError as error:
            return probe.HttpResult(None, timeout, "", str(error), error.reason)
        result = probe.http_get(
            target, path=path, host=host, timeout=left, headers={"X-Forwarded-Proto": "https"}, verify=verify
        )
        if result.status not in (301, 302, 303, 307, 308) or hops == 2:
            return result
        try:
            leads_to = urlsplit(result.headers.get("location", ""))
        except ValueError:
            return result
        if leads_to.hostname not in (None, (host or "").partition(":")[0]) or not leads_to.path.startswith("/"):
            return result
        path = leads_to.path + ("?" + leads_to.query if leads_to.query else "")
        # A browser that gets a cookie on the way may be led on.
        if path in seen and "set-cookie" not in result.headers:
            return probe.HttpResult(None, result.seconds, "", "it redirects to itself: %s" % path[:200], "loop")
        seen.add(path)
