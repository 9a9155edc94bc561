"""A bundle's vectors of items and users, and what is known of users: what the model computes.

Each rank writes the vectors of its own range of rows into files that rank 0 has made; what a pass
over the events gives is written by rank 0, whose range is the first.

Tensor shapes: n rows, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trainer.bundle.choices import Precision
from trainer.bundle.flat_arrays import GrowingLists, RangeArray
from trainer.bundle.opened_bundle import LISTS
from trainer.bundle.vectors.stored_vectors import VectorWriter
from trainer.data.events.marks import Marks
from trainer.data.schema import Dataset
from trainer.distributed.agreement import together
from trainer.distributed.ranks import Ranks
from trainer.retrieval.encode import (
    ROWS_AT_ONCE,
    Encoder,
    blocks_of_range,
    is_known,
    rank_range,
)
from trainer.retrieval.known import KnownUsers, known_users
from trainer.retrieval.search.item_lists import ItemLists

OnBlock = Callable[[], None]


class SideWriter:
    """One side's vectors and which of them are known, of all ranks."""

    def __init__(self, folder: Path, ranks: Ranks, rows: int, precision: Precision) -> None:
        self.folder, self.ranks, self.rows = folder, ranks, rows
        self.vectors = VectorWriter(folder, precision, searched=folder.name == "items")
        self.width = 0
        self.unknown = 0
        """Rows of this rank of which the model knows nothing."""
        self.mean_D: Tensor | None = None
        """Mean of what is known in the ranks' first blocks: rows are dealt by hash, so of any."""

    def write(self, row_n: np.ndarray, embedding_nD: Tensor) -> None:
        """Rows, consecutive, with their embeddings. Collective, for the first block."""
        known_n = is_known(embedding_nD)
        if self.mean_D is None:
            self.width = embedding_nD.size(1)
            self.mean_D = _mean_of_all(embedding_nD[known_n])  # collective
            together(self._create)  # collective
        if not len(row_n):
            return
        self.unknown += int((~known_n).sum())  # device-to-host sync
        filled_nD = torch.where(known_n.unsqueeze(1), embedding_nD, self.mean_D)
        first = int(row_n[0])
        self.vectors.write(first, filled_nD.float().cpu().numpy())  # device-to-host sync
        RangeArray(self.folder / "known.npy").write(first, known_n.cpu().numpy())

    def _create(self) -> None:
        if self.ranks.is_first:
            self.vectors.create(self.rows, self.width)
            RangeArray.create(self.folder / "known.npy", (self.rows,), np.bool_)


def _mean_of_all(embedding_nD: Tensor) -> Tensor:
    """Mean of all ranks' rows, [D]; zeros where there are none. Collective."""
    sums = torch.cat([embedding_nD.double().sum(0), embedding_nD.new_tensor([len(embedding_nD)])])
    dist.all_reduce(sums)  # collective
    return (sums[:-1] / sums[-1].clamp(min=1)).to(embedding_nD.dtype)


def write_items(
    encoder: Encoder,
    folder: Path,
    precision: Precision,
    on_block: OnBlock,
    watch: Callable[[np.ndarray, Tensor], None] | None = None,
) -> SideWriter:
    """The item vectors of this rank's range; `watch` is shown each block. Collective."""
    side = SideWriter(folder, encoder.ranks, encoder.num_items, precision)
    for row_n, block_nD in encoder.item_blocks():  # collective
        side.write(row_n, block_nD)  # collective
        if watch is not None and len(row_n):
            watch(row_n, block_nD)
        on_block()
    return side


def write_users(
    encoder: Encoder,
    dataset: Dataset,
    folder: Path,
    precision: Precision,
    on_block: OnBlock,
) -> SideWriter:
    """The user vectors of this rank's range, by the history of today, and all users' lists.

    Collective.
    """
    ranks = encoder.ranks
    side = SideWriter(folder, ranks, dataset.num_users, precision)
    longest = min(ROWS_AT_ONCE, -(-dataset.num_users // ranks.world_size))
    first, stop = rank_range(dataset.num_users, ranks)
    with ExitStack() as stack:
        known = _known(stack, dataset, folder, ranks, (first, stop), encoder.marks)
        for row_n in blocks_of_range(dataset.num_users, ranks):
            user_q = torch.full((longest,), -1)
            user_q[: len(row_n)] = torch.from_numpy(row_n)
            history = disliked = ItemLists.from_lists([[]])
            if len(row_n) and (encoder.uses_history or ranks.is_first):
                block = next(known)
                history, disliked = block.history, block.disliked
            query_qD = encoder.queries(  # collective
                user_q, history.padded(longest), disliked.padded(longest)
            )
            side.write(row_n, query_qD[: len(row_n)])  # collective
            on_block()
        for _ in known if ranks.is_first else ():
            on_block()
    return side


def write_lists_alone(
    dataset: Dataset, folder: Path, on_block: OnBlock, marks: Marks | None
) -> None:
    """Rank 0: what is known of all users, without their vectors."""
    with ExitStack() as stack:
        rank = Ranks(0, 1, 0, 1, torch.device("cpu"))
        for _ in _known(stack, dataset, folder, rank, (0, dataset.num_users), marks):
            on_block()
    RangeArray.create(folder / "known.npy", (dataset.num_users,), np.bool_)
    RangeArray(folder / "known.npy").write(0, np.ones(dataset.num_users, dtype=np.bool_))


def _known(
    stack: ExitStack,
    dataset: Dataset,
    folder: Path,
    ranks: Ranks,
    own: tuple[int, int],
    marks: Marks | None,
) -> Iterator[KnownUsers]:
    """What is known of a rank's users, block by block; of rank 0 then of the others', and written
    as it goes by. The files are whole once the stack is left."""
    first, stop = own
    if not ranks.is_first:
        return known_users(dataset, first, stop, ROWS_AT_ONCE, marks=marks)
    small = np.int32 if dataset.num_items < 2**31 else np.int64
    kinds = {name: np.int64 if marks and name == "history" else small for name in LISTS}
    files = [stack.enter_context(GrowingLists(folder, name, kinds[name])) for name in LISTS]
    blocks = chain(
        known_users(dataset, first, stop, ROWS_AT_ONCE, marks=marks),
        known_users(dataset, stop, dataset.num_users, ROWS_AT_ONCE, marks=marks),
    )

    def written() -> Iterator[KnownUsers]:
        for block in blocks:
            for name, file in zip(LISTS, files, strict=True):
                lists: ItemLists = getattr(block, name)
                file.append(lists.values.numpy(), lists.lengths.numpy())
            yield block

    return written()
