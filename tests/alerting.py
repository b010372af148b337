"""Verifications on a host with Alertmanager: real alerts, and what reaches tests/receivers.py next to it.

Pure functions of a shell on the host, shell(command, stdin=…, timeout=…, check=…) -> stdout, as
tests/support.py's Operations.shell; a scenario calls them one by one.
"""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path

import yaml

RECEIVERS = Path(__file__).resolve().with_name("receivers.py")
LOG = "/var/log/receivers.jsonl"
CONTROL = "http://127.0.0.1:9590"
# Credentials of the receivers; a scenario passes the same ones to the roles.
SLACK_URL = "https://localhost:9591/services/T00000000/B00000000/abcdefghijklmnopqrstuvwx"
PAGERDUTY_URL = "https://localhost:9592/v2/enqueue"
PAGERDUTY_CHANGE_URL = "https://localhost:9592/v2/change/enqueue"
DEADMAN_URL = "https://localhost:9593/deadman/token-of-the-test"
SMARTHOST = "localhost:9587"
CRITICAL = ("pagerduty", "slack", "smtp")
# Alerts of metrics that containers share with the machine which runs them, and with everything else that runs on it.
MACHINE = (
    "ClockNotSynchronised", "ClockSkew", "OOMKill", "DiskFullPredicted", "DiskFullSoon", "DiskSaturated",
    "InodesExhaustedPredicted",
)  # fmt: skip
# Alerts of budgets of days: on a new system they report earlier tests, and may end and begin again.
BUDGETS = ("AvailabilityBudgetBurnSlow", "ErrorBudgetBurnSlow", "LatencyBudgetBurnSlow")
# Names of one run of the tests: an alert of an earlier one fires for an hour and sends no second notification.
RUN = f"{int(time.time()) % 1000000:06d}"


def iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def alert(name: str, instance: str = "app1", severity: str = "critical", service: str = "application", **annotations):
    """An alert as Prometheus sends it, with this repository's labels and annotations; without instance: of the site."""
    labels = {"alertname": name, "severity": severity, "service": service, "env": "test"}
    return {
        "labels": {**labels, **({"instance": instance} if instance else {})},
        "annotations": {
            "summary": f"{name} on {instance}",
            "summary_ja": f"{instance} で {name} が発生しました",
            "description": "It is < 1 & says <nothing>",
            "description_ja": "応答がありません",
            "runbook_url": f"docs/runbooks/{name}.md",
            "dashboard": "shiftmaster-overview",
            **annotations,
        },
        "startsAt": iso(time.time()),
        "generatorURL": "https://mon1:9090/graph",
    }


