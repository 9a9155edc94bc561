"""What a stored precision loses: its lists beside those of float32, over some users.

Tensor shapes: Q queries, n items of a block, K = k, D embedding width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.bundle.choices import Precision
from trainer.bundle.vectors.stored_vectors import packed, unpacked
from trainer.distributed.agreement import gather_objects
from trainer.retrieval.encode import Encoder, is_known
from trainer.retrieval.known import known_at
from trainer.retrieval.search.item_rows import ItemRows
from trainer.retrieval.search.keys import decode_keys, merge_keys
from trainer.retrieval.search.topk import exact_topk

QUERIES = 200


class StoredRecall:
    """The k best items of some users, by float32 and as stored, over the blocks of this rank."""

    def __init__(self, query_QD: Tensor, k: int, precision: Precision) -> None:
        self.query_QD, self.k, self.precision = query_QD, k, precision
        self.exact_QK: Tensor | None = None
        self.stored_QK: Tensor | None = None

    @staticmethod
    def of_users(encoder: Encoder, dataset: Any, k: int, precision: Precision) -> StoredRecall:
        """Of users drawn from all. Collective; the same on every rank."""
        random = np.random.default_rng(0)
        rows = np.sort(random.permutation(dataset.num_users)[:QUERIES])
        known = known_at(dataset, rows.tolist(), encoder.marks)
        query_QD = encoder.queries(  # collective
            torch.from_numpy(rows), known.history, known.disliked
        )
        return StoredRecall(query_QD[is_known(query_QD)].cpu(), k, precision)

    def add(self, row_n: np.ndarray, block_nD: Tensor) -> None:
        """A block of items, consecutive."""
        block_nD = block_nD.float().cpu()
        unknown_X = (~is_known(block_nD)).nonzero().squeeze(1)
        code_nD, scale_n = packed(block_nD.numpy(), self.precision)
        stored_nD = torch.from_numpy(unpacked(code_nD, scale_n))
        self.exact_QK = self._merged(self.exact_QK, block_nD, int(row_n[0]), unknown_X)
        self.stored_QK = self._merged(self.stored_QK, stored_nD, int(row_n[0]), unknown_X)

    def _merged(
        self, before_QK: Tensor | None, block_nD: Tensor, first: int, unknown_X: Tensor
    ) -> Tensor:
        items = ItemRows(block_nD, first, unknown_X)
        key_QK = exact_topk(items, self.query_QD, None, self.k)
        return key_QK if before_QK is None else merge_keys(before_QK, key_QK, self.k)

    def result(self) -> dict[str, Any]:
        """Over the items of all ranks. Collective."""
        parts = gather_objects((self.exact_QK, self.stored_QK))  # collective
        lists = []
        for side in (0, 1):
            keys = [part[side] for part in parts if part[side] is not None]
            lists.append(decode_keys(torch.cat(keys, dim=1).topk(self.k, dim=1).values)[1].numpy())
        hits = sum(len(np.intersect1d(a[a >= 0], b)) for a, b in zip(*lists, strict=True))
        wanted = int((lists[0] >= 0).sum())
        return {"k": self.k, "recall": hits / max(wanted, 1), "queries": len(self.query_QD)}
