"""Responses of the web server to clients. Behaviour only; the configuration's text is of no interest."""

from __future__ import annotations

import json
import time

import pytest


def test_the_application_responds_over_tls(web):
    response = web.get("/")
    assert (response.status, response.one("x-slot")) == (200, "blue")


def test_plain_http_is_sent_to_tls_under_the_sites_own_name(web):
    response = web.get("/a?b=c", url="http://shift.test")
    assert (response.status, response.one("location")) == (301, "https://shift.test/a?b=c")
    response = web.get("/a", url="http://other.test")
    assert response.one("location") == "https://shift.test/a", "a redirect to a name that the client made up"


@pytest.mark.parametrize("name", ["shift.test:443", "www.shift.test", "evil.test", "evil.test:443", ""])
def test_plain_http_on_the_tls_port_redirects_to_a_name_of_the_site(web, name):
    response = web.get("/a?b=c", "-H", f"Host: {name}" if name else "Host;", url="http://shift.test:443")
    if name == "":
        assert response.status == 400
    else:
        host = "www.shift.test" if name.startswith("www") else "shift.test"
        assert (response.status, response.one("location")) == (301, f"https://{host}/a?b=c")


def test_no_response_contains_a_name_from_the_client(web):
    """In every form in which a request can name a host, on each listener, of each kind of response."""
    found = web.ok(
        "for url in http://shift.test https://shift.test http://shift.test:443 http://127.0.0.1:8000; do"
        " for path in / /static/css/site.css /static/none.css /media/ /media /static /_edge /login/; do"
        " for name in 'Host: ' 'X-Forwarded-Host: ' 'Forwarded: host=' 'X-Host: '; do"
        " curl -sk -m 5 -o /dev/null -D - --resolve shift.test:80:127.0.0.1 --resolve shift.test:443:127.0.0.1"
        ' -H "${name}evil.test" $url$path; done; done; done'
    )
    assert found.count("HTTP/") == 4 * 8 * 4 and "evil.test" not in found


def test_the_application_sees_the_name_by_which_the_site_was_chosen(web):
    """A request line with a name of its own is what chooses the server; the Host header may differ."""
    seen, _ = web.echo("--http1.1", "--request-target", "https://shift.test/echo", "-H", "Host: evil.test")
    assert seen["host"] == "shift.test"


def test_external_requests_are_served_only_for_names_of_the_site(web):
    address = web.ok("hostname -I").split()[0]
    request = "curl -sk -m 5 -o /dev/null -w '%{http_code}' --resolve"
    assert web.ok(f"{request} shift.test:443:{address} https://shift.test/") == "200"
    # Before a certificate is shown, which names the site.
    for name in (f"-k https://{address}/", f"{request} other.test:443:{address} https://other.test/"):
        done = web.run(name if name.startswith("curl") else f"curl -s -m 5 {name}")
        assert done.rc == 35, name
    # This host itself: its checks, and users of an ssh tunnel.
    assert web.ok("curl -sk -m 5 -o /dev/null -w '%{http_code}' https://127.0.0.1/") == "200"
    assert web.ok("curl -sk -m 5 -o /dev/null -w '%{http_code}' https://localhost/") == "200"


def test_acme_challenges_pass_on_both_ports_and_in_maintenance(web):
    web.ok(
        "mkdir -p /var/www/acme/.well-known/acme-challenge"
        " && echo verification >/var/www/acme/.well-known/acme-challenge/token"
        " && touch /var/www/shiftmaster/shared/maintenance/on"
    )
    for url in ("http://shift.test", "https://shift.test"):
        response = web.get("/.well-known/acme-challenge/token", url=url)
        assert (response.status, response.body) == (200, "verification\n")
    assert web.get("/.well-known/acme-challenge/none", url="http://shift.test").status == 404


# --- what the application sees ---------------------------------------------------------------------------------------


def test_forwarding_headers_of_a_client_are_not_trusted(web):
    seen, _ = web.echo(
        "-H",
        "X-Forwarded-For: 203.0.113.9",
        "-H",
        "X-Forwarded-Proto: http",
        "-H",
        "X-Real-IP: 203.0.113.9",
        "-H",
        "X-Forwarded-Host: evil.test",
        "-H",
        "Forwarded: for=203.0.113.9",
        "-H",
        "Proxy: evil",
        "-H",
        "X-Request-ID: " + "a" * 32,
    )
    assert seen["x-forwarded-for"] == seen["x-real-ip"] == "127.0.0.1"
    assert seen["x-forwarded-proto"] == "https"
    assert seen["host"] == "shift.test"
    assert not {"x-forwarded-host", "forwarded", "proxy"} & set(seen)
    assert seen["x-request-id"] != "a" * 32


