"""The rules of diagnosis/ and their engine: each fires on its fault, not near it; roots come before symptoms."""

from __future__ import annotations

import copy
import datetime
import functools
import getpass
import gzip
import pickle
import re
import subprocess
from pathlib import Path

import offenders
import pytest
import shiftmaster_checklist
import shiftmaster_findings
import yaml
from ansible.module_utils.shiftmaster.diagnosis import logs
from ansible.module_utils.shiftmaster.diagnosis.setting import PARTS
from ansible.module_utils.shiftmaster.reports import findings, findings_report

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parents[1] / "diagnosis"
JAPANESE = re.compile(r"[぀-ヿ一-鿿]")


@functools.cache
def rules() -> list:
    return [
        rule
        for path in sorted((ROOT / "diagnosis").glob("*.yml"))
        for rule in yaml.safe_load(path.read_text(encoding="utf-8"))["rules"]
    ]


RULES = {rule["name"]: rule for rule in rules()}
CASES = yaml.safe_load((HERE / "cases.yml").read_text(encoding="utf-8"))
HEALTHY = yaml.safe_load((HERE / "healthy.yml").read_text(encoding="utf-8"))


def changed(base, patch):
    """A copy with a patch's values in it; None for `parts` removes all."""
    if not isinstance(patch, dict) or not isinstance(base, dict):
        return copied(patch)
    return copied({**base, **{key: {} if key == "parts" and value is None else changed(base.get(key), value)
                              for key, value in patch.items()}})  # fmt: skip


def copied(value):
    """The same as copy.deepcopy(), in a fifth of the time."""
    return pickle.loads(pickle.dumps(value))


def host(patch=None, **more):
    return dict(changed(HEALTHY, patch or {}), **more)


def found(*hosts, area="all", **expectations):
    return findings.find(rules(), list(hosts), area, expectations)


@functools.cache
def of_case(name):
    return found(host(CASES[name]["fires"]), **CASES[name].get("topology", {}))


def names(result):
    return [finding["rule"] for finding in result]


# --- each rule --------------------------------------------------------------------------------------------------------


def test_every_rule_has_its_cases_and_every_case_its_rule():
    assert set(CASES) == set(RULES)
    assert len(RULES) == len(rules()), "a name is used twice"


def test_a_healthy_host_has_no_finding():
    assert found(host(), beat_expected=True) == []


@offenders.each(CASES)
def test_rule_fires_on_its_fault_and_comes_first(name):
    case = CASES[name]
    result = of_case(name)
    assert name in names(result)
    assert result[0]["rule"] == case.get("first", name), names(result)


@offenders.each([name for name in CASES if CASES[name].get("variants")])
def test_rule_fires_on_each_form_of_its_fault(name):
    assert [found(host(patch))[0]["rule"] for patch in CASES[name]["variants"]] == [name] * len(CASES[name]["variants"])


@offenders.each(CASES)
def test_commands_contain_the_values_of_their_fault(name):
    """An unquoted value that is no plain word is replaced by a question mark: then the command does not work."""
    commands = [line for finding in of_case(name) for line in finding["fix"]]
    assert not [line for line in commands if re.search(r"\w\?|\?\w", line)]


# A unit that ends at its start, as systemd shows it between two samples.
ENDS = {
    "unit": "shiftmaster-worker@blue.service", "required": True, "active": "active", "result": "success", "restarts": 4,
    "active_seconds_ago": 0.4, "stopped": 0,
    "last_words": [
        "Starting shiftmaster-worker@blue.service - ShiftMaster Celery worker (blue)...",
        "ModuleNotFoundError: No module named 'celery'",
        "shiftmaster-worker@blue.service: Main process exited, code=exited, status=1/FAILURE",
        "shiftmaster-worker@blue.service: Failed with result 'exit-code'.",
        "shiftmaster-worker@blue.service: Scheduled restart job, restart counter is at 4.",
        "Starting shiftmaster-worker@blue.service - ShiftMaster Celery worker (blue)...",
        "Started shiftmaster-worker@blue.service - ShiftMaster Celery worker (blue).",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "rule", "change"),
    [
        ("worker", "WorkerDown", {}),
        ("worker", "WorkerDown", {"active": "activating", "result": "exit-code"}),
        ("beat", "BeatDown", {}),
    ],
)
def test_a_unit_that_exits_at_its_start_is_always_down_and_reported_with_its_message(kind, rule, change):
    unit = {**ENDS, "unit": f"shiftmaster-{kind}@blue.service", **change}
    first = found(host({"parts": {"units": {"units": [unit]}}}), beat_expected=True)[0]
    assert first["rule"] == rule and "No module named 'celery'" in first["cause"]["en"]
    assert "ends again and again" in first["cause"]["en"].lower() and "4" in first["cause"]["ja"]


def test_a_worker_that_was_once_started_again_is_not_down():
    unit = {**ENDS, "active_seconds_ago": 400.0}
    assert "WorkerDown" not in names(found(host({"parts": {"units": {"units": [unit]}}})))


@pytest.mark.parametrize(
    ("obstacle", "fix"),
    [
        ({"path": "/var/log/shiftmaster", "user": "shiftmaster", "need": "rwx"}, "ansible-playbook deploy.yml --tags app"),
        ({"path": "/var/log/shiftmaster/error.log", "user": "shiftmaster", "need": "w"}, "chown shiftmaster: /var/log/shiftmaster/error.log"),
        ({"path": "/var/www/shiftmaster/releases/x/static", "user": "www-data", "need": "rx"}, "chmod o+rx /var/www/shiftmaster/releases/x/static"),
        ({"path": "/var/log", "user": "shiftmaster", "need": "x"}, "chmod o+rx /var/log"),
        ({"path": "/var/log/shiftmaster", "user": "shiftmaster", "problem": "read-only", "mount": "/var/log/shiftmaster"},
         "mount -o remount,bind,rw /var/log/shiftmaster"),
    ],
)  # fmt: skip
def test_the_suggested_command_restores_the_rights(obstacle, fix):
    obstacle = {"problem": "rights", "mode": "0700", "owner": "root:root", **obstacle}
    first = found(host({"parts": {"rights": {"obstacles": [obstacle]}}}))[0]
    assert (first["rule"], first["fix"][-1]) == ("RightsWrong", fix)


@pytest.mark.parametrize(
    ("reason", "message", "words"),
    [
        ("connections", 'FATAL: too many connections for role "shiftmaster_a"', "CONNECTION LIMIT"),
        ("refusal", 'FATAL: role "shiftmaster_a" is not permitted to log in', "not permitted to log in"),
    ],
)
def test_a_login_that_only_the_database_rejects_is_reported_with_its_message(reason, message, words):
    login = {"works": False, "reason": reason, "message": message}
    first = found(host({"parts": {"login": login, "http": {"socket": {"status": 503}}}}))[0]
    assert first["rule"] == "DatabaseLoginFails" and words in first["cause"]["en"]
    commands = [command for command in first["fix"] if "pg_roles" in command or "CONNECTION LIMIT -1" in command]
    assert len(commands) == (2 if reason == "connections" else 1)


def test_a_setting_missing_in_an_older_release_is_no_removed_secret():
    first = found(host({"parts": {"environment": {"missing": ["PGSSLROOTCERT"], "edited": False}}}))[0]
    assert (first["rule"], first["severity"]) == ("SettingWrong", "warning")
    assert "PGSSLROOTCERT" in first["title"]["en"] and "missing: PGSSLROOTCERT" in first["evidence"][0]


def test_a_database_that_was_set_to_reading_only_is_found():
    first = found(host({"parts": {"database": {"server": {"refuses_writes": True}}}}))[0]
    assert first["rule"] == "DatabaseReadOnly" and "default_transaction_read_only" in first["cause"]["en"]
    assert "RESET default_transaction_read_only" in first["fix"][0] and "standby" not in str(first)


def test_a_role_that_was_set_to_reading_only_is_found():
    own = [{"role": "shiftmaster_abc", "database": "", "setting": "default_transaction_read_only=on"}]
    first = found(host({"parts": {"database": {"own_settings": own}}}))[0]
    assert first["rule"] == "DatabaseReadOnly" and "ALTER ROLE shiftmaster_abc RESET" in first["fix"][0]
    # Another role may read only.
    assert found(host({"parts": {"database": {"own_settings": [dict(own[0], role="reports")]}}})) == []


def test_a_filesystem_that_an_error_made_read_only_explains_failed_writes():
    obstacle = {"path": "/var/log/shiftmaster", "user": "shiftmaster", "problem": "read-only", "mount": "/"}
    parts = copy.deepcopy(CASES["DiskReadOnly"]["fires"]["parts"])
    result = found(host({"parts": {**parts, "rights": {"obstacles": [obstacle]}}}))
    assert [one["rule"] for one in result if one["root"]] == ["DiskReadOnly"]
    # A file closed by its mode was closed by a user.
    result = found(host({"parts": {**parts, "rights": {"obstacles": [dict(obstacle, problem="rights", need="w")]}}}))
    assert {one["rule"] for one in result if one["root"]} == {"DiskReadOnly", "RightsWrong"}


