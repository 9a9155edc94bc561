"""A run goes on after windows, or users, have left the data: what it has met is not new again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.windows import Log, day_of, make, make_log, write
from tests.test_train_windows import evaluations, losses, spec_of, stops_at, tensors, trained
from trainer.data.events.event_stream import EventStream
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.model.windows.met import met_by
from trainer.observe.progress import SilentProgress
from trainer.prepare.pipeline import prepare
from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.retrieval.queries import of_window
from trainer.run.checkpoint_read import newest_sound

pytestmark = pytest.mark.xdist_group("ranks")

UNIFORM = {"negatives": {"uniform": 16}}
"""Uniform draws take what was met by then: another set of items is another loss."""


@pytest.fixture(scope="module")
def log() -> Log:
    return make_log(5, rows=900, days=3)


@pytest.fixture(scope="module")
def data(log: Log, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A new copy of the data by then: 0 is a dataset of the first day."""
    root = tmp_path_factory.mktemp("left")
    for day in range(3):
        source = write([row for row in log if day_of(row[3]) == day], root / f"{day}.parquet")
        if day:
            shutil.copytree(root / f"data{day - 1}", root / f"data{day}")
        make(source, root / f"data{day}", append=day > 0, window=None if day else "day")
    copies = iter(range(99))

    def copied(day: int) -> Path:
        return Path(shutil.copytree(root / f"data{day}", root / f"copy{next(copies)}"))

    return copied


LINE = re.compile(r"window (\d) .*, ([\d,]+) items and ([\d,]+) users of them new")


def told(said: list[str]) -> dict[str, tuple[str, str]]:
    """By window, how many items and users of it were said to be new."""
    lines = [line for each in said if (line := LINE.match(each))]
    return {line[1]: (line[2], line[3]) for line in lines}


def append(log: Log, day: int, data: Path, **leaving: Any) -> None:
    """A day comes, and others leave."""
    source = write([row for row in log if day_of(row[3]) == day], data.parent / "more.parquet")
    prepare(PrepareArguments(str(source), str(data), append=True, **leaving), SilentProgress())


@pytest.fixture(scope="module")
def whole(
    data: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, tuple[str, str]]]:
    """A run that had all windows at once; what it said is new."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, told(trained(spec_of(data(2), out, **UNIFORM)))


def same_steps(out: Path, whole: Path) -> None:
    assert losses(out) == losses(whole)
    first, second = tensors(whole), tensors(out)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("stopped_at, kept", [(None, 1), (None, 2), (1, 2)])
def test_what_left_with_its_window_is_not_new_again(
    stopped_at: int | None,
    kept: int,
    log: Log,
    data: Callable[[int], Path],
    whole: tuple[Path, dict[str, tuple[str, str]]],
    tmp_path: Path,
) -> None:
    """Stopped at the end of a window, or in the middle of the last one."""
    grown, out = data(1), tmp_path / "run"
    first_day = evaluations(whole[0])[0]["step"]
    trained(
        spec_of(grown, out, **UNIFORM),
        None if stopped_at is None else stops_at(first_day + stopped_at),
    )
    append(log, 2, grown, keep_windows=kept)
    said = told(trained(spec_of(grown, out, True, **UNIFORM)))
    assert said == {"2": whole[1]["2"]}
    same_steps(out, whole[0])
    assert evaluations(out)[-1].keys() == evaluations(whole[0])[-1].keys()  # new items, for one


def test_what_forgotten_users_met_is_not_new_again(
    log: Log,
    data: Callable[[int], Path],
    whole: tuple[Path, dict[str, tuple[str, str]]],
    tmp_path: Path,
) -> None:
    grown, out = data(1), tmp_path / "run"
    trained(spec_of(grown, out, **UNIFORM))
    gone = {user for user, *_ in log} - {user for user, *_, time in log if day_of(time) == 2}
    (tmp_path / "gone").write_text("\n".join(map(str, gone)))
    append(log, 2, grown, forget_users=str(tmp_path / "gone"))
    assert told(trained(spec_of(grown, out, True, **UNIFORM))) == {"2": whole[1]["2"]}
    same_steps(out, whole[0])


def test_a_run_that_starts_from_another_has_met_what_that_did(
    log: Log,
    data: Callable[[int], Path],
    whole: tuple[Path, dict[str, tuple[str, str]]],
    tmp_path: Path,
) -> None:
    grown, old = data(1), tmp_path / "old"
    trained(spec_of(grown, old, **UNIFORM))
    append(log, 2, grown, keep_windows=1)
    given = replace(spec_of(grown, tmp_path / "run", **UNIFORM), start_from=str(old))
    assert told(trained(given)) == {"2": whole[1]["2"]}


def test_evaluation_counts_as_new_what_nobody_has_met(
    log: Log, data: Callable[[int], Path], tmp_path: Path
) -> None:
    grown, out = data(1), tmp_path / "run"
    trained(spec_of(grown, out))
    stream = EventStream(Dataset.load(grown), trains_disliked=False, reads_disliked=False)
    met_I = stream.facts(0).count_I + stream.facts(1).count_I > 0
    append(log, 2, grown, keep_windows=1)
    dataset = Dataset.load(grown)
    with process_group() as ranks:
        found = newest_sound(out / "checkpoints", ranks, lambda name: True)
        assert found is not None
        met = met_by(found, dataset).before
    asked = of_window(EventStream(dataset, False, False, met=met), 2)
    expected = np.pad(met_I, (0, dataset.num_items - len(met_I)))
    assert (asked.is_new_I == ~expected).all() and 0 < expected.sum() < len(expected)
    assert not asked.count_I.any()  # popularity is of what the data still have