class Alerting:
    """Alertmanager and the receivers on one host."""

    def __init__(self, shell, user="admin", password="", ca="/etc/ssl/shiftmaster/ca.crt"):
        self.shell, self.user, self.password, self.ca = shell, user, password, ca

    # -- receivers ---------------------------------------------------------------------------------------------------

    def start_receivers(self, smtp_user: str, smtp_password: str, directory="/etc/ssl/shiftmaster") -> None:
        self.shell("install -D -m 0755 /dev/stdin /usr/local/lib/receivers.py", stdin=RECEIVERS.read_text())
        self.shell("install -m 0600 /dev/stdin /root/receivers.password", stdin=smtp_password)
        self.shell(
            "systemctl stop receivers.service; systemctl reset-failed receivers.service; "
            f"rm -f {LOG}", check=False,
        )  # fmt: skip
        self.shell(
            "systemd-run --quiet --unit=receivers --collect python3 /usr/local/lib/receivers.py "
            f"--log {LOG} --certificate {directory}/host.crt --key {directory}/host.key --http-tls "
            f"--smtp-user {smtp_user} --smtp-password-file /root/receivers.password"
        )
        self.wait(lambda: self.shell(f"curl -sS {CONTROL}/messages", check=False).startswith("["), 60, "the receivers")

    def messages(self, receiver: str = "", since: float = 0, attempts: bool = False) -> list[dict]:
        """Received messages; refused attempts are left out unless requested."""
        found = json.loads(self.shell(f"curl -sS '{CONTROL}/messages?receiver={receiver}&since={since}'"))
        return [one for one in found if attempts or one.get("kind") != "attempt"]

    def down(self, receiver: str, seconds: float, how: str = "500") -> None:
        body = json.dumps({"receiver": receiver, "how": how, "seconds": seconds})
        self.shell(f"curl -sSf --data-binary @- {CONTROL}/down", stdin=body)

    def now(self) -> float:
        """The host's time."""
        return float(self.shell("date +%s.%N"))

    @staticmethod
    def wait(condition, seconds: float, what: str):
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if found:
                return found
            assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
            time.sleep(1)

    def arrive(self, receiver: str, count: int, since: float, seconds: float = 90, fits=lambda one: True) -> list[dict]:
        """Wait for this many messages of a receiver."""

        def there():
            found = [one for one in self.messages(receiver, since) if fits(one)]
            return found if len(found) >= count else None

        found = self.wait(there, seconds, f"{count} message(s) of {receiver}")
        assert all(one["ok"] for one in found), [one["problems"] for one in found]
        return found

    # -- Alertmanager ------------------------------------------------------------------------------------------------

    def api(self, method: str, path: str, body=None) -> str:
        # The password goes by a configuration on stdin: it is in no process's arguments.
        lines = [f'user = "{self.user}:{self.password}"', f'cacert = "{self.ca}"', f'request = "{method}"']
        if body is not None:
            text = json.dumps(body, ensure_ascii=False).replace("\\", "\\\\").replace('"', '\\"')
            lines += [f'data-binary = "{text}"', 'header = "Content-Type: application/json"']
        lines.append(f'url = "https://localhost:9093{path}"')
        return self.shell("curl -sS --fail-with-body -m 20 -K -", stdin="\n".join(lines))

    def send(self, *alerts: dict, seconds: float = 3600) -> None:
        """Fire, or repeat that they fire, as Prometheus does each minute."""
        self.api("POST", "/api/v2/alerts", [{**one, "endsAt": iso(time.time() + seconds)} for one in alerts])

    def resolve(self, *alerts: dict) -> None:
        self.api("POST", "/api/v2/alerts", [{**one, "endsAt": iso(time.time())} for one in alerts])

    def group_wait_seconds(self) -> int:
        """How long the first message of a group waits."""
        config = yaml.safe_load(json.loads(self.api("GET", "/api/v2/status"))["config"]["original"])
        return int(config["route"]["group_wait"].removesuffix("s"))

    def ready(self) -> None:
        self.wait(lambda: "OK" in self.shell(f"curl -sS --cacert {self.ca} -K - https://localhost:9093/-/ready",
                                             stdin=f'user = "{self.user}:{self.password}"', check=False),
                  60, "Alertmanager")  # fmt: skip

    def restart(self, signal: str = "") -> None:
        if signal:
            self.shell(f"systemctl kill --signal={signal} prometheus-alertmanager; sleep 3")
        else:
            self.shell("systemctl restart prometheus-alertmanager")
        self.ready()


def about(message: dict) -> str:
    """All text of a message."""
    return json.dumps({key: value for key, value in message.items() if key != "at"}, ensure_ascii=False)


# --- verifications ----------------------------------------------------------------------------------------------------


def critical_reaches_every_receiver_and_is_resolved(alerting: Alerting, name=f"TestCritical{RUN}") -> dict:
    """PagerDuty, Slack and email, each once; resolved under the same key. Returns the seconds to each."""
    since, one = alerting.now(), alert(name)
    alerting.send(one)
    first = {receiver: alerting.arrive(receiver, 1, since)[0] for receiver in CRITICAL}
    trigger = first["pagerduty"]["body"]
    assert trigger["event_action"] == "trigger" and trigger["payload"]["source"] == "shiftmaster"
    assert trigger["payload"]["severity"] == "critical" and trigger["payload"]["component"] == "application"
    assert {"component", "time"} <= set(trigger["payload"]["custom_details"])
    assert first["smtp"]["headers"]["subject"] == f"[ShiftMaster] {name}: app1"
    assert first["smtp"]["encrypted"] and first["smtp"]["html"] and "app1 で" in first["smtp"]["plain"]
    attachment = first["slack"]["body"]["attachments"][0]
    assert attachment["color"] == "danger" and attachment["title"] == f"[ShiftMaster] {name}: app1"
    for receiver in ("slack", "smtp"):
        assert f"docs/runbooks/{name}.md" in about(first[receiver]) and "shiftmaster-overview" in about(first[receiver])
    alerting.resolve(one)
    second = {receiver: alerting.arrive(receiver, 2, since)[1] for receiver in CRITICAL}
    resolve = second["pagerduty"]["body"]
    assert (resolve["event_action"], resolve["dedup_key"]) == ("resolve", trigger["dedup_key"])
    assert second["slack"]["body"]["attachments"][0]["color"] == "good"
    assert second["smtp"]["headers"]["subject"] != first["smtp"]["headers"]["subject"]
    return {receiver: round(message["at"] - since, 1) for receiver, message in first.items()}


