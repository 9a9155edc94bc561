"""What several ranks make of one RUN folder: one of them decides, and all of them see it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.distributed import run_ranks
from tests.one_rank import STEPS, checkpoints, small_data, spec_of
from tests.test_training import _worker, losses
from trainer.run import checkpoint_read
from trainer.run import folder as run_module
from trainer.run.checkpoint_facts import read_facts
from trainer.run.folder import RunSpec
from trainer.run.lock import RunLock

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_data(tmp_path_factory.mktemp("data"))


def with_a_late_view(spec: RunSpec) -> None:
    """Rank 1's machine does not see the newest checkpoint yet, as NFS has it."""
    if dist.get_rank() == 1:
        real = checkpoint_read.committed
        checkpoint_read.committed = lambda folder: real(folder)[:-1]  # type: ignore[assignment]
    _worker(spec)


def on_a_disk_of_its_own(spec: RunSpec) -> None:
    """Rank 1's machine has another folder of that name."""
    if dist.get_rank() == 1:
        run_module.SEEN_SECONDS = 0.1
        RunLock.is_held_by = lambda lock, run_id: False  # type: ignore[method-assign]
    _worker(spec)


def test_rank_0_says_which_checkpoint_is_taken(data: str, tmp_path: Path) -> None:
    """Each rank listed the folder itself: they trained on from different steps, silently."""
    out = tmp_path / "run"
    stopped = spec_of(data, out, training={"max_steps": 6})
    run_ranks(2, _worker, stopped)
    assert [path.name for path in checkpoints(out)] == ["step-00000004", "step-00000006"]
    pieces = (
        read_facts(checkpoints(out)[-1])
        .tensors["model.embeddings.embedding_bags.item.weight"]
        .pieces
    )
    assert [piece.file for piece in pieces] == ["rank-00000.safetensors", "rank-00001.safetensors"]
    run_ranks(2, with_a_late_view, spec_of(data, out, True))
    assert list(losses(out)) == list(range(1, STEPS + 1))
    whole = tmp_path / "whole"
    run_ranks(2, _worker, spec_of(data, whole))
    assert losses(out) == losses(whole)


def test_a_folder_that_is_not_shared_is_refused(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    spec: Any = spec_of(data, out, training={"max_steps": 1})
    with pytest.raises(AssertionError, match=r"rank 1 on \S+: this worker's machine does not see"):
        run_ranks(2, on_a_disk_of_its_own, spec)
    assert not out.exists()
    run_ranks(2, _worker, replace(spec, run_id="another"))
