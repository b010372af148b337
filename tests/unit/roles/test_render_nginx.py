"""The templates of role nginx, rendered by Ansible, and the pure parts of its module."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from rendered import trusted

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "nginx"
HOST = {"version": "1.26.3", "ipv6": True, "ipv6_loopback": True, "ocsp_uri": "", "groups_present": []}


def known(**variables):
    found = {"ansible_managed": "Ansible managed", "ansible_facts": {"distribution_major_version": "13"}}
    for part in ("defaults", "vars"):
        found |= yaml.safe_load((ROLE / part / "main.yml").read_text(encoding="utf-8"))
    return found | {"__nginx_host": dict(HOST)} | variables


def render(template, **variables):
    text = (ROLE / "templates" / template).read_text(encoding="utf-8")
    return Templar(DataLoader(), variables=trusted(known(**variables))).template(trust_as_template(text))


def parse(text):
    """nginx's syntax as nested lists: [words, block or None]. Fails on braces and semicolons that do not fit."""
    tokens = re.findall(r"\#[^\n]*|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[{};]|(?:[^\s{};\"'#]|(?<=\S)[\"'#])+", text)
    stack, words = [[]], []
    for token in tokens:
        if token.startswith("#"):
            continue
        if token == ";":
            assert words, "a semicolon after nothing"
            stack[-1].append((words, None))
            words = []
        elif token == "{":
            block = []
            stack[-1].append((words, block))
            stack.append(block)
            words = []
        elif token == "}":
            assert not words, f"no semicolon after {words}"
            stack.pop()
        else:
            words.append(token)
    assert len(stack) == 1 and not words
    return stack[0]


def servers(**variables):
    """The server blocks of the site by their first listen."""
    found = {}
    for words, block in parse(render("site.conf.j2", **variables)):
        if words == ["server"]:
            listens = [item[0][1:] for item in block if item[0][0] == "listen"]
            found[listens[0][0]] = block
    return found


def values(block, name):
    return [words[1:] for words, _ in block if words[0] == name]


def locations(block):
    return {" ".join(words[1:]): inner for words, inner in block if words[0] == "location"}


def test_main_file_is_valid_and_its_includes_are_relative():
    tree = parse(render("nginx.conf.j2"))
    http = next(block for words, block in tree if words == ["http"])
    includes = [item[0] for item in values(tree, "include") + values(http, "include")]
    assert includes and not [path for path in includes if path.startswith("/")], "a copy could not be tested"
    assert values(http, "ssl_protocols") == [["TLSv1.2", "TLSv1.3"]]
    assert values(http, "server_tokens") == [["off"]]


@pytest.mark.parametrize("query", [True, False])
def test_log_format_is_json(query):
    text = render("nginx.conf.j2", nginx_log_query_string=query)
    pieces = re.search(r"log_format shiftmaster escape=json\s+(.*?);\n", text, re.S)[1]
    line = "".join(re.findall(r"'([^']*)'", pieces))
    entry = json.loads(re.sub(r"\$\w+", "1", line))
    assert {
        "time",
        "request_id",
        "remote_addr",
        "method",
        "path",
        "status",
        "bytes",
        "request_time",
        "upstream_response_time",
        "upstream_status",
        "upstream_addr",
        "host",
        "scheme",
        "ssl_protocol",
        "user_agent",
        "referer",
    } <= set(entry)
    assert ("$request_uri" in line and "$http_referer" in line) is query


def test_public_site_and_local_listener_are_optional():
    assert set(servers()) == {"80", "443", "127.0.0.1:8000", "127.0.0.1:8081"}
    assert set(servers(nginx_public=False)) == {"127.0.0.1:8000", "127.0.0.1:8081"}
    assert set(servers(nginx_local_listener=False)) == {"80", "443", "127.0.0.1:8081"}
    assert "ssl_certificate" not in render("site.conf.j2", nginx_public=False)


