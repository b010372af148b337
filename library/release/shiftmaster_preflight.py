#!/usr/bin/python
# Everything about a host that can be known to fail before anything is changed on it, all at once.
from __future__ import annotations

DOCUMENTATION = r"""
---
module: shiftmaster_preflight
short_description: Find what would make a deployment fail on a host, all of it at once
description:
  - Looks at a host and changes nothing. Only Python's standard library is used, so that it works on a fresh host.
  - It never fails because of what it finds; the caller collects the problems of all hosts and reports them together.
  - A check is made only where its option is given. A check that cannot run on a host is in RV(notes), with the reason.
options:
  requested_at:
    description: The controller's time at the call, in seconds since the epoch. RV(facts) has it next to the host's
      C(time).
    type: float
    default: 0
  systems:
    description: The systems that this was verified on, as name and version, such as V(debian 13).
    type: list
    elements: str
    default: []
  allow_untested_os: {description: "Whether another system is no problem, but a note.", type: bool, default: false}
  disk:
    description: What must be free. Of a path that is not there yet, the nearest directory above it counts. Requirements
      on one file system is added up.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The directory that will be written to., type: path, required: true}
      minimum_mb: {description: Free space in MiB., type: int, default: 0}
      minimum_inodes: {description: How many files there must be room for., type: int, default: 0}
  directories:
    description: Directories that root will create, change the owner of, or remove from. In none of those above them may
      another user exchange an entry.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: The variable that names it., type: str, required: true}
      path: {description: The directory., type: path, required: true}
  ports:
    description: Ports that must be free, or be held by the program that is expected there.
    type: list
    elements: dict
    default: []
    suboptions:
      port: {description: The TCP port., type: int, required: true}
      expected: {description: Names of the programs that may listen there., type: list, elements: str, default: []}
  calendars:
    description: Times of systemd's timers, of systemd.time(7). A timer with an unknown one is never started.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: The setting that names it., type: str, required: true}
      calendar: {description: The time., type: str, required: true}
  interpreter:
    description: An interpreter of the host for which wheels are chosen; RV(facts) then contains in C(interpreter) what
      they are chosen by. Empty for none.
    type: str
    default: ""
  release:
    description: A path that is there once something is deployed; empty where nothing has to be.
    type: path
    default: ""
  root:
    description: The application's directory. RV(facts) then shows what is there of an earlier run, C(lockable) for the
      directory of the lock, C(locked) for a deploy's lock, C(page) for a maintenance page,
      C(releases), as M(shiftmaster_release) returns them, and C(data), whether C(database) and C(cache) of localhost
      are C(here) or C(forwarded) to another host.
    type: path
    default: ""
  media:
    description: Whether the host serves uploaded files. RV(facts) then has C(media), whether there are any in O(root).
    type: bool
    default: false
  packages:
    description: Whether dpkg must be in order, and apt not at work. RV(facts) then has the packages in C(installed).
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Does the same.
  diff_mode:
    support: none
    description: Changes nothing that could be shown.
"""

EXAMPLES = r"""
- name: Inspect the host before any change
  shiftmaster_preflight:
    systems: [debian 12, debian 13]
    allow_untested_os: "{{ allow_untested_os | default(false) | bool }}"
    disk:
      - {path: /var/www/shiftmaster, minimum_mb: 1500, minimum_inodes: 50000}
      - {path: /var/backups/shiftmaster, minimum_mb: 500}
    ports:
      - {port: 443, expected: [nginx]}
      - {port: 5432, expected: [postgres]}
    packages: true
  register: preflight
"""

RETURN = r"""
problems: {description: "What would fail the run, with an action.", returned: always, type: list, elements: str}
findings: {description: "The same in parts (check, problem, hint).", returned: always, type: list, elements: dict}
notes: {description: "Checks that could not run, and further notes.", returned: always, type: list, elements: str}
facts:
  description: What was seen, by check.
  returned: always
  type: dict
  sample: {system: debian 13, python: 3.13.5, init: systemd, time: 1780000000.4}
"""

import fcntl
import glob
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import time

from ansible.module_utils.shiftmaster.host import listeners
from ansible.module_utils.shiftmaster.host.quiet import PATH, TEXT, QuietModule, given, list_of
from ansible.module_utils.shiftmaster.host.safe_files import untrusted_parent
from ansible.module_utils.shiftmaster.host.system_paths import nearest
from ansible.module_utils.shiftmaster.release import releases
from ansible.module_utils.shiftmaster.release.layout import Layout
from ansible.module_utils.shiftmaster.release.state import State, StateError

