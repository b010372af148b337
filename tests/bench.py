"""Measurements on one deployed host, side by side in one run; prints figures and asserts none of them.

    make bench

Needs the image shiftmaster-ops/deployed:trixie (scripts/images deployed). The load runs inside the container against
its own loopback. The controller gets what nobody else wants: in real life it is another machine. It still shares caches
and the scheduler with the host that is measured, so the ratio of the latencies says more than there is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from support import APP, PASSWORD, ROOT, Operations, load  # noqa: E402

HOST = "bench-trixie"
INVENTORY = """
all:
  children:
    demo:
      vars: {ansible_group_priority: 10, ansible_connection: community.docker.docker}
      hosts:
        bench-trixie:
          demo_home: %s
          shiftmaster_version: 2.0.0
          nginx_login_unlimited_addresses: [127.0.0.1, "::1"]
    web: {hosts: {bench-trixie: }}
    app: {hosts: {bench-trixie: }}
    database: {hosts: {bench-trixie: }}
    cache: {hosts: {bench-trixie: }}
"""
# Without the watch and the backup, as the figures are asked for.
BARE = {"shiftmaster_watch_seconds": 0, "shiftmaster_dump_before_migrations": False}
# With the load generator it keeps two cores about half busy.
RATE = os.environ.get("BENCH_RATE", "120")
# What the guide does, in a folder of its own beside the real thing: live checkout, pip, migrate, restart.
GUIDE = r"""
set -e
cd /srv/guide
git fetch -q origin && git checkout -q "$1"
venv/bin/pip install -q -r requirements.txt
set -a; . /srv/guide.env; set +a
venv/bin/python manage.py migrate -v 0
venv/bin/python manage.py collectstatic --no-input -v 0
systemctl restart guide
for attempt in 1 2 3 4 5; do
  curl -sf -m 10 -o /dev/null http://localhost:8100/health/ && exit 0; sleep 10
done
exit 1
"""
UNIT = """[Service]
User=shiftmaster
EnvironmentFile=/srv/guide.env
WorkingDirectory=/srv/guide
ExecStart=/srv/guide/venv/bin/gunicorn --bind 127.0.0.1:8100 --workers %s --threads 4 shiftmaster.wsgi:application
"""


def row(what: str, value: str, wanted: str = "") -> None:
    print(f"  {what:58} {value:>12}  {wanted}", flush=True)


def seconds(run) -> str:
    if run.code:
        print(run.output[-3000:])
    return f"{run.seconds:.1f} s" if run.code == 0 else "failed"


def start(folder: Path) -> Operations:
    inventory = folder / "hosts.yml"
    inventory.write_text(INVENTORY % (ROOT / ".cache" / "scenario"))
    subprocess.run(["docker", "rm", "--force", "--volumes", HOST], check=False, capture_output=True)
    subprocess.run(
        ["docker", "run", "--detach", "--name", HOST, "--hostname", HOST, "--privileged", "--cgroupns=private",
         "--tmpfs", "/run", "--tmpfs", "/tmp", "shiftmaster-ops/deployed:trixie"],
        check=True, capture_output=True,
    )  # fmt: skip
    operations = Operations(inventory, HOST)
    operations.shell("timeout 60 systemctl is-system-running --wait || true", timeout=70)
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
    # Warm caches: the packages of 2.1.0 have been downloaded once.
    operations.deploy("2.1.0", **BARE)
    operations.rollback(to="2.0.0", schema="reverse")
    # With another setting it is built anew.
    run = operations.deploy("2.1.0", shiftmaster_web_threads=5, **BARE)
    row("deploy.yml --tags release, a new version, warm caches", seconds(run), "<= 45 s")
    began = time.time()
    run = operations.rollback()
    row("rollback.yml, whole", seconds(run))
    switched = json.loads(
        operations.shell(f"grep '\"switched\"' {APP}/shared/state/audit.jsonl | tail -1").strip().splitlines()[-1]
    )
    stamp = operations.shell(f"date -d {switched['time']} +%s").strip()
    row("rollback.yml, command to old version serving", f"{float(stamp) + 0.5 - began:.0f} +/- 1 s", "<= 10 s")


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


def processor() -> tuple:
    """Return this machine's (ticks in total, ticks idle) since its boot."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(ticks), ticks[3] + ticks[4]