@pytest.mark.parametrize(("seconds_ago", "shown"), [(30, True), (3600, False)])
def test_old_lines_of_a_log_are_no_evidence_of_a_current_fault(seconds_ago, shown):
    """Logs are read back for hours; a site that fails since minutes has another reason than the errors before."""
    at = host()["at"]
    old = {"count": 1, "first": 0.0, "last": at - seconds_ago, "text": "[error] upstream gone", "exception": "OldError: x", "where": ""}  # fmt: skip
    new = dict(old, last=at - 1, text="[ERROR] new", exception="NewError: y")
    files = {"nginx": {"problems": [old]}, "application": {"problems": [old]}}
    unhealthy = {
        "http": {"socket": {"status": 500, "body": "the body"}, "site": {"status": 500, "where": "x", "body": ""}}
    }
    result = {one["rule"]: one for one in found(host({"parts": {**unhealthy, "logs": {"files": files}}}))}
    assert result["SiteErrors"]["evidence"] == (["[error] upstream gone"] if shown else [])
    for language in findings.LANGUAGES:
        assert result["ApplicationErrors"]["cause"][language] == ("OldError: x" if shown else "the body")
    parts = copy.deepcopy(CASES["ErrorsSinceDeploy"]["fires"]["parts"])
    parts["logs"] = {"files": {"application": {"problems": [new, old]}}}
    result = {one["rule"]: one for one in found(host({"parts": parts}))}
    assert ("OldError" in str(result["ErrorsSinceDeploy"]["evidence"])) == shown


@pytest.mark.parametrize("state", ["active", "idle in transaction"])
def test_a_lock_that_hangs_every_page_is_the_first_finding(state):
    """And a restart of the application, which would not help, is no advice of a root."""
    holder = {"pid": 77, "state": state, "state_seconds": 40, "query_seconds": 40, "query": "LOCK TABLE x", "role": "r",
              "client": "local", "application": "psql", "holds_up": [80, 81]}  # fmt: skip
    hung = {"status": None, "error": "no response within 4 s", "reason": "timeout", "where": "https://x"}
    parts = {
        "database": {"blockers": [holder], "blocked": [{"pid": 80, "query": "SELECT 1", "query_seconds": 8}]},
        "http": {"socket": hung, "deep": hung, "local": hung, "site": hung},
    }
    result = found(host({"parts": parts}))
    assert result[0]["rule"] == {"active": "DatabaseLockWait"}.get(state, "DatabaseLockHeldByIdle"), names(result)
    assert result[0]["severity_of_all"] == "critical" and "77" in result[0]["fix"][0]
    assert [one["rule"] for one in result if one["root"]] == [result[0]["rule"]]


@pytest.mark.parametrize(
    ("page", "rule"),
    [({"status": None, "error": "no response within 4 s"}, "SiteDown"), ({"status": 500, "body": "x"}, "SiteErrors")],
)
def test_a_page_that_fails_while_all_health_checks_pass_is_the_first_finding(page, rule):
    first = found(host({"parts": {"http": {"page": dict(page, where="https://localhost")}}}))[0]
    assert (first["rule"], first["severity"]) == (rule, "critical") and "page" in first["title"]["en"]


@pytest.mark.parametrize(("page", "fires"), [("/roster/", True), ("/health/deep/", False)])
def test_a_health_page_that_failed_while_something_restarted_is_no_failure_of_users(page, fires):
    failing = {"page": page, "status": 503, "errors": 5, "requests": 6, "often": True, "new": False, "own_errors": 5,
               "first": 1799999900.0, "last": 1799999910.0, "seconds": 0.1}  # fmt: skip
    parts = {"requests": {"recent": {"requests": 1100, "errors": 5, "failing": [failing]}}}
    assert ("RequestsFail" in names(found(host({"parts": parts})))) is fires


FAILED_NEW = CASES["ErrorsSinceDeploy"]["fires"]["parts"]


@pytest.mark.parametrize(
    "interruption",
    [
        {"kills": {"kills": [{"at": 1799999985.0, "name": "gunicorn", "unit": "", "pid": 9}]}},
        {"units": {"units": [dict(ENDS, restarts=0, active_at=1799999985.0, active_seconds_ago=15.0)]}},
    ],
    ids=["killed", "restarted"],
)
def test_errors_around_a_kill_or_a_start_are_no_reason_for_a_rollback(interruption):
    result = found(host({"parts": {**copy.deepcopy(FAILED_NEW), **interruption}}))
    assert "ErrorsSinceDeploy" not in names(result)
    assert "rollback.yml" not in str([one["fix"] for one in result])


@pytest.mark.parametrize("cause", ["DatabaseStopped", "RedisDown", "SecretMissing", "DiskFull", "MaintenanceOn"])
def test_no_rollback_is_recommended_first_while_another_cause_is_known(cause):
    parts = {**copy.deepcopy(FAILED_NEW), **copy.deepcopy(CASES[cause]["fires"]["parts"])}
    result = found(host({"functions": ["web", "app", "database", "cache"], "parts": parts}))
    assert "ErrorsSinceDeploy" not in [one["rule"] for one in result if one["root"]], names(result)


def test_failed_requests_without_a_known_cause_are_the_first_finding():
    first = of_case("RequestsFail")[0]
    assert (first["rule"], first["severity"]) == ("RequestsFail", "critical") and "/roster/" in first["title"]["en"]
    assert "rollback" not in str(first["fix"])


EDITED = {"path": "/etc/nginx/sites-available/own", "at": 1799999000.0, "in_release": False}


def test_a_symptom_without_a_known_cause_lists_what_was_changed():
    slow = {"requests": {"recent": {"p95_seconds": 9.0}}, "changes": {"files": [EDITED]}}
    (first,) = found(host({"parts": slow}))
    assert first["rule"] == "ApplicationSlow" and "/etc/nginx/sites-available/own" in str(first["evidence"])
    assert "ansible-playbook deploy.yml --tags nginx" in first["fix"]
    deep = {
        "status": 200,
        "parts": {"migrations": {"status": "healthy", "error": "", "unknown": ["roster.0099_later"]}},
    }
    (first,) = found(host({"parts": {**slow, "http": {"deep": deep}}}))
    assert all("roster.0099_later" in str(first[field]) for field in ("evidence", "evidence_ja"))
    # With a known cause it is no cause; and without a symptom it is not reported.
    parts = {**slow, **copy.deepcopy(CASES["UnitThrottled"]["fires"]["parts"]), "changes": {"files": [EDITED]}}
    caused = found(host({"parts": parts}))
    assert caused[0]["rule"] == "UnitThrottled" and EDITED["path"] not in str([one["evidence"] for one in caused])
    assert found(host({"parts": {"changes": {"files": [EDITED]}}})) == []


def test_pages_are_slower_than_before_is_a_symptom_but_for_a_host_with_too_much_to_do():
    slower = {"requests": {"recent": {"p95_seconds": 0.8, "slower": True}}}
    assert names(found(host({"parts": slower}))) == ["ApplicationSlow"]
    assert found(host({"parts": {**slower, "cpu": {"load_per_processor": 8.0}}})) == []


@pytest.mark.parametrize(("hours", "first"), [(0.1, "ReleaseEdited"), (30, "NginxDown")])
def test_an_edit_of_long_ago_explains_no_fault_of_now(hours, first):
    parts = copy.deepcopy(CASES["NginxDown"]["fires"]["parts"])
    release = copy.deepcopy(CASES["ReleaseEdited"]["fires"]["parts"])
    now = 1800000000.0
    release["changes"]["files"][0]["at"] = now - hours * 3600
    release["requests"]["recent"]["failing"][0]["first"] = now - 60
    assert names(found(host({"parts": {**parts, **release}})))[0] == first


def test_a_statement_that_reads_a_complete_table_explains_slower_pages():
    """Its average is far below a second: an index was dropped, and the pages take ten times as long."""
    parts = {
        "requests": {"recent": {"p95_seconds": 0.8, "slower": True}},
        "database": {"scanning_statements": [{"table": "roster_assignment", "mean_ms": 450.0, "rows": 300000, "scans": 900,
                                              "scanned_rows": 270000000, "invalid_index": "", "column": "", "query": "SELECT x", "calls": 900}]},
    }  # fmt: skip
    result = found(host({"parts": parts}))
    assert (
        names(result) == ["DatabaseSlowStatement", "ApplicationSlow"]
        and "roster_assignment" in result[0]["title"]["en"]
    )
    parts["requests"] = {"recent": {"p95_seconds": 0.2, "slower": False}}
    assert found(host({"parts": parts})) == []


def test_commits_that_wait_in_a_cluster_are_its_own_rules_to_explain():
    parts = copy.deepcopy(CASES["DatabaseCommitsWait"]["fires"]["parts"])
    assert "DatabaseCommitsWait" in names(found(host({"parts": parts})))
    del parts["cluster"]
    assert "DatabaseCommitsWait" not in names(found(host({"parts": parts})))


LAGGING = [
    {"name": "one", "role": "leader", "state": "running", "timeline": 1},
    {"name": "two", "role": "replica", "state": "running", "timeline": 1},
]


