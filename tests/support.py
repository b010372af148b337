"""Shared by the scenarios' tests: run a playbook against a host, inspect it from inside, and put load on it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

# `make test` and the scenarios sample-* run the tests marked `sample`, everything else runs all tests.
SAMPLE_SCENARIO = Path(os.environ.get("MOLECULE_SCENARIO_DIRECTORY", "")).name.startswith("sample-")
SAMPLE = SAMPLE_SCENARIO or os.environ.get("SHIFTMASTER_SELECTION") == "sample"
ROOT = Path(__file__).resolve().parent.parent
# Tests read Ansible's own output, and logs of tests are complete.
os.environ.setdefault("ANSIBLE_STDOUT_CALLBACK", "ansible.builtin.default")
# Secrets, authorities and the packed application of all scenarios: images made by one are used by the others.
SCENARIO_HOME = ROOT / ".cache" / "scenario"
REPOSITORY = SCENARIO_HOME / "shiftmaster.git"
APP = "/var/www/shiftmaster"
# Where a run is held on a host (module_utils/shiftmaster/host/points.py).
POINTS = "/run/shiftmaster/points"
# Arguments of a run that sets up an empty host: it downloads packages with this machine's authorities.
AUTHORITIES = ("--inventory", str(ROOT / "inventory/demo/controller.py"))
PASSWORD = "load-test-only"
SECRETS = {
    "vault_shiftmaster_secret_key": "secret_key",
    "vault_shiftmaster_database_password": "database",
    "vault_shiftmaster_redis_password": "redis",
    "vault_redis_admin_password": "redis_admin",
}
# For a load during which nginx is reloaded: its idle connections end then, and a client with a request on one of them
# repeats it, as browsers do (RFC 9112, 9.3.1; HTTP/2 gets a signal). Of 60 reloads under load, 5 met such a request.
BROWSER = "--repeat-unanswered"
# Name and sum of each table that users write; in those of sessions and tasks the application itself does.
USERS_ROWS = """
SELECT string_agg(relname || ' ' || (xpath('/row/c/text()', query_to_xml(format(
         'SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text)) AS c FROM %I AS t', relname),
       false, true, '')))[1]::text, ', ' ORDER BY relname)
FROM pg_stat_user_tables WHERE relname !~ '^(django_session|django_celery_|monitoring_)'
"""
# The most memory that each unit of what watches has had: of its control group where that is counted, of its process
# elsewhere.
PEAKS = """
systemctl list-units --plain --no-legend --state=active 'prometheus*.service' mtail.service | while read -r unit _; do
  peak=$(systemctl show --value --property=MemoryPeak $unit)
  case $peak in *[!0-9]* | '')
    peak=$(awk '/^VmHWM/ { print $2 * 1024 }' /proc/$(systemctl show --value --property=MainPID $unit)/status) ;;
  esac
  echo $unit $peak
done
"""


def sampled(item) -> bool:
    """Whether a test is marked `sample`; sample("id", ...) marks these parameters alone."""
    mark = item.get_closest_marker("sample")
    return bool(mark) and (
        not mark.args or any(re.search(rf"[\[-]{re.escape(name)}[\]-]", item.name) for name in mark.args)
    )


def pytest_collection_modifyitems(config, items):
    """For molecule/conftest.py: report tests outside the sample as `deselected`. A scenario without marks runs all."""
    chosen = [item for item in items if sampled(item)]
    if SAMPLE and chosen:
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def inventory_and_host(conftest: str) -> tuple:
    """The inventory and the host <scenario>-trixie of the scenario to test.

    That is the conftest's own scenario, except where sample-* runs tests of several scenarios on its host.
    """
    scenario = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"] if SAMPLE_SCENARIO else Path(conftest).parents[1])
    return scenario.resolve() / "inventory", f"{scenario.name}-trixie"


def operations_of(conftest: str):
    """For a scenario's conftest: its fixture `operations`, for the one host <scenario>-trixie, which comes deployed."""

    @pytest.fixture(scope="session")
    def operations():
        operations = Operations(*inventory_and_host(conftest))
        assert operations.live_version(60), "the host does not serve"
        operations.manage("seed_demo")
        return operations

    return operations


