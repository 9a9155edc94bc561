"""log Q against what is drawn: columns of the real loader and task, of every source and mode.

For every item the sum over a step's columns of 1[j] / (C * Q(j)) is 1 on average, whatever the
sources; a popular item that is corrected too little is over 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from losses import Candidates, Rows
from trainer.config.negatives_section import NegativesConfig
from trainer.config.presets import find_preset
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.data.trained_rows import trained_items
from trainer.distributed.ranks import Ranks, process_group
from trainer.model.build import build_loader, build_task
from trainer.model.inputs import build_inputs
from trainer.observe.progress import SilentProgress
from trainer.synth.synth import SynthArguments, synth

pytestmark = pytest.mark.xdist_group("ranks")

WIDTH = 4
STEPS = 200
FIFTHS = 5

SOURCES: dict[str, dict[str, Any]] = {
    "in-batch": {},
    "uniform": {"in_batch": False, "uniform": 96},
    "popularity": {"in_batch": False, "popularity": 96},
    "in-batch, uniform": {"uniform": 50},
    "in-batch, popularity": {"popularity": 50},
    "in-batch, queue": {"queue": 300},
    "in-batch, uniform, queue": {"uniform": 50, "queue": 300},
    "uniform, queue": {"in_batch": False, "uniform": 64, "queue": 200},
    "popularity, queue": {"in_batch": False, "popularity": 64, "queue": 200},
}


class Tally(nn.Module):
    """In the loss's place: adds up columns by item, each as 1 / (C * Q)."""

    mask_same_user = False
    watched = False

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.inverse_I = torch.zeros(num_items, dtype=torch.float64)
        self.number_I = torch.zeros(num_items, dtype=torch.float64)
        self.columns = self.steps = 0
        self.certain: list[tuple[float, int]] = []

    def forward(self, rows: Rows, candidates: Candidates) -> tuple[Tensor, dict[str, Tensor]]:
        shown_C = candidates.id_C >= 0
        if candidates.visible_to_C is not None:
            own_C = shown_C & (candidates.visible_to_C >= 0)
            shown_C = shown_C & (candidates.visible_to_C < 0)
            self._note_certain(candidates.logq_C[own_C], candidates.copies_C[shown_C])
        certain_B = rows.positive_logq_B[rows.feedback_B < 0]
        self._note_certain(certain_B, candidates.copies_C[shown_C])
        id_N, copies_N = candidates.id_C[shown_C], candidates.copies_C[shown_C].double()
        inverse_N = torch.exp(-candidates.logq_C[shown_C].double())
        self.inverse_I.index_add_(0, id_N, inverse_N * copies_N)
        self.number_I.index_add_(0, id_N, copies_N)
        self.columns += int(copies_N.sum())
        self.steps += 1
        return rows.query_BD.sum() * 0, {}

    def _note_certain(self, log_q_X: Tensor, copies_N: Tensor) -> None:
        self.certain += [(float(each), int(copies_N.sum())) for each in log_q_X[:1]]


