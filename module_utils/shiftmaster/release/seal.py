"""Audit events, sealed: copied as they come to files of root, one for each month, which the backups hold for years.

Each run of seal() adds one record, a line of JSON, with the lines since the last one and the SHA-256 of the record
before it, so that none is changed, removed or inserted unnoticed. The application owns its log and can rewrite it: what
was sealed before stays, and what is missing is reported.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from typing import BinaryIO, Iterator

from ..host import safe_files
from .layout import sync

# How much of each log one run seals; the next one goes on.
LIMIT_BYTES = 4 << 20
# In a record a byte may become a replacement character, as \ufffd.
RECORD_BYTES = 16 * LIMIT_BYTES
# So much before the end of what was sealed finds that place again, whatever the name of the file is by then.
TAIL_BYTES = 4096
# Seven years, and the month that has begun.
MONTHS = 85
MONTH = re.compile(r"\d{4}-\d\d\.jsonl")


class SealError(Exception):
    """The records are damaged, or events are missing; str() shows which."""


def _months(directory: str) -> list:
    return sorted(filter(MONTH.fullmatch, os.listdir(directory)))


def _records(directory: str, name: str) -> Iterator[tuple]:
    """Yield (record, its SHA-256, where it ends) of a file, without what a killed run has left at its end."""
    with os.fdopen(safe_files.open_file(os.path.join(directory, name)), "rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(RECORD_BYTES), b""), 1):
            if not line.endswith(b"\n") and len(line) < RECORD_BYTES:
                return
            try:
                record = json.loads(line)
                valid = isinstance(record["previous"], str) and isinstance(record["ends"], dict)
                valid = valid and all(isinstance(one, list) for one in record["lines"].values())
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                valid = False
            if not valid:
                raise SealError("%s: record %d is damaged" % (name, number))
            yield record, hashlib.sha256(line).hexdigest(), stream.tell()


def verified(directory: str) -> str:
    """Return which records there are, and up to which they are complete. Raises SealError."""
    months, count, last = _months(directory), 0, ""
    for name in months:
        for number, (record, checksum, _end) in enumerate(_records(directory, name), 1):
            if last not in ("", record["previous"]):
                raise SealError("%s: record %d does not follow the one before it" % (name, number))
            count, last = count + sum(map(len, record["lines"].values())), checksum
    if not last:
        raise SealError("%s holds no sealed events" % directory)
    text = "%s to %s: %d lines, complete up to the record with SHA-256 %s"
    return text % (months[0][:7], months[-1][:7], count, last)


def seal(directory: str, sources: dict, now: float) -> str:
    """Add what the logs have got; sources: {name: its files, oldest first}. Returns what was sealed, "" for nothing."""
    os.close(safe_files.open_directory(directory, 0o700))
    months, last, ends, size = _months(directory), "", {}, 0
    for name in reversed(months):
        for record, checksum, end in _records(directory, name):
            ends, last, size = record["ends"], checksum, end
        if last:
            break
    lines, missing, found = {}, [], dict(ends)
    for source, paths in sources.items():
        lines[source], found[source], complete = _fresh(paths, ends.get(source))
        missing += [] if complete else [source]
    if not any(lines.values()):
        return ""
    record = {"sealed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)), "previous": last, "lines": lines}
    text = json.dumps(dict(record, ends=found, missing=missing), sort_keys=True).encode() + b"\n"
    # Where a clock was set back, the records stay in their order.
    month = max([time.strftime("%Y-%m.jsonl", time.gmtime(now)), *months])
    with open(os.path.join(directory, month), "ab") as stream:
        os.fchmod(stream.fileno(), 0o600)
        # What a killed run has left may be all that a file holds.
        stream.truncate(size if months and month == name else 0)
        stream.write(text)
    for path in (os.path.join(directory, month), directory):
        sync(path)
    for name in _months(directory)[:-MONTHS]:
        os.unlink(os.path.join(directory, name))
    if missing:
        raise SealError("events are missing: the log of %s was changed or removed" % ", ".join(missing))
    return "%d lines, SHA-256 of the record %s" % (sum(map(len, lines.values())), hashlib.sha256(text).hexdigest())


def _tail(stream: BinaryIO, end: int) -> str:
    stream.seek(max(0, end - TAIL_BYTES))
    return hashlib.sha256(stream.read(min(end, TAIL_BYTES))).hexdigest()


def _fresh(paths: list, end) -> tuple:
    """Return (lines after `end`, their end, whether nothing is missing before them). end: {offset, tail} or None."""
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(os.fdopen(safe_files.open_file(path), "rb")) for path in paths]
        fitting = [n for n, stream in enumerate(streams) if end and _tail(stream, end["offset"]) == end["tail"]]
        complete = bool(fitting) or end is None
        offset, lines, left = end["offset"] if fitting else 0, [], LIMIT_BYTES
        for stream in streams[(fitting or [0])[-1] :]:
            stream.seek(offset)
            data = stream.read(left)
            cut = len(data) == left
            # A line that has not ended is still written, unless the file was rotated. A long one is taken in parts.
            if cut or stream is streams[-1]:
                data = data[: data.rfind(b"\n") + 1] or data * (len(data) == LIMIT_BYTES)
            if data:
                lines += data.decode("utf-8", "replace").removesuffix("\n").split("\n")
                end = {"offset": offset + len(data), "tail": _tail(stream, offset + len(data))}
            left, offset = left - len(data), 0
            if cut:
                break
    return lines, end, complete
