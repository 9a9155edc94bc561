"""`model.widths`: trained on any number of ranks, evaluated, exported and planned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.cli import main
from tests.test_training import data, losses, small_config, train  # noqa: F401
from trainer.base.mistake import Mistake
from trainer.bundle.opened_bundle import Bundle
from trainer.bundle.query_program import Query
from trainer.config.model_section import ModelConfig
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.model.memory import least_bytes
from trainer.model.trained import load_run
from trainer.observe.progress import SilentProgress
from trainer.retrieval.encode import Encoder
from trainer.retrieval.evaluate import evaluate_split
from trainer.run.folder import RunSpec
from trainer.train import run_worker

pytestmark = pytest.mark.xdist_group("ranks")

WIDTHS = (4, 8, 16)
TOWERS: dict[str, dict[str, Any]] = {
    "mlp": {"output_dim": 16},
    "dot": {"tower": "mf", "dim": 16, "similarity": "dot"},
    "history": {"tower": "history", "dim": 16},
    "sequence": {"tower": "sequence", "dim": 16, "sequence_length": 4},
}


def config_of(tower: str = "mlp", **training: Any) -> Any:
    return small_config(
        model={**TOWERS[tower], "widths": WIDTHS},
        training={"epochs": 2, **training},
        negatives={"uniform": 30, "queue": 40, "queue_warmup_steps": 2},
        optimizer={"schedule": "constant"},
    )


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    path = tmp_path_factory.mktemp("widths") / "R"
    run_worker(RunSpec("ml-100k", config_of(), data, str(path)), SilentProgress())
    return path


def test_two_ranks_then_one_train_what_one_does(data: str, run: Path, tmp_path: Path) -> None:  # noqa: F811
    spec = RunSpec("ml-100k", config_of(max_steps=8), data, str(tmp_path / "run"))
    train(spec, 2)
    run_worker(replace(spec, config=config_of(), resume=True), SilentProgress())
    curve = losses(run)
    assert losses(tmp_path / "run") == pytest.approx(curve, rel=1e-3) and len(curve) > 8
    plain = config_of()
    plain = replace(plain, model=replace(plain.model, widths=()))
    run_worker(RunSpec("ml-100k", plain, data, str(tmp_path / "plain")), SilentProgress())
    assert losses(tmp_path / "plain")[1] != pytest.approx(curve[1], rel=1e-3)


def test_an_evaluation_has_every_width(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "recall, first 4 columns" in shown and "recall, first 8 columns" in shown
    record = json.loads((run / "evaluation.json").read_text())["validation"]
    assert set(record["widths"]) == {"4", "8"}
    with process_group() as ranks:
        trained = load_run(run, ranks)
        encoder = Encoder.of_run(trained, ranks)
        dataset = trained.dataset
        whole = evaluate_split(encoder, dataset, "validation", (10, 20))
        trained.model.use_columns(8)
        narrow = evaluate_split(encoder, dataset, "validation", (10, 20))
        assert encoder.items().embedding_ID.shape[1] == 8
        trained.model.use_columns(None)
    assert record["recall@20"] == pytest.approx(whole.values["recall@20"])
    assert record["widths"]["8"]["recall@20"] == pytest.approx(narrow.values["recall@20"])


@pytest.mark.parametrize("tower", TOWERS)
def test_a_bundle_has_the_first_columns_of_all_vectors(
    tower: str,
    data: str,  # noqa: F811
    run: Path,
    tmp_path: Path,
) -> None:
    """Of items, of users and of what the query program computes; cosines have a length of 1."""
    if tower != "mlp":
        run = tmp_path / "run"
        run_worker(RunSpec("ml-100k", config_of(tower, max_steps=2), data, str(run)),
                   SilentProgress())  # fmt: skip
    for width in ("16", "8"):
        assert main(["export", str(run), str(tmp_path / width), "--width", width]) == 0
    whole, narrow = Bundle(tmp_path / "16"), Bundle(tmp_path / "8")
    assert (whole.manifest.width, narrow.manifest.width) == (16, 8)

    def cut(vectors: np.ndarray) -> np.ndarray:
        first = torch.from_numpy(vectors[:, :8].copy())
        return (first if tower == "dot" else torch.nn.functional.normalize(first)).numpy()

    for side, known in (("items", whole.known_I), ("users", whole.user_known_U)):
        rows = np.flatnonzero(known)
        wide, ours = (getattr(bundle, side).at(rows) for bundle in (whole, narrow))
        np.testing.assert_allclose(ours, cut(wide), atol=1e-6)
    queries = [Query(int(user), whole.list_of("history", user)) for user in (0, 1, 2)]
    encoded = [bundle.program.encode(queries) for bundle in (whole, narrow)]
    np.testing.assert_allclose(encoded[1], cut(encoded[0]), atol=1e-6)


def test_a_width_that_was_not_trained_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), str(tmp_path / "B"), "--width", "5"]) == 1
    assert "--width 5: the run was trained for 4, 8, 16" in capsys.readouterr().err
    assert not (tmp_path / "B").exists()


@pytest.mark.parametrize("widths", [(4, 8), (8, 4, 16), (4, 4, 16), (16, 32), (4, 16, 32)])
def test_widths_rise_to_the_whole_one(widths: tuple[int, ...]) -> None:
    with pytest.raises(Mistake, match=r"model\.widths=.*model\.output_dim=16"):
        ModelConfig(tower="mlp", output_dim=16, widths=widths)
    with pytest.raises(Mistake, match=r"model\.widths=.*model\.dim=16"):
        ModelConfig(tower="mf", dim=16, widths=widths)


def test_a_width_is_one_column_at_least() -> None:
    with pytest.raises(Mistake, match=r"model\.widths"):
        ModelConfig(dim=16, widths=(0, 16))


def test_what_widths_need_of_memory_is_known(data: str) -> None:  # noqa: F811
    plain = config_of()
    plain = replace(plain, model=replace(plain.model, widths=()))
    dataset = Dataset.load(data)
    ours, without = least_bytes(config_of(), dataset, 1), least_bytes(plain, dataset, 1)
    assert ours["candidates"] * 16 == without["candidates"] * (4 + 8 + 16)