def latency(operations: Operations) -> None:
    print(f"\nUnder {RATE} requests a second, reading and writing through TLS:")
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with load(operations, "--rate", RATE, "--clients", "64", seconds=300) as current:
        time.sleep(15)
        before = processor()
        time.sleep(30)
        after = processor()
        with current.window("deploy"):
            run = operations.deploy("2.1.0", shiftmaster_web_threads=6, **BARE)
        time.sleep(20)
    if run.code:
        print(run.output[-3000:])
    row("processors busy without a deploy", f"{100 - 100 * (after[1] - before[1]) / (after[0] - before[0]):.0f} %")
    window = current.summary["windows"]["deploy"]
    inside, outside = window["inside"]["p99_ms"], window["outside"]["p99_ms"]
    row("requests, failed", f"{current.summary['requests']}, {current.summary['failed']}", "0 failed")
    row("p99 without / during the deploy", f"{outside:.0f} / {inside:.0f} ms", f"ratio {inside / outside:.2f} <= 1.5")


def guide(operations: Operations) -> None:
    print("\nThe guide's own way (git pull, pip, migrate, restart in the live folder), same host, same load:")
    repository = str(ROOT / ".cache/scenario/shiftmaster.git")
    subprocess.run(["docker", "cp", "--quiet", repository, f"{HOST}:/srv/guide.git"], check=True)
    workers = operations.shell(f"grep ^workers {APP}/active/release/site/gunicorn.conf.py | tr -dc 0-9").strip()
    operations.shell(
        "set -e; apt-get update -qq; apt-get install -qq -y git >/dev/null; chown -R root:root /srv/guide.git; "
        "git clone -q /srv/guide.git /srv/guide; cd /srv/guide; git checkout -q 2.0.0; "
        "python3 -m venv venv; export PIP_CERT=/etc/ssl/certs/ca-certificates.crt; "
        "PIP_CACHE_DIR=/var/cache/shiftmaster/pip venv/bin/pip install -q -r requirements.txt; "
        "runuser -u postgres -- createdb -O shiftmaster guide; "
        f"grep -v -E '^(DB_NAME|STATIC_ROOT|PYTHONPATH|HTTPS_ENABLED)=' {APP}/active/release/env > /srv/guide.env; "
        "printf '%s\\n' DB_NAME=guide STATIC_ROOT=/srv/guide-static HTTPS_ENABLED=false >> /srv/guide.env; "
        "set -a; . /srv/guide.env; set +a; venv/bin/python manage.py migrate -v 0; "
        f"DEMO_PASSWORD={PASSWORD} venv/bin/python manage.py seed_demo; "
        "venv/bin/python manage.py collectstatic --no-input -v 0; chmod -R a+rX /srv/guide /srv/guide-static",
        timeout=600,
    )
    operations.shell("cat > /etc/systemd/system/guide.service; systemctl daemon-reload; systemctl start guide",
                     stdin=UNIT % workers)  # fmt: skip
    operations.shell("cat > /srv/guide-deploy", stdin=GUIDE)
    # Static files are nginx' business; here only pages count.
    scenario = json.loads((ROOT / "tests/load/shiftmaster.json").read_text())
    scenario.update(base="http://localhost", connect="127.0.0.1:8100")
    scenario["requests"] = [request for request in scenario["requests"] if request.get("kind") not in ("static",)]
    for request in scenario["requests"]:
        request.pop("links", None)
    path = ROOT / "tests/load/guide.tmp.json"
    path.write_text(json.dumps(scenario))
    try:
        time.sleep(5)
        with load(operations, "--rate", RATE, "--clients", "64", seconds=200, scenario=path.name) as current:
            time.sleep(10)
            began = time.monotonic()
            with current.window("deploy"):
                operations.shell(
                    "PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_CACHE_DIR=/var/cache/shiftmaster/pip "
                    "bash /srv/guide-deploy 2.1.0", timeout=180, check=False,
                )  # fmt: skip
            took = time.monotonic() - began
            time.sleep(5)
    finally:
        path.unlink()
    row("a new version, whole", f"{took:.1f} s")
    row("requests, failed", f"{current.summary['requests']}, {current.summary['failed']}")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        operations = start(Path(folder))
        try:
            controller(operations)
            health(operations)
            operations.rollback(to="2.0.0", schema="reverse") if operations.serves() != "2.0.0" else None
            latency(operations)
            guide(operations)
        finally:
            if not os.environ.get("KEEP"):
                subprocess.run(["docker", "rm", "--force", "--volumes", HOST], check=False, capture_output=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
