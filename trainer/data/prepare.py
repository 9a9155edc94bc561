"""`tandem prepare SOURCE OUT`: interactions of any source become a dataset on disk.

    source files -> raw table -> id rows -> staged partitions -> interactions, queries -> tables
      formats.py      staging.py, attributes.py    partition.py (splits.py, histories.py)  tables.py

DuckDB does all of it and spills what exceeds --memory-limit. OUT is built as OUT.partial and put
in place at the end, so OUT is whole or not there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import duckdb

from trainer.data import sql
from trainer.data.attributes import Encoded, Wanted, encode_side
from trainer.data.checks import Thresholds
from trainer.data.describe import describe
from trainer.data.extend import (
    fitting_source,
    inherit,
    inherited_rule,
    load_parent,
    parent_attributes,
    stage_parent,
)
from trainer.data.formats import SideFiles, read_source
from trainer.data.partition import (
    SPLIT_NAMES,
    PartitionCounts,
    PartitionPlan,
    prepare_partition,
    total,
)
from trainer.data.prepare_arguments import DEFAULT_HISTORY_LENGTH, PrepareArguments
from trainer.data.schema import Dataset
from trainer.data.sources import Source, in_order, title_column
from trainer.data.split_choice import choose_rule, with_moments
from trainer.data.splits import SplitRule
from trainer.data.staging import (
    Catalog,
    check_source,
    load_raw,
    load_side,
    make_catalog,
    partitions,
    stage_rows,
)
from trainer.data.summary import print_summary
from trainer.data.tables import join_queries, write_items_and_users, write_vocabularies
from trainer.data.watch import watched
from trainer.mistake import Mistake
from trainer.progress import Progress, TerminalProgress

__all__ = ["Engine", "PrepareArguments", "prepare", "run_here"]

Engine = Callable[[PartitionPlan, sql.Resources, Progress, int], list[PartitionCounts]]
"""Runs `prepare_partition` for every partition: (plan, resources, progress, rows) -> counts."""


def run_here(
    plan: PartitionPlan, resources: sql.Resources, progress: Progress, rows: int
) -> list[PartitionCounts]:
    """The engine of one machine: partition after partition, each on all threads."""
    counts = []
    started = time.monotonic()
    for part in range(plan.parts):
        counts.append(prepare_partition(plan, part, resources))
        done = rows * (part + 1) // plan.parts
        rate = done / max(time.monotonic() - started, 1e-6)
        progress.update("histories", done, rows, rows_per_second=rate)
    return counts


def prepare(
    arguments: PrepareArguments, progress: Progress | None = None, engine: Engine = run_here
) -> None:
    """Make the dataset and print what is in it. Raises Mistake on the user's mistakes."""
    started = time.monotonic()
    out = Path(arguments.out)
    in_place = arguments.extend is not None and out.resolve() == Path(arguments.extend).resolve()
    if out.exists() and not in_place:
        raise Mistake(f"{out} exists already: remove it, or name another folder")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    if in_place:
        _undo_half_a_swap(out)
    partial.mkdir(parents=True)
    shown = progress or TerminalProgress()
    try:
        dataset = _Build(arguments, partial, shown).run(engine)
        (partial / "dataset.json").write_text(dataset.to_json())
        _put_in_place(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        shown.close()
    print_summary(replace(dataset, path=str(out)), time.monotonic() - started)


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename the finished folder to OUT, in place of the dataset that it extends."""
    old = out.with_name(out.name + ".old")
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _undo_half_a_swap(out: Path) -> None:
    """Bring back a dataset that an earlier run was killed between two renames of replacing."""
    old = out.with_name(out.name + ".old")
    if old.exists() and not out.exists():
        old.rename(out)


class _Build:
    """The steps of prepare, in the order of `run`; all files go under `partial`."""

    def __init__(self, arguments: PrepareArguments, partial: Path, progress: Progress) -> None:
        self.parent = None if arguments.extend is None else Dataset.load(arguments.extend)
        self.arguments = arguments if self.parent is None else inherit(arguments, self.parent)
        self.partial = partial
        self.staging = partial / "staging"
        self.progress = progress
        self.resources = sql.Resources(
            arguments.memory_limit, arguments.threads, str(self.staging / "spill")
        )
        length = self.arguments.history_length
        self.history_length = DEFAULT_HISTORY_LENGTH if length is None else length

    def run(self, engine: Engine) -> Dataset:
        """Make all files but dataset.json, whose contents are returned."""
        self.staging.mkdir()
        connection = sql.connect(self.resources, str(self.staging / "raw.duckdb"))
        try:
            source, dropped, rows = self._read(connection)
            thresholds, rule, catalog = self._check(connection, source)
            attributes, title, left_out = self._encode(connection, source)
            plan, unit, more = self._stage(connection, source, thresholds, rule, catalog, rows)
            counts = total(engine(plan, self.resources, self.progress, rows))
            _check_splits(counts, rule)
            self.progress.message("writing items, users and queries")
            extends = self.parent is not None
            with watched(connection, self.progress, "writing"):
                write_items_and_users(
                    connection, plan.staging, plan.out, attributes, title, extends
                )
                write_vocabularies(connection, plan.out)
                join_queries(connection, plan.staging, plan.out)
        finally:
            connection.close()
        shutil.rmtree(self.staging)
        described = {
            "format": source.format,
            "columns": source.columns,
            "rows": rows + self._parent_rows,
            "timestamp_unit": unit,
            "in_order": source.in_order,
            "thresholds": None if thresholds is None else asdict(thresholds),
            "duplicates": plan.keep,
            "title_column": title,
            "attributes_left_out": left_out,
        }
        dropped.update(more)
        return describe(
            self.partial, plan, catalog, counts, dropped, attributes, described, self.parent
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
            arguments.columns,
            SideFiles(arguments.items, arguments.users),
        )
        if arguments.in_order:
            source = in_order(source, arguments.source)
        if self.parent is not None:
            source = fitting_source(source, arguments.source, self.parent)
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
        side_users = load_side(connection, "user", source.users)
        side_items = load_side(connection, "item", source.items)
        users = replace(users, is_integer=users.is_integer and side_users.is_integer)
        items = replace(items, is_integer=items.is_integer and side_items.is_integer)
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

    def _encode(
        self, connection: duckdb.DuckDBPyConnection, source: Source
    ) -> tuple[dict[str, list[Encoded]], str | None, dict[str, dict[str, str]]]:
        """Attributes of both sides, the title's column, columns left out with reasons."""
        title = title_column(source.items, self.arguments.title_column)
        attributes: dict[str, list[Encoded]] = {}
        left_out: dict[str, dict[str, str]] = {}
        for side, table, names, side_title in (
            ("item", source.items, self.arguments.item_attributes, title),
            ("user", source.users, self.arguments.user_attributes, None),
        ):
            known = parent_attributes(self.parent, side)
            attributes[side] = [Encoded(each, None) for each in known.values()]
            left_out[side] = {}
            if table is not None:
                wanted = Wanted(names, side_title, f"--{side}-attributes")
                attributes[side], left_out[side] = encode_side(
                    connection, side, table, wanted, known, self.parent is not None
                )
            elif names is not None:
                raise Mistake(
                    f"--{side}-attributes needs a file of attributes: give --{side}s FILE"
                )
        return attributes, title, left_out

    def _stage(
        self,
        connection: duckdb.DuckDBPyConnection,
        source: Source,
        thresholds: Thresholds | None,
        rule: SplitRule,
        catalog: Catalog,
        rows: int,
    ) -> tuple[PartitionPlan, str | None, dict[str, int]]:
        """Deal rows into partitions; the plan, timestamps' unit, rows dropped by reason."""
        folder = str(self.staging / "rows")
        old_rows = 0
        if self.parent is not None:
            old_rows = sum(each.rows for each in self.parent.splits.values())
        parts = min(partitions(rows + old_rows, self.history_length), catalog.num_users)
        with watched(connection, self.progress, "partitioning"):
            dropped, unit = stage_rows(
                connection, source, catalog, thresholds, parts, self._parent_rows, folder
            )
        connection.execute("DROP TABLE raw")
        if self.parent is not None:
            stage_parent(connection, self.parent, catalog, parts, folder)
            if unit != self.parent.source["timestamp_unit"]:
                raise Mistake(
                    f"timestamps are {unit}, those of the extended dataset "
                    f"{self.parent.source['timestamp_unit']}: give both in one unit"
                )
        if rule.rule == "time":
            rule = with_moments(connection, rule, folder)
        plan = PartitionPlan(
            staging=str(self.staging),
            out=str(self.partial),
            parts=parts,
            rule=rule,
            history_length=self.history_length,
            has_timestamps=source.has_timestamp,
            has_feedback=thresholds is not None and thresholds.dislike is not None,
            keep=self.arguments.duplicates or ("last" if source.has_rating else "first"),
        )
        return plan, unit, dropped


def _check_splits(counts: PartitionCounts, rule: SplitRule) -> None:
    """Raise where a split has nothing to learn from or to ask for."""
    for split, positives in zip(SPLIT_NAMES, counts.positives, strict=True):
        if positives == 0:
            raise Mistake(
                f"--split {rule.rule} leaves no positive interaction for {split} "
                f"(rows: train {counts.rows[0]}, validation {counts.rows[1]}, "
                f"test {counts.rows[2]}): take another --split or other shares, or more data"
            )
