"""Each distinct item of a step once: loss and gradients are those of every copy a column, on any
number of ranks; and a batch's weights.

Items come from one table and users from another, whose gradients sum over ranks as a trainer's do.

Shapes: B rows of a rank, E further candidates, S = B + E, W ranks, N = W * S.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from losses import CandidateQueue, build_loss
from tests.distributed import run_ranks
from trainer.bench.steppers import Draws
from trainer.bench.worker_processes import Workload
from trainer.loader.batch import Batch
from trainer.loader.column_plan import make_plan
from trainer.model.log_q import FrequencyCorrection
from trainer.model.task import RetrievalTask

pytestmark = pytest.mark.xdist_group("ranks")

ROWS, EXTRAS, USERS, ITEMS, WIDTH, STEPS = 24, 12, 5, 9, 4, 3


@dataclass(frozen=True)
class Variant:
    """A task: the loss's settings, and the sources of its columns."""

    name: str = "ssm"
    loss: dict[str, Any] = field(default_factory=dict)
    in_batch: bool = True
    extras: int = 0
    sampled_by: Any = "uniform"
    log_q: Any = "counts"
    queue: int = 0


MASKS = {"mask_same_user": True, "mask_history": True}
VARIANTS: dict[str, Variant] = {
    "in-batch": Variant(),
    "in-batch, no log Q": Variant(log_q="none"),
    "mixed, all masks": Variant(loss=MASKS, extras=EXTRAS),
    "uniform, same user": Variant("bsl", {"mask_same_user": True}, in_batch=False, extras=EXTRAS),
    "popularity": Variant(in_batch=False, extras=EXTRAS, sampled_by="popularity"),
    "several positives": Variant("bsl", {"several_positives": True, "mask_same_user": True}),
    "several positives, no columns": Variant(
        "bsl", {"several_positives": True, "mask_same_user": True}, in_batch=False, extras=EXTRAS
    ),
    "ntr": Variant("ntr", {"mask_same_user": True}, extras=EXTRAS),
    "ssm_ntr": Variant("ssm_ntr", {"alpha": 2.0, **MASKS}, extras=EXTRAS),
    "ssm_ntr, uniform": Variant("ssm_ntr", in_batch=False, extras=EXTRAS),
    "ssm_ntr, harder": Variant("ssm_ntr", {"hardness": 0.5}),
    "queue": Variant(loss={"mask_same_user": True}, queue=30),
    "queue, mixed": Variant("sl", extras=EXTRAS, queue=50),
    "queue, uniform": Variant("ssm_ntr", in_batch=False, extras=EXTRAS, queue=20),
    "streaming": Variant(loss={"correction": "negatives"}, extras=EXTRAS, log_q="streaming"),
    "streaming, uniform": Variant(
        in_batch=False, extras=EXTRAS, sampled_by="popularity", log_q="streaming"
    ),
    "ring": Variant(loss={"ring": True, **MASKS}, extras=EXTRAS),
    "ring, bpr": Variant("bpr", {"ring": True}, extras=EXTRAS),
    "improved log Q": Variant("improved_logq"),
    "ccl": Variant("ccl", {"margin": 0.1, "negative_weight": 5.0}, extras=EXTRAS),
    "ova": Variant("ova", MASKS, extras=EXTRAS),
    "bpr": Variant("bpr", extras=EXTRAS),
    "sl_at_k": Variant("sl_at_k", {"top_k": 5, **MASKS}, extras=EXTRAS),
    "psl, ring": Variant("psl", {"ring": True}),
    "talos, queue": Variant("talos", {"top_k": 5}, extras=EXTRAS, queue=20),
    "talos, no log Q": Variant("talos", {"top_k": 5, "correction": "none"}),
    "learned temperature": Variant("bsl", {"learn_temperature": True, "negative_temperature": 0.3}),
}


