"""Files of the roles of the logging pipeline, with Ansible's own templating."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import rendered
import yaml
from ansible.template import trust_as_template
from logstash_model import read
from rendered import ROOT, masks, problems, render, templar
from unknown_options import names, unknown_options

SECRET = "a-secret-of-the-test"
PASSWORDS = {f"elasticsearch_{name}_password": SECRET + name for name in ("admin", "writer", "kibana", "canary")}


def templated(role, expression, **variables):
    return templar(role, **variables).template(trust_as_template("{{ " + expression + " }}"))


def variables_of(role):
    return yaml.safe_load((ROOT / "roles" / role / "vars/main.yml").read_text(encoding="utf-8"))


# --- options ---------------------------------------------------------------------------------------------------------

SETTINGS = {
    "elasticsearch": ("__elasticsearch_settings", "__elasticsearch_options"),
    "logstash": ("__logstash_settings", "__logstash_options"),
    "kibana": ("__kibana_settings", "__kibana_options"),
    "filebeat": ("__filebeat_settings | combine(filebeat_settings)", "__filebeat_options"),
}
FILES = [
    {"id": "a", "dataset": "shiftmaster.app", "paths": ["/a"], "begins": "^x", "exclude": ["b"]},
    {"id": "c", "dataset": "shiftmaster.redis", "paths": ["/c"]},
]


@pytest.mark.parametrize("role", SETTINGS)
def test_every_option_that_a_role_writes_is_one_of_this_version(role):
    settings, options = SETTINGS[role]
    known = variables_of(role)[options]
    for more in ({}, {"elasticsearch_nodes": {"host1": "192.0.2.1", "host2": "192.0.2.2"}}):
        found = templated(role, settings, filebeat_files=FILES, filebeat_journal_units=["a.service"], **more)
        assert list(names(found)) and unknown_options(found, known) == []


@pytest.mark.parametrize(
    ("role", "name", "message"),
    [
        ("logstash", "http.port", "api.http.port"),
        ("logstash", "pipeline.worker", "did you mean pipeline.workers?"),
        ("elasticsearch", "discovery.zen.ping.unicast.hosts", "discovery.seed_hosts"),
        ("elasticsearch", "node.master", "node.roles"),
        ("elasticsearch", "clustername", "did you mean cluster.name?"),
        ("kibana", "server.xsrf.whitelist", "server.xsrf.allowlist"),
        ("kibana", "elasticsearch.url", "elasticsearch.hosts"),
        ("filebeat", "filebeat.prospectors", "filebeat.inputs"),
        ("filebeat", "output.logstash.tls.enabled", "output.logstash.ssl"),
        ("filebeat", "logging.levels", "did you mean logging.level?"),
    ],
)
def test_a_removed_or_misspelt_option_is_rejected(role, name, message):
    found = variables_of(role)
    settings, options = SETTINGS[role]
    (sentence,) = unknown_options({name: 1}, found[options], found[options + "_gone"])
    assert name in sentence and message in sentence


def test_the_guides_own_filebeat_is_refused():
    found = variables_of("filebeat")
    guide = {
        "filebeat.inputs": [
            {
                "type": "log",
                "enabled": True,
                "paths": ["/a"],
                "fields": {"service": "shiftmaster"},
                "multiline.pattern": "^x",
            }
        ],
        "output.logstash": {"hosts": ["logstash:5044"]},
    }
    (sentence,) = unknown_options(guide, found["__filebeat_options"], found["__filebeat_options_gone"])
    assert sentence == "filebeat.inputs.multiline.pattern is gone: parsers: - multiline:"


def plugins(block):
    for name, body in block:
        if name == "if":
            for _condition, inner in body:
                yield from plugins(inner)
        else:
            yield name, body


def test_every_option_of_every_plugin_is_one_of_this_version():
    found = yaml.safe_load((ROOT / "tests/logging/plugin_options.yml").read_text())
    sections = read(render("logstash", "pipeline.conf.j2", logstash_masks=masks()))
    used = [(name, option) for part in sections.values() for name, body in plugins(part) for option, _ in body]
    assert {name for name, _ in used} == set(found["known"])
    assert [pair for pair in used if pair[1] not in found["known"][pair[0]]] == []
    gone = {tuple(name.split(".")) for name in found["gone"]}
    assert not gone & set(used)
    assert not [pair for pair in gone if pair[1] in found["known"][pair[0]]]


# --- Elasticsearch ---------------------------------------------------------------------------------------------------


def test_elasticsearch_is_closed_and_uses_tls():
    settings = yaml.safe_load(render("elasticsearch", "elasticsearch.yml.j2"))
    assert settings["discovery.type"] == "single-node" and "cluster.initial_master_nodes" not in settings
    for name in (
        "xpack.security.enabled",
        "xpack.security.http.ssl.enabled",
        "xpack.security.transport.ssl.enabled",
    ):
        assert settings[name] is True
    assert settings["xpack.security.transport.ssl.client_authentication"] == "required"
    assert settings["network.host"] == "127.0.0.1" and settings["bootstrap.memory_lock"] is True
    assert settings["ingest.geoip.downloader.enabled"] is False


def test_several_nodes_are_one_cluster_which_the_first_one_makes_once():
    nodes = {"host1": "192.0.2.1", "host2": "2001:db8::2"}
    new = {"stdout_lines": ["maps 65530"]}
    common = {"elasticsearch_nodes": nodes, "__elasticsearch_found": new}
    first = templated("elasticsearch", "__elasticsearch_makes_cluster", **common)
    assert first is True
    settings = templated("elasticsearch", "__elasticsearch_settings", __elasticsearch_first=True, **common)
    assert settings["cluster.initial_master_nodes"] == ["host1"] and "discovery.type" not in settings
    assert settings["discovery.seed_hosts"] == ["192.0.2.1:9300", "[2001:db8::2]:9300"]
    later = templated("elasticsearch", "__elasticsearch_settings", **common)
    assert "cluster.initial_master_nodes" not in later
    # Not the second one, not one that has been in a cluster, and not where another one responds.
    assert not templated("elasticsearch", "__elasticsearch_makes_cluster", **{**common, "inventory_hostname": "host2"})
    for lines, makes in (
        (["is configured"], False),
        # A first start that did not come to its end: the package's file was restored, or the second set did not come.
        ([], True), (["is configured", "makes a cluster"], True),
    ):  # fmt: skip
        common["__elasticsearch_found"] = {"stdout_lines": ["has held data", *lines, "maps 65530"]}
        assert templated("elasticsearch", "__elasticsearch_makes_cluster", **common) is makes
    common["__elasticsearch_found"] = new
    for status in (200, 401, 503):
        others = {"results": [{"status": status}]}
        assert not templated("elasticsearch", "__elasticsearch_makes_cluster", **common, __elasticsearch_others=others)
    others = {"results": [{"status": -1}]}
    assert templated("elasticsearch", "__elasticsearch_makes_cluster", **common, __elasticsearch_others=others)


def test_all_nodes_are_waited_for_with_the_last_one():
    """One after the other: the first ones cannot wait for the later ones."""
    nodes = {"host1": "192.0.2.1", "host2": "192.0.2.2", "host3": "192.0.2.3"}
    for given, host, now, complete in (
        (nodes, "host1", 1, 3), (nodes, "host2", 1, 3), (nodes, "host3", 3, 3), ({}, "host1", 1, 1),
        ({"host1": "192.0.2.1"}, "host1", 1, 1),
    ):  # fmt: skip
        found = templated(
            "elasticsearch", "[__elasticsearch_nodes_by_now | int, __elasticsearch_nodes_in_all | int]",
            elasticsearch_nodes=given, inventory_hostname=host,
        )  # fmt: skip
        assert found == [now, complete]
    (kept,) = (task["elasticsearch_objects"] for task in tasks("elasticsearch", "run"))
    assert (kept["nodes"], kept["all_nodes"]) == (
        "{{ __elasticsearch_nodes_by_now }}", "{{ __elasticsearch_nodes_in_all }}",
    )  # fmt: skip


def test_the_cluster_is_queried_before_a_node_is_touched():
    order = [task["ansible.builtin.include_tasks"] for task in tasks("elasticsearch", "main")]
    assert order == ["preflight.yml", "wait.yml", "install.yml", "configure.yml", "run.yml"]
    querying = tasks("elasticsearch", "wait")[-1]["elasticsearch_objects"]
    assert querying["before_restart"] is True and "policies" not in querying


@pytest.mark.parametrize(("memory", "heap"), [(1024, 512), (8192, 4096), (131072, 31744)])
def test_the_heap_is_half_of_the_memory_and_31_gib_at_most(memory, heap):
    text = render("elasticsearch", "jvm.options.j2", ansible_facts={"memtotal_mb": memory})
    assert f"-Xms{heap}m" in text and f"-Xmx{heap}m" in text
    assert "-Xmx700m" in render("elasticsearch", "jvm.options.j2", elasticsearch_heap_mb=700)


def test_rights_are_the_least():
    roles = yaml.safe_load(render("elasticsearch", "roles.yml.j2", elasticsearch_environment="demo"))
    writer = roles["shiftmaster_writer"]
    assert writer == {
        "cluster": ["monitor"],
        "indices": [{"names": ["logs-shiftmaster.*-demo"], "privileges": ["create_doc"]}],
    }
    readers = [roles[name]["indices"][0] for name in ("shiftmaster_reader", "shiftmaster_auditor")]
    assert all(set(found["privileges"]) <= {"read", "view_index_metadata"} for found in readers)
    assert not [name for name in readers[0]["names"] if "audit" in name or "*" in name]
    assert roles["shiftmaster_canary"] == {
        "cluster": ["monitor", "read_ilm"],
        "indices": [
            {"names": ["logs-shiftmaster.*-demo"], "privileges": ["view_index_metadata"]},
            {"names": ["logs-shiftmaster.canary-demo", "shiftmaster-ignored"], "privileges": ["read"]},
        ],
    }
    # Features of a paid licence: with the free one, such a role has no effect.
    assert not [
        name for name, role in roles.items() if {"query", "field_security"} & set(re.findall(r"\w+", str(role)))
    ]
    assert not [name for name, role in roles.items() if "all" in json.dumps(role)]


def test_each_user_has_one_role_and_a_password_of_its_own():
    users = templated("elasticsearch", "__elasticsearch_users", **PASSWORDS)
    assert {user["name"]: user["roles"] for user in users} == {
        "shiftmaster_admin": ["superuser"],
        "shiftmaster_writer": ["shiftmaster_writer"],
        "shiftmaster_kibana": ["kibana_system"],
        "shiftmaster_canary": ["shiftmaster_canary"],
    }
    assert len({user["password"] for user in users}) == 4


def test_verified_rights_of_the_writer():
    verified = templated("elasticsearch", "__elasticsearch_verified", elasticsearch_environment="demo", **PASSWORDS)
    writer = verified[0]
    assert writer["name"] == "shiftmaster_writer"
    streams = set(writer["has"])
    assert "logs-shiftmaster.audit-demo" in streams and len(streams) == 8
    assert all(found == ["create_doc"] for found in writer["has"].values())
    assert "create_doc" in writer["has_not"]["logs-other.app-demo"]
    assert {"read", "delete", "index"} <= set(writer["has_not"]["logs-shiftmaster.app-demo"])


def test_the_canary_reads_only_its_own_lines():
    verified = templated("elasticsearch", "__elasticsearch_verified", elasticsearch_environment="demo", **PASSWORDS)
    canary = verified[1]
    assert canary["name"] == "shiftmaster_canary" and set(canary["has"]) == {
        "logs-shiftmaster.canary-demo", "shiftmaster-ignored"
    }  # fmt: skip
    assert "read" in canary["has_not"]["logs-shiftmaster.app-demo"]
    assert "read" in canary["has_not"]["logs-shiftmaster.audit-demo"]
    # A search for logs does not return it.
    templates = templated("elasticsearch", "__elasticsearch_templates")
    named = {name for name, found in templates.items() if "logs-shiftmaster.canary-*" in found["index_patterns"]}
    assert named == {"shiftmaster-canary"} and "aliases" not in templates["shiftmaster-canary"]["template"]
    policies = templated("elasticsearch", "__elasticsearch_policies")
    assert policies[templates["shiftmaster-canary"]["template"]["settings"]["index.lifecycle.name"]]


def test_logs_are_deleted_and_audit_events_after_seven_years():
    policies = templated("elasticsearch", "__elasticsearch_policies")
    ages = {name: policy["policy"]["phases"]["delete"]["min_age"] for name, policy in policies.items()}
    assert ages == {"shiftmaster-logs": "90d", "shiftmaster-audit": "2557d", "shiftmaster-canary": "7d"}
    templates = templated("elasticsearch", "__elasticsearch_templates")
    assert templates["shiftmaster-logs"]["template"]["aliases"].keys() == {"shiftmaster-logs", "shiftmaster-ignored"}
    assert templates["shiftmaster-audit"]["template"]["aliases"].keys() == {"shiftmaster-ignored"}
    assert all(found["priority"] > 100 and found["data_stream"] == {} for found in templates.values())
    assert templates["shiftmaster-audit"]["index_patterns"] == ["logs-shiftmaster.audit-*"]
    patterns = templates["shiftmaster-logs"]["index_patterns"]
    assert "logs-shiftmaster.app-*" in patterns and "logs-shiftmaster.audit-*" not in patterns


def test_a_value_of_another_type_is_a_dead_letter_or_is_counted():
    """Version 9 takes logsdb for logs-*-*, which ignores such values, where a template names no mode."""
    templates = templated("elasticsearch", "__elasticsearch_templates")
    assert {found["template"]["settings"].get("index.mode") for found in templates.values()} == {"standard"}

    def lenient(properties, prefix=""):
        for name, body in properties.items():
            yield from lenient(body.get("properties", {}), f"{prefix}{name}.")
            if body.get("ignore_malformed"):
                yield prefix + name

    fields = templated("elasticsearch", "__elasticsearch_component_templates")["shiftmaster-fields"]["template"][
        "mappings"
    ]
    counted = templated("elasticsearch", "__elasticsearch_ignored")["shiftmaster-ignored"]["filter"]["terms"][
        "_ignored"
    ]
    assert set(counted) == set(lenient(fields["properties"]))


def test_a_small_site_has_few_shards():
    policies = templated("elasticsearch", "__elasticsearch_policies")
    streams = templated("elasticsearch", "elasticsearch_datasets")
    logs = policies["shiftmaster-logs"]["policy"]["phases"]
    assert logs["hot"]["actions"]["rollover"] == {"max_age": "7d", "max_primary_shard_size": "25gb"}
    assert len(streams) * (90 // 7 + 2) < 100


def test_every_field_that_logstash_makes_has_a_type():
    """A field without one is kept, but not to be searched: what is left out here is left out on purpose."""
    mapped = set(types(templated("elasticsearch", "__elasticsearch_component_templates")))
    made = set()
    for path in (ROOT / "tests/logging/corpus").glob("*.yml"):
        for case in yaml.safe_load(path.read_text(encoding="utf-8")).get("cases", []):
            made |= {name for event in case["gives"] for name in event}
    untyped = {"shiftmaster.connection", "shiftmaster.role", "shiftmaster.behind"}
    assert made - mapped == untyped


def types(templates):
    def walk(properties, prefix=""):
        for name, body in properties.items():
            if "properties" in body:
                yield from walk(body["properties"], f"{prefix}{name}.")
            else:
                yield prefix + name

    return walk(templates["shiftmaster-fields"]["template"]["mappings"]["properties"])


# --- Logstash --------------------------------------------------------------------------------------------------------


def test_logstash_keeps_received_events():
    settings = yaml.safe_load(render("logstash", "logstash.yml.j2"))
    assert settings["queue.type"] == "persisted" and settings["dead_letter_queue.enable"] is True
    assert settings["dead_letter_queue.storage_policy"] == "drop_older"
    assert settings["config.support_escapes"] is False and settings["pipeline.ecs_compatibility"] == "v8"
    assert settings["api.http.host"] == "127.0.0.1" and settings["allow_superuser"] is False


def test_logstash_accepts_clients_with_a_certificate_and_contains_no_password():
    text = render("logstash", "pipeline.conf.j2", logstash_masks=masks(), logstash_elasticsearch_password=SECRET)
    sections = read(text)
    beats, elasticsearch = dict(sections["input"][0][1]), dict(sections["output"][0][1])
    assert beats["ssl_enabled"] is True and beats["ssl_client_authentication"] == "required"
    assert elasticsearch["ssl_enabled"] is True and elasticsearch["ssl_verification_mode"] == "full"
    assert elasticsearch["action"] == "create" and elasticsearch["manage_template"] is False
    assert elasticsearch["password"].startswith("${LOGSTASH_ELASTICSEARCH_PASSWORD") and SECRET not in text


# --- Kibana ----------------------------------------------------------------------------------------------------------


def test_kibana_has_tls_and_fixed_keys():
    keys = {f"kibana_{name}_key": name * 8 for name in ("saved_objects", "session", "reporting")}
    settings = yaml.safe_load(render("kibana", "kibana.yml.j2", **keys))
    assert settings["server.ssl.enabled"] is True and settings["elasticsearch.ssl.verificationMode"] == "full"
    assert settings["xpack.encryptedSavedObjects.encryptionKey"] == "saved_objects" * 8
    assert settings["telemetry.optIn"] is False and settings["server.host"] == "127.0.0.1"


def test_kibanas_objects_fit_together():
    objects = [json.loads(line) for line in (ROOT / "roles/kibana/files/objects.ndjson").open(encoding="utf-8")]
    there = {(item["type"], item["id"]) for item in objects}
    assert len(there) == len(objects)
    for item in objects:
        assert {(found["type"], found["id"]) for found in item["references"]} <= there
    # Without versions of the form Kibana takes them for the oldest, and changes what is not there.
    assert {item["coreMigrationVersion"] for item in objects} == {"8.8.0"}
    assert {(item["type"], item["typeMigrationVersion"]) for item in objects} == {
        ("index-pattern", "7.11.0"), ("search", "7.9.3"), ("lens", "8.9.0"), ("dashboard", "8.9.0"),
    }  # fmt: skip
    (dashboard,) = (item for item in objects if item["type"] == "dashboard")
    assert dashboard["attributes"]["title"] == "ShiftMaster ログ"
    panels = json.loads(dashboard["attributes"]["panelsJSON"])
    names_of = {found["name"] for found in dashboard["references"]}
    assert {f"{panel['panelIndex']}:{panel['panelRefName']}" for panel in panels} == names_of and len(panels) == 6
    # Their fields exist in Elasticsearch.
    mapped = set(types(templated("elasticsearch", "__elasticsearch_component_templates")))
    for item in objects:
        assert set(item["attributes"].get("columns", [])) <= mapped, item["id"]


# --- Filebeat --------------------------------------------------------------------------------------------------------


def test_filebeats_inputs():
    settings = yaml.safe_load(
        render("filebeat", "filebeat.yml.j2", filebeat_files=FILES, filebeat_journal_units=["a.service"])
    )
    app, redis, journal = settings["filebeat.inputs"]
    assert app["type"] == "filestream" and app["id"] == "a" and app["fields"] == {"event.dataset": "shiftmaster.app"}
    assert app["include_file_fingerprint"] is True
    assert app["prospector.scanner.fingerprint"] == {"enabled": True, "offset": 0, "length": 256}
    assert app["parsers"][0]["multiline"]["pattern"] == "^x" and "parsers" not in redis
    assert app["prospector.scanner.exclude_files"] == ["[.]gz$", "b"]
    assert journal["type"] == "journald" and journal["units"] == ["a.service"]
    output = settings["output.logstash"]
    assert output["ssl.enabled"] is True and output["ssl.verification_mode"] == "full"
    assert output["ssl.certificate"] and output["ssl.key"] and settings["fields"]["service.name"] == "shiftmaster"


def test_no_two_inputs_of_a_host_read_the_same_file():
    import fnmatch

    group_variables = yaml.safe_load((ROOT / "group_vars/all/logging.yml").read_text(encoding="utf-8"))["logging_files"]
    files = [file for kind in group_variables.values() for file in kind]
    assert len({file["id"] for file in files}) == len(files)
    import re

    for path in (
        "/var/log/shiftmaster/app.log", "/var/log/shiftmaster/audit.log", "/var/log/shiftmaster/celery.log",
        "/var/log/shiftmaster/audit.log-20260101-1", "/var/log/nginx/error.log", "/var/log/postgresql/a.log",
        "/var/log/nginx/shiftmaster_access.log", "/var/log/redis/redis-server.log", "/var/log/shiftmaster/canary.log",
    ):  # fmt: skip
        readers = [
            file["id"]
            for file in files
            if any(fnmatch.fnmatch(path, pattern) for pattern in file["paths"])
            and not any(re.search(pattern, path) for pattern in file.get("exclude", []))
        ]
        assert len(readers) == 1, (path, readers)
    assert Path(ROOT / "roles/base/defaults/main.yml").read_text(encoding="utf-8").count("copytruncate") == 0


@pytest.mark.parametrize(("memory", "size"), [(256, 1048576), (512, 1048576), (256, 131072)])
def test_events_that_wait_for_a_blocked_output_fit_into_filebeats_memory(memory, size):
    given = {"filebeat_memory_max_mb": memory, "filebeat_max_bytes": size}
    settings = yaml.safe_load(render("filebeat", "filebeat.yml.j2", **given))
    events, batch = settings["queue.mem"]["events"], settings["output.logstash"]["bulk_max_size"]
    assert 64 <= events and (events + 2 * batch) * size <= (memory - 128) * 1048576
    # A batch that the queue cannot fill would wait for the time.
    assert batch <= events
    (limit,) = re.findall(r"(?m)^Environment=GOMEMLIMIT=(\d+)MiB$", render("filebeat", "drop-in.conf.j2", **given))
    assert int(limit) < memory


def test_too_little_memory_for_filebeat_or_kibana_is_refused():
    for role, given in (
        ("filebeat", {"filebeat_max_bytes": 4194304}), ("filebeat", {"filebeat_memory_max_mb": 128}),
        ("kibana", {"kibana_memory_max_mb": 1024}),
    ):  # fmt: skip
        assert len(problems(role, templar(role, **given))) == len(problems(role, templar(role))) + 1
    (heap,) = re.findall(r"--max-old-space-size=(\d+)", render("kibana", "drop-in.conf.j2"))
    assert int(heap) == 1024


@pytest.mark.parametrize("role", SETTINGS)
def test_units_are_hardened_and_may_write_where_they_have_to(role):
    text = render(role, "drop-in.conf.j2")
    assert "NoNewPrivileges=true" in text and "ProtectHome=true" in text and "OOMScoreAdjust=" in text
    if role != "elasticsearch":
        assert "ProtectSystem=strict" in text and "MemoryMax=" in text
    if role in ("logstash", "kibana"):
        assert f"ReadWritePaths=/var/lib/{role}" in text


def test_filebeats_directories_are_made_by_its_unit():
    """Its package has none, and a path that is to be written and is not there ends the unit before it begins."""
    text = render("filebeat", "drop-in.conf.j2")
    assert "StateDirectory=filebeat\n" in text and "LogsDirectory=filebeat\n" in text
    assert "ReadWritePaths" not in text


# --- tasks -----------------------------------------------------------------------------------------------------------


def tasks(role, file):
    return yaml.safe_load((ROOT / f"roles/{role}/tasks/{file}.yml").read_text(encoding="utf-8"))


def swapped(role):
    """The role's options of service_config."""
    for task in tasks(role, "configure"):
        found = task.get("service_config")
        if isinstance(found, str):
            return variables_of(role)["__elasticsearch_config"]
        if found:
            return found
    raise AssertionError(role)