@pytest.mark.parametrize(
    "parts",
    [
        # Patroni calls a standby that receives nothing running.
        {"cluster": {"role": "replica", "members": LAGGING}},
        {
            "cluster": {"works": False, "message": "refused"},
            "database": {"status": "failed", "reason": "stopped", "error": "no server"},
            "clusters": {"clusters": [{"version": "17", "name": "main", "port": 5432, "runs": False, "altered": []}]},
        },
    ],
)
def test_a_member_that_does_not_follow_is_named_while_another_one_is_the_primary(parts):
    alone = {name: {"status": "absent", "beats": []} for name in ("celery", "virtual_address", "members")}
    refused = {"host": "two", "port": 5432, "function": "database", "error": "refused", "reason": "refused"}
    first = host({"parts": {"peers": {"peers": [refused]}}})
    result = found(first, host({"functions": ["database"], "parts": {**alone, **parts}}, host="two"))
    assert (names(result)[0], result[0]["host"]) == ("ClusterMemberAway", "two")
    assert {one["rule"] for one in result if one["root"]} == {"ClusterMemberAway"}


@pytest.mark.parametrize(("seconds", "missing"), [(85, False), (95, True)])
def test_a_scheduler_that_has_begun_may_wait_for_that_of_another_host(seconds, missing):
    beat = {"unit": "shiftmaster-beat@blue.service", "required": True, "active": "active", "restarts": 0}
    units = {"units": [dict(beat, active_seconds_ago=seconds)]}
    result = found(host({"parts": {"celery": {"beats": []}, "units": units}}), beat_expected=True)
    assert ("BeatMissing" in names(result)) is missing


def test_an_etcd_that_failed_is_one_finding_and_hides_no_other_unit():
    failed = {"active": "failed", "result": "exit-code", "since": "now", "last_words": []}
    units = [dict(failed, unit="etcd.service", required=True), dict(failed, unit="other.service", required=False)]
    result = found(host({"parts": {"units": {"units": units}}}))
    assert [(one["rule"], one["root"]) for one in result] == [("UnitFailed", True), ("EtcdDown", True)]


def test_where_no_patroni_responds_nothing_is_known_of_etcd():
    result = found(host({"parts": {"cluster": {"works": False, "message": "refused", "role": "", "etcd": None}}}))
    assert "ClusterWithoutPrimary" in names(result) and "EtcdWithoutMajority" not in names(result)


@pytest.mark.parametrize(("last", "first"), [(1799999400.0, "RequestsFail"), (1799999980.0, "ApplicationLogsCause")])
def test_an_error_that_was_fixed_before_is_not_the_cause_of_requests_that_fail_now(last, first):
    parts = copy.deepcopy(CASES["RequestsFail"]["fires"]["parts"])
    for page in parts["requests"]["recent"]["failing"]:
        page.update(first=1799999900.0, last=1799999990.0)
    gone = 'django.db.utils.ProgrammingError: relation "audit_log" does not exist'
    problem = {"count": 5, "first": last - 60, "last": last, "text": "x", "exception": gone, "where": ""}
    parts["logs"] = {"files": {"application": {"path": "x", "problems": [problem]}}}
    assert next(one for one in found(host({"parts": parts})) if one["root"])["rule"] == first


def test_the_maintenance_page_is_no_error_of_the_application():
    """Nor is an older error in its log the reason for the page's status."""
    problem = {"count": 12, "first": 1799999300.0, "last": 1799999400.0, "where": "", "exception": "",
               "text": "[ERROR] django.security.DisallowedHost: Invalid HTTP_HOST header: 'x'. You may need to add"}  # fmt: skip
    logged = {"logs": {"files": {"application": {"path": "x", "problems": [problem]}}}}
    parts = {**logged, "http": {"page": {"status": 503}}, "release": {"maintenance": True}}
    shown = names(found(host({"parts": parts})))
    assert shown[0] == "MaintenanceOn" and "ApplicationLogsCause" not in shown
    parts["release"] = {"maintenance": False}
    # Django returns 400 for it: a page that fails with 503 fails for another reason.
    assert "ApplicationLogsCause" not in names(found(host({"parts": parts})))
    parts["http"] = {"site": {"status": 400, "headers": {"x-request-id": "x"}}}
    assert names(found(host({"parts": parts})))[0] == "ApplicationLogsCause"


def test_a_change_after_the_last_failed_request_does_not_explain_it():
    def first(change_at):
        page = {"page": "/", "status": 502, "errors": 30, "requests": 90, "often": False, "new": False, "own_errors": 0,
                "first": 1799999650.0, "last": 1799999900.0, "seconds": 0.1}  # fmt: skip
        made = {"path": "/run/systemd/system", "at": change_at, "in_release": False}
        parts = {
            "requests": {"recent": {"requests": 100, "errors": 30, "failing": [page]}},
            "changes": {"files": [made]},
        }
        return names(found(host({"parts": parts})))[0]

    assert (first(1799999890.0), first(1799999995.0)) == ("ChangedByHand", "RequestsFail")


def test_a_change_explains_a_unit_that_fails_after_requests_have_failed():
    page = {"page": "/", "status": 502, "errors": 30, "requests": 90, "often": False, "new": False, "own_errors": 0,
            "first": 1799999800.0, "last": 1799999850.0, "seconds": 0.1}  # fmt: skip
    unit = "/run/systemd/system/shiftmaster-worker@blue.service.d/x.conf"
    made = {"path": unit, "at": 1799999980.0, "in_release": False, "unit": "shiftmaster-worker@blue.service",
            "settings": ["ExecStart=/bin/false"]}  # fmt: skip
    worker = copy.deepcopy(CASES["WorkerDown"]["fires"]["parts"])
    worker["units"]["units"][0].update(active="activating", restarts=3)
    parts = {**worker, "requests": {"recent": {"requests": 100, "errors": 30, "failing": [page]}}}
    before = names(found(host({"parts": parts})))
    assert "WorkerDown" in before and "RequestsFail" in before
    parts["changes"] = {"files": [made]}
    after = [one for one in found(host({"parts": parts})) if one["root"]]
    assert "ChangedByHand" in names(after) and "WorkerDown" not in names(after)
    (change,) = [one for one in after if one["rule"] == "ChangedByHand"]
    assert change["fix"] == [
        f"mv --backup=numbered {unit} /root/; systemctl daemon-reload",
        "systemctl reset-failed; systemctl restart shiftmaster-worker@blue.service",
    ]


def test_redis_that_does_not_run_shows_what_it_has_logged_of_its_files():
    """Two lines of the last quarter of an hour, as Redis 8 writes them about files of random bytes."""
    now = datetime.datetime.fromtimestamp(HEALTHY["at"])
    text = "".join(
        f"7:M {(now - datetime.timedelta(seconds=ago)).strftime('%d %b %Y %H:%M:%S')}.632 # {line}\n"
        for ago, line in (
            (1000, "Wrong signature trying to load DB from file"),
            (30, "Unexpected end of file reading the append only file"),
            (20, "\n*** FATAL AOF MANIFEST FILE ERROR ***\n"),
            (20, "The AOF manifest file contains too long line\n"),
        )
    )
    parts = copied(CASES["RedisDown"]["fires"]["parts"])
    parts["logs"] = {"files": {"redis": {"problems": logs.problems(text, 0)}}}
    cause = next(one for one in found(host({"parts": parts})) if one["rule"] == "RedisDown")["cause"]
    for language in cause.values():
        assert re.findall("too long line|Unexpected end|signature", language) == ["too long line", "Unexpected end"]


@pytest.mark.parametrize("cause", ["CpuHog", "MemoryShort", "SwapStorm"])
def test_causes_of_an_overload_come_before_the_overload(cause):
    parts = {
        **copy.deepcopy(CASES["HostOverwhelmed"]["fires"]["parts"]),
        **copy.deepcopy(CASES[cause]["fires"]["parts"]),
    }
    parts["database"] = parts["files"] = parts["units"] = parts["ports"] = {"status": "hung", "error": "x"}
    result = found(host({"parts": parts}))
    assert [one["rule"] for one in result if one["root"]][0] == cause
    assert next(one for one in result if one["rule"] == "HostOverwhelmed")["follows_from"].startswith(cause)


@pytest.mark.parametrize("cause", ["CpuHog", "CpuShort"])
@pytest.mark.parametrize(
    ("unit", "follows", "continues"),
    [
        ({}, True, False),
        ({"stopped": 20}, False, True),
        ({"frozen": 1}, False, False),
        ({"waiting_for_disk": 1}, False, False),
        # Nothing is known of its processes.
        ({"unit": "other.service"}, False, False),
    ],
)
def test_a_database_without_a_processor_follows_from_the_processors(cause, unit, follows, continues):
    parts = changed(CASES[cause]["fires"]["parts"], CASES["DatabaseHangs"]["fires"]["parts"])
    units = copy.deepcopy(HEALTHY["parts"]["units"]["units"])
    next(one for one in units if one["unit"].startswith("postgresql@")).update(unit)
    result = found(host({"parts": changed(parts, {"units": {"units": units}})}))
    assert {one["rule"] for one in result if one["root"]} == {cause, *([] if follows else ["DatabaseHangs"])}
    (hangs,) = [one for one in result if one["rule"] == "DatabaseHangs"]
    assert any("CONT" in line for line in hangs["fix"]) is continues


def test_only_sessions_of_the_user_with_most_connections_are_ended():
    parts = copy.deepcopy(CASES["DatabaseConnectionsExhausted"]["fires"]["parts"])
    parts["database"]["connections"] = [{"role": "reports", "application": "report.py", "state": "idle", "count": 70}]
    fix = found(host({"parts": parts}))[0]["fix"][0]
    assert "usename = 'reports'" in fix and "application_name = 'report.py'" in fix
    # A name that holds commands is part of none.
    parts["database"]["connections"][0]["application"] = "x' OR true; --"
    assert "OR true" not in found(host({"parts": parts}))[0]["fix"][0]


