"""From rows and candidates to one reduction problem: scaling, log Q bias, masks, explicit pairs.

Shapes: B rows, C columns, D width, P explicit pairs.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.choices import Correction, Element
from losses.kernels.hits import MaskRule, RowValues
from losses.pairs import log_add_exp, log_sum_exp_by_row, reduce_pairs, sum_by_row
from losses.rows import Candidates, Rows


@dataclass(frozen=True)
class Scored:
    """Scaled inputs of one forward: scores are `query_BD @ candidate_CD.T + bias_C`."""

    query_BD: Tensor
    unscaled_BD: Tensor
    """The queries before the temperature, in the dtype of scores."""
    candidate_CD: Tensor
    bias_C: Tensor
    """-inf on the columns that not all rows see."""
    bias_if_seen_C: Tensor
    """The same without that."""
    positive_B: Tensor
    """The positive's score, corrected by log Q where the loss does so."""
    uncorrected_B: Tensor
    """The same before log Q."""

    def times(self, factor: float) -> "Scored":
        """The negatives' scores times a number, before log Q; the positive's as they are."""
        return replace(self, query_BD=self.query_BD * factor)


def score(
    rows: Rows,
    candidates: Candidates,
    positive_scale: Tensor,
    negative_scale: Tensor,
    correction: Correction,
    margin: float,
    subtracted_B: Tensor | Literal["positive"] | None,
    copies_in_bias: bool,
) -> Scored:
    """Scores in float32 (float64 stays). Columns not seen by all rows have a bias of -inf.

    Padding (rows of weight 0, columns of id -1) may hold anything, NaN too: it is taken for zeros.

    margin: subtracted from the negatives' scores (ccl). subtracted_B: s_j less a number of each
    row's, as one more column of the GEMM, so that the positive's score gets its gradient there.
    copies_in_bias: in the log of a sum m equal columns are one with log m added.
    """
    dtype = torch.promote_types(rows.query_BD.dtype, torch.float32)
    padding_B1 = (rows.weight_B == 0)[:, None]
    unscaled_BD = rows.query_BD.to(dtype).masked_fill(padding_B1, 0.0)
    own_BD = rows.positive_BD.to(dtype).masked_fill(padding_B1, 0.0)
    candidate_CD = candidates.embedding_CD.to(dtype)
    candidate_CD = candidate_CD.masked_fill((candidates.id_C < 0)[:, None], 0.0)
    uncorrected_B = positive_B = (unscaled_BD * own_BD).sum(dim=1) * positive_scale.to(dtype)
    if correction == "all":
        logq_B = torch.where(padding_B1[:, 0], 0.0, rows.positive_logq_B)
        positive_B = positive_B - logq_B.to(dtype)
    bias_C = torch.full_like(candidates.logq_C, -margin, dtype=dtype)
    if correction != "none":
        bias_C = bias_C - candidates.logq_C.to(dtype)
    if copies_in_bias and candidates.copies_C is not None:
        bias_C = bias_C + torch.log(candidates.copies_C.to(dtype))
    query_BD = unscaled_BD * negative_scale.to(dtype)
    if subtracted_B is not None:
        less_B = positive_B if isinstance(subtracted_B, str) else subtracted_B.to(dtype)
        query_BD = torch.cat([query_BD, -less_B[:, None]], dim=1)
        candidate_CD = torch.cat([candidate_CD, torch.ones_like(candidate_CD[:, :1])], dim=1)
    hidden_C = torch.where(shown_to_all(candidates), bias_C, -math.inf)
    return Scored(query_BD, unscaled_BD, candidate_CD, hidden_C, bias_C, positive_B, uncorrected_B)


def shown_to_all(candidates: Candidates) -> Tensor:
    """bool [C]: neither padding nor restricted to one user."""
    shown_C = candidates.id_C >= 0
    if candidates.visible_to_C is not None:
        shown_C = shown_C & (candidates.visible_to_C < 0)
    return shown_C


