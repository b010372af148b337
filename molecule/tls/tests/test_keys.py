"""Readers of each private key, for each source of a certificate, and a host with earlier modes."""

from __future__ import annotations

import json
from pathlib import Path

import private_keys

SITE = "/etc/ssl/private/shiftmaster.key"
INTERNAL = "/etc/ssl/shiftmaster/host.key"


def readers(host):
    code = Path(private_keys.__file__).read_text(encoding="utf-8")
    return json.loads(host.check_output(f"python3 - <<'END'\n{code}\nEND\n"))


def test_the_sites_key_belongs_to_root_and_the_hosts_key_to_its_services(host):
    host.check_output("getent passwd serving || useradd --system --no-create-home --groups ssl-cert serving")
    found = readers(host)
    assert found.pop(INTERNAL) == ["serving"]
    # Files that certbot keeps, too.
    assert SITE in found and {path: names for path, names in found.items() if names} == {}


def test_a_host_with_earlier_modes_is_corrected_without_a_reload(host, site):
    host.check_output(f"chgrp ssl-cert {SITE} && chmod 0640 {SITE} && chmod 0644 {INTERNAL}")
    before = (site.served(), site.master(), site.files())
    code, output = site.run()
    assert code == 0, output
    assert host.check_output(f"stat -c %a:%U:%G {SITE} {INTERNAL}").split() == ["600:root:root", "640:root:ssl-cert"]
    assert (site.served(), site.master(), site.files()) == before
    code, output = site.run()
    assert code == 0 and "changed=0" in output, output
