"""`tandem prepare NEW DATA --append`: new interactions behind those of an existing dataset.

Users and items keep their rows, so that trained tables fit; new ones come after them. Values of
attributes likewise. Where the data have times, the new rows are a window of their own (or several,
by --window), and the files of the others stay as they are. Without times a user's rows have no
order, so old and new become one window again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from trainer.base.mistake import Mistake
from trainer.base.split_names import SPLITS
from trainer.data.description import check_columns
from trainer.data.events.event_files import more_columns
from trainer.data.events.event_reader import event_columns
from trainer.data.feature_types import Attribute
from trainer.data.parquet import open_parquet
from trainer.data.schema import DERIVED, Dataset
from trainer.files.filesystems import filesystem_of, local_path, reached
from trainer.prepare.entity_tables import COUNTS, old_column
from trainer.prepare.partitions.splits import RULES, SplitRule
from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.prepare.staging import STAGED, Catalog
from trainer.sources import sql
from trainer.sources.checks import IdColumn
from trainer.sources.columns import Columns
from trainer.sources.sources import Source


def check_alone(parent: Dataset) -> None:
    """Raise Mistake where a dataset's folder, which is to be replaced, holds what is not of it."""
    folder = local_path(parent.path)
    own = set(replaced_files(parent, folder))
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if name not in own and (path.is_symlink() or not path.is_dir()):
            raise Mistake(
                f"{parent.path} is to be replaced and holds {name}, which is not of the dataset: "
                "move it away, or name another OUT"
            )


def replaced_files(parent: Dataset, folder: Path) -> list[str]:
    """Names of the files of a dataset's folder; raises where another dataset is there by now."""
    if Dataset.load(folder, verify="none").digest != parent.digest:
        raise Mistake(
            f"{parent.path} was replaced by another command meanwhile: start again, on what is "
            "there now"
        )
    derived = [each for each in folder.glob(f"{DERIVED}/**/*") if not each.is_dir()]
    return ["dataset.json", *parent.files, *(str(each.relative_to(folder)) for each in derived)]


def inherit(arguments: PrepareArguments, parent: Dataset) -> PrepareArguments:
    """The arguments with the parent's settings; raises where they name others."""
    needed = {"columns", "rows", "thresholds", "timestamp_unit", "duplicates"}
    if (
        parent.split_rule["rule"] not in RULES
        or not {"seed", "given"} <= parent.split_rule.keys()
        or not needed <= parent.source.keys()
    ):
        remedy = "prepare a dataset from its source and the new data together"
        if parent.source["format"] == "synth":
            remedy = "write its rows as a source with `tandem synth --raw` and prepare that"
        raise Mistake(
            f"{parent.path} was not made by `tandem prepare`, keeps no order of its source's rows, "
            f"and cannot be extended: {remedy}"
        )
    thresholds = parent.source["thresholds"] or {"positive": None, "dislike": None}
    settings: dict[str, Any] = {
        "split": parent.split_rule["rule"],
        "test_share": parent.split_rule.get("test_share"),
        "validation_share": parent.split_rule.get("validation_share"),
        "validation": parent.split_rule.get("validation", "random"),
        "in_order": parent.source.get("in_order", False),
        "seed": parent.split_rule["seed"],
        "history_length": parent.history_length,
        "positive_threshold": thresholds["positive"],
        "dislike_threshold": thresholds["dislike"],
        "duplicates": parent.source["duplicates"],
        "window": parent.window_rule,
        "min_count": _min_count(parent, "item"),
        "min_user_count": _min_count(parent, "user"),
    }
    for name, value in settings.items():
        wanted = getattr(arguments, name)
        if wanted is not None and wanted is not False and wanted != value:
            raise Mistake(
                f"--{name.replace('_', '-')} {wanted} is not the extended dataset's ({value}): "
                "leave it out, or prepare all data anew"
            )
    del settings["test_share"], settings["validation_share"]  # they are in the parent's rule
    return replace(arguments, **settings)


def _min_count(parent: Dataset, side: str) -> int | None:
    return parent.table_rows[side].min_count if side in parent.table_rows else None


def known_columns(parent: Dataset | None) -> dict[str, str]:
    """Names of the columns that the parent's source had."""
    if parent is None:
        return {}
    names = {**parent.source["columns"], "title": parent.source.get("title_column")}
    return {which: name.split(":")[0] for which, name in names.items() if name}


def inherited_columns(columns: Columns, parent: Dataset | None) -> Columns:
    """The columns of kinds, weights and context, and those that describe items and users, that the
    parent's source had, if none are named."""
    if parent is None:
        return columns
    known, context = columns.known, tuple(parent.source.get("context", ()))
    return replace(
        columns,
        event=columns.event or known.get("event"),
        weight=columns.weight or known.get("weight"),
        context=columns.context or context,
        of_items=columns.of_items or tuple(parent.source.get("item_columns", ())),
        of_users=columns.of_users or tuple(parent.source.get("user_columns", ())),
    )


def inherited_rule(parent: Dataset) -> SplitRule:
    """The parent's rule, its moments left open."""
    rule = {key: value for key, value in parent.split_rule.items() if not key.endswith("_from")}
    return SplitRule(
        rule["rule"],
        rule.get("test_share"),
        rule.get("validation_share"),
        rule["seed"],
        given=tuple(rule["given"]),
        validation=rule.get("validation", "random"),
    )


