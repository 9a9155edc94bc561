"""The transformer over sequences: causal, alike packed or alone, and the same when served."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tandem
from tests.datasets import age_of, make_dataset
from tests.definitions import by_user, events_of
from tests.test_training import losses, small_config, train
from trainer.config.model_section import Block
from trainer.data.jagged import Jagged
from trainer.data.packing import Packed, pack
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.model.sequences.blocks import build_layer
from trainer.model.sequences.tower import SequenceTower
from trainer.model.trained import load_run
from trainer.retrieval.arguments import ExportArguments
from trainer.retrieval.encode import Encoder
from trainer.retrieval.evaluate import evaluate_split
from trainer.retrieval.export import export
from trainer.retrieval.queries import read_queries
from trainer.retrieval.search.item_lists import ItemLists
from trainer.run.folder import RunSpec

pytestmark = pytest.mark.xdist_group("ranks")

DIM, ITEMS, LENGTH = 8, 11, 9
BLOCKS: tuple[Block, ...] = ("sasrec", "ligr", "hstu")
MODEL: dict[str, Any] = {"tower": "sequence", "sequence_length": 5, "use_user_id": False}


def tower_of(block: Block) -> SequenceTower:
    torch.manual_seed(1)
    tower = SequenceTower(block, LENGTH, DIM, 2, 2, 0.0, 1.0, normalise=False).double()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tower.eval()


def packed_of(lists: list[list[int]]) -> tuple[Packed, list[tuple[int, int]]]:
    """Every position of every list a row; and which (list, items seen) each is."""
    sizes = np.array([len(each) for each in lists])
    sequences = Jagged(
        np.array([item for each in lists for item in each]), np.append(0, sizes.cumsum())
    )
    rows = [(number, seen) for number, size in enumerate(sizes) for seen in range(size + 1)]
    number_B, seen_B = np.array(rows).T
    first_M = np.append(0, (sizes + 1).cumsum()[:-1])
    return pack(sequences, first_M, number_B, seen_B), rows


def outputs(tower: SequenceTower, lists: list[list[int]], item_ID: Tensor, user: Tensor) -> Tensor:
    packed, rows = packed_of(lists)
    user_BD = user[[number for number, _ in rows]]
    looked_up = torch.cat([item_ID[packed.item_D], torch.zeros(1, DIM)])  # and a bag of nothing
    return tower([user_BD], [], looked_up, packed)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_position_sees_what_is_before_it_alone(block: Block) -> None:
    """All positions of all lists in one pass are what each beginning of each list gives alone."""
    tower, item_ID = tower_of(block), torch.randn(ITEMS, DIM).double()
    lists = [[3, 1, 4, 1, 5, 9, 2, 6], [], [5, 3], [5, 8, 9, 7, 9, 3, 2]]
    user = torch.randn(len(lists), DIM).double()
    together = outputs(tower, lists, item_ID, user)
    row = 0
    for number, each in enumerate(lists):
        for seen in range(len(each) + 1):
            alone = outputs(tower, [each[:seen]], item_ID, user[number : number + 1])[-1]
            torch.testing.assert_close(together[row], alone)
            row += 1
    assert row == len(together)


@pytest.mark.parametrize("block", BLOCKS)
def test_gradients_are_those_of_sequences_one_by_one(block: Block) -> None:
    lists = [[3, 1, 4, 1, 5, 9], [5, 3], [5, 8, 9, 7, 9]]
    user = torch.randn(len(lists), DIM).double()
    gradients = []
    for groups in ([lists], [[each] for each in lists]):
        tower, item_ID = tower_of(block), torch.linspace(-1, 1, ITEMS * DIM).double().view(-1, DIM)
        item_ID.requires_grad_()
        place = 0
        for group in groups:
            made = outputs(tower, group, item_ID, user[place : place + len(group)])
            made.square().sum().backward()
            place += len(group)
        gradients.append([item_ID.grad, *(each.grad for each in tower.parameters())])
    for packed, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, alone)


def test_hstu_by_hand() -> None:
    """Two tokens, one head: each gates what SiLU of the scores weighs of the values."""
    layer = build_layer("hstu", 1, 1, 2, 0.0).eval()
    layer.norms = torch.nn.ModuleList(torch.nn.Identity() for _ in range(2))
    with torch.no_grad():
        layer.projection.weight.copy_(torch.tensor([[1.0], [1.0], [1.0], [1.0]]))
        layer.projection.bias.zero_()
        layer.attended.weight.fill_(1.0)
        layer.attended.bias.zero_()
        layer.bias_HL.copy_(torch.tensor([[0.5, -0.5]]))
    made = layer(torch.tensor([[1.0], [2.0]]), [(1, 2)])
    # silu(1) = .731059 and silu(2) = 1.761594 are gate, query, key and value alike.
    # token 0: score .731059 ** 2 + .5 = 1.034447, silu .763089, / 2 times the value .278930,
    # gated .203914, added to 1.
    # token 1: scores 1.761594 * .731059 - .5 = .787829 and 1.761594 ** 2 + .5 = 3.603213, silu
    # .541571 and 3.507664, / 2 times the values .197962 + 3.089490 = 3.287452, gated 5.791155,
    # added to 2.
    assert made.flatten().tolist() == pytest.approx([1.203914, 7.791155], rel=1e-4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "data"
    return make_dataset(path, users=80, items=60, rows=1500, history_length=12, tied=3)


@pytest.fixture(scope="module")
def finished(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    out = tmp_path_factory.mktemp("finished") / "run"
    config = small_config(
        model={**MODEL, "item_attributes": False, "user_attributes": True},
        training={"epochs": 3},
        loss={"mask_history": True, "mask_same_user": True},
        negatives={"uniform": 30},
        optimizer={"schedule": "constant"},
    )
    spec = RunSpec("ml-100k", config, data.path, str(out))
    train(spec, 1)
    return spec


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_of_four_two_and_one_ranks_has_the_curve_of_one(
    finished: RunSpec, data: Dataset, tmp_path: Path
) -> None:
    """Stopped within epochs, and within chunks, twice."""
    config, out = finished.config, str(tmp_path / "run")
    for ranks, last in ((4, 4), (2, 15), (1, None)):
        until = replace(config, training=replace(config.training, max_steps=last))
        train(RunSpec("ml-100k", until, data.path, out, resume=ranks != 4), ranks)
    whole = losses(Path(finished.out))
    assert len(whole) > 20 and whole[max(whole)] < 0.9 * whole[1]
    assert losses(tmp_path / "run") == pytest.approx(whole, rel=1e-3)


@pytest.fixture
def encoder(finished: RunSpec) -> Iterator[Encoder]:
    with process_group() as ranks:
        yield Encoder.of_run(load_run(finished.out, ranks), ranks)


def test_queries_are_of_the_moment_before_the_first_held_out_event(
    data: Dataset, encoder: Encoder
) -> None:
    """A held-out user is asked for by his last position then; items of later come in no query."""
    (block,) = read_queries(data, "test", np.arange(data.splits["test"].queries), 1000)
    query_QD = encoder.queries(block.user_Q, block.history, block.disliked, block.context)
    everybody = by_user(events_of(data))
    for number, user in enumerate(block.user_Q.tolist()):
        events = everybody[user]
        first = min(e.time or 0 for e in events if e.split == "test")
        liked = [
            e.item
            for e in events
            if e.split != "test" and e.feedback >= 0 and (e.time or 0) < first
        ]
        alone = encoder.queries(
            torch.tensor([user]), ItemLists.from_lists([liked[-5:]]), ItemLists.from_lists([[]])
        )
        torch.testing.assert_close(query_QD[number : number + 1], alone, rtol=1e-4, atol=1e-5)


def test_the_program_takes_a_list_of_item_ids(
    data: Dataset, finished: RunSpec, encoder: Encoder, tmp_path: Path
) -> None:
    """Padding may stand anywhere, lists may be longer than the model reads, items unknown."""
    export(ExportArguments(finished.out, str(tmp_path / "out")))
    lists = [[3, 1, 4, 1, 5, 9, 2, 6], [], [7, 900], [8]]
    user = torch.tensor([0, -1, 2, -1])
    wanted = encoder.queries(
        user, ItemLists.from_lists(lists), ItemLists.from_lists([[]] * len(lists))
    )
    rows = [each + [-1] * (10 - len(each)) for each in lists]
    rows[2] = [-1, 7, -1, 900, *[-1] * 6]
    assert encoder.model.inputs.query_keys == ("user.age", "history")
    ids = {"user.age": torch.tensor([[age_of(0)], [-1], [age_of(2)], [-1]])}
    program = torch.export.load(tmp_path / "out/query_encoder.pt2").module()
    found = program({**ids, "history": torch.tensor(rows)})
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not found[1].any() and found[3].any()


def test_the_tower_program_takes_embeddings_by_place(
    finished: RunSpec, encoder: Encoder, tmp_path: Path
) -> None:
    facts = export(ExportArguments(finished.out, str(tmp_path / "out")))["programs"]["query_tower"]
    assert facts["features"][-5:] == [f"history@{place}" for place in (4, 3, 2, 1, 0)]
    program = torch.export.load(tmp_path / "out/query_tower.pt2").module()
    other = len(facts["features"]) - 5
    looked_up = torch.randn(3, other + 5, 16)
    looked_up[:, other : other + 3] = 0  # two items
    made = program(looked_up)
    assert made.shape == (3, 16)
    moved = looked_up.clone()
    moved[:, other + 3], moved[:, other + 4] = looked_up[:, other + 4], looked_up[:, other + 3]
    assert not torch.allclose(program(moved), made)
    assert not program(torch.zeros(2, other + 5, 16)).any()


def test_answers_follow_the_last_item(finished: RunSpec, encoder: Encoder, data: Dataset) -> None:
    run = tandem.load(finished.out)
    first, second = (
        [each.item for each in run.recommend(items=items, k=10)]
        for items in (["i3", "i8"], ["i8", "i3"])
    )
    assert first != second
    found = evaluate_split(encoder, data, "test", (10,), baseline=True)
    assert found.values["recall@10"] > 1.5 * found.baseline["recall@10"]
