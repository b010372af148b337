"""Backups and restores next to the guide's own way, on one database of 2 GB; ends with 1 where a ratio is missed.

    make bench

Needs the image shiftmaster-ops/deployed:trixie. The guide saves by pg_dump through gzip and restores by psql; here are
pgBackRest's full and incremental backup, and a restore until the database takes writes. What the verification of a
backup costs is a row of its own: the guide has none. Then the faults that a pipe's exit code calls a success.
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

# Rosters of fifteen years, about 2.2 GB with their indexes; every tenth line has a note. Not the table of pgbench, most
# of which is blanks.
DAYS, STAFF = 5500, 3000
ROSTERS = f"""
CREATE TABLE roster (id bigserial PRIMARY KEY, staff int, day date, shift text, begins timestamptz, ends timestamptz,
                     changed timestamptz, note text);
INSERT INTO roster (staff, day, shift, begins, ends, changed, note)
SELECT staff, day, (ARRAY['日勤', '早番', '遅番', '準夜', '深夜'])[1 + kind], day + kind * interval '4 hours',
       day + kind * interval '4 hours' + interval '8 hours', day - random() * interval '40 days',
       CASE WHEN random() < 0.1 THEN '交代 ' || md5(random()::text) END
  FROM (SELECT n % {STAFF} AS staff, date '2010-01-01' + n / {STAFF} AS day, floor(random() * 5)::int AS kind
          FROM generate_series(0, {DAYS * STAFF - 1}) AS n) AS lines;
CREATE INDEX ON roster (staff, day);
CREATE INDEX ON roster (day, shift);
VACUUM ANALYZE roster;
"""
ROUNDS = 3
SECRETS = {
    "vault_backup_cipher_passphrase": "cipher-of-the-measurement",
    "vault_backup_restic_password": "restic-of-the-measurement",
    "vault_backup_database_password": "database-of-the-measurement",
    "backup_schedule_by": "awx",
}
AS_POSTGRES = "env --chdir=/ runuser -u postgres --"
# The guide's script goes by the exit code of the last command of its pipe.
GUIDE = "%s pg_dump %s | gzip > /var/tmp/guide.sql.gz; if [ $? -eq 0 ]; then echo SUCCESS; else echo FAILED; fi"
FLIP = "printf X | dd of=/var/tmp/guide.sql.gz bs=1 seek=5000 conv=notrunc status=none"
AGED = 'mkdir -p /var/tmp/guide; for n in 31 32 33; do touch -d "$n days ago" /var/tmp/guide/db_backup_$n.sql.gz; done'
REMOVE = (
    "find /var/tmp/guide -name '*.gz' -mtime +30 -delete; echo \"SUCCESS, $(ls /var/tmp/guide | wc -l) of 3 are left\""
)
RECOVER = """
import sys, time
sys.path.insert(0, "/usr/local/sbin/shiftmaster-backup")
from shiftmaster.backup import verification
from shiftmaster.backup.host import Host, load_options
host = Host(load_options())
began = time.monotonic()
with verification.restored(host, "bench", "--type=immediate", "--target-action=promote") as server:
    server.query("CREATE TABLE written (at timestamptz)")
    print(round(time.monotonic() - began, 1))
