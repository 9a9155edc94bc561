"""The loss module: rows and candidates in, a scalar with gradients and monitoring statistics out.

Scores stay local, B x C, and are never materialised. Candidates are gathered by the caller
(`losses.gather_with_gradient`), or walked one rank at a time (`ring`).

Shapes: B rows, C columns.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from losses.choices import Backend, Correction, Precision
from losses.formulas.formula import Loss
from losses.hardness import Hardness
from losses.kernels.problem import Problem
from losses.kernels.sizes import Blocking, Workspace
from losses.kernels.thresholds import row_thresholds
from losses.kernels.walk import fused_loss, no_loss
from losses.kernels.widths import Valued, mean_over_widths
from losses.pairs import log_add_exp
from losses.ring import gather_columns, ring_reduction
from losses.row_terms import RowTerms
from losses.rows import Candidates, Rows
from losses.scores import Scored, mask_rules, mean_of_positives, restricted_negatives, score
from losses.statistics import loss_statistics

LARGEST_INVERSE_TEMPERATURE = 100.0
LARGEST_KERNEL_WIDTH = 256


class RetrievalLoss(nn.Module):
    """A loss over streamed negatives; made by `build_loss`, which documents the arguments."""

    def __init__(
        self,
        loss: Loss,
        *,
        temperature: float,
        correction: Correction,
        mask_same_user: bool,
        mask_history: bool,
        hardness: float,
        precision: Precision,
        learn_temperature: bool,
        ring: bool,
        backend: Backend,
        blocking: Blocking,
        widths: Sequence[int],
        renormalise: bool,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.correction: Correction = correction
        self.mask_same_user, self.mask_history = mask_same_user, mask_history
        self.hardness = hardness
        self.precision: Precision = precision
        self.ring = ring
        self.backend: Backend = backend
        self.blocking = blocking
        self.widths, self.renormalise = tuple(widths), renormalise
        self.watched = True
        """Whether a call brings statistics, some thirty small kernels; else they are empty."""
        self._workspace = Workspace()
        self.temperatures = given = loss.temperatures(temperature)
        """Of the positive and, if it has its own, of the negatives; learned ones begin there."""
        self._fixed_scales: list[float] = [] if learn_temperature else [1 / each for each in given]
        self.log_scales = nn.ParameterList(
            nn.Parameter(torch.tensor(-math.log(each))) for each in given if learn_temperature
        )
        """log(1 / temperature) of the positive and, if it has its own, of the negatives."""

    @property
    def log_q_per(self) -> Literal["draw", "step"]:
        """What log Q has to be of: one draw, or the expected number of columns of a step, which
        makes the negatives' log-sum-exp that of the whole catalog. Between scores that are all
        corrected the constant cancels; some losses count their negatives themselves."""
        uncorrected = self.correction == "negatives" and not self.loss.counts_negatives
        return "step" if uncorrected else "draw"

    def forward(self, rows: Rows, candidates: Candidates) -> Valued:
        """(weighted sum over rows, statistics where `watched`); of several widths see
        `mean_over_widths`. `candidates` are equal on all ranks and no collective runs here; with
        `ring` they are this rank's own, as many on every rank, and forward and backward are
        collective."""
        with torch.autocast(rows.query_BD.device.type, enabled=False):
            if not self.widths:
                return self._forward(rows, candidates, self.watched)
            return mean_over_widths(
                self._forward, rows, candidates, self.widths, self.renormalise, self.watched
            )

    def _forward(self, rows: Rows, candidates: Candidates, watched: bool) -> Valued:
        positive_scale, negative_scale = self._scales(rows.query_BD.device)
        threshold_B = None
        if self.loss.has_threshold:
            corrected = self.correction != "none"
            threshold_B = row_thresholds(rows, candidates, self.loss.top, corrected)
        scored = self._score(rows, candidates, positive_scale, negative_scale, threshold_B)
        positive_B = scored.positive_B
        if self.loss.averages_positives:
            positive_B = mean_of_positives(
                rows, candidates, scored, positive_scale, self.correction
            )
        temperature = 1 / positive_scale
        if self.loss.element == "sigmoid":
            temperature = torch.full_like(temperature, self.temperatures[0])
        temperatures = (temperature, positive_scale / negative_scale)
        inputs: tuple[Tensor, ...] = (
            positive_B,
            *(each.to(positive_B.dtype).expand_as(positive_B) for each in temperatures),
        )
        problem = self._problem(rows, candidates, scored)
        sharp, hardness = scored, None
        if self.hardness:
            sharp, problem, hardness = self._harden(rows, candidates, scored, problem)
        restricted_count_B = None
        if self._restricted(candidates):
            restricted_B, restricted_count_B = restricted_negatives(
                rows, candidates, sharp, self.loss.element, self._power
            )
            inputs = (*inputs, restricted_B)
        weight_B = rows.weight_B.to(positive_B.dtype)
        if not self.loss.counts_disliked:
            weight_B = torch.where(rows.feedback_B > 0, weight_B, 0.0)
        terms = RowTerms(self.loss, rows, weight_B, restricted_count_B, hardness, threshold_B)
        value, reduction_B, negatives_B = self._reduce(problem, inputs, terms)
        if not watched:
            return value, {}
        with torch.no_grad():
            whole = slice(None)
            statistics = loss_statistics(
                rows,
                candidates,
                scored,
                problem.columns_seen(),
                reduction_B if hardness is None else hardness.of_sharpened(reduction_B, whole),
                negatives_B,
                positive_B,
                weight_B,
                terms.losses(reduction_B, negatives_B, inputs, whole),
            )
            statistics["temperature"] = temperature
            statistics["negative_temperature"] = 1 / negative_scale
        return value, statistics

    def _scales(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(1 / t of the positive, 1 / t of the negatives); a learned one never exceeds 100. Where t
        is of the element function, scores are as they are."""
        if self.loss.element == "sigmoid":
            one = torch.ones((), dtype=torch.float64, device=device)
            return one, one
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

    @property
    def _power(self) -> float:
        """Of `sigmoid`."""
        return 1 / self.temperatures[0]

    def _score(
        self,
        rows: Rows,
        candidates: Candidates,
        positive_scale: Tensor,
        negative_scale: Tensor,
        threshold_B: Tensor | None,
    ) -> Scored:
        subtracted_B: Tensor | Literal["positive"] | None = None
        if self.loss.subtracts_positive:
            subtracted_B = "positive"
        elif self.loss.subtracts_threshold:
            subtracted_B = threshold_B
        return score(
            rows,
            candidates,
            positive_scale,
            negative_scale,
            self.correction,
            margin=self.loss.score_margin,
            subtracted_B=subtracted_B,
            copies_in_bias=self.loss.sums_logarithm,
        )

    def _problem(self, rows: Rows, candidates: Candidates, scored: Scored) -> Problem:
        """Collective with `ring`: ids, users and bias of all ranks' columns are gathered."""
        bias_C = scored.bias_C
        if self.ring:
            candidates, bias_C = gather_columns(candidates, bias_C)  # collective
        copies_C = candidates.copies_C
        return Problem(
            query_BD=scored.query_BD,
            candidate_CD=scored.candidate_CD,
            bias_C=bias_C,
            rules=mask_rules(rows, candidates, self.mask_same_user, self.mask_history),
            element=self.loss.element,
            power=self._power,
            copies_C=None if copies_C is None else copies_C.to(bias_C.dtype),
            bf16=self.precision == "bf16",
        )

    def _restricted(self, candidates: Candidates) -> bool:
        """Whether rows have negatives that their user alone sees."""
        return candidates.visible_to_C is not None and self.loss.sees_disliked

    @torch.no_grad()
    def _reduction(
        self, rows: Rows, candidates: Candidates, scored: Scored, problem: Problem
    ) -> Tensor:
        """[B] over all of a row's negatives, without gradient. Collective with `ring`."""
        reduction_B, _ = self._walked(problem)
        if self._restricted(candidates):
            restricted_B, _ = restricted_negatives(
                rows, candidates, scored, self.loss.element, self._power
            )
            reduction_B = log_add_exp(reduction_B, restricted_B)
        return reduction_B

    def _harden(
        self, rows: Rows, candidates: Candidates, scored: Scored, problem: Problem
    ) -> tuple[Scored, Problem, Hardness]:
        """(scores and problem sharpened, what makes of their reduction that of harder negatives).
        Collective with `ring`: two more rounds."""
        beta = self.hardness
        sharp, mild, flat = (scored.times(factor) for factor in (1 + beta, beta, 0.0))
        mild_B = self._reduction(
            rows, candidates, mild, replace(problem, query_BD=mild.query_BD.detach())
        )
        no_scores = replace(
            problem,
            query_BD=torch.zeros_like(problem.query_BD[:, :1]),
            candidate_CD=torch.zeros_like(problem.candidate_CD[:, :1]),
        )
        flat_B = self._reduction(rows, candidates, flat, no_scores)
        hardness = Hardness.of_reductions(beta, mild_B, flat_B)
        return sharp, replace(problem, query_BD=sharp.query_BD), hardness

    def _reduce(
        self, problem: Problem, inputs: tuple[Tensor, ...], terms: RowTerms
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, reduction_B, negatives_B) by the walk that fits. Collective with `ring`."""
        if not (self.ring or self._takes_kernel(problem)):
            return fused_loss(problem, inputs, terms, self.blocking, self._workspace, self.backend)
        reduction_B, negatives_B = self._walked(problem)
        value = terms(reduction_B, negatives_B, inputs, slice(None))
        return value, reduction_B.detach(), negatives_B

    def _walked(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """(reduction_B, negatives_B); gradients but where plain torch or the compiled kernel
        walks. Collective with `ring`."""
        if self.ring:
            return ring_reduction(problem, self.blocking, self._workspace, self.backend)
        if self._takes_kernel(problem):
            from losses.kernels.triton_launch import (
                kernel_reduction,  # triton is no CPU user's dependency
            )

            return kernel_reduction(problem)
        detached = replace(
            problem,
            query_BD=problem.query_BD.detach(),
            candidate_CD=problem.candidate_CD.detach(),
        )
        _, reduction_B, negatives_B = fused_loss(
            detached, (), no_loss, self.blocking, self._workspace, self.backend
        )
        return reduction_B, negatives_B

    def _takes_kernel(self, problem: Problem) -> bool:
        """Whether the Triton kernel walks this problem. Raises ValueError where it was asked for
        and cannot."""
        query_BD = problem.query_BD
        width, device = query_BD.shape[1], query_BD.device.type
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # on the CPU, for tests
        reasons = [
            (device == "cpu" and not interpreted, "the tensors are on a CPU"),
            (query_BD.dtype != torch.float32, f"embeddings are {query_BD.dtype}"),
            (width > LARGEST_KERNEL_WIDTH, f"width {width} is over {LARGEST_KERNEL_WIDTH}"),
            (problem.element == "sigmoid", "the loss sums powers of sigmoids"),
            (len(problem.rules) > 2, "mask_same_user and mask_history are both on"),
        ]
        why_not = [reason for holds, reason in reasons if holds]
        if self.backend == "triton" and why_not:
            raise ValueError(f"backend is 'triton' but {' and '.join(why_not)}; use 'auto'")
        return self.backend == "triton" or (
            self.backend == "auto" and device == "cuda" and not why_not
        )