def test_ipv6_is_listened_to_only_where_it_exists():
    assert ["[::]:443", "ssl", "default_server"] in values(servers()["443"], "listen")
    without = {**HOST, "ipv6": False, "ipv6_loopback": False}
    assert "[::" not in render("site.conf.j2", __nginx_host=without)


@pytest.mark.parametrize(
    ("version", "release", "directive"),
    [("1.22.1", "12", False), ("1.26.3", "13", True), ("", "12", False), ("", "13", True)],
)
def test_http2_is_reported_as_the_version_understands_it(version, release, directive):
    block = servers(__nginx_host={**HOST, "version": version}, ansible_facts={"distribution_major_version": release})[
        "443"
    ]
    assert bool(values(block, "http2")) is directive
    assert ("http2" in values(block, "listen")[0]) is not directive


def test_one_upstream_server_has_no_retry_and_several_never_repeat_a_post():
    one = render("site.conf.j2")
    assert "server unix:/var/www/shiftmaster/active/socket;" in one
    assert set(re.findall(r"proxy_next_upstream (.*);", one)) == {"off"}
    several = render("site.conf.j2", **SEVERAL)
    assert "include shiftmaster-servers.conf;" in several
    assert set(re.findall(r"proxy_next_upstream (.*);", several)) == {"off", "error timeout http_502"}
    assert "non_idempotent" not in "".join(re.findall(r"^[^#\n]*$", several, re.M))
    assert "keepalive " not in several


SEVERAL = {"nginx_upstream_servers": ["192.0.2.1:8443", "192.0.2.2:8443"], "nginx_upstream_tls": True}


def test_a_drained_server_stays_drained_when_the_role_runs(tree):
    text = render("servers.conf.j2", **SEVERAL)
    assert tree.servers_of(text) == {"192.0.2.1:8443": (False, ""), "192.0.2.2:8443": (False, "")}
    assert "server 192.0.2.1:8443 max_fails=3 fail_timeout=10s;" in text
    out = tree.with_server(text, "192.0.2.2:8443", True, "it could not be reached", "2026-11-25T10:00:00Z")
    down = {server: comment for server, (down, comment) in tree.servers_of(out).items() if down}
    assert render("servers.conf.j2", __nginx_host=dict(HOST, servers_down=down), **SEVERAL) == out
    assert tree.with_server(out, "192.0.2.2:8443", False, "") == text
    assert tree.with_server(out, "192.0.2.2:8443", False, "it could not be reached") == text
    assert tree.with_server(out, "192.0.2.2:8443", False, "it is being patched") == out, "out for another reason"


def test_an_added_server_is_drained_until_a_run_restores_it(tree):
    known = {"servers": ["192.0.2.1:8443"], "servers_down": {}}
    text = render("servers.conf.j2", __nginx_host=dict(HOST, **known), **SEVERAL)
    assert tree.servers_of(text) == {"192.0.2.1:8443": (False, ""), "192.0.2.2:8443": (True, "new")}
    # Without an earlier server, requests must be served.
    other = {"servers": ["192.0.2.9:8443"], "servers_down": {}}
    text = render("servers.conf.j2", __nginx_host=dict(HOST, **other), **SEVERAL)
    assert not any(down for down, _ in tree.servers_of(text).values())
    # The first further host: until now the web server led to the application on its own host, by its socket.
    text = render("servers.conf.j2", nginx_upstream_empty=["192.0.2.2:8443"], **SEVERAL)
    assert tree.servers_of(text) == {"192.0.2.1:8443": (False, ""), "192.0.2.2:8443": (True, "new")}


def test_the_last_server_and_an_unknown_one_are_not_drained(tree):
    text = render("servers.conf.j2", **SEVERAL)
    out = tree.with_server(text, "192.0.2.2:8443", True, "x")
    with pytest.raises(ValueError, match="last server"):
        tree.with_server(out, "192.0.2.1:8443", True, "x")
    assert tree.with_server(out, "192.0.2.2:8443", True, "y") == out, "the first reason stays"
    with pytest.raises(ValueError, match="no server 192.0.2.9"):
        tree.with_server(text, "192.0.2.9:8443", True, "x")


