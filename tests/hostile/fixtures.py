"""What commands are given that is right: a dataset, a run of it, a preset file, a source."""

from __future__ import annotations

import json
from pathlib import Path

from tests.data.planted import make, some_rows, write_csv
from tests.datasets import make_dataset


def make_fixtures(folder: Path, *, with_run: bool = True) -> Path:
    """P and rows.csv, more.csv: a prepared dataset and sources. D, R, best.json: a run of two
    checkpoints and its data."""
    folder.mkdir(parents=True)
    make(write_csv(folder / "rows.csv", some_rows()), folder / "P")
    write_csv(folder / "more.csv", some_rows(users=9))
    if with_run:
        from tests.one_rank import begun, spec_of  # torch

        make_dataset(folder / "D", users=60, items=40, rows=1400)
        begun(str(folder / "D"), folder / "R", training={"max_steps": 6})
        config = spec_of(str(folder / "D"), folder / "R").config.to_json()
        (folder / "best.json").write_text(json.dumps(config, indent=1))
    return folder
