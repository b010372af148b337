"""The checklists: checks of a machine are done, each fault is on its line, nothing is ticked without evidence."""

from __future__ import annotations

import copy
import datetime
import re
from pathlib import Path

import pytest
import shiftmaster_checklist
import yaml
from ansible.module_utils.shiftmaster.diagnosis import history, upkeep
from ansible.module_utils.shiftmaster.diagnosis.setting import PARTS, Setting
from ansible.module_utils.shiftmaster.monitoring import host_metrics, kpi
from ansible.module_utils.shiftmaster.reports import checklist, findings

ROOT = Path(__file__).resolve().parents[3]
MADE = datetime.datetime(2026, 11, 26, 8, 0, tzinfo=datetime.timezone.utc)
JAPANESE = re.compile(r"[぀-ヿ一-鿿]")
LINES = {
    period: yaml.safe_load((ROOT / "checklists" / f"{period}.yml").read_text(encoding="utf-8"))["lines"]
    for period in checklist.PERIODS
}
HEALTHY = yaml.safe_load(
    (Path(__file__).resolve().parents[1] / "diagnosis" / "healthy.yml").read_text(encoding="utf-8")
)
# A quiet morning, with the data that only the checklists need.
QUIET = {
    # This time is that of the query itself.
    "cpu": {"busy_percent": 99.0, "load": [4.1, 0.4, 0.3]},
    "logins": {"status": "ok", "failed": 1, "sources": [{"address": "192.0.2.9", "count": 1}]},
    "updates": {"status": "ok", "waiting": 3, "security": 0, "security_packages": [], "heard_hours_ago": 9.0, "reboot_required": False},
    "rights_changed": {"status": "ok", "events": [], "files": []},
    "accounts": {"status": "ok", "users": {"active": 80, "unused": 0}, "rights_changed": 0, "errors": []},
    "backups": {
        "status": "ok", "verified_hours_ago": 5.4, "unreadable": [],
        "parts": [
            {"name": "database", "daily": True, "hours_ago": 5.5, "bytes": 900, "failed": False},
            {"name": "logical", "daily": False, "hours_ago": 120.0, "bytes": 700, "failed": False},
        ],
    },
    "monitoring": {
        "status": "ok", "alerts": [], "watchdog": True, "targets": 12, "targets_down": [],
        "week": {"p95_seconds": 0.12, "requests": 90000.0, "requests_before": 80000.0, "disk_growth_percent": 0.4, "full_in_days": None},
    },
    "database": {
        "statements_known": True, "slowest_on_average": [], "worst_dead_percent": 3.0, "invalid_indexes": [], "duplicate_indexes": [],
        "rarely_used_indexes": [], "unindexed_keys": [], "bloat": [], "tables": [{"table": "roster", "rows": 40000, "dead_rows": 900}],
    },
    "certificates": {"certificates": [
        {"name": "site", "file": "/x.crt", "days_left": 61.0, "shown": {"days_left": 61.0}},
        {"name": "internal", "file": "/y.crt", "days_left": 300.0}]},
}  # fmt: skip


def changed(base, patch):
    if not isinstance(patch, dict) or not isinstance(base, dict):
        return copy.deepcopy(patch)
    return {**base, **{key: changed(base.get(key), value) for key, value in patch.items()}}


def host(patch=None, functions=("web", "app", "database", "cache", "monitoring", "backup"), name="one"):
    complete = changed(changed(HEALTHY, {"parts": QUIET}), {"parts": patch or {}})
    return dict(complete, host=name, functions=list(functions))


def filled(period, *hosts):
    data = checklist.evaluate(period, LINES[period], list(hosts), findings.topology_of(list(hosts)), MADE)
    return {line["name"]: line for line in data["lines"]}, data


@pytest.mark.parametrize("period", checklist.PERIODS)
def test_every_line_of_a_healthy_host_is_ticked_or_manual(period):
    lines, data = filled(period, host())
    assert {name: line["mark"] for name, line in lines.items() if line["mark"] not in ("good", "person")} == {}
    assert data["count"]["good"] + data["count"]["person"] == len(LINES[period])
    for line in lines.values():
        assert line["mark"] == "person" or all(one["evidence"]["ja"] for one in line["hosts"])
        # Where it has words, it has them in both languages.
        for one in line["hosts"]:
            words = re.search(r"[a-z]{2,} [a-z]{2,}", one["evidence"]["en"])
            assert not words or JAPANESE.search(one["evidence"]["ja"]), one


