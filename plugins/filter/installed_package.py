"""Filter `installed_package`."""

from __future__ import annotations

import fnmatch

DOCUMENTATION = r"""
---
name: installed_package
short_description: What dpkg reports about a package that is wanted in some version
description:
  - What a killed run has left half installed, and what lacks a package that comes along, is missing.
positional: lines
options:
  _input:
    description: >-
      The package: name, version (as apt takes it, with * where any will do) and, where others come along, with (their
      names).
    type: dict
    required: true
  lines:
    description: >-
      Of each package that dpkg knows C(package want status version), as C(dpkg-query --show) prints it with
      C(${Package} ${db:Status-Want} ${db:Status-Status} ${Version}).
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show that it is there, in another version
  ansible.builtin.debug:
    msg: "{{ {'name': 'kibana', 'version': '9.2.1'} | installed_package(['kibana hold installed 9.2.0']) }}"
"""

RETURN = r"""
_value:
  description: >-
    The package and, besides, installed (its version, empty where it is not there), held (whether dpkg holds it) and
    missing (whether it has to be installed).
  type: dict
"""


def installed_package(package, lines):
    # A package that dpkg has only heard of has no version.
    known = {name: rest for name, *rest in (line.split() for line in lines if line.strip())}
    want, status, *version = known.get(package["name"], ["-", "not-installed"])
    installed = version[0] if version and status not in ("not-installed", "config-files") else ""
    complete = all(known.get(name, ["", ""])[1] == "installed" for name in [package["name"], *package.get("with", [])])
    return dict(
        package,
        installed=installed,
        held=want == "hold",
        missing=not complete or not fnmatch.fnmatchcase(installed, package["version"].replace("[", "[[]")),
    )


class FilterModule:
    def filters(self):
        return {"installed_package": installed_package}
