"""A loss and its gradients by one walk over stripes of rows: which walk, what becomes of a stripe.

A row's coefficient is known once the row has met all its columns. So each stripe is reduced over
all columns, its rows' losses are differentiated, and gradients are spread before the next stripe.

Shapes: B rows, C columns, D width, R rows of a stripe.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from losses.choices import Backend
from losses.kernels.blocked import Walk
from losses.kernels.compiled import CompiledWalk
from losses.kernels.native import load_kernel
from losses.kernels.problem import Problem, choose_scaling
from losses.kernels.sizes import Blocking, Workspace

RowLoss = Callable[[Tensor, Tensor, tuple[Tensor, ...], slice], Tensor]
"""(reduction_R, negatives_R, row inputs each [R], which rows) -> their weighted loss, a scalar."""


def no_loss(part_R: Tensor, _: Tensor, __: tuple[Tensor, ...], ___: slice) -> Tensor:
    """The `RowLoss` of a walk that is made for its reduction."""
    return part_R.new_zeros(())


class Stripe(Protocol):
    """Rows of a walk between their reduction and their gradients."""

    hits_R: Tensor

    def reduce(self) -> None: ...

    def reduction(self) -> Tensor: ...

    def spread(self, reduction_gradient_R: Tensor) -> None: ...


class StripeWalk(Protocol):
    """One forward over a problem; both backends have this form."""

    wanted: bool
    stripes: list[slice]
    valid_columns: Tensor

    @property
    def query_BD(self) -> Tensor: ...

    @property
    def query_gradient_BD(self) -> Tensor: ...

    def stripe(self, rows: slice) -> Stripe: ...

    def candidate_gradient(self, scale: Tensor) -> Tensor: ...


def make_walk(
    problem: Problem, blocking: Blocking, workspace: Workspace, backend: Backend, wanted: bool
) -> StripeWalk:
    """The compiled walk where it applies, else the one in plain torch.

    The kernel has `exp` in float32 on CPUs, with gradients, for scores whose spread is bounded.
    Raises ValueError if the backend is `compiled` and there is none for the loss, the tensors or
    the machine. The spread depends on the data, so it is no reason to stop.
    """
    scaling = choose_scaling(problem)
    if not wanted or backend == "blocked" or (problem.element == "exp" and not scaling.bounded):
        return Walk(problem, scaling, blocking, workspace, wanted)
    query_BD = problem.query_BD
    reasons = [
        (problem.element != "exp", "the loss sums no exponentials"),
        (query_BD.device.type != "cpu", f"the tensors are on {query_BD.device}"),
        (query_BD.dtype != torch.float32, f"embeddings are {query_BD.dtype}"),
    ]
    why_not = [reason for holds, reason in reasons if holds]
    kernel, missing = (None, "") if why_not else load_kernel()
    if kernel is not None:
        return CompiledWalk(problem, scaling, kernel, blocking, workspace)
    if backend == "compiled":
        raise ValueError(
            f"backend is 'compiled' but {' and '.join(why_not) or missing}; use 'auto' or 'blocked'"
        )
    return Walk(problem, scaling, blocking, workspace, wanted)


def fused_loss(
    problem: Problem,
    row_inputs: tuple[Tensor, ...],
    row_loss: RowLoss,
    blocking: Blocking,
    workspace: Workspace,
    backend: Backend,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, reduction_B, negatives_B) of the problem; the loss has gradients, the others none.

    `row_inputs` are [B] tensors a row's loss depends on beside its reduction, gradient wanted.
    `reduction_B` is the log-sum-exp (-inf without negatives) or the plain sum; `negatives_B` counts
    unmasked columns.
    """
    value, reduction_B, negatives_B = _FusedLoss.apply(  # type: ignore[no-untyped-call]
        problem.query_BD,
        problem.candidate_CD,
        problem,
        row_loss,
        blocking,
        workspace,
        backend,
        *row_inputs,
    )
    return value, reduction_B, negatives_B


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        query_BD: Tensor,
        candidate_CD: Tensor,
        problem: Problem,
        row_loss: RowLoss,
        blocking: Blocking,
        workspace: Workspace,
        backend: Backend,
        *row_inputs: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = any(context.needs_input_grad)
        walk = make_walk(problem, blocking, workspace, backend, wanted)
        detached = tuple(row_input.detach() for row_input in row_inputs)
        value, reduction_B, negatives_B, input_gradients = run_stripes(walk, row_loss, detached)
        context.walk = walk
        context.save_for_backward(*input_gradients)
        context.mark_non_differentiable(reduction_B, negatives_B)
        return value, reduction_B, negatives_B

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = output_gradients[0]
        walk: StripeWalk = context.walk
        candidate_gradient_CD = (
            walk.candidate_gradient(scale) if context.needs_input_grad[1] else None
        )
        scaled = [gradient * scale for gradient in context.saved_tensors]
        return (walk.query_gradient_BD * scale, candidate_gradient_CD, *(None,) * 5, *scaled)


def run_stripes(
    walk: StripeWalk, row_loss: RowLoss, row_inputs: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Loss, reduction_B, negatives_B and the gradients of the row inputs."""
    value = walk.query_BD.new_zeros(())
    reduction_B = walk.query_BD.new_empty(walk.query_BD.shape[0])
    negatives_B = torch.empty_like(reduction_B)
    input_gradients = [torch.zeros_like(row_input) for row_input in row_inputs]
    for rows in walk.stripes:
        stripe = walk.stripe(rows)
        stripe.reduce()
        negatives_B[rows] = walk.valid_columns - stripe.hits_R
        reduction_B[rows] = stripe.reduction()
        with torch.enable_grad():
            leaves = [each[rows].clone().requires_grad_() for each in (reduction_B, *row_inputs)]
            stripe_value = row_loss(leaves[0], negatives_B[rows], tuple(leaves[1:]), rows)
        value += stripe_value.detach()
        if not walk.wanted:
            continue
        reduction_gradient_R, *others = torch.autograd.grad(
            stripe_value, leaves, allow_unused=True, materialize_grads=True
        )
        for gradient, other in zip(input_gradients, others, strict=True):
            gradient[rows] = other
        stripe.spread(reduction_gradient_R)
    return value, reduction_B, negatives_B, input_gradients