@pytest.mark.parametrize(("synchronised", "words"), [(None, "of the controller differ"), (False, "is wrong by")])
def test_the_wrong_clock_is_named_where_it_is_known(synchronised, words):
    clock = {"synchronised": synchronised, "offset_seconds": None, "source": "x", "container": True}
    result = found(host({"skew": -300.0, "parts": {"clock": clock}}))
    assert result[0]["rule"] == "ClockOff" and words in result[0]["title"]["en"]


def full(path, *directories, files=()):
    return {
        "disk": {"mounts": [{"path": path, "space_percent": 99.9, "inodes_percent": 1.0, "free_bytes": 4096, "holds": []}]},
        "largest": {"directories": [{"path": one, "bytes": 600000000, "mount": path} for one in directories],
                    "files": [{"path": one, "bytes": 16777216, "mount": path} for one in files]},
    }  # fmt: skip


def test_a_full_disk_is_freed_where_it_is_full_and_never_of_the_write_ahead_log():
    (var,) = found(
        host(
            {
                "parts": full(
                    "/var", "/var/cache/apt", files=["/var/lib/postgresql/17/main/pg_wal/000000010000000000000001"]
                )
            }
        )
    )
    assert "/var/cache/apt" in var["cause"]["en"] and "pg_wal" not in str(var) and "apt-get clean" in var["fix"]
    (tmp,) = found(host({"parts": full("/tmp", files=["/tmp/core.1234"])}))
    assert "/tmp/core.1234" in tmp["cause"]["en"] and "apt-get clean" not in tmp["fix"]
    assert any(line.startswith("find /tmp ") for line in tmp["fix"])


@pytest.mark.parametrize(
    ("unit", "count", "fix"),
    [
        ("import.service", 3, "systemctl stop import.service"),
        ("import.service", 1, "systemctl show --property MemoryMax import.service"),
        ("prometheus.service", 9, "systemctl show --property MemoryMax prometheus.service"),
    ],
)
def test_a_unit_of_others_that_is_killed_again_and_again_is_stopped(unit, count, fix):
    kill = dict(CASES["OomKill"]["fires"]["parts"]["kills"]["kills"][0], unit=unit, count=count, name="python3")
    (first, *_) = found(host({"parts": {"kills": {"kills": [kill]}}}))
    assert first["rule"] == "OomKill" and first["fix"][-1] == fix
    # Once it is stopped there is nothing to do; shiftmaster's own services have to run.
    stopped = names(found(host({"parts": {"kills": {"kills": [dict(kill, active="inactive")]}}})))
    assert ("OomKill" in stopped) == unit.startswith("prometheus")


def test_a_log_that_logrotate_does_not_know_is_emptied_by_a_command_that_works(tmp_path):
    """logrotate would leave it alone; nothing of it is lost, and a link in its place leads nowhere."""
    (log,) = [one for one in found(host({"parts": full("/var/log/x", files=["/var/log/x/import.log"])})) if one["root"]]
    assert log["rule"] == "DiskFullByLog" and len(log["fix"]) == 1 and "logrotate" not in log["fix"][0]
    assert "None" not in str(log["evidence"]) and "on it" not in str(log["evidence"])
    assert "logrotate" in str(log["cause"]["en"])
    log_file, kept = tmp_path / "import.log", tmp_path / "kept"
    log_file.write_bytes(b"x" * 100000)
    kept.mkdir()
    command = log["fix"][0].replace("/var/log/x/import.log", str(log_file)).replace("/root/", f"{kept}/")
    # Changing the user needs root.
    command = re.sub(r"runuser -u (\S+ -c %U \S+) -- ", r"test \1 = " + getpass.getuser() + " && ", command)
    subprocess.run(["bash", "-c", command], check=True, timeout=60)
    (copy_of_it,) = kept.iterdir()
    assert log_file.stat().st_size == 0 and len(gzip.decompress(copy_of_it.read_bytes())) == 100000


def test_the_limit_of_nginx_is_that_of_its_configuration():
    near = [{"pid": 9, "name": "nginx", "command": "nginx", "unit": "nginx.service", "open": 69, "limit": 70}]
    first = found(host({"parts": {"files": {"near_limit": near}}}))[0]
    assert "worker_rlimit_nofile" in first["cause"]["en"] and "ansible-playbook deploy.yml --tags nginx" in first["fix"]


def test_a_missing_user_is_reported_as_such():
    gone = [{"path": "/x/source", "user": "shiftmaster", "problem": "no such user"}]
    parts = {
        "rights": {"obstacles": gone},
        "release": {"python": {"path": "p", "works": None, "error": "no such user"}},
    }
    (first,) = found(host({"parts": parts}))
    assert (
        "shiftmaster does not exist" in first["title"]["en"]
        and "ansible-playbook deploy.yml --tags app" in first["fix"]
    )


@offenders.each(CASES)
def test_rule_does_not_fire_near_its_fault(name):
    case = CASES[name]
    assert name not in names(found(host(case["silent"]), **case.get("topology", {})))


@offenders.each(CASES)
def test_finding_is_complete_in_both_languages(name):
    finding = next(one for one in of_case(name) if one["rule"] == name)
    for field in ("title", "cause"):
        for language in ("en", "ja"):
            text = finding[field][language]
            assert text and "{{" not in text and "{%" not in text and "None" not in text
    assert finding["title"]["en"] and JAPANESE.search(finding["title"]["ja"])
    assert not JAPANESE.search(finding["title"]["en"] + finding["cause"]["en"])
    assert all("{{" not in line for line in finding["fix"] + finding["evidence"] + finding["evidence_ja"])


FIELDS = {
    "name", "component", "severity", "symptom", "areas", "functions", "each", "let", "when", "own_when", "explains", "title",
    "cause", "advice", "evidence", "fix", "alert", "depth", "guide", "commands", "critical_when", "effect", "of_changes",
}  # fmt: skip


@offenders.each(rules(), lambda rule: rule["name"])
def test_rule_is_complete(rule):
    assert set(rule) <= FIELDS and {"name", "component", "severity", "when", "title", "cause"} <= set(rule)
    assert rule["severity"] in findings.SEVERITIES and rule["component"] in findings.DEPTH
    assert set(rule.get("areas", [])) <= {"app", "db", "cpu", "memory", "disk", "network"}
    assert ("alert" in rule) != ("guide" in rule and "commands" in rule), "it has one runbook"
    assert rule.get("fix") or rule.get("advice") or rule.get("alert"), "it reports nothing to do"
    for text in (
        rule["title"],
        rule["cause"],
        rule.get("advice", {"en": "", "ja": ""}),
        rule.get("guide", {"en": "", "ja": ""}),
    ):
        assert set(text) == {"en", "ja"}
    for one in rule.get("evidence", []):
        # Missing values have a Japanese form.
        words = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", one if isinstance(one, str) else one["en"])
        assert not re.search("[a-z]{2,} [a-z]{2,}", words) or JAPANESE.search(one["ja"]), one
    for target in rule.get("explains", []):
        target = re.search(r"'([^']+)'", target)[1] if "{{" in target else re.sub(r"\{%.*?%\}", "", target)
        for one in target.split():
            assert one == "*" or (one[1:] in findings.DEPTH if one.startswith("@") else one in RULES), one


def test_evidence_is_japanese_on_a_japanese_page():
    finding = next(one for one in of_case("DatabaseLockHeldByIdle") if one["rule"] == "DatabaseLockHeldByIdle")
    assert finding["evidence"][0].startswith("its last statement: ")
    assert findings_report.evidence_of(finding, "ja")[0].startswith("最後に実行した文: ")


def test_alerts_of_rules_exist():
    alerts = {
        alert["name"]
        for path in (ROOT / "monitoring" / "alerts").glob("*.yml")
        for alert in yaml.safe_load(path.read_text(encoding="utf-8"))["alerts"]
    }
    assert {rule["alert"] for rule in rules() if "alert" in rule} - alerts == set()


# --- roots before symptoms, over hosts --------------------------------------------------------------------------------

DATABASE_DOWN = CASES["DatabaseStopped"]["fires"]["parts"]


def of(name, *functions):
    """A healthy host with the parts that its functions have."""
    complete = host(host=name, functions=list(functions))
    parts = {
        part: data
        for part, data in complete["parts"].items()
        if not PARTS[part].functions or set(PARTS[part].functions) & set(functions)
    }
    parts["units"] = {"status": "ok", "units": []}
    return dict(complete, parts=parts)


def topology():
    hosts = {"edge1": of("edge1", "web"), "app1": of("app1", "app"), "app2": of("app2", "app"),
             "db1": of("db1", "database"), "cache1": of("cache1", "cache")}  # fmt: skip
    # The scheduler runs on one host.
    hosts["app2"]["parts"]["celery"]["beats"] = []
    return hosts


def unhealthy(**patches):
    hosts = topology()
    for name, parts in patches.items():
        known = {part: data for part, data in parts.items() if part in hosts[name]["parts"] or part == "peers"}
        hosts[name] = changed(hosts[name], {"parts": known})
    return list(hosts.values())