PACKAGE_LOCKS = [
    "/var/" + path
    for path in ("lib/dpkg/lock-frontend", "lib/dpkg/lock", "lib/apt/lists/lock", "cache/apt/archives/lock")
]
OLDEST_PYTHON = "3.9"
# What a host knows of the one that it moves to or from (role move).
MOVE_FACT = "/etc/ansible/facts.d/shiftmaster_move.fact"
# Which servers start at boot; units that lead connections of localhost to a host of their own are role move's.
CLUSTERS = "/etc/postgresql/*/main/start.conf"
WANTED = "/etc/systemd/system/multi-user.target.wants/%s.service"
# For an apt that is at work, such as the unattended upgrade after a boot.
PACKAGES_SECONDS = 30
MIB = 1024 * 1024


class Report:
    """Collects what the checks find."""

    def __init__(self):
        self.findings, self.notes, self.facts = [], [], {}

    def problem(self, check, text, hint):
        self.findings.append({"check": check, "problem": text, "hint": hint})

    def note(self, text):
        self.notes.append(text)

    def result(self):
        return {
            "changed": False,
            "findings": self.findings,
            "notes": self.notes,
            "facts": self.facts,
            "problems": ["%s; %s" % (one["problem"], one["hint"]) for one in self.findings],
        }


def joined(words):
    """Return words as people list them."""
    words = list(words)
    return " and ".join([", ".join(words[:-1])] + words[-1:]) if len(words) > 1 else "".join(words)


# ------------------------------------------------------------------------------------------------------------- system


def os_release(text):
    """Return the assignments of an os-release file."""
    return {match.group(1): match.group(3) for match in re.finditer(r"(?m)^([A-Z_]+)=(['\"]?)(.*?)\2\s*$", text)}


def check_system(report, systems, allow_untested, text):
    release = os_release(text)
    found = ("%s %s" % (release.get("ID", "unknown"), release.get("VERSION_ID", ""))).strip()
    report.facts["system"] = found
    report.facts["system_name"] = release.get("PRETTY_NAME", found)
    if not systems or found.lower() in [one.lower() for one in systems]:
        return
    words = (report.facts["system_name"], ", ".join(systems))
    sentence = "%s is none of the systems that this was verified on (%s)" % words
    if allow_untested:
        report.note(sentence)
    else:
        report.problem("system", sentence, "set allow_untested_os=true to go on all the same")


def check_python(report, version, minimum=OLDEST_PYTHON):
    report.facts["python"] = version
    if [int(one) for one in re.findall(r"\d+", version)[:2]] < [int(one) for one in minimum.split(".")[:2]]:
        report.problem(
            "python",
            "the host's Python is %s, and %s is the oldest supported version" % (version, minimum),
            "install a newer python3, or set ansible_python_interpreter to one",
        )


# What wheels are chosen by: their tags, and the variables that the markers of requirements know.
WHEELS_ARE_CHOSEN_BY = """
import json, os, platform, sys, sysconfig
version = sys.implementation.version
full = "%d.%d.%d" % version[:3]
if version.releaselevel != "final":
    full += version.releaselevel[0] + str(version.serial)
threads = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
try:
    glibc = os.confstr("CS_GNU_LIBC_VERSION").split()[1]
except (AttributeError, ValueError, OSError, IndexError):
    glibc = ""
print(json.dumps({
    "abi": "cp%d%d%s" % (sys.version_info[0], sys.version_info[1], threads),
    "machine": sysconfig.get_platform().split("-", 1)[-1].replace("-", "_"),
    "glibc": glibc,
    "markers": {
        "implementation_name": sys.implementation.name,
        "implementation_version": full,
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "python_full_version": platform.python_version(),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "sys_platform": sys.platform,
    },
}))
"""


def check_interpreter(report, path):
    try:
        command = (path, "-I", "-c", WHEELS_ARE_CHOSEN_BY)
        output = subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=60)
        report.facts["interpreter"] = json.loads(output)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        report.problem(
            "interpreter",
            "%s, which wheels are to be chosen for, cannot be queried: %s" % (path, error),
            "install it there first, or set shiftmaster_python to one that is there",
        )


