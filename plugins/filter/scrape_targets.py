"""Filter `scrape_targets`."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError


def scrape_targets(hosts, addresses, port=None, env="", functions=None):
    """Return hosts as targets of Prometheus: address and labels (env, instance, role) of each, in the order given.

    The label instance is the host's name without a port, so that alerts about one host meet, whichever exporter they
    come from. role: the functions that have the host, with commas. Without a port the address alone is the target.
    """
    targets = []
    for host in hosts:
        address = addresses.get(host)
        if not address:
            raise AnsibleFilterError(f"scrape_targets: the address of {host} is not known")
        if port is not None:
            address = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        role = ",".join(name for name, members in (functions or {}).items() if host in members)
        targets.append({"address": address, "labels": {"env": env, "instance": host, "role": role}})
    return targets


class FilterModule:
    def filters(self):
        return {"scrape_targets": scrape_targets}
