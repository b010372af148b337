"""The role itself: what is refused, what is restored, what a run that was cut off leaves to the next one."""

from __future__ import annotations

import re
import time

import pytest

LIVE = "sha256sum /etc/nginx/nginx.conf /etc/nginx/sites-available/* /etc/nginx/snippets/* /etc/systemd/system/nginx*/*"


def master(web):
    return web.ok("cat /run/nginx.pid").strip()


@pytest.fixture
def unchanged(web):
    """After each test the files, the running configuration and the service are as before."""
    before = (web.ok(LIVE), web.ok("curl -sf http://127.0.0.1:8081/config"))
    yield
    assert (web.ok(LIVE), web.ok("curl -sf http://127.0.0.1:8081/config")) == before
    assert web.get("/").status == 200
    assert web.ok("systemctl is-system-running").strip() == "running"
    assert (
        web.ok(
            "find / -xdev ( -name '.*.new' -o -name 'stage-*.service' ) -print".replace("(", "\\(").replace(")", "\\)")
        )
        == ""
    )


def test_all_obstacles_are_reported_before_anything_changes(web, unchanged):
    web.ok("systemd-run --quiet --collect --unit=other python3 -m http.server 8099 --bind 127.0.0.1; sleep 1")
    done = web.converge(nginx_tls_certificate_path="/etc/ssl/certs/none.crt", nginx_local_listen=["127.0.0.1:8099"])
    web.ok("systemctl stop other")
    assert done.rc != 0 and done.changed == 0
    assert "the certificate /etc/ssl/certs/none.crt is missing" in done.flat
    assert "port 8099 is taken by python3" in done.flat


def test_a_key_of_another_certificate_is_reported(web, unchanged):
    web.ok("openssl genrsa -out /etc/ssl/private/other.key 2048")
    done = web.reconfigure(nginx_tls_key_path="/etc/ssl/private/other.key")
    web.ok("rm /etc/ssl/private/other.key")
    assert done.rc != 0 and done.changed == 0 and "cannot be used together" in done.flat


def test_a_configuration_that_nginx_rejects_is_not_installed(web, unchanged):
    done = web.reconfigure(nginx_tls_ciphers=["NONSENSE"])
    assert done.rc != 0
    assert "nothing was changed: nginx rejects the configuration" in done.flat and "NONSENSE" in done.flat


@pytest.mark.parametrize("restart", [False, True])
def test_a_configuration_without_effect_is_detected_and_reverted(web, unchanged, restart):
    """nginx -t accepts a port that is taken; only the reload fails, and only in the error log."""
    # Named like the web server, so that the role's own check of the ports sees no unknown process.
    web.ok(
        "cp /usr/bin/python3 /root/nginx && systemd-run --quiet --collect --unit=thief"
        " /root/nginx -m http.server 8099 --bind 127.0.0.1; sleep 1; curl -sf -o /dev/null 127.0.0.1:8099"
    )
    before = master(web)
    done = web.reconfigure(
        nginx_local_listen=["127.0.0.1:8099"], nginx_verify_timeout_seconds=4, nginx_hardening=not restart
    )
    web.ok("systemctl stop thief; rm /root/nginx")
    assert done.rc != 0
    assert f"the {'restart' if restart else 'reload'} of nginx did not take effect" in done.flat
    assert "The earlier files are back in place and in use." in done.flat
    assert restart or "127.0.0.1:8099 failed" in done.flat, "nginx's own explanation"
    assert restart or master(web) == before


def test_check_mode_reports_changes_and_the_configuration_test_of_nginx(web, unchanged):
    done = web.reconfigure("--check", "--diff", nginx_login_burst=9)
    assert done.rc == 0 and done.changed == 1
    assert "+ limit_req zone=login_attempts burst=9 nodelay;" in done.flat
    done = web.reconfigure("--check", nginx_tls_ciphers=["NONSENSE"])
    assert "nginx would reject this configuration" in done.flat


def test_a_change_reloads_without_cutting_a_request_off(web):
    before = master(web)
    web.ok(
        "systemd-run --quiet --collect --unit=slow sh -c 'curl -sk --max-time 60 -o /root/slow.body"
        ' -w %{http_code} "https://127.0.0.1/slow?seconds=15" >/root/slow.code\''
    )
    done = web.reconfigure(nginx_login_burst=5)
    assert done.rc == 0 and done.changed == 1, done.out
    for _ in range(100):
        if web.run("systemctl is-active --quiet slow").rc != 0:
            break
        time.sleep(0.2)
    assert web.ok("cat /root/slow.code") == "200"
    assert master(web) == before, "reloaded, not restarted"


def test_drift_and_an_interrupted_run_are_repaired(web):
    # A manual edit.
    web.ok("echo '# mine' >>/etc/nginx/nginx.conf && ln -s /dev/null /etc/nginx/sites-enabled/default")
    assert web.reconfigure().changed == 1
    assert web.run("test -L /etc/nginx/sites-enabled/default").rc == 1
    # The files are right, but nginx still runs the ones before: killed between swap and reload.
    marker = "/etc/nginx/snippets/shiftmaster-marker.conf"
    web.ok(
        f"cp -p {marker} /root/marker && echo 'return 200 \"earlier\\n\";' >{marker}"
        f" && systemctl reload nginx && sleep 1 && cp -p /root/marker {marker}"
    )
    assert web.ok("curl -sf http://127.0.0.1:8081/config") == "earlier\n"
    assert web.reconfigure().changed == 1