@pytest.mark.parametrize("role", SETTINGS)
def test_another_version_restarts_the_service(role):
    assert f"/var/lib/dpkg/info/{role}.md5sums" in swapped(role)["watch"]
    assert swapped(role)["apply"] == "restart"


@pytest.mark.parametrize("role", SETTINGS)
def test_requirements_of_a_part_are_checked(role):
    """A package without a check would be missing, and installed, in every run."""
    package = variables_of(role)[f"__{role}_package"]
    searched = variables_of("elastic_repository")["__elastic_repository_names"]
    assert {package["name"], *package.get("with", [])} <= set(searched)


def test_only_installed_packages_can_be_held_in_check_mode():
    (hold,) = (task for task in tasks("elastic_repository", "package") if "ansible.builtin.dpkg_selections" in task)
    assert "not ansible_check_mode or elastic_repository_part.installed | length > 0" in hold["when"]


def test_logstashs_own_check_is_run_as_the_service_and_writes_nowhere_else():
    """Logstash 9 refuses root; and what root wrote first the service could not write."""
    found = swapped("logstash")
    assert found["check_as"] == {"user": "logstash", "extra_groups": ["ssl-cert"]}
    (command,) = found["checks"]
    for option in ("--path.data", "--path.logs"):
        assert command[command.index(option) + 1].startswith("{work}/")


