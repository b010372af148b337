"""Evidence of the network: who listens, what the firewall refuses, names, certificates, responses."""

from __future__ import annotations

import contextlib
import datetime
import glob
import ipaddress
import json
import os
import pwd
import re
import select
import socket
import time

from ..health import checks
from ..host import probe, redundancy, safe_files, symptoms
from ..monitoring.host_metrics import name_server, name_servers
from .engine import Absent
from .host import processes, read, read_file, unit_of
from .redact import redact

# --- listeners -------------------------------------------------------------------------------------------------------


def parse_ss(text: str, peer: bool = False) -> list:
    """Return the rows of `ss -Hltnp`: address, port, and who listens; peer: of `ss -Htnp state ...`, the other side."""
    found = []
    for line in text.splitlines():
        words = line.split(None, 4 if peer else 5)
        if len(words) < 4 + (not peer):
            continue
        address, _colon, port = words[3].rpartition(":")
        programs = re.findall(r'\("([^"]+)",pid=(\d+)', words[-1])
        if port.isdigit():
            waiting, queue = (int(word) if word.isdigit() else 0 for word in words[1:3])
            names, pids = ({one[number] for one in programs} for number in (0, 1))
            address = address.strip("[]").partition("%")[0]
            found.append(dict(address=address, port=int(port), programs=sorted(names), pids=sorted(map(int, pids))))
            found[-1].update(waiting=waiting, queue=queue)
    return found


_EVERYWHERE = ("0.0.0.0", "*", "::", "127.0.0.1", "::1")


def ports(setting) -> dict:
    """Who listens on TCP; and of the ports that must be served, by whom they are."""
    code, text, error = probe.run(["ss", "-Hltnp"], 3.0)
    if code != 0:
        raise probe.ProbeError("error", "ss", error.strip()[:200])
    listeners, expected = parse_ss(text), []
    # Of the connections that this host opens: what does not respond holds up who waits for it.
    waiting = parse_ss(probe.run(["ss", "-Htnp", "state", "syn-sent"], 3.0)[1], peer=True)
    for port, program in setting.ports.items():
        holders = [one for one in listeners if one["port"] == int(port)]
        # Names of programs are cut to 15 letters, and PostgreSQL's is "postgres". The rightful one may hold the port of
        # one address while it tries for the other.
        here = [one for one in holders if one["address"] in _EVERYWHERE and one["programs"]]
        others = [one for one in here if not any(name.startswith(program[:8]) for name in one["programs"])]
        by = sorted({name for one in others or holders for name in one["programs"]})
        expected.append(dict(port=int(port), program=program, listens=bool(holders), by=by, foreign=bool(others)))
    clients = "( sport = :443 or sport = :80 )"
    return {
        "listeners": listeners[:80],
        "expected": expected,
        "waiting": waiting[:20],
        "clients": parse_clients(probe.run(["ss", "-Htin", "state", "established", clients], 3.0)[1]),
        "redis_clients": redis_clients(setting),
        "loopback": connections("127.0.0.1", 1),
    }


def redis_clients(setting) -> list:
    """Return the programs outside of ours that hold the application's login of this Redis and are connected to it.

    Each: {name, pid, unit, command}. By the kernel's tables: a process chooses its name, which ss prints.
    """
    ports, rows = {port for port, _tls in setting.redis_ports}, []
    for name in ("tcp", "tcp6"):
        for line in read(setting.proc, "net", name).splitlines()[1:]:
            words = line.split()
            if len(words) > 9 and words[3] == "01":
                here, there = (int(one.rpartition(":")[2], 16) for one in words[1:3])
                rows.append((here, there, words[9]))
    # A client of this Redis and not of one elsewhere: the server has the other end.
    served = {there for here, there, _inode in rows if here in ports}
    sockets = {"socket:[%s]" % inode for here, there, inode in rows if there in ports and here in served}
    password, found = _broker_password(setting), []
    for pid, stat in processes(setting.proc).items() if sockets and password else ():
        unit = unit_of(read(setting.proc, str(pid), "cgroup"))
        if re.match(r"shiftmaster-|redis|haproxy|prometheus-", unit) or not _holds(setting.proc, pid, sockets):
            continue
        command = read(setting.proc, str(pid), "cmdline", limit=4000)
        # A worker of a test installation has been given the address of this one.
        if password in command + read(setting.proc, str(pid), "environ") and "AnsiballZ_shiftmaster" not in command:
            text = redact(command.replace("\0", " ").strip(), setting.secrets())
            found.append({"name": stat["name"], "pid": pid, "unit": unit, "command": text[:160]})
    return found[:10]


