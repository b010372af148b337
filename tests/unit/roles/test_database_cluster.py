"""A cluster of PostgreSQL: accepted topologies, who reaches its members, and what etcd and Patroni are given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import inventories
import pytest
import rendered
import yaml
from rendered import render, templar

ROOT = Path(__file__).resolve().parents[3]
NAMES = (
    "topology_rules", "topology_database_leader", "topology_etcd_hosts", "etcd_members", "patroni_members",
    "postgresql_hba_rules", "postgresql_roles", "firewall_rules", "tls_internal_services",
    "tls_internal_reload_commands",
    "shiftmaster_environment", "preflight_roles_here", "postgresql_memory_mb", "postgresql_memory_share",
    "postgresql_create_cluster", "preflight_required",
)  # fmt: skip


def inventory(directory, database=3, addresses=None, **groups):
    """An inventory of an application host and database hosts; groups: further groups with their hosts."""
    numbers = range(1, database + 1)
    hosts = {"app1": "10.0.0.9"} | {f"db{number}": f"10.0.0.{number}" for number in numbers}
    hosts |= {
        name: f"10.0.1.{number}"
        for number, name in enumerate(sorted({n for g in groups.values() for n in g} - {*hosts}))
    }
    hosts |= addresses or {}
    lines = ["[ha]"] + [f"{name} ansible_host={address}" for name, address in hosts.items()]
    groups = {"app": ["app1"], "web": ["app1"], "cache": ["app1"], "database": [f"db{n}" for n in numbers]} | groups
    for name, members in groups.items():
        lines += [f"[{name}]", *members]
    (directory / "hosts").write_text("\n".join(lines) + "\n")
    return str(directory / "hosts")


def variables(source, names=NAMES, **extra):
    known = {"memtotal_mb": 8192, "mounts": []}
    facts = {f"db{number}": known | {"memtotal_mb": 8192 * number} for number in range(1, 6)} | {"app1": known}
    extra = {"shiftmaster_domain": "shift.example.test", "vault_postgres_replication_password": "r" * 32} | extra
    return inventories.variables(source, names, facts=facts, **extra)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    return variables(inventory(tmp_path_factory.mktemp("cluster")), ansible_run_tags=["all"])


def problems(directory, **arguments):
    return variables(inventory(directory, **arguments), ("topology_rules",), of="app1")["app1"]["topology_rules"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"database": 1},
        {"database": 3},
        {"database": 5},
        {"etcd": ["etcd1", "etcd2", "etcd3"]},
        {"database": 1, "standby": ["s1"]},
    ],
)
def test_accepted(tmp_path, arguments):
    assert problems(tmp_path, **arguments) == []


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ({"database": 2}, "group database holds db1, db2: one, three or five hosts"),
        ({"database": 4}, "with an even number the loss of one more host"),
        ({"etcd": ["etcd1", "etcd2"]}, "etcd has 2 members (etcd1, etcd2): three or five"),
        ({"etcd": ["etcd1", "etcd2", "etcd3", "db1"]}, "etcd has 4 members"),
        ({"etcd": ["etcd1"]}, "one or two members survive no loss"),
        ({"database": 1, "etcd": ["etcd1", "etcd2", "etcd3"]}, "one database host needs no etcd"),
        ({"standby": ["db2"]}, "db2 is in the groups database and standby"),
        ({"addresses": {"db3": "10.0.0.3 postgresql_version=15"}}, "would have PostgreSQL 17, 17, 15: all members"),
        (
            {"addresses": {"db3": "10.0.0.2"}},
            "db1, db2, db3 have 10.0.0.1, 10.0.0.2, 10.0.0.2: a machine is one member",
        ),
    ],
)
def test_rejected_with_the_reason(tmp_path, arguments, reason):
    (found,) = problems(tmp_path, **arguments)
    assert reason in found


def test_a_host_of_another_cluster_is_rejected():
    facts = {
        "distribution_major_version": "13",
        "ansible_local": {"shiftmaster_etcd": {"cluster": "shiftmaster-north"}},
    }
    members = {name: f"10.0.0.{number}" for number, name in enumerate(("host1", "host2", "host3"))}
    values = {"etcd_members": members, "ansible_facts": facts, "ansible_play_hosts_all": list(members)}
    assert rendered.problems("etcd", templar("etcd", etcd_cluster="shiftmaster-north", **values)) == []
    (found,) = rendered.problems("etcd", templar("etcd", etcd_cluster="shiftmaster-south", **values))
    assert "a member of the cluster shiftmaster-north" in found and "is shiftmaster-south" in found


def test_debian_12_is_rejected_for_a_cluster():
    members = {name: f"10.0.0.{number}" for number, name in enumerate(("host1", "host2", "host3"))}
    (found,) = rendered.problems(
        "etcd",
        templar(
            "etcd",
            etcd_members=members,
            ansible_facts={"distribution_major_version": "12", "ansible_local": {}},
            ansible_play_hosts_all=list(members),
        ),
    )
    assert "Debian 13" in found


def test_a_new_member_of_etcd_with_a_part_of_the_members_is_rejected():
    """etcd would wait for the others, and a database that is taken over needs all of them."""
    members = {name: f"10.0.0.{number}" for number, name in enumerate(("host1", "host2", "host3"))}
    values = {"etcd_members": members, "etcd_cluster": "shiftmaster-x", "ansible_play_hosts_all": ["host1", "host2"]}
    (found,) = rendered.problems("etcd", templar("etcd", ansible_facts={"ansible_local": {}}, **values))
    assert "without --limit" in found and "host3" in found
    formed = {"ansible_local": {"shiftmaster_etcd": {"cluster": "shiftmaster-x"}}}
    assert rendered.problems("etcd", templar("etcd", ansible_facts=formed, **values)) == []


def test_a_lease_shorter_than_the_attempts_to_renew_it_is_rejected():
    values = {"patroni_members": {"a": "1", "b": "2", "c": "3"}, "patroni_replication_password": "x"}
    assert rendered.problems("patroni", templar("patroni", **values)) == []
    (found,) = rendered.problems("patroni", templar("patroni", patroni_retry_timeout_seconds=10, **values))
    assert "longer than its lease" in found


def test_only_members_reach_etcd_and_patroni(cluster):
    rules = {rule["name"]: rule for rule in cluster["db1"]["firewall_rules"]}
    assert rules["etcd"] == {"name": "etcd", "ports": [2379, 2380], "sources": ["10.0.0.2", "10.0.0.3"]}
    assert rules["postgresql-cluster"]["sources"] == ["10.0.0.2", "10.0.0.3"]
    assert not {"etcd", "postgresql-cluster"} & {rule["name"] for rule in cluster["app1"]["firewall_rules"]}


def test_members_replicate_and_nobody_else(cluster):
    found = [rule for rule in cluster["db2"]["postgresql_hba_rules"] if rule["user"] == "replicator"]
    assert {rule.get("address") for rule in found} == {None, "10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"}
    assert {rule["type"] for rule in found if "address" in rule} == {"hostssl"}
    assert {rule["database"] for rule in found} == {"replication", "postgres"}
    role = next(role for role in cluster["db2"]["postgresql_roles"] if role["name"] == "replicator")
    assert role["attributes"] == ["REPLICATION"]


def test_etcds_key_is_read_by_etcd_and_postgres_alone(cluster, tmp_path):
    assert cluster["db1"]["tls_internal_services"] == [{"name": "etcd", "group": "etcd", "readers": ["postgres"]}]
    assert cluster["app1"]["tls_internal_services"] == []
    # Patroni reads its new certificate; etcd does at each handshake.
    assert cluster["db1"]["tls_internal_reload_commands"] == [
        "systemctl try-reload-or-restart patroni@17-main.service*"
    ]
    names = ("tls_internal_services", "preflight_roles_here")
    apart = variables(inventory(tmp_path, etcd=["etcd1", "etcd2", "etcd3"]), names,
                      ansible_run_tags=["all"])  # fmt: skip
    assert apart["etcd1"]["tls_internal_services"] == [{"name": "etcd", "group": "etcd", "readers": []}]
    assert apart["db1"]["tls_internal_services"][0]["readers"] == ["postgres"]
    assert "etcd" in apart["etcd1"]["preflight_roles_here"] and "etcd" not in apart["db1"]["preflight_roles_here"]


def test_the_application_finds_the_primary_by_libpq(cluster):
    environment = cluster["app1"]["shiftmaster_environment"]
    assert environment["DB_HOST"] == "10.0.0.1,10.0.0.2,10.0.0.3" and environment["DB_PORT"] == "5432,5432,5432"
    assert (environment["PGTARGETSESSIONATTRS"], environment["PGCONNECT_TIMEOUT"]) == ("read-write", "2")


def test_an_application_on_a_member_reaches_the_primary_there(tmp_path):
    """Its connection comes from the host's own address, and pg_hba.conf named the other ones."""
    found = variables(inventory(tmp_path, app=["db1", "db2"]), ("postgresql_hba_rules",), topology_media_shared=True)
    rules = [rule for rule in found["db1"]["postgresql_hba_rules"] if rule["user"] == "+shiftmaster"]
    assert {rule["address"] for rule in rules} == {"10.0.0.2/32", "samehost"}


