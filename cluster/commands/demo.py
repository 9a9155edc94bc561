"""`tandem demo [FOLDER]`: data, training on two Ray workers, exact evaluation, recommendations.

The data are made once; every demo trains into a folder of its own.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import tandem
from trainer.base.ranges import check_given, check_range
from trainer.base.screen import say
from trainer.files.json_files import read_json

BAR_WIDTH = 60


@dataclass(frozen=True)
class DemoArguments:
    """Data, training on Ray, exact evaluation, ten recommendations: under five minutes."""

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
    data, run = folder / "data", folder / f"run-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    commands = [
        ["train", "demo", f"--data={data}", f"--out={run}", f"--workers={arguments.workers}"],
        ["evaluate", str(run), "--split=test"],
        ["recommend", str(run), "--user=1", "-k", "10"],
    ]
    if not (data / "dataset.json").exists():
        commands.insert(0, ["synth", str(data)])
    for command in commands:
        say()
        say(f"$ tandem {shlex.join(command)}")
        done = subprocess.run([sys.executable, str(tandem.__file__), *command], check=False)
        if done.returncode:
            return done.returncode
    _compare(data, run)
    say()
    say(f"The run is in {run}. Next: tandem prepare YOUR_FILE OUT, your own data.")
    return 0


def _compare(data: Path, run: Path) -> None:
    """Recall beside the best that these data allow, and the popularity ranking's."""
    best = read_json(data / "truth.json")["best"]["test"]["recall@20"]
    measured = read_json(run / "evaluation.json")["test"]
    rows = [
        ("best possible on these data", best),
        ("this run", measured["recall@20"]),
        ("popularity", measured["popularity"]["recall@20"]),
    ]
    say()
    say("recall@20 on the test part")
    for name, value in rows:
        say(f"  {name:30}{value:.4f}  {'█' * round(BAR_WIDTH * value / best)}")
