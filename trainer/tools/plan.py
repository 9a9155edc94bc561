"""`tandem plan`: would this run fit on a cluster that is not there, and what would a step move?

TorchRec's planner shards the tables over a made-up topology; bytes are counted from shapes. No
process group, no GPU and no memory of the tables' size is needed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from torchrec.distributed.planner.types import PlannerError

from embeddings.sharding import STORAGE_RESERVED, Layout, describe, make_planner, sharders
from trainer.base.byte_sizes import as_bytes
from trainer.base.mistake import Mistake
from trainer.base.screen import Sheet, say
from trainer.command_line import PlanArguments
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.model.inputs import Inputs, build_inputs
from trainer.model.memory import task_without_memory
from trainer.model.two_tower import TwoTower
from trainer.tools.plan_bytes import Estimate, estimate_bytes
from trainer.tools.planned_gpus import FoundGpus, PlannedGpus, gpus_here, planned_gpus

MAYBE = ("tower_average", "queue", "frequencies")
"""Parts that are shown where there are some."""
DOES_NOT_FIT = 3
"""Exit status of a plan that does not fit."""


@dataclass(frozen=True)
class Plan:
    """What `tandem plan` prints."""

    gpus: int
    local_batch_size: int
    estimate: Estimate
    tables: dict[str, dict[str, object]] | None
    """The planner's shards by table; None where the planner found none that fits."""
    advice: tuple[str, ...]

    def described(self, gpus: PlannedGpus) -> dict[str, Any]:
        """As JSON has it. gpus: what it was made for."""
        estimate = {**asdict(self.estimate), "total": self.estimate.total}
        beside = {"estimate": estimate, "fits": self.estimate.fits, "gpus_told": gpus.told}
        return {**asdict(self), **beside}


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
    inputs = build_inputs(config.model, dataset)
    task = task_without_memory(config, dataset)
    model = TwoTower(config.model, inputs, task, averaging=config.optimizer.tower_averaging)
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
    if config.negatives.queue:
        saving.append((estimate.queue // 2, f"--negatives.queue {config.negatives.queue // 2}"))
    ordered = sorted(saving, key=lambda each: -each[0])
    advice = [f"{change} saves about {as_bytes(saved)} a GPU" for saved, change in ordered]
    room = estimate.limit - estimate.beside_tables
    if room > 0:
        needed = -(-gpus * tables // room)
        advice.append(f"about {needed} GPUs of this size hold the tables as they are")
    else:
        over = as_bytes(estimate.beside_tables - estimate.limit)
        advice.append(
            f"what is there beside the tables is {over} too much: a smaller batch is a must"
        )
    return tuple(advice)


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
    for name in ("weights", "optimizer_state", "towers", *MAYBE, "activations", "total"):
        if getattr(estimate, name) or name not in MAYBE:
            budget.add(name.replace("_", " "), as_bytes(getattr(estimate, name)))
    limit = f"limit: 90 % of {as_bytes(given)}"
    budget.add(limit, as_bytes(estimate.limit), ends_section=True)
    for name in ("sent_ids", "sent_embeddings", "sent_candidates", "sent_tower_gradients"):
        label = f"sent in a step: {name[5:].replace('_', ' ')}"
        budget.add(label, as_bytes(getattr(estimate, name)))
    budget.print()
    for name, size in estimate.host.items():
        say(f"each worker holds {as_bytes(size)} in its machine's memory: {name}")
    say(f"{100 * estimate.distinct_columns:.0f} % of a step's columns are different items")
    missing = as_bytes(estimate.total - estimate.limit)
    say("it fits" if estimate.fits else f"it does not fit: {missing} too much. What helps:")
    for line in plan.advice:
        say(f"  {line}")


def plan(arguments: PlanArguments, found: FoundGpus | None = None) -> int:
    """Plan and print; returns the exit status.

    found: GPUs of the cluster that is named; None: of this machine.
    """
    gpus = planned_gpus(arguments, found or gpus_here())
    dataset = Dataset.load(arguments.data)
    made = make_plan(arguments.config, dataset, gpus.count, gpus.memory, gpus.a_node)
    if arguments.json:
        print(json.dumps(made.described(gpus)))
    else:
        for line in gpus.told:
            say(line)
        show(made)
    return 0 if made.estimate.fits else DOES_NOT_FIT