def test_a_reason_cannot_leave_its_comment(tree):
    out = tree.with_server(render("servers.conf.j2", **SEVERAL), "192.0.2.2:8443", True, "a\nserver 192.0.2.66:1;")
    assert set(tree.servers_of(out)) == {"192.0.2.1:8443", "192.0.2.2:8443"}


def test_application_hosts_are_queried_by_verified_tls():
    public = servers(**SEVERAL)["443"]
    assert values(public, "proxy_ssl_verify") == [["on"]]
    assert values(public, "proxy_ssl_name") == [["app.shiftmaster.internal"]]
    assert set(re.findall(r"proxy_pass (\S+);", render("site.conf.j2", **SEVERAL))) == {
        "https://lb_app", "http://local_app"
    }  # fmt: skip


def test_the_local_listener_accepts_the_web_servers_by_tls_for_any_client_address():
    block = servers(nginx_local_tls_listen=["8443"])["127.0.0.1:8000"]
    assert ["8443", "ssl"] in values(block, "listen")
    assert values(block, "ssl_certificate") == [["/etc/ssl/shiftmaster/host.crt"]]
    assert values(block, "allow") == [], "allow goes by the address that a proxy names"
    assert [words[1] for words, _block in block if words[0] == "if"][0] == "($lb_local_allowed"
    assert "geo $realip_remote_addr $lb_local_allowed" in render("site.conf.j2")


def test_every_block_with_a_header_has_the_security_headers():
    for listen, block in servers().items():
        if listen in ("80", "127.0.0.1:8081"):
            continue
        for name, inner in locations(block).items():
            own = {words[0] for words in values(inner, "add_header")}
            if own:
                assert {"Strict-Transport-Security", "X-Content-Type-Options", "X-Request-ID"} <= own, name


def test_every_location_of_the_application_has_the_same_rules():
    for listen in ("443", "127.0.0.1:8000"):
        for name, inner in locations(servers()[listen]).items():
            if not values(inner, "proxy_pass"):
                continue
            sent = {words[0]: words[1] for words in values(inner, "proxy_set_header")}
            assert sent["X-Forwarded-Proto"] == ("$scheme" if listen == "443" else "https"), name
            assert sent["X-Forwarded-For"] == "$remote_addr", name
            assert values(inner, "proxy_next_upstream") == [["off"]], name


def test_host_of_the_local_listener_can_be_fixed():
    inner = locations(servers(nginx_local_host_header="shift.test")["127.0.0.1:8000"])["/"]
    assert ["Host", "shift.test"] in values(inner, "proxy_set_header")


def test_hsts_can_be_off():
    assert "max-age=31536000" in re.search(r"map \$https \$lb_hsts \{.*?\}", render("site.conf.j2"), re.S)[0]
    off = re.search(r"map \$https \$lb_hsts \{.*?\}", render("site.conf.j2", nginx_hsts_max_age_seconds=0), re.S)[0]
    assert "max-age" not in off


def test_stapling_where_the_certificate_names_a_responder():
    assert "ssl_stapling" not in render("site.conf.j2")
    reported = {**HOST, "ocsp_uri": "http://ocsp.test"}
    assert "ssl_stapling on;" in render("site.conf.j2", __nginx_host=reported)
    assert "ssl_stapling" not in render("site.conf.j2", __nginx_host=reported, nginx_ocsp_stapling=False)


def test_static_files_are_searched_in_the_configured_order_and_not_cached():
    inner = next(inner for name, inner in locations(servers()["443"]).items() if "/static/" in name)
    assert values(inner, "try_files") == [
        [
            "/var/www/shiftmaster/active/release/static/$lb_static_file",
            "/var/www/shiftmaster/shared/static/$lb_static_file",
            "=404",
        ]
    ]
    assert values(inner, "open_file_cache") == [["off"]]


