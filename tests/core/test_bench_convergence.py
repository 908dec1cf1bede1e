"""The bench of convergence: when a curve is below a level to stay."""

import pytest

from fewstep.bench.convergence import METHODS, reached
from fewstep.bench.distill import plan
from fewstep.bench.distill_worlds import Ring


@pytest.mark.parametrize(
    ("values", "level", "wanted"),
    [
        ([3, 2, 1], 2.5, 20),
        ([3, 2, 1], 3.5, 10),
        ([3, 1, 2, 1], 1.5, 40),
        ([1, 1, 2], 1.5, None),
        ([2, 2, 2], 2, None),
        ([], 1, None),
    ],
)
def test_a_level_is_reached_from_where_the_curve_stays_below_it(values, level, wanted):
    assert reached([(10 * (i + 1), v) for i, v in enumerate(values)], level) == wanted


def test_methods_are_recipes_of_one_length():
    assert {f"ring_{m}" for m in METHODS} <= plan(Ring()).keys()
