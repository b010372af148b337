"""A real Prometheus with the synthetic month of test_kpi.py (unit test) gives the metrics computed by hand."""

from __future__ import annotations

import importlib.util
import time
import zoneinfo
from pathlib import Path

import ansible.module_utils
import pytest
from support import ROOT, Operations

ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from ansible.module_utils.shiftmaster.monitoring import kpi, prometheus  # noqa: E402 - found where the line above leads.

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
PORT, DIRECTORY = 9099, "/root/kpi"
JAPAN = zoneinfo.ZoneInfo("Asia/Tokyo")
# A month of 30 days that is over: a backfill of the future is none.
START, END = kpi.month_of("2026-09", JAPAN)
STEP = 60.0
SITE = 'job="mtail",site="edge"'
# The 95 000th of 100 000 is 5 000 of 6 000 into (0.1, 0.25]: 0.1 + 0.15 * 5 / 6 = 0.225.
BUCKETS = {0.1: 90000.0, 0.25: 96000.0, 0.5: 99000.0, float("inf"): 100000.0}


def by_hand():
    """The unit test's month and its functions."""
    spec = importlib.util.spec_from_file_location("kpi_by_hand", ROOT / "tests/unit/monitoring/test_kpi.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert END - START == module.END - module.START
    return module


def month_in_openmetrics(hand):
    """Yield the lines of the month as exporters would have shown it, scraped every 15 s between the module's steps.

    A sample of the computed month at a time covers the minute before it.
    """
    synthetic, shift = hand.synthetic(), hand.START - START
    measured = [at - shift for at, _value in synthetic["up"]]
    up = {at - shift: value for at, value in synthetic["up"]}
    errors = {at - shift: value for at, value in synthetic["errors"]}
    requests = {at - shift: value for at, value in synthetic["requests"]}

    def gauge(name, labels, samples):
        yield f"# TYPE {name} gauge"
        for at, value in samples:
            yield f"{name}{{{labels}}} {value:g} {at:.3f}"

    yield from gauge("probe_success", 'job="blackbox-http"', ((at - 30, up[at]) for at in measured))
    yield "# TYPE nginx_http_requests counter"
    for status, of in (
        ("200", lambda at: requests[at] - errors[at]), ("500", lambda at: errors[at]),
    ):  # fmt: skip
        total = 1e6
        for at in measured:
            for before in (52.5, 37.5, 22.5, 7.5):
                value = total + of(at) * (60 - before) / 60
                yield f'nginx_http_requests_total{{{SITE},status="{status}"}} {value:.6f} {at - before:.3f}'
            total += of(at)
    # These have grown evenly over the month.
    share = {at: (at - START) / (END - START) for at in measured}
    yield "# TYPE nginx_http_request_duration_seconds histogram"
    for bound, count in BUCKETS.items():
        le = "+Inf" if bound == float("inf") else f"{bound:g}"
        for at in measured:
            value = 1000 + count * share[at]
            yield f'nginx_http_request_duration_seconds_bucket{{{SITE},le="{le}"}} {value:.6f} {at - 30:.3f}'
    for name, grown in (("seconds", synthetic["database_seconds"]), ("calls", synthetic["database_statements"])):
        yield f"# TYPE pg_stat_statements_{name} counter"
        for at in measured:
            yield f'pg_stat_statements_{name}_total{{datname="shiftmaster"}} {5 + grown * share[at]:.6f} {at - 30:.3f}'
    yield "# TYPE ALERTS gauge"
    for alert in synthetic["alerts"]:
        labels = f'alertname="{alert["name"]}",service="{alert["component"]}",alertstate="firing",severity="critical"'
        at = alert["start"] - shift
        while at <= alert["end"] - shift:
            yield f"ALERTS{{{labels}}} 1 {at:.3f}"
            at += 15
    yield "# EOF"


@pytest.fixture(scope="module")
def server():
    """A Prometheus next to the host's own, with nothing but that month."""
    host = Operations(INVENTORY, "prometheus-trixie")
    host.shell(
        f"rm -rf {DIRECTORY} && mkdir {DIRECTORY} && cat > {DIRECTORY}/month.txt",
        stdin="\n".join(month_in_openmetrics(by_hand())) + "\n",
    )
    host.shell(
        f"cd {DIRECTORY} && promtool tsdb create-blocks-from openmetrics --quiet"
        " --max-block-duration=720h month.txt data"
        f" && echo 'global: {{}}' > empty.yml", timeout=300,
    )  # fmt: skip
    host.shell(
        f"systemd-run --quiet --unit=kpi prometheus --config.file={DIRECTORY}/empty.yml"
        f" --storage.tsdb.path={DIRECTORY}/data --storage.tsdb.retention.time=10y --web.listen-address=0.0.0.0:{PORT}"
    )
    address = host.shell("hostname -I").split()[0]
    try:
        deadline = time.monotonic() + 60
        while "ready" not in host.shell(f"curl -s http://127.0.0.1:{PORT}/-/ready", check=False).lower():
            assert time.monotonic() < deadline, host.shell("journalctl --unit=kpi --no-pager | tail -n 20")
            time.sleep(1)
        yield prometheus.Prometheus(f"http://{address}:{PORT}", timeout=60.0)
    finally:
        host.shell(f"systemctl stop kpi; rm -rf {DIRECTORY}", check=False)


@pytest.fixture(scope="module")
def month(server):
    return kpi.month(prometheus.month(server, START, END, STEP), START, END, STEP)


def test_metrics_are_those_computed_by_hand(month):
    """tests/unit/monitoring/test_kpi.py shows how each is computed."""
    assert month["missing"] == []
    assert (month["known_seconds"], month["unknown_seconds"], month["down_seconds"]) == (2584800, 7200, 2520)
    assert month["availability_percent"] == 99.9025
    assert (month["mttr_seconds"], month["mtbf_seconds"]) == (840, 860760)
    assert (month["requests"], month["requests_per_second"]) == (43080 * 120, 2.0)
    assert month["error_percent"] == 0.2484
    assert (month["p95_seconds"], month["database_seconds"]) == (0.225, 0.003)
    assert month["results"] == {
        "availability_percent": "met", "p95_seconds": "tolerated", "error_percent": "missed", "mttr_seconds": "met",
        "database_seconds": "met",
    }  # fmt: skip


def test_outages_have_their_timestamps_and_causes(month):
    hand = by_hand()
    begun = [(begin - hand.START + START, 60.0 * minutes) for begin, minutes in hand.OUTAGES]
    assert [(one["start"], one["seconds"]) for one in month["outages"]] == begun
    assert [one["cause"] for one in month["outages"]] == ["DatabaseConnectionError", "DiskSpaceCritical", None]
    assert month["downtime_by_cause"] == {"DatabaseConnectionError": 600, "DiskSpaceCritical": 1800, None: 120}


def test_a_month_that_it_does_not_know_is_not_invented(server):
    start, end = kpi.month_of("2026-08", JAPAN)
    month = kpi.month(prometheus.month(server, start, end, STEP), start, end, STEP)
    assert month["availability_percent"] is None and set(month["results"].values()) == {"unknown"}
    assert set(month["missing"]) == {"up", "requests", "response_times", "database_seconds"}