def test_one_request_id_reaches_application_client_and_log(web):
    seen, response = web.echo(query="set-X-Request-ID=theirs")
    assert response.all("x-request-id") == [seen["x-request-id"]]
    time.sleep(0.2)
    line = json.loads(web.ok("tail -n 1 /var/log/nginx/shiftmaster_access.log"))
    assert line["request_id"] == seen["x-request-id"]


def test_host_header_contains_the_port(web):
    seen, _ = web.echo("-H", "Host: shift.test:8443")
    assert seen["host"] == "shift.test:8443"


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost:8000"])
def test_local_listener_sends_the_tls_header(web, url):
    seen, response = web.echo(url=url)
    assert response.status == 200
    assert seen["x-forwarded-proto"] == "https", "an application that redirects to TLS would redirect the probe"
    assert response.one("strict-transport-security") is None
    assert web.get("/health/", url=url).status == 200


def test_local_listener_is_not_for_the_network(web):
    addresses = web.ok("hostname -I").split()
    assert addresses
    done = web.run(f"curl -s --max-time 3 http://{addresses[0]}:8000/health/")
    assert done.rc == 7, "refused"


# --- headers ---------------------------------------------------------------------------------------------------------

EXPECTED = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "strict-transport-security": "max-age=31536000",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
POLICY = "content-security-policy"


@pytest.mark.parametrize("path", ["/", "/static/css/site.css", "/static/none.css", "/echo?status=500"])
def test_security_headers_are_in_every_response_once(web, path):
    response = web.get(path)
    assert {name: response.all(name) for name in EXPECTED} == {name: [value] for name, value in EXPECTED.items()}
    assert response.one("server") == "nginx"
    assert response.all(POLICY) == [] and len(response.all(f"{POLICY}-report-only")) == 1
    assert {"default-src 'self'", "object-src 'none'"} <= set(response.one(f"{POLICY}-report-only").split("; "))


def test_the_applications_own_headers_win_but_not_about_tls(web):
    own = {
        "X-Frame-Options": "SAMEORIGIN",
        "Content-Security-Policy": "default-src",
        "Strict-Transport-Security": "max-age=1",
    }
    _, response = web.echo(query="&".join(f"set-{name}={value}" for name, value in own.items()))
    assert response.all("x-frame-options") == ["SAMEORIGIN"]
    assert response.all(POLICY) == ["default-src"] and response.all(f"{POLICY}-report-only") == []
    assert response.all("strict-transport-security") == [EXPECTED["strict-transport-security"]]


# --- files -----------------------------------------------------------------------------------------------------------


def test_static_files_of_the_live_release_take_precedence_and_follow_the_switch(web):
    assert web.get("/static/css/site.css").body == "one\n"
    web.activate("green")
    assert web.get("/static/css/site.css").body == "two\n"


def test_static_files_of_an_older_page_are_still_served(web):
    web.activate("green")
    for name in ("old.ba9876543210", "blue.0123456789ab"):
        response = web.get(f"/static/css/{name}.css")
        assert response.status == 200
        assert response.one("cache-control") == "public, max-age=31536000, immutable"
        assert response.one("content-type").startswith("text/css")


def test_files_without_a_hash_and_missing_ones_are_not_kept_long(web):
    assert web.get("/static/css/site.css").one("cache-control") == "public, max-age=60"
    missing = web.get("/static/css/none.0123456789ab.css")
    assert missing.status == 404 and missing.one("cache-control") is None


def test_only_static_directories_are_served(web):
    for path in (
        "/static/../../../shared/media/upload.html",
        "/static/%2e%2e/%2e%2e/env",
        "/static/..%2f..%2fenv",
        "/media/../state/state.json",
        "/media../state",
        "/static//etc/passwd",
    ):
        response = web.get(path)
        assert response.status in (400, 403, 404) or response.one("x-slot"), path


def test_precompressed_files_are_used(web):
    web.ok("cd /var/www/shiftmaster/releases/one/static/css && echo packed | gzip >site.css.gz")
    try:
        assert web.get("/static/css/site.css", "--compressed").body == "packed\n"
        assert web.get("/static/css/site.css").body == "one\n"
    finally:
        web.ok("rm /var/www/shiftmaster/releases/one/static/css/site.css.gz")


def test_uploaded_pages_cannot_run(web):
    response = web.get("/media/upload.html")
    assert response.status == 200
    assert "sandbox" in response.one("content-security-policy")
    assert response.all("x-content-type-options") == ["nosniff"]


# --- limits and errors -----------------------------------------------------------------------------------------------


