"""What the tests of this scenario share: a further run of the roles, and the two services' own clients."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCENARIO = ROOT / "molecule/data"
RUN_TIMEOUT_SECONDS = 400

ADMIN_PASSWORD = "admin-Qk7Wd2"


class Run:
    """A finished run of ansible-playbook."""

    def __init__(self, done):
        self.rc = done.returncode
        self.text = done.stdout + done.stderr
        recap = re.search(r"^data-\S+\s*: ok=(\d+)\s+changed=(\d+)", self.text, re.M)
        self.changed = int(recap.group(2)) if recap else None
        # One line, since a message is wrapped where the terminal ends.
        self.line = " ".join(self.text.split())


@pytest.fixture
def converge(host):
    """Run the scenario's playbook on this host with other variables."""

    def run(tags, *arguments, **variables):
        name = host.backend.get_hostname()
        command = [Path(sys.executable).parent / "ansible-playbook", "--limit", name, "--tags", tags]
        command += ["--inventory", ROOT / "inventory/demo/controller.py", "--inventory", SCENARIO / "inventory"]
        command += [
            "--extra-vars",
            json.dumps({"data_hosts": name, **variables}),
            *arguments,
            SCENARIO / "converge.yml",
        ]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.memory",
            "ANSIBLE_NOCOLOR": "1",
        }
        return Run(
            subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=RUN_TIMEOUT_SECONDS,
                check=False,
                cwd=ROOT,
            )
        )

    return run


@pytest.fixture
def converged(converge):
    """The same, and it must succeed."""

    def run(*arguments, **variables):
        done = converge(*arguments, **variables)
        assert done.rc == 0, done.text
        return done

    return run


@pytest.fixture
def sql(host):
    """Ask PostgreSQL: as postgres over the socket, or as a role over TLS with a verified certificate."""

    def ask(statement, user=None, password=None, database="shiftmaster", sslmode="verify-full"):
        if user is None:
            command = f"runuser -u postgres -- psql -XAtq -d {database} -c {shlex.quote(statement)}"
        else:
            where = f"host=localhost dbname={database} user={user} sslmode={sslmode} connect_timeout=10"
            where += " sslrootcert=/etc/ssl/certs/internal-ca.crt"
            command = (
                f"PGPASSWORD={shlex.quote(password or '')} psql -XAtqw {shlex.quote(where)} -c {shlex.quote(statement)}"
            )
        return host.run(command)

    return ask


@pytest.fixture
def redis(host):
    """Ask Redis; the password goes by the environment."""

    def ask(*words, user="admin", password=ADMIN_PASSWORD, port=6379, more=""):
        login = f"REDISCLI_AUTH={shlex.quote(password)}" if password else ""
        name = f"--user {user}" if user else ""
        done = host.run(
            f"{login} redis-cli --no-auth-warning -p {port} {name} {more} {' '.join(map(shlex.quote, words))}"
        )
        return done.stdout.strip()

    return ask


@pytest.fixture
def started(host):
    """When a unit's process began: a restart gives another answer, a reload does not."""

    def ask(unit):
        return host.check_output(f"systemctl show --property=MainPID,ExecMainStartTimestampMonotonic {unit}")

    return ask