"""


MISSED = []


def ratio(what: str, found: float, wanted: float, text: str, least: bool = True) -> None:
    """A metric with the bound that the issue names."""
    row(what, text, f"{'>=' if least else '<='} {wanted:g}")
    if found < wanted if least else found > wanted:
        MISSED.append(what)


def timed(operations: Operations, command: str) -> float:
    began = time.monotonic()
    operations.shell(command, timeout=1800)
    return time.monotonic() - began


def median(metrics: list) -> float:
    return sorted(metrics)[len(metrics) // 2]


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
    with tempfile.TemporaryDirectory() as directory:
        operations = start(Path(directory))
        try:
            run = operations.run("deploy.yml", timeout=1800, **SECRETS)
            row("deploy.yml, backups set up", seconds(run))
            operations.shell(f"{AS_POSTGRES} psql -Xq -v ON_ERROR_STOP=1 -d shiftmaster", stdin=ROSTERS, timeout=1800)
            measure(operations)
            under_load(operations)
            reported_as_good(operations)
        finally:
            remove()
    if MISSED:
        print(f"missed: {', '.join(MISSED)}")
    return 1 if MISSED else 0


def measure(operations: Operations) -> None:
    size = operations.shell(f"{AS_POSTGRES} psql -XqAt -c \"SELECT pg_database_size('shiftmaster')\"").strip()
    ratio("size of the database, GB", int(size) / 1e9, 2, f"{int(size) / 1e9:.2f}")
    guide, full, incremental = [], [], []
    for _ in range(ROUNDS):
        guide.append(timed(operations, GUIDE % (AS_POSTGRES, "shiftmaster")))
        full.append(pgbackrest(operations, "full"))
        # The last months, as in real life.
        change = f"UPDATE roster SET changed = now() WHERE id > {DAYS * STAFF * 0.97:.0f}"
        operations.shell(f'{AS_POSTGRES} psql -Xq -d shiftmaster -c "{change}" -c CHECKPOINT', timeout=600)
        incremental.append(pgbackrest(operations, "incr"))
    dump = int(operations.shell("stat -c %s /var/tmp/guide.sql.gz"))
    base = median(guide)
    row("guide: pg_dump | gzip", f"{base:.1f} s", f"{dump / 1e6:.0f} MB")
    for what, found, wanted in (("full backup", median(full), 5), ("incremental, 3 % changed", median(incremental), 8)):
        ratio(f"{what}, times faster", base / found, wanted, f"{base / found:.1f} ({found:.1f} s)")
    began = time.monotonic()
    part = backup(operations, "full")
    row("a run with its verification (restored, every page and index read)", f"{time.monotonic() - began:.1f} s",
        f"{part['added_bytes'] / 1e6:.0f} MB")  # fmt: skip
    operations.shell(f"{AS_POSTGRES} createdb guide")
    theirs = timed(operations, f"gunzip < /var/tmp/guide.sql.gz | {AS_POSTGRES} psql -Xq -d guide >/dev/null")
    count = f'{AS_POSTGRES} psql -XqAt -d guide -c "SELECT count(*) FROM roster"'
    assert int(operations.shell(count)) == DAYS * STAFF, "the guide's way has restored something else"
    operations.shell(f"{AS_POSTGRES} dropdb guide; rm -r /var/tmp/guide.sql.gz")
    ours = median([float(operations.shell("python3 -", stdin=RECOVER, timeout=900)) for _ in range(ROUNDS)])
    row("guide: gunzip | psql", f"{theirs:.1f} s")
    ratio("restore until it takes writes, times faster", theirs / ours, 2, f"{theirs / ours:.1f} ({ours:.1f} s)")


def under_load(operations: Operations) -> None:
    """Users who never pause, before a full backup and while it is made and verified."""
    operations.manage("seed_demo")
    with load(operations, "--clients", "64", seconds=900) as current:
        time.sleep(40)
        with current.window("backup"):
            backup(operations, "full")
        time.sleep(5)
    window = current.summary["windows"]["backup"]
    during = window["inside"]["requests"] / window["seconds"]
    before = window["outside"]["requests"] / (current.summary["seconds"] - window["seconds"])
    row("64 clients: requests a second without / during a full backup", f"{before:.0f} / {during:.0f}")
    cost = 100 - 100 * during / before
    ratio("cost of a full backup under load, % of throughput", cost, 20, f"{cost:.0f}", least=False)
    ratio("requests that failed", current.summary["failed"], 0, f"{current.summary['failed']}", least=False)


def reported_as_good(operations: Operations) -> None:
    """The result of the guide's script, which uses the last exit code of each step, for a step that saved nothing."""
    wrong = "env PGPASSWORD=wrong PGHOST=localhost PGUSER=backup"
    for what, command in (
        ("wrong password", GUIDE % (wrong, "shiftmaster")),
        ("missing database", GUIDE % (AS_POSTGRES, "nowhere")),
        ("dump killed", GUIDE % (f"{AS_POSTGRES} timeout --signal=KILL 1", "shiftmaster")),
        ("flipped byte in the dump", f"{GUIDE % (AS_POSTGRES, 'shiftmaster')}; {FLIP}"),
        ("all good dumps older than 30 days, today's failed", f"{AGED}; {GUIDE % (wrong, 'shiftmaster')}; {REMOVE}"),
    ):
        output = operations.shell(f"({command}) 2>/dev/null", check=False).strip()
        row(f"guide's word for: {what}", output.splitlines()[-1] if output else "nothing", "FAILED")


if __name__ == "__main__":
    sys.exit(main())
