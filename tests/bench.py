"""Measurements on one deployed host, side by side in one run; prints metrics and asserts none of them.

    make bench                                  # BENCH_ANSISTRANO_ROLES=DIRECTORY: next to these roles themselves

Needs the image shiftmaster-ops/deployed:trixie (scripts/images deployed) and two processors. Ansible goes by ssh, as it
does to a real host. For the latencies the host has the first processor to itself; the controller and the users at
their browsers, who in real life are other machines, have the second one. The load runs in a container next to the host,
with the host's network, against its loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from support import APP, PASSWORD, ROOT, Operations, address_of, docker, load  # noqa: E402

HOST, CLIENT = "bench-trixie", "bench-client"
APPS = [f"bench-app{number}" for number in range(1, 9)]
INVENTORY = """
all:
  children:
    demo:
      vars: {ansible_group_priority: 10, ansible_connection: ssh}
      hosts:
        bench-trixie:
          ansible_host: %(address)s
          ansible_user: root
          ansible_ssh_private_key_file: %(directory)s/key
          ansible_ssh_common_args: -o UserKnownHostsFile=%(directory)s/known_hosts -o StrictHostKeyChecking=accept-new
          demo_home: %(home)s
          shiftmaster_version: 2.0.0
          nginx_login_unlimited_addresses: [127.0.0.1, "::1"]
    web: {hosts: {bench-trixie: }}
    app: {hosts: {bench-trixie: }}
    database: {hosts: {bench-trixie: }}
    cache: {hosts: {bench-trixie: }}
"""
# The same with application hosts of their own; those begin as copies of the deployed host.
SITE = """
all:
  children:
    demo:
      vars:
        ansible_group_priority: 10
        ansible_connection: ssh
        ansible_user: root
        ansible_ssh_private_key_file: %(directory)s/key
        ansible_ssh_common_args: -o UserKnownHostsFile=%(directory)s/known_hosts -o StrictHostKeyChecking=accept-new
        nginx_login_unlimited_addresses: [127.0.0.1, "::1"]
      hosts: {%(hosts)s}
    web: {hosts: {bench-trixie: }}
    app: {hosts: {%(apps)s}}
    database: {hosts: {bench-trixie: }}
    cache: {hosts: {bench-trixie: }}
"""
# Without the watch and the backup, as the target metrics require.
BARE = {"shiftmaster_watch_seconds": 0, "shiftmaster_dump_before_migrations": False}
# It keeps the host's processor about half busy.
RATE = os.environ.get("BENCH_RATE", "60")
PEER = "/srv/peer"
PEER_UNITS = {
    "peer-web": "gunicorn --bind 127.0.0.1:8100 --workers %s --threads 4 shiftmaster.wsgi:application",
    "peer-worker": "celery -A shiftmaster worker --queues peer",
}


def row(what: str, value: str, wanted: str = "") -> None:
    print(f"  {what:58} {value:>12}  {wanted}", flush=True)


def seconds(run) -> str:
    if run.code:
        print(run.output[-3000:])
    return f"{run.seconds:.1f} s" if run.code == 0 else "failed"


def remove() -> None:
    subprocess.run(["docker", "rm", "--force", "--volumes", HOST, CLIENT, *APPS], check=False, capture_output=True)


def container(name: str) -> str:
    """Start a copy of the deployed host; returns its address."""
    docker("run", "--detach", "--name", name, "--hostname", name, "--privileged", "--cgroupns=private",
           "--tmpfs", "/run", "--tmpfs", "/tmp", "shiftmaster-ops/deployed:trixie")  # fmt: skip
    return address_of(name)


def allow_access(operations: Operations, directory: Path) -> None:
    """Wait for the host's boot, and open the way by ssh."""
    operations.wait_for_boot()
    operations.shell(
        "apt-get update -qq && apt-get install -qq -y --no-install-recommends openssh-server >/dev/null && "
        "install -d -m 0700 /root/.ssh && cat > /root/.ssh/authorized_keys",
        timeout=180, stdin=(directory / "key.pub").read_text(),
    )  # fmt: skip


