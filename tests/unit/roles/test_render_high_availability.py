"""Roles sentinel, haproxy and keepalived, and what group variables make of several hosts in `cache` and `web`."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path

import inventories
import pytest
import yaml
from rendered import problems, render, templar

ROOT = Path(__file__).resolve().parents[3]
MEMBERS = {"c1": "10.20.0.31", "c2": "10.20.0.32", "c3": "10.20.0.33"}
SENTINEL = {
    "sentinel_members": MEMBERS, "sentinel_password": "secret-of-sentinel", "inventory_hostname": "c1",
    "sentinel_tls_certificate_file": "/c", "sentinel_tls_key_file": "/k", "sentinel_tls_ca_file": "/a",
}  # fmt: skip
KEEPALIVED = {
    "keepalived_virtual_address": "10.20.0.100/24", "keepalived_address": "10.20.0.10",
    "keepalived_peers": ["10.20.0.11"],
    "ansible_facts": {
        "interfaces": ["lo", "eth-0", "ens18"], "ens18": {"ipv4": {"address": "10.20.0.10"}},
        "eth_0": {"ipv4": {"address": "192.0.2.10"}}, "lo": {},
    },
}  # fmt: skip
HAPROXY = {
    "haproxy_servers": [{"name": "c1", "address": "10.20.0.31", "port": 6379}], "haproxy_password": "abc",
    "haproxy_ca_file": "/a",
}  # fmt: skip


# --- inventories -----------------------------------------------------------------------------------------------------


def variables(directory: Path, names, pattern="all", cache=3, webs=2, **extra) -> dict:
    """{host: {variable: value}} of the production inventory with several hosts in `cache` and `web`."""
    inventory = yaml.safe_load((ROOT / "inventory/production/hosts.yml").read_text(encoding="utf-8"))
    children = copy.deepcopy(inventory["all"]["children"])
    for group, count, base in (("cache", cache, 30), ("web", webs, 40)):
        hosts = {f"{group}{number}": f"10.20.0.{base + number}" for number in range(1, count + 1)}
        children["production"]["hosts"] |= {host: {"private_address": address} for host, address in hosts.items()}
        children[group]["hosts"] = dict.fromkeys(hosts)
    for host in ("cache1", "edge1"):
        if host == "edge1":
            del children["production"]["hosts"][host]
    directory.mkdir(exist_ok=True)
    (directory / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": children}}))
    return inventories.variables(
        directory, names, pattern, None, topology_media_shared=True, ansible_run_tags=["all"], **extra
    )


@pytest.mark.parametrize(("count", "accepted"), [(1, True), (2, False), (3, True), (4, False), (5, True)])
def test_redis_runs_on_one_three_or_five_hosts(tmp_path, count, accepted):
    found = variables(tmp_path, ("topology_rules",), "app1", cache=count)["app1"]["topology_rules"]
    assert ([] if accepted else [True]) == [("majority" in text and "group cache" in text) for text in found]


def test_members_reach_each_other_and_the_application_its_own_loopback(tmp_path):
    names = (
        "redis_members", "firewall_rules", "shiftmaster_redis_endpoints", "shiftmaster_secret_environment",
        "haproxy_servers", "preflight_roles_here", "keepalived_peers", "base_lost_peer_seconds",
    )  # fmt: skip
    found = variables(tmp_path, names, vault_shiftmaster_redis_password="word")
    cache, app = found["cache1"], found["app1"]
    members = ["10.20.0.32", "10.20.0.33"]
    assert cache["redis_members"] == {f"cache{number}": f"10.20.0.3{number}" for number in (1, 2, 3)}
    rules = {rule["name"]: rule for rule in cache["firewall_rules"]}
    assert rules["sentinel"] == {"name": "sentinel", "ports": [26379], "sources": members}
    assert rules["redis"]["sources"] == ["10.20.0.11", "10.20.0.12", *members]
    assert app["shiftmaster_redis_endpoints"] == [{"host": "127.0.0.1", "port": 6380}]
    assert app["shiftmaster_secret_environment"]["CACHE_URL"] == "redis://shiftmaster:word@127.0.0.1:6380/1"
    assert [server["address"] for server in app["haproxy_servers"]] == list(cache["redis_members"].values())
    assert {"redis", "sentinel"} <= set(cache["preflight_roles_here"]) and "haproxy" in app["preflight_roles_here"]
    assert not {"haproxy", "keepalived"} & set(cache["preflight_roles_here"])
    # A query that waits for a host that is off would wait for two hours.
    assert app["base_lost_peer_seconds"] == 7
    # Without a virtual address users reach each web server by its own.
    assert found["web1"]["keepalived_peers"] == [] and "keepalived" not in found["web1"]["preflight_roles_here"]


def test_a_single_cache_has_none_of_it(tmp_path):
    names = (
        "redis_members", "preflight_roles_here", "redis_users", "shiftmaster_redis_endpoints",
        "topology_cache_replicated",
        "nginx_upstream_dead_seconds", "base_lost_peer_seconds", "firewall_rules",
    )  # fmt: skip
    found = variables(tmp_path, names, cache=1, webs=1, redis_rules_application="+@all")
    assert all(values["redis_members"] == {} and not values["topology_cache_replicated"] for values in found.values())
    assert not {"sentinel", "haproxy", "keepalived"} & {
        role for values in found.values() for role in values["preflight_roles_here"]
    }
    assert [user["name"] for user in found["cache1"]["redis_users"]] == ["shiftmaster"]
    assert found["app1"]["shiftmaster_redis_endpoints"] == [{"host": "10.20.0.31", "port": 6379}]
    assert {values["nginx_upstream_dead_seconds"] for values in found.values()} == {0}
    assert {values["base_lost_peer_seconds"] for values in found.values()} == {0}
    assert "sentinel" not in str(found["cache1"]["firewall_rules"])


@pytest.mark.parametrize(
    ("address", "webs", "words"),
    [
        ("10.20.0.100/24", 2, None),
        ("10.20.0.100/24", 1, "holds one host"),
        ("10.20.0.42/24", 2, "is the address of web2"),
        ("", 2, None),
    ],
)
def test_a_virtual_address_needs_two_web_servers_and_is_of_no_host(tmp_path, address, webs, words):
    found = variables(tmp_path, ("topology_rules",), "app1", webs=webs, topology_virtual_address=address)
    problem = " ".join(found["app1"]["topology_rules"])
    assert (words in problem) if words else problem == ""


def test_web_servers_accept_announcements_of_each_other(tmp_path):
    names = (
        "firewall_rules",
        "keepalived_peers",
        "keepalived_priority",
        "exporter_virtual_address",
        "preflight_roles_here",
    )
    found = variables(tmp_path, names, topology_virtual_address="10.20.0.100/24")
    assert {"name": "virtual-address", "protocol": "vrrp", "sources": ["10.20.0.42"]} in found["web1"]["firewall_rules"]
    assert found["web1"]["keepalived_priority"] > found["web2"]["keepalived_priority"]
    assert "keepalived" in found["web2"]["preflight_roles_here"]
    assert (
        found["web1"]["exporter_virtual_address"] == "10.20.0.100" and found["app1"]["exporter_virtual_address"] == ""
    )


# --- firewall --------------------------------------------------------------------------------------------------------


def test_announcements_are_accepted_from_the_peers_alone():
    def text(*rules):
        known = {"__firewall_ssh_ports": [22], "firewall_rules": list(rules)}
        made = json.loads(str(render("firewall", "rules.json.j2", **known)))
        return render("firewall", "nftables.conf.j2", __firewall_rules=made, **known)

    peers = text({"name": "virtual-address", "protocol": "vrrp", "sources": ["10.20.0.11"]})
    assert '\t\tip saddr { 10.20.0.11 } meta l4proto 112 counter accept comment "virtual-address"\n' in peers
    # A computed list that came out empty opens nothing.
    assert "112" not in text({"name": "virtual-address", "protocol": "vrrp", "sources": []})


# --- sentinel --------------------------------------------------------------------------------------------------------


def test_sentinel_answers_little_without_a_password():
    text = render("sentinel", "sentinel.conf.j2", **SENTINEL)
    (default,) = [line for line in text.splitlines() if line.startswith("user default")]
    assert "-@all" in default and "+sentinel|ckquorum" in default and "+sentinel " not in default
    assert "port 0\n" in text and "tls-port 26379" in text and "sentinel monitor" not in text
    assert "sentinel announce-ip 10.20.0.31" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"sentinel_members": {"c1": "10.20.0.31", "c2": "10.20.0.32"}}, "three or five"),
        ({"sentinel_members": {**MEMBERS, "c4": "10.20.0.34"}}, "three or five"),
        ({"inventory_hostname": "other"}, "does not hold other"),
        ({"sentinel_password": "with blank"}, "quotes"),
    ],
)
def test_problems_of_sentinel(changes, words):
    found = problems("sentinel", templar("sentinel", **{**SENTINEL, **changes}))
    assert (len(found) == 1 and words in found[0]) if words else found == []


STATE = """protected-mode no
sentinel myid 2a323244
sentinel monitor shiftmaster 10.20.0.32 6379 2
sentinel current-epoch 7
sentinel config-epoch shiftmaster 7
sentinel leader-epoch shiftmaster 7
sentinel known-replica shiftmaster 10.20.0.31 6379
sentinel known-replica shiftmaster 10.20.0.39 6379
sentinel known-sentinel shiftmaster 10.20.0.33 26379 45ae
sentinel known-sentinel shiftmaster 10.20.0.39 26379 9999
sentinel auth-pass shiftmaster of-before"""


def combined(tmp_path, state: str) -> list:
    config, kept = tmp_path / "config", tmp_path / "state"
    config.write_text("port 0\nsentinel auth-pass shiftmaster new\n")
    kept.write_text(state)
    program = ROOT / "roles/sentinel/files/shiftmaster-sentinel-state"
    for _again in range(2):
        subprocess.run(["dash", program, config, kept, "shiftmaster", "3", *MEMBERS.values()], check=True)
    return kept.read_text().splitlines()


def test_sentinel_keeps_what_it_learned_of_members(tmp_path):
    assert combined(tmp_path, STATE) == [
        "sentinel monitor shiftmaster 10.20.0.32 6379 3", "port 0", "sentinel auth-pass shiftmaster new",
        "sentinel myid 2a323244", "sentinel current-epoch 7", "sentinel config-epoch shiftmaster 7",
        "sentinel leader-epoch shiftmaster 7", "sentinel known-replica shiftmaster 10.20.0.31 6379",
        "sentinel known-sentinel shiftmaster 10.20.0.33 26379 45ae",
    ]  # fmt: skip


def test_sentinel_monitors_a_member_where_the_primary_is_none(tmp_path):
    (first, *_) = combined(tmp_path, "sentinel monitor shiftmaster 10.20.0.39 6379 2")
    assert first == "sentinel monitor shiftmaster 10.20.0.31 6379 3"


# --- redis -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("replicaof 10.20.0.32 6379\n", "replicaof 10.20.0.32 6379"),
        ("include x\nreplicaof 10.20.0.31 6379\nmaxmemory 1mb\nreplicaof 10.20.0.33 6379", "replicaof 10.20.0.33 6379"),
        ("include x\n# Generated by CONFIG REWRITE\nmasterauth secret\n", ""),
    ],
)
def test_redis_starts_as_what_sentinel_made_it(tmp_path, state, kept):
    path = tmp_path / "server.conf"
    path.write_text(state)
    program = ROOT / "roles/redis/files/shiftmaster-redis-role"
    subprocess.run(["dash", program, "/etc/redis/redis.conf", path], check=True)
    assert path.read_text() == f"include /etc/redis/redis.conf\n{kept}\n"


def redis(states: dict, variable="__redis_primary", **changes):
    """The first primary of members with these states, or another variable of the role."""
    known = {
        "redis_members": MEMBERS, "ansible_play_hosts": list(states), "inventory_hostname": "c1", **changes,
        "hostvars": {host: {"__redis_discovered": {"stdout": state}} for host, state in states.items()},
    }  # fmt: skip
    values = templar("redis", **known)
    return values.template(values.available_variables[variable])


@pytest.mark.parametrize(
    ("states", "primary"),
    [
        ({"c1": "empty", "c2": "empty", "c3": "empty"}, "c1"),
        ({"c1": "", "c2": "", "c3": ""}, "c1"),
        # The one that was alone keeps its data, wherever it is in the list.
        ({"c1": "empty", "c2": "single", "c3": "empty"}, "c2"),
        # A new member follows the primary that the others follow.
        ({"c1": "empty", "c2": "primary", "c3": "replicaof 10.20.0.32 6379"}, "c2"),
        # A former primary that was away is not believed.
        ({"c1": "primary", "c2": "primary", "c3": "replicaof 10.20.0.32 6379"}, "c2"),
        ({"c1": "replicaof 10.20.0.99 6379", "c2": "empty", "c3": "single"}, "c3"),
    ],
)
def test_the_first_primary_is_the_one_with_the_data(states, primary):
    assert redis(states).strip() == MEMBERS[primary]
    assert redis(states, "__redis_named") not in redis(states, "__redis_empty")


@pytest.mark.parametrize("first", ["", "empty"])
def test_a_member_with_data_does_not_follow_one_without(first):
    """Two of three hosts were replaced, the former primary with them: the third one's data would be lost."""

    def rejected(**primary):
        states = {**primary, "c2": "empty", "c3": "replicaof 10.20.0.31 6379"}
        return redis(states, "__redis_named") in redis(states, "__redis_empty")

    assert rejected(c1=first)
    # The primary has data; it is not part of the run.
    assert not rejected(c1="primary") and not rejected()


