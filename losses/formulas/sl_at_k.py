"""Softmax loss whose pairs weigh by whether they are among the user's top K."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from losses.formulas.formula import Limits, Loss, RowScores, Temperature

if TYPE_CHECKING:
    from torch import Tensor

TopItems = Annotated[int, Limits(least=1, most=10_000)]


@dataclass(frozen=True)
class SoftmaxAtK(Loss):
    """`sl`, each pair weighted by how likely its item is to be among the user's first K.

        loss = sigmoid((s+ - b) / tw) * log sum_j exp((s_j - s+) / t)

    with b the row's threshold: the score of the K-th of the catalog's items. Scores are as they
    are, cosines; the gradient goes through the weight too, as in the authors' code, so that a pair
    is drawn less than its negatives are pushed.

    Paper: Yang et al., "Breaking the Top-K Barrier: Advancing Top-K Ranking Metrics Optimization in
    Recommender Systems", KDD'25 (arXiv 2508.05673). Theirs estimates b every few epochs, from a
    thousand drawn items and the user's positives; here every step does, from its columns.

    Take it: for the first K places of a list, where `sl` is good and t is tuned for that already.

    Data: as `ssm`. The size of the sum is part of the gradient: with log Q it is that of the
    catalog, without that of the columns.

    Relations: `sl` as tw grows, but for a factor; `bsl` too pushes negatives more than it draws the
    pair, by a weight that is the same for all rows. `talos` compares negatives with b as well.
    """

    name = "sl_at_k"
    when = "sl for the first K places"
    correction = "negatives"
    corrections = ("negatives", "none")
    has_threshold = True
    usual_temperature = 0.2
    settings = (
        ({"temperature": 0.2, "weight_temperature": 2.25}, 1.0),
        ({"temperature": 0.2, "weight_temperature": 1.25}, 1.0),
        ({"temperature": 0.1, "weight_temperature": 2.25}, 1.0),
        ({"temperature": 0.2, "weight_temperature": 2.25}, 0.5),
        ({"temperature": 0.15, "weight_temperature": 2.25}, 1.0),
        ({"temperature": 0.2, "weight_temperature": 2.25}, 2.0),
    )

    weight_temperature: Temperature = 2.25
    """Of the pairs' weights: the larger, the more alike they are."""
    top_k: TopItems = 20
    """K: the place of the catalog's item whose score is the threshold."""

    def row(self, scores: RowScores) -> Tensor:
        import torch

        score_R = scores.positive_R * scores.temperature_R
        weight_R = torch.sigmoid((score_R - scores.threshold_R) / self.weight_temperature)
        return weight_R * (scores.reduction_R - scores.positive_R)

    @property
    def top(self) -> int:
        return self.top_k
