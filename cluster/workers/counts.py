"""How many workers: `--workers 4`, or `--workers 2..8` where nodes may come and go."""

import re
from dataclasses import dataclass
from typing import Literal

from trainer.base.machine import usable_memory_bytes
from trainer.base.mistake import Mistake, UsageError

Device = Literal["auto", "gpu"]
WORKER_BYTES = 400 * 2**20
"""Python, torch, torchrec and Ray in one process, roughly."""


@dataclass(frozen=True)
class Resources:
    """What a cluster has altogether."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Workers:
    """A fixed number (least == most), or a range within which a run grows and shrinks."""

    least: int
    most: int
    waits: bool = False
    """Given as a range, 4..4 too: its nodes may come later."""

    def __post_init__(self) -> None:
        if self.least < 1 or self.most < self.least:
            raise UsageError(
                f"--workers {self}: must be 1 or more, or LEAST..MOST with LEAST at most MOST"
            )

    @staticmethod
    def exactly(count: int) -> "Workers":
        return Workers(count, count)

    @staticmethod
    def parse(text: str) -> "Workers":
        """Read "4" or "2..8"."""
        found = re.fullmatch(r"(-?\d+)(?:\.\.(-?\d+))?", text.strip())
        if found is None:
            raise UsageError(f"--workers {text}: a number such as 4, or a range such as 2..8")
        least, most = found.groups()
        return Workers(int(least), int(most or least), waits=most is not None)

    def __str__(self) -> str:
        return f"{self.least}..{self.most}" if self.waits else str(self.least)

    def check_fits_here(self) -> None:
        """Raise where a cluster of this machine alone could never hold so many."""
        memory = usable_memory_bytes()
        if self.most > max(memory // WORKER_BYTES, 1):
            raise Mistake(
                f"--workers {self}: each takes {WORKER_BYTES / 2**30:.1f} GiB of memory before it "
                f"holds any data, and this machine has {memory / 2**30:.1f} GiB: take at most "
                f"{max(memory // WORKER_BYTES, 1)}, or name a cluster with --address"
            )

    def check_fits(self, resources: Resources, device: Device) -> None:
        """Raise where the cluster could never start so many: Ray would wait for ever.

        A range is for clusters whose nodes come and go: such a run waits for them, and says so.
        """
        if self.waits:
            return
        on_gpu = device == "gpu" or resources.gpus > 0
        offered, unit = (resources.gpus, "GPUs") if on_gpu else (resources.cpus, "CPUs")
        if self.least > offered:
            raise Mistake(
                f"--workers {self}: the cluster has {offered} {unit}, one a worker; "
                f"{f'ask for at most {offered}, or ' if offered else ''}add nodes; a range, as "
                f"--workers 1..{self.least}, waits for them, and asks an autoscaler for them"
            )


def default_workers(resources: Resources, device: Device) -> Workers:
    """One worker a GPU; without GPUs, one for every second CPU.

    Raises:
        Mistake: where GPUs are asked for and there is none yet.
    """
    if device == "gpu" and not resources.gpus:
        raise Mistake(
            "--device gpu: the cluster has no GPU; say how many are waited for, as --workers 1..8"
        )
    return Workers.exactly(resources.gpus or max(1, resources.cpus // 2))