def test_a_replicated_redis_rejects_writes_without_a_replica():
    instance = {"name": "main", "bind": ["*"], "port": 0, "tls_port": 6379, "maxmemory_mb": 1, "policy": "noeviction",
                "databases": 16, "appendonly": True, "settings": {}}  # fmt: skip
    text = render("redis", "redis.conf.j2", redis_members=MEMBERS, __redis_instance=instance, inventory_hostname="c1")
    assert "min-replicas-to-write 1\nmin-replicas-max-lag 2\n" in text and "tls-replication yes" in text
    assert "replicaof" not in text and "masterauth" not in text
    alone = render("redis", "redis.conf.j2", __redis_instance=instance)
    assert "min-replicas" not in alone and "masteruser" not in alone


# --- haproxy and keepalived ------------------------------------------------------------------------------------------


def test_haproxy_leads_to_the_primary_that_has_a_replica():
    text = render("haproxy", "haproxy.cfg.j2", **HAPROXY)
    (expected,) = [line for line in text.splitlines() if " rstring " in line]
    pattern = expected.split("rstring ", 1)[1]
    import re

    assert re.search(pattern, "# Replication\r\nrole:master\r\nconnected_slaves:2\r\nmin_slaves_good_slaves:1\r\n")
    assert not re.search(pattern, "role:master\r\nconnected_slaves:1\r\nmin_slaves_good_slaves:0\r\n")
    assert not re.search(pattern, "role:slave\r\nconnected_slaves:0\r\nmin_slaves_good_slaves:1\r\n")
    assert "server c1 10.20.0.31:6379 verifyhost c1" in text and "verify required" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"haproxy_listen": "0.0.0.0:6380"}, "loopback"),
        ({"haproxy_servers": []}, "haproxy_servers is empty"),
        ({"haproxy_password": "a b"}, "quotes"),
    ],
)
def test_problems_of_haproxy(changes, words):
    found = problems("haproxy", templar("haproxy", **{**HAPROXY, **changes}))
    assert (len(found) == 1 and words in found[0]) if words else found == []