def a_warning_pages_no_one(alerting: Alerting, name=f"TestWarning{RUN}") -> None:
    since, one = alerting.now(), alert(name, severity="warning")
    alerting.send(one)
    alerting.arrive("slack", 1, since)
    alerting.arrive("smtp", 1, since)
    alerting.resolve(one)
    alerting.arrive("smtp", 2, since)
    assert not alerting.messages("pagerduty", since)


def information_goes_to_one_channel(alerting: Alerting, seconds: float, name=f"TestInfo{RUN}") -> None:
    """Within the interval that the role was given, as one message for two alerts."""
    since, both = alerting.now(), [alert(f"{name}{number}", severity="info") for number in (1, 2)]
    alerting.send(*both)
    (message,) = alerting.arrive("slack", 1, since, seconds + 60)
    assert f"{name}1" in about(message) and f"{name}2" in about(message)
    alerting.resolve(*both)
    alerting.arrive("slack", 2, since, seconds + 60)
    assert not alerting.messages("smtp", since) and not alerting.messages("pagerduty", since)


def the_watchdog_notifies_regularly(alerting: Alerting, interval: float) -> None:
    since, one = alerting.now(), alert("Watchdog", severity="none", service="monitoring")
    del one["labels"]["instance"]
    alerting.send(one)
    found = alerting.arrive("deadman", 3, since, interval * 6 + 60)
    gaps = [after["at"] - before["at"] for before, after in zip(found, found[1:])]
    assert max(gaps) < interval * 2, gaps
    alerting.resolve(one)
    assert not [
        one for one in alerting.messages("", since) if one["receiver"] != "deadman" and "Watchdog" in about(one)
    ]


def a_host_that_is_down_is_one_message_for_each_receiver(alerting: Alerting) -> None:
    """Twenty alerts of one host in three gusts, its own among the first; nothing more comes for a while."""
    since = alerting.now()
    place = f"db-{RUN}"
    host = alert("HostDown", place, service="host")
    others = [alert(f"TestStorm{RUN}{n}", place, "critical" if n % 2 else "warning", "database") for n in range(19)]
    alerting.send(*others[:8])
    # Within group_wait: what is inhibited is decided when a message is about to be sent.
    alerting.send(host, *others[8:14])
    time.sleep(alerting.group_wait_seconds() + 1)
    alerting.send(host, *others[14:])
    for receiver in CRITICAL:
        alerting.arrive(receiver, 1, since)
    # As long as several intervals of a group.
    deadline = time.monotonic() + 4 * alerting.group_wait_seconds()
    while time.monotonic() < deadline:
        time.sleep(3)
        alerting.send(host, *others)
    found = [one for one in alerting.messages("", since) if place in about(one)]
    counts = {receiver: len([one for one in found if one["receiver"] == receiver]) for receiver in CRITICAL}
    assert counts == dict.fromkeys(CRITICAL, 1), counts
    assert all("HostDown" in about(one) and "TestStorm" not in about(one) for one in found)
    alerting.resolve(host, *others)
    for receiver in CRITICAL:
        alerting.arrive(receiver, 2, since)


