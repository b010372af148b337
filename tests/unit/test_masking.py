"""What masks personal data in logs: one list of patterns for Python at the source and for Oniguruma in Logstash."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "shiftmaster_monitoring"))
MASKS = yaml.safe_load((ROOT / "group_vars/all/masking.yml").read_text(encoding="utf-8"))["log_masks"]
IDS = [mask["name"] for mask in MASKS]
# What a pattern may do at one place of a line before it gives up. A line of n characters costs n times as much at most.
MAX_STEPS = 5000

from masked import in_oniguruma, in_python, seeds  # noqa: E402


@pytest.mark.parametrize("mask", MASKS, ids=IDS)
def test_what_has_to_vanish_vanishes_and_the_rest_stays(mask):
    for engine in (in_python, in_oniguruma):
        for alone in ([mask], MASKS):
            for line in mask["must"]:
                text, values = seeds(line)
                assert values, line
                found = engine(alone, text)
                assert not [value for value in values if value in found], found
            for line in mask["must_not"]:
                assert engine(alone, line) == line


@pytest.mark.parametrize("mask", MASKS, ids=IDS)
def test_both_engines_do_the_same(mask):
    lines = [seeds(line)[0] for other in MASKS for line in other["must"]]
    lines += [line for other in MASKS for line in other["must_not"]]
    lines += [line.upper() for line in lines] + ["x" * 50 + line + "x" * 50 for line in lines]
    for line in lines:
        assert in_python([mask], line) == in_oniguruma([mask], line)


@pytest.mark.parametrize("mask", MASKS, ids=IDS)
def test_masking_twice_is_masking_once(mask):
    """Each line meets both walls."""
    for line in mask["must"]:
        once = in_python(MASKS, seeds(line)[0])
        assert in_oniguruma(MASKS, once) == once


@pytest.mark.parametrize("mask", MASKS, ids=IDS)
def test_a_pattern_means_the_same_everywhere(mask):
    text = mask["pattern"] + mask["replace"]
    assert not re.search(r"\\[dwsbDWSBhHRXpP]", text), "a class that engines disagree on"
    assert not re.search(r"\(\?P|\(\?>|[+*?}][+]|\(\?[a-z]+\)", text), "a form that not every engine has"
    assert '"' not in text and "%{" not in text and "\n" not in text and not text.endswith("\\"), "Logstash's quoting"
    assert re.compile(mask["pattern"]).groups <= 1
    assert ("\\1" in mask["replace"]) == (re.compile(mask["pattern"]).groups == 1)


@pytest.mark.parametrize("mask", MASKS, ids=IDS)
def test_only_with_spares_no_line(mask):
    """A text that a line must have to be looked at is part of whatever the pattern finds."""
    for line in mask["must"]:
        if mask.get("only_with"):
            found = re.search(mask["pattern"], seeds(line)[0]).group()
            assert any(text in found for text in mask["only_with"])


# --- the bound -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS, ids=IDS)
def test_what_a_pattern_costs_has_a_bound(mask):
    assert steps(mask["pattern"]) <= MAX_STEPS


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", ".*x", "[a-z]{1,64}[a-z]{1,64}[a-z]{1,64}!", "a+b", "(?:a{1,20}){1,20}b"]
)
def test_the_bound_finds_what_runs_away(pattern):
    try:
        assert steps(pattern) > MAX_STEPS
    except Endless:
        pass


class Endless(Exception):
    """A repetition without an end, behind which something can fail."""


parser = re._parser
ALPHABET = sorted({chr(code) for code in range(128)} | set("".join(mask["pattern"] for mask in MASKS)) | set("漢あア"))
LOOKS = ("ASSERT", "ASSERT_NOT")


def steps(pattern: str) -> int:
    """Return how much a backtracking engine can do at one place at the most.

    Counted are all ways through the pattern, as if each failed at its very end. What keeps them few: a repetition of
    one class ends in one place only where what follows begins with none of its characters; of words that differ one
    alone fits; and nothing is tried again where all that follows may be left out.
    """
    return _sequence(list(parser.parse(pattern)), 0, [])[1]


def _sequence(items, flags, behind):
    ways, cost = 1, 0
    for place, (code, value) in enumerate(items):
        here, spent = _item(str(code), value, items[place + 1 :] + behind, flags)
        cost += ways * spent
        ways *= here
    return ways, cost


def _item(code, value, rest, flags):
    if code in ("LITERAL", "NOT_LITERAL", "IN", "ANY", "AT"):
        return 1, 1
    if code in LOOKS:
        return 1, 1 + _sequence(list(value[1]), flags, [])[1]
    if code == "SUBPATTERN":
        return _sequence(list(value[3]), flags | value[1], rest)
    if code == "BRANCH":
        branches = [list(branch) for branch in value[1]]
        found = [_sequence(branch, flags, rest) for branch in branches]
        heads = [_head(branch, flags) for branch in branches]
        ways = [
            sum(other[0] for other, head in zip(found, heads) if not _exclusive(heads[place], head))
            for place in range(len(branches))
        ]
        return max(ways), sum(cost for _ways, cost in found)
    assert code == "MAX_REPEAT", code
    low, high, inner = value
    inner = list(inner)
    one_class = len(inner) == 1 and str(inner[0][0]) in ("LITERAL", "NOT_LITERAL", "IN", "ANY")
    if high == parser.MAXREPEAT:
        # It takes what it can and is never asked to give back; what it took is not looked at again.
        if not (one_class and not rest):
            raise Endless
        return 1, 1
    first, empty = _first(rest, flags)
    if one_class:
        certain = empty or not (_first(inner, flags)[0] & first)
        return (1 if certain else high - low + 1), high
    again = [(parser.MAX_REPEAT, (0, 1, inner))] if high > 1 else []
    ways, cost = _sequence(inner, flags, again + rest)
    if empty:
        return 1, high * cost
    if low == 0 and not (_first(inner, flags)[0] & first) and not _first(inner, flags)[1]:
        low = 1  # Where it could begin it is not left out.
    return sum(ways**count for count in range(low, high + 1)), sum(ways**count * cost for count in range(high))


def _head(items, flags):
    """Return the characters of each place that a sequence surely begins with."""
    found = []
    for code, value in items:
        name = str(code)
        if name == "SUBPATTERN":
            inner = _head(list(value[3]), flags | value[1])
            found += inner
            if len(inner) != len(value[3]):
                break
        elif name in ("LITERAL", "NOT_LITERAL", "IN", "ANY"):
            found.append(_class(name, value, flags))
        else:
            break
    return found


def _exclusive(one, other) -> bool:
    return any(not (mine & theirs) for mine, theirs in zip(one, other))


def _first(items, flags):
    """Return the characters that a sequence can begin with, and whether all of it may be left out."""
    found = set()
    for code, value in items:
        name = str(code)
        if name in LOOKS or name == "AT":
            # It may fail, so that what stands before it is asked to give back.
            return found | set(ALPHABET), False
        if name == "SUBPATTERN":
            more, empty = _first(list(value[3]), flags | value[1])
        elif name == "BRANCH":
            parts = [_first(list(branch), flags) for branch in value[1]]
            more, empty = set().union(*(part for part, _ in parts)), any(part for _, part in parts)
        elif name == "MAX_REPEAT":
            more, empty = _first(list(value[2]), flags)
            empty = empty or value[0] == 0
        else:
            more, empty = _class(name, value, flags), False
        found |= more
        if not empty:
            return found, False
    return found, True


def _class(name, value, flags):
    if name == "ANY":
        return set(ALPHABET)
    if name in ("LITERAL", "NOT_LITERAL"):
        given, turned = {chr(value)}, name == "NOT_LITERAL"
    else:
        given, turned = set(), False
        for kind, what in value:
            kind = str(kind)
            assert kind in ("NEGATE", "LITERAL", "RANGE"), kind
            if kind == "NEGATE":
                turned = True
            elif kind == "LITERAL":
                given.add(chr(what))
            else:
                given |= {letter for letter in ALPHABET if what[0] <= ord(letter) <= what[1]}
    if flags & re.IGNORECASE:
        given |= {letter.upper() for letter in given} | {letter.lower() for letter in given}
    # A letter that the alphabet lacks counts as itself.
    return set(ALPHABET) - given if turned else given
