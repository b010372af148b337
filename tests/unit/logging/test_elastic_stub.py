"""The roles' own configuration of all four parts, on stubs, with TLS between them; no container, no systemd.

Executed on a stub (tests/elastic_stub/README.md): users, rights, certificates, calls and a line's way from the
file to the search are real; Elasticsearch, Logstash, Kibana and Filebeat are not.
"""

from __future__ import annotations

import contextlib
import grp
import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time

import elasticsearch_objects
import elasticsearch_users
import kibana_objects
import logging_canary
import logging_verify
import pytest
import yaml
from ansible.module_utils.shiftmaster.host import json_api
from ansible.module_utils.shiftmaster.host.json_api import Api
from ansible.module_utils.shiftmaster.logging import canary, log_watch
from ansible.template import trust_as_template
from rendered import ROOT, masks, render, templar

PROGRAM = ROOT / "tests" / "elastic_stub" / "stub"
PASSWORDS = {name: f"password-of-{name}-1" for name in ("admin", "writer", "kibana", "canary")}
VARIABLES = {f"elasticsearch_{name}_password": password for name, password in PASSWORDS.items()}
ENVIRONMENT = "demo"

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="only root may write Elasticsearch's users as the role does"),
    pytest.mark.skipif(not shutil.which("openssl"), reason="not run: there is no openssl"),
]


def free_port() -> int:
    """Return a port that no connection of another test gets while the part that listens there is stopped."""
    while True:
        port = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port


def authority(directory):
    """Make an authority and a certificate for localhost, and another authority with one."""
    for name in ("site", "other"):
        (directory / name).mkdir()
        files = {
            what: str(directory / name / what) for what in ("ca.key", "ca.crt", "host.key", "host.csr", "host.crt")
        }
        extensions = directory / "extensions"
        extensions.write_text(
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        )
        for command in (
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
             "-keyout", files["ca.key"], "-out", files["ca.crt"]],
            ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost",
             "-keyout", files["host.key"], "-out", files["host.csr"]],
            ["x509", "-req", "-in", files["host.csr"], "-CA", files["ca.crt"], "-CAkey", files["ca.key"], "-days", "2",
             "-extfile", str(extensions), "-out", files["host.crt"]],
        ):  # fmt: skip
            subprocess.run(["openssl", *command], check=True, capture_output=True)


