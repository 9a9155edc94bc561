"""Items of a sequence with their attributes: read as candidates are, on any ranks, in training,
evaluation and in what is exported; what is new counts as history, too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.test_features import COLD, ITEMS, data_of_every_type
from tests.test_sequence_tower import MODEL
from tests.test_training import losses, small_config, train
from trainer.base.mistake import Mistake
from trainer.bundle.opened_bundle import Bundle
from trainer.bundle.query_program import Query
from trainer.data.events.marks import ITEM_BITS, KIND_BITS, KIND_MASK
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.model.trained import load_run
from trainer.observe.progress import SilentProgress
from trainer.retrieval.arguments import ExportArguments
from trainer.retrieval.encode import Encoder
from trainer.retrieval.export import export
from trainer.retrieval.known import known_users
from trainer.retrieval.search.item_lists import ItemLists
from trainer.run.folder import RunSpec
from trainer.train import run_worker

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    tags = pa.array([[f"g{n % 5}", f"g{n % 7 + 5}"][: n % 3] for n in range(ITEMS)])
    return data_of_every_type(tmp_path_factory.mktemp("attributes"), more={"tags": tags})


def config_of(**training: Any) -> Any:
    return small_config(
        model={**MODEL, "user_attributes": False, "item_attributes": True, "id_dropout": 0.3}
        | {"sequence_reads": ("kinds", "gaps", "attributes")},
        training={"epochs": 2, **training},
        loss={"name": "ssm", "mask_history": True, "mask_same_user": True},
        negatives={"uniform": 30},
        optimizer={"schedule": "constant", "tower_averaging": 0.5},
    )


@pytest.fixture(scope="module")
def finished(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    spec = RunSpec("ml-100k", config_of(), data.path, str(tmp_path_factory.mktemp("run") / "run"))
    run_worker(spec, SilentProgress())
    return spec


@pytest.fixture
def encoder(finished: RunSpec) -> Iterator[Encoder]:
    with process_group() as ranks:
        yield Encoder.of_run(load_run(finished.out, ranks), ranks)


def test_an_event_is_read_as_its_candidate_is(data: Dataset, encoder: Encoder) -> None:
    """The sum of the same parts; a candidate's is then normalised. Nothing is nothing."""
    inputs = encoder.model.inputs
    assert {"event.brand", "event.tags"} <= {*inputs.event_keys}
    assert {"event.text", "event.price"} <= {*inputs.event_dense}
    items = np.append(np.arange(data.num_items), -1)
    event_nD, candidate_nD = encoder.events(items), encoder.candidates(items)
    torch.testing.assert_close(torch.nn.functional.normalize(event_nD, dim=1), candidate_nD)
    assert not event_nD[-1].any() and event_nD[:-1].any(1).all()
    alone_nD = torch.cat([encoder.events(items[n : n + 1]) for n in range(len(items))])
    torch.testing.assert_close(alone_nD, event_nD)


def test_two_ranks_then_one_train_what_one_does(
    data: Dataset, finished: RunSpec, tmp_path: Path
) -> None:
    spec = RunSpec("ml-100k", config_of(max_steps=7), data.path, str(tmp_path / "run"))
    train(spec, 2)
    run_worker(replace(spec, config=config_of(), resume=True), SilentProgress())
    curve = losses(Path(finished.out))
    assert losses(tmp_path / "run") == pytest.approx(curve, rel=1e-3) and len(curve) > 14


def test_what_training_never_met_is_history_too(data: Dataset, encoder: Encoder) -> None:
    """Two new items of other attributes make two other queries; by ids alone neither would."""
    new = np.flatnonzero(encoder.store.item_count_I == 0)
    assert len(new) >= COLD
    nobody, nothing = torch.tensor([-1]), ItemLists.from_lists([[]])
    queries = [
        encoder.queries(nobody, ItemLists.from_lists([[item]]), nothing)
        for item in new[:2].tolist()
    ]
    assert all(each.any() for each in queries)
    assert not torch.allclose(*queries, atol=1e-4)
    assert not encoder.queries(nobody, nothing, nothing).any()


@pytest.mark.parametrize("workers", [1, 2])
def test_programs_and_bundles_say_what_the_model_says(
    data: Dataset, finished: RunSpec, encoder: Encoder, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "out"
    export(ExportArguments(finished.out, str(out), workers=workers))
    (known,) = known_users(data, 0, data.num_users, 1000, marks=encoder.marks)
    wanted = encoder.queries(torch.arange(data.num_users), known.history, known.disliked)
    bundle = Bundle(out)
    queries = [
        Query(user, bundle.list_of("history", user), bundle.list_of("disliked", user))
        for user in range(data.num_users)
    ]
    found = torch.from_numpy(bundle.program.encode(queries))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    # The program with tables inside, on padded lists; with an item that came later.
    code_nL = torch.full((data.num_users, 30), -1)
    for row, each in enumerate(known.history.values.split(known.history.lengths.tolist())):
        code_nL[row, : len(each)] = each
    is_item_nL = code_nL >= 0
    ids = {"history": torch.where(is_item_nL, code_nL & (1 << ITEM_BITS) - 1, -1)}
    dense = {
        "history.kind": (code_nL >> ITEM_BITS & KIND_MASK) * is_item_nL,
        "history.gap": (code_nL >> ITEM_BITS + KIND_BITS) * is_item_nL,
    }
    program = torch.export.load(out / "query_encoder.pt2").module()
    torch.testing.assert_close(program(ids, dense), wanted, rtol=1e-4, atol=1e-5)
    later = {"history": torch.full((1, 3), data.num_items + 5)}
    marks = {key: torch.zeros((1, 3), dtype=torch.int64) for key in dense}
    assert not program(later, marks).any()


def test_attributes_of_items_are_asked_for_too() -> None:
    with pytest.raises(Mistake, match="item_attributes: set that"):
        small_config(model={**MODEL, "item_attributes": False, "sequence_reads": ("attributes",)})
