"""`tandem.train`: in this process, or on Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.commands.train_run import OnRay
from cluster.workers.options import launcher_for
from trainer.api.run import Run, path_of
from trainer.base.mistake import Mistake
from trainer.base.typed import read_as
from trainer.command_line import overridden
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.effort.choices import Effort
from trainer.effort.decided import as_decided
from trainer.files.filesystems import absolute
from trainer.files.paths import with_paths
from trainer.fitting import precheck
from trainer.launch.launcher import Launcher
from trainer.observe.progress import quiet_libraries
from trainer.run.folder import Resume, RunSpec
from trainer.start_settings import Start, recorded_name
from trainer.tools.ready import ready_for_torch

GO_ON = "go on with resume=True"
OF_A_CONFIG = "python"
"""What a run records as its preset, where it was given a Config."""


def train(
    preset: str | Path | Config | None,
    data: str | Path | Dataset,
    out: str | Path,
    overrides: Mapping[str, Any],
    workers: int | str | None,
    address: str | None,
    resume: Resume,
    start_from: str | Path | None,
    effort: Effort | None,
    launch: Mapping[str, Any],
) -> Run:
    """Train, and open the run. See `tandem.train`."""
    how = {"workers": None if workers is None else str(workers), "address": address, **launch}
    on_ray = read_as(OnRay, how)
    here = workers is None and address is None
    if here and launch:
        raise Mistake(f"{next(iter(launch))}: how workers are started: give workers or address too")
    folder, run = path_of(data), absolute(out)
    origin = None if start_from is None else absolute(start_from)
    if isinstance(preset, Config):
        name, config = OF_A_CONFIG, preset
    else:
        named = None if preset is None else str(preset)
        start = Start(named, folder, run if resume else None, origin)
        name, config = recorded_name(start.preset), start.config()
    asked = RunSpec(
        name,
        with_paths(overridden(config, overrides), absolute),
        absolute(folder),
        run,
        resume,
        start_from=origin,
        given=frozenset(overrides),
    )
    spec = as_decided(asked)
    ready_for_torch()
    from trainer.effort.choose import chosen
    from trainer.effort.two_models import train_second
    from trainer.train import resumable, train_on_rank

    launcher: Launcher
    if here:
        from trainer.launch.here import Here

        launcher = Here()
    else:
        options = on_ray.options(verbose=False)
        precheck(spec, options.is_here)
        from cluster.workers.ray_workers import RayWorkers  # Ray Train: seconds

        quiet_libraries()  # after the import of Ray, which sets its own levels
        launcher = RayWorkers(options)
    spec = chosen(spec, effort, None if launcher.is_here else launcher)
    summary = launcher.run(train_on_rank, spec, resumable(spec, GO_ON))
    train_second(spec, summary, launcher, GO_ON)
    return Run(run, folder, launcher_for)
