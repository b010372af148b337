"""The logging pipeline on stand-ins; the application's part on real ones: nginx, Django, Celery, PostgreSQL."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest
from support import APP, SCENARIO_HOME, Operations, wait_for

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
LOGS = "/var/log/shiftmaster"


@pytest.fixture(scope="module")
def app():
    found = Operations(INVENTORY, "logging-trixie")
    assert found.serves(60), "the application does not serve"
    found.manage("seed_demo")
    return found


@pytest.fixture(scope="module")
def log():
    return Operations(INVENTORY, "logging-log")


def python(host, text):
    """Run Python as a process of the release that serves does, with its user, environment and colour."""
    release = f"{APP}/active/release"
    return host.shell(
        "systemd-run --quiet --wait --pipe --collect --property=User=shiftmaster --setenv=SHIFTMASTER_COLOUR=blue "
        f"--property=EnvironmentFile={release}/env --property=WorkingDirectory={release}/source "
        f"{release}/venv/bin/python -",
        stdin="import django\ndjango.setup()\n" + textwrap.dedent(text),
    )


def password(name):
    return (SCENARIO_HOME / "logging" / name).read_text().split()[0]


def test_the_application_writes_json_and_people_can_read_it(app):
    lines = app.shell(f"cat {LOGS}/app.log {LOGS}/celery.log").splitlines()
    events = [json.loads(line) for line in lines if line.startswith('{"@timestamp"')]
    assert events and {event["service"]["environment"] for event in events} == {"demo"}
    assert app.shell(f"stat -c '%U %G %a' {LOGS}/app.log").split() == ["shiftmaster", "adm", "640"]


def test_a_request_is_followed_through_every_part(app):
    """One request that sends a task: nginx makes the id, Django, Celery and PostgreSQL's log have it."""
    answer = app.shell("curl -sk -o /dev/null -D - https://localhost/login/ | tr -d '\\r'")
    (number,) = re.findall(r"(?im)^x-request-id: ([0-9a-f]{32})$", answer)
    nginx = app.shell(f"grep -c {number} /var/log/nginx/shiftmaster_access.log").strip()
    assert nginx == "1"
    # And one with an id of the test's own, in a process of the release: what nginx hands on is the same header.
    own = "feedfacefeedfacefeedfacefeedface"
    python(
        app,
        f"""
        import logging
        from django.test import RequestFactory
        from django.db import connection
        from shiftmaster_monitoring import carry
        from shiftmaster.celery import app

        def view(request):
            with connection.cursor() as cursor:
                cursor.execute("SELECT %s", ["followed"])
            logging.getLogger("followed").error("mail to taro@example.jp")
            app.send_task("celery.accumulate", args=["followed"])

        carry.RequestContext(view)(RequestFactory().get("/", HTTP_X_REQUEST_ID="{own}"))
        """,
    )
    (event,) = [json.loads(line) for line in app.shell(f"grep {own} {LOGS}/app.log").splitlines()]
    assert event["message"] == "mail to [mail]" and event["http"]["request"]["id"] == own
    statement = app.shell(f"grep -h {own} /var/log/postgresql/*.log")
    assert f"/* request_id={own} */ SELECT" in statement
    wait_for(lambda: own in app.shell(f"cat {LOGS}/celery.log"), 30, "the task's lines")
    task = [json.loads(line) for line in app.shell(f"grep {own} {LOGS}/celery.log").splitlines()]
    assert {event["labels"]["task"] for event in task} == {"celery.accumulate"}


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


def test_no_secret_is_readable_for_everybody(app, log):
    secrets = [password(name) for name in ("admin", "writer", "kibana", "canary", "log_key")]
    for host in (app, log):
        found = host.shell(
            "find /etc /var/lib /var/log /usr/local /run -xdev -type f -perm /004 -size -1048577c -print0 2>/dev/null "
            "| xargs -0 grep -lF " + " ".join(f"-e {secret}" for secret in secrets) + " || true"
        )
        assert found.split() == []
        assert not [secret for secret in secrets if secret in host.shell("ps -eo args")]


def test_a_line_is_found_and_verify_says_on_what(app):
    run = app.run("playbooks/verify.yml")
    assert run.code == 0, run.output
    assert "canary: a line is found by search: PASSED" in run.output
    assert "(on a stand-in)" in run.output and "FAILED" not in run.output


def test_the_writer_may_only_write(log):
    secret = password("writer")
    for path, method, wanted in (
        ("logs-shiftmaster.app-demo/_create/0f", "PUT", "201"), ("logs-shiftmaster.app-demo/_search", "POST", "403"),
        ("logs-other-demo/_create/0f", "PUT", "403"), ("_cluster/settings", "GET", "403"),
    ):  # fmt: skip
        status = log.shell(
            "curl -sS -m 20 -o /dev/null -w '%{http_code}' --cacert /etc/ssl/shiftmaster/ca.crt -K - "
            f"-X {method} -H 'Content-Type: application/json' -d '{{}}' https://localhost:9200/{path}",
            stdin=f'user = "shiftmaster_writer:{secret}"\n',
        )
        assert status.strip() == wanted, path
