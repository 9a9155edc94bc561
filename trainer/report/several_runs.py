"""The page of several runs beside each other: which is best, and in what they differ."""

from __future__ import annotations

from typing import Any

from trainer.base.mistake import Mistake
from trainer.config.sections import settings_of
from trainer.files.storage import storage_path
from trainer.live.document import NOTHING, Cell, Document
from trainer.live.drawing import Bars, Chart, Series
from trainer.observe.per_user import paired, read_per_user
from trainer.report.differing import between, words
from trainer.report.one_run import baseline_of
from trainer.report.quality import Quality, quality_of, still_learning, watched
from trainer.report.what_was_run import facts, minutes, state_of, troubles
from trainer.retrieval.measures.meanings import group_names, titled


def several_runs(page: Document, runs: list[dict[str, Any]]) -> None:
    """All sections."""
    split = common_split(runs)
    found = [quality_of(run, split) for run in runs]
    best = best_of(found)
    page.head(f"{len(runs)} runs", ", ".join(dict.fromkeys(str(run["data"]) for run in runs)))
    page.verdict(*verdict(runs, found, best))
    page.heading("How good are they?")
    differing = between(runs)
    page.table(*_table(runs, found, best, differing), kind="figures")
    if best is not None:
        page.drawn(*_bars(runs, found, best))
    page.heading("Are they still learning?")
    page.drawn(*_curves(runs))
    page.table([], [[(run["name"], "name"), still_learning(run)] for run in runs])
    if any(quality is not None and quality.record for quality in found):
        page.heading("Whom do they serve?")
        page.drawn(*_groups(runs, found), *_norms(runs))
    page.heading("What was run?")
    _settings(page, runs)
    page.heading("What happened?")
    rows = [
        [(run["name"], "name"), state_of(run["now"]), _starts(run), "; ".join(troubles(run))]
        for run in runs
    ]
    page.table(["", "now", "starts", "trouble"], rows)


def common_split(runs: list[dict[str, Any]]) -> str:
    """The test where all were evaluated on it, else validation."""
    return "test" if all("test" in (run["evaluation"] or {}) for run in runs) else "validation"


def best_of(found: list[Quality | None]) -> int | None:
    """Place of the highest NDCG."""
    known = {
        place: quality.of("ndcg") or 0.0
        for place, quality in enumerate(found)
        if quality is not None
    }
    return max(known, key=lambda place: known[place], default=None)


def verdict(runs: list[dict[str, Any]], found: list[Quality | None], best: int | None) -> list[str]:
    """Which is best, by how much, and whether that may be chance."""
    if best is None:
        return ["None of them was ever evaluated."]
    first = found[best]
    assert first is not None
    top = first.of("ndcg") or 0.0
    said = [f"{runs[best]['name']} is the best: NDCG@{first.k} {first.shown('ndcg')} on the "
            f"{first.split} split."]  # fmt: skip
    others = sorted(
        ((quality.of("ndcg") or 0.0, place) for place, quality in enumerate(found)
         if quality is not None and place != best), reverse=True,
    )  # fmt: skip
    if others:
        value, place = others[0]
        ahead = f"{100 * (top / value - 1):.1f} %" if value else "far"
        chance = _chance(runs[best], runs[place], first, top - value, found[place])
        said[0] += f" It is {ahead} ahead of {runs[place]['name']}"
        said[0] += f"{chance}."
    below = [
        runs[place]["name"]
        for place, quality in enumerate(found)
        if quality is not None and (quality.times_popularity("ndcg") or 1.0) < 1
    ]
    if below:
        said.append(f"Below the popularity ranking: {', '.join(below)}.")
    if len({run["dataset_digest"] for run in runs}) > 1:
        said.append("They were trained on different data: their figures are not comparable.")
    return said


def _chance(
    best: dict[str, Any],
    other: dict[str, Any],
    first: Quality,
    ahead: float,
    second: Quality | None,
) -> str:
    """Whether the difference may be chance: user by user, where each user's values were kept."""
    name = f"ndcg@{first.k}"
    try:
        ours, theirs = (
            read_per_user(storage_path(run["path"]), first.split, run["dataset_digest"])
            for run in (best, other)
        )
        found = paired(ours, theirs, name)
    except Mistake:  # not evaluated by this version, or on other data
        half = (first.half_width("ndcg") or 0.0) + (
            (second.half_width("ndcg") or 0.0) if second is not None else 0.0
        )
        overlap = half and ahead < half
        return ", and their intervals overlap: such a difference may be chance" if overlap else ""
    shown = f"{found.difference:+.4f} ± {found.half_width:.4f} over {found.users:,} users"
    verdict = "more than chance over users" if found.is_clear else "which may be chance"
    return f" ({shown}, {verdict})"


