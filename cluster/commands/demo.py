"""`tandem demo [FOLDER]`: data, training on two Ray workers, recommendations, exact evaluation.

The data are made once; every demo trains into a folder of its own. They hold a feature of each
type: categories, numbers, vectors, the context, kinds and weights of events; and items that
training never meets.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import tandem
from trainer.base.ranges import check_given, check_range
from trainer.base.screen import say, window_width
from trainer.files.json_files import read_json

BAR_WIDTH = 60
BEFORE_BAR = 40
"""Columns."""
PLANTED = ("--vectors=16", "--numbers", "--context", "--kinds", "--weights", "--new-items=0.05")
READ = ("--model.item-attributes", "--model.user-attributes", "--model.context-attributes")
NEW_ITEMS = "--model.id-dropout=0.2"


@dataclass(frozen=True)
class DemoArguments:
    """Data, training on Ray, ten recommendations, exact evaluation: under five minutes."""

    folder: Annotated[str, tyro.conf.Positional] = "demo"
    """Folder for the data and the runs."""
    workers: int = 2
    """Workers that train."""

    def __post_init__(self) -> None:
        check_given(self, (), ("folder",))
        check_range("--workers", self.workers, 1)


def demo(arguments: DemoArguments) -> int:
    """Run the commands that a user would, each shown before; the first failure's exit status."""
    folder = Path(arguments.folder)
    data, run = folder / "planted", folder / f"run-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    commands = [
        [
            *("train", "demo", f"--data={data}", f"--out={run}", f"--workers={arguments.workers}"),
            *(*READ, NEW_ITEMS),
        ],
        ["recommend", str(run), "--user=1", "--context", "device=phone", "minutes=20", "-k", "10"],
        ["evaluate", str(run), "--split=test"],
    ]
    if not (data / "dataset.json").exists():
        commands.insert(0, ["synth", str(data), *PLANTED])
    for command in commands:
        say()
        say("$", command=["tandem", *command])
        done = subprocess.run([sys.executable, str(tandem.__file__), *command], check=False)
        if done.returncode:
            return done.returncode
    _compare(data, run)
    say()
    say(f"The run is in {run}. Next: tandem prepare YOUR_FILE OUT, your own data.")
    return 0


def _compare(data: Path, run: Path) -> None:
    """Recall beside the best that these data allow, and the popularity ranking's."""
    truth, measured = read_json(data / "truth.json"), read_json(run / "evaluation.json")["test"]
    best, best_of_new = (truth[name] for name in ("best", "best_of_new_items"))
    _bars(
        "recall@20 on the test part",
        ("best possible on these data", best["test"]["recall@20"]),
        ("this run", measured["recall@20"]),
        ("popularity", measured["popularity"]["recall@20"]),
    )
    _bars(
        "recall@20 of items that training never met",
        ("best possible on these data", best_of_new["test"]["recall@20"]),
        ("this run, by their features", measured["new_items"]["recall@20"]),
        ("a model of ids, popularity", 0.0),
    )


def _bars(title: str, *rows: tuple[str, float]) -> None:
    """Values as bars; the first is the longest possible."""
    longest = min(BAR_WIDTH, (window_width() or BEFORE_BAR + BAR_WIDTH) - BEFORE_BAR - 1)
    say()
    say(title)
    for name, value in rows:
        say(f"  {name:30}{value:.4f}  {'█' * round(longest * value / rows[0][1])}".rstrip())
