"""From rows of users and items to embeddings, through the sharded model.

Tensor shapes: I items of the rank, D embedding width, q queries of the rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trainer.base.split_names import count_column
from trainer.data.events.marks import Marks
from trainer.data.feature_bags import Features, list_of, looked_up
from trainer.data.features import FeatureStore
from trainer.data.packing import pack_lists
from trainer.data.schema import Dataset
from trainer.distributed.agreement import gather_objects
from trainer.distributed.ranks import Ranks
from trainer.model.trained import TrainedRun
from trainer.model.two_tower import TwoTower
from trainer.retrieval.search.item_lists import ItemLists
from trainer.retrieval.search.item_rows import ItemRows

ROWS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class SecondEncoder:
    """A second model beside an encoder's own: the inner product of two vectors is the sum of both
    models' scores."""

    encoder: Encoder
    scale: float
    """Of its vectors, those of queries and those of items."""


class Encoder:
    """A trained model with the features of the dataset's users and items.

    Methods marked collective look up sharded tables: every rank calls them, with as many rows.
    """

    def __init__(
        self,
        model: TwoTower,
        dataset: Dataset,
        ranks: Ranks,
        history_length: int | None = None,
        train_splits: Sequence[str] = ("train",),
    ) -> None:
        assert not model.training, "evaluation needs model.eval()"
        self.model = model
        self.ranks = ranks
        self.num_items = dataset.num_items
        self.num_users = dataset.num_users
        self.history_length = history_length
        self.counts = count_column(train_splits)
        """Column of items.parquet and users.parquet with their training interactions."""
        self.beside: SecondEncoder | None = None
        """A second model, whose columns stand behind this one's."""
        keys = (*model.inputs.query_keys, *model.inputs.candidate_keys, *model.inputs.dense)
        known = {table.name: table.known_rows for table in model.inputs.tables}
        self.store = FeatureStore(dataset, keys, self.counts, known)

    @staticmethod
    def of_run(trained: TrainedRun, ranks: Ranks) -> Encoder:
        """The encoder of a run, with the histories and the counts that it was trained with."""
        data = trained.config.data
        return Encoder(
            trained.model, trained.dataset, ranks, data.history_length, data.train_splits
        )

    @property
    def marks(self) -> Marks | None:
        """What items of histories carry, for `queries`."""
        return self.model.inputs.marks

    @property
    def uses_history(self) -> bool:
        """Whether queries depend on the users' histories."""
        own = any(list_of(key) is not None for key in self.model.inputs.query_keys)
        return own or (self.beside is not None and self.beside.encoder.uses_history)

    def unknown_ids(self) -> dict[str, int]:
        """Ids met so far, on all ranks, that the model has no row for, by feature. Collective."""
        total: Counter[str] = Counter()
        for counts in gather_objects({k: int(n) for k, n in self.model.unknown_ids.items()}):
            total.update(counts)
        if self.beside is not None:  # the same ids: counted once
            total |= Counter(self.beside.encoder.unknown_ids())  # collective
        return {key: count for key, count in total.items() if count}

    def queries(
        self,
        user_q: Tensor,
        history: ItemLists,
        disliked: ItemLists,
        context: Mapping[str, np.ndarray] | None = None,
    ) -> Tensor:
        """Users (-1: nobody, or somebody unknown) with their histories -> [q, D]. Collective.

        context: by key ("context.hour"), a value a query; what is not given is missing.
        """
        own_qD = self._own_queries(user_q, history, disliked, context)  # collective
        if self.beside is None:
            return own_qD
        second_qD = self.beside.encoder.queries(user_q, history, disliked, context)  # collective
        return torch.cat([own_qD, self.beside.scale * second_qD], dim=1)

    def _own_queries(
        self,
        user_q: Tensor,
        history: ItemLists,
        disliked: ItemLists,
        context: Mapping[str, np.ndarray] | None,
    ) -> Tensor:
        """Collective."""
        lists = {
            "history": history.bags(self.history_length),
            "disliked": disliked.bags(self.history_length),
        }
        inputs = self.model.inputs
        packed, stride = None, len(user_q)
        if inputs.sequence_length:
            marked = inputs.marks is not None
            packed = pack_lists(*lists["history"], inputs.sequence_length, marked)
            stride = self._most(max(stride, len(packed.item_D)))  # collective
        features = self.store.query_features(
            inputs.query_keys,
            user_q.numpy(),
            lists,
            inputs.query_dense,
            context,
            packed,
            stride,
            (inputs.event_keys, inputs.event_dense),
        )
        return self.model.encode_queries(features.to(self.ranks.device))  # collective

    def _most(self, number: int) -> int:
        """The largest number of any rank: they look up as many bags. Collective."""
        most = torch.tensor(number, device=self.ranks.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)  # collective
        return int(most)  # device-to-host sync

    def candidates(self, item_n: np.ndarray) -> Tensor:
        """Item rows (-1: none) -> [n, D]. Collective."""
        inputs, id_n = self.model.inputs, None
        if inputs.reads_disliked:
            # Whom nobody liked training knows as history alone: as a candidate it was neither a
            # positive nor drawn as a negative, and its id would stand anywhere in a ranking.
            id_n = np.where(self.store.count(item_n) > 0, item_n, -1)
        features = self.store.candidate_features(
            inputs.candidate_keys, item_n, inputs.candidate_dense, id_n
        )
        own_nD = self.model.encode_candidates(features.to(self.ranks.device))  # collective
        if self.beside is None:
            return own_nD
        second_nD = self.beside.encoder.candidates(item_n)  # collective
        return torch.cat([own_nD, self.beside.scale * second_nD], dim=1)

    def events(self, item_n: np.ndarray) -> Tensor:
        """Item rows (-1: none) as a sequence reads them -> [n, D]. Collective."""
        inputs, store = self.model.inputs, self.store
        said, dense = store.event_features(inputs.event_keys, inputs.event_dense, item_n)
        bags = [store.bags("item", item_n), *said.values()]
        together = looked_up(("history", *said), bags, len(item_n), store.row_of)
        features = Features(together, dense).to(self.ranks.device)
        return self.model.encode_events(features)  # collective

    def event_table(self) -> Tensor | None:
        """Every item as a sequence reads it, then zeros for one that is not known: [I + 1, D] on
        rank 0, None elsewhere. Collective. By way of the hosts: it need not fit a GPU."""
        ranks, first, whole = self.ranks, 0, None
        each = -(-self.num_items // ranks.world_size)
        for _, padded in self._padded_blocks():
            block_nD = self.events(padded).cpu()  # collective; device-to-host sync
            parts = [torch.empty_like(block_nD) for _ in range(ranks.world_size)]
            dist.gather(block_nD, parts if ranks.is_first else None)  # collective
            if ranks.is_first:
                if whole is None:
                    rows = each * ranks.world_size + 1
                    whole = block_nD.new_zeros((rows, block_nD.shape[1]))
                for rank, part in enumerate(parts):
                    start = rank * each + first
                    whole[start : (rank + 1) * each][: len(part)] = part[: each - first]
            first += len(padded)
        return None if whole is None else whole[: self.num_items + 1]

    def item_blocks(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(item rows [n], embeddings [n, D]) of this rank's range of the catalog, block by block.

        Collective: every rank takes all its blocks. Ranges have equal lengths but for the last
        ranks, whose blocks end in fewer or no rows.
        """
        for row_n, padded in self._padded_blocks():
            yield row_n, self.candidates(padded)[: len(row_n)]  # collective

    def _padded_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Item rows of this rank's range in blocks, and the same with -1 behind, as many on every
        rank."""
        longest = min(ROWS_AT_ONCE, -(-self.num_items // self.ranks.world_size))
        for row_n in blocks_of_range(self.num_items, self.ranks):
            padded = np.full(longest, -1)
            padded[: len(row_n)] = row_n
            yield row_n, padded

    def items(self, on_block: Callable[[], None] = lambda: None) -> ItemRows:
        """This rank's range of the catalog, encoded. Collective. Memory: 4 * I * D bytes.

        Items of which nothing is known (zeros) are in no ranking.

        Args:
            on_block: called after each block of items.
        """
        embedding_ID, filled = None, 0
        first, stop = rank_range(self.num_items, self.ranks)
        for _, block_nD in self.item_blocks():
            if embedding_ID is None:
                embedding_ID = block_nD.new_empty((stop - first, block_nD.size(1)))
            embedding_ID[filled : filled + len(block_nD)] = block_nD
            filled += len(block_nD)
            on_block()
        assert embedding_ID is not None and filled == stop - first
        nothing_known_X = (~is_known(embedding_ID)).nonzero().squeeze(1)  # device-to-host sync
        return ItemRows(embedding_ID, first, nothing_known_X)


def is_known(embedding_nD: Tensor) -> Tensor:
    """bool [n]: rows of which the model knows anything; it gives zeros for the others."""
    return (embedding_nD != 0).any(dim=1)


def rank_range(total: int, ranks: Ranks) -> tuple[int, int]:
    """This rank's contiguous part of 0..total-1: ceil(total / world size) rows, the last fewer."""
    each = -(-total // ranks.world_size)
    return min(ranks.rank * each, total), min((ranks.rank + 1) * each, total)


def blocks_of_range(total: int, ranks: Ranks) -> Iterator[np.ndarray]:
    """Rows of this rank's range in blocks; every rank gets as many blocks, some of them empty."""
    first, stop = rank_range(total, ranks)
    for start in range(0, -(-total // ranks.world_size), ROWS_AT_ONCE):
        yield np.arange(min(first + start, stop), min(first + start + ROWS_AT_ONCE, stop))
