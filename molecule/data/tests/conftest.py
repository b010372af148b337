"""Shared by the tests of this scenario: a further run of the roles, and the two services' own clients."""

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

VERSIONS = {"12": 15, "13": 17}
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


def play(host, playbook, arguments, variables):
    command = [Path(sys.executable).parent / "ansible-playbook", "--limit", host.backend.get_hostname(), *arguments]
    command += ["--inventory", ROOT / "inventory/demo/controller.py", "--inventory", SCENARIO / "inventory"]
    command += [
        "--extra-vars",
        json.dumps({"data_hosts": host.backend.get_hostname(), **variables}),
        SCENARIO / playbook,
    ]
    # Without the variables that molecule sets for its own runs, such as colours.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")} | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.memory",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=RUN_TIMEOUT_SECONDS, check=False, cwd=ROOT
    )
    return Run(done)


@pytest.fixture
def converge(host):
    """Run the roles on this host again, completely, with other variables."""

    def run(tags, *arguments, **variables):
        return play(host, "converge.yml", ["--tags", tags, *arguments], variables)

    return run


@pytest.fixture
def attempt(host):
    """Apply a part of one role on this host, with other variables."""

    def run(role, *arguments, part="configure.yml", **variables):
        # Values that the role would take from the facts, which this play does not gather.
        known = {"postgresql_version": VERSIONS[host.system_info.release.split(".")[0]]}
        return play(host, "apply.yml", arguments, {"data_role": role, "data_part": part, **known, **variables})

    return run


def succeed(run):
    def wrapped(*arguments, **variables):
        done = run(*arguments, **variables)
        assert done.rc == 0, done.text
        return done

    return wrapped


@pytest.fixture
def converged(converge):
    return succeed(converge)


@pytest.fixture
def apply(attempt):
    return succeed(attempt)


@pytest.fixture
def sql(host):
    """Query PostgreSQL: as postgres over the socket, or as a role over TLS with a verified certificate."""

    def query(statement, user=None, password=None, database="shiftmaster", sslmode="verify-full"):
        if user is None:
            command = f"runuser -u postgres -- psql -XAtq -d {database} -c {shlex.quote(statement)}"
        else:
            where = f"host=localhost dbname={database} user={user} sslmode={sslmode} connect_timeout=10"
            where += " sslrootcert=/etc/ssl/certs/internal-ca.crt"
            command = (
                f"PGPASSWORD={shlex.quote(password or '')} psql -XAtqw {shlex.quote(where)} -c {shlex.quote(statement)}"
            )
        return host.run(command)

    return query


@pytest.fixture
def redis(host):
    """Query Redis; the password goes by the environment."""

    def query(*words, user="admin", password=ADMIN_PASSWORD, port=6379, more=""):
        login = f"REDISCLI_AUTH={shlex.quote(password)}" if password else ""
        name = f"--user {user}" if user else ""
        done = host.run(
            f"{login} redis-cli --no-auth-warning -p {port} {name} {more} {' '.join(map(shlex.quote, words))}"
        )
        return done.stdout.strip()

    return query


@pytest.fixture
def started(host):
    """When a unit's process began: a restart gives another time, a reload does not."""

    def query(unit):
        return host.check_output(f"systemctl show --property=MainPID,ExecMainStartTimestampMonotonic {unit}")

    return query


@pytest.fixture
def version(host):
    return VERSIONS[host.system_info.release.split(".")[0]]


@pytest.fixture
def unit(version):
    return f"postgresql@{version}-main.service"


@pytest.fixture
def config(host, version):
    directory = f"/etc/postgresql/{version}/main"

    def read():
        return host.check_output(f"cat {directory}/conf.d/shiftmaster.conf {directory}/pg_hba.conf")

    return read


@pytest.fixture
def files(host):
    return lambda: host.check_output("cat /etc/redis/redis.conf /etc/redis/users.acl")
