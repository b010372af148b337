"""Connections that role firewall allows, tried from this machine, and rules that would lock it out."""

from __future__ import annotations

import shlex
import socket
import subprocess
import time

import pytest


def connects(address, port, timeout=2.0):
    try:
        with socket.create_connection((address, port), timeout=timeout):
            return True
    except OSError:
        return False


def rules(host):
    return host.check_output("nft --stateless list table inet shiftmaster")


@pytest.fixture
def listeners(host):
    ports = [80, 443, 5432, 6379, 9090]
    code = f"import socket, time\nkept = [socket.create_server(('0.0.0.0', port)) for port in {ports}]\ntime.sleep(300)"
    host.check_output(f"systemd-run --unit=listeners python3 -c {shlex.quote(code)}")
    host.check_output(f"timeout 30 bash -c 'until (: </dev/tcp/127.0.0.1/{ports[-1]}) 2>/dev/null; do sleep 0.1; done'")
    yield ports
    host.run("systemctl stop listeners")


def test_only_ports_of_the_rules_are_reachable(host, address, listeners):
    assert {port: connects(address, port, 1.0) for port in listeners} == {
        80: True,
        443: True,
        5432: True,
        6379: False,
        9090: False,
    }
    # Each host reaches its own.
    for port in listeners:
        host.check_output(f"timeout 2 bash -c '</dev/tcp/127.0.0.1/{port}'")
    host.check_output("nft list table inet shiftmaster | grep 'comment \"dropped\"' | grep -qv 'packets 0'")


def test_the_host_responds_to_ping(address):
    # An echo request with its checksum; type 0 is the reply. Not every machine has ping.
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(3)
        raw.sendto(bytes([8, 0, 0xF7, 0xFD, 0, 1, 0, 1]), (address, 0))
        response = raw.recv(200)
    assert response[20] == 0


def test_other_tables_survive_a_reload_and_a_stop(host):
    host.check_output("nft add table ip docker-of-somebody")
    try:
        host.check_output("systemctl reload nftables && systemctl restart nftables")
        assert "docker-of-somebody" in host.check_output("nft list tables")
        host.check_output("systemctl stop nftables")
        assert host.check_output("nft list tables").splitlines() == ["table ip docker-of-somebody"]
    finally:
        host.check_output("nft delete table ip docker-of-somebody; systemctl start nftables")


def test_the_host_reverts_rules_that_would_lock_out_ssh(host, address, over_ssh):
    before, file_before = rules(host), host.file("/etc/nftables.conf").sha256sum
    assert connects(address, 22)

    code, output = over_ssh(firewall_ssh_sources=["203.0.113.9"], firewall_confirm_seconds=10)

    assert code != 0
    assert "The old rules are back" in output, output
    assert "203.0.113.9" in output
    assert connects(address, 22)
    assert rules(host) == before
    assert host.file("/etc/nftables.conf").sha256sum == file_before


def test_the_host_reverts_them_without_the_controller(host, address):
    """The controller died between the new rules and the confirmation."""
    before = rules(host)
    host.check_output(
        "printf 'table inet shiftmaster\\ndelete table inet shiftmaster\\n"
        "table inet shiftmaster { chain input { type filter hook input priority 0; policy drop; }; }\\n'"
        " | shiftmaster-firewall try 4"
    )
    assert not connects(address, 22, 1.0)
    time.sleep(5)
    assert connects(address, 22)
    assert rules(host) == before
    assert host.run("shiftmaster-firewall confirm").rc == 1


def test_rules_that_allow_this_machine_are_kept_over_ssh(host, address, over_ssh):
    gateway = subprocess.run(
        ["docker", "network", "inspect", "bridge", "--format", "{{ (index .IPAM.Config 0).Gateway }}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout.strip()
    code, output = over_ssh(firewall_ssh_sources=[gateway], firewall_confirm_seconds=60)
    assert code == 0, output
    assert f"ip saddr {gateway} tcp dport 22" in rules(host)
    assert connects(address, 22)
    assert host.run("systemctl is-active shiftmaster-firewall-rollback.timer").rc != 0
    # As the timer does.
    host.check_output("shiftmaster-firewall restore")
    assert f"ip saddr {gateway} tcp dport 22" in rules(host), "reverted although confirmed"
    assert f"ip saddr {{ {gateway} }} tcp dport {{ 22 }}" in host.file("/etc/nftables.conf").content_string


def test_a_name_in_place_of_an_address_is_refused_before_anything_changes(host, over_ssh):
    before = rules(host)
    code, output = over_ssh(firewall_rules=[{"name": "typo", "ports": [5432], "sources": ["db.example.jp"]}])
    assert code != 0
    assert "db.example.jp is no address" in output, output
    assert rules(host) == before
