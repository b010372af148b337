"""Every command of runbooks, alerts and findings that only reads is typed on a deployed host, and works.

Not here: what is about services that this host does not have. That a file or a unit is not there is no fault.
"""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
import runbooks
from support import ROOT, SCENARIO_HOME

# Services of other hosts, by the alert's `where` and `service`, and programs that only such a host has.
ELSEWHERE = {"logging", "logstash", "monitoring"}
NOT_HERE = {"docker", "filebeat", "patronictl", "pgbackrest", "promtool"}
# The port of Sentinel, which one Redis has not, and the example's name of a function.
NOT_OF_THIS_HOST = re.compile(r" -p 26379 |audit_row")
READING = [command for command in runbooks.every() if runbooks.reads_only(command.text)]
HERE = [
    command
    for command in READING
    if command.where not in ELSEWHERE
    and command.service != "container"
    and not NOT_OF_THIS_HOST.search(command.text)
    and not NOT_HERE & {words[0] for words in runbooks.simple_commands(command.text)}
]
ON_HOST = [command for command in HERE if not command.text.startswith("ansible ")]
# Hosts and groups that the scenario does not have stay out.
BY_ANSIBLE = [
    command
    for command in HERE
    if command.text.startswith("ansible ")
    and shlex.split(command.text)[1] in {"all", "app", "database", "cache", "web"}
]
# These always print something.
PRINTS = {"psql", "redis-cli", "shiftmasterctl", "nft", "nginx", "ss", "ps", "df", "free", "openssl", "pg_lsclusters"}
COMPLAINT = re.compile(
    r"command not found|(?<!\w)(unknown|unrecognized|invalid|illegal) (option|argument|command|operation|verb)"
    r"|syntax error|Usage:|missing operand|Failed to parse"
    # What PostgreSQL reports about a primary is no fault of a query to a standby.
    r"|(?-i:ERROR:)(?!  recovery is not in progress)",
    re.I,
)


def named(command) -> str:
    return f"{command.source}: {command.text[:70]}"


def typed(operations, text: str):
    """Run it as root at a terminal that shows everything; the password that redis-cli prompts for is given."""
    password = (SCENARIO_HOME / "secrets/redis_admin").read_text().split()[0]
    shell = ["docker", "exec", "--interactive", "--env", "TERM=xterm", operations.host, "bash", "-o", "pipefail", "-c"]
    return subprocess.run(
        [*shell, text],
        input=password + "\n", text=True, errors="replace", capture_output=True, timeout=120, check=False,
    )  # fmt: skip


def faults(text: str, done) -> list:
    """Problems of the result of a command."""
    found = []
    if done.returncode in (126, 127):
        found.append(f"it ended with {done.returncode}")
    found += [line for line in done.stderr.splitlines() if COMPLAINT.search(line)]
    # grep returns 1 where nothing was found, systemctl with 3 and 4 that a unit is stopped or not there, a pipe with
    # 141 that its end has read enough.
    if done.returncode not in (0, 1, 2, 3, 4, 141):
        found.append(f"it ended with {done.returncode}: {done.stderr[-300:]}")
    first = {words[0] for words in runbooks.simple_commands(text)}
    # The process of an example does not exist here.
    absent = re.search(r"No such file or directory|recovery is not in progress", done.stderr) or " -p 4711" in text
    if first & PRINTS and not first & {"grep", "awk"} and not absent:
        found += [f"it ended with {done.returncode}: {done.stderr[-300:]}"] if done.returncode not in (0, 141) else []
        found += ["it reports nothing"] if not (done.stdout + done.stderr).strip() else []
    return found


def test_most_commands_are_executed_here():
    assert len(ON_HOST) > 0.7 * len(READING) and len(BY_ANSIBLE) >= 4


@pytest.mark.parametrize("command", ON_HOST, ids=named)
def test_command_works(operations, command):
    done = typed(operations, command.text)
    assert faults(command.text, done) == [], done.stdout[-500:] + done.stderr[-500:]


@pytest.mark.parametrize("command", BY_ANSIBLE, ids=named)
def test_command_of_the_controller_works(operations, command):
    done = subprocess.run(
        [*shlex.split(command.text), "--inventory", operations.inventory], cwd=ROOT, env=operations.environment(),
        text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-800:] + done.stderr[-500:]


@pytest.mark.parametrize(
    "text",
    [
        "shiftmasterctl state",
        "netstat -tulpn",
        "ss --no-such-option",
        "sudo -u postgres psql -c 'SELECT no_such_column FROM pg_stat_activity'",
        "ls /var/log | lst",
        "systemctl state nginx",
    ],
)
def test_each_fault_of_a_runbook_is_detected(operations, text):
    assert faults(text, typed(operations, text)) != []
