"""Metrics of a host that no exporter has: what it depends on, what its services present, and what it waits for.

For node exporter's textfile collector.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import select
import socket
import sys
import time

from ..host import probe, redundancy, safe_files
from . import metrics
from .metrics import labels

UPDATES_SECONDS = 3600
CHECKED = "shiftmaster_host_updates_checked_timestamp_seconds"
UPDATES = "shiftmaster_host_security_updates"
CERTIFICATE = "shiftmaster_host_certificate_end_timestamp_seconds"
TASK_SUCCESS, TASK_MAX_AGE = "shiftmaster_host_task_success_timestamp_seconds", "shiftmaster_host_task_max_age_seconds"
MAIL_SERVER, NAME_SERVER = "shiftmaster_host_mail_server_up", "shiftmaster_host_name_server_up"
ADDRESS = "shiftmaster_host_virtual_address_held"
FILESYSTEM_ERRORS = "shiftmaster_host_filesystem_errors"
HELP = {
    ADDRESS: "Whether this web server holds the address that users reach.",
    "shiftmaster_host_reboot_required": "Whether an upgrade needs a reboot.",
    "shiftmaster_host_package_lists_timestamp_seconds": "When the lists of packages were last fetched.",
    UPDATES: "Security updates that are not installed; -1 where apt reports an error.",
    CHECKED: "When they were counted; once an hour.",
    NAME_SERVER: "Whether a name server of /etc/resolv.conf responds.",
    MAIL_SERVER: "Whether a mail server greets.",
    FILESYSTEM_ERRORS: "Errors that the kernel has found in an ext4 file system since its last check by fsck.",
    TASK_SUCCESS: "When a scheduled task of the application last succeeded.",
    TASK_MAX_AGE: "How old that may be.",
    CERTIFICATE: "End of a certificate: as the service presents it, and in its file.",
}

# --- packages --------------------------------------------------------------------------------------------------------


def package_lists_timestamp(path_of=str):
    """Return when the lists of packages were last fetched, or None."""
    for path in ("/var/lib/apt/periodic/update-success-stamp", "/var/lib/apt/lists"):
        with contextlib.suppress(OSError):
            return os.stat(path_of(path)).st_mtime
    return None


def pending_updates() -> dict:
    """Return the upgrades that wait, by this host's last lists of its repositories."""
    # Without its caches it writes nothing.
    command = ["apt-get", "--simulate", "--quiet"]
    for option in ("Debug::NoLocking=true", "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache=", "Dir::Log=/dev/null"):
        command += ["-o", option]
    code, text, error = probe.run([*command, "dist-upgrade"], 12.0)
    if code != 0:
        raise probe.ProbeError("error", "apt", error.strip()[:200])
    return parse_updates(text)


def parse_updates(text: str) -> dict:
    """Return what `apt-get --simulate` would install."""
    rows = re.findall(r"^Inst (\S+) (?:\[[^\]]*\] )?\(\S+ ([^)]*)\)", text, re.M)
    security = [name for name, source in rows if "security" in source.lower()]
    return {"waiting": len(rows), "security": len(security), "security_packages": security[:20]}


def _updates(before: str, now: float) -> dict:
    """Count them once an hour, since that takes a second of processor time."""
    known = dict(re.findall(r"^(%s|%s) (\S+)$" % (UPDATES, CHECKED), before, re.M))
    if len(known) < 2 or not 0 <= now - float(known[CHECKED]) < UPDATES_SECONDS:
        known = {UPDATES: pending_updates()["security"], CHECKED: now}
    return {(name, ""): value for name, value in known.items()}


# --- name servers ----------------------------------------------------------------------------------------------------


def name_servers(resolv_conf: str) -> list:
    """Return the first three, which are those that programs use."""
    return re.findall(r"^\s*nameserver\s+(\S+)", resolv_conf, re.M)[:3]


_QUERY = b"\x53\x4d\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01"


def name_server(address: str, seconds: float = 4.5, count: int = 30) -> dict:
    """Return to how many queries a name server responds, and how soon; that it knows no such name is a response.

    They are sent over a second, as a busy host sends them: so many show how many packets get lost.
    """
    family, responded, first = socket.AF_INET6 if ":" in address else socket.AF_INET, 0, None
    sent = 0
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        waiting, end = {}, time.monotonic() + seconds
        while time.monotonic() < end and (waiting or sent < count):
            if sent < count:
                connection = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                connection.connect((address.partition("%")[0], 53))
                connection.send(_QUERY)
                waiting[connection], sent = time.monotonic(), sent + 1
            if responded and sent == count:
                end = min(end, time.monotonic() + 1.5)
            left = 0.03 if sent < count else max(0.0, end - time.monotonic())
            for connection in select.select(list(waiting), [], [], left)[0]:
                with contextlib.suppress(OSError):
                    if connection.recv(512)[:2] == _QUERY[:2]:
                        took = round(time.monotonic() - waiting[connection], 2)
                        responded, first = responded + 1, took if first is None else min(first, took)
                del waiting[connection]
    return {"address": address, "responds": responded > 0, "seconds": first, "tried": sent, "lost": sent - responded}