def _broker_password(setting) -> str:
    context = health_checks_context(setting)
    with contextlib.suppress(probe.ProbeError, ValueError, OSError):
        return probe.parse_redis_url(context.environment().get(setting.broker_key) or "").password or ""
    return ""


def _holds(proc: str, pid: int, sockets: set) -> bool:
    """Return whether a process has one of these sockets open."""
    with contextlib.suppress(OSError):
        place = os.path.join(proc, str(pid), "fd")
        for name in os.listdir(place):
            with contextlib.suppress(OSError):
                if os.readlink(os.path.join(place, name)) in sockets:
                    return True
    return False


def parse_clients(text: str) -> dict:
    """Return of `ss -Hti` how many clients elsewhere are connected, and to how many responses are sent in vain."""
    found = re.findall(r"^\s*\d+\s+\d+\s+\S+\s+(\S+)[^\n]*\n([^\n]*)", text, re.M)
    away = [words for peer, words in found if not re.match(r"127\.|\[::1\]|\[::ffff:127\.", peer)]
    return {
        "connected": len(away),
        "stuck": sum("unacked:" in one and bool(re.search(r"backoff:[2-9]", one)) for one in away),
    }


def connections(address: str, port: int, count: int = 20, seconds: float = 0.9) -> dict:
    """Return of how many connections the first packets got lost: they are sent again after 1 s.

    A port without a listener refuses as fast as one with a listener accepts, and no service is disturbed.
    """
    with contextlib.ExitStack() as stack:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        tried = [stack.enter_context(socket.socket(family)) for _one in range(count)]
        for one in tried:
            one.setblocking(False)
            one.connect_ex((address.partition("%")[0], port))
        end, late = time.monotonic() + seconds, set(tried)
        while late and time.monotonic() < end:
            late -= set(select.select([], list(late), [], max(0.0, end - time.monotonic()))[1])
        return {"tried": count, "late": len(late)}


# --- firewall --------------------------------------------------------------------------------------------------------


# Parts of a rule that leave it about all packets, or that a match is in.
_PLAIN = {"match", "counter", "drop", "reject", "limit", "log", "xt"}
_OTHER_PROTOCOLS = {"udp", "udplite", "sctp", "dccp", "icmp", "icmpv6", "igmp", "esp", "ah"}


