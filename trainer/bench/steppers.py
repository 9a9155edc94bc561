"""The two sides of `tandem bench step`: Tandem's own step, and the loop one would write by hand.

Shapes: B rows of a rank's batch, C = columns of all ranks, D width.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trainer.bench.worker_processes import PartTimer, Workload
from trainer.config.loss_section import LossConfig
from trainer.config.model_section import ModelConfig
from trainer.config.negatives_section import NegativesConfig
from trainer.config.optimizer_section import OptimizerConfig
from trainer.config.sections import Config
from trainer.config.training_section import TrainingConfig
from trainer.data.schema import LIKED, SCHEMA_VERSION, Dataset, Split
from trainer.distributed.ranks import Ranks
from trainer.loader.batch import Batch
from trainer.model.build import build_model
from trainer.model.optimizer import Schedule, build_optimizer

INTERACTIONS = 4_000_000
DRAWN_BEFORE = 32
"""Batches that a GPU's steps, shorter than a draw, take in turn."""
Drawn = TypeVar("Drawn")


class Draws:
    """Ids of a step: users uniform, items Zipf with popularity spread over the rows."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self.workload = workload
        self.random = np.random.default_rng(seed)
        # An odd multiplier prime to the catalog spreads popular items over all shards.
        self.multiplier = next(
            m
            for m in range(int(workload.items * 0.618) | 1, 1 << 62, 2)
            if math.gcd(m, workload.items) == 1
        )

    def users(self, rows: int) -> Tensor:
        return torch.from_numpy(self.random.integers(0, self.workload.users, rows))

    def items(self, rows: int) -> tuple[Tensor, Tensor]:
        """Items [rows] and their counts in train, int64, by the inverse of a power law's CDF."""
        items, tail = self.workload.items, 1.0 - self.workload.zipf_exponent
        share = self.random.random(rows)
        rank = (1.0 + share * (float(items) ** tail - 1.0)) ** (1.0 / tail)
        rank = np.minimum(rank.astype(np.int64), items) - 1
        mass = (float(items) ** tail - 1.0) / tail
        count = INTERACTIONS * (rank + 1.0) ** -self.workload.zipf_exponent / mass
        row = rank * self.multiplier % items
        return torch.from_numpy(row), torch.from_numpy(np.maximum(count, 1.0).astype(np.int64))


class TandemStepper:
    """The model, optimizer and pipeline of `tandem train`, fed with drawn ids."""

    def __init__(self, workload: Workload, ranks: Ranks) -> None:
        self.workload = workload
        self.config = bench_config(workload)
        self.rows = workload.global_batch_size // ranks.world_size
        self.global_weight = torch.tensor(float(workload.global_batch_size))
        self.draws = Draws(workload, seed=ranks.rank)
        sizes = {"item": workload.items, "user": workload.users}  # of tables that start as noise
        self.model = build_model(self.config, bench_dataset(workload), ranks, sizes)
        self.optimizer = build_optimizer(self.model, self.config.optimizer)
        self.schedule = Schedule(self.optimizer, self.config.optimizer, total_steps=1)
        self.schedule.set_step(0)
        self.model.module.head.task.loss.watched = False  # as in most steps of a run
        self.pipeline = TrainPipelineSparseDist(self.model, self.optimizer, ranks.device)
        self.device = ranks.device
        self.lengths = torch.ones(2 * self.rows, dtype=torch.int64)
        self.ones = torch.ones(self.rows)
        self.batches = drawn(self._batch, self.device)

    def steps(self, count: int) -> float:
        return seconds_of(lambda: self.pipeline.progress(self.batches), count, self.device)

    def parts(self, count: int) -> dict[str, float]:
        """Collective. The pipeline is taken off: its overlap would blur the parts."""
        model = self.pipeline.detach().module
        timer = PartTimer(lambda: finish(self.device))
        for _ in range(count):
            batch = next(self.batches).to(self.device)
            self.optimizer.zero_grad()
            timer.start()
            pooled = model.embeddings(batch.features)
            pooled.values()
            timer.mark("embedding forward")
            parts = model.head.towers.split(pooled, batch.features, batch.dense)
            query_BD = model.head.towers.encode_queries(parts, self.rows)
            assert batch.plan is not None
            candidate_CD = model.head.towers.encode_candidates(parts, batch.plan.encoded_U)
            timer.mark("towers forward")
            query = query_BD.detach().requires_grad_()
            candidate = candidate_CD.detach().requires_grad_()
            loss, _ = model.head.task(query, candidate, batch)
            loss.backward()
            timer.mark("loss, forward and backward")
            torch.autograd.backward([query_BD, candidate_CD], [query.grad, candidate.grad])
            timer.mark("towers and tables backward, tables updated")
            self.optimizer.step()
            timer.mark("towers updated")
        return {name: seconds / count for name, seconds in timer.seconds.items()}

    def _batch(self) -> Batch:
        user_B = self.draws.users(self.rows)
        item_B, count_B = self.draws.items(self.rows)
        batch = Batch(
            features=KeyedJaggedTensor(
                keys=["user", "item"],
                values=torch.cat([user_B, item_B]),
                lengths=self.lengths,
                stride=self.rows,
            ),
            user_B=user_B,
            item_S=item_B,
            feedback_B=self.ones.to(torch.int8),
            weight_B=self.ones,
            count_S=count_B,
            global_weight=self.global_weight,
            local_rows=self.rows,
            plan=None,
            step=0,
            position={},
        )
        batch = self.model.module.head.task.planned(batch)  # collective
        return batch.pin_memory() if self.device.type == "cuda" else batch

    def columns(self) -> dict[str, float]:
        """Collective: of one step's candidates, over all ranks."""
        batch = next(self.batches)
        assert batch.plan is not None
        plan = batch.plan
        candidates = self.workload.global_batch_size
        columns = int((plan.id_C >= 0).sum())
        return {
            "candidates": candidates,
            "columns": columns,
            "distinct_share": len(plan.id_C.unique()) / candidates,
            "gathered_bytes": plan.id_C.numel() * self.workload.dim * 4,
        }