NO_DATABASE = {
    "login": {"works": False, "reason": "refused", "host": "db1", "port": "5432", "message": "refused"},
    "peers": {"status": "ok", "peers": [
        {"host": "db1", "port": 5432, "function": "database", "error": "refused", "reason": "refused"}]},
    "http": {"socket": {"status": 503}, "local": {"status": 503, "where": "x"}},
}  # fmt: skip
NO_SITE = {"http": {"site": {"status": 502, "where": "https://localhost"}}}


def test_a_healthy_site_has_no_finding():
    assert found(*topology().values(), beat_expected=True) == []


def test_the_database_explains_the_symptoms_of_the_others():
    result = found(*unhealthy(db1=DATABASE_DOWN, app1=NO_DATABASE, app2=NO_DATABASE, edge1=NO_SITE))
    assert (result[0]["rule"], result[0]["host"]) == ("DatabaseStopped", "db1")
    assert [one["rule"] for one in result if one["root"]] == ["DatabaseStopped"]
    assert {one["host"] for one in result[1:]} == {"app1", "app2", "edge1"}
    assert {one["follows_from"] for one in result[1:]} == {"DatabaseStopped on db1"}


@pytest.mark.parametrize(
    ("state", "roots"),
    [
        # One that ends without its database is started again and again.
        ({"active": "activating", "result": "exit-code", "restarts": 5}, [("DatabaseStopped", "db1")]),
        # A unit stopped by an operator does not start with it.
        ({"active": "inactive"}, [("DatabaseStopped", "db1"), ("WorkerDown", "app1")]),
    ],
)
def test_a_worker_that_was_stopped_does_not_follow_from_its_database(state, roots):
    stopped = {"units": {"units": [dict(ENDS, **{"restarts": 0, **state})]}}
    result = found(*unhealthy(db1=DATABASE_DOWN, app1=dict(NO_DATABASE, **stopped), app2=NO_DATABASE))
    assert [(one["rule"], one["host"]) for one in result if one["root"]] == roots


@pytest.mark.parametrize("kind", ["web", "worker", "beat"])
def test_a_unit_that_did_not_start_without_its_release_follows_from_that(kind):
    unit = dict(ENDS, unit=f"shiftmaster-{kind}@blue.service", active="inactive", restarts=0)
    gone = changed(CASES["ReleaseGone"]["fires"]["parts"], {"units": {"units": [unit]}})
    result = found(*unhealthy(app1=gone))
    assert [one["rule"] for one in result if one["root"]] == ["ReleaseGone"] and len(result) > 1


def test_a_host_that_was_never_set_up_is_one_fault():
    without = ("NothingDeployed", "CertificateMissing", "RedisDown", "UnitNotEnabled")
    empty = functools.reduce(changed, (CASES[name]["fires"]["parts"] for name in without), {})
    result = found(host({"parts": empty}))
    assert [one["rule"] for one in result if one["root"]] == ["NothingDeployed"] and set(without) <= set(names(result))
    # Where the application's directory is there, Redis is a fault of its own.
    lost = changed(empty, {"release": {"status": "ok", "error": None, "releases": []}})
    assert "RedisDown" in [one["rule"] for one in found(host({"parts": lost})) if one["root"]]


def test_two_causes_come_before_the_symptoms_of_both():
    full = CASES["DiskFullByLog"]["fires"]["parts"]
    both = dict(NO_DATABASE, **full)
    result = found(*unhealthy(db1=DATABASE_DOWN, app1=both, app2=NO_DATABASE, edge1=NO_SITE))
    roots = [(one["rule"], one["host"]) for one in result if one["root"]]
    assert set(roots) == {("DatabaseStopped", "db1"), ("DiskFullByLog", "app1")}
    first_symptom = min(one["number"] for one in result if one["symptom"])
    assert first_symptom > max(one["number"] for one in result if one["root"])


def test_a_full_filesystem_without_its_data_explains_no_stopped_database():
    mount = {"path": "/mnt", "space_percent": 100.0, "inodes_percent": 1.0, "free_bytes": 0, "holds": []}
    result = found(host({"parts": {**DATABASE_DOWN, "disk": {"mounts": [mount]}}}))
    assert {one["rule"] for one in result if one["root"]} == {"DiskFull", "DatabaseStopped"}


def test_a_full_disk_explains_the_stopped_database_and_its_consequences():
    full = dict(DATABASE_DOWN, **CASES["DiskFull"]["fires"]["parts"])
    result = found(*unhealthy(db1=full, app1=NO_DATABASE, edge1=NO_SITE))
    assert names(result)[:2] == ["DiskFull", "DatabaseStopped"]
    assert [one["rule"] for one in result if one["root"]] == ["DiskFull"]


def test_an_unreachable_host_is_the_cause_of_what_the_others_lack():
    hosts = [one for one in unhealthy(app1=NO_DATABASE, app2=NO_DATABASE, edge1=NO_SITE) if one["host"] != "db1"]
    gone = findings.host_of("db1", ["database"], {"unreachable": True, "msg": "No route to host"})
    result = found(*hosts, gone)
    assert (result[0]["rule"], result[0]["host"]) == ("HostUnreachable", "db1")
    assert [one["rule"] for one in result if one["root"]] == ["HostUnreachable"]


def parts_of(*cases):
    """The parts of several cases together."""
    together = {}
    for case in cases:
        together = changed(together, CASES[case]["fires"]["parts"])
    return together


