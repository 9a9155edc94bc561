"""`tandem evaluate RUN [--split test]`: exact measures of a trained run, in a table and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from trainer.base.mistake import Mistake
from trainer.base.screen import Sheet, say
from trainer.distributed.agreement import together
from trainer.distributed.hooks import Hooks
from trainer.files.json_files import read_json, write_json
from trainer.files.storage import StoragePath, storage_path
from trainer.fitting import blind_spots
from trainer.launch.here import is_first_process
from trainer.launch.launcher import Launcher, Worker
from trainer.launch.processes import on_this_machine
from trainer.observe.choice import tried_before
from trainer.observe.per_user import paired, per_user_file, read_per_user, write_per_user
from trainer.observe.progress import Progress, SilentProgress, TerminalProgress
from trainer.retrieval.arguments import EvaluateArguments
from trainer.retrieval.evaluate import Evaluation, evaluate_split
from trainer.retrieval.measures.cut_offs import DEFAULT, check_queries, cut_offs
from trainer.retrieval.measures.meanings import BASELINE, GROUPS, MEANINGS
from trainer.retrieval.opened import OpenedRun
from trainer.run.asked.beside import told_of_beside
from trainer.run.asked.open_data import open_data
from trainer.run.folder import RunFolder

REPORT_FILE = "evaluation.json"


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation came to."""

    evaluation: Evaluation
    record: dict[str, Any]
    """What RUN/evaluation.json holds of the split."""
    beside: tuple[str, ...] = ()
    """A line for each measure and run of `--against`, and what more could be known."""
    not_kept: str | None = None
    """Why the file could not be written."""

    def kept_record(self) -> dict[str, Any]:
        """Raises Mistake where the file could not be written."""
        if self.not_kept is not None:
            raise Mistake(self.not_kept)
        return self.record


def evaluate(arguments: EvaluateArguments, launcher: Launcher | None = None) -> dict[str, Any]:
    """Evaluate, print one table, write RUN/evaluation.json (other splits in it are kept).

    Args:
        launcher: of the ranks that do it; None: on this machine.

    Raises:
        Mistake: before the work for whatever can be known before it; after the table where the
            file cannot be written.
    """
    found = evaluate_by(launcher or on_this_machine(arguments.workers), arguments)
    if is_first_process():
        as_sheet(found.evaluation, arguments.split).print()
        told = list(notes(found.evaluation, arguments.split, arguments.explain))
        for key, count in found.record["unknown_ids"].items():
            told.append(f"{count:,} look-ups of {key!r} met ids unknown to the model")
        run = storage_path(arguments.run)
        for line in (*told, *found.beside, *tried_before(run), *told_of_beside(run)):
            say(line)
        found.kept_record()
    return found.record


def _beside(arguments: EvaluateArguments, own: pa.Table, digest: str) -> Iterator[str]:
    """How a run that was evaluated stands beside each of `--against`, user by user."""
    names = [name for name in own.column_names[1:] if name.endswith("@20")]
    for other in arguments.against:
        theirs = read_per_user(storage_path(other), arguments.split, digest)
        for name in names or own.column_names[1:]:
            yield f"against {other}: {paired(own, theirs, name)}"


def evaluate_by(launcher: Launcher, arguments: EvaluateArguments) -> Evaluated:
    """The same without the table."""
    if launcher.is_here or _is_seen(arguments):
        _checked(arguments)
    found: Evaluated = launcher.run(evaluate_on_rank, arguments)
    return found


def _is_seen(arguments: EvaluateArguments) -> bool:
    """Whether this machine sees the run and its data, as the workers of a cluster do."""
    folder = RunFolder(arguments.run)
    if not folder.config_file.is_file():
        return False
    return storage_path(arguments.data or folder.read_config().named_data).exists()


def evaluate_on_rank(arguments: EvaluateArguments, worker: Worker) -> Evaluated:
    """Evaluate; rank 0 writes the file. Collective; every rank returns the same figures."""
    checked = together(lambda: _checked(arguments))  # collective
    opened = OpenedRun(arguments.run, worker.ranks, arguments.data)  # collective
    return _evaluate(opened, checked, worker.progress, worker.hooks)  # collective


def evaluate_from(opened: OpenedRun, arguments: EvaluateArguments) -> dict[str, Any]:
    """The same of a run that is open, without the table. Collective."""
    progress = TerminalProgress() if opened.ranks.is_first else SilentProgress()
    return _evaluate(opened, _checked(arguments), progress, Hooks()).kept_record()  # collective


@dataclass(frozen=True)
class _Checked:
    """Arguments that fit the run and its data."""

    arguments: EvaluateArguments
    """With cut-offs."""
    before: dict[str, Any]
    """What evaluation.json holds already."""
    note: str | None


def _checked(arguments: EvaluateArguments) -> _Checked:
    """Raises Mistake for what the run, or its data, cannot be asked."""
    run, dataset = open_data(RunFolder(arguments.run), arguments.data)
    check_queries(dataset, arguments.split, arguments.users)
    splits = run.config.data.train_splits
    if arguments.split in splits and run.dataset_digest == dataset.digest:
        raise Mistake(
            f"{arguments.run} was trained on {arguments.split} too (data.train_splits "
            f"{' '.join(splits)}): how well it remembers says nothing. Evaluate "
            f"{'' if 'test' in splits else '--split test, '}later data, or a run without it"
        )
    ks, note = cut_offs(arguments.k, dataset), None
    if arguments.k is None and ks != DEFAULT:
        shown = ", ".join(map(str, ks))
        note = f"the catalog has {dataset.num_items:,} items: cut-offs {shown}"
    for other in arguments.against:
        read_per_user(storage_path(other), arguments.split, dataset.digest)
    before = _read_before(storage_path(arguments.run) / REPORT_FILE)
    return _Checked(replace(arguments, k=ks), before, note)