def test_logging_in_is_limited_by_address(web):
    # Another one is allowed every ten seconds.
    statuses = []
    while len(statuses) < 30 and (not statuses or statuses[-1].status != 429):
        statuses.append(web.get("/login/", "-d", "password=wrong", source="127.0.0.3"))
    assert [response.status for response in statuses][:5] == [200] * 5
    assert statuses[-1].status == 429
    assert statuses[-1].one("retry-after") == "60"
    assert "ログインの試行" in statuses[-1].body and "Too many requests" in statuses[-1].body
    assert web.get("/login/", source="127.0.0.3").status == 200, "looking at the form is not an attempt"
    assert web.get("/login/", "-d", "password=wrong", source="127.0.0.4").status == 200, "somebody else"


def test_one_client_has_all_addresses_of_its_network(web):
    """Each attempt comes from another address of one network of 64 bits; then one from another network."""
    networks = {"2001:db8:7:8": 24, "2001:db8:7:9": 1, "2001:db8::": 24}
    if web.run("ip -6 address add 2001:db8::99/128 dev lo").rc != 0:
        pytest.skip("not run: no IPv6 on this machine")
    seen = {}
    try:
        for network, count in networks.items():
            addresses = [f"{network}:a:b:c:{n:x}".replace(":::", "::") for n in range(1, count + 1)]
            web.ok("; ".join(f"ip -6 address add {address}/128 dev lo" for address in addresses))
            seen[network] = web.ok(
                "; ".join(
                    f"curl -sk -m 5 -o /dev/null -w '%{{http_code}}\\n' --interface {address} -d password=wrong"
                    f" --resolve 'shift.test:443:[2001:db8::99]' https://shift.test/login/"
                    for address in addresses
                )
            ).split()
    finally:
        shown = "ip -6 address show dev lo scope global | awk '/inet6/ { print $2 }'"
        web.run(f"{shown} | xargs -n 1 -I {{}} ip -6 address del {{}} dev lo")
    assert "429" in seen["2001:db8:7:8"] and "429" in seen["2001:db8::"], seen
    assert seen["2001:db8:7:9"] == ["200"]


def test_bodies_have_a_limit(web):
    web.ok("head -c 3000000 /dev/zero >/tmp/large")
    response = web.get("/echo", "--data-binary", "@/tmp/large")
    assert response.status == 413 and "2 MB" in response.body


def test_a_stopped_application_gets_an_error_page_in_both_languages(web):
    web.ok("systemctl stop shiftmaster-web@blue")
    for options in ((), ("-d", "a=b")):
        response = web.get("/", *options)
        assert response.status == 502, options
        assert "ただいま接続できません" in response.body and "does not respond" in response.body
        assert "内線 1234" in response.body
        assert (response.one("retry-after"), response.one("cache-control")) == ("10", "no-store")
        assert response.one("content-type") == "text/html; charset=utf-8"


def test_errors_of_the_application_are_its_own(web):
    for status in (404, 500, 502, 503):
        _, response = web.echo(query=f"status={status}")
        assert response.status == status and response.one("x-slot") == "blue"


def test_error_pages_have_no_address_of_their_own(web):
    assert web.get("/_edge/502.html").status == 404
    web.ok("touch /var/www/shiftmaster/shared/maintenance/on")
    assert web.get("/_edge/503").status == 404


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_request_is_sent_twice(web, method):
    web.ok("rm -f /var/lib/stub/values.cut")
    assert web.get("/cut", "-X", method).status == 502
    assert web.ok("cat /var/lib/stub/values.cut").split() == [method]


def test_deep_health_is_restricted(web):
    assert web.get("/health/deep/").status == 200
    assert web.get("/health/deep/", source="127.0.0.5").status == 403
    assert web.get("/health/", source="127.0.0.5").status == 200


# --- maintenance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/static/css/site.css", "/media/upload.html", "/login/", "/nowhere"])
def test_maintenance_takes_precedence(web, path):
    web.ok("touch /var/www/shiftmaster/shared/maintenance/on")
    for options in ((), ("-d", "a=b")):
        response = web.get(path, *options)
        assert (response.status, response.one("retry-after"), response.one("x-maintenance")) == (503, "300", "on")
        assert "メンテナンス中" in response.body
        assert response.one("content-type") == "text/html; charset=utf-8"
        assert response.one("x-frame-options") == "DENY"