NO_REDIS = {
    "redis": {
        "broker": {
            "works": False,
            "reason": "refused",
            "where": "cache1:6379",
            "message": "refused",
            "queues_later": None,
        }
    },
    "http": {"socket": {"status": 503}, "local": {"status": 503, "where": "x"}},
}
SLOW = {"requests": {"recent": {"p95_seconds": 20.0}}, "http": {"local": {"status": 504, "where": "x"}}}
GONE = "gone"
# {host: parts}, and the roots. Each breaks two things at once, on two hosts; the others see what follows.
COMBINED = [
    ({"db1": parts_of("DatabaseStopped"), "app1": dict(parts_of("DiskFullByLog"), **NO_DATABASE), "app2": NO_DATABASE, "edge1": NO_SITE},
     {("DatabaseStopped", "db1"), ("DiskFullByLog", "app1")}),
    ({"db1": GONE, "app1": NO_DATABASE, "app2": dict(NO_DATABASE, **parts_of("RightsWrong")), "edge1": NO_SITE},
     {("HostUnreachable", "db1"), ("RightsWrong", "app2")}),
    ({"cache1": parts_of("RedisDown"), "app1": NO_REDIS, "app2": NO_REDIS, "edge1": dict(NO_SITE, **parts_of("CertificateExpired"))},
     {("RedisDown", "cache1"), ("CertificateExpired", "edge1")}),
    ({"db1": parts_of("DatabaseConnectionsExhausted"), "app1": dict(parts_of("WorkerFrozen"), **SLOW), "app2": SLOW},
     {("DatabaseConnectionsExhausted", "db1"), ("WorkerFrozen", "app1")}),
    ({"edge1": dict(parts_of("NginxDown"), http={"site": {"status": None, "error": "refused", "where": "x"}}), "db1": parts_of("DiskNearlyFull")},
     {("NginxDown", "edge1"), ("DiskNearlyFull", "db1")}),
    ({"app1": dict(NO_DATABASE, **parts_of("FirewallRefuses")), "app2": parts_of("InodesGone"), "edge1": NO_SITE},
     {("FirewallRefuses", "app1"), ("InodesGone", "app2")}),
    ({"db1": parts_of("DatabaseLockHeldByIdle"), "app1": SLOW, "app2": SLOW, "cache1": parts_of("MemoryShort"), "edge1": NO_SITE},
     {("DatabaseLockHeldByIdle", "db1"), ("MemoryShort", "cache1")}),
    ({"app1": parts_of("SecretMissing"), "app2": parts_of("StaticMissing"), "edge1": NO_SITE},
     {("SecretMissing", "app1"), ("StaticMissing", "app2")}),
    ({"cache1": GONE, "app1": NO_REDIS, "app2": NO_REDIS, "db1": parts_of("DatabaseWraparoundNear"), "edge1": NO_SITE},
     {("HostUnreachable", "cache1"), ("DatabaseWraparoundNear", "db1")}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("patches", "roots"),
    COMBINED,
    ids=lambda value: "-".join(sorted(name for name, _host in value)) if isinstance(value, set) else "",
)
def test_two_faults_on_two_hosts_come_before_their_common_symptoms(patches, roots):
    hosts = unhealthy(**{name: parts for name, parts in patches.items() if parts is not GONE})
    functions = {name: topology()[name]["functions"] for name in patches}
    hosts = [
        findings.host_of(one["host"], functions[one["host"]], {"unreachable": True, "msg": "no route"})
        if patches.get(one["host"]) is GONE
        else one
        for one in hosts
    ]
    result = found(*hosts)
    assert {(one["rule"], one["host"]) for one in result if one["root"]} == roots, names(result)
    assert all(one["root"] for one in result[:2]) and not any(one["root"] for one in result[2:])


def test_a_fault_of_one_application_host_explains_nothing_of_another():
    broken = {"http": {"socket": {"status": 503}}}
    result = found(*unhealthy(app1=CASES["RightsWrong"]["fires"]["parts"], app2=broken))
    assert {(one["rule"], one["host"]) for one in result if one["root"]} == {
        ("RightsWrong", "app1"),
        ("ApplicationErrors", "app2"),
    }


def test_a_symptom_without_a_cause_comes_after_causes_of_its_severity():
    result = found(*unhealthy(app1={"http": {"socket": {"status": 500}}}, app2=CASES["InodesGone"]["fires"]["parts"]))
    assert names(result) == ["InodesGone", "ApplicationErrors"]


SILENT_SERVER = {"names": {"servers": [{"address": "x", "responds": False}]}}
SICK = {"parts": {**SILENT_SERVER, "http": {"site": {"status": 502}}, "static": {"http_status": 404}}}


def test_the_root_weighs_what_follows_from_it():
    """A warning that makes the site fail is no warning, regardless of its other consequences."""
    weak = dict(RULES["NameServerSilent"], explains=["*", "StaticNotServed"])
    result = findings.find([weak, RULES["SiteErrors"], RULES["StaticNotServed"]], [host(SICK)])
    assert names(result) == ["NameServerSilent", "StaticNotServed", "SiteErrors"]
    assert [one["severity_of_all"] for one in result] == ["critical", "warning", "critical"]


def test_an_explained_finding_is_no_root_cause_at_any_depth():
    far = dict(RULES["StaticNotServed"], depth=900, explains=["NameServerSilent"])
    step = dict(RULES["NameServerSilent"], depth=1, explains=["SiteErrors"])
    result = findings.find([step, RULES["SiteErrors"], far], [host(SICK)])
    assert [one["rule"] for one in result if one["root"]] == ["StaticNotServed"]
    assert {one["follows_from"] for one in result[1:]} == {"StaticNotServed on one"}


def test_scheduler_twice_is_counted_over_hosts():
    twice = {"celery": {"beats": [{"pid": 1, "unit": "shiftmaster-beat@blue.service", "command": "beat"}]}}
    result = found(*unhealthy(app2=twice))
    assert [(one["rule"], one["host"]) for one in result] == [("BeatTwice", "app1")]
    assert "app2: process 1" in result[0]["evidence"][0]


def test_a_missing_scheduler_is_not_reported_where_a_host_did_not_respond():
    hosts = [one for one in unhealthy(app1={"celery": {"beats": []}}) if one["host"] != "app2"]
    gone = findings.host_of("app2", ["app"], {"unreachable": True, "msg": "x"})
    assert "BeatMissing" not in names(found(*hosts, gone, beat_expected=True))
    assert "BeatMissing" in names(found(*unhealthy(app1={"celery": {"beats": []}}), beat_expected=True))


def test_the_command_against_a_second_scheduler_names_its_host():
    twice = {"celery": {"beats": [{"pid": 1, "unit": "session-1.scope", "command": "beat"}]}}
    fix = found(*unhealthy(app2=twice))[0]["fix"]
    assert fix == ["ansible app2 --become -m ansible.builtin.command -a 'kill 1'"]


def test_the_scheduler_is_missed_where_the_inventory_has_it():
    result = found(*unhealthy(app1={"celery": {"beats": []}}), beat_expected=True, beat_hosts=["app2"])
    assert [(one["rule"], one["host"]) for one in result] == [("BeatMissing", "app2")]


def test_a_standby_is_inspected_and_not_promoted():
    finding = found(host(CASES["DatabaseReadOnly"]["fires"]))[0]
    assert not any("promote" in line for line in finding["fix"])
    assert "database:standby" in finding["fix"][0] and "only when no other" in finding["advice"]["en"]


def test_a_synchronized_clock_is_wrong_where_the_other_hosts_report_it():
    def hosts(*skews):
        return [dict(one, skew=skew) for one, skew in zip(topology().values(), skews)]

    assert names(found(*hosts(-30.0, -29.0, -30.4))) == []
    assert [one["host"] for one in found(*hosts(0.4, 0.5, -30.0))] == ["app2"]
    lost = {"parts": {"clock": {"synchronised": None, "offset_seconds": None}}, "skew": -30.0}
    assert names(found(host(lost))) == ["ClockOff"] and "30.0 s" in found(host(lost))[0]["title"]["en"]


PORT_TAKEN = {"ports": {
    "listeners": [{"address": "0.0.0.0", "port": 443, "programs": ["python3"], "pids": [71]},
                  {"address": "192.0.2.1", "port": 443, "programs": ["nginx"], "pids": [72]}],
    "expected": [{"port": 443, "program": "nginx", "listens": True, "by": ["python3"], "foreign": True}]}}  # fmt: skip


def hog(unit, name):
    one = {"pid": 77, "processes": 1, "name": name, "command": name, "unit": unit, "cpu_share": 97.0}
    return {"cpu": {"busy_percent": 99.0, "groups": [dict(one, cpu_percent=99.0)]}}


def largest_process(unit, name):
    return {"memory": {"usage_percent": 97.5, "top": [{"pid": 77, "name": name, "command": name, "unit": unit,
                                                       "memory_bytes": 4000000000}]}}  # fmt: skip


def open_files(unit, name):
    one = {"pid": 77, "name": name, "command": name, "unit": unit, "open": 1024, "limit": 1024}
    return {"files": {"near_limit": [one]}}


def deleted_file(unit, name):
    parts = copy.deepcopy(CASES["DiskFullByDeletedFile"]["fires"]["parts"])
    parts["deleted"]["files"][0].update(pid=77, unit=unit, name=name)
    return parts


@pytest.mark.parametrize(
    ("parts", "ends"),
    [
        (PORT_TAKEN, ["kill 71", "systemctl restart nginx"]),
        (hog("prometheus.service", "prometheus"), []),
        (hog("session-3.scope", "stress"), ["kill 77"]),
        (hog("report.service", "python3"), ["systemctl stop report.service"]),
        (largest_process("postgresql@17-main.service", "postgres"), []),
        (largest_process("redis-server.service", "redis-server"), []),
        (largest_process("shiftmaster-backup-wal.service", "pg_receivewal"), []),
        (largest_process("shiftmaster-web@blue.service", "gunicorn"), ["systemctl restart shiftmaster"]),
        (largest_process("session-3.scope", "python3"), ["kill 77"]),
        (open_files("session-3.scope", "python3"), ["kill 77"]),
        (open_files("nginx.service", "nginx"), ["systemctl restart nginx.service"]),
        (deleted_file("session-3.scope", "python3"), ["kill 77"]),
        (deleted_file("rsyslog.service", "rsyslogd"), ["systemctl restart rsyslog.service"]),
    ],
)  # fmt: skip
def test_a_command_ends_no_process_that_is_needed(parts, ends):
    fix = found(host({"parts": parts}))[0]["fix"]
    assert [line for line in fix if re.search(r"\bkill\b|systemctl (re)?st", line)] == ends


@pytest.mark.parametrize(("load", "there"), [(1.0, True), (0.95, True), (0.5, False)])
def test_a_short_load_is_no_processor_hog(load, there):
    """One loop for each processor brings the load of an idle host to 1, not above."""
    parts = hog("report.service", "python3")
    parts["cpu"]["load_per_processor"] = load
    assert ("CpuHog" in names(found(host({"parts": parts})))) is there


def test_heavy_swapping_ends_no_server():
    parts = changed(CASES["SwapStorm"]["fires"]["parts"], largest_process("postgresql@17-main.service", "postgres"))
    finding = next(one for one in found(host({"parts": parts})) if one["rule"] == "SwapStorm")
    assert not any("kill" in line for line in finding["fix"]) and finding["advice"]["en"] and finding["advice"]["ja"]


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("/var/log/shiftmaster/error.log", "logrotate --force /etc/logrotate.conf"),
        ("/var/log/shiftmaster/audit.jsonl", "ls -l /var/log/shiftmaster/audit.jsonl; df -h"),
        ("/var/log/journal/x/system.journal", "journalctl --vacuum-size=200M"),
        ("/var/log/x y/error.log.1", "gzip '/var/log/x y/error.log.1'"),
    ],
)
def test_a_log_that_fills_the_disk_is_not_deleted(path, first):
    parts = dict(CASES["DiskFullByLog"]["fires"]["parts"])
    parts["largest"] = {"files": [{"path": path, "bytes": 41000000000, "mount": "/"}]}
    fix = found(host({"parts": parts}))[0]["fix"]
    assert fix[0] == first and not any("truncate" in line or "rm " in line for line in fix)
    assert "audit" not in path or not any("gzip" in line or "logrotate" in line for line in fix)


@pytest.mark.parametrize(("unit", "there"), [("shiftmaster-worker@blue.service", True), ("cron.service", False)])
def test_the_limit_of_memory_is_raised_where_it_is_ours(unit, there):
    kill = {"at": 1799999900.0, "name": "x", "unit": unit, "host_wide": False}
    fix = found(host({"parts": {"kills": {"kills": [kill]}}}))[0]["fix"]
    assert any("memory_max" in line for line in fix) is there


def test_a_slow_statement_is_critical_where_users_wait():
    statement = {"database": CASES["DatabaseSlowStatement"]["fires"]["parts"]["database"]}
    assert [one["severity"] for one in found(*unhealthy(db1=statement))] == ["warning"]
    assert found(*unhealthy(db1=statement, edge1=SLOW))[0]["severity"] == "critical"


