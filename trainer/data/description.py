"""dataset.json read: entries of their type and in their range, names that stay in the folder.

A dataset may be a stranger's. What is read here goes into SQL, into paths, into sizes of tables: it
is checked once, when the dataset is loaded, and so are the columns of the files it describes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Annotated, Any, Literal

import pyarrow as pa

from trainer.base.mistake import Mistake
from trainer.base.split_names import SPLITS
from trainer.base.typed import Range, read_as
from trainer.data.feature_types import VECTORS, Attribute, Count, folded
from trainer.data.parquet import open_parquet
from trainer.data.schema import RESERVED, SCHEMA_VERSION, SIDES, Dataset, combined_digest
from trainer.files.json_files import json_problem

Integer = Annotated[int, Range(least=-(2**63), most=2**63 - 1)]
Share = Annotated[float, Range(least=0, below=1)]
MOST_BYTES = 256 << 20
MOST_KINDS = 100
AGAIN = "prepare the dataset again"
COLUMN = {"single": "integer", "multi": "integers", "number": "number"}
"""What columns of attributes hold."""
TABLES = ("items.parquet", "users.parquet", "attributes.parquet")


@dataclass(frozen=True)
class ThresholdFacts:
    """What `source.thresholds` holds."""

    positive: float
    dislike: float | None


@dataclass(frozen=True)
class SourceFacts:
    """What is read of `source`."""

    format: str
    columns: dict[str, str | None] = field(default_factory=dict)
    rows: Count = 0
    timestamp_unit: str | None = None
    in_order: bool = False
    thresholds: ThresholdFacts | None = None
    duplicates: Literal["first", "last"] = "first"
    title_column: str | None = None
    context: list[str] = field(default_factory=list)
    item_columns: list[str] = field(default_factory=list)
    user_columns: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    kinds_dropped: list[str] = field(default_factory=list)
    attributes_left_out: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class RuleFacts:
    """What is read of `split_rule`."""

    rule: str
    test_share: Share | None = None
    validation_share: Share | None = None
    seed: Integer = 0
    validation_from: Integer = 0
    test_from: Integer = 0
    given: list[str] = field(default_factory=list)
    validation: Literal["random", "last"] = "random"


def dataset_of(root: str, text: str | bytes) -> Dataset:
    """The dataset that a dataset.json describes; raises Mistake on what none of ours says."""
    where = f"{root}/dataset.json"
    contents = _json(where, text)
    version = contents.get("schema_version") if isinstance(contents, dict) else None
    if version is None:
        raise Mistake(f"{where} cannot be read (it has no schema_version): {AGAIN}")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        source = contents.get("source")
        planted = isinstance(source, dict) and source.get("format") == "synth"
        command = f"tandem {'synth' if planted else 'prepare SOURCE'} {root}"
        raise Mistake(
            f"{root} has schema version {version!r:.60}, this Tandem reads {SCHEMA_VERSION}: "
            f"remove it and make it anew with `{command}`"
        )
    attributes = contents.pop("attributes", None)
    if not isinstance(attributes, dict):
        raise Mistake(f"{where}: attributes is {attributes!r:.60}, no object: {AGAIN}")
    if not set(attributes) <= set(SIDES):
        raise Mistake(f"{where}: attributes are not those of {', '.join(SIDES)}: {AGAIN}")
    contents |= {f"{side}_attributes": each for side, each in attributes.items()}
    try:
        dataset = read_as(Dataset, {**contents, "path": root})
        for kind, entry in ((RuleFacts, "split_rule"), (SourceFacts, "source")):
            known = {each.name for each in fields(kind)}
            held = getattr(dataset, entry)
            read_as(kind, {key: held[key] for key in held if key in known}, entry)
    except Mistake as mistake:
        raise Mistake(f"{where}: {mistake}: {AGAIN}") from None
    for problem in (_names, _counts, _attributes):
        found = problem(dataset)
        if found:
            raise Mistake(f"{where}: {found}: {AGAIN}")
    return dataset


def _json(where: str, text: str | bytes) -> Any:
    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no number")

    try:
        return json.loads(text, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{where} cannot be read ({json_problem(error)}): {AGAIN}") from error


def _names(dataset: Dataset) -> str | None:
    """Names of files stay in the dataset's folder; every file that is read is recorded."""
    for name, record in dataset.files.items():
        if not is_digest(record.sha256):
            return f"files.{name!r:.80} has {record.sha256!r:.80}, no SHA-256"
        parts = name.split("/")
        if (
            any(part in ("", ".", "..") for part in parts)
            or not name.endswith((".parquet", ".f16", ".f32"))
            or not name.isprintable()
            or "\\" in name
        ):
            return (
                f"files has {name!r:.80}, which is no name of a file of the dataset's in its folder"
            )
    if set(dataset.splits) != set(SPLITS):
        return f"splits are {', '.join(dataset.splits)!r:.80}, not {', '.join(SPLITS)}"
    read = dataset.event_names
    vectors = [file for each in dataset.attributes.values() for file in each.vectors]
    for file in vectors:
        if not re.fullmatch(rf"{VECTORS}/.+\.(f16|f32)", file.file):
            return f"{file.file!r:.80} is no file of vectors"
    if len(set(read)) < len(read):
        return "windows name a file twice"
    read += [file.file for file in vectors]
    if len(set(read)) < len(read):
        return "vectors name a file twice"
    for name in (*TABLES, *read):
        if name not in dataset.files:
            return f"{name!r:.80} is not among its files"
    return None


