"""`train --start-from RUN`: what a new run takes, by id or by name, and what it does not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.data.windows import day_of, make, make_log, write
from tests.datasets import make_dataset
from tests.distributed import run_ranks
from tests.one_rank import Notes, checkpoints, small_data, spec_of
from tests.test_training import _worker, losses
from trainer.base.mistake import Mistake
from trainer.command_line import TrainArguments, parse_preset
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.live.runs import read_run
from trainer.model.build import build_model
from trainer.model.trained import load_run
from trainer.report.report import report_html
from trainer.retrieval.evaluate import evaluate_model
from trainer.run.checkpoint_facts import rank_file
from trainer.run.folder import RunFolder, RunSpec
from trainer.train import run_worker

pytestmark = pytest.mark.xdist_group("ranks")

LEARNED: dict[str, dict[str, Any]] = {
    "model": {"user_attributes": False, "item_attributes": False},
    "negatives": {"log_q": "streaming"},
    "loss": {"learn_temperature": True},
}
"""A model with something of everything that is learned."""
TABLE = "model.embeddings.embedding_bags.{}.weight"
STATE = "optimizer.state.tables.embeddings.embedding_bags.{0}.weight.{0}.momentum1"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sheets are read here as they are on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def grown(data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("grown") / "data"
    made = make_dataset(path, users=75, items=55, rows=1700)
    made = replace(made, parent_digest=Dataset.load(data).digest)
    (path / "dataset.json").write_text(made.to_json())
    return str(path)


@pytest.fixture(scope="module")
def origin(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and no other's folder: nothing here may change it."""
    out = tmp_path_factory.mktemp("origin") / "run"
    run_worker(spec_of(data, out, **LEARNED), Notes())
    return out


def started(data: str, out: Path, origin: Path, /, **sections: dict[str, Any]) -> RunSpec:
    """A new run of three steps that keeps its checkpoint of step 0."""
    given = {**LEARNED, **sections}
    given["training"] = {"max_steps": 3, **sections.get("training", {})}
    given["checkpoint"] = {"every_steps": 2, "keep": 9}
    return replace(spec_of(data, out, **given), start_from=str(origin))


def trained(spec: RunSpec) -> str:
    notes = Notes()
    run_worker(spec, notes)
    return "\n".join(notes.said)


