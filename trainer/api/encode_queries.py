"""Embeddings of users, and of people known by what they liked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.base.mistake import Mistake
from trainer.retrieval.encode import ROWS_AT_ONCE
from trainer.retrieval.known import known_at
from trainer.retrieval.names import find_rows
from trainer.retrieval.opened import OpenedRun
from trainer.retrieval.search.item_lists import ItemLists


def encode_users(opened: OpenedRun, users: Sequence[str]) -> np.ndarray:
    """float32 [n, D] of users by raw ids, with their histories up to the present. Collective."""
    rows = find_rows(opened.trained.dataset, "user", users)
    if opened.encoder.uses_history:
        known = known_at(opened.trained.dataset, rows, opened.encoder.marks)
        return _encode(opened, torch.tensor(rows), known.history, known.disliked)
    nothing = ItemLists.from_lists([[] for _ in rows])
    return _encode(opened, torch.tensor(rows), nothing, nothing)


def encode_histories(opened: OpenedRun, histories: Sequence[Sequence[str]]) -> np.ndarray:
    """float32 [n, D] of people without a row, by the raw ids of what they liked. Collective."""
    if not opened.encoder.uses_history:
        raise Mistake(
            "histories: this model does not read histories, so it has no vector of one; train with "
            "model.use_history, ask recommend(items=...), or give users"
        )
    ids = list(dict.fromkeys(item for history in histories for item in history))
    row = dict(zip(ids, find_rows(opened.trained.dataset, "item", ids), strict=True)) if ids else {}
    liked = ItemLists.from_lists([[row[item] for item in history] for history in histories])
    nothing = ItemLists.from_lists([[] for _ in histories])
    return _encode(opened, torch.full((len(histories),), -1), liked, nothing)


def _encode(
    opened: OpenedRun, user_Q: Tensor, history: ItemLists, disliked: ItemLists
) -> np.ndarray:
    """Block by block. Collective."""
    blocks = []
    for start in range(0, len(user_Q), ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, len(user_Q))
        query_qD = opened.encoder.queries(  # collective
            user_Q[start:stop], history.slice(start, stop), disliked.slice(start, stop)
        )
        blocks.append(query_qD.float().cpu().numpy())  # device-to-host sync
    width = opened.trained.config.model.width
    return np.concatenate(blocks) if blocks else np.empty((0, width), np.float32)
