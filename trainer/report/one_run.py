"""The page of one run, in the order of a reader's questions."""

from __future__ import annotations

from typing import Any

from trainer.live.document import NOTHING, Document
from trainer.live.drawing import Chart, Series
from trainer.observe.progress import in_words
from trainer.report.people import Person
from trainer.report.quality import (
    Quality,
    best_evaluation,
    curve_of_its_try,
    how_good,
    quality_of,
    still_learning,
    watched,
)
from trainer.report.what_was_run import happened, minutes, state_of, what_was_run
from trainer.retrieval.measures.meanings import MEANINGS, group_names, titled


def one_run(page: Document, run: dict[str, Any], people: list[Person] | str | None) -> None:
    """All sections."""
    quality = quality_of(run)
    page.head(run["name"], f"{state_of(run['now'])}  ·  preset {run['preset']}, data {run['data']}")
    page.verdict(how_good(quality), still_learning(run))
    page.heading("How good is it?")
    _figures(page, run, quality)
    if quality is not None:
        _measures(page, run, quality)
    if run["choice"] is not None:
        _tried(page, run["choice"])
    for line in run["beside"]:
        page.words(f"{line[0].upper()}{line[1:]}.")
    page.heading("Is it still learning?")
    page.drawn(*learning(run))
    if quality is not None and quality.record:
        page.heading("Whom does it serve?")
        page.drawn(*served(quality), *norms(run))
    if people is not None:
        page.heading("What does it recommend?")
        recommended(page, people)
    page.heading("What was run?")
    what_was_run(page, run)
    page.heading("What happened?")
    happened(page, run)


def _figures(page: Document, run: dict[str, Any], quality: Quality | None) -> None:
    figures = []
    if quality is not None:
        for measure in ("ndcg", "recall"):
            half = quality.half_width(measure)
            note = f"{quality.split}, all items ranked"
            shown = quality.of(measure)
            value = NOTHING if shown is None else f"{shown:.4f}"
            name = titled(f"{measure}@{quality.k}")
            figures.append((name, value, f"± {half:.4f} (95 %), {note}" if half else note))
        times = quality.times_popularity("ndcg")
        if times is not None:
            baseline = quality.popularity[f"ndcg@{quality.k}"]
            note = f"the most popular to everybody: {baseline:.4f}"
            figures.append(("Times popularity", f"{times:.2f} ×", note))
        if "users" in quality.record:
            figures.append(("Users measured", f"{quality.record['users']:,}", quality.split))
    epochs = run["metrics"].get("epochs_trained", [])
    trained = f"{epochs[-1]:.3g} epochs" if epochs else "not trained yet"
    figures.append(("Steps", f"{run['now']['step']:,}", trained))
    figures.append(("Time trained", minutes(run["summary"]), "of the last start"))
    page.figures(figures)


def _tried(page: Document, choice: dict[str, Any]) -> None:
    """The models and closed forms that stood beside each other before the run began."""
    page.words(
        f"Before it began, --effort tried models on validation for {in_words(choice['seconds'])}, "
        "beside what needs no training:"
    )
    found = [(value, name, "nothing is trained") for name, value in choice["baselines"].items()]
    for each in choice["models"]:
        taken = "taken: " if each["name"] == choice["chosen"] else ""
        found.append((each["value"], each["name"], f"{taken}{each['why']}"))
    rows = [
        [(name, "name"), f"{value:.4f}", (why, "soft left")]
        for value, name, why in sorted(found, reverse=True)
    ]
    page.table(["tried", choice["metric"], ""], rows, "figures")


def _measures(page: Document, run: dict[str, Any], quality: Quality) -> None:
    """Every measure at every cut-off, folded away, with what it means."""
    inside = page.part()
    for split in ("test", "validation"):
        found = quality_of(run, split)
        if found is None:
            continue
        ks = sorted({int(name.partition("@")[2]) for name in found.values})
        names = dict.fromkeys(name.partition("@")[0] for name in found.values)
        rows = []
        for name in names:
            cells = [_beside_popularity(found, f"{name}@{k}") for k in ks]
            rows.append([(name, "name"), *cells, (MEANINGS.get(name, ""), "soft left")])
        inside.words(f"{split}; in brackets, the popularity ranking's")
        inside.table(["", *(f"@{k}" for k in ks), ""], rows, "figures")
    page.fold("All measures, and what they mean", inside)


def _beside_popularity(quality: Quality, name: str) -> str:
    if name not in quality.values:
        return NOTHING
    baseline = quality.popularity.get(name)
    return f"{quality.values[name]:.4f}" + (f" ({baseline:.4f})" if baseline is not None else "")