@pytest.mark.parametrize(
    ("running", "address", "called"),
    [("4711", "2: eth0 inet 10.20.0.100/24", ["cat", "ip", "nft", "ss"]), ("4711", "", ["ip"]), ("", "2: eth0", [])],
    ids=["holder", "another host holds it", "a person calls it"],
)
def test_new_connections_are_dropped_only_where_a_running_keepalived_is_stopped(tmp_path, running, address, called):
    for name, printed in {"ip": address, "nft": "", "cat": "", "ss": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n: > {tmp_path}/{name}.called\necho '{printed}'\n")
        (tmp_path / name).chmod(0o755)
    subprocess.run(
        ["bash", "-c", render("keepalived", "drain-address.j2", **KEEPALIVED)], check=False, capture_output=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "MAINPID": running},
    )  # fmt: skip
    assert sorted(path.stem for path in tmp_path.glob("*.called")) == called


def test_keepalived_uses_the_interface_with_the_hosts_address():
    text = render("keepalived", "keepalived.conf.j2", **KEEPALIVED)
    assert "interface ens18\n" in text and "nopreempt" in text and "        10.20.0.11\n" in text
    assert "interface eth-0\n" in render(
        "keepalived", "keepalived.conf.j2", **{**KEEPALIVED, "keepalived_address": "192.0.2.10"}
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"keepalived_virtual_address": "10.20.0.100"}, "prefix length"),
        ({"keepalived_virtual_address": "10.20.0.300/24"}, "prefix length"),
        ({"keepalived_virtual_address": "10.20.0.11/24"}, "web server itself"),
        ({"keepalived_peers": []}, "keepalived_peers is empty"),
        ({"ansible_facts": {}}, "set keepalived_interface"),
    ],
)
def test_problems_of_keepalived(changes, words):
    found = problems("keepalived", templar("keepalived", **{**KEEPALIVED, **changes}))
    assert (len(found) == 1 and words in found[0]) if words else found == []
