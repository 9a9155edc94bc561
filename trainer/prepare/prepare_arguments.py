"""The arguments of `tandem prepare`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from trainer.base.mistake import Mistake
from trainer.data.schema import MAX_HISTORY_LENGTH
from trainer.files.filesystems import check_text
from trainer.files.paths import LastingPath, SentPath
from trainer.prepare.features.column_types import ColumnTypes
from trainer.prepare.features.event_kinds import parse_event_weights
from trainer.prepare.partitions.event_windows import WindowRule
from trainer.prepare.partitions.splits import RULES
from trainer.sources import sql
from trainer.sources.columns import Columns
from trainer.sources.formats.every import FORMATS

DEFAULT_HISTORY_LENGTH = 20


@dataclass(frozen=True)
class PrepareArguments:
    """Make a dataset of interactions: dense ids, splits, histories, attributes."""

    source: Annotated[SentPath, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """File, folder, glob or URI with interactions."""
    out: Annotated[LastingPath, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = ""
    """Folder or URI of the dataset; it must not exist yet, unless --append adds to it. Left out
    with --forget-users or --keep-windows, SOURCE is the dataset, and nothing is added."""
    format: str | None = None
    """lightgcn, recbole, parquet, csv (also TSV), movielens (.dat), delta or iceberg; recognised by
    the files' names where left out."""
    user_column: str | None = None
    """Column of user ids; recognised are user_id, userId, user, uid."""
    item_column: str | None = None
    """Column of item ids; recognised are item_id, itemId, item, movieId and the like."""
    timestamp_column: str | None = None
    """Column of times: integers, dates or ISO 8601 text; recognised are timestamp, time, ts."""
    rating_column: str | None = None
    """Column of ratings; recognised are rating, score, stars."""
    event_column: str | None = None
    """Column that says what kind of event a row is (view, cart, buy)."""
    event_weights: tuple[str, ...] = ()
    """What becomes of each kind: a weight in the loss (view=1 cart=3 buy=10), negative, history (in
    histories alone) or drop. The heaviest kinds are what is looked for: they are held out and left
    out of later rankings. Left out: all kinds weigh 1."""
    weight_column: str | None = None
    """Column of each row's weight in the loss, above 0; it multiplies that of its kind."""
    context: tuple[str, ...] = ()
    """Columns of SOURCE that are known when recommendations are asked for (the hour, the device):
    features of the event. Never what is known only afterwards, such as the time watched."""
    items: SentPath | None = None
    """File of item titles and attributes, one row an item."""
    users: SentPath | None = None
    """File of user attributes, one row a user."""
    item_columns: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ()
    """In place of --items, columns of SOURCE that describe the item, each of whose rows says the
    same: they become its title and attributes."""
    user_columns: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ()
    """In place of --users, columns of SOURCE that describe the user."""
    title_column: str | None = None
    """Column of --items that holds the title; recognised are title, movie_title, name."""
    item_attributes: tuple[str, ...] | None = None
    """Columns of --items to use as attributes; all that can be where left out."""
    user_attributes: tuple[str, ...] | None = None
    """Columns of --users to use as attributes; all that can be where left out."""
    category: tuple[str, ...] = ()
    """Columns whose numbers are categories (codes, years), each value for itself. Numbers of at
    most 64 values are categories anyhow."""
    number: tuple[str, ...] = ()
    """Columns that stay numbers, however few values they have."""
    buckets: tuple[str, ...] = ()
    """Columns whose numbers become 16 categories, of equal counts."""
    features: SentPath | None = None
    """TOML file of columns' types: [items], [users] and [context] with NAME = "category", "number",
    "buckets", "vector" or "leave-out". Flags come before it."""
    item_vectors: tuple[SentPath, ...] = ()
    """Files of item vectors: Parquet with an id column and lists of numbers, or .npy whose rows are
    those of --items. Columns of --items that hold lists of numbers are vectors anyhow."""
    user_vectors: tuple[SentPath, ...] = ()
    """Files of user vectors, likewise."""
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
    each user's rows, or where left out: one positive each if --split leave-last-out is given or
    nothing is disliked, else 0.1, so that some dislikes are held out too."""
    validation_share: float | None = None
    """Share of rows held out for validation; 0.1 where left out. Under given a share of each
    user's train rows, unless the files name a validation part."""
    validation: Literal["random", "last"] | None = None
    """Under given: which of a user's train rows are held out. last suits a test part that came
    later than train; where left out, last with --in-order, else random."""
    in_order: bool = False
    """A user's rows stand in time order though the source has no timestamps (train before test):
    their places serve as times, for histories and splits."""
    duplicates: Literal["first", "last"] | None = None
    """Which of a user's rows of the same item is kept; the last rating, else the first row."""
    min_count: Annotated[int, tyro.conf.arg(metavar="K")] | None = None
    """Items of fewer positive training rows have no row of their own in a model's tables: they
    share some, one for about ten such items. They keep id, title and attributes, and are
    recommended like others; one that passes K with what is appended gets a row."""
    min_user_count: Annotated[int, tyro.conf.arg(metavar="K")] | None = None
    """Likewise of users."""
    drop_null_ids: bool = False
    """Drop (and count) rows whose user or item id is missing, in place of an error."""
    history_length: int | None = None
    """Items in a history at most; 0 for none; 20 where left out."""
    seed: int | None = None
    """Seed of random splits and of the order of rows; 0 where left out."""
    append: bool = False
    """Add SOURCE to OUT, a dataset that prepare made before. Its users and items keep their rows,
    all its rows become training rows, its settings and names of columns hold; new users and items
    come after the others. With times the cost follows SOURCE, which becomes a window of its own."""
    extend: LastingPath | None = None
    """Like --append, to another dataset than OUT, which stays as it is."""
    window: str | None = None
    """Deal rows into windows of time: hour, day, week, a number of them (12h, 7d), or a number of
    rows (1000000). The newest one holds the held-out rows. Left out: all rows at once are one, and
    what is appended is another."""
    keep_windows: Annotated[int, tyro.conf.arg(metavar="N")] | None = None
    """Keep the newest N windows; older ones leave with their rows. Users and items stay."""
    forget_users: SentPath | None = None
    """File of user ids, one a line, whose events and ids leave the dataset; what SOURCE has of
    them is dropped."""
    look: bool = False
    """Show columns, roles, times and what each split would hold out, and make nothing."""
    memory_limit: str = "4GB"
    """Memory for DuckDB's buffers, beyond which it spills to --scratch."""
    threads: int | None = None
    """Threads; all cores where left out."""
    scratch: SentPath | None = None
    """Folder on a local disk for what DuckDB keeps meanwhile; beside OUT where left out (the
    system's temporary folder where OUT is a URI)."""

    def __post_init__(self) -> None:
        check_text(self.source, "SOURCE")
        if self.out or not (self.only_trims or self.look):
            check_text(self.out, "OUT")
        sql.check_resources(self.memory_limit, self.threads)
        for flag, threshold in (
            ("--positive-threshold", self.positive_threshold),
            ("--dislike-threshold", self.dislike_threshold),
        ):
            if threshold is not None and not math.isfinite(threshold):
                raise Mistake(f"{flag} {threshold} must be a number, for example 4")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise Mistake(f"--seed {self.seed} must be an integer of 64 bits")
        if self.history_length is not None and not 0 <= self.history_length <= MAX_HISTORY_LENGTH:
            raise Mistake(
                f"--history-length {self.history_length} must be from 0 (none) to "
                f"{MAX_HISTORY_LENGTH:,}"
            )
        for flag, least in (
            ("--min-count", self.min_count),
            ("--min-user-count", self.min_user_count),
        ):
            if least is not None and not 1 <= least < 2**31:
                raise Mistake(f"{flag} {least} must be a number of rows, at least 1")
        self._check_sides()
        self._check_shares()
        self._check_windows()
        if self.event_weights:
            parse_event_weights(self.event_weights)
        if len(set(self.context)) < len(self.context):
            raise Mistake(f"--context names a column twice: {' '.join(self.context)}")
        if self.format is not None and self.format not in FORMATS:
            raise Mistake(
                f"unknown --format {self.format!r}. {sql.near(self.format, FORMATS)}; "
                "or leave it out"
            )
        if self.split is not None and self.split not in RULES:
            raise Mistake(f"unknown --split {self.split!r}. {sql.near(self.split, RULES)}")

    @property
    def trims(self) -> bool:
        """Whether a dataset loses rows."""
        return self.forget_users is not None or self.keep_windows is not None

    @property
    def only_trims(self) -> bool:
        """Whether a dataset loses rows, and none is made."""
        return not self.out and self.trims

    def _check_sides(self) -> None:
        for side, file, columns in (
            ("item", self.items, self.item_columns),
            ("user", self.users, self.user_columns),
        ):
            if file is not None and columns:
                raise Mistake(
                    f"--{side}s and --{side}-columns are two places for the same: leave one out"
                )

    def _check_shares(self) -> None:
        for flag, share in (
            ("--test-share", self.test_share),
            ("--validation-share", self.validation_share),
        ):
            if share is not None and not 0 < share < 1:
                raise Mistake(f"{flag} {share:g} must lie between 0 and 1, for example 0.1")
        if (self.test_share or 0) + (self.validation_share or 0) >= 1:
            raise Mistake(
                f"--test-share {self.test_share} and --validation-share {self.validation_share} "
                "leave nothing for training: their sum must be below 1"
            )

    def _check_windows(self) -> None:
        if self.window is not None:
            WindowRule.parse(self.window)
        if self.keep_windows is not None and self.keep_windows < 1:
            raise Mistake(f"--keep-windows {self.keep_windows} must be at least 1")
        if self.append and self.extend is not None:
            raise Mistake(
                f"--append adds to OUT, --extend {self.extend} to another dataset: leave one out"
            )

    def column_types(self) -> ColumnTypes:
        """Types of columns that are set."""
        given = ColumnTypes() if self.features is None else ColumnTypes.read(self.features)
        return given.with_flags(category=self.category, number=self.number, buckets=self.buckets)

    def columns(self, known: dict[str, str]) -> Columns:
        """Columns that are named, and names to look for first."""
        return Columns(
            self.user_column,
            self.item_column,
            self.timestamp_column,
            self.rating_column,
            self.title_column,
            self.event_column,
            self.weight_column,
            self.context,
            self.item_columns,
            self.user_columns,
            known,
        )
