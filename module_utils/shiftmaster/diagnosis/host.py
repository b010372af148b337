"""Evidence of the host itself, from /proc and /sys: processor, memory, processes, open files, kernel, clock."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import resource
import time

from ..host import probe, safe_files
from .redact import redact

_TICKS = os.sysconf("SC_CLK_TCK") or 100
_PAGE = resource.getpagesize()
_TOP = 10
# Seconds between two readings of counters. Shorter, and a short peak looks like a busy host.
SAMPLE_SECONDS = 1.0


def read(*path: str, limit: int = 1 << 20) -> str:
    """Return the text of a file of the kernel (/proc, /sys), "" where there is none or it may not be read."""
    try:
        with open(os.path.join(*path), encoding="utf-8", errors="replace") as stream:
            return stream.read(limit)
    except OSError:
        return ""


def read_file(*path: str, limit: int = 1 << 20) -> str:
    """Return the text of a file on a disk, "" where there is none or a less privileged user may have redirected it."""
    try:
        return safe_files.read_text(os.path.join(*path), limit)
    except (OSError, ValueError):
        return ""


def numbers(text: str) -> dict:
    """Return {name: number} of lines such as `MemTotal: 16 kB` or `oom_kill 3`."""
    found = {}
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and re.fullmatch(r"-?\d+", words[1]):
            found[words[0]] = int(words[1])
    return found


# --- processes -------------------------------------------------------------------------------------------------------


def parse_stat(text: str) -> dict:
    """Return what is used of /proc/<pid>/stat; a program's name may hold blanks and brackets."""
    name = text[text.index("(") + 1 : text.rindex(")")]
    rest = text[text.rindex(")") + 2 :].split()
    return {
        "name": name,
        "state": rest[0],
        "parent": int(rest[1]),
        "ticks": int(rest[11]) + int(rest[12]),
        "started": int(rest[19]),
        "memory": int(rest[21]) * _PAGE,
    }


def processes(proc: str = "/proc") -> dict:
    """Return {pid: parsed stat} of all processes that are still there when they are read."""
    found = {}
    try:
        names = os.listdir(proc)
    except OSError:
        return found
    for name in names:
        if name.isdigit():
            with contextlib.suppress(ValueError, IndexError):
                found[int(name)] = parse_stat(read(proc, name, "stat"))
    return found


def unit_of(text: str) -> str:
    """Return the unit in /proc/<pid>/cgroup, "" where it is in none; older kernels have a line for each controller."""
    found = re.search(r"([^/\n]+\.(?:service|scope|socket))$", text, re.M)
    return found.group(1) if found else ""


def describe(pid: int, stat: dict, proc: str = "/proc") -> dict:
    """Return what a person wants to know about a process."""
    # Cut after that: what is left of a password is not recognized.
    command = redact(read(proc, str(pid), "cmdline", limit=4000).replace("\0", " ").strip())
    return {
        "pid": pid,
        "name": stat["name"],
        "command": (command or "[%s]" % stat["name"])[:160],
        "state": stat["state"],
        "unit": unit_of(read(proc, str(pid), "cgroup")),
        "memory_bytes": stat["memory"],
    }


def cpu_ticks(text: str) -> dict:
    """Return the first line of /proc/stat as {busy, idle, iowait, steal, total}."""
    values = [int(word) for word in text.split("\n", 1)[0].split()[1:9]]
    user, nice, system, idle, iowait, irq, softirq, steal = values + [0] * (8 - len(values))
    total = user + nice + system + idle + iowait + irq + softirq + steal
    return {"busy": total - idle - iowait, "idle": idle, "iowait": iowait, "steal": steal, "total": total}


def shares(before: dict, after: dict) -> dict:
    """Return the percentages between two looks at cpu_ticks()."""
    total = max(1, after["total"] - before["total"])
    spent = {name: after[name] - before[name] for name in ("busy", "iowait", "steal")}
    return {name + "_percent": round(100.0 * ticks / total, 1) for name, ticks in spent.items()}


def pressure(text: str) -> dict:
    """Return the averages of /proc/pressure/*: {some: {avg10, avg60, avg300}, full: {...}}."""
    found = {}
    for line in text.splitlines():
        kind, _space, rest = line.partition(" ")
        averages = dict(re.findall(r"(avg\d+)=([\d.]+)", rest))
        if averages:
            found[kind] = {name: float(value) for name, value in averages.items()}
    return found


