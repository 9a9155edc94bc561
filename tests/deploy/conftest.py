"""A small dataset."""

from pathlib import Path

import pytest

from tests.datasets import make_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("deploy") / "data"
    make_dataset(path, users=80, items=60, rows=1500)
    return str(path)