def by_ssh(inventory: Path, hosts: list) -> None:
    """Let Ansible reach hosts of a copied inventory by ssh: a lost host looks to it as it does to a site."""
    key = inventory.parent / "key"
    key.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (inventory.parent / "known_hosts").unlink(missing_ok=True)
    # What the hosts must know of this machine.
    (inventory / "controller.py").unlink(missing_ok=True)
    (inventory / "controller.py").symlink_to(ROOT / "inventory/demo/controller.py")
    content = yaml.safe_load((inventory / "hosts.yml").read_text())
    demo = content["all"]["children"]["demo"]
    demo["vars"].update(
        ansible_connection="ssh", ansible_user="root", ansible_ssh_private_key_file=str(key),
        ansible_ssh_extra_args=f"-o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={key.parent}/known_hosts",
    )  # fmt: skip
    for host in hosts:
        host.shell(
            "install -d -m 0700 /root/.ssh && cat >>/root/.ssh/authorized_keys",
            stdin=key.with_suffix(".pub").read_text(),
        )
        if host.host in demo["hosts"]:
            demo["hosts"][host.host]["ansible_host"] = address_of(host.host)
    (inventory / "hosts.yml").write_text(yaml.safe_dump(content))


@dataclass
class Run:
    """The result of a playbook."""

    code: int
    output: str
    seconds: float
    recap: dict = field(default_factory=dict)

    @property
    def changed(self) -> int:
        return sum(host["changed"] for host in self.recap.values())

    def prints(self, *texts: str) -> bool:
        """Whether the output contains all of these, regardless of line breaks."""
        flat = re.sub(r"\s+", " ", self.output)
        return all(text in flat for text in texts)


def uninstall(operations: Operations) -> None:
    """Leave a host as one that was installed again: nothing of the application, of its releases and of its state."""
    operations.shell(
        "systemctl disable --quiet --now shiftmaster.service; systemctl stop 'shiftmaster-*'; "
        f"rm -rf {APP} /etc/shiftmaster /etc/systemd/system/shiftmaster* "
        "/usr/local/sbin/shiftmasterctl /var/backups/shiftmaster /var/cache/shiftmaster; userdel shiftmaster-build; "
        "systemctl daemon-reload"
    )


