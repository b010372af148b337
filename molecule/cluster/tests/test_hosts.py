"""The installation: allowed connections between hosts, and the hosts that serve users."""

import json

SERVERS = "/etc/nginx/shiftmaster-servers.conf"
LOG = "/var/log/nginx/shiftmaster_access.log"


def reaches(host, address: str, port: int) -> bool:
    return host.shell(f"timeout 3 bash -c '</dev/tcp/{address}/{port}' 2>/dev/null && echo yes || echo no") == "yes\n"


def test_both_application_hosts_serve_users(topology):
    for _ in range(8):
        assert topology.edge.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/login/") == "200"
    requested = {json.loads(line)["upstream_addr"] for line in topology.edge.shell(f"tail -n 8 {LOG}").splitlines()}
    assert requested == {"172.30.77.11:8443", "172.30.77.12:8443"}


def test_a_static_file_is_served_through_the_load_balancer(topology):
    page = topology.edge.shell("curl -skS https://localhost/login/ | grep -o '/static/[^\"]*' | head -1").strip()
    assert page.startswith("/static/")
    assert topology.edge.shell(f"curl -skS -o /dev/null -w '%{{http_code}}' https://localhost{page}") == "200"


def test_the_application_sees_the_client_not_the_load_balancer(topology):
    topology.edge.shell("curl -4 -skS -o /dev/null https://localhost/login/")
    lines = "".join(host.shell(f"tail -n 3 {LOG}") for host in topology.apps)
    assert '"remote_addr":"127.0.0.1"' in lines and '"remote_addr":"172.30.77.10"' not in lines


def test_a_port_is_reachable_only_from_hosts_that_need_it(topology):
    assert reaches(topology.app1, "172.30.77.21", 5432) and reaches(topology.app2, "172.30.77.21", 5432)
    assert reaches(topology.app1, "172.30.77.22", 6379)
    assert reaches(topology.edge, "172.30.77.11", 8443)
    assert not reaches(topology.edge, "172.30.77.21", 5432)
    assert not reaches(topology.cache, "172.30.77.21", 5432)
    assert not reaches(topology.edge, "172.30.77.22", 6379)
    assert not reaches(topology.app1, "172.30.77.12", 8443)
    assert not reaches(topology.edge, "172.30.77.11", 8000)


def test_the_local_listener_also_refuses_hosts_inside_the_firewall(topology):
    """The firewall is one wall; a request that came past it is refused by its connection's address."""
    topology.app1.shell("nft insert rule inet shiftmaster input tcp dport 8443 accept")
    try:
        response = topology.app2.shell("curl -skS -o /dev/null -w '%{http_code}' https://172.30.77.11:8443/login/")
        spoofed = topology.app2.shell(
            "curl -skS -o /dev/null -w '%{http_code}' -H 'X-Forwarded-For: 172.30.77.10' https://172.30.77.11:8443/login/"
        )
        assert (response, spoofed) == ("403", "403")
    finally:
        topology.app1.shell(
            "nft delete rule inet shiftmaster input handle "
            "$(nft -a list chain inet shiftmaster input | sed -n 's/.*dport 8443 accept # handle //p' | head -1)"
        )


def test_every_connection_between_hosts_is_tls(topology):
    rows = topology.db.shell(
        'runuser -u postgres -- psql -XAtc "select ssl, count(*) from pg_stat_ssl join pg_stat_activity using (pid) '
        "where client_addr is not null and client_addr <> '127.0.0.1' group by 1\""
    ).split()
    assert len(rows) == 1 and rows[0].startswith("t|"), rows
    plain = topology.cache.shell("redis-cli -p 6379 ping 2>&1", check=False)
    by_tls = topology.cache.shell("redis-cli -p 6379 --tls --cacert /etc/ssl/shiftmaster/ca.crt ping 2>&1", check=False)
    assert "PONG" not in plain and "NOAUTH" not in plain
    assert "PONG" in by_tls or "NOAUTH" in by_tls


def test_the_application_verifies_the_servers_that_it_connects_to(topology):
    environment = topology.app1.shell("cat /var/www/shiftmaster/active/release/env")
    assert "DB_SSLMODE" in environment and "verify-full" in environment
    assert "ssl_cert_reqs=required" in environment
    works = "import os; from django.db import connection as c; c.ensure_connection(); print(c.pg_version)"
    assert int(topology.app1.python(works)) > 150000
    other_name = (
        "import psycopg; from django.db import connection as c\n"
        "given = c.get_connection_params(); given.pop('cursor_factory', None); given.pop('context', None)\n"
        "given['hostaddr'], given['host'] = given['host'], 'db.somewhere.else'\n"
        "try: psycopg.connect(**given)\n"
        "except psycopg.OperationalError as error: print(error)"
    )
    assert "certificate" in topology.app1.python(other_name)


def test_an_application_host_with_an_untrusted_certificate_gets_no_request(topology):
    app2 = topology.app2
    app2.shell(
        "cd /etc/ssl/shiftmaster && cp -a host.crt host.crt.kept && cp -a host.key host.key.kept && "
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -days 2 "
        "-addext subjectAltName=DNS:app.shiftmaster.internal -keyout host.key -out host.crt 2>/dev/null && "
        "systemctl reload nginx && sleep 1"
    )
    try:
        for _ in range(8):
            assert topology.edge.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/login/") == "200"
        assert "upstream SSL certificate verify error" in topology.edge.shell("tail -n 50 /var/log/nginx/error.log")
    finally:
        app2.shell(
            "cd /etc/ssl/shiftmaster && mv host.crt.kept host.crt && mv host.key.kept host.key"
            " && systemctl reload nginx"
        )


def test_health_reports_every_host_as_healthy(topology):
    run = topology.edge.run("playbooks/health.yml")
    assert run.code == 0, run.output[-4000:]
    assert run.prints("Overall health"), run.output[-4000:]
