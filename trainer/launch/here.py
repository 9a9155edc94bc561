"""Work in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from trainer.base.ending import is_first_rank
from trainer.base.stopping import terminations
from trainer.distributed.hooks import Hooks
from trainer.distributed.ranks import Ranks, process_group
from trainer.launch.launcher import Resumable, Work, Worker, failure_noted
from trainer.observe.progress import Progress, SilentProgress, TerminalProgress


@dataclass(frozen=True)
class Here:
    """One rank: this process. Under torchrun it is one of the ranks that were started.

    What the work raises is raised as it is.
    """

    progress: Progress | None = None
    """None: the terminal."""
    hooks: Hooks = field(default_factory=Hooks)

    @property
    def is_here(self) -> bool:
        return True

    def run(self, work: Work, arguments: Any, resumable: Resumable | None = None) -> Any:
        """See `Launcher`. The number of torch's threads is as before afterwards."""
        threads = torch.get_num_threads()
        try:
            with failure_noted(resumable if is_first_rank() else None), ExitStack() as stack:
                hooks = self.hooks
                if resumable is not None:
                    told = stack.enter_context(terminations())
                    hooks = replace(hooks, stop_requested=told.is_set)
                ranks = stack.enter_context(process_group())
                progress = (self.progress or TerminalProgress()) if ranks.is_first else None
                progress = progress or SilentProgress()
                stack.callback(progress.close)
                result = work(arguments, Worker(ranks, progress, hooks))
                if resumable is not None:
                    resumable.check_end(told, result)
                return result
        finally:
            torch.set_num_threads(threads)

    def each(self, work: Work, many: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """One after the other."""
        for name, arguments in many.items():
            yield name, self.run(work, arguments)


def is_first_process() -> bool:
    """Whether this process speaks to the terminal and writes: under torchrun, rank 0 alone."""
    return Ranks.from_environment().is_first
