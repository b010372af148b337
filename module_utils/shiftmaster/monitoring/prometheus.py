"""Query a Prometheus for a long time in parts, and briefly; and get the metrics of a service."""

from __future__ import annotations

import base64
import json
import urllib.parse
from typing import Optional

LARGEST_RESPONSE_BYTES = 64 * 1024 * 1024
# Prometheus refuses more points of one series in a response than 11 000.
_POINTS = 10000


class Untrusted(OSError):
    """The certificate does not lead to the authority, or is for another name: waiting does not help."""


def get(url, ca_file=None, user=None, password=None, timeout=5.0):
    """Return (status, text). OSError where nobody responds. No proxy is queried, no redirect followed.

    A socket is written as nginx does: http://unix:/run/service.sock:/metrics.
    """
    from ..host import probe  # Large; most runs of service_config need no request.

    target, path, headers = url, "/", {}
    if url.startswith("http://unix:"):
        target, _colon, path = url[len("http://") :].rpartition(":")
    if user:
        credentials = ("%s:%s" % (user, password or "")).encode("utf-8")
        headers["Authorization"] = "Basic " + base64.b64encode(credentials).decode("ascii")
    try:
        response = probe.http_get(
            target, path, timeout=timeout, headers=headers, ca_file=ca_file or None, limit=LARGEST_RESPONSE_BYTES
        )
    except ValueError as error:
        raise OSError(str(error))
    if response.status is None:
        raise (Untrusted if response.reason == "certificate" else OSError)(response.error)
    return response.status, response.body if 200 <= response.status < 300 else ""


class PrometheusError(Exception):
    """It does not respond, or refuses; str() is the reason."""


class Prometheus:
    """One server. Credentials go nowhere else."""

    def __init__(
        self, url: str, user: str = "", password: str = "", ca_file: Optional[str] = None, timeout: float = 30.0
    ):
        self.url = url.rstrip("/")
        self._user, self._password, self._ca_file, self._timeout = user, password, ca_file, timeout

    def _get(self, path: str, **parameters):
        address = "%s/api/v1/%s?%s" % (self.url, path, urllib.parse.urlencode(parameters))
        try:
            status, text = get(address, self._ca_file, self._user, self._password, self._timeout)
        except OSError as error:
            raise PrometheusError("Prometheus at %s does not respond: %s" % (self.url, error))
        if status != 200:
            raise PrometheusError("Prometheus at %s returns %d" % (self.url, status))
        response = json.loads(text)
        if response.get("status") != "success":
            raise PrometheusError("Prometheus: %s" % response.get("error"))
        return response["data"]["result"]

    def now(self, query: str, at: Optional[float] = None) -> list:
        """Return [(labels, value)] of one time."""
        timestamp = {} if at is None else {"time": "%.3f" % at}
        return [(one["metric"], float(one["value"][1])) for one in self._get("query", query=query, **timestamp)]

    def value(self, query: str, at: Optional[float] = None) -> Optional[float]:
        """Return the one value of a query; None where there is none."""
        found = [value for _labels, value in self.now(query, at) if value == value]
        return found[0] if found else None

    def over(self, query: str, start: float, end: float, step: float) -> list:
        """Return [(labels, [(at, value)])] of [start, end)."""
        series = {}
        for since, until in parts(start, end, step):
            response = self._get("query_range", query=query, start="%.3f" % since, end="%.3f" % until, step="%g" % step)
            for one in response:
                key = json.dumps(one["metric"], sort_keys=True)
                samples = [(float(at), float(value)) for at, value in one["values"]]
                series.setdefault(key, (one["metric"], []))[1].extend(samples)
        return list(series.values())

    def samples(self, query: str, start: float, end: float, step: float) -> list:
        """Return [(at, value)] of a query that gives one series; what is no number is left out."""
        return [
            (at, value)
            for _labels, values in self.over(query, start, end, step)
            for at, value in values
            if value == value
        ]


def parts(start: float, end: float, step: float) -> list:
    """Return the (first, last) times of queries that cover all steps of [start, end) exactly once."""
    found, since = [], start
    while since < end:
        until = min(since + step * (_POINTS - 1), end - step)
        until = max(until, since)
        found.append((since, until))
        since = until + step
    return found


SITE = 'job="mtail",site="edge"'
QUERIES = {
    # An instant selector would look five minutes back, and take a gap for what was before it.
    "up": "min(min_over_time(probe_success{job='blackbox-http'}[1m]))",
    # increase() does not see the first value of a series that is new: the first 5xx of a status since mtail began.
    "requests": "sum(increase(nginx_http_requests_total{%s}[1m]))" % SITE,
    "errors": 'sum(increase(nginx_http_requests_total{%s,status=~"5.."}[1m]))' % SITE,
}


def month(server: Prometheus, start: float, end: float, step: float = 60.0) -> dict:
    """Return what kpi.month() wants, of one Prometheus; what it does not have is absent."""
    from . import kpi

    data = {name: server.samples(query, start, end, step) for name, query in QUERIES.items()}
    length = "%ds" % int(end - start)
    buckets = "increase(nginx_http_request_duration_seconds_bucket{%s}[%s])" % (SITE, length)
    data["p95_seconds"] = server.value("histogram_quantile(0.95, sum by (le) (%s))" % buckets, end)
    for name, counted in (("database_seconds", "seconds"), ("database_statements", "calls")):
        statements = 'pg_stat_statements_%s_total{datname!~"template.*|postgres"}' % counted
        data[name] = server.value("sum(increase(%s[%s]))" % (statements, length), end)
    data["alerts"] = kpi.alerts_of(server.over('ALERTS{alertstate="firing"}', start, end, step), step)
    return data