@pytest.mark.parametrize(
    ("name", "hashed"),
    [
        ("/static/css/site.0123456789ab.css", True),
        ("/static/js/a.b.0123456789ab.js", True),
        ("/static/css/site.css", False),
        ("/static/site.0123456789abc.css", False),
        ("/static/0123456789ab/a.css", False),
    ],
)
def test_names_with_a_hash_are_cached_for_a_year(name, hashed):
    pattern = re.search(r'"~(\S+)" "public, max-age=31536000, immutable"', render("site.conf.j2"))[1]
    assert bool(re.search(pattern, name)) is hashed


def test_static_media_and_names_can_be_left_out():
    text = render("site.conf.j2", nginx_static_url="", nginx_media_url="", nginx_login_paths=[], nginx_private_paths=[])
    parse(text)
    assert "/static/" not in text and "media" not in text


def redirects(**variables):
    text = render("site.conf.j2", **variables)
    return re.findall(r"(?:return 301|error_page 497 =301) (\S+);", text), text


def test_redirects_point_to_names_of_the_site_only():
    targets, text = redirects(nginx_server_names=["shift.test", "*.shift.test", "~^x"], nginx_https_redirect_port=8443)
    assert targets == ["https://$lb_redirect_host:8443$request_uri"] * 2
    assert re.search(r"map \$host \$lb_redirect_host \{\s+default shift\.test;\s+shift\.test shift\.test;\s+\}", text)
    for names in ([], ["*.shift.test"]):
        targets, text = redirects(nginx_server_names=names)
        assert targets == [] and "return 400;" in text


def test_earlier_names_of_the_site_lead_to_the_one_that_it_has():
    names = {"nginx_server_names": ["new.test"], "nginx_redirected_names": ["old.test", "older.test"]}
    text = render("site.conf.j2", **names)
    sites = [block for words, block in parse(text) if words == ["server"]]
    earlier = next(block for block in sites if ["old.test", "older.test"] in values(block, "server_name"))
    assert values(earlier, "return") == [["301", "https://new.test$request_uri"]]
    assert ["443", "ssl"] in values(earlier, "listen") and values(earlier, "ssl_certificate")
    assert not [words for words, _ in earlier if words[0] == "location"], "nothing is served under an earlier name"
    assert "old.test" not in render("site.conf.j2", nginx_server_names=["new.test"])


def test_the_loopback_serves_every_name_and_the_public_site_only_its_own():
    text = render("site.conf.j2", nginx_server_names=["shift.test"])
    tree = [(words, block) for words, block in parse(text) if words == ["server"]]
    reject = next(block for _, block in tree if values(block, "ssl_reject_handshake"))
    site = next(block for _, block in tree if ["shift.test"] in values(block, "server_name"))
    assert ["443", "ssl", "default_server"] in values(reject, "listen")
    assert ["127.0.0.1:443", "ssl", "default_server"] in values(site, "listen")
    assert ["443", "ssl"] in values(site, "listen")
    for variables in ({"nginx_server_names": []}, {"nginx_refuse_unknown_hosts": False}):
        assert "ssl_reject_handshake" not in render(
            "site.conf.j2", **{"nginx_server_names": ["shift.test"], **variables}
        )


def test_requests_of_an_address_are_limited_on_the_public_site_alone():
    found = {name: values(block, "limit_conn") for name, block in servers().items()}
    assert {name for name, limits in found.items() if limits} == {"443"}
    assert "limit_conn" not in render("site.conf.j2", nginx_requests_per_address=0)


@pytest.mark.parametrize("enforced", [True, False])
def test_the_content_security_policy_is_reported_first(enforced):
    text = render("site.conf.j2", nginx_header_content_security_policy_enforced=enforced)
    name = "Content-Security-Policy" + ("" if enforced else "-Report-Only")
    assert set(re.findall(r"add_header (\S+) \$lb_content_security_policy always", text)) == {name}


