"""Training window by window: which come, what the model knows of each before, what it admits.

    train window T -> checkpoint -> evaluate on T + 1 -> admit T + 1's new ids -> train window T + 1

An evaluation on a window before it is trained (Gama et al. 2013, "prequential") costs no rows: all
events are trained on, and all of them but the first window's have been held out before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from torchrec.distributed.model_parallel import DistributedModelParallel

from trainer.base.mistake import require
from trainer.data.events.event_stream import EventStream
from trainer.data.schema import EventWindow
from trainer.distributed.ranks import Ranks
from trainer.loader.epoch_rows import WindowSchedule
from trainer.model.windows.admission import admit, draw_from
from trainer.observe.metrics import RankMetrics
from trainer.observe.progress import Progress
from trainer.run.checkpoint_facts import WindowsTrained
from trainer.run.folder import RunFolder, RunSpec
from trainer.run.place import Place
from trainer.watch.run_phases import RunPhases

if TYPE_CHECKING:
    from trainer.retrieval.encode import Encoder


class WindowWatch:
    """The windows of a run, one after the other."""

    def __init__(
        self,
        spec: RunSpec,
        model: DistributedModelParallel,
        stream: EventStream,
        trained: WindowsTrained,
        folder: RunFolder,
        ranks: Ranks,
        progress: Progress,
        metrics: RankMetrics,
        on_evaluation: Callable[[dict[str, float]], None],
        phases: RunPhases,
    ) -> None:
        """
        Args:
            trained: by the checkpoint that the run goes on from.

        Raises:
            Mistake: where no window is left, and the run does not wait for others.
        """
        config = spec.config
        self.config, self.model, self.stream = config, model, stream
        self.folder, self.ranks, self.progress = folder, ranks, progress
        self.metrics, self.on_evaluation, self.phases = metrics, on_evaluation, phases
        self.after = trained.after
        to_come = [each for each in stream.numbers if each > trained.newest and stream.rows(each)]
        self.schedule = WindowSchedule(stream, (*trained.begun, *to_come), config.training.epochs)
        require(
            bool(self.schedule.numbers) or spec.follow,
            f"--windows: the run that it starts from knows all of the data, to window number "
            f"{trained.newest}: add one by `tandem prepare NEW DATA --append`, or --follow",
        )
        self.beside: dict[str, float] = {}
        """What lines of metrics say of the window in training."""
        self._told = ""
        self.met = stream.met
        """In all windows that were begun."""

    def trained(self, place: Place) -> WindowsTrained:
        """Those met when a place is reached."""
        begun = 0 if place.position is None else place.epoch // self.schedule.passes + 1
        return WindowsTrained(self.after, self.schedule.numbers[:begun])

    def placed(self, place: Place) -> Place:
        """The place; where its window has left the data meanwhile, the next one's beginning."""
        if place.position is None or place.epoch_ended:
            return place
        number = self.schedule.window(place.epoch)
        if number in self.stream.numbers:
            return place
        self.progress.message(f"window {number} has left the data before it was trained in whole")
        epoch = (place.epoch // self.schedule.passes + 1) * self.schedule.passes
        return replace(place, position={**place.position, "epoch": epoch, "step": 0})

    def begin(self, place: Place) -> None:
        """Before the first step of a start. Collective."""
        if place.position is None:
            if self.schedule.numbers:
                if self.after is not None:  # it was trained before, elsewhere
                    self._evaluate(self.schedule.numbers[0], place)  # collective
                self._enter(self.schedule.numbers[0])
        elif not place.epoch_ended or (place.epoch + 1) % self.schedule.passes:
            number = self.schedule.window(int(place.position["epoch"]))
            draw_from(self.model, self.stream, number)
            self._note(number)

    def turn(self, place: Place, evaluates: bool) -> bool:
        """A window is through: evaluate on the next one, and admit it; False: there is none yet.
        Collective.

        Args:
            evaluates: that was not done before the checkpoint that the run goes on from.
        """
        place_of_next = place.epoch // self.schedule.passes + 1
        if place_of_next >= len(self.schedule.numbers):
            return False
        number = self.schedule.numbers[place_of_next]
        if evaluates:
            self._evaluate(number, place)  # collective
        self._enter(number)
        return True

    def export(self, folder: str, place: Place) -> None:
        """A window is through: write what changed of the items' vectors. Collective."""
        from trainer.watch.changed_items import export_changed

        started = time.perf_counter()
        number = self.schedule.window(place.epoch)
        dataset = self.stream.dataset
        catalog = (dataset.file("items.parquet"), dataset.num_items)
        with self._encoder() as encoder:
            items = export_changed(  # collective
                folder, number, self.ranks, *catalog, encoder.candidates
            )
        seconds = time.perf_counter() - started
        self.progress.message(f"window {number}: {items:,} items exported in {seconds:.1f} s")

    @contextmanager
    def _encoder(self) -> Iterator[Encoder]:
        """The model to be asked, outside training."""
        from trainer.retrieval.encode import Encoder

        self.model.eval()
        length = self.config.data.history_length
        yield Encoder(self.model.module, self.stream.dataset, self.ranks, length)
        self.model.train()

    def _evaluate(self, number: int, place: Place) -> None:
        """Ask the model of all that is liked in a window. Collective."""
        from trainer.retrieval.evaluate import evaluate_asked
        from trainer.retrieval.measures.cut_offs import cut_offs
        from trainer.retrieval.queries import of_window

        started, wanted, dataset = time.perf_counter(), self.config.evaluation, self.stream.dataset
        asked = of_window(self.stream, number, self.model.module.inputs.marks)
        if not asked.num_queries:
            return
        with self._encoder() as encoder:
            found = evaluate_asked(  # collective
                encoder,
                dataset,
                asked,
                cut_offs([k for k in wanted.k if k <= dataset.num_items] or None, dataset),
                wanted.users,
                num_groups=1,
                baseline=True,
                on_progress=self.phases.evaluating,
            )
        self.metrics.observe("tandem_evaluation_seconds", time.perf_counter() - started)
        beside = {f"popularity/{k}": v for k, v in found.baseline.items() if k.startswith("recall")}
        beside |= {f"new_items/{k}": v for k, v in found.new_items.items() if k != "users"}
        # Coverage and Gini are of a catalog, which items of windows to come are in, too.
        of_lists = {k: v for k, v in found.values.items() if not k.startswith(("coverage", "gini"))}
        values = {**of_lists, **beside}
        for name, value in values.items():
            self.metrics.set("tandem_evaluation", value, name)
        self.beside.clear()
        self.beside.update({f"window/{name}": value for name, value in values.items()})
        if self.ranks.is_first:
            self._record({"step": place.step, "epoch": place.epoch, "window": number, **values})
        best = next(name for name in found.values if name.startswith("recall@"))
        for name in found.values:
            best = name if name == "recall@20" else best
        self._told = f"; before training on it {best} {found.values[best]:.4f}"
        self._told += f" (popularity {found.baseline[best]:.4f}"
        if found.new_items:
            self._told += f"; of its new items {found.new_items[best]:.4f}"
        self._told += f"; {found.num_queries:,} users)"

    def _record(self, record: dict[str, Any]) -> None:
        record = {**record, "time": time.time()}
        self.folder.append_evaluation(record)
        self.on_evaluation(record)

    def _enter(self, number: int) -> None:
        """Admit the ids that are new, and draw from the window's rows from here on."""
        facts, before = self.stream.facts(number), self.stream.before(number)
        new = {
            "item": int(np.count_nonzero(facts.item_I & ~before.item_I)),
            "user": int(np.count_nonzero(facts.user_U & ~before.user_U)),
        }
        admit(self.model, self.config, self.stream, number)
        draw_from(self.model, self.stream, number)
        for side, rows in new.items():
            self.metrics.add("tandem_rows_admitted_total", rows, side)
        self._note(number)
        self.beside |= {f"window/new_{side}s": rows for side, rows in new.items()}
        told, self._told = self._told, ""
        self.progress.message(
            f"window {number} ({span(self.stream.window(number))}{self.stream.rows(number):,} rows,"
            f" {new['item']:,} items and {new['user']:,} users of them new){told}"
        )

    def _note(self, number: int) -> None:
        self.met = self.stream.before(number).and_then(self.stream.facts(number))
        self.metrics.set("tandem_window", number)
        self.beside["window"] = number


def span(window: EventWindow) -> str:
    """ "2026-11-01 09:00 to 2026-11-01 23:59, ", or nothing where it has no times."""
    from trainer.sources.times import A_SECOND, unit_of_moment

    if window.first_time is None or window.last_time is None:
        return ""
    unit = unit_of_moment(window.last_time)
    if unit is None or unit_of_moment(window.first_time) != unit:
        return ""
    first, last = (
        datetime.fromtimestamp(moment / A_SECOND[unit], UTC).strftime("%Y-%m-%d %H:%M")
        for moment in (window.first_time, window.last_time)
    )
    return f"{first} to {last}, "
