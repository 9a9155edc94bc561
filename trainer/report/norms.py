"""How long items' embeddings are, against how popular the items are, from a run's checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from trainer.base.mistake import Mistake
from trainer.files.json_files import committed
from trainer.files.storage import StoragePath
from trainer.run.checkpoint_facts import DTYPES, NotWholeError, read_facts
from trainer.run.checkpoint_read import Found, load

MOST_BYTES = 4 << 30
ITEM_TABLE = "model.embeddings.embedding_bags.item.weight"
BANDS = 12
DOTS = 1500


def norms_by_popularity(run: StoragePath, dataset: StoragePath) -> dict[str, Any] | str:
    """Mean norm of the item table's rows in bands of train counts, and a sample of items.

    Returns a sentence that says why where there is nothing to read.
    """
    checkpoints = committed(run / "checkpoints")
    items = dataset / "items.parquet"
    if not checkpoints:
        return "The run has no finished checkpoint."
    if not items.is_file():
        return f"The dataset is not at {dataset} any more."
    with items.open("rb") as stream:
        count_I = pq.read_table(stream, columns=["count"])["count"].to_numpy()
    norm_I = _row_norms(checkpoints[-1])
    if isinstance(norm_I, str):
        return norm_I
    return bands(count_I, norm_I[: len(count_I)])


def bands(count_I: np.ndarray, norm_I: np.ndarray) -> dict[str, Any]:
    """Bands of items of about equal width in log count; items never seen are left out."""
    seen = np.flatnonzero(count_I > 0)
    if not len(seen):
        return {"count": [], "mean": [], "low": [], "high": [], "dots": [[], []]}
    count, norm = count_I[seen].astype(float), norm_I[seen].astype(float)
    edges = np.unique(np.round(np.geomspace(1, count.max() + 1, BANDS + 1)))
    band = np.digitize(count, edges)
    rows = [
        (np.exp(np.log(count[band == b]).mean()), *_spread(norm[band == b]))
        for b in np.unique(band)
    ]
    at, mean, low, high = (list(map(float, column)) for column in zip(*rows, strict=True))
    chosen = np.random.default_rng(0).permutation(len(seen))[:DOTS]
    dots = [count[chosen].tolist(), norm[chosen].round(4).tolist()]
    return {"count": at, "mean": mean, "low": low, "high": high, "dots": dots}


def _spread(norm: np.ndarray) -> tuple[float, float, float]:
    return float(norm.mean()), float(np.quantile(norm, 0.1)), float(np.quantile(norm, 0.9))


def _row_norms(checkpoint: StoragePath) -> np.ndarray | str:
    try:
        facts = read_facts(checkpoint)
    except (NotWholeError, Mistake) as error:
        return f"The newest checkpoint cannot be read: {error}."
    saved = facts.tensors.get(ITEM_TABLE)
    if saved is None or len(saved.shape) != 2:
        return "The model has no item table."
    if saved.bytes > MOST_BYTES:
        return f"The item table is {saved.bytes / 2**30:.0f} GiB: too large for this page."
    state: dict[str, Any] = {ITEM_TABLE: torch.empty(saved.shape, dtype=DTYPES[saved.dtype])}
    load(Found(checkpoint, facts), state)
    return state[ITEM_TABLE].float().norm(dim=1).numpy()
