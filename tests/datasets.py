"""Small prepared datasets for tests, made without `prepare`.

    dataset = make_dataset(tmp_path / "data", users=50, items=30, rows=2000)

Slow and plain on purpose: the files follow the format described in `trainer/data/schema.py`.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.schema import (
    SCHEMA_VERSION,
    Attribute,
    Dataset,
    FileRecord,
    Split,
    combined_digest,
)

CLUSTERS = 5
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
    row_group_rows: int = 128,
    files: int = 3,
    seed: int = 0,
) -> Dataset:
    """A dataset with `rows` interactions in time order, the last two of each user held out.

    planted: share of interactions inside the user's cluster (user % 5 likes item % 5).
    disliked: share of interactions with feedback -1.
    The train rows carry timestamps 0, 1, 2, ... in their order of creation, so that
    (user, item, timestamp) tells rows apart.
    """
    root = Path(path)
    (root / "queries").mkdir(parents=True)
    random = np.random.default_rng(seed)
    log = _interactions(random, users, items, rows, planted, disliked)
    split_of = _leave_last_out(log, users)
    splits = {}
    for name in ("train", "validation", "test"):
        splits[name] = _write_split(
            root, name, log, split_of, history_length, row_group_rows, files, random
        )
    _write_tables(root, log, split_of, users, items)
    names = sorted(str(each.relative_to(root)) for each in root.rglob("*.parquet"))
    records = {
        name: FileRecord(
            (root / name).stat().st_size, hashlib.sha256((root / name).read_bytes()).hexdigest()
        )
        for name in names
    }
    dataset = Dataset(
        path=str(root),
        schema_version=SCHEMA_VERSION,
        num_users=users,
        num_items=items,
        splits=splits,
        split_rule={"rule": "leave-last-out"},
        history_length=history_length,
        has_timestamps=True,
        has_feedback=True,
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
    for time in range(rows):
        user = int(random.integers(users))
        item = int(random.integers(items))
        if random.random() < planted:
            item = min(item - item % CLUSTERS + user % CLUSTERS, items - 1)
        feedback = -1 if random.random() < disliked else 1
        log.append({"user": user, "item": item, "feedback": feedback, "timestamp": time})
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


def _before(
    log: list[dict[str, Any]], split_of: list[str], split: str, user: int, time: int
) -> list[dict[str, Any]]:
    known = {"train": ("train",), "validation": ("train",), "test": ("train", "validation")}[split]
    return [
        each
        for each, own in zip(log, split_of, strict=True)
        if each["user"] == user and own in known and each["timestamp"] < time
    ]


def _bags(rows: list[dict[str, Any]], length: int) -> tuple[list[int], list[int]]:
    liked = [each["item"] for each in rows if each["feedback"] == 1]
    disliked = [each["item"] for each in rows if each["feedback"] == -1]
    return liked[-length:], disliked[-length:]


def _write_split(
    root: Path,
    name: str,
    log: list[dict[str, Any]],
    split_of: list[str],
    length: int,
    row_group_rows: int,
    files: int,
    random: np.random.Generator,
) -> Split:
    (root / name).mkdir()
    own = [each for each, split in zip(log, split_of, strict=True) if split == name]
    table: dict[str, list[Any]] = {key: [] for key in (*_INTERACTIONS.names,)}
    for place in random.permutation(len(own)):
        each = own[place]
        liked, disliked = _bags(
            _before(log, split_of, name, each["user"], each["timestamp"]), length
        )
        for key, value in {**each, "history": liked, "disliked": disliked}.items():
            table[key].append(value)
    written = pa.table(table, schema=_INTERACTIONS)
    paths = []
    share = -(-len(own) // files)
    for part in range(files):
        paths.append(f"{name}/part-{part:05d}.parquet")
        piece = written.slice(part * share, share)
        _write(piece, root / paths[-1], row_group_rows)
    queries = 0 if name == "train" else _write_queries(root, name, log, split_of, length)
    positives = sum(each["feedback"] == 1 for each in own)
    return Split(len(own), positives, len(own) - positives, tuple(paths), queries)


def _write_queries(
    root: Path, name: str, log: list[dict[str, Any]], split_of: list[str], length: int
) -> int:
    table: dict[str, list[Any]] = {key: [] for key in _QUERIES.names}
    for user in sorted({each["user"] for each in log}):
        own = [
            each
            for each, split in zip(log, split_of, strict=True)
            if each["user"] == user and split == name
        ]
        targets, disliked_targets = _bags(own, len(own) + 1)
        if not targets:
            continue
        before = _before(log, split_of, name, user, len(log))
        liked, disliked = _bags(before, length)
        values = (user, targets, disliked_targets, sorted({each["item"] for each in before}))
        for key, value in zip(_QUERIES.names, (*values, liked, disliked), strict=True):
            table[key].append(value)
    _write(pa.table(table, schema=_QUERIES), root / f"queries/{name}.parquet", 128)
    return len(table["user"])


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
        "genre": pa.array([genre_of(row) for row in range(items)], IDS),
        "tags": pa.array([tags_of(row) for row in range(items)], BAGS),
    }
    user_table = {
        "user": pa.array(range(users), IDS),
        "raw_id": pa.array([1000 + row for row in range(users)], IDS),
        "count": pa.array(counts("user", users, "train"), IDS),
        "count_with_validation": pa.array(counts("user", users, "train", "validation"), IDS),
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
    _write(pa.table(item_table), root / "items.parquet", 128)
    _write(pa.table(user_table), root / "users.parquet", 128)
    _write(pa.table(attributes), root / "attributes.parquet", 128)


def _write(table: pa.Table, path: Path, row_group_rows: int) -> None:
    pq.write_table(table, path, row_group_size=row_group_rows, write_page_checksum=True)


_INTERACTIONS = pa.schema(
    [
        ("user", IDS),
        ("item", IDS),
        ("feedback", pa.int8()),
        ("timestamp", IDS),
        ("history", BAGS),
        ("disliked", BAGS),
    ]
)
_QUERIES = pa.schema(
    [
        ("user", IDS),
        ("targets", BAGS),
        ("disliked_targets", BAGS),
        ("seen", BAGS),
        ("history", BAGS),
        ("disliked", BAGS),
    ]
)
