"""The manifest of one run of the backup: what was saved, how large, where it lies, and what was verified of it.

    begin() -> start() and end() of each part -> finish(); stopped() where the run was killed in the middle

A part has succeeded only with verified content: the tools' exit codes are no evidence. The
file carries the checksum of its own content, so that a damaged one is rejected; it is no signature.
"""

from __future__ import annotations

import calendar
import copy
import hashlib
import json
import os
import re
import time
from typing import Iterable, NamedTuple, Optional

from ..monitoring.metrics import exposition, labels
from ..release.state import write_json

FORMAT = 1
LIMIT_BYTES = 32 << 20
PARTS = ("database", "logical", "files", "configuration")
# From the best to the worst. What runs or waits in a manifest whose run has ended was killed.
RESULTS = ("skipped", "succeeded", "warning", "waiting", "running", "failed")
GOOD = ("succeeded", "warning")
EXIT_CODES = {"skipped": 0, "succeeded": 0, "warning": 0, "waiting": 1, "running": 1, "failed": 1}
# How a backup was verified; only a restore verifies it.
RESTORED = "restore_test"

_TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}
_TIME_OR_NOT_YET = {"type": ["string", "null"], "pattern": _TIME["pattern"]}


def _text(pattern):
    return {"type": "string", "pattern": pattern}


def _mapping(required, **properties):
    """Return the schema of an object that has these properties, and no other."""
    return {
        "type": "object", "required": required.split(), "additionalProperties": False, "properties": properties
    }  # fmt: skip


def _list(items):
    return {"type": "array", "items": items}