def cpu(setting) -> dict:
    """Who uses the processors, and for how much is waited."""
    proc = setting.proc
    first_ticks, first = cpu_ticks(read(proc, "stat")), processes(proc)
    began = time.monotonic()
    time.sleep(SAMPLE_SECONDS)
    passed = time.monotonic() - began
    second_ticks, second = cpu_ticks(read(proc, "stat")), processes(proc)
    used = []
    for pid, stat in second.items():
        if os.getpid() in (pid, stat["parent"]):
            continue  # This question itself.
        # A number that is taken again belongs to another process.
        before = first.get(pid)
        ticks = stat["ticks"] - (before["ticks"] if before and before["started"] == stat["started"] else 0)
        used.append((round(100.0 * ticks / _TICKS / passed, 1), pid))
    used.sort(reverse=True)
    processors = len(os.sched_getaffinity(0)) if proc == "/proc" else 1
    busy = [dict(describe(pid, second[pid], proc), cpu_percent=percent) for percent, pid in used if percent >= 1]
    stuck = [pid for pid, stat in second.items() if stat["state"] == first.get(pid, {}).get("state") == "D"]
    load = [float(word) for word in (read(proc, "loadavg").split() + ["0"] * 3)[:3]]
    return {
        "processors": processors,
        "load": load,
        "load_per_processor": round(load[0] / max(1, processors), 2),
        "uptime_seconds": int(float((read(proc, "uptime").split() or ["0"])[0])),
        "pressure": pressure(read(proc, "pressure", "cpu")),
        "io_pressure": pressure(read(proc, "pressure", "io")),
        "top": [dict(one, cpu_share=round(one["cpu_percent"] / max(1, processors), 1)) for one in busy[:_TOP]],
        # Four processes of one program are one hog.
        "groups": groups(busy, processors),
        "waiting_for_disk": [describe(pid, second[pid], proc) for pid in stuck[:_TOP]],
        "zombies": sum(stat["state"] == "Z" for stat in second.values()),
        "processes": len(second),
        "processes_limit": int(read(proc, "sys/kernel/pid_max").strip() or 0),
        **shares(first_ticks, second_ticks),
    }


def groups(used: list, processors: int) -> list:
    """Return who uses the processors: by unit, and where there is none by program."""
    found = {}
    for one in used:
        group = found.setdefault(one["unit"] or one["name"], dict(one, cpu_percent=0.0, processes=0))
        group["cpu_percent"] = round(group["cpu_percent"] + one["cpu_percent"], 1)
        group["processes"] += 1
    for group in found.values():
        group["cpu_share"] = round(group["cpu_percent"] / max(1, processors), 1)
    return sorted(found.values(), key=lambda group: -group["cpu_percent"])[:_TOP]


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(setting) -> dict:
    """Who has the memory, what is left, and whether the kernel moves it to and fro."""
    proc = setting.proc
    before = numbers(read(proc, "vmstat"))
    time.sleep(SAMPLE_SECONDS)
    after = numbers(read(proc, "vmstat"))
    found = processes(proc)
    top = sorted(found, key=lambda pid: found[pid]["memory"], reverse=True)[:_TOP]
    values = numbers(read(proc, "meminfo"))
    kept = "MemTotal MemFree MemAvailable Buffers Cached SwapTotal SwapFree Dirty Slab Shmem".split()
    return dict(
        probe.memory_usage(proc),
        meminfo_kib={name: values[name] for name in kept if name in values},
        pressure=pressure(read(proc, "pressure", "memory")),
        swaps=parse_swaps(read(proc, "swaps")),
        swapped_in_pages=max(0, after.get("pswpin", 0) - before.get("pswpin", 0)),
        swapped_out_pages=max(0, after.get("pswpout", 0) - before.get("pswpout", 0)),
        kills_since_boot=after.get("oom_kill", 0),
        top=[describe(pid, found[pid], proc) for pid in top if found[pid]["memory"]],
        units=unit_memory(setting.cgroup),
    )


def parse_swaps(text: str) -> list:
    """Return [{path, kind, bytes, used_bytes}] of /proc/swaps."""
    found = []
    for line in text.splitlines()[1:]:
        words = line.rsplit(None, 4)
        if len(words) == 5 and words[2].isdigit() and words[3].isdigit():
            size, used = (int(word) * 1024 for word in words[2:4])
            found.append({"path": words[0], "kind": words[1], "bytes": size, "used_bytes": used})
    return found


