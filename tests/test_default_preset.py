"""The preset `default`: fitted to the dataset, printed, kept on resuming; and what it reaches."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from losses import LossName
from tests.data.planted import Row, make, write_csv
from tests.datasets import make_dataset
from trainer.base.mistake import Mistake
from trainer.base.usage import expect_preset
from trainer.command_line import PlanArguments, TrainArguments, parse_preset
from trainer.config.default_preset import default_preset, explain
from trainer.config.presets import find_preset
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.model.build import build_model, build_task
from trainer.model.trained import load_run
from trainer.observe.progress import SilentProgress
from trainer.retrieval.encode import Encoder
from trainer.retrieval.evaluate import Evaluation, evaluate_split
from trainer.run.folder import RunSpec
from trainer.train import run_worker

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("timed") / "data", users=30, items=20, rows=400)


def test_order_is_read_where_there_are_times(timed: Dataset) -> None:
    model = default_preset(timed).model
    assert (model.tower, model.history_pooling) == ("history", "places")
    assert not model.use_user_id  # 10 rows a user
    many = replace(timed.splits["train"], positives=30 * 30)
    assert default_preset(replace(timed, splits={"train": many})).model.use_user_id


@pytest.mark.parametrize("change", [{"has_timestamps": False}, {"history_length": 0}])
def test_no_order_is_read_where_there_is_none(timed: Dataset, change: dict[str, Any]) -> None:
    model = default_preset(replace(timed, **change)).model
    assert not model.reads_order and model.use_user_id
    assert default_preset(None).model == model


def test_large_data_start_from_noise(timed: Dataset) -> None:
    small, large = default_preset(timed), default_preset(replace(timed, num_users=1_000_000_000))
    assert small.model.spectral_start > 0 and large.model.spectral_start == 0
    assert large.model.init_std > small.model.init_std


def test_every_kind_of_data_gives_a_model(timed: Dataset) -> None:
    """What it asks for is there: `build_inputs` raises otherwise."""
    changes: list[dict[str, Any]] = [{}, {"has_timestamps": False}, {"history_length": 0}]
    with process_group() as ranks:
        for change in changes:
            dataset = replace(timed, **change)
            build_model(default_preset(dataset), dataset, ranks)
            gc.collect()


def test_the_choice_is_printed_and_flags_win(
    timed: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["default", "--data", timed.path, "--out", "run", "--model.dim", "32"]
    preset, parsed = parse_preset(flags, "train", TrainArguments)
    fitted = default_preset(timed)
    assert preset == "default"
    assert parsed.config == replace(fitted, model=replace(fitted.model, dim=32))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == f"{explain(fitted, timed)}; your flags override it"
    assert "data with times" in captured.err
    _, planned = parse_preset(["default", f"--data={timed.path}"], "plan", PlanArguments)
    assert planned.config == fitted


@pytest.mark.parametrize("name", get_args(LossName))
def test_any_other_loss_can_be_asked_for(timed: Dataset, name: str) -> None:
    """What the preset sets for its own loss is not another's: `--loss.name ssm` is enough."""
    flags = ["default", "--data", timed.path, "--out", "run", "--loss.name", name]
    _, parsed = parse_preset(flags, "train", TrainArguments)
    build_task(parsed.config, timed, timed.num_items)
    assert parsed.config.loss.name == name
    assert (parsed.config.loss.negative_weight is None) == (name != "bsl")


