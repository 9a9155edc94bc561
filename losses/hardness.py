"""Harder negatives weigh more.

With the weights w_j of a row's negatives taken as given, the sum over them becomes

    sum_j w_j exp(s_j) / Q_j,   w_j = exp(beta s_j) / mean of exp(beta s) over the negatives,

the mean being over the catalog as the columns estimate it: sum_j exp(beta s_j) / Q_j over
sum_j 1 / Q_j. These are the importance weights of Robinson et al., "Contrastive Learning with Hard
Negative Samples", ICLR'21 (arXiv 2010.04592; its debiasing by tau+ left out): negatives as if they
were drawn by exp(beta s) beside how they are. Their mean is 1, so beta = 0 is the plain loss and
a row's negatives are as many as they were. As for samples, no gradient goes through the weights:
a negative's share is the softmax of (1 + beta) s, never below 0, and shares still add up to 1. (The
authors' code differentiates them too; easy negatives are then drawn to the query.)

The log of the sum is LSE((1 + beta) s) - LSE(beta s) + LSE(0), each over the row's negatives and
less log Q: one walk with gradients, and two without, the last with no product of matrices.

Shapes: B rows, R rows of a stripe.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hardness:
    """What turns the reduction of sharpened scores into that of weighted negatives."""

    beta: float
    offset_B: Tensor
    """log(sum 1 / Q) - log(sum exp(beta s) / Q), no gradient; 0 in rows without negatives."""

    @staticmethod
    def of_reductions(beta: float, mild_B: Tensor, flat_B: Tensor) -> "Hardness":
        """mild_B, flat_B: log-sum-exp [B] of the scores times beta, and times 0."""
        return Hardness(beta, torch.where(mild_B == -math.inf, 0.0, flat_B - mild_B))

    def of_sharpened(self, reduction_R: Tensor, part: slice) -> Tensor:
        """log sum w_j exp(s_j) / Q_j [R] of the rows `part`, from the log-sum-exp of (1 + beta) s:
        with 1 / (1 + beta) of its gradient, that of scores as they are."""
        kept_R = reduction_R / (1 + self.beta)
        given_R = (reduction_R * (self.beta / (1 + self.beta))).detach()
        return kept_R + given_R + self.offset_B[part]
