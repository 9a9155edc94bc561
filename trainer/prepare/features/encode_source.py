"""All that a source says of users, items and events beside the interactions themselves, encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from trainer.base.mistake import Mistake
from trainer.data.schema import Dataset
from trainer.prepare.extend import keep_files, parent_attributes
from trainer.prepare.features.attributes import Encoded, Wanted, encode_side
from trainer.prepare.features.column_types import check_types
from trainer.prepare.features.context_columns import ContextColumn, encode_context
from trainer.prepare.features.event_kinds import (
    EventKinds,
    kinds_of_events,
    kinds_of_ratings,
    parse_event_weights,
)
from trainer.prepare.features.vector_columns import write_vectors
from trainer.prepare.features.vector_files import with_vector_files
from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.sources.checks import Thresholds
from trainer.sources.columns import Columns
from trainer.sources.sources import Source, title_column


@dataclass(frozen=True)
class EncodedSource:
    """Attributes of both sides, context and kinds of events."""

    attributes: dict[str, list[Encoded]]
    """By side."""
    left_out: dict[str, dict[str, str]]
    """By side, the reason by column."""
    title: str | None
    """Column of the items that holds the title."""
    context: list[ContextColumn]
    kinds: EventKinds


def encode_source(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    arguments: PrepareArguments,
    columns: Columns,
    thresholds: Thresholds | None,
    parent: Dataset | None,
    tell: Callable[[str], None],
) -> EncodedSource:
    """Encode what tables raw, side_user and side_item hold; fills table `vocabulary`."""
    title, types = title_column(source.items, columns), arguments.column_types()
    sides = (
        ("item", source.items, arguments.item_attributes, title),
        ("user", source.users, arguments.user_attributes, None),
    )
    check_types(types, {"item": source.items, "user": source.users}, tuple(source.context))
    attributes: dict[str, list[Encoded]] = {}
    left_out: dict[str, dict[str, str]] = {}
    for side, table, names, side_title in sides:
        known = parent_attributes(parent, side)
        found, left_out[side] = [Encoded(each, None) for each in (known or {}).values()], {}
        if table is not None:
            wanted = Wanted(names, side_title, types.of(side), f"--{side}-attributes")
            found, left_out[side] = encode_side(connection, side, table, wanted, known, tell)
        elif names is not None:
            raise Mistake(f"--{side}-attributes needs a file of attributes: give --{side}s FILE")
        files, has_table = getattr(arguments, f"{side}_vectors"), table is not None
        attributes[side] = with_vector_files(
            connection, side, files, columns, has_table, found, parent is not None
        )
    before = None if parent is None else {each.name: each for each in parent.context_attributes}
    context = encode_context(connection, source, types.context, before)
    kinds = _kinds(connection, source, arguments, thresholds, parent)
    return EncodedSource(attributes, left_out, title, context, kinds)


def _kinds(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    arguments: PrepareArguments,
    thresholds: Thresholds | None,
    parent: Dataset | None,
) -> EventKinds:
    """What kinds of events the rows are."""
    if not source.has_events:
        if arguments.event_weights:
            raise Mistake("--event-weights needs the kinds' column: name it by --event-column")
        return kinds_of_ratings(thresholds)
    weights = parse_event_weights(arguments.event_weights)
    if parent is None:
        return kinds_of_events(connection, source, weights, None)
    away = parent.source.get("kinds_dropped", ())
    return kinds_of_events(connection, source, weights, parent.kinds, away)


def with_vectors(
    connection: duckdb.DuckDBPyConnection,
    partial: Path,
    rows: Mapping[str, int],
    attributes: Mapping[str, list[Encoded]],
    parent: Dataset | None,
) -> dict[str, list[Encoded]]:
    """The attributes with the files of their vectors, which are written here. rows: by side."""
    if parent is not None:
        old = [file.file for each in parent.attributes.values() for file in each.vectors]
        keep_files(parent, old, partial)

    def written(side: str, each: Encoded) -> Encoded:
        if each.attribute.kind != "vector":
            return each
        attribute = write_vectors(
            connection, partial, side, each.attribute, rows[side], each.vectors, parent
        )
        return replace(each, attribute=attribute)

    return {side: [written(side, each) for each in found] for side, found in attributes.items()}
