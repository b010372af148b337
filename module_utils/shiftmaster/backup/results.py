"""The output of the backup's tools besides their exit codes, which are 0 for damage that loses data.

Each reader takes what a tool wrote and returns a Result. Only output that is known for a complete backup is good: an
empty response, an unknown line or one that stops in the middle is not.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Iterable, NamedTuple


class Problem(NamedTuple):
    code: str  # A word that stays the same, for tests and conditions.
    what: str  # A sentence for the one who reads the report.
    where: str = ""  # The backup, file or segment that it concerns; "" is everything.


@dataclass(frozen=True)
class Result:
    good: bool
    problems: tuple = ()

    def concerning(self, places: Iterable) -> Result:
        """Return the same without the problems of other places: an old damaged backup does not make today's bad."""
        return result([problem for problem in self.problems if not problem.where or problem.where in set(places)])

    def __str__(self) -> str:
        return "; ".join(problem.what for problem in self.problems) or "good"


def result(problems: Iterable) -> Result:
    """Return a Result that is good where there is no problem."""
    found = tuple(dict.fromkeys(problems))
    return Result(not found, found)


def readable(text: str, longest: int = 300) -> str:
    """Return a text of a tool on one line. The messages about a wrong key quote bytes that are no text."""
    text = "".join(sign if sign.isprintable() and sign != "\N{REPLACEMENT CHARACTER}" else " " for sign in text)
    return " ".join(text.split())[:longest]


# ---------------------------------------------------------------------------------------------------------- pgBackRest

# In front of a message: of the log on the console, and of the one on standard error.
_PREFIX = re.compile(r"^(?:\d{4}-\d\d-\d\d [\d:.]+ P\d+ +)?(INFO|WARN|ERROR): +")
_VERIFY_ARCHIVE = re.compile(r"^archiveId: (\S+), total WAL checked: (\d+), total valid WAL: (\d+)$")
_VERIFY_BACKUP = re.compile(
    r"^backup: (\S+), status: (\w[\w ]*), total files checked: (\d+), total valid files: (\d+)$"
)
_VERIFY_COUNTS = re.compile(r"^missing: (\d+), checksum invalid: (\d+), size invalid: (\d+), other: (\d+)$")
_VERIFY_FILE = re.compile(r"^(file missing|invalid checksum|invalid size|invalid result) '?([^': ]+)'?(?:: .*)?$")
# The second line of an invalid result: one that could not even be decrypted.
_VERIFY_RETRIES = re.compile(r"^\[\w+\] on \d+ retr")
_SEGMENT_FILE = re.compile(r"^(?:[^/]+/)*([0-9A-F]{24})-[0-9a-f]{40}")


