"""Evidence of systemd's units, the journal, what changed lately, and containers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time

from ..host import configuration, probe
from ..release import releases
from ..release.layout import Layout
from . import logs
from .engine import Absent
from .host import journal as host_journal
from .host import numbers, read, read_file

_PROPERTIES = (
    "Id LoadState ActiveState SubState Result UnitFileState NRestarts MainPID ExecMainStatus ExecMainCode "
    "ActiveEnterTimestamp ActiveEnterTimestampMonotonic InactiveEnterTimestamp LimitNOFILE ControlGroup DropInPaths "
    "CPUQuotaPerSecUSec TasksCurrent TasksMax"
).split()
_LINES = 12


def units(setting) -> dict:
    """The units that matter here, each with its last words where it is unhealthy; and every other one that failed."""
    wanted = list(setting.units)
    rows = probe.parse_unit_list(probe.systemctl(["list-units", "--all", "--plain", "--no-legend", "--full"], 6.0))
    names = wanted + [row["Id"] for row in rows if setting.is_ours(row["Id"]) or row.get("ActiveState") == "failed"]
    show = ["show", "--property=" + ",".join(_PROPERTIES), "--", *dict.fromkeys(names)]
    blocks = probe.parse_units(probe.systemctl(show, 6.0))
    found, groups = {}, processes_by_group(setting.proc)
    for block in blocks:
        ago = seconds_ago(block.get("ActiveEnterTimestampMonotonic"))
        found[block["Id"]] = unit = {
            "unit": block["Id"],
            "required": any(block["Id"] in (name, name + ".service") for name in wanted),
            "load": block.get("LoadState"),
            "active": block.get("ActiveState"),
            "sub": block.get("SubState"),
            "result": block.get("Result"),
            "enabled": block.get("UnitFileState"),
            "restarts": int(block.get("NRestarts") or 0),
            "exit_status": int(block.get("ExecMainStatus") or 0),
            "since": block.get("ActiveEnterTimestamp") or block.get("InactiveEnterTimestamp") or "",
            "active_seconds_ago": ago,
            "active_at": None if ago is None else round(time.time() - ago, 1),
            "pid": int(block.get("MainPID") or 0),
            "open_files_limit": block.get("LimitNOFILE"),
            "drop_ins": (block.get("DropInPaths") or "").split(),
            "cpu_quota": _set(block.get("CPUQuotaPerSecUSec")),
            "tasks": int(_set(block.get("TasksCurrent")) or 0),
            "tasks_limit": int(_set(block.get("TasksMax")) or 0),
        }
        unneeded = not unit["required"] and unit["active"] != "failed" and unit["sub"] != "auto-restart"
        unit["well"] = unit["active"] in ("active", "reloading") or unneeded
        unit.update(unit_processes(setting, block.get("ControlGroup") or "", groups))
        if not unit["well"] or unit["restarts"]:
            unit["last_words"] = journal_of(unit["unit"])
    return {"units": list(found.values())}


def _set(value) -> str:
    return "" if value in (None, "infinity", "[not set]") else value


def seconds_ago(microseconds):
    """Return how long ago a time of the monotonic clock was, None where there was none."""
    timestamp = int(microseconds or 0) / 1e6
    return round(time.clock_gettime(time.CLOCK_MONOTONIC) - timestamp, 1) if timestamp else None


def processes_by_group(proc: str) -> dict:
    """Return {control group: [process]} by what the kernel reports about each process."""
    found = {}
    with contextlib.suppress(OSError):
        for pid in os.listdir(proc):
            if pid.isdigit():
                for path in {line.rsplit(":", 1)[-1] for line in read(proc, pid, "cgroup").splitlines()}:
                    found.setdefault(path, []).append(pid)
    return found


_FREEZERS = ("__refrigerator", "do_freezer_trap")


def unit_processes(setting, group: str, groups: dict) -> dict:
    """Return how many processes a unit has, and which of them are stopped or wait for a disk."""
    pids = [pid for path, inside in groups.items() if group and (path + "/").startswith(group + "/") for pid in inside]
    states, refrigerated = {}, 0
    for pid in pids[:200]:
        match = re.search(r"^State:\s+(\w)", read(setting.proc, pid, "status"), re.M)
        if match:
            states[match.group(1)] = states.get(match.group(1), 0) + 1
            # Frozen by a control group that is not the unit's own.
            refrigerated += match.group(1) in "DS" and read(setting.proc, pid, "wchan") in _FREEZERS
    frozen = numbers(read(setting.cgroup, group.lstrip("/"), "cgroup.events")).get("frozen", 0) if group else 0
    # Older kernels have a hierarchy of their own for it.
    freezer = ""
    if refrigerated and not frozen:
        lines = "".join(read(setting.proc, pid, "cgroup") for pid in pids[:200])
        freezer = max(re.findall(r"^\d+:freezer:(/[^\s;&|$`'\"]+)$", lines, re.M), key=len, default="")
    frozen = frozen or int(refrigerated > 0)
    stopped, waiting = states.get("T", 0), states.get("D", 0) - refrigerated
    found = {"processes": len(pids), "stopped": stopped, "waiting_for_disk": waiting, "frozen": frozen}
    return dict(found, freezer=freezer) if freezer else found


def journal_of(unit: str, lines: int = _LINES) -> list:
    """Return the last lines of a unit, with what systemd reports about it."""
    with contextlib.suppress(probe.ProbeError):
        text = host_journal(["--output=cat", "--lines=%d" % lines, "--unit=" + unit], 3.0)
        return [line[:300] for line in text.splitlines()]
    return []


def journal(setting) -> dict:
    """What was written to the journal as an error in the last hours, the most frequent first; and restarts."""
    options = ["--output=json", "--priority=3", "--lines=400", "--since=-%dmin" % int(setting.hours * 60)]
    fields = "--output-fields=MESSAGE,_SYSTEMD_UNIT,UNIT,SYSLOG_IDENTIFIER"
    return {"problems": parse_journal(host_journal([*options, fields], 4.0))}


def parse_journal(text: str) -> list:
    """Return [{unit, text, count, last}] of `journalctl --output=json`."""
    groups = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        message = entry.get("MESSAGE") if isinstance(entry, dict) else None
        if not isinstance(message, str):
            continue
        unit = entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or entry.get("SYSLOG_IDENTIFIER") or ""
        key = (unit, re.sub(r"\d+", "#", message)[:120])
        group = groups.setdefault(key, {"unit": unit, "count": 0})
        last = int(entry.get("__REALTIME_TIMESTAMP") or 0) / 1e6
        group.update(count=group["count"] + 1, text=message[:300], last=last)
    return sorted(groups.values(), key=lambda group: -group["last"])[:15]


_STARTS = re.compile(
    r"^(?P<at>\d+\.\d+) \S+ systemd\[1\]: (?P<what>Started|Stopped|Starting|Failed) ?(?:to start )?(?P<text>.*)$"
)


def changes(setting) -> dict:
    """What was done to the host lately: packages, restarts of units, reboots, files that were edited."""
    events = []
    for line in _last_lines(setting.path("/var/log/dpkg.log"), 64 * 1024):
        match = re.match(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (install|upgrade|remove|purge) (\S+) (\S+) (\S+)", line)
        if match:
            at = logs.timestamp(line)
            events.append({"at": at, "kind": "package", "text": "%s %s %s" % (match[2], match[3], match[5])})
    options = ["--output=short-unix", "--since=-%dmin" % int(setting.hours * 60), "--lines=600", "_PID=1"]
    text = ""
    with contextlib.suppress(probe.ProbeError):
        text = host_journal([*options, "--grep=^(Start(ed|ing)|Stopp(ed|ing)|Failed to start) "], 3.0)
    for line in text.splitlines():
        match = _STARTS.match(line)
        if match and setting.mentions_ours(match["text"]):
            what = "%s %s" % (match["what"], match["text"][:120])
            events.append({"at": float(match["at"]), "kind": "unit", "text": what})
    return {
        "events": sorted((event for event in events if event["at"]), key=lambda event: event["at"])[-60:],
        "reboot_required": os.path.exists(setting.path("/run/reboot-required")),
        "files": edited(setting),
        "statements": statements(setting),
        "restarted": restarted(setting, text, time.time() - 900),
    }


_JOB = re.compile(r"^(\d+\.\d+) \S+ systemd\[1\]: (Start|Stopp)(?:ed|ing) (.*?)[.]*$")


def restarted(setting, text: str, since: float, times: int = 3) -> list:
    """Return [{unit, by, count}]: units of ours that are stopped each time that another unit begins."""
    counts, begun, counted = {}, [], {}
    for at, what, name in (match.groups() for match in map(_JOB.match, reversed(text.splitlines())) if match):
        at, ours = float(at), setting.mentions_ours(name)
        if at < since:
            continue
        if what == "Start" and not ours:
            begun.append((at, name.partition(" - ")[0][:80]))
        elif what == "Stopp" and ours:
            for other in {one for when, one in begun if at - 3 <= when <= at}:
                # One stop has several lines.
                if at - counted.get((name, other), 0.0) > 5:
                    counted[name, other] = at
                    counts[name, other] = counts.get((name, other), 0) + 1
    rows = [{"unit": name[:80], "by": other, "count": count} for (name, other), count in counts.items()]
    return sorted((row for row in rows if row["count"] >= times), key=lambda row: -row["count"])[:5]


# Runs of this repository change these before a release is live, and the release never after that.
_CONFIGURATION = (
    "/etc/nginx /etc/postgresql /etc/redis /etc/systemd/system /run/systemd/system /run/systemd/system.control "
    "/etc/hosts /etc/resolv.conf /etc/nsswitch.conf /etc/gai.conf /etc/host.conf /etc/passwd /etc/group /etc/sysctl.d "
    "/etc/sysctl.conf /etc/security /etc/ssl /etc/default /etc/environment /etc/ld.so.conf.d /etc/ld.so.preload "
    "/etc/cron.d /etc/crontab /etc/nftables.conf /etc/apparmor.d /etc/pam.d /etc/localtime"
).split()
# The unit of a drop-in, or of a unit's file.
_UNIT_FILE = re.compile(
    r"/systemd/system(?:\.control)?/([A-Za-z0-9@_.:\\-]+\.(?:service|socket|timer|slice))(?:\.d/[^/]+\.conf)?$"
)
_MOST_CHANGES = 20


def of_the_last_deploy(setting) -> tuple:
    """Return (since when a change of the host is by hand, since when one of the live release is)."""
    lately, deployed = time.time() - setting.hours * 3600, 0.0
    with contextlib.suppress(OSError):
        deployed = os.stat(os.path.join(Layout(setting.app_root).state, "state.json")).st_mtime + 30
    with contextlib.suppress(OSError):
        lately = max(lately, os.stat(setting.path(configuration.STAMP)).st_mtime + 30)
    return max(lately, deployed), deployed


def statements(setting) -> list:
    """Return the changes of a schema by hand since the last deploy or rollback."""
    path = logs.newest(setting.logs.get("postgresql", ""))
    return logs.schema_changes(path, setting.database, of_the_last_deploy(setting)[0]) if path else []


def edited(setting, seconds: float = 6.0) -> list:
    """Return [{path, at, in_release}] of what has changed since the last deploy or rollback, the latest first.

    A file that was removed shows as its directory. The time of the inode's change cannot be set by who edits. Of a
    unit's file and drop-in also the unit and its settings.
    """
    layout, end = Layout(setting.app_root), time.monotonic() + seconds
    lately, deployed = of_the_last_deploy(setting)
    found = []
    # A configuration may have been tried for long; a release is never changed, whenever it was built.
    with contextlib.suppress(probe.ProbeError):
        # In a cluster Patroni writes those of PostgreSQL.
        mine = [one for one in _CONFIGURATION if one != "/etc/postgresql" or not setting.cluster_ca_file]
        found = _newer([setting.path(one) for one in mine], lately, end)
    release = os.path.realpath(os.path.join(layout.active, "release"))
    tops = [os.path.join(release, part) for part in ("source", "static", "venv", "site")]
    inside = []
    with contextlib.suppress(probe.ProbeError):
        # A busy host may be late with so many files; what was found so far is evidence.
        inside = _newer(tops, deployed, end) if deployed else []
    # Of a release that version 1.0.0 or an earlier one built only times can tell.
    name = os.path.basename(release)
    if inside and "files_sha256" in releases.manifest(layout, name) and not releases.is_edited(layout, name):
        inside = []
    found = [{"path": path, "at": at, "in_release": False} for path, at in found]
    found += [{"path": path, "at": at, "in_release": True} for path, at in inside]
    # Of a file that was added or replaced, its directory says nothing more.
    covered = {os.path.dirname(one["path"]) for one in found}
    found = sorted((one for one in found if one["path"] not in covered), key=lambda one: -one["at"])[:_MOST_CHANGES]
    for one in found:
        match = _UNIT_FILE.search(one["path"])
        if match:
            one.update(unit=match[1], settings=_unit_settings(one["path"]))
        # Another site than ShiftMaster's, which no command may take away.
        if one["path"].startswith("/etc/nginx/") and re.search(
            r"^[ \t]*server[ \t]*\{", read_file(one["path"], limit=65536), re.M
        ):
            one["other_site"] = True
    return found


def _newer(tops: list, since: float, end: float) -> list:
    """Return [(path, time)] of what has changed below these directories since a time.

    Another process walks: here each look at a file waits for the threads of all other parts.
    """
    # A container's engine mounts files of its own there.
    tops = [top for top in tops if os.path.lexists(top) and not os.path.ismount(top)]
    if not tops:
        return []
    # A deploy adds and removes links of files of the environments that it shares between releases.
    shared, at = ["-type", "f", "-links", "+1"], "@%.6f" % since
    command = ["find", "-P", *tops, "-xdev", "(", *shared, "-newermt", at, "-printf", "%T@ %p\\0", ")"]
    command += ["-o", "!", "(", *shared, ")", "-newerct", at, "-printf", "%C@ %p\\0"]
    text = probe.run(command, max(0.2, end - time.monotonic()))[1]
    rows = (row.partition(" ") for row in text.split("\0") if row)
    return [(path, round(float(timestamp), 1)) for timestamp, _space, path in rows]


def _unit_settings(path: str) -> list:
    """Return the settings of a unit's file; values of an environment stay on the host."""
    lines = [line.strip() for line in read_file(path, limit=8192).splitlines()]
    found = [line for line in lines if re.match(r"[A-Z][A-Za-z]+=", line)]
    hidden = re.compile(r"^(Environment|PassEnvironment|SetCredential\w*)=.*")
    return [hidden.sub(r"\1=...", line)[:160] for line in found[:8]]


