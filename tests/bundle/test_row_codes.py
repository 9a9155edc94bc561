"""Codes of rows only say what need not be scored: lists are those of exact scores, to the bit."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundle.made import make_bundle
from trainer.base.mistake import Mistake
from trainer.bundle.choices import Precision
from trainer.bundle.flat_arrays import GrowingArray
from trainer.bundle.opened_bundle import Bundle
from trainer.bundle.vectors import exact
from trainer.bundle.vectors.exact import exact_best
from trainer.bundle.vectors.passing import Passing
from trainer.bundle.vectors.row_codes import CodedQuery, products
from trainer.bundle.vectors.stored_vectors import StoredVectors, VectorWriter

pytest.importorskip("simsimd")


def written(folder: Path, item_ID: np.ndarray, precision: Precision) -> StoredVectors:
    folder.mkdir()
    writer = VectorWriter(folder, precision, searched=True)
    writer.create(*item_ID.shape)
    half = len(item_ID) // 2
    writer.write(0, item_ID[:half])
    writer.write(half, item_ID[half:])
    return StoredVectors.opened(folder)


def drawn(seed: int, items: int, width: int) -> np.ndarray:
    """Lengths over six orders of magnitude, rows of zeros, ties, values that codes hold badly."""
    random = np.random.default_rng(seed)
    item_ID = random.standard_normal((items, width)).astype(np.float32)
    item_ID *= 10.0 ** random.uniform(-3, 3, (items, 1)).astype(np.float32)
    item_ID[random.random(items) < 0.1] = 0
    item_ID[random.random(items) < 0.1] = item_ID[0]
    item_ID[random.random((items, width)) < 0.2] *= np.float32(1e-4)
    return item_ID


@given(
    seed=st.integers(0, 10_000),
    items=st.integers(1, 400),
    width=st.sampled_from([1, 3, 16, 33, 64]),
    k=st.integers(1, 30),
    precision=st.sampled_from(["float32", "float16", "int8"]),
    by_cosine=st.booleans(),
    passing=st.sampled_from([1.0, 0.6, 0.05]),
)
@settings(max_examples=120, deadline=None)
def test_codes_change_no_list(
    seed: int,
    items: int,
    width: int,
    k: int,
    precision: Precision,
    by_cosine: bool,
    passing: float,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    item_ID = drawn(seed, items, width)
    vectors = written(tmp_path_factory.mktemp("rows") / "items", item_ID, precision)
    random = np.random.default_rng(seed + 1)
    query_QD = random.standard_normal((2, width)).astype(np.float32)
    query_QD[0] = item_ID[0]
    if by_cosine:
        query_QD /= np.maximum(np.linalg.norm(query_QD, axis=1, keepdims=True), 1e-9)
    passes = Passing(items).with_mask(random.random(items) < passing)
    left_out = [np.unique(random.integers(0, items, 9)), np.empty(0, np.int64)]

    def lists(row_codes: bool) -> list[exact.Ranking]:
        held = vectors if row_codes else StoredVectors(
            vectors.code_ND, vectors.norm_N, vectors.scale_N)  # fmt: skip
        held.row_codes = held.row_codes if row_codes else None
        return exact_best(
            held, query_QD, passes, left_out, [k, k], float(vectors.norm_N.max()), by_cosine
        )

    for ours, wanted in zip(lists(True), lists(False), strict=True):
        assert ours.row_k.tolist() == wanted.row_k.tolist()
        assert ours.score_k.tolist() == wanted.score_k.tolist()


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_the_bound_holds_and_is_worth_having(tmp_path: Path, precision: Precision) -> None:
    item_ID = drawn(3, 5000, 48)
    vectors = written(tmp_path / "items", item_ID, precision)
    stored_ID = vectors.at(slice(0, 5000)).astype(np.float64)
    query_D = np.random.default_rng(4).standard_normal(48).astype(np.float32)
    assert vectors.row_codes is not None
    some = np.arange(0, 5000, 7)
    for rows in (slice(0, 5000), some):
        norm_n = vectors.norms(rows)
        estimate_n, off_n = vectors.row_codes.scores(CodedQuery.of(query_D), norm_n, rows)
        off_by_n = np.abs(estimate_n - stored_ID[rows] @ query_D)
        rounding_n = 200 * 2.0**-24 * norm_n * np.linalg.norm(query_D)
        assert (off_by_n <= off_n + rounding_n).all()
        assert (off_n <= 0.05 * norm_n * np.linalg.norm(query_D) + 1e-6).all()


def test_most_items_are_not_scored_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20,000 rows in chunks of 4,096 a few hundred are scored anew."""
    random = np.random.default_rng(0)
    item_ID = random.standard_normal((20_000, 64)).astype(np.float32)
    vectors = written(tmp_path / "items", item_ID, "float16")
    monkeypatch.setattr(exact, "CHUNK_ITEMS", 4096)
    taken = []
    at = StoredVectors.at
    monkeypatch.setattr(
        StoredVectors, "at", lambda self, rows: taken.append(rows) or at(self, rows)
    )
    query_QD = random.standard_normal((1, 64)).astype(np.float32)
    nothing = np.empty(0, np.int64)
    (found,) = exact_best(vectors, query_QD, Passing(20_000), [nothing], [20], 20.0)
    assert len(found.row_k) == 20
    assert all(isinstance(rows, np.ndarray) for rows in taken)
    assert sum(map(len, taken)) < 600


def test_bundles_have_codes_of_their_items(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b", precision="float16")
    assert (path / "items/codes.npy").is_file() and not (path / "users/codes.npy").exists()
    assert Bundle(path).items.row_codes is not None and products() is not None
    quantised = make_bundle(tmp_path / "q", precision="int8")
    assert not (quantised / "items/codes.npy").exists()
    assert Bundle(quantised).items.row_codes is not None


def test_codes_of_other_rows_are_refused(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    with GrowingArray(path / "items/code_errors.npy", np.float32) as array:
        array.append(np.zeros(3, np.float32))
    with pytest.raises(Mistake, match=r"code_errors.npy holds float32 \[3\], not float32 \[500\]"):
        StoredVectors.opened(path / "items")
