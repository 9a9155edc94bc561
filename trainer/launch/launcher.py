"""Who runs work on ranks: this process, processes of this machine, or workers on Ray.

    launcher.run(work, arguments)    one work on all ranks: what rank 0 returned
    launcher.each(work, many)        many works of one rank each, side by side

Whichever it is, the user reads the same: progress as the work goes on, one line of the first cause
where it fails, and how it ended where it was told to.

    Here        trainer/launch/here.py            one rank, or one of torchrun's
    Processes   trainer/launch/processes.py       as many as the machine has GPUs or CPUs
    RayWorkers  cluster/workers/ray_workers.py    nodes of a cluster; watched, started again
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from trainer.base.ending import foreign_line
from trainer.base.mistake import Mistake
from trainer.base.stopping import Terminated, Told
from trainer.distributed.hooks import Hooks
from trainer.distributed.ranks import Ranks
from trainer.observe.progress import Progress


@dataclass(frozen=True)
class Worker:
    """What work is given on each rank."""

    ranks: Ranks
    progress: Progress
    """Rank 0's reaches the user; the others' says nothing."""
    hooks: Hooks


GO_ON = "go on with --resume"
Work = Callable[[Any, Worker], Any]
"""`work(arguments, worker)`: a function of a module; arguments and result can be pickled."""


@dataclass(frozen=True)
class Resumable:
    """Work that writes checkpoints: it can be stopped at one, and gone on with on other ranks.

    Its result is a dict: its `phase` is "stopped" where it returned since
    `worker.hooks.stop_requested`, else "finished"; `steps` says where.
    """

    run: str
    """Folder or URI of its checkpoints."""
    global_batch_size: int
    """The number of ranks must divide it."""
    saved_step: Callable[[], int]
    """Of its newest checkpoint, as far as this process sees it; 0: none."""
    waiting: Callable[[], None] = lambda: None
    """Told again and again while the launcher waits for room for ranks."""
    failed: Callable[[str], None] = lambda cause: None
    """Told the first cause, where it does not go on."""
    serves_metrics: bool = False
    go_on: str = GO_ON
    """What the user does next."""

    def check_end(self, told: Told, result: dict[str, Any]) -> None:
        """Raise Terminated where it has stopped early because the process was told to end."""
        if result["phase"] == "stopped" and told.is_set():
            steps = f"{result['steps']:,}"
            raise told.ended(f" after step {steps}, with a checkpoint; {self.go_on}")


@contextmanager
def failure_noted(resumable: Resumable | None) -> Iterator[None]:
    """Tell resumable work of what ends the body, unless it was told to end."""
    try:
        yield
    except Terminated:
        raise
    except Exception as error:
        if resumable is not None:
            resumable.failed(str(error) if isinstance(error, Mistake) else foreign_line(error))
        raise


class Launcher(Protocol):
    """Starts ranks, and ends them."""

    @property
    def is_here(self) -> bool:
        """Whether its ranks see the files that this process sees."""

    def run(self, work: Work, arguments: Any, resumable: Resumable | None = None) -> Any:
        """What `work(arguments, worker)` returned on rank 0, once all ranks are through.

        Args:
            resumable: where the work can be stopped at a checkpoint; any other ends at once.

        Raises:
            Mistake: of any rank.
            WorkFailedError: where a rank fails otherwise, or its process is gone.
            Terminated: on SIGTERM and Ctrl-C, which reach the main thread alone.
        """

    def each(self, work: Work, many: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Each name of `many` with what `work` returned for its arguments, as they come.

        Raises as `run` does; what has not ended by then is ended.
        """
