"""The role itself: what is refused, what is restored, what a run that was cut off leaves to the next one."""

from __future__ import annotations

import re
import time

import pytest

LIVE = "sha256sum /etc/nginx/nginx.conf /etc/nginx/sites-available/* /etc/nginx/snippets/* /etc/systemd/system/nginx*/*"


def master(edge):
    return edge.ok("cat /run/nginx.pid").strip()


@pytest.fixture
def unchanged(edge):
    """Whatever a test tries: the files, the running configuration and the service end as they began."""
    before = (edge.ok(LIVE), edge.ok("curl -sf http://127.0.0.1:8081/config"))
    yield
    assert (edge.ok(LIVE), edge.ok("curl -sf http://127.0.0.1:8081/config")) == before
    assert edge.get("/").status == 200
    assert edge.ok("systemctl is-system-running").strip() == "running"
    assert (
        edge.ok(
            "find / -xdev ( -name '.*.new' -o -name 'stage-*.service' ) -print".replace("(", "\\(").replace(")", "\\)")
        )
        == ""
    )


def test_everything_in_the_way_is_reported_at_once_before_anything_changes(edge, unchanged):
    edge.ok("systemd-run --quiet --collect --unit=other python3 -m http.server 8099 --bind 127.0.0.1; sleep 1")
    done = edge.converge(nginx_tls_certificate_path="/etc/ssl/certs/none.crt", nginx_local_listen=["127.0.0.1:8099"])
    edge.ok("systemctl stop other")
    assert done.rc != 0 and done.changed == 0
    assert "the certificate /etc/ssl/certs/none.crt is missing" in done.flat
    assert "port 8099 is taken by python3" in done.flat


def test_a_key_of_another_certificate_is_reported(edge, unchanged):
    edge.ok("openssl genrsa -out /etc/ssl/private/other.key 2048")
    done = edge.reconfigure(nginx_tls_key_path="/etc/ssl/private/other.key")
    edge.ok("rm /etc/ssl/private/other.key")
    assert done.rc != 0 and done.changed == 0 and "cannot be used together" in done.flat


def test_what_nginx_refuses_never_reaches_the_live_files(edge, unchanged):
    done = edge.reconfigure(nginx_tls_ciphers=["NONSENSE"])
    assert done.rc != 0
    assert "nothing was changed: nginx rejects the configuration" in done.flat and "NONSENSE" in done.flat


@pytest.mark.parametrize("restart", [False, True])
def test_a_configuration_without_effect_is_noticed_and_put_back(edge, unchanged, restart):
    """nginx -t accepts a port that is taken; only the reload fails, and only in the error log."""
    # Named like the web server, so that the role's own check of the ports sees no unknown process.
    edge.ok(
        "cp /usr/bin/python3 /root/nginx && systemd-run --quiet --collect --unit=thief"
        " /root/nginx -m http.server 8099 --bind 127.0.0.1; sleep 1; curl -sf -o /dev/null 127.0.0.1:8099"
    )
    before = master(edge)
    done = edge.reconfigure(
        nginx_local_listen=["127.0.0.1:8099"], nginx_verify_timeout_seconds=4, nginx_hardening=not restart
    )
    edge.ok("systemctl stop thief; rm /root/nginx")
    assert done.rc != 0
    assert f"the {'restart' if restart else 'reload'} of nginx did not take effect" in done.flat
    assert "The earlier files are back in place and in use." in done.flat
    assert restart or "127.0.0.1:8099 failed" in done.flat, "nginx's own explanation"
    assert restart or master(edge) == before


def test_check_mode_says_what_would_change_and_what_nginx_thinks(edge, unchanged):
    done = edge.reconfigure("--check", "--diff", nginx_login_burst=9)
    assert done.rc == 0 and done.changed == 1
    assert "+ limit_req zone=login_attempts burst=9 nodelay;" in done.flat
    done = edge.reconfigure("--check", nginx_tls_ciphers=["NONSENSE"])
    assert "nginx would reject this configuration" in done.flat


def test_a_change_reloads_without_cutting_a_request_off(edge):
    before = master(edge)
    edge.ok(
        "systemd-run --quiet --collect --unit=slow sh -c 'curl -sk --max-time 60 -o /root/slow.body"
        ' -w %{http_code} "https://127.0.0.1/slow?seconds=15" >/root/slow.code\''
    )
    done = edge.reconfigure(nginx_login_burst=5)
    assert done.rc == 0 and done.changed == 1, done.out
    for _ in range(100):
        if edge.run("systemctl is-active --quiet slow").rc != 0:
            break
        time.sleep(0.2)
    assert edge.ok("cat /root/slow.code") == "200"
    assert master(edge) == before, "reloaded, not restarted"


def test_drift_and_a_run_that_was_cut_off_are_made_good(edge):
    # Somebody's own edit.
    edge.ok("echo '# mine' >>/etc/nginx/nginx.conf && ln -s /dev/null /etc/nginx/sites-enabled/default")
    assert edge.reconfigure().changed == 1
    assert edge.run("test -L /etc/nginx/sites-enabled/default").rc == 1
    # The files are right, but nginx still runs the ones before: killed between swap and reload.
    marker = "/etc/nginx/snippets/shiftmaster-marker.conf"
    edge.ok(
        f"cp -p {marker} /root/marker && echo 'return 200 \"earlier\\n\";' >{marker}"
        f" && systemctl reload nginx && sleep 1 && cp -p /root/marker {marker}"
    )
    assert edge.ok("curl -sf http://127.0.0.1:8081/config") == "earlier\n"
    assert edge.reconfigure().changed == 1


