"""What `tandem train` says first and last."""

from pathlib import Path

from cluster.commands.train_run import ending
from tests.one_rank import begun, small_data
from trainer.config.presets import find_preset
from trainer.files.json_files import read_json
from trainer.run.folder import RunSpec

SPEC = RunSpec("demo", find_preset("demo"), "data", "/runs/a run")
SUMMARY = {"steps": 1234, "workers": 1, "seconds": 39.6}
QUALITY = {"metric": "ndcg@20", "value": 0.1753, "popularity": 0.0809, "step": 405, "epoch": 9}


def test_it_ends_with_quality_beside_popularity_and_what_comes_next() -> None:
    best, following, report, last = ending({**SUMMARY, "quality": QUALITY}, SPEC)
    assert best == (
        "best ndcg@20 0.1753 on validation, after epoch 9, 2.17 times popularity (0.0809)"
    )
    assert following == "next: tandem evaluate '/runs/a run' --split test"
    assert report == "      tandem report '/runs/a run'"
    assert last == "trained 1,234 steps with 1 worker in 40 s: /runs/a run"
    assert len(list(ending({**SUMMARY, "quality": None}, SPEC))) == 3


def test_a_run_says_what_it_is_of_and_keeps_its_best(tmp_path: Path) -> None:
    said = begun(small_data(tmp_path), tmp_path / "run", evaluation={"every_epochs": 1, "k": (20,)})
    rows, model, loss = next(each for each in said if each.startswith("data ")).split("\n")
    assert " users and " in rows and " items" in rows
    assert model.startswith("model  ") and " parameters (" in model
    assert loss.startswith("loss   ") and loss.endswith("1 worker on CPU")
    quality = read_json(tmp_path / "run" / "summary.json")["quality"]
    assert quality["value"] > 0 and quality["popularity"] > 0 and quality["epoch"] == 1
    assert any(f"{quality['value']:.4f} (popularity" in each for each in said)
