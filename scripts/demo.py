#!/usr/bin/env python3
"""ShiftMaster on a container that plays the host, deployed by `ansible-playbook deploy.yml` itself.

  scripts/demo.py up               make or reuse the container, deploy, fill in the demo's data (VERSION, 2.0.0)
  scripts/demo.py deploy VERSION   deploy another version
  scripts/demo.py rollback         back to the version before (TO=release, SCHEMA=keep|reverse|restore)
  scripts/demo.py health           the health of the host
  scripts/demo.py clean            remove the container and what the demo keeps on this machine

DEMO_HTTPS_PORT (8443) and DEMO_HTTP_PORT (8080) are where it can be reached on 127.0.0.1.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
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
BOOT_SECONDS = 60
ANSWER_SECONDS = 30


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


def playbook(*arguments: str) -> int:
    environment = {
        **os.environ,
        "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        # The demo's host alone, whatever an administrator of real ones has exported.
        "ANSIBLE_INVENTORY": str(ROOT / "inventory" / "demo"),
    }
    for name in ("ANSIBLE_LIMIT", "ANSIBLE_VAULT_PASSWORD_FILE"):
        environment.pop(name, None)
    command = ["ansible-playbook", *arguments]
    say(f"Running: {' '.join(command)}")
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def settings() -> dict:
    return json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {}


def keep(**values) -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    SETTINGS.write_text(json.dumps({**settings(), **values}, indent=2) + "\n")


def status() -> str:
    """What Docker reports about the container: running, exited, ..., or nothing where there is none."""
    return docker("container", "inspect", "--format", "{{.State.Status}}", HOST, check=False).stdout.strip()


def need_running() -> None:
    if status() != "running":
        fail("The demo is not running: `make demo` starts it.")


def port(name: str, default: int) -> int:
    text = os.environ.get(name) or str(settings().get(name.lower(), default))
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
    if state == "running":
        say(f"The container {HOST} is running.")
        return
    if state:
        say(f"Starting the container {HOST} again")
        docker("start", HOST)
    else:
        https, http = port("DEMO_HTTPS_PORT", 8443), port("DEMO_HTTP_PORT", 8080)
        keep(demo_https_port=https, demo_http_port=http)
        # Another host of that name may have been known.
        forget_facts()
        say(f"Starting the container {HOST} (https on port {https}, http on port {http})")
        docker(
            "run", "--detach", "--name", HOST, "--hostname", HOST,
            "--privileged", "--cgroupns=private", "--tmpfs", "/run", "--tmpfs", "/tmp",
            "--publish", f"127.0.0.1:{https}:443", "--publish", f"127.0.0.1:{http}:80",
            IMAGE,
        )  # fmt: skip
    say("Waiting until it has booted")
    for _ in range(BOOT_SECONDS * 2):
        answer = docker("exec", HOST, "systemctl", "is-system-running", check=False).stdout.strip()
        if answer in ("running", "degraded"):
            return
        time.sleep(0.5)
    fail(f"The container {HOST} did not boot within {BOOT_SECONDS} s: see `docker logs {HOST}`.")


def pack_application() -> None:
    say("Packing the example application into .cache/demo/shiftmaster.git")
    result = subprocess.run(
        [sys.executable, ROOT / "examples/shiftmaster/pack.py", HOME / "shiftmaster.git"],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        fail(f"The example application could not be packed: {(result.stderr or result.stdout).strip()}")


def login_password() -> str:
    path = HOME / "login"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(12) + "\n")
    return path.read_text().strip()


def seed() -> None:
    say("Filling in the demo's wards, staff and rosters")
    release = "/var/www/shiftmaster/active/release"
    # The application's own environment and user, as its services have them. The password is in no argument.
    result = docker(
        "exec", "--env", "DEMO_PASSWORD", HOST,
        "systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--setenv=DEMO_PASSWORD",
        "--property=User=shiftmaster", f"--property=EnvironmentFile={release}/env",
        f"--property=WorkingDirectory={release}/source",
        f"{release}/venv/bin/python", "manage.py", "seed_demo",
        check=False, env={**os.environ, "DEMO_PASSWORD": login_password()},
    )  # fmt: skip
    if result.returncode:
        fail(f"The demo's data could not be filled in:\n{(result.stdout + result.stderr).strip()}")
    print(f"    {result.stdout.strip()}")


def wait_for_answer() -> None:
    say("Waiting until the page responds on TLS")
    port = settings()["demo_https_port"]
    # The demo's certificate signs itself; nothing secret is sent.
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    last = ""
    for _ in range(ANSWER_SECONDS):
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
    version = os.environ.get("VERSION") or settings().get("version", FIRST_VERSION)
    HOME.mkdir(parents=True, exist_ok=True)
    pack_application()
    start_container()
    code = deploy(version)
    if code:
        return code
    seed()
    wait_for_answer()
    https = settings()["demo_https_port"]
    print(
        f"""
ShiftMaster {version} runs in the container {HOST}.

  open       https://localhost:{https}/   (a self-signed certificate: the browser warns once)
  login      demo, password {login_password()}   (nurse, with the same password, sees what a nurse sees)

Try next:
  make demo-deploy VERSION={NEXT_VERSION}            a new version while people work
  make demo-rollback                        back again
  make demo-deploy VERSION=broken-health    a version that nobody gets to see
  make demo-health                          the health of the host
  docker exec -it {HOST} bash    the host itself
  make demo-clean                           remove it all
""".rstrip()
    )
    return 0


def deploy(version: str) -> int:
    say(f"Deploying ShiftMaster {version} (the first time takes some minutes)")
    code = playbook("deploy.yml", "--extra-vars", json.dumps({"shiftmaster_version": version}))
    if code == 0:
        keep(version=version)
    return code


def main() -> int:
    command, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if command == "up":
        return up()
    if command == "clean":
        if status():
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
        return deploy(arguments[0])
    if command == "rollback":
        need_running()
        wishes = {"to": os.environ.get("TO"), "schema": os.environ.get("SCHEMA")}
        given = json.dumps({name: value for name, value in wishes.items() if value})
        code = playbook("playbooks/rollback.yml", "--extra-vars", given)
        if code == 0:
            # What runs now is queried from the host, so that `make demo` again does not undo it.
            running = docker(
                "exec", HOST, "sed", "-n", "s/^SHIFTMASTER_VERSION=//p", "/var/www/shiftmaster/active/release/env"
            )
            keep(version=running.stdout.strip().strip("\"'"))
        return code
    if command == "health":
        need_running()
        return playbook("playbooks/health.yml")
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main())
