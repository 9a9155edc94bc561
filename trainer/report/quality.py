"""How good a run is: the figures that its evaluations left, and what they come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

USUAL_CUT_OFF = 20
FLAT = 0.01
"""Growth over the last evaluations below which a run has levelled off."""
LOOKED_BACK = 3
"""Evaluations that this growth is taken over."""


@dataclass(frozen=True)
class Quality:
    """One evaluation of a run."""

    split: str
    k: int
    values: dict[str, float]
    half_widths: dict[str, float]
    """Of 95 % intervals: other users like these would give a mean within."""
    popularity: dict[str, float]
    """The same measures of the popularity ranking; empty where it was not measured."""
    record: dict[str, Any]
    """All that evaluation.json says of the split; empty of an evaluation while training."""

    def of(self, measure: str) -> float | None:
        return self.values.get(f"{measure}@{self.k}")

    def half_width(self, measure: str) -> float | None:
        return self.half_widths.get(f"{measure}@{self.k}")

    def times_popularity(self, measure: str) -> float | None:
        value, baseline = self.of(measure), self.popularity.get(f"{measure}@{self.k}")
        return None if value is None or not baseline else value / baseline

    def shown(self, measure: str) -> str:
        """`0.1501 ± 0.0102`."""
        value, half = self.of(measure), self.half_width(measure)
        if value is None:
            return "–"
        return f"{value:.4f}" + (f" ± {half:.4f}" if half is not None else "")


def quality_of(run: dict[str, Any], split: str | None = None) -> Quality | None:
    """Of the test where it was evaluated, else of validation; None where there is nothing.

    run: as `read_run` gives it.
    """
    evaluated = run["evaluation"] or {}
    for name in ("test", "validation") if split is None else (split,):
        record = evaluated.get(name)
        if record and any("@" in each for each in record):
            values = {each: value for each, value in record.items() if "@" in each}
            half_widths = {**record.get("user_interval_95", {}), **record.get("interval_95", {})}
            baseline = record.get("popularity", {})
            return Quality(name, _cut_off(values), values, half_widths, baseline, record)
    return _while_training(run) if split in (None, "validation") else None


def _while_training(run: dict[str, Any]) -> Quality | None:
    columns = run["validation"]
    best = best_evaluation(run)
    if best is None:
        return None
    line = {key: column[best] for key, column in columns.items() if column[best] is not None}
    values = {key: value for key, value in line.items() if "@" in key and "/" not in key}
    start = "popularity/"
    popular = {key.removeprefix(start): v for key, v in line.items() if key.startswith(start)}
    return Quality("validation", _cut_off(values), values, {}, popular, {})


def best_evaluation(run: dict[str, Any]) -> int | None:
    """Place, among the evaluations while training, of the one with the best watched metric."""
    values = watched(run)
    known = [place for place, value in enumerate(values) if value is not None]
    return max(known, key=lambda place: values[place], default=None)


def watched(run: dict[str, Any]) -> list[Any]:
    """The watched metric at each evaluation while training."""
    return list(run["validation"].get(run["config"]["evaluation"]["metric"], []))


def _cut_off(values: dict[str, float]) -> int:
    ks = [int(name.partition("@")[2]) for name in values if name.startswith("ndcg@")]
    return min(ks, key=lambda k: abs(k - USUAL_CUT_OFF), default=USUAL_CUT_OFF)


def how_good(quality: Quality | None) -> str:
    """In a sentence."""
    if quality is None:
        return "It was never evaluated: `tandem evaluate RUN --split test` measures it."
    said = f"NDCG@{quality.k} {quality.shown('ndcg')} on the {quality.split} split"
    times = quality.times_popularity("ndcg")
    if times is None:
        return f"{said}."
    baseline = quality.popularity[f"ndcg@{quality.k}"]
    said += f", {times:.2f} times the popularity ranking's {baseline:.4f}"
    return f"{said}: it has learnt less than a count of plays." if times < 1 else f"{said}."


def _ended_early(run: dict[str, Any]) -> str:
    """Of a run that its patience ended: after how many of its epochs."""
    summary = run["summary"] or {}
    epochs, trained = run["config"]["training"]["epochs"], summary.get("epochs", 0)
    early = (summary.get("quality") or {}).get("out_of_patience") and trained < epochs
    return f", which ended it early: after epoch {trained} of {epochs}" if early else ""


def curve_of_its_try(run: dict[str, Any]) -> list[float]:
    """The watched metric after each epoch of the try, of a run that was trained on validation too,
    so that it was not evaluated itself; [] of others."""
    choice, trained_on = run["choice"], run["config"]["data"]["train_splits"]
    is_its_own = best_evaluation(run) is not None or "validation" not in trained_on
    return [] if choice is None or is_its_own else list(choice["curve"])


def still_learning(run: dict[str, Any]) -> str:
    """In a sentence: whether more training would help."""
    values, best = watched(run), best_evaluation(run)
    metric = run["config"]["evaluation"]["metric"]
    if curve := curve_of_its_try(run):
        highest = max(curve)
        return (
            f"It was trained for as long as was best when it was tried: {metric} on validation was "
            f"{highest:.4f} after epoch {curve.index(highest) + 1} of {len(curve)}."
        )
    if best is None:
        return "It was not evaluated while training, so nothing says whether it still learns."
    if len(values) <= LOOKED_BACK:
        return f"{len(values)} evaluations while training are too few to say whether it learns on."
    since = len(values) - 1 - best
    patience = run["config"]["evaluation"].get("patience") or LOOKED_BACK
    if since >= min(patience, LOOKED_BACK):
        return (
            f"It has come to its end: {metric} was best at evaluation {best + 1} of "
            f"{len(values)}, and {since} evaluations since brought nothing better"
            f"{_ended_early(run)}."
        )
    before = values[-1 - LOOKED_BACK]
    growth = values[-1] / before - 1 if before else 0.0
    if growth > FLAT:
        return (
            f"It is still learning: {metric} grew by {100 * growth:.1f} % over the last "
            f"{LOOKED_BACK} evaluations; more epochs are likely to help."
        )
    return (
        f"It has levelled off: {metric} grew by {100 * max(growth, 0):.1f} % over the last "
        f"{LOOKED_BACK} evaluations."
    )
