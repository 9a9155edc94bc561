"""`tandem report RUN [RUN...]`: plots and settings of runs, side by side, in one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from trainer.base.mistake import Mistake
from trainer.base.ranges import check_range
from trainer.base.screen import say
from trainer.data.schema import Dataset
from trainer.files.paths import LastingPath
from trainer.files.storage import StoragePath, storage_path, write_whole
from trainer.live.document import Document
from trainer.live.page import panel_rows
from trainer.live.page_place import free_place
from trainer.live.runs import read_run
from trainer.report.one_run import one_run
from trainer.report.people import Person, people
from trainer.report.several_runs import several_runs

TITLE = "Tandem report: "
MOST_PEOPLE = 1000


@dataclass(frozen=True)
class ReportArguments:
    """One self-contained HTML page of a run: how good it is, whether it still learns, whom it
    serves, what it recommends, what was run and what happened; or of several side by side."""

    runs: Annotated[tuple[LastingPath, ...], tyro.conf.Positional]
    """Folders or URIs of runs."""
    out: LastingPath | None = None
    """File to write. Left out: RUN/report.html; of several runs reports.html in the first."""
    people: int = 10
    """Of one run: users whose recommendations are shown; 0: none."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise Mistake("which run? tandem report RUN [RUN ...]")
        if "" in self.runs or self.out == "":
            raise Mistake(f"{'--out' if self.out == '' else 'RUN'} is empty")
        check_range("--people", self.people, 0, MOST_PEOPLE)


def report(arguments: ReportArguments) -> StoragePath:
    """Write the page and say where it is; returns its path.

    Raises:
        Mistake: where one of the folders is no run, or the page's place is taken.
    """
    out = _free_place(arguments)
    runs = [read_run(path) for path in arguments.runs]
    from trainer.report.norms import norms_by_popularity  # torch: after the mistakes are told

    _name_apart(runs, arguments.runs)
    for number, (run, path) in enumerate(zip(runs, arguments.runs, strict=True)):
        run["norms"] = norms_by_popularity(storage_path(path), storage_path(run["data"]))
        run["dataset"] = _described(run["data"])
        if len(runs) > 1:
            run["color"] = number
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, report_html(runs, _people(arguments)))
    say(out)
    return out


def _free_place(arguments: ReportArguments) -> StoragePath:
    """Where the page goes. Raises Mistake where something else than a report is already."""
    if arguments.out is None:
        name = "report.html" if len(arguments.runs) == 1 else "reports.html"
        out = storage_path(arguments.runs[0]) / name
    else:
        out = storage_path(arguments.out)
    return free_place(out, TITLE, "--out", "report.html")


def report_html(runs: list[dict[str, Any]], shown: list[Person] | str | None = None) -> str:
    """The page of runs as `read_run` gives them, with "norms" and "dataset" added.

    shown: of one run, users and what is recommended to them.
    """
    page = Document(TITLE + " and ".join(run["name"] for run in runs))
    if len(runs) == 1:
        one_run(page, runs[0], shown)
    else:
        several_runs(page, runs)
    page.panels("Everything that was measured while training")
    kept = ("name", "color", "config", "starts", "metrics", "validation")
    drawn = [{key: run[key] for key in kept if key in run} for run in runs]
    return page.written({"runs": drawn, "rows": panel_rows()})


def _people(arguments: ReportArguments) -> list[Person] | str | None:
    if len(arguments.runs) > 1 or not arguments.people:
        return None
    return people(arguments.runs[0], arguments.people)


def _described(data: str) -> str | None:
    """What is in a run's data; None where they are no longer there."""
    try:
        dataset = Dataset.load(data, verify="none")
    except (Mistake, OSError):
        return None
    rows = dataset.splits["train"].positives
    return f"{dataset.num_users:,} users, {dataset.num_items:,} items, {rows:,} training rows"


def _name_apart(runs: list[dict[str, Any]], paths: tuple[str, ...]) -> None:
    """Runs of the same folder name are told apart by their paths, which all keep."""
    names = [run["name"] for run in runs]
    for run, path in zip(runs, paths, strict=True):
        run["path"] = path
        if names.count(run["name"]) > 1:
            run["name"] = path
