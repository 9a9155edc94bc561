"""Which users, items and values of attributes occur in the rows that a model is trained on.

The others' rows in its tables would stay the noise they began as; the model has zeros there, what
it has for unknown ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.base.split_names import count_column
from trainer.data.events.event_reader import each_event, each_group
from trainer.data.features import read_attribute, read_counts, read_table_rows
from trainer.data.jagged import Jagged
from trainer.data.schema import Dataset


def trained_items(dataset: Dataset, splits: Sequence[str]) -> np.ndarray:
    """Items that somebody liked in the splits trained on, bool [num_items]."""
    return read_counts(dataset, "item", count_column(splits)) > 0


def trained_rows(
    dataset: Dataset, keys: Sequence[str], splits: Sequence[str], with_disliked: bool
) -> dict[str, np.ndarray]:
    """By "user", "item" and the attributes among `keys`: rows of tables that training looks up,
    bool.

    Args:
        with_disliked: disliked rows are trained on too, or disliked items read as history.
    """
    if with_disliked:
        found = _in_rows(dataset, splits)
    else:
        found = {
            "user": read_counts(dataset, "user", count_column(splits)) > 0,
            "item": trained_items(dataset, splits),
        }
    context = [key for key in keys if key.startswith("context.")]
    if context:
        found |= _in_context(dataset, context, splits)
    return with_values(dataset, keys, found)


def with_values(
    dataset: Dataset, keys: Sequence[str], found: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Rows of "user", "item" and of the context, and the values that those users and items have of
    the attributes among `keys`; bool."""
    attributes = dataset.attributes
    for key in keys:
        if key in attributes and not key.startswith("context."):
            column = read_attribute(dataset, key, attributes[key])
            rows = np.flatnonzero(found[key.partition(".")[0]])
            values = column.take(rows) if isinstance(column, np.ndarray) else _of_bags(column, rows)
            found[key] = np.zeros(attributes[key].num_values, dtype=bool)
            found[key][values] = True
    for side in dataset.table_rows:
        rows = read_table_rows(dataset, side)[found[side]]
        found[side] = np.zeros(dataset.rows_of_table(side), dtype=bool)
        found[side][rows] = True
    return found


def _of_bags(bags: Jagged, rows: np.ndarray) -> np.ndarray:
    chosen = np.zeros(len(bags.offsets) - 1, dtype=bool)
    chosen[rows] = True
    return bags.values[np.repeat(chosen, np.diff(bags.offsets))]


def _in_rows(dataset: Dataset, splits: Sequence[str]) -> dict[str, np.ndarray]:
    """Users and items of all rows, liked or disliked: one pass."""
    found = {
        "user": np.zeros(dataset.num_users, dtype=bool),
        "item": np.zeros(dataset.num_items, dtype=bool),
    }
    for user_E, item_E, _ in each_event(dataset, splits):
        found["user"][user_E] = True
        found["item"][item_E] = True
    return found


def _in_context(
    dataset: Dataset, keys: Sequence[str], splits: Sequence[str]
) -> dict[str, np.ndarray]:
    """Values of categories of the context that events of the splits have: one pass."""
    found = {key: np.zeros(dataset.attributes[key].num_values, dtype=bool) for key in keys}
    for rows, chosen_E in each_group(dataset, splits):
        for key, met in found.items():
            met[rows.more[key][chosen_E]] = True
    return found
