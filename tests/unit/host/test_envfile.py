"""envfile reads and writes what systemd reads; the expectations were taken from systemd 257."""

from __future__ import annotations

import pytest
from ansible.module_utils.shiftmaster.host import envfile

AWKWARD = {
    "PLAIN": "plain",
    "SPACES": "a b",
    "QUOTES": "q\"q'q",
    "BACKSLASH": "back\\slash",
    "SHELL": "$HOME `x` ${y} %n",
    "LINES": "line1\nline2=x\n#three",
    "EMPTY": "",
    "EDGES": "  lead and trail  ",
    "COMMENT": "#none;",
    "JAPANESE": "日本語",
    "TAB": "\there\t",
    "END": "end\\",
    "CONTINUED": "a\\\nb",
    "URL": "redis://u:p%40w@h:6379/1?x=y",
}


def test_every_value_is_read_back_unchanged():
    assert envfile.parse(envfile.render(AWKWARD)) == AWKWARD


def test_a_file_is_sorted_and_quoted():
    assert envfile.render({"B": "x$y", "A": "1"}) == 'A="1"\nB="x\\$y"\n'


@pytest.mark.parametrize(
    "text, wanted",
    [
        ('A=foo"bar"\n', 'foo"bar"'),
        ('A="x"y\n', "xy"),
        ("A='x' \"y\"\n", "xy"),
        ("A = spaced  \n", "spaced"),
        ("A=a\\\nb\n", "ab"),
        ("A='it'\\''s'\n", "it''s'"),
        ('A="a\\nb"\n', "a\\nb"),
        ("A=a\\nb\n", "anb"),
        ("A=x # no comment\n", "x # no comment"),
        ("A='$x \"y\" \\z'\n", '$x "y" \\z'),
        ('A="multi\nline"\n', "multi\nline"),
        ("A=a'b c'd\n", "a'b c'd"),
        ("A=\n", ""),
        ("A=no newline", "no newline"),
        ("A=1\nA=2\n", "2"),
    ],
)
def test_manual_edits_are_read_as_systemd_reads_them(text, wanted):
    assert envfile.parse(text) == {"A": wanted}


def test_comments_and_lines_that_are_no_assignment_are_passed_over():
    assert envfile.parse("# A=1\n; B=2\n# it's = 'a quote\n\nnothing\nexport C=3\n9D=4\nE=5\n") == {"E": "5"}


@pytest.mark.parametrize("environment", [{"A B": "x"}, {"1A": "x"}, {"": "x"}, {"A": 1}, {"A": None}, {"A": "x\0y"}])
def test_values_that_no_environment_can_contain_are_rejected(environment):
    with pytest.raises(ValueError):
        envfile.render(environment)
