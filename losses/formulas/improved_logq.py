"""Softmax whose log Q correction leaves the positive alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from losses.formulas.formula import Loss, RowScores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ImprovedLogQ(Loss):
    """Softmax over the negatives, the positive uncorrected and the row weighted.

        loss = sg(1 - P) * (LSE' - z),    P = sigmoid(z - LSE' + log n)

    with LSE' over n negatives of chance Q'(j) = count(j) / (N - count(positive)), and sg stopping
    the gradient. Negatives come corrected by Q(j) = count(j) / N; Q' differs by the row constant
    log(1 - Q(positive)), added here.

    Paper: Khrylchenko et al., "Correcting the LogQ Correction: Revisiting Sampled Softmax for
    Large-Scale Retrieval", RecSys'25 (arXiv 2507.09331).

    Take it: in-batch negatives of skewed popularity, many columns.

    Data: as `ssm`, with log Q of columns and positives: it is a correction by log Q.

    Relations: `sl` with correction "negatives", times the share that the positive has yet to win.
    """

    name = "improved_logq"
    when = "as ssm, for in-batch negatives of skewed popularity: the positive is left uncorrected"
    correction = "negatives"
    corrections = ("negatives",)
    counts_negatives = True
    needs_log_q = True

    def row(self, scores: RowScores) -> Tensor:
        import torch

        uncorrected_R = scores.positive_logq_R >= 0  # 0 says: no correction
        logq_R = torch.where(uncorrected_R, -math.inf, scores.positive_logq_R)
        lse_R = scores.reduction_R + torch.log1p(-torch.exp(logq_R))
        log_number_R = torch.log(scores.negatives_R.clamp(min=1))
        chosen_R = torch.sigmoid(scores.positive_R - lse_R + log_number_R)
        return (1 - chosen_R).detach() * (lse_R - scores.positive_R)