def a_receiver_that_was_down_gets_the_alert_afterwards(
    alerting: Alerting, receiver: str, how="500", name=f"TestDown{RUN}"
) -> None:
    """And the others are not held up."""
    since, one = alerting.now(), alert(f"{name}{receiver.title()}")
    seconds = 3 * alerting.group_wait_seconds()
    alerting.down(receiver, seconds, how)
    alerting.send(one)
    for other in set(CRITICAL) - {receiver}:
        alerting.arrive(other, 1, since, 40)
    # The first that it takes comes after it was down.
    message = alerting.arrive(receiver, 1, since, 120)[0]
    assert (
        message["at"] - since >= seconds - 1
        and alerting.messages(receiver, since, attempts=True)[0]["kind"] == "attempt"
    )
    alerting.resolve(one)
    for other in CRITICAL:
        alerting.arrive(other, 2, since)


def a_restart_drops_no_alert(alerting: Alerting, maintenance_seconds: int, signal="", name=f"TestRestart{RUN}") -> None:
    """One alert is sent before, one is undelivered, a silence holds: after the restart each is as it was."""
    since = alerting.now()
    reported, waiting, quiet = (alert(f"{name}{kind}{signal}") for kind in ("Told", "Waiting", "Quiet"))
    matcher = {"name": "alertname", "value": quiet["labels"]["alertname"], "isRegex": False, "isEqual": True}
    silence = {"matchers": [matcher], "startsAt": iso(time.time()), "endsAt": iso(time.time() + 600)}
    silence.update(createdBy="verification", comment="verification")
    made = json.loads(alerting.api("POST", "/api/v2/silences", silence))
    alerting.send(reported, quiet)
    keys = {}
    for receiver in CRITICAL:
        message = alerting.arrive(receiver, 1, since)[0]
        keys[receiver] = message.get("body", {}).get("dedup_key")
    saved = maintenance_seconds + 5 if signal else 0
    alerting.down("all", saved + 45)
    alerting.send(waiting)
    alerting.wait(lambda: [one for one in alerting.messages("pagerduty", since, attempts=True) if not one["ok"]], 60,
                  "an attempt")  # fmt: skip
    if signal:
        # Both are on disk after maintenance_seconds. A kill costs what is younger: a silence that
        # has just been made, the memory of a message that has just been sent (it comes twice).
        time.sleep(saved)
    alerting.restart(signal)
    # Prometheus repeats firing alerts.
    alerting.send(reported, waiting, quiet)
    for receiver in CRITICAL:
        found = alerting.arrive(receiver, 2, since, 240)
        assert [reported["labels"]["alertname"] in about(one) for one in found] == [True, False], "told twice"
        assert waiting["labels"]["alertname"] in about(found[1])
    assert not [one for one in alerting.messages("", since) if quiet["labels"]["alertname"] in about(one)]
    alerting.resolve(reported, waiting, quiet)
    for receiver in CRITICAL:
        found = alerting.arrive(receiver, 4, since)
        assert not [one for one in found if quiet["labels"]["alertname"] in about(one)]
    resolved = [
        one["body"] for one in alerting.messages("pagerduty", since) if one["body"]["event_action"] == "resolve"
    ]
    assert keys["pagerduty"] in {one["dedup_key"] for one in resolved} and len(resolved) == 2
    alerting.api("DELETE", f"/api/v2/silence/{made['silenceID']}")


def a_run_silences_what_it_causes_and_nothing_else(alerting: Alerting, silence, unsilence) -> None:
    """silence() and unsilence() run role notify's tasks for host app-silent, services application and celery."""
    since, place = alerting.now(), "app-silent"
    # Two are of the entire site: what restarts cause, and what a bad release does.
    quiet = [alert(f"TestQuiet{RUN}", place, service="celery"), alert("CeleryQueueGrowing", "", service="celery")]
    heard = [alert("ShiftMasterDown", place), alert("WebsiteDown", place), alert("HighResponseTime", place),
             alert(f"TestElsewhere{RUN}", "app-other", service="celery"),
             alert(f"TestHost{RUN}", place, service="host"), alert("HighErrorRate", "")]  # fmt: skip
    assert silence().changed == 2 and silence().changed == 0
    alerting.send(*quiet, *heard)
    alerting.arrive("pagerduty", len(heard), since)
    time.sleep(15)
    found = alerting.messages("", since)
    reported = {one["labels"]["alertname"] for one in (*quiet, *heard) for message in found
            if one["labels"]["alertname"] in about(message)}  # fmt: skip
    assert reported == {one["labels"]["alertname"] for one in heard}
    assert unsilence().changed == 1 and unsilence().changed == 0
    # Alerts that still fire are sent now.
    for one in quiet:
        name = one["labels"]["alertname"]
        alerting.arrive("pagerduty", 1, since, fits=lambda message, name=name: name in about(message))
    alerting.resolve(*quiet, *heard)
    alerting.arrive("pagerduty", 2 * len(quiet + heard), since)


