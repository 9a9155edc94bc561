"""`tandem prepare --engine ray` on a Ray cluster of its own: the same bytes as `--engine local`."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.commands.prepare_run import main
from cluster.commands.prepare_tasks import prepare_on_node, run_tasks
from cluster.workers.session import ray_session
from tests.data.planted import Row, make, write_csv
from trainer.base.byte_sizes import bytes_of
from trainer.base.mistake import Mistake
from trainer.data.schema import LIKED, Dataset
from trainer.observe.progress import SilentProgress
from trainer.prepare.partitions.partition_plan import PartitionPlan
from trainer.prepare.partitions.splits import SplitRule
from trainer.prepare.pipeline import PrepareArguments, prepare
from trainer.sources.sql import Resources

ROWS = [Row(u, (u * i) % 97, 1 + i % 5, i % 7) for u in range(60) for i in range(70)]


def test_ray_makes_the_same_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.prepare.staging.ROWS_A_PARTITION", 800)
    source = write_csv(tmp_path / "rows.csv", ROWS)
    here = make(source, tmp_path / "here")
    assert len(here.windows[0].files) > 2
    arguments = PrepareArguments(
        str(source), str(tmp_path / "there"), memory_limit="200MB", threads=1
    )
    with ray_session(None):
        prepare(arguments, SilentProgress(), run_tasks)
        with pytest.raises(ValueError, match=r"--threads 999 is more than any node .* lower it"):
            prepare(
                PrepareArguments(str(source), str(tmp_path / "no"), threads=999),
                SilentProgress(),
                run_tasks,
            )
    there = Dataset.load(tmp_path / "there", verify="digest")
    assert there.digest == here.digest
    assert there.splits == here.splits and there.dropped == here.dropped


def test_out_must_be_shared(tmp_path: Path) -> None:
    plan = PartitionPlan(
        staging=str(tmp_path / "gone"),
        out=str(tmp_path),
        parts=1,
        num_users=1,
        num_items=1,
        rule=SplitRule("random", 0.1, 0.1, 0),
        history_length=1,
        has_timestamps=True,
        kinds=(LIKED,),
        keep="first",
    )
    with pytest.raises(ValueError, match=r"is not there on node .* all nodes share"):
        prepare_on_node(plan, 0, Resources("1GB", 1, str(tmp_path)))


def test_address_needs_ray(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--address auto needs --engine ray"):
        main([str(tmp_path), str(tmp_path / "out"), "--address", "auto"], verbose=False)


@pytest.mark.parametrize(
    ("size", "expected"), [("4GB", 4_000_000_000), ("1.5 GiB", 1_610_612_736), ("100", 100)]
)
def test_sizes(size: str, expected: int) -> None:
    assert bytes_of(size, "--memory-limit") == expected


@pytest.mark.parametrize("size", ["much", "", "4iB", "nan", "9" * 400 + "GB"])
def test_no_size(size: str) -> None:
    with pytest.raises(Mistake, match=f"^--memory-limit {size!r} is no size: write"):
        bytes_of(size, "--memory-limit")
