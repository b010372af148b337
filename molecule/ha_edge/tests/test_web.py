"""The virtual address: its holder fails in several ways; and an application host is lost under load."""

import time
from concurrent.futures import ThreadPoolExecutor

from redundancy import ADDRESS, Clients, Page, diagnose, outage
from support import docker, wait_for


def report(capsys, text: str) -> None:
    with capsys.disabled():
        print(f"\n  {text}")


def test_one_host_holds_the_address_and_serves(members):
    (holder,) = members.holders()
    assert outage(2, time.time())[1] > 0, holder.host


def test_nginx_of_the_holder_ends(members, capsys):
    (holder,) = members.holders()
    begin = time.time()
    holder.shell("systemctl kill -s KILL nginx; systemctl stop nginx")
    seconds, responded = outage(15, begin)
    (other,) = members.holders()
    report(capsys, f"nginx ended: {seconds:.1f} s without a page")
    assert other is not holder and seconds <= 5 and responded
    holder.shell("systemctl start nginx")
    time.sleep(8)
    # nopreempt: it does not return by itself.
    assert members.holders() == [other]


def test_nginx_of_the_holder_hangs(members, capsys):
    (holder,) = members.holders()
    begin = time.time()
    holder.shell("systemctl kill -s STOP nginx")
    try:
        seconds, _responded = outage(15, begin)
        assert holder not in members.holders()
    finally:
        holder.shell("systemctl kill -s CONT nginx")
    report(capsys, f"nginx hangs: {seconds:.1f} s without a page")
    assert seconds <= 8


def test_keepalived_of_the_holder_is_stopped_while_it_serves(members, capsys):
    """As a reboot and an upgrade do: a request that is under way is completed, and those that come meanwhile wait."""
    (holder,) = members.holders()
    page = Page(30)
    page.putrequest("POST", "/login/")
    page.putheader("Content-Length", "4")
    page.endheaders(b"a=")
    time.sleep(1)
    with ThreadPoolExecutor(1) as pool, Clients(4) as clients:
        stopped = pool.submit(holder.shell, "systemctl stop keepalived")
        time.sleep(4)
        assert members.holders() == [holder]
        page.send(b"1&")
        # Django rejects it, since it has no token.
        assert page.getresponse().status == 403
        page.close()
        stopped.result(30)
        wait_for(lambda: len(members.holders()) == 1, 15)
        time.sleep(8)
    report(capsys, f"keepalived stopped: {clients.requests} GETs, the slowest {clients.slowest:.1f} s")
    assert holder not in members.holders() and clients.failed == [] and clients.requests > 4
    assert "shiftmaster_address" not in holder.shell("nft list tables")
    holder.shell("systemctl start keepalived")


def test_the_host_of_the_address_stands_still(members, capsys):
    (holder,) = members.holders()
    begin = time.time()
    docker("pause", holder.host)
    try:
        # Where this host is the application's or the database's, pages need it: what counts is who has the address.
        other = next(host for host in members.webs if host is not holder)
        wait_for(lambda: f" {ADDRESS}/" in other.shell("ip -4 address"), 15)
        seconds = time.time() - begin
    finally:
        docker("unpause", holder.host)
    wait_for(lambda: len(members.holders()) == 1, 15)
    report(capsys, f"host paused: {seconds:.1f} s until the other one has the address")
    assert seconds <= 5


def test_announcements_are_dropped(topology, members):
    """Both hold the address then: health checks and the diagnosis report it; afterwards there is one again."""
    first, second = members.webs
    members.cut(first, second, rule="meta l4proto 112")
    wait_for(lambda: len(members.holders()) == 2, 15)
    found, output = diagnose(topology.b)
    # Its text names protocol 112 and the firewall. What the tests before this one did to users may be listed below it.
    assert found[0]["rule"] == "VirtualAddressHeldTwice" and found[0]["root"], output[-3000:]
    run = topology.b.run("playbooks/health.yml")
    assert run.code == 2 and run.prints("several hosts hold 172.30.78.100"), run.output[-3000:]
    first.shell("nft delete table inet shiftmaster_test")
    wait_for(lambda: len(members.holders()) == 1, 15)


def test_announcements_of_other_hosts_are_dropped(topology):
    rules = topology.a.shell("nft list chain inet shiftmaster input")
    assert "ip saddr 172.30.78.12 meta l4proto vrrp" in rules, rules


def test_an_application_host_is_lost_under_load(topology, members, capsys):
    """32 clients get the page through the address; no GET fails when a host vanishes in the middle."""
    lost = topology.c
    with Clients(32) as clients:
        time.sleep(10)
        docker("kill", lost.host)
        time.sleep(40)
        docker("start", lost.host)
        lost.wait_for_boot()
        time.sleep(15)
    report(
        capsys,
        f"application host lost: {clients.requests} GETs, {len(clients.failed)} failed,"
        f" the slowest {clients.slowest:.1f} s",
    )
    assert clients.failed == [] and clients.requests > 300
