"""The training loop: batch -> towers -> loss -> step -> metrics -> checkpoint, on one screen.

`TrainPipelineSparseDist` overlaps the next batch's ids (their exchange between ranks) with this
batch's forward and backward; the model's `forward` is towers and loss, and fused optimizers step
the tables inside the backward pass. What a step does beyond that is `TrainingLoop.train`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from trainer.distributed.ranks import Ranks
from trainer.loader.batch import Batch
from trainer.model.optimizer import Schedule
from trainer.observe.phases import TimedPipeline
from trainer.run.place import Place
from trainer.watch.recorder import Recorder
from trainer.watch.run_phases import RunPhases


class TrainingLoop:
    """Trains a sharded model from one place to `total_steps`.

    Args:
        save: writes a checkpoint of the place reached. Collective.
        evaluate: evaluates on the validation split, unless that was done before the place was
            restored, and notes it in the checkpoint; True: it is time to stop. Collective.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizer: CombinedOptimizer,
        schedule: Schedule,
        ranks: Ranks,
        recorder: Recorder,
        place: Place,
        seed: int,
        phases: RunPhases,
        save: Callable[[Place], None],
        evaluate: Callable[[Place], bool],
    ) -> None:
        self.model = model
        self.schedule = schedule
        self.ranks = ranks
        self.recorder = recorder
        self.place = place
        self.seed = seed
        self.phases = phases
        self.save = save
        self.evaluate = evaluate
        self.pipeline = TimedPipeline(model, optimizer, ranks.device, recorder.clock)
        model.module.head.task.clock = recorder.clock

    def train(
        self,
        batches: Iterator[Batch],
        total_steps: int,
        checkpoint_every_steps: int | None,
        evaluate_every_epochs: int,
    ) -> None:
        """Train until `total_steps`. Collective: every rank runs it, with as many batches.

        An evaluation comes after the checkpoint of its step: nothing it may meet costs the epoch.
        """
        source = TimedBatches(batches, self.model.module.head.task.planned)
        self.model.train()
        stop = self._is_due(evaluate_every_epochs) and self._evaluate_detached()
        while self.place.step < total_steps and not stop:
            seed_step(self.seed, self.place.step, self.ranks.rank)
            self.schedule.set_step(self.place.step)
            self.model.module.head.task.loss.watched = self.recorder.watches(self.place.step + 1)
            outputs = self.pipeline.progress(source)  # collective: forward, backward, update
            self.model.module.average_towers()
            self.place.step += 1
            batch = source.trained()
            self.place.position = batch.position
            self.recorder.record(self.place, outputs, source.take_wait_seconds(), batch)
            self.phases.at("training", self.place.step, total_steps)

            evaluation_due = self._is_due(evaluate_every_epochs)
            last = self.recorder.stop_agreed or self.place.step == total_steps
            every = checkpoint_every_steps
            save_due = self.place.epoch_ended if every is None else is_due(self.place.step, every)
            if save_due or evaluation_due or last:
                self.recorder.flush(self.place)
                self.save(self.place)
            if self.recorder.stop_agreed:
                break
            stop = evaluation_due and self._evaluate_detached()
        self.recorder.flush(self.place)
        self.pipeline.detach()

    def _is_due(self, evaluate_every_epochs: int) -> bool:
        """Whether the place reached is to be evaluated."""
        return self.place.epoch_ended and is_due(self.place.epoch + 1, evaluate_every_epochs)

    def _evaluate_detached(self) -> bool:
        """Evaluate through the modules' own forwards, which the pipeline has rewritten."""
        self.pipeline.detach()
        self.model.eval()
        stop = self.evaluate(self.place)
        self.model.train()
        self.recorder.restart_clock()
        return stop


class TimedBatches:
    """An iterator that times its waits and remembers which batches are read but not trained.

    plan: makes the plan of a batch's columns, while it is on the host. Collective, and so is each
        step of the iterator.
    """

    def __init__(self, batches: Iterator[Batch], plan: Callable[[Batch], Batch]) -> None:
        self._batches, self._plan = batches, plan
        self._read: deque[Batch] = deque()
        self._wait_seconds = 0.0

    def __iter__(self) -> TimedBatches:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        batch = next(self._batches)
        self._wait_seconds += time.perf_counter() - started
        batch = self._plan(batch)  # collective
        self._read.append(batch)
        return batch

    def trained(self) -> Batch:
        """The oldest batch read: the pipeline trains them in order."""
        return self._read.popleft()

    def take_wait_seconds(self) -> float:
        """Seconds waited for data since the last call."""
        waited, self._wait_seconds = self._wait_seconds, 0.0
        return waited


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make dropout a function of (seed, step, rank): a resumed run needs no generator's state."""
    torch.manual_seed((seed * 0x9E3779B97F4A7C15 + step * 65_537 + rank) % (1 << 63))


def is_due(count: int, every: int) -> bool:
    """Whether `count` is a multiple of `every`; 0 means never."""
    return every > 0 and count % every == 0
