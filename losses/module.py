"""The loss module: rows and candidates in, a scalar with gradients and monitoring statistics out.

Scores stay local, B x C, and are never materialised. Candidates are gathered by the caller
(`losses.gather_with_gradient`), or walked one rank at a time (`ring`).

Shapes: B rows, C columns.
"""

import math
import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from losses.formulas import (
    Correction,
    Form,
    LossName,
    RowFormula,
    RowValues,
    bilateral_row,
    cosine_contrastive_row,
    decoupled_row,
    form_of,
    improved_logq_row,
    not_to_recommend_row,
    one_vs_all_row,
    pairwise_row,
    row_losses,
    softmax_row,
)
from losses.kernels.problem import Problem
from losses.kernels.sizes import Blocking, Workspace
from losses.kernels.walk import Backend, fused_loss
from losses.pairs import log_add_exp
from losses.ring import gather_columns, ring_reduction
from losses.rows import Candidates, Rows
from losses.scores import (
    Scored,
    mask_rules,
    mean_of_positives,
    restricted_negatives,
    score,
)
from losses.statistics import loss_statistics

Precision = Literal["fp32", "bf16"]
LARGEST_INVERSE_TEMPERATURE = 100.0
LARGEST_KERNEL_WIDTH = 256


@dataclass(frozen=True)
class RowTerms:
    """Loss of any part of the rows, from their reduction: the `RowLoss` of the walk.

    Row inputs, in order: positive score, factor of the negatives, and, if there are columns that
    one user alone sees, their reduction.
    """

    formula: RowFormula
    form: Form
    rows: Rows
    weight_B: Tensor
    restricted_count_B: Tensor | None

    def losses(
        self, reduction_R: Tensor, negatives_R: Tensor, inputs: tuple[Tensor, ...], part: slice
    ) -> Tensor:
        """[R] weighted losses of the rows `part`."""
        if self.restricted_count_B is not None:
            combine = log_add_exp if self.form.element == "exp" else torch.add
            reduction_R = combine(reduction_R, inputs[2])
            negatives_R = negatives_R + self.restricted_count_B[part]
        weight_R = self.weight_B[part]
        counts_R = weight_R != 0  # padding rows may hold anything, infinities and NaN too
        log_q_R = self.rows.positive_logq_B[part].to(inputs[0].dtype)
        row = RowValues(
            positive_R=inputs[0],
            reduction_R=reduction_R,
            negatives_R=negatives_R,
            negative_factor_R=inputs[1],
            positive_logq_R=torch.where(counts_R, log_q_R, 0.0),
            disliked_R=self.rows.feedback_B[part] < 0,
        )
        return torch.where(counts_R, row_losses(self.formula, row), 0.0) * weight_R

    def __call__(
        self, reduction_R: Tensor, negatives_R: Tensor, inputs: tuple[Tensor, ...], part: slice
    ) -> Tensor:
        """Their sum."""
        return self.losses(reduction_R, negatives_R, inputs, part).sum()


