"""Which backup a restore begins from, and how far it goes: pure functions.

A target is one of these:
    latest                          everything that is in the archive
    20261126T023000Z-0a1b2c         a run of the backup: the end that was verified (a label of pgBackRest does as well)
    2026-11-26T14:59:30+09:00       a time, with its zone: what was committed before it, and nothing of it or later
    0/5A001D8                       a position of the WAL
    xid:1234                        just before this transaction
"""

from __future__ import annotations

import datetime
import math
import re
from typing import NamedTuple, Optional

from . import manifest as manifests
from . import wal

POSITION = re.compile(r"[0-9A-Fa-f]+/[0-9A-Fa-f]+$")
TRANSACTION = re.compile(r"xid:\d+$")
RUN = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}$")
LABEL = re.compile(r"\d{8}-\d{6}F(_\d{8}-\d{6}[DI])?")
# What choose() makes. pgBackRest would take any other option, and writes the target between quotes into a file.
ARGUMENT = re.compile(
    r"--type=(name|lsn|xid|time)|--target=[A-Za-z0-9 :.+/_-]+|--target-exclusive|--target-action=promote"
)


class TargetError(Exception):
    """Nothing can be restored for this target; str() shows why."""


class Plan(NamedTuple):
    run: str  # The run whose backup is taken.
    label: str
    arguments: list  # Of pgbackrest restore.
    text: str  # How far it goes, for people.
    until: Optional[float]  # Data after this time is lost; None where only the archive knows.
    verified: bool  # Whether exactly this end has been restored before.
    size_bytes: int
    seconds: int  # How long its test restore took, 0 where it is not known.
    stanza: str = ""  # Of the backup; "" is today's.
    timeline: int = 0  # That the recovery follows; 0 where the archive does not show it.

    def recovery(self) -> list:
        """Return the arguments of pgbackrest restore with the timeline; without it PostgreSQL follows the newest."""
        return [*self.arguments, *(["--target-timeline=%d" % self.timeline] if self.timeline else [])]


def plan_of(values) -> Plan:
    """Return a plan from the backup server's response. Raises TargetError where choose() does not make such a one."""
    try:
        plan = Plan(**values)
        texts = (plan.run, plan.label, plan.text, plan.stanza, *plan.arguments)
        valid = (
            all(isinstance(one, str) for one in texts)
            and isinstance(plan.arguments, list)
            and LABEL.fullmatch(plan.label)
            and re.fullmatch(r"[a-z0-9-]*", plan.stanza)
            and all(ARGUMENT.fullmatch(one) for one in plan.arguments)
            and all(isinstance(one, (int, float)) and 0 <= one < math.inf for one in (plan.size_bytes, plan.seconds))
            and type(plan.timeline) is int
            and 0 <= plan.timeline < 2**32
        )
    except TypeError:
        valid = False
    if not valid:
        raise TargetError("the plan of the restore is not one that this program makes")
    return plan


def database_runs(found: list) -> list:
    """The runs with a verified backup of the database, oldest first."""
    return [
        manifest
        for manifest in found
        if manifest["parts"].get("database", {}).get("result") in manifests.GOOD
        and any(one["how"] == manifests.RESTORED and one["good"] for one in manifest["parts"]["database"]["verified"])
    ]


def seconds_of_verification(part: dict) -> int:
    times = [manifests.seconds_of(item["at"]) for item in part["verified"]]
    return max(1, times[-1] - times[-2]) if len(times) > 1 else 0


def timestamp_of(text: str) -> float:
    """Seconds since 1970 of a time with its zone."""
    try:
        found = datetime.datetime.fromisoformat(re.sub(r"Z$", "+00:00", text.strip()).replace(" ", "T", 1))
    except ValueError:
        raise TargetError("%s is no time such as 2026-11-26T14:59:30+09:00" % text)
    if found.tzinfo is None:
        raise TargetError("the time %s has no zone: 2026-11-26T14:59:30+09:00, or with Z for UTC" % text)
    return found.timestamp()


