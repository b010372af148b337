#!/usr/bin/python
# What of a host still runs what an upgrade has replaced.
from __future__ import annotations

DOCUMENTATION = r"""
---
module: shiftmaster_outdated
short_description: Find services that still run programs or libraries which were replaced, and whether a reboot is due
description:
  - Reads what each process has mapped. A program or library that was replaced on disk is used on from the deleted file
    until the process ends; an upgrade of packages has come into effect when there is no such process any more.
  - It reads only.
attributes:
  check_mode:
    support: full
    description: It reads only.
  diff_mode:
    support: none
    description: It changes nothing.
"""

EXAMPLES = r"""
- name: Find what has to be restarted
  shiftmaster_outdated:
"""

RETURN = r"""
units:
  description: Services with such a process, without logins and without jobs, which end by themselves.
  returned: always
  type: list
  elements: str
init: {description: Whether systemd itself is one of them., returned: always, type: bool}
sessions: {description: How many such processes belong to logins., returned: always, type: int}
reboot: {description: Why a reboot is due., returned: always, type: list, elements: str}
"""

import os
import re
import subprocess

from ansible.module_utils.basic import AnsibleModule

# What a package may replace. Files that programs delete themselves, shared memory and the like are elsewhere.
REPLACED = re.compile(r"^/(usr|lib|lib64|bin|sbin|opt)/.* \(deleted\)$")
# What packages leave that need a reboot; its .pkgs names them.
REBOOT_FILE = "/run/reboot-required"
# Nothing can restart it beneath those who talk over it.
REBOOT_UNITS = ("dbus.service", "dbus-broker.service")


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""  # The process has ended, or it is one of the kernel's.


def outdated(proc, pid):
    """Whether a process uses a program or library that was replaced."""
    try:
        program = os.readlink(os.path.join(proc, pid, "exe"))
    except OSError:
        return False
    if REPLACED.match(program):
        return True
    try:
        # Line by line: a process chooses how many there are, and how long.
        with open(os.path.join(proc, pid, "maps"), encoding="utf-8", errors="replace") as stream:
            fields = (line.rstrip("\n").split(None, 5) for line in stream)
            return any(len(one) == 6 and "x" in one[1] and REPLACED.match(one[5]) for one in fields)
    except OSError:
        return False


def unit_of(cgroup):
    """The service, scope of init, or "" for what belongs to a login or to nobody, of a /proc/PID/cgroup."""
    for line in cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "name=systemd" not in controllers:
            continue
        for part in path.split("/"):
            if part == "init.scope":
                return part
            if part.endswith(".service"):
                return "" if part.startswith("user@") else part
    return ""


def jobs(units):
    """Those of the units that come to an end, as a backup and a scheduled task do: a restart would begin them again."""
    command = ["systemctl", "show", "--property=Id,Type,Transient", "--", *units]
    try:
        shown = subprocess.run(command, check=False, timeout=60, stdout=subprocess.PIPE).stdout.decode()
    except (OSError, subprocess.TimeoutExpired):
        return set()
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.split("\n\n") if block.strip()]
    return {one["Id"] for one in blocks if one.get("Type") == "oneshot" or one.get("Transient") == "yes"}


def inspect(proc, reboot_file):
    units, sessions = set(), 0
    for pid in os.listdir(proc):
        if pid.isdigit() and outdated(proc, pid):
            unit = unit_of(read(os.path.join(proc, pid, "cgroup")))
            # Where systemd keeps no sessions, logins (also this run's own) are in ssh's unit; its restart spares them.
            if unit == "ssh.service" and "[listener]" not in read(os.path.join(proc, pid, "cmdline")):
                unit = ""
            units.add(unit)
            sessions += not unit
    reboot = ["%s is there" % reboot_file] if os.path.exists(reboot_file) else []
    packages = sorted(set(read(reboot_file + ".pkgs").split()))
    if reboot and packages:
        reboot = ["%s wants it" % name for name in packages]
    reboot += ["%s runs on in its earlier version" % name for name in REBOOT_UNITS if name in units]
    services = units - {"", "init.scope"} - set(REBOOT_UNITS)
    return {
        "changed": False,
        "units": sorted(services - jobs(sorted(services))) if services else [],
        "init": "init.scope" in units,
        "sessions": sessions,
        "reboot": reboot,
    }


def main():
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(**inspect("/proc", REBOOT_FILE))


if __name__ == "__main__":
    main()
