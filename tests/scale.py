"""One rank of many, with its real tables, tower and step: what does it send?

    python -m tests.scale 512

The process group is torch's fake one: whatever the collectives are given is written down, and
nothing goes anywhere. Answers come as if all ranks had this one's batch, but for the step's
candidates, which are drawn for every rank. Shards are as large as they would be, so that 64 ranks
of the default workload take about 1 GiB here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embeddings.fused_optimizer import fuse_table_optimizer
from embeddings.sharding import make_planner, sharders
from embeddings.tables import Table, fill_rows
from losses.gather import gather_without_gradient
from tests.datasets import make_dataset
from trainer.base.split_names import count_column
from trainer.config.negatives_section import NegativesConfig
from trainer.config.presets import find_preset
from trainer.config.sections import Config
from trainer.data.parquet import open_parquet
from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks
from trainer.loader.batch import Batch
from trainer.loader.column_plan import make_plan, side_of
from trainer.model.build import build_layout, build_task
from trainer.model.inputs import build_inputs
from trainer.model.two_tower import TwoTower
from trainer.tools.plan import make_plan as plan_run
from trainer.watch.finite import Alarm

H100_BYTES = 80 * 2**30
CPU = torch.device("cpu")
ONE_AS_BITS = int(torch.ones(1).view(torch.int32))


@dataclass(frozen=True)
class Workload:
    users: int = 100_000_000
    items: int = 10_000_000
    dim: int = 128
    rows: int = 65_536
    """Of a step, all ranks together; so many uniform negatives, too."""


class Recorder(TorchDispatchMode):
    """Bytes given to each collective, by who called it; outputs are filled with inputs."""

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.world_size = world_size
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            self._note(str(func).split(".")[1], args)
        return result

    def _note(self, name: str, args: Any) -> None:
        tensors = list(_tensors(args))
        match name:
            case "alltoall_base_":
                received, given = tensors
                if received.shape == given.shape:
                    received.copy_(given)
            case "_allgather_base_":
                received, given = tensors
                received.view(self.world_size, -1).copy_(given.reshape(1, -1))
            case "_reduce_scatter_base_":
                received, given = tensors
                received.copy_(given.view(self.world_size, -1)[0].view_as(received))
            case _:
                given = tensors[0]
        kind = "ids" if given.dtype in (torch.int64, torch.int32) else "numbers"
        key = f"{name.strip('_')} of {kind}, {_caller()}"
        self.bytes[key] += given.nbytes
        self.calls[key] += 1


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _caller() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if "torchrec" in path:
            return f"tables ({frame.f_code.co_name})"
        if "/losses/" in path or "/trainer/" in path:
            return f"{Path(path).stem} ({frame.f_code.co_name})"
        frame = frame.f_back  # type: ignore[assignment]
    return "towers"


@contextmanager
def one_of(world_size: int) -> Iterator[Ranks]:
    """The first rank of so many, eight a machine."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield Ranks(0, world_size, 0, min(world_size, 8), CPU)
    finally:
        dist.destroy_process_group()


def configured(workload: Workload) -> Config:
    base = find_preset("default")
    return replace(
        base,
        model=replace(
            base.model,
            tower="mlp",
            dim=workload.dim,
            use_history=True,
            output_dim=workload.dim,
            hidden=(256,),
            spectral_start=0.0,
        ),
        negatives=NegativesConfig(in_batch=True, uniform=workload.rows, log_q="none"),
        training=replace(base.training, global_batch_size=workload.rows),
    )


def made_dataset(folder: Path, workload: Workload, history: int) -> Dataset:
    """A description of so many users and items; item i's share of the events falls as 1 / i."""
    small = make_dataset(folder, users=80, items=60, rows=1500)
    count_I = np.ceil(workload.items / np.arange(1, workload.items + 1)).astype(np.int64)
    pq.write_table(pa.table({count_column(("train",)): count_I}), folder / "items.parquet")
    return replace(
        small, num_users=workload.users, num_items=workload.items, history_length=history
    )


def drawn_side(config: Config, dataset: Dataset, ranks: Ranks) -> torch.Tensor:
    """What all ranks' candidates of a step are, [N, 5] as `side_of` has it."""
    chance, rows = np.random.default_rng(0), config.training.global_batch_size
    with open_parquet(dataset.file("items.parquet")) as file:
        count_I = file.read().column(0).to_numpy()
    item_P = chance.choice(dataset.num_items, rows, p=count_I / count_I.sum())
    item_E = chance.integers(0, dataset.num_items, config.negatives.uniform)
    item_WS = np.hstack([each.reshape(ranks.world_size, -1) for each in (item_P, item_E)])
    item_N = torch.from_numpy(item_WS).view(-1)
    own, side_NK = rows // ranks.world_size, torch.zeros(len(item_N), 5, dtype=torch.int64)
    side_NK[:, 0], side_NK[:, 1] = item_N, torch.from_numpy(count_I[item_N])
    is_row_N = torch.arange(len(item_N)) % item_WS.shape[1] < own
    side_NK[:, 2] = torch.where(is_row_N, torch.arange(len(item_N)), -1)
    side_NK[:, 3] = 1
    side_NK[:, 4] = torch.where(is_row_N, ONE_AS_BITS, 0)
    return side_NK


