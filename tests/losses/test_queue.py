"""The cross-batch queue."""

import math

import torch

from losses import CandidateQueue, Candidates, build_loss
from tests.losses.cases import make_case


def columns(ids: list[int]) -> Candidates:
    id_C = torch.tensor(ids)
    return Candidates(id_C[:, None].float().repeat(1, 2), id_C, -id_C.float(), id_C + 100)


def test_oldest_leave_first() -> None:
    queue = CandidateQueue(num_columns=5, width=2)
    assert queue.columns().id_C.tolist() == [-1] * 5
    queue.push(columns([1, 2, 3]))
    queue.push(columns([4, 5, 6]))
    now = queue.columns()
    assert sorted(now.id_C.tolist()) == [2, 3, 4, 5, 6]
    # Ids, log Q, users and embeddings stay together.
    assert torch.equal(now.logq_C, -now.id_C.float())
    assert torch.equal(now.user_C, now.id_C + 100)
    assert torch.equal(now.embedding_CD[:, 0], now.id_C.float())


def test_more_than_it_holds_keeps_the_last() -> None:
    queue = CandidateQueue(num_columns=2, width=2)
    queue.push(columns([1, 2, 3, 4, 5]))
    assert sorted(queue.columns().id_C.tolist()) == [4, 5]


def test_warm_up_shows_padding() -> None:
    queue = CandidateQueue(num_columns=2, width=2, warm_up_steps=2)
    queue.push(columns([1, 2]))
    assert queue.columns().id_C.tolist() == [-1, -1]
    queue.push(columns([3, 4]))
    assert sorted(queue.columns().id_C.tolist()) == [3, 4]


def test_queue_is_detached_and_not_changed_by_a_later_push() -> None:
    rows, candidates = make_case(dtype=torch.float32, restricted=False)
    queue = CandidateQueue(num_columns=8, width=6)
    queue.push(candidates)
    joined = Candidates.concatenate([candidates, queue.columns()])
    value, _ = build_loss("ssm")(rows, joined)
    queue.push(columns_like(candidates))
    (gradient,) = torch.autograd.grad(value, candidates.embedding_CD)
    assert torch.isfinite(gradient).all()
    assert not queue.embedding_KD.requires_grad


def columns_like(candidates: Candidates) -> Candidates:
    return Candidates(
        candidates.embedding_CD * math.nan, candidates.id_C, candidates.logq_C, candidates.user_C
    )


def test_queue_state_goes_through_a_checkpoint() -> None:
    queue, copy = CandidateQueue(4, 2), CandidateQueue(4, 2)
    queue.push(columns([1, 2, 3]))
    copy.load_state_dict(queue.state_dict())
    queue.push(columns([4, 5]))
    copy.push(columns([4, 5]))
    assert torch.equal(queue.columns().id_C, copy.columns().id_C)