def test_a_renewed_certificate_is_taken_up(edge):
    edge.ok(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=shift.test -addext"
        " subjectAltName=DNS:shift.test -keyout /etc/ssl/private/shiftmaster.key"
        " -out /etc/ssl/certs/shiftmaster.crt"
    )
    wanted = edge.ok("openssl x509 -in /etc/ssl/certs/shiftmaster.crt -noout -serial")
    served = "openssl s_client -connect 127.0.0.1:443 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    assert edge.ok(served) != wanted
    assert edge.reconfigure().changed == 1
    assert edge.ok(served) == wanted
    assert edge.reconfigure().changed == 0


def test_workers_join_a_new_group(edge):
    edge.ok("getent group extra || groupadd extra")
    done = edge.converge(nginx_extra_groups=["shiftmaster", "extra", "not-there"])
    assert done.rc == 0, done.out
    assert "extra" in edge.ok("ps -o supgrp= -p $(pgrep -u www-data nginx | tail -n 1)")


def test_a_stopped_nginx_is_started(edge):
    edge.ok("systemctl stop nginx")
    assert edge.reconfigure().rc == 0
    assert edge.get("/").status == 200


def test_of_several_servers_a_post_is_given_to_one_only(edge):
    """Both take the request and die without a response: was it carried out? A GET may be repeated, a POST never."""
    edge.ok("systemd-run --quiet --collect --unit=cutter python3 /root/cutter.py; sleep 1")
    edge.ok("rm -f /etc/nginx/shiftmaster-servers.conf")
    done = edge.reconfigure(nginx_upstream_servers=["127.0.0.1:8991", "127.0.0.1:8992"])
    assert done.rc == 0, done.out
    asked = {}
    for method in ("GET", "POST"):
        edge.ok("rm -f /root/asked")
        assert edge.get("/save", "-X", method, "-d", "value=1").status == 502
        asked[method] = edge.ok("cat /root/asked").split()
    # The first is dead: nothing was sent, so the second may have even a POST.
    edge.ok("systemctl stop cutter")
    # One that joins others gets nobody before a release is on it; so none of the two is to be known.
    assert edge.reconfigure().rc == 0
    edge.ok("rm /etc/nginx/shiftmaster-servers.conf")
    done = edge.reconfigure(nginx_upstream_servers=["127.0.0.1:8991", "127.0.0.1:8000"])
    assert done.rc == 0, done.out
    answers = [edge.get("/login/", "-d", "password=secret", source="127.0.0.9").status for _ in range(4)]
    assert edge.reconfigure().rc == 0
    assert asked == {"GET": ["GET", "GET"], "POST": ["POST"]}
    assert answers == [302] * 4


def test_unknown_names_can_be_served_and_the_policy_enforced(edge):
    address = edge.ok("hostname -I").split()[0]
    done = edge.reconfigure(
        nginx_refuse_unknown_hosts=False, nginx_header_content_security_policy_enforced=True, nginx_server_names=[]
    )
    other = edge.run(f"curl -skI --resolve other.test:443:{address} https://other.test/")
    plain = [edge.get("/", url=url).status for url in ("http://shift.test", "http://shift.test:443")]
    assert edge.reconfigure().rc == 0
    assert done.rc == 0, done.out
    assert other.rc == 0 and re.search(r"(?mi)^content-security-policy: default-src 'self';", other.stdout), (
        other.stdout
    )
    assert plain == [400, 400], "without a name of the site there is nothing to redirect to"


def test_a_directory_of_somebody_else_leads_root_nowhere(edge, unchanged):
    """Whoever can write next to what root makes there puts a link in its place."""
    edge.ok(
        "install -d -o www-data /srv/theirs && install -d -m 0700 /root/victim && rm -rf /srv/theirs/*"
        " && ln -s /root/victim /srv/theirs/maintenance && ln -s /root/victim/log /srv/theirs/access.log"
    )
    for wrong in (
        {"nginx_maintenance_dir": "/srv/theirs/maintenance"},
        {"nginx_maintenance_dir": "/srv/theirs/maintenance/below"},
        {"nginx_access_log_path": "/srv/theirs/access.log"},
        {"nginx_access_log_path": "/srv/theirs/other.log"},
    ):
        done = edge.reconfigure(**wrong)
        assert done.rc != 0 and done.changed == 0, (wrong, done.out)
        assert "/srv/theirs" in done.flat
    assert edge.ok("stat -c %a /root/victim; ls /root/victim; ls /srv/theirs").split() == [
        "700",
        "access.log",
        "maintenance",
    ]


def test_a_limit_that_leaves_no_room_is_rejected(edge, unchanged):
    done = edge.reconfigure(nginx_requests_per_address=9000)
    assert done.rc != 0 and done.changed == 0 and "nginx_requests_per_address" in done.flat


def test_clients_of_a_trusted_proxy_are_distinguished(edge):
    """One proxy in front, from which everything comes: the address that it names is the one that is counted."""
    try:
        done = edge.reconfigure(nginx_trusted_proxies=["127.0.0.3/32"], nginx_requests_per_address=1)
        assert done.rc == 0, done.out
        edge.ok(
            "systemd-run --quiet --collect --unit=held curl -sk --max-time 30 --interface 127.0.0.3"
            " -H 'X-Forwarded-For: 192.0.2.7' --resolve shift.test:443:127.0.0.1 'https://shift.test/slow?seconds=8'"
        )
        time.sleep(1)
        seen = [
            edge.get("/", "-H", f"X-Forwarded-For: {client}", source="127.0.0.3").status
            for client in ("192.0.2.7", "192.0.2.8")
        ]
    finally:
        edge.run("systemctl stop held")
        assert edge.reconfigure().rc == 0
    assert seen == [429, 200]
