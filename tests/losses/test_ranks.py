"""W ranks with batch B equal one rank with batch W * B: loss and every gradient, tables included.

Candidates come from one embedding table and one small tower, so that their gradients sum over ranks
as a trainer's do: the mean over ranks of what each rank computes, weights scaled by W.
"""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from losses import (
    LOSSES,
    Candidates,
    LossName,
    Rows,
    build_loss,
    gather_with_gradient,
    gather_without_gradient,
)
from tests.distributed import run_ranks

pytestmark = pytest.mark.xdist_group("ranks")

GLOBAL_ROWS, WIDTH, NUM_IDS, NUM_USERS, SAMPLED, QUEUED = 16, 5, 7, 6, 8, 6

SETTINGS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in get_args(LossName)] + [
    ("ssm", {"mask_same_user": True, "mask_history": True, "learn_temperature": True}),
    ("bsl", {"several_positives": True, "mask_same_user": True}),
    ("bsl", {"negative_temperature": 0.3, "learn_temperature": True}),
    ("ssm_ntr", {"alpha": 3.0, "mask_same_user": True, "hardness": 0.5}),
    ("sl_at_k", {"top_k": 3, "mask_same_user": True}),
    ("talos", {"top_k": 2, "temperature": 0.05}),
    *[(name, {"ring": True}) for name in get_args(LossName) if not LOSSES[name].has_threshold],
    ("bsl", {"ring": True, "hardness": 0.5, "learn_temperature": True}),
    ("ssm", {"ring": True, "mask_same_user": True, "mask_history": True, "temperature": 0.01}),
    ("bsl", {"widths": (2, 5), "mask_same_user": True, "learn_temperature": True}),
    ("ssm", {"widths": (1, 3, 5), "ring": True}),
]
SOURCES = ("in_batch", "sampled", "in_batch+sampled", "in_batch+queue", "in_batch+disliked")


class Towers(nn.Module):
    """User and item tables and one linear layer, alike on every rank."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user = nn.Embedding(NUM_USERS, WIDTH, dtype=torch.float64)
        self.item = nn.Embedding(NUM_IDS, WIDTH, dtype=torch.float64)
        self.layer = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)

    def query(self, user_B: Tensor) -> Tensor:
        return nn.functional.normalize(self.layer(self.user(user_B.clamp(min=0))), dim=1)

    def candidate(self, id_X: Tensor) -> Tensor:
        return nn.functional.normalize(self.item(id_X.clamp(min=0)), dim=1)


def global_batch(real_rows: int) -> dict[str, Tensor]:
    """One batch of 16 rows, `real_rows` of them real and the rest padding at the end."""
    generator = torch.Generator().manual_seed(1)

    def draw(limit: int, size: int) -> Tensor:
        return torch.randint(0, limit, (size,), generator=generator)

    padding_B = torch.arange(GLOBAL_ROWS) >= real_rows
    weight_B = torch.rand(GLOBAL_ROWS, generator=generator).masked_fill(padding_B, 0.0)
    return {
        "user": draw(NUM_USERS, GLOBAL_ROWS).masked_fill(padding_B, -1),
        "item": draw(NUM_IDS, GLOBAL_ROWS).masked_fill(padding_B, -1),
        "feedback": torch.where(draw(3, GLOBAL_ROWS) == 0, -1, 1),
        "weight": weight_B / weight_B.sum(),
        "history": draw(NUM_IDS, 2 * GLOBAL_ROWS).view(GLOBAL_ROWS, 2),
        "sampled": draw(NUM_IDS, SAMPLED),
        "queued": draw(NUM_IDS, QUEUED),
        "disliked": draw(NUM_IDS, GLOBAL_ROWS).masked_fill(padding_B, -1),
    }


def log_q(id_X: Tensor) -> Tensor:
    return -torch.log(2.0 + id_X.clamp(min=0).double())


def one_step(
    name: Any, chosen: dict[str, Any], source: str, world_size: int, rank: int, real_rows: int
) -> list[Tensor]:
    """Loss and gradients of one rank's share, before the mean over ranks."""
    towers = Towers()
    loss = build_loss(name, **chosen, block_columns=5)
    batch = global_batch(real_rows)
    local = {key: value.chunk(world_size)[rank] for key, value in batch.items() if key != "queued"}
    positive_BD = towers.candidate(local["item"])
    rows = Rows(
        query_BD=towers.query(local["user"]),
        positive_BD=positive_BD,
        positive_id_B=local["item"],
        positive_logq_B=log_q(local["item"]),
        user_B=local["user"],
        feedback_B=local["feedback"].to(torch.int8),
        weight_B=local["weight"] * world_size,
        history_values=local["history"].reshape(-1),
        history_offsets=torch.arange(local["history"].shape[0] + 1) * 2,
    )
    parts = []
    if "in_batch" in source:
        user_B = local["user"]
        parts.append(Candidates(positive_BD, local["item"], log_q(local["item"]), user_B))
    if "sampled" in source:
        parts.append(_nobodys(towers.candidate(local["sampled"]), local["sampled"]))
    if "disliked" in source:
        uncorrected = torch.zeros(local["disliked"].shape, dtype=torch.float64)
        disliked = _nobodys(towers.candidate(local["disliked"]), local["disliked"])
        parts.append(replace(disliked, logq_C=uncorrected, visible_to_C=local["user"]))
    candidates = Candidates.concatenate(parts)
    if not loss.ring:
        candidates = _gathered(candidates)
    if "queue" in source:
        queued = _nobodys(towers.candidate(batch["queued"]).detach(), batch["queued"])
        candidates = Candidates.concatenate([candidates, queued])
    value, _ = loss(rows, candidates)
    parameters = [*towers.parameters(), *loss.parameters()]
    gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
    return [value.detach(), *gradients]


