"""Both schedules start from everything and end at 1/rho."""

import itertools

import pytest

from synflow_lib.pruning import SCHEDULES


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("compression", [1.0, 10.0, 1e5])
def test_a_schedule_falls_from_one_to_the_inverse_compression(schedule, compression):
    kept = [SCHEDULES[schedule](k, 20, compression) for k in range(21)]
    assert kept[0] == 1 and kept[-1] == pytest.approx(1 / compression, rel=1e-9)
    assert all(later <= earlier for earlier, later in itertools.pairwise(kept))


def test_the_exponential_schedule_removes_the_same_share_each_time_and_the_linear_the_same_number():
    exponential, linear = ([SCHEDULES[name](k, 10, 100) for k in range(11)] for name in ("exponential", "linear"))
    shares = [later / earlier for earlier, later in itertools.pairwise(exponential)]
    steps = [earlier - later for earlier, later in itertools.pairwise(linear)]
    assert max(shares) == pytest.approx(min(shares), rel=1e-12) and max(steps) == pytest.approx(min(steps), rel=1e-12)
