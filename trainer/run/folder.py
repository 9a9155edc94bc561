"""The folder of a run: its resolved config, metrics, checkpoints and summary.

RUN/tries.jsonl     what was tried before it began, see trainer/effort; tries/ while it is
RUN/config.json     preset, config, data, versions, where it started from, the id of this start
RUN/starts.jsonl    one line a start: the first, resumes, and restarts after failures
RUN/metrics.jsonl   one line every `training.log_every_steps`
RUN/validation.jsonl  one line an evaluation on the validation split
RUN/checkpoints/    see checkpoint_facts.py; steps.json names those that are or will be whole
RUN/trackers/       what --track needs to go on, see observe/trackers/
RUN/owner.json      who writes the folder now, see lock.py
RUN/beside.json     what the second model is, where there is one; its run is RUN/beside/
RUN/summary.json    how the last start ended: stopped, failed (and why), finished

RUN may be a URI. A start that fails before its first step leaves RUN as it was, or no RUN at all.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, Literal

from trainer.base.mistake import Mistake
from trainer.base.run_files import CONFIG_FILE, SUMMARY_FILE, TRIES_FOLDER
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.distributed.hooks import RunPhase
from trainer.files.json_files import committed, read_json_as, write_json
from trainer.files.line_file import LineFile, last_record, read_records
from trainer.files.storage import StoragePath, storage_path
from trainer.run.lock import RunLock
from trainer.run.origin import Origin, check_origin, check_same_origin
from trainer.run.run_facts import RunFacts
from trainer.run.start import (
    absent_folders,
    check_kinds,
    check_unchanged,
    exists_already,
    is_used,
    named_when_lasting,
    remove_empty,
    remove_left_over,
    this_machine,
)

logger = logging.getLogger(__name__)
PACKAGES = ("torch", "torchrec", "pyarrow")
Resume = bool | Literal["auto"]
SEEN_SECONDS = 60.0  # so long a network disk may take to show other nodes a new file


@dataclass(frozen=True)
class RunSpec:
    """What a driver hands every worker: plain data, picklable."""

    preset: str
    config: Config
    data: str
    """Folder of a prepared dataset."""
    out: str
    """Folder of the run."""
    resume: Resume = False
    """Go on from the newest checkpoint of a run that stopped; "auto": where there is a run."""
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """The same for all attempts of one start: a restarted worker group goes on by itself."""
    start_from: str | None = None
    """Folder of the run that a new run's first values come from."""
    follow: bool = False
    """Wait for further windows of the data, and train on them, until told to stop."""
    export_to: str | None = None
    """Folder for what each window changed of the items' vectors."""
    given: frozenset[str] = frozenset()
    """Names of settings that the user set, whatever the preset says of them."""


def open_run(spec: RunSpec) -> tuple[Dataset, RunFolder, bool]:
    """Open data and folder; the last value says whether the run goes on from a checkpoint."""
    dataset = Dataset.load(spec.data)
    folder = RunFolder(spec.out)
    return dataset, folder, folder.check_start(spec, dataset)


