"""Data of every kind appended in pieces: what prepare makes of all at once, and nobody forgotten.

Kinds, weights, context, attributes, vectors, titles and shared rows; pieces are cut at random.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.windows import DAY, START, make
from trainer.data.schema import Dataset
from trainer.data.vectors import Vectors
from trainer.prepare.trim import forgotten_rows, trim

DAYS, USERS, ITEMS = 5, 18, 30
FLAGS: dict[str, Any] = {
    "event_column": "what",
    "event_weights": ("buy=10", "view=0.5", "hide=negative", "ping=drop"),
    "weight_column": "worth",
    "context": ("hour", "price"),
    "split": "leave-last-out",
    "window": "day",
    "number": ("age", "price"),
    "min_count": 6,
    "min_user_count": 12,
}


ONLY_ONCE = "an-hour-of-one-row"


def user_name(user: int) -> str:
    return f"person-{user:03d}-of-the-log"


def secret_of(user: int) -> str:
    """An attribute that nobody else has."""
    return f"lives-at-number-{user:03d}"


def vector_of(row: int, width: int = 3) -> list[float]:
    return [row + 0.5, -row - 0.25, 0.125 * row][:width]


def make_log(seed: int, rows: int = 700) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {
            "user": user_name(int(random.integers(USERS))),
            "item": int(ITEMS * random.random() ** 2),
            "time": START + int(random.integers(DAYS)) * DAY + n,
            "what": str(random.choice(["buy", "view", "hide", "ping"], p=[0.5, 0.3, 0.1, 0.1])),
            "worth": float(random.integers(0, 4)),
            "hour": f"h{random.integers(24)}" if n else ONLY_ONCE,
            "price": None if random.random() < 0.1 else float(random.integers(1000)),
        }
        for n in range(rows)
    ]


def side_tables(log: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    """What is known of the items and users of some rows."""
    items = sorted({row["item"] for row in log})
    users = sorted({row["user"] for row in log})
    numbers = [int(name.split("-")[1]) for name in users]
    text = [None if each % 7 == 3 else vector_of(each) for each in items]
    tables = {
        "items": {
            "item": items,
            "title": [f"title {each}" for each in items],
            "genre": [f"g{each % 4}" for each in items],
            "tags": [[f"t{each % 3}", f"t{each % 5}"] for each in items],
            "text": pa.array(text, pa.list_(pa.float32())),
        },
        "users": {
            "user": users,
            "age": [20.0 + each for each in numbers],
            "home": [secret_of(each) for each in numbers],
            "likes": [["music", secret_of(each).replace("lives", "likes")] for each in numbers],
            "taste": pa.array([vector_of(100 + n, 2) for n in numbers], pa.list_(pa.float32())),
        },
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return {name: str(folder / f"{name}.parquet") for name in tables}


def prepared(log: list[dict[str, Any]], cuts: list[int], folder: Path) -> Dataset:
    """The log in pieces that end before the days in `cuts`."""
    folder.mkdir()
    for first, stop in zip([0, *cuts], [*cuts, DAYS], strict=True):
        piece = [row for row in log if first <= (row["time"] - START) // DAY < stop]
        pq.write_table(pa.Table.from_pylist(piece), folder / "piece.parquet")
        given = {"append": True} if first else FLAGS
        made = make(
            folder / "piece.parquet", folder / "data", **given, **side_tables(piece, folder)
        )
    return made


def vocabulary_of(dataset: Dataset) -> dict[tuple[str, str], dict[int, str]]:
    found: dict[tuple[str, str], dict[int, str]] = {}
    for row in pq.read_table(dataset.file("attributes.parquet")).to_pylist():
        found.setdefault((row["side"], row["name"]), {})[row["row"]] = row["value"]
    return found


def entities_of(dataset: Dataset, side: str) -> dict[Any, dict[str, Any]]:
    """By raw id all that the dataset holds of a user or item, rows of vocabularies as values."""
    words = vocabulary_of(dataset)
    shared = dataset.table_rows[side].shared
    vectors = {
        key.partition(".")[2]: Vectors(dataset, each)
        for key, each in dataset.attributes.items()
        if key.startswith(f"{side}.") and each.kind == "vector"
    }
    found = {}
    for row in pq.read_table(dataset.file(f"{side}s.parquet")).to_pylist():
        for (of, name), values in words.items():
            if of == side:
                held = row[name]
                row[name] = (
                    sorted(values[each] for each in held)
                    if isinstance(held, list)
                    else values[held]
                )
        row |= {name: each.take(np.array([row[side]])).tolist() for name, each in vectors.items()}
        row["has_own_row"] = row.pop("table_row") >= shared
        del row[side]
        found[row.pop("raw_id")] = {name: repr(value) for name, value in row.items()}
    return found


def events_of(dataset: Dataset) -> list[Counter[tuple[Any, ...]]]:
    """By window its events, carried ones too, by what they say."""
    raw = {
        side: pq.read_table(dataset.file(f"{side}s.parquet"))["raw_id"].to_pylist()
        for side in ("user", "item")
    }
    hours = vocabulary_of(dataset)["context", "hour"]
    found = []
    for number, window in enumerate(dataset.windows):
        events: Counter[tuple[Any, ...]] = Counter()
        for path in map(dataset.file, window.files):
            for row in pq.read_table(path).to_pylist():
                events[
                    raw["user"][row["user"]],
                    raw["item"][row["item"]],
                    row["time"],
                    dataset.kinds[row["kind"]].name,
                    row["split"] if number == len(dataset.windows) - 1 else 0,
                    row.get("carried", 0),
                    row["weight"],
                    hours[row["context.hour"]],
                    repr(row["context.price"]),
                ] += 1
        found.append(events)
    return found


@pytest.mark.parametrize("seed", range(2))
def test_in_pieces_is_at_once(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    cuts = sorted(random.choice(np.arange(1, DAYS), 1 + seed % 3 + 1, replace=False).tolist())
    log = make_log(seed)
    once, pieces = prepared(log, [], tmp_path / "once"), prepared(log, cuts, tmp_path / "pieces")
    one, other = events_of(once), events_of(pieces)
    assert len(one) == DAYS and one == other
    for side in ("item", "user"):
        assert entities_of(once, side) == entities_of(pieces, side)
        assert once.table_rows[side].own == pieces.table_rows[side].own > 0
    assert once.splits == pieces.splits and once.kinds == pieces.kinds
    assert once.dropped == pieces.dropped


@pytest.mark.parametrize("late", [False, True])
def test_nobody_forgotten_is_in_any_file(late: bool, tmp_path: Path) -> None:
    """Ids, attributes, vectors and events; in what is packed, too, and in what comes afterwards."""
    log = make_log(7)
    gone, kept = [3, 11], 5
    log[0] |= {"user": user_name(gone[0]), "what": "buy", "worth": 1.0}
    made = prepared(log, [2, 4], tmp_path / "pieces")
    (tmp_path / "gone.txt").write_text("\n".join(map(user_name, gone)))
    vectors = {user: pa.array(vector_of(100 + user, 2), pa.float16()) for user in (*gone, kept)}
    found = whole(Path(made.path))
    assert ONLY_ONCE.encode() in found
    for user in (*gone, kept):
        assert user_name(user).encode() in found and secret_of(user).encode() in found
        assert vectors[user].buffers()[1].to_pybytes() in found
    rows, unknown = forgotten_rows(made, str(tmp_path / "gone.txt"))
    assert len(rows) == len(gone) and not unknown
    after = trim(made.path, rows, None)
    if late:  # something comes after
        row = {**log[1], "user": user_name(kept), "time": START + 9 * DAY}
        row |= {"what": "buy", "worth": 1.0}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "more.parquet")
        after = make(tmp_path / "more.parquet", Path(made.path), append=True)
    found = whole(Path(made.path))
    assert ONLY_ONCE.encode() not in found
    for user in gone:
        assert user_name(user).encode() not in found
        assert secret_of(user).partition("-")[2].encode() not in found
        assert vectors[user].buffers()[1].to_pybytes() not in found
    assert user_name(kept).encode() in found and secret_of(kept).encode() in found
    for path in map(after.file, after.event_names):
        assert not set(pq.read_table(path)["user"].to_pylist()) & set(rows.tolist())
    Dataset.load(made.path, verify="digest")


def whole(folder: Path) -> bytes:
    """All bytes of all files, and what Parquet files hold unpacked."""
    parts = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            parts.append(path.read_bytes())
        if path.suffix == ".parquet":
            parts.append(json.dumps(pq.read_table(path).to_pydict()).encode())
    return b"\n".join(parts)
