"""What every worker runs, under Ray Train, under torchrun, or alone: `run_worker(spec)`.

    torchrun --nproc-per-node 2 -m trainer.train gowalla --data G --out R

Ray Train calls the very same function (cluster/launch.py).
"""

from __future__ import annotations

import os
import sys
import time
from importlib import metadata
from typing import Any

import torch

from embeddings.sharding import describe, initialise, sharded_weights
from trainer.agreement import check_agreement, together
from trainer.arguments import TrainArguments, parse_preset
from trainer.build import build_loader, build_model, trained_of_tables
from trainer.checkpoint import CheckpointWriteError, CheckpointWriter, load, newest_sound
from trainer.data.loader import Loader
from trainer.data.schema import Dataset
from trainer.finite import FiniteWatch, NonFiniteError, check_tables
from trainer.hooks import Hooks
from trainer.loop import Place, TrainingLoop
from trainer.metrics import RankMetrics
from trainer.mistake import Mistake
from trainer.optimizer import Schedule, build_optimizer
from trainer.progress import Progress, SilentProgress, TerminalProgress, quiet_libraries
from trainer.ranks import Ranks, process_group
from trainer.recorder import Recorder
from trainer.run import PACKAGES, RunFolder, RunSpec, open_run
from trainer.stopping import TERMINATED_STATUS, terminations
from trainer.validation import Validation
from trainer.vitals import Vitals


