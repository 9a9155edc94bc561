"""FAISS indexes over a bundle's items, and how much of the exact result they find.

Scores are inner products (cosines, where the towers normalise). What a search returns are item
rows: the index maps its positions to them, since items of which nothing is known are not in it.

Tensor shapes: n items of a block, I items, D embedding width, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.base.mistake import Mistake
from trainer.bundle.flat_arrays import mapped
from trainer.bundle.vectors.stored_vectors import StoredVectors
from trainer.files.writing import written
from trainer.retrieval.arguments import ExportArguments, IndexKind
from trainer.retrieval.search.item_rows import ItemRows
from trainer.retrieval.search.keys import decode_keys, merge_keys
from trainer.retrieval.search.topk import exact_topk

QUERIES_OF_RECALL = 1000
ROWS_AT_ONCE = 1 << 16
KMEANS_ROUNDS = 10
"""FAISS takes 25; of ten million items each costs half a minute, and ten do."""
TRAINED_PER_LIST = 64
"""Rows that IVF's k-means sees per list."""


def read_known(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(item rows [n], vectors [n, D]) of a bundle, without what is unknown."""
    vectors = StoredVectors.opened(folder / "items")
    known_I = mapped(folder / "items/known.npy")
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        stop = min(first + ROWS_AT_ONCE, len(vectors))
        known_n = known_I[first:stop]
        yield np.arange(first, stop)[known_n], vectors.at(slice(first, stop))[known_n]


def build_index(
    kind: IndexKind,
    folder: Path,
    num_items: int,
    width: int,
    on_block: Callable[[], None] = lambda: None,
) -> Any:
    """`faiss_index` of the known vectors of a bundle."""
    return faiss_index(kind, num_items, width, lambda: read_known(folder), on_block)


def faiss_index(
    kind: IndexKind,
    num_items: int,
    width: int,
    blocks: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]],
    on_block: Callable[[], None] = lambda: None,
) -> Any:
    """A FAISS index of `num_items` vectors, which `blocks` gives with their numbers each time.

    flat is exact. ivf: 4 * sqrt(items) lists, a sixteenth of them searched. hnsw: 32 links an
    item, 128 candidates a search.
    """
    faiss = _faiss()
    match kind:
        case "flat":
            index = faiss.IndexFlatIP(width)
        case "ivf":
            lists = max(1, min(int(4 * math.sqrt(num_items)), num_items // 39))
            quantizer = faiss.IndexFlatIP(width)
            index = faiss.IndexIVFFlat(quantizer, width, lists, faiss.METRIC_INNER_PRODUCT)
            index.nprobe = max(8, lists // 16)
            index.cp.niter = KMEANS_ROUNDS
            vectors = (block_nD for _, block_nD in blocks())
            index.train(_sample(vectors, num_items, TRAINED_PER_LIST * lists))
        case "hnsw":
            index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = 100
            index.hnsw.efSearch = 128
    if kind != "ivf":  # which has a place for ids itself
        index = faiss.IndexIDMap2(index)
    for row_n, block_nD in blocks():
        index.add_with_ids(np.ascontiguousarray(block_nD), row_n)
        on_block()
    return index


def index_recall(index: Any, folder: Path, query_QD: Tensor, k: int) -> float:
    """Share of the exact k best items that the index finds, over some queries."""
    exact_QK, rows = None, [np.empty(0, dtype=np.int64)]
    for row_n, block_nD in read_known(folder):
        items = ItemRows(torch.from_numpy(block_nD), sum(map(len, rows)))
        rows.append(row_n)
        key_QK = exact_topk(items, query_QD, None, k)
        exact_QK = key_QK if exact_QK is None else merge_keys(exact_QK, key_QK, k)
    assert exact_QK is not None
    _, found = index.search(np.ascontiguousarray(query_QD.numpy()), k)
    place_QK = decode_keys(exact_QK)[1].numpy()
    wanted = np.where(place_QK >= 0, np.concatenate(rows)[place_QK], -1)
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(wanted, found, strict=True))
    return hits / max(int((wanted >= 0).sum()), 1)


def write_index_of(
    folder: Path,
    facts: dict[str, Any],
    arguments: ExportArguments,
    known: int,
    on_block: Callable[[], None],
) -> dict[str, Any]:
    """Build an index over a bundle's items, compare it with exact search, write it."""
    assert arguments.index is not None
    index = build_index(arguments.index, folder, known, facts["width"], on_block)
    users = StoredVectors.opened(folder / "users")
    rows = np.random.default_rng(0).permutation(len(users))[:QUERIES_OF_RECALL]
    k = min(arguments.index_k, known)
    recall = index_recall(index, folder, torch.from_numpy(users.at(rows)), k)
    write_index(index, folder / "items.faiss")
    return {
        "kind": arguments.index,
        "file": "items.faiss",
        "metric": "inner product",
        "position": "item row, a place in items/ids.arrow",
        "none_found": -1,
        "seen_items_removed": False,
        "k": k,
        "recall": recall,
        "queries": len(rows),
    }


def write_index(index: Any, path: Path) -> None:
    """Write an index for `faiss.read_index`."""
    faiss = _faiss()
    with written(path) as stream:
        faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write))


def _sample(blocks: Iterable[np.ndarray], num_rows: int, size: int) -> np.ndarray:
    """About `size` rows drawn from all blocks."""
    random = np.random.default_rng(0)
    share = min(1.0, size / num_rows)
    return np.concatenate([block[random.random(len(block)) < share] for block in blocks])


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise Mistake("--index and bench serve need FAISS: pip install faiss-cpu") from error
    return faiss