def test_parameters_of_all_members_are_those_of_the_smallest(cluster):
    assert {cluster[f"db{number}"]["postgresql_memory_mb"] for number in (1, 2, 3)} == {8192}


def test_one_database_host_is_as_before(tmp_path):
    found = variables(inventory(tmp_path, database=1), ansible_run_tags=["all"], of="db1")["db1"]
    assert found["topology_etcd_hosts"] == [] and found["etcd_members"] == {} and found["patroni_members"] == {}
    assert found["topology_database_leader"] == "db1" and found["postgresql_create_cluster"]
    assert found["tls_internal_services"] == [] and found["tls_internal_reload_commands"] == []
    assert not {"etcd", "patroni"} & set(found["preflight_roles_here"])
    assert "PGTARGETSESSIONATTRS" not in found["shiftmaster_environment"]
    assert "replicator" not in str(found["postgresql_hba_rules"]) + str(found["postgresql_roles"])
    assert not {"etcd", "postgresql-cluster"} & {rule["name"] for rule in found["firewall_rules"]}
    assert "vault_postgres_replication_password" not in {one["name"] for one in found["preflight_required"]}


def test_a_cluster_requires_the_password_of_its_members(cluster):
    assert "vault_postgres_replication_password" in {one["name"] for one in cluster["db1"]["preflight_required"]}


