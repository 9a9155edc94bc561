"""`tandem bench data`: events a second of the loader alone, beside pyarrow's bare scans.

All read the same data on all cores, in turn, several times; medians are reported.

    rows      pyarrow's scan of the loader's rows with their histories, written out as they come
    events    pyarrow's scan of the dataset's own files
    loader    decodes the events, checks ids, shuffles, makes histories, looks attributes up, builds
              batches
    sequences the same rows as positions of packed sequences, where the data have an order: items in
              the sequences a second, beside the events a second of pyarrow's scan of their columns

A scan decodes every row group and drops it; of pyarrow's two ways the faster counts.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch

from trainer.base.machine import usable_cpus
from trainer.base.ranges import MOST_ROWS, MOST_TURNS, check_given, check_ranges
from trainer.base.screen import say
from trainer.data.events.event_reader import event_columns
from trainer.data.feature_bags import LIST_KEYS
from trainer.data.parquet import filesystem_of, open_parquet
from trainer.data.schema import MAX_HISTORY_LENGTH, Dataset
from trainer.loader.batch import Batch
from trainer.loader.loader import Loader
from trainer.loader.sequence_batches import SequenceReading
from trainer.observe.progress import SilentProgress
from trainer.synth.planted_parquet import options
from trainer.synth.synth import SynthArguments, synth

TARGET_RATIO = 0.5
ROW_GROUP_ROWS = 32_768


@dataclass(frozen=True)
class DataBenchArguments:
    """What `tandem bench data` measures."""

    data: str | None = None
    """Prepared dataset; left out, one is generated for the occasion."""
    rows: int = 8_000_000
    """Interactions of the generated dataset, 40 a user."""
    items: int = 1_000_000
    """Items of the generated dataset."""
    history_length: int = 50
    """Longest history of the generated dataset."""
    local_batch_size: int = 4096
    """Rows of a batch."""
    extra_candidates: int = 0
    """Items drawn from the catalog for every batch."""
    repeats: int = 5
    """Interleaved runs whose median counts."""
    json: bool = False
    """Print one JSON object instead of the table."""

    def __post_init__(self) -> None:
        check_given(self, ("data",))
        check_ranges(
            self,
            rows=(1, MOST_ROWS),
            items=(1, MOST_ROWS),
            history_length=(1, MAX_HISTORY_LENGTH),
            local_batch_size=(1, MOST_ROWS),
            extra_candidates=(0, MOST_ROWS),
            repeats=(1, MOST_TURNS),
        )


def run(arguments: DataBenchArguments) -> dict[str, Any]:
    """Rows a second of loader and scan, and their ratio."""
    if arguments.data is not None:
        return measure(Dataset.load(arguments.data), arguments)
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/data"
        settings = SynthArguments(
            out=out,
            users=max(1, arguments.rows // 40),
            items=arguments.items,
            interactions=arguments.rows,
            history_length=arguments.history_length,
        )
        synth(settings, SilentProgress(), show=False)
        return measure(Dataset.load(out), arguments)


def measure(dataset: Dataset, arguments: DataBenchArguments) -> dict[str, Any]:
    """The same for a prepared dataset."""
    # As in a worker: the loader's own threads do the work, not FBGEMM's inside of them.
    torch.set_num_threads(1)
    loader = make_loader(dataset, arguments)
    events = list(map(dataset.file, dataset.event_names))
    columns = list(event_columns(dataset))
    with tempfile.TemporaryDirectory() as folder:
        rows_file = f"{folder}/rows.parquet"
        lists = write_rows(loader, rows_file)
        work: dict[str, Callable[[int], None]] = {
            "rows scanner": lambda _: scan([rows_file], lists),
            "rows iter_batches": lambda _: iterate([rows_file], lists),
            "events scanner": lambda _: scan(events, columns),
            "events iter_batches": lambda _: iterate(events, columns),
            "loader": lambda epoch: read_epoch(loader, epoch),
        }
        sequences = sequence_loader(dataset, arguments)
        if sequences is not None:
            work["sequences"] = lambda epoch: read_epoch(sequences, epoch)
        wall, processor = _in_turns(work, arguments.repeats)
        row_bytes = Path(rows_file).stat().st_size
    seconds = {name: median(values) for name, values in wall.items()}
    bare, bare_events = (
        min((f"{what} scanner", f"{what} iter_batches"), key=lambda name: seconds[name])
        for what in ("rows", "events")
    )
    rows = loader.num_rows
    stored = sum(window.events for window in dataset.windows)
    return {
        "rows": rows,
        "columns": columns,
        "feature_keys": [*loader.query_keys, *loader.candidate_keys],
        "local_batch_size": arguments.local_batch_size,
        "threads": usable_cpus(),
        "rows_per_second": {name: rows / value for name, value in seconds.items()},
        "processor_seconds": {name: median(values) for name, values in processor.items()},
        "bytes_an_event": sum(dataset.files[name].bytes for name in dataset.event_names)
        / max(stored, 1),
        "bytes_a_row_written_out": row_bytes / rows,
        "bare": bare,
        "ratio": seconds[bare] / seconds["loader"],
        "ratio_over": {name: seconds[name] / seconds["loader"] for name in work},
        "ratios": [b / l for b, l in zip(wall[bare], wall["loader"], strict=True)],
        "target_ratio": TARGET_RATIO,
        "sequences": None
        if sequences is None
        else _of_sequences(values_of(sequences), stored, bare_events, wall),
    }


def _of_sequences(
    values: int, events: int, bare: str, wall: dict[str, list[float]]
) -> dict[str, Any]:
    """Values a second of packed sequences, and of the bare scan of the events they are made of.

    Args:
        values: items in the sequences of an epoch; long ones are cut into chunks that overlap.
        events: of the dataset.
    """
    ratios = [
        values / mine / (events / scanned)
        for mine, scanned in zip(wall["sequences"], wall[bare], strict=True)
    ]
    return {
        "values": values,
        "values_per_second": values / median(wall["sequences"]),
        "bare": bare,
        "bare_values_per_second": events / median(wall[bare]),
        "ratio": median(ratios),
        "ratios": ratios,
    }


def _in_turns(
    work: dict[str, Callable[[int], None]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and processor seconds of each piece of work, by turns."""
    wall: dict[str, list[float]] = {name: [] for name in work}
    processor: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, run_once in work.items():
            begin, begin_processor = time.perf_counter(), time.process_time()
            run_once(repeat)
            if repeat > 0:  # The first round warms the page cache and the allocators.
                wall[name].append(time.perf_counter() - begin)
                processor[name].append(time.process_time() - begin_processor)
    return wall, processor


