"""The losses: each one a function of a row's positive score z and of one reduction over its
negatives.

`reduction_R` is the log-sum-exp of the negatives (softmax family) or the sum of their element
function (ova, bpr, ccl). Rows without any negative have LSE = -inf and contribute nothing.

Shapes: R rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.kernels.problem import Element

LossName = Literal["ssm", "sl", "bsl", "improved_logq", "ntr", "ssm_ntr", "ccl", "ova", "bpr"]
"""ssm: softmax with the positive in the denominator; implicit feedback, large catalogs: begin here.
sl: softmax over the negatives alone; tolerates false negatives.
bsl: sl with a temperature or weight for each side, by default a weight of 1.2 on the negatives';
    noisy positives.
improved_logq: softmax whose logQ correction leaves the positive alone; in-batch negatives of skewed
    popularity.
ntr: softmax on positives, its complement on disliked items, which are no negatives; explicit
    dislikes, safety.
ssm_ntr: ssm with the user's disliked items among the negatives, plus alpha x the ntr half over
    disliked rows; dislikes both as negatives and pushed down.
ccl: cosine contrastive (SimpleX); many negatives, strong on small catalogs.
ova, bpr: one-vs-all logistic and pairwise logistic, for comparison.
ccl, ova and bpr do not correct for popularity: negatives are to be drawn uniformly."""

Correction = Literal["all", "negatives", "none"]
"""Scores that log Q is subtracted from: columns and positive, negatives alone, or none."""


@dataclass(frozen=True)
class RowValues:
    """What a row's loss is computed from, each [R]; `reduction_R` is finite (see `row_losses`)."""

    positive_R: Tensor
    reduction_R: Tensor
    negatives_R: Tensor
    negative_factor_R: Tensor
    positive_logq_R: Tensor
    disliked_R: Tensor


RowFormula = Callable[[RowValues], Tensor]


def softmax_row(row: RowValues) -> Tensor:
    """-log of the positive's share among itself and the negatives.

    Let log Q of a column be the log of the expected number of columns of its item. Then the
    negatives' log-sum-exp tends to that of all items but the positive, as columns become many.
    With the positive's score left alone (correction "negatives") the loss tends to the full
    softmax. With log Q subtracted from it too ("all", Yi et al.), it is raised by as much as its
    item is rare: its own share goes to 0 and the loss to SL's, which pulls a pair however well it
    is learned. With a few thousand columns and items by the thousand the two are alike in recall
    (docs/losses.md).
    """
    return F.softplus(row.reduction_R - row.positive_R)


def decoupled_row(row: RowValues) -> Tensor:
    """SL: the positive is not in the denominator."""
    return row.reduction_R - row.positive_R


def bilateral_row(row: RowValues) -> Tensor:
    """BSL: `-s+/t1 + weight * LSE(s_j/t2)`; the temperatures are in the scores already."""
    return row.negative_factor_R * row.reduction_R - row.positive_R


def improved_logq_row(row: RowValues) -> Tensor:
    """RecSys'25: the positive uncorrected, not in the denominator, and the row weighted by sg(1 -
    P).

    The negatives were corrected by Q(j) = count(j) / N; Q'(j) = count(j) / (N - count(pos)) differs
    by the row constant log(1 - Q(pos)), added here.
    """
    uncorrected_R = row.positive_logq_R >= 0  # 0 says: no correction
    others_R = torch.log1p(-torch.exp(torch.where(uncorrected_R, -math.inf, row.positive_logq_R)))
    lse_R = row.reduction_R + others_R
    chosen_R = torch.sigmoid(row.positive_R - lse_R + torch.log(row.negatives_R.clamp(min=1)))
    return (1 - chosen_R).detach() * (lse_R - row.positive_R)


def not_to_recommend_row(disliked_weight: float) -> RowFormula:
    """NTR: `-log p` for positives, `-log(1 - p)` for disliked items, as stable softplus."""

    def formula(row: RowValues) -> Tensor:
        difference_R = row.reduction_R - row.positive_R
        disliked_part_R = disliked_weight * F.softplus(-difference_R)
        return torch.where(row.disliked_R, disliked_part_R, F.softplus(difference_R))

    return formula


def cosine_contrastive_row(mean: bool) -> RowFormula:
    """CCL: `relu(1 - s+) + w/N sum_j relu(s_j - m)`; without `mean` the plain sum."""

    def formula(row: RowValues) -> Tensor:
        return F.relu(1 - row.positive_R) + _negatives_part(row, mean)

    return formula


def one_vs_all_row(mean: bool) -> RowFormula:
    """OvA: `softplus(-z) + sum_j softplus(s_j)`; with `mean` the sum becomes `w/N sum_j`."""

    def formula(row: RowValues) -> Tensor:
        return F.softplus(-row.positive_R) + _negatives_part(row, mean)

    return formula


def pairwise_row(row: RowValues) -> Tensor:
    """BPR: mean over negatives of softplus(s_j - z); z is in the reduced scores already."""
    return _negatives_part(row, mean=True)


def _negatives_part(row: RowValues, mean: bool) -> Tensor:
    if mean:
        return row.negative_factor_R * row.reduction_R / row.negatives_R.clamp(min=1)
    return row.reduction_R


def row_losses(formula: RowFormula, row: RowValues) -> Tensor:
    """[R] losses; rows whose LSE is -inf (all columns masked) give 0 and no gradient, not NaN."""
    empty_R = row.reduction_R == -math.inf
    stand_in_R = torch.where(empty_R, row.positive_R.detach(), row.reduction_R)
    finite = replace(row, reduction_R=stand_in_R)
    return torch.where(empty_R, 0.0, formula(finite))


@dataclass(frozen=True)
class Form:
    """How one named loss uses the primitive."""

    element: Element
    correction: Correction
    temperature: float
    counts_disliked: bool = False
    """Disliked rows have a loss."""
    sees_restricted: bool = True
    """Positive rows have the columns that their user alone sees among their negatives."""


def form_of(name: LossName) -> Form:
    """Element function, default correction and default temperature of a loss."""
    match name:
        case "ssm" | "sl" | "bsl":
            return Form("exp", "all", 0.1)
        case "improved_logq":
            return Form("exp", "negatives", 0.1)
        case "ntr":
            return Form("exp", "all", 0.1, counts_disliked=True, sees_restricted=False)
        case "ssm_ntr":
            return Form("exp", "all", 0.1, counts_disliked=True)
        case "ccl":
            return Form("hinge", "none", 1.0)
        case "ova" | "bpr":
            return Form("softplus", "none", 0.1)
        case _:
            raise ValueError(
                f"no loss {name!r}; choose ssm, sl, bsl, improved_logq, ntr, ssm_ntr, ccl, ova, bpr"
            )
