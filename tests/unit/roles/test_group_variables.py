"""The values of group_vars/all for an inventory: listeners, their clients, and protocols."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import inventories
import pytest
import yaml
from rendered import render

ROOT = Path(__file__).resolve().parents[3]
VARIABLES = (
    "topology_rules", "postgresql_listen_addresses", "postgresql_hba_rules", "redis_port", "redis_tls_port",
    "nginx_upstream_servers", "nginx_upstream_tls", "nginx_local_tls_listen", "nginx_static_url", "firewall_rules",
    "shiftmaster_database_sslmode", "shiftmaster_lb_servers", "tls_internal_names", "shiftmaster_secret_environment",
    "postgresql_max_connections", "diagnosis_peers", "diagnosis_beat_hosts", "diagnosis_beat_expected",
    "diagnosis_units",
)  # fmt: skip
WATCHED = (
    "exporter_instances", "prometheus_jobs", "prometheus_listen_address", "prometheus_rule_files", "firewall_rules",
    "alertmanager_listen_addresses", "exporter_listen_addresses", "nginx_metrics_listen", "monitoring_clients",
)  # fmt: skip


def group_variables(inventory: str, pattern: str = "all", variable_names=VARIABLES, facts=None, **extra) -> dict:
    """{host: {variable: value}} of an inventory; facts: {host: what is known of it already}."""
    return inventories.variables(ROOT / "inventory" / inventory, variable_names, pattern, facts, **extra)


@pytest.fixture(scope="module")
def production():
    return group_variables("production", topology_media_shared=True)


def test_a_site_of_several_hosts_has_no_problem(production):
    assert {host: values["topology_rules"] for host, values in production.items() if values["topology_rules"]} == {}


@pytest.mark.parametrize("group", ["database", "cache"])
def test_a_second_primary_is_a_problem_and_a_standby_is_not(tmp_path, group):
    inventory = yaml.safe_load((ROOT / "inventory/production/hosts.yml").read_text(encoding="utf-8"))
    children = inventory["all"]["children"]
    children["production"]["hosts"]["second"] = {"ansible_host": "192.0.2.40", "private_address": "10.20.0.40"}
    children["standby"] = {"hosts": {"second": None}}

    def problems(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.yml").write_text(yaml.safe_dump(inventory))
        found = group_variables(tmp_path / name, "db1", ("topology_rules",), topology_media_shared=True)
        return found["db1"]["topology_rules"]

    assert problems("standby") == []
    del children["standby"]
    children[group]["hosts"]["second"] = None
    (found,) = problems("second")
    assert found.startswith(f"group {group} holds ") and "second" in found and "primary" in found


def test_the_database_accepts_only_application_hosts(production):
    assert production["db1"]["postgresql_listen_addresses"] == ["*"]
    addresses = [rule.get("address") for rule in production["db1"]["postgresql_hba_rules"]]
    assert addresses[-2:] == ["10.20.0.11/32", "10.20.0.12/32"]
    assert {"name": "postgresql", "ports": [5432], "sources": ["10.20.0.11", "10.20.0.12"]} in production["db1"][
        "firewall_rules"
    ]
    assert production["app1"]["shiftmaster_database_sslmode"] == "verify-full"


def test_the_cache_uses_only_tls(production):
    assert (production["cache1"]["redis_port"], production["cache1"]["redis_tls_port"]) == (0, 6379)
    assert production["app2"]["shiftmaster_secret_environment"]["CACHE_URL"].startswith("rediss://shiftmaster:")
    assert (
        "10.20.0.22:6379/1?ssl_cert_reqs=required" in production["app2"]["shiftmaster_secret_environment"]["CACHE_URL"]
    )


def test_the_web_server_connects_to_both_application_hosts_by_their_private_addresses(production):
    edge = production["edge1"]
    assert edge["nginx_upstream_servers"] == ["10.20.0.11:8443", "10.20.0.12:8443"] and edge["nginx_upstream_tls"]
    assert edge["nginx_static_url"] == "" and edge["nginx_local_tls_listen"] == []
    assert production["app1"]["nginx_local_tls_listen"] == ["8443"]
    assert production["app1"]["firewall_rules"] == [{"name": "application", "ports": [8443], "sources": ["10.20.0.10"]}]
    assert {"app1", "10.20.0.11", "app.shiftmaster.internal"} <= set(production["app1"]["tls_internal_names"])


def test_one_host_needs_no_other():
    values = next(iter(group_variables("single").values()))
    assert values["topology_rules"] == [] and values["shiftmaster_lb_servers"] == {}
    assert values["postgresql_listen_addresses"] == ["localhost"]
    assert (values["redis_port"], values["redis_tls_port"]) == (6379, 0)
    assert values["nginx_upstream_servers"] == ["unix:/var/www/shiftmaster/active/socket"]
    assert not values["nginx_upstream_tls"] and values["nginx_local_tls_listen"] == []
    assert [rule for rule in values["firewall_rules"] if rule["name"] != "web" and rule["sources"]] == []
    assert values["shiftmaster_database_sslmode"] == "require"


@pytest.mark.parametrize("count, connections", [(1, "100"), (2, "120"), (8, "420")])
def test_the_database_has_room_for_both_slots_of_every_application_host(tmp_path, count, connections):
    apps = "".join(f"app{number} ansible_host=10.0.0.{number}\n" for number in range(count))
    (tmp_path / "hosts").write_text(f"[app]\n{apps}[database]\napp0\n[web]\napp0\n[cache]\napp0\n")
    values = group_variables(str(tmp_path / "hosts"), variable_names=("postgresql_max_connections",))
    assert {str(value["postgresql_max_connections"]) for value in values.values()} == {connections}


# --- what watches them ------------------------------------------------------------------------------------------------

HOSTS = """[{environment}]
edge1 ansible_host=10.0.0.1
app1 ansible_host=10.0.0.2
db1 ansible_host=2001:db8::3
mon1 ansible_host=10.0.0.4
mon2 ansible_host=10.0.0.5
[web]
edge1
[app]
app1
[database]
db1
[cache]
db1
[monitoring]
mon1
mon2
"""


def watched(directory, environment="production", hosts=HOSTS, **extra) -> dict:
    """app1 runs Debian 12, the release of the others is unknown."""
    facts = {"app1": {"distribution_major_version": "12"}}
    (directory / "hosts").write_text(hosts.replace("{environment}", environment))
    return group_variables(
        str(directory / "hosts"),
        variable_names=WATCHED,
        facts=facts,
        **{"shiftmaster_domain": "shift.example.test", **extra},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    given = {"monitoring_other_sites": {"kyoto": "https://kyoto.example.test/health/"}}
    return watched(tmp_path_factory.mktemp("site"), grafana_apt_url="https://mirror.example.test/grafana", **given)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Without a backup or a scheduler, and with two web hosts."""
    hosts = HOSTS.replace("[web]\n", "[web]\napp1\n")
    return watched(tmp_path_factory.mktemp("demo"), "demo", hosts, shiftmaster_celery_beat=False)


