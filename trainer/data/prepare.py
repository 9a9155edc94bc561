"""`tandem prepare SOURCE OUT`: interactions of any source become a dataset on disk.

    source files -> raw table -> id rows -> staged partitions -> interactions, queries -> tables
      sources.py     staging.py                  partition.py (splits.py, histories.py)   tables.py

DuckDB does all of it and spills what exceeds --memory-limit. OUT is built as OUT.partial and put
in place at the end, so OUT is whole or not there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import duckdb
import fsspec
import tyro

from trainer.data import sql
from trainer.data.attributes import Encoded, Wanted, encode_side
from trainer.data.checks import Thresholds
from trainer.data.formats import SideFiles, read_source
from trainer.data.partition import (
    SPLIT_NAMES,
    PartitionCounts,
    PartitionPlan,
    part_file,
    prepare_partition,
    total,
)
from trainer.data.schema import (
    SCHEMA_VERSION,
    Dataset,
    FileRecord,
    Split,
    combined_digest,
    sha256_of,
)
from trainer.data.sources import FORMATS, TITLE_NAMES, Columns, Source
from trainer.data.splits import RULES, SplitRule
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
from trainer.progress import Progress, TerminalProgress

MAX_HISTORY_LENGTH = 10_000
DEFAULT_SHARE = 0.1


@dataclass(frozen=True)
class PrepareArguments:
    """Make a dataset of interactions: dense ids, splits, histories, attributes."""

    source: Annotated[str, tyro.conf.Positional]
    """File, folder, glob or URI with interactions."""
    out: Annotated[str, tyro.conf.Positional]
    """Folder of the dataset; it must not exist yet."""
    format: str | None = None
    """lightgcn, recbole, parquet, csv (also TSV) or movielens (.dat); recognised by the files'
    names where left out."""
    user_column: str | None = None
    """Column of user ids; recognised are user_id, userId, user, uid."""
    item_column: str | None = None
    """Column of item ids; recognised are item_id, itemId, item, movieId and the like."""
    timestamp_column: str | None = None
    """Column of times: integers, dates or ISO 8601 text; recognised are timestamp, time, ts."""
    rating_column: str | None = None
    """Column of ratings; recognised are rating, score, stars."""
    items: str | None = None
    """File of item titles and attributes, one row an item."""
    users: str | None = None
    """File of user attributes, one row a user."""
    title_column: str | None = None
    """Column of --items that holds the title; recognised are title, movie_title, name."""
    item_attributes: tuple[str, ...] | None = None
    """Columns of --items to use as attributes; all others where left out."""
    user_attributes: tuple[str, ...] | None = None
    """Columns of --users to use as attributes; all others where left out."""
    positive_threshold: float | None = None
    """Ratings of at least this are positive; 4 where ratings go from 1 to 5."""
    dislike_threshold: float | None = None
    """Ratings of at most this are disliked; 2 where ratings go from 1 to 5. Ratings between are
    dropped and counted."""
    split: str | None = None
    """given: as the files say. time: one moment for all users. leave-last-out: each user's last
    ones. random: a seeded share of each user's. Left out: given where the files are named so;
    leave-last-out where there are timestamps, since every user is then tested on what came next;
    else random."""
    test_share: float | None = None
    """Share of rows held out for the test; 0.1 where left out. Under leave-last-out a share of
    each user's rows, or one positive each where left out and there are no dislikes to hold out."""
    validation_share: float | None = None
    """Share of rows held out for validation; 0.1 where left out. Under given a share of each
    user's train rows, unless the files name a validation part."""
    duplicates: Literal["first", "last"] | None = None
    """Which of a user's rows of the same item is kept; the last rating, else the first row."""
    drop_null_ids: bool = False
    """Drop (and count) rows whose user or item id is missing, in place of an error."""
    history_length: int = 20
    """Items in a history at most; 0 for none."""
    seed: int = 0
    """Seed of random splits and of the order of rows."""
    memory_limit: str = "4GB"
    """Memory for DuckDB's buffers, beyond which it spills to OUT.partial."""
    threads: int | None = None
    """Threads; all cores where left out."""

    def __post_init__(self) -> None:
        if not 0 <= self.history_length <= MAX_HISTORY_LENGTH:
            raise ValueError(
                f"--history-length {self.history_length} must be from 0 (none) to "
                f"{MAX_HISTORY_LENGTH:,}"
            )
        for flag, share in (
            ("--test-share", self.test_share),
            ("--validation-share", self.validation_share),
        ):
            if share is not None and not 0 < share < 1:
                raise ValueError(f"{flag} {share:g} must lie between 0 and 1, for example 0.1")
        if (self.test_share or 0) + (self.validation_share or 0) >= 1:
            raise ValueError(
                f"--test-share {self.test_share} and --validation-share {self.validation_share} "
                "leave nothing for training: their sum must be below 1"
            )
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(
                f"unknown --format {self.format!r}. {sql.near(self.format, FORMATS)}; "
                "or leave it out"
            )
        if self.split is not None and self.split not in RULES:
            raise ValueError(f"unknown --split {self.split!r}. {sql.near(self.split, RULES)}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads {self.threads} must be at least 1")

    @property
    def columns(self) -> Columns:
        return Columns(
            self.user_column, self.item_column, self.timestamp_column, self.rating_column
        )

    def resources(self, spill: Path) -> sql.Resources:
        return sql.Resources(self.memory_limit, self.threads, str(spill))