def start(directory: Path) -> Operations:
    remove()
    address = container(HOST)
    inventory = directory / "hosts.yml"
    inventory.write_text(
        INVENTORY % {"address": address, "directory": directory, "home": ROOT / ".cache" / "scenario"}, encoding="utf-8"
    )
    operations = Operations(inventory, HOST)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / "key")], check=True)
    allow_access(operations, directory)
    return operations


def controller(operations: Operations) -> None:
    print("The runs, from the command to its end:")
    first = operations.run("deploy.yml")
    if first.code:
        print(first.output[-5000:])
        raise SystemExit("the host could not be deployed")
    operations.manage("seed_demo")
    row("deploy.yml, nothing to change (all roles of this issue)", seconds(operations.run("deploy.yml")), "<= 60 s")
    row("deploy.yml --tags release, nothing to change", seconds(operations.deploy("2.0.0")), "<= 15 s")


def back(operations: Operations) -> None:
    """To the first version, and its schema."""
    if operations.live_version() != "2.0.0":
        run = operations.rollback(to="2.0.0", schema="reverse")
        assert run.code == 0, run.output[-3000:]


def health(operations: Operations) -> None:
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        run = operations.run("playbooks/health.yml", health_format="json", health_report_file=report.name)
        row("health.yml, whole", seconds(run))
        try:
            hosts = json.loads(Path(report.name).read_text())["hosts"]
        except (ValueError, KeyError):
            row("health of the host", "no report")
            return
        for found in hosts:
            slowest = max(check["seconds"] for check in found["checks"])
            row("health of a host, its slowest check", f"{slowest:.2f} s")
            row("health of a host, all checks together", f"{found['seconds']:.2f} s", f"<= {slowest + 1:.2f} s")


def diagnosis(operations: Operations) -> None:
    with tempfile.TemporaryDirectory() as reports:
        run = operations.run("playbooks/diagnose.yml", report_dir=reports)
        row("diagnose.yml, whole", seconds(run))
        try:
            (host,) = json.loads((Path(reports) / "diagnosis.json").read_text())["hosts"]
        except (OSError, ValueError):
            row("diagnosis of the host", "no report")
            return
        row("diagnosis of a healthy host", f"{host['seconds']:.2f} s", "<= 5 s")


def apart() -> None:
    """Give the host the first processor, everyone else the second; start the container that the load runs in."""
    docker("update", "--cpuset-cpus", "0", HOST)
    docker("run", "--detach", "--name", CLIENT, "--network", f"container:{HOST}", "--cpuset-cpus", "1", "--privileged",
           "shiftmaster-ops/deployed:trixie", "sleep", "infinity")  # fmt: skip
    os.sched_setaffinity(0, {1})


