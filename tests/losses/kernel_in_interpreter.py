"""Run as a process with TRITON_INTERPRET=1: the Triton kernels on the CPU against the reference."""

import json
import sys
from typing import Any

import torch

from losses import build_loss
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


if __name__ == "__main__":
    json.dump([largest_error(*case) for case in CASES], sys.stdout)
