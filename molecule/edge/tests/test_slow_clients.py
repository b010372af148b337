"""One address opens thousands of connections and leaves them open, while other clients work on."""

from __future__ import annotations

import contextlib
import json
import time
from types import SimpleNamespace

ATTACKER = "127.0.0.3"


@contextlib.contextmanager
def attack(web, kind, port, count, seconds):
    """Attack in the background while the block runs; its `result` is known afterwards."""
    web.ok("rm -f /root/slow.ready /root/slow.json; systemctl reset-failed slow-clients.service 2>/dev/null; true")
    web.ok(
        "systemd-run --quiet --collect --unit=slow-clients --property=LimitNOFILE=20000 --property=RuntimeMaxSec=120"
        f" sh -c 'exec python3 /root/slow_clients.py --source {ATTACKER} --port {port} --count {count} --kind {kind}"
        f" --seconds {seconds} --ready-file /root/slow.ready >/root/slow.json'"
    )
    found = SimpleNamespace(result=None)
    try:
        for _ in range(300):
            if web.run("test -e /root/slow.ready").rc == 0:
                break
            time.sleep(0.2)
        yield found
        for _ in range(300):
            if web.run("systemctl is-active --quiet slow-clients").rc != 0:
                break
            time.sleep(0.2)
        found.result = json.loads(web.ok("cat /root/slow.json"))
    finally:
        web.run("systemctl stop slow-clients")


def regular_requests(web, source, count=12, path="/"):
    """The statuses of one request after the other from another address; 0 is no response within five seconds."""
    return web.ok(
        f"for i in $(seq {count}); do curl -sk -m 5 -o /dev/null -w '%{{http_code}}\\n' --interface {source}"
        f" --resolve shift.test:443:127.0.0.1 https://shift.test{path} || true; sleep 0.2; done"
    ).split()


def test_thousands_of_slow_connections_of_one_address_leave_room_for_the_others(web):
    for kind, port in (("head", 80), ("tls", 443)):
        with attack(web, kind, port, count=5000, seconds=8) as attacked:
            seen = regular_requests(web, "127.0.0.2")
        assert seen == ["200"] * 12, kind
        assert attacked.result["peak"] >= 4750, attacked.result


def test_requests_of_one_address_at_the_same_time_are_limited(web):
    """The limit of this scenario is 60. The bodies never come, so each of them stays under way."""
    with attack(web, "body", 443, count=100, seconds=6) as attacked:
        own = web.get("/", source=ATTACKER)
        others = regular_requests(web, "127.0.0.2", 5)
        local = [web.get("/health/", url="http://127.0.0.1:8000").status for _ in range(3)]
    assert attacked.result["statuses"].get("429", 0) >= 40, attacked.result
    assert own.status == 429 and own.one("retry-after") == "60"
    assert others == ["200"] * 5
    assert local == [200] * 3, "the host's own probes"
    assert regular_requests(web, ATTACKER, 1) == ["200"], "it ends with the requests"