def fitting_source(source: Source, label: str, parent: Dataset) -> Source:
    """The source without the columns that the parent has no use for; raises where one lacks."""
    rated = parent.source["thresholds"] is not None
    columns = parent.source["columns"]
    for has, needed, what in (
        (source.has_timestamp, parent.has_timestamps, "timestamp"),
        (source.has_rating, rated, "rating"),
        (source.has_events, columns.get("event") is not None, "event"),
        (source.has_weight, parent.has_weights, "weight"),
    ):
        if needed and not has:
            raise Mistake(
                f"{label} has no {what} column, the extended dataset has {what}s: "
                f"name it with --{what}-column"
            )
        if has and not needed and what in ("event", "weight"):
            raise Mistake(
                f"{label} is to give {what}s (--{what}-column), the extended dataset has none: "
                "leave it out, or prepare all data anew"
            )
    return replace(source, has_timestamp=parent.has_timestamps, has_rating=rated)


def load_parent(
    connection: duckdb.DuckDBPyConnection, parent: Dataset, staged: dict[str, IdColumn]
) -> dict[str, IdColumn]:
    """Make tables users, items (row, raw), old_user, old_item and vocabulary; ids' types."""
    ids: dict[str, IdColumn] = {}
    for side in ("user", "item"):
        table = sql.parquet(connection, [parent.file(f"{side}s.parquet")])
        was_integer = sql.columns_of(connection, table)["raw_id"] == "BIGINT"
        if was_integer and not staged[side].is_integer:
            raise Mistake(
                f"{side} ids of the extended dataset are integers, the new ones are strings: "
                "correct the new ids, or prepare all data anew"
            )
        ids[side] = IdColumn(was_integer)
        connection.execute(
            f"CREATE TABLE {side}s AS SELECT {side} AS row, raw_id AS raw FROM {table}"
        )
        kept = [f"{side} AS row", *COUNTS, *(["title"] if side == "item" else [])]
        kept += ["table_row"] if side in parent.table_rows else []
        for name, each in (parent_attributes(parent, side) or {}).items():
            if each.kind == "vector":
                continue
            kept.append(f"{sql.name(name)} AS {sql.name(old_column(name))}")
        connection.execute(f"CREATE TABLE old_{side} AS SELECT {', '.join(kept)} FROM {table}")
    vocabulary = sql.parquet(connection, [parent.file("attributes.parquet")])
    connection.execute(
        f"INSERT INTO vocabulary SELECT side, name, row, value, count FROM {vocabulary}"
    )
    return ids


def stage_parent(
    connection: duckdb.DuckDBPyConnection,
    parent: Dataset,
    catalog: Catalog,
    parts: int,
    folder: str,
) -> None:
    """Write the parent's interactions into the partitions, with the split they had."""
    files = list(map(parent.file, parent.event_names))
    _check_rows(connection, parent, files)
    columns = event_columns(parent)
    more = "".join(
        f", {sql.name(name)}"
        for name in columns
        if name in more_columns(parent.has_weights, parent.context_attributes)
    )
    kind, split = (name if name in columns else "0" for name in ("kind", "split"))
    place = "row_number() OVER (PARTITION BY user ORDER BY filename, file_row_number) - 1"
    Path(folder).mkdir(parents=True, exist_ok=True)
    connection.execute(
        f"""COPY (SELECT user::BIGINT * {parts} // {catalog.num_users} AS part,
                user::BIGINT AS user, item::BIGINT AS item, {kind}::TINYINT AS kind,
                {"time" if parent.has_timestamps else place} AS moment, {place} AS position,
                {split}::TINYINT AS old{more}
            FROM {sql.parquet(connection, files, places=True)})
        TO {sql.target(folder)} ({STAGED}, FILENAME_PATTERN 'old_{{i}}')"""
    )


def keep_files(parent: Dataset, names: Iterable[str], out: Path) -> None:
    """Files of the parent in the new folder: the same ones where a disk allows, else copies."""
    filesystem, folder = filesystem_of(parent.path)
    for name in names:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(local_path(parent.path) / name, target)
        except (OSError, Mistake):  # another disk, or a store: a copy
            with reached(parent.path):
                filesystem.get_file(f"{folder}/{name}", str(target))


def next_window(parent: Dataset) -> int:
    """Number of the folder for events that come after the parent's."""
    numbers = (int(name.split("/")[1]) for name in parent.event_names)
    return 1 + max(numbers, default=-1)


def _check_rows(connection: duckdb.DuckDBPyConnection, parent: Dataset, files: list[str]) -> None:
    """Raise Mistake where the parent's events are not what its dataset.json says."""
    limits = {
        "user": parent.num_users,
        "item": parent.num_items,
        "kind": len(parent.kinds),
        "split": len(SPLITS),
    }
    columns = event_columns(parent)
    for path in files:
        with open_parquet(path) as file:
            check_columns(path, file.schema_arrow, columns)
        relation = sql.parquet(connection, [path])
        for column in columns:
            low, high, nulls = sql.one(
                connection,
                f"SELECT min({column}), max({column}), count(*) - count({column}) FROM {relation}",
            )
            if nulls:
                raise Mistake(f"{path}: column {column!r} has nulls: prepare {parent.path} again")
            if column in limits and low is not None and (low < 0 or high >= limits[column]):
                raise Mistake(
                    f"{path}: column {column!r} holds {low if low < 0 else high}, outside "
                    f"0..{limits[column] - 1} of dataset.json: prepare {parent.path} again"
                )


def parent_attributes(parent: Dataset | None, side: str) -> dict[str, Attribute] | None:
    """The parent's attributes of a side by name; None without a parent."""
    if parent is None:
        return None
    known = parent.item_attributes if side == "item" else parent.user_attributes
    return {each.name: each for each in known}