_TEXT, _SOME_TEXT = {"type": "string"}, {"type": "string", "minLength": 1}
# No character that a terminal obeys, as a line of a report has it.
_LINE = _text(r"^[^\x00-\x1f\x7f-\x9f]{0,300}$")
# Part of a path: it leads to no other directory.
_NAME = _text(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
# Relative, without `..`.
_RELATIVE = _text(r"^(?!/)(?!(.*/)?\.\.(/|$))[^\x00-\x1f\x7f-\x9f]{1,4000}$")
# More than any disk has: reports and plans divide it, and a float has an end.
_BYTES = {"type": "integer", "minimum": 0, "maximum": 2**63}
_CODE, _SEGMENT, _SHA256 = _text("^[a-z0-9_]+$"), _text("^[0-9A-F]{24}$"), _text("^[0-9a-f]{64}$")
_PROBLEMS = _list(_mapping("code what where", code=_CODE, what=_TEXT, where=_TEXT))
_RUN = {"result": {"enum": list(RESULTS)}, "ended": _TIME_OR_NOT_YET, "problems": _PROBLEMS}
_PART = _mapping(
    "result started ended problems verified",
    **_RUN,
    started=_TIME_OR_NOT_YET,
    kind={"enum": ["full", "diff", "incr"]},
    label=_NAME,  # The backup's name in its own tool: a label, a snapshot, a directory.
    location=_SOME_TEXT,
    offsite=_TEXT,
    size_bytes=_BYTES,  # Of what a restore would bring back.
    added_bytes=_BYTES,  # By how much the repository grew.
    checksums={"type": "object", "propertyNames": _RELATIVE, "additionalProperties": _SHA256},
    tools={"type": "object", "additionalProperties": _TEXT},
    # The label is that of the backup that was restored, where it is not this run's own.
    verified=_list(
        _mapping("how at good what", how=_CODE, at=_TIME, good={"type": "boolean"}, what=_TEXT, label=_TEXT)
    ),
    wal=_mapping("start stop", start=_SEGMENT, stop=_SEGMENT, verified=_SEGMENT),
    restore_point=_SOME_TEXT,
    system_id={"type": "integer", "minimum": 1},
    rows={"type": "object", "additionalProperties": _BYTES},  # Of each table, when it was saved.
)
_MIGRATIONS = {"type": ["integer", "null"], "minimum": 0}
SCHEMA = _mapping(
    "format run_id host started ended result release parts problems",
    **_RUN,
    format={"enum": [FORMAT]},
    run_id=_NAME,
    host=_SOME_TEXT,
    started_by=_TEXT,
    started=_TIME,
    release=_mapping("name migrations", name=_LINE, version=_LINE, revision=_LINE, migrations=_MIGRATIONS),
    parts=dict(_mapping("", **dict.fromkeys(PARTS, _PART)), minProperties=1),
    removed=_list(_TEXT),  # What the retention let go.
    sha256=_SHA256,
)


class ManifestError(Exception):
    """A manifest is damaged or incomplete; str() is the reason."""


# --------------------------------------------------------------------------------------------------------------- time


def timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def seconds_of(text: str) -> int:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


# --------------------------------------------------------------------------------------------------------- a run's way


def begin(run_id: str, host: str, parts: Iterable, now: float, release: Optional[dict] = None, **more) -> dict:
    """Return the manifest of a run that is about to save these parts."""
    waiting = {"result": "waiting", "started": None, "ended": None, "problems": [], "verified": []}
    return dict(
        more, format=FORMAT, run_id=run_id, host=host, started=timestamp(now), ended=None, result="running",
        release=dict({"name": "", "migrations": None}, **(release or {})),
        parts={name: copy.deepcopy(waiting) for name in PARTS if name in set(parts)}, problems=[],
    )  # fmt: skip


def start(manifest: dict, part: str, now: float) -> None:
    manifest["parts"][part].update(result="running", started=timestamp(now))


def end(manifest: dict, part: str, result: str, now: float, problems: Iterable = (), **more) -> None:
    """Note a part's end. problems are those of a Result; more is what else the schema knows of a part."""
    entry = manifest["parts"][part]
    if not all(item["good"] for item in entry["verified"]):
        result = "failed"
    started = entry["started"] or timestamp(now)
    entry.update(more, result=result, started=started, ended=_ended(started, now))
    entry["problems"] = entry["problems"] + [_problem(problem) for problem in problems]


def _ended(started: str, now: float) -> str:
    """Return when what began ends now. A clock that was set back meanwhile ends nothing before its begin."""
    return max(started, timestamp(now))


def verified(manifest: dict, part: str, how: str, good: bool, what: str, now: float, **more) -> None:
    """Note that a part was looked at, and what came of it. What was found wrong makes the part failed."""
    entry = manifest["parts"][part]
    entry["verified"] = entry["verified"] + [dict(more, how=how, at=timestamp(now), good=bool(good), what=what)]
    if not good:
        entry["result"] = "failed"
        entry["problems"] = entry["problems"] + [{"code": "%s_failed" % how, "what": what, "where": ""}]


def note(manifest: dict, problems: Iterable) -> None:
    """Note problems of the run itself, which belong to none of its parts."""
    manifest["problems"] = manifest["problems"] + [_problem(problem) for problem in problems]


def finish(manifest: dict, now: float, failed: bool = False) -> None:
    """End the run. A part that has not ended has failed; so has one of which nothing was verified.

    Problems of the run itself are warnings, unless failed names more.
    """
    for name, entry in manifest["parts"].items():
        if entry["result"] in ("waiting", "running"):
            end(manifest, name, "failed", now, [("not_ended", "the run ended before this part did", "")])
        elif entry["result"] in GOOD and not any(item["good"] for item in entry["verified"]):
            end(manifest, name, "failed", now, [("not_verified", "nothing was verified of it", "")])
    results = [entry["result"] for entry in manifest["parts"].values()]
    if failed:
        results.append("failed")
    elif manifest["problems"]:
        results.append("warning")
    manifest.update(ended=_ended(manifest["started"], now), result=worst(results))


def stopped(manifest: dict, now: float, why: str) -> None:
    """End a run that was killed, or whose host went down: what was not done has failed, what was done stays."""
    note(manifest, [("stopped", why, "")])
    finish(manifest, now, failed=True)


def worst(results: Iterable) -> str:
    return max(results, key=RESULTS.index, default="failed")


def exit_code(manifest: dict) -> int:
    """Return 0 where every part is good, 1 where one is not or has not ended."""
    return EXIT_CODES[manifest["result"]]


def _problem(problem) -> dict:
    code, what, where = problem
    return {"code": code, "what": what, "where": where}


# ----------------------------------------------------------------------------------------------------------- validation

_TYPES = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def differences(value, schema: dict, place: str = "manifest") -> list:
    """Return where a value differs from a schema: JSON Schema, as much of it as SCHEMA uses."""
    if "enum" in schema:
        return [] if value in schema["enum"] else ["%s is %r, not one of %s" % (place, value, schema["enum"])]
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(_TYPES[name](value) for name in types):
        return ["%s is %r, not %s" % (place, value, " or ".join(types))]
    found = []
    if isinstance(value, str):
        # Not search(): `$` also matches before a line feed at the end.
        if len(value) < schema.get("minLength", 0) or not re.fullmatch(schema.get("pattern", "(?s).*"), value):
            found.append("%s is %.200r, which has not its form" % (place, value))
        elif schema.get("pattern") == _TIME["pattern"]:
            try:
                seconds_of(value)
            except ValueError:
                found.append("%s is %s, which is no time" % (place, value))
    elif isinstance(value, int) and not isinstance(value, bool):
        if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
            found.append("%s is %d" % (place, value))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            found += differences(item, schema["items"], "%s[%d]" % (place, number))
    elif isinstance(value, dict):
        found += ["%s has no %s" % (place, name) for name in schema.get("required", ()) if name not in value]
        if len(value) < schema.get("minProperties", 0):
            found.append("%s is empty" % place)
        for name, item in value.items():
            found += differences(name, schema.get("propertyNames", _TEXT), "a name in " + place)
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties", False))
            if inner is False:
                found.append("%s has %s, which is not known" % (place, name))
            else:
                found += differences(item, inner, "%s.%s" % (place, name))
    return found


def validate(manifest) -> list:
    """Return what is wrong with a manifest, as sentences: its form, then rules beyond the form."""
    found = differences(manifest, SCHEMA)
    if found:
        return found
    if manifest["ended"] and manifest["ended"] < manifest["started"]:
        found.append("the run ended before it began")
    for name, part in manifest["parts"].items():
        if part["ended"] and part["started"] and part["ended"] < part["started"]:
            found.append("%s ended before it began" % name)
        if manifest["ended"] and part["result"] in ("waiting", "running"):
            found.append("%s has not ended, but the run has" % name)
        if part["result"] == "failed" and not part["problems"]:
            found.append("%s failed without a reason" % name)
        if part["result"] in GOOD:
            needed = ["started", "ended", "size_bytes", "location", "label"]
            needed += ["kind", "wal", "restore_point", "system_id"] if name == "database" else []
            found += ["%s succeeded without %s" % (name, key) for key in needed if part.get(key) is None]
            if manifest["ended"] and not any(item["good"] for item in part["verified"]):
                found.append("%s succeeded, but nothing was verified of it" % name)
            if not all(item["good"] for item in part["verified"]):
                found.append("%s succeeded, but a verification failed" % name)
    if manifest["ended"]:
        least = worst(part["result"] for part in manifest["parts"].values())
        if RESULTS.index(manifest["result"]) < RESULTS.index(least):
            found.append("the run has result %s, but a part is %s" % (manifest["result"], least))
    return found


# ------------------------------------------------------------------------------------------------------------ the file


def checksum(manifest: dict) -> str:
    """Return the SHA-256 of a manifest without its checksum, in the one form that two writers agree on."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def write(path: str, manifest: dict) -> None:
    """Replace the file atomically, mode 0600. A manifest that is not valid is not written."""
    found = validate(manifest)
    if found:
        raise ManifestError("the manifest is not valid: %s" % "; ".join(found))
    write_json(path, dict(manifest, sha256=checksum(manifest)))


def read(path: str) -> dict:
    """Return a complete manifest. OSError where the file is not there."""
    with open(path, "rb") as stream:
        raw = stream.read(LIMIT_BYTES + 1)
    if len(raw) > LIMIT_BYTES:
        raise ManifestError("%s is damaged: it is larger than %d bytes" % (path, LIMIT_BYTES))
    try:
        manifest = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ManifestError("%s is damaged: it is not JSON (%s)" % (path, error)) from error
    if not isinstance(manifest, dict) or manifest.get("sha256") != checksum(manifest):
        raise ManifestError("%s is damaged: its checksum is not that of its content" % path)
    found = validate(manifest)
    if found:
        raise ManifestError("%s is not a manifest of this version: %s" % (path, "; ".join(found)))
    return manifest


class History(NamedTuple):
    manifests: list  # Oldest first.
    problems: list  # A sentence for each file that cannot be used.


def history(directory: str) -> History:
    """Return all the manifests of a directory. A copy under another name is no second run."""
    manifests, problems = {}, []
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        if name.endswith(".json"):
            try:
                manifest = read(os.path.join(directory, name))
                if manifest["run_id"] not in manifests or name == manifest["run_id"] + ".json":
                    manifests[manifest["run_id"]] = manifest
            except ManifestError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append("%s cannot be read: %s" % (os.path.join(directory, name), error.strerror))
    return History(sorted(manifests.values(), key=lambda one: (one["started"], one["run_id"])), problems)


def verifications(manifests: Iterable, part: str = "database") -> dict:
    """Return for each label whether its last restore test was good, as the retention and the plan need it."""
    found = {}
    for manifest in sorted(manifests, key=lambda one: (one["started"], one["run_id"])):
        entry = manifest["parts"].get(part, {"verified": []})
        for item in entry["verified"]:
            label = item.get("label") or entry.get("label")
            if item["how"] == RESTORED and label:
                found[label] = item["good"]
    return found


# ------------------------------------------------------------------------------------------------------------- metrics

# The value of the label kind for a part. The alert BackupTooOld needs a success of every kind each day, so the weekly
# logical dump has no time of its last success: its age is in the report.
KINDS = {"database": "database", "files": "files", "configuration": "config", "logical": "logical"}
WITHOUT_AGE = ("logical",)
HELP = {
    "shiftmaster_backup_last_success_timestamp_seconds": "When the last good backup of this kind ended",
    "shiftmaster_backup_size_bytes": "Size of the last good backup of this kind, as it would be restored",
    "shiftmaster_backup_duration_seconds": "How long the last good backup of this kind took",
    "shiftmaster_backup_failed": "Whether the last run failed to save this kind; run: otherwise",
    "shiftmaster_restore_test_last_success_timestamp_seconds": "When the database was last restored as a test",
    "shiftmaster_backup_offsite_last_success_timestamp_seconds": "When a run was last copied off-site and read there",
    "shiftmaster_backup_wal_gaps": "Segments that are missing in the archive after the oldest backup",
    "shiftmaster_backup_wal_newest_timestamp_seconds": "When the newest segment came into the archive",
    "shiftmaster_backup_next_run_timestamp_seconds": "When the next run is due",
}


def metrics(
    manifests: Iterable, wal_gaps=None, wal_newest=None, next_run=None, not_begun: float = 0, without: Iterable = ()
) -> str:
    """Return the lines for node exporter's textfile collector, of all the manifests that there are.

    not_begun is when a run last could not even begin, which leaves no manifest. A failed run does not take away the
    times of the last good one: its age is what the alerts go by. without holds "logical" and "offsite" where the
    host's options do not have them: their last results would stay for ever.
    """
    values = {("shiftmaster_backup_failed", "run"): 1} if not_begun else {}
    failed_parts = None
    for manifest in sorted(manifests, key=lambda one: (one["started"], one["run_id"])):
        if not manifest["ended"]:
            continue
        saved = all(part["result"] in (*GOOD, "skipped") for part in manifest["parts"].values())
        regular = set(manifest["parts"]) - {"logical"}
        if saved and manifest["result"] == "failed":
            failed_parts = regular
        # A backup of the database before migrations makes no copy outside: it does not end that failure.
        elif failed_parts is not None and failed_parts <= regular:
            failed_parts = None
        otherwise = failed_parts is not None or not_begun > seconds_of(manifest["started"])
        values["shiftmaster_backup_failed", "run"] = int(otherwise)
        for name, part in manifest["parts"].items():
            kind = KINDS[name]
            if part["result"] == "skipped" or name in without:
                continue
            if part.get("offsite") and "offsite" not in without:
                ended = seconds_of(manifest["ended"])
                values["shiftmaster_backup_offsite_last_success_timestamp_seconds", ""] = ended
            values["shiftmaster_backup_failed", kind] = int(part["result"] not in GOOD)
            for item in part["verified"]:
                if name == "database" and item["how"] == RESTORED and item["good"]:
                    values["shiftmaster_restore_test_last_success_timestamp_seconds", ""] = seconds_of(item["at"])
            if part["result"] not in GOOD:
                continue
            started, ended = seconds_of(part["started"]), seconds_of(part["ended"])
            if kind not in WITHOUT_AGE:
                values["shiftmaster_backup_last_success_timestamp_seconds", kind] = ended
            values["shiftmaster_backup_size_bytes", kind] = part["size_bytes"]
            values["shiftmaster_backup_duration_seconds", kind] = ended - started
    for name, value in (("wal_gaps", wal_gaps), ("wal_newest_timestamp_seconds", wal_newest),
                        ("next_run_timestamp_seconds", next_run)):  # fmt: skip
        if value is not None:
            values["shiftmaster_backup_" + name, ""] = value
    return exposition(
        HELP, {(name, labels(kind=kind) if kind else ""): int(value) for (name, kind), value in values.items()}
    )


def with_failed_run(text: str) -> str:
    """These lines, and that the last run has failed otherwise: for one that knows no manifest."""
    name = "shiftmaster_backup_failed"
    head = ["# HELP %s %s" % (name, HELP[name]), "# TYPE %s gauge" % name]
    lines = [line for line in text.splitlines() if line not in head]
    others = [line for line in lines if line.startswith(name) and not line.startswith(name + '{kind="run"}')]
    rest = [line for line in lines if not line.startswith(name)]
    return "\n".join([*rest, *head, *others, name + '{kind="run"} 1']) + "\n"