class Operations:
    """Playbooks of this repository against one scenario's inventory, as an administrator types them."""

    root = ROOT

    def __init__(self, inventory, host: str):
        self.inventory, self.host, self.vault = str(inventory), host, None

    def command(self, playbook: str, extra: dict, *arguments: str) -> list:
        # In a file, for some are secrets, and every user can read a process's arguments.
        directory = SCENARIO_HOME / "extra"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{self.host}-{time.time_ns()}.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({**(self.vault.variables if self.vault else {}), **extra}))
        return [
            "ansible-playbook", "--inventory", self.inventory, playbook, "--extra-vars", f"@{path}", *arguments,
        ]  # fmt: skip

    def environment(self) -> dict:
        # Buffered: unbuffered, Python reads each module that Ansible pipes to it byte by byte.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        return dict(inherited, ANSIBLE_CONFIG=str(self.root / "ansible.cfg"), ANSIBLE_FORCE_COLOR="0")

    def run(self, playbook: str, *arguments: str, timeout: int = 900, **extra) -> Run:
        """Run it to its end."""
        started = time.monotonic()
        done = subprocess.run(
            self.command(playbook, extra, *arguments), cwd=self.root, env=self.environment(), text=True,
            timeout=timeout, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        return Run(done.returncode, done.stdout, time.monotonic() - started, recap(done.stdout))

    def start(self, playbook: str, log: Path, *arguments: str, **extra) -> subprocess.Popen:
        """Start it in a process group of its own, to be killed; unbuffered, so that a test can wait for its output."""
        environment = {**self.environment(), "PYTHONUNBUFFERED": "1"}
        with log.open("w") as stream:
            return subprocess.Popen(
                self.command(playbook, extra, *arguments), cwd=self.root, env=environment,
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def deploy(self, version: str, *arguments: str, **extra) -> Run:
        return self.run("deploy.yml", "--tags", "release", *arguments, shiftmaster_version=version, **extra)

    def rollback(self, **extra) -> Run:
        return self.run("rollback.yml", **extra)

    # -- holding a run on the host -----------------------------------------------------------------------------------

    def hold(self, point: str) -> None:
        """Make a run wait at this point when it comes by."""
        self.shell(f"install -d -m 1777 {POINTS} && touch {POINTS}/{point}")

    def wait_at(self, point: str, process: subprocess.Popen, log: Path) -> str:
        """Wait until a run is held there; returns the id of the process that waits."""
        reached = f"{POINTS}/{point}.reached"
        wait_for(
            lambda: process.poll() is not None or self.shell(f"cat {reached} 2>/dev/null", check=False), 900, point
        )
        assert process.poll() is None, f"ended before {point}: {log.read_text()[-5000:]}"
        return self.shell(f"cat {reached}").strip()

    def release_hold(self) -> None:
        self.shell(f"rm -rf {POINTS}")

    # -- the host from inside ----------------------------------------------------------------------------------------

    def shell(self, command: str, timeout: int = 120, check: bool = True, stdin: str | None = None) -> str:
        done = subprocess.run(
            ["docker", "exec", "--interactive", self.host, "bash", "-c", command], input=stdin, text=True,
            capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{command!r} on {self.host} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def reboot(self) -> None:
        """Reboot and wait until systemd has started everything."""
        subprocess.run(["docker", "restart", self.host], check=True, capture_output=True, timeout=120)
        self.wait_for_boot()

    def replace(self, image: str = "base") -> None:
        """Destroy the host at once, with all its data: another one has its name and address.

        That is an empty Debian, or (`deployed`) a host as scenario default has left it.
        """
        (found,) = json.loads(docker("inspect", self.host))
        ((network, settings),) = found["NetworkSettings"]["Networks"].items()
        docker("rm", "--force", "--volumes", self.host)
        label = "shiftmaster-ops.scenario"
        docker(
            "run", "--detach", "--name", self.host, "--hostname", self.host, "--privileged", "--cgroupns", "private",
            "--tmpfs", "/run", "--tmpfs", "/tmp", "--network", network, "--ip", settings["IPAddress"],
            "--label", f"{label}={found['Config']['Labels'][label]}", f"shiftmaster-ops/{image}:trixie",
        )  # fmt: skip
        self.wait_for_boot()
        self.shell("apt-get -q update && apt-get -qy install --no-install-recommends openssh-server", timeout=600)

    def wait_for_boot(self) -> None:
        """Until systemd has started everything; at first it does not respond, and does not wait."""
        state = "systemctl is-system-running --wait 2>/dev/null | grep -Eq '^(running|degraded)'"
        self.shell(f'timeout 120 bash -c "until {state}; do sleep 0.1; done"', timeout=130)

    def health(self) -> dict:
        """The response of /health/deep/ through nginx's local listener; {} where it does not respond."""
        text = self.shell("curl -sS -m 15 -H 'Host: localhost' http://localhost:8000/health/deep/", check=False)
        try:
            return json.loads(text)
        except ValueError:
            return {}

    def live_version(self, seconds: float = 0) -> str:
        """The version that responds, "" where none does within some seconds."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.health()
            if found.get("status") == "healthy":
                return found["version"]
            if time.monotonic() >= deadline:
                return ""
            time.sleep(0.5)

    def state(self) -> dict:
        return json.loads(self.shell(f"cat {APP}/shared/state/state.json"))

    def manage(self, *arguments: str, timeout: int = 120) -> str:
        """Run manage.py of the live release, with its environment and user."""
        release = f"{APP}/active/release"
        return self.shell(
            "systemd-run --quiet --wait --pipe --collect --property=User=shiftmaster --setenv=DEMO_PASSWORD="
            f"{PASSWORD} --property=EnvironmentFile={release}/env --property=WorkingDirectory={release}/source "
            f"{release}/venv/bin/python manage.py " + " ".join(arguments),
            timeout=timeout,
        )

    def sql(self, statement: str, database: str = "shiftmaster") -> str:
        """Run SQL as the superuser of the database on this host."""
        return self.shell(f"cd /; runuser -u postgres -- psql -XqAt -d {database}", stdin=statement).strip()

    def primary(self) -> bool:
        query = "cd /; runuser -u postgres -- psql -XqAt -c 'SELECT pg_is_in_recovery()'"
        return self.shell(query, check=False).strip() == "f"

    def python(self, source: str, timeout: int = 120) -> str:
        """Run Python inside the live application (Django is set up)."""
        release = f"{APP}/active/release"
        return self.shell(
            "systemd-run --quiet --wait --pipe --collect --property=User=shiftmaster "
            f"--property=EnvironmentFile={release}/env --property=WorkingDirectory={release}/source "
            f"{release}/venv/bin/python -c 'import sys, django; django.setup(); exec(sys.stdin.read())'",
            timeout=timeout, stdin=source,
        )  # fmt: skip

    def fingerprint(self) -> str:
        """Everything on the host that a run could change: files with content, units, accounts, rows of migrations."""
        return self.shell(FINGERPRINT, timeout=300)


# Left out is what changes by itself: logs, data of services, caches of packages, temporary files, what Debian's timer
# copies at midnight, audit events that are sealed each hour, and services that D-Bus starts for a question and that end
# after half a minute.
FINGERPRINT = r"""
left_out=""
for path in /proc /sys /run /tmp /var/tmp /var/log /dev /var/lib/postgresql /var/lib/redis /var/lib/apt /var/cache \
  /root/.ansible /var/lib/systemd /var/lib/chrony /var/lib/logrotate /var/lib/private /var/lib/shiftmaster-beat \
  /var/www/shiftmaster/shared/state/audit /var/backups/shiftmaster/pgbackrest/archive \
  /var/backups/dpkg.* /var/backups/a*; do
  left_out="$left_out -path $path -o"
done
find / -xdev \( $left_out -name operation.lock \) -prune -o \
  \( -type f -printf '%p %m %u %g %s %T@\n' -o -type l -printf '%p -> %l\n' -o -type d -printf '%p %m %u %g\n' \) \
  | LC_ALL=C sort
systemctl list-unit-files --no-legend --no-pager | awk '{print $1, $2}'
systemctl list-units --no-legend --no-pager --plain --type=service --state=active | awk '{print $1}' \
  | grep -v -e '^user' -e '^run-' -e '^systemd-\(hostnamed\|localed\|timedated\)\.'
nft list ruleset 2>/dev/null | sed 's/packets [0-9]* bytes [0-9]*//'
"""


def recap(output: str) -> dict:
    """Return {host: {"ok": n, "changed": n, ...}} of a run's output."""
    found = {}
    for line in output.splitlines():
        match = re.match(r"^(\S+)\s+: (ok=\d+.*)$", line)
        if match:
            found[match[1]] = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", match[2])}
    return found


class Vault:
    """The secrets of a scenario as its vault would hold them: what is in use, and what was before.

    Kept on the host it belongs to: another run of the tests continues with it.
    """

    FILE = "/root/vault.json"

    def __init__(self, operations):
        self.operations, directory = operations, SCENARIO_HOME / "secrets"
        self.current = {name: (directory / file).read_text().split()[0] for name, file in SECRETS.items()}
        self.previous = {name: [] for name in SECRETS}
        kept = operations.shell(f"cat {self.FILE} 2>/dev/null || true")
        if kept:
            self.current, self.previous = json.loads(kept)

    def keep(self) -> None:
        self.operations.shell(f"umask 077; cat > {self.FILE}", stdin=json.dumps([self.current, self.previous]))

    def renew(self, *names: str) -> None:
        """Set new values and keep the earlier ones, as an administrator edits the vault."""
        for name in names or SECRETS:
            # Some earlier ones, too: where runs have failed since, one of them is what the release uses.
            self.previous[name] = [self.current[name], *self.previous[name]][:3]
            # With what a URL, a shell and an environment file would stumble over.
            self.current[name] = secrets.token_hex(16) + "/+@%: '\"$"
        self.keep()

    def forget(self, *names: str) -> None:
        for name in names or SECRETS:
            self.previous[name] = []
        self.keep()

    @property
    def variables(self) -> dict:
        return {**self.current, **{f"{name}_previous": values for name, values in self.previous.items()}}


@contextlib.contextmanager
def load(
    operations: Operations, *options: str, seconds: int = 300, scenario: str = "shiftmaster.json", client: str = ""
):
    """Run the load generator inside the host while the block runs; yields a Load whose summary is there after it.

    client: another container that has the host's network, to run it in.
    """
    place = Operations(operations.inventory, client or operations.host)
    current = Load(place)
    shell = place.shell
    shell("mkdir -p /root/load && rm -f /root/load/*")
    for name in ("loadgen.py", scenario):
        subprocess.run(
            ["docker", "cp", "--quiet", str(ROOT / "tests" / "load" / name), f"{place.host}:/root/load/{name}"],
            check=True, capture_output=True,
        )  # fmt: skip
    process = subprocess.Popen(
        [
            # It simulates users at other machines: load of the host must not slow their clocks.
            "docker", "exec", "--env", f"LOADGEN_PASSWORD={PASSWORD}", place.host, "nice", "-n", "-15", "python3",
            "/root/load/loadgen.py", f"/root/load/{scenario}", "--seconds", str(seconds), "--marks",
            "/root/load/marks.jsonl", "--results", "/root/load/results.jsonl", "--summary", "/root/load/summary.json",
            "--ready-file", "/root/load/ready", *options,
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_for(
            lambda: process.poll() is not None or shell("ls /root/load/ready 2>/dev/null", check=False), 60,
            "the load",
        )  # fmt: skip
        yield current
    finally:
        shell("pkill -TERM -f load/loadgen.py", check=False)
        try:
            current.output = process.communicate(timeout=120)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            current.output = process.communicate()[0]
    text = shell("cat /root/load/summary.json", check=False)
    assert text, f"the load generator wrote no summary: {current.output}"
    current.summary = json.loads(text)


class Load:
    def __init__(self, operations: Operations):
        self.operations, self.summary, self.output = operations, {}, ""

    def assert_flawless(self) -> None:
        """Every request succeeded, the load lasted to the end, and what was acknowledged is there."""
        text = json.dumps(self.summary, indent=1, ensure_ascii=False)[:6000]
        assert "error" not in self.summary, text
        assert self.summary["requests"] > 0 and self.summary["failed"] == 0, text
        # Only where BROWSER requires it, and where nginx was reloaded at that time.
        assert self.summary["repeated"] <= max(3, self.summary["requests"] // 1000), text
        writes = self.summary["writes"]
        assert writes["acknowledged"] > 0 and writes["lost_count"] == writes["unread_count"] == 0, text

    @contextlib.contextmanager
    def window(self, name: str):
        """Mark what happens inside as a window of the summary."""
        self._mark(f"{name}-start")
        try:
            yield
        finally:
            self._mark(f"{name}-end")

    def _mark(self, name: str) -> None:
        line = json.dumps({"t": time.time(), "name": name})
        self.operations.shell(f"echo '{line}' >> /root/load/marks.jsonl")


# In a container, processes of `docker exec` have no parent there: every process below such a one, at any
# depth (sudo, the module, the release's code), except this check and the load generator.
OF_THE_RUN = r"""
ps -eo pid=,ppid=,args= | awk -v self=$$ '
  { parent[$1] = $2; spared[$1] = ($1 == 1 || $1 == self || /loadgen/) }
  END {
    for (pid in parent) {
      top = pid
      while (parent[top] != 0 && parent[top] in parent) top = parent[top]
      if (parent[top] == 0 && !spared[top]) print pid
    }
  }'
"""


def kill_here(process: subprocess.Popen) -> None:
    """Kill a playbook that was started, with every process below it on this machine."""
    children = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    todo = [process.pid]
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(30)


def kill_on_host(operations: Operations) -> None:
    """Kill what runs have started on the host."""
    # All processes of ssh are in that unit, which restarts by itself; a host without ssh has none.
    operations.shell("systemctl kill --kill-whom=all --signal=KILL ssh.service 2>/dev/null", check=False)
    # All at one time, as with the power; again, should one have begun meanwhile.
    wait_for(
        lambda: not operations.shell(f"left=$({OF_THE_RUN}); kill -KILL $left 2>/dev/null; echo $left").strip(),
        60, "the end of what the run had started on the host",
    )  # fmt: skip


def kill_run(operations: Operations, process: subprocess.Popen, *others: Operations) -> None:
    """Kill a playbook with all of it, here and on its hosts."""
    kill_here(process)
    for host in (operations, *others):
        kill_on_host(host)


def enqueue(operations: Operations, prefix: str, seconds: float, count: int, task: str = "record_run") -> None:
    """Send background tasks, each of which notes under its key that it ran."""
    operations.python(
        f"from roster import tasks\nfor i in range({count}): "
        f"tasks.{task}.apply_async(kwargs=dict(key='{prefix}-%d' % i, seconds={seconds}))"
    )


def all_ran_once(operations: Operations, prefix: str, count: int, seconds: float = 120) -> dict:
    """Wait until all tasks of a prefix have run, each once; {key: [version that ran it]}."""
    deadline = time.monotonic() + seconds
    while True:
        found = json.loads(
            operations.python(
                "import json, collections\nfrom roster.models import TaskRun\nruns = collections.defaultdict(list)\n"
                f"for run in TaskRun.objects.filter(key__startswith='{prefix}-'): runs[run.key].append(run.version)\n"
                "print(json.dumps(runs))"
            )
        )
        if len(found) >= count or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert len(found) == count, f"{count - len(found)} of {count} tasks {prefix} were lost"
    assert all(len(versions) == 1 for versions in found.values()), f"tasks {prefix} ran twice: {found}"
    return found


def play(host: str, playbook: str, /, *arguments: str, timeout: int = 600, **variables) -> tuple[int, str]:
    """Run a playbook against one host, as it is now: its exit code, and its output without colours."""
    environment = {
        **os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.memory",
        "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1",
    }  # fmt: skip
    command = [Path(sys.executable).with_name("ansible-playbook"), "--limit", host, *arguments]
    command += ["--extra-vars", json.dumps(variables), playbook]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    return done.returncode, done.stdout + done.stderr


def docker(*words: str, timeout: int = 120) -> str:
    done = subprocess.run(["docker", *words], check=True, capture_output=True, text=True, timeout=timeout)
    return done.stdout.strip()


def address_of(container: str) -> str:
    return docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container)


def started(host: Operations) -> None:
    """Let a host's container run that was stopped or paused."""
    state = docker("inspect", "-f", "{{.State.Status}}", host.host)
    if state == "paused":
        docker("unpause", host.host)
    elif state != "running":
        docker("start", host.host)
        host.wait_for_boot()


class PageTime(threading.Thread):
    """Measures how long users of a host see the maintenance page; host.page() tells whether it is shown."""

    def __init__(self, host):
        super().__init__(daemon=True)
        self.host, self.ended, self.seconds = host, threading.Event(), 0.0

    def run(self):
        while not self.ended.is_set():
            began = time.monotonic()
            shown = self.host.page()
            self.ended.wait(0.5)
            self.seconds += time.monotonic() - began if shown else 0

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_exception):
        self.ended.set()
        self.join(60)


def wait_for(condition, seconds: float, what: str = "the condition"):
    """Wait until condition() is true, and return its result; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.5)
    return found


def in_time(work, errors=OSError):
    """Return what a function returns or raises of these errors; it must not wait for a process that opens a FIFO."""
    results = []

    def run():
        try:
            results.append(work())
        except errors as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert results, "it waits"
    return results[0]
