"""Bytes of a run on devices that are not there, counted from shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from embeddings.choices import TableOptimizer
from embeddings.sharding import STORAGE_RESERVED
from embeddings.tables import Table
from trainer.config.sections import Config
from trainer.data.events.event_stream import WINDOW_BYTES_A_USER, WINDOW_BYTES_AN_ITEM
from trainer.data.packing import full_sequences
from trainer.data.schema import Dataset
from trainer.loader.mined import mined_bytes
from trainer.model.memory import held_bytes
from trainer.model.spectral import OVERSAMPLE
from trainer.model.two_tower import TwoTower
from trainer.tools.distinct_columns import distinct_share

LOSS_WORKSPACE_BYTES = 160 * 1024**2
SIDE_BYTES = 40
"""Of a candidate, told to every rank before the step's columns are planned."""
COLUMN_BYTES = 48
"""Of ids, counts and log Q of a column."""
ROWS_TRIED = 256
STATE_BYTES_A_ROW = {"rowwise_adagrad": (0, 4), "adagrad": (4, 0), "adam": (8, 0), "sgd": (0, 0)}
"""Optimizer state of a row: bytes for each column, and bytes beside."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of the fullest rank, and bytes a rank sends in a step."""

    weights: int
    optimizer_state: int
    towers: int
    tower_average: int
    queue: int
    frequencies: int
    """Of the streaming estimate of log Q."""
    activations: int
    limit: int
    sent_ids: int
    sent_embeddings: int
    sent_candidates: int
    sent_tower_gradients: int
    distinct_columns: float
    """Share of a step's columns, mined ones aside, that are different items."""

    host: dict[str, int]
    """Bytes of a worker's own machine, by what holds them; where something does."""

    @property
    def total(self) -> int:
        """Bytes needed on the fullest rank."""
        return self.weights + self.optimizer_state + self.beside_tables

    @property
    def beside_tables(self) -> int:
        state = self.tower_average + self.queue + self.frequencies
        return self.towers + state + self.activations

    @property
    def fits(self) -> bool:
        return self.total <= self.limit


