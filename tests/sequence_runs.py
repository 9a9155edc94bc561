"""Runs of the sequence tower on data of every type, as tests of what its items carry have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_training import losses, train
from trainer.bundle.opened_bundle import Bundle
from trainer.bundle.query_program import Query
from trainer.data.events.marks import ITEM_BITS, KIND_BITS, KIND_MASK
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.model.trained import load_run
from trainer.observe.progress import SilentProgress
from trainer.retrieval.encode import Encoder
from trainer.retrieval.search.item_lists import ItemLists
from trainer.run.folder import RunSpec
from trainer.train import run_worker


def finished_run(config: Any, data: Dataset, folder: Path) -> RunSpec:
    """Trained to its end on one rank."""
    spec = RunSpec("ml-100k", config, data.path, str(folder / "run"))
    run_worker(spec, SilentProgress())
    return spec


@contextmanager
def encoder_of(run: RunSpec) -> Iterator[Encoder]:
    with process_group() as ranks:
        yield Encoder.of_run(load_run(run.out, ranks), ranks)


def assert_two_ranks_then_one_train_the_same(
    config_of: Callable[..., Any], finished: RunSpec, folder: Path
) -> None:
    """`config_of` takes settings of training."""
    out = folder / "run"
    spec = RunSpec("ml-100k", config_of(max_steps=7), finished.data, str(out))
    train(spec, 2)
    run_worker(replace(spec, config=config_of(), resume=True), SilentProgress())
    curve = losses(Path(finished.out))
    assert losses(out) == pytest.approx(curve, rel=1e-3) and len(curve) > 14


def queries_of_everybody(bundle: Bundle, users: int) -> list[Query]:
    """Users as the bundle knows them."""
    return [
        Query(user, bundle.list_of("history", user), bundle.list_of("disliked", user))
        for user in range(users)
    ]


def program_lists(history: ItemLists, length: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Marked lists as a program takes them, padded to `length`: items [n, L], and marks by key."""
    code_nL = torch.full((len(history), length), -1)
    for row, each in enumerate(history.values.split(history.lengths.tolist())):
        code_nL[row, : len(each)] = each
    is_item_nL = code_nL >= 0
    return torch.where(is_item_nL, code_nL & (1 << ITEM_BITS) - 1, -1), {
        "history.kind": (code_nL >> ITEM_BITS & KIND_MASK) * is_item_nL,
        "history.gap": (code_nL >> ITEM_BITS + KIND_BITS) * is_item_nL,
    }