def run_worker(
    spec: RunSpec,
    progress: Progress | None = None,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Train one rank's share of a run to its end; returns the summary (also RUN/summary.json).

    Collective from start to end: every rank calls it with the same `spec`.

    Args:
        progress: where rank 0 reports to; None draws on standard error.
        hooks: what the launcher wants to be told, and whether it wants the run to stop; None:
            nothing.

    Raises:
        Mistake: for the user's mistakes, the same message on every rank.
        NonFiniteError: when the loss, a gradient or a table is NaN or infinite.
    """
    quiet_libraries()
    with process_group() as ranks:
        torch.set_num_threads(cpu_threads(spec, ranks))
        dataset, folder, resuming = together(lambda: open_run(spec))  # collective
        check_agreement(  # collective
            {
                "dataset digest": dataset.digest,
                "config": spec.config.digest,
                "versions": {name: metadata.version(name) for name in PACKAGES},
            }
        )
        together(lambda: folder.begin(spec, dataset, ranks.world_size) if ranks.is_first else None)
        reporter = progress if progress is not None else TerminalProgress()
        shown = reporter if ranks.is_first else SilentProgress()
        run = Run(spec, dataset, folder, ranks, shown, hooks or Hooks())
        try:
            return run.train(resuming)
        finally:
            run.close()


def cpu_threads(spec: RunSpec, ranks: Ranks) -> int:
    """Threads for this worker's CPU kernels: its share of the cores it may run on."""
    return spec.config.training.threads or max(
        1, len(os.sched_getaffinity(0)) // ranks.local_world_size
    )


class Run:
    """One worker's run: model, data, loop and checkpoints held together."""

    def __init__(
        self,
        spec: RunSpec,
        dataset: Dataset,
        folder: RunFolder,
        ranks: Ranks,
        progress: Progress,
        hooks: Hooks,
    ) -> None:
        self.hooks = hooks
        self.spec, self.config = spec, spec.config
        self.dataset, self.folder, self.ranks, self.progress = dataset, folder, ranks, progress
        self.model = build_model(spec.config, dataset, ranks)  # collective
        self.inputs = self.model.module.inputs
        self.optimizer = build_optimizer(self.model, spec.config.optimizer)
        self.metrics = RankMetrics()
        self.metrics.add("tandem_restarts_total", folder.restarts)  # before anyone can read a 0
        self.checkpoints = CheckpointWriter(  # collective
            folder.checkpoints, ranks, spec.config.checkpoint.keep, self._checkpoint_written
        )
        self.validation = Validation(
            spec.config.evaluation,
            dataset,
            folder,
            ranks,
            progress,
            self.metrics,
            hooks.on_evaluation,
            spec.config.data.history_length,
        )

    def train(self, resuming: bool) -> dict[str, Any]:
        """Collective."""
        started = time.monotonic()
        self._serve()
        place = self._restore() if resuming else Place()
        loader = build_loader(self.config, self.dataset, self.inputs, self.ranks, place.position)
        total_steps = self._total_steps(loader, place)
        self._describe(loader)
        recorder = self._recorder(total_steps, loader, place)
        loop = TrainingLoop(
            model=self.model,
            optimizer=self.optimizer,
            schedule=Schedule(self.optimizer, self.config.optimizer, total_steps),
            ranks=self.ranks,
            recorder=recorder,
            place=place,
            seed=self.config.training.seed,
            save=self._save,
            evaluate=lambda at: self.validation.evaluate(self.model.module, at.step, at.epoch),
        )
        batches = iter(loader)
        try:
            loop.train(
                batches,
                total_steps,
                self.config.checkpoint.every_steps,
                self.config.evaluation.every_epochs,
            )
        except NonFiniteError:
            self.metrics.linger()
            raise
        finally:
            batches.close()
        self.checkpoints.wait()
        return self._finish(place, recorder, loader, time.monotonic() - started)

    def close(self) -> None:
        """Let go of everything, in the order that ends the process cleanly. Collective."""
        self.metrics.close()
        self.progress.close()
        self.folder.unlock()
        self.checkpoints.close()
        del self.model, self.optimizer

    def _serve(self) -> None:
        if self.config.metrics.enabled:
            address = self.metrics.serve(self.config.metrics.host)
            self.hooks.on_serving(self.ranks.rank, address)

    def _total_steps(self, loader: Loader, place: Place) -> int:
        """Steps of the run: those done, and those left of its epochs or up to max_steps."""
        total = place.step + loader.steps_left(self.config.training.epochs)
        most = self.config.training.max_steps
        return total if most is None else min(total, most)

    def _recorder(self, total_steps: int, loader: Loader, place: Place) -> Recorder:
        every = self.config.training.log_every_steps
        vitals = Vitals(
            self.model, self.inputs, self.optimizer, self.ranks.device, place.step, every
        )
        return Recorder(
            self.ranks,
            self.folder,
            self.metrics,
            self.progress,
            vitals,
            FiniteWatch(self.model.module.head, self.inputs, self.ranks.device),
            loader,
            total_steps,
            self.config.training.global_batch_size,
            every,
            self.hooks,
        )

    def _describe(self, loader: Loader) -> None:
        """Publish what is known before the first step."""
        self.metrics.set("tandem_world_size", self.ranks.world_size)
        self.metrics.set(
            "tandem_checkpoint_interval_steps",
            self.config.checkpoint.every_steps or loader.steps_per_epoch,
        )
        for reason, rows in (self.dataset.dropped or {"none": 0}).items():
            self.metrics.set("tandem_dataset_rows_dropped", rows, reason)

    def _checkpoint_written(self, seconds: float) -> None:
        self.metrics.observe("tandem_checkpoint_write_seconds", seconds)
        self.metrics.set("tandem_checkpoint_timestamp_seconds", time.time())

    def _state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def _save(self, place: Place) -> None:
        """Begin a checkpoint of `place`. Collective."""
        check_tables(sharded_weights(self.model), place.step)  # collective
        facts = {
            "position": place.position,
            "rng": {"seed": self.config.training.seed, "rule": "seed_step(seed, step, rank)"},
            "dataset_digest": self.dataset.digest,
            "validation": self.validation.state,
            "plan": describe(self.model.plan),
            "known_rows": {table.name: table.known_rows for table in self.inputs.tables},
            "config": self.config.to_json(),
        }
        started = time.perf_counter()
        try:
            self.checkpoints.wait()
        except CheckpointWriteError as error:  # the next one may succeed
            self.metrics.add("tandem_checkpoint_failures_total")
            self.progress.message(f"{error}; training goes on")
        if self.ranks.is_first:
            self.folder.flush()
        self.checkpoints.save(place.step, self._state(), facts)
        self.metrics.observe("tandem_checkpoint_seconds", time.perf_counter() - started)
        self.hooks.on_checkpoint({"step": place.step})

    def _restore(self) -> Place:
        """Load the newest sound checkpoint, if there is one. Collective."""
        found = newest_sound(self.folder.checkpoints, self.ranks)
        if found is None:
            return Place()
        path, facts = found
        state = self._state()
        load(path, state)  # collective
        self.model.load_state_dict(state["model"])
        self.validation.restore(facts["validation"])
        self.optimizer.load_state_dict(state["optimizer"])
        position = facts["position"]
        extended = facts["dataset_digest"] != self.dataset.digest
        if extended:
            position = None  # other rows, new epochs
        splits = facts["config"]["data"]["train_splits"]
        if extended or set(splits) != set(self.config.data.train_splits):
            initialise(
                self.model,
                self.inputs.tables,
                self.config.training.seed,
                trained_of_tables(self.config, self.dataset, self.inputs),
                facts["known_rows"],
            )
        if self.ranks.is_first:
            self.folder.keep_metrics_until(facts["step"])
        self.progress.message(f"going on from {path.name}")
        return Place(step=facts["step"], position=position)

    def _finish(
        self, place: Place, recorder: Recorder, loader: Loader, seconds: float
    ) -> dict[str, Any]:
        stopped = recorder.stop_agreed and place.step < recorder.total_steps
        summary = {
            "steps": place.step,
            "epochs": place.epoch + 1,
            "seconds": seconds,
            "examples_per_second": recorder.examples_per_second,
            "workers": self.ranks.world_size,
            "rows_per_epoch": loader.num_rows,
            "rows_skipped_as_corrupt": loader.skipped_rows,
            "stopped_on_request": stopped,
        }
        if self.ranks.is_first:
            self.folder.write_summary(summary)
        if stopped:
            return summary
        self.metrics.set("tandem_finished", 1)
        self.metrics.linger()
        return summary


def main(arguments: list[str]) -> int:
    """The command line under torchrun; exit status 1 for the user's mistakes, 143 on SIGTERM."""
    try:
        preset, parsed = parse_preset(arguments, "torchrun -m trainer.train", TrainArguments)
        with terminations() as terminated:
            hooks = Hooks(stop_requested=terminated.is_set)
            summary = run_worker(parsed.run_spec(preset), hooks=hooks)
    except Mistake as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return TERMINATED_STATUS if summary["stopped_on_request"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
