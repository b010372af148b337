"""Every command that a runbook, an alert or a finding names, and its kind."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import ansible.module_utils
import yaml

ROOT = Path(__file__).resolve().parent.parent
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from ansible.module_utils.shiftmaster.reports import findings  # noqa: E402 - it is found where the line above leads.

CASES = ROOT / "tests/unit/diagnosis/cases.yml"
HEALTHY = ROOT / "tests/unit/diagnosis/healthy.yml"


class Command(NamedTuple):
    text: str
    source: str  # the alert, or the rule
    where: str  # a key of scripts/alerts.py's WHERE; of a rule "rule"
    service: str


def load(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@functools.cache
def unit_tests(name: str):
    """A file of the unit tests, for what it holds: examples of evidence, programs that are known."""
    spec = importlib.util.spec_from_file_location(name, next((ROOT / "tests/unit").rglob(f"{name}.py")))
    module = importlib.util.module_from_spec(spec)
    # The checklists' tests import plugins and modules, which are on the path.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def of_alerts() -> list:
    spec = importlib.util.spec_from_file_location("alerts", ROOT / "scripts/alerts.py")
    script = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        spec.loader.exec_module(script)
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    found = []
    for alert in script.catalogue():
        texts = alert["inspect"] + [cause[key] for cause in alert["causes"] for key in ("check", "fix") if key in cause]
        found += [Command(text, alert["name"], alert["where"], alert["service"]) for text in texts]
    return found


def rules() -> list:
    return [rule for path in sorted((ROOT / "diagnosis").glob("*.yml")) for rule in load(path)["rules"]]


def of_rules() -> list:
    """Those of their runbooks, and those that the findings of tests/unit/diagnosis/cases.yml show."""
    every, healthy = rules(), load(HEALTHY)
    found = [
        Command(text, rule["name"], "rule", rule["component"]) for rule in every for text in rule.get("commands", [])
    ]
    component = {rule["name"]: rule["component"] for rule in every}
    for case in load(CASES).values():
        for patch in (case["fires"], *case.get("variants", [])):
            host = changed(healthy, patch)
            for finding in findings.find(every, [host], "all", case.get("topology", {})):
                name = finding["rule"]
                found += [Command(text, name, "rule", component[name]) for text in finding["fix"]]
    return found


def changed(base, patch):
    """A copy with a patch's values in it; None for `parts` removes all."""
    if not isinstance(patch, dict) or not isinstance(base, dict):
        return patch
    result = dict(base)
    for key, value in patch.items():
        result[key] = {} if key == "parts" and value is None else changed(result.get(key), value)
    return result


def every() -> list:
    """Each text once."""
    return list({command.text: command for command in of_alerts() + of_rules()}.values())


# --- kinds -----------------------------------------------------------------------------------------------------------

# They only read with any options (as they are used here).
READERS = frozenset(
    """awk cat curl date df du find findmnt free getent grep head id ip ls namei pg_lsclusters pgrep ps sort ss
    systemd-cgtop tail tc timedatectl top uniq uptime""".split()
)
# Commands of a program that only read.
VERBS = {
    "ansible": r".* -m ansible\.builtin\.(ping$|(command|raw|shell) .*-a )",
    "chronyc": r"(-n )?(sources|tracking)",
    "dpkg": r"--(audit|verify)$",
    "docker": r"(info|inspect|logs|network ls|ps|stats --no-stream)\b",
    "filebeat": r"test ",
    "journalctl": r"(?!.*--(vacuum|rotate|flush))",
    "nft": r"(--handle )?list ",
    "nginx": r"(-t|-T .*)$",
    "openssl": r"(x509|s_client) ",
    "patronictl": r"-c \S+ (history|list)$",
    "pgbackrest": r"(\S+ )*info$",
    "promtool": r"check ",
    "psql": r"(?!.*pg_(terminate|cancel)_backend|.*pg_wal_replay_(resume|pause)).*(-c (SELECT|SHOW|\\)|-l$)",
    "redis-cli": r".*(--bigkeys|INFO( \w+)?|(CLIENT|ACL) LIST|TYPE \S+|sentinel ckquorum shiftmaster)$",
    "shiftmasterctl": r"status$",
    "sysctl": r"(?!-w)",
    "systemctl": r"(status|show|cat|list-\S+|is-\S+|--failed)\b",
}
# They change something, and are meant to.
CHANGERS = re.compile(
    r"ansible-playbook |(CREATE|REINDEX) INDEX CONCURRENTLY"
    r"|apt-get (clean$|install --reinstall )|dpkg --configure -a$|echo THAWED > |redis-cli .* RENAME "
    r"|certbot renew$|chronyc makestep$|docker (container prune|restart|start|stop)\b"
    r"|gzip |journalctl --vacuum-size|kill \d|logrotate --force|mount (--all|-o remount)"
    r"|ch(mod|own) |echo .* >> /etc/hosts|mv --backup=numbered |psql .*ALTER |sysctl -w |systemctl enable\b"
    r"|mv /var/www/shiftmaster/shared/state/state\.json |nft delete |psql .*pg_(terminate|cancel)_backend"
    r"|patronictl .* (pause|reinit|resume|switchover)\b"
    r"|psql .*pg_wal_replay_resume|renice |systemctl (kill|reload|restart|start|stop|thaw|unmask)\b"
    r"|systemd-tmpfiles --clean$"
    r"|vacuumdb |ansible .*-a '?(systemctl|kill) |ansible .* 'if systemctl is-enabled"
)


def simple_commands(text: str) -> list:
    """Return the words of each simple command: parts of a pipe, `sudo -u` and `xargs` taken off."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    found, words = [], []
    for word in [*lexer, ";"]:
        if word in ("|", ";", "&&", "||"):
            found.append(words)
            words = []
        else:
            words.append(word)
    result = []
    for words in found:
        if words[:2] == ["sudo", "-u"]:
            words = words[3:]
        if words[:1] == ["xargs"]:
            words = words[1:]
            while words and words[0].startswith("-"):
                words = words[2 if words[0] in ("-n", "-d") else 1 :]
        # tail -n 30 $(ls -t ... | head -n 1) is cut at its pipe, which is harmless: all of it reads.
        result.append(words)
    return [words for words in result if words]


def reads_only(text: str) -> bool:
    """Return whether a command changes nothing, so that anybody may run it at any time."""
    if CHANGERS.search(text):
        return False
    for words in simple_commands(text):
        program, rest = words[0], " ".join(words[1:])
        if program not in READERS and not (program in VERBS and re.match(VERBS[program], rest)):
            return False
    return True