def _read_before(path: StoragePath) -> dict[str, Any]:
    before = read_json(path) if path.exists() else {}
    if not isinstance(before, dict):
        raise Mistake(f"{path} holds no evaluations: move it away, it is written anew")
    return before


def _evaluate(opened: OpenedRun, checked: _Checked, progress: Progress, hooks: Hooks) -> Evaluated:
    """Collective."""
    trained, encoder, arguments = opened.trained, opened.encoder, checked.arguments
    before = Counter(encoder.unknown_ids())  # collective: of earlier questions
    if checked.note is not None:
        progress.message(checked.note)

    def tell(done: int, total: int) -> None:
        hooks.on_phase("evaluating", done, total)
        progress.update("evaluating", done, total)

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
            on_progress=tell,
            per_user=True,
            narrower=trained.config.model.widths[:-1] if opened.second is None else (),
        )
    finally:
        progress.close()
    unknown = Counter(encoder.unknown_ids()) - before  # collective
    beside = {"step": trained.step, "unknown_ids": dict(unknown)}
    record = {**as_record(evaluation), **beside}
    not_kept: str | None = None
    lines: tuple[str, ...] = ()
    if opened.ranks.is_first:
        digest = trained.dataset.digest
        not_kept = _keep(checked, record, evaluation.per_user, digest)
        new = evaluation.unknown_items or evaluation.unknown_queries
        models = [trained] if opened.second is None else [trained, opened.second]
        more = blind_spots(trained.dataset, *(each.config for each in models)) if new else ()
        lines = (*_beside(arguments, evaluation.per_user, digest), *more)
    return Evaluated(replace(evaluation, per_user=None), record, lines, not_kept)


def _keep(
    checked: _Checked, record: dict[str, Any], per_user: pa.Table, dataset_digest: str
) -> str | None:
    """Write evaluation.json and each user's values; what hinders it."""
    run, split = storage_path(checked.arguments.run), checked.arguments.split
    path = run / REPORT_FILE
    try:
        write_json(path, {**checked.before, split: record})
        path = per_user_file(run, split)
        write_per_user(path, per_user, dataset_digest)
    except OSError as error:
        problem = error.strerror or error
        return f"the figures are not kept: {path} cannot be written ({problem})"
    return None


def as_record(evaluation: Evaluation) -> dict[str, Any]:
    """What evaluation.json holds of one split: the values by name, and what stands beside them."""
    by_width = {"widths": evaluation.widths} if evaluation.widths else {}
    return {
        **evaluation.values,
        **by_width,
        "popularity": evaluation.baseline,
        "interval_95": evaluation.intervals,
        "user_interval_95": evaluation.user_intervals,
        "popularity_groups": evaluation.groups,
        "popularity_groups_of_popularity": evaluation.baseline_groups,
        "activity": evaluation.activity,
        "activity_of_popularity": evaluation.baseline_activity,
        "new_items": evaluation.new_items,
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
    for width, by_name in evaluation.widths.items():
        values = [f"{by_name[f'recall@{k}']:.4f}" for k in ks]
        sheet.add(f"recall, first {width} columns", *values, style="dim")
    for group in range(num_groups):
        end = {0: " (rarest)", num_groups - 1: " (most popular)"}.get(group, "")
        values = [f"{evaluation.groups[f'recall@{k}'][group]:.4f}" for k in ks]
        label = f"recall of items {group + 1}/{num_groups}{end}"
        sheet.add(label, *values, style="dim", ends_section=group == num_groups - 1)
    if evaluation.new_items:
        values = [f"{evaluation.new_items[f'recall@{k}']:.4f}" for k in ks]
        label = f"recall of new items ({evaluation.new_items['users']:,} users)"
        sheet.add(label, *values, style="dim", ends_section=True)
    sheet.add("popularity ranking", style="bold")
    for name in names:
        sheet.add(name, *(f"{evaluation.baseline[f'{name}@{k}']:.4f}" for k in ks))
    return sheet


def notes(evaluation: Evaluation, split: str, explain: bool = False) -> Iterator[str]:
    """How good that is, in a sentence; what the model knows nothing of; what measures mean."""
    if explain:
        measures = dict.fromkeys(name.partition("@")[0] for name in evaluation.values)
        yield from (f"{name:10}{MEANINGS[name]}" for name in measures)
        yield from (GROUPS, BASELINE)
    name = min((n for n in evaluation.values if n.startswith("ndcg@")), key=_from_twenty)
    value, popular = evaluation.values[name], evaluation.baseline.get(name)
    times = f", {value / popular:.2f} times the popularity ranking" if popular else ""
    half = evaluation.user_intervals.get(name)
    beside = "" if half is None else f" ± {half:.4f} (95 % over users like these)"
    yield f"{split} {name} {value:.4f}{beside}{times}"
    if evaluation.unknown_items:
        yield (
            f"nothing is known of {evaluation.unknown_items:,} items, which no training row has: "
            "they are in no ranking, and as targets they count as missed"
        )
    if evaluation.unknown_queries:
        yield (
            f"nothing is known of {evaluation.unknown_queries:,} users: they get what is popular"
        )


def _from_twenty(name: str) -> int:
    return abs(int(name.partition("@")[2]) - 20)


def _with_interval(evaluation: Evaluation, name: str) -> str:
    interval = evaluation.intervals.get(name)
    return f"{evaluation.values[name]:.4f}" + (f"±{interval:.3f}" if interval is not None else "")
