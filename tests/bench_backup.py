"""Backups and restores beside the guide's own way, on one database of 2 GB; prints figures and asserts none of them.

    make bench

Needs the image shiftmaster-ops/deployed:trixie. The guide saves by pg_dump through gzip and restores by psql; here are
pgBackRest's full and incremental backup, and a restore until the database takes writes. What the proof of a backup
costs is a row of its own: the guide has none. Then the faults that a pipe's exit code calls a success.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench import remove, row, seconds, start  # noqa: E402
from support import Operations, load  # noqa: E402

SCALE = 145  # pgbench's: about 2.1 GB
ROUNDS = 3
SECRETS = {
    "vault_backup_cipher_passphrase": "cipher-of-the-measurement",
    "vault_backup_restic_password": "restic-of-the-measurement",
    "vault_backup_database_password": "database-of-the-measurement",
    "backup_schedule_by": "awx",
}
AS_POSTGRES = "cd /; runuser -u postgres --"
# The guide's script goes by the exit code of the last command of its pipe.
GUIDE = "%s pg_dump %s | gzip > /var/tmp/guide.sql.gz; if [ $? -eq 0 ]; then echo SUCCESS; else echo FAILED; fi"
RECOVER = """
import sys, time
sys.path.insert(0, "/usr/local/lib/shiftmaster-backup")
from engine import backup_host, backup_proof
host = backup_host.Host(backup_host.load_options())
began = time.monotonic()
with backup_proof.restored(host, "bench", "--type=immediate", "--target-action=promote") as server:
    server.ask("CREATE TABLE written (at timestamptz)")
    print(round(time.monotonic() - began, 1))
"""


def timed(operations: Operations, command: str) -> float:
    began = time.monotonic()
    operations.shell(command, timeout=1800)
    return time.monotonic() - began


def median(figures: list) -> float:
    return sorted(figures)[len(figures) // 2]


def backup(operations: Operations, kind: str) -> dict:
    """One run of the unit; returns its manifest's part."""
    name = operations.shell("date -u +%Y%m%dT%H%M%SZ-").strip() + "bench0"
    operations.shell("install -d -m 755 /run/shiftmaster-backup && install -d -m 700 /run/shiftmaster-backup/requests")
    operations.shell(
        f"cat > /run/shiftmaster-backup/requests/{name}.json", stdin=json.dumps({"only": "database", "kind": kind})
    )
    operations.shell(f"systemctl start shiftmaster-backup@{name}.service", timeout=1800)
    manifest = json.loads(operations.shell(f"cat /var/backups/shiftmaster/manifests/{name}.json"))
    assert manifest["result"] == "succeeded", manifest
    return manifest["parts"]["database"]


def pgbackrest(operations: Operations, kind: str) -> float:
    return timed(operations, f"{AS_POSTGRES} pgbackrest --stanza=shiftmaster --type={kind} backup")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        operations = start(Path(folder))
        try:
            run = operations.run("deploy.yml", timeout=1800, **SECRETS)
            row("deploy.yml, backups set up", seconds(run))
            program = operations.shell("ls /usr/lib/postgresql/*/bin/pgbench | tail -n 1").strip()
            operations.shell(f"{AS_POSTGRES} {program} -q -i -s {SCALE} shiftmaster", timeout=1800)
            measure(operations)
            under_load(operations)
            said_to_be_good(operations)
        finally:
            remove()
    return 0


def measure(operations: Operations) -> None:
    size = operations.shell(f"{AS_POSTGRES} psql -XqAt -c \"SELECT pg_database_size('shiftmaster')\"").strip()
    row("size of the database", f"{int(size) / 1e9:.2f} GB", ">= 2 GB")
    guide, full, incremental = [], [], []
    for number in range(ROUNDS):
        guide.append(timed(operations, GUIDE % (AS_POSTGRES, "shiftmaster")))
        full.append(pgbackrest(operations, "full"))
        change = f"UPDATE pgbench_accounts SET abalance = {number} WHERE aid % 33 = {number}"
        operations.shell(f'{AS_POSTGRES} psql -Xq -d shiftmaster -c "{change}" -c CHECKPOINT', timeout=600)
        incremental.append(pgbackrest(operations, "incr"))
    dump = int(operations.shell("stat -c %s /var/tmp/guide.sql.gz"))
    base = median(guide)
    row("guide: pg_dump | gzip", f"{base:.1f} s", f"{dump / 1e6:.0f} MB")
    row("full backup", f"{median(full):.1f} s = 1/{base / median(full):.1f}", ">= 5 times faster")
    row("incremental, 3 % changed", f"{median(incremental):.1f} s = 1/{base / median(incremental):.1f}", ">= 8 times")
    began = time.monotonic()
    part = backup(operations, "full")
    row("a run with its proof (restored, every page and index read)", f"{time.monotonic() - began:.1f} s",
        f"{part['added_bytes'] / 1e6:.0f} MB")  # fmt: skip
    operations.shell(f"{AS_POSTGRES} createdb guide")
    theirs = timed(operations, f"gunzip < /var/tmp/guide.sql.gz | {AS_POSTGRES} psql -Xq -d guide >/dev/null")
    operations.shell(f"{AS_POSTGRES} dropdb guide; rm -r /var/tmp/guide.sql.gz")
    ours = median([float(operations.shell("python3 -", stdin=RECOVER, timeout=900)) for _ in range(ROUNDS)])
    row("guide: gunzip | psql", f"{theirs:.1f} s")
    row("restore until it takes writes", f"{ours:.1f} s = 1/{theirs / ours:.1f}", ">= 2 times faster")


def under_load(operations: Operations) -> None:
    """People who never pause, before a full backup and while it is made and proven."""
    operations.manage("seed_demo")
    with load(operations, "--clients", "64", seconds=900) as current:
        time.sleep(40)
        with current.window("backup"):
            backup(operations, "full")
        time.sleep(5)
    window = current.summary["windows"]["backup"]
    during = window["inside"]["requests"] / window["seconds"]
    before = window["outside"]["requests"] / (current.summary["seconds"] - window["seconds"])
    row("64 clients: requests a second without / during a full backup", f"{before:.0f} / {during:.0f}",
        f"{100 - 100 * during / before:.0f} % <= 20 %")  # fmt: skip
    row("requests, failed", f"{current.summary['requests']}, {current.summary['failed']}", "0 failed")


def said_to_be_good(operations: Operations) -> None:
    """The guide's exit code for what has saved nothing."""
    wrong = "env PGPASSWORD=wrong PGHOST=localhost PGUSER=backup"
    for what, command in (
        ("wrong password", GUIDE % (wrong, "shiftmaster")),
        ("missing database", GUIDE % (AS_POSTGRES, "nowhere")),
        ("dump killed", GUIDE % (f"{AS_POSTGRES} timeout --signal=KILL 1", "shiftmaster")),
    ):
        said = operations.shell(f"({command}) 2>/dev/null", check=False).strip()
        row(f"guide's word for: {what}", said.splitlines()[-1] if said else "nothing", "FAILED")


if __name__ == "__main__":
    sys.exit(main())