def test_logstash_runs_the_pipeline_with_its_workers_or_is_not_verified():
    (response,) = swapped("logstash")["verify"]["responses"]
    assert response["path"] == ["pipelines", "shiftmaster", "workers"] and response["url"].endswith("/_node/pipelines")
    assert templated("logstash", response["value"].strip("{} "), logstash_workers=3) == "3"


def test_logstashs_heap_is_set_by_its_environment():
    """It reads no jvm.options.d; Elasticsearch does."""
    text = render("logstash", "drop-in.conf.j2", logstash_heap_mb=600)
    assert 'Environment="LS_JAVA_OPTS=-Xms600m -Xmx600m"\n' in text
    assert not [file for file in variables_of("logstash")["__logstash_files"] if "jvm" in file["path"]]


def test_output_of_elasticsearchs_package_is_not_shown():
    """Its installation prints the password of a superuser that it has made; and no one may log in with it."""
    (install,) = (task for task in tasks("elastic_repository", "package") if "ansible.builtin.apt" in task)
    assert install["no_log"] is True
    settings = yaml.safe_load(render("elasticsearch", "elasticsearch.yml.j2"))
    assert settings["xpack.security.authc.reserved_realm.enabled"] is False


def test_the_second_set_of_a_first_node_is_the_one_of_every_later_run():
    """The needs of a file are part of the module's record: a change of them would restart the node in the next run."""
    sets = [task["service_config"] for task in tasks("elasticsearch", "configure") if "service_config" in task]
    assert sets == ["{{ __elasticsearch_config }}"] * 2


