"""tests/offenders.py: one test for many items names every one that is wrong."""

from __future__ import annotations

import offenders
import pytest


@offenders.each(["good", "bad", "worse"], lambda item: f"<{item}>")
def check(item, tmp_path):
    assert tmp_path == "fixture"
    assert item == "good", f"{item} is not good"


def test_every_offender_is_named_and_nothing_else():
    with pytest.raises(AssertionError) as error:
        check(tmp_path="fixture")
    lines = [line for line in str(error.value).splitlines() if line.startswith("<")]
    assert [line.split(">")[0] for line in lines] == ["<bad", "<worse"]
    assert "2 of 3" in str(error.value) and "worse is not good" in str(error.value)


def reciprocal_of_little(number):
    assert number < 2
    return 1 / number


def test_another_error_of_one_item_hides_no_other():
    with pytest.raises(AssertionError, match=r"(?s)0.*ZeroDivisionError.*3"):
        offenders.check_each([0, 1, 3], reciprocal_of_little)


def test_an_empty_list_does_not_pass():
    with pytest.raises(AssertionError):
        offenders.check_each([], print)
