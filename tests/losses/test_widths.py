"""A loss over several widths is the mean of the loss by hand over the first columns of each."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from losses import Candidates, LossName, Rows, build_loss
from losses.kernels.widths import first_columns
from tests.losses.cases import cast, leaves, make_case, reference_settings
from tests.losses.reference import dense_loss

WIDTHS = (1, 4, 6)


def cut(vectors: Tensor, width: int, renormalise: bool) -> Tensor:
    narrow = vectors[:, :width]
    if not renormalise or width == vectors.shape[1]:
        return narrow
    return narrow / narrow.square().sum(dim=1, keepdim=True).sqrt()


def by_hand(
    name: Any, settings: dict[str, Any], rows: Rows, candidates: Candidates, renormalise: bool
) -> tuple[Tensor, list[Tensor]]:
    """The dense reference at each width, in float64."""
    rows, candidates = cast(rows, candidates, torch.float64)
    values = [
        dense_loss(
            reference_settings(name, settings),
            replace(
                rows,
                query_BD=cut(rows.query_BD, width, renormalise),
                positive_BD=cut(rows.positive_BD, width, renormalise),
            ),
            replace(candidates, embedding_CD=cut(candidates.embedding_CD, width, renormalise)),
        )
        for width in WIDTHS
    ]
    value = sum(values[1:], values[0]) / len(values)
    gradients = torch.autograd.grad(value, leaves(rows, candidates), materialize_grads=True)
    return value.detach(), list(gradients)


@pytest.mark.parametrize("renormalise", [True, False], ids=["cosine", "dot"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["blocked", "compiled"])
@pytest.mark.parametrize("name", get_args(LossName))
def test_value_and_gradient_are_the_mean_of_those_at_each_width(
    name: LossName, dtype: torch.dtype, renormalise: bool
) -> None:
    """float32 takes the compiled kernel where there is one for the loss."""
    settings: dict[str, Any] = {"mask_same_user": True}
    if not renormalise and name == "ccl":
        pytest.skip("ccl's margin is on cosines")
    rows, candidates = make_case(dtype=dtype, copies=True, restricted=name != "talos")
    value, gradients = by_hand(name, settings, rows, candidates, renormalise)
    loss = build_loss(name, **settings, widths=WIDTHS, renormalise=renormalise)
    found, _ = loss(rows, candidates)
    close = {"rtol": 1e-7, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-5}
    torch.testing.assert_close(found.double(), value, **close)
    theirs = torch.autograd.grad(found, leaves(rows, candidates), materialize_grads=True)
    for ours, wanted in zip(theirs, gradients, strict=True):
        torch.testing.assert_close(ours.double(), wanted, **close)


def test_statistics_are_those_of_all_columns() -> None:
    rows, candidates = make_case()
    _, whole = build_loss("ssm")(rows, candidates)
    _, found = build_loss("ssm", widths=WIDTHS)(rows, candidates)
    assert found.keys() == whole.keys() and len(whole) > 3
    for name, value in whole.items():
        assert torch.equal(found[name], value), name
    unwatched = build_loss("ssm", widths=WIDTHS)
    unwatched.watched = False
    assert unwatched(rows, candidates)[1] == {}


def test_one_width_of_all_columns_changes_nothing() -> None:
    rows, candidates = make_case()
    values = [build_loss("bsl", widths=widths)(rows, candidates)[0] for widths in ((), (6,))]
    assert torch.equal(*values)


def test_padding_may_hold_anything() -> None:
    rows, candidates = make_case()
    with torch.no_grad():
        rows.query_BD[rows.weight_B == 0] = torch.nan
        rows.positive_BD[rows.weight_B == 0] = torch.nan
        candidates.embedding_CD[candidates.id_C < 0] = torch.nan
    value, _ = build_loss("ssm", widths=WIDTHS)(rows, candidates)
    gradients = torch.autograd.grad(value, leaves(rows, candidates))
    assert value.isfinite() and all(each.isfinite().all() for each in gradients)


def test_cutting_before_and_after_a_length_of_one_is_the_same() -> None:
    raw = torch.randn(5, 8, dtype=torch.float64)
    unit = first_columns(raw, None, normalise=True)
    torch.testing.assert_close(first_columns(raw, 3, True), first_columns(unit, 3, True))
    assert torch.equal(first_columns(raw, 3, False), raw[:, :3])
    assert torch.equal(first_columns(raw, 8, False), raw)


@pytest.mark.parametrize("widths", [(4, 2), (2, 2), (0, 2)])
def test_widths_rise(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be positive and rise"):
        build_loss("ssm", widths=widths)


def test_no_more_columns_than_there_are() -> None:
    with pytest.raises(ValueError, match="width 7 of embeddings that have 6 columns"):
        build_loss("ssm", widths=(2, 7))(*make_case())