def check_systemd(report, first, running):
    report.facts["init"] = first
    if not (first == "systemd" and running):
        report.problem(
            "systemd",
            "the host's first process is %s, not systemd" % (first or "unknown"),
            "take a host that boots with systemd; a plain container does not",
        )


# ---------------------------------------------------------------------------------------------------- disk


def mount_of(path):
    path = os.path.realpath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def check_disk(report, wanted, statvfs=os.statvfs):
    """Sum the requirements for each file system and compare them with its free space."""
    by_mount = {}
    for entry in wanted:
        by_mount.setdefault(mount_of(nearest(entry["path"])), []).append(entry)
    report.facts["disk"] = []
    for mount, entries in sorted(by_mount.items()):
        disk = statvfs(mount)
        free, inodes = disk.f_bavail * disk.f_frsize // MIB, disk.f_favail
        report.facts["disk"].append({"mount": mount, "free_mb": free, "free_inodes": inodes})
        # A file system without a fixed number of inodes reports none.
        for key, have, unit in (("minimum_mb", free, "MiB"), ("minimum_inodes", inodes, "files"))[
            : 1 + (disk.f_files > 0)
        ]:
            need = sum(entry[key] for entry in entries)
            if have < need:
                words = (mount, have, unit, need, joined(entry["path"] for entry in entries if entry[key]))
                report.problem(
                    "disk",
                    "%s has room for %d %s, and %d are needed for %s" % words,
                    "free some (journalctl --vacuum-size, apt-get clean, old files), or make the disk larger",
                )


def check_directories(report, directories):
    """Find directories of root that another user could exchange for a link."""
    for entry in directories:
        parent = untrusted_parent(entry["path"])
        if parent:
            report.problem(
                "directories",
                "%s=%s: a user other than root can exchange it, since that user can write to %s"
                % (entry["name"], entry["path"], parent),
                "give %s to root with mode 0755, or name another directory" % parent,
            )


# --------------------------------------------------------------------------------------------------------------- ports


def foreign(holders, expected):
    """Return the programs that are not expected, by name; of each the lowest process id."""
    found = {}
    for name, pid in sorted(holders, key=lambda one: one[1]):
        if name not in [one[:15] for one in expected]:  # The kernel keeps 15 characters.
            found.setdefault(name, pid)
    return found


def check_ports(report, wanted):
    found = listeners.holders({entry["port"] for entry in wanted})
    report.facts["ports"] = {}
    for entry in [entry for entry in wanted if entry["port"] in found]:
        holders = found[entry["port"]]
        report.facts["ports"][str(entry["port"])] = sorted({name for name, _pid in holders})
        if not holders:
            report.note("port %d is in use, and this user may not see by which program" % entry["port"])
            continue
        strangers = foreign(holders, entry["expected"])
        if strangers:
            names = joined("%s (process %d)" % item for item in sorted(strangers.items()))
            expected = "; %s is to listen there" % " or ".join(entry["expected"]) if entry["expected"] else ""
            hint = "stop it and disable its service" + expected
            report.problem("ports", "port %d is in use by %s" % (entry["port"], names), hint)


# ----------------------------------------------------------------------------------------------- clock, names, packages


