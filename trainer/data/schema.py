"""What a prepared dataset is: `dataset.json` as frozen dataclasses, read and checked.

Loader, trainer and evaluation open a dataset through `Dataset.load(path)` and ask it for paths,
counts and attributes. Nothing here reads interactions.

    OUT/dataset.json                         this file's contents
    OUT/events/WINDOW/part-*.parquet         one row a user and window, its events in order
    OUT/{items,users,attributes}.parquet
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import fsspec

from trainer.base.mistake import Mistake
from trainer.base.typed import Range
from trainer.data.feature_types import Attribute, Count
from trainer.files.filesystems import filesystem_of, reached, readable

SCHEMA_VERSION = 2
MAX_HISTORY_LENGTH = 10_000
RESERVED = (
    "item",
    "user",
    "raw_id",
    "title",
    "count",
    "count_with_validation",
    "count_of_all",
    "table_row",
)
"""Columns of items.parquet and users.parquet that are no attributes."""
FOLLOWING_TIME = ("time", "leave-last-out")
"""Split rules that hold out what is latest."""
SIDES = ("user", "item", "context")
DERIVED = ".derived"
"""Folder of a dataset for what is made of it again where it is missing."""
Role = Literal["positive", "signal", "negative", "history", "seen"]
Moment = Annotated[int, Range(least=-(2**63), most=2**63 - 1)]


@dataclass(frozen=True)
class Kind:
    """A kind of events; `kind` in the events' files counts them from 0."""

    name: Annotated[str, Range(least=1)]
    role: Role
    """What becomes of them. positive: trained on, held out, looked for. signal: trained on, and no
    more (views beside purchases). negative: disliked. history: in histories alone. seen: that, and
    left out of later rankings, as what is liked or disliked."""
    weight: Annotated[float, Range(above=0, most=1e6)] = 1.0
    """Of such an event in the loss."""


LIKED = Kind("liked", "positive")
DISLIKED = Kind("disliked", "negative")
SIGNAL = 2
FEEDBACK: dict[Role, int] = {
    "positive": 1,
    "signal": SIGNAL,
    "negative": -1,
    "history": 0,
    "seen": 0,
}
"""Above 0: trained on as liked; 1: looked for."""


@dataclass(frozen=True)
class Split:
    """Events of one split."""

    rows: Count
    """All of them."""
    positives: Count
    """Those of a positive kind."""
    disliked: Count
    """Those of a negative kind."""
    queries: Count
    """Users with a positive event in the split (0 for train)."""


@dataclass(frozen=True)
class EventWindow:
    """One window of time: its files, written together."""

    files: tuple[str, ...]
    """Parquet files relative to the dataset's folder, in order: users ascend through them."""
    rows: Count
    """Users with events in it."""
    events: Count
    """Their events."""
    first_time: Moment | None = None
    """Of the first and the last of them; None where the data have no times."""
    last_time: Moment | None = None


