"""Runs below a folder, newest first, those of searches last: what `tandem dashboard` and `status`
show of a folder that is no run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.base.mistake import Mistake
from trainer.base.run_files import CONFIG_FILE, SEARCH_FILES
from trainer.base.screen import Sheet, say
from trainer.files.line_file import last_record
from trainer.run.folder import RunFolder
from trainer.run.state import RunState, read_state

DEPTH = 3
MOST_SHOWN = 10
BESIDE = {"starts.jsonl", "metrics.jsonl", "checkpoints"}
"""What a run has beside its config.json; somebody else's file of that name stands alone."""
PASSED_OVER = {"checkpoints", "bundles", "trackers", "ray"}


@dataclass(frozen=True)
class Listed:
    """A run, and its last evaluation."""

    state: RunState
    quality: str


def runs_below(folder: Path) -> list[Listed]:
    """All runs that can be read, the newest first, and after them those of `tune` and `compare`."""
    places = sorted(_places(folder), key=lambda place: (_is_tried(place), -_began(place)))
    found = []
    for place in places:
        try:
            metric = RunFolder(place).read_config().config.evaluation.metric
            value = last_record(place / "validation.jsonl").get(metric)
            quality = f"{metric} {value:.4f}" if isinstance(value, float) else ""
            found.append(Listed(read_state(place), quality))
        except (Mistake, OSError):  # a config.json of something else
            continue
    return found


def _began(run: Path) -> float:
    """When its config.json was written; of one that is gone meanwhile 0."""
    try:
        return (run / CONFIG_FILE).stat().st_mtime
    except OSError:
        return 0.0


def _is_tried(run: Path) -> bool:
    """Whether a search or a comparison trained it, one among many."""
    return any((above / name).is_file() for above in list(run.parents)[:2] for name in SEARCH_FILES)


def show_runs(folder: Path) -> None:
    """A table of the runs below a folder, and how to look at one.

    Raises:
        Mistake: where there is none.
    """
    found = runs_below(folder)
    if not found:
        raise Mistake(
            f"there is no run in {folder} or below it: name one, or train one first "
            "(tandem train PRESET --data DIR --out RUN)"
        )
    _print(found)
    say("to watch the newest:", command=["tandem", "dashboard", found[0].state.run])


def is_folder_of_runs(place: str) -> bool:
    """Whether it is no run, but has some below."""
    folder = Path(place)
    return folder.is_dir() and next(_places(folder), folder) != folder


def show_newest(folder: Path, otherwise: str) -> None:
    """A table of the first of them.

    Raises:
        Mistake: where there is none; `otherwise`: what else may have been meant.
    """
    found = runs_below(folder)
    if not found:
        raise Mistake(
            "there is no run in this folder or below it: give one (tandem status RUN), or "
            f"{otherwise}"
        )
    _print(found[:MOST_SHOWN])
    if len(found) > MOST_SHOWN:
        say(f"and {len(found) - MOST_SHOWN:,} more")


def _print(found: Sequence[Listed]) -> None:
    sheet = Sheet("run", "is", "step", "last evaluation", numbers=("step",), whole=("is",))
    for each in found:
        state = each.state
        total = "" if state.total_steps is None else f" of {state.total_steps:,}"
        sheet.add(state.run, state.shown_phase, f"{state.step:,}{total}", each.quality)
    sheet.print()


def _places(folder: Path) -> Iterator[Path]:
    base = len(folder.parts)
    for path, folders, files in os.walk(folder):
        place = Path(path)
        is_run = CONFIG_FILE in files and not BESIDE.isdisjoint((*files, *folders))
        if is_run:
            yield place
        deep = is_run or len(place.parts) - base >= DEPTH
        kept = [name for name in folders if name not in PASSED_OVER and not name.startswith(".")]
        folders[:] = [] if deep else kept
