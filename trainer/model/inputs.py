"""Which features each tower reads, and the tables behind them, from a config and a dataset.

Feature keys: "user", "history", "item", "history@P" (one position of the list, 0 the most recent),
"user.NAME", "item.NAME" and "context.NAME" for attributes, and "event.NAME" for an attribute of the
items that sequences hold, which has the table of "item.NAME".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from embeddings.tables import Table
from trainer.base.mistake import Mistake
from trainer.config.model_section import ModelConfig
from trainer.data.events.marks import Marks
from trainer.data.feature_bags import of_event, rows_of
from trainer.data.feature_types import Attribute
from trainer.data.schema import Dataset
from trainer.model.dense import module_name


@dataclass(frozen=True)
class Inputs:
    """The keys of a batch, side by side with the tables that embed them."""

    query_keys: tuple[str, ...]
    candidate_keys: tuple[str, ...]
    mean_keys: frozenset[str]
    """Keys with several values a row, whose summed embeddings are divided by their number."""
    tables: tuple[Table, ...]
    dense: dict[str, Attribute]
    """By key, the numbers and vectors that the towers read beside the tables."""
    sequence_length: int = 0
    """Most items of a sequence, where the query tower reads "history" as such; 0: it does not."""
    marks: Marks | None = None
    """What the items of sequences carry; None: nothing."""
    reads_events: bool = False
    """Items of sequences are read with their attributes, as candidates are."""

    @property
    def reads_disliked(self) -> bool:
        """Whether disliked items are looked up as what a user has met."""
        return self.positions("disliked") > 0 or (self.marks is not None and self.marks.dislikes)

    @property
    def event_keys(self) -> tuple[str, ...]:
        """What is looked up of a sequence's items beside their ids."""
        return tuple(map(of_event, self.candidate_keys[1:])) if self.reads_events else ()

    @property
    def event_dense(self) -> tuple[str, ...]:
        """Numbers and vectors of a sequence's items."""
        return tuple(map(of_event, self.candidate_dense)) if self.reads_events else ()

    @property
    def query_dense(self) -> tuple[str, ...]:
        """Dense keys of the query tower, in its order: before the bags."""
        return tuple(key for key in self.dense if not key.startswith("item."))

    @property
    def several_keys(self) -> frozenset[str]:
        """Keys with several values a row: means, and the sequence."""
        return self.mean_keys | ({"history"} if self.sequence_length else set())

    @property
    def moment_reads(self) -> tuple[str, ...]:
        """Keys of the query tower that a row says of its moment, not of its user."""
        return tuple(key for key in self.query_reads if key.startswith("context."))

    @property
    def user_reads(self) -> tuple[str, ...]:
        """Keys of the query tower but those, and but the history."""
        return tuple(
            key for key in self.query_reads if key != "history" and not key.startswith("context.")
        )

    @property
    def query_reads(self) -> tuple[str, ...]:
        """All keys of the query tower."""
        return (*self.query_dense, *self.query_keys)

    @property
    def candidate_dense(self) -> tuple[str, ...]:
        """Dense keys of the candidate tower."""
        return tuple(key for key in self.dense if key.startswith("item."))

    def dense_bytes(self, rows: int, candidates: int) -> int:
        """Bytes of a batch's numbers and vectors, and of what the tower reads in their place."""
        return sum(
            (
                (candidates if key.startswith("item.") else rows)
                + (rows if of_event(key) in self.event_dense else 0)
            )
            * (max(each.width, 1) + 2 * self.tables[0].dim)
            * 4
            for key, each in self.dense.items()
        )

    def pooled_columns(self) -> int:
        """Columns of a row's looked-up embeddings, all keys together."""
        return sum(table.dim * len(table.features) for table in self.tables)

    def positions(self, name: str) -> int:
        """How many positions of the list `name` the query tower reads one by one."""
        return sum(key.startswith(f"{name}@") for key in self.query_keys)

    def known_rows(self, key: str) -> int:
        """Ids 0 ... known_rows - 1 of a feature have a row of their own."""
        return next(table.known_rows for table in self.tables if key in table.features)

    def unknown_row(self, key: str) -> int:
        """The row that every other id of a feature is sent to.

        Users and items: the table's last, declared for it. Attributes: row 0, "missing".
        """
        return self.known_rows(key) if "." not in key else 0

    def sized(self, known_rows: Mapping[str, int]) -> Inputs:
        """The same inputs with tables of other sizes: those of a checkpoint."""
        tables = tuple(
            replace(table, num_rows=known_rows[table.name] + table.has_unknown_row)
            for table in self.tables
        )
        return replace(self, tables=tables)

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, in the order of the batch's KeyedJaggedTensor."""
        return self.query_keys + self.event_keys + self.candidate_keys

    def with_event_table(self, num_items: int) -> Inputs:
        """The same where a sequence's items are looked up in one table of all that they are read
        by, whose last row is of items that are not known: programs for serving have it so."""
        first = self.tables[0]
        tables = [
            replace(each, features=tuple(key for key in each.features if key not in self.of_events))
            for each in self.tables
        ]
        events = replace(
            first, name="event", num_rows=num_items + 1, features=("history",), has_unknown_row=True
        )
        read = [each for each in tables if each.features]
        return replace(self, tables=(*read, events), reads_events=False)

    def shares_rows(self, key: str, row_of: Mapping[str, np.ndarray]) -> bool:
        """Whether an id of `key` has another row in its table, as `row_of` says by "user" and
        "item"; the table of events has a row an item."""
        in_events = any(table.name == "event" for table in self.tables) and key == "history"
        return rows_of(key) in row_of and not in_events

    @property
    def of_events(self) -> frozenset[str]:
        """All keys that are looked up for a sequence's items."""
        return frozenset({"history", *self.event_keys} if self.sequence_length else ())