def unit_memory(root: str) -> list:
    """Return the services with a limit of memory: what they use, and how often a process of theirs was killed."""
    found = []
    for directory, _directories, files in os.walk(os.path.join(root, "system.slice")):
        deep = directory.count("/") > root.count("/") + 3
        if deep or "memory.max" not in files or not directory.endswith(".service"):
            continue
        limit, current = read(directory, "memory.max").strip(), read(directory, "memory.current").strip()
        events = numbers(read(directory, "memory.events"))
        if (limit.isdigit() or events.get("oom_kill")) and current.isdigit():
            used, most = int(current), int(limit) if limit.isdigit() else None
            entry = {"unit": os.path.basename(directory), "bytes": used, "limit_bytes": most}
            percent = round(100.0 * used / most, 1) if most else 0.0
            found.append(dict(entry, percent=percent, kills=events.get("oom_kill", 0)))
    return sorted(found, key=lambda unit: unit["percent"], reverse=True)[:20]


_KILL = re.compile(
    r"(?P<kernel>Out of memory: Killed process|Memory cgroup out of memory: Killed process) (?P<pid>\d+)"
    r" \((?P<name>[^)]*)\)|(?P<unit>\S+\.service): (?:A process of this unit has been killed by the OOM killer"
    r"|Failed with result 'oom-kill')"
)
# The kernel names the control group in a line before; systemd reports this about the main process of a unit.
_VICTIM = re.compile(r"oom-kill:\S*task_memcg=(?P<place>[^,\s]+),\S*pid=(?P<pid>\d+)")
_ENDED = re.compile(r"(?P<unit>\S+\.service): Main process exited, code=killed, status=9/KILL")
_LOGGED_WITHIN_SECONDS = 10


def parse_kills(text: str) -> list:
    """Return the kills in lines of `journalctl --output=short-unix`: when last, how often, whom, by whose limit."""
    found, victims, ended = [], {}, []
    for line in text.splitlines():
        timestamp = re.match(r"\d+(\.\d+)?", line)
        at = float(timestamp.group()) if timestamp else 0.0
        if victim := _VICTIM.search(line):
            victims[victim["pid"]] = victim["place"]
        if end := _ENDED.search(line):
            ended.append((at, end["unit"]))
        if match := _KILL.search(line):
            place = victims.pop(match["pid"], "") if match["pid"] else ""
            kill = {"at": at, "name": match["name"] or "", "unit": match["unit"] or "", "place": place}
            found.append(dict(kill, host_wide=(match["kernel"] or "").startswith("Out of memory")))
    for kill in found:
        place = kill.pop("place")
        kill["unit"] = kill["unit"] or own_unit(place, kill["at"], ended)
    return by_unit(of_one_kill(found))[-20:]


def own_unit(place: str, at: float, ended: list) -> str:
    """Return the unit of a control group, "" where it may be another container's: they all read one kernel's log."""
    unit = next((word for word in reversed(place.split("/")) if word.endswith(".service")), "")
    here = place.startswith(("/system.slice/", "/user.slice/"))
    logged = any(name == unit and 0 <= timestamp - at <= _LOGGED_WITHIN_SECONDS for timestamp, name in ended)
    return unit if here or logged else ""


def of_one_kill(found: list) -> list:
    """Return the kills without systemd's words about a process of which the kernel has spoken before.

    systemd reports the same for a unit's own limit and for the host's: the kernel's last message before it decides.
    """
    kept = []
    for kill in found:
        near = [one for one in found if -_LOGGED_WITHIN_SECONDS <= one["at"] - kill["at"] <= 0.5 and one is not kill]
        of_kernel = max((one for one in near if one["name"]), key=lambda one: one["at"], default=None)
        if not kill["name"] and of_kernel and of_kernel["host_wide"]:
            of_kernel["unit"] = of_kernel["unit"] or kill["unit"]
        elif kill["name"] or not any(one["unit"] == kill["unit"] for one in near if one["name"] or one in kept):
            kept.append(kill)
    return kept


def by_unit(found: list) -> list:
    """Return the last kill of each unit, with their number: one that is started and killed again is one fault."""
    last = {}
    for number, kill in enumerate(found):
        key = (kill["unit"], kill["host_wide"]) if kill["unit"] else number
        last[key] = dict(kill, count=last.pop(key, {"count": 0})["count"] + 1)
    return list(last.values())