# Files that pages load: of the published application (its last commit), and of the examples here.
LOADED = [
    ("script-src", "https://cdn.jsdelivr.net/npm/bootstrap@5.3.3/dist/js/bootstrap.bundle.min.js"),
    ("script-src", "https://code.jquery.com/jquery-3.5.1.slim.min.js"),
    ("script-src", "https://stackpath.bootstrapcdn.com/bootstrap/4.5.2/js/bootstrap.min.js"),
    ("script-src", "https://cdn.datatables.net/1.11.5/js/jquery.dataTables.min.js"),
    ("style-src", "https://cdn.jsdelivr.net/npm/bootstrap@5.3.3/dist/css/bootstrap.min.css"),
    ("style-src", "https://stackpath.bootstrapcdn.com/bootstrap/4.5.2/css/bootstrap.min.css"),
    ("style-src", "https://cdn.datatables.net/1.11.5/css/jquery.dataTables.min.css"),
    ("font-src", "https://cdn.jsdelivr.net/npm/bootstrap-icons@1.10.5/font/fonts/bootstrap-icons.woff2"),
    ("connect-src", "https://cdn.datatables.net/plug-ins/1.11.5/i18n/ja.json"),
]


def test_the_policy_allows_the_applications_pages_and_nothing_else():
    text = render("site.conf.j2")
    policy = re.search(r'\$lb_content_security_policy \{\s+default "";\s+"" "([^"]+)"', text)[1]
    allowed = {words[0]: words[1:] for words in (part.split() for part in policy.split(";"))}
    for kind, url in LOADED:
        assert "/".join(url.split("/")[:3]) in allowed[kind], url
    # Inline scripts and handlers (onclick) of the published application, styles of both and of the error pages.
    assert "'unsafe-inline'" in allowed["script-src"] and "'unsafe-inline'" in allowed["style-src"]
    used = {"/".join(url.split("/")[:3]) for _, url in LOADED} | {"'self'", "'none'", "'unsafe-inline'", "data:"}
    assert {source for sources in allowed.values() for source in sources} == used
    for templates in ("examples/shiftmaster/templates", "examples/rough", "examples/tiny"):
        for page in (ROOT / templates).rglob("*.html"):
            loaded = re.findall(r"""(?:src|href)=["'](https?:)?//([^/"']+)""", page.read_text(encoding="utf-8"))
            assert loaded == [], page


def test_unknown_names_can_be_refused():
    text = render("site.conf.j2", nginx_server_names=["shift.test"], nginx_refuse_unknown_hosts=True)
    parse(text)
    assert "ssl_reject_handshake on;" in text and text.count("listen 443 ssl default_server;") == 1


def test_the_sandbox_can_be_off_and_covers_the_log():
    assert "ReadWritePaths=/run /var/lib/nginx /var/log/nginx /srv/log\n" in render(
        "hardening.conf.j2", nginx_access_log_path="/srv/log/access.log"
    )
    off = render("hardening.conf.j2", nginx_hardening=False)
    assert "ProtectSystem" not in off and "Restart=on-failure" in off


def test_pages_show_text_as_text():
    evil = "<script>alert(1)</script>\"'&"
    page = {
        "code": "503",
        "ja": "メンテナンス",
        "ja_text": "終了まで",
        "en": "Maintenance",
        "en_text": "Wait",
        "reason": evil,
        "until": "2026-11-25 14:30",
        "timezone": "JST",
        "refresh_seconds": 60,
    }
    text = render("page.html.j2", page=page, nginx_site_title=evil, nginx_error_page_contact=evil)
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;") == 5
    assert "2026-11-25 14:30 JST" in text and 'lang="ja"' in text and 'lang="en"' in text
    # The footer is part of the card.
    assert text.index("<footer>") < text.index("</main>")


def test_each_section_shows_its_reason():
    page = {"code": "503", "ja": "a", "ja_text": "b", "en": "c", "en_text": "d", "reason": "更新"}
    given = {"nginx_site_title": "x", "nginx_error_page_contact": ""}
    both = render("page.html.j2", page={**page, "reason_en": "Upgrade"}, **given)
    japanese, english = both.split('lang="en"')
    assert "更新" in japanese and "Upgrade" in english and "更新" not in english
    assert render("page.html.j2", page=page, **given).count("更新") == 2