# --- what is refused --------------------------------------------------------------------------------------------------

# Variables of the role, and the message of the failed run.
REFUSED = {
    "a receiver that is not there": (
        {"alertmanager_routes": [{"matchers": ['team="lab"'], "receiver": "nobody"}]},
        "alertmanager_routes: there is no receiver nobody in alertmanager_receivers",
    ),
    "a secret that is not there": (
        {"alertmanager_receivers": [{"name": "lab", "slack_configs": [{"api_url_file": "/etc/prometheus/absent"}]}]},
        "api_url_file /etc/prometheus/absent does not exist",
    ),
    "a secret that Alertmanager cannot read": (
        {"alertmanager_receivers": [{"name": "lab", "slack_configs": [{"api_url_file": "/root/receivers.password"}]}]},
        "/root/receivers.password cannot be read by prometheus",
    ),
    "a route that keeps critical alerts from people": (
        {
            "alertmanager_routes": [{"matchers": ['service="application"', 'severity="critical"'], "receiver": "none"}],
            "alertmanager_route_tests": [
                {
                    "labels": {"severity": "critical", "service": "application"},
                    "receivers": ["critical-pagerduty", "critical"],
                }
            ],
        },
        "--verify.receivers=critical-pagerduty,critical severity=critical service=application",
    ),
    "a webhook that is none": (
        {"alertmanager_slack_api_url": "hooks"},
        "alertmanager_slack_api_url (vault_alertmanager_slack_url) is no URL",
    ),
    # The tools find nothing wrong with it: only the running Alertmanager does.
    "an authority that is none": (
        {"alertmanager_http_ca_file": "/etc/hostname"},
        "alertmanager_config_last_reload_successful is 0 instead of 1",
    ),
}


def state_of(alerting: Alerting) -> dict:
    """The running state: the configuration in use, since when, and the files."""
    status = json.loads(alerting.api("GET", "/api/v2/status"))
    return {
        "config": status["config"]["original"],
        "started": status["uptime"],
        "files": alerting.shell("find /etc/prometheus -type f -name 'a*' -o -path '*alertmanager/*' -type f | sort | "
                                "xargs sha256sum; stat -c '%n %a %U %G' /etc/prometheus/alertmanager/*"),
    }  # fmt: skip


def a_rejected_configuration_keeps_the_old_one_running(alerting: Alerting, apply, case: str) -> None:
    """apply(**variables) runs the role; what it returns has `code` and `output`."""
    variables, printed = REFUSED[case]
    before = state_of(alerting)
    done = apply(**variables)
    assert done.code != 0 and printed in " ".join(done.output.split()), done.output[-4000:]
    assert state_of(alerting) == before
    metrics = alerting.api("GET", "/metrics")
    assert "\nalertmanager_config_last_reload_successful 1\n" in metrics


def reading_requires_a_password(alerting: Alerting) -> None:
    for path in ("/", "/metrics", "/api/v2/status", "/api/v2/alerts", "/api/v2/silences"):
        code = alerting.shell(
            f"curl -sS -o /dev/null -w '%{{http_code}}' --cacert {alerting.ca} https://localhost:9093{path}"
        )
        assert code == "401", (path, code)
    # Not without TLS either, and no port for a cluster.
    assert "400" in alerting.shell("curl -sS -o /dev/null -w '%{http_code}' http://localhost:9093/", check=False)
    assert ":9094" not in alerting.shell("ss -ltnu")


def no_secret_is_visible(alerting: Alerting, secrets) -> None:
    """Neither in arguments, nor in what is logged, nor in the configuration that the page shows."""
    seen = alerting.shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '; journalctl -u prometheus-alertmanager --no-pager")
    seen += alerting.api("GET", "/api/v2/status") + alerting.shell("cat /etc/prometheus/alertmanager.yml")
    assert not [secret for secret in secrets if secret in seen]
