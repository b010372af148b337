"""One percentile, by the nearest rank, wherever response times are evaluated."""

from __future__ import annotations

import pytest
from ansible.module_utils.shiftmaster.diagnosis import logs
from ansible.module_utils.shiftmaster.host import percentile
from ansible.module_utils.shiftmaster.release import watch


def test_the_nearest_rank():
    values = list(range(100, 0, -1))
    assert [percentile.percentile(values, share) for share in (0, 0.07, 0.5, 0.95, 0.951, 1)] == [1, 7, 50, 95, 96, 100]


@pytest.mark.parametrize("count", range(1, 101))
def test_at_least_the_share_does_not_exceed_it_and_no_smaller_value_will_do(count):
    values = list(range(count))
    for percent in (1, 5, 50, 95, 99, 100):
        found = percentile.percentile(values, percent / 100)
        assert 100 * (found + 1) >= percent * count > 100 * found


def test_zero_values_and_one_value():
    assert percentile.percentile([], 0.95) == 0.0 and percentile.percentile([7], 0.95) == 7


def test_the_watch_and_the_diagnosis_use_the_same():
    assert watch.percentile is logs.percentile is percentile.percentile
