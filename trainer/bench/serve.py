"""`tandem bench serve`: single requests for the k best items, beside FAISS' flat index.

Each request is one query, as a server has it that is not busy. The ways take turns request by
request, so that what else the machine does weighs on all of them alike: the exact search over
float32, float16 and int8 vectors, as a bundle has them with int8 codes; over float32 without codes;
the same under a filter that few items pass; and `IndexFlatIP.search`.

Tensor shapes: I items, Q queries, D embedding width.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.base.mistake import Mistake
from trainer.base.ranges import MOST, MOST_ROWS, MOST_TURNS, check_range, check_ranges
from trainer.base.screen import Sheet
from trainer.bundle.choices import Precision
from trainer.bundle.vectors.exact import exact_best
from trainer.bundle.vectors.passing import Passing
from trainer.bundle.vectors.stored_vectors import StoredVectors, VectorWriter

CLUSTERS = 1000
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")


@dataclass(frozen=True)
class ServeBenchArguments:
    """Single requests, exact, beside FAISS' flat index."""

    items: int = 1_000_000
    """Catalog."""
    dim: int = 64
    """Width of the vectors."""
    k: int = 50
    """Length of the lists."""
    requests: int = 50
    """Of each way."""
    passing: float = 0.01
    """Share of the items that pass the filter."""
    seed: int = 0
    """Seeds vectors, queries and the filter."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            items=(1, MOST_ROWS),
            dim=(1, MOST_ROWS),
            requests=(1, MOST_TURNS),
            seed=(0, MOST),
        )
        check_range("--k", self.k, 1, self.items, f"of --items {self.items}")
        if not 0 < self.passing <= 1:
            raise Mistake(f"--passing {self.passing}: above 0, at most 1")


def main(arguments: ServeBenchArguments) -> dict[str, Any]:
    """Measure and print."""
    result = measure(arguments)
    if arguments.json:
        print(json.dumps(result))
        return result
    title = f"single requests over {arguments.items:,} items x {arguments.dim}"
    columns = ("way", "p50 ms", "p99 ms", "times FAISS flat", "of the exact lists")
    sheet = Sheet(*columns, title=title)
    for name, way in result["ways"].items():
        sheet.add(
            name,
            f"{way['p50_ms']:.2f}",
            f"{way['p99_ms']:.2f}",
            f"{way['ratio']:.2f}",
            f"{way['recall']:.4f}",
        )
    sheet.print()
    return result


def measure(arguments: ServeBenchArguments) -> dict[str, Any]:
    """Milliseconds and ratio of each way; `recall`: share of the exact lists of float32, under
    the filter of those under the filter."""
    random = np.random.default_rng(arguments.seed)
    center_CD = random.standard_normal((CLUSTERS, arguments.dim), dtype=np.float32)
    item_ID = _vectors(random, arguments.items, center_CD)
    query_QD = _vectors(random, arguments.requests, center_CD)
    ways = _ways(arguments, item_ID, random)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    recalls: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(query_QD[:1])  # what only the first request pays
    order = list(ways)
    for query_D in query_QD:
        order.append(order.pop(0))
        found = {}
        for name in order:
            started = time.perf_counter()
            found[name] = ways[name](query_D[None])
            seconds[name].append(time.perf_counter() - started)
        for name, rows in found.items():
            wanted = found["float32, filtered" if "filtered" in name else "float32"]
            recalls[name].append(len(np.intersect1d(rows, wanted)) / max(len(wanted), 1))
    flat = float(np.median(seconds["FAISS flat"]))
    return {
        "ways": {
            name: {
                "p50_ms": 1e3 * float(np.median(each)),
                "p99_ms": 1e3 * float(np.quantile(each, 0.99)),
                "ratio": float(np.median(each)) / flat,
                "recall": float(np.mean(recalls[name])),
            }
            for name, each in seconds.items()
        },
        "load": os.getloadavg()[0],
        "arguments": asdict(arguments),
    }


def _ways(
    arguments: ServeBenchArguments, item_ID: np.ndarray, random: np.random.Generator
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """By name, the rows of the k best items of one query."""
    mask_I = random.random(arguments.items) < arguments.passing
    nothing = np.empty(0, dtype=np.int64)

    def ours(vectors: StoredVectors, passing: Passing) -> Callable[[np.ndarray], np.ndarray]:
        largest = float(vectors.norm_N.max())

        def search(query_1D: np.ndarray) -> np.ndarray:
            (found,) = exact_best(vectors, query_1D, passing, [nothing], [arguments.k], largest)
            return found.row_k

        return search

    everything = Passing(arguments.items)
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        precision: ours(_stored(item_ID, precision), everything) for precision in PRECISIONS
    }
    full = _stored(item_ID, "float32")
    without = StoredVectors(full.code_ND, full.norm_N, None)
    ways["float32 without codes"] = ours(without, everything)
    ways["float32, filtered"] = ours(full, everything.with_mask(mask_I))
    index = _flat_index(item_ID)
    ways["FAISS flat"] = lambda query_1D: index.search(query_1D, arguments.k)[1][0]
    return ways


def _stored(item_ID: np.ndarray, precision: Precision) -> StoredVectors:
    """The vectors as a bundle has them, by way of the files."""
    with tempfile.TemporaryDirectory() as folder:
        writer = VectorWriter(Path(folder), precision, searched=True)
        writer.create(*item_ID.shape)
        for first in range(0, len(item_ID), 1 << 16):
            writer.write(first, item_ID[first : first + (1 << 16)])
        return StoredVectors.opened(Path(folder))  # mapped: it outlives the names of the files


def _flat_index(item_ID: np.ndarray) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise Mistake("bench serve needs FAISS: pip install faiss-cpu") from error
    index = faiss.IndexFlatIP(item_ID.shape[1])
    index.add(item_ID)
    return index


def _vectors(random: np.random.Generator, rows: int, center_CD: np.ndarray) -> np.ndarray:
    """Unit vectors around the centers, [rows, D], made in small blocks."""
    vector_ID = np.empty((rows, center_CD.shape[1]), dtype=np.float32)
    for first in range(0, rows, 1 << 16):
        block = vector_ID[first : first + (1 << 16)]
        block[:] = center_CD[random.integers(0, len(center_CD), len(block))]
        block += random.standard_normal(block.shape, dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return vector_ID