Engine = Callable[[PartitionPlan, sql.Resources, Progress, int], list[PartitionCounts]]
"""Runs `prepare_partition` for every partition: (plan, resources, progress, rows) -> counts."""


def prepare(arguments: PrepareArguments, progress: Progress | None = None) -> None:
    """Make the dataset and print what is in it. Raises ValueError on the user's mistakes."""
    started = time.monotonic()
    out = Path(arguments.out)
    if out.exists():
        raise ValueError(f"{out} exists already: remove it, or name another folder")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shown = progress or TerminalProgress()
    try:
        dataset = build(arguments, partial, shown, run_here)
        (partial / "dataset.json").write_text(dataset.to_json())
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        shown.close()
    print_summary(replace(dataset, path=str(out)), time.monotonic() - started)


def build(
    arguments: PrepareArguments, partial: Path, progress: Progress, engine: Engine
) -> Dataset:
    """Build the dataset in folder `partial`, all but dataset.json."""
    staging = partial / "staging"
    staging.mkdir()
    resources = arguments.resources(staging / "spill")
    connection = sql.connect(resources, str(staging / "raw.duckdb"))
    try:
        progress.message(f"reading {arguments.source}")
        source = read_source(
            connection,
            arguments.source,
            arguments.format,
            arguments.columns,
            SideFiles(arguments.items, arguments.users),
        )
        dropped = load_raw(connection, source, arguments.source, arguments.drop_null_ids)
        rows = sql.number(connection, "SELECT count(*) FROM raw")
        progress.message(f"read {rows:,} rows as {source.format}")
        thresholds, catalog = _ids(connection, arguments, source)
        progress.message(f"{catalog.num_users:,} users, {catalog.num_items:,} items")
        parts = min(partitions(rows, arguments.history_length), catalog.num_users)
        folder = str(staging / "rows")
        more, unit = stage_rows(connection, source, catalog, thresholds, parts, 0, folder)
        dropped.update(more)
        connection.execute("DROP TABLE raw")
        rule = _choose_rule(arguments, source, thresholds)
        if rule.rule == "time":
            rule = _with_moments(connection, rule, folder)
        plan = PartitionPlan(
            staging=str(staging),
            out=str(partial),
            parts=parts,
            rule=rule,
            history_length=arguments.history_length,
            has_timestamps=source.has_timestamp,
            has_feedback=thresholds is not None and thresholds.dislike is not None,
            keep=arguments.duplicates or ("last" if source.has_rating else "first"),
        )
        counts = total(engine(plan, resources, progress, rows))
        _check_parts(counts, rule)
        attributes, title, left_out = _tables(connection, arguments, source, plan, progress)
    finally:
        connection.close()
    shutil.rmtree(staging)
    described = {
        "format": source.format,
        "columns": source.columns,
        "rows": rows,
        "timestamp_unit": unit,
        "thresholds": None if thresholds is None else asdict(thresholds),
        "duplicates": plan.keep,
        "title_column": title,
        "attributes_left_out": left_out,
    }
    return _describe(partial, plan, catalog, counts, dropped, attributes, described)


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