@dataclass
class Drawn:
    """What was seen of some steps."""

    ratio_I: Tensor
    """Mean of 1[j] / (C * Q) by item; NaN where it cannot be drawn."""
    error_I: Tensor
    """Its Monte-Carlo error, by the number of draws: a queued column is the same one again."""
    fifths: list[float] = field(default_factory=list)
    """The same of items by popularity, the most popular first."""
    certain: list[tuple[float, int]] = field(default_factory=list)
    """log Q of columns that are there by construction, and the columns of that step."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("log-q") / "data"
    arguments = SynthArguments(
        str(path), users=300, items=120, interactions=6_000, disliked=0.2, noise=0.3
    )
    synth(arguments, SilentProgress(), show=False)
    return Dataset.load(path)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with process_group() as one:
        yield one


def config_of(loss: str, negatives: dict[str, Any]) -> Config:
    base = find_preset("ml-100k-mf")
    return replace(
        base,
        model=replace(base.model, dim=WIDTH),
        loss=replace(base.loss, name=loss),
        negatives=NegativesConfig(queue_warmup_steps=0, **negatives),
        training=replace(base.training, global_batch_size=64),
    )


def trained_of(data: Dataset) -> int:
    return int(trained_items(data, ("train",)).sum())


def draw(config: Config, data: Dataset, ranks: Ranks, first: int, steps: int) -> Drawn:
    """Columns of the steps `first` to `first + steps`, as the task hands them to the loss."""
    inputs = build_inputs(config.model, data)
    loader = build_loader(config, data, inputs, ranks, None)
    task = build_task(config, data, trained_of(data))
    task.loss = Tally(data.num_items)
    batches = iter(loader)
    for step, batch in enumerate(islice(batches, first + steps)):
        if step == first:
            task.loss = Tally(data.num_items)
        batch = task.planned(batch)
        candidate_UO = torch.zeros(len(batch.plan.encoded_U), WIDTH)
        task(torch.zeros(len(batch.user_B), WIDTH), candidate_UO, batch)
    batches.close()
    count_I = torch.from_numpy(loader.store.item_count_I)
    negatives = config.negatives
    live = (negatives.in_batch * 64) or negatives.uniform + negatives.popularity
    return summary(task.loss, count_I, negatives.uniform > 0, repeats=1 + negatives.queue / live)


def summary(tally: Tally, count_I: Tensor, every_item: bool, repeats: float) -> Drawn:
    order = count_I.argsort(descending=True, stable=True)
    drawn = order if every_item else order[count_I[order] > 0]
    ratio_I = tally.inverse_I / tally.columns
    error_I = (repeats / tally.number_I.clamp(min=1)).sqrt()
    fifths = [float(ratio_I[part].mean()) for part in drawn.chunk(FIFTHS)]
    return Drawn(ratio_I[drawn], error_I[drawn], fifths, tally.certain)


@pytest.mark.parametrize(
    ("source", "loss"),
    [(source, "ssm") for source in SOURCES]
    + [
        pytest.param("in-batch, uniform, queue", loss, marks=pytest.mark.slow)
        for loss in ("ntr", "ssm_ntr")
    ]
    + [("uniform", "ssm_ntr"), ("in-batch, popularity", "ntr")],
)
def test_one_over_q_sums_to_one(source: str, loss: str, data: Dataset, ranks: Ranks) -> None:
    drawn = draw(config_of(loss, SOURCES[source]), data, ranks, 0, STEPS)
    assert drawn.fifths == pytest.approx([1.0] * FIFTHS, abs=0.08)
    off_I = (drawn.ratio_I - 1).abs()
    assert (off_I < 5 * drawn.error_I + 0.02).all(), off_I
    for log_q, columns in drawn.certain:
        # There once by construction, among so many columns.
        assert log_q == pytest.approx(-torch.tensor(float(columns)).log().item(), abs=1e-5)
    assert bool(drawn.certain) == (loss != "ssm")


@pytest.mark.parametrize(
    ("source", "loss"),
    [
        ("in-batch", "ssm"),
        pytest.param("popularity", "ntr", marks=pytest.mark.slow),
        pytest.param("in-batch, uniform, queue", "ntr", marks=pytest.mark.slow),
    ],
)
def test_streaming_agrees_with_what_is_drawn(
    source: str, loss: str, data: Dataset, ranks: Ranks
) -> None:
    """After 600 steps, for head and tail alike: repeats count, and rows count where they are no
    columns."""
    negatives = {**SOURCES[source], "log_q": "streaming"}
    drawn = draw(config_of(loss, negatives), data, ranks, 600, STEPS)
    assert drawn.fifths == pytest.approx([1.0] * FIFTHS, abs=0.1)


class Everything(nn.Module):
    """In the loss's place: the plain sum of all columns, so that each has a gradient of one."""

    mask_same_user = watched = False

    def forward(self, rows: Rows, candidates: Candidates) -> tuple[Tensor, dict[str, Tensor]]:
        self.columns = candidates
        return candidates.embedding_CD.sum(), {}


def test_live_columns_stand_for_the_queues(data: Dataset, ranks: Ranks) -> None:
    """With (n + K) / n of their gradient; a dislike, which is not queued, with its own."""
    config = config_of("ssm_ntr", {"queue": 100, "distinct": False})
    loader = build_loader(config, data, build_inputs(config.model, data), ranks, None)
    task = build_task(config, data, trained_of(data))
    task.loss = Everything()
    batches = iter(loader)
    for queued in (0, None):
        batch = task.planned(next(batches))
        candidate_SO = torch.zeros(len(batch.item_S), WIDTH, requires_grad=True)
        candidate_UO = candidate_SO[batch.plan.encoded_U]
        value, _ = task(torch.zeros(len(batch.user_B), WIDTH), candidate_UO, batch)
        value.backward()
        live = int((batch.feedback_B > 0).sum())
        if queued is None:
            queued = int((task.loss.columns.id_C[len(batch.plan.id_C) :] >= 0).sum())
            assert queued > 30
        gradient_S = candidate_SO.grad[:, 0]
        expected = torch.where(batch.feedback_B > 0, (live + queued) / live, 1.0)
        torch.testing.assert_close(gradient_S, expected)
    batches.close()


def test_the_expected_number_of_columns(data: Dataset, ranks: Ranks) -> None:
    """Where the positive is not corrected, sums of 1 / Q are 1 a step, not C: LSE is the
    catalog's."""
    config = config_of("ssm", SOURCES["in-batch, uniform"])
    per_step = replace(config, loss=replace(config.loss, correction="negatives"))
    trained = trained_of(data)
    task, once = build_task(config, data, trained), build_task(per_step, data, trained)
    ids, counts = torch.arange(5), torch.tensor([9, 5, 2, 1, 0])
    draws = torch.tensor([60.0, 50.0], dtype=torch.float64)
    difference = once.correction(ids, counts, draws) - task.correction(ids, counts, draws)
    assert difference.tolist() == pytest.approx([torch.tensor(110.0).log().item()] * 5, abs=1e-5)
    assert float(once.correction.certain(draws)) == 0.0


def test_items_are_one_where_rows_do_not_tell_them_apart(data: Dataset) -> None:
    config = config_of("ssm", {})
    off = config_of("ssm", {"distinct": False})
    made = [build_task(each, data, trained_of(data)).distinct for each in (config, off)]
    assert made == [True, False]
