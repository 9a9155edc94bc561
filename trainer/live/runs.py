"""A run's folder, read for drawing: what it said of itself while it trained."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from trainer.live.growing import Columns, GrowingColumns, finite
from trainer.mistake import Mistake
from trainer.run import RunFolder
from trainer.run_files import COMMIT_FILE, committed
from trainer.storage import StoragePath, modified_at, storage_path

MOST_POINTS = 600
SILENT_SECONDS = 60.0


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

    def read(self) -> dict[str, Any]:
        """Everything the pages draw, as plain JSON-able data; NaN and infinities become None."""
        facts, root = self._folder.read_config(), self._root
        starts = read_lines(root / "starts.jsonl")
        metrics = self._metrics.read()
        return {
            "name": root.resolve().name if isinstance(root, Path) else root.name,
            "preset": facts["preset"],
            "data": facts["data"],
            "config": facts["config"],
            "versions": facts["versions"],
            "starts": starts or [{"step": 0, "world_size": facts["world_size"], "time": None}],
            "metrics": thinned(metrics),
            "validation": self._validation.read(),
            "summary": _read_json(root / "summary.json"),
            "evaluation": _read_evaluation(root / "evaluation.json"),
            "now": _now(self._folder, facts, self._metrics.newest),
        }


def read_lines(path: StoragePath) -> list[dict[str, Any]]:
    """Lines of a short JSONL file that are whole; empty where there is none."""
    growing = GrowingColumns(path)
    columns = growing.read()
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def thinned(columns: Columns) -> Columns:
    """At most MOST_POINTS values a column: every n-th, and the last."""
    length = len(columns["step"])
    every = -(-length // MOST_POINTS) or 1
    kept = sorted({*range(0, length, every), *([length - 1] if length else [])})
    return {key: [values[index] for index in kept] for key, values in columns.items()}


def _now(folder: RunFolder, facts: dict[str, Any], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The big numbers of the live page."""
    now = time.time()
    last = metrics[-1] if metrics else {}
    total = last.get("total_steps")
    step = last.get("step", 0)
    silent = now - last.get("time", modified_at(folder.path / "config.json"))
    if (folder.path / "summary.json").exists():
        state = "finished"
    else:
        state = "running" if silent < SILENT_SECONDS else "stopped"
    left = (total - step) * last["step_seconds"] if total and state == "running" else None
    newest = committed(folder.checkpoints)[-1:]
    return {
        "step": step,
        "total_steps": total,
        "seconds_left": left,
        "loss": finite(last.get("loss")),
        "examples_per_second": last.get("examples_per_second"),
        "checkpoint_age_seconds": now - modified_at(newest[0] / COMMIT_FILE) if newest else None,
        "silent_seconds": silent,
        "state": state,
    }


def _read_json(path: StoragePath) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{path} cannot be read ({error}): move it away") from error


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