def verify_text(text: str, stanza=None) -> Result:
    """Evaluate `pgbackrest verify --output=text --verbose`: standard output, alone or with standard error.

    The place of a problem is a label, or an archive's directory (17-1). With the stanza of the catalogue every one of
    its backups must be in the report, and what needs a damaged backup is damaged too: verify calls it valid.

    What it does not look at is whether the WAL is without gaps: that is the module wal's.
    """
    problems, states, archives, counted = [], {}, {}, set()
    place, status, name = "", None, None
    for line in text.splitlines():
        prefix = _PREFIX.match(line)
        printed = _PREFIX.sub("", line).strip()
        backup, archive = _VERIFY_BACKUP.match(printed), _VERIFY_ARCHIVE.match(printed)
        counts, broken = _VERIFY_COUNTS.match(printed), _VERIFY_FILE.match(printed)
        if not printed or printed.startswith(("verify command begin", "verify command end: completed successfully")):
            continue
        if _VERIFY_RETRIES.match(printed):
            continue
        if prefix and prefix.group(1) != "INFO":
            problems.append(Problem("verify_message", readable(printed)))
        elif printed.startswith("stanza: "):
            name = printed[len("stanza: ") :]
        elif printed in ("status: ok", "status: error"):
            status = printed[len("status: ") :]
        elif archive:
            place = archive.group(1)
            archives[place] = archive.group(2) == archive.group(3) and int(archive.group(2)) > 0
            if not archives[place]:
                what = "of %s segments in archive %s %s are complete" % (archive.group(2), place, archive.group(3))
                problems.append(Problem("wal_damaged", what, place))
        elif backup:
            place = backup.group(1)
            states[place] = backup.group(2) == "valid" and backup.group(3) == backup.group(4) != "0"
            if not states[place]:
                what = "backup %s is %s: of %s files %s are complete" % backup.groups()
                problems.append(Problem("backup_damaged", what, place))
        elif counts:
            counted.add(place)
            if set(counts.groups()) != {"0"} and states.get(place, archives.get(place, True)):
                problems.append(Problem("verify_counts", "%s: %s" % (place, printed), place))
        elif broken:
            problems.append(Problem("file_damaged", printed, broken.group(2).split("/")[0]))
        elif re.match(r"^No usable (backup|archive)\.info file$", printed):
            problems.append(Problem("unreadable", "the repository has %s" % (printed[0].lower() + printed[1:])))
        else:
            problems.append(Problem("unknown_text", "unknown output of verify: %s" % readable(printed)))
    if status is None or name is None:
        problems.append(Problem("no_report", "verify wrote no report; it writes one with --output=text --verbose"))
    elif status != "ok" and not problems:
        problems.append(Problem("unknown_text", "verify found an error that it does not name"))
    elif not states or not archives:
        what = "verify checked %d backups and %d archives" % (len(states), len(archives))
        problems.append(Problem("no_report", what))
    for one, complete in {**archives, **states}.items():
        if complete and one not in counted:
            problems.append(Problem("no_report", "the report ends at %s" % one, one))
    if stanza is not None:
        if name not in (None, stanza.name):
            problems.append(Problem("no_report", "verify checked stanza %s" % name))
        problems += _against_catalogue(states, stanza)
    return result(problems)


def _against_catalogue(states: dict, stanza) -> list:
    found = []
    damaged = {label for label, complete in states.items() if not complete}
    for backup in stanza.of(1):
        if backup.label not in states:
            found.append(Problem("not_verified", "verify did not check backup %s" % backup.label, backup.label))
        lost = damaged & {backup.prior, *backup.references}
        if lost and backup.label not in damaged:
            what = "backup %s needs %s" % (backup.label, ", ".join(sorted(lost)))
            found.append(Problem("backup_damaged", what, backup.label))
    return found


def damaged_wal(text: str) -> list:
    """Return the segments that verify calls damaged, by their names of 24 digits."""
    broken = [_VERIFY_FILE.match(_PREFIX.sub("", line).strip()) for line in text.splitlines()]
    segments = [_SEGMENT_FILE.match(one.group(2)) for one in broken if one]
    return sorted({segment.group(1) for segment in segments if segment})


# ---------------------------------------------------------------------------------------------------------- PostgreSQL


def recovery(log: str, target: str) -> Result:
    """Evaluate the log of a server that was started on a restored directory.

    A recovery that meets a damaged or missing segment reports success: with thousands of commits missing. So
    there must be a verified end: the named point (target).
    """
    problems = []
    # What is fatal for a client that came too early, or after the recovery, reports nothing about it.
    before = log.split("database system is ready to accept connections", 1)[0]
    for line in before.splitlines():
        if re.search(r"\b(?:FATAL|PANIC): ", line) and not re.search(r"FATAL:  the database system is ", line):
            problems.append(Problem("recovery_failed", readable(line.split("]", 1)[-1])))
    if "archive recovery complete" not in log:
        problems.append(Problem("recovery_failed", "the recovery did not complete"))
    if 'recovery stopping at restore point "%s"' % target not in log:
        problems.append(Problem("target_missed", "the recovery did not come to the point %s" % target))
    return result(problems)


