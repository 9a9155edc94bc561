"""`tandem bench step`: a whole training step beside a plain PyTorch loop, or over catalog sizes.

Workers are real processes of one process group each, kept alive and asked in turns for a round of
steps, so that noise of the machine falls on both sides alike; medians of the rounds are compared.
Ids are drawn as the steps run (users uniform, items Zipf), so no data set is needed; `tandem bench
data` measures the loader.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from typing import Any, Literal

from trainer.base.machine import usable_cpus
from trainer.base.ranges import MOST_ROWS, MOST_TURNS, check_range, check_ranges
from trainer.base.screen import Sheet
from trainer.bench.worker_processes import Group, Workload
from trainer.config.model_section import MOST_WIDTH
from trainer.launch.processes import most_workers

GIB = 1024**3
SCALES = (0.1, 0.3, 1.0)
MALLOC_TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
}


@dataclass(frozen=True)
class StepBenchArguments:
    """Seconds of a training step: over catalog sizes (--items), or beside plain PyTorch."""

    items: int | None = None
    """Measure at this many items, 3/10 and 1/10 of it, on two ranks; left out: compare with plain
    PyTorch at 2 million."""
    users: int = 1_000_000
    """Users, drawn uniformly."""
    dim: int = 64
    """Width of tables and towers' output; the hidden layer is twice as wide."""
    global_batch_size: int = 4096
    """Rows a step over all ranks."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Operands of the score products (Tandem only)."""
    rounds: int = 5
    """Turns each side gets; medians are shown."""
    steps: int = 10
    """Steps of a turn."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        if self.items is not None:
            check_range("--items", self.items, 10, MOST_ROWS)
        check_ranges(
            self,
            users=(1, MOST_ROWS),
            dim=(1, MOST_WIDTH),
            global_batch_size=(2, MOST_ROWS),
            rounds=(1, MOST_TURNS),
            steps=(1, MOST_TURNS),
        )


def run(arguments: StepBenchArguments) -> dict[str, Any]:
    """Measure; the result is what `--json` prints."""
    if arguments.items is None:
        return compare(arguments)
    return scale(arguments)


def scale(arguments: StepBenchArguments) -> dict[str, Any]:
    """Two ranks at three catalog sizes, in turns."""
    assert arguments.items is not None
    sizes = [int(arguments.items * share) for share in SCALES]
    groups = {size: Group(2, workload(arguments, size), threads=1) for size in sizes}
    seconds = take_turns(groups, arguments)
    memory = {size: group.rank_bytes() for size, group in groups.items()}
    for group in groups.values():
        group.close()
    table_bytes = {
        size: (size + 1 + arguments.users + 1) * (arguments.dim + 1) * 4 // 2 for size in sizes
    }
    return {
        "seconds_per_step": seconds,
        "examples_per_second": {s: arguments.global_batch_size / t for s, t in seconds.items()},
        "rank_bytes": memory,
        "table_shard_bytes": table_bytes,
        "beyond_shard_bytes": {size: memory[size] - table_bytes[size] for size in sizes},
        "flatness": seconds[sizes[-1]] / seconds[sizes[0]],
    }


def compare(arguments: StepBenchArguments) -> dict[str, Any]:
    """Tandem (one process of all threads, the same with every copy of an item a column, and two
    ranks where a machine has room for them) beside a plain PyTorch loop."""
    cores = usable_cpus()
    work = workload(arguments, 2_000_000)
    plain = replace(work, precision="fp32")
    groups = {
        "tandem": Group(1, work, threads=cores),
        "tandem, every copy": Group(1, replace(work, distinct=False), threads=cores),
    }
    if most_workers() > 1:
        groups["tandem, 2 ranks"] = Group(2, work, threads=max(cores // 2, 1))
    groups["plain"] = Group(1, plain, threads=cores, kind="plain", environment=MALLOC_TUNED)
    seconds = take_turns(groups, arguments)
    parts = groups["tandem"].parts()
    columns = groups["tandem"].columns()
    other = groups.get("tandem, 2 ranks")
    two_ranks_columns = other and other.columns()
    for group in groups.values():
        group.close()
    rate = {name: arguments.global_batch_size / s for name, s in seconds.items()}
    two_ranks = rate.get("tandem, 2 ranks")
    return {
        "examples_per_second": rate["tandem"],
        "two_ranks_examples_per_second": two_ranks,
        "plain_examples_per_second": rate["plain"],
        "every_copy_examples_per_second": rate["tandem, every copy"],
        "ratio": rate["tandem"] / rate["plain"],
        "distinct_over_every_copy": rate["tandem"] / rate["tandem, every copy"],
        "two_ranks_over_one_process": two_ranks and two_ranks / rate["tandem"],
        "part_seconds": parts,
        "of_a_step": columns,
        "of_a_step_of_two_ranks": two_ranks_columns,
        "precision": arguments.precision,
    }


def workload(arguments: StepBenchArguments, items: int) -> Workload:
    return Workload(
        users=arguments.users,
        items=items,
        dim=arguments.dim,
        global_batch_size=arguments.global_batch_size,
        precision=arguments.precision,
    )


def take_turns(groups: dict[Any, Group], arguments: StepBenchArguments) -> dict[Any, float]:
    """Median seconds of a step of each group, measured in interleaved rounds."""
    for group in groups.values():
        group.seconds_of(arguments.steps)  # first touches of memory, kernels chosen
    rounds: dict[Any, list[float]] = {name: [] for name in groups}
    for _ in range(arguments.rounds):
        for name, group in groups.items():
            rounds[name].append(group.seconds_of(arguments.steps) / arguments.steps)
    return {name: statistics.median(values) for name, values in rounds.items()}


def main(arguments: StepBenchArguments) -> None:
    """Measure and print."""
    result = run(arguments)
    if arguments.json:
        print(json.dumps(result))
        return
    sheet = Sheet("what", "value", numbers=("value",), title="a training step")
    for name, value in result.items():
        for part, number in (value if isinstance(value, dict) else {"": value}).items():
            sheet.add(f"{name} {part}".strip(), _text(name, number))
    sheet.print()


def _text(name: str, value: Any) -> str:
    if value is None:
        return "no second GPU or CPU"
    if isinstance(value, str):
        return value
    if name.endswith("bytes"):
        return f"{value / GIB:.2f} GiB"
    return f"{value:,.0f}" if value > 100 else f"{value:.4f}"
