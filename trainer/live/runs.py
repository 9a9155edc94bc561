"""A run's folder, read for drawing: what it said of itself while it trained."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from trainer.line_file import read_records
from trainer.run import RunFolder
from trainer.run_files import COMMIT_FILE, committed
from trainer.run_state import read_state
from trainer.storage import StoragePath, modified_at, storage_path

MOST_POINTS = 600
CONFIG_FILE = "config.json"
Columns = dict[str, list[Any]]


def read_run(path: str | StoragePath) -> dict[str, Any]:
    """Everything the pages draw, as plain JSON-able data; NaN and infinities become None.

    Raises:
        Mistake: where `path` is no run.
    """
    folder = RunFolder(path)
    facts = folder.read_config()
    root = storage_path(path)
    metrics = read_records(folder.metrics_file)
    validation = read_records(root / "validation.jsonl")
    starts = read_records(root / "starts.jsonl")
    return {
        "name": root.resolve().name if isinstance(root, Path) else root.name,
        "preset": facts.preset,
        "data": facts.data,
        "config": facts.config.to_json(),
        "versions": facts.versions,
        "starts": starts or [{"step": 0, "world_size": facts.world_size, "time": None}],
        "metrics": thinned(as_columns(metrics)),
        "validation": as_columns(validation),
        "summary": _read_json(root / "summary.json"),
        "evaluation": _read_json(root / "evaluation.json"),
        "now": _now(folder, metrics),
    }


def as_columns(records: list[dict[str, Any]]) -> Columns:
    """{key: values in order}; None where a record lacks the key or the value is not finite."""
    keys = dict.fromkeys(key for record in records for key in record)
    columns = {key: [_finite(record.get(key)) for record in records] for key in keys}
    return columns if "step" in columns else {**columns, "step": []}


def thinned(columns: Columns) -> Columns:
    """At most MOST_POINTS values a column: every n-th, and the last."""
    length = len(columns["step"])
    every = -(-length // MOST_POINTS) or 1
    kept = sorted({*range(0, length, every), *([length - 1] if length else [])})
    return {key: [values[index] for index in kept] for key, values in columns.items()}


def _now(folder: RunFolder, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The big numbers of the live page."""
    now = time.time()
    last = metrics[-1] if metrics else {}
    run = read_state(folder.path)
    signs = [_number(last.get("time")), run.owner.renewed if run.owner else None]
    known = [each for each in signs if each is not None]
    silent = now - max(known or [modified_at(folder.path / CONFIG_FILE)])
    pace, left = _number(last.get("step_seconds")), None
    if run.state == "running" and run.total_steps is not None and pace is not None:
        left = (run.total_steps - run.step) * pace
    newest = committed(folder.checkpoints)[-1:]
    return {
        "step": run.step,
        "total_steps": run.total_steps,
        "seconds_left": left,
        "loss": _finite(last.get("loss")),
        "examples_per_second": last.get("examples_per_second"),
        "checkpoint_age_seconds": now - modified_at(newest[0] / COMMIT_FILE) if newest else None,
        "silent_seconds": silent,
        "state": run.state,
        "phase": run.owner.phase if run.owner else None,
        "phase_done": run.owner.done if run.owner else None,
        "phase_total": run.owner.total if run.owner else None,
    }


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_json(path: StoragePath) -> Any:
    return json.loads(path.read_text()) if path.exists() else None
