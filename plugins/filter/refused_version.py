"""Filter `refused_version`."""

from __future__ import annotations

import re

DOCUMENTATION = r"""
---
name: refused_version
short_description: Why a version of a package may not be installed, by what is installed and what the settings are for
description:
  - A configuration is for one major version. A version of another one is never installed with it, nor as the first.
  - An update to another major version has to be allowed. Nothing goes back to an older version. Epochs are left out.
positional: installed, version, allow_update, one_step, advice
options:
  _input:
    description: The major version that the configuration is for.
    type: int
    required: true
  installed:
    description: The version that is installed; empty where none is.
    type: str
    required: true
  version:
    description: The version that is requested; empty requests the newest of that major version.
    type: str
    required: true
  allow_update:
    description: Whether an installed other major version may be changed to this one.
    type: bool
    default: false
  one_step:
    description: Whether it may be changed from the one before alone.
    type: bool
    default: false
  advice:
    description: What to do for another major version.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Say why not
  ansible.builtin.debug:
    msg: "{{ 9 | refused_version('1:8.19.2-1', '1:9.2.1-1') }}"
"""

RETURN = r"""
_value:
  description: A sentence; none where nothing is against it.
  type: list
  elements: str
"""


def numbers(version):
    """Return the numbers of a package's version, the major one first, without epoch and revision; [] of none."""
    return [int(number) for number in re.match(r"[0-9.]*", str(version).rpartition(":")[2])[0].split(".") if number]


def refused_version(major, installed, version, allow_update=False, one_step=False, advice=""):
    wanted, there = numbers(version) or [int(major)], numbers(installed)
    if wanted[0] != int(major):
        problem = "version %s is requested, and the configuration is for %s" % (version, major)
    elif wanted < there[: len(wanted)]:
        return ["version %s is installed, from which nothing goes back to %s" % (installed, version or major)]
    elif not there or there[0] == wanted[0]:
        return []
    elif not allow_update:
        problem = "version %s is installed and %s is requested" % (installed, major)
    elif one_step and there[0] != wanted[0] - 1:
        problem = "version %s is installed, from which no update leads to %s" % (installed, major)
    else:
        return []
    return [problem + (". Another major version: %s" % advice if advice else "")]


class FilterModule:
    def filters(self):
        return {"refused_version": refused_version}
