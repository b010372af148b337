"""A certificate by ACME, from a real server that fetches the challenge from nginx."""

from __future__ import annotations

import pytest

HOSTS = ["tls-acme"]
RENEWAL = "/etc/letsencrypt/renewal/shiftmaster.conf"


@pytest.fixture
def due(host):
    """The certificate counts as near its end, for certbot."""
    host.check_output(f"cp -p {RENEWAL} /root/renewal && sed -i '1i renew_before_expiry = 10 years' {RENEWAL}")
    yield
    host.check_output(f"sed -i '/^renew_before_expiry/d' {RENEWAL}")


def test_nginx_uses_the_certificate_of_the_acme_server(host, site):
    assert "Pebble Intermediate CA" in site.served("-issuer")
    assert "DNS:shift.test, DNS:www.shift.test" in site.served("-ext subjectAltName")
    assert "id-ecPublicKey" in site.served("-text")
    assert site.served() == site.file()
    # with the chain, or browsers would not trust it
    assert int(host.check_output("grep -c BEGIN /etc/ssl/certs/shiftmaster.crt")) >= 2
    assert host.check_output("stat -c %a:%U:%G /etc/ssl/private/shiftmaster.key") == "600:root:root"


def test_debians_timer_renews_and_nginx_loads_the_new_certificate_without_a_restart(host, site, due):
    before, master = site.served(), site.master()
    host.check_output("systemctl start certbot.service")  # what the timer starts
    assert site.served() != before
    assert site.served() == site.file()
    assert site.master() == master
    assert host.check_output("systemctl is-active certbot.timer") == "active"
    assert host.check_output("systemctl is-enabled certbot.timer") == "enabled"


def test_a_challenge_that_nginx_does_not_serve_leaves_the_old_certificate(host, site, due):
    before = site.files()
    host.check_output("sed -i s,/var/www/acme,/var/www/elsewhere, /etc/nginx/sites-enabled/default")
    host.check_output("systemctl reload nginx && sleep 1")
    try:
        assert host.run("systemctl start certbot.service").rc != 0
        assert site.files() == before
        # A first issue fails with a sentence.
        code, output = site.run(tls_acme_lineage="another")
        assert code != 0
        assert "gave no certificate for shift.test, www.shift.test" in output, output
        assert "port 80" in output
        assert site.files() == before
    finally:
        host.check_output("sed -i s,/var/www/elsewhere,/var/www/acme, /etc/nginx/sites-enabled/default")
        host.check_output("systemctl reload nginx; systemctl reset-failed; sleep 1")


def test_a_reload_that_does_not_take_effect_is_an_error(host, site):
    done = host.run(
        "cp /etc/ssl/certs/shiftmaster.crt /root/other.crt && openssl req -x509 -newkey ec -pkeyopt"
        " ec_paramgen_curve:P-256 -noenc -subj /CN=x -keyout /dev/null -out /root/other.crt 2>/dev/null;"
        " /usr/local/sbin/shiftmaster-tls reload --certificate /root/other.crt --key /x --group ssl-cert"
        " --unit nginx.service --command 'systemctl reload nginx.service' --address 127.0.0.1:443 --name shift.test"
        " --timeout 2 --unread /root/unread"
    )
    assert done.rc == 1
    assert "still serves another certificate for shift.test" in done.stderr


def test_other_names_get_another_certificate_at_once(host, site):
    code, output = site.run(tls_names=["shift.test"])
    assert code == 0, output
    assert "its names differ" in output
    assert "www.shift.test" not in site.served("-ext subjectAltName")
    code, output = site.run(tls_names=["shift.test"])
    assert code == 0 and "changed=0" in output, output


def test_a_later_change_of_mode_is_not_undone_by_a_renewal(host, site, directory, due):
    provided = directory / "provided"
    code, output = site.run(
        tls_mode="provided",
        tls_provided_certificate_src=str(provided / "good.crt"),
        tls_provided_key_src=str(provided / "good.key"),
        tls_provided_trusted_content=(provided / "root.crt").read_text(),
    )
    assert code == 0, output
    before = site.files()
    host.check_output("systemctl start certbot.service")
    assert site.files() == before
    assert "Intermediate" in site.served("-issuer") and "Pebble" not in site.served("-issuer")
    code, output = site.run()  # and back, to what certbot has
    assert code == 0, output
    assert "Pebble" in site.served("-issuer")