def build_inputs(model: ModelConfig, dataset: Dataset) -> Inputs:
    """State keys and tables for `model` on `dataset`.

    Raises:
        Mistake: if the model asks for attributes, a history or an order that the dataset lacks.
    """
    _check_dataset_has(model, dataset)
    read = {
        key: each
        for key, each in dataset.attributes.items()
        if getattr(model, f"{key.partition('.')[0]}_attributes")
    }
    looked_up = {key: each for key, each in read.items() if not each.is_dense}
    sequence = model.tower == "sequence"
    pooled_last = model.tower == "history" and model.history_pooling == "mean"
    pooled = model.use_history and not (sequence or model.tower == "history")
    history = ("history",) if pooled else ()
    lists = ("history",) if pooled_last or sequence else _positions(model, dataset)
    query_keys = (
        (("user",) if model.use_user_id else ())
        + history
        + tuple(key for key in looked_up if not key.startswith("item."))
        + lists  # the list that a query tower reads comes last
    )
    candidate_keys = (
        "item",
        *(key for key in looked_up if key.startswith("item.")),
    )
    multi = [key for key, each in looked_up.items() if each.kind == "multi"]
    reads_events = "attributes" in model.sequence_reads
    if reads_events:
        multi += [of_event(key) for key in multi if key.startswith("item.")]
    return Inputs(
        query_keys,
        candidate_keys,
        frozenset([*(set() if sequence else {"history"} & {*query_keys}), *multi]),
        _tables(model, dataset, history + lists, looked_up, reads_events),
        {key: each for key, each in read.items() if each.is_dense},
        min(model.sequence_length, dataset.history_length) if sequence else 0,
        _marks(model, dataset),
        reads_events,
    )


def _marks(model: ModelConfig, dataset: Dataset) -> Marks | None:
    reads = {*model.sequence_reads} - {"attributes"}
    if not reads:
        return None
    liked = [number for number, kind in enumerate(dataset.kinds) if kind.role == "positive"]
    return Marks(
        kinds=bool(reads & {"kinds", "dislikes"}),
        dislikes="dislikes" in reads,
        gaps="gaps" in reads,
        num_kinds=len(dataset.kinds),
        usual_kind=max(liked, key=lambda number: dataset.kinds[number].weight),
    )


def _check_dataset_has(model: ModelConfig, dataset: Dataset) -> None:
    if model.reads_history and dataset.history_length == 0:
        raise Mistake(
            "the model reads the history, but the dataset was prepared with --history-length 0; "
            "prepare it again with a history"
        )
    if model.reads_order and not dataset.has_timestamps:
        by_places = " (history_pooling places)" if model.tower == "history" else ""
        raise Mistake(
            f"the {model.tower} tower{by_places} reads the order of the history, but the dataset "
            "has no times: prepare it with --timestamp-column, or with --in-order if a user's rows "
            "stand in time order in the source"
        )
    named = {word.partition("=")[0] for word in model.attribute_widths if "=" in word}
    known = [key for key, each in dataset.attributes.items() if not each.is_dense]
    for name in sorted(named - set(known)):
        raise Mistake(
            f"model.attribute_widths names {name!r:.60}, which is no category of the dataset: it "
            f"has {', '.join(known) or 'none'}"
        )
    for side, flag in (
        ("user", "--users FILE"),
        ("item", "--items FILE"),
        ("context", "--context NAME"),
    ):
        if getattr(model, f"{side}_attributes") and not getattr(dataset, f"{side}_attributes"):
            raise Mistake(
                f"model.{side}_attributes is set, but the dataset has no {side} attributes; "
                f"give them to `tandem prepare` ({flag})"
            )


def _tables(
    model: ModelConfig,
    dataset: Dataset,
    histories: tuple[str, ...],
    looked_up: Mapping[str, Attribute],
    reads_events: bool,
) -> tuple[Table, ...]:
    """The tables behind the keys; `histories` are the keys of items that a user has met."""

    def table(
        name: str,
        known_rows: int,
        *features: str,
        unknown_row: bool = True,
        width: int = model.dim,
    ) -> Table:
        rows = known_rows + unknown_row
        return Table(
            name, rows, width, features, model.init_std, model.table_precision, unknown_row
        )

    share = bool(histories) and model.shared_item_table
    item_features = ("item", *(histories if share else ()))
    tables = [table("item", dataset.rows_of_table("item"), *item_features)]
    if model.use_user_id:
        tables.append(table("user", dataset.rows_of_table("user"), "user"))
    if histories and not share:
        tables.append(table("history", dataset.rows_of_table("item"), *histories))
    for key, attribute in looked_up.items():
        values = attribute.num_values
        width = model.width_of(key, values)
        keys = (key, of_event(key)) if reads_events and key.startswith("item.") else (key,)
        # Row 0, of a missing value, is that of unknown ones, too.
        tables.append(table(module_name(key), values, *keys, unknown_row=False, width=width))
    return tuple(tables)


def _positions(model: ModelConfig, dataset: Dataset) -> tuple[str, ...]:
    """Keys of the positions read one by one, oldest first."""
    if not model.reads_positions:
        return ()
    length = min(model.sequence_length, dataset.history_length)
    return tuple(f"history@{place}" for place in reversed(range(length)))