def maintenance(name, **variables):
    clock = {"ansible_facts": {"ansible_date_time": {"date": "2026-11-25", "time": "14:00:10", "tz": "JST"}}}
    given = {
        "nginx_maintenance_state": "on",
        "nginx_maintenance_reason": "更新",
        "nginx_maintenance_until": "2026-11-25 14:30",
        "inventory_hostname": "web1",
        "__nginx_clock": clock,
        "__nginx_shared": {"stat": {"exists": True}},
        "ansible_check_mode": False,
    }
    templar = Templar(DataLoader(), variables=trusted(known(**(given | variables))))
    return templar.template(trust_as_template("{{ %s }}" % name))


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({}, 0),
        ({"nginx_maintenance_state": "off", "nginx_maintenance_reason": "", "nginx_maintenance_until": ""}, 0),
        ({"nginx_maintenance_state": False, "nginx_maintenance_reason": "", "nginx_maintenance_until": ""}, 0),
        ({"nginx_maintenance_state": True}, 0),
        ({"nginx_maintenance_state": ""}, 1),
        ({"nginx_maintenance_state": "on", "nginx_maintenance_reason": " ", "nginx_maintenance_until": ""}, 2),
        ({"nginx_maintenance_until": "2026-11-25 14:00"}, 1),
        ({"nginx_maintenance_until": "2026-11-25 14:01"}, 0),
        ({"nginx_maintenance_until": "2026-02-29 10:00"}, 1),
        ({"nginx_maintenance_until": "2028-02-29 10:00"}, 0),
        ({"nginx_maintenance_until": "2027-04-31 10:00"}, 1),
        ({"nginx_maintenance_until": "2027-04-30 24:00"}, 1),
        ({"nginx_maintenance_until": "2027-4-30 10:00\n"}, 1),
        ({"nginx_maintenance_until": "24:30"}, 1),
        ({"nginx_maintenance_until": "14:00"}, 0),
        ({"nginx_maintenance_until": "tomorrow", "nginx_maintenance_reason": "x" * 501}, 2),
        ({"__nginx_shared": {"stat": {"exists": False}}}, 1),
    ],
)
def test_problems_of_a_maintenance(given, problems):
    assert len(maintenance("__nginx_maintenance_problems", **given)) == problems


@pytest.mark.parametrize(
    ("text", "end"),
    [("14:01", "2026-11-25 14:01"), ("14:00", "2026-11-26 14:00"), ("2027-01-31 09:15", "2027-01-31 09:15")],
)
def test_a_time_alone_is_its_next_one_on_the_host(text, end):
    page = maintenance("__nginx_maintenance_page", nginx_maintenance_until=text)
    assert page["until"] == end


# --- metrics for Prometheus -----------------------------------------------------------------------------------------

SOCKET = "unix:/var/www/shiftmaster/active/socket"
METRICS = {
    "nginx_metrics_listen": ["9443", "192.0.2.1:9444"],
    "nginx_metrics_users": [{"name": "prometheus", "password": "pw"}],
    "nginx_metrics_locations": [
        {"path": "/shiftmaster/metrics", "upstream": SOCKET, "upstream_path": "/metrics"},
        {"path": "/mtail/metrics", "upstream": "unix:/run/shiftmaster-mtail/mtail.sock", "upstream_path": "/metrics"},
    ],
}


def test_the_metrics_listener_is_off_by_default_and_always_requires_tls_and_a_password():
    assert "auth_basic" not in render("site.conf.j2")
    block = servers(**METRICS)["9443"]
    assert values(block, "listen") == [["9443", "ssl"], ["[::]:9443", "ssl"], ["192.0.2.1:9444", "ssl"]]
    assert values(block, "ssl_certificate_key") == [["/etc/ssl/shiftmaster/host.key"]]
    assert values(block, "auth_basic") == [['"metrics"']]
    # Relative, so that a copy is tested with its own.
    assert values(block, "auth_basic_user_file") == [["shiftmaster-metrics.users"]]
    assert values(block, "access_log") == [["off"]], "a scrape is no request of a user"
    found = locations(block)
    assert set(found) == {"= /shiftmaster/metrics", "= /mtail/metrics", "/"}
    assert values(found["/"], "return") == [["404"]]
    assert not [name for name, inner in found.items() if values(inner, "auth_basic")], "nothing switches it off again"