def refusals(ruleset: dict, interesting, known=()) -> list:
    """Return the rules that drop or reject what ShiftMaster needs: {table, chain, ports, addresses, sure, packets}.

    Of our own table, whose policy is to drop, only a rule against such a port counts: it is none of ours. `sure` is a
    rule for everybody, or for one of the known addresses; another may be meant for unknown clients (fail2ban, a list of
    blocked addresses) or for what is inside of a container engine.
    """
    chains = {}
    found = []
    for entry in ruleset.get("nftables", []):
        if "chain" in entry:
            chain = entry["chain"]
            chains[(chain["family"], chain["table"], chain["name"])] = chain
        rule = entry.get("rule")
        if not rule:
            continue
        expressions = rule.get("expr", [])
        verdict = next((name for one in expressions for name in ("drop", "reject") if name in one), None)
        # One that drops what exceeds a rate may be meant for a flood.
        limited = any("limit" in one for one in expressions)
        if verdict is None or (limited and rule["table"] == "shiftmaster"):
            continue
        chain = chains.get((rule["family"], rule["table"], rule["chain"]), {})
        # What nft may add (sets that a packet fills, meters, counts of connections) is about some packets only.
        narrow = any(set(one) - _PLAIN for one in expressions)
        ports, addresses, packets, ours = set(), [], 0, True
        # Whether it is about packets to a host that ShiftMaster's parts are not on; about packets of some size.
        foreign = sized = False
        for one in expressions:
            if "xt" in one:
                # Something of iptables that nft does not understand.
                narrow = narrow or not isinstance(one["xt"], dict) or one["xt"].get("name") != "comment"
            elif "match" in one:
                left, right = one["match"].get("left"), one["match"].get("right")
                field = left.get("payload", {}).get("field") if isinstance(left, dict) else None
                if isinstance(left, dict) and left.get("payload", {}).get("protocol") in _OTHER_PROTOCOLS:
                    foreign = True
                other = one["match"].get("op", "==") == "!="
                if isinstance(right, str) and right.startswith("@"):
                    # A set with a name is filled and emptied by a program.
                    narrow = True
                    if field in ("saddr", "daddr"):
                        addresses.append("%s %s" % (field, right))
                # Of what leaves this host, the source port is that of the service that responds.
                elif not other and (
                    field == "dport" or field == "sport" and chain.get("hook") in ("output", "postrouting")
                ):
                    ports |= _ports_of(right)
                elif (field == "length" or left == {"meta": {"key": "length"}}) and one["match"].get("op") in (
                    ">",
                    ">=",
                ):
                    # Small packets get through: connections are made, and pages hang.
                    sized = True
                elif right == "syn" and not other and '"field": "flags"' in json.dumps(left):
                    pass  # Every connection begins so.
                elif field in ("saddr", "daddr"):
                    addresses.append("%s %s%s" % (field, "!= " if other else "", _words(right)))
                    # Where none is known, only a rule for everybody is surely for the others.
                    hit = any(_covers(right, its) != other for its in known) if known else not other
                    ours = ours and hit and (bool(known) or _covers(right, _NOBODY))
                    if field == "daddr" and chain.get("hook") == "output" and not other:
                        foreign = not any(_covers(right, its) for its in (*known, "127.0.0.1", "::1"))
                elif left == {"ct": {"key": "state"}} and "new" in (right if isinstance(right, list) else [right]):
                    pass  # Every connection begins so.
                else:
                    meta = left.get("meta", {}).get("key") if isinstance(left, dict) else None
                    # What is about another protocol is none of ShiftMaster's.
                    other_protocol = (field in ("protocol", "nexthdr") or meta == "l4proto") and not _covers_tcp(right)
                    usual = field in ("protocol", "nexthdr") or meta in ("l4proto", "nfproto", "iifname", "oifname")
                    narrow, foreign = narrow or not usual, foreign or other_protocol
            packets += one.get("counter", {}).get("packets", 0) if isinstance(one.get("counter"), dict) else 0
        hit = [] if foreign and not addresses else sorted(ports & set(interesting))
        if not hit and rule["table"] == "shiftmaster":
            # What our own table drops and rejects is meant for no port by its number.
            continue
        if not hit and not ports and addresses and not narrow and not limited and not foreign:
            hit = sorted(interesting)
        everything = not ports and not addresses and not narrow and not foreign and not limited
        if hit or (everything and chain.get("hook") in ("input", "output")):
            table, sure = "%s %s" % (rule["family"], rule["table"]), ours and not narrow and not foreign and not limited
            entry = dict(table=table, chain=rule["chain"], handle=rule.get("handle"), hook=chain.get("hook") or "")
            entry.update(verdict=verdict, ports=hit, addresses=addresses, sure=sure, packets=packets)
            everybody = not narrow and not foreign and not addresses and chain.get("hook") in ("input", "output")
            entry.update(sized=sized and everybody, per_second=allowed(expressions) if everybody else None)
            found.append(entry)
    for (family, table, name), chain in chains.items():
        if chain.get("hook") in ("input", "output") and chain.get("policy") == "drop" and table != "shiftmaster":
            found.append(
                {
                    "table": "%s %s" % (family, table), "chain": name, "handle": None, "hook": chain["hook"],
                    "verdict": "policy drop", "ports": [], "addresses": [], "sure": True, "packets": 0, "sized": False,
                }
            )  # fmt: skip
    return found


_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


def allowed(expressions: list):
    """Return the packets per second that pass a rule which drops what exceeds them; None for another rule."""
    for one in expressions:
        limit = one.get("limit")
        if isinstance(limit, dict) and limit.get("inv") and limit.get("rate_unit", "packets") == "packets":
            return round(limit.get("rate", 0) / _SECONDS.get(limit.get("per"), 1), 2)
    return None


