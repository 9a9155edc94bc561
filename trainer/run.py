"""The folder of a run: its resolved config, metrics, checkpoints and summary.

RUN/config.json     preset, config, data, versions, and the id of this start
RUN/starts.jsonl    one line a start: the first, resumes, and restarts after failures
RUN/metrics.jsonl   one line every `training.log_every_steps`
RUN/validation.jsonl  one line an evaluation on the validation split
RUN/checkpoints/    see checkpoint.py
RUN/summary.json    written at the end
"""

from __future__ import annotations

import fcntl
import json
import time
import uuid
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from trainer.config import Config
from trainer.data.schema import Dataset
from trainer.run_files import committed, write_json

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

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def read_config(self) -> dict[str, Any]:
        """config.json as plain data. Raises ValueError where there is no run."""
        file = self.path / "config.json"
        if not file.is_file():
            raise ValueError(
                f"{self.path} is no run: it has no config.json; "
                f"make one with `tandem train PRESET --data DIR --out {self.path}`"
            )
        return json.loads(file.read_text())

    def check_start(self, spec: RunSpec, dataset: Dataset) -> bool:
        """May this start use the folder? True: as a continuation; False: as a new run.

        Raises:
            ValueError: if it exists and `--resume` is not given; if there is nothing to resume;
                if config or data changed since.
        """
        if not self.path.exists() or not any(self.path.iterdir()):
            if spec.resume:
                raise ValueError(f"--resume: {self.path} does not exist; leave --resume out")
            return False
        before = self.read_config()
        if not spec.resume and before["run_id"] != spec.run_id:
            raise ValueError(
                f"{self.path} exists already; choose another --out, or go on with it by --resume"
            )
        self._check_unchanged(before, spec, dataset)
        return True

    def _check_unchanged(self, before: dict[str, Any], spec: RunSpec, dataset: Dataset) -> None:
        if before["dataset_digest"] not in (dataset.digest, dataset.parent_digest):
            raise ValueError(
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
                raise ValueError(
                    f"--resume cannot change what the model is ({'; '.join(changed)}); "
                    "start a new run, or leave these flags as they were"
                )

    def begin(self, spec: RunSpec, dataset: Dataset, world_size: int) -> None:
        """Rank 0: make the folder, take its lock, write config.json and a line of starts.jsonl."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.lock()
        newest = committed(self.checkpoints)[-1:]
        step = int(newest[0].name.removeprefix("step-")) if newest else 0
        start = {"time": time.time(), "step": step, "world_size": world_size}
        with (self.path / "starts.jsonl").open("a") as stream:
            stream.write(json.dumps(start) + "\n")
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
        return len((self.path / "starts.jsonl").read_text().splitlines()) - 1

    def lock(self) -> None:
        """Rank 0: refuse a second run on the same folder for as long as this process lives."""
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{self.path} is in use by another run; wait for it, stop it, or choose another "
                "--out"
            ) from error

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def keep_metrics_until(self, step: int) -> None:
        """Rank 0, on resuming: drop lines of steps that will be trained again."""
        if not self.metrics_file.exists():
            return
        lines = self.metrics_file.read_text().splitlines()
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        self.metrics_file.write_text("".join(line + "\n" for line in kept))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Rank 0: one line of metrics.jsonl."""
        with self.metrics_file.open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def append_evaluation(self, record: dict[str, Any]) -> None:
        """Rank 0: one line of validation.jsonl."""
        with (self.path / "validation.jsonl").open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)
