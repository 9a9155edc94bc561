"""`tandem bench sequence`: tokens a second of the sequence tower's step beside a plain SASRec.

Both train the same sequences at the same widths in this process, in turns: Tandem with its loader,
the batch's distinct items and uniform ones as negatives of every position; the other from arrays in
memory, with negatives of its own at each position (`plain_sasrec.py`). A token is a position that
is trained.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from statistics import median
from typing import Any

import numpy as np
import torch

from trainer.base.machine import usable_cpus
from trainer.base.mistake import require
from trainer.base.ranges import MOST_ROWS, MOST_TURNS, check_ranges
from trainer.base.screen import say
from trainer.bench.plain_sasrec import PlainSasRec, padded
from trainer.config.loss_section import LossConfig
from trainer.config.model_section import MOST_WIDTH, Block, ModelConfig
from trainer.config.negatives_section import NegativesConfig
from trainer.config.sections import Config
from trainer.config.training_section import TrainingConfig
from trainer.data.events.event_reader import each_event
from trainer.data.schema import MAX_HISTORY_LENGTH, Dataset
from trainer.distributed.ranks import Ranks, process_group
from trainer.model.build import build_loader, build_model
from trainer.model.optimizer import Schedule, build_optimizer
from trainer.observe.phases import PhaseClock, TimedPipeline
from trainer.observe.progress import SilentProgress, quiet_libraries
from trainer.synth.synth import SynthArguments, synth

TARGET_RATIO = 3.0


@dataclass(frozen=True)
class SequenceBenchArguments:
    """Tokens a second of a training step of the sequence tower, beside a plain PyTorch SASRec."""

    users: int = 10_000
    """Users of the generated data."""
    items: int = 100_000
    """Items of the generated data."""
    length: int = 50
    """Most items of a sequence; users have about as many on average."""
    dim: int = 64
    """Width of the items' table and the layers."""
    layers: int = 2
    """Layers of the transformer."""
    heads: int = 2
    """Heads of the attention."""
    block: Block = "sasrec"
    """Tandem's layers; the plain one has SASRec's."""
    global_batch_size: int = 4096
    """Positions trained a step."""
    uniform: int = 1024
    """Tandem's uniform negatives, beside those of the batch."""
    plain_negatives: int = 256
    """The plain one's negatives at each position."""
    rounds: int = 5
    """Turns each side gets; medians are shown."""
    steps: int = 5
    """Steps of a turn."""
    json: bool = False
    """Print JSON instead of text."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            users=(1, MOST_ROWS),
            items=(1, MOST_ROWS),
            length=(1, MAX_HISTORY_LENGTH),
            dim=(1, MOST_WIDTH),
            layers=(1, 64),
            heads=(1, MOST_WIDTH),
            global_batch_size=(2, MOST_ROWS),
            uniform=(0, MOST_ROWS),
            plain_negatives=(1, MOST_ROWS),
            rounds=(1, MOST_TURNS),
            steps=(1, MOST_TURNS),
        )
        require(
            self.dim % self.heads == 0, f"--heads {self.heads} does not divide --dim {self.dim}"
        )


def run(arguments: SequenceBenchArguments) -> dict[str, Any]:
    """Tokens a second of both, and their ratio."""
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder, process_group() as ranks:
        torch.set_num_threads(usable_cpus())
        settings = SynthArguments(
            out=f"{folder}/data",
            users=arguments.users,
            items=arguments.items,
            interactions=arguments.users * arguments.length,
            history_length=arguments.length,
        )
        synth(settings, SilentProgress(), show=False)
        dataset = Dataset.load(settings.out)
        sides = {
            "tandem": tandem(arguments, dataset, ranks),
            "plain": plain(arguments, dataset, ranks.device),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(arguments.rounds + 1):
            for name, step in sides.items():
                started = time.perf_counter()
                tokens = sum(step() for _ in range(arguments.steps))
                if ranks.device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:  # the first touches memory and chooses kernels
                    rates[name].append(tokens / (time.perf_counter() - started))
        del sides
    rate = {name: median(values) for name, values in rates.items()}
    return {
        "tokens_per_second": rate["tandem"],
        "plain_tokens_per_second": rate["plain"],
        "ratio": rate["tandem"] / rate["plain"],
        "ratios": [a / b for a, b in zip(rates["tandem"], rates["plain"], strict=True)],
        "target_ratio": TARGET_RATIO,
        "threads": usable_cpus(),
    }


def tandem(arguments: SequenceBenchArguments, dataset: Dataset, ranks: Ranks) -> Callable[[], int]:
    """A step of Tandem: trains, and says how many positions."""
    config = bench_config(arguments)
    model = build_model(config, dataset, ranks)
    optimizer = build_optimizer(model, config.optimizer)
    Schedule(optimizer, config.optimizer, total_steps=1).set_step(0)
    task = model.module.head.task
    task.loss.watched = False  # as in most steps of a run
    loader = build_loader(config, dataset, model.module.inputs, ranks, None)
    trained = []

    def planned() -> Any:
        for batch in loader:
            trained.append(batch.local_rows)
            yield task.planned(batch)

    batches = planned()
    pipeline = TimedPipeline(model, optimizer, ranks.device, PhaseClock(ranks.device))
    number = count()

    def step() -> int:
        pipeline.progress(batches)
        return int(trained[next(number)])

    return step


def bench_config(arguments: SequenceBenchArguments) -> Config:
    """The model that is measured: no dropout, as the plain one."""
    return Config(
        model=ModelConfig(
            tower="sequence",
            block=arguments.block,
            dim=arguments.dim,
            sequence_length=arguments.length,
            sequence_layers=arguments.layers,
            sequence_heads=arguments.heads,
            use_user_id=False,
        ),
        loss=LossConfig(name="ssm", temperature=0.05),
        negatives=replace(NegativesConfig(), uniform=arguments.uniform),
        training=TrainingConfig(global_batch_size=arguments.global_batch_size),
    )


def plain(
    arguments: SequenceBenchArguments, dataset: Dataset, device: torch.device
) -> Callable[[], int]:
    """A step of the plain model, on about as many positions."""
    torch.manual_seed(1)
    users, items = (
        np.concatenate(parts)
        for parts in list(zip(*each_event(dataset, ("train",)), strict=True))[:2]
    )
    _, lengths = np.unique(users, return_counts=True)
    rows = torch.from_numpy(padded(items, lengths, arguments.length))
    rows = rows[(rows != 0).sum(1) > 1]
    targets = ((rows[:, :-1] != 0) & (rows[:, 1:] != 0)).sum(1)
    size = max(1, round(arguments.global_batch_size / float(targets.double().mean())))
    rows = rows.to(device)
    model = PlainSasRec(
        dataset.num_items, arguments.length, arguments.dim, arguments.layers, arguments.heads
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> int:
        place = torch.randint(len(rows), (size,))
        chosen = rows[place.to(device)]
        item_mL, next_mL = chosen[:, :-1], chosen[:, 1:].clone()
        next_mL[item_mL == 0] = 0
        shape = (*next_mL.shape, arguments.plain_negatives)
        drawn = torch.randint(1, dataset.num_items + 1, shape, device=device)
        optimizer.zero_grad()
        model.loss(item_mL, next_mL, drawn).backward()
        optimizer.step()
        return int(targets[place].sum())

    return step


def main(arguments: SequenceBenchArguments) -> None:
    """Measure and print."""
    result = run(arguments)
    if arguments.json:
        print(json.dumps(result))
        return
    say(f"tandem  {result['tokens_per_second']:>10,.0f} tokens/s")
    say(f"plain   {result['plain_tokens_per_second']:>10,.0f} tokens/s")
    say(f"ratio {result['ratio']:.2f}  (target {TARGET_RATIO:g})")
