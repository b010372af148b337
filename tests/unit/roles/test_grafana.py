"""Role grafana: its templates, rendered by Ansible, and its module against a small server that plays Grafana's API."""

from __future__ import annotations

import configparser
import importlib.util
import json
import threading
from http.server import ThreadingHTTPServer
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
import rendered
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from rendered import trusted

# Lookups by their full names.
init_plugin_loader()

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "grafana"


def load(name, path):
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GIVEN = {
    "ansible_managed": "Ansible managed",
    "inventory_hostname": "mon1",
    "grafana_apt_url": "https://mirror.example.org/grafana",
    "grafana_apt_key": "key",
    "grafana_admin_password": "admin-password",
    "grafana_secret_key": "0123456789abcdef0123",
    "grafana_metrics_password": "metrics-password",
    "grafana_dashboards_dir": str(ROOT / "monitoring" / "dashboards"),
    "grafana_runbook_url_base": "https://docs.example.org/ops/",
}
SOURCE = {
    "name": "Prometheus",
    "uid": "prometheus",
    "url": "https://mon1:9090",
    "user": "admin",
    "password": "prom-password",
    "ca_file": "/etc/ssl/shiftmaster/ca.crt",
}


def templar(**variables):
    known = dict(GIVEN)
    for part in ("defaults", "vars"):
        known.update(yaml.safe_load((ROLE / part / "main.yml").read_text(encoding="utf-8")))
    known.update(variables)
    loader = DataLoader()
    loader.set_basedir(str(ROLE))
    return Templar(loader, variables=trusted(known))


def render(template, **variables):
    text = (ROLE / "templates" / template).read_text(encoding="utf-8")
    return templar(**variables).template(trust_as_template(text))


def problems(**variables):
    return rendered.problems("grafana", templar(**{**GIVEN, **variables}))


def test_valid_inputs_have_no_problem():
    assert problems(grafana_data_sources=[SOURCE], grafana_users=[{"login": "nurse", "password": "of-the-nurse"}]) == []


@pytest.mark.parametrize(
    ("variables", "output"),
    [
        ({"grafana_apt_key": ""}, "Grafana is not part of Debian"),
        ({"grafana_admin_password": "short"}, "(vault_grafana_admin_password)"),
        ({"grafana_secret_key": "0123456789abcdef012"}, "(vault_grafana_secret_key)"),
        ({"grafana_metrics_password": ""}, "grafana_metrics_password is empty"),
        ({"grafana_users": [{"login": "admin", "password": "long-enough"}]}, "there is more than one admin"),
        ({"grafana_users": [{"login": "nurse", "password": "seven77"}]}, "the password of nurse"),
        ({"grafana_data_sources": [SOURCE, SOURCE]}, "uid prometheus is there twice"),
        ({"grafana_data_sources": [{**SOURCE, "uid": "a b"}]}, "uid a b is there twice, or not of"),
        ({"grafana_dashboards_dir": "/nowhere"}, "/nowhere holds no dashboards"),
        ({"grafana_home_dashboard": "none"}, "no dashboard with the uid none"),
    ],
)
def test_each_problem_is_named_alone_without_a_secret(variables, output):
    found = problems(**variables)
    assert len(found) == 1 and output in found[0], found
    assert not any(secret in found[0] for secret in ("short", "0123456789", "long-enough", "seven77"))


def ini(**variables):
    # As Grafana reads it: of two sections or names the later wins.
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read_string(render("grafana.ini.j2", **variables))
    return parser


# --- templates ------------------------------------------------------------------------------------------------------


def test_access_is_closed_and_nothing_is_sent_out():
    found = ini()
    assert {
        (section, name): found[section][name]
        for section, name in (
            ("server", "protocol"), ("auth.anonymous", "enabled"), ("users", "allow_sign_up"),
            ("users", "allow_org_create"), ("snapshots", "enabled"), ("snapshots", "external_enabled"),
            ("public_dashboards", "enabled"), ("analytics", "reporting_enabled"), ("analytics", "check_for_updates"),
            ("analytics", "check_for_plugin_updates"), ("news", "news_feed_enabled"),
            ("plugins", "preinstall_disabled"), ("security", "disable_gravatar"), ("security", "cookie_secure"),
            ("unified_alerting", "enabled"), ("database", "type"),
        )
    } == {
        ("server", "protocol"): "https", ("auth.anonymous", "enabled"): "false", ("users", "allow_sign_up"): "false",
        ("users", "allow_org_create"): "false", ("snapshots", "enabled"): "false",
        ("snapshots", "external_enabled"): "false", ("public_dashboards", "enabled"): "false",
        ("analytics", "reporting_enabled"): "false", ("analytics", "check_for_updates"): "false",
        ("analytics", "check_for_plugin_updates"): "false", ("news", "news_feed_enabled"): "false",
        ("plugins", "preinstall_disabled"): "true", ("security", "disable_gravatar"): "true",
        ("security", "cookie_secure"): "true", ("unified_alerting", "enabled"): "false",
        ("database", "type"): "sqlite3",
    }  # fmt: skip