def instances(values, job) -> list:
    return [target["labels"]["instance"] for one in values["prometheus_jobs"] if one["name"] == job
            for target in one["targets"]]  # fmt: skip


def alerts(values) -> set:
    return {
        rule["alert"]
        for text in values["prometheus_rule_files"].values()
        for group in yaml.safe_load(text)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }


def test_one_host_that_monitors_itself_listens_for_no_other(tmp_path):
    (tmp_path / "hosts").write_text("".join(f"[{name}]\none\n" for name in "web app database cache monitoring".split()))
    one = group_variables(str(tmp_path / "hosts"), variable_names=WATCHED, shiftmaster_domain="shift.example.test")[
        "one"
    ]
    assert one["exporter_listen_addresses"] == ["127.0.0.1"] and one["prometheus_listen_address"] == "127.0.0.1"
    assert one["alertmanager_listen_addresses"] == ["127.0.0.1:9093"]
    assert one["nginx_metrics_listen"] == ["127.0.0.1:9443"] and one["monitoring_clients"] == []
    addresses = {
        target["address"]
        for job in one["prometheus_jobs"]
        if job["name"] != "blackbox-http"
        for target in job["targets"]
    }
    assert {address.split(":")[0] for address in addresses} == {"localhost"} and len(addresses) > 8
    assert {target["labels"]["role"] for job in one["prometheus_jobs"] for target in job["targets"]} >= {
        "web,app,database,cache,monitoring"
    }
    opened = {port for rule in one["firewall_rules"] if rule.get("sources") != [] for port in rule["ports"]}
    assert opened & {9090, 9093, 9094, 9100, 9113, 9115, 9121, 9187, 9443} == set(), one["firewall_rules"]


