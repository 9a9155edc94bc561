"""Rows of tables that a window is the first to look up begin when its turn comes.

Until then they are zeros, as rows of unknown ids are: what nobody has met says nothing, and an
evaluation on a window before it is trained takes an item that is new in it by its features alone.
"""

from __future__ import annotations

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from embeddings.sharding import initialise
from trainer.config.sections import Config
from trainer.data.events.event_stream import Before, EventStream
from trainer.data.feature_bags import rows_of
from trainer.data.schema import Dataset
from trainer.data.trained_rows import with_values
from trainer.model.inputs import Inputs


def stream_of(
    config: Config, dataset: Dataset, inputs: Inputs, met: Before | None = None
) -> EventStream:
    """The dataset's windows as a model trains on them that has met some."""
    context = [key for key in inputs.keys if key.startswith("context.")]
    trained = config.loss.uses_dislikes
    read = trained or inputs.reads_disliked
    return EventStream(dataset, trained, read, context, met)


def admit(
    model: DistributedModelParallel, config: Config, stream: EventStream, number: int
) -> None:
    """First values for rows of the window's ids that are zeros. No collective."""
    inputs: Inputs = model.module.inputs
    facts = stream.facts(number)
    met = {"user": facts.user_U, "item": facts.item_I, **facts.context}
    found = with_values(stream.dataset, inputs.keys, met)
    trained = {
        table.name: torch.from_numpy(found[rows_of(table.features[0])]) for table in inputs.tables
    }
    whole = {table.name: table.num_rows for table in inputs.tables}
    initialise(model, inputs.tables, config.training.seed, trained, from_row=whole)


def draw_from(model: DistributedModelParallel, stream: EventStream, number: int) -> None:
    """Have log Q be that of a window's rows, and of the items met by then. No collective."""
    count_I = stream.facts(number).count_I
    known_I = stream.before(number).liked_I | (count_I > 0)
    model.module.head.task.correction.enter(int(count_I.sum()), int(known_I.sum()))
