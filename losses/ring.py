"""The walk one rank at a time: no rank ever holds all W * C candidates of D floats.

Each rank's candidates visit all ranks in turn (broadcast), in forward for the reduction and again
in backward for the gradients, which are summed back to their owner. 4 GEMMs and 2 exps instead of 3
and 1; ids, logQ and users of all columns, 8 bytes each, are gathered once.

Shapes: B rows, X columns of one rank, C = W * X columns, D width.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from losses.choices import Backend
from losses.gather import gather_without_gradient
from losses.kernels.problem import Problem
from losses.kernels.sizes import Blocking, Workspace
from losses.kernels.walk import make_walk, no_loss, run_stripes
from losses.pairs import log_add_exp
from losses.rows import Candidates


def gather_columns(candidates: Candidates, bias_X: Tensor) -> tuple[Candidates, Tensor]:
    """Ids, users, copies and bias of all ranks' columns, beside this rank's own embeddings.
    Collective."""
    visible_to_C = candidates.visible_to_C
    if visible_to_C is not None:
        visible_to_C = gather_without_gradient(visible_to_C)  # collective
    copies_C = candidates.copies_C
    if copies_C is not None:
        copies_C = gather_without_gradient(copies_C)  # collective
    everywhere = replace(
        candidates,
        id_C=gather_without_gradient(candidates.id_C),  # collective
        user_C=gather_without_gradient(candidates.user_C),  # collective
        visible_to_C=visible_to_C,
        copies_C=copies_C,
    )
    return everywhere, gather_without_gradient(bias_X)  # collective


def ring_reduction(
    problem: Problem, blocking: Blocking, workspace: Workspace, backend: Backend
) -> tuple[Tensor, Tensor]:
    """(reduction_B with gradient, negatives_B) over the columns of all ranks.

    `problem.candidate_CD` holds this rank's X columns; `bias_C` and the rules those of all ranks in
    rank order. Collective in forward and in backward: every rank of the default group calls it.
    """
    reduction_B, negatives_B = _RingReduction.apply(  # type: ignore[no-untyped-call]
        problem.query_BD, problem.candidate_CD, problem, blocking, workspace, backend
    )
    return reduction_B, negatives_B


class _RingReduction(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        query_BD: Tensor,
        candidate_XD: Tensor,
        problem: Problem,
        blocking: Blocking,
        workspace: Workspace,
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        reduction_B, negatives_B = None, torch.zeros_like(query_BD[:, 0])
        for rank in range(_world_size()):
            visit = _visit(problem, rank)  # collective
            walk = make_walk(visit, blocking, workspace, backend, wanted=False)
            _, part_B, part_negatives_B, _ = run_stripes(walk, no_loss, ())
            negatives_B = negatives_B + part_negatives_B
            if reduction_B is None:
                reduction_B = part_B
            elif problem.sums_logarithm:
                reduction_B = log_add_exp(reduction_B, part_B)
            else:
                reduction_B = reduction_B + part_B
        assert reduction_B is not None
        context.arguments = (problem, blocking, workspace, backend)
        context.save_for_backward(reduction_B)
        context.mark_non_differentiable(negatives_B)
        return reduction_B, negatives_B

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_B = gradients[0]
        problem, blocking, workspace, backend = context.arguments
        (reduction_B,) = context.saved_tensors

        def part_loss(part_R: Tensor, _: Tensor, __: tuple[Tensor, ...], rows: slice) -> Tensor:
            """Its gradient on one rank's reduction is that of the whole reduction."""
            share_R = gradient_B[rows]
            if problem.sums_logarithm:  # d LSE / d LSE_part = exp(LSE_part - LSE)
                fraction_R = torch.exp(part_R.detach() - reduction_B[rows])
                share_R = torch.where(torch.isneginf(part_R.detach()), 0.0, share_R * fraction_R)
            return (share_R * torch.where(torch.isneginf(part_R), 0.0, part_R)).sum()

        query_gradient_BD = torch.zeros_like(problem.query_BD)
        own_gradient_XD = query_gradient_BD.new_empty(0)
        one = gradient_B.new_ones(())
        for rank in range(_world_size()):
            visit = _visit(problem, rank)  # collective
            walk = make_walk(visit, blocking, workspace, backend, wanted=True)
            run_stripes(walk, part_loss, ())
            query_gradient_BD += walk.query_gradient_BD
            part_XD = walk.candidate_gradient(one)
            if dist.is_initialized():
                dist.reduce(part_XD, dst=rank)  # collective
            if rank == _rank():
                own_gradient_XD = part_XD
        return query_gradient_BD, own_gradient_XD, None, None, None, None


def _visit(problem: Problem, rank: int) -> Problem:
    """The problem over one rank's columns alone. Collective: broadcast of its candidates."""
    candidate_XD = problem.candidate_CD.detach().contiguous()
    columns = slice(rank * candidate_XD.shape[0], (rank + 1) * candidate_XD.shape[0])
    if dist.is_initialized():
        if rank != _rank():
            candidate_XD = torch.empty_like(candidate_XD)
        dist.broadcast(candidate_XD, src=rank)  # collective
    return replace(
        problem,
        candidate_CD=candidate_XD,
        bias_C=problem.bias_C[columns],
        copies_C=None if problem.copies_C is None else problem.copies_C[columns],
        rules=[replace(rule, key_C=rule.key_C[columns]) for rule in problem.rules],
    )


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
