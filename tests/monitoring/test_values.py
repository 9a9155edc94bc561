"""Every metric of a real two-rank run, against what its data, files and clock say."""

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch.distributed as dist
from prometheus_client.parser import text_string_to_metric_families

from tests.distributed import run_ranks
from tests.test_training import small_config
from trainer.files.json_files import committed
from trainer.loader.batch import Batch
from trainer.observe.declared import METRICS
from trainer.observe.metrics import RankMetrics
from trainer.observe.progress import SilentProgress
from trainer.report.norms import _row_norms
from trainer.run.folder import RunSpec
from trainer.train import run_worker
from trainer.watch.vitals import Vitals

pytestmark = pytest.mark.slow
EPOCHS = 2


def a_rank(spec: RunSpec) -> None:
    """Train; leave what the endpoint would say at the end, and what the last batch held."""
    rank = str(dist.get_rank())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    folder = Path(spec.out)
    read, close = Vitals.read, RankMetrics.close

    def read_and_keep(vitals: Vitals, batch: Batch) -> dict[str, float]:
        told = json.dumps(look_ups_one_by_one(vitals, batch))
        folder.with_name(f"last-batch-{rank}.json").write_text(told)
        return read(vitals, batch)

    def keep_and_close(metrics: RankMetrics) -> None:
        folder.with_name(f"rank-{rank}.prom").write_bytes(metrics.render())
        close(metrics)

    Vitals.read, RankMetrics.close = read_and_keep, keep_and_close  # type: ignore[method-assign]
    run_worker(spec, SilentProgress())


def look_ups_one_by_one(vitals: Vitals, batch: Batch) -> dict[str, float]:
    """The slow reference of what Vitals says of a batch's ids."""
    values: dict[str, float] = {}
    for table in vitals._inputs.tables:
        ids = [each for key in table.features for each in batch.features[key].values().tolist()]
        values[f"tandem_table_rows_touched{{{table.name}}}"] = len(set(ids))
        values[f"tandem_unique_id_share{{{table.name}}}"] = len(set(ids)) / len(ids)
    users = batch.user_B.tolist()
    for key in vitals._inputs.keys:
        bags = [bag.tolist() for bag in batch.features[key].to_dense()[: len(users)]]
        unknown = [
            not bag or bag[0] == vitals._inputs.unknown_row(key)
            for user, bag in zip(users, bags, strict=True)
            if user >= 0
        ]
        values[f"tandem_unknown_value_share{{{key}}}"] = sum(unknown) / len(unknown)
    return values


class Ended(NamedTuple):
    """A run that is over."""

    ranks: list[dict[str, float]]
    """Samples of each rank by name{label}."""
    look_ups: list[dict[str, float]]
    line: dict[str, Any]
    """The last of metrics.jsonl."""
    out: Path
    began: float


@pytest.fixture(scope="module")
def ended(data: str, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("values")
    config = small_config(
        training={"epochs": EPOCHS, "log_every_steps": 4},
        evaluation={"every_epochs": 1, "k": (20,)},
        checkpoint={"every_steps": 6},
        negatives={"log_q": "streaming"},
        metrics={"enabled": True},
    )
    began = time.time()
    run_ranks(2, a_rank, RunSpec("ml-100k", config, data, str(folder / "run")))
    return Ended(
        [samples((folder / f"rank-{rank}.prom").read_text()) for rank in (0, 1)],
        [json.loads((folder / f"last-batch-{rank}.json").read_text()) for rank in (0, 1)],
        json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1]),
        folder / "run",
        began,
    )