def test_the_monitoring_of_a_single_host_is_reachable_for_its_sources(tmp_path):
    """The firewall opened the ports, and Prometheus listened on the loopback interface alone."""
    (tmp_path / "hosts").write_text("".join(f"[{name}]\none\n" for name in "web app database cache monitoring".split()))
    values = {"monitoring_admin_sources": ["10.0.0.5"], "shiftmaster_domain": "shift.example.test"}
    one = group_variables(str(tmp_path / "hosts"), variable_names=WATCHED, **values)["one"]
    opened = {port for rule in one["firewall_rules"] if rule.get("sources") == ["10.0.0.5"] for port in rule["ports"]}
    assert {9090, 9093} <= opened and one["prometheus_listen_address"] == ""
    assert one["alertmanager_listen_addresses"] == [":9093"]


def test_the_demo_sends_no_notification():
    """It has no mail server, and the alert that messages fail was in each of its diagnoses."""
    channels = ["alertmanager_email_to", "alertmanager_slack_api_url", "alertmanager_pagerduty_routing_key"]
    (found,) = inventories.variables(ROOT / "inventory/demo", channels).values()
    assert not any(found.values()), found


@pytest.fixture(scope="module")
def fifty(tmp_path_factory):
    """48 application hosts next to one with everything else, and one that watches: as its host sees them."""
    directory = tmp_path_factory.mktemp("topology")
    apps = [f"app{number} ansible_host=10.1.0.{number + 1}" for number in range(48)]
    (directory / "hosts").write_text(
        "[app]\n" + "\n".join(apps) + "\n[web]\nedge1 ansible_host=10.0.0.1\n[database]\nedge1\n[cache]\nedge1\n"
        "[monitoring]\nmon1 ansible_host=10.0.0.2\n"
    )  # fmt: skip
    return group_variables(
        str(directory / "hosts"), "mon1", variable_names=WATCHED, shiftmaster_domain="shift.example.test"
    )["mon1"]


def test_fifty_hosts_are_targets_of_their_own(fifty):
    counts = {job["name"]: len(job["targets"]) for job in fifty["prometheus_jobs"]}
    assert counts["node"] == counts["blackbox-icmp"] == counts["blackbox-tls"] == 50
    assert counts["shiftmaster"] == 48 and counts["mtail"] == counts["nginx"] == 49
    assert counts["postgres"] == counts["redis"] == counts["prometheus"] == counts["blackbox-http"] == 1
    for job in fifty["prometheus_jobs"]:
        assert len({target["address"] for target in job["targets"]}) == len(job["targets"])
        assert len({target["labels"]["instance"] for target in job["targets"]}) == len(job["targets"])


