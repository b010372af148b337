"""A newer minor version, by one variable: in the right order, host by host. On stubs of both versions."""

from __future__ import annotations

import re
from pathlib import Path

from support import Operations

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
NEWER = "9.100.0"
HOSTS = {"logging-trixie": ["filebeat"], "logging-log": ["elasticsearch", "logstash", "kibana", "filebeat"]}
HOSTS["logging-log2"] = ["elasticsearch"]


def versions():
    found = {}
    for host, parts in HOSTS.items():
        for part in parts:
            text = Operations(INVENTORY, host).shell(f"dpkg-query -W -f '${{Version}}' {part}")
            found[host, part] = text.rpartition(":")[2].partition("-")[0]
    return found


def started(host, unit):
    text = Operations(INVENTORY, host).shell(f"systemctl show -p ActiveEnterTimestampMonotonic --value {unit}")
    return int(text)


def test_a_newer_minor_version_is_installed_by_one_variable():
    app = Operations(INVENTORY, "logging-trixie")
    assert set(versions().values()) == {"9.99.0"}
    for host in HOSTS:
        # apt on the hosts does not know of it yet.
        Operations(INVENTORY, host).shell(f"/root/elastic_stub/make_repository {NEWER}")
    run = app.run("deploy.yml", "--tags", "logging", logging_version=NEWER)
    assert run.code == 0, run.output[-6000:]
    assert set(versions().values()) == {NEWER}
    # According to the run: where each package was changed. The containers' clocks are one.
    order = [(host, unit) for _time, host, unit in sorted((started(h, u), h, u) for h in HOSTS for u in HOSTS[h])]
    assert order[:2] == [("logging-log", "elasticsearch"), ("logging-log2", "elasticsearch")], order
    assert order[2:4] == [("logging-log", "logstash"), ("logging-log", "kibana")], order
    assert {unit for _host, unit in order[4:]} == {"filebeat"}
    for host, parts in HOSTS.items():
        for part in parts:
            assert Operations(INVENTORY, host).shell(f"apt-mark showhold {part}").strip() == part
    again = app.run("deploy.yml", "--tags", "logging", logging_version=NEWER)
    assert again.code == 0 and again.changed == 0, again.output[-6000:]
    # The newer version runs, and a line is still indexed.
    verify = app.run("playbooks/verify.yml")
    assert verify.code == 0 and "canary: a line is found by search: PASSED" in verify.output, verify.output[-3000:]
    running = Operations(INVENTORY, "logging-log").shell("curl -s http://127.0.0.1:5066/stats")
    assert re.search(NEWER, running), running