@pytest.mark.parametrize("primaries, leader", [([], ""), (["db2"], "db2"), (["db1", "db2"], "")])
def test_the_leader_is_the_one_member_that_says_so(tmp_path, primaries, leader):
    source = Path(inventory(tmp_path))
    roles = {f"db{n}": "primary" if f"db{n}" in primaries else "replica" for n in (1, 2, 3)}
    data = {"all": {"hosts": {name: {"patroni_member": {"json": {"role": role}}} for name, role in roles.items()}}}
    (tmp_path / "group.yml").write_text(yaml.safe_dump(data))
    source.rename(tmp_path / "hosts.ini")
    found = variables(str(tmp_path), ("topology_database_leader",))
    assert found["app1"]["topology_database_leader"] == leader


@pytest.mark.parametrize(
    "roles, synchronous, streaming, tags, reason",
    [
        ({"db2": "primary"}, "db1", "db3", ["all"], None),
        ({}, "", "", ["release"], "no member of the database cluster is the primary"),
        ({"db1": "primary", "db2": "primary"}, "db3", "", ["all"], "db1, db2 of the database cluster are primaries"),
        ({"db2": "primary"}, "", "db3", ["release"], "no synchronous standby"),
        ({"db2": "primary"}, "", "", ["all"], "no synchronous standby"),
        # What repairs it is not rejected.
        ({"db2": "primary"}, "", "db3", ["all"], None),
        ({}, "", "", ["database"], None),
    ],
    ids=[
        "healthy", "no primary", "two primaries", "no standby", "no standby that follows", "a first deploy was killed",
        "a run for the database",
    ],
)  # fmt: skip
def test_a_release_needs_a_primary_and_a_synchronous_standby(tmp_path, roles, synchronous, streaming, tags, reason):
    Path(inventory(tmp_path)).rename(tmp_path / "hosts.ini")
    members = {
        name: {"patroni_member": {"json": {
            "role": roles.get(name, "replica"), "sync_standby": name == synchronous,
            "replication_state": "streaming" if name in (synchronous, streaming) else "",
        }}}
        for name in ("db1", "db2", "db3")
    }  # fmt: skip
    (tmp_path / "group.yml").write_text(yaml.safe_dump({"all": {"hosts": members}}))
    formed = {"memtotal_mb": 8192, "mounts": [], "ansible_local": {"shiftmaster_etcd": {"cluster": "shiftmaster-x"}}}
    facts = dict.fromkeys(members, formed) | {"app1": {"memtotal_mb": 8192, "mounts": []}}
    values = {"shiftmaster_domain": "x", "vault_postgres_replication_password": "r" * 32, "ansible_run_tags": tags}
    found = inventories.variables(str(tmp_path), ("topology_rules",), facts=facts, of="app1", **values)
    found = found["app1"]["topology_rules"]
    assert (found == []) if reason is None else (len(found) == 1 and reason in found[0])


