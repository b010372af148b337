"""The host itself reports its backups: with the control node off, and also of a run that was killed."""

from __future__ import annotations

import json

import pytest

# Takes what Slack, PagerDuty and a mail server would, and writes each message as a line.
RECEIVER = r"""
import http.server, json, socketserver, threading

def note(**what):
    with open("/root/received", "a") as stream:
        stream.write(json.dumps(what) + "\n")

class Web(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        note(path=self.path, body=json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(202)
        self.end_headers()
        self.wfile.write(b"ok")

class Mail(socketserver.StreamRequestHandler):
    def handle(self):
        say = lambda line: self.wfile.write(line + b"\r\n")
        say(b"220 here")
        while True:
            word = self.rfile.readline().upper().split()[:1]
            if word == [b"DATA"]:
                say(b"354 go")
                lines = []
                while (line := self.rfile.readline()) != b".\r\n":
                    lines.append(line.decode())
                note(path="mail", body="".join(lines))
            if word in ([b"QUIT"], []):
                return say(b"221 bye")
            say(b"250 ok")

mail = socketserver.ThreadingTCPServer(("127.0.0.1", 9025), Mail)
threading.Thread(target=mail.serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", 9080), Web).serve_forever()
"""
EVERYBODY = ["slack", "email", "pagerduty"]
CHANNELS = {
    "environment": "demo", "language": "both",
    "routes": {"succeeded": EVERYBODY, "warning": EVERYBODY, "failed": EVERYBODY},
    "slack": {"url": "http://127.0.0.1:9080/slack/secret-of-the-test", "channel": ""},
    "email": {"host": "127.0.0.1", "port": 9025, "security": "none", "user": "", "password": "",
              "sender": "b@example.test", "recipients": ["admin@example.test"]},
    "pagerduty": {"routing_key": "0123456789abcdef0123456789abcdef", "url": "http://127.0.0.1:9080/pagerduty",
                  "change_url": "http://127.0.0.1:9080/change"},
    "ca_file": "", "proxy": "",
}  # fmt: skip
NOTIFY = "/etc/shiftmaster-backup/notify.json"


@pytest.fixture(scope="module")
def received(backups):
    """A function that returns the messages since the last call: [(path, body)]."""
    backups.shell("cat > /root/receiver.py", stdin=RECEIVER)
    backups.shell("systemd-run --quiet --unit=receiver python3 /root/receiver.py; sleep 2")
    backups.shell(f"cp -p {NOTIFY} /root/notify.kept && cat > {NOTIFY}", stdin=json.dumps(CHANNELS))

    def since() -> list:
        text = backups.shell("cat /root/received 2>/dev/null; rm -f /root/received")
        return [(one["path"], one["body"]) for one in map(json.loads, text.splitlines())]

    yield since
    backups.shell(f"cp -p /root/notify.kept {NOTIFY}; systemctl stop receiver")


def test_a_successful_run_is_reported_as_in_the_guide(backups, first, received):
    received()
    backups.run(only="configuration")
    reported = dict(received())
    assert set(reported) == {"/slack/secret-of-the-test", "mail", "/pagerduty"}
    text = reported["/slack/secret-of-the-test"]["attachments"][0]["text"]
    for word in ("Configuration: SUCCESS", "Total size:", "Location: /var/backups/shiftmaster", "Date:"):
        assert word in text, text
    assert reported["/pagerduty"]["event_action"] == "resolve"
    assert "Content-Transfer-Encoding" in reported["mail"] and "admin@example.test" in reported["mail"]


def test_a_failed_run_pages_and_the_next_successful_run_resolves(backups, first, received):
    received()
    backups.shell("cd /etc/shiftmaster-backup && cp -p pgpass pgpass.kept && echo '*:*:*:*:wrong' > pgpass")
    try:
        backups.run(check=False, only="database")
    finally:
        backups.shell("cd /etc/shiftmaster-backup && mv pgpass.kept pgpass")
    reported = dict(received())
    assert reported["/pagerduty"]["event_action"] == "trigger"
    assert "password authentication failed" in json.dumps(reported["/pagerduty"])
    assert "Database: FAILED" in reported["/slack/secret-of-the-test"]["attachments"][0]["text"]
    key = reported["/pagerduty"]["dedup_key"]
    backups.run(only="configuration")
    assert [body["dedup_key"] for path, body in received() if path == "/pagerduty"] == [key]
    assert "secret-of-the-test" not in backups.log()


def test_one_that_was_killed_is_reported_by_the_unit_after_it(backups, first, received):
    received()
    backups.operations.hold("backup_configuration")
    backups.shell("mkdir -p /run/shiftmaster-backup/requests; echo '{\"only\": \"configuration\"}' > "
                  "/run/shiftmaster-backup/requests/20260101T000000Z-kill01.json")  # fmt: skip
    unit = "shiftmaster-backup@20260101T000000Z-kill01.service"
    backups.shell(f"systemctl start --no-block {unit}")
    try:
        backups.shell(
            "until test -e /run/shiftmaster/points/backup_configuration.reached; do sleep 0.5; done", timeout=300
        )
        backups.shell(f"systemctl kill --kill-whom=all --signal=KILL {unit}")
        backups.shell("until grep -q trigger /root/received; do sleep 0.5; done", timeout=300)
    finally:
        backups.operations.release_hold()
    reported = dict(received())
    assert "was killed" in json.dumps(reported["/pagerduty"])
    backups.run(only="configuration")
