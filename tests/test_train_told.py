"""What `tandem train` says first and last."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.commands.train_run import Took, ending, following
from tests.one_rank import begun, small_data
from trainer.base.terminal.pasted import pasted
from trainer.command_line import overridden
from trainer.config.presets import find_preset
from trainer.data.schema import Dataset
from trainer.files.json_files import read_json
from trainer.fitting import blind_spots
from trainer.observe.choice import Choice, TriedModel
from trainer.run.folder import RunSpec

SPEC = RunSpec("demo", find_preset("demo"), "data", "/runs/a run")
SUMMARY = {"steps": 1234, "workers": 1, "epochs": 12}
QUALITY = {
    "metric": "ndcg@20",
    "value": 0.1753,
    "popularity": 0.0809,
    "step": 405,
    "epoch": 9,
    "out_of_patience": False,
}
TOOK = Took(tries=61.2, training=39.6, whole=135.4)


def test_it_ends_with_quality_beside_popularity_and_what_comes_next() -> None:
    best, took = ending({**SUMMARY, "quality": QUALITY}, SPEC, TOOK)
    assert best == (
        "best ndcg@20 0.1753 on validation, after epoch 9, 2.17 times popularity (0.0809)"
    )
    assert [pasted(*each, width=80) for each in following(SPEC)] == [
        "next: tandem evaluate '/runs/a run' --split test",
        "      tandem recommend '/runs/a run' --user ID",
        "      tandem report '/runs/a run'",
    ]
    assert took == (
        "trained 1,234 steps with 1 worker in 2 min 15 s: 1 min 1 s trying models, "
        "35 s loading and starting workers, 40 s training"
    )
    without = Took(tries=0.01, training=40, whole=60)
    *_, took = ending({**SUMMARY, "quality": None}, SPEC, without)
    assert took.endswith("in 1 min 0 s: 20 s loading and starting workers, 40 s training")


def test_a_run_on_all_data_has_the_figure_of_its_try() -> None:
    models = (TriedModel("factors", "cosines", 0.18),)
    choice = Choice("ndcg@20", "factors", 20.0, {"popularity": 0.09}, models)
    told = list(ending({**SUMMARY, "quality": None}, SPEC, TOOK, choice))
    assert "factors 0.1800, the best of 1 model, 2.00 times popularity" in told[0]


def test_a_try_that_was_better_is_told() -> None:
    models = (TriedModel("factors", "cosines", 0.18), TriedModel("graph", "inner products", 0.1))
    choice = Choice("ndcg@20", "factors", 20.0, {}, models)
    told = list(ending({**SUMMARY, "quality": QUALITY}, SPEC, TOOK, choice))
    assert any(line.startswith("when it was tried it had 0.1800:") for line in told)
    worse = replace(choice, models=(TriedModel("factors", "cosines", 0.17),))
    assert len(list(ending({**SUMMARY, "quality": QUALITY}, SPEC, TOOK, worse))) == len(told) - 1


def test_what_a_model_of_ids_alone_cannot_answer_is_told(tmp_path: Path) -> None:
    data = Dataset.load(small_data(tmp_path))
    plain = overridden(SPEC.config, {"model.use_history": False, "model.tower": "mf"})
    user, item = blind_spots(data, plain)
    assert "else by what is popular (--model.use-history or --model.user-attributes is t" in user
    assert "new ones are in no list until they are trained (--model.item-attributes" in item
    reads = overridden(SPEC.config, {"model.use_history": True, "model.item_attributes": True})
    assert not list(blind_spots(data, reads))
    assert not list(blind_spots(data, plain, reads))  # two models, of which one knows


def test_a_run_that_its_patience_ended_says_so() -> None:
    config = overridden(SPEC.config, {"training.epochs": 12, "evaluation.patience": 3})
    spec = replace(SPEC, config=config)
    quality = {**QUALITY, "epoch": 4, "out_of_patience": True}
    early, best, *_ = ending({**SUMMARY, "epochs": 7, "quality": quality}, spec, TOOK)
    assert early == (
        "stopped early, after epoch 7 of 12: validation ndcg@20 was best after epoch 4, and "
        "3 evaluations since (--evaluation.patience) brought nothing better"
    )
    assert best.startswith("best ndcg@20")
    last = next(ending({**SUMMARY, "quality": quality}, spec, TOOK))
    assert last.startswith("best ndcg@20"), "its last epoch ended it"


@pytest.mark.parametrize(
    ("given", "shown"), [("user 0", "--user 'user 0'"), ("7", "--user 7"), ("-x", "--user=-x")]
)
def test_a_user_of_the_data_is_named(given: str, shown: str, tmp_path: Path) -> None:
    table = pa.table({"raw_id": [given]})
    pq.write_table(table, tmp_path / "users.parquet")
    _, people, _ = following(replace(SPEC, data=str(tmp_path)))
    assert pasted(*people, width=None).endswith(f"recommend '/runs/a run' {shown}")


def test_a_run_says_what_it_is_of_and_keeps_its_best(tmp_path: Path) -> None:
    said = begun(small_data(tmp_path), tmp_path / "run", evaluation={"every_epochs": 1, "k": (20,)})
    rows, model, loss = next(each for each in said if each.startswith("data ")).split("\n")
    assert " users and " in rows and " items" in rows
    assert model.startswith("model  ") and " parameters (" in model
    assert loss.startswith("loss   ") and loss.endswith("1 worker on CPU")
    quality = read_json(tmp_path / "run" / "summary.json")["quality"]
    assert quality["value"] > 0 and quality["popularity"] > 0 and quality["epoch"] == 1
    assert any(f"{quality['value']:.4f} (popularity" in each for each in said)