def check_calendars(report, calendars):
    for entry in calendars:
        command = ["systemd-analyze", "calendar", entry["calendar"]]
        try:
            done = subprocess.run(command, check=False, timeout=20, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except FileNotFoundError:
            report.note("systemd-analyze is not on this host, so the times of timers were not inspected")
            return
        if done.returncode != 0:
            report.problem(
                "calendars",
                "%s: systemd does not know the time %s" % (entry["name"], json.dumps(entry["calendar"])),
                'write it as systemd.time(7) has it, e.g. "Mon..Fri 07:30"',
            )


def lock_holder(path):
    """Return the process that holds a lock on a file, None where nobody does. Takes none itself."""
    try:
        with open(path, "rb") as stream:
            lock = struct.pack("hhlli", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _whence, _start, _length, pid = struct.unpack("hhlli", fcntl.fcntl(stream, fcntl.F_GETLK, lock))
    except OSError:
        return None
    return pid if kind != fcntl.F_UNLCK else None


def check_packages(report, wait_seconds=PACKAGES_SECONDS):
    if not shutil.which("dpkg"):
        report.note("dpkg is not on this host, so its packages were not inspected")
        return
    deadline = time.monotonic() + wait_seconds
    while True:
        holders = [pid for pid in map(lock_holder, PACKAGE_LOCKS) if pid is not None]
        if not holders or time.monotonic() >= deadline:
            break
        time.sleep(1)
    if holders:
        name = read("/proc/%d/comm" % holders[0]).strip() or "a program"
        report.problem(
            "packages",
            "%s (process %d) is installing packages" % (name, holders[0]),
            "wait until it has ended, or see why it does not",
        )
        return
    interrupted = any(name.isdigit() for name in names_in("/var/lib/dpkg/updates"))
    process = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": dict(os.environ, LC_ALL="C")}
    query = ("dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\\n")
    packages = subprocess.run(query, check=False, timeout=60, **process).stdout.decode(errors="replace")
    report.facts["installed"] = re.findall(r"(?m)^installed (\S+)$", packages)
    audit = subprocess.run(("dpkg", "--audit"), check=False, timeout=60, **process).stdout.decode(errors="replace")
    broken = re.findall(r"(?m)^ (\S+)", audit)
    report.facts["packages_broken"] = broken
    if interrupted or audit.strip():
        report.problem(
            "packages",
            "an earlier installation of packages was interrupted" + (" (%s)" % joined(broken[:5]) if broken else ""),
            "run `dpkg --configure -a`, then `apt-get --fix-broken install`",
        )


# ---------------------------------------------------------------------------------------------------------------------


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def other_host(text):
    """Return the fact of a move, {} where there is none."""
    try:
        return json.loads(text)
    except ValueError:
        return {}


def names_in(directory):
    try:
        return os.listdir(directory)
    except OSError:
        return []


def data_here():
    """Return which data an application on this host finds at localhost: here, forwarded (role move) or nothing."""
    here = {
        "database": any(re.search(r"(?m)^\s*auto\b", read(path)) for path in glob.glob(CLUSTERS)),
        "cache": os.path.lexists(WANTED % "redis-server"),
    }
    return {
        part: "forwarded" if os.path.lexists(WANTED % ("shiftmaster-forward-" + part)) else "here" if server else ""
        for part, server in here.items()
    }


def run(params):
    """Return the module's result."""
    report = Report()
    # The controller compares it with its own of before and after.
    report.facts.update(time=round(time.time(), 1), requested_at=params["requested_at"])
    check_system(report, params["systems"], params["allow_untested_os"], read("/etc/os-release"))
    check_python(report, platform.python_version())
    if params["interpreter"]:
        check_interpreter(report, params["interpreter"])
    check_systemd(report, read("/proc/1/comm").strip(), os.path.isdir("/run/systemd/system"))
    report.facts["move"] = other_host(read(MOVE_FACT))
    if params["root"]:
        layout = Layout(params["root"])
        report.facts["lockable"] = os.path.isdir(layout.state)
        report.facts["locked"] = os.path.lexists(os.path.join(layout.state, "lock.json"))
        report.facts["data"] = data_here()
        if params["media"]:
            # Only whether there are any: the names are the users'.
            report.facts["media"] = bool(names_in(os.path.join(layout.shared, "media")))
        report.facts["page"] = os.path.lexists(os.path.join(layout.shared, "maintenance", "on"))
        try:
            report.facts["releases"] = releases.describe(layout, State(layout))
        except (StateError, OSError, ValueError):
            # The task that does the work finds it again and reports it.
            report.facts["releases"] = []
    check_disk(report, params["disk"])
    check_directories(report, params["directories"])
    check_ports(report, params["ports"])
    check_calendars(report, params["calendars"])
    if params["release"] and not os.path.lexists(params["release"]):
        report.problem(
            "release",
            "nothing is deployed here, which monitoring would report as five faults",
            "run ansible-playbook deploy.yml first",
        )
    if params["packages"]:
        check_packages(report)
    return report.result()


def argument_spec():
    return {
        "requested_at": given(0.0),
        "systems": given([], elements="str"),
        "allow_untested_os": given(False),
        "disk": list_of(path=PATH, minimum_mb=given(0), minimum_inodes=given(0)),
        "directories": list_of(name=TEXT, path=PATH),
        "ports": list_of(port=dict(TEXT, type="int"), expected=given([], elements="str")),
        "calendars": list_of(name=TEXT, calendar=TEXT),
        "interpreter": given(""),
        "release": given("", type="path"),
        "root": given("", type="path"),
        "media": given(False),
        "packages": given(False),
    }


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        module.exit_json(**run(module.params))
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        module.fail_json(msg="the host could not be inspected: %s" % error)


if __name__ == "__main__":
    main()
