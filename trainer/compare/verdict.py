"""Whether the best loss is ahead by more than chance: paired over users, seeds averaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.compare.results import JUDGED, CaseResult
from trainer.observe.per_user import paired, per_user_file


def verdicts(results: Sequence[CaseResult], folder: Path, slugs: Sequence[str]) -> list[str]:
    """A sentence for each loss but the best one: how far that is ahead on the test split.

    Args:
        slugs: names of the results' trials, without their seeds.
    """
    if len(results) < 2:
        return []
    tables = [
        _over_seeds(folder, slug, len(r.seeds)) for r, slug in zip(results, slugs, strict=True)
    ]
    best = max(range(len(results)), key=lambda place: results[place].mean(JUDGED))
    return [
        f"{results[best].label} against {results[place].label}: "
        f"{paired(tables[best], tables[place], JUDGED)}"
        for place in range(len(results))
        if place != best
    ]


def _over_seeds(folder: Path, slug: str, seeds: int) -> pa.Table:
    """Each user's mean over the seeds; all were evaluated on the same users."""
    files = [per_user_file(folder / f"{slug}-seed{seed}", "test") for seed in range(1, seeds + 1)]
    tables = [pq.read_table(file) for file in files]
    values = np.stack([table[JUDGED].to_numpy() for table in tables])
    return pa.table({"user": tables[0]["user"], JUDGED: values.mean(axis=0)})
