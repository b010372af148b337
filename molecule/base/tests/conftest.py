"""Shared by the tests of this scenario: the host's address, and runs that come by ssh."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support import docker, play

KEY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "id"


@pytest.fixture
def address(host):
    return docker("inspect", "--format", "{{ .NetworkSettings.IPAddress }}", host.backend.get_hostname())


@pytest.fixture
def over_ssh(host, address, tmp_path):
    """Runs a playbook over real ssh with other variables; gives its exit code and output."""
    public = KEY.with_suffix(".pub").read_text()
    host.check_output(f"install -d -m 0700 /root/.ssh && echo '{public}' >/root/.ssh/authorized_keys")
    host.check_output(
        "systemctl start ssh; [ ! -e /etc/nftables.conf ] || cp -p /etc/nftables.conf /root/nftables.conf"
    )
    host_key = host.check_output("cat /etc/ssh/ssh_host_ed25519_key.pub").split()
    (tmp_path / "known_hosts").write_text(f"{address} {host_key[0]} {host_key[1]}\n")
    (tmp_path / "inventory.json").write_text(
        json.dumps(
            {
                "all": {
                    "hosts": {
                        host.backend.get_hostname(): {
                            "ansible_host": address,
                            "ansible_user": "root",
                            "ansible_connection": "ssh",
                            "ansible_ssh_private_key_file": str(KEY),
                            "ansible_python_interpreter": "/usr/bin/python3",
                            "ansible_ssh_common_args": f"-o UserKnownHostsFile={tmp_path}/known_hosts"
                            " -o HostKeyAlgorithms=ssh-ed25519",
                        }
                    }
                }
            }
        )
    )

    def run(playbook="lockout.yml", *inventories, **variables):
        words = [word for one in (*inventories, tmp_path / "inventory.json") for word in ("-i", str(one))]
        return play(host.backend.get_hostname(), f"molecule/base/files/{playbook}", *words, **variables)

    yield run
    host.check_output("rm -rf /root/.ssh")
    host.check_output(
        "[ ! -e /root/nftables.conf ] || { cp -p /root/nftables.conf /etc/nftables.conf && nft -f /etc/nftables.conf; }"
    )
