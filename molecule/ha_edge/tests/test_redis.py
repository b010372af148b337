"""Redis with Sentinel: the primary is lost, stands still, is cut off; what is lost, how long nothing is written."""

import time

from redundancy import CLI, Writer, diagnose
from support import docker, wait_for


def survives(members, result: dict, key: str) -> list:
    """The acknowledged ids that are gone."""
    kept = members.length(key)
    return [(number, at) for number, at in result["acknowledged"] if number not in kept]


def report(capsys, text: str) -> None:
    with capsys.disabled():
        print(f"\n  {text}")


def writer_host(topology, primary):
    return next(host for host in topology.apps if host is not primary)


def test_only_hosts_that_need_it_reach_redis_and_sentinel(topology):
    def reaches(host, address, port):
        return (
            host.shell(f"timeout 3 bash -c '</dev/tcp/{address}/{port}' 2>/dev/null && echo yes || echo no") == "yes\n"
        )

    assert reaches(topology.b, "172.30.78.11", 6379) and reaches(topology.a, "172.30.78.13", 26379)
    # Without a password Sentinel answers who is the primary, and nothing else; Redis nothing.
    printed = topology.a.shell(
        f"{CLI} -h 172.30.78.13 -p 26379 sentinel masters; {CLI} -h 172.30.78.13 info", check=False
    )
    assert printed.count("NOPERM") == 1 and printed.count("NOAUTH") == 1, printed
    # The clear-text port is for the host itself.
    assert not reaches(topology.a, "172.30.78.12", 6380)


def test_a_member_that_restarts_stays_what_it_was(topology, members):
    """The primary restarts faster than Sentinel calls it down; a replica never starts as a primary."""
    primary = members.primary()
    for host in topology.all:
        host.shell("systemctl restart redis-server")
        time.sleep(1)
        role = members.info(host).get("role")
        assert role == ("master" if host is primary else "slave"), (host.host, role)
    wait_for(members.complete, 60)
    assert members.primary() is primary


def test_the_host_of_the_primary_is_lost(topology, members, capsys):
    primary = members.primary()
    writer = Writer(writer_host(topology, primary), "lost", 40)
    docker("kill", primary.host)
    result = writer.result()
    members.heal()
    gone = survives(members, result, "lost")
    report(
        capsys, f"host lost: {result['gap']:.1f} s without writes, {len(gone)} of {len(result['acknowledged'])} lost"
    )
    assert result["gap"] <= 15
    assert len(gone) <= 10
    assert members.primary() is not primary


def test_the_host_of_the_primary_stands_still(topology, members, capsys):
    """A pause of the machine: another one takes over, and the former primary acknowledges nothing when it goes on."""
    primary = members.primary()
    pinned = Writer(primary, "pinned", 60, pinned=True)
    writer = Writer(writer_host(topology, primary), "paused", 50)
    docker("pause", primary.host)
    time.sleep(25)
    resumed = time.time()
    docker("unpause", primary.host)
    result, after = writer.result(), pinned.result()
    wait_for(members.complete, 60)
    gone = survives(members, result, "paused")
    late = [number for number, at in after["acknowledged"] if at > resumed + 0.5]
    report(
        capsys,
        f"paused: {result['gap']:.1f} s without writes, {len(gone)} of {len(result['acknowledged'])} lost;"
        f" {len(late)} writes acknowledged by the former primary after it went on",
    )
    assert result["gap"] <= 15 and len(gone) <= 10 and late == []


def test_the_primary_is_cut_off(topology, members, capsys):
    """It accepts writes for a few seconds, which are lost; then it rejects them, and the others have a primary."""
    primary = members.primary()
    others = [host for host in topology.all if host is not primary]
    pinned = Writer(primary, "isolated", 40, pinned=True)
    writer = Writer(writer_host(topology, primary), "majority", 40)
    begin = time.time()
    members.cut(primary, *others)
    local, result = pinned.result(), writer.result()
    assert [host.host for host in members.primaries()] and primary not in members.primaries()
    primary.shell("nft delete table inet shiftmaster_test")
    wait_for(members.complete, 120)
    after = [at for _number, at in local["acknowledged"] if at > begin]
    gone = survives(members, local, "isolated")
    seconds = max(after, default=begin) - begin
    report(
        capsys,
        f"cut off: acknowledged for {seconds:.1f} s, {len(gone)} of {len(after)} writes since then are lost;"
        f" the others: {result['gap']:.1f} s without writes, {len(survives(members, result, 'majority'))} lost",
    )
    assert seconds <= 5 and local["errors"].get("NOREPLICAS", local["errors"].get("-NOREPLICAS"))
    # Nothing from before it was cut off.
    assert all(at >= begin - 0.5 for _number, at in gone)
    assert result["gap"] <= 15 and survives(members, result, "majority") == []


def test_without_a_majority_nothing_becomes_the_primary(topology, members):
    primary = members.primary()
    others = [host for host in topology.all if host is not primary]
    for host in others:
        host.shell("systemctl stop redis-sentinel")
    printed = f"{CLI} -p 26379 sentinel ckquorum shiftmaster 2>&1"
    wait_for(lambda: "NOQUORUM" in primary.shell(printed, check=False), 30, "the end of the majority")
    found, output = diagnose(primary)
    assert {one["rule"] for one in found if one["root"]} == {"SentinelDown"}, output[-3000:]
    primary.shell("systemctl stop redis-server")
    time.sleep(12)
    assert members.primaries() == []
    found, output = diagnose(primary)
    assert found[0]["rule"] in {"RedisDown", "SentinelDown"}, output[-3000:]
    primary.shell("systemctl start redis-server")
    wait_for(lambda: members.primaries() == [primary], 30)


def test_orderly_failover(topology, members, capsys):
    """What an operator types before maintenance of the primary's host."""
    primary = members.primary()
    writer = Writer(topology.b, "orderly", 25)
    assert "The primary was" in topology.a.shell("shiftmaster-redis-failover")
    result = writer.result()
    wait_for(members.complete, 60)
    gone = survives(members, result, "orderly")
    report(capsys, f"orderly: {result['gap']:.1f} s without writes, {len(gone)} of {len(result['acknowledged'])} lost")
    assert members.primary() is not primary and result["gap"] <= 10 and gone == []
