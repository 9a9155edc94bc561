"""What to watch while a loss runs: small device tensors, no device-to-host sync.

Shapes: B rows, C columns, D width; R and K of them sampled.
"""

import torch
from torch import Tensor

from losses.rows import Candidates, Rows
from losses.scores import Scored, shown_to_all

SAMPLED = 128
"""Rows and columns, evenly spread, whose scores give the negatives' spread."""


def loss_statistics(
    rows: Rows,
    candidates: Candidates,
    scored: Scored,
    num_columns: Tensor,
    reduction_B: Tensor,
    negatives_B: Tensor,
    positive_B: Tensor,
    weight_B: Tensor,
    row_loss_B: Tensor,
) -> dict[str, Tensor]:
    """0-d detached tensors, weighted means over this rank's rows; costs O((B + C) D).

    num_columns: those that all rows see, copies counted, of all ranks in a ring walk.
    positive_B: what the loss takes for the positive: corrected by log Q where it does so, the mean
        of several where it has several ("positive_term_mean").

    Scores ("positive_score_mean", ...) are of the rows' own positives and of the columns given to
    this rank, scaled by the temperature, before log Q and masks: they can be compared.
    """
    dtype = positive_B.dtype
    share_B = weight_B / weight_B.sum().clamp(min=torch.finfo(dtype).tiny)
    seen_C = shown_to_all(candidates).to(dtype)
    if candidates.copies_C is not None:
        seen_C = seen_C * candidates.copies_C
    num_seen = seen_C.sum().clamp(min=1)
    has_negatives_B = ~torch.isneginf(reduction_B)
    width = candidates.embedding_CD.shape[1]
    query_BD = scored.query_BD.detach()[:, :width]
    column_CD = scored.candidate_CD.detach()[:, :width]
    mean_D = (seen_C @ column_CD) / num_seen
    # Columns that are not seen may hold any log Q, -inf too.
    logq_C = torch.where(seen_C > 0, candidates.logq_C, 0.0).to(dtype)
    logq_mean = (logq_C * seen_C).sum() / num_seen
    score_B = scored.uncorrected_B.detach()
    score_mean = (score_B * share_B).sum()
    return {
        "reduction_mean": (torch.where(has_negatives_B, reduction_B, 0.0) * share_B).sum(),
        "positive_term_mean": (positive_B.detach() * share_B).sum(),
        "positive_score_mean": score_mean,
        "positive_score_spread": _spread(score_B, score_mean, share_B),
        "negative_score_mean": ((query_BD @ mean_D) * share_B).sum(),
        "negative_score_spread": _sampled_spread(query_BD, share_B, column_CD, seen_C),
        "negatives_mean": (negatives_B * share_B).sum(),
        "hit_share": ((1 - negatives_B / num_columns.clamp(min=1)) * share_B).sum(),
        "empty_rows": ((negatives_B <= 0) & (weight_B > 0)).sum().to(dtype),
        "logq_mean": logq_mean,
        "logq_spread": _spread(logq_C, logq_mean, seen_C / num_seen),
        "disliked_part": torch.where(rows.feedback_B < 0, row_loss_B, 0.0).sum(),
    }


def _spread(value_X: Tensor, mean: Tensor, share_X: Tensor) -> Tensor:
    """Standard deviation of values that have shares of one whole."""
    return torch.sqrt(((value_X - mean).square() * share_X).sum())


def _sampled_spread(query_BD: Tensor, share_B: Tensor, column_CD: Tensor, seen_C: Tensor) -> Tensor:
    """Standard deviation of the scores of SAMPLED rows against SAMPLED columns, bare of log Q."""
    row, column = _every(query_BD), _every(column_CD)
    share_R, share_K = share_B[row], seen_C[column]
    score_RK = query_BD[row] @ column_CD[column].T
    share_RK = share_R[:, None] * share_K
    share_RK = share_RK / share_RK.sum().clamp(min=torch.finfo(share_RK.dtype).tiny)
    return _spread(score_RK, (score_RK * share_RK).sum(), share_RK)


def _every(value_XD: Tensor) -> slice:
    """At most SAMPLED of the rows, evenly spread."""
    return slice(None, None, max(1, -(-len(value_XD) // SAMPLED)))
