"""Faults of public post-mortems and of issues, while users are on the site: the true cause is the first finding.

post_mortems.yml was written before any rule was made for them. A healthy host has no finding after any event.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import yaml
from diagnosing import PSQL, carry_out, diagnose_directly, facts_of, forget, processors_first, recorded
from support import load, wait_for

pytestmark = pytest.mark.usefixtures("healthy")
FAULTS = yaml.safe_load((Path(__file__).parent / "post_mortems.yml").read_text(encoding="utf-8"))["faults"]
# Other tests on this machine may use its processors up.
OF_THE_MACHINE = {"CpuShort", "CpuHog", "HostOverwhelmed"}
USERS = ("--rate", "4", "--clients", "4", "--timeout", "10", "--no-read-back")


def filled(command: str, facts: dict) -> str:
    """Commands are full of braces: only the names of facts are replaced."""
    for _nested in range(2):
        for name, value in facts.items():
            command = command.replace("{%s}" % name, str(value))
    return command


@pytest.fixture
def facts(operations):
    found = facts_of(operations)
    recorded(operations)
    run = (
        "systemd-run --quiet --wait --pipe --collect --property=User=shiftmaster"
        " --property=EnvironmentFile={release}/env --property=WorkingDirectory={release}/source {release}/venv/bin/"
    )
    tasks = 'import django; django.setup(); from roster import tasks; [tasks.record_run.delay(key="w%d" % i) for i in range(12)]'
    return {
        **found,
        "psql": PSQL,
        "site": "/etc/nginx/sites-available/shiftmaster",
        "role": operations.shell(f"sed -n 's/^DB_USER=//p' {found['release']}/env").strip().strip('"'),
        "celery": run + "celery -A shiftmaster",
        "tasks": run + f"python -c '{tasks}'",
    }


# A site has been used for hours: the requests of now, again and again in the hour before.
HISTORY = r"""
import json
path = "/var/log/nginx/shiftmaster_access.log"
lines = [json.loads(line) for line in open(path)]
with open(path + ".1", "w") as older:
    for number in range(600):
        one = dict(lines[number % len(lines)])
        one["msec"] -= 3600 - 5 * number
        one["time"] = one["msec"]
        older.write(json.dumps(one) + "\n")
"""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: re.sub(r"\W+", "-", fault["name"]))
def test_the_true_cause_of_an_unknown_fault_is_the_first_finding(operations, facts, fault):
    forget(operations)
    operations.shell(f"cp -p {facts['release']}/env /root/env")
    with load(operations, *USERS, seconds=400):
        # Some twenty pages that were served.
        time.sleep(5)
        operations.shell("python3 -", stdin=HISTORY)
        try:
            operations.shell(filled(fault["inject"], facts), check=False, timeout=200)
            time.sleep(fault.get("seconds", 12))
            seen = diagnose_directly(operations)
            first = next((one for one in seen.report["findings"] if one["rule"] not in OF_THE_MACHINE), None)
            if fault.get("fixed") and first and first["rule"] in fault["rule"].split("|"):
                for command in first["fix"]:
                    carry_out(operations, command)
                again = diagnose_directly(operations)
                assert first["rule"] not in again.names, f"{first['fix']}: {again.output[-4000:]}"
        finally:
            operations.shell(filled(fault["restore"], facts), check=False, timeout=200)
            operations.shell("systemctl reset-failed; true")
    assert first, f"nothing is wrong: {seen.output[-3000:]}"
    assert first["rule"] in fault["rule"].split("|"), f"{seen.names}: {seen.output[-6000:]}"
    assert re.search(
        fault["known"], json.dumps([first["title"], first["cause"], first["evidence"]], ensure_ascii=False)
    )
    assert operations.live_version(90)


# Each: what is done to a healthy host under light load; findings in the minutes after it would be false.
EVENTS = {
    "restart": "systemctl restart shiftmaster",
    "killed worker": "systemctl kill --signal=KILL --kill-whom=main shiftmaster-worker@{slot}",
    "killed web process": "pkill -KILL -n -f gunicorn",
    "backup": "for unit in shiftmaster-backup logrotate; do systemctl start $unit 2>/dev/null; done; true",
    "reload": "systemctl reload nginx",
    "load average of 10": "systemd-run --quiet --unit=busy bash -c"
    " 'for i in 1 2 3 4 5 6 7 8 9 10; do timeout 90 sh -c \"while :; do :; done\" & done; wait; true'; sleep 20",
}
ROUNDS = 10


@pytest.mark.parametrize("event", [*EVENTS, "reboot", "deploy", "rollback"], ids=lambda name: name.replace(" ", "-"))
def test_normal_events_on_a_healthy_host_cause_no_finding(operations, facts, event):
    """`ROUNDS` rounds for each event, over more than a minute."""
    forget(operations)
    false = []
    if event == "reboot":
        operations.reboot()
    with processors_first(operations), load(operations, *USERS, seconds=900):
        time.sleep(8)
        if event == "deploy":
            assert operations.deploy({"2.0.0": "2.1.0"}.get(operations.health()["version"], "2.0.0")).code == 0
        elif event == "rollback":
            assert operations.rollback().code == 0
        elif event in EVENTS:
            operations.shell(filled(EVENTS[event], facts))
            wait_for(lambda: operations.live_version(1), 60, "the host")
        for _round in range(ROUNDS):
            seen = diagnose_directly(operations)
            false += [
                (one["rule"], one["title"]["en"])
                for one in seen.report["findings"]
                if one["rule"] not in OF_THE_MACHINE
            ]
            time.sleep(4)
    operations.shell("systemctl stop busy 2>/dev/null; true")
    assert false == []