def processor() -> tuple:
    """Return the first processor's (ticks in total, ticks idle) since this machine's boot."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[1].split()[1:]]
    return sum(ticks), ticks[3] + ticks[4]


def latency(operations: Operations) -> None:
    print(f"\nUnder {RATE} requests a second, reading and writing through TLS:")
    with load(operations, "--rate", RATE, "--clients", "64", seconds=300, client=CLIENT) as current:
        time.sleep(15)
        before = processor()
        time.sleep(30)
        after = processor()
        with current.window("deploy"):
            run = operations.deploy("2.1.0", shiftmaster_web_threads=6)
        with current.window("rollback"):
            reverted = operations.rollback()
        time.sleep(20)
    for failed in (each for each in (run, reverted) if each.code):
        print(failed.output[-3000:])
    row("the host's processor is busy without a deploy",
        f"{100 - 100 * (after[1] - before[1]) / (after[0] - before[0]):.0f} %", "about half")  # fmt: skip
    row("a new version, whole", seconds(run))
    row("rollback, whole", seconds(reverted))
    row("requests, failed", f"{current.summary['requests']}, {current.summary['failed']}", "0 failed")
    latencies(current)


class Peer:
    """The same application as ansistrano deploys it, on the same host: by its roles, or by the steps of tests/peer/."""

    def __init__(self, operations: Operations, inventory: Path, versions: str):
        self.operations, self.inventory = operations, inventory
        subprocess.run(["docker", "cp", "--quiet", versions, f"{HOST}:{PEER}.git"], check=True)
        workers = operations.shell(f"grep ^workers {APP}/active/release/site/gunicorn.conf.py | tr -dc 0-9").strip()
        operations.shell(
            "set -e; apt-get update -qq; apt-get install -qq -y git python3-setuptools rsync >/dev/null; "
            f"chown -R root:root {PEER}.git; install -d {PEER}/shared; "
            "runuser -u postgres -- createdb -O shiftmaster peer; "
            f"grep -vE '^(DB_NAME|STATIC_ROOT|PYTHONPATH|HTTPS_ENABLED)=' {APP}/active/release/env "
            f"> {PEER}/shared/env; "
            f"printf '%s\\n' DB_NAME=peer STATIC_ROOT={PEER}/static HTTPS_ENABLED=false >> {PEER}/shared/env",
            timeout=600,
        )
        for name, command in PEER_UNITS.items():
            command = command % workers if "%" in command else command
            operations.shell(
                f"cat > /etc/systemd/system/{name}.service; systemctl daemon-reload",
                stdin=f"[Service]\nUser=shiftmaster\nEnvironmentFile={PEER}/shared/env\n"
                f"WorkingDirectory={PEER}/current\nExecStart={PEER}/current/venv/bin/{command}\n",
            )

    def run(self, playbook: str, version: str = "") -> tuple:
        """Run one of its playbooks with Ansible's fast settings for both; returns (complete, until live) in seconds."""
        roles, began = os.environ.get("BENCH_ANSISTRANO_ROLES", ""), time.time()
        done = subprocess.run(
            ["ansible-playbook", "--inventory", str(self.inventory), str(ROOT / "tests" / "peer" / f"{playbook}.yml"),
             "--extra-vars", json.dumps({"ansistrano_git_branch": version, "peer_roles": roles})],
            cwd=ROOT, env=dict(self.operations.environment(), ANSIBLE_STDOUT_CALLBACK="ansible.builtin.default",
                                                            ANSIBLE_ROLES_PATH=roles),
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return time.time() - began, float(self.operations.shell(f"cat {PEER}/live")) - began


def timed(operations: Operations, call) -> tuple:
    """Return (complete, until live) in seconds of a run of ours; the live release is one link."""
    began = time.time()
    run = call()
    assert run.code == 0, run.output[-3000:]
    return run.seconds, float(operations.shell(f"stat --format %.9Z {APP}/active")) - began


def repository(directory: Path) -> str:
    """Copy the application's repository, with a version 2.0.1 that differs from 2.0.0 in one file; returns its path."""
    clone, bare = directory / "clone", directory / "versions.git"

    def git(*arguments):
        subprocess.run(["git", *arguments], cwd=directory, check=True, capture_output=True)

    git("clone", str(ROOT / ".cache/scenario/shiftmaster.git"), str(clone))
    git("-C", str(clone), "checkout", "--detach", "2.0.0")
    (clone / "VERSION").write_text("2.0.1\n", encoding="utf-8")
    git("-C", str(clone), "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "--all", "--message=x")
    git("-C", str(clone), "tag", "2.0.1")
    git("clone", "--bare", str(clone), str(bare))
    return str(bare)


def side_by_side(operations: Operations, peer: Peer, versions: str) -> None:
    print("\nNext to ansistrano, the host without load; each figure is whole / until live, in seconds, and the ratios:")
    peer.run("deploy", "2.0.0")
    operations.run("deploy.yml")  # Applies the rights again, since there is another database.
    theirs = {"same": peer.run("deploy", "2.0.0"), "patch": peer.run("deploy", "2.0.1"),
              "new": peer.run("deploy", "2.1.0"), "back": peer.run("rollback")}  # fmt: skip

    def compare(what, name, call, *wanted):
        ours, his = timed(operations, call), theirs[name]
        metrics = [f"{mine:.1f} / {its:.1f} = {mine / its:.2f}" for mine, its in zip(ours, his)]
        for figure, goal in zip(metrics, wanted):
            row(f"{what}, {'whole' if goal is wanted[0] else 'until live'}", figure, goal)

    def deploy(version):
        return lambda: operations.deploy(version, shiftmaster_repository=versions)

    compare("deploy.yml, same version", "same", lambda: operations.run("deploy.yml"), "<= 0.5")
    compare("--tags release, same version", "same", lambda: operations.deploy("2.0.0"), "<= 0.2")
    compare("new version, same requirements", "patch", deploy("2.0.1"), "<= 0.7 ", "<= 0.5")
    compare("new version, other requirements, a migration", "new", deploy("2.1.0"), "<= 1.0", "<= 0.8")
    compare("rollback", "back", operations.rollback, "<= 1.2", "<= 0.7")
    back(operations)
    compare(
        "changed setting", "new", lambda: operations.deploy("2.0.0", shiftmaster_web_threads=5), "<= 0.4",
    )  # fmt: skip


def peer_under_load(operations: Operations, peer: Peer) -> None:
    print("\nThe same load on ansistrano's way, a new version and a rollback:")
    # Static files are nginx' business; here only pages count.
    scenario = json.loads((ROOT / "tests/load/shiftmaster.json").read_text())
    scenario.update(base="http://localhost", connect="127.0.0.1:8100")
    scenario["requests"] = [request for request in scenario["requests"] if request.get("kind") not in ("static",)]
    for request in scenario["requests"]:
        request.pop("links", None)
    path = ROOT / "tests/load/peer.tmp.json"
    path.write_text(json.dumps(scenario))
    operations.shell(
        f"cd {PEER}/current; set -a; . {PEER}/shared/env; set +a; "
        f"DEMO_PASSWORD={PASSWORD} venv/bin/python manage.py seed_demo"
    )
    try:
        with load(
            operations, "--rate", RATE, "--clients", "64", seconds=300, scenario=path.name, client=CLIENT
        ) as current:
            time.sleep(10)
            with current.window("deploy"):
                row(
                    "a new version, whole / until live",
                    " / ".join(f"{each:.1f} s" for each in peer.run("deploy", "2.1.0")),
                )
            with current.window("rollback"):
                row("rollback, whole / until live", "%.1f / %.1f s" % peer.run("rollback"))
            time.sleep(5)
    finally:
        path.unlink()
    row("requests, failed", f"{current.summary['requests']}, {current.summary['failed']}")
    latencies(current)


def latencies(current) -> None:
    for name, window in current.summary["windows"].items():
        inside, outside = window["inside"]["p99_ms"], window["outside"]["p99_ms"]
        row(
            f"p99 without / during the {name}",
            f"{outside:.0f} / {inside:.0f} ms",
            f"ratio {inside / outside:.2f} <= 1.5",
        )


def topology(directory: Path, core: Operations) -> None:
    """Application hosts of their own, one, four and eight of them, next to a host with the rest."""
    print("\nA topology of application hosts; all of it, the controller too, on the same two processors:")
    docker("update", "--cpuset-cpus", f"0-{os.cpu_count() - 1}", HOST)
    os.sched_setaffinity(0, range(os.cpu_count()))
    addresses = {HOST: address_of(HOST)}
    for name in APPS:
        addresses[name] = container(name)
        allow_access(Operations("", name), directory)
        # An application host has neither; the preflight rejects one whose live release may have its data there.
        Operations("", name).shell(
            "systemctl disable --quiet --now postgresql redis-server; "
            "sed -i s/^auto/disabled/ /etc/postgresql/*/main/start.conf"
        )

    def of(count: int) -> Operations:
        inventory = directory / f"topology{count}.yml"
        hosts = [
            # At the hosts: group_vars sets these, too.
            f"{name}: {{ansible_host: {addresses[name]}, demo_home: {ROOT / '.cache' / 'scenario'}, "
            "shiftmaster_version: 2.0.0, topology_media_shared: true}"
            for name in (HOST, *APPS[:count])
        ]
        apps = ", ".join(f"{name}: " for name in APPS[:count])
        text = SITE % {"directory": directory, "hosts": ", ".join(hosts), "apps": apps}
        inventory.write_text(text, encoding="utf-8")
        return Operations(inventory, APPS[0])

    run = of(8).run("deploy.yml")
    if run.code:
        print(run.output[-5000:])
        raise SystemExit("the installation could not be deployed")
    times = {}
    for count in (1, 4, 8):
        of(count).deploy("2.0.0")  # What depends on the number of hosts changes once.
        runs = [of(count).deploy("2.0.0") for _ in range(3)]
        assert all((run.code, run.changed) == (0, 0) for run in runs), runs[-1].output[-3000:]
        times[count] = sorted(run.seconds for run in runs)[1]
    for count, wanted in ((1, ""), (4, "<= 1.4 of one"), (8, "<= 2.0 of one")):
        ratio = f" = {times[count] / times[1]:.2f}" if wanted else ""
        row(f"deploy.yml --tags release, nothing to change, {count} host(s)", f"{times[count]:.1f} s{ratio}", wanted)
    one, eight = (
        sorted(of(count).run("playbooks/diagnose.yml", diagnose_fail_on="never").seconds for _ in range(3))[1]
        for count in (1, 8)
    )
    row("diagnose.yml, 8 application hosts", f"{eight:.1f} s = {eight / one:.2f}", "<= 2.5 of one")
    # The others' connections are not this measurement's.
    subprocess.run(["docker", "rm", "--force", "--volumes", *APPS[4:]], check=True, capture_output=True)
    four = of(4)
    run = four.run("deploy.yml")  # The web server balances over these four alone.
    assert run.code == 0, run.output[-3000:]
    with load(core, "--clients", "16", "--think-seconds", "0.5", seconds=300) as current:
        time.sleep(10)
        with current.window("deploy"):
            run = four.deploy("2.1.0", **BARE)
        time.sleep(5)
    row("a new version on four hosts under 16 clients", seconds(run))
    row("requests, failed", f"{current.summary['requests']}, {current.summary['failed']}", "0 failed")
    window = current.summary["windows"]["deploy"]
    row("p99 without / during it", f"{window['outside']['p99_ms']:.0f} / {window['inside']['p99_ms']:.0f} ms")


def main() -> int:
    if not shutil.which("ssh-keygen"):
        sys.exit("ERROR: ssh is missing on this machine (Debian's package openssh-client).")
    if (os.cpu_count() or 1) < 2:
        sys.exit("ERROR: the measurements need two processors: one is the host's alone.")
    with tempfile.TemporaryDirectory() as directory:
        operations = start(Path(directory))
        try:
            controller(operations)
            health(operations)
            diagnosis(operations)
            versions = repository(Path(directory))
            peer = Peer(operations, Path(directory) / "hosts.yml", versions)
            side_by_side(operations, peer, versions)
            back(operations)
            apart()
            latency(operations)
            peer_under_load(operations, peer)
            # Its hosts are copies that do not know the newer version, and refuse a database with its migrations.
            back(operations)
            topology(Path(directory), operations)
        finally:
            if not os.environ.get("KEEP"):
                remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