class Parts:
    def __init__(self, directory):
        self.directory, self.running = directory, {}
        self.ports = {name: free_port() for name in ("elasticsearch", "logstash", "api", "kibana", "filebeat")}
        self.url = f"https://localhost:{self.ports['elasticsearch']}"
        self.log = directory / "logs" / "canary.log"
        self.ca = str(directory / "site/ca.crt")
        authority(directory)
        for name in (
            "elasticsearch/certs", "elasticsearch/data", "logstash/conf.d", "kibana/data", "filebeat/data", "logs",
        ):  # fmt: skip
            (directory / name).mkdir(parents=True)
        for name in ("ca.crt", "host.crt", "host.key"):
            shutil.copy(directory / f"site/{name}", directory / "elasticsearch/certs" / name)
        tls = {
            f"filebeat_tls_{what}_file": str(directory / f"site/host.{end}")
            for what, end in (("certificate", "crt"), ("key", "key"))
        }
        self.variables = {
            **VARIABLES, **tls, "elasticsearch_port": self.ports["elasticsearch"],
            "elasticsearch_data_dir": str(directory / "elasticsearch/data"), "elasticsearch_environment": ENVIRONMENT,
            "logstash_port": self.ports["logstash"], "logstash_listen_address": "127.0.0.1",
            "logstash_api_port": self.ports["api"], "logstash_elasticsearch_urls": [self.url],
            # As root, which Logstash refuses by the role's own settings: see the test below.
            "logstash_settings": {
                "allow_superuser": True, "path.data": str(directory / "logstash/data"),
                "path.logs": str(directory / "logstash/logs"),
            },
            "logstash_environment": ENVIRONMENT, "logstash_masks": masks(),
            "__logstash_key": str(directory / "site/host.key"),
            "kibana_port": self.ports["kibana"], "kibana_elasticsearch_urls": [self.url],
            "kibana_elasticsearch_password": PASSWORDS["kibana"],
            "kibana_settings": {"path.data": str(directory / "kibana/data")},
            "filebeat_logstash_hosts": [f"localhost:{self.ports['logstash']}"],
            "filebeat_api_port": self.ports["filebeat"],
            "filebeat_files": [{"id": "a", "dataset": "shiftmaster.canary", "paths": [str(directory / "logs/*.log")]}],
        }  # fmt: skip
        for role, template, path in (
            ("elasticsearch", "elasticsearch.yml.j2", "elasticsearch/elasticsearch.yml"),
            ("elasticsearch", "roles.yml.j2", "elasticsearch/roles.yml"),
            ("logstash", "logstash.yml.j2", "logstash/logstash.yml"),
            ("logstash", "pipeline.conf.j2", "logstash/conf.d/shiftmaster.conf"),
            ("kibana", "kibana.yml.j2", "kibana/kibana.yml"),
            ("filebeat", "filebeat.yml.j2", "filebeat/filebeat.yml"),
        ):
            text = render(role, template, **self.variables).replace("/etc/ssl/shiftmaster", str(directory / "site"))
            (directory / path).write_text(text, encoding="utf-8")

    def templated(self, role, expression):
        return templar(role, **self.variables).template(trust_as_template("{{ " + expression + " }}"))

    def command(self, name, *words):
        (self.directory / "bin").mkdir(exist_ok=True)
        link = self.directory / "bin" / name
        if not link.exists():
            link.symlink_to(PROGRAM)
        given = {
            "elasticsearch": ["--directory", self.directory / "elasticsearch"],
            "kibana": ["--directory", self.directory / "kibana"],
            "logstash": ["--path.settings", self.directory / "logstash"],
            "filebeat": ["--path.config", self.directory / "filebeat", "--path.data", self.directory / "filebeat/data"],
        }[name]
        return [sys.executable, str(link), *words, *map(str, given)]

    def start(self, name):
        port = self.ports["api" if name == "logstash" else name]
        output = open(self.directory / f"{name}.out", "a", encoding="utf-8")
        environment = {
            **os.environ,
            "STUB_REREAD_SECONDS": "0.2",
            "LOGSTASH_ELASTICSEARCH_PASSWORD": PASSWORDS["writer"],
        }
        child = subprocess.Popen(self.command(name), stdout=output, stderr=output, env=environment)
        output.close()
        self.running[name] = child
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert child.poll() is None, self.output(name)
            with socket.socket() as found:
                if found.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError(self.output(name))

    def stop(self, name):
        child = self.running.pop(name)
        child.kill()
        child.wait()

    def output(self, name):
        return (self.directory / f"{name}.out").read_text(encoding="utf-8")

    def search(self, number):
        api = Api(self.url, self.ca, ("shiftmaster_canary", PASSWORDS["canary"]))
        body = {"query": {"term": {"http.request.id": number}}}
        return api.call(f"/logs-shiftmaster.canary-{ENVIRONMENT}/_search", "POST", body)["hits"]["total"]["value"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    found = Parts(tmp_path_factory.mktemp("parts"))
    yield found
    for name in list(found.running):
        found.stop(name)


@pytest.fixture(autouse=True)
def soon(monkeypatch, short_pauses):
    """The stub reads its files of users and roles five times a second."""
    monkeypatch.setattr(json_api, "REREAD_SECONDS", 10)
    short_pauses(elasticsearch_objects, json_api, canary)


@pytest.fixture
def run(run_module):
    def run(module, **parameters):
        response = run_module(module, **parameters)
        assert not response.get("failed"), response
        return response

    return run


def elasticsearch_parameters(parts):
    return {
        "url": parts.url, "ca_file": parts.ca, "user": "shiftmaster_admin", "password": PASSWORDS["admin"],
        "settings": parts.templated("elasticsearch", "__elasticsearch_cluster_settings"),
        **{name: parts.templated("elasticsearch", "__elasticsearch_" + name)
           for name in ("policies", "component_templates", "templates")},
        "data_streams": parts.templated("elasticsearch", "__elasticsearch_streams"),
        "users": parts.templated("elasticsearch", "__elasticsearch_verified"), "timeout_seconds": 30,
    }  # fmt: skip


def test_elasticsearch_gets_its_users_and_objects_and_verifies_their_rights(parts, run):
    users = parts.templated("elasticsearch", "__elasticsearch_users")
    given = {
        "directory": str(parts.directory / "elasticsearch"),
        "group": grp.getgrgid(0).gr_name,
        "users": users,
        "cost": 5,
    }
    assert run(elasticsearch_users, **given)["changed"] and not run(elasticsearch_users, **given)["changed"]
    parts.start("elasticsearch")
    first = run(elasticsearch_objects, **elasticsearch_parameters(parts))
    assert len(first["done"]) == 1 + 3 + 1 + 3 + 8 and first["version"] == "9.99.0"
    assert not run(elasticsearch_objects, **elasticsearch_parameters(parts))["changed"]
    # After a restart it is all there.
    parts.stop("elasticsearch")
    parts.start("elasticsearch")
    assert not run(elasticsearch_objects, **elasticsearch_parameters(parts))["changed"]


def test_a_snapshot_repository_is_managed_where_the_site_requests_one(parts, run):
    wanted = {"logs": {"type": "fs", "settings": {"location": "/mnt/snapshots"}}}
    (kept,) = (
        task["elasticsearch_objects"]
        for task in yaml.safe_load((ROOT / "roles/elasticsearch/tasks/run.yml").read_text(encoding="utf-8"))
    )
    given = templar("elasticsearch", elasticsearch_snapshot_repositories=wanted)
    repositories = given.template(trust_as_template(kept["repositories"]))
    # Without a directory that it may write to, Elasticsearch itself refuses the repository.
    settings = render(
        "elasticsearch", "elasticsearch.yml.j2", **parts.variables,
        elasticsearch_settings={"path.repo": ["/mnt/snapshots"]},
    )  # fmt: skip
    assert yaml.safe_load(settings)["path.repo"] == ["/mnt/snapshots"]
    first = run(elasticsearch_objects, **elasticsearch_parameters(parts), repositories=repositories)
    assert first["done"] == ["snapshot repository logs: all of it"]
    assert not run(elasticsearch_objects, **elasticsearch_parameters(parts), repositories=repositories)["changed"]
    wanted["logs"]["settings"]["location"] = "/mnt/others"
    moved = run(elasticsearch_objects, **elasticsearch_parameters(parts), repositories=wanted)
    assert moved["done"] == ["snapshot repository logs: settings.location"]
    assert given.template(trust_as_template("{{ elasticsearch_snapshot_repositories }}")) and not templar(
        "elasticsearch"
    ).template(trust_as_template(kept["repositories"]))


@pytest.fixture
def with_role(parts, run_module, monkeypatch):
    """A function that runs elasticsearch_objects once Elasticsearch has read another role, and returns its result."""

    def with_role(role, change):
        path = parts.directory / "elasticsearch/roles.yml"
        before = path.read_text(encoding="utf-8")
        roles = yaml.safe_load(before)
        change(roles[role]["indices"][-1])
        path.write_text(yaml.safe_dump(roles), encoding="utf-8")
        # With its next request the stub reads it.
        time.sleep(0.3)
        try:
            with monkeypatch.context() as context:
                context.setattr(json_api, "REREAD_SECONDS", 0)
                return run_module(elasticsearch_objects, **elasticsearch_parameters(parts))
        finally:
            path.write_text(before, encoding="utf-8")

    return with_role


@pytest.mark.parametrize(
    ("role", "change"),
    [("shiftmaster_writer", "read"), ("shiftmaster_writer", "manage"), ("shiftmaster_canary", "create_doc")],
)
def test_a_role_with_a_right_too_many_is_found(parts, with_role, role, change):
    response = with_role(role, lambda rights: rights["privileges"].append(change))
    assert response.get("failed") and f"the user {role} may {change} in logs-shiftmaster" in response["msg"]


def test_a_role_that_needs_a_paid_licence_counts_for_nothing(parts, run, with_role):
    query = '{"term": {"log.logger": "shiftmaster.canary"}}'
    response = with_role("shiftmaster_canary", lambda rights: rights.update(query=query))
    assert response.get("failed") and "the user shiftmaster_canary may not read in" in response["msg"]
    # A recent write is waited for.
    assert not run(elasticsearch_objects, **elasticsearch_parameters(parts))["changed"]


def test_a_changed_password_is_waited_for(parts, run):
    users = parts.templated("elasticsearch", "__elasticsearch_users")
    given = {"directory": str(parts.directory / "elasticsearch"), "group": grp.getgrgid(0).gr_name, "cost": 5}
    for password in ("another-password-1", PASSWORDS["admin"]):
        users[0]["password"] = password
        assert run(elasticsearch_users, **given, users=users)["changed"]
        assert not run(elasticsearch_objects, **{**elasticsearch_parameters(parts), "password": password})["changed"]


def test_logstash_refuses_root(parts, tmp_path):
    (tmp_path / "conf.d").mkdir()
    variables = {name: value for name, value in parts.variables.items() if name != "logstash_settings"}
    (tmp_path / "logstash.yml").write_text(render("logstash", "logstash.yml.j2", **variables), encoding="utf-8")
    command = [*parts.command("logstash")[:2], "--path.settings", str(tmp_path), "--config.test_and_exit"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "superuser" in done.stderr


def test_the_writer_adds_to_its_streams_and_does_nothing_else(parts):
    api = Api(parts.url, parts.ca, ("shiftmaster_writer", PASSWORDS["writer"]))
    stream = f"logs-shiftmaster.redis-{ENVIRONMENT}"
    event = {"message": "x"}
    assert api.send(f"/{stream}/_create/0a", "PUT", event)[0] == 201
    assert api.send(f"/{stream}/_create/0a", "PUT", event)[0] == 409
    for path, method in (
        (f"/{stream}/_search", "POST"), ("/logs-other-demo/_create/0b", "PUT"), ("/_cluster/settings", "GET"),
        ("/logs-shiftmaster.redis-elsewhere/_create/0b", "PUT"), (f"/_data_stream/{stream}", "GET"),
    ):  # fmt: skip
        assert api.send(path, method, {"query": {"term": {"http.request.id": "x"}}})[0] == 403, path
    assert Api(parts.url, parts.ca).send("/")[0] == 401
    assert Api(parts.url, parts.ca, ("shiftmaster_writer", "wrong")).send("/")[0] == 401


def test_a_value_of_another_type_is_rejected_or_counted(parts):
    """On the stub, which takes logsdb without a mode as Elasticsearch 9 does."""
    api = Api(parts.url, parts.ca, ("shiftmaster_writer", PASSWORDS["writer"]))
    path = f"/logs-shiftmaster.redis-{ENVIRONMENT}/_create/"
    watched = Api(parts.url, parts.ca, ("shiftmaster_canary", PASSWORDS["canary"]))
    before = log_watch.of_elasticsearch(watched)["shiftmaster_elasticsearch_ignored_events"]
    assert api.send(path + "0c", "PUT", {"process": {"pid": "no number"}})[0] == 400
    assert api.send(path + "0d", "PUT", {"http": {"response": {"status_code": "none"}}})[0] == 201
    assert log_watch.of_elasticsearch(watched)["shiftmaster_elasticsearch_ignored_events"] == before + 1


def test_a_line_goes_from_the_file_to_the_search_once(parts, run, run_module):
    check = subprocess.run(parts.command("logstash", "--config.test_and_exit"), capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
    parts.start("logstash")
    assert subprocess.run(parts.command("filebeat", "test", "config"), capture_output=True).returncode == 0
    assert subprocess.run(parts.command("filebeat", "test", "output"), capture_output=True).returncode == 0
    parts.start("filebeat")
    given = {
        "file": str(parts.log), "environment_name": ENVIRONMENT, "url": parts.url, "ca_file": parts.ca,
        "user": "shiftmaster_canary", "password": PASSWORDS["canary"], "timeout_seconds": 60,
    }  # fmt: skip
    (check,) = run(logging_canary, **given)["checks"]
    assert check["result"] == "passed", (check, parts.output("filebeat"), parts.output("logstash"))


def test_no_event_is_lost_while_a_part_is_down(parts, run_module):
    """Tests the stubs, not Elastic's queue: the roles' parts reconnect."""
    for away in ("elasticsearch", "logstash"):
        parts.stop(away)
        numbers = [f"{away}{number}" for number in range(5)]
        with open(parts.log, "a", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"message": number, "fill": "." * 300}) + "\n" for number in numbers)
        time.sleep(1)
        parts.start(away)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not all(parts.search(number) for number in numbers):
            time.sleep(0.3)
        assert [parts.search(number) for number in numbers] == [1] * 5


def test_a_certificate_of_another_authority_sends_nothing(parts, tmp_path):
    unknown = tmp_path / "filebeat"
    unknown.mkdir()
    settings = yaml.safe_load((parts.directory / "filebeat/filebeat.yml").read_text(encoding="utf-8"))
    settings["output.logstash"]["ssl.certificate"] = str(parts.directory / "other/host.crt")
    settings["output.logstash"]["ssl.key"] = str(parts.directory / "other/host.key")
    settings["http.port"] = free_port()
    (unknown / "data").mkdir()
    (unknown / "filebeat.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    before = parts.output("logstash").count("input: ")
    command = parts.command("filebeat")
    command = [*command[:2], "--path.config", str(unknown), "--path.data", str(unknown / "data")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and parts.output("logstash").count("input: ") == before:
            time.sleep(0.2)
        message = parts.output("logstash").splitlines()
        assert any("input: " in line and "certificate" in line.lower() for line in message), message[-5:]
        assert not (unknown / "data/stub.json").exists() or not json.loads((unknown / "data/stub.json").read_text())
    finally:
        child.kill()
        child.wait()


def test_kibana_stores_its_objects_and_reports_a_failed_login(parts, run):
    parts.start("kibana")
    objects = [json.loads(line) for line in (ROOT / "roles/kibana/files/objects.ndjson").open(encoding="utf-8")]
    given = {
        "url": f"https://localhost:{parts.ports['kibana']}", "ca_file": parts.ca, "user": "shiftmaster_admin",
        "password": PASSWORDS["admin"], "objects": objects, "timeout_seconds": 30,
        "record": str(parts.directory / "kibana/record"),
    }  # fmt: skip
    assert len(run(kibana_objects, **given)["done"]) == len(objects)
    # The stub has written the dashboard in a form of its own, as newer versions of Kibana do.
    assert not run(kibana_objects, **given)["changed"]
    # A change of ours, and a foreign one, are both written.
    objects[-1]["attributes"]["title"] += "."
    assert run(kibana_objects, **given)["changed"] and not run(kibana_objects, **given)["changed"]
    parts.stop("kibana")
    state = parts.directory / "kibana/data/stub.json"
    state.write_text(state.read_text(encoding="utf-8").replace("gridData", "gridDate"), encoding="utf-8")
    parts.start("kibana")
    assert run(kibana_objects, **given)["changed"] and not run(kibana_objects, **given)["changed"]


def test_metrics_for_prometheus(parts):
    login = {"ca_file": parts.ca, "user": "shiftmaster_canary", "password": PASSWORDS["canary"]}
    metrics = {}
    for part, url, more in (
        ("elasticsearch", parts.url, login),
        ("logstash", f"http://127.0.0.1:{parts.ports['api']}", {}),
        ("filebeat", f"http://127.0.0.1:{parts.ports['filebeat']}", {}),
    ):
        who = (more["user"], more["password"]) if more else None
        metrics.update(log_watch.queried(part, Api(url, more.get("ca_file"), who)))
    assert metrics["shiftmaster_elasticsearch_up"] == metrics["shiftmaster_logstash_up"] == 1
    assert metrics["shiftmaster_filebeat_up"] == 1 and metrics["shiftmaster_filebeat_events_acknowledged_total"] >= 5
    assert metrics["shiftmaster_elasticsearch_status"] == 0
    assert metrics["shiftmaster_elasticsearch_disk_used_ratio"] == 0.4
    assert set(metrics) == set(log_watch.HELP)
    assert log_watch.queried("logstash", Api("http://127.0.0.1:9")) == {"shiftmaster_logstash_up": 0}


def test_the_program_of_the_timer_writes_what_node_exporter_reads(parts, tmp_path):
    """As on a host: its archive alone, without Ansible."""
    spec = importlib.util.spec_from_file_location("zipapp_lookup", ROOT / "plugins/lookup/zipapp.py")
    zipapp = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zipapp)
    with open(tmp_path / "program", "wb") as stream:
        zipapp.pack(ROOT / "roles/log_watch/files/shiftmaster-log-watch", stream)
    (tmp_path / "textfiles").mkdir()
    config = {
        "directory": str(tmp_path / "textfiles"),
        "parts": {"logstash": {"url": f"http://127.0.0.1:{parts.ports['api']}"}},
        "canary": {
            "url": parts.url, "ca_file": parts.ca, "user": "shiftmaster_canary", "password": PASSWORDS["canary"],
            "file": str(parts.log), "stream": f"logs-shiftmaster.canary-{ENVIRONMENT}", "timeout_seconds": 60,
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-S", "-E", str(tmp_path / "program"), str(tmp_path / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    reported = "".join(path.read_text() for path in (tmp_path / "textfiles").glob("*.prom"))
    assert "shiftmaster_logstash_up 1\n" in reported and "shiftmaster_log_canary_success 1\n" in reported
    assert not list((tmp_path / "textfiles").glob("*.new"))


def test_responses_of_the_parts_are_evaluated(parts):
    parameters = {
        "elasticsearch_url": parts.url, "elasticsearch_user": "shiftmaster_admin",
        "elasticsearch_password": PASSWORDS["admin"], "ca_file": parts.ca, "timeout_seconds": 20,
        "kibana_url": f"https://localhost:{parts.ports['kibana']}",
        "logstash_api_url": f"http://127.0.0.1:{parts.ports['api']}",
    }  # fmt: skip
    for part in ("elasticsearch", "kibana"):
        found = {check: function()[0] for check, function in logging_verify.checks_of(part, parameters)}
        assert set(found.values()) == {"passed"}, (part, found)
    parts.stop("elasticsearch")
    found = {check: function()[0] for check, function in logging_verify.checks_of("elasticsearch", parameters)}
    assert set(found.values()) == {"failed"}
