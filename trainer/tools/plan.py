"""`tandem plan`: would this run fit on a cluster that is not there, and what would a step move?

TorchRec's planner shards the tables over a made-up topology; bytes are counted from shapes. No
process group, no GPU and no memory of the tables' size is needed.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torchrec.distributed.planner.types import PlannerError

from embeddings.choices import TableOptimizer
from embeddings.sharding import STORAGE_RESERVED, Layout, describe, make_planner, sharders
from embeddings.tables import Table
from trainer.base.byte_sizes import as_bytes, bytes_of
from trainer.base.mistake import Mistake
from trainer.base.screen import Sheet, say
from trainer.command_line import PlanArguments
from trainer.config.sections import Config
from trainer.data.neighbours import NEIGHBOUR_KEYS
from trainer.data.packing import full_sequences
from trainer.data.schema import Dataset
from trainer.model.build import build_task
from trainer.model.inputs import Inputs, build_inputs
from trainer.model.two_tower import TwoTower
from trainer.tools.distinct_columns import distinct_share

LOSS_WORKSPACE_BYTES = 160 * 1024**2
ROWS_TRIED = 256
SMALLEST_DEVICE = 2**20
LARGEST_DEVICE = 2**50
DOES_NOT_FIT = 3
"""Exit status of a plan that does not fit."""
STATE_BYTES_A_ROW = {"rowwise_adagrad": (0, 4), "adagrad": (4, 0), "adam": (8, 0), "sgd": (0, 0)}
"""Optimizer state of a row: bytes for each column, and bytes beside."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of the fullest rank, and bytes a rank sends in a step."""

    weights: int
    optimizer_state: int
    towers: int
    activations: int
    limit: int
    sent_ids: int
    sent_embeddings: int
    sent_candidates: int
    sent_tower_gradients: int
    distinct_columns: float
    """Share of a step's columns, mined ones aside, that are different items."""

    @property
    def total(self) -> int:
        """Bytes needed on the fullest rank."""
        return self.weights + self.optimizer_state + self.towers + self.activations

    @property
    def fits(self) -> bool:
        return self.total <= self.limit


@dataclass(frozen=True)
class Plan:
    """What `tandem plan` prints."""

    gpus: int
    local_batch_size: int
    estimate: Estimate
    tables: dict[str, dict[str, object]] | None
    """The planner's shards by table; None where the planner found none that fits."""
    advice: tuple[str, ...]

    def to_json(self) -> str:
        estimate = {**asdict(self.estimate), "total": self.estimate.total}
        return json.dumps({**asdict(self), "estimate": estimate, "fits": self.estimate.fits})