def journal(options: list, seconds: float) -> str:
    """Return what journalctl prints. It ends with 1 where no line fits, and, with words, where it cannot read."""
    code, text, error = probe.run(["journalctl", "--no-pager", "--quiet", *options], seconds)
    if code not in (0, 1) or (code == 1 and error.strip()):
        raise probe.ProbeError("error", "journal", error.strip()[:200] or "journalctl ended with %d" % code)
    return text


def kills(setting) -> dict:
    """What was ended for lack of memory, by the kernel's and systemd's words."""
    words = "--grep=Killed process|OOM killer|oom-kill|code=killed, status=9/KILL"
    # A service prints what it likes.
    own = ["_TRANSPORT=kernel", "+", "_PID=1"]
    text = journal(["--output=short-unix", "--since=-6h", "--lines=200", words, *own], 4.0)
    # With --grep and --lines it begins with the newest.
    found = parse_kills("\n".join(reversed(text.splitlines())))
    units = [kill["unit"] for kill in found if kill["unit"]]
    show = ["systemctl", "show", "--property=ActiveState", "--value", "--", *units]
    states = dict(zip(units, probe.run(show, 2.0)[1].split())) if units else {}
    return {"kills": [dict(kill, active=states.get(kill["unit"], "")) for kill in found]}


# --- open files ------------------------------------------------------------------------------------------------------


def files(setting) -> dict:
    """Who has nearly as many files open as he may."""
    proc, near = setting.proc, []
    for pid, stat in processes(proc).items():
        try:
            count = len(os.listdir(os.path.join(proc, str(pid), "fd")))
        except OSError:
            continue
        limit = re.search(r"^Max open files\s+(\d+)", read(proc, str(pid), "limits"), re.M)
        if not limit or count <= 0.8 * int(limit.group(1)):
            continue
        # A limit of a few is a cage that a program has put itself into (OpenSSH before the login).
        if int(limit.group(1)) >= 64 or unit_of(read(proc, str(pid), "cgroup")).startswith("shiftmaster-"):
            near.append(dict(describe(pid, stat, proc), open=count, limit=int(limit.group(1))))
    used, _free, allowed = (int(word) for word in (read(proc, "sys/fs/file-nr").split() + ["0"] * 3)[:3])
    return {
        "open": used,
        "limit": allowed,
        "percent": round(100.0 * used / allowed, 1) if allowed else 0.0,
        "near_limit": sorted(near, key=lambda one: one["open"] / one["limit"], reverse=True)[:_TOP],
    }


# --- kernel and clock ------------------------------------------------------------------------------------------------

# Each needs more than the 15 characters of a process's name, which is in many lines and which the process chooses.
_IO_ERROR = re.compile(
    r"(?i)I/O error, dev \w+, sector|Buffer I/O error on dev|metadata I/O error|blocks, I/O error \(sct"
    r"|medium error, dev|Sense Key : Medium error"
)
_KERNEL = (
    ("io_error", _IO_ERROR),
    ("read_only", re.compile(r"Remounting filesystem read-only", re.I)),
    ("hung_task", re.compile(r"blocked for more than \d+ seconds")),
    ("conntrack", re.compile(r"nf_conntrack: table full")),
    ("segfault", re.compile(r"segfault at|general protection fault|traps: ")),
    ("flood", re.compile(r"Possible SYN flooding")),
)


def parse_kernel(text: str) -> dict:
    """Return {kind: [lines]} of the kernel's complaints."""
    found = {}
    for line in text.splitlines():
        for kind, words in _KERNEL:
            if words.search(line):
                found.setdefault(kind, []).append(line[-200:])
    return {kind: lines[-5:] for kind, lines in found.items()}


def kernel(setting) -> dict:
    """What the kernel has complained about since six hours."""
    text = journal(["--dmesg", "--output=cat", "--since=-6h", "--lines=2000"], 4.0)
    return {"complaints": parse_kernel(text), "release": os.uname().release}


def clock(setting) -> dict:
    """Whether the clock is kept, and what it shows; the hosts' clocks are compared on the controller."""
    state = probe.clock_state(4.0)
    now = datetime.datetime.now(datetime.timezone.utc)
    return dict(state, now=now.timestamp(), zone=time.strftime("%Z"))
