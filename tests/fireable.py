"""Alerts' expressions without their thresholds: what is left gives series where the alert could ever fire.

A selector may have series and the expression none all the same: labels on both sides of `and` or of a division that
never meet, a sum that has lost the label which a text names.
"""

from __future__ import annotations

import re

import alert_tests

LABELS = re.compile(r"\$labels\.(\w+)")
SCALAR = re.compile(r"\s*-?(\d|Inf\b)")
MATCHING = re.compile(r"\s*(on|ignoring)\s*\([^)]*\)")


def closing(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at start."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError(text)


def tokens(expression: str):
    return list(alert_tests.TOKENS.finditer(expression))


def branches(expression: str) -> list[str]:
    """Its parts between `or`, which each have to be able to fire."""
    found, start = [], 0
    for match in tokens(expression):
        before = expression[: match.start()]
        outside = re.sub(r'"(?:[^"\\]|\\.)*"', "", before)
        if match[0] == "or" and outside.count("(") == outside.count(")"):
            found.append(expression[start : match.start()])
            start = match.end()
    return [part.strip() for part in [*found, expression[start:]]]


def exempted(expression: str) -> list[tuple[int, int]]:
    """The expression after `unless`: it has series where the alert is not to fire."""
    found = []
    for match in tokens(expression):
        if match[0] == "unless":
            start = match.end()
            matching = MATCHING.match(expression, start)
            start = matching.end() if matching else start
            start += len(expression[start:]) - len(expression[start:].lstrip())
            if expression[start] == "(":
                found.append((start, closing(expression, start)))
    return found


def without_thresholds(expression: str) -> str:
    """Each comparison holds for every number; for absent(), the series."""
    spared, text, end = exempted(expression), "", 0
    for match in tokens(expression):
        if match.lastgroup != "comparison" or any(start <= match.start() < stop for start, stop in spared):
            continue
        scalar = SCALAR.match(expression, match.end())
        text += expression[end : match.start()] + (">= -Inf" if scalar else ">= bool")
        end = match.end()
        if scalar:
            end = re.compile(r"\s*-?(?:[\d.]+|Inf)").match(expression, end).end()
    text += expression[end:]
    # Missing series: those of both sides, which have to meet.
    text = re.sub(r"\bunless (on \(([^)]*)\) group by \(\2\) \()", r"and \1", text)
    while found := re.search(r"\babsent\(", text):
        stop = closing(text, found.end() - 1)
        inner = text[found.end() : stop - 1]
        labels = ", ".join(re.findall(r'(\w+)="', inner))
        text = f"{text[: found.start()]}group by ({labels}) ({inner}){text[stop:]}"
    return text


def queries_of(rule: dict) -> dict[str, set[str]]:
    """{expression without thresholds: labels that its series must have} of an alert, one for each of its branches."""
    named = {label for text in rule["annotations"].values() for label in LABELS.findall(text)}
    return {without_thresholds(branch): named - set(rule["labels"]) for branch in branches(rule["expr"])}