def learning(run: dict[str, Any]) -> list[Chart]:
    """Quality and loss over the steps."""
    metric, values = run["config"]["evaluation"]["metric"], watched(run)
    steps, best = run["validation"]["step"], best_evaluation(run)
    charts = _when_tried(run)
    if best is not None:
        charts.append(
            Chart(
                f"{metric} on validation",
                f"Best at step {steps[best]:,}: {values[best]:.4f}. Dashed: popularity.",
                [
                    Series("while training", steps, values),
                    Series("best", [steps[best]], [values[best]], color=2, points=True),
                ],
                levels=baseline_of(run, metric),
                marks=restarts(run),
            )
        )
    losses = run["metrics"].get("loss", [])
    charts.append(
        Chart(
            "Training loss",
            "Mean over rows since the reading before; short last batches are left out.",
            [Series("loss", *measured(run["metrics"]["step"], losses))],
            unit="nats",
            marks=restarts(run),
        )
    )
    return charts


def _when_tried(run: dict[str, Any]) -> list[Chart]:
    """Of a run that was trained on validation too: the curve of its try, which was not."""
    curve, choice = curve_of_its_try(run), run["choice"]
    if not curve:
        return []
    popularity = choice["baselines"].get("popularity")
    return [
        Chart(
            f"{choice['metric']} on validation, when it was tried",
            "Then it was trained on train alone, the run on validation too. Dashed: popularity.",
            [Series("when tried", list(range(1, len(curve) + 1)), curve)],
            xLabel="epoch",
            whole=True,
            levels=[] if popularity is None else [("popularity", popularity)],
        )
    ]


def baseline_of(run: dict[str, Any], metric: str) -> list[tuple[str, float]]:
    """The popularity ranking's value on validation, where it was measured."""
    known = [v for v in run["validation"].get(f"popularity/{metric}", []) if v is not None]
    evaluated = (run["evaluation"] or {}).get("validation", {}).get("popularity", {})
    value = known[-1] if known else evaluated.get(metric)
    return [] if value is None else [("popularity", value)]


def measured(x: list[Any], y: list[Any]) -> tuple[list[Any], list[Any]]:
    """Places and values where there is one."""
    pairs = [(a, b) for a, b in zip(x, y, strict=False) if b is not None]
    return [a for a, _ in pairs], [b for _, b in pairs]


def restarts(run: dict[str, Any]) -> list[float]:
    return [start["step"] for start in run["starts"][1:]]


def served(quality: Quality) -> list[Chart]:
    """Recall by items' popularity and by users' activity, the popularity ranking's beside it."""
    record, name = quality.record, f"recall@{quality.k}"
    charts = []
    groups = record.get("popularity_groups", {}).get(name)
    if groups:
        popular = record.get("popularity_groups_of_popularity", {}).get(name)
        charts.append(
            _by_group(
                f"{name} by the items' popularity",
                "Of targets in groups that share the training rows evenly.",
                ("popularity group of the target", group_names(len(groups)), groups, popular),
            )
        )
    activity = record.get("activity", {})
    if activity:
        popular = record.get("activity_of_popularity", {})
        found = [activity[band][name] for band in activity]
        beside = [popular[band][name] for band in activity] if popular else None
        users = ", ".join(f"{band}: {int(activity[band]['users']):,}" for band in activity)
        bands = ("items met before", list(activity), found, beside)
        charts.append(
            _by_group(f"{name} by the users' activity", f"Users in each band: {users}.", bands)
        )
    return charts


def _by_group(
    title: str, help: str, groups: tuple[str, list[str], list[float], list[float] | None]
) -> Chart:
    label, names, values, popular = groups
    places = list(range(len(names)))
    series = [Series("this run", places, values, points=True)]
    if popular is not None:
        series.append(Series("popularity", places, popular, color=5, dash=(5, 4), points=True))
    return Chart(title, help, series, unit="share", xLabel=label, xNames=names)


def norms(run: dict[str, Any]) -> list[Chart]:
    """How long items' vectors are against how popular they are."""
    found = run["norms"]
    if isinstance(found, str) or not found["count"]:
        return []
    at = found["count"]
    return [
        Chart(
            "Length of items' embeddings by popularity",
            "Rows of the item table, from the newest checkpoint; dots: a sample of items.",
            [
                Series("items", found["dots"][0], found["dots"][1], color=5, points="only"),
                Series("mean", at, found["mean"]),
                Series("10 %", at, found["low"], color=3, dash=(2, 3)),
                Series("90 %", at, found["high"], color=4, dash=(2, 3)),
            ],
            xLabel="training rows of the item",
            logX=True,
        )
    ]


def recommended(page: Document, people: list[Person] | str) -> None:
    if isinstance(people, str):
        page.words(people)
        return
    page.words("Users from the least active to the most; what they have met is left out.")
    rows = [
        [
            (f"{person.user}\n{person.interactions:,} in training", "name lines"),
            ("\n".join(person.liked) or "nothing", "lines"),
            ("\n".join(person.recommended) or "nothing", "lines"),
        ]
        for person in people
    ]
    page.table(["user", "liked last", "recommended"], rows)
