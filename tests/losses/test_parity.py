"""The streaming losses against the dense float64 reference: value and every gradient."""

import itertools
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses import LOSSES, LossName
from tests.losses.cases import cast, make_case, reference, streamed

VARIANTS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in get_args(LossName)] + [
    ("ssm", {"correction": "none"}),
    ("ssm", {"correction": "negatives", "mask_same_user": True, "mask_history": True}),
    ("ssm", {"temperature": 0.01}),
    ("sl", {"mask_same_user": True}),
    ("bsl", {"temperature": 0.2, "negative_temperature": 0.07}),
    ("bsl", {"temperature": 0.1, "negative_weight": 1.22, "mask_history": True}),
    ("bsl", {"several_positives": True, "mask_same_user": True, "negative_temperature": 0.3}),
    ("ntr", {"disliked_weight": 0.3, "mask_same_user": True}),
    ("ssm_ntr", {"alpha": 3.0, "mask_history": True}),
    ("ccl", {"negative_weight": 5.0, "margin": 0.2, "mask_history": True}),
    ("ova", {"negative_weight": 2.0, "correction": "negatives"}),
    ("ssm", {"hardness": 0.5, "temperature": 0.3, "mask_same_user": True, "mask_history": True}),
    ("ssm", {"hardness": 2.0, "temperature": 0.4, "correction": "none"}),
    ("sl", {"hardness": 1.0, "temperature": 0.2}),
    ("bsl", {"hardness": 0.3, "several_positives": True, "mask_same_user": True}),
    ("improved_logq", {"hardness": 0.5}),
    ("ntr", {"hardness": 0.5, "temperature": 0.3, "disliked_weight": 2.0}),
    ("ssm_ntr", {"hardness": 0.7, "temperature": 0.5, "alpha": 2.0, "mask_history": True}),
    ("bpr", {"correction": "all", "mask_same_user": True}),
    ("sl_at_k", {"weight_temperature": 0.5, "top_k": 3, "mask_same_user": True}),
    ("sl_at_k", {"correction": "none", "top_k": 2, "hardness": 0.5}),
    ("psl", {"temperature": 0.02, "mask_history": True}),
    ("talos", {"correction": "none", "top_k": 4, "mask_same_user": True, "mask_history": True}),
    ("talos", {"temperature": 0.05, "top_k": 100}),
]


def assert_same(
    name: str, chosen: dict[str, Any], case: dict[str, Any], tolerance: float, **blocking: Any
) -> None:
    rows, candidates = make_case(**case)
    expected_value, expected = reference(name, chosen, rows, candidates)
    value, gradients = streamed(name, chosen, rows, candidates, **blocking)
    size = max(1.0, float(expected_value.abs()))
    assert abs(float(value) - float(expected_value)) <= tolerance * size
    for gradient, wanted in zip(gradients, expected, strict=True):
        bound = tolerance * max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(gradient.double(), wanted, rtol=tolerance, atol=bound)


@pytest.mark.parametrize(("name", "chosen"), VARIANTS, ids=lambda value: str(value))
def test_float64_equals_reference(name: str, chosen: dict[str, Any]) -> None:
    for copies in (False, True):
        assert_same(name, chosen, {"copies": copies}, tolerance=1e-10, block_columns=8)


MASKS: list[dict[str, Any]] = [
    {},
    {"mask_same_user": True},
    {"mask_history": True},
    {"mask_same_user": True, "mask_history": True},
]
CORRECTIONS = {name: loss.corrections for name, loss in LOSSES.items()}
# Of values, and of gradients, which come back in the dtype of the embeddings.
TOLERANCE = {
    torch.float64: (1e-10, 1e-10),
    torch.float32: (3e-5, 3e-5),
    torch.bfloat16: (3e-5, 2**-8),
    torch.float16: (3e-5, 2**-10),
}


@pytest.mark.parametrize("name", get_args(LossName))
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_mask_and_correction_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    """Embeddings and log Q of `dtype`; the reference takes the same, rounded ones in float64."""
    of_value, of_gradient = TOLERANCE[dtype]
    for masks, correction in itertools.product(MASKS, CORRECTIONS[name]):
        rows, candidates = cast(*make_case(dtype=torch.float64), dtype)
        chosen = {**masks, "correction": correction}
        expected_value, expected = reference(name, chosen, rows, candidates)
        value, gradients = streamed(name, chosen, rows, candidates)
        assert value.item() == pytest.approx(expected_value.item(), rel=of_value, abs=of_value)
        for gradient, wanted in zip(gradients, expected, strict=True):
            assert gradient.dtype == dtype
            assert (gradient.double() - wanted).norm() <= of_gradient * wanted.norm()


@settings(max_examples=140, derandomize=True, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS),
    num_rows=st.integers(1, 40),
    num_columns=st.integers(1, 60),
    num_ids=st.integers(1, 12),
    num_users=st.integers(1, 6),
    restricted=st.booleans(),
    copies=st.booleans(),
    block_columns=st.integers(1, 64),
    backend=st.sampled_from(["auto", "blocked"]),
    seed=st.integers(0, 10_000),
)
def test_float32_equals_reference(
    variant: tuple[str, dict[str, Any]], block_columns: int, backend: str, **case: Any
) -> None:
    name, chosen = variant
    tolerance = 2e-4 if chosen.get("temperature") == 0.01 else 3e-5
    blocking = {"block_columns": block_columns, "backend": backend}
    assert_same(name, chosen, {**case, "dtype": torch.float32}, tolerance, **blocking)
