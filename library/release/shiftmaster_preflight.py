#!/usr/bin/python
# Everything about a host that can be known to fail before anything is changed on it, all at once.
from __future__ import annotations

DOCUMENTATION = r"""
---
module: shiftmaster_preflight
short_description: Find what would make a deployment fail on a host, all of it at once
description:
  - Looks at a host and changes nothing. Only Python's standard library is used, so that it works on a fresh host.
  - It never fails because of what it finds; the caller collects the problems of all hosts and then says them together.
  - A check is made only where its option is given. What cannot be told on a host is in RV(notes), with the reason.
version_added: "1.0.0"
author: ShiftMaster operations (@shiftmaster-operations)
options:
  systems:
    description: The systems that this was verified on, as name and version, such as V(debian 13).
    type: list
    elements: str
    default: []
  allow_untested_os:
    description: Whether another system is no problem, but a note.
    type: bool
    default: false
  python_minimum:
    description: The oldest Python that the host may have.
    type: str
    default: "3.9"
  systemd:
    description: Whether systemd must be the host's first process.
    type: bool
    default: true
  disk:
    description:
      - What must be free. Of a path that is not there yet, the nearest directory above it counts. What is asked for on
        one file system is added up.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The directory that will be written to.
        type: path
        required: true
      minimum_mb:
        description: Free space in MiB.
        type: int
        default: 0
      minimum_inodes:
        description: How many files there must be room for.
        type: int
        default: 0
  directories:
    description:
      - Directories that root will create, change the owner of, or remove from. In none of those above them may another
        user exchange an entry.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The variable that names it.
        type: str
        required: true
      path:
        description: The directory.
        type: path
        required: true
  memory_minimum_mb:
    description: The memory that the host must have, in MiB. A host of 4 GB shows about 3900.
    type: int
    default: 0
  memory_mb:
    description: The memory that counts, where it is less than the host shows (a container, a shared host); 0 for all.
    type: int
    default: 0
  certificates:
    description: Certificates to look at.
    type: list
    elements: dict
    default: []
    suboptions:
      certificate:
        description: The file in PEM, the host's own certificate first.
        type: path
        required: true
      key:
        description: Its private key, in PEM, to be compared with it.
        type: path
      names:
        description: The names that it must be valid for.
        type: list
        elements: str
        default: []
      minimum_days:
        description: So many days it must stay valid at least.
        type: int
        default: 0
      required:
        description: Whether it is a problem that the file is not there.
        type: bool
        default: true
  ports:
    description: Ports that must be free, or be held by the program that is expected there.
    type: list
    elements: dict
    default: []
    suboptions:
      port:
        description: The TCP port.
        type: int
        required: true
      expected:
        description: Names of the programs that may listen there.
        type: list
        elements: str
        default: []
  controller_time:
    description: The controller's time in seconds since 1970, taken just before.
    type: float
  clock_maximum_seconds:
    description: How far the host's clock may be from it. The time that the connection takes is in it.
    type: float
    default: 30
  domains:
    description: Names that the host must be able to resolve.
    type: list
    elements: str
    default: []
  interpreter:
    description:
      - An interpreter of the host that wheels are to be chosen for; RV(facts) then says in C(interpreter) what they are
        chosen by. Empty for none.
    type: str
    default: ""
  packages:
    description: Whether dpkg must be in order, and apt not at work.
    type: bool
    default: false
  packages_wait_seconds:
    description: How long to wait for an apt that is at work, such as the unattended upgrade after a boot.
    type: int
    default: 30
attributes:
  check_mode:
    support: full
    description: Does the same.
  diff_mode:
    support: none
    description: Changes nothing that could be shown.
"""

EXAMPLES = r"""
- name: Look before anything is changed
  shiftmaster_preflight:
    systems: [debian 12, debian 13]
    allow_untested_os: "{{ allow_untested_os | default(false) | bool }}"
    disk:
      - {path: /var/www/shiftmaster, minimum_mb: 1500, minimum_inodes: 50000}
      - {path: /var/backups/shiftmaster, minimum_mb: 500}
    memory_minimum_mb: 3500
    ports:
      - {port: 443, expected: [nginx]}
      - {port: 5432, expected: [postgres]}
    certificates:
      - {certificate: /etc/ssl/certs/shiftmaster.crt, key: /etc/ssl/private/shiftmaster.key, minimum_days: 7,
         required: false}
    controller_time: "{{ now().timestamp() }}"
    packages: true
  register: preflight
"""

RETURN = r"""
problems:
  description: What would fail, each a sentence with a hint of what to do.
  type: list
  elements: str
  returned: always
findings:
  description: The same in parts (check, problem, hint).
  type: list
  elements: dict
  returned: always
notes:
  description: What could not be told, and what is worth knowing.
  type: list
  elements: str
  returned: always
facts:
  description: What was seen, by check.
  type: dict
  returned: always
  sample: {system: debian 13, python: 3.13.5, init: systemd, memory_mb: 3915, clock_difference_seconds: 0.4}
"""