def test_the_metrics_listener_sends_no_forwarding_headers():
    found = locations(servers(nginx_server_names=["shift.test"], **METRICS)["9443"])
    app, mtail = found["= /shiftmaster/metrics"], found["= /mtail/metrics"]
    assert values(app, "proxy_pass") == [["http://unix:/var/www/shiftmaster/active/socket:/metrics"]]
    assert values(mtail, "proxy_pass") == [["http://unix:/run/shiftmaster-mtail/mtail.sock:/metrics"]]
    sent = {words[0]: words[1] for words in values(app, "proxy_set_header")}
    # The application trusts a caller without any of these, whose address is its socket.
    for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Authorization"):
        assert sent[name] == '""', name
    assert sent["Host"] == "shift.test" and sent["X-Forwarded-Proto"] == "https"
    assert [words for words, _block in app if words[0] == "limit_except"] == [["limit_except", "GET"]]


@pytest.mark.parametrize("listen", ["443", "127.0.0.1:8000"])
def test_metrics_are_hidden_from_others(listen):
    found = locations(servers(**METRICS)[listen])
    for path in ("/metrics", "/shiftmaster/metrics", "/mtail/metrics"):
        for name in (f"= {path}", f"^~ {path}/"):
            assert found[name] == [(["return", "404"], None)]
    assert not [name for name in locations(servers(nginx_hidden_paths=[])[listen]) if "metrics" in name]


def test_a_password_file_keeps_matching_hashes_and_shows_none(tree):
    users = [{"name": "prometheus", "password": "first"}, {"name": "b", "password": "second"}]
    text = tree.password_lines(users, "")
    assert re.fullmatch(r"prometheus:\$6\$\S{60,}\nb:\$6\$\S{60,}\n", text)
    assert tree.password_lines(users, text) == text
    changed = tree.password_lines([{"name": "prometheus", "password": "other"}, users[1]], text)
    assert [a == b for a, b in zip(changed.splitlines(), text.splitlines())] == [False, True]
    assert tree.password_lines(users[1:], text) == text.splitlines()[1] + "\n"
    before, after = tree.mask_passwords(text, changed)
    assert before == "prometheus:(a hash)\nb:(a hash)\n"
    assert after == "prometheus:(another hash)\nb:(a hash)\n"
    assert "$6$" not in "".join(tree.mask_passwords(None, text))


@pytest.mark.parametrize(
    "user", [{"name": "a:b", "password": "x"}, {"name": "a\nb", "password": "x"}, {"name": "a", "password": ""}]
)
def test_a_user_that_cannot_be_in_the_file_is_refused(tree, user):
    with pytest.raises(tree.webconfig.PasswordError):
        tree.password_lines([user], "")


def test_hashes_of_another_kind_are_not_kept(tree):
    bcrypt = tree.webconfig.hash_password("first", 4)
    assert "$6$" in tree.password_lines([{"name": "a", "password": "first"}], f"a:{bcrypt}\n")


# --- the module ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree():
    spec = importlib.util.spec_from_file_location("nginx_tree", ROOT / "library/service/nginx_tree.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_hash_follows_contents_links_and_absences_but_not_their_order(tree):
    files = [{"path": "/a", "content": "1"}, {"path": "/b", "content": "2"}]
    links = [{"path": "/l", "target": "a"}]
    first = tree.config_hash(files, links, ["/x"])
    assert first == tree.config_hash(files[::-1], links, ["/x"])
    assert (
        len(
            {
                first,
                tree.config_hash(files, links, []),
                tree.config_hash(files, [], ["/x"]),
                tree.config_hash([files[0], {"path": "/b", "content": "3"}], links, ["/x"]),
                tree.config_hash([{**files[0], "mode": "0600"}, files[1]], links, ["/x"]),
            }
        )
        == 5
    )
