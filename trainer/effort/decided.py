"""What `--effort` decided before a run began, for the starts that go on with it."""

from __future__ import annotations

from dataclasses import replace

from trainer.command_line import overridden
from trainer.config.sections import settings_of
from trainer.observe.choice import read_choice
from trainer.run.folder import RunFolder, RunSpec

DECIDED = (
    "data.train_splits",
    "training.epochs",
    "evaluation.every_epochs",
    "evaluation.patience",
)


def as_decided(spec: RunSpec) -> RunSpec:
    """With what was decided, where one command line serves every start (`--resume auto`): for how
    long it is trained, on what, watched or not.

    Raises:
        Mistake: where the run's config cannot be read.
    """
    folder = RunFolder(spec.out)
    if spec.resume != "auto" or not folder.config_file.is_file() or not read_choice(folder.path):
        return spec
    before = settings_of(folder.read_config().config.to_json())
    decided = {name: before[name] for name in DECIDED}
    return replace(spec, config=overridden(spec.config, decided))
