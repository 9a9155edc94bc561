"""What runs in each of the processes that `Processes` starts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from dataclasses import dataclass
from typing import Any

import torch

from trainer.base.ending import foreign_line
from trainer.base.mistake import Mistake
from trainer.distributed.hooks import Hooks
from trainer.distributed.ranks import process_group
from trainer.launch.causes import Gravity, is_consequence
from trainer.launch.launcher import Work, Worker
from trainer.observe.progress import SilentProgress, TerminalProgress, quiet_libraries

STARTER_GONE_STATUS = 71


@dataclass(frozen=True)
class End:
    """What a rank sends when it is through."""

    result: Any = None
    text: str | None = None
    """What it failed with."""
    gravity: Gravity = Gravity.FAULT
    traceback: str = ""


def run_rank(
    work: Work, arguments: Any, environment: dict[str, str], threads: int, sender: Any, stop: Any
) -> None:
    """What each process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started us hears it as well
    threading.Thread(target=_end_with_starter, name="tandem-starter", daemon=True).start()
    os.environ |= environment
    quiet_libraries()
    torch.set_num_threads(threads)
    try:
        with process_group() as ranks:
            speaks = ranks.is_first and ranks.world_size > 1  # works side by side have one teller
            progress = TerminalProgress() if speaks else SilentProgress()
            worker = Worker(ranks, progress, Hooks(stop_requested=stop.is_set))
            try:
                result = work(arguments, worker)
            finally:
                worker.progress.close()
            sender.send(End(result if ranks.is_first else None))
    except Mistake as mistake:
        sender.send(End(text=str(mistake), gravity=Gravity.MISTAKE))
    except Exception as error:  # noqa: BLE001 - told by the process that started us
        gravity = Gravity.CONSEQUENCE if is_consequence(error) else Gravity.FAULT
        line = foreign_line(error)
        sender.send(End(text=line, gravity=gravity, traceback=traceback.format_exc()))


def _end_with_starter() -> None:
    """A rank whose starter was killed would wait, or write, for nobody."""
    starter = multiprocessing.parent_process()
    assert starter is not None
    starter.join()
    os._exit(STARTER_GONE_STATUS)
