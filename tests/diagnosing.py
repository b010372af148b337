"""Shared by the tests of the diagnosis: run its playbooks as an administrator does, and break things for a while."""

from __future__ import annotations

import datetime
import functools
import importlib.util
import json
import shlex
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jsonschema
import pytest
from support import APP, ROOT, SCENARIO_HOME, Operations

PSQL = "runuser -u postgres -- psql -qAt"
SCHEMA = jsonschema.Draft202012Validator(json.loads((ROOT / "docs/diagnosis.schema.json").read_text()))


@dataclass
class Seen:
    """The output of playbooks/diagnose.yml."""

    code: int
    output: str
    report: dict
    run_seconds: float
    files: dict = field(default_factory=dict)

    @property
    def names(self) -> list:
        return [finding["rule"] for finding in self.report["findings"]]

    @property
    def first(self) -> dict:
        return self.report["findings"][0]

    @property
    def roots(self) -> set:
        return {finding["rule"] for finding in self.report["findings"] if finding["root"]}

    @property
    def seconds(self) -> float:
        """How long it took on the one host."""
        return self.report["hosts"][0]["seconds"]

    def of(self, host: str) -> dict:
        return next(one for one in self.report["hosts"] if one["host"] == host)

    def finding(self, rule: str) -> dict:
        return next(one for one in self.report["findings"] if one["rule"] == rule)


def diagnose(operations, *arguments: str, **extra) -> Seen:
    """Run the playbook; its report matches its schema."""
    with tempfile.TemporaryDirectory(dir=SCENARIO_HOME) as directory:
        run = operations.run("playbooks/diagnose.yml", *arguments, report_dir=directory, **extra)
        files = {path.name: path.read_bytes() for path in Path(directory).iterdir()}
    assert "diagnosis.json" in files, run.output[-5000:]
    report = json.loads(files["diagnosis.json"])
    SCHEMA.validate(report)
    return Seen(run.code, run.output, report, run.seconds, files)


# Where a host has the call of the module: its code and, in debug_dir/args, its arguments.
CALL = "/root/evidence"
KEEP_CALL = f"""
call=$(ls -t /root/.ansible/tmp/*/AnsiballZ_shiftmaster_diagnose.py | head -n 1)
rm -rf {CALL} && cp -r "$(dirname "$call")" {CALL} && rm -rf /root/.ansible/tmp/*
python3 {CALL}/AnsiballZ_shiftmaster_diagnose.py explode >/dev/null
cat {CALL}/debug_dir/args
"""


@functools.cache
def recorded(operations) -> tuple:
    """What the playbook gives its module on each host, and its action here: ({host: arguments}, arguments)."""
    with tempfile.TemporaryDirectory(dir=SCENARIO_HOME) as directory, pytest.MonkeyPatch.context() as patch:
        kept = Path(directory) / "arguments.json"
        patch.setenv("SHIFTMASTER_KEEP_ARGUMENTS", str(kept))
        patch.setenv("ANSIBLE_ACTION_PLUGINS", f"{ROOT / 'tests/recording'}:{ROOT / 'plugins/action'}")
        patch.setenv("ANSIBLE_KEEP_REMOTE_FILES", "1")
        diagnose(operations)
        evaluated = json.loads(kept.read_text(encoding="utf-8"))
    hosts = [Operations(operations.inventory, one["host"]) for one in evaluated["results"]]
    return {host.host: json.loads(host.shell(KEEP_CALL)) for host in hosts}, evaluated


@functools.cache
def action():
    spec = importlib.util.spec_from_file_location("findings", ROOT / "plugins/action/shiftmaster_findings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def diagnose_directly(operations, area: str = "all") -> Seen:
    """As `diagnose`, without ansible-playbook: its module on the hosts and its evaluation here, by its own arguments.

    A run of the playbook takes twice as long. What it adds (options, exit codes, hosts that do not respond, files) has
    tests that run it.
    """
    calls, evaluated = recorded(operations)
    began = time.monotonic()

    def result(one: dict) -> dict:
        arguments = {**calls[one["host"]]["ANSIBLE_MODULE_ARGS"], "area": area, "requested_at": time.time()}
        text = Operations(operations.inventory, one["host"]).shell(
            f"cat > {CALL}/debug_dir/args && TMPDIR=/dev/shm python3 {CALL}/AnsiballZ_shiftmaster_diagnose.py execute",
            timeout=300, check=False, stdin=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        )  # fmt: skip
        return {**one, "result": json.loads(text)}

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(result, evaluated["results"]))
    parameters = {**evaluated, "results": results, "area": area}
    found, _files = action().evaluate(parameters, datetime.datetime.now(datetime.timezone.utc))
    SCHEMA.validate(found["report"])
    code = 2 if found["failing"] else 0
    return Seen(code, found["report_text"], found["report"], time.monotonic() - began)


