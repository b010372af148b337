#!/usr/bin/python
"""Exchange primary and standby between two hosts, without a lost row and without two primaries."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import time

from ansible.module_utils.shiftmaster.host import points, safe_files, units
from ansible.module_utils.shiftmaster.host.postgresql import ROOT, Cluster, Failed, as_postgres, differences, totals
from ansible.module_utils.shiftmaster.host.quiet import QuietModule

DOCUMENTATION = r"""
module: postgresql_move
short_description: Exchange primary and standby between two hosts
description:
  - The server that is a standby follows the other one by O(port) of this host, which leads there, with
    C(primary_conninfo) of the cluster's configuration. Only C(standby.signal) tells a standby from a primary, so that a
    reboot at any time leaves each server what it was.
  - The primary is stopped before the standby is promoted. Its last record, the checkpoint of that shutdown, must be
    replayed by then (O(lsn)).
  - Each state can be requested again where a run was killed.
options:
  state:
    description:
      - V(inspected) queries the cluster; nothing changes.
      - V(copied) replaces the cluster by a copy of the primary, and follows it.
      - V(demoted) stops the primary and makes it a standby, which does not run yet. RV(lsn) is its last record.
      - V(replayed) waits until the standby has replayed O(lsn), the last record of the primary, and compares rows and
        sequences with O(counts).
      - V(counted) counts the rows of the smallest tables, 1 GiB in all, and sequences.
      - V(promoted) makes the standby the primary, with a slot for the other server.
      - V(following) starts the standby and waits until it streams.
      - V(reverted) makes a demoted server that was not started since the primary again.
    type: str
    choices: [inspected, copied, demoted, replayed, counted, promoted, following, reverted]
    default: inspected
  system_id: {description: System identifier of the cluster that V(copied) wants., type: str, default: ""}
  lsn: {description: Position of the record that V(replayed) waits for., type: str, default: ""}
  counts: {description: RV(counts) of the other host., type: dict, default: {}}
  port: {description: Port of this host that leads to the other server., type: int, default: 15432}
  user: {description: "Login for replication, and name of the slot.", type: str, default: shiftmaster_move}
  password: {description: Password of that login., type: str, default: ""}
  timeout_seconds: {description: How long one step may take., type: int, default: 7200}
  followed:
    description: Whether V(reverted) promotes a demoted server that a reboot has started since as a standby. No client
      may have written to the other one.
    type: bool
    default: false
  wait_seconds: {description: How long a standby may take to replay or to stream., type: int, default: 60}
attributes:
  check_mode: {description: "Only V(inspected) does anything, which changes nothing.", support: full}
  diff_mode: {description: There is no text to compare., support: none}
"""

EXAMPLES = r"""
- name: Inspect the cluster
  postgresql_move:
"""

RETURN = r"""
version: {description: "Major version of the cluster, 0 where there is none.", returned: inspected, type: int}
system_id: {description: "System identifier, \"\" where none can be read.", returned: inspected, type: str}
standby: {description: Whether it is a standby., returned: inspected, type: bool}
running: {description: Whether its server runs., returned: inspected, type: bool}
streaming: {description: "Whether it follows the other one, or is followed by it.", returned: inspected, type: bool}
lag_bytes: {description: "WAL that the standby has not replayed, of a primary.", returned: inspected, type: int}
size_bytes: {description: Size of the data., returned: inspected, type: int}
free_bytes: {description: Free space of the file system of the data., returned: inspected, type: int}
problems: {description: What keeps the cluster from being moved., returned: inspected, type: list, elements: str}
lsn: {description: Position of the last checkpoint., returned: demoted, type: str}
counts: {description: "Rows of each table, and values of each sequence.", returned: replayed and counted, type: dict}
rows: {description: Rows that were counted., returned: replayed and counted, type: int}
tables: {description: Tables that were counted., returned: replayed and counted, type: int}
sequences: {description: Sequences that were counted., returned: replayed and counted, type: int}
"""

STATES = ("inspected", "copied", "demoted", "replayed", "counted", "promoted", "following", "reverted")
# A sequence notes so many values in advance: a standby has the noted one. Each value that was used is in the WAL.
SEQUENCE_AHEAD = 32
# Users wait: 1 GiB. Replication copies pages; the counts prove that the standby is the one that was meant.
COUNTED_PAGES = 131072
PRIMARY_SQL = """
SELECT json_build_object(
  'size', (SELECT sum(pg_database_size(oid)) FROM pg_database),
  'tablespaces', (SELECT coalesce(json_agg(spcname), '[]') FROM pg_tablespace WHERE spcname !~ '^pg_'),
  'collations', (SELECT coalesce(json_agg(datname), '[]') FROM pg_database
                 WHERE datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid)),
  'streaming', pg_is_in_recovery() AND EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'),
  'followers', (SELECT coalesce(json_agg(json_build_array(application_name, state, CASE WHEN pg_is_in_recovery() THEN 0
      ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(replay_lsn, '0/0')) END)), '[]') FROM pg_stat_replication))
