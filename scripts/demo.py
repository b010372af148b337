#!/usr/bin/env python3
"""ShiftMaster on a container that plays the host, operated by `./shiftmaster -E demo`.

  scripts/demo.py up               make or reuse the container, deploy, fill in the demo's data (VERSION, 2.0.0)
  scripts/demo.py deploy VERSION   deploy another version while requests and tasks arrive
  scripts/demo.py rollback         back to the version before (TO=release, SCHEMA=keep|reverse|restore)
  scripts/demo.py fault NAME       break something: idle-transaction, full-disk, redis-stopped, expired-certificate,
                                   memory-leak, slow-query; `none` ends all faults
  scripts/demo.py diagnose         what is broken, and the address of the report
  scripts/demo.py health|backup|restore
  scripts/demo.py clean            remove the container and what the demo keeps on this machine

DEMO_HTTPS_PORT (8443), DEMO_HTTP_PORT (8080), DEMO_PROMETHEUS_PORT (9090) and DEMO_ALERTMANAGER_PORT (9093) are its
ports of 127.0.0.1.
"""

from __future__ import annotations

import datetime
import http.client
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".cache/demo"
# Read by inventory/demo/controller.py too.
SETTINGS = HOME / "settings.json"
HOST = "shiftmaster-demo"
IMAGE = "shiftmaster-ops/base:trixie"
FIRST_VERSION = "2.0.0"
NEXT_VERSION = "2.1.0"
# The port of the host, and the one of this machine where no other is chosen.
PORTS = {"https": (443, 8443), "http": (80, 8080), "prometheus": (9090, 9090), "alertmanager": (9093, 9093)}
# The load of a deploy: requests a second, tasks, and the seconds before and after it.
RATE, TASKS, BEFORE_SECONDS, AFTER_SECONDS = 10, 20, 5, 10
RELEASE = "/var/www/shiftmaster/active/release"
AUDIT = "/var/www/shiftmaster/shared/state/audit.jsonl"
CERTIFICATE = "/etc/ssl/certs/shiftmaster.crt"
UNIT = "systemd-run --quiet --collect --unit=demo-fault"
SQL = "runuser -u postgres -- psql -qAt -d shiftmaster"
# Each: what breaks the host, and what ends it. Nothing here uses up disk or memory of this machine.
FAULTS = {
    "idle-transaction": (
        f"{SQL} -c 'CREATE TABLE IF NOT EXISTS demo_fault (id int)';"
        f" {UNIT}-holder --property=User=postgres bash -c"
        " '(echo \"BEGIN; LOCK TABLE demo_fault;\"; sleep 3600) | psql -d shiftmaster'; sleep 2;"
        f" {UNIT}-waiter --property=User=postgres psql -d shiftmaster -c 'SELECT * FROM demo_fault'; sleep 8",
        f"{SQL} -c 'DROP TABLE IF EXISTS demo_fault'",
    ),
    "full-disk": (
        "mkdir -p /var/log/demo-fault; mount -t tmpfs -o size=40m tmpfs /var/log/demo-fault;"
        " dd if=/dev/zero of=/var/log/demo-fault/import.log bs=1M 2>/dev/null; true",
        "umount /var/log/demo-fault 2>/dev/null; rm -rf /var/log/demo-fault",
    ),
    "redis-stopped": ("systemctl stop redis-server", "systemctl start redis-server"),
    "expired-certificate": (
        f"[ -e /root/demo.crt ] || cp -p {CERTIFICATE} /root/demo.crt; openssl req -x509"
        " -key /etc/ssl/private/shiftmaster.key -subj /CN=localhost"
        f" -not_before 20250101000000Z -not_after 20250601000000Z -out {CERTIFICATE} 2>/dev/null;"
        " systemctl reload nginx",
        # A deploy may have made another one meanwhile.
        f"[ ! -e /root/demo.crt ] || {{ openssl x509 -checkend 0 -noout -in {CERTIFICATE} >/dev/null ||"
        f" cp -p /root/demo.crt {CERTIFICATE}; rm /root/demo.crt; systemctl reload nginx; }}",
    ),
    "memory-leak": (
        f"{UNIT}-leak --property=MemoryMax=64M --property=MemorySwapMax=0 --property=Restart=always"
        " --property=RestartSec=5 --property=StartLimitIntervalSec=0"
        " python3 -c 'kept = []\nwhile True: kept.append(bytearray(1 << 20))'; sleep 8",
        "true",
    ),
    "slow-query": (
        f"{SQL} -c 'CREATE TABLE IF NOT EXISTS demo_fault AS SELECT g AS id, g % 997 AS staff"
        " FROM generate_series(1, 300000) g; ANALYZE demo_fault';"
        f" {UNIT}-slow --property=User=postgres bash -c 'for i in $(seq 2400); do psql -d shiftmaster"
        ' -c "SELECT count(*), pg_sleep(1.5) FROM demo_fault WHERE staff = 7"; done\'; sleep 20',
        f"{SQL} -c 'DROP TABLE IF EXISTS demo_fault; SELECT pg_stat_statements_reset()' >/dev/null",
    ),
}
BOOT_SECONDS = 60
RESPONSE_SECONDS = 30


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def fail(text: str) -> None:
    sys.exit(f"ERROR: {text}")