def test_secrets_are_named_by_their_files_alone():
    text = render("grafana.ini.j2") + render("datasources.yaml.j2", grafana_data_sources=[SOURCE])
    for secret in (*(GIVEN[name] for name in GIVEN if name.endswith(("password", "_key"))), SOURCE["password"]):
        assert secret == "key" or secret not in text
    assert ini()["security"]["admin_password"] == "$__file{/etc/grafana/secrets/admin_password}"
    assert ini()["metrics"]["basic_auth_password"] == "$__file{/etc/grafana/secrets/metrics_password}"
    files = templar(grafana_data_sources=[SOURCE]).template(trust_as_template("{{ __grafana_secret_files }}"))
    assert {item["path"].rsplit("/", 1)[1]: item["content"] for item in files} == {
        "admin_password": "admin-password",
        "secret_key": "0123456789abcdef0123",
        "metrics_password": "metrics-password",
        "data_source_prometheus": "prom-password",
    }


def test_settings_of_the_site_win():
    found = ini(grafana_settings={"log": {"level": "warn"}, "auth.ldap": {"enabled": True}})
    assert found["log"]["level"] == "warn" and found["auth.ldap"]["enabled"] == "true"
    assert found["log"]["mode"] == "console"


def test_the_address_is_that_of_the_link():
    found = ini(grafana_root_url="https://grafana.hospital.local/")
    assert found["server"]["domain"] == "grafana.hospital.local"
    assert ini()["server"]["root_url"] == "https://mon1:3000/"


def test_data_sources_verify_and_log_in():
    logs = {"name": "Logs: 記録", "uid": "logs", "type": "elasticsearch", "url": "http://127.0.0.1:9200"}
    found = yaml.safe_load(
        render("datasources.yaml.j2", grafana_data_sources=[{**SOURCE, "settings": {"timeInterval": "5s"}}, logs])
    )
    first, second = found["datasources"]
    assert found["prune"] is True and first["isDefault"] is True and second["isDefault"] is False
    assert first["editable"] is False and first["uid"] == "prometheus" and first["basicAuthUser"] == "admin"
    assert first["jsonData"]["tlsAuthWithCACert"] is True and first["jsonData"]["timeInterval"] == "5s"
    assert first["secureJsonData"] == {
        "basicAuthPassword": "$__file{/etc/grafana/secrets/data_source_prometheus}",
        "tlsCACert": "$__file{/etc/ssl/shiftmaster/ca.crt}",
    }
    assert second["name"] == "Logs: 記録" and second["jsonData"] == {} and "secureJsonData" not in second
    assert yaml.safe_load(render("datasources.yaml.j2"))["datasources"] == []


def test_dashboards_are_files_that_cannot_be_edited_in_the_browser():
    (provider,) = yaml.safe_load(render("dashboards.yaml.j2"))["providers"]
    assert provider["disableDeletion"] is False and provider["allowUiUpdates"] is False
    assert provider["folderUid"] == "shiftmaster"


@pytest.mark.parametrize(
    ("language", "title", "ending"),
    [("ja-JP", "ShiftMaster - システム概要", ".ja.md"), ("en-US", "ShiftMaster - Overview", ".md")],
)
def test_dashboards_are_in_the_language_next_to_those_of_the_site(tmp_path, language, title, ending):
    for name in ("ja", "en"):
        (tmp_path / name).symlink_to(ROOT / "monitoring" / "dashboards" / name)
    (tmp_path / "own.json").write_text('{"uid": "own", "title": "own"}')
    known = templar(grafana_language=language, grafana_dashboards_dir=str(tmp_path))
    titles = known.template(trust_as_template("{{ __grafana_dashboard_titles }}"))
    assert titles["shiftmaster-overview"] == title and titles["own"] == "own" and len(titles) == 12
    files = known.template(trust_as_template("{{ __grafana_dashboard_files }}"))
    assert len({item["path"] for item in files}) == 12
    (overview,) = (item["content"] for item in files if item["path"].endswith("/shiftmaster-overview.json"))
    assert f"/docs/runbooks/HighCPUUsage{ending}" in overview


