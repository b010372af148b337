"""Real faults, as the messages in which they arrive at receivers that check what Slack and PagerDuty document."""

from __future__ import annotations

import contextlib
import html
import json
import re
import subprocess
import time

import alerting as verifications
import pytest
import service_faults
import yaml
from support import ROOT, load, wait_for

EVERYBODY = ("pagerduty", "slack", "smtp")
SENT = ("slack", "smtp")
RULES = {
    rule["alert"]: rule
    for path in sorted((ROOT / "monitoring/rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}


def title(message: dict) -> str:
    if message["receiver"] == "pagerduty":
        # Of alerts under two names there is no class.
        return message["body"]["payload"].get("class", "")
    return (
        (message["headers"]["subject"] if message["receiver"] == "smtp" else message["body"]["attachments"][0]["title"])
        if message["receiver"] in SENT
        else ""
    )


def reports_problem(message: dict, alert: str, place: str = "") -> bool:
    return re.search(rf"(^|\] ){alert}\b", title(message)) is not None and place in verifications.about(message)


def reports_its_end(message: dict) -> bool:
    if message["receiver"] == "pagerduty":
        return message["body"]["event_action"] == "resolve"
    return "resolved" in title(message)


def flat(text: str) -> str:
    """Without the entities of HTML and of Slack, and with one space between words."""
    return " ".join(html.unescape(text).split())


def template(text: str) -> str:
    """The text of a rule with its values."""
    return "".join(
        ".*?" if part.startswith("{{") else re.escape(flat(part)).replace(r"\ ", r"\s*")
        for part in re.split("({{.*?}})", text)
    )


def is_complete(message: dict, alert: str) -> None:
    """The fault, its time and the first action, in both languages, and the runbook."""
    made = RULES[alert]["annotations"]
    if message["receiver"] == "slack":
        texts = {"slack": message["body"]["attachments"][0]["text"]}
    elif message["receiver"] == "smtp":
        texts = {"plain": message["plain"], "html": re.sub(r"<(?!a )[^>]*>", " ", message["html"])}
    else:
        payload = message["body"]["payload"]
        texts = {"pagerduty": payload["summary"] + " " + json.dumps(payload["custom_details"], ensure_ascii=False)}
    for where, text in texts.items():
        printed = flat(text.replace("\\n", " ").replace('\\"', '"'))
        for part in ("summary", "summary_ja", "description", "description_ja"):
            assert re.search(template(made[part]), printed), (where, part, printed)
        assert "First, " in printed and "まず、" in printed, (where, printed)
        assert re.search(r"発生 / Since\W+20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \w+", printed), (where, printed)
        assert made["runbook_url"] in printed, (where, printed)
        assert f"https://monitoring-watch:3000/d/{made['dashboard']}" in printed, (where, printed)


class Fault:
    """One that was done: until it is fixed, and reported in between and afterwards."""

    def __init__(self, alerting, alert: str, fault, receivers, place: str = "", seconds: float = 180):
        self.alerting, self.alert, self.receivers, self.place = alerting, alert, receivers, place
        self.seconds, self.fixed, self.keys = seconds, 0.0, {}
        self.began, self.stack = alerting.now(), contextlib.ExitStack()
        self.stack.enter_context(fault)

    def fits(self, its_end: bool):
        return lambda one: reports_problem(one, self.alert, self.place) and reports_its_end(one) == its_end

    def arrives(self, capsys) -> float:
        """At each receiver of its severity, and at no other; returns the seconds to the last of them."""
        came = {
            one: self.alerting.arrive(one, 1, self.began, self.seconds, self.fits(its_end=False))[0]
            for one in self.receivers
        }
        self.keys = {came["pagerduty"]["body"]["dedup_key"]} if "pagerduty" in came else set()
        reported = {
            one["receiver"] for one in self.alerting.messages("", self.began) if reports_problem(one, self.alert)
        }
        assert reported == set(self.receivers)
        for message in came.values():
            is_complete(message, self.alert)
        took = max(one["at"] for one in came.values()) - self.began
        with capsys.disabled():
            print(f"\n  {self.alert}: {took:.0f} s from the fault to its messages")
        return took

    def fix(self) -> None:
        if not self.fixed:
            self.fixed = self.alerting.now()
            self.stack.close()

    def is_resolved(self, capsys, seconds: float = 420) -> None:
        """Every receiver of the alert gets its end; PagerDuty under the same key.

        Also one that has ended by itself before it was fixed, as a deadlock does when it has left the rule's window.
        """
        ends = {
            one: self.alerting.arrive(one, 1, self.began, seconds, self.fits(its_end=True))[0] for one in self.receivers
        }
        if self.keys:
            assert {ends["pagerduty"]["body"]["dedup_key"]} == self.keys
        took = max(0, max(one["at"] for one in ends.values()) - self.fixed)
        with capsys.disabled():
            print(f"\n  {self.alert}: {took:.0f} s from its fix to the last message")


def comes_and_goes(alerting, capsys, *fault, **more) -> float:
    done = Fault(alerting, *fault, **more)
    try:
        took = done.arrives(capsys)
    finally:
        done.fix()
    done.is_resolved(capsys)
    return took


def test_deploys_that_failed_have_fired_no_alert(watch, alerting, observed):
    """As long as what happened is within the windows of the rules, users continue to work (test_deploys.py)."""
    assert observed.last, "no deploy failed"
    time.sleep(max(0, observed.last + 360 - alerting.now()))
    observed.end()
    # Meanwhile only alerts caused by the tests of Alertmanager and of its receivers are expected.
    fired = {
        one["metric"]["alertname"]
        for one in watch.query("ALERTS{alertstate='firing',service!='monitoring'}", observed.since)
    }
    assert fired - observed.known - {*verifications.MACHINE, *verifications.BUDGETS} == set()


@pytest.mark.sample
def test_the_application_is_down(hosts, watch, alerting, capsys):
    comes_and_goes(
        alerting, capsys, "ShiftMasterDown", service_faults.units_stopped(hosts.app, "shiftmaster.service"), EVERYBODY,
        hosts.app.host,
    )  # fmt: skip
    # Within a minute: what is waited for at most, as it runs, until a message is sent.
    defaults = yaml.safe_load((ROOT / "roles/alertmanager/defaults/main.yml").read_text(encoding="utf-8"))
    rule = watch.rule("ShiftMasterDown")
    waits = watch.intervals()
    waits = (waits["shiftmaster"], rule["duration"], waits["shiftmaster.alerts"])
    assert sum(waits) + defaults["alertmanager_group_wait_seconds"] <= 55, waits


@pytest.mark.parametrize("host", ["app", "standby"])
def test_a_database_is_down(hosts, alerting, scaled, capsys, host):
    place = vars(hosts)[host]
    comes_and_goes(
        alerting, capsys, "DatabaseConnectionError", service_faults.units_stopped(place, "postgresql@17-main.service"),
        EVERYBODY, place.host,
    )  # fmt: skip


def test_nothing_is_committed(hosts, alerting, scaled, capsys):
    comes_and_goes(
        alerting, capsys, "DatabaseCommitsWait", service_faults.commits_wait(hosts.app), EVERYBODY, hosts.app.host
    )


def one_message_to_each_receiver(alerting, watch, host, others: set, capsys) -> None:
    """All alerts of a host that is switched off, in ten minutes of the rules."""
    # For a quarter of an hour Prometheus repeats that another host is back, and Alertmanager sends it again with what
    # is new of the same name.
    watch.forget_ended()
    # A fault that has just ended may still be reported; this fault is reported once, and not as another one's end.
    wait_for(
        lambda: not {"HostDown", *others} & {one["alertname"] for one in watch.lately()},
        900,
        "the end of their messages",
    )
    known = {(one["alertname"], one.get("instance", "")) for one in watch.lately()}
    known |= {(alert, "") for alert in (*verifications.MACHINE, *verifications.BUDGETS)}
    since = alerting.now()
    # One that is only paused still responds to pings, by the kernel. As with the power: systemd would end services
    # one by one, which takes as long as ever, and the divided durations would pass meanwhile.
    subprocess.run(["docker", "kill", host.host], check=True, capture_output=True)
    try:
        for receiver in EVERYBODY:
            alerting.arrive(receiver, 1, since, 180, lambda one: reports_problem(one, "HostDown", host.host))
        with capsys.disabled():
            print(f"\n  HostDown: {alerting.now() - since:.0f} s from the fault to its messages")
        time.sleep(max(0, since + 600 / watch.factor - alerting.now()))
        reported = [
            one
            for one in alerting.messages("", since)
            if one["receiver"] != "deadman" and not any(reports_problem(one, alert, place) for alert, place in known)
        ]
        assert sorted(one["receiver"] for one in reported) == sorted(EVERYBODY), [title(one) for one in reported]
        # It was no silence: there was more to report.
        fired = {one["metric"]["alertname"] for one in watch.query("ALERTS{alertstate='firing'}", since)}
        assert fired >= others, fired
    finally:
        subprocess.run(["docker", "start", host.host], check=True, capture_output=True)
    wait_for(lambda: not watch.query("up == 0"), 300, "all up again")


def test_the_host_with_everything_is_one_message_to_each_receiver(hosts, alerting, watch, scaled, capsys):
    one_message_to_each_receiver(alerting, watch, hosts.app, {"ExporterDown", "ShiftMasterDown"}, capsys)
    assert hosts.app.live_version(180) == "2.0.0"
    watch.seen_once(hosts.app)


# --- faults that last: all at the same time --------------------------------------------------------------------------

# alert: (what does it, its receivers, where, the seconds that it may take)
QUICK = {
    "DatabaseDeadlocks": lambda hosts: (service_faults.deadlock(hosts.app), SENT, hosts.app.host),
    "DatabaseLockWait": lambda hosts: (service_faults.lock_wait(hosts.app), SENT, hosts.app.host),
    "HighResponseTime": lambda hosts: (service_faults.table_held(hosts.app), SENT, "", 420),
    # Metrics of the kernel that all containers share: a stub for the kernel (molecule/monitoring/files).
    "HighCPUUsage": lambda hosts: (service_faults.metric(hosts.watch, "cpu", 97), SENT, hosts.watch.host, 420),
    "HighMemoryUsage": lambda hosts: (service_faults.metric(hosts.watch, "memory", 92), SENT, hosts.watch.host, 300),
    "DiskSpaceWarning": lambda hosts: (service_faults.disk_filled(hosts.app, "/srv/archive", 85), SENT, hosts.app.host,
    300), "ReplicationStopped": lambda hosts: (service_faults.standby_refused(hosts.app), SENT, "", 240),
    "ContainerUnhealthy": lambda hosts: (service_faults.container_failing(hosts.app, "neighbour"), SENT, hosts.app.host,
    300), "ExporterDown": lambda hosts: (
        service_faults.units_stopped(hosts.app, "prometheus-redis-exporter.service"), SENT, hosts.app.host, 300,
    ),
    "UnitFailed": lambda hosts: (service_faults.unit_failed(hosts.app), SENT, hosts.app.host, 300),
}  # fmt: skip
LASTING = {
    "CertificateExpiresSoon": lambda hosts: (service_faults.certificate_near_its_end(hosts.app, 20), SENT, "", 540),
    # The task that waits for them is CeleryQueueOld, which is not sent meanwhile.
    "CeleryWorkersDown": lambda hosts: (service_faults.workers_stopped(hosts.app, 660), EVERYBODY, "", 300),
    "BackupMissing": lambda hosts: (service_faults.backups_missing(hosts.app), SENT, "", 1200),
}
FAULTS = {**QUICK, **LASTING}


@pytest.fixture(scope="module")
def faults(request, hosts, alerting, scaled):
    """Those that the tests of this run need, begun at the same time; fixed at the end at the latest."""
    wanted = {
        value for item in request.session.items if hasattr(item, "callspec") for value in item.callspec.params.values()
    }
    begun = {}
    # A host that has just come back may still be starting it.
    assert hosts.app.live_version(180), "the application does not serve"
    try:
        with load(hosts.app, "--clients", "4", "--think-seconds", "0.5", seconds=3600):
            for alert in FAULTS:
                if alert in wanted:
                    begun[alert] = Fault(alerting, alert, *FAULTS[alert](hosts))
            yield begun
    finally:
        for fault in begun.values():
            fault.fix()


@pytest.mark.parametrize("alert", QUICK)
def test_a_fault_arrives(faults, capsys, alert):
    faults[alert].arrives(capsys)


@pytest.mark.parametrize("alert", LASTING)
def test_a_fault_arrives_after_a_while(faults, capsys, alert):
    faults[alert].arrives(capsys)


def test_the_diagnosis_lists_what_fires(faults, hosts):
    run = hosts.watch.run("playbooks/diagnose.yml", language="en")
    # Ansible breaks long lines.
    behind = flat(run.output).rpartition("Alerts that fire:")[2]
    listed = re.findall(r": (\w+) \(\w+\), since [^()]{5,40} docs/runbooks/\1\.md", behind)
    assert {"ExporterDown", "UnitFailed", "CeleryWorkersDown"} <= set(listed), run.output


@pytest.mark.parametrize("alert", FAULTS)
def test_a_fault_is_resolved(faults, capsys, alert):
    for fault in faults.values():
        fault.fix()
    faults[alert].is_resolved(capsys)


def test_the_standby_s_host_is_one_message_to_each_receiver(hosts, alerting, watch, scaled, capsys):
    """On which much is, and which the primary's slot waits for."""
    one_message_to_each_receiver(alerting, watch, hosts.standby, {"ExporterDown", "ReplicationSlotInactive"}, capsys)
