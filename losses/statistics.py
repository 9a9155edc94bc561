"""What to watch while a loss runs: small device tensors, no device-to-host sync.

Shapes: B rows, C columns, D width.
"""

import torch
from torch import Tensor

from losses.inputs import Candidates, Rows
from losses.scores import Scored, shown_to_all


def loss_statistics(
    rows: Rows,
    candidates: Candidates,
    scored: Scored,
    num_columns: Tensor,
    reduction_B: Tensor,
    negatives_B: Tensor,
    weight_B: Tensor,
    row_loss_B: Tensor,
) -> dict[str, Tensor]:
    """0-d detached tensors, means over this rank's rows with weight; costs O((B + C) D).

    num_columns: those that all rows see, of all ranks in a ring walk. Scores are scaled by the
        temperature; the positive's is corrected by log Q as in the loss, the negatives' (mean over
        the columns given to this rank) is not.
    """
    share_B = (weight_B > 0).to(scored.positive_B.dtype)
    share_B = share_B / share_B.sum().clamp(min=1)
    seen_C = shown_to_all(candidates).to(scored.positive_B.dtype)
    num_seen = seen_C.sum().clamp(min=1)
    has_negatives_B = ~torch.isneginf(reduction_B)
    width = candidates.embedding_CD.shape[1]
    mean_D = (seen_C @ candidates.embedding_CD.detach().to(scored.positive_B.dtype)) / num_seen
    # Columns that are not seen may hold any log Q, -inf too.
    logq_C = torch.where(seen_C > 0, candidates.logq_C, 0.0).to(scored.positive_B.dtype)
    logq_mean = logq_C.sum() / num_seen
    logq_variance = ((logq_C - logq_mean).square() * seen_C).sum() / num_seen
    reduction_mean = (torch.where(has_negatives_B, reduction_B, 0.0) * share_B).sum()
    return {
        "reduction_mean": reduction_mean,
        "positive_score_mean": (scored.positive_B.detach() * share_B).sum(),
        "negative_score_mean": ((scored.query_BD.detach()[:, :width] @ mean_D) * share_B).sum(),
        "negatives_mean": (negatives_B * share_B).sum(),
        "hit_share": ((1 - negatives_B / num_columns.clamp(min=1)) * share_B).sum(),
        "empty_rows": ((negatives_B <= 0) & (weight_B > 0)).sum().to(scored.positive_B.dtype),
        "logq_mean": logq_mean,
        "logq_spread": torch.sqrt(logq_variance),
        "disliked_part": torch.where(rows.feedback_B < 0, row_loss_B, 0.0).sum(),
    }
