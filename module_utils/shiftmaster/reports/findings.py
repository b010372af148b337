"""From the evidence of every host to ranked findings: roots before their symptoms.

Runs on the controller, where Jinja is. Rules are data (diagnosis/*.yml); a rule is evaluated on each host's evidence:

    name       for good: its runbook and its tests are found by it
    component  what it is about: a service of the alert catalogue
    severity   critical, warning, info
    critical_when  an expression: true makes it critical
    symptom    true: it follows from something else, or nobody knows from what
    areas      in which areas of the diagnosis it is looked for
    functions  those of the hosts of which it is queried; every host where absent
    each       an expression whose items are queried one by one, as `it`; or the items, with a `fix` of their own
    let        {name: expression}, for what is needed more than once; one may use those before it
    when       an expression; what it needs and is not there makes it false
    explains   what follows from it on the same host, and on hosts that need what it is about: names of rules,
               `@component` (its symptoms) or `*` (all symptoms); templates, where it depends
    own_when   an expression; true makes it a root except for faults of the application itself
    effect     an expression: whether it only shows that something fails, so that a change by hand shortly before is its
               cause; a symptom does
    of_changes true: evaluated of such a change alone, as `it`, with the rules that it explains, as `affected`
    title, cause, advice   {en, ja}, templates
    evidence   templates, one line each, or {en, ja} where they have words; an empty line is left out
    fix        commands
    alert      the alert whose runbook it shares; else it has its own, of
    guide      {en, ja}, what it means, and
    commands   to look and to fix (scripts/alerts.py)

Next to Jinja's own there are the filters size, duration, quote (for a shell), clock (a time in a zone), logged (the
problem of a log that fits a pattern), and the tests search and ours (a unit or program that no command may end).
"""

from __future__ import annotations

import collections
import datetime
import functools
import json
import os
import re
import shlex
from typing import Optional

from ..health.checks import size
from ..health.text import CONTAINER
from ..host.printable import printable_tree
from ..host.texts import LANGUAGES

SEVERITIES = ("critical", "warning", "info")
# Of one rule on one host. A host that was taken over can report a million failed units, and each finding is compared
# with all others.
MOST_ITEMS, MOST_FINDINGS, MOST_CHARACTERS = 1000, 20, 2000
# What a component needs; a fault on a host with that function affects all hosts that need it.
FUNCTION_OF = {"database": "database", "cache": "cache", "application": "app", "celery": "app", "web": "web"}
NEEDS = {"app": ("database", "cache"), "web": ("app",)}
# Where two roots weigh the same, the one further down comes first.
DEPTH = ("unreachable", "host", "network", "tls", "database", "cache", "application", "celery", "web", "container",
         "monitoring", "backup")  # fmt: skip


