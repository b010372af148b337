"""The logging pipeline on stubs; the application's part on real ones: nginx, Django, Celery, PostgreSQL."""

from __future__ import annotations

import json
import re
import textwrap
import uuid
from pathlib import Path

import pytest
from support import APP, PASSWORD, ROOT, SCENARIO_HOME, Operations, load, wait_for

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
LOGS = "/var/log/shiftmaster"


@pytest.fixture(scope="module")
def app():
    found = Operations(INVENTORY, "logging-trixie")
    assert found.live_version(60), "the application does not serve"
    found.manage("seed_demo")
    return found


@pytest.fixture(scope="module")
def log():
    return Operations(INVENTORY, "logging-log")


def python(host, text):
    """Run Python as a process of the live release does, with its user, environment and slot."""
    release = f"{APP}/active/release"
    return host.shell(
        "systemd-run --quiet --wait --pipe --collect --property=User=shiftmaster --setenv=SHIFTMASTER_SLOT=blue "
        f"--property=EnvironmentFile={release}/env --property=WorkingDirectory={release}/source "
        f"{release}/venv/bin/python -",
        stdin="import django\ndjango.setup()\n" + textwrap.dedent(text),
    )


def password(name):
    return (SCENARIO_HOME / "logging" / name).read_text().split()[0]


def test_the_application_writes_json_that_group_adm_can_read(app):
    python(app, "import logging\nlogging.getLogger('roster').warning('there is a first line')")
    lines = app.shell(f"cat {LOGS}/app.log {LOGS}/celery.log").splitlines()
    events = [json.loads(line) for line in lines if line.startswith('{"@timestamp"')]
    assert events and {event["service"]["environment"] for event in events} == {"demo"}
    assert app.shell(f"stat -c '%U %G %a' {LOGS}/app.log").split() == ["shiftmaster", "adm", "640"]


# As a browser does it: the form's token, the login, and the order of a draft, which a task works off.
ORDER = """
set -euo pipefail
cd "$(mktemp -d)"
ask() { curl -sSk --cookie jar --cookie-jar jar -e https://localhost/ "$@"; }
token() { awk '$6 == "csrftoken" { print $7 }' jar; }
ask -o /dev/null https://localhost/login/
ask -o /dev/null -D login --data-urlencode "csrfmiddlewaretoken=$(token)" --data-urlencode username=demo \\
  --data-urlencode "password@-" https://localhost/login/
grep -q '^HTTP/[0-9.]* 302' login
draft=https://localhost/roster/east-3/2031-01/draft/
ask -o /dev/null -D - --data-urlencode "csrfmiddlewaretoken=$(token)" $draft | tr -d '\\r'
"""


def test_a_request_is_followed_through_every_part(app):
    """On real parts: nginx makes the id of a request, and Django, PostgreSQL and Celery have it."""
    response = app.shell(ORDER, stdin=PASSWORD)
    assert re.match(r"HTTP/[0-9.]+ 302", response), response
    (number,) = re.findall(r"(?im)^x-request-id: ([0-9a-f]{32})$", response)
    # nginx writes a batch of lines at a time.
    access = "/var/log/nginx/shiftmaster_access.log"
    wait_for(lambda: number in app.shell(f"cat {access}"), 30, "nginx' line")
    (line,) = [json.loads(line) for line in app.shell(f"grep {number} {access}").splitlines()]
    assert line["path"] == "/roster/east-3/2031-01/draft/" and line["status"] == 302

    wait_for(lambda: "succeeded" in app.shell(f"grep {number} {LOGS}/celery.log || true"), 60, "the task's lines")
    events = {
        name: [json.loads(line) for line in app.shell(f"grep {number} {LOGS}/{name}.log").splitlines()]
        for name in ("app", "celery")
    }
    for found in events.values():
        assert {event["http"]["request"]["id"] for event in found} == {number}
    (sent,) = [event for event in events["app"] if event["log"]["logger"] == "site"]
    assert sent["message"] == "roster.tasks.build_draft is sent" and sent["labels"]["route"].endswith("/draft/")
    assert sent["user"]["hash"]
    own = [event for event in events["celery"] if event["log"]["logger"] == "roster.tasks.draft"]
    assert [event["labels"]["task"] for event in own] == ["roster.tasks.build_draft"]
    # The view's own statement, and the task's.
    statements = app.shell(f"grep -h '/[*] request_id={number} [*]/ ' /var/log/postgresql/*.log")
    assert "roster_monthplan" in statements and "roster_assignment" in statements


def test_a_message_is_masked_at_its_source(app):
    python(
        app,
        """
        import logging
        logging.getLogger("followed").error("mail to taro@example.jp, seen-by-the-test")
        """,
    )
    event = json.loads(app.shell(f"grep seen-by-the-test {LOGS}/app.log | tail -n 1"))
    assert event["message"] == "mail to [mail], seen-by-the-test"


def test_logins_are_in_the_audit_log_without_a_name(app):
    python(
        app, "from django.contrib.auth import authenticate\nauthenticate(username='nobody-here', password='wrong-one')"
    )
    last = json.loads(app.shell(f"tail -n 1 {LOGS}/audit.log"))
    assert last["event"]["action"] == "login" and last["event"]["outcome"] == "failure"
    assert "nobody-here" not in json.dumps(last) and len(last["user"]["hash"]) == 20