def test_without_an_address_no_link_points_to_a_runbook():
    files = templar(grafana_runbook_url_base="").template(trust_as_template("{{ __grafana_dashboard_files }}"))
    assert len(files) == 11
    for item in files:
        model = json.loads(item["content"])
        assert "docs/runbooks" not in item["content"]
        assert [link["type"] for link in model["links"]] == ["dashboards"]
        # Everything else stays: links between dashboards, and what is Grafana's.
        (source,) = (ROOT / "monitoring/dashboards/ja").glob(item["path"].rsplit("/", 1)[1])
        for text in ("/d/shiftmaster-", "{{instance}}", '"expr"'):
            assert item["content"].count(text) == source.read_text(encoding="utf-8").count(text)


def test_dashboards_contain_the_address_of_the_runbooks():
    known = templar()
    titles = known.template(trust_as_template("{{ __grafana_dashboard_titles }}"))
    assert titles["shiftmaster-overview"] == "ShiftMaster - システム概要" and len(titles) == 11
    files = known.template(trust_as_template("{{ __grafana_dashboard_files }}"))
    for item in files:
        model = json.loads(item["content"])
        assert "@RUNBOOK" not in item["content"] and item["apply"] == "none"
        base = next(found for found in model["templating"]["list"] if found["name"] == "runbook_url_base")
        assert base["query"] == "https://docs.example.org/ops"
    # Fields of Grafana itself are unchanged.
    assert any("{{instance}}" in item["content"] for item in files)


# --- the module -----------------------------------------------------------------------------------------------------

MODULE = load("grafana_instance", ROOT / "library/service/grafana_instance.py")
STUB = load("grafana_stub", ROOT / "tests" / "grafana_stub" / "grafana")
USERS = [
    {"login": "hanako", "password": "hanako-password", "role": "Editor", "name": "山田花子", "email": "h@example.org"},
    {"login": "taro", "password": "taro \"'$%: 太郎"},
]


