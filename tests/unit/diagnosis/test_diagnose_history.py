"""Alerts and usage of the last hours, of a Prometheus or of sysstat."""

from __future__ import annotations

import json
import os

import pytest
from ansible.module_utils.shiftmaster.diagnosis import history
from ansible.module_utils.shiftmaster.diagnosis.engine import Absent
from ansible.module_utils.shiftmaster.diagnosis.setting import Setting
from ansible.module_utils.shiftmaster.host import probe
from ansible.module_utils.shiftmaster.monitoring.prometheus import PrometheusError

NOW = 1800000030.0
END, START = 1800000000.0, 1800000000.0 - 6 * 3600
HIGH = {"alertname": "HighCPUUsage", "instance": "app1", "severity": "warning"}

FULL = {"alertname": "DiskFull", "instance": "db", "severity": "critical"}


class Server:
    """Responds as Prometheus does: one sample each step at which a series was there."""

    def __init__(self, **spans):
        self.spans, self.requested = spans, []

    def over(self, query, start, end, step):
        self.requested.append((query, start, end, step))
        timestamps = [start + step * number for number in range(int((end - start) / step))]
        if "ALERTS" in query:
            spans = self.spans.get("alerts", [])
            return [
                (labels, [(at, 1.0) for at in timestamps if begin <= at <= until]) for labels, begin, until in spans
            ]
        value = 95.04 if "cpu" in query else float("nan")
        return [
            ({"instance": "app1"}, [(at, value) for at in timestamps]),
            ({"instance": "db"}, [(timestamps[-1], 1.0)]),
        ]


def test_alerts_with_what_is_known_of_their_beginning_and_end():
    server = Server(alerts=[
        (HIGH, START + 3600, START + 3900),
        (dict(HIGH, instance="db"), START + 7200, END),
        (dict(HIGH, alertname="Old"), START, START + 600),
        # Two filesystems of a host.
        *[(dict(FULL, mountpoint=path), END - 600, END) for path in ("/", "/b")],
    ])  # fmt: skip
    found = history.of_prometheus(server, NOW, 6.0)
    assert [(one["name"], one["instance"], one["start"], one["end"]) for one in found["alerts"]] == [
        ("DiskFull", "db", END - 600, None),
        ("HighCPUUsage", "db", START + 7200, None),
        ("HighCPUUsage", "app1", START + 3600, START + 3960),
        ("Old", "app1", None, START + 660),
    ]
    assert found["alerts"][0]["severity"] == "critical" and found["source"] == "prometheus"


def test_a_repeated_alert_is_listed_again():
    samples = [(START + 600, 1.0), (START + 660, 1.0), (START + 1200, 1.0)]
    assert [one["start"] for one in history.alerts([(HIGH, samples)], START, END)] == [START + 1200, START + 600]


def test_alerts_are_bounded():
    series = [(dict(HIGH, alertname=f"A{number}"), [(START + 600 + number, 1.0)]) for number in range(200)]
    assert len(history.alerts(series, START, END)) == 60


def test_the_watchdog_is_no_alert():
    server = Server()
    history.of_prometheus(server, NOW, 6.0)
    assert all('severity!="none"' in query for query, *_when in server.requested if "ALERTS" in query)


def test_usage_of_each_host_and_what_was_not_measured():
    found = history.of_prometheus(Server(), NOW, 6.0)["usage"]
    assert len(found["app1"]["cpu"]) == 73 and found["app1"]["cpu"][-1] == [int(END), 95.0]
    assert found["app1"]["memory"] == [] and len(found["db"]["cpu"]) == 1


@pytest.fixture
def setting(tmp_path):
    (tmp_path / "password").write_text("seeded-secret\n")
    place = {"url": "https://x", "user": "x", "password_file": str(tmp_path / "password"), "ca_file": None}
    return Setting({"prometheus": place, "hours": 6})


def test_a_prometheus_that_does_not_respond_is_not_one_without_alerts(setting, monkeypatch):
    def refuse(*_arguments):
        raise PrometheusError("Prometheus at x returns 401")

    monkeypatch.setattr(history.Prometheus, "over", refuse)
    with pytest.raises(probe.ProbeError, match="401"):
        history.history(setting)


SADF = {"sysstat": {"hosts": [{"statistics": [
    {"timestamp": {"date": "2027-01-15", "time": "07:50:00", "tz": "UTC", "interval": 600},
     "cpu-load": [{"cpu": "all", "user": 20.0, "idle": 74.0}, {"cpu": "0", "idle": 1.0}],
     "memory": {"memfree": 1000, "avail": 6000, "memused": 2000, "memused-percent": 25.0}},
    {"timestamp": {"date": "2027-01-14", "time": "07:50:00"}, "cpu-load": [{"cpu": "all", "idle": 0.0}]},
    {"timestamp": {}, "cpu-load": [{"cpu": "all", "idle": 0.0}]},
]}]}}  # fmt: skip


@pytest.mark.usefixtures("in_tokyo")
def test_sysstats_metrics_are_used_where_there_is_no_prometheus(tmp_path, monkeypatch):
    path = tmp_path / "var/log/sysstat/sa15"
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (NOW, NOW))
    monkeypatch.setattr(history.time, "time", lambda: NOW)
    monkeypatch.setattr(history.probe, "run", lambda command, seconds: (0, json.dumps(SADF), ""))
    # Its clock is UTC, regardless of the host's.
    found = history.history(Setting({}, root=str(tmp_path)))
    # Of 8000 in all 6000 are available. Earlier hours than requested are left out.
    assert found == {
        "source": "sysstat", "alerts": [], "usage": {"": {"cpu": [[1799999400, 26.0]], "memory": [[1799999400, 25.0]]}},
    }  # fmt: skip
    monkeypatch.setattr(history.probe, "run", lambda command, seconds: (2, "", "Invalid system activity file"))
    with pytest.raises(probe.ProbeError, match="Invalid system activity"):
        history.history(Setting({}, root=str(tmp_path)))


def test_a_host_without_a_history_reports_it(tmp_path):
    with pytest.raises(Absent):
        history.history(Setting({}, root=str(tmp_path)))
