#!/usr/bin/python
"""Compute a month's metrics of service from a Prometheus."""

from __future__ import annotations

DOCUMENTATION = r"""
module: shiftmaster_kpi
short_description: Compute a month's metrics of service from a Prometheus
description:
  - Queries the Prometheus of this host for a month and computes availability, p95, error rate, throughput, mean time to
    repair and between failures, and what fired around each outage, against what was promised.
  - What was not measured is not invented; it is named in RV(metrics.missing) and in RV(metrics.unknown_seconds).
options:
  url: {description: The address of Prometheus., type: str, required: true}
  user: {description: User name of the queries., type: str, default: prometheus}
  password_file: {description: The file of this host with the password; none where it needs no password., type: path}
  ca_file: {description: The certification authority of its certificate., type: path}
  month: {type: str, description: "The month, C(2026-10). Without it the month before the one that it is in
    O(timezone)."}
  timezone: {description: The zone in which the month begins and ends., type: str, default: Asia/Tokyo}
  targets: {type: dict, default: {}, description: "What was promised, where it differs (availability_percent,
    p95_seconds, p95_tolerated_seconds, error_percent, mttr_seconds, database_seconds)."}
attributes:
  check_mode: {description: "It reads only, so it does the same in check mode.", support: full}
  diff_mode: {description: It changes nothing., support: none}
"""

EXAMPLES = r"""
- name: Compute October
  shiftmaster_kpi:
    url: https://localhost:9090
    password_file: /etc/prometheus/secrets/scrape
    ca_file: /etc/ssl/shiftmaster/ca.crt
    month: 2026-10
  register: october
"""

RETURN = r"""
metrics: {returned: always, type: dict, description: "The metrics, with C(targets), C(results), C(outages),
  C(downtime_by_cause) and C(missing)."}
series: {returned: always, type: dict, description: "One point a day of availability in percent and of requests, for
  small charts."}
"""

import datetime
import re
import zoneinfo

from ansible.module_utils.shiftmaster.host import safe_files
from ansible.module_utils.shiftmaster.host.quiet import QuietModule
from ansible.module_utils.shiftmaster.monitoring import kpi, prometheus
from ansible.module_utils.shiftmaster.reports import checklist


def argument_spec() -> dict:
    """Return what the module takes."""
    return {
        "url": {"type": "str", "required": True},
        "user": {"type": "str", "default": "prometheus"},
        "password_file": {"type": "path", "no_log": False},  # a path
        "ca_file": {"type": "path"},
        "month": {"type": "str"},
        "timezone": {"type": "str", "default": "Asia/Tokyo"},
        "targets": {"type": "dict", "default": {}},
    }


def month_before(now: float, zone: datetime.tzinfo) -> str:
    """Return the month before the one of a time in a zone."""
    first = datetime.datetime.fromtimestamp(now, zone).replace(day=1)
    return (first - datetime.timedelta(days=1)).strftime("%Y-%m")


def compute(parameters: dict, server, now: float, step: float = 60.0) -> dict:
    """Return metrics and series; of the month that is running what has passed."""
    zone = zoneinfo.ZoneInfo(parameters["timezone"])
    month = parameters["month"] or month_before(now, zone)
    start, end = kpi.month_of(month, zone)
    end = min(end, now - now % step)
    data = prometheus.month(server, start, end, step)
    targets = {name: float(value) for name, value in parameters["targets"].items()}
    series = {
        "availability_percent": [(at, 100.0 * value) for at, value in checklist.daily(data["up"], start)],
        "requests": checklist.daily(data["requests"], start, mean=False),
    }
    metrics = dict(kpi.month(data, start, end, step, targets), month=month)
    for outage in metrics["outages"]:
        outage["began"] = datetime.datetime.fromtimestamp(outage["start"], zone).strftime("%m-%d %H:%M")
    return {"metrics": metrics, "series": series}


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    given = module.params
    if given["month"] and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", given["month"]):
        module.fail_json(msg="month is a year and a month, 2026-10, not %s" % given["month"])
    try:
        password = ""
        if given["password_file"]:
            password = safe_files.read_text(given["password_file"]).strip()
        server = prometheus.Prometheus(given["url"], given["user"], password, given["ca_file"])
        result = compute(given, server, datetime.datetime.now(datetime.timezone.utc).timestamp())
    except (OSError, ValueError, KeyError, prometheus.PrometheusError) as error:
        module.fail_json(msg="the metrics cannot be computed: %s" % error)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