def test_a_renewed_certificate_is_loaded(web):
    web.ok(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=shift.test -addext"
        " subjectAltName=DNS:shift.test -keyout /etc/ssl/private/shiftmaster.key"
        " -out /etc/ssl/certs/shiftmaster.crt"
    )
    wanted = web.ok("openssl x509 -in /etc/ssl/certs/shiftmaster.crt -noout -serial")
    served = "openssl s_client -connect 127.0.0.1:443 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    assert web.ok(served) != wanted
    assert web.reconfigure().changed == 1
    assert web.ok(served) == wanted
    assert web.reconfigure().changed == 0


def test_workers_join_a_new_group(web):
    web.ok("getent group extra || groupadd extra")
    done = web.converge(nginx_extra_groups=["shiftmaster", "extra", "not-there"])
    assert done.rc == 0, done.out
    assert "extra" in web.ok("ps -o supgrp= -p $(pgrep -u www-data nginx | tail -n 1)")


def test_a_stopped_nginx_is_started(web):
    web.ok("systemctl stop nginx")
    assert web.reconfigure().rc == 0
    assert web.get("/").status == 200


def test_a_post_is_sent_to_only_one_of_several_servers(web):
    """Both take the request and die without a response: was it carried out? A GET may be repeated, a POST never."""
    web.ok("systemd-run --quiet --collect --unit=cutter python3 /root/cutter.py; sleep 1")
    web.ok("rm -f /etc/nginx/shiftmaster-servers.conf")
    done = web.reconfigure(nginx_upstream_servers=["127.0.0.1:8991", "127.0.0.1:8992"])
    assert done.rc == 0, done.out
    requested = {}
    for method in ("GET", "POST"):
        web.ok("rm -f /root/asked")
        assert web.get("/save", "-X", method, "-d", "value=1").status == 502
        requested[method] = web.ok("cat /root/asked").split()
    # The first is dead: nothing was sent, so the second may have even a POST.
    web.ok("systemctl stop cutter")
    # An added server gets no request before a release is on it; so neither of the two may be known.
    assert web.reconfigure().rc == 0
    web.ok("rm /etc/nginx/shiftmaster-servers.conf")
    done = web.reconfigure(nginx_upstream_servers=["127.0.0.1:8991", "127.0.0.1:8000"])
    assert done.rc == 0, done.out
    responses = [web.get("/login/", "-d", "password=secret", source="127.0.0.9").status for _ in range(4)]
    assert web.reconfigure().rc == 0
    assert requested == {"GET": ["GET", "GET"], "POST": ["POST"]}
    assert responses == [302] * 4


def test_unknown_names_can_be_served_and_the_policy_enforced(web):
    address = web.ok("hostname -I").split()[0]
    done = web.reconfigure(
        nginx_refuse_unknown_hosts=False, nginx_header_content_security_policy_enforced=True, nginx_server_names=[]
    )
    other = web.run(f"curl -skI --resolve other.test:443:{address} https://other.test/")
    plain = [web.get("/", url=url).status for url in ("http://shift.test", "http://shift.test:443")]
    assert web.reconfigure().rc == 0
    assert done.rc == 0, done.out
    assert other.rc == 0 and re.search(r"(?mi)^content-security-policy: default-src 'self';", other.stdout), (
        other.stdout
    )
    assert plain == [400, 400], "without a name of the site there is nothing to redirect to"


def test_root_does_not_use_a_directory_of_another_user(web, unchanged):
    """A user who can write to the directory puts a link in place of root's file."""
    web.ok(
        "install -d -o www-data /srv/theirs && install -d -m 0700 /root/victim && rm -rf /srv/theirs/*"
        " && ln -s /root/victim /srv/theirs/maintenance && ln -s /root/victim/log /srv/theirs/access.log"
    )
    for wrong in (
        {"nginx_maintenance_dir": "/srv/theirs/maintenance"},
        {"nginx_maintenance_dir": "/srv/theirs/maintenance/below"},
        {"nginx_access_log_path": "/srv/theirs/access.log"},
        {"nginx_access_log_path": "/srv/theirs/other.log"},
    ):
        done = web.reconfigure(**wrong)
        assert done.rc != 0 and done.changed == 0, (wrong, done.out)
        assert "/srv/theirs" in done.flat
    assert web.ok("stat -c %a /root/victim; ls /root/victim; ls /srv/theirs").split() == [
        "700",
        "access.log",
        "maintenance",
    ]


def test_a_limit_that_leaves_no_room_is_rejected(web, unchanged):
    done = web.reconfigure(nginx_requests_per_address=9000)
    assert done.rc != 0 and done.changed == 0 and "nginx_requests_per_address" in done.flat


def test_clients_of_a_trusted_proxy_are_distinguished(web):
    """One proxy in front, from which everything comes: the address that it names is the one that is counted."""
    try:
        done = web.reconfigure(nginx_trusted_proxies=["127.0.0.3/32"], nginx_requests_per_address=1)
        assert done.rc == 0, done.out
        web.ok(
            "systemd-run --quiet --collect --unit=held curl -sk --max-time 30 --interface 127.0.0.3"
            " -H 'X-Forwarded-For: 192.0.2.7' --resolve shift.test:443:127.0.0.1 'https://shift.test/slow?seconds=8'"
        )
        time.sleep(1)
        seen = [
            web.get("/", "-H", f"X-Forwarded-For: {client}", source="127.0.0.3").status
            for client in ("192.0.2.7", "192.0.2.8")
        ]
    finally:
        web.run("systemctl stop held")
        assert web.reconfigure().rc == 0
    assert seen == [429, 200]
