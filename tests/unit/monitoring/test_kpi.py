"""The month's metrics against those computed by hand from a synthetic month."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.monitoring import kpi

JST = datetime.timezone(datetime.timedelta(hours=9))
START, END = kpi.month_of("2026-11", JST)
STEP = 60.0
ROOT = Path(__file__).resolve().parents[3]
MINUTE, HOUR, DAY = 60, 3600, 86400


def samples(function, left_out=()):
    """One sample a minute of the complete month except for unmeasured times."""
    timestamps = (START + STEP * number for number in range(int((END - START) / STEP)))
    return [(at, function(at)) for at in timestamps if not any(since <= at < until for since, until in left_out)]


# Three outages: 10 minutes on the 3rd, 30 on the 10th, 2 on the 20th; on the 25th two hours without samples.
OUTAGES = [(START + 2 * DAY + 9 * HOUR, 10), (START + 9 * DAY + 14 * HOUR, 30), (START + 19 * DAY, 2)]
GAP = (START + 24 * DAY, START + 24 * DAY + 2 * HOUR)


def up(at):
    return 0.0 if any(begin <= at < begin + minutes * MINUTE for begin, minutes in OUTAGES) else 1.0


def alert(name, component, start, end):
    return {"name": name, "component": component, "start": start, "end": end}


def synthetic():
    return {
        "up": samples(up, [GAP]),
        # 120 requests a minute, of which one in each of the first 432 minutes of a day fails.
        "requests": samples(lambda at: 120.0, [GAP]),
        "errors": samples(lambda at: 1.0 if (at - START) % DAY < 432 * MINUTE else 0.0, [GAP]),
        "p95_seconds": 0.22499999,
        "database_seconds": 1200.0,
        "database_statements": 400000,
        "alerts": [
            alert("WebsiteDown", "web", OUTAGES[0][0] + 10, OUTAGES[0][0] + 540),
            alert("DatabaseConnectionError", "database", OUTAGES[0][0] + 30, OUTAGES[0][0] + 540),
            alert("DiskSpaceCritical", "host", OUTAGES[1][0] - 120, OUTAGES[1][0] + HOUR),
            alert("CPUPressure", "host", START + DAY, START + DAY + 60),
        ],
    }


def test_november_in_japan():
    assert END - START == 30 * DAY
    assert datetime.datetime.fromtimestamp(START, JST).isoformat() == "2026-11-01T00:00:00+09:00"
    start, end = kpi.month_of("2026-12", JST)
    assert end - start == 31 * DAY and kpi.month_of("2027-01", JST)[0] == end


def test_metrics_equal_those_computed_by_hand():
    month = kpi.month(synthetic(), START, END, STEP)
    # 30 days less 2 hours are 2 584 800 s; 42 minutes of them are 2 520 s: 99.9025 %.
    assert month["known_seconds"] == 2584800 and month["unknown_seconds"] == 7200 and month["down_seconds"] == 2520
    assert month["availability_percent"] == 99.9025
    # (10 + 30 + 2) / 3 = 14 minutes; (2 584 800 - 2 520) / 3 = 860 760 s.
    assert month["mttr_seconds"] == 840 and month["mtbf_seconds"] == 860760
    # 43 200 minutes less 120 have samples: 43 080 of them, 120 requests each, 2 a second.
    assert month["requests"] == 43080 * 120 and month["requests_per_second"] == 2.0
    # 432 errors a day, of which the gap at the beginning of the 25th hides 120: 30 * 432 - 120 = 12 840 of 5 169 600.
    assert month["error_percent"] == round(100 * 12840 / 5169600, 4) == 0.2484
    assert month["p95_seconds"] == 0.225
    assert month["database_seconds"] == 0.003
    assert month["missing"] == []
    assert month["results"] == {
        "availability_percent": "met", "p95_seconds": "tolerated", "error_percent": "missed", "mttr_seconds": "met",
        "database_seconds": "met",
    }  # fmt: skip


def test_causes_are_what_fired_first_and_is_no_symptom():
    month = kpi.month(synthetic(), START, END, STEP)
    assert [outage["cause"] for outage in month["outages"]] == ["DatabaseConnectionError", "DiskSpaceCritical", None]
    assert month["downtime_by_cause"] == {"DatabaseConnectionError": 600, "DiskSpaceCritical": 1800, None: 120}


def test_unmeasured_values_are_not_invented():
    month = kpi.month({}, START, END, STEP)
    assert {month[name] for name in month["results"]} | {month["requests"]} == {None}
    assert set(month["results"].values()) == {"unknown"}
    assert set(month["missing"]) == {"up", "requests", "response_times", "database_seconds"}
    assert month["unknown_seconds"] == 30 * DAY


def test_a_month_without_an_outage_has_nothing_to_repair():
    month = kpi.month({"up": samples(lambda at: 1.0)}, START, END, STEP)
    assert month["availability_percent"] == 100.0 and month["mttr_seconds"] is None and month["mtbf_seconds"] is None
    assert month["results"]["mttr_seconds"] == "met"


def test_an_outage_that_runs_into_a_gap_or_over_the_end():
    values = [(0.0, 1.0), (60.0, 0.0), (120.0, 0.0), (900.0, 0.0), (960.0, 1.0), (1020.0, 0.0)]
    found = kpi.outages(values, STEP)
    assert [(outage.start, outage.end, outage.ended) for outage in found] == [
        (60.0, 180.0, False), (900.0, 960.0, True), (1020.0, 1080.0, False),
    ]  # fmt: skip
    # Only those with an observed end show the duration of a repair.
    assert kpi.availability(values, 0.0, 1080.0, STEP)["mttr_seconds"] == 60.0


def test_gaps_at_the_edges():
    assert kpi.gaps([(300.0, 1.0), (360.0, 1.0)], 0.0, 900.0, STEP) == [(0.0, 300.0), (420.0, 900.0)]
    assert kpi.gaps([(0.0, 1.0), (120.0, 1.0)], 0.0, 180.0, STEP) == []


def test_the_cause_is_the_first_alert_in_any_order():
    outage = {"start": 1000.0, "end": 1600.0, "seconds": 600.0}
    outside = [alert("TooEarly", "host", 0.0, 699.0), alert("TooLate", "host", 1601.0, 1700.0)]
    near = [("Late", 1200.0, 1300.0), ("AtTheEnd", 1600.0, 1700.0), ("WebsiteDown", 1.0, 9e9), ("Early", 900.0, 2000.0)]
    near = [alert(name, "host", start, end) for name, start, end in [*near, ("Before", 0.0, 700.0)]]
    (found,) = kpi.causes([outage], [*outside, *near])
    assert found["alerts"] == ["Before", "Early", "Late", "AtTheEnd"] and found["cause"] == "Before"
    assert kpi.causes([outage], outside)[0] == dict(outage, cause=None, alerts=[])


def test_alerts_from_series_and_samples_in_any_order():
    series = [
        ({"alertname": "B"}, [(600.0, 1.0), (660.0, 1.0)]),
        ({"alertname": "C", "service": "host"}, [(30.0, 1.0)]),
        ({"alertname": "A"}, [(180.0, 1.0), (0.0, 1.0), (120.0, 0.0), (60.0, 1.0), (240.0, 0.4)]),
    ]
    # A step that is missing is no end; two are.
    assert [(one["name"], one["start"], one["end"]) for one in kpi.alerts_of(series, STEP)] == [
        ("A", 0.0, 180.0), ("C", 30.0, 30.0), ("B", 600.0, 660.0),
    ]  # fmt: skip


def test_an_alert_ends_where_more_than_two_steps_are_missing():
    for gap, count in ((2 * STEP, 1), (2 * STEP + 1, 2), (3 * STEP, 2)):
        assert len(kpi.alerts_of([({"alertname": "A"}, [(0.0, 1.0), (gap, 1.0)])], STEP)) == count
    assert kpi.alerts_of([({}, [(0.0, 0.5), (60.0, 0.4)])], STEP) == [
        {"name": "", "component": "", "start": 0.0, "end": 0.0}
    ]
    assert kpi.alerts_of([({"alertname": "A"}, [(0.0, 0.4)]), ({"alertname": "B"}, [])], STEP) == []


def test_symptoms_are_alerts_and_none_is_a_cause():
    rules = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "monitoring/alerts").glob("*.yml"))
    names = set(re.findall(r"[A-Z][A-Za-z]+", rules))
    assert len(kpi._SYMPTOMS) > 10 and kpi._SYMPTOMS <= names, kpi._SYMPTOMS - names


def test_samples_have_one_value_for_each_timestamp_in_order():
    samples = [(60.0, 1.0), (0.0, 2.0), (60.0, 3.0), (120.0, 4.0), (-1.0, 5.0)]
    assert kpi.within(samples, 0.0, 120.0) == [(0.0, 2.0), (60.0, 3.0)]


def test_an_outage_is_below_one_half_and_two_steps_are_no_gap():
    found = kpi.outages([(0.0, 0.5), (60.0, 0.4), (180.0, 0.0), (240.0, 0.5)], STEP)
    assert found == [(60.0, 240.0, True)] and found[0].seconds == 180.0
    assert kpi.gaps([(0.0, 1.0), (121.0, 1.0)], 0.0, 121.0, STEP) == [(60.0, 121.0)]


def test_a_time_of_which_nothing_is_known_has_no_availability():
    served = kpi.availability([(0.0, 1.0)], 100.0, 100.0, STEP)
    assert served["availability_percent"] is None and served["known_seconds"] == 0.0 and served["outages"] == []
    served = kpi.availability([(0.0, 1.0), (60.0, 0.0), (120.0, 1.0)], 0.0, 180.0, STEP)
    assert served["outages"] == [{"start": 60.0, "end": 120.0, "seconds": 60.0, "ended": True}]
    assert (served["down_seconds"], served["unknown_seconds"], served["availability_percent"]) == (60, 0, 66.6667)
    assert (served["mttr_seconds"], served["mtbf_seconds"]) == (60.0, 120.0)


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("availability_percent", 99.9, "met"), ("availability_percent", 99.8, "missed"),
        ("p95_seconds", 0.2, "met"), ("p95_seconds", 0.5, "tolerated"), ("p95_seconds", 0.51, "missed"),
        ("error_percent", 0.1, "met"), ("error_percent", 0.2, "missed"),
        ("mttr_seconds", 900, "met"), ("mttr_seconds", 901, "missed"),
        ("database_seconds", 0.05, "met"), ("database_seconds", 0.06, "missed"), ("database_seconds", None, "unknown"),
    ],
)  # fmt: skip
def test_a_limit_is_met_where_it_is_reached(name, value, result):
    metrics = dict.fromkeys(kpi.TARGETS, 0.0)
    metrics.update({"availability_percent": 100.0, "outages": ["one"], name: value})
    found = kpi.results(metrics, kpi.TARGETS)
    assert found.pop(name) == result and set(found.values()) == {"met"}
    metrics.update(outages=[], mttr_seconds=None)
    assert kpi.results(metrics, kpi.TARGETS)["mttr_seconds"] == "met"
    assert kpi.results(dict(metrics, availability_percent=None), kpi.TARGETS)["mttr_seconds"] == "unknown"


def test_targets_of_the_site_replace_those_of_the_project():
    month = kpi.month({}, 0.0, 60.0, STEP, {"p95_seconds": 1.0})
    assert month["targets"] == dict(kpi.TARGETS, p95_seconds=1.0) and (month["start"], month["end"]) == (0.0, 60.0)
    month = kpi.month({"requests": [(0.0, 0.0)], "up": [(0.0, 1.0)]}, 0.0, 60.0, STEP)
    assert (month["requests"], month["error_percent"], month["missing"]) == (
        0,
        0.0,
        ["response_times", "database_seconds"],
    )
