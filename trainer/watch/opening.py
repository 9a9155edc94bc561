"""What training begins with: three lines on the data, the model and the loss."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from torch.nn import Module
from torchrec.distributed.model_parallel import DistributedModelParallel

from embeddings.tables import Table
from trainer.base.byte_sizes import as_bytes
from trainer.config.sections import Config
from trainer.data.schema import Dataset, EventWindow
from trainer.distributed.ranks import Ranks
from trainer.watch.window_watch import span

VALUE_BYTES = {"fp32": 4, "fp16": 2}


def opening(config: Config, dataset: Dataset, model: DistributedModelParallel, ranks: Ranks) -> str:
    """The lines. No collective."""
    inputs, head = model.module.inputs, model.module.head
    told = [_data(config, dataset), _model(config, inputs.tables, head), _loss(config, ranks)]
    return "\n".join(told)


def _data(config: Config, dataset: Dataset) -> str:
    rows = sum(dataset.splits[name].positives for name in config.data.train_splits)
    said = f"data   {rows:,} rows of {dataset.num_users:,} users and {dataset.num_items:,} items"
    when = re.sub(r" [0-9]{2}:[0-9]{2}", "", span(whole(dataset)).removesuffix(", "))  # days
    return f"{said}, {when}" if when else said


def whole(dataset: Dataset) -> EventWindow:
    """All windows as one."""
    times = [
        moment
        for window in dataset.windows
        for moment in (window.first_time, window.last_time)
        if moment is not None
    ]
    first, last = min(times, default=None), max(times, default=None)
    return replace(dataset.windows[0], first_time=first, last_time=last)


def _model(config: Config, tables: Sequence[Table], head: Module) -> str:
    rows = {table.name: table.num_rows for table in tables}
    values = sum(table.num_rows * table.dim for table in tables)
    towers = sum(each.numel() for each in head.parameters())
    size = 4 * towers + sum(t.num_rows * t.dim * VALUE_BYTES[t.precision] for t in tables)
    named = ", ".join(f"{name} {count:,}" for name, count in rows.items())
    return (
        f"model  {config.model.tower} towers, {config.model.dim} wide; rows of tables: {named}; "
        f"{values + towers:,} parameters ({as_bytes(size)})"
    )


def _loss(config: Config, ranks: Ranks) -> str:
    loss, negatives = config.loss, config.negatives
    said = f"loss   {loss.name}"
    if loss.temperature is not None:
        said += f" at temperature {loss.temperature:g}"
    sources = [
        *(["of the batch"] if negatives.in_batch else []),
        *([f"{negatives.uniform:,} uniform"] if negatives.uniform else []),
        *([f"{negatives.popularity:,} by popularity"] if negatives.popularity else []),
        *([f"{negatives.queue:,} of steps before"] if negatives.queue else []),
        *(["mined"] if negatives.mined else []),
    ]
    corrected = "" if negatives.log_q == "none" else f" (log Q: {negatives.log_q})"
    workers = f"{ranks.world_size} {'worker' if ranks.world_size == 1 else 'workers'}"
    return (
        f"{said}; negatives {' and '.join(sources)}{corrected}; batch "
        f"{config.training.global_batch_size:,}; {workers} on {ranks.device.type.upper()}"
    )