def _interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


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
        ring: bool,
        backend: Backend,
        blocking: Blocking,
    ) -> None:
        super().__init__()
        self.name: LossName = name
        self.form = form_of(name)
        self.negative_weight, self.margin = negative_weight, margin
        self.disliked_weight = disliked_weight
        self.correction: Correction = correction
        self.mask_same_user, self.mask_history = mask_same_user, mask_history
        self.several_positives = several_positives
        self.precision: Precision = precision
        self.ring = ring
        self.backend: Backend = backend
        self.blocking = blocking
        self.watched = True
        """Whether a call brings statistics, some thirty small kernels; else they are empty."""
        self._workspace = Workspace()
        given = (
            [temperature] if negative_temperature is None else [temperature, negative_temperature]
        )
        self._fixed_scales: list[float] = [] if learn_temperature else [1 / each for each in given]
        self.log_scales = nn.ParameterList(
            nn.Parameter(torch.tensor(-math.log(each))) for each in given if learn_temperature
        )
        """log(1 / temperature) of the positive and, if it has its own, of the negatives."""

    @property
    def log_q_per(self) -> Literal["draw", "step"]:
        """What log Q has to be of: one draw, or the expected number of columns of a step, which
        makes the negatives' log-sum-exp that of the whole catalog. Between scores that are all
        corrected the constant cancels; improved_logq counts its negatives itself."""
        uncorrected = self.correction == "negatives" and self.name != "improved_logq"
        return "step" if uncorrected else "draw"

    def forward(self, rows: Rows, candidates: Candidates) -> tuple[Tensor, dict[str, Tensor]]:
        """(weighted sum over rows, statistics where `watched`).

        `candidates` are equal on all ranks and no collective runs here; with `ring` they are this
        rank's own, as many on every rank, and forward and backward are collective.
        """
        with torch.autocast(rows.query_BD.device.type, enabled=False):
            return self._forward(rows, candidates)

    def _forward(self, rows: Rows, candidates: Candidates) -> tuple[Tensor, dict[str, Tensor]]:
        positive_scale, negative_scale = self._scales(rows.query_BD.device)
        scored = self._score(rows, candidates, positive_scale, negative_scale)
        positive_B = scored.positive_B
        if self.several_positives:
            positive_B = mean_of_positives(
                rows, candidates, scored, positive_scale, self.correction
            )
        factor = self._negative_factor(positive_scale, negative_scale)
        inputs: tuple[Tensor, ...] = (positive_B, factor.to(positive_B.dtype).expand_as(positive_B))
        restricted_count_B = None
        if candidates.visible_to_C is not None and self.form.sees_restricted:
            restricted_B, restricted_count_B = restricted_negatives(
                rows, candidates, scored, self.form.element
            )
            inputs = (*inputs, restricted_B)
        weight_B = rows.weight_B.to(positive_B.dtype)
        if not self.form.counts_disliked:
            weight_B = torch.where(rows.feedback_B > 0, weight_B, 0.0)
        terms = RowTerms(self._formula(), self.form, rows, weight_B, restricted_count_B)
        problem = self._problem(rows, candidates, scored)
        value, reduction_B, negatives_B = self._reduce(problem, inputs, terms)
        if not self.watched:
            return value, {}
        with torch.no_grad():
            statistics = loss_statistics(
                rows,
                candidates,
                scored,
                torch.isfinite(problem.bias_C).sum(),
                reduction_B,
                negatives_B,
                positive_B,
                weight_B,
                terms.losses(reduction_B, negatives_B, inputs, slice(None)),
            )
            statistics["temperature"] = 1 / positive_scale
            statistics["negative_temperature"] = 1 / negative_scale
        return value, statistics

    def _scales(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(1 / t of the positive, 1 / t of the negatives); a learned one never exceeds 100."""
        if self._fixed_scales:
            scales = [
                torch.full((), each, dtype=torch.float64, device=device)
                for each in self._fixed_scales
            ]
            return scales[0], scales[-1]
        with torch.no_grad():
            for log_scale in self.log_scales:
                log_scale.clamp_(max=math.log(LARGEST_INVERSE_TEMPERATURE))
        return self.log_scales[0].exp(), self.log_scales[-1].exp()

    def _score(
        self, rows: Rows, candidates: Candidates, positive_scale: Tensor, negative_scale: Tensor
    ) -> Scored:
        return score(
            rows,
            candidates,
            positive_scale,
            negative_scale,
            self.correction,
            margin=self.margin if self.name == "ccl" else 0.0,
            subtract_positive=self.name == "bpr",
        )

    def _problem(self, rows: Rows, candidates: Candidates, scored: Scored) -> Problem:
        """Collective with `ring`: ids, users and bias of all ranks' columns are gathered."""
        bias_C = scored.bias_C
        if self.ring:
            candidates, bias_C = gather_columns(candidates, bias_C)  # collective
        return Problem(
            query_BD=scored.query_BD,
            candidate_CD=scored.candidate_CD,
            bias_C=bias_C,
            rules=mask_rules(rows, candidates, self.mask_same_user, self.mask_history),
            element=self.form.element,
            bf16=self.precision == "bf16",
        )

    def _reduce(
        self, problem: Problem, inputs: tuple[Tensor, ...], terms: RowTerms
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, reduction_B, negatives_B) by the walk that fits. Collective with `ring`."""
        if self.ring:
            reduction_B, negatives_B = ring_reduction(
                problem, self.blocking, self._workspace, self.backend
            )
        elif self._takes_kernel(problem):
            from losses.kernels.triton_launch import (
                kernel_reduction,  # triton is no CPU user's dependency
            )

            reduction_B, negatives_B = kernel_reduction(problem)
        else:
            return fused_loss(problem, inputs, terms, self.blocking, self._workspace, self.backend)
        value = terms(reduction_B, negatives_B, inputs, slice(None))
        return value, reduction_B.detach(), negatives_B

    def _takes_kernel(self, problem: Problem) -> bool:
        """Whether the Triton kernel walks this problem. Raises ValueError where it was asked for
        and cannot."""
        query_BD = problem.query_BD
        width, device = query_BD.shape[1], query_BD.device.type
        reasons = [
            (device == "cpu" and not _interpreted(), "the tensors are on a CPU"),
            (query_BD.dtype != torch.float32, f"embeddings are {query_BD.dtype}"),
            (width > LARGEST_KERNEL_WIDTH, f"width {width} is over {LARGEST_KERNEL_WIDTH}"),
            (len(problem.rules) > 2, "mask_same_user and mask_history are both on"),
        ]
        why_not = [reason for holds, reason in reasons if holds]
        if self.backend == "triton" and why_not:
            raise ValueError(f"backend is 'triton' but {' and '.join(why_not)}; use 'auto'")
        return self.backend == "triton" or (
            self.backend == "auto" and device == "cuda" and not why_not
        )

    def _negative_factor(self, positive_scale: Tensor, negative_scale: Tensor) -> Tensor:
        """0-d factor of the negatives' part: w of bsl, ccl and ova; bsl's own is t2 / t1."""
        if self.negative_weight is not None:
            return torch.full_like(positive_scale, self.negative_weight)
        if self.name == "bsl":
            return positive_scale / negative_scale
        return torch.ones_like(positive_scale)

    def _formula(self) -> RowFormula:
        match self.name:
            case "ssm":
                return softmax_row
            case "sl":
                return decoupled_row
            case "bsl":
                return bilateral_row
            case "improved_logq":
                return improved_logq_row
            case "ntr" | "ssm_ntr":
                return not_to_recommend_row(self.disliked_weight)
            case "ccl":
                return cosine_contrastive_row(mean=self.negative_weight is not None)
            case "ova":
                return one_vs_all_row(mean=self.negative_weight is not None)
            case "bpr":
                return pairwise_row