def _ids(
    connection: duckdb.DuckDBPyConnection, arguments: PrepareArguments, source: Source
) -> tuple[Thresholds | None, Catalog]:
    """Check the raw table and the side tables, and make the catalog of ids."""
    users, items, thresholds = check_source(
        connection,
        source,
        arguments.source,
        arguments.positive_threshold,
        arguments.dislike_threshold,
    )
    side_users = load_side(connection, "user", source.users)
    side_items = load_side(connection, "item", source.items)
    users = replace(users, is_integer=users.is_integer and side_users.is_integer)
    items = replace(items, is_integer=items.is_integer and side_items.is_integer)
    return thresholds, make_catalog(connection, users, items, arguments.source)


def _choose_rule(
    arguments: PrepareArguments, source: Source, thresholds: Thresholds | None
) -> SplitRule:
    """The user's rule, or the one that suits the source; with its shares."""
    rule: Any = arguments.split
    if rule is None:
        rule = "given" if source.given else "leave-last-out" if source.has_timestamp else "random"
    if rule in ("time", "leave-last-out") and not source.has_timestamp:
        raise ValueError(
            f"--split {rule} needs times, {arguments.source} has none: name their column with "
            "--timestamp-column, or take --split random"
        )
    if rule == "given" and "test" not in source.given:
        raise ValueError(
            f"--split given needs files named train and test, {arguments.source} has "
            f"{' and '.join(source.given) or 'none'}: take another --split"
        )
    test: float | None = arguments.test_share
    has_dislikes = thresholds is not None and thresholds.dislike is not None
    if rule == "given":
        if test is not None:
            raise ValueError("--test-share has no meaning with --split given: leave it out")
    elif test is None and (rule != "leave-last-out" or (has_dislikes and arguments.split is None)):
        test = DEFAULT_SHARE
    validation = arguments.validation_share or DEFAULT_SHARE
    if rule == "leave-last-out" and test is None:
        if arguments.validation_share is not None:
            raise ValueError(
                "--validation-share with --split leave-last-out needs --test-share too; "
                "without both, each user's last positive is test and the one before validation"
            )
        return SplitRule(rule, None, None, arguments.seed)
    if rule == "given" and "validation" in source.given:
        validation = 0.0
    return SplitRule(rule, test, validation, arguments.seed, given=source.given)


def _with_moments(connection: duckdb.DuckDBPyConnection, rule: SplitRule, folder: str) -> SplitRule:
    """The rule `time` with the moments that leave its shares of all rated rows after them."""
    staged = f"read_parquet({sql.text(f'{folder}/*/*.parquet')}) WHERE feedback <> 0"
    rows = sql.number(connection, f"SELECT count(*) FROM {staged}")
    test = rule.test_share or 0.0
    held_out = test + (rule.validation_share or 0.0)
    moments = [
        sql.number(
            connection,
            f"SELECT moment FROM {staged} ORDER BY moment "
            f"LIMIT 1 OFFSET {min(rows - 1, int(rows * (1 - share)))}",
        )
        for share in (held_out, test)
    ]
    return replace(rule, validation_from=moments[0], test_from=moments[1])


def _check_parts(counts: PartitionCounts, rule: SplitRule) -> None:
    for split, positives in zip(SPLIT_NAMES, counts.positives, strict=True):
        if positives == 0:
            raise ValueError(
                f"--split {rule.rule} leaves no positive interaction for {split} "
                f"(rows: train {counts.rows[0]}, validation {counts.rows[1]}, "
                f"test {counts.rows[2]}): take another --split or other shares, or more data"
            )