def test_all_five_roles_have_converged(app, log):
    for unit in ("elasticsearch", "logstash", "kibana", "filebeat"):
        assert log.shell(f"systemctl is-active {unit}").strip() == "active", unit
        assert log.shell(f"apt-mark showhold {unit}").strip() == unit
    assert app.shell("systemctl is-active filebeat").strip() == "active"
    assert app.shell("systemctl is-system-running").strip() == "running"
    assert log.shell("systemctl is-system-running").strip() == "running"


def test_two_nodes_are_one_cluster(log):
    second = Operations(INVENTORY, "logging-log2")
    assert second.shell("systemctl is-active elasticsearch").strip() == "active"
    for host in (log, second):
        response = host.shell(
            "curl -sS -m 20 --cacert /etc/ssl/shiftmaster/ca.crt -K - https://localhost:9200/_cluster/health",
            stdin=f'user = "shiftmaster_admin:{password("admin")}"\n',
        )
        assert {name: json.loads(response)[name] for name in ("status", "number_of_nodes")} == {
            "status": "green", "number_of_nodes": 2,
        }  # fmt: skip
        # The settings that create a cluster remain on no node.
        assert "initial_master_nodes" not in host.shell("cat /etc/elasticsearch/elasticsearch.yml")


def test_elasticsearch_may_lock_its_memory(log):
    # The limit of systemd; a container's own limits may be below.
    assert log.shell("systemctl show -p LimitMEMLOCK --value elasticsearch").strip() == "infinity"
    assert "bootstrap.memory_lock: true" in log.shell("cat /etc/elasticsearch/elasticsearch.yml")


def test_no_secret_is_world_readable(app, log):
    secrets = [password(name) for name in ("admin", "writer", "kibana", "canary", "log_key")]
    for host in (app, log):
        found = host.shell(
            "find /etc /var/lib /var/log /usr/local /run -xdev -type f -perm /004 -size -1048577c -print0 2>/dev/null "
            "| xargs -0 grep -lF " + " ".join(f"-e {secret}" for secret in secrets) + " || true"
        )
        assert found.split() == []
        assert not [secret for secret in secrets if secret in host.shell("ps -eo args")]


def test_a_line_is_found_and_verify_reports_its_checks(app):
    run = app.run("playbooks/verify.yml")
    assert run.code == 0, run.output
    assert "canary: a line is found by search: PASSED" in run.output
    assert "(on a stub)" in run.output and "FAILED" not in run.output


def test_the_writer_may_only_write(log):
    secret = password("writer")
    for path, method, wanted in (
        (f"logs-shiftmaster.app-demo/_create/{uuid.uuid4().hex}", "PUT", "201"),
        ("logs-shiftmaster.app-demo/_search", "POST", "403"),
        ("logs-other-demo/_create/0f", "PUT", "403"), ("_cluster/settings", "GET", "403"),
    ):  # fmt: skip
        status = log.shell(
            "curl -sS -m 20 -o /dev/null -w '%{http_code}' --cacert /etc/ssl/shiftmaster/ca.crt -K - "
            f"-X {method} -H 'Content-Type: application/json' -d '{{}}' https://localhost:9200/{path}",
            stdin=f'user = "shiftmaster_writer:{secret}"\n',
        )
        assert status.strip() == wanted, path


def test_the_watch_writes_what_the_alerts_query(app):
    """Once, as with a Prometheus that reads it: each metric of the rules that is the pipeline's own is in a file."""
    run = app.run("deploy.yml", "--tags", "log_watch", monitoring_hosts=["logging-log"])
    assert run.code == 0, run.output
    text = ""
    for name in ("logging-trixie", "logging-log", "logging-log2"):
        host = Operations(INVENTORY, name)
        host.shell("systemctl stop shiftmaster-log-watch.timer; systemctl start --wait shiftmaster-log-watch.service")
        text += host.shell("cat /var/lib/prometheus/node-exporter/shiftmaster_log*.prom")
        assert not re.findall(r"(?m)^\S+_up 0$", text), text
    rules = (ROOT / "monitoring/rules/logging.yml").read_text(encoding="utf-8")
    expressions = " ".join(re.findall(r"(?m)^ +expr: (.*)$", rules))
    # mtail's, of which there is none here; and a file's name.
    others = {"shiftmaster_log_events_total", "shiftmaster_logging"}
    wanted = set(re.findall(r"\bshiftmaster_\w+", expressions)) - others
    found = set(re.findall(r"(?m)^(shiftmaster_\w+)(?: |\{)", text))
    assert len(wanted) >= 10 and wanted - found == set()
    assert "shiftmaster_log_canary_success 1\n" in text


def test_a_version_that_breaks_under_traffic_is_reported_with_its_cause(app):
    """Only JSON lines count: gunicorn's own log has none of it."""
    with load(app, "--clients", "8", "--think-seconds", "0.3", seconds=400):
        run = app.deploy("broken-template", shiftmaster_watch_seconds=20)
    assert run.code == 2 and run.prints("broke under traffic", f"{LOGS}/app.log"), run.output
    assert run.prints("cause: django.template.exceptions.TemplateDoesNotExist: roster/_calendar.html"), run.output
    assert app.live_version(60) == "2.0.0"


def test_a_run_of_the_tag_changes_nothing(app):
    run = app.run("deploy.yml", "--tags", "logging")
    assert run.code == 0 and run.changed == 0, run.output
    assert len(run.recap) > 1, "the hosts of the pipeline, too"