FAULTS = {
    "services": {"units": {"units": [{"unit": "nginx.service", "required": True, "active": "failed"}]}},
    "application": {"http": {"socket": {"status": 503}}},
    "site": {"http": {"site": {"status": None, "error": "refused"}}},
    "cpu": {"cpu": {"load": [0.1, 2.9, 0.3]}},
    "memory": {"memory": {"usage_percent": 80.0}},
    "disk": {"disk": {"mounts": [{"path": "/", "space_percent": 40.0, "inodes_percent": 95.0, "free_bytes": 1, "holds": []}]}},
    "logins": {"logins": {"failed": 20}},
    "certificate": {"certificates": {"certificates": [
        {"name": "site", "days_left": 61.0, "shown": {"days_left": 12.0}}]}},
    "backups": {"backups": {"parts": [{"name": "database", "daily": True, "hours_ago": 50.0, "bytes": 1, "failed": False}]}},
    "security_updates": {"updates": {"security": 2, "security_packages": ["openssl"]}},
    "errors": {"logs": {"files": {"application": {"problems": [{"count": 2, "exception": "ValueError: x", "text": "y"}]}}}},
    "alerts": {"monitoring": {"alerts": [{"name": "DiskFullSoon", "severity": "warning", "instance": "one"}]}},
    "monitoring": {"monitoring": {"targets_down": ["node one"]}},
}  # fmt: skip


def test_a_disk_without_inodes_is_reported_on_its_line():
    lines, _data = filled("morning", host(FAULTS["disk"]))
    assert lines["disk"]["mark"] == "bad" and "inodes 95.0 %" in lines["disk"]["hosts"][0]["evidence"]["ja"]
    lines, _data = filled("morning", host())
    assert "inodes" not in lines["disk"]["hosts"][0]["evidence"]["en"]


MORE_FAULTS = [
    # The maintenance page is shown: the health page responds, and users are not served.
    ("morning", "site", {"http": {"page": {"status": 503}}}),
    ("evening", "backup_room", {"disk": {"mounts": [{"path": "/", "space_percent": 81.0, "free_bytes": 5}]}}),
    (
        "evening",
        "backup_last",
        {"backups": {"parts": [{"name": "database", "daily": True, "hours_ago": 1.0, "bytes": 1, "failed": True}]}},
    ),
    ("evening", "backup_source", {"database": {"use": {"percent": 95.0}}}),
    ("evening", "logins", {"logins": {"failed": 200}}),
    ("evening", "rights_host", {"rights_changed": {"events": ["usermod[1]: add 'x' to group 'sudo'"]}}),
    ("evening", "rights_application", {"accounts": {"rights_changed": 2}}),
    ("weekly", "latency", {"monitoring": {"week": {"p95_seconds": 0.9}}}),
    ("weekly", "traffic", {"monitoring": {"week": {"requests": 9000.0}}}),
    ("weekly", "disk_trend", {"monitoring": {"week": {"full_in_days": 12.0}}}),
    ("weekly", "statements", {"database": {"slowest_on_average": [{"mean_ms": 1500.0, "query": "SELECT"}]}}),
    ("weekly", "dead_rows", {"database": {"worst_dead_percent": 33.0}}),
    ("weekly", "freezing", {"database": {"oldest_age": 1100000000}}),
    ("weekly", "vulnerabilities", {"updates": {"security": 1}}),
    ("weekly", "restore_test", {"backups": {"verified_hours_ago": None}}),
    ("monthly", "indexes_whole", {"database": {"duplicate_indexes": [{"indexes": ["a", "b"], "bytes": 5}]}}),
    ("monthly", "indexes_used", {"database": {"rarely_used_indexes": [{"index": "a", "scans": 2, "bytes": 20000000}]}}),
    (
        "monthly",
        "indexes_missing",
        {"database": {"unindexed_keys": [{"table": "t", "constraint": "c", "bytes": 20000000}]}},
    ),
    ("monthly", "bloat", {"database": {"bloat": [{"table": "t", "bytes": 300000000, "bloat_bytes": 200000000}]}}),
    ("monthly", "accounts", {"accounts": {"users": {"active": 80, "unused": 4}}}),
]
ALL_FAULTS = [("morning", name, patch) for name, patch in FAULTS.items()] + MORE_FAULTS


