"""`python -m trainer.bench.gpu_step OUT`: training on CUDA beside a plain loop and the floor.

Steps on drawn ids first, Tandem's and the plain loop's in turns, and the sequence tower's beside a
plain SASRec's; then whole runs of `tandem train` on generated data, with their loader. The floor of
a step is what its products and the rows of its tables must take at the rates of this device. Writes
OUT/step.json; part of `make gpu-check`.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from trainer.bench import sequence
from trainer.bench.gpu_rates import copy_rate, product_rate, results_folder, write_results
from trainer.bench.sequence import SequenceBenchArguments
from trainer.bench.steppers import PlainStepper, TandemStepper
from trainer.bench.worker_processes import Stepper, Workload
from trainer.config.model_section import Block
from trainer.distributed.ranks import Ranks, process_group
from trainer.observe.progress import quiet_libraries

BATCHES = (4096, 16384, 65536)
ROUNDS, STEPS = 5, 20
DATA = {"users": 250_000, "items": 1_000_000, "interactions": 10_000_000}
RUN_BATCHES = (8192, 32768)
BLOCKS: tuple[Block, ...] = ("sasrec", "ligr", "hstu")
SEQUENCE_BATCHES = (4096, 32768)
RUN_STEPS = 240
LOG_EVERY = 40
SIDES: dict[str, Callable[[Workload, Ranks], Stepper]] = {
    "tandem": TandemStepper,
    "plain": lambda workload, ranks: PlainStepper(workload, ranks.device),
}


def main() -> None:
    """Steps at BATCHES, then runs at RUN_BATCHES, each in float32 and bf16."""
    folder = results_folder()
    quiet_libraries()
    with process_group() as ranks:
        steps = [
            told(measure(workload(batch, precision), ranks))
            for batch in BATCHES
            for precision in ("fp32", "bf16")
        ]
        write_results(folder / "step.json", steps=steps, sequences=[], runs=[])
    sequences = [
        told(sequence_step(block, batch)) for block in BLOCKS for batch in SEQUENCE_BATCHES
    ]
    write_results(folder / "step.json", steps=steps, sequences=sequences, runs=[])
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        flags = [f"--{name}={size}" for name, size in DATA.items()]
        _tandem("cluster.cli", "synth", str(data), *flags)
        runs = []
        for batch in RUN_BATCHES:
            for precision in ("fp32", "bf16"):
                runs.append(told(whole_run(data, Path(scratch), batch, precision)))
                write_results(folder / "step.json", steps=steps, sequences=sequences, runs=runs)


def sequence_step(block: Block, batch: int) -> dict[str, Any]:
    """Tokens a second of the sequence tower and of a plain SASRec."""
    return {
        "block": block,
        "batch": batch,
        **sequence.run(SequenceBenchArguments(block=block, global_batch_size=batch)),
    }


def told(result: dict[str, Any]) -> dict[str, Any]:
    """The result, which is printed too."""
    print(json.dumps(result), flush=True)
    return result


def workload(batch: int, precision: Literal["fp32", "bf16"]) -> Workload:
    """The one of `tandem bench step`."""
    return Workload(1_000_000, 2_000_000, 64, batch, precision)


def measure(work: Workload, ranks: Ranks) -> dict[str, Any]:
    """Examples a second of both sides, and where Tandem's step goes."""
    rounds: dict[str, list[float]] = {name: [] for name in SIDES}
    peaks = dict.fromkeys(SIDES, 0)
    held: dict[str, int] = {}
    steppers: dict[str, Stepper] = {}
    for name, make in SIDES.items():
        before = torch.cuda.memory_allocated()
        steppers[name] = make(work, ranks)
        held[name] = torch.cuda.memory_allocated() - before
    for turn in range(ROUNDS + 1):
        for name in list(steppers):
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            try:
                seconds = steppers[name].steps(STEPS) / STEPS
            except torch.OutOfMemoryError:
                del steppers[name]
                torch.cuda.empty_cache()
                continue
            peak = torch.cuda.max_memory_allocated() - before + held[name]
            peaks[name] = max(peaks[name], peak)
            if turn:  # the first chooses kernels and compiles them
                rounds[name].append(seconds)
    step = {name: median(taken) if taken else None for name, taken in rounds.items()}
    parts = steppers["tandem"].parts(STEPS)
    steppers.clear()
    gc.collect()
    torch.cuda.empty_cache()
    assert step["tandem"] is not None
    floor = floor_seconds(work)
    return {
        "batch": work.global_batch_size,
        "precision": work.precision,
        "examples_per_second": {
            name: work.global_batch_size / seconds if seconds else None
            for name, seconds in step.items()
        },
        "ratio": step["plain"] / step["tandem"] if step["plain"] else None,
        "floor_seconds": floor,
        "floor_share": sum(floor.values()) / step["tandem"],
        "peak_bytes": peaks,
        "part_seconds": parts,
    }


def floor_seconds(work: Workload) -> dict[str, float]:
    """Seconds that a step's products and its tables' rows take at this device's rates."""
    batch, dim = work.global_batch_size, work.dim
    dtype = torch.bfloat16 if work.precision == "bf16" else torch.float32
    towers = 2 * 3 * 2 * batch * (dim * 2 * dim + 2 * dim * dim)
    # A row is read; its gradient is read, and the row read and written: two tables.
    row_bytes = 2 * batch * dim * 4 * 4
    return {
        "loss": 3 * 2 * batch * batch * dim / product_rate(dtype),
        "towers": towers / product_rate(torch.float32),
        "tables": row_bytes / copy_rate(),
    }


def whole_run(data: Path, scratch: Path, batch: int, precision: str) -> dict[str, Any]:
    """A run of `tandem train` with histories; medians of its lines but the first."""
    run = scratch / f"run-{batch}-{precision}"
    flags = {
        "--data": str(data),
        "--out": str(run),
        "--model.dim": 64,
        "--model.output-dim": 64,
        "--training.global-batch-size": batch,
        "--training.max-steps": RUN_STEPS,
        "--training.log-every-steps": LOG_EVERY,
        "--evaluation.every-epochs": 0,
        "--loss.precision": precision,
    }
    given = [str(part) for flag in flags.items() for part in flag]
    _tandem("trainer.train", "demo", *given, "--metrics.no-enabled")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = [name for name in lines[-1] if name.startswith("phase_seconds/")]
    names += ["examples_per_second", "step_seconds", "data_wait_share", "gpu_utilization"]
    names += ["device_memory_bytes/reserved", "host_memory_bytes"]
    means = {name: median(line[name] for line in lines[1:]) for name in names}
    return {"batch": batch, "precision": precision, **means}


def _tandem(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()