class PlainStepper:
    """nn.Embedding(sparse) + Adagrad on tables, Adam on towers, materialised logits."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self.workload = workload
        self.device = device
        self.draws = Draws(workload, seed=0)
        self.batches = drawn(self._batch, device)
        torch.manual_seed(0)
        dim = workload.dim
        self.user = nn.Embedding(workload.users, dim, sparse=True, device=device)
        self.item = nn.Embedding(workload.items, dim, sparse=True, device=device)
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
            for _ in range(2)
        ).to(device)
        self.sparse = torch.optim.Adagrad([self.user.weight, self.item.weight], lr=0.05)
        self.dense = torch.optim.Adam(self.towers.parameters(), lr=1e-3)

    def steps(self, count: int) -> float:
        return seconds_of(self._step, count, self.device)

    def parts(self, count: int) -> dict[str, float]:
        return {"step": self.steps(count) / count}

    def columns(self) -> dict[str, float]:
        return {"columns": self.workload.global_batch_size}

    def _batch(self) -> list[Tensor]:
        rows = self.workload.global_batch_size
        ids = [self.draws.users(rows), *self.draws.items(rows)]
        return [each.pin_memory() for each in ids] if self.device.type == "cuda" else ids

    def _step(self) -> None:
        batch = (each.to(self.device, non_blocking=True) for each in next(self.batches))
        user_B, item_B, count_B = batch
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.workload.precision == "bf16"
        ):
            loss = self._loss(user_B, item_B, count_B)
        self.sparse.zero_grad()
        self.dense.zero_grad()
        loss.backward()
        self.sparse.step()
        self.dense.step()

    def _loss(self, user_B: Tensor, item_B: Tensor, count_B: Tensor) -> Tensor:
        row_B = torch.arange(len(item_B), device=self.device)
        query_BD = F.normalize(self.towers[0](self.user(user_B)), dim=1)
        candidate_BD = F.normalize(self.towers[1](self.item(item_B)), dim=1)
        logits_BB = query_BD @ candidate_BD.T / self.workload.temperature
        logits_BB = logits_BB - (count_B / INTERACTIONS).log()
        hit_BB = (item_B[:, None] == item_B[None, :]) & (row_B[:, None] != row_B[None, :])
        logits_BB = logits_BB.masked_fill(hit_BB, -torch.inf)
        return F.cross_entropy(logits_BB, row_B)


def drawn(draw: Callable[[], Drawn], device: torch.device) -> Iterator[Drawn]:
    """Batches without end: drawn as they are taken, for a GPU a few before and then in turn."""
    if device.type == "cuda":
        yield from itertools.cycle([draw() for _ in range(DRAWN_BEFORE)])
    while True:
        yield draw()


def seconds_of(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds of `count` steps, until the device has done them."""
    started = time.perf_counter()
    for _ in range(count):
        step()
    finish(device)
    return time.perf_counter() - started


def finish(device: torch.device) -> None:
    """Wait for what is queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bench_config(workload: Workload) -> Config:
    """What the workload stands for: perceptrons over ids, in-batch SSM with logQ."""
    return Config(
        model=ModelConfig(
            tower="mlp",
            dim=workload.dim,
            hidden=(2 * workload.dim,),
            output_dim=workload.dim,
        ),
        loss=LossConfig(name="ssm", temperature=workload.temperature, precision=workload.precision),
        negatives=NegativesConfig(distinct=workload.distinct),
        optimizer=OptimizerConfig(table_learning_rate=0.1),
        training=TrainingConfig(global_batch_size=workload.global_batch_size),
    )


def bench_dataset(workload: Workload) -> Dataset:
    """A description without files: the sizes are all that a model asks of it."""
    train = Split(INTERACTIONS, INTERACTIONS, 0, 0)
    return Dataset(
        path="",
        schema_version=SCHEMA_VERSION,
        num_users=workload.users,
        num_items=workload.items,
        window_rule=None,
        windows=(),
        kinds=(LIKED,),
        splits={"train": train},
        split_rule={},
        history_length=0,
        has_timestamps=False,
        dropped={},
        notes={},
        user_attributes=(),
        item_attributes=(),
        source={},
        parent_digest=None,
        files={},
        digest="",
    )
