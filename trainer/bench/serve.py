"""`tandem bench serve`: requests for the k best items, beside FAISS' flat index and its IVF.

Each request is one query. First single ones, as a server has them that is not busy. The ways take
turns request by request, so that what else the machine does weighs on all of them alike: the exact
search over float32, float16 and int8 vectors, as a bundle has them with int8 codes; over float32
without codes; the same under a filter that few items pass; `IndexFlatIP.search`; with `--ivf`
`IndexIVFFlat.search` as `tandem export --index ivf` makes it.

With `--clients` so many ask at the same time, one request after the other, of each way by itself:
what waits is answered together, as the server does it (trainer/serve/batches.py).

Tensor shapes: I items, Q queries, D embedding width.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
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
from trainer.retrieval.index import faiss_index
from trainer.serve.batches import Batches
from trainer.serve.serve_arguments import ServeArguments

Way = Callable[[np.ndarray], Sequence[np.ndarray]]
"""The rows of the k best items of each query of [Q, D]."""
CLUSTERS = 1000
MOST_CLIENTS = 1024
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")


@dataclass(frozen=True)
class ServeBenchArguments:
    """Requests, exact, beside FAISS' flat index and its IVF."""

    items: int = 1_000_000
    """Catalog."""
    dim: int = 64
    """Width of the vectors."""
    k: int = 50
    """Length of the lists."""
    requests: int = 50
    """Of each way."""
    clients: int = 0
    """So many ask at the same time, too, each --requests / --clients of them."""
    ivf: bool = False
    """FAISS' IVF, too, whose making takes minutes for millions of items."""
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
            clients=(0, MOST_CLIENTS),
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
    if arguments.clients:
        sheet = Sheet(
            "way",
            "requests/s",
            "p50 ms",
            "p99 ms",
            title=f"{arguments.clients} clients at the same time",
        )
        for name, way in result["at_once"].items():
            timed = (f"{way[each]:.1f}" for each in ("requests_per_second", "p50_ms", "p99_ms"))
            sheet.add(name, *timed)
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
            (found[name],) = ways[name](query_D[None])
            seconds[name].append(time.perf_counter() - started)
        for name, rows in found.items():
            wanted = found["float32, filtered" if "filtered" in name else "float32"]
            recalls[name].append(len(np.intersect1d(rows, wanted)) / max(len(wanted), 1))
    flat = float(np.median(seconds["FAISS flat"]))
    at_once = {}
    if arguments.clients:
        at_once = {name: _at_once(way, query_QD, arguments.clients) for name, way in ways.items()}
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
        "at_once": at_once,
        "load": os.getloadavg()[0],
        "arguments": asdict(arguments),
    }


def _at_once(way: Way, query_QD: np.ndarray, clients: int) -> dict[str, float]:
    """What clients see that ask one request after the other, behind the server's own queue."""
    seconds: list[float] = []

    async def client(batches: Batches[np.ndarray, np.ndarray], first: int) -> None:
        for query_D in query_QD[first::clients]:
            started = time.perf_counter()
            await batches.ask(query_D)
            seconds.append(time.perf_counter() - started)

    async def all_clients() -> float:
        batches: Batches[np.ndarray, np.ndarray] = Batches(
            lambda queries: way(np.stack(queries)), ServeArguments.batch, len(query_QD)
        )
        answering = asyncio.create_task(batches.run())
        started = time.perf_counter()
        await asyncio.gather(*(client(batches, first) for first in range(clients)))
        lasted = time.perf_counter() - started
        answering.cancel()
        with suppress(asyncio.CancelledError):
            await answering
        batches.close()
        return lasted

    lasted = asyncio.run(all_clients())
    return {
        "requests_per_second": len(query_QD) / lasted,
        "p50_ms": 1e3 * float(np.median(seconds)),
        "p99_ms": 1e3 * float(np.quantile(seconds, 0.99)),
    }


def _ways(
    arguments: ServeBenchArguments, item_ID: np.ndarray, random: np.random.Generator
) -> dict[str, Way]:
    """By name."""
    mask_I = random.random(arguments.items) < arguments.passing
    nothing = np.empty(0, dtype=np.int64)

    def ours(vectors: StoredVectors, passing: Passing) -> Way:
        largest = float(vectors.norm_N.max())

        def search(query_QD: np.ndarray) -> list[np.ndarray]:
            number = len(query_QD)
            left_out, counts = [nothing] * number, [arguments.k] * number
            found = exact_best(vectors, query_QD, passing, left_out, counts, largest)
            return [each.row_k for each in found]

        return search

    everything = Passing(arguments.items)
    stored = {precision: _stored(item_ID, precision) for precision in PRECISIONS}
    ways: dict[str, Way] = {name: ours(each, everything) for name, each in stored.items()}
    full = stored["float32"]
    without = StoredVectors(full.code_ND, full.norm_N, None)
    ways["float32 without codes"] = ours(without, everything)
    ways["float32, filtered"] = ours(full, everything.with_mask(mask_I))
    for kind in ("flat", "ivf") if arguments.ivf else ("flat",):
        index = faiss_index(kind, len(item_ID), arguments.dim, lambda: _blocks(item_ID))
        name = {"flat": "FAISS flat", "ivf": "FAISS IVF"}[kind]
        ways[name] = partial(_searched, index, arguments.k)
    return ways


def _searched(index: Any, k: int, query_QD: np.ndarray) -> list[np.ndarray]:
    """Rows by FAISS."""
    return list(index.search(query_QD, k)[1])


def _blocks(item_ID: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for first in range(0, len(item_ID), 1 << 16):
        block = item_ID[first : first + (1 << 16)]
        yield np.arange(first, first + len(block)), block


def _stored(item_ID: np.ndarray, precision: Precision) -> StoredVectors:
    """The vectors as a bundle has them, by way of the files."""
    with tempfile.TemporaryDirectory() as folder:
        writer = VectorWriter(Path(folder), precision, searched=True)
        writer.create(*item_ID.shape)
        for first in range(0, len(item_ID), 1 << 16):
            writer.write(first, item_ID[first : first + (1 << 16)])
        return StoredVectors.opened(Path(folder))  # mapped: it outlives the names of the files


def _vectors(random: np.random.Generator, rows: int, center_CD: np.ndarray) -> np.ndarray:
    """Unit vectors around the centers, [rows, D], made in small blocks."""
    vector_ID = np.empty((rows, center_CD.shape[1]), dtype=np.float32)
    for first in range(0, rows, 1 << 16):
        block = vector_ID[first : first + (1 << 16)]
        block[:] = center_CD[random.integers(0, len(center_CD), len(block))]
        block += random.standard_normal(block.shape, dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return vector_ID