def samples(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_every_declared_metric_has_a_value(ended: Ended) -> None:
    for rank in ended.ranks:
        for metric in METRICS:
            name = f"{metric.name}_count" if metric.kind == "histogram" else metric.name
            assert [key for key in rank if key.partition("{")[0] == name], name


def test_steps_and_rows_are_counted(ended: Ended) -> None:
    summary = json.loads((ended.out / "summary.json").read_text())
    for rank in ended.ranks:
        for name in ("steps_total", "step", "total_steps", "step_seconds_count"):
            assert rank[f"tandem_{name}"] == summary["steps"], name
        for phase in ("data_wait", "forward", "backward", "optimizer", "communication"):
            assert rank[f"tandem_step_phase_seconds_count{{{phase}}}"] == summary["steps"], phase
        assert rank["tandem_epoch"] == EPOCHS
        assert rank["tandem_finished"] == 1 and rank["tandem_world_size"] == 2
        assert rank["tandem_restarts_total"] == rank["tandem_nonfinite_steps_total"] == 0
        assert rank["tandem_evaluation_seconds_count"] == EPOCHS
        assert rank["tandem_checkpoint_interval_steps"] == 6
        assert rank["tandem_checkpoint_failures_total"] == 0
        assert rank["tandem_rows_dropped_total{corrupt}"] == 0
    rows = sum(rank["tandem_examples_total"] for rank in ended.ranks)
    assert rows == EPOCHS * summary["rows_per_epoch"]  # padding is not counted


def test_global_values_agree_with_the_ranks_own(ended: Ended) -> None:
    first, second = ended.ranks
    mean = (first["tandem_rank_loss"] + second["tandem_rank_loss"]) / 2
    assert first["tandem_rank_loss"] != second["tandem_rank_loss"]
    assert first["tandem_loss"] == pytest.approx(mean, rel=1e-6)
    shared = ("tandem_loss", "tandem_evaluation", "tandem_learning_rate", "tandem_epoch")
    for name in first:
        if name.partition("{")[0] in (*shared, "tandem_loss_part"):
            assert first[name] == second[name], name
    # The towers' gradients are averaged over ranks, those of the embeddings are a rank's own.
    norm = "tandem_gradient_norm"
    assert first[f"{norm}{{towers}}"] == second[f"{norm}{{towers}}"] > 0
    assert first[f"{norm}{{pooled}}"] != second[f"{norm}{{pooled}}"]
    for name, value in first.items():
        if name.startswith("tandem_loss_part{"):
            part = name.partition("{")[2].rstrip("}")
            assert ended.line[part] == pytest.approx(value, rel=1e-6)
    losses = sorted((first["tandem_rank_loss"], second["tandem_rank_loss"]))
    assert [ended.line[f"rank_loss/{end}"] for end in ("lowest", "highest")] == losses


def test_look_ups_are_those_of_the_last_batch(ended: Ended) -> None:
    for rank, expected in zip(ended.ranks, ended.look_ups, strict=True):
        for name, value in expected.items():
            assert rank[name] == pytest.approx(value), name
    shares = [v for n, v in ended.look_ups[0].items() if "unknown" in n]
    assert any(0 < share < 1 for share in shares)


def test_norms_are_those_of_the_tables(ended: Ended) -> None:
    """The last checkpoint is of the last step, and the table small enough to be read whole."""
    norms = _row_norms(committed(ended.out / "checkpoints")[-1])
    assert not isinstance(norms, str)
    assert ended.line["embedding_norm/item"] == pytest.approx(norms.mean(), rel=1e-5)


def test_evaluation_is_the_last_of_validation_jsonl(ended: Ended) -> None:
    line = json.loads((ended.out / "validation.jsonl").read_text().splitlines()[-1])
    assert ended.ranks[0]["tandem_evaluation{ndcg@20}"] == line["ndcg@20"] > 0


def test_times_and_memory_are_in_base_units(ended: Ended) -> None:
    now = time.time()
    for rank in ended.ranks:
        for name in ("last_step", "checkpoint"):
            assert ended.began < rank[f"tandem_{name}_timestamp_seconds"] < now
        assert 0 < rank["tandem_step_seconds_sum"] < now - ended.began
        parts = ("data_wait", "forward", "backward", "optimizer")
        inside = sum(rank[f"tandem_step_phase_seconds_sum{{{part}}}"] for part in parts)
        assert 0 < inside < rank["tandem_step_seconds_sum"]
        assert rank["tandem_checkpoint_write_seconds_count"] >= 3
        resident = rank["process_resident_memory_bytes"]
        assert rank["tandem_host_memory_bytes"] == pytest.approx(resident, rel=0.2)
        assert 1e8 < resident < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert 0 < rank["tandem_loss_part{temperature}"] <= 1
        assert 0 < rank["tandem_loss_part{hit_share}"] < 1