def _covers_tcp(right) -> bool:
    rows = right["set"] if isinstance(right, dict) and "set" in right else [right]
    return any(one in ("tcp", 6) or isinstance(one, dict) for one in rows)


def _ports_of(right) -> set:
    if isinstance(right, int):
        return {right}
    if isinstance(right, dict) and "set" in right:
        return set().union(*(_ports_of(one) for one in right["set"]))
    if isinstance(right, dict) and "range" in right:
        low, high = right["range"]
        return set(range(low, high + 1))
    return set()


# Nobody's: only a rule for everybody covers it.
_NOBODY = "192.0.2.255"


def _covers(right, address: str) -> bool:
    """Return whether addresses of a rule hold an address."""
    if isinstance(right, dict) and "set" in right:
        return any(_covers(one, address) for one in right["set"])
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
        its = ipaddress.ip_address(address)
        if isinstance(right, dict) and "range" in right:
            low, high = (ipaddress.ip_address(one) for one in right["range"])
            return low <= its <= high
        return its in ipaddress.ip_network(_words(right), strict=False)
    return False


def _words(right) -> str:
    if isinstance(right, dict) and "prefix" in right:
        return "%s/%s" % (right["prefix"].get("addr"), right["prefix"].get("len"))
    return right if isinstance(right, str) else json.dumps(right)


def addresses_of(names: list, hosts_file: str) -> list:
    """Return the addresses of names by themselves or by /etc/hosts; a name server may be what is shut out."""
    found = []
    for name in names:
        with contextlib.suppress(ValueError):
            found.append(str(ipaddress.ip_address(name)))
            continue
        rows = (line.partition("#")[0].split() for line in hosts_file.splitlines())
        found += [row[0] for row in rows if name in row[1:]]
    return found


def firewall(setting) -> dict:
    """Whether our table is loaded, and which rules next to it refuse what ShiftMaster needs."""
    try:
        code, text, error = probe.run(["nft", "--json", "list", "ruleset"], 4.0)
    except probe.ProbeError as problem:
        if problem.reason == "missing":
            raise Absent("nft is not installed")
        raise
    if code != 0:
        raise probe.ProbeError("error", "nft", error.strip()[:200])
    try:
        ruleset = json.loads(text or '{"nftables": []}')
        tables = [entry["table"] for entry in ruleset["nftables"] if "table" in entry]
        tables = ["%s %s" % (table["family"], table["name"]) for table in tables]
    except (ValueError, TypeError, KeyError, RecursionError):
        printed = " ".join(text.split())[:100]
        raise probe.ProbeError("error", "garbage", "nft gave no response that can be read: %s" % printed)
    needed = [int(port) for port in setting.ports] + setting.remote_ports
    known = addresses_of([peer["address"] for peer in setting.peers], read_file(setting.path("/etc/hosts")))
    found = refusals(ruleset, needed, known)[:20]
    return {"tables": tables, "ours": "inet shiftmaster" in tables, "refusals": found}


# --- names -----------------------------------------------------------------------------------------------------------


