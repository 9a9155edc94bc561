"""Run as a process with TRITON_INTERPRET=1: the Triton kernels on the CPU against the reference."""

import json
import sys
from typing import Any

import torch

from losses import build_loss
from losses.kernels.hits import MaskRule, RowValues
from losses.kernels.problem import Problem
from tests.losses.cases import cast, leaves, make_case, reference

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ssm", {}, {"num_rows": 70, "num_columns": 150, "width": 20, "num_ids": 30}),
    ("ssm", {"temperature": 0.01, "mask_same_user": True}, {}),
    ("bsl", {"negative_temperature": 0.2}, {"num_rows": 1, "num_columns": 1, "num_ids": 1}),
    ("improved_logq", {}, {"copies": True}),
    ("ccl", {"margin": 0.1, "negative_weight": 3.0}, {"restricted": False, "copies": True}),
    ("ova", {}, {"num_rows": 65, "num_columns": 66}),
    ("ova", {"mask_same_user": True}, {"copies": True}),
    ("bpr", {"correction": "all"}, {"width": 16, "copies": True}),
    ("sl", {"mask_history": True}, {}),
    ("ntr", {"mask_same_user": True}, {"num_users": 3}),
    ("ssm_ntr", {"alpha": 2.0}, {}),
    ("ssm_ntr", {"hardness": 0.5, "mask_same_user": True}, {"copies": True}),
    ("bsl", {"hardness": 1.0}, {"num_rows": 40, "num_columns": 90, "num_ids": 30}),
    ("ssm", {"precision": "bf16"}, {"num_rows": 40, "num_columns": 90, "width": 32}),
]


def largest_error(name: Any, chosen: dict[str, Any], case: dict[str, Any]) -> float:
    """Largest error of value and gradients, relative to the largest entry."""
    rows, candidates = make_case(**case, dtype=torch.float32)
    expected_value, expected = reference(name, chosen, rows, candidates)
    rows, candidates = cast(rows, candidates, torch.float32)
    value, _ = build_loss(name, **chosen, backend="triton")(rows, candidates)
    gradients = torch.autograd.grad(value, leaves(rows, candidates), materialize_grads=True)
    error = abs(value.item() - expected_value.item()) / max(1.0, abs(expected_value.item()))
    for gradient, wanted in zip(gradients, expected, strict=True):
        distance = (gradient.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)
        error = max(error, distance.item())
    return error


def error_of_rising_scores(device: str, signed: bool = False) -> float:
    """Largest relative error of the reduction and its gradients where each tile of columns has
    scores that float32 cannot hold less those of the tile before; `signed`: rows whose gradient is
    negative too. The problem is one of large ones, which are walked with a fixed shift at first."""
    from losses.kernels.triton_launch import kernel_reduction

    generator = torch.Generator().manual_seed(3)
    query_BD = torch.nn.functional.normalize(torch.randn(70, 16, generator=generator))
    candidate_CD = torch.randn(300, 16, generator=generator)
    candidate_CD[:, 0] += torch.arange(300) * 2.0
    bias_C = torch.rand(300, generator=generator)
    bias_C[:64] = -torch.inf
    own_B = torch.arange(70)
    gradient_B = torch.rand(70, generator=generator) - (0.5 if signed else 0.0)
    leaves = [each.to(device).requires_grad_() for each in (query_BD, candidate_CD)]
    rule = MaskRule(torch.arange(300).to(device), RowValues.one_a_row(own_B.to(device)))
    problem = Problem(leaves[0], leaves[1], bias_C.to(device), [rule], "exp")
    reduction_B, _ = kernel_reduction(problem)
    gradients = torch.autograd.grad(reduction_B, leaves, gradient_B.to(device))
    wanted = [each.detach().double().requires_grad_() for each in (query_BD, candidate_CD)]
    score_BC = wanted[0] @ wanted[1].T + bias_C
    score_BC = score_BC.masked_fill(own_B[:, None] == torch.arange(300), -torch.inf)
    expected_B = torch.logsumexp(score_BC, 1)
    expected = torch.autograd.grad(expected_B, wanted, gradient_B.double())
    pairs = zip((reduction_B, *gradients), (expected_B, *expected), strict=True)
    return max(
        ((one.detach().cpu() - other.detach()).abs().max() / other.detach().abs().max()).item()
        for one, other in pairs
    )


if __name__ == "__main__":
    from losses.kernels import triton_launch

    errors = [largest_error(*case) for case in CASES]
    triton_launch.LARGE = 1
    again = [largest_error(*case) for case in CASES[:2]]
    rising = [error_of_rising_scores("cpu", signed=signed) for signed in (False, True)]
    json.dump({"cases": errors, "large": again, "rising": rising}, sys.stdout)
