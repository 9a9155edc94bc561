"""What a prepared dataset is: `dataset.json` as frozen dataclasses, read and checked.

Loader, trainer and evaluation open a dataset through `Dataset.load(path)` and ask it for paths,
counts and attributes. Nothing here reads interactions.

    OUT/dataset.json                 this file's contents
    OUT/{train,validation,test}/part-*.parquet
    OUT/queries/{validation,test}.parquet
    OUT/{items,users,attributes}.parquet
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import fsspec

from trainer.mistake import Mistake

SCHEMA_VERSION = 1
SPLITS = ("train", "validation", "test")
AttributeKind = Literal["single", "multi"]


@dataclass(frozen=True)
class Attribute:
    """One categorical attribute of users or items; ids are rows 0..num_values-1 of its table."""

    name: str
    """Column in items.parquet or users.parquet."""
    kind: AttributeKind
    """single: an int64 column; multi: a list<int64> column."""
    num_values: int
    """Rows of the vocabulary, row 0 (missing or unknown) included."""
    boundaries: tuple[float, ...] = ()
    """Where numbers are dealt into buckets: the lower bounds of rows 2, 3, ...; else empty."""


@dataclass(frozen=True)
class Split:
    """Interactions of one split."""

    rows: int
    """Rows of all its files, disliked ones included."""
    positives: int
    """Rows with feedback 1."""
    disliked: int
    """Rows with feedback -1."""
    files: tuple[str, ...]
    """Parquet files relative to the dataset's folder, in order."""
    queries: int
    """Rows of queries/<split>.parquet: users with a positive target (0 for train)."""


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of one file of the dataset."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset: `Dataset.load(path)`."""

    path: str
    """Folder, a local path or a URI that fsspec opens; not stored in dataset.json."""
    schema_version: int
    num_users: int
    num_items: int
    splits: dict[str, Split]
    split_rule: dict[str, Any]
    """The rule's name under "rule", and its parameters."""
    history_length: int
    has_timestamps: bool
    has_feedback: bool
    """True where the source had ratings: the files then have the `disliked` columns."""
    dropped: dict[str, int]
    """Rows of the source that are in no split, counted by reason."""
    notes: dict[str, int]
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

    @staticmethod
    def load(path: str | Path, verify: Literal["size", "digest", "none"] = "size") -> Dataset:
        """Read and check a dataset's description.

        `verify="size"` (cheap) compares the files' sizes with the recorded ones, "digest" reads
        every file and compares its SHA-256.
        """
        root = str(path).rstrip("/") or "/"
        filesystem, folder = fsspec.core.url_to_fs(root)
        if not filesystem.exists(f"{folder}/dataset.json"):
            raise Mistake(
                f"{root} is no prepared dataset: it has no dataset.json. "
                f"Make one with `tandem prepare SOURCE {root}`."
            )
        with filesystem.open(f"{folder}/dataset.json", "r") as stream:
            dataset = _from_json(root, stream.read())
        if verify != "none":
            dataset.check_files(full=verify == "digest")
        return dataset

    def file(self, name: str) -> str:
        """Full path (or URI) of a file of the dataset, for example `items.parquet`."""
        return f"{self.path}/{name}"

    def split_files(self, split: str) -> tuple[str, ...]:
        """Full paths of a split's interaction files, in order."""
        return tuple(self.file(name) for name in self.splits[split].files)

    def queries_file(self, split: str) -> str:
        """Full path of `queries/<split>.parquet`; train has none."""
        if split not in ("validation", "test"):
            raise Mistake(f"no queries for split {split!r}: take validation or test")
        return self.file(f"queries/{split}.parquet")

    def check_files(self, full: bool = False) -> None:
        """Raise where a recorded file is missing, has another size or (full) another SHA-256."""
        filesystem, folder = fsspec.core.url_to_fs(self.path)
        for name, record in self.files.items():
            full_name = f"{folder}/{name}"
            if not filesystem.exists(full_name):
                raise Mistake(f"{self.file(name)} is missing: prepare the dataset again")
            size = filesystem.size(full_name)
            if size != record.bytes:
                raise Mistake(
                    f"{self.file(name)} has {size} bytes, dataset.json says {record.bytes}: "
                    "it was changed or copied in part. Prepare or copy the dataset again."
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
        attributes = {
            "user": contents.pop("user_attributes"),
            "item": contents.pop("item_attributes"),
        }
        return json.dumps({**contents, "attributes": attributes}, indent=2) + "\n"


def sha256_of(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """SHA-256 of a file, read in blocks of 4 MiB."""
    digest = hashlib.sha256()
    with filesystem.open(path, "rb") as stream:
        while block := stream.read(4 << 20):
            digest.update(block)
    return digest.hexdigest()


def combined_digest(files: dict[str, FileRecord]) -> str:
    """One digest over names and digests of all files, independent of their order."""
    lines = (f"{name} {record.sha256}\n" for name, record in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _from_json(root: str, text: str) -> Dataset:
    try:
        contents = json.loads(text)
        version = contents["schema_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise Mistake(
            f"{root}/dataset.json cannot be read ({error}): prepare the dataset again"
        ) from error
    if version != SCHEMA_VERSION:
        raise Mistake(
            f"{root} has schema version {version}, this Tandem reads {SCHEMA_VERSION}: "
            "prepare the dataset again"
        )
    try:
        attributes = contents.pop("attributes")
        for side in ("user", "item"):
            contents[f"{side}_attributes"] = tuple(
                Attribute(**{**each, "boundaries": tuple(each["boundaries"])})
                for each in attributes[side]
            )
        contents["splits"] = {
            name: Split(**{**split, "files": tuple(split["files"])})
            for name, split in contents["splits"].items()
        }
        contents["files"] = {n: FileRecord(**each) for n, each in contents["files"].items()}
        return Dataset(path=root, **contents)
    except (KeyError, TypeError) as error:
        raise Mistake(
            f"{root}/dataset.json lacks or has unknown entries ({error}): prepare the dataset again"
        ) from error