def test_maps_of_memory_are_never_set_down():
    assert "vm.max_map_count = 1048576\n" in render("elasticsearch", "sysctl.conf.j2") + "\n"
    found = {task["name"]: task for task in tasks("elasticsearch", "install")}
    when = found["install | Allow more memory maps"]["when"]
    for there, kept, written in (
        (65530, False, True),
        (65530, True, False),
        (1048576, False, True),
        (2000000, False, False),
    ):
        lines = [f"maps {there}"] + ["maps are kept"] * kept
        message = [templated("elasticsearch", one, __elasticsearch_found={"stdout_lines": lines}) for one in when]
        assert all(message) is written, (there, kept)


def refusal(role, installed, version, allow):
    """Return the sentence by which the role refuses the version, or none."""
    variables = {
        f"{role}_version": version, f"{role}_allow_major_update": allow,
        "elastic_repository_found": {"stdout_lines": [f"{role} hold installed {installed}"] if installed else []},
    }  # fmt: skip
    found = [one for one in problems(role, templar(role, **variables)) if one.startswith("version ")]
    return found[0] if found else ""


@pytest.mark.parametrize("role", SETTINGS)
@pytest.mark.parametrize(
    ("installed", "version", "allow", "refused"),
    [
        ("", "", False, False), ("", "9.2.1", False, False), ("", "8.19.2", False, True), ("", "10.0.0", True, True),
        ("9.2.1", "", False, False), ("9.2.1", "9.3.0", False, False), ("9.2.1", "10.0.0", False, True),
        ("9.2.1", "10.0.0", True, True), ("8.19.2", "9.2.1", False, True), ("8.19.2", "9.2.1", True, False),
        ("8.19.2", "", False, True), ("8.19.2", "8.19.3", True, True), ("8.19.2", "8.19.3", False, True),
        ("10.0.0", "", False, True), ("10.0.0", "9.2.1", False, True), ("10.0.0", "9.2.1", True, True),
        ("10.0.0", "", True, True), ("9.10.1", "9.2.3", False, True), ("9.10.1", "9.2.3", True, True),
        ("9.2.3", "9.10.1", False, False), ("9.2.3", "9.2.3", False, False), ("9.2.3", "9.2.*", False, False),
        ("9.2.3", "9.1.*", False, True),
    ],
)  # fmt: skip
def test_another_major_version_and_an_older_one_are_refused(role, installed, version, allow, refused):
    form = "1:%s-1" if role == "logstash" else "%s"
    message = refusal(role, form % installed if installed else "", form % version if version else "", allow)
    assert bool(re.match(r"version \S+ is (requested|installed)", message)) is refused, message
    # The advice for another major version does not suit an older one.
    assert (" Another major version: " in message) is (refused and "nothing goes back" not in message)


