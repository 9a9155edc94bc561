"""The loss module: rows and candidates in, a scalar with gradients and monitoring statistics out.

No collective runs here: the caller gathers candidates first (`losses.gather_with_gradient`). Scores stay local,
B x C, and are never materialised.

Shapes: B rows, C columns, D width, P explicit pairs.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.blocked import fused_loss
from losses.formulas import Correction, LossName, RowFormula, RowValues, form_of, row_losses
from losses.formulas import (
    bilateral_row,
    cosine_contrastive_row,
    decoupled_row,
    improved_logq_row,
    not_to_recommend_row,
    one_vs_all_row,
    pairwise_row,
    softmax_row,
)
from losses.hits import MaskRule
from losses.inputs import Candidates, Rows
from losses.problem import Problem
from losses.sizes import Blocking, Workspace
from losses.pairs import log_add_exp, log_sum_exp_by_row, matching_pairs, sum_by_row
from losses.statistics import loss_statistics

Precision = Literal["fp32", "bf16"]
LARGEST_INVERSE_TEMPERATURE = 100.0


@dataclass(frozen=True)
class _Prepared:
    """Scaled inputs of one forward."""

    query_BD: Tensor
    candidate_CD: Tensor
    bias_C: Tensor
    positive_B: Tensor


class RetrievalLoss(nn.Module):
    """One of the losses; made by `build_loss`, which documents the arguments."""

    def __init__(
        self,
        name: LossName,
        *,
        temperature: float,
        negative_temperature: float | None,
        negative_weight: float | None,
        margin: float,
        disliked_weight: float,
        correction: Correction,
        mask_same_user: bool,
        mask_history: bool,
        several_positives: bool,
        precision: Precision,
        learn_temperature: bool,
        blocking: Blocking,
    ) -> None:
        super().__init__()
        self.name: LossName = name
        self.form = form_of(name)
        self.negative_weight, self.margin, self.disliked_weight = negative_weight, margin, disliked_weight
        self.correction: Correction = correction
        self.mask_same_user, self.mask_history = mask_same_user, mask_history
        self.several_positives = several_positives
        self.precision: Precision = precision
        self.blocking = blocking
        self._workspace = Workspace()
        given = [temperature] if negative_temperature is None else [temperature, negative_temperature]
        self._fixed_scales: list[float] = [] if learn_temperature else [1 / each for each in given]
        self.log_scales = nn.ParameterList(
            nn.Parameter(torch.tensor(-math.log(each))) for each in given if learn_temperature
        )
        """log(1 / temperature) of the positive and, if it has its own, of the negatives; empty when fixed."""

    def _scales(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(1 / t of the positive, 1 / t of the negatives); a learned one never exceeds 100."""
        if self._fixed_scales:
            scales = [torch.full((), each, dtype=torch.float64, device=device) for each in self._fixed_scales]
            return scales[0], scales[-1]
        with torch.no_grad():
            for log_scale in self.log_scales:
                log_scale.clamp_(max=math.log(LARGEST_INVERSE_TEMPERATURE))
        return self.log_scales[0].exp(), self.log_scales[-1].exp()

    def forward(self, rows: Rows, candidates: Candidates) -> tuple[Tensor, dict[str, Tensor]]:
        """(weighted sum over rows, statistics). No collective, and no device-to-host sync on CUDA's kernel path."""
        with torch.autocast(rows.query_BD.device.type, enabled=False):
            return self._forward(rows, candidates)

    def _forward(self, rows: Rows, candidates: Candidates) -> tuple[Tensor, dict[str, Tensor]]:
        positive_scale, negative_scale = self._scales(rows.query_BD.device)
        prepared = self._prepare(rows, candidates, positive_scale, negative_scale)
        positive_B, rules = prepared.positive_B, self._rules(rows, candidates)
        if self.several_positives:
            positive_B = self._mean_of_positives(rows, candidates, positive_B, positive_scale)
        extra_B, extra_count_B = self._restricted(rows, candidates, prepared)
        weight_B = rows.weight_B.to(positive_B.dtype)
        if not self.form.counts_disliked:
            weight_B = torch.where(rows.feedback_B > 0, weight_B, 0.0)
        formula = self._formula(positive_scale.detach(), negative_scale.detach())

        def losses_of_rows(
            reduction_R: Tensor, negatives_R: Tensor, inputs: tuple[Tensor, ...], stripe: slice
        ) -> Tensor:
            if extra_B is not None:
                combine = log_add_exp if self.form.element == "exp" else torch.add
                reduction_R = combine(reduction_R, inputs[1])
                negatives_R = negatives_R + extra_count_B[stripe]
            row = RowValues(
                positive_R=inputs[0],
                reduction_R=reduction_R,
                negatives_R=negatives_R,
                positive_logq_R=rows.positive_logq_B[stripe],
                disliked_R=rows.feedback_B[stripe] < 0,
            )
            return row_losses(formula, row) * weight_B[stripe]

        problem = Problem(
            query_BD=prepared.query_BD,
            candidate_CD=prepared.candidate_CD,
            bias_C=prepared.bias_C,
            rules=rules,
            element=self.form.element,
            bf16_gradients=self.precision == "bf16",
        )
        inputs = (positive_B,) if extra_B is None else (positive_B, extra_B)
        value, reduction_B, negatives_B = fused_loss(
            problem,
            inputs,
            lambda *stripe: losses_of_rows(*stripe).sum(),
            self.blocking,
            self._workspace,
        )
        with torch.no_grad():
            row_loss_B = losses_of_rows(reduction_B, negatives_B, inputs, slice(None))
            statistics = loss_statistics(
                rows, candidates, prepared.query_BD, positive_B, reduction_B, negatives_B, row_loss_B, weight_B
            )
            statistics["temperature"] = 1 / positive_scale
            statistics["negative_temperature"] = 1 / negative_scale
        return value, statistics

    def _prepare(
        self, rows: Rows, candidates: Candidates, positive_scale: Tensor, negative_scale: Tensor
    ) -> _Prepared:
        dtype = torch.promote_types(rows.query_BD.dtype, torch.float32)
        query_BD, own_BD = rows.query_BD.to(dtype), rows.positive_BD.to(dtype)
        candidate_CD = candidates.embedding_CD.to(dtype)
        positive_B = (query_BD * own_BD).sum(dim=1) * positive_scale.to(dtype)
        bias_C = torch.zeros_like(candidates.logq_C, dtype=dtype)
        if self.correction != "none":
            bias_C = bias_C - candidates.logq_C.to(dtype)
        if self.correction == "all":
            positive_B = positive_B - rows.positive_logq_B.to(dtype)
        if self.name == "ccl":
            bias_C = bias_C - self.margin
        hidden_C = candidates.id_C < 0
        if candidates.visible_to_C is not None:
            hidden_C = hidden_C | (candidates.visible_to_C >= 0)
        bias_C = torch.where(hidden_C, -math.inf, bias_C)
        query_BD = query_BD * negative_scale.to(dtype)
        if self.name == "bpr":  # s_j - z inside the GEMM: one more column, so that z gets its gradient there
            query_BD = torch.cat([query_BD, -positive_B[:, None]], dim=1)
            candidate_CD = torch.cat([candidate_CD, torch.ones_like(candidate_CD[:, :1])], dim=1)
        return _Prepared(query_BD, candidate_CD, bias_C, positive_B)

    def _rules(self, rows: Rows, candidates: Candidates) -> list[MaskRule]:
        shown_C = candidates.id_C >= 0
        if candidates.visible_to_C is not None:
            shown_C = shown_C & (candidates.visible_to_C < 0)
        id_C = torch.where(shown_C, candidates.id_C, -1)
        rules = [MaskRule.one_value_a_row(id_C, rows.positive_id_B)]
        if self.mask_same_user:
            user_C = torch.where(shown_C, candidates.user_C, -1)
            rules.append(MaskRule.one_value_a_row(user_C, rows.user_B))
        if self.mask_history:
            if rows.history_values is None or rows.history_offsets is None:
                raise ValueError("mask_history is on but rows carry no history; pass values and offsets, or turn it off")
            rules.append(MaskRule.many_values_a_row(id_C, rows.history_values, rows.history_offsets))
        return rules

    def _restricted(
        self, rows: Rows, candidates: Candidates, prepared: _Prepared
    ) -> tuple[Tensor | None, Tensor]:
        """Reduction and number of the columns that the row's user alone sees (its disliked items)."""
        num_rows = rows.query_BD.shape[0]
        if candidates.visible_to_C is None:
            return None, prepared.positive_B.new_zeros(num_rows)
        visible_to_C = torch.where(candidates.id_C >= 0, candidates.visible_to_C, -1)
        row_P, column_P = matching_pairs(visible_to_C, rows.user_B)
        kept_P = candidates.id_C[column_P] != rows.positive_id_B[row_P]
        row_P, column_P = row_P[kept_P], column_P[kept_P]
        score_P = (prepared.query_BD[row_P] * prepared.candidate_CD[column_P]).sum(dim=1)
        if self.correction != "none":
            score_P = score_P - candidates.logq_C[column_P].to(score_P.dtype)
        count_B = torch.bincount(row_P, minlength=num_rows).to(score_P.dtype)
        match self.form.element:
            case "exp":
                return log_sum_exp_by_row(score_P, row_P, num_rows), count_B
            case "softplus":
                return sum_by_row(F.softplus(score_P), row_P, num_rows), count_B
            case "hinge":
                return sum_by_row(F.relu(score_P - self.margin), row_P, num_rows), count_B

    def _mean_of_positives(
        self, rows: Rows, candidates: Candidates, positive_B: Tensor, positive_scale: Tensor
    ) -> Tensor:
        """BSL's several positives: log of the mean of exp(s+) over the user's positives in the batch."""
        user_C = torch.where(candidates.id_C >= 0, candidates.user_C, -1)
        row_P, column_P = matching_pairs(user_C, rows.user_B)
        other_P = candidates.id_C[column_P] != rows.positive_id_B[row_P]
        row_P, column_P = row_P[other_P], column_P[other_P]
        dtype = positive_B.dtype
        score_P = (rows.query_BD.to(dtype)[row_P] * candidates.embedding_CD.to(dtype)[column_P]).sum(dim=1)
        score_P = score_P * positive_scale.to(dtype)
        if self.correction == "all":
            score_P = score_P - candidates.logq_C[column_P].to(dtype)
        num_rows = positive_B.shape[0]
        count_B = 1 + torch.bincount(row_P, minlength=num_rows).to(dtype)
        return log_add_exp(positive_B, log_sum_exp_by_row(score_P, row_P, num_rows)) - torch.log(count_B)

    def _formula(self, positive_scale: Tensor, negative_scale: Tensor) -> RowFormula:
        match self.name:
            case "ssm":
                return softmax_row
            case "sl":
                return decoupled_row
            case "bsl":
                paper_weight = positive_scale / negative_scale  # t2 / t1
                return bilateral_row(paper_weight if self.negative_weight is None else self.negative_weight)
            case "improved_logq":
                return improved_logq_row
            case "ntr" | "ssm_ntr":
                return not_to_recommend_row(self.disliked_weight)
            case "ccl":
                return cosine_contrastive_row(self.negative_weight)
            case "ova":
                return one_vs_all_row(self.negative_weight)
            case "bpr":
                return pairwise_row
