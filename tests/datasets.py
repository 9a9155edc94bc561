"""Small prepared datasets for tests, made without `prepare`.

    dataset = make_dataset(tmp_path / "data", users=50, items=30, rows=2000)

Slow and plain on purpose; what their rows and queries are is written out in `definitions.py`.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.base.split_names import SPLITS
from trainer.data.events.event_files import Events, EventWriter, Layout, part_file, splits_of
from trainer.data.feature_types import Attribute
from trainer.data.schema import (
    DISLIKED,
    LIKED,
    SCHEMA_VERSION,
    Dataset,
    EventWindow,
    FileRecord,
    combined_digest,
)

CLUSTERS = 5
KINDS = (LIKED, DISLIKED)
IDS = pa.int64()
BAGS = pa.list_(pa.int64())


def make_dataset(
    path: Path | str,
    users: int = 50,
    items: int = 30,
    rows: int = 2000,
    *,
    planted: float = 0.8,
    disliked: float = 0.1,
    history_length: int = 6,
    group_events: int = 128,
    files: int = 3,
    tied: int = 1,
    timed: bool = True,
    seed: int = 0,
) -> Dataset:
    """A dataset with `rows` interactions in time order, the last two of each user held out.

    planted: share of interactions inside the user's cluster (user % 5 likes item % 5).
    disliked: share of interactions with feedback -1.
    group_events: least events of a row group.
    tied: consecutive interactions of all users that have one time.
    timed: without times a user's events lie in the order in which they were made, as good as any.
    """
    root = Path(path)
    root.mkdir(parents=True)
    random = np.random.default_rng(seed)
    log = _interactions(random, users, items, rows, planted, disliked)
    split_of = _leave_last_out(log, users)
    layout = Layout(users, items, KINDS, timed, with_split=True)
    written = [
        _write_events(root, part, log, split_of, layout, tied, group_events, files)
        for part in range(files)
    ]
    _write_tables(root, log, split_of, users, items)
    names = sorted(str(each.relative_to(root)) for each in root.rglob("*.parquet"))
    records = {
        name: FileRecord(
            (root / name).stat().st_size, hashlib.sha256((root / name).read_bytes()).hexdigest()
        )
        for name in names
    }
    window = EventWindow(
        tuple(part_file(0, part) for part in range(files)),
        sum(writer.users for writer in written),
        rows,
    )
    count_SK = np.sum([writer.count_SK for writer in written], axis=0)
    asked_S = np.sum([writer.asked_S for writer in written], axis=0)
    dataset = Dataset(
        path=str(root),
        schema_version=SCHEMA_VERSION,
        num_users=users,
        num_items=items,
        window_rule=None,
        windows=(window,),
        kinds=KINDS,
        splits=splits_of(count_SK, KINDS, asked_S),
        split_rule={"rule": "leave-last-out"},
        history_length=history_length,
        has_timestamps=timed,
        dropped={},
        notes={},
        user_attributes=(Attribute("age", "single", 4),),
        item_attributes=(Attribute("genre", "single", CLUSTERS + 1), Attribute("tags", "multi", 9)),
        source={"format": "test"},
        parent_digest=None,
        files=records,
        digest=combined_digest(records),
    )
    (root / "dataset.json").write_text(dataset.to_json())
    return Dataset.load(root)


def event_paths(dataset: Dataset) -> list[str]:
    """Full paths of the events' files, in order."""
    return [dataset.file(name) for window in dataset.windows for name in window.files]


