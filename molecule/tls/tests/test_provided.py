"""The site's own certificate: a wrong one is refused before anything is replaced."""

from __future__ import annotations

import json

import pytest

HOSTS = ["tls-provided"]


def test_nginx_uses_the_provided_certificate_with_its_chain(host, site, directory):
    good = (directory / "provided/good.crt").read_text()
    assert host.file("/etc/ssl/certs/shiftmaster.crt").content_string.strip() == good.strip()
    assert site.served() == site.file()
    assert host.check_output("stat -c %a:%U:%G /etc/ssl/private/shiftmaster.key") == "600:root:root"


def test_the_report_names_the_end_of_each_certificate(host, site):
    report = json.loads(host.file("/root/expiry.json").content_string)
    assert [entry["path"] for entry in report] == [
        "/etc/ssl/certs/shiftmaster.crt",
        "/etc/ssl/shiftmaster/host.crt",
        "/etc/ssl/shiftmaster/ca.crt",
    ]
    assert report[0]["names"] == ["DNS:shift.test", "DNS:*.shift.test"]
    code, output = site.run()
    assert code == 0 and "changed=0" in output, output
    assert "WARNING: /etc/ssl/certs/shiftmaster.crt on tls-provided is valid for 19 more days only" in output


@pytest.mark.parametrize(
    ("certificate", "key", "reason"),
    [
        ("expired.crt", "expired.key", "expired.crt ended on 2021-01-01"),
        ("renewed.crt", "good.key", "the provided key is not the key of the first certificate"),
        ("other-name.crt", "other-name.key", "does not cover shift.test, www.shift.test but only"),
        ("disordered.crt", "good.key", "are not in order"),
        ("no-intermediate.crt", "good.key", "does not lead to an authority that tls-provided trusts"),
        ("good.crt", "passphrase.key", "the provided key has a passphrase"),
        ("ca/conf", "good.key", "is not in PEM form"),
    ],
)
def test_a_wrong_one_is_refused_and_the_old_one_stays(site, directory, certificate, key, reason):
    before = site.files()
    code, output = site.run(
        tls_provided_certificate_src=str(directory / "provided" / certificate),
        tls_provided_key_content=(directory / "provided" / key).read_text(),
    )
    assert code != 0
    assert reason in output, output
    assert site.files() == before


def test_an_untrusted_authority_is_rejected(site, directory):
    code, output = site.run(tls_provided_trusted_content=(directory / "provided/other.crt").read_text())
    assert code != 0
    assert "does not lead to an authority" in output, output


def test_a_new_one_is_served_without_a_restart_and_its_key_is_never_shown(site, directory):
    before, master = site.served(), site.master()
    key = (directory / "provided/renewed.key").read_text()
    code, output = site.run(
        "-vvv",
        "--diff",
        tls_provided_certificate_src=str(directory / "provided/renewed.crt"),
        tls_provided_key_content="",
        tls_provided_key_src=str(directory / "provided/renewed.key"),
    )
    assert code == 0, output
    assert site.served() != before
    assert site.master() == master
    assert "127.0.0.1:443 serves the certificate" in output
    for line in key.splitlines()[1:-1]:
        assert line not in output
    code, output = site.run()  # and back
    assert code == 0, output