@pytest.mark.parametrize("name", ["x$(id)", "x`id`", 'x"; id; "', "x;id", "x\n`id`", "X"])
def test_the_name_of_a_table_is_no_command(name):
    """The application names its tables; an operator pastes the command into a shell, and psql runs `...` itself."""
    database = dict(CASES["DatabaseSlowStatement"]["fires"]["parts"]["database"])
    database["scanning_statements"] = [dict(database["scanning_statements"][0], table=name)]
    (finding,) = [
        one for one in found(host({"parts": {"database": database}})) if one["rule"] == "DatabaseSlowStatement"
    ]
    assert finding["fix"] == []


@pytest.mark.parametrize(("index", "command"), [("", "CREATE INDEX CONCURRENTLY ON roster_assignment (staff_id)"),
                                                ("roster_staff", "REINDEX INDEX CONCURRENTLY roster_staff")])  # fmt: skip
def test_a_missing_or_invalid_index_is_created(index, command):
    database = dict(CASES["DatabaseSlowStatement"]["fires"]["parts"]["database"])
    database["scanning_statements"] = [dict(database["scanning_statements"][0], invalid_index=index)]
    finding = next(
        one for one in found(host({"parts": {"database": database}})) if one["rule"] == "DatabaseSlowStatement"
    )
    assert finding["fix"] == [f"sudo -u postgres psql -d shiftmaster -c '{command}'"]


def test_a_slot_is_not_dropped_by_a_command():
    slot = {"active": False, "kept_bytes": 900000000}
    for name, command in (("db2", "systemctl start postgresql"), ("shiftmaster_backup", "shiftmaster-backup-wal")):
        finding = found(host({"parts": {"database": {"slots": [dict(slot, name=name)]}}}))[0]
        assert command in finding["fix"][0] and not any("drop" in line for line in finding["fix"])
        assert "pg_drop_replication_slot" in finding["advice"]["ja"]


def test_the_receiver_of_the_backup_is_no_standby():
    backup = {"client": None, "standby": "shiftmaster-backup-wal", "state": "streaming", "lag_bytes": 0}
    result = found(host({"parts": {"database": {"replication": [backup]}}}), standbys=1)
    assert names(result) == ["ReplicationLost"] and "1 of 1" in result[0]["title"]["en"]


def test_exhausted_connections_are_detected_without_a_response():
    for name, patch in (
        ("DatabaseConnectionsExhausted", {"database": None, "login": {"works": False, "reason": "connections"}}),
        ("DatabaseConnectionsExhausted", {"database": {"status": "failed", "reason": "connections", "use": None}}),
        ("DatabaseWraparoundNear", {"database": {"status": "failed", "reason": "wraparound", "oldest_age": None}}),
    ):
        finding = next(one for one in found(host({"parts": patch})) if one["rule"] == name)
        assert finding["title"]["en"] and finding["title"]["ja"]


def test_used_up_connections_are_a_symptom_on_another_host():
    refused = {"login": {"works": False, "reason": "connections", "message": "sorry"}}
    result = found(*unhealthy(app1=refused, db1=CASES["DatabaseConnectionsExhausted"]["fires"]["parts"]))
    assert [(one["rule"], one["host"], one["root"]) for one in result] == [
        ("DatabaseConnectionsExhausted", "db1", True), ("DatabaseLoginFails", "app1", False),
    ]  # fmt: skip
    assert "sudo" not in " ".join(result[1]["fix"])


@pytest.mark.parametrize(("limit", "larger"), [(220, 320), (None, 220)])
def test_more_connections_are_more_than_now(limit, larger):
    patch = {"use": {"percent": 100.0}, "server": {"max_connections": limit}}
    finding = found(*unhealthy(db1={"database": patch}))[0]
    assert finding["fix"][1].endswith("postgresql_max_connections=%d" % larger)


def test_area_excludes_findings_of_other_areas():
    fault = host(CASES["DatabaseConnectionsHigh"]["fires"])
    assert names(found(fault, area="db")) == ["DatabaseConnectionsHigh"]
    assert found(fault, area="network") == []


# --- the engine ----------------------------------------------------------------------------------------------------


def test_a_missing_value_is_false_and_no_error():
    engine = findings.Engine()
    for expression in ("a.b.c > 3", "a.b", "a | length > 3", "a[0].b == 1", "x < y", "n > 3"):
        assert not engine.value(expression, {"n": None})
    assert engine.value("gone | length == 0", {}) is None
    assert engine.value("n / 0 > 1", {"n": 1}) is None and engine.text("{{ n / 0 }}", {"n": 1}) == ""
    assert engine.value("n == 3 and s is search('^a')", {"n": 3, "s": "abc"})


def test_rules_cannot_leave_their_sandbox():
    engine = findings.Engine()
    with pytest.raises(Exception, match="unsafe|undefined"):
        engine.value("''.__class__.__mro__[1].__subclasses__()", {})
    with pytest.raises(Exception, match="unsafe"):
        engine.value("x.append(1)", {"x": []})


def test_the_reason_why_a_host_was_not_diagnosed():
    failed = findings.host_of("a", ["app"], {"failed": True, "msg": "Missing sudo password"})
    assert failed["reach"] == {"unreachable": False, "failed": True, "message": "Missing sudo password"}
    result = found(failed)
    assert names(result) == ["HostNotDiagnosed"] and "sudo" in result[0]["cause"]["en"]
    assert result[0]["fix"] == ["ansible-playbook playbooks/diagnose.yml --ask-become-pass"]


def test_a_chain_that_refuses_the_unknown_is_a_cause_where_something_fails():
    closed = {
        "table": "ip filter",
        "chain": "INPUT",
        "hook": "input",
        "result": "policy drop",
        "ports": [],
        "addresses": [],
    }
    parts = {"firewall": {"refusals": [closed]}, "login": {"works": False, "reason": "timeout", "message": "x"}}
    result = found(host({"parts": parts}))
    assert names(result)[:1] == ["FirewallRefuses"] and "DatabaseLoginFails" in names(result)
    # Dropped packets get no response: a stopped server refuses, and a host that is gone is the cause itself.
    result = found(*unhealthy(app1=dict(NO_DATABASE, firewall=parts["firewall"]), db1=DATABASE_DOWN))
    assert names(result)[0] == "DatabaseStopped" and "FirewallRefuses" not in names(result)
    silent = {"peers": [{"host": "db1", "port": 5432, "function": "database", "error": "x", "reason": "timeout"}]}
    hosts = [one for one in unhealthy(app1=dict(peers=silent, firewall=parts["firewall"])) if one["host"] != "db1"]
    gone = findings.host_of("db1", ["database"], {"unreachable": True, "msg": "no route"})
    assert "FirewallRefuses" not in names(found(*hosts, gone))


def test_a_hung_program_is_no_fault_of_the_firewall():
    unknown = {"table": "ip x", "chain": "y", "hook": "input", "result": "drop", "ports": [443],
               "addresses": ["saddr 203.0.113.5"], "sure": False}  # fmt: skip
    hangs = {"login": {"works": False, "reason": "timeout", "message": "x"},
             "http": {"socket": {"status": None, "error": "x", "reason": "timeout"},
                      "local": {"status": None, "error": "x", "reason": "timeout", "where": "x"}}}  # fmt: skip
    result = found(*unhealthy(app1=dict(hangs, firewall={"refusals": [unknown]})))
    assert "FirewallRefuses" not in names(result) and "DatabaseLoginFails" in names(result)


def test_a_rule_against_an_address_counts_where_another_host_is_blocked():
    shut = {"table": "ip x", "chain": "y", "hook": "input", "result": "drop", "ports": [5432],
            "addresses": ["saddr 192.0.2.5"], "sure": False}  # fmt: skip
    silent = {"status": "ok", "peers": [{"host": "db1", "port": 5432, "function": "database", "error": "x",
                                         "reason": "timeout"}]}  # fmt: skip
    firewall = {"firewall": {"refusals": [shut]}}
    assert names(found(*unhealthy(db1=firewall))) == []
    result = found(*unhealthy(db1=firewall, app1={"peers": silent}))
    assert (result[0]["rule"], result[0]["host"]) == ("FirewallRefuses", "db1")


def test_worst_and_failing():
    result = found(host(CASES["DatabaseConnectionsHigh"]["fires"]))
    assert findings.worst(result) == "warning" and findings.worst([]) == "healthy"
    assert findings.failing(result, "critical") == [] == findings.failing(result, "never")
    assert len(findings.failing(result, "warning")) == 1


def test_cyclic_explanations_end():
    first = dict(RULES["NameServerSilent"], explains=["NameServerSilent", "SiteErrors"])
    second = dict(RULES["SiteErrors"], explains=["NameServerSilent"])
    hosts = [
        host(
            {"parts": {"names": {"servers": [{"address": "x", "responds": False}]}, "http": {"site": {"status": 502}}}}
        )
    ]
    assert len(findings.find([first, second], hosts)) == 2


def test_the_message_of_sudo_is_in_the_finding():
    result = {"failed": True, "msg": "Module result deserialization failed: No start of json char found",
              "module_stderr": "sudo: a password is required\n"}  # fmt: skip
    (finding,) = found(findings.host_of("a", ["app"], result))
    assert finding["rule"] == "HostNotDiagnosed" and "sudo wants a password" in finding["cause"]["en"]
    assert finding["evidence"] == [
        "sudo: a password is required Module result deserialization failed: No start of json char found"
    ]