# --- services --------------------------------------------------------------------------------------------------------


def greets(server: str) -> bool:
    """Return whether a mail server, host:port, greets; on port 465 it does by TLS."""
    host, _colon, port = server.rpartition(":")
    deadline, context = probe.Deadline(5.0), probe.tls_context(verify=False) if port == "465" else None
    with contextlib.suppress(probe.ProbeError, OSError):
        with probe.connected(host.strip("[]"), int(port), None, deadline, context) as connection:
            connection.settimeout(deadline.left())
            greeting = connection.recv(512)
            connection.sendall(b"QUIT\r\n")
            return greeting.startswith(b"220")
    return False


def certificate_ends(one: dict) -> dict:
    """Return {how: timestamp} of a service's certificate; nothing where it cannot be read."""
    with contextlib.suppress(probe.ProbeError, OSError):
        presented = probe.certificate_served("localhost", one["port"], postgres=one["name"] == "postgresql")
        found = {"presented": presented, "file": probe.certificate_file(one["file"])[0]}
        return {how: certificate.not_after.timestamp() for how, certificate in found.items()}
    return {}


def task_ages(path_of=str) -> dict:
    """Return {task: (last success, seconds that it may be old)}, by files of role shiftmaster."""
    found = {}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        for task, hours in json.loads(safe_files.read_text(path_of("/etc/shiftmaster/tasks.json"), 65536)).items():
            success = 0.0
            with contextlib.suppress(OSError):
                success = os.stat(path_of("/var/lib/shiftmaster-tasks/" + task)).st_mtime
            found[task] = (round(success), int(hours) * 3600)
    return found


def filesystem_errors(path_of=str) -> dict:
    """Return {device: errors since the last fsck} of the ext4 file systems."""
    found = {}
    for path in glob.glob(path_of("/sys/fs/ext4/*/errors_count")):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as stream:
            found[os.path.basename(os.path.dirname(path))] = int(stream.read())
    return found


# --- all of it -------------------------------------------------------------------------------------------------------


def collect(config: dict, before: str) -> dict:
    """Return {(metric, labels): value}. before: the text of the last run."""
    now = round(time.time())
    found = {("shiftmaster_host_reboot_required", ""): int(os.path.exists("/run/reboot-required"))}
    fetched = package_lists_timestamp()
    if fetched:
        found["shiftmaster_host_package_lists_timestamp_seconds", ""] = round(fetched)

    def updates():
        try:
            found.update(_updates(before, now))
        except (probe.ProbeError, OSError) as error:
            found[UPDATES, ""] = -1
            print("updates: %s" % error, file=sys.stderr)

    def of_name_server(address):
        found[NAME_SERVER, labels(server=address)] = int(name_server(address, 4.0, 3)["responds"])

    def of_mail_server(server):
        found[MAIL_SERVER, labels(server=server)] = int(greets(server))

    def of_listener(one):
        for how, end in certificate_ends(one).items():
            found[CERTIFICATE, labels(listener=one["name"], of=how)] = int(end)

    for task, (success, age) in task_ages().items():
        found[TASK_SUCCESS, labels(task=task)], found[TASK_MAX_AGE, labels(task=task)] = success, age
    for device, errors in filesystem_errors().items():
        found[FILESYSTEM_ERRORS, labels(device=device)] = errors
    if config.get("virtual_address"):
        found[ADDRESS, labels(address=config["virtual_address"])] = int(redundancy.holds(config["virtual_address"]))
    calls = [(updates,)] + [(of_listener, one) for one in config["listeners"]]
    for server in config["mail_servers"]:
        found[MAIL_SERVER, labels(server=server)] = 0
        calls.append((of_mail_server, server))
    with contextlib.suppress(OSError):
        text = safe_files.read_text("/etc/resolv.conf", 65536)
        calls += [(of_name_server, address) for address in name_servers(text)]
    probe.together(calls, 15.0)
    return dict(found)


def main(path: str, config: str) -> int:
    before = ""
    with contextlib.suppress(OSError):
        before = safe_files.read_text(path, 65536)
    metrics.write(path, HELP, collect(json.loads(config), before))
    return 0
