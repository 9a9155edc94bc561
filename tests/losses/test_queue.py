"""The cross-batch queue."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from losses import CandidateQueue, Candidates, build_loss, stand_in
from tests.losses.cases import make_case


def columns(ids: list[int]) -> tuple[Candidates, Tensor]:
    """Columns and their counts, all told by the id."""
    id_C = torch.tensor(ids)
    columns = Candidates(id_C[:, None].float().repeat(1, 2), id_C, -id_C.float(), id_C + 100)
    return columns, 10 * id_C


def test_oldest_leave_first() -> None:
    queue = CandidateQueue(num_columns=5, width=2)
    assert queue.ids().tolist() == [-1] * 5
    queue.push(*columns([1, 2, 3]))
    queue.push(*columns([4, 5, 6]))
    now = queue.columns(torch.arange(5.0))
    assert sorted(now.id_C.tolist()) == [2, 3, 4, 5, 6]
    # Ids, counts, users and embeddings stay together; log Q is that of the step that uses them.
    assert now.logq_C.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(queue.count_K, 10 * now.id_C)
    assert torch.equal(now.user_C, now.id_C + 100)
    assert torch.equal(now.embedding_CD[:, 0], now.id_C.float())


def test_more_than_it_holds_keeps_the_last() -> None:
    queue = CandidateQueue(num_columns=2, width=2)
    queue.push(*columns([1, 2, 3, 4, 5]))
    assert sorted(queue.ids().tolist()) == [4, 5]


def test_warm_up_shows_padding() -> None:
    queue = CandidateQueue(num_columns=2, width=2, warm_up_steps=2)
    queue.push(*columns([1, 2]))
    assert queue.ids().tolist() == [-1, -1]
    queue.push(*columns([3, 4]))
    assert sorted(queue.ids().tolist()) == [3, 4]


def test_queue_is_detached_and_not_changed_by_a_later_push() -> None:
    rows, candidates = make_case(dtype=torch.float32, restricted=False)
    queue = CandidateQueue(num_columns=8, width=6)
    counts = torch.ones_like(candidates.id_C)
    queue.push(candidates, counts)
    joined = Candidates.concatenate([candidates, queue.columns(torch.zeros(8))])
    value, _ = build_loss("ssm")(rows, joined)
    queue.push(replace(candidates, embedding_CD=candidates.embedding_CD * math.nan), counts)
    (gradient,) = torch.autograd.grad(value, candidates.embedding_CD)
    assert torch.isfinite(gradient).all()
    assert not queue.embedding_KD.requires_grad


@pytest.mark.parametrize(
    ("name", "settings"),
    [("ssm", {}), ("bsl", {}), ("improved_logq", {}), ("ccl", {"margin": 0.1})],
)
def test_items_are_pushed_as_if_the_queue_had_gradients(
    name: Any, settings: dict[str, float]
) -> None:
    """Each item is live once and queued K times over, embeddings equal: the same gradient on its
    row as if all K + 1 columns had one."""
    rows, candidates = make_case(num_columns=12, num_ids=12, restricted=False)
    item_C = torch.arange(12)
    live = replace(candidates, id_C=item_C, logq_C=torch.full_like(candidates.logq_C, -2.0))
    loss = build_loss(name, **settings)  # type: ignore[arg-type]
    gradients = []
    for queued in (False, True):
        table_ID = candidates.embedding_CD.detach().clone().requires_grad_()
        once = replace(live, embedding_CD=table_ID)
        parts = [once] * 4
        if queued:
            surplus_C = torch.full((12,), 4.0)
            parts = [replace(once, embedding_CD=stand_in(table_ID, surplus_C))]
            parts += [replace(live, embedding_CD=table_ID.detach())] * 3
        value, _ = loss(rows, Candidates.concatenate(parts))
        gradients.append(torch.autograd.grad(value, table_ID)[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert gradients[0].abs().max() > 1e-3


def test_queue_state_goes_through_a_checkpoint() -> None:
    queue, copy = CandidateQueue(4, 2), CandidateQueue(4, 2)
    queue.push(*columns([1, 2, 3]))
    copy.load_state_dict(queue.state_dict())
    queue.push(*columns([4, 5]))
    copy.push(*columns([4, 5]))
    assert torch.equal(queue.ids(), copy.ids())
