"""Filter `refused_version`."""

from __future__ import annotations

import re


def numbers(version):
    """Return the numbers of a package's version, the major one first, without epoch and revision; [] of none."""
    return [int(number) for number in re.match(r"[0-9.]*", str(version).rpartition(":")[2])[0].split(".") if number]


def refused_version(major, installed, version, allow_update=False, one_step=False, advice=""):
    """Return why a version of a package may not be installed: a sentence in a list, or an empty list.

    A configuration is for one major version. A version of another one is never installed with it, nor as the first. An
    update to another major version has to be allowed (one_step: from the one before alone; advice: what to do for it).
    Nothing goes back to an older version. Epochs are left out. version: empty requests the newest of the major one.
    """
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
