"""A run's folder, read for drawing: what it said of itself while it trained."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from trainer.run import RunFolder
from trainer.run_files import COMMIT_FILE, committed
from trainer.storage import StoragePath, modified_at, storage_path

MOST_POINTS = 600
SILENT_SECONDS = 60.0
Columns = dict[str, list[Any]]


def read_run(path: str | StoragePath) -> dict[str, Any]:
    """Everything the pages draw, as plain JSON-able data; NaN and infinities become None.

    Raises:
        Mistake: where `path` is no run.
    """
    folder = RunFolder(path)
    facts = folder.read_config()
    root = storage_path(path)
    metrics = read_lines(folder.metrics_file)
    validation = read_lines(root / "validation.jsonl")
    starts = read_lines(root / "starts.jsonl")
    return {
        "name": root.resolve().name if isinstance(root, Path) else root.name,
        "preset": facts["preset"],
        "data": facts["data"],
        "config": facts["config"],
        "versions": facts["versions"],
        "starts": starts or [{"step": 0, "world_size": facts["world_size"], "time": None}],
        "metrics": thinned(as_columns(metrics)),
        "validation": as_columns(validation),
        "summary": _read_json(root / "summary.json"),
        "evaluation": _read_json(root / "evaluation.json"),
        "now": _now(folder, facts, metrics),
    }


def read_lines(path: StoragePath) -> list[dict[str, Any]]:
    """Lines of a JSONL file, without one that is being written; empty where there is none."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


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
        "loss": _finite(last.get("loss")),
        "examples_per_second": last.get("examples_per_second"),
        "checkpoint_age_seconds": now - modified_at(newest[0] / COMMIT_FILE) if newest else None,
        "silent_seconds": silent,
        "state": state,
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_json(path: StoragePath) -> Any:
    return json.loads(path.read_text()) if path.exists() else None