import contextlib
import datetime
import fcntl
import json
import os
import platform
import re
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time

from ansible.module_utils.shiftmaster.host.quiet import QuietModule
from ansible.module_utils.shiftmaster.host.safe_files import untrusted_parent

PACKAGE_LOCKS = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
)
DNS_SECONDS = 5
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
    sentence = "%s is none of the systems that this was verified on (%s)" % (
        report.facts["system_name"],
        ", ".join(systems),
    )
    if allow_untested:
        report.note(sentence)
    else:
        report.problem("system", sentence, "set allow_untested_os=true to go on all the same")


def check_python(report, minimum, version):
    report.facts["python"] = version
    if [int(one) for one in re.findall(r"\d+", version)[:2]] < [int(one) for one in minimum.split(".")[:2]]:
        report.problem(
            "python",
            "the host's Python is %s, and %s is the oldest that serves" % (version, minimum),
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
        said = subprocess.run(
            (path, "-I", "-c", WHEELS_ARE_CHOSEN_BY),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=60,
        ).stdout
        report.facts["interpreter"] = json.loads(said)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        report.problem(
            "interpreter",
            "%s, which wheels are to be chosen for, cannot be asked: %s" % (path, error),
            "install it there first, or set shiftmaster_python to one that is there",
        )


def check_systemd(report, required, first, running):
    report.facts["init"] = first
    if required and not (first == "systemd" and running):
        report.problem(
            "systemd",
            "the host's first process is %s, not systemd" % (first or "unknown"),
            "take a host that boots with systemd; a plain container does not",
        )


# ---------------------------------------------------------------------------------------------------- disk and memory


def nearest(path):
    """Return the nearest directory at or above a path that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def mount_of(path):
    path = os.path.realpath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def check_disk(report, wanted, statvfs=os.statvfs):
    """Add up what is asked for on each file system, and compare it with what is free there."""
    by_mount = {}
    for entry in wanted:
        by_mount.setdefault(mount_of(nearest(entry["path"])), []).append(entry)
    report.facts["disk"] = []
    for mount, entries in sorted(by_mount.items()):
        disk = statvfs(mount)
        free, inodes = disk.f_bavail * disk.f_frsize // MIB, disk.f_favail
        report.facts["disk"].append({"mount": mount, "free_mb": free, "free_inodes": inodes})
        for key, have, unit, exists in (
            ("minimum_mb", free, "MiB", True),
            ("minimum_inodes", inodes, "files", disk.f_files > 0),
        ):
            need = sum(entry[key] for entry in entries)
            if exists and have < need:
                report.problem(
                    "disk",
                    "%s has room for %d %s, and %d are needed for %s"
                    % (mount, have, unit, need, joined(entry["path"] for entry in entries if entry[key])),
                    "free some (journalctl --vacuum-size, apt-get clean, old files), or make the disk larger",
                )


def check_memory(report, minimum, override, meminfo):
    match = re.search(r"(?m)^MemTotal:\s+(\d+) kB", meminfo)
    shown = int(match.group(1)) // 1024 if match else 0
    have = override or shown
    report.facts["memory_mb"] = have
    if minimum and not have:
        report.note("the host does not tell how much memory it has")
    elif have < minimum:
        report.problem(
            "memory",
            "the host has %d MiB of memory, and %d are needed" % (have, minimum),
            "give it more, or move a function to another host",
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


# -------------------------------------------------------------------------------------------------------- certificates


def name_matches(pattern, name):
    """Whether a certificate's name is good for a host name; * stands for one label."""
    pattern, name = pattern.lower().rstrip("."), name.lower().rstrip(".")
    if pattern.startswith("*."):
        return "." in name and pattern[2:] == name.split(".", 1)[1]
    return pattern == name


def decode(path):
    """Return a certificate's fields as ssl.getpeercert() does. Raises OSError, and ValueError where it is none."""
    with open(path, "rb"):
        pass
    try:
        return ssl._ssl._test_decode_cert(path)  # The standard library has no public way to read one.
    except ssl.SSLError:
        raise ValueError


def key_problem(certificate, key):
    """Return what is wrong with a key, "" where it fits."""

    def no_password():
        raise ValueError

    try:
        with open(key, "rb"):
            pass
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=no_password)
    except FileNotFoundError:
        return "the private key %s is not there" % key
    except ssl.SSLError as error:
        if "KEY_VALUES_MISMATCH" in str(error) or "key values mismatch" in str(error):
            return "the private key %s does not belong to the certificate %s" % (key, certificate)
        if "too small" in str(error) or "TOO_SMALL" in str(error) or "TOO_WEAK" in str(error):
            return "the certificate %s or its key is too weak for this host's TLS library" % certificate
        return "the private key %s cannot be read as a PEM key" % key
    except OSError as error:
        return "the private key %s cannot be read: %s" % (key, error.strerror)
    except ValueError:
        return "the private key %s is protected by a password, which no service could type" % key
    return ""


