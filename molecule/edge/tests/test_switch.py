"""The slots change while clients read and write: no request may fail, no acknowledged write may be lost."""

from __future__ import annotations

import json
import time

SCENARIO = {
    "base": "https://shift.test",
    "connect": "127.0.0.1:443",
    "verify": False,
    "version": {"header": "X-Slot"},
    "login": {
        "page": "/login/",
        "username": "demo",
        "password_env": "LOADGEN_PASSWORD",
        "csrf_field": "csrfmiddlewaretoken",
    },
    "requests": [
        {"name": "page", "path": "/", "weight": 4, "links": 'href="(/static/[^"]+)"'},
        {"name": "file", "kind": "static", "path": "{link}", "weight": 3},
        {
            "name": "save",
            "path": "/save",
            "form": {"value": "{unique}"},
            "expect": [302],
            "weight": 3,
            "read_back": {"path": "/values", "pattern": r"\[{unique}\]"},
        },
    ],
}


def begin(edge, seconds=8, clients=32):
    edge.ok("cat >/root/scenario.json <<'EOF'\n" + json.dumps(SCENARIO) + "\nEOF")
    edge.ok("systemctl reset-failed load.service 2>/dev/null; rm -f /root/summary.json /root/ready /root/marks; true")
    edge.ok(
        "systemd-run --quiet --collect --unit=load --setenv=LOADGEN_PASSWORD=secret /root/loadgen.py"
        f" /root/scenario.json --clients {clients} --seconds {seconds} --think-seconds 0.05 --logins 1"
        " --summary /root/summary.json --results /root/results.jsonl --ready-file /root/ready --marks /root/marks"
    )
    wait(edge, "/root/ready", 20)
    time.sleep(1)


def wait(edge, path, seconds):
    for _ in range(seconds * 5):
        if edge.run(f"test -s {path}").rc == 0:
            return
        time.sleep(0.2)
    raise AssertionError(f"{path} did not come: " + edge.run("journalctl -u load -n 20 --no-pager").stdout)


def mark(edge, name):
    edge.ok(f"""printf '{{"t": %s, "name": "{name}"}}\\n' "$(date +%s.%N)" >>/root/marks""")


def switch(edge, old, new):
    edge.ok(f"systemctl start shiftmaster-web@{new}")
    time.sleep(0.5)
    edge.activate(new)
    # Drain: the old socket's queue has to be empty before its server is stopped.
    time.sleep(0.5)
    for _ in range(50):
        if edge.ok(f"ss -xlH src /run/shiftmaster-web-{old}/web.sock").split()[2] == "0":
            break
        time.sleep(0.1)
    time.sleep(0.5)
    edge.ok(f"systemctl stop shiftmaster-web@{old}")


def end(edge):
    wait(edge, "/root/summary.json", 60)
    summary = json.loads(edge.ok("cat /root/summary.json"))
    print(json.dumps({key: summary[key] for key in ("requests", "failed", "errors", "p50_ms", "p99_ms", "versions")}))
    return summary


def test_switching_slots_under_load_loses_nothing(edge):
    begin(edge)
    mark(edge, "switch-start")
    switch(edge, "blue", "green")
    switch(edge, "green", "blue")
    mark(edge, "switch-end")
    summary = end(edge)
    assert summary["requests"] > 300
    assert (summary["failed"], summary["errors"]) == (0, {})
    assert summary["writes"]["acknowledged"] > 50
    assert summary["writes"]["found"] == summary["writes"]["acknowledged"]
    assert set(summary["versions"]) >= {"blue", "green"}
    assert summary["windows"]["switch"]["inside"]["requests"] > 50


def test_a_file_is_found_in_the_very_moment_of_a_switch(edge):
    """nginx looks for a file and opens it afterwards; the link may turn in between, to a release without that file."""
    files = {**SCENARIO, "requests": [{"name": "file", "path": "/static/css/blue.0123456789ab.css"}]}
    del files["login"]
    edge.ok("cat >/root/files.json <<'EOF'\n" + json.dumps(files) + "\nEOF")
    done = edge.run(
        "python3 /root/flip.py 8 >/root/turns & sleep 1; python3 /root/loadgen.py /root/files.json"
        " --clients 8 --think-seconds 0 --seconds 5; wait"
    )
    summary = json.loads(done.stdout)
    assert int(edge.ok("cat /root/turns")) > 10_000 and summary["requests"] > 1000
    assert (summary["failed"], summary["errors"]) == (0, {})


def test_the_load_generator_sees_a_switch_without_a_drain(edge):
    """The verification of the verification: stopped first and switched afterwards, requests fail and are counted."""
    begin(edge, seconds=6)
    edge.ok("systemctl kill --signal=KILL shiftmaster-web@blue")
    time.sleep(0.5)
    edge.activate("green")
    summary = end(edge)
    assert summary["failed"] > 0
    assert "status 502" in summary["errors"]