def make_task(variant: Variant, distinct: bool) -> RetrievalTask:
    loss = build_loss(variant.name, **variant.loss, block_columns=5)
    popular = variant.in_batch or variant.sampled_by == "popularity"
    queue = CandidateQueue(variant.queue, WIDTH, 1).double() if variant.queue else None
    return RetrievalTask(
        loss=loss,
        correction=FrequencyCorrection(
            variant.log_q,
            total_count=300,
            num_items=ITEMS,
            popular=popular,
            uniform=bool(variant.extras) and variant.sampled_by == "uniform",
            per=loss.log_q_per,
        ),
        in_batch=variant.in_batch,
        sampled_by=variant.sampled_by,
        history_mask=loss.mask_history,
        dislikes=loss.loss.counts_disliked,
        disliked_negatives=loss.loss.counts_disliked and loss.loss.sees_disliked,
        queue=queue,
        ring=loss.ring,
        distinct=distinct,
    )


def global_batch(variant: Variant, step: int) -> dict[str, Tensor]:
    """24 rows, the last three of them padding, and further candidates, one of them padding."""
    generator = torch.Generator().manual_seed(step)

    def draw(limit: int, size: int) -> Tensor:
        return torch.randint(0, limit, (size,), generator=generator)

    padding_B = torch.arange(ROWS) >= ROWS - 3
    item_B = torch.minimum(draw(ITEMS, ROWS), draw(ITEMS, ROWS))
    feedback_B = torch.ones(ROWS, dtype=torch.int8)
    if make_task(variant, True).dislikes:
        feedback_B = torch.where(draw(3, ROWS) == 0, -1, 1).to(torch.int8)
    extra_E = draw(ITEMS, variant.extras)
    extra_E[-1:] = -1
    return {
        "user": draw(USERS, ROWS).masked_fill(padding_B, -1),
        "item": item_B.masked_fill(padding_B, -1),
        "feedback": feedback_B.masked_fill(padding_B, 1),
        "weight": draw(5, ROWS).float().masked_fill(padding_B, 0.0) / 2,
        "history": draw(ITEMS, 2 * ROWS).view(ROWS, 2),
        "extra": extra_E,
    }


def batch_of(whole: dict[str, Tensor], world_size: int, rank: int) -> Batch:
    own = {name: value.chunk(world_size)[rank] for name, value in whole.items() if len(value)}
    extra = own.get("extra", torch.empty(0, dtype=torch.int64))
    item_S = torch.cat([own["item"], extra])
    rows = len(own["user"])
    lengths = F.pad(torch.full((rows,), 2), (0, len(extra)))
    return Batch(
        features=KeyedJaggedTensor(
            keys=["history"], values=own["history"].reshape(-1), lengths=lengths
        ),
        user_B=own["user"],
        item_S=item_S,
        feedback_B=own["feedback"],
        weight_B=own["weight"],
        count_S=torch.where(item_S >= 0, 60 - 6 * item_S, 0),
        global_weight=None,
        local_rows=rows,
        plan=None,
        step=0,
        position={},
    )


@dataclass(frozen=True)
class Found:
    """Of a rank's steps: loss and gradients, before the mean over ranks; some readings."""

    values: list[Tensor]
    readings: list[Tensor]


