"""Our packages win over foreign ones of the same name (`trainer` and `losses` are common names)."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "name", ["cluster", "trainer", "trainer.data", "trainer.retrieval", "embeddings", "losses"]
)
def test_package_is_ours(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    expected = ROOT.joinpath(*name.split("."), "__init__.py")
    assert Path(module.__file__).resolve() == expected
