"""The own authorities: the site's certificate of the demo, and the one of each host."""

from __future__ import annotations

import stat

import pytest
import testinfra

INTERNAL = "/etc/ssl/shiftmaster"
SITE = "/etc/ssl/certs/shiftmaster"


ON_BOOKWORM = pytest.mark.on("tls-bookworm")


@ON_BOOKWORM
def test_a_browser_that_trusts_the_demos_authority_accepts_the_site(host):
    for name in ("shift.test", "www.shift.test"):
        host.check_output(
            f"openssl s_client -connect 127.0.0.1:443 -servername {name} -verify_hostname {name} -verify_return_error"
            f" -CAfile {INTERNAL}/site-ca.crt -no-CApath </dev/null"
        )


def test_each_host_can_prove_itself_to_the_others(host):
    host.check_output(f"openssl verify -purpose sslserver -CAfile {INTERNAL}/ca.crt {INTERNAL}/host.crt")
    host.check_output(f"openssl verify -purpose sslclient -CAfile {INTERNAL}/ca.crt {INTERNAL}/host.crt")
    name = host.backend.get_hostname()
    host.check_output(f"openssl verify -verify_hostname {name} -CAfile {INTERNAL}/ca.crt {INTERNAL}/host.crt")
    host.check_output(f"openssl verify -verify_ip 127.0.0.1 -CAfile {INTERNAL}/ca.crt {INTERNAL}/host.crt")
    assert host.check_output(f"stat -c %a:%U:%G {INTERNAL}/host.key") == "640:root:ssl-cert"
    assert host.file("/root/internal-reloaded").exists


@ON_BOOKWORM
def test_mutual_tls_needs_a_certificate_of_the_authority(host):
    host.check_output(
        f"systemd-run --unit=mutual openssl s_server -accept 9443 -cert {INTERNAL}/host.crt -key {INTERNAL}/host.key"
        f" -CAfile {INTERNAL}/ca.crt -Verify 1 -verify_return_error -www"
    )
    client = f"curl -sS --max-time 5 --cacert {INTERNAL}/ca.crt https://localhost:9443/"
    try:
        host.run("apt-get install -y -q --no-install-recommends curl; sleep 1")
        assert host.run(client).rc != 0
        host.check_output(f"{client} --cert {INTERNAL}/host.crt --key {INTERNAL}/host.key")
        assert host.run(f"{client} --cert {SITE}.crt --key /etc/ssl/private/shiftmaster.key").rc != 0
    finally:
        host.run("systemctl stop mutual")


def test_the_only_authority_has_a_private_key_that_others_cannot_read(host, directory):
    assert (
        host.file(f"{INTERNAL}/ca.crt").content_string.strip() == (directory / "ca/internal/ca.crt").read_text().strip()
    )
    # The controller has the authority and nothing else; no host's key was ever here.
    assert sorted(path.name for path in (directory / "ca/internal").iterdir()) == ["ca.crt", "ca.key"]
    assert stat.S_IMODE((directory / "ca/internal").stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "ca/internal/ca.key").stat().st_mode) == 0o600
    assert host.run("find /etc /root /var -name 'ca.key' -not -path '/root/acme/*' | grep .").rc == 1


def test_services_read_what_a_killed_run_has_issued(host, site):
    host.check_output("rm /root/internal-reloaded && touch /run/shiftmaster-tls-internal.unread")
    code, output = site.run()
    assert code == 0 and "was left by an earlier run" in output, output
    assert host.file("/root/internal-reloaded").exists
    code, output = site.run()
    assert code == 0 and "changed=0" in output, output


@ON_BOOKWORM
def test_a_certificate_near_its_expiry_is_reissued_and_loaded(host, site):
    before, authority, master = site.served(), site.file(path=f"{INTERNAL}/site-ca.crt"), site.master()
    code, output = site.run(tls_renew_days=500, tls_internal_enabled=False)
    assert code == 0, output
    assert "its end is near" in output
    assert site.served() == site.file() != before
    assert site.file(path=f"{INTERNAL}/site-ca.crt") == authority
    assert site.master() == master
    code, output = site.run()
    assert code == 0 and "changed=0" in output, output


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (f"rm {INTERNAL}/host.crt", "there is none"),
        (f"openssl ecparam -genkey -name prime256v1 -out {INTERNAL}/host.key", "its key is another one"),
        (f"cp {INTERNAL}/site-ca.crt {INTERNAL}/ca.crt", "its authority is another one"),
    ],
)
@ON_BOOKWORM
def test_a_wrong_certificate_is_found_and_replaced(host, site, damage, reason):
    host.check_output(damage)
    code, output = site.run()
    assert code == 0, output
    assert reason in output, output
    host.check_output(f"openssl verify -CAfile {INTERNAL}/ca.crt {INTERNAL}/host.crt")
    assert host.check_output(f"stat -c %a:%U:%G {INTERNAL}/host.key") == "640:root:ssl-cert"


@ON_BOOKWORM
def test_a_host_may_keep_the_authority(host, site):
    """Under AWX the controller is deleted after each run."""
    kept = {"tls_ca_host": "tls-provided", "tls_internal_ca_dir": "/root/internal-ca", "tls_mode": "none"}
    code, output = site.run("-l", "tls-bookworm", **kept)
    assert code == 0, output
    backup_server = testinfra.get_host("docker://tls-provided")
    assert (
        host.file(f"{INTERNAL}/ca.crt").content_string == backup_server.file("/root/internal-ca/ca.crt").content_string
    )
    assert backup_server.check_output("stat -c %a:%U /root/internal-ca/ca.key") == "600:root"
    host.check_output(f"openssl verify -CAfile {INTERNAL}/ca.crt {INTERNAL}/host.crt")
    code, output = site.run("-l", "tls-bookworm", **kept)
    assert code == 0 and "changed=0" in output, output
    backup_server.check_output("rm -r /root/internal-ca")
    code, output = site.run()  # and back
    assert code == 0, output