def test_fifty_hosts_have_one_configuration(fifty, tmp_path):
    text = render(
        "prometheus", "prometheus.yml.j2", prometheus_jobs=fifty["prometheus_jobs"], ansible_managed="x",
        prometheus_web_users=[{"name": "prometheus", "password": "x"}],
    )  # fmt: skip
    jobs = yaml.safe_load(text)["scrape_configs"]
    assert [job["job_name"] for job in jobs] == [job["name"] for job in fifty["prometheus_jobs"]]
    promtool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if promtool:
        (tmp_path / "prometheus.yml").write_text(text)
        checked = [promtool, "check", "config", "--syntax-only", tmp_path / "prometheus.yml"]
        done = subprocess.run(checked, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_exporters_that_know_no_password_are_left_out(site):
    names = {host: {one["name"] for one in values["exporter_instances"]} for host, values in site.items()}
    assert names["app1"] == {"node", "mtail"} and names["edge1"] == {"node", "nginx", "mtail"}
    assert instances(site["mon1"], "nginx") == ["edge1"] and instances(site["mon1"], "mtail") == ["edge1", "app1"]
    assert instances(site["mon1"], "redis") == ["db1"]


def test_hosts_of_a_cluster_watch_all_its_certificates(tmp_path):
    hosts = "[web]\na\n[app]\na\n[database]\nd\ne\nf\n[cache]\nd\n[monitoring]\nm\n[backup]\nb\n"
    (tmp_path / "hosts").write_text(hosts)
    secrets = {"vault_backup_cipher_passphrase": "x" * 32}
    found = group_variables(
        str(tmp_path / "hosts"), variable_names=("exporter_tls_listeners",), shiftmaster_domain="x", **secrets
    )
    names = {host: [one["name"] for one in values["exporter_tls_listeners"]] for host, values in found.items()}
    assert names == {
        "a": [], "m": [], "b": ["pgbackrest"], "d": ["postgresql", "redis", "etcd", "patroni", "pgbackrest"],
        "e": ["postgresql", "etcd", "patroni", "pgbackrest"], "f": ["postgresql", "etcd", "patroni", "pgbackrest"],
    }  # fmt: skip


def test_hosts_watch_the_certificates_that_nginx_and_the_offsite_copy_present(tmp_path):
    hosts = "[web]\nw\n[app]\na\nb\n[database]\nw\n[cache]\nw\n[offsite]\no\n[backup]\no\n"
    (tmp_path / "hosts").write_text(hosts)
    more = {"backup_offsite_hosts": ["o"], "offsite_port": 8000, "shiftmaster_domain": "x"}
    found = group_variables(str(tmp_path / "hosts"), variable_names=("exporter_tls_listeners",), **more)
    file = "/etc/ssl/shiftmaster/host.crt"
    nginx = {"name": "nginx", "port": 8443, "file": file}
    assert nginx in found["a"]["exporter_tls_listeners"] and nginx in found["b"]["exporter_tls_listeners"]
    assert nginx not in found["w"]["exporter_tls_listeners"]
    assert found["o"]["exporter_tls_listeners"] == [{"name": "rest-server", "port": 8000, "file": file}]


def test_hosts_watch_the_certificates_of_their_services_and_their_mail_servers(tmp_path):
    (tmp_path / "hosts").write_text("[web]\na\n[app]\na\n[database]\nd\n[cache]\nd\n[monitoring]\nm\n")
    variable_names = ("exporter_tls_listeners", "exporter_mail_servers", "diagnosis_certificates")
    mail = {"shiftmaster_email_host": "mail.x.jp", "alertmanager_smtp_smarthost": "relay.x.jp:587"}
    found = group_variables(str(tmp_path / "hosts"), variable_names=variable_names, shiftmaster_domain="x", **mail)
    host_certificate = {"file": "/etc/ssl/shiftmaster/host.crt"}
    listeners = [
        {"name": "postgresql", "port": 5432, **host_certificate},
        {"name": "redis", "port": 6379, **host_certificate},
    ]
    assert found["d"] == {
        "exporter_tls_listeners": listeners, "exporter_mail_servers": [], "diagnosis_certificates": listeners,
    }  # fmt: skip
    assert found["a"]["exporter_tls_listeners"] == [] and found["a"]["exporter_mail_servers"] == ["mail.x.jp:25"]
    assert [one["name"] for one in found["a"]["diagnosis_certificates"]] == ["site"]
    assert found["m"]["exporter_mail_servers"] == ["relay.x.jp:587"]
    # The default is no mail server.
    alone = group_variables(str(tmp_path / "hosts"), "a", variable_names, shiftmaster_domain="x")["a"]
    assert alone["exporter_mail_servers"] == []


def test_the_page_is_probed_on_the_host_that_serves_it(site, demo):
    assert instances(site["mon1"], "blackbox-http") == ["edge1"]
    assert instances(demo["mon1"], "blackbox-http") == ["shift.example.test"]


def test_the_page_of_another_site_is_probed_from_each_monitoring_host(site, demo):
    for host in ("mon1", "mon2"):
        (job,) = [one for one in site[host]["prometheus_jobs"] if one["name"] == "blackbox-external"]
        assert job["probe"] == {"address": "localhost:9115", "module": "http"}
        labels = {"env": "production", "instance": "kyoto", "role": "external"}
        assert job["targets"] == [{"address": "https://kyoto.example.test/health/", "labels": labels}]
    assert instances(demo["mon1"], "blackbox-external") == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"monitoring_container_hosts": ["one", "tow"]}, "monitoring_container_hosts: no host is called tow"),
        ({"monitoring_alerts_left_out": ["BackupMissing", "BackupMisses"]}, "no alert is called BackupMisses"),
        ({"tls_site_mode": "letsencrypt"}, "tls_site_mode=letsencrypt is none of"),
        ({"shiftmaster_domain": "https://shift.test/"}, "the domain https://shift.test/ is no host name"),
        ({"monitoring_container_hosts": ["one"], "monitoring_alerts_left_out": ["BackupMissing"]}, None),
    ],
)
def test_unknown_hosts_alerts_tags_and_modes(tmp_path, given, sentence):
    (tmp_path / "hosts").write_text("".join(f"[{name}]\none\n" for name in "web app database monitoring".split()))
    (problems,) = group_variables(str(tmp_path / "hosts"), variable_names=("topology_rules",), **given).values()
    assert [sentence in one for one in problems["topology_rules"]] == ([True] if sentence else [])


