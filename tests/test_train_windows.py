"""`train --windows`: each window once, evaluated on before; stopped or not, all is the same."""

import json
import os
import re
import shutil
import signal
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import trainer.follow
from tests.data.windows import Event, Log, day_of, events_of, make, make_log, write
from tests.distributed import run_ranks, start_rank
from tests.one_rank import Notes, checkpoints
from tests.test_training import _worker, losses, small_config
from trainer.base.ending import guarded
from trainer.base.mistake import Mistake
from trainer.command_line import TrainArguments
from trainer.data.events.event_stream import EventStream
from trainer.data.schema import Dataset
from trainer.distributed.hooks import Hooks
from trainer.loader.epoch_rows import WindowSchedule
from trainer.loader.loader import Loader
from trainer.report.report import report_html
from trainer.run.checkpoint_facts import rank_file
from trainer.run.folder import RunSpec
from trainer.train import main, parse, run_worker

pytestmark = pytest.mark.xdist_group("ranks")

DAYS = 4
MODEL = {"tower": "mf", "use_history": False, "user_attributes": False, "item_attributes": False}
EVERYTHING: dict[str, dict[str, Any]] = {
    "loss": {"learn_temperature": True, "hardness": 0.3},
    "negatives": {"log_q": "streaming", "queue": 32, "queue_warmup_steps": 2, "uniform": 16},
    "optimizer": {"tower_averaging": 0.9},
}


@pytest.fixture(scope="module")
def log() -> Log:
    return make_log(3, rows=1800, days=DAYS)


