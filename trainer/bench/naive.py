"""The loss as one would write it: all B x C scores, a mask as large, and autograd.

Shapes: B rows, C columns.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from losses import Candidates, RetrievalLoss, Rows, RowScores
from losses.kernels.thresholds import row_thresholds


def naive_loss(loss: RetrievalLoss, rows: Rows, candidates: Candidates) -> Tensor:
    """The weighted sum over rows of a loss at fixed temperatures, with no mask but that of the
    rows' own items: what the streaming walk is timed beside."""
    form = loss.loss
    temperature, negative_temperature = loss.temperatures[0], loss.temperatures[-1]
    plain = form.element == "sigmoid"
    positive_B = (rows.query_BD * rows.positive_BD).sum(dim=1) / (1 if plain else temperature)
    dot_BC = rows.query_BD @ candidates.embedding_CD.T
    score_BC = dot_BC / (1 if plain else negative_temperature)
    if loss.correction == "all":
        positive_B = positive_B - rows.positive_logq_B
    threshold_B = torch.zeros_like(positive_B)
    if form.has_threshold:
        threshold_B = row_thresholds(rows, candidates, form.top, loss.correction != "none")
    if form.subtracts_threshold:
        score_BC = score_BC - threshold_B[:, None]
    if form.subtracts_positive:
        score_BC = score_BC - positive_B[:, None]
    if plain:
        score_BC = F.logsigmoid(score_BC) / temperature
    score_BC = score_BC - form.score_margin
    if loss.correction != "none":
        score_BC = score_BC - candidates.logq_C
    negative_BC = candidates.id_C[None, :] != rows.positive_id_B[:, None]
    match form.element:
        case "exp" | "sigmoid":
            reduction_B = score_BC.masked_fill(~negative_BC, -math.inf).logsumexp(dim=1)
        case "softplus":
            reduction_B = F.softplus(score_BC).masked_fill(~negative_BC, 0.0).sum(dim=1)
        case "hinge":
            reduction_B = F.relu(score_BC).masked_fill(~negative_BC, 0.0).sum(dim=1)
    scores = RowScores(
        positive_R=positive_B,
        reduction_R=reduction_B,
        negatives_R=negative_BC.sum(dim=1),
        positive_logq_R=rows.positive_logq_B,
        disliked_R=rows.feedback_B < 0,
        temperature_R=torch.full_like(positive_B, temperature),
        temperature_ratio_R=torch.full_like(positive_B, negative_temperature / temperature),
        threshold_R=threshold_B,
    )
    return (form.row(scores) * rows.weight_B).sum()