def check_certificate(report, entry, at):
    path, hint = entry["certificate"], "put a valid certificate and its key there"
    try:
        fields = decode(path)
    except FileNotFoundError:
        if entry["required"]:
            report.problem("certificate", "the certificate %s is not there" % path, hint)
        return
    except AttributeError:
        report.note("the certificate %s was not looked at: this Python cannot read one" % path)
        return
    except OSError as error:
        report.problem("certificate", "the certificate %s cannot be read: %s" % (path, error.strerror), hint)
        return
    except ValueError:
        report.problem("certificate", "%s is not a certificate in PEM" % path, hint)
        return
    begins, ends = (ssl.cert_time_to_seconds(fields[name]) for name in ("notBefore", "notAfter"))
    days = (ends - at) / 86400.0
    names = [value for kind, value in fields.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    names = names or [value for part in fields.get("subject", ()) for kind, value in part if kind == "commonName"]
    day = datetime.datetime.fromtimestamp(ends, datetime.timezone.utc).strftime("%Y-%m-%d")
    report.facts.setdefault("certificates", []).append(
        {"path": path, "expires": day, "days_left": int(days // 1), "names": names}
    )
    if days < 0:
        report.problem("certificate", "the certificate %s expired on %s" % (path, day), "renew it")
    elif begins > at:
        report.problem("certificate", "the certificate %s is not valid yet" % path, "check the host's clock, or wait")
    elif days < entry["minimum_days"]:
        report.problem(
            "certificate",
            "the certificate %s expires on %s, in %d days, and %d are asked for"
            % (path, day, days, entry["minimum_days"]),
            "renew it",
        )
    missing = [name for name in entry["names"] if not any(name_matches(pattern, name) for pattern in names)]
    if missing:
        report.problem(
            "certificate",
            "the certificate %s is not valid for %s, but for %s" % (path, joined(missing), joined(names) or "nothing"),
            "get one for every name of the site",
        )
    if entry["key"]:
        wrong = key_problem(path, entry["key"])
        if wrong:
            report.problem(
                "certificate", wrong, "put the key there that the certificate was made with, without a password"
            )


# --------------------------------------------------------------------------------------------------------------- ports


def listening(text):
    """Return {port: {inode}} of the listening sockets in a /proc/net/tcp."""
    found = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == "0A":
            found.setdefault(int(fields[1].rsplit(":", 1)[1], 16), set()).add(fields[9])
    return found


def owners(inodes):
    """Return {inode: {(name, pid)}} of these sockets, as far as we may look."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for descriptor in os.listdir("/proc/%s/fd" % pid):
                with contextlib.suppress(OSError):
                    match = re.match(r"socket:\[(\d+)\]$", os.readlink("/proc/%s/fd/%s" % (pid, descriptor)))
                    if match and match.group(1) in inodes:
                        found.setdefault(match.group(1), set()).add((read("/proc/%s/comm" % pid).strip(), int(pid)))
    return found


def foreign(holders, expected):
    """Return the programs that are not expected, by name; of each the lowest process id."""
    found = {}
    for name, pid in sorted(holders, key=lambda one: one[1]):
        if name not in [one[:15] for one in expected]:  # The kernel keeps 15 characters.
            found.setdefault(name, pid)
    return found


def check_ports(report, wanted):
    sockets = {}
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        for port, inodes in listening(read(name)).items():
            sockets.setdefault(port, set()).update(inodes)
    wanted = [entry for entry in wanted if entry["port"] in sockets]
    held = owners(set().union(*(sockets[entry["port"]] for entry in wanted)) if wanted else set())
    report.facts["ports"] = {}
    for entry in wanted:
        holders = set().union(*(held.get(inode, set()) for inode in sockets[entry["port"]]))
        report.facts["ports"][str(entry["port"])] = sorted({name for name, _pid in holders})
        if not holders:
            report.note("port %d is in use, and this user may not see by which program" % entry["port"])
            continue
        strangers = foreign(holders, entry["expected"])
        if strangers:
            report.problem(
                "ports",
                "port %d is in use by %s"
                % (entry["port"], joined("%s (process %d)" % item for item in sorted(strangers.items()))),
                "stop it and disable its service"
                + ("; %s is to listen there" % " or ".join(entry["expected"]) if entry["expected"] else ""),
            )


# ----------------------------------------------------------------------------------------------- clock, names, packages


def check_clock(report, controller_time, maximum, at):
    difference = at - controller_time
    report.facts["clock_difference_seconds"] = round(difference, 1)
    if abs(difference) > maximum:
        report.problem(
            "clock",
            "the host's clock is %d s %s the controller's"
            % (abs(difference), "ahead of" if difference > 0 else "behind"),
            "set both by NTP (timedatectl, chronyc makestep); certificates and tokens depend on it",
        )


def resolve(name):
    """Return (addresses, reason); the resolver has a few seconds."""
    answer = {}

    def ask():
        try:
            answer["found"] = sorted({one[4][0] for one in socket.getaddrinfo(name, None, 0, socket.SOCK_STREAM)})
        except OSError as error:
            answer["reason"] = getattr(error, "strerror", None) or str(error)
        except UnicodeError:
            answer["reason"] = "it is not a host name"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(DNS_SECONDS)
    return answer.get("found", []), answer.get("reason", "no answer within %d s" % DNS_SECONDS)


def check_domains(report, names):
    report.facts["domains"] = {}
    for name in names:
        found, why = resolve(name)
        report.facts["domains"][name] = found
        if not found:
            report.problem(
                "domains",
                "the host cannot resolve %s (%s)" % (name, why),
                "check its /etc/resolv.conf, or write the name into /etc/hosts",
            )


def lock_holder(path):
    """Return the process that holds a lock on a file, None where nobody does. Takes none itself."""
    try:
        with open(path, "rb") as stream:
            asked = struct.pack("hhlli", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _whence, _start, _length, pid = struct.unpack("hhlli", fcntl.fcntl(stream, fcntl.F_GETLK, asked))
    except OSError:
        return None
    return pid if kind != fcntl.F_UNLCK else None


def check_packages(report, wait_seconds):
    if not shutil.which("dpkg"):
        report.note("dpkg is not on this host, so its packages were not looked at")
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
    said = subprocess.run(
        ("dpkg", "--audit"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=60,
        env=dict(os.environ, LC_ALL="C"),
    ).stdout.decode(errors="replace")
    broken = re.findall(r"(?m)^ (\S+)", said)
    report.facts["packages_broken"] = broken
    if interrupted or said.strip():
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


def names_in(directory):
    try:
        return os.listdir(directory)
    except OSError:
        return []


def run(params):
    """Return the module's result."""
    report, at = Report(), time.time()
    if params["controller_time"] is not None:
        check_clock(report, params["controller_time"], params["clock_maximum_seconds"], at)
    check_system(report, params["systems"], params["allow_untested_os"], read("/etc/os-release"))
    check_python(report, params["python_minimum"], platform.python_version())
    if params["interpreter"]:
        check_interpreter(report, params["interpreter"])
    check_systemd(report, params["systemd"], read("/proc/1/comm").strip(), os.path.isdir("/run/systemd/system"))
    check_memory(report, params["memory_minimum_mb"], params["memory_mb"], read("/proc/meminfo"))
    check_disk(report, params["disk"])
    check_directories(report, params["directories"])
    for entry in params["certificates"]:
        check_certificate(report, entry, at)
    check_ports(report, params["ports"])
    check_domains(report, params["domains"])
    if params["packages"]:
        check_packages(report, params["packages_wait_seconds"])
    return report.result()


def argument_spec():
    def option(kind, default=None, **more):
        return dict({"type": kind, "default": default}, **more)

    return {
        "systems": option("list", [], elements="str"),
        "allow_untested_os": option("bool", False),
        "python_minimum": option("str", "3.9"),
        "systemd": option("bool", True),
        "disk": option(
            "list",
            [],
            elements="dict",
            options={
                "path": {"type": "path", "required": True},
                "minimum_mb": option("int", 0),
                "minimum_inodes": option("int", 0),
            },
        ),
        "directories": option(
            "list",
            [],
            elements="dict",
            options={"name": {"type": "str", "required": True}, "path": {"type": "path", "required": True}},
        ),
        "memory_minimum_mb": option("int", 0),
        "memory_mb": option("int", 0),
        "certificates": option(
            "list",
            [],
            elements="dict",
            options={
                "certificate": {"type": "path", "required": True},
                "key": {"type": "path", "no_log": False},
                "names": option("list", [], elements="str"),
                "minimum_days": option("int", 0),
                "required": option("bool", True),
            },
        ),
        "ports": option(
            "list",
            [],
            elements="dict",
            options={
                "port": {"type": "int", "required": True},
                "expected": option("list", [], elements="str"),
            },
        ),
        "controller_time": {"type": "float"},
        "clock_maximum_seconds": option("float", 30),
        "domains": option("list", [], elements="str"),
        "interpreter": option("str", ""),
        "packages": option("bool", False),
        "packages_wait_seconds": option("int", 30),
    }


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        module.exit_json(**run(module.params))
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        module.fail_json(msg="the host could not be looked at: %s" % error)


if __name__ == "__main__":
    main()
