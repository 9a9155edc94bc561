"""The slow road: every loss written out over the dense B x C scores.

Nothing is shared with the streaming walk but the input dataclasses. Run it in float64 for a
reference.

Shapes: B rows, C columns, D width.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from losses import Candidates, Correction, LossName, Rows


@dataclass(frozen=True)
class ReferenceSettings:
    """The settings of `build_loss` that change the result, all given."""

    name: LossName
    temperature: float | Tensor = 0.1
    negative_temperature: float | Tensor | None = None
    negative_weight: float | None = None
    margin: float = 0.9
    disliked_weight: float = 1.0
    alpha: float = 1.0
    correction: Correction = "all"
    mask_same_user: bool = False
    mask_history: bool = False
    several_positives: bool = False
    hardness: float = 0.0
    weight_temperature: float = 2.25
    top_k: int = 20


def dense_loss(settings: ReferenceSettings, rows: Rows, candidates: Candidates) -> Tensor:
    """The weighted sum over rows, materialising [B, C] scores and masks. Columns that stand for
    several are written out."""
    if candidates.copies_C is not None:
        candidates = written_out(candidates, candidates.copies_C)
    t_positive = settings.temperature
    t_negative = (
        t_positive if settings.negative_temperature is None else settings.negative_temperature
    )
    dot_BC = rows.query_BD @ candidates.embedding_CD.T
    own_B = (rows.query_BD * rows.positive_BD).sum(dim=1)
    plain_BC = score_BC = dot_BC / t_negative
    positive_B = own_B / t_positive
    threshold_B = torch.zeros_like(own_B)
    if settings.name in ("sl_at_k", "talos"):
        threshold_B = thresholds(settings, dot_BC.detach(), candidates)
    if settings.name in ("psl", "talos"):  # the temperature is outside of the surrogate
        positive_B = own_B
        less_B = own_B if settings.name == "psl" else threshold_B
        score_BC = F.logsigmoid(dot_BC - less_B[:, None]) / t_positive
    if settings.correction != "none":
        score_BC = score_BC - candidates.logq_C
    if settings.correction == "all":
        positive_B = positive_B - rows.positive_logq_B
    negative_BC = negatives_mask(settings, rows, candidates)
    if settings.hardness:
        score_BC = score_BC + _log_weights(settings.hardness, plain_BC, score_BC, negative_BC)
    if settings.several_positives:
        positive_B = _mean_of_positives(settings, rows, candidates, dot_BC / t_positive, positive_B)
    loss_B = _row_losses(
        settings, rows, score_BC, positive_B, negative_BC, t_positive, t_negative, threshold_B
    )
    weight_B = rows.weight_B.to(loss_B.dtype)
    if settings.name not in ("ntr", "ssm_ntr"):
        weight_B = weight_B * (rows.feedback_B > 0)
    return (loss_B * weight_B).sum()


def thresholds(settings: ReferenceSettings, dot_BC: Tensor, candidates: Candidates) -> Tensor:
    """Each row's score at which the columns above have come to top_k items, by a loop."""
    shown_C = candidates.id_C >= 0
    if candidates.visible_to_C is not None:
        shown_C = shown_C & (candidates.visible_to_C < 0)
    items_C = torch.ones_like(candidates.logq_C)
    if settings.correction != "none":
        items_C = torch.exp(-candidates.logq_C)
    found = []
    for dot_C in dot_BC:
        items = 0.0
        last = dot_C.new_zeros(())
        for column in dot_C.argsort(descending=True).tolist():
            if shown_C[column]:
                last = dot_C[column]
                items += float(items_C[column])
                if items > settings.top_k - 1e-9 * settings.top_k:
                    break
        found.append(last)
    return torch.stack(found)


def written_out(candidates: Candidates, copies_C: Tensor) -> Candidates:
    column_N = torch.repeat_interleave(torch.arange(len(copies_C)), copies_C.long())
    visible_to_C, positives = candidates.visible_to_C, candidates.positives
    if positives is not None and positives.column_P is not None:
        first_C = copies_C.long().cumsum(0) - copies_C.long()
        column_P = positives.column_P
        moved_P = torch.where(column_P < 0, -1, first_C[column_P.clamp(min=0)])
        positives = replace(positives, column_P=moved_P)
    return Candidates(
        embedding_CD=candidates.embedding_CD[column_N],
        id_C=candidates.id_C[column_N],
        logq_C=candidates.logq_C[column_N],
        user_C=candidates.user_C[column_N],
        visible_to_C=None if visible_to_C is None else visible_to_C[column_N],
        positives=positives,
    )


def negatives_mask(settings: ReferenceSettings, rows: Rows, candidates: Candidates) -> Tensor:
    """bool [B, C], True where the column is a negative of the row."""
    negative_BC = candidates.id_C[None, :] != rows.positive_id_B[:, None]
    negative_BC = negative_BC & (candidates.id_C >= 0)[None, :]
    shared_C = torch.ones_like(candidates.id_C, dtype=torch.bool)
    if candidates.visible_to_C is not None:
        shared_C = candidates.visible_to_C < 0
        own_BC = candidates.visible_to_C[None, :] == rows.user_B[:, None]
        own_BC = own_BC & (rows.feedback_B > 0)[:, None] & (settings.name != "ntr")
        negative_BC = negative_BC & (shared_C[None, :] | own_BC)
    if settings.mask_same_user:
        shown_C = shared_C & (candidates.id_C >= 0)
        user_P, id_P = candidates.user_C[shown_C], candidates.id_C[shown_C]
        if candidates.positives is not None:
            user_P = torch.cat([user_P, candidates.positives.user_P])
            id_P = torch.cat([id_P, candidates.positives.id_P])
        for row in range(negative_BC.shape[0]):
            liked = id_P[(user_P == rows.user_B[row]) & (user_P >= 0)]
            negative_BC[row] &= ~(torch.isin(candidates.id_C, liked) & shared_C)
    if settings.mask_history:
        assert rows.history_values is not None and rows.history_offsets is not None
        for row in range(negative_BC.shape[0]):
            known = rows.history_values[rows.history_offsets[row] : rows.history_offsets[row + 1]]
            negative_BC[row] &= ~(torch.isin(candidates.id_C, known) & shared_C)
    return negative_BC


