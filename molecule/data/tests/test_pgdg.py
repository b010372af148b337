"""The PostgreSQL project's repository, by a stub on the host itself: the real one was not reached."""

from __future__ import annotations

import pytest

testinfra_hosts = ["ansible://data-fresh-trixie"]


@pytest.fixture(scope="module")
def keys(host):
    host.check_output("/root/make_repository trixie")
    return {name: host.file(f"/root/{name}.asc").content_string for name in ("right", "wrong")}


def variables(key):
    return {
        "postgresql_repository": "pgdg",
        "postgresql_pgdg_url": "file:///srv/pgdg",
        "postgresql_pgdg_key": key,
        "postgresql_tls_certificate_file": "/etc/ssl/certs/host.crt",
    }


def test_a_missing_key_is_refused(converge):
    done = converge("postgresql", **variables(""))
    assert done.rc != 0 and "postgresql_pgdg_key must hold the key" in done.line


def test_a_check_before_it_is_known_continues(host, converged, keys):
    converged("postgresql", "--check", "--diff", **{**variables(keys["right"]), "postgresql_version": 16})
    assert not host.file("/etc/apt/sources.list.d/pgdg.sources").exists


def test_a_repository_that_another_key_signed_is_refused(host, converge, keys):
    done = converge("postgresql", **variables(keys["wrong"]))
    assert done.rc != 0 and "apt cannot use the repository" in done.line
    assert not host.file("/etc/apt/sources.list.d/pgdg.sources").exists
    assert not host.package("postgresql-17").is_installed


def test_its_package_is_installed_with_its_key(host, converged, keys):
    converged("postgresql", **variables(keys["right"]))
    assert host.package("postgresql-17").version == "17.99-1.pgdg13+1"
    assert host.service("postgresql@17-main").is_running
    assert host.run("runuser -u postgres -- psql -XAtc 'SHOW data_checksums'").stdout.strip() == "on"
    assert converged("postgresql", **variables(keys["right"])).changed == 0
