"""NaN planted in gradients, rows and losses: the run stops at that step and names where."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor

import trainer.train
from tests.datasets import make_dataset
from tests.distributed import run_ranks
from tests.test_training import _worker, losses, small_config
from trainer.model.two_tower import Head
from trainer.run.folder import RunSpec
from trainer.watch.recorder import Recorder
from trainer.worker_run import Run

STEP = 7
"""The step that is spoiled, counted from 1."""

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "data"
    make_dataset(path, users=80, items=60, rows=1500)
    return str(path)


def spoiled_gradient(gradient: Tensor) -> Tensor:
    spoiled = gradient.clone()
    spoiled.view(-1)[3] = float("nan")
    return spoiled


def plant(kind: str) -> None:
    """Patch this process so that its STEP-th training step goes wrong."""
    real, calls = Head.forward, [0]

    def forward(head: Head, pooled: Any, batch: Any) -> Any:
        calls[0] += head.training
        if not (head.training and calls[0] == STEP):
            return real(head, pooled, batch)
        if kind == "tower":
            weight = next(head.towers.query.parameters())
            # A gradient of this rank alone, before it is averaged over ranks.
            value, outputs = real(head, pooled, batch)
            return value + float("nan") * weight.sum() * 0, {**outputs, "loss": outputs["loss"]}
        split = head.towers.split

        def planted(pooled: Any, features: Any, dense: Any) -> dict[str, Tensor]:
            parts = split(pooled, features, dense)
            if kind == "gradient":
                parts["item"].register_hook(spoiled_gradient)
            return parts

        head.towers.split = planted  # type: ignore[method-assign]
        try:
            return real(head, pooled, batch)
        finally:
            head.towers.split = split  # type: ignore[method-assign]

    Head.forward = forward  # type: ignore[method-assign]


def spoil_a_row(kind: str) -> None:
    """A row of this rank's shard of the user table that nothing looks up: the unknown one's."""
    real = Run._save

    def save(run: Run, place: Any) -> None:
        if place.step >= STEP:
            weights = run.model.state_dict()["embeddings.embedding_bags.user.weight"]
            weights.local_shards()[0].tensor[-1, 0] = float("inf")
        real(run, place)

    Run._save = save  # type: ignore[method-assign]


def worker(spec: RunSpec, kind: str, rank: int) -> str:
    """The error that this rank ends with."""
    if dist.get_rank() == rank:
        spoil_a_row(kind) if kind == "row" else plant(kind)
    try:
        _worker(spec)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("gradient", "the gradient of table 'item' is not finite at step 7 on rank 1 (loss "),
        ("tower", "the gradient of the query tower is not finite at step 7 on rank 1 (loss "),
        ("row", "table 'user' has rows that are not finite on rank 1 after step 8"),
    ],
)
def test_a_planted_nan_is_named_and_never_saved(
    kind: str, said: str, data: str, tmp_path: Path
) -> None:
    """Nothing is read back from the device before step 50 here, but every rank stops at once."""
    out = tmp_path / "run"
    config = small_config(checkpoint={"every_steps": 4}, training={"log_every_steps": 50})
    spec = RunSpec("ml-100k", config, data, str(out))
    errors = run_ranks(2, worker, spec, kind, 1)
    assert errors[0] == errors[1]
    assert errors[0].startswith(f"NonFiniteError: {said}")
    assert "no checkpoint was made of it" in errors[0]
    checkpoints = [path.parent.name for path in out.glob("checkpoints/*/checkpoint.json")]
    assert checkpoints == ["step-00000004"]
    assert max(losses(out)) <= (8 if kind == "row" else 4)
    # The same command goes on from the sound checkpoint.
    run_ranks(2, _worker, replace(spec, resume=True))
    assert max(losses(out)) == 20


class Blind:
    """In the place of `FiniteWatch` and `Vitals`: no hook on any module or gradient."""

    def __init__(self, *_: Any) -> None:
        pass

    def end_step(self, loss: Tensor, stop_asked: bool) -> bool:
        return False

    def find(self, last_step: int, values: list[dict[str, float]]) -> None:
        return None

    def read(self, batch: Any) -> dict[str, float]:
        return {}


def unwatched(spec: RunSpec) -> None:
    """Train without the hooks, and without statistics but for the loss."""
    trainer.train.FiniteWatch = trainer.train.Vitals = Blind  # type: ignore[assignment,misc]
    Recorder.watches = lambda recorder, step: False  # type: ignore[method-assign]
    _worker(spec)


def test_watching_does_not_change_the_curve(data: str, tmp_path: Path) -> None:
    """Hooks read gradients and statistics read scores, and no more: bit by bit."""
    curves = []
    for work in (_worker, unwatched):
        out = tmp_path / work.__name__
        config = small_config(training={"log_every_steps": 1, "epochs": 1})
        run_ranks(2, work, RunSpec("ml-100k", config, data, str(out)))
        curves.append(losses(out))
    assert curves[0] == curves[1]
    assert len(curves[0]) == 10
