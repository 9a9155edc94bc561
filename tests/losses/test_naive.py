"""The bench's naive side computes what the streaming loss does."""

from typing import Any

import pytest
import torch

from losses import build_loss
from losses.choices import LOSSES
from tests.losses.cases import leaves
from trainer.bench.loss import LossBenchArguments, make_problem
from trainer.bench.naive import naive_loss

SETTINGS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in LOSSES] + [
    ("bsl", {"negative_temperature": 0.3}),
    ("ccl", {"margin": 0.1, "negative_weight": 3.0}),
    ("ssm", {"correction": "negatives"}),
]


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_it_equals_the_streaming_loss(name: Any, settings: dict[str, Any]) -> None:
    rows, candidates = make_problem(LossBenchArguments(rows=20, columns=50, dim=8, items=30))
    loss = build_loss(name, **settings)
    value, _ = loss(rows, candidates)
    naive = naive_loss(loss, rows, candidates)
    torch.testing.assert_close(naive, value)
    for gradient, wanted in zip(
        torch.autograd.grad(naive, leaves(rows, candidates)),
        torch.autograd.grad(value, leaves(rows, candidates)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
