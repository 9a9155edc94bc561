"""A run in memory, for one question or for many."""

from __future__ import annotations

from functools import cached_property

from trainer.distributed.agreement import first_decides
from trainer.distributed.ranks import Ranks
from trainer.files.storage import StoragePath, storage_path
from trainer.model.trained import TrainedRun, load_run
from trainer.retrieval.encode import Encoder
from trainer.retrieval.joining.joined import join
from trainer.retrieval.search.topk import ItemRows
from trainer.run.asked.beside import beside_folder, check_pair, joined_with


class OpenedRun:
    """A run's model and what it reads; the catalog's embeddings once they are asked for.

    Where a second model stands beside it, the encoder is of both.

    Collective: every rank makes one.
    """

    def __init__(self, run: str | StoragePath, ranks: Ranks, data: str | None = None) -> None:
        self.ranks = ranks
        self.trained = load_run(run, ranks, data)  # collective
        self.encoder = Encoder.of_run(self.trained, ranks)
        self.second: TrainedRun | None = None
        """The model beside it."""
        folder = storage_path(run)
        beside = first_decides(lambda: joined_with(folder))  # collective
        if beside is not None:
            dataset = self.trained.dataset
            self.second = load_run(beside_folder(folder), ranks, dataset.path)  # collective
            check_pair(self.trained.config, self.second.config)
            second = Encoder.of_run(self.second, ranks)
            join(self.encoder, second, beside.weight, dataset)  # collective

    @cached_property
    def items(self) -> ItemRows:
        """This rank's range of the catalog, encoded. Collective. Memory: 4 * I * D bytes."""
        return self.encoder.items()
