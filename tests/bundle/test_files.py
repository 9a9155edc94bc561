"""Files of a bundle: ids found without reading them all, vectors of each precision, damage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundle.made import make_bundle
from trainer.base.mistake import Mistake
from trainer.bundle.flat_arrays import GrowingArray, GrowingLists, RangeArray, mapped, mapped_lists
from trainer.bundle.manifest import read_manifest
from trainer.bundle.names_file import FEW, NamesFile, write_names
from trainer.bundle.opened_bundle import Bundle
from trainer.bundle.vectors.stored_vectors import packed, unpacked

STRANGE = ["", " lead", "Ä", "a", "a\0b", "ab", "b", "Doe, Jane", "é", "日本", "🎈", "10", "9", "Z"]


def names_of(folder: Path, ids: list[Any], kind: pa.DataType, at_once: int = 3) -> NamesFile:
    folder.mkdir(parents=True)
    table = pa.table({"raw_id": pa.array(ids, kind)})
    write_names(folder, table.to_batches(max_chunksize=at_once), table.schema)
    return NamesFile(folder, "item", len(ids))


@given(ids=st.lists(st.text(max_size=4), unique=True, max_size=30), at_once=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_every_id_is_found_and_no_other(
    ids: list[str], at_once: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ids = [each for each in ids if each.encode("utf-8", "ignore").decode() == each]
    names = names_of(tmp_path_factory.mktemp("ids") / "items", ids, pa.string(), at_once)
    assert [names.row_of(each) for each in ids] == list(range(len(ids)))
    assert [names.id_of(row) for row in range(len(ids))] == ids
    for other in ("none of them", *(f"{each}x" for each in ids)):
        if other not in ids:
            assert names.rows_of([other]).tolist() == [-1]


@pytest.mark.parametrize("many", [1, FEW + 1])
def test_many_ids_are_found_as_few_are(tmp_path: Path, many: int) -> None:
    names = names_of(tmp_path / "items", STRANGE, pa.string())
    asked = ["nobody", *STRANGE, "", "ab", "b "] * many
    rows = names.rows_of(asked)
    wanted = [-1, *range(len(STRANGE)), 0, 5, -1] * many
    assert rows.tolist() == wanted and rows.dtype == np.int64


@pytest.mark.parametrize("many", [1, FEW + 1])
@pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.uint64()])
def test_whole_numbers_are_found_by_value(tmp_path: Path, kind: pa.DataType, many: int) -> None:
    ids = [5, 0, 2**31 - 1, 17] + ([2**64 - 1] if kind == pa.uint64() else [-7])
    names = names_of(tmp_path / "items", ids, kind)
    odd = ["1_0", "+5", " 5", "05", "x", "", "٥", "1e3", str(2**70), "-0", "5.0"]
    rows = names.rows_of([*map(str, ids), *odd] * many)
    assert rows.tolist() == [*range(len(ids)), *[-1] * len(odd)] * many
    with pytest.raises(Mistake, match="ids of this dataset are whole numbers from"):
        names.row_of("x")
    with pytest.raises(Mistake, match="no item 18 in "):
        names.row_of("18")


def test_of_forms_the_first_that_is_there_is_meant(tmp_path: Path) -> None:
    names = names_of(tmp_path / "items", [" a", "a", "b"], pa.string())
    assert names.row_of((" a", "a")) == 0 and names.row_of((" b", "b")) == 2


@given(
    rows=st.lists(
        st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4), min_size=0, max_size=8
    )
)
@settings(max_examples=50, deadline=None)
def test_a_precision_is_off_by_no_more_than_half_a_step(rows: list[list[float]]) -> None:
    vector_nD = np.array(rows, dtype=np.float32).reshape(-1, 4)
    code_nD, scale_n = packed(vector_nD, "int8")
    off = np.abs(unpacked(code_nD, scale_n) - vector_nD)
    assert (off <= np.abs(vector_nD).max(axis=1, initial=0)[:, None] / 254 + 1e-6).all()
    half_nD, _ = packed(vector_nD, "float16")
    assert half_nD.dtype == np.float16
    exact_nD, _ = packed(vector_nD, "float32")
    assert (exact_nD == vector_nD).all()


def test_float16_holds_no_huge_values() -> None:
    with pytest.raises(Mistake, match="--precision float16: a value is above 65504"):
        packed(np.array([[1e6]], np.float32), "float16")


def test_arrays_grow_and_are_written_in_parts(tmp_path: Path) -> None:
    with GrowingArray(tmp_path / "a.npy", np.float32, 3) as array:
        for first in (0, 2, 4):
            array.append(np.arange(first * 3, first * 3 + 6).reshape(2, 3))
    assert (mapped(tmp_path / "a.npy") == np.arange(18).reshape(6, 3)).all()
    with GrowingArray(tmp_path / "none.npy", np.int64) as array:
        pass
    assert mapped(tmp_path / "none.npy").shape == (0,)
    with GrowingLists(tmp_path, "lists") as lists:
        lists.append(np.array([1, 2]), np.array([0, 2]))
        lists.append(np.array([], int), np.array([0]))
        lists.append(np.array([3]), np.array([1]))
    values, offsets = mapped_lists(tmp_path, "lists")
    assert values.tolist() == [1, 2, 3] and offsets.tolist() == [0, 0, 2, 2, 3]
    RangeArray.create(tmp_path / "r.npy", (5, 2), np.float16)
    RangeArray(tmp_path / "r.npy").write(3, np.ones((2, 2), np.float16))
    RangeArray(tmp_path / "r.npy").write(0, np.empty((0, 2), np.float16))
    assert np.load(tmp_path / "r.npy").sum(axis=1).tolist() == [0, 0, 0, 2, 2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("files") / "B", items=60, users=9)


def files() -> list[str]:
    return [
        *(f"items/{name}" for name in ("vectors.npy", "norms.npy", "known.npy", "counts.npy")),
        *("items/order.npy", "items/ids.arrow", "users/seen.offsets.npy", "users/vectors.npy"),
    ]


@pytest.mark.parametrize("name", files())
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "other", "folder"])
def test_a_file_that_is_not_the_bundles_is_named(made: Path, name: str, damage: str) -> None:
    file = made / name
    before = file.read_bytes()
    file.unlink()
    match damage:
        case "cut":
            file.write_bytes(before[:-1])
        case "empty":
            file.touch()
        case "other":
            file.write_bytes(bytes(len(before)))
        case "folder":
            file.mkdir()
    try:
        with pytest.raises(Mistake, match=name.rpartition("/")[2]):
            Bundle(made, full=damage == "other")
    finally:
        if damage == "folder":
            file.rmdir()
        file.write_bytes(before)
    Bundle(made, full=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"form": 2}, "has form 2, this Tandem reads 1"),
        ({"items": 61}, "export the bundle again"),
        ({"width": 13}, "the manifest says float32"),
        ({"precision": "int8"}, "the manifest says int8"),
        ({"users": 8}, "9 rows, the manifest says 8"),
        ({"items": "many"}, "items='many'"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": "x"}}}, "no file of a bundle"),
        ({"files": {"../x": {"bytes": 1, "sha256": "x"}}}, "no file of a bundle"),
    ],
)
def test_a_manifest_that_says_otherwise_is_refused(
    made: Path, changes: dict[str, Any], words: str
) -> None:
    file = made / "bundle.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), **changes}))
    try:
        with pytest.raises(Mistake, match=words):
            Bundle(made)
    finally:
        file.write_text(before)
    for text in ("", "{", "[]", "3", "null", "\0"):
        file.write_text(text)
        with pytest.raises(Mistake, match=r"bundle\.json"):
            read_manifest(made)
    file.write_text(before)
