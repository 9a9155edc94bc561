"""The page of a comparison: a verdict, a section a question, charts with spreads over seeds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from trainer.compare.results import JUDGED, TITLES, CaseResult, Comparison, tables
from trainer.files.storage import write_whole
from trainer.live.document import Document
from trainer.live.drawing import Bars, Chart, Level, Series
from trainer.retrieval.measures.meanings import group_names, titled


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page of `comparison` to `path`."""
    page = Document("Tandem comparison")
    _head(page, comparison)
    drawings = _drawings(comparison)
    for name, (header, rows) in tables(comparison).items():
        page.heading(TITLES[name])
        if name in drawings:
            page.drawn(*drawings[name])
        last = "left" if header[-1] == "setting" else ""
        lines = [[(row[0], "name"), *row[1:-1], (row[-1], last)] for row in rows]
        page.table(header, lines, "figures")
    write_whole(path, page.written())


def _head(page: Document, comparison: Comparison) -> None:
    facts = comparison.facts
    size = f"{facts['users']:,} users, {facts['items']:,} items, {facts['train_rows']:,} rows"
    page.head(f"Losses compared on {Path(facts['data']).name}", f"{size} in train")
    page.verdict(*verdict(comparison))
    if comparison.verdicts:
        inside = page.part()
        inside.table([], [[line] for line in comparison.verdicts])
        page.fold("The best against each other loss, user by user", inside)
    page.words(
        f"Preset {facts['preset']}, {facts['epochs']} epochs, batch {facts['batch']:,}, "
        f"{facts['uniform']:,} shared uniform negatives unless a case says otherwise. Each loss "
        f"had {facts['tuning_trials']} settings to choose from on the validation split. Figures "
        f"are means ± standard deviations over {facts['seeds']} seeds on the test split."
    )


def verdict(comparison: Comparison) -> list[str]:
    """Which loss is best, whether seeds tell it from the next, and what nothing trained reaches."""
    losses = sorted(comparison.section("losses"), key=lambda one: -one.mean(JUDGED))
    if not losses:
        return []
    best, said = losses[0], []
    shown = f"NDCG@20 {best.shown(JUDGED)}"
    if len(losses) == 1:
        said.append(f"{best.label} reaches {shown}.")
    else:
        near = [one.label for one in losses[1:] if not _apart(best, one)]
        ahead = best.mean(JUDGED) / max(losses[1].mean(JUDGED), 1e-9) - 1
        said.append(
            f"{best.label} is the best: {shown}, {100 * ahead:.1f} % ahead of {losses[1].label}."
        )
        if near:
            said.append(f"These seeds do not tell it from {', '.join(near)}.")
    levels = comparison.levels(JUDGED)
    if levels:
        name, value = max(levels, key=lambda level: level[1])
        word = "ahead of" if value > best.mean(JUDGED) else "behind"
        said.append(f"The best of what needs no training, {name}, is {word} it: {value:.4f}.")
    return said


def _apart(first: CaseResult, second: CaseResult) -> bool:
    """Whether the means lie further apart than twice the standard error of their difference."""
    variances = [one.deviation(JUDGED) ** 2 / len(one.seeds) for one in (first, second)]
    return first.mean(JUDGED) - second.mean(JUDGED) > 2 * sum(variances) ** 0.5


def _drawings(comparison: Comparison) -> dict[str, list[Chart | Bars]]:
    """Section -> charts."""
    losses = comparison.section("losses")
    made: dict[str, list[Chart | Bars]] = {
        "losses": [
            _bars(losses, measure, comparison.levels(measure)) for measure in (JUDGED, "recall@20")
        ]
    }
    if losses:
        made["groups"] = [_groups(losses)]
    noise = [
        Chart(
            f"Recall@20 with {what}",
            "At 0: the data as they are.",
            [Series(loss, *curve, color=n, points=True) for n, (loss, curve) in enumerate(curves)],
            unit="share",
            xLabel=f"share of {what}, of the training rows",
        )
        for what, curves in (
            ("random positives added", _noise_curves(comparison, "random_positives")),
            ("true positives taken away", _noise_curves(comparison, "removed_positives")),
        )
        if curves
    ]
    if noise:
        made["noise"] = [*noise]
    if comparison.has_dislikes and comparison.section("dislikes"):
        made["dislikes"] = [_dislikes(comparison.section("dislikes"))]
    for name in ("negatives", "hardness", "clipping"):
        if comparison.section(name):
            made[name] = [_bars(comparison.section(name), JUDGED, ())]
    return made


def _bars(results: list[CaseResult], measure: str, levels: list[Level] | tuple[()]) -> Bars:
    values = [one.mean(measure) for one in results]
    several = any(len(one.seeds) > 1 for one in results)
    return Bars(
        titled(measure),
        "Mean over seeds, and a standard deviation to each side." if several else "One seed.",
        [one.label for one in results],
        values,
        [one.deviation(measure) for one in results] if several else None,
        best=values.index(max(values)) if values else None,
        levels=levels,
    )


def _groups(losses: list[CaseResult]) -> Chart:
    names = group_names(len(losses[0].group_means(JUDGED)))
    places = list(range(len(names)))
    return Chart(
        "NDCG@20 by the items' popularity",
        "Of targets in groups that share the training rows evenly.",
        [
            Series(one.label, places, one.group_means(JUDGED), color=number, points=True)
            for number, one in enumerate(losses)
        ],
        xLabel="popularity group of the target",
        xNames=names,
    )


def _dislikes(results: list[CaseResult]) -> Chart:
    return Chart(
        "Disliked items shown against recall",
        "To the right and low is good: what users like is found, what they dislike is not shown.",
        [
            Series(one.label, [one.mean("recall@20")], [one.mean("disliked@20")], color=number)
            for number, one in enumerate(results)
        ],
        unit="share",
        kind="dots",
        xLabel="recall@20",
    )


def _noise_curves(
    comparison: Comparison, share: Literal["random_positives", "removed_positives"]
) -> list[tuple[str, tuple[list[float], list[float]]]]:
    """Loss, (shares added or removed, recall), beginning at the clean data."""
    points: dict[str, list[tuple[float, float]]] = {}
    for result in comparison.section("noise"):
        noise = asdict(result)[share]
        if noise:
            points.setdefault(result.loss, []).append((noise, result.mean("recall@20")))
    for result in comparison.section("losses"):
        if result.loss in points:
            points[result.loss].insert(0, (0.0, result.mean("recall@20")))
    return [(loss, ([x for x, _ in p], [y for _, y in p])) for loss, p in points.items()]