"""
UNLOGGED_SQL = """
SELECT coalesce(json_agg(format('%I.%I', nspname, relname)), '[]')
FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'r' AND relpersistence = 'u'
"""
SEQUENCES_SQL = """
SELECT coalesce(json_object_agg(format('%I.%I', schemaname, sequencename),
  json_build_array(last_value, increment_by, cache_size)), '{}') FROM pg_sequences
"""


def position(lsn):
    """Return an LSN as a number."""
    if not re.fullmatch(r"[0-9A-F]{1,8}/[0-9A-F]{1,8}", lsn):
        raise Failed("%r is no position of the WAL" % lsn)
    high, low = lsn.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def advanced(before, after):
    """Return whether a sequence on a standby is the one of its primary: [last value, increment, cache] of both."""
    if before[1:] != after[1:] or (before[0] is None) != (after[0] is None):
        return False
    if before[0] is None:
        return True
    # The standby has the noted value, which is higher; a demoted primary a lower one until the sequence is used again.
    return abs((after[0] - before[0]) / before[1]) <= SEQUENCE_AHEAD + before[2]


def compared(before, after):
    """Return what differs between the counts of a primary and those of its standby, as texts."""
    tables = [{name: {"tables": one["tables"]} for name, one in side.items()} for side in (before, after)]
    found = differences(*tables)
    for name in sorted(set(before) & set(after)):
        one, other = before[name]["sequences"], after[name]["sequences"]
        found += [
            "%s of %s: %s instead of %s" % (item, name, other.get(item, "nothing"), one.get(item, "nothing"))
            for item in sorted(set(one) | set(other))
            if item not in one or item not in other or not advanced(one[item], other[item])
        ]
    return found


class Server(Cluster):
    """The live cluster of a host as one of the two."""

    def __init__(self, version, timeout):
        super().__init__(version, timeout)
        self.signal = self.data + "/standby.signal"

    @property
    def standby(self):
        return os.path.lexists(self.signal)

    @property
    def running(self):
        # Debian's unit is active also where the server did not start.
        return units.active_state(self.unit) == "active" and os.path.lexists(self.data + "/postmaster.pid")

    def control(self):
        """Return what pg_controldata prints, by its names; {} where there are no data."""
        try:
            text = as_postgres(60, self.program("pg_controldata"), self.data)
        except Failed:
            return {}
        return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}

    def recovering(self):
        return self.query("SELECT pg_is_in_recovery()") == "t"

    def mark(self):
        """Make it a standby from its next start on."""
        user = pwd.getpwnam("postgres")
        safe_files.write(self.signal, b"", 0o600, user.pw_uid, user.pw_gid)

    def start_server(self):
        """Start it; a standby responds once it is consistent."""
        if not self.running:
            self.start()

    def counted(self):
        return {
            name: dict(found, sequences=json.loads(self.query(SEQUENCES_SQL, name)))
            for name, found in super().counted(COUNTED_PAGES).items()
        }


def live_version():
    """Return the major version of the cluster that starts at boot, or of the only one; 0 where there is none."""
    names = os.listdir("/etc/postgresql") if os.path.isdir("/etc/postgresql") else []
    present = [int(name) for name in names if re.fullmatch(r"[1-9][0-9]", name) and Cluster(int(name), 0).present]
    automatic = [one for one in present if Cluster(one, 0).automatic]
    return max(automatic or present, default=0)


class Move:
    def __init__(self, params):
        self.params = params
        version = live_version()
        self.server = Server(version, params["timeout_seconds"]) if version else None

    def inspect(self):
        found = {
            "version": 0, "system_id": "", "standby": False, "running": False, "streaming": False, "lag_bytes": 0,
            "size_bytes": 0, "free_bytes": 0, "problems": [],
        }  # fmt: skip
        with contextlib.suppress(FileNotFoundError):
            free = os.statvfs(ROOT if os.path.isdir(ROOT) else "/var/lib")
            found["free_bytes"] = free.f_bavail * free.f_frsize
        server = self.server
        if not server:
            return found
        control = server.control()
        # A copy that was begun and not ended is no cluster yet. One that has been left for good is disabled.
        complete = server.start_mode != "manual" and control
        found.update(
            version=server.version, running=server.running, standby=server.standby,
            system_id=control.get("Database system identifier", "") if complete else "",
        )  # fmt: skip
        if not server.running:
            return found
        facts = json.loads(server.query(PRIMARY_SQL))
        name = self.params["user"]
        followers = [(state, int(lag)) for application, state, lag in facts["followers"] if application == name]
        found.update(
            size_bytes=int(facts["size"]), lag_bytes=max((lag for _state, lag in followers), default=0),
            streaming=facts["streaming"] or any(state == "streaming" for state, _lag in followers),
        )  # fmt: skip
        problems = found["problems"]
        if facts["tablespaces"]:
            problems.append("there are tablespaces: %s" % ", ".join(facts["tablespaces"]))
        others = sorted({application for application, _state, _lag in facts["followers"]} - {name})
        others = [one for one in others if not one.startswith(("pg_receivewal", "pg_basebackup", "shiftmaster-backup"))]
        if others:
            problems.append("another standby follows this cluster: %s" % ", ".join(others))
        problems += ["the collations of database %s are of another version" % one for one in facts["collations"]]
        for database in server.databases() if not server.standby else []:
            tables = json.loads(server.query(UNLOGGED_SQL, database))
            if tables:
                problems.append("unlogged tables are not replicated: %s of %s" % (", ".join(tables), database))
        return found

    def copy(self):
        """Replace the cluster by a copy of the primary. Returns whether anything had to be done."""
        server, params = self.server, self.params
        if not params["system_id"]:
            raise Failed("the other host has no cluster that could be copied")
        if server.standby and server.automatic:
            if server.control().get("Database system identifier") == params["system_id"]:
                # What cannot follow any more is copied again.
                with contextlib.suppress(Failed, units.UnitError):
                    server.start_server()
                    self.wait_until_it_streams()
                    return False
        elif (
            not server.standby
            and server.start_mode != "manual"
            and server.control().get("Database system identifier") == params["system_id"]
        ):
            # The two servers were one, and this one is a primary: it may have rows that the other one lacks.
            raise Failed("the cluster here is a primary with the data of the other host: it is not replaced")
        # Until the copy is complete a reboot starts nothing here.
        server.set_start("manual")
        server.stop()
        self.empty()
        # No login but a superuser's may set lc_messages.
        environment = {"PGPASSWORD": params["password"], "PGSSLMODE": "require", "PGOPTIONS": ""}
        as_postgres(
            params["timeout_seconds"], server.program("pg_basebackup"), "--pgdata", server.data,
            "--host=127.0.0.1", "--port=%d" % params["port"], "--username=" + params["user"], "--no-password",
            "--wal-method=stream", "--slot=" + params["user"], "--checkpoint=fast", env=environment,
        )  # fmt: skip
        server.mark()
        server.set_start("auto")
        server.start()
        self.wait_until_it_streams()
        return True

    def empty(self):
        """Remove what is in the directory of the data, and leave the directory, which may be a mount."""
        # Its entries are postgres': by the descriptor of the directory, they lead nowhere else.
        names = os.listdir(self.server.data)
        for name in names:
            safe_files.remove_tree(os.path.join(self.server.data, name))

    def wait_until_it_streams(self):
        self.wait_for(
            "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')",
            "it does not stream; see shiftmaster-move.service and the log of PostgreSQL",
        )

    def wait_for(self, sql, problem):
        deadline = time.monotonic() + self.params["wait_seconds"]
        while self.server.query(sql) != "t":
            if time.monotonic() > deadline:
                raise Failed(problem)
            time.sleep(0.2)

    def demote(self):
        """Stop the primary: its standby gets everything before the server ends. Returns the last record."""
        server = self.server
        if server.standby:
            # A reboot has started it since.
            server.stop()
        else:
            if server.running:
                # What is written now is not written while users wait.
                server.query("CHECKPOINT")
            server.stop()
            points.reach("move_stopped")
            if server.control().get("Database cluster state") != "shut down":
                raise Failed("the server did not stop cleanly: its state is %s"
                             % server.control().get("Database cluster state", "unknown"))  # fmt: skip
            server.mark()
        return server.control()["Latest checkpoint location"]

    def replay(self, lsn):
        position(lsn)
        # The end of the last replayed record: the record at that position is replayed once it is greater.
        sql = "SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() > '%s'::pg_lsn" % lsn
        self.wait_for(sql, "the standby has not received the end of the WAL (%s)" % lsn)

    def promote(self):
        """Make it the primary, which keeps its WAL for the other server from now on."""
        changed = self.server.recovering()
        if changed:
            points.reach("move_replayed")
            if self.server.query("SELECT pg_promote(true, %d)" % self.params["wait_seconds"]) != "t":
                raise Failed("the standby did not become a primary")
        self.server.query(
            "SELECT pg_create_physical_replication_slot('%s', true) WHERE NOT EXISTS "
            "(SELECT FROM pg_replication_slots WHERE slot_name = '%s')" % ((self.params["user"],) * 2)
        )
        if changed:
            points.reach("move_promoted")
        return changed

    def follow(self):
        server, slot = self.server, self.params["user"]
        if not server.standby:
            raise Failed("the server is a primary")
        changed = not server.running
        server.start_server()
        # Its own slot would keep WAL for a standby that there is no more.
        server.query(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '%s' AND NOT active"
            % slot
        )
        self.wait_until_it_streams()
        return changed

    def revert(self):
        """Start a demoted server as the primary that it was. Nothing was written since anywhere."""
        server = self.server
        changed = server.standby or not server.running
        followed = server.running or server.control().get("Database cluster state") != "shut down"
        if server.standby and not followed:
            safe_files.remove_tree(server.signal)
        elif server.standby and not self.params["followed"]:
            raise Failed("the server has followed the other one since: move it back instead")
        server.set_start("auto")
        server.start_server()
        if server.standby and self.server.query("SELECT pg_promote(true, %d)" % self.params["wait_seconds"]) != "t":
            raise Failed("the standby did not become a primary")
        return changed

    def count(self, expected):
        counts = self.server.counted()
        found = compared(expected, counts) if expected else []
        if found:
            raise Failed("rows differ: " + "; ".join(found[:8]))
        return {"counts": counts, **totals(counts)}


def work(params, check_mode):
    move = Move(params)
    state = params["state"]
    if state == "inspected" or check_mode:
        return {"changed": False, **move.inspect()}
    if not move.server:
        raise Failed("there is no cluster main")
    if state == "demoted":
        before = move.server.standby
        return {"changed": not before, "lsn": move.demote()}
    if state in ("replayed", "counted"):
        if state == "replayed":
            move.replay(params["lsn"])
        return {"changed": False, **move.count(params["counts"])}
    steps = {"copied": move.copy, "promoted": move.promote, "following": move.follow, "reverted": move.revert}
    return {"changed": steps[state]()}


def main():
    module = QuietModule(
        argument_spec={
            "state": {"type": "str", "choices": list(STATES), "default": "inspected"},
            "system_id": {"type": "str", "default": ""},
            "lsn": {"type": "str", "default": ""},
            "counts": {"type": "dict", "default": {}},
            "port": {"type": "int", "default": 15432},
            "user": {"type": "str", "default": "shiftmaster_move"},
            "password": {"type": "str", "default": "", "no_log": True},
            "timeout_seconds": {"type": "int", "default": 7200},
            "wait_seconds": {"type": "int", "default": 60},
            "followed": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    if not re.fullmatch(r"[a-z_]{1,60}", module.params["user"]):
        module.fail_json(msg="user consists of a-z and _")
    try:
        module.exit_json(**work(module.params, module.check_mode))
    except (Failed, units.UnitError, OSError, ValueError, KeyError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