def docker(*arguments: str, check: bool = True, **options) -> subprocess.CompletedProcess:
    result = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **options
    )
    if check and result.returncode:
        fail(f"docker {arguments[0]}: {result.stderr.strip()}")
    return result


def shiftmaster(*arguments: str) -> int:
    """One of its commands on the demo's host alone, whatever an administrator of real ones has exported."""
    hidden = ("ANSIBLE_LIMIT", "ANSIBLE_VAULT_PASSWORD_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = ["./shiftmaster", "-E", "demo", *arguments]
    say(f"Running: {shlex.join(command)}")
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def settings() -> dict:
    return json.loads(SETTINGS.read_text())


def status() -> str:
    """What Docker reports about the container: running, exited, ..., or nothing where there is none."""
    return docker("container", "inspect", "--format", "{{.State.Status}}", HOST, check=False).stdout.strip()


def need_own() -> None:
    """Ends where another clone has made the container: its secrets and ports are there."""
    owner = docker("container", "inspect", "--format", '{{index .Config.Labels "shiftmaster-ops.clone"}}', HOST)
    if owner.stdout.strip() != str(ROOT):
        fail(
            f"The container {HOST} was made by another clone ({owner.stdout.strip() or 'not known'}). "
            f"Run `make demo` there, or remove it: docker rm --force --volumes {HOST}"
        )


def need_running() -> None:
    if status() != "running":
        fail("The demo is not running: `make demo` starts it.")
    need_own()


def port(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or not 0 < int(text) < 65536:
        fail(f"{name}={text} is not the number of a port.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(text)))
        except OSError as error:
            fail(
                f"Port {text} of 127.0.0.1 cannot be used ({error.strerror}): choose another, {name}=<port> make demo."
            )
    return int(text)


def forget_facts() -> None:
    for path in (ROOT / ".cache/facts").glob(f"*{HOST}"):
        path.unlink()


def start_container() -> None:
    state = status()
    if state:
        need_own()
    if state == "running":
        say(f"The container {HOST} is running.")
        return
    if state:
        say(f"Starting the container {HOST} again")
        docker("start", HOST)
    else:
        ports = {f"demo_{name}_port": port(f"DEMO_{name.upper()}_PORT", own) for name, (_, own) in PORTS.items()}
        SETTINGS.write_text(json.dumps(ports, indent=2) + "\n")
        # Another host of that name may have been known.
        forget_facts()
        say(f"Starting the container {HOST}")
        published = [f"--publish=127.0.0.1:{ports[f'demo_{name}_port']}:{there}" for name, (there, _) in PORTS.items()]
        docker(
            "run", "--detach", "--name", HOST, "--hostname", HOST, "--label", f"shiftmaster-ops.clone={ROOT}",
            "--privileged", "--cgroupns=private", "--tmpfs", "/run", "--tmpfs", "/tmp", *published,
            IMAGE,
        )  # fmt: skip
    say("Waiting until it has booted")
    for _ in range(BOOT_SECONDS * 2):
        response = docker("exec", HOST, "systemctl", "is-system-running", check=False).stdout.strip()
        if response in ("running", "degraded"):
            return
        time.sleep(0.5)
    fail(f"The container {HOST} did not boot within {BOOT_SECONDS} s: see `docker logs {HOST}`.")


def pack_application() -> None:
    say("Packing the example application into .cache/demo/shiftmaster.git")
    command = [sys.executable, ROOT / "examples/shiftmaster/pack.py", HOME / "shiftmaster.git"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        fail(f"The example application could not be packed: {(result.stderr or result.stdout).strip()}")


def login_password() -> str:
    path = HOME / "login"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(12) + "\n")
    return path.read_text().strip()


def manage(*arguments: str) -> subprocess.CompletedProcess:
    """manage.py with the application's own environment and user, as its services have them."""
    # The password is in no argument.
    return docker(
        "exec", "--env", "DEMO_PASSWORD", HOST,
        "systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--setenv=DEMO_PASSWORD",
        "--property=User=shiftmaster", f"--property=EnvironmentFile={RELEASE}/env",
        f"--property=WorkingDirectory={RELEASE}/source", f"{RELEASE}/venv/bin/python", "manage.py", *arguments,
        check=False, env={**os.environ, "DEMO_PASSWORD": login_password()},
    )  # fmt: skip


def seed() -> None:
    say("Filling in the demo's wards, staff and rosters")
    result = manage("seed_demo")
    if result.returncode:
        fail(f"The demo's data could not be filled in:\n{(result.stdout + result.stderr).strip()}")
    print(f"    {result.stdout.strip()}")


def wait_for_response() -> None:
    say("Waiting until the page responds on TLS")
    port = settings()["demo_https_port"]
    # The demo's certificate signs itself; nothing secret is sent.
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    last = ""
    for _ in range(RESPONSE_SECONDS):
        try:
            # By its name: the site is served under no other.
            connection = http.client.HTTPSConnection("localhost", port, timeout=5, context=trusting)
            connection.request("GET", "/health/")
            last = f"status {connection.getresponse().status}"
            if last == "status 200":
                return
        except OSError as error:
            last = str(error)
        time.sleep(1)
    fail(f"https://localhost:{port}/health/ does not respond ({last}): check with `make demo-health`.")


def up() -> int:
    HOME.mkdir(parents=True, exist_ok=True)
    pack_application()
    start_container()
    # Another version may have been deployed since: it stays.
    active = docker("exec", HOST, "sed", "-n", "s/^SHIFTMASTER_VERSION=//p", f"{RELEASE}/env", check=False).stdout
    version = os.environ.get("VERSION") or active.strip().strip("\"'") or FIRST_VERSION
    code = deploy(version)
    if code:
        return code
    seed()
    wait_for_response()
    at = settings()
    admin = (HOME / "monitoring/admin").read_text().strip()
    print(
        f"""
ShiftMaster {version} runs in the container {HOST}.

  ShiftMaster    https://localhost:{at["demo_https_port"]}/   demo, password {login_password()}   (nurse: the same)
  Prometheus     https://localhost:{at["demo_prometheus_port"]}/   admin, password {admin}
  Alertmanager   https://localhost:{at["demo_alertmanager_port"]}/   the same
  (self-signed certificates: the browser warns once for each)

Try next:
  make demo-deploy VERSION={NEXT_VERSION}            a new version under load: requests served, failed, tasks lost
  make demo-rollback                        back again
  make demo-deploy VERSION=broken-health    a broken version: it is stopped before users see it
  make demo-fault NAME=idle-transaction     break something ({", ".join(FAULTS)}; none ends it)
  make demo-diagnose                        the cause, the command that fixes it, and a report
  make demo-backup                          a backup, verified by a restore
  make demo-restore                         restore it next to the running database, and throw that away
  ./shiftmaster -E demo status              any other command; docker exec -it {HOST} bash is the host
  make demo-clean                           remove it all
""".rstrip()
    )
    return 0


def deploy(version: str, *options: str) -> int:
    say(f"Deploying ShiftMaster {version}")
    return shiftmaster("deploy", version, *options)


def deploy_under_load(version: str) -> int:
    """A deploy of the release alone while requests and tasks arrive; then what they saw of it."""
    directory = HOME / "load"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    say(f"{RATE} requests a second and {TASKS} tasks arrive during the deploy")
    started, prefix = time.time(), f"demo{int(time.time())}"
    https, summary = settings()["demo_https_port"], directory / "summary.json"
    load = subprocess.Popen(
        [sys.executable, ROOT / "tests/load/loadgen.py", ROOT / "tests/load/shiftmaster.json", "--connect",
         f"127.0.0.1:{https}", "--rate", str(RATE), "--clients", "8", "--seconds", "3600", "--summary", summary],
        env={**os.environ, "LOADGEN_PASSWORD": login_password()}, stdout=subprocess.DEVNULL,
        stderr=(directory / "errors").open("w"),
    )  # fmt: skip
    try:
        time.sleep(BEFORE_SECONDS)
        sent = manage("task_runs", "send", prefix, "--count", str(TASKS), "--seconds", "1")
        code = deploy(version, "--tags", "release")
        time.sleep(AFTER_SECONDS)
    finally:
        load.terminate()
        load.wait()
    print()
    if summary.exists():
        seen = json.loads(summary.read_text())
        print(f"  requests served   {seen['requests'] - seen['failed']}")
        print(f"  requests failed   {seen['failed']}")
    else:
        print(f"  requests          not measured: {(directory / 'errors').read_text().strip()}")
    switched = re.findall(r'"event": "switched".*"time": "([^"]+)"', docker("exec", HOST, "cat", AUDIT).stdout)
    at = datetime.datetime.fromisoformat(switched[-1]).timestamp() if switched else 0
    switch = "no switch: the old version stays active"
    if at >= started - 1:
        switch = docker("exec", HOST, "date", f"--date=@{at}", "+%F %T %Z").stdout.strip()
    print(f"  switched at       {switch}")
    if sent.returncode:
        print("  tasks             not measured: they could not be sent")
        return code
    ran = {}
    for _ in range(TASKS + RESPONSE_SECONDS):
        ran = json.loads(manage("task_runs", "report", prefix).stdout or '{"runs": {}}')["runs"]
        if len(ran) == TASKS:
            break
        time.sleep(1)
    print(f"  tasks done        {len(ran)}\n  tasks lost        {TASKS - len(ran)}")
    return code


def fault(name: str) -> int:
    if name not in {*FAULTS, "none"}:
        fail(f"Which fault? make demo-fault NAME={'|'.join(FAULTS)}|none")
    need_running()
    if name == "none":
        docker("exec", HOST, "sh", "-c", "systemctl stop 'demo-fault-*'; systemctl reset-failed", check=False)
        for _, end in FAULTS.values():
            docker("exec", HOST, "sh", "-c", end)
        say("All faults are ended.")
        return 0
    docker("exec", HOST, "sh", "-c", FAULTS[name][0])
    say(f"{name}: now `make demo-diagnose`; `make demo-fault NAME=none` ends it.")
    return 0


def diagnose() -> int:
    need_running()
    code = shiftmaster("diagnose", "--extra-vars", "report_dir=reports/demo")
    page = ROOT / "reports/demo/diagnosis.html"
    if page.exists():
        print(f"\nReport: {page.as_uri()}")
    # 2: it has found something, which is what it is for.
    return 0 if code == 2 else code


def main() -> int:
    command, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if command == "up":
        return up()
    if command == "clean":
        if status():
            need_own()
            say(f"Removing the container {HOST}")
            docker("rm", "--force", "--volumes", HOST)
        shutil.rmtree(HOME, ignore_errors=True)
        forget_facts()
        return 0
    if command == "deploy":
        if len(arguments) != 1:
            fail(f"Which version? make demo-deploy VERSION={NEXT_VERSION}")
        need_running()
        pack_application()
        return deploy_under_load(arguments[0])
    if command == "fault":
        return fault(arguments[0] if arguments else "")
    if command == "diagnose":
        return diagnose()
    if command == "rollback":
        need_running()
        to, schema = os.environ.get("TO"), os.environ.get("SCHEMA")
        return shiftmaster("rollback", *([to] if to else []), *(["--extra-vars", f"schema={schema}"] if schema else []))
    if command in ("health", "backup", "restore"):
        need_running()
        return shiftmaster(command, *(["--extra-vars", f"into=scratch confirm={HOST}"] if command == "restore" else []))
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main())