@pytest.mark.parametrize(
    "message",
    [
        "Error response from daemon: No such container: shiftmaster-demo",
        "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
        "Error response from daemon: container 1a2b is not running",
    ],
)
def test_a_container_that_does_not_run_is_not_reached(message):
    (finding,) = found(findings.host_of("a", ["app"], {"failed": True, "msg": message}))
    assert finding["rule"] == "HostUnreachable" and message in finding["evidence"]


@pytest.mark.parametrize("rule", ["DatabaseStopped", "DatabaseNotReady"])
@pytest.mark.parametrize("holds, follows", [(["postgresql"], "DiskFull on app1"), (["logs"], "")])
def test_a_database_without_room_follows_from_its_own_disk(rule, holds, follows):
    reason = {"DatabaseStopped": "stopped", "DatabaseNotReady": "disk"}[rule]
    mounts = [{"path": "/data", "space_percent": 100.0, "free_bytes": 0, "inodes_percent": 1.0, "holds": holds}]
    one = host({"parts": {"disk": {"mounts": mounts}, "database": {"status": "failed", "reason": reason, "error": "x"}}},
               host="app1")  # fmt: skip
    (finding,) = [finding for finding in found(one) if finding["rule"] == rule]
    assert finding["follows_from"] == follows


STARTS = {"count": 4, "first": 1799999700.0, "last": 1799999940.0, "text": "x [ERROR] gunicorn.error: Exception in worker process",
          "exception": "ModuleNotFoundError: No module named 'gone'", "where": ""}  # fmt: skip


@pytest.mark.parametrize(
    "unit, first",
    [
        # It ends again and again: now and then it is active briefly.
        (
            {"active": "activating", "sub": "auto-restart", "restarts": 5, "active_seconds_ago": 70.0},
            "ApplicationStartFails",
        ),
        ({"active": "active", "restarts": 5, "active_seconds_ago": 2.0}, "ApplicationStartFails"),
        ({"active": "active", "restarts": 0, "active_seconds_ago": 100.0}, "ApplicationStartFails"),
        # It was fixed a minute ago; what is wrong now is something else.
        (
            {"active": "active", "restarts": 0, "active_seconds_ago": 30.0, "stopped": 4, "processes": 4},
            "WebProcessesFrozen",
        ),
        # The last output of the process before it.
        ({"active": "active", "restarts": 0, "active_seconds_ago": 59.8}, ""),
        ({"active": "active", "restarts": 0, "active_seconds_ago": 60.2}, "ApplicationStartFails"),
        ({"active": "inactive", "restarts": 0, "active_seconds_ago": 30.0}, "WebUnitDown"),
    ],
)
def test_a_failed_start_before_a_successful_one_is_over(unit, first):
    web = {
        "unit": "shiftmaster-web@blue.service",
        "active_at": 1800000000.0 - unit["active_seconds_ago"],
        "required": True,
        "result": "success",
        "stopped": 0,
        "last_words": ["x"],
    }
    parts = {
        "http": {"socket": {"status": None, "error": "refused", "reason": "refused"}, "site": {"status": 502}},
        "logs": {"files": {"application": {"path": "error.log", "problems": [STARTS]}}},
        "units": {"units": [dict(web, **unit)]},
    }
    result = found(host({"parts": parts}))
    if first:
        assert result[0]["rule"] == first, names(result)
    else:
        assert "ApplicationStartFails" not in names(result)


# --- a host that was taken over --------------------------------------------------------------------------------------

NOT_VALID = [
    {"parts": {"celery": 5}},
    {"parts": {"celery": {"beats": [5]}}},
    {"parts": {"cpu": {"groups": 5}}},
    {"parts": {"changes": {"events": [{"at": "x", "kind": "?", "text": 5}]}}},
    {"parts": {"history": {"alerts": [5], "usage": 5}}},
    {"parts": {"cpu": {"status": "ok"}}, "zone": {"name": "x"}},
    {"parts": {"cpu": {"status": "ok"}}, "zone": {"name": "x", "offset_seconds": "y"}},
    {"parts": {"cpu": {"status": "ok"}}, "reach": 5, "functions": 5, "skew": [5]},
]


@pytest.mark.parametrize("evidence", NOT_VALID)
def test_a_host_whose_evidence_is_not_valid_hides_no_other(evidence):
    made = datetime.datetime(2026, 11, 26, 8, 0, tzinfo=datetime.timezone.utc)
    unhealthy = {"evidence": host(CASES["DatabaseStopped"]["fires"])}
    results = [
        {"host": "backup1", "functions": ["backup"], "result": {"evidence": evidence}},
        {"host": "db1", "functions": ["database"], "result": unhealthy},
    ]
    given = {"results": results, "rules": rules(), "area": "all", "language": "en", "expectations": {}}
    response, files = shiftmaster_findings.evaluate(dict(given, fail_on="critical", directory="/x"), made)
    assert "db1: DatabaseStopped" in response["failing"] and len(files) == 3
    lines = yaml.safe_load((ROOT / "checklists/morning.yml").read_text(encoding="utf-8"))["lines"]
    given = {"results": results, "lines": lines, "period": "morning", "language": "en", "metrics": None, "series": {}}
    assert "services" in shiftmaster_checklist.fill_in(dict(given, metrics_problem=""), made)["bad"]


def test_a_host_with_endless_evidence_hides_no_other():
    """10,000 failed units took longer than a run may, so that there was no report of any host."""
    units = [{"unit": "u%d.service" % number, "active": "failed", "last_words": ["x" * 10**5]} for number in range(100)]
    unhealthy = host(CASES["DatabaseStopped"]["fires"])
    hosts = [
        dict(unhealthy, host="db1"),
        host(
            {"parts": {"units": {"status": "ok", "units": units * 100}, "cluster": {"status": "absent"}}},
            host="backup1",
        ),
    ]
    result = findings.find(rules(), hosts)
    of_it = [one for one in result if (one["host"], one["rule"]) == ("backup1", "UnitFailed")]
    assert len(of_it) == 20 and max(len(line) for one in of_it for line in one["evidence"]) == 2000
    assert ("db1", "DatabaseStopped") in {(one["host"], one["rule"]) for one in result}


@pytest.mark.parametrize(
    ("command", "version", "shown"),
    [
        ("ansible-playbook deploy.yml --tags release", "2.1.0", " -e shiftmaster_version=2.1.0"),
        ("ansible-playbook deploy.yml --tags database,release", "2.1.0", " -e shiftmaster_version=2.1.0"),
        ("ansible-playbook deploy.yml", "2.1.0", " -e shiftmaster_version=2.1.0"),
        ("ansible-playbook deploy.yml --tags nginx", "2.1.0", ""),
        ("ansible-playbook rollback.yml", "2.1.0", ""),
        ("ansible-playbook deploy.yml --tags release", "", ""),
        ("ansible-playbook deploy.yml --tags release", "2.1;id", ""),
        ("ansible-playbook deploy.yml --tags release", "-e@/tmp/x", ""),
    ],
)
def test_a_command_deploys_the_version_that_is_live_and_not_the_inventorys(command, version, shown):
    names = {"release": {"version": version}}
    assert findings.Engine().text(command, names, command=True) == command + shown


def test_an_incomplete_command_is_not_shown():
    engine, names = findings.the_engine(), {"it": {"unit": "x" * 3000}}
    assert engine.text("systemctl restart {{ it.unit | quote }}", names, command=True) == ""


def test_a_host_adds_no_line_to_a_checklist():
    line = {
        "name": "backup",
        "text": dict.fromkeys(findings.LANGUAGES, "backup"),
        "needs": ["x"],
        "good": "true",
        "evidence": "x",
    }
    unhealthy = {"host": "backup1", "parts": {"x": {"status": "error", "error": "no\n☑ all is well [good]"}}}
    found = shiftmaster_checklist.checklist.evaluate_host(line, unhealthy, {})
    assert found["evidence"]["en"] == "x: no ☑ all is well [good]"


def test_a_host_has_the_functions_of_the_inventory():
    claimed = findings.host_of("backup1", ["backup"], {"evidence": {"parts": {}, "functions": ["app", "database"]}})
    assert claimed["functions"] == ["backup"]


COMMAND = "1'; id > /tmp/owned; $(id) `id` | sh & '.service"


def test_no_value_of_a_host_adds_a_command_to_the_commands_for_operators():
    """The command against a second scheduler is for the control node."""
    beats = {"celery": {"beats": [{"pid": COMMAND, "unit": COMMAND, "command": "beat"}]}}
    hosts = [*unhealthy(app2=beats), of("backup1", "backup")]
    hosts[-1]["parts"]["celery"] = beats["celery"]
    hog = copy.deepcopy(CASES["CpuHog"]["fires"])
    hog["parts"]["cpu"]["groups"][0]["pid"] = COMMAND
    lines = [line for one in [*found(*hosts), *found(host(hog))] for line in one["fix"]]
    given = [line for line in lines if "/tmp/owned" in line]
    assert given
    # Each sign of a shell that is left is the rule's own.
    assert not [line for line in given if re.search(r"[;$`|&<>]|'.*'.*'", line)]