def test_a_new_password_for_scrapes_is_valid_next_to_the_old_one(tmp_path):
    (tmp_path / "hosts").write_text("".join(f"[{name}]\none\n" for name in "web app database monitoring".split()))
    old, variable_names = {"name": "prometheus", "password": "old"}, ("exporter_users", "nginx_metrics_users")
    found = group_variables(
        str(tmp_path / "hosts"), variable_names=(*variable_names, "prometheus_web_users", "prometheus_jobs"),
        monitoring_scrape_user="prometheus-2", vault_monitoring_scrape_password="new",
        monitoring_scrape_users_previous=[old], shiftmaster_domain="shift.example.test",
    )  # fmt: skip
    for values in found.values():
        both = [{"name": "prometheus-2", "password": "new"}, old]
        assert values["exporter_users"] == values["nginx_metrics_users"] == values["prometheus_web_users"][1:] == both
        assert {job["user"] for job in values["prometheus_jobs"]} == {"prometheus-2"}


def test_grafana_is_queried_where_there_is_one(site, demo):
    assert instances(site["mon1"], "grafana") == ["mon1", "mon2"] and instances(demo["mon1"], "grafana") == []


def test_monitored_services_also_listen_on_addresses_of_ipv6(site):
    assert site["db1"]["exporter_listen_addresses"] == [""] and site["mon1"]["prometheus_listen_address"] == ""
    assert site["mon1"]["alertmanager_listen_addresses"] == [":9093"]


def test_several_alertmanagers_can_form_a_cluster(site):
    ports = {
        host: {port for rule in values["firewall_rules"] if rule["name"] == "monitoring" for port in rule["ports"]}
        for host, values in site.items()
    }
    assert {host for host, open_ports in ports.items() if 9094 in open_ports} == {"mon1", "mon2"}


def test_disabled_functions_are_not_reported_as_missing(site, demo):
    lacks = {"CeleryBeatMissing", "BackupMissing", "RestoreTestTooOld"}
    assert lacks <= alerts(site["mon1"]) and alerts(site["mon1"]) - alerts(demo["mon1"]) == lacks


@pytest.mark.parametrize(
    "extra, output",
    [
        ({"topology_media_shared": False}, "topology_media_shared"),
        ({"topology_media_shared": True, "shiftmaster_batches": [0]}, "shiftmaster_batches"),
    ],
)
def test_problems_of_an_inventory_are_reported(extra, output):
    found = group_variables("production", variable_names=("topology_rules",), of="app1", **extra)
    problems = found["app1"]["topology_rules"]
    assert len(problems) == 1 and output in problems[0]


def test_only_hosts_with_an_address_are_peers(tmp_path):
    (tmp_path / "hosts").write_text("[app]\na\nb\n[web]\nw\n[database]\nd private_address=192.0.2.7\n[cache]\nc\n")
    hosts = group_variables(str(tmp_path / "hosts"), variable_names=("diagnosis_peers",))
    assert [(peer["host"], peer["address"]) for peer in hosts["a"]["diagnosis_peers"]] == [("d", "192.0.2.7")]
    assert hosts["w"]["diagnosis_peers"] == []


@pytest.mark.parametrize(
    "output, taken",
    [
        ("192.0.2.7", "192.0.2.7"),
        ("0.0.0.0/0", ""),
        ("192.0.2.7/32 trust\nhost all all 0.0.0.0/0", ""),
        ("192.0.2.7\n", ""),
        ("192.0.2.7; drop", ""),
        (["192.0.2.7"], ""),
    ],
)
def test_the_reported_address_of_a_host_cannot_change_the_files_of_others(tmp_path, output, taken):
    (tmp_path / "hosts").write_text("[app]\na\n[database]\nd private_address=192.0.2.9\n")
    facts = {"a": {"default_ipv4": {"address": output}}}
    values = group_variables(str(tmp_path / "hosts"), pattern="d", variable_names=["topology_addresses"], facts=facts)
    assert values["d"]["topology_addresses"] == {"a": taken, "d": "192.0.2.9"}