def checklist(operations, period: str, **extra) -> tuple:
    """Run the playbook; returns (the run, its data, {file: content})."""
    with tempfile.TemporaryDirectory(dir=SCENARIO_HOME) as directory:
        run = operations.run("playbooks/checklist.yml", period=period, report_dir=directory, **extra)
        files = {path.name: path.read_bytes() for path in Path(directory).iterdir()}
    assert "checklist.json" in files, run.output[-5000:]
    return run, json.loads(files["checklist.json"]), files


def marks(data: dict) -> dict:
    return {line["name"]: line["mark"] for line in data["lines"]}


def second_inventory(name: str, host: str, **variables) -> str:
    """One more host next to the scenario's; returns the inventory's directory."""
    directory = SCENARIO_HOME / f"diagnosis-{name}"
    directory.mkdir(exist_ok=True)
    (directory / "hosts.yml").write_text(json.dumps({"all": {"children": {"demo": {"hosts": {host: variables}}}}}))
    return str(directory)


@contextmanager
def background(operations, name: str, command: str, **properties):
    """Run something in a unit of its own while the block runs."""
    options = " ".join(f"--property={key}={value}" for key, value in properties.items())
    operations.shell(f"systemd-run --quiet --unit={name} {options} {command}")
    try:
        yield
    finally:
        operations.shell(f"systemctl stop {name} 2>/dev/null; systemctl reset-failed {name} 2>/dev/null", check=False)


@contextmanager
def broken(operations, injure: str, fix: str):
    """Break something while the block runs."""
    operations.shell(injure, check=False)
    try:
        yield
    finally:
        fixed(operations, fix)


@contextmanager
def processors_first(operations):
    """The host has this machine's processors before what else is tested here at the same time."""
    update = ["docker", "update", operations.host, "--cpu-shares"]
    subprocess.run([*update, "16384"], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run([*update, "1024"], check=True, capture_output=True)


def fixed(operations, command: str) -> None:
    operations.shell(command)
    operations.shell("systemctl reset-failed; true")


def forget_the_journal(operations) -> None:
    """Entries of the journal are no evidence of the next test (kills, log-ins, accounts)."""
    operations.shell("journalctl --rotate --quiet; journalctl --quiet --vacuum-time=1s; sleep 1")


def forget_the_requests(operations) -> None:
    """Pages that were slow or failed count for five minutes: those of the fault before are none of the next test's."""
    operations.shell(": > /var/log/nginx/shiftmaster_access.log; rm -f /var/log/nginx/shiftmaster_access.log[.-]*")


def forget(operations) -> None:
    """Leave nothing of the fault before: neither in logs nor in what has changed since the last deploy."""
    forget_the_journal(operations)
    forget_the_requests(operations)
    logs = "/var/log/{nginx,shiftmaster,postgresql,redis}/*.log"
    stamps = f"{APP}/shared/state/state.json /var/lib/shiftmaster-ops/configured"
    operations.shell(f"truncate -c -s 0 {logs}; touch -d '-28 seconds' {stamps}")


def carry_out(operations, command: str) -> None:
    """Carry out a command of a finding: Ansible's here, others on the host."""
    if command.startswith("ansible"):
        environment = dict(operations.environment(), ANSIBLE_INVENTORY=operations.inventory)
        done = subprocess.run(
            command, shell=True, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    else:
        # It fails where it shows the fault.
        operations.shell(command, check=command != "nginx -t")


def facts_of(operations) -> dict:
    """Facts of the host for commands that break something."""
    slot = operations.shell(f"readlink {APP}/active | xargs basename").strip()
    log_dir = operations.shell("stat -c '%a %U:%G' /var/log/shiftmaster").split()
    return {
        "slot": slot,
        # The release itself: faults may remove the links.
        "release": operations.shell(f"readlink -f {APP}/active/release").strip(),
        "hba": operations.shell(f"{PSQL} -c 'SHOW hba_file'").strip(),
        "data": operations.shell(f"{PSQL} -c 'SHOW data_directory'").strip(),
        "acl": operations.shell("ls /etc/redis/*.acl | head -n 1").strip(),
        "restore_log_dir": f"chown {log_dir[1]} /var/log/shiftmaster; chmod {log_dir[0]} /var/log/shiftmaster",
        "nothing": "0" * 64,
        "redis": f"REDISCLI_AUTH={shlex.quote(redis_admin_password())} redis-cli --user admin --no-auth-warning",
    }


def redis_admin_password() -> str:
    return (SCENARIO_HOME / "secrets/redis_admin").read_text().split()[0]