def test_every_automatic_line_has_its_fault():
    responded = {(period, line["name"]) for period, lines in LINES.items() for line in lines if "person" not in line}
    # A missing check for lack of time is no fault.
    assert {(period, name) for period, name, _patch in ALL_FAULTS} == responded - {("monthly", "files")}


@pytest.mark.parametrize(
    ("period", "name", "patch"), ALL_FAULTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_fault_is_reported_on_its_line(period, name, patch):
    lines, _data = filled(period, host(patch))
    assert lines[name]["mark"] == "bad", lines[name]
    seen = lines[name]["hosts"][0]["evidence"]
    assert seen["en"] and seen["ja"] and not JAPANESE.search(seen["en"])


def test_seven_faults_at_once_are_seven_lines():
    seven = {}
    for name in ("services", "cpu", "disk", "logins", "security_updates", "errors", "alerts"):
        seven = changed(seven, FAULTS[name])
    lines, data = filled("morning", host(seven))
    assert {name for name, line in lines.items() if line["mark"] == "bad"} == {
        "services", "cpu", "disk", "logins", "security_updates", "errors", "alerts",
    }  # fmt: skip
    assert data["count"] == {"good": 6, "bad": 7, "unknown": 0, "person": 0}


@pytest.mark.parametrize("period", checklist.PERIODS)
def test_nothing_is_ticked_without_evidence(period):
    gone = findings.host_of(
        "one", ["web", "app", "database", "cache", "monitoring", "backup"], {"unreachable": True, "msg": "no route"}
    )
    lines, _data = filled(period, gone)
    assert {line["mark"] for line in lines.values()} <= {"unknown", "person"}
    assert all("no route" in one["evidence"]["ja"] for line in lines.values() for one in line["hosts"])


@pytest.mark.parametrize("period", checklist.PERIODS)
def test_parts_that_failed_or_are_empty_tick_nothing(period):
    for state in ("failed", "hung", "absent"):
        broken = {name: {"status": state, "error": "why"} for name in PARTS}
        complete = host()
        complete["parts"] = broken
        lines, _data = filled(period, complete)
        assert {line["mark"] for line in lines.values()} <= {"unknown", "person"}
    empty = host()
    empty["parts"] = {name: {"status": "ok"} for name in PARTS}
    lines, _data = filled(period, empty)
    assert {name for name, line in lines.items() if line["mark"] == "good"} == set()


def test_a_good_line_without_evidence_is_not_ticked():
    line = {
        "name": "x",
        "text": {"en": "x", "ja": "x"},
        "needs": ["cpu"],
        "good": "cpu.busy_percent < 70",
        "evidence": "{{ gone }}",
    }
    assert checklist.evaluate_host(line, host(), {})["mark"] == "unknown"
    idle = host({"cpu": {"busy_percent": 12.0}})
    assert checklist.evaluate_host(dict(line, evidence="{{ cpu.busy_percent }}"), idle, {})["mark"] == "good"
    assert checklist.evaluate_host(line, idle, {})["mark"] == "unknown"


@pytest.mark.parametrize(
    "patch",
    [
        {"parts": []},
        {"parts": [{"name": "files", "daily": True, "hours_ago": 1.0, "bytes": 1, "failed": False}]},
        {"parts": [{"name": "database", "daily": True, "hours_ago": None, "bytes": None, "failed": True}]},
        {"parts": [{"name": "database", "daily": True, "hours_ago": 1.0, "bytes": 0, "failed": False}]},
        {"unreadable": ["x.json is damaged"]},
    ],
    ids=["none", "no database", "never good", "empty", "damaged"],
)
def test_an_invalid_backup_is_not_ticked(patch):
    lines, _data = filled("morning", host({"backups": patch}))
    assert lines["backups"]["mark"] == "bad", lines["backups"]


STOPPED = {"clusters": [{"version": "17", "name": "main", "runs": False, "start": "auto"}]}
OLD = {"version": "15", "name": "main", "runs": False, "start": "manual"}
RUNS = {"version": "17", "name": "main", "runs": True, "start": "auto"}


@pytest.mark.parametrize(
    ("patch", "mark"),
    [
        ({"clusters": STOPPED}, "bad"),
        ({"clusters": {"clusters": [OLD, RUNS]}}, "good"),
        ({"clusters": {"status": "hung", "clusters": None}}, "unknown"),
        ({"clusters": {"clusters": []}, "units": {"units": []}}, "unknown"),
        ({"units": {"units": [{"unit": "cron.service", "required": False, "active": "active"}]}}, "good"),
    ],
    ids=["stopped", "old", "hung", "nothing is expected", "a cluster alone"],
)
def test_every_service_is_also_postgresql_and_nothing_is_no_service(patch, mark):
    lines, _data = filled("morning", host(patch, functions=["database"]))
    assert lines["services"]["mark"] == mark, lines["services"]
    if mark == "bad":
        assert "17/main" in lines["services"]["hosts"][0]["evidence"]["ja"]


@pytest.mark.parametrize(
    ("files", "mark"),
    [
        ({}, "unknown"),
        ({"application": {"problems": [], "reached": False}}, "unknown"),
        ({"application": {"problems": [], "reached": False, "error": "Permission denied"}}, "unknown"),
        ({"application": {"problems": [{"count": 1, "exception": "x", "text": "y"}], "reached": False}}, "bad"),
        ({"application": {"problems": [], "reached": True}}, "good"),
    ],
)
def test_a_night_is_quiet_only_where_its_logs_were_read(files, mark):
    complete = host(functions=["app"])
    complete["parts"]["logs"]["files"] = files
    lines, _data = filled("morning", complete)
    assert lines["errors"]["mark"] == mark
    assert "errors" not in filled("morning", host(functions=["monitoring"]))[0]


@pytest.mark.parametrize(
    ("period", "name", "patch", "mark"),
    [
        (
            "evening",
            "backup_source",
            {"database": {"status": "failed", "reason": "stopped", "error": "refused"}},
            "bad",
        ),
        (
            "evening",
            "backup_source",
            {"database": {"status": "failed", "reason": "missing", "error": "no psql"}},
            "unknown",
        ),
        (
            "morning",
            "monitoring",
            {"monitoring": {"status": "failed", "reason": "prometheus", "error": "silent"}},
            "bad",
        ),
        ("morning", "monitoring", {"monitoring": {"status": "failed", "error": "FileNotFoundError"}}, "unknown"),
        ("weekly", "dead_rows", {"database": {"worst_dead_percent": None}}, "unknown"),
        ("weekly", "freezing", {"database": {"oldest_age": None}}, "unknown"),
        ("weekly", "traffic", {"monitoring": {"week": {"requests_before": 0.0}}}, "unknown"),
        ("weekly", "vulnerabilities", {"updates": {"heard_hours_ago": 200.0}}, "bad"),
        ("monthly", "files", {"largest": {"complete": False}}, "unknown"),
    ],
)
def test_a_part_without_a_value_is_a_fault_or_unknown(period, name, patch, mark):
    lines, _data = filled(period, host(patch))
    assert lines[name]["mark"] == mark, lines[name]
    assert lines[name]["hosts"][0]["evidence"]["en"]


def test_the_trend_of_disks_is_that_of_every_filesystem(monkeypatch, tmp_path):
    requested = []

    class Silent:
        def __init__(self, *_arguments):
            pass

        def now(self, query):
            requested.append(query)
            return []

        value = now

    monkeypatch.setattr(history, "Prometheus", Silent)
    (tmp_path / "password").write_text("x")
    place = {"url": "https://x", "user": "x", "password_file": str(tmp_path / "password")}
    upkeep.monitoring(Setting({"prometheus": place}))
    of_disks = [query for query in requested if "node_filesystem" in query]
    assert len(of_disks) == 2
    for query in of_disks:
        assert "mountpoint" not in query and query.count("fstype!~") == query.count("node_filesystem")


def test_one_host_fails_the_line_of_all_and_an_unreachable_one_makes_it_unknown():
    bad = host(FAULTS["cpu"], name="two")
    gone = findings.host_of("three", ["app"], {"unreachable": True, "msg": "no route"})
    lines, _data = filled("morning", host(), bad)
    assert lines["cpu"]["mark"] == "bad" and [one["mark"] for one in lines["cpu"]["hosts"]] == ["good", "bad"]
    lines, _data = filled("morning", host(), gone)
    assert lines["cpu"]["mark"] == "unknown"


def test_lines_of_functions_without_hosts_are_omitted():
    lines, _data = filled("morning", host(functions=["app"]))
    assert "alerts" not in lines and "backups" not in lines and "application" in lines


@pytest.mark.parametrize("period", checklist.PERIODS)
def test_lines_are_complete(period):
    names = [line["name"] for line in LINES[period]]
    assert len(names) == len(set(names))
    for line in LINES[period]:
        assert set(line["text"]) == {"en", "ja"} and JAPANESE.search(line["text"]["ja"])
        assert ("person" in line) != ("good" in line and "evidence" in line and "needs" in line)
        assert set(line.get("needs", [])) <= set(PARTS)


# --- text, page, metrics -----------------------------------------------------------------------------------------------


METRICS_UP = [(60.0 * number, 0.0 if 100 <= number < 110 else 1.0) for number in range(1000)]
METRICS = kpi.month({"up": METRICS_UP}, 0.0, 120000.0, 60.0)
METRICS["outages"][0]["began"] = "01-01 10:40"


@pytest.mark.parametrize("language", findings.LANGUAGES)
def test_text_and_page_contain_the_metrics_and_the_missing_ones(language, run_module, tmp_path):
    results = [
        {"host": "one", "functions": ["app", "database", "backup", "monitoring"], "result": {"evidence": host()}}
    ]
    directory = tmp_path / "x"
    response = run_module(
        shiftmaster_checklist, results=results, lines=LINES["monthly"], period="monthly", language=language, metrics=METRICS,
        series={"requests": [[0, 5], [86400, 7]]}, directory=str(directory),
    )  # fmt: skip
    text = response["text"]
    assert ("Monthly checklist" if language == "en" else "月次チェックリスト") in text
    assert ("no data" if language == "en" else "データなし") in text
    assert ("requests" if language == "en" else "リクエスト数") in text
    assert "99.000 %" in text and "10 min" in text
    assert ("16.7 h were not measured" if language == "en" else "16.7 時間分は測定されておらず") in text
    assert "<svg" in response["page"] and "<script" not in response["page"] and 'name="viewport"' in response["page"]
    assert ("☐" in text) and response["bad"] == []
    assert {path.name for path in directory.iterdir()} == {"checklist.txt", "checklist.json", "checklist.html"}


def test_the_page_is_in_its_readers_language(run_module):
    metrics = kpi.month({"up": METRICS_UP}, 0.0, 120000.0, 60.0)
    metrics["outages"][0]["began"] = "11-03 09:15"
    results = [{"host": "one", "functions": ["app", "backup"], "result": {"evidence": host()}}]
    response = run_module(
        shiftmaster_checklist, results=results, lines=LINES["monthly"], period="monthly", metrics=metrics,
        series={"availability_percent": [[0, 99.0], [86400 * 9, 100.0]]},
    )  # fmt: skip
    assert "測定データなし: リクエスト数、応答時間、データベース応答" in response["text"].replace(", ", "、")
    assert "11-03 09:15" in response["text"] and "11-03 09:15" in response["page"]
    assert "可用性(%)" in response["page"] and "availability_percent" not in response["page"]
    assert re.search(r">01-10<", response["page"]), "the month's axis has days"


def test_times_are_in_the_hosts_zone_which_is_named(run_module):
    japan = dict(host(), zone={"name": "JST", "offset_seconds": 32400})
    results = [{"host": "one", "functions": ["app"], "result": {"evidence": japan}}]
    series = {"availability_percent": [[1793458800, 99.0], [1793458800 + 86400 * 9, 100.0]]}
    response = run_module(
        shiftmaster_checklist, results=results, lines=LINES["monthly"], period="monthly", metrics=METRICS, series=series
    )
    assert response["checklist"]["made"].endswith("+09:00") and response["checklist"]["zone"]["name"] == "JST"
    for text in (response["text"], response["page"]):
        assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d JST \(UTC\+09:00\)", text)
    # Midnight of 1 November in Japan, which is still October in UTC.
    assert ">11-01<" in response["page"] and ">11-10<" in response["page"]


def test_days_of_a_month_are_those_of_its_zone():
    start = 1793458800.0
    assert checklist.daily([(start, 1.0), (start + 86399, 0.0), (start + 86400, 1.0)], start) == [
        (start, 0.5), (start + 86400, 1.0),
    ]  # fmt: skip


def errors_line(first, last):
    deploys = [
        {"event": "cutover_started", "time": "2026-11-29T06:47:35Z"},
        {"event": "gate_failed", "time": "2026-11-29T06:48:00Z"},
    ]
    problem = {"count": 3, "exception": "ValueError: x", "text": "y", "first": first, "last": last}
    files = {"application": {"problems": [problem], "reached": True}}
    there = host()
    there["parts"]["logs"] = {"status": "ok", "files": files}
    there["parts"]["release"] = {**there["parts"].get("release", {}), "status": "ok", "deploys": deploys}
    (line,) = [one for one in LINES["morning"] if one["name"] == "errors"]
    return checklist.evaluate_host(line, there, {})


def test_errors_of_a_rejected_version_are_no_alarm():
    began = datetime.datetime(2026, 11, 29, 6, 47, 35, tzinfo=datetime.timezone.utc).timestamp()
    during, longer = errors_line(began + 1, began + 20), errors_line(began + 1, began + 3600)
    assert during["mark"] == "good" and JAPANESE.search(during["evidence"]["ja"])
    assert longer["mark"] == "bad" and "3 x ValueError" in longer["evidence"]["en"]


def test_no_separator_follows_the_last_entry():
    (line,) = [one for one in LINES["morning"] if one["name"] == "disk"]
    assert all(text[-1] not in ";, " for text in checklist.evaluate_host(line, host(), {})["evidence"].values())


@pytest.mark.parametrize("problem", ["Prometheus is silent", ""])
def test_the_reason_for_missing_metrics_is_on_the_page_and_in_the_data(run_module, problem):
    results = [{"host": "one", "functions": ["app"], "result": {"evidence": host()}}]
    response = run_module(
        shiftmaster_checklist, results=results, lines=LINES["monthly"], period="monthly", metrics_problem=problem
    )
    output = response["checklist"]["metrics_problem"]
    assert (
        JAPANESE.search(output["ja"]) and not JAPANESE.search(output["en"]) and (problem or "no host") in output["en"]
    )
    assert output["ja"] in response["text"] and output["ja"] in response["page"]
    daily = run_module(shiftmaster_checklist, results=results, lines=LINES["morning"], period="morning")
    assert "metrics_problem" not in daily["checklist"]


def test_the_reason_for_missing_metrics_is_reported(run_module):
    results = [{"host": "one", "functions": ["app"], "result": {"evidence": host()}}]
    response = run_module(
        shiftmaster_checklist,
        results=results,
        lines=LINES["monthly"],
        period="monthly",
        metrics_problem="Prometheus is silent",
    )
    assert "Prometheus is silent" in response["text"]


# --- what is only collected for them -------------------------------------------------------------------------------------


def test_failed_logins_are_counted_by_source():
    # Each attempt once, regardless of the number of its log lines.
    text = (
        "Invalid user x from 192.0.2.9 port 1\npam_unix(sshd:auth): authentication failure; rhost=192.0.2.9\n"
        "Failed password for invalid user x from 192.0.2.9 port 1 ssh2\nFailed password for root from 192.0.2.9 port 2 ssh2\n"
        "pam_unix(sudo:auth): authentication failure; logname= uid=1000 rhost=  user=x\n"
        "x : 3 incorrect password attempts ; TTY=pts/0\n\n"
    )
    found = upkeep.parse_logins(text)
    assert found == {"failed": 3, "sources": [{"address": "192.0.2.9", "count": 2}]}


def test_security_updates_are_distinguished_from_others():
    text = (
        "Inst openssl [3.5.1-1] (3.5.1-1+deb13u2 Debian-Security:13/stable-security [amd64])\n"
        "Inst vim [2:9.1] (2:9.2 Debian:13.2/stable [amd64])\nConf openssl (3.5.1 Debian-Security:13 [amd64])\n"
    )
    assert host_metrics.parse_updates(text) == {"waiting": 2, "security": 1, "security_packages": ["openssl"]}
