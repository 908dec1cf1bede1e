"""Every case of the official numbers, family by family, through the runner that also checks other files of the same format."""

import pytest
from golden_cases import Golden, error, families
from worlds import GOLDEN

FILE = GOLDEN / "solvers_dev.json"
CASES = Golden(FILE).cases() if FILE.is_file() else []

pytestmark = pytest.mark.data


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_official_numbers(case):
    assert error(case) <= 1


@pytest.mark.skipif(not CASES, reason=f"no golden vectors at {GOLDEN}")
def test_a_wrong_result_fails():
    """The check itself: a case whose expected output is moved by ten tolerances is refused."""
    case = next(c for c in CASES if c["family"] == "unipc")
    found = list(families()[case["family"]](case))
    _, ours, official = found[0]
    assert (ours - official).abs().max() <= case["atol"] + case["rtol"] * official.abs().max()
    moved = official + 10 * (case["atol"] + case["rtol"] * official.abs())
    assert ((ours - moved).abs() > case["atol"] + case["rtol"] * moved.abs()).any()
