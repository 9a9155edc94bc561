"""Vectors of items and users: out of every source, in flat files, appended, forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.planted import Row, make, some_rows, table, write_csv
from trainer.base.mistake import Mistake
from trainer.data.feature_types import Attribute
from trainer.data.schema import Dataset
from trainer.data.vectors import Vectors
from trainer.observe.progress import SilentProgress
from trainer.prepare.pipeline import PrepareArguments, prepare

WIDTH = 4
ITEMS = list(range(100, 109))


def vector_of(item: int, version: int = 0) -> list[float]:
    return [item / 8, -1.5, float(version), 0.25]


def items_file(path: Path, items: list[int], column: Any) -> str:
    pq.write_table(pa.table({"item": items, "text": column}), path)
    return str(path)


def vectors_of(dataset: Dataset, side: str = "item") -> dict[int, list[float]]:
    """By raw id, the vector of its row."""
    attributes: tuple[Attribute, ...] = getattr(dataset, f"{side}_attributes")
    (attribute,) = (each for each in attributes if each.kind == "vector")
    ids = [row["raw_id"] for row in table(dataset, f"{side}s")]
    taken = Vectors(dataset, attribute).take(np.arange(len(ids)))
    return {raw: taken[row].tolist() for row, raw in enumerate(ids) if raw is not None}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "rows.csv", some_rows())


LISTS = [vector_of(item) for item in ITEMS]


@pytest.mark.parametrize(
    "column",
    [
        LISTS,
        pa.array(LISTS, pa.list_(pa.float32(), WIDTH)),
        pa.array(LISTS, pa.list_(pa.float32())),
        [str(each) for each in LISTS],
        ["|".join(map(str, each)) for each in LISTS],
    ],
    ids=["lists", "fixed", "float lists", "text", "piped"],
)
def test_columns_of_the_items_table(source: Path, tmp_path: Path, column: Any) -> None:
    items = items_file(tmp_path / "items.parquet", ITEMS, column)
    dataset = make(source, tmp_path / "out", items=items)
    assert vectors_of(dataset) == {item: vector_of(item) for item in ITEMS}
    (attribute,) = dataset.item_attributes
    (file,) = attribute.vectors
    assert (attribute.width, file.rows) == (WIDTH, dataset.num_items)
    assert dataset.files[file.file].bytes == dataset.num_items * WIDTH * 2


def test_files_beside_the_table(source: Path, tmp_path: Path) -> None:
    shuffled = ITEMS[::-1]
    titles = tmp_path / "items.csv"
    titles.write_text("item,title\n" + "".join(f"{each},t{each}\n" for each in shuffled))
    np.save(tmp_path / "image.npy", np.array([vector_of(each) for each in shuffled], np.float32))
    text = items_file(tmp_path / "text.parquet", ITEMS[:5], [vector_of(i, 7) for i in ITEMS[:5]])
    files = (str(tmp_path / "image.npy"), text)
    dataset = make(source, tmp_path / "out", items=str(titles), item_vectors=files)
    by_name = {each.name: Vectors(dataset, each) for each in dataset.item_attributes if each.width}
    assert list(by_name) == ["image", "text"]
    for row, item in enumerate(table(dataset, "items")):
        assert by_name["image"].take(np.array([row]))[0].tolist() == vector_of(item["raw_id"])
        wanted = vector_of(item["raw_id"], 7) if item["raw_id"] in ITEMS[:5] else [0.0] * WIDTH
        assert by_name["text"].take(np.array([row]))[0].tolist() == wanted
    with pytest.raises(Mistake, match=r"image.npy has its rows in the order of --items FILE"):
        make(source, tmp_path / "no", item_vectors=files[:1])
    np.save(tmp_path / "few.npy", np.ones((3, 2), np.float32))
    with pytest.raises(Mistake, match="holds 3 vectors for 9 rows"):
        make(source, tmp_path / "no", items=str(titles), item_vectors=(str(tmp_path / "few.npy"),))
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(Mistake, match=r"objects.npy is no .npy file of numbers"):
        objects = (str(tmp_path / "objects.npy"),)
        make(source, tmp_path / "no", items=str(titles), item_vectors=objects)


def test_what_is_missing_is_zeros_and_minus_one_too(source: Path, tmp_path: Path) -> None:
    column = [None, *LISTS[1:-1], []]
    dataset = make(
        source, tmp_path / "out", items=items_file(tmp_path / "i.parquet", ITEMS, column)
    )
    vectors = vectors_of(dataset)
    assert vectors[ITEMS[0]] == vectors[ITEMS[-1]] == [0.0] * WIDTH
    assert vectors[ITEMS[1]] == vector_of(ITEMS[1])
    (attribute,) = dataset.item_attributes
    taken = Vectors(dataset, attribute).take(np.array([-1, 0, -1]))
    assert not taken[0].any() and not taken[2].any() and taken.dtype == np.float16


def test_numbers_beyond_float16_are_kept_in_float32(source: Path, tmp_path: Path) -> None:
    large = [[1e6, item / 3] for item in ITEMS]
    dataset = make(source, tmp_path / "out", items=items_file(tmp_path / "i.parquet", ITEMS, large))
    assert dataset.item_attributes[0].vectors[0].file.endswith(".f32")
    assert vectors_of(dataset)[ITEMS[2]] == pytest.approx([1e6, ITEMS[2] / 3], rel=1e-6)
    assert sorted(path.suffix for path in (tmp_path / "out/vectors").iterdir()) == [".f32"]


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ([[0.5] * (1 + n % 2) for n in range(9)], "holds lists of 1 to 2 numbers"),
        (pa.array([None] * 9, pa.list_(pa.float32())), "holds no value"),
    ],
)
def test_what_is_no_vector(source: Path, tmp_path: Path, column: Any, reason: str) -> None:
    items = items_file(tmp_path / "i.parquet", ITEMS, column)
    dataset = make(source, tmp_path / "out", items=items)
    assert dataset.source["attributes_left_out"]["item"]["text"].startswith(reason)
    with pytest.raises(Mistake, match=f"column 'text'.* {reason}"):
        make(source, tmp_path / "no", items=items, item_attributes=("text",))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_vector_is_finite(source: Path, tmp_path: Path, bad: float | None) -> None:
    column = pa.array([[0.5, bad], *([[0.5, 1.0]] * 8)], pa.list_(pa.float64()))
    items = items_file(tmp_path / "i.parquet", ITEMS, column)
    with pytest.raises(Mistake, match=r"1 of 9 vectors hold a number that is missing or not fin"):
        make(source, tmp_path / "out", items=items)


def test_appended_new_rows_changed_rows_and_none(source: Path, tmp_path: Path) -> None:
    """New rows are a file of their own; what did not change is the very same file."""
    first = make(
        source, tmp_path / "out", items=items_file(tmp_path / "i.parquet", ITEMS[:7], LISTS[:7])
    )
    (old,) = first.item_attributes[0].vectors
    inode = (tmp_path / "out" / old.file).stat().st_ino
    more = [Row(50, 200 + n, None, 90_000 + n) for n in range(3)]
    new = items_file(
        tmp_path / "n.parquet", [200, 202, 100], [vector_of(200), vector_of(202), LISTS[0]]
    )
    second = make(write_csv(tmp_path / "more.csv", more), tmp_path / "out", append=True, items=new)
    files = second.item_attributes[0].vectors
    assert [each.rows for each in files] == [first.num_items, 3] and files[0] == old
    assert (tmp_path / "out" / old.file).stat().st_ino == inode
    vectors = vectors_of(second)
    assert vectors[200] == vector_of(200) and vectors[201] == [0.0] * WIDTH
    assert vectors[100] == vector_of(100)
    third = make(
        write_csv(tmp_path / "last.csv", [Row(51, 300, None, 99_000), Row(51, 100, None, 99_001)]),
        tmp_path / "out",
        append=True,
        items=items_file(
            tmp_path / "c.parquet", [101, 201], [vector_of(101, 9), vector_of(201, 9)]
        ),
    )
    vectors = vectors_of(third)
    assert vectors[101] == vector_of(101, 9) and vectors[201] == vector_of(201, 9)
    assert vectors[102] == vector_of(102) and vectors[300] == [0.0] * WIDTH
    assert {file.file for file in third.item_attributes[0].vectors} == {
        name for name in third.files if name.startswith("vectors/")
    }
    wide = items_file(tmp_path / "w.parquet", [101], [[1.5, 2.0]])
    with pytest.raises(Mistake, match=r"vectors of 2 numbers, the extended dataset's have 4"):
        make(write_csv(tmp_path / "x.csv", more), tmp_path / "out", append=True, items=wide)


def test_forgotten_users_have_no_vector(source: Path, tmp_path: Path) -> None:
    users = tmp_path / "users.parquet"
    pq.write_table(pa.table({"user": range(6), "taste": [[n + 0.5, 1.0] for n in range(6)]}), users)
    make(source, tmp_path / "out", users=str(users))
    forget = tmp_path / "forget.txt"
    forget.write_text("2\n")
    prepare(PrepareArguments(str(tmp_path / "out"), forget_users=str(forget)), SilentProgress())
    trimmed = Dataset.load(tmp_path / "out", verify="digest")
    left = vectors_of(trimmed, "user")
    assert left == {n: [n + 0.5, 1.0] for n in range(6) if n != 2}
    (file,) = trimmed.user_attributes[0].vectors
    bare = np.fromfile(tmp_path / "out" / file.file, np.float16).reshape(-1, 2)
    assert 2.5 not in bare[:, 0]


def test_a_file_of_another_size_is_told(source: Path, tmp_path: Path) -> None:
    dataset = make(source, tmp_path / "out", items=items_file(tmp_path / "i.parquet", ITEMS, LISTS))
    (file,) = dataset.item_attributes[0].vectors
    with (tmp_path / "out" / file.file).open("ab") as stream:
        stream.write(b"\0\0")
    with pytest.raises(Mistake, match=r"item.text-00000.f16 has 74 bytes, dataset.json says 72"):
        Dataset.load(tmp_path / "out")
