"""The settings that a start has before its flags: of a preset, of a run that it goes on with, of a
run that it starts from."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cached_property

from trainer.base.ending import is_first_rank
from trainer.base.mistake import Mistake
from trainer.base.screen import say
from trainer.config.default_preset import explain
from trainer.config.presets import find_preset, is_run
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.files.filesystems import absolute
from trainer.run.folder import RunFolder
from trainer.run.run_facts import RunFacts


@dataclass(frozen=True)
class Start:
    """What names the settings."""

    named: str | None
    """The preset that the user named."""
    data: str | None
    resumed: str | None
    """The run's folder, where one that is there is gone on with."""
    start_from: str | None

    @cached_property
    def before(self) -> RunFacts | None:
        """What config.json says of the run that is gone on with; None: it is yet to begin, or
        cannot be read, which is told by whoever reads it in earnest."""
        if self.resumed is None:
            return None
        folder = RunFolder(self.resumed)
        try:
            return folder.read_config() if folder.config_file.is_file() else None
        except Mistake:
            return None

    @property
    def preset(self) -> str:
        """Where none is named: that of the run that is gone on with, else the run that a new one
        starts from, else "default"."""
        if self.named is not None:
            return self.named
        if self.start_from is not None:
            return absolute(self.start_from)
        return "default" if self.before is None else self.before.preset

    def config(self, changed: bool = False) -> Config:
        """The preset's config; `default` is fitted to the data. Of a run that is gone on with its
        own, unless another preset, or a file, is named.

        Args:
            changed: flags change some of it.

        Raises:
            Mistake: where there is no such preset, or no run to start from.
        """
        preset, before = self.preset, self.before
        keeps = self.named in (None, "default") or is_run(preset)
        if before is not None and keeps and before.preset == recorded_name(preset):
            return before.config
        if is_run(preset):
            config = _of_a_new_run(preset) if self.named is None else find_preset(preset)
            told = f"settings of {preset}"
        elif preset == "default" and self.data is not None:
            try:
                dataset = Dataset.load(self.data, verify="none")
            except Mistake:  # told by whoever reads them in earnest
                return find_preset(preset)
            except Exception as error:  # noqa: BLE001  of any storage; workers may read it
                _say_first(f"default, for data that cannot be read here: {error}")
                return find_preset(preset)
            config = find_preset(preset, dataset)
            told = explain(config, dataset)
        else:
            return find_preset(preset)
        _say_first(told + ("; your flags override it" if changed else ""))
        return config


def recorded_name(preset: str) -> str:
    """What a run records as its preset: that of a run is named so that it is known for a path."""
    return absolute(preset) if is_run(preset) else preset


def _of_a_new_run(origin: str) -> Config:
    """The settings of a run that another starts from. Whether it trains by windows, the other says;
    what was set for windows alone is not taken on without them."""
    try:
        config = RunFolder(origin).read_config().config
    except Mistake as mistake:
        raise Mistake(f"--start-from {mistake}") from mistake
    if not config.data.windows:
        return config
    plain = Config()
    return replace(
        config,
        data=replace(config.data, windows=False, train_splits=plain.data.train_splits),
        evaluation=replace(config.evaluation, every_epochs=plain.evaluation.every_epochs),
    )


def _say_first(line: str) -> None:
    if is_first_rank():
        say(line, file=sys.stderr)
