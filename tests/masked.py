"""The patterns of group_vars/all/masking.yml in the two engines that they run in."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import onigurumacffi

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shiftmaster_monitoring" / "shiftmaster_monitoring"))

from masks import Masks  # noqa: E402

_compiled = {}


def seeds(line: str):
    """Return a line without its « and », and what stands between them."""
    return line.replace("«", "").replace("»", ""), re.findall("«([^»]*)»", line)


def in_python(masks, text: str) -> str:
    """As Django does it."""
    return Masks(masks)(text)


def in_oniguruma(masks, text: str) -> str:
    """As Logstash's mutate does it with gsub."""
    for mask in masks:
        text = gsub(mask["pattern"], mask["replace"], text)
    return text


# Lines of tests have much in common.
@functools.lru_cache(1 << 16)
def gsub(pattern: str, replacement: str, text: str) -> str:
    if pattern not in _compiled:
        _compiled[pattern] = onigurumacffi.compile(pattern)
    found, place, parts = _compiled[pattern], 0, []
    while place <= len(text):
        match = found.search(text, place)
        if match is None:
            break
        parts += [text[place : match.start()], match.expand(replacement)]
        if match.end() == match.start():
            parts.append(text[match.end() : match.end() + 1])
        place = max(match.end(), match.start() + 1)
    return "".join(parts) + text[place:]
