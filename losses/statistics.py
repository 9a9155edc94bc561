"""What to watch while a loss runs: small device tensors, no device-to-host sync.

Shapes: B rows, C columns, D width.
"""


import torch
from torch import Tensor

from losses.inputs import Candidates, Rows


def loss_statistics(
    rows: Rows,
    candidates: Candidates,
    query_BD: Tensor,
    positive_B: Tensor,
    reduction_B: Tensor,
    negatives_B: Tensor,
    row_loss_B: Tensor,
    weight_B: Tensor,
) -> dict[str, Tensor]:
    """0-d detached tensors, means over this rank's rows with weight; costs O((B + C) D).

    `query_BD` is scaled by the temperature, so scores are as the loss sees them, before log Q.
    """
    share_B = (weight_B > 0).to(positive_B.dtype)
    share_B = share_B / share_B.sum().clamp(min=1)
    seen_C = ((candidates.id_C >= 0) & _seen_by_all(candidates)).to(positive_B.dtype)
    num_seen = seen_C.sum().clamp(min=1)
    has_negatives_B = torch.isfinite(reduction_B)
    width = candidates.embedding_CD.shape[1]
    mean_D = (seen_C @ candidates.embedding_CD.detach().to(positive_B.dtype)) / num_seen
    logq_C = candidates.logq_C.to(positive_B.dtype)
    logq_mean = (logq_C * seen_C).sum() / num_seen
    logq_variance = ((logq_C - logq_mean).square() * seen_C).sum() / num_seen
    reduction_mean = (torch.where(has_negatives_B, reduction_B, 0.0) * share_B).sum()
    return {
        "reduction_mean": reduction_mean,
        "positive_score_mean": (positive_B.detach() * share_B).sum(),
        "negative_score_mean": ((query_BD.detach()[:, :width] @ mean_D) * share_B).sum(),
        "negatives_mean": (negatives_B * share_B).sum(),
        "hit_share": ((1 - negatives_B / num_seen) * share_B).sum(),
        "empty_rows": ((negatives_B <= 0) & (weight_B > 0)).sum().to(positive_B.dtype),
        "logq_mean": logq_mean,
        "logq_spread": torch.sqrt(logq_variance),
        "disliked_part": torch.where(rows.feedback_B < 0, row_loss_B, 0.0).sum(),
    }


def _seen_by_all(candidates: Candidates) -> Tensor:
    if candidates.visible_to_C is None:
        return torch.ones_like(candidates.id_C, dtype=torch.bool)
    return candidates.visible_to_C < 0