@pytest.fixture
def grafana(tmp_path, monkeypatch):
    """The stub, in this process and without TLS, with one dashboard."""
    boards, provisioning = tmp_path / "boards", tmp_path / "provisioning"
    for directory in (boards, provisioning / "dashboards", provisioning / "datasources"):
        directory.mkdir(parents=True)
    (boards / "one.json").write_text(json.dumps({"uid": "one", "title": "一"}), encoding="utf-8")
    provider = {"folderUid": "shiftmaster", "options": {"path": str(boards)}}
    (provisioning / "dashboards" / "a.yaml").write_text(json.dumps({"providers": [provider]}))
    (tmp_path / "grafana.ini").write_text(
        "[security]\nadmin_password = admin-password\n[metrics]\nbasic_auth_username = p\nbasic_auth_password = q\n"
    )
    monkeypatch.setattr(STUB, "DATABASE", str(tmp_path / "grafana.db"))
    monkeypatch.setattr(STUB, "PROVISIONING", str(provisioning))
    monkeypatch.setattr(STUB.Handler, "log_message", lambda *_: None)
    STUB.Handler.grafana = server = STUB.Grafana(str(tmp_path / "grafana.ini"))
    http = ThreadingHTTPServer(("127.0.0.1", 0), STUB.Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    server.url, server.boards = f"http://127.0.0.1:{http.server_port}", boards
    yield server
    http.shutdown()
    http.server_close()
    thread.join()
    server.database.close()


@pytest.fixture
def keep(grafana, run_module):
    def keep(check_mode=False, **more):
        parameters = {
            "url": grafana.url,
            "admin_password": "admin-password",
            "users": USERS,
            "dashboards": {"one": "一"},
            "folder_uid": "shiftmaster",
            "timeout_seconds": 0,
        }
        return run_module(MODULE, check_mode, **{**parameters, **more})

    return keep


def roles(grafana):
    return {row["login"]: row["role"] for row in grafana.rows("SELECT * FROM user")}


def can_log_in(grafana, login, password):
    return MODULE.Api(grafana.url).send("/api/user", login=(login, password))[0] == 200


def test_users_are_as_listed_and_a_second_run_changes_nothing(grafana, keep):
    result = keep()
    assert result["done"] == ["user hanako is created as Editor", "user taro is created as Viewer"]
    assert roles(grafana) == {"admin": "Admin", "hanako": "Editor", "taro": "Viewer"}
    assert all(can_log_in(grafana, user["login"], user["password"]) for user in USERS)
    assert keep() == {**keep(), "changed": False, "done": []}


def test_only_what_differs_is_changed(grafana, keep):
    keep()
    changed = [{**USERS[0], "role": "Viewer", "password": "another-password", "name": "花子"}]
    result = keep(users=changed)
    assert sorted(result["done"]) == [
        "user hanako: another password",
        "user hanako: name or address",
        "user hanako: role Editor -> Viewer",
        "user taro is removed",
    ]
    assert "another-password" not in json.dumps(result["done"] + [result["diff"]])
    assert can_log_in(grafana, "hanako", "another-password") and not can_log_in(grafana, "hanako", "hanako-password")
    assert not keep(users=changed)["changed"]


def test_users_of_others_are_kept_where_the_site_specifies(grafana, keep):
    keep()
    assert not keep(users=USERS[:1], prune_users=False)["changed"]
    assert "taro" in roles(grafana)


def test_a_check_changes_nothing(grafana, keep):
    result = keep(check_mode=True)
    assert result["changed"] and len(result["done"]) == 2
    assert roles(grafana) == {"admin": "Admin"}


def test_the_administrators_password_is_replaced_with_the_help_of_an_earlier_one(grafana, keep):
    result = keep(admin_password="new-password")
    assert result["failed"] and "grafana_admin_previous_passwords" in result["msg"]
    before = {"admin_previous_passwords": ["older", "admin-password"]}
    assert keep(True, admin_password="new-password", **before)["done"][0] == "user admin: another password"
    assert can_log_in(grafana, "admin", "admin-password")
    assert keep(admin_password="new-password", **before)["changed"]
    assert can_log_in(grafana, "admin", "new-password") and not can_log_in(grafana, "admin", "admin-password")
    assert not keep(admin_password="new-password", **before)["changed"]


def test_a_dashboard_that_is_not_served_is_a_failure(grafana, keep):
    assert "dashboard two is not there (404)" in keep(dashboards={"one": "一", "two": "二"})["msg"]
    assert "dashboard one has another title" in keep(dashboards={"one": "二"})["msg"]


def test_one_that_was_provisioned_before_must_go_and_one_made_by_hand_stays(grafana, keep):
    (grafana.boards / "two.json").write_text(json.dumps({"uid": "two", "title": "二"}), encoding="utf-8")
    grafana.read_dashboards()
    assert "dashboard two is still there" in keep()["msg"]
    (grafana.boards / "two.json").unlink()
    grafana.read_dashboards()
    grafana.rows("INSERT INTO dashboard VALUES ('mine', 'x', 'shiftmaster', '{}', 0)")
    assert "failed" not in keep()
    grafana.rows("REPLACE INTO dashboard VALUES ('one', '一', 'shiftmaster', '{\"title\": \"一\"}', 0)")
    assert "dashboard one is not the provisioned one" in keep()["msg"]


def test_a_data_source_that_does_not_respond_is_a_failure(grafana, keep):
    assert "data source none is unhealthy (404" in keep(data_sources=["none"])["msg"]
    grafana.sources["p"] = {"url": "http://127.0.0.1:9"}
    assert "data source p is unhealthy (400" in keep(data_sources=["p"])["msg"]


def test_a_public_page_is_a_failure(grafana, keep, monkeypatch):
    requested = MODULE.Api.send

    def query(self, path, *values, login=None, **more):
        return (200, "") if path == "/metrics" and not login else requested(self, path, *values, login=login, **more)

    monkeypatch.setattr(MODULE.Api, "send", query)
    assert "/metrics returns 200 without a login" in keep()["msg"]


def test_no_server(keep):
    assert "Grafana does not respond" in keep(url="http://127.0.0.1:9")["msg"]
    assert keep(True, url="http://127.0.0.1:9")["changed"]
    # On a host that is still empty there is no authority either.
    empty = {"url": "https://127.0.0.1:9", "ca_file": "/nowhere/ca.crt"}
    assert "/nowhere/ca.crt" in keep(**empty)["msg"] and keep(True, **empty)["changed"]