@dataclass(frozen=True)
class TableRows:
    """Rows of a table of users or items of whom the rare ones share some: column `table_row`.

    The shared rows come first, then those of the others in the order in which they got one.
    """

    min_count: Annotated[int, Range(least=1, most=2**31)]
    """Positives in train from which on an id has a row of its own, which it keeps."""
    shared: Annotated[int, Range(least=1, most=2**31)]
    """Rows that all others share, by a hash of the id: as many for life."""
    own: Annotated[int, Range(least=0, most=2**31)]
    """Ids with a row of their own."""


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of one file of the dataset."""

    bytes: Count
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset: `Dataset.load(path)`."""

    path: str
    """Folder, a local path or a URI that fsspec opens; not stored in dataset.json."""
    schema_version: int
    num_users: Annotated[int, Range(least=1, most=2**62)]
    num_items: Annotated[int, Range(least=1, most=2**62)]
    window_rule: str | None
    """How rows are dealt into windows, as `--window` has it; None: what comes at once is one."""
    windows: Annotated[tuple[EventWindow, ...], Range(least=1)]
    """In the order of time."""
    kinds: Annotated[tuple[Kind, ...], Range(least=1)]
    splits: dict[str, Split]
    split_rule: dict[str, Any]
    """The rule's name under "rule", and its parameters."""
    history_length: Annotated[int, Range(least=0, most=MAX_HISTORY_LENGTH)]
    """Longest history of a row, where the trainer asks for no other."""
    has_timestamps: bool
    dropped: dict[str, Count]
    """Rows of the source that are in no split, counted by reason."""
    notes: dict[str, Count]
    """Counts worth knowing about rows that were kept, such as users without training rows."""
    user_attributes: tuple[Attribute, ...]
    item_attributes: tuple[Attribute, ...]
    source: dict[str, Any]
    """Where the data came from: format, columns, thresholds, rows."""
    parent_digest: str | None
    """Digest of the dataset that this one extends."""
    files: dict[str, FileRecord]
    digest: str
    """SHA-256 over the files' digests: equal input, arguments and seed give an equal one."""
    ancestors: tuple[str, ...] = ()
    """Digests of what the parent was made of, the oldest first."""
    context_attributes: tuple[Attribute, ...] = ()
    """Of events, known when recommendations are asked for."""
    has_weights: bool = False
    """Events have weights of their own, beside those of their kinds."""
    table_rows: dict[str, TableRows] = field(default_factory=dict)
    """By "user" and "item", where rare ids share rows of tables; else rows are the ids."""

    def __repr__(self) -> str:
        rows = self.splits["train"].rows
        return (
            f"<Dataset {self.path}: {self.num_users:,} users, {self.num_items:,} items, "
            f"{rows:,} training rows>"
        )

    @staticmethod
    def load(path: str | Path, verify: Literal["size", "digest", "none"] = "size") -> Dataset:
        """Read and check a dataset's description.

        `verify="size"` (cheap) compares the files' sizes with the recorded ones, "digest" reads
        every file and compares its SHA-256.
        """
        from trainer.data.description import MOST_BYTES, check_tables, dataset_of  # needs this file

        root = str(path).rstrip("/") or "/"
        filesystem, folder = filesystem_of(root)
        described = f"{folder}/dataset.json"
        with reached(root), readable(f"{root}/dataset.json"):
            if not filesystem.isfile(described):
                raise Mistake(
                    f"{root} is no prepared dataset: it has no dataset.json. "
                    f"Make one with `tandem prepare SOURCE {root}`."
                )
            if filesystem.size(described) > MOST_BYTES:
                raise Mistake(f"{root}/dataset.json has more than {MOST_BYTES:,} bytes")
            text = filesystem.cat_file(described)
        dataset = dataset_of(root, text)
        if verify != "none":
            dataset.check_files(full=verify == "digest")
            check_tables(dataset)
        return dataset

    def file(self, name: str) -> str:
        """Full path (or URI) of a file of the dataset, for example `items.parquet`."""
        return f"{self.path}/{name}"

    @property
    def has_feedback(self) -> bool:
        """True where users can dislike items: some kind of events is negative."""
        return any(kind.role == "negative" for kind in self.kinds)

    @property
    def is_weighted(self) -> bool:
        """Whether events count for more than others in the loss."""
        return self.has_weights or any(kind.weight != 1 for kind in self.kinds)

    @property
    def attributes(self) -> dict[str, Attribute]:
        """All attributes by feature key: "user.NAME", "item.NAME", "context.NAME"."""
        return {
            f"{side}.{each.name}": each
            for side in SIDES
            for each in getattr(self, f"{side}_attributes")
        }

    def rows_of_table(self, side: str) -> int:
        """Rows that a table of users or items has, the one for unknown ids aside."""
        if side in self.table_rows:
            return self.table_rows[side].shared + self.table_rows[side].own
        return self.num_users if side == "user" else self.num_items

    @property
    def event_names(self) -> list[str]:
        """Names of the events' files, window after window."""
        return [name for window in self.windows for name in window.files]

    @property
    def lineage(self) -> tuple[str, ...]:
        """Digests of what this grew from, and its own: runs of all of them fit its rows."""
        parent = () if self.parent_digest is None else (self.parent_digest,)
        return (*self.ancestors, *parent, self.digest)

    @property
    def held_out_by_time(self) -> bool:
        """True where held-out events are later than their user's training events."""
        return self.has_timestamps and self.split_rule["rule"] in FOLLOWING_TIME

    def check_files(self, full: bool = False) -> None:
        """Raise where a recorded file is missing, has another size or (full) another SHA-256."""
        filesystem, folder = filesystem_of(self.path)
        for name, record in self.files.items():
            full_name = f"{folder}/{name}"
            with reached(self.path):
                if not filesystem.exists(full_name):
                    raise Mistake(f"{self.file(name)} is missing: prepare the dataset again")
                found = filesystem.info(full_name)
            if found["type"] != "file" or found["size"] != record.bytes:
                raise Mistake(
                    f"{self.file(name)} has {found['size']} bytes, dataset.json says "
                    f"{record.bytes}: it was changed or copied in part. Prepare or copy the "
                    "dataset again."
                )
            if full and sha256_of(filesystem, full_name) != record.sha256:
                raise Mistake(
                    f"{self.file(name)} does not have the SHA-256 that dataset.json records: "
                    "its contents changed. Prepare the dataset again."
                )

    def to_json(self) -> str:
        """The text of dataset.json."""
        contents = asdict(self)
        del contents["path"]
        attributes = {side: contents.pop(f"{side}_attributes") for side in SIDES}
        return json.dumps({**contents, "attributes": attributes}, indent=2) + "\n"


def sha256_of(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """SHA-256 of a file, read in blocks of 4 MiB."""
    digest = hashlib.sha256()
    with filesystem.open(path, "rb") as stream:
        while block := stream.read(4 << 20):
            digest.update(block)
    return digest.hexdigest()


def record_of(folder: Path, name: str) -> FileRecord:
    """Size and SHA-256 of a file in a local folder."""
    path = folder / name
    return FileRecord(path.stat().st_size, sha256_of(fsspec.filesystem("file"), str(path)))


def combined_digest(files: dict[str, FileRecord]) -> str:
    """One digest over names and digests of all files, independent of their order."""
    lines = (f"{name} {record.sha256}\n" for name, record in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
