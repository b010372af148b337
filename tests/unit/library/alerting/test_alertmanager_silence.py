"""The module that silences: invalid options, and its requests to a server with Alertmanager's API."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import alertmanager_silence as module
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from rendered import trusted

ROOT = Path(__file__).resolve().parents[4]
NOTIFY = ROOT / "roles" / "notify"
PASSWORD = "not-a-real-password"
SAFE = {"name": "alertname", "operator": "!~", "value": "ShiftMasterDown|HighResponseTime"}
HOSTS = {"name": "instance", "operator": "=~", "value": "app1|app2"}
PROTECTED = ["ShiftMasterDown", "HighResponseTime"]


class Alertmanager(BaseHTTPRequestHandler):
    """/api/v2/silences and /api/v2/silence/<id>, with basic authentication, as in Alertmanager 0.28."""

    def log_message(self, *_arguments):
        pass

    def respond(self, status, body=None):
        data = json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refused(self):
        self.server.requests.append((self.command, self.path))
        wanted = "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != wanted:
            self.respond(401, "Unauthorized")
            return True
        if self.server.broken:
            self.respond(500, "broken")
            return True
        for one in self.server.silences.values():
            one["status"] = {"state": "expired" if module.timestamp_of(one["endsAt"]) <= time.time() else "active"}
        return False

    def do_GET(self):
        if self.refused():
            return
        if self.path == "/api/v2/silences":
            return self.respond(200, list(self.server.silences.values()))
        one = self.server.silences.get(self.path.rpartition("/")[2])
        return self.respond(200 if one else 404, one)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        for key in ("matchers", "startsAt", "endsAt", "createdBy", "comment"):
            if not body.get(key):
                return self.respond(422, {"code": 602, "message": f"{key} in body is required"})
        if body.get("id") and body["id"] not in self.server.silences:
            return self.respond(404, "silence not found")
        body["id"] = body.get("id") or str(uuid.uuid4())
        self.server.silences[body["id"]] = body
        return self.respond(200, {"silenceID": body["id"]})

    def do_DELETE(self):
        if self.refused():
            return
        one = self.server.silences.get(self.path.rpartition("/")[2])
        if not one:
            return self.respond(404)
        one["endsAt"] = module.format_time(time.time() - 1)
        return self.respond(200)


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Alertmanager)
    server.silences, server.requests, server.broken = {}, [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def silence(server, run_module):
    def silence(**more):
        arguments = {
            "url": f"http://127.0.0.1:{server.server_address[1]}",
            "user": "admin",
            "password": PASSWORD,
            "matchers": [SAFE, HOSTS],
            "comment": "deploy of 2.4.1",
            "run_id": "run-1",
        }
        return run_module(module, **{**arguments, **more})

    return silence


def living(server):
    return [one for one in server.silences.values() if module.timestamp_of(one["endsAt"]) > time.time()]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matchers", "output"),
    [
        ([HOSTS], "would silence ShiftMasterDown"),
        ([HOSTS, {"name": "alertname", "operator": "=", "value": "HighResponseTime"}], "HighResponseTime"),
        ([HOSTS, {"name": "alertname", "operator": "!=", "value": "ShiftMasterDown"}], "HighResponseTime"),
        ([HOSTS, {"name": "alertname", "operator": "=~", "value": "Shift.*"}], "ShiftMasterDown"),
        ([HOSTS, {"name": "alertname", "operator": "=~", "value": "[[:alpha:]]+"}], "is unknown"),
        ([HOSTS, {"name": "alertname", "operator": "!~", "value": r"\pL+"}], "is unknown"),
        ([HOSTS, {"name": "alertname", "operator": "=~", "value": "("}], "is unknown"),
        ([SAFE], "no matcher names what is silenced"),
        ([SAFE, {"name": "instance", "operator": "=", "value": ""}], "no matcher names what is silenced"),
        ([SAFE, {"name": "instance", "operator": "=~", "value": ".*"}], "no matcher names what is silenced"),
        ([SAFE, {"name": "instance", "operator": "=~", "value": ".+"}], "stands for everything"),
    ],
)
def test_a_silence_that_is_too_wide_is_refused(matchers, output):
    assert output in "; ".join(module.matcher_problems(matchers, PROTECTED, False))


@pytest.mark.parametrize(
    "matchers",
    [
        [SAFE, HOSTS],
        [HOSTS, {"name": "alertname", "operator": "=", "value": "HighCPUUsage"}],
        [HOSTS, {"name": "alertname", "operator": "=~", "value": "Celery.*|NginxDown"}],
        [HOSTS, {"name": "alertname", "operator": "!=", "value": "ShiftMasterDown"},
         {"name": "alertname", "operator": "!=", "value": "HighResponseTime"}],
    ],
)  # fmt: skip
def test_a_silence_that_leaves_the_protected_alerts_out_is_accepted(matchers):
    assert module.matcher_problems(matchers, PROTECTED, False) == []


def test_maintenance_may_silence_them_but_not_everything():
    assert module.matcher_problems([HOSTS], PROTECTED, True) == []
    assert module.matcher_problems([], PROTECTED, True)


@pytest.mark.parametrize("seconds", [0, -5, 7201])
def test_its_duration_is_bounded(silence, server, seconds):
    result = silence(duration_seconds=seconds)
    assert result["failed"] and "between 1 and 7200" in result["msg"] and not server.requests


def test_wrong_arguments_fail_even_where_reaching_is_not_required(silence):
    assert silence(matchers=[HOSTS], required=False)["failed"]
    assert silence(comment=" ", required=False)["failed"]
    assert silence(state="absent", run_id="", required=False)["failed"]


# --- requests to the server -------------------------------------------------------------------------------------------


def test_it_is_made_once_and_carries_the_run(silence, server):
    first, second = silence(), silence()
    assert first["changed"] and not second["changed"] and first["id"] == second["id"]
    (one,) = living(server)
    assert one["comment"] == "deploy of 2.4.1 [run run-1]"
    assert one["matchers"] == [
        {"name": "alertname", "value": SAFE["value"], "isRegex": True, "isEqual": False},
        {"name": "instance", "value": "app1|app2", "isRegex": True, "isEqual": True},
    ]
    assert 1700 < module.timestamp_of(one["endsAt"]) - time.time() <= 1801


def test_a_longer_one_extends_it(silence, server):
    first, second = silence(duration_seconds=300), silence(duration_seconds=1800)
    assert second["changed"] and second["id"] == first["id"] and len(server.silences) == 1
    assert module.timestamp_of(living(server)[0]["endsAt"]) - time.time() > 1700


def test_another_run_has_its_own(silence, server):
    silence()
    silence(run_id="run-11")
    assert len(living(server)) == 2
    result = silence(state="absent", run_id="run-1")
    assert result["changed"] and len(result["ended"]) == 1
    assert [one["comment"] for one in living(server)] == ["deploy of 2.4.1 [run run-11]"]


def test_ended_by_id_and_only_once(silence, server):
    name = silence()["id"]
    assert silence(state="absent", id=name)["ended"] == [name] and not living(server)
    again = silence(state="absent", id=name)
    assert (again["changed"], again["ended"], again["reached"]) == (False, [], True)
    assert not silence(state="absent", id="never-there")["changed"]


def test_check_mode_queries_and_sends_nothing(silence, server):
    assert silence(check_mode=True)["changed"]
    assert [method for method, _path in server.requests] == ["GET"] and not server.silences
    silence()
    assert silence(state="absent", check_mode=True)["changed"] and living(server)


def test_an_unreachable_alertmanager_is_a_failure_or_a_warning_by_option(silence, server):
    away = "http://127.0.0.1:1"
    assert silence(url=away)["failed"]
    result = silence(url=away, required=False)
    assert not result.get("failed") and result["reached"] is False and result["changed"] is False
    assert "Alertmanager: http" in result["problem"]
    assert silence(url=away, required=False, state="absent")["ended"] == []
    server.broken = True
    assert "500: broken" in silence(required=False)["problem"]


def test_a_wrong_password_is_reported_without_it(silence):
    result = silence(password="wrong-password-here")
    assert result["failed"] and "401" in result["msg"] and "wrong-password-here" not in json.dumps(result)


def test_a_response_of_another_server_is_reported(silence, server, monkeypatch):
    monkeypatch.setattr(Alertmanager, "do_GET", lambda self: self.respond(200, {"not": "a list"}))
    assert "no Alertmanager" in silence()["msg"]


def test_times_are_those_of_alertmanager():
    assert module.timestamp_of("2026-01-31T08:00:00.5Z") == module.timestamp_of("2026-01-31T17:00:00+09:00") + 0.5


# --- the calls of role notify -----------------------------------------------------------------------------------------


def wanted(name, **variables):
    known = {}
    for part in ("defaults", "vars"):
        known.update(yaml.safe_load((NOTIFY / part / "main.yml").read_text(encoding="utf-8")))
    return Templar(DataLoader(), variables=trusted({**known, "notify_silence_hosts": ["app1"], **variables})).template(
        trust_as_template("{{ %s }}" % name)
    )


def silent(labels, **variables) -> bool:
    """Whether one of the role's silences matches."""
    sets = [wanted(name, **variables) for name in ("__notify_matchers", "__notify_site_matchers")]
    for one in sets:
        protected = wanted("notify_protected_alerts", **variables)
        assert module.matcher_problems(one, protected, variables.get("notify_silence_maintenance", False)) == []
    labels = {"env": "production", **labels}
    return any(all(module.matches(one, labels.get(one["name"], "")) for one in matchers) for matchers in sets)


