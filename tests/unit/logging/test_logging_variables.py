"""The values of group_vars/all for an inventory with hosts for the logs, and for one without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import inventories
import offenders
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from installed_package import installed_package

ROOT = Path(__file__).resolve().parents[3]
VARIABLES = (
    "shiftmaster_log_format", "shiftmaster_log_masks", "shiftmaster_log_environment", "filebeat_files",
    "filebeat_journal_units", "filebeat_logstash_hosts", "logstash_elasticsearch_urls", "logstash_masks",
    "logstash_version", "kibana_elasticsearch_urls", "elasticsearch_nodes", "elasticsearch_listen_address",
    "elasticsearch_environment", "firewall_rules", "log_watch_parts", "log_watch_canary", "preflight_roles_here",
    "preflight_required", "exporter_mtail_application_log_dir",
)  # fmt: skip
HOSTS = {"app1": 10, "log1": 21, "log2": 22, "log3": 23, "mon1": 30}


def variables_of(directory: Path, names, groups) -> dict:
    """{host: {variable: value}} of an inventory with these hosts."""
    children = {name: {"hosts": dict.fromkeys(members)} for name, members in groups.items()}
    hosts = {name: {"private_address": f"192.0.2.{HOSTS[name]}"} for name in names}
    everybody = {"hosts": hosts, "vars": {"ansible_group_priority": 10}}
    (directory / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": {"production": everybody, **children}}}))
    extra = {
        "shiftmaster_domain": "shift.example.jp",
        "logging_version": "9.2.1",
        "log_masks_site": [{"name": "own", "pattern": "P-[0-9]{8}", "replace": "[patient]"}],
        "vault_elasticsearch_canary_password": "of-the-canary",
        "ansible_run_tags": ["all"],
    }
    return inventories.variables(directory / "hosts.yml", VARIABLES, **extra)


APP = {name: ["app1"] for name in ("web", "app", "database", "cache")}


@pytest.fixture(scope="module")
def topology(tmp_path_factory):
    logs = ["log1", "log2", "log3"]
    groups = {
        **APP, "elasticsearch": logs, "logstash": ["log1"], "kibana": ["log1"], "filebeat": ["app1", "log1"],
        "monitoring": ["mon1"],
    }  # fmt: skip
    return variables_of(tmp_path_factory.mktemp("topology"), HOSTS, groups)


def test_without_logging_hosts_nothing_of_logging_is_configured(tmp_path):
    found = variables_of(tmp_path, ["app1"], APP)["app1"]
    assert found["shiftmaster_log_format"] == "application"
    assert found["log_watch_parts"] == {} and found["log_watch_canary"] == {}
    assert not {"elasticsearch", "logstash", "kibana", "filebeat", "elastic_repository", "log_watch"} & set(
        found["preflight_roles_here"]
    )
    assert not [one for one in found["preflight_required"] if "elasticsearch" in one["name"]]
    names = {"web", "postgresql", "postgresql-backup", "redis", "application"}
    assert {rule["name"] for rule in found["firewall_rules"]} <= names


def test_one_host_with_all_of_it_is_local(tmp_path):
    groups = {**APP, **{name: ["app1"] for name in ("elasticsearch", "logstash", "kibana", "filebeat")}}
    found = variables_of(tmp_path, ["app1"], groups)["app1"]
    assert found["logstash_elasticsearch_urls"] == ["https://localhost:9200"]
    assert found["filebeat_logstash_hosts"] == ["localhost:5044"]
    assert found["elasticsearch_nodes"] == {} and found["elasticsearch_listen_address"] == "127.0.0.1"


def test_the_application_logs_for_the_search_and_masks_its_own_numbers(topology):
    found = topology["app1"]
    assert found["shiftmaster_log_format"] == "ecs" and found["shiftmaster_log_environment"] == "production"
    # Both walls have the same patterns, a site's own too.
    assert found["shiftmaster_log_masks"] == found["logstash_masks"]
    assert [mask["name"] for mask in found["shiftmaster_log_masks"]][-1] == "own"
    assert len(found["shiftmaster_log_masks"]) > 10
    assert found["exporter_mtail_application_log_dir"] == "/var/log/shiftmaster"


def test_each_host_reads_what_it_has(topology):
    assert [file["id"] for file in topology["app1"]["filebeat_files"]] == [
        "shiftmaster-app", "shiftmaster-audit", "shiftmaster-canary", "shiftmaster-operations", "shiftmaster-nginx",
        "shiftmaster-nginx-error", "shiftmaster-postgresql", "shiftmaster-redis",
    ]  # fmt: skip
    assert topology["app1"]["filebeat_files"][0]["begins"].startswith("^[0-9]{4}-")
    assert topology["log1"]["filebeat_files"] == [] and topology["log1"]["filebeat_journal_units"] == ["ssh.service"]
    # The unit of this name only starts the others, and logs nothing.
    assert "postgresql@17-main.service" in topology["app1"]["filebeat_journal_units"]
    assert "postgresql.service" not in topology["app1"]["filebeat_journal_units"]
    assert topology["app1"]["filebeat_logstash_hosts"] == ["192.0.2.21:5044"]


def test_three_nodes_are_one_cluster(topology):
    nodes = {"log1": "192.0.2.21", "log2": "192.0.2.22", "log3": "192.0.2.23"}
    assert topology["log2"]["elasticsearch_nodes"] == nodes
    urls = [f"https://{address}:9200" for address in nodes.values()]
    assert topology["log1"]["logstash_elasticsearch_urls"] == topology["log1"]["kibana_elasticsearch_urls"] == urls
    assert topology["log1"]["logstash_version"] == "1:9.2.1-1"


def rules(host) -> dict:
    return {rule["name"]: rule for rule in host["firewall_rules"]}


def test_only_hosts_that_need_access_are_allowed(topology):
    log1, log2 = rules(topology["log1"]), rules(topology["log2"])
    assert log1["logstash"] == {"name": "logstash", "ports": [5044], "sources": ["192.0.2.10"]}
    assert log2["elasticsearch"]["ports"] == [9200, 9300]
    # Other nodes, Logstash and Kibana, and the application's host, which searches for the canary's line.
    assert sorted(log2["elasticsearch"]["sources"]) == ["192.0.2.10", "192.0.2.21", "192.0.2.23"]
    assert log1["logging-people"] == {"name": "logging-people", "ports": [5601], "sources": []}
    assert not {"elasticsearch", "logstash", "logging-people"} & set(rules(topology["app1"]))


def test_parts_watched_on_each_host(topology):
    assert set(topology["log1"]["log_watch_parts"]) == {"elasticsearch", "logstash", "filebeat"}
    assert set(topology["log2"]["log_watch_parts"]) == {"elasticsearch"}
    assert topology["log1"]["log_watch_canary"] == {}
    canary = topology["app1"]["log_watch_canary"]
    assert canary["stream"] == "logs-shiftmaster.canary-production" and canary["url"] == "https://192.0.2.21:9200"
    assert canary["password"] == "of-the-canary"


def test_the_preflight_checks_what_a_host_installs(topology):
    here = {host: set(values["preflight_roles_here"]) for host, values in topology.items()}
    assert {"elastic_repository", "elasticsearch", "logstash", "kibana", "filebeat", "log_watch"} <= here["log1"]
    assert {"elastic_repository", "elasticsearch", "log_watch"} <= here["log2"] and "logstash" not in here["log2"]
    assert {"elastic_repository", "filebeat", "log_watch"} <= here["app1"] and "elasticsearch" not in here["app1"]
    assert not {"elastic_repository", "filebeat", "log_watch"} & here["mon1"]
    wanted = {one["name"] for one in topology["log1"]["preflight_required"]}
    assert {"vault_elasticsearch_admin_password", "vault_shiftmaster_log_key"} <= wanted


def plays():
    """Return the plays of deploy.yml that set the parts up, in their order."""
    found = yaml.safe_load((ROOT / "playbooks/deploy.yml").read_text(encoding="utf-8"))
    return [play for play in found if "logging" in play.get("tags", [])]


def test_an_update_goes_from_servers_to_clients_and_stops_at_the_first_failed_host():
    order = [(play["tags"][-1], play.get("serial")) for play in plays()]
    assert order == [
        ("elasticsearch", 1), ("logstash", 1), ("kibana", 1), ("filebeat", [1, "100%"]), ("log_watch", None),
    ]  # fmt: skip
    assert all(play["any_errors_fatal"] is True for play in plays())


def test_repository_and_order_are_checked_before_the_first_part():
    found = yaml.safe_load((ROOT / "playbooks/deploy.yml").read_text(encoding="utf-8"))
    names = [play["name"] for play in found]
    before = found[names.index(plays()[0]["name"]) - 1]
    order, repository = before["tasks"]
    assert order["ansible.builtin.import_role"] == {"name": "elastic_repository", "tasks_from": "order"}
    assert "when" not in order
    assert repository["ansible.builtin.import_role"]["name"] == "elastic_repository"
    # With a part's own tag, to skip that part would skip the others' repository.
    assert before["tags"] == ["always"] and before["hosts"] == "elasticsearch:logstash:kibana:filebeat"


ALL = "elasticsearch logstash kibana filebeat"


@pytest.mark.parametrize(
    ("given", "parts", "matters"),
    [
        # A complete run, and one of all parts, brings Elasticsearch first.
        ({"ansible_run_tags": ["all"]}, ALL, False),
        ({"ansible_run_tags": ["logging"]}, ALL, False),
        ({"ansible_run_tags": ["tls", "elasticsearch", "kibana"]}, "elasticsearch kibana", False),
        ({"ansible_run_tags": ["elasticsearch"]}, "elasticsearch", False),
        # Runs that skip it.
        ({"ansible_run_tags": ["filebeat"]}, "filebeat", True),
        ({"ansible_run_tags": ["all"], "ansible_skip_tags": ["elasticsearch"]}, "logstash kibana filebeat", True),
        ({"ansible_run_tags": ["all"], "ansible_play_hosts_all": ["log1", "app1"]}, ALL, True),
        ({"ansible_run_tags": ["all"], "elasticsearch_version": "9.1.0"}, ALL, True),
        # No version is requested, or nothing of it.
        ({"ansible_run_tags": ["filebeat"], "logging_version": ""}, "filebeat", False),
        ({"ansible_run_tags": ["release"]}, "", False),
        ({"ansible_run_tags": ["all"], "ansible_skip_tags": ["logging"]}, "", False),
    ],
)  # fmt: skip
def test_parts_that_a_run_configures_and_whether_their_order_is_checked(given, parts, matters):
    values = {
        "ansible_skip_tags": [], "ansible_play_hosts_all": ["log1", "log2", "app1"], "logging_hosts": ["log1", "log2"],
        "logging_version": "9.2.1", "elasticsearch_version": "{{ logging_version }}", **given,
    }  # fmt: skip
    group_variables = yaml.safe_load((ROOT / "group_vars/all/logging.yml").read_text(encoding="utf-8"))
    for name in ("logging_parts", "logging_run_parts", "logging_order_matters"):
        values[name] = group_variables[name]
    values = {name: trust_as_template(value) if isinstance(value, str) else value for name, value in values.items()}
    templar = Templar(loader=DataLoader(), variables=values)
    assert templar.template(values["logging_run_parts"]) == parts.split()
    assert templar.template(values["logging_order_matters"]) is matters


@pytest.mark.parametrize(
    ("tags", "queries"),
    [
        (["all"], True), (["tagged"], True), (["release"], True), (["tls", "app"], True), (["monitoring"], False),
        (["nginx", "logging"], False),
    ],
)  # fmt: skip
def test_a_run_without_a_release_queries_no_git_server(tags, queries):
    group_variables = yaml.safe_load((ROOT / "group_vars/all/preflight.yml").read_text(encoding="utf-8"))
    wanted, run = (trust_as_template(group_variables[name]) for name in ("run_needs_release", "__preflight_roles_run"))
    known = {name: group_variables[name] for name in ("preflight_roles", "preflight_roles_of_tags")}
    known |= {"ansible_run_tags": tags, "run_needs_release": wanted, "__preflight_roles_run": run}
    templar = Templar(loader=DataLoader(), variables=known)
    assert templar.template(wanted) is queries
    # Rules that such a run evaluates.
    everything = {"all", "tagged"} & {*tags}
    roles = (
        group_variables["preflight_roles"]
        if everything
        else [r for tag in tags for r in group_variables["preflight_roles_of_tags"][tag]]
    )
    assert set(templar.template(run)) == {*roles, "preflight"}
    (inspected,) = (
        task["vars"]["preflight_repository"]
        for play in yaml.safe_load((ROOT / "playbooks/deploy.yml").read_text(encoding="utf-8"))
        for task in play["tasks"]
        if "preflight_repository" in task.get("vars", {})
    )
    templar.available_variables = {**templar.available_variables, "shiftmaster_git_url": "git@git.example.jp:rota.git"}
    assert bool(templar.template(trust_as_template(inspected))) is queries


@pytest.mark.parametrize(
    ("output", "wanted", "installed", "missing", "held"),
    [
        ("kibana hold installed 9.2.1\n", "9.2.1", "9.2.1", False, True),
        ("kibana install installed 9.2.1\n", "9.*", "9.2.1", False, False),
        ("kibana hold installed 9.2.1\n", "9.2.10", "9.2.1", True, True),
        ("kibana hold installed 9.20.1\n", "9.2*1", "9.20.1", False, True),
        ("kibana hold installed 8x2\n", "8.2", "8x2", True, True),
        ("kibana hold half-configured 9.2.1\n", "9.2.1", "9.2.1", True, True),
        ("kibana deinstall config-files 9.2.1\n", "9.2.1", "", True, False),
        ("kibana unknown not-installed \n", "9.2.1", "", True, False),
        ("", "9.2.1", "", True, False),
    ],
)  # fmt: skip
def test_installed_and_missing_packages(output, wanted, installed, missing, held):
    found = installed_package({"name": "kibana", "version": wanted}, output.splitlines())
    assert found == {"name": "kibana", "version": wanted, "installed": installed, "missing": missing, "held": held}


ORDERS = [
    # Installed versions of the nodes of Elasticsearch, the version to install, whether it is rejected.
    (["9.2.1", "9.2.1"], "9.2.1", False), (["9.2.1", "9.3.0"], "9.3.0", True), (["9.9.0"], "9.10.0", True),
    (["9.10.0"], "9.9.0", False), ([], "9.3.0", False),
]  # fmt: skip


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Ansible's report of the role's tasks, with a dpkg-query of the test's own: a play for each case, in one run."""
    directory, inventory, plays = tmp_path_factory.mktemp("played"), {}, []

    def play(queries, *tasks, **variables):
        names = [f"play{len(plays)}-{number}" for number in range(len(queries))]
        for name, query in zip(names, queries):
            (directory / name).mkdir()
            program = directory / name / "dpkg-query"
            program.write_text(f"#!/bin/sh\n{query}\n")
            program.chmod(0o755)
            inventory[name] = {
                "ansible_connection": "local", "ansible_python_interpreter": sys.executable, "stub": str(program.parent)
            }  # fmt: skip
        environment = {"PATH": "{{ stub }}:{{ lookup('ansible.builtin.env', 'PATH') }}"}
        variables["logging_hosts"] = names
        plays.append(
            {"hosts": names, "gather_facts": False, "environment": environment, "vars": variables, "tasks": tasks}
        )

    def show(message):
        return {"name": "Show", "ansible.builtin.debug": {"msg": message}}

    for there, version, _refused in ORDERS:
        order = {"ansible.builtin.import_role": {"name": "elastic_repository", "tasks_from": "order"}}
        rescue = show("{{ (ansible_failed_result | default({})).msg | default('') }}")
        queries = [f"printf %s '{one}'" for one in there] or ["exit 1"]
        play(queries, {"block": [order], "rescue": [rescue]}, logging_version=version, logging_order_matters=True)
    role = {"name": "elastic_repository", "tasks_from": "facts", "rolespec_validate": False}
    query = "printf 'logstash hold installed 1:9.2.1-1\\n'; exit 1"
    play([query], {"ansible.builtin.include_role": role}, show("{{ elastic_repository_found.stdout_lines }}"))
    (directory / "play.yml").write_text(json.dumps(plays))
    (directory / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": inventory}}))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", directory / "hosts.yml", directory / "play.yml"],
        cwd=directory, capture_output=True, text=True,
        # Without the callbacks of scripts/run_tests.py, which print next to the report.
        env={**{name: value for name, value in os.environ.items() if name != "ANSIBLE_CALLBACKS_ENABLED"},
             "ANSIBLE_LOCALHOST_WARNING": "false", "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
             "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
    )  # fmt: skip
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def shown(report, number):
    """The output of the task Show of a play."""
    # A task that runs once has failed on the other hosts of its play too, where nothing rescues it.
    first = report["stats"][f"play{number}-0"]
    assert (first["failures"], first["unreachable"]) == (0, 0), report["plays"][number]
    play = report["plays"][number]
    return [host["msg"] for task in play["tasks"] if task["task"]["name"] == "Show" for host in task["hosts"].values()]


def test_a_missing_additional_package_is_reported_too(played):
    """By the role's own task."""
    logstash = {"name": "logstash", "version": "1:9.2.1-1", "with": ["python3-cryptography"]}
    (lines,) = shown(played, len(ORDERS))
    assert lines == ["logstash hold installed 1:9.2.1-1"]
    assert installed_package(logstash, lines)["missing"]
    assert not installed_package(logstash, [*lines, "python3-cryptography install installed 43.0"])["missing"]


def test_versions_newer_than_elasticsearch_are_rejected(played):
    def check(case):
        responses = shown(played, case)
        assert bool(responses) is ORDERS[case][2]
        assert any("it goes first" in text for text in responses) is ORDERS[case][2]

    offenders.check_each(range(len(ORDERS)), check, lambda case: str(ORDERS[case]))
