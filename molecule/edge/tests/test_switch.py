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


def begin(web, seconds=8, clients=32):
    web.ok("cat >/root/scenario.json <<'EOF'\n" + json.dumps(SCENARIO) + "\nEOF")
    web.ok("systemctl reset-failed load.service 2>/dev/null; rm -f /root/summary.json /root/ready /root/marks; true")
    web.ok(
        "systemd-run --quiet --collect --unit=load --setenv=LOADGEN_PASSWORD=secret /root/loadgen.py"
        f" /root/scenario.json --clients {clients} --seconds {seconds} --think-seconds 0.05 --logins 1"
        " --summary /root/summary.json --results /root/results.jsonl --ready-file /root/ready --marks /root/marks"
    )
    wait(web, "/root/ready", 20)
    time.sleep(1)


def wait(web, path, seconds):
    for _ in range(seconds * 5):
        if web.run(f"test -s {path}").rc == 0:
            return
        time.sleep(0.2)
    raise AssertionError(f"{path} did not come: " + web.run("journalctl -u load -n 20 --no-pager").stdout)


def mark(web, name):
    web.ok(f"""printf '{{"t": %s, "name": "{name}"}}\\n' "$(date +%s.%N)" >>/root/marks""")


def switch(web, old, new):
    web.ok(f"systemctl start shiftmaster-web@{new}")
    time.sleep(0.5)
    web.activate(new)
    # Drain: the old socket's queue has to be empty before its server is stopped.
    time.sleep(0.5)
    for _ in range(50):
        if web.ok(f"ss -xlH src /run/shiftmaster-web-{old}/web.sock").split()[2] == "0":
            break
        time.sleep(0.1)
    time.sleep(0.5)
    web.ok(f"systemctl stop shiftmaster-web@{old}")


def end(web):
    wait(web, "/root/summary.json", 60)
    summary = json.loads(web.ok("cat /root/summary.json"))
    print(json.dumps({key: summary[key] for key in ("requests", "failed", "errors", "p50_ms", "p99_ms", "versions")}))
    return summary


def test_switching_slots_under_load_drops_no_request(web):
    begin(web)
    mark(web, "switch-start")
    switch(web, "blue", "green")
    switch(web, "green", "blue")
    mark(web, "switch-end")
    summary = end(web)
    assert summary["requests"] > 300
    assert (summary["failed"], summary["errors"]) == (0, {})
    assert summary["writes"]["acknowledged"] > 50
    assert summary["writes"]["found"] == summary["writes"]["acknowledged"]
    assert set(summary["versions"]) >= {"blue", "green"}
    assert summary["windows"]["switch"]["inside"]["requests"] > 50


def test_a_file_is_found_during_a_switch(web):
    """nginx finds a file and opens it afterwards; the link may change in between, to a release without that file."""
    files = {**SCENARIO, "requests": [{"name": "file", "path": "/static/css/blue.0123456789ab.css"}]}
    del files["login"]
    web.ok("cat >/root/files.json <<'EOF'\n" + json.dumps(files) + "\nEOF")
    done = web.run(
        "python3 /root/flip.py 8 >/root/turns & sleep 1; python3 /root/loadgen.py /root/files.json"
        " --clients 8 --think-seconds 0 --seconds 5; wait"
    )
    summary = json.loads(done.stdout)
    assert int(web.ok("cat /root/turns")) > 10_000 and summary["requests"] > 1000
    assert (summary["failed"], summary["errors"]) == (0, {})


def test_the_load_generator_sees_a_switch_without_a_drain(web):
    """The verification of the verification: stopped first and switched afterwards, requests fail and are counted."""
    begin(web, seconds=6)
    web.ok("systemctl kill --signal=KILL shiftmaster-web@blue")
    time.sleep(0.5)
    web.activate("green")
    summary = end(web)
    assert summary["failed"] > 0
    assert "status 502" in summary["errors"]
