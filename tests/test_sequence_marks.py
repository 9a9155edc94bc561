"""What items of a sequence say beside themselves: kinds, dislikes and gaps, by definition, in
training on any ranks, in evaluation, and in what is exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.datasets import make_dataset
from tests.definitions import Event, by_user, events_of
from tests.loader.conftest import make_loader
from tests.sequence_runs import (
    assert_two_ranks_then_one_train_the_same,
    encoder_of,
    finished_run,
    program_lists,
    queries_of_everybody,
)
from tests.test_features import data_of_every_type
from tests.test_sequence_tower import MODEL
from tests.test_train_windows import evaluations, same, spec_of, stops_at, trained
from tests.test_training import losses, small_config
from trainer.bundle.opened_bundle import Bundle
from trainer.data.events.marks import GAPS, ITEM_BITS, KIND_BITS, KIND_MASK, Marks, items_of
from trainer.data.schema import Dataset
from trainer.loader.sequence_batches import SequenceReading
from trainer.model.inputs import build_inputs
from trainer.retrieval.arguments import ExportArguments
from trainer.retrieval.encode import Encoder
from trainer.retrieval.export import export
from trainer.retrieval.known import known_users
from trainer.retrieval.queries import read_queries
from trainer.retrieval.search.item_lists import ItemLists
from trainer.run.folder import RunSpec

pytestmark = pytest.mark.xdist_group("ranks")

KINDS = {"buy": (0.5, "2"), "view": (0.3, "0.5"), "hide": (0.2, "negative")}
READS: tuple[tuple[str, ...], ...] = (("kinds",), ("gaps",), ("kinds", "dislikes", "gaps"))
ALL = READS[-1]
Token = tuple[int, int, int]
"""(item, kind's mark, gap's mark)"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return data_of_every_type(tmp_path_factory.mktemp("marks"), KINDS)


def marks_read(data: Dataset, reads: Sequence[str]) -> Marks:
    config = small_config(model={**MODEL, "sequence_reads": tuple(reads)})
    marks = build_inputs(config.model, data).marks
    assert marks is not None
    return marks


def tokens(data: Dataset, events: list[Event], reads: Sequence[str]) -> list[Token]:
    """By definition, of some events of a user in order, before any is cut off."""
    names = [kind.name for kind in data.kinds]
    kind_of = {1: names.index("buy"), 2: names.index("view"), -1: names.index("hide")}
    held = [each for each in events if each.feedback >= 0 or "dislikes" in reads]
    made = []
    for place, each in enumerate(held):
        kind = kind_of[each.feedback] + 1 if {"kinds", "dislikes"} & {*reads} else 0
        gap = 0
        if "gaps" in reads and place:
            assert each.time is not None and held[place - 1].time is not None
            gap = 1 + (each.time - (held[place - 1].time or 0)).bit_length()
        made.append((each.item, kind, gap))
    return made


def read(codes: Sequence[int]) -> list[Token]:
    mask = (1 << ITEM_BITS) - 1
    return [
        (code & mask, code >> ITEM_BITS & KIND_MASK, code >> ITEM_BITS + KIND_BITS)
        for code in codes
    ]


@pytest.mark.parametrize("reads", READS, ids="-".join)
def test_a_row_sees_items_with_their_marks(reads: tuple[str, ...], data: Dataset) -> None:
    marks = marks_read(data, reads)
    loader = make_loader(
        data,
        query_keys=("history",),
        candidate_keys=("item",),
        sequences=SequenceReading(1000, with_histories=True, marks=marks),
        feedback="positive",
    )
    found: Counter[Any] = Counter()
    for batch in loader.epoch(0):
        packed = batch.sequences
        assert packed is not None and packed.mark_N is not None
        assert packed.history_values is None or not (packed.history_values >> ITEM_BITS).any()
        start_B = packed.start_of_rows().tolist()
        rows = zip(batch.user_B.tolist(), batch.item_S.tolist(), strict=False)
        for (user, item), start, query in zip(rows, start_B, packed.query_B.tolist(), strict=True):
            seen = slice(start + 1, query + 1)
            items = packed.item_D[packed.place_N[seen]] | packed.mark_N[seen] << ITEM_BITS
            if user >= 0:
                found[user, item, tuple(read(items.tolist()))] += 1
    expected: Counter[Any] = Counter()
    for user, events in by_user(events_of(data)).items():
        pool = [each for each in events if each.split == "train"]
        for each in pool:
            if each.feedback > 0:
                before = [other for other in pool if (other.time or 0) < (each.time or 0)]
                expected[user, each.item, tuple(tokens(data, before, reads))] += 1
    assert found == expected


def test_queries_and_what_is_known_today_carry_them(data: Dataset) -> None:
    marks, everybody = marks_read(data, ALL), by_user(events_of(data))
    asked = np.arange(data.splits["test"].queries)
    (block,) = read_queries(data, "test", asked, 1000, marks)
    for user, codes in zip(block.user_Q.tolist(), lists(block.history), strict=True):
        events = everybody[user]
        start = min(each.time or 0 for each in events if each.split == "test")
        known = [e for e in events if e.split != "test" and (e.time or 0) < start]
        assert read(codes) == tokens(data, known, ALL)[-data.history_length :]
    (now,) = known_users(data, 0, data.num_users, 1000, marks=marks)
    for user, codes in enumerate(lists(now.history)):
        assert read(codes) == tokens(data, everybody.get(user, []), ALL)[-data.history_length :]
    (plain,) = read_queries(data, "test", asked, 1000)
    assert not (plain.history.values >> ITEM_BITS).any()


