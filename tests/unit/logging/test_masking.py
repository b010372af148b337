"""Masks of personal data in logs: one list of patterns for Python at the source and for Oniguruma in Logstash."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from mask_problems import MAX_STEPS, Endless, mask_problems, steps
from masked import in_oniguruma, in_python, seeds

ROOT = Path(__file__).resolve().parents[3]
MASKS = yaml.safe_load((ROOT / "group_vars/all/masking.yml").read_text(encoding="utf-8"))["log_masks"]
IDS = [mask["name"] for mask in MASKS]


@pytest.mark.parametrize("mask", MASKS, ids=IDS)
def test_seeded_values_are_masked_and_the_rest_is_kept(mask):
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
def test_only_with_skips_no_matching_line(mask):
    """A text that a line must contain to be processed is part of every match of the pattern."""
    for line in mask["must"]:
        if mask.get("only_with"):
            found = re.search(mask["pattern"], seeds(line)[0]).group()
            assert any(text in found for text in mask["only_with"])


# --- the bound -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS, ids=IDS)
def test_the_cost_of_a_pattern_has_a_bound(mask):
    assert steps(mask["pattern"]) <= MAX_STEPS


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", ".*x", "[a-z]{1,64}[a-z]{1,64}[a-z]{1,64}!", "a+b", "(?:a{1,20}){1,20}b"]
)
def test_the_bound_detects_patterns_with_exponential_time(pattern):
    try:
        assert steps(pattern) > MAX_STEPS
    except Endless:
        pass


def test_the_masks_of_this_repository_have_no_problem():
    assert mask_problems(MASKS) == []


@pytest.mark.parametrize(
    ("mask", "output"),
    [
        ({"pattern": "(a+)+b", "replace": r"\1"}, "may run for ever"),
        ({"pattern": "[a-z]{1,64}[a-z]{1,64}[a-z]{1,64}!", "replace": "x"}, "steps at one place"),
        ({"pattern": "(a", "replace": "x"}, "is no regular expression"),
        ({"pattern": r"P-\d{8}", "replace": "x"}, "a class that the two engines disagree on"),
        ({"pattern": "(?>a)b", "replace": "x"}, "a form that not every engine has"),
        ({"pattern": 'a"b', "replace": "x"}, "a double quote"),
        ({"pattern": "(a)b", "replace": "x"}, "has one group where"),
        ({"pattern": "ab", "replace": r"\1"}, "has one group where"),
        ({"pattern": "a{0,3}", "replace": "x"}, "finds an empty text"),
        ({"pattern": "ab", "replace": r"\2"}, "another backslash"),
        ({"pattern": "ab", "replace": r"\q"}, "another backslash"),
        ({"pattern": "ab", "replace": r"\g<0>"}, "another backslash"),
        ({"pattern": "(a)b", "replace": r"\10"}, "another backslash"),
        ({"pattern": "ab", "replace": "${HOME}"}, "Logstash takes for a variable"),
        ({"pattern": "^ab", "replace": "x"}, "one thing to Python"),
        ({"pattern": "ab$", "replace": "x"}, "one thing to Python"),
        ({"pattern": "[[:alpha:]]b", "replace": "x"}, "one thing to Python"),
        ({"pattern": ".", "replace": ""}, "so every line"),
        ({"pattern": ".+", "replace": "x"}, "so every line"),
        ({"pattern": "ab", "replace": "x", "only_with": None}, "only_with is a list"),
        ({"pattern": "ab", "replace": "x", "only_with": "ab"}, "only_with is a list"),
        ({"pattern": "ab", "replace": "x", "only_with": [5]}, "only_with is a list"),
        ({"pattern": "ab"}, "needs name, pattern and replace"),
        ({"pattern": "ab", "replace": "x", "only": ["a"]}, "has only, which no mask has"),
        ({"pattern": "(?:a|b)(?(1)c)", "replace": "x"}, "mask own: "),
    ],
)  # fmt: skip
def test_a_mask_of_a_site_is_evaluated_before_it_is_used(mask, output):
    found = mask_problems([{"name": "own", **mask}])
    assert any(output in sentence for sentence in found), found


def test_the_mask_in_the_documentation_is_valid():
    assert mask_problems([{"name": "own", "pattern": "P-[0-9]{8}(?![0-9])", "replace": "[patient]"}]) == []
    assert mask_problems([{"name": "own", "pattern": r"[$^]P[0-9]{8}\$", "replace": "[patient]"}]) == []
    assert mask_problems("x") and mask_problems(["x"])
