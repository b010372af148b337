"""What must be there before the first backup, and the row that marks each minute."""

from __future__ import annotations

import contextlib
import time

from . import catalogue
from . import manifest as manifests
from .files import Restic, names_of_parts
from .host import BackupError, Host

# A quiet database writes nothing that a time could be found by.
HEARTBEAT_SQL = """
CREATE TABLE IF NOT EXISTS public.heartbeat (one boolean PRIMARY KEY DEFAULT true CHECK (one), at timestamptz NOT NULL);
INSERT INTO public.heartbeat (at) VALUES (now()) ON CONFLICT (one) DO UPDATE SET at = now();
"""
FORGET_SLOT_SQL = """
WITH unused AS (SELECT slot_name FROM pg_replication_slots WHERE slot_name = 'shiftmaster_backup' AND NOT active)
SELECT slot_name, pg_drop_replication_slot(slot_name) FROM unused
"""


def heartbeat(host: Host) -> None:
    host.query(HEARTBEAT_SQL, timeout=30)


def init(host: Host) -> list:
    """Make the stanza and the repository of files where they are missing; returns what was made."""
    made = []
    if host.database["databases"]:
        stanza = catalogue.stanza_of(host.info(), host.stanza)
        current = [stanza.current_database(repo.key) for repo in stanza.repos]
        if stanza.code == catalogue.MISSING_STANZA:
            host.pgbackrest("pgbackrest stanza-create", "stanza-create")
            made.append("stanza %s" % host.stanza)
        elif stanza.code not in (catalogue.OK, catalogue.NO_BACKUP):
            raise BackupError("the repository of the database is unhealthy: %s" % catalogue.stanza_result(stanza))
        elif any(one and one.version != host.database["version"] for one in current):
            host.pgbackrest("pgbackrest stanza-upgrade", "stanza-upgrade")
            made.append("stanza %s for PostgreSQL %s" % (host.stanza, host.database["version"]))
    if host.database["databases"] and not host.options["wal_receive"]:
        # What nobody receives is kept by the database until its limit.
        with contextlib.suppress(BackupError):
            made += ["slot %s removed" % row[0] for row in host.query(FORGET_SLOT_SQL, timeout=60)]
    if names_of_parts(host):
        restic = Restic(host)
        made += ["repository of files"] if restic.init() else []
        made += ["password of the repository of files"] if restic.change_password() else []
    return made


def listing(host: Host) -> list:
    """Every run that can be restored from, newest last: its parts and what is verified. Then what cannot be read."""
    found = manifests.history("%s/manifests" % host.directory)

    def listed(part):
        verified = any(item["how"] == manifests.RESTORED and item["good"] for item in part["verified"])
        texts = {"kind": part.get("kind", ""), "label": part.get("label", "")}
        return dict(texts, result=part["result"], size_bytes=part.get("size_bytes", 0), verified=verified)

    runs = []
    for manifest in (one for one in found.manifests if one["ended"]):
        run = {name: manifest[name] for name in ("started", "release", "result")}
        parts = {name: listed(part) for name, part in manifest["parts"].items()}
        # In the zone of the host, as reports and logs.
        at = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(manifests.seconds_of(manifest["started"])))
        runs.append(dict(run, run=manifest["run_id"], at=at, parts=parts))
    return runs + [{"damaged": problem} for problem in found.problems]