def saved(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint that one rank wrote."""
    return load_file(checkpoint / rank_file(0))


def evaluated(out: Path, data: str) -> dict[str, float]:
    with process_group() as ranks:
        model = load_run(out, ranks).model
        found = evaluate_model(model, Dataset.load(data), "test", ranks, (5, 20)).values
        del model
    return found


def line_of(told: str, what: str) -> str:
    return next(line for line in told.splitlines() if line.lstrip("│ ").startswith(f"{what}  "))


@pytest.mark.parametrize("averaging", [(0.0, 0.0), (0.9, 0.0), (0.0, 0.9)])
def test_on_the_same_data_it_begins_as_the_other_ended(
    averaging: tuple[float, float], data: str, tmp_path: Path
) -> None:
    """Before the first step it answers, and goes on, as RUN would: to the last bit."""
    old, new = tmp_path / "old", tmp_path / "new"
    before, now = ({"tower_averaging": each, "schedule": "constant"} for each in averaging)
    run_worker(spec_of(data, old, **LEARNED, optimizer=before), Notes())
    told = trained(started(data, new, old, optimizer=now))
    first, *later = checkpoints(new)
    assert first.name.endswith("0") and later
    end, begin = saved(checkpoints(old)[-1]), saved(first)
    for name in begin:
        source = name.replace("averaged", "towers") if not averaging[0] else name
        if averaging == (0.9, 0.0):
            source = source.replace("model.head.towers", "model.head.averaged")
        assert torch.equal(begin[name], end[source]), name
    for each in later:
        shutil.rmtree(each)
    assert evaluated(new, data) == evaluated(old, data)
    assert "all 40 rows" in line_of(told, "table item")
    assert "│ all " in line_of(told, "frequencies of items")


def test_on_data_that_grew_rows_keep_their_ids(
    data: str, grown: str, origin: Path, tmp_path: Path
) -> None:
    """The others, and the row for unknown ids, begin as they would without RUN."""
    out = tmp_path / "new"
    spec = started(grown, out, origin)
    told = trained(spec)
    end, begin = saved(checkpoints(origin)[-1]), saved(checkpoints(out)[0])
    with process_group() as ranks:
        fresh = build_model(spec.config, Dataset.load(grown), ranks)
        built = {
            name.split(".")[-2]: weight.local_shards()[0].tensor.clone()
            for name, weight in fresh.state_dict().items()
            if "embedding_bags" in name
        }
        del fresh
    for table, old, new in (("item", 40, 55), ("user", 60, 75)):
        rows, states = begin[TABLE.format(table)], begin[STATE.format(table)]
        known = end[TABLE.format(table)][:old].abs().amax(1) > 0
        assert torch.equal(rows[:old][known], end[TABLE.format(table)][:old][known])
        assert torch.equal(rows[old:], built[table][old:]) and rows[old].any()
        assert not rows[new].any()
        assert torch.equal(states[:old], end[STATE.format(table)][:old]) and states[:old].any()
        assert not states[old:].any()
        assert f"{old} of {new} rows" in line_of(told, f"table {table}, optimizer")
    assert len(losses(out)) == 3


def test_any_number_of_ranks_and_sharding_begins_alike(
    data: str, grown: str, origin: Path, tmp_path: Path
) -> None:
    """Two ranks with whole tables take from one, one takes from them: the same curves."""
    trained(started(grown, tmp_path / "one", origin))
    model = {**LEARNED["model"], "sharding": "table_wise"}
    run_ranks(2, _worker, started(grown, tmp_path / "two", origin, model=model))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two == pytest.approx(one, rel=1e-5)
    trained(started(grown, tmp_path / "again", tmp_path / "two"))
    assert losses(tmp_path / "again")[1] < one[1]


def test_what_does_not_agree_is_told_and_trained_anew(
    data: str, origin: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    told = trained(
        started(
            data,
            out,
            origin,
            model={
                **LEARNED["model"],
                "hidden": (24, 16),
                "use_history": True,
                "shared_item_table": False,
            },
            optimizer={"tables": "adagrad", "schedule": "constant"},
            training={"global_batch_size": 64},
        )
    )
    begin, end = saved(checkpoints(out)[0]), saved(checkpoints(origin)[-1])
    assert torch.equal(begin[TABLE.format("item")], end[TABLE.format("item")])
    assert not begin[STATE.format("item")].any()
    assert "is not there" in line_of(told, "table history")
    assert "was rowwise_adagrad, now adagrad" in line_of(told, "table item, optimizer")
    assert "F32 [24, 16] here" in line_of(told, "candidate tower") or "[24] here" in told
    assert "global_batch_size is another" in line_of(told, "frequencies of items")
    last = saved(checkpoints(out)[-1])
    moved = [name for name in begin if "towers.query" in name and "optimizer" not in name]
    assert moved and not any(torch.equal(begin[name], last[name]) for name in moved)


def test_a_bias_is_not_taken_without_its_weight(data: str, origin: Path, tmp_path: Path) -> None:
    """Two layers of other widths, whose last biases have one shape: they belong to other sums."""
    out = tmp_path / "new"
    model = {**LEARNED["model"], "hidden": (24,)}
    told = trained(started(data, out, origin, model=model))
    begin, end = saved(checkpoints(out)[0]), saved(checkpoints(origin)[-1])
    name = "model.head.towers.query.layers.1.bias"
    assert begin[name].shape == end[name].shape and not torch.equal(begin[name], end[name])
    assert " no " in line_of(told, "query tower") and "1 of" not in line_of(told, "query tower")


def test_it_goes_on_without_the_run_it_came_from(data: str, origin: Path, tmp_path: Path) -> None:
    copy, out, whole = tmp_path / "copy", tmp_path / "new", tmp_path / "whole"
    shutil.copytree(origin, copy)
    trained(started(data, whole, origin, training={"max_steps": 6}))
    trained(started(data, out, copy, training={"max_steps": 1}))
    assert "started from" in report_html([{**read_run(out), "norms": "", "dataset": None}])
    shutil.rmtree(copy)
    spec = started(data, out, copy, training={"max_steps": 6})
    run_worker(replace(spec, resume=True, start_from=None, run_id="later"), Notes())
    assert losses(out) == losses(whole)
    before = RunFolder(out).read_config().start_from
    assert before is not None and (before.run, before.step) == (str(copy), 10)


def test_one_that_ended_before_its_first_checkpoint_starts_from_there_again(
    data: str, origin: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    spec = started(data, out, origin)
    trained(spec)
    whole = losses(out)
    shutil.rmtree(out / "checkpoints")
    told = trained(replace(spec, resume=True, start_from=None, run_id="later"))
    assert "all 40 rows" in told and losses(out) == whole


def test_what_cannot_be_started_from_is_refused(
    data: str, grown: str, origin: Path, tmp_path: Path
) -> None:
    other = make_dataset(tmp_path / "other", users=60, items=40, rows=1400, seed=5)
    bare = tmp_path / "bare"
    shutil.copytree(origin, bare, ignore=shutil.ignore_patterns("checkpoints"))
    plain = tmp_path / "plain"
    run_worker(spec_of(data, plain, training={"max_steps": 1}), Notes())
    out = tmp_path / "new"
    for spec, words in (
        (started(other.path, out, origin), "its data are not those in .*--append"),
        (started(data, out, tmp_path / "none"), "none is no run"),
        (started(data, out, bare), "no finished checkpoint"),
        (
            started(data, out, origin, model={**LEARNED["model"], "dim": 24}),
            r"none of its tables fits this run \(item: .*leave the preset and settings",
        ),
        (replace(started(data, plain, origin), resume=True), "has started anew.*--resume goes on"),
    ):
        with pytest.raises(Mistake, match=words) as caught:
            run_worker(spec, Notes())
        assert "\n" not in str(caught.value)
        assert not out.exists()


def test_a_run_of_the_grown_data_gives_nothing_to_one_of_the_data_before(
    data: str, grown: str, tmp_path: Path
) -> None:
    """It has rows that these data do not know."""
    run_worker(spec_of(grown, tmp_path / "run", training={"max_steps": 1}), Notes())
    with pytest.raises(Mistake, match="its data are not those in"):
        run_worker(started(data, tmp_path / "new", tmp_path / "run"), Notes())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["start_from"] is None


def test_without_a_preset_it_has_the_settings_of_the_run_it_starts_from(
    data: str, origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A restart goes on by the same command line when that run is gone."""
    flags = [f"--data={data}", f"--start-from={origin}"]
    out = tmp_path / "new"
    more = ["--training.max-steps=3", "--optimizer.schedule=constant"]
    preset, parsed = parse_preset([*flags, f"--out={out}", *more], "train", TrainArguments)
    assert f"settings of {origin}; your flags override it" in capsys.readouterr().err
    told = trained(parsed.run_spec(preset))
    assert "all 40 rows" in line_of(told, "table item") and " no " not in told
    again = [f"--out={out}", f"--data={data}", f"--start-from={origin}", "--resume=auto"]
    away = origin.rename(origin.with_name("away"))
    try:
        preset, resumed = parse_preset([*again, "--training.max-steps=4"], "train", TrainArguments)
        told = trained(resumed.run_spec(preset))
    finally:
        away.rename(origin)
    assert resumed.config.model == parsed.config.model
    assert "going on from" in told and max(losses(out)) == 4
    for origin_named in ([], [f"--start-from={origin}"]):
        flags = [f"--data={data}", f"--out={out}", "--resume", *origin_named]
        named, resumed = parse_preset(flags, "train", TrainArguments)
        assert (named, resumed.config) == (preset, RunFolder(out).read_config().config)
    with pytest.raises(Mistake, match=r"--start-from .*none is no run: it has no config.json"):
        parse_preset([f"--data={data}", f"--start-from={tmp_path}/none"], "train", TrainArguments)


def test_windows_take_a_run_that_was_trained_at_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    log = make_log(3, rows=2400, days=3)
    first = [row for row in log if day_of(row[3]) < 2]
    make(write(first, tmp_path / "log.parquet"), data, window="day")
    old, out = tmp_path / "old", tmp_path / "new"
    model = {"user_attributes": False, "item_attributes": False, "spectral_start": 1.0}
    settings = {"model": model, "optimizer": {"schedule": "linear"}}
    run_worker(spec_of(str(data), old, **settings), Notes())
    flags = [f"--data={data}", "--windows", f"--out={old}"]
    preset, parsed = parse_preset(["demo", *flags], "train", TrainArguments)
    with pytest.raises(Mistake, match="on all data at once: --windows needs a folder of its own"):
        run_worker(parsed.run_spec(preset), Notes())
    flags = [f"--data={data}", "--windows", f"--out={out}", f"--start-from={old}"]
    preset, parsed = parse_preset(flags, "train", TrainArguments)
    assert parsed.config.optimizer.schedule == "linear"
    with pytest.raises(Mistake, match="knows all of the data, to window number 1: add one by"):
        run_worker(parsed.run_spec(preset), Notes())
    later = [row for row in log if day_of(row[3]) == 2]
    make(write(later, tmp_path / "later.parquet"), data, append=True)
    told = trained(parsed.run_spec(preset))
    assert "window by window" in told and " no " not in told
    flags = [f"--data={data}", f"--out={tmp_path / 'plain'}", f"--start-from={out}"]
    preset, parsed = parse_preset(flags, "train", TrainArguments)
    assert not parsed.config.data.windows and parsed.config.data.train_splits == ("train",)
    told = trained(parsed.run_spec(preset))
    assert "window by window" not in told and " no " not in told