def estimate_bytes(
    config: Config, dataset: Dataset, model: TwoTower, gpus: int, gpu_bytes: int
) -> Estimate:
    """Count bytes from shapes, for row-wise shards (the fullest rank rounds its rows up).

    Ids: at most, as if all lists were full; a multi-valued attribute counts as one id. Columns: as
    many as are expected to be different; mined ones as if no item came twice.
    """
    negatives, inputs = config.negatives, model.inputs
    local_rows = config.training.global_batch_size // gpus
    bags = local_rows + -(-(negatives.uniform + negatives.popularity) // gpus)
    mined = 0 if negatives.mined is None else local_rows * negatives.mined_each
    distinct = distinct_share(config, dataset)
    drawn = bags if negatives.in_batch else bags - local_rows
    columns, bags = gpus * (math.ceil(drawn * distinct) + mined), bags + mined
    width = config.model.width
    pooled = bags * inputs.pooled_columns() * 4
    ids = sum(
        (local_rows if key in inputs.query_keys else bags) * _ids_of_row(key, config, dataset)
        for key in inputs.keys
    )
    # every rank is told the lengths of all bags, and their sum by key
    id_bytes = 8 * (ids + (bags + 1) * len(inputs.keys) * gpus)
    weights = sum(_weight_bytes(table, gpus) for table in inputs.tables)
    state = sum(_state_bytes(table, config.optimizer.tables, gpus) for table in inputs.tables)
    tower_parameters = sum(p.numel() for p in model.head.parameters() if p.requires_grad)
    query_row, candidate_row = saved_bytes_of_row(model, config.model.dim)
    task, queued = model.head.task, negatives.queue
    harder = 0
    if config.loss.hardness:  # queries scaled anew with their gradient, a column of each walk
        harder = local_rows * (3 * width + 1) * 4 + (columns + queued) * 4
    # Columns, queries and positives cut, of length 1 again, as scored, and their gradients.
    narrow = sum(config.model.widths[:-1])
    cut = narrow * 4 * (5 * (columns + queued) + 8 * local_rows * config.model.targets)
    on_host = config.model.placement == "uvm_caching"
    away = (gpus - 1) / gpus
    return Estimate(
        weights=int(weights * 0.2) if on_host else weights,
        optimizer_state=int(state * 0.2) if on_host else state,
        towers=tower_parameters * 16,
        tower_average=held_bytes(model.head.averaged),
        queue=held_bytes(task.queue),
        frequencies=held_bytes(task.correction.estimator),
        # ids before and after their exchange; pooled rows and their gradient, a row-wise
        # reduce-scatter's input; what the towers keep for their backward and its gradients;
        # further queries and positives of rows, and their gradient;
        # the columns as gathered, as scored and their gradient; with a queue, what they are put
        # together from; the loss's stripes
        activations=2 * id_bytes
        + pooled * (2 + gpus)
        + 2 * (local_rows * query_row + bags * candidate_row)
        + (config.model.targets - 1) * local_rows * width * 12
        + (columns + queued) * (3 * width * 4 + COLUMN_BYTES)
        + (columns + queued if queued else 0) * width * 4
        + harder
        + cut
        + inputs.dense_bytes(local_rows, bags)
        + LOSS_WORKSPACE_BYTES,
        limit=int(gpu_bytes * (1 - STORAGE_RESERVED)),
        sent_ids=int(id_bytes * away) + SIDE_BYTES * bags * (gpus - 1),
        sent_embeddings=int(2 * pooled * (gpus - 1)),
        sent_candidates=int(2 * columns * width * 4 * away),
        sent_tower_gradients=int(2 * tower_parameters * 4 * away),
        distinct_columns=distinct,
        host=host_bytes(config, dataset, weights + state if on_host else 0),
    )


def host_bytes(config: Config, dataset: Dataset, tables: int) -> dict[str, int]:
    """What settings have a worker hold on its machine, beside the data that it reads."""
    model, items, users = config.model, dataset.num_items, dataset.num_users
    mined = 0
    if config.negatives.mined is not None:
        mined = mined_bytes(config.negatives.mined, dataset)
    parts = {
        "tables": tables,
        "mined negatives": mined,
        "windows": WINDOW_BYTES_AN_ITEM * items + WINDOW_BYTES_A_USER * users
        if config.data.windows
        else 0,
        "spectral start": 4 * (users + 3 * items) * (model.dim + OVERSAMPLE)
        if model.spectral_start
        else 0,
    }
    return {name: size for name, size in parts.items() if size}


def _ids_of_row(key: str, config: Config, dataset: Dataset) -> int:
    """Ids of a feature in one row, at most."""
    if key == "history" and config.model.tower == "sequence":
        return 1  # at most an item of each token, and those are about as many as rows
    if key in ("history", "disliked"):
        return config.data.history_length or dataset.history_length
    return 1


def saved_bytes_of_row(model: TwoTower, dim: int) -> tuple[int, int]:
    """Bytes that the query and the candidate tower keep for their backward, a row.

    Counted on a few rows: all that autograd saves, parameters and the towers' inputs aside.
    """
    inputs, towers = model.inputs, model.head.towers
    keys = (*inputs.keys, *inputs.dense)
    parts = {key: torch.ones(ROWS_TRIED, dim, requires_grad=True) for key in keys}
    packed, marked = None, inputs.marks is not None
    if inputs.sequence_length:
        packed = full_sequences(ROWS_TRIED, inputs.sequence_length, marked)
    known = {each.untyped_storage().data_ptr() for each in (*parts.values(), *towers.parameters())}
    counted = []
    for encode in (
        lambda: towers.encode_queries(parts, ROWS_TRIED, packed),
        lambda: towers.encode_candidates(parts),
    ):
        saved: dict[int, int] = {}

        def keep(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = encode()
        counted.append((sum(saved.values()) + output.numel() * 4) // ROWS_TRIED)
        del output
    return counted[0], counted[1]


def _weight_bytes(table: Table, gpus: int) -> int:
    return -(-table.num_rows // gpus) * table.dim * (4 if table.precision == "fp32" else 2)


def _state_bytes(table: Table, optimizer: TableOptimizer, gpus: int) -> int:
    a_column, a_row = STATE_BYTES_A_ROW[optimizer]
    return -(-table.num_rows // gpus) * (table.dim * a_column + a_row)
