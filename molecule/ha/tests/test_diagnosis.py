"""The cause of each fault of the cluster is the first finding of the diagnosis; a healthy one has none."""

import contextlib
import time

import pytest
from database_cluster import CTL
from redundancy import diagnose
from support import docker, wait_for

PATRONI = "systemctl stop patroni@17-main"


def standby_is_stopped(members):
    host = members.asynchronous()
    host.shell(PATRONI)
    return host


def standby_receives_nothing(members):
    """PostgreSQL runs, and Patroni reports it as running: as one whose WAL is gone."""
    host = members.asynchronous()
    ended = f"SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = '{host.host}'"
    members.sql(f"ALTER ROLE replicator NOLOGIN; {ended}")
    wait_for(lambda: members.state(host).get("replication_state") != "streaming", 60, "the end of the replication")
    assert members.state(host)["state"] == "running"
    return host


def etcd_is_stopped_on_one_host(members):
    host = members.asynchronous()
    host.shell("systemctl stop etcd")
    return host


def etcd_has_no_majority(members):
    for host in members.standbys():
        host.shell("systemctl stop etcd")


def it_is_paused(members):
    members.hosts[0].shell(f"{CTL} pause --wait")


def no_standby_is_there(members):
    primary, standbys = members.primary(), members.standbys()
    for host in standbys:
        host.shell(PATRONI)
    return primary


def no_member_runs(members):
    for host in [*members.standbys(), members.primary()]:
        host.shell(PATRONI)


FAULTS = {
    standby_is_stopped: "ClusterMemberAway",
    standby_receives_nothing: "ClusterMemberAway",
    etcd_is_stopped_on_one_host: "EtcdDown",
    etcd_has_no_majority: "EtcdDown",
    it_is_paused: "ClusterPaused",
    no_standby_is_there: "ClusterWithoutStandby",
    no_member_runs: "DatabaseStopped",
}
# Of a machine that runs other tests at the same time, and of the table that the tests make.
OURS = {"CpuShort", "CpuHog", "ApplicationSlow", "DatabaseSchemaChanged"}


def causes(host) -> tuple:
    found, output = diagnose(host)
    return [one for one in found if one["rule"] not in OURS], output[-5000:]


@pytest.fixture
def resumed(members):
    yield
    # Where a test has taken it away; there may be no standby that confirms it.
    with contextlib.suppress(ValueError, AssertionError):
        members.sql("SET synchronous_commit = local; ALTER ROLE replicator LOGIN")
    members.heal()
    members.hosts[0].shell(f"{CTL} resume --wait", check=False)


def test_a_healthy_cluster_has_no_finding(members):
    # After the first deploy another minute is waited for a scheduler of another host.
    for _attempt in range(5):
        found, output = causes(members.hosts[0])
        if not found:
            break
        time.sleep(20)
    assert found == [], output


@pytest.mark.parametrize("fault", FAULTS)
def test_the_cause_is_the_first_finding(members, resumed, fault):
    host = fault(members)
    found, output = causes(members.hosts[0])
    assert found and found[0]["rule"] == FAULTS[fault], output
    assert host is None or found[0]["host"] == host.host, output


def test_a_lost_host_is_the_first_finding(members, by_ssh):
    lost = members.asynchronous()
    docker("kill", lost.host)
    found, output = causes(by_ssh)
    assert (found[0]["rule"], found[0]["host"]) == ("HostUnreachable", lost.host), output
