"""On a real GPU: the kernels against the float64 reference (`make gpu-check`)."""

from typing import Any

import pytest
import torch

from losses import build_loss
from tests.losses.cases import cast, leaves, make_case, reference
from tests.losses.kernel_in_interpreter import CASES, error_of_rising_scores

pytestmark = pytest.mark.gpu

LARGER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ssm", {}, {"num_rows": 1000, "num_columns": 3001, "width": width, "num_ids": 500})
    for width in (8, 64, 100, 128, 256)
] + [
    ("ssm", {"precision": "bf16"}, {"num_rows": 777, "num_columns": 5000, "width": 128}),
    ("ssm", {"mask_history": True}, {"num_rows": 100, "num_columns": 300}),
    ("ssm", {}, {"num_rows": 4099, "num_columns": 4200, "width": 64, "num_ids": 900}),
    ("ssm", {"mask_same_user": True}, {"num_rows": 4099, "num_columns": 4200, "num_users": 900}),
    ("ssm", {"precision": "bf16"}, {"num_rows": 4099, "num_columns": 4200, "width": 128}),
    ("ntr", {}, {"num_rows": 4099, "num_columns": 4200, "width": 64, "num_ids": 900}),
    ("ssm", {"mask_history": True, "mask_same_user": True}, {}),  # leaves the kernel
    ("ssm", {}, {"width": 257}),  # so does this
]


@pytest.mark.parametrize(("name", "chosen", "case"), CASES + LARGER)
def test_kernel_equals_reference(name: Any, chosen: dict[str, Any], case: dict[str, Any]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rows, candidates = make_case(**case, dtype=torch.float32)
    expected_value, expected = reference(name, chosen, rows, candidates)
    rows, candidates = cast(rows, candidates, torch.float32)
    moved = [_on_gpu(each) for each in (rows, candidates)]
    value, _ = build_loss(name, **chosen).cuda()(*moved)
    gradients = torch.autograd.grad(value, leaves(rows, candidates), materialize_grads=True)
    tolerance = 2e-2 if chosen.get("precision") == "bf16" else 1e-4
    if chosen.get("temperature") == 0.01:
        tolerance = 1e-3
    assert value.item() == pytest.approx(expected_value.item(), rel=tolerance, abs=tolerance)
    for gradient, wanted in zip(gradients, expected, strict=True):
        bound = tolerance * max(1.0, wanted.abs().max().item())
        assert (gradient.double() - wanted).abs().max().item() < bound


@pytest.mark.parametrize("signed", [False, True])
def test_scores_that_rise_beyond_float32(signed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from losses.kernels import triton_launch

    monkeypatch.setattr(triton_launch, "LARGE", 1)
    assert error_of_rising_scores("cuda", signed=signed) < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_the_same_bits_each_time(precision: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    sizes = {"num_rows": 4099, "num_columns": 4200, "width": 64, "num_ids": 900}
    case = make_case(**sizes, dtype=torch.float32, restricted=False)
    found = []
    for _ in range(2):
        rows, candidates = cast(*case, torch.float32)
        moved = [_on_gpu(each) for each in (rows, candidates)]
        value, _ = build_loss("ssm", precision=precision).cuda()(*moved)
        found.append([value, *torch.autograd.grad(value, leaves(rows, candidates))])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def _on_gpu(inputs: Any) -> Any:
    """The same dataclass with its tensors on the GPU; gradients flow back to the leaves."""
    fields = inputs.__dataclass_fields__
    moved = {name: getattr(inputs, name) for name in fields}
    return type(inputs)(**{name: t if t is None else t.cuda() for name, t in moved.items()})