def test_elasticsearch_is_updated_from_the_major_version_before_alone():
    assert refusal("elasticsearch", "7.17.0", "9.2.1", True)


@pytest.mark.parametrize("role", SETTINGS)
def test_the_newest_one_is_of_the_major_version_of_the_configuration(role):
    """Other packages of a repository, e.g. the next major version, are not installed."""
    pattern = "1:9.*" if role == "logstash" else "9.*"
    for version, wanted in (("", pattern), ("9.2.1", "9.2.1")):
        assert templated(role, f"__{role}_package.version", **{f"{role}_version": version}) == wanted


PASSWORDS = {
    f"{part}_password": f"{part}-123456"
    for part in [f"elasticsearch_{user}" for user in ("admin", "writer", "kibana", "canary")]
}
KIBANA = {
    "kibana_elasticsearch_password": "kibana-123456",
    "kibana_admin_password": "admin-123456",
    **{f"kibana_{key}_key": key * 5 for key in ("saved_objects", "session", "reporting")},
}


def variables_hold(role, **variables):
    """Return whether the role takes these variables."""
    return problems(role, templar(role, **variables)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"elasticsearch_keep_days": 0},
        {"elasticsearch_keep_audit_days": -5},
        {"elasticsearch_rollover_days": 0},
        {"elasticsearch_watermark_flood_percent": 101},
        {"elasticsearch_datasets": ["Shift Master.App"]},
        {"elasticsearch_environment": "Env 1"},
    ],
)
def test_a_retention_that_deletes_logs_at_once_and_an_invalid_name_are_rejected(wrong):
    assert variables_hold("elasticsearch", **PASSWORDS)
    assert not variables_hold("elasticsearch", **PASSWORDS, **wrong)


@pytest.mark.parametrize("name", ["kibana_elasticsearch_password", "kibana_session_key"])
def test_values_that_kibana_would_expand_are_rejected(name):
    assert variables_hold("kibana", **{**KIBANA, name: "$a{b}" + "c" * 32})
    assert not variables_hold("kibana", **{**KIBANA, name: "a${HOME}" + "c" * 32})


@pytest.mark.parametrize(
    ("nodes", "replicas", "expected"), [(0, 1, 1), (1, 1, 1), (1, 0, 0), (1, -1, 0), (2, 1, 0), (2, 2, 1)]
)
def test_more_copies_than_other_nodes_are_rejected(nodes, replicas, expected):
    """The cluster would stay yellow, and each run would wait for it."""
    (rule,) = [one for one in rendered.action("shiftmaster_variables").rules_of("elasticsearch")
               if "elasticsearch_replicas" in one["msg"]]  # fmt: skip
    known = rendered.templar(
        "elasticsearch", elasticsearch_nodes={f"log{number}": {} for number in range(nodes)},
        elasticsearch_replicas=replicas,
    )  # fmt: skip
    assert len(rendered.problems("elasticsearch", known, [rule])) == expected
