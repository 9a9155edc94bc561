"""One worker's run: model, data, loop and checkpoints held together."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from embeddings.sharding import describe, sharded_weights
from trainer.config.sections import Config
from trainer.data.events.event_stream import window_numbers
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
from trainer.model.windows.admission import stream_of
from trainer.model.windows.met import Met, met_by, met_elsewhere, state_of_met
from trainer.observe.metrics import RankMetrics
from trainer.observe.progress import Progress
from trainer.observe.trackers.mirror import Mirrors
from trainer.run.checkpoint_facts import Facts, ValidationState, WindowsTrained
from trainer.run.checkpoint_read import newest_sound
from trainer.run.folder import RunFolder, RunSpec
from trainer.run.origin import Origin
from trainer.run.place import Place
from trainer.watch.finite import NonFiniteError, check_tables
from trainer.watch.opening import opening
from trainer.watch.recorder import Recorder, recorder_of
from trainer.watch.run_phases import RunPhases, describe_run, mirrored, serve_metrics
from trainer.watch.saving import Saving
from trainer.watch.validation import Validation
from trainer.watch.window_watch import WindowWatch


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
        goes_on: bool = False,
    ) -> None:
        """goes_on: a start that follows its data goes on after they have grown."""
        self.hooks, self.goes_on = hooks, goes_on
        self.metrics = RankMetrics()
        self.metrics.add("tandem_restarts_total", folder.restarts)  # before anyone can read a 0
        self.phases = RunPhases(hooks, folder if ranks.is_first else None, progress, self.metrics)
        self.phases.at("starting")
        self.spec, self.config = spec, spec.config
        self.dataset, self.folder, self.ranks, self.progress = dataset, folder, ranks, progress
        self.model = build_model(spec.config, dataset, ranks)  # collective
        self.inputs = self.model.module.inputs
        self.optimizer = build_optimizer(self.model, spec.config.optimizer)
        self.checkpoints = Saving(  # collective
            folder, ranks, spec.config.checkpoint.keep, self.metrics, progress, self.phases
        )
        self.mirrors: Mirrors | None = None
        self._evaluated_step: int | None = None
        """Of the checkpoint that the run goes on from, where that was evaluated."""
        self._first_step = 0
        self._met = Met()
        self.windows: WindowWatch | None = None
        """With `data.windows`."""
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
        served = (self.metrics, self.config.metrics, self.ranks, self.hooks.on_serving)
        together(lambda: serve_metrics(*served))  # collective
        origin = first_decides(lambda: self.folder.origin(self.spec))  # collective
        found = self._restore() if resuming else None
        place, fresh = found or Place(), found is None and origin is not None
        if fresh and origin is not None:
            origin = self._take_from(origin.run)
        self.phases.at("starting")
        self._first_step = place.step
        if self.config.data.windows:
            self.windows = together(self._windows)  # collective
            place = self.windows.placed(place)
        loader = together(lambda: self._loader(place))  # collective
        first = (self.spec, self.dataset, self.ranks.world_size, place.step, origin)
        again = self.windows is not None and place.step != self._evaluated_step
        begun = partial(self.folder.begin, *first, again, not self.goes_on)
        together(lambda: begun() if self.ranks.is_first else None)  # collective
        if self.ranks.is_first:
            self.mirrors = mirrored(self.folder, self.config, place.step, self.progress.message)
        if not self.goes_on:
            self.progress.message(opening(self.config, self.dataset, self.model, self.ranks))
        total_steps = self._total_steps(loader, place)
        sizes = (self.ranks.world_size, loader.steps_per_epoch)
        describe_run(self.metrics, self.config, self.dataset, *sizes)
        recorder = recorder_of(
            self.model,
            self.optimizer,
            self.config.training,
            self.ranks,
            self.folder,
            self.metrics,
            self.progress,
            loader,
            total_steps,
            place,
            self.hooks,
        )
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
        evaluate_every = self.config.evaluation.every_epochs
        if self.windows is not None:
            self.windows.begin(place)  # collective
            evaluate_every = self.windows.schedule.passes
            recorder.beside = self.windows.beside
        batches = iter(loader)
        try:
            every = self.config.checkpoint.every_steps
            loop.train(batches, total_steps, every, evaluate_every)
        except NonFiniteError:
            self.phases.at("failed")
            self.metrics.linger()
            raise
        finally:
            batches.close()
        self.checkpoints.writer.ensure()
        return self._finish(place, recorder, loader, time.monotonic() - started)

    def close(self) -> None:
        """Let go of everything, in the order that ends the process cleanly. Collective."""
        if self.mirrors is not None:
            self.mirrors.close()
        self.metrics.close()
        self.checkpoints.writer.close()
        del self.model, self.optimizer

    def _total_steps(self, loader: Loader, place: Place) -> int:
        """Steps of the run: those done, and those left of its epochs or up to max_steps."""
        epochs = self.config.training.epochs
        if self.windows is not None:
            epochs = self.windows.schedule.epochs
        total = place.step + loader.steps_left(epochs)
        most = self.config.training.max_steps
        return total if most is None else min(total, most)

    def _save(self, place: Place) -> None:
        """Begin a checkpoint of `place`. Collective."""
        check_tables(sharded_weights(self.model), place.step)  # collective
        facts = Facts(
            step=place.step,
            position=place.data_position,
            dataset_digest=self.dataset.digest,
            windows=self._windows_trained(place),
            validation=self.validation.state,
            plan=describe(self.model.plan),
            streaming_buckets=self.model.module.head.task.correction.num_buckets,
            known_rows={table.name: table.known_rows for table in self.inputs.tables},
            config=self.config.to_json(),
        )
        met = {} if self.windows is None else state_of_met(self.windows.met)
        self.checkpoints.save(state_of(self.model, self.optimizer) | met, facts)  # collective
        self.hooks.on_checkpoint({"step": place.step})

    def _evaluate(self, place: Place) -> bool:
        """Evaluate `place`, whose checkpoint is begun, and note it there. Collective.

        True: it is time to stop.
        """
        due = place.step != self._evaluated_step
        if self.windows is not None:
            done = self.goes_on and place.step == self._first_step
            if due and not done and self.spec.export_to is not None:
                self.windows.export(self.spec.export_to, place)  # collective
            due = self.windows.turn(place, evaluates=due) and due  # collective
        elif due:
            self.validation.evaluate(self.model.module, place.step, place.epoch)  # collective
        if due:
            state = replace(self.validation.state, evaluated=True)
            self.checkpoints.amend(state)  # collective
        return self.windows is None and self.validation.is_over

    def _windows(self) -> WindowWatch:
        return WindowWatch(
            self.spec,
            self.model,
            stream_of(self.config, self.dataset, self.inputs, self._met.before),
            self._met.trained,
            self.folder,
            self.ranks,
            self.progress,
            self.metrics,
            self.hooks.on_evaluation,
            self.phases,
        )

    def _windows_trained(self, place: Place) -> WindowsTrained:
        if self.windows is not None:
            return self.windows.trained(place)
        return WindowsTrained(after=window_numbers(self.dataset)[-1])

    def _loader(self, place: Place) -> Loader:
        schedule = None if self.windows is None else self.windows.schedule
        data = (self.config, self.dataset, self.inputs, self.ranks)
        return build_loader(*data, place.position, schedule)

    def _reading(self, done: int, total: int) -> None:
        self.phases.at("starting", done, total)

    def _take_from(self, run: str) -> Origin:
        """First values from another run's checkpoint. Collective."""
        trained = trained_of_tables(self.config, self.dataset, self.inputs)
        taken = start_from(  # collective
            run, self.model, self.optimizer, self.config, trained, self.ranks, self._reading
        )
        self.progress.message(taken.told)
        if self.config.data.windows:
            self._met = met_elsewhere(run, taken.found, self.dataset)  # collective
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
        self.checkpoints.writer.damaged |= found.damaged
        extended = facts.dataset_digest != self.dataset.digest
        # Other rows are held out: what was best on those of then need not be on these.
        self.validation.restore(ValidationState() if extended else facts.validation)
        by_window = self.config.data.windows
        self._met = met_by(found, self.dataset)  # collective
        evaluated = facts.validation.evaluated and (by_window or not extended)
        self._evaluated_step = facts.step if evaluated else None
        position = None if facts.position is None else asdict(facts.position)
        if extended and not by_window:
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
        stopped = recorder.stop_agreed and (self.spec.follow or place.step < recorder.total_steps)
        waits = self.spec.follow and not stopped
        summary: dict[str, Any] = {
            "steps": place.step,
            "epochs": place.epoch + 1,
            "seconds": seconds,
            "examples_per_second": recorder.examples_per_second,
            "workers": self.ranks.world_size,
            "rows_per_epoch": loader.num_rows,
            "rows_skipped_as_corrupt": loader.skipped_rows,
            "phase": "stopped" if stopped else "waiting" if waits else "finished",
            "quality": self.validation.quality(loader.steps_per_epoch),
        }
        self.phases.at(summary["phase"])
        if self.ranks.is_first and not waits:
            self.folder.write_summary(summary)
        if summary["phase"] == "finished":
            self.metrics.set("tandem_finished", 1)
            self.metrics.linger()
        return summary
