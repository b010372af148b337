"""Evidence of the application: its release, environment, files and rights, its interpreter, Redis, Celery."""

from __future__ import annotations

import calendar
import contextlib
import grp
import json
import os
import pwd
import re
import stat
import time
from urllib.parse import quote

from ..health import checks
from ..host import envfile, probe, safe_files
from ..release import releases
from ..release.layout import Layout
from ..release.releasecode import ReleaseCode, ReleaseCodeError, run_as
from ..release.state import State, StateError
from .engine import Absent
from .host import processes, read, read_file, unit_of
from .logs import tail, timestamp
from .redact import HIDDEN, SECRET_NAME, redact


def _layout(setting) -> Layout:
    layout = Layout(setting.app_root)
    if not os.path.isdir(layout.root):
        raise Absent("there is no %s" % layout.root)
    return layout


# --- the release -----------------------------------------------------------------------------------------------------


def release(setting) -> dict:
    """The live release, obstacles, and recent deploys."""
    layout = _layout(setting)
    slot, name = layout.active_slot(), layout.current()
    found = {
        "slot": slot,
        "release": name,
        "dir_exists": bool(name) and os.path.isdir(os.path.join(layout.releases, name)),
        "source_exists": bool(name) and os.path.isdir(os.path.join(layout.releases, name, "source")),
        "releases": layout.names()[-6:],
        "maintenance": os.path.exists(os.path.join(layout.shared, "maintenance", "on")),
        "deploys": _deploys(layout),
    }
    found.update(_socket(layout, slot))
    try:
        state = State(layout)
        found.update(
            state=state.status(name) if name else None,
            bad_reason=str(state.releases.get(name, {}).get("reason") or "") if name else "",
            live_at=str(state.releases.get(name, {}).get("live_at") or "") if name else "",
            way_back=state.rollback_target(name),
            transition=dict(state.transition) if state.transition else None,
        )
        name = str((state.transition or {}).get("to") or name or "")
    except (StateError, OSError) as error:
        found["state_error"] = str(error)
    # That of the release which an unfinished deploy was to make live.
    found["version"] = str(releases.manifest(layout, os.path.basename(name or "")).get("version") or "")
    if found["maintenance"]:
        found["maintenance_since"] = os.path.getmtime(os.path.join(layout.shared, "maintenance", "on"))
    found["python"] = _interpreter(os.path.join(layout.active, "release", "venv", "bin", "python"), setting.user)
    return found


def _socket(layout, slot) -> dict:
    if slot is None:
        return {"socket": "", "socket_exists": False}
    path = layout.socket(slot)
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError as error:
        return {"socket": path, "socket_exists": False, "socket_error": error.strerror}
    return {
        "socket": path,
        "socket_exists": stat.S_ISSOCK(status.st_mode),
        "socket_mode": "%04o" % stat.S_IMODE(status.st_mode),
        "socket_group": _named(grp.getgrgid, status.st_gid),
    }


def _interpreter(path: str, user: str) -> dict:
    """Return the version of the release's Python; it writes nothing, and reads none of the application.

    It runs in the sandbox of a release's code: a dependency of the release may have replaced the interpreter.
    """
    if not os.path.lexists(path):
        return {"path": path, "works": False, "error": "there is no such file"}
    # The file itself is a link to the host's Python.
    blocked = obstacle(os.path.dirname(path), user, 1) or obstacle(path, user, 1)
    if blocked:
        # Missing rights and users are a finding of their own (rights()).
        works = None if blocked["problem"] in ("rights", "no such user") else False
        return {"path": path, "works": works, "error": blocked["problem"]}
    command = [path, "-I", "-S", "-B", "-c", "import sys; print(sys.version)"]
    try:
        done = run_as(user, command, {}, "/", timeout=4)
    except ReleaseCodeError as error:
        # On a host with too much to do it may be late.
        return {"path": path, "works": None if "did not end" in str(error) else False, "error": str(error)}
    if done.rc != 0:
        why = " ".join(done.stderr.split())[-300:] or "it ended with %d" % done.rc
        return {"path": path, "works": False, "error": why}
    return {"path": path, "works": True, "version": (done.stdout.split() or ["?"])[0][:40]}


