"""One worker's run: model, data, loop and checkpoints held together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from embeddings.sharding import describe, sharded_weights
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.distributed.agreement import first_decides, together
from trainer.distributed.hooks import Hooks
from trainer.distributed.ranks import Ranks
from trainer.loader.loader import Loader
from trainer.loop import TrainingLoop
from trainer.model.build import build_loader, build_model, start_new_rows, trained_of_tables
from trainer.model.optimizer import Schedule, build_optimizer
from trainer.model.trained import restore, state_of
from trainer.model.warm_start import start_from
from trainer.observe.metrics import RankMetrics
from trainer.observe.progress import Progress
from trainer.observe.trackers.mirror import Mirrors
from trainer.observe.trackers.tracker import Tracked
from trainer.run.checkpoint_facts import Facts, ValidationState
from trainer.run.checkpoint_read import newest_sound
from trainer.run.checkpoint_write import CheckpointWriteError, CheckpointWriter
from trainer.run.folder import RunFolder, RunSpec
from trainer.run.origin import Origin
from trainer.run.place import Place
from trainer.watch.finite import FiniteWatch, NonFiniteError, check_tables
from trainer.watch.recorder import Recorder
from trainer.watch.run_phases import RunPhases, describe_run
from trainer.watch.validation import Validation
from trainer.watch.vitals import Vitals


class Run:
    """What `trainer.train.run_worker` builds, trains, saves and restores on one rank."""

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
        self.metrics = RankMetrics()
        self.metrics.add("tandem_restarts_total", folder.restarts)  # before anyone can read a 0
        told = folder if ranks.is_first else None
        self.phases = RunPhases(hooks, told, progress, self.metrics)
        self.phases.at("starting")
        self.spec, self.config = spec, spec.config
        self.dataset, self.folder, self.ranks, self.progress = dataset, folder, ranks, progress
        self.model = build_model(spec.config, dataset, ranks)  # collective
        self.inputs = self.model.module.inputs
        self.optimizer = build_optimizer(self.model, spec.config.optimizer)
        self.checkpoints = CheckpointWriter(  # collective
            folder.checkpoints,
            ranks,
            spec.config.checkpoint.keep,
            self._checkpoint_written,
            self._before_commit,
            lambda done, total: self.phases.at("checkpointing", done, total),
        )
        self.mirrors: Mirrors | None = None
        self._evaluated_step: int | None = None
        """Of the checkpoint that the run goes on from, where that was evaluated."""
        self.validation = Validation(
            spec.config.evaluation,
            dataset,
            folder,
            ranks,
            progress,
            self.metrics,
            hooks.on_evaluation,
            spec.config.data.history_length,
            self.phases,
        )

    def train(self, resuming: bool) -> dict[str, Any]:
        """Collective."""
        started = time.monotonic()
        together(self._serve)  # collective
        origin = first_decides(lambda: self.folder.origin(self.spec))  # collective
        place = self._restore() if resuming else None
        place, fresh = place or Place(), place is None and origin is not None
        if fresh and origin is not None:
            origin = self._take_from(origin.run)
        self.phases.at("starting")
        loader = together(lambda: self._loader(place))  # collective
        first = (self.spec, self.dataset, self.ranks.world_size, place.step, origin)
        together(lambda: self.folder.begin(*first) if self.ranks.is_first else None)  # collective
        if self.ranks.is_first:
            self._mirror(place.step)
        total_steps = self._total_steps(loader, place)
        describe_run(
            self.metrics, self.config, self.dataset, self.ranks.world_size, loader.steps_per_epoch
        )
        recorder = self._recorder(total_steps, loader, place)
        loop = TrainingLoop(
            model=self.model,
            optimizer=self.optimizer,
            schedule=Schedule(self.optimizer, self.config.optimizer, total_steps),
            ranks=self.ranks,
            recorder=recorder,
            place=place,
            seed=self.config.training.seed,
            phases=self.phases,
            save=self._save,
            evaluate=self._evaluate,
        )
        if fresh:
            self._save(place)  # from here on the run stands alone
        batches = iter(loader)
        try:
            loop.train(
                batches,
                total_steps,
                self.config.checkpoint.every_steps,
                self.config.evaluation.every_epochs,
            )
        except NonFiniteError:
            self.phases.at("failed")
            self.metrics.linger()
            raise
        finally:
            batches.close()
        self.checkpoints.ensure()
        return self._finish(place, recorder, loader, time.monotonic() - started)

    def close(self) -> None:
        """Let go of everything, in the order that ends the process cleanly. Collective."""
        if self.mirrors is not None:
            self.mirrors.close()
        self.metrics.close()
        self.checkpoints.close()
        del self.model, self.optimizer

    def _serve(self) -> None:
        wanted = self.config.metrics
        if wanted.enabled:
            port = wanted.port + self.ranks.local_rank if wanted.port else 0
            towards = self.ranks.rendezvous
            address = self.metrics.serve(wanted.host, port, wanted.advertise, towards)
            self.hooks.on_serving(self.ranks.rank, address)

    def _mirror(self, step: int) -> None:
        """Rank 0: have trackers be told what is written from here on."""
        name = str(self.folder.path).rstrip("/").rpartition("/")[2]
        tracked = Tracked(name, self.folder.path / "trackers", step, self.config.to_json())
        self.mirrors = Mirrors(self.config.metrics.track, tracked, self.progress.message)
        self.folder.mirror_to(self.mirrors.log)

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

    def _checkpoint_written(self, seconds: float) -> None:
        self.metrics.observe("tandem_checkpoint_write_seconds", seconds)
        self.metrics.set("tandem_checkpoint_timestamp_seconds", time.time())

    def _save(self, place: Place) -> None:
        """Begin a checkpoint of `place`. Collective."""
        check_tables(sharded_weights(self.model), place.step)  # collective
        facts = Facts(
            step=place.step,
            position=place.data_position,
            dataset_digest=self.dataset.digest,
            validation=self.validation.state,
            plan=describe(self.model.plan),
            streaming_buckets=self.model.module.head.task.correction.num_buckets,
            known_rows={table.name: table.known_rows for table in self.inputs.tables},
            config=self.config.to_json(),
        )
        started = time.perf_counter()
        self._tolerant(self.checkpoints.wait)
        self.checkpoints.save(state_of(self.model, self.optimizer), facts)
        self.metrics.observe("tandem_checkpoint_seconds", time.perf_counter() - started)
        self.hooks.on_checkpoint({"step": place.step})

    def _before_commit(self) -> None:
        """Rank 0, in the writing thread: lines first, and nothing once another start took over."""
        self.folder.lock.confirm()
        self.folder.flush()

    def _tolerant(self, write: Callable[[], None]) -> None:
        """A checkpoint that cannot be written is told, and training goes on."""
        try:
            write()
        except CheckpointWriteError as error:  # the next one may succeed
            self.metrics.add("tandem_checkpoint_failures_total")
            self.progress.message(f"{error}; training goes on")

    def _evaluate(self, place: Place) -> bool:
        """Evaluate `place`, whose checkpoint is begun, and note it there. Collective.

        True: it is time to stop.
        """
        if place.step != self._evaluated_step:
            self.validation.evaluate(self.model.module, place.step, place.epoch)  # collective
            state = replace(self.validation.state, evaluated=True)
            self._tolerant(lambda: self.checkpoints.amend(state))  # collective
        return self.validation.is_over

    def _loader(self, place: Place) -> Loader:
        return build_loader(self.config, self.dataset, self.inputs, self.ranks, place.position)

    def _reading(self, done: int, total: int) -> None:
        self.phases.at("starting", done, total)

    def _take_from(self, run: str) -> Origin:
        """First values from another run's checkpoint. Collective."""
        trained = trained_of_tables(self.config, self.dataset, self.inputs)
        taken = start_from(  # collective
            run, self.model, self.optimizer, self.config, trained, self.ranks, self._reading
        )
        self.progress.message(taken.told)
        return taken.origin

    def _restore(self) -> Place | None:
        """Load the newest sound checkpoint; None: there is none. Collective."""
        found = newest_sound(  # collective
            self.folder.checkpoints, self.ranks, lambda name: True, on_bytes=self._reading
        )
        if found is None:
            return None
        facts = found.facts
        restore(found, self.model, self.optimizer, self._reading)  # collective
        self.checkpoints.damaged |= found.damaged
        extended = facts.dataset_digest != self.dataset.digest
        # Other rows are held out: what was best on those of then need not be on these.
        self.validation.restore(ValidationState() if extended else facts.validation)
        self._evaluated_step = None
        if facts.validation.evaluated and not extended:
            self._evaluated_step = facts.step
        position = None if facts.position is None else asdict(facts.position)
        if extended:
            position = None  # other rows, new epochs
            self.progress.message("the data grew: its epochs, and what is best, are counted anew")
        splits = Config.from_json(facts.config).data.train_splits
        if extended or set(splits) != set(self.config.data.train_splits):
            start_new_rows(self.model, self.config, self.dataset, facts.known_rows)
        self.progress.message(f"going on from {found.path.name}")
        return Place(step=facts.step, position=position)

    def _finish(
        self, place: Place, recorder: Recorder, loader: Loader, seconds: float
    ) -> dict[str, Any]:
        stopped = recorder.stop_agreed and place.step < recorder.total_steps
        summary: dict[str, Any] = {
            "steps": place.step,
            "epochs": place.epoch + 1,
            "seconds": seconds,
            "examples_per_second": recorder.examples_per_second,
            "workers": self.ranks.world_size,
            "rows_per_epoch": loader.num_rows,
            "rows_skipped_as_corrupt": loader.skipped_rows,
            "phase": "stopped" if stopped else "finished",
        }
        self.phases.at(summary["phase"])
        if self.ranks.is_first:
            self.folder.write_summary(summary)
        if not stopped:
            self.metrics.set("tandem_finished", 1)
            self.metrics.linger()
        return summary
