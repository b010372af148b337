"""The module that sends notifications, against servers that accept what Slack, PagerDuty and SMTP document."""

from __future__ import annotations

import itertools
import json
import os
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import receivers as local
import rendered
import shiftmaster_notify as module
import yaml
from ansible.module_utils.shiftmaster.notify import text as notify_text

ROOT = Path(__file__).resolve().parents[3]
KEY = "0123456789abcdef0123456789abcdef"
HOOK = "/services/T00000000/B00000000/abcdefghijklmnopqrstuvwx"
PASSWORD = "mail-password-of-the-test"
EVERY = list(itertools.product(notify_text.EVENTS, notify_text.STATUSES, ("ja", "en", "both")))
DETAILS = {
    "version": "2.4.1",
    "previous": "2.4.0",
    "hosts": ["app1", "app2"],
    "user": "操作 担当",
    "duration": "74 s",
    "reason": 'migration 0012 failed: <relation "a&b"> is missing',
    "notes": ["one", "two"],
}
LINKS = [{"text": "Dashboard", "href": "https://mon1.example.com:3000/d/shiftmaster-deploys"}]


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = str(directory / "host.crt"), str(directory / "host.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key,
         "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.fixture
def receivers(pair, tmp_path):
    receivers = local.Receivers(
        str(tmp_path / "messages.jsonl"), certificate=pair[0], key=pair[1], http_tls=True, user="mailer",
        password=PASSWORD,
    ).start()  # fmt: skip
    yield receivers
    receivers.stop()


@pytest.fixture
def arguments(receivers, pair):
    ports = receivers.ports
    base = f"https://localhost:{ports['pagerduty']}"
    return {
        "event": "deploy",
        "status": "succeeded",
        "environment": "production",
        "details": DETAILS,
        "links": LINKS,
        "ca_file": pair[0],
        "slack": {"url": f"https://localhost:{ports['slack']}{HOOK}", "channel": "#shiftmaster-alerts"},
        "email": {"host": "localhost", "port": ports["smtp"], "user": "mailer", "password": PASSWORD,
                  "sender": "alerts@shiftmaster.local", "recipients": ["admin@hospital.local"]},
        "pagerduty": {"routing_key": KEY, "url": f"{base}/v2/enqueue", "change_url": f"{base}/v2/change/enqueue"},
        "timeout_seconds": 8,
    }  # fmt: skip


@pytest.fixture
def send(run_module, arguments):
    return lambda **more: run_module(module, **{**arguments, **more})


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("details", [DETAILS, {}, dict.fromkeys(notify_text.LABELS, "<&>長い" * 5000)])
def test_messages_respect_the_documented_limits(details):
    for event, status, language in EVERY:
        about = (event, status, "production", details, language, LINKS * 9)
        assert local.slack_problems(notify_text.slack(*about, "#shiftmaster-alerts")) == []
        for kind, message in notify_text.pagerduty(*about, "2026-01-31T08:00:00Z"):
            evaluate = local.change_event_problems if kind == "change" else local.alert_event_problems
            assert evaluate(dict(message, routing_key=KEY)) == []
        subject, text, page = notify_text.email(*about)
        assert "\n" not in subject and len(subject) <= 200 and text and page.count("<html") == 1


def test_every_title_is_a_sentence_with_and_without_a_version():
    for event, status, language in EVERY:
        for details in ({"version": "2.4.1"}, {}):
            output = notify_text.titles(event, status, details, language)
            assert "{" not in output and "  " not in output and output[0] == output[0].upper()
    assert notify_text.titles("deploy", "failed", {}, "en") == "Deploy of the application failed"
    assert notify_text.titles("deploy", "succeeded", {}, "en") == "The application is deployed"
    assert notify_text.titles("rollback", "failed", {}, "ja") == "前のバージョン へのロールバックに失敗しました"


def test_both_languages_are_complete():
    for texts in (notify_text.TITLES, notify_text.ADVICE, notify_text.LABELS):
        for english, japanese in texts.values():
            assert english.isascii() and not japanese.isascii()
    assert set(notify_text.TITLES) == set(itertools.product(notify_text.EVENTS, notify_text.STATUSES))
    text = notify_text.email("deploy", "failed", "production", DETAILS, "both", [])[1]
    assert "対応: " in text and "Action: " in text and text.index("対応") < text.index("Action")
    assert "Action" not in notify_text.email("deploy", "failed", "production", DETAILS, "ja", [])[1]


def test_a_failure_and_what_fixes_it_have_one_key():
    key = notify_text.dedup_key("deploy", "production")
    assert key == notify_text.dedup_key("rollback", "production") == "shiftmaster/production/release"
    assert len({notify_text.dedup_key(event, "production") for event in ("deploy", "backup", "restore", "health")}) == 4
    assert key != notify_text.dedup_key("deploy", "staging")
    assert len(notify_text.dedup_key("deploy", "x" * 400)) <= 255


def test_text_for_slack_is_never_cut_within_an_entity():
    for limit in range(20, 60):
        written = notify_text.slack_escape("<&>" * 30, limit)
        assert len(written) <= limit and local.slack_text_problems("x", written, limit) == []


def test_a_subject_has_one_line():
    subject, _text, _page = notify_text.email("deploy", "failed", "p", {"version": "1\r\nBcc: x@y.z"}, "en", [])
    assert subject == "[ShiftMaster] Deploy of 1 Bcc: x@y.z failed (p)"


# --- delivery ---------------------------------------------------------------------------------------------------------


def test_a_deploy_reaches_all_channels(send, receivers):
    result = send()
    assert result["sent"] == ["email", "pagerduty", "slack"] and result["problems"] == {} and not result["changed"]
    assert [message for message in receivers.record.of() if not message["ok"]] == []
    (slack,) = receivers.record.of("slack")
    assert slack["body"]["channel"] == "#shiftmaster-alerts"
    attachment = slack["body"]["attachments"][0]
    assert attachment["color"] == "good" and "&lt;relation" in attachment["text"]
    assert "<https://mon1.example.com:3000/d/shiftmaster-deploys|Dashboard>" in attachment["text"]
    (mail,) = receivers.record.of("smtp")
    assert mail["encrypted"] and mail["user"] == "mailer" and mail["recipients"] == ["admin@hospital.local"]
    assert mail["headers"]["subject"] == "[ShiftMaster] 2.4.1 をデプロイしました / 2.4.1 is deployed (production)"
    assert "操作 担当" in mail["plain"] and "&lt;relation" in mail["html"]
    assert [one["kind"] for one in receivers.record.of("pagerduty")] == ["change", "alert"]


def test_a_checklist_is_sent_with_its_page(send, receivers):
    page = "<!DOCTYPE html><p>朝のチェックリスト</p>\n"
    send(
        event="checklist", status="failed", details={"checklist": "morning", "reason": "☒ ディスク"},
        attachments=[{"name": "morning.html", "content": page}],
    )  # fmt: skip
    (mail,) = receivers.record.of("smtp")
    assert mail["ok"] and mail["attached"]["morning.html"].split("\r\n") == page.split("\n")
    assert (
        "朝のチェックリスト: 要対応の項目があります / Morning checklist: not everything is good"
        in mail["headers"]["subject"]
    )
    assert "☒ ディスク" in mail["plain"]


def test_a_failure_is_an_alert_and_its_success_resolves_it_under_the_same_key(send, receivers):
    send(status="failed")
    send(event="rollback", status="succeeded")
    trigger, change, resolve = (one["body"] for one in receivers.record.of("pagerduty"))
    assert (trigger["event_action"], resolve["event_action"]) == ("trigger", "resolve")
    assert trigger["dedup_key"] == resolve["dedup_key"]
    assert trigger["payload"]["source"] == "shiftmaster"
    assert {"component", "time"} <= set(trigger["payload"]["custom_details"])
    assert "event_action" not in change


def test_a_test_is_visible_at_pagerduty_and_leaves_nothing_open(send, receivers):
    send(event="test", status="succeeded")
    trigger, resolve = (one["body"] for one in receivers.record.of("pagerduty"))
    assert (trigger["event_action"], trigger["payload"]["severity"]) == ("trigger", "info")
    assert resolve["event_action"] == "resolve" and trigger["dedup_key"] == resolve["dedup_key"]


def test_a_start_is_not_sent_to_pagerduty(send, receivers):
    assert send(status="started")["sent"] == ["email", "slack"] and not receivers.record.of("pagerduty")


def test_a_channel_that_is_down_is_reported_and_affects_no_other(send, receivers):
    receivers.record.set_down("slack", "refuse", 60)
    result = send(timeout_seconds=2)
    assert (
        result["sent"] == ["email", "pagerduty"] and set(result["problems"]) == {"slack"} and not result.get("failed")
    )


def test_a_service_that_is_busy_is_queried_again(send, receivers):
    receivers.record.set_down("pagerduty", "500", 1)
    assert "pagerduty" in send()["sent"]


@pytest.mark.parametrize("receiver", ["slack", "pagerduty"])
def test_a_service_that_hangs_costs_no_more_than_the_timeout(send, receivers, receiver):
    receivers.record.set_down(receiver, "hang", 60)
    started = time.monotonic()
    result = send(timeout_seconds=4)
    assert time.monotonic() - started < 15 and set(result["problems"]) == {receiver}


def test_a_mail_server_that_does_not_respond_costs_no_more_than_the_timeout(send, arguments):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        result = send(timeout_seconds=4, email={**arguments["email"], "port": silent.getsockname()[1]})
        assert time.monotonic() - started < 15 and set(result["problems"]) == {"email"}


def test_an_untrusted_certificate_is_rejected(send, receivers):
    result = send(ca_file=None, timeout_seconds=2)
    assert result["sent"] == [] and all("certificate" in text for text in result["problems"].values())
    assert receivers.record.of() == []


def test_a_wrong_password_is_reported_without_it(send, arguments):
    result = send(email={**arguments["email"], "password": "wrong-password-here"})
    assert "535" in result["problems"]["email"] and "wrong-password-here" not in json.dumps(result)


def test_a_revoked_webhook_is_reported_without_its_address(send, arguments):
    url = arguments["slack"]["url"].replace(HOOK, "/services/gone-secret")
    result = send(slack={"url": url})
    assert "404 no_service" in result["problems"]["slack"] and "gone-secret" not in json.dumps(result)


def test_it_goes_through_a_proxy(send, receivers):
    requested = []

    def serve(listener):
        connection, _peer = listener.accept()
        requested.append(connection.recv(4096).split(b"\r\n")[0].decode())
        connection.sendall(b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        send(proxy=proxy, pagerduty=None, email=None, timeout_seconds=1)
        thread.join(5)
    assert requested == [f"CONNECT localhost:{receivers.ports['slack']} HTTP/1.1"]


def test_check_mode_sends_nothing_and_reports_what_it_would_send(send, receivers):
    result = send(check_mode=True)
    assert set(result["messages"]) == {"slack", "email", "pagerduty"} and receivers.record.of() == []
    text = json.dumps(result["messages"])
    assert KEY not in text and HOOK not in text and PASSWORD not in text


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SHIFTMASTER_CALLED_AS": "./shiftmaster -E hospital"}, "./shiftmaster -E hospital rollback"),
        ({"AWX_PRIVATE_DATA_DIR": "/runner"}, "ansible-playbook rollback.yml"),
    ],
)
def test_commands_in_every_channel_reach_the_hosts_of_the_run(send, monkeypatch, environment, expected):
    """Without an inventory they would reach the demo."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    messages = send(check_mode=True, event="deploy", status="failed", details={"version": "2.1.0"})["messages"]
    assert set(messages) == {"slack", "email", "pagerduty"}
    assert [channel for channel, message in messages.items() if expected not in json.dumps(message)] == []


@pytest.mark.parametrize(
    ("more", "output"),
    [
        ({"slack": {"url": "hooks"}}, {"slack": "slack.url is no URL"}),
        ({"pagerduty": {"routing_key": "short"}}, {"pagerduty": "pagerduty.routing_key is not 32 letters and digits"}),
        ({"email": {"host": "m", "sender": "nobody", "recipients": ["a@b"]}}, {"email": "nobody is no address"}),
        ({"email": {"host": "m", "sender": "a@b", "recipients": []}}, {"email": "email.recipients is empty"}),
        ({"email": {"host": "m", "sender": "a@b", "recipients": ["a@b"], "security": "none", "user": "mailer",
                    "password": PASSWORD}},
         {"email": "email.security is none: no password is sent to another host without encryption"}),
        ({"proxy": "nonsense"}, {"slack": "proxy is no URL", "pagerduty": "proxy is no URL"}),
        ({"links": [{"text": "x", "href": "javascript:1"}]}, {}),
    ],
)  # fmt: skip
def test_a_misconfigured_channel_is_reported_and_affects_no_other(send, receivers, more, output):
    result = send(**more)
    assert result["problems"] == output and not result.get("failed")
    assert result["sent"] == sorted({"slack", "email", "pagerduty"} - set(output))
    assert all(one["ok"] for one in receivers.record.of())


# --- validation of receivers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "output"),
    [
        ({}, "no_text"),
        ({"text": "a < b"}, "entities"),
        ({"text": "a & b"}, "entities"),
        ({"text": "x" * 4001}, "4001"),
        ({"attachments": [{"text": "x"}] * 101}, "too_many_attachments"),
        ({"attachments": [{"text": "x", "color": "blue"}]}, "color"),
        ({"attachments": [{"color": "good"}]}, "neither text nor fallback"),
        ({"text": "x", "channel": "no channel"}, "channel"),
        ({"blocks": [{"type": "section", "text": {"text": "x" * 3001}}]}, "3001"),
    ],
)
def test_slack_refuses(message, output):
    assert output in "; ".join(local.slack_problems(message))


@pytest.mark.parametrize(
    ("more", "output"),
    [
        ({"routing_key": "x"}, "routing_key"),
        ({"event_action": "open"}, "event_action"),
        ({"event_action": "resolve", "dedup_key": ""}, "dedup_key"),
        ({"dedup_key": "x" * 256}, "dedup_key"),
        ({"payload": {"summary": "x" * 1025, "source": "s", "severity": "error"}}, "1024"),
        ({"payload": {"summary": "x", "severity": "error"}}, "source"),
        ({"payload": {"summary": "x", "source": "s", "severity": "bad"}}, "severity"),
        ({"payload": {"summary": "x", "source": "s", "severity": "info", "timestamp": "2026-01-31T08:00:00"}}, "zone"),
        ({"links": [{"text": "x"}]}, "href"),
    ],
)
def test_pagerduty_refuses(more, output):
    event = {
        "routing_key": KEY,
        "event_action": "trigger",
        "payload": {"summary": "x", "source": "s", "severity": "info"},
    }
    assert local.alert_event_problems(event) == []
    assert output in "; ".join(local.alert_event_problems({**event, **more}))


def test_the_mail_server_refuses_what_a_real_one_refuses(receivers, pair):
    with smtplib.SMTP("127.0.0.1", receivers.ports["smtp"], timeout=10) as server:
        assert server.docmd("MAIL", "FROM:<a@b>")[0] == 503
        server.ehlo("x")
        assert not server.has_extn("auth") and server.docmd("MAIL", "FROM:<a@b>")[0] == 530
        assert server.docmd("AUTH", "PLAIN AGEAYg==")[0] == 538
        server.starttls(context=ssl.create_default_context(cafile=pair[0]))
        server.ehlo("x")
        assert server.docmd("MAIL", "FROM:<a@b>")[0] == 530
        server.login("mailer", PASSWORD)
        with pytest.raises(smtplib.SMTPDataError, match="no Date"):
            server.sendmail("a@b", ["c@d"], "Subject: x\r\n\r\nx\r\n")


def test_the_receivers_can_be_set_down_and_return_what_they_received(receivers, send):
    base = f"http://127.0.0.1:{receivers.ports['control']}"
    body = json.dumps({"receiver": "all", "how": "500", "seconds": 60}).encode()
    urllib.request.urlopen(urllib.request.Request(base + "/down", data=body), timeout=5).close()
    assert set(send(timeout_seconds=1)["problems"]) == {"slack", "email", "pagerduty"}
    with urllib.request.urlopen(base + "/messages?receiver=slack", timeout=5) as response:
        assert {one["kind"] for one in json.load(response)} == {"attempt"}
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(base + "/else", timeout=5)


# --- the role ---------------------------------------------------------------------------------------------------------

PLAY = """
- hosts: localhost:second
  connection: local
  gather_facts: false
  any_errors_fatal: true
  vars_files: [vars.json]
  tasks:
    - {include_role: {name: notify}, vars: {notify_event: deploy, notify_status: failed}}
    - include_role: {name: notify, rolespec_validate: false}
      vars: {notify_event: "{{ event[0] }}", notify_status: "{{ event[1] }}"}
      loop: [[rollback, succeeded], [health, succeeded], [health, warning], [backup, started]]
      loop_control: {loop_var: event}
    # What is set up wrongly fails no run either.
    - include_role: {name: notify, rolespec_validate: false}
      vars: {notify_event: test, notify_status: started, notify_slack_url: nonsense}
    # Nobody listens where a message goes.
    - include_role: {name: notify, rolespec_validate: false}
      vars: {notify_event: deploy, notify_status: failed, notify_timeout_seconds: 1, notify_smtp_port: 1,
             notify_slack_url: "https://localhost:1/services/T/B/x", notify_pagerduty_url: "https://localhost:1/"}
    # One host speaks.
    - when: inventory_hostname == 'localhost'
      block:
        - {include_role: {name: notify, tasks_from: silence}}
        - {include_role: {name: notify, tasks_from: unsilence}}
        - {include_role: {name: notify, tasks_from: silence}, vars: {notify_alertmanager_host: away}}
        - {include_role: {name: notify, tasks_from: silence}, vars: {notify_alertmanager_host: here}}
        # So much is refused; a deploy goes on without it.
        - include_role: {name: notify, tasks_from: silence}
          vars: {notify_alertmanager_host: here, notify_silence_seconds: 99999}
        - {include_role: {name: notify, tasks_from: unsilence}, vars: {notify_alertmanager_host: away}}
    - {debug: {msg: "goes on"}}