def mask_rules(
    rows: Rows, candidates: Candidates, same_user: bool, history: bool
) -> list[MaskRule]:
    """Accidental hits always; on request columns whose item is another positive of the row's user
    in the batch, whoever's column it is, or is in the row's history."""
    shown_C = shown_to_all(candidates)
    id_C = torch.where(shown_C, candidates.id_C, -1)
    rules = [MaskRule(id_C, RowValues.one_a_row(rows.positive_id_B))]
    if same_user:
        user_P = torch.where(shown_C, candidates.user_C, -1)
        id_P = id_C
        if candidates.positives is not None:
            user_P = torch.cat([user_P, candidates.positives.user_P])
            id_P = torch.cat([id_P, candidates.positives.id_P])
        liked = RowValues.of_groups(user_P, id_P, rows.user_B, spared_B=rows.positive_id_B)
        rules.append(MaskRule(id_C, liked))
    if history:
        if rows.history_values is None or rows.history_offsets is None:
            raise ValueError(
                "mask_history is on but rows carry no history; pass history_values and "
                "history_offsets, or turn it off"
            )
        known = RowValues.lists(rows.history_values, rows.history_offsets)
        rules.append(MaskRule(id_C, known))
    return rules


def restricted_negatives(
    rows: Rows, candidates: Candidates, scored: Scored, element: Element, power: float
) -> tuple[Tensor, Tensor]:
    """Reduction and number [B] of the columns that the row's user alone sees: its disliked items.

    Negatives of the user's positive rows only: a disliked row's negatives are raised, and one
    dislike must not raise another.

    Few pairs a row, so they are scored one by one in plain autograd, not as columns of every row.
    """
    assert candidates.visible_to_C is not None

    def reduce(part: slice, row_P: Tensor, column_P: Tensor) -> tuple[Tensor, ...]:
        kept_P = candidates.id_C[column_P] != rows.positive_id_B[part][row_P]
        kept_P = kept_P & (rows.feedback_B[part][row_P] > 0)
        row_P, column_P = row_P[kept_P], column_P[kept_P]
        score_P = (scored.query_BD[part][row_P] * scored.candidate_CD[column_P]).sum(dim=1)
        if element == "sigmoid":
            score_P = F.logsigmoid(score_P) * power
        score_P = score_P + scored.bias_if_seen_C[column_P]
        num_rows = part.stop - part.start
        copies_P = torch.ones_like(score_P)
        if candidates.copies_C is not None:
            copies_P = candidates.copies_C[column_P].to(score_P.dtype)
        count_R = sum_by_row(copies_P, row_P, num_rows)
        match element:
            case "exp" | "sigmoid":
                return log_sum_exp_by_row(score_P, row_P, num_rows), count_R
            case "softplus":
                return sum_by_row(F.softplus(score_P) * copies_P, row_P, num_rows), count_R
            case "hinge":
                return sum_by_row(F.relu(score_P) * copies_P, row_P, num_rows), count_R

    visible_to_C = torch.where(candidates.id_C >= 0, candidates.visible_to_C, -1)
    reduction_B, count_B = reduce_pairs(visible_to_C, rows.user_B, reduce)
    return reduction_B, count_B


def mean_of_positives(
    rows: Rows, candidates: Candidates, scored: Scored, scale: Tensor, correction: Correction
) -> Tensor:
    """BSL's several positives [B]: log of the mean of exp(s+) over the user's in the batch.

    A weighted mean: each positive of the user counts by its row's weight, those of the row's own
    item together, with the row's score (alone, where none of them is a column).
    """
    dtype = scored.positive_B.dtype
    liked = candidates.with_columns()
    assert liked.column_P is not None and liked.weight_P is not None
    place_P, weight_L = liked.column_P, liked.weight_P.to(dtype)

    def reduce(part: slice, row_P: Tensor, liked_P: Tensor) -> tuple[Tensor, ...]:
        num_rows = part.stop - part.start
        own_P = liked.id_P[liked_P] == rows.positive_id_B[part][row_P]
        weight_P = weight_L[liked_P]
        own_R = sum_by_row(torch.where(own_P, weight_P, 0.0), row_P, num_rows)
        other_P = ~own_P & (weight_P > 0)
        row_P, column_P, weight_P = row_P[other_P], place_P[liked_P[other_P]], weight_P[other_P]
        query_PD = scored.unscaled_BD[part][row_P]
        score_P = (query_PD * scored.candidate_CD[column_P]).sum(dim=1) * scale.to(dtype)
        if correction == "all":
            score_P = score_P - candidates.logq_C[column_P].to(dtype)
        others_R = log_sum_exp_by_row(score_P + torch.log(weight_P), row_P, num_rows)
        return others_R, sum_by_row(weight_P, row_P, num_rows), own_R

    others_B, weight_B, own_B = reduce_pairs(liked.user_P, rows.user_B, reduce)
    own_B = torch.where(own_B > 0, own_B, 1.0)
    return log_add_exp(scored.positive_B + torch.log(own_B), others_B) - torch.log(own_B + weight_B)
