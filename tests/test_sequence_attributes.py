"""Items of a sequence with their attributes: read as candidates are, on any ranks, in training,
evaluation and in what is exported; what is new counts as history, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.sequence_runs import (
    assert_two_ranks_then_one_train_the_same,
    encoder_of,
    finished_run,
    program_lists,
    queries_of_everybody,
)
from tests.test_features import COLD, ITEMS, data_of_every_type
from tests.test_sequence_tower import MODEL
from tests.test_training import small_config
from trainer.base.mistake import Mistake
from trainer.bundle.opened_bundle import Bundle
from trainer.data.schema import Dataset
from trainer.retrieval.arguments import ExportArguments
from trainer.retrieval.encode import Encoder
from trainer.retrieval.export import export
from trainer.retrieval.known import known_users
from trainer.retrieval.search.item_lists import ItemLists
from trainer.run.folder import RunSpec

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
    return finished_run(config_of(), data, tmp_path_factory.mktemp("run"))


@pytest.fixture
def encoder(finished: RunSpec) -> Iterator[Encoder]:
    with encoder_of(finished) as encoder:
        yield encoder


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


def test_two_ranks_then_one_train_what_one_does(finished: RunSpec, tmp_path: Path) -> None:
    assert_two_ranks_then_one_train_the_same(config_of, finished, tmp_path)


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
    queries = queries_of_everybody(bundle, data.num_users)
    found = torch.from_numpy(bundle.program.encode(queries))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    # The program with tables inside, on padded lists; with an item that came later.
    item_nL, dense = program_lists(known.history, 30)
    ids = {"history": item_nL}
    program = torch.export.load(out / "query_encoder.pt2").module()
    torch.testing.assert_close(program(ids, dense), wanted, rtol=1e-4, atol=1e-5)
    later = {"history": torch.full((1, 3), data.num_items + 5)}
    marks = {key: torch.zeros((1, 3), dtype=torch.int64) for key in dense}
    assert not program(later, marks).any()


def test_attributes_of_items_are_asked_for_too() -> None:
    with pytest.raises(Mistake, match="item_attributes: set that"):
        small_config(model={**MODEL, "item_attributes": False, "sequence_reads": ("attributes",)})