def duration(seconds) -> str:
    """Return seconds in readable form."""
    seconds = int(seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return "%d %s" % (seconds // length, unit)
    return "%d s" % seconds


# Messages of systemd about a unit among the unit's own output.
_SYSTEMD_MESSAGES = re.compile(
    r"[^ ]+[.]service: (?!Failed (at step|to determine|to load|to set up))|(Start|Stopp)(ed|ing) |Failed to start "
)


def own_word(lines) -> str:
    """Return a unit's own last output: after it systemd reports that it has ended, and begins it again."""
    lines = list(lines or ())
    return ([line for line in lines if not _SYSTEMD_MESSAGES.match(line)] or lines or [""])[-1]


def logged(problems, pattern: str, since: float) -> Optional[dict]:
    """Return the last problem of a log since a moment that fits a pattern, with the line and what the pattern names."""
    for one in problems or []:
        for line in (one.get("exception"), one.get("text")):
            fits = re.search(pattern, line or "")
            if fits and one["last"] > since:
                return dict(one, line=line, named=fits[1] if fits.re.groups else fits[0])
    return None


# --- time ------------------------------------------------------------------------------------------------------------


def zone_of(hosts: list) -> dict:
    """Return the zone of a report as {name, offset_seconds}: that of most hosts, whose logs are evidence.

    Where no host reports it, that of this machine.
    """
    zones = [host["zone"] for host in hosts if (host.get("zone") or {}).get("name")]
    if zones:
        counts = collections.Counter((zone["name"], zone["offset_seconds"]) for zone in zones)
        name, offset = counts.most_common(1)[0][0]
    else:
        here = datetime.datetime.now().astimezone()
        name, offset = here.tzname(), int(here.utcoffset().total_seconds())
    return {"name": name, "offset_seconds": offset}


def timezone(zone: dict) -> datetime.tzinfo:
    return datetime.timezone(datetime.timedelta(seconds=zone["offset_seconds"]), zone["name"])


def zone_text(zone: dict) -> str:
    """Return a zone as people read it: JST (UTC+09:00)."""
    minutes = abs(zone["offset_seconds"]) // 60
    offset = "UTC%s%02d:%02d" % ("-" if zone["offset_seconds"] < 0 else "+", minutes // 60, minutes % 60)
    return "UTC" if zone["name"] == "UTC" and not minutes else "%s (%s)" % (zone["name"], offset)


def timestamp(value) -> Optional[float]:
    """Return the epoch of an epoch or of a time in ISO 8601; None where it is neither."""
    if isinstance(value, (int, float)):
        return float(value)
    try:
        return datetime.datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def outside_deploys(problems: list, deploys: list) -> list:
    """Return the problems of a log that did not all occur during one deploy: a rejected version logs its own."""
    spans, begun = [], None
    for event in deploys:
        at = timestamp(event.get("time"))
        if event.get("event") == "cutover_started":
            begun = at
        elif at is not None and begun is not None:
            spans.append((begun, at + 60))
            begun = None

    def within(one):
        return any(begin <= one.get("first", 0) and one.get("last", 0) <= end for begin, end in spans)

    return [one for one in problems if not within(one)]


def clock(value, zone: dict) -> str:
    """Return a time as a zone's clock shows it; what is no time stays as it is."""
    at = timestamp(value)
    if at is None:
        return str(value)
    return datetime.datetime.fromtimestamp(at, timezone(zone)).strftime("%Y-%m-%d %H:%M %Z")


# Units and programs that no command of a finding may end: what ShiftMaster needs, its watchers, and the host's own.
_OURS = re.compile(
    r"shiftmaster|gunicorn|celery|postgres|redis|nginx|prometheus|alertmanager|grafana|node_exporter|\S+[-_]exporter|mtail"
    r"|elasticsearch|kibana|logstash|filebeat|systemd|init\.scope|ssh|dbus|docker|containerd|nftables|chrony|rsyslog"
)


class Quoted(str):
    """A text that is one word of a shell."""


def quoted(value) -> Quoted:
    """Return a value as one word of a shell. One that a line cannot show as it is ends the command (ValueError)."""
    text = str(value)
    if text != " ".join(text.split()) or not text.isprintable():
        raise ValueError("it is not one line of plain words: %r" % text)
    return Quoted(shlex.quote(text))


_NOT_PLAIN = re.compile(r"[^A-Za-z0-9@%_+=:,./-]")
_DEPLOYS = re.compile(r"ansible-playbook deploy\.yml( --tags ([a-z_]+,)*release(,[a-z_]+)*)?")


def same_version(command: str, names: dict) -> str:
    """Return a command with the version that is live where it would deploy that of the inventory."""
    release = names.get("release")
    version = str(release.get("version") or "") if isinstance(release, dict) else ""
    if not _DEPLOYS.fullmatch(command) or not re.match(r"\w", version) or _NOT_PLAIN.search(version):
        return command
    return "%s -e shiftmaster_version=%s" % (command, version)


class Engine:
    """Expressions and templates of rules."""

    def __init__(self):
        from jinja2 import ChainableUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Missing(ChainableUndefined):
            """What is not there has no length either: "none of them" is only valid for a list that was collected."""

            def __len__(self):
                self._fail_with_undefined_error()

        self.environment = ImmutableSandboxedEnvironment(undefined=Missing, autoescape=False)
        ours = {one.__name__: one for one in (size, duration, clock, own_word, outside_deploys, logged)}
        self.environment.filters.update(ours, tojson=json.dumps, quote=quoted)
        self.environment.tests["ours"] = lambda name: bool(_OURS.match(str(name or "")))
        self.environment.tests["search"] = lambda text, pattern: bool(re.search(pattern, str(text or "")))
        # Commands are pasted into a shell, and values come from hosts. One that is not quoted holds none of its signs.
        self.commands = self.environment.overlay(
            finalize=lambda value: value if isinstance(value, Quoted) else _NOT_PLAIN.sub("?", str(value))
        )
        self._compiled = {}

    def value(self, expression: str, names: dict):
        """Return what an expression gives; None where it needs something that is not there."""
        from jinja2 import Undefined
        from jinja2.exceptions import UndefinedError

        if expression not in self._compiled:
            self._compiled[expression] = self.environment.from_string("{%% set value = (%s) %%}" % expression)
        try:
            # compile_expression() would copy the names for each expression, which takes more time than most of them.
            value = self._compiled[expression].make_module(names, shared=True).value
        except (UndefinedError, TypeError, ValueError, ArithmeticError):
            return None
        return None if isinstance(value, Undefined) else value

    def text(self, template: str, names: dict, command: bool = False) -> str:
        """Return a template's text on one line, without a separator at its end; half a command is none."""
        key = ("text", template, command)
        if key not in self._compiled:
            self._compiled[key] = (self.commands if command else self.environment).from_string(template)
        from jinja2.exceptions import UndefinedError

        try:
            text = " ".join(self._compiled[key].render(**names).split())
            if command:
                return "" if len(text) > MOST_CHARACTERS else same_version(text, names)
            return text[:MOST_CHARACTERS].rstrip(" ;,")
        except (UndefinedError, TypeError, ValueError, ArithmeticError):
            return ""


@functools.lru_cache(maxsize=1)
def the_engine() -> Engine:
    """Return the one engine: an expression is compiled once."""
    return Engine()


# --- evidence of one host, of all ------------------------------------------------------------------------------------


def names_of(host: dict, topology: dict) -> dict:
    """Return what a rule's expressions may use: the parts by name, the host, and the installation.

    worker_unit is the unit in whose journal its worker writes, where the application sets up Celery's logging.
    """
    parts = host.get("parts") or {}
    log = ((parts.get("logs") or {}).get("files") or {}).get("celery") or {}
    return dict(
        parts,
        parts=parts,
        worker_unit=(re.match(r"journalctl -u (\S+)$", str(log.get("path") or "")) or ["", ""])[1],
        host=host["host"],
        functions=host.get("functions") or [],
        reach=host.get("reach") or {},
        at=host.get("at"),
        skew=host.get("skew"),
        topology=topology,
    )


def _slow(recent: dict) -> bool:
    everywhere = (recent.get("p95_seconds") or 0) > 2 or bool(recent.get("slower"))
    return ((recent.get("requests") or 0) > 20 and everywhere) or bool(recent.get("slow_pages"))


def topology_of(hosts: list, expectations: Optional[dict] = None) -> dict:
    """Return what only all hosts together show."""
    heard = [host for host in hosts if host.get("parts")]
    apps = [host["host"] for host in hosts if "app" in (host.get("functions") or [])]
    # Those that run the scheduler by the inventory; without it the first, as group_vars/all/application.yml has it.
    of_beat = [host for host in (expectations or {}).get("beat_hosts") or [] if host in apps]
    celery = {host["host"]: host["parts"].get("celery", {}) for host in heard}
    beats = [dict(beat, host=host) for host, part in celery.items() for beat in part.get("beats") or []]
    # {host: [why another host does not reach it]}
    unreached = {}
    for host in heard:
        for peer in host["parts"].get("peers", {}).get("peers") or []:
            if peer.get("error"):
                unreached.setdefault(peer["host"], []).append(peer.get("reason"))
    clusters = {
        host["host"]: part
        for host in heard
        for part in [host["parts"].get("cluster") or {}]
        if part.get("status") == "ok"
    }
    working = [part for part in clusters.values() if part.get("works")]
    addresses = {
        host["host"]: part
        for host in heard
        for part in [host["parts"].get("virtual_address") or {}]
        if part.get("status") == "ok" and part.get("address")
    }
    members = {
        host["host"]: part
        for host in heard
        for part in [host["parts"].get("members") or {}]
        if part.get("status") == "ok"
    }
    skews = sorted(host["skew"] for host in heard if host.get("skew") is not None)
    return dict(
        expectations or {},
        unreached=unreached,
        # Whether people wait for pages, as ApplicationSlow defines it.
        slow=any(_slow(host["parts"].get("requests", {}).get("recent") or {}) for host in heard),
        # By how much the controller's own clock is off, where enough hosts agree on it.
        skew=skews[len(skews) // 2] if len(skews) >= 3 else None,
        hosts=[host["host"] for host in hosts],
        unreachable=[host["host"] for host in hosts if (host.get("reach") or {}).get("unreachable")],
        beats=beats,
        # The database cluster: members that report, and what they report together.
        cluster=list(clusters),
        cluster_primaries=[
            host for host, part in clusters.items() if part.get("role") == "primary" and part.get("state") == "running"
        ],
        # Where no Patroni responds, nothing is known of etcd.
        cluster_etcd=any(part.get("etcd") for part in working) or not working,
        cluster_synchronous=any(part.get("synchronous") for part in clusters.values()),
        # The address that users reach: web servers that report, those that hold it, and how many do by any one's sight.
        addresses=list(addresses),
        address_holders=[host for host, part in addresses.items() if part.get("held")],
        address_known=all(part.get("held") or part.get("others") is not None for part in addresses.values()),
        address_count=max(
            [sum(bool(part.get("held")) for part in addresses.values())]
            + [bool(part.get("held")) + len(part.get("others") or []) for part in addresses.values()]
        ),
        # The replicated Redis: its hosts that report, primaries that a replica follows, Sentinels that see a majority.
        members=list(members),
        member_primaries=[
            host for host, part in members.items() if part.get("role") == "primary" and part.get("followers")
        ],
        member_majority=any(part.get("majority") for part in members.values()),
        # As many clients of Redis wait for tasks.
        workers=sum(
            str(one.get("unit")).startswith("shiftmaster-worker@")
            for part in celery.values()
            for one in part.get("workers") or []
        ),
        # Whether all hosts that might run the scheduler have reported.
        beats_known=all(celery.get(host, {}).get("status") == "ok" for host in apps),
        apps=len(apps),
        beat_host=next(iter(of_beat + apps), None),
        zone=zone_of(hosts),
    )


def host_of(name: str, functions: list, result: dict) -> dict:
    """Return a host's evidence of what its task registered, or why there is none."""
    # A compromised host can send any text to the operator's terminal.
    result = printable_tree(result)
    evidence = result.get("evidence")
    if isinstance(evidence, dict) and isinstance(evidence.get("parts"), dict):
        host = dict(evidence, host=name, functions=list(functions) or evidence.get("functions") or [])
        # It is compared with that of others.
        if not isinstance(host.get("skew"), (int, float)):
            host.pop("skew", None)
        host["reach"] = {"unreachable": False, "failed": False, "message": ""}
        return host
    # Where the module did not come to run (sudo wants a password), the message only reports that it gave no response.
    message = " ".join(str(result[name]) for name in ("module_stderr", "msg") if result.get(name))
    away = bool(result.get("unreachable") or re.search(CONTAINER, message))
    reach = {"unreachable": away, "failed": not away, "message": " ".join(message.split())[:400]}
    return {"host": name, "functions": list(functions), "parts": {}, "reach": reach}


def of_hosts(results: list, evaluate):
    """Return evaluate(hosts). A host whose evidence cannot be evaluated counts as one that has returned none.

    It may be an attacker's: it must not keep the others from being evaluated.
    """
    hosts = [host_of(one["host"], one["functions"], one["result"]) for one in results]
    try:
        return evaluate(hosts)
    except Exception:  # noqa: BLE001 - whatever a host has sent
        kept = []
        for one, host in zip(results, hosts):
            try:
                evaluate([host])
                evaluate([*kept, host])
            except Exception as error:  # noqa: BLE001
                problem = "its evidence is not valid (%s: %s)" % (type(error).__name__, error)
                host = host_of(one["host"], one["functions"], {"msg": problem})
            kept.append(host)
        return evaluate(kept)


# --- findings --------------------------------------------------------------------------------------------------------


def applies(rule: dict, host: dict, area: str) -> bool:
    """Return whether a rule applies to a host."""
    if area != "all" and rule.get("areas") and area not in rule["areas"]:
        return False
    return not rule.get("functions") or bool(set(rule["functions"]) & set(host.get("functions") or []))


def fired(engine: Engine, rule: dict, host: dict, names: dict, area: str = "all") -> list:
    """Return the findings of one rule on one host, of whose evidence these are the names."""
    if not applies(rule, host, area):
        return []
    items = [None]
    if "each" in rule:
        items = rule["each"] if isinstance(rule["each"], list) else engine.value(rule["each"], names) or []
        items = list(items.values()) if isinstance(items, dict) else list(items)
    found = []
    for item in items[:MOST_ITEMS]:
        if len(found) == MOST_FINDINGS:
            break
        inside = let(engine, rule, dict(names, it=item))
        if engine.value(rule["when"], inside):
            found.append(describe(engine, rule, host["host"], inside))
    return found


def let(engine: Engine, rule: dict, names: dict) -> dict:
    """Return these names and those that the rule defines."""
    for name, expression in rule.get("let", {}).items():
        names = dict(names, **{name: engine.value(expression, names)})
    return names


def describe(engine: Engine, rule: dict, host: str, names: dict) -> dict:
    """Return a finding with its texts filled in, in both languages."""

    # Items of the rule itself may bring a command of their own.
    own = [names["it"]["fix"]] if isinstance(rule.get("each"), list) and "fix" in names["it"] else []

    def both(field):
        return {language: engine.text(rule[field][language], names) for language in LANGUAGES if field in rule}

    def evidence(language):
        entries = [one[language] if isinstance(one, dict) else one for one in rule.get("evidence", [])]
        return [line for line in (engine.text(entry, names) for entry in entries) if line]

    return {
        "rule": rule["name"],
        "host": host,
        "component": rule["component"],
        "severity": "critical" if engine.value(rule.get("critical_when", "false"), names) else rule["severity"],
        "symptom": bool(rule.get("symptom")),
        "own": bool(engine.value(rule.get("own_when", "false"), names)),
        "effect": bool(engine.value(rule.get("effect", "true" if rule.get("symptom") else "false"), names)),
        "title": both("title"),
        "cause": both("cause"),
        "advice": both("advice"),
        "evidence": evidence("en"),
        "evidence_ja": evidence("ja"),
        "fix": own
        + [line for line in (engine.text(line, names, command=True) for line in rule.get("fix", [])) if line],
        "explains": [target for entry in rule.get("explains", []) for target in engine.text(entry, names).split()],
        "runbook": "docs/runbooks/%s.md" % (rule.get("alert") or rule["name"]),
    }


def matches(target: str, finding: dict) -> bool:
    """Return whether an entry of `explains` means a finding."""
    if target == "*":
        return finding["symptom"]
    if target.startswith("@"):
        return finding["symptom"] and finding["component"] == target[1:]
    return target == finding["rule"]


def needs(host: dict, component: str, other: dict) -> bool:
    """Return whether a host needs what another has: by functions, through others too (web needs app needs database)."""
    function = FUNCTION_OF.get(component)
    offered = set(other.get("functions") or []) if component == "unreachable" or function is None else {function}
    wanted, todo = set(), list(host.get("functions") or [])
    while todo:
        for one in NEEDS.get(todo.pop(), ()):
            if one not in wanted:
                wanted.add(one)
                todo.append(one)
    return bool(wanted & offered & set(other.get("functions") or []))


def explanations(findings: list, rules: dict, hosts: dict) -> list:
    """Return for each finding the positions of those that it follows from directly."""
    result = []
    for finding in findings:
        causes = []
        for position, other in enumerate(findings):
            if other is finding or other["rule"] == finding["rule"] and other["host"] == finding["host"]:
                continue
            rule = rules[other["rule"]]
            if finding["own"] and rule["component"] != "application":
                continue
            here, there = hosts[finding["host"]], hosts[other["host"]]
            near = here is there or needs(here, rule["component"], there)
            if near and any(matches(target, finding) for target in other["explains"]):
                causes.append(position)
        result.append(causes)
    return result


def rank(findings: list, rules: dict, hosts: dict) -> list:
    """Return the findings in order: the roots, each as severe as the worst that follows from it, then what follows."""
    order = list(hosts)

    def key(position):
        finding = findings[position]
        depth = rules[finding["rule"]].get("depth", DEPTH.index(finding["component"]) * 50)
        severity = SEVERITIES.index(finding["severity"])
        return finding["symptom"], depth, severity, order.index(finding["host"]), finding["rule"], position

    roots = roots_of(explanations(findings, rules, hosts), key)
    weight = {}
    for position, finding in enumerate(findings):
        level = SEVERITIES.index(finding["severity"])
        weight[roots[position]] = min(weight.get(roots[position], level), level)
    beginnings = sorted(set(roots), key=lambda position: (weight[position], key(position)))
    # All roots, then what follows from the first, from the second, ...
    rest = [one for root in beginnings for one in sorted(range(len(findings)), key=key) if roots[one] == root != one]
    ranked = []
    for position in beginnings + rest:
        finding, root = dict(findings[position]), roots[position]
        del finding["own"], finding["effect"]
        finding.update(root=True, severity_of_all=SEVERITIES[weight[root]], follows_from="")
        if position != root:
            above = "%s on %s" % (findings[root]["rule"], findings[root]["host"])
            finding.update(root=False, severity_of_all=finding["severity"], follows_from=above)
        ranked.append(finding)
    return [dict(finding, number=number) for number, finding in enumerate(ranked, 1)]


def roots_of(causes: list, key) -> list:
    """Return for each position the one at the beginning of what explains it; of several the deepest."""
    above = []
    for position in range(len(causes)):
        seen, todo = {position}, list(causes[position])
        while todo:
            cause = todo.pop()
            if cause not in seen:
                seen.add(cause)
                todo += causes[cause]
        above.append(seen)
    # Nothing explains a beginning but what it explains itself.
    beginnings = {position for position in range(len(causes)) if all(position in above[one] for one in above[position])}
    return [min((one for one in seen if one in beginnings), key=key) for seen in above]


def find(rules: list, hosts: list, area: str = "all", expectations: Optional[dict] = None) -> list:
    """Return the ranked findings of all rules on all hosts."""
    engine = the_engine()
    topology = topology_of(hosts, expectations)
    own = [rule for rule in rules if not rule.get("of_changes")]
    findings = []
    for host in hosts:
        names = names_of(host, topology)
        findings += [finding for rule in own for finding in fired(engine, rule, host, names, area)]
    by_name, by_rule = {host["host"]: host for host in hosts}, {rule["name"]: rule for rule in rules}
    causes = explanations(findings, by_rule, by_name)
    for rule in (rule for rule in rules if rule.get("of_changes")):
        for host in hosts:
            without = [one for one, above in zip(findings, causes) if one["host"] == host["host"] and not above]
            findings += of_change(engine, rule, host, topology, [one for one in without if one["effect"]])
    ranked = rank(findings, by_rule, by_name)
    for finding in ranked:
        if finding["root"] and finding["symptom"]:
            add_changes(finding, by_name[finding["host"]], topology)
    return ranked


# --- changes by hand -------------------------------------------------------------------------------------------------

# What a unit or a file belongs to, and the components in which a change of it is felt.
_BELONGS = (
    (re.compile(r"shiftmaster-web@"), ("application", "web")),
    (re.compile(r"shiftmaster-(worker|beat)@"), ("celery",)),
    (re.compile(r"/nginx|^nginx"), ("web", "application")),
    (re.compile(r"/postgresql/|^postgresql"), ("database", "application", "celery", "web")),
    (re.compile(r"/redis/|^redis"), ("cache", "application", "celery", "web")),
)
# Of what everything on the host needs: only where it was changed as the errors began.
_NEAR_SECONDS, _AT_ONCE_SECONDS = 900, 120


def felt_of(name: str) -> Optional[tuple]:
    """Return the components in which a change of a unit or file is felt, None where that may be everywhere."""
    return next((where for words, where in _BELONGS if words.search(name)), None)


def changes_of(host: dict) -> list:
    """Return what was changed by hand on a host: [{what, at, felt, settings}]; felt: in which components."""
    parts, found = host["parts"], []
    for one in (parts.get("changes") or {}).get("files") or []:
        # A release's files have a rule of their own, and so has the site of nginx.
        if one.get("in_release") or one["path"].startswith("/etc/nginx"):
            continue
        settings = [str(line) for line in one.get("settings") or []]
        # A service of another tool may end or start ours.
        felt = felt_of(str(one.get("unit") or one["path"])) or next(filter(None, map(felt_of, settings)), None)
        entry = {"what": one["path"], "at": one["at"], "felt": felt, "settings": settings, "unit": one.get("unit")}
        found.append(entry)
    for one in (parts.get("clusters") or {}).get("clusters") or []:
        for row in one.get("altered") or []:
            what = "ALTER SYSTEM SET %s = '%s'" % (row["name"], row["value"])
            entry = {"what": what, "at": row["at"], "felt": felt_of("postgresql")}
            found.append(dict(entry, setting=row["name"], value=row["value"]))
    for one in (parts.get("changes") or {}).get("statements") or []:
        found.append({"what": one["statement"], "at": one["at"], "felt": felt_of("postgresql"), "statement": True})
    return [one for one in found if isinstance(one["at"], (int, float))]


def of_change(engine: Engine, rule: dict, host: dict, topology: dict, effects: list) -> list:
    """Return the finding of the change that explains effects without a known cause: the latest before they began."""
    if not effects or not isinstance(host.get("at"), (int, float)):
        return []
    recent = (host["parts"].get("requests") or {}).get("recent") or {}
    failed = [one for one in (recent.get("failing") or []) + (recent.get("refused") or []) if one.get("first")]
    symptoms, now = any(one["symptom"] for one in effects), host["at"]
    began = [one["first"] for one in failed]
    # What fails since the beginning of what is looked at began at any time before.
    known = bool(began) and min(began) > now - 270
    until = min(began) + 60 if known else now
    if failed:
        until = min(until, max(one["last"] for one in failed))  # Nothing has failed since a later change.

    def fits(change):
        at, felt = change["at"], change["felt"]
        if change.get("statement") and at < now - _NEAR_SECONDS:
            return []  # Many such statements break nothing; it is reported by itself.
        of_requests = until - _NEAR_SECONDS if known else 0
        while_failing = symptoms and at <= until and at > (of_requests if felt else until - 60 - _AT_ONCE_SECONDS)
        # Requests may fail because of an earlier fault: a unit may have failed after them.
        at_last = at <= now and (felt or at >= now - 60 - _AT_ONCE_SECONDS)
        fitting = [one for one in effects if while_failing or at_last and not one["symptom"]]
        return [one for one in fitting if not felt or one["component"] in felt]

    made = changes_of(host)
    made = sorted((one for one in made if fits(one)), key=lambda one: (not one["felt"], -one["at"]))
    if not made:
        return []
    names = names_of(host, topology)
    affected = list(dict.fromkeys(one["rule"] for one in fits(made[0])))
    also = [one["what"] for one in made[1:] if one["what"] != made[0]["what"]][:4]
    title = {language: fits(made[0])[0]["title"].get(language, "") for language in LANGUAGES}
    inside = let(engine, rule, dict(names, it=dict(made[0], also=also, title=title), affected=affected))
    return [describe(engine, rule, host["host"], inside)]


# What was edited by hand, and the tag of deploy.yml that writes it again.
_TAGS = (
    ("/etc/nginx/", "nginx"),
    ("/etc/postgresql/", "database"),
    ("/etc/redis/", "cache"),
    ("/releases/", "release"),
)


def add_changes(finding: dict, host: dict, topology: dict) -> None:
    """Add to a symptom without a known cause what differs on its host from the last deploy."""
    changes = host["parts"].get("changes") or {}
    files, statements = changes.get("files") or [], changes.get("statements") or []
    shown = " ".join(finding["evidence"])
    made = [(one["path"], one["at"]) for one in files[:5]] + [(one["statement"], one["at"]) for one in statements[-3:]]
    new = [(what, clock(at, topology["zone"])) for what, at in made if what not in shown]
    for field, words in (("evidence", "changed since the last deploy"), ("evidence_ja", "前回のデプロイ後に変更")):
        finding[field] += ["%s: %s (%s)" % (words, *one) for one in new]
    deep = (host["parts"].get("http") or {}).get("deep") or {}
    unknown = ((deep.get("parts") or {}).get("migrations") or {}).get("unknown")
    if unknown:
        names = ", ".join(unknown)
        finding["evidence"].append("migrations in the database that the live release does not have: %s" % names)
        finding["evidence_ja"].append("稼働中のリリースにないマイグレーションがデータベースにあります: %s" % names)
    tags = [tag for part, tag in _TAGS if any(part in one["path"] for one in files)]
    command = "ansible-playbook deploy.yml --tags " + ",".join(tags)
    if tags and command not in finding["fix"]:
        finding["fix"].append(command)


def worst(findings: list) -> str:
    """Return the worst severity, or healthy."""
    present = {finding["severity"] for finding in findings}
    return next((severity for severity in SEVERITIES if severity in present), "healthy")


def failing(findings: list, fail_on: str) -> list:
    """Return the findings that make a run fail: fail_on is critical, warning or never."""
    limit = {"critical": 1, "warning": 2, "never": 0}[fail_on]
    return [finding for finding in findings if finding["severity"] in SEVERITIES[:limit]]


# --- what the modules on the controller share ------------------------------------------------------------------------

# What the task with shiftmaster_diagnose has registered on each host.
_HOST = {"host": {"type": "str", "required": True}, "functions": {"type": "list", "elements": "str", "default": []}}
_HOST["result"] = {"type": "dict", "required": True}
RESULTS_OPTION = {"type": "list", "elements": "dict", "required": True, "options": _HOST}


def write(directory: str, files: dict) -> list:
    """Write {name: text or bytes} for their owner alone: hosts, programs and statements are nobody else's business."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    written = []
    for name, content in files.items():
        path = os.path.join(directory, name)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content if isinstance(content, bytes) else content.encode())
        written.append(path)
    return written
