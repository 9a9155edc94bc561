"""Corrupt files, foreign ids, threads that must end, object stores."""

import errno
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import event_paths, rewrite_events, with_column
from tests.loader.conftest import epoch_of, expected_rows, make_loader, rows_of
from trainer.data.events import event_reader
from trainer.data.schema import Dataset
from trainer.files import damage


@pytest.fixture
def copy(dataset: Dataset, tmp_path: Path) -> Dataset:
    """A copy that a test may spoil."""
    shutil.copytree(dataset.path, tmp_path / "copy")
    return Dataset.load(tmp_path / "copy")


def corrupt(path: str, row_group: int, column: str = "item") -> int:
    """Overwrite the middle of a column of a row group; returns the group's rows."""
    group = pq.ParquetFile(path).metadata.row_group(row_group)
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema.startswith(column):
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            with Path(path).open("r+b") as file:
                file.seek(start)
                file.write(b"\xff" * chunk.total_compressed_size)
    return group.num_rows


def test_a_corrupt_row_group_is_named(copy: Dataset) -> None:
    corrupt(event_paths(copy)[1], 2)
    with pytest.raises(ValueError, match=r"part-00001.parquet row group 2 cannot be read"):
        epoch_of(copy)


@pytest.mark.parametrize("feedback", ["positive", "all"])
def test_a_corrupt_row_group_is_counted_and_skipped(copy: Dataset, feedback: str) -> None:
    before = Counter(rows_of(epoch_of(copy, feedback=feedback)))
    path = event_paths(copy)[1]
    lost = pq.ParquetFile(path).read_row_group(2).to_pylist()
    corrupt(path, 2)
    loader = make_loader(copy, feedback=feedback, skip_corrupt=True)
    batches = list(loader.epoch(0))
    gone = before - Counter(rows_of(batches))
    kept = [r for r in lost if r["split"] == 0 and (feedback == "all" or r["kind"] == 0)]
    assert sum(gone.values()) == len(kept) == loader.skipped_rows > 0
    assert len(batches) == loader.steps_per_epoch
    assert sum(float(batch.global_weight) for batch in batches) == loader.num_rows


def test_a_file_without_a_footer_is_named(copy: Dataset) -> None:
    path = Path(event_paths(copy)[0])
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ValueError, match=r"part-00000.parquet cannot be opened as Parquet"):
        make_loader(copy)


def test_a_missing_file_is_named(copy: Dataset) -> None:
    Path(event_paths(copy)[0]).unlink()
    with pytest.raises(ValueError, match=r"part-00000.parquet does not exist"):
        make_loader(copy)


@pytest.mark.parametrize(
    ("column", "value", "limit"),
    [
        *(("item", 30, 29), ("item", -7, 29), ("user", 50, 49), ("user", -1, 49)),
        *(("kind", 2, 1), ("kind", -1, 1), ("split", 3, 2), ("split", -128, 2)),
    ],
)
def test_ids_out_of_range_never_reach_a_table(
    copy: Dataset, column: str, value: int, limit: int
) -> None:
    changed = []

    def spoil(table: pa.Table) -> pa.Table:
        changed.append(table)
        values = table[column].to_pylist()
        values[100 if len(changed) == 2 else 0] = value if len(changed) == 2 else values[0]
        return with_column(table, column, values)

    rewrite_events(event_paths(copy)[0], spoil)
    message = rf"row group 1 column '{column}' holds id {value}, outside 0\.\.{limit}"
    with pytest.raises(ValueError, match=message):
        epoch_of(copy)


def test_item_table_that_does_not_fit_dataset_json(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"items.parquet has 30 rows, dataset.json says 31"):
        make_loader(replace(dataset, num_items=31))


def loader_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("tandem-")]


def test_threads_end_when_the_stream_does(dataset: Dataset) -> None:
    stream = iter(make_loader(dataset))
    next(stream)
    assert loader_threads()
    stream.close()
    assert not loader_threads()
    with pytest.raises(StopIteration):
        next(stream)
    stream = iter(make_loader(dataset))
    next(stream)
    del stream
    assert not loader_threads()
    list(make_loader(dataset).epoch(0))
    assert not loader_threads()


def test_a_process_ends_with_a_stream_left_open(dataset: Dataset) -> None:
    program = (
        "from trainer.loader.loader import Loader\n"
        f"stream = iter(Loader({dataset.path!r}, local_batch_size=8))\n"
        "next(stream)\n"
        "print('done')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr
    assert "rror" not in run.stderr


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_object_stores(dataset: Dataset, scheme: str) -> None:
    if scheme == "memory":
        uri = "memory://bucket/data"
        memory = fsspec.filesystem("memory")
        memory.put(dataset.path, "/bucket/data", recursive=True)
    else:
        uri = Path(dataset.path).as_uri()
    assert Counter(rows_of(epoch_of(uri))) == Counter(expected_rows(dataset))


def flaky_reads(monkeypatch: pytest.MonkeyPatch, failures: int, raw: int) -> list[int]:
    """Row groups cannot be read `failures` times, nor their bare bytes `raw` times; the waits."""
    waits: list[int] = []
    left = {"decoded": failures, "raw": raw}
    real_decoded, real_raw = pq.ParquetFile.read_row_group, damage.read_range

    def failing(kind: str, read: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            if left[kind] > 0:
                left[kind] -= 1
                raise OSError(errno.ESTALE, "Stale file handle")
            return read(*arguments, **keywords)

        return wrapped

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", failing("decoded", real_decoded))
    monkeypatch.setattr(event_reader, "read_range", failing("raw", real_raw))
    monkeypatch.setattr(damage.time, "sleep", waits.append)
    return waits


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_a_storage_that_fails_for_a_moment_is_waited_for(
    skip_corrupt: bool, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reset connection ended a run as the user's mistake, or dropped rows without a word."""
    whole = rows_of(epoch_of(dataset))
    monkeypatch.setattr("trainer.loader.loader.READER_THREADS", 1)
    waits = flaky_reads(monkeypatch, failures=2, raw=2)
    loader = make_loader(dataset, skip_corrupt=skip_corrupt)
    assert rows_of(loader.epoch(0)) == whole
    assert loader.skipped_rows == 0 and len(waits) == 2


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_a_storage_that_keeps_failing_is_a_fault(
    skip_corrupt: bool, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky_reads(monkeypatch, failures=10**6, raw=10**6)
    with pytest.raises(OSError, match="Stale file handle") as failed:
        list(make_loader(dataset, skip_corrupt=skip_corrupt).epoch(0))
    assert not isinstance(failed.value, ValueError)


def test_a_place_that_the_data_do_not_have_is_refused(dataset: Dataset) -> None:
    batch = next(iter(make_loader(dataset)))
    for streams in ([[[0, 10**9]]], [[[-1, 5]]], [[[7, 3]]]):
        with pytest.raises(ValueError, match=r"rows outside 0\.\."):
            make_loader(dataset, position={**batch.position, "streams": streams})
    with pytest.raises(ValueError, match="taken with seed = None"):
        make_loader(dataset, position={**batch.position, "order": {}})