def is_digest(text: str) -> bool:
    """Whether a text is a SHA-256, as it is written here."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _counts(dataset: Dataset) -> str | None:
    if dataset.digest != combined_digest(dataset.files):
        return f"digest is {dataset.digest!r:.80}, not that of its files"
    if dataset.parent_digest is not None and not is_digest(dataset.parent_digest):
        return f"parent_digest is {dataset.parent_digest!r:.80}, no SHA-256"
    if not all(map(is_digest, dataset.ancestors)):
        return f"ancestors are {dataset.ancestors!r:.80}, no SHA-256"
    for name, split in dataset.splits.items():
        if split.positives + split.disliked > split.rows:
            return (
                f"splits.{name} has {split.rows} rows, {split.positives} positive and "
                f"{split.disliked} disliked, which do not add up"
            )
    if not set(dataset.table_rows) <= {"user", "item"}:
        return f"table_rows are of {', '.join(dataset.table_rows)!r:.80}, not of users and items"
    events = sum(window.events for window in dataset.windows)
    if sum(split.rows for split in dataset.splits.values()) != events:
        return f"splits hold other rows than the {events} events of its windows"
    if any(not window.files for window in dataset.windows):
        return "windows have no files"
    names = [kind.name for kind in dataset.kinds]
    if len(set(names)) < len(names) or len(names) > MOST_KINDS:
        return f"kinds have one name twice, or are more than {MOST_KINDS}"
    if not any(kind.role == "positive" for kind in dataset.kinds):
        return "no kind of events is positive"
    return None


def _attributes(dataset: Dataset) -> str | None:
    rows = {"user": dataset.num_users, "item": dataset.num_items}
    for side in SIDES:
        attributes = getattr(dataset, f"{side}_attributes")
        names = [folded(each.name) for each in attributes]
        for name in names:
            if name in RESERVED or names.count(name) > 1:
                return f"the {side} attribute {name!r:.60} has the name of another column"
        for each in attributes:
            problem = _problem(each, rows.get(side))
            if problem:
                return f"{side} attribute {each.name!r:.60} {problem}"
    return None


def _problem(each: Attribute, rows: int | None) -> str | None:
    """What is wrong with an attribute. rows: of its side; None: it is of events."""
    if each.boundaries and each.num_values != len(each.boundaries) + 2:
        return f"has {len(each.boundaries)} boundaries, which make not {each.num_values} values"
    if any(low >= high for low, high in pairwise(each.boundaries)):
        return "has boundaries that do not ascend"
    if (each.num_values == 0) != each.is_dense:
        return f"is a {each.kind} and has {each.num_values} values"
    if (each.scale is None) != (each.kind != "number"):
        return "is a number without a scale, or has one and is none"
    if each.scale is not None and any(low > high for low, high in pairwise(each.scale.quantiles)):
        return "has quantiles that do not ascend"
    if (each.width == 0) != (each.kind != "vector"):
        return f"is a {each.kind} of width {each.width}"
    if rows is None and each.kind in ("multi", "vector"):
        return f"is a {each.kind}, which events do not have"
    if each.kind == "vector" and sum(file.rows for file in each.vectors) != rows:
        return f"has vectors of other than {rows} rows"
    return None


def check_tables(dataset: Dataset) -> None:
    """Raise Mistake where a table lacks a column, holds another type, or has other rows than told.

    Reads footers alone; the interactions' files are checked when they are opened.
    """
    for side, rows, attributes in (
        ("user", dataset.num_users, dataset.user_attributes),
        ("item", dataset.num_items, dataset.item_attributes),
    ):
        columns = {side: "integer", "raw_id": "id"}
        columns |= dict.fromkeys(("count", "count_with_validation", "count_of_all"), "integer")
        columns |= {each.name: COLUMN[each.kind] for each in attributes if each.kind in COLUMN}
        if side == "item":
            columns |= {"title": "text"}
        if side in dataset.table_rows:
            columns |= {"table_row": "integer"}
        _check_table(dataset, f"{side}s.parquet", columns, rows)
    vocabulary = {"side": "text", "name": "text", "row": "integer", "value": "text"}
    _check_table(dataset, "attributes.parquet", vocabulary, None)


def _check_table(dataset: Dataset, name: str, columns: dict[str, str], rows: int | None) -> None:
    path = dataset.file(name)
    with open_parquet(path) as file:
        check_columns(path, file.schema_arrow, columns)
        found = file.metadata.num_rows
    if rows is not None and found != rows:
        raise Mistake(f"{path} has {found} rows, dataset.json says {rows}: {AGAIN}")


def check_columns(path: str, schema: pa.Schema, columns: dict[str, str]) -> None:
    """Raise Mistake where a file lacks one of the columns, or has it in another type.

    columns: integer, integers (a list), number, id (integers or text) or text, by name.
    """
    for name, kind in columns.items():
        if schema.names.count(name) != 1:
            raise Mistake(f"{path} has no column {name!r}: {AGAIN}")
        found = schema.field(name).type
        if not _is_of(kind, found):
            wanted = {
                "integers": "lists of integers",
                "integer": "integers",
                "number": "numbers",
                "id": "ids",
            }
            raise Mistake(
                f"{path}: column {name!r} is of type {found!s:.60}, not "
                f"{wanted.get(kind, kind)}: {AGAIN}"
            )


def _is_of(kind: str, found: pa.DataType) -> bool:
    text = pa.types.is_string(found) or pa.types.is_large_string(found)
    match kind:
        case "integer":
            return bool(pa.types.is_signed_integer(found))
        case "integers":
            is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
            return bool(is_list and pa.types.is_signed_integer(found.value_type))
        case "number":
            return bool(pa.types.is_floating(found))
        case "id":
            return bool(text or pa.types.is_signed_integer(found))
        case _:
            # A column without a single value is written as nulls.
            return bool(text or pa.types.is_null(found))
