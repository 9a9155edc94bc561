"""`import tandem`: what it has, what it imports, and that its words are the command line's."""

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import tandem
from trainer.api.data_frames import Source
from trainer.api.start_options import PrepareOptions
from trainer.prepare.prepare_arguments import PrepareArguments

LIBRARIES = {"torch", "ray", "numpy", "pyarrow", "pandas", "duckdb", "tyro", "rich", "fsspec"}
OURS = {"trainer", "cluster", "losses", "embeddings"}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a process has imported after this."""
    told = "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    root = Path(tandem.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code + told], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import tandem", LIBRARIES | OURS),
        ("import tandem; tandem.Mistake", LIBRARIES | {"cluster"}),
        ("import tandem; tandem.Config", (LIBRARIES | {"cluster"}) - {"tyro"}),  # it names --track
        ("import tandem; tandem.Run", {"torch", "ray", "duckdb", "pandas", "cluster"}),
    ],
)
def test_a_name_imports_no_more_than_it_needs(code: str, absent: set[str]) -> None:
    assert modules_after(code) & absent == set()


def test_all_names_are_there_and_no_others() -> None:
    for name in tandem.__all__:
        assert getattr(tandem, name) is not None
    assert dir(tandem) == sorted(tandem.__all__) and len(tandem.__all__) <= 10
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        getattr(tandem, "trian")  # noqa: B009  as a name, mypy would refuse it


def test_every_name_is_documented() -> None:
    shown = [getattr(tandem, name) for name in tandem.__all__ if name != "__version__"]
    assert all(inspect.getdoc(each) for each in shown)
    public = [f for name, f in inspect.getmembers(tandem.Run) if not name.startswith("_")]
    assert all(inspect.getdoc(each) for each in public)


def test_prepare_takes_the_flags_of_the_command() -> None:
    """Names and types are those of PrepareArguments, tables and any sequence beside them."""
    fields = {
        field.name: get_type_hints(PrepareArguments)[field.name]
        for field in dataclasses.fields(PrepareArguments)
        if field.name not in ("source", "out")
    }
    sequences: dict[str, Any] = {
        "items": Source | None,
        "users": Source | None,
        "item_attributes": Sequence[str] | None,
        "user_attributes": Sequence[str] | None,
        **dict.fromkeys(("category", "number", "buckets", "context"), Sequence[str]),
        **dict.fromkeys(
            ("item_vectors", "user_vectors", "event_weights", "item_columns", "user_columns"),
            Sequence[str],
        ),
    }
    assert get_type_hints(PrepareOptions) == fields | sequences
