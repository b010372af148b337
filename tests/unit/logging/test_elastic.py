"""The requests of roles elasticsearch and kibana, on a small server with the documented responses."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import elasticsearch_objects
import elasticsearch_users
import kibana_objects
import logging_canary
import logging_verify
import pytest
from ansible.module_utils.shiftmaster.host import json_api, webconfig
from ansible.module_utils.shiftmaster.logging import canary, elastic
from rendered import ROOT
from verify_report import verify_report

# --- pure functions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "present", "where"),
    [
        ({"a": 1}, {"a": "1", "b": 2}, []),
        ({"a": True}, {"a": "true"}, []),
        ({"index.codec": "x"}, {"index": {"codec": "x", "uuid": "y"}}, []),
        ({"index.lifecycle.name": "x", "index.codec": "y"}, {"index": {"codec": "y"}}, ["index.lifecycle"]),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a.b"]),
        ({"a": {"b": 1}}, {"a": 3}, ["a"]),
        ({"a": {"b": 1}}, {}, ["a"]),
        ({"a": ["x", "y"]}, {"a": ["x", "z"]}, ["a[1]"]),
        ({"a": ["x"]}, {"a": ["x", "y"]}, ["a"]),
        ({"a": {}}, {"a": {"hidden": False}}, []),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 2}]}, []),
        ({"a": False}, {"a": True}, ["a"]),
    ],
)
def test_existing_objects_are_compared_with_the_wanted_ones(wanted, present, where):
    assert elastic.lacks(wanted, present) == where


def test_an_error_message_is_one_line():
    assert json_api.message_of({"error": {"reason": "no\nsuch  index"}, "status": 404}) == "no such index"
    assert json_api.message_of({"message": "x"}) == "x" and json_api.message_of("a\nb") == "a b"
    assert len(json_api.message_of({"error": "x" * 1000})) == 300


def test_rights_are_evaluated_in_both_directions():
    has, has_not = {"a-*": ["create_doc"]}, {"a-*": ["read"], "b": ["create_doc"]}
    assert elasticsearch_objects.merged(has, has_not) == {"a-*": ["create_doc", "read"], "b": ["create_doc"]}
    right = {"index": {"a-*": {"create_doc": True, "read": False}, "b": {"create_doc": False}}}
    assert elasticsearch_objects.evaluated(right, has, has_not) == []
    wrong = {"index": {"a-*": {"create_doc": False, "read": True}, "b": {"create_doc": False}}}
    assert elasticsearch_objects.evaluated(wrong, has, has_not) == ["may not create_doc in a-*", "may read in a-*"]
    # A check without a response is not verified.
    assert len(elasticsearch_objects.evaluated({"index": {}}, has, has_not)) == 3


# --- users that are files --------------------------------------------------------------------------------------------

USERS = [
    {"name": "one", "password": "password one", "roles": ["superuser"]},
    {"name": "two", "password": "パスワード 2", "roles": ["writer", "reader"]},
]


def test_hashes_are_kept_while_they_match():
    first = elasticsearch_users.users_text(USERS, "", 5)
    assert re.fullmatch(r"(one|two):\$2a\$05\$[./A-Za-z0-9]{53}\n" * 2, first)
    assert elasticsearch_users.users_text(USERS, first, 5) == first
    found = elasticsearch_users.hashes_of(first)
    assert webconfig.matches("password one", found["one"]) and not webconfig.matches("other", found["one"])
    changed = [dict(USERS[0], password="another one"), USERS[1]]
    second = elasticsearch_users.users_text(changed, first, 5)
    assert second.splitlines()[1] == first.splitlines()[1] and second.splitlines()[0] != first.splitlines()[0]
    assert elasticsearch_users.users_text(USERS, first, 6) != first  # Another cost.
    assert elasticsearch_users.users_text(USERS, "one:nonsense\n", 5).startswith("one:$2a$")


def test_roles_name_their_users():
    assert elasticsearch_users.roles_text(USERS) == "reader:two\nsuperuser:one\nwriter:two\n"


def test_the_files_are_written_once(tmp_path, run_module):
    import grp

    given = {"directory": str(tmp_path), "group": grp.getgrgid(os.getgid()).gr_name, "users": USERS, "cost": 5}
    if os.getuid() != 0:
        pytest.skip("only root may give files to root")
    first = run_module(elasticsearch_users, check_mode=True, **given)
    assert first["changed"] and not (tmp_path / "users").exists()
    first = run_module(elasticsearch_users, **given)
    assert first["changed"] and "password" not in json.dumps(first).replace("password one", "LEAK")
    assert "LEAK" not in json.dumps(first)
    assert oct((tmp_path / "users").stat().st_mode & 0o777) == "0o640"
    assert not run_module(elasticsearch_users, **given)["changed"]
    (tmp_path / "users").chmod(0o644)
    assert run_module(elasticsearch_users, **given)["files"] == [str(tmp_path / "users")]
    refused = run_module(elasticsearch_users, **{**given, "users": [dict(USERS[0], name="a:b")]})
    assert refused["failed"] and "a:b" in refused["msg"]


# --- the APIs --------------------------------------------------------------------------------------------------------


class Server:
    """Responses of Elasticsearch and Kibana, as far as the modules query them; the requests are kept."""

    def __init__(self):
        self.held, self.streams, self.objects, self.requested, self.lines = {}, set(), {}, [], []
        self.health, self.nodes, self.settings = "green", 1, {}
        self.indices, self.disk = {".ds-logs-shiftmaster.app-demo-2026.11.29-000001": "yellow"}, "green"
        self.passwords = {"admin": "admin-password", "writer": "writer-password"}
        self.may = lambda user, pattern, privilege: (
            user == "admin" or (pattern.startswith("logs-shiftmaster.") and privilege == "create_doc")
        )
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_any(self):
                size = int(self.headers.get("Content-Length") or 0)
                data = self.rfile.read(size)
                status, response = outer.respond(self.command, self.path, data, self.headers)
                text = (response if isinstance(response, str) else json.dumps(response)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_PUT = do_POST = do_any

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def respond(self, method, path, data, headers):
        user, _, password = base64.b64decode(headers.get("Authorization", "")[6:]).decode().partition(":")
        if not user or self.passwords.get(user) != password:
            return 401, {"error": {"reason": "unable to authenticate user"}}
        self.requested.append((method, path))
        body = json.loads(data) if data.startswith(b"{") and b"\r\n" not in data else data
        if path == "/_cluster/health?level=indices":
            indices = {name: {"status": status} for name, status in self.indices.items()}
            return 200, {"status": self.health, "number_of_nodes": self.nodes, "indices": indices}
        if path == "/_health_report":
            indicators = {"shards_availability": {"status": self.health}, "disk": {"status": self.disk}}
            return 200, {"status": max(self.health, self.disk), "indicators": indicators}
        if path == "/_ilm/status":
            return 200, {"operation_mode": "RUNNING"}
        if path == "/":
            return 200, {"version": {"number": "9.2.1"}}
        if path == "/_cluster/settings":
            if method == "PUT":
                self.settings = body["persistent"]
            return 200, {"persistent": elastic.nested(self.settings)}
        if path == "/_security/user/_has_privileges":
            return 200, {
                "index": {
                    name: {privilege: self.may(user, name, privilege) for privilege in one["privileges"]}
                    for one in body["index"]
                    for name in one["names"]
                }
            }
        match = re.fullmatch(r"/_data_stream/(.*)", path)
        if match:
            if method == "PUT":
                self.streams.add(match[1])
            return (200, {}) if match[1] in self.streams else (404, {"error": "no such index"})
        match = re.fullmatch(r"/(_ilm/policy|_component_template|_index_template|_snapshot)/(.*)", path)
        if match:
            kind, name = match.groups()
            if method == "PUT":
                self.held[kind, name] = body
            if (kind, name) not in self.held:
                return 404, {"error": {"reason": "not found"}}
            held = self.held[kind, name]
            return 200, {
                "_component_template": {"component_templates": [{"name": name, "component_template": held}]},
                "_index_template": {"index_templates": [{"name": name, "index_template": held}]},
            }.get(kind, {name: held})
        if path.endswith("/_search"):
            number = body["query"]["term"]["http.request.id"]
            return 200, {"hits": {"total": {"value": sum(number in line for line in self.lines)}}}
        return self.kibana(path, data, headers)

    def kibana(self, path, data, headers):
        assert headers["kbn-xsrf"] or path == "/api/status"
        if path == "/api/status":
            return 200, {"status": {"overall": {"level": "available"}}, "version": {"number": "9.2.1"}}
        if path == "/api/saved_objects/_export":
            wanted = [(item["type"], item["id"]) for item in json.loads(data)["objects"]]
            if [key for key in wanted if key not in self.objects]:
                return 400, {"message": "Error fetching objects to export"}
            return 200, "\n".join(json.dumps(self.objects[key]) for key in wanted)
        if path == "/api/saved_objects/_import?overwrite=true":
            assert headers["Content-Type"].startswith("multipart/form-data; boundary=")
            for line in data.decode().splitlines():
                if line.startswith("{"):
                    item = json.loads(line)
                    if not item.get("coreMigrationVersion") or not item.get("typeMigrationVersion"):
                        return 500, {"message": "Migration function for version 7.7.0 threw an error"}
                    self.objects[item["type"], item["id"]] = item
            return 200, {"success": True}
        return 404, {"message": "Not Found"}


@pytest.fixture(autouse=True)
def soon(monkeypatch, short_pauses):
    """Nothing is read late here unless a test requires it."""
    short_pauses(elasticsearch_objects, json_api, canary)
    monkeypatch.setattr(json_api, "REREAD_SECONDS", 0)


@pytest.fixture
def server():
    found = Server()
    yield found
    found.server.shutdown()


OBJECTS = {
    "policies": {"p": {"policy": {"phases": {"delete": {"min_age": "90d", "actions": {"delete": {}}}}}}},
    "component_templates": {"c": {"template": {"mappings": {"dynamic": False}}}},
    "templates": {"t": {"index_patterns": ["logs-*"], "priority": 500, "data_stream": {}}},
    "repositories": {"r": {"type": "fs", "settings": {"location": "/mnt"}}},
    "settings": {"cluster.routing.allocation.disk.watermark.low": "80%"},
    "data_streams": ["logs-shiftmaster.app-demo"],
    "users": [
        {
            "name": "writer",
            "password": "writer-password",
            "has": {"logs-shiftmaster.app-demo": ["create_doc"]},
            "has_not": {"logs-shiftmaster.app-demo": ["read"], "logs-other-demo": ["create_doc"]},
        }
    ],
}


def given(server, **more):
    return {"url": server.url, "user": "admin", "password": "admin-password", "timeout_seconds": 1, **OBJECTS, **more}


def test_objects_are_written_once(server, run_module):
    check = run_module(elasticsearch_objects, check_mode=True, **given(server))
    assert check["changed"] and not server.held and not server.streams
    first = run_module(elasticsearch_objects, **given(server))
    assert first["changed"] and len(first["done"]) == 6 and first["version"] == "9.2.1", first
    before = list(server.requested)
    second = run_module(elasticsearch_objects, **given(server))
    assert not second["changed"] and second["done"] == []
    assert not [one for one in server.requested[len(before) :] if one[0] == "PUT"]
    # One was changed by hand.
    server.held["_ilm/policy", "p"]["policy"]["phases"]["delete"]["min_age"] = "1d"
    third = run_module(elasticsearch_objects, **given(server))
    assert third["done"] == ["lifecycle policy p: policy.phases.delete.min_age"]
    assert not run_module(elasticsearch_objects, **given(server))["changed"]


def test_a_user_with_more_rights_than_its_own_is_a_failure(server, run_module):
    for may in (lambda *_: True, lambda *_: False):
        server.may = may
        response = run_module(elasticsearch_objects, **given(server))
        assert response["failed"] and "the user writer may" in response["msg"]
    server.passwords["writer"] = "another"
    assert "the user writer cannot log in" in run_module(elasticsearch_objects, **given(server))["msg"]
    server.passwords["admin"] = "another"
    response = run_module(elasticsearch_objects, **given(server))
    assert "admin cannot log in" in response["msg"] and "admin-password" not in json.dumps(response)


def test_recent_writes_are_waited_for(server, run_module, monkeypatch):
    """Elasticsearch reads its files of users and roles every five seconds, and Kibana queries it."""
    monkeypatch.setattr(json_api, "REREAD_SECONDS", 20)
    server.passwords["admin"] = "the one before"
    threading.Timer(0.5, lambda: server.passwords.update(admin="admin-password")).start()
    assert not run_module(elasticsearch_objects, **given(server, timeout_seconds=20)).get("failed")
    server.passwords["writer"], right, server.may = "the one before", server.may, lambda *_: False
    threading.Timer(0.5, lambda: server.passwords.update(writer="writer-password")).start()
    threading.Timer(1.5, lambda: setattr(server, "may", right)).start()
    assert not run_module(elasticsearch_objects, **given(server)).get("failed")
    server.passwords["admin"] = "the one before"
    threading.Timer(0.5, lambda: server.passwords.update(admin="admin-password")).start()
    objects = [{"type": "a", "id": "b", "attributes": {}, "coreMigrationVersion": "8", "typeMigrationVersion": "8"}]
    common = {"url": server.url, "user": "admin", "password": "admin-password", "timeout_seconds": 20}
    assert not run_module(kibana_objects, objects=objects, **common).get("failed")


def test_an_unhealthy_cluster_is_waited_for(server, run_module):
    server.health = "red"
    response = run_module(elasticsearch_objects, **given(server))
    assert (
        response["failed"]
        and "the cluster is not healthy with 1 of 1 nodes (waited 1 s): it is red with 1" in response["msg"]
    )
    server.health, server.nodes = "green", 1
    assert run_module(elasticsearch_objects, **given(server, nodes=2, all_nodes=2))["failed"]
    threading.Timer(0.5, lambda: setattr(server, "nodes", 2)).start()
    late = given(server, nodes=2, all_nodes=2, timeout_seconds=20)
    assert not run_module(elasticsearch_objects, **late).get("failed")


@pytest.mark.parametrize(
    ("health", "there", "nodes", "all_nodes", "fine"),
    [
        # The first of three, and the second: copies have no place yet, or have one.
        ("yellow", 1, 1, 3, True), ("green", 2, 1, 3, True), ("yellow", 2, 1, 3, True), ("red", 1, 1, 3, False),
        # All are there, so that a copy that is not is one that was lost or is still to come.
        ("yellow", 3, 1, 3, False), ("yellow", 3, 3, 3, False), ("green", 3, 3, 3, True),
        # The last one has come, or has not joined.
        ("green", 2, 3, 3, False), ("yellow", 2, 3, 3, False), ("yellow", 1, 1, 1, False), ("green", 1, 1, 1, True),
    ],
)  # fmt: skip
def test_the_required_health_of_a_cluster_while_nodes_join(server, run_module, health, there, nodes, all_nodes, fine):
    server.health, server.nodes = health, there
    response = run_module(elasticsearch_objects, **given(server, nodes=nodes, all_nodes=all_nodes, timeout_seconds=0))
    assert response.get("failed", False) is not fine, response


def verify_parameters(server):
    return {
        "elasticsearch_url": server.url, "elasticsearch_user": "admin", "elasticsearch_password": "admin-password",
        "ca_file": None, "kibana_url": server.url, "logstash_api_url": "http://127.0.0.1:9", "timeout_seconds": 2,
    }  # fmt: skip


OWN, OTHER = ".ds-logs-shiftmaster.app-demo-2026.11.29-000001", ".kibana_streams_features"


@pytest.mark.parametrize(
    ("status", "nodes", "indices", "result"),
    [
        ("green", 1, {OWN: "green"}, "green"),
        ("yellow", 1, {OWN: "green", OTHER: "yellow"}, "green"),
        ("yellow", 1, {OWN: "yellow", OTHER: "yellow"}, "yellow"),
        ("yellow", 1, {"restored-" + OWN: "yellow"}, "yellow"),
        ("yellow", 2, {OWN: "green", OTHER: "yellow"}, "yellow"),
        ("red", 1, {OWN: "green", OTHER: "red"}, "red"),
        ("red", 1, {OWN: "red", OTHER: "yellow"}, "red"),
    ],
)
def test_on_one_node_a_replica_of_another_index_is_no_fault(server, status, nodes, indices, result):
    """Kibana 9.4 to 9.5.2 requests a replica that a single node never has."""
    server.health, server.nodes, server.indices = status, nodes, indices
    api = json_api.Api(server.url, login=("admin", "admin-password"))
    assert elastic.cluster_health(api)["status"] == result
    checks = dict(logging_verify.checks_of("elasticsearch", verify_parameters(server)))
    assert (checks["its cluster"]()[0] == "passed") is (result == "green")
    # The report repeats the state of the shards, which the check before has evaluated; everything else counts.
    assert checks["its report"]()[0] == "passed"
    server.disk = "yellow"
    assert checks["its report"]()[0] == "failed"


@pytest.mark.parametrize(
    ("health", "there", "fine"),
    [("green", 3, True), ("green", 2, True), ("yellow", 3, False), ("yellow", 2, False), ("yellow", 1, True),
     ("red", 1, False), ("green", 1, True)],
)  # fmt: skip
def test_a_node_is_restarted_where_the_cluster_can_do_without_it(server, run_module, health, there, fine):
    server.health, server.nodes = health, there
    response = run_module(elasticsearch_objects, **given(server, before_restart=True, timeout_seconds=0))
    assert response.get("failed", False) is not fine, response
    # Nothing is written.
    assert not server.held and not server.streams and not response.get("changed")


def test_a_node_that_does_not_run_is_not_waited_for(run_module):
    nobody = {"url": "http://127.0.0.1:9", "user": "a", "password": "b", "timeout_seconds": 60}
    began = time.monotonic()
    response = run_module(elasticsearch_objects, before_restart=True, **nobody)
    assert not response.get("failed") and not response["changed"] and time.monotonic() - began < 10


def test_a_part_that_does_not_run_yet_is_pending(run_module):
    nobody = {"url": "http://127.0.0.1:9", "user": "a", "password": "b", "timeout_seconds": 0}
    assert run_module(elasticsearch_objects, check_mode=True, **nobody)["changed"]
    assert run_module(elasticsearch_objects, **nobody)["failed"]
    # Nor is its authority's certificate there.
    empty = {**nobody, "url": "https://127.0.0.1:9", "ca_file": "/nowhere/ca.crt"}
    assert run_module(elasticsearch_objects, check_mode=True, **empty)["changed"]
    assert run_module(elasticsearch_objects, **empty)["failed"]
    assert run_module(kibana_objects, check_mode=True, objects=[{"type": "a", "id": "b", "attributes": {}}], **nobody)[
        "changed"
    ]


def test_kibanas_objects_are_imported_once(server, run_module):
    objects = [json.loads(line) for line in (ROOT / "roles/kibana/files/objects.ndjson").open(encoding="utf-8")]
    common = {
        "url": server.url,
        "user": "admin",
        "password": "admin-password",
        "objects": objects,
        "timeout_seconds": 1,
    }
    check = run_module(kibana_objects, check_mode=True, **common)
    assert check["changed"] and len(check["done"]) == len(objects) and not server.objects
    first = run_module(kibana_objects, **common)
    assert first["changed"] and len(server.objects) == len(objects), first
    assert not run_module(kibana_objects, **common)["changed"]
    # Kibana adds what it likes, and writes its JSON in another order.
    dashboard = server.objects["dashboard", "shiftmaster-logs"]["attributes"]
    dashboard["panelsJSON"] = json.dumps(json.loads(dashboard["panelsJSON"]), indent=1)
    dashboard["kibanaSavedObjectMeta"]["more"] = 1
    assert not run_module(kibana_objects, **common)["changed"]
    dashboard["title"] = "by hand"
    response = run_module(kibana_objects, **common)
    assert response["done"] == ["dashboard ShiftMaster ログ differs: title"]
    assert server.objects["dashboard", "shiftmaster-logs"]["attributes"]["title"] == "ShiftMaster ログ"


# --- verify and canary -----------------------------------------------------------------------------------------------


def test_a_missing_part_has_not_run(run_module):
    response = run_module(logging_verify, parts=["elasticsearch", "logstash", "kibana", "filebeat"])
    assert len(response["checks"]) == 9
    assert {check["result"] for check in response["checks"]} == {"not run"}
    assert {check["package"] for check in response["checks"]} == {"absent"}


def test_responses_of_the_parts_are_evaluated(server, tmp_path, monkeypatch):
    parameters = verify_parameters(server)
    program = tmp_path / "filebeat"
    program.write_text('#!/bin/sh\n[ "$2" = config ] || { echo "dial tcp: refused" >&2; exit 1; }\n')
    program.chmod(0o755)
    monkeypatch.setitem(
        logging_verify.COMMANDS,
        "filebeat",
        [(what, [str(program), *command[1:]]) for what, command in logging_verify.COMMANDS["filebeat"]],
    )

    monkeypatch.setattr(logging_verify, "SERVICE", ["/bin/sh", "-c", "echo inactive; exit 3"])

    def results(part):
        return {check: function() for check, function in logging_verify.checks_of(part, parameters)}

    assert results("elasticsearch") == {
        "its cluster": ("passed", "green"), "its report": ("passed", "green"), "lifecycle": ("passed", "RUNNING"),
    }  # fmt: skip
    server.health = "red"
    assert results("elasticsearch")["its cluster"] == ("failed", "red")
    assert results("kibana") == {"its status": ("passed", "available")}
    own = tmp_path / "logstash"
    own.write_text('#!/bin/sh\nfor word; do last=$word; done\nid -un >"$last"; cat "$last" >&2; exit 1\n')
    own.chmod(0o755)
    if os.getuid() == 0:
        # As the service's user, in a directory of its own, which goes.
        assert logging_verify.ran([str(own), "{work}/x"], 9, ("nobody", ())) in (
            ("failed", "nobody"), ("failed", "[Errno 13] Permission denied: '%s'" % own),
        )  # fmt: skip
        assert logging_verify.ran([str(own), "{work}/x"], 9, ("no-such-user", ()))[1] == "there is no user no-such-user"
    assert logging_verify.AS["logstash"][0] == "logstash"
    found = results("logstash")
    assert found["its report"][0] == "failed" and found["its configuration"][0] == "not run"
    assert results("filebeat") == {
        "its service": ("failed", "inactive"),
        "its configuration": ("passed", ""), "its way to Logstash": ("failed", "dial tcp: refused"),
    }  # fmt: skip


def test_the_report_names_what_has_not_run():
    hosts = {
        "log1": {
            "verify_parts": {
                "checks": [
                    {
                        "part": "kibana",
                        "check": "its status",
                        "result": "failed",
                        "detail": "red",
                        "package": "vendor's",
                    },
                    {"part": "kibana", "check": "other", "result": "passed", "detail": "", "package": "stub"},
                ]
            }
        },
        "app1": {
            "verify_line": {"checks": [{"part": "canary", "check": "a line", "result": "passed", "detail": "2 s"}]}
        },
        "app2": {},
    }
    lines = verify_report(hosts, {"kibana": ["log1"], "filebeat": ["app1", "app2"]})
    assert lines == [
        "elasticsearch: NOT RUN: no host has it",
        "logstash: NOT RUN: no host has it",
        "app1: filebeat: everything: NOT RUN: the host did not respond",
        "app1: canary: a line: PASSED: 2 s",
        "app2: filebeat: everything: NOT RUN: the host did not respond",
        "log1: kibana: its status: FAILED: red",
        "log1: kibana: other: PASSED (on a stub)",
    ]
    assert verify_report({}, {})[-1] == "canary: NOT RUN: no application host has Filebeat"


@contextlib.contextmanager
def shipping(server, path, times=1, delay=0.2):
    """Bring what is written to the file to the server after a while, as the pipeline does."""
    stop = threading.Event()

    def work():
        seen = 0
        while not stop.wait(delay):
            lines = path.read_text().splitlines() if path.exists() else []
            server.lines += lines[seen:] * times
            seen = len(lines)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


def test_a_canary_is_found_and_measured(server, tmp_path, run_module):
    path = tmp_path / "canary.log"
    common = {"file": str(path), "environment_name": "demo", "user": "admin", "password": "admin-password"}
    with shipping(server, path):
        (check,) = run_module(logging_canary, url=server.url, timeout_seconds=20, **common)["checks"]
    assert check["result"] == "passed" and check["detail"].startswith("after ")
    with shipping(server, path, times=2):
        (check,) = run_module(logging_canary, url=server.url, timeout_seconds=20, **common)["checks"]
    assert check["result"] == "failed" and check["detail"] == "it is there 2 times"
    (check,) = run_module(logging_canary, url=server.url, timeout_seconds=1, **common)["checks"]
    assert check["result"] == "failed" and check["detail"] == "not found in 1 s"
    (check,) = run_module(logging_canary, url="", **common)["checks"]
    assert check["result"] == "not run"
    event = json.loads(path.read_text().splitlines()[0])
    assert event["log"]["logger"] == "shiftmaster.canary" and len(path.read_text().splitlines()[0]) >= 256


def test_the_canarys_metrics_and_file(tmp_path):
    names = ("success", "timestamp_seconds", "seconds")
    for seconds, count, values in ((2.5, 1, [1, 1000, 2.5]), (None, 0, [0, 1000]), (1, 2, [0, 1000, 1])):
        found = canary.metrics({"seconds": seconds, "count": count}, 1000.4)
        assert found == {("shiftmaster_log_canary_" + name, ""): value for name, value in zip(names, values)}
    path = tmp_path / "c.log"
    path.write_text("x" * (canary.MAX_BYTES + 1))
    canary.write(str(path), "y\n")
    assert path.read_text() == "y\n" and (tmp_path / "c.log-0").exists()