def make_plan(
    config: Config, dataset: Dataset, gpus: int, gpu_bytes: int, gpus_a_node: int = 8
) -> Plan:
    """Plan `config` on `gpus` devices of `gpu_bytes` each. No collective.

    Raises:
        Mistake: where the global batch does not divide by the GPUs.
    """
    batch = config.training.global_batch_size
    if gpus < 1 or batch % gpus:
        raise Mistake(
            f"training.global_batch_size={batch} does not divide by {gpus} GPUs; "
            f"set it to a multiple, such as {-(-batch // max(gpus, 1)) * max(gpus, 1)}"
        )
    inputs = build_inputs(config.model, dataset, config.data.train_splits)
    model = TwoTower(config.model, inputs, build_task(config, dataset, dataset.num_items))
    layout = Layout(gpus, min(gpus, gpus_a_node), "cuda", device_bytes=gpu_bytes)
    planner = make_planner(
        inputs.tables, layout, batch // gpus, config.model.sharding, config.model.placement
    )
    try:
        tables = describe(planner.plan(model, sharders()))
    except PlannerError:
        tables = None
    estimate = estimate_bytes(config, dataset, model, gpus, gpu_bytes)
    return Plan(gpus, batch // gpus, estimate, tables, advise(config, inputs, gpus, estimate))


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
    id_bytes = 8 * (ids + bags * len(inputs.keys))  # the values and the lengths
    weights = sum(_weight_bytes(table, gpus) for table in inputs.tables)
    state = sum(_state_bytes(table, config.optimizer.tables, gpus) for table in inputs.tables)
    tower_parameters = sum(p.numel() for p in model.head.parameters())
    query_row, candidate_row = saved_bytes_of_row(model, config.model.dim)
    on_host = config.model.placement == "uvm_caching"
    away = (gpus - 1) / gpus
    return Estimate(
        weights=int(weights * 0.2) if on_host else weights,
        optimizer_state=int(state * 0.2) if on_host else state,
        towers=tower_parameters * 16,
        # ids before and after their exchange; pooled rows and their gradient, a row-wise
        # reduce-scatter's input; what the towers keep for their backward and its gradients;
        # the gathered columns and their gradient; the loss's stripes
        activations=2 * id_bytes
        + pooled * (2 + gpus)
        + 2 * (local_rows * query_row + bags * candidate_row)
        + columns * width * 8
        + inputs.dense_bytes(local_rows, bags)
        + LOSS_WORKSPACE_BYTES,
        limit=int(gpu_bytes * (1 - STORAGE_RESERVED)),
        sent_ids=int(id_bytes * away),
        sent_embeddings=int(2 * pooled * (gpus - 1)),
        sent_candidates=int(2 * columns * width * 4 * away),
        sent_tower_gradients=int(2 * tower_parameters * 4 * away),
        distinct_columns=distinct,
    )


def _ids_of_row(key: str, config: Config, dataset: Dataset) -> int:
    """Ids of a feature in one row, at most."""
    if key == "history" and config.model.tower == "sequence":
        return 1  # at most an item of each token, and those are about as many as rows
    if key in ("history", "disliked"):
        return config.data.history_length or dataset.history_length
    if key in NEIGHBOUR_KEYS:
        rows = dataset.num_users if key == "user_items" else dataset.num_items
        mean = -(-dataset.splits["train"].positives // max(rows, 1))
        return config.model.neighbours or mean
    return 1


def saved_bytes_of_row(model: TwoTower, dim: int) -> tuple[int, int]:
    """Bytes that the query and the candidate tower keep for their backward, a row.

    Counted on a few rows: all that autograd saves, parameters and the towers' inputs aside.
    """
    inputs, towers = model.inputs, model.head.towers
    keys = (*inputs.keys, *inputs.dense)
    parts = {key: torch.ones(ROWS_TRIED, dim, requires_grad=True) for key in keys}
    packed = full_sequences(ROWS_TRIED, inputs.sequence_length) if inputs.sequence_length else None
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


def advise(config: Config, inputs: Inputs, gpus: int, estimate: Estimate) -> tuple[str, ...]:
    """What to change where it does not fit, what saves most first."""
    if estimate.fits:
        return ()
    tables, batch = estimate.weights + estimate.optimizer_state, config.training.global_batch_size
    saving = [
        (tables // 2, f"--model.dim {config.model.dim // 2}"),
        (estimate.activations // 2, f"--training.global-batch-size {batch // 2}"),
    ]
    if config.optimizer.tables in ("adagrad", "adam"):
        saving.append((estimate.optimizer_state, "--optimizer.tables rowwise_adagrad"))
    if config.model.table_precision == "fp32":
        saving.append((estimate.weights // 2, "--model.table-precision fp16"))
    if config.model.placement == "device":
        on_host = "--model.placement uvm_caching (tables in host memory, rows cached)"
        saving.append((int(tables * 0.8), on_host))
    ordered = sorted(saving, key=lambda each: -each[0])
    advice = [f"{change} saves about {as_bytes(saved)} a GPU" for saved, change in ordered]
    room = estimate.limit - estimate.towers - estimate.activations
    if room > 0:
        needed = -(-gpus * tables // room)
        advice.append(f"about {needed} GPUs of this size hold the tables as they are")
    else:
        over = as_bytes(estimate.towers + estimate.activations - estimate.limit)
        advice.append(
            f"activations and towers alone are {over} too much: a smaller batch is a must"
        )
    return tuple(advice)


def device_bytes(text: str) -> int:
    """Memory of a GPU: "80GB", "80 GiB" or a plain number of bytes. Raises Mistake on others."""
    size = bytes_of(text, "--gpu-memory", "80GB")
    if size > LARGEST_DEVICE:
        raise Mistake(
            f"--gpu-memory {text!r} is {size:,} bytes, more than any GPU's memory: write 80GB"
        )
    if size < SMALLEST_DEVICE:
        raise Mistake(f"--gpu-memory {text!r} is {size} bytes, no GPU's memory: write {size}GB")
    return size


def show(plan: Plan) -> None:
    """Print the plan as tables."""
    estimate = plan.estimate
    if plan.tables is not None:
        headings = ("table", "sharding", "kernel", "most rows on a GPU")
        shards = Sheet(*headings, numbers=headings[-1:], title=f"tables on {plan.gpus} GPUs")
        for name, facts in plan.tables.items():
            most = max(rows for _, rows in facts["rows_by_rank"])  # type: ignore[attr-defined]
            kind, kernel = str(facts["sharding_type"]), str(facts["compute_kernel"])
            shards.add(name, kind, kernel, f"{most:,}")
        shards.print()
    given = estimate.limit / (1 - STORAGE_RESERVED)
    rows = f"{plan.local_batch_size:,} rows a step on each of {plan.gpus} GPUs"
    budget = Sheet("on the fullest GPU", "memory", numbers=("memory",), title=rows)
    for name in ("weights", "optimizer_state", "towers", "activations", "total"):
        budget.add(name.replace("_", " "), as_bytes(getattr(estimate, name)))
    limit = f"limit: 90 % of {as_bytes(given)}"
    budget.add(limit, as_bytes(estimate.limit), ends_section=True)
    for name in ("sent_ids", "sent_embeddings", "sent_candidates", "sent_tower_gradients"):
        label = f"sent in a step: {name[5:].replace('_', ' ')}"
        budget.add(label, as_bytes(getattr(estimate, name)))
    budget.print()
    say(f"{estimate.distinct_columns:.0%} of a step's columns are different items")
    missing = as_bytes(estimate.total - estimate.limit)
    say("it fits" if estimate.fits else f"it does not fit: {missing} too much. What helps:")
    for line in plan.advice:
        say(f"  {line}")


def plan(arguments: PlanArguments) -> int:
    """Plan and print; returns the exit status."""
    made = make_plan(
        arguments.config,
        Dataset.load(arguments.data),
        arguments.gpus,
        device_bytes(arguments.gpu_memory),
        arguments.gpus_a_node,
    )
    if arguments.json:
        print(made.to_json())
    else:
        show(made)
    return 0 if made.estimate.fits else DOES_NOT_FIT