def position(lsn: str) -> int:
    high, low = lsn.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def choose(target: str, found: list, stanzas: list, now: float, archives: tuple = ()) -> Plan:
    """Return what is to be done.

    found: manifests, oldest first; stanzas: of catalogue, today's first; archives: of wal, for the timeline.
    """
    there = {backup.label: backup for stanza in stanzas[::-1] for backup in stanza.backups}
    names = {backup.label: stanza.name for stanza in stanzas[::-1] for backup in stanza.backups}
    runs = [run for run in database_runs(found) if run["parts"]["database"]["label"] in there]
    if not runs:
        raise TargetError("no verified backup of the database is in the repository")
    # Each stanza counts its databases for itself.
    cluster = there[_label(runs[-1])].system_id, there[_label(runs[-1])].version
    runs = [run for run in runs if (there[_label(run)].system_id, there[_label(run)].version) == cluster]

    def plan(run, arguments, text, until, verified=False, timeline=0):
        part = run["parts"]["database"]
        return Plan(
            run["run_id"], part["label"], [*arguments, "--target-action=promote"] if arguments else [], text, until,
            verified, part["size_bytes"], seconds_of_verification(part), names[part["label"]], timeline,
        )  # fmt: skip

    def leading(fitting, timeline):
        """Return the youngest run that leads to the timeline; a backup of one that was given up does not."""
        led = [run for run in fitting if not timeline or wal.leads_to(archives, there[_label(run)], timeline)]
        if not led:
            raise TargetError(
                "no verified backup leads to timeline %d, on which the database wrote; the end of one: target=%s"
                % (timeline, fitting[-1]["run_id"])
            )
        return led[-1]

    backups = [there[_label(run)] for run in runs]
    today = wal.timeline_at(archives, backups)
    if target == "latest":
        return plan(leading(runs, today), [], "everything in the archive", None, timeline=today)
    named = [run for run in runs if target in (run["run_id"], run["parts"]["database"]["label"])]
    if named:
        part = named[-1]["parts"]["database"]
        return plan(
            named[-1],
            # Along the branch on which it was written, where a restore has begun another one since.
            ["--type=name", "--target=%s" % part["restore_point"]],
            "the verified end of the backup of %s" % named[-1]["started"], manifests.seconds_of(part["ended"]), True,
            _timeline(part),
        )  # fmt: skip
    if POSITION.match(target):
        fitting = [run for run in runs if position(there[_label(run)].lsn_stop) <= position(target)]
        if not fitting:
            raise TargetError("every verified backup is younger than the position %s" % target)
        run = leading(fitting, today)
        return plan(run, ["--type=lsn", "--target=%s" % target], "the position %s" % target, None, timeline=today)
    if TRANSACTION.match(target):
        arguments = ["--type=xid", "--target=%s" % target[4:], "--target-exclusive"]
        return plan(leading(runs, today), arguments, "just before transaction %s" % target[4:], None, timeline=today)
    if RUN.match(target) or LABEL.match(target):
        raise TargetError("there is no verified backup %s" % target)
    timestamp = timestamp_of(target)
    if timestamp > now:
        raise TargetError("%s is still to come" % target)
    fitting = [run for run in runs if there[_label(run)].stopped < timestamp]
    if not fitting:
        raise TargetError("every verified backup is younger than %s; the oldest is %s" % (target, runs[0]["started"]))
    text = datetime.datetime.fromtimestamp(timestamp, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f+00")
    timeline = wal.timeline_at(archives, backups, timestamp)
    return plan(
        leading(fitting, timeline), ["--type=time", "--target=%s" % text, "--target-exclusive"],
        "what was committed before %s" % text, timestamp, timeline=timeline,
    )  # fmt: skip


def _timeline(part: dict) -> int:
    return int(part["wal"]["verified"][:8], 16)


def _label(run: dict) -> str:
    return run["parts"]["database"]["label"]


def snapshot(part: str, target: str, found: list) -> dict:
    """The run whose files are restored for a target: the last good one until then."""
    runs = [run for run in found if run["parts"].get(part, {}).get("result") in manifests.GOOD]
    if target != "latest":
        if POSITION.match(target) or TRANSACTION.match(target):
            raise TargetError(
                "%s shows how far the database goes, and nothing of %s: a target of these is latest, a time or a run"
                % (target, part)
            )
        named = [run for run in runs if target in (run["run_id"], run["parts"].get("database", {}).get("label"))]
        if not named and not RUN.match(target) and not LABEL.match(target):
            timestamp = timestamp_of(target)
            named = [run for run in runs if manifests.seconds_of(run["parts"][part]["started"]) <= timestamp]
        runs = named
    if not runs:
        raise TargetError("there is no good backup of %s for %s" % (part, target))
    return runs[-1]
