"""Old backups are removed from a real repository; last, since the earlier tests build upon them."""

from __future__ import annotations

import json


def test_the_newest_verified_chain_stays_and_what_is_before_it_goes(operations, backups, first):
    with backups.options(keep_days=0):
        # Segments that older backups miss, by the tests before, are reported once more, and is removed with them.
        manifest = backups.run(check=None, only="database,logical,files,configuration", kind="full")
        assert {part["result"] for part in manifest["parts"].values()} == {"succeeded"}
        kept = backups.kept()
        manifest = backups.run(only="database,logical,files,configuration", kind="full")
        assert set(manifest["removed"]) >= kept - backups.kept() and manifest["removed"]
        info = json.loads(backups.pgbackrest("--output=json", "info"))[0]
        newest = manifest["parts"]["database"]["label"]
        assert [one["label"] for one in info["backup"] if one["type"] == "full"] == [newest]
        # WAL from the oldest backup on, and none from before.
        assert {one["min"] for one in info["archive"] if one["min"]} == {manifest["parts"]["database"]["wal"]["start"]}
        run = operations.run("playbooks/restore.yml", into="scratch", timeout=1800)
        assert run.code == 0 and run.prints("pg_amcheck", "rows"), run.output[-3000:]
        # A run that fails removes nothing, however old all of it is.
        kept = backups.kept()
        backups.shell("cd /etc/shiftmaster-backup && cp -p pgpass pgpass.kept && echo '*:*:*:*:wrong' > pgpass")
        try:
            manifest = backups.run(check=False, only="database,files,configuration")
        finally:
            backups.shell("cd /etc/shiftmaster-backup && mv pgpass.kept pgpass")
        assert manifest["parts"]["database"]["result"] == "failed"
        assert newest in backups.kept() and {one for one in kept if one[-1] in "FDI"} <= backups.kept()


def test_too_much_is_reported(backups, first):
    with backups.options(limit_bytes=1000):
        name = backups.shell("date -u +%Y%m%dT%H%M%SZ-limit0").strip()
        backups.note_request(name, only="files")
        backups.shell(f"shiftmaster-backup run {name}", timeout=600)
    manifest = backups.manifest(name)
    assert manifest["result"] == "warning" and "more than they may" in backups.why(manifest)
