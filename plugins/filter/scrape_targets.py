"""Filter `scrape_targets`."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: scrape_targets
short_description: Hosts as targets of Prometheus
description:
  - One target for each host, with the labels that every target of this repository has. C(instance) is the host's name,
    without a port, so that alerts about one host meet, whichever exporter they come from.
positional: addresses, port
options:
  _input:
    description: Names of hosts.
    type: list
    elements: str
    required: true
  addresses:
    description: Each host's address; an IPv6 address without brackets.
    type: dict
    required: true
  port:
    description: The exporter's port; without one the address alone is the target, as a probe by ICMP has it.
    type: int
  env:
    description: Value of the label C(env).
    type: str
    default: ""
  functions:
    description: The hosts of each function. The label C(role) is a host's functions, in this order, with commas.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show them
  ansible.builtin.debug:
    msg: "{{ ['app1'] | scrape_targets({'app1': '192.0.2.11'}, 9100, env='production', functions={'app': ['app1']}) }}"
"""

RETURN = r"""
_value:
  description: address and labels (env, instance, role) of each host, in the order of the input.
  type: list
  elements: dict
"""

from ansible.errors import AnsibleFilterError


def scrape_targets(hosts, addresses, port=None, env="", functions=None):
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