MEMBERS = {"host1": "10.0.0.1", "host2": "10.0.0.2", "host3": "2001:db8::3"}


def test_etcd_knows_members_and_clients_by_certificates_only():
    text = render("etcd", "etcd.env.j2", etcd_members=MEMBERS, etcd_cluster="shiftmaster-ha")
    values = dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
    assert values["ETCD_CLIENT_CERT_AUTH"] == values["ETCD_PEER_CLIENT_CERT_AUTH"] == "true"
    assert values["ETCD_INITIAL_ADVERTISE_PEER_URLS"] == "https://10.0.0.1:2380"
    assert "http://" not in text and values["ETCD_INITIAL_CLUSTER_TOKEN"] == "shiftmaster-ha"
    # A restart must never form another cluster.
    assert values["ETCD_INITIAL_CLUSTER_STATE"] == "existing" and "ETCD_INITIAL_CLUSTER" not in values
    sixth = render("etcd", "etcd.env.j2", etcd_members=MEMBERS, etcd_name="host3")
    assert "ETCD_LISTEN_PEER_URLS=https://[::]:2380" in sixth and "https://[2001:db8::3]:2380" in sixth


def patroni(**values):
    values = {
        "patroni_members": MEMBERS, "patroni_etcd_addresses": list(MEMBERS.values()),
        "patroni_replication_password": "secret'1",
        "postgresql_parameters": {"port": "5432", "listen_addresses": "*", "max_connections": "120",
                                  "archive_command": "a 'b' %p"},
        "postgresql_hba_lines": ["local all postgres peer"],
    } | values  # fmt: skip
    return yaml.safe_load(render("patroni", "patroni.yml.j2", **values))


def test_patronis_api_changes_nothing_without_a_certificate():
    found = patroni()
    assert found["restapi"]["verify_client"] == "optional" and found["restapi"]["cafile"] == found["etcd3"]["cacert"]
    assert found["etcd3"]["hosts"] == ["10.0.0.1:2379", "10.0.0.2:2379", "[2001:db8::3]:2379"]
    assert found["etcd3"]["protocol"] == "https" and found["ctl"]["cacert"]
    assert patroni(patroni_name="host3")["postgresql"]["connect_address"] == "[2001:db8::3]:5432"


