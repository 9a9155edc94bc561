"""What was tried on a run's data before it began, and what came of it: RUN/choice.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from trainer.base.mistake import Mistake, require
from trainer.base.run_files import CHOICE_FILE
from trainer.base.typed import read_as
from trainer.files.json_files import read_json, write_json
from trainer.files.storage import StoragePath


@dataclass(frozen=True)
class TriedModel:
    """A model that was tried."""

    name: str
    why: str
    value: float
    """Of the metric, at its best."""


@dataclass(frozen=True)
class Choice:
    """All that was tried, on the same users of validation."""

    metric: str
    chosen: str
    """Name of one of `models`."""
    seconds: float
    baselines: dict[str, float]
    """The metric of what nothing is trained for."""
    models: tuple[TriedModel, ...]
    curve: tuple[float, ...] = ()
    """The metric after each epoch of the try that was chosen; of two models the first's."""
    second: str | None = None
    """Name of the model whose scores are added, where two were chosen: `chosen` is of both."""

    def __post_init__(self) -> None:
        require(
            self.chosen in {each.name for each in self.models},
            f"chosen={self.chosen!r} is none of the models that were tried",
        )

    @property
    def best(self) -> TriedModel:
        """The one that was chosen."""
        return next(each for each in self.models if each.name == self.chosen)

    @property
    def ahead(self) -> dict[str, float]:
        """Baselines that are above all models."""
        best = max(each.value for each in self.models)
        return {name: value for name, value in self.baselines.items() if value > best}

    def told(self) -> str:
        """In a line."""
        untrained = sorted(self.baselines.items(), key=lambda each: -each[1])
        best, popularity = self.best, self.baselines.get("popularity")
        others = ", ".join(f"{name} {value:.4f}" for name, value in untrained)
        beside = f"; nothing trained: {others}" if others else ""
        number = len(self.models) - (self.second is not None)
        models = f"{number} model{'' if number == 1 else 's'}"
        times = f", {best.value / popularity:.2f} times popularity" if popularity else ""
        return (
            f"tried on validation before it began, {self.metric}: {best.name} {best.value:.4f}, "
            f"{'the best' if self.second is None else 'two'} of {models}{times}{beside}"
        )


def write_choice(run: StoragePath, choice: Choice) -> None:
    write_json(run / CHOICE_FILE, asdict(choice))


def read_choice(run: StoragePath) -> Choice | None:
    """None: nothing was tried, or another version wrote of it."""
    path = run / CHOICE_FILE
    try:
        return read_as(Choice, read_json(path)) if path.exists() else None
    except Mistake:
        return None


def tried_before(run: StoragePath) -> list[str]:
    """A line of what `--effort` tried before the run began, where it did."""
    choice = read_choice(run)
    return [] if choice is None else [choice.told()]
