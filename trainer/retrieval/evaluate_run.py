"""`tandem evaluate RUN [--split test]`: exact measures of a trained run, in a table and as JSON."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from trainer.base.mistake import Mistake
from trainer.base.screen import Sheet, say
from trainer.distributed.ranks import Ranks
from trainer.files.json_files import read_json, write_json
from trainer.files.storage import StoragePath, storage_path
from trainer.model.trained import open_data
from trainer.observe.progress import SilentProgress, TerminalProgress
from trainer.retrieval.arguments import EvaluateArguments
from trainer.retrieval.evaluate import Evaluation, evaluate_split
from trainer.retrieval.measures.cut_offs import DEFAULT, check_queries, cut_offs
from trainer.retrieval.on_workers import is_first_process, on_workers
from trainer.retrieval.opened import OpenedRun
from trainer.run.folder import RunFolder

REPORT_FILE = "evaluation.json"


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Evaluate, print one table, write RUN/evaluation.json (other splits in it are kept).

    Raises:
        Mistake: before the work for whatever can be known before it; after the table where the
            file cannot be written.
    """
    arguments, before = _checked(arguments)
    evaluation, beside = on_workers(evaluate_on_rank, arguments, arguments.workers)
    record = {**as_record(evaluation), **beside}
    if not is_first_process():
        return record
    as_sheet(evaluation, arguments.split).print()
    for line in notes(evaluation):
        say(line)
    for key, count in beside["unknown_ids"].items():
        say(f"{count:,} look-ups of {key!r} met ids unknown to the model")
    _keep(arguments, before, record)
    return record


def evaluate_from(opened: OpenedRun, arguments: EvaluateArguments) -> dict[str, Any]:
    """The same of a run that is open, without the table. Collective."""
    arguments, before = _checked(arguments)
    evaluation, beside = _evaluate(opened, arguments)  # collective
    record = {**as_record(evaluation), **beside}
    if opened.ranks.is_first:
        _keep(arguments, before, record)
    return record


def _keep(arguments: EvaluateArguments, before: dict[str, Any], record: dict[str, Any]) -> None:
    path = storage_path(arguments.run) / REPORT_FILE
    try:
        write_json(path, {**before, arguments.split: record})
    except OSError as error:
        raise Mistake(
            f"the figures are not kept: {path} cannot be written ({error.strerror or error})"
        ) from error


def _checked(arguments: EvaluateArguments) -> tuple[EvaluateArguments, dict[str, Any]]:
    """The arguments with their cut-offs, and what evaluation.json holds already."""
    run, dataset = open_data(RunFolder(arguments.run), arguments.data)
    check_queries(dataset, arguments.split, arguments.users)
    splits = run.config.data.train_splits
    if arguments.split in splits and run.dataset_digest == dataset.digest:
        raise Mistake(
            f"{arguments.run} was trained on {arguments.split} too (data.train_splits "
            f"{' '.join(splits)}): how well it remembers says nothing. Evaluate on data of a later "
            "window, or a run that was trained without it"
        )
    ks = cut_offs(arguments.k, dataset)
    if arguments.k is None and ks != DEFAULT:
        shown = ", ".join(map(str, ks))
        say(f"the catalog has {dataset.num_items:,} items: cut-offs {shown}", file=sys.stderr)
    return replace(arguments, k=ks), _read_before(storage_path(arguments.run) / REPORT_FILE)


def _read_before(path: StoragePath) -> dict[str, Any]:
    before = read_json(path) if path.exists() else {}
    if not isinstance(before, dict):
        raise Mistake(f"{path} holds no evaluations: move it away, it is written anew")
    return before


def evaluate_on_rank(
    arguments: EvaluateArguments, ranks: Ranks
) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation and facts beside it, the same on every rank. Collective."""
    return _evaluate(OpenedRun(arguments.run, ranks, arguments.data), arguments)


def _evaluate(opened: OpenedRun, arguments: EvaluateArguments) -> tuple[Evaluation, dict[str, Any]]:
    progress = TerminalProgress() if opened.ranks.is_first else SilentProgress()
    trained, encoder = opened.trained, opened.encoder
    before = Counter(encoder.unknown_ids())  # collective: of earlier questions
    try:
        evaluation = evaluate_split(  # collective
            encoder,
            trained.dataset,
            arguments.split,
            arguments.k or DEFAULT,
            arguments.users,
            arguments.seed,
            arguments.groups,
            baseline=True,
            on_progress=lambda done, total: progress.update("evaluating", done, total),
        )
    finally:
        progress.close()
    unknown = Counter(encoder.unknown_ids()) - before  # collective
    return evaluation, {"step": trained.step, "unknown_ids": dict(unknown)}


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


def as_sheet(evaluation: Evaluation, split: str) -> Sheet:
    """One table: the model's measures at every k, and the popularity ranking's below them."""
    users = f"{evaluation.num_queries:,} users"
    if evaluation.intervals:
        users = f"{evaluation.num_queries:,} of {evaluation.num_queries_of_split:,} users (±: 95 %)"
    names = list(dict.fromkeys(name.partition("@")[0] for name in evaluation.values))
    ks = list(dict.fromkeys(name.partition("@")[2] for name in evaluation.values))
    cut_offs = [f"@{k}" for k in ks]
    title = f"{split}: {users}; all items ranked, seen ones left out; {evaluation.seconds:.1f} s"
    sheet = Sheet("model", *cut_offs, numbers=cut_offs, title=title)
    num_groups = len(next(iter(evaluation.groups.values()), []))
    for name in names:
        values = [_with_interval(evaluation, f"{name}@{k}") for k in ks]
        sheet.add(name, *values, ends_section=name == names[-1] and not num_groups)
    for group in range(num_groups):
        end = {0: " (rarest)", num_groups - 1: " (most popular)"}.get(group, "")
        values = [f"{evaluation.groups[f'recall@{k}'][group]:.4f}" for k in ks]
        label = f"recall of items {group + 1}/{num_groups}{end}"
        sheet.add(label, *values, style="dim", ends_section=group == num_groups - 1)
    sheet.add("popularity ranking", style="bold")
    for name in names:
        sheet.add(name, *(f"{evaluation.baseline[f'{name}@{k}']:.4f}" for k in ks))
    return sheet


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