def amcheck(rc: int, stdout: str, stderr: str) -> Result:
    """Evaluate `pg_amcheck --all --heapallindexed --install-missing --progress`.

    It prints nothing for intact objects, so its progress is the evidence of a check. A database in
    which the extension is not installed is left out, with code 0.
    """
    problems = []
    found = {}
    place = ""
    for line in stdout.splitlines():
        relation = re.match(r'^(?:heap table|btree index) "([^"]+)"', line)
        if relation:
            place = relation.group(1)
            found[place] = ""
        elif place and line.startswith(" "):
            found[place] += line
        elif line.strip():
            problems.append(Problem("unknown_text", readable(line)))
    problems += [Problem("corrupt", "%s: %s" % (place, readable(printed)), place) for place, printed in found.items()]
    done = None
    for line in re.split(r"[\r\n]+", stderr):
        progress = re.match(r"^\s*(\d+)/(\d+) relations \(\s*\d+%\),", line)
        if progress:
            done = progress.groups()
        elif line.strip() and not line.startswith("NOTICE:"):
            problems.append(Problem("amcheck_message", readable(line)))
    if rc != 0 and not problems:
        problems.append(Problem("failed", "pg_amcheck ended with code %d" % rc))
    if done is None or done[0] != done[1] or done[1] == "0":
        what = "pg_amcheck did not check everything: %s" % " of ".join(done or ("nothing",))
        problems.append(Problem("not_ended", what))
    return result(problems)


# -------------------------------------------------------------------------------------------------------------- restic

_RESTIC_CODES = {
    3: ("partial", "not everything could be read"),
    10: ("repository_missing", "the repository is not there"),
    11: ("locked", "the repository is locked"),
    12: ("wrong_key", "the key is wrong"),
    130: ("killed", "it was interrupted"),
}


def _restic(rc: int, stdout: str, stderr: str, command: str):
    """Return (the summary, the problems) of a command with --json."""
    problems = []
    summary = None
    # A name of a file may hold what splitlines() takes for the end of a line.
    for line in (stdout + "\n" + stderr).split("\n"):
        line = line.strip()
        if not line:
            continue
        try:
            message = json.loads(line)
            kind = message["message_type"]
        except (ValueError, KeyError, TypeError):
            missing = re.match(r"^(.+) does not exist, skipping$", line)
            if missing:
                where = missing.group(1)
                problems.append(Problem("source_missing", "%s is not there, so it was not saved" % where, where))
            else:
                problems.append(Problem("unknown_text", readable(line)))
            continue
        if kind == "summary":
            summary = message
        elif kind == "error":
            error = message.get("error")
            what = error.get("message", "") if isinstance(error, dict) else message.get("message", "")
            problems.append(Problem("restic_error", readable(what), message.get("item", "")))
        elif kind == "exit_error":
            code, what = _RESTIC_CODES.get(message.get("code"), ("failed", "restic %s failed" % command))
            problems.append(Problem(code, "%s (%s)" % (what, readable(message.get("message", "")))))
        elif kind not in ("status", "verbose_status", "initialized"):
            problems.append(Problem("unknown_text", readable(line)))
    if rc != 0 and not problems:
        code, what = _RESTIC_CODES.get(rc, ("failed", "restic %s ended with code %d" % (command, rc)))
        problems.append(Problem(code, what))
    return summary, problems


def restic_backup(rc: int, stdout: str, stderr: str):
    """Evaluate `restic backup --json`, which returns 0 where one of its paths is missing: (its summary, the result)."""
    summary, problems = _restic(rc, stdout, stderr, "backup")
    if not problems:
        if not summary or not summary.get("snapshot_id"):
            problems.append(Problem("not_ended", "restic backup named no snapshot"))
        elif not summary.get("total_files_processed"):
            problems.append(Problem("empty", "restic backup saved no file"))
    return summary, result(problems)


def restic_check(rc: int, stdout: str, stderr: str) -> Result:
    """Evaluate `restic check`, without --json: that summary does not show whether the data was read.

    Without --read-data or --read-data-subset a flipped byte is not found, so that is no verification.
    """
    problems = []
    for line in stderr.splitlines():
        pack = re.match(r"^pack ([0-9a-f]{64})\b", line)
        if pack:
            problems.append(Problem("pack_damaged", readable(line), pack.group(1)))
        elif line.strip() and not problems:
            problems.append(Problem("restic_error", readable(line)))
    if rc != 0 and not problems:
        code, what = _RESTIC_CODES.get(rc, ("failed", "restic check ended with code %d" % rc))
        problems.append(Problem(code, what))
    if "no errors were found" not in stdout.splitlines() and not problems:
        problems.append(Problem("not_ended", "restic check did not report that it found no errors"))
    if not re.search(r"^read (all data$|group #\d+ of |[\d.]+% of data packs$)", stdout, re.M):
        problems.append(Problem("not_read", "restic check did not read the data"))
    return result(problems)