def _last_lines(path: str, limit: int) -> list:
    try:
        return logs.tail(path, limit).splitlines()
    except OSError:
        return []


# What ShiftMaster runs on. Its files are compared with the sums that came with them.
_PACKAGES = re.compile(
    r"((?:nginx|nginx-common|postgresql(?:-client)?-\d+|postgresql-common|redis-server|redis-tools|python3\.\d+(?:-minimal)?"
    r"|libpython3\.\d+-(?:stdlib|minimal)|tzdata|libc6|libc-bin|openssl|libssl3\w*|libpq5|ca-certificates|systemd|logrotate"
    r"|haproxy|keepalived|etcd-server|patroni))(?::[a-z0-9]+)?\.list"
)
# Without what a container image may leave out.
_VERIFIED = re.compile(
    r"^(missing |[?.]{2}5\S{6})\s+(/(?!usr/share/(?:doc|man|locale|info|lintian|bug)/)\S.*?)(?: \(.*\))?$"
)


def packages(setting) -> dict:
    """Files of Debian's packages that were changed or removed, without configuration files: [{path, at, package}]."""
    names = map(_PACKAGES.fullmatch, os.listdir(setting.path("/var/lib/dpkg/info")))
    names = sorted({one[0][: -len(".list")] for one in names if one})
    try:
        _code, text, error = probe.run(["dpkg", "--verify", *names], 4.0) if names else (0, "", "")
    except probe.ProbeError as late:
        # It reads a hundred megabytes: a busy host or a slow disk is no fault of a package.
        raise Absent(str(late))
    if "dpkg: error" in error:
        raise Absent(" ".join(error.split())[:200])
    found = []
    for match in filter(None, map(_VERIFIED.match, text.splitlines()[:100])):
        path, at = match[2], None
        # When a file was removed is not known: an upgrade changes its directory, too.
        with contextlib.suppress(OSError):
            at = os.lstat(path).st_ctime
        # pip's marker, which some people remove.
        if not path.endswith("/EXTERNALLY-MANAGED"):
            found.append({"path": path, "at": at, "missing": match[1].startswith("missing"), "package": ""})
    for one in found[:10]:
        with contextlib.suppress(probe.ProbeError):
            one["package"] = probe.run(["dpkg-query", "--search", one["path"]], 1.0)[1].partition(": ")[0].split(",")[0]
            show = ["dpkg-query", "--show", "--showformat=${Version}", one["package"]]
            one["version"] = probe.run(show, 1.0)[1].strip() if one["package"] else ""
    return {"files": sorted(found[:10], key=lambda one: -(one["at"] or 0)), "checked": len(names)}


def containers(setting) -> dict:
    """Containers, where there is an engine."""
    for engine in ("docker", "podman"):
        try:
            code, text, error = probe.run([engine, "ps", "--all", "--no-trunc", "--format", "{{json .}}"], 3.0)
        except probe.ProbeError as problem:
            if problem.reason == "missing":
                continue
            raise
        if code == 0:
            return {"engine": engine, "containers": parse_containers(text)}
        if "Cannot connect" in error or "no such file" in error.lower():
            continue
        raise probe.ProbeError("error", "engine", error.strip()[:200])
    raise Absent("no container engine runs")


def parse_containers(text: str) -> list:
    """Return the rows of `docker ps --format '{{json .}}'`."""
    found = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        names = row.get("Names")
        name = names if isinstance(names, str) else ",".join(names or [])
        found.append(dict({key: row.get(key.title(), "") for key in ("image", "state", "status")}, name=name))
    return found[:50]