def drawn_batch(
    keys: list[str], side_SK: torch.Tensor, rows: int, dataset: Dataset, history: int
) -> Batch:
    """A rank's rows: users drawn alike, lists of `history` items each."""
    bags, values, lengths = len(side_SK), [], []
    for key in keys:
        count = {"user": 1, "item": 1, "history": history}[key]
        known = bags if key == "item" else rows
        top = dataset.num_users if key == "user" else dataset.num_items
        drawn = torch.randint(top, (known * count,))
        values.append(side_SK[:, 0] if key == "item" else drawn)
        lengths.append(torch.tensor([count] * known + [0] * (bags - known)))
    features = KeyedJaggedTensor(keys, torch.cat(values), lengths=torch.cat(lengths), stride=bags)
    return Batch(
        features=features,
        user_B=side_SK[:rows, 2],
        item_S=side_SK[:, 0],
        feedback_B=torch.ones(rows, dtype=torch.int8),
        weight_B=torch.ones(rows),
        count_S=side_SK[:, 1],
        global_weight=None,
        local_rows=rows,
        plan=None,
        step=0,
        position={"epoch": 0},
    )


def measure(world_size: int, workload: Workload, history: int = 20) -> dict[str, Any]:
    """What a rank sends in a step, by collective, what `tandem plan` says of it, and seconds."""
    seconds: dict[str, float] = {}
    config = configured(workload)
    with TemporaryDirectory() as folder, one_of(world_size) as ranks:
        dataset = made_dataset(Path(folder) / "data", workload, history)
        started = time.monotonic()
        planned = plan_run(config, dataset, world_size, H100_BYTES)
        seconds["plan"] = time.monotonic() - started
        inputs = build_inputs(config.model, dataset)
        model = TwoTower(config.model, inputs, build_task(config, dataset, dataset.num_items))
        optimizer = config.optimizer
        fuse_table_optimizer(
            model.embeddings, optimizer.tables, optimizer.table_learning_rate, 0.0, "cpu"
        )
        rows, group = workload.rows // world_size, dist.group.WORLD
        assert group is not None
        planner = make_planner(inputs.tables, build_layout(ranks), rows)
        sharded = DistributedModelParallel(
            model,
            ShardingEnv.from_process_group(group),
            CPU,
            planner.collective_plan(model, sharders(), group),  # collective
            sharders(),
            init_data_parallel=False,  # its reducer wants an answer, which a fake group has not
        )
        seconds["first values"] = seconds_to_fill(inputs.tables, world_size)
        side_NK = drawn_side(config, dataset, ranks)
        bags = len(side_NK) // world_size
        batch = drawn_batch(inputs.keys, side_NK[:bags], rows, dataset, history)
        with Recorder(world_size) as recorder:
            seconds["columns"], batch = planned_batch(sharded, batch, side_NK, world_size)
            value, _ = sharded(batch)
            value.backward()
            for parameter in model.head.parameters():  # in buckets, by the reducer
                dist.all_reduce(parameter.grad)  # collective
            Alarm(CPU).push(torch.tensor(True))  # collective
        estimate = {name: size for name, size in asdict(planned.estimate).items() if "sent" in name}
        distinct = int((batch.plan.id_C >= 0).sum())  # type: ignore[union-attr]
    return {
        "ranks": world_size,
        "bytes given": dict(recorder.bytes),
        "calls": dict(recorder.calls),
        "columns of the step": distinct,
        "tandem plan": estimate,
        "seconds": seconds,
    }


def seconds_to_fill(tables: Sequence[Table], world_size: int) -> float:
    """Of a rank's shards with their seeded noise (a fake group's tables cannot be named)."""
    started = time.monotonic()
    for index, table in enumerate(tables):
        fill_rows(torch.empty(-(-table.num_rows // world_size), table.dim), 0, table, index, seed=1)
    return time.monotonic() - started


def planned_batch(
    sharded: Any, batch: Batch, side_NK: torch.Tensor, world_size: int
) -> tuple[float, Batch]:
    """The gather of what candidates are, and the plan of all ranks' (its seconds)."""
    task = sharded.module.head.task
    gather_without_gradient(side_of(batch))  # collective
    started = time.monotonic()
    plan = make_plan(
        side_NK,
        world_size,
        0,
        len(batch.user_B),
        in_batch=task.in_batch,
        disliked_negatives=False,
        mined=False,
        distinct=True,
        told=False,
    )
    taken = time.monotonic() - started
    total = torch.tensor(float(world_size * len(batch.user_B)))
    return taken, replace(batch, plan=plan, global_weight=total)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("ranks", type=int)
    for field in fields(Workload):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    given = vars(parser.parse_args())
    print(json.dumps(measure(given.pop("ranks"), Workload(**given)), indent=2))