def test_a_deploy_silences_what_it_causes_of_its_hosts_and_of_the_entire_site():
    assert silent({"alertname": "SlowRequestsFrequent", "instance": "app1", "service": "application"})
    # It silences the page and the application itself: a run that was killed would leave an outage without a message.
    assert not silent({"alertname": "NginxDown", "instance": "app1", "service": "web"})
    assert silent({"alertname": "CeleryWorkersDown", "service": "celery"})
    assert not silent({"alertname": "CeleryWorkersDown", "service": "celery", "env": "staging"})
    assert not silent({"alertname": "SlowRequestsFrequent", "instance": "app2", "service": "application"})
    # A site's own alert about one queue host is not meant.
    assert not silent({"alertname": "CeleryWorkersDown", "instance": "app2", "service": "celery"})
    for alert in ("HighErrorRate", "ErrorBudgetBurnFast", "AvailabilityBudgetBurnFast", "HighResponseTime"):
        assert not silent({"alertname": alert, "service": "application"})
    assert not silent({"alertname": "WebsiteDown", "instance": "app1", "service": "web"})


def test_maintenance_silences_alerts_about_the_unreachable_site():
    maintenance = {"notify_silence_maintenance": True}
    for alert in ("HighResponseTime", "CeleryQueueOld"):
        assert silent({"alertname": alert, "service": "application"}, **maintenance)
    assert silent({"alertname": "ShiftMasterDown", "instance": "app1", "service": "application"}, **maintenance)
    assert not silent({"alertname": "ErrorBudgetBurnFast", "service": "application"}, **maintenance)


def test_alerts_of_the_entire_site_that_a_run_silences_have_no_host():
    cases = yaml.safe_load((ROOT / "monitoring/cases/celery.yml").read_text(encoding="utf-8"))
    for alert in wanted("notify_silence_site_alerts"):
        assert not [one for one in cases[alert]["fires"] if "instance" in one["labels"]], alert
