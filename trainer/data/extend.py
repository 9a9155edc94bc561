"""`tandem prepare NEW OUT --extend OLD`: new interactions beside those of an existing dataset.

Users and items of OLD keep their rows, so that trained tables fit; new ones come after them.
Values of attributes likewise. Positions go on where OLD's source ended.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from trainer.data import sql
from trainer.data.checks import IdColumn
from trainer.data.prepare_arguments import PrepareArguments
from trainer.data.schema import Attribute, Dataset
from trainer.data.sources import Source
from trainer.data.splits import RULES, SplitRule
from trainer.data.staging import Catalog
from trainer.mistake import Mistake


def inherit(arguments: PrepareArguments, parent: Dataset) -> PrepareArguments:
    """The arguments with the parent's settings; raises where they name others."""
    if parent.split_rule["rule"] not in RULES or "columns" not in parent.source:
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
    for has, needed, what in (
        (source.has_timestamp, parent.has_timestamps, "timestamp"),
        (source.has_rating, rated, "rating"),
    ):
        if needed and not has:
            raise Mistake(
                f"{label} has no {what} column, the extended dataset has {what}s: "
                f"name it with --{what}-column"
            )
    return replace(source, has_timestamp=parent.has_timestamps, has_rating=rated)


def load_parent(
    connection: duckdb.DuckDBPyConnection, parent: Dataset, staged: dict[str, IdColumn]
) -> dict[str, IdColumn]:
    """Make tables users, items (row, raw), old_user, old_item and vocabulary; ids' types."""
    ids: dict[str, IdColumn] = {}
    for side in ("user", "item"):
        table = f"read_parquet({sql.text(parent.file(f'{side}s.parquet'))})"
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
        connection.execute(
            f"CREATE TABLE old_{side} AS SELECT * EXCLUDE (raw_id) RENAME ({side} AS row) "
            f"FROM {table}"
        )
    connection.execute(
        f"INSERT INTO vocabulary FROM read_parquet({sql.text(parent.file('attributes.parquet'))})"
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
    moment = "timestamp" if parent.has_timestamps else "position"
    schema = pq.read_schema(parent.split_files("train")[0])
    if "position" not in schema.names:
        raise Mistake(
            f"{parent.path} has no column `position` and cannot be extended: it was not made by "
            "`tandem prepare`. Prepare all data anew"
        )
    selects = [
        f"SELECT user, item, feedback, {moment} AS moment, position, {number}::TINYINT AS old "
        f"FROM read_parquet({sql.texts(parent.split_files(split))})"
        for number, split in enumerate(("train", "validation", "test"))
    ]
    Path(folder).mkdir(parents=True, exist_ok=True)
    connection.execute(
        f"""COPY (SELECT user * {parts} // {catalog.num_users} AS part, user, item, feedback,
                moment, position, NULL::TINYINT AS given, old
            FROM ({" UNION ALL ".join(selects)}))
        TO {sql.text(folder)} (FORMAT parquet, PARTITION_BY (part), OVERWRITE_OR_IGNORE,
            FILENAME_PATTERN 'old_{{i}}')"""
    )


def parent_attributes(parent: Dataset | None, side: str) -> dict[str, Attribute]:
    """The parent's attributes of a side by name."""
    if parent is None:
        return {}
    known = parent.item_attributes if side == "item" else parent.user_attributes
    return {each.name: each for each in known}
