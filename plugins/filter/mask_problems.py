"""Filter `mask_problems`."""

from __future__ import annotations

import re

# What a pattern may do at one place of a line before it gives up. A line of n characters costs n times as much at most.
MAX_STEPS = 5000
KEYS = {"name", "what", "pattern", "replace", "only_with", "must", "must_not"}


def mask_problems(masks):
    """Return what is wrong with masks of personal data (group_vars/all/masking.yml), a sentence each.

    A mask runs in each process of the application and in Logstash, on every line. One that means something else there,
    or that can be led to run for ever, is reported before anything changes.
    """
    if not isinstance(masks, list):
        return ["masks are a list, not %r" % (masks,)]
    found = []
    for number, mask in enumerate(masks, 1):
        if not isinstance(mask, dict) or not {"pattern", "replace"} <= set(mask):
            found.append("mask %d needs name, pattern and replace" % number)
            continue
        called = "mask %s" % mask.get("name", number)
        if set(mask) - KEYS:
            found.append("%s has %s, which no mask has" % (called, ", ".join(sorted(set(mask) - KEYS))))
        only = mask.get("only_with", [])
        if not isinstance(only, list) or not all(isinstance(text, str) and text for text in only):
            found.append("%s: only_with is a list of texts" % called)
        found += ["%s: %s" % (called, problem) for problem in problems_of(mask["pattern"], mask["replace"])]
    return found


def problems_of(pattern, replace):
    if not isinstance(pattern, str) or not isinstance(replace, str):
        return ["pattern and replace are texts"]
    text = pattern + replace
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        return ["%s is no regular expression: %s" % (pattern, error)]
    found = []
    # Python refuses each line for what it does not know there, and the two engines disagree on the rest.
    if "\\" in replace.replace("\\1", "") or re.search(r"\\1[0-9]", replace):
        found.append("%s has another backslash than \\1 in what replaces it" % pattern)
    if "${" in text:
        found.append("%s or what replaces it has ${, which Logstash takes for a variable" % pattern)
    # Text outside of classes that does not follow a backslash.
    bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "", pattern)
    if "^" in bare or "$" in bare or re.search(r"\\[ZN]|\[\[:|&&", pattern):
        found.append("%s has ^, $ or another form that means one thing to Python and another to Logstash" % pattern)
    if any(compiled.match(text) for text in "a0あ "):
        found.append("%s finds a single letter, and so every line" % pattern)
    if re.search(r"\\[dwsbDWSBhHRXpP]", text):
        found.append(r"%s has a class that the two engines disagree on: [0-9] for \d, and the like" % pattern)
    if re.search(r"\(\?P|\(\?>|[+*?}][+]|\(\?[a-z]+\)", text):
        found.append("%s has a form that not every engine has" % pattern)
    if '"' in text or "%{" in text or "\n" in text or pattern.endswith("\\") or replace.endswith("\\"):
        found.append("%s or what replaces it has a double quote, %%{ or an end of line, or ends with \\" % pattern)
    if compiled.groups > 1 or ("\\1" in replace) != (compiled.groups == 1):
        found.append("%s has one group where \\1 is in what replaces it, and none where it is not" % pattern)
    if compiled.match(""):
        found.append("%s finds an empty text, which is everywhere" % pattern)
    try:
        cost = steps(pattern)
    except (Endless, Unknown) as error:
        found.append("%s may run for ever: %s" % (pattern, error))
    else:
        if cost > MAX_STEPS:
            found.append("%s may take %d steps at one place, %d are the limit" % (pattern, cost, MAX_STEPS))
    return found


class Endless(Exception):
    """An unlimited repetition that is followed by something that can fail."""

    def __init__(self):
        super().__init__("an unlimited repetition is followed by more")


class Unknown(Exception):
    """A form whose cost nobody has counted."""


parser = re._parser
# A class is evaluated by what it has of these; a letter that they lack counts as itself.
ALPHABET = {chr(code) for code in range(128)} | set(
    "漢あァアヶヷーｦ一龠々０９Ａｚ＠＋：＝＞（）［］｛｝　、。；，．／－−–—―‐‑＿「」"
)
LOOKUPS = ("ASSERT", "ASSERT_NOT")


def steps(pattern: str) -> int:
    """Return how much a backtracking engine can do at one place at the most.

    Counted are all ways through the pattern, as if each failed at its very end. What keeps them few: a repetition of
    one class ends in one place only where what follows begins with none of its characters; of words that differ one
    alone fits; and nothing is tried again where all that follows may be left out.
    """
    return _sequence(list(parser.parse(pattern)), 0, [])[1]


def _sequence(items, flags, following):
    ways, cost = 1, 0
    for place, (code, value) in enumerate(items):
        here, spent = _item(str(code), value, items[place + 1 :] + following, flags)
        cost += ways * spent
        ways *= here
    return ways, cost


def _item(code, value, rest, flags):
    if code in ("LITERAL", "NOT_LITERAL", "IN", "ANY", "AT"):
        return 1, 1
    if code in LOOKUPS:
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
    if code != "MAX_REPEAT":
        raise Unknown(code)
    low, high, inner = value
    inner = list(inner)
    one_class = len(inner) == 1 and str(inner[0][0]) in ("LITERAL", "NOT_LITERAL", "IN", "ANY")
    if high == parser.MAXREPEAT:
        # It is possessive: matched text is not considered again.
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
        if name in LOOKUPS or name == "AT":
            # It may fail, so that the part before it has to backtrack.
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
            if kind not in ("NEGATE", "LITERAL", "RANGE"):
                raise Unknown(kind)
            if kind == "NEGATE":
                turned = True
            elif kind == "LITERAL":
                given.add(chr(what))
            else:
                given |= {letter for letter in ALPHABET if what[0] <= ord(letter) <= what[1]}
    if flags & re.IGNORECASE:
        given |= {letter.upper() for letter in given} | {letter.lower() for letter in given}
    return set(ALPHABET) - given if turned else given


class FilterModule:
    def filters(self):
        return {"mask_problems": mask_problems}