class RunFolder:
    """RUN on disk. Every rank opens it; rank 0 alone writes."""

    def __init__(self, path: str | StoragePath) -> None:
        self.path = storage_path(path)
        self.lock = RunLock(self.path)
        self._metrics = LineFile(self.metrics_file)
        self._validation = LineFile(self.path / "validation.jsonl")
        self._starts = LineFile(self.path / "starts.jsonl")
        self._said_full = False
        self._mirror: Callable[[str, dict[str, Any]], None] = lambda kind, record: None

    @property
    def checkpoints(self) -> StoragePath:
        return self.path / "checkpoints"

    @property
    def config_file(self) -> StoragePath:
        return self.path / CONFIG_FILE

    @property
    def metrics_file(self) -> StoragePath:
        return self.path / "metrics.jsonl"

    def read_config(self) -> RunFacts:
        """config.json. Raises Mistake where there is no run, or what it says is wrong."""
        file = self.config_file
        if not file.is_file():
            raise Mistake(
                f"{self.path} is no run: it has no config.json; make one with `tandem train --data "
                f"DIR --out {self.path}`. One that was just started has it once workers are up"
            )
        return read_json_as(file, RunFacts)

    def origin(self, spec: RunSpec) -> Origin | None:
        """Where the first values of the run come from that `spec` begins, or goes on with."""
        if self.config_file.is_file():
            return self.read_config().start_from
        return None if spec.start_from is None else Origin(spec.start_from, step=0)

    def check_start(self, spec: RunSpec, dataset: Dataset) -> bool:
        """May this start use the folder? True: as a continuation; False: as a new run.

        Raises:
            Mistake: if it exists and `--resume` is not given; if there is nothing to resume; if
                config or data changed since its checkpoints; if it is no folder of a run's.
        """
        check_kinds(self.path)
        begun = self.config_file.is_file()  # asked by name: a listing may lag
        if not begun and not is_used(self.path):
            if spec.resume is True:
                raise Mistake(
                    f"--resume: {self.path} does not exist; leave --resume out, or --resume auto"
                )
            if spec.start_from is not None:
                origin = RunFolder(spec.start_from)
                digest = origin.read_config().dataset_digest
                check_origin(spec.start_from, origin.checkpoints, digest, dataset)
            return False
        before = self.read_config()
        kept = bool(committed(self.checkpoints))
        if not spec.resume and before.run_id != spec.run_id:
            raise exists_already(self.path, before.config, spec, kept)
        check_same_origin(self.path, before.start_from, spec.start_from)
        if kept:
            check_unchanged(self.path, before.dataset_digest, before.config, spec, dataset)
        return True

    @contextmanager
    def taken(self, run_id: str, waits: bool = False) -> Iterator[None]:
        """Rank 0: hold the folder for the body; what a body made that fails before `begin` goes.

        Args:
            waits: for an earlier start that is about to go, or was killed a moment ago.

        Raises:
            Mistake: where another run holds it, or it cannot be written.
        """
        absent = absent_folders(self.path)
        with named_when_lasting(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.lock.take(run_id, waits)
        try:
            remove_left_over(self.path / TRIES_FOLDER)
            yield
        finally:
            remove_left_over(self.path / TRIES_FOLDER)
            begun = self.config_file.is_file()
            self.lock.release(forget=not begun)
            if not begun:
                remove_empty(self.path, absent)

    def seen_by_all(self, run_id: str) -> None:
        """Every rank: raise Mistake where this machine does not see the folder that rank 0 took."""
        deadline = time.monotonic() + SEEN_SECONDS
        while not self.lock.is_held_by(run_id):
            if time.monotonic() > deadline:
                raise Mistake(
                    f"this worker's machine does not see {self.path} as rank 0 wrote it: --out "
                    "must be a folder that all machines share, or a URI"
                )
            time.sleep(0.5)

    def begin(
        self,
        spec: RunSpec,
        dataset: Dataset,
        world_size: int,
        step: int,
        origin: Origin | None,
        evaluates: bool = False,
        is_start: bool = True,
    ) -> None:
        """Rank 0, which has taken the folder: write config.json and a line of starts.jsonl.

        Lines of metrics of steps after `step`, which will be trained again, go.

        Args:
            evaluates: `step` will be evaluated again: its line goes, too.
            is_start: False: the same start goes on, with data that have grown.
        """
        facts = RunFacts(
            run_id=spec.run_id,
            preset=spec.preset,
            data=spec.data,
            dataset_digest=dataset.digest,
            world_size=world_size,
            versions={name: metadata.version(name) for name in PACKAGES},
            config=spec.config,
            start_from=origin,
        )
        numbers = {"time": time.time(), "step": step, "world_size": world_size}
        start = {**numbers, "machine": this_machine()}
        with named_when_lasting(self.path), self._begun_or_not():
            self._metrics.keep(lambda record: _step_of(record) <= step)
            self._validation.keep(lambda record: _step_of(record) <= step - evaluates)
            write_json(self.config_file, asdict(facts))
            (self.path / SUMMARY_FILE).unlink(missing_ok=True)  # of a run that has ended
            if is_start:
                self._starts.append(json.dumps(start))
                self._starts.flush()

    @contextmanager
    def _begun_or_not(self) -> Iterator[None]:
        """A first start that cannot be written down whole leaves nothing."""
        files = [self.config_file, self._starts.path]
        first = not files[0].is_file()
        try:
            yield
        except OSError:
            for file in files if first else []:
                file.unlink(missing_ok=True)
            raise

    @property
    def restarts(self) -> int:
        """How often the run was started here before this time."""
        return len(read_records(self._starts.path))

    def note_phase(self, phase: RunPhase, done: int, total: int | None) -> None:
        """Rank 0: what the run is at, for those who read the folder."""
        self.lock.note_phase(phase, done, total)

    def mirror_to(self, mirror: Callable[[str, dict[str, Any]], None]) -> None:
        """Rank 0: tell every further line, too; an evaluation's kind is "validation/", else ""."""
        self._mirror = mirror

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Rank 0: one line of metrics.jsonl."""
        self._append(self._metrics, record)
        self._mirror("", record)

    def append_evaluation(self, record: dict[str, Any]) -> None:
        """Rank 0: one line of validation.jsonl."""
        self._append(self._validation, record)
        self._mirror("validation/", record)

    def flush(self) -> None:
        """Rank 0: have every line so far be there for others. From any thread."""
        for lines in (self._metrics, self._validation):
            self._guarded(lines.flush)

    def last_metrics(self) -> dict[str, Any]:
        """The last whole line of metrics.jsonl; empty where there is none."""
        return last_record(self.metrics_file)

    def write_summary(self, summary: dict[str, Any]) -> None:
        self.flush()
        write_json(self.path / SUMMARY_FILE, summary)

    def _append(self, lines: LineFile, record: dict[str, Any]) -> None:
        if not self.lock.is_lost:
            self._guarded(lambda: lines.append(json.dumps(record)))

    def _guarded(self, write: Callable[[], None]) -> None:
        """A disk that is full loses lines of metrics, not the run; said once."""
        try:
            write()
        except OSError as error:
            if not self._said_full:
                logger.error("metrics are not written to %s: %s", self.path, error)
            self._said_full = True


def _step_of(record: dict[str, Any]) -> float:
    """The step of a line of metrics; infinite where it says none."""
    step = record.get("step")
    return step if isinstance(step, int | float) else float("inf")
