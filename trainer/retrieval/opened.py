"""A run in memory, for one question or for many."""

from __future__ import annotations

from functools import cached_property

from trainer.distributed.ranks import Ranks
from trainer.files.storage import StoragePath
from trainer.model.trained import load_run
from trainer.retrieval.encode import Encoder
from trainer.retrieval.search.topk import ItemRows


class OpenedRun:
    """A run's model and what it reads; the catalog's embeddings once they are asked for.

    Collective: every rank makes one.
    """

    def __init__(self, run: str | StoragePath, ranks: Ranks, data: str | None = None) -> None:
        self.ranks = ranks
        self.trained = load_run(run, ranks, data)  # collective
        self.encoder = Encoder.of_run(self.trained, ranks)

    @cached_property
    def items(self) -> ItemRows:
        """This rank's range of the catalog, encoded. Collective. Memory: 4 * I * D bytes."""
        return self.encoder.items()