"""


HOSTS = """
away ansible_host=127.0.0.1 ansible_port=1 ansible_connection=ssh
here ansible_connection=local
second ansible_connection=local
"""


@pytest.fixture
def play(arguments, tmp_path):
    variables = {
        "notify_details": DETAILS,
        "notify_slack_url": arguments["slack"]["url"],
        "notify_smtp_host": "localhost",
        "notify_smtp_port": arguments["email"]["port"],
        "notify_smtp_user": "mailer",
        "notify_smtp_password": PASSWORD,
        "notify_pagerduty_routing_key": KEY,
        "notify_pagerduty_url": arguments["pagerduty"]["url"],
        "notify_pagerduty_change_url": arguments["pagerduty"]["change_url"],
        "notify_ca_file": arguments["ca_file"],
        "notify_silence_hosts": ["app1", "app2"],
        "notify_silence_comment": "deploy of 2.4.1",
        "notify_run_id": "run-1",
        "notify_alertmanager_url": "http://127.0.0.1:1",
    }
    # No listener at port 1: a host that cannot be reached.
    (tmp_path / "hosts").write_text(HOSTS)

    def play():
        (tmp_path / "play.yml").write_text(PLAY)
        (tmp_path / "vars.json").write_text(json.dumps(variables))
        return subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", tmp_path / "hosts", "-v", tmp_path / "play.yml"],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
            env=dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), ANSIBLE_FORCE_COLOR="0",
                     ANSIBLE_CACHE_PLUGIN_CONNECTION=str(tmp_path / "facts"), ANSIBLE_SSH_RETRIES="0"),
        )  # fmt: skip

    return play


def test_the_role_sends_each_channel_its_events_and_fails_no_run(play, receivers):
    done = play()
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    mails = [one["headers"] for one in receivers.record.of("smtp")]
    assert [mail["from"] for mail in mails] == [
        "alerts@shiftmaster.local", "system@shiftmaster.local", "system@shiftmaster.local", "alerts@shiftmaster.local",
    ]  # fmt: skip
    assert "System is healthy" in mails[1]["subject"] and "System Health Alert" in mails[2]["subject"]
    events = [(one["kind"], one["body"].get("event_action")) for one in receivers.record.of("pagerduty")]
    # Of a health check none: an alert pages for what users notice.
    assert events == [("alert", "trigger"), ("change", None), ("alert", "resolve")]
    assert len(receivers.record.of("slack")) == 4
    output = " ".join(done.stdout.split())
    assert "WARNING: slack was not notified: slack.url is no URL" in output
    # The event after it.
    down = output.rpartition("slack.url is no URL")[2]
    assert [name for name in ("slack", "email", "pagerduty") if f"WARNING: {name} was not notified:" not in down] == []
    assert (
        output.count("WARNING: nothing is silenced") == 3
        and "WARNING: the silence of run-1 could not be ended" in output
    )
    assert "this run may cause alerts: away cannot be reached" in output and "between 1 and 7200 seconds" in output
    assert output.count("msg: goes on") == 2 and "changed=0" in output
    # Not even with -v.
    assert not [secret for secret in (KEY, HOOK, PASSWORD) if secret in done.stdout + done.stderr]


@pytest.mark.parametrize(("live", "silenced"), [(["", ""], False), (["", "20261129T140921Z-ec83d94ca5"], True)])
def test_a_first_deploy_queries_no_alertmanager(live, silenced):
    """It warned that nothing is silenced: there is nothing yet, and Alertmanager is installed later in that run."""
    tasks = yaml.safe_load((ROOT / "roles/release/tasks/plan.yml").read_text(encoding="utf-8"))
    (task,) = [task for task in tasks if task["name"] == "Plan | Silence the alerts that this run causes"]
    names = ["app1", "app2"]
    facts = {name: {"release_facts": {"previous": {"name": was}, "plan": {"up_to_date": False}}}
             for name, was in zip(names, live, strict=True)}  # fmt: skip
    templar = rendered.templar("release", hostvars=facts, ansible_play_hosts_all=names, inventory_hostname="app1",
                               shiftmaster_lock_host="app1", notify_alertmanager_host="mon1")  # fmt: skip
    assert all(templar.evaluate_conditional(one) for one in rendered.trusted(task["when"])) is silenced
