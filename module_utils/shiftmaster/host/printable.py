"""Text of other programs and people, safe to show on a terminal, in mail, chat and a journal."""

from __future__ import annotations

import re

# What a terminal obeys (C0 without tab and line feed, DEL, C1), and what changes the order in which a line is read.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text in which every control character is a question mark; line feeds and tabs stay."""
    return _CONTROL.sub("?", text.replace("\r\n", "\n"))


def printable_tree(value):
    """Return data of another host with every text in it printable, keys too."""
    if isinstance(value, dict):
        return {printable(str(key)): printable_tree(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable_tree(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value


def sized(number: float) -> str:
    """A number of bytes as a person writes it."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            return "%d %s" % (number, unit) if unit == "bytes" else "%.1f %s" % (number, unit)
        number /= 1024.0
    return ""


def lasting(seconds: float) -> str:
    """A length of time in readable form."""
    parts, seconds = [], int(seconds)
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append("%d %s%s" % (count, word, "" if count == 1 else "s"))
    return " ".join(parts[:2]) or "second"