def test_maintenance_allows_health_and_some_addresses(web):
    web.ok("touch /var/www/shiftmaster/shared/maintenance/on")
    assert web.get("/health/").one("x-slot") == "blue"
    assert web.get("/health/", url="http://127.0.0.1:8000").status == 200
    assert web.get("/", url="http://127.0.0.1:8000").status == 503
    assert web.get("/", source="127.0.0.7").one("x-slot") == "blue"
    web.ok("rm /var/www/shiftmaster/shared/maintenance/on")
    assert web.get("/").one("x-slot") == "blue"


def test_maintenance_responds_to_programs_in_json(web):
    web.ok("touch /var/www/shiftmaster/shared/maintenance/on")
    response = web.get("/", "-H", "Accept: application/json")
    assert response.status == 503 and json.loads(response.body)["status"] == "maintenance"
    assert response.one("content-type").startswith("application/json")


# --- TLS -------------------------------------------------------------------------------------------------------------


def s_client(web, *options):
    return web.run(
        "openssl s_client -connect 127.0.0.1:443 -servername shift.test "
        + " ".join(options)
        + " </dev/null 2>&1 | LC_ALL=C tr -cd '\\12\\40-\\176'"
    )


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_modern_tls_with_forward_secrecy(web, version):
    out = s_client(web, version).stdout
    assert "Cipher is " in out and "Cipher is (NONE)" not in out


@pytest.mark.parametrize(
    "options",
    [
        ("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"),
        ("-tls1", "-cipher", "DEFAULT@SECLEVEL=0"),
        ("-tls1_2", "-cipher", "AES128-GCM-SHA256"),
        ("-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA256"),
    ],
)
def test_old_tls_is_refused(web, options):
    out = s_client(web, *options).stdout
    assert "Cipher is (NONE)" in out or "alert" in out, out


def test_no_session_tickets(web):
    assert "TLS session ticket:" not in s_client(web, "-tls1_2").stdout


def test_http2_is_offered(web):
    assert web.get("/", "--http2").status == 200
    assert "ALPN protocol: h2" in s_client(web, "-alpn", "h2").stdout


# --- the log ---------------------------------------------------------------------------------------------------------


def test_log_is_json_without_queries(web):
    web.get("/echo?name=secret%22name", "-A", 'a "b" \\ c', "-e", "https://shift.test/x?token=secret")
    time.sleep(0.2)
    text = web.ok("tail -n 1 /var/log/nginx/shiftmaster_access.log")
    line = json.loads(text)
    assert "secret" not in text
    assert line["user_agent"] == 'a "b" \\ c'
    assert (line["method"], line["path"], line["status"], line["scheme"]) == ("GET", "/echo", 200, "https")
    assert line["ssl_protocol"].startswith("TLSv1.") and line["upstream_status"] == "200"
    assert isinstance(line["request_time"], float) and line["bytes"] > 0
    for entry in web.ok("cat /var/log/nginx/shiftmaster_access.log").splitlines():
        json.loads(entry)


def test_log_is_rotated_and_nginx_follows(web):
    web.get("/before")
    web.ok("logrotate --force /etc/logrotate.d/nginx")
    time.sleep(0.3)
    web.get("/after")
    time.sleep(0.3)
    now = web.ok("cat /var/log/nginx/shiftmaster_access.log")
    assert '"path":"/after"' in now and '"path":"/before"' not in now
    assert '"path":"/before"' in web.ok("cat /var/log/nginx/shiftmaster_access.log.1")


def test_broken_requests_leave_json(web):
    web.run(r"printf 'NONSENSE\r\n\r\n' | timeout 3 openssl s_client -quiet -connect 127.0.0.1:443 2>/dev/null")
    time.sleep(0.3)
    for entry in web.ok("tail -n 5 /var/log/nginx/shiftmaster_access.log").splitlines():
        json.loads(entry)


# --- the service -----------------------------------------------------------------------------------------------------


def test_the_unit_is_sandboxed_enabled_and_restarted_after_a_kill(web):
    assert web.host.service("nginx").is_enabled
    score = float(web.ok("systemd-analyze security --no-pager nginx.service | tail -n 1").split(":")[1].split()[0])
    assert score <= 3.0
    web.ok("systemctl kill --signal=KILL nginx.service")
    for _ in range(40):
        if web.run("curl -sk -o /dev/null https://127.0.0.1/health/").rc == 0:
            break
        time.sleep(0.25)
    else:
        pytest.fail("nginx did not come back")
    assert web.ok("systemctl is-system-running").strip() == "running"


def test_the_exporters_page_is_for_this_host(web):
    assert "Active connections" in web.ok("curl -sf http://127.0.0.1:8081/stub_status")
    address = web.ok("hostname -I").split()[0]
    assert web.run(f"curl -s --max-time 3 http://{address}:8081/stub_status").rc == 7
