"""`tandem evaluate RUN [--split test]`: exact measures of a trained run, in a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.progress import SilentProgress, TerminalProgress
from trainer.ranks import Ranks
from trainer.restore import load_run
from trainer.retrieval.arguments import EvaluateArguments
from trainer.retrieval.encode import Encoder
from trainer.retrieval.evaluate import Evaluation, evaluate_split
from trainer.retrieval.workers import on_workers
from trainer.run_files import write_json
from trainer.storage import storage_path

REPORT_FILE = "evaluation.json"


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Evaluate, write RUN/evaluation.json (other splits in it are kept), print one table."""
    evaluation, beside = on_workers(evaluate_on_rank, arguments, arguments.workers)
    record = {**as_record(evaluation), **beside}
    path = storage_path(arguments.run) / REPORT_FILE
    before = json.loads(path.read_text()) if path.is_file() else {}
    write_json(path, {**before, arguments.split: record})
    console = Console()
    console.print(as_table(evaluation, arguments.split))
    for line in notes(evaluation):
        console.print(line)
    for key, count in beside["unknown_ids"].items():
        console.print(f"{count:,} look-ups of {key!r} met ids unknown to the model")
    return record


def evaluate_on_rank(
    arguments: EvaluateArguments, ranks: Ranks
) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation and facts beside it, the same on every rank. Collective."""
    progress = TerminalProgress() if ranks.is_first else SilentProgress()
    trained = load_run(arguments.run, ranks, arguments.data)  # collective
    encoder = Encoder.of_run(trained, ranks)
    try:
        evaluation = evaluate_split(  # collective
            encoder,
            trained.dataset,
            arguments.split,
            sorted(set(arguments.k)),
            arguments.users,
            arguments.seed,
            arguments.groups,
            baseline=True,
            progress=progress,
        )
    finally:
        progress.close()
    return evaluation, {"step": trained.step, "unknown_ids": encoder.unknown_ids()}  # collective


def as_record(evaluation: Evaluation) -> dict[str, Any]:
    """What evaluation.json holds of one split: the values by name, and what stands beside them."""
    return {
        **evaluation.values,
        "popularity": evaluation.baseline,
        "interval_95": evaluation.intervals,
        "popularity_groups": evaluation.groups,
        "users": evaluation.num_queries,
        "users_of_split": evaluation.num_queries_of_split,
        "unknown_items": evaluation.unknown_items,
        "unknown_users": evaluation.unknown_queries,
        "seconds": evaluation.seconds,
    }


def as_table(evaluation: Evaluation, split: str) -> Table:
    """One table: the model's measures at every k, and the popularity ranking's below them."""
    users = f"{evaluation.num_queries:,} users"
    if evaluation.intervals:
        users = f"{evaluation.num_queries:,} of {evaluation.num_queries_of_split:,} users (±: 95 %)"
    names = list(dict.fromkeys(name.partition("@")[0] for name in evaluation.values))
    ks = list(dict.fromkeys(name.partition("@")[2] for name in evaluation.values))
    table = Table(
        title=f"{split}: {users}; all items ranked, seen ones left out; {evaluation.seconds:.1f} s",
        title_justify="left",
    )
    table.add_column("model")
    for k in ks:
        table.add_column(f"@{k}", justify="right")
    for name in names:
        table.add_row(name, *(_with_interval(evaluation, f"{name}@{k}") for k in ks))
    num_groups = len(next(iter(evaluation.groups.values()), []))
    for group in range(num_groups):
        end = {0: " (rarest)", num_groups - 1: " (most popular)"}.get(group, "")
        values = [f"{evaluation.groups[f'recall@{k}'][group]:.4f}" for k in ks]
        table.add_row(f"recall of items {group + 1}/{num_groups}{end}", *values, style="dim")
    table.add_section()
    table.add_row("[bold]popularity ranking[/bold]")
    for name in names:
        table.add_row(name, *(f"{evaluation.baseline[f'{name}@{k}']:.4f}" for k in ks))
    return table


def notes(evaluation: Evaluation) -> Iterator[str]:
    """A line on items and one on users of which the model knows nothing, where there are some."""
    if evaluation.unknown_items:
        yield (
            f"nothing is known of {evaluation.unknown_items:,} items (no training row has them): "
            "they are in no ranking, and as targets they count as missed"
        )
    if evaluation.unknown_queries:
        yield (
            f"nothing is known of {evaluation.unknown_queries:,} users: "
            "they are shown what is most popular"
        )


def _with_interval(evaluation: Evaluation, name: str) -> str:
    interval = evaluation.intervals.get(name)
    return f"{evaluation.values[name]:.4f}" + (f"±{interval:.3f}" if interval is not None else "")