def test_the_source_check_gets_all_names_of_the_environment(tmp_path):
    (tmp_path / "hosts").write_text("[app]\na\n[web]\na\n[database]\na\n[cache]\na\n")
    names = ("shiftmaster_extra_environment", "shiftmaster_extra_secret_environment")
    more = {name: {"ONE_OF_%s" % name.upper(): "x"} for name in names}
    hosts = group_variables(
        str(tmp_path / "hosts"), variable_names=("preflight_application",), shiftmaster_domain="a.example", **more
    )
    application = hosts["a"]["preflight_application"]
    assert {"DB_NAME", "DB_PASSWORD", *(name for one in more.values() for name in one)} <= {*application["environment"]}
    assert (application["settings_module"], application["collectstatic"]) == ("shiftmaster.settings", True)


def test_the_monitoring_units_are_units_that_must_run(tmp_path):
    (tmp_path / "hosts").write_text("[app]\na\n[web]\na\n[database]\na\n[cache]\na\n[monitoring]\nm\n")
    hosts = group_variables(str(tmp_path / "hosts"), variable_names=("diagnosis_units",), grafana_apt_url="https://x")
    assert hosts["m"]["diagnosis_units"] == [
        "prometheus",
        "prometheus-alertmanager",
        "grafana-server",
        "logrotate.timer",
    ]
    assert "prometheus" not in hosts["a"]["diagnosis_units"]


def test_a_scheduler_is_expected_where_all_hosts_are_queried_and_one_has_it(production):
    assert (
        production["app2"]["diagnosis_beat_hosts"] == ["app1", "app2"] and production["app2"]["diagnosis_beat_expected"]
    )
    names = ("diagnosis_beat_hosts", "diagnosis_beat_expected")
    some = group_variables("production", variable_names=names, of="app1", shiftmaster_celery_beat=False)["app1"]
    assert some["diagnosis_beat_hosts"] == [] and not some["diagnosis_beat_expected"]
    assert not group_variables("production", "app2", names)["app2"]["diagnosis_beat_expected"]


def test_both_examples_of_a_vault_have_the_same_secrets():
    one, other = (ROOT / f"group_vars/{name}/vault.yml.example" for name in ("single", "production"))
    assert one.read_text().replace("group_vars/single", "group_vars/production") == other.read_text()


