"""Small bundles made of numbers alone: no run, no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.bundle.choices import Precision
from trainer.bundle.flat_arrays import GrowingArray, GrowingLists
from trainer.bundle.manifest import describe
from trainer.bundle.names_file import write_names
from trainer.bundle.opened_bundle import LISTS
from trainer.bundle.query_program import FEATURES
from trainer.bundle.vectors.stored_vectors import VectorWriter

GENRES = ("Jazz", "Rock", "Soul", None)


def make_bundle(
    path: Path,
    items: int = 500,
    users: int = 40,
    width: int = 12,
    precision: Precision = "float32",
    similarity: str = "cosine",
    unknown: int = 5,
    seed: int = 0,
    step: int = 1,
) -> Path:
    """Vectors, attributes and lists drawn by chance; many items share a vector with another."""
    random = np.random.default_rng(seed)
    for name in ("items", FEATURES, "tables"):
        (path / name).mkdir(parents=True)
    item_ID = random.normal(size=(items, width)).astype(np.float32)
    tied = min(50, items // 2)
    item_ID[items // 2 : items // 2 + tied] = item_ID[:tied]
    if similarity == "cosine":
        item_ID /= np.linalg.norm(item_ID, axis=1, keepdims=True)
    user_UD = random.normal(size=(users, width)).astype(np.float32)
    known_I = np.ones(items, dtype=bool)
    known_I[random.permutation(items)[:unknown]] = False
    user_known_U = np.ones(users, dtype=bool)
    user_known_U[-1:] = False
    for side, vectors, known in (("items", item_ID, known_I), ("users", user_UD, user_known_U)):
        writer = VectorWriter(path / side, precision, searched=side == "items")
        writer.create(*vectors.shape)
        writer.write(0, vectors)
        save(path / side / "known.npy", known)
        save(path / side / "counts.npy", random.integers(0, 50, len(vectors)))
        ids = pa.array([f"{side[0]}{row}" for row in range(len(vectors))])
        columns = {"raw_id": ids}
        if side == "items":
            columns["title"] = pa.array([f"Item {row}" for row in range(items)])
        table = pa.table(columns)
        write_names(path / side, table.to_batches(max_chunksize=64), table.schema)
    write_attributes(path, random, items)
    for name in LISTS:
        with GrowingLists(path / "users", name) as lists:
            for _ in range(users):
                drawn = random.choice(items, random.integers(0, 30), replace=False)
                lists.append(np.sort(drawn), np.array([len(drawn)]))
    pq.write_table(pa.table({"side": pa.array([], "string"), "name": pa.array([], "string"),
                             "row": pa.array([], "int64"), "value": pa.array([], "string")}),
                   path / "vocabularies.parquet")  # fmt: skip
    norms = np.load(path / "items/norms.npy")
    facts = {
        "run": "RUN",
        "step": step,
        "checkpoint": "step 1",
        "dataset_digest": "d",
        "similarity": similarity,
        "items": items,
        "users": users,
        "width": width,
        "unknown_items": unknown,
        "unknown_users": 1,
        "precision": precision,
        "largest_norm": float(norms.max()),
        "user_vectors": True,
        "query_keys": ("user",),
        "query_features": ("user",),
        "dim": width,
        "candidate_keys": ("item",),
        "mean_keys": (),
        "query_dense": (),
        "tables": {},
        "history_length": None,
        "user_attributes": (),
        "item_attributes": (),
        "context_attributes": (),
        "programs": {},
    }
    describe(path, facts)
    return path


def write_attributes(path: Path, random: np.random.Generator, items: int) -> None:
    """genre (NULL for some), brand (few values), price (some missing), tags (lists)."""
    genre = [GENRES[place] for place in random.integers(0, 4, items)]
    price = [None if each > 95 else float(each) for each in random.uniform(0, 100, items)]
    table = pa.table(
        {
            "item": [f"i{row}" for row in range(items)],
            "title": [f"Item {row}" for row in range(items)],
            "count": np.load(path / "items/counts.npy"),
            "genre": pa.array(genre),
            "brand": [f"b{each}" for each in random.integers(0, 7, items)],
            "price": pa.array(price, pa.float32()),
            "tags": [["live"] if row % 3 else ["live", "old"] for row in range(items)],
        }
    )
    pq.write_table(table, path / "items/attributes.parquet", row_group_size=100)


def save(path: Path, array: np.ndarray) -> None:
    with GrowingArray(path, array.dtype) as file:
        file.append(array)
