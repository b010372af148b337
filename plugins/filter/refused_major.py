"""Filter `refused_major`."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: refused_major
short_description: Why a version of a package may not be installed, by its major version
description:
  - A configuration is for one major version. A version of another one is never installed with it, nor as the first.
  - An update to another major version has to be allowed; from what is installed the epoch is left out.
author: ShiftMaster operations (@shiftmaster-operations)
positional: installed, version, allow_update, one_step
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
    description: The version that is asked for; empty asks for the newest of that major version.
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
"""

EXAMPLES = r"""
- name: Say why not
  ansible.builtin.debug:
    msg: "{{ 9 | refused_major('1:8.19.2-1', '1:9.2.1-1') }}"
"""

RETURN = r"""
_value:
  description: A sentence, empty where nothing is against it.
  type: str
"""


def major_of(version):
    """Return the major version of a package's version; 0 of none."""
    return int(str(version).rpartition(":")[2].partition(".")[0] or 0)


def refused_major(major, installed, version, allow_update=False, one_step=False):
    major, there = int(major), major_of(installed)
    if version and major_of(version) != major:
        return "version %s is asked for, and the configuration is for %d" % (version, major)
    if there in (0, major):
        return ""
    if not allow_update:
        return "version %s is installed and %d is asked for" % (installed, major)
    if one_step and there != major - 1:
        return "version %s is installed, from which no update leads to %d" % (installed, major)
    return ""


class FilterModule:
    def filters(self):
        return {"refused_major": refused_major}