def _tables(
    connection: duckdb.DuckDBPyConnection,
    arguments: PrepareArguments,
    source: Source,
    plan: PartitionPlan,
    progress: Progress,
) -> tuple[dict[str, list[Encoded]], str | None, dict[str, dict[str, str]]]:
    """Write items, users, attributes and queries."""
    progress.message("writing items, users and attributes")
    connection.execute(
        "CREATE TABLE vocabulary (side VARCHAR, name VARCHAR, row BIGINT, value VARCHAR, "
        "count BIGINT)"
    )
    title = _title(arguments, source)
    attributes: dict[str, list[Encoded]] = {"item": [], "user": []}
    left_out: dict[str, dict[str, str]] = {"item": {}, "user": {}}
    for side, table, names, side_title in (
        ("item", source.items, arguments.item_attributes, title),
        ("user", source.users, arguments.user_attributes, None),
    ):
        if table is not None:
            wanted = Wanted(names, side_title, f"--{side}-attributes")
            attributes[side], left_out[side] = encode_side(connection, side, table, wanted, {})
        elif names is not None:
            raise ValueError(f"--{side}-attributes needs a file of attributes: give --{side}s FILE")
    write_items_and_users(connection, plan.staging, plan.out, attributes, title)
    write_vocabularies(connection, plan.out)
    join_queries(connection, plan.staging, plan.out)
    return attributes, title, left_out


def _title(arguments: PrepareArguments, source: Source) -> str | None:
    """The title's column of the item table: named, or one of the usual names."""
    if source.items is None:
        if arguments.title_column is not None:
            raise ValueError("--title-column needs a file of items: give --items FILE")
        return None
    plain = {each.split(":")[0]: each for each in source.items.kinds}
    if arguments.title_column is None:
        lowered = {each.lower(): full for each, full in plain.items()}
        return next((lowered[each] for each in TITLE_NAMES if each in lowered), None)
    if arguments.title_column not in plain:
        raise ValueError(
            f"{source.items.label} has no column {arguments.title_column!r} (--title-column). "
            f"{sql.near(arguments.title_column, plain)}"
        )
    return plain[arguments.title_column]


def _describe(
    partial: Path,
    plan: PartitionPlan,
    catalog: Catalog,
    counts: PartitionCounts,
    dropped: dict[str, int],
    attributes: dict[str, list[Encoded]],
    source: dict[str, Any],
) -> Dataset:
    """dataset.json's contents."""
    splits = {
        split: Split(
            rows=counts.rows[n],
            positives=counts.positives[n],
            disliked=counts.disliked[n],
            files=tuple(
                part_file(split, part)
                for part in range(plan.parts)
                if (partial / part_file(split, part)).exists()
            ),
            queries=counts.queries[n],
        )
        for n, split in enumerate(SPLIT_NAMES)
    }
    local = fsspec.filesystem("file")
    files = {
        str(each.relative_to(partial)): FileRecord(each.stat().st_size, sha256_of(local, str(each)))
        for each in sorted(partial.rglob("*.parquet"))
    }
    reasons = {**dropped, "duplicate": counts.duplicates, "neutral_rating": counts.neutral}
    return Dataset(
        path=str(partial),
        schema_version=SCHEMA_VERSION,
        num_users=catalog.num_users,
        num_items=catalog.num_items,
        splits=splits,
        split_rule={key: value for key, value in asdict(plan.rule).items() if value is not None},
        history_length=plan.history_length,
        has_timestamps=plan.has_timestamps,
        has_feedback=plan.has_feedback,
        dropped={reason: count for reason, count in reasons.items() if count},
        notes={
            "validation_queries_without_history": counts.queries_without_history[1],
            "test_queries_without_history": counts.queries_without_history[2],
        },
        user_attributes=tuple(each.attribute for each in attributes["user"]),
        item_attributes=tuple(each.attribute for each in attributes["item"]),
        source=source,
        parent_digest=None,
        files=files,
        digest=combined_digest(files),
    )
