"""Tables in memory as sources: the dataset is that of the same rows in a file."""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tandem
from trainer.data.vectors import Vectors

ROWS = 600


def plays() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "listener": [f"u{row * 7 % 30}" for row in range(ROWS)],
            "track": [row * 11 % 41 for row in range(ROWS)],
            "at": range(ROWS),
        }
    )


TRACKS = pd.DataFrame({"track": range(41), "title": [f"song {row}" for row in range(41)]})
COLUMNS: Any = {"user_column": "listener", "item_column": "track", "timestamp_column": "at"}


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("file")
    pq.write_table(pa.Table.from_pandas(plays()), folder / "plays.parquet")
    pq.write_table(pa.Table.from_pandas(TRACKS), folder / "tracks.parquet")
    made = tandem.prepare(
        folder / "plays.parquet", folder / "data", items=folder / "tracks.parquet", **COLUMNS
    )
    return made.digest


class OnlyArrow:
    """A table of a library that we have never heard of."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "given",
    [
        lambda frame: frame,
        lambda frame: frame.set_index(frame.index * 2 + 1),  # pandas makes a column of it
        pa.Table.from_pandas,
        lambda frame: OnlyArrow(pa.Table.from_pandas(frame)),
        lambda frame: pa.Table.from_pandas(frame).to_reader(max_chunksize=100),
    ],
    ids=["pandas", "index", "pyarrow", "other", "batches"],
)
def test_a_table_is_as_its_file(given: Any, digest: str, tmp_path: Path) -> None:
    made = tandem.prepare(given(plays()), tmp_path / "data", items=TRACKS, **COLUMNS)
    assert made.digest == digest and (made.num_users, made.num_items) == (30, 41)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"user_column": "lisener"}, "the table 'source' has no column 'lisener'"),
        ({"user_colum": "listener"}, "unknown field user_colum: did you mean 'user_column'"),
        ({"item_attributes": 3}, "item_attributes=3: must be a list"),
        ({"items": pd.DataFrame({"track": [1, 1]})}, "the table 'items' has 1 ids more than once"),
        ({"test_share": 2.0}, "--test-share 2 must lie between 0 and 1"),
    ],
)
def test_mistakes_name_the_table(options: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(tandem.Mistake) as told:
        tandem.prepare(plays(), tmp_path / "data", **{**COLUMNS, **options})
    assert words in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "data").exists()


def test_a_table_that_arrow_has_no_type_for(tmp_path: Path) -> None:
    mixed = pd.DataFrame({"listener": [1, "x", object()], "track": [1, 2, 3]})
    with pytest.raises(tandem.Mistake, match="source: the table cannot be read as Arrow"):
        tandem.prepare(mixed, tmp_path / "data", user_column="listener", item_column="track")


class InANotebook:
    """A connection as it is in Jupyter without ipywidgets: no setting of progress can be set."""

    def __init__(self, database: str) -> None:
        self._connection = CONNECT(database)

    def execute(self, statement: str, *more: Any) -> Any:
        if "progress_bar" in statement:
            raise duckdb.InvalidInputException("required package 'ipywidgets' is missing")
        return self._connection.execute(statement, *more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


CONNECT = duckdb.connect


def test_a_notebook_without_widgets(
    digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duckdb, "connect", InANotebook)
    made = tandem.prepare(plays(), tmp_path / "data", items=TRACKS, **COLUMNS)
    assert made.digest == digest


def test_vectors_numbers_context_kinds_and_weights_of_tables(tmp_path: Path) -> None:
    """What a frame holds as objects, numpy arrays among them, comes through."""
    random = np.random.default_rng(0)
    rows = plays()
    rows["did"] = np.where(rows.index % 3 == 0, "buy", "view")
    rows["worth"] = random.uniform(0.5, 2, ROWS)
    rows["device"] = pd.Categorical(np.where(rows.index % 2, "tv", "phone"))
    rows["waited"] = random.normal(size=ROWS)
    vectors = random.normal(size=(41, 8)).astype(np.float16)
    tracks = TRACKS.assign(text=list(vectors.astype(np.float32)), price=random.gamma(1, size=41))
    tracks.loc[3, "text"] = None
    people = pd.DataFrame(
        {
            "listener": [f"u{n}" for n in range(30)],
            "face": [list(map(float, each)) for each in random.integers(0, 9, (30, 3))],
        }
    )
    made = tandem.prepare(
        rows,
        tmp_path / "data",
        items=tracks,
        users=pa.Table.from_pandas(people),
        event_column="did",
        event_weights=("buy=5", "view=1"),
        weight_column="worth",
        context=("device", "waited"),
        number=("price",),
        **COLUMNS,
    )
    assert [(each.name, each.weight) for each in made.kinds] == [("buy", 5), ("view", 1)]
    assert made.has_weights
    assert {key: each.kind for key, each in made.attributes.items()} == {
        "item.text": "vector",
        "item.price": "number",
        "user.face": "vector",
        "context.device": "single",
        "context.waited": "number",
    }
    held = Vectors(made, made.attributes["item.text"]).take(np.arange(41))
    ids = pq.read_table(made.file("items.parquet"))["raw_id"].to_numpy()
    vectors[3] = 0
    assert (held == vectors[ids]).all()


def test_a_polars_frame(digest: str, tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.from_arrow(pa.Table.from_pandas(plays()))
    assert tandem.prepare(frame, tmp_path / "data", items=TRACKS, **COLUMNS).digest == digest
