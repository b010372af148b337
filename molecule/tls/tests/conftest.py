"""Query the certificate of a host, and run the role on it with other variables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import play


class Site:
    def __init__(self, host):
        self.host = host
        self.name = host.backend.get_hostname()

    def served(self, field="-serial", name="shift.test"):
        return self.host.check_output(
            f"openssl s_client -connect 127.0.0.1:443 -servername {name} </dev/null 2>/dev/null"
            f" | openssl x509 -noout {field} -nameopt multiline"
        )

    def file(self, field="-serial", path="/etc/ssl/certs/shiftmaster.crt"):
        return self.host.check_output(f"openssl x509 -noout {field} -in {path}")

    def files(self):
        """State that must not change when a run is rejected."""
        return self.host.check_output("sha256sum /etc/ssl/certs/shiftmaster.crt /etc/ssl/private/shiftmaster.key")

    def master(self):
        return self.host.check_output("systemctl show --property=MainPID --value nginx")

    def run(self, *options, **variables):
        """Exit code and output of a run of the role on this host."""
        words = ("-i", "molecule/tls/inventory", *options)
        code, output = play(self.name, "molecule/tls/files/role.yml", *words, timeout=300, **variables)
        # Ansible breaks long lines.
        return code, " ".join(output.split())


@pytest.fixture(autouse=True)
def on_its_hosts(request, host):
    """A module with HOSTS, and a test with the marker `on`, are for these hosts only."""
    mark = request.node.get_closest_marker("on")
    wanted = mark.args if mark else getattr(request.module, "HOSTS", None)
    if wanted and host.backend.get_hostname() not in wanted:
        pytest.skip(f"on {', '.join(wanted)} only")


def pytest_configure(config):
    config.addinivalue_line("markers", "on(host...): run on these hosts of the scenario only")


@pytest.fixture
def site(host):
    return Site(host)


@pytest.fixture
def directory():
    return Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
