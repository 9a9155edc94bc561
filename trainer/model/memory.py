"""Whether a run can fit into this machine's memory at all, reckoned before anything is allocated.

A lower bound of what training holds: tables with their optimizer's state, candidates and negatives,
the queue, the estimate of log Q, rows looked up and what a tower makes of them. What is refused
here could not have run; what is let through may still be too much (`tandem plan` reckons closer).
"""

from __future__ import annotations

import torch
from torch import nn

from trainer.base.machine import usable_memory_bytes
from trainer.base.mistake import Mistake
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks
from trainer.model.build import build_task, drawn_items
from trainer.model.inputs import build_inputs
from trainer.model.task import RetrievalTask

FLOAT_BYTES = 4
STATE_BYTES_A_COLUMN = {"rowwise_adagrad": 0, "adagrad": 4, "adam": 8, "sgd": 0}
REMEDIES = {
    "tables": "lower model.dim, set model.table_precision to fp16, or take more workers",
    "candidates": "lower training.global_batch_size or the sampled negatives",
    "queue": "lower negatives.queue",
    "frequencies": "set negatives.log_q to counts",
    "rows": "lower training.global_batch_size or the sampled negatives",
}


def check_memory(config: Config, dataset: Dataset, ranks: Ranks) -> None:
    """Raise Mistake where the least that a worker needs is more than its machine has."""
    parts = least_bytes(config, dataset, ranks.world_size)
    if ranks.device.type == "cuda":
        have = torch.cuda.get_device_properties(ranks.device).total_memory
        if config.model.placement == "uvm_caching":
            parts["tables"] = 0
    else:
        have = usable_memory_bytes() // ranks.local_world_size
    needed = sum(parts.values())
    if needed <= have:
        return
    largest = max(parts, key=lambda name: parts[name])
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
    raise Mistake(
        f"training needs at least {_gib(needed)} of memory a worker ({listed}), and there are "
        f"{_gib(have)}: {REMEDIES[largest]}"
    )


def least_bytes(config: Config, dataset: Dataset, world_size: int) -> dict[str, int]:
    """Bytes that a worker holds at the same time, at least, by what holds them."""
    model, negatives = config.model, config.negatives
    inputs = build_inputs(model, dataset)
    task = task_without_memory(config, dataset)
    weight_bytes = FLOAT_BYTES if model.table_precision == "fp32" else 2
    column_bytes = weight_bytes + STATE_BYTES_A_COLUMN[config.optimizer.tables]
    sampled = negatives.uniform + negatives.popularity
    columns = sampled + (config.training.global_batch_size if negatives.in_batch else 0)
    bags = -(-(config.training.global_batch_size + sampled) // world_size)
    if negatives.mined is not None:
        bags += config.training.global_batch_size // world_size * negatives.mined_each
    pooled = bags * inputs.pooled_columns() * FLOAT_BYTES
    hidden = sum(model.hidden) if model.concatenates else 0
    kept = bags * (hidden + model.width) * FLOAT_BYTES  # by a tower, for its backward
    return {
        "tables": sum(
            -(-table.num_rows // world_size) * table.dim * column_bytes for table in inputs.tables
        ),
        # and their gradient; of the first columns alone again
        "candidates": 2 * columns * (model.width + sum(model.widths[:-1])) * FLOAT_BYTES,
        "queue": held_bytes(task.queue),
        "frequencies": held_bytes(task.correction.estimator),
        "rows": 2 * pooled + kept + inputs.dense_bytes(bags, bags),
    }


def task_without_memory(config: Config, dataset: Dataset) -> RetrievalTask:
    """Loss, queue and estimate of log Q by their shapes alone."""
    estimates = config.negatives.log_q == "streaming"
    with torch.device("meta"):
        items = drawn_items(config, dataset) if estimates else dataset.num_items
        return build_task(config, dataset, items)


def held_bytes(module: nn.Module | None) -> int:
    """Of a module's parameters and buffers, whether or not memory is behind them."""
    if module is None:
        return 0
    return sum(each.nbytes for each in (*module.parameters(), *module.buffers()))


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
