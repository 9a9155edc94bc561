"""The steps of `tandem prepare`, one after the other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import duckdb

from trainer.data.schema import Dataset
from trainer.observe.progress import Progress
from trainer.prepare.describe import describe
from trainer.prepare.entity_tables import write_items_and_users, write_vocabularies
from trainer.prepare.extend import (
    fitting_source,
    inherit,
    inherited_columns,
    inherited_rule,
    keep_files,
    known_columns,
    load_parent,
    next_window,
    stage_parent,
)
from trainer.prepare.features.encode_source import EncodedSource, encode_source, with_vectors
from trainer.prepare.features.shared_rows import rows_to_deal
from trainer.prepare.partitions.kept_rows import groups_of
from trainer.prepare.partitions.partition_plan import PartitionCounts, PartitionPlan, total
from trainer.prepare.partitions.splits import SplitRule
from trainer.prepare.prepare_arguments import DEFAULT_HISTORY_LENGTH, PrepareArguments
from trainer.prepare.split_choice import choose_rule, with_moments
from trainer.prepare.staged_checks import check_counts, check_times, starts_of_windows
from trainer.prepare.staging import (
    Catalog,
    check_source,
    load_raw,
    load_side,
    make_catalog,
    partitions,
    stage_rows,
)
from trainer.sources import sql
from trainer.sources.checks import IdColumn, Thresholds
from trainer.sources.formats.every import read_source
from trainer.sources.row_columns import check_varying
from trainer.sources.side_tables import SideFiles
from trainer.sources.sources import Source, in_order
from trainer.sources.statement_watch import watched

Engine = Callable[[PartitionPlan, sql.Resources, Progress, int], list[PartitionCounts]]
"""Runs `prepare_partition` for every partition: (plan, resources, progress, rows) -> counts."""


class Build:
    """The steps of prepare, in the order of `run`; all files go under `partial`."""

    def __init__(
        self,
        arguments: PrepareArguments,
        parent: Dataset | None,
        partial: Path,
        scratch: Path,
        progress: Progress,
    ) -> None:
        self.parent = parent
        self.arguments = arguments if parent is None else inherit(arguments, parent)
        self.partial = partial
        self.staging = partial / "staging"
        self.scratch = scratch
        self.progress = progress
        self.columns = inherited_columns(arguments.columns(known_columns(parent)), parent)
        self.notes: dict[str, int] = {}
        self.resources = sql.Resources(
            arguments.memory_limit, arguments.threads, str(scratch / "spill")
        )
        length = self.arguments.history_length
        self.history_length = DEFAULT_HISTORY_LENGTH if length is None else length

    def run(self, engine: Engine) -> Dataset:
        """Make all files but dataset.json, whose contents are returned."""
        self.staging.mkdir()
        with closing(sql.connect(self.resources, str(self.scratch / "raw.duckdb"))) as connection:
            source, dropped, rows = self._read(connection)
            thresholds, rule, catalog = self._check(connection, source)
            encoded = encode_source(
                connection,
                source,
                self.arguments,
                self.columns,
                thresholds,
                self.parent,
                self.progress.message,
            )
            plan, unit, more = self._stage(connection, source, encoded, rule, catalog, rows)
            counts = total(engine(plan, self.resources, self.progress, rows))
            check_counts(plan, counts, self.arguments.source, self.progress.message)
            self.progress.message("writing items and users")
            extends, appends = self.parent is not None, plan.parent is not None
            with watched(connection, self.progress, "writing"):
                held = None
                if encoded.title is not None and source.items is not None:
                    held = source.items.column(encoded.title)
                dealt = write_items_and_users(
                    connection,
                    plan.staging,
                    plan.out,
                    encoded.attributes,
                    held,
                    extends,
                    appends,
                    bool(counts.count_WSK.sum()),
                    rows_to_deal(
                        self.parent, self.arguments.min_count, self.arguments.min_user_count
                    ),
                )
                write_vocabularies(connection, plan.out)
                sizes = {"item": catalog.num_items, "user": catalog.num_users}
                attributes = with_vectors(
                    connection, self.partial, sizes, encoded.attributes, self.parent
                )
        shutil.rmtree(self.staging)
        described = {
            "format": source.format,
            "columns": source.columns,
            "rows": rows + self._parent_rows,
            "timestamp_unit": unit,
            "in_order": source.in_order,
            "thresholds": None if thresholds is None else asdict(thresholds),
            "duplicates": plan.keep,
            "title_column": encoded.title,
            "context": list(source.context),
            "item_columns": list(self.columns.of_items),
            "user_columns": list(self.columns.of_users),
            "unused": list(source.unused),
            "kinds_dropped": list(encoded.kinds.away),
            "attributes_left_out": encoded.left_out,
        }
        dropped.update(more)
        return describe(
            self.partial,
            plan,
            catalog,
            counts,
            dropped,
            attributes,
            described,
            self.notes,
            self.parent,
            self.arguments.window,
            dealt,
        )

    @property
    def _parent_rows(self) -> int:
        return 0 if self.parent is None else int(self.parent.source["rows"])

    def _read(self, connection: duckdb.DuckDBPyConnection) -> tuple[Source, dict[str, int], int]:
        """Table `raw`; the source, rows dropped by reason, rows."""
        arguments = self.arguments
        self.progress.message(f"reading {arguments.source}")
        source = read_source(
            connection,
            arguments.source,
            arguments.format,
            self.columns,
            SideFiles(arguments.items, arguments.users),
        )
        if arguments.in_order:
            source = in_order(source, arguments.source)
        if self.parent is not None:
            source = fitting_source(source, arguments.source, self.parent)
        for note in source.all_notes:
            self.progress.message(note)
        with watched(connection, self.progress, "reading"):
            dropped = load_raw(connection, source, arguments.source, arguments.drop_null_ids)
        rows = sql.number(connection, "SELECT count(*) FROM raw") + sum(dropped.values())
        self.progress.message(f"read {rows:,} rows as {source.format}")
        return source, dropped, rows

    def _check(
        self, connection: duckdb.DuckDBPyConnection, source: Source
    ) -> tuple[Thresholds | None, SplitRule, Catalog]:
        """Check raw and side tables; tables `users` and `items`, side tables, `vocabulary`."""
        arguments = self.arguments
        users, items, thresholds = check_source(
            connection,
            source,
            arguments.source,
            arguments.positive_threshold,
            arguments.dislike_threshold,
        )
        if self.parent is None:
            rule = choose_rule(arguments, source, thresholds)
        else:
            rule = inherited_rule(self.parent)
        users, items = self._load_side_tables(connection, source, users, items)
        connection.execute(
            "CREATE TABLE vocabulary (side VARCHAR, name VARCHAR, row BIGINT, value VARCHAR, "
            "count BIGINT)"
        )
        if self.parent is not None:
            ids = load_parent(connection, self.parent, {"user": users, "item": items})
            users, items = ids["user"], ids["item"]
        with watched(connection, self.progress, "dealing ids"):
            catalog = make_catalog(connection, users, items, arguments.source)
        self.progress.message(f"{catalog.num_users:,} users, {catalog.num_items:,} items")
        return thresholds, rule, catalog

    def _load_side_tables(
        self,
        connection: duckdb.DuckDBPyConnection,
        source: Source,
        users: IdColumn,
        items: IdColumn,
    ) -> tuple[IdColumn, IdColumn]:
        """Tables side_user and side_item; ids' kinds, theirs taken into account."""
        kinds = []
        for side, own, table in (("user", users, source.users), ("item", items, source.items)):
            for note in () if table is None else check_varying(connection, table, side):
                self.progress.message(note)
            theirs, dropped = load_side(connection, side, table, self.arguments.drop_null_ids)
            kinds.append(IdColumn(own.is_integer and theirs.is_integer))
            if dropped:
                self.notes[f"rows_of_{side}s_without_id"] = dropped
        return kinds[0], kinds[1]

    def _stage(
        self,
        connection: duckdb.DuckDBPyConnection,
        source: Source,
        encoded: EncodedSource,
        rule: SplitRule,
        catalog: Catalog,
        rows: int,
    ) -> tuple[PartitionPlan, str | None, dict[str, int]]:
        """Deal rows into partitions; the plan, timestamps' unit, rows dropped by reason."""
        folder, kinds, context = str(self.staging / "rows"), encoded.kinds, encoded.context
        appended = None if self.parent is None or not self.parent.has_timestamps else self.parent
        old_rows = 0
        if self.parent is not None:
            old_rows = sum(each.rows for each in self.parent.splits.values())
        if appended is not None:  # those that the new rows' users carry, of each sign
            old_rows = min(old_rows, 2 * self.history_length * rows)
        parts = min(partitions(rows + old_rows), catalog.num_users)
        with watched(connection, self.progress, "partitioning"):
            dropped, unit = stage_rows(
                connection, source, catalog, kinds, context, parts, self._parent_rows, folder
            )
        connection.execute("DROP TABLE raw")
        if source.has_timestamp and not source.in_order:
            check_times(
                connection,
                folder,
                unit,
                self.parent,
                self.arguments.source,
                self.progress.message,
            )
        if self.parent is not None and appended is None:
            stage_parent(connection, self.parent, catalog, parts, folder)
        keep = self.arguments.duplicates or ("last" if source.has_rating else "first")
        starts = starts_of_windows(connection, self.arguments, source, folder)
        if rule.rule == "time":
            group_K = groups_of(kinds.kinds)
            rule = with_moments(connection, rule, str(self.staging), parts, group_K, keep, starts)
        if appended is not None:
            keep_files(appended, appended.event_names, self.partial)
        plan = PartitionPlan(
            staging=str(self.staging),
            out=str(self.partial),
            parts=parts,
            num_users=catalog.num_users,
            num_items=catalog.num_items,
            rule=rule,
            history_length=self.history_length,
            has_timestamps=source.has_timestamp,
            kinds=kinds.kinds,
            context=tuple(each.attribute for each in context),
            has_weights=source.has_weight,
            keep=keep,
            starts=starts,
            first_window=0 if appended is None else next_window(appended),
            parent=None if appended is None else appended.path,
        )
        return plan, unit, dropped
