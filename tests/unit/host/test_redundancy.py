"""What a host sees of a virtual address and of a replicated Redis."""

from __future__ import annotations

import pytest
from ansible.module_utils.shiftmaster.health import checks
from ansible.module_utils.shiftmaster.host import probe, redundancy
from ansible.module_utils.shiftmaster.monitoring import host_metrics, metrics

ROUTES = """Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
ens18	00000000	0100140A	0003	0	0	0	00000000	0	0	0
ens18	0000140A	00000000	0001	0	0	0	00FFFFFF	0	0	0
ens19	0040140A	00000000	0001	0	0	0	00C0FFFF	0	0	0
"""


def test_the_interface_of_an_address():
    assert redundancy.interface_of("10.20.0.100", ROUTES) == "ens18"
    # Only the gateway's network knows it: no neighbour could hold it.
    assert redundancy.interface_of("192.0.2.1", ROUTES) == ""


def test_a_host_holds_the_addresses_that_it_has():
    assert redundancy.holds("127.0.0.1") and not redundancy.holds("192.0.2.77")


def virtual(monkeypatch, held, others):
    monkeypatch.setattr(
        redundancy, "virtual_address", lambda address: {"address": address, "held": held, "others": others}
    )
    return checks.check_virtual_address({"address": "10.0.0.9"}, checks.Context())


@pytest.mark.parametrize(
    ("held", "others", "status"),
    [
        (True, [], "healthy"), (True, None, "healthy"), (False, ["02:00:00:00:00:01"], "healthy"),
        (True, ["02:00:00:00:00:01"], "critical"), (False, [], "critical"), (False, ["a", "b"], "critical"),
    ],
)  # fmt: skip
def test_exactly_one_host_holds_the_address(monkeypatch, held, others, status):
    assert virtual(monkeypatch, held, others).status == status


def test_a_host_outside_the_network_does_not_know(monkeypatch):
    with pytest.raises(probe.ProbeError):
        virtual(monkeypatch, False, None)


@pytest.mark.parametrize(
    ("sentinel", "member", "status"),
    [
        ({"majority": True}, {"role": "primary", "followers": 2, "link": ""}, "healthy"),
        ({"majority": True}, {"role": "replica", "followers": 0, "link": "up"}, "healthy"),
        ({"majority": True}, {"role": "replica", "followers": 0, "link": "down"}, "warning"),
        ({"majority": True}, {"role": "primary", "followers": 0, "link": ""}, "critical"),
        ({"majority": False}, {"role": "replica", "followers": 0, "link": "up"}, "critical"),
    ],
)
def test_a_replicated_redis(monkeypatch, sentinel, member, status):
    monkeypatch.setattr(redundancy, "sentinel", lambda *_: {"message": "x", "primary": "10.0.0.1:6379", **sentinel})
    monkeypatch.setattr(redundancy, "member", lambda *_, **__: member)
    outcome = checks.check_sentinel({"set": "shiftmaster", "timeout_seconds": 1, "redis_port": 6379}, checks.Context())
    assert outcome.status == status


def test_sentinels_replies(monkeypatch):
    monkeypatch.setattr(redundancy, "_calls", lambda *_: ["NOQUORUM 1 usable Sentinels", ["10.0.0.1", "6379"]])
    assert redundancy.sentinel(26379, "/ca", "shiftmaster") == {
        "majority": False, "message": "NOQUORUM 1 usable Sentinels", "primary": "10.0.0.1:6379",
    }  # fmt: skip


def test_the_role_of_a_member(monkeypatch, tmp_path):
    config, seen = tmp_path / "sentinel.conf", []
    config.write_text(
        "sentinel sentinel-user sentinel\nsentinel sentinel-pass word\nsentinel auth-pass shiftmaster word\n"
    )

    def calls(port, ca_file, login, commands, seconds):
        seen.append((login, commands))
        return ["# Replication\r\nrole:master\r\nconnected_slaves:2\r\nmin_slaves_good_slaves:1\r\n"]

    monkeypatch.setattr(redundancy, "_calls", calls)
    assert redundancy.member(6379, "/ca", str(config)) == {"role": "primary", "followers": 1, "link": ""}
    assert seen == [(["sentinel", "word"], [["INFO", "replication"]])]


def test_the_metric_of_the_address(monkeypatch):
    monkeypatch.setattr(host_metrics, "pending_updates", lambda: {"security": 0})
    found = host_metrics.collect({"listeners": [], "mail_servers": [], "virtual_address": "127.0.0.1"}, "")
    assert found[host_metrics.ADDRESS, 'address="127.0.0.1"'] == 1
    text = metrics.exposition(host_metrics.HELP, found)
    assert 'shiftmaster_host_virtual_address_held{address="127.0.0.1"} 1' in text
