"""The six small runs whose loss curves are kept, and how they are trained.

    python -m tests.golden.runs        # records tests/golden/curves.json anew

A refactoring leaves the curves bit-identical. A change of numerics records them anew in its own
commit and gives the reason there.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.datasets import make_dataset
from tests.distributed import run_ranks
from trainer.config.presets import find_preset
from trainer.config.sections import Config
from trainer.observe.progress import SilentProgress
from trainer.run.folder import RunSpec
from trainer.tools.doctor import read_packages
from trainer.train import run_worker

CURVES = Path(__file__).with_name("curves.json")

RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "ssm": {},
    "bsl": {
        "loss": {"name": "bsl", "temperature": 0.1, "negative_weight": 1.2},
        "negatives": {"in_batch": False, "uniform": 64},
    },
    "ccl": {
        "loss": {"name": "ccl", "temperature": None, "margin": 0.5, "negative_weight": 10.0},
        "negatives": {"in_batch": False, "uniform": 64, "log_q": "none"},
    },
    "ssm_ntr": {"loss": {"name": "ssm_ntr", "alpha": 0.5}},
    "sequence": {
        "model": {"tower": "sequence", "use_history": False, "sequence_length": 4},
        "loss": {"learn_temperature": True},
    },
    "streaming, queue": {
        "loss": {"mask_same_user": True},
        "negatives": {"log_q": "streaming", "uniform": 32, "queue": 100, "queue_warmup_steps": 3},
    },
}


def config_of(name: str) -> Config:
    """MLP towers over every feature unless the run says otherwise; every step logged."""
    config = find_preset("ml-100k")
    settings: dict[str, dict[str, Any]] = {
        "model": {"dim": 16, "output_dim": 16, "hidden": (16,), "dropout": 0.1},
        "training": {"epochs": 1, "max_steps": 12, "global_batch_size": 128, "log_every_steps": 1},
        "evaluation": {"every_epochs": 0, "patience": None},
        "metrics": {"enabled": False},
    }
    sections = {}
    for section in {*settings, *RUNS[name]}:
        changes = {**settings.get(section, {}), **RUNS[name].get(section, {})}
        sections[section] = replace(getattr(config, section), **changes)
    return replace(config, **sections)


def curves_of(names: tuple[str, ...]) -> dict[str, list[str]]:
    """Loss of each step, as exact hexadecimal floats, by run; in this process's group."""
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder, "data"), users=80, items=60, rows=1500)
        for number, name in enumerate(names):
            out = Path(folder, str(number))
            run_worker(
                RunSpec("ml-100k", config_of(name), f"{folder}/data", str(out)), SilentProgress()
            )
            lines = (out / "metrics.jsonl").read_text().splitlines()
            curves[name] = [float(json.loads(line)["loss"]).hex() for line in lines]
    return curves


def machine() -> str:
    """What fixes the last bits beside the code: releases, and the kernels this processor takes."""
    packages = read_packages()
    releases = " ".join(
        f"{name} {packages[name].version.split('+')[0]}" for name in ("torch", "torchrec")
    )
    return f"{releases}, {torch.backends.cpu.get_cpu_capability()}"


def main() -> int:
    recorded = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    (recorded[machine()],) = run_ranks(1, curves_of, tuple(RUNS))
    CURVES.write_text(json.dumps(recorded, indent=1) + "\n")
    print(f"{CURVES}: {', '.join(RUNS)} on {machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