def rewrite_events(path: Path | str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change each row group of a file, which keeps what its footer says of them."""
    old = pq.ParquetFile(path)
    said = {"tandem": old.metadata.metadata[b"tandem"]}
    groups = [change(old.read_row_group(group)) for group in range(old.num_row_groups)]
    with pq.ParquetWriter(path, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)
        writer.add_key_value_metadata(said)


def with_column(table: pa.Table, name: str, values: list[Any] | pa.ChunkedArray) -> pa.Table:
    """The table with other values in a column of the same type."""
    place = table.schema.get_field_index(name)
    held = values.to_pylist() if isinstance(values, pa.ChunkedArray) else values
    return table.set_column(place, name, pa.array(held, table.schema.field(place).type))


def tags_of(item: int) -> list[int]:
    """Values of the item attribute `tags`: none to three of them."""
    return [1 + (item + k) % 8 for k in range(item % 4)]


def genre_of(item: int) -> int:
    """Value of the item attribute `genre`; item 0 has none (row 0)."""
    return 0 if item == 0 else 1 + item % CLUSTERS


def age_of(user: int) -> int:
    """Value of the user attribute `age`."""
    return user % 4


def _interactions(
    random: np.random.Generator, users: int, items: int, rows: int, planted: float, disliked: float
) -> list[dict[str, Any]]:
    log = []
    for _ in range(rows):
        user = int(random.integers(users))
        item = int(random.integers(items))
        if random.random() < planted:
            item = min(item - item % CLUSTERS + user % CLUSTERS, items - 1)
        feedback = -1 if random.random() < disliked else 1
        log.append({"user": user, "item": item, "feedback": feedback})
    return log


def _leave_last_out(log: list[dict[str, Any]], users: int) -> list[str]:
    """The last interaction of a user with three or more is test, the one before validation."""
    of_user: list[list[int]] = [[] for _ in range(users)]
    for row, each in enumerate(log):
        of_user[each["user"]].append(row)
    split_of = ["train"] * len(log)
    for rows in of_user:
        if len(rows) >= 3:
            split_of[rows[-1]], split_of[rows[-2]] = "test", "validation"
    return split_of


def _write_events(
    root: Path,
    part: int,
    log: list[dict[str, Any]],
    split_of: list[str],
    layout: Layout,
    tied: int,
    group_events: int,
    files: int,
) -> EventWriter:
    """One of the files: users of a range, their events in order."""
    own = [
        (each["user"], row)
        for row, each in enumerate(log)
        if each["user"] * files // layout.num_users == part
    ]
    rows = [row for _, row in sorted(own)]
    events = [log[row] for row in rows]
    with EventWriter(root / part_file(0, part), layout, group_events) as writer:
        writer.write(
            Events(
                np.array([each["user"] for each in events], dtype=np.int64),
                np.array([each["item"] for each in events], dtype=np.int64),
                np.array([int(each["feedback"] < 0) for each in events], dtype=np.int8),
                np.array([SPLITS.index(split_of[row]) for row in rows], dtype=np.int8),
                np.array(rows, dtype=np.int64) // tied if layout.with_time else None,
            )
        )
    return writer


def _write_tables(
    root: Path, log: list[dict[str, Any]], split_of: list[str], users: int, items: int
) -> None:
    def counts(key: str, size: int, *splits: str) -> list[int]:
        count = [0] * size
        for each, split in zip(log, split_of, strict=True):
            if split in splits and each["feedback"] == 1:
                count[each[key]] += 1
        return count

    item_table = {
        "item": pa.array(range(items), IDS),
        "raw_id": pa.array([f"i{row}" for row in range(items)]),
        "title": pa.array([f"Item {row}" for row in range(items)]),
        "count": pa.array(counts("item", items, "train"), IDS),
        "count_with_validation": pa.array(counts("item", items, "train", "validation"), IDS),
        "count_of_all": pa.array(counts("item", items, *SPLITS), IDS),
        "genre": pa.array([genre_of(row) for row in range(items)], IDS),
        "tags": pa.array([tags_of(row) for row in range(items)], BAGS),
    }
    user_table = {
        "user": pa.array(range(users), IDS),
        "raw_id": pa.array([1000 + row for row in range(users)], IDS),
        "count": pa.array(counts("user", users, "train"), IDS),
        "count_with_validation": pa.array(counts("user", users, "train", "validation"), IDS),
        "count_of_all": pa.array(counts("user", users, *SPLITS), IDS),
        "age": pa.array([age_of(row) for row in range(users)], IDS),
    }
    sizes = (("user", "age", 4), ("item", "genre", CLUSTERS + 1), ("item", "tags", 9))
    rows = [(side, name, row) for side, name, size in sizes for row in range(size)]
    attributes = {
        "side": [side for side, _, _ in rows],
        "name": [name for _, name, _ in rows],
        "row": pa.array([row for _, _, row in rows], IDS),
        "value": [f"{name} {row}" if row else "" for _, name, row in rows],
        "count": pa.array([0] * len(rows), IDS),
    }
    _write(pa.table(item_table), root / "items.parquet")
    _write(pa.table(user_table), root / "users.parquet")
    _write(pa.table(attributes), root / "attributes.parquet")


def _write(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, row_group_size=128, write_page_checksum=True)
