"""A short soak; `python -m tests.soak 200 DATA OUT` is the long one, of all kinds."""

from pathlib import Path

import pytest

from tests.datasets import make_dataset
from tests.soak import KINDS, Kind, soak

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.mark.parametrize("kinds", [("kill",), tuple(KINDS)])
def test_twenty_random_faults_lose_nothing(kinds: tuple[Kind, ...], tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", users=80, items=60, rows=1500)
    figures = soak(20, tmp_path / "data", tmp_path, kinds)
    assert figures["starts_with_progress"] > 5
    assert figures["ended_by_the_launcher"] <= 5
