"""The report of a run of the backup: log, metrics, messages. It never fails the run.

The report has what the guide's has: date, each part as SUCCESS or FAILED, the total size and the location.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from calendar import timegm

from ..host import safe_files
from ..host.printable import sized
from ..notify import send
from ..release.state import write_json
from . import archive as backup_archive
from . import manifest as manifests
from .host import STATE, BackupError, Host

# When a run last could not begin.
NOT_BEGUN = os.path.join(STATE, "not_begun.json")
METRICS = "shiftmaster_backup.prom"
# The values of options that cannot be read; the units know the directory, too.
TEXTFILE_DIR = "/var/lib/prometheus/node-exporter"
UNKNOWN = {
    "directory": "",
    "stanza": "",
    "database": {"version": ""},
    "log_file": "/var/log/shiftmaster/backup.log",
    "notify_file": "/etc/shiftmaster-backup/notify.json",
}

WORDS = {"succeeded": "SUCCESS", "warning": "SUCCESS", "skipped": "SKIPPED"}
NAMES = {"database": "Database", "logical": "Logical dump", "files": "Files", "configuration": "Configuration"}


def lines(manifest: dict, directory: str) -> list:
    """The report, a line each."""
    # In the zone of the host, as logs and schedules.
    started = time.localtime(manifests.seconds_of(manifest["started"]))
    found = ["Date: %s" % time.strftime("%Y-%m-%d %H:%M:%S %Z", started)]
    for name, part in manifest["parts"].items():
        text = "%s: %s" % (NAMES[name], WORDS.get(part["result"], "FAILED"))
        if part["result"] in manifests.GOOD:
            restored = any(item["how"] == manifests.RESTORED and item["good"] for item in part.get("verified", []))
            text += " (%s%s%s)" % (
                "full, " if part.get("kind") == "full" else "",
                sized(part["size_bytes"]),
                ", restored and verified" if restored else "",
            )
        for problem in part["problems"]:
            text += ": %s" % problem["what"]
        found.append(text)
    found += of_run(manifest)
    found.append("Total size: %s" % sized(sum(part.get("size_bytes", 0) for part in manifest["parts"].values())))
    found.append("Location: %s" % directory)
    return found


def conclude(host: Host, manifest: dict) -> int:
    """Log, metrics and messages of a manifest that has ended; returns the run's exit code."""
    for line in lines(manifest, host.directory):
        host.log("%s  %s" % (manifest["run_id"], line))
    host.log("backup %s: %s" % (manifest["run_id"], WORDS.get(manifest["result"], "FAILED")))
    write_metrics(host)
    status = manifest["result"] if manifest["result"] in ("succeeded", "warning") else "failed"
    send_notification(host, "backup", status, {
        "started": manifest["started"],
        "duration": "%d s" % (manifests.seconds_of(manifest["ended"]) - manifests.seconds_of(manifest["started"])),
        "hosts": [manifest["host"]],
        "user": manifest.get("started_by", ""),
        "version": manifest["release"].get("version", ""),
        "reason": "; ".join(reasons(manifest)),
        "notes": lines(manifest, host.directory),
    })  # fmt: skip
    return manifests.exit_code(manifest)


def reasons(manifest: dict) -> list:
    found = [p["what"] for part in manifest["parts"].values() for p in part["problems"]]
    return found + of_run(manifest)


def of_run(manifest: dict) -> list:
    """The problems of the run itself, a line each; equal problems of many backups are one line."""
    alike = {}
    for problem in manifest["problems"]:
        rest = problem["what"].removeprefix("backup %s " % problem["where"]) if problem["where"] else problem["what"]
        alike.setdefault((rest, rest != problem["what"]), []).append(problem)
    found = []
    for (rest, of_backups), problems in alike.items():
        if of_backups and len(problems) > 2:
            found.append(
                "%d backups, %s to %s, %s" % (len(problems), problems[0]["where"], problems[-1]["where"], rest)
            )
        else:
            found += [problem["what"] for problem in problems]
    return found


def not_begun(host: Host, run_id: str, request: dict, why: str) -> int:
    """A run that could not even begin is one that failed."""
    host.log("backup %s FAILED: %s" % (run_id, why))
    try:
        write_json(NOT_BEGUN, {"at": int(time.time())})
    except OSError as error:
        host.log("%s could not be written: %s" % (NOT_BEGUN, error))
    write_metrics(host)
    send_notification(host, "backup", "failed", {
        "started": manifests.timestamp(time.time()),
        "hosts": [host.options["host"]],
        "user": request.get("by", "schedule"),
        "reason": why,
    })  # fmt: skip
    return 1


