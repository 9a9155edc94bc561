"""A run's folder, read for drawing: what it said of itself while it trained."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.base.mistake import Mistake
from trainer.base.run_files import SUMMARY_FILE
from trainer.files.json_files import COMMIT_FILE, committed, read_json
from trainer.files.line_file import read_records
from trainer.files.signs import Signs
from trainer.files.storage import StoragePath, modified_at, storage_path
from trainer.live.growing import Columns, GrowingColumns, finite
from trainer.live.troubles import troubles_of
from trainer.observe.choice import read_choice
from trainer.run.asked.beside import told_of_beside
from trainer.run.folder import RunFolder
from trainer.run.state import RunState, read_state

MOST_POINTS = 400
FEW_POINTS = 50


def read_run(path: str | StoragePath) -> dict[str, Any]:
    """Everything the pages draw of a run, once; `RunReader` is for pages that are drawn again."""
    return RunReader(path).read()


class RunReader:
    """Reads a run's folder again and again, each time what is new in its files of lines.

    Raises:
        Mistake: where `path` is no run, or a file of it cannot be read.
    """

    def __init__(self, path: str | StoragePath) -> None:
        self._folder, self._root = RunFolder(path), storage_path(path)
        self._metrics = GrowingColumns(self._folder.metrics_file)
        self._validation = GrowingColumns(self._root / "validation.jsonl")
        self._signs = Signs()

    @property
    def is_begun(self) -> bool:
        """Whether the run has come to its first step: before, there is nothing to read."""
        return self._folder.config_file.is_file()

    def read(self) -> dict[str, Any]:
        """Everything the pages draw, as plain JSON-able data; NaN and infinities become None."""
        facts, root = self._folder.read_config(), self._root
        starts, choice = read_records(root / "starts.jsonl"), read_choice(root)
        metrics, state = self._metrics.read(), read_state(root, self._signs)
        read = {
            "name": root.resolve().name if isinstance(root, Path) else root.name,
            "preset": facts.preset,
            "data": facts.data,
            "dataset_digest": facts.dataset_digest,
            "start_from": None if facts.start_from is None else asdict(facts.start_from),
            "config": facts.config.to_json(),
            "versions": facts.versions,
            "starts": starts or [{"step": 0, "world_size": facts.world_size, "time": None}],
            "metrics": thinned(metrics),
            "validation": self._validation.read(),
            "summary": _read_json(root / SUMMARY_FILE),
            "choice": None if choice is None else asdict(choice),
            "beside": told_of_beside(root),
            "evaluation": _read_evaluation(root / "evaluation.json"),
            "now": _now(self._folder, state, self._metrics.newest),
        }
        troubles = [asdict(each) for each in troubles_of(read, state.now or time.time())]
        return {**read, "troubles": troubles}


def thinned(columns: Columns) -> Columns:
    """Every n-th line and the last, MOST_POINTS of them, and those that have a rare value.

    What is written when it changes (a checkpoint that failed, the time of an evaluation) stands in
    few lines: of each such column FEW_POINTS are kept.
    """
    length = len(columns["step"])
    every = -(-length // MOST_POINTS) or 1
    kept = {*range(0, length, every), *([length - 1] if length else [])}
    for values in columns.values():
        known = [place for place, value in enumerate(values) if value is not None]
        if every > 1 and len(known) * every < length:
            kept |= {*known[:: -(-len(known) // FEW_POINTS) or 1], *known[-1:]}
    return {key: [values[place] for place in sorted(kept)] for key, values in columns.items()}


def _now(folder: RunFolder, run: RunState, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The big numbers of the live page, ages by the clock of the machine that trains."""
    now = run.now or time.time()
    last = metrics[-1] if metrics else {}
    signs = [_number(last.get("time")), run.owner.renewed if run.owner else None]
    known = [each for each in signs if each is not None]
    silent = max(now - max(known or [modified_at(folder.config_file)]), 0.0)
    pace, left = _number(last.get("step_seconds")), None
    if run.is_alive and run.total_steps is not None and pace is not None:
        left = (run.total_steps - run.step) * pace
    newest = committed(folder.checkpoints)[-1:]
    # That clock is as of the run's last sign: a checkpoint may be newer.
    age = max(now - modified_at(newest[0] / COMMIT_FILE), 0.0) if newest else None
    return {
        "step": run.step,
        "total_steps": run.total_steps,
        "seconds_left": left,
        "loss": finite(last.get("loss")),
        "examples_per_second": last.get("examples_per_second"),
        "checkpoint_age_seconds": age,
        "silent_seconds": silent,
        "is_alive": run.is_alive,
        "phase": run.phase,
        "shown_phase": run.shown_phase,
        "cause": run.cause,
    }


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def _read_json(path: StoragePath) -> Any:
    return read_json(path) if path.exists() else None


def _read_evaluation(path: StoragePath) -> Any:
    """evaluation.json: measures by name, by split."""
    found = _read_json(path)
    splits = {} if found is None else found
    if not isinstance(splits, dict) or not all(
        _are_measures(values) and _are_measures(values.get("popularity", {}))
        for values in splits.values()
    ):
        raise Mistake(f"{path} holds no evaluations: move it away")
    return found


def _are_measures(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(value, int | float) for name, value in values.items() if "@" in name
    )