def _log_weights(beta: float, plain_BC: Tensor, score_BC: Tensor, negative_BC: Tensor) -> Tensor:
    """exp(beta s) over its mean over the row's negatives, these counted 1 / Q each; given."""
    counts_BC = torch.exp(score_BC - plain_BC).detach() * negative_BC
    top_B1 = (beta * plain_BC).detach().amax(dim=1, keepdim=True)
    power_BC = torch.exp(beta * plain_BC.detach() - top_B1)
    mean_B = (power_BC * counts_BC).sum(dim=1) / counts_BC.sum(dim=1)
    return torch.where(negative_BC, torch.log(power_BC / mean_B[:, None]), 0.0)


def _mean_of_positives(
    settings: ReferenceSettings,
    rows: Rows,
    candidates: Candidates,
    score_BC: Tensor,
    positive_B: Tensor,
) -> Tensor:
    if settings.correction == "all":
        score_BC = score_BC - candidates.logq_C
    other_BC = (candidates.user_C[None, :] == rows.user_B[:, None]) & (rows.user_B >= 0)[:, None]
    liked_BC = other_BC & (candidates.id_C >= 0)[None, :]
    other_BC = liked_BC & (candidates.id_C[None, :] != rows.positive_id_B[:, None])
    own_B = (liked_BC & ~other_BC).sum(dim=1).clamp(min=1).to(positive_B.dtype)
    own_B1 = (positive_B + own_B.log())[:, None]
    all_BX = torch.cat([own_B1, score_BC.masked_fill(~other_BC, -math.inf)], dim=1)
    return torch.logsumexp(all_BX, dim=1) - torch.log(own_B + other_BC.sum(dim=1))


def _row_losses(
    settings: ReferenceSettings,
    rows: Rows,
    score_BC: Tensor,
    z_B: Tensor,
    negative_BC: Tensor,
    t_positive: float | Tensor,
    t_negative: float | Tensor,
    threshold_B: Tensor,
) -> Tensor:
    number_B = negative_BC.sum(dim=1).to(score_BC.dtype)
    has_any_B = number_B > 0
    # Rows without negatives take a finite stand-in and are zeroed at the end: no NaN enters the
    # gradient.
    lse_B = torch.logsumexp(
        torch.where(has_any_B[:, None], score_BC.masked_fill(~negative_BC, -math.inf), 0.0), dim=1
    )
    mean_weight_B = 1.0 / number_B.clamp(min=1)
    sum_weight_B = torch.ones_like(mean_weight_B)
    if settings.negative_weight is not None:
        sum_weight_B = settings.negative_weight * mean_weight_B
    match settings.name:
        case "ssm":
            loss_B = torch.logaddexp(lse_B, z_B) - z_B
        case "sl":
            loss_B = lse_B - z_B
        case "sl_at_k" | "psl" | "talos":
            loss_B = _of_surrogates(settings, lse_B, z_B, t_positive, threshold_B)
        case "bsl":
            weight = (
                t_negative / t_positive
                if settings.negative_weight is None
                else settings.negative_weight
            )
            loss_B = weight * lse_B - z_B
        case "improved_logq":
            rest_B = torch.where(
                rows.positive_logq_B < 0, torch.log1p(-rows.positive_logq_B.exp()), 0.0
            )
            prime_B = lse_B + rest_B
            chosen_B = torch.sigmoid(z_B - (prime_B - number_B.clamp(min=1).log()))
            loss_B = (1 - chosen_B).detach() * (prime_B - z_B)
        case "ntr" | "ssm_ntr":
            log_total_B = torch.logaddexp(lse_B, z_B)
            weight = settings.alpha if settings.name == "ssm_ntr" else settings.disliked_weight
            loss_B = torch.where(
                rows.feedback_B < 0,
                weight * (log_total_B - lse_B),
                log_total_B - z_B,
            )
        case "ccl":
            part_BC = F.relu(score_BC - settings.margin).masked_fill(~negative_BC, 0.0)
            return F.relu(1 - z_B) + sum_weight_B * part_BC.sum(dim=1)
        case "ova":
            part_BC = F.softplus(score_BC).masked_fill(~negative_BC, 0.0)
            return F.softplus(-z_B) + sum_weight_B * part_BC.sum(dim=1)
        case "bpr":
            part_BC = F.softplus(score_BC - z_B[:, None]).masked_fill(~negative_BC, 0.0)
            return mean_weight_B * part_BC.sum(dim=1)
    return torch.where(has_any_B, loss_B, 0.0)


def _of_surrogates(
    settings: ReferenceSettings,
    lse_B: Tensor,
    z_B: Tensor,
    t_positive: float | Tensor,
    threshold_B: Tensor,
) -> Tensor:
    if settings.name == "psl":
        return lse_B + math.log(2) / t_positive
    if settings.name == "talos":
        return lse_B - F.logsigmoid(z_B - threshold_B) / t_positive
    above_B = z_B * t_positive - threshold_B
    return torch.sigmoid(above_B / settings.weight_temperature) * (lse_B - z_B)
