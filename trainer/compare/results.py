"""Results of a comparison: means and deviations over seeds, and the tables made of them."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from trainer.base.screen import Sheet

TITLES = {
    "losses": "Losses at equal tuning budgets (test)",
    "baselines": "Nothing trained: closed forms over who took what (test)",
    "groups": "NDCG@20 within each popularity group of items, rare to popular (test)",
    "noise": "Noise in train: random positives added (+), true ones taken away (-) (test)",
    "dislikes": "Disliked items in the top 20 against recall (test)",
    "negatives": "Where negatives come from, and the frequency correction (test)",
    "hardness": "More weight on the hardest negatives, by loss and hardness (test)",
    "clipping": "What clipping Q at 1e-6 costs (test)",
    "clipping groups": "The same by popularity group of items, NDCG@20, rare to popular (test)",
}
GROUPED = {"losses": "groups", "clipping": "clipping groups"}
"""Sections that have a second table, by popularity group, and its name."""
Row = list[str]
JUDGED = "ndcg@20"
"""What decides which is better."""


@dataclass(frozen=True)
class CaseResult:
    """One case over its seeds."""

    section: str
    label: str
    loss: str
    setting: str
    random_positives: float
    removed_positives: float
    seeds: list[dict[str, Any]]
    """What `run_trial` returned, a seed each."""

    def mean(self, name: str) -> float:
        return statistics.fmean(seed["values"][name] for seed in self.seeds)

    def deviation(self, name: str) -> float:
        """Standard deviation over seeds; 0 with one."""
        values = [seed["values"][name] for seed in self.seeds]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def group_means(self, name: str) -> list[float]:
        """Mean over seeds of each popularity group's value, rare first."""
        columns = zip(*(seed["groups"][name] for seed in self.seeds), strict=True)
        return [statistics.fmean(column) for column in columns]

    def shown(self, name: str) -> str:
        return f"{self.mean(name):.4f} ± {self.deviation(name):.4f}"


@dataclass(frozen=True)
class Comparison:
    """All results and the facts they stand under."""

    facts: dict[str, Any]
    results: list[CaseResult]
    baselines: list[dict[str, Any]]
    """What `measure_baselines` returned."""
    verdicts: list[str]
    """Whether the best loss is ahead of the others by more than chance."""

    def section(self, name: str) -> list[CaseResult]:
        return [result for result in self.results if result.section == name]

    @property
    def has_dislikes(self) -> bool:
        return "disliked@20" in self.results[0].seeds[0]["values"]

    def levels(self, measure: str) -> list[tuple[str, float]]:
        """What is reached without training, where it was measured."""
        return [
            (each["name"], each["values"][measure])
            for each in self.baselines
            if measure in each.get("values", {})
        ]

    def to_json(self) -> dict[str, Any]:
        results = [asdict(result) for result in self.results]
        return {
            "facts": self.facts,
            "results": results,
            "baselines": self.baselines,
            "verdicts": self.verdicts,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Comparison:
        """Inverse of `to_json`."""
        results = [CaseResult(**each) for each in data["results"]]
        return Comparison(data["facts"], results, data["baselines"], data["verdicts"])


def tables(comparison: Comparison) -> dict[str, tuple[Row, list[Row]]]:
    """Section -> (header, rows), as text; sections without cases are left out."""
    measures = ["recall@20", "ndcg@20"] + (["disliked@20"] if comparison.has_dislikes else [])
    header = ["case", *measures, "setting"]
    made: dict[str, tuple[Row, list[Row]]] = {}
    if comparison.baselines:
        made["baselines"] = _baseline_table(comparison.baselines, measures)
    for name in ("losses", "noise", "dislikes", "negatives", "hardness", "clipping"):
        results = comparison.section(name)
        if results:
            rows = [[r.label, *(r.shown(m) for m in measures), r.setting] for r in results]
            made[name] = (header, rows)
        if results and name in GROUPED:
            made[GROUPED[name]] = _group_table(results)
    return made


def _baseline_table(baselines: list[dict[str, Any]], measures: list[str]) -> tuple[Row, list[Row]]:
    rows = []
    for each in baselines:
        if "values" not in each:
            rows.append([each["name"], *("-" for _ in measures), "-", each["left_out"]])
            continue
        values = [f"{each['values'][measure]:.4f}" for measure in measures]
        rows.append([each["name"], *values, f"{each['seconds']:,.1f} s", each["setting"]])
    return ["baseline", *measures, "took", "setting"], rows


def baseline_ahead(comparison: Comparison) -> str | None:
    """A sentence where a baseline is ahead of every loss by NDCG@20."""
    levels, losses = comparison.levels(JUDGED), comparison.section("losses")
    if not levels or not losses:
        return None
    name, reached = max(levels, key=lambda level: level[1])
    trained = max(losses, key=lambda result: result.mean(JUDGED))
    if reached <= trained.mean(JUDGED):
        return None
    return (
        f"{name}, for which nothing is trained, is ahead of every loss: NDCG@20 "
        f"{reached:.4f} beside {trained.mean(JUDGED):.4f} of {trained.label}"
    )


def _group_table(results: list[CaseResult]) -> tuple[Row, list[Row]]:
    rows = [[r.label, *(f"{v:.4f}" for v in r.group_means("ndcg@20"))] for r in results]
    return ["case", *(f"group {place + 1}" for place in range(len(rows[0]) - 1))], rows


def print_tables(comparison: Comparison) -> None:
    """All tables on the terminal."""
    for name, (header, rows) in tables(comparison).items():
        sheet = Sheet(*header, title=TITLES[name])
        for row in rows:
            sheet.add(*row)
        sheet.print()