def _table(
    runs: list[dict[str, Any]],
    found: list[Quality | None],
    best: int | None,
    differing: list[str],
) -> tuple[list[str], list[list[Cell]]]:
    """A row a run: quality, then the settings that differ."""
    cut_off = next((quality.k for quality in found if quality is not None), 20)
    names = [f"NDCG@{cut_off}", f"recall@{cut_off}", "× popularity", "of the best"]
    shown = [name for name in differing if name.partition(".")[0] not in ("checkpoint", "metrics")]
    rows: list[list[Cell]] = []
    for place, (run, quality) in enumerate(zip(runs, found, strict=True)):
        cells: list[Cell] = [(run["name"] + (" (best)" if place == best else ""), "name")]
        if quality is None:
            cells += [NOTHING] * len(names)
        else:
            times = quality.times_popularity("ndcg")
            top = found[best].of("ndcg") if best is not None else None  # type: ignore[union-attr]
            share = (quality.of("ndcg") or 0.0) / top if top else 1.0
            cells += [
                (quality.shown("ndcg"), "best" if place == best else ""),
                quality.shown("recall"),
                NOTHING if times is None else f"{times:.2f}",
                f"{100 * share:.1f} %",
            ]
        settings = settings_of(run["config"])
        cells += [words(settings.get(name)) for name in shown]
        cells += [f"{run['now']['step']:,}", minutes(run["summary"])]
        rows.append(cells)
    return ["", *names, *shown, "steps", "time"], rows


def _bars(runs: list[dict[str, Any]], found: list[Quality | None], best: int) -> list[Bars]:
    known = [(run, quality) for run, quality in zip(runs, found, strict=True) if quality]
    top = found[best]
    made = []
    for measure in ("ndcg", "recall"):
        values = [quality.of(measure) or 0.0 for _, quality in known]
        half = [quality.half_width(measure) for _, quality in known]
        name = f"{measure}@{known[0][1].k}"
        baselines = [q.popularity[name] for _, q in known if name in q.popularity]
        made.append(
            Bars(
                titled(name),
                f"On the {known[0][1].split} split, with 95 % intervals over users.",
                [run["name"] for run, _ in known],
                values,
                [each or 0.0 for each in half] if any(half) else None,
                best=next(n for n, (_, quality) in enumerate(known) if quality is top),
                levels=[("popularity", max(baselines))] if baselines else [],
            )
        )
    return made


def _curves(runs: list[dict[str, Any]]) -> list[Chart]:
    metrics = dict.fromkeys(run["config"]["evaluation"]["metric"] for run in runs)
    charts = []
    for metric in metrics:
        series = [
            Series(run["name"], run["validation"]["step"], watched(run), color=run["color"])
            for run in runs
            if run["config"]["evaluation"]["metric"] == metric and watched(run)
        ]
        levels = [level for run in runs for level in baseline_of(run, metric)][:1]
        help = "On the validation split while training."
        charts.append(Chart(f"{metric} on validation", help, series, levels=levels))
    return charts


def _groups(runs: list[dict[str, Any]], found: list[Quality | None]) -> list[Chart]:
    """Recall by items' popularity, a line a run."""
    series, names = [], []
    for run, quality in zip(runs, found, strict=True):
        if quality is None:
            continue
        groups = quality.record.get("popularity_groups", {}).get(f"recall@{quality.k}")
        if groups:
            names = group_names(len(groups))
            places = list(range(len(groups)))
            series.append(Series(run["name"], places, groups, color=run["color"], points=True))
    help = "Of targets in groups that share the training rows evenly."
    title, label = "Recall by the items' popularity", "popularity group of the target"
    chart = Chart(title, help, series, unit="share", xLabel=label, xNames=names)
    return [chart] if series else []


def _norms(runs: list[dict[str, Any]]) -> list[Chart]:
    series = [
        Series(run["name"], run["norms"]["count"], run["norms"]["mean"], color=run["color"])
        for run in runs
        if not isinstance(run["norms"], str) and run["norms"]["count"]
    ]
    label = "training rows of the item"
    help = "Mean over rows of the item table, from the newest checkpoint."
    title = "Length of items' embeddings by popularity"
    return [Chart(title, help, series, xLabel=label, logX=True)] if series else []


def _settings(page: Document, runs: list[dict[str, Any]]) -> None:
    """Facts of each, then every setting, those that differ marked."""
    told = [dict(facts(run)) for run in runs]
    names = dict.fromkeys(name for each in told for name in each)
    heads = ["", *(run["name"] for run in runs)]
    page.table(
        heads, [[(name, "name"), *(each.get(name, NOTHING) for each in told)] for name in names]
    )
    every = [settings_of(run["config"]) for run in runs]
    differing = set(between(runs))
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(name for settings in every for name in settings):
        kind = "differs" if name in differing else ""
        rows.append([(name, "name"), *((words(each.get(name)), kind) for each in every)])
    inside = page.part()
    inside.table(heads, rows)
    page.fold("All settings; those that differ are marked", inside)


def _starts(run: dict[str, Any]) -> str:
    sizes = [str(start["world_size"]) for start in run["starts"]]
    changes = [s for n, s in enumerate(sizes) if n == 0 or s != sizes[n - 1]]
    ranks = "rank" if changes == ["1"] else "ranks"
    return f"{len(sizes)} ({' → '.join(changes)} {ranks})"
