"""The folder of a run: its resolved config, metrics, checkpoints and summary.

RUN/config.json     preset, config, data, versions, and the id of this start
RUN/starts.jsonl    one line a start: the first, resumes, and restarts after failures
RUN/metrics.jsonl   one line every `training.log_every_steps`
RUN/validation.jsonl  one line an evaluation on the validation split
RUN/checkpoints/    see checkpoint.py
RUN/owner.json      who writes the folder now, see lock.py
RUN/summary.json    written at the end

RUN is a local or shared folder, or a URI (s3://bucket/run).
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.data.schema import Dataset
from trainer.lock import RunLock
from trainer.mistake import Mistake
from trainer.run_files import committed, step_of, write_json
from trainer.storage import LineFile, StoragePath, storage_path

logger = logging.getLogger(__name__)
BEFORE_CONFIG = {".lock", "owner.json", "starts.jsonl"}
"""All that a start killed before config.json was written leaves behind: no run yet."""
PACKAGES = ("torch", "torchrec", "pyarrow")


@dataclass(frozen=True)
class RunSpec:
    """What a driver hands every worker: plain data, picklable."""

    preset: str
    config: Config
    data: str
    """Folder of a prepared dataset."""
    out: str
    """Folder of the run."""
    resume: bool = False
    """Go on from the newest checkpoint of a run that stopped."""
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """The same for all attempts of one start: a restarted worker group goes on by itself."""


def absolute(path: str) -> str:
    """A local path made absolute, since workers may stand in another folder; a URI as it is."""
    return path if "://" in path else str(Path(path).resolve())


def open_run(spec: RunSpec) -> tuple[Dataset, RunFolder, bool]:
    """Open data and folder; the last value says whether the run goes on from a checkpoint."""
    dataset = Dataset.load(spec.data)
    folder = RunFolder(spec.out)
    return dataset, folder, folder.check_start(spec, dataset)


class RunFolder:
    """RUN on disk. Every rank opens it; rank 0 alone writes."""

    def __init__(self, path: str | StoragePath) -> None:
        self.path = storage_path(path)
        self._lock = RunLock(self.path)
        self._metrics = LineFile(self.metrics_file)
        self._validation = LineFile(self.path / "validation.jsonl")
        self._starts = LineFile(self.path / "starts.jsonl")
        self._said_full = False

    @property
    def checkpoints(self) -> StoragePath:
        return self.path / "checkpoints"

    @property
    def metrics_file(self) -> StoragePath:
        return self.path / "metrics.jsonl"

    def read_config(self) -> dict[str, Any]:
        """config.json as plain data. Raises Mistake where there is no run."""
        file = self.path / "config.json"
        if not file.is_file():
            raise Mistake(
                f"{self.path} is no run: it has no config.json; "
                f"make one with `tandem train PRESET --data DIR --out {self.path}`. "
                "A run that was just started has it once its workers are up"
            )
        return json.loads(file.read_text())

    def check_start(self, spec: RunSpec, dataset: Dataset) -> bool:
        """May this start use the folder? True: as a continuation; False: as a new run.

        Raises:
            Mistake: if it exists and `--resume` is not given; if there is nothing to resume;
                if config or data changed since.
        """
        if not self.path.exists() or self._names() <= BEFORE_CONFIG:
            if spec.resume:
                raise Mistake(f"--resume: {self.path} does not exist; leave --resume out")
            return False
        before = self.read_config()
        if not spec.resume and before["run_id"] != spec.run_id:
            raise Mistake(
                f"{self.path} exists already; choose another --out, or go on with it by --resume"
            )
        self._check_unchanged(before, spec, dataset)
        return True

    def _names(self) -> set[str]:
        """What is in the folder, without an empty folder of checkpoints."""
        names = {path.name.removesuffix(".partial") for path in self.path.iterdir()}
        if not (self.path / "config.json").is_file():
            names.discard("config.json")  # its beginning
        if "checkpoints" in names and not any(self.checkpoints.iterdir()):
            names.remove("checkpoints")
        return names

    def _check_unchanged(self, before: dict[str, Any], spec: RunSpec, dataset: Dataset) -> None:
        if before["dataset_digest"] not in (dataset.digest, dataset.parent_digest):
            raise Mistake(
                f"the data in {spec.data} changed since {self.path} was trained (digest "
                f"{before['dataset_digest'][:12]}, now {dataset.digest[:12]}); resume with the "
                "data of then, extend it by `tandem prepare --extend`, or start a new run"
            )
        # Read back as a config, so that fields added since have their defaults.
        config_then = Config.from_json(before["config"]).to_json()
        config_now = spec.config.to_json()
        for section in ("model", "loss", "negatives"):
            then, now = config_then[section], config_now[section]
            changed = [
                f"--{section}.{key}: was {json.dumps(then[key])}, now {json.dumps(now[key])}"
                for key in now
                if then[key] != now[key]
            ]
            if changed:
                raise Mistake(
                    f"--resume cannot change what the model is ({'; '.join(changed)}); "
                    "start a new run, or leave these flags as they were"
                )

    def begin(self, spec: RunSpec, dataset: Dataset, world_size: int) -> None:
        """Rank 0: make the folder, take its lock, write config.json and a line of starts.jsonl."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock.take(spec.run_id)
        newest = committed(self.checkpoints)[-1:]
        step = step_of(newest[0]) if newest else 0
        start = {"time": time.time(), "step": step, "world_size": world_size}
        self._starts.append(json.dumps(start))
        self._starts.flush()
        write_json(
            self.path / "config.json",
            {
                "run_id": spec.run_id,
                "preset": spec.preset,
                "data": spec.data,
                "dataset_digest": dataset.digest,
                "world_size": world_size,
                "versions": {name: metadata.version(name) for name in PACKAGES},
                "config": spec.config.to_json(),
            },
        )

    @property
    def restarts(self) -> int:
        """How often the run was started in this folder after the first time."""
        return len(LineFile(self._starts.path).read()) - 1

    def note_phase(self, phase: str, done: int, total: int | None) -> None:
        """Rank 0: what the run is at, for those who read the folder."""
        self._lock.note_phase(phase, done, total)

    def unlock(self) -> None:
        """Rank 0: let another run have the folder."""
        self._lock.release()

    def keep_metrics_until(self, step: int) -> None:
        """Rank 0, on resuming: drop lines of steps that will be trained again."""
        for lines in (self._metrics, self._validation):
            kept = [line for line in lines.read() if json.loads(line)["step"] <= step]
            if lines.path.exists():
                lines.rewrite(kept)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Rank 0: one line of metrics.jsonl."""
        self._append(self._metrics, record)

    def append_evaluation(self, record: dict[str, Any]) -> None:
        """Rank 0: one line of validation.jsonl."""
        self._append(self._validation, record)

    def flush(self) -> None:
        """Rank 0: have every line so far be there for others; before each checkpoint."""
        for lines in (self._metrics, self._validation):
            self._guarded(lines.flush)

    def last_metrics(self) -> dict[str, Any]:
        """The last whole line of metrics.jsonl; empty where there is none."""
        text = self.metrics_file.read_text() if self.metrics_file.is_file() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        return json.loads(lines[-1]) if lines else {}

    def write_summary(self, summary: dict[str, Any]) -> None:
        self.flush()
        write_json(self.path / "summary.json", summary)

    def _append(self, lines: LineFile, record: dict[str, Any]) -> None:
        self._guarded(lambda: lines.append(json.dumps(record)))

    def _guarded(self, write: Callable[[], None]) -> None:
        """A disk that is full loses lines of metrics, not the run; said once."""
        try:
            write()
        except OSError as error:
            if not self._said_full:
                logger.error("metrics are not written to %s: %s", self.path, error)
            self._said_full = True