@pytest.mark.parametrize("error", [Mistake("it has no dataset.json"), OSError("no access")])
def test_data_that_cannot_be_read_here(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers may read it; no order is read then, and the reason is printed. What is wrong with the
    data themselves is told by whoever reads them in earnest."""

    def refuse(*_: Any, **__: Any) -> Dataset:
        raise error

    monkeypatch.setattr(Dataset, "load", refuse)
    flags = ["default", "--data", "s3://somewhere", "--out", "run"]
    _, parsed = parse_preset(flags, "train", TrainArguments)
    assert parsed.config == find_preset("default")
    assert (str(error) in capsys.readouterr().err) != isinstance(error, Mistake)


def test_no_preset_is_the_default(timed: Dataset) -> None:
    flags = ["--data", timed.path, "--out", "run"]
    named = parse_preset(["default", *flags], "tandem train", TrainArguments)
    assert parse_preset(flags, "tandem train", TrainArguments) == named
    expect_preset("tandem train", flags, ["default"])


def test_resuming_takes_the_run_as_it_was_started(timed: Dataset, tmp_path: Path) -> None:
    """Though the data have grown since, and would be given another model."""
    out = str(tmp_path / "run")
    flags = ["default", "--data", timed.path, "--out", out, "--training.max-steps", "1"]
    flags += ["--training.global-batch-size", "64", "--metrics.no-enabled"]
    preset, parsed = parse_preset(flags, "train", TrainArguments)
    run_worker(parsed.run_spec(preset), SilentProgress())
    grown = make_dataset(tmp_path / "grown", users=30, items=20, rows=900)
    grown = replace(grown, parent_digest=timed.digest)
    Path(grown.path, "dataset.json").write_text(grown.to_json())
    again = ["default", "--data", grown.path, "--out", out, "--resume"]
    _, resumed = parse_preset([*again, "--training.max-steps", "2"], "train", TrainArguments)
    assert default_preset(grown).model != resumed.config.model == parsed.config.model
    assert resumed.config.training.max_steps == 2
    assert run_worker(resumed.run_spec(preset), SilentProgress())["steps"] == 2


def tastes(seed: int) -> list[Row]:
    """200 users of 14 items each out of 2 of 12 clusters of 15, small ids in a cluster more often.

    The rating says nothing but whether a row is early in the file that is sorted by it.
    """
    random = np.random.default_rng(seed)
    rows = []
    for user in range(200):
        chosen: set[int] = set()
        clusters = random.choice(12, 2, replace=False)
        while len(chosen) < 14:
            chosen.add(int(random.choice(clusters)) + 12 * int(15 * random.random() ** 2))
        rows += [Row(user, item, float(random.integers(4, 6))) for item in chosen]
    return rows


ORDERS: dict[str, Callable[[Row], Any]] = {
    "by user": lambda row: (row.user, row.item),
    "by item": lambda row: (row.item, row.user),
    "by rating": lambda row: (row.rating, -row.user),
}


def trained_on(dataset: Dataset, config: Config, out: Path) -> Evaluation:
    config = replace(config, metrics=replace(config.metrics, enabled=False))
    run_worker(RunSpec("default", config, dataset.path, str(out)), SilentProgress())
    with process_group() as ranks:
        trained = load_run(out, ranks)
        encoder = Encoder.of_run(trained, ranks)
        found = evaluate_split(encoder, dataset, "test", (10,), baseline=True)
        del trained, encoder
        gc.collect()
    return found


def small(config: Config, epochs: int) -> Config:
    return replace(
        config,
        model=replace(config.model, dim=16),
        training=replace(config.training, global_batch_size=256, epochs=epochs, threads=1),
        evaluation=replace(config.evaluation, every_epochs=epochs),
    )


def test_the_order_of_a_source_without_times_does_not_matter(tmp_path: Path) -> None:
    """Rows by user, by item, by rating: one NDCG, far above popularity, with a history read."""
    ndcg = []
    for name, order in ORDERS.items():
        source = write_csv(tmp_path / f"{name}.csv", sorted(tastes(1), key=order))
        dataset = make(source, tmp_path / name)
        config = small(default_preset(dataset), 3)
        config = replace(config, model=replace(config.model, use_history=True))
        found = trained_on(dataset, config, tmp_path / f"{name}-run")
        assert found.values["ndcg@10"] > 1.6 * found.baseline["ndcg@10"]
        ndcg.append(found.values["ndcg@10"])
    assert max(ndcg) - min(ndcg) < 0.1 * max(ndcg)


def test_order_is_worth_reading(tmp_path: Path) -> None:
    """Items follow one another in fixed chains: the last one tells the next."""
    random = np.random.default_rng(4)
    after = random.permutation(60)
    rows = []
    for user in range(250):
        item = int(random.integers(60))
        for time in range(8):
            rows.append(Row(user, item, None, 1000 * time + user))
            item = int(after[item]) if random.random() < 0.8 else int(random.integers(60))
    dataset = make(write_csv(tmp_path / "rows.csv", rows), tmp_path / "data")
    found = trained_on(dataset, small(default_preset(dataset), 10), tmp_path / "run")
    assert found.values["recall@10"] > 0.6 > 2 * found.baseline["recall@10"]