def write_rows(loader: Loader, path: str) -> list[str]:
    """Write an epoch's rows with their histories, a column a key of the events; their names."""
    names = ["user", "item", "feedback", *(k for k in loader.query_keys if k in LIST_KEYS)]
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.Table] = []
    for batch in loader.epoch(0):
        waiting.append(_rows_of(batch, names))
        if sum(map(len, waiting)) >= ROW_GROUP_ROWS or batch.step + 1 == loader.steps_per_epoch:
            table = pa.concat_tables(waiting).combine_chunks()
            writer = writer or pq.ParquetWriter(path, table.schema, **options(table.schema))
            writer.write_table(table)
            waiting = []
    assert writer is not None
    writer.close()
    return names


def _rows_of(batch: Batch, names: list[str]) -> pa.Table:
    real = (batch.user_B >= 0).numpy()
    rows = batch.local_batch_size
    columns: dict[str, Any] = {
        "user": batch.user_B.numpy(),
        "item": batch.item_S[:rows].numpy(),
        "feedback": batch.feedback_B.numpy(),
    }
    for name in names[3:]:
        bags = batch.features[name]
        offsets = bags.offsets()[: rows + 1].to(torch.int32).numpy()
        columns[name] = pa.ListArray.from_arrays(offsets, bags.values().numpy())
    return pa.table(columns).filter(pa.array(real))


def make_loader(dataset: Dataset, arguments: DataBenchArguments) -> Loader:
    """A loader of all rows and of everything the dataset has."""
    disliked = ("disliked",) if dataset.has_feedback else ()
    user_attributes = (f"user.{each.name}" for each in dataset.user_attributes)
    item_attributes = (f"item.{each.name}" for each in dataset.item_attributes)
    return Loader(
        dataset,
        query_keys=("user", "history", *disliked, *user_attributes),
        candidate_keys=("item", *item_attributes),
        local_batch_size=arguments.local_batch_size,
        extra_candidates=arguments.extra_candidates,
        feedback="all",
    )


def sequence_loader(dataset: Dataset, arguments: DataBenchArguments) -> Loader | None:
    """A loader of packed sequences; None for data without an order."""
    if not dataset.has_timestamps or dataset.history_length == 0:
        return None
    return Loader(
        dataset,
        local_batch_size=arguments.local_batch_size,
        extra_candidates=arguments.extra_candidates,
        sequences=SequenceReading(dataset.history_length),
    )


def values_of(loader: Loader) -> int:
    """Items in the sequences of an epoch."""
    return sum(
        int((batch.sequences.place_N >= 0).sum())
        for batch in loader.epoch(0)
        if batch.sequences is not None
    )


def scan(files: list[str], columns: list[str]) -> None:
    """Decode columns of files through pyarrow.dataset, and drop them."""
    filesystem, _ = filesystem_of(files[0])
    paths = [filesystem_of(path)[1] for path in files]
    source = pads.dataset(paths, filesystem=filesystem, format="parquet")
    for _ in source.to_batches(columns=columns):
        pass


def iterate(files: list[str], columns: list[str]) -> None:
    """The same file after file through ParquetFile.iter_batches, columns in parallel."""
    for path in files:
        with open_parquet(path) as file:
            for _ in file.iter_batches(ROW_GROUP_ROWS, columns=columns, use_threads=True):
                pass


def read_epoch(loader: Loader, epoch: int) -> None:
    """Take all batches of an epoch, and drop them."""
    for _ in loader.epoch(epoch):
        pass


def main(arguments: DataBenchArguments) -> None:
    """Print the measurement."""
    result = run(arguments)
    if arguments.json:
        print(json.dumps(result))
        return
    say(f"{result['rows']:,} rows, keys {', '.join(result['feature_keys'])}")
    for name, rate in result["rows_per_second"].items():
        cost = result["processor_seconds"][name] / result["rows"] * 1e9
        say(f"{name:20}{rate:>12,.0f} rows/s  {cost:>6,.0f} ns of processor a row")
    say(
        f"{result['bytes_an_event']:.2f} bytes an event, "
        f"{result['bytes_a_row_written_out']:.1f} a row with its histories written out"
    )
    if (sequences := result["sequences"]) is not None:
        say(
            f"sequences: {sequences['values_per_second']:,.0f} values/s, {sequences['bare']} "
            f"{sequences['bare_values_per_second']:,.0f}: ratio {sequences['ratio']:.2f}"
        )
    say(f"ratio loader over {result['bare']}: {result['ratio']:.2f}  (target {TARGET_RATIO})")