def test_members_verify_the_primary_that_they_follow():
    login = patroni()["postgresql"]["authentication"]
    assert login["replication"] == login["rewind"]
    assert login["replication"]["sslmode"] == "verify-full" and login["replication"]["password"] == "secret'1"
    # By the socket, without a password.
    assert login["superuser"] == {"username": "postgres"} and patroni()["postgresql"]["use_unix_socket"]


def test_a_new_cluster_commits_before_its_first_standby_follows_and_never_again_without_one():
    known = {"patroni_members": MEMBERS, "postgresql_parameters": {"port": "5432", "max_connections": "120"}}
    made = templar("patroni", **known)
    first, later = (
        made.template(rendered.trusted("{{ %s }}" % name))
        for name in ("__patroni_bootstrap_configuration", "__patroni_cluster_configuration")
    )
    assert not first["synchronous_mode"] and later["synchronous_mode"] and later["synchronous_mode_strict"]
    assert (later["ttl"], later["loop_wait"], later["retry_timeout"], later["primary_start_timeout"]) == (20, 2, 4, 0)
    assert later["failsafe_mode"] and later["postgresql"]["use_pg_rewind"]
    parameters = later["postgresql"]["parameters"]
    assert parameters["max_connections"] == "120" and parameters["wal_sender_timeout"] == "5s"
    assert parameters["wal_retrieve_retry_interval"] == "1s"
    # Patroni rejects them, or each member has its own.
    assert not {"port", "listen_addresses", "synchronous_standby_names"} & set(parameters)


def inspected(directory, response=None, formed=False):
    """What inspect.py reports where etcdctl answers that; without an answer it ends with an error."""
    program = directory / "etcdctl"
    program.write_text("#!/bin/sh\n" + ("exit 1\n" if response is None else f"echo '{json.dumps(response)}'\n"))
    program.chmod(0o755)
    if formed:
        (directory / "formed").touch()
    done = subprocess.run(
        [sys.executable, ROOT / "roles/etcd/files/inspect.py", directory / "data", directory / "formed"],
        env={"PATH": f"{directory}:/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_a_host_reports_what_it_has_of_etcd(tmp_path):
    assert inspected(tmp_path) == {"data": False, "formed": False, "responds": False, "members": []}
    (tmp_path / "data/member").mkdir(parents=True)
    # A member that was added and has not started has no name.
    response = {
        "members": [{"ID": 10501334649042878790, "name": "a", "peerURLs": ["https://10.0.0.1:2380"]}, {"ID": 15}]
    }
    found = inspected(tmp_path, response, formed=True)
    assert found["data"] and found["formed"] and found["responds"]
    assert found["members"] == [
        {"id": "91bc3c398fb3c146", "name": "a", "peers": ["https://10.0.0.1:2380"]},
        {"id": "f", "name": "", "peers": []},
    ]


def test_each_host_is_checked_by_what_itself_runs_when_another_is_patched():
    """An application host has no etcd, which the checks of the database host that is patched include."""
    tasks = yaml.safe_load((rendered.ROOT / "roles/patch/tasks/gate.yml").read_text(encoding="utf-8"))
    checks = rendered.trusted(tasks[0]["shiftmaster_health"]["checks"])
    of_db = {"all": [{"name": "etcd", "enabled": True}], "database": [{"name": "postgresql"}]}
    of_app = {"all": [{"name": "etcd", "enabled": False}], "app": [{"name": "web"}]}
    hosts = {
        "db1": {"group_names": ["database"], "shiftmaster_health_checks": of_db},
        "app1": {"group_names": ["app"], "shiftmaster_health_checks": of_app},
    }
    found = templar("patch", hostvars=hosts, item="app1", shiftmaster_health_checks=of_db).template(checks)
    assert found == [*of_app["app"], *of_app["all"]]