def without_options(run_id: str, why: str) -> int:
    """A run that could not read its options has failed, too: a metric reports it, and a message where possible."""
    host = Host(dict(UNKNOWN, host=socket.gethostname()))
    host.log("%s FAILED: %s" % (("backup %s" % run_id).strip(), why))
    path = os.path.join(os.environ.get("SHIFTMASTER_BACKUP_TEXTFILE_DIR") or TEXTFILE_DIR, METRICS)
    try:
        write_json(NOT_BEGUN, {"at": int(time.time())})
    except OSError as error:
        host.log("%s could not be written: %s" % (NOT_BEGUN, error))
    try:
        # Its other content stays: the time of the last good backup is still valid.
        before = ""
        if os.path.exists(path):
            with open(path, encoding="utf-8") as stream:
                before = stream.read()
        replace_metrics(path, manifests.with_failed_run(before))
    except (OSError, ValueError) as error:
        host.log("the metrics could not be written: %s" % error)
    try:
        send_notification(host, "backup", "failed", {
            "started": manifests.timestamp(time.time()), "hosts": [host.options["host"]], "reason": why,
        })  # fmt: skip
    # Its file may be as damaged as that of the options.
    except (KeyError, TypeError, AttributeError) as error:
        host.log("nobody was notified: %s: %s" % (type(error).__name__, error))
    return 1


def not_begun_at() -> float:
    try:
        with open(NOT_BEGUN, encoding="utf-8") as stream:
            return float(json.load(stream)["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def write_metrics(host: Host) -> None:
    """Replace the file that node exporter reads."""
    found = manifests.history(os.path.join(host.directory, "manifests"))
    path = os.path.join(host.options["textfile_dir"], METRICS)
    try:
        archive = backup_archive.noted()
        without = ["offsite"] if not host.options["offsite"] else []
        without += ["logical"] if not host.options["logical_interval_days"] else []
        content = manifests.metrics(
            found.manifests, archive.get("gaps"), archive.get("newest"), next_run(host), not_begun_at(), without
        )
        replace_metrics(path, content)
    except OSError as error:
        host.log("the metrics could not be written: %s" % error)


def replace_metrics(path: str, text: str) -> None:
    # The directory is prometheus'.
    safe_files.write(path, text.encode(), 0o644)


def next_run(host: Host):
    """When this host's timer starts the next one, None where it has none.

    The timer itself does not report it while its service runs, so its calendar is queried.
    """
    try:
        unit = "shiftmaster-backup.timer"
        host.run("systemctl", "systemctl", "is-enabled", "--quiet", unit, timeout=20)
        shown = host.run("systemctl", "systemctl", "show", "--property=TimersCalendar", unit, timeout=20).stdout
        calendar = re.search(r"OnCalendar=(.*?) ;", shown).group(1)
        words = ("systemd-analyze", "calendar", calendar)
        output = host.run(words[0], *words, env=dict(os.environ, TZ="UTC", LC_ALL="C.UTF-8"), timeout=20).stdout
        timestamp = re.search(r"Next elapse: \w+ (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", output).group(1)
        return timegm(time.strptime(timestamp, "%Y-%m-%d %H:%M:%S"))
    except (BackupError, ValueError, AttributeError):
        return None


def send_notification(host: Host, event: str, status: str, details: dict) -> None:
    """Send it to the channels that are to hear of this status; what does not arrive is a line in the log."""
    try:
        with open(host.options["notify_file"], encoding="utf-8") as stream:
            wanted = json.load(stream)
    except (OSError, ValueError) as error:
        host.log("nobody was notified: %s" % error)
        return
    channels = wanted["routes"].get(status, [])
    params = {name: wanted.get(name) if name in channels else None for name in ("slack", "email", "pagerduty")}
    if not any(params.values()):
        return
    params.update(
        event=event, status=status, environment=wanted["environment"], language=wanted["language"], links=[],
        ca_file=wanted.get("ca_file") or None, proxy=wanted.get("proxy", ""),
        timeout_seconds=wanted.get("timeout_seconds", 20),
        details={name: value for name, value in details.items() if value},
    )  # fmt: skip
    wrong = send.wrong_channels(params)
    messages = send.compose(params, manifests.timestamp(time.time()))
    _sent, problems = send.deliver(params, {k: v for k, v in messages.items() if k not in wrong})
    for channel, problem in sorted({**problems, **wrong}.items()):
        host.log("%s was not notified: %s" % (channel, problem))