def _deploys(layout, count: int = 12) -> list:
    """Return the last events of the audit log about deploys and reverts."""
    try:
        text = tail(os.path.join(layout.state, "audit.jsonl"), 128 * 1024)
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if event.get("event") in _EVENTS:
                found.append({key: str(event[key])[:200] for key in _AUDITED if event.get(key)})
    return found[-count:]


_EVENTS = ("live", "gate_failed", "reverted", "not_reverted", "marked_bad", "cutover_started")
_AUDITED = ("time", "event", "kind", "target", "release", "version", "previous", "who", "reason")

# --- the environment -------------------------------------------------------------------------------------------------


def environment(setting) -> dict:
    """Which names the release's environment has, never a value."""
    _layout(setting)
    path = setting.environment_file
    if not path:
        raise Absent("this host has no environment file")
    try:
        status = safe_files.status(path)
        values = envfile.parse(safe_files.read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        missing = list(setting.required_names)
        return {"path": path, "exists": False, "edited": True, "names": [], "missing": missing, "empty": []}
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        return {"path": path, "exists": True, "problem": why, "names": [], "missing": [], "empty": []}
    return {
        "path": path,
        "exists": True,
        "mode": "%04o" % stat.S_IMODE(status.st_mode),
        "readable_by_others": bool(status.st_mode & 0o004),
        "edited": _edited(path, status),
        "names": sorted(values),
        "missing": [name for name in setting.required_names if name not in values],
        "empty": [name for name in setting.required_names if name in values and not values[name]],
        "other_than_expected": _differences(values, setting.expected_values),
    }


def _edited(path: str, status: os.stat_result) -> bool:
    """Whether a release's environment was written after its release was built, which no run does."""
    try:
        manifest = json.loads(safe_files.read_bytes(os.path.join(os.path.dirname(path), "manifest.json")))
        built = calendar.timegm(time.strptime(manifest["created"], "%Y-%m-%dT%H:%M:%SZ"))
    except (OSError, ValueError, TypeError, KeyError):
        return True
    # It is reported in full seconds.
    return status.st_mtime >= built + 1


def _differences(values: dict, expected: dict) -> list:
    """Return the names whose values differ from the inventory; no value of a secret is shown."""

    def shown(name, value):
        return HIDDEN if SECRET_NAME.search(name) else value[:200]

    return [
        {"name": name, "is": shown(name, values[name]), "should": shown(name, should)}
        for name, should in sorted(expected.items())
        if name in values and values[name] != should
    ]


# --- files and rights ------------------------------------------------------------------------------------------------


def _named(table, number: int) -> str:
    """Return the name of a user (pwd.getpwuid) or group (grp.getgrgid), its number where it has none."""
    try:
        return table(number)[0]
    except KeyError:
        return str(number)


def groups_of(user: str) -> tuple:
    """Return (uid, gids) of a user; raises KeyError where there is none."""
    entry = pwd.getpwnam(user)
    return entry.pw_uid, {entry.pw_gid} | {group.gr_gid for group in grp.getgrall() if user in group.gr_mem}


def may(status, uid: int, gids, need: int) -> bool:
    """Return whether somebody has rights (4 read, 2 write, 1 enter) by a file's mode; ACLs are not looked at."""
    shift = 6 if status.st_uid == uid else 3 if status.st_gid in gids else 0
    return uid == 0 or status.st_mode >> shift & need == need


def obstacle(path: str, user: str, need: int):
    """Return what keeps a user from a path: the first directory that he may not enter, or the path itself."""
    try:
        uid, gids = groups_of(user)
    except KeyError:
        return {"path": path, "user": user, "problem": "no such user"}
    real = os.path.realpath(path)
    parts = real.strip("/").split("/")
    for count in range(1, len(parts) + 1):
        place = "/" + "/".join(parts[:count])
        last = count == len(parts)
        try:
            status = os.stat(place)
        except FileNotFoundError:
            return {"path": place, "user": user, "problem": "missing"}
        except OSError as error:
            return {"path": place, "user": user, "problem": error.strerror}
        wanted = need if last else 1
        if not may(status, uid, gids, wanted):
            owner = "%s:%s" % (_named(pwd.getpwuid, status.st_uid), _named(grp.getgrgid, status.st_gid))
            letters = "".join(letter for bit, letter in ((4, "r"), (2, "w"), (1, "x")) if wanted & bit)
            found = {"path": place, "user": user, "problem": "rights", "owner": owner, "need": letters}
            # A system user may have been taken out of a group.
            lacks = status.st_mode >> 3 & wanted == wanted and status.st_gid and status.st_gid not in gids
            found["lacks_group"] = _named(grp.getgrgid, status.st_gid) if lacks else ""
            return dict(found, mode="%04o" % stat.S_IMODE(status.st_mode))
    if need & 2 and read_only(real):
        return {"path": real, "user": user, "problem": "read-only", "mount": mount_of(real)}
    return None


def read_only(path: str) -> bool:
    """Return whether nobody can write there, whatever the mode: of a mount, too, whose filesystem others write to."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def mount_of(path: str) -> str:
    """Return where what a path lies on is mounted."""
    # Of a file that is mounted itself, ismount() reports it only where its device is another one.
    while path != "/" and not os.path.ismount(path):
        if any(line.split()[4:5] == [path] for line in read("/proc/self/mountinfo").splitlines()):
            break
        path = os.path.dirname(path)
    return path


def rights(setting) -> dict:
    """Whether the application and the web server may enter, read and write what they must."""
    layout = _layout(setting)
    active = os.path.join(layout.active, "release")
    wanted = [
        (os.path.join(active, "source"), setting.user, 5),
        (os.path.join(active, "venv", "bin", "python"), setting.user, 1),
        # Root's; the application's files in it are below.
        (setting.log_dir, setting.user, 1),
        (os.path.join(layout.shared, "media"), setting.user, 7),
    ]
    # Of what the C library reads for everybody: root's checks see no difference.
    of_all = ("/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/passwd")
    wanted += [(path, setting.user, 4) for path in of_all if os.path.exists(path)]
    wanted += [(path, setting.user, 2) for path in _existing(os.path.join(setting.log_dir, name) for name in _OWN_LOGS)]
    if setting.web_user:
        wanted.append((os.path.join(active, "static"), setting.web_user, 5))
        slot = layout.active_slot()
        if slot and os.path.exists(layout.socket(slot)):
            wanted.append((layout.socket(slot), setting.web_user, 2))
    found = [obstacle(*one) for one in wanted if os.path.lexists(one[0])]
    inside = [obstacle(path, user, 5 if path.endswith("/") else 4) for path, user in closed(active, setting)]
    found += [one for one in inside if one and one["problem"] == "rights"]
    return {"obstacles": [one for one in found if one], "checked": len(wanted)}


def closed(release: str, setting) -> list:
    """Return [(path, user)] of a release's directories, with a slash, and files that not everybody may read.

    Another process walks: here each look at a file waits for the threads of all other parts.
    """
    users = {"source": setting.user, "venv": setting.user, "static": setting.web_user}
    tops = [os.path.join(os.path.realpath(release), name) for name, user in users.items() if user]
    tops = [top for top in tops if os.path.isdir(top)]
    shut = ["(", "-type", "d", "!", "-perm", "-0005", "-printf", "%p/\\0", "-prune", ")"]
    shut += ["-o", "(", "-type", "f", "!", "-perm", "-0004", "-printf", "%p\\0", ")"]
    text = ""
    with contextlib.suppress(probe.ProbeError):
        text = probe.run(["find", "-P", *tops, "-xdev", *shut], 2.0)[1] if tops else ""
    paths = [path for path in text.split("\0") if path][:20]
    top = len(os.path.realpath(release).split("/"))
    return [(path, users[path.split("/")[top]]) for path in paths]


_OWN_LOGS = ("error.log", "app.log", "celery.log", "celery-beat.log")


def _existing(paths) -> list:
    return [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]


def static(setting) -> dict:
    """Whether the release's static files are there, and whether the web server hands one out."""
    layout = _layout(setting)
    directory = os.path.join(layout.active, "release", "static")
    count, example = _count(directory)
    union_count, other = _count(layout.union)
    found = {"directory": directory, "exists": os.path.isdir(directory), "files": count, "kept_files": union_count}
    name = example or other
    if name and setting.static_url:
        path = "/static/" + quote(name)
        result = probe.http_get(setting.static_url, path, setting.domain, 4.0, None, False)
        found.update(requested=path, http_status=result.status, http_error=result.error or "")
        # Browsers reject a style sheet of another type.
        kind = result.headers.get("content-type", "").partition(";")[0][:60]
        found["wrong_type"] = kind if result.status == 200 and name.endswith(".css") and kind != "text/css" else ""
        found["type_known"] = "text/css" in read_file(setting.path("/etc/nginx/mime.types"))
    return found


def _count(directory: str, limit: int = 20000) -> tuple:
    """Return (number of files, the name of the first style sheet, or of the first where there is none)."""
    count, first, sheet, end = 0, "", "", time.monotonic() + 1.0
    for place, names, files in os.walk(directory):
        names.sort()
        for name in sorted(files):
            count += 1
            # Compressed copies are handed out under another name.
            if not first and not name.endswith((".gz", ".br")):
                first = os.path.relpath(os.path.join(place, name), directory)
            if not sheet and name.endswith(".css"):
                sheet = os.path.relpath(os.path.join(place, name), directory)
        if count > limit or time.monotonic() > end:
            break
    return count, sheet or first


# --- Redis and Celery ------------------------------------------------------------------------------------------------

_INFO = (
    "redis_version role uptime_in_seconds connected_clients maxclients blocked_clients used_memory maxmemory "
    "maxmemory_policy evicted_keys rejected_connections rdb_last_bgsave_status aof_last_write_status "
    "aof_last_bgrewrite_status loading connected_slaves master_link_status instantaneous_ops_per_sec"
).split()


def redis(setting) -> dict:
    """Redis as the application reaches it: broker and cache, with its metrics and the length of the queues."""
    _layout(setting)
    context = checks.Context(setting.environment_file, setting.environment_keys, setting.app_root, setting.user)
    found = {}
    for name, key in (("broker", setting.broker_key), ("cache", setting.cache_key)):
        url = context.environment().get(key)
        if not url:
            found[name] = {"works": False, "reason": "address", "message": "%s is not set" % key}
            continue
        try:
            target = probe.parse_redis_url(url)
        except ValueError as error:
            found[name] = {"works": False, "reason": "address", "message": "%s: %s" % (key, error)}
            continue
        where = {"where": target.path or "%s:%s" % (target.host, target.port)}
        try:
            queues = setting.queues if name == "broker" else ()
            found[name] = dict(where, works=True, **query_redis(target, queues, 4.0))
        except probe.ProbeError as error:
            found[name] = dict(where, works=False, reason=error.reason, message=str(error))
    return found


def query_redis(target, queues, timeout: float) -> dict:
    """Return INFO's metrics and {queue: length}, and the queues again a second later where one is not empty."""
    metrics = probe.redis_ping(target, timeout)
    deadline = probe.Deadline(timeout)
    tls = probe.tls_context(target.verify, target.ca_file) if target.tls else None
    with probe.connected(target.host, target.port, target.path, deadline, tls) as connection:
        talk = Conversation(connection, deadline, target)
        values = dict(line.split(":", 1) for line in (talk.say("INFO") or "").splitlines() if ":" in line)
        metrics["info"] = {name: values[name] for name in _INFO if name in values}
        # Celery keeps a queue of lower priority under its name with a number after it.
        lengths = {queue: talk.number("LLEN", queue) for queue in queues}
        metrics["queues"] = lengths
        if any(lengths.values()):
            time.sleep(1.0)
            metrics["queues_later"] = {queue: talk.number("LLEN", queue) for queue in queues}
        metrics["unacknowledged"] = talk.number("HLEN", "unacked") if queues else 0
        # Since ten seconds or more a worker has them, and none of its processes.
        held = ("ZCOUNT", "unacked_index", "0", "%d" % (time.time() - 10))
        metrics["held"] = talk.number(*held) if metrics["unacknowledged"] else 0
        for queue in queues:
            talk.number("SCARD", "_kombu.binding." + queue)
        metrics["wrong_type"] = sorted(talk.wrong_type)
        if (metrics.get("used_memory_percent") or 0) > 90:
            databases = [name[2:] for name in values if re.fullmatch(r"db\d+", name)]
            with contextlib.suppress(probe.ProbeError):
                metrics["largest_keys"] = largest_keys(talk, databases, min(1.0, deadline.left() - 1.5))
        if metrics["connect_ms"] + metrics["latency_ms"] > _SLOW_MS:
            metrics["busiest"] = busiest_command(talk)
    return metrics


def largest_keys(talk, databases: list, seconds: float = 1.0) -> list:
    """Return the largest of some thousand keys of Redis, by memory: [{name, bytes, database}].

    Of a name only its first word: sessions, tokens and names of people follow.
    """
    found, end = [], time.monotonic() + seconds
    for database in databases:
        talk.say("SELECT", database)
        cursor = "0"
        for _round in range(20):
            cursor, names = talk.say("SCAN", cursor, "COUNT", "200") or ("0", [])
            for name in names:
                if time.monotonic() < end:
                    found.append({"name": name, "bytes": talk.number("MEMORY", "USAGE", name), "database": database})
            if cursor == "0" or time.monotonic() >= end:
                break
    largest = sorted(found, key=lambda one: -one["bytes"])[:3]
    words = [re.match(r"(?::\d+:)?[A-Za-z_]{1,20}(?![A-Za-z0-9_])", one["name"]) for one in largest]
    return [dict(one, name=(word[0] if word else "") + "...") for one, word in zip(largest, words)]


# A login and a PING take less than two milliseconds where no other command runs.
_SLOW_MS = 50


def busiest_command(talk, seconds: float = 0.8) -> dict:
    """Return the command that takes most of the time of Redis, which does one at a time: {command, percent, ms}."""

    def times():
        rows = re.findall(r"^cmdstat_([^:]+):calls=(\d+),usec=(\d+)", talk.say("INFO", "commandstats") or "", re.M)
        return {name: (int(calls), int(microseconds)) for name, calls, microseconds in rows}

    began, before = time.monotonic(), times()
    time.sleep(seconds)
    after, passed = times(), time.monotonic() - began
    spent = {name: after[name][1] - before.get(name, (0, 0))[1] for name in after}
    name = max(spent, key=spent.get, default="")
    if not name or spent[name] <= 0:
        return {}
    calls = max(1, after[name][0] - before.get(name, (0, 0))[0])
    return {
        "command": name.replace("|", " ")[:40],
        "percent": round(min(100.0, spent[name] / 1e4 / passed), 1),
        "ms": round(spent[name] / calls / 1000, 1),
    }


class Conversation:
    """Commands and responses of one logged-in connection; what the user may not do is None."""

    def __init__(self, connection, deadline, target):
        self._wire = probe._Wire(connection, deadline)
        self._stream = self._wire.makefile()
        self.wrong_type = set()
        if target.password is not None:
            self.say("AUTH", *([target.username, target.password] if target.username else [target.password]))
        if target.database:
            self.say("SELECT", str(target.database))

    def say(self, *words):
        try:
            return probe.redis_command(self._wire, self._stream, *words)
        except probe.RedisError as error:
            if str(error).startswith("WRONGTYPE"):
                self.wrong_type.add(words[1])
            return None

    def number(self, *words) -> int:
        response = self.say(*words)
        return int(response) if response and str(response).lstrip("-").isdigit() else 0


def cache_server(setting) -> dict:
    """Redis on its own host: whether it responds there, password or not."""
    for port, tls in setting.redis_ports:
        target = probe.RedisTarget("localhost", port, tls=tls, verify=False)
        try:
            return dict(probe.redis_ping(target, 3.0), works=True, port=port)
        except probe.ProbeError as error:
            if error.reason == "noauth":
                return {"works": True, "port": port, "requires_password": True}
            return {"works": False, "port": port, "reason": error.reason, "message": str(error)}
    raise Absent("this host has no Redis")


def role_of(command: str) -> str:
    """Return beats or workers for a process of Celery (its arguments, as /proc has them), else ""."""
    words = command.split("\0")
    # celery itself, or an interpreter that runs it; who only looks at its log has it elsewhere.
    if not any(os.path.basename(word) == "celery" for word in words[:3]):
        return ""
    command = next((word for word in words if word in _COMMANDS), "")
    return {"beat": "beats", "worker": "workers"}.get(command, "")


_COMMANDS = ("beat", "worker", "inspect", "control", "status", "call", "report", "purge", "shell", "multi", "events")


def celery(setting) -> dict:
    """The processes of Celery, who started them, and what the worker did last."""
    layout = _layout(setting)
    found = {"beats": [], "workers": []}
    for pid, process in processes(setting.proc).items():
        command = read(setting.proc, str(pid), "cmdline", limit=1000)
        kind, unit = role_of(command), unit_of(read(setting.proc, str(pid), "cgroup"))
        # Processes of the application choose their arguments; a command of a finding would stop the unit.
        if not kind or (unit.startswith("shiftmaster-") and not unit.startswith("shiftmaster-%s@" % kind[:-1])):
            continue
        entry = {"pid": pid, "parent": process["parent"], "state": process["state"], "unit": unit}
        # Cut after that: what is left of a password is not recognized.
        found[kind].append(dict(entry, command=redact(command.replace("\0", " "), setting.secrets())[:160]))
    for kind in ("beats", "workers"):
        # A forked child is the same worker.
        pids = {one["pid"] for one in found[kind]}
        found[kind] = sorted((one for one in found[kind] if one["parent"] not in pids), key=lambda one: one["pid"])
    found["slot"] = layout.active_slot()
    # Queues of its own that a handover between two releases gives a worker.
    handover = setting.path("/run/shiftmaster/worker-%s.env" % found["slot"])
    found["handover"] = handover if os.path.lexists(handover) else ""
    unit = "shiftmaster-worker@%s.service" % found["slot"]
    found["log"] = worker_log(os.path.join(setting.log_dir, "celery.log"), unit)
    return found


def worker_log(path: str, unit: str = "") -> dict:
    """Return when the worker last began and ended a task, and whether it has lost its broker.

    Where the application sets up Celery's logging by itself, nothing is in the file: then by the unit's journal.
    """
    try:
        lines = tail(path, 128 * 1024).splitlines()
        if not lines:
            raise OSError(0, "nothing is in it")
        changed = safe_files.status(path).st_mtime
    except OSError as error:
        command = ["journalctl", "--no-pager", "--quiet", "--output=short-unix", "--lines=400", "--unit=" + unit]
        entries = probe.run(command, 3.0)[1].splitlines() if unit else []
        if not entries or not re.match(r"[0-9.]+ ", entries[-1]):
            return {"path": path, "problem": error.strerror}
        path, changed = "journalctl -u " + unit, float(entries[-1].split()[0])
        lines = [entry.partition("]: ")[2] for entry in entries]
    received = [line for line in lines if "received" in line and "Task " in line]
    ended = [line for line in lines if "succeeded in" in line or "raised " in line and "Task " in line]
    lost = [line for line in lines if "consumer: Cannot connect" in line or "Connection to broker lost" in line]
    connected = [number for number, line in enumerate(lines) if "Connected to redis" in line or " ready." in line]
    return {
        "path": path,
        "silent_seconds": int(time.time() - changed),
        "received": len(received),
        "ended": len(ended),
        "failed": sum("raised " in line for line in ended),
        # With what it says between two attempts, of which each line has the time.
        "lost_at": timestamp(lost[-1]) if lost else None,
        "broker_lost": bool(lost) and (not connected or lines.index(lost[-1]) > connected[-1]),
        "last": lines[-1][:300] if lines else "",
    }


def workers_respond(setting) -> dict:
    """Whether the live worker responds to a ping. It needs a start of the application, so it runs only on suspicion."""
    if not setting.celery_application:
        raise Absent("the application has no Celery")
    context = checks.Context(setting.environment_file, setting.environment_keys, setting.app_root, setting.user)
    options = {"application": setting.celery_application, "worker_pattern": "worker-{slot}@{node}"}
    options.update(timeout_seconds=12.0, min_workers=1, queues=setting.queues)
    try:
        outcome = checks.KINDS["celery"].function(options, context)
    except probe.ProbeError as error:
        return {"queried": True, "responds": False, "message": str(error)}
    found = {"queried": True, "responds": bool(outcome.data.get("workers")), "message": outcome.error}
    found.update(workers=outcome.data.get("workers", []), not_taken=outcome.data.get("not_taken", []))
    began = time.time()
    if found["responds"] and not found["not_taken"]:
        found.update(of_workers(setting, found["workers"]))
        # Those that were there before the workers were queried, and are there after it.
        found["held"] = still_held(context, setting, began - 10)
    return found


def still_held(context, setting, since: float) -> int:
    """Return how many tasks a worker has received before a time and has not begun; 0 where Redis does not tell."""
    with contextlib.suppress(probe.ProbeError, ValueError, OSError):
        target = probe.parse_redis_url(context.environment().get(setting.broker_key) or "")
        deadline = probe.Deadline(2.0)
        tls = probe.tls_context(target.verify, target.ca_file) if target.tls else None
        with probe.connected(target.host, target.port, target.path, deadline, tls) as connection:
            return Conversation(connection, deadline, target).number("ZCOUNT", "unacked_index", "0", "%d" % since)
    return 0


# One start of the application for three questions.
_INSPECT = """
import json, sys
from celery.app.utils import find_app
inspect = find_app(sys.argv[1]).control.inspect(destination=sys.argv[2:], timeout=2)
print(json.dumps([inspect.active(), inspect.scheduled(), inspect.registered("rate_limit")]))
"""


def of_workers(setting, names: list) -> dict:
    """Return {tasks, scheduled, limits} of the workers of these names; {} where they cannot be queried.

    tasks: those that run, the longest first: {name, seconds}; scheduled: how many wait for their time; limits: names of
    tasks with a rate limit, as "roster.tasks.mail [rate_limit=1/h]".
    """
    try:
        code = ReleaseCode(os.path.join(setting.app_root, "active", "release"), user=setting.user)
        done = code.run(["python", "-c", _INSPECT, setting.celery_application, *names], timeout=8.0)
        active, scheduled, registered = json.loads(done.stdout)
        rows = [task for tasks in active.values() for task in tasks]
        tasks = [{"name": str(row["name"])[:100], "seconds": round(time.time() - row["time_start"])} for row in rows]
        limits = {str(name)[:120] for tasks in registered.values() for name in tasks if "rate_limit=" in str(name)}
        count = sum(len(waiting) for waiting in scheduled.values())
    except (ReleaseCodeError, KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {
        "tasks": sorted(tasks, key=lambda one: -one["seconds"])[:20],
        "scheduled": count,
        "limits": sorted(limits)[:10],
    }