def lists(of: ItemLists) -> list[list[int]]:
    return [part.tolist() for part in of.values.split(of.lengths.tolist())]


def config_of(reads: Sequence[str] = ALL, **training: Any) -> Any:
    return small_config(
        model={**MODEL, "context_attributes": True, "user_attributes": True}
        | {"item_attributes": False, "sequence_reads": tuple(reads)},
        training={"epochs": 2, **training},
        loss={"name": "ssm_ntr", "mask_history": True, "mask_same_user": True},
        negatives={"uniform": 30},
        optimizer={"schedule": "constant", "tower_averaging": 0.5},
    )


@pytest.fixture(scope="module")
def finished(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    return finished_run(config_of(), data, tmp_path_factory.mktemp("run"))


def test_two_ranks_then_one_train_what_one_does(finished: RunSpec, tmp_path: Path) -> None:
    assert_two_ranks_then_one_train_the_same(config_of, finished, tmp_path)


@pytest.fixture
def encoder(finished: RunSpec) -> Iterator[Encoder]:
    with encoder_of(finished) as encoder:
        yield encoder


def test_each_mark_tells(data: Dataset, encoder: Encoder) -> None:
    """The same items, another kind or gap; and what is not said is the usual kind."""
    marks = encoder.marks
    assert marks is not None and marks.keys == ("history.kind", "history.gap")
    buy = [kind.name for kind in data.kinds].index("buy")
    assert marks.usual_kind == buy

    def query(*listed: Token) -> torch.Tensor:
        codes = [
            item | kind << ITEM_BITS | gap << ITEM_BITS + KIND_BITS for item, kind, gap in listed
        ]
        nothing = ItemLists.from_lists([[]])
        return encoder.queries(torch.tensor([-1]), ItemLists.from_lists([codes]), nothing)

    plain = query((3, 0, 0), (5, 0, 0))
    torch.testing.assert_close(query((3, buy + 1, 0), (5, buy + 1, 0)), plain)
    others = [kind for kind in range(len(data.kinds)) if kind != buy]
    for token in (*((5, kind + 1, 0) for kind in others), (5, 0, 12), (5, 0, GAPS - 1)):
        assert not torch.allclose(query((3, 0, 0), token), plain, atol=1e-4), token


def test_programs_and_bundles_say_what_the_model_says(
    data: Dataset, finished: RunSpec, encoder: Encoder, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    facts = export(ExportArguments(finished.out, str(out)))
    assert facts["programs"]["query_encoder"]["dense"]["history.kind"] == "int64 [n, L]"
    (known,) = known_users(data, 0, data.num_users, 1000, marks=encoder.marks)
    wanted = encoder.queries(torch.arange(data.num_users), known.history, known.disliked)
    bundle = Bundle(out)
    queries = queries_of_everybody(bundle, data.num_users)
    assert [items_of(each.history).tolist() for each in queries] == [
        [item for item, *_ in read(codes)] for codes in lists(known.history)
    ]
    found = torch.from_numpy(bundle.program.encode(queries))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    # The program with tables inside, on padded lists of another length.
    item_nL, given = program_lists(known.history, 30)
    ids = {"history": item_nL}
    store, users = encoder.store, np.arange(data.num_users)
    for key in encoder.model.inputs.query_keys:
        if key.startswith("user."):
            column = np.asarray(store.column(key, users)).astype(np.int64)
            ids[key] = torch.from_numpy(column)[:, None]
        elif key.startswith("context."):
            ids[key] = torch.zeros((data.num_users, 1), dtype=torch.int64)
    dense = {
        key: torch.from_numpy(store.dense(key, users)).float()
        for key in encoder.model.inputs.query_dense
        if key.startswith("user.")
    }
    for key in encoder.model.inputs.query_dense:
        if key.startswith("context."):
            dense[key] = torch.full((data.num_users, 1), torch.nan)
    program = torch.export.load(out / "query_encoder.pt2").module()
    torch.testing.assert_close(program(ids, dense | given), wanted, rtol=1e-4, atol=1e-5)


def test_stopped_within_a_window_it_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    """Histories of a window begin with what it carries of earlier ones; several targets too."""
    data = Path(data_of_every_type(tmp_path, KINDS, window="10d").path)
    model = {**MODEL, "dim": 8, "sequence_reads": ALL, "targets": 2}
    given: dict[str, dict[str, Any]] = {
        "model": model,
        "loss": {"name": "ssm_ntr", "mask_same_user": True},
        "training": {"global_batch_size": 96},
    }
    whole, out = tmp_path / "whole", tmp_path / "run"
    trained(spec_of(data, whole, **given))
    first = evaluations(whole)[0]
    trained(spec_of(data, out, **given), stops_at(first["step"] + 2))
    assert len(losses(out)) < len(losses(whole))
    trained(spec_of(data, out, True, **given))
    same(out, whole)


def test_items_that_were_disliked_alone_are_in_no_ranking(tmp_path: Path) -> None:
    """They are read as history; as candidates nothing was ever learnt of them."""
    data = make_dataset(tmp_path / "data", users=40, items=90, rows=500, disliked=0.4)
    model = {**MODEL, "user_attributes": False, "item_attributes": False}
    config = small_config(
        model={**model, "sequence_reads": ("dislikes",)}, training={"max_steps": 2}
    )
    with encoder_of(finished_run(config, data, tmp_path)) as encoder:
        count = encoder.store.count(np.arange(data.num_items))
        events = [each for each in events_of(data) if each.split == "train"]
        alone = [item for item in {each.item for each in events} if not count[item]]
        encoded = encoder.candidates(np.arange(data.num_items))
        assert alone and not encoded[alone].any()
        assert encoded[count > 0].any(1).all()