def steps(variant: Variant, world_size: int, rank: int, distinct: bool) -> Found:
    generator = torch.Generator().manual_seed(0)
    task = make_task(variant, distinct)
    user, item = (
        torch.randn(size, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
        for size in (USERS, ITEMS)
    )
    values, readings = [], []
    for step in range(STEPS if variant.queue or variant.log_q == "streaming" else 1):
        batch = task.planned(batch_of(global_batch(variant, step), world_size, rank))
        value, outputs = task(*encoded(batch, user, item), batch)
        leaves = [user, item, *task.loss.parameters()]
        values += [outputs["loss"], *torch.autograd.grad(value, leaves, materialize_grads=True)]
        readings += [outputs[name] for name in ("hit_share", "logq_mean", "negatives_mean")]
    return Found([value.detach() for value in values], readings)


def encoded(batch: Batch, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    """Queries of the rows, and the candidates that the plan says."""
    assert batch.plan is not None
    item_U = batch.item_S[batch.plan.encoded_U].clamp(min=0)
    return F.normalize(user[batch.user_B.clamp(min=0)], dim=1), F.normalize(item[item_U], dim=1)


def all_variants(world_size: int, distinct: bool) -> dict[str, Found]:
    rank = dist.get_rank()
    return {name: steps(variant, world_size, rank, distinct) for name, variant in VARIANTS.items()}


@pytest.fixture(scope="module")
def every_copy() -> dict[str, Found]:
    """One rank, each copy a column."""
    (found,) = run_ranks(1, all_variants, 1, False)
    return found


@pytest.fixture(scope="module", params=[1, 2, 4])
def by_rank(request: pytest.FixtureRequest) -> list[dict[str, Found]]:
    return run_ranks(request.param, all_variants, request.param, True)


@pytest.mark.parametrize("name", VARIANTS)
def test_distinct_columns_have_the_loss_and_gradients_of_all_copies(
    name: str, every_copy: dict[str, Found], by_rank: list[dict[str, Found]]
) -> None:
    expected, found = every_copy[name], [each[name] for each in by_rank]
    for place, wanted in enumerate(expected.values):
        mean = torch.stack([each.values[place] for each in found]).mean(0)
        assert torch.isfinite(wanted).all()
        # log Q and weights are float32.
        torch.testing.assert_close(mean.double(), wanted.double(), rtol=2e-6, atol=1e-7)
    if len(by_rank) == 1:  # readings of one rank are of its own rows
        torch.testing.assert_close(found[0].readings, expected.readings, check_dtype=False)


def test_a_batchs_weight_of_two_is_the_row_twice() -> None:
    """Before columns that are drawn; the mean is over the weights too."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        variant = VARIANTS["uniform, same user"]
        weighted = global_batch(variant, 0)
        weighted["weight"] = weighted["weight"] * 2
        row_R = torch.repeat_interleave(torch.arange(ROWS), weighted["weight"].long())
        apart = {name: value[row_R] for name, value in weighted.items() if name != "extra"}
        apart |= {"extra": weighted["extra"], "weight": torch.ones(len(row_R))}
        values = []
        for whole, told in ((weighted, None), (apart, torch.tensor(float(len(row_R))))):
            task = make_task(variant, True)
            leaves = [
                torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(size))
                .double()
                .requires_grad_()
                for size in (USERS, ITEMS)
            ]
            batch = task.planned(replace(batch_of(whole, 1, 0), global_weight=told))
            value, _ = task(*encoded(batch, *leaves), batch)
            values.append([value.detach(), *torch.autograd.grad(value, leaves)])
        torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=1e-8)
    finally:
        dist.destroy_process_group()


def test_an_item_travels_once_and_ranks_send_as_much() -> None:
    """65,536 rows of a long-tailed catalog over 8 ranks: a third of the columns and bytes."""
    world_size, rows = 8, 8192
    work = Workload(users=1_000_000, items=2_000_000, dim=64, global_batch_size=0, precision="fp32")
    items, counts = Draws(work, seed=0).items(world_size * rows)
    one = torch.ones_like(items)
    side_NK = torch.stack([items, counts, one, one, one], dim=1)
    plans = [
        make_plan(
            side_NK,
            world_size,
            rank,
            rows,
            in_batch=True,
            disliked_negatives=False,
            mined=False,
            distinct=True,
            told=False,
        )
        for rank in range(world_size)
    ]
    first = plans[0]
    shown_C = first.id_C >= 0
    assert torch.equal(first.id_C[shown_C].sort().values, items.unique())
    assert first.copies_C.sum() == len(items)
    assert len(first.id_C) < 0.38 * len(items)
    assert shown_C.double().mean() > 0.95  # ranks send alike: little of it is padding
    for rank, plan in enumerate(plans):
        own_S = items[rank * rows : (rank + 1) * rows]
        encoded_U = own_S[plan.encoded_U]
        assert len(encoded_U) == len(own_S.unique())
        assert torch.equal(encoded_U[plan.place_B], own_S)
        sent = shown_C[plan.own(rank)]
        assert torch.equal(encoded_U[plan.sent_X][sent], plan.id_C[plan.own(rank)][sent])
        assert torch.equal(plan.id_C, first.id_C)


def test_a_rank_without_rows_encodes_something() -> None:
    nothing = torch.tensor([[-1, 0, -1, 1, 0]]).repeat(6, 1)
    for distinct in (False, True):
        plan = make_plan(
            nothing,
            2,
            1,
            3,
            in_batch=True,
            disliked_negatives=True,
            mined=True,
            distinct=distinct,
            told=True,
        )
        assert plan.encoded_U.tolist() == [0] and plan.sent_X.tolist() == [0]
        assert plan.id_C.tolist() == [-1, -1] and plan.drawn.tolist() == [0.0, 0.0]
