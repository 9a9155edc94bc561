"""A weight of 2 is the row twice, before the same columns: value and gradient of every loss.

Shapes: B rows, R rows written out as often as they weigh.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from losses import LOSSES, Candidates, Positives, Rows, build_loss
from losses.kernels.native import load_kernel
from tests.losses.cases import cast, leaves, make_case
from tests.losses.test_parity import VARIANTS

WEIGHT = [2, 0, 1, 3, 1, 2, 0, 1, 1, 5, 1, 2, 0]


def weighted_case(dtype: torch.dtype = torch.float64) -> tuple[Rows, Candidates]:
    rows, candidates = cast(*make_case(), dtype)
    return replace(rows, weight_B=torch.tensor(WEIGHT, dtype=torch.float32)), candidates


def written_out(rows: Rows) -> Rows:
    """Each row as often as it weighs, each of weight 1."""
    row_R = torch.repeat_interleave(torch.arange(len(WEIGHT)), torch.tensor(WEIGHT))
    assert rows.history_values is not None and rows.history_offsets is not None
    bounds = rows.history_offsets.tolist()
    histories = [rows.history_values[bounds[row] : bounds[row + 1]] for row in row_R.tolist()]
    lengths = torch.tensor([0, *map(len, histories)])
    return Rows(
        query_BD=rows.query_BD[row_R],
        positive_BD=rows.positive_BD[row_R],
        positive_id_B=rows.positive_id_B[row_R],
        positive_logq_B=rows.positive_logq_B[row_R],
        user_B=rows.user_B[row_R],
        feedback_B=rows.feedback_B[row_R],
        weight_B=torch.ones(len(row_R)),
        history_values=torch.cat(histories),
        history_offsets=lengths.cumsum(0),
    )


def result(loss: Any, rows: Rows, candidates: Candidates, of: list[Tensor]) -> tuple[Any, Any]:
    value, statistics = loss(rows, candidates)
    gradients = torch.autograd.grad(value, [*of, *loss.parameters()], materialize_grads=True)
    return [value.detach(), *gradients], statistics


@pytest.mark.parametrize(("name", "chosen"), VARIANTS, ids=lambda value: str(value))
@pytest.mark.parametrize("ring", [False, True])
def test_a_weight_of_two_is_the_row_twice(name: str, chosen: dict[str, Any], ring: bool) -> None:
    if ring and (chosen.get("several_positives") or LOSSES[name].has_threshold):
        pytest.skip("needs all candidates at once")
    rows, candidates = weighted_case()
    learned = name not in ("ccl", "psl", "talos")
    loss = build_loss(name, **chosen, block_columns=8, ring=ring, learn_temperature=learned)
    weighted, statistics = result(loss, rows, candidates, leaves(rows, candidates))
    twice, expected = result(loss, written_out(rows), candidates, leaves(rows, candidates))
    for one, other in zip(weighted, twice, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for key, reading in statistics.items():  # a count of rows, and a sample of them
        if key not in ("empty_rows", "negative_score_spread"):
            assert float(reading) == pytest.approx(float(expected[key]), abs=1e-9), key


@pytest.mark.skipif(load_kernel()[0] is None, reason=load_kernel()[1])
@pytest.mark.parametrize("name", ["ssm", "sl", "bsl", "sl_at_k", "improved_logq", "ntr", "ssm_ntr"])
def test_in_the_compiled_kernel_too(name: str) -> None:
    rows, candidates = weighted_case(torch.float32)
    loss = build_loss(name, backend="compiled", mask_same_user=True)  # type: ignore[arg-type]
    weighted, _ = result(loss, rows, candidates, leaves(rows, candidates))
    twice, _ = result(loss, written_out(rows), candidates, leaves(rows, candidates))
    for one, other in zip(weighted, twice, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_several_positives_count_by_their_weights() -> None:
    """User 0 likes items 0 (three times) and 1 (once), scored 2 and 1: both rows' positive term is
    log((3 e^2 + e) / 4), whether rows are written out or weigh."""
    one = torch.ones(2, dtype=torch.float64)
    rows = Rows(
        query_BD=one[:, None],
        positive_BD=torch.tensor([[2.0], [1.0]], dtype=torch.float64),
        positive_id_B=torch.tensor([0, 1]),
        positive_logq_B=torch.zeros(2),
        user_B=torch.tensor([0, 0]),
        feedback_B=torch.ones(2, dtype=torch.int8),
        weight_B=torch.tensor([3.0, 1.0]),
    )
    columns = Candidates(
        embedding_CD=torch.tensor([[2.0], [1.0], [0.5]], dtype=torch.float64),
        id_C=torch.tensor([0, 1, 2]),
        logq_C=torch.zeros(3),
        user_C=torch.tensor([-1, -1, -1]),
    )
    loss = build_loss("bsl", several_positives=True, mask_same_user=True, temperature=1.0)
    expected = torch.tensor((3 * 2.718281828459045**2 + 2.718281828459045) / 4).log()
    weighted = Positives(
        torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([3.0, 1.0])
    )
    four = torch.tensor([0, 0, 0, 1])
    apart = Positives(torch.zeros_like(four), four, four)
    for positives in (weighted, apart):
        _, statistics = loss(rows, replace(columns, positives=positives))
        assert statistics["positive_term_mean"].item() == pytest.approx(expected.item())
