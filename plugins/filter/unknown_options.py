"""Filter `unknown_options`."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: unknown_options
short_description: Options that a product of this major version does not have
description:
  - Elasticsearch, Logstash, Kibana and Filebeat stop at an option that they do not know, and so does a service that was
    running until it was restarted for the new configuration. Here such an option is refused before.
positional: known, gone
options:
  _input:
    description: The settings, nested or with dots.
    type: dict
    required: true
  known:
    description:
      - Names of options, as patterns of a shell. One that ends with a point and a star allows whatever is below.
    type: list
    elements: str
    required: true
  gone:
    description: Options of earlier versions, and what is to be written for them.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show what would stop Logstash
  ansible.builtin.debug:
    msg: "{{ {'http.port': 9600} | unknown_options(['api.http.*'], {'http.port': 'api.http.port'}) }}"
"""

RETURN = r"""
_value:
  description: A sentence for each option that is not known.
  type: list
  elements: str
"""

import difflib
import fnmatch


def names(settings, prefix=""):
    """Yield the full name of each value; a mapping without anything in it is one."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from names(value, name + ".")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for item in value:
                yield from names(item, name + ".")
        else:
            yield name


def unknown_options(settings, known, gone=None):
    found = []
    for name in dict.fromkeys(names(settings)):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in known):
            continue
        there = next((old for old in gone or {} if fnmatch.fnmatchcase(name, old)), None)
        if there is not None:
            found.append(f"{name} is gone: {gone[there]}")
            continue
        near = difflib.get_close_matches(name, [pattern for pattern in known if "*" not in pattern], n=1, cutoff=0.8)
        found.append(f"there is no option {name}" + (f" (did you mean {near[0]}?)" if near else ""))
    return found


class FilterModule:
    def filters(self):
        return {"unknown_options": unknown_options}