def names(setting) -> dict:
    """Whether the names that this host needs have an address, and how long that takes."""
    servers = name_servers(read_file(setting.path("/etc/resolv.conf")))
    found = []

    def inspect_one(name, own=False):
        began = time.monotonic()
        entry = {"name": name, "own": own}
        try:
            addresses = {row[4][0] for row in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
            entry["addresses"] = sorted(addresses)[:4]
        except OSError as error:
            entry["error"] = error.strerror or str(error)
        entry["seconds"] = round(time.monotonic() - began, 2)
        found.append(entry)

    responding = {}

    def query_server(address):
        # A server that limits queries leaves some out, too; what it does not limit is TCP's first packet. Where 30 % of
        # the packets get lost, more than two of the 30 responses do in 998 of 1,000 cases.
        responding[address] = server = name_server(address)
        server["late"] = connections(address, 53, 40)["late"] if server["responds"] and server["lost"] > 2 else 0

    hostname = socket.gethostname()
    # Its own name is shown; nothing of ShiftMaster needs it.
    calls = [(inspect_one, name) for name in setting.names] + [(inspect_one, hostname, True)]
    probe.together(calls + [(query_server, address) for address in servers], 5.0)
    heard = list(found)
    by_name = {entry["name"]: entry for entry in heard if not entry["own"]}
    late = {"own": False, "error": "no response within 5 s", "seconds": 5.0}
    local = re.search(r"^\s*127\.0\.0\.1\s.*\blocalhost\b", read_file(setting.path("/etc/hosts")), re.M)
    lookup = re.search(r"^hosts:[ \t]*([^\n#]*)", read_file(setting.path("/etc/nsswitch.conf")), re.M)
    return {
        # Where no file says so, the C library looks into /etc/hosts last.
        "files_first": bool(re.search(r"\bfiles\b", lookup[1])) if lookup else None,
        "lookup": " ".join(lookup[1].split())[:80] if lookup else "",
        "servers": [responding.get(one) or {"address": one, "responds": False, "seconds": None} for one in servers],
        "hostname": hostname,
        "names": [by_name.get(name) or dict(late, name=name) for name in setting.names],
        "own": next((entry for entry in heard if entry["own"]), None),
        "hosts_has_localhost": bool(local),
    }


# --- ways to others --------------------------------------------------------------------------------------------------

# What the kernel gives to an interface by itself.
_USUAL_QUEUES = "noqueue mq pfifo_fast fq fq_codel fq_pie pfifo bfifo sfq ingress clsact".split()
_CLIENT = re.compile(r'"remote_addr": ?"([0-9a-fA-F.:]{2,45})"')


def routes(setting) -> dict:
    """Addresses without a way from here (name servers, other hosts, users of late), and interfaces that are slowed."""
    servers = name_servers(read_file(setting.path("/etc/resolv.conf")))
    wanted = dict.fromkeys(servers, "name server")
    wanted.update((peer["address"], peer["host"]) for peer in setting.peers)
    with contextlib.suppress(OSError):
        lines = safe_files.read_tail(setting.access_log, 1 << 16).decode("utf-8", "replace")
        wanted.update((address, "user") for address in list(dict.fromkeys(_CLIENT.findall(lines)))[:40])
    without = [dict(address=one, what=wanted[one], error=why) for one in wanted if (why := no_route(one))]
    shaped = []
    with contextlib.suppress(probe.ProbeError, ValueError, TypeError, AttributeError):
        rows = json.loads(probe.run(["tc", "-json", "qdisc", "show"], 2.0)[1] or "[]")
        rows = [row for row in rows if row.get("root") and str(row.get("kind")) not in _USUAL_QUEUES]
        shaped = [{"device": str(row.get("dev"))[:20], "kind": str(row.get("kind"))[:20]} for row in rows]
        for row, entry in zip(rows, shaped):
            entry["options"] = json.dumps(row.get("options") or {})[:120]
    return {"without": without[:20], "shaped": shaped[:10], "checked": len(wanted)}


def no_route(address: str) -> str:
    """Return why the kernel has no way to an address of IPv4, "" where it has one. No packet is sent."""
    with contextlib.suppress(ValueError):
        ipaddress.IPv4Address(address)
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                one.connect((address, 9))
        except OSError as error:
            return error.strerror or str(error)
    return ""


# --- certificates ----------------------------------------------------------------------------------------------------


def certificates(setting) -> dict:
    """Until when each certificate is valid, in its file and as it is shown."""
    found, now = [], datetime.datetime.now(datetime.timezone.utc)
    for one in setting.certificates:
        entry = {"name": one["name"], "file": one.get("file") or ""}
        try:
            on_disk = probe.certificate_file(one["file"]) if one.get("file") else []
            if on_disk:
                # Of a chain the part that ends first counts.
                entry.update(_validity(min(on_disk, key=lambda certificate: certificate.not_after), now))
        except probe.ProbeError as error:
            entry.update(error=str(error), reason=error.reason)
            on_disk = []
        if one.get("port"):
            try:
                served_by = {"server_name": one.get("server_name"), "postgres": one["name"] == "postgresql"}
                shown = probe.certificate_served("localhost", int(one["port"]), timeout=3.0, **served_by)
                entry["shown"] = _validity(shown, now)
                entry["differs"] = bool(on_disk) and shown.fingerprint != on_disk[0].fingerprint
                name = one.get("server_name")
                entry["other_name"] = bool(name) and not probe.certified(shown, name)
                entry.update(server_name=name, names=list(shown.names[:5]))
            except probe.ProbeError as error:
                entry["shown"] = {"error": str(error), "reason": error.reason}
        found.append(entry)
    return {"certificates": found}


def _validity(certificate, now) -> dict:
    return {
        # In the zone of this host, like all its times.
        "not_after": certificate.not_after.astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "days_left": round((certificate.not_after - now).total_seconds() / 86400.0, 1),
        "too_early": certificate.not_before > now,
    }


# --- HTTP and connections --------------------------------------------------------------------------------------------


def http(setting) -> dict:
    """The application's responses, from the inside to the outside: its socket, the local listener, the public site."""
    found = {}

    def inspect_one(name, target):
        try:
            url = health_checks_context(setting).fill(target["url"])
            result = symptoms.get_page(url, target.get("path", "/"), target.get("host"), 4.0, verify=False)
        except probe.ProbeError as error:
            found[name] = {"error": str(error), "reason": error.reason, "status": None}
            return
        entry = {
            "status": result.status,
            "milliseconds": round(result.seconds * 1000, 1),
            "where": url,
            # What a visitor's session is named by is nobody else's.
            "headers": {name: value for name, value in list(result.headers.items())[:30] if name != "set-cookie"},
        }
        if result.error:
            entry.update(error=result.error, reason=result.reason)
        elif result.status >= 400:
            entry.update(body=re.sub(r"<[^>]*>|\s+", " ", result.body)[:400], server=result.headers.get("server", ""))
            entry["maintenance"] = "x-maintenance" in result.headers
        if target.get("deep") and result.body:
            try:
                entry["parts"] = {
                    part: {
                        "status": check.get("status"),
                        "error": str(check.get("error") or "")[:300],
                        # Migrations that the database has and the release has not.
                        "unknown": [str(name)[:100] for name in unknown[:5]] if isinstance(unknown, list) else [],
                    }
                    for part, check in (json.loads(result.body).get("checks") or {}).items()
                    for unknown in (check.get("unknown"),)
                }
            except (ValueError, AttributeError):
                pass
        found[name] = entry

    probe.together([(inspect_one, name, target) for name, target in setting.http_targets.items()], 4.6)
    heard = dict(found)
    return {
        name: heard.get(name) or {"error": "no response within 4 s", "reason": "timeout", "status": None}
        for name in setting.http_targets
    }


def health_checks_context(setting):
    return checks.Context(setting.environment_file, setting.environment_keys, setting.app_root, setting.user)


def peers(setting) -> dict:
    """Whether the other hosts' parts can be reached from here: address, port, and the reason where not."""
    found = []

    def inspect_one(peer):
        entry = dict(peer)
        try:
            entry["milliseconds"] = probe.tcp_connect(peer["address"], int(peer["port"]), timeout=3.0)["latency_ms"]
        except probe.ProbeError as error:
            entry.update(error=str(error), reason=error.reason)
        found.append(entry)

    probe.together([(inspect_one, peer) for peer in setting.peers], 3.5)
    if not setting.peers:
        raise Absent("this host needs no other")
    return {"peers": sorted(found, key=lambda one: (one["host"], one["port"]))}


def virtual_address(setting) -> dict:
    """Whether this host holds the address that users reach, and which others of the network do."""
    if not setting.virtual_address:
        raise Absent("users reach this host by its own address")
    return redundancy.virtual_address(setting.virtual_address)


def members(setting) -> dict:
    """This host's part of a replicated Redis: what its Sentinel reports, its role, and how many replicas follow it."""
    if not setting.sentinel_port:
        raise Absent("the Redis of this host is the only one")
    found = {"works": True}
    try:
        found.update(redundancy.sentinel(setting.sentinel_port, setting.sentinel_ca_file, "shiftmaster"))
    except probe.ProbeError as error:
        found.update(works=False, message=str(error))
    for port, _tls in setting.redis_ports[:1]:
        with contextlib.suppress(probe.ProbeError, OSError):
            found.update(redundancy.member(port, setting.sentinel_ca_file))
    return found


# --- the web server's configuration ----------------------------------------------------------------------------------

_UPSTREAM = re.compile(r"^\s*upstream\s+(\S+)\s*\{(.*?)^\s*\}", re.M | re.S)


# What nginx -t makes where it is not there: logs, its process's number, directories, and a socket to listen on.
_NGINX_MAKES = re.compile(
    r"^\s*(?:(?:access_log|error_log|pid|[a-z]+_(?:body_)?temp_path|[a-z]+_cache_path)\s+|listen\s+unix:)[\"']?(/[^\s;\"']+)",
    re.M,
)
_NGINX_SECONDS = 2.0


def nginx_text(directory: str) -> str:
    """Return the configuration with what it includes, as far as that is there to be read."""
    seen, todo, texts = set(), [os.path.join(directory, "nginx.conf")], []
    while todo and len(seen) < 200:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            texts.append(read_file(path))
            for pattern in re.findall(r"^\s*include\s+[\"']?([^;\"']+)", texts[-1], re.M):
                todo += sorted(glob.glob(os.path.join(directory, pattern)))
    return "\n".join(texts)


def nginx_would_write(setting, text: str) -> str:
    """Return what nginx -t would make or give to somebody else; empty where it only reads."""
    # A path with a variable is opened when somebody requests a page.
    paths = [path for path in _NGINX_MAKES.findall(text) if "$" not in path]
    for path in paths:
        if not os.path.lexists(setting.path(path)):
            return path
    user = re.search(r"^\s*user\s+([\w-]+)", text, re.M)
    if not user:
        return "user"
    # Its own directories are made, and given to its user.
    for name in ("body", "fastcgi", "proxy", "scgi", "uwsgi"):
        path = os.path.join("/var/lib/nginx", name)
        try:
            owner = pwd.getpwuid(os.stat(setting.path(path)).st_uid).pw_name
        except (OSError, KeyError):
            return path
        if owner != user[1]:
            return path
    return ""


def nginx_configuration(setting, directory: str) -> dict:
    """Return whether the running nginx could read its configuration again: {tested, error, why_not}."""
    pid = read_file(setting.path("/run/nginx.pid")).strip()
    if not pid.isdigit() or not os.path.isdir(os.path.join(setting.proc, pid)):
        # At a start it reports it itself.
        return {"tested": False, "why_not": "nginx does not run"}
    would = nginx_would_write(setting, nginx_text(directory))
    if would:
        return {"tested": False, "why_not": "nginx -t would make or change %s" % would}
    try:
        # It reports nothing into its log either.
        command = ["nginx", "-t", "-q", "-e", "stderr", "-c", os.path.join(directory, "nginx.conf")]
        code, _stdout, printed = probe.run(command, _NGINX_SECONDS)
    except probe.ProbeError as error:
        # It resolves the addresses of names, which may take long.
        return {"tested": False, "why_not": str(error)}
    error = " ".join(line for line in printed.splitlines() if "[emerg]" in line or "[crit]" in line) or printed
    return {"tested": True, "error": "" if code == 0 else _NGINX_PREFIX.sub(r"\1", " ".join(error.split()))[:400]}


# The time and the process's number are not relevant here.
_NGINX_PREFIX = re.compile(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d (\[\w+\]) \d+#\d+:(?= )|^nginx: ")


def nginx(setting) -> dict:
    """Where the web server leads, read from its files; and whether it could read them again."""
    directory = setting.path("/etc/nginx")
    if not os.path.isdir(directory):
        raise Absent("nginx is not installed")
    site = os.path.join(directory, "sites-enabled", "shiftmaster")
    upstreams = []
    for path in sorted(glob.glob(os.path.join(directory, "sites-enabled", "*"))):
        for name, body in _UPSTREAM.findall(read_file(path)):
            for server in re.findall(r"^\s*server\s+([^;\s]+)[^;]*;", body, re.M):
                entry = {"upstream": name, "server": server, "file": path}
                if server.startswith("unix:"):
                    entry["exists"] = os.path.exists(server[len("unix:") :])
                    entry["expected"] = server == "unix:%s/active/socket" % setting.app_root
                upstreams.append(entry)
    switch = os.path.join(setting.app_root, "shared", "maintenance", "on")
    found = {"site_enabled": os.path.exists(site), "upstreams": upstreams[:20], "maintenance": os.path.exists(switch)}
    found["configuration"] = nginx_configuration(setting, directory)
    if found["maintenance"]:
        found["maintenance_since"] = os.path.getmtime(switch)
    return found