@pytest.fixture(scope="module")
def days(log: Log, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A dataset of the first day, of two days, and so on: each appended to a copy of the last."""
    root = tmp_path_factory.mktemp("days")
    grown = []
    for day in range(DAYS):
        source = write([row for row in log if day_of(row[3]) == day], root / f"{day}.parquet")
        data = root / f"data{day}"
        if day:
            shutil.copytree(grown[-1], data)
        make(source, data, append=day > 0, window=None if day else "day", history_length=5)
        grown.append(data)
    return grown


def spec_of(data: Path, out: Path, resume: bool = False, /, **sections: dict[str, Any]) -> RunSpec:
    settings: dict[str, dict[str, Any]] = {
        "data": {"windows": True},
        "model": {**MODEL, "dim": 8},
        "training": {"epochs": 1, "global_batch_size": 32},
        "optimizer": {"schedule": "constant"},
        "checkpoint": {"keep": 99},
        "evaluation": {"k": (5, 20)},
        "metrics": {"enabled": False},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return RunSpec("ml-100k", small_config(**settings), str(data), str(out), resume=resume)


def trained(spec: RunSpec, hooks: Hooks | None = None) -> list[str]:
    notes = Notes()
    run_worker(spec, notes, hooks)
    return notes.said


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(out)[-1] / rank_file(0))


def evaluations(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]
    return [{key: each[key] for key in each if key != "time"} for each in lines]


def same(one: Path, other: Path) -> None:
    """To the last bit, and the same lines once each."""
    assert losses(one) == losses(other)
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert evaluations(one) == evaluations(other)


def stops_at(step: int) -> Hooks:
    seen: list[int] = []
    return Hooks(on_step=seen.append, stop_requested=lambda: bool(seen) and seen[-1] >= step)


@pytest.mark.parametrize("passes", [1, 2])
def test_each_event_is_trained_once_a_pass_in_its_windows_turn(
    passes: int, days: list[Path]
) -> None:
    dataset = Dataset.load(days[-1])
    stream = EventStream(dataset, trains_disliked=False, reads_disliked=False)
    schedule = WindowSchedule(stream, tuple(stream.numbers), passes)
    loader = Loader(
        dataset,
        splits=("train", "validation", "test"),
        query_keys=("user",),
        local_batch_size=16,
        schedule=schedule,
        extra_candidates=4,
    )
    met: dict[int, Counter[tuple[int, int]]] = defaultdict(Counter)
    met_so_far: set[int] = set()
    for batch in loader:
        window = batch.position["order"]["window"]
        user, item = batch.user_B.numpy(), batch.item_S.numpy()
        real = user >= 0
        met[window].update(zip(user[real].tolist(), item[:16][real].tolist(), strict=True))
        facts = stream.facts(window)
        assert (batch.count_S.numpy()[:16][real] == facts.count_I[item[:16][real]]).all()
        met_so_far = set(np.flatnonzero(facts.count_I + stream.before(window).count_I))
        assert set(item[16:].tolist()) <= met_so_far  # drawn from what was there by then
    raw = {
        side: {
            value: row
            for row, value in enumerate(
                pq.read_table(dataset.file(f"{side}s.parquet"))["raw_id"].to_pylist()
            )
        }
        for side in ("user", "item")
    }
    for place, window in enumerate(stream.numbers):
        own = [e for e in events_of(dataset, place) if e.own and e.feedback > 0]
        rows = Counter((raw["user"][e.user], raw["item"][e.item]) for e in own)
        assert met[window] == Counter({pair: count * passes for pair, count in rows.items()})
    steps = sum(-(-sum(met[w].values()) // passes // 16) * passes for w in stream.numbers)
    assert loader.steps_left(schedule.epochs) >= steps


def by_definition(data: Path, table: dict[str, np.ndarray], window: int, k: int) -> dict[str, Any]:
    """Recall of a window's likes by cosines of the tables as they were before it."""
    dataset = Dataset.load(data)
    raw = {
        side: pq.read_table(dataset.file(f"{side}s.parquet"))["raw_id"].to_pylist()
        for side in ("user", "item")
    }
    events: list[Event] = events_of(dataset)
    before = [e for e in events if day_of(e.time) < window]
    now = [e for e in events if day_of(e.time) == window and e.feedback > 0]
    liked_before = Counter(e.item for e in before if e.feedback > 0)
    found, of_new = [], []
    for user in sorted({e.user for e in now}):
        targets = {e.item for e in now if e.user == user}
        seen = {e.item for e in before if e.user == user}
        query = table["user"][raw["user"].index(user)]
        scores = {}
        for row, item in enumerate(raw["item"]):
            vector = table["item"][row]
            if item not in seen and vector.any():
                scores[item] = float(query @ vector / np.linalg.norm(vector))
        if not query.any():
            scores = {item: float(liked_before[item]) for item in scores}
        best = sorted(scores, key=lambda item: -scores[item])[:k]
        found.append((query.any(), len(targets & set(best)) / len(targets)))
        new = {item for item in targets if not liked_before[item]}
        if new:
            of_new.append(len(new & set(best)) / len(new))
    return {"found": found, "of_new": of_new}


def test_it_is_evaluated_on_each_window_as_of_before_it(days: list[Path], tmp_path: Path) -> None:
    """Against plain definition, over the tables of the checkpoint before."""
    out = tmp_path / "run"
    said = trained(spec_of(days[-1], out))
    records = evaluations(out)
    assert [each["window"] for each in records] == [1, 2, 3]
    ends = {int(path.name[5:]): path for path in checkpoints(out)}
    for record in records:
        saved = load_file(ends[record["step"]] / rank_file(0))
        table = {
            side: saved[f"model.embeddings.embedding_bags.{side}.weight"].numpy()
            for side in ("user", "item")
        }
        expected = by_definition(days[-1], table, record["window"], 5)
        known = [recall for is_known, recall in expected["found"] if is_known]
        assert 0 < len(known) < len(expected["found"])  # some users are new: asked by popularity
        share = len(known) / len(expected["found"])
        others = record["recall@5"] - share * float(np.mean(known))
        assert -1e-9 <= others <= 1 - share + 1e-9
        assert record["new_items/recall@5"] == pytest.approx(np.mean(expected["of_new"]), abs=1e-9)
    told = [line for line in said if re.match(r"window \d", line)]
    assert len(told) == DAYS
    for line, window in zip(told, range(DAYS), strict=True):
        dataset = Dataset.load(days[window])
        smaller = Dataset.load(days[window - 1]) if window else None
        new = dataset.num_items - (smaller.num_items if smaller else 0)
        counted = re.search(r"([\d,]+) items and ([\d,]+) users of them new", line)
        assert counted and 0 < int(counted[1]) <= new, line
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["window"] == 3 and last["window/recall@5"] == records[-1]["recall@5"]
    assert "validation" in report_html([_read(out)])


def _read(out: Path) -> dict[str, Any]:
    from trainer.live.runs import read_run

    return {**read_run(out), "norms": "", "dataset": None}


def test_a_row_is_nothing_until_its_windows_turn(days: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained(spec_of(days[-1], out))
    stream = EventStream(Dataset.load(days[-1]), trains_disliked=False, reads_disliked=False)
    steps = [each["step"] for each in evaluations(out)]
    for step, window in zip(steps, stream.numbers[1:], strict=True):
        saved = load_file(out / "checkpoints" / f"step-{step:08d}" / rank_file(0))
        known = saved["model.embeddings.embedding_bags.item.weight"].any(dim=1).numpy()[:-1]
        assert (known == stream.before(window).item_I).all()


@pytest.mark.parametrize("passes", [1, 2])
def test_resumed_anywhere_it_is_as_never_stopped(
    passes: int, days: list[Path], tmp_path: Path
) -> None:
    """In the middle of a window, at its end, with the queue, averaging and all that is learned."""
    given = {**EVERYTHING, "training": {"epochs": passes}}
    whole = tmp_path / "whole"
    trained(spec_of(days[-1], whole, **given))
    ends = [each["step"] for each in evaluations(whole)]
    total = max(losses(whole))
    for number, stop in enumerate((ends[0], ends[1] + 1, ends[2] - 1, total - 1)):
        out = tmp_path / f"stopped{number}"
        trained(spec_of(days[-1], out, **given), stops_at(stop))
        assert max(losses(out)) < total
        trained(spec_of(days[-1], out, True, **given))
        same(out, whole)


def test_killed_after_an_evaluation_its_line_is_there_once(
    days: list[Path], tmp_path: Path
) -> None:
    """The line is written before the checkpoint says so."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    trained(spec_of(days[-1], whole))

    class Killed(Exception):
        pass

    def kill(record: dict[str, float]) -> None:
        if record["window"] == 2:
            raise Killed

    with pytest.raises(Killed):
        trained(spec_of(days[-1], out), Hooks(on_evaluation=kill))
    trained(spec_of(days[-1], out, True))
    same(out, whole)


def test_windows_appended_meanwhile_come_to_the_same(
    days: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables that grew from window to window are those that were made for all windows at once."""
    whole, out, data = tmp_path / "whole", tmp_path / "run", tmp_path / "data"
    given = {"negatives": {"uniform": 16}}
    trained(spec_of(days[-1], whole, **given))
    exported = [tmp_path / "exported", tmp_path / "followed"]
    again = replace(spec_of(days[-1], tmp_path / "again", **given), export_to=str(exported[0]))
    trained(again)
    shutil.copytree(days[0], data)
    monkeypatch.setattr(trainer.follow, "POLL_SECONDS", 0.01)

    class Appending(Notes):
        """The next day comes whenever the run says that it waits; then it is told to stop."""

        waits, is_told = 0, False

        def message(self, text: str) -> None:
            super().message(text)
            if not text.startswith("waiting for a window"):
                return
            self.waits += 1
            self.is_told = self.waits == DAYS
            if not self.is_told:
                shutil.rmtree(data)
                shutil.copytree(days[self.waits], data)

    notes = Appending()
    hooks = Hooks(stop_requested=lambda: notes.is_told)
    spec = replace(spec_of(data, out, **given), follow=True, export_to=str(exported[1]))
    summary = run_worker(spec, notes, hooks)
    assert summary["phase"] == "stopped"
    same(out, whole)
    assert len((out / "starts.jsonl").read_text().splitlines()) == 1
    assert any(line.startswith("waiting for a window after number 0") for line in notes.said)
    names = sorted(path.name for path in exported[0].glob("*.parquet"))
    assert len(names) == DAYS
    for name in names:
        assert (exported[0] / name).read_bytes() == (exported[1] / name).read_bytes()
    vectors: dict[int, list[float]] = {}
    for name in names:
        table = pq.read_table(exported[0] / name)
        vectors |= dict(zip(*(table[c].to_pylist() for c in ("item", "embedding")), strict=True))
    rows = tensors(whole)["model.embeddings.embedding_bags.item.weight"]
    expected = torch.nn.functional.normalize(rows, dim=1)
    assert set(vectors) == set(rows.any(dim=1).nonzero().squeeze(1).tolist())
    for item, vector in vectors.items():
        assert torch.allclose(torch.tensor(vector), expected[item], atol=1e-6)


def test_two_ranks_train_as_one(days: list[Path], tmp_path: Path) -> None:
    spec = {"negatives": {"uniform": 16}, "model": {**MODEL, "dim": 8}}
    for name in ("one", "two"):
        given = spec_of(days[-1], tmp_path / name, **spec)
        given = replace(given, export_to=str(tmp_path / f"items_of_{name}"))
        run_ranks(2, _worker, given) if name == "two" else trained(given)
    for file in (tmp_path / "items_of_one").glob("*.parquet"):
        first, second = (
            pq.read_table(path) for path in (file, tmp_path / "items_of_two" / file.name)
        )
        assert second["item"] == first["item"] and second["raw_id"] == first["raw_id"]
        vectors = [np.stack(table["embedding"].to_numpy()) for table in (first, second)]
        assert np.allclose(*vectors, atol=0.05)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two == pytest.approx(one, rel=1e-4)
    lines = (evaluations(tmp_path / name) for name in ("one", "two"))
    for first, second in zip(*lines, strict=True):
        assert second["window"] == first["window"]
        assert second["popularity/recall@20"] == pytest.approx(first["popularity/recall@20"])
        assert second["recall@20"] == pytest.approx(first["recall@20"], abs=0.05)


def test_a_run_that_was_trained_at_once_is_gone_on_with_window_by_window(
    days: list[Path], tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    trained(spec_of(days[1], old, data={"windows": False}))
    given = replace(spec_of(days[-1], new), start_from=str(old))
    trained(given, stops_at(2))
    assert [each["window"] for each in evaluations(new)] == [2]  # before its first step
    trained(replace(spec_of(days[-1], new, True), start_from=str(old)))
    assert [each["window"] for each in evaluations(new)] == [2, 3]


def test_what_windows_cannot_have_is_told(days: list[Path], tmp_path: Path) -> None:
    for sections, wanted in (
        ({"optimizer": {"schedule": "linear"}}, "optimizer.schedule=linear with --windows"),
        ({"model": {"spectral_start": 1.0}}, "model.spectral_start=1.0 with --windows"),
    ):
        spec = replace(spec_of(days[0], tmp_path / "run", **sections), preset="gowalla")
        spec = replace(spec, preset=str(tmp_path / "no.toml"))
        with pytest.raises(Mistake, match=wanted):
            trained(spec)
    assert not (tmp_path / "run").exists()


def test_flags_that_go_with_windows_alone(days: list[Path], tmp_path: Path) -> None:
    plain = TrainArguments(str(days[0]), str(tmp_path / "run"), small_config())
    for name, value in (("follow", True), ("export_to", str(tmp_path / "items"))):
        with pytest.raises(Mistake, match=f"--{name.replace('_', '-')} goes with --windows"):
            replace(plain, **{name: value})
    given = ["demo", "--data", str(days[0]), "--out", str(tmp_path / "run")]
    _, parsed = parse([*given, "--windows", "--follow"])
    spec = parsed.run_spec("demo")
    assert spec.follow and spec.config.data.windows and "test" in spec.config.data.train_splits


def _command(arguments: list[str], said: Path) -> None:
    """`python -m trainer.train`, in a process that has imported it; stderr goes to a pipe."""
    sys.stderr = said.open("w", buffering=1)
    sys.exit(guarded(lambda: main(arguments), "trainer.train", verbose=False))


@pytest.mark.parametrize(("told", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_while_it_waits_it_ends_with_a_checkpoint(
    told: signal.Signals, status: int, days: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["demo", "--data", str(days[0]), "--out", str(out)]
    os.mkfifo(tmp_path / "said")
    process = start_rank(
        _command, [*arguments, "--windows", "--follow", "--metrics.no-enabled"], tmp_path / "said"
    )
    said = []
    for line in (tmp_path / "said").open():
        said.append(line)
        if "waiting for a window" in line:
            os.kill(process.pid, told)
    process.join()
    assert process.exitcode == status, "".join(said)
    assert "with a checkpoint" in said[-1] and checkpoints(out)
    assert json.loads((out / "summary.json").read_text())["phase"] == "stopped"
