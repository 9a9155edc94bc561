"""Loss for the accuracy of the first K places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from losses.formulas.formula import Loss, RowScores
from losses.formulas.psl import PairwiseSoftmax
from losses.formulas.sl_at_k import TopItems

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TopAccuracy(Loss):
    """The positive is to be above the user's K-th item, and few others.

        loss = log sum_j sigmoid(s_j - b) ** (1 / t) - log sigmoid(s+ - b) / t

    with b the row's threshold: the score of the K-th of the catalog's items; scores as they are:
    cosines.

    Paper: Zhang et al., "Talos: Optimizing Top-K Accuracy in Recommender Systems", WWW'26 (arXiv
    2601.19276). Theirs keeps b for each user, moved by quantile regression over the user's
    positives and drawn items; here it is the quantile of each step's columns, in one piece.

    Take it: for recall or precision in the first K places, and where what is popular shifts.

    Data: as `ssm`, on cosines.

    Relations: `psl` compares each negative with the positive instead of with b; `sl_at_k` weighs
    the pairs by b alone.
    """

    name = "talos"
    when = "for recall in the first K places"
    element = "sigmoid"
    correction = "negatives"
    corrections = ("negatives", "none")
    has_threshold = True
    subtracts_threshold = True
    settings = PairwiseSoftmax.settings

    top_k: TopItems = 20
    """K: the place of the catalog's item whose score is the threshold."""

    def row(self, scores: RowScores) -> Tensor:
        from torch.nn.functional import logsigmoid

        above_R = logsigmoid(scores.positive_R - scores.threshold_R)
        return scores.reduction_R - above_R / scores.temperature_R

    @property
    def top(self) -> int:
        return self.top_k
