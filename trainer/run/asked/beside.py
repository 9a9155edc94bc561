"""A second model beside a run's own, of the same data: answers are of both, their scores added.

    RUN/beside.json   what it is, how much it counts, and whether it is trained to its end
    RUN/beside/       its run

How the scores are added: trainer/retrieval/joining/joined.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated

from trainer.base.mistake import Mistake, require
from trainer.base.ranges import LEAST_WEIGHT, MOST_WEIGHT
from trainer.base.run_files import BESIDE_FILE, BESIDE_FOLDER
from trainer.base.typed import Range
from trainer.config.sections import Config
from trainer.files.json_files import read_json_as, write_json
from trainer.files.storage import StoragePath


@dataclass(frozen=True)
class Beside:
    """What RUN/beside.json says."""

    name: str
    """Of the model, for those who read of it."""
    config: Config
    is_trained: bool
    """Whether answers are of both; before, they are of the run's own model."""
    weight: Annotated[float, Range(least=LEAST_WEIGHT, most=MOST_WEIGHT)] = 1.0
    """Of its scores; 1: they spread as far as those of the run's own model."""

    def told(self, run: StoragePath) -> str:
        """In a line."""
        if not self.is_trained:
            return (
                f"the model that is to stand beside it ({self.name}) is not trained to its end: "
                f"answers are of one model; where nothing trains it, `tandem resume {run}` does"
            )
        times = "" if self.weight == 1 else f", {self.weight:g} times as much"
        return f"answers are of two models, whose scores are added: its own, and {self.name}{times}"


def check_pair(first: Config, second: Config) -> None:
    """Raise Mistake where two models' scores cannot be added."""
    parts = [" ".join(each.data.train_splits) for each in (first, second)]
    require(
        parts[0] == parts[1],
        f"one model was trained on {parts[0]}, the other on {parts[1]}: train both with the same "
        "--data.train-splits",
    )
    marks = [{*each.model.sequence_reads} - {"attributes"} for each in (first, second)]
    told = [" ".join(sorted(each)) or "none" for each in marks]
    require(
        marks[0] == marks[1],
        f"the items of histories carry other marks in the two models ({told[0]}, {told[1]}): train "
        "both with the same --model.sequence-reads",
    )


def read_beside(run: StoragePath) -> Beside | None:
    """None: there is no second model. Raises Mistake where what is said of it is wrong."""
    path = run / BESIDE_FILE
    return read_json_as(path, Beside) if path.exists() else None


def write_beside(run: StoragePath, beside: Beside) -> None:
    write_json(run / BESIDE_FILE, asdict(beside))


def forget_beside(run: StoragePath) -> None:
    """Answers are of the run's own model again; quiet where they are."""
    (run / BESIDE_FILE).unlink(missing_ok=True)


def beside_folder(run: StoragePath) -> StoragePath:
    """Folder of the second model's run."""
    return run / BESIDE_FOLDER


def note_trained(run: StoragePath) -> None:
    """Answers are of both from now on. Raises Mistake where nothing says what stands beside."""
    beside = read_beside(run)
    if beside is None:
        raise Mistake(f"{run} has no {BESIDE_FILE}: no second model was to stand beside it")
    write_beside(run, replace(beside, is_trained=True))


def joined_with(run: StoragePath) -> Beside | None:
    """The second model of which answers are, too; None: they are of the run's own alone."""
    beside = read_beside(run)
    return beside if beside is not None and beside.is_trained else None


def told_of_beside(run: StoragePath) -> list[str]:
    """A line of the model that stands, or is to stand, beside the run's own."""
    beside = read_beside(run)
    return [] if beside is None else [beside.told(run)]
