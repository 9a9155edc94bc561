"""Loss curves of six small runs, against those recorded in curves.json."""

import json

import pytest

from tests.distributed import run_ranks
from tests.golden.runs import CURVES, RUNS, curves_of, machine

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def now() -> dict[str, list[str]]:
    (curves,) = run_ranks(1, curves_of, tuple(RUNS))
    return curves


@pytest.mark.parametrize("name", RUNS)
def test_the_curve_is_the_recorded_one(name: str, now: dict[str, list[str]]) -> None:
    """Bit by bit where it was recorded with these releases and kernels, else to rounding."""
    recorded = json.loads(CURVES.read_text())
    if machine() in recorded:
        assert now[name] == recorded[machine()][name]
        return
    other = next(iter(recorded.values()))[name]
    assert list(map(float.fromhex, now[name])) == pytest.approx(
        list(map(float.fromhex, other)), rel=1e-3
    )