def _nobodys(embedding_CD: Tensor, id_C: Tensor) -> Candidates:
    return Candidates(embedding_CD, id_C, log_q(id_C), torch.full_like(id_C, -1))


def _gathered(own: Candidates) -> Candidates:
    visible = own.visible_to_C
    return Candidates(
        embedding_CD=gather_with_gradient(own.embedding_CD),
        id_C=gather_without_gradient(own.id_C),
        logq_C=gather_without_gradient(own.logq_C),
        user_C=gather_without_gradient(own.user_C),
        visible_to_C=None if visible is None else gather_without_gradient(visible),
    )


def cases() -> list[tuple[str, dict[str, Any], str, int]]:
    """Every setting with every source it takes; 16 real rows, and 11 (uneven last batch)."""
    found = []
    for index, (name, chosen) in enumerate(SETTINGS):
        for source in SOURCES:
            if chosen.get("ring") and source in ("in_batch+queue", "in_batch+disliked"):
                continue  # a ring walks what every rank owns alone
            found.append((name, chosen, source, GLOBAL_ROWS if index % 2 else 11))
    return found


def all_steps(world_size: int) -> list[list[Tensor]]:
    """Of one rank: every case."""
    rank = torch.distributed.get_rank()
    return [
        one_step(name, chosen, source, world_size, rank, real_rows)
        for name, chosen, source, real_rows in cases()
    ]


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_equal_one_rank(world_size: int) -> None:
    by_rank = run_ranks(world_size, all_steps, world_size)
    for index, (name, chosen, source, real_rows) in enumerate(cases()):
        expected = one_step(name, {**chosen, "ring": False}, source, 1, 0, real_rows)
        for part, wanted in enumerate(expected):
            mean = torch.stack([steps[index][part] for steps in by_rank]).mean(0)
            message = f"{name} {chosen} {source}, part {part}"
            # float32 parameters (temperatures) and weights bound the accuracy.
            torch.testing.assert_close(
                mean, wanted, rtol=1e-6, atol=1e-8, msg=lambda text, message=message: message + text
            )
