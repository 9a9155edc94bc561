"""`tandem.train`: in this process, or on Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.commands.train_run import OnRay, precheck
from trainer.api.run import Run, path_of
from trainer.base.mistake import Mistake
from trainer.base.stopping import Told, terminations
from trainer.base.typed import read_as
from trainer.command_line import config_for, overridden, recorded_name
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.distributed.hooks import Hooks
from trainer.observe.progress import quiet_libraries
from trainer.run.folder import RunSpec, absolute
from trainer.tools.ready import ready_for_torch

OF_A_CONFIG = "python"
"""What a run records as its preset, where it was given a Config."""


def train(
    preset: str | Path | Config,
    data: str | Path | Dataset,
    out: str | Path,
    overrides: Mapping[str, Any],
    workers: int | str | None,
    address: str | None,
    resume: bool,
    launch: Mapping[str, Any],
) -> Run:
    """Train, and open the run. See `tandem.train`."""
    how = {"workers": None if workers is None else str(workers), "address": address, **launch}
    on_ray = read_as(OnRay, how)
    here = workers is None and address is None
    if here and launch:
        raise Mistake(f"{next(iter(launch))}: how workers are started: give workers or address too")
    folder, run = path_of(data), absolute(str(out))
    if isinstance(preset, Config):
        name, config = OF_A_CONFIG, preset
    else:
        name = recorded_name(str(preset))
        config = config_for(name, folder, run if resume else None)
    spec = RunSpec(name, overridden(config, overrides), absolute(folder), run, resume)
    ready_for_torch()
    if here:
        train_here(spec)
    else:
        options = on_ray.options(verbose=False)
        precheck(spec, options)
        from cluster.workers.launch import launch as launch_on_ray  # Ray Train: seconds

        quiet_libraries()  # after the import of Ray, which sets its own levels
        launch_on_ray(spec, options)
    return Run(run, folder)


def train_here(spec: RunSpec) -> dict[str, Any]:
    """Train as a world of one in this process, whose number of threads is as before afterwards.

    Raises:
        Terminated: on SIGTERM and Ctrl-C, once a checkpoint is written.
    """
    import torch

    from trainer.train import run_worker

    threads = torch.get_num_threads()
    try:
        with _terminations() as told:
            summary = run_worker(spec, hooks=Hooks(stop_requested=told.is_set))
    finally:
        torch.set_num_threads(threads)
    if summary["stopped_on_request"]:
        steps = f"{summary['steps']:,}"
        raise told.ended(f" after step {steps}, with a checkpoint; go on with resume=True")
    return summary


@contextmanager
def _terminations() -> Iterator[Told]:
    """Signals reach the main thread alone; in another one nobody tells the run to end."""
    if threading.current_thread() is threading.main_thread():
        with terminations() as told:
            yield told
    else:
        yield Told()