def test_pgbackrests_port_has_a_key_and_a_login_of_its_own(tmp_path):
    inventory = yaml.safe_load((ROOT / "inventory/production/hosts.yml").read_text(encoding="utf-8"))
    children = inventory["all"]["children"]
    children["production"]["hosts"]["backup1"] = {"ansible_host": "192.0.2.40", "private_address": "10.20.0.40"}
    children["backup"] = {"hosts": {"backup1": None}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    variable_names = (
        "tls_internal_services", "postgresql_hba_rules", "postgresql_roles", "backup_tls_peer_address",
        "firewall_rules", "tls_internal_reload_commands",
    )  # fmt: skip
    secrets = {
        f"vault_backup_{name}": "s" * 20 for name in ("cipher_passphrase", "restic_password", "database_password")
    }
    found = group_variables(tmp_path, "all", variable_names, topology_media_shared=True, **secrets)
    with_key = {host for host, values in found.items() if values["tls_internal_services"]}
    assert with_key == {"db1", "backup1"}
    assert found["db1"]["tls_internal_services"] == [{"name": "pgbackrest", "group": "postgres"}]
    assert "systemctl try-reload-or-restart pgbackrest.service*" in found["backup1"]["tls_internal_reload_commands"]
    # Before the rule for every local login, which requires a password.
    assert found["db1"]["postgresql_hba_rules"][0] == {
        "type": "local", "database": "postgres", "user": "pgbackrest", "method": "peer",
    }  # fmt: skip
    role = next(role for role in found["db1"]["postgresql_roles"] if role["name"] == "pgbackrest")
    assert role["memberships"] == ["pg_read_all_settings"] and not role.get("attributes") and not role.get("password")
    assert (found["db1"]["backup_tls_peer_address"], found["backup1"]["backup_tls_peer_address"]) == (
        "10.20.0.40", "10.20.0.21",
    )  # fmt: skip
    rules = {host: next(r for r in found[host]["firewall_rules"] if r["name"] == "backup") for host in with_key}
    assert {host: rule["sources"] for host, rule in rules.items()} == {
        host: [found[host]["backup_tls_peer_address"]] for host in with_key
    }


UPGRADE = ("preflight_operations", "preflight_upgrade_actions", "preflight_upgrade_message")


def test_an_upgrade_shows_the_actions_that_the_hosts_version_did_not_have():
    changelog = "## [1.0.0] - 2026-12-06\n\n- **A**: new. Action: set a.\n- **B**: nothing.\n"

    def found(local, text=changelog):
        facts = {"shift.example.jp": {"ansible_local": local}}
        values = group_variables("single", variable_names=UPGRADE, facts=facts, __preflight_changelog=text)
        return values["shift.example.jp"]

    first = found({"shiftmaster": {"version": "0.9.0", "actions": []}})
    assert first["preflight_upgrade_actions"] == ["- **A**: new. Action: set a."]
    assert first["preflight_operations"]["version"] == "1.0.0"
    after = found({"shiftmaster": first["preflight_operations"]})
    assert after["preflight_upgrade_actions"] == []
    hostile = {**first["preflight_operations"], "version": "1.0.0\x1b[2J" + "x" * 200}
    later = found({"shiftmaster": hostile}, "## [1.1.0]\n\n- **D**: Action: set d.\n" + changelog)
    assert later["preflight_upgrade_actions"] == ["- **D**: Action: set d."]
    (message,) = later["preflight_upgrade_message"]
    assert "1.1.0" in message and "\x1b" not in message and len(message) < 250, "a host reports what it likes"


NAMES = ("tls_names", "nginx_server_names", "nginx_redirected_names", "shiftmaster_environment", "monitoring_site_url")
MAIL = (
    "shiftmaster_email_host", "shiftmaster_email_port", "shiftmaster_email_tls", "alertmanager_smtp_smarthost",
    "notify_smtp_host", "notify_smtp_port", "exporter_mail_servers",
)  # fmt: skip


def test_a_change_of_the_domain_redirects_the_earlier_name():
    changed = {"shiftmaster_domain": "new.test", "topology_former_domains": ["old.test"]}
    found = group_variables("single", variable_names=(*NAMES, "topology_rules"), **changed)["shift.example.jp"]
    assert found["tls_names"] == ["new.test", "old.test"], "a redirect by TLS needs a certificate"
    assert found["nginx_server_names"] == ["new.test"] and found["nginx_redirected_names"] == ["old.test"]
    # Until nginx leads there, the new release is requested by the earlier name.
    assert found["shiftmaster_environment"]["DJANGO_ALLOWED_HOSTS"] == "new.test,old.test,localhost"
    assert found["shiftmaster_environment"]["DJANGO_CSRF_TRUSTED_ORIGINS"] == "https://new.test,https://old.test"
    assert found["monitoring_site_url"] == "https://new.test/health/"
    assert found["topology_rules"] == []
    for wrong in ("new.test", "old.test; return 200", ""):
        given = {**changed, "topology_former_domains": [wrong]}
        assert (
            len(
                group_variables("single", variable_names=["topology_rules"], **given)["shift.example.jp"][
                    "topology_rules"
                ]
            )
            == 1
        )


def test_the_mail_server_is_named_once(tmp_path):
    (tmp_path / "hosts").write_text("[web]\na\n[app]\na\n[database]\na\n[cache]\na\n[monitoring]\na\n")

    def mail(names=MAIL, **variables):
        return group_variables(str(tmp_path / "hosts"), variable_names=names, shiftmaster_domain="x", **variables)["a"]

    one = mail(topology_mail_server="mail.x.jp:587")
    assert [one[name] for name in MAIL[:6]] == ["mail.x.jp", 587, True, "mail.x.jp:587", "mail.x.jp", 587]
    assert one["exporter_mail_servers"] == ["mail.x.jp:587"]
    assert [mail()[name] for name in MAIL] == ["localhost", 25, False, "localhost:587", "", 587, []]
    own = mail(topology_mail_server="mail.x.jp:587", shiftmaster_email_host="relay.x.jp")
    assert own["shiftmaster_email_host"] == "relay.x.jp" and own["notify_smtp_host"] == "mail.x.jp"
    wrong = mail(["topology_rules"], topology_mail_server="mail.x.jp")["topology_rules"]
    assert [line for line in wrong if "topology_mail_server" in line] != []
